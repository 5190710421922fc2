//! The two directions of a replication connection, of which the receiving one can be left alone for a while.
//!
//! A socket that is registered with the event loop wakes it for every segment that arrives, also while nobody
//! wants to read: the walsender sends once a row and pays for each of these wake-ups. So a plain socket's
//! receiving half is registered only while it is waited for.

use std::{
    io::{self, Write},
    net::Shutdown,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::transport::Transport;

/// How long a full socket is given before the next try to write. What is written is 34 bytes now and then, so
/// this is hardly ever needed.
const WRITE_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The receiving direction.
#[derive(Debug)]
pub(super) enum Receiving {
    /// A plain socket, and a second descriptor of it that is registered while it is waited for.
    Plain(std::net::TcpStream, Option<TcpStream>),
    /// TLS, where reading may have to write.
    Tls(ReadHalf<Transport>),
}

/// The sending direction.
#[derive(Debug)]
pub(super) enum Sending {
    /// A plain socket that is never registered, and the pause until the next try when it was full.
    Plain(std::net::TcpStream, Option<Pin<Box<Sleep>>>),
    /// TLS.
    Tls(WriteHalf<Transport>),
}

/// Splits a connection.
///
/// # Errors
/// When the system gives no second file descriptor.
pub(super) fn split(transport: Transport) -> io::Result<(Receiving, Sending)> {
    match transport {
        Transport::Plain(stream) => {
            let receiving = stream.into_std()?;
            let sending = receiving.try_clone()?;
            Ok((Receiving::Plain(receiving, None), Sending::Plain(sending, None)))
        }
        tls @ Transport::Tls(_) => {
            let (read, write) = tokio::io::split(tls);
            Ok((Receiving::Tls(read), Sending::Tls(write)))
        }
    }
}

impl Receiving {
    /// Lets bytes arrive without being woken for them, until the next read.
    pub(super) fn leave_alone(&mut self) {
        if let Receiving::Plain(_, registered) = self {
            *registered = None;
        }
    }
}

impl AsyncRead for Receiving {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Receiving::Plain(socket, registered) => {
                let stream = match registered {
                    Some(stream) => stream,
                    None => registered.insert(TcpStream::from_std(socket.try_clone()?)?),
                };
                Pin::new(stream).poll_read(context, buffer)
            }
            Receiving::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Sending {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (socket, pause) = match self.get_mut() {
            Sending::Plain(socket, pause) => (socket, pause),
            Sending::Tls(stream) => return Pin::new(stream).poll_write(context, bytes),
        };
        loop {
            if let Some(waiting) = pause {
                ready!(waiting.as_mut().poll(context));
                *pause = None;
            }
            match socket.write(bytes) {
                Err(full) if full.kind() == io::ErrorKind::WouldBlock => {
                    *pause = Some(Box::pin(sleep(WRITE_AGAIN_AFTER)));
                }
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Sending::Plain(..) => Poll::Ready(Ok(())),
            Sending::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Sending::Plain(socket, _) => Poll::Ready(socket.shutdown(Shutdown::Write)),
            Sending::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
