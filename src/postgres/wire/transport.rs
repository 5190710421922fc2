//! The byte stream below the protocol: TCP, with TLS where the settings ask for it.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpSocket, TcpStream, lookup_host},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    model::{PostgresEndpoint, TlsMode},
    postgres::Error,
    tls,
};

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// SQL and COPY.
    Copy,
    /// The replication commands as well (`replication=database`).
    Replication,
}

/// Receive buffer of a replication connection's socket: the walsender sends once a row and wakes a hungry
/// reader each time, so a reader that lets the socket fill costs both sides less.
const REPLICATION_SOCKET_BUFFER: usize = 4 << 20;

/// How long unacknowledged bytes may be on their way before the connection counts as dead.
#[cfg(target_os = "linux")]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// A dead peer is noticed after about a minute of silence, whatever the system's defaults are.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3)
}

/// A connected byte stream.
#[derive(Debug)]
pub(in crate::postgres) enum Transport {
    /// Plain text.
    Plain(TcpStream),
    /// TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// Connects to the first address of the host that answers and negotiates TLS as the settings say.
    pub(in crate::postgres) async fn connect(
        endpoint: &PostgresEndpoint,
        purpose: Purpose,
    ) -> Result<Transport, Error> {
        let stream = dial(endpoint, purpose).await.map_err(|source| Error::Connect {
            host: endpoint.host.clone(),
            port: endpoint.port,
            source,
        })?;
        match endpoint.tls.mode {
            TlsMode::Disable => Ok(Transport::Plain(stream)),
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => {
                negotiate_tls(endpoint, stream).await
            }
        }
    }

    /// Whether the connection is encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Transport::Tls(_))
    }
}

async fn dial(endpoint: &PostgresEndpoint, purpose: Purpose) -> io::Result<TcpStream> {
    // A URL writes an IPv6 address in brackets; the resolver wants it without.
    let host = endpoint.host.trim_start_matches('[').trim_end_matches(']');
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
    for address in lookup_host((host, endpoint.port)).await? {
        match dial_address(address, purpose).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn dial_address(address: SocketAddr, purpose: Purpose) -> io::Result<TcpStream> {
    let socket = match purpose {
        Purpose::Copy => new_socket(address)?,
        Purpose::Replication => socket_with_large_buffer(address)?,
    };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
    // Keepalives are not sent while something of ours is unacknowledged.
    #[cfg(target_os = "linux")]
    SockRef::from(&stream).set_tcp_user_timeout(Some(TCP_USER_TIMEOUT))?;
    Ok(stream)
}

fn new_socket(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

/// A socket with [`REPLICATION_SOCKET_BUFFER`] where the system allows it. Where its limit
/// (`net.core.rmem_max`) is lower, a fresh socket is better: setting a size ends the kernel's own tuning,
/// which may go higher.
fn socket_with_large_buffer(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = new_socket(address)?;
    SockRef::from(&socket).set_recv_buffer_size(REPLICATION_SOCKET_BUFFER)?;
    if SockRef::from(&socket).recv_buffer_size()? < REPLICATION_SOCKET_BUFFER {
        return new_socket(address);
    }
    Ok(socket)
}

/// <https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>
async fn negotiate_tls(endpoint: &PostgresEndpoint, mut stream: TcpStream) -> Result<Transport, Error> {
    let (host, port) = (endpoint.host.clone(), endpoint.port);
    let config = tls::client_config(&endpoint.tls)?;
    let server_name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned())
        .map_err(|error| Error::Tls {
            host: host.clone(),
            port,
            source: io::Error::new(io::ErrorKind::InvalidData, error),
        })?;
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    // Exactly one byte: what came unencrypted after it must never be taken for the server's encrypted words.
    match stream.read_u8().await? {
        b'S' => {}
        b'N' => return Err(Error::TlsRefused { host, port }),
        other => return Err(Error::Protocol(format!("the server answered 0x{other:02x} to a TLS request"))),
    }
    let connector = TlsConnector::from(Arc::new(config));
    match connector.connect(server_name, stream).await {
        Ok(stream) => Ok(Transport::Tls(Box::new(stream))),
        Err(source) => Err(Error::Tls { host, port, source }),
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
