//! The Kubernetes operator: a controller for ReplicationPeers and one for Mirrors, led by one process at a time.
//!
//! It never moves a row: it checks, starts one replicator pod for each Mirror, tells how that fares, and cleans up.

pub mod mirror;
