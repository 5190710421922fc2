//! The HTTP client: connections, authentication, time-outs and the settings that every statement needs.
//!
//! <https://clickhouse.com/docs/interfaces/http>

use std::{collections::HashSet, fmt, future::Future, str::FromStr, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use clickhouse::{insert_formatted::InsertFormatted, query::BytesCursor};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use tokio::sync::OnceCell;
use url::Url;

use super::{
    Error,
    bounded::{BoundedConnector, Held, LastRefusal},
    policy::Quotes,
    settings::{self, Kind},
    types::Features,
};
use crate::{
    model::{ClickHouseEndpoint, TlsMode},
    tls,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time a short statement may take.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time without progress in a stream or an insert, and for an insert's end: a server that delays
/// inserts because of many parts, or that waits for a replaced insert to stop, answers within it.
pub(super) const STREAM_TIMEOUT: Duration = Duration::from_secs(300);
/// How much of an answer the server keeps in its memory, in bytes: more than any that is read as a whole.
const ANSWER_BUFFER: &str = "268435456";
/// For a statement that goes through a whole table; a server that is gone shows sooner, by
/// [`TCP_USER_TIMEOUT`].
const WHOLE_TABLE_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// Shorter than any usual `keep_alive_timeout` of the server (3 s in old releases), so that no connection is
/// picked that the server is about to close.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long unacknowledged bytes may be on their way before the connection counts as dead.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The oldest ClickHouse release that has what walferry uses, by its documentation:
/// `ReplacingMergeTree(version, is_deleted)` came with 23.2, the conversion of types in Native input
/// (`input_format_native_allow_types_conversion`) with 23.3, a long-term release.
pub const OLDEST_VERSION: (u32, u32) = (23, 3);

/// A server's release and time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerVersion {
    /// The year of the release, 26 in 26.7.
    pub major: u32,
    /// The number within the year, 7 in 26.7.
    pub minor: u32,
    /// The whole version, as `version()` shows it.
    pub text: String,
    /// The server's default time zone, as `timezone()` shows it.
    pub timezone: String,
}

impl ServerVersion {
    /// Whether the release has what walferry uses.
    pub fn is_supported(&self) -> bool {
        (self.major, self.minor) >= OLDEST_VERSION
    }

    /// What the release has that decides about types.
    pub fn features(&self) -> Features {
        Features::of(self.major, self.minor)
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A ClickHouse server. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    http: clickhouse::Client,
    /// The same for answers of any length, which are read piece by piece.
    streaming: clickhouse::Client,
    url: String,
    refusal: LastRefusal,
    /// What every statement depends on, once it was asked for.
    server: Arc<OnceCell<Server>>,
}

/// A server's facts, from one query.
#[derive(Debug)]
struct Server {
    /// The release; `None` where the answer isn't one.
    version: Option<ServerVersion>,
    /// Whether the user may not write.
    read_only: bool,
    /// The names of the settings that the release has.
    settings: HashSet<String>,
}

impl Client {
    /// A client for `endpoint`; connects when first used.
    ///
    /// # Errors
    /// [`Error::Settings`] for a URL that isn't one of ClickHouse's HTTP interface, [`Error::TlsSettings`]
    /// for certificates that can't be used.
    pub fn new(endpoint: &ClickHouseEndpoint) -> Result<Client, Error> {
        let url = parse_url(endpoint)?;
        let refusal = LastRefusal::default();
        let drivers =
            [driver(endpoint, &url, Held::All, &refusal)?, driver(endpoint, &url, Held::Errors, &refusal)?];
        // Not the X-ClickHouse-User and -Key headers: those can't carry a password beyond ASCII.
        let credentials = format!("{}:{}", endpoint.username, endpoint.password.expose());
        let authorization = format!("Basic {}", BASE64_STANDARD.encode(credentials));
        let [http, streaming] = drivers.map(|http| {
            http.with_url(url.as_str())
                .with_header("Authorization", authorization.as_str())
                .with_product_info("walferry", env!("CARGO_PKG_VERSION"))
        });
        Ok(Client {
            http,
            streaming,
            url: url.origin().ascii_serialization(),
            refusal,
            server: Arc::default(),
        })
    }

    /// Runs a statement that answers nothing, with a time-out of a minute.
    ///
    /// # Errors
    /// [`Error::Server`] where the server refuses, the other variants where it isn't reached or doesn't
    /// answer.
    pub async fn execute(&self, sql: &str, settings: &[(&str, &str)]) -> Result<(), Error> {
        let query = self.query(Kind::Ddl, sql, settings).await?;
        self.within(STATEMENT_TIMEOUT, Quotes::Statement, query.execute()).await
    }

    /// As [`Client::execute`], for a statement that goes through a whole table: with a timeout of hours.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn execute_long(&self, sql: &str, settings: &[(&str, &str)]) -> Result<(), Error> {
        let query = self.query(Kind::Query, sql, settings).await?;
        self.within(WHOLE_TABLE_TIMEOUT, Quotes::Rows, query.execute()).await
    }

    /// Runs a query with a small result and gives its body, in the format that `sql` names, with a time-out
    /// of a minute.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn query_text(&self, sql: &str, settings: &[(&str, &str)]) -> Result<String, Error> {
        let query = self.query(Kind::Query, sql, settings).await?;
        self.text(query).await
    }

    async fn text(&self, query: clickhouse::query::Query) -> Result<String, Error> {
        // The whole result before the first byte of the answer: an error then has a status of its own. It
        // waits in memory, because the server keeps more than this in a file, and answers with nothing and
        // status 200 where its disk is full.
        let query = query.with_setting("wait_end_of_query", "1").with_setting("buffer_size", ANSWER_BUFFER);
        let mut cursor = query.fetch_bytes("TabSeparated").map_err(|error| self.error(error))?;
        let body = self.within(STATEMENT_TIMEOUT, Quotes::Rows, cursor.collect()).await?;
        String::from_utf8(body.to_vec()).map_err(|_| Error::Protocol("a text answer is not UTF-8".to_owned()))
    }

    /// The server, asked for once and before any other statement.
    async fn server(&self) -> Result<&Server, Error> {
        let ask = || async {
            let query = with_settings(self.http.query_raw(settings::SERVER), &settings::first());
            Ok(parse_server(self.text(query).await?.trim_end()))
        };
        self.server.get_or_try_init(ask).await
    }

    /// The settings that are pinned for a statement.
    async fn pinned(&self, kind: Kind) -> Result<Vec<(&'static str, &'static str)>, Error> {
        Ok(settings::pinned(kind, &self.server().await?.settings))
    }

    /// Starts a query and gives its body as it comes, in the format that `sql` names.
    ///
    /// # Errors
    /// [`Error::Protocol`] where no request can be made of it; the server's own errors come with the first
    /// piece.
    pub async fn query_stream(&self, sql: &str, settings: &[(&str, &str)]) -> Result<QueryStream, Error> {
        let pinned = self.pinned(Kind::Query).await?;
        let query = with_settings(with_settings(self.streaming.query_raw(sql), &pinned), settings);
        let cursor = query.fetch_bytes("RowBinary").map_err(|error| self.error(error))?;
        Ok(QueryStream { cursor, client: self.clone() })
    }

    /// Begins an insert whose data follows, in the format that `sql` names.
    ///
    /// # Errors
    /// As [`Client::execute`], where the server's settings are not known yet.
    pub(super) async fn insert(&self, sql: &str, settings: &[(&str, &str)]) -> Result<InsertStream, Error> {
        let pinned = self.pinned(Kind::Insert).await?;
        // The statement goes before the data: the names of 1,600 columns don't fit a URL.
        let insert = self
            .http
            .insert_formatted_with("")
            .with_timeouts(Some(STREAM_TIMEOUT), Some(STREAM_TIMEOUT))
            .with_setting("wait_end_of_query", "1");
        let settings = pinned.iter().chain(settings);
        let insert = settings.fold(insert, |insert, (name, value)| insert.with_setting(*name, *value));
        Ok(InsertStream { insert, statement: Some(format!("{sql}\n")), client: self.clone(), failed: false })
    }

    /// The server's release.
    ///
    /// # Errors
    /// As [`Client::execute`]; [`Error::Protocol`] where the answer isn't a version.
    pub async fn server_version(&self) -> Result<ServerVersion, Error> {
        let version = self.server().await?.version.clone();
        version.ok_or_else(|| Error::Protocol("version() is not a version, is this ClickHouse?".to_owned()))
    }

    /// Whether the user's profile forbids to write.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn is_read_only(&self) -> Result<bool, Error> {
        Ok(self.server().await?.read_only)
    }

    /// Scheme, host and port, for messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A statement whose answer comes when it has ended.
    async fn query(
        &self,
        kind: Kind,
        sql: &str,
        settings: &[(&str, &str)],
    ) -> Result<clickhouse::query::Query, Error> {
        let pinned = self.pinned(kind).await?;
        let query = with_settings(with_settings(self.http.query_raw(sql), &pinned), settings);
        Ok(query.with_setting("wait_end_of_query", "1"))
    }

    async fn within<T>(
        &self,
        limit: Duration,
        quotes: Quotes,
        work: impl Future<Output = Result<T, clickhouse::error::Error>>,
    ) -> Result<T, Error> {
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map_err(|error| self.read_error(error, quotes)),
            Err(_) => Err(Error::Timeout { url: self.url.clone(), seconds: limit.as_secs() }),
        }
    }

    /// The error of a statement that had to do with rows.
    fn error(&self, error: clickhouse::error::Error) -> Error {
        self.read_error(error, Quotes::Rows)
    }

    fn read_error(&self, error: clickhouse::error::Error, quotes: Quotes) -> Error {
        Error::from_driver(error, &self.url, STREAM_TIMEOUT, quotes, || self.refusal.shown())
    }
}

/// The body of a running query.
pub struct QueryStream {
    cursor: BytesCursor,
    client: Client,
}

impl QueryStream {
    /// The next piece of the body, `None` at its end.
    ///
    /// # Errors
    /// As [`Client::execute`]; also where the query failed after its first rows were sent. Five minutes
    /// without a byte are an [`Error::Timeout`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.client.within(STREAM_TIMEOUT, Quotes::Rows, self.cursor.next()).await
    }
}

/// A running insert. Dropping it closes the connection in the middle of the body, which makes the server give
/// up what it has not written.
pub(super) struct InsertStream {
    insert: InsertFormatted,
    /// What is to be inserted where, until the first piece is sent.
    statement: Option<String>,
    client: Client,
    /// The driver forgets a failure once it has returned it, and would report the insert's end as a success.
    failed: bool,
}

impl InsertStream {
    /// Sends a piece of the body, waiting while the server is not ready for it.
    pub(super) async fn send(&mut self, piece: Bytes) -> Result<(), Error> {
        // Until the piece is sent the insert counts as failed: also when this future is dropped half-way.
        if std::mem::replace(&mut self.failed, true) {
            return Err(already_failed());
        }
        for piece in self.statement.take().map(Bytes::from).into_iter().chain([piece]) {
            self.insert.send(piece).await.map_err(|error| self.client.error(error))?;
        }
        self.failed = false;
        Ok(())
    }

    /// Ends the body and waits until the server says that everything is written.
    pub(super) async fn end(self) -> Result<(), Error> {
        if self.failed {
            return Err(already_failed());
        }
        let client = self.client;
        self.insert.end().await.map_err(|error| client.error(error))
    }
}

fn with_settings(query: clickhouse::query::Query, settings: &[(&str, &str)]) -> clickhouse::query::Query {
    settings.iter().fold(query, |query, (name, value)| query.with_setting(*name, *value))
}

/// The HTTP driver with our connections, which bound the answers that are held in memory.
fn driver(
    endpoint: &ClickHouseEndpoint,
    url: &Url,
    held: Held,
    refusal: &LastRefusal,
) -> Result<clickhouse::Client, Error> {
    let refusal = refusal.clone();
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(Duration::from_secs(15)));
    connector.set_keepalive_interval(Some(Duration::from_secs(5)));
    connector.set_keepalive_retries(Some(3));
    #[cfg(target_os = "linux")]
    connector.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));

    let mut builder = HyperClient::builder(TokioExecutor::new());
    builder.pool_timer(TokioTimer::new()).pool_idle_timeout(POOL_IDLE_TIMEOUT);
    Ok(match url.scheme() {
        "https" => {
            let tls = tls::client_config(&endpoint.tls)?;
            let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http1();
            let inner = https.wrap_connector(connector);
            clickhouse::Client::with_http_client(builder.build(BoundedConnector { inner, held, refusal }))
        }
        _ => {
            let connector = BoundedConnector { inner: connector, held, refusal };
            clickhouse::Client::with_http_client(builder.build(connector))
        }
    })
}

fn already_failed() -> Error {
    Error::Protocol("the insert has failed before".to_owned())
}

fn parse_url(endpoint: &ClickHouseEndpoint) -> Result<Url, Error> {
    let settings = |message: &str| Error::Settings(format!("clickhouse.url: {message}"));
    // The text itself is not repeated: it may hold a password.
    let url = Url::parse(&endpoint.url)
        .map_err(|_| settings("this is not a URL; write it like https://host:8443"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(settings(
            "write ClickHouse's HTTP interface, like http://host:8123 or https://host:8443",
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(settings("user name and password belong into credentialsSecretRef, not into the URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(settings("leave out what follows ? or #; the database is clickhouse.database"));
    }
    if url.scheme() == "https" && endpoint.tls.mode == TlsMode::Disable {
        return Err(settings("the URL is https but tls.mode is Disable; write http, or another mode"));
    }
    Ok(url)
}

/// Reads the answer to [`settings::SERVER`].
fn parse_server(answer: &str) -> Server {
    let mut fields = answer.splitn(4, '\t');
    let mut field = || fields.next().unwrap_or_default();
    let version = parse_version(field(), field());
    let read_only = field() != "0";
    Server { version, read_only, settings: field().split(' ').map(str::to_owned).collect() }
}

fn parse_version(text: &str, timezone: &str) -> Option<ServerVersion> {
    let mut numbers = text.split('.').map(u32::from_str);
    Some(ServerVersion {
        major: numbers.next()?.ok()?,
        minor: numbers.next()?.ok()?,
        text: text.to_owned(),
        timezone: timezone.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Password, TlsSettings};

    fn endpoint(url: &str, mode: TlsMode) -> ClickHouseEndpoint {
        ClickHouseEndpoint {
            url: url.to_owned(),
            database: "app".to_owned(),
            username: "admin".to_owned(),
            password: Password::new("geheim"),
            tls: TlsSettings { mode, ..TlsSettings::default() },
        }
    }

    #[test]
    fn reads_versions() {
        let version = parse_version("26.7.2.1", "Etc/UTC").unwrap();
        assert_eq!((version.major, version.minor), (26, 7));
        assert_eq!(version.timezone, "Etc/UTC");
        assert!(version.is_supported());
        let supported = |text| parse_version(text, "UTC").unwrap().is_supported();
        assert!(supported("23.3.1.2823") && !supported("23.2.7.32") && !supported("22.8.1"));
        for text in ["", "x.y", "26"] {
            assert_eq!(parse_version(text, "UTC"), None, "{text}");
        }
    }

    #[test]
    fn reads_the_facts_of_a_server_from_one_query() {
        let server = parse_server("26.7.2.1\tEtc/UTC\t0\tdialect readonly");
        assert_eq!(server.version, parse_version("26.7.2.1", "Etc/UTC"));
        assert!(!server.read_only && server.settings.contains("dialect") && server.settings.len() == 2);
        assert!(parse_server("26.7.2.1\tUTC\t2\treadonly").read_only);
        for answer in ["", "Ok.", "<html>\tof a\tproxy"] {
            assert_eq!(parse_server(answer).version, None, "{answer}");
        }
    }

    #[test]
    fn refuses_wrong_urls_without_repeating_them() {
        for url in [
            "",
            "host:8123",
            "tcp://host:9000",
            "http://",
            "https://u:geheim@host:8443",
            "http://host:8123/?password=geheim",
        ] {
            let error = Client::new(&endpoint(url, TlsMode::VerifyFull)).unwrap_err();
            assert!(matches!(error, Error::Settings(_)), "{url}: {error}");
            assert!(!error.to_string().contains("geheim"), "{error}");
        }
        let error = Client::new(&endpoint("https://host:8443", TlsMode::Disable)).unwrap_err();
        assert!(error.to_string().contains("tls.mode is Disable"), "{error}");
    }

    #[test]
    fn shows_no_password() {
        let client = Client::new(&endpoint("http://host:8123/path", TlsMode::VerifyFull)).unwrap();
        let shown = format!("{client:?}");
        assert!(
            !shown.contains("geheim") && !shown.contains(&BASE64_STANDARD.encode("admin:geheim")),
            "{shown}"
        );
        assert_eq!(client.url(), "http://host:8123");
    }
}
