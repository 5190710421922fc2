//! Every type of docs/types.md, copied and streamed, in binary and in text form, compared with the text that
//! ClickHouse shows. This is independent of `walferry verify`, so that a defect shared by encoder and
//! verifier is found.

use std::fmt::Write;

use serde_json::json;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Pg, TestEnv, failed_for},
};

/// A type with values, and what ClickHouse must show for them with `toString`.
struct Case {
    /// PostgreSQL's type.
    source: &'static str,
    /// The ClickHouse type of a column that accepts NULL.
    target: &'static str,
    /// PostgreSQL's text and ClickHouse's text.
    values: &'static [(&'static str, &'static str)],
}

/// In place of ClickHouse's text: the same text as PostgreSQL's own.
const SAME: &str = "";

/// Types that are sent in binary form.
const BINARY: &[Case] = &[
    Case { source: "boolean", target: "Nullable(Bool)", values: &[("true", "true"), ("false", "false")] },
    Case {
        source: "smallint",
        target: "Nullable(Int16)",
        values: &[("-32768", SAME), ("32767", SAME), ("0", SAME)],
    },
    Case {
        source: "integer",
        target: "Nullable(Int32)",
        values: &[("-2147483648", SAME), ("2147483647", SAME)],
    },
    Case {
        source: "bigint",
        target: "Nullable(Int64)",
        values: &[("-9223372036854775808", SAME), ("9223372036854775807", SAME)],
    },
    Case { source: "oid", target: "Nullable(UInt32)", values: &[("0", SAME), ("4294967295", SAME)] },
    Case {
        source: "real",
        target: "Nullable(Float32)",
        values: &[
            ("1.5", SAME),
            ("-0.1", SAME),
            ("NaN", "nan"),
            ("Infinity", "inf"),
            ("-Infinity", "-inf"),
            ("3.4028235e38", SAME),
        ],
    },
    Case {
        source: "double precision",
        target: "Nullable(Float64)",
        values: &[
            ("0.1", SAME),
            ("1e-300", SAME),
            ("NaN", "nan"),
            ("-Infinity", "-inf"),
            ("123456789.12345679", SAME),
        ],
    },
    Case {
        source: "numeric(12,2)",
        target: "Nullable(Decimal(12, 2))",
        values: &[("0", SAME), ("12.30", "12.3"), ("-9999999999.99", SAME), ("0.01", SAME), ("10000", SAME)],
    },
    Case {
        source: "numeric(76,38)",
        target: "Nullable(Decimal(76, 38))",
        values: &[
            ("12345678901234567890123456789012345678.12345678901234567890123456789012345678", SAME),
            ("-0.00000000000000000000000000000000000001", SAME),
        ],
    },
    Case {
        source: "numeric(38,0)",
        target: "Nullable(Decimal(38, 0))",
        values: &[("99999999999999999999999999999999999999", SAME)],
    },
    Case {
        source: "numeric",
        target: "Nullable(String)",
        values: &[
            ("0", SAME),
            ("0.00", SAME),
            ("1000000", SAME),
            ("-12345.678900", SAME),
            ("NaN", SAME),
            ("1e30", "1000000000000000000000000000000"),
            ("0.000000000000000000000000000001", SAME),
            ("99999999999999999999.99999999999999999999", SAME),
            ("10000.0001", SAME),
        ],
    },
    Case {
        source: "text",
        target: "Nullable(String)",
        values: &[("", ""), ("Zoë – 東京 😀", SAME), ("a\tb\\c\nd", SAME)],
    },
    Case { source: "varchar(10)", target: "Nullable(String)", values: &[("abc  ", SAME)] },
    Case { source: "char(5)", target: "Nullable(String)", values: &[("ab", "ab   ")] },
    Case { source: "name", target: "Nullable(String)", values: &[("pg_class", SAME)] },
    Case {
        source: "uuid",
        target: "Nullable(UUID)",
        values: &[
            ("00010203-0405-0607-0809-0a0b0c0d0e0f", SAME),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", SAME),
        ],
    },
    Case {
        source: "date",
        target: "Nullable(Date32)",
        values: &[("1900-01-01", SAME), ("1970-01-01", SAME), ("2024-02-29", SAME), ("2299-12-31", SAME)],
    },
    Case {
        source: "timestamp",
        target: "Nullable(DateTime64(6, 'UTC'))",
        values: &[
            ("1900-01-01 00:00:00", "1900-01-01 00:00:00.000000"),
            ("2024-03-31 02:30:00.123456", SAME),
            ("1969-12-31 23:59:59.999999", SAME),
            ("2299-12-31 23:59:59.999999", SAME),
        ],
    },
    Case {
        source: "timestamptz",
        target: "Nullable(DateTime64(6, 'UTC'))",
        values: &[
            ("2024-03-31 02:30:00.5+02", "2024-03-31 00:30:00.500000"),
            ("1969-12-31 23:59:59.999999+00", "1969-12-31 23:59:59.999999"),
        ],
    },
    Case {
        source: "time",
        target: "Nullable(Time64(6))",
        values: &[
            ("00:00:00", "00:00:00.000000"),
            ("23:59:59.999999", SAME),
            ("12:34:56.7", "12:34:56.700000"),
        ],
    },
    Case { source: "json", target: "Nullable(String)", values: &[("{\"b\" : 1,  \"a\": [1, 2]}", SAME)] },
    Case {
        source: "jsonb",
        target: "Nullable(String)",
        values: &[
            ("{\"b\":1,\"a\":[1,2.50],\"c\":\"é\"}", "{\"a\": [1, 2.50], \"b\": 1, \"c\": \"é\"}"),
            ("null", SAME),
        ],
    },
    Case {
        source: "mood",
        target: "LowCardinality(Nullable(String))",
        values: &[("sad", SAME), ("happy as can be", SAME)],
    },
    Case { source: "positive", target: "Nullable(Int32)", values: &[("7", SAME)] },
    Case { source: "email", target: "Nullable(String)", values: &[("A@b.c", SAME)] },
    Case { source: "citext", target: "Nullable(String)", values: &[("MiXed", SAME)] },
    Case {
        source: "integer[]",
        target: "Array(Nullable(Int32))",
        values: &[("{}", "[]"), ("{1,NULL,-3}", "[1,NULL,-3]")],
    },
    Case {
        source: "text[]",
        target: "Array(Nullable(String))",
        values: &[("{a,NULL,\"b c\",\"\"}", "['a',NULL,'b c','']")],
    },
    Case {
        source: "numeric(10,3)[]",
        target: "Array(Nullable(Decimal(10, 3)))",
        values: &[("{1.5,-2.125}", "[1.5,-2.125]")],
    },
    Case {
        source: "boolean[]",
        target: "Array(Nullable(Bool))",
        values: &[("{t,f,NULL}", "[true,false,NULL]")],
    },
    Case {
        source: "uuid[]",
        target: "Array(Nullable(UUID))",
        values: &[("{00010203-0405-0607-0809-0a0b0c0d0e0f}", "['00010203-0405-0607-0809-0a0b0c0d0e0f']")],
    },
    Case {
        source: "timestamptz[]",
        target: "Array(Nullable(DateTime64(6, 'UTC')))",
        values: &[("{\"2024-01-01 00:00:00+00\"}", "['2024-01-01 00:00:00.000000']")],
    },
    Case {
        source: "date[]",
        target: "Array(Nullable(Date32))",
        values: &[("{2024-02-29,1950-05-05}", "['2024-02-29','1950-05-05']")],
    },
    Case {
        source: "double precision[]",
        target: "Array(Nullable(Float64))",
        values: &[("{0.1,NaN}", "[0.1,nan]")],
    },
];

/// Types that are sent in PostgreSQL's text form.
const TEXT: &[Case] = &[
    Case { source: "xml", target: "Nullable(String)", values: &[("<a b=\"1\">x</a>", SAME)] },
    Case { source: "timetz", target: "Nullable(String)", values: &[("12:34:56.7+05:30", SAME)] },
    Case {
        source: "interval",
        target: "Nullable(String)",
        values: &[("1 year 2 mons -3 days +04:05:06.7", SAME)],
    },
    Case {
        source: "inet",
        target: "Nullable(String)",
        values: &[("10.0.0.1", SAME), ("10.0.0.0/8", SAME), ("::1", SAME)],
    },
    Case { source: "cidr", target: "Nullable(String)", values: &[("192.168.0.0/16", SAME)] },
    Case { source: "macaddr", target: "Nullable(String)", values: &[("08:00:2b:01:02:03", SAME)] },
    Case { source: "bit(5)", target: "Nullable(String)", values: &[("10110", SAME)] },
    Case { source: "bit varying", target: "Nullable(String)", values: &[("101", SAME)] },
    Case { source: "money", target: "Nullable(String)", values: &[("$1,234.50", SAME)] },
    Case { source: "int4range", target: "Nullable(String)", values: &[("[1,10)", SAME), ("empty", SAME)] },
    Case { source: "tsvector", target: "Nullable(String)", values: &[("'cat':2 'fat':1", SAME)] },
    Case { source: "hstore", target: "Nullable(String)", values: &[("\"a\"=>\"1\", \"b\"=>NULL", SAME)] },
    Case { source: "point", target: "Nullable(String)", values: &[("(1.5,2)", SAME)] },
    Case { source: "pair", target: "Nullable(String)", values: &[("(1,\"x y\")", SAME)] },
    Case {
        source: "interval[]",
        target: "Array(Nullable(String))",
        values: &[("{\"1 day\",NULL}", "['1 day',NULL]")],
    },
    Case {
        source: "inet[]",
        target: "Array(Nullable(String))",
        values: &[("{10.0.0.1,::1}", "['10.0.0.1','::1']")],
    },
];

const PREPARE: &str = "CREATE EXTENSION IF NOT EXISTS citext; CREATE EXTENSION IF NOT EXISTS hstore;
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy as can be'); CREATE TYPE pair AS (a int, b text);
    CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN email AS citext CHECK (VALUE LIKE '%@%')";

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// One row for each value, with its column set and the others NULL. Rows are numbered from `first`.
fn inserts(cases: &[&Case], first: usize) -> String {
    let mut sql = String::new();
    let mut id = first;
    for (index, case) in cases.iter().enumerate() {
        for (value, _) in case.values {
            writeln!(sql, "INSERT INTO t (id, c{index}) VALUES ({id}, {});", literal(value)).unwrap();
            id += 1;
        }
    }
    sql
}

fn compare(env: &TestEnv, cases: &[&Case], first: usize, how: &str) {
    let mut id = first;
    for (index, case) in cases.iter().enumerate() {
        for (value, shown) in case.values {
            let shown = if *shown == SAME { *value } else { *shown };
            let found =
                env.target(&format!("SELECT toString(c{index}) FROM t FINAL WHERE id = {id} FORMAT RawBLOB"));
            assert_eq!(found, *shown, "{} {value}, {how}", case.source);
            id += 1;
        }
        let empty = if case.target.starts_with("Array") { "empty" } else { "isNull" };
        let others = env.target_value(&format!(
            "SELECT count() FROM t FINAL WHERE {empty}(c{index}) AND id >= {first} AND id < {}",
            first + total(cases)
        ));
        let present = case.values.iter().filter(|(value, _)| *value != "{}").count();
        assert_eq!(others, (total(cases) - present).to_string(), "rows without {}, {how}", case.source);
    }
}

fn total(cases: &[&Case]) -> usize {
    cases.iter().map(|case| case.values.len()).sum()
}

/// Copies the values, then streams them as inserts, then as updates.
fn round_trip(pg: Pg, cases: &[&Case]) {
    let env = TestEnv::new(pg);
    env.admin(PREPARE);
    let columns: Vec<String> =
        cases.iter().enumerate().map(|(index, case)| format!("c{index} {}", case.source)).collect();
    env.sql(&format!("CREATE TABLE t (id int PRIMARY KEY, {})", columns.join(", ")));
    env.sql(&inserts(cases, 0));
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    for (index, case) in cases.iter().enumerate() {
        let found = env.target_value(&format!(
            "SELECT type FROM system.columns WHERE database = currentDatabase() AND table = 't' AND name = 'c{index}' FORMAT TSVRaw"
        ));
        assert_eq!(found, case.target, "target type of {}", case.source);
    }
    compare(&env, cases, 0, "copied");
    env.sql(&inserts(cases, 1000));
    env.settle(&mut run);
    compare(&env, cases, 1000, "streamed");
    // One update sends the same values again, one sets them to NULL, and one restores them.
    let names: Vec<String> = (0..cases.len()).map(|index| format!("c{index}")).collect();
    env.sql("CREATE TABLE kept AS TABLE t; UPDATE t SET id = id");
    env.sql(&format!(
        "UPDATE t SET {}",
        names.iter().map(|name| format!("{name} = NULL")).collect::<Vec<_>>().join(", ")
    ));
    env.sql(&format!(
        "UPDATE t SET ({}) = (SELECT {} FROM kept WHERE kept.id = t.id)",
        names.join(", "),
        names.join(", ")
    ));
    env.settle(&mut run);
    compare(&env, cases, 0, "updated");
    compare(&env, cases, 1000, "updated");
    run.stop();
    env.verify(&mirror);
}

fn binary_form(pg: Pg) {
    round_trip(pg, &BINARY.iter().collect::<Vec<_>>());
}

/// One column without a binary decoder makes the stream send all columns as text.
fn text_form(pg: Pg) {
    round_trip(pg, &BINARY.iter().chain(TEXT).collect::<Vec<_>>());
}

/// bytea is not text, so it is compared as hexadecimal digits.
fn raw_bytes(pg: Pg) {
    for extra in ["", ", odd inet"] {
        let env = TestEnv::new(pg);
        env.sql(&format!("CREATE TABLE t (id int PRIMARY KEY, b bytea{extra})"));
        let values = r"(1, '\x'), (2, '\x00ff0a5c27'), (3, NULL), (4, decode(repeat('00', 3000), 'hex'))";
        env.sql(&format!("INSERT INTO t (id, b) VALUES {values}"));
        let mirror = env.mirror(&["t"]);
        let mut run = env.streaming(&mirror);
        env.sql(&format!("INSERT INTO t (id, b) SELECT id + 10, b FROM (VALUES {values}) AS v (id, b)"));
        env.settle(&mut run);
        env.assert_same(
            "SELECT id, encode(b, 'hex') FROM t ORDER BY id",
            "SELECT id, lower(hex(b)) FROM t FINAL ORDER BY id",
        );
        run.stop();
        env.verify(&mirror);
    }
}

/// NOT NULL columns get types that are not Nullable.
fn nullability(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id bigint PRIMARY KEY, a text NOT NULL, b numeric(5,1) NOT NULL, c int, d int[] NOT NULL)");
    env.sql("INSERT INTO t VALUES (1, '', 1.5, NULL, '{}')");
    env.catch_up(&env.mirror(&["t"]));
    assert_eq!(
        env.target(
            "SELECT name, type FROM system.columns WHERE database = currentDatabase() AND table = 't' ORDER BY position FORMAT TSVRaw"
        ),
        "id\tInt64\na\tString\nb\tDecimal(5, 1)\nc\tNullable(Int32)\nd\tArray(Nullable(Int32))\n_walferry_version\tUInt64\n_walferry_deleted\tUInt8\n"
    );
}

on_both!(binary_form, text_form, raw_bytes, nullability);

const FAR: &str = "INSERT INTO t SELECT 1 + $, 'infinity', '-infinity', 'infinity', '24:00', 'NaN';
    INSERT INTO t SELECT 2 + $, '0044-03-15 BC', '4713-01-01 BC', '9999-12-31', '12:00', 7;
    INSERT INTO t SELECT 3 + $, '1850-01-01', '1850-06-01', '2999-01-01', '00:00', NULL;";

const FAR_TABLE: &str =
    "CREATE TABLE t (id int PRIMARY KEY, a date, b timestamp, c timestamptz, d time, e numeric(6,2))";

/// A value that ClickHouse's type can't hold is stored as `outOfRange` says, copied and streamed alike, and
/// counted.
#[test]
fn far_values_are_stored_as_the_nearest_and_counted() {
    let env = TestEnv::new(Pg::V18);
    env.sql(FAR_TABLE);
    env.sql(&FAR.replace('$', "0"));
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    env.sql(&FAR.replace('$', "10"));
    env.settle(&mut run);
    let rows = |first: u32| {
        env.target(&format!(
            "SELECT a, b, c, d, e FROM t FINAL WHERE id BETWEEN {} AND {} ORDER BY id",
            first + 1,
            first + 3
        ))
    };
    let copied = rows(0);
    assert_eq!(copied, rows(10));
    assert_eq!(
        copied,
        "2299-12-31\t1900-01-01 00:00:00.000000\t2299-12-31 23:59:59.999999\t24:00:00.000000\t0\n\
         1900-01-01\t1900-01-01 00:00:00.000000\t2299-12-31 23:59:59.999999\t12:00:00.000000\t7\n\
         1900-01-01\t1900-01-01 00:00:00.000000\t2299-12-31 23:59:59.999999\t00:00:00.000000\t\\N\n"
    );
    let (_, metrics) = run.http("/metrics").unwrap();
    for column in ["a", "b", "c", "e"] {
        let counted = metrics
            .lines()
            .find(|line| line.contains("out_of_range") && line.contains(&format!("column=\"{column}\"")))
            .unwrap_or_else(|| panic!("no count of column {column} in\n{metrics}"));
        assert!(!counted.ends_with(" 0"), "{counted}");
    }
}

#[test]
fn far_values_become_null_where_asked() {
    let env = TestEnv::new(Pg::V18);
    env.sql(FAR_TABLE);
    env.sql(&FAR.replace('$', "0"));
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["outOfRange"] = json!("Null");
    let mut run = env.streaming(&mirror);
    env.sql(&FAR.replace('$', "10"));
    env.settle(&mut run);
    assert_eq!(
        env.target("SELECT id, a, b, c, e FROM t FINAL ORDER BY id"),
        "1\t\\N\t\\N\t\\N\t\\N\n2\t\\N\t\\N\t\\N\t7\n3\t\\N\t\\N\t\\N\t\\N\n\
         11\t\\N\t\\N\t\\N\t\\N\n12\t\\N\t\\N\t\\N\t7\n13\t\\N\t\\N\t\\N\t\\N\n"
    );
}

#[test]
fn far_values_fail_their_table_where_asked() {
    let env = TestEnv::new(Pg::V18);
    env.sql(&format!("{FAR_TABLE}; CREATE TABLE other (id int PRIMARY KEY)"));
    let mut mirror = env.mirror(&["t", "other"]);
    mirror.mirror["spec"]["outOfRange"] = json!("Fail");
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (1, 'infinity'); INSERT INTO other VALUES (1)");
    let failure = failed_for(&mut run, "t", Reason::ValueOutOfRange);
    assert!(failure.edits("spec.outOfRange"), "{failure:?}");
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id FROM other FINAL"), "1\n");
}

#[test]
fn overrides_choose_another_type() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, j jsonb, s text, big bigint, state text, at timestamptz, small numeric(20,4))",
    );
    let row = |id: u32| {
        format!(
            "INSERT INTO t VALUES ({id}, 12.345, '{{\"a\": 1}}', 'x', 5, 'open', '2024-05-06 07:08:09.123456+00', 1.5)"
        )
    };
    env.sql(&row(1));
    let mut mirror = env.mirror(&["t"]);
    mirror.table(0)["columns"] = json!({"types": {"n": "Decimal(18, 3)", "j": "JSON", "big": "String",
        "state": "LowCardinality(String)", "at": "DateTime64(3, 'UTC')", "small": "String"}});
    let mut run = env.streaming(&mirror);
    env.sql(&row(2));
    env.settle(&mut run);
    let shown = "12.345\t{\"a\":1}\tx\t5\topen\t2024-05-06 07:08:09.123\t1.5000\n";
    assert_eq!(
        env.target("SELECT n, j, s, big, state, at, small FROM t FINAL ORDER BY id").replace("\"1\"", "1"),
        shown.repeat(2)
    );
}

/// A JSON document that ClickHouse's JSON type can't hold is stored as `outOfRange` says, copied and streamed
/// alike.
#[test]
fn json_that_the_type_does_not_hold() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, j json); CREATE TABLE other (id int PRIMARY KEY)");
    let odd = [
        r#"{"a":"\ud83d"}"#,
        r#"{"n": 18446744073709551616}"#,
        r#"{"n": [-9223372036854775809]}"#,
        r#"{"e": 1e400}"#,
        r#"{"a": 1, "a": 2}"#,
        r#"{"a.b": 1, "a": {"b": 2}}"#,
        "[1]",
        "null",
    ];
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(1100), "]".repeat(1100));
    let mut insert = String::new();
    for (id, value) in
        odd.into_iter().chain([deep.as_str(), r#"{"a":{"b":1},"n":18446744073709551615}"#]).enumerate()
    {
        insert.push_str(&format!("INSERT INTO t VALUES ({id} + first, '{value}');"));
    }
    let rows = |first: u32| insert.replace("first", &first.to_string());
    env.sql(&rows(0));
    let mut mirror = env.mirror(&["t", "other"]);
    mirror.table(0)["columns"] = json!({"types": {"j": "JSON"}});
    let mut run = env.streaming(&mirror);
    env.sql(&rows(100));
    env.settle(&mut run);
    let empty =
        "SELECT groupArray(id % 100) FROM (SELECT id FROM t FINAL WHERE toString(j) = '{}' ORDER BY id)";
    assert_eq!(env.target_value(empty), "[0,1,2,3,4,5,6,7,8,0,1,2,3,4,5,6,7,8]");
    let (_, metrics) = run.http("/metrics").unwrap();
    let counted = metrics.lines().find(|line| line.contains("out_of_range") && line.contains("column=\"j\""));
    assert!(counted.is_some_and(|line| line.ends_with(" 18")), "{metrics}");
    run.stop();
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    mirror.mirror["spec"]["outOfRange"] = json!("Null");
    env.catch_up(&mirror);
    assert_eq!(env.target_value("SELECT count() FROM t FINAL WHERE j IS NULL"), "18");
    mirror.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "2"});
    mirror.mirror["spec"]["outOfRange"] = json!("Fail");
    let mut run = env.run(&mirror);
    let failure = failed_for(&mut run, "t", Reason::ValueOutOfRange);
    assert!(failure.message.contains("column j") && !failure.message.contains("ud83d"), "{failure:?}");
    env.sql("INSERT INTO other VALUES (1)");
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id FROM other FINAL"), "1\n");
}

/// A PostgreSQL array has no fixed number of dimensions, but a ClickHouse column has.
#[test]
fn arrays_of_more_dimensions_do_not_stop_other_tables() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, a int[]); CREATE TABLE other (id int PRIMARY KEY)");
    let mut run = env.streaming(&env.mirror(&["t", "other"]));
    env.sql("INSERT INTO t VALUES (1, '{{1,2},{3,4}}'), (2, '[5:6]={7,8}'); INSERT INTO other VALUES (1)");
    env.settle(&mut run);
    assert_eq!(env.target("SELECT id FROM other FINAL"), "1\n");
}
