//! Tables of many shapes, the application's transactions on each, and the comparison of both sides.

use fastrand::Rng;

use crate::support::TestEnv;

/// A table of the workload.
pub struct Table {
    pub name: &'static str,
    /// Creates it with rows for the initial snapshot.
    pub ddl: &'static str,
    /// The compared expressions: one that means the same on both sides, or one for each side.
    columns: &'static [Expression],
    /// The replica identity, by which both sides are sorted; empty for a table without a key.
    key: &'static str,
    /// One transaction of the application. The number is that of the columns added to `growing` so far.
    pub change: fn(&mut Rng, u32) -> String,
}

enum Expression {
    Same(&'static str),
    Differ(&'static str, &'static str),
}

use Expression::{Differ, Same};

/// Large values are compared by their hash.
const BIG: Expression = Differ("md5(big)", "if(isNull(big), NULL, lower(hex(MD5(assumeNotNull(big)))))");

impl Table {
    /// Compares the whole table by SQL on both sides, as text.
    #[track_caller]
    pub fn assert_equal(&self, env: &TestEnv) {
        let sides = |source: bool| {
            let expressions = self.columns.iter().map(|expression| match expression {
                Same(text) => (*text).to_owned(),
                Differ(left, right) => (if source { left } else { right }).to_string(),
            });
            expressions.chain(self.added(env)).collect::<Vec<_>>().join(", ")
        };
        let (name, key) = (self.name, self.key);
        if key.is_empty() {
            // The multiplicity of each row.
            let places: Vec<String> = (1..=self.columns.len()).map(|place| place.to_string()).collect();
            let places = places.join(", ");
            env.assert_same(
                &format!("SELECT {}, count(*), '{name}' FROM {name} GROUP BY {places} ORDER BY {places}", sides(true)),
                &format!(
                    "SELECT {}, sum(_walferry_sign) AS times, '{name}' FROM {name} FINAL GROUP BY ALL HAVING times != 0 ORDER BY {places}",
                    sides(false)
                ),
            );
            return;
        }
        env.assert_same(
            &format!("SELECT '{name}', {} FROM {name} ORDER BY {key}", sides(true)),
            &format!(
                "SELECT '{name}', {} FROM {name} FINAL WHERE _walferry_deleted = 0 ORDER BY {key}",
                sides(false)
            ),
        );
    }

    /// Whether only its inserts and TRUNCATE are replicated.
    pub fn append_only(&self) -> bool {
        self.name == "inserts"
    }

    /// The columns that were added during the run. Their types have the same text on both sides.
    fn added(&self, env: &TestEnv) -> Vec<String> {
        if self.name != "growing" {
            return Vec::new();
        }
        let query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'growing' AND column_name LIKE 'x%' ORDER BY 1";
        env.source(query).lines().map(str::to_owned).collect()
    }
}

/// All tables of the workload.
pub const TABLES: &[Table] = &[
    plain_table("plain_1", |rng, _| plain(rng, "plain_1", 3000)),
    plain_table("plain_2", |rng, _| plain(rng, "plain_2", 100)),
    plain_table("plain_3", |rng, _| plain(rng, "plain_3", 20000)),
    Table {
        name: "composite",
        ddl: "CREATE TABLE composite (region text, amount int, id bigint, note text, PRIMARY KEY (id, region));
            INSERT INTO composite SELECT 'r' || i % 3, 0, i, 'first' FROM generate_series(1, 3000) i",
        columns: &[Same("region"), Same("amount"), Same("id"), Same("note")],
        key: "id, region",
        change: composite,
    },
    Table {
        name: "uuid_key",
        ddl: "CREATE TABLE uuid_key (n int, id uuid PRIMARY KEY);
            INSERT INTO uuid_key SELECT i, md5(i::text)::uuid FROM generate_series(1, 2000) i",
        columns: &[Same("n"), Differ("id::text", "toString(id)")],
        key: "2, 3",
        change: |rng, _| keyed(rng, "uuid_key", |id| format!("md5('{id}')::uuid")),
    },
    Table {
        name: "text_key",
        ddl: r"CREATE TABLE text_key (id text PRIMARY KEY, n int);
            INSERT INTO text_key SELECT E'clé\t\\''' || i, i FROM generate_series(1, 2000) i",
        columns: &[Same("n"), Same("id")],
        key: "id",
        change: |rng, _| keyed(rng, "text_key", |id| format!(r"E'clé\t\\''{id}'")),
    },
    Table {
        name: "binary_key",
        ddl: "CREATE TABLE binary_key (id bytea PRIMARY KEY, n int);
            INSERT INTO binary_key SELECT decode(md5(i::text), 'hex'), i FROM generate_series(1, 2000) i",
        columns: &[Same("n"), Differ("encode(id, 'hex')", "lower(hex(id))")],
        key: "id",
        change: |rng, _| keyed(rng, "binary_key", |id| format!("decode(md5('{id}'), 'hex')")),
    },
    Table {
        name: "dated",
        ddl: "CREATE TABLE dated (amount numeric(12,2), day date, at timestamptz, n int, PRIMARY KEY (day, n));
            INSERT INTO dated SELECT i / 7.0, date '2020-01-01' + i % 900, timestamptz '2020-01-01 00:00+00' + i * interval '1.000001 s', i FROM generate_series(1, 2000) i",
        columns: &[
            Differ("(amount * 100)::bigint", "toInt64(amount * 100)"),
            Same("day"),
            Differ("(extract(epoch FROM at) * 1000000)::bigint", "toUnixTimestamp64Micro(at)"),
            Same("n"),
        ],
        key: "day, n",
        change: dated,
    },
    Table {
        name: "typed",
        ddl: "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
            CREATE TABLE typed (id int PRIMARY KEY, flag bool, ratio float8, tags int[], doc jsonb, mood mood, raw bytea, small smallint);
            INSERT INTO typed SELECT i, i % 2 = 0, i / 8.0, ARRAY[i, NULL, -i], jsonb_build_object('i', i), 'ok', decode(md5(i::text), 'hex'), i % 100 FROM generate_series(1, 2000) i",
        columns: &[
            Same("id"),
            Differ("flag::int", "toUInt8(flag)"),
            Same("ratio"),
            Differ(
                "array_to_string(tags, ',', 'NULL')",
                "arrayStringConcat(arrayMap(x -> ifNull(toString(x), 'NULL'), tags), ',')",
            ),
            Differ("doc::text", "doc"),
            Same("mood"),
            Differ("encode(raw, 'hex')", "lower(hex(raw))"),
            Same("small"),
        ],
        key: "id",
        change: typed,
    },
    Table {
        name: "toast",
        ddl: "CREATE TABLE toast (id int PRIMARY KEY, n int, big text); ALTER TABLE toast ALTER big SET STORAGE EXTERNAL;
            INSERT INTO toast SELECT i, 0, repeat(md5(i::text), 120) FROM generate_series(1, 1500) i",
        columns: &[Same("id"), Same("n"), BIG],
        key: "id",
        change: |rng, _| toast(rng, "toast"),
    },
    Table {
        name: "toast_pair",
        ddl: "CREATE TABLE toast_pair (a int, doc jsonb, b int, raw bytea, n int, PRIMARY KEY (b, a));
            ALTER TABLE toast_pair ALTER doc SET STORAGE EXTERNAL, ALTER raw SET STORAGE EXTERNAL;
            INSERT INTO toast_pair SELECT i % 10, jsonb_build_object('v', repeat(md5(i::text), 100)), i, decode(repeat(md5(i::text), 120), 'hex'), 0 FROM generate_series(1, 800) i",
        columns: &[
            Same("a"),
            Same("b"),
            Same("n"),
            Differ("md5(doc::text)", "lower(hex(MD5(doc)))"),
            Differ("md5(raw)", "lower(hex(MD5(raw)))"),
        ],
        key: "b, a",
        change: toast_pair,
    },
    Table {
        name: "toast_full",
        ddl: "CREATE TABLE toast_full (id int PRIMARY KEY, n int, big text); ALTER TABLE toast_full ALTER big SET STORAGE EXTERNAL;
            ALTER TABLE toast_full REPLICA IDENTITY FULL;
            INSERT INTO toast_full SELECT i, 0, repeat(md5(i::text), 120) FROM generate_series(1, 500) i",
        columns: &[Same("id"), Same("n"), BIG],
        key: "id",
        change: |rng, _| toast(rng, "toast_full"),
    },
    Table {
        name: "toast_moving",
        ddl: "CREATE TABLE toast_moving (id int PRIMARY KEY, n int, big text); ALTER TABLE toast_moving ALTER big SET STORAGE EXTERNAL;
            INSERT INTO toast_moving SELECT i, 0, repeat(md5(i::text), 120) FROM generate_series(1, 500) i",
        columns: &[Same("id"), Same("n"), BIG],
        key: "id",
        change: |rng, _| moving(rng, "toast_moving", 700),
    },
    Table {
        name: "parted",
        ddl: "CREATE TABLE parted (id int PRIMARY KEY, n int, v text) PARTITION BY HASH (id);
            CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 3, REMAINDER 0);
            CREATE TABLE parted_1 PARTITION OF parted FOR VALUES WITH (MODULUS 3, REMAINDER 1);
            CREATE TABLE parted_2 (v text, n int, id int PRIMARY KEY); ALTER TABLE parted ATTACH PARTITION parted_2 FOR VALUES WITH (MODULUS 3, REMAINDER 2);
            INSERT INTO parted SELECT i, 0, 'first' FROM generate_series(1, 3000) i",
        columns: &[Same("id"), Same("n"), Same("v")],
        key: "id",
        change: |rng, _| plain(rng, "parted", 4000),
    },
    Table {
        name: "parted_moving",
        ddl: "CREATE TABLE parted_moving (id int, bucket int, n int, PRIMARY KEY (id, bucket)) PARTITION BY RANGE (bucket);
            CREATE TABLE parted_moving_0 PARTITION OF parted_moving FOR VALUES FROM (0) TO (10);
            CREATE TABLE parted_moving_1 PARTITION OF parted_moving FOR VALUES FROM (10) TO (20);
            CREATE TABLE parted_moving_2 PARTITION OF parted_moving DEFAULT;
            INSERT INTO parted_moving SELECT i, i % 30, 0 FROM generate_series(1, 2000) i",
        columns: &[Same("id"), Same("bucket"), Same("n")],
        key: "id, bucket",
        change: parted_moving,
    },
    Table {
        name: "full_identity",
        ddl: "CREATE TABLE full_identity (id int PRIMARY KEY, n int, v text); ALTER TABLE full_identity REPLICA IDENTITY FULL;
            INSERT INTO full_identity SELECT i, 0, 'first' FROM generate_series(1, 2000) i",
        columns: &[Same("id"), Same("n"), Same("v")],
        key: "id",
        change: |rng, _| {
            if rng.bool() { plain(rng, "full_identity", 3000) } else { moving(rng, "full_identity", 3000) }
        },
    },
    Table {
        name: "by_index",
        ddl: "CREATE TABLE by_index (v text, id int NOT NULL, n int); CREATE UNIQUE INDEX by_index_id ON by_index (id);
            ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_id;
            INSERT INTO by_index SELECT 'first', i, 0 FROM generate_series(1, 2000) i",
        columns: &[Same("id"), Same("n"), Same("v")],
        key: "id",
        change: |rng, _| plain(rng, "by_index", 3000),
    },
    plain_table("moving", |rng, _| moving(rng, "moving", 3500)),
    plain_table("truncated", truncated),
    Table {
        name: "growing",
        ddl: "CREATE TABLE growing (id int PRIMARY KEY, n int); INSERT INTO growing SELECT i, 0 FROM generate_series(1, 1000) i",
        columns: &[Same("id"), Same("n")],
        key: "id",
        change: growing,
    },
    plain_table("savepoints", savepoints),
    plain_table("hot", hot),
    plain_table("bulk", bulk),
    Table {
        name: "ledger",
        ddl: "CREATE TABLE ledger (id int PRIMARY KEY, balance bigint); INSERT INTO ledger SELECT i, 1000 FROM generate_series(1, 200) i",
        columns: &[Same("id"), Same("balance"), Differ("sum(balance) OVER ()", "sum(balance) OVER ()")],
        key: "id",
        change: ledger,
    },
    Table {
        name: "history",
        ddl: "CREATE TABLE history (n int, v text, big text); ALTER TABLE history REPLICA IDENTITY FULL, ALTER big SET STORAGE EXTERNAL; CREATE INDEX ON history (n);
            INSERT INTO history SELECT i % 30, 'v' || i % 7, repeat(md5((i % 30)::text), 100) FROM generate_series(1, 3000) i",
        columns: &[
            Differ("coalesce(n, -1)", "ifNull(n, -1)"),
            Differ("coalesce(v, '')", "ifNull(v, '')"),
            Differ("coalesce(md5(big), '')", "ifNull(lower(hex(MD5(big))), '')"),
        ],
        key: "",
        change: history,
    },
    Table {
        name: "inserts",
        ddl: "CREATE TABLE inserts (n int, v text); INSERT INTO inserts SELECT i % 100, 'first' FROM generate_series(1, 2000) i",
        columns: &[Same("n"), Same("v")],
        key: "",
        change: inserts,
    },
];

/// The maximum number of columns that are added to `growing`.
pub const MOST_COLUMNS: u32 = 40;

const fn plain_table(name: &'static str, change: fn(&mut Rng, u32) -> String) -> Table {
    Table {
        name,
        ddl: "CREATE TABLE TABLE_NAME (id int PRIMARY KEY, n int, v text); INSERT INTO TABLE_NAME SELECT i, 0, 'first' FROM generate_series(1, 3000) i",
        columns: &[Same("id"), Same("n"), Same("v")],
        key: "id",
        change,
    }
}

/// Inserts, updates and deletes of `(id int, n int, v text)`, alone and together in one transaction.
fn plain(rng: &mut Rng, table: &str, ids: i32) -> String {
    let (id, n, more) = (rng.i32(1..ids), rng.i32(0..1_000_000), rng.i32(0..8));
    let v = format!("v{:x}", rng.u64(..));
    let insert = format!(
        "INSERT INTO {table} (id, n, v) SELECT i, {n}, '{v}' FROM generate_series({id}, {id} + {more}) i ON CONFLICT (id) DO UPDATE SET n = excluded.n"
    );
    match rng.u32(0..8) {
        0..3 => insert,
        3 => format!("UPDATE {table} SET n = n + 1 WHERE id BETWEEN {id} AND {id} + {more}"),
        4 => format!("UPDATE {table} SET v = nullif('{v}', 'v0'), n = NULL WHERE id = {id}"),
        5 => format!("DELETE FROM {table} WHERE id BETWEEN {id} AND {id} + {more}"),
        6 => format!(
            "BEGIN; DELETE FROM {table} WHERE id BETWEEN {id} AND {id} + {more}; {insert}; UPDATE {table} SET n = -n WHERE id = {id}; COMMIT"
        ),
        _ => format!(
            "BEGIN; {insert}; UPDATE {table} SET v = 'gone' WHERE id = {id}; DELETE FROM {table} WHERE id = {id}; COMMIT"
        ),
    }
}

fn composite(rng: &mut Rng, _: u32) -> String {
    let (id, other, amount) = (rng.i32(1..4000), rng.i32(1..4000), rng.i32(0..1000));
    let (from, to) = (rng.i32(0..3), rng.i32(0..3));
    match rng.u32(0..4) {
        0 => format!(
            "INSERT INTO composite VALUES ('r{from}', {amount}, {id}, 'n{amount}') ON CONFLICT (id, region) DO UPDATE SET amount = excluded.amount"
        ),
        1 => format!("UPDATE composite SET amount = amount + 1 WHERE id BETWEEN {id} AND {id} + 5"),
        // one key column, and then both
        2 => format!(
            "UPDATE composite SET region = 'r{to}' WHERE id = {id} AND region = 'r{from}'; UPDATE composite SET id = {other}, note = NULL WHERE id = {id} AND region = 'r{to}'"
        ),
        _ => format!("DELETE FROM composite WHERE id = {id}"),
    }
}

/// Changes of `(id …, n int)`, where `key` makes the SQL of a key out of a number.
fn keyed(rng: &mut Rng, table: &str, key: impl Fn(i32) -> String) -> String {
    let (id, n) = (key(rng.i32(1..3000)), rng.i32(0..1000));
    let other = key(rng.i32(1..3000));
    match rng.u32(0..4) {
        0 => format!(
            "INSERT INTO {table} (id, n) VALUES ({id}, {n}) ON CONFLICT (id) DO UPDATE SET n = excluded.n"
        ),
        1 => format!("UPDATE {table} SET n = n + {n} WHERE id IN ({id}, {other})"),
        2 => format!("UPDATE {table} SET id = {other} WHERE id = {id}"),
        _ => format!("DELETE FROM {table} WHERE id = {id}"),
    }
}

fn dated(rng: &mut Rng, _: u32) -> String {
    let (n, day) = (rng.i32(1..3000), rng.i32(0..900));
    let (cents, micros) = (rng.i32(-100_000..100_000), rng.i64(0..1_000_000_000_000));
    let values = format!(
        "{cents} / 100.0, date '2020-01-01' + {day}, timestamptz '2020-01-01 00:00+00' + {micros} * interval '1 microsecond'"
    );
    match rng.u32(0..4) {
        0 | 1 => format!(
            "INSERT INTO dated VALUES ({values}, {n}) ON CONFLICT (day, n) DO UPDATE SET amount = excluded.amount, at = excluded.at"
        ),
        2 => format!("UPDATE dated SET amount = -amount, day = day + 1 WHERE n = {n}"),
        _ => format!("DELETE FROM dated WHERE n = {n}"),
    }
}

fn typed(rng: &mut Rng, _: u32) -> String {
    let (id, n) = (rng.i32(1..3000), rng.i32(-1000..1000));
    match rng.u32(0..5) {
        0 => format!(
            "INSERT INTO typed VALUES ({id}, {n} > 0, {n} / 8.0, ARRAY[{n}], '{{\"n\": {n}}}', 'sad', NULL, {n}) ON CONFLICT (id) DO UPDATE SET small = excluded.small"
        ),
        1 => format!(
            "UPDATE typed SET tags = tags || {n}, mood = 'happy' WHERE id = {id} AND cardinality(tags) < 20"
        ),
        2 => format!(
            "UPDATE typed SET doc = jsonb_build_object('k', {n}, 'a', ARRAY[{n}, 1]), flag = NOT flag WHERE id BETWEEN {id} AND {id} + 4"
        ),
        3 => format!(
            "UPDATE typed SET tags = '{{}}', raw = '\\x{:08x}', ratio = NULL WHERE id = {id}",
            rng.u32(..)
        ),
        _ => format!("DELETE FROM typed WHERE id = {id}"),
    }
}

/// Mostly updates that do not change the large value, which is then an unchanged TOAST value in the stream.
fn toast(rng: &mut Rng, table: &str) -> String {
    let (id, other) = (rng.i32(1..2000), rng.i32(1..2000));
    let insert = format!(
        "INSERT INTO {table} VALUES ({id}, 1, repeat(md5('{other}'), 110)) ON CONFLICT (id) DO UPDATE SET n = {table}.n + 1"
    );
    match rng.u32(0..7) {
        0 => insert,
        1 | 2 => format!("UPDATE {table} SET n = n + 1 WHERE id BETWEEN {id} AND {id} + 20"),
        3 => format!("UPDATE {table} SET big = repeat(md5('{other}'), 100 + n % 50) WHERE id = {id}"),
        4 => format!(
            "BEGIN; UPDATE {table} SET n = n + 1 WHERE id = {id}; UPDATE {table} SET big = NULL WHERE id = {other}; UPDATE {table} SET n = n + 1 WHERE id IN ({id}, {other}); COMMIT"
        ),
        5 => format!(
            "BEGIN; UPDATE {table} SET n = n + 1 WHERE id = {id}; DELETE FROM {table} WHERE id = {id}; {insert}; COMMIT"
        ),
        _ => format!("DELETE FROM {table} WHERE id = {id}"),
    }
}

fn toast_pair(rng: &mut Rng, _: u32) -> String {
    let b = rng.i32(1..1000);
    let doc = format!("jsonb_build_object('v', repeat(md5('{}'), 90))", rng.u32(..));
    match rng.u32(0..5) {
        0 => format!(
            "INSERT INTO toast_pair VALUES ({b} % 10, {doc}, {b}, decode(repeat(md5('{b}'), 130), 'hex'), 0) ON CONFLICT (b, a) DO UPDATE SET n = -1"
        ),
        1 | 2 => format!("UPDATE toast_pair SET n = n + 1 WHERE b BETWEEN {b} AND {b} + 10"),
        3 => format!(
            "UPDATE toast_pair SET doc = {doc} WHERE b = {b}; UPDATE toast_pair SET a = a + 1 WHERE b = {b} AND a < 20"
        ),
        _ => format!("DELETE FROM toast_pair WHERE b = {b}"),
    }
}

/// Key changes of `(id int, n int, …)`: to unused keys, to keys freed in the same transaction, and swaps.
fn moving(rng: &mut Rng, table: &str, ids: i32) -> String {
    let (one, two) = (rng.i32(1..ids), rng.i32(1..ids));
    let spare = -rng.i32(1..1_000_000_000);
    match rng.u32(0..5) {
        0 => format!("INSERT INTO {table} (id, n) VALUES ({one}, 0) ON CONFLICT (id) DO NOTHING"),
        1 => format!("UPDATE {table} SET id = {two}, n = n + 1 WHERE id = {one}"),
        2 => format!(
            "BEGIN; DELETE FROM {table} WHERE id = {two}; UPDATE {table} SET id = {two} WHERE id = {one}; COMMIT"
        ),
        3 => format!(
            "BEGIN; UPDATE {table} SET id = {spare} WHERE id = {one}; UPDATE {table} SET id = {one} WHERE id = {two}; UPDATE {table} SET id = {two}, n = n + 1 WHERE id = {spare}; COMMIT"
        ),
        _ => format!(
            "UPDATE {table} SET n = n + 1 WHERE id BETWEEN {one} AND {one} + 10; DELETE FROM {table} WHERE id = {two}"
        ),
    }
}

fn parted_moving(rng: &mut Rng, _: u32) -> String {
    let (id, bucket) = (rng.i32(1..2500), rng.i32(0..30));
    match rng.u32(0..4) {
        0 => format!(
            "INSERT INTO parted_moving VALUES ({id}, {bucket}, 0) ON CONFLICT (id, bucket) DO UPDATE SET n = -1"
        ),
        1 | 2 => format!(
            "UPDATE parted_moving SET bucket = {bucket}, n = n + 1 WHERE ctid = ANY (ARRAY(SELECT ctid FROM parted_moving WHERE id = {id} LIMIT 1)) AND id = {id}"
        ),
        _ => format!("DELETE FROM parted_moving WHERE id BETWEEN {id} AND {id} + 3"),
    }
}

fn truncated(rng: &mut Rng, _: u32) -> String {
    let n = rng.i32(..);
    match rng.u32(0..60) {
        0 => format!(
            "BEGIN; INSERT INTO truncated VALUES (-1, {n}, 'before') ON CONFLICT DO NOTHING; TRUNCATE truncated; INSERT INTO truncated VALUES (-1, {n}, 'after'); COMMIT"
        ),
        1 => "TRUNCATE truncated".to_owned(),
        _ => plain(rng, "truncated", 3000),
    }
}

fn growing(rng: &mut Rng, columns: u32) -> String {
    let (id, n) = (rng.i32(1..1500), rng.i32(0..1000));
    if columns < MOST_COLUMNS && rng.u32(0..80) == 0 {
        let kind = match columns % 3 {
            0 => "int",
            1 => "text DEFAULT 'shown'",
            _ => "bigint NOT NULL DEFAULT 7",
        };
        return format!(
            "BEGIN; SET LOCAL lock_timeout = '2s'; UPDATE growing SET n = {n} WHERE id = {id}; ALTER TABLE growing ADD COLUMN IF NOT EXISTS x{columns} {kind}; \
             UPDATE growing SET x{columns} = {n} WHERE id BETWEEN {id} AND {id} + 5; INSERT INTO growing (id, n, x{columns}) VALUES ({id}, 0, 1) ON CONFLICT (id) DO UPDATE SET x{columns} = 2; COMMIT"
        );
    }
    match (rng.u32(0..4), columns) {
        (0, 0) | (1, _) => {
            format!(
                "INSERT INTO growing (id, n) VALUES ({id}, {n}) ON CONFLICT (id) DO UPDATE SET n = excluded.n"
            )
        }
        (0, columns) => {
            let column = rng.u32(0..columns);
            format!("UPDATE growing SET x{column} = {n} WHERE id BETWEEN {id} AND {id} + 5")
        }
        (2, _) => format!("UPDATE growing SET n = n + 1 WHERE id BETWEEN {id} AND {id} + 5"),
        _ => format!("DELETE FROM growing WHERE id = {id}"),
    }
}

fn savepoints(rng: &mut Rng, _: u32) -> String {
    let id = rng.i32(1..3000);
    let end = if rng.u32(0..4) == 0 { "ROLLBACK" } else { "COMMIT" };
    let insert = |id: i32, v: &str| {
        format!(
            "INSERT INTO savepoints VALUES ({id}, 1, '{v}') ON CONFLICT (id) DO UPDATE SET v = excluded.v"
        )
    };
    format!(
        "BEGIN; {}; SAVEPOINT one; UPDATE savepoints SET v = 'never', n = n + 1 WHERE id BETWEEN {id} AND {id} + 5; DELETE FROM savepoints WHERE id = {id}; ROLLBACK TO one; \
         {}; SAVEPOINT two; DELETE FROM savepoints WHERE id = {id} + 2; RELEASE two; {end}",
        insert(id, "kept"),
        insert(id + 1, "after"),
    )
}

/// A few rows, each changed many times in one transaction.
fn hot(rng: &mut Rng, _: u32) -> String {
    let id = rng.i32(1..20);
    let update = format!("UPDATE hot SET n = n + 1 WHERE id = {id}; ");
    format!(
        "BEGIN; {0}DELETE FROM hot WHERE id = {id}; INSERT INTO hot VALUES ({id}, {1}, 'again'); {0}COMMIT",
        update.repeat(10),
        rng.i32(0..1000)
    )
}

fn bulk(rng: &mut Rng, _: u32) -> String {
    if rng.u32(0..40) > 0 {
        return plain(rng, "bulk", 20000);
    }
    let (first, n) = (rng.i32(1..18000), rng.i32(0..1000));
    format!(
        "BEGIN; DELETE FROM bulk WHERE id BETWEEN {first} AND {first} + 3000; INSERT INTO bulk SELECT i, {n}, md5(i::text) FROM generate_series({first}, {first} + 3000) i; UPDATE bulk SET n = n + 1 WHERE id BETWEEN {first} AND {first} + 1000; COMMIT"
    )
}

/// Rows without a key, inserted and deleted many times each.
fn history(rng: &mut Rng, _: u32) -> String {
    let (n, other, v, more) = (rng.i32(0..30), rng.i32(0..30), rng.i32(0..7), rng.i32(1..6));
    let one = |n: i32| format!("ctid = (SELECT ctid FROM history WHERE n = {n} LIMIT 1 FOR UPDATE)");
    let insert = format!(
        "INSERT INTO history SELECT {n}, 'v{v}', repeat(md5('{n}'), 100) FROM generate_series(1, {more})"
    );
    match rng.u32(0..8) {
        0 | 1 => insert,
        2 => format!("DELETE FROM history WHERE {}", one(n)),
        3 => format!("UPDATE history SET v = 'w{v}' WHERE {}", one(n)),
        4 => format!("UPDATE history SET n = {other} WHERE {}", one(n)),
        5 => format!("DELETE FROM history WHERE n = {n} AND v <> 'v{v}'; INSERT INTO history SELECT"),
        6 => format!(
            "BEGIN; {insert}; SAVEPOINT s; DELETE FROM history WHERE n = {other}; ROLLBACK TO s; UPDATE history SET v = v, big = NULL WHERE {}; {insert}; COMMIT",
            one(n)
        ),
        _ => format!(
            "BEGIN; {insert}; UPDATE history SET n = NULL WHERE {}; DELETE FROM history WHERE n = {n} AND v = 'v{v}'; COMMIT",
            one(other)
        ),
    }
}

/// Rows that are only inserted, and sometimes truncated.
fn inserts(rng: &mut Rng, _: u32) -> String {
    let (n, more) = (rng.i32(0..100), rng.i32(1..20));
    let insert = format!("INSERT INTO inserts SELECT {n}, 'v' || i % 3 FROM generate_series(1, {more}) i");
    match rng.u32(0..100) {
        // TRUNCATE waits for a running copy of the table.
        0 => format!(
            "BEGIN; SET LOCAL lock_timeout = '2s'; {insert}; TRUNCATE inserts; {insert}; {insert}; COMMIT"
        ),
        1..20 => format!("BEGIN; {insert}; SAVEPOINT s; {insert}; ROLLBACK TO s; {insert}; COMMIT"),
        20..30 => format!("BEGIN; {insert}; ROLLBACK"),
        _ => insert,
    }
}

/// Transfers an amount and updates another table in the same transaction.
fn ledger(rng: &mut Rng, _: u32) -> String {
    let (from, to, amount) = (rng.i32(1..201), rng.i32(1..201), rng.i32(1..50));
    format!(
        "BEGIN; UPDATE ledger SET balance = balance - {amount} WHERE id = {from}; UPDATE plain_1 SET n = {amount} WHERE id = {from}; UPDATE ledger SET balance = balance + {amount} WHERE id = {to}; COMMIT"
    )
}
