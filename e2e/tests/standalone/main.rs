//! End-to-end tests: the real program between a real PostgreSQL and a real ClickHouse. Run them with
//! `./e2e/test`.
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

#[path = "../../support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "shared with the chaos test")]
mod support;

mod admission;
mod bad_input;
mod column_lists;
mod column_names;
mod commands;
mod destination;
mod failover;
mod faults;
mod files;
mod filters;
mod findings;
mod gone;
mod hostile;
mod identity;
mod inheritance;
mod injection;
mod keyless;
mod large;
mod late;
mod layout;
mod life;
mod names;
mod operations;
mod partitions;
mod pgbench;
mod positions;
mod privileges;
mod profiles;
mod publication;
mod refusals;
mod remedies;
mod renames;
mod replicate;
mod restores;
mod resync;
mod schema;
mod schema_changes;
mod shutdown;
mod snapshot;
mod standby;
mod stored_values;
mod stream;
mod targets;
mod teardown;
mod tls;
mod toast;
mod truncate;
mod types;
mod values;
mod widening;
