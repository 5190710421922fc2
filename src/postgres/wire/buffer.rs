//! The receive buffer and the frames in it.
//!
//! A frame is a tag byte, a big-endian length that counts itself, and the body
//! (<https://www.postgresql.org/docs/current/protocol-overview.html>).

use std::{
    future::poll_fn,
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, ReadBuf};

use crate::postgres::Error;

/// Size of an idle buffer: what one read can take.
pub(super) const BASE: usize = 2 << 20;

/// The longest frame: a value can have 1 GiB, and its message a little more.
const LONGEST_FRAME: usize = (1 << 30) + (64 << 10);

/// The longest row that is held, in its wire form: 128 MiB. Of a longer one only the beginning is, which says
/// whose it is.
pub const LONGEST_ROW: usize = 128 << 20;

/// What is kept of a frame that is longer than a row may be.
const BEGINNING: usize = 64 << 10;

/// The longest frame of another kind than data: a server's error with its texts is far shorter, and whoever
/// answers before authentication must not make us take more.
const LONGEST_OTHER: usize = 1 << 20;

/// CopyData: rows of a COPY and messages of the stream.
const DATA: u8 = b'd';

/// Tag and length.
const HEADER: usize = 5;

/// A complete frame, by its place in the buffer; valid until the next [`ReceiveBuffer::fill`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// The message type.
    pub(super) tag: u8,
    /// Where its body is.
    pub(super) body: Range<usize>,
    /// Bytes of the body that are left out at its end, because it is too long.
    pub(super) left_out: usize,
}

/// Bytes received and not yet taken: `bytes[start..end]`.
///
/// The memory is zeroed by the allocator, so the system backs it with pages only as far as bytes arrive.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes to come that belong to a frame whose beginning was given out.
    skip: usize,
    /// A fault met after bytes had been read; reported once these are used up.
    fault: Option<io::Error>,
}

impl ReceiveBuffer {
    pub(super) fn new() -> Self {
        ReceiveBuffer { bytes: vec![0; BASE], start: 0, end: 0, skip: 0, fault: None }
    }

    /// Bytes received and not yet taken.
    #[inline]
    pub(super) fn buffered(&self) -> usize {
        self.end - self.start
    }

    /// The bytes at `place`; empty where there are none.
    #[inline]
    pub(super) fn slice(&self, place: Range<usize>) -> &[u8] {
        self.bytes.get(place).unwrap_or(&[])
    }

    /// Takes the next frame if all of it is here.
    #[inline]
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        if self.skip > 0 {
            let skipped = self.skip.min(self.buffered());
            self.start += skipped;
            self.skip -= skipped;
        }
        let Some(length) = self.frame_length()? else { return Ok(None) };
        let kept = kept_of(length);
        if self.buffered() < kept {
            return Ok(None);
        }
        let (tag, body) = (self.bytes[self.start], self.start + HEADER..self.start + kept);
        self.start += kept;
        self.skip = length - kept;
        Ok(Some(Frame { tag, body, left_out: length - kept }))
    }

    /// The first frame's length with its header, once the header is here.
    #[inline]
    fn frame_length(&self) -> Result<Option<usize>, Error> {
        if self.skip > 0 {
            return Ok(None);
        }
        let Some(&[tag, a, b, c, d]) = self.bytes[self.start..self.end].first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let announced = i32::from_be_bytes([a, b, c, d]);
        let longest = if tag == DATA { LONGEST_FRAME } else { LONGEST_OTHER };
        match usize::try_from(announced) {
            Ok(length) if (4..=longest).contains(&length) => Ok(Some(length + 1)),
            _ => Err(Error::Protocol(format!("a message 0x{tag:02x} of impossible length {announced}"))),
        }
    }

    /// Waits for bytes and takes all that are there, as far as they fit. Cancel-safe.
    ///
    /// Answers how many there are to look at when the buffer is full of unread frames.
    pub(super) async fn fill(&mut self, stream: &mut (impl AsyncRead + Unpin)) -> Result<usize, Error> {
        self.make_room()?;
        if self.end == self.bytes.len() {
            return Ok(self.buffered());
        }
        poll_fn(|context| self.poll_fill(stream, context)).await
    }

    /// Reads until the stream has no more for now: a TLS stream gives one record at a time.
    fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, Error>> {
        if let Some(fault) = self.fault.take() {
            return Poll::Ready(Err(fault.into()));
        }
        let before = self.end;
        while self.end < self.bytes.len() {
            let mut space = ReadBuf::new(&mut self.bytes[self.end..]);
            match Pin::new(&mut *stream).poll_read(context, &mut space) {
                Poll::Ready(Ok(())) if space.filled().is_empty() => {
                    if self.end == before {
                        return Poll::Ready(Err(Error::Closed));
                    }
                    break;
                }
                Poll::Ready(Ok(())) => self.end += space.filled().len(),
                Poll::Ready(Err(fault)) => {
                    if self.end == before {
                        return Poll::Ready(Err(fault.into()));
                    }
                    // The server's last words may be among the bytes: they explain more than the fault does.
                    self.fault = Some(fault);
                    break;
                }
                Poll::Pending if self.end == before => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(self.end - before))
    }

    /// Moves what is left to the front, in a buffer of the size that the next frame needs.
    fn make_room(&mut self) -> Result<(), Error> {
        let needed = self.frame_length()?.map_or(HEADER, kept_of);
        // The buffer does not shrink below unread frames.
        let size = needed.max(self.buffered()).max(BASE);
        let left = self.start..self.end;
        let fits = size == self.bytes.len() || (size < self.bytes.len() && needed > BASE);
        if fits && left.start == 0 {
            // A long frame arrives in many reads: what is there already must not be moved for each.
            return Ok(());
        }
        if fits {
            self.bytes.copy_within(left.clone(), 0);
        } else {
            let mut bytes = vec![0; size];
            bytes[..left.len()].copy_from_slice(&self.bytes[left.clone()]);
            self.bytes = bytes;
        }
        self.start = 0;
        self.end = left.len();
        Ok(())
    }
}

/// How much of a frame of this length, header included, is kept.
fn kept_of(length: usize) -> usize {
    if length > LONGEST_ROW { BEGINNING } else { length }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt;

    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[tag], length.as_slice(), body].concat()
    }

    /// All frames of `stream`, read as a connection does it.
    async fn frames(mut stream: &[u8]) -> (Vec<(u8, Vec<u8>)>, Error, ReceiveBuffer) {
        let mut buffer = ReceiveBuffer::new();
        let mut frames = Vec::new();
        loop {
            match buffer.next_frame() {
                Ok(Some(Frame { tag, body, .. })) => frames.push((tag, buffer.slice(body).to_vec())),
                Ok(None) => match buffer.fill(&mut stream).await {
                    Ok(read) => assert_ne!(read, 0),
                    Err(error) => return (frames, error, buffer),
                },
                Err(error) => return (frames, error, buffer),
            }
        }
    }

    #[tokio::test]
    async fn reads_frames_of_any_size_and_shrinks_again() {
        let sizes = [0, 1, 5 * BASE, 0, BASE - HEADER, BASE, 3, 2 * BASE, 2 * BASE, 0];
        let bodies: Vec<_> = sizes.iter().enumerate().map(|(i, &size)| vec![i as u8; size]).collect();
        let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(b'd', body)).collect();
        let (found, end, buffer) = frames(&stream).await;
        assert!(found.into_iter().map(|(_, body)| body).eq(bodies));
        assert!(matches!(end, Error::Closed));
        assert_eq!(buffer.bytes.len(), BASE);
    }

    #[tokio::test]
    async fn of_a_row_that_is_too_long_the_beginning_is_kept() {
        let whole = LONGEST_ROW + 1;
        let beginning = [b"d".as_slice(), &(whole as u32 + 4).to_be_bytes(), b"beginning"].concat();
        let rest = tokio::io::repeat(7).take((whole - 9) as u64);
        let mut stream = beginning.as_slice().chain(rest).chain(&b"d\0\0\0\x06ok"[..]);
        let mut buffer = ReceiveBuffer::new();
        let (mut found, mut most) = (Vec::new(), 0);
        while found.len() < 2 {
            match buffer.next_frame().unwrap() {
                Some(Frame { body, left_out, .. }) => found.push((buffer.slice(body).to_vec(), left_out)),
                None => _ = buffer.fill(&mut stream).await.unwrap(),
            }
            most = most.max(buffer.bytes.len());
        }
        assert!(found[0].0.starts_with(b"beginning"));
        assert_eq!(found[0].0.len() + found[0].1, whole);
        assert_eq!(found[1], (b"ok".to_vec(), 0));
        assert_eq!(most, BASE);
    }

    #[tokio::test]
    async fn an_impossible_length_is_an_error_and_takes_no_memory() {
        for length in [-1_i32, 0, 3, i32::MIN, i32::MAX, LONGEST_FRAME as i32 + 1] {
            let stream = [b"d".as_slice(), &length.to_be_bytes(), &[0; 32]].concat();
            let (found, error, buffer) = frames(&stream).await;
            assert!(found.is_empty() && matches!(error, Error::Protocol(_)), "{length}: {error}");
            assert_eq!(buffer.bytes.len(), BASE);
        }
        let (found, error, _) = frames(&frame(b'E', &vec![b'x'; LONGEST_OTHER])).await;
        assert!(found.is_empty() && matches!(error, Error::Protocol(_)), "{error}");
    }

    #[tokio::test]
    async fn a_full_unread_buffer_is_kept() {
        let stream = frame(b'd', &[7; 100]).repeat(BASE / 50);
        let mut rest = stream.as_slice();
        let mut buffer = ReceiveBuffer::new();
        assert_eq!(buffer.fill(&mut rest).await.unwrap(), BASE);
        assert_eq!(buffer.fill(&mut rest).await.unwrap(), BASE);
        assert_eq!(buffer.buffered(), BASE);
    }

    #[tokio::test]
    async fn bytes_before_a_fault_are_given_out_first() {
        let mut stream = scripted(vec![Ok(frame(b'E', b"why")), Err(io::ErrorKind::ConnectionReset.into())]);
        let mut buffer = ReceiveBuffer::new();
        assert_eq!(buffer.fill(&mut stream).await.unwrap(), 8);
        assert_eq!(buffer.next_frame().unwrap(), Some(Frame { tag: b'E', body: 5..8, left_out: 0 }));
        assert!(matches!(buffer.fill(&mut stream).await, Err(Error::Io(_))));
    }

    /// A stream that gives these reads, then ends.
    fn scripted(reads: Vec<io::Result<Vec<u8>>>) -> impl AsyncRead + Unpin {
        struct Script(std::vec::IntoIter<io::Result<Vec<u8>>>);
        impl AsyncRead for Script {
            fn poll_read(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
                space: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(
                    self.0.next().transpose().map(|bytes| space.put_slice(&bytes.unwrap_or_default())),
                )
            }
        }
        Script(reads.into_iter())
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(stream in proptest::collection::vec(any::<u8>(), 0..256)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(frames(&stream));
        }

        #[test]
        fn frames_survive_any_split(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            chunk in 1_usize..30,
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(b'd', body)).collect();
            let reads = stream.chunks(chunk).map(|bytes| Ok(bytes.to_vec())).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let found = runtime.block_on(async {
                let mut stream = scripted(reads);
                let (mut buffer, mut found) = (ReceiveBuffer::new(), Vec::new());
                loop {
                    while let Some(Frame { body, .. }) = buffer.next_frame().unwrap() {
                        found.push(buffer.slice(body).to_vec());
                    }
                    if buffer.fill(&mut stream).await.is_err() {
                        return found;
                    }
                }
            });
            prop_assert_eq!(found, bodies);
        }
    }
}
