//! The publication never makes the application's statements fail for long, and a publication that sends less
//! than the spec asks for never goes unnoticed.

use walferry::fault::{Reason, Side};

use crate::support::{Mirror, Pg, Run, TestEnv, failed_for, stalled_for};

/// Tables that lose their replica identity, each in another way: name, definition, what breaks it, and what
/// fixes it.
const LOSSES: [(&str, &str, &str, &str); 6] = [
    (
        "nothing",
        "(id int PRIMARY KEY, v text)",
        "ALTER TABLE nothing REPLICA IDENTITY NOTHING",
        "ALTER TABLE nothing REPLICA IDENTITY DEFAULT",
    ),
    (
        "keyless",
        "(id int PRIMARY KEY, v text)",
        "ALTER TABLE keyless DROP CONSTRAINT keyless_pkey",
        "ALTER TABLE keyless ADD PRIMARY KEY (id)",
    ),
    (
        "deferred",
        "(id int PRIMARY KEY, v text)",
        "ALTER TABLE deferred DROP CONSTRAINT deferred_pkey, ADD PRIMARY KEY (id) DEFERRABLE",
        "ALTER TABLE deferred DROP CONSTRAINT deferred_pkey, ADD PRIMARY KEY (id)",
    ),
    (
        "indexed",
        "(id int NOT NULL, v text); CREATE UNIQUE INDEX by_id ON indexed (id); ALTER TABLE indexed REPLICA IDENTITY USING INDEX by_id",
        "DROP INDEX by_id",
        "CREATE UNIQUE INDEX by_id ON indexed (id); ALTER TABLE indexed REPLICA IDENTITY USING INDEX by_id",
    ),
    (
        "filtered",
        "(id int, v text, PRIMARY KEY (id, v))",
        "ALTER TABLE filtered DROP CONSTRAINT filtered_pkey, ADD PRIMARY KEY (id)",
        "ALTER TABLE filtered REPLICA IDENTITY FULL",
    ),
    (
        "computed",
        "(id int PRIMARY KEY, v text); ALTER TABLE computed REPLICA IDENTITY FULL",
        "ALTER TABLE computed ADD g int GENERATED ALWAYS AS (id * 2) STORED",
        "ALTER TABLE computed REPLICA IDENTITY DEFAULT",
    ),
];

fn tables(env: &TestEnv) -> Mirror {
    for (name, definition, _, _) in LOSSES {
        env.sql(&format!(
            "CREATE TABLE {name} {definition}; INSERT INTO {name} SELECT i, 'v' FROM generate_series(1, 9) i"
        ));
    }
    env.sql(
        "CREATE TABLE parts (id int PRIMARY KEY, v text) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
        INSERT INTO parts SELECT i, 'v' FROM generate_series(1, 9) i; CREATE TABLE stays (id int PRIMARY KEY, v text)",
    );
    let names: Vec<_> = LOSSES.iter().map(|loss| loss.0).chain(["parts", "stays"]).collect();
    let mut mirror = env.mirror(&names);
    mirror.table(4)["where"] = "v <> 'hidden'".into();
    mirror
}

fn lose(env: &TestEnv) {
    LOSSES.iter().for_each(|(_, _, loss, _)| env.sql(loss));
    env.sql("ALTER TABLE parts_1 REPLICA IDENTITY NOTHING; INSERT INTO stays VALUES (1, 'x')");
}

/// Each table has left the publication and failed with that reason; the application's statements succeed, and
/// the other table streams.
#[track_caller]
fn taken_out(env: &TestEnv, run: &mut Run, mirror: &Mirror) {
    for name in LOSSES.iter().map(|loss| loss.0).chain(["parts"]) {
        failed_for(run, name, Reason::SourceReplicaIdentityMissing).resyncs_only(name);
        let published =
            format!("SELECT count(*) FROM pg_publication_tables WHERE tablename IN ('{name}', '{name}_1')");
        assert_eq!(env.source_value(&published), "0", "{name}");
        env.sql(&format!("UPDATE {name} SET v = 'w' WHERE id < 5; DELETE FROM {name} WHERE id = 2; INSERT INTO {name} (id, v) VALUES (50, 'new')"));
    }
    env.sql("INSERT INTO stays VALUES (2, 'y')");
    env.settle(run);
    env.assert_table("stays", "id, v", "id");
    env.command("check", mirror, &[]).exits(1).finds("warning", "public.nothing", "replica identity");
}

#[test]
fn a_table_that_loses_its_identity() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = tables(&env);
    let mut run = env.streaming(&mirror);
    lose(&env);
    taken_out(&env, &mut run, &mirror);
    run.stop();
    LOSSES.iter().for_each(|(_, _, _, fix)| env.sql(fix));
    env.sql("ALTER TABLE parts_1 REPLICA IDENTITY DEFAULT");
    env.target("DROP TABLE filtered SYNC");
    mirror.mirror["metadata"]["annotations"] = serde_json::json!({"walferry.dev/resync": "1"});
    let mut run = env.streaming(&mirror);
    for name in LOSSES.iter().map(|loss| loss.0).chain(["parts"]) {
        env.sql(&format!("UPDATE {name} SET v = 'x' WHERE id = 5; DELETE FROM {name} WHERE id = 6"));
    }
    env.settle(&mut run);
    for name in LOSSES.iter().map(|loss| loss.0).chain(["parts"]) {
        env.assert_table(name, "id, v", "id");
    }
    run.stop();
    env.verify(&mirror);
}

/// A start removes such a table from the publication before anything else, so that the application can write
/// again.
#[test]
fn an_identity_that_is_lost_while_it_is_down() {
    let env = TestEnv::new(Pg::V18);
    let mirror = tables(&env);
    env.catch_up(&mirror);
    lose(&env);
    assert!(env.connect().batch_execute("UPDATE nothing SET v = 'no' WHERE id = 1").is_err());
    let mut run = env.run(&mirror);
    taken_out(&env, &mut run, &mirror);
    run.stop();
}

/// A table is published as soon as it is added to the Mirror, long before its first row is copied.
#[test]
fn an_identity_that_is_lost_before_it_is_copied() {
    let env = TestEnv::new(Pg::V18);
    let mut mirror = tables(&env);
    env.catch_up(&env.mirror(&["stays"]));
    env.sql("CREATE TABLE gate (id int PRIMARY KEY)");
    let gate = serde_json::json!({"schema": "public", "name": "gate"});
    mirror.mirror["spec"]["tables"].as_array_mut().unwrap().insert(0, gate);
    let mut writer = env.connect();
    writer.batch_execute("BEGIN; INSERT INTO gate VALUES (1)").unwrap();
    let mut run = env.run(&mirror);
    run.until_status("the copy to wait for the writer", |status| {
        let tables = status["tables"].as_array()?;
        let gate = tables.iter().find(|table| table["name"] == "gate")?;
        (gate["reason"] == "WaitingForTransactions").then_some(())
    });
    lose(&env);
    taken_out(&env, &mut run, &mirror);
    writer.batch_execute("COMMIT").unwrap();
    run.eventually("the copy of what is left", || env.target_value("SELECT count() FROM gate FINAL") == "1");
    run.stop();
}

/// A publication of another owner can only be changed by that owner: the remedy has the statement.
#[test]
fn a_publication_of_another_owner() {
    let env = TestEnv::new(Pg::V18);
    let role = &env.database;
    env.admin(&format!("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'v'); GRANT SELECT ON t TO {role}"));
    let mirror = env.mirror(&["t"]);
    let advice = env.command("check", &mirror, &[]).exits(1).text();
    let made = advice.lines().map(str::trim);
    let made: Vec<_> = made
        .filter(|line| line.starts_with("CREATE PUBLICATION") || line.starts_with("COMMENT ON"))
        .collect();
    env.admin(&made.join("\n"));
    let mut run = env.streaming(&mirror);
    env.admin("ALTER TABLE t REPLICA IDENTITY NOTHING");
    let failure = failed_for(&mut run, "t", Reason::SourceReplicaIdentityMissing);
    assert!(env.connect_admin().batch_execute("UPDATE t SET v = 'no'").is_err());
    env.admin(&failure.sql(Side::Source));
    env.admin("UPDATE t SET v = 'w'");
    run.stop();
}

/// A changed row filter, a column list, a table removed and added again, partitions published under their own
/// names: each is reported, none is followed silently.
#[test]
fn changed_by_hand() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE stays (id int PRIMARY KEY, v text)");
    let names = ["filtered", "listed", "back"];
    for name in names {
        env.sql(&format!(
            "CREATE TABLE {name} (id int PRIMARY KEY, v text); INSERT INTO {name} VALUES (1, 'v')"
        ));
    }
    let mirror = env.mirror(&["filtered", "listed", "back", "stays"]);
    let mut run = env.streaming(&mirror);
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&format!(
        "ALTER PUBLICATION {publication} DROP TABLE filtered, listed, back; ALTER PUBLICATION {publication} ADD TABLE filtered WHERE (id > 5), listed (id), back;
        INSERT INTO filtered VALUES (2, 'hidden'); INSERT INTO listed VALUES (2, 'hidden'); INSERT INTO stays VALUES (1, 'x')"
    ));
    for name in names {
        failed_for(&mut run, name, Reason::SourceNotPublished).resyncs_only(name);
    }
    env.settle(&mut run);
    env.assert_table("stays", "id, v", "id");
    run.stop();
    let mut again = mirror.clone();
    again.mirror["metadata"]["annotations"] = serde_json::json!({"walferry.dev/resync": "1"});
    let mut run = env.streaming(&again);
    names.iter().for_each(|name| env.assert_table(name, "id, v", "id"));
    env.sql(&format!("ALTER PUBLICATION {publication} SET (publish_via_partition_root = false)"));
    let failure = stalled_for(&mut run, Reason::SourcePublicationChanged);
    assert_eq!(failure.resyncs(), Some(Vec::new()), "{failure:?}");
    run.stop();
}
