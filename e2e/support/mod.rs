//! Shared by all end-to-end tests: servers, a pair of new databases per test, the program, and comparisons of
//! source and destination.

mod clickhouse;
mod clickhouse_users;
mod credentials;
mod edited_mirror;
mod failure;
mod finding;
mod gateway;
mod given;
mod http;
mod malicious_server;
mod printed;
mod proxy;
mod script_process;
mod servers;
mod standby;
mod test_ca;
mod test_env;
mod wait;
mod walferry;
mod writer;

pub use clickhouse::ClickHouse;
pub use clickhouse_users::TargetUsers;
pub use credentials::Credentials;
pub use edited_mirror::EditedMirror;
pub use failure::{Failure, failed_for, stalled_for};
pub use finding::{Finding, UNTIL_CAUGHT_UP, findings};
pub use gateway::Gateway;
pub use given::{print_skipped, skip_with_given_servers};
pub use http::get;
pub use malicious_server::{Attack, MaliciousServer};
pub use printed::{Printed, printed};
pub use proxy::{Direction, Proxy, TlsProxy};
pub use script_process::ScriptProcess;
pub use servers::Server;
pub use standby::Standby;
pub use test_ca::{Identity, TestCa};
pub use test_env::{Mirror, TestEnv};
pub use wait::{DEADLINE, eventually, until};
pub use walferry::{Outcome, Run, advice, failed_message, parse_lsn, walferry, walferry_with_input};
pub use writer::Writer;

/// The oldest and the newest PostgreSQL versions that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pg {
    V14,
    V18,
}

/// Declares one test of `fn name(pg: Pg)` for each PostgreSQL version. A given server is a PostgreSQL 18.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_14 {
            $(#[test] fn $name() {
                $crate::needs_own_server!();
                super::$name($crate::support::Pg::V14)
            })*
        }
        mod on_18 { $(#[test] fn $name() { super::$name($crate::support::Pg::V18) })* }
    };
}
