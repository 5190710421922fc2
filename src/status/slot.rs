//! The warning about a slot that holds back much WAL.

use super::conditions::size;
use crate::{
    fault::Reason,
    model::{MirrorReport, SlotRisk},
};

/// The risk for the slot, or for the source, as a reason and a sentence that says what to do. `None` while
/// there is none.
pub fn slot_warning(report: &MirrorReport) -> Option<(Reason, String)> {
    let risk = report.slot.risk()?;
    let slot = &report.slot_name;
    let held = match report.slot.retained_wal_bytes {
        Some(bytes) => format!("slot {slot} holds back {} of WAL at the source", size(bytes)),
        None => format!("slot {slot} holds back WAL at the source"),
    };
    Some(match risk {
        SlotRisk::Invalidation => (
            Reason::SlotAtRisk,
            format!(
                "{held}, nearly all that may be kept, and will be invalidated: raise max_slot_wal_keep_size, and see why the Mirror doesn't \
                 keep up, or resume it"
            ),
        ),
        SlotRisk::FullDisk => (
            Reason::SourceDiskAtRisk,
            format!(
                "{held}, more than max_wal_size, and nothing limits that: its disk may fill up. See why the Mirror doesn't keep up, or \
                 resume it; max_slot_wal_keep_size is a limit, past which the slot is lost"
            ),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MirrorIdentity, Progress, SlotReport};

    fn warning(wal_status: &str, safe_wal_bytes: Option<i64>, retained: u64) -> Option<(Reason, String)> {
        let identity = MirrorIdentity { namespace: "team".into(), name: "demo".into(), uid: "0".into() };
        let mut report = Progress::new(&identity).report();
        report.slot = SlotReport {
            wal_status: Some(wal_status.to_owned()),
            safe_wal_bytes,
            retained_wal_bytes: Some(retained),
            ..SlotReport::default()
        };
        slot_warning(&report)
    }

    #[test]
    fn warns_before_the_slot_is_lost() {
        assert_eq!(warning("extended", Some(500), 500), None);
        for (wal_status, safe) in [("extended", 100), ("unreserved", -10)] {
            let (reason, message) = warning(wal_status, Some(safe), 900 << 20).unwrap();
            assert_eq!(reason, Reason::SlotAtRisk);
            assert!(message.starts_with("slot walferry_0 holds back 900.0 MiB of WAL"), "{message}");
            assert!(message.contains("max_slot_wal_keep_size"), "{message}");
        }
    }

    #[test]
    fn warns_of_a_disk_that_nothing_protects() {
        assert_eq!(warning("reserved", None, 1 << 40), None);
        let (reason, message) = warning("extended", None, 5 << 30).unwrap();
        assert_eq!(reason, Reason::SourceDiskAtRisk);
        assert!(message.contains("5.0 GiB of WAL at the source, more than max_wal_size"), "{message}");
    }
}
