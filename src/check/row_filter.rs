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

const NAME: &str = "row filter";

/// What is known of a filter.
struct FilterFacts {
    /// The columns that it uses.
    columns: Vec<String>,
    /// Its functions and operators that fail for some values.
    may_fail: Vec<String>,
    /// Why only the filter's text is known; `None` where PostgreSQL has parsed it.
    untried: Option<String>,
}

impl From<&PublishedTable> for FilterFacts {
    fn from(published: &PublishedTable) -> FilterFacts {
        FilterFacts {
            columns: published.filter_columns.clone(),
            may_fail: published.may_fail.clone(),
            untried: None,
        }
    }
}

/// A filter on a column outside the identity makes the application's UPDATE and DELETE fail once published.
pub(super) fn row_filter(
    facts: &TableFacts,
    excluded: &[String],
    server: &ServerFacts,
    probe: Option<&Result<PublishedTable, Error>>,
    published: Option<&PublishedTable>,
) -> Option<Check> {
    let filter = facts.schema.row_filter.as_ref()?;
    if server.version_num < ROW_FILTERS {
        let detail = format!("PostgreSQL {} has no row filters, which need version 15", server.version);
        return Some(
            invalid(facts, detail).edit("spec.tables[].where", "take it out, or upgrade the server"),
        );
    }
    let found = match (probe, published) {
        (Some(Ok(probed)), _) => FilterFacts::from(probed),
        (Some(Err(error)), _) if !is_inconclusive(error) => {
            let detail = format!("PostgreSQL refuses where: {error}");
            return Some(invalid(facts, detail).edit("spec.tables[].where", "correct it"));
        }
        // Only the table's owner can have PostgreSQL parse the filter; an existing publication shows it too.
        (_, Some(published)) if published.row_filter.is_some() => FilterFacts::from(published),
        (probe, _) => from_text(facts, excluded, server, probe, filter),
    };
    Some(outside_identity(facts, &found.columns).unwrap_or_else(|| verdict(facts, filter, found)))
}

fn invalid(facts: &TableFacts, detail: String) -> Check {
    Check::failure(facts.schema.id.to_string(), NAME, Reason::SourceRowFilterInvalid, detail)
}

/// A filter's text shows which columns it may use; that is enough to refuse a dangerous one.
fn from_text(
    facts: &TableFacts,
    excluded: &[String],
    server: &ServerFacts,
    probe: Option<&Result<PublishedTable, Error>>,
    filter: &str,
) -> FilterFacts {
    let untried = match probe {
        Some(Err(Error::Standby { .. })) => "a standby can't try it out".to_owned(),
        Some(Err(error)) => error.to_string(),
        _ => format!("{} does not own the table", server.role),
    };
    let mirrored = facts.schema.columns.iter().map(|column| &column.name);
    let columns = mentioned(mirrored.chain(excluded).chain(&facts.generated_columns), filter);
    FilterFacts { columns, may_fail: Vec::new(), untried: Some(untried) }
}

/// The failure of a filter that uses columns outside a replica identity.
fn outside_identity(facts: &TableFacts, columns: &[String]) -> Option<Check> {
    let outside =
        |relation: &RelationFacts| columns.iter().find(|column| !relation.identifies(column)).cloned();
    let lacking: Vec<(&RelationFacts, String)> = facts
        .relations()
        .filter(|_| facts.schema.kind != TableKind::AppendOnly)
        .filter(|relation| relation.identity != IdentityKind::Nothing)
        .filter_map(|relation| Some((relation, outside(relation)?)))
        .collect();
    let (relation, column) = lacking.first()?;
    let statement = |(relation, _): &(&RelationFacts, String)| {
        format!("ALTER TABLE {} REPLICA IDENTITY FULL;", qualified(&relation.id))
    };
    let fix: Vec<String> = lacking.iter().map(statement).collect();
    let detail = format!(
        "where names {column}, which is not in the replica identity of {}: once published, UPDATE and DELETE would fail",
        relation.id
    );
    Some(invalid(facts, detail).run_at_source(fix.join("\n")))
}

/// The check of a filter that uses columns of the replica identity alone, as far as is known.
fn verdict(facts: &TableFacts, filter: &str, found: FilterFacts) -> Check {
    let subject = facts.schema.id.to_string();
    if let Some(why) = found.untried {
        let detail = format!("the columns that where uses are unknown before it is published ({why})");
        return Check::warning(subject, NAME, Reason::SourceRowFilterInvalid, detail)
            .edit("spec.tables[].where", "make sure that it names columns of the replica identity only");
    }
    if found.may_fail.is_empty() {
        return Check::ok(subject, NAME, filter);
    }
    let detail = format!(
        "where uses {}, which fails for some values: one such row stops the copy of this table, and in the stream the whole Mirror, \
         because PostgreSQL sends nothing after it",
        found.may_fail.join(", ")
    );
    Check::warning(subject, NAME, Reason::SourceRowFilterFailed, detail).edit(
        "spec.tables[].where",
        "compare columns with constants, or make sure that no value fails (CASE WHEN quantity <> 0 THEN total / quantity > 5 ELSE false END)",
    )
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
