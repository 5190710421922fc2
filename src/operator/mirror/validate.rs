//! The second step, pure: whether a Mirror can be run as it is.

use std::collections::HashMap;

use kube::ResourceExt;

use super::fetch::{Fetched, Peer, seniority};
use crate::{
    api::{self, Mirror, Problem, ReplicationPeer},
    fault::Reason,
    model::{MirrorIdentity, ReplicatorConfig},
    operator::{login::Entries, obstacle::Obstacle, scope::peers_of},
    resolve::{self, Endpoint, Target},
};

/// A Mirror that can be run.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// The peer of `spec.sourceRef`.
    pub(super) source: &'a ReplicationPeer,
    /// The peer of `spec.destinationRef`.
    pub(super) destination: &'a ReplicationPeer,
    /// What the Secrets of both hold.
    pub(super) entries: Entries,
    /// What the replicator will be told.
    pub(super) config: ReplicatorConfig,
}

/// Who a Mirror is. Its UID without dashes names slot and publication.
pub(super) fn identity(mirror: &impl ResourceExt) -> MirrorIdentity {
    MirrorIdentity {
        namespace: mirror.namespace().unwrap_or_default(),
        name: mirror.name_any(),
        uid: mirror.uid().unwrap_or_default().replace('-', ""),
    }
}

/// Looks at a Mirror and what it refers to.
///
/// # Errors
/// What is wrong, all of one kind: the spec, then peers that are missing, then what is wrong with them, then Secrets, then target tables
/// of others.
pub(super) fn validate<'a>(mirror: &Mirror, fetched: &'a Fetched) -> Result<Plan<'a>, Obstacle> {
    let mut problems = api::mirror_problems(&mirror.spec);
    if problems.is_empty() {
        missing_peers(mirror, fetched)?;
    }
    problems.extend(fetched.peers.iter().filter_map(|(name, peer)| match peer {
        Peer::Valid { .. } => None,
        Peer::Unreadable(error) => Some(Problem::new(format!("ReplicationPeer {name}"), error)),
    }));
    problems.extend(wrong_kinds(mirror, fetched));
    if !problems.is_empty() {
        return Err(Obstacle::problems(Reason::InvalidSpec, &problems));
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
        config.ok_or_else(|| Obstacle::lasting(Reason::InvalidSpec, "spec: a number is out of its range"))?;
    let entries = from.1.iter().chain(to.1).map(|(key, value)| (key.clone(), value.clone())).collect();
    Ok(Plan { source, destination, entries, config })
}

fn missing_peers(mirror: &Mirror, fetched: &Fetched) -> Result<(), Obstacle> {
    let namespace = mirror.namespace().unwrap_or_default();
    let fields = ["spec.sourceRef.name", "spec.destinationRef.name"].into_iter().zip(peers_of(mirror));
    let missing = fields.filter(|(_, name)| !fetched.peers.contains_key(*name));
    let problem = |(field, name): (&str, &str)| {
        Problem::new(field, format!("there is no ReplicationPeer {name} in namespace {namespace}; create it"))
    };
    let problems: Vec<Problem> = missing.map(problem).collect();
    if problems.is_empty() { Ok(()) } else { Err(Obstacle::problems(Reason::PeerMissing, &problems)) }
}

fn wrong_kinds(mirror: &Mirror, fetched: &Fetched) -> Vec<Problem> {
    let known = |name: &str| match fetched.peers.get(name) {
        Some(Peer::Valid { login, .. }) => Ok(login.endpoint.as_ref().ok()),
        // What is wrong with it is told elsewhere.
        Some(Peer::Unreadable(_)) | None => Ok(None),
    };
    resolve::ends(mirror, known).err().unwrap_or_default()
}

/// A peer whose Secrets are there.
fn valid_peer<'a>(
    fetched: &'a Fetched,
    name: &str,
) -> Result<(&'a ReplicationPeer, (&'a Endpoint, &'a Entries)), Obstacle> {
    let missing = || Obstacle::lasting(Reason::PeerMissing, format!("ReplicationPeer {name} is missing"));
    let Some(Peer::Valid { peer, login }) = fetched.peers.get(name) else { return Err(missing()) };
    match &login.endpoint {
        Ok(endpoint) => Ok((peer, (endpoint, &login.entries))),
        Err(obstacle) => {
            let message = format!("ReplicationPeer {name}: {}", obstacle.failure.message);
            Err(Obstacle::lasting(obstacle.failure.reason, message)
                .remedied(obstacle.failure.remedies.clone()))
        }
    }
}

/// No table of a destination is written twice: by two tables of the Mirror, or by an older Mirror. One of another namespace counts only when it has
/// reached its destination, since anybody can name a server, and it is not named, since its name may be none of this namespace's business.
fn taken_targets(mirror: &Mirror, targets: &[Target], fetched: &Fetched) -> Result<(), Obstacle> {
    let (namespace, age) = (mirror.namespace().unwrap_or_default(), seniority(mirror));
    let mut writers: HashMap<&Target, String> = HashMap::new();
    for other in fetched.others.iter().filter(|other| other.seniority < age) {
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
    if problems.is_empty() { Ok(()) } else { Err(Obstacle::problems(Reason::TargetTableTaken, &problems)) }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
    use serde_json::json;

    use super::{
        super::fetch::{Other, Seniority},
        *,
    };
    use crate::{
        model::{ClickHouseEndpoint, Password, PostgresEndpoint, TlsSettings},
        operator::login::Login,
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
        let login = Login { endpoint: Ok(endpoint), entries };
        (name.to_owned(), Peer::Valid { peer: Box::new(serde_json::from_value(resource).unwrap()), login })
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

    /// Reason and message of what is wrong.
    fn wrong(mirror: &Mirror, fetched: &Fetched) -> (Reason, String) {
        let failure = validate(mirror, fetched).unwrap_err().failure;
        (failure.reason, failure.message)
    }

    #[test]
    fn a_sound_mirror_becomes_a_plan() {
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
    fn a_name_that_no_peer_can_have_is_wrong_and_not_missing() {
        let mut mirror = users();
        mirror.spec.source_ref.name = "?watch=true".to_owned();
        let (reason, message) = wrong(&mirror, &fetched());
        assert_eq!(reason, "InvalidSpec");
        assert!(message.starts_with("spec.sourceRef.name: must be a name"), "{message}");
    }

    #[test]
    fn peers_of_the_wrong_kind_and_unreadable_ones() {
        let mut mirror = users();
        mirror.spec.source_ref.name = "analytics".to_owned();
        let (reason, message) = wrong(&mirror, &fetched());
        assert_eq!(reason, Reason::InvalidSpec);
        assert!(
            message
                .starts_with("spec.sourceRef.name: ReplicationPeer analytics is a clickhouse peer, expected")
        );
        let mut fetched = fetched();
        fetched.peers.insert("app".to_owned(), Peer::Unreadable("missing field `host`".to_owned()));
        assert_eq!(
            wrong(&users(), &fetched),
            (Reason::InvalidSpec, "ReplicationPeer app: missing field `host`".to_owned())
        );
    }

    #[test]
    fn what_is_wrong_with_a_login_keeps_its_reason() {
        let mut fetched = fetched();
        let Some(Peer::Valid { login, .. }) = fetched.peers.get_mut("app") else { panic!() };
        login.endpoint =
            Err(Obstacle::lasting(Reason::SecretMissing, "spec.postgres…: there is no Secret login"));
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
            let seniority: Seniority = (Some(Timestamp::from_second(second).unwrap()), Some(uid.to_owned()));
            let (namespace, name) = ("team".to_owned(), "first".to_owned());
            Other { namespace, name, seniority, targets: vec![target.clone()], reached: false }
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
