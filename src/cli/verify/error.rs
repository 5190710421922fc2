//! Why two tables could not be compared.

use crate::{clickhouse, postgres, replication::ValueError};

/// Why two tables could not be compared.
#[derive(Debug, thiserror::Error)]
pub(super) enum VerifyError {
    #[error("source: {0}")]
    Source(#[from] postgres::Error),
    #[error("destination: {0}")]
    Destination(#[from] clickhouse::Error),
    #[error("{0}")]
    Value(#[from] ValueError),
    #[error("destination: {0}")]
    RowBinary(#[from] clickhouse::types::RowBinaryError),
    #[error("{0} does not send its rows in the order of the key; please report this, with the key's types")]
    Order(&'static str),
    #[error("{0}")]
    Unsupported(String),
}
