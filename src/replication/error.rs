//! The engine's errors, and the one function that says what to do about each.

use super::{
    DestinationError, ErrorKind, Policy, ValueError,
    admission::{MirrorRefused, Refused},
    policy,
};
use crate::{
    fault::Reason,
    model::{Lsn, MirrorFailure, RESYNC_ADVICE, TableId, TableSchema, Version, resync_advice},
    postgres::{self, quote, removal::RemovalError},
};

/// What can go wrong while a Mirror runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source answered with an error or could not be reached.
    #[error("source: {0}")]
    Source(#[from] postgres::Error),
    /// The destination answered with an error or could not be reached.
    #[error("destination: {0}")]
    Destination(#[from] DestinationError),
    /// A record of the durable state can't be read or written as JSON.
    #[error("state record {item} is damaged: {source}")]
    State {
        /// The record.
        item: String,
        /// What the JSON reader says.
        source: serde_json::Error,
    },
    /// The slot is gone although this Mirror has made one.
    #[error(
        "replication slot {slot} no longer exists at the source: changes since {since} can't be had any more. To go on, {RESYNC_ADVICE}"
    )]
    SlotMissing {
        /// The slot's name.
        slot: String,
        /// The last position known to be durable.
        since: Lsn,
    },
    /// The server has removed WAL that the slot needed.
    #[error(
        "replication slot {slot} was invalidated by the source ({}): it can't be read any more. To go on, {cure}; then {RESYNC_ADVICE}",
        .reason.as_ref().unwrap_or(.wal_status)
    )]
    SlotInvalidated {
        /// The slot's name.
        slot: String,
        /// `pg_replication_slots.wal_status`.
        wal_status: String,
        /// `pg_replication_slots.invalidation_reason`, where the server has it.
        reason: Option<String>,
        /// What to change at the source.
        cure: &'static str,
    },
    /// A slot of our name exists but is not one of ours.
    #[error(
        "replication slot {slot} is not a pgoutput slot of this database ({found}): drop it at the source"
    )]
    SlotForeign {
        /// The slot's name.
        slot: String,
        /// Its plugin and database.
        found: String,
    },
    /// Another process of the same Mirror is at work.
    #[error(
        "replication slot {slot} is in use by {by}: this mirror waits until it is free. If nothing should read it, end that at the source with pg_terminate_backend"
    )]
    SlotInUse {
        /// The slot's name.
        slot: String,
        /// Who reads it.
        by: String,
    },
    /// Another process has taken this Mirror over: its records are newer than what this one knows.
    #[error("another process has taken this mirror over")]
    Replaced,
    /// The slot is still being made.
    #[error(
        "replication slot {slot} is not ready: PostgreSQL waits for transactions that ran when it was asked for"
    )]
    SlotNotReady {
        /// The slot's name.
        slot: String,
    },
    /// A slot of our name exists, and nothing is on record of it.
    #[error(
        "replication slot {slot} exists, and this mirror has no record of it at the destination: another process may read it into another destination, or the destination has lost its records. To drop the slot and begin with a new one, {RESYNC_ADVICE}"
    )]
    SlotUnknown {
        /// The slot's name.
        slot: String,
    },
    /// The Mirror runs, and it isn't on record how far its slot was confirmed.
    #[error(
        "the destination has no record of how far replication slot {slot} was confirmed: its records were changed, or are those of an older release of walferry. To go on, {RESYNC_ADVICE}"
    )]
    PositionUnknown {
        /// The slot's name.
        slot: String,
    },
    /// The slot is further than this Mirror has confirmed.
    #[error(
        "changes from {recorded} to {confirmed} are missing at the destination: replication slot {slot} was read by somebody else, moved or made again, or the destination was restored from a backup. To go on, {RESYNC_ADVICE}"
    )]
    SlotAdvanced {
        /// The slot's name.
        slot: String,
        /// What this Mirror has confirmed at most.
        recorded: Lsn,
        /// Where the slot is.
        confirmed: Lsn,
    },
    /// The source has lost what the destination has.
    #[error(
        "the source went back: this mirror had come to {recorded} of its log, and {found}. It was restored from a snapshot of its disk, or lost what it had written. To go on, {RESYNC_ADVICE}"
    )]
    SourceWentBack {
        /// A position that the destination has.
        recorded: Lsn,
        /// What shows it, as a clause.
        found: String,
    },
    /// The destination has forgotten records, but none that the source was told of.
    #[error(
        "the destination was restored from a backup of before its last records; everything since is sent and copied again"
    )]
    RecordsForgotten,
    /// The destination has forgotten what was written to it.
    #[error(
        "the destination was restored from a backup: it had a record of position {recorded}, and has {} now. To go on, {RESYNC_ADVICE}",
        .found.map_or_else(|| "none".to_owned(), |found| format!("an earlier one, of {found},"))
    )]
    DestinationRestored {
        /// The position that was recorded.
        recorded: Lsn,
        /// The position that is on record.
        found: Option<Lsn>,
    },
    /// A Mirror with `snapshot.mode: Only` is over, and something else is asked of it now.
    #[error(
        "this mirror has copied its tables (snapshot.mode: Only) and dropped its slot: it can't go on with another mode or other tables. Undo the change, or {RESYNC_ADVICE}"
    )]
    CopyFinished,
    /// The rows at the destination were written by a release whose versions can't be compared with ours.
    #[error(
        "the rows at the destination carry versions of scheme {found}, and this release of walferry writes scheme {}: which of two rows is the newer could not be told. To go on, {RESYNC_ADVICE}",
        super::state::VERSION_SCHEME
    )]
    OtherVersions {
        /// The scheme in the state.
        found: u32,
    },
    /// The source's log is longer than versions have room for.
    #[error(
        "the source's log has come to {position}, and rows at the destination can be told apart up to {} (32 PiB) only: move the database to a new cluster, whose log begins anew, and mirror that one",
        Version::LIMIT
    )]
    LogTooLong {
        /// Where the log is.
        position: Lsn,
    },
    /// The publication is gone or changed although this Mirror runs on it.
    #[error(
        "publication {publication} {problem}: changes made meanwhile were not sent. To go on, {RESYNC_ADVICE}"
    )]
    PublicationChanged {
        /// The publication's name.
        publication: String,
        /// What is wrong with it, as a predicate.
        problem: String,
    },
    /// Another database cluster answers at the source's address.
    #[error(
        "the source has system identifier {found}, but this mirror was started against {expected}: it was restored or replaced. Point the peer back, or {RESYNC_ADVICE}"
    )]
    SourceReplaced {
        /// The identifier in the state.
        expected: String,
        /// The identifier of the server.
        found: String,
    },
    /// The source is on another timeline, and can't be followed there.
    #[error("the source is on timeline {found}, this mirror was on {expected}: {problem}")]
    TimelineChanged {
        /// The timeline in the state.
        expected: u32,
        /// The timeline of the server.
        found: u32,
        /// Why it can't be followed, and what to do.
        problem: String,
    },
    /// Two connections to the source's address have reached two servers: it changes just now, or is one of several.
    #[error(
        "two connections to the source's address have reached two different servers: it may just be switched over. If that lasts, give postgres.host the address of one server, or one that always leads to the primary"
    )]
    TwoServers,
    /// The source shuts down, and waits until its stream has ended.
    #[error(
        "the source is shutting down: everything that is not replicated yet stays in its replication slot"
    )]
    SourceShuttingDown,
    /// A standby was promoted, and has not this Mirror's slot.
    #[error(
        "a standby was promoted at {at}, and replication slot {slot} {problem}: changes from before can't be had any more. For the next time: the standby keeps it with sync_replication_slots, hot_standby_feedback and a dbname in primary_conninfo, when the primary's synchronized_standby_slots names the standby's slot (PostgreSQL 17 and later). To go on, {RESYNC_ADVICE}"
    )]
    SlotNotKept {
        /// The slot's name.
        slot: String,
        /// Where the old timeline was left.
        at: Lsn,
        /// What is wrong with it, as a predicate.
        problem: &'static str,
    },
    /// The source is not, or not any more, on the timeline that it was on when it was connected to.
    #[error("the source has got to another timeline")]
    TimelineLeft,
    /// The Mirror asks for a table in another way than when it joined.
    #[error(
        "table {table} is asked for in another way than when it was copied (target, columns, where or engine changed). Undo the change, or {}",
        resync_advice(.table)
    )]
    SpecChanged {
        /// The table.
        table: TableId,
    },
    /// The checks keep the Mirror as a whole from starting.
    #[error("{}", .0.message)]
    MirrorRefused(MirrorRefused),
    /// Of a Mirror that has not started yet, no table can join.
    #[error("no table of this mirror can be mirrored: {}", told(.refused))]
    NoTableAdmitted {
        /// Its tables, and what keeps each from it.
        refused: Refused,
    },
    /// A table that could not join can now.
    #[error("tables can join that could not before: {}", names(.tables))]
    TablesAdmitted {
        /// These.
        tables: Vec<TableId>,
    },
    /// The transaction is gone whose snapshot the copies of tables without a key read.
    #[error(
        "the snapshot in which tables without a key are copied is gone: its session was ended at the source, one of them was rewritten, or the application waited for a lock on one. They are copied again. If that repeats, look for what ends sessions or changes these tables at the source, such as idle_in_transaction_session_timeout"
    )]
    SnapshotLost,
    /// One table can't go on.
    #[error("table {table}: {message}")]
    Table {
        /// The table.
        table: TableId,
        /// A documented reason.
        reason: Reason,
        /// What is wrong and what to run.
        message: String,
    },
    /// Another Mirror writes a table's target.
    #[error("table {table}: {message}")]
    TargetTaken {
        /// The table.
        table: TableId,
        /// Which one, and what to do.
        message: String,
    },
    /// The Mirror that wrote a table's target has released it.
    #[error("the target of table {table} was released by the mirror that wrote it")]
    TargetReleased {
        /// The table.
        table: TableId,
    },
    /// The source's catalog says more of a table than its rows in the stream did: the tables have to be taken up anew.
    #[error("table {table} has changed at the source: {why}")]
    CatalogChanged {
        /// The table.
        table: TableId,
        /// What has changed.
        why: String,
        /// Whether the table has to be copied anew, whatever the catalog says when it is looked at again.
        copy: bool,
    },
    /// A column that joined as NOT NULL has a NULL.
    #[error("table {table} has changed at the source: column {column} takes NULL")]
    NullCame {
        /// The table.
        table: TableId,
        /// The column's name at the source.
        column: String,
        /// Its `pg_attribute.attnum`.
        attnum: i16,
    },
    /// The source sent a message that breaks the protocol.
    #[error("unexpected replication message: {0}")]
    Protocol(&'static str),
    /// PostgreSQL can't send a changed row.
    #[error(
        "a changed row has text that can't be sent as UTF-8: {0}. PostgreSQL does not say which row it is, and sends nothing after it. Mend the text at the source, then {RESYNC_ADVICE}"
    )]
    Encoding(postgres::Error),
    /// A row filter fails for a changed row.
    #[error(
        "where fails for a changed row: {condition}. Tables with where: {}. PostgreSQL sends nothing after that row, and judges it by the filter that was there when it was written, so neither deleting it nor altering the publication helps. Change where so that it can't fail for any value; then {RESYNC_ADVICE}",
        names(.tables)
    )]
    RowFilter {
        /// The tables that have one.
        tables: Vec<TableId>,
        /// The condition's name and SQLSTATE.
        condition: String,
    },
    /// A task of ours ended without an answer.
    #[error("an internal task stopped: {0}")]
    Task(String),
    /// The process was told to stop.
    #[error("stopped")]
    Stopped,
}

impl From<RemovalError> for Error {
    fn from(error: RemovalError) -> Self {
        match error {
            RemovalError::Source(source) => Error::Source(source),
            RemovalError::SlotInUse { slot, pid } => {
                Error::SlotInUse { slot, by: format!("the walsender with pid {pid}") }
            }
        }
    }
}

fn names(tables: &[TableId]) -> String {
    tables.iter().map(TableId::to_string).collect::<Vec<_>>().join(", ")
}

impl Error {
    /// A mirrored table is no more.
    pub(super) fn dropped(table: &TableId) -> Self {
        let message = format!(
            "it was dropped at the source; its target stays. Take it out of the mirror's tables, or make it again and {}",
            resync_advice(table)
        );
        Error::Table { table: table.clone(), reason: Reason::SourceTableDropped, message }
    }

    /// An error that a query on a table met, as the table's own fault where it says that the table is gone or has text that can't
    /// be sent.
    pub(super) fn of_table(table: &TableId, error: Error) -> Self {
        match error {
            Error::Source(source) if source.tells_missing_table() => Error::dropped(table),
            // insufficient_privilege: also what a read says that row-level security would cut short.
            Error::Source(source) if source.sqlstate() == Some("42501") => {
                let message = format!(
                    "it can't be read any more: {source}. walferry check says what to run. Once it may be read, it is copied again, \
                     automatically; with insertOnly or snapshot.mode: Never, give walferry.dev/resync another value"
                );
                Error::Table { table: table.clone(), reason: Reason::SourcePrivilegeMissing, message }
            }
            Error::Source(source) if source.tells_encoding() => Error::Table {
                table: table.clone(),
                reason: Reason::SourceEncoding,
                message: format!(
                    "a row has text that can't be sent as UTF-8: {source}. Mend it at the source"
                ),
            },
            Error::Source(source) if source.value_condition().is_some() => {
                let message = format!(
                    "PostgreSQL can't compute something for one of its rows: {}. If the mirror has where for it, change that so that it can't \
                     fail for any value; then {}",
                    source.value_condition().unwrap_or_default(),
                    resync_advice(table)
                );
                Error::Table { table: table.clone(), reason: Reason::SourceRowFilterFailed, message }
            }
            other => other,
        }
    }

    /// A row of a table is longer than we hold; `key` says which one, where it may be said.
    pub(super) fn too_long(schema: &TableSchema, bytes: usize, key: Option<&str>) -> Self {
        let columns = schema.key.iter().filter_map(|index| schema.columns.get(*index));
        let columns: Vec<String> = columns.map(|column| quote::ident(&column.name)).collect();
        let which = key.map_or_else(String::new, |key| format!(", the one with {key}"));
        let message = format!(
            "{}{which}. Find such rows with SELECT {} FROM {} AS r WHERE octet_length(r::text) > {}, and split what they hold or take the column out with columns.exclude",
            postgres::Error::RowTooLong { bytes },
            columns.join(", "),
            quote::table(&schema.id),
            postgres::wire::LONGEST_ROW / 2,
        );
        Error::Table { table: schema.id.clone(), reason: Reason::RowTooLong, message }
    }

    /// A transaction has truncated a table more often than its changes' versions have room for.
    pub(super) fn too_many_truncates(table: &TableId) -> Self {
        let message = format!(
            "one transaction has truncated it more than a thousand times, so its rows can't be told from older ones. To go on, {}",
            resync_advice(table)
        );
        Error::Table { table: table.clone(), reason: Reason::TooManyTruncates, message }
    }

    /// An error that the stream met, as what it means there. `filtered` are the tables with a row filter.
    pub(super) fn of_stream(error: Error, filtered: Vec<TableId>) -> Self {
        match error {
            Error::Source(source) if source.tells_encoding() => Error::Encoding(source),
            Error::Source(source) => match source.value_condition() {
                Some(condition) if !filtered.is_empty() => Error::RowFilter { tables: filtered, condition },
                _ => Error::Source(source),
            },
            other => other,
        }
    }

    /// An error of reading some of a table's rows again. What the source refuses for this query stays refused.
    pub(super) fn of_reread(table: &TableId, error: Error) -> Self {
        match Error::of_table(table, error) {
            Error::Source(source) if source.refuses_query() => Error::Table {
                table: table.clone(),
                reason: Reason::SourceQueryRefused,
                message: format!("unchanged large values could not be read again: {source}"),
            },
            other => other,
        }
    }

    /// Whether the destination refused something without saying whether that will pass.
    fn is_unclear(&self) -> bool {
        matches!(self, Error::Destination(refusal) if refusal.kind == ErrorKind::Unclear)
    }

    /// Whether the destination refuses something to the user, or in the database, that it may grant for other tables.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Error::Destination(refusal) if refusal.kind == ErrorKind::Denied)
    }

    /// Whether the destination's refusal doesn't say whose fault it is: the table's that a statement is about, or more.
    pub(super) fn may_be_of_table(&self) -> bool {
        self.is_unclear() || self.is_denied()
    }

    /// A refusal of a statement on one table that doesn't say whose fault it is, and was repeated long enough, as the table's own.
    pub(super) fn for_good(self, tries: u32) -> Self {
        match self {
            Error::Destination(refusal) if matches!(refusal.kind, ErrorKind::Unclear | ErrorKind::Denied) => {
                let message = format!("{}; it was refused {tries} times", refusal.message);
                Error::Destination(DestinationError { kind: ErrorKind::Table, message, ..refusal })
            }
            other => other,
        }
    }

    /// A mirrored table has to be copied anew.
    pub(super) fn copy_anew(table: &TableId, why: impl Into<String>) -> Self {
        Error::CatalogChanged { table: table.clone(), why: why.into(), copy: true }
    }

    /// A mirrored table has another name.
    pub(super) fn renamed(table: &TableId, name: &TableId) -> Self {
        let message = format!(
            "it is called {name} at the source now; its target stays. Name it so in the mirror's tables, or give it back its name and {}",
            resync_advice(table)
        );
        Error::Table { table: table.clone(), reason: Reason::SourceTableDropped, message }
    }

    /// Somebody took a mirrored table out of the publication.
    pub(super) fn unpublished(table: &TableId, publication: &str) -> Self {
        let message = format!(
            "publication {publication} no longer has it, so changes are missing at the destination. To have it published again, {}",
            resync_advice(table)
        );
        Error::Table { table: table.clone(), reason: Reason::SourceNotPublished, message }
    }

    /// What a value means that can't be stored: the table's own fault, or that a column of the target has to take NULL.
    pub(super) fn value(table: &TableSchema, error: &ValueError) -> Self {
        if let ValueError::UnexpectedNull { column: name, .. } = error
            && let Some((index, column)) =
                table.columns.iter().enumerate().find(|(_, column)| column.name == *name)
            && !(column.nullable || table.order_by.contains(&index))
        {
            let (table, attnum) = (table.id.clone(), column.attnum);
            return Error::NullCame { table, column: name.clone(), attnum };
        }
        let reason = match error {
            ValueError::OutOfRange { .. } => Reason::ValueOutOfRange,
            ValueError::UnexpectedNull { .. } => Reason::DestinationTypeMismatch,
            ValueError::Malformed { .. } | ValueError::Unresolved { .. } => Reason::DecodeFailed,
        };
        Error::Table { table: table.id.clone(), reason, message: error.to_string() }
    }
}

/// The failure that a status shows for an error. A table that has failed stays so until it is copied anew.
pub fn failure(error: &Error) -> MirrorFailure {
    let table = match error {
        Error::Table { table, .. } | Error::SpecChanged { table } => Some(table),
        _ => None,
    };
    let advice = table.map_or_else(|| RESYNC_ADVICE.to_owned(), resync_advice);
    failure_with(error, &advice)
}

/// The failure with this advice where a table has failed and the error has none of its own.
fn failure_with(error: &Error, advice: &str) -> MirrorFailure {
    let (what, reason) = policy(error);
    let mut message = error.to_string();
    // A target that is another Mirror's is not to be copied over, and is taken automatically once it is free.
    let heals = matches!(reason, Reason::SourceReplicaIdentityDiffers | Reason::TargetTableTaken);
    if what == Policy::FailTable && !heals && !message.contains("walferry.dev/resync") {
        message.push_str(&format!(". Once that is mended, {advice}"));
    }
    MirrorFailure { reason, message }
}

/// What a table that stops alone is said to fail of. Whoever tells it names the table, so the message doesn't begin with it.
pub(super) fn table_failure(table: &TableId, error: &Error) -> String {
    let message = failure_with(error, &resync_advice(table)).message;
    message.strip_prefix(&format!("table {table}: ")).unwrap_or(&message).to_owned()
}

/// The failure of a table that can't join, or stops alone; for whoever names the table.
pub(super) fn failure_of_table(table: &TableId, error: &Error) -> MirrorFailure {
    MirrorFailure { reason: policy(error).1, message: table_failure(table, error) }
}

/// Tables that a sentence names.
const NAMED: usize = 5;

fn told(refused: &Refused) -> String {
    let one = |(table, failure): (&TableId, &MirrorFailure)| format!("{table}: {}", failure.message);
    let mut sentence: Vec<String> = refused.iter().take(NAMED).map(one).collect();
    if refused.len() > NAMED {
        sentence.push(format!("and {} more", refused.len() - NAMED));
    }
    sentence.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_stops_alone_is_named_by_whoever_tells_it() {
        let table = TableId::new("public", "users");
        let message = "run this, then set walferry.dev/resync".to_owned();
        let error = Error::Table { table: table.clone(), reason: Reason::SourceSchemaChanged, message };
        assert_eq!(table_failure(&table, &error), "run this, then set walferry.dev/resync");
        assert!(
            table_failure(&TableId::new("public", "other"), &error).starts_with("table public.users: run")
        );
    }
    use crate::model::{Column, SourceType};

    #[test]
    fn a_null_widens_a_column_that_is_not_part_of_the_key() {
        let column = |name: &str, nullable| {
            let column = Column::new(name, SourceType::Text);
            Column { nullable, attnum: 7, ..column }
        };
        let columns = vec![column("id", false), column("a", false), column("b", true)];
        let table = TableSchema::new(TableId::new("public", "t"), columns);
        let of = |name: &str| {
            let null = ValueError::UnexpectedNull { column: name.into(), target: "t".into() };
            policy(&Error::value(&table, &null)).0
        };
        assert_eq!((of("id"), of("a"), of("b")), (Policy::FailTable, Policy::StartOver, Policy::FailTable));
    }

    #[test]
    fn a_filter_that_fails_stalls_the_stream_and_stops_a_copy_alone() {
        let source = || {
            Error::Source(postgres::Error::Server {
                sqlstate: "22012".to_owned(),
                message: "division by zero".to_owned(),
                detail: None,
                hint: None,
            })
        };
        let table = TableId::new("public", "t");
        let stream = Error::of_stream(source(), vec![table.clone()]);
        assert_eq!(policy(&stream), (Policy::Stall, Reason::SourceRowFilterFailed));
        assert!(
            stream.to_string().contains("division_by_zero (SQLSTATE 22012). Tables with where: public.t.")
        );
        assert_eq!(policy(&Error::of_stream(source(), Vec::new())).1, Reason::SourceError);
        let copy = Error::of_table(&table, source());
        assert_eq!(policy(&copy), (Policy::FailTable, Reason::SourceRowFilterFailed));
    }

    #[test]
    fn what_is_garbled_is_asked_for_again() {
        let decode = postgres::DecodeError::UnknownMessage(0x43);
        for error in [postgres::Error::Decode(decode), postgres::Error::Protocol("odd".into())] {
            assert_eq!(policy(&Error::Source(error)), (Policy::Retry, Reason::SourceProtocolError));
        }
    }

    #[test]
    fn a_failed_table_s_message_says_once_how_to_go_on() {
        let table = TableId::new("public", "t");
        let refused =
            Error::Table { table: table.clone(), reason: Reason::DecodeFailed, message: "odd".into() };
        for error in [refused, Error::dropped(&table), Error::unpublished(&table, "p")] {
            let message = failure(&error).message;
            assert_eq!(message.matches("walferry.dev/resync").count(), 1, "{message}");
        }
        assert!(!failure(&Error::Protocol("x")).message.contains("resync"));
    }
}
