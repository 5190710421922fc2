//! Values at the limits of their types, copied and streamed with equal results, whatever settings the
//! database has.

use serde_json::json;
use walferry::fault::Reason;

use crate::support::{Pg, Run, TestEnv, failed_for, stalled_for};

/// A type, its target type unless that is the default, the column's text on both sides, and the values as SQL
/// expressions.
struct Case {
    source_type: &'static str,
    target_type: Option<&'static str>,
    source: &'static str,
    target: &'static str,
    values: &'static [&'static str],
}

/// PostgreSQL's own text, as a String at the target.
const fn text(source_type: &'static str, values: &'static [&'static str]) -> Case {
    Case {
        source_type,
        target_type: None,
        source: "CASE WHEN c IS DISTINCT FROM NULL THEN format('%s', c) END",
        target: "toString(c)",
        values,
    }
}

/// The same for types whose default target type can't hold these values.
const fn stored_as_text(source_type: &'static str, values: &'static [&'static str]) -> Case {
    Case { target_type: Some("String"), ..text(source_type, values) }
}

/// The array's elements in order, whatever its bounds and dimensions are.
const fn array(source_type: &'static str, values: &'static [&'static str]) -> Case {
    Case {
        source: "coalesce((SELECT string_agg(CASE WHEN x IS DISTINCT FROM NULL THEN format('%s', x) ELSE 'NULL' END, ',' ORDER BY o) FROM unnest(c) WITH ORDINALITY AS u (x, o)), '')",
        target: "arrayStringConcat(arrayMap(x -> if(isNull(x), 'NULL', toString(assumeNotNull(x))), c), ',')",
        ..text(source_type, values)
    }
}

const ARRAYS: &[&str] = &[
    "'{}'",
    "'{NULL}'",
    "'{1,NULL,-3}'",
    "'[5:6]={7,8}'",
    "'[-1:0][2:3]={{1,2},{3,NULL}}'",
    "'{{{1},{2}},{{3},{4}}}'",
    "array_fill(7, ARRAY[3000])",
];

const BINARY: &[Case] = &[
    text("smallint", &["-32768", "32767"]),
    text("bigint", &["-9223372036854775808", "9223372036854775807"]),
    Case {
        source: "encode(float4send(c), 'hex')",
        target: "lpad(lower(hex(reinterpretAsUInt32(assumeNotNull(c)))), 8, '0')",
        ..text(
            "real",
            &[
                "'-0'",
                "'0'",
                "1e-45",
                "'-1e-45'",
                "1.17549435e-38",
                "3.4028235e38",
                "'NaN'",
                "'-Infinity'",
                "0.1",
                "16777217",
            ],
        )
    },
    Case {
        source: "encode(float8send(c), 'hex')",
        target: "lpad(lower(hex(reinterpretAsUInt64(assumeNotNull(c)))), 16, '0')",
        ..text(
            "double precision",
            &[
                "'-0'",
                "0",
                "5e-324",
                "'-5e-324'",
                "2.2250738585072014e-308",
                "1.7976931348623157e308",
                "'NaN'",
                "'Infinity'",
                "0.1",
                "9007199254740993",
            ],
        )
    },
    text(
        "numeric",
        &[
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "0",
            "0.000",
            "-0.0",
            "repeat('9', 1000)::numeric",
            "('-' || repeat('12345', 200) || '.' || repeat('67', 500))::numeric",
            "('0.' || repeat('0', 999) || '1')::numeric",
            "10000",
            "1e20000",
            "100000000.00000001",
            "1e-20",
        ],
    ),
    Case {
        source: "trim_scale(c)::text",
        ..text("numeric(6,-2)", &["123456", "-99999949", "0", "99", "49"])
    },
    Case { source: "trim_scale(c)::text", ..text("numeric(3,6)", &["0.000123", "-0.000999", "0"]) },
    Case {
        source: "trim_scale(c)::text",
        ..text(
            "numeric(76,10)",
            &[
                "repeat('9', 66)::numeric",
                "-('0.' || repeat('0', 9) || '1')::numeric",
                "(repeat('9', 66) || '.' || repeat('9', 10))::numeric",
            ],
        )
    },
    text("numeric(200,100)", &["(repeat('8', 100) || '.' || repeat('7', 100))::numeric", "0", "-1.5"]),
    stored_as_text(
        "date",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 BC'",
            "'0044-03-15 BC'",
            "'5874897-12-31'",
            "'2000-02-29'",
            "'0001-01-01'",
        ],
    ),
    stored_as_text(
        "timestamp",
        &[
            "'infinity'",
            "'-infinity'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
            "'1999-12-31 23:59:59.9'",
            "'0099-01-01 00:00:00.000001 BC'",
        ],
    ),
    stored_as_text(
        "timestamptz",
        &[
            "'infinity'",
            "'4713-01-01 12:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
            "'2024-03-31 02:30:00+02'",
            "'1883-11-18 12:00:00 America/New_York'",
        ],
    ),
    stored_as_text("time", &["'24:00'", "'00:00:00.000001'", "'23:59:59.999999'", "'12:30'"]),
    Case {
        target_type: Some("LowCardinality(String)"),
        ..text("timestamptz", &["'2024-03-31 02:30:00.5+02'", "'0001-01-01Z'"])
    },
    text(
        "json",
        &[
            r#"'{"nul": "\u0000", "esc": "\ud83d\ude00\n"}'"#,
            r#"'{"a": 1e400, "b": 123456789012345678901234567890.10, "c": -0.0}'"#,
            "'null'",
            "NULL",
            r#"' [ 1 , {"k" : "v", "k" : "w"} ] '"#,
            r#"'"\"\\"'"#,
            "('[' || repeat('[', 500) || repeat(']', 500) || ']')::json",
        ],
    ),
    text(
        "jsonb",
        &[
            r#"'{"b": 1e400, "a": 123456789012345678901234567890.10, "c": -0.0, "é": "\u00e9"}'"#,
            "'null'",
            "NULL",
            "'\"\"'",
            "'[]'",
            "'{}'",
            "'1E-5'",
            r#"'{"z": null, "aa": [null, true, "\""], "": 0}'"#,
        ],
    ),
    text(
        "text",
        &[
            "''",
            "E'\\t\\n\\r\\\\\\'\\b\\f\\v'",
            "chr(1) || chr(31) || chr(127) || chr(128)",
            "'\u{FEFF}bom \u{10FFFF} e\u{301}'",
            "repeat('€', 300000)",
            "'\\N'",
            "'NULL'",
        ],
    ),
    text("varchar(3)", &["'a  '", "'   '", "''"]),
    text("char(4)", &["'a'", "''", "'ü b'"]),
    text("name", &["repeat('n', 63)", "'Ünï'"]),
    Case {
        source: "encode(c, 'hex')",
        target: "lower(hex(c))",
        ..text(
            "bytea",
            &[
                "''",
                "decode('00', 'hex')",
                "(SELECT string_agg(set_byte('\\x00', 0, i), '' ORDER BY i) FROM generate_series(0, 255) i)",
                "decode(repeat('5c27', 100000), 'hex')",
            ],
        )
    },
    text("outer_domain", &["7", "2147483647"]),
    text("label", &["'a''b\"c\\d'", "'ü €'", "''"]),
    array("int[]", ARRAYS),
    stored_as_text("int[]", ARRAYS),
    array(
        "text[]",
        &[
            "'{}'",
            "ARRAY['', 'NULL', NULL, E'a\"b\\\\c,{}', ' x ', 'é']",
            "ARRAY[['a', 'b'], ['c', NULL]]",
            "'[0:1]={x,y}'",
            "ARRAY[repeat('long', 20000)]",
        ],
    ),
    stored_as_text(
        "text[]",
        &[
            "ARRAY['', 'NULL', NULL, E'a\"b\\\\c,{}', ' x ', 'é', 'null']",
            "ARRAY[['a', 'b'], ['c', NULL]]",
            "'[0:1]={x,y}'",
        ],
    ),
    stored_as_text(
        "double precision[]",
        &["ARRAY['-0', 5e-324, 'NaN', '-Infinity', 1.7976931348623157e308, NULL]::float8[]"],
    ),
    stored_as_text(
        "timestamptz[]",
        &["ARRAY['infinity', '4713-01-01 12:00:00+00 BC', '2024-03-31 02:30:00+02', NULL]::timestamptz[]"],
    ),
    stored_as_text("boolean[]", &["'{t,f,NULL}'"]),
    stored_as_text("bigint", &["-9223372036854775808"]),
    stored_as_text(
        "double precision",
        &["1e20", "1e-7", "100000", "1e15", "1e16", "-0.0001", "0.00001", "123456789012345680"],
    ),
    stored_as_text("real", &["1e20", "1e-7", "100000", "1e6", "1e5", "-0.0001", "16777216"]),
    stored_as_text("boolean", &["true", "false"]),
    stored_as_text("uuid", &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"]),
];

const TEXT: &[Case] = &[
    text("\"char\"", &["'x'", "' '"]),
    text(
        "composite",
        &[
            "ROW(1, 'a\"b\\c,(d)')",
            "ROW(NULL, NULL)",
            "ROW(NULL, '')",
            "ROW(-1, ' x ')",
            "NULL",
            "ROW(3, E'new\\nline')",
        ],
    ),
    text(
        "nested",
        &["ROW(ROW(1, 'x\"y'), ARRAY[ROW(2, NULL)::composite, NULL], '2024-03-31 02:30:00+02', '1 mon')"],
    ),
    text("int4range", &["'empty'", "'(,)'", "'[1,5]'", "'(1,2)'", "'[-5,)'"]),
    text("tstzrange", &["'[2024-01-01 00:00:00+02,infinity)'", "'(,)'", "'[\"4713-01-01 BC\",)'"]),
    text("textrange", &["'[a,\"b c\")'", "textrange('', E'q\"\\\\', '(]')"]),
    text("int4multirange", &["'{}'", "'{[1,3),[5,8),(10,)}'"]),
    text("datemultirange", &["'{[2024-01-01,2024-02-01),[infinity,infinity]}'"]),
    text("hstore", &["''", "'a=>NULL, \"b \\\" c\"=>\"\\\\d\"'", "'NULL=>\"NULL\"'"]),
    text("bit(8)", &["B'10110011'", "B'00000000'"]),
    text("varbit", &["B''", "B'1'", "repeat('01', 500)::varbit"]),
    text(
        "interval",
        &[
            "'1 year 2 mons -3 days 04:05:06.789'",
            "'-178000000 years'",
            "'0'",
            "'-1 mon +1 day -00:00:00.000001'",
        ],
    ),
    text("timetz", &["'24:00+00'", "'12:00:00.5-15:59'", "'00:00+14:30'"]),
    text("money", &["'-92233720368547758.08'", "0.5"]),
    text("inet", &["'255.255.255.255'", "'10.1.2.3/8'", "'::ffff:1.2.3.4'", "'fe80::1/64'"]),
    text("macaddr8", &["'08:00:2b:01:02:03:04:05'"]),
    text("xml", &["'<a>é<![CDATA[<]]></a>'", "'text &amp; more'"]),
    text("tsvector", &["to_tsvector('simple', 'a b''c \\d')", "''", "'x:1A,2B'"]),
    text("tsquery", &["'a & !b | c:*'"]),
    text("point", &["'(1e-300,-Infinity)'", "'(0.1,-0)'"]),
    text("path", &["'((1,2),(3,4.5))'", "'[(0,0),(1,1)]'"]),
    text("jsonpath", &["'$.a[*] ? (@ > 1)'"]),
    text("pg_lsn", &["'FFFFFFFF/FFFFFFFF'"]),
    text("xid8", &["'18446744073709551615'"]),
    text("regclass", &["'pg_catalog.pg_class'"]),
    text("box[]", &["ARRAY['(1,2),(0,0)', '(3,4),(1,1)']::box[]"]),
    array("interval[]", &["ARRAY['1 day 02:00'::interval, NULL, '-1 mon']"]),
    array("inet[]", &["ARRAY['10.0.0.1'::inet, NULL, '::1/64']"]),
    stored_as_text("interval[]", &["ARRAY['1 day 02:00'::interval, NULL, '-1 mon']", "'[3:3]={1 mon}'"]),
    stored_as_text("composite[]", &["ARRAY[ROW(1, 'a\"b')::composite, NULL]"]),
];

const TYPES: &str = "CREATE EXTENSION hstore; CREATE TYPE label AS ENUM ('a''b\"c\\d', 'ü €', '');
    CREATE DOMAIN inner_domain AS int CHECK (VALUE > 0); CREATE DOMAIN outer_domain AS inner_domain CHECK (VALUE < 2147483648);
    CREATE TYPE composite AS (a int, b text); CREATE TYPE nested AS (c composite, l composite[], t timestamptz, i interval);
    CREATE TYPE textrange AS RANGE (subtype = text)";

/// Fixes the settings that the text of values depends on, in the session that compares.
const PINNED: &str = "SET DateStyle = ISO; SET IntervalStyle = postgres; SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = hex;
    SET search_path = public; ";

struct Values<'a> {
    env: &'a TestEnv,
    cases: Vec<&'a Case>,
}

impl Values<'_> {
    /// Inserts a row for each value into the table of its case.
    fn insert(&self, first: usize) {
        let mut sql = String::from("SET search_path = public;");
        for (number, case) in self.cases.iter().enumerate() {
            for (id, value) in case.values.iter().enumerate() {
                sql += &format!(
                    "INSERT INTO t{number} VALUES ({}, ({value})::{});",
                    first + id,
                    case.source_type
                );
            }
        }
        self.env.admin(&sql);
    }

    fn compare(&self) {
        let (mut source_rows, mut target_rows) = (Vec::new(), Vec::new());
        for (number, case) in self.cases.iter().enumerate() {
            let Case { source_type, source, target, .. } = case;
            // A NULL array is an empty one at the target.
            let array = target.contains("arrayMap");
            let [source_null, target_null] =
                if array { ["0", "0"] } else { ["(c IS NOT DISTINCT FROM NULL)::int", "isNull(c)"] };
            source_rows.push(format!(
                "SELECT {number} AS n, '{source_type}', id, {source_null}, {source} FROM public.t{number}"
            ));
            target_rows.push(format!(
                "SELECT {number} AS n, '{source_type}', id, {target_null}, {target} FROM t{number} FINAL"
            ));
        }
        self.env.assert_same(
            &format!("{PINNED} {} ORDER BY n, id", source_rows.join(" UNION ALL ")),
            &format!("SELECT * FROM ({}) ORDER BY n, id", target_rows.join(" UNION ALL ")),
        );
    }
}

/// Copies the values, streams them as inserts and as updates, and compares each time.
fn edges(env: &TestEnv, cases: &[&Case]) -> Run {
    env.admin(TYPES);
    let values = Values { env, cases: cases.to_vec() };
    for (number, case) in cases.iter().enumerate() {
        env.admin(&format!(
            "CREATE TABLE public.t{number} (id int PRIMARY KEY, c {}); ALTER TABLE public.t{number} OWNER TO {}",
            case.source_type, env.database
        ));
    }
    values.insert(0);
    let names: Vec<String> = (0..cases.len()).map(|number| format!("t{number}")).collect();
    let mut mirror = env.mirror(&names.iter().map(String::as_str).collect::<Vec<_>>());
    for (number, case) in cases.iter().enumerate() {
        if let Some(chosen) = case.target_type {
            mirror.table(number)["columns"] = json!({"types": {"c": chosen}});
        }
    }
    let mut run = env.streaming(&mirror);
    values.compare();
    values.insert(1000);
    let moved: Vec<String> = names
        .iter()
        .map(|name| format!("UPDATE public.{name} SET id = id + 5000 WHERE id % 2 = 0 AND id < 1000"))
        .collect();
    env.admin(&moved.join(";"));
    env.settle(&mut run);
    values.compare();
    run
}

#[test]
fn edges_in_binary_form() {
    let env = TestEnv::new(Pg::V18);
    edges(&env, &BINARY.iter().collect::<Vec<_>>()).stop();
}

/// The same with settings of the database and the role that change the text of values and of names.
#[test]
fn edges_in_text_form() {
    let env = TestEnv::new(Pg::V18);
    let database = &env.database;
    env.admin(&format!(
        "ALTER DATABASE {database} SET DateStyle = 'SQL, MDY'; ALTER DATABASE {database} SET TimeZone = 'America/St_Johns';
         ALTER DATABASE {database} SET bytea_output = 'escape'; ALTER DATABASE {database} SET IntervalStyle = 'sql_standard';
         ALTER DATABASE {database} SET extra_float_digits = -15"
    ));
    for setting in [
        "DateStyle = 'German, DMY'",
        "IntervalStyle = 'iso_8601'",
        "TimeZone = 'Asia/Kolkata'",
        "bytea_output = 'escape'",
        "extra_float_digits = -15",
        "search_path = pg_catalog",
        "standard_conforming_strings = off",
        "array_nulls = off",
        "xmloption = document",
        "client_encoding = 'LATIN1'",
        "quote_all_identifiers = on",
        "default_transaction_isolation = 'serializable'",
        "row_security = off",
        "lock_timeout = '5s'",
        "statement_timeout = '60s'",
    ] {
        env.admin(&format!("ALTER ROLE {} SET {setting}", env.database));
    }
    let again = [
        "real",
        "double precision",
        "numeric",
        "numeric(6,-2)",
        "json",
        "jsonb",
        "text",
        "char(4)",
        "bytea",
        "label",
        "int[]",
        "text[]",
    ];
    let again = BINARY.iter().filter(|case| {
        again.contains(&case.source_type) && case.target_type.is_none()
            || ["timestamptz", "date", "timestamptz[]", "double precision[]"].contains(&case.source_type)
    });
    edges(&env, &TEXT.iter().chain(again).collect::<Vec<_>>()).stop();
}

/// In databases that are not UTF-8 text and names are converted; those of SQL_ASCII are taken as UTF-8.
#[test]
fn other_encodings() {
    for (encoding, text) in [
        ("LATIN1", "(SELECT string_agg(chr(i), '') FROM generate_series(160, 255) i)"),
        ("SQL_ASCII", "'Zoë 東京'"),
    ] {
        let env = TestEnv::encoded(encoding);
        let (table, column, label) =
            if encoding == "LATIN1" { ("tablé", "Ö", "ü") } else { ("t", "c", "label") };
        env.admin(&format!(
            "CREATE TYPE e AS ENUM ('{label}'); CREATE TABLE \"{table}\" (k text PRIMARY KEY, \"{column}\" text, e e, a text[], big text, n int);
             ALTER TABLE \"{table}\" ALTER big SET STORAGE EXTERNAL; ALTER TABLE \"{table}\" OWNER TO {};
             INSERT INTO \"{table}\" SELECT i || {text}, {text}, '{label}', ARRAY[{text}], repeat({text}, 300), 0 FROM generate_series(1, 5) i",
            env.database
        ));
        let mut run = env.streaming(&env.mirror(&[table]));
        env.admin(&format!(
            "INSERT INTO \"{table}\" SELECT i || {text}, {text}, '{label}', ARRAY[{text}], {text}, 0 FROM generate_series(6, 8) i;
             UPDATE \"{table}\" SET n = 1 WHERE k = 2 || {text}; UPDATE \"{table}\" SET k = 30 || {text} WHERE k = 3 || {text};
             DELETE FROM \"{table}\" WHERE k = 4 || {text}"
        ));
        env.settle(&mut run);
        let hex = |value: &str| format!("encode(textsend({value}), 'hex')");
        env.assert_same(
            &format!(
                "SELECT {}, {}, e, {}, {}, n FROM \"{table}\" ORDER BY 1",
                hex("k"), hex(&format!("\"{column}\"")), hex("a[1]"), hex("big")
            ),
            &format!(
                "SELECT lower(hex(k)) AS h, lower(hex(`{column}`)), e, lower(hex(a[1])), lower(hex(big)), n FROM `{table}` FINAL
                 WHERE _walferry_deleted = 0 ORDER BY h"
            ),
        );
    }
}

/// A byte that is invalid in the database's encoding can't be sent: while it is copied, its table fails
/// alone; in the stream, the Mirror stalls.
fn bytes_without_a_meaning(encoding: &str, odd: &str) {
    let env = TestEnv::encoded(encoding);
    env.admin(&format!(
        "CREATE TABLE copied (id int PRIMARY KEY, v text); CREATE TABLE streamed (id int PRIMARY KEY, v text); CREATE TABLE good (id int PRIMARY KEY, v text);
         ALTER TABLE copied OWNER TO {0}; ALTER TABLE streamed OWNER TO {0}; ALTER TABLE good OWNER TO {0};
         INSERT INTO copied VALUES (1, {odd}); INSERT INTO good VALUES (1, '€')",
        env.database
    ));
    let mut run = env.run(&env.mirror(&["copied", "streamed", "good"]));
    failed_for(&mut run, "copied", Reason::SourceEncoding).resyncs_only("copied");
    run.until_status("the others to stream", |status| {
        let tables = status["tables"].as_array()?;
        (tables.iter().filter(|table| table["state"] == "Streaming").count() == 2).then_some(())
    });
    env.admin("INSERT INTO good VALUES (2, 'ß')");
    env.settle(&mut run);
    env.assert_table("good", "id, v", "id");
    env.admin(&format!("INSERT INTO streamed VALUES (1, {odd})"));
    let failure = stalled_for(&mut run, Reason::SourceEncoding);
    assert_eq!(failure.resyncs(), Some(Vec::new()), "{failure:?}");
}

#[test]
fn bytes_without_a_meaning_in_an_encoding() {
    // The server doesn't validate the bytes of such an encoding.
    bytes_without_a_meaning("WIN1252", r"convert_from('\x4181', 'WIN1252')");
}

#[test]
fn bytes_without_a_meaning_in_no_encoding() {
    bytes_without_a_meaning("SQL_ASCII", r"convert_from('\x41fffe80c3', 'SQL_ASCII')");
}

/// As many columns as PostgreSQL allows, with long names.
#[test]
fn sixteen_hundred_columns() {
    let env = TestEnv::new(Pg::V18);
    let names: Vec<String> = (0..1599).map(|number| format!("\"{}{number}\"", "é".repeat(28))).collect();
    let definitions: Vec<String> = names.iter().map(|name| format!("{name} int")).collect();
    env.sql(&format!("CREATE TABLE t (id int PRIMARY KEY, {})", definitions.join(", ")));
    let insert = |id: u32| {
        let values: Vec<String> = (0..1599)
            .map(|number| if number % 7 == 0 { "NULL".into() } else { (number * id).to_string() })
            .collect();
        env.sql(&format!("INSERT INTO t VALUES ({id}, {})", values.join(", ")));
    };
    insert(1);
    insert(2);
    let mirror = env.mirror(&["t"]);
    let mut run = env.streaming(&mirror);
    insert(3);
    env.sql(&format!("UPDATE t SET {} = -1 WHERE id = 2; DELETE FROM t WHERE id = 1", names[1598]));
    env.settle(&mut run);
    env.assert_same(
        &format!("SELECT id, {} FROM t ORDER BY id", names.join(", ")),
        &format!("SELECT id, {} FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id", names.join(", ")),
    );
    run.stop();
    env.verify(&mirror);
}

/// A value of 64 MiB is copied, streamed, and unchanged by an update; a row of 200 MiB fails its table, and
/// the remedy names the row.
#[test]
fn long_rows() {
    let env = TestEnv::new(Pg::V18);
    for table in ["long", "copied", "streamed"] {
        env.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v text, n int)"));
    }
    let row = |id: u32, megabytes: u32| format!("SELECT {id}, repeat(md5('{id}'), {megabytes} << 15), 0");
    env.sql(&format!("INSERT INTO long {}; INSERT INTO copied {}", row(1, 64), row(1, 200)));
    let mut run = env.run(&env.mirror(&["long", "copied", "streamed"]));
    let failure = failed_for(&mut run, "copied", Reason::RowTooLong);
    assert!(failure.edits("spec.tables[].columns.exclude"), "{failure:?}");
    // The statement that finds such rows.
    assert!(failure.message.contains("SELECT \"id\" FROM"), "{failure:?}");
    run.until_status("the others to stream", |status| {
        let tables = status["tables"].as_array()?;
        (tables.iter().filter(|table| table["state"] == "Streaming").count() == 2).then_some(())
    });
    env.sql(&format!("INSERT INTO streamed VALUES (6, 'x', 0); INSERT INTO streamed {}; INSERT INTO streamed VALUES (8, 'y', 0)", row(7, 200)));
    let failure = failed_for(&mut run, "streamed", Reason::RowTooLong);
    assert!(failure.message.contains("id = 7"), "{failure:?}");
    env.sql(&format!("INSERT INTO long {}; UPDATE long SET n = 1", row(2, 64)));
    env.settle(&mut run);
    env.assert_same(
        "SELECT id, md5(v), n FROM long ORDER BY id",
        "SELECT id, lower(hex(MD5(v))), n FROM long FINAL ORDER BY id",
    );
    let peak = run.peak_memory_mib();
    assert!(peak <= 512, "{peak} MiB");
}
