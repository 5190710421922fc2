//! A table that can't be mirrored doesn't stop the others, and a Mirror that can't start doesn't either.

use serde_json::{Value, json};
use walferry::fault::{Reason, Side};

use crate::{
    on_both,
    support::{Mirror, Pg, Run, TestEnv, UNTIL_CAUGHT_UP, failed_for, until},
};

#[track_caller]
fn until_table_streams(run: &mut Run, table: &str) {
    run.until_status(&format!("{table} to stream"), |status| {
        let tables = status["tables"].as_array()?;
        tables.iter().any(|entry| entry["name"] == table && entry["state"] == "Streaming").then_some(())
    });
}

/// The Mirrors of `/status`, by name.
fn mirror_status(run: &mut Run, mirror: &Mirror) -> Value {
    let Some((200, body)) = run.http("/status") else { return Value::Null };
    let status: Value = serde_json::from_str(&body).unwrap();
    let mirrors = status["mirrors"].as_array().unwrap();
    let name = &mirror.mirror["metadata"]["name"];
    mirrors.iter().find(|found| found["name"] == *name).cloned().unwrap_or_default()
}

const GOOD: &str = "CREATE TABLE good (id int PRIMARY KEY, v text); INSERT INTO good SELECT i, 'v' FROM generate_series(1, 100) i;
    CREATE TABLE fine (id int PRIMARY KEY); INSERT INTO fine VALUES (1);";

/// Each table that can't be mirrored fails with its own reason while the good ones stream, and is added once
/// its cause is gone.
fn bad_tables_join_once_their_cause_is_gone(pg: Pg) {
    let env = TestEnv::new(pg);
    let role = &env.database;
    env.sql(GOOD);
    env.sql(
        "CREATE TABLE nokey (a int NOT NULL); INSERT INTO nokey VALUES (1); CREATE TABLE filled (id int PRIMARY KEY, v text);
        INSERT INTO filled VALUES (1, 'v')",
    );
    env.admin(
        "CREATE TABLE foreign_one (id int PRIMARY KEY, v text); INSERT INTO foreign_one VALUES (1, 'v')",
    );
    env.target(
        "CREATE TABLE filled (id Int32, v Nullable(String), _walferry_version UInt64, _walferry_deleted UInt8)
        ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id",
    );
    env.target("INSERT INTO filled VALUES (7, 'of somebody else', 1, 0)");
    let mirror = env.mirror(&["good", "absent", "nokey", "foreign_one", "filled", "fine"]);
    let mut run = env.run(&mirror);
    for (table, reason) in [
        ("absent", Reason::SourceTableMissing),
        ("nokey", Reason::SourceReplicaIdentityMissing),
        ("foreign_one", Reason::SourcePrivilegeMissing),
        ("filled", Reason::DestinationTableConflict),
    ] {
        failed_for(&mut run, table, reason);
    }
    for table in ["good", "fine"] {
        until_table_streams(&mut run, table);
    }
    env.sql("INSERT INTO good VALUES (1000, 'new'); UPDATE nokey SET a = 2");
    env.settle(&mut run);
    env.assert_table("good", "id, v", "id");
    let (status, reason, _) = run.condition("Ready").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "StreamingWithFailedTables"));
    assert_eq!(
        env.target("SELECT v FROM filled"),
        "of somebody else\n",
        "the rows of an unknown target stay"
    );
    // The publication exists by now, so the remedy adds the table to it instead of creating one.
    let sql = until("the statement that adds the table to the publication", || {
        let sql = failed_for(&mut run, "foreign_one", Reason::SourcePrivilegeMissing).sql(Side::Source);
        sql.contains("ALTER PUBLICATION").then_some(sql)
    });
    for statement in ["ALTER PUBLICATION", "GRANT SELECT"] {
        let from = sql.find(statement).unwrap_or_else(|| panic!("no {statement} in {sql}"));
        env.admin(sql[from..].split(';').next().unwrap());
    }
    env.sql("CREATE TABLE absent (id int PRIMARY KEY); INSERT INTO absent VALUES (5); ALTER TABLE nokey ADD PRIMARY KEY (a)");
    env.target("TRUNCATE TABLE filled");
    run.until_streaming();
    env.sql(
        "INSERT INTO absent VALUES (6); INSERT INTO nokey VALUES (9); INSERT INTO filled VALUES (2, 'w')",
    );
    env.admin("UPDATE foreign_one SET v = 'x'");
    env.settle(&mut run);
    assert_eq!(run.table("good")["rowsCopied"], 100, "the others were copied once");
    run.stop();
    for (table, columns) in
        [("good", "id, v"), ("absent", "id"), ("foreign_one", "id, v"), ("filled", "id, v")]
    {
        env.assert_table(table, columns, "id");
    }
    env.assert_table("nokey", "a", "a");
    env.verify(&mirror);
    env.admin(&format!("REVOKE ALL ON foreign_one FROM {role}"));
}

/// `--until-caught-up` catches up with the tables that can be mirrored, and exits with 1 because of the
/// other.
fn catching_up_fails_for_what_is_left_out(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(GOOD);
    let mut mirror = env.mirror(&["good", "fine"]);
    mirror.table(1)["columns"] = json!({"exclude": ["nothere"]});
    env.command("run", &mirror, &UNTIL_CAUGHT_UP)
        .exits(1)
        .refuses("public.fine", Reason::SourceUnknownColumn)
        .says(&["columns.exclude", "nothere"]);
    env.assert_table("good", "id, v", "id");
    // Once corrected, the table is added to the existing slot.
    mirror.table(1).as_object_mut().unwrap().remove("columns");
    env.sql("UPDATE fine SET id = 2; DELETE FROM good WHERE id = 1");
    env.catch_up(&mirror);
    env.assert_table("fine", "id", "id");
    env.verify(&mirror);
}

on_both!(bad_tables_join_once_their_cause_is_gone, catching_up_fails_for_what_is_left_out);

/// Mirrors of a file that can't start, because of their credentials or of all their tables, stall; the other
/// Mirror of the file streams.
#[test]
fn other_mirrors_of_the_file() {
    let (good, bad, locked) = (TestEnv::new(Pg::V18), TestEnv::new(Pg::V18), TestEnv::new(Pg::V18));
    good.sql(GOOD);
    locked.sql(GOOD);
    let named = |env: &TestEnv, tables: &[&str]| {
        let mut mirror = env.mirror(tables);
        for (field, side) in [("sourceRef", "source"), ("destinationRef", "target")] {
            mirror.mirror["spec"][field]["name"] =
                json!(format!("{side}-{}", env.database.replace('_', "-")));
        }
        mirror.postgres["metadata"]["name"] = mirror.mirror["spec"]["sourceRef"]["name"].clone();
        mirror.clickhouse["metadata"]["name"] = mirror.mirror["spec"]["destinationRef"]["name"].clone();
        for (index, side) in ["postgres", "clickhouse"].into_iter().enumerate() {
            let name = format!("{}-{side}", env.database.replace('_', "-"));
            mirror.secrets[index].0 = name.clone();
            let peer = if index == 0 { &mut mirror.postgres } else { &mut mirror.clickhouse };
            peer["spec"][side]["credentialsSecretRef"]["name"] = json!(name);
        }
        mirror
    };
    let (first, second, mut third) =
        (named(&good, &["good"]), named(&bad, &["absent"]), named(&locked, &["good"]));
    third.secrets[0].1["password"] = json!("wrong");
    let all = [&first, &second, &third].map(Mirror::to_yaml).join("---\n");
    let mut run = Run::start(&good.write_text(&all), &[]);
    let stalled = |run: &mut Run, mirror: &Mirror| {
        let found = mirror_status(run, mirror);
        (found["phase"] == "Stalled")
            .then(|| found["failure"]["reason"].as_str().unwrap_or_default().to_owned())
    };
    let mut reasons = Vec::new();
    for mirror in [&second, &third] {
        reasons.push(until("a Mirror to stall", || stalled(&mut run, mirror)));
    }
    assert_eq!(reasons, ["AllTablesFailed", "SourceAuthenticationFailed"]);
    good.sql("INSERT INTO good VALUES (1000, 'new')");
    run.eventually("the row of the good Mirror", || {
        good.clickhouse.query(&good.database, "EXISTS TABLE good") == "1\n"
            && good.target_value("SELECT count() FROM good FINAL WHERE id = 1000") == "1"
    });
    until("the good Mirror to stream", || {
        (mirror_status(&mut run, &first)["phase"] == "Streaming").then_some(())
    });
    assert_eq!(run.http("/readyz").unwrap().0, 503);
    // Once its table exists, the second Mirror starts.
    bad.sql("CREATE TABLE absent (id int PRIMARY KEY); INSERT INTO absent VALUES (1)");
    run.eventually("the second Mirror to start", || {
        bad.clickhouse.query(&bad.database, "EXISTS TABLE absent") == "1\n"
            && bad.target_value("SELECT count() FROM absent FINAL") == "1"
    });
    run.stop();
}

/// When no Mirror of the files can start, `run` logs the reason of each failure and exits.
#[test]
fn nothing_to_start() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = env.mirror(&["absent", "neither"]);
    let json_log = ["--http", "127.0.0.1:0", "--log-format", "json"];
    env.command("run", &mirror, &json_log)
        .exits(1)
        .refuses("public.absent", Reason::SourceTableMissing)
        .refuses("public.neither", Reason::SourceTableMissing);
    mirror.secrets[0].1["password"] = json!("wrong");
    let text = env.command("run", &mirror, &json_log).exits(1).text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["reason"] == "SourceAuthenticationFailed"), "{text}");
}

/// A changed entry stops its table alone. When the change is undone, the table is copied again; the other
/// table streams all the time.
#[test]
fn a_changed_entry() {
    let env = TestEnv::new(Pg::V18);
    env.sql(GOOD);
    let mirror = env.mirror(&["good", "fine"]);
    env.catch_up(&mirror);
    let mut changed = mirror.clone();
    changed.table(0)["columns"] = json!({"exclude": ["v"]});
    env.command("check", &changed, &[])
        .exits(1)
        .finds("FAILURE", "public.good", "table")
        .says(&["walferry.dev/resync"]);
    let mut run = env.run(&changed);
    let failure = failed_for(&mut run, "good", Reason::SpecChanged);
    assert_eq!(failure.resyncs(), Some(vec!["public.good".to_owned()]), "{failure:?}");
    env.sql("INSERT INTO fine VALUES (2); INSERT INTO good VALUES (1000, 'kept back'); DELETE FROM good WHERE id = 1");
    run.eventually("the other table's row", || env.target_value("SELECT count() FROM fine FINAL") == "2");
    run.stop();
    assert_eq!(env.target_value("SELECT count() FROM good FINAL WHERE v = 'kept back'"), "0");
    env.catch_up(&mirror);
    env.assert_table("good", "id, v", "id");
    env.verify(&mirror);
    // A resync instead applies the changed entry.
    changed.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.good"});
    env.catch_up(&changed);
    env.verify(&changed);
}

/// A table that was removed and is added again fails alone while its target has rows, until a resync names
/// it.
#[test]
fn a_table_that_comes_back() {
    let env = TestEnv::new(Pg::V18);
    env.sql(GOOD);
    let mut mirror = env.mirror(&["good", "fine"]);
    env.catch_up(&mirror);
    env.sql("ALTER TABLE good RENAME v TO w");
    env.catch_up(&mirror);
    env.catch_up(&env.mirror(&["fine"]));
    env.sql("DELETE FROM good WHERE id < 50; UPDATE good SET w = 'while out' WHERE id = 60; INSERT INTO fine VALUES (2)");
    let mut run = env.run(&mirror);
    let failure = failed_for(&mut run, "good", Reason::DestinationTableConflict);
    assert_eq!(failure.resyncs(), Some(vec!["public.good".to_owned()]), "{failure:?}");
    env.settle(&mut run);
    env.assert_table("fine", "id", "id");
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.good"});
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO good VALUES (2000, 'after')");
    env.settle(&mut run);
    run.stop();
    env.assert_same(
        "SELECT id, w FROM good ORDER BY id",
        "SELECT id, v FROM good FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    env.verify(&mirror);
}

/// A resync of all tables does not wait for one that can't be copied. That one is copied over its rows once
/// it exists again.
#[test]
fn a_resync_of_everything_with_a_table_that_is_missing() {
    let env = TestEnv::new(Pg::V18);
    env.sql(GOOD);
    let mut mirror = env.mirror(&["good", "fine"]);
    env.catch_up(&mirror);
    env.sql("ALTER TABLE fine RENAME TO hidden; DELETE FROM hidden; INSERT INTO hidden VALUES (8); DELETE FROM good WHERE id = 1");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    let mut run = env.run(&mirror);
    until_table_streams(&mut run, "good");
    failed_for(&mut run, "fine", Reason::SourceTableMissing);
    env.settle(&mut run);
    env.assert_table("good", "id, v", "id");
    env.sql("ALTER TABLE hidden RENAME TO fine");
    until_table_streams(&mut run, "fine");
    env.settle(&mut run);
    run.stop();
    env.assert_table("fine", "id", "id");
    env.verify(&mirror);
}

/// A filter on a column outside of the key: the statements that `check` prints can be run while the
/// application writes, and none of its statements fails.
#[test]
fn a_filter_outside_of_the_key() {
    let env = TestEnv::new(Pg::V18);
    let role = &env.database;
    env.admin(&format!(
        "CREATE TABLE t (id int PRIMARY KEY, status text); INSERT INTO t VALUES (1, 'open'), (2, 'done');
        CREATE TABLE fine (id int PRIMARY KEY, n int); INSERT INTO fine VALUES (1, 1); GRANT SELECT ON t, fine TO {role}"
    ));
    let mut mirror = env.mirror(&["t", "fine"]);
    mirror.table(0)["where"] = json!("status = 'open'");
    for round in 0.. {
        let outcome = env.command("check", &mirror, &[]);
        let text = outcome.text();
        let printed = text.split_once("To fix:").map(|(_, rest)| rest.split("To consider:").next().unwrap());
        let Some(printed) = printed else { break };
        assert!(round < 4, "{text}");
        let lines = printed.lines().filter(|line| line.starts_with("    "));
        let statements: Vec<&str> = lines.filter(|line| !line.trim().starts_with("--")).collect();
        for statement in statements.join("\n").split_inclusive(";\n") {
            env.admin(statement);
            env.admin("UPDATE t SET status = status; UPDATE fine SET n = n + 1; DELETE FROM t WHERE id < 0");
        }
    }
    let mut run = env.streaming(&mirror);
    env.admin("UPDATE t SET status = 'open' WHERE id = 2; UPDATE t SET status = 'done' WHERE id = 1");
    env.settle(&mut run);
    run.stop();
    assert_eq!(env.target("SELECT id FROM t FINAL WHERE _walferry_deleted = 0"), "2\n");
    env.verify(&mirror);
}
