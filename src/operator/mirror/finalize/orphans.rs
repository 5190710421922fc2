//! What remains of a Mirror when it is deleted without clean-up.

use std::fmt::Display;

use super::{deletion_view::DeletionView, endpoints::Endpoints};
use crate::{
    api::Mirror,
    cleanup,
    model::MirrorIdentity,
    operator::{
        object::{MaybeInvalid, valid},
        shared::Shared,
    },
    status::slot_place,
};

/// What remains of a Mirror at its source.
pub(super) struct Orphans {
    /// The SQL that drops slot and publications.
    statements: String,
    /// Server and database, if known.
    place: Option<String>,
}

impl Orphans {
    /// Finds them without any Secret, because a namespace that is being deleted loses its Secrets first.
    pub(super) async fn find(
        shared: &Shared,
        mirror: &MaybeInvalid<Mirror>,
        identity: &MirrorIdentity,
        last: Option<&Endpoints>,
    ) -> Orphans {
        let view = DeletionView::read(shared, mirror).await.ok();
        let made_at = view.as_ref().and_then(|view| view.status.slot.as_ref());
        let mut found = made_at.map(|made_at| slot_place(made_at).to_string());
        if found.is_none() {
            found = last.map(|last| place(&last.source.host, last.source.port, &last.source.database));
        }
        if let (None, Some(view)) = (&found, &view) {
            let peer = shared.peer(&identity.namespace, &view.spec.source_ref.name).await.ok().flatten();
            let postgres = peer.as_deref().and_then(valid).and_then(|peer| peer.spec.postgres.as_ref());
            found = postgres.map(|postgres| place(&postgres.host, postgres.port, &postgres.database));
        }
        Orphans { statements: cleanup::statements(identity), place: found }
    }

    /// The SQL to run, and where.
    pub(super) fn manual_cleanup(&self) -> String {
        let Orphans { statements, place } = self;
        format!("at {}: {statements}", place.as_deref().unwrap_or("the source"))
    }
}

fn place(host: &str, port: impl Display, database: &str) -> String {
    format!("{host}:{port} in database {database}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manual_cleanup_names_sql_and_place() {
        let manual_cleanup = |place: Option<&str>| {
            let identity = MirrorIdentity { namespace: "team".into(), name: "shop".into(), uid: "0a".into() };
            let statements = cleanup::statements(&identity);
            Orphans { statements, place: place.map(str::to_owned) }.manual_cleanup()
        };
        let run = "SELECT pg_drop_replication_slot('walferry_0a'); DROP PUBLICATION IF EXISTS walferry_0a, walferry_0a_inserts;";
        assert_eq!(
            manual_cleanup(Some(&place("db.example", 5432, "app"))),
            format!("at db.example:5432 in database app: {run}")
        );
        assert_eq!(manual_cleanup(None), format!("at the source: {run}"));
    }
}
