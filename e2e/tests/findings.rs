//! What `walferry check` prints is run as it stands, while the application writes, until nothing is left to fix; then all is mirrored.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::support::{Lab, Mirror, Pg, Server, Writer};

/// Where a printed statement is to be run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Source,
    Destination,
}

/// The statements that `check` prints for its failures, in their order. Of several choices the first one that is statements.
fn printed(report: &str) -> Vec<(Place, String)> {
    let Some((_, fixes)) = report.split_once("\nTo fix:\n") else { return Vec::new() };
    let end = fixes.find("\n\n").unwrap_or(fixes.len());
    let mut statements: Vec<(Place, String)> = Vec::new();
    // Whether the finding at hand has had statements, and whether another choice follows them.
    let (mut place, mut had, mut over) = (None, false, false);
    for line in fixes[..end].lines() {
        let Some(line) = line.strip_prefix("    ") else {
            (place, had, over) = (None, false, false);
            continue;
        };
        match line {
            "-- at the source" => place = Some(Place::Source),
            "-- at the destination" => place = Some(Place::Destination),
            "-- or" => (place, over) = (None, over || had),
            _ if over => {}
            _ if line.starts_with("in ") => place = None,
            _ => {
                let Some(place) = place else { continue };
                had = true;
                statements.push((place, line.to_owned()));
            }
        }
    }
    statements
}

/// Something that keeps a table `t` from being mirrored.
struct Finding {
    /// Run as a superuser; `ROLE` is the Mirror's. The application writes as a superuser too.
    source: &'static str,
    /// Run at the destination.
    destination: &'static str,
    /// What the table's entry has besides its name.
    entry: fn() -> Value,
    /// What `check` calls it.
    said: &'static str,
    /// What the application does all the time; `{n}` is another number each time.
    writes: &'static str,
}

const WRITES: &str =
    "INSERT INTO t (id, n) VALUES ({n} + 10000, {n}); UPDATE t SET n = n + 1 WHERE id = {n} % 2000;
    DELETE FROM t WHERE id = {n} + 9990";
const ROWS: &str = "INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i";

#[track_caller]
fn is_mended(lab: &Lab, mirror: &Mirror, finding: &Finding) {
    let place = |sql: &str| sql.replace("ROLE", &lab.database).replace("DB", &lab.database);
    lab.admin(&place(finding.source));
    if !finding.destination.is_empty() {
        place(finding.destination).split(";\n").for_each(|statement| drop(lab.target(statement)));
    }
    let mut mirror = mirror.clone();
    for (key, value) in (finding.entry)().as_object().unwrap() {
        mirror.table(0)[key] = value.clone();
    }
    let said = finding.said;
    let report = lab.command("check", &mirror, &[]).exits(1).text();
    let failure = report.lines().find(|line| line.trim_start().starts_with("FAILURE") && line.contains(said));
    assert!(failure.is_some(), "{said} is not said:\n{report}");
    let writes = finding.writes;
    let writer = Writer::start(lab.connect_admin(), move |n| writes.replace("{n}", &n.to_string()));
    for round in 0.. {
        let outcome = lab.command("check", &mirror, &[]);
        let report = outcome.text();
        let statements = printed(&report);
        if statements.is_empty() {
            outcome.exits(0);
            break;
        }
        assert!(round < 4, "it is not mended:\n{report}");
        run(lab, &statements);
    }
    let mut run = lab.streaming(&mirror);
    assert!(writer.finish() > 0, "{said}: nothing was written");
    lab.settle(&mut run);
    run.stop();
    lab.verify(&mirror);
}

/// Runs the lines as they stand, each side's in a session of its own.
#[track_caller]
fn run(lab: &Lab, lines: &[(Place, String)]) {
    let of = |side: Place| {
        let lines = lines.iter().filter(|(place, _)| *place == side);
        lines.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    let mut session = lab.connect_admin();
    for statement in of(Place::Source).split_inclusive(";\n") {
        if let Err(error) = session.batch_execute(statement) {
            panic!("{statement}: {error:?}");
        }
    }
    for statement in of(Place::Destination).split_inclusive(";\n") {
        lab.target(statement.trim_end().trim_end_matches(';'));
    }
}

/// All of them, on one server after the other's database.
#[track_caller]
fn are_mended(findings: &[Finding]) {
    for finding in findings {
        let lab = Lab::new(Pg::V18);
        is_mended(&lab, &lab.mirror(&["t"]), finding);
    }
}

const NOTHING: fn() -> Value = || json!({});

#[test]
fn privileges_at_the_source() {
    are_mended(&[
        Finding {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i",
            destination: "",
            entry: NOTHING,
            said: "may not read it",
            writes: WRITES,
        },
        Finding {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE; ALTER DATABASE DB OWNER TO postgres",
            destination: "",
            entry: NOTHING,
            said: "publication",
            writes: WRITES,
        },
    ]);
}

#[test]
fn replica_identities() {
    are_mended(&[
        Finding {
            source: "CREATE TABLE t (id int, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE",
            destination: "",
            entry: NOTHING,
            said: "replica identity",
            writes: WRITES,
        },
        Finding {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE",
            destination: "",
            entry: || json!({"engine": {"orderBy": ["n", "id"]}}),
            said: "order",
            writes: WRITES,
        },
        Finding {
            source: "CREATE TABLE t (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
                CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (5000); CREATE TABLE t_2 PARTITION OF t DEFAULT;
                INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i; ALTER TABLE t_1 REPLICA IDENTITY NOTHING; ALTER TABLE t_2 REPLICA IDENTITY NOTHING;
                ALTER TABLE t OWNER TO ROLE; ALTER TABLE t_1 OWNER TO ROLE; ALTER TABLE t_2 OWNER TO ROLE",
            destination: "",
            entry: NOTHING,
            said: "replica identity",
            writes: WRITES,
        },
        Finding {
            source: "CREATE TABLE t (id int, n int) PARTITION BY RANGE (id);
                CREATE TABLE t_1 PARTITION OF t FOR VALUES FROM (0) TO (5000); CREATE TABLE t_2 PARTITION OF t DEFAULT;
                INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE; ALTER TABLE t_1 OWNER TO ROLE; ALTER TABLE t_2 OWNER TO ROLE",
            destination: "",
            entry: NOTHING,
            said: "replica identity",
            writes: WRITES,
        },
        Finding {
            source: "CREATE TABLE t (id int PRIMARY KEY DEFERRABLE, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
                ALTER TABLE t OWNER TO ROLE",
            destination: "",
            entry: NOTHING,
            said: "deferrable",
            // It relies on the key being deferrable.
            writes: "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE t SET id = 3 - id WHERE id IN (1, 2); COMMIT",
        },
    ]);
}

#[test]
fn tables_that_are_not_logged() {
    are_mended(&[Finding {
        source: "CREATE UNLOGGED TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
            ALTER TABLE t OWNER TO ROLE",
        destination: "",
        entry: NOTHING,
        said: "unlogged",
        writes: WRITES,
    }]);
}

#[test]
fn targets_in_the_way() {
    const SOURCE: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, i FROM generate_series(1, 2000) i;
        ALTER TABLE t OWNER TO ROLE";
    are_mended(&[
        Finding {
            source: SOURCE,
            destination: "CREATE TABLE t (id Int32, n Nullable(Int32), _walferry_version UInt64, _walferry_deleted UInt8)
                ENGINE = ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id;
                INSERT INTO t VALUES (77, 1, 1, 0)",
            entry: NOTHING,
            said: "rows",
            writes: WRITES,
        },
        Finding {
            source: SOURCE,
            destination: "CREATE TABLE t (id Int32, n Nullable(Int32)) ENGINE = MergeTree ORDER BY id",
            entry: NOTHING,
            said: "engine",
            writes: WRITES,
        },
    ]);
}

/// Grants to a user who may only read. The test's users are those of a file, so there the grants are written.
#[test]
fn privileges_at_the_destination() {
    let lab = Lab::on(Server::shared_postgres(Pg::V18), Arc::new(Server::clickhouse(&[])));
    lab.sql(&format!("CREATE TABLE t (id int PRIMARY KEY, n int); {ROWS}"));
    let mut mirror = lab.mirror(&["t"]);
    mirror.secrets[1].1 = json!({"username": "reader", "password": "reader-test"});
    let report = lab.command("check", &mirror, &[]).exits(1).text();
    let statements = printed(&report);
    assert!(!statements.is_empty(), "{report}");
    let grants: String = statements
        .iter()
        .map(|(_, line)| format!("<query>{}</query>", line.strip_suffix(" TO `reader`;").unwrap()))
        .collect();
    let file = lab.clickhouse_server.folder.join("users.xml");
    let users = std::fs::read_to_string(&file).unwrap();
    let (before, after) = users.split_once("<reader>").unwrap();
    let users = format!("{before}<reader>{}", after.replacen("</grants>", &format!("{grants}</grants>"), 1));
    lab.restart_clickhouse(|| std::fs::write(&file, users).unwrap());
    lab.command("check", &mirror, &[]).exits(0);
    let writer = Writer::start(lab.connect(), |n| WRITES.replace("{n}", &n.to_string()));
    let mut run = lab.streaming(&mirror);
    assert!(writer.finish() > 0);
    lab.settle(&mut run);
    run.stop();
    lab.verify(&mirror);
}
