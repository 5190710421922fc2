//! Stored rows change their text without a row in the stream: labels and fields of types, generated columns
//! that become ordinary ones, defaults of columns that the target already has, and types of columns that were
//! just added.

use crate::{
    on_both,
    support::{Pg, Run, TestEnv},
};

/// One change of a table of its own, whose rows must be equal on both sides afterwards.
struct Case {
    table: &'static str,
    /// The table with its rows.
    create: &'static str,
    /// What a user does to the target beforehand.
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
    // Only one of the two columns leads to the type, through the row type of a table.
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
    // No row follows, and the column is renamed in the same transaction.
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
    // The types of new columns are altered before walferry reads the catalog: the streamed rows have the
    // former text.
    Case {
        table: "new_label",
        create: "CREATE TYPE flavour AS ENUM ('sweet', 'sour'); CREATE TABLE new_label (id int PRIMARY KEY)",
        target: "",
        change: "BEGIN; ALTER TABLE new_label ADD a flavour; COMMIT; BEGIN; INSERT INTO new_label VALUES (1, 'sour'); COMMIT;
            BEGIN; ALTER TYPE flavour RENAME VALUE 'sour' TO 'tart'; COMMIT; BEGIN; ALTER TABLE new_label ALTER a SET STATISTICS 7, ALTER a SET DEFAULT 'tart'; COMMIT",
        columns: ("id, a", "id, a"),
    },
    Case {
        table: "new_type",
        create: "CREATE TABLE new_type (id int PRIMARY KEY)",
        target: "",
        change: "BEGIN; CREATE TYPE gear AS ENUM ('a', 'b'); CREATE DOMAIN gears AS gear[]; ALTER TABLE new_type ADD a gears; COMMIT; BEGIN; INSERT INTO new_type VALUES (1, '{a,b}'); COMMIT;
            BEGIN; ALTER TYPE gear RENAME VALUE 'a' TO 'c'; COMMIT",
        columns: ("id, array_to_string(a, ',')", "id, arrayStringConcat(a, ',')"),
    },
    // All of it is one transaction, in which a savepoint may have a transaction ID of its own.
    Case {
        table: "new_in_one",
        create: "CREATE TABLE new_in_one (id int PRIMARY KEY)",
        target: "",
        change: "BEGIN; CREATE TYPE pace AS ENUM ('slow', 'fast'); ALTER TABLE new_in_one ADD a pace; INSERT INTO new_in_one VALUES (1, 'slow'); ALTER TYPE pace RENAME VALUE 'slow' TO 'steady'; COMMIT",
        columns: ("id, a", "id, a"),
    },
    Case {
        table: "new_in_savepoint",
        create: "CREATE TYPE side AS ENUM ('left', 'right'); CREATE TABLE new_in_savepoint (id int PRIMARY KEY)",
        target: "",
        change: "BEGIN; CREATE TABLE other_side (id int); SAVEPOINT s; ALTER TABLE new_in_savepoint ADD a side; RELEASE s; INSERT INTO new_in_savepoint VALUES (1, 'left');
            ALTER TYPE side RENAME VALUE 'left' TO 'port'; COMMIT",
        columns: ("id, a", "id, a"),
    },
    Case {
        table: "new_field",
        create: "CREATE TYPE point2 AS (x int, y int); CREATE TABLE new_field (id int PRIMARY KEY)",
        target: "",
        change: "BEGIN; ALTER TABLE new_field ADD a point2; COMMIT; BEGIN; INSERT INTO new_field VALUES (1, '(1,2)'); COMMIT; BEGIN; ALTER TYPE point2 ADD ATTRIBUTE z int; COMMIT",
        columns: ("id, a", "id, a"),
    },
    Case {
        table: "new_without_field",
        create: "CREATE TYPE inner_row AS (x int, y int); CREATE TYPE outer_row AS (i inner_row); CREATE TABLE new_without_field (id int PRIMARY KEY)",
        target: "",
        change: "BEGIN; ALTER TABLE new_without_field ADD a outer_row[]; COMMIT; BEGIN; INSERT INTO new_without_field VALUES (1, ARRAY[ROW(ROW(1, 2)::inner_row)::outer_row]); COMMIT;
            BEGIN; ALTER TYPE inner_row DROP ATTRIBUTE x; COMMIT",
        columns: ("id, array_to_string(a, ';')", "id, arrayStringConcat(a, ';')"),
    },
    // The target's existing rows have the former label.
    Case {
        table: "new_default",
        create: "CREATE TYPE size AS ENUM ('s', 'm'); CREATE TABLE new_default (id int PRIMARY KEY); INSERT INTO new_default VALUES (1)",
        target: "",
        change: "BEGIN; ALTER TABLE new_default ADD a size DEFAULT 'm'; COMMIT; BEGIN; INSERT INTO new_default VALUES (2, 's'); COMMIT; BEGIN; ALTER TYPE size RENAME VALUE 'm' TO 'medium'; COMMIT",
        columns: ("id, a", "id, a"),
    },
    Case {
        table: "new_in_part",
        create: "CREATE TYPE phase AS ENUM ('new', 'full'); CREATE TABLE new_in_part (id int PRIMARY KEY) PARTITION BY RANGE (id);
            CREATE TABLE new_in_part_1 PARTITION OF new_in_part FOR VALUES FROM (0) TO (100)",
        target: "",
        change: "BEGIN; ALTER TABLE new_in_part ADD a phase; COMMIT; BEGIN; INSERT INTO new_in_part VALUES (1, 'full'); COMMIT; BEGIN; ALTER TYPE phase RENAME VALUE 'full' TO 'whole'; COMMIT",
        columns: ("id, a", "id, a"),
    },
    // Elements of box arrays are not separated by commas.
    Case {
        table: "area",
        create: "CREATE DOMAIN spot AS box; CREATE TABLE area (id int PRIMARY KEY, s spot[]); INSERT INTO area VALUES (1, '{(3,4),(1,2);(7,8),(5,6)}')",
        target: "",
        change: "ALTER TABLE area ADD b box DEFAULT '(3,4),(1,2)', ADD c box[] DEFAULT '{(3,4),(1,2);(7,8),(5,6)}', ADD d text DEFAULT 'a,\"b', ADD e text DEFAULT '';
            INSERT INTO area VALUES (2, '{(3,4),(1,2)}', '(7,8),(5,6)', '{(3,4),(1,2)}', 'x', 'y')",
        columns: ("id, s, b, c, d, e", "id, s, b, c, d, e"),
    },
];

fn create(env: &TestEnv) -> crate::support::Mirror {
    CASES.iter().for_each(|case| env.sql(case.create));
    env.mirror(&CASES.iter().map(|case| case.table).collect::<Vec<_>>())
}

fn change(env: &TestEnv) {
    for case in CASES {
        if !case.target.is_empty() {
            env.target(case.target);
        }
        env.sql(case.change);
    }
}

#[track_caller]
fn assert_equal(env: &TestEnv, run: &mut Run) {
    env.settle(run);
    for Case { table, columns: (source, target), .. } in CASES {
        run.eventually(&format!("{table} to be the same on both sides"), || {
            env.source(&format!("SELECT {source} FROM {table} ORDER BY 1"))
                == env.target(&format!(
                    "SELECT {target} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY 1"
                ))
        });
    }
    run.until_streaming();
}

fn while_it_streams(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = create(&env);
    let mut run = env.streaming(&mirror);
    change(&env);
    assert_equal(&env, &mut run);
    run.stop();
    env.verify(&mirror);
}

fn while_it_is_down(pg: Pg) {
    let env = TestEnv::new(pg);
    let mirror = create(&env);
    env.catch_up(&mirror);
    change(&env);
    let mut run = env.run(&mirror);
    assert_equal(&env, &mut run);
    run.stop();
    env.verify(&mirror);
}

on_both!(while_it_streams, while_it_is_down, types_that_were_altered_before);

/// How often table t was copied again automatically.
fn recopies(run: &mut Run) -> u64 {
    run.table("t")["resyncs"]["count"].as_u64().unwrap()
}

/// An added label, changed fields of other types, and settings of a type change no stored value: nothing is
/// copied again.
#[test]
fn what_changes_no_value() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN moods AS mood[]; CREATE TYPE pair AS (a int, m mood); CREATE TYPE other AS (a int);
        CREATE TABLE t (id int PRIMARY KEY, m moods, p pair, n numeric); CREATE TABLE u (id int PRIMARY KEY, o other);
        INSERT INTO t VALUES (1, '{sad}', '(1,sad)')",
    );
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TYPE mood ADD VALUE 'glad'");
    env.sql(
        "ALTER DOMAIN moods SET NOT NULL; ALTER DOMAIN moods ADD CHECK (cardinality(VALUE) < 9); ALTER TYPE pair RENAME ATTRIBUTE a TO b;
        ALTER TYPE other ADD ATTRIBUTE b int; GRANT USAGE ON TYPE pair TO PUBLIC; ALTER TYPE mood RENAME TO temper; ALTER TABLE t ALTER n SET STATISTICS 5; INSERT INTO t VALUES (2, '{glad,sad}', '(2,glad)')",
    );
    env.settle(&mut run);
    // A Relation message with other columns makes walferry read the catalog soon.
    env.sql("ALTER TABLE t ADD c int; INSERT INTO t (id, m, c) VALUES (3, '{}', 7)");
    env.settle(&mut run);
    std::thread::sleep(std::time::Duration::from_secs(2));
    let columns = ("id, array_to_string(m, ','), p, c", "id, arrayStringConcat(m, ','), p, c");
    env.assert_same(
        &format!("SELECT {} FROM t ORDER BY 1", columns.0),
        &format!("SELECT {} FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY 1", columns.1),
    );
    assert_eq!(run.table("t")["state"], "Streaming");
    assert_eq!(recopies(&mut run), 0, "{:#}", run.status());
    run.stop();
}

/// Types that are created together with a column, or altered before it is added, in each form that migrations
/// use.
fn types_that_were_altered_before(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1); CREATE TYPE old AS ENUM ('a', 'b'); CREATE TYPE pair AS (x int, y int)",
    );
    // In a transaction in which ALTER TYPE is not the first command.
    env.sql("CREATE TABLE before (id int); ALTER TYPE old ADD VALUE 'c'");
    env.sql("ALTER TYPE old RENAME VALUE 'a' TO 'aa'");
    env.sql("ALTER TYPE pair ADD ATTRIBUTE z int");
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    env.sql(
        "CREATE TYPE made AS ENUM ('x', 'y'); CREATE DOMAIN domain_of_made AS made; CREATE TYPE row_of_made AS (m made, n int);
        ALTER TABLE t ADD a made DEFAULT 'x', ADD b domain_of_made, ADD c row_of_made, ADD d made[]",
    );
    env.sql(
        "DO $$ BEGIN CREATE TYPE made_in_block AS ENUM ('x'); CREATE TYPE row_in_block AS (n int); EXCEPTION WHEN duplicate_object THEN NULL; END $$;
        ALTER TABLE t ADD e made_in_block, ADD f row_in_block",
    );
    env.sql("INSERT INTO t VALUES (2, 'y', 'x', '(x,1)', '{x,y}', 'x', '(3)')");
    env.settle(&mut run);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(run.table("t")["state"], "Streaming");
    assert_eq!(recopies(&mut run), 0, "{:#}", run.status());
    // A type that was altered in the transaction before may look as if it was altered since, so one re-copy
    // is allowed, and no more.
    env.sql("ALTER TABLE t ADD g old, ADD h pair");
    env.sql("INSERT INTO t VALUES (3, 'y', 'x', '(x,1)', '{x,y}', 'x', '(3)', 'aa', '(1,2,3)')");
    env.settle(&mut run);
    std::thread::sleep(std::time::Duration::from_secs(2));
    env.settle(&mut run);
    run.until_streaming();
    let columns = "id, a, b, c, coalesce(array_to_string(d, ','), ''), e, f, g, h";
    env.assert_same(
        &format!("SELECT {columns} FROM t ORDER BY 1"),
        &format!(
            "SELECT {} FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY 1",
            columns.replace("array_to_string", "arrayStringConcat")
        ),
    );
    let copied = recopies(&mut run);
    assert!(copied <= 1, "{:#}", run.status());
    env.sql("ALTER TABLE t ADD i int; INSERT INTO t (id, i) VALUES (4, 1)");
    env.settle(&mut run);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(recopies(&mut run), copied, "{:#}", run.status());
    run.stop();
    env.verify(&mirror);
}

/// The new column has another type when walferry reads the catalog, and that is a domain over the type whose
/// label its row was sent with.
#[test]
fn a_new_column_of_another_type_over_an_altered_one() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN moods AS mood; CREATE TABLE t (id int PRIMARY KEY)",
    );
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    env.sql("ALTER TABLE t ADD a mood");
    env.sql("INSERT INTO t VALUES (1, 'sad')");
    env.settle(&mut run);
    env.sql("ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'");
    env.sql("ALTER TABLE t ALTER a TYPE moods");
    run.eventually("the label of now", || env.target("SELECT id, a FROM t FINAL") == "1\tblue\n");
    run.until_streaming();
    run.stop();
    env.verify(&mirror);
}

/// Without a key, sums over such a column must be right too. Since PostgreSQL 18 REPLICA IDENTITY FULL
/// accepts no generated columns.
#[test]
fn a_generated_column_of_a_table_without_a_key() {
    crate::needs_own_server!();
    let env = TestEnv::new(Pg::V14);
    env.sql(
        "CREATE TABLE sums (n int, g int GENERATED ALWAYS AS (n * 2) STORED); ALTER TABLE sums REPLICA IDENTITY FULL;
        INSERT INTO sums (n) SELECT generate_series(1, 100)",
    );
    let mirror = env.mirror(&["sums"]);
    let mut run = env.streaming(&mirror);
    env.sql("DELETE FROM sums WHERE n = 1; INSERT INTO sums (n) VALUES (7)");
    env.sql("ALTER TABLE sums ALTER g DROP EXPRESSION; INSERT INTO sums VALUES (7, 1000); DELETE FROM sums WHERE n = 2");
    env.settle(&mut run);
    run.eventually("the same sums", || {
        let target = env
            .clickhouse
            .try_query(&env.database, "SELECT sum(g * _walferry_sign), sum(_walferry_sign) FROM sums FINAL");
        target.is_ok_and(|target| target == env.source("SELECT sum(g), count(*) FROM sums"))
    });
    run.stop();
    env.verify(&mirror);
}
