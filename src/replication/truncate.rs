//! A TRUNCATE of the source: deletes what the target has from before it.

use std::sync::{Arc, atomic::Ordering};

use tokio_util::sync::CancellationToken;

use super::{
    Destination, Error, Rows,
    applier::Applier,
    backoff::{retry, retry_for_table},
    batch::stream_fence,
    state::Floor,
};
use crate::model::Version;

/// Deletes the rows of a slot's table with lower versions than the TRUNCATE's; `None` where it can have none.
///
/// All rows from before it are confirmed by then, so their keys are there, and a late repetition of one loses. Whatever exists at the
/// source after a TRUNCATE was inserted after it, so it is in the stream: a snapshot that is still running has nothing left to copy. The
/// record comes first: a failover may lose the TRUNCATE.
///
/// # Errors
/// What the destination answers; [`Error::Table`] without a version.
pub(super) async fn apply<D: Destination>(
    abort: &CancellationToken,
    applier: &mut Applier<D>,
    slot: usize,
    version: Option<Version>,
) -> Result<(), Error> {
    let Some(table) = applier.slots.get(slot).map(|slot| Arc::clone(&slot.table)) else { return Ok(()) };
    if table.failed() {
        return Ok(());
    }
    let version = version.ok_or_else(|| Error::too_many_truncates(&table.id))?;
    applier.flush(slot).await?;
    let _after_the_insert =
        table.insert_permit.acquire().await.map_err(|closed| Error::Task(closed.to_string()))?;
    table.stop_copying().await;
    let (schema, versions) = (table.schema(), table.record().left_below(version));
    let destination = &applier.inserter.destination;
    let notice = &applier.inserter.notice;
    let fence = stream_fence(&applier.inserter.fence, &schema);
    retry(abort, notice, || table.finish_snapshot(applier.after_commit(), Floor::Rows(version))).await?;
    retry_for_table(abort, notice, &table, || async {
        Ok(destination.delete(&schema, Rows::All, versions.clone(), &fence).await?)
    })
    .await?;
    table.progress.truncated.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
