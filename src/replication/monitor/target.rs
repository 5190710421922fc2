//! Checks the target tables now and then: a TTL, a setting or a column that somebody changes there can bring
//! back rows that are gone, without any insert being refused.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    model::TableSchema,
    replication::{
        Destination, Error, Policy, policy,
        retry::{RetryObserver, retry},
        session::claims,
        stream::Fatal,
        table::{Table, target},
    },
};

/// Time between two checks, each of which is a few queries, whatever the number of tables.
const EVERY: Duration = Duration::from_secs(10);

/// What is checked.
pub(in crate::replication) struct TargetMonitor<D: Destination> {
    pub(in crate::replication) destination: D,
    /// The Mirror's UID.
    pub(in crate::replication) uid: String,
    pub(in crate::replication) tables: Vec<Arc<Table<D>>>,
    pub(in crate::replication) observer: RetryObserver,
}

impl<D: Destination> TargetMonitor<D> {
    /// Checks until `end`. A table whose target no longer fits, or is another table, stops alone.
    pub(in crate::replication) async fn run(self, fatal: Fatal, end: CancellationToken) {
        loop {
            tokio::select! {
                () = end.cancelled() => return,
                () = tokio::time::sleep(EVERY) => {}
            }
            match self.check(&end).await {
                Ok(()) => {}
                Err(Error::Stopped) => return,
                Err(error @ Error::TargetReleased { .. }) => return fatal.report(error),
                // Inserts meet the same fault and report it.
                Err(error) => tracing::debug!(%error, "could not check the target tables"),
            }
        }
    }

    async fn check(&self, end: &CancellationToken) -> Result<(), Error> {
        let running: Vec<_> = self.tables.iter().filter(|table| !table.failed()).collect();
        let schemas: Vec<TableSchema> = running.iter().map(|table| table.schema()).collect();
        let schemas: Vec<&TableSchema> = schemas.iter().collect();
        let identities = self.destination.identities(&schemas).await?;
        for (table, identity) in running.iter().zip(identities) {
            if let Err(error) = target::identify(&mut table.record(), identity) {
                retry(end, &self.observer, || table.fail(&error)).await?;
            }
        }
        let usable = self.destination.usable_targets(&schemas).await?;
        let mut unchecked = None;
        for (table, _) in running.into_iter().zip(usable).filter(|(_, usable)| !usable) {
            // What the stream has changed meanwhile fits the table's schema as it is now.
            let Err(fault) = self.destination.require_columns(&table.schema()).await else { continue };
            let error = Error::from(fault);
            // What can't be checked of one says nothing of the others.
            if policy(&error).0 != Policy::FailTable {
                unchecked = Some(error);
                continue;
            }
            retry(end, &self.observer, || table.fail(&error)).await?;
        }
        self.check_claims().await?;
        unchecked.map_or(Ok(()), Err)
    }

    /// # Errors
    /// [`Error::TargetReleased`] where a table that waited for another Mirror can be added.
    async fn check_claims(&self) -> Result<(), Error> {
        let records = self.tables.iter().map(|table| table.record());
        let waiting: Vec<_> = records.filter(claims::waits_for_target).map(|record| record.schema).collect();
        if waiting.is_empty() {
            return Ok(());
        }
        let claims = claims::claims(&self.destination).await?;
        let is_free = |schema: &TableSchema| claims::foreign(&claims, &self.uid, &schema.target).is_none();
        match waiting.into_iter().find(is_free) {
            Some(schema) => Err(Error::TargetReleased { table: schema.id }),
            None => Ok(()),
        }
    }
}
