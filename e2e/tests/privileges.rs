//! The rights that docs/security.md asks for are enough for a Mirror's whole life, on both sides.

use serde_json::json;

use crate::{
    on_both,
    support::{Lab, Mirror, Pg},
};

/// A role with the documented rights; the user at the tests' ClickHouse has no other ones anyway. The tables belong to the application's role.
fn least(lab: &Lab) -> Mirror {
    let name = &lab.database;
    lab.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 500) i");
    lab.admin(&format!(
        "CREATE ROLE {name}_least LOGIN REPLICATION PASSWORD 'least-test';
        GRANT USAGE ON SCHEMA public TO {name}_least; GRANT SELECT ON public.t TO {name}_least"
    ));
    let mut mirror = lab.mirror(&["t"]);
    mirror.secrets[0].1 = json!({"username": format!("{name}_least"), "password": "least-test"});
    mirror
}

/// Copies, streams, follows a new column, and copies anew when asked to.
fn lives(lab: &Lab, mirror: &mut Mirror, round: i32) {
    lab.command("check", mirror, &[]).exits(0);
    let mut run = lab.streaming(mirror);
    lab.sql(&format!(
        "ALTER TABLE t ADD c{round} int DEFAULT 7; UPDATE t SET v = 'w' WHERE id < 9; DELETE FROM t WHERE id = {round}"
    ));
    lab.sql(&format!("INSERT INTO t (id, v) VALUES ({}, 'new')", 1000 + round));
    lab.settle(&mut run);
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": round.to_string()});
    lab.catch_up(mirror);
    lab.assert_table("t", &format!("id, v, c{round}"), "id");
    lab.verify(mirror);
}

fn clean_up(lab: &Lab) {
    let name = &lab.database;
    lab.admin(&format!("DROP OWNED BY {name}_least; DROP ROLE {name}_least"));
}

/// walferry makes and keeps the publication, as a member of the role that owns the tables.
fn with_the_owners_role(pg: Pg) {
    let lab = Lab::new(pg);
    let mut mirror = least(&lab);
    let name = &lab.database;
    lab.admin(&format!("GRANT CREATE ON DATABASE {name} TO {name}_least; GRANT {name} TO {name}_least"));
    lives(&lab, &mut mirror, 1);
    lab.command("teardown", &mirror, &[]).exits(0);
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(lab.source_value(left), "0");
    clean_up(&lab);
}

/// The owner makes the publication once, by the statements that `check` prints.
fn with_a_publication_made_by_the_owner(pg: Pg) {
    let lab = Lab::new(pg);
    let mut mirror = least(&lab);
    let said = lab.command("check", &mirror, &[]).exits(1).text();
    let statement = |beginning: &str| {
        let from = said.find(beginning).unwrap_or_else(|| panic!("no {beginning} in {said}"));
        said[from..].split(';').next().unwrap().to_owned()
    };
    lab.sql(&format!("{}; {}", statement("CREATE PUBLICATION"), statement("COMMENT ON PUBLICATION")));
    lives(&lab, &mut mirror, 1);
    // The slot goes; the publication is the owner's to drop.
    let outcome = lab.command("teardown", &mirror, &[]);
    outcome.says(&["publication"]);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    assert_eq!(lab.source_value(slots), "0");
    clean_up(&lab);
}

on_both!(with_the_owners_role, with_a_publication_made_by_the_owner);
