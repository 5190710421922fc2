//! Ordinary SQL sessions.

use std::{future::Future, time::Duration};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, NoTls, config::SslMode};

use super::{
    Error,
    wire::transport::{Purpose, Transport},
};
use crate::model::PostgresEndpoint;

/// The longest time from the first packet to a session that takes statements.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings that every connection pins, because a role or database may set others.
///
/// The first five decide the text form of values (<https://www.postgresql.org/docs/current/runtime-config-client.html>), the
/// sixth that of types' names.
/// `row_security=off` makes a read that a policy would cut short an error instead of a silent loss of rows. The
/// time-outs would end a long copy or an idle session; `jit` costs more than a chunk's read gains from it.
pub(super) const PINNED_SETTINGS: [(&str, &str); 11] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("quote_all_identifiers", "off"),
    ("row_security", "off"),
    ("statement_timeout", "0"),
    ("idle_session_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("jit", "off"),
];

/// A session for SQL, with its connection driven by a task of its own.
///
/// Dropping it closes the connection; a statement that is running at the server then goes on until it notices.
#[derive(Debug)]
pub struct Session {
    /// Runs statements.
    pub client: Client,
    version: u32,
    driver: JoinHandle<()>,
}

impl Session {
    /// Opens a session with the settings that walferry relies on pinned (client encoding UTF-8, ISO dates, UTC, …).
    /// `application_name` shows in `pg_stat_activity`.
    ///
    /// # Errors
    /// [`Error`]: no connection within 10 s, TLS, log-in, or what the server says.
    pub async fn connect(endpoint: &PostgresEndpoint, application_name: &str) -> Result<Session, Error> {
        within_connect_timeout(endpoint, Self::open(endpoint, application_name)).await
    }

    async fn open(endpoint: &PostgresEndpoint, application_name: &str) -> Result<Session, Error> {
        let transport = Transport::connect(endpoint, Purpose::Copy).await?;
        let options: Vec<_> =
            PINNED_SETTINGS.iter().map(|(name, value)| format!("-c {name}={value}")).collect();
        let mut config = Config::new();
        config
            .user(&endpoint.username)
            .password(endpoint.password.expose())
            .dbname(&endpoint.database)
            .application_name(application_name)
            .options(options.join(" "))
            // The transport has negotiated TLS already.
            .ssl_mode(SslMode::Disable);
        let (client, connection) =
            config.connect_raw(transport, NoTls).await.map_err(|error| log_in_error(endpoint, error))?;
        let driver = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "session ended");
            }
        });
        let mut session = Session { client, version: 0, driver };
        let row = session.client.query_one("SELECT current_setting('server_version_num')::int4", &[]).await?;
        let version: i32 = row.try_get(0)?;
        session.version = version.unsigned_abs();
        Ok(session)
    }

    /// The server's version as `server_version_num` gives it: 180004 for 18.4.
    pub fn server_version_num(&self) -> u32 {
        self.version
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Gives `connecting` [`CONNECT_TIMEOUT`].
pub(super) async fn within_connect_timeout<T>(
    endpoint: &PostgresEndpoint,
    connecting: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
        Err(Error::ConnectTimeout {
            host: endpoint.host.clone(),
            port: endpoint.port,
            seconds: CONNECT_TIMEOUT.as_secs(),
        })
    })
}

fn log_in_error(endpoint: &PostgresEndpoint, error: tokio_postgres::Error) -> Error {
    match Error::from(error) {
        Error::Server { sqlstate, message, detail, hint } => {
            Error::from_server(&endpoint.username, &sqlstate, message, detail, hint)
        }
        other => other,
    }
}
