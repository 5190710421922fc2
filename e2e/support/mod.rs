//! What every test needs: servers, a pair of fresh databases, the program, and a way to compare both sides.

mod authority;
mod clickhouse;
mod gateway;
mod http;
mod impostor;
mod keeper;
mod lab;
mod printed;
mod proxy;
mod servers;
mod site;
mod standby;
mod wait;
mod walferry;
mod writer;

pub use authority::{Authority, Identity};
pub use clickhouse::ClickHouse;
pub use gateway::Gateway;
pub use http::get;
pub use impostor::{Attack, Impostor};
pub use keeper::Keeper;
pub use lab::{Lab, Mirror};
pub use printed::{Printed, printed};
pub use proxy::{Direction, Proxy, TlsProxy};
pub use servers::Server;
pub use site::Site;
pub use standby::Standby;
pub use wait::{DEADLINE, eventually, until};
pub use walferry::{Outcome, Run, advice, parse_lsn, told, walferry, walferry_with_input};
pub use writer::Writer;

/// The oldest and the newest PostgreSQL that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pg {
    V14,
    V18,
}

/// Makes a test of `fn name(pg: Pg)` for each PostgreSQL.
#[macro_export]
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod on_14 { $(#[test] fn $name() { super::$name($crate::support::Pg::V14) })* }
        mod on_18 { $(#[test] fn $name() { super::$name($crate::support::Pg::V18) })* }
    };
}
