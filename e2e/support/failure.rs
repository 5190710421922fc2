//! Failures as machines read them from `/status`: the reason, and the remedies as data.

use serde_json::Value;
use walferry::fault::{Reason, Remedy, Side};

use super::{Run, advice};

/// Why a table or a Mirror has failed, and what helps.
#[derive(Debug)]
pub struct Failure {
    pub reason: Reason,
    pub message: String,
    pub remedies: Vec<Remedy>,
    /// The remedies as the steps that this process shows its user.
    pub steps: Vec<String>,
}

impl Failure {
    fn read(entry: &Value, steps: Vec<String>) -> Option<Failure> {
        Some(Failure {
            reason: Reason::parse(entry["reason"].as_str()?)?,
            message: entry["message"].as_str()?.to_owned(),
            remedies: serde_json::from_value(entry["remedies"].clone()).unwrap_or_default(),
            steps,
        })
    }

    /// The tables that a remedy copies again, none meaning all of the Mirror; `None` when no remedy is a
    /// resync.
    pub fn resyncs(&self) -> Option<Vec<String>> {
        single_remedies(&self.remedies).into_iter().find_map(|remedy| match remedy {
            Remedy::Resync { tables } => Some(tables.clone()),
            _ => None,
        })
    }

    /// Asserts that a remedy copies this table of schema public again, and no other one.
    #[track_caller]
    pub fn resyncs_only(&self, table: &str) {
        assert_eq!(self.resyncs(), Some(vec![format!("public.{table}")]), "{self:?}");
    }

    /// The statements that the remedies run at one of the databases, those of every choice included.
    pub fn sql(&self, at: Side) -> String {
        let statements = single_remedies(&self.remedies).into_iter().filter_map(|remedy| match remedy {
            Remedy::RunAt { side, sql, .. } if *side == at => Some(sql.as_str()),
            _ => None,
        });
        statements.collect::<Vec<_>>().join("\n;\n")
    }

    /// Whether a remedy changes this field of the Mirror.
    pub fn edits(&self, name: &str) -> bool {
        let is = |remedy: &&Remedy| matches!(remedy, Remedy::EditSpec { field, .. } if field == name);
        single_remedies(&self.remedies).iter().any(is)
    }
}

/// The remedies, with those of every choice in place of the choice.
fn single_remedies(remedies: &[Remedy]) -> Vec<&Remedy> {
    let mut all = Vec::new();
    for remedy in remedies {
        match remedy {
            Remedy::AnyOf { choices } => all.extend(choices.iter().flat_map(|steps| single_remedies(steps))),
            other => all.push(other),
        }
    }
    all
}

/// Waits until the table has failed, which must be for this reason.
#[track_caller]
pub fn failed_for(run: &mut Run, table: &str, reason: Reason) -> Failure {
    let failure = run.until_status(&format!("table {table} to fail"), |status| {
        let entry = status["tables"].as_array()?.iter().find(|entry| entry["name"] == table)?;
        let failed = entry["state"] == "Failed";
        failed.then(|| Failure::read(entry, advice(status, Some(table))).expect("a failure has a reason"))
    });
    assert_eq!(failure.reason, reason, "{table}: {}", failure.message);
    failure
}

/// Waits until the Mirror has stalled, which must be for this reason.
#[track_caller]
pub fn stalled_for(run: &mut Run, reason: Reason) -> Failure {
    let failure = run.until_status("the Mirror to stall", |status| {
        let mut conditions = status["conditions"].as_array()?.iter();
        conditions.find(|condition| condition["type"] == "Stalled" && condition["status"] == "True")?;
        Failure::read(&status["failure"], advice(status, None))
    });
    assert_eq!(failure.reason, reason, "{}", failure.message);
    failure
}
