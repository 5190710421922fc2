//! Arbitrary bytes as a server's words.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use futures::FutureExt as _;
use tokio::io::{AsyncRead, ReadBuf};

use super::{
    ReplicationMessage, TimelineHistory,
    buffer::{Frame, ReceiveBuffer},
    copy_out::header_length,
    fields::{ErrorFields, text_row},
    replication::next_message,
};
use crate::{model::Cell, postgres::pgoutput};

/// A stream that gives `bytes` in pieces of `size`.
struct Pieces<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        space: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.size.min(self.bytes.len()).min(space.remaining());
        let (piece, rest) = self.bytes.split_at(length);
        space.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

/// Reads a replication stream to its end or first fault, and decodes the plugin's messages in it. The first
/// byte says in how large pieces the rest arrives.
pub fn stream(data: &[u8]) {
    let Some((&size, bytes)) = data.split_first() else { return };
    let mut stream = Pieces { bytes, size: usize::from(size).max(1) };
    let mut buffer = ReceiveBuffer::new();
    let (mut old, mut new) = (Vec::new(), Vec::new());
    loop {
        match next_message(&mut buffer) {
            Ok(Some(ReplicationMessage::XLogData { data, .. })) => {
                if pgoutput::decode(data, &mut old, &mut new).is_ok() {
                    assert_within(data, &old);
                    assert_within(data, &new);
                }
            }
            Ok(Some(ReplicationMessage::TooLong { data, .. })) => {
                if pgoutput::decode_beginning(data, &mut new).is_some() {
                    assert_within(data, &new);
                }
            }
            Ok(Some(ReplicationMessage::Keepalive { .. })) => {}
            // The pieces never keep anybody waiting.
            Ok(None) => match buffer.fill(&mut stream).now_or_never() {
                Some(Ok(read)) => assert_ne!(read, 0),
                Some(Err(_)) | None => return,
            },
            Err(_) => return,
        }
    }
}

/// Reads the answers to statements: every frame's body as what it may be.
pub fn answers(data: &[u8]) {
    let mut buffer = ReceiveBuffer::new();
    let mut stream = Pieces { bytes: data, size: data.len().max(1) };
    while let Some(Ok(_)) = buffer.fill(&mut stream).now_or_never() {
        while let Ok(Some(Frame { tag, body, .. })) = buffer.next_frame() {
            let body = buffer.slice(body);
            match tag {
                b'D' => {
                    for value in text_row(body).into_iter().flatten().flatten() {
                        drop(TimelineHistory::parse(u32::MAX, &value));
                    }
                }
                b'd' => {
                    if let Ok(length) = header_length(body) {
                        assert!(length <= body.len());
                    }
                }
                _ => drop(ErrorFields::parse(body).into_error().to_string()),
            }
        }
    }
}

/// Every value lies in the message.
pub fn assert_within(data: &[u8], cells: &[Cell]) {
    for cell in cells {
        assert!(cell.start as usize + cell.len as usize <= data.len(), "{cell:?} of {}", data.len());
    }
}
