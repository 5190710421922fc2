//! What the program says to do is done as it is printed, while the application writes: it heals, and harms nothing.

use std::{
    process::{Child, Command},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::json;

use super::standby::slot_made;
use crate::support::{
    Lab, Pg, Printed, Run, Server, Site, Standby, Writer, advice, eventually, printed, until, walferry,
};

/// A table `t` that fails, and what is said against it.
struct Case {
    create: &'static str,
    /// What the application does all the time; `{n}` is another number each time.
    writes: &'static str,
    breaks: fn(&Lab, &mut Run),
    /// Why it fails; again and for another reason where what was said brings that to light.
    reasons: &'static [&'static str],
    /// What the chosen step begins with.
    choice: &'static str,
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, v text DEFAULT 'v');
    INSERT INTO t SELECT i, 0, 'v' || i FROM generate_series(1, 2000) i";
const WRITES: &str = "INSERT INTO t (id) VALUES ({n} + 10000); UPDATE t SET n = n + 1 WHERE id = {n} % 2000; DELETE FROM t WHERE id = {n} + 9990";

/// The table fails, what is said is done, and both sides are equal in the end, though the application has written all the time.
#[track_caller]
fn heals(case: &Case) {
    heals_in(Lab::new(Pg::V18), case);
}

/// The same in a lab of its own.
#[track_caller]
fn heals_in(lab: Lab, case: &Case) {
    lab.sql(case.create);
    // Another one streams all the while, so that the Mirror continues.
    lab.sql("CREATE TABLE stays (id int PRIMARY KEY)");
    let mirror = lab.mirror(&["t", "stays"]);
    let site = Site::new(lab, mirror);
    let mut run = site.start();
    run.until_streaming();
    let writes = case.writes;
    let writer = Writer::start(site.lab.connect(), move |n| writes.replace("{n}", &n.to_string()));
    (case.breaks)(&site.lab, &mut run);
    for (round, reason) in case.reasons.iter().enumerate() {
        let message = run.until_failed("t");
        assert_eq!(run.table("t")["reason"], *reason, "round {round}: {message}");
        let steps = run.advice("t");
        for step in &steps {
            assert!(run.log().contains(step), "the log says it too: {step}");
        }
        run = site.follow(run, &steps, case.choice);
    }
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
        reasons: &["SourceNotPublished"],
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
        reasons: &["SourceSchemaChanged"],
        choice: "run at the destination",
    });
}

#[test]
fn a_ttl_is_removed_at_the_target() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |lab, _| drop(lab.target("ALTER TABLE t MODIFY TTL toDateTime(n) + INTERVAL 90 YEAR")),
        reasons: &["DestinationEngineInvalid"],
        choice: "",
    });
}

/// An ALTER on a full disk leaves ClickHouse with an empty file in the place of the table's definition.
#[test]
fn a_target_whose_definition_is_lost_is_dropped() {
    heals(&Case {
        breaks: |lab, _| {
            let sql =
                "SELECT metadata_path FROM system.tables WHERE database = currentDatabase() AND name = 't'";
            let file = lab.clickhouse_server.folder.join("data").join(lab.target_value(sql));
            assert!(std::fs::metadata(&file).unwrap().len() > 0, "{}", file.display());
            std::fs::write(file, "").unwrap();
        },
        reasons: &["DestinationTableConflict"],
        ..CASE
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
        reasons: &["SourceSchemaChanged"],
        choice: "run at the destination",
    });
}

/// What most cases have.
const CASE: Case = Case { create: TABLE, writes: WRITES, breaks: |_, _| (), reasons: &[], choice: "" };

/// Somebody changes the target in ways that values would not survive.
#[test]
fn what_was_done_to_a_target_is_undone() {
    const INVALID: &[&str] = &["DestinationEngineInvalid"];
    const CONFLICT: &[&str] = &["DestinationTableConflict"];
    for case in [
        Case {
            breaks: |lab, _| {
                lab.target("ALTER TABLE t MODIFY COLUMN v TTL toDateTime(n) + INTERVAL 90 YEAR");
            },
            reasons: INVALID,
            ..CASE
        },
        Case {
            breaks: |lab, _| {
                lab.target(
                    "ALTER TABLE t MODIFY SETTING allow_experimental_replacing_merge_with_cleanup = 1",
                );
            },
            reasons: INVALID,
            ..CASE
        },
        Case {
            breaks: |lab, _| drop(lab.target("ALTER TABLE t MODIFY COLUMN n Int16")),
            reasons: CONFLICT,
            ..CASE
        },
        // An insert is refused for it before anybody looks.
        Case {
            breaks: |lab, _| drop(lab.target("ALTER TABLE t MODIFY COLUMN v MATERIALIZED 'x'")),
            reasons: CONFLICT,
            choice: "run at the destination",
            ..CASE
        },
    ] {
        heals(&case);
    }
}

#[test]
fn a_privilege_on_a_target_is_granted() {
    let lab = Lab::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])));
    let breaks: fn(&Lab, &mut Run) = |lab, _| lab.revoke_at_target(&["REVOKE INSERT ON DB.t"]);
    heals_in(lab, &Case { breaks, reasons: &["DestinationAccessDenied"], ..CASE });
}

/// What names a table's rows is gone: it gets another identity, by what `check` names.
#[test]
fn a_lost_identity_is_given_back() {
    // UPDATE and DELETE fail at the source until the table is taken out.
    const INSERTS: Case = Case {
        writes: "INSERT INTO t (id) VALUES ({n} + 10000)",
        reasons: &["SourceReplicaIdentityMissing"],
        ..CASE
    };
    for case in [
        Case { breaks: |lab, _| lab.sql("ALTER TABLE t REPLICA IDENTITY NOTHING"), ..INSERTS },
        // It was taken out, and whoever did that ended before it was on record.
        Case {
            breaks: |lab, run| {
                let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
                lab.admin(&format!(
                    "ALTER TABLE t REPLICA IDENTITY NOTHING; ALTER PUBLICATION {publication} DROP TABLE t"
                ));
            },
            ..INSERTS
        },
        Case {
            create: "CREATE TABLE t (id int, n int DEFAULT 0); ALTER TABLE t REPLICA IDENTITY FULL;
                INSERT INTO t SELECT i FROM generate_series(1, 2000) i",
            breaks: |lab, run| {
                lab.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT");
                // The stream may have seen it before it was taken out, for another reason.
                run.until_status("t to be taken out", |status| {
                    let mut tables = status["tables"].as_array()?.iter();
                    tables.find(|table| table["reason"] == "SourceReplicaIdentityMissing").map(drop)
                });
            },
            ..INSERTS
        },
        // Without a key, rows have another layout at the target.
        Case {
            breaks: |lab, _| lab.sql("ALTER TABLE t DROP CONSTRAINT t_pkey"),
            reasons: &["SourceReplicaIdentityMissing", "DestinationTableConflict"],
            choice: "run at the destination",
            ..INSERTS
        },
    ] {
        heals(&case);
    }
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

/// pg_recvlogical on a slot, until this is dropped.
struct Reader(Child);

impl Reader {
    /// Begins to read with these options, and returns once the slot is in use.
    fn start(lab: &Lab, slot: &str, options: &[&str]) -> Reader {
        let child = Command::new("pg_recvlogical")
            .args(["-h", "127.0.0.1", "-p", &lab.postgres_port.to_string(), "-U", &lab.database])
            .args(["-d", &lab.database, "-S", slot, "--start", "-f", "/dev/null"])
            .args(options)
            .env("PGPASSWORD", "role-test")
            .spawn()
            .unwrap();
        let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
        eventually("the slot to be read", || lab.source_value(&active) == "t");
        Reader(child)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), signal).unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Another program reads the Mirror's slot, and hangs.
#[test]
fn another_reader_of_the_slot_is_ended() {
    let lab = Lab::new(Pg::V18);
    lab.sql(TABLE);
    let mirror = lab.mirror(&["t"]);
    let site = Site::new(lab, mirror);
    let mut run = site.start();
    run.until_streaming();
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    run.stop();
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    eventually("the slot to be free", || site.lab.source_value(&active) == "f");
    let publications = format!("publication_names={slot}");
    let other = Reader::start(&site.lab, &slot, &["--no-loop", "-o", "proto_version=1", "-o", &publications]);
    other.signal(Signal::SIGSTOP);
    let writer = Writer::start(site.lab.connect(), |n| WRITES.replace("{n}", &n.to_string()));
    let mut run = site.start();
    let steps = run.until_status("the wait", |status| {
        (status["failure"]["reason"] == "SourceSlotInUse").then(|| advice(status, None))
    });
    for step in &steps {
        assert!(run.log().contains(step), "the log says it too: {step}");
    }
    let run = site.follow(run, &steps, "");
    site.ends_equal(run, writer);
}

/// A server that has room for nobody, and whose log does not tell enough: all of it is set as `check` says.
#[test]
fn settings_of_the_server() {
    let server = Arc::new(Server::postgres(Pg::V18, &[]));
    let lab = Lab::on(server, Server::shared_clickhouse());
    lab.sql(TABLE);
    for set in ["wal_level = replica", "max_replication_slots = 1", "max_wal_senders = 1"] {
        lab.admin(&format!("ALTER SYSTEM SET {set}"));
    }
    lab.restart_postgres(true, || {});
    lab.admin("SELECT pg_create_physical_replication_slot('of_a_standby')");
    let mirror = lab.mirror(&["t"]);
    let site = Site::new(lab, mirror);
    let file = site.file.to_str().unwrap();
    let writer = Writer::reconnecting(site.lab.connector(), |n| WRITES.replace("{n}", &n.to_string()));
    let follow = |report: &str, title: &str| {
        let all = printed(report, title);
        assert!(!all.is_empty(), "{report}");
        all.iter().for_each(|printed| printed.run(&site.lab, &site.lab.postgres_server));
        if all.iter().any(Printed::restarts) {
            site.lab.restart_postgres(true, || {});
        }
    };
    let report =
        walferry(&["check", "-f", file]).exits(1).says(&["wal_level", "max_replication_slots"]).text();
    follow(&report, "To fix:");

    site.lab.admin("SELECT pg_create_logical_replication_slot('of_another', 'test_decoding')");
    let reader = Reader::start(&site.lab, "of_another", &[]);
    let report = walferry(&["check", "-f", file]).exits(1).says(&["max_wal_senders"]).text();
    follow(&report, "To fix:");
    let read = "SELECT count(*) FROM pg_stat_replication";
    eventually("the other's walsender to be there again", || site.lab.source_value(read) == "1");

    let report = walferry(&["check", "-f", file]).exits(0).says(&["no limit"]).text();
    follow(&report, "To consider:");
    let report = until("the limit", || {
        let report = walferry(&["check", "-f", file]).exits(0).text();
        (!report.contains("no limit")).then_some(report)
    });
    assert!(printed(&report, "To consider:").is_empty(), "{report}");
    let run = site.start();
    site.ends_equal(run, writer);
    drop(reader);
}

/// Everything that the source has to be changed for is for its primary where it is a standby, but for what each server has of its own.
#[test]
fn the_primary_of_a_standby_is_changed() {
    let lab = Lab::on(Arc::new(Server::postgres(Pg::V18, &[])), Server::shared_clickhouse());
    let role = lab.database.clone();
    lab.admin(&format!(
        "{TABLE}; CREATE TABLE keyed (id int NOT NULL, n int); CREATE UNIQUE INDEX keyed_by_id ON keyed (id); INSERT INTO keyed VALUES (1, 1);
        CREATE TABLE filtered (id int PRIMARY KEY, n int); INSERT INTO filtered SELECT i, i FROM generate_series(1, 20) i;
        CREATE TABLE hidden (id int PRIMARY KEY, n int); INSERT INTO hidden VALUES (1, 1), (2, 2);
        ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY;
        CREATE UNLOGGED TABLE light (id int PRIMARY KEY); INSERT INTO light VALUES (1);
        CREATE TABLE ordered (id int PRIMARY KEY, n int); INSERT INTO ordered VALUES (1, 1);
        GRANT SELECT ON keyed, filtered, hidden, ordered TO {role}; ALTER ROLE {role} NOREPLICATION"
    ));
    let standby = Standby::with(&lab.postgres_server, "standby", &[]);
    standby.until_replayed(lab.lsn());
    let mut mirror = lab.mirror(&["t", "keyed", "filtered", "hidden", "light", "ordered"]);
    mirror.table(2)["where"] = "n > 7".into();
    mirror.table(5)["engine"] = json!({"orderBy": ["n", "id"]});
    let site = Site::of(lab, mirror, standby.server.clone());
    let writer = Writer::start(site.lab.connect_admin(), |n| WRITES.replace("{n}", &n.to_string()));
    let check = || walferry(&["check", "-f", site.file.to_str().unwrap()]);

    let report = check().exits(1).says(&["hot_standby_feedback", "no limit"]).text();
    printed(&report, "To consider:").iter().for_each(|printed| site.run_printed(printed));
    eventually("the standby's settings", || {
        let report = check().text();
        !report.contains("hot_standby_feedback") && !report.contains("no limit")
    });
    site.fix();

    // The publication is there, and is made unfit in each way.
    let publication = site.lab.source_value("SELECT pubname FROM pg_publication");
    site.lab.admin(&format!(
        "ALTER PUBLICATION {publication} SET (publish = 'insert'); COMMENT ON PUBLICATION {publication} IS NULL;
        ALTER PUBLICATION {publication} DROP TABLE ONLY t, ONLY keyed; ALTER PUBLICATION {publication} ADD TABLE ONLY keyed WHERE (id > 5)"
    ));
    site.until_known();
    check().exits(1);
    site.fix();

    let mut run = site.start();
    slot_made(&site.lab, &mut run);
    run.until_streaming();
    // Once published, its identity goes: the application's own changes fail until it is taken out by who may.
    site.lab.admin("DROP INDEX keyed_by_id; ALTER TABLE keyed ADD PRIMARY KEY (id); ALTER TABLE keyed REPLICA IDENTITY NOTHING");
    run.until_failed("keyed");
    let steps = run.advice("keyed");
    let mut run = site.follow(run, &steps, "");
    site.lab.admin("UPDATE keyed SET n = 2");
    let steps = run.until_status("what the primary has to do for the table", |status| {
        Some(advice(status, Some("keyed"))).filter(|steps| !steps.is_empty())
    });
    let run = site.follow(run, &steps, "");
    site.ends_equal(run, writer);
}

/// The publication is its owner's: whatever has to change in it is done as the role that is named, and joins without a restart.
#[test]
fn the_owner_changes_the_publication() {
    let lab = Lab::new(Pg::V18);
    let role = format!("{}_least", lab.database);
    lab.sql(&format!("{TABLE}; CREATE TABLE added (id int PRIMARY KEY); INSERT INTO added VALUES (1)"));
    lab.admin(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'least-test'; GRANT SELECT ON t, added TO {role}"
    ));
    let mut mirror = lab.mirror(&["t"]);
    mirror.secrets[0].1 = json!({"username": role, "password": "least-test"});
    let mut site = Site::new(lab, mirror);
    let writer = Writer::start(site.lab.connect(), |n| WRITES.replace("{n}", &n.to_string()));
    site.fix();
    let mut run = site.start();
    run.until_streaming();
    run.stop();

    let tables = site.mirror.mirror["spec"]["tables"].as_array_mut().unwrap();
    tables.push(json!({"schema": "public", "name": "added"}));
    run = site.start_changed();
    run.until_failed("added");
    let steps = run.advice("added");
    assert!(steps.concat().contains("ADD TABLE ONLY"), "{steps:?}");
    run = site.follow(run, &steps, "");
    run.until_streaming();
    run.stop();

    site.mirror.table(0)["where"] = "id % 5 <> 0".into();
    site.mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    run = site.start_changed();
    run.until_failed("t");
    let steps = run.advice("t");
    assert!(steps.concat().contains("COMMIT"), "{steps:?}");
    let run = site.follow(run, &steps, "");
    site.ends_equal(run, writer);
    site.lab.admin(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}
