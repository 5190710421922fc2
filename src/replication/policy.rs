//! What is done about each error: what its reason says, but for the exceptions that stand here.

use super::{Error, ErrorKind};
use crate::{
    fault::{Disposition, Reason},
    postgres,
};

/// What to do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Try the same again after a pause.
    Retry,
    /// Try again after a longer pause, and slower: the other side is overloaded.
    SlowDown,
    /// Fail this table and continue with the others. Where it is not known which table it is, the Mirror
    /// stalls.
    FailTable,
    /// Restart the session from the durable state, without a pause.
    Restart,
    /// Stop the Mirror until manual action was taken; check again now and then.
    Stall,
    /// End without complaint.
    Stop,
}

impl From<Disposition> for Policy {
    fn from(disposition: Disposition) -> Policy {
        match disposition {
            // A state or a warning is no reason for an error; if one has it, nothing says that it stays.
            Disposition::Nothing | Disposition::Retry => Policy::Retry,
            Disposition::Backoff => Policy::SlowDown,
            Disposition::Restart => Policy::Restart,
            Disposition::FailTable => Policy::FailTable,
            Disposition::Stall => Policy::Stall,
        }
    }
}

/// The policy for each error, and the reason a condition shows for it.
pub fn policy(error: &Error) -> (Policy, Reason) {
    let reason = reason(error);
    (exception(error).unwrap_or_else(|| reason.disposition().into()), reason)
}

/// What is done about an error although its reason says otherwise.
fn exception(error: &Error) -> Option<Policy> {
    match error {
        // Whatever the reason, it was found to be of one table: by whoever made it, or because a refusal was
        // repeated for that table alone.
        Error::Table { .. } => Some(Policy::FailTable),
        Error::Destination(refusal) if refusal.kind == ErrorKind::Table => Some(Policy::FailTable),
        // The cause is over, or lies with this process: what is on record says how to continue.
        Error::Replaced
        | Error::RecordsForgotten
        | Error::TimelineLeft
        | Error::TablesAdmitted { .. }
        | Error::TargetReleased { .. } => Some(Policy::Restart),
        // The checks know whether what they met passes.
        Error::MirrorRefused(refused) => Some(if refused.transient { Policy::Retry } else { Policy::Stall }),
        Error::Stopped => Some(Policy::Stop),
        _ => None,
    }
}

/// The reason of each error. Total: a new error has to be placed here.
fn reason(error: &Error) -> Reason {
    match error {
        Error::Source(source) => source_reason(source),
        Error::Destination(destination) => destination.reason,
        Error::State { .. } => Reason::DestinationStateUnusable,
        Error::SlotMissing { .. } | Error::SlotNotKept { .. } => Reason::SourceSlotLost,
        Error::SlotInvalidated { .. } => Reason::SourceSlotInvalidated,
        Error::SlotForeign { .. } => Reason::SourceSlotUnusable,
        Error::SlotInUse { .. } | Error::Replaced => Reason::SourceSlotInUse,
        Error::SlotNotReady { .. } => Reason::SourceSlotNotReady,
        Error::SlotUnknown { .. } => Reason::SourceSlotUnknown,
        Error::PositionUnknown { .. } => Reason::DestinationPositionMissing,
        Error::SlotAdvanced { .. } => Reason::SourceSlotAdvanced,
        Error::SourceWentBack { .. } => Reason::SourceWentBack,
        Error::DestinationRestored { .. } | Error::RecordsForgotten => Reason::DestinationRestored,
        Error::CopyFinished => Reason::CopyFinished,
        Error::OtherVersions { .. } => Reason::DestinationVersionsOutdated,
        Error::LogTooLong { .. } => Reason::SourceLogTooLong,
        Error::PublicationChanged { .. } => Reason::SourcePublicationChanged,
        Error::SourceReplaced { .. } => Reason::SourceReplaced,
        Error::TimelineChanged { .. } | Error::TimelineLeft => Reason::SourceTimelineChanged,
        Error::TwoServers => Reason::SourceAddressAmbiguous,
        Error::SourceShuttingDown => Reason::SourceShuttingDown,
        Error::SpecChanged { .. } => Reason::SpecChanged,
        Error::MirrorRefused(refused) => refused.reason,
        Error::NoTableAdmitted { .. } => Reason::AllTablesFailed,
        Error::TablesAdmitted { .. } => Reason::Provisioning,
        Error::SnapshotLost => Reason::SourceSnapshotLost,
        Error::Table { reason, .. } => *reason,
        Error::TargetTaken { .. } | Error::TargetReleased { .. } => Reason::TargetTableTaken,
        Error::CatalogChanged { .. } | Error::NullCame { .. } => Reason::SourceSchemaChanged,
        Error::Protocol(_) => Reason::SourceProtocolError,
        Error::RowFilter { .. } => Reason::SourceRowFilterFailed,
        Error::Encoding(_) => Reason::SourceEncoding,
        Error::Task(_) => Reason::InternalError,
        Error::Stopped => Reason::Unknown,
    }
}

fn source_reason(error: &postgres::Error) -> Reason {
    use postgres::Error as E;
    if let Some(reason) = error.transient_reason() {
        return reason;
    }
    match error {
        // The slot, the publication or a column is gone or unusable: the next try checks and says which.
        error if matches!(error.sqlstate(), Some("42703" | "42704" | "55000")) => Reason::SourceChanged,
        E::Connect { .. } | E::ConnectTimeout { .. } | E::NoAnswer { .. } | E::Io(_) | E::Closed => {
            Reason::SourceUnreachable
        }
        E::TlsSettings(_) | E::TlsRefused { .. } | E::Tls { .. } => Reason::SourceTlsFailed,
        E::Authentication { .. } => Reason::SourceAuthenticationFailed,
        E::TableMissing { .. } => Reason::SourceTableMissing,
        E::UnknownColumn { .. } => Reason::SourceUnknownColumn,
        E::ColumnRenamed { .. } => Reason::SourceColumnRenamed,
        E::Unsupported { .. } => Reason::SourceVersionUnsupported,
        E::Standby { .. } | E::NotOwner { .. } => Reason::SourcePublicationUnusable,
        E::Schema { .. } => Reason::SourceTableUnsupported,
        E::RowTooLong { .. } => Reason::RowTooLong,
        // What came is probably not what was sent: asking again loses nothing.
        E::Decode(_) | E::Protocol(_) => Reason::SourceProtocolError,
        E::Server { .. } | E::Driver(_) => Reason::SourceError,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::TableId,
        replication::{DestinationError, MirrorRefused},
    };

    #[test]
    fn a_reason_s_disposition_decides_unless_an_exception_is_stated() {
        let destination = |kind, reason| {
            let error =
                DestinationError { kind, reason, message: String::new(), remedies: Vec::new(), source: None };
            policy(&Error::Destination(error))
        };
        let refused = |transient, reason| {
            policy(&Error::MirrorRefused(MirrorRefused {
                reason,
                message: String::new(),
                remedies: Vec::new(),
                transient,
            }))
        };
        for reason in Reason::ALL.iter().copied() {
            let said = Policy::from(reason.disposition());
            for kind in [
                ErrorKind::Transient,
                ErrorKind::Overloaded,
                ErrorKind::Unclear,
                ErrorKind::Denied,
                ErrorKind::Refused,
            ] {
                assert_eq!(destination(kind, reason), (said, reason));
            }
            assert_eq!(destination(ErrorKind::Table, reason), (Policy::FailTable, reason));
            let table = TableId::new("public", "t");
            let of_table = Error::table(&table, reason, "");
            assert_eq!(policy(&of_table), (Policy::FailTable, reason));
            assert_eq!(refused(true, reason), (Policy::Retry, reason));
            assert_eq!(refused(false, reason), (Policy::Stall, reason));
        }
    }

    #[test]
    fn an_error_of_no_table_has_a_reason_of_its_own() {
        let of = |error: Error| policy(&error);
        assert_eq!(of(Error::TwoServers), (Policy::Retry, Reason::SourceAddressAmbiguous));
        assert_eq!(of(Error::SnapshotLost), (Policy::Retry, Reason::SourceSnapshotLost));
        assert_eq!(of(Error::Replaced).0, Policy::Restart);
        assert_eq!(of(Error::TimelineLeft).0, Policy::Restart);
        assert_eq!(of(Error::RecordsForgotten), (Policy::Restart, Reason::DestinationRestored));
        assert_eq!(of(Error::Stopped).0, Policy::Stop);
        let renamed = postgres::Error::RowTooLong { bytes: 1 };
        assert_eq!(of(Error::Source(renamed)), (Policy::FailTable, Reason::RowTooLong));
    }
}
