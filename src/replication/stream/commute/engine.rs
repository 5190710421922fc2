//! A model of a destination's table: what ReplacingMergeTree shows of the requests that it has run.

use std::{collections::BTreeMap, ops::Range};

use crate::{
    model::{Position, Version},
    replication::Op,
};

/// A row as the destination gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: String,
    pub(super) value: String,
    pub(super) at: Position,
    pub(super) op: Op,
    /// Whether it takes the place of a change that was removed.
    pub(super) removed: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Request {
    Insert(Vec<Row>),
    Delete(Range<Version>),
}

/// Which of several requests' rows with one key and one version counts.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tie {
    First,
    Last,
}

/// What ReplacingMergeTree makes of requests.
pub(super) struct Engine {
    keyed: bool,
    tie: Tie,
    /// Each row with the number of the request that brought it.
    rows: Vec<(usize, Row)>,
    run: usize,
}

impl Engine {
    pub(super) fn new(keyed: bool, tie: Tie) -> Engine {
        Engine { keyed, tie, rows: Vec::new(), run: 0 }
    }

    /// Runs a request, of an insert only the partition with the keys that `takes` says.
    pub(super) fn run(&mut self, request: &Request, takes: impl Fn(&Row) -> bool) {
        self.run += 1;
        let run = self.run;
        let rows = match request {
            Request::Insert(rows) => rows.iter().filter(|row| takes(row)).cloned().collect(),
            Request::Delete(versions) if self.keyed => self.tombstones(versions),
            Request::Delete(versions) => self.removals(versions),
        };
        self.rows.extend(rows.into_iter().map(|row| (run, row)));
    }

    fn tombstones(&self, versions: &Range<Version>) -> Vec<Row> {
        let gone = self
            .newest()
            .into_values()
            .filter(|row| row.op == Op::Upsert && versions.contains(&row.at.version));
        gone.map(|row| Row { at: versions.end.into(), op: Op::Delete, value: String::new(), ..row }).collect()
    }

    fn removals(&self, versions: &Range<Version>) -> Vec<Row> {
        let there =
            self.newest().into_values().filter(|row| !row.removed && versions.contains(&row.at.version));
        there.map(|row| Row { removed: true, ..row }).collect()
    }

    /// Of each key, or each position, the row that counts.
    fn newest(&self) -> BTreeMap<(String, Option<(Version, u64)>), Row> {
        let mut newest: BTreeMap<_, (usize, Row)> = BTreeMap::new();
        for (run, row) in &self.rows {
            let position = (row.at.version, row.at.ordinal);
            let key = if self.keyed { (row.key.clone(), None) } else { (String::new(), Some(position)) };
            let wins = newest.get(&key).is_none_or(|(before, other)| {
                let tie = match self.tie {
                    Tie::First => run == before,
                    Tie::Last => run >= before,
                };
                let (rank, rank_of_other) =
                    ((row.at.version, row.removed), (other.at.version, other.removed));
                rank > rank_of_other || (rank == rank_of_other && tie)
            });
            if wins {
                newest.insert(key, (*run, row.clone()));
            }
        }
        newest.into_iter().map(|(key, (_, row))| (key, row)).collect()
    }

    /// The rows that are there, and how often.
    pub(super) fn shown(&self) -> BTreeMap<(String, String), i64> {
        let mut shown = BTreeMap::new();
        for row in self.newest().into_values() {
            let times = match row.op {
                _ if row.removed => continue,
                Op::Upsert => 1,
                Op::Delete if self.keyed => continue,
                Op::Delete => -1,
            };
            *shown.entry((row.key, row.value)).or_insert(0) += times;
        }
        shown.retain(|_, times| *times != 0);
        shown
    }
}
