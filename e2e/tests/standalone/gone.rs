//! Tables that go, or leave the publication, while they are mirrored: they fail alone, the others stream.

use crate::{
    on_both,
    support::{Mirror, Pg, Run, TestEnv},
};

const TABLES: &str =
    "CREATE TABLE stays (id int PRIMARY KEY); CREATE TABLE goes (id int PRIMARY KEY, v text);
    INSERT INTO stays VALUES (1); INSERT INTO goes VALUES (1, 'a')";

/// The one table has failed for this reason, and the other one goes on.
#[track_caller]
fn fails_alone(env: &TestEnv, run: &mut Run, reason: &str, words: &[&str]) {
    let message = run.until_failed("goes");
    for word in words {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(run.table("goes")["reason"], reason);
    env.sql("INSERT INTO stays SELECT max(id) + 1 FROM stays");
    env.settle(run);
    env.assert_table("stays", "id", "id");
    assert_eq!(run.condition("Ready").unwrap().1, "StreamingWithFailedTables");
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
    fails_alone(&env, &mut run, "SourceTableDropped", &["dropped at the source", "walferry.dev/resync"]);
    run.stop();
    // It stays failed, and keeps nobody else from starting.
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, "SourceTableDropped", &["dropped at the source"]);
    run.stop();
}

fn dropped_while_down(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    env.catch_up(&mirror);
    // One of the same name is another table.
    env.sql("DROP TABLE goes; INSERT INTO stays VALUES (2)");
    env.command("check", &mirror, &[]).exits(0).says(&["warning", "public.goes", "dropped at the source"]);
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, "SourceTableDropped", &["dropped at the source"]);
    run.stop();
}

fn made_again_while_down(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    env.catch_up(&mirror);
    env.sql("DROP TABLE goes; CREATE TABLE goes (id int PRIMARY KEY, v text); INSERT INTO goes VALUES (7, 'other')");
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, "SourceTableDropped", &["dropped at the source"]);
    run.stop();
    assert_eq!(env.target("SELECT id, v FROM goes FINAL"), "1\ta\n", "its rows are another table's");
}

fn taken_out_of_the_publication(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    let mut run = env.streaming(&mirror);
    let publication = run.status()["publicationName"].as_str().unwrap().to_owned();
    env.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE goes"));
    fails_alone(&env, &mut run, "SourceNotPublished", &[&publication, "walferry.dev/resync"]);
    run.stop();
    env.command("check", &mirror, &[]).exits(1).says(&[
        "warning",
        "public.goes",
        "no longer in the publication",
    ]);
    // Not even this brings back what was missed.
    env.sql(&format!("ALTER PUBLICATION {publication} ADD TABLE goes"));
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, "SourceNotPublished", &[&publication]);
    run.stop();
}

fn renamed_while_running(pg: Pg) {
    let (env, mirror) = mirrored(pg);
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TABLE goes RENAME TO went; INSERT INTO went VALUES (2, 'b')");
    fails_alone(&env, &mut run, "SourceTableDropped", &["public.went"]);
    run.stop();
}

on_both!(
    dropped_while_running,
    dropped_while_down,
    made_again_while_down,
    taken_out_of_the_publication,
    renamed_while_running,
);

/// The same while nothing runs, with columns that change too.
#[test]
fn moved_while_down() {
    let (env, mirror) = mirrored(Pg::V18);
    env.catch_up(&mirror);
    env.sql("CREATE SCHEMA attic; ALTER TABLE goes ADD w int; ALTER TABLE goes SET SCHEMA attic; INSERT INTO attic.goes VALUES (2, 'b', 3)");
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, "SourceTableDropped", &["attic.goes", "walferry.dev/resync"]);
    run.stop();
}

/// A table whose large values are to be read again when it is gone.
#[test]
fn dropped_while_values_are_missing() {
    let (env, mirror) = mirrored(Pg::V18);
    env.sql(
        "ALTER TABLE goes ALTER v SET STORAGE EXTERNAL, ADD n int;
        INSERT INTO goes SELECT i, repeat(md5(i::text), 100), 0 FROM generate_series(2, 500) i",
    );
    env.catch_up(&mirror);
    env.sql("UPDATE goes SET n = 1 WHERE id < 100; DROP TABLE goes");
    let mut run = env.run(&mirror);
    fails_alone(&env, &mut run, "SourceTableDropped", &["dropped at the source"]);
    run.stop();
}

/// A table that goes while its copy waits for the transaction that drops it.
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
    fails_alone(&env, &mut run, "SourceTableDropped", &["dropped at the source"]);
    run.stop();
}
