//! One table of a publication: whether it is published with the Mirror's row filter and columns.

use super::{Desired, NAME, not_owned, role_that_may_alter};
use crate::{
    check::report::Check,
    fault::{Reason, Remedy},
    model::{TableId, TableSchema},
    postgres::{
        Error,
        catalog::TableFacts,
        publication::{self, Member, Publication, PublishedTable},
    },
};

/// A published table with another filter than the Mirror's, or with a list of other columns.
pub(super) fn member(
    desired: &Desired<'_>,
    found: &Publication,
    table: &TableFacts,
    published: &PublishedTable,
) -> Option<Check> {
    let published = Published { desired, found, table, published };
    match published.columns() {
        Some(check) => Some(check),
        None => published.row_filter(),
    }
}

/// A table as it is published.
struct Published<'a> {
    desired: &'a Desired<'a>,
    found: &'a Publication,
    table: &'a TableFacts,
    published: &'a PublishedTable,
}

impl Published<'_> {
    fn schema(&self) -> &TableSchema {
        &self.table.schema
    }

    fn failure(&self, detail: String) -> Check {
        let subject = self.schema().id.to_string();
        Check::failure(subject, NAME, Reason::SourcePublicationUnusable, detail)
    }

    /// Statements that change the table's entry in one step, and who may run them.
    fn as_transaction(&self, statements: &[String]) -> String {
        let statements = format!("BEGIN;\n{};\nCOMMIT;", statements.join(";\n"));
        let unowned = not_owned([self.table].into_iter());
        match self.found.may_alter && unowned.is_empty() {
            true => statements,
            false => format!("-- {}\n{statements}", role_that_may_alter(self.found, &unowned)),
        }
    }

    /// The statements that publish the table as the Mirror has it.
    fn publish_again(&self) -> String {
        let member = Member { table: self.schema(), listed: false };
        self.as_transaction(&publication::alter_statements(&self.desired.name(), &[], &[], &[member]))
    }

    /// The failure of a column list.
    fn columns(&self) -> Option<Check> {
        let list = self.published.columns.as_ref()?;
        if let Some(why) = self.table.refuses_list() {
            let check = self.failure(format!("{why}: UPDATE and DELETE on it fail"));
            return Some(check.run_at_source(self.publish_again()));
        }
        let misfit = list.misfit(self.schema())?;
        let fix = self.as_transaction(&publication::list_statements(&self.desired.name(), self.schema()));
        Some(self.failure(misfit).run_at_source(fix))
    }

    /// The failure of a row filter.
    fn row_filter(&self) -> Option<Check> {
        let schema = self.schema();
        let detail = match (&schema.row_filter, &self.published.row_filter) {
            (None, None) => return None,
            (None, Some(theirs)) => format!("published with WHERE {theirs}, which is not in the spec"),
            (Some(_), None) => "published without the Mirror's row filter".to_owned(),
            (Some(ours), Some(theirs)) => match agrees(self.desired, &schema.id, theirs) {
                Ok(Some(true)) => return None,
                Ok(Some(false)) => format!("published with WHERE {theirs}, but the spec has {ours}"),
                _ if same_text(ours, theirs) || is_unchanged(self.desired, schema, theirs) => return None,
                result => return Some(self.unknown_filter(ours, theirs, result.err())),
            },
        };
        Some(self.failure(detail).run_at_source(self.publish_again()))
    }

    /// The failure of two filters of which PostgreSQL did not say whether they are the same.
    fn unknown_filter(&self, ours: &str, theirs: &str, error: Option<&Error>) -> Check {
        let why = error.map_or_else(|| "PostgreSQL was not asked".to_owned(), Error::to_string);
        let detail = format!(
            "published with WHERE {theirs}, and whether that equals {ours} is unknown ({why}): rows could be missing, or sent although they don't match"
        );
        let write = format!("if it does, set {}", serde_json::json!(theirs));
        let choices = [
            vec![Remedy::edit("spec.tables[].where", write)],
            vec![Remedy::run_at_source(format!("-- if it doesn't\n{}", self.publish_again()))],
        ];
        let is_transient = error.is_some_and(Error::is_transient);
        self.failure(detail).remedied([Remedy::any_of(choices)]).transient(is_transient)
    }
}

/// Whether a table's published filter is the Mirror's; `None` where PostgreSQL was not asked.
fn agrees<'a>(desired: &Desired<'a>, id: &TableId, theirs: &str) -> Result<Option<bool>, &'a Error> {
    match (desired.probes.get(id), desired.agreements.get(id)) {
        (Some(Ok(probed)), _) => Ok(Some(probed.row_filter.as_deref() == Some(theirs))),
        (_, Some(agrees)) => agrees.as_ref().map(|agrees| Some(*agrees)),
        (Some(Err(error)), None) => Err(error),
        (None, None) => Ok(None),
    }
}

/// Whether a filter is written as PostgreSQL shows it.
fn same_text(ours: &str, theirs: &str) -> bool {
    let ours = ours.trim();
    ours == theirs || theirs.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) == Some(ours)
}

/// Whether neither the filter that the Mirror asks for nor the one that is there has changed since the table
/// joined.
fn is_unchanged(desired: &Desired<'_>, schema: &TableSchema, theirs: &str) -> bool {
    desired.joined.tables.get(&schema.id).is_some_and(|record| {
        let published = record.published.as_ref().and_then(|published| published.row_filter.as_deref());
        record.spec.row_filter == schema.row_filter && published == Some(theirs)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{
        Probes,
        tests::{check, found, published},
    };
    use super::*;
    use crate::{
        check::{
            report::Outcome,
            tests::{server_facts, table_facts},
        },
        model::IdentityKind,
        postgres::publication::ColumnList,
    };

    #[test]
    fn filters_are_compared_in_postgresqls_own_form() {
        let with = |ours: Option<&str>, theirs: Option<&str>, normal: Option<&str>| {
            let mut facts = table_facts();
            facts.schema.row_filter = ours.map(str::to_owned);
            let probes = normal
                .map(|normal| (facts.schema.id.clone(), Ok(published("users", Some(normal)))))
                .into_iter()
                .collect();
            let found = Publication { tables: vec![published("users", theirs)], ..found() };
            check(&server_facts(), facts, &probes, Some(&found)).outcome
        };
        assert_eq!(with(Some("id>5"), Some("(id > 5)"), Some("(id > 5)")), Outcome::Ok);
        assert_eq!(with(Some("id>6"), Some("(id > 5)"), Some("(id > 6)")), Outcome::Failure);
        assert_eq!(with(Some("id>5"), None, Some("(id > 5)")), Outcome::Failure);
        assert_eq!(with(None, Some("(id > 5)"), None), Outcome::Failure);
        // What can't be compared may be another one, unless it is written as PostgreSQL shows it.
        assert_eq!(with(Some("id>5"), Some("(id > 5)"), None), Outcome::Failure);
        assert_eq!(with(Some("id > 5"), Some("(id > 5)"), None), Outcome::Ok);
        assert_eq!(with(Some("(id > 5)"), Some("(id > 5)"), None), Outcome::Ok);
    }

    #[test]
    fn a_column_list_has_to_fit() {
        let with = |names: &[&str], attnums: &[i16], identity| {
            let mut table = published("users", None);
            let names = names.iter().map(|name| (*name).to_owned()).collect();
            table.columns = Some(ColumnList { names, attnums: attnums.to_vec() });
            let found = Publication { tables: vec![table], ..found() };
            let mut facts = table_facts();
            facts.relation.identity = identity;
            let check = check(&server_facts(), facts, &Probes::new(), Some(&found));
            let fix = check.fix().unwrap_or_default();
            (check.outcome, check.detail, fix)
        };
        let (default, full) = (IdentityKind::Default, IdentityKind::Full);
        assert_eq!(with(&["id", "email"], &[1, 2], default).0, Outcome::Ok);
        let (outcome, detail, fix) = with(&["id"], &[1], default);
        assert_eq!((outcome, detail.as_str()), (Outcome::Failure, "the column list lacks email"));
        assert_eq!(
            fix,
            "BEGIN;\nLOCK TABLE \"public\".\"users\" IN SHARE MODE;\nALTER PUBLICATION \"walferry_1f\" DROP TABLE ONLY \"public\".\"users\";\n\
             ALTER PUBLICATION \"walferry_1f\" ADD TABLE ONLY \"public\".\"users\" (\"id\", \"email\");\nCOMMIT;"
        );
        assert_eq!(with(&["id", "email", "secret"], &[1, 2, 3], default).0, Outcome::Failure);
        let (outcome, detail, fix) = with(&["id", "email"], &[1, 2], full);
        assert_eq!(outcome, Outcome::Failure);
        assert!(
            detail.contains("FULL") && fix.contains("ADD TABLE ONLY \"public\".\"users\";"),
            "{detail} {fix}"
        );
    }
}
