//! The engine: copies what is there, streams every change, and moves the slot only past what is durable.
//!
//! Knows PostgreSQL and the [`Destination`] contract; knows no destination's driver and no Kubernetes.

mod destination;
mod error;
mod monitor;
mod policy;
mod retry;
mod session;
mod snapshot;
mod stream;
mod table;

pub use destination::{
    Destination, DestinationError, ErrorKind, Insert, Op, Rows, StateRow, StateRows, StateVersion,
    TableBatch, ValueError,
};
pub use error::{Error, failure, failure_of_table};
pub use monitor::publication::{inherited, leave_to_ancestor};
pub use policy::{Policy, policy};
pub use session::{
    admission::{Admission, Ask, MirrorRefused, Refused, Verdict},
    diagnosis,
    position::PositionRecord,
    provision::publication_comment,
    resync::{Apart, copies_over_rows, require_withheld, resync_due, set_apart, unknown_names},
    supervisor::run,
};
pub use stream::Commit;
pub use table::{
    named_columns::{NamedColumns, renamed as columns_renamed},
    schema::keep_target_names,
    store::{FormerTable, MirrorState, ResyncRecord, SourceRecord, StateStore, TablePhase, TableRecord},
    targets::{
        Claim, claims, describe as describe_claim, foreign as foreign_claim, give_way, waits_for_target,
    },
};
