//! Connections that take answers up to a length: the HTTP driver holds an error's whole body in memory,
//! however long it is. They also remember the head of the last answer that was refused, of which the driver
//! returns the body alone.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use hyper::{Uri, rt};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

use crate::model::lock;

/// The longest answer that is held in memory, with its headers: the records of thousands of tables are far
/// shorter.
const LONGEST: usize = 64 << 20;

/// What an answer begins with that is no error.
const SUCCESS: &[u8] = b"HTTP/1.1 200";

/// Which answers are held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// All of them.
    All,
    /// Errors; the others are read piece by piece, and may have any length.
    Errors,
}

/// Longest head of an answer that is parsed.
const LONGEST_HEAD: usize = 16 << 10;

/// Status and content type of the last answer that was no success, shared by all connections of a client.
#[derive(Clone, Debug, Default)]
pub(super) struct LastRefusal(Arc<Mutex<String>>);

impl LastRefusal {
    /// In words: `HTTP status 403, text/html`.
    pub(super) fn shown(&self) -> String {
        lock(&self.0).clone()
    }

    fn set(&self, head: &[u8]) {
        *lock(&self.0) = describe_head(head);
    }
}

/// The status code and the content type of an answer's head, and no other word of it.
fn describe_head(head: &[u8]) -> String {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split("\r\n");
    let status =
        lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse::<u16>().ok());
    let status = status.map_or_else(|| "no HTTP status".to_owned(), |code| format!("HTTP status {code}"));
    let content_type = lines.filter_map(|line| line.split_once(':')).find_map(|(name, value)| {
        name.eq_ignore_ascii_case("content-type").then(|| value.split(';').next().unwrap_or_default().trim())
    });
    let is_type = |text: &&str| {
        text.len() <= 60 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/+.-".contains(&byte))
    };
    match content_type.filter(is_type) {
        Some(content_type) => format!("{status}, {content_type}"),
        None => status,
    }
}

/// Makes the connections of an inner connector bounded.
#[derive(Clone, Debug)]
pub(super) struct BoundedConnector<C> {
    pub(super) inner: C,
    pub(super) held: Held,
    pub(super) refusal: LastRefusal,
}

impl<C> Service<Uri> for BoundedConnector<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
{
    type Response = TokioIo<BoundedStream<TokioIo<C::Response>>>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, C::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, held, refusal) = (self.inner.call(uri), self.held, self.refusal.clone());
        Box::pin(async move {
            let stream = TokioIo::new(connecting.await?);
            Ok(TokioIo::new(BoundedStream::new(stream, held, refusal)))
        })
    }
}

/// A connection that fails when an answer gets too long.
#[derive(Debug)]
pub(super) struct BoundedStream<S> {
    stream: S,
    held: Held,
    /// Bytes received since the last request began.
    received: usize,
    /// Whether all of them are those of an answer that is no error.
    success: bool,
    /// The head of an answer that is one, until it is complete.
    head: Vec<u8>,
    refusal: LastRefusal,
}

impl<S> BoundedStream<S> {
    fn new(stream: S, held: Held, refusal: LastRefusal) -> Self {
        BoundedStream { stream, held, received: 0, success: true, head: Vec::new(), refusal }
    }

    /// A request begins with its method; the pieces of a long one don't.
    fn sends(&mut self, bytes: &[u8]) {
        if bytes.starts_with(b"POST ") || bytes.starts_with(b"GET ") {
            (self.received, self.success) = (0, true);
            self.head.clear();
        }
    }

    /// Keeps the head of an answer, and shares it once it is complete and no success.
    fn note_head(&mut self, bytes: &[u8]) {
        const END: &[u8] = b"\r\n\r\n";
        if self.head.len() >= LONGEST_HEAD || self.head.ends_with(END) {
            return;
        }
        if self.success && self.received >= SUCCESS.len() {
            return;
        }
        let from = self.head.len().saturating_sub(END.len());
        self.head.extend(bytes.iter().take(LONGEST_HEAD - self.head.len()));
        let end = self.head[from..].windows(END.len()).position(|window| window == END);
        if let Some(end) = end {
            self.head.truncate(from + end + END.len());
            if !self.head.starts_with(SUCCESS) {
                self.refusal.set(&self.head);
            }
        }
    }

    /// Counts bytes of an answer; `false` when it is too long.
    fn receives(&mut self, bytes: &[u8]) -> bool {
        let expected = SUCCESS.get(self.received..).unwrap_or_default();
        self.success &= expected.iter().zip(bytes).all(|(expected, byte)| expected == byte);
        self.note_head(bytes);
        self.received = self.received.saturating_add(bytes.len());
        self.received <= LONGEST || (self.held == Held::Errors && self.success)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        if this.receives(buffer.filled().get(before..).unwrap_or_default()) {
            return read;
        }
        let message = format!("an answer of more than {} MiB", LONGEST >> 20);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.sends(bytes);
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.sends(pieces.iter().find(|piece| !piece.is_empty()).map_or(&[], |piece| piece));
        Pin::new(&mut this.stream).poll_write_vectored(context, pieces)
    }
}

impl<T: rt::Read + rt::Write + Connection> Connection for BoundedStream<TokioIo<T>> {
    fn connected(&self) -> Connected {
        self.stream.inner().connected()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn too_long(held: Held, answer: &[u8]) -> bool {
        let mut bounded = BoundedStream::new((), held, LastRefusal::default());
        bounded.sends(b"POST / HTTP/1.1");
        // Byte by byte, as a hostile server might.
        assert!(answer.iter().all(|byte| bounded.receives(std::slice::from_ref(byte))));
        let megabyte = vec![b'x'; 1 << 20];
        !(0..64).all(|_| bounded.receives(&megabyte))
    }

    #[test]
    fn what_is_held_has_an_end() {
        let (success, error) = (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 500 Internal Server Error\r\n");
        assert!(too_long(Held::All, success) && too_long(Held::All, error));
        assert!(too_long(Held::Errors, error) && too_long(Held::Errors, b"HTTP/1.1 100 Continue"));
        assert!(!too_long(Held::Errors, success));
    }

    #[test]
    fn every_request_has_an_answer_of_its_own() {
        let mut bounded = BoundedStream::new((), Held::Errors, LastRefusal::default());
        for answer in [&b"HTTP/1.1 404"[..], b"HTTP/1.1 200", b"HTTP/1.1 500"] {
            bounded.sends(b"POST / HTTP/1.1");
            assert_eq!(bounded.received, 0);
            assert!(bounded.receives(answer));
            assert_eq!(bounded.success, answer == SUCCESS);
            bounded.sends(b"a piece of a body");
            assert_eq!(bounded.received, answer.len());
        }
    }

    #[tokio::test]
    async fn a_connection_that_gets_too_long_an_answer_fails() {
        let (ours, mut theirs) = duplex(256);
        let mut bounded = BoundedStream::new(ours, Held::Errors, LastRefusal::default());
        for _ in 0..3 {
            bounded.write_all(b"POST / HTTP/1.1").await.unwrap();
            theirs.write_all(&[1; 90]).await.unwrap();
            bounded.read_exact(&mut [0; 90]).await.unwrap();
        }
        bounded.received = LONGEST - 10;
        theirs.write_all(&[1; 20]).await.unwrap();
        let error = bounded.read_exact(&mut [0; 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn of_a_refused_answer_status_and_type_are_kept() {
        let refusal = LastRefusal::default();
        let mut bounded = BoundedStream::new((), Held::All, refusal.clone());
        let answers: [(&[u8], &str); 4] = [
            (
                b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html; charset=x\r\n\r\n<p>secret",
                "HTTP status 403, text/html",
            ),
            (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nx", "HTTP status 403, text/html"),
            (b"HTTP/1.1 302 Found\r\nLocation: http://secret\r\n\r\n", "HTTP status 302"),
            (b"HTTP/1.1 404 secret\r\ncontent-type: se cret\r\n\r\n", "HTTP status 404"),
        ];
        for (answer, shown) in answers {
            for piece in [1, 7, answer.len()] {
                bounded.sends(b"POST / HTTP/1.1");
                assert!(answer.chunks(piece).all(|bytes| bounded.receives(bytes)));
                assert_eq!(refusal.shown(), shown);
            }
        }
    }
}
