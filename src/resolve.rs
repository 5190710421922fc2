//! From resources that refer to each other to configurations that stand alone.
//!
//! Where the resources and their Secrets come from is the caller's: files, an API server, or a pod's mounted
//! folders.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    api::{
        self, ClickHousePeer, Mirror, MirrorTable, PeerRef, PostgresPeer, Problem, ReplicationPeer,
        SecretRef, TlsSpec,
    },
    model::{
        BatchSettings, ClickHouseEndpoint, ClientIdentity, DeletionPolicy, MirrorIdentity, Operation,
        Operations, OutOfRange, Password, PostgresEndpoint, ReplicatorConfig, SnapshotMode, SnapshotSettings,
        TableId, TableSpec, TlsMode, TlsSettings,
    },
};

/// The schema whose tables keep their names at the destination.
const DEFAULT_SCHEMA: &str = "public";

/// A peer with its secrets.
#[derive(Clone, Debug)]
pub enum Endpoint {
    /// A PostgreSQL database.
    Postgres(PostgresEndpoint),
    /// A ClickHouse database.
    ClickHouse(ClickHouseEndpoint),
}

impl Endpoint {
    /// What a peer's spec calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            Endpoint::Postgres(_) => "postgres",
            Endpoint::ClickHouse(_) => "clickhouse",
        }
    }
}

/// Where the entries of Secrets come from.
pub trait Secrets {
    /// The entry `key` of the Secret `name` in the peer's namespace.
    ///
    /// # Errors
    /// The error to report at the reference; `None` when it has been reported already.
    fn entry(&self, name: &str, key: &str) -> Result<Password, Option<MissingEntry>>;
}

/// Why an entry is unavailable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingEntry {
    /// There is no such Secret; the message says where it was searched.
    Secret(String),
    /// The Secret has no such key, or its value can't be used.
    Key(String),
}

/// A peer with its secrets; what doesn't hold goes to `problems`, and then there is `None`.
pub fn endpoint(
    peer: &ReplicationPeer,
    secrets: &impl Secrets,
    problems: &mut Vec<Problem>,
) -> Option<Endpoint> {
    Resolver { secrets, problems }.endpoint(peer)
}

/// The entries of Secrets that a peer refers to: names and keys.
pub fn secret_entries(peer: &ReplicationPeer) -> BTreeSet<(String, String)> {
    let (credentials, tls) = match (&peer.spec.postgres, &peer.spec.clickhouse) {
        (Some(postgres), _) => (&postgres.credentials_secret_ref, &postgres.tls),
        (None, Some(clickhouse)) => (&clickhouse.credentials_secret_ref, &clickhouse.tls),
        (None, None) => return BTreeSet::new(),
    };
    let both = |secret: &SecretRef, keys: [&str; 2]| keys.map(|key| (secret.name.clone(), key.to_owned()));
    let mut entries = BTreeSet::from(both(credentials, ["username", "password"]));
    if let Some(tls) = tls {
        entries.extend(tls.ca_secret_ref.iter().map(|ca| (ca.name.clone(), ca.key.clone())));
        let client = tls.client_certificate_secret_ref.iter();
        entries.extend(client.flat_map(|secret| both(secret, ["tls.crt", "tls.key"])));
    }
    entries
}

struct Resolver<'a, S> {
    secrets: &'a S,
    problems: &'a mut Vec<Problem>,
}

impl<S: Secrets> Resolver<'_, S> {
    fn endpoint(&mut self, peer: &ReplicationPeer) -> Option<Endpoint> {
        if let Some(PostgresPeer { host, port, database, credentials_secret_ref, tls }) = &peer.spec.postgres
        {
            let path = "spec.postgres";
            let credentials = self.credentials(credentials_secret_ref, path);
            let tls = self.tls(tls.as_ref(), path);
            let (username, password) = credentials?;
            return Some(Endpoint::Postgres(PostgresEndpoint {
                host: host.clone(),
                port: u16::try_from(*port).ok()?,
                database: database.clone(),
                username,
                password,
                tls: tls?,
            }));
        }
        let ClickHousePeer { url, database, credentials_secret_ref, tls } = peer.spec.clickhouse.as_ref()?;
        let path = "spec.clickhouse";
        let credentials = self.credentials(credentials_secret_ref, path);
        let tls = self.tls(tls.as_ref(), path);
        let (username, password) = credentials?;
        let (url, database) = (url.trim_end_matches('/').to_owned(), database.clone());
        Some(Endpoint::ClickHouse(ClickHouseEndpoint { url, database, username, password, tls: tls? }))
    }

    fn credentials(&mut self, SecretRef { name }: &SecretRef, path: &str) -> Option<(String, Password)> {
        let path = format!("{path}.credentialsSecretRef");
        let username = self.entry(name, "username", &path);
        let password = self.entry(name, "password", &path);
        let username = username?.expose().to_owned();
        if username.is_empty() {
            self.problems.push(Problem::new(path, format!("key username of Secret {name} is empty")));
            return None;
        }
        Some((username, password?))
    }

    fn tls(&mut self, spec: Option<&TlsSpec>, path: &str) -> Option<TlsSettings> {
        let Some(TlsSpec { mode, ca_secret_ref, client_certificate_secret_ref }) = spec else {
            return Some(TlsSettings::default());
        };
        let mode = match mode {
            api::TlsMode::Disable => TlsMode::Disable,
            api::TlsMode::Require => TlsMode::Require,
            api::TlsMode::VerifyCa => TlsMode::VerifyCa,
            api::TlsMode::VerifyFull => TlsMode::VerifyFull,
        };
        let ca_pem = match ca_secret_ref {
            None => None,
            Some(ca) => {
                Some(self.entry(&ca.name, &ca.key, &format!("{path}.tls.caSecretRef"))?.expose().to_owned())
            }
        };
        let client_identity = match client_certificate_secret_ref {
            None => None,
            Some(SecretRef { name }) => {
                let path = format!("{path}.tls.clientCertificateSecretRef");
                let certificate = self.entry(name, "tls.crt", &path);
                let key = self.entry(name, "tls.key", &path);
                Some(ClientIdentity { certificate_pem: certificate?.expose().to_owned(), key_pem: key? })
            }
        };
        Some(TlsSettings { mode, ca_pem, client_identity })
    }

    /// An entry of a Secret in the peer's namespace. `path` is the reference, which a message points to.
    fn entry(&mut self, name: &str, key: &str, path: &str) -> Option<Password> {
        let problem = match self.secrets.entry(name, key) {
            Ok(value) if value.expose().contains('\0') => {
                Problem::new(path, format!("key {key} of Secret {name} contains a NUL character"))
            }
            Ok(value) => return Some(value),
            Err(None) => return None,
            Err(Some(MissingEntry::Secret(message))) => Problem::new(format!("{path}.name"), message),
            Err(Some(MissingEntry::Key(message))) => Problem::new(path, message),
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
        None
    }
}

/// Both ends of a Mirror, of the kinds they must be.
///
/// # Errors
/// What is wrong with each reference. `known` answers with the peer of a name, `Ok(None)` when its error has
/// been reported.
pub fn ends<'a>(
    mirror: &Mirror,
    known: impl Fn(&str) -> Result<Option<&'a Endpoint>, String>,
) -> Result<Option<(&'a PostgresEndpoint, &'a ClickHouseEndpoint)>, Vec<Problem>> {
    let find = |field: &str, PeerRef { name }: &PeerRef, kind: &str| {
        let message = match known(name) {
            Ok(Some(endpoint)) if endpoint.kind() != kind => {
                format!("ReplicationPeer {name} is a {} peer, expected a {kind} peer", endpoint.kind())
            }
            Ok(found) => return Ok(found),
            Err(message) => message,
        };
        Err(Problem::new(format!("spec.{field}.name"), message))
    };
    let source = find("sourceRef", &mirror.spec.source_ref, "postgres");
    let destination = find("destinationRef", &mirror.spec.destination_ref, "clickhouse");
    match (source, destination) {
        (Ok(Some(Endpoint::Postgres(source))), Ok(Some(Endpoint::ClickHouse(destination)))) => {
            Ok(Some((source, destination)))
        }
        (Ok(_), Ok(_)) => Ok(None),
        (source, destination) => Err([source.err(), destination.err()].into_iter().flatten().collect()),
    }
}

/// A table at a destination, as far as it is known without connecting: only one table of one Mirror may write
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    /// Host and port.
    pub server: String,
    /// The database.
    pub database: String,
    /// The table.
    pub table: String,
}

/// The target of each table of a Mirror, in the order of `spec.tables`.
pub fn targets(mirror: &Mirror, destination: &ClickHousePeer) -> Vec<Target> {
    let server = url::Url::parse(&destination.url).map_or_else(
        |_| destination.url.clone(),
        |url| {
            format!(
                "{}:{}",
                url.host_str().unwrap_or_default(),
                url.port_or_known_default().unwrap_or_default()
            )
        },
    );
    let target = |table: &MirrorTable| Target {
        server: server.clone(),
        database: destination.database.clone(),
        table: target_name(table),
    };
    mirror.spec.tables.iter().map(target).collect()
}

/// `target.table`; else the source's name, with the schema before it unless that is `public`, so that tables
/// of the same name in two schemas don't meet.
fn target_name(table: &MirrorTable) -> String {
    match &table.target {
        Some(target) => target.table.clone(),
        None if table.schema == DEFAULT_SCHEMA => table.name.clone(),
        None => format!("{}_{}", table.schema, table.name),
    }
}

/// A Mirror's configuration; `None` only for numbers and sizes that the rules of the API refuse.
pub fn replicator_config(
    identity: MirrorIdentity,
    mirror: &Mirror,
    source: &PostgresEndpoint,
    destination: &ClickHouseEndpoint,
) -> Option<ReplicatorConfig> {
    let spec = &mirror.spec;
    Some(ReplicatorConfig {
        mirror: identity,
        source: source.clone(),
        destination: destination.clone(),
        tables: spec.tables.iter().map(table_spec).collect(),
        snapshot: SnapshotSettings {
            mode: match spec.snapshot.mode {
                api::SnapshotMode::Initial => SnapshotMode::Initial,
                api::SnapshotMode::Never => SnapshotMode::Never,
                api::SnapshotMode::InitialOnly | api::SnapshotMode::Only => SnapshotMode::InitialOnly,
            },
            parallelism: usize::try_from(spec.snapshot.parallelism).ok()?,
        },
        batch: BatchSettings {
            max_bytes: usize::try_from(api::batch_bytes(&spec.batch.max_bytes)?).ok()?,
            max_delay: Duration::from_millis(u64::try_from(spec.batch.max_delay_milliseconds).ok()?),
        },
        out_of_range: match spec.out_of_range {
            api::OutOfRange::Clamp | api::OutOfRange::Nearest => OutOfRange::Clamp,
            api::OutOfRange::Null => OutOfRange::Null,
            api::OutOfRange::Fail => OutOfRange::Fail,
        },
        suspend: spec.suspend,
        deletion_policy: match spec.deletion_policy {
            api::DeletionPolicy::Delete => DeletionPolicy::Delete,
            api::DeletionPolicy::Retain => DeletionPolicy::Retain,
        },
        resync: mirror
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(api::RESYNC))
            .cloned(),
        renderer: None,
    })
}

/// All operations where none is listed.
fn operations(listed: &[api::Operation]) -> Operations {
    if listed.is_empty() {
        return Operations::ALL;
    }
    let operation = |operation: &api::Operation| match operation {
        api::Operation::Insert => Operation::Insert,
        api::Operation::Update => Operation::Update,
        api::Operation::Delete => Operation::Delete,
        api::Operation::Truncate => Operation::Truncate,
    };
    listed.iter().map(operation).collect()
}

fn table_spec(table: &MirrorTable) -> TableSpec {
    let columns = table.columns.clone().unwrap_or_default();
    let engine = table.engine.clone().unwrap_or_default();
    TableSpec {
        id: TableId::new(&table.schema, &table.name),
        target: Some(target_name(table)),
        operations: operations(&table.operations),
        exclude: columns.exclude,
        rename: columns.rename.into_iter().collect(),
        types: columns.types.into_iter().collect(),
        row_filter: table.row_filter.clone(),
        order_by: engine.order_by,
        partition_by: engine.partition_by,
        ttl: engine.ttl,
        settings: engine.settings.into_iter().collect(),
    }
}
