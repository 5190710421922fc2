//! What a status shows for an error: its reason, its message and what helps.

use crate::{
    fault::{Reason, Remedy},
    model::{MirrorFailure, TableId},
    postgres::slot,
    replication::{
        Error, Policy,
        error::{NAMED, correct_filter, correct_text},
        policy,
    },
};

/// What helps against each error, in order. Total: a new error has to be placed here.
pub(super) fn remedies(error: &Error) -> Vec<Remedy> {
    let resync = Remedy::resync_all;
    match error {
        Error::Source(source) => source.remedies(),
        Error::State { .. }
        | Error::Replaced
        | Error::RecordsForgotten
        | Error::SlotNotReady { .. }
        | Error::SourceShuttingDown
        | Error::TimelineLeft
        | Error::TablesAdmitted { .. }
        | Error::SnapshotLost
        | Error::TargetReleased { .. }
        | Error::CatalogChanged { .. }
        | Error::NullCame { .. }
        | Error::Protocol(_)
        | Error::Task(_)
        | Error::Stopped => Vec::new(),
        Error::Destination(fault) => fault.remedies.clone(),
        Error::SlotMissing { .. }
        | Error::SlotNotKept { .. }
        | Error::SlotUnknown { .. }
        | Error::PositionUnknown { .. }
        | Error::SlotAdvanced { .. }
        | Error::SourceWentBack { .. }
        | Error::DestinationRestored { .. }
        | Error::OtherVersions { .. }
        | Error::PublicationChanged { .. } => vec![resync()],
        Error::SlotInvalidated { cure, .. } => vec![Remedy::act(*cure), resync()],
        Error::SlotForeign { slot, .. } => vec![Remedy::run_at_source_server(slot::drop_statement(slot))],
        Error::SlotInUse { slot, .. } => vec![Remedy::run_at_source_server(format!(
            "{}; -- if nothing should read it",
            slot::end_reader_statement(slot)
        ))],
        Error::CopyFinished => {
            vec![Remedy::any_of([vec![Remedy::edit("spec", "undo the change")], vec![resync()]])]
        }
        Error::LogTooLong { .. } => {
            vec![Remedy::act(
                "move the database to a new cluster, whose log begins at zero, and mirror that one",
            )]
        }
        Error::SourceReplaced { .. } => {
            let back = Remedy::act("point the source's ReplicationPeer back to the former server");
            vec![Remedy::any_of([vec![back], vec![resync()]])]
        }
        Error::TwoServers => vec![Remedy::act(
            "if it lasts, give the source's ReplicationPeer the address of one server, or one that always leads to the primary",
        )],
        Error::SpecChanged { table } => {
            let undo = Remedy::edit("spec.tables", format!("undo the change of {table}"));
            vec![Remedy::any_of([vec![undo], vec![Remedy::resync([table])]])]
        }
        Error::MirrorRefused(refused) => refused.remedies.clone(),
        Error::NoTableAdmitted { refused } => {
            refused.values().take(NAMED).flat_map(|failure| failure.remedies.clone()).collect()
        }
        Error::TimelineChanged { remedies, .. }
        | Error::Table { remedies, .. }
        | Error::TargetTaken { remedies, .. } => remedies.clone(),
        Error::Encoding(_) => vec![correct_text(), resync()],
        Error::RowFilter { tables, .. } => vec![correct_filter(tables), resync()],
    }
}

/// The failure that a status shows for an error. A table that has failed stays so until it is copied again.
pub fn failure(error: &Error) -> MirrorFailure {
    MirrorFailure { reason: policy(error).1, message: error.to_string(), remedies: remedies(error) }
}

/// The failure of a table that can't be added, or fails alone. Where it is shown the table is named, so the
/// message doesn't begin with it.
pub fn failure_of_table(table: &TableId, error: &Error) -> MirrorFailure {
    let mut failure = failure(error);
    if let Some(message) = failure.message.strip_prefix(&format!("table {table}: ")) {
        failure.message = message.to_owned();
    }
    // These tables are added again automatically; and a target that is another Mirror's is not to be copied
    // over.
    let heals = match failure.reason {
        Reason::SourceReplicaIdentityDiffers
        | Reason::SourcePrivilegeMissing
        | Reason::SourceTableInherited
        | Reason::TargetTableTaken => true,
        _ => failure.remedies.iter().any(Remedy::is_resync),
    };
    if policy(error).0 == Policy::FailTable && !heals {
        failure.remedies.push(Remedy::resync([table]));
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Column, Lsn, SourceType, TableSchema},
        postgres,
        replication::ValueError,
    };

    #[test]
    fn a_table_that_fails_alone_is_named_where_it_is_shown() {
        let table = TableId::new("public", "users");
        let error = Error::table(&table, Reason::SourceSchemaChanged, "why");
        assert_eq!(failure_of_table(&table, &error).message, "why");
        let other = failure_of_table(&TableId::new("public", "other"), &error);
        assert_eq!(other.message, "table public.users: why");
    }

    #[test]
    fn a_null_widens_a_column_that_is_not_part_of_the_key() {
        let column = |name: &str, nullable| {
            let column = Column::new(name, SourceType::Text);
            Column { nullable, attnum: 7, ..column }
        };
        let columns = vec![column("id", false), column("a", false), column("b", true)];
        let table = TableSchema::new(TableId::new("public", "t"), columns);
        let of = |name: &str| {
            let null = ValueError::UnexpectedNull { column: name.into(), target: "t".into() };
            policy(&Error::value(&table, &null)).0
        };
        assert_eq!((of("id"), of("a"), of("b")), (Policy::FailTable, Policy::Restart, Policy::FailTable));
    }

    #[test]
    fn a_filter_that_fails_stalls_the_stream_and_stops_a_copy_alone() {
        let source = || {
            Error::Source(postgres::Error::Server {
                sqlstate: "22012".to_owned(),
                message: "division by zero".to_owned(),
                detail: None,
                hint: None,
            })
        };
        let table = TableId::new("public", "t");
        let stream = Error::of_stream(source(), vec![table.clone()]);
        assert_eq!(policy(&stream), (Policy::Stall, Reason::SourceRowFilterFailed));
        assert!(
            stream.to_string().contains("division_by_zero (SQLSTATE 22012). Tables with where: public.t.")
        );
        assert_eq!(policy(&Error::of_stream(source(), Vec::new())).1, Reason::SourceError);
        let copy = Error::of_table(&table, source());
        assert_eq!(policy(&copy), (Policy::FailTable, Reason::SourceRowFilterFailed));
    }

    #[test]
    fn what_is_garbled_is_asked_for_again() {
        let decode = postgres::DecodeError::UnknownMessage(0x43);
        for error in [postgres::Error::Decode(decode), postgres::Error::Protocol("odd".into())] {
            assert_eq!(policy(&Error::Source(error)), (Policy::Retry, Reason::SourceProtocolError));
        }
    }

    #[test]
    fn a_failed_table_is_copied_again_in_the_end_unless_it_heals() {
        let table = TableId::new("public", "t");
        let of = |error: Error| failure_of_table(&table, &error).remedies;
        let resync = Remedy::resync([&table]);
        let refused = Error::table(&table, Reason::DecodeFailed, "odd");
        assert_eq!(of(refused), vec![resync.clone()]);
        assert_eq!(of(Error::unpublished(&table, "p")), vec![resync.clone()]);
        let full = Remedy::run_at_source("ALTER TABLE t REPLICA IDENTITY FULL");
        let run = |reason| Error::table(&table, reason, "why").remedied([full.clone()]);
        assert_eq!(of(run(Reason::SourceSchemaChanged)), [full.clone(), resync]);
        assert_eq!(of(run(Reason::SourceReplicaIdentityDiffers)), vec![full.clone()]);
        let dropped = of(Error::dropped(&table));
        assert!(
            matches!(dropped.as_slice(), [choice @ Remedy::AnyOf { .. }] if choice.is_resync()),
            "{dropped:?}"
        );
        assert_eq!(failure(&Error::Protocol("x")).remedies, []);
    }

    #[test]
    fn what_stalls_says_what_to_do() {
        let slot = || "s".to_owned();
        let missing = Error::SlotMissing { slot: slot(), since: Lsn(1) };
        assert_eq!(failure(&missing).remedies, [Remedy::resync_all()]);
        let foreign = Error::SlotForeign { slot: slot(), found: "x".to_owned() };
        let drop = Remedy::run_at_source_server("SELECT pg_drop_replication_slot('s')");
        assert_eq!(failure(&foreign).remedies, [drop]);
        let message = failure(&missing).message;
        assert!(!message.contains("walferry.dev") && !message.contains("kubectl"), "{message}");
    }
}
