//! Checks the source's catalog now and then, for what the stream does not carry; and notices immediately when
//! the source shuts down.
//!
//! A server that shuts down ends its sessions first, and then waits until the reader of a stream has
//! confirmed everything or disconnects. Confirming may take as long as the destination is away, so the stream
//! ends: the slot has everything.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time};
use tokio_util::sync::CancellationToken;

use super::{
    catalog_diff::{self, Remainder},
    publication::{
        ancestor_published, has_children, published_otherwise, tables_breaking_writes,
        take_out_failing_filter, why_left,
    },
};
use crate::{
    fault::Reason,
    model::{Lsn, Progress, ReplicatorConfig, SnapshotMode, TableId, TableKind, lock},
    postgres::{
        catalog, copy,
        publication::{self, Publish},
        session::{End, Session},
        slot::SlotInfo,
        source_status::{self, Membership},
    },
    replication::{
        Destination, Error, policy,
        retry::{RetryObserver, retry},
        session::{
            position::Confirmable,
            publication::{check_publication, publications},
            slot::check_slot,
        },
        stream::Fatal,
        table::{Table, record::TableRecord, store::SourceRecord},
    },
};

/// Time between two checks. Each is one query, whatever the number of tables, and a few more when something
/// has changed.
const EVERY: Duration = Duration::from_secs(10);

/// Time from a change of a table in the stream to the check.
const SOON: Duration = Duration::from_millis(200);

/// How long the session is kept until another one takes its place. A server that waits for its sessions to
/// end (smart shutdown) says so only to new ones.
const SESSION_LIVES: Duration = Duration::from_secs(30);

/// Time between two tries to have a session again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a server that has ended the session as it does when it shuts down may take to say whether it
/// does.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// What is checked, and what is known of it.
pub(in crate::replication) struct SourceMonitor<D: Destination> {
    pub(in crate::replication) config: Arc<ReplicatorConfig>,
    pub(in crate::replication) source: Option<SourceRecord>,
    /// When the server that streams began, by which another one at its address is noticed.
    pub(in crate::replication) server_started: String,
    /// How far the source may have heard that rows are durable.
    pub(in crate::replication) confirmable: Arc<Confirmable>,
    pub(in crate::replication) progress: Arc<Progress>,
    pub(in crate::replication) tables: Vec<Arc<Table<D>>>,
    pub(in crate::replication) observer: RetryObserver,
    /// Asks for a check without waiting for the next one.
    pub(in crate::replication) check_requested: Arc<Notify>,
    /// When the publication was last checked and did no harm.
    pub(in crate::replication) last_checked: Arc<Mutex<Option<Instant>>>,
    /// The catalog's fingerprint when it was last checked in full, by publication.
    pub(in crate::replication) fingerprints: Mutex<HashMap<String, String>>,
    /// How many columns a table's record had, and where the log ended, when the catalog first had more.
    pub(in crate::replication) awaited_columns: Mutex<HashMap<TableId, (usize, Lsn)>>,
}

impl<D: Destination> SourceMonitor<D> {
    /// Runs until something is found that stops the stream, which goes to `fatal`. From `end` on it checks no
    /// more, but still hears of a shutdown, until the stream is `over`.
    ///
    /// A dropped publication must be found here: since PostgreSQL 18 the walsender only warns and leaves the
    /// changes out.
    pub(in crate::replication) async fn run(
        self,
        mut session: Session,
        fatal: Fatal,
        end: CancellationToken,
        over: CancellationToken,
    ) {
        tokio::select! {
            watched = self.watch(&mut session, &end) => match watched {
                Ok(never) => match never {},
                Err(error) => fatal.report(error),
            },
            () = over.cancelled() => {}
        }
        session.close().await;
    }

    async fn watch(&self, session: &mut Session, end: &CancellationToken) -> Result<Infallible, Error> {
        let mut opened = Instant::now();
        loop {
            let ended = tokio::select! {
                biased;
                ended = session.ended() => ended,
                checked = self.check_later(session, end) => match checked {
                    Ok(()) if opened.elapsed() < SESSION_LIVES => continue,
                    Err(Error::Source(error)) if error.is_shutdown() => End::Shutdown,
                    // The stream meets the same fault and retries it.
                    Ok(()) | Err(Error::Source(_)) => End::Lost,
                    Err(error) => return Err(error),
                },
            };
            // The old one stays until another is there, so that nothing is missed.
            *session = self.another_session(ended).await?;
            opened = Instant::now();
        }
    }

    /// Waits until the next check is due, and checks.
    async fn check_later(&self, session: &Session, end: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            biased;
            () = end.cancelled() => return std::future::pending().await,
            // Statements seldom come alone.
            () = self.check_requested.notified() => time::sleep(SOON).await,
            () = time::sleep(EVERY) => {}
        }
        match self.check(session, end).await {
            Ok(_) => Ok(()),
            Err(Error::Stopped) => std::future::pending().await,
            Err(error) => Err(error),
        }
    }

    /// A session in the place of one that has ended, or has lived long.
    ///
    /// # Errors
    /// [`Error::SourceShuttingDown`] when the server says so, or has said so and does not answer;
    /// [`Error::TwoServers`] when another one answers.
    async fn another_session(&self, ended: End) -> Result<Session, Error> {
        if ended == End::Shutdown {
            // Somebody may have ended this session alone.
            let opened = time::timeout(ANSWERS_WITHIN, self.open_session()).await;
            return match opened {
                Ok(Ok(session)) => Ok(session),
                _ => Err(Error::SourceShuttingDown),
            };
        }
        loop {
            match self.open_session().await {
                Err(Error::Source(error)) if error.is_shutdown() => return Err(Error::SourceShuttingDown),
                // The stream may well continue: others have taken all places for sessions, for example.
                Err(Error::Source(error)) => {
                    tracing::debug!(%error, "no session to check the source's catalog");
                    time::sleep(AGAIN).await;
                }
                opened => return opened,
            }
        }
    }

    async fn open_session(&self) -> Result<Session, Error> {
        let name = self.config.mirror.application_name();
        let session = Session::connect(&self.config.source, &name).await?;
        match catalog::server_started(&session).await? == self.server_started {
            true => Ok(session),
            false => Err(Error::TwoServers),
        }
    }

    /// Checks once. A table whose changes don't come any more stops alone. Gives the slot.
    ///
    /// # Errors
    /// What stops the whole Mirror: slot or publication are gone or unusable; and what the servers answer.
    pub(in crate::replication) async fn check(
        &self,
        session: &Session,
        end: &CancellationToken,
    ) -> Result<Option<SlotInfo>, Error> {
        if self.config.has_append_only() {
            self.check_one(session, end, Publish::Inserts).await?;
        }
        self.check_one(session, end, Publish::Everything).await
    }

    /// Checks one publication with its tables, and the slot.
    async fn check_one(
        &self,
        session: &Session,
        end: &CancellationToken,
        what: Publish,
    ) -> Result<Option<SlotInfo>, Error> {
        let slot = self.config.mirror.slot_name();
        let publication = what.name(&self.config.mirror);
        let sent_by_it = |table: &&Arc<Table<D>>| Publish::of(table.schema().kind) == what;
        let tables: Vec<_> = self.tables.iter().filter(sent_by_it).collect();
        let oids: Vec<u32> = tables.iter().map(|table| table.schema().oid).collect();
        let found = source_status::read(session, &slot, &publication, &oids).await?;
        let known = self.source.as_ref().map(|source| source.timeline);
        if found.timeline.is_some() && found.timeline != known {
            return Err(Error::TimelineLeft);
        }
        if let Some(slot) = &found.slot {
            self.report_slot(slot);
        }
        let slot = check_slot(&self.config, self.source.as_ref(), found.slot)?;
        if let Some(slot) = &slot {
            self.progress.set_source_lsn(slot.current_lsn);
            self.confirmable.check(slot)?;
        }
        check_publication(&publication, what, found.publication)?;
        let unchanged = lock(&self.fingerprints).get(&publication) == Some(&found.fingerprint);
        if !unchanged {
            self.check_members(session, end, &publication, what).await?;
            self.fail_partitions(session, end).await?;
            self.fail_inherited(session, end).await?;
        }
        let members: Vec<_> = tables.iter().copied().zip(&found.tables).collect();
        self.fail_cut_off(session, end, &members, what).await?;
        self.find_readable(session, &tables).await?;
        for (table, membership) in &members {
            let failing = table.failed() && table.record().reason == Some(Reason::SourceRowFilterFailed);
            if failing && membership.published {
                take_out_failing_filter(session, &publication, &table.id).await?;
            }
        }
        let streamed = |table: &&Arc<Table<D>>| {
            table.record().fingerprint.is_some_and(|fingerprint| fingerprint.has_streamed())
        };
        if !unchanged || tables.iter().any(streamed) {
            // What is still to come in the stream is compared again.
            if self.compare_fingerprints(session, &oids, end).await? {
                lock(&self.fingerprints).insert(publication, found.fingerprint);
            }
        }
        // Only this one can have done harm, and it is the last one checked.
        if what == Publish::Everything {
            *lock(&self.last_checked) = Some(Instant::now());
        }
        Ok(slot)
    }

    /// Fails the tables alone whose changes don't come any more.
    async fn fail_cut_off(
        &self,
        session: &Session,
        end: &CancellationToken,
        members: &[(&Arc<Table<D>>, &Membership)],
        what: Publish,
    ) -> Result<(), Error> {
        let publication = what.name(&self.config.mirror);
        for (table, membership) in members.iter().filter(|(table, _)| !table.failed()) {
            let Some(mut error) = cut_off(&table.id, membership, &publication) else { continue };
            if what == Publish::Everything && policy(&error).1 == Reason::SourceNotPublished {
                let left = why_left(session, &publication, &table.schema()).await?;
                error = left.unwrap_or(error);
            }
            retry(end, &self.observer, || table.fail(&error)).await?;
        }
        Ok(())
    }

    /// Keeps the publication from harming the application, whether a table still streams or not, and checks
    /// that it sends of each table what it sent from the beginning.
    async fn check_members(
        &self,
        session: &Session,
        end: &CancellationToken,
        name: &str,
        what: Publish,
    ) -> Result<(), Error> {
        let Some(found) = publication::read(session, name).await? else { return Ok(()) };
        let (may_alter, found) = (found.may_alter, found.tables);
        let of = |table: &Table<D>| {
            let oid = table.schema().oid;
            found.iter().find(move |published| published.oid == oid)
        };
        let published: Vec<_> = self.tables.iter().filter_map(|table| of(table)).collect();
        let last_checked = *lock(&self.last_checked);
        let mut breaking =
            tables_breaking_writes(session, (name, what), may_alter, &published, last_checked).await?;
        for table in &self.tables {
            let Some(now) = of(table) else { continue };
            let otherwise = || {
                let before = table.record().published?;
                published_otherwise(&table.schema(), name, &before, now)
            };
            let differs = |error: &Error| policy(error).1 == Reason::SourceReplicaIdentityDiffers;
            if let Some(error) = breaking.remove(&now.oid) {
                match differs(&error) {
                    // It heals automatically, and no other failure with it.
                    true => retry(end, &self.observer, || table.fail(&error)).await?,
                    false => retry(end, &self.observer, || table.fail_again(&error)).await?,
                }
            } else if self.config.snapshot.mode != SnapshotMode::Never
                && table.failed()
                && table.record().reason == Some(Reason::SourceReplicaIdentityDiffers)
            {
                return Err(Error::recopy(&table.id, "a partition had another replica identity"));
            } else if let Some(error) = otherwise() {
                retry(end, &self.observer, || table.fail(&error)).await?;
            }
        }
        Ok(())
    }

    /// Whether a table that has failed because it might not be read may be read again: privileges on schemas
    /// and of roles are not in the catalog's fingerprint. Its rows that were skipped come with a copy.
    async fn find_readable(&self, session: &Session, tables: &[&Arc<Table<D>>]) -> Result<(), Error> {
        if self.config.snapshot.mode == SnapshotMode::Never {
            return Ok(());
        }
        for table in tables.iter().filter(|table| table.failed()) {
            let TableRecord { reason, schema, .. } = table.record();
            // Of a table without its deletes, a copy would lose rows that the source no longer has.
            let waits =
                reason == Some(Reason::SourcePrivilegeMissing) && schema.kind != TableKind::AppendOnly;
            if waits && copy::may_read(session, &schema).await? {
                return Err(Error::recopy(&table.id, "it may be read again"));
            }
        }
        Ok(())
    }

    /// Stops the tables whose changes are sent as those of a table above them.
    async fn fail_partitions(&self, session: &Session, end: &CancellationToken) -> Result<(), Error> {
        let oids: Vec<u32> = self.tables.iter().map(|table| table.schema().oid).collect();
        let publications = publications(&self.config);
        let ancestors = catalog::published_ancestors(session, &oids, &publications).await?;
        for (table, oid) in self.tables.iter().zip(oids) {
            if let Some(ancestor) = ancestors.get(&oid) {
                let error = ancestor_published(&table.id, ancestor);
                retry(end, &self.observer, || table.fail(&error)).await?;
            }
        }
        Ok(())
    }

    /// Stops the tables that others inherit from, and has one copied again from which none does any more: its
    /// changes were left out.
    async fn fail_inherited(&self, session: &Session, end: &CancellationToken) -> Result<(), Error> {
        let oids: Vec<u32> = self.tables.iter().map(|table| table.schema().oid).collect();
        let parents = catalog::with_children(session, &oids).await?;
        for (table, oid) in self.tables.iter().zip(oids) {
            // Of a table without its deletes, a copy would lose rows that the source no longer has.
            let heals = self.config.snapshot.mode != SnapshotMode::Never
                && table.schema().kind != TableKind::AppendOnly;
            let failed = table.failed() && table.record().reason == Some(Reason::SourceTableInherited);
            if parents.contains(&oid) {
                let error = has_children(&table.id, heals);
                retry(end, &self.observer, || table.fail(&error)).await?;
            } else if failed && heals {
                return Err(Error::recopy(&table.id, "other tables inherited from it"));
            }
        }
        Ok(())
    }

    /// Whether the catalog says of each table what it said when the table was last reconciled with it, apart
    /// from columns that the stream is still to bring: then not all of it is recorded. What the stream has
    /// applied itself is; for anything else the session restarts.
    async fn compare_fingerprints(
        &self,
        session: &Session,
        oids: &[u32],
        end: &CancellationToken,
    ) -> Result<bool, Error> {
        let fingerprints = catalog::fingerprints(session, oids).await?;
        let (mut read_lsn, mut all) = (None, true);
        for table in self.tables.iter().filter(|table| !table.failed()) {
            let record = table.record();
            let Some(now) = fingerprints.get(&record.schema.oid) else { continue };
            if Some(now) == record.fingerprint.as_ref() {
                continue;
            }
            let remainder = catalog_diff::remainder(session, &record, now).await?;
            let read_lsn = match read_lsn {
                Some(read_lsn) => read_lsn,
                None => *read_lsn.insert(catalog::read_lsn(session).await?),
            };
            match remainder {
                Remainder::Nothing => {}
                Remainder::AddedColumns if table.snapshot_over() && self.is_behind(&record, read_lsn) => {
                    all = false;
                    continue;
                }
                Remainder::AddedColumns | Remainder::Table => {
                    let why = "its columns, files or partitions are others".to_owned();
                    return Err(Error::CatalogChanged { table: table.id.clone(), why, copy: false });
                }
            }
            let compared = record.fingerprint.unwrap_or_default();
            let note = |record: &mut TableRecord| {
                let mut fingerprint = now.clone();
                fingerprint.keep_streamed(record.fingerprint.as_ref().unwrap_or(&compared), &compared);
                record.fingerprint = Some(fingerprint);
                record.read_until(read_lsn);
            };
            retry(end, &self.observer, || table.update(note)).await?;
        }
        Ok(all)
    }

    /// Whether the stream has not yet come to where the catalog first had columns that the table's record
    /// lacks. To restart the session for each of them would leave no time for what is received to become
    /// durable, where they come all the time.
    fn is_behind(&self, record: &TableRecord, now: Lsn) -> bool {
        let mut awaited = lock(&self.awaited_columns);
        let (columns, id) = (record.schema.columns.len(), record.schema.id.clone());
        let (known, since) = awaited.entry(id).or_insert((columns, now));
        if *known != columns {
            (*known, *since) = (columns, now);
        }
        self.progress.durable_lsn() < *since
    }

    /// Reports the slot, with a warning in the log when it begins to be a risk, and as the risk grows.
    fn report_slot(&self, slot: &SlotInfo) {
        let now = slot.report();
        if now.is_worse_than(&self.progress.slot()) {
            tracing::warn!(
                slot = slot.name,
                retained_bytes = slot.retained_bytes,
                safe_bytes = slot.safe_wal_size,
                "the slot holds back much WAL: the source may give it up, or its disk may fill up"
            );
        }
        self.progress.set_slot(now);
    }
}

/// Why a table's changes don't come any more, if that is so.
fn cut_off(table: &TableId, found: &Membership, publication: &str) -> Option<Error> {
    match &found.id {
        None => Some(Error::dropped(table)),
        Some(name) if name != table => Some(Error::renamed(table, name)),
        Some(_) if !found.published => Some(Error::unpublished(table, publication)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Reason;
    use crate::replication::{Policy, policy};

    #[test]
    fn a_table_without_changes_stops_alone_and_says_why() {
        let table = TableId::new("public", "t");
        let found = |name: Option<&str>, published| Membership {
            id: name.map(|name| TableId::new("public", name)),
            published,
        };
        assert!(cut_off(&table, &found(Some("t"), true), "p").is_none());
        for (found, reason, words) in [
            (found(None, false), Reason::SourceTableDropped, "was dropped at the source"),
            (found(Some("u"), true), Reason::SourceTableDropped, "is called public.u at the source now"),
            (found(Some("t"), false), Reason::SourceNotPublished, "publication p no longer has it"),
        ] {
            let error = cut_off(&table, &found, "p").unwrap();
            assert_eq!(policy(&error), (Policy::FailTable, reason));
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
