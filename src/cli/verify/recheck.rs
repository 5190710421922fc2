//! Rows that were not the same when they were read are read again by key, until they agree or prove
//! different.
//!
//! A row of the destination counts as equal when it agrees with the source, or when it changes and then
//! agrees with a state that the source's row had meanwhile: a row that is written all the time is never equal
//! at two moments. It is proven wrong when it still differs after everything that was committed a second
//! after the source's row last changed has arrived (the slot says so), or after ten seconds.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    error::VerifyError,
    readers::TableReaders,
    report::{TableReport, difference},
    rows::{Key, Row},
};
use crate::{
    model::Lsn,
    postgres::{session::Session, slot, wire::Connection},
};

/// How long rows get to agree.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long they get while the mirror still applies what was committed before.
const RECHECK_TIMEOUT_BEHIND: Duration = Duration::from_secs(60);
/// A commit that is visible may be this young in the log.
const QUIET_PERIOD: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
/// Most keys that wait to be read again, and most bytes of them.
const MOST_KEYS: usize = 10_000;
const MOST_BYTES: usize = 8 << 20;
/// Keys per query.
const LOOKUP: usize = 100;

/// Collects keys whose rows differed and reads them again.
pub(super) struct Rechecker<'a> {
    readers: &'a TableReaders<'a>,
    session: &'a Session,
    connection: Connection,
    slot: String,
    most_differences: usize,
    /// With the place in which each was noted.
    keys: HashMap<Key, usize>,
    bytes: usize,
    report: TableReport,
    hasher: RandomState,
}

/// A key whose rows are not the same yet.
struct Case {
    key: Key,
    /// Hash of the destination's rows when first read again.
    first_target: Option<u64>,
    /// Hashes of all states of the source's row that were read.
    source_hashes: HashSet<u64>,
    last_source: Option<u64>,
    unchanged_since: Instant,
    difference: String,
}

/// Up to where changes must have arrived for a difference to be one.
struct Goal {
    lsn: Lsn,
    set: Instant,
}

impl<'a> Rechecker<'a> {
    pub(super) async fn new(
        readers: &'a TableReaders<'a>,
        session: &'a Session,
        slot: &str,
        most_differences: u32,
    ) -> Result<Rechecker<'a>, VerifyError> {
        Ok(Rechecker {
            readers,
            session,
            connection: readers.connect().await?,
            slot: slot.to_owned(),
            most_differences: most_differences as usize,
            keys: HashMap::new(),
            bytes: 0,
            report: TableReport::default(),
            hasher: RandomState::new(),
        })
    }

    /// Notes a key whose rows were not the same. When too many are noted, rechecks them immediately.
    pub(super) async fn enqueue(&mut self, key: Key) -> Result<(), VerifyError> {
        self.bytes += key.iter().map(|cell| cell.len() + size_of::<Vec<u8>>()).sum::<usize>();
        let place = self.keys.len();
        self.keys.entry(key).or_insert(place);
        if self.keys.len() >= MOST_KEYS || self.bytes >= MOST_BYTES {
            // Not longer than a server waits for us to read on (http_send_timeout, 30 s).
            self.recheck(RECHECK_TIMEOUT).await?;
        }
        Ok(())
    }

    /// Whether enough differences are known.
    pub(super) fn is_full(&self) -> bool {
        self.report.differences.len() >= self.most_differences
    }

    /// Rechecks all keys noted.
    pub(super) async fn finish(&mut self) -> Result<(), VerifyError> {
        if self.is_full() {
            return Ok(());
        }
        self.recheck(RECHECK_TIMEOUT_BEHIND).await
    }

    /// Adds a difference that is not about a key.
    pub(super) fn differs(&mut self, line: String) {
        self.report.differences.push(line);
    }

    /// What was found out.
    pub(super) fn into_report(self, source: u64, target: u64, part: Option<&str>) -> TableReport {
        let mut report = self.report;
        report.stopped |= report.differences.len() >= self.most_differences;
        report.differences.truncate(self.most_differences);
        report.incomparable = self.readers.plan.incomparable().into_iter().map(str::to_owned).collect();
        report.extent = match (source == target, part) {
            (true, None) => format!("{source} rows"),
            (false, None) => format!("{source} rows read at the source and {target} at the destination"),
            (_, Some(part)) => part.to_owned(),
        };
        report
    }

    async fn recheck(&mut self, longest: Duration) -> Result<(), VerifyError> {
        let started = Instant::now();
        self.bytes = 0;
        let mut keys: Vec<(Key, usize)> = self.keys.drain().collect();
        keys.sort_unstable_by_key(|(_, place)| *place);
        let mut cases: Vec<Case> = keys.into_iter().map(|(key, _)| Case::new(key, started)).collect();
        let mut goal = None;
        let mut pause = SHORTEST_PAUSE;
        while !cases.is_empty() && !self.is_full() {
            // Asked before the rows are read: what had arrived by then is in them.
            let behind = self.is_behind(&mut goal, started).await?;
            let arrived = goal.as_ref().filter(|_| behind == Some(false));
            let changing = self.read_again(&mut cases, arrived).await?;
            let limit = if behind == Some(true) { longest } else { RECHECK_TIMEOUT };
            if cases.is_empty() || started.elapsed() >= limit {
                break;
            }
            pause = if changing { SHORTEST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
            sleep(pause).await;
        }
        for case in cases {
            if self.is_full() {
                self.report.stopped = true;
            } else if case.unchanged_since.elapsed() >= QUIET_PERIOD {
                self.report.differences.push(case.difference);
            } else {
                self.report.still_changing.push(self.readers.plan.show_key(&case.key));
            }
        }
        Ok(())
    }

    /// Whether the mirror still applies what was committed before the goal, which is set after a second;
    /// `None` before that, and where no mirror is running.
    async fn is_behind(
        &self,
        goal: &mut Option<Goal>,
        started: Instant,
    ) -> Result<Option<bool>, VerifyError> {
        let Some(slot) = slot::read(self.session, &self.slot).await? else { return Ok(None) };
        if goal.is_none() && started.elapsed() >= QUIET_PERIOD {
            *goal = Some(Goal { lsn: slot.current_lsn, set: Instant::now() });
        }
        let Some(goal) = goal else { return Ok(None) };
        if slot.confirmed_flush_lsn.is_some_and(|confirmed| confirmed >= goal.lsn) {
            return Ok(Some(false));
        }
        Ok(slot.active_pid.map(|_| true))
    }

    /// Reads the rows of all cases again and keeps those that are still open. Returns whether a source row
    /// changed.
    async fn read_again(
        &mut self,
        cases: &mut Vec<Case>,
        arrived: Option<&Goal>,
    ) -> Result<bool, VerifyError> {
        let mut open = Vec::new();
        let mut changing = false;
        let mut rest = std::mem::take(cases).into_iter();
        loop {
            let mut some: Vec<Case> = rest.by_ref().take(LOOKUP).collect();
            if some.is_empty() {
                break;
            }
            let keys: Vec<Key> = some.iter().map(|case| case.key.clone()).collect();
            let source = self.readers.source_by_key(&mut self.connection, &keys).await?;
            let target = self.readers.target_by_key(&keys).await?;
            for mut case in some.drain(..) {
                let (source, target) = (rows(&source, &case.key), rows(&target, &case.key));
                changing |= self.note(&mut case, source);
                if self.agrees(&mut case, source, target) {
                    continue;
                }
                case.difference = difference(self.readers.plan, &case.key, source.first(), target);
                if arrived.is_some_and(|goal| case.unchanged_since + QUIET_PERIOD <= goal.set) {
                    self.report.differences.push(case.difference);
                } else {
                    open.push(case);
                }
            }
        }
        *cases = open;
        Ok(changing)
    }

    /// Records the state of the source's row. Returns whether it changed since the last read.
    fn note(&self, case: &mut Case, source: &[Row]) -> bool {
        let now = self.hash(source);
        let before = case.last_source.replace(now);
        case.source_hashes.insert(now);
        let changed = before.is_some_and(|before| before != now);
        if changed {
            case.unchanged_since = Instant::now();
        }
        changed
    }

    fn agrees(&self, case: &mut Case, source: &[Row], target: &[Row]) -> bool {
        if source.is_empty() && self.readers.plan.keeps_removed_rows {
            return true;
        }
        let shown = self.hash(target);
        let first = *case.first_target.get_or_insert(shown);
        self.hash(source) == shown || (first != shown && case.source_hashes.contains(&shown))
    }

    /// Of the values that can be compared.
    fn hash(&self, rows: &[Row]) -> u64 {
        let types = &self.readers.plan.types;
        let comparable = |row: &Row| -> Vec<Vec<u8>> {
            let cells = row.iter().zip(types).filter(|(_, kind)| kind.is_comparable());
            cells.map(|(cell, _)| cell.clone()).collect()
        };
        self.hasher.hash_one(rows.iter().map(comparable).collect::<Vec<_>>())
    }
}

impl Case {
    fn new(key: Key, now: Instant) -> Case {
        Case {
            key,
            first_target: None,
            source_hashes: HashSet::new(),
            last_source: None,
            unchanged_since: now,
            difference: String::new(),
        }
    }
}

fn rows<'r>(found: &'r HashMap<Key, Vec<Row>>, key: &Key) -> &'r [Row] {
    found.get(key).map_or(&[], Vec::as_slice)
}
