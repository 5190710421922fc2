//! Which transactions others can see.
//!
//! A commit is in the log, and so in the stream and before a slot's start, a moment before anybody sees it; while it waits for
//! a synchronous standby, for long.

use super::{Error, session::Session};

/// The transactions that have written in this database, or are prepared, and have not ended: their numbers' lower 32 bits.
///
/// Each holds a lock on its own number until others see what it did. A snapshot would not tell those that began last.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn running(session: &Session) -> Result<Vec<u32>, Error> {
    const HOLDERS: &str = "\
        SELECT l.transactionid::text::bigint FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
        WHERE l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted \
          AND (a.datname IS NULL OR a.datname = current_database())";
    let rows = session.client.query(HOLDERS, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get::<_, i64>(0)? as u32)).collect()
}

/// Whether a query that begins now sees all of these transactions, if they have committed.
///
/// # Errors
/// What [`Session`] gives for a cut connection.
pub async fn sees(session: &Session, transactions: &[u32]) -> Result<bool, Error> {
    let row = session.client.query_one("SELECT pg_current_snapshot()::text", &[]).await?;
    let text: String = row.try_get(0)?;
    let malformed = || Error::Protocol(format!("pg_current_snapshot() answered {text}"));
    Ok(Snapshot::parse(&text).ok_or_else(malformed)?.sees(transactions))
}

#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    /// The number that the next transaction had got.
    next: u32,
    running: Vec<u32>,
}

impl Snapshot {
    /// Reads `xmin:xmax:xip,…`, of 64 bits each.
    fn parse(text: &str) -> Option<Snapshot> {
        let low = |text: &str| text.parse::<u64>().ok().map(|xid| (xid & u64::from(u32::MAX)) as u32);
        let mut parts = text.splitn(3, ':').skip(1);
        let next = low(parts.next()?)?;
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty()).map(low);
        Some(Snapshot { next, running: running.collect::<Option<_>>()? })
    }

    fn sees(&self, transactions: &[u32]) -> bool {
        // Numbers go round: the half below is the past.
        let begun = |xid: u32| self.next.wrapping_sub(xid).wrapping_sub(1) < 1 << 31;
        transactions.iter().all(|xid| begun(*xid) && !self.running.contains(xid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_sees_what_has_ended() {
        let sees = |text: &str, transactions: &[u32]| Snapshot::parse(text).unwrap().sees(transactions);
        assert!(sees("10:12:", &[9, 10, 11]));
        assert!(sees("10:12:10", &[9, 11]));
        assert!(!sees("10:12:10", &[9, 10]));
        assert!(!sees("10:12:10,11", &[11]));
        assert!(!sees("10:12:", &[12]));
        // 2^32 + 3, just after the numbers went round.
        let round = "4294967290:4294967299:4294967295";
        assert!(sees(round, &[4_294_967_290, 1]));
        assert!(!sees(round, &[4_294_967_295]));
        assert!(!sees(round, &[3]));
        for text in ["", "10", "10:", "a:b:c", "10:12:x"] {
            assert_eq!(Snapshot::parse(text), None, "{text}");
        }
    }
}
