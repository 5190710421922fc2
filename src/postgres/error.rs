//! The one error of the PostgreSQL layer.

use std::io;

use super::catalog::Parted;
use crate::{
    fault::{Reason, Remedy, causes},
    model::TableId,
    tls::TlsError,
};

/// Bytes of a message or a row that are not what the protocol promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field reaches past the end.
    #[error("message ends at byte {at}, in the middle of {field}")]
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Offset of the field's first byte.
        at: usize,
    },
    /// A message type that protocol version 1 doesn't have.
    #[error("unknown message type 0x{0:02x}")]
    UnknownMessage(u8),
    /// A letter or number outside the set that the field allows.
    #[error("unexpected {field} 0x{value:02x}")]
    Unexpected {
        /// Which field.
        field: &'static str,
        /// What it was.
        value: u8,
    },
    /// A name isn't UTF-8 although the session's encoding is.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// Bytes are left after the last field.
    #[error("{0} bytes are left after the last field")]
    TrailingBytes(usize),
    /// A row has another number of columns than was asked for.
    #[error("a row has {found} columns where {expected} were asked for")]
    ColumnCount {
        /// Columns asked for.
        expected: usize,
        /// Columns found.
        found: usize,
    },
    /// A negative or impossible length.
    #[error("impossible length {0}")]
    Length(i64),
}

/// What can go wrong with PostgreSQL. Messages never hold a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host name has no address, or nothing answers there.
    #[error("cannot connect to {host}:{port}: {source}")]
    Connect {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// The system's error.
        source: io::Error,
    },
    /// The server did not accept and greet us in time.
    #[error("cannot connect to {host}:{port}: no answer within {seconds} s")]
    ConnectTimeout {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// How long we waited.
        seconds: u64,
    },
    /// The server took what we sent and then said nothing for too long.
    #[error("PostgreSQL did not answer within {seconds} s; is the server overloaded, or stopped?")]
    NoAnswer {
        /// How long we waited.
        seconds: u64,
    },
    /// The TLS settings themselves are wrong.
    #[error(transparent)]
    TlsSettings(#[from] TlsError),
    /// The server speaks plain text only.
    #[error(
        "{host}:{port} does not offer TLS; set ssl = on at the server, or tls.mode: Disable to send everything in plain text"
    )]
    TlsRefused {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with {host}:{port} failed: {}", crate::tls::explain(.source))]
    Tls {
        /// Host name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// What rustls says.
        source: io::Error,
    },
    /// The server does not let this role in.
    #[error("cannot log in as {username}: {message}")]
    Authentication {
        /// The role.
        username: String,
        /// The server's words (SQLSTATE class 28), or ours.
        message: String,
    },
    /// The server refused or failed a statement.
    #[error("{message} (SQLSTATE {sqlstate}){}", suffix(.detail, .hint))]
    Server {
        /// The five-character code.
        sqlstate: String,
        /// The primary message.
        message: String,
        /// The server's DETAIL.
        detail: Option<String>,
        /// The server's HINT.
        hint: Option<String>,
    },
    /// The server sent something that the protocol doesn't allow here, or we were about to.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// A row is longer than walferry holds.
    #[error(
        "a row has {} MiB, more than the {} MiB that walferry holds at most",
        .bytes >> 20,
        super::wire::LONGEST_ROW >> 20
    )]
    RowTooLong {
        /// Its length in its wire form.
        bytes: usize,
    },
    /// A message or row could not be decoded.
    #[error("malformed data from the server: {0}")]
    Decode(#[from] DecodeError),
    /// The connection was cut.
    #[error("connection to PostgreSQL lost: {0}")]
    Io(#[from] io::Error),
    /// The server ended the conversation without an error message.
    #[error("PostgreSQL closed the connection")]
    Closed,
    /// The SQL driver failed for another reason than a server error.
    #[error("PostgreSQL session: {}", with_cause(.0))]
    Driver(#[source] tokio_postgres::Error),
    /// A table that the Mirror names is not there.
    #[error("table {table} does not exist{hint}")]
    TableMissing {
        /// The table.
        table: TableId,
        /// Close names as `; did you mean …?`, or empty.
        hint: String,
    },
    /// A column that the Mirror names is not there.
    #[error("table {table}: {list} names column {column}, which does not exist")]
    UnknownColumn {
        /// The table.
        table: TableId,
        /// The field that names it, such as `columns.exclude`.
        list: &'static str,
        /// The column.
        column: String,
    },
    /// A name that the Mirror's entry of a table gives no longer means the column that it was resolved to.
    #[error("table {table}: {parted}")]
    ColumnRenamed {
        /// The table.
        table: TableId,
        /// The name and its column.
        parted: Box<Parted>,
    },
    /// The table can't be mirrored as the Mirror asks.
    #[error("table {table}: {message}")]
    Schema {
        /// The table.
        table: TableId,
        /// What is wrong.
        message: String,
        /// What helps.
        remedies: Vec<Remedy>,
    },
    /// Statements that a standby does not take.
    #[error("the source is a standby, where the catalog can't be changed")]
    Standby {
        /// The statements, in their order.
        statements: String,
    },
    /// A publication that only its owner, or that of its tables, can change.
    #[error(
        "publication {publication} has to be changed, and only a role with the privileges of {owners} can do that"
    )]
    NotOwner {
        /// The publication.
        publication: String,
        /// The owners of the publication and of its tables whose privileges the session lacks.
        owners: String,
        /// The statements, in their order and in one transaction.
        statements: String,
    },
    /// The server lacks something we need.
    #[error("{what} is not supported: {message}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// Since when it is there, or what to do instead.
        message: String,
    },
}

/// The names of conditions that values of rows cause: those of class 22, whose messages quote the value, and
/// feature_not_supported, which a function gives for an argument that it doesn't take.
fn value_condition(sqlstate: &str) -> Option<&'static str> {
    Some(match sqlstate {
        "0A000" => "feature_not_supported",
        "22001" => "string_data_right_truncation",
        "22003" => "numeric_value_out_of_range",
        "22004" => "null_value_not_allowed",
        "22007" => "invalid_datetime_format",
        "22008" => "datetime_field_overflow",
        "22009" => "invalid_time_zone_displacement_value",
        "22011" => "substring_error",
        "22012" => "division_by_zero",
        "2201B" => "invalid_regular_expression",
        "2201E" => "invalid_argument_for_logarithm",
        "2201F" => "invalid_argument_for_power_function",
        "2201G" => "invalid_argument_for_width_bucket_function",
        "22021" => "character_not_in_repertoire",
        "22023" => "invalid_parameter_value",
        "22025" => "invalid_escape_sequence",
        "22030" => "duplicate_json_object_key_value",
        "22032" => "invalid_json_text",
        "22033" => "invalid_sql_json_subscript",
        "22P02" => "invalid_text_representation",
        "22P03" => "invalid_binary_representation",
        "22P05" => "untranslatable_character",
        other if other.starts_with("22") => "data_exception",
        _ => return None,
    })
}

/// The driver keeps the system's words out of its own.
pub(super) fn with_cause(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn suffix(detail: &Option<String>, hint: &Option<String>) -> String {
    [detail, hint].into_iter().flatten().map(|text| format!("; {text}")).collect()
}

impl Error {
    /// The remedies, where they follow from the error alone.
    pub fn remedies(&self) -> Vec<Remedy> {
        match self {
            Error::Schema { remedies, .. } => remedies.clone(),
            Error::Standby { statements } => {
                vec![Remedy::run_at_source(statements.as_str()).at_primary()]
            }
            Error::NotOwner { owners, statements, .. } => {
                vec![Remedy::run_at_source(format!("-- as {owners}\n{statements}"))]
            }
            _ => Vec::new(),
        }
    }

    /// A server's error from its fields; class 28 (invalid authorization) becomes [`Error::Authentication`].
    pub(crate) fn from_server(
        username: &str,
        sqlstate: &str,
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    ) -> Self {
        if sqlstate == "28P01" || sqlstate == "28000" {
            return Error::Authentication { username: username.to_owned(), message };
        }
        Error::Server { sqlstate: sqlstate.to_owned(), message, detail, hint }
    }

    /// A server's error to a statement that reads rows: of one that a value caused, whose message may quote
    /// it, only the name is kept.
    pub(super) fn of_rows(
        sqlstate: String,
        message: String,
        detail: Option<String>,
        hint: Option<String>,
    ) -> Self {
        match value_condition(&sqlstate).filter(|_| sqlstate.starts_with("22")) {
            Some(name) => Error::Server { sqlstate, message: name.to_owned(), detail: None, hint: None },
            None => Error::Server { sqlstate, message, detail, hint },
        }
    }

    /// A server's error to a statement that reads no row, in all its words.
    pub(super) fn of_statement(error: tokio_postgres::Error) -> Self {
        let Some(server) = error.as_db_error() else { return Error::Driver(error) };
        Error::Server {
            sqlstate: server.code().code().to_owned(),
            message: server.message().to_owned(),
            detail: server.detail().map(str::to_owned),
            hint: server.hint().map(str::to_owned),
        }
    }

    /// The name and number of the condition, where a value of a row may have caused it.
    pub fn value_condition(&self) -> Option<String> {
        let sqlstate = self.sqlstate()?;
        Some(format!("{} (SQLSTATE {sqlstate})", value_condition(sqlstate)?))
    }

    /// The SQLSTATE, where the error came from the server.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Error::Server { sqlstate, .. } => Some(sqlstate),
            _ => None,
        }
    }

    /// Whether it says that the server is a standby and takes no changes.
    pub(super) fn is_standby_error(&self) -> bool {
        // feature_not_supported of BEGIN READ WRITE, read_only_sql_transaction of a statement
        matches!(self.sqlstate(), Some("0A000" | "25006"))
    }

    /// Whether it says that the server, or this session alone, is being shut down, or that the server takes
    /// no sessions now.
    pub fn is_shutdown(&self) -> bool {
        // admin_shutdown, cannot_connect_now
        matches!(self.sqlstate(), Some("57P01" | "57P03"))
    }

    /// Whether it says that a table, or its schema, is not there.
    pub fn is_missing_table(&self) -> bool {
        // undefined_table, invalid_schema_name
        matches!(self, Error::TableMissing { .. }) || matches!(self.sqlstate(), Some("42P01" | "3F000"))
    }

    /// Whether it says that a value has bytes that mean nothing in the database's encoding.
    pub fn is_encoding_error(&self) -> bool {
        // character_not_in_repertoire, untranslatable_character
        matches!(self.sqlstate(), Some("22021" | "22P05"))
    }

    /// Whether the server refuses a query for what it asks (other than for a missing privilege, which may be
    /// granted), or can't read what is asked for: it will do so again.
    pub fn refuses_query(&self) -> bool {
        let refused = |state: &str| state.starts_with("42") && state != "42501";
        self.sqlstate().is_some_and(|state| refused(state) || state.starts_with("XX"))
    }

    /// Whether trying again later, unchanged, may succeed: the network, a restart, a lack of resources, a
    /// lost race.
    pub fn is_transient(&self) -> bool {
        self.transient_reason().is_some()
    }

    /// The reason of an error after which trying again later, unchanged, may succeed; `None` of any other.
    pub fn transient_reason(&self) -> Option<Reason> {
        match self {
            Error::Connect { .. }
            | Error::ConnectTimeout { .. }
            | Error::NoAnswer { .. }
            | Error::Io(_)
            | Error::Closed => Some(Reason::SourceUnreachable),
            // rustls reports a certificate or protocol fault as InvalidData; the rest is the network's.
            Error::Tls { source, .. }
                if source.kind() != io::ErrorKind::InvalidData
                    || crate::tls::is_transmission_error(source) =>
            {
                Some(Reason::SourceUnreachable)
            }
            Error::Server { sqlstate, .. } => transient_condition(sqlstate),
            Error::Driver(error) if error.is_closed() || caused_by_io(error) => {
                Some(Reason::SourceUnreachable)
            }
            _ => None,
        }
    }
}

/// The reason for a SQLSTATE that passes.
///
/// Codes are those of <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn transient_condition(sqlstate: &str) -> Option<Reason> {
    match sqlstate {
        // query_canceled (by a user, a time-out or the recovery of a standby), lock_not_available
        "57014" | "55P03" => return Some(Reason::SourceStatementCanceled),
        // object_in_use: the slot
        "55006" => return Some(Reason::SourceSlotInUse),
        _ => {}
    }
    match sqlstate.get(..2)? {
        // connection exception
        "08" => Some(Reason::SourceUnreachable),
        // transaction rollback: serialization_failure, deadlock_detected
        "40" => Some(Reason::SourceStatementCanceled),
        // insufficient resources: connections, memory, disk
        "53" => Some(Reason::SourceOverloaded),
        // operator intervention: shutdown, crash, start-up, a database that was dropped, a session that was
        // idle
        "57" if sqlstate.starts_with("57P0") => Some(Reason::SourceUnavailable),
        _ => None,
    }
}

fn caused_by_io(error: &tokio_postgres::Error) -> bool {
    causes(error).any(|error| error.is::<io::Error>())
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        match Error::of_statement(error) {
            Error::Server { sqlstate, message, detail, hint } => {
                Error::of_rows(sqlstate, message, detail, hint)
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str) -> Error {
        Error::from_server("app", sqlstate, "no".into(), None, Some("do".into()))
    }

    #[test]
    fn distinguishes_transient_and_terminal_errors() {
        for code in ["57P01", "57P03", "53300", "55006", "40001", "08006", "57014"] {
            assert!(server(code).is_transient(), "{code}");
        }
        for code in ["42501", "42P01", "55000", "58P01", "3D000", "28P01"] {
            assert!(!server(code).is_transient(), "{code}");
        }
        assert!(Error::Closed.is_transient());
        for (code, reason) in [
            ("40001", Reason::SourceStatementCanceled),
            ("40P01", Reason::SourceStatementCanceled),
            ("55P03", Reason::SourceStatementCanceled),
            ("57014", Reason::SourceStatementCanceled),
            ("55006", Reason::SourceSlotInUse),
            ("53300", Reason::SourceOverloaded),
            ("57P01", Reason::SourceUnavailable),
            ("57P03", Reason::SourceUnavailable),
            ("08006", Reason::SourceUnreachable),
        ] {
            assert_eq!(server(code).transient_reason(), Some(reason), "{code}");
        }
        assert!(server("42P01").is_missing_table() && !server("42703").is_missing_table());
    }

    #[test]
    fn messages_hold_no_value_of_a_row() {
        let words = |state: &str| {
            let detail = Some("4111".to_owned());
            Error::of_rows(
                state.to_owned(),
                "unit \"4111\" not recognized".to_owned(),
                detail.clone(),
                detail,
            )
        };
        assert_eq!(words("22023").to_string(), "invalid_parameter_value (SQLSTATE 22023)");
        assert_eq!(words("22XYZ").to_string(), "data_exception (SQLSTATE 22XYZ)");
        assert_eq!(words("0A000").value_condition().unwrap(), "feature_not_supported (SQLSTATE 0A000)");
        assert!(words("42501").to_string().contains("not recognized"));
        assert_eq!(words("42501").value_condition(), None);
    }

    #[test]
    fn keeps_the_servers_words() {
        assert_eq!(server("42501").to_string(), "no (SQLSTATE 42501); do");
        assert_eq!(server("42501").sqlstate(), Some("42501"));
        assert_eq!(server("28P01").to_string(), "cannot log in as app: no");
    }
}
