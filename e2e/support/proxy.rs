//! A network between the program and a server that can be cut, frozen, slowed, corrupted or wrapped in TLS.

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Forwards connections to a local port and injects the faults that a test asks for.
#[derive(Debug)]
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

/// The direction of bytes through a [`Proxy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// One direction of all connections.
#[derive(Debug, Default)]
struct Flow {
    frozen: AtomicBool,
    bytes_per_second: AtomicU64,
    pieces_to_corrupt: AtomicU32,
}

#[derive(Debug, Default)]
struct State {
    target: AtomicU16,
    /// The target of every second connection; 0 if there is none.
    other: AtomicU16,
    closed: AtomicBool,
    to_server: Arc<Flow>,
    to_client: Arc<Flow>,
    /// The sockets of open connections by connection number.
    client_sides: Mutex<BTreeMap<u64, TcpStream>>,
    server_sides: Mutex<BTreeMap<u64, TcpStream>>,
}

impl Proxy {
    /// Forwards to `target`.
    pub fn to(target: u16) -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { target: target.into(), ..State::default() });
        let shared = state.clone();
        thread::spawn(move || {
            for (number, client) in (0..).zip(listener.incoming().map_while(Result::ok)) {
                if shared.closed.load(SeqCst) {
                    continue;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", shared.target.load(SeqCst))) else {
                    continue;
                };
                let other = shared.other.load(SeqCst);
                if other != 0 {
                    shared.other.store(shared.target.swap(other, SeqCst), SeqCst);
                }
                shared.client_sides.lock().unwrap().insert(number, client.try_clone().unwrap());
                shared.server_sides.lock().unwrap().insert(number, server.try_clone().unwrap());
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (asking, answering) = (Arc::clone(&shared), Arc::clone(&shared));
                thread::spawn(move || asking.ask(number, from, to));
                thread::spawn(move || answering.answer(number, server, client));
            }
        });
        Proxy { port, state }
    }

    /// Cuts every connection on the client's side only. The server does not notice, as with an unplugged
    /// cable.
    pub fn cut_unnoticed(&self) {
        for side in std::mem::take(&mut *self.state.client_sides.lock().unwrap()).values() {
            let _ = side.shutdown(Shutdown::Both);
        }
    }

    /// Cuts every connection on both sides.
    pub fn cut(&self) {
        self.cut_unnoticed();
        for side in std::mem::take(&mut *self.state.server_sides.lock().unwrap()).values() {
            let _ = side.shutdown(Shutdown::Both);
        }
    }

    /// The number of open connections.
    pub fn open(&self) -> usize {
        self.state.client_sides.lock().unwrap().len()
    }

    /// Forwards every second connection to another server from now on.
    pub fn alternate_with(&self, other: u16) {
        self.state.other.store(other, SeqCst);
    }

    /// Forwards to another server from now on, and cuts the connections to the old one.
    pub fn set_target(&self, target: u16) {
        self.state.other.store(0, SeqCst);
        self.state.target.store(target, SeqCst);
        self.cut();
    }

    /// Refuses new connections from now on, or accepts them again.
    pub fn set_closed(&self, closed: bool) {
        self.state.closed.store(closed, SeqCst);
    }

    /// Stops delivering bytes in this direction without closing anything, or delivers again, including the
    /// bytes that were kept.
    pub fn set_frozen(&self, direction: Direction, frozen: bool) {
        self.flow(direction).frozen.store(frozen, SeqCst);
    }

    /// Limits the bandwidth in this direction; 0 removes the limit.
    pub fn set_bytes_per_second(&self, direction: Direction, bytes: u64) {
        self.flow(direction).bytes_per_second.store(bytes, SeqCst);
    }

    /// Flips one bit in each of the next `pieces` reads in this direction.
    pub fn corrupt(&self, direction: Direction, pieces: u32) {
        self.flow(direction).pieces_to_corrupt.store(pieces, SeqCst);
    }

    fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::ToServer => &self.state.to_server,
            Direction::ToClient => &self.state.to_client,
        }
    }
}

impl State {
    /// Copies from client to server. The client's end is forwarded unless the client was cut unnoticed.
    fn ask(&self, number: u64, client: TcpStream, server: TcpStream) {
        forward(client, server.try_clone().unwrap(), &self.to_server);
        self.to_server.thaw();
        if self.client_sides.lock().unwrap().contains_key(&number) {
            let _ = server.shutdown(Shutdown::Write);
        }
    }

    /// Copies from server to client. The server's end closes the client's connection too.
    fn answer(&self, number: u64, server: TcpStream, client: TcpStream) {
        let server_ended = forward(server, client.try_clone().unwrap(), &self.to_client);
        self.to_client.thaw();
        let _ = client.shutdown(Shutdown::Both);
        self.client_sides.lock().unwrap().remove(&number);
        if server_ended {
            self.server_sides.lock().unwrap().remove(&number);
        }
    }
}

/// Copies bytes in one direction and returns whether the input ended, rather than the output failed.
fn forward(mut from: TcpStream, mut to: TcpStream, flow: &Flow) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        flow.inject_faults(&mut buffer[..read]);
        if to.write_all(&buffer[..read]).is_err() {
            return false;
        }
    }
    true
}

impl Flow {
    /// Waits while this direction is frozen.
    fn thaw(&self) {
        while self.frozen.load(SeqCst) {
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Applies the requested corruption, delay and bandwidth limit to one read.
    fn inject_faults(&self, piece: &mut [u8]) {
        self.thaw();
        if self.pieces_to_corrupt.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            piece[piece.len() / 2] ^= 0x10;
        }
        if let Some(micros) = (piece.len() as u64 * 1_000_000).checked_div(self.bytes_per_second.load(SeqCst))
        {
            thread::sleep(Duration::from_micros(micros));
        }
    }
}

/// Terminates TLS and forwards the plain bytes to a local port.
#[derive(Debug)]
pub struct TlsProxy {
    pub port: u16,
    _runtime: tokio::runtime::Runtime,
}

impl TlsProxy {
    /// Presents this certificate (PEM, with its key) and forwards to `target`.
    pub fn to(target: u16, certificate: &str, key: &str) -> TlsProxy {
        TlsProxy::start(target, certificate, key, None)
    }

    /// Accepts only clients that have a certificate of this authority (PEM).
    pub fn for_clients_of(target: u16, certificate: &str, key: &str, authority: &str) -> TlsProxy {
        TlsProxy::start(target, certificate, key, Some(authority))
    }

    fn start(target: u16, certificate: &str, key: &str, clients: Option<&str>) -> TlsProxy {
        let certificates =
            CertificateDer::pem_slice_iter(certificate.as_bytes()).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let config = builder.with_single_cert(certificates, key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(("127.0.0.1", target)).await?;
                    let mut client = acceptor.accept(client).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        TlsProxy { port, _runtime: runtime }
    }
}
