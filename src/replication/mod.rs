//! The engine: copies what is there, streams every change, and moves the slot only past what is durable.
//!
//! Knows PostgreSQL and the [`Destination`] contract; knows no destination's driver and no Kubernetes.

mod admission;
mod backoff;
mod destination;
pub mod diagnosis;
mod drift;
mod epoch;
mod error;
mod failover;
mod guard;
mod named_columns;
mod policy;
mod position;
mod provision;
mod resync;
mod schema_change;
mod snapshot;
mod state;
mod stream;
mod table;
mod target_watch;
mod targets;
mod watch;
mod worker;

pub use admission::{Admission, Ask, MirrorRefused, Refused, Verdict};
pub use destination::{
    Destination, DestinationError, ErrorKind, Insert, Op, Rows, StateRow, StateRows, StateVersion,
    TableBatch, ValueError,
};
pub use error::{Error, failure, failure_of_table};
pub use guard::{inherited, leave_to_ancestor};
pub use named_columns::{NamedColumns, name_columns};
pub use policy::{Policy, policy};
pub use position::PositionRecord;
pub use provision::publication_comment;
pub use resync::{Apart, copies_over_rows, require_withheld, resync_due, set_apart, unknown_names};
pub use schema_change::keep_target_names;
pub use state::{FormerTable, MirrorState, ResyncRecord, SourceRecord, StateStore, TablePhase, TableRecord};
pub use stream::Commit;
pub use targets::{
    Claim, claims, describe as describe_claim, foreign as foreign_claim, give_way, waits_for_target,
};
pub use worker::run;
