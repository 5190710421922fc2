//! ClickHouse: client, DDL, types, column encoders, state and the destination.

mod bounded;
mod client;
mod database;
pub mod ddl;
mod defaults;
mod error;
mod exception;
mod insert;
pub mod layout;
pub mod native;
mod policy;
pub mod quote;
pub mod state;
pub mod target;
#[cfg(test)]
mod test_support;
pub mod types;

pub use client::{Client, OLDEST_VERSION, QueryStream, ServerVersion};
pub use database::Database;
pub use defaults::constant;
pub use error::{Error, TableProblem};
pub use insert::BlockInsert;
