//! The vocabulary that every layer shares: positions, tables, columns, tuples, progress and settings.
//!
//! Nothing here knows a driver, a server or Kubernetes.

mod config;
mod liveness;
mod lsn;
mod operations;
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
pub use liveness::{Liveness, Outside};
pub use lsn::{Lsn, ParseLsnError};
pub use operations::{Operation, Operations};
pub use place::SlotPlace;
pub use progress::{MirrorFailure, MirrorPhase, Progress, TableProgress, TableState};
pub use redacted::Password;
pub use report::{AutomaticResyncs, LagReport, MirrorReport, SlotReport, SlotRisk, TableReport};
pub use sync::lock;
pub use table::{Column, IdentityKind, SourceType, TableId, TableKind, TableSchema};
pub use transaction::{Position, TransactionSnapshot};
pub use tuple::{Cell, CellKind, Tuple};
pub use version::{Steps, Version};
