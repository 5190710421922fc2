//! The vocabulary that every layer shares: positions, tables, columns, tuples, progress and settings.
//!
//! Nothing here knows a driver, a server or Kubernetes.

mod config;
mod failure;
mod liveness;
mod lsn;
mod operations;
mod phase;
mod place;
mod progress;
mod redacted;
mod report;
mod sync;
mod table;
mod transaction;
mod tuple;
mod version;

pub use config::{
    BatchSettings, ClickHouseEndpoint, ClientIdentity, DeletionPolicy, INSERTS_SUFFIX, MirrorIdentity,
    OutOfRange, PostgresEndpoint, ReplicatorConfig, SnapshotMode, SnapshotSettings, TableSpec, TlsMode,
    TlsSettings,
};
pub use failure::MirrorFailure;
pub use liveness::{Liveness, Outside};
pub use lsn::{Lsn, ParseLsnError};
pub use operations::{Operation, Operations};
pub use phase::{MirrorPhase, TableState};
pub use place::SlotPlace;
pub use progress::{Progress, TableProgress};
pub use redacted::Password;
pub use report::{AutomaticResyncs, LagReport, MirrorReport, SlotReport, SlotRisk, TableReport};
pub use sync::lock;
pub use table::{Column, IdentityKind, SourceType, TableId, TableKind, TableSchema};
pub use transaction::{Position, TransactionSnapshot};
pub use tuple::{Cell, CellKind, Tuple};
pub use version::{Steps, Version};
