//! The engine: copies what is there, streams every change, and moves the slot only past what is durable.
//!
//! Knows PostgreSQL and the [`Destination`] contract; knows no destination's driver and no Kubernetes.

mod destination;
mod error;
mod failure;
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
pub use error::{Error, MirrorRefused, Refused};
pub use failure::{failure, failure_of_table};
pub use monitor::publication::{inherited, leave_to_ancestor};
pub use policy::{Policy, policy};
pub use session::{
    admission::{Admission, Ask, Verdict},
    claims::{
        Claim, claims, describe as describe_claim, foreign as foreign_claim, give_way, waits_for_target,
    },
    diagnosis,
    position::PositionRecord,
    publication::publication_comment,
    resync::{
        TableResyncs, copies_over_rows, require_withheld, resync_due, take_resync_tables, unknown_names,
    },
    supervisor::{RunUntil, run},
};
pub use stream::Commit;
pub use table::{
    named_columns::{NamedColumns, renamed as columns_renamed},
    record::{FormerTable, TablePhase, TableRecord},
    store::{MirrorState, ResyncRecord, SourceRecord, StateStore},
    target_names::keep_target_names,
};
