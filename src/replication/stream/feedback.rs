//! Reports what is durable to the source, by standby status updates, and to the status.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::checkpoint::{Checkpoint, PgMicros};
use crate::{
    model::{Lsn, Progress},
    postgres::wire::ReplicationWriter,
    replication::session::position::Confirmable,
};

/// How often the source hears what is durable while that moves.
const FEEDBACK_EVERY: Duration = Duration::from_millis(100);

/// How often it hears anything at all, well within `wal_sender_timeout`.
pub(super) const FEEDBACK_AT_LEAST: Duration = Duration::from_secs(1);

/// How often a reply is requested: an idle source sends nothing without that.
const REQUEST_REPLY_EVERY: Duration = Duration::from_secs(10);

/// Sends standby status updates in a task of its own, however slow the destination is.
#[derive(Clone)]
pub(super) struct Feedback {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) confirmable: Arc<Confirmable>,
    pub(super) progress: Arc<Progress>,
    /// Woken when the source requests a reply.
    pub(super) reply_requested: Arc<Notify>,
    pub(super) done: CancellationToken,
}

impl Feedback {
    /// What is durable, as far as it is on record. A stream that begins before the record reports no more
    /// than it has received: by what it sends again, the source has to prove that it is the one of before.
    pub(super) fn confirmed(&self) -> Lsn {
        self.checkpoint.confirmed().lsn.min(self.confirmable.recorded())
    }

    /// Reports until `done`, and gives the writer back for the stream's end.
    pub(super) async fn run(self, mut writer: ReplicationWriter) -> ReplicationWriter {
        let mut reported = self.confirmed();
        let mut reported_at = Instant::now();
        let mut requested_at = Instant::now();
        loop {
            let due = tokio::select! {
                () = self.done.cancelled() => return writer,
                () = self.reply_requested.notified() => true,
                () = tokio::time::sleep(FEEDBACK_EVERY) => false,
            };
            let confirmed = self.confirmed();
            self.progress.set_durable_lsn(self.checkpoint.durable());
            self.progress.set_lag_seconds(self.checkpoint.oldest_commit().map_or(0.0, seconds_since));
            if due || confirmed != reported || reported_at.elapsed() >= FEEDBACK_AT_LEAST {
                let request_reply = requested_at.elapsed() >= REQUEST_REPLY_EVERY;
                let sent = tokio::select! {
                    sent = writer.feedback(confirmed, request_reply) => sent,
                    // The server may have stopped reading.
                    () = self.done.cancelled() => return writer,
                };
                if let Err(error) = sent {
                    // The reader meets the same cut and reports it.
                    tracing::debug!(%error, "a standby status update could not be sent");
                    return writer;
                }
                (reported, reported_at) = (confirmed, Instant::now());
                if request_reply {
                    requested_at = reported_at;
                }
            }
        }
    }
}

/// Seconds since a moment given in microseconds since 2000-01-01.
fn seconds_since(moment: PgMicros) -> f64 {
    const EPOCH_2000: f64 = 946_684_800.0;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "microseconds until the year 2255 fit 53 bits")]
    let then = EPOCH_2000 + moment as f64 / 1e6;
    (now - then).max(0.0)
}
