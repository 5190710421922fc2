//! Follows the source when a standby of it was promoted.
//!
//! The promoted standby has the old timeline's log up to some position, the *switch*, and goes on from there with other
//! transactions, at positions and with transaction numbers that the old primary may have used as well. So of all that a Mirror
//! knows, it has to be told on which side of the switch it comes from:
//! - Streamed rows say so by their version. Where a target has one that the standby never had, a human has to decide.
//! - What queries have brought, copied rows and columns, and a TRUNCATE, which leaves no row, say so by
//!   [`TableRecord::seen`]. A table of which anything was seen behind the switch is copied anew, as if it had joined just now: its
//!   positions, marks and transaction numbers are made anew with it.
//! - Values that were read for a streamed row come again with it: see [`super::checkpoint`].

use futures::{StreamExt, stream};

use super::{
    position::PositionRecord,
    provision::{ASKED_AT_ONCE, check_slot, publications, set_aside},
    resync::Apart,
};
use crate::{
    fault::{Reason, Remedy},
    model::{Lsn, PostgresEndpoint, ReplicatorConfig, SlotPlace, SnapshotMode, TableId, TableKind, Version},
    postgres::{
        self, catalog, slot,
        wire::{Connection, SystemIdentity, TimelineHistory},
    },
    replication::{
        Destination, Error, Policy,
        monitor::catalog_diff::Surroundings,
        policy,
        stream::{require_room, stream_fence},
        table::{
            schema,
            store::{MirrorState, SourceRecord, StateStore, TablePhase, TableRecord, VERSION_SCHEME},
        },
    },
};

/// The server that answers, and how it came to its timeline, as far as it can tell.
pub(in crate::replication) struct Origin {
    identity: SystemIdentity,
    place: SlotPlace,
    history: Result<TimelineHistory, postgres::Error>,
}

impl Origin {
    /// Asks for the history.
    ///
    /// # Errors
    /// What the server answers, but for a history that it doesn't have.
    pub(in crate::replication) async fn of(
        wire: &mut Connection,
        identity: SystemIdentity,
        source: &PostgresEndpoint,
    ) -> Result<Origin, Error> {
        let history = match wire.timeline_history(identity.timeline).await {
            Err(error @ postgres::Error::Server { .. }) if !error.is_transient() => Err(error),
            other => Ok(other?),
        };
        let place = SlotPlace {
            system_identifier: identity.system_identifier.clone(),
            host: source.host.clone(),
            port: source.port,
            database: source.database.clone(),
        };
        Ok(Origin { identity, place, history })
    }

    /// The server and database that answer.
    pub(in crate::replication) fn place(&self) -> &SlotPlace {
        &self.place
    }

    /// Refuses a log that is longer than versions have room for.
    ///
    /// # Errors
    /// [`Error::LogTooLong`]
    pub(in crate::replication) fn check_room(&self) -> Result<(), Error> {
        require_room(self.identity.wal_position)
    }

    /// The server's timeline.
    pub(in crate::replication) fn timeline(&self) -> u32 {
        self.identity.timeline
    }

    /// When the server's process began.
    pub(in crate::replication) fn server_started(&self) -> &str {
        &self.identity.started
    }

    /// The record of a slot that was made there at `start`.
    pub(in crate::replication) fn new_record(&self, start: Lsn, resync: Option<String>) -> SourceRecord {
        self.record(SourceRecord {
            system_identifier: self.identity.system_identifier.clone(),
            timeline: self.identity.timeline,
            branch: None,
            server_started: String::new(),
            start_lsn: start,
            finished: false,
            resync,
            version_scheme: VERSION_SCHEME,
            place: None,
        })
    }

    /// The record of a slot that everything up to `lsn` was confirmed to.
    pub(in crate::replication) fn position(&self, config: &ReplicatorConfig, lsn: Lsn) -> PositionRecord {
        PositionRecord {
            lsn,
            commit: None,
            system_identifier: self.identity.system_identifier.clone(),
            timeline: self.identity.timeline,
            slot: config.mirror.slot_name(),
            publications: publications(config),
            unconfirmed: None,
        }
    }

    /// The record with what it says of the server as it is now.
    pub(in crate::replication) fn record(&self, record: SourceRecord) -> SourceRecord {
        let known = record.branch.filter(|_| record.timeline == self.identity.timeline);
        SourceRecord {
            timeline: self.identity.timeline,
            branch: self.history.as_ref().map_or(known, TimelineHistory::branch),
            server_started: self.identity.started.clone(),
            place: Some(self.place.clone()),
            ..record
        }
    }

    /// Refuses another database cluster than the recorded one.
    ///
    /// # Errors
    /// [`Error::SourceReplaced`]
    pub(in crate::replication) fn check_system(&self, record: Option<&SourceRecord>) -> Result<(), Error> {
        let found = &self.identity.system_identifier;
        match record.filter(|record| record.system_identifier != *found) {
            Some(record) => Err(Error::SourceReplaced {
                expected: record.system_identifier.clone(),
                found: found.clone(),
            }),
            None => Ok(()),
        }
    }

    /// The switch, if the server has left the recorded timeline and may lack what the Mirror has from it.
    ///
    /// # Errors
    /// [`Error::TimelineChanged`] where the server's timeline does not come from the recorded one.
    pub(in crate::replication) fn switch(&self, record: &SourceRecord) -> Result<Option<Lsn>, Error> {
        let (expected, found) = (record.timeline, self.identity.timeline);
        let refused = |problem: String, instead: Option<&str>| {
            let choices = instead.map(|instead| vec![Remedy::act(instead)]).into_iter();
            let choices: Vec<_> = choices.chain([vec![Remedy::resync_all()]]).collect();
            let remedies = vec![Remedy::any_of(choices)];
            Err(Error::TimelineChanged { expected, found, problem, remedies })
        };
        // The process that was promoted is the one that all has come from.
        if record.server_started == self.identity.started && expected <= found {
            return Ok(None);
        }
        if found < expected {
            let problem = "a former primary, or a copy of one, answers at the source's address";
            return refused(
                problem.to_owned(),
                Some("point the source's ReplicationPeer to the present primary"),
            );
        }
        let other = || {
            let problem =
                "it did not come there as this mirror's source did, for another standby was promoted as well";
            refused(
                problem.to_owned(),
                Some("point the source's ReplicationPeer to the one that is the primary"),
            )
        };
        match &self.history {
            Ok(history) if expected == found => match (record.branch, history.branch()) {
                (Some(before), Some(now)) if before != now => other(),
                _ => Ok(None),
            },
            Ok(history) => match history.left_at(expected) {
                Some(at) => Ok(Some(at)),
                None => other(),
            },
            Err(_) if expected == found => Ok(None),
            Err(error) => refused(
                format!("a standby was promoted, and how it came there can't be read ({error})"),
                None,
            ),
        }
    }
}

/// A source whose recorded timeline was left at `at`.
pub(in crate::replication) struct Failover<'a, D: Destination> {
    pub(in crate::replication) around: &'a Surroundings<'a, D>,
    pub(in crate::replication) store: &'a StateStore<D>,
    pub(in crate::replication) found: u32,
    pub(in crate::replication) at: Lsn,
}

impl<D: Destination> Failover<'_, D> {
    /// Sets apart what has to be copied anew. Until the new timeline is on record all of it can be done again.
    ///
    /// # Errors
    /// [`Error::SlotNotKept`]; [`Error::TimelineChanged`] where a target has rows that the source lacks; what the servers answer.
    pub(in crate::replication) async fn follow(
        &self,
        state: &mut MirrorState,
        apart: &mut Apart,
    ) -> Result<(), Error> {
        self.check_slot(state).await?;
        let mut asked = Vec::new();
        for spec in &self.around.config.tables {
            // A changed entry is told later.
            let record = state.tables.get_mut(&spec.id);
            let Some(record) =
                record.filter(|record| record.phase != TablePhase::Failed && spec.continues(&record.spec))
            else {
                continue;
            };
            if let Some(why) = doubt(record, self.at) {
                if self.may_be_copied(record, &why).await? {
                    record.copy_anew = Some(why);
                    apart.records.extend(state.tables.remove_entry(&spec.id));
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
                (Err(error), Some(record)) => self.set_aside(record, error).await?,
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
            let fence = stream_fence(&self.around.config.mirror.fence(), schema);
            let newest = || async { Ok(self.around.destination.newest_version(schema, &fence).await?) };
            (schema.id.clone(), self.around.start(&schema.id, newest).await)
        });
        stream::iter(asked.collect::<Vec<_>>()).buffered(ASKED_AT_ONCE).collect().await
    }

    /// The slot of before stands where the standby had it: before the switch.
    async fn check_slot(&self, state: &MirrorState) -> Result<(), Error> {
        let slot = self.around.config.mirror.slot_name();
        let found = slot::read(self.around.session, &slot).await?;
        let problem = match check_slot(self.around.config, state.source.as_ref(), found) {
            Err(Error::SlotMissing { .. }) => "is not there",
            found => match found?.and_then(|slot| slot.confirmed_flush_lsn) {
                Some(confirmed) if confirmed > self.at => "was made there later",
                _ => return Ok(()),
            },
        };
        Err(Error::SlotNotKept { slot, at: self.at, problem })
    }

    /// Whether a table can be copied anew by itself; if not, it stops alone.
    async fn may_be_copied(&self, record: &mut TableRecord, why: &str) -> Result<bool, Error> {
        let table = record.schema.id.clone();
        let obstacle = if self.around.config.snapshot.mode == SnapshotMode::Never {
            "snapshot.mode is Never".to_owned()
        } else if record.schema.kind == TableKind::AppendOnly {
            "an append-only table is not re-copied automatically: rows that the source no longer has would be lost".to_owned()
        } else {
            match catalog::describe(self.around.session, &record.spec).await.map_err(Error::from) {
                Ok(facts) => {
                    schema::forget_strangers(&mut record.schema, &facts.schema);
                    return Ok(true);
                }
                Err(error) if matches!(policy(&error).0, Policy::Stall | Policy::FailTable) => {
                    error.to_string()
                }
                Err(error) => return Err(error),
            }
        };
        let message = format!("{why}, so its target may differ from the source; and {obstacle}");
        let error = Error::table(&table, Reason::SourceTimelineChanged, message);
        self.set_aside(record, error).await?;
        Ok(false)
    }

    async fn set_aside(&self, record: &mut TableRecord, error: Error) -> Result<(), Error> {
        set_aside(self.around.config, record, error)?;
        self.store.save_table(record).await
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

/// Why something of a table, but for streamed rows, may come from transactions that were committed at `at` or later.
fn doubt(record: &TableRecord, at: Lsn) -> Option<String> {
    if record.phase == TablePhase::Snapshotting {
        return Some("a standby was promoted while it was copied".to_owned());
    }
    let seen = record.seen > at;
    seen.then(|| {
        format!(
            "a standby was promoted at {at}, and later transactions of the old primary had been seen of it"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{TableSchema, TableSpec},
        replication::failure,
    };

    /// What becomes of a Mirror that was on `expected`: the switch, or words of the refusal.
    fn switch(
        expected: (u32, Option<(u32, Lsn)>, &str),
        found: (u32, &str, &str),
    ) -> Result<Option<u64>, String> {
        let record = SourceRecord {
            system_identifier: "7".into(),
            timeline: expected.0,
            branch: expected.1,
            server_started: expected.2.into(),
            start_lsn: Lsn(1),
            finished: false,
            resync: None,
            version_scheme: VERSION_SCHEME,
            place: None,
        };
        let (timeline, history, started) = found;
        let origin = Origin {
            identity: SystemIdentity {
                system_identifier: "7".into(),
                timeline,
                wal_position: Lsn(1),
                started: started.into(),
            },
            place: SlotPlace::default(),
            history: TimelineHistory::parse(timeline, history),
        };
        let switch = origin.switch(&record).map_err(|error| {
            let failure = failure(&error);
            assert!(failure.remedies.iter().any(Remedy::is_resync), "{failure:?}");
            failure.message
        })?;
        assert_eq!(origin.record(record.clone()).timeline, timeline);
        Ok(switch.map(|at| at.0))
    }

    #[test]
    fn the_switch_is_where_the_recorded_timeline_was_left() {
        let before = (1, None, "a");
        assert_eq!(switch(before, (1, "", "b")), Ok(None), "a restart");
        assert_eq!(switch(before, (2, "1\t0/50", "b")), Ok(Some(0x50)));
        assert_eq!(switch(before, (3, "1\t0/50\n2\t0/60", "b")), Ok(Some(0x50)), "two promotions");
        assert_eq!(switch(before, (2, "1\t0/50", "a")), Ok(None), "promoted in place");
        let before = (2, Some((1, Lsn(0x50))), "b");
        assert_eq!(switch(before, (2, "1\t0/50", "c")), Ok(None));
        assert_eq!(switch(before, (3, "1\t0/50\n2\t0/60", "c")), Ok(Some(0x60)));
        for (found, words) in [
            ((1, "", "a"), "a former primary"),
            ((2, "1\t0/40", "c"), "another standby"),
            ((3, "1\t0/60", "c"), "another standby"),
            ((3, "x", "c"), "can't be read"),
        ] {
            let refused = switch(before, found).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }

    #[test]
    fn what_was_seen_behind_the_switch_is_in_doubt() {
        let spec = TableSpec::new(TableId::new("public", "t"));
        let schema = TableSchema::new(spec.id.clone(), Vec::new());
        let mut record = TableRecord::new(spec, schema, TablePhase::Streaming);
        record.seen_until(Lsn(50));
        record.seen_until(Lsn(40));
        assert_eq!(doubt(&record, Lsn(50)), None, "the switch is the end of what the standby had");
        assert!(doubt(&record, Lsn(49)).is_some_and(|why| why.contains("promoted at 0/31")));
        record.phase = TablePhase::Snapshotting;
        assert!(doubt(&record, Lsn(50)).is_some_and(|why| why.contains("while it was copied")));
    }
}
