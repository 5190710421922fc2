//! Which names a table's columns have at the target when it is copied again.

use super::record::TableRecord;
use crate::model::{Column, TableSchema, TableSpec};

/// The schema of a table that is copied again: as the catalog has it, under the target names that its columns
/// have had, as long as no two have the same.
pub(in crate::replication) fn rebuild(old: &TableSchema, fresh: &TableSchema) -> TableSchema {
    let mut schema = fresh.clone();
    take_target_names(old, &mut schema, |_, _| true);
    schema
}

/// Gives the columns of a table that is added again the names that they had at the target, so that a rename
/// at the source does not become a second column there. What `columns.rename` says or has said of a column
/// comes first. Another target, and another table under the same name, begin with names of their own.
pub fn keep_target_names(before: &TableRecord, spec: &TableSpec, fresh: &mut TableSchema) {
    if before.schema.oid != fresh.oid || before.schema.target != fresh.target {
        return;
    }
    let asked = |known: &Column| {
        let of = |from: &String| *from == known.name || known.former_names.contains(from);
        before.spec.rename.iter().any(|(from, _)| of(from))
    };
    take_target_names(&before.schema, fresh, |known, name| {
        let asks = spec.rename.iter().any(|(from, _)| from == name);
        !asks && (before.spec.rename == spec.rename || !asked(known))
    });
}

/// `keeps` says of a known column and its present name whether its target name stays.
fn take_target_names(old: &TableSchema, schema: &mut TableSchema, keeps: impl Fn(&Column, &str) -> bool) {
    let known = |column: &Column| old.columns.iter().find(|known| known.attnum == column.attnum);
    let mut kept: Vec<Option<String>> = schema
        .columns
        .iter()
        .map(|column| {
            let known = known(column).filter(|known| keeps(known, &column.name))?;
            (known.target_name != column.target_name).then(|| known.target_name.clone())
        })
        .collect();
    // A column that has another one's former name takes it, and the other one its present name.
    loop {
        let names = || {
            kept.iter()
                .zip(&schema.columns)
                .map(|(kept, column)| kept.as_ref().unwrap_or(&column.target_name))
        };
        let twice = |name: &String| names().filter(|other| *other == name).count() > 1;
        let clash = kept.iter().position(|kept| kept.as_ref().is_some_and(twice));
        match clash.and_then(|index| kept.get_mut(index)) {
            Some(kept) => *kept = None,
            None => break,
        }
    }
    for (column, kept) in schema.columns.iter_mut().zip(kept) {
        column.target_name = kept.unwrap_or_else(|| column.target_name.clone());
    }
}

/// Removes columns that have never had the name of the one with their number now: after a failover it may be
/// another one, which must not get the target's column of the lost one. Leaves a schema for [`rebuild`]
/// alone.
pub(in crate::replication) fn remove_unknown_columns(known: &mut TableSchema, fresh: &TableSchema) {
    known.columns.retain(|known| {
        let now = fresh.columns.iter().find(|column| column.attnum == known.attnum);
        now.is_some_and(|now| now.name == known.name || known.former_names.contains(&now.name))
    });
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{column, schema};
    use super::*;

    #[test]
    fn a_table_copied_again_keeps_its_target_names_where_they_are_free() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let names = |fresh: Vec<Column>| -> Vec<String> {
            let schema = rebuild(&old, &schema(fresh));
            schema.columns.into_iter().map(|column| column.target_name).collect()
        };
        assert_eq!(
            names(vec![column("id", 1, 20), column("c", 2, 25), column("d", 3, 25)]),
            ["id", "a", "d"]
        );
        assert_eq!(
            names(vec![column("id", 1, 20), column("c", 2, 25), column("a", 3, 25)]),
            ["id", "c", "a"]
        );
    }
}
