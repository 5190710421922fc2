//! What `walferry check` and a refused start find, without the words that explain it.

use serde_json::Value;
use walferry::fault::Reason;

use super::Outcome;

/// Options of a `walferry run` that ends once it has caught up, and logs its reasons as JSON.
pub const UNTIL_CAUGHT_UP: [&str; 5] = ["--until-caught-up", "--http", "127.0.0.1:0", "--log-format", "json"];

/// A row of the table that `walferry check` prints.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    /// `ok`, `warning` or `FAILURE`.
    pub result: String,
    /// `source`, `destination`, or a table.
    pub subject: String,
    pub check: String,
    pub detail: String,
}

/// The rows of the table in a report of `walferry check`. The columns begin where their titles do.
pub fn findings(report: &str) -> Vec<Finding> {
    let mut lines = report.lines().skip_while(|line| !line.trim_start().starts_with("RESULT"));
    let Some(header) = lines.next() else { return Vec::new() };
    let starts = ["RESULT", "SUBJECT", "CHECK", "DETAIL"].map(|title| header.find(title).unwrap());
    let cell = |line: &str, column: usize| {
        let width = starts.get(column + 1).map_or(usize::MAX, |next| next - starts[column]);
        line.chars().skip(starts[column]).take(width).collect::<String>().trim().to_owned()
    };
    lines
        .take_while(|line| !line.is_empty())
        .map(|line| Finding {
            result: cell(line, 0),
            subject: cell(line, 1),
            check: cell(line, 2),
            detail: cell(line, 3),
        })
        .collect()
}

impl Outcome {
    /// Asserts that `check` ended with this result for the subject.
    #[track_caller]
    pub fn finds(self, result: &str, subject: &str, check: &str) -> Outcome {
        let all = findings(&self.text());
        let is =
            |found: &Finding| (&*found.result, &*found.subject, &*found.check) == (result, subject, check);
        assert!(all.iter().any(is), "no {result} of {subject}, {check} in:\n{}", self.text());
        self
    }

    /// Asserts that `check` neither warns of this nor fails for it.
    #[track_caller]
    pub fn finds_nothing(self, subject: &str, check: &str) -> Outcome {
        let of = |found: &&Finding| found.subject == subject && found.check == check && found.result != "ok";
        let all = findings(&self.text());
        assert_eq!(all.iter().find(of), None, "{}", self.text());
        self
    }

    /// The lines of a JSON log.
    pub fn log(&self) -> Vec<Value> {
        self.stderr.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Asserts that the JSON log gives this reason for a table, or for the `source` or `destination`.
    #[track_caller]
    pub fn refuses(self, subject: &str, reason: Reason) -> Outcome {
        let about = |line: &Value| line["subject"] == subject || line["table"] == subject;
        let found = self.log().iter().any(|line| about(line) && line["reason"] == reason.name());
        assert!(found, "{reason} of {subject} is not in:\n{}", self.text());
        self
    }

    /// Asserts that the JSON log gives this reason for a Mirror that has stalled.
    #[track_caller]
    pub fn stalls(self, reason: Reason) -> Outcome {
        let of_mirror = |line: &Value| line["table"].is_null() && line["level"] == "ERROR";
        let found = self.log().iter().any(|line| of_mirror(line) && line["reason"] == reason.name());
        assert!(found, "{reason} is not in:\n{}", self.text());
        self
    }
}
