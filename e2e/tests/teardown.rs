//! `walferry teardown` removes what a Mirror has where it was made, and says what is left to do where it can't.

use crate::support::{Lab, Mirror, Outcome, Pg};

/// The slots and publications of a database.
fn left(lab: &Lab) -> String {
    lab.source_value(
        "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) || ' slots, '
            || (SELECT count(*) FROM pg_publication) || ' publications'",
    )
}

/// The records of Mirrors at the destination.
fn records(lab: &Lab) -> String {
    lab.target_value("SELECT count() > 0 FROM _walferry_state FINAL WHERE value != ''")
}

/// The same Mirror, with the source of another lab.
fn moved(mirror: &Mirror, to: &Lab) -> Mirror {
    let there = to.mirror(&["t"]);
    let mut moved = mirror.clone();
    moved.postgres = there.postgres;
    moved.secrets[0] = there.secrets[0].clone();
    moved
}

#[track_caller]
fn refuses(lab: &Lab, moved: &Mirror) -> Outcome {
    let made_at = format!("were made at 127.0.0.1:{} in database {}", lab.postgres_port, lab.database);
    let outcome = lab.command("teardown", moved, &[]).exits(1).says(&[&made_at, "Point the peer"]);
    assert_eq!((left(lab).as_str(), records(lab).as_str()), ("1 slots, 1 publications", "1"));
    outcome
}

/// The peer names another server, and another database of the same server, by the time that the Mirror goes: nothing there is taken for
/// its slot, and what is at the first one is not forgotten.
#[test]
fn at_another_server_or_database() {
    let lab = Lab::new(Pg::V18);
    let (server, database) = (Lab::new(Pg::V14), Lab::new(Pg::V18));
    for lab in [&lab, &server, &database] {
        lab.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    }
    let mirror = lab.mirror(&["t"]);
    lab.catch_up(&mirror);
    refuses(&lab, &moved(&mirror, &server));
    refuses(&lab, &moved(&mirror, &database));
    // Under another name it is the same server.
    let mut renamed = mirror.clone();
    renamed.postgres["spec"]["postgres"]["host"] = "localhost".into();
    lab.command("teardown", &renamed, &[]).exits(0);
    assert_eq!((left(&lab).as_str(), records(&lab).as_str()), ("0 slots, 0 publications", "0"));
}

/// The statements that the refusal prints do what they are for.
#[test]
fn by_hand_at_the_server_where_it_was_made() {
    let (lab, server) = (Lab::new(Pg::V18), Lab::new(Pg::V14));
    lab.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mirror = lab.mirror(&["t"]);
    lab.catch_up(&mirror);
    let said = refuses(&lab, &moved(&mirror, &server)).text();
    let statements = said.split("run there: ").nth(1).unwrap().lines().next().unwrap();
    lab.sql(statements);
    assert_eq!(left(&lab), "0 slots, 0 publications");
}
