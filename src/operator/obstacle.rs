//! What keeps a resource from being as it should: told in its status, and tried again by itself or not.

use crate::{
    api::Problem,
    check::{Check, Outcome},
    fault::{Reason, Remedy},
    model::MirrorFailure,
};

/// Most checks that a message tells in full.
const TOLD: usize = 4;

/// Why something can't go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// The reason and the sentence for the conditions.
    pub(super) failure: MirrorFailure,
    /// Whether it may pass by itself.
    pub(super) passing: bool,
}

impl Obstacle {
    /// One that stays until a human acts.
    pub(super) fn lasting(reason: Reason, message: impl Into<String>) -> Obstacle {
        Obstacle { failure: MirrorFailure::new(reason, message), passing: false }
    }

    /// The same, with what helps.
    pub(super) fn remedied(mut self, by: impl IntoIterator<Item = Remedy>) -> Obstacle {
        self.failure.remedies.extend(by);
        self
    }

    /// One that may pass by itself.
    pub(super) fn passing(reason: Reason, message: impl Into<String>) -> Obstacle {
        Obstacle { passing: true, ..Obstacle::lasting(reason, message) }
    }

    /// What is wrong with fields, all of it.
    pub(super) fn problems(reason: Reason, problems: &[Problem]) -> Obstacle {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Obstacle::lasting(reason, problems.join("; "))
    }

    /// What checks found wrong; `None` when nothing failed. It passes by itself only when all that failed may.
    pub(super) fn checks(checks: &[Check]) -> Option<Obstacle> {
        let failed: Vec<&Check> = checks.iter().filter(|check| check.outcome == Outcome::Failure).collect();
        let first = failed.first()?;
        let mut told: Vec<String> = failed.iter().take(TOLD).map(|check| told(check)).collect();
        if failed.len() > TOLD {
            told.push(format!("{} more checks failed", failed.len() - TOLD));
        }
        let remedies = failed.iter().take(TOLD).flat_map(|check| check.remedies.clone()).collect();
        let reason = first.reason.unwrap_or(Reason::Unknown);
        let failure = MirrorFailure { reason, message: told.join(" | "), remedies };
        Some(Obstacle { failure, passing: failed.iter().all(|check| check.transient) })
    }

    /// What the API server says to something that was asked of it on a user's behalf; `None` when that is not the user's matter.
    pub(super) fn refused(what: &str, error: &kube::Error) -> Option<Obstacle> {
        let kube::Error::Api(status) = error else { return None };
        let reason = match status.code {
            403 => Reason::ReplicatorForbidden,
            422 | 400 => Reason::InvalidSpec,
            _ => return None,
        };
        Some(Obstacle::lasting(reason, format!("the cluster refuses {what}: {}", status.message)))
    }
}

/// A failed check on one line: `public.users, replica identity: …`
fn told(check: &Check) -> String {
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
    fn failed_checks_tell_what_to_run() {
        assert_eq!(Obstacle::checks(&[check("wal_level", Outcome::Warning, false)]), None);
        let found = Obstacle::checks(&[check("wal_level", Outcome::Failure, false)]).unwrap();
        assert_eq!(found.failure.reason, Reason::SourceWalLevelNotLogical);
        assert_eq!(found.failure.message, "source, wal_level: is replica, must be logical");
        assert_eq!(found.failure.remedies, check("wal_level", Outcome::Failure, false).remedies);
    }

    #[test]
    fn passes_by_itself_only_when_all_of_it_does() {
        let passing = |second| {
            let checks = [check("a", Outcome::Failure, true), check("b", Outcome::Failure, second)];
            Obstacle::checks(&checks).unwrap().passing
        };
        assert!(passing(true) && !passing(false));
    }

    #[test]
    fn many_failures_are_counted() {
        let checks: Vec<Check> = (0..9).map(|_| check("a", Outcome::Failure, false)).collect();
        assert!(Obstacle::checks(&checks).unwrap().failure.message.ends_with(" | 5 more checks failed"));
    }
}
