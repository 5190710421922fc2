//! `Mirror`: which tables of one database are replicated to another.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::{apis::meta::v1::Condition, util::intstr::IntOrString};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::{PeerRef, ReplicatorSpec, rules::message};

/// Replicates tables of a PostgreSQL database to a ClickHouse database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "walferry.dev",
    version = "v1alpha1",
    kind = "Mirror",
    plural = "mirrors",
    shortname = "mirror",
    category = "walferry",
    namespaced,
    status = "MirrorStatus",
    derive = "PartialEq",
    doc = "Replicates tables of a PostgreSQL database to a ClickHouse database: copies the existing rows, then streams every change. It owns one replication slot and one publication at the source.",
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
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.sourceRef.name"),
    printcolumn(name = "Destination", type_ = "string", json_path = ".spec.destinationRef.name"),
    printcolumn(name = "Tables", type_ = "integer", json_path = ".status.tables.total"),
    printcolumn(
        name = "Lag",
        type_ = "integer",
        json_path = ".status.lag.bytes",
        description = "Bytes of WAL that are not at the destination yet"
    ),
    printcolumn(name = "LastLSN", type_ = "string", json_path = ".status.lastLSN"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MirrorSpec {
    /// The ReplicationPeer, of kind postgres, that is mirrored. Can't be changed: another source is another
    /// Mirror.
    #[x_kube(validation = Rule::new("self == oldSelf").message(message::SOURCE_IS_FIXED))]
    pub source_ref: PeerRef,
    /// The ReplicationPeer, of kind clickhouse, that gets the rows. Can't be changed: another destination is
    /// another Mirror.
    #[x_kube(validation = Rule::new("self == oldSelf").message(message::DESTINATION_IS_FIXED))]
    pub destination_ref: PeerRef,
    /// The tables to mirror, at least one. Each needs a primary key, another replica identity (FULL where
    /// nothing names a row), or `operations: [Insert, Truncate]`.
    #[schemars(length(min = 1, max = 2000))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["schema".into(), "name".into()]))]
    pub tables: Vec<MirrorTable>,
    /// What of the existing rows is copied.
    #[serde(default)]
    pub snapshot: SnapshotSpec,
    /// How streamed rows are batched into inserts.
    #[serde(default)]
    pub batch: BatchSpec,
    /// What happens to a value that the destination type can't hold, such as an infinite date. Clamp: the
    /// nearest value it can hold. Null: NULL where the target column is Nullable, else as Clamp. Fail: the
    /// table stops. Each such value is counted. Nearest: deprecated, write Clamp.
    #[serde(default)]
    pub out_of_range: OutOfRange,
    /// Pauses replication. The slot stays and holds back WAL at the source, whose disk may fill up.
    #[serde(default)]
    pub suspend: bool,
    /// What happens to the slot, the publication and walferry's own state when the Mirror is deleted. Delete:
    /// dropped. Retain: kept. Target tables are never dropped.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// How the pod that does the work runs. Only for the operator: `walferry run` has no pod and ignores it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicator: Option<ReplicatorSpec>,
}

/// One table to mirror.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = Rule::new(
    "!has(self.insertOnly) || !self.insertOnly || !has(self.operations) || (size(self.operations) == 2 && 'Insert' in self.operations && 'Truncate' in self.operations)"
).message(message::INSERT_ONLY))]
#[serde(rename_all = "camelCase")]
pub struct MirrorTable {
    /// Schema at the source, as PostgreSQL stores it: unquoted, case kept.
    #[schemars(length(min = 1, max = 63))]
    pub schema: String,
    /// Table at the source, as PostgreSQL stores it: unquoted, case kept. A partitioned table is mirrored as
    /// one table.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Where the rows go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<TargetSpec>,
    /// Which columns are mirrored, under which names and types; all of them as they are when left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub columns: Option<ColumnsSpec>,
    /// The operations that are mirrored; all when left out. Without Delete or Truncate the target keeps rows
    /// that the source removes, also in a re-copy. Without Update and Delete it is an append-only table, such
    /// as a log, which needs no replica identity: rows stay as they were inserted. Insert is required, and
    /// Delete needs Update.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[x_kube(validation = Rule::new(
        "'Insert' in self && ('Update' in self || !('Delete' in self))"
    ).message(message::OPERATIONS))]
    pub operations: Vec<Operation>,
    /// Deprecated: write `operations: [Insert, Truncate]` in place of true, and leave false out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insert_only: Option<bool>,
    /// A PostgreSQL condition that a row must meet to be mirrored. It becomes the publication's row filter
    /// (PostgreSQL 15 or later), so it may name only columns of the replica identity, unless the table is
    /// append-only (`operations`).
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub row_filter: Option<String>,
    /// Engine settings of the target table when walferry creates it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineSpec>,
}

/// An operation on rows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(
    missing_docs,
    reason = "documented at the field: documented variants make a schema that is not structural"
)]
pub enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
}

/// Where the rows of a table go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetSpec {
    /// Name of the target table in the peer's database. When left out: the source table's name for schema
    /// public, schema_name for others.
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(validation = Rule::new("!self.startsWith('_walferry')").message(message::RESERVED_TABLE))]
    pub table: String,
}

/// Which columns are mirrored, under which names and types.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[x_kube(
    validation = Rule::new("!has(self.rename) || !has(self.exclude) || self.exclude.all(column, !(column in self.rename))").message(message::EXCLUDED_AND_RENAMED),
    validation = Rule::new("!has(self.types) || !has(self.exclude) || self.exclude.all(column, !(column in self.types))").message(message::EXCLUDED_AND_TYPED),
    validation = Rule::new("!has(self.rename) || self.rename.all(column, self.rename[column] != '' && !self.rename[column].startsWith('_walferry'))").message(message::RENAME_TARGET),
    validation = Rule::new("!has(self.types) || self.types.all(column, self.types[column] != '')").message(message::EMPTY_TYPE),
)]
#[serde(rename_all = "camelCase")]
pub struct ColumnsSpec {
    /// Source columns that are not mirrored. Columns of the key can't be left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub exclude: Vec<String>,
    /// Target names by source name, for columns with another name at the destination.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 200))]
    pub rename: BTreeMap<String, String>,
    /// ClickHouse types by source name, for columns whose default type doesn't suit:
    /// `{payload: JSON, price: "Decimal(18, 4)"}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 200))]
    pub types: BTreeMap<String, String>,
}

/// Engine settings of the target table when walferry creates it. An existing table is left unchanged.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineSpec {
    /// Target columns of the sorting key, in order; the source's key when left out. All of them must belong
    /// to the replica identity, because a change must name the row that it replaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub order_by: Vec<String>,
    /// PARTITION BY: a ClickHouse expression over target columns of the sorting key, such as
    /// toYYYYMM(created_at).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub partition_by: Option<String>,
    /// TTL: a ClickHouse expression over target columns, such as created_at + INTERVAL 90 DAY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub ttl: Option<String>,
    /// SETTINGS of the table: MergeTree settings by name, values as strings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 50))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[a-z][a-z0-9_]*$'))").message(message::SETTING_NAME))]
    pub settings: BTreeMap<String, String>,
}

/// What of the existing rows is copied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// Initial: copy the existing rows, then stream. InitialOnly: copy the existing rows, apply the changes
    /// of that time, then stop. Never: stream only. Only: deprecated, write InitialOnly.
    #[serde(default)]
    pub mode: SnapshotMode,
    /// How many connections copy at the same time, over all tables.
    #[serde(default = "default_parallelism")]
    #[schemars(range(min = 1, max = 32))]
    pub parallelism: i32,
}

impl Default for SnapshotSpec {
    fn default() -> Self {
        SnapshotSpec { mode: SnapshotMode::default(), parallelism: default_parallelism() }
    }
}

fn default_parallelism() -> i32 {
    2
}

/// What of the existing rows is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(
    missing_docs,
    reason = "documented at the field: documented variants make a schema that is not structural"
)]
pub enum SnapshotMode {
    #[default]
    Initial,
    InitialOnly,
    Never,
    // The former name of InitialOnly.
    Only,
}

/// How streamed rows are batched into inserts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BatchSpec {
    /// Most bytes of rows in memory, over all tables: a number of bytes, or one with Ki, Mi or Gi. From 1Mi
    /// to 1Gi.
    #[serde(default = "default_batch_bytes")]
    #[schemars(schema_with = "byte_size_schema")]
    #[x_kube(validation = Rule::new(
        "isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('1Mi')) >= 0 && quantity(string(self)).compareTo(quantity('1Gi')) <= 0 && string(self).matches('^[0-9]+(Ki|Mi|Gi)?$')"
    ).message(message::BATCH_BYTES))]
    pub max_bytes: IntOrString,
    /// Longest time, in milliseconds, that a row waits for others before its insert starts. A mirror that has
    /// caught up doesn't wait.
    #[serde(default = "default_batch_delay")]
    #[schemars(range(min = 1, max = 60000))]
    pub max_delay_milliseconds: i32,
}

impl Default for BatchSpec {
    fn default() -> Self {
        BatchSpec { max_bytes: default_batch_bytes(), max_delay_milliseconds: default_batch_delay() }
    }
}

fn default_batch_bytes() -> IntOrString {
    IntOrString::String("32Mi".to_owned())
}

fn default_batch_delay() -> i32 {
    200
}

/// Kubernetes' format of a field that takes a whole number or a string.
fn byte_size_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"x-kubernetes-int-or-string": true})
}

/// What happens to a value that the destination type can't hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(
    missing_docs,
    reason = "documented at the field: documented variants make a schema that is not structural"
)]
pub enum OutOfRange {
    #[default]
    Clamp,
    Null,
    Fail,
    // The former name of Clamp.
    Nearest,
}

/// Whether slot, publication and state are dropped with the Mirror.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(
    missing_docs,
    reason = "documented at the field: documented variants make a schema that is not structural"
)]
pub enum DeletionPolicy {
    #[default]
    Delete,
    Retain,
}

/// The Mirror's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorStatus {
    /// The `metadata.generation` that this status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready always; Reconciling and Stalled while they are true; SourceReady, DestinationReady, Snapshotted,
    /// Streaming, CaughtUp.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// The replication slot at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_name: Option<String>,
    /// The publication at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication_name: Option<String>,
    /// Where the slot and the publication were made: they are removed there, whatever the peer names by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<SlotStatus>,
    /// Everything committed at the source up to this position is durable at the destination.
    #[serde(rename = "lastLSN", default, skip_serializing_if = "Option::is_none")]
    pub last_lsn: Option<String>,
    /// Distance between source and destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<LagStatus>,
    /// Bytes of WAL that the slot holds back at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retained_wal_bytes: Option<i64>,
    /// Number of tables by state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<TableCounts>,
    /// Failed tables, at most ten of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["schema".into(), "name".into()]))]
    pub failed_tables: Vec<FailedTable>,
    /// Progress of the initial snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotStatus>,
}

/// The server and database in which the slot and the publication were made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlotStatus {
    /// Host name or address, as the peer named it last.
    pub host: String,
    /// The TCP port of the server.
    pub port: i32,
    /// The database.
    pub database: String,
    /// PostgreSQL's system identifier, which distinguishes the server from any other.
    pub system_identifier: String,
}

/// Distance between source and destination.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LagStatus {
    /// Bytes of WAL between the end of the source's log and the last durable transaction; missing while that
    /// is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Whole seconds since the oldest transaction that is not yet durable was committed. They grow while no
    /// changes stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
}

/// Number of tables by state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableCounts {
    /// All tables.
    pub total: i32,
    /// Tables whose existing rows wait to be copied or are being copied.
    pub snapshotting: i32,
    /// Tables whose changes stream.
    pub streaming: i32,
    /// Failed tables.
    pub failed: i32,
}

/// A table that stopped while the others continue.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailedTable {
    /// Schema at the source.
    pub schema: String,
    /// Table at the source.
    pub name: String,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// What failed and what to do.
    pub message: String,
}

/// Progress of the initial snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotStatus {
    /// Rows copied.
    pub rows_copied: i64,
    /// Rows that the source's statistics expect.
    pub rows_estimated: i64,
}
