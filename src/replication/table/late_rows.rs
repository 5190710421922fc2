//! Deletes rows that arrive below a table's floor after everything below it was deleted.
//!
//! What is below the floor was deleted when it was confirmed, so a late repetition of it loses. But a process
//! that was killed may have left an insert on its way that nobody repeats: of a chunk whose copy a TRUNCATE
//! has ended, or of changes from before a new copy. Its keys are not known until it arrives, perhaps long
//! after, from a queue. And a replica may not have had a row yet when the others had confirmed it. So for a
//! while the table is checked again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Table, record::TableRecord};
use crate::{
    model::Version,
    replication::{
        Destination, Error, Rows,
        retry::{RetryObserver, retry_for_table},
    },
};

/// When a table is checked again, counted from when there was reason to.
const AFTER: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1800),
];

/// How often tables are examined for being due.
const POLL: Duration = Duration::from_secs(1);

/// Most tables that are checked at the same time. One that is refused acquires its permit again for each try.
const CHECKS_IN_PARALLEL: usize = 4;

/// What is needed to check tables.
pub(in crate::replication) struct Sweeper<D: Destination> {
    pub(in crate::replication) destination: D,
    pub(in crate::replication) tables: Vec<Arc<Table<D>>>,
    /// Prefix of the fence, unique to the Mirror.
    pub(in crate::replication) fence: String,
    pub(in crate::replication) observer: RetryObserver,
    pub(in crate::replication) stop: CancellationToken,
}

/// When a table is checked again.
struct Due {
    since: Instant,
    round: usize,
    /// Whether it is being checked.
    begun: bool,
}

impl Due {
    fn now() -> Self {
        Due { since: Instant::now(), round: 0, begun: false }
    }

    fn is_over(&self) -> bool {
        self.round >= AFTER.len() && !self.begun
    }

    /// Whether it is time to begin, which it then has.
    fn begins(&mut self, now: Instant) -> bool {
        let due = AFTER.get(self.round).is_some_and(|after| self.since + *after <= now);
        due && !std::mem::replace(&mut self.begun, true)
    }

    /// A check has ended. One that failed counts again from now.
    fn ended(&mut self, checked: bool) {
        self.begun = false;
        match checked {
            true => self.round += 1,
            false => self.since = Instant::now(),
        }
    }
}

impl<D: Destination> Sweeper<D> {
    /// Checks tables until `stop`. What is refused for one table is that table's own error in time, as with
    /// inserts: rows that are gone at the source may come back there.
    pub(in crate::replication) async fn run(self) {
        let sweeper = Arc::new(self);
        let semaphore = Arc::new(Semaphore::new(CHECKS_IN_PARALLEL));
        let mut due: HashMap<usize, Due> = HashMap::new();
        let mut checks: JoinSet<(usize, bool)> = JoinSet::new();
        loop {
            tokio::select! {
                () = sweeper.stop.cancelled() => return,
                Some(ended) = checks.join_next() => {
                    if let Ok((index, checked)) = ended && let Some(due) = due.get_mut(&index) {
                        due.ended(checked);
                    }
                    continue;
                }
                () = tokio::time::sleep(POLL) => {}
            }
            for (index, table) in sweeper.tables.iter().enumerate().filter(|(_, table)| table.take_sweep()) {
                let due = due.entry(index).or_insert_with(Due::now);
                // One that is truncated all the time is checked all the same.
                if due.round > 0 {
                    (due.since, due.round) = (Instant::now(), 0);
                }
                tracing::debug!(table = %table.id, "checking for late rows");
            }
            let now = Instant::now();
            for (index, due) in &mut due {
                let Some(table) = sweeper.tables.get(*index).filter(|table| !table.failed()) else {
                    continue;
                };
                if due.begins(now) {
                    let (index, table, semaphore) = (*index, Arc::clone(table), Arc::clone(&semaphore));
                    let sweeper = Arc::clone(&sweeper);
                    checks.spawn(async move { (index, sweeper.check(&table, &semaphore).await) });
                }
            }
            due.retain(|_, due| !due.is_over());
        }
    }

    /// Checks a table once, and gives whether it could.
    async fn check(&self, table: &Table<D>, semaphore: &Semaphore) -> bool {
        let swept = retry_for_table(&self.stop, &self.observer, table, || async {
            let _permit = semaphore.acquire().await.map_err(|closed| Error::Task(closed.to_string()))?;
            self.sweep(&table.record()).await
        });
        let Err(error) = swept.await else { return true };
        match table.fail_or_return(error, &self.stop, &self.observer).await {
            Ok(()) | Err(Error::Stopped) => {}
            Err(error) => {
                tracing::warn!(table = %table.id, %error, "could not check for late rows; will try again");
            }
        }
        false
    }

    async fn sweep(&self, record: &TableRecord) -> Result<(), Error> {
        let fence = format!("{}.rest-{}", self.fence, record.schema.target);
        for (rows, floor) in [(Rows::All, record.floor), (Rows::Copied, record.copy_floor)] {
            if floor > Version::ZERO {
                self.destination.delete(&record.schema, rows, Version::ZERO..floor, &fence).await?;
            }
        }
        Ok(())
    }
}
