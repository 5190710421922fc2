//! Bounds on what a session's server may send: the SQL driver takes messages and answers of any length, and
//! waits without a time limit.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Longest time without a row of an answer; longer than the server gives a statement.
pub(super) const SILENCE: Duration = Duration::from_secs(330);

/// The longest message that is not a row.
const LONGEST_OTHER: usize = 1 << 20;

/// Most bytes of an answer to questions about the catalog.
pub(super) const CATALOG_ANSWER: usize = 64 << 20;

/// Most bytes of an answer that has rows of tables: a row can have a gigabyte.
pub(super) const ROWS_ANSWER: usize = (1 << 30) + (1 << 20);

const ROW: u8 = b'D';
const READY: u8 = b'Z';

/// Tag and length.
const HEADER: usize = 5;

/// A stream that fails where the server's words grow too long, or don't come.
#[derive(Debug)]
pub(super) struct BoundedStream<S> {
    stream: S,
    answer: Answer,
    /// Whether a statement may take any time.
    patient: Arc<AtomicBool>,
    /// Until when the server has to say something; `None` when nothing is asked.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// How far the present answer is.
#[derive(Debug)]
struct Answer {
    /// Most bytes of the answers to one batch of requests.
    longest: usize,
    header: [u8; HEADER],
    /// How much of the header is here.
    have: usize,
    /// Bytes of the message's body that are still to come.
    left: usize,
    bytes: usize,
}

/// What [`Answer::take`] saw.
#[derive(Debug, Default, PartialEq, Eq)]
struct Received {
    row: bool,
    ready: bool,
}

impl<S> BoundedStream<S> {
    /// `longest` is the most bytes of an answer, of which the driver holds all in memory.
    pub(super) fn new(stream: S, longest: usize, patient: Arc<AtomicBool>) -> Self {
        BoundedStream { stream, answer: Answer::new(longest), patient, deadline: None }
    }
}

impl Answer {
    fn new(longest: usize) -> Self {
        Answer { longest, header: [0; HEADER], have: 0, left: 0, bytes: 0 }
    }

    fn take(&mut self, mut bytes: &[u8]) -> io::Result<Received> {
        let mut received = Received::default();
        self.bytes += bytes.len();
        if self.bytes > self.longest {
            return Err(fault("an answer of the server does not end"));
        }
        while !bytes.is_empty() {
            let (body, rest) = bytes.split_at(self.left.min(bytes.len()));
            self.left -= body.len();
            bytes = rest;
            while self.left == 0 && self.have < HEADER {
                let Some((first, rest)) = bytes.split_first() else { return Ok(received) };
                self.header[self.have] = *first;
                self.have += 1;
                bytes = rest;
            }
            if self.have == HEADER {
                self.have = 0;
                self.left = self.body_length()?;
                received.row |= self.header[0] == ROW;
                received.ready |= self.header[0] == READY;
            }
        }
        Ok(received)
    }

    fn body_length(&self) -> io::Result<usize> {
        let [tag, length @ ..] = self.header;
        let longest = if tag == ROW { self.longest } else { LONGEST_OTHER };
        match usize::try_from(i32::from_be_bytes(length)) {
            Ok(length) if (4..=longest).contains(&length) => Ok(length - 4),
            _ => Err(fault(&format!("the server announces a message 0x{tag:02x} of impossible length"))),
        }
    }
}

fn fault(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Pending => {
                let Some(deadline) = &mut this.deadline else { return Poll::Pending };
                ready!(deadline.as_mut().poll(context));
                let message = format!("the server did not answer within {} s", SILENCE.as_secs());
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, message)))
            }
            Poll::Ready(Ok(())) => {
                let received = this.answer.take(buffer.filled().get(before..).unwrap_or_default())?;
                if received.ready {
                    this.deadline = None;
                } else if received.row && this.deadline.is_some() {
                    this.deadline = Some(Box::pin(sleep(SILENCE)));
                }
                Poll::Ready(Ok(()))
            }
            failed => failed,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedStream<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.answer.bytes = 0;
        this.deadline = (!this.patient.load(Relaxed)).then(|| Box::pin(sleep(SILENCE)));
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        [&[tag], (body.len() as u32 + 4).to_be_bytes().as_slice(), body].concat()
    }

    #[test]
    fn follows_messages_however_they_are_cut() {
        let rows = [frame(b'T', b"xy"), frame(ROW, &[7; 70]), frame(b'C', b""), frame(READY, b"I")].concat();
        for size in 1..rows.len() {
            let mut answer = Answer::new(CATALOG_ANSWER);
            let received: Vec<Received> =
                rows.chunks(size).map(|piece| answer.take(piece).unwrap()).collect();
            assert_eq!(received.iter().filter(|received| received.row).count(), 1);
            assert_eq!(received.iter().filter(|received| received.ready).count(), 1);
            assert_eq!((answer.have, answer.left, answer.bytes), (0, 0, rows.len()));
        }
    }

    #[test]
    fn refuses_what_is_too_long() {
        for (tag, length) in [(b'E', LONGEST_OTHER + 1), (b'N', 1 << 30), (ROW, i32::MAX as usize), (b'Z', 3)]
        {
            let header = [[tag].as_slice(), &(length as u32).to_be_bytes()].concat();
            assert_eq!(
                Answer::new(CATALOG_ANSWER).take(&header).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
        let mut answer = Answer::new(CATALOG_ANSWER);
        let row = frame(ROW, &[0; 1 << 16]);
        let taken = (0..1 << 20).take_while(|_| answer.take(&row).is_ok()).count();
        assert!((1..=CATALOG_ANSWER).contains(&(taken * row.len())));
    }

    #[tokio::test(start_paused = true)]
    async fn waits_for_an_answer_only() {
        let (ours, mut theirs) = duplex(64);
        let patient = Arc::new(AtomicBool::new(false));
        let mut guarded = BoundedStream::new(ours, CATALOG_ANSWER, Arc::clone(&patient));
        let long = SILENCE * 2;
        // Nothing is asked.
        assert!(tokio::time::timeout(long, guarded.read_u8()).await.is_err());
        patient.store(true, Relaxed);
        guarded.write_all(b"Q").await.unwrap();
        assert!(tokio::time::timeout(long, guarded.read_u8()).await.is_err());
        patient.store(false, Relaxed);
        guarded.write_all(b"Q").await.unwrap();
        theirs.write_all(&frame(b'N', b"")).await.unwrap();
        guarded.read_exact(&mut [0; 5]).await.unwrap();
        assert_eq!(guarded.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        guarded.write_all(b"Q").await.unwrap();
        theirs.write_all(&frame(READY, b"I")).await.unwrap();
        guarded.read_exact(&mut [0; 6]).await.unwrap();
        assert!(tokio::time::timeout(long, guarded.read_u8()).await.is_err());
    }
}
