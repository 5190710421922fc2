//! The copy of tables without a key: all chunks in one snapshot, of which the stream brings the rest.
//!
//! A row that is copied and streamed would count twice, and nothing distinguishes the two afterwards. So a
//! copy that lost its snapshot, with its process or without, begins again with an empty target. What the
//! stream brought meanwhile and the source has forgotten is in the new snapshot: its transactions are waited
//! for where they are not yet visible.

use std::{
    sync::{Arc, MutexGuard, Weak, atomic::Ordering},
    time::Duration,
};

use super::{Destination, Error, Rows, SharedSnapshot, Snapshot, Table, plan, retry, retry_for_table};
use crate::{
    model::{Lsn, TableId, Version, lock},
    postgres::{catalog, shared_snapshot::Locking},
    replication::{stream::stream_fence, table::SnapshotBoundary},
};

/// How often the source is asked whether the application waits for the locks of a copy. It waits for two
/// periods at most.
const LOCKS_EVERY: Duration = Duration::from_secs(1);

impl<D: Destination> Snapshot<D> {
    /// Takes one snapshot for all tables without a key that are still to be copied, and queues their chunks.
    pub(super) async fn prepare_keyless(
        &self,
        tables: Vec<Arc<Table<D>>>,
        joining: bool,
    ) -> Result<(), Error> {
        let mut waiting = Vec::new();
        for table in tables.into_iter().filter(|table| !table.failed() && !table.snapshot_over()) {
            let ready = || self.make_ready(&table, joining);
            let ready = retry_for_table(&self.context.stop, &self.context.observer, &table, ready).await;
            self.fail_or_return(&table, ready).await?;
            waiting.push(table);
        }
        while !waiting.is_empty() {
            waiting.retain(|table| !table.failed());
            let taken =
                retry(&self.context.stop, &self.context.observer, || self.take_snapshot(&waiting)).await;
            let (snapshot, opened) = match taken {
                Ok(taken) => taken,
                Err(error) => {
                    let own = |id: &TableId| matches!(&error, Error::Table { table, .. } if table == id);
                    let Some(table) = waiting.iter().find(|table| own(&table.id)) else { return Err(error) };
                    self.fail_or_return(table, Err(error)).await?;
                    continue;
                }
            };
            self.shared().push(Arc::downgrade(&snapshot));
            for table in &opened {
                let planned =
                    retry(&self.context.stop, &self.context.observer, || self.plan_keyless(table, &snapshot))
                        .await;
                self.fail_or_return(table, planned).await?;
            }
            waiting.retain(|table| !opened.iter().any(|opened| opened.id == table.id));
            if !waiting.is_empty() {
                self.pause().await?;
            }
        }
        Ok(())
    }

    /// Gives a snapshot up for which the application has to wait: ALTER TABLE and TRUNCATE wait for its
    /// locks, and whoever comes after them, readers too.
    ///
    /// Gives [`Error::SnapshotLost`], after which the copies begin again; until then it doesn't end.
    pub(super) async fn watch_locks(&self) -> Error {
        let mut waited = false;
        loop {
            tokio::time::sleep(LOCKS_EVERY).await;
            let shared: Vec<_> = self.shared().iter().filter_map(Weak::upgrade).collect();
            let mut waits = false;
            for snapshot in &shared {
                // A snapshot that is gone keeps nobody waiting; who reads in it meets that.
                waits |= snapshot.blocks_other_sessions().await.unwrap_or(false);
            }
            if waits && waited {
                tracing::info!(
                    "the application waits for a table without a key that is being copied; its copy begins again"
                );
                for snapshot in shared {
                    snapshot.release().await;
                }
                return Error::SnapshotLost;
            }
            waited = waits;
        }
    }

    fn shared(&self) -> MutexGuard<'_, Vec<Weak<SharedSnapshot>>> {
        lock(&self.shared)
    }

    async fn pause(&self) -> Result<(), Error> {
        tokio::select! {
            () = self.context.stop.cancelled() => Err(Error::Stopped),
            () = tokio::time::sleep(plan::POLL) => Ok(()),
        }
    }

    /// Waits for transactions that a snapshot might not see although the stream does not bring them any more,
    /// empties a target that has rows of before, and puts on record that the copy has begun: after a crash it
    /// begins again.
    async fn make_ready(&self, table: &Table<D>, joining: bool) -> Result<(), Error> {
        let record = table.record();
        if joining {
            let session = self.session().await?;
            plan::wait_for_writers(&session, table, &self.context.stop).await?;
        }
        let mut version = record.copy_version;
        if record.plan > 0 || version > Lsn::ZERO {
            version = self.take_away(table).await?;
        }
        let number = plan::next_number(record.plan);
        table
            .update(|record| {
                (record.plan, record.chunks, record.copy_version) = (number, Vec::new(), version);
            })
            .await
    }

    /// Takes away all that a target has. Gives the position of the next copy, whose rows lie where none of
    /// before did.
    async fn take_away(&self, table: &Table<D>) -> Result<Lsn, Error> {
        let position = catalog::flushed_position(&self.session().await?).await?;
        let schema = table.schema();
        let fence = stream_fence(&self.context.fence, &schema);
        let older = Version::ZERO..Version::copied(position);
        self.context.destination.delete(&schema, Rows::All, older, &fence).await?;
        Ok(position)
    }

    /// Takes a snapshot and applies from the stream what it does not see. Gives the tables of which it sees
    /// all that the stream has skipped.
    async fn take_snapshot(
        &self,
        tables: &[Arc<Table<D>>],
    ) -> Result<(Arc<SharedSnapshot>, Vec<Arc<Table<D>>>), Error> {
        let locking = Locking::begin(&self.context.source, &self.context.application_name).await?;
        for table in tables {
            let locked = locking.lock(&table.schema()).await;
            locked.map_err(|error| Error::of_table(&table.id, error.into()))?;
        }
        let handoffs: Vec<_> = tables.iter().map(|table| table.snapshot_filter.pause()).collect();
        let snapshot = locking.share().await?;
        let boundary = boundary(&snapshot);
        let opened = tables
            .iter()
            .zip(handoffs)
            .filter_map(|(table, handoff)| handoff.commit(&boundary).then(|| Arc::clone(table)));
        let opened = opened.collect();
        Ok((Arc::new(snapshot), opened))
    }

    /// Plans a table's copy in a snapshot.
    async fn plan_keyless(&self, table: &Arc<Table<D>>, snapshot: &Arc<SharedSnapshot>) -> Result<(), Error> {
        let _before_a_truncate = table.chunk_gate.read().await;
        if table.failed() || table.snapshot_over() {
            return Ok(());
        }
        let session = self.session().await?;
        let (chunks, estimated) = plan::chunks(&session, &table.schema(), self.context.parallelism).await?;
        let all: Vec<usize> = (0..chunks.len()).collect();
        table
            .update(|record| {
                record.chunks = chunks;
                record.rows_estimated = estimated;
                record.boundary = Some(boundary(snapshot));
            })
            .await?;
        table.progress.rows_copied.store(0, Ordering::Relaxed);
        self.enqueue(table, table.record().plan, &all, Some(snapshot)).await
    }
}

fn boundary(snapshot: &SharedSnapshot) -> SnapshotBoundary {
    SnapshotBoundary { snapshot: snapshot.sees.clone(), end: snapshot.end }
}
