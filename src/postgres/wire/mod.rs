//! Connections of our own on PostgreSQL's frontend/backend protocol, for COPY and for logical replication.
//!
//! <https://www.postgresql.org/docs/current/protocol.html>. The receive buffer is in our hands: one read
//! takes what the socket holds, and rows are borrowed from it.

mod buffer;
mod connection;
mod copy_out;
mod fields;
#[cfg(any(test, doc, fuzzing))]
pub mod fuzzing;
mod halves;
mod replication;
mod startup;
mod timeline;
pub(super) mod transport;

pub use buffer::LONGEST_ROW;
pub use connection::{Connection, SystemIdentity};
pub use copy_out::CopyOut;
pub use replication::{ReplicationMessage, ReplicationReader, ReplicationWriter};
pub use timeline::TimelineHistory;
pub use transport::Purpose;

#[cfg(test)]
mod tests;
