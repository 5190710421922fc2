//! A table that can't be mirrored keeps no other table from it, and a Mirror that can't start no other Mirror.

use serde_json::{Value, json};

use crate::{
    on_both,
    support::{Mirror, Pg, Run, TestEnv, failed_message},
};

/// Waits until the table's failure has this reason, and gives its message.
#[track_caller]
fn until_reason(run: &mut Run, name: &str, reason: &str) -> String {
    run.until_status(&format!("{name} to fail with {reason}"), |status| {
        let tables = status["tables"].as_array()?;
        let table = tables.iter().find(|entry| entry["name"] == name)?;
        let fails = table["state"] == "Failed" && table["reason"] == reason;
        failed_message(status, name).filter(|_| fails)
    })
}

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

/// Each kind of table that can't be mirrored is told with its reason while the good ones stream, and joins once the cause is gone.
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
        ("absent", "SourceTableMissing"),
        ("nokey", "SourceReplicaIdentityMissing"),
        ("foreign_one", "SourcePrivilegeMissing"),
        ("filled", "DestinationTableConflict"),
    ] {
        until_reason(&mut run, table, reason);
    }
    for table in ["good", "fine"] {
        until_table_streams(&mut run, table);
    }
    env.sql("INSERT INTO good VALUES (1000, 'new'); UPDATE nokey SET a = 2");
    env.settle(&mut run);
    env.assert_table("good", "id, v", "id");
    let (status, reason, _) = run.condition("Ready").unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "StreamingWithFailedTables"));
    assert_eq!(env.target("SELECT v FROM filled"), "of somebody else\n", "nobody asked for its rows to go");
    // The publication is there by now, so the statement is one that adds to it.
    let message = run.until_status("the statement for a table of somebody else", |status| {
        failed_message(status, "foreign_one").filter(|message| message.contains("ALTER PUBLICATION"))
    });
    for statement in ["ALTER PUBLICATION", "GRANT SELECT"] {
        let from = message.find(statement).unwrap_or_else(|| panic!("no {statement} in {message}"));
        env.admin(message[from..].split(';').next().unwrap());
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

/// Asked to catch up, it does with what is fine, and ends with 1.
fn catching_up_fails_for_what_is_left_out(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(GOOD);
    let mut mirror = env.mirror(&["good", "fine"]);
    mirror.table(1)["columns"] = json!({"exclude": ["nothere"]});
    let until = ["--until-caught-up", "--http", "127.0.0.1:0"];
    env.command("run", &mirror, &until).exits(1).says(&["public.fine", "columns.exclude", "nothere"]);
    env.assert_table("good", "id, v", "id");
    // Corrected, it joins the slot that is there.
    mirror.table(1).as_object_mut().unwrap().remove("columns");
    env.sql("UPDATE fine SET id = 2; DELETE FROM good WHERE id = 1");
    env.catch_up(&mirror);
    env.assert_table("fine", "id", "id");
    env.verify(&mirror);
}

on_both!(bad_tables_join_once_their_cause_is_gone, catching_up_fails_for_what_is_left_out);

/// A Mirror of the file that can't start, for its log-in or for all of its tables, is shown as stalled; the other one streams.
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
        run.eventually("a Mirror to stall", || true);
        reasons.push(crate::support::until("a Mirror to stall", || stalled(&mut run, mirror)));
    }
    assert_eq!(reasons, ["AllTablesFailed", "SourceAuthenticationFailed"]);
    good.sql("INSERT INTO good VALUES (1000, 'new')");
    run.eventually("the row of the good one", || {
        good.clickhouse.query(&good.database, "EXISTS TABLE good") == "1\n"
            && good.target_value("SELECT count() FROM good FINAL WHERE id = 1000") == "1"
    });
    crate::support::until("the good one to stream", || {
        (mirror_status(&mut run, &first)["phase"] == "Streaming").then_some(())
    });
    assert_eq!(run.http("/readyz").unwrap().0, 503);
    // What kept the second one from starting goes, and it starts.
    bad.sql("CREATE TABLE absent (id int PRIMARY KEY); INSERT INTO absent VALUES (1)");
    run.eventually("the other one to start", || {
        bad.clickhouse.query(&bad.database, "EXISTS TABLE absent") == "1\n"
            && bad.target_value("SELECT count() FROM absent FINAL") == "1"
    });
    run.stop();
}

/// Nothing of the files can start: that is told at once.
#[test]
fn nothing_to_start() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = env.mirror(&["absent", "neither"]);
    env.command("run", &mirror, &["--http", "127.0.0.1:0"])
        .exits(1)
        .says(&["public.absent", "public.neither"]);
    mirror.secrets[0].1["password"] = json!("wrong");
    let text =
        env.command("run", &mirror, &["--http", "127.0.0.1:0", "--log-format", "json"]).exits(1).text();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["reason"] == "SourceAuthenticationFailed"), "{text}");
}

/// An entry that has changed stops that table alone. Undone, the table is copied again; the other one went on all the time.
#[test]
fn a_changed_entry() {
    let env = TestEnv::new(Pg::V18);
    env.sql(GOOD);
    let mirror = env.mirror(&["good", "fine"]);
    env.catch_up(&mirror);
    let mut changed = mirror.clone();
    changed.table(0)["columns"] = json!({"exclude": ["v"]});
    env.command("check", &changed, &[]).exits(1).says(&["public.good", "walferry.dev/resync"]);
    let mut run = env.run(&changed);
    until_reason(&mut run, "good", "SpecChanged");
    env.sql("INSERT INTO fine VALUES (2); INSERT INTO good VALUES (1000, 'kept back'); DELETE FROM good WHERE id = 1");
    run.eventually("the other table's row", || env.target_value("SELECT count() FROM fine FINAL") == "2");
    run.stop();
    assert_eq!(env.target_value("SELECT count() FROM good FINAL WHERE v = 'kept back'"), "0");
    env.catch_up(&mirror);
    env.assert_table("good", "id, v", "id");
    env.verify(&mirror);
    // Or it is what is asked for from now on.
    changed.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1 public.good"});
    env.catch_up(&changed);
    env.verify(&changed);
}

/// A table that left and comes back fails alone as long as its target has rows, until a resync names it.
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
    let message = until_reason(&mut run, "good", "DestinationTableConflict");
    assert!(message.contains(" public.good\"; then restart walferry"), "names that table alone: {message}");
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

/// A resync of everything does not wait for a table that can't be copied; that one is copied over its rows when it can.
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
    until_reason(&mut run, "fine", "SourceTableMissing");
    env.settle(&mut run);
    env.assert_table("good", "id, v", "id");
    env.sql("ALTER TABLE hidden RENAME TO fine");
    until_table_streams(&mut run, "fine");
    env.settle(&mut run);
    run.stop();
    env.assert_table("fine", "id", "id");
    env.verify(&mirror);
}

/// A filter on a column outside of the key: what `check` prints can be run as it stands while the application writes.
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
