//! A replicator's configuration: one Mirror with its two peers, resolved and checked, without any Kubernetes
//! type.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{MirrorFailure, Operations, Password, TableId};
use crate::fault::RemedyRenderer;

/// How much of the server's certificate is checked (libpq's `sslmode`, without its silent fall-backs).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsMode {
    /// Plain text.
    Disable,
    /// TLS, any certificate.
    Require,
    /// TLS, a certificate signed by a trusted CA, any host name.
    VerifyCa,
    /// TLS, a certificate signed by a trusted CA for this host name.
    #[default]
    VerifyFull,
}

/// A client certificate and its private key, both PEM.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The certificate chain, leaf first.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: Password,
}

/// TLS settings of one peer.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// How much is checked.
    pub mode: TlsMode,
    /// CA certificates to trust, PEM; the system's when `None`.
    pub ca_pem: Option<String>,
    /// The certificate to show to the server.
    pub client_identity: Option<ClientIdentity>,
}

/// A PostgreSQL database and the credentials for it.
#[derive(Clone, Debug)]
pub struct PostgresEndpoint {
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Database name.
    pub database: String,
    /// Role name.
    pub username: String,
    /// The role's password.
    pub password: Password,
    /// TLS settings.
    pub tls: TlsSettings,
}

/// A ClickHouse database and the credentials for it.
#[derive(Clone, Debug)]
pub struct ClickHouseEndpoint {
    /// The HTTP interface, `http://host:8123` or `https://host:8443`.
    pub url: String,
    /// The database that holds the target tables and the state table.
    pub database: String,
    /// User name.
    pub username: String,
    /// The user's password.
    pub password: Password,
    /// TLS settings, used when the URL is https.
    pub tls: TlsSettings,
}

/// What the name of a Mirror's second publication has behind that of the first.
pub const INSERTS_SUFFIX: &str = "_inserts";

/// Which Mirror this is, and the names made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorIdentity {
    /// Namespace of the Mirror resource.
    pub namespace: String,
    /// Name of the Mirror resource.
    pub name: String,
    /// The resource's UID; standalone, a hash of namespace and name. Lower-case hexadecimal digits only.
    pub uid: String,
}

impl MirrorIdentity {
    /// The replication slot's name, `walferry_<uid>`: within PostgreSQL's 63 bytes and `[a-z0-9_]`.
    pub fn slot_name(&self) -> String {
        format!("walferry_{}", self.uid)
    }

    /// The publication's name; the same as the slot's, so that an administrator sees what belongs together.
    pub fn publication_name(&self) -> String {
        format!("walferry_{}", self.uid)
    }

    /// The name of the publication for tables of which only inserts are mirrored.
    pub fn inserts_publication_name(&self) -> String {
        format!("{}{INSERTS_SUFFIX}", self.publication_name())
    }

    /// What the fences of the Mirror's inserts begin with (see the destination's contract).
    pub fn fence(&self) -> String {
        format!("walferry-{}", self.uid)
    }

    /// The replicator's `application_name`, which names the Mirror in `pg_stat_activity` and distinguishes
    /// our own walsender from another's. PostgreSQL cuts it at 63 bytes, so the part that identifies the
    /// Mirror comes first.
    pub fn application_name(&self) -> String {
        let mut name =
            format!("walferry {} {}/{}", &self.uid.get(..16).unwrap_or(&self.uid), self.namespace, self.name);
        name.retain(|character| character.is_ascii_graphic() || character == ' ');
        name.truncate(63);
        name
    }
}

/// One table as the Mirror asks for it (`spec.tables[]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSpec {
    /// The table at the source.
    pub id: TableId,
    /// `target.table`; the source's name when `None`.
    pub target: Option<String>,
    /// `operations`
    #[serde(rename = "insert_only", default)]
    pub operations: Operations,
    /// `columns.exclude`
    pub exclude: Vec<String>,
    /// `columns.rename`: source name and target name.
    pub rename: Vec<(String, String)>,
    /// `columns.types`: source name and ClickHouse type.
    pub types: Vec<(String, String)>,
    /// `where`
    pub row_filter: Option<String>,
    /// `engine.orderBy`: target names; empty for the source's key.
    pub order_by: Vec<String>,
    /// `engine.partitionBy`
    pub partition_by: Option<String>,
    /// `engine.ttl`
    pub ttl: Option<String>,
    /// `engine.settings`
    pub settings: Vec<(String, String)>,
}

impl TableSpec {
    /// A table with nothing more asked for than that it is mirrored.
    pub fn new(id: TableId) -> Self {
        TableSpec {
            id,
            target: None,
            operations: Operations::ALL,
            exclude: Vec::new(),
            rename: Vec::new(),
            types: Vec::new(),
            row_filter: None,
            order_by: Vec::new(),
            partition_by: None,
            ttl: None,
            settings: Vec::new(),
        }
    }
}

impl TableSpec {
    /// Whether rows that were mirrored by the other spec need no re-copy: they are equal, or differ only in
    /// operations that decide about changes to come.
    pub fn continues(&self, other: &TableSpec) -> bool {
        let same_kind = self.operations.is_append_only() == other.operations.is_append_only();
        same_kind && *self == TableSpec { operations: self.operations, ..other.clone() }
    }
}

/// What of the existing rows is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotMode {
    /// Copy the existing rows, then stream.
    #[default]
    Initial,
    /// Copy the existing rows, then stop.
    InitialOnly,
    /// Stream only.
    Never,
}

/// `spec.snapshot`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// What is copied.
    pub mode: SnapshotMode,
    /// Connections that copy at the same time, over all tables.
    pub parallelism: usize,
}

/// `spec.batch`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSettings {
    /// Most bytes of encoded rows held at a time, over all tables of the Mirror, being built and being
    /// inserted.
    pub max_bytes: usize,
    /// Longest time a row waits for more rows before its insert starts.
    pub max_delay: Duration,
}

/// What to do with a value that the destination type can't hold (`spec.outOfRange`). Each is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutOfRange {
    /// Store the nearest value the type holds.
    #[default]
    Clamp,
    /// Store NULL where the target column is nullable, else as `Clamp`.
    Null,
    /// Fail the table.
    Fail,
}

/// `spec.deletionPolicy`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Drop slot, publication and state.
    #[default]
    Delete,
    /// Leave everything.
    Retain,
}

impl ReplicatorConfig {
    /// Whether any table is append-only, which takes the second publication.
    pub fn has_append_only(&self) -> bool {
        self.tables.iter().any(|table| table.operations.is_append_only())
    }
}

/// Everything one replicator needs to know.
#[derive(Clone, Debug)]
pub struct ReplicatorConfig {
    /// Which Mirror.
    pub mirror: MirrorIdentity,
    /// The database that is mirrored.
    pub source: PostgresEndpoint,
    /// Where it goes.
    pub destination: ClickHouseEndpoint,
    /// What is mirrored; never empty.
    pub tables: Vec<TableSpec>,
    /// How existing rows are copied.
    pub snapshot: SnapshotSettings,
    /// How streamed rows are batched.
    pub batch: BatchSettings,
    /// What happens to values that don't fit.
    pub out_of_range: OutOfRange,
    /// Whether replication is paused.
    pub suspend: bool,
    /// What teardown removes.
    pub deletion_policy: DeletionPolicy,
    /// The value of the annotation `walferry.dev/resync`: a new value has every table copied again.
    pub resync: Option<String>,
    /// The Mirror's renderer of remedies.
    pub renderer: Option<Arc<dyn RemedyRenderer>>,
}

impl ReplicatorConfig {
    /// What failed and what to do, rendered for the Mirror.
    pub fn sentence(&self, failure: &MirrorFailure) -> String {
        failure.sentence(self.renderer.as_deref())
    }
}
