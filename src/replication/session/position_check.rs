//! Compares slot and source with the position on record before anything is changed.

use futures::{StreamExt, stream};

use super::{context::ProvisionContext, timeline::SourceTimeline};
use crate::{
    model::{Lsn, TableSchema},
    postgres::{catalog, slot},
    replication::{
        Destination, Error, ErrorKind, Policy, policy,
        stream::stream_fence,
        table::{record::TablePhase, store::MirrorState},
    },
};

/// Targets that are asked for their newest row at the same time: each answer takes a read of one column.
pub(super) const QUERIES_IN_PARALLEL: usize = 8;

/// Compares a started Mirror's slot and source with the position on record, before anything is changed.
///
/// # Errors
/// [`Error::PositionUnknown`], and those of [`super::position::PositionRecord::check`].
pub(super) async fn check_position<D: Destination>(
    context: &ProvisionContext<'_, D>,
    timeline: &SourceTimeline,
    state: &MirrorState,
) -> Result<(), Error> {
    if state.source.is_none() {
        return Ok(());
    }
    let name = context.config.mirror.slot_name();
    let Some(slot) = slot::read(context.session, &name).await? else { return Ok(()) };
    let Some(position) = &state.position else { return Err(Error::PositionUnknown { slot: name }) };
    position.check(&slot, timeline.timeline(), catalog::is_standby(context.session).await?)
}

/// A source that was started again may be one that was restored, and lack what the destination has without
/// having confirmed it: notes the newest such transaction, which the source has to send once more.
///
/// A table whose rows ClickHouse can't read fails alone: nothing else would show what its target has of
/// transactions that are lost.
///
/// # Errors
/// What the destination answers.
pub(super) async fn note_unconfirmed<D: Destination>(
    context: &ProvisionContext<'_, D>,
    timeline: &SourceTimeline,
    state: &mut MirrorState,
) -> Result<(), Error> {
    let (Some(source), Some(position)) = (&state.source, &mut state.position) else { return Ok(()) };
    if source.timeline != timeline.timeline() || source.server_started == timeline.server_started() {
        return Ok(());
    }
    let wanted = context.config.tables.iter().filter_map(|spec| state.tables.get(&spec.id));
    let running = wanted.filter(|record| record.phase != TablePhase::Failed);
    let asked: Vec<_> = running
        .map(|record| async { (record.schema.id.clone(), newest_streamed(context, &record.schema).await) })
        .collect();
    let answers: Vec<_> = stream::iter(asked).buffer_unordered(QUERIES_IN_PARALLEL).collect().await;
    for (id, newest) in answers {
        match newest {
            Ok(newest) => {
                let unconfirmed = newest.filter(|newest| *newest >= position.lsn);
                position.unconfirmed = position.unconfirmed.max(unconfirmed);
            }
            Err(error) => {
                let Some(record) = state.tables.get_mut(&id) else { continue };
                context.fail_and_save(record, error).await?;
            }
        }
    }
    Ok(())
}

/// The newest transaction that a target has streamed rows of; `None` where what is wrong with the target is
/// found when it is checked.
async fn newest_streamed<D: Destination>(
    context: &ProvisionContext<'_, D>,
    schema: &TableSchema,
) -> Result<Option<Lsn>, Error> {
    let fence = stream_fence(&context.config.mirror.fence(), schema);
    let ask =
        || async { Ok::<_, Error>(context.destination.newest_streamed_version(schema, &fence).await?.lsn()) };
    match ask().await {
        Ok(newest) => Ok(Some(newest)),
        Err(Error::Destination(refusal)) if refusal.kind == ErrorKind::Unclear => {
            context.start(&schema.id, ask).await.map(Some)
        }
        Err(error) if matches!(policy(&error).0, Policy::FailTable | Policy::Stall) => Ok(None),
        Err(error) => Err(error),
    }
}
