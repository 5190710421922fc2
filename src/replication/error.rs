//! The engine's errors.

use std::collections::BTreeMap;

use crate::{
    fault::{Reason, Remedy},
    model::{Lsn, MirrorFailure, TableId, TableSchema, Version},
    postgres::{self, quote, removal::RemovalError},
    replication::{DestinationError, ValueError},
};

/// Why a Mirror as a whole can't start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRefused {
    /// A documented reason.
    pub reason: Reason,
    /// What is wrong.
    pub message: String,
    /// What helps, in order.
    pub remedies: Vec<Remedy>,
    /// Whether it may pass without anybody doing anything.
    pub transient: bool,
}

/// Tables that can't be added now, and why.
pub type Refused = BTreeMap<TableId, MirrorFailure>;

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
        "replication slot {slot} no longer exists at the source: changes since {since} can't be had any more"
    )]
    SlotMissing {
        /// The slot's name.
        slot: String,
        /// The last position known to be durable.
        since: Lsn,
    },
    /// The server has removed WAL that the slot needed.
    #[error(
        "replication slot {slot} was invalidated by the source ({}): it can't be read any more",
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
    #[error("replication slot {slot} is not a pgoutput slot of this database ({found})")]
    SlotForeign {
        /// The slot's name.
        slot: String,
        /// Its plugin and database.
        found: String,
    },
    /// Another process of the same Mirror is at work.
    #[error("replication slot {slot} is in use by {by}: this mirror waits until it is free")]
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
        "replication slot {slot} exists, and this mirror has no record of it at the destination: another process may read it into another destination, or the destination has lost its records. A resync drops the slot"
    )]
    SlotUnknown {
        /// The slot's name.
        slot: String,
    },
    /// The Mirror runs, and it isn't on record how far its slot was confirmed.
    #[error(
        "the destination has no record of how far replication slot {slot} was confirmed: its records were changed, or are those of an older release of walferry"
    )]
    PositionUnknown {
        /// The slot's name.
        slot: String,
    },
    /// The slot is further than this Mirror has confirmed.
    #[error(
        "changes from {recorded} to {confirmed} are missing at the destination: replication slot {slot} was read by somebody else, moved or made again, or the destination was restored from a backup"
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
        "the source went back: this mirror had come to {recorded} of its log, and {found}. It was restored from a snapshot of its disk, or lost what it had written"
    )]
    SourceWentBack {
        /// A position that the destination has.
        recorded: Lsn,
        /// What shows it, as a clause.
        found: String,
    },
    /// The destination has forgotten records, but no position that the source has heard of.
    #[error(
        "the destination was restored from a backup of before its last records; everything since is sent and copied again"
    )]
    RecordsForgotten,
    /// The destination has forgotten what was written to it.
    #[error(
        "the destination was restored from a backup: it had a record of position {recorded}, and has {} now",
        .found.map_or_else(|| "none".to_owned(), |found| format!("an earlier one, of {found},"))
    )]
    DestinationRestored {
        /// The position that was recorded.
        recorded: Lsn,
        /// The position that is on record.
        found: Option<Lsn>,
    },
    /// A Mirror with `snapshot.mode: InitialOnly` is over, and something else is asked of it now.
    #[error(
        "this mirror has copied its tables (snapshot.mode: InitialOnly) and dropped its slot: it can't continue with another mode or other tables"
    )]
    CopyFinished,
    /// The rows at the destination were written by a release whose versions can't be compared with ours.
    #[error(
        "the rows at the destination carry versions of scheme {found}, and this release of walferry writes scheme {written}: which of two rows is newer is not known then"
    )]
    OtherVersions {
        /// The scheme in the state.
        found: u32,
        /// The scheme of this release.
        written: u32,
    },
    /// The source's log is longer than versions have room for.
    #[error(
        "the source's log has come to {position}, and versions of rows have room for positions up to {} (32 PiB) only",
        Version::LIMIT
    )]
    LogTooLong {
        /// Where the log is.
        position: Lsn,
    },
    /// The publication is gone or changed although this Mirror runs on it.
    #[error("publication {publication} {problem}: changes made meanwhile were not sent")]
    PublicationChanged {
        /// The publication's name.
        publication: String,
        /// What is wrong with it, as a predicate.
        problem: String,
    },
    /// Another database cluster answers at the source's address.
    #[error(
        "the source has system identifier {found}, but this mirror was started against {expected}: it was restored or replaced"
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
        /// Why it can't be followed.
        problem: String,
        /// What helps.
        remedies: Vec<Remedy>,
    },
    /// Two connections to the source's address have reached two servers: it changes just now, or is one of
    /// several.
    #[error(
        "two connections to the source's address have reached two different servers: it may just be switched over"
    )]
    TwoServers,
    /// The source shuts down, and waits until its stream has ended.
    #[error(
        "the source is shutting down: everything that is not replicated yet stays in its replication slot"
    )]
    SourceShuttingDown,
    /// A standby was promoted, and has not this Mirror's slot.
    #[error(
        "a standby was promoted at {at}, and replication slot {slot} {problem}: changes from before can't be had any more. For the next time: the standby keeps it with sync_replication_slots, hot_standby_feedback and a dbname in primary_conninfo, when the primary's synchronized_standby_slots names the standby's slot (PostgreSQL 17 and later)"
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
    /// The Mirror asks for a table in another way than when it was added.
    #[error("the spec of table {table} changed after it was copied (target, columns, where or engine)")]
    SpecChanged {
        /// The table.
        table: TableId,
    },
    /// The checks keep the Mirror as a whole from starting.
    #[error("{}", .0.message)]
    MirrorRefused(MirrorRefused),
    /// Of a Mirror that has not started yet, no table can be added.
    #[error("no table of this mirror can be mirrored: {}", list(.refused))]
    NoTableAdmitted {
        /// Its tables, and what keeps each from it.
        refused: Refused,
    },
    /// A table that could not be added can be now.
    #[error("tables can be added that could not before: {}", names(.tables))]
    TablesAdmitted {
        /// These.
        tables: Vec<TableId>,
    },
    /// The transaction is gone whose snapshot the copies of tables without a key read.
    #[error(
        "the snapshot in which tables without a key are copied is gone: its session was ended at the source, one of them was rewritten, or the application waited for a lock on one. They are copied again. If that repeats, look for what ends sessions or changes these tables at the source, such as idle_in_transaction_session_timeout"
    )]
    SnapshotLost,
    /// One table can't continue.
    #[error("table {table}: {message}")]
    Table {
        /// The table.
        table: TableId,
        /// A documented reason.
        reason: Reason,
        /// What failed, and why.
        message: String,
        /// What helps, apart from copying the table again afterwards.
        remedies: Vec<Remedy>,
    },
    /// Another Mirror writes a table's target.
    #[error("table {table}: {message}")]
    TargetTaken {
        /// The table.
        table: TableId,
        /// Which one.
        message: String,
        /// What helps.
        remedies: Vec<Remedy>,
    },
    /// The Mirror that wrote a table's target has released it.
    #[error("the target of table {table} was released by the mirror that wrote it")]
    TargetReleased {
        /// The table.
        table: TableId,
    },
    /// The source's catalog says more of a table than its rows in the stream did: the session has to restart.
    #[error("table {table} has changed at the source: {why}")]
    CatalogChanged {
        /// The table.
        table: TableId,
        /// What has changed.
        why: String,
        /// Whether the table has to be copied again, whatever the catalog says then.
        copy: bool,
    },
    /// A column that was added as NOT NULL has a NULL.
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
        "a changed row has text that can't be sent as UTF-8: {0}. PostgreSQL does not say which row it is, and sends nothing after it"
    )]
    Encoding(postgres::Error),
    /// A row filter fails for a changed row.
    #[error(
        "where fails for a changed row: {condition}. Tables with where: {}. PostgreSQL sends nothing after that row, and judges it by the filter that was there when it was written, so neither deleting it nor altering the publication helps",
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
    /// The process was asked to stop.
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
    /// A table that stops alone.
    pub(super) fn table(table: &TableId, reason: Reason, message: impl Into<String>) -> Self {
        Error::Table { table: table.clone(), reason, message: message.into(), remedies: Vec::new() }
    }

    /// The same error of a table, with what helps.
    pub(super) fn remedied(self, by: impl IntoIterator<Item = Remedy>) -> Self {
        match self {
            Error::Table { table, reason, message, mut remedies } => {
                remedies.extend(by);
                Error::Table { table, reason, message, remedies }
            }
            other => other,
        }
    }

    /// A mirrored table is no more.
    pub fn dropped(table: &TableId) -> Self {
        let message = "it was dropped at the source; its target stays";
        Error::table(table, Reason::SourceTableDropped, message).remedied([Remedy::any_of([
            vec![Remedy::edit("spec.tables", format!("take {table} out"))],
            vec![Remedy::act("make it again at the source"), Remedy::resync([table])],
        ])])
    }

    /// An error that a query on a table met, as the table's own fault where it says that the table is gone or
    /// has text that can't be sent.
    pub(super) fn of_table(table: &TableId, error: Error) -> Self {
        match error {
            Error::Source(source) if source.is_missing_table() => Error::dropped(table),
            // insufficient_privilege: also what a read says that row-level security would cut short.
            Error::Source(source) if source.sqlstate() == Some("42501") => {
                let message = format!(
                    "it can't be read any more: {source}. Once it may be read, it is copied again, automatically; an append-only table, or one \
                     with snapshot.mode: Never, by a resync that names it"
                );
                Error::table(table, Reason::SourcePrivilegeMissing, message)
                    .remedied([Remedy::act("grant what walferry check names")])
            }
            Error::Source(source) if source.is_encoding_error() => {
                let message = format!("a row has text that can't be sent as UTF-8: {source}");
                Error::table(table, Reason::SourceEncoding, message).remedied([correct_text()])
            }
            Error::Source(source) if source.value_condition().is_some() => {
                let message = format!(
                    "PostgreSQL can't compute something for one of its rows: {}",
                    source.value_condition().unwrap_or_default()
                );
                Error::table(table, Reason::SourceRowFilterFailed, message)
                    .remedied([correct_filter(std::slice::from_ref(table))])
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
            "{}{which}. SELECT {} FROM {} AS r WHERE octet_length(r::text) > {} finds such rows",
            postgres::Error::RowTooLong { bytes },
            columns.join(", "),
            quote::table(&schema.id),
            postgres::wire::LONGEST_ROW / 2,
        );
        Error::table(&schema.id, Reason::RowTooLong, message).remedied([Remedy::any_of([
            vec![Remedy::act("split what such rows hold")],
            vec![Remedy::edit("spec.tables[].columns.exclude", format!("name the column of {}", schema.id))],
        ])])
    }

    /// A transaction has truncated a table more often than its changes' versions have room for.
    pub(super) fn too_many_truncates(table: &TableId) -> Self {
        let message = "one transaction has truncated it more than a thousand times, so the order of its rows is not known";
        Error::table(table, Reason::TooManyTruncates, message)
    }

    /// An error that the stream met, as what it means there. `filtered` are the tables with a row filter.
    pub(super) fn of_stream(error: Error, filtered: Vec<TableId>) -> Self {
        match error {
            Error::Source(source) if source.is_encoding_error() => Error::Encoding(source),
            Error::Source(source) => match source.value_condition() {
                Some(condition) if !filtered.is_empty() => Error::RowFilter { tables: filtered, condition },
                _ => Error::Source(source),
            },
            other => other,
        }
    }

    /// An error of reading some of a table's rows again. What the source refuses for this query stays
    /// refused.
    pub(super) fn of_fetch(table: &TableId, error: Error) -> Self {
        match Error::of_table(table, error) {
            Error::Source(source) if source.refuses_query() => {
                let message = format!("unchanged large values could not be read again: {source}");
                Error::table(table, Reason::SourceQueryRefused, message)
            }
            other => other,
        }
    }

    /// A mirrored table has to be copied again.
    pub(super) fn recopy(table: &TableId, why: impl Into<String>) -> Self {
        Error::CatalogChanged { table: table.clone(), why: why.into(), copy: true }
    }

    /// A mirrored table has another name.
    pub(super) fn renamed(table: &TableId, name: &TableId) -> Self {
        let message = format!("it is called {name} at the source now; its target stays");
        Error::table(table, Reason::SourceTableDropped, message).remedied([Remedy::any_of([
            vec![Remedy::edit("spec.tables", format!("name {name} in place of {table}"))],
            vec![Remedy::act("give it back its name"), Remedy::resync([table])],
        ])])
    }

    /// Somebody took a mirrored table out of the publication.
    pub(super) fn unpublished(table: &TableId, publication: &str) -> Self {
        let message =
            format!("publication {publication} no longer has it, so changes are missing at the destination");
        Error::table(table, Reason::SourceNotPublished, message)
    }

    /// What a value means that can't be stored: the table's own fault, or that a column of the target has to
    /// take NULL.
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
        let error = Error::table(&table.id, reason, error.to_string());
        match reason {
            Reason::ValueOutOfRange => error.remedied([Remedy::any_of([
                vec![Remedy::edit("spec.outOfRange", "set it to Clamp or Null")],
                vec![Remedy::edit(
                    "spec.tables[].columns.types",
                    format!("give the column of {} a wider type", table.id),
                )],
            ])]),
            Reason::DestinationTypeMismatch => error.remedied([Remedy::edit(
                "spec.tables[]",
                format!("give {} another target.table, and engine.orderBy other columns", table.id),
            )]),
            _ => error,
        }
    }
}

/// What helps against text that can't be sent.
pub(super) fn correct_text() -> Remedy {
    Remedy::act("correct the text at the source")
}

/// What helps against a row filter that fails.
pub(super) fn correct_filter(tables: &[TableId]) -> Remedy {
    Remedy::edit(
        "spec.tables[].where",
        format!("change that of {} so that it can't fail for any value", names(tables)),
    )
}

/// Tables that a sentence names.
pub(super) const NAMED: usize = 5;

fn list(refused: &Refused) -> String {
    let one = |(table, failure): (&TableId, &MirrorFailure)| format!("{table}: {}", failure.message);
    let mut sentence: Vec<String> = refused.iter().take(NAMED).map(one).collect();
    if refused.len() > NAMED {
        sentence.push(format!("and {} more", refused.len() - NAMED));
    }
    sentence.join("; ")
}
