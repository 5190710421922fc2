//! Ordinary SQL sessions.

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures::stream::{StreamExt as _, poll_fn};
use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_postgres::{Client, Config, NoTls, config::SslMode, error::SqlState, tls::NoTlsStream};

use super::{
    Error,
    error::with_cause,
    guard::{BoundedStream, CATALOG_ANSWER, ROWS_ANSWER},
    wire::transport::{Purpose, Transport},
};
use crate::model::PostgresEndpoint;

/// The longest time from the first packet to a session that takes statements.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Settings that every connection pins, because a role or database may set others.
///
/// The first five decide the text form of values
/// (<https://www.postgresql.org/docs/current/runtime-config-client.html>), the sixth that of types' names.
/// `row_security=off` makes a read that a policy would cut short an error instead of a silent loss of rows. A
/// transaction that can't write would be taken for that of a standby, and a standby has no serializable ones.
/// The time-outs would end a long copy or an idle session; `jit` costs more than a chunk's read gains from
/// it.
pub(super) const PINNED_SETTINGS: [(&str, &str); 17] = [
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
    ("lock_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("standard_conforming_strings", "on"),
    ("array_nulls", "on"),
    ("jit", "off"),
];

/// Switches off a time-out that would end a long copy, or the stream of a large transaction. Releases before
/// 17 don't know it and would refuse a connection that names it, so it can't be pinned.
pub(super) const WITHOUT_TRANSACTION_TIMEOUT: &str =
    "SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout'";

/// The longest time for a statement of a session, waiting for locks included: then the server ends it, and
/// leaves nothing behind that would keep waiting.
const STATEMENT_TIMEOUT: &str = "300s";

/// How long a session that is closed may take to end what it has begun.
const CLOSES_WITHIN: Duration = Duration::from_secs(1);

/// A session for SQL, with its connection driven by a task of its own.
///
/// Dropping it closes the connection: within a second what is running is ended in order; a statement that
/// takes longer continues at the server until that notices.
#[derive(Debug)]
pub struct Session {
    /// Runs statements.
    pub client: Client,
    version: u32,
    /// Whether the present statement may take any time.
    patient: Arc<AtomicBool>,
    /// How the connection has ended, once it has.
    end: watch::Receiver<Option<End>>,
    driver: JoinHandle<Option<tokio_postgres::Error>>,
    /// Signals to the driver, by being dropped, that the session is closed.
    _open: oneshot::Sender<Infallible>,
}

/// How a session has ended that the client has not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The server said that it shuts down, or an administrator has terminated this session.
    Shutdown,
    /// By anything else, such as the network.
    Lost,
}

impl End {
    fn of(error: &tokio_postgres::Error) -> End {
        match error.code() {
            Some(&(SqlState::ADMIN_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW)) => End::Shutdown,
            _ => End::Lost,
        }
    }
}

impl Session {
    /// Opens a session with the settings that walferry relies on pinned (client encoding UTF-8, ISO dates,
    /// UTC, …).
    /// `application_name` shows in `pg_stat_activity`.
    ///
    /// # Errors
    /// [`Error`]: no connection within 10 s, TLS, authentication, or the server's error.
    pub async fn connect(endpoint: &PostgresEndpoint, application_name: &str) -> Result<Session, Error> {
        let opened = Self::open(endpoint, application_name, CATALOG_ANSWER);
        within_connect_timeout(endpoint, opened).await
    }

    /// The same for rows of tables, which may be large.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn connect_for_rows(
        endpoint: &PostgresEndpoint,
        application_name: &str,
    ) -> Result<Session, Error> {
        within_connect_timeout(endpoint, Self::open(endpoint, application_name, ROWS_ANSWER)).await
    }

    async fn open(
        endpoint: &PostgresEndpoint,
        application_name: &str,
        longest_answer: usize,
    ) -> Result<Session, Error> {
        let transport = Transport::connect(endpoint, Purpose::Copy).await?;
        let patient = Arc::new(AtomicBool::new(false));
        let transport = BoundedStream::new(transport, longest_answer, Arc::clone(&patient));
        let settings = PINNED_SETTINGS.iter().chain(&[("statement_timeout", STATEMENT_TIMEOUT)]);
        let options: Vec<_> =
            settings.map(|(name, value)| format!("-c {name}={}", value.replace(' ', "\\ "))).collect();
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
        let (ended, end) = watch::channel(None);
        let (open, closed) = oneshot::channel::<Infallible>();
        let mut driver = tokio::spawn(drive(connection, ended, closed));
        let version = format!(
            "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4, ({WITHOUT_TRANSACTION_TIMEOUT})"
        );
        let version = client.query_one(&version, &[]).await;
        let version: i32 = match version.and_then(|row| row.try_get(0)) {
            Ok(version) => version,
            Err(closed) if closed.is_closed() => {
                let reason = (&mut driver).await.ok().flatten();
                return Err(reason.unwrap_or(closed).into());
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Session { client, version: version.unsigned_abs(), patient, end, driver, _open: open })
    }

    /// Runs a statement that may take any time, such as one that reads a whole table.
    ///
    /// # Errors
    /// Those of the statement, and of the settings around it.
    pub async fn patiently<T>(
        &self,
        statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Error> {
        self.client.batch_execute("SET statement_timeout = 0").await?;
        self.patient.store(true, Relaxed);
        let done = statement.await;
        self.patient.store(false, Relaxed);
        let limited =
            self.client.batch_execute(&format!("SET statement_timeout = '{STATEMENT_TIMEOUT}'")).await;
        let answer = done?;
        limited?;
        Ok(answer)
    }

    /// Waits until the connection ends, which is noticed also while no statement runs. Cancel-safe.
    pub async fn ended(&self) -> End {
        let mut end = self.end.clone();
        let ended = end.wait_for(Option::is_some).await.map(|end| *end);
        // The driver goes without a word when the client has closed the connection.
        ended.ok().flatten().unwrap_or(End::Lost)
    }

    /// Closes the session, and waits until it has ended.
    pub async fn close(self) {
        let Session { client, driver, _open: open, .. } = self;
        drop((client, open));
        if let Err(error) = driver.await {
            tracing::debug!(%error, "a session did not end in order");
        }
    }

    /// The server's version as `server_version_num` gives it: 180004 for 18.4.
    pub fn server_version_num(&self) -> u32 {
        self.version
    }
}

/// Whether the server ended the session, or the network did; else the server broke the protocol, or did not
/// answer.
fn is_networks_fault(error: &tokio_postgres::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    error.is_closed()
        || error.as_db_error().is_some()
        || cause.is_some_and(|cause| {
            matches!(cause.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
        })
}

/// Gives `connecting` [`CONNECT_TIMEOUT`].
pub(super) async fn within_connect_timeout<T>(
    endpoint: &PostgresEndpoint,
    connecting: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(CONNECT_TIMEOUT, connecting).await.unwrap_or_else(|_| {
        Err(Error::ConnectTimeout {
            host: endpoint.host.clone(),
            port: endpoint.port,
            seconds: CONNECT_TIMEOUT.as_secs(),
        })
    })
}

/// The connection that a session is driven by.
type Driver = tokio_postgres::Connection<BoundedStream<Transport>, NoTlsStream>;

/// Runs a session until it ends or its owner drops the other end of `closed`, and says why it ended early.
async fn drive(
    mut connection: Driver,
    ended: watch::Sender<Option<End>>,
    closed: oneshot::Receiver<Infallible>,
) -> Option<tokio_postgres::Error> {
    // The driver would log the server's notices, which may hold row values.
    let mut messages = pin!(poll_fn(|context| connection.poll_message(context)));
    let mut fault = pin!(async {
        loop {
            if let Err(error) = messages.next().await? {
                return Some(error);
            }
        }
    });
    let error = tokio::select! {
        error = &mut fault => error?,
        _ = closed => {
            // A server that answers a client which has gone logs a lost connection.
            drop(timeout(CLOSES_WITHIN, fault).await);
            return None;
        }
    };
    ended.send_replace(Some(End::of(&error)));
    // Whose statement this ended hears only that the connection is closed.
    if is_networks_fault(&error) {
        tracing::debug!(%error, "session ended");
    } else {
        let error = with_cause(&error);
        tracing::warn!(error, "session ended");
    }
    Some(error)
}

fn log_in_error(endpoint: &PostgresEndpoint, error: tokio_postgres::Error) -> Error {
    match Error::from(error) {
        Error::Server { sqlstate, message, detail, hint } => {
            Error::from_server(&endpoint.username, &sqlstate, message, detail, hint)
        }
        other => other,
    }
}
