//! ClickHouse: client, DDL, types, column encoders, state and the destination.

mod bounded;
mod client;
mod database;
pub mod ddl;
mod defaults;
pub mod difference;
mod error;
mod exception;
mod expression;
mod insert;
pub mod layout;
pub mod names;
pub mod native;
mod policy;
pub mod quote;
mod retention;
mod settings;
pub mod state;
pub mod target;
#[cfg(test)]
mod test_support;
pub mod types;

pub use client::{Client, OLDEST_VERSION, QueryStream, ServerVersion};
pub use database::Database;
pub use defaults::constant;
pub use error::{Error, Misfit, TableProblem};
pub use insert::BlockInsert;
