//! What conditions, reasons and annotations mean, for the reference in the docs. Tests hold the lists complete.

use super::{ABANDON, RESYNC, conditions as types};

/// A reason, what it means and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The CamelCase word.
    pub name: &'static str,
    /// What it means, in a sentence.
    pub meaning: &'static str,
    /// What to run or to change; empty where there is nothing to do.
    pub action: &'static str,
}

/// Reasons that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonGroup {
    /// What they have in common.
    pub title: &'static str,
    /// The reasons.
    pub reasons: &'static [Reason],
}

const fn reason(name: &'static str, meaning: &'static str, action: &'static str) -> Reason {
    Reason { name, meaning, action }
}

/// Condition types and what they mean.
pub const CONDITIONS: &[(&str, &str)] = &[
    (
        types::READY,
        "Rows flow, or nothing more is asked for. Unknown while a Mirror is on its way there. Always present.",
    ),
    (
        types::RECONCILING,
        "Work is going on or is tried again. Present only while it is True, and never beside Stalled.",
    ),
    (
        types::STALLED,
        "Nothing will happen until somebody acts; the message says what to do. Present only while it is True.",
    ),
    (types::SOURCE_READY, "The source can be used; Unknown while it is not in use. Mirrors only."),
    (types::DESTINATION_READY, "The destination can be used; Unknown while it is not in use. Mirrors only."),
    (types::SNAPSHOTTED, "The rows that were there at the start are copied. Mirrors only."),
    (types::STREAMING, "Changes flow. Mirrors only."),
    (
        types::CAUGHT_UP,
        "The destination has everything that the source has committed; its message has the lag. Mirrors only.",
    ),
];

/// Annotations that people set, and what they do.
pub const ANNOTATIONS: &[(&str, &str)] = &[
    (
        RESYNC,
        "On a Mirror: copies all tables anew when its value changes, with a new slot. What to do after the slot was lost. \
         `kubectl annotate mirror NAME walferry.dev/resync=\"$(date +%s)\" --overwrite`. Tables that are named behind the value's first \
         word are copied alone, and the slot stays: `walferry.dev/resync=\"$(date +%s) public.orders public.users\"`.",
    ),
    (
        ABANDON,
        "On a Mirror that is being deleted and can't clean up: `true` lets it go. An event says what is left behind at the source and \
         the destination. `kubectl annotate mirror NAME walferry.dev/abandon=true`",
    ),
];

/// All reasons that a condition, a failed table or a check may give.
pub const REASONS: &[ReasonGroup] = &[
    ReasonGroup { title: "States", reasons: STATES },
    ReasonGroup { title: "Resources", reasons: RESOURCES },
    ReasonGroup { title: "The replicator's pod", reasons: REPLICATOR },
    ReasonGroup { title: "The source", reasons: SOURCE },
    ReasonGroup { title: "The destination", reasons: DESTINATION },
    ReasonGroup { title: "Tables and the engine", reasons: ENGINE },
];

const STATES: &[Reason] = &[
    reason("Progressing", "On the way; Reconciling says how far.", ""),
    reason(
        "ProgressingWithRetry",
        "A passing fault, tried again by itself; Reconciling has its reason.",
        "Wait, or look at Reconciling when it lasts.",
    ),
    reason("Provisioning", "Connecting, checking, making publication, slot and target tables.", ""),
    reason("Snapshotting", "Existing rows are being copied; changes stream meanwhile.", ""),
    reason("Streaming", "Changes flow.", ""),
    reason(
        "StreamingWithFailedTables",
        "Changes flow, but some tables have stopped.",
        "See `status.failedTables`.",
    ),
    reason("AllTablesFailed", "No table is left that works.", "See `status.failedTables`."),
    reason(
        "Suspended",
        "Paused by `spec.suspend`; the slot holds back WAL at the source.",
        "Set `spec.suspend` to false before the source's disk fills up.",
    ),
    reason("Finished", "All that was asked for is done (`snapshot.mode: Only`).", ""),
    reason("Connected", "The database answers and has what is needed.", ""),
    reason("Unknown", "Not known at the moment.", ""),
    reason("Copied", "The copy of the existing rows is complete.", ""),
    reason("NoLag", "The destination has everything.", ""),
    reason(
        "Behind",
        "The destination is behind; the message has bytes and seconds.",
        "See docs/performance.md when it grows.",
    ),
    reason("Stalled", "It waits for somebody; the condition Stalled says why.", "See the condition Stalled."),
    reason(
        "Deleting",
        "The resource is being deleted: a Mirror ends its pod and cleans up, a ReplicationPeer waits for the Mirrors that use it.",
        "Delete the Mirrors that the message names, for a ReplicationPeer.",
    ),
    reason(
        "CleanupFailed",
        "Slot, publication or state could not be removed yet; tried again with growing pauses.",
        "Make the databases reachable, or let go with the annotation `walferry.dev/abandon`.",
    ),
];

const RESOURCES: &[Reason] = &[
    reason(
        "SlotAtRisk",
        "The source is in use, but may soon remove WAL that the Mirror still needs.",
        "Raise `max_slot_wal_keep_size`; see why the Mirror doesn't keep up, or resume it.",
    ),
    reason(
        "SourceDiskAtRisk",
        "The source is in use, but keeps more WAL for the Mirror than `max_wal_size`, and no `max_slot_wal_keep_size` limits that: its disk may fill up.",
        "See why the Mirror doesn't keep up, or resume it. Set `max_slot_wal_keep_size`: past it the slot is lost, but the source goes on.",
    ),
    reason(
        "InvalidSpec",
        "The resource asks for something that can't be.",
        "Correct the field that the message names.",
    ),
    reason(
        "PeerMissing",
        "The Mirror names a ReplicationPeer that isn't in its namespace.",
        "Create it, or correct `sourceRef` or `destinationRef` in a new Mirror.",
    ),
    reason("SecretMissing", "A Secret isn't in the namespace.", "Create it; the rest happens by itself."),
    reason(
        "SecretKeyMissing",
        "A Secret has no such key, or its value can't be used.",
        "Add or correct the key; the rest happens by itself.",
    ),
    reason(
        "TargetTableTaken",
        "An older Mirror writes this target table already.",
        "Give one of them another `target.table`.",
    ),
];

const REPLICATOR: &[Reason] = &[
    reason(
        "ReplicatorStarting",
        "The pod is on its way.",
        "`kubectl describe pod -l walferry.dev/mirror=NAME` when it lasts.",
    ),
    reason(
        "ReplicatorImageUnavailable",
        "The image can't be pulled.",
        "Correct the operator's replicator image, or add `spec.replicator.imagePullSecrets`.",
    ),
    reason(
        "ReplicatorMisconfigured",
        "The container can't be made from its settings.",
        "Correct what the message names, most often in `spec.replicator`.",
    ),
    reason(
        "ReplicatorOutOfMemory",
        "The pod was killed at its memory limit.",
        "Raise `spec.replicator.resources.limits.memory`, or lower `spec.batch.maxBytes`.",
    ),
    reason(
        "ReplicatorCrashing",
        "The pod ends again and again; the message has its last words.",
        "`kubectl logs --previous` of the pod.",
    ),
    reason(
        "ReplicatorUnschedulable",
        "No node takes the pod.",
        "Make room, or change `spec.replicator.resources`, `nodeSelector`, `affinity` or `tolerations`.",
    ),
    reason(
        "ReplicatorForbidden",
        "The cluster refuses to make the pod: a quota, Pod Security, a missing priority class.",
        "Do what the message says; it is the API server's.",
    ),
    reason(
        "ReplicatorUnreachable",
        "The pod runs and doesn't answer the operator.",
        "Look for a NetworkPolicy that keeps the operator from port 9464 of the pod.",
    ),
];

const SOURCE: &[Reason] = &[
    reason(
        "SourceUnreachable",
        "The source's address doesn't answer.",
        "Check `postgres.host`, `postgres.port` and the network between.",
    ),
    reason(
        "SourceAuthenticationFailed",
        "The source refuses the log-in.",
        "Correct `username` and `password` in the Secret, or pg_hba.conf.",
    ),
    reason(
        "SourceTlsFailed",
        "TLS with the source fails, or its settings are wrong.",
        "Correct `postgres.tls`; the message says which check failed.",
    ),
    reason(
        "SourceVersionUnsupported",
        "The source's release is too old for what is asked.",
        "Use PostgreSQL 14 or later, 15 for `where`.",
    ),
    reason(
        "SourceWalLevelNotLogical",
        "`wal_level` isn't `logical`.",
        "`ALTER SYSTEM SET wal_level = 'logical'`, then restart PostgreSQL.",
    ),
    reason(
        "SourceWalRetentionUnlimited",
        "WAL that a slot keeps has no limit. A warning of `walferry check`.",
        "Set `max_slot_wal_keep_size`.",
    ),
    reason(
        "SourceNoFreeReplicationSlot",
        "No replication slot is free.",
        "Raise `max_replication_slots`, or drop slots that nobody reads.",
    ),
    reason("SourceNoFreeWalSender", "No walsender is free.", "Raise `max_wal_senders`."),
    reason(
        "SourcePrivilegeMissing",
        "The role lacks a right.",
        "Run the GRANT or ALTER ROLE of the message.",
    ),
    reason(
        "SourceSlotLost",
        "The slot is gone; changes since then can't be had any more.",
        "Annotate the Mirror with `walferry.dev/resync`.",
    ),
    reason(
        "SourceSlotInvalidated",
        "The source has removed WAL, or on a standby rows of the catalog, that the slot needed.",
        "Change the setting that the message names, then annotate the Mirror with `walferry.dev/resync`.",
    ),
    reason(
        "SourceStandbyFeedbackMissing",
        "The source is a standby that does not tell its primary what it needs. A warning of `walferry check`.",
        "Set `hot_standby_feedback` and `primary_slot_name` at the standby.",
    ),
    reason(
        "SourceSlotUnusable",
        "A slot of the Mirror's name exists and isn't its own, or can't be read any more.",
        "Run the statement of the message.",
    ),
    reason(
        "SourceSlotInUse",
        "Another session reads the slot; it is taken over when it is an old one of this Mirror's.",
        "End the session that the message names when it lasts.",
    ),
    reason(
        "SourceTableDropped",
        "The table was dropped or replaced at the source.",
        "Take it out of the Mirror; or name it in a resync to copy the new one.",
    ),
    reason(
        "SourceNotPublished",
        "The publication no longer sends the table, or sends other rows or columns of it.",
        "Run the statement of the message: a resync of that table publishes it again.",
    ),
    reason(
        "SourceSlotNotReady",
        "PostgreSQL waits for transactions that ran when the slot was asked for.",
        "End transactions that stay open for long.",
    ),
    reason(
        "SourcePublicationChanged",
        "The publication was dropped or changed; changes made meanwhile were not sent.",
        "Annotate the Mirror with `walferry.dev/resync`.",
    ),
    reason(
        "SourcePublicationUnusable",
        "The publication that is there isn't the one that is needed, and the role may not change it.",
        "Run the statement of the message.",
    ),
    reason(
        "SourceReplaced",
        "Another database cluster answers at the source's address.",
        "Point the peer back, or annotate the Mirror with `walferry.dev/resync`.",
    ),
    reason(
        "SourceTimelineChanged",
        "A standby was promoted that never had transactions which were replicated, or the source is on a timeline that doesn't come from the former one. Of a table: it can't be copied anew by itself after a failover.",
        "Annotate the Mirror with `walferry.dev/resync` and the tables that the message names; or point the peer to the present primary.",
    ),
    reason("SourceChanged", "The slot, the publication or a column is gone; the next try says which.", ""),
    reason(
        "SourceProtocolError",
        "The source sent what the protocol doesn't allow.",
        "Look for a proxy between; report it when there is none.",
    ),
    reason(
        "SourceError",
        "Another fault at the source; the message is the server's.",
        "Do what the message says.",
    ),
    reason("SourceTableMissing", "A table isn't at the source.", "Correct `schema` and `name`; case counts."),
    reason(
        "SourceTableUnsupported",
        "A relation of a kind that can't be replicated, such as a view.",
        "Take it out of `spec.tables`.",
    ),
    reason(
        "SourceTableSpecInvalid",
        "What the Mirror asks of a table's columns can't work.",
        "Correct `columns` or `engine` of the table.",
    ),
    reason(
        "SourceUnknownColumn",
        "The Mirror names a column that isn't there.",
        "Correct `columns`, `engine` or `where` of the table.",
    ),
    reason(
        "SourceReplicaIdentityMissing",
        "Updates and deletes can't name their row, and would fail at the source.",
        "Add a primary key, or ALTER TABLE … REPLICA IDENTITY.",
    ),
    reason(
        "SourceRowFilterInvalid",
        "`where` can't be used.",
        "Correct it; it may name only columns of the replica identity.",
    ),
    reason(
        "SourceRowLevelSecurity",
        "Row-level security hides rows from the copy and not from the stream.",
        "`ALTER ROLE … BYPASSRLS` for the peer's role.",
    ),
    reason("SourceGeneratedColumns", "Generated columns are left out. A warning of `walferry check`.", ""),
    reason(
        "SourceSchemaChanged",
        "The table changed in a way that can't be applied by itself.",
        "Run the statement of the message.",
    ),
];

const DESTINATION: &[Reason] = &[
    reason(
        "DestinationUnreachable",
        "The destination's address doesn't answer.",
        "Check `clickhouse.url` and the network between.",
    ),
    reason("DestinationConnectionLost", "The connection broke.", ""),
    reason("DestinationTimeout", "The destination didn't answer in time.", "Look at its load when it lasts."),
    reason(
        "DestinationNotClickHouse",
        "What answers there isn't ClickHouse's HTTP interface.",
        "Correct `clickhouse.url`: port 8123, or 8443 with https.",
    ),
    reason(
        "DestinationProtocolError",
        "The destination answered with something unexpected.",
        "Look for a proxy between; report it when there is none.",
    ),
    reason(
        "DestinationAuthenticationFailed",
        "The destination refuses the log-in.",
        "Correct `username` and `password` in the Secret.",
    ),
    reason(
        "DestinationAccessDenied",
        "The destination's user lacks a right.",
        "Run the GRANT of the message.",
    ),
    reason(
        "DestinationReadOnly",
        "The user may not write, or the table is read-only at the moment.",
        "Set `readonly = 0` in the user's profile; look at ClickHouse Keeper and the disk.",
    ),
    reason(
        "DestinationTlsFailed",
        "TLS with the destination fails.",
        "Correct `clickhouse.tls`; the message says which check failed.",
    ),
    reason("DestinationSettingsInvalid", "The peer's settings can't be used.", "Correct the peer."),
    reason(
        "DestinationSettingsForbidden",
        "The user's profile constrains a setting that walferry needs.",
        "Remove the constraint that the message names.",
    ),
    reason("DestinationVersionUnsupported", "The destination's release is too old.", "Upgrade ClickHouse."),
    reason(
        "DestinationDatabaseMissing",
        "The destination has no database of this name.",
        "`CREATE DATABASE`, or correct `clickhouse.database`.",
    ),
    reason(
        "DestinationStateUnusable",
        "walferry's own state table can't be read or written.",
        "Do what the message says; as a last resort copy anew with `walferry.dev/resync`.",
    ),
    reason(
        "DestinationTableMissing",
        "A target table was dropped or renamed.",
        "Take the table out of the Mirror and put it back: it is copied anew.",
    ),
    reason(
        "DestinationTableConflict",
        "A target table, or a view on it, is in the way.",
        "Drop or correct it, or choose another `target.table`.",
    ),
    reason(
        "DestinationEngineInvalid",
        "What the Mirror asks of the engine can't work.",
        "Correct `engine` of the table.",
    ),
    reason(
        "DestinationTypeUnsupported",
        "A column can't become the type that is asked for.",
        "Correct `columns.types`.",
    ),
    reason(
        "DestinationTypeMismatch",
        "A NULL came for a column that the target is sorted by.",
        "Drop the target, set `engine.orderBy` to other columns, then a resync.",
    ),
    reason(
        "DestinationTypeLossy",
        "Some values of a column may not fit its type. A warning of `walferry check`.",
        "Choose another type in `columns.types`, or what to do in `outOfRange`.",
    ),
    reason(
        "DestinationStatementRefused",
        "ClickHouse refuses the table as it is asked for.",
        "Correct `engine` or `columns.types` of the table.",
    ),
    reason(
        "DestinationRejectsRows",
        "The table's columns, constraints or views don't take the rows.",
        "Correct them; the message is the server's.",
    ),
    reason(
        "DestinationTruncateRefused",
        "The table is too large to truncate.",
        "Raise `max_table_size_to_drop`.",
    ),
    reason(
        "DestinationTooManyParts",
        "Merges don't keep up; walferry slows down.",
        "Look at `engine.partitionBy` and the server's load.",
    ),
    reason(
        "DestinationMemoryLimit",
        "ClickHouse is short of memory; walferry slows down.",
        "Give the server or its user more memory.",
    ),
    reason(
        "DestinationOverloaded",
        "ClickHouse is at a limit; walferry slows down.",
        "Look at the limit that the message names.",
    ),
    reason("DestinationDiskFull", "The server's disk is full.", "Free space at the ClickHouse server."),
    reason(
        "DestinationInsertReplaced",
        "A later insert took the place of this one, as is meant after a cut.",
        "",
    ),
    reason("DestinationShuttingDown", "The server or the table is being restarted.", ""),
    reason(
        "DestinationReplicationFault",
        "ClickHouse's own replication has a fault.",
        "Check ClickHouse Keeper and the replicas.",
    ),
    reason(
        "DestinationError",
        "Another fault at the destination; the message is the server's.",
        "Do what the message says.",
    ),
];

const ENGINE: &[Reason] = &[
    reason(
        "WaitingForTransactions",
        "A table that joins waits for transactions that were writing to it.",
        "End the transaction that the message names when it lasts.",
    ),
    reason(
        "CopiedAnew",
        "A table, or a partition of it, is copied while its changes stream: something happened to it that the stream doesn't tell.",
        "Nothing; the message says why.",
    ),
    reason(
        "ResyncUnknownTable",
        "The annotation `walferry.dev/resync` names a table that the Mirror doesn't have.",
        "Correct the name: `schema.table`, behind the value's first word.",
    ),
    reason(
        "SpecChanged",
        "A table is asked for in another way than when it was copied.",
        "Undo the change, or name the table in a resync.",
    ),
    reason(
        "CopyFinished",
        "A Mirror with `snapshot.mode: Only` is over, and something else is asked of it now.",
        "Undo the change, or make a new Mirror.",
    ),
    reason(
        "ValueOutOfRange",
        "A value doesn't fit its column and `outOfRange` is Fail.",
        "Choose Nearest or Null, or another type in `columns.types`.",
    ),
    reason(
        "RowTooLong",
        "A row is longer than the 128 MiB that walferry holds at most.",
        "Split what the row holds, or take the column out with `columns.exclude`; then resync.",
    ),
    reason(
        "SourceEncoding",
        "A row has bytes that mean nothing in the source database's encoding, so it can't be sent as UTF-8.",
        "Mend the row's text at the source, then resync.",
    ),
    reason(
        "SourceQueryRefused",
        "The source refuses to read some of a table's rows again; the message is the server's.",
        "Do what the message says, then resync.",
    ),
    reason("DecodeFailed", "A value from the source can't be read.", "Report it with the column's type."),
    reason(
        "InternalError",
        "A task of walferry ended without an answer; tried again.",
        "Report it with the log.",
    ),
];
