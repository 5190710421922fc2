//! The closed list of reasons that every other layer uses, remedies as data, and the chain of an error's
//! causes.

mod catalogue;
pub mod chain;
pub mod reason;
pub mod remedy;

pub use chain::{causes, error_chain, innermost};
pub use reason::{Disposition, Group, Reason, Side, optional};
pub use remedy::{Remedy, RemedyRenderer};
