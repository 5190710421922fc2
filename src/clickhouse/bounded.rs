//! Connections that take answers up to a length: the HTTP driver holds an error's whole body in memory, however long it is.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
};

use hyper::{Uri, rt};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service;

/// Makes the connections of an inner connector bounded.
#[derive(Clone, Debug)]
pub(super) struct BoundedConnector<C> {
    pub(super) inner: C,
    /// The longest answer, in bytes with its headers; `None` for any length.
    pub(super) longest: Option<usize>,
}

impl<C> Service<Uri> for BoundedConnector<C>
where
    C: Service<Uri>,
    C::Future: Send + 'static,
{
    type Response = TokioIo<Bounded<TokioIo<C::Response>>>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, C::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), C::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, longest) = (self.inner.call(uri), self.longest);
        Box::pin(async move {
            let stream = TokioIo::new(connecting.await?);
            Ok(TokioIo::new(Bounded { stream, longest, received: 0 }))
        })
    }
}

/// A connection that fails when an answer gets too long.
#[derive(Debug)]
pub(super) struct Bounded<S> {
    stream: S,
    longest: Option<usize>,
    /// Bytes received since the last request began.
    received: usize,
}

impl<S> Bounded<S> {
    /// A request begins with its method; the pieces of a long one don't.
    fn sends(&mut self, bytes: &[u8]) {
        if bytes.starts_with(b"POST ") || bytes.starts_with(b"GET ") {
            self.received = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(context, buffer);
        this.received = this.received.saturating_add(buffer.filled().len() - before);
        match this.longest {
            Some(longest) if this.received > longest => {
                let message = format!("an answer of more than {} MiB", longest >> 20);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)))
            }
            _ => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
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

impl<T: rt::Read + rt::Write + Connection> Connection for Bounded<TokioIo<T>> {
    fn connected(&self) -> Connected {
        self.stream.inner().connected()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn counts_from_request_to_request() {
        let (ours, mut theirs) = duplex(256);
        let mut bounded = Bounded { stream: ours, longest: Some(100), received: 0 };
        for _ in 0..3 {
            bounded.write_all(b"POST / HTTP/1.1").await.unwrap();
            theirs.write_all(&[1; 90]).await.unwrap();
            bounded.read_exact(&mut [0; 90]).await.unwrap();
        }
        bounded.write_all(b"a piece of a body").await.unwrap();
        theirs.write_all(&[1; 20]).await.unwrap();
        let error = bounded.read_exact(&mut [0; 20]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
