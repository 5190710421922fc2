//! The one error of the ClickHouse layer.

use std::{error::Error as StdError, fmt, time::Duration};

use clickhouse::error::Error as DriverError;

use super::{exception, policy::Quotes, types::TypeError};
use crate::{
    fault::{Remedy, causes, innermost},
    tls::{self, TlsError},
};

/// What can go wrong with ClickHouse. Messages never hold a password or a row's values.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint's settings can't be used.
    #[error("{0}")]
    Settings(String),
    /// The TLS settings can't be used.
    #[error(transparent)]
    TlsSettings(#[from] TlsError),
    /// The TLS handshake failed.
    #[error("TLS handshake with {url} failed: {}", tls::explain(.source.as_ref()))]
    Tls {
        /// Scheme, host and port.
        url: String,
        /// What the client says.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The host name has no address, or nothing answers there.
    #[error("cannot connect to {url}: {}", innermost(.source.as_ref()))]
    Connect {
        /// Scheme, host and port.
        url: String,
        /// What the client says.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The connection was cut.
    #[error("connection to {url} lost: {}", innermost(.source.as_ref()))]
    Transport {
        /// Scheme, host and port.
        url: String,
        /// What the client says.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The server accepted the request and then said nothing for too long.
    #[error("{url} did not answer within {seconds} s")]
    Timeout {
        /// Scheme, host and port.
        url: String,
        /// How long we waited.
        seconds: u64,
    },
    /// ClickHouse refused or failed a statement.
    #[error("code {code}: {message}")]
    Server {
        /// The exception's number,
        /// <https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp>.
        code: i32,
        /// The exception's message, without values of rows.
        message: String,
    },
    /// Something answered that isn't ClickHouse, or a proxy on the way to it. Its body is not shown: it may
    /// hold anything.
    #[error("{url} answered without a ClickHouse error code ({answer})")]
    NotClickHouse {
        /// Scheme, host and port.
        url: String,
        /// Status and content type of the answer.
        answer: String,
    },
    /// An answer that makes no sense, or a request that can't be made.
    #[error("{0}")]
    Protocol(String),
    /// The server is too old.
    #[error("ClickHouse {0} is too old: walferry needs {major}.{minor} or later; upgrade the server", major = super::OLDEST_VERSION.0, minor = super::OLDEST_VERSION.1)]
    TooOld(String),
    /// A column can't be stored as asked.
    #[error("table {table}: {source}")]
    Type {
        /// Target table.
        table: String,
        /// What is wrong.
        source: TypeError,
    },
    /// ClickHouse refuses to make the target table.
    #[error("table {table}: ClickHouse refuses to create it: {refusal}")]
    Creation {
        /// Target table.
        table: String,
        /// What it says.
        refusal: String,
    },
    /// The target table can't be made as the Mirror asks, or the one that is there doesn't fit.
    #[error("table {table}: {problem}")]
    Table {
        /// Target table.
        table: String,
        /// Why, and what helps.
        problem: TableProblem,
    },
}

/// Why a target table can't be made or used as the Mirror asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableProblem {
    /// It isn't there.
    #[error("it does not exist at the destination")]
    Missing,
    /// What is there differs from what is needed.
    #[error("the existing table does not fit: {0}")]
    Conflict(Misfit),
    /// `engine.partitionBy`, `engine.ttl`, `engine.settings` or `engine.orderBy` can't work.
    #[error("{0}")]
    Engine(Misfit),
}

/// What doesn't fit, and what helps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    detail: String,
    /// In order.
    pub remedies: Vec<Remedy>,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

impl TableProblem {
    /// A target that differs from what is needed.
    pub fn conflict(detail: impl Into<String>) -> Self {
        TableProblem::Conflict(Misfit { detail: detail.into(), remedies: Vec::new() })
    }

    /// Settings of the table that can't work.
    pub fn engine(detail: impl Into<String>) -> Self {
        TableProblem::Engine(Misfit { detail: detail.into(), remedies: Vec::new() })
    }

    /// The same, with what helps.
    pub(super) fn remedied(mut self, by: Remedy) -> Self {
        if let TableProblem::Conflict(misfit) | TableProblem::Engine(misfit) = &mut self {
            misfit.remedies.push(by);
        }
        self
    }

    /// What helps, in order.
    pub fn remedies(&self) -> &[Remedy] {
        match self {
            TableProblem::Missing => &[],
            TableProblem::Conflict(misfit) | TableProblem::Engine(misfit) => &misfit.remedies,
        }
    }
}

impl Error {
    /// The exception's code, where ClickHouse answered.
    pub fn code(&self) -> Option<i32> {
        match self {
            Error::Server { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What the driver's error means. `limit` is the driver's time-out, `refused` the head of the last answer
    /// that was none of success.
    pub(super) fn from_driver(
        error: DriverError,
        url: &str,
        limit: Duration,
        quotes: Quotes,
        refused: impl FnOnce() -> String,
    ) -> Error {
        let url = url.to_owned();
        match error {
            DriverError::BadResponse(answer) => match exception::parse(&answer, quotes) {
                Some((code, message)) => Error::Server { code, message },
                None => Error::NotClickHouse { url, answer: refused() },
            },
            DriverError::TimedOut => Error::Timeout { url, seconds: limit.as_secs() },
            DriverError::Network(source) if tls::is_transmission_error(source.as_ref()) => {
                Error::Transport { url, source }
            }
            DriverError::Network(source) if is_tls(source.as_ref()) => Error::Tls { url, source },
            DriverError::Network(source) => {
                match source.downcast_ref::<hyper_util::client::legacy::Error>() {
                    Some(error) if error.is_connect() => Error::Connect { url, source },
                    _ => Error::Transport { url, source },
                }
            }
            other => Error::Protocol(other.to_string()),
        }
    }
}

fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|error| error.is::<rustls::Error>())
}
