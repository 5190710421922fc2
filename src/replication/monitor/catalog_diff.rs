//! Brings a table's record up to what the source's catalog says and its rows in the stream don't.
//!
//! A rewrite that computes values, a partition that comes with rows or goes with them, TRUNCATE of one partition, a column that
//! was dropped and added again: of none of them the stream has a row. They are seen by the marks of [`CatalogFingerprint`], and the table, or what
//! joined it, is copied: again, while its changes stream, into the target that it has.
//!
//! Copied rows have as version a position of the log that lies before every change that the copy may lack: transactions that committed
//! before it and can't be seen yet still hold their lock on the table, and are waited for. So a change from up to there is in the copy
//! and is not applied any more, any later one beats the copy, and what is older still when the copy is done was not there any more.

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use crate::{
    fault::Reason,
    model::{IdentityKind, Lsn, ReplicatorConfig, SnapshotMode, TableId, TableKind, TableSchema},
    postgres::{
        catalog::{self, CatalogFingerprint},
        session::Session,
    },
    replication::{
        Destination, Error, Policy, policy,
        retry::{RetryObserver, start_table},
        session::resync,
        snapshot::{next_number, parts},
        stream::stream_fence,
        table::{
            named_columns::{EXCLUDED_RENAMED, NamedColumns, Renewal},
            schema::{self, CAME_AND_WENT, CHANGED_COLUMNS},
            store::{TablePhase, TableRecord},
        },
    },
};

/// Why a table is copied again whose new column was at its target before.
pub(in crate::replication) const FILLED_BEFORE: &str =
    "its target had the new column already, whose old rows may show something else there";

/// What is to be done about a table.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Drift {
    /// Nothing but its columns' names and numbers may have changed.
    Columns,
    /// Relations with these oids joined it, perhaps with rows.
    Parts(BTreeSet<u32>),
    /// Its rows may be others, for this reason.
    Rows(String),
}

/// Compares a table's marks. `mirrored` are the attribute numbers of its mirrored columns.
fn drift(
    before: &CatalogFingerprint,
    now: &CatalogFingerprint,
    mirrored: &[i16],
    partitioned: bool,
) -> Drift {
    if before.files.keys().any(|oid| !now.files.contains_key(oid)) {
        return Drift::Rows("a partition was detached or dropped".to_owned());
    }
    if now.links.iter().any(|(oid, link)| before.links.get(oid).is_some_and(|former| former != link)) {
        return Drift::Rows("a partition was detached and attached again".to_owned());
    }
    let rewritten = before.in_catalog().any(|(oid, file)| now.files.get(&oid) != Some(&file));
    if rewritten && partitioned {
        return Drift::Rows("a partition was truncated or rewritten".to_owned());
    }
    // VACUUM FULL and CLUSTER rewrite without touching a column; TRUNCATE is in the stream.
    let altered = |(attnum, writer): (&i16, &u32)| match before.columns.get(attnum) {
        Some(former) => former != writer && mirrored.contains(attnum),
        None => true,
    };
    if rewritten && now.columns.iter().any(altered) {
        return Drift::Rows("ALTER TABLE rewrote it, which may compute new values".to_owned());
    }
    if let Some(why) = old_values(before, now).or_else(|| other_text(before, now, mirrored)) {
        return Drift::Rows(why.to_owned());
    }
    let known: BTreeSet<u32> = before.in_catalog().map(|(oid, _)| oid).collect();
    let joined: BTreeSet<u32> = now.files.keys().filter(|oid| !known.contains(oid)).copied().collect();
    let added = now.columns.keys().any(|attnum| !before.columns.contains_key(attnum));
    match joined.is_empty() {
        true => Drift::Columns,
        // Partitions may differ in what their old rows show for the column, and the target can show one value.
        false if added => Drift::Rows("a partition was attached and a column was added".to_owned()),
        false => Drift::Parts(joined),
    }
}

/// Why a column that is new to the target has values in the rows that are there. One that was added has a number above all others.
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
const TYPE_ALTERED: &str = "the type of a new column was altered before the column was seen";

/// What is to be done about a table, by its marks; and where columns are new, of whose types there are no
/// earlier marks, by the catalog.
async fn find(session: &Session, record: &TableRecord, now: &CatalogFingerprint) -> Result<Drift, Error> {
    let drift = found(record, now);
    let new = new_of_users_types(record, now);
    if new.is_empty() || matches!(drift, Drift::Rows(_)) {
        return Ok(drift);
    }
    match catalog::altered_since_used(session, record.schema.oid, &new).await? {
        true => Ok(Drift::Rows(TYPE_ALTERED.to_owned())),
        false => Ok(drift),
    }
}

/// The columns without marks of before whose types users have made, each with the type that the stream knows.
fn new_of_users_types(record: &TableRecord, now: &CatalogFingerprint) -> Vec<(i16, Option<u32>)> {
    // Rows of which only the inserts count stay as they were inserted.
    let Some(before) = record.layout.as_ref().filter(|_| record.schema.kind != TableKind::AppendOnly) else {
        return Vec::new();
    };
    let known = |attnum: i16| record.schema.columns.iter().find(|column| column.attnum == attnum);
    let new = now.types.keys().filter(|attnum| !before.columns.contains_key(attnum));
    new.map(|attnum| (*attnum, known(*attnum).map(|column| column.type_oid))).collect()
}

fn found(record: &TableRecord, now: &CatalogFingerprint) -> Drift {
    let mirrored: Vec<i16> = record.schema.columns.iter().map(|column| column.attnum).collect();
    match (&record.copy_anew, &record.layout) {
        // Rows of which only the inserts count stay as they were inserted, whatever becomes of them.
        (None, _) if record.schema.kind == TableKind::AppendOnly => Drift::Columns,
        (Some(why), _) => Drift::Rows(why.clone()),
        (None, Some(before)) => drift(before, now, &mirrored, record.schema.partitioned),
        (None, None) => Drift::Columns,
    }
}

/// What is left to do about marks that differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) enum Left {
    /// Nothing: the table's record has its columns as the catalog has them.
    Nothing,
    /// Columns were added, which the stream brings with the table's next row.
    AddedColumns,
    /// The table has to be taken up again.
    Table,
}

/// Tells what is left to do about marks that differ.
///
/// # Errors
/// The table's own fault where it can't be mirrored as asked any more, and what the source answers.
pub(in crate::replication) async fn left(
    session: &Session,
    record: &TableRecord,
    now: &CatalogFingerprint,
) -> Result<Left, Error> {
    if find(session, record, now).await? != Drift::Columns {
        return Ok(Left::Table);
    }
    let fresh = match schema::describe(session, record).await {
        Err(error) if policy(&error).0 == Policy::FailTable => return Ok(Left::Table),
        other => other?,
    };
    let renewal = record.named.as_ref().map(|named| named.renew(&fresh.columns, Lsn::ZERO));
    if renewal != Some(Renewal::Same) {
        return Ok(Left::Table);
    }
    Ok(match schema::evolve(&record.schema, &fresh.schema) {
        Ok((merged, _)) if merged == record.schema => Left::Nothing,
        Ok((_, added)) if !added.is_empty() && !schema::came_and_went(record, &fresh) => Left::AddedColumns,
        _ => Left::Table,
    })
}

/// What is needed to bring tables up.
pub(in crate::replication) struct Surroundings<'a, D: Destination> {
    pub(in crate::replication) config: &'a ReplicatorConfig,
    pub(in crate::replication) session: &'a Session,
    pub(in crate::replication) destination: &'a D,
    pub(in crate::replication) stop: &'a CancellationToken,
    pub(in crate::replication) observer: &'a RetryObserver,
}

impl<D: Destination> Surroundings<'_, D> {
    /// Does something to a table's target, as [`start_table`].
    pub(in crate::replication) async fn start<T, F, Fut>(
        &self,
        table: &TableId,
        attempt: F,
    ) -> Result<T, Error>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        start_table(self.stop, self.observer, table, attempt).await
    }

    /// Brings a table's record, and its target, up to the catalog, whose marks are `now`. Says whether the record has changed.
    ///
    /// # Errors
    /// The table's own fault where it can't be followed, and what the servers answer.
    pub(in crate::replication) async fn bring_up(
        &self,
        record: &mut TableRecord,
        now: &CatalogFingerprint,
    ) -> Result<bool, Error> {
        if record.layout.as_ref() == Some(now) && record.copy_anew.is_none() && record.named.is_some() {
            return Ok(false);
        }
        let described = schema::describe(self.session, record).await?;
        let read_lsn = catalog::read_lsn(self.session).await?;
        let fresh = &described.schema;
        if fresh.key.is_empty() && !record.schema.key.is_empty() && fresh.identity != IdentityKind::Full {
            // The watch says so, and takes it out of the publication.
            return Ok(false);
        }
        schema::require_old_rows(&record.schema, fresh)?;
        let mut drift = find(self.session, record, now).await?;
        if schema::came_and_went(record, &described) {
            drift = Drift::Rows(CAME_AND_WENT.to_owned());
        }
        let named = match &record.named {
            Some(named) => named.clone(),
            None => NamedColumns::adopt(record, &described.columns)?,
        };
        record.named = Some(match named.renew(&described.columns, read_lsn) {
            Renewal::Same => named,
            Renewal::Renewed(renewed) => renewed,
            Renewal::Ambiguous => {
                drift = Drift::Rows(EXCLUDED_RENAMED.to_owned());
                named.resolved_again(&record.spec, &described.columns)
            }
        });
        record.layout = Some(now.clone());
        record.copy_anew = None;
        match drift {
            Drift::Rows(why) => self.copy_anew(record, fresh, why).await?,
            Drift::Columns => self.columns(record, fresh).await?,
            Drift::Parts(joined) => {
                self.columns(record, fresh).await?;
                self.copy_parts(record, fresh, &joined).await?;
            }
        }
        record.seen_until(catalog::read_lsn(self.session).await?);
        Ok(true)
    }

    /// Takes up columns that came, went or have another name.
    async fn columns(&self, record: &mut TableRecord, fresh: &TableSchema) -> Result<(), Error> {
        match schema::evolve(&record.schema, fresh) {
            Ok((merged, added)) => {
                let problem = |error: Error| schema::refused(&record.schema, CHANGED_COLUMNS, error);
                let change = || async { Ok(self.destination.add_columns(&merged, &added).await?) };
                let filled = self.start(&record.schema.id, change).await.map_err(problem)?;
                if !filled.is_empty() {
                    return self.copy_anew(record, fresh, FILLED_BEFORE.to_owned()).await;
                }
                record.schema = merged;
                Ok(())
            }
            Err(why) => self.copy_anew(record, fresh, why).await,
        }
    }

    /// Has a table copied anew over the rows that its target has.
    async fn copy_anew(
        &self,
        record: &mut TableRecord,
        fresh: &TableSchema,
        why: String,
    ) -> Result<(), Error> {
        if self.config.snapshot.mode == SnapshotMode::Never {
            let detail = format!("{why}, and snapshot.mode is Never, so it is not copied anew");
            return Err(schema::changed(&record.schema, &detail));
        }
        if record.schema.kind == TableKind::AppendOnly {
            let detail = format!(
                "{why}, and an append-only table is not re-copied automatically: rows that the source no longer has would be lost"
            );
            return Err(schema::changed(&record.schema, &detail));
        }
        let schema = schema::anew(&record.schema, fresh);
        let problem = |error: Error| schema::refused(&record.schema, &why, error);
        let made = self.start(&schema.id, || async { Ok(self.destination.ensure_table(&schema).await?) });
        made.await.map_err(problem)?;
        let position = catalog::flushed_position(self.session).await?;
        let fence = stream_fence(&self.config.mirror.fence(), &schema);
        let operations = record.spec.operations;
        let version = || resync::copy_version(self.destination, &schema, operations, position, &fence);
        let version = self.start(&schema.id, version).await?;
        tracing::warn!(table = %record.schema.id, why, "table is copied anew");
        *record = TableRecord {
            layout: record.layout.take(),
            published: record.published.take(),
            named: record.named.take(),
            joins: record.joins || record.phase == TablePhase::Streaming,
            reason: Some(Reason::TableResync),
            message: format!("it is copied anew: {why}"),
            copy_version: version,
            snapshot_lsn: version,
            ..TableRecord::new(record.spec.clone(), schema, TablePhase::Snapshotting)
        };
        Ok(())
    }

    /// Has what joined a table copied.
    async fn copy_parts(
        &self,
        record: &mut TableRecord,
        fresh: &TableSchema,
        joined: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        let why = "a partition was attached".to_owned();
        match (self.config.snapshot.mode, record.phase) {
            (SnapshotMode::Never, _) | (_, TablePhase::Failed) => return Ok(()),
            // Its copy begins anew in any case.
            (_, TablePhase::Snapshotting) if !record.schema.kind.is_keyed() => return Ok(()),
            // Not one row is copied yet, but the stream may have deleted rows that came back with the partition.
            (_, TablePhase::Snapshotting) if record.plan == 0 => {
                return self.copy_anew(record, fresh, why).await;
            }
            _ => {}
        }
        // Changes that an old row of another identity told of look like others.
        let told_by_identity =
            !record.schema.kind.is_keyed() || record.schema.identity == IdentityKind::Index;
        if told_by_identity && catalog::identity_came_later(self.session, joined).await? {
            let why = "a new partition had another replica identity at first".to_owned();
            return self.copy_anew(record, fresh, why).await;
        }
        if catalog::emptied_since_joined(self.session, joined).await? {
            return self
                .copy_anew(record, fresh, "a new partition was truncated or rewritten".to_owned())
                .await;
        }
        let position = catalog::flushed_position(self.session).await?;
        let version = Lsn(position.0.saturating_sub(1));
        let chunks = parts(self.session, &record.schema, joined, version).await?;
        if chunks.is_empty() {
            return Ok(());
        }
        if !record.schema.kind.is_keyed() {
            // Its rows can't be copied beside what the stream brings of it; all rows of one that was made as a partition it brings.
            return match catalog::came_with_rows(self.session, &record.schema, joined).await? {
                true => self.copy_anew(record, fresh, why).await,
                false => Ok(()),
            };
        }
        tracing::info!(table = %record.schema.id, partitions = joined.len(), "copying what was attached");
        if record.phase == TablePhase::Streaming {
            (record.phase, record.plan) = (TablePhase::Snapshotting, next_number(record.plan));
            record.joins = true;
            record.chunks.clear();
        }
        record.chunks.extend(chunks);
        record.set_reason(Reason::TableResync, format!("a part of it is copied: {why}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        model::{Column, Operations, SourceType, TableId, TableSpec},
        postgres::catalog::TypeFingerprint,
    };

    fn layout(files: &[(u32, u32)], columns: &[(i16, u32)]) -> CatalogFingerprint {
        let (files, columns) = (files.iter().copied().collect(), columns.iter().copied().collect());
        CatalogFingerprint { files, columns, ..CatalogFingerprint::default() }
    }

    fn of(before: &CatalogFingerprint, now: &CatalogFingerprint, partitioned: bool) -> Drift {
        drift(before, now, &[1, 2], partitioned)
    }

    #[test]
    fn a_rewrite_counts_with_a_change_of_a_mirrored_column() {
        let before = layout(&[(7, 70)], &[(1, 5), (2, 5), (3, 5)]);
        let rows = |now: &CatalogFingerprint| matches!(of(&before, now, false), Drift::Rows(_));
        assert!(rows(&layout(&[(7, 71)], &[(1, 5), (2, 6), (3, 5)])), "TYPE … USING");
        assert!(rows(&layout(&[(7, 71)], &[(1, 5), (2, 5), (3, 5), (4, 6)])), "ADD … DEFAULT random()");
        assert!(!rows(&layout(&[(7, 71)], &[(1, 5), (2, 5), (3, 5)])), "VACUUM FULL");
        assert!(!rows(&layout(&[(7, 71)], &[(1, 5), (2, 5), (3, 6)])), "an excluded column");
        assert!(!rows(&layout(&[(7, 70)], &[(1, 5), (2, 6), (4, 6)])), "RENAME, ADD, DROP");
    }

    #[test]
    fn a_renamed_label_and_a_new_field_count_and_a_new_label_does_not() {
        let typed = |attnum, labels: &[(u32, u32)], shape: &str| CatalogFingerprint {
            types: BTreeMap::from([(
                attnum,
                TypeFingerprint { labels: labels.iter().copied().collect(), shape: shape.to_owned() },
            )]),
            ..layout(&[(7, 70)], &[(1, 5), (3, 5)])
        };
        let before = typed(1, &[(1, 5), (2, 5)], "x");
        assert_eq!(of(&before, &typed(1, &[(1, 5), (2, 5), (3, 6)], "x"), false), Drift::Columns);
        assert!(matches!(of(&before, &typed(1, &[(1, 5), (2, 6)], "x"), false), Drift::Rows(_)));
        assert!(matches!(of(&before, &typed(1, &[(1, 5), (2, 5)], "y"), false), Drift::Rows(_)));
        let excluded = typed(3, &[(1, 5)], "x");
        assert_eq!(of(&excluded, &typed(3, &[(1, 6)], "y"), false), Drift::Columns);
    }

    #[test]
    fn a_column_below_the_highest_number_ever_was_generated() {
        let with = |columns: &[(i16, u32)], attributes| CatalogFingerprint {
            attributes,
            ..layout(&[(7, 70)], columns)
        };
        let before = with(&[(1, 5)], Some(2));
        assert_eq!(of(&before, &with(&[(1, 5), (3, 6)], Some(3)), false), Drift::Columns);
        assert!(matches!(of(&before, &with(&[(1, 5), (2, 6)], Some(2)), false), Drift::Rows(_)));
        let unknown = with(&[(1, 5)], None);
        assert_eq!(of(&unknown, &with(&[(1, 5), (2, 6)], Some(2)), false), Drift::Columns);
    }

    #[test]
    fn a_link_that_was_made_again_counts_at_any_depth() {
        let linked = |links: &[(u32, u32)]| CatalogFingerprint {
            links: links.iter().copied().collect(),
            ..layout(&[(7, 70), (8, 80)], &[(1, 5)])
        };
        let before = linked(&[(6, 4), (7, 5), (8, 5)]);
        assert_eq!(of(&before, &linked(&[(6, 4), (7, 5), (8, 5)]), true), Drift::Columns);
        assert!(matches!(of(&before, &linked(&[(6, 9), (7, 5), (8, 5)]), true), Drift::Rows(_)));
        assert_eq!(of(&linked(&[]), &before, true), Drift::Columns, "a record of before has none");
    }

    #[test]
    fn rows_of_which_only_inserts_count_stay_as_they_were() {
        let schema = TableSchema::new(TableId::new("public", "t"), Vec::new());
        let schema = TableSchema { kind: TableKind::AppendOnly, partitioned: true, ..schema };
        let spec = TableSpec { operations: Operations::APPEND_ONLY, ..TableSpec::new(schema.id.clone()) };
        let mut record = TableRecord::new(spec, schema, TablePhase::Streaming);
        record.layout = Some(layout(&[(7, 70), (8, 80)], &[(1, 5)]));
        let gone = layout(&[(7, 70)], &[(1, 5)]);
        assert_eq!(found(&record, &gone), Drift::Columns);
        record.schema.kind = TableKind::ChangeLog;
        assert!(matches!(found(&record, &gone), Drift::Rows(_)));
    }

    #[test]
    fn columns_without_marks_are_new_where_users_made_their_types() {
        let typed = |columns: &[(i16, u32)], types: &[i16]| CatalogFingerprint {
            types: types.iter().map(|attnum| (*attnum, TypeFingerprint::default())).collect(),
            ..layout(&[(7, 70)], columns)
        };
        let streamed = Column { attnum: 4, type_oid: 17_000, ..Column::new("d", SourceType::Text) };
        let schema = TableSchema::new(TableId::new("public", "t"), vec![streamed]);
        let spec = TableSpec::new(schema.id.clone());
        let mut record = TableRecord::new(spec, schema, TablePhase::Streaming);
        let now = typed(&[(1, 5), (2, 5), (3, 6), (4, 6), (5, 6)], &[2, 4, 5]);
        assert_eq!(new_of_users_types(&record, &now), [], "nothing is on record");
        record.layout = Some(typed(&[(1, 5), (2, 5)], &[]));
        let new = [(4, Some(17_000)), (5, None)];
        assert_eq!(new_of_users_types(&record, &now), new, "a record of before types were noted has 2");
        record.schema.kind = TableKind::AppendOnly;
        assert_eq!(new_of_users_types(&record, &now), []);
    }

    #[test]
    fn partitions_that_come_are_copied_and_those_that_go_need_a_copy_of_all() {
        let before = layout(&[(7, 70), (8, 80)], &[(1, 5)]);
        let of = |files: &[(u32, u32)]| of(&before, &layout(files, &[(1, 5)]), true);
        assert_eq!(of(&[(7, 70), (8, 80), (9, 90)]), Drift::Parts(BTreeSet::from([9])));
        let with_a_column = layout(&[(7, 70), (8, 80), (9, 90)], &[(1, 5), (2, 6)]);
        assert!(matches!(drift(&before, &with_a_column, &[1, 2], true), Drift::Rows(_)));
        assert!(matches!(of(&[(7, 70)]), Drift::Rows(why) if why.contains("detached")));
        assert!(matches!(of(&[(7, 70), (9, 90)]), Drift::Rows(_)));
        assert!(matches!(of(&[(7, 70), (8, 81)]), Drift::Rows(why) if why.contains("truncated")));
        // The stream had rows of a partition that the catalog did not have.
        let streamed = layout(&[(7, 70), (9, 0)], &[(1, 5)]);
        let since = |files: &[(u32, u32)]| drift(&streamed, &layout(files, &[(1, 5)]), &[1, 2], true);
        assert_eq!(since(&[(7, 70), (9, 90)]), Drift::Parts(BTreeSet::from([9])));
        assert!(matches!(since(&[(7, 70)]), Drift::Rows(why) if why.contains("dropped")));
        assert_eq!(of(&[(7, 70), (8, 80)]), Drift::Columns);
    }
}
