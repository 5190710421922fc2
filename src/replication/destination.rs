//! The contract between the engine and a destination.
//!
//! **Writes commute.** Whatever is sent to the destination may run late, more than once, or after what was
//! sent later, by this process or by one that it has replaced: the destination shows the same in the end.
//! Nothing depends on the order in which requests reach it.
//!
//! **Versions.** Every row carries a [`Version`]: that of its change, or of its copy, which is lower than any
//! that is streamed to the table and higher than any that the table had before the copy. The destination
//! shows, for each key, the row with the highest version; among equal versions, which are of one insert, the
//! last of it. A row pushed with [`Op::Delete`] hides its key from then on, until a higher version shows it
//! again.
//!
//! **Tables without a key** ([`crate::model::TableKind`]): each row that is pushed is one change, identified
//! by its [`Position`] alone. [`Op::Upsert`] adds the row once and [`Op::Delete`], which then has all values,
//! takes it away once. A change that is pushed again has the same position and the same values.
//!
//! **Fences.** An insert names a *fence*; the destination ends what is left of an earlier statement with the
//! same fence, where it can. That saves work and memory, and nothing depends on it.
//!
//! **Durability.** When `insert` or `finish` answers `Ok`, the rows are durable: the engine then lets the
//! source forget them. Any row may be sent again, and sending it again changes nothing.
//!
//! **Records.** Of the records of one item the one with the highest [`StateVersion`] counts, in whatever
//! order they were written.

use std::{error::Error as StdError, future::Future, ops::Range};

use crate::fault::{Reason, Remedy};
use crate::model::{Position, TableSchema, Tuple, Version};

/// What a row does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// The row is the key's new content, or is there once more.
    Upsert,
    /// The key is gone, or the row is there once less. Where there is a key, only the key columns of the
    /// tuple are meaningful, the others may be NULL.
    Delete,
}

/// Which rows of some versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// Those that a copy brought: [`Version::is_copied`].
    Copied,
}

/// A value that can't be stored. The batch is as it was before the row.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The bytes are not what the column's type promises: a defect or a hostile server.
    #[error("column {column}: malformed {type_name} value ({detail})")]
    Malformed {
        /// Source column name.
        column: String,
        /// The source type.
        type_name: String,
        /// What is wrong, without the value.
        detail: &'static str,
    },
    /// NULL for a target column that can't hold it.
    #[error(
        "column {column} is NULL at the source, and target table {target} is sorted by it, which takes no NULL"
    )]
    UnexpectedNull {
        /// Source column name.
        column: String,
        /// Target table name.
        target: String,
    },
    /// The target type can't hold the value and `outOfRange` is `Fail`.
    #[error("column {column}: a value does not fit {target_type} and outOfRange is Fail")]
    OutOfRange {
        /// Source column name.
        column: String,
        /// Destination type.
        target_type: String,
    },
    /// An unchanged TOAST value reached the builder: a defect in the engine.
    #[error("column {column}: value was not sent and not re-read")]
    Unresolved {
        /// Source column name.
        column: String,
    },
}

/// Rows of one table in the destination's own columnar form, built straight from borrowed tuples.
pub trait TableBatch: Send + Sync + 'static {
    /// Appends a row. `tuple` has one cell for each column of the schema that the batch was made for.
    ///
    /// # Errors
    /// [`ValueError`]; the batch is then unchanged.
    fn push(&mut self, tuple: Tuple<'_>, at: Position, op: Op) -> Result<(), ValueError>;

    /// Rows held.
    fn rows(&self) -> usize;

    /// Bytes held, encoded.
    fn bytes(&self) -> usize;

    /// Forgets the rows and keeps the memory.
    fn clear(&mut self);

    /// Values adjusted under `outOfRange` since the last call: index into the schema's columns, and how many.
    fn take_out_of_range(&mut self) -> Vec<(usize, u64)>;
}

/// An insert that takes several batches and makes them durable at its end: used by the snapshot.
pub trait Insert: Send + 'static {
    /// The batches it takes.
    type Batch: TableBatch;

    /// Sends the batch's rows and clears it.
    fn send(&mut self, batch: &mut Self::Batch) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Ends the insert; `Ok` means that all rows sent are durable. Dropping it instead aborts it.
    fn finish(self) -> impl Future<Output = Result<(), DestinationError>> + Send;
}

/// One record of the Mirror's durable state. A record replaces one of a lower version with the same item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateRow {
    /// What the record is about; unique within the Mirror.
    pub item: String,
    /// JSON; empty means that the record is deleted.
    pub value: String,
}

/// The version of a state record: of two records of one item the higher one counts, in whatever order they
/// were written.
///
/// Its upper bits are the *epoch* of the process that wrote it, the rest counts that process's writes. Each
/// process that takes a Mirror over claims a higher epoch than any record has, so what an earlier process
/// writes late never replaces what it left. The lowest bits of an epoch are random: two processes that claim
/// one at the same moment get two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StateVersion(pub u64);

impl StateVersion {
    const COUNTER_BITS: u32 = 26;
    const NONCE_BITS: u32 = 16;

    /// The epoch of the process that wrote the record.
    pub fn epoch(self) -> u64 {
        self.0 >> Self::COUNTER_BITS
    }

    /// The first version of an epoch above that of `self`. Versions of before there were epochs, microseconds
    /// of the Unix epoch, count as very low ones.
    pub fn next_epoch(self, nonce: u16) -> StateVersion {
        let generation = (self.0 >> (Self::COUNTER_BITS + Self::NONCE_BITS)) + 1;
        StateVersion(((generation << Self::NONCE_BITS) | u64::from(nonce)) << Self::COUNTER_BITS)
    }

    /// This version and all above it of the same epoch.
    pub fn to_end_of_epoch(self) -> Range<u64> {
        self.0..(self.epoch() + 1) << Self::COUNTER_BITS
    }
}

/// What a Mirror has on record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateRows {
    /// The newest record of each item, without those that are deleted.
    pub rows: Vec<StateRow>,
    /// The highest version of any record that was read, deleted ones too.
    pub newest: StateVersion,
}

/// A database that rows are replicated into. Cheap to clone; clones share connections.
pub trait Destination: Clone + Send + Sync + 'static {
    /// Rows being built.
    type Batch: TableBatch;
    /// A streaming insert.
    type Insert: Insert<Batch = Self::Batch>;

    /// An empty batch for a table. The schema is kept by the batch.
    fn batch(&self, table: &TableSchema) -> Result<Self::Batch, DestinationError>;

    /// Makes what belongs to walferry itself (the state table). Idempotent.
    fn prepare(&self) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Makes the target table, or checks that the one that is there fits, and gives it columns and width that
    /// it lacks, as [`Destination::add_columns`] does. Never drops or empties it. Idempotent.
    fn ensure_table(&self, table: &TableSchema) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Which of the target tables exist with all that is needed, in that order, by one query for all. For the
    /// others [`Destination::require_columns`] says what is wrong.
    fn usable_targets(
        &self,
        tables: &[&TableSchema],
    ) -> impl Future<Output = Result<Vec<bool>, DestinationError>> + Send;

    /// Adds columns (indices into `table.columns`) to the target table where they are missing, and makes any
    /// of its columns wider whose type there doesn't hold every value of the one that is needed, where
    /// nothing can be lost. Idempotent. Gives those of the columns that were there already, with rows that
    /// may show something else in them than the source's old rows.
    fn add_columns(
        &self,
        table: &TableSchema,
        columns: &[usize],
    ) -> impl Future<Output = Result<Vec<usize>, DestinationError>> + Send;

    /// Whether the target of a table that was written to can still be written. A column that lacks room for
    /// NULL alone gets it; one that was made narrower is an error, for values may have been cut short there.
    fn require_columns(
        &self,
        table: &TableSchema,
    ) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Inserts a batch, fenced (see the module's contract). The batch is left as it is, so that it can be
    /// sent again.
    fn insert(
        &self,
        table: &TableSchema,
        batch: &Self::Batch,
        fence: &str,
    ) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Begins a streaming insert, fenced.
    fn open_insert(
        &self,
        table: &TableSchema,
        fence: &str,
    ) -> impl Future<Output = Result<Self::Insert, DestinationError>> + Send;

    /// The highest version of any row in the target table, deleted ones too; [`Version::ZERO`] when there is
    /// none. Nothing of an earlier insert with this fence becomes visible any more once it has been answered.
    fn newest_version(
        &self,
        table: &TableSchema,
        fence: &str,
    ) -> impl Future<Output = Result<Version, DestinationError>> + Send;

    /// The same of streamed rows: those that were copied do not count.
    fn newest_streamed_version(
        &self,
        table: &TableSchema,
        fence: &str,
    ) -> impl Future<Output = Result<Version, DestinationError>> + Send;

    /// Deletes every row (of `rows`) whose version is in `versions`, with the end of it as the version of the
    /// deletion. Durable when it answers. Rows of other versions are never touched, however late it runs.
    /// Rows that it has deleted stay so when they are inserted again.
    fn delete(
        &self,
        table: &TableSchema,
        rows: Rows,
        versions: Range<Version>,
        fence: &str,
    ) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Empties the target table of rows whose versions mean nothing, before anything else is written to it.
    fn empty(
        &self,
        table: &TableSchema,
        fence: &str,
    ) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Answers when nothing of an earlier insert with this fence becomes visible any more.
    fn await_fence(&self, fence: &str) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// The state records of a Mirror, all of them or those of these items.
    fn load_state(
        &self,
        mirror: &str,
        items: Option<&[&str]>,
    ) -> impl Future<Output = Result<StateRows, DestinationError>> + Send;

    /// The records of all Mirrors whose items begin with `prefix`, each with its Mirror's UID.
    fn load_items(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<Vec<(String, StateRow)>, DestinationError>> + Send;

    /// The statement that removes a Mirror's record, for somebody to run.
    fn release_statement(&self, mirror: &str, item: &str) -> String;

    /// What identifies each target table, so that another one under its name is noticed, in that order;
    /// `None` where it does not exist, or nothing identifies it.
    fn identities(
        &self,
        tables: &[&TableSchema],
    ) -> impl Future<Output = Result<Vec<Option<String>>, DestinationError>> + Send;

    /// Whether the target table has rows, deleted ones too.
    fn has_rows(&self, table: &TableSchema) -> impl Future<Output = Result<bool, DestinationError>> + Send;

    /// Writes state records with this version, durable when it answers.
    fn save_state(
        &self,
        mirror: &str,
        rows: &[StateRow],
        version: StateVersion,
    ) -> impl Future<Output = Result<(), DestinationError>> + Send;

    /// Removes all state records of a Mirror, in an epoch above theirs. Idempotent.
    fn drop_state(&self, mirror: &str) -> impl Future<Output = Result<(), DestinationError>> + Send;
}

/// What kind of fault a destination met: all that the retry policy needs to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Will probably pass: connection refused or cut, time-out, server shutting down, disk full, read-only
    /// mode. Like `Overloaded`, it is waited for as long as it lasts, unless one table alone meets it while
    /// statements on others are accepted.
    Transient,
    /// The destination asks for less: memory limit, too many queries at the same time.
    Overloaded,
    /// One table asks for less: too many parts. Where it does so for ten minutes, it is its own fault.
    TableOverloaded,
    /// A refusal that doesn't say whether it will pass. What is refused so for minutes, table by table, is
    /// the table's own fault.
    Unclear,
    /// This table alone can't continue: its target is missing, has other columns, refuses a value.
    Table,
    /// The server refuses the statement until somebody acts: a missing privilege, a forbidden setting, an
    /// unknown database, a wrong password. Nothing can continue; but where one table's statements alone are
    /// refused so for half a minute, it is that table's fault.
    Denied,
    /// Nothing can continue until somebody acts, whatever the statement: TLS, settings, an old release.
    Refused,
}

/// A fault of the destination.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DestinationError {
    /// What kind of fault.
    pub kind: ErrorKind,
    /// A CamelCase reason for a condition, such as `DestinationTableMissing`.
    pub reason: Reason,
    /// What was being done, and what went wrong; never row values or secrets.
    pub message: String,
    /// What helps, in order.
    pub remedies: Vec<Remedy>,
    /// The driver's error, if there is one.
    #[source]
    pub source: Option<Box<dyn StdError + Send + Sync>>,
}
