//! Servers that `E2E_POSTGRES` and `E2E_CLICKHOUSE` name, which the end-to-end tests use instead of
//! downloaded ones. Tests that stop, restart or configure a server need their own one and are skipped.

use std::{
    env,
    io::Write,
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

use url::Url;

use super::Credentials;

/// A server that was started for the tests by somebody else.
#[derive(Debug)]
pub(super) struct GivenServer {
    /// A local port that leads to it.
    pub(super) port: u16,
    pub(super) admin: Credentials,
}

impl GivenServer {
    /// The PostgreSQL of `E2E_POSTGRES` (`postgres://user:password@host:port`).
    pub(super) fn postgres() -> Option<GivenServer> {
        GivenServer::read("E2E_POSTGRES", "postgres", 5432)
    }

    /// The ClickHouse of `E2E_CLICKHOUSE` (`http://user:password@host:port`).
    pub(super) fn clickhouse() -> Option<GivenServer> {
        GivenServer::read("E2E_CLICKHOUSE", "http", 8123)
    }

    fn read(variable: &str, scheme: &str, default_port: u16) -> Option<GivenServer> {
        let text = variable_of(variable)?;
        let form = format!("{variable} must be {scheme}://user:password@host:port");
        let url = Url::parse(&text).unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(url.scheme(), scheme, "{form}");
        let host = url.host_str().filter(|host| !host.is_empty()).unwrap_or_else(|| panic!("{form}"));
        let admin = Credentials::new(&decode(url.username()), &decode(url.password().unwrap_or_default()));
        Some(GivenServer { port: local_port(host, url.port().unwrap_or(default_port)), admin })
    }
}

/// Whether tests have to use given servers and can't start their own ones.
pub(super) fn are_given() -> bool {
    ["E2E_POSTGRES", "E2E_CLICKHOUSE"].into_iter().any(|variable| variable_of(variable).is_some())
}

fn variable_of(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the test has to be skipped because it needs more than given servers; prints why.
pub fn skip_with_given_servers(reason: &str) -> bool {
    if are_given() {
        print_skipped(reason);
    }
    are_given()
}

/// Prints that this thread's test is skipped.
pub fn print_skipped(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    // The test harness captures what a successful test prints, except for direct writes to the stream.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: {reason}");
}

/// Ends a test that starts, stops or configures a server when only given servers may be used.
#[macro_export]
macro_rules! needs_own_server {
    () => {
        if $crate::support::skip_with_given_servers("needs a server of its own") {
            return;
        }
    };
}

/// Undoes the percent-encoding of a URL's user or password.
fn decode(text: &str) -> String {
    let query = format!("v={}", text.replace('+', "%2B").replace('&', "%26"));
    url::form_urlencoded::parse(query.as_bytes()).next().map(|(_, value)| value.into_owned()).unwrap()
}

/// A port of this machine that leads to the server, because tests put their proxies between local ports.
fn local_port(host: &str, port: u16) -> u16 {
    if ["127.0.0.1", "localhost"].contains(&host) {
        return port;
    }
    let server = (host.trim_matches(['[', ']']).to_owned(), port);
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let local = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect((server.0.as_str(), server.1)) else { continue };
            let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || copy(client, server));
            thread::spawn(move || copy(from, to));
        }
    });
    local
}

/// Copies bytes in one direction and closes that direction after them.
fn copy(mut from: TcpStream, mut to: TcpStream) {
    drop(std::io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
}
