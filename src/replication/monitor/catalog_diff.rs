//! Compares a table's catalog fingerprint with the one on record, for changes of which the stream has no row.
//!
//! A rewrite that computes values, a partition that comes with rows or goes with them, TRUNCATE of one
//! partition, a column that was dropped and added again: none of them is in the stream.
//! [`CatalogFingerprint`] shows them, and the table, or what was attached to it, is copied: again, while its
//! changes stream, into the target that it has.

use std::collections::BTreeSet;

use crate::{
    model::{Lsn, TableKind},
    postgres::{
        catalog::{self, CatalogFingerprint},
        session::Session,
    },
    replication::{
        Error, Policy, policy,
        table::{describe, named_columns::Renewal, record::TableRecord, schema},
    },
};

/// Why a table is copied again whose new column was at its target before.
pub(in crate::replication) const FILLED_BEFORE: &str =
    "its target had the new column already, whose old rows may show something else there";

/// What has changed of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::replication) enum CatalogDiff {
    /// Nothing but its columns' names and numbers may have changed.
    Columns,
    /// Relations with these oids were attached, perhaps with rows.
    Attached(BTreeSet<u32>),
    /// Its rows may be others, for this reason.
    Rows(String),
}

/// Compares a table's fingerprints. `mirrored` are the attribute numbers of its mirrored columns.
fn diff(
    before: &CatalogFingerprint,
    now: &CatalogFingerprint,
    mirrored: &[i16],
    partitioned: bool,
) -> CatalogDiff {
    if before.files.keys().any(|oid| !now.files.contains_key(oid)) {
        return CatalogDiff::Rows("a partition was detached or dropped".to_owned());
    }
    if now.links.iter().any(|(oid, link)| before.links.get(oid).is_some_and(|former| former != link)) {
        return CatalogDiff::Rows("a partition was detached and attached again".to_owned());
    }
    let rewritten = before.in_catalog().any(|(oid, file)| now.files.get(&oid) != Some(&file));
    if rewritten && partitioned {
        return CatalogDiff::Rows("a partition was truncated or rewritten".to_owned());
    }
    // VACUUM FULL and CLUSTER rewrite without touching a column; TRUNCATE is in the stream.
    let altered = |(attnum, writer): (&i16, &u32)| match before.columns.get(attnum) {
        Some(former) => former != writer && mirrored.contains(attnum),
        None => true,
    };
    if rewritten && now.columns.iter().any(altered) {
        return CatalogDiff::Rows("ALTER TABLE rewrote it, which may compute new values".to_owned());
    }
    if let Some(why) = old_values(before, now).or_else(|| other_text(before, now, mirrored)) {
        return CatalogDiff::Rows(why.to_owned());
    }
    let known: BTreeSet<u32> = before.in_catalog().map(|(oid, _)| oid).collect();
    let attached: BTreeSet<u32> = now.files.keys().filter(|oid| !known.contains(oid)).copied().collect();
    let added = now.columns.keys().any(|attnum| !before.columns.contains_key(attnum));
    match attached.is_empty() {
        true => CatalogDiff::Columns,
        // Partitions may differ in what their old rows show for the column, and the target can show one
        // value.
        false if added => CatalogDiff::Rows("a partition was attached and a column was added".to_owned()),
        false => CatalogDiff::Attached(attached),
    }
}

/// Why a column that is new to the target has values in the rows that are there. One that was added has a
/// number above all others.
fn old_values(before: &CatalogFingerprint, now: &CatalogFingerprint) -> Option<&'static str> {
    let highest = before.attributes?;
    let was_generated = |attnum: &i16| *attnum <= highest && !before.columns.contains_key(attnum);
    now.columns.keys().any(was_generated).then_some("a generated column became an ordinary one")
}

/// Why the text of values that are there is another one now. A label that was added is in none of them.
fn other_text(
    before: &CatalogFingerprint,
    now: &CatalogFingerprint,
    mirrored: &[i16],
) -> Option<&'static str> {
    let both = |attnum: &i16| before.types.get(attnum).zip(now.types.get(attnum));
    mirrored.iter().filter_map(both).find_map(|(before, now)| {
        let renamed =
            |(label, writer): (&u32, &u32)| before.labels.get(label).is_some_and(|old| old != writer);
        if now.labels.iter().any(renamed) {
            Some("a label of an enum type was renamed")
        } else {
            (before.shape != now.shape).then_some("a type of one of its columns was altered")
        }
    })
}

/// Why a table is copied again with a new column whose type is another one than when its first rows were
/// sent.
const TYPE_ALTERED: &str = "the type of a new column was altered before the column was read";

/// What has changed of a table, by its fingerprints; and where columns are new, whose types no earlier
/// fingerprint has, by the catalog.
pub(in crate::replication) async fn find(
    session: &Session,
    record: &TableRecord,
    now: &CatalogFingerprint,
) -> Result<CatalogDiff, Error> {
    let diff = compare(record, now);
    let new = new_of_users_types(record, now);
    if new.is_empty() || matches!(diff, CatalogDiff::Rows(_)) {
        return Ok(diff);
    }
    match catalog::altered_since_used(session, record.schema.oid, &new).await? {
        true => Ok(CatalogDiff::Rows(TYPE_ALTERED.to_owned())),
        false => Ok(diff),
    }
}

/// The columns that are in no earlier fingerprint and whose types users have made, each with the type that
/// the stream knows.
fn new_of_users_types(record: &TableRecord, now: &CatalogFingerprint) -> Vec<(i16, Option<u32>)> {
    // Rows of which only the inserts count stay as they were inserted.
    let Some(before) = record.fingerprint.as_ref().filter(|_| record.schema.kind != TableKind::AppendOnly)
    else {
        return Vec::new();
    };
    let known = |attnum: i16| record.schema.columns.iter().find(|column| column.attnum == attnum);
    let new = now.types.keys().filter(|attnum| !before.columns.contains_key(attnum));
    new.map(|attnum| (*attnum, known(*attnum).map(|column| column.type_oid))).collect()
}

fn compare(record: &TableRecord, now: &CatalogFingerprint) -> CatalogDiff {
    let mirrored: Vec<i16> = record.schema.columns.iter().map(|column| column.attnum).collect();
    match (&record.resync_reason, &record.fingerprint) {
        // Rows of which only the inserts count stay as they were inserted, whatever becomes of them.
        (None, _) if record.schema.kind == TableKind::AppendOnly => CatalogDiff::Columns,
        (Some(why), _) => CatalogDiff::Rows(why.clone()),
        (None, Some(before)) => diff(before, now, &mirrored, record.schema.partitioned),
        (None, None) => CatalogDiff::Columns,
    }
}

/// What is left to do about fingerprints that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) enum Remainder {
    /// Nothing: the table's record has its columns as the catalog has them.
    Nothing,
    /// Columns were added, which the stream brings with the table's next row.
    AddedColumns,
    /// The session has to restart with the table as the catalog has it.
    Table,
}

/// What is left to do about fingerprints that differ.
///
/// # Errors
/// The table's own fault where it can't be mirrored as asked any more, and what the source answers.
pub(in crate::replication) async fn remainder(
    session: &Session,
    record: &TableRecord,
    now: &CatalogFingerprint,
) -> Result<Remainder, Error> {
    if find(session, record, now).await? != CatalogDiff::Columns {
        return Ok(Remainder::Table);
    }
    let fresh = match describe::describe(session, record).await {
        Err(error) if policy(&error).0 == Policy::FailTable => return Ok(Remainder::Table),
        other => other?,
    };
    let renewal = record.named.as_ref().map(|named| named.renew(&fresh.columns, Lsn::ZERO));
    if renewal != Some(Renewal::Same) {
        return Ok(Remainder::Table);
    }
    Ok(match schema::evolve(&record.schema, &fresh.schema) {
        Ok((merged, _)) if merged == record.schema => Remainder::Nothing,
        Ok((_, added)) if !added.is_empty() && !schema::came_and_went(record, &fresh) => {
            Remainder::AddedColumns
        }
        _ => Remainder::Table,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        model::{Column, Operations, SourceType, TableId, TableSchema, TableSpec},
        postgres::catalog::TypeFingerprint,
        replication::table::record::TablePhase,
    };

    fn fingerprint(files: &[(u32, u32)], columns: &[(i16, u32)]) -> CatalogFingerprint {
        let (files, columns) = (files.iter().copied().collect(), columns.iter().copied().collect());
        CatalogFingerprint { files, columns, ..CatalogFingerprint::default() }
    }

    fn of(before: &CatalogFingerprint, now: &CatalogFingerprint, partitioned: bool) -> CatalogDiff {
        diff(before, now, &[1, 2], partitioned)
    }

    #[test]
    fn a_rewrite_counts_with_a_change_of_a_mirrored_column() {
        let before = fingerprint(&[(7, 70)], &[(1, 5), (2, 5), (3, 5)]);
        let rows = |now: &CatalogFingerprint| matches!(of(&before, now, false), CatalogDiff::Rows(_));
        assert!(rows(&fingerprint(&[(7, 71)], &[(1, 5), (2, 6), (3, 5)])), "TYPE … USING");
        assert!(rows(&fingerprint(&[(7, 71)], &[(1, 5), (2, 5), (3, 5), (4, 6)])), "ADD … DEFAULT random()");
        assert!(!rows(&fingerprint(&[(7, 71)], &[(1, 5), (2, 5), (3, 5)])), "VACUUM FULL");
        assert!(!rows(&fingerprint(&[(7, 71)], &[(1, 5), (2, 5), (3, 6)])), "an excluded column");
        assert!(!rows(&fingerprint(&[(7, 70)], &[(1, 5), (2, 6), (4, 6)])), "RENAME, ADD, DROP");
    }

    #[test]
    fn a_renamed_label_and_a_new_field_count_and_a_new_label_does_not() {
        let typed = |attnum, labels: &[(u32, u32)], shape: &str| CatalogFingerprint {
            types: BTreeMap::from([(
                attnum,
                TypeFingerprint { labels: labels.iter().copied().collect(), shape: shape.to_owned() },
            )]),
            ..fingerprint(&[(7, 70)], &[(1, 5), (3, 5)])
        };
        let before = typed(1, &[(1, 5), (2, 5)], "x");
        assert_eq!(of(&before, &typed(1, &[(1, 5), (2, 5), (3, 6)], "x"), false), CatalogDiff::Columns);
        assert!(matches!(of(&before, &typed(1, &[(1, 5), (2, 6)], "x"), false), CatalogDiff::Rows(_)));
        assert!(matches!(of(&before, &typed(1, &[(1, 5), (2, 5)], "y"), false), CatalogDiff::Rows(_)));
        let excluded = typed(3, &[(1, 5)], "x");
        assert_eq!(of(&excluded, &typed(3, &[(1, 6)], "y"), false), CatalogDiff::Columns);
    }

    #[test]
    fn a_column_below_the_highest_number_ever_was_generated() {
        let with = |columns: &[(i16, u32)], attributes| CatalogFingerprint {
            attributes,
            ..fingerprint(&[(7, 70)], columns)
        };
        let before = with(&[(1, 5)], Some(2));
        assert_eq!(of(&before, &with(&[(1, 5), (3, 6)], Some(3)), false), CatalogDiff::Columns);
        assert!(matches!(of(&before, &with(&[(1, 5), (2, 6)], Some(2)), false), CatalogDiff::Rows(_)));
        let unknown = with(&[(1, 5)], None);
        assert_eq!(of(&unknown, &with(&[(1, 5), (2, 6)], Some(2)), false), CatalogDiff::Columns);
    }

    #[test]
    fn a_link_that_was_made_again_counts_at_any_depth() {
        let linked = |links: &[(u32, u32)]| CatalogFingerprint {
            links: links.iter().copied().collect(),
            ..fingerprint(&[(7, 70), (8, 80)], &[(1, 5)])
        };
        let before = linked(&[(6, 4), (7, 5), (8, 5)]);
        assert_eq!(of(&before, &linked(&[(6, 4), (7, 5), (8, 5)]), true), CatalogDiff::Columns);
        assert!(matches!(of(&before, &linked(&[(6, 9), (7, 5), (8, 5)]), true), CatalogDiff::Rows(_)));
        assert_eq!(of(&linked(&[]), &before, true), CatalogDiff::Columns, "a record of before has none");
    }

    #[test]
    fn rows_of_which_only_inserts_count_stay_as_they_were() {
        let schema = TableSchema::new(TableId::new("public", "t"), Vec::new());
        let schema = TableSchema { kind: TableKind::AppendOnly, partitioned: true, ..schema };
        let spec = TableSpec { operations: Operations::APPEND_ONLY, ..TableSpec::new(schema.id.clone()) };
        let mut record = TableRecord::new(spec, schema, TablePhase::Streaming);
        record.fingerprint = Some(fingerprint(&[(7, 70), (8, 80)], &[(1, 5)]));
        let gone = fingerprint(&[(7, 70)], &[(1, 5)]);
        assert_eq!(compare(&record, &gone), CatalogDiff::Columns);
        record.schema.kind = TableKind::ChangeLog;
        assert!(matches!(compare(&record, &gone), CatalogDiff::Rows(_)));
    }

    #[test]
    fn columns_without_fingerprints_are_new_where_users_made_their_types() {
        let typed = |columns: &[(i16, u32)], types: &[i16]| CatalogFingerprint {
            types: types.iter().map(|attnum| (*attnum, TypeFingerprint::default())).collect(),
            ..fingerprint(&[(7, 70)], columns)
        };
        let streamed = Column { attnum: 4, type_oid: 17_000, ..Column::new("d", SourceType::Text) };
        let schema = TableSchema::new(TableId::new("public", "t"), vec![streamed]);
        let spec = TableSpec::new(schema.id.clone());
        let mut record = TableRecord::new(spec, schema, TablePhase::Streaming);
        let now = typed(&[(1, 5), (2, 5), (3, 6), (4, 6), (5, 6)], &[2, 4, 5]);
        assert_eq!(new_of_users_types(&record, &now), [], "nothing is on record");
        record.fingerprint = Some(typed(&[(1, 5), (2, 5)], &[]));
        let new = [(4, Some(17_000)), (5, None)];
        assert_eq!(new_of_users_types(&record, &now), new, "a record of before types were noted has 2");
        record.schema.kind = TableKind::AppendOnly;
        assert_eq!(new_of_users_types(&record, &now), []);
    }

    #[test]
    fn partitions_that_come_are_copied_and_those_that_go_need_a_copy_of_all() {
        let before = fingerprint(&[(7, 70), (8, 80)], &[(1, 5)]);
        let of = |files: &[(u32, u32)]| of(&before, &fingerprint(files, &[(1, 5)]), true);
        assert_eq!(of(&[(7, 70), (8, 80), (9, 90)]), CatalogDiff::Attached(BTreeSet::from([9])));
        let with_a_column = fingerprint(&[(7, 70), (8, 80), (9, 90)], &[(1, 5), (2, 6)]);
        assert!(matches!(diff(&before, &with_a_column, &[1, 2], true), CatalogDiff::Rows(_)));
        assert!(matches!(of(&[(7, 70)]), CatalogDiff::Rows(why) if why.contains("detached")));
        assert!(matches!(of(&[(7, 70), (9, 90)]), CatalogDiff::Rows(_)));
        assert!(matches!(of(&[(7, 70), (8, 81)]), CatalogDiff::Rows(why) if why.contains("truncated")));
        // The stream had rows of a partition that the catalog did not have.
        let streamed = fingerprint(&[(7, 70), (9, 0)], &[(1, 5)]);
        let since = |files: &[(u32, u32)]| diff(&streamed, &fingerprint(files, &[(1, 5)]), &[1, 2], true);
        assert_eq!(since(&[(7, 70), (9, 90)]), CatalogDiff::Attached(BTreeSet::from([9])));
        assert!(matches!(since(&[(7, 70)]), CatalogDiff::Rows(why) if why.contains("dropped")));
        assert_eq!(of(&[(7, 70), (8, 80)]), CatalogDiff::Columns);
    }
}
