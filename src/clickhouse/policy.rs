//! What a fault means for the engine: one total function from the layer's error to kind, reason and advice.

mod codes;

pub(super) use codes::name_of;
use codes::{Class, class_of};

use super::{Error, ddl, error::TableProblem};
use crate::{
    fault::{Reason, Remedy},
    replication::{DestinationError, ErrorKind},
};

/// What the message of a statement's exception may quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quotes {
    /// The statement alone: it had nothing to do with rows.
    Statement,
    /// Values of rows that were sent, read or written.
    Rows,
}

/// Whether the message with this code may have a row's value in it.
pub(super) fn may_quote_values(code: i32, quotes: Quotes) -> bool {
    let about_values = matches!(
        class_of(code),
        Class::Statement | Class::Rows | Class::Damaged | Class::Unclear | Class::Elsewhere | Class::Unlisted
    );
    quotes == Quotes::Rows && about_values
}

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
            Error::Type { table, .. } | Error::Creation { table, .. } | Error::Table { table, .. } => {
                format!("table {table}: ")
            }
            _ => String::new(),
        };
        let mut fault = DestinationError::from(self);
        let words = fault.message.strip_prefix(&table).unwrap_or(&fault.message);
        fault.message = format!("{doing}: {words}");
        fault
    }

    /// The same where it was done to a table, with what helps against it there.
    pub(super) fn while_doing_to(self, doing: &str, database: &str, table: &str) -> DestinationError {
        let class = self.code().map(class_of);
        let mut fault = self.while_doing(doing);
        match class {
            Some(Class::WriteOnce) => fault.remedies.push(Remedy::any_of([
                vec![Remedy::run_at_destination(ddl::make_writable(database, table))],
                vec![Remedy::act("put the table on a disk that can be written")],
            ])),
            Some(Class::Damaged) => fault.remedies.push(Remedy::run_at_destination(format!(
                "-- unless a replica or a backup restores its parts\n{}",
                ddl::drop_table(database, table)
            ))),
            Some(Class::Access) => fault.remedies.push(Remedy::act("grant what walferry check names")),
            _ => {}
        }
        fault
    }

    /// Whether it will probably pass, or can be taken back without a change of the statement.
    pub(super) fn passes(&self) -> bool {
        let Policy { kind, reason, .. } = classify(self);
        matches!(kind, ErrorKind::Transient | ErrorKind::Overloaded | ErrorKind::TableOverloaded)
            || reason == Reason::DestinationReadOnly
    }

    /// What a refused statement that makes a table means: whatever the code, the table can't be made so.
    /// Errors of the server and of the user's stays what it is.
    pub(super) fn of_creation(self, table: &str) -> Error {
        match (self.is_of_table(), self) {
            (true, Error::Server { code, message }) => {
                Error::Creation { table: table.to_owned(), refusal: format!("code {code}: {message}") }
            }
            (_, other) => other,
        }
    }

    /// Whether data that the server has stored can't be read.
    pub(super) fn is_damage(&self) -> bool {
        self.code().map(class_of) == Some(Class::Damaged)
    }

    /// Whether it says something of the statement's table: that is, not of the server, the user or the way to
    /// them.
    pub(super) fn is_of_table(&self) -> bool {
        matches!(classify(self).kind, ErrorKind::Table | ErrorKind::Unclear)
    }

    /// The error where it is transient, else what `otherwise` makes of its message.
    pub(super) fn unless_it_passes(self, otherwise: impl FnOnce(String) -> Error) -> Error {
        if self.passes() { self } else { otherwise(self.to_string()) }
    }
}

impl From<Error> for DestinationError {
    fn from(error: Error) -> Self {
        let Policy { kind, reason, advice } = classify(&error);
        let message = match advice {
            "" => error.to_string(),
            advice => format!("{error}; {advice}"),
        };
        let remedies = match &error {
            Error::Table { problem, .. } => problem.remedies().to_vec(),
            _ => Vec::new(),
        };
        DestinationError { kind, reason, message, remedies, source: Some(Box::new(error)) }
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
        Error::Creation { .. } => policy(Table, Reason::DestinationStatementRefused, CORRECT_ENGINE),
        Error::Table { problem: TableProblem::Missing, .. } => {
            policy(Table, Reason::DestinationTableMissing, TABLE_MISSING)
        }
        Error::Table { problem: TableProblem::Conflict(_), .. } => {
            policy(Table, Reason::DestinationTableConflict, "")
        }
        Error::Table { problem: TableProblem::Engine(_), .. } => {
            policy(Table, Reason::DestinationEngineInvalid, "")
        }
        Error::Server { message, .. } if message.contains("No space left on device") => {
            policy(Transient, Reason::DestinationDiskFull, FREE_DISK)
        }
        Error::Server { code, message } => classify_code(*code, message),
    }
}

const CORRECT_ENGINE: &str = "correct the table's engine or columns.types in the Mirror";
const FREE_DISK: &str = "free disk space at the ClickHouse server";
const TABLE_MISSING: &str = "it was dropped or renamed there";

/// By what the code stands for.
fn classify_code(code: i32, message: &str) -> Policy {
    let class = class_of(code);
    let (kind, reason) = kind_and_reason(class);
    policy(kind, reason, advice(class, message))
}

/// Transient are conditions of the server and its environment, which end without walferry's doing; a refusal
/// that shows neither is tried again for a bounded time.
fn kind_and_reason(class: Class) -> (ErrorKind, Reason) {
    use ErrorKind::{Denied, Overloaded, Table, TableOverloaded, Transient, Unclear};
    match class {
        Class::Authentication => (Denied, Reason::DestinationAuthenticationFailed),
        Class::Access => (Denied, Reason::DestinationAccessDenied),
        Class::Constraint => (Denied, Reason::DestinationSettingsForbidden),
        Class::Database => (Denied, Reason::DestinationDatabaseMissing),
        Class::Readonly | Class::TableReadonly => (Transient, Reason::DestinationReadOnly),
        // A setting made it read-only, or the disk can only be written once: that does not end automatically.
        Class::WriteOnce => (Unclear, Reason::DestinationReadOnly),
        Class::Disk => (Transient, Reason::DestinationDiskFull),
        Class::Parts => (TableOverloaded, Reason::DestinationTooManyParts),
        Class::Memory => (Overloaded, Reason::DestinationMemoryLimit),
        Class::Overload => (Overloaded, Reason::DestinationOverloaded),
        Class::Timeout => (Transient, Reason::DestinationTimeout),
        Class::Network => (Transient, Reason::DestinationConnectionLost),
        Class::Replaced => (Transient, Reason::DestinationInsertReplaced),
        Class::Restart => (Transient, Reason::DestinationShuttingDown),
        Class::Keeper => (Transient, Reason::DestinationReplicationFault),
        Class::Storage | Class::Os => (Transient, Reason::DestinationError),
        Class::Truncate => (Table, Reason::DestinationTruncateRefused),
        Class::MissingTable => (Table, Reason::DestinationTableMissing),
        Class::Columns | Class::Nested => (Table, Reason::DestinationTableConflict),
        Class::Statement => (Table, Reason::DestinationStatementRefused),
        Class::Rows => (Table, Reason::DestinationRejectsRows),
        Class::Damaged | Class::Unclear | Class::Elsewhere | Class::Unlisted => {
            (Unclear, Reason::DestinationError)
        }
    }
}

/// What to do about a refusal; empty where the server's own words say it.
fn advice(class: Class, message: &str) -> &'static str {
    match class {
        Class::Authentication => "correct user name and password in the peer's credentialsSecretRef",
        Class::Access => "grant that to the peer's user at the ClickHouse server",
        Class::Constraint => "remove the constraint on this setting from the user's settings profile",
        Class::Database => "run CREATE DATABASE at the ClickHouse server, or correct clickhouse.database",
        Class::Readonly => "the user's settings profile must have readonly = 0",
        Class::TableReadonly => "the replica has lost ClickHouse Keeper, or the disk is read-only",
        Class::Disk => FREE_DISK,
        Class::Parts if message.contains("max_parts_in_total") => {
            "engine.partitionBy makes many partitions, merges do not keep up, or this limit is set too low"
        }
        Class::Parts if message.contains("partitions") => "engine.partitionBy makes too many partitions",
        Class::Parts => "merges do not keep up, or a limit is set too low",
        Class::Memory => "give the ClickHouse server or its user more memory",
        Class::Keeper => "check ClickHouse Keeper and the replicas",
        Class::Storage | Class::Os => "check the ClickHouse server's disks, storage and log",
        Class::Truncate => "raise max_table_size_to_drop at the ClickHouse server",
        Class::MissingTable => TABLE_MISSING,
        Class::Columns => "the target table's columns, or a materialized view on it, were changed manually",
        Class::Nested => {
            "ClickHouse takes arrays whose names begin with the same word and a dot for one Nested, in which all have the same \
             length; give them names without a dot with columns.rename"
        }
        Class::Statement => CORRECT_ENGINE,
        Class::Rows => {
            "the target table's columns or constraints, or a materialized view on it, do not take the rows"
        }
        Class::WriteOnce
        | Class::Overload
        | Class::Timeout
        | Class::Network
        | Class::Replaced
        | Class::Restart
        | Class::Unclear
        | Class::Elsewhere
        | Class::Unlisted => "",
        Class::Damaged => "its stored data is damaged",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Disposition;

    fn of(code: i32) -> (ErrorKind, Reason) {
        let error = DestinationError::from(Error::Server { code, message: "m".to_owned() });
        (error.kind, error.reason)
    }

    #[test]
    fn classifies_server_errors() {
        use ErrorKind::{Denied, Overloaded, Table, TableOverloaded, Transient, Unclear};
        let expected = [
            (60, Table, Reason::DestinationTableMissing),
            (81, Denied, Reason::DestinationDatabaseMissing),
            (16, Table, Reason::DestinationTableConflict),
            (252, TableOverloaded, Reason::DestinationTooManyParts),
            (241, Overloaded, Reason::DestinationMemoryLimit),
            (202, Overloaded, Reason::DestinationOverloaded),
            (439, Overloaded, Reason::DestinationOverloaded),
            (159, Transient, Reason::DestinationTimeout),
            (164, Transient, Reason::DestinationReadOnly),
            (242, Transient, Reason::DestinationReadOnly),
            (774, Unclear, Reason::DestinationReadOnly),
            (243, Transient, Reason::DestinationDiskFull),
            (192, Denied, Reason::DestinationAuthenticationFailed),
            (193, Denied, Reason::DestinationAuthenticationFailed),
            (516, Denied, Reason::DestinationAuthenticationFailed),
            (497, Denied, Reason::DestinationAccessDenied),
            (452, Denied, Reason::DestinationSettingsForbidden),
            (394, Transient, Reason::DestinationInsertReplaced),
            (216, Transient, Reason::DestinationInsertReplaced),
            (210, Transient, Reason::DestinationConnectionLost),
            (999, Transient, Reason::DestinationReplicationFault),
            (53, Table, Reason::DestinationRejectsRows),
            (27, Table, Reason::DestinationRejectsRows),
            (469, Table, Reason::DestinationRejectsRows),
            (115, Table, Reason::DestinationStatementRefused),
            (184, Table, Reason::DestinationStatementRefused),
            (190, Table, Reason::DestinationTableConflict),
            (75, Transient, Reason::DestinationError),
            (49, Unclear, Reason::DestinationError),
            (619, Unclear, Reason::DestinationError),
            (123_456, Unclear, Reason::DestinationError),
        ];
        for (code, kind, reason) in expected {
            assert_eq!(of(code), (kind, reason), "{code}");
        }
    }

    #[test]
    fn kind_and_disposition_of_every_code_agree() {
        for code in codes::all() {
            let (kind, reason) = of(code);
            let expected = match reason.disposition() {
                Disposition::Retry | Disposition::Nothing | Disposition::Restart => {
                    vec![ErrorKind::Transient, ErrorKind::Unclear]
                }
                Disposition::Backoff => vec![ErrorKind::Overloaded, ErrorKind::TableOverloaded],
                Disposition::FailTable => vec![ErrorKind::Table],
                Disposition::Stall => vec![ErrorKind::Denied, ErrorKind::Refused],
            };
            assert!(expected.contains(&kind), "{code}: {kind:?} as {reason}");
        }
    }

    /// Whose fault a refusal of one table's statement is.
    #[derive(Debug, PartialEq, Eq)]
    enum Whose {
        /// The server's, however long it lasts, unless statements on other tables are accepted meanwhile.
        Servers,
        /// The table's after a bounded time, unless the state table is refused too.
        TablesInTime,
        /// The table's immediately.
        Tables,
    }

    fn whose(class: Class) -> Whose {
        match class {
            Class::Readonly
            | Class::TableReadonly
            | Class::Disk
            | Class::Memory
            | Class::Overload
            | Class::Timeout
            | Class::Network
            | Class::Replaced
            | Class::Restart
            | Class::Keeper
            | Class::Storage
            | Class::Os => Whose::Servers,
            // Privileges, settings and databases may be refused to a view on the table, or on the table
            // alone.
            Class::Authentication | Class::Access | Class::Constraint | Class::Database => {
                Whose::TablesInTime
            }
            Class::WriteOnce | Class::Parts => Whose::TablesInTime,
            Class::Damaged | Class::Unclear | Class::Elsewhere | Class::Unlisted => Whose::TablesInTime,
            Class::Truncate
            | Class::MissingTable
            | Class::Columns
            | Class::Nested
            | Class::Statement
            | Class::Rows => Whose::Tables,
        }
    }

    #[test]
    fn each_refusal_of_one_table_ends() {
        for code in codes::all().chain([123_456]) {
            let now = match of(code).0 {
                ErrorKind::Transient | ErrorKind::Overloaded => Whose::Servers,
                ErrorKind::TableOverloaded | ErrorKind::Unclear | ErrorKind::Denied => Whose::TablesInTime,
                ErrorKind::Table => Whose::Tables,
                ErrorKind::Refused => panic!("{code} stalls all tables"),
            };
            assert_eq!(now, whose(class_of(code)), "{code}");
        }
    }

    #[test]
    fn a_table_that_was_made_readonly_has_its_statement() {
        let error = Error::Server { code: 774, message: "Table is read-only".to_owned() };
        let fault = error.while_doing_to("insert into app.t", "app", "t");
        let [Remedy::AnyOf { choices }] = fault.remedies.as_slice() else { panic!("{fault:?}") };
        let statement = "ALTER TABLE `app`.`t` MODIFY SETTING table_readonly = 0";
        assert_eq!(choices[0], [Remedy::run_at_destination(statement)]);
        assert_eq!(fault.message, "insert into app.t: code 774: Table is read-only");
    }

    #[test]
    fn a_missing_privilege_is_granted_before_the_copy() {
        let error = Error::Server { code: 497, message: "Not enough privileges".to_owned() };
        let fault = error.while_doing_to("insert into app.t", "app", "t");
        assert_eq!(fault.remedies, [Remedy::act("grant what walferry check names")]);
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
