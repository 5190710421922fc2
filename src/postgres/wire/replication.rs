//! The stream of a logical replication slot
//! (<https://www.postgresql.org/docs/current/protocol-replication.html>).

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;

use super::{
    Connection,
    buffer::{Frame, ReceiveBuffer},
    connection::{ANSWER_TIMEOUT, flush, unexpected, within},
    fields::{ErrorFields, log_notice},
    halves::{self, Receiving, Sending},
};
use crate::{
    model::Lsn,
    postgres::{DecodeError, Error, quote},
};

/// PostgreSQL's epoch, 2000-01-01, in seconds of Unix time.
const EPOCH: Duration = Duration::from_secs(946_684_800);

/// Longest time without a byte in a stream whose server is asked for keepalives: it may be busy with a large
/// transaction of which nothing is sent, and old releases say nothing meanwhile.
const SILENCE: Duration = Duration::from_secs(300);

/// How long [`ReplicationReader::end`] tries.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// One message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicationMessage<'a> {
    /// A message of the output plugin.
    XLogData {
        /// Where the change is in the log; zero for messages without a place of their own.
        wal_start: Lsn,
        /// The end of the log at the server.
        wal_end: Lsn,
        /// The plugin's message, for [`crate::postgres::pgoutput::decode`].
        data: &'a [u8],
    },
    /// A message of the output plugin that is longer than walferry holds, of which the rest is left out.
    TooLong {
        /// Its beginning, for [`crate::postgres::pgoutput::decode_beginning`].
        data: &'a [u8],
        /// The length of the whole.
        bytes: usize,
    },
    /// The server is alive.
    Keepalive {
        /// Everything of ours up to here was sent.
        wal_end: Lsn,
        /// The server wants feedback now, or it ends the connection after `wal_sender_timeout`.
        reply_requested: bool,
    },
}

impl Connection {
    /// Starts the stream of `slot` at `start` ([`Lsn::ZERO`] for the slot's position; the slot's own
    /// position wins when it is further on) with pgoutput's protocol version 1. `binary` asks for values in
    /// their binary send form.
    ///
    /// # Errors
    /// [`Error::Server`]: no such slot (42704), in use (55006), invalidated (55000).
    pub async fn start_replication(
        mut self,
        slot: &str,
        start: Lsn,
        publications: &[String],
        binary: bool,
    ) -> Result<(ReplicationReader, ReplicationWriter), Error> {
        self.start(&start_statement(slot, start, publications, binary)).await?;
        let frame = within(ANSWER_TIMEOUT, self.next_frame()).await?;
        match frame.tag {
            b'W' => split(self),
            b'E' => Err(ErrorFields::parse(self.buffer.slice(frame.body)).into_error()),
            tag => Err(unexpected(tag, "the answer to START_REPLICATION")),
        }
    }
}

fn start_statement(slot: &str, start: Lsn, publications: &[String], binary: bool) -> String {
    let names: Vec<_> = publications.iter().map(|name| quote::ident(name)).collect();
    let publications = quote::replication_literal(&names.join(","));
    let binary = if binary { ", binary 'true'" } else { "" };
    format!(
        "START_REPLICATION SLOT {} LOGICAL {start} (proto_version '1', publication_names {publications}{binary})",
        quote::ident(slot)
    )
}

fn split(connection: Connection) -> Result<(ReplicationReader, ReplicationWriter), Error> {
    let (receiving, sending) = halves::split(connection.transport)?;
    Ok((
        ReplicationReader { stream: receiving, buffer: connection.buffer },
        ReplicationWriter { stream: sending, out: connection.out },
    ))
}

/// The receiving half.
#[derive(Debug)]
pub struct ReplicationReader {
    stream: Receiving,
    buffer: ReceiveBuffer,
}

impl ReplicationReader {
    /// The next message that is already here, borrowed from the receive buffer. Never waits, never allocates.
    ///
    /// # Errors
    /// [`Error::Server`] when the server ends the stream with an error, [`Error::Closed`] when it ends it
    /// without one, [`Error::Protocol`] and [`Error::Decode`] when it breaks the protocol.
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<ReplicationMessage<'_>>, Error> {
        next_message(&mut self.buffer)
    }

    /// Waits for bytes and takes all that the socket holds, up to the buffer's 2 MiB; answers how many. To be
    /// called once [`ReplicationReader::try_next`] answered `None`. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Closed`] at the end of the stream, [`Error::Io`] when the connection was cut,
    /// [`Error::NoAnswer`] when nothing is heard for five minutes.
    pub async fn fill(&mut self) -> Result<usize, Error> {
        within(SILENCE, self.buffer.fill(&mut self.stream)).await
    }

    /// Lets the socket fill until `moment`, without being woken for what arrives (over TLS the wake-ups
    /// remain).
    pub async fn coalesce_reads_until(&mut self, moment: Instant) {
        self.stream.leave_alone();
        tokio::time::sleep_until(moment.into()).await;
    }

    /// Reports what is durable for the last time, and ends the stream and the connection in order: the slot
    /// is free then, and nothing is left in the server's log. Best effort, within two seconds: the server
    /// notices a cut connection too.
    pub async fn end(mut self, mut writer: ReplicationWriter, flushed: Lsn) {
        let ending = async {
            writer.feedback(flushed, false).await?;
            frontend::copy_done(&mut writer.out);
            flush(&mut writer.stream, &mut writer.out).await?;
            // A server that still sends when its client goes logs a lost connection.
            self.skip_to_end().await?;
            frontend::terminate(&mut writer.out);
            flush(&mut writer.stream, &mut writer.out).await
        };
        match tokio::time::timeout(END_TIMEOUT, ending).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "replication stream was cut before its end"),
            Err(_) => tracing::debug!("the server does not end the replication stream"),
        }
    }

    /// Reads to where the server takes statements again, and leaves out what it still sends until then.
    async fn skip_to_end(&mut self) -> Result<(), Error> {
        loop {
            while let Some(Frame { tag, body, .. }) = self.buffer.next_frame()? {
                match tag {
                    b'Z' => return Ok(()),
                    b'E' => return Err(ErrorFields::parse(self.buffer.slice(body)).into_error()),
                    _ => {}
                }
            }
            self.fill().await?;
        }
    }

    /// Bytes received that [`ReplicationReader::try_next`] has not given out.
    pub fn buffered(&self) -> usize {
        self.buffer.buffered()
    }
}

/// The next message of the stream that is in the buffer.
#[inline]
pub(super) fn next_message(buffer: &mut ReceiveBuffer) -> Result<Option<ReplicationMessage<'_>>, Error> {
    while let Some(Frame { tag, body, left_out }) = buffer.next_frame()? {
        if tag == b'd' {
            return Ok(Some(match parse(buffer.slice(body))? {
                ReplicationMessage::XLogData { data, .. } if left_out > 0 => {
                    ReplicationMessage::TooLong { data, bytes: data.len() + left_out }
                }
                whole => whole,
            }));
        }
        take_other(tag, buffer.slice(body))?;
    }
    Ok(None)
}

/// What is not data.
#[cold]
fn take_other(tag: u8, body: &[u8]) -> Result<(), Error> {
    match tag {
        b'N' => log_notice(body),
        b'S' | b'A' => {}
        b'E' => return Err(ErrorFields::parse(body).into_error()),
        // CopyDone or CommandComplete: a server that shuts down has sent everything and leaves.
        b'c' | b'C' | b'Z' => return Err(Error::Closed),
        tag => return Err(unexpected(tag, "a replication stream")),
    }
    Ok(())
}

/// Reads the body of a CopyData message.
#[inline]
fn parse(body: &[u8]) -> Result<ReplicationMessage<'_>, Error> {
    let lsn =
        |at: usize| body.get(at..).and_then(<[u8]>::first_chunk).map(|bytes| Lsn(u64::from_be_bytes(*bytes)));
    let message = match body.first() {
        Some(b'w') => match (lsn(1), lsn(9), body.get(25..)) {
            (Some(wal_start), Some(wal_end), Some(data)) => {
                Some(ReplicationMessage::XLogData { wal_start, wal_end, data })
            }
            _ => None,
        },
        Some(b'k') => match (lsn(1), body.get(17)) {
            (Some(wal_end), Some(&reply)) => {
                Some(ReplicationMessage::Keepalive { wal_end, reply_requested: reply != 0 })
            }
            _ => None,
        },
        Some(&other) => return Err(unexpected(other, "the data of a replication stream")),
        None => None,
    };
    message.ok_or(DecodeError::Truncated { field: "replication header", at: body.len() }.into())
}

/// The sending half.
#[derive(Debug)]
pub struct ReplicationWriter {
    stream: Sending,
    out: BytesMut,
}

impl ReplicationWriter {
    /// Reports to the server that everything up to `flushed` is durable (a standby status update): the slot's
    /// `confirmed_flush_lsn` moves there, and the log before it may go. With `asks` it requests a reply: a
    /// keepalive comes immediately. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Io`] when the connection was cut.
    pub async fn feedback(&mut self, flushed: Lsn, asks: bool) -> Result<(), Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH + EPOCH).unwrap_or_default();
        let now = i64::try_from(now.as_micros()).unwrap_or(i64::MAX);
        put_feedback(&mut self.out, flushed, now, asks);
        flush(&mut self.stream, &mut self.out).await
    }
}

/// A standby status update in a CopyData frame.
fn put_feedback(out: &mut BytesMut, flushed: Lsn, now_micros: i64, asks: bool) {
    out.put_u8(b'd');
    out.put_i32(4 + 1 + 4 * 8 + 1);
    out.put_u8(b'r');
    // Written, flushed, applied.
    out.put_u64(flushed.0);
    out.put_u64(flushed.0);
    out.put_u64(flushed.0);
    out.put_i64(now_micros);
    out.put_u8(asks.into());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn start_statement_quotes_names() {
        assert_eq!(
            start_statement("walferry_1", Lsn(0), &["walferry_1".into()], true),
            r#"START_REPLICATION SLOT "walferry_1" LOGICAL 0/0 (proto_version '1', publication_names '"walferry_1"', binary 'true')"#
        );
        assert_eq!(
            start_statement("s", Lsn(0x1_0000_0002), &["a'b\"c\\d".into(), "e".into()], false),
            r#"START_REPLICATION SLOT "s" LOGICAL 1/2 (proto_version '1', publication_names '"a''b""c\d","e"')"#
        );
    }

    #[test]
    fn reads_data_and_keepalives() {
        let header = [[0, 0, 0, 0, 1, 2, 3, 4], [0, 0, 0, 0, 1, 2, 3, 5], [9; 8]].concat();
        let data = [b"w".as_slice(), &header, b"Bxyz"].concat();
        let expected = ReplicationMessage::XLogData {
            wal_start: Lsn(0x0102_0304),
            wal_end: Lsn(0x0102_0305),
            data: b"Bxyz",
        };
        assert_eq!(parse(&data).unwrap(), expected);
        let keepalive = [b"k".as_slice(), &header[..16], &[1]].concat();
        let expected = ReplicationMessage::Keepalive { wal_end: Lsn(0x0102_0304), reply_requested: true };
        assert_eq!(parse(&keepalive).unwrap(), expected);
        for cut in 0..keepalive.len() {
            assert!(parse(&keepalive[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn feedback_is_a_standby_status_update() {
        let mut out = BytesMut::new();
        put_feedback(&mut out, Lsn(0x0102), 3, true);
        let lsn = [0, 0, 0, 0, 0, 0, 1, 2];
        let expected =
            [b"d\0\0\0\x26r".as_slice(), &lsn, &lsn, &lsn, &[0, 0, 0, 0, 0, 0, 0, 3], &[1]].concat();
        assert_eq!(out, expected);
    }

    proptest! {
        #[test]
        fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse(&body);
        }
    }
}
