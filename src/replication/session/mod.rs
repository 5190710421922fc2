//! The life of a session: what is made and checked before the stream, what runs beside it, and what follows a
//! fault.

mod add_tables;
pub(super) mod admission;
pub(super) mod claims;
mod context;
pub mod diagnosis;
mod failover;
mod known_tables;
pub(super) mod position;
mod position_check;
mod provision;
pub(super) mod publication;
mod reconcile;
pub(super) mod recorder;
pub(super) mod resync;
mod run;
pub(super) mod slot;
mod start;
pub(super) mod supervisor;
mod suspended;
mod timeline;
