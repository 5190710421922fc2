//! Checks of the destination server: connection, version, database and the user's privileges.

use super::{report::Check, source::is_local};
use crate::{
    clickhouse::{Error, OLDEST_VERSION, ServerVersion, quote::ident},
    fault::Reason,
    model::{ClickHouseEndpoint, TlsMode},
    replication::{self, DestinationError, ErrorKind},
};

pub(super) const SUBJECT: &str = "destination";

/// What walferry does in its database.
pub(super) const PRIVILEGES: [&str; 5] = ["SELECT", "INSERT", "CREATE TABLE", "ALTER ADD COLUMN", "TRUNCATE"];
/// Privileges on the state table, without which replication is impossible.
pub(super) const STATE_PRIVILEGES: &str = "SELECT, INSERT, CREATE TABLE";
/// With it, columns of targets are made wider as those of the source are; without it a table that needs it
/// fails alone.
pub(super) const WIDENING: &str = "ALTER MODIFY COLUMN";
/// The engine of target and state tables; using it takes a privilege of its own where
/// `table_engines_require_grant` is on.
pub(super) const ENGINE: &str = "ReplacingMergeTree";

/// Facts about the server and the user.
#[derive(Clone, Debug)]
pub(super) struct ServerFacts {
    pub(super) version: ServerVersion,
    /// Whether the user sees the database.
    pub(super) database_exists: bool,
    /// The user's setting `readonly`: 0 writes, 1 and 2 don't.
    pub(super) read_only: bool,
    /// Privileges that the user lacks; `None` where the release has no CHECK GRANT.
    pub(super) missing_privileges: Option<MissingPrivileges>,
}

/// Privileges that the user lacks.
#[derive(Clone, Debug, Default)]
pub(super) struct MissingPrivileges {
    /// Those of [`PRIVILEGES`] in the database.
    pub(super) privileges: Vec<&'static str>,
    /// The use of [`ENGINE`].
    pub(super) engine: bool,
    /// [`WIDENING`] in the database, which a Mirror can live without.
    pub(super) widening: bool,
    /// Whether the state table lacks none of [`STATE_PRIVILEGES`]: each target is then checked on its own.
    pub(super) state: bool,
}

impl MissingPrivileges {
    /// The statements that grant them.
    fn grants(&self, endpoint: &ClickHouseEndpoint) -> Vec<String> {
        let (database, user) = (ident(&endpoint.database), ident(&endpoint.username));
        let widening = self.widening.then_some(WIDENING);
        let on_tables: Vec<_> = self.privileges.iter().copied().chain(widening).collect();
        let on_tables = (!on_tables.is_empty())
            .then(|| format!("GRANT {} ON {database}.* TO {user};", on_tables.join(", ")));
        let engine = self.engine.then(|| format!("GRANT TABLE ENGINE ON {ENGINE} TO {user};"));
        on_tables.into_iter().chain(engine).collect()
    }
}

/// A statement, or the connection itself, failed.
pub(super) fn failed(name: &str, error: Error) -> Check {
    let DestinationError { kind, reason, message, remedies, .. } = DestinationError::from(error);
    // A profile that refuses settings stays so until it is changed.
    use ErrorKind::{Overloaded, TableOverloaded, Transient, Unclear};
    let transient = matches!(kind, Transient | Overloaded | TableOverloaded | Unclear)
        && reason != Reason::DestinationReadOnly;
    Check::failure(SUBJECT, name, reason, message).remedied(remedies).transient(transient)
}

/// The Mirror's own records can't be read.
pub(super) fn state_unusable(error: &replication::Error) -> Check {
    Check::failure(SUBJECT, "state", Reason::DestinationStateUnusable, error.to_string())
}

/// All checks of the server and the user.
pub(super) fn server(endpoint: &ClickHouseEndpoint, facts: &ServerFacts) -> Vec<Check> {
    let mut checks = vec![connection(endpoint), version(&facts.version)];
    if facts.database_exists {
        checks.push(Check::ok(SUBJECT, "database", endpoint.database.as_str()));
    } else {
        checks.push(
            Check::failure(
                SUBJECT,
                "database",
                Reason::DestinationDatabaseMissing,
                format!(
                    "{} does not exist, or {} has no privilege in it",
                    endpoint.database, endpoint.username
                ),
            )
            .run_at_destination(format!("CREATE DATABASE {};", ident(&endpoint.database))),
        );
    }
    checks.push(privileges(endpoint, facts));
    checks
}

fn connection(endpoint: &ClickHouseEndpoint) -> Check {
    let host = endpoint.url.split("://").nth(1).unwrap_or_default().split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let at = format!("{} as {}", endpoint.url, endpoint.username);
    let warning = |what: &str, fix: &str| {
        Check::warning(SUBJECT, "connection", Reason::DestinationTlsFailed, format!("{at}, {what}")).act(fix)
    };
    if endpoint.url.starts_with("https://") {
        match endpoint.tls.mode {
            TlsMode::VerifyFull => {
                Check::ok(SUBJECT, "connection", format!("{at}, CA and host name verified"))
            }
            TlsMode::VerifyCa => Check::ok(SUBJECT, "connection", format!("{at}, CA verified")),
            TlsMode::Require | TlsMode::Disable => warning(
                "TLS without verifying the server's certificate",
                "set clickhouse.tls.mode to VerifyFull, with caSecretRef for a private CA",
            ),
        }
    } else if is_local(host) {
        Check::ok(SUBJECT, "connection", format!("{at}, plain text"))
    } else {
        warning(
            "plain text: rows and the password are readable on the network",
            "use https:// in clickhouse.url (port 8443 by default)",
        )
    }
}

fn version(version: &ServerVersion) -> Check {
    let shown = format!("ClickHouse {version}");
    if version.is_supported() {
        return Check::ok(SUBJECT, "version", shown);
    }
    let (major, minor) = OLDEST_VERSION;
    Check::failure(
        SUBJECT,
        "version",
        Reason::DestinationVersionUnsupported,
        format!("{shown}, walferry needs {major}.{minor} or later"),
    )
    .act(format!("upgrade the server to ClickHouse {major}.{minor} or later"))
}

fn privileges(endpoint: &ClickHouseEndpoint, facts: &ServerFacts) -> Check {
    const NAME: &str = "grants";
    if facts.read_only {
        return Check::failure(
            SUBJECT,
            NAME,
            Reason::DestinationReadOnly,
            format!("{} is read-only", endpoint.username),
        )
        .act("set readonly to 0 in the user's settings profile");
    }
    let Some(missing) = &facts.missing_privileges else {
        let all =
            MissingPrivileges { privileges: PRIVILEGES.to_vec(), engine: true, widening: true, state: false };
        let detail = "this release can't show a user's privileges (it has no CHECK GRANT)";
        return Check::warning(SUBJECT, NAME, Reason::DestinationAccessDenied, detail)
            .run_at_destination(all.grants(endpoint).join("\n"));
    };
    let grants = missing.grants(endpoint);
    if grants.is_empty() {
        return Check::ok(SUBJECT, NAME, format!("{} has the required privileges", endpoint.username));
    }
    if missing.privileges.is_empty() && !missing.engine {
        let detail = format!(
            "{} lacks {WIDENING}: a table whose column gets a wider type at the source, or takes NULL, will fail alone",
            endpoint.username
        );
        return Check::warning(SUBJECT, NAME, Reason::DestinationAccessDenied, detail)
            .run_at_destination(grants.join("\n"));
    }
    if missing.state && !missing.engine {
        let detail = format!(
            "{} lacks {} on the whole database; each target table needs it, and one that lacks it fails alone",
            endpoint.username,
            missing.privileges.join(", ")
        );
        return Check::warning(SUBJECT, NAME, Reason::DestinationAccessDenied, detail)
            .run_at_destination(grants.join("\n"));
    }
    let engine = missing.engine.then(|| format!("TABLE ENGINE {ENGINE}"));
    let lacks: Vec<_> =
        missing.privileges.iter().map(|privilege| (*privilege).to_owned()).chain(engine).collect();
    Check::failure(
        SUBJECT,
        NAME,
        Reason::DestinationAccessDenied,
        format!("{} lacks {}", endpoint.username, lacks.join(", ")),
    )
    .run_at_destination(grants.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::super::{report::Outcome, tests::destination as endpoint};
    use super::*;
    use crate::model::TlsSettings;

    fn facts() -> ServerFacts {
        let version =
            ServerVersion { major: 26, minor: 7, text: "26.7.2.1".to_owned(), timezone: "UTC".to_owned() };
        ServerFacts {
            version,
            database_exists: true,
            read_only: false,
            missing_privileges: Some(MissingPrivileges::default()),
        }
    }

    fn find(facts: &ServerFacts, name: &str) -> Check {
        server(&endpoint(), facts).into_iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn a_prepared_server_is_fine() {
        assert!(server(&endpoint(), &facts()).iter().all(|check| check.outcome == Outcome::Ok));
    }

    #[test]
    fn missing_privileges_have_their_grants() {
        let privileges = vec!["INSERT", "TRUNCATE"];
        let missing = MissingPrivileges {
            privileges: privileges.clone(),
            engine: true,
            ..MissingPrivileges::default()
        };
        let check = find(&ServerFacts { missing_privileges: Some(missing), ..facts() }, "grants");
        assert_eq!(check.detail, "writer lacks INSERT, TRUNCATE, TABLE ENGINE ReplacingMergeTree");
        assert_eq!(
            check.fix().as_deref(),
            Some(
                "GRANT INSERT, TRUNCATE ON `analytics`.* TO `writer`;\n\
                 GRANT TABLE ENGINE ON ReplacingMergeTree TO `writer`;"
            )
        );
        let missing = MissingPrivileges { widening: true, ..MissingPrivileges::default() };
        let check = find(&ServerFacts { missing_privileges: Some(missing), ..facts() }, "grants");
        assert_eq!(check.outcome, Outcome::Warning);
        assert_eq!(check.fix().as_deref(), Some("GRANT ALTER MODIFY COLUMN ON `analytics`.* TO `writer`;"));
        // What single tables lack keeps no other from starting.
        let missing = MissingPrivileges { privileges, state: true, ..MissingPrivileges::default() };
        let check = find(&ServerFacts { missing_privileges: Some(missing), ..facts() }, "grants");
        assert_eq!(check.outcome, Outcome::Warning);
        let unknown = find(&ServerFacts { missing_privileges: None, ..facts() }, "grants");
        assert_eq!(unknown.outcome, Outcome::Warning);
    }

    #[test]
    fn a_server_that_can_not_be_written_is_refused() {
        let read_only = find(&ServerFacts { read_only: true, ..facts() }, "grants");
        assert_eq!(read_only.reason, Some(Reason::DestinationReadOnly));
        let missing = find(&ServerFacts { database_exists: false, ..facts() }, "database");
        assert_eq!(missing.fix().as_deref(), Some("CREATE DATABASE `analytics`;"));
        let mut old = facts();
        old.version.major = 22;
        assert_eq!(find(&old, "version").reason, Some(Reason::DestinationVersionUnsupported));
    }

    #[test]
    fn plain_text_is_warned_of_unless_it_stays_here() {
        let outcome = |url: &str, mode| {
            let tls = TlsSettings { mode, ..TlsSettings::default() };
            connection(&ClickHouseEndpoint { url: url.to_owned(), tls, ..endpoint() }).outcome
        };
        assert_eq!(outcome("http://ch.example:8123", TlsMode::Disable), Outcome::Warning);
        assert_eq!(outcome("http://localhost:8123", TlsMode::Disable), Outcome::Ok);
        assert_eq!(outcome("http://[::1]:8123/", TlsMode::Disable), Outcome::Ok);
        assert_eq!(outcome("https://ch.example:8443", TlsMode::Require), Outcome::Warning);
        assert_eq!(outcome("https://ch.example:8443", TlsMode::VerifyFull), Outcome::Ok);
    }
}
