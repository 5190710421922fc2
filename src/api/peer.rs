//! `ReplicationPeer`: one database, its address and its credentials.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{SecretKeyRef, SecretRef, rules::message};

/// Kind and address of a database: exactly one of `postgres` and `clickhouse`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "walferry.dev",
    version = "v1alpha1",
    kind = "ReplicationPeer",
    plural = "replicationpeers",
    shortname = "peer",
    category = "walferry",
    namespaced,
    status = "ReplicationPeerStatus",
    derive = "PartialEq",
    doc = "One database, its address and its credentials: a PostgreSQL source, or a ClickHouse destination. Mirrors in the same namespace refer to it by name.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.serverVersion"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[x_kube(
    validation = Rule::new("has(self.postgres) != has(self.clickhouse)").message(message::ONE_DATABASE),
    validation = Rule::new("has(self.postgres) == has(oldSelf.postgres)").message(message::KIND_OF_PEER_IS_FIXED),
)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationPeerSpec {
    /// A PostgreSQL database (14 or later) with wal_level = logical.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresPeer>,
    /// A ClickHouse database, reached by its HTTP interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clickhouse: Option<ClickHousePeer>,
}

/// A PostgreSQL database and its credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresPeer {
    /// Host name or address of the server. Not a connection pooler: replication needs the server itself.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// TCP port of the server.
    #[serde(default = "default_postgres_port")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// Name of the database. A Mirror replicates tables of one database.
    #[schemars(length(min = 1, max = 63))]
    pub database: String,
    /// Secret with the keys `username` and `password`. The role needs LOGIN and REPLICATION, and SELECT on
    /// the mirrored tables.
    pub credentials_secret_ref: SecretRef,
    /// TLS of the connection; VerifyFull with the system's certificate authorities when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
}

fn default_postgres_port() -> i32 {
    5432
}

/// A ClickHouse database and its credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new(
        "self.url.startsWith('https://') ? !has(self.tls) || self.tls.mode != 'Disable' : !has(self.tls) || self.tls.mode == 'Disable'"
    ).message(message::TLS_FOLLOWS_URL),
)]
#[serde(rename_all = "camelCase")]
pub struct ClickHousePeer {
    /// The HTTP interface, `https://host:8443` or, in plain text, `http://host:8123`.
    #[schemars(length(min = 1, max = 300))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://[^\\s/?#@]+/?$')").message(message::URL))]
    pub url: String,
    /// Name of the database that gets the target tables and walferry's own state table. It must exist.
    #[schemars(length(min = 1, max = 200))]
    pub database: String,
    /// Secret with the keys `username` and `password`.
    pub credentials_secret_ref: SecretRef,
    /// How much of an https server's certificate is checked; VerifyFull with the system's certificate
    /// authorities when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
}

/// TLS of a connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.caSecretRef) || self.mode in ['VerifyCa', 'VerifyFull']").message(message::CA_IS_USED),
    validation = Rule::new("!has(self.clientCertificateSecretRef) || self.mode != 'Disable'").message(message::CLIENT_CERTIFICATE_IS_USED),
)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// How much is checked. Disable: plain text. Require: encrypted, any certificate. VerifyCa: a certificate
    /// signed by a trusted authority, for any host. VerifyFull: such a certificate for this very host. There
    /// is no fallback to a weaker mode.
    #[serde(default)]
    pub mode: TlsMode,
    /// The key of a Secret that holds the trusted certificate authorities, PEM; the system's when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// A Secret with the keys `tls.crt` and `tls.key` (type kubernetes.io/tls): the certificate to show to
    /// the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<SecretRef>,
}

/// How much of the server's certificate is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(
    missing_docs,
    reason = "documented at the field: documented variants make a schema that is not structural"
)]
pub enum TlsMode {
    Disable,
    Require,
    VerifyCa,
    #[default]
    VerifyFull,
}

/// The database as last observed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReplicationPeerStatus {
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The server's version, as the server reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// PostgreSQL's system identifier, which distinguishes a database from one restored elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    /// Ready always; Reconciling and Stalled while they are true.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
