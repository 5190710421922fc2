//! Looks at the target tables now and then: a TTL, a setting or a column that somebody changes there can bring back rows that are gone,
//! without any insert being refused.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    Destination, Error, Policy,
    backoff::{Notice, retry},
    policy,
    table::Table,
};
use crate::model::TableSchema;

/// Time between two looks, each of which is a few queries, whatever the number of tables.
const EVERY: Duration = Duration::from_secs(10);

/// Looks until `end`. A table whose target no longer fits stops alone.
pub(super) async fn run<D: Destination>(
    destination: D,
    tables: Vec<Arc<Table<D>>>,
    notice: Notice,
    end: CancellationToken,
) {
    loop {
        tokio::select! {
            () = end.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match look(&destination, &tables, &notice, &end).await {
            Ok(()) => {}
            Err(Error::Stopped) => return,
            // Inserts meet the same fault and report it.
            Err(error) => tracing::debug!(%error, "could not look at the target tables"),
        }
    }
}

async fn look<D: Destination>(
    destination: &D,
    tables: &[Arc<Table<D>>],
    notice: &Notice,
    end: &CancellationToken,
) -> Result<(), Error> {
    let going: Vec<_> = tables.iter().filter(|table| !table.failed()).collect();
    let schemas: Vec<TableSchema> = going.iter().map(|table| table.schema()).collect();
    let standing = destination.standing(&schemas.iter().collect::<Vec<_>>()).await?;
    for (table, _) in going.into_iter().zip(standing).filter(|(_, stands)| !stands) {
        // What the stream has changed meanwhile fits the table's schema as it is now.
        let Err(fault) = destination.add_columns(&table.schema(), &[]).await else { continue };
        let error = Error::from(fault);
        if policy(&error).0 != Policy::FailTable {
            return Err(error);
        }
        retry(end, notice, || table.fail(&error)).await?;
    }
    Ok(())
}
