//! A TRUNCATE of the source: deletes what the target has from before it.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
};

use futures::future::{MaybeDone, maybe_done};
use tokio::sync::{AcquireError, OwnedSemaphorePermit};

use super::{
    apply::Applier,
    batch::{PendingBatch, stream_fence},
    checkpoint::CheckpointGuard,
    inserter::Inserter,
    stream_table::TableIndex,
};
use crate::{
    model::{Lsn, Version},
    replication::{
        Destination, Error, Rows,
        retry::{retry, retry_for_table},
        table::{Table, record::Floor},
    },
};

/// Has the rows of a table deleted that have lower versions than the TRUNCATE's (`None` where there is no
/// room for one), in a task: behind the rows from before, and before those that follow. Other tables wait for
/// none of it.
///
/// # Errors
/// [`Error::Table`] without a version.
pub(super) async fn begin<D: Destination>(
    applier: &mut Applier<D>,
    index: TableIndex,
    version: Option<Version>,
) -> Result<(), Error> {
    let table = Arc::clone(&applier.tables[index].table);
    if table.failed() {
        return Ok(());
    }
    let version = version.ok_or_else(|| Error::too_many_truncates(&table.id))?;
    let read_lsn = applier.after_commit();
    let Some((before, guard)) = applier.begin_work(index) else {
        return Err(Error::Protocol("TRUNCATE outside a transaction"));
    };
    let mut permit = Box::pin(maybe_done(Arc::clone(&table.insert_permit).acquire_owned()));
    // The place in the queue is taken now: no later row comes before it.
    let _ = futures::poll!(permit.as_mut());
    let truncate = Truncate { inserter: Arc::clone(&applier.inserter), table, version, read_lsn };
    tokio::spawn(truncate.run(permit, before, guard));
    Ok(())
}

/// The permit to write to a table, or the place in the queue for it.
type QueuedPermit<F> = Pin<Box<MaybeDone<F>>>;

struct Truncate<D: Destination> {
    inserter: Arc<Inserter<D>>,
    table: Arc<Table<D>>,
    version: Version,
    /// The TRUNCATE's commit lies before here.
    read_lsn: Lsn,
}

impl<D: Destination> Truncate<D> {
    async fn run<F>(
        self,
        mut permit: QueuedPermit<F>,
        before: Option<PendingBatch<D>>,
        guard: CheckpointGuard,
    ) where
        F: Future<Output = Result<OwnedSemaphorePermit, AcquireError>>,
    {
        permit.as_mut().await;
        let permit = permit.as_mut().take_output();
        let inserted = match before {
            Some(before) => self.inserter.run(&self.table, before).await,
            None => true,
        };
        if inserted {
            let outcome = tokio::select! {
                outcome = self.delete() => outcome,
                () = self.inserter.abort.cancelled() => Err(Error::Stopped),
            };
            match outcome {
                Ok(()) => drop(guard),
                Err(error) => drop(self.inserter.fail(&self.table, error, guard).await),
            }
        } else {
            // It is sent again with the rows from before.
            std::mem::forget(guard);
        }
        drop(permit);
        self.inserter.ended.notify_one();
    }

    /// All rows from before it are confirmed by then, so their keys are there, and a late repetition of one
    /// loses. Whatever exists at the source after a TRUNCATE was inserted after it, so it is in the stream: a
    /// snapshot that is still running has nothing left to copy. The record comes first: a failover may lose
    /// the TRUNCATE.
    async fn delete(&self) -> Result<(), Error> {
        let (inserter, table) = (&self.inserter, &self.table);
        if table.failed() {
            return Ok(());
        }
        table.stop_copying().await;
        let (schema, versions) = (table.schema(), table.record().left_below(self.version));
        let fence = stream_fence(&inserter.fence, &schema);
        let floor = Floor::Rows(self.version);
        retry(&inserter.abort, &inserter.observer, || table.finish_snapshot(self.read_lsn, floor)).await?;
        retry_for_table(&inserter.abort, &inserter.observer, table, || async {
            Ok(inserter.destination.delete(&schema, Rows::All, versions.clone(), &fence).await?)
        })
        .await?;
        table.progress.truncated.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
