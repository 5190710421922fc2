//! The result of one table's comparison, as lines of text.

use super::{
    plan::TablePlan,
    rows::{Key, Row},
};

/// The answer for a table or for all of them, from best to worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Equal,
    Different,
    Inconclusive,
}

/// What was found out about one table.
#[derive(Debug, Default)]
pub(super) struct TableReport {
    /// A line for each difference.
    pub(super) differences: Vec<String>,
    /// Whether there may be more of them.
    pub(super) stopped: bool,
    /// Keys whose rows changed so often that they could not be compared.
    pub(super) still_changing: Vec<String>,
    /// Columns that can't be compared.
    pub(super) incomparable: Vec<String>,
    /// What was read, in words.
    pub(super) extent: String,
    /// Why nothing could be found out.
    pub(super) error: Option<String>,
}

impl TableReport {
    /// A table that could not be compared.
    pub(super) fn inconclusive(error: String) -> TableReport {
        TableReport { error: Some(error), ..TableReport::default() }
    }

    pub(super) fn outcome(&self) -> Outcome {
        match self {
            TableReport { error: Some(_), .. } => Outcome::Inconclusive,
            TableReport { differences, .. } if !differences.is_empty() => Outcome::Different,
            TableReport { still_changing, .. } if !still_changing.is_empty() => Outcome::Inconclusive,
            _ => Outcome::Equal,
        }
    }

    /// The table's lines.
    pub(super) fn lines(&self, table: &str) -> Vec<String> {
        let mut lines = vec![match (&self.error, self.differences.len()) {
            (Some(error), _) => format!("  {table}: inconclusive: {error}"),
            (None, 0) if self.still_changing.is_empty() => format!("  {table}: equal, {}", self.extent),
            (None, 0) => format!("  {table}: inconclusive, {}", self.extent),
            (None, count) => {
                let least = if self.stopped { "at least " } else { "" };
                let noun = if count == 1 { "difference" } else { "differences" };
                format!("  {table}: DIFFERENT, {least}{count} {noun}, {}", self.extent)
            }
        }];
        lines.extend(self.differences.iter().map(|line| format!("    {line}")));
        lines
            .extend(self.still_changing.iter().map(|key| format!("    {key}: still changing, inconclusive")));
        if !self.incomparable.is_empty() {
            lines.push(format!(
                "    not compared: {} (JSON at the destination)",
                self.incomparable.join(", ")
            ));
        }
        lines
    }
}

/// The rows of one key, which are not the same.
pub(super) fn difference(plan: &TablePlan, key: &Key, source: Option<&Row>, target: &[Row]) -> String {
    let shown = plan.show_key(key);
    match (source, target) {
        (None, _) => format!("{shown}: only at the destination"),
        (Some(_), []) => format!("{shown}: missing at the destination"),
        (Some(source), [target]) => {
            let columns: Vec<String> = plan
                .differing(source, target)
                .into_iter()
                .filter_map(|index| {
                    let name = &plan.schema.columns.get(index)?.name;
                    let (source, target) =
                        (plan.show(index, source.get(index)?), plan.show(index, target.get(index)?));
                    Some(format!("{name} is {source} at the source and {target} at the destination"))
                })
                .collect();
            format!("{shown}: {}", columns.join("; "))
        }
        (Some(_), several) => format!("{shown}: {} rows at the destination", several.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::verify::plan::tests::{column, plan},
        clickhouse::types::ChType,
        model::SourceType,
    };

    #[test]
    fn reports_what_differs() {
        let number = |number: i32| number.to_le_bytes().to_vec();
        let columns = ["id", "v", "w"]
            .map(|name| (column(name, "integer", SourceType::Int4), ChType::Int(32)))
            .to_vec();
        let plan = plan(columns, &[0]);
        let key = vec![number(7)];
        let row = |v, w| vec![number(7), number(v), number(w)];
        assert_eq!(difference(&plan, &key, None, &[row(1, 2)]), "id = 7: only at the destination");
        assert_eq!(difference(&plan, &key, Some(&row(1, 2)), &[]), "id = 7: missing at the destination");
        assert_eq!(
            difference(&plan, &key, Some(&row(1, 2)), &[row(3, 2)]),
            "id = 7: v is 1 at the source and 3 at the destination"
        );
        assert_eq!(
            difference(&plan, &key, Some(&row(1, 2)), &[row(1, 2), row(1, 2)]),
            "id = 7: 2 rows at the destination"
        );
    }

    #[test]
    fn the_worst_outcome_counts() {
        let mut report = TableReport { extent: "5 rows".to_owned(), ..TableReport::default() };
        assert_eq!(report.outcome(), Outcome::Equal);
        assert_eq!(report.lines("public.t"), ["  public.t: equal, 5 rows"]);
        report.still_changing.push("id = 1".to_owned());
        assert_eq!(report.outcome(), Outcome::Inconclusive);
        report.differences.push("id = 2: missing at the destination".to_owned());
        report.stopped = true;
        assert_eq!(report.outcome(), Outcome::Different);
        assert_eq!(
            report.lines("public.t"),
            [
                "  public.t: DIFFERENT, at least 1 difference, 5 rows",
                "    id = 2: missing at the destination",
                "    id = 1: still changing, inconclusive"
            ]
        );
        assert_eq!(TableReport::inconclusive("gone".to_owned()).lines("t"), ["  t: inconclusive: gone"]);
        assert!(Outcome::Inconclusive > Outcome::Different);
    }
}
