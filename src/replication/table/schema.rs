//! How a table's columns on record follow those of the catalog.

use super::{
    describe::Described,
    projection::{NOT_FULL, readable_as},
    record::TableRecord,
};
use crate::{
    model::{Column, IdentityKind, SourceType, TableKind, TableSchema},
    postgres::catalog::LiveColumn,
};

/// Whether columns come to a table on record, and others came and went again before them: names of rows from
/// then may mean those.
pub(in crate::replication) fn came_and_went(record: &TableRecord, now: &Described) -> bool {
    let known = |column: &Column| record.schema.columns.iter().any(|known| known.attnum == column.attnum);
    // Rows of which only the inserts count stay as they were inserted.
    let counts = record.schema.kind != TableKind::AppendOnly && !now.schema.columns.iter().all(known);
    let highest = record.fingerprint.as_ref().and_then(|fingerprint| fingerprint.attributes);
    counts && highest.is_some_and(|highest| leave_gaps(highest, &now.columns))
}

/// Whether numbers above `highest` are missing below those that columns have.
fn leave_gaps(highest: i16, live: &[LiveColumn]) -> bool {
    let new = || live.iter().map(|column| column.attnum).filter(|attnum| *attnum > highest);
    let count = new().count();
    new()
        .max()
        .is_some_and(|last| usize::try_from(last.saturating_sub(highest)).is_ok_and(|room| room > count))
}

/// The schema after a change, and which of its columns are new; or why it can't be applied.
///
/// Columns are matched by attribute number, which a rename keeps. A dropped column stays: the target keeps
/// it, and no value comes for it any more.
pub(in crate::replication) fn evolve(
    old: &TableSchema,
    fresh: &TableSchema,
) -> Result<(TableSchema, Vec<usize>), String> {
    let mut merged = old.clone();
    for known in &mut merged.columns {
        known.dropped = !fresh.columns.iter().any(|column| column.attnum == known.attnum);
    }
    let mut added = Vec::new();
    for column in &fresh.columns {
        if let Some(known) = merged.columns.iter_mut().find(|known| known.attnum == column.attnum) {
            retype(known, column, &old.target)?;
            rename(known, &column.name);
        }
    }
    // Only once all have their present names: a new column may have one's former name.
    for column in &fresh.columns {
        if merged.columns.iter().any(|known| known.attnum == column.attnum) {
            continue;
        }
        let clash = |known: &&Column| known.name == column.name || known.target_name == column.target_name;
        if let Some(known) = merged.columns.iter().find(clash) {
            return Err(taken(column, known));
        }
        added.push(merged.columns.len());
        merged.columns.push(column.clone());
    }
    let names = |schema: &TableSchema| -> Vec<String> {
        schema
            .key
            .iter()
            .filter_map(|index| schema.columns.get(*index))
            .map(|column| column.name.clone())
            .collect()
    };
    if merged.kind == TableKind::ChangeLog && fresh.identity != IdentityKind::Full {
        return Err(NOT_FULL.to_owned());
    }
    if merged.kind.is_keyed() && fresh.key.is_empty() {
        return Err(format!(
            "nothing identifies its rows any more, which were identified by ({})",
            names(&merged).join(", ")
        ));
    }
    // A key that such a table gets later changes nothing for rows that were identified without one.
    if merged.kind.is_keyed() && names(&merged) != names(fresh) {
        return Err(format!(
            "the replica identity changed from ({}) to ({})",
            names(&merged).join(", "),
            names(fresh).join(", ")
        ));
    }
    merged.identity = fresh.identity;
    merged.oid = fresh.oid;
    Ok((merged, added))
}

/// Why a new column can't have the target column of its name, which has the values of another one.
fn taken(column: &Column, known: &Column) -> String {
    let (name, target) = (&column.name, &known.target_name);
    match known.dropped {
        true if known.name == *name => format!(
            "column {name} was dropped and added again at the source; its target column {target} holds values of the old one"
        ),
        true => format!(
            "column {name} was added at the source; target column {target} holds values of column {}, which was dropped",
            known.name
        ),
        false => format!(
            "column {name} was added at the source; target column {target} holds values of column {}",
            known.name
        ),
    }
}

/// The same columns, in the same order, as queries must name them now; without those added meanwhile.
pub(in crate::replication) fn rename_to_current(schema: &TableSchema, fresh: &TableSchema) -> TableSchema {
    let mut now = schema.clone();
    for known in &mut now.columns {
        let found = fresh.columns.iter().find(|column| column.attnum == known.attnum);
        known.dropped = found.is_none();
        if let Some(found) = found {
            rename(known, &found.name);
        }
    }
    now
}

/// Accepts another type whose values are read and stored as before, such as `text` for `varchar(20)`.
fn retype(known: &mut Column, column: &Column, target: &str) -> Result<(), String> {
    let former = (known.type_oid, known.type_modifier);
    if former == (column.type_oid, column.type_modifier) {
        return Ok(());
    }
    if !reads(&column.source_type, &known.source_type) {
        return Err(format!(
            "column {} changed its type from {} to {} at the source; target table {target} still has the old type",
            known.name, known.type_name, column.type_name
        ));
    }
    known.former_types.retain(|known| *known != (column.type_oid, column.type_modifier));
    known.former_types.push(former);
    (known.type_oid, known.type_modifier) = (column.type_oid, column.type_modifier);
    known.type_name.clone_from(&column.type_name);
    known.source_type.clone_from(&column.source_type);
    Ok(())
}

/// Whether values that were sent as `former` are read as `fresh` with the same result.
fn reads(fresh: &SourceType, former: &SourceType) -> bool {
    match (former, fresh) {
        (SourceType::Numeric(Some((precision, scale))), SourceType::Numeric(Some((now, now_scale)))) => {
            let whole = |precision: u16, scale: i16| i32::from(precision) - i32::from(scale);
            scale <= now_scale && whole(*precision, *scale) <= whole(*now, *now_scale)
        }
        (SourceType::Array(former), SourceType::Array(fresh)) => reads(fresh, former),
        (SourceType::Int2, SourceType::Int4 | SourceType::Int8)
        | (SourceType::Int4, SourceType::Int8)
        | (SourceType::Float4, SourceType::Float8) => true,
        _ => former == fresh && fresh.has_binary_decoder(),
    }
}

/// How the names and types that a schema was made with compare with the columns that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) enum ColumnNames {
    /// A query by this schema reads what it means.
    Same,
    /// A column has another name, or is gone.
    Renamed,
    /// A column has another type.
    Retyped,
}

/// Compares by attribute number: after a swap of names, a query would read the wrong column without an error.
pub(in crate::replication) fn check_columns(schema: &TableSchema, live: &[LiveColumn]) -> ColumnNames {
    let mut found = ColumnNames::Same;
    for known in schema.columns.iter().filter(|known| !known.dropped) {
        match live.iter().find(|column| column.attnum == known.attnum) {
            Some(column) if !readable_as(known, (column.type_oid, column.type_modifier)) => {
                return ColumnNames::Retyped;
            }
            Some(column) if column.name == known.name => {}
            _ => found = ColumnNames::Renamed,
        }
    }
    found
}

fn rename(column: &mut Column, name: &str) {
    if column.name != name {
        let former = std::mem::replace(&mut column.name, name.to_owned());
        column.former_names.retain(|known| *known != former);
        column.former_names.push(former);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        fixtures::{column, mismatch, relation, schema},
        projection::{Fit, fit},
    };
    use super::*;

    #[test]
    fn rows_from_before_a_rename_keep_their_values() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let (merged, _) = evolve(&old, &schema(vec![column("id", 1, 20), column("b", 2, 25)])).unwrap();
        for name in ["a", "b"] {
            let Fit::Known(projection) = fit(&merged, &relation(&[("id", 20), (name, 25)]), &[]) else {
                panic!()
            };
            assert!(projection.identical, "{name}");
        }
    }

    #[test]
    fn a_dropped_column_is_asked_for_once() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25), column("b", 3, 25)]);
        let without = relation(&[("id", 20), ("b", 25)]);
        assert_eq!(fit(&old, &without, &[]), Fit::Unknown("column a is missing".into()));
        let fresh = schema(vec![column("id", 1, 20), column("c", 3, 25), column("d", 4, 25)]);
        let (merged, _) = evolve(&old, &fresh).unwrap();
        let dropped: Vec<_> = merged.columns.iter().map(|column| column.dropped).collect();
        assert_eq!(dropped, [false, true, false, false]);
        assert!(matches!(fit(&merged, &relation(&[("id", 20), ("c", 25), ("d", 25)]), &[]), Fit::Known(_)));
        let now = rename_to_current(&old, &fresh);
        let now: Vec<_> = now.columns.iter().map(|column| (column.name.as_str(), column.dropped)).collect();
        assert_eq!(now, [("id", false), ("a", true), ("c", false)]);
    }

    #[test]
    fn swapped_names_are_distinguished_by_their_order() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25), column("b", 3, 25)]);
        let swapped = relation(&[("id", 20), ("b", 25), ("a", 25)]);
        assert!(mismatch(&old, &swapped).contains("column a is not known at this position"));
        let fresh = schema(vec![column("id", 1, 20), column("b", 2, 25), column("a", 3, 25)]);
        let (merged, _) = evolve(&old, &fresh).unwrap();
        for relation in [swapped, relation(&[("id", 20), ("a", 25), ("b", 25)])] {
            let Fit::Known(projection) = fit(&merged, &relation, &[]) else { panic!() };
            assert!(projection.identical, "{relation:?}");
        }
        let live = |name: &str, attnum, type_oid| LiveColumn {
            attnum,
            name: name.into(),
            type_oid,
            type_modifier: -1,
            generated: false,
            written_by: 7,
        };
        let now = |last| [live("id", 1, 20), live("b", 2, 25), last];
        assert_eq!(check_columns(&merged, &now(live("a", 3, 25))), ColumnNames::Same);
        assert_eq!(check_columns(&old, &now(live("a", 3, 25))), ColumnNames::Renamed);
        assert_eq!(check_columns(&old, &now(live("a", 4, 25))), ColumnNames::Renamed);
        assert_eq!(check_columns(&merged, &now(live("a", 3, 26))), ColumnNames::Retyped);
    }

    #[test]
    fn a_type_that_is_read_alike_is_accepted() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let (merged, _) = evolve(&old, &schema(vec![column("id", 1, 20), column("a", 2, 1043)])).unwrap();
        for type_oid in [25, 1043] {
            assert!(matches!(fit(&merged, &relation(&[("id", 20), ("a", type_oid)]), &[]), Fit::Known(_)));
        }
        let mut other = schema(vec![column("id", 1, 20), column("a", 2, 23)]);
        other.columns[1].source_type = SourceType::Int4;
        assert!(evolve(&old, &other).unwrap_err().contains("changed its type from type25 to type23"));
    }

    #[test]
    fn a_longer_numeric_reads_what_was_sent_before() {
        let numeric = |precision, scale| SourceType::Numeric(Some((precision, scale)));
        assert!(reads(&numeric(12, 2), &numeric(10, 2)) && reads(&numeric(12, 4), &numeric(10, 2)));
        assert!(!reads(&numeric(12, 5), &numeric(10, 2)) && !reads(&numeric(10, 2), &numeric(12, 2)));
        assert!(!reads(&SourceType::Numeric(None), &numeric(10, 2)));
        let array = |precision| SourceType::Array(Box::new(numeric(precision, 2)));
        assert!(reads(&array(12), &array(10)) && !reads(&array(10), &array(12)));
        assert!(reads(&SourceType::Int8, &SourceType::Int4) && !reads(&SourceType::Int4, &SourceType::Int8));
        assert!(!reads(&SourceType::Numeric(Some((12, 2))), &SourceType::Int4));
        let mut old = schema(vec![column("id", 1, 20), column("d", 2, 1700)]);
        old.columns[1] = Column { type_modifier: 7, source_type: numeric(10, 2), ..old.columns[1].clone() };
        let mut fresh = old.clone();
        fresh.columns[1] = Column { type_modifier: 9, source_type: numeric(12, 2), ..old.columns[1].clone() };
        let (merged, _) = evolve(&old, &fresh).unwrap();
        assert_eq!(merged.columns[1].source_type, numeric(12, 2));
        assert_eq!(merged.columns[1].former_types, [(1700, 7)]);
    }

    #[test]
    fn an_added_column_is_appended_and_a_rename_keeps_its_target() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let fresh = schema(vec![column("id", 1, 20), column("renamed", 2, 25), column("n", 3, 25)]);
        let (merged, added) = evolve(&old, &fresh).unwrap();
        assert_eq!(added, vec![2]);
        assert_eq!(
            (merged.columns[1].name.as_str(), merged.columns[1].target_name.as_str()),
            ("renamed", "a")
        );
        assert_eq!(merged.columns[2].name, "n");
    }

    #[test]
    fn what_a_new_column_s_target_holds_is_reported() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let problem = |old: &TableSchema, columns: Vec<Column>| evolve(old, &schema(columns)).unwrap_err();
        let (id, new) = (column("id", 1, 20), column("a", 5, 25));
        assert_eq!(
            problem(&old, vec![id.clone(), new.clone()]),
            "column a was dropped and added again at the source; its target column a holds values of the old one"
        );
        let renamed = vec![id.clone(), column("b", 2, 25), new.clone()];
        assert_eq!(
            problem(&old, renamed),
            "column a was added at the source; target column a holds values of column b"
        );
        let (renamed, _) = evolve(&old, &schema(vec![id.clone(), column("b", 2, 25)])).unwrap();
        assert_eq!(
            problem(&renamed, vec![id.clone(), new]),
            "column a was added at the source; target column a holds values of column b, which was dropped"
        );
        // The target gives the name of its own that `columns.rename` asks for.
        let mut named = old.clone();
        named.columns[1].target_name = "c".to_owned();
        assert_eq!(
            problem(&named, vec![id, column("a", 2, 25), column("c", 3, 25)]),
            "column c was added at the source; target column c holds values of column a"
        );
    }

    #[test]
    fn a_dropped_column_stays_and_a_key_or_type_change_is_refused() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let (merged, added) = evolve(&old, &schema(vec![column("id", 1, 20)])).unwrap();
        assert_eq!((merged.columns.len(), added.len()), (2, 0));
        assert!(
            evolve(&old, &schema(vec![column("id", 1, 20), column("a", 5, 25)]))
                .unwrap_err()
                .contains("again")
        );
        let mut other_key = old.clone();
        other_key.key = vec![1];
        assert!(evolve(&old, &other_key).unwrap_err().contains("replica identity"));
    }
}
