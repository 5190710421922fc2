//! What provisioning works with.

use tokio_util::sync::CancellationToken;

use crate::{
    model::{ReplicatorConfig, TableId},
    postgres::session::Session,
    replication::{
        Destination, Error, Policy, failure_of_table, policy,
        retry::{RetryObserver, start_table},
        table::{record::TableRecord, store::StateStore},
    },
};

/// The Mirror, its two sides and its records, before anything streams.
pub(super) struct ProvisionContext<'a, D: Destination> {
    pub(super) config: &'a ReplicatorConfig,
    pub(super) session: &'a Session,
    pub(super) destination: &'a D,
    pub(super) store: &'a StateStore<D>,
    pub(super) stop: &'a CancellationToken,
    /// Observes what is retried for single tables.
    pub(super) observer: &'a RetryObserver,
}

impl<D: Destination> ProvisionContext<'_, D> {
    /// Does something to a table's target, as [`start_table`].
    pub(super) async fn start<T, F, Fut>(&self, table: &TableId, attempt: F) -> Result<T, Error>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        start_table(self.stop, self.observer, table, attempt).await
    }

    /// Fails the table alone where the error is its own, without writing its record; else gives the error
    /// back.
    pub(super) fn fail_or_return(&self, record: &mut TableRecord, error: Error) -> Result<(), Error> {
        if policy(&error).0 != Policy::FailTable {
            return Err(error);
        }
        let failure = failure_of_table(&record.schema.id, &error);
        let why = self.config.sentence(&failure);
        tracing::error!(table = %record.schema.id, reason = %failure.reason, error = %why, "table can't be mirrored; the others continue");
        record.fail(failure);
        Ok(())
    }

    /// As [`ProvisionContext::fail_or_return`], and writes the record.
    pub(super) async fn fail_and_save(&self, record: &mut TableRecord, error: Error) -> Result<(), Error> {
        self.fail_or_return(record, error)?;
        self.store.save_table(record).await
    }
}
