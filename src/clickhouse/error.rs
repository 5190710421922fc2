//! The one error of the ClickHouse layer.

use std::{error::Error as StdError, time::Duration};

use clickhouse::error::Error as DriverError;

use super::types::TypeError;
use crate::{
    fault::{causes, innermost},
    tls::{self, TlsError},
};

/// Most bytes of a server's message that are kept.
const LONGEST_MESSAGE: usize = 1000;

/// Codes whose messages quote the value that could not be read, converted or accepted.
const CODES_WITH_VALUES: [i32; 22] =
    [6, 25, 26, 27, 38, 41, 53, 69, 70, 72, 117, 130, 131, 321, 376, 407, 441, 467, 469, 675, 676, 691];

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
        /// The exception's number, <https://github.com/ClickHouse/ClickHouse/blob/master/src/Common/ErrorCodes.cpp>.
        code: i32,
        /// The exception's message, without values of rows.
        message: String,
    },
    /// Something answered that isn't ClickHouse, or a proxy on the way to it.
    #[error("{url} answered without a ClickHouse error code: {answer}")]
    NotClickHouse {
        /// Scheme, host and port.
        url: String,
        /// The beginning of the answer.
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
    /// The target table can't be made as the Mirror asks, or the one that is there doesn't fit.
    #[error("table {table}: {problem}")]
    Table {
        /// Target table.
        table: String,
        /// Why, and what to do.
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
    #[error("what is there does not fit: {0}")]
    Conflict(String),
    /// `engine.partitionBy`, `engine.ttl`, `engine.settings` or `engine.orderBy` can't work.
    #[error("{0}")]
    Engine(String),
}

impl Error {
    /// The exception's number, where ClickHouse itself answered.
    pub fn code(&self) -> Option<i32> {
        match self {
            Error::Server { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// What the driver's error means. `limit` is the driver's time-out.
    pub(super) fn from_driver(error: DriverError, url: &str, limit: Duration) -> Error {
        let url = url.to_owned();
        match error {
            DriverError::BadResponse(answer) => match parse_exception(&answer) {
                Some((code, message)) => Error::Server { code, message },
                None => Error::NotClickHouse { url, answer: shortened(&answer, 200) },
            },
            DriverError::TimedOut => Error::Timeout { url, seconds: limit.as_secs() },
            DriverError::Network(source) if tls::tells_damage(source.as_ref()) => {
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

/// Number and message of `Code: 60. DB::Exception: … (UNKNOWN_TABLE) (version …)`.
fn parse_exception(answer: &str) -> Option<(i32, String)> {
    let rest = answer.trim_start().strip_prefix("Code: ")?;
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let code = rest[..digits].parse().ok()?;
    let message = rest[digits..].trim_start_matches('.').trim_start().trim_start_matches("DB::Exception: ");
    let message = message.rfind(" (version ").map_or(message, |end| &message[..end]);
    let message = message.trim_end().trim_end_matches('.');
    let message = match CODES_WITH_VALUES.contains(&code) {
        true => without_values(message),
        false => message.to_owned(),
    };
    Some((code, shortened(&message, LONGEST_MESSAGE)))
}

/// The message without what may be a row's value: the text in quotes, and what follows `Column values:`.
fn without_values(message: &str) -> String {
    let name = message.rsplit_once(" (").filter(|(_, name)| name.ends_with(')')).map_or("", |(_, name)| name);
    let message = message.split("Column values:").next().unwrap_or_default();
    let mut safe = String::with_capacity(message.len());
    let mut quoted: Option<char> = None;
    let mut escaped = false;
    for character in message.lines().next().unwrap_or_default().chars() {
        match quoted {
            Some(_) if escaped => escaped = false,
            Some(_) if character == '\\' => escaped = true,
            Some(quote) if character == quote => {
                quoted = None;
                safe.extend(['…', character]);
            }
            Some(_) => {}
            None => {
                if matches!(character, '\'' | '"') {
                    quoted = Some(character);
                }
                safe.push(character);
            }
        }
    }
    if !name.is_empty() && !safe.contains(name) {
        safe.push_str(" (");
        safe.push_str(name);
    }
    safe
}

/// At most `most` bytes, on a character's boundary, on one line.
fn shortened(text: &str, most: usize) -> String {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let mut line: String = text[..end].split_whitespace().collect::<Vec<_>>().join(" ");
    if end < text.len() {
        line.push('…');
    }
    line
}

fn is_tls(error: &(dyn StdError + 'static)) -> bool {
    causes(error).any(|error| error.is::<rustls::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_exceptions() {
        let text = "Code: 60. DB::Exception: Unknown table expression identifier 'app.t' in scope SELECT * FROM app.t. \
                    Maybe you meant app.d?. (UNKNOWN_TABLE) (version 26.7.2.1)\n";
        let (code, message) = parse_exception(text).unwrap();
        assert_eq!(code, 60);
        assert_eq!(
            message,
            "Unknown table expression identifier 'app.t' in scope SELECT * FROM app.t. Maybe you meant app.d?. (UNKNOWN_TABLE)"
        );
        assert_eq!(parse_exception("Code: 516").unwrap().0, 516);
        assert_eq!(
            parse_exception("Code: 999. Coordination::Exception: lost (KEEPER_EXCEPTION)").unwrap().0,
            999
        );
        for text in ["", "502 Bad Gateway", "<html>", "Code: x. DB::Exception"] {
            assert_eq!(parse_exception(text), None, "{text}");
        }
    }

    #[test]
    fn keeps_values_out_of_messages() {
        let of = |text: &str| parse_exception(text).unwrap().1;
        assert_eq!(
            of(
                "Code: 469. DB::Exception: Constraint `c` for table app.z is violated at row 1. Expression: (a > 5). \
                Column values: a = 3. (VIOLATED_CONSTRAINT) (version 26.7.2.1)"
            ),
            "Constraint `c` for table app.z is violated at row 1. Expression: (a > 5). (VIOLATED_CONSTRAINT)"
        );
        assert_eq!(
            of(
                "Code: 6. DB::Exception: Cannot parse string 'geh\\'eim' as UInt8: syntax error: while pushing to view \
                app.mv. (CANNOT_PARSE_TEXT) (version 26.7.2.1)"
            ),
            "Cannot parse string '…' as UInt8: syntax error: while pushing to view app.mv. (CANNOT_PARSE_TEXT)"
        );
        let open = of("Code: 27. DB::Exception: expected x before: 'never closed");
        assert!(!open.contains("never"), "{open}");
        assert!(of(&format!("Code: 1. DB::Exception: {}", "ü".repeat(5000))).len() < 1100);
    }
}
