//! What can be wrong, as a closed list of reasons that every other layer names.

pub mod reason;

pub use reason::{Disposition, Group, Reason, Side, optional};
