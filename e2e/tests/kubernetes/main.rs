//! Tests on a real Kubernetes: a real apiserver, real pods, a real PostgreSQL and a real ClickHouse. Run them with
//! `./e2e/test --test kubernetes`.
//!
//! All tests of a process share one cluster, which starts with the first of them and ends with the process. It is one of
//! `e2e/tools/cluster`, which takes root, or the one whose kubeconfig `E2E_KUBECONFIG` names, where kubectl and helm come from PATH.
//! A test has a namespace of its own ([`harness::TestNamespace`]) and disturbs nobody there. One that disturbs all others, because it
//! stops the operator, the apiserver or the like, takes [`harness::TestNamespace::alone`] and so has the cluster to itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks"
)]

mod harness;
#[path = "../../support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the tests that need no Kubernetes")]
mod support;

mod bad_input;
mod crds;
mod faults;
mod finalizer;
mod install;
mod lifecycle;
mod mirror;
mod peers;
mod status;
