//! The Mirror's publications: made, changed and checked.

use std::collections::BTreeSet;

use super::{add_tables::NewTable, context::ProvisionContext};
use crate::{
    model::{MirrorIdentity, ReplicatorConfig, TableId, TableSchema},
    postgres::{
        publication::{self, Member, Publish},
        session::Session,
        source_status::PublicationStatus,
    },
    replication::{
        Destination, Error,
        table::{record::PublishedAs, store::MirrorState},
    },
};

/// The comment that marks a publication as this Mirror's.
pub fn publication_comment(mirror: &MirrorIdentity) -> String {
    format!("walferry mirror {}", mirror.uid)
}

/// The publications that the Mirror reads.
pub(in crate::replication) fn publications(config: &ReplicatorConfig) -> Vec<String> {
    Publish::all(config).map(|what| what.name(&config.mirror)).collect()
}

/// Makes the publication, or adds what is new to the one that is there.
pub(super) async fn publish<D: Destination>(
    context: &ProvisionContext<'_, D>,
    state: &MirrorState,
    new: &mut [NewTable],
    what: Publish,
) -> Result<(), Error> {
    let ProvisionContext { config, session, .. } = *context;
    let name = what.name(&config.mirror);
    let mut new: Vec<&mut NewTable> =
        new.iter_mut().filter(|new| Publish::of(new.schema.kind) == what).collect();
    let comment = publication_comment(&config.mirror);
    let Some(found) = publication::read(session, &name).await? else {
        // PostgreSQL uses the publications as they were when a change was made, so they must be older than
        // the slot.
        if state.source.is_some() {
            return check_publication(&name, what, None);
        }
        let schemas: Vec<TableSchema> = new.iter().map(|new| new.schema.clone()).collect();
        publication::create(session, &name, what, &schemas, &comment).await?;
        tracing::info!(publication = name, tables = schemas.len(), "created the publication");
        return note_publication(session, &name, &mut new).await;
    };
    check_publication(&name, what, Some(PublicationStatus::from(&found)))?;
    let published: BTreeSet<&TableId> = found.tables.iter().map(|table| &table.id).collect();
    let add: Vec<&TableSchema> =
        new.iter().map(|new| &new.schema).filter(|schema| !published.contains(&schema.id)).collect();
    let wanted =
        config.tables.iter().filter(|table| table.operations.is_append_only() == (what == Publish::Inserts));
    let wanted: BTreeSet<&TableId> = wanted.map(|table| &table.id).collect();
    // What a publication of somebody else's, or of the primary's, sends too much is left out.
    let leaves = |id: &&TableId| found.may_alter && !wanted.contains(*id);
    let drop: Vec<TableId> = published.into_iter().filter(leaves).cloned().collect();
    let of = |new: &NewTable| found.tables.iter().find(|table| table.oid == new.schema.oid);
    let differs = |new: &NewTable, published| new.is_published_otherwise(published, found.may_alter);
    let reset = new.iter().filter(|new| of(new).is_some_and(|published| differs(new, published)));
    // A list that somebody made stays one, where PostgreSQL takes it.
    let listed =
        |new: &NewTable| new.listable && of(new).is_some_and(|published| published.columns.is_some());
    let reset: Vec<_> = reset.map(|new| Member { table: &new.schema, listed: listed(new) }).collect();
    if !add.is_empty() || !drop.is_empty() || !reset.is_empty() {
        publication::alter(session, &name, &add, &drop, &reset).await?;
        tracing::info!(
            publication = name,
            added = add.len(),
            dropped = drop.len(),
            "changed the publication"
        );
    }
    note_publication(session, &name, &mut new).await
}

/// Notes how new tables are published, by which a later change is found.
async fn note_publication(session: &Session, name: &str, new: &mut [&mut NewTable]) -> Result<(), Error> {
    if new.is_empty() {
        return Ok(());
    }
    let found = publication::read(session, name).await?;
    let tables = found.map(|found| found.tables).unwrap_or_default();
    for new in new {
        new.published = tables.iter().find(|table| table.oid == new.schema.oid).map(PublishedAs::from);
    }
    Ok(())
}

/// Whether a publication that this Mirror runs on is still there and sends what it is there for.
pub(in crate::replication) fn check_publication(
    name: &str,
    what: Publish,
    found: Option<PublicationStatus>,
) -> Result<(), Error> {
    let problem = match (found, what) {
        (None, Publish::Everything) => "no longer exists at the source",
        (None, Publish::Inserts) => {
            "does not exist at the source, or no longer, and append-only tables need one that is as old as the slot"
        }
        (Some(found), _) if !found.owned_by_us => {
            "was not made by walferry for this mirror; drop or rename it first"
        }
        (Some(found), _) if found.sends == Some(what) => return Ok(()),
        (Some(_), Publish::Everything) => {
            "no longer publishes inserts, updates, deletes and truncates, or no longer partitions by their root"
        }
        (Some(_), Publish::Inserts) => {
            "no longer publishes inserts and truncates alone, or no longer partitions by their root"
        }
    };
    Err(Error::PublicationChanged { publication: name.to_owned(), problem: problem.to_owned() })
}
