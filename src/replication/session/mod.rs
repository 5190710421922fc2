//! The life of a session: what is made and checked before the stream, the stream's company, and what comes after a fault.

pub(super) mod admission;
pub mod diagnosis;
mod failover;
pub(super) mod position;
pub(super) mod provision;
pub(super) mod resync;
pub(super) mod supervisor;
