//! A Mirror whose file and servers are changed exactly as walferry's remedies ask for.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};

use super::{Mirror, Printed, Run, Server, TestEnv, Writer, eventually, printed, walferry};

/// A Mirror and its file, which the remedies edit.
#[derive(Debug)]
pub struct EditedMirror {
    pub env: TestEnv,
    pub mirror: Mirror,
    pub file: PathBuf,
    /// The source: the test's server, or a standby of it.
    pub source: Arc<Server>,
}

impl EditedMirror {
    pub fn new(env: TestEnv, mirror: Mirror) -> EditedMirror {
        let source = env.postgres_server.clone();
        EditedMirror::of(env, mirror, source)
    }

    pub fn of(env: TestEnv, mut mirror: Mirror, source: Arc<Server>) -> EditedMirror {
        mirror.postgres["spec"]["postgres"]["port"] = source.port.into();
        let file = env.write(&mirror);
        EditedMirror { env, mirror, file, source }
    }

    /// Runs the statements that `check` prints for its failures until it has none. A fixed failure may reveal
    /// another one, so there are several rounds.
    #[track_caller]
    pub fn fix(&self) {
        for round in 0.. {
            let outcome = walferry(&["check", "-f", self.file.to_str().unwrap()]);
            let (code, report) = (outcome.code, outcome.text());
            if code == Some(0) {
                break;
            }
            let all = printed(&report, "To fix:");
            assert!(round < 5 && !all.is_empty(), "check still fails after {round} rounds:\n{report}");
            all.iter().for_each(|printed| self.run_printed(printed));
        }
    }

    /// Runs statements at the server that they are for, and waits until the source has replayed them.
    #[track_caller]
    pub fn run_printed(&self, printed: &Printed) {
        let server = if printed.at_primary() { &self.env.postgres_server } else { &self.source };
        printed.run(&self.env, server);
        self.until_replayed();
    }

    /// Waits until a source that is a standby has replayed what its primary has written.
    #[track_caller]
    pub fn until_replayed(&self) {
        let lsn = self.env.source_value("SELECT pg_current_wal_flush_lsn()");
        let known = format!("SELECT coalesce(pg_last_wal_replay_lsn() >= '{lsn}', true)");
        let mut admin = self.env.connect_admin_of(&self.source);
        eventually("the standby to catch up", || admin.query_one(&known, &[]).unwrap().get(0));
    }

    pub fn start(&self) -> Run {
        Run::start(&self.file, &[])
    }

    /// Writes the changed Mirror to its file and starts `walferry run`.
    pub fn start_changed(&self) -> Run {
        std::fs::write(&self.file, self.mirror.to_yaml()).unwrap();
        self.start()
    }

    /// Executes the steps. Where a step offers several choices, the one that begins with `choice` is taken.
    #[track_caller]
    pub fn follow(&self, run: Run, steps: &[String], choice: &str) -> Run {
        assert!(!steps.is_empty(), "the status has no remedy");
        let mut run = Some(run);
        for step in steps {
            let step = step.split(", or ").find(|part| part.starts_with(choice)).unwrap_or(step);
            if let Some(sql) = step.strip_prefix("run at the source: ") {
                let (finding, at_source) = (String::new(), true);
                self.run_printed(&Printed { finding, at_source, sql: sql.to_owned() });
            } else if step == "grant what walferry check names" {
                let report = walferry(&["check", "-f", self.file.to_str().unwrap()]).text();
                let all = printed(&report, "To fix:").into_iter().chain(printed(&report, "To consider:"));
                let grants: String =
                    all.filter(|printed| !printed.at_source).map(|printed| printed.sql).collect();
                assert!(grants.contains("GRANT INSERT ON"), "{report}");
                self.env.grant_at_target("limited", &grants);
            } else if step == "give it the replica identity that walferry check names" {
                let report = walferry(&["check", "-f", self.file.to_str().unwrap()]).text();
                let all = ["To fix:", "To consider:"].iter().flat_map(|title| printed(&report, title));
                let named: Vec<_> =
                    all.filter(|printed| printed.finding.contains("replica identity")).collect();
                assert!(!named.is_empty(), "{report}");
                named.iter().for_each(|printed| self.run_printed(printed));
            } else if let Some(sql) = step.strip_prefix("run at the destination: ") {
                sql.split("; ").for_each(|statement| drop(self.env.target(statement)));
            } else if step == "restart walferry" {
                run.take().unwrap().stop();
                run = Some(self.start());
            } else {
                self.edit(step);
            }
        }
        run.unwrap()
    }

    /// Makes the edit of the file that a step describes.
    #[track_caller]
    fn edit(&self, step: &str) {
        let name = self.mirror.mirror["metadata"]["name"].as_str().unwrap();
        let place = format!("in {}, Mirror {name}, ", self.file.display());
        let (_, rest) = step.split_once(&place).unwrap_or_else(|| panic!("no edit of {place}: {step}"));
        let (field, how) = rest.split_once(": ").unwrap();
        let text = std::fs::read_to_string(&self.file).unwrap();
        let documents = text.split("---\n").map(|text| serde_yaml::from_str::<Value>(text).unwrap());
        let mut documents: Vec<Value> = documents.collect();
        let mirror = documents.iter_mut().find(|document| document["kind"] == "Mirror").unwrap();
        let tables = |mirror: &mut Value| mirror["spec"]["tables"].as_array().unwrap().clone();
        let is = |table: &Value, name: &str| format!("public.{}", table["name"].as_str().unwrap()) == name;
        match (field, how) {
            ("metadata.annotations", how) => {
                let entry: Value = serde_yaml::from_str(how.strip_prefix("set ").unwrap()).unwrap();
                for (key, value) in entry.as_object().unwrap() {
                    mirror["metadata"]["annotations"][key] = value.clone();
                }
            }
            ("spec.tables", how) if how.starts_with("take ") => {
                let name = how["take ".len()..].strip_suffix(" out").unwrap();
                let mut left = tables(mirror);
                left.retain(|table| !is(table, name));
                mirror["spec"]["tables"] = left.into();
            }
            ("spec.tables", how) if how.starts_with("give ") => {
                let name = how["give ".len()..].strip_suffix(" another target.table").unwrap();
                let mut changed = tables(mirror);
                for table in changed.iter_mut().filter(|table| is(table, name)) {
                    table["target"] = json!({"table": "elsewhere"});
                }
                mirror["spec"]["tables"] = changed.into();
            }
            other => panic!("no script can make this edit: {other:?}"),
        }
        let texts = documents.iter().map(|document| serde_yaml::to_string(document).unwrap());
        std::fs::write(&self.file, texts.collect::<Vec<_>>().join("---\n")).unwrap();
    }

    /// Asserts that every table streams again, and that `walferry verify` finds no difference once the
    /// application, which must have written rows, has stopped.
    #[track_caller]
    pub fn ends_equal(&self, mut run: Run, writer: Writer) {
        run.until_streaming();
        assert!(writer.finish() > 0);
        self.env.settle(&mut run);
        run.stop();
        walferry(&["verify", "-f", self.file.to_str().unwrap()]).exits(0);
    }
}
