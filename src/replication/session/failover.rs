//! Follows the source when a standby of it was promoted.
//!
//! The promoted standby has the old timeline's log up to some position, the *switchpoint*, and continues from
//! there with other transactions, at positions and with transaction numbers that the old primary may have
//! used as well. So all that a Mirror knows has to show on which side of the switchpoint it was read:
//! - Streamed rows show it by their version. Where a target has one that the standby never had, manual action
//!   is required.
//! - What queries have brought, copied rows and columns, and a TRUNCATE, which leaves no row, show it by
//!   [`TableRecord::read_lsn`]. A table of which anything was read behind the switchpoint is copied again, as
//!   if it was added just now: its positions, fingerprint and transaction numbers are those of the new copy.
//! - Values that were fetched for a streamed row come again with it: see
//!   [`Checkpoint`](crate::replication::stream::Checkpoint).

use futures::{StreamExt, stream};

use super::{
    context::ProvisionContext, position_check::QUERIES_IN_PARALLEL, resync::TableResyncs, slot::check_slot,
};
use crate::{
    fault::{Reason, Remedy},
    model::{Lsn, SnapshotMode, TableId, TableKind, Version},
    postgres::{catalog, slot},
    replication::{
        Destination, Error, Policy, policy,
        stream::stream_fence,
        table::{
            record::{TablePhase, TableRecord},
            store::MirrorState,
            target_names,
        },
    },
};

/// A source whose recorded timeline was left at `at`.
pub(super) struct Failover<'a, D: Destination> {
    pub(super) context: &'a ProvisionContext<'a, D>,
    pub(super) found: u32,
    pub(super) at: Lsn,
}

impl<D: Destination> Failover<'_, D> {
    /// Takes out the tables that have to be copied again. Until the new timeline is on record all of it can
    /// be repeated.
    ///
    /// # Errors
    /// [`Error::SlotNotKept`]; [`Error::TimelineChanged`] where a target has rows that the source lacks; what
    /// the servers answer.
    pub(super) async fn follow(
        &self,
        state: &mut MirrorState,
        resyncs: &mut TableResyncs,
    ) -> Result<(), Error> {
        self.check_slot(state).await?;
        let mut asked = Vec::new();
        for spec in &self.context.config.tables {
            // A changed entry is reported later.
            let record = state.tables.get_mut(&spec.id);
            let Some(record) =
                record.filter(|record| record.phase != TablePhase::Failed && spec.continues(&record.spec))
            else {
                continue;
            };
            if let Some(why) = resync_reason(record, self.at) {
                if self.may_be_copied(record, &why).await? {
                    record.resync_reason = Some(why);
                    resyncs.records.extend(state.tables.remove_entry(&spec.id));
                    state.chunks_done.remove(&spec.id);
                }
                continue;
            }
            asked.push(spec.id.clone());
        }
        let (mut ahead, mut newest) = (Vec::new(), Lsn::ZERO);
        for (table, found) in self.newest_versions(state, &asked).await {
            match (found, state.tables.get_mut(&table)) {
                (Ok(version), _) if version >= Version::copied(self.at) => {
                    newest = newest.max(version.lsn());
                    ahead.push(table);
                }
                (Err(error), Some(record)) => self.context.fail_and_save(record, error).await?,
                _ => {}
            }
        }
        if ahead.is_empty() { Ok(()) } else { Err(self.ahead(state, &ahead, newest)) }
    }

    /// The newest versions that the targets of these tables have, some asked for at a time.
    async fn newest_versions(
        &self,
        state: &MirrorState,
        tables: &[TableId],
    ) -> Vec<(TableId, Result<Version, Error>)> {
        let schemas = tables.iter().filter_map(|table| state.tables.get(table)).map(|record| &record.schema);
        let asked = schemas.map(|schema| async move {
            let fence = stream_fence(&self.context.config.mirror.fence(), schema);
            let newest = || async { Ok(self.context.destination.newest_version(schema, &fence).await?) };
            (schema.id.clone(), self.context.start(&schema.id, newest).await)
        });
        stream::iter(asked.collect::<Vec<_>>()).buffered(QUERIES_IN_PARALLEL).collect().await
    }

    /// The slot of before is where the standby had it: before the switchpoint.
    async fn check_slot(&self, state: &MirrorState) -> Result<(), Error> {
        let slot = self.context.config.mirror.slot_name();
        let found = slot::read(self.context.session, &slot).await?;
        let problem = match check_slot(self.context.config, state.source.as_ref(), found) {
            Err(Error::SlotMissing { .. }) => "is not there",
            found => match found?.and_then(|slot| slot.confirmed_flush_lsn) {
                Some(confirmed) if confirmed > self.at => "was made there later",
                _ => return Ok(()),
            },
        };
        Err(Error::SlotNotKept { slot, at: self.at, problem })
    }

    /// Whether a table can be copied again automatically; if not, it fails alone.
    async fn may_be_copied(&self, record: &mut TableRecord, why: &str) -> Result<bool, Error> {
        let table = record.schema.id.clone();
        let blocker = if self.context.config.snapshot.mode == SnapshotMode::Never {
            "snapshot.mode is Never".to_owned()
        } else if record.schema.kind == TableKind::AppendOnly {
            "an append-only table is not re-copied automatically: rows that the source no longer has would be lost".to_owned()
        } else {
            match catalog::describe(self.context.session, &record.spec).await.map_err(Error::from) {
                Ok(facts) => {
                    target_names::remove_unknown_columns(&mut record.schema, &facts.schema);
                    return Ok(true);
                }
                Err(error) if matches!(policy(&error).0, Policy::Stall | Policy::FailTable) => {
                    error.to_string()
                }
                Err(error) => return Err(error),
            }
        };
        let message = format!("{why}, so its target may differ from the source; and {blocker}");
        let error = Error::table(&table, Reason::SourceTimelineChanged, message);
        self.context.fail_and_save(record, error).await?;
        Ok(false)
    }

    fn ahead(&self, state: &MirrorState, tables: &[TableId], newest: Lsn) -> Error {
        let names: Vec<String> = tables.iter().map(TableId::to_string).collect();
        let problem = format!(
            "a standby was promoted at {} of the old timeline, and the destination has transactions up to {newest} that it never had, in {}. \
             Had synchronized_standby_slots named the standby's slot at the old primary, they had not been sent",
            self.at,
            names.join(", ")
        );
        let expected = state.source.as_ref().map_or(0, |source| source.timeline);
        let remedies = vec![Remedy::resync(tables)];
        Error::TimelineChanged { expected, found: self.found, problem, remedies }
    }
}

/// Why something of a table, but for streamed rows, may come from transactions that were committed at `at` or
/// later.
fn resync_reason(record: &TableRecord, at: Lsn) -> Option<String> {
    if record.phase == TablePhase::Snapshotting {
        return Some("a standby was promoted while it was copied".to_owned());
    }
    let later = record.read_lsn > at;
    later.then(|| {
        format!(
            "a standby was promoted at {at}, and later transactions of the old primary had been read of it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{TableSchema, TableSpec};

    #[test]
    fn what_was_read_behind_the_switchpoint_is_copied_again() {
        let spec = TableSpec::new(TableId::new("public", "t"));
        let schema = TableSchema::new(spec.id.clone(), Vec::new());
        let mut record = TableRecord::new(spec, schema, TablePhase::Streaming);
        record.read_until(Lsn(50));
        record.read_until(Lsn(40));
        assert_eq!(
            resync_reason(&record, Lsn(50)),
            None,
            "the switchpoint is the end of what the standby had"
        );
        assert!(resync_reason(&record, Lsn(49)).is_some_and(|why| why.contains("promoted at 0/31")));
        record.phase = TablePhase::Snapshotting;
        assert!(resync_reason(&record, Lsn(50)).is_some_and(|why| why.contains("while it was copied")));
    }
}
