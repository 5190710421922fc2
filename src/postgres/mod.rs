//! PostgreSQL: sessions, catalog, slot, publication, wire protocol and decoders.
//!
//! Two kinds of connection. A [`session::Session`] runs ordinary SQL. A [`wire::Connection`] carries bulk
//! data (COPY and the replication stream) through a receive buffer of our own, so that rows are decoded where
//! they arrived.

pub mod catalog;
pub mod copy;
mod error;
mod guard;
pub mod pgoutput;
pub mod publication;
pub mod quote;
pub mod refetch;
pub mod removal;
pub mod session;
pub mod shared_snapshot;
pub mod slot;
pub mod source_status;
pub mod visibility;
pub mod wire;

pub use error::{DecodeError, Error};
