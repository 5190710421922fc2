//! Reasons that a check gives; they become reasons of conditions. Those of the source begin with `Source`, those of the
//! destination with `Destination`; faults of the Mirror's own wishes count as the side that refuses them.

/// Nothing to say.
pub const OK: &str = "Ok";

/// The source's address doesn't answer.
pub const SOURCE_UNREACHABLE: &str = "SourceUnreachable";
/// The source refuses the log-in.
pub const SOURCE_AUTHENTICATION_FAILED: &str = "SourceAuthenticationFailed";
/// TLS with the source fails, or its settings are wrong.
pub const SOURCE_TLS_FAILED: &str = "SourceTlsFailed";
/// The source's release is too old for what is asked.
pub const SOURCE_VERSION_UNSUPPORTED: &str = "SourceVersionUnsupported";
/// Another fault at the source.
pub const SOURCE_ERROR: &str = "SourceError";
/// `wal_level` isn't `logical`.
pub const SOURCE_WAL_LEVEL: &str = "SourceWalLevelNotLogical";
/// No replication slot is free.
pub const SOURCE_NO_FREE_SLOT: &str = "SourceNoFreeReplicationSlot";
/// No walsender is free.
pub const SOURCE_NO_FREE_WALSENDER: &str = "SourceNoFreeWalSender";
/// The server has removed WAL that the Mirror's slot still needed.
pub const SOURCE_SLOT_INVALIDATED: &str = "SourceSlotInvalidated";
/// The Mirror's slot isn't ours, or not one that can be used.
pub const SOURCE_SLOT_UNUSABLE: &str = "SourceSlotUnusable";
/// The source is a standby whose primary is not told what it needs.
pub const SOURCE_STANDBY_FEEDBACK_MISSING: &str = "SourceStandbyFeedbackMissing";
/// WAL that a slot keeps has no limit.
pub const SOURCE_WAL_UNLIMITED: &str = "SourceWalRetentionUnlimited";
/// The role lacks a right.
pub const SOURCE_PRIVILEGE_MISSING: &str = "SourcePrivilegeMissing";
/// The publication that is there is not the one that is needed.
pub const SOURCE_PUBLICATION_UNUSABLE: &str = "SourcePublicationUnusable";
/// A table isn't there.
pub const SOURCE_TABLE_MISSING: &str = "SourceTableMissing";
/// A relation of a kind that can't be replicated.
pub const SOURCE_TABLE_UNSUPPORTED: &str = "SourceTableUnsupported";
/// The Mirror names a column that isn't there.
pub const SOURCE_UNKNOWN_COLUMN: &str = "SourceUnknownColumn";
/// What the Mirror asks of a table's columns can't work.
pub const SOURCE_TABLE_SPEC_INVALID: &str = "SourceTableSpecInvalid";
/// A table is asked for in another way than when it was copied.
pub const SPEC_CHANGED: &str = "SpecChanged";
/// A resync of single tables names one that the Mirror doesn't have.
pub const RESYNC_UNKNOWN_TABLE: &str = "ResyncUnknownTable";
/// Updates and deletes can't name their row.
pub const SOURCE_REPLICA_IDENTITY_MISSING: &str = "SourceReplicaIdentityMissing";
/// The row filter can't be used.
pub const SOURCE_ROW_FILTER_INVALID: &str = "SourceRowFilterInvalid";
/// Row-level security hides rows from the copy.
pub const SOURCE_ROW_LEVEL_SECURITY: &str = "SourceRowLevelSecurity";
/// Generated columns are left out.
pub const SOURCE_GENERATED_COLUMNS: &str = "SourceGeneratedColumns";

/// The destination has no database of this name.
pub const DESTINATION_DATABASE_MISSING: &str = "DestinationDatabaseMissing";
/// The destination's user may not write.
pub const DESTINATION_READ_ONLY: &str = "DestinationReadOnly";
/// The destination's user lacks a right.
pub const DESTINATION_ACCESS_DENIED: &str = "DestinationAccessDenied";
/// The destination's release is too old.
pub const DESTINATION_VERSION_UNSUPPORTED: &str = "DestinationVersionUnsupported";
/// A target table is in the way.
pub const DESTINATION_TABLE_CONFLICT: &str = "DestinationTableConflict";
/// A target table was dropped.
pub const DESTINATION_TABLE_MISSING: &str = "DestinationTableMissing";
/// What the Mirror asks of the engine can't work.
pub const DESTINATION_ENGINE_INVALID: &str = "DestinationEngineInvalid";
/// TLS with the destination protects less than it could.
pub const DESTINATION_TLS_FAILED: &str = "DestinationTlsFailed";
/// The Mirror's own state can't be read.
pub const DESTINATION_STATE_UNUSABLE: &str = "DestinationStateUnusable";
/// A column can't become the type that is asked for.
pub const DESTINATION_TYPE_UNSUPPORTED: &str = "DestinationTypeUnsupported";
/// Some values of a column don't fit its type.
pub const DESTINATION_TYPE_LOSSY: &str = "DestinationTypeLossy";
