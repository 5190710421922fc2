//! What stored rows show becomes another thing without a row in the stream: labels and fields inside of types, generated columns that
//! become ordinary ones, defaults of columns that the target has already.

use crate::{
    on_both,
    support::{Lab, Pg, Run},
};

/// One change of a table of its own, whose rows must be the same on both sides afterwards.
struct Case {
    table: &'static str,
    /// The table with its rows.
    create: &'static str,
    /// What is done to the target beforehand, by somebody else.
    target: &'static str,
    change: &'static str,
    /// The columns at the source, and at the target.
    columns: (&'static str, &'static str),
}

const CASES: &[Case] = &[
    Case {
        table: "labels",
        create: "CREATE TYPE stage AS ENUM ('draft', 'open'); CREATE DOMAIN d AS stage; CREATE DOMAIN dd AS d; CREATE DOMAIN da AS stage[];
            CREATE TYPE step AS (at int, s stage); CREATE TYPE stagerange AS RANGE (subtype = stage);
            CREATE TABLE labels (id int PRIMARY KEY, a stage, b stage[], c d, d dd, e da, f d[], g step, h step[], i stagerange, j stagemultirange);
            INSERT INTO labels VALUES (1, 'open', '{open}', 'open', 'open', '{open}', '{open}', '(1,open)', '{\"(1,open)\"}', '[draft,open]', '{[open,open]}')",
        target: "",
        change: "ALTER TYPE stage RENAME VALUE 'open' TO 'in_progress'",
        columns: (
            "id, a, array_to_string(b, ','), c, d, array_to_string(e, ','), array_to_string(f, ','), g, array_to_string(h, ';'), i, j",
            "id, a, arrayStringConcat(b, ','), c, d, arrayStringConcat(e, ','), arrayStringConcat(f, ','), g, arrayStringConcat(h, ';'), i, j",
        ),
    },
    // Only one of the two columns leads to the type, through a table's row.
    Case {
        table: "rows_of_rows",
        create: "CREATE TYPE colour AS ENUM ('red', 'blue'); CREATE TABLE paint (c colour, n int); CREATE DOMAIN paints AS paint[];
            CREATE TABLE rows_of_rows (id int PRIMARY KEY, p paint, q paints); INSERT INTO rows_of_rows VALUES (1, '(red,1)', '{\"(blue,2)\",\"(red,3)\"}')",
        target: "",
        change: "ALTER TYPE colour RENAME VALUE 'red' TO 'crimson'",
        columns: ("id, p, array_to_string(q, ';')", "id, p, arrayStringConcat(q, ';')"),
    },
    Case {
        table: "fields",
        create: "CREATE TYPE pair AS (a int, b text); CREATE DOMAIN pairs AS pair[]; CREATE TYPE holder AS (p pair);
            CREATE TABLE fields (id int PRIMARY KEY, p pair, q pairs, h holder); INSERT INTO fields VALUES (1, '(1,x)', '{\"(2,y)\"}', ROW(ROW(3, 'z')::pair))",
        target: "",
        change: "ALTER TYPE pair ADD ATTRIBUTE c int; ALTER TYPE pair DROP ATTRIBUTE a",
        columns: ("id, p, array_to_string(q, ';'), h", "id, p, arrayStringConcat(q, ';'), h"),
    },
    Case {
        table: "person",
        create: "CREATE TABLE person (id int PRIMARY KEY, cm numeric(6,2), inch numeric(6,2) GENERATED ALWAYS AS (cm / 2.54) STORED);
            INSERT INTO person (id, cm) VALUES (1, 151), (2, 170)",
        target: "",
        change: "ALTER TABLE person ALTER COLUMN inch DROP EXPRESSION; INSERT INTO person VALUES (6, 180, 99.99)",
        columns: ("id, cm, inch", "id, toDecimalString(cm, 2), toDecimalString(inch, 2)"),
    },
    // No row follows, and the column has another name by then.
    Case {
        table: "person_at_rest",
        create: "CREATE TABLE person_at_rest (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (n * 2) STORED); INSERT INTO person_at_rest (id, n) VALUES (1, 5)",
        target: "",
        change: "BEGIN; ALTER TABLE person_at_rest ALTER g DROP EXPRESSION; ALTER TABLE person_at_rest RENAME g TO h; ALTER TABLE person_at_rest ADD i int DEFAULT 3; COMMIT",
        columns: ("id, n, h, i", "id, n, h, i"),
    },
    Case {
        table: "tiers",
        create: "CREATE TABLE tiers (id int PRIMARY KEY); INSERT INTO tiers VALUES (1), (2)",
        target: "ALTER TABLE tiers ADD COLUMN tier Nullable(String), ADD COLUMN own Nullable(Int32) DEFAULT 9",
        change: "ALTER TABLE tiers ADD COLUMN tier text DEFAULT 'free', ADD COLUMN own int; INSERT INTO tiers VALUES (3, 'paid', 1)",
        columns: ("id, tier, own", "id, tier, own"),
    },
    Case {
        table: "tiers_at_rest",
        create: "CREATE TABLE tiers_at_rest (id int PRIMARY KEY); INSERT INTO tiers_at_rest VALUES (1)",
        target: "ALTER TABLE tiers_at_rest ADD COLUMN tier Nullable(String)",
        change: "ALTER TABLE tiers_at_rest ADD COLUMN tier text DEFAULT 'free'",
        columns: ("id, tier", "id, tier"),
    },
    // Elements of these are not separated by commas.
    Case {
        table: "area",
        create: "CREATE DOMAIN spot AS box; CREATE TABLE area (id int PRIMARY KEY, s spot[]); INSERT INTO area VALUES (1, '{(3,4),(1,2);(7,8),(5,6)}')",
        target: "",
        change: "ALTER TABLE area ADD b box DEFAULT '(3,4),(1,2)', ADD c box[] DEFAULT '{(3,4),(1,2);(7,8),(5,6)}', ADD d text DEFAULT 'a,\"b', ADD e text DEFAULT '';
            INSERT INTO area VALUES (2, '{(3,4),(1,2)}', '(7,8),(5,6)', '{(3,4),(1,2)}', 'x', 'y')",
        columns: ("id, s, b, c, d, e", "id, s, b, c, d, e"),
    },
];

fn create(lab: &Lab) -> crate::support::Mirror {
    CASES.iter().for_each(|case| lab.sql(case.create));
    lab.mirror(&CASES.iter().map(|case| case.table).collect::<Vec<_>>())
}

fn change(lab: &Lab) {
    for case in CASES {
        if !case.target.is_empty() {
            lab.target(case.target);
        }
        lab.sql(case.change);
    }
}

#[track_caller]
fn assert_equal(lab: &Lab, run: &mut Run) {
    lab.settle(run);
    for Case { table, columns: (source, target), .. } in CASES {
        run.eventually(&format!("{table} to be the same on both sides"), || {
            lab.source(&format!("SELECT {source} FROM {table} ORDER BY 1"))
                == lab.target(&format!(
                    "SELECT {target} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY 1"
                ))
        });
    }
    run.until_streaming();
}

fn while_it_streams(pg: Pg) {
    let lab = Lab::new(pg);
    let mirror = create(&lab);
    let mut run = lab.streaming(&mirror);
    change(&lab);
    assert_equal(&lab, &mut run);
    run.stop();
    lab.verify(&mirror);
}

fn while_it_is_down(pg: Pg) {
    let lab = Lab::new(pg);
    let mirror = create(&lab);
    lab.catch_up(&mirror);
    change(&lab);
    let mut run = lab.run(&mirror);
    assert_equal(&lab, &mut run);
    run.stop();
    lab.verify(&mirror);
}

on_both!(while_it_streams, while_it_is_down);

/// A label that is added, other fields of other types, and settings of a type change no value: nothing is copied again.
#[test]
fn what_changes_no_value() {
    let lab = Lab::new(Pg::V18);
    lab.sql(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN moods AS mood[]; CREATE TYPE pair AS (a int, m mood); CREATE TYPE other AS (a int);
        CREATE TABLE t (id int PRIMARY KEY, m moods, p pair, n numeric); CREATE TABLE u (id int PRIMARY KEY, o other);
        INSERT INTO t VALUES (1, '{sad}', '(1,sad)')",
    );
    let mirror = lab.mirror(&["t"]);
    let mut run = lab.streaming(&mirror);
    lab.sql("ALTER TYPE mood ADD VALUE 'glad'");
    lab.sql(
        "ALTER DOMAIN moods SET NOT NULL; ALTER DOMAIN moods ADD CHECK (cardinality(VALUE) < 9); ALTER TYPE pair RENAME ATTRIBUTE a TO b;
        ALTER TYPE other ADD ATTRIBUTE b int; GRANT USAGE ON TYPE pair TO PUBLIC; ALTER TYPE mood RENAME TO temper; ALTER TABLE t ALTER n SET STATISTICS 5; INSERT INTO t VALUES (2, '{glad,sad}', '(2,glad)')",
    );
    lab.settle(&mut run);
    // The stream's word of other columns has the catalog looked at, soon.
    lab.sql("ALTER TABLE t ADD c int; INSERT INTO t (id, m, c) VALUES (3, '{}', 7)");
    lab.settle(&mut run);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let columns = ("id, array_to_string(m, ','), p, c", "id, arrayStringConcat(m, ','), p, c");
    lab.assert_same(
        &format!("SELECT {} FROM t ORDER BY 1", columns.0),
        &format!("SELECT {} FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY 1", columns.1),
    );
    assert_eq!(run.table("t")["state"], "Streaming");
    let log = run.log();
    assert!(!log.contains("copied anew") && !log.contains("CopiedAnew"), "{log}");
    run.stop();
}

/// Without a key, the sums over such a column must be right too. (Since PostgreSQL 18 FULL takes no generated columns.)
#[test]
fn a_generated_column_of_a_table_without_a_key() {
    let lab = Lab::new(Pg::V14);
    lab.sql(
        "CREATE TABLE sums (n int, g int GENERATED ALWAYS AS (n * 2) STORED); ALTER TABLE sums REPLICA IDENTITY FULL;
        INSERT INTO sums (n) SELECT generate_series(1, 100)",
    );
    let mirror = lab.mirror(&["sums"]);
    let mut run = lab.streaming(&mirror);
    lab.sql("DELETE FROM sums WHERE n = 1; INSERT INTO sums (n) VALUES (7)");
    lab.sql("ALTER TABLE sums ALTER g DROP EXPRESSION; INSERT INTO sums VALUES (7, 1000); DELETE FROM sums WHERE n = 2");
    lab.settle(&mut run);
    run.eventually("the same sums", || {
        let target = lab
            .clickhouse
            .try_query(&lab.database, "SELECT sum(g * _walferry_sign), sum(_walferry_sign) FROM sums FINAL");
        target.is_ok_and(|target| target == lab.source("SELECT sum(g), count(*) FROM sums"))
    });
    run.stop();
    lab.verify(&mirror);
}
