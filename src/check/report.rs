//! What was found, and how it is shown.

use std::collections::BTreeSet;

use comfy_table::{ContentArrangement, Table, presets};

use crate::{
    fault::{Reason, Remedy, RemedyRenderer, remedy},
    model::TableId,
};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, and is worth knowing.
    Warning,
    /// Replication can't start, or would harm the source.
    Failure,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::Warning => "warning",
            Outcome::Failure => "FAILURE",
        }
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What it is about: `source`, `destination`, or a table's name.
    pub subject: String,
    /// The check's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
    /// The remedies, in order.
    pub remedies: Vec<Remedy>,
    /// Why it did not pass; `None` when it did.
    pub reason: Option<Reason>,
    /// Whether a failure may be transient: the network, a restart, a lack of resources.
    pub transient: bool,
    /// Whether it follows from the Mirror's state. The engine stops at it and reports it on its own.
    pub of_state: bool,
}

impl Check {
    pub(super) fn ok(subject: impl Into<String>, name: &str, detail: impl Into<String>) -> Check {
        Check {
            subject: subject.into(),
            name: name.to_owned(),
            outcome: Outcome::Ok,
            detail: detail.into(),
            remedies: Vec::new(),
            reason: None,
            transient: false,
            of_state: false,
        }
    }

    pub(super) fn warning(
        subject: impl Into<String>,
        name: &str,
        reason: Reason,
        detail: impl Into<String>,
    ) -> Check {
        Check { outcome: Outcome::Warning, reason: Some(reason), ..Check::ok(subject, name, detail) }
    }

    pub(super) fn failure(
        subject: impl Into<String>,
        name: &str,
        reason: Reason,
        detail: impl Into<String>,
    ) -> Check {
        Check { outcome: Outcome::Failure, reason: Some(reason), ..Check::ok(subject, name, detail) }
    }

    /// A failure of a table that the Mirror tracks already blocks no other table, so it is a warning.
    pub(super) fn downgrade_if_tracked(self, tracked: bool) -> Check {
        if !tracked || self.transient || self.outcome != Outcome::Failure {
            return self;
        }
        let detail = format!("{}; this table fails alone, the others continue", self.detail);
        Check { outcome: Outcome::Warning, detail, ..self }
    }

    /// The check's name and detail, for a caller that adds the subject.
    pub fn sentence(&self) -> String {
        format!("{}: {}", self.name, self.detail)
    }

    pub(super) fn remedied(mut self, by: impl IntoIterator<Item = Remedy>) -> Check {
        self.remedies.extend(by);
        self
    }

    pub(super) fn run_at_source(self, sql: impl Into<String>) -> Check {
        self.remedied([Remedy::run_at_source(sql)])
    }

    pub(super) fn run_at_source_server(self, sql: impl Into<String>) -> Check {
        self.remedied([Remedy::run_at_source_server(sql)])
    }

    /// The same with remedies for the primary, where the source is a standby.
    pub(super) fn at_primary(mut self) -> Check {
        self.remedies = self.remedies.into_iter().map(Remedy::at_primary).collect();
        self
    }

    pub(super) fn run_at_destination(self, sql: impl Into<String>) -> Check {
        self.remedied([Remedy::run_at_destination(sql)])
    }

    pub(super) fn edit(self, field: &str, how: impl Into<String>) -> Check {
        self.remedied([Remedy::edit(field, how)])
    }

    pub(super) fn act(self, how: impl Into<String>) -> Check {
        self.remedied([Remedy::act(how)])
    }

    pub(super) fn of_state(self) -> Check {
        Check { of_state: true, ..self }
    }

    pub(super) fn transient(self, transient: bool) -> Check {
        Check { transient, ..self }
    }
}

/// All checks, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The checks.
    pub checks: Vec<Check>,
    /// Tables that the Mirror has already, and that no resync copies again.
    pub joined: BTreeSet<TableId>,
}

impl CheckReport {
    /// Whether anything failed: then replication must not start.
    pub fn failed(&self) -> bool {
        self.count(Outcome::Failure) > 0
    }

    /// The failures alone.
    pub fn failures(self) -> CheckReport {
        let failed = |check: &Check| check.outcome == Outcome::Failure;
        CheckReport { checks: self.checks.into_iter().filter(failed).collect(), ..self }
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.checks.iter().filter(|check| check.outcome == outcome).count()
    }

    /// The table and below it what helps, unwrapped so that it can be copied. `width` is the terminal's, in
    /// characters; without one nothing is wrapped.
    pub fn render(&self, width: Option<u16>, renderer: &dyn RemedyRenderer) -> String {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(["RESULT", "SUBJECT", "CHECK", "DETAIL"]);
        match width {
            Some(width) => {
                table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width.max(60))
            }
            None => table.set_content_arrangement(ContentArrangement::Disabled),
        };
        for check in &self.checks {
            table.add_row([check.outcome.word(), &check.subject, &check.name, &check.detail]);
        }
        let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        self.render_fixes(&mut text, renderer);
        text.push_str(&self.summary());
        text
    }

    fn render_fixes(&self, text: &mut String, renderer: &dyn RemedyRenderer) {
        let with_fix = |outcome| {
            self.checks.iter().filter(move |check| check.outcome == outcome && !check.remedies.is_empty())
        };
        for (outcome, title) in [
            (Outcome::Failure, "To fix:"),
            (Outcome::Warning, "To consider:"),
            (Outcome::Ok, "To change it:"),
        ] {
            for (index, check) in with_fix(outcome).enumerate() {
                if index == 0 {
                    text.push_str(&format!("\n{title}\n"));
                }
                text.push_str(&format!("  {}, {}:\n", check.subject, check.name));
                for line in remedy::lines(&check.remedies, renderer) {
                    text.push_str(&format!("    {line}\n"));
                }
            }
        }
    }

    fn summary(&self) -> String {
        let plural =
            |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        let failures = self.count(Outcome::Failure);
        let warnings = self.count(Outcome::Warning);
        format!(
            "\n{}, {}, {}\n",
            plural(self.checks.len(), "check"),
            plural(failures, "failure"),
            plural(warnings, "warning")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows remedies in the fewest words.
    #[derive(Debug)]
    struct Short;

    impl RemedyRenderer for Short {
        fn resync(&self, _: &[String]) -> String {
            "resync".to_owned()
        }

        fn edit(&self, field: &str, how: &str) -> String {
            format!("{field}: {how}")
        }

        fn after_changes(&self) -> Option<String> {
            None
        }
    }

    impl Check {
        /// What helps, as it is printed, but for the comments that say where.
        pub(in crate::check) fn fix(&self) -> Option<String> {
            let mut lines = remedy::lines(&self.remedies, &Short);
            lines.retain(|line| !["-- at the source", "-- at the destination"].contains(&line.as_str()));
            (!lines.is_empty()).then(|| lines.join("\n"))
        }
    }

    fn report() -> CheckReport {
        CheckReport {
            joined: BTreeSet::new(),
            checks: vec![
                Check::ok("source", "connection", "PostgreSQL 18.4 at db:5432, TLS"),
                Check::failure(
                    "source",
                    "wal_level",
                    Reason::SourceWalLevelNotLogical,
                    "is replica, must be logical",
                )
                .run_at_source("ALTER SYSTEM SET wal_level = 'logical';\n-- then restart PostgreSQL"),
                Check::warning(
                    "public.users",
                    "column types",
                    Reason::DestinationTypeLossy,
                    "a rather long text ".repeat(8),
                ),
            ],
        }
    }

    #[test]
    fn shows_a_plain_table_and_then_the_fixes() {
        let report = report();
        assert!(report.failed());
        let text = report.render(None, &Short);
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["RESULT", "SUBJECT", "CHECK", "DETAIL"]
        );
        assert!(
            text.lines().count() == 12 && text.lines().any(|line| line.len() > 180),
            "unwrapped:\n{text}"
        );
        assert!(text.ends_with(
            "\nTo fix:\n  source, wal_level:\n    -- at the source\n    ALTER SYSTEM SET wal_level = 'logical';\n    \
             -- then restart PostgreSQL\n\n3 checks, 1 failure, 1 warning\n"
        ));
    }

    #[test]
    fn wraps_at_the_terminals_width() {
        let text = report().render(Some(80), &Short);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn warnings_do_not_fail() {
        let report = CheckReport {
            checks: vec![Check::warning("source", "a", Reason::DestinationTypeLossy, "c")],
            ..CheckReport::default()
        };
        assert!(!report.failed());
    }
}
