//! `walferry teardown` removes slot, publication and state where they were made, and prints the statements
//! that are left where it can't.

use crate::support::{Mirror, Outcome, Pg, TestEnv};

/// The number of slots and publications of a database.
fn left(env: &TestEnv) -> String {
    env.source_value(
        "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) || ' slots, '
            || (SELECT count(*) FROM pg_publication) || ' publications'",
    )
}

/// Whether the destination has records of a Mirror.
fn records(env: &TestEnv) -> String {
    env.target_value("SELECT count() > 0 FROM _walferry_state FINAL WHERE value != ''")
}

/// The same Mirror with the source of another environment.
fn moved(mirror: &Mirror, to: &TestEnv) -> Mirror {
    let there = to.mirror(&["t"]);
    let mut moved = mirror.clone();
    moved.postgres = there.postgres;
    moved.secrets[0] = there.secrets[0].clone();
    moved
}

#[track_caller]
fn refuses(env: &TestEnv, moved: &Mirror) -> Outcome {
    let made_at = format!("were made at 127.0.0.1:{} in database {}", env.postgres_port, env.database);
    let outcome = env.command("teardown", moved, &[]).exits(1).says(&[&made_at, "Point the peer"]);
    assert_eq!((left(env).as_str(), records(env).as_str()), ("1 slots, 1 publications", "1"));
    outcome
}

/// The peer names another server, or another database of the server, when the Mirror is deleted: nothing
/// there is taken for its slot, and what the first one has stays on record.
#[test]
fn at_another_server_or_database() {
    crate::needs_own_server!();
    let env = TestEnv::new(Pg::V18);
    let (server, database) = (TestEnv::new(Pg::V14), TestEnv::new(Pg::V18));
    for env in [&env, &server, &database] {
        env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    }
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    refuses(&env, &moved(&mirror, &server));
    refuses(&env, &moved(&mirror, &database));
    // Under another host name it is the same server.
    let mut renamed = mirror.clone();
    renamed.postgres["spec"]["postgres"]["host"] = "localhost".into();
    env.command("teardown", &renamed, &[]).exits(0);
    assert_eq!((left(&env).as_str(), records(&env).as_str()), ("0 slots, 0 publications", "0"));
}

/// The statements that the refusal prints remove slot and publication.
#[test]
fn by_the_statements_of_the_refusal() {
    crate::needs_own_server!();
    let (env, server) = (TestEnv::new(Pg::V18), TestEnv::new(Pg::V14));
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mirror = env.mirror(&["t"]);
    env.catch_up(&mirror);
    let refusal = refuses(&env, &moved(&mirror, &server)).text();
    let statements = refusal.split("run there: ").nth(1).unwrap().lines().next().unwrap();
    env.sql(statements);
    assert_eq!(left(&env), "0 slots, 0 publications");
}
