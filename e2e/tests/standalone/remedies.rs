//! Every remedy is followed exactly as it is printed while the application writes: the Mirror recovers, and
//! nothing is harmed.

use std::{
    process::{Child, Command},
    sync::Arc,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use walferry::fault::{Reason, Side};

use super::standby::slot_made;
use crate::support::{
    EditedMirror, Pg, Printed, Run, Server, Standby, TestEnv, Writer, advice, eventually, failed_for,
    findings, printed, stalled_for, until, walferry,
};

/// A table `t` that fails, and the remedies against that.
struct Case {
    create: &'static str,
    /// What the application writes all the time; `{n}` is a new number each time.
    writes: &'static str,
    breaks: fn(&TestEnv, &mut Run),
    /// The expected reasons, in order: following one remedy may reveal another failure.
    reasons: &'static [Reason],
    /// What the chosen step begins with.
    choice: &'static str,
}

const TABLE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0, v text DEFAULT 'v');
    INSERT INTO t SELECT i, 0, 'v' || i FROM generate_series(1, 2000) i";
const WRITES: &str = "INSERT INTO t (id) VALUES ({n} + 10000); UPDATE t SET n = n + 1 WHERE id = {n} % 2000; DELETE FROM t WHERE id = {n} + 9990";

/// A Mirror of `t` and these other tables that streams, and whose file can be edited.
fn streaming(env: TestEnv, create: &str, others: &[&str]) -> (EditedMirror, Run) {
    env.sql(create);
    let mirror = env.mirror(&[&["t"], others].concat());
    let edited = EditedMirror::new(env, mirror);
    let mut run = edited.start();
    run.until_streaming();
    (edited, run)
}

/// The application that writes to `t` all the time.
fn writing(edited: &EditedMirror) -> Writer {
    Writer::start(edited.env.connect(), |n| WRITES.replace("{n}", &n.to_string()))
}

/// Asserts that each step is in the log too.
#[track_caller]
fn assert_logged(run: &Run, steps: &[String]) {
    steps.iter().for_each(|step| assert!(run.log().contains(step), "the step is not logged: {step}"));
}

/// Whether `check` warns of this check of the source.
fn warns(report: &str, check: &str) -> bool {
    findings(report).iter().any(|found| found.check == check && found.result == "warning")
}

/// The table fails, its remedies are followed, and both sides are equal in the end, although the application
/// writes all the time.
#[track_caller]
fn heals(case: &Case) {
    heals_in(TestEnv::new(Pg::V18), case);
}

/// The same in a given environment.
#[track_caller]
fn heals_in(env: TestEnv, case: &Case) {
    // Another table streams all the time, so that the Mirror continues.
    let create = format!("{}; CREATE TABLE stays (id int PRIMARY KEY)", case.create);
    let (edited, mut run) = streaming(env, &create, &["stays"]);
    let writes = case.writes;
    let writer = Writer::start(edited.env.connect(), move |n| writes.replace("{n}", &n.to_string()));
    (case.breaks)(&edited.env, &mut run);
    for reason in case.reasons {
        let failure = failed_for(&mut run, "t", *reason);
        assert_logged(&run, &failure.steps);
        run = edited.follow(run, &failure.steps, case.choice);
    }
    edited.ends_equal(run, writer);
}

#[test]
fn a_table_is_copied_again() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |env, run| {
            let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
            env.admin(&format!("ALTER PUBLICATION {publication} DROP TABLE t"));
        },
        reasons: &[Reason::SourceNotPublished],
        choice: "",
    });
}

#[test]
fn a_column_of_another_type_is_dropped_at_the_target() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |env, _| {
            env.sql("ALTER TABLE t ALTER v DROP DEFAULT, ALTER v TYPE text[] USING ARRAY[v, 'x']; UPDATE t SET n = 0 WHERE id = 5");
        },
        reasons: &[Reason::SourceSchemaChanged],
        choice: "run at the destination",
    });
}

#[test]
fn a_ttl_is_removed_at_the_target() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |env, _| drop(env.target("ALTER TABLE t MODIFY TTL toDateTime(n) + INTERVAL 90 YEAR")),
        reasons: &[Reason::DestinationEngineInvalid],
        choice: "",
    });
}

/// An ALTER on a full disk leaves ClickHouse with an empty file in place of the table's definition.
#[test]
fn a_target_whose_definition_is_lost_is_dropped() {
    crate::needs_own_server!();
    heals(&Case {
        breaks: |env, _| {
            let sql =
                "SELECT metadata_path FROM system.tables WHERE database = currentDatabase() AND name = 't'";
            let file = env.clickhouse_server.folder.join("data").join(env.target_value(sql));
            assert!(std::fs::metadata(&file).unwrap().len() > 0, "{}", file.display());
            std::fs::write(file, "").unwrap();
        },
        reasons: &[Reason::DestinationTableConflict],
        ..CASE
    });
}

#[test]
fn a_target_with_another_key_is_set_aside() {
    heals(&Case {
        create: TABLE,
        writes: WRITES,
        breaks: |env, _| {
            env.sql("ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, n); UPDATE t SET n = 7 WHERE id = 5");
        },
        reasons: &[Reason::SourceSchemaChanged],
        choice: "run at the destination",
    });
}

/// The fields that most cases share.
const CASE: Case = Case { create: TABLE, writes: WRITES, breaks: |_, _| (), reasons: &[], choice: "" };

/// A user changes the target in ways that would lose values.
#[test]
fn what_was_done_to_a_target_is_undone() {
    const INVALID: &[Reason] = &[Reason::DestinationEngineInvalid];
    const CONFLICT: &[Reason] = &[Reason::DestinationTableConflict];
    for case in [
        Case {
            breaks: |env, _| {
                env.target("ALTER TABLE t MODIFY COLUMN v TTL toDateTime(n) + INTERVAL 90 YEAR");
            },
            reasons: INVALID,
            ..CASE
        },
        Case {
            breaks: |env, _| {
                env.target(
                    "ALTER TABLE t MODIFY SETTING allow_experimental_replacing_merge_with_cleanup = 1",
                );
            },
            reasons: INVALID,
            ..CASE
        },
        Case {
            breaks: |env, _| drop(env.target("ALTER TABLE t MODIFY COLUMN n Int16")),
            reasons: CONFLICT,
            ..CASE
        },
        // An insert is refused before walferry reads the target's definition.
        Case {
            breaks: |env, _| drop(env.target("ALTER TABLE t MODIFY COLUMN v MATERIALIZED 'x'")),
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
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])));
    let breaks: fn(&TestEnv, &mut Run) = |env, _| env.revoke_at_target(&["REVOKE INSERT ON DB.t"]);
    heals_in(env, &Case { breaks, reasons: &[Reason::DestinationAccessDenied], ..CASE });
}

/// A table that lost its replica identity gets another one, as `check` says.
#[test]
fn a_lost_identity_is_given_back() {
    // UPDATE and DELETE fail at the source until the table is removed from the publication.
    const INSERTS: Case = Case {
        writes: "INSERT INTO t (id) VALUES ({n} + 10000)",
        reasons: &[Reason::SourceReplicaIdentityMissing],
        ..CASE
    };
    for case in [
        Case { breaks: |env, _| env.sql("ALTER TABLE t REPLICA IDENTITY NOTHING"), ..INSERTS },
        // The table is already removed from the publication, by a process that ended before it recorded the
        // failure.
        Case {
            breaks: |env, run| {
                let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
                env.admin(&format!(
                    "ALTER TABLE t REPLICA IDENTITY NOTHING; ALTER PUBLICATION {publication} DROP TABLE t"
                ));
            },
            ..INSERTS
        },
        Case {
            create: "CREATE TABLE t (id int, n int DEFAULT 0); ALTER TABLE t REPLICA IDENTITY FULL;
                INSERT INTO t SELECT i FROM generate_series(1, 2000) i",
            breaks: |env, run| {
                env.sql("ALTER TABLE t REPLICA IDENTITY DEFAULT");
                // The stream may have failed the table for another reason before it was removed from the
                // publication.
                run.until_status("t to be taken out", |status| {
                    let mut tables = status["tables"].as_array()?.iter();
                    tables.find(|table| table["reason"] == "SourceReplicaIdentityMissing").map(drop)
                });
            },
            ..INSERTS
        },
        // Without a key, the target needs another layout.
        Case {
            breaks: |env, _| env.sql("ALTER TABLE t DROP CONSTRAINT t_pkey"),
            reasons: &[Reason::SourceReplicaIdentityMissing, Reason::DestinationTableConflict],
            choice: "run at the destination",
            ..INSERTS
        },
    ] {
        heals(&case);
    }
}

/// A lost slot stalls the Mirror; the remedy is a resync of every table.
#[test]
fn every_table_is_copied_again() {
    let (edited, run) = streaming(TestEnv::new(Pg::V18), TABLE, &[]);
    run.stop();
    let writer = writing(&edited);
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
    eventually("the slot to be dropped", || edited.env.connect_admin().batch_execute(drop).is_ok());
    let mut run = edited.start();
    let steps = stalled_for(&mut run, Reason::SourceSlotLost).steps;
    assert_logged(&run, &steps);
    let (_, _, message) = run.condition("Stalled").unwrap();
    assert!(steps.iter().all(|step| message.contains(step)), "{steps:?} in {message}");
    let run = edited.follow(run, &steps, "");
    edited.ends_equal(run, writer);
}

/// A dropped table is removed from the file, and a table whose target has rows of a user gets another target.
#[test]
fn the_file_is_edited() {
    let env = TestEnv::new(Pg::V18);
    env.sql(&format!("{TABLE}; CREATE TABLE goes (id int PRIMARY KEY); CREATE TABLE filled (id int PRIMARY KEY); INSERT INTO filled VALUES (1)"));
    env.target(
        "CREATE TABLE filled (id Int32, _walferry_version UInt64, _walferry_deleted UInt8) \
        ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id",
    );
    env.target("INSERT INTO filled VALUES (77, 1, 0)");
    let mirror = env.mirror(&["t", "goes", "filled"]);
    let edited = EditedMirror::new(env, mirror);
    let mut run = edited.start();
    let writer = writing(&edited);
    let failure = failed_for(&mut run, "filled", Reason::DestinationTableConflict);
    let mut run = edited.follow(run, &failure.steps, "in ");
    run.until_streaming();
    edited.env.sql("DROP TABLE goes");
    let failure = failed_for(&mut run, "goes", Reason::SourceTableDropped);
    let run = edited.follow(run, &failure.steps, "in ");
    edited.ends_equal(run, writer);
    assert_eq!(edited.env.target("SELECT id FROM filled"), "77\n", "the rows of a user");
}

/// A slot of another plugin has the Mirror's slot name; the statement that check prints is run unchanged.
#[test]
fn a_slot_of_another_plugin_is_dropped() {
    let (edited, mut run) = streaming(TestEnv::new(Pg::V18), TABLE, &[]);
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    run.stop();
    let file = edited.file.to_str().unwrap();
    walferry(&["teardown", "-f", file]).exits(0);
    edited.env.admin(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
    let writer = writing(&edited);
    let check = walferry(&["check", "-f", file]).exits(1).finds("FAILURE", "source", "replication slot");
    let fixes = printed(&check.text(), "To fix:");
    let fix = fixes.iter().find(|printed| printed.finding.starts_with("source, replication slot"));
    edited.run_printed(fix.unwrap());
    edited.env.target("DROP TABLE t");
    let run = edited.start();
    edited.ends_equal(run, writer);
}

/// pg_recvlogical on a slot, until it is dropped.
struct Reader(Child);

impl Reader {
    /// Starts to read with these options, and returns once the slot is in use.
    fn start(env: &TestEnv, slot: &str, options: &[&str]) -> Reader {
        let child = Command::new("pg_recvlogical")
            .args(["-h", "127.0.0.1", "-p", &env.postgres_port.to_string(), "-U", &env.database])
            .args(["-d", &env.database, "-S", slot, "--start", "-f", "/dev/null"])
            .args(options)
            .env("PGPASSWORD", "role-test")
            .spawn()
            .unwrap();
        let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
        eventually("the slot to be read", || env.source_value(&active) == "t");
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
    let (edited, mut run) = streaming(TestEnv::new(Pg::V18), TABLE, &[]);
    let slot = run.status()["slotName"].as_str().unwrap().to_owned();
    run.stop();
    let active = format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
    eventually("the slot to be free", || edited.env.source_value(&active) == "f");
    let publications = format!("publication_names={slot}");
    let other =
        Reader::start(&edited.env, &slot, &["--no-loop", "-o", "proto_version=1", "-o", &publications]);
    other.signal(Signal::SIGSTOP);
    let writer = writing(&edited);
    let mut run = edited.start();
    let waits = |status: &Value| status["failure"]["reason"] == Reason::SourceSlotInUse.name();
    let steps = run.until_status("the wait", |status| waits(status).then(|| advice(status, None)));
    assert_logged(&run, &steps);
    let run = edited.follow(run, &steps, "");
    edited.ends_equal(run, writer);
}

/// A server without free slots or walsenders, and with too low a wal_level: all settings are changed as
/// `check` says.
#[test]
fn settings_of_the_server() {
    crate::needs_own_server!();
    let server = Arc::new(Server::postgres(Pg::V18, &[]));
    let env = TestEnv::on(server, Server::shared_clickhouse());
    env.sql(TABLE);
    for set in ["wal_level = replica", "max_replication_slots = 1", "max_wal_senders = 1"] {
        env.admin(&format!("ALTER SYSTEM SET {set}"));
    }
    env.restart_postgres(true, || {});
    env.admin("SELECT pg_create_physical_replication_slot('of_a_standby')");
    let mirror = env.mirror(&["t"]);
    let edited = EditedMirror::new(env, mirror);
    let file = edited.file.to_str().unwrap();
    let writer = Writer::reconnecting(edited.env.connector(), |n| WRITES.replace("{n}", &n.to_string()));
    let follow = |report: &str, title: &str| {
        let all = printed(report, title);
        assert!(!all.is_empty(), "{report}");
        all.iter().for_each(|printed| printed.run(&edited.env, &edited.env.postgres_server));
        if all.iter().any(Printed::restarts) {
            edited.env.restart_postgres(true, || {});
        }
    };
    let failing = walferry(&["check", "-f", file]).exits(1).finds("FAILURE", "source", "wal_level");
    follow(&failing.finds("FAILURE", "source", "replication slot").text(), "To fix:");

    edited.env.admin("SELECT pg_create_logical_replication_slot('of_another', 'test_decoding')");
    let reader = Reader::start(&edited.env, "of_another", &[]);
    let failing = walferry(&["check", "-f", file]).exits(1).finds("FAILURE", "source", "walsender");
    follow(&failing.text(), "To fix:");
    let read = "SELECT count(*) FROM pg_stat_replication";
    eventually("the other program to be connected again", || edited.env.source_value(read) == "1");

    const LIMIT: &str = "max_slot_wal_keep_size";
    let report = walferry(&["check", "-f", file]).exits(0).finds("warning", "source", LIMIT).text();
    follow(&report, "To consider:");
    let report = until("the limit", || {
        let report = walferry(&["check", "-f", file]).exits(0).text();
        (!warns(&report, LIMIT)).then_some(report)
    });
    assert!(printed(&report, "To consider:").is_empty(), "{report}");
    let run = edited.start();
    edited.ends_equal(run, writer);
    drop(reader);
}

/// If the source is a standby, statements that change its catalog are for the primary, and settings that each
/// server has locally are for the standby.
#[test]
fn the_primary_of_a_standby_is_changed() {
    crate::needs_own_server!();
    let env = TestEnv::on(Arc::new(Server::postgres(Pg::V18, &[])), Server::shared_clickhouse());
    let role = env.database.clone();
    env.admin(&format!(
        "{TABLE}; CREATE TABLE keyed (id int NOT NULL, n int); CREATE UNIQUE INDEX keyed_by_id ON keyed (id); INSERT INTO keyed VALUES (1, 1);
        CREATE TABLE filtered (id int PRIMARY KEY, n int); INSERT INTO filtered SELECT i, i FROM generate_series(1, 20) i;
        CREATE TABLE hidden (id int PRIMARY KEY, n int); INSERT INTO hidden VALUES (1, 1), (2, 2);
        ALTER TABLE hidden ENABLE ROW LEVEL SECURITY; ALTER TABLE hidden FORCE ROW LEVEL SECURITY;
        CREATE UNLOGGED TABLE light (id int PRIMARY KEY); INSERT INTO light VALUES (1);
        CREATE TABLE ordered (id int PRIMARY KEY, n int); INSERT INTO ordered VALUES (1, 1);
        GRANT SELECT ON keyed, filtered, hidden, ordered TO {role}; ALTER ROLE {role} NOREPLICATION"
    ));
    let standby = Standby::with(&env.postgres_server, "standby", &[]);
    standby.until_replayed(env.lsn());
    let mut mirror = env.mirror(&["t", "keyed", "filtered", "hidden", "light", "ordered"]);
    mirror.table(2)["where"] = "n > 7".into();
    mirror.table(5)["engine"] = json!({"orderBy": ["n", "id"]});
    let edited = EditedMirror::of(env, mirror, standby.server.clone());
    let writer = Writer::start(edited.env.connect_admin(), |n| WRITES.replace("{n}", &n.to_string()));
    let check = || walferry(&["check", "-f", edited.file.to_str().unwrap()]);

    let settings = ["hot_standby_feedback", "max_slot_wal_keep_size"];
    let report = check().exits(1).text();
    assert!(settings.iter().all(|setting| warns(&report, setting)), "{report}");
    printed(&report, "To consider:").iter().for_each(|printed| edited.run_printed(printed));
    eventually("the standby's settings", || {
        let report = check().text();
        !settings.iter().any(|setting| warns(&report, setting))
    });
    edited.fix();

    // The publication exists, and is broken in every way that `check` finds.
    let publication = edited.env.source_value("SELECT pubname FROM pg_publication");
    edited.env.admin(&format!(
        "ALTER PUBLICATION {publication} SET (publish = 'insert'); COMMENT ON PUBLICATION {publication} IS NULL;
        ALTER PUBLICATION {publication} DROP TABLE ONLY t, ONLY keyed; ALTER PUBLICATION {publication} ADD TABLE ONLY keyed WHERE (id > 5)"
    ));
    edited.until_replayed();
    check().exits(1);
    edited.fix();

    let mut run = edited.start();
    slot_made(&edited.env, &mut run);
    run.until_streaming();
    // A published table loses its replica identity: the application's statements fail until the owner removes
    // it from the publication at the primary.
    edited.env.admin("DROP INDEX keyed_by_id; ALTER TABLE keyed ADD PRIMARY KEY (id); ALTER TABLE keyed REPLICA IDENTITY NOTHING");
    let failure = failed_for(&mut run, "keyed", Reason::SourceReplicaIdentityMissing);
    let mut run = edited.follow(run, &failure.steps, "");
    edited.env.admin("UPDATE keyed SET n = 2");
    let steps = run.until_status("the steps for the primary", |status| {
        Some(advice(status, Some("keyed"))).filter(|steps| !steps.is_empty())
    });
    let run = edited.follow(run, &steps, "");
    edited.ends_equal(run, writer);
}

/// Only the owner can change the publication: each change is made as the role that the remedy names, and
/// takes effect without a restart.
#[test]
fn the_owner_changes_the_publication() {
    let env = TestEnv::new(Pg::V18);
    let role = format!("{}_least", env.database);
    env.sql(&format!("{TABLE}; CREATE TABLE added (id int PRIMARY KEY); INSERT INTO added VALUES (1)"));
    env.admin(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'least-test'; GRANT SELECT ON t, added TO {role}"
    ));
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[0].1 = json!({"username": role, "password": "least-test"});
    let mut edited = EditedMirror::new(env, mirror);
    let writer = writing(&edited);
    edited.fix();
    let mut run = edited.start();
    run.until_streaming();
    run.stop();

    let tables = edited.mirror.mirror["spec"]["tables"].as_array_mut().unwrap();
    tables.push(json!({"schema": "public", "name": "added"}));
    run = edited.start_changed();
    let failure = failed_for(&mut run, "added", Reason::SourcePrivilegeMissing);
    assert!(!failure.sql(Side::Source).is_empty(), "{failure:?}");
    run = edited.follow(run, &failure.steps, "");
    run.until_streaming();
    run.stop();

    edited.mirror.table(0)["where"] = "id % 5 <> 0".into();
    edited.mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.t"});
    run = edited.start_changed();
    let failure = failed_for(&mut run, "t", Reason::SourcePublicationUnusable);
    assert!(!failure.sql(Side::Source).is_empty(), "{failure:?}");
    let run = edited.follow(run, &failure.steps, "");
    edited.ends_equal(run, writer);
    edited.env.admin(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}
