//! What the source's catalog says of the tables, the server and the role that asks.
//!
//! Every statement works on PostgreSQL 14 to 18 and takes the tables as they are when it runs.

mod altered;
mod ancestors;
mod closest;
mod fingerprint;
mod live;
mod locks;
mod names;
mod relation;
mod resolve;
mod server;
mod storage;
mod table;
mod types;

pub use altered::altered_since_used;
pub use ancestors::published_ancestors;
pub use fingerprint::{
    CatalogFingerprint, TypeFingerprint, came_with_rows, emptied_since_joined, fingerprints,
    flushed_position, identity_came_later, read_lsn,
};
pub(in crate::postgres) use fingerprint::{READ_LSN, TYPE_CLOSURE};
pub use live::{live_columns, live_columns_statement};
pub use locks::{LockHolder, lock_holders};
pub use names::{ColumnList, LiveColumn, NamedColumn, Parted};
pub use relation::{GENERATED_IN_IDENTITY, KeyCandidate, RelationFacts, relations};
pub(in crate::postgres) use server::{CURRENT_LSN, STARTED};
pub use server::{ServerFacts, current_wal_lsn, is_standby, server_facts, server_started, system_identifier};
pub use storage::{
    Storage, file_statement, file_statement_of, in_partition, lock_partition_statement,
    partition_constraint_statement, storage,
};
pub use table::{TableFacts, describe, describe_all, describe_known, table_name, table_oids, with_children};
