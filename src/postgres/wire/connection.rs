//! A connection and its simple queries.

use std::{future::Future, time::Duration};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::{
    buffer::{Frame, ReceiveBuffer},
    fields::{ErrorFields, log_notice, text_row},
    timeline::{self, TimelineHistory},
    transport::Transport,
};
use crate::{
    model::Lsn,
    postgres::{Error, catalog},
};

/// Longest time for the answer to a short statement, which may wait for a lock.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// Most bytes of an answer that is held in memory.
const LONGEST_ANSWER: usize = 16 << 20;

/// What IDENTIFY_SYSTEM answers (<https://www.postgresql.org/docs/current/protocol-replication.html>).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The cluster's unique number, the same on a physical standby.
    pub system_identifier: String,
    /// The timeline, which a promotion changes.
    pub timeline: u32,
    /// The end of the log that is flushed (on a standby: replayed).
    pub wal_position: Lsn,
    /// When the server process began, in seconds of Unix time: for as long as it is the same, its log has
    /// only grown.
    pub started: String,
}

/// A connection with one statement at a time.
///
/// Once an answer was not read to its end (a dropped [`super::CopyOut`], a cancelled future), every further
/// call is an error.
#[derive(Debug)]
pub struct Connection {
    pub(super) transport: Transport,
    pub(super) buffer: ReceiveBuffer,
    pub(super) out: BytesMut,
    /// Whether the server waits for a statement.
    pub(super) idle: bool,
}

impl Connection {
    /// Runs one statement by the simple query protocol and gives its rows, every value in text form (`None`
    /// for NULL). For small results: all of it is held in memory.
    ///
    /// # Errors
    /// [`Error::Server`] keeps the SQLSTATE and leaves the connection usable.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        self.start(sql).await?;
        within(ANSWER_TIMEOUT, self.rows()).await
    }

    async fn rows(&mut self) -> Result<Vec<Vec<Option<String>>>, Error> {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        loop {
            let frame = self.next_frame().await?;
            let body = self.buffer.slice(frame.body.clone());
            match frame.tag {
                b'D' => {
                    bytes += frame.body.len();
                    if bytes > LONGEST_ANSWER {
                        return Err(Error::Protocol("an answer that does not end".into()));
                    }
                    rows.push(text_row(body)?);
                }
                b'T' | b'C' | b'I' => {}
                b'E' => {
                    let error = ErrorFields::parse(body).into_error();
                    return Err(self.drain_after(error).await);
                }
                b'Z' => {
                    self.idle = true;
                    return Ok(rows);
                }
                tag => return Err(unexpected(tag, "the answer to a query")),
            }
        }
    }

    /// Who the server is and where its log ends. Needs [`super::Purpose::Replication`].
    ///
    /// # Errors
    /// As [`Connection::query`].
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let malformed = || Error::Protocol("the answer to IDENTIFY_SYSTEM is malformed".into());
        let Some([Some(system_identifier), Some(timeline), Some(wal_position), ..]) =
            rows.first().map(Vec::as_slice)
        else {
            return Err(malformed());
        };
        let started = self.query(&format!("SELECT {}", catalog::STARTED)).await?;
        let started = started.into_iter().flatten().next().flatten();
        Ok(SystemIdentity {
            system_identifier: system_identifier.clone(),
            timeline: timeline.parse().map_err(|_| malformed())?,
            wal_position: wal_position.parse().map_err(|_| malformed())?,
            started: started.ok_or_else(malformed)?,
        })
    }

    /// How the server came to `timeline`. Needs [`super::Purpose::Replication`].
    ///
    /// # Errors
    /// As [`Connection::query`]: [`Error::Server`] also where the server has lost the file. A history that is
    /// none.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<TimelineHistory, Error> {
        // The first one has no file.
        if timeline == 1 {
            return Ok(TimelineHistory::default());
        }
        let rows = self.query(&format!("TIMELINE_HISTORY {timeline}")).await?;
        TimelineHistory::parse(timeline, timeline::content(&rows)?)
    }

    /// As [`catalog::read_lsn`], for what was visible on this connection.
    ///
    /// # Errors
    /// As [`Connection::query`]; an answer that is no position.
    pub async fn read_lsn(&mut self) -> Result<Lsn, Error> {
        let rows = self.query(catalog::READ_LSN).await?;
        let lsn = rows.into_iter().flatten().next().flatten().and_then(|lsn| lsn.parse().ok());
        lsn.ok_or_else(|| Error::Protocol("a position of the log is malformed".to_owned()))
    }

    /// Sends a statement.
    pub(super) async fn start(&mut self, sql: &str) -> Result<(), Error> {
        if !self.idle {
            return Err(Error::Protocol("an earlier answer was not read to its end".into()));
        }
        frontend::query(sql, &mut self.out)
            .map_err(|_| Error::Protocol("a statement contains a NUL byte".into()))?;
        self.idle = false;
        self.flush().await
    }

    /// Sends what is in `out`.
    pub(super) async fn flush(&mut self) -> Result<(), Error> {
        flush(&mut self.transport, &mut self.out).await
    }

    /// Waits for the next frame that belongs to an answer: notices and reports of settings are taken out.
    pub(super) async fn next_frame(&mut self) -> Result<Frame, Error> {
        loop {
            match self.buffer.next_frame()? {
                None => {
                    self.buffer.fill(&mut self.transport).await?;
                }
                Some(Frame { tag: b'N', body, .. }) => log_notice(self.buffer.slice(body)),
                Some(Frame { tag: b'S' | b'A', .. }) => {}
                Some(frame) => return Ok(frame),
            }
        }
    }

    /// Reads on to where the server waits for a statement again, and gives back `error`, or what went wrong
    /// meanwhile: after a FATAL error the connection ends, and `error` says why.
    pub(super) async fn drain_after(&mut self, error: Error) -> Error {
        loop {
            match self.next_frame().await {
                Ok(Frame { tag: b'Z', .. }) => {
                    self.idle = true;
                    return error;
                }
                Ok(_) => {}
                Err(_) => return error,
            }
        }
    }
}

/// Gives a server this long.
pub(super) async fn within<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = Error::NoAnswer { seconds: limit.as_secs() };
    tokio::time::timeout(limit, answer).await.unwrap_or(Err(late))
}

/// Sends `out` and empties it. Cancel-safe: what was not sent stays in `out`.
pub(super) async fn flush(stream: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> Result<(), Error> {
    while !out.is_empty() {
        if stream.write_buf(out).await? == 0 {
            return Err(Error::Closed);
        }
    }
    Ok(stream.flush().await?)
}

/// A message type that has no place here.
pub(super) fn unexpected(tag: u8, place: &str) -> Error {
    Error::Protocol(format!("unexpected message 0x{tag:02x} in {place}"))
}
