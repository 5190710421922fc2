//! A table's row filter: whether PostgreSQL accepts it, and whether UPDATE and DELETE still work once it is
//! published.

use std::collections::BTreeSet;

use super::report::Check;
use crate::{
    fault::Reason,
    model::{IdentityKind, TableKind},
    postgres::{
        Error,
        catalog::{RelationFacts, ServerFacts, TableFacts},
        publication::PublishedTable,
        quote::table as qualified,
    },
};

/// Row filters and column lists exist since PostgreSQL 15.
pub(super) const ROW_FILTERS: u32 = 150_000;

/// A filter on a column outside the identity makes the application's UPDATE and DELETE fail once published.
pub(super) fn row_filter(
    facts: &TableFacts,
    excluded: &[String],
    server: &ServerFacts,
    probe: Option<&Result<PublishedTable, Error>>,
    published: Option<&PublishedTable>,
) -> Option<Check> {
    const NAME: &str = "row filter";
    let subject = &facts.schema.id.to_string();
    let filter = facts.schema.row_filter.as_ref()?;
    let invalid = |detail: String| Check::failure(subject, NAME, Reason::SourceRowFilterInvalid, detail);
    if server.version_num < ROW_FILTERS {
        return Some(
            invalid(format!("PostgreSQL {} has no row filters, which need version 15", server.version))
                .edit("spec.tables[].where", "take it out, or upgrade the server"),
        );
    }
    let words;
    let mut untried = None;
    let mut may_fail: &[String] = &[];
    let columns = match (probe, published) {
        (Some(Ok(probed)), _) => {
            may_fail = &probed.may_fail;
            &probed.filter_columns
        }
        (Some(Err(error)), _) if !is_inconclusive(error) => {
            return Some(
                invalid(format!("PostgreSQL refuses where: {error}"))
                    .edit("spec.tables[].where", "correct it"),
            );
        }
        // Only the table's owner can have PostgreSQL read the filter; an existing publication shows it as
        // well.
        (_, Some(published)) if published.row_filter.is_some() => {
            may_fail = &published.may_fail;
            &published.filter_columns
        }
        // Its text shows which columns it may use; that is enough to refuse a dangerous one.
        (probe, _) => {
            untried = Some(match probe {
                Some(Err(Error::Standby { .. })) => "a standby can't try it out".to_owned(),
                Some(Err(error)) => error.to_string(),
                _ => format!("{} does not own the table", server.role),
            });
            let mirrored = facts.schema.columns.iter().map(|column| &column.name);
            words = mentioned(mirrored.chain(excluded).chain(&facts.generated_columns), filter);
            &words
        }
    };
    let outside =
        |relation: &RelationFacts| columns.iter().find(|column| !relation.identifies(column)).cloned();
    let lacking: Vec<(&RelationFacts, String)> = facts
        .relations()
        .filter(|_| facts.schema.kind != TableKind::AppendOnly)
        .filter(|relation| relation.identity != IdentityKind::Nothing)
        .filter_map(|relation| Some((relation, outside(relation)?)))
        .collect();
    if let Some((relation, column)) = lacking.first() {
        let statement = |(relation, _): &(&RelationFacts, String)| {
            format!("ALTER TABLE {} REPLICA IDENTITY FULL;", qualified(&relation.id))
        };
        let fix: Vec<String> = lacking.iter().map(statement).collect();
        let detail = format!(
            "where names {column}, which is not in the replica identity of {}: once published, UPDATE and DELETE would fail",
            relation.id
        );
        return Some(invalid(detail).run_at_source(fix.join("\n")));
    }
    if let Some(why) = untried {
        let detail = format!("the columns that where uses are unknown before it is published ({why})");
        return Some(
            Check::warning(subject, NAME, Reason::SourceRowFilterInvalid, detail)
                .edit("spec.tables[].where", "make sure that it names columns of the replica identity only"),
        );
    }
    Some(match may_fail {
        [] => Check::ok(subject, NAME, filter),
        functions => {
            let detail = format!(
                "where uses {}, which fails for some values: one such row stops the copy of this table, and in the stream the whole Mirror, \
                 for PostgreSQL sends nothing after it",
                functions.join(", ")
            );
            Check::warning(subject, NAME, Reason::SourceRowFilterFailed, detail).edit(
                "spec.tables[].where",
                "compare columns with constants, or make sure that no value fails (CASE WHEN quantity <> 0 THEN total / quantity > 5 ELSE false END)",
            )
        }
    })
}

/// Those of a table's columns whose names are words of the filter, outside of its string constants.
pub(super) fn mentioned<'a>(columns: impl Iterator<Item = &'a String>, filter: &str) -> Vec<String> {
    let mut words = BTreeSet::new();
    let mut rest = filter.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '\'' => while rest.next().is_some_and(|character| character != '\'') {},
            '"' => {
                let mut word = String::new();
                while let Some(character) = rest.next() {
                    match character {
                        '"' if rest.next_if_eq(&'"').is_some() => word.push('"'),
                        '"' => break,
                        other => word.push(other),
                    }
                }
                words.insert(word);
            }
            first if first.is_alphabetic() || first == '_' => {
                let mut word = first.to_lowercase().to_string();
                while let Some(next) = rest.next_if(|next| next.is_alphanumeric() || "_$".contains(*next)) {
                    word.extend(next.to_lowercase());
                }
                words.insert(word);
            }
            _ => {}
        }
    }
    columns.filter(|name| words.contains(*name)).cloned().collect()
}

/// Whether a probe's failure says nothing of the filter: no privilege to publish, a standby, a lock, a lost
/// connection.
fn is_inconclusive(error: &Error) -> bool {
    error.is_transient() || error.sqlstate().is_none_or(|state| state == "42501")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_words_of_a_filter() {
        let columns = ["id", "email", "Mixed", "secret"].map(str::to_owned);
        let of = |filter: &str| mentioned(columns.iter(), filter);
        assert_eq!(of("EMAIL = 'secret' AND \"Mixed\" > 5"), ["email", "Mixed"]);
        assert_eq!(of("id_2 > 1 AND mixed"), Vec::<String>::new());
        assert_eq!(of("lower(secret) = 'it''s email'"), ["secret"]);
    }
}
