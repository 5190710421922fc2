//! Deletes rows that arrive below a table's floor after everything below it was deleted.
//!
//! What is below the floor was deleted when it was confirmed, so a late repetition of it loses. But a process that was killed may
//! have left an insert on its way that nobody repeats: of a chunk whose copy a TRUNCATE has ended, or of changes from before a new copy.
//! Its keys are not known until it arrives, perhaps long after, from a queue. And a replica may not have had a row yet when the others
//! had confirmed it. So for a while the table is looked at again.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Destination, DestinationError, Rows,
    state::{TableRecord, unix_seconds},
    table::Table,
};
use crate::model::Version;

/// When a table is looked at again, counted from when there was reason to.
const AFTER: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(1800),
];

/// How long after the floor was set a process that begins looks for what an earlier one may have left on its way.
const RECENT: Duration = Duration::from_secs(3600);

/// How often it is looked whether a table is due.
const POLL: Duration = Duration::from_secs(1);

/// Whether rows from before the table's floor may still be on their way.
pub(super) fn is_recent(record: &TableRecord) -> bool {
    record.floor.max(record.copy_floor) > Version::ZERO
        && unix_seconds().saturating_sub(record.floor_set) < RECENT.as_secs()
}

/// A table that is looked at again.
struct Due<D: Destination> {
    table: Arc<Table<D>>,
    since: Instant,
    round: usize,
}

/// Looks at tables again until `stop`.
pub(super) async fn run<D: Destination>(
    destination: D,
    tables: Vec<Arc<Table<D>>>,
    fence: String,
    stop: CancellationToken,
) {
    let mut due: Vec<Due<D>> = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL) => {}
        }
        for table in tables.iter().filter(|table| table.take_sweep()) {
            match due.iter_mut().find(|due| due.table.id == table.id) {
                // One that is truncated all the time is looked at all the same.
                Some(due) if due.round == 0 => {}
                Some(due) => (due.since, due.round) = (Instant::now(), 0),
                None => due.push(Due { table: Arc::clone(table), since: Instant::now(), round: 0 }),
            }
        }
        let now = Instant::now();
        let is_due = |due: &&mut Due<D>| AFTER.get(due.round).is_some_and(|after| due.since + *after <= now);
        for due in due.iter_mut().filter(is_due).filter(|due| !due.table.failed()) {
            match sweep(&destination, &due.table.record(), &fence).await {
                Ok(()) => due.round += 1,
                Err(error) => {
                    tracing::warn!(table = %due.table.id, %error, "could not look for late rows; tried again");
                }
            }
        }
        due.retain(|due| due.round < AFTER.len());
    }
}

async fn sweep<D: Destination>(
    destination: &D,
    record: &TableRecord,
    fence: &str,
) -> Result<(), DestinationError> {
    let fence = format!("{fence}.rest-{}", record.schema.target);
    for (rows, floor) in [(Rows::All, record.floor), (Rows::Copied, record.copy_floor)] {
        if floor > Version::ZERO {
            destination.delete(&record.schema, rows, Version::ZERO..floor, &fence).await?;
        }
    }
    Ok(())
}
