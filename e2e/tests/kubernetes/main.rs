//! Tests on a real Kubernetes: a real apiserver, real pods, a real PostgreSQL and a real ClickHouse. Run them
//! with `./e2e/test --test kubernetes`.
//!
//! All tests of a process share one cluster, which starts with the first of them and ends with the process.
//! It is started by `e2e/tools/cluster`, which needs root, or it is the one whose kubeconfig `E2E_KUBECONFIG`
//! names; then kubectl and helm are taken from PATH. Each test has its own namespace
//! ([`harness::TestNamespace`]) and does not affect others. A test that stops the operator or the apiserver
//! uses [`harness::TestNamespace::alone`], which runs it while no other test runs.
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
