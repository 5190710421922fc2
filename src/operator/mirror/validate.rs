//! The second step, pure: whether a Mirror can run with its current spec.

use std::collections::HashMap;

use kube::ResourceExt;

use super::fetch::{Fetched, Peer, creation_order};
use crate::{
    api::{self, Mirror, Problem, ReplicationPeer},
    fault::Reason,
    model::{MirrorIdentity, ReplicatorConfig},
    operator::{blocker::Blocker, credentials::SecretEntries, object::peer_names},
    resolve::{self, Endpoint, Target},
};

/// A Mirror that can run.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// The peer of `spec.sourceRef`.
    pub(super) source: &'a ReplicationPeer,
    /// The peer of `spec.destinationRef`.
    pub(super) destination: &'a ReplicationPeer,
    /// The Secret entries of both.
    pub(super) entries: SecretEntries,
    /// The replicator's configuration.
    pub(super) config: ReplicatorConfig,
}

/// The identity of a Mirror. Its UID without dashes names slot and publication.
pub(super) fn identity(mirror: &impl ResourceExt) -> MirrorIdentity {
    MirrorIdentity {
        namespace: mirror.namespace().unwrap_or_default(),
        name: mirror.name_any(),
        uid: mirror.uid().unwrap_or_default().replace('-', ""),
    }
}

/// Validates a Mirror and what it refers to.
///
/// # Errors
/// All problems of the first kind that occurs: the spec, missing peers, invalid peers, Secrets, target tables
/// of others.
pub(super) fn validate<'a>(mirror: &Mirror, fetched: &'a Fetched) -> Result<Plan<'a>, Blocker> {
    let mut problems = api::mirror_problems(&mirror.spec);
    if problems.is_empty() {
        missing_peers(mirror, fetched)?;
    }
    problems.extend(fetched.peers.iter().filter_map(|(name, peer)| match peer {
        Peer::Valid { .. } => None,
        Peer::Invalid(error) => Some(Problem::new(format!("ReplicationPeer {name}"), error)),
    }));
    problems.extend(wrong_kinds(mirror, fetched));
    if !problems.is_empty() {
        return Err(Blocker::problems(Reason::InvalidSpec, &problems));
    }
    let (source, from) = valid_peer(fetched, &mirror.spec.source_ref.name)?;
    let (destination, to) = valid_peer(fetched, &mirror.spec.destination_ref.name)?;
    if let Some(clickhouse) = &destination.spec.clickhouse {
        taken_targets(mirror, &resolve::targets(mirror, clickhouse), fetched)?;
    }
    let config = match (&from.0, &to.0) {
        (Endpoint::Postgres(source), Endpoint::ClickHouse(destination)) => {
            resolve::replicator_config(identity(mirror), mirror, source, destination)
        }
        _ => None,
    };
    let config =
        config.ok_or_else(|| Blocker::terminal(Reason::InvalidSpec, "spec: a number is out of its range"))?;
    let entries = from.1.iter().chain(to.1).map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Plan { source, destination, entries, config })
}

fn missing_peers(mirror: &Mirror, fetched: &Fetched) -> Result<(), Blocker> {
    let namespace = mirror.namespace().unwrap_or_default();
    let fields = ["spec.sourceRef.name", "spec.destinationRef.name"].into_iter().zip(peer_names(mirror));
    let missing = fields.filter(|(_, name)| !fetched.peers.contains_key(*name));
    let problem = |(field, name): (&str, &str)| {
        Problem::new(field, format!("there is no ReplicationPeer {name} in namespace {namespace}; create it"))
    };
    let problems: Vec<Problem> = missing.map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Blocker::problems(Reason::PeerMissing, &problems)) }
}

fn wrong_kinds(mirror: &Mirror, fetched: &Fetched) -> Vec<Problem> {
    let known = |name: &str| match fetched.peers.get(name) {
        Some(Peer::Valid { credentials, .. }) => Ok(credentials.endpoint.as_ref().ok()),
        // Reported on its own.
        Some(Peer::Invalid(_)) | None => Ok(None),
    };
    resolve::ends(mirror, known).err().unwrap_or_default()
}

/// A peer with its endpoint.
fn valid_peer<'a>(
    fetched: &'a Fetched,
    name: &str,
) -> Result<(&'a ReplicationPeer, (&'a Endpoint, &'a SecretEntries)), Blocker> {
    let missing = || Blocker::terminal(Reason::PeerMissing, format!("ReplicationPeer {name} is missing"));
    let Some(Peer::Valid { peer, credentials }) = fetched.peers.get(name) else { return Err(missing()) };
    match &credentials.endpoint {
        Ok(endpoint) => Ok((peer, (endpoint, &credentials.entries))),
        Err(blocker) => {
            let message = format!("ReplicationPeer {name}: {}", blocker.failure.message);
            Err(Blocker::terminal(blocker.failure.reason, message)
                .with_remedies(blocker.failure.remedies.clone()))
        }
    }
}

/// Refuses a target table that another table of the Mirror or an older Mirror writes. An older Mirror of
/// another namespace counts only once it has connected to its destination, since anybody can name a server.
/// Its name stays hidden from this namespace.
fn taken_targets(mirror: &Mirror, targets: &[Target], fetched: &Fetched) -> Result<(), Blocker> {
    let (namespace, order) = (mirror.namespace().unwrap_or_default(), creation_order(mirror));
    let mut writers: HashMap<&Target, String> = HashMap::new();
    for other in fetched.others.iter().filter(|other| other.creation_order < order) {
        let writer = match other.namespace == namespace {
            true => format!("Mirror {}", other.name),
            false if other.reached => "a Mirror of another namespace".to_owned(),
            false => continue,
        };
        for target in &other.targets {
            writers.insert(target, writer.clone());
        }
    }
    let mut problems = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        let path = format!("spec.tables[{index}]");
        let Target { database, table, .. } = target;
        if let Some(writer) = writers.insert(target, format!("{path} of this Mirror")) {
            let message = format!(
                "target table {table} in database {database} is already written by {writer}; give one of them another target.table"
            );
            problems.push(Problem::new(path, message));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Blocker::problems(Reason::TargetTableTaken, &problems)) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use serde_json::json;

    use super::{
        super::fetch::{CreationOrder, Other},
        *,
    };
    use crate::{
        model::{ClickHouseEndpoint, Password, PostgresEndpoint, TlsSettings},
        operator::credentials::Credentials,
    };

    fn mirror(tables: serde_json::Value) -> Mirror {
        let mut mirror: Mirror = serde_json::from_value(json!({
            "apiVersion": "walferry.dev/v1alpha1", "kind": "Mirror",
            "metadata": {"name": "demo", "namespace": "team", "uid": "02c8c86b-636c-a99e-5079-0fccaf6d8050"},
            "spec": {"sourceRef": {"name": "app"}, "destinationRef": {"name": "analytics"}, "tables": tables},
        }))
        .unwrap();
        mirror.metadata.creation_timestamp = Some(Time(Timestamp::from_second(100).unwrap()));
        mirror
    }

    fn users() -> Mirror {
        mirror(json!([{"schema": "public", "name": "users"}]))
    }

    fn peer(name: &str, spec: serde_json::Value, endpoint: Endpoint) -> (String, Peer) {
        let resource = json!({
            "apiVersion": "walferry.dev/v1alpha1", "kind": "ReplicationPeer", "metadata": {"name": name}, "spec": spec,
        });
        let entries = [((name.to_owned(), "password".to_owned()), Password::new("x"))].into();
        let credentials = Credentials { endpoint: Ok(endpoint), entries };
        (
            name.to_owned(),
            Peer::Valid { peer: Box::new(serde_json::from_value(resource).unwrap()), credentials },
        )
    }

    fn fetched() -> Fetched {
        let (username, password, tls) = ("w".to_owned(), Password::new("x"), TlsSettings::default());
        let source = PostgresEndpoint {
            host: "db".to_owned(),
            port: 5432,
            database: "app".to_owned(),
            username: username.clone(),
            password: password.clone(),
            tls: tls.clone(),
        };
        let destination = ClickHouseEndpoint {
            url: "http://ch:8123".to_owned(),
            database: "analytics".to_owned(),
            username,
            password,
            tls,
        };
        let login = json!({"name": "login"});
        let postgres = json!({"postgres": {"host": "db", "database": "app", "credentialsSecretRef": login}});
        let clickhouse = json!({"clickhouse": {"url": "http://ch:8123", "database": "analytics", "credentialsSecretRef": login}});
        let peers = [
            peer("app", postgres, Endpoint::Postgres(source)),
            peer("analytics", clickhouse, Endpoint::ClickHouse(destination)),
        ];
        Fetched { peers: peers.into(), others: Vec::new() }
    }

    /// Reason and message of the failure.
    fn wrong(mirror: &Mirror, fetched: &Fetched) -> (Reason, String) {
        let failure = validate(mirror, fetched).unwrap_err().failure;
        (failure.reason, failure.message)
    }

    #[test]
    fn a_valid_mirror_becomes_a_plan() {
        let fetched = fetched();
        let plan = validate(&users(), &fetched).unwrap();
        assert_eq!(plan.config.mirror.slot_name(), "walferry_02c8c86b636ca99e50790fccaf6d8050");
        assert_eq!(plan.entries.len(), 2);
        assert!(plan.source.spec.postgres.is_some() && plan.destination.spec.clickhouse.is_some());
    }

    #[test]
    fn missing_peers_are_named() {
        let mut fetched = fetched();
        fetched.peers.remove("app");
        let (reason, message) = wrong(&users(), &fetched);
        assert_eq!(reason, Reason::PeerMissing);
        assert_eq!(
            message,
            "spec.sourceRef.name: there is no ReplicationPeer app in namespace team; create it"
        );
    }

    #[test]
    fn a_name_that_no_peer_can_have_is_invalid_and_not_missing() {
        let mut mirror = users();
        mirror.spec.source_ref.name = "?watch=true".to_owned();
        let (reason, message) = wrong(&mirror, &fetched());
        assert_eq!(reason, "InvalidSpec");
        assert!(message.starts_with("spec.sourceRef.name: must be a name"), "{message}");
    }

    #[test]
    fn peers_of_the_wrong_kind_and_invalid_ones() {
        let mut mirror = users();
        mirror.spec.source_ref.name = "analytics".to_owned();
        let (reason, message) = wrong(&mirror, &fetched());
        assert_eq!(reason, Reason::InvalidSpec);
        assert!(
            message
                .starts_with("spec.sourceRef.name: ReplicationPeer analytics is a clickhouse peer, expected")
        );
        let mut fetched = fetched();
        fetched.peers.insert("app".to_owned(), Peer::Invalid("missing field `host`".to_owned()));
        assert_eq!(
            wrong(&users(), &fetched),
            (Reason::InvalidSpec, "ReplicationPeer app: missing field `host`".to_owned())
        );
    }

    #[test]
    fn problems_of_credentials_keep_their_reason() {
        let mut fetched = fetched();
        let Some(Peer::Valid { credentials, .. }) = fetched.peers.get_mut("app") else { panic!() };
        credentials.endpoint =
            Err(Blocker::terminal(Reason::SecretMissing, "spec.postgres…: there is no Secret login"));
        let (reason, message) = wrong(&users(), &fetched);
        assert_eq!(reason, Reason::SecretMissing);
        assert_eq!(message, "ReplicationPeer app: spec.postgres…: there is no Secret login");
    }

    #[test]
    fn a_target_table_belongs_to_the_older_mirror() {
        let target = Target {
            server: "ch:8123".to_owned(),
            database: "analytics".to_owned(),
            table: "users".to_owned(),
        };
        let other = |second, uid: &str| {
            let creation_order: CreationOrder =
                (Some(Timestamp::from_second(second).unwrap()), Some(uid.to_owned()));
            let (namespace, name) = ("team".to_owned(), "first".to_owned());
            Other { namespace, name, creation_order, targets: vec![target.clone()], reached: false }
        };
        let with = |other| Fetched { others: vec![other], ..fetched() };
        for older in [other(99, "f"), other(100, "01")] {
            let (reason, message) = wrong(&users(), &with(older));
            assert_eq!(reason, Reason::TargetTableTaken);
            assert!(
                message.contains("table users in database analytics is already written by Mirror first;"),
                "{message}"
            );
        }
        let elsewhere = |reached| Other { namespace: "other".to_owned(), reached, ..other(99, "f") };
        assert!(validate(&users(), &with(elsewhere(false))).is_ok(), "it only names the target");
        let (reason, message) = wrong(&users(), &with(elsewhere(true)));
        assert_eq!(reason, "TargetTableTaken");
        assert!(message.contains("already written by a Mirror of another namespace;"), "{message}");
        assert!(validate(&users(), &with(other(101, "0"))).is_ok());
        assert!(validate(&users(), &with(other(100, "f"))).is_ok());
    }

    #[test]
    fn one_mirror_does_not_write_a_table_twice() {
        let twice = json!([{"schema": "public", "name": "users"}, {"schema": "audit", "name": "x", "target": {"table": "users"}}]);
        let (reason, message) = wrong(&mirror(twice), &fetched());
        assert_eq!(reason, Reason::TargetTableTaken);
        assert!(
            message.starts_with("spec.tables[1]: ") && message.contains("by spec.tables[0] of this Mirror")
        );
    }
}
