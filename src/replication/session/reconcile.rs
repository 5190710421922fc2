//! Brings a table's record and its target up to the source's catalog.
//!
//! Copied rows have as version a position of the log that lies before every change that the copy may lack:
//! transactions that committed before it and are not visible yet still hold their lock on the table, and are
//! waited for. So a change from up to there is in the copy and is not applied any more, any later one beats
//! the copy, and what is older still when the copy is done was not there any more.

use std::collections::BTreeSet;

use super::{context::ProvisionContext, resync};
use crate::{
    fault::Reason,
    model::{IdentityKind, Lsn, SnapshotMode, TableKind, TableSchema},
    postgres::catalog::{self, CatalogFingerprint},
    replication::{
        Destination, Error,
        monitor::catalog_diff::{CatalogDiff, FILLED_BEFORE, find},
        snapshot::{next_number, parts},
        stream::stream_fence,
        table::{
            describe::{self, CAME_AND_WENT, CHANGED_COLUMNS},
            named_columns::{EXCLUDED_RENAMED, NamedColumns, Renewal},
            record::{TablePhase, TableRecord},
            schema, target_names,
        },
    },
};

impl<D: Destination> ProvisionContext<'_, D> {
    /// Brings a table's record, and its target, up to the catalog, whose fingerprint is `now`. Gives whether
    /// the record has changed.
    ///
    /// # Errors
    /// The table's own fault where it can't be followed, and what the servers answer.
    pub(super) async fn reconcile_table(
        &self,
        record: &mut TableRecord,
        now: &CatalogFingerprint,
    ) -> Result<bool, Error> {
        if record.fingerprint.as_ref() == Some(now)
            && record.resync_reason.is_none()
            && record.named.is_some()
        {
            return Ok(false);
        }
        let described = describe::describe(self.session, record).await?;
        let read_lsn = catalog::read_lsn(self.session).await?;
        let fresh = &described.schema;
        if fresh.key.is_empty() && !record.schema.key.is_empty() && fresh.identity != IdentityKind::Full {
            // The source monitor reports it, and takes it out of the publication.
            return Ok(false);
        }
        describe::require_old_rows(&record.schema, fresh)?;
        let mut diff = find(self.session, record, now).await?;
        if schema::came_and_went(record, &described) {
            diff = CatalogDiff::Rows(CAME_AND_WENT.to_owned());
        }
        let named = match &record.named {
            Some(named) => named.clone(),
            None => NamedColumns::adopt(record, &described.columns)?,
        };
        record.named = Some(match named.renew(&described.columns, read_lsn) {
            Renewal::Same => named,
            Renewal::Renewed(renewed) => renewed,
            Renewal::Ambiguous => {
                diff = CatalogDiff::Rows(EXCLUDED_RENAMED.to_owned());
                named.resolved_again(&record.spec, &described.columns)
            }
        });
        record.fingerprint = Some(now.clone());
        record.resync_reason = None;
        match diff {
            CatalogDiff::Rows(why) => self.recopy(record, fresh, why).await?,
            CatalogDiff::Columns => self.apply_columns(record, fresh).await?,
            CatalogDiff::Attached(attached) => {
                self.apply_columns(record, fresh).await?;
                self.copy_attached(record, fresh, &attached).await?;
            }
        }
        record.read_until(catalog::read_lsn(self.session).await?);
        Ok(true)
    }

    /// Applies columns that came, went or have another name.
    async fn apply_columns(&self, record: &mut TableRecord, fresh: &TableSchema) -> Result<(), Error> {
        match schema::evolve(&record.schema, fresh) {
            Ok((merged, added)) => {
                let problem = |error: Error| describe::refused(&record.schema, CHANGED_COLUMNS, error);
                let change = || async { Ok(self.destination.add_columns(&merged, &added).await?) };
                let filled = self.start(&record.schema.id, change).await.map_err(problem)?;
                if !filled.is_empty() {
                    return self.recopy(record, fresh, FILLED_BEFORE.to_owned()).await;
                }
                record.schema = merged;
                Ok(())
            }
            Err(why) => self.recopy(record, fresh, why).await,
        }
    }

    /// Has a table copied again over the rows that its target has.
    async fn recopy(&self, record: &mut TableRecord, fresh: &TableSchema, why: String) -> Result<(), Error> {
        if self.config.snapshot.mode == SnapshotMode::Never {
            let detail = format!("{why}, and snapshot.mode is Never, so it is not copied again");
            return Err(describe::changed(&record.schema, &detail));
        }
        if record.schema.kind == TableKind::AppendOnly {
            let detail = format!(
                "{why}, and an append-only table is not re-copied automatically: rows that the source no longer has would be lost"
            );
            return Err(describe::changed(&record.schema, &detail));
        }
        let schema = target_names::rebuild(&record.schema, fresh);
        let problem = |error: Error| describe::refused(&record.schema, &why, error);
        let made = self.start(&schema.id, || async { Ok(self.destination.ensure_table(&schema).await?) });
        made.await.map_err(problem)?;
        let position = catalog::flushed_position(self.session).await?;
        let fence = stream_fence(&self.config.mirror.fence(), &schema);
        let operations = record.spec.operations;
        let version = || resync::copy_version(self.destination, &schema, operations, position, &fence);
        let version = self.start(&schema.id, version).await?;
        tracing::warn!(table = %record.schema.id, why, "table is copied again");
        *record = TableRecord {
            fingerprint: record.fingerprint.take(),
            published: record.published.take(),
            named: record.named.take(),
            added_while_streaming: record.added_while_streaming || record.phase == TablePhase::Streaming,
            reason: Some(Reason::TableResync),
            message: format!("it is copied again: {why}"),
            copy_version: version,
            snapshot_lsn: version,
            ..TableRecord::new(record.spec.clone(), schema, TablePhase::Snapshotting)
        };
        Ok(())
    }

    /// Has what was attached to a table copied.
    async fn copy_attached(
        &self,
        record: &mut TableRecord,
        fresh: &TableSchema,
        attached: &BTreeSet<u32>,
    ) -> Result<(), Error> {
        let why = "a partition was attached".to_owned();
        match (self.config.snapshot.mode, record.phase) {
            (SnapshotMode::Never, _) | (_, TablePhase::Failed) => return Ok(()),
            // Its copy begins again in any case.
            (_, TablePhase::Snapshotting) if !record.schema.kind.is_keyed() => return Ok(()),
            // Not one row is copied yet, but the stream may have deleted rows that came back with the
            // partition.
            (_, TablePhase::Snapshotting) if record.plan == 0 => {
                return self.recopy(record, fresh, why).await;
            }
            _ => {}
        }
        // Changes whose old row came by another identity look like others.
        let named_by_identity =
            !record.schema.kind.is_keyed() || record.schema.identity == IdentityKind::Index;
        if named_by_identity && catalog::identity_came_later(self.session, attached).await? {
            let why = "a new partition had another replica identity at first".to_owned();
            return self.recopy(record, fresh, why).await;
        }
        if catalog::emptied_since_joined(self.session, attached).await? {
            return self.recopy(record, fresh, "a new partition was truncated or rewritten".to_owned()).await;
        }
        let position = catalog::flushed_position(self.session).await?;
        let version = Lsn(position.0.saturating_sub(1));
        let chunks = parts(self.session, &record.schema, attached, version).await?;
        if chunks.is_empty() {
            return Ok(());
        }
        if !record.schema.kind.is_keyed() {
            // Its rows can't be copied beside what the stream brings of it, which has all rows of one that
            // was made as a partition.
            return match catalog::came_with_rows(self.session, &record.schema, attached).await? {
                true => self.recopy(record, fresh, why).await,
                false => Ok(()),
            };
        }
        tracing::info!(table = %record.schema.id, partitions = attached.len(), "copying what was attached");
        if record.phase == TablePhase::Streaming {
            (record.phase, record.plan) = (TablePhase::Snapshotting, next_number(record.plan));
            record.added_while_streaming = true;
            record.chunks.clear();
        }
        record.chunks.extend(chunks);
        record.set_reason(Reason::TableResync, format!("a part of it is copied: {why}"));
        Ok(())
    }
}
