//! What the program says to do is done as it is printed, while the application writes: it heals, and harms nothing.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Lab, Mirror, Pg, Run, Writer, advice, eventually, walferry};

/// A Mirror and the file that people edit.
struct Site {
    lab: Lab,
    mirror: Mirror,
    file: PathBuf,
}

impl Site {
    fn new(lab: Lab, mirror: Mirror) -> Site {
        let file = lab.write(&mirror);
        Site { lab, mirror, file }
    }

    fn start(&self) -> Run {
        Run::start(&self.file, &[])
    }

    /// Does what the steps say, of several choices the one that begins with `choice`, and starts walferry again where they say so.
    #[track_caller]
    fn follow(&self, run: Run, steps: &[String], choice: &str) -> Run {
        assert!(!steps.is_empty(), "nothing helps");
        let mut run = Some(run);
        for step in steps {
            let step = step.split(", or ").find(|part| part.starts_with(choice)).unwrap_or(step);
            if let Some(sql) = step.strip_prefix("run at the source: ") {
                self.lab.admin(sql);
            } else if let Some(sql) = step.strip_prefix("run at the destination: ") {
                sql.split("; ").for_each(|statement| drop(self.lab.target(statement)));
            } else if step == "start walferry again" {
                run.take().unwrap().stop();
                run = Some(self.start());
            } else {
                self.edit(step);
            }
        }
        run.unwrap()
    }

    /// Changes the file as a step says.
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
            other => panic!("not an edit that a script can make: {other:?}"),
        }
        let texts = documents.iter().map(|document| serde_yaml::to_string(document).unwrap());
        std::fs::write(&self.file, texts.collect::<Vec<_>>().join("---\n")).unwrap();
    }

    /// Everything streams again, and `walferry verify` finds both sides equal once the application has stopped, which must have written.
    #[track_caller]
    fn ends_equal(&self, mut run: Run, writer: Writer) {
        run.until_streaming();
        assert!(writer.finish() > 0);
        self.lab.settle(&mut run);
        run.stop();
        walferry(&["verify", "-f", self.file.to_str().unwrap()]).exits(0);
    }
}

/// A table `t` that fails, and what is said against it.
struct Case {
    create: &'static str,
    /// What the application does all the time; `{n}` is another number each time.
    writes: &'static str,
    breaks: fn(&Lab, &mut Run),
    reason: &'static str,
    /// What the chosen step begins with.
    choice: &'static str,
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, v text DEFAULT 'v');
    INSERT INTO t SELECT i, 0, 'v' || i FROM generate_series(1, 2000) i";
const WRITES: &str = "INSERT INTO t (id) VALUES ({n} + 10000); UPDATE t SET n = n + 1 WHERE id = {n} % 2000; DELETE FROM t WHERE id = {n} + 9990";

/// The table fails, what is said is done, and both sides are equal in the end, though the application has written all the time.
#[track_caller]
fn heals(case: &Case) {
    let lab = Lab::new(Pg::V18);
    lab.sql(case.create);
    let mirror = lab.mirror(&["t"]);
    let site = Site::new(lab, mirror);
    let mut run = site.start();
    run.until_streaming();
    let writes = case.writes;
    let writer = Writer::start(site.lab.connect(), move |n| writes.replace("{n}", &n.to_string()));
    (case.breaks)(&site.lab, &mut run);
    let message = run.until_failed("t");
    assert_eq!(run.table("t")["reason"], case.reason, "{message}");
    let steps = run.advice("t");
    for step in &steps {
        assert!(run.log().contains(step), "the log says it too: {step}");
    }
    let run = site.follow(run, &steps, case.choice);
    site.ends_equal(run, writer);
}

#[test]
fn a_table_is_copied_again() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |lab, run| {
            let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
            lab.admin(&format!("ALTER PUBLICATION {publication} DROP TABLE t"));
        },
        reason: "SourceNotPublished",
        choice: "",
    });
}

#[test]
fn a_column_of_another_type_is_dropped_at_the_target() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |lab, _| {
            lab.sql("ALTER TABLE t ALTER v DROP DEFAULT, ALTER v TYPE text[] USING ARRAY[v, 'x']; UPDATE t SET n = 0 WHERE id = 5");
        },
        reason: "SourceSchemaChanged",
        choice: "run at the destination",
    });
}

#[test]
fn a_ttl_is_removed_at_the_target() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |lab, _| drop(lab.target("ALTER TABLE t MODIFY TTL toDateTime(n) + INTERVAL 90 YEAR")),
        reason: "DestinationEngineInvalid",
        choice: "",
    });
}

#[test]
fn a_target_with_another_key_is_set_aside() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |lab, _| {
            lab.sql("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, n); UPDATE t SET n = 7 WHERE id = 5");
        },
        reason: "SourceSchemaChanged",
        choice: "run at the destination",
    });
}

/// The lost slot stalls the Mirror: every table is copied again.
#[test]
fn every_table_is_copied_again() {
    let lab = Lab::new(Pg::V18);
    lab.sql(TABLE);
    let mirror = lab.mirror(&["t"]);
    let site = Site::new(lab, mirror);
    let mut run = site.start();
    run.until_streaming();
    run.stop();
    let writer = Writer::start(site.lab.connect(), |n| WRITES.replace("{n}", &n.to_string()));
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
    eventually("the slot to be dropped", || site.lab.connect_admin().batch_execute(drop).is_ok());
    let mut run = site.start();
    let (reason, message) = run.until_stalled();
    assert_eq!(reason, "SourceSlotLost", "{message}");
    let steps = advice(&run.status(), None);
    for step in &steps {
        assert!(run.log().contains(step) && message.contains(step), "{step}");
    }
    let run = site.follow(run, &steps, "");
    site.ends_equal(run, writer);
}

/// A table that is gone is taken out of the file, and one whose target has somebody's rows gets another target.
#[test]
fn the_file_is_edited() {
    let lab = Lab::new(Pg::V18);
    lab.sql(&format!("{TABLE}; CREATE TABLE goes (id int PRIMARY KEY); CREATE TABLE filled (id int PRIMARY KEY); INSERT INTO filled VALUES (1)"));
    lab.target(
        "CREATE TABLE filled (id Int32, _walferry_version UInt64, _walferry_deleted UInt8) \
        ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id",
    );
    lab.target("INSERT INTO filled VALUES (77, 1, 0)");
    let mirror = lab.mirror(&["t", "goes", "filled"]);
    let site = Site::new(lab, mirror);
    let mut run = site.start();
    let writer = Writer::start(site.lab.connect(), |n| WRITES.replace("{n}", &n.to_string()));
    let message = run.until_failed("filled");
    assert_eq!(run.table("filled")["reason"], "DestinationTableConflict", "{message}");
    let steps = run.advice("filled");
    let mut run = site.follow(run, &steps, "in ");
    run.until_streaming();
    site.lab.sql("DROP TABLE goes");
    let message = run.until_failed("goes");
    assert_eq!(run.table("goes")["reason"], "SourceTableDropped", "{message}");
    let steps = run.advice("goes");
    let run = site.follow(run, &steps, "in ");
    site.ends_equal(run, writer);
    assert_eq!(site.lab.target("SELECT id FROM filled"), "77\n", "somebody else's");
}

/// Another program's slot has the name of the Mirror's: what check prints is run as it stands.
#[test]
fn a_slot_of_another_plugin_is_dropped() {
    let lab = Lab::new(Pg::V18);
    lab.sql(TABLE);
    let mirror = lab.mirror(&["t"]);
    let site = Site::new(lab, mirror);
    let mut run = site.start();
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    run.until_streaming();
    run.stop();
    let file = site.file.to_str().unwrap();
    walferry(&["teardown", "-f", file]).exits(0);
    site.lab.admin(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
    let writer = Writer::start(site.lab.connect(), |n| WRITES.replace("{n}", &n.to_string()));
    let printed = walferry(&["check", "-f", file]).exits(1).text();
    let printed = printed.split_once("To fix:").unwrap().1.split("To consider:").next().unwrap().to_owned();
    let statement = printed.lines().map(str::trim).find(|line| line.starts_with("SELECT pg_drop")).unwrap();
    site.lab.admin(statement);
    site.lab.target("DROP TABLE t");
    let run = site.start();
    site.ends_equal(run, writer);
}
