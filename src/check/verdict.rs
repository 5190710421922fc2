//! What a report means for a start: whether the Mirror can, and which of its tables can't.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    collect::preflight_of,
    report::{Check, CheckReport, Outcome},
};
use crate::{
    fault::{Reason, Remedy},
    model::{MirrorFailure, ReplicatorConfig, TableId},
    replication::{Ask, MirrorRefused, Verdict},
};

impl CheckReport {
    /// What it means for a start. A failure of one table keeps no other from it; one of a server, or of the
    /// Mirror as a whole, does. A question that met a fault which passes says nothing of the table: it is the
    /// server's. What follows from the Mirror's state blocks no start: the engine reports it in the
    /// conditions, and detects when it is fixed.
    pub fn verdict(&self, config: &ReplicatorConfig) -> Verdict {
        let ids: BTreeMap<String, &TableId> =
            config.tables.iter().map(|spec| (spec.id.to_string(), &spec.id)).collect();
        let mut verdict = Verdict::default();
        for check in self.checks.iter().filter(|check| check.outcome == Outcome::Failure && !check.of_state) {
            match ids.get(&check.subject) {
                Some(id) if self.joined.contains(*id) => {}
                Some(_) if check.transient => refuse(&mut verdict.mirror, check),
                Some(id) => {
                    let failure = MirrorFailure::new(reason_of(check), "");
                    let failure = verdict.tables.entry((*id).clone()).or_insert(failure);
                    append(&mut failure.message, &check.sentence());
                    add(&mut failure.remedies, &check.remedies);
                }
                None => refuse(&mut verdict.mirror, check),
            }
        }
        verdict
    }

    /// Whether nothing of the Mirror could start.
    pub fn starts_nothing(&self, config: &ReplicatorConfig) -> bool {
        let verdict = self.verdict(config);
        let none = self.joined.is_empty() && verdict.tables.len() == config.tables.len();
        verdict.mirror.is_some() || none
    }
}

fn refuse(mirror: &mut Option<MirrorRefused>, check: &Check) {
    let sentence = format!("{}, {}", check.subject, check.sentence());
    match mirror {
        Some(refused) => {
            refused.transient &= check.transient;
            append(&mut refused.message, &sentence);
            add(&mut refused.remedies, &check.remedies);
        }
        None => {
            *mirror = Some(MirrorRefused {
                reason: reason_of(check),
                message: sentence,
                remedies: check.remedies.clone(),
                transient: check.transient,
            });
        }
    }
}

/// A failure has one.
fn reason_of(check: &Check) -> Reason {
    check.reason.unwrap_or(Reason::Unknown)
}

/// What helps against several checks is often the same.
fn add(remedies: &mut Vec<Remedy>, more: &[Remedy]) {
    for remedy in more {
        if !remedies.contains(remedy) {
            remedies.push(remedy.clone());
        }
    }
}

fn append(message: &mut String, sentence: &str) {
    if !message.is_empty() {
        message.push_str(" | ");
    }
    message.push_str(sentence);
}

/// Asks the servers of a Mirror for a verdict.
pub fn asks(config: Arc<ReplicatorConfig>) -> Ask {
    Arc::new(move |tables| {
        let config = Arc::clone(&config);
        Box::pin(async move { preflight_of(&config, &tables).await.verdict(&config) })
    })
}

#[cfg(test)]
mod tests {
    use super::{super::tests::config, *};
    use crate::model::TableSpec;

    fn report(checks: Vec<Check>) -> CheckReport {
        CheckReport { checks, ..CheckReport::default() }
    }

    fn of_table(name: &str) -> Check {
        let subject = format!("public.{name}");
        Check::failure(subject, "table", Reason::SourceTableMissing, "is not there").act("make it")
    }

    #[test]
    fn a_table_is_refused_alone() {
        let mut config = config();
        config.tables.push(TableSpec::new(TableId::new("public", "other")));
        let warned = Check::warning("public.other", "x", Reason::SourceError, "y");
        let mut report = report(vec![of_table("users"), of_table("users"), warned]);
        let verdict = report.verdict(&config);
        assert_eq!(verdict.mirror, None);
        let found: Vec<_> =
            verdict.tables.iter().map(|(id, failure)| (id.name.as_str(), failure.message.as_str())).collect();
        let sentence = "table: is not there";
        assert_eq!(found, [("users", format!("{sentence} | {sentence}").as_str())]);
        let failure = &verdict.tables[&TableId::new("public", "users")];
        assert_eq!(failure.remedies, [Remedy::act("make it")], "once");
        assert!(!report.starts_nothing(&config), "the other one starts");
        report.checks.push(of_table("other"));
        assert!(report.starts_nothing(&config));
        report.joined.insert(TableId::new("public", "users"));
        assert!(!report.verdict(&config).tables.contains_key(&TableId::new("public", "users")));
        assert!(!report.starts_nothing(&config), "it has begun already");
    }

    #[test]
    fn a_server_s_fault_is_the_mirror_s() {
        let terminal = Check::failure("source", "wal_level", Reason::SourceWalLevelNotLogical, "is replica");
        let transient = Check::failure("destination", "grants", Reason::SourceError, "away").transient(true);
        let of = |checks| report(checks).verdict(&config()).mirror.unwrap();
        let found = of(vec![terminal.clone(), transient.clone()]);
        assert_eq!((found.reason, found.transient), (Reason::SourceWalLevelNotLogical, false));
        assert!(found.message.starts_with("source, wal_level: is replica | destination, grants: away"));
        assert!(of(vec![transient]).transient);
        assert!(report(vec![terminal.clone()]).starts_nothing(&config()));
        assert_eq!(report(vec![terminal.of_state()]).verdict(&config()).mirror, None);
        let cut = Check::failure("public.users", "target table", Reason::DestinationConnectionLost, "cut");
        let verdict = report(vec![cut.clone().transient(true)]).verdict(&config());
        assert!(verdict.tables.is_empty(), "the connection was cut, whatever the question was");
        assert!(verdict.mirror.is_some_and(|refused| refused.transient));
        assert!(report(vec![cut]).verdict(&config()).mirror.is_none());
    }
}
