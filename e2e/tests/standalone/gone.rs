//! Tables that are dropped, or leave the publication, while they are mirrored fail alone, and the others
//! stream.

use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Failure, Mirror, Pg, Run, TestEnv, failed_for},
};

const TABLES: &str =
    "CREATE TABLE stays (id int PRIMARY KEY); CREATE TABLE goes (id int PRIMARY KEY, v text);
    INSERT INTO stays VALUES (1); INSERT INTO goes VALUES (1, 'a')";

/// The one table has failed for this reason and can be resynced, and the other one continues.
#[track_caller]
fn fails_alone(env: &TestEnv, run: &mut Run, reason: Reason) -> Failure {
    let failure = failed_for(run, "goes", reason);
    assert_eq!(failure.resyncs(), Some(vec!["public.goes".to_owned()]), "{failure:?}");
    env.sql("INSERT INTO stays SELECT max(id) + 1 FROM stays");
    env.settle(run);
    env.assert_table("stays", "id", "id");
    assert_eq!(run.condition("Ready").unwrap().1, "StreamingWithFailedTables");
    failure
}

fn mirrored(pg: Pg) -> (TestEnv, Mirror) {
    let env = TestEnv::new(pg);
    env.sql(TABLES);
    let mirror = env.mirror(&["stays", "goes"]);
    (env, mirror)
}

fn dropped_while_running(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO goes VALUES (2, 'b'); DROP TABLE goes");
    fails_alone(&env, &mut run, Reason::SourceTableDropped);
    run.stop();
    // After a restart it is still failed, and the other table starts.
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, Reason::SourceTableDropped);
    run.stop();
}

fn dropped_while_down(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    env.catch_up(&mirror);
    env.sql("DROP TABLE goes; INSERT INTO stays VALUES (2)");
    env.command("check", &mirror, &[]).exits(0).finds("warning", "public.goes", "table");
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, Reason::SourceTableDropped);
    run.stop();
}

/// A new table of the same name is another table.
fn recreated_while_down(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    env.catch_up(&mirror);
    env.sql("DROP TABLE goes; CREATE TABLE goes (id int PRIMARY KEY, v text); INSERT INTO goes VALUES (7, 'other')");
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, Reason::SourceTableDropped);
    run.stop();
    assert_eq!(env.target("SELECT id, v FROM goes FINAL"), "1\ta\n", "the rows of the former table");
}

fn dropped_from_the_publication(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    let mut run = env.streaming(&mirror);
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE goes"));
    let failure = fails_alone(&env, &mut run, Reason::SourceNotPublished);
    assert!(failure.message.contains(&publication), "{failure:?}");
    run.stop();
    env.command("check", &mirror, &[]).exits(1).finds("warning", "public.goes", "publication");
    // Adding it again does not bring back the changes that were not sent.
    env.sql(&format!("ALTER PUBLICATION {publication} ADD TABLE goes"));
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, Reason::SourceNotPublished);
    run.stop();
}

fn renamed_while_running(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TABLE goes RENAME TO went; INSERT INTO went VALUES (2, 'b')");
    let failure = fails_alone(&env, &mut run, Reason::SourceTableDropped);
    assert!(failure.message.contains("public.went"), "{failure:?}");
    run.stop();
}

on_both!(
    dropped_while_running,
    dropped_while_down,
    recreated_while_down,
    dropped_from_the_publication,
    renamed_while_running,
);

/// A table that moved to another schema, and changed its columns, while nothing ran.
#[test]
fn moved_while_down() {
    let (env, mirror) = mirrored(Pg::V18);
    env.catch_up(&mirror);
    env.sql("CREATE SCHEMA attic; ALTER TABLE goes ADD w int; ALTER TABLE goes SET SCHEMA attic; INSERT INTO attic.goes VALUES (2, 'b', 3)");
    let mut run = env.run(&mirror);
    let failure = fails_alone(&env, &mut run, Reason::SourceTableDropped);
    assert!(failure.message.contains("attic.goes"), "{failure:?}");
    run.stop();
}

/// A table is dropped before its unchanged large values are fetched.
#[test]
fn dropped_before_values_are_fetched() {
    let (env, mirror) = mirrored(Pg::V18);
    env.sql(
        "ALTER TABLE goes ALTER v SET STORAGE EXTERNAL, ADD n int;
        INSERT INTO goes SELECT i, repeat(md5(i::text), 100), 0 FROM generate_series(2, 500) i",
    );
    env.catch_up(&mirror);
    env.sql("UPDATE goes SET n = 1 WHERE id < 100; DROP TABLE goes");
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, Reason::SourceTableDropped);
    run.stop();
}

/// A table is dropped by the transaction that its copy waits for.
#[test]
fn dropped_before_it_is_copied() {
    let (env, both) = mirrored(Pg::V18);
    let mut first = both.clone();
    first.mirror["spec"]["tables"].as_array_mut().unwrap().pop();
    env.catch_up(&first);
    let mut writer = env.connect();
    writer.batch_execute("BEGIN; INSERT INTO goes VALUES (9, 'x')").unwrap();
    let mut run = env.run(&both);
    run.until_status("the copy to wait for the writer", |status| {
        let tables = status["tables"].as_array()?;
        let table = tables.iter().find(|table| table["name"] == "goes")?;
        (table["reason"] == "WaitingForTransactions").then_some(())
    });
    writer.batch_execute("DROP TABLE goes; COMMIT").unwrap();
    fails_alone(&env, &mut run, Reason::SourceTableDropped);
    run.stop();
}
