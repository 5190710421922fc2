//! What blocks a resource from becoming ready, for its status: transient, or terminal until manual action.

use crate::{
    api::Problem,
    check::{Check, Outcome},
    fault::{Reason, Remedy},
    model::MirrorFailure,
};

/// The most failed checks that a message spells out.
const MAX_SHOWN: usize = 4;

/// Why a resource can't make progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocker {
    /// Reason, message and remedies for the conditions.
    pub(super) failure: MirrorFailure,
    /// Whether a retry may succeed without manual action.
    pub(super) transient: bool,
}

impl Blocker {
    /// One that stays until somebody acts.
    pub(super) fn terminal(reason: Reason, message: impl Into<String>) -> Blocker {
        Blocker { failure: MirrorFailure::new(reason, message), transient: false }
    }

    /// The same, with these remedies.
    pub(super) fn with_remedies(mut self, by: impl IntoIterator<Item = Remedy>) -> Blocker {
        self.failure.remedies.extend(by);
        self
    }

    /// One that a retry may overcome.
    pub(super) fn transient(reason: Reason, message: impl Into<String>) -> Blocker {
        Blocker { transient: true, ..Blocker::terminal(reason, message) }
    }

    /// Invalid fields, all of them.
    pub(super) fn problems(reason: Reason, problems: &[Problem]) -> Blocker {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Blocker::terminal(reason, problems.join("; "))
    }

    /// An object that doesn't match its type; the error names the field.
    pub(super) fn invalid_object(error: &str) -> Blocker {
        let message = format!(
            "the object does not match its CustomResourceDefinition: {error}; correct it with kubectl edit, or delete it"
        );
        Blocker::terminal(Reason::InvalidSpec, message)
    }

    /// Failed checks; `None` when no check failed. It is transient only if every failure is.
    pub(super) fn checks(checks: &[Check]) -> Option<Blocker> {
        let failed: Vec<&Check> = checks.iter().filter(|check| check.outcome == Outcome::Failure).collect();
        let first = failed.first()?;
        let mut lines: Vec<String> = failed.iter().take(MAX_SHOWN).map(|check| line(check)).collect();
        if failed.len() > MAX_SHOWN {
            lines.push(format!("{} more checks failed", failed.len() - MAX_SHOWN));
        }
        let remedies = failed.iter().take(MAX_SHOWN).flat_map(|check| check.remedies.clone()).collect();
        let reason = first.reason.unwrap_or(Reason::Unknown);
        let failure = MirrorFailure { reason, message: lines.join(" | "), remedies };
        Some(Blocker { failure, transient: failed.iter().all(|check| check.transient) })
    }

    /// A refusal by the API server that the user can act on; `None` for any other error.
    pub(super) fn refused(what: &str, error: &kube::Error) -> Option<Blocker> {
        let kube::Error::Api(status) = error else { return None };
        let reason = match status.code {
            403 => Reason::ReplicatorForbidden,
            422 | 400 => Reason::InvalidSpec,
            _ => return None,
        };
        Some(Blocker::terminal(reason, format!("the cluster refuses {what}: {}", status.message)))
    }
}

/// A failed check on one line: `public.users, replica identity: …`
fn line(check: &Check) -> String {
    format!("{}, {}", check.subject, check.sentence())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, outcome: Outcome, transient: bool) -> Check {
        Check {
            subject: "source".to_owned(),
            name: name.to_owned(),
            outcome,
            detail: "is replica, must be logical".to_owned(),
            remedies: vec![Remedy::run_at_source("ALTER SYSTEM SET x = 'y';\n-- then restart PostgreSQL")],
            reason: Some(Reason::SourceWalLevelNotLogical),
            transient,
            of_state: false,
        }
    }

    #[test]
    fn failed_checks_carry_their_remedies() {
        assert_eq!(Blocker::checks(&[check("wal_level", Outcome::Warning, false)]), None);
        let found = Blocker::checks(&[check("wal_level", Outcome::Failure, false)]).unwrap();
        assert_eq!(found.failure.reason, Reason::SourceWalLevelNotLogical);
        assert_eq!(found.failure.message, "source, wal_level: is replica, must be logical");
        assert_eq!(found.failure.remedies, check("wal_level", Outcome::Failure, false).remedies);
    }

    #[test]
    fn is_transient_only_when_every_failure_is() {
        let transient = |second| {
            let checks = [check("a", Outcome::Failure, true), check("b", Outcome::Failure, second)];
            Blocker::checks(&checks).unwrap().transient
        };
        assert!(transient(true) && !transient(false));
    }

    #[test]
    fn many_failures_are_counted() {
        let checks: Vec<Check> = (0..9).map(|_| check("a", Outcome::Failure, false)).collect();
        assert!(Blocker::checks(&checks).unwrap().failure.message.ends_with(" | 5 more checks failed"));
    }
}
