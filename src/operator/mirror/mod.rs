//! The controller of Mirrors.

#[allow(dead_code, reason = "the driver calls these")]
mod build;
#[allow(dead_code, reason = "the driver calls these")]
mod observe;

pub use build::ReplicatorSettings;
