//! Transactions: the place of their changes in the stream, and which of them a snapshot sees.

use serde::{Deserialize, Serialize};

use super::Version;

/// A row's place in the order of all changes. Every time that the source sends a change it has the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Which of two rows with one key is the newer.
    pub version: Version,
    /// Distinguishes rows of one transaction, or of one copy; it grows in their order.
    pub ordinal: u64,
}

impl Position {
    /// The place of the second row of a change that is two.
    pub fn second(self) -> Self {
        Position { ordinal: self.ordinal + 1, ..self }
    }
}

impl From<Version> for Position {
    /// A row that its key alone identifies.
    fn from(version: Version) -> Self {
        Position { version, ordinal: 0 }
    }
}

/// Which transactions a snapshot sees, as `pg_current_snapshot()` gives it: numbers of 64 bits, of top-level
/// transactions alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TransactionSnapshot {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

impl TransactionSnapshot {
    /// Whether the snapshot sees the committed transaction with this number, of which the log has the low 32
    /// bits. It must be one of the two thousand million before or after the snapshot: PostgreSQL keeps no two
    /// further apart.
    pub fn sees(&self, xid: u32) -> bool {
        #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are what the log has")]
        let distance = xid.wrapping_sub(self.xmax as u32).cast_signed();
        let full = self.xmax.wrapping_add_signed(i64::from(distance));
        full < self.xmin || (full < self.xmax && !self.in_progress.contains(&full))
    }

    /// The low 32 bits of the oldest transaction's number that is in progress; without one, of the next
    /// one's.
    pub fn oldest(&self) -> u32 {
        #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are what others have")]
        let oldest = self.xmin as u32;
        oldest
    }
}

/// The text is not what `pg_current_snapshot()` gives.
#[derive(Debug, thiserror::Error)]
#[error("not a transaction snapshot: {0}")]
pub struct ParseSnapshotError(String);

impl TryFrom<String> for TransactionSnapshot {
    type Error = ParseSnapshotError;

    /// Reads `xmin:xmax:xip,xip,…`.
    fn try_from(text: String) -> Result<Self, ParseSnapshotError> {
        let parsed = || {
            let mut parts = text.split(':');
            let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            let list = parts.next().filter(|_| parts.next().is_none())?;
            let in_progress = list.split(',').filter(|xid| !xid.is_empty()).map(|xid| xid.parse().ok());
            Some(TransactionSnapshot { xmin, xmax, in_progress: in_progress.collect::<Option<_>>()? })
        };
        parsed().ok_or_else(|| ParseSnapshotError(text.clone()))
    }
}

impl From<TransactionSnapshot> for String {
    fn from(snapshot: TransactionSnapshot) -> String {
        let list: Vec<_> = snapshot.in_progress.iter().map(u64::to_string).collect();
        format!("{}:{}:{}", snapshot.xmin, snapshot.xmax, list.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> TransactionSnapshot {
        text.to_owned().try_into().unwrap()
    }

    #[test]
    fn sees_what_was_committed_before() {
        let snapshot = snapshot("10:20:10,14");
        let visible: Vec<u32> = (8..22).filter(|xid| snapshot.sees(*xid)).collect();
        assert_eq!(visible, [8, 9, 11, 12, 13, 15, 16, 17, 18, 19]);
    }

    #[test]
    fn sees_what_has_ended() {
        let sees = |text: &str, transactions: &[u32]| {
            let snapshot = snapshot(text);
            transactions.iter().all(|xid| snapshot.sees(*xid))
        };
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
    }

    #[test]
    fn numbers_of_32_bits_are_taken_for_the_nearest() {
        let epoch = 1_u64 << 32;
        let snapshot = snapshot(&format!("{}:{}:{}", epoch - 2, epoch + 3, epoch + 1));
        assert!(snapshot.sees(u32::MAX - 5), "long before, in the epoch before");
        assert!(snapshot.sees(u32::MAX) && snapshot.sees(0));
        assert!(!snapshot.sees(1) && snapshot.sees(2) && !snapshot.sees(3));
    }

    #[test]
    fn is_read_and_written_as_postgresql_does() {
        for text in ["10:20:10,14", "7:7:"] {
            assert_eq!(String::from(snapshot(text)), text);
        }
        for text in ["", "1", "1:", "1:2", "1:2:x", "1:2:3:4", "a:2:", "a:b:c"] {
            assert!(TransactionSnapshot::try_from(text.to_owned()).is_err(), "{text}");
        }
    }
}
