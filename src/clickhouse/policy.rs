//! What a fault means for the engine: one total function from the layer's error to kind, reason and advice.

use super::{Error, error::TableProblem};
use crate::fault::Reason;
use crate::replication::{DestinationError, ErrorKind};

/// Kind, reason and what to do about it (empty where the error's own words say it).
struct Policy {
    kind: ErrorKind,
    reason: Reason,
    advice: &'static str,
}

const fn policy(kind: ErrorKind, reason: Reason, advice: &'static str) -> Policy {
    Policy { kind, reason, advice }
}

impl Error {
    /// The fault for the engine, beginning with what was being done.
    pub(super) fn while_doing(self, doing: &str) -> DestinationError {
        // What is being done names the table already.
        let table = match &self {
            Error::Type { table, .. } | Error::Table { table, .. } => format!("table {table}: "),
            _ => String::new(),
        };
        let mut fault = DestinationError::from(self);
        let words = fault.message.strip_prefix(&table).unwrap_or(&fault.message);
        fault.message = format!("{doing}: {words}");
        fault
    }

    /// The error itself where it will probably pass, else what `otherwise` makes of its words.
    pub(super) fn unless_it_passes(self, otherwise: impl FnOnce(String) -> Error) -> Error {
        match classify(&self).kind {
            ErrorKind::Transient | ErrorKind::Overloaded => self,
            ErrorKind::Table | ErrorKind::Refused => otherwise(self.to_string()),
        }
    }
}

impl From<Error> for DestinationError {
    fn from(error: Error) -> Self {
        let Policy { kind, reason, advice } = classify(&error);
        let message = match advice {
            "" => error.to_string(),
            advice => format!("{error}; {advice}"),
        };
        DestinationError { kind, reason, message, source: Some(Box::new(error)) }
    }
}

fn classify(error: &Error) -> Policy {
    use ErrorKind::{Refused, Table, Transient};
    match error {
        Error::Settings(_) | Error::TlsSettings(_) => policy(Refused, Reason::DestinationSettingsInvalid, ""),
        Error::Tls { .. } => policy(Refused, Reason::DestinationTlsFailed, ""),
        Error::Connect { .. } => {
            policy(Transient, Reason::DestinationUnreachable, "check clickhouse.url and that the server runs")
        }
        Error::Transport { .. } => policy(Transient, Reason::DestinationConnectionLost, ""),
        Error::Timeout { .. } => policy(Transient, Reason::DestinationTimeout, ""),
        Error::NotClickHouse { .. } => policy(
            Transient,
            Reason::DestinationNotClickHouse,
            "clickhouse.url must be the HTTP interface, port 8123 or 8443 by default",
        ),
        Error::Protocol(_) => policy(Transient, Reason::DestinationProtocolError, ""),
        Error::TooOld(_) => policy(Refused, Reason::DestinationVersionUnsupported, ""),
        Error::Type { .. } => policy(Table, Reason::DestinationTypeUnsupported, ""),
        Error::Table { problem: TableProblem::Missing, .. } => {
            policy(Table, Reason::DestinationTableMissing, TABLE_MISSING)
        }
        Error::Table { problem: TableProblem::Conflict(_), .. } => {
            policy(Table, Reason::DestinationTableConflict, "")
        }
        Error::Table { problem: TableProblem::Engine(_), .. } => {
            policy(Table, Reason::DestinationEngineInvalid, "")
        }
        Error::Server { message, .. } if message.contains("No space left on device") => disk_full(),
        Error::Server { code, message } => classify_code(*code, message),
    }
}

const TABLE_MISSING: &str = "it was dropped or renamed there";

fn disk_full() -> Policy {
    policy(ErrorKind::Transient, Reason::DestinationDiskFull, "free disk space at the ClickHouse server")
}

/// By number, as in `src/Common/ErrorCodes.cpp` of ClickHouse. A number that isn't here is taken for a passing fault:
/// trying again loses nothing and the reason is told, while giving up a table would need a new copy of it.
fn classify_code(code: i32, message: &str) -> Policy {
    use ErrorKind::{Overloaded, Refused, Table, Transient};
    match code {
        // UNKNOWN_USER, WRONG_PASSWORD, REQUIRED_PASSWORD, IP_ADDRESS_NOT_ALLOWED, AUTHENTICATION_FAILED,
        // USER_EXPIRED, REQUIRED_SECOND_FACTOR
        192..=195 | 516 | 720 | 767 => policy(
            Refused,
            Reason::DestinationAuthenticationFailed,
            "correct user name and password in the peer's credentialsSecretRef",
        ),
        // DATABASE_ACCESS_DENIED, ACCESS_DENIED
        291 | 497 => policy(
            Refused,
            Reason::DestinationAccessDenied,
            "grant that to the peer's user at the ClickHouse server",
        ),
        // SETTING_CONSTRAINT_VIOLATION
        452 => policy(
            Refused,
            Reason::DestinationSettingsForbidden,
            "remove the constraint on this setting from the user's settings profile",
        ),
        // UNKNOWN_DATABASE
        81 => policy(
            Refused,
            Reason::DestinationDatabaseMissing,
            "run CREATE DATABASE at the ClickHouse server, or correct clickhouse.database",
        ),
        // READONLY, READONLY_SETTING, QUERY_IS_PROHIBITED
        164 | 392 | 472 => policy(
            Transient,
            Reason::DestinationReadOnly,
            "the user's settings profile must have readonly = 0",
        ),
        // TABLE_IS_READ_ONLY
        242 => policy(
            Transient,
            Reason::DestinationReadOnly,
            "the replica has lost ClickHouse Keeper, or the disk is read-only",
        ),
        // TABLE_IS_PERMANENTLY_READ_ONLY: someone set it so, or the disk can only be written once; what set it can take it back.
        774 => policy(
            Transient,
            Reason::DestinationReadOnly,
            "run ALTER TABLE … MODIFY SETTING table_readonly = 0, or put the table on a disk that can be written",
        ),
        // NOT_ENOUGH_SPACE
        243 => disk_full(),
        // TOO_MANY_PARTS
        252 => policy(
            Overloaded,
            Reason::DestinationTooManyParts,
            if message.contains("partitions") {
                "engine.partitionBy makes too many partitions"
            } else {
                "merges do not keep up"
            },
        ),
        // MEMORY_LIMIT_EXCEEDED, CANNOT_ALLOCATE_MEMORY, MEMORY_RESERVATION_*
        173 | 241 | 777 | 778 => policy(
            Overloaded,
            Reason::DestinationMemoryLimit,
            "give the ClickHouse server or its user more memory",
        ),
        // QUOTA_EXCEEDED, TOO_MANY_SIMULTANEOUS_QUERIES, LIMIT_EXCEEDED, RECEIVED_ERROR_TOO_MANY_REQUESTS,
        // CANNOT_SCHEDULE_TASK, DISTRIBUTED_TOO_MANY_PENDING_BYTES, TOO_MANY_MUTATIONS, USER_SESSION_LIMIT_EXCEEDED,
        // SERVER_OVERLOADED, TCP_ and HTTP_CONNECTION_LIMIT_REACHED, RESOURCE_LIMIT_EXCEEDED
        201 | 202 | 290 | 364 | 439 | 574 | 692 | 700 | 745 | 749 | 762 | 776 => {
            policy(Overloaded, Reason::DestinationOverloaded, "")
        }
        // TIMEOUT_EXCEEDED, SOCKET_TIMEOUT
        159 | 209 => policy(Transient, Reason::DestinationTimeout, ""),
        // NETWORK_ERROR, ALL_CONNECTION_TRIES_FAILED and the body that ends too early
        3 | 32 | 33 | 95 | 96 | 210 | 279 => policy(Transient, Reason::DestinationConnectionLost, ""),
        // QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING, QUERY_WAS_CANCELLED, …_BY_CLIENT: an insert that a later one replaced
        216 | 394 | 735 => policy(Transient, Reason::DestinationInsertReplaced, ""),
        // ABORTED, TABLE_IS_BEING_RESTARTED, THREAD_WAS_CANCELED
        236 | 677 | 733 => policy(Transient, Reason::DestinationShuttingDown, ""),
        // Replication and ClickHouse Keeper
        224 | 225 | 244 | 254 | 285 | 286 | 319 | 415 | 416 | 571 | 999 => {
            policy(Transient, Reason::DestinationReplicationFault, "check ClickHouse Keeper and the replicas")
        }
        // TABLE_SIZE_EXCEEDS_MAX_DROP_SIZE_LIMIT
        359 => policy(
            Table,
            Reason::DestinationTruncateRefused,
            "raise max_table_size_to_drop at the ClickHouse server",
        ),
        // UNKNOWN_TABLE, TABLE_IS_DROPPED
        60 | 218 => policy(Table, Reason::DestinationTableMissing, TABLE_MISSING),
        // The table has other columns, or a materialized view reads some that it doesn't have.
        7 | 8 | 9 | 10 | 15 | 16 | 20 | 47 => policy(
            Table,
            Reason::DestinationTableConflict,
            "the target table's columns, or a materialized view on it, were changed by hand",
        ),
        // What the server can't make a table of: names, types, expressions and settings come from the Mirror.
        36
        | 42
        | 43
        | 46
        | 48
        | 50
        | 55
        | 56
        | 57
        | 58
        | 62
        | 115
        | 127
        | 161
        | 344
        | 370
        | 377
        | 378
        | 386
        | 431..=433
        | 450
        | 455
        | 471
        | 478
        | 479
        | 524
        | 549
        | 703
        | 724 => policy(
            Table,
            Reason::DestinationStatementRefused,
            "correct the table's engine or columns.types in the Mirror",
        ),
        // A value that the table, its defaults, its constraints or a materialized view on it does not take.
        6
        | 25..=27
        | 38
        | 41
        | 44
        | 53
        | 69
        | 70
        | 72
        | 117
        | 122
        | 130
        | 131
        | 153
        | 321
        | 349
        | 376
        | 395
        | 407
        | 441
        | 467
        | 469
        | 632
        | 675
        | 676
        | 691 => policy(
            Table,
            Reason::DestinationRejectsRows,
            "the target table's columns or constraints, or a materialized view on it, do not take the rows",
        ),
        _ => policy(Transient, Reason::DestinationError, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: i32) -> (ErrorKind, Reason) {
        let error = DestinationError::from(Error::Server { code, message: "m".to_owned() });
        (error.kind, error.reason)
    }

    #[test]
    fn classifies_server_errors() {
        use ErrorKind::{Overloaded, Refused, Table, Transient};
        let expected = [
            (60, Table, Reason::DestinationTableMissing),
            (81, Refused, Reason::DestinationDatabaseMissing),
            (16, Table, Reason::DestinationTableConflict),
            (252, Overloaded, Reason::DestinationTooManyParts),
            (241, Overloaded, Reason::DestinationMemoryLimit),
            (202, Overloaded, Reason::DestinationOverloaded),
            (439, Overloaded, Reason::DestinationOverloaded),
            (159, Transient, Reason::DestinationTimeout),
            (164, Transient, Reason::DestinationReadOnly),
            (242, Transient, Reason::DestinationReadOnly),
            (774, Transient, Reason::DestinationReadOnly),
            (243, Transient, Reason::DestinationDiskFull),
            (192, Refused, Reason::DestinationAuthenticationFailed),
            (193, Refused, Reason::DestinationAuthenticationFailed),
            (516, Refused, Reason::DestinationAuthenticationFailed),
            (497, Refused, Reason::DestinationAccessDenied),
            (394, Transient, Reason::DestinationInsertReplaced),
            (216, Transient, Reason::DestinationInsertReplaced),
            (210, Transient, Reason::DestinationConnectionLost),
            (999, Transient, Reason::DestinationReplicationFault),
            (53, Table, Reason::DestinationRejectsRows),
            (27, Table, Reason::DestinationRejectsRows),
            (469, Table, Reason::DestinationRejectsRows),
            (115, Table, Reason::DestinationStatementRefused),
            (123_456, Transient, Reason::DestinationError),
        ];
        for (code, kind, reason) in expected {
            assert_eq!(of(code), (kind, reason), "{code}");
        }
    }

    #[test]
    fn a_full_disk_shows_through_any_code() {
        let message = "Cannot write to file: errno: 28, strerror: No space left on device".to_owned();
        let error = DestinationError::from(Error::Server { code: 75, message });
        assert_eq!((error.kind, error.reason), (ErrorKind::Transient, Reason::DestinationDiskFull));
        assert!(error.message.contains("free disk space"), "{}", error.message);
    }

    #[test]
    fn messages_say_what_to_do() {
        let error = DestinationError::from(Error::Server {
            code: 81,
            message: "Database x does not exist".to_owned(),
        });
        assert_eq!(
            error.message,
            "code 81: Database x does not exist; run CREATE DATABASE at the ClickHouse server, or correct clickhouse.database"
        );
    }
}
