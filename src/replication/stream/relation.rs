//! What the stream says of relations: which table one is, and what changed in its columns.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{StreamSession, row::RelationMapping, stream_table::TableIndex};
use crate::{
    model::{Lsn, TableId, TableSchema},
    postgres::{catalog, pgoutput::Relation, session::Session, visibility},
    replication::{
        Destination, Error,
        monitor::{catalog_diff::FILLED_BEFORE, publication::identity_differs},
        retry::{retry, retry_in_stream},
        table::{
            describe::{self, CHANGED_COLUMNS, OTHER_NAMES},
            named_columns::{EXCLUDED_RENAMED, NamedColumns, Renewal},
            projection::{self, Fit, Matched, Projection},
            record::TableRecord,
            schema,
        },
    },
};

/// How long a commit that is in the stream may take until the catalog shows it: longer while it waits for a
/// synchronous standby.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);

/// How often the catalog is asked whether it shows a commit.
const POLL: Duration = Duration::from_millis(2);

/// The columns of a table by the catalog.
struct NewColumns {
    /// Those of the record and those that were added.
    schema: TableSchema,
    /// Which of them were added.
    added: Vec<usize>,
    /// The position of the log that the catalog was read at.
    read_lsn: Lsn,
}

impl<D: Destination> StreamSession<D> {
    /// Maps a relation to one of our tables, and applies what changed in its columns.
    pub(super) async fn on_relation(&mut self, relation: Relation) -> Result<(), Error> {
        // Another table may have, or have had, the name of ours.
        let Some(index) = self.applier.tables.with_oid(relation.oid) else {
            if let Some(root) = self.applier.last_announced.take() {
                self.note_partition(root, relation.oid).await?;
            }
            self.applier.set_mapping(relation.oid, None);
            return Ok(());
        };
        self.applier.last_announced = Some(index);
        let table = Arc::clone(&self.applier.tables[index].table);
        if table.failed() {
            self.applier.set_mapping(relation.oid, None);
            return Ok(());
        }
        if self.applier.is_mapped(relation.oid) {
            // Something may have happened to the table that its rows don't show.
            self.context.look.notify_one();
        }
        let named = table.named();
        if !named.is_empty() {
            if self.applier.is_in_snapshot(index) {
                self.applier.defer_relation(index, relation);
                return Ok(());
            }
            if let Err(error) = self.check_names(index, &relation, named).await {
                self.fail_or_return(index, error).await?;
                self.applier.set_mapping(relation.oid, None);
                return Ok(());
            }
        }
        self.map_relation(index, relation).await
    }

    /// Finds where a table's columns are in a relation's rows.
    async fn map_relation(&mut self, index: TableIndex, relation: Relation) -> Result<(), Error> {
        let entry = &self.applier.tables[index];
        let projection = match projection::fit(&entry.schema, &relation, &entry.spec.exclude) {
            Fit::Known(projection) => projection,
            Fit::Unknown(_) if self.applier.is_in_snapshot(index) => {
                self.applier.defer_relation(index, relation);
                return Ok(());
            }
            Fit::Unknown(detail) => {
                tracing::info!(table = %relation.table, detail, "columns changed in the stream");
                match self.apply_schema_change(index, &relation).await {
                    Ok(projection) => projection,
                    Err(error) => {
                        self.fail_or_return(index, error).await?;
                        Projection { positions: Vec::new(), identical: false }
                    }
                }
            }
        };
        let schema = Arc::clone(&self.applier.tables[index].schema);
        let mapping = RelationMapping::new(index, schema, projection, relation.identity);
        self.applier.set_mapping(relation.oid, Some(mapping));
        Ok(())
    }

    /// The error of a table with a partition whose old rows come incomplete.
    ///
    /// # Errors
    /// [`Error::CatalogChanged`] where no partition is such a one any more: what came until now has to be
    /// copied again. What the source answers.
    pub(super) async fn identity_differs(&self, index: TableIndex) -> Result<Error, Error> {
        let schema = Arc::clone(&self.applier.tables[index].schema);
        let session = self.connect().await?;
        let relations = catalog::relations(&session, &[schema.oid]).await?;
        let members = relations.get(&schema.oid).map(Vec::as_slice).unwrap_or_default();
        match identity_differs(&schema.id, members) {
            Some(error) => Ok(error),
            None => Err(Error::recopy(&schema.id, "a partition had another replica identity")),
        }
    }

    async fn connect(&self) -> Result<Session, Error> {
        Ok(Session::connect(&self.context.source, &self.context.application_name).await?)
    }

    /// Makes sure that the names of a table's entry mean the columns that they meant, before a row is read by
    /// a relation's names.
    ///
    /// # Errors
    /// The table's own where they don't, [`Error::CatalogChanged`] where that is unclear, and what the source
    /// answers: nothing is retried, for a source that shuts down waits for what this stream holds.
    async fn check_names(
        &self,
        index: TableIndex,
        relation: &Relation,
        mut named: NamedColumns,
    ) -> Result<(), Error> {
        let table = &self.applier.tables[index].table;
        let mut kept = self.context.catalog.lock().await;
        let session = match kept.take() {
            Some(session) => session,
            None => self.connect().await?,
        };
        // Before another transaction could write to a table that was altered, the catalog showed that; this
        // one may have altered it itself.
        let altering = self.applier.xid();
        let show = || visibility::alters(&session, altering.unwrap_or_default(), relation.oid);
        wait_until(&table.id, || async { Ok(!show().await?) }).await?;
        let live = catalog::live_columns(&session, relation.oid).await?;
        let read_lsn = catalog::read_lsn(&session).await?;
        *kept = Some(session);
        drop(kept);
        if live.is_empty() {
            return Err(Error::dropped(&table.id));
        }
        named.require(&table.id, &live)?;
        match named.renew(&live, read_lsn) {
            Renewal::Same => {}
            Renewal::Renewed(renewed) => {
                let record = |record: &mut TableRecord| record.named = Some(renewed.clone());
                let observer = &self.applier.inserter.observer;
                retry(&self.context.abort, observer, || table.update(record)).await?;
                named = renewed;
            }
            Renewal::Ambiguous => return Err(Error::recopy(&table.id, EXCLUDED_RENAMED)),
        }
        match named.identifies(relation, self.applier.commit()) {
            true => Ok(()),
            false => Err(Error::recopy(&table.id, EXCLUDED_RENAMED)),
        }
    }

    /// Puts a partition on record that the catalog did not have when it was checked last. PostgreSQL
    /// announces it right behind its root, before its first row: should it be gone at the next check, these
    /// rows have gone with it.
    async fn note_partition(&self, root: TableIndex, partition: u32) -> Result<(), Error> {
        let entry = &self.applier.tables[root];
        let table = &entry.table;
        let known = || {
            let record = table.record();
            record.fingerprint.is_none_or(|fingerprint| fingerprint.files.contains_key(&partition))
        };
        if !entry.schema.partitioned || table.failed() || self.applier.is_in_snapshot(root) || known() {
            return Ok(());
        }
        retry(&self.context.abort, &self.applier.inserter.observer, || {
            table.update(|record| {
                if let Some(fingerprint) = &mut record.fingerprint {
                    fingerprint.note_streamed(partition);
                }
            })
        })
        .await?;
        self.context.look.notify_one();
        Ok(())
    }

    /// Applies a change of columns from the catalog, and gives where the columns are in the relation's rows.
    async fn apply_schema_change(
        &mut self,
        index: TableIndex,
        relation: &Relation,
    ) -> Result<Projection, Error> {
        self.update_schema(index).await?;
        let entry = &self.applier.tables[index];
        let (schema, id) = (&entry.schema, &entry.table.id);
        let Matched { projection, unknown_columns, ambiguous } = projection::projection(schema, relation);
        let mut columns = projection.positions.iter().zip(&schema.columns);
        let lacks = columns.any(|(position, column)| position.is_none() && !column.dropped);
        match projection::unreadable(schema, relation, &projection) {
            // A column that it lacks may be one of those that nobody knows by their names.
            None if lacks && unknown_columns.iter().any(|name| !entry.spec.exclude.contains(name)) => {
                Err(Error::recopy(id, OTHER_NAMES))
            }
            None if ambiguous => Err(Error::recopy(id, OTHER_NAMES)),
            Some(detail) => Err(Error::recopy(id, detail)),
            // Binary values were asked for, and this column's can't be read so.
            None if self.context.binary && !schema.has_binary_decoder() => Err(Error::CatalogChanged {
                table: id.clone(),
                why: "a column came whose values are read as text".to_owned(),
                copy: false,
            }),
            None => Ok(projection),
        }
    }

    /// Asks the catalog for a table's columns and brings target and record up to them.
    async fn update_schema(&mut self, index: TableIndex) -> Result<(), Error> {
        let entry = &self.applier.tables[index];
        let (table, old) = (Arc::clone(&entry.table), Arc::clone(&entry.schema));
        let Some(NewColumns { schema, added, read_lsn }) = self.new_columns(index).await? else {
            return Ok(());
        };
        // Rows of the old schema go first, but not without the rest of their step: that comes with the new
        // schema, when all is sent again.
        let whole = self.applier.is_whole(index);
        if whole {
            self.applier.flush(index).await?;
        }
        let (inserter, abort) = (&self.applier.inserter, &self.context.abort);
        let changed = retry_in_stream(abort, &inserter.observer, &table, || async {
            Ok(inserter.destination.add_columns(&schema, &added).await?)
        });
        let filled = changed.await.map_err(|error| describe::refused(&old, CHANGED_COLUMNS, error))?;
        if !filled.is_empty() {
            return Err(Error::recopy(&old.id, FILLED_BEFORE));
        }
        retry(abort, &inserter.observer, || {
            table.update(|record: &mut TableRecord| {
                record.schema = schema.clone();
                record.read_until(read_lsn);
            })
        })
        .await?;
        let names: Vec<_> =
            added.iter().filter_map(|index| schema.columns.get(*index)).map(|column| &column.name).collect();
        tracing::info!(table = %table.id, added = ?names, "applied a schema change");
        if !whole {
            let why = "its columns changed between rows of one step".to_owned();
            return Err(Error::CatalogChanged { table: old.id.clone(), why, copy: false });
        }
        self.applier.tables[index].schema = Arc::new(schema);
        Ok(())
    }

    /// The columns that a table has by the catalog, if they are not those of its record.
    async fn new_columns(&self, index: TableIndex) -> Result<Option<NewColumns>, Error> {
        let entry = &self.applier.tables[index];
        let old = &entry.schema;
        let record = TableRecord { schema: (**old).clone(), ..entry.table.record() };
        // Not retried here: a source that shuts down waits for the stream, which must end then and begin
        // again.
        let session = self.connect().await?;
        wait_until_visible(&session, &old.id, self.applier.xid()).await?;
        let described = describe::describe(&session, &record).await?;
        let read_lsn = catalog::read_lsn(&session).await?;
        describe::require_old_rows(old, &described.schema)?;
        let (schema, added) =
            schema::evolve(old, &described.schema).map_err(|message| Error::recopy(&old.id, message))?;
        if schema::came_and_went(&record, &described) {
            return Err(Error::recopy(&old.id, describe::CAME_AND_WENT));
        }
        Ok((schema != **old).then_some(NewColumns { schema, added, read_lsn }))
    }
}

/// Waits until the catalog shows what the transaction being received did to a table. Without the columns that
/// it gave the table, its rows would be taken for rows of a table that has lost them since.
///
/// # Errors
/// [`Error::CatalogChanged`], after which the stream begins again, when it takes long, and what the source
/// answers.
async fn wait_until_visible(session: &Session, table: &TableId, xid: Option<u32>) -> Result<(), Error> {
    wait_until(table, || async { Ok(visibility::sees(session, xid.as_slice()).await?) }).await
}

/// The same for what `shows` says.
async fn wait_until<F: Future<Output = Result<bool, Error>>>(
    table: &TableId,
    shows: impl Fn() -> F,
) -> Result<(), Error> {
    let began = Instant::now();
    while !shows().await? {
        if began.elapsed() >= VISIBLE_WITHIN {
            tracing::info!(%table, "waits for a change of columns whose commit the source does not show yet");
            return Err(Error::CatalogChanged {
                table: table.clone(),
                why: "the source does not show the commit that changed its columns yet".to_owned(),
                copy: false,
            });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
