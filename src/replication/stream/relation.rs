//! What the stream says of relations: which table one is, and what changed in its columns.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Surroundings, apply::Applier, fail, row::KnownRelation};
use crate::{
    model::TableId,
    postgres::{catalog, pgoutput::Relation, session::Session, visibility},
    replication::{
        Destination, Error, Policy,
        backoff::{retry, retry_in_stream},
        drift::FILLED_BEFORE,
        guard,
        named_columns::{EXCLUDED_RENAMED, NamedColumns, Renewal},
        policy,
        schema_change::{self, CHANGED_COLUMNS, Fit, Matched, OTHER_NAMES, Projection},
        state::TableRecord,
    },
};

/// How long a commit that is in the stream may take until the catalog shows it. While it waits for a synchronous standby it takes longer.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// How often it is looked whether the catalog shows it.
const POLL: Duration = Duration::from_millis(2);

/// Resolves a relation to one of our tables, and applies what changed in its columns.
pub(super) async fn announce<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    relation: Relation,
) -> Result<(), Error> {
    // Another table may have, or have had, the name of ours.
    let Some(index) = applier.slots.iter().position(|slot| slot.schema.oid == relation.oid) else {
        if let Some(root) = applier.announced.take() {
            note_partition(surroundings, applier, root, relation.oid).await?;
        }
        applier.know(relation.oid, None);
        return Ok(());
    };
    applier.announced = Some(index);
    let Some(slot) = applier.slots.get(index).filter(|slot| !slot.table.failed()) else {
        applier.know(relation.oid, None);
        return Ok(());
    };
    if applier.slot_of(relation.oid).is_some() {
        // Something may have happened to the table that its rows don't tell.
        surroundings.look.notify_one();
    }
    let named = slot.table.named();
    if !named.is_empty() {
        if applier.is_covered(index) {
            applier.judge_later(index, relation);
            return Ok(());
        }
        match check_names(surroundings, applier, index, &relation, named).await {
            Ok(()) => {}
            Err(error) if policy(&error).0 == Policy::FailTable => {
                fail(surroundings, applier, index, &error).await?;
                applier.know(relation.oid, None);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
    let Some(slot) = applier.slots.get(index) else { return Ok(()) };
    let projection = match schema_change::fit(&slot.schema, &relation, &slot.spec.exclude) {
        Fit::Known(projection) => projection,
        Fit::Unknown(_) if applier.is_covered(index) => {
            applier.judge_later(index, relation);
            return Ok(());
        }
        Fit::Unknown(detail) => {
            tracing::info!(table = %relation.table, detail, "columns changed in the stream");
            match follow(surroundings, applier, index, &relation).await {
                Ok(projection) => projection,
                Err(error) if policy(&error).0 == Policy::FailTable => {
                    fail(surroundings, applier, index, &error).await?;
                    Projection { places: Vec::new(), identical: false }
                }
                Err(error) => return Err(error),
            }
        }
    };
    let Some(slot) = applier.slots.get(index) else { return Ok(()) };
    let known = KnownRelation::new(index, Arc::clone(&slot.schema), projection, relation.identity);
    applier.know(relation.oid, Some(known));
    Ok(())
}

/// The fault of a table with a partition whose old rows come incomplete.
///
/// # Errors
/// [`Error::CatalogChanged`] where no partition is such a one any more: what came until now has to be copied again. What the source
/// answers.
pub(super) async fn identity_differs<D: Destination>(
    surroundings: &Surroundings,
    applier: &Applier<D>,
    index: usize,
) -> Result<Error, Error> {
    let Some(schema) = applier.slots.get(index).map(|slot| Arc::clone(&slot.schema)) else {
        return Err(Error::Stopped);
    };
    let session = Session::connect(&surroundings.source, &surroundings.application_name).await?;
    let relations = catalog::relations(&session, &[schema.oid]).await?;
    let members = relations.get(&schema.oid).map(Vec::as_slice).unwrap_or_default();
    match guard::identity_differs(&schema.id, members) {
        Some(error) => Ok(error),
        None => Err(Error::copy_anew(&schema.id, "a partition had another replica identity")),
    }
}

/// Sees to it that the names of a table's entry mean the columns that they meant, before a row is read by a relation's names.
///
/// # Errors
/// The table's own fault where they don't, [`Error::CatalogChanged`] where that can't be told, and what the source answers: nothing is
/// tried again, for a source that shuts down waits for what this stream holds.
async fn check_names<D: Destination>(
    surroundings: &Surroundings,
    applier: &Applier<D>,
    index: usize,
    relation: &Relation,
    mut named: NamedColumns,
) -> Result<(), Error> {
    let Some(table) = applier.slots.get(index).map(|slot| Arc::clone(&slot.table)) else { return Ok(()) };
    let mut kept = surroundings.catalog.lock().await;
    let session = match kept.take() {
        Some(session) => session,
        None => Session::connect(&surroundings.source, &surroundings.application_name).await?,
    };
    // Before another transaction could write to a table that was altered, the catalog showed that; this one may have altered it itself.
    let altering = applier.xid();
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
            retry(&surroundings.abort, &applier.inserter.notice, || table.update(record)).await?;
            named = renewed;
        }
        Renewal::Ambiguous => return Err(Error::copy_anew(&table.id, EXCLUDED_RENAMED)),
    }
    match named.tell_apart(relation, applier.commit()) {
        true => Ok(()),
        false => Err(Error::copy_anew(&table.id, EXCLUDED_RENAMED)),
    }
}

/// Puts a partition on record that the catalog did not have at the last look. PostgreSQL announces it right behind its root, before
/// its first row: should it be gone at the next look, these rows have gone with it.
async fn note_partition<D: Destination>(
    surroundings: &Surroundings,
    applier: &Applier<D>,
    root: usize,
    partition: u32,
) -> Result<(), Error> {
    let Some(slot) = applier.slots.get(root) else { return Ok(()) };
    let table = Arc::clone(&slot.table);
    let known = || {
        let record = table.record();
        record.layout.is_none_or(|layout| layout.files.contains_key(&partition))
    };
    if !slot.schema.partitioned || table.failed() || applier.is_covered(root) || known() {
        return Ok(());
    }
    retry(&surroundings.abort, &applier.inserter.notice, || {
        table.update(|record| {
            if let Some(layout) = &mut record.layout {
                layout.note_streamed(partition);
            }
        })
    })
    .await?;
    surroundings.look.notify_one();
    Ok(())
}

/// Takes a change of columns up from the catalog, and says where the columns are in the relation's rows.
async fn follow<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    index: usize,
    relation: &Relation,
) -> Result<Projection, Error> {
    change_schema(surroundings, applier, index).await?;
    let Some(slot) = applier.slots.get(index) else { return Err(Error::Stopped) };
    let Matched { projection, strangers, doubtful } = schema_change::projection(&slot.schema, relation);
    let lacks =
        projection.places.iter().zip(&slot.schema.columns).any(|(place, c)| place.is_none() && !c.dropped);
    match schema_change::unreadable(&slot.schema, relation, &projection) {
        // A column that it lacks may be one of those that nobody knows by their names.
        None if lacks && strangers.iter().any(|name| !slot.spec.exclude.contains(name)) => {
            Err(Error::copy_anew(&slot.table.id, OTHER_NAMES))
        }
        None if doubtful => Err(Error::copy_anew(&slot.table.id, OTHER_NAMES)),
        Some(detail) => Err(Error::copy_anew(&slot.table.id, detail)),
        // Binary values were asked for, and this column's can't be read so.
        None if surroundings.binary && !slot.schema.has_binary_decoder() => Err(Error::CatalogChanged {
            table: slot.table.id.clone(),
            why: "a column came whose values are read as text".to_owned(),
            copy: false,
        }),
        None => Ok(projection),
    }
}

/// Waits until the catalog shows what the transaction being received did to a table. Without the columns that it gave the table, its
/// rows would be taken for rows of a table that has lost them since.
///
/// # Errors
/// [`Error::CatalogChanged`], after which the stream begins anew, when it takes long, and what the source answers.
async fn wait_until_seen(session: &Session, table: &TableId, xid: Option<u32>) -> Result<(), Error> {
    wait_until(table, || async { Ok(visibility::sees(session, xid.as_slice()).await?) }).await
}

/// The same for what `shows` says.
async fn wait_until<F: Future<Output = Result<bool, Error>>>(
    table: &TableId,
    shows: impl Fn() -> F,
) -> Result<(), Error> {
    let began = Instant::now();
    while !shows().await? {
        if began.elapsed() >= SEEN_WITHIN {
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

/// Asks the catalog for a table's columns and brings target and state up to them.
async fn change_schema<D: Destination>(
    surroundings: &Surroundings,
    applier: &mut Applier<D>,
    index: usize,
) -> Result<(), Error> {
    let Some(slot) = applier.slots.get(index) else { return Ok(()) };
    let (table, old) = (Arc::clone(&slot.table), Arc::clone(&slot.schema));
    let known = TableRecord { schema: (*old).clone(), ..table.record() };
    let notice = applier.inserter.notice.clone();
    let xid = applier.xid();
    // Not tried again here: a source that shuts down waits for the stream, which must end then and begin again.
    let session = Session::connect(&surroundings.source, &surroundings.application_name).await?;
    wait_until_seen(&session, &old.id, xid).await?;
    let described = schema_change::describe(&session, &known).await?;
    let seen = catalog::read_lsn(&session).await?;
    drop(session);
    let fresh = &described.schema;
    schema_change::require_old_rows(&old, fresh)?;
    let (merged, added) =
        schema_change::evolve(&old, fresh).map_err(|message| Error::copy_anew(&old.id, message))?;
    if schema_change::came_and_went(&known, &described) {
        return Err(Error::copy_anew(&old.id, schema_change::CAME_AND_WENT));
    }
    if merged == *old {
        return Ok(());
    }
    // Rows of the old schema go first, but not without the rest of their step: that comes with the new schema, when all is sent again.
    let whole = applier.is_whole(index);
    if whole {
        applier.flush(index).await?;
    }
    let destination = &applier.inserter.destination;
    let changed = retry_in_stream(&surroundings.abort, &notice, &table, || async {
        Ok(destination.add_columns(&merged, &added).await?)
    });
    let filled = changed.await.map_err(|error| schema_change::refused(&old, CHANGED_COLUMNS, error))?;
    if !filled.is_empty() {
        return Err(Error::copy_anew(&old.id, FILLED_BEFORE));
    }
    let record = merged.clone();
    retry(&surroundings.abort, &notice, || {
        table.update(|table: &mut TableRecord| {
            table.schema = record.clone();
            table.seen_until(seen);
        })
    })
    .await?;
    let names: Vec<_> =
        added.iter().filter_map(|index| merged.columns.get(*index)).map(|c| &c.name).collect();
    tracing::info!(table = %table.id, added = ?names, "applied a schema change");
    if !whole {
        let why = "its columns changed between rows of one step".to_owned();
        return Err(Error::CatalogChanged { table: old.id.clone(), why, copy: false });
    }
    if let Some(slot) = applier.slots.get_mut(index) {
        slot.schema = Arc::new(merged);
    }
    Ok(())
}
