//! From resources that refer to each other to configurations that stand alone.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    time::Duration,
};

use sha2::{Digest, Sha256};

use super::{Found, Key, Place, Resources, secrets::SecretDocument};
use crate::{
    api::{
        self, ClickHousePeer, Mirror, MirrorTable, PeerRef, PostgresPeer, Problem, ReplicationPeer,
        SecretRef, TlsSpec,
    },
    model::{
        BatchSettings, ClickHouseEndpoint, ClientIdentity, DeletionPolicy, MirrorIdentity, OutOfRange,
        Password, PostgresEndpoint, ReplicatorConfig, SnapshotMode, SnapshotSettings, TableId, TableSpec,
        TlsMode, TlsSettings,
    },
};

/// The schema whose tables keep their names at the destination.
const DEFAULT_SCHEMA: &str = "public";

/// A peer with its secrets.
enum Endpoint {
    Postgres(PostgresEndpoint),
    ClickHouse(ClickHouseEndpoint),
}

impl Endpoint {
    fn kind(&self) -> &'static str {
        match self {
            Endpoint::Postgres(_) => "postgres",
            Endpoint::ClickHouse(_) => "clickhouse",
        }
    }
}

impl Resources {
    /// A configuration for each Mirror whose references hold; what doesn't goes to `problems`.
    pub(super) fn resolve(&self, problems: &mut Vec<String>) -> Vec<ReplicatorConfig> {
        let mut endpoints = BTreeMap::new();
        for (key, (place, peer)) in &self.peers {
            let mut secrets = Secrets { secrets: &self.secrets, key, problems: Vec::new() };
            let endpoint = peer.as_ref().and_then(|peer| secrets.endpoint(peer));
            problems.extend(secrets.problems.into_iter().map(|problem| format!("{place}: {problem}")));
            endpoints.insert(key.clone(), endpoint);
        }
        let mut configs = Vec::new();
        let mut targets = Targets::default();
        for key in &self.order {
            let Some((place, Some(mirror))) = self.mirrors.get(key) else { continue };
            let mut wrong = |problem: Problem| problems.push(format!("{place}: {problem}"));
            let source = referenced(&endpoints, key, "sourceRef", &mirror.spec.source_ref, "postgres");
            let destination =
                referenced(&endpoints, key, "destinationRef", &mirror.spec.destination_ref, "clickhouse");
            match (source, destination) {
                (Ok(Some(Endpoint::Postgres(source))), Ok(Some(Endpoint::ClickHouse(destination)))) => {
                    targets.claim(place, mirror, destination).into_iter().for_each(wrong);
                    configs.extend(config(key, mirror, source, destination));
                }
                (source, destination) => {
                    [source.err(), destination.err()].into_iter().flatten().for_each(&mut wrong)
                }
            }
        }
        configs
    }
}

/// The peer that a Mirror's `spec.<field>` names, when it is of this kind; `Ok(None)` when the peer's own document is wrong, which has
/// been told then.
fn referenced<'a>(
    endpoints: &'a BTreeMap<Key, Option<Endpoint>>,
    mirror: &Key,
    field: &str,
    PeerRef { name }: &PeerRef,
    kind: &str,
) -> Result<Option<&'a Endpoint>, Problem> {
    let message = match endpoints.get(&mirror.sibling(name)) {
        Some(Some(endpoint)) if endpoint.kind() == kind => return Ok(Some(endpoint)),
        Some(Some(endpoint)) => {
            format!("ReplicationPeer {name} is a {} peer, expected a {kind} peer", endpoint.kind())
        }
        Some(None) => return Ok(None),
        None => {
            let namespace = &mirror.namespace;
            let known =
                endpoints.keys().filter(|key| key.namespace == *namespace).map(|key| key.name.as_str());
            let known = known.collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none" } else { &known };
            format!("no ReplicationPeer {name} in namespace {namespace} (the files have there: {known})")
        }
    };
    Err(Problem::new(format!("spec.{field}.name"), message))
}

/// Reads the Secrets that one peer refers to.
struct Secrets<'a> {
    secrets: &'a Found<SecretDocument>,
    key: &'a Key,
    problems: Vec<Problem>,
}

impl Secrets<'_> {
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
        let problem = match self.secrets.get(&self.key.sibling(name)) {
            None => Problem::new(
                format!("{path}.name"),
                format!("no Secret {name} in namespace {} among the files", self.key.namespace),
            ),
            // The Secret's own document has been complained about.
            Some((_, None)) => return None,
            Some((place, Some(secret))) => match secret.get(key) {
                None => Problem::new(path, format!("Secret {name} ({place}) has no key {key}")),
                Some(value) if value.expose().contains('\0') => Problem::new(
                    path,
                    format!("key {key} of Secret {name} ({place}) contains a NUL character"),
                ),
                Some(value) => return Some(value.clone()),
            },
        };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
        None
    }
}

/// Who writes which target table: nobody else may.
#[derive(Default)]
struct Targets(HashMap<(String, String, String), String>);

impl Targets {
    fn claim(&mut self, place: &Place, mirror: &Mirror, destination: &ClickHouseEndpoint) -> Vec<Problem> {
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
        let mut problems = Vec::new();
        for (index, table) in mirror.spec.tables.iter().enumerate() {
            let path = format!("spec.tables[{index}]");
            let target = target_name(table);
            let claim = (server.clone(), destination.database.clone(), target.clone());
            if let Some(earlier) = self.0.insert(claim, format!("{path} of {place}")) {
                let message = format!(
                    "target table {target} in database {} is already written by {earlier}; give one of them another target.table",
                    destination.database
                );
                problems.push(Problem::new(path, message));
            }
        }
        problems
    }
}

/// `target.table`; else the source's name, with the schema before it unless that is `public`, so that tables of the same name in
/// two schemas don't meet.
fn target_name(table: &MirrorTable) -> String {
    match &table.target {
        Some(target) => target.table.clone(),
        None if table.schema == DEFAULT_SCHEMA => table.name.clone(),
        None => format!("{}_{}", table.schema, table.name),
    }
}

/// `None` only for sizes that the rules have refused.
fn config(
    key: &Key,
    mirror: &Mirror,
    source: &PostgresEndpoint,
    destination: &ClickHouseEndpoint,
) -> Option<ReplicatorConfig> {
    let spec = &mirror.spec;
    Some(ReplicatorConfig {
        mirror: MirrorIdentity {
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: standalone_uid(key),
        },
        source: source.clone(),
        destination: destination.clone(),
        tables: spec.tables.iter().map(table_spec).collect(),
        snapshot: SnapshotSettings {
            mode: match spec.snapshot.mode {
                api::SnapshotMode::Initial => SnapshotMode::Initial,
                api::SnapshotMode::Never => SnapshotMode::Never,
                api::SnapshotMode::Only => SnapshotMode::Only,
            },
            parallelism: usize::try_from(spec.snapshot.parallelism).ok()?,
        },
        batch: BatchSettings {
            max_bytes: usize::try_from(api::batch_bytes(&spec.batch.max_bytes)?).ok()?,
            max_delay: Duration::from_millis(u64::try_from(spec.batch.max_delay_milliseconds).ok()?),
        },
        out_of_range: match spec.out_of_range {
            api::OutOfRange::Nearest => OutOfRange::Nearest,
            api::OutOfRange::Null => OutOfRange::Null,
            api::OutOfRange::Fail => OutOfRange::Fail,
        },
        suspend: spec.suspend,
        deletion_policy: match spec.deletion_policy {
            api::DeletionPolicy::Delete => DeletionPolicy::Delete,
            api::DeletionPolicy::Retain => DeletionPolicy::Retain,
        },
    })
}

fn table_spec(table: &MirrorTable) -> TableSpec {
    let columns = table.columns.clone().unwrap_or_default();
    let engine = table.engine.clone().unwrap_or_default();
    TableSpec {
        id: TableId::new(&table.schema, &table.name),
        target: Some(target_name(table)),
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

/// Without an API server nobody hands out UIDs: the first 32 hexadecimal digits of SHA-256 of `namespace/name`, so that the
/// same file finds the same slot again.
fn standalone_uid(key: &Key) -> String {
    struct Hex<'a>(&'a [u8]);
    impl fmt::Display for Hex<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        }
    }
    let digest = Sha256::digest(format!("{}/{}", key.namespace, key.name));
    Hex(&digest[..16]).to_string()
}
