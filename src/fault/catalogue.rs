//! The catalogue of reasons: what is done about each, its meaning, and its action.
//!
//! The reference in the docs, conditions, checks and the engine's policy all read this one list.
//! [`Reason`](super::Reason) is made from it.

/// Expands `$define!` with every reason as `Name: Disposition, "meaning", "action";`, in the groups of the
/// reference.
macro_rules! catalogue {
    ($define:ident) => {
        $define! {
            States {
                Progressing: Nothing,
                    "In progress; Reconciling has the details.",
                    "";
                ProgressingWithRetry: Retry,
                    "A transient error, retried automatically; Reconciling has its reason.",
                    "Wait. If it lasts, look at Reconciling.";
                Provisioning: Nothing,
                    "Connecting, checking, creating publication, slot and target tables.",
                    "";
                Snapshotting: Nothing,
                    "Existing rows are being copied while changes stream.",
                    "";
                Streaming: Nothing,
                    "Changes are streaming.",
                    "";
                StreamingWithFailedTables: Nothing,
                    "Changes are streaming, but some tables failed.",
                    "See `status.failedTables`.";
                AllTablesFailed: Stall,
                    "Every table failed.",
                    "See `status.failedTables`.";
                Suspended: Nothing,
                    "Paused by `spec.suspend`; the slot holds back WAL at the source.",
                    "Set `spec.suspend` to false before the source's disk fills up.";
                Finished: Nothing,
                    "The copy of `snapshot.mode: InitialOnly` is complete; nothing more is requested.",
                    "";
                Connected: Nothing,
                    "The database is reachable and meets the requirements.",
                    "";
                Unknown: Nothing,
                    "Currently unknown.",
                    "";
                Copied: Nothing,
                    "The copy of the existing rows is complete.",
                    "";
                NoLag: Nothing,
                    "The destination has every change.",
                    "";
                Behind: Nothing,
                    "The destination is behind; the message has bytes and seconds.",
                    "If it grows, see docs/performance.md.";
                Stalled: Stall,
                    "Manual action required; the condition Stalled has the cause.",
                    "See the condition Stalled.";
                Deleting: Nothing,
                    "The resource is being deleted: a Mirror stops its pod and cleans up, a ReplicationPeer waits for the Mirrors that use it.",
                    "Delete the Mirrors that the message names, for a ReplicationPeer.";
                CleanupFailed: Retry,
                    "Slot, publication or state could not be removed yet; retried with growing pauses.",
                    "Make the databases reachable, or release the Mirror with the annotation `walferry.dev/skip-cleanup`.";
            }
            Resources {
                SlotAtRisk: Nothing,
                    "The source is in use, but may soon remove WAL that the Mirror still needs.",
                    "Raise `max_slot_wal_keep_size`; find out why the Mirror doesn't keep up, or resume it.";
                SourceDiskAtRisk: Nothing,
                    "The source is in use, but keeps more WAL for the Mirror than `max_wal_size`, and no `max_slot_wal_keep_size` limits that: its disk may fill up.",
                    "Find out why the Mirror doesn't keep up, or resume it. Set `max_slot_wal_keep_size`: past it the slot is lost, but the source continues.";
                InvalidSpec: Stall,
                    "The spec asks for something impossible.",
                    "Correct the field that the message names.";
                PeerMissing: Retry,
                    "The Mirror names a ReplicationPeer that isn't in its namespace.",
                    "Create it, or correct `sourceRef` or `destinationRef` in a new Mirror.";
                SecretMissing: Retry,
                    "A Secret isn't in the namespace.",
                    "Create it; the Mirror continues automatically.";
                SecretKeyMissing: Retry,
                    "A Secret has no such key, or its value can't be used.",
                    "Add or correct the key; the Mirror continues automatically.";
                ObjectNotOurs: Stall,
                    "A ConfigMap or Deployment with the name that the Mirror needs was not created for it; it is left unchanged.",
                    "Delete the object if nothing needs it, or create the Mirror under another name.";
                TargetTableTaken: FailTable,
                    "Another Mirror writes this target table already.",
                    "Give one of them another `target.table`. The table is taken automatically once the other Mirror has released it.";
            }
            Replicator {
                ReplicatorStarting: Retry,
                    "The pod is starting.",
                    "If it lasts, run `kubectl describe pod -l walferry.dev/mirror=NAME`.";
                ReplicatorImageUnavailable: Stall,
                    "The image can't be pulled.",
                    "Correct the operator's replicator image, or add `spec.replicator.imagePullSecrets`.";
                ReplicatorMisconfigured: Stall,
                    "The container can't be created from its settings.",
                    "Correct what the message names, most often in `spec.replicator`.";
                ReplicatorOutOfMemory: Retry,
                    "The pod was killed at its memory limit.",
                    "Raise `spec.replicator.resources.limits.memory`, or lower `spec.batch.maxBytes`.";
                ReplicatorCrashing: Retry,
                    "The pod ends repeatedly; the message has its last lines.",
                    "`kubectl logs --previous` of the pod.";
                ReplicatorUnschedulable: Retry,
                    "No node accepts the pod.",
                    "Make room, or change `spec.replicator.resources`, `nodeSelector`, `affinity` or `tolerations`.";
                ReplicatorForbidden: Stall,
                    "The cluster refuses to create the pod: a quota, Pod Security, a missing priority class.",
                    "Follow the message; it is the API server's.";
                ReplicatorUnreachable: Retry,
                    "The pod runs and doesn't answer the operator.",
                    "Look for a NetworkPolicy that blocks the operator from port 9464 of the pod.";
            }
            Source {
                SourceUnreachable: Retry,
                    "The source's address doesn't answer.",
                    "Check `postgres.host`, `postgres.port` and the network between.";
                SourceUnavailable: Retry,
                    "The source answers but accepts no statements, or ended a session: it starts, shuts down or recovers from a crash, or an administrator ended the session.",
                    "Nothing, unless it lasts; then read the server's log.";
                SourceOverloaded: Retry,
                    "The source has no capacity for a request: connections, memory or disk.",
                    "Raise the limit that the message names, or free that resource.";
                SourceStatementCanceled: Retry,
                    "The source ended a statement: a deadlock, a lock or statement timeout, a conflict with another transaction or with recovery on a standby, or a cancel request.",
                    "Nothing, unless it repeats; then find what holds locks on the tables, or cancels statements.";
                SourceAddressAmbiguous: Retry,
                    "Two connections to the source's address reached two servers: a switchover is in progress, or the address leads to several servers.",
                    "If that lasts, give `postgres.host` the address of one server, or one that always leads to the primary.";
                SourceAuthenticationFailed: Stall,
                    "The source refuses the credentials.",
                    "Correct `username` and `password` in the Secret, or pg_hba.conf.";
                SourceTlsFailed: Stall,
                    "TLS with the source fails, or its settings are wrong.",
                    "Correct `postgres.tls`; the message says which check failed.";
                SourceVersionUnsupported: Stall,
                    "The source's release is too old for the request.",
                    "Use PostgreSQL 14 or later, 15 for `where`.";
                SourceWalLevelNotLogical: Stall,
                    "`wal_level` isn't `logical`.",
                    "`ALTER SYSTEM SET wal_level = 'logical'`, or change it in the server's command line where that gives it; then restart PostgreSQL.";
                SourceWalRetentionUnlimited: Nothing,
                    "The WAL that a slot retains has no limit. A warning of `walferry check`.",
                    "Set `max_slot_wal_keep_size`.";
                SourceNoFreeReplicationSlot: Stall,
                    "No replication slot is free.",
                    "Raise `max_replication_slots`, or drop slots without a reader.";
                SourceNoFreeWalSender: Stall,
                    "No walsender is free.",
                    "Raise `max_wal_senders`.";
                SourcePrivilegeMissing: FailTable,
                    "The role lacks a privilege.",
                    "Run the GRANT or ALTER ROLE of the message.";
                SourceSlotLost: Stall,
                    "The slot is gone; changes since then are lost.",
                    "Annotate the Mirror with `walferry.dev/resync`.";
                SourceSlotAdvanced: Stall,
                    "The slot is ahead of what this Mirror confirmed, so changes are missing: another reader used it, it was moved or recreated, or the destination was restored from a backup.",
                    "Annotate the Mirror with `walferry.dev/resync`.";
                SourceSlotUnknown: Stall,
                    "A slot of the Mirror's name exists, and the destination has no record of it: it may belong to another destination.",
                    "Point the peer back to the destination that has the records; or annotate the Mirror with `walferry.dev/resync`, which drops the slot.";
                SourceWentBack: Stall,
                    "The source was restored from a snapshot of its disk: it lacks transactions that the destination has.",
                    "Annotate the Mirror with `walferry.dev/resync`.";
                SourceSlotInvalidated: Stall,
                    "The source has removed WAL, or on a standby rows of the catalog, that the slot needed.",
                    "Change the setting that the message names, then annotate the Mirror with `walferry.dev/resync`.";
                SourceStandbyFeedbackMissing: Nothing,
                    "The source is a standby that does not report its needs to the primary. A warning of `walferry check`.",
                    "Set `hot_standby_feedback` and `primary_slot_name` at the standby.";
                SourceSlotUnusable: Stall,
                    "A slot of the Mirror's name exists and isn't its own, or is no longer readable.",
                    "Run the statement of the message.";
                SourceShuttingDown: Retry,
                    "The source is shutting down, which ends the stream; it continues when the source is back.",
                    "Nothing.";
                SourceSlotInUse: Retry,
                    "Another session reads the slot; it is terminated when it is a stale connection of this Mirror.",
                    "If it lasts, end the session that the message names.";
                SourceSnapshotLost: Retry,
                    "The transaction that holds the snapshot for tables without a key has ended; they are copied again.",
                    "Nothing, unless it repeats; then find what ends sessions or rewrites these tables, such as `idle_in_transaction_session_timeout`.";
                SourceTableDropped: FailTable,
                    "The table was dropped or replaced at the source.",
                    "Remove it from the Mirror; or name it in a resync to copy the new one.";
                SourceNotPublished: FailTable,
                    "The publication no longer sends the table, or sends other rows or columns of it.",
                    "Run the statement of the message: a resync of that table publishes it again.";
                SourceSlotNotReady: Retry,
                    "PostgreSQL waits for transactions that were running when the slot was requested.",
                    "End long transactions.";
                SourcePublicationChanged: Stall,
                    "The publication was dropped or changed; changes made meanwhile were not sent.",
                    "Annotate the Mirror with `walferry.dev/resync`.";
                SourcePublicationUnusable: Stall,
                    "The existing publication isn't the one that is needed, and the role may not change it.",
                    "Run the statement of the message.";
                SourceReplaced: Stall,
                    "The source's address leads to another database cluster.",
                    "Point the peer back, or annotate the Mirror with `walferry.dev/resync`.";
                SourceLogTooLong: Stall,
                    "The source's log is longer than 32 PiB, the limit of row versions.",
                    "Move the database to a new cluster and mirror that one.";
                SourceTimelineChanged: Stall,
                    "A standby was promoted that lacks replicated transactions, or the source is on a timeline that doesn't descend from the former one. Of a table: it can't be copied again automatically after a failover.",
                    "Annotate the Mirror with `walferry.dev/resync` and the tables that the message names; or point the peer to the present primary.";
                SourceChanged: Retry,
                    "The slot, the publication or a column is gone; the next attempt reports which.",
                    "";
                SourceProtocolError: Retry,
                    "The source sent something that the protocol doesn't allow.",
                    "Look for a proxy in between; report it when there is none.";
                SourceError: Stall,
                    "Another error of the source; the message is the server's.",
                    "Follow the message.";
                SourceTableMissing: Stall,
                    "A table doesn't exist at the source.",
                    "Correct `schema` and `name`; case counts.";
                SourceTableUnsupported: Stall,
                    "A relation of a kind that can't be replicated, such as a view.",
                    "Remove it from `spec.tables`.";
                SourceTableInherited: FailTable,
                    "Other tables inherit from the table, so a query on it returns more than its own rows.",
                    "Mirror the inheriting tables instead, or make them partitions. Once no table inherits from it, it is copied again automatically.";
                SourceTableSpecInvalid: Stall,
                    "What the Mirror asks of a table's columns is impossible.",
                    "Correct `columns` or `engine` of the table.";
                SourceUnknownColumn: Stall,
                    "The Mirror names a column that doesn't exist.",
                    "Correct `columns`, `engine` or `where` of the table.";
                SourceColumnRenamed: FailTable,
                    "A name in `columns` or `where` of a table no longer means the same column: that column was renamed or dropped.",
                    "Use the present names of the columns, then name the table in a resync.";
                SourceAncestorPublished: FailTable,
                    "The table is a partition of a table that is published too: its changes are sent as those of the parent.",
                    "Remove it, or its parent, from the Mirror.";
                SourceReplicaIdentityDiffers: FailTable,
                    "A partition has another replica identity than its table, so old rows arrive incomplete.",
                    "Run the statement of the message; the table is then copied again automatically.";
                SourceReplicaIdentityMissing: FailTable,
                    "Updates and deletes can't identify their row, and would fail at the source.",
                    "Add a primary key, or ALTER TABLE … REPLICA IDENTITY.";
                SourceRowFilterInvalid: FailTable,
                    "`where` is invalid.",
                    "Correct it; it may use only columns of the replica identity.";
                SourceRowFilterFailed: Stall,
                    "`where` fails for a value of a row, such as a division by zero: in the copy for that table alone, in the stream for the Mirror, because PostgreSQL sends nothing after that row.",
                    "Change `where` so that it can't fail, then run the resync that the message names.";
                SourceRowLevelSecurity: FailTable,
                    "Row-level security hides rows from the copy and not from the stream.",
                    "`ALTER ROLE … BYPASSRLS` for the peer's role.";
                SourceGeneratedColumns: Nothing,
                    "Generated columns are left out. A warning of `walferry check`.",
                    "";
                SourceSchemaChanged: Restart,
                    "The table changed in a way that can't be applied automatically.",
                    "Run the statement of the message.";
            }
            Destination {
                DestinationUnreachable: Retry,
                    "The destination's address doesn't answer.",
                    "Check `clickhouse.url` and the network between.";
                DestinationConnectionLost: Retry,
                    "The connection was lost.",
                    "";
                DestinationTimeout: Retry,
                    "The destination didn't answer in time.",
                    "If it lasts, look at its load.";
                DestinationNotClickHouse: Retry,
                    "Something other than ClickHouse's HTTP interface answers.",
                    "Correct `clickhouse.url`: port 8123, or 8443 with https.";
                DestinationProtocolError: Retry,
                    "The destination sent an unexpected answer.",
                    "Look for a proxy in between; report it when there is none.";
                DestinationAuthenticationFailed: Stall,
                    "The destination refuses the credentials.",
                    "Correct `username` and `password` in the Secret.";
                DestinationAccessDenied: Stall,
                    "The destination's user lacks a privilege.",
                    "Run the GRANT of the message.";
                DestinationReadOnly: Retry,
                    "The user may not write, or the table is read-only for now.",
                    "Set `readonly = 0` in the user's profile; check ClickHouse Keeper and the disk.";
                DestinationTlsFailed: Stall,
                    "TLS with the destination fails.",
                    "Correct `clickhouse.tls`; the message says which check failed.";
                DestinationSettingsInvalid: Stall,
                    "The peer's settings are invalid.",
                    "Correct the peer.";
                DestinationSettingsForbidden: Stall,
                    "The user's profile constrains a setting that walferry needs.",
                    "Remove the constraint that the message names.";
                DestinationVersionUnsupported: Stall,
                    "The destination's release is too old.",
                    "Upgrade ClickHouse.";
                DestinationDatabaseMissing: Stall,
                    "The destination has no database of this name.",
                    "`CREATE DATABASE`, or correct `clickhouse.database`.";
                DestinationVersionsOutdated: Stall,
                    "A release with other row versions wrote the rows at the destination.",
                    "Annotate the Mirror with `walferry.dev/resync`: every table is copied over its existing rows.";
                DestinationStateUnusable: Stall,
                    "walferry's own state table can't be read or written.",
                    "Follow the message; as a last resort, resync the Mirror with `walferry.dev/resync`.";
                DestinationRestored: Stall,
                    "The destination lost records: it was restored from a backup.",
                    "Annotate the Mirror with `walferry.dev/resync`.";
                DestinationPositionMissing: Stall,
                    "The destination has no record of how far the slot was confirmed: it was removed, or an older release of walferry wrote the state.",
                    "Annotate the Mirror with `walferry.dev/resync`.";
                DestinationTableMissing: FailTable,
                    "A target table was dropped or renamed.",
                    "Annotate the Mirror with `walferry.dev/resync` and the table's name, or remove the table from the Mirror and add it again.";
                DestinationTableReplaced: FailTable,
                    "A target table was dropped and recreated, or exchanged for another one, so rows are missing there.",
                    "Annotate the Mirror with `walferry.dev/resync` and the table's name.";
                DestinationTableConflict: FailTable,
                    "An existing table at the target's name, or a view on it, conflicts.",
                    "Drop or correct it, or choose another `target.table`.";
                DestinationEngineInvalid: FailTable,
                    "What the Mirror asks of the engine is impossible.",
                    "Correct `engine` of the table.";
                DestinationLayoutDiffers: Nothing,
                    "The target has a layout that the Mirror no longer asks for, or a column hides one of ClickHouse's own. A warning of `walferry check`.",
                    "Run the statement that the message names, or let walferry create a new target.";
                DestinationTypeUnsupported: FailTable,
                    "A column can't become the requested type.",
                    "Correct `columns.types`.";
                DestinationTypeMismatch: FailTable,
                    "A NULL arrived for a column of the target's sorting key.",
                    "Drop the target, set `engine.orderBy` to other columns, then a resync.";
                DestinationTypeLossy: Nothing,
                    "Some values of a column may not fit its type. A warning of `walferry check`.",
                    "Choose another type in `columns.types`, or what to do in `outOfRange`.";
                DestinationStatementRefused: FailTable,
                    "ClickHouse refuses the table as the Mirror describes it.",
                    "Correct `engine` or `columns.types` of the table.";
                DestinationRejectsRows: FailTable,
                    "The table's columns, constraints or views refuse the rows.",
                    "Correct them; the message is the server's.";
                DestinationTruncateRefused: FailTable,
                    "The table is too large to truncate.",
                    "Raise `max_table_size_to_drop`.";
                DestinationTooManyParts: Backoff,
                    "Merges don't keep up; walferry slows down.",
                    "Check `engine.partitionBy` and the server's load.";
                DestinationMemoryLimit: Backoff,
                    "ClickHouse is short of memory; walferry slows down.",
                    "Give the server or its user more memory.";
                DestinationOverloaded: Backoff,
                    "ClickHouse is at a limit; walferry slows down.",
                    "Check the limit that the message names.";
                DestinationDiskFull: Retry,
                    "The server's disk is full.",
                    "Free space at the ClickHouse server.";
                DestinationInsertReplaced: Retry,
                    "A later insert replaced this one, as intended after a broken connection.",
                    "";
                DestinationShuttingDown: Retry,
                    "The server or the table is being restarted.",
                    "";
                DestinationReplicationFault: Retry,
                    "ClickHouse's own replication has an error.",
                    "Check ClickHouse Keeper and the replicas.";
                DestinationError: Retry,
                    "Another error of the destination; the message is the server's.",
                    "Follow the message.";
            }
            Engine {
                WaitingForTransactions: Nothing,
                    "A table that joins waits for transactions that were writing to it.",
                    "If it lasts, end the transaction that the message names.";
                TableResync: Nothing,
                    "A table, or a partition of it, is copied again while its changes stream: something happened to it that the stream doesn't contain.",
                    "Nothing; the message has the cause.";
                ResyncUnknownTable: Nothing,
                    "The annotation `walferry.dev/resync` names a table that the Mirror doesn't have; the Mirror continues.",
                    "Correct the name: `schema.table`, after the value's first word.";
                SpecChanged: FailTable,
                    "The spec of the table changed after the table was copied.",
                    "Undo the change, after which it is copied again, or name the table in a resync.";
                CopyFinished: Stall,
                    "A Mirror with `snapshot.mode: InitialOnly` has finished, and its spec asks for something else now.",
                    "Undo the change, or create a new Mirror.";
                ValueOutOfRange: FailTable,
                    "A value doesn't fit its column and `outOfRange` is Fail.",
                    "Choose Clamp or Null, or another type in `columns.types`.";
                TooManyTruncates: FailTable,
                    "One transaction truncated the table more than a thousand times.",
                    "Annotate the Mirror with `walferry.dev/resync` and the table's name.";
                RowTooLong: FailTable,
                    "A row is longer than 128 MiB, the most that walferry holds.",
                    "Split the row's content, or exclude the column with `columns.exclude`; then resync.";
                SourceEncoding: Stall,
                    "A row has bytes that are invalid in the source database's encoding, so it can't be sent as UTF-8.",
                    "Fix the row's text at the source, then resync.";
                SourceQueryRefused: FailTable,
                    "The source refuses a query that re-fetches rows of a table; the message is the server's.",
                    "Follow the message, then resync.";
                DecodeFailed: FailTable,
                    "A value from the source can't be decoded.",
                    "Report it with the column's type.";
                InternalError: Retry,
                    "A task of walferry ended unexpectedly; it is retried.",
                    "Report it with the log.";
            }
            Events {
                Provisioned: Nothing,
                    "Publication, slot and target tables were created.",
                    "";
                SnapshotStarted: Nothing,
                    "The copy of the existing rows began.",
                    "";
                SnapshotFinished: Nothing,
                    "The existing rows are copied.",
                    "";
                ResyncRequested: Nothing,
                    "The annotation `walferry.dev/resync` has a new value.",
                    "";
                TableFailed: Nothing,
                    "A table failed alone; the note has its reason and remedy.",
                    "Follow the note.";
                CleanedUp: Nothing,
                    "Slot, publication and state were removed with the Mirror.",
                    "";
                Retained: Nothing,
                    "The Mirror is gone; slot, publication and state remain, as `deletionPolicy: Retain` asks.",
                    "Drop the slot when it is no longer needed: it retains WAL.";
                CleanupSkipped: Nothing,
                    "The Mirror is gone without cleanup; the note names what remains.",
                    "Remove what the note names.";
                SlotTakenOver: Nothing,
                    "A stale connection of this Mirror still held the slot and was terminated.",
                    "";
                FailedOver: Nothing,
                    "A standby of the source was promoted; the Mirror continues there.",
                    "";
            }
        }
    };
}

pub(super) use catalogue;
