//! Brings the tables that the Mirror has up to its spec, their targets and the source's catalog.

use std::collections::BTreeSet;

use super::{
    claims::{self, Taken},
    context::ProvisionContext,
};
use crate::{
    fault::Reason,
    model::{TableId, TableSchema},
    postgres::catalog,
    replication::{
        Destination, Error,
        table::{
            record::{TablePhase, TableRecord},
            store::MirrorState,
            target,
        },
    },
};

fn is_running(record: &TableRecord) -> bool {
    record.phase != TablePhase::Failed
}

/// Fails those tables alone whose entries in the Mirror differ from when they were added. One whose entry is
/// again as it was is copied again: its changes were left out meanwhile.
pub(super) async fn compare_specs<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &mut MirrorState,
) -> Result<(), Error> {
    for spec in &context.config.tables {
        let Some(record) = state.tables.get_mut(&spec.id) else { continue };
        if record.spec != *spec && spec.continues(&record.spec) {
            record.spec = spec.clone();
            context.store.save_table(record).await?;
        }
        if record.spec != *spec && is_running(record) {
            context.fail_and_save(record, Error::SpecChanged { table: spec.id.clone() }).await?;
        } else if record.spec == *spec && !is_running(record) && record.reason == Some(Reason::SpecChanged) {
            record.phase = TablePhase::Streaming;
            record.set_reason(None, "");
            record.resync_reason = Some("its entry in the Mirror was another one for a while".to_owned());
        }
    }
    Ok(())
}

/// Forgets the tables that the Mirror no longer asks for.
pub(super) async fn prune_removed_tables<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &mut MirrorState,
) -> Result<(), Error> {
    let wanted: BTreeSet<&TableId> = context.config.tables.iter().map(|table| &table.id).collect();
    for record in state.tables.values().filter(|record| !wanted.contains(&record.schema.id)) {
        tracing::info!(table = %record.schema.id, "table left the mirror; its target stays");
        let former = context.store.forget_table(record, false).await?;
        state.former.insert(record.schema.id.clone(), former);
    }
    state.tables.retain(|id, _| wanted.contains(id));
    Ok(())
}

/// Fails tables alone whose targets are other Mirrors', or not the tables that they were.
pub(super) async fn check_targets<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &mut MirrorState,
    taken: &Taken,
) -> Result<(), Error> {
    let running = state.tables.values().filter(|record| is_running(record));
    let schemas: Vec<&TableSchema> = running.map(|record| &record.schema).collect();
    let identities = context.destination.identities(&schemas).await?;
    let running = state.tables.values_mut().filter(|record| is_running(record));
    for (record, identity) in running.zip(identities) {
        let outcome = match taken.get(&record.schema.target) {
            Some(claim) => Err(claims::taken(context.destination, &record.spec, claim)),
            None => target::identify(record, identity),
        };
        let changed = match outcome {
            Err(error) => context.fail_or_return(record, error).map(|()| true)?,
            Ok(changed) => changed,
        };
        if changed {
            context.store.save_table(record).await?;
        }
    }
    Ok(())
}

/// Brings the tables that the Mirror has up to their catalog and targets. One that can't be fails alone.
pub(super) async fn reconcile_tables<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &mut MirrorState,
) -> Result<(), Error> {
    let running = || state.tables.values().filter(|record| is_running(record));
    let oids: Vec<u32> = running().map(|record| record.schema.oid).collect();
    let fingerprints = catalog::fingerprints(context.session, &oids).await?;
    // Without a change to insert, a target that was dropped meanwhile would not be missed.
    let schemas: Vec<&TableSchema> = running().map(|record| &record.schema).collect();
    let usable = context.destination.usable_targets(&schemas).await?;
    for (record, usable) in state.tables.values_mut().filter(|record| is_running(record)).zip(usable) {
        let target = match usable {
            true => Ok(()),
            false => {
                let require = || async { Ok(context.destination.require_columns(&record.schema).await?) };
                context.start(&record.schema.id, require).await
            }
        };
        let plan = record.plan;
        let outcome = match (target, fingerprints.get(&record.schema.oid)) {
            (Ok(()), Some(now)) => context.reconcile_table(record, now).await,
            // The source monitor reports a table that is gone.
            (target, _) => target.map(|()| false),
        };
        let changed = match outcome {
            Err(error) => context.fail_or_return(record, error).map(|()| true)?,
            Ok(changed) => changed,
        };
        if record.plan != plan {
            state.chunks_done.remove(&record.schema.id);
        }
        if changed {
            context.store.save_table(record).await?;
        }
    }
    Ok(())
}
