//! Resync: a Mirror that can't continue gets both sides equal again, and readers never see an empty table.

use nix::sys::signal::Signal;
use serde_json::json;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{
        Mirror, Outcome, Pg, Run, Server, TestEnv, Writer, eventually, failed_for, stalled_for, until,
    },
};

const TABLES: &str = "CREATE TABLE a (id int PRIMARY KEY, n int NOT NULL, v text); CREATE TABLE b (id int PRIMARY KEY, big text);
    ALTER TABLE b ALTER big SET STORAGE EXTERNAL;
    INSERT INTO a SELECT i, 0, 'v' FROM generate_series(1, 20000) i;
    INSERT INTO b SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 500) i;";

/// Changes that the stream will not have.
const MISSED: &str =
    "DELETE FROM a WHERE id % 3 = 0; UPDATE a SET n = 7 WHERE id % 5 = 0; DELETE FROM b WHERE id < 100;
    INSERT INTO a VALUES (100001, 1, 'missed'); UPDATE a SET id = id + 200000 WHERE id % 7 = 0";

fn with_resync(mirror: &Mirror, value: &str) -> Mirror {
    let mut mirror = mirror.clone();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": value});
    mirror
}

fn run_once(env: &TestEnv, mirror: &Mirror) -> Outcome {
    env.command("run", mirror, &["--until-caught-up", "--http", "127.0.0.1:0"])
}

/// The rows that a process copies until every table streams.
fn rows_copied(env: &TestEnv, mirror: &Mirror) -> u64 {
    let mut run = env.streaming(mirror);
    let status = run.status();
    run.stop();
    status["tables"].as_array().unwrap().iter().map(|table| table["rowsCopied"].as_u64().unwrap()).sum()
}

/// Waits until the Mirror has stalled for this reason; the remedy is a resync of every table.
#[track_caller]
fn offers_a_resync_of_all(run: &mut Run, reason: Reason) {
    let failure = stalled_for(run, reason);
    assert_eq!(failure.resyncs(), Some(Vec::new()), "{failure:?}");
}

fn drop_slot(env: &TestEnv) {
    let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()";
    eventually("the slot to be dropped", || env.connect_admin().batch_execute(drop).is_ok());
}

#[track_caller]
fn assert_equal(env: &TestEnv, mirror: &Mirror) {
    env.assert_table("a", "id, n, v", "id");
    env.assert_same(
        "SELECT id, md5(big) FROM b ORDER BY id",
        "SELECT id, lower(hex(MD5(big))) FROM b FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.verify(mirror);
}

fn slot_dropped_by_hand(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    let mirror = env.mirror(&["a", "b"]);
    env.catch_up(&mirror);
    env.sql("UPDATE a SET n = 1 WHERE id % 2 = 0");
    env.catch_up(&mirror);
    drop_slot(&env);
    env.sql(MISSED);
    run_once(&env, &mirror).exits(1).stalls(Reason::SourceSlotLost);
    // The application writes and a reader queries all the time.
    let mirror = with_resync(&mirror, "1");
    let writer = Writer::start(env.connect(), |n| {
        let id = n * 37 % 20000;
        format!(
            "UPDATE a SET n = n + 1 WHERE id BETWEEN {id} AND {id} + 5; DELETE FROM a WHERE id = {id} + 9; UPDATE b SET id = id WHERE id = {id} % 500"
        )
    });
    let mut run = env.run(&mirror);
    run.eventually("the copy", || {
        let rows: u64 = env.target_value("SELECT count() FROM a FINAL").parse().unwrap();
        assert!(rows > 10000, "a reader saw {rows} rows");
        env.target_value("SELECT count() FROM _walferry_state FINAL WHERE item = 'resync' AND value != ''")
            == "0"
            && env.source_value(
                "SELECT count(*) FROM pg_replication_slots WHERE database = current_database() AND active",
            ) == "1"
    });
    run.until_streaming();
    assert!(writer.finish() > 0);
    env.settle(&mut run);
    run.stop();
    assert_equal(&env, &mirror);
    // The same annotation value asks for no second resync: the slot stays.
    let slot = "SELECT catalog_xmin, slot_name FROM pg_replication_slots WHERE database = current_database()";
    assert!(!env.source_value(slot).is_empty());
    assert_eq!(rows_copied(&env, &mirror), 0);
    assert!(rows_copied(&env, &with_resync(&mirror, "2")) > 0);
    assert_equal(&env, &mirror);
}

fn publication_dropped(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    let mirror = env.mirror(&["a", "b"]);
    let mut run = env.streaming(&mirror);
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&format!("DROP PUBLICATION {publication}; {MISSED}"));
    offers_a_resync_of_all(&mut run, Reason::SourcePublicationChanged);
    run.stop();
    let mirror = with_resync(&mirror, "now");
    env.catch_up(&mirror);
    assert_equal(&env, &mirror);
}

/// A resync that is killed between any two steps is completed, even if the annotation is gone by then.
fn killed_at_three_points(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    let without_request = env.mirror(&["a", "b"]);
    let publication = {
        let mut run = env.streaming(&without_request);
        let name = run.status()["publicationName"].as_str().unwrap().to_owned();
        run.stop();
        name
    };
    env.sql(MISSED);
    let mirror = with_resync(&without_request, "1");
    // The slot is dropped, and the publication can't be dropped yet.
    let comment = env.source_value(&format!(
        "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = '{publication}'"
    ));
    let mut holder = env.connect();
    holder.batch_execute(&format!("BEGIN; COMMENT ON PUBLICATION {publication} IS '{comment}'")).unwrap();
    let mut run = env.run(&mirror);
    run.eventually("the wait for the publication", || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE 'DROP PUBLICATION%'";
        env.source_value(waiting) == "1"
    });
    run.kill();
    assert_eq!(slots(&env), "0");
    env.sql("DELETE FROM a WHERE id BETWEEN 1000 AND 2000");
    holder.batch_execute("ROLLBACK").unwrap();
    // Records and publication are gone, and the new slot waits for a transaction.
    holder.batch_execute("BEGIN; INSERT INTO b VALUES (1000, 'late')").unwrap();
    let mut run = env.run(&without_request);
    run.eventually("the wait for the transaction", || slots(&env) == "1");
    assert_eq!(state(&env, "source"), "");
    run.kill();
    env.sql("DELETE FROM a WHERE id BETWEEN 2000 AND 3000");
    holder.batch_execute("COMMIT").unwrap();
    // Some rows are copied.
    let mut run = env.run(&mirror);
    run.eventually("copied rows", || copied_over(&env) > 0);
    run.kill();
    env.sql("DELETE FROM a WHERE id BETWEEN 3000 AND 4000");
    env.catch_up(&mirror);
    assert_equal(&env, &mirror);
    assert_eq!(state(&env, "resync"), "");
}

fn slots(env: &TestEnv) -> String {
    env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()")
}

fn state(env: &TestEnv, item: &str) -> String {
    env.target_value(&format!("SELECT value FROM _walferry_state FINAL WHERE item = '{item}'"))
}

/// The rows that a resync has copied so far: they share one version, which is not that of a transaction.
fn copied_over(env: &TestEnv) -> u64 {
    let versions = "SELECT count() FROM a WHERE _walferry_version > 0 AND _walferry_deleted = 0 AND _walferry_version = \
                    (SELECT max(_walferry_version) FROM a)";
    env.target_value(versions).parse().unwrap()
}

/// A resync repairs every failed table, whatever its reason, without any other manual action.
fn failed_tables_are_repaired(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    env.sql("CREATE TABLE c (id int PRIMARY KEY); CREATE TABLE d (id int PRIMARY KEY); INSERT INTO c VALUES (1); INSERT INTO d VALUES (1)");
    let mirror = env.mirror(&["a", "b", "c", "d"]);
    let mut run = env.streaming(&mirror);
    // A target is dropped, a table is dropped and recreated, another table is removed from the publication.
    env.target("DROP TABLE a SYNC");
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&format!(
        "{MISSED}; DROP TABLE c; CREATE TABLE c (id int PRIMARY KEY, v text); INSERT INTO c VALUES (2, 'x'); ALTER PUBLICATION {publication} DROP TABLE d; INSERT INTO d VALUES (3)"
    ));
    for (table, reason) in [
        ("a", Reason::DestinationTableMissing),
        ("c", Reason::SourceTableDropped),
        ("d", Reason::SourceNotPublished),
    ] {
        failed_for(&mut run, table, reason).resyncs_only(table);
    }
    run.stop();
    let mirror = with_resync(&mirror, "1");
    env.command("check", &mirror, &[]).exits(0);
    env.catch_up(&mirror);
    assert_equal(&env, &mirror);
    env.assert_table("c", "id, v", "id");
    env.assert_table("d", "id", "id");
}

/// A resync that names an unknown table still copies the others and stops no changes; a warning stays until
/// the name is corrected.
#[test]
fn a_name_that_the_mirror_does_not_have() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE u (id int PRIMARY KEY); INSERT INTO t VALUES (1, 'a'), (2, 'b')");
    let mut mirror = env.mirror(&["t", "u"]);
    env.catch_up(&mirror);
    env.target("ALTER TABLE t UPDATE v = 'wrong' WHERE id = 1 SETTINGS mutations_sync = 1");
    let annotations = |value: &str| json!({"walferry.dev/resync": value});
    mirror.mirror["metadata"]["annotations"] = annotations("1 public.typo public.t");
    env.command("check", &mirror, &[]).exits(0).finds("warning", "mirror", "resync");
    for _ in 0..2 {
        let mut run = env.streaming(&mirror);
        let (status, reason, message) = run.condition("Ready").unwrap();
        assert_eq!((status.as_str(), reason.as_str()), ("True", "ResyncUnknownTable"));
        assert!(message.contains("public.typo") && !message.contains("public.t,"), "{message}");
        env.sql("INSERT INTO u SELECT coalesce(max(id), 0) + 1 FROM u");
        env.settle(&mut run);
        env.assert_table("t", "id, v", "id");
        env.assert_table("u", "id", "id");
        run.stop();
    }
    mirror.mirror["metadata"]["annotations"] = annotations("2 public.u");
    let mut run = env.streaming(&mirror);
    assert_eq!(run.condition("Ready").unwrap().1, "Streaming");
    run.stop();
    env.command("check", &mirror, &[]).exits(0);
    // A table that was in the Mirror when the resync named it, and is removed now, is no unknown name.
    mirror.mirror["spec"]["tables"].as_array_mut().unwrap().pop();
    let mut run = env.streaming(&mirror);
    assert_eq!(run.condition("Ready").unwrap().1, "Streaming");
}

on_both!(slot_dropped_by_hand, publication_dropped, killed_at_three_points, failed_tables_are_repaired);

/// The source removes WAL that the slot needs while the Mirror hangs: it stalls, and a resync recovers it.
#[test]
fn slot_invalidated() {
    crate::needs_own_server!();
    let small = ["max_slot_wal_keep_size=1MB", "max_wal_size=32MB", "min_wal_size=32MB"];
    let options: Vec<&str> = small.iter().flat_map(|option| ["-c", option]).collect();
    let env = TestEnv::on(Server::postgres(Pg::V18, &options).into(), Server::shared_clickhouse());
    env.sql(TABLES);
    env.sql("CREATE TABLE other (v text)");
    let mirror = env.mirror(&["a", "b"]);
    let mut run = env.streaming(&mirror);
    run.signal(Signal::SIGSTOP);
    env.sql(MISSED);
    until("the slot to be lost", || {
        env.sql("INSERT INTO other SELECT repeat('x', 1000) FROM generate_series(1, 20000)");
        env.admin("SELECT pg_switch_wal()");
        env.admin("CHECKPOINT");
        let status = env
            .source_value("SELECT wal_status FROM pg_replication_slots WHERE database = current_database()");
        (status == "lost").then_some(())
    });
    run.signal(Signal::SIGCONT);
    offers_a_resync_of_all(&mut run, Reason::SourceSlotInvalidated);
    assert_eq!(run.status()["slotWalStatus"], "lost");
    run.stop();
    let mut run = env.run(&mirror);
    stalled_for(&mut run, Reason::SourceSlotInvalidated);
    run.stop();
    let mirror = with_resync(&mirror, "1");
    env.catch_up(&mirror);
    assert_equal(&env, &mirror);
}

/// The destination has rows of another history with higher positions than the new source: a resync empties
/// the tables.
#[test]
fn source_replaced() {
    crate::needs_own_server!();
    let clickhouse = Server::shared_clickhouse();
    let first = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), clickhouse.clone());
    first.sql(TABLES);
    let mirror = first.mirror(&["a", "b"]);
    first.catch_up(&mirror);
    for _ in 0..8 {
        first.sql("UPDATE a SET n = n + 1 WHERE id < 100");
        first.admin("SELECT pg_switch_wal()");
    }
    first.catch_up(&mirror);
    let second = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), clickhouse);
    second.sql(TABLES);
    second.sql(MISSED);
    assert!(second.lsn() < first.lsn(), "the new source is behind");
    let mut moved = mirror.clone();
    moved.postgres["spec"]["postgres"]["port"] = second.postgres_port.into();
    moved.postgres["spec"]["postgres"]["database"] = second.database.clone().into();
    moved.secrets[0].1["username"] = second.database.clone().into();
    run_once(&first, &moved).exits(1).stalls(Reason::SourceReplaced);
    let moved = with_resync(&moved, "1");
    first.catch_up(&moved);
    first.verify(&moved);
    assert_eq!(
        first.target_value("SELECT count() FROM a FINAL"),
        second.source_value("SELECT count(*) FROM a")
    );
}

/// After a change of `where` and `columns` a resync removes what the former spec asked for and copies what
/// the present one does.
#[test]
fn spec_changed() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text, w text); INSERT INTO t SELECT i, 'v', 'w' FROM generate_series(1, 100) i");
    let mut mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    mirror.table(0)["where"] = json!("id > 50");
    mirror.table(0)["columns"] = json!({"exclude": ["w"]});
    run_once(&env, &mirror).exits(1).refuses("public.t", Reason::SpecChanged);
    let mirror = with_resync(&mirror, "1");
    env.catch_up(&mirror);
    env.assert_same(
        "SELECT id, v, NULL FROM t WHERE id > 50 ORDER BY id",
        "SELECT id, v, w FROM t FINAL ORDER BY id",
    );
    env.verify(&mirror);
    // A target column of another type is reported before anything is changed.
    let mut other = with_resync(&mirror, "2");
    other.table(0)["columns"] = json!({"types": {"v": "LowCardinality(String)"}});
    run_once(&env, &other).exits(1).refuses("public.t", Reason::DestinationTableConflict);
    env.catch_up(&mirror);
}

/// An annotation that is there at the first start asks for no second copy; a new value repeats a finished
/// copy.
#[test]
fn a_finished_copy() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLES);
    let mut mirror = with_resync(&env.mirror(&["a", "b"]), "1");
    mirror.mirror["spec"]["snapshot"] = json!({"mode": "InitialOnly"});
    env.catch_up(&mirror);
    // A second copy would have inserted each row again.
    assert_eq!(env.target_value("SELECT count() FROM a"), "20000");
    let newest = || env.target_value("SELECT max(_walferry_version) FROM a");
    let first = newest();
    env.sql(MISSED);
    env.catch_up(&with_resync(&mirror, "2"));
    assert_ne!(newest(), first);
    assert_equal(&env, &with_resync(&mirror, "2"));
    assert_eq!(slots(&env), "0");
}

/// A publication that the role doesn't own is reused.
#[test]
fn a_publication_of_another_owner() {
    let env = TestEnv::new(Pg::V18);
    let role = &env.database;
    env.admin(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i; GRANT SELECT ON t TO {role}"
    ));
    let mirror = env.mirror(&["t"]);
    let advice = env.command("check", &mirror, &[]).exits(1).text();
    let statements = advice.lines().map(str::trim);
    let statements: Vec<_> = statements
        .filter(|line| line.starts_with("CREATE PUBLICATION") || line.starts_with("COMMENT ON"))
        .collect();
    assert_eq!(statements.len(), 2, "{advice}");
    env.admin(&statements.join("\n"));
    env.catch_up(&mirror);
    let publication = env.source_value("SELECT oid FROM pg_publication");
    drop_slot(&env);
    env.admin("DELETE FROM t WHERE id % 2 = 0; UPDATE t SET v = 'w' WHERE id % 3 = 0");
    let mirror = with_resync(&mirror, "1");
    env.catch_up(&mirror);
    env.verify(&mirror);
    env.assert_table("t", "id, v", "id");
    assert_eq!(env.source_value("SELECT oid FROM pg_publication"), publication);
}

/// A resync doesn't interrupt another process of the Mirror.
#[test]
fn another_process_is_running() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLES);
    // Without this privilege a role can't see when a walsender last received a status update.
    env.admin(&format!("GRANT pg_read_all_stats TO {}", env.database));
    let mirror = env.mirror(&["a", "b"]);
    let mut first = env.streaming(&mirror);
    let mut second: Run = env.run(&with_resync(&mirror, "1"));
    second
        .until_status("the wait", |status| (status["failure"]["reason"] == "SourceSlotInUse").then_some(()));
    assert_eq!(state(&env, "resync"), "");
    env.sql("INSERT INTO a VALUES (100000, 1, 'x')");
    env.settle(&mut first);
    first.stop();
    second.until_streaming();
    env.settle(&mut second);
    second.stop();
    assert_equal(&env, &with_resync(&mirror, "1"));
}

/// Tables named after the value's first word are copied again while the others stream: the slot stays, and no
/// other table is copied.
#[test]
fn of_single_tables() {
    let env = TestEnv::new(Pg::V18);
    env.sql(TABLES);
    env.sql(
        "CREATE TABLE typed (id int PRIMARY KEY, n int); CREATE TABLE remade (id int PRIMARY KEY); CREATE TABLE back (id int PRIMARY KEY);
        CREATE TABLE filtered (id int PRIMARY KEY, v text); INSERT INTO filtered SELECT i, 'v' FROM generate_series(1, 100) i;
        INSERT INTO typed SELECT i, i FROM generate_series(1, 1000) i; INSERT INTO remade VALUES (1); INSERT INTO back VALUES (1), (2)",
    );
    let mirror = env.mirror(&["a", "b", "typed", "remade", "back", "filtered"]);
    let mut run = env.streaming(&mirror);
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&format!(
        "ALTER TABLE typed ALTER n TYPE text; INSERT INTO typed VALUES (1001, 'many'); DROP TABLE remade; CREATE TABLE remade (id int PRIMARY KEY);
        INSERT INTO remade VALUES (7); ALTER PUBLICATION {publication} DROP TABLE back; DELETE FROM back WHERE id = 1; INSERT INTO back VALUES (3)"
    ));
    for (table, reason) in [
        ("typed", Reason::SourceSchemaChanged),
        ("remade", Reason::SourceTableDropped),
        ("back", Reason::SourceNotPublished),
    ] {
        failed_for(&mut run, table, reason).resyncs_only(table);
    }
    // Changes that a failed table misses.
    env.sql("DELETE FROM typed WHERE id < 100; UPDATE typed SET n = 'none' WHERE id = 500");
    run.stop();
    let slot = "SELECT slot_name, catalog_xmin IS NOT NULL FROM pg_replication_slots WHERE database = current_database()";
    let before = env.source(slot);
    env.target("ALTER TABLE typed DROP COLUMN n");
    let unknown = with_resync(&mirror, "1 public.typo");
    env.command("check", &unknown, &[]).finds("warning", "mirror", "resync");
    let mut again = with_resync(&mirror, "2 public.typed public.remade,public.back public.filtered");
    again.table(5)["where"] = json!("id > 50");
    let writer = Writer::start(env.connect(), |n| {
        format!(
            "UPDATE typed SET n = n || '+' WHERE id = {0}; DELETE FROM typed WHERE id = {0} + 1; INSERT INTO a VALUES ({1}, 0, 'w')",
            100 + n % 800,
            30_000 + n
        )
    });
    let mut run = env.streaming(&again);
    writer.finish();
    env.settle(&mut run);
    assert_eq!(run.table("a")["rowsCopied"], 0);
    run.stop();
    assert_eq!(env.source(slot), before);
    assert_equal(&env, &again);
    env.assert_table("typed", "id, n", "id");
    env.assert_table("remade", "id", "id");
    env.assert_table("back", "id", "id");
    env.assert_same(
        "SELECT id, v FROM filtered WHERE id > 50 ORDER BY id",
        "SELECT id, v FROM filtered FINAL ORDER BY id",
    );
    // The same annotation value asks for no second resync.
    assert_eq!(rows_copied(&env, &again), 0);
}

/// Rows and records of a release whose versions were commit LSNs: no new row is written among them, and a
/// resync is the remedy.
#[test]
fn rows_of_a_release_with_other_versions() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 100) i");
    let mut mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    // That release recorded no version scheme.
    let before = env.target_value("SELECT value FROM _walferry_state FINAL WHERE item = 'source'");
    assert!(before.contains(r#","versionScheme":1"#), "{before}");
    env.target(
        r#"INSERT INTO _walferry_state SELECT * REPLACE (replaceOne(value, ',"versionScheme":1', '') AS value, version + 1 AS version)
           FROM _walferry_state FINAL WHERE item = 'source'"#,
    );
    env.target("TRUNCATE TABLE t");
    let lsn = env.lsn();
    env.target(&format!(
        "INSERT INTO t (id, v, _walferry_version, _walferry_deleted) SELECT number, 'old', {lsn} - number, 0 FROM numbers(1, 120)"
    ));
    env.sql("UPDATE t SET v = 'w' WHERE id < 9; DELETE FROM t WHERE id = 10");
    let mut run = env.run(&mirror);
    offers_a_resync_of_all(&mut run, Reason::DestinationVersionsOutdated);
    assert_eq!(env.target_value("SELECT count() FROM t WHERE v != 'old'"), "0");
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (200, 'new')");
    env.settle(&mut run);
    env.assert_table("t", "id, v", "id");
    run.stop();
}
