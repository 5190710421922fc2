//! The server that answers, its timeline, and where that one left the timeline on record.

use super::{position::PositionRecord, publication::publications};
use crate::{
    fault::Remedy,
    model::{Lsn, PostgresEndpoint, ReplicatorConfig, SlotPlace},
    postgres::{
        self,
        wire::{Connection, SystemIdentity, TimelineHistory},
    },
    replication::{
        Error,
        stream::require_room,
        table::store::{SourceRecord, VERSION_SCHEME},
    },
};

/// The server that answers, and how it came to its timeline.
pub(in crate::replication) struct SourceTimeline {
    identity: SystemIdentity,
    place: SlotPlace,
    history: Result<TimelineHistory, postgres::Error>,
}

impl SourceTimeline {
    /// Asks for the history.
    ///
    /// # Errors
    /// What the server answers, but for a history that it doesn't have.
    pub(in crate::replication) async fn read(
        wire: &mut Connection,
        identity: SystemIdentity,
        source: &PostgresEndpoint,
    ) -> Result<SourceTimeline, Error> {
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
        Ok(SourceTimeline { identity, place, history })
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

    /// The switchpoint, if the server has left the recorded timeline and may lack what the Mirror has from
    /// it.
    ///
    /// # Errors
    /// [`Error::TimelineChanged`] where the server's timeline does not come from the recorded one.
    pub(in crate::replication) fn switchpoint(&self, record: &SourceRecord) -> Result<Option<Lsn>, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::failure;

    /// What becomes of a Mirror that was on `expected`: the switchpoint, or the message of the refusal.
    fn switchpoint(
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
        let source = SourceTimeline {
            identity: SystemIdentity {
                system_identifier: "7".into(),
                timeline,
                wal_position: Lsn(1),
                started: started.into(),
            },
            place: SlotPlace::default(),
            history: TimelineHistory::parse(timeline, history),
        };
        let found_at = source.switchpoint(&record).map_err(|error| {
            let failure = failure(&error);
            assert!(failure.remedies.iter().any(Remedy::is_resync), "{failure:?}");
            failure.message
        })?;
        assert_eq!(source.record(record.clone()).timeline, timeline);
        Ok(found_at.map(|at| at.0))
    }

    #[test]
    fn the_switchpoint_is_where_the_recorded_timeline_was_left() {
        let before = (1, None, "a");
        assert_eq!(switchpoint(before, (1, "", "b")), Ok(None), "a restart");
        assert_eq!(switchpoint(before, (2, "1\t0/50", "b")), Ok(Some(0x50)));
        assert_eq!(switchpoint(before, (3, "1\t0/50\n2\t0/60", "b")), Ok(Some(0x50)), "two promotions");
        assert_eq!(switchpoint(before, (2, "1\t0/50", "a")), Ok(None), "promoted in place");
        let before = (2, Some((1, Lsn(0x50))), "b");
        assert_eq!(switchpoint(before, (2, "1\t0/50", "c")), Ok(None));
        assert_eq!(switchpoint(before, (3, "1\t0/50\n2\t0/60", "c")), Ok(Some(0x60)));
        for (found, words) in [
            ((1, "", "a"), "a former primary"),
            ((2, "1\t0/40", "c"), "another standby"),
            ((3, "1\t0/60", "c"), "another standby"),
            ((3, "x", "c"), "can't be read"),
        ] {
            let refused = switchpoint(before, found).unwrap_err();
            assert!(refused.contains(words), "{refused}");
        }
    }
}
