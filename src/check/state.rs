//! Tables that have failed, as the Mirror's state has them, with the statements that are still to be run.

use super::report::{Check, Outcome};
use crate::{
    fault::{Reason, Remedy, Side},
    replication::TableRecord,
};

const NAME: &str = "state";

/// A table that has failed, in the words of the Mirror's state; `None` for any other.
pub(super) fn failed(record: &TableRecord) -> Option<Check> {
    let failure = record.failure()?;
    let subject = record.schema.id.to_string();
    let check = Check::failure(subject, NAME, failure.reason, format!("it has failed: {}", failure.message));
    Some(check.remedied(failure.remedies))
}

/// Whether a failure with this reason follows from what the check of the target table looks at.
pub(super) fn is_of_target(reason: Reason) -> bool {
    let of_target =
        [Reason::DestinationTableConflict, Reason::DestinationEngineInvalid, Reason::TargetTableTaken];
    of_target.contains(&reason)
}

/// Takes statements out of failed tables' remedies that have been run: the other checks of the table have
/// just looked at what they change, and ask for none any more.
pub(super) fn drop_done_statements(checks: &mut [Check]) {
    let others = checks.to_vec();
    for check in checks.iter_mut().filter(|check| check.name == NAME && check.reason.is_some()) {
        let of_table: Vec<&Check> =
            others.iter().filter(|other| other.subject == check.subject && other.name != NAME).collect();
        let is_done = |side| is_examined(side, check.reason, &of_table) && !asks_to_run(side, &of_table);
        let left: Vec<Remedy> = check.remedies.iter().flat_map(|remedy| left(remedy, &is_done)).collect();
        if left == check.remedies {
            continue;
        }
        check.remedies = left;
        check.detail.push_str("; the cause is gone");
        // Such a table is copied again without a resync.
        if check.remedies.is_empty() {
            check.outcome = Outcome::Warning;
            check.detail.push_str(", so a running Mirror copies it again automatically");
        }
    }
}

/// Whether the checks looked at what a table's statements for this side would change.
fn is_examined(side: Side, reason: Option<Reason>, of_table: &[&Check]) -> bool {
    let has = |name: &str| of_table.iter().any(|check| check.name == name && !check.transient);
    match side {
        // The last of a described table's checks at the source.
        Side::Source => has("replica identity"),
        Side::Destination => reason.is_some_and(is_of_target) && has("target table"),
        Side::Mirror => false,
    }
}

fn asks_to_run(side: Side, of_table: &[&Check]) -> bool {
    let failed = of_table.iter().filter(|check| check.outcome != Outcome::Ok);
    failed.flat_map(|check| &check.remedies).any(|remedy| remedy.runs_at(side))
}

/// What is left of a remedy. Of several choices the one is left whose statements were run.
fn left(remedy: &Remedy, is_done: &impl Fn(Side) -> bool) -> Vec<Remedy> {
    let was_run = |remedy: &Remedy| matches!(remedy, Remedy::RunAt { side, .. } if is_done(*side));
    match remedy {
        remedy if was_run(remedy) => Vec::new(),
        Remedy::AnyOf { choices } => match choices.iter().find(|choice| choice.iter().any(was_run)) {
            Some(choice) => choice.iter().filter(|step| !was_run(step)).cloned().collect(),
            None => vec![remedy.clone()],
        },
        _ => vec![remedy.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "public.users";

    fn failed(reason: Reason, remedies: &[Remedy]) -> Check {
        Check::failure(TABLE, NAME, reason, "it has failed: why").remedied(remedies.iter().cloned())
    }

    /// The failed table's check beside others.
    fn beside(failed: Check, others: Vec<Check>) -> Check {
        let mut checks = [vec![failed], others].concat();
        drop_done_statements(&mut checks);
        checks.remove(0)
    }

    #[test]
    fn a_statement_is_repeated_until_it_was_run() {
        let full = Remedy::run_at_source("ALTER TABLE t REPLICA IDENTITY FULL");
        let resync = Remedy::resync([TABLE]);
        let record = failed(Reason::SourceSchemaChanged, &[full.clone(), resync.clone()]);
        let reason = Reason::SourceReplicaIdentityMissing;
        let missing = Check::warning(TABLE, "replica identity", reason, "none").remedied([full.clone()]);
        let fine = Check::ok(TABLE, "replica identity", "primary key id");
        assert_eq!(beside(record.clone(), vec![missing]), record);
        assert_eq!(beside(record.clone(), Vec::new()), record, "nobody has looked");
        let of_another = Check::ok("public.other", "replica identity", "FULL");
        assert_eq!(beside(record.clone(), vec![of_another]), record);
        let run = beside(record, vec![fine.clone()]);
        assert_eq!((run.outcome, run.remedies), (Outcome::Failure, vec![resync]));
        assert!(run.detail.ends_with("; the cause is gone"), "{}", run.detail);
        let heals = beside(failed(Reason::SourceReplicaIdentityDiffers, &[full]), vec![fine]);
        assert_eq!((heals.outcome, heals.remedies), (Outcome::Warning, Vec::new()));
    }

    #[test]
    fn a_choice_that_was_taken_leaves_its_other_steps() {
        let (edit, resync) = (Remedy::edit("spec.tables", "choose"), Remedy::resync([TABLE]));
        let drop = Remedy::run_at_destination("DROP TABLE t");
        let choice = Remedy::any_of([vec![edit], vec![drop, resync.clone()]]);
        let fine = Check::ok(TABLE, "target table", "it fits");
        let conflict = failed(Reason::DestinationTableConflict, std::slice::from_ref(&choice));
        assert_eq!(beside(conflict, vec![fine.clone()]).remedies, [resync]);
        // Nobody looks whether the table may be written.
        let read_only = failed(Reason::DestinationReadOnly, &[choice]);
        assert_eq!(beside(read_only.clone(), vec![fine]), read_only);
    }
}
