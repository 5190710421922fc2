//! Which row a change belongs to: keys of every type and kind, several changes of one key in one transaction,
//! transactions that commit in another order than they wrote, and tables that are added while transactions
//! are open.

use std::{thread, time::Duration};

use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::json;
use walferry::fault::Reason;

use crate::support::{Pg, Server, TestEnv, UNTIL_CAUGHT_UP, eventually};

/// A type that can be a key, six values of it, and the text of a key at the source and at the target.
struct Key {
    name: &'static str,
    source_type: &'static str,
    values: [&'static str; 6],
    source: &'static str,
    target: &'static str,
}

const fn key(name: &'static str, source_type: &'static str, values: [&'static str; 6]) -> Key {
    Key { name, source_type, values, source: "format('%s', k)", target: "toString(k)" }
}

/// Types that the stream sends in binary form.
const BINARY: &[Key] = &[
    key("text", "text", ["''", "'a b'", "'A'", "E'it''s\\\\\\n'", "'Ünï 東京'", "repeat('long', 400)"]),
    key("varchar", "varchar(20)", ["'a'", "'b'", "'c '", "'d'", "'e'", "'f'"]),
    Key { source: "format('%s', k)", ..key("bpchar", "char(5)", ["'a'", "'b'", "'c'", "'d'", "'e'", "'f'"]) },
    key("citext", "citext", ["'Ab'", "'b'", "'C'", "'d'", "'E'", "'f'"]),
    key("email", "email", ["'A@b'", "'b@b'", "'C@b'", "'d@b'", "'E@b'", "'f@b'"]),
    key(
        "uuid",
        "uuid",
        [
            "'00000000-0000-0000-0000-000000000000'",
            "'10000000-0000-0000-0000-000000000001'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
            "md5('4')::uuid",
            "md5('5')::uuid",
            "md5('6')::uuid",
        ],
    ),
    key("smallint", "smallint", ["-32768", "-1", "0", "1", "2", "32767"]),
    key("bigint", "bigint", ["-9223372036854775808", "-1", "0", "1", "2", "9223372036854775807"]),
    key(
        "date",
        "date",
        ["'1900-01-01'", "'1969-12-31'", "'1970-01-01'", "'2024-02-29'", "'2100-01-01'", "'2299-12-31'"],
    ),
    Key {
        source: "to_char(k, 'YYYY-MM-DD HH24:MI:SS.US')",
        ..key(
            "timestamp",
            "timestamp",
            [
                "'1900-01-01'",
                "'1969-12-31 23:59:59.999999'",
                "'1970-01-01'",
                "'2024-02-29 12:00'",
                "'2100-01-01'",
                "'2299-12-31 23:59:59.999999'",
            ],
        )
    },
    Key {
        source: "to_char(k AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')",
        ..key(
            "timestamptz",
            "timestamptz",
            [
                "'2024-01-01Z'",
                "'2024-01-02 00:00:00.000001Z'",
                "'1999-01-01Z'",
                "'2024-07-01+02'",
                "'2025-01-01Z'",
                "'2026-01-01Z'",
            ],
        )
    },
    Key {
        source: "to_char(k, 'HH24:MI:SS.US')",
        ..key(
            "time",
            "time",
            ["'00:00'", "'00:00:00.000001'", "'12:00'", "'13:00'", "'14:00'", "'23:59:59.999999'"],
        )
    },
    key("numeric", "numeric", ["0", "1.0", "-1.50", "1e30", "123456789012345678901234567890.5", "0.000001"]),
    Key {
        source: "trim_scale(k)::text",
        ..key("decimal", "numeric(12,3)", ["0", "1", "-1.5", "999999999.999", "-999999999.999", "0.001"])
    },
    Key {
        source: "encode(k, 'hex')",
        target: "lower(hex(k))",
        ..key("bytea", "bytea", [r"'\x'", r"'\x00'", r"'\xff'", r"'\x0a5c27'", r"'\x0000'", r"'\xfffe'"])
    },
    key("mood", "mood", ["'sad'", "'ok'", "'it''s'", "'d'", "'e'", "'f'"]),
    Key {
        source: "k::text",
        ..key("boolean", "boolean", ["true", "false", "true", "false", "true", "false"])
    },
    key("array", "int[]", ["'{}'", "'{1}'", "'{1,2}'", "'{1,NULL}'", "'{-5}'", "'{6,6,6}'"]),
    key("double", "double precision", ["0.1", "-0.5", "1000000.5", "0.0001", "123456.75", "2"]),
];

/// Types for which the stream sends all columns of the Mirror as text.
const TEXT: &[Key] = &[
    key("inet", "inet", ["'10.0.0.1'", "'10.0.0.0/8'", "'::1'", "'10.0.0.2'", "'fe80::/64'", "'0.0.0.0'"]),
    key(
        "interval",
        "interval",
        ["'0'", "'1 day'", "'-1 mon'", "'1 year 04:05:06.7'", "'2 days'", "'3 days'"],
    ),
    key("jsonb", "jsonb", ["'1'", "'{}'", "'{\"a\": [1, null]}'", "'null'", "'\"x\"'", "'[]'"]),
    key("range", "int4range", ["'empty'", "'[1,2)'", "'[3,)'", "'(,5)'", "'(,)'", "'[6,7)'"]),
    key("bit", "varbit", ["''", "'0'", "'1'", "'10110'", "'111'", "'00'"]),
];

/// Every way in which a key gets, loses and changes its row; `$1` to `$6` are keys, `T` is the table.
const CHANGES: &str = "
    INSERT INTO T VALUES ($5, 'new', 0), ($6, repeat('fresh', 2000), 1);
    UPDATE T SET n = n + 1 WHERE k = $1;
    DELETE FROM T WHERE k = $2; UPDATE T SET k = $2, n = 30 WHERE k = $5;
    BEGIN; DELETE FROM T WHERE k = $4; UPDATE T SET k = $4 WHERE k = $1; UPDATE T SET n = n + 10 WHERE k = $4; COMMIT;
    BEGIN; UPDATE T SET k = $1 WHERE k = $3; UPDATE T SET k = $3 WHERE k = $4; UPDATE T SET k = $4 WHERE k = $1; COMMIT;
    BEGIN; INSERT INTO T VALUES ($1, 'gone', 0); UPDATE T SET n = 5 WHERE k = $1; DELETE FROM T WHERE k = $1; COMMIT;
    BEGIN; INSERT INTO T VALUES ($5, 'x', 0); DELETE FROM T WHERE k = $5; INSERT INTO T VALUES ($5, 'kept', 2); COMMIT;
    BEGIN; DELETE FROM T WHERE k = $6; INSERT INTO T VALUES ($6, NULL, 3); UPDATE T SET big = repeat('z', 9000) WHERE k = $6;
        UPDATE T SET n = n * 2 WHERE k = $6; COMMIT;";

/// The same for a type of two values.
const CHANGES_OF_TWO: &str = "
    UPDATE T SET n = n + 1 WHERE k = $1;
    BEGIN; DELETE FROM T WHERE k = $2; UPDATE T SET k = $2, n = 7 WHERE k = $1; COMMIT;
    BEGIN; INSERT INTO T VALUES ($1, 'new', 8); UPDATE T SET n = 9; COMMIT;";

impl Key {
    /// How many of the values exist before the copy.
    fn copied(&self) -> usize {
        if self.name == "boolean" { 2 } else { 4 }
    }

    fn changes(&self, table: &str) -> String {
        let mut text = if self.name == "boolean" { CHANGES_OF_TWO } else { CHANGES }.to_owned();
        for word in ["INTO", "FROM", "UPDATE"] {
            text = text.replace(&format!("{word} T "), &format!("{word} {table} "));
        }
        let values = self.values.iter().enumerate();
        values.fold(text, |text, (index, value)| text.replace(&format!("${}", index + 1), value))
    }
}

/// Runs statements one by one.
#[track_caller]
fn run_sql(client: &mut postgres::Client, statements: &str) {
    for statement in statements.split(";\n") {
        client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
}

/// Creates a table with such a key, whose name ends with its replica identity, and its first rows.
fn create_table(client: &mut postgres::Client, table: &str, key: &Key) {
    let kind = key.source_type;
    let create = match table.rsplit('_').next() {
        Some("index") => format!(
            "CREATE TABLE {table} (k {kind} NOT NULL UNIQUE, big text, n int);
             ALTER TABLE {table} REPLICA IDENTITY USING INDEX {table}_k_key"
        ),
        Some("full") => format!(
            "CREATE TABLE {table} (k {kind} PRIMARY KEY, big text, n int); ALTER TABLE {table} REPLICA IDENTITY FULL"
        ),
        _ => format!("CREATE TABLE {table} (k {kind} PRIMARY KEY, big text, n int)"),
    };
    run_sql(client, &create);
    run_sql(client, &format!("ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL"));
    for value in &key.values[..key.copied()] {
        run_sql(
            client,
            &format!("INSERT INTO {table} VALUES ({value}, repeat(md5(({value})::text), 300), 0)"),
        );
    }
}

/// Changes one table for each type. An update that doesn't change the large value is sent without it.
fn changes_of_keys(keys: &[&Key]) {
    let env = TestEnv::new(Pg::V18);
    env.admin(
        "CREATE EXTENSION citext; CREATE DOMAIN email AS citext CHECK (VALUE LIKE '%@%');
         CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s', 'd', 'e', 'f')",
    );
    // Three types are enough to test every replica identity, whose meaning doesn't depend on the type.
    let identities = ["default", "index", "full"];
    let tables: Vec<(String, &Key)> = keys
        .iter()
        .flat_map(|key| {
            let some = if ["numeric", "bytea", "inet"].contains(&key.name) { 3 } else { 1 };
            identities[..some].iter().map(|identity| (format!("{}_{identity}", key.name), *key))
        })
        .collect();
    let mut client = env.connect();
    for (table, key) in &tables {
        create_table(&mut client, table, key);
    }
    let names: Vec<&str> = tables.iter().map(|(name, _)| name.as_str()).collect();
    let mut run = env.streaming(&env.mirror(&names));
    let compare = || {
        let (mut source, mut target) = (Vec::new(), Vec::new());
        for (table, key) in &tables {
            source.push(format!(
                "SELECT '{table}' AS t, ({}) COLLATE \"C\" AS shown, md5(big), n FROM {table}",
                key.source
            ));
            target.push(format!(
                "SELECT '{table}' AS t, {} AS shown, lower(hex(MD5(big))), n FROM {table} FINAL WHERE _walferry_deleted = 0",
                key.target
            ));
        }
        env.assert_same(
            &format!("{} ORDER BY t, shown", source.join(" UNION ALL ")),
            &format!("SELECT * FROM ({}) ORDER BY t, shown", target.join(" UNION ALL ")),
        );
    };
    compare();
    for (table, key) in &tables {
        run_sql(&mut client, &key.changes(table));
    }
    env.settle(&mut run);
    compare();
}

#[test]
fn keys_in_binary_form() {
    changes_of_keys(&BINARY.iter().collect::<Vec<_>>());
}

#[test]
fn keys_in_text_form() {
    let again = [
        "bpchar",
        "citext",
        "uuid",
        "timestamptz",
        "numeric",
        "decimal",
        "bytea",
        "mood",
        "boolean",
        "array",
    ];
    let again = BINARY.iter().filter(|key| again.contains(&key.name));
    changes_of_keys(&TEXT.iter().chain(again).collect::<Vec<_>>());
}

/// Composite keys in another order than the columns, a key that is stored out of line, and transactions that
/// change few rows many times, with savepoints, or prepared.
#[test]
fn many_changes_in_one_transaction() {
    crate::needs_own_server!();
    let postgres = Server::postgres(Pg::V18, &["-c", "max_prepared_transactions=10"]);
    let env = TestEnv::on(postgres.into(), Server::shared_clickhouse());
    env.sql(
        "CREATE TABLE pair (n int, b text, big text, a int, PRIMARY KEY (a, b)); ALTER TABLE pair ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE busy (id int PRIMARY KEY, n int, big text); ALTER TABLE busy ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE long (k text PRIMARY KEY, pad text, n int); ALTER TABLE long ALTER pad SET STORAGE PLAIN;
         INSERT INTO pair SELECT i, 'b' || i % 3, repeat(md5(i::text), 200), i FROM generate_series(1, 30) i;
         INSERT INTO busy SELECT i, 0, repeat(md5(i::text), 200) FROM generate_series(1, 10) i;
         INSERT INTO long SELECT repeat('k', 150000) || i, repeat('p', 2000), 0 FROM generate_series(1, 5) i",
    );
    let mut run = env.streaming(&env.mirror(&["pair", "busy", "long"]));
    env.sql(
        "UPDATE pair SET n = -n WHERE a < 10; UPDATE pair SET a = a + 100 WHERE a BETWEEN 10 AND 15;
         UPDATE pair SET b = 'moved', n = 0 WHERE a BETWEEN 16 AND 20; DELETE FROM pair WHERE a > 25 AND b = 'b0'",
    );
    env.sql("UPDATE long SET n = 1 WHERE k LIKE '%1'; UPDATE long SET k = k || 'x', n = 2 WHERE k LIKE '%2'; DELETE FROM long WHERE k LIKE '%3'");
    let updates = "UPDATE busy SET n = n + 1 WHERE id = 1;".repeat(1000);
    env.sql(&format!("BEGIN; {updates} COMMIT"));
    env.sql("BEGIN; DO 'BEGIN FOR i IN 1..500 LOOP UPDATE busy SET n = i WHERE id = 2; DELETE FROM busy WHERE id = 3; INSERT INTO busy VALUES (3, i, NULL); END LOOP; END'; COMMIT");
    env.sql(
        "BEGIN; UPDATE busy SET n = 1 WHERE id = 4; SAVEPOINT a; DELETE FROM busy WHERE id = 4; SAVEPOINT b; INSERT INTO busy VALUES (4, 9, 'x');
         ROLLBACK TO b; INSERT INTO busy VALUES (11, 1, 'kept'); ROLLBACK TO a; UPDATE busy SET n = n + 1 WHERE id = 4;
         SAVEPOINT c; UPDATE busy SET id = 40 WHERE id = 4; RELEASE c; COMMIT",
    );
    // One transaction is prepared, and committed after others changed the same table; another one is rolled
    // back.
    let mut client = env.connect();
    for statement in [
        "BEGIN; UPDATE busy SET n = 50 WHERE id = 5; INSERT INTO busy VALUES (12, 0, 'prepared'); PREPARE TRANSACTION 'walferry_one'",
        "BEGIN; UPDATE busy SET n = 60 WHERE id = 6; PREPARE TRANSACTION 'walferry_two'",
        "UPDATE busy SET n = 7 WHERE id = 7",
        "COMMIT PREPARED 'walferry_one'",
        "ROLLBACK PREPARED 'walferry_two'",
        "UPDATE busy SET n = n + 1, big = big || 'end' WHERE id IN (5, 6)",
    ] {
        client.batch_execute(statement).unwrap();
    }
    env.settle(&mut run);
    for (table, key, source, target) in [
        ("pair", "a, b", "a, b, n, md5(big)", "a, b, n, lower(hex(MD5(big)))"),
        ("busy", "id", "id, n, md5(big)", "id, n, lower(hex(MD5(big)))"),
        ("long", "1", "md5(k), pad, n", "lower(hex(MD5(k))) AS hash, pad, n"),
    ] {
        env.assert_same(
            &format!("SELECT {source} FROM {table} ORDER BY {key}"),
            &format!("SELECT {target} FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY {key}"),
        );
    }
    assert_eq!(env.target_value("SELECT n FROM busy FINAL WHERE id = 1"), "1000");
}

/// A row is written to the log before its unique indexes are checked, so a transaction may write earlier and
/// commit later than another. Here the key's new row waits for another index until the delete of its old row
/// is committed.
#[test]
fn commit_order_against_log_order() {
    let env = TestEnv::new(Pg::V18);
    // The index of the key is created last, so that it is checked last.
    for table in ["inserted", "updated"] {
        env.sql(&format!(
            "CREATE TABLE {table} (id int NOT NULL, code int, v text); CREATE UNIQUE INDEX {table}_code ON {table} (code);
             ALTER TABLE {table} ADD PRIMARY KEY (id); INSERT INTO {table} VALUES (1, 1, 'old'), (2, 2, 'other')"
        ));
    }
    let mut run = env.streaming(&env.mirror(&["inserted", "updated"]));
    for (table, write) in [
        ("inserted", "INSERT INTO inserted VALUES (1, 7, 'new')"),
        ("updated", "UPDATE updated SET id = 1, code = 7, v = 'new' WHERE id = 2"),
    ] {
        let mut holder = env.connect();
        holder.batch_execute(&format!("BEGIN; INSERT INTO {table} VALUES (3, 7, 'never')")).unwrap();
        let mut writer = env.connect();
        let writing = thread::spawn(move || writer.batch_execute(write));
        eventually("the writer to wait", || {
            env.source_value("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == "1"
        });
        env.sql(&format!("DELETE FROM {table} WHERE id = 1"));
        holder.batch_execute("ROLLBACK").unwrap();
        writing.join().unwrap().unwrap();
    }
    env.settle(&mut run);
    for table in ["inserted", "updated"] {
        env.assert_table(table, "id, code, v", "id");
        assert_eq!(env.source_value(&format!("SELECT v FROM {table} WHERE id = 1")), "new");
    }
}

/// Of many changes of a key with one version, the last one wins, also when the process is killed between two
/// inserts of the transaction while one of them hangs at a destination that doesn't answer.
#[test]
fn equal_versions_over_kills_and_a_hanging_destination() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::shared_postgres(Pg::V18), Server::clickhouse(&[]).into());
    env.sql("CREATE TABLE t (id int PRIMARY KEY, n int, v text); INSERT INTO t SELECT i, 0, 'old' FROM generate_series(1, 20) i");
    let mut mirror = env.mirror(&["t"]);
    mirror.mirror["spec"]["batch"] = json!({"maxBytes": "1Mi", "maxDelayMilliseconds": 1});
    env.catch_up(&mirror);
    let clickhouse = Pid::from_raw(env.clickhouse_server.pid());
    let signal = |signal| nix::sys::signal::kill(clickhouse, signal).unwrap();
    let mut random = Random(20_261_121);
    for round in 1..=5 {
        let seed = random.0;
        let mut run = env.run(&mirror);
        if random.below(3) > 0 {
            run.until_streaming();
        }
        env.sql(&format!(
            "DO 'BEGIN FOR i IN 1..800 LOOP UPDATE t SET n = i + {round} * 10000, v = repeat(chr(65 + i % 26), 60); END LOOP;
                DELETE FROM t WHERE id % 5 = {round} % 5; INSERT INTO t SELECT i, {round}, NULL FROM generate_series(1, 20) i ON CONFLICT DO NOTHING; END'"
        ));
        random.pause(300);
        signal(Signal::SIGSTOP);
        random.pause(60);
        run.kill();
        let early = random.below(2) == 0;
        if early {
            signal(Signal::SIGCONT);
            random.pause(20);
        }
        let mut run = env.run(&mirror);
        random.pause(400);
        signal(Signal::SIGCONT);
        run.until_streaming();
        env.settle(&mut run);
        println!("round {round}, seed {seed}");
        env.assert_table("t", "id, n, v", "id");
        run.stop();
    }
}

/// Pseudo-random numbers, the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    /// Sleeps for some milliseconds, so that what follows meets the program at a random point.
    fn pause(&mut self, most: u64) {
        thread::sleep(Duration::from_millis(self.below(most)));
    }
}

/// Whether a table waits for transactions, with what it waits for.
fn waits(table: &'static str) -> impl Fn(&serde_json::Value) -> Option<String> {
    move |status| {
        let table = status["tables"].as_array()?.iter().find(|entry| entry["name"] == table)?;
        (table["reason"] == "WaitingForTransactions").then(|| table["message"].as_str().unwrap().to_owned())
    }
}

/// Tables are added to a running slot while transactions are open that wrote to them, one of them prepared.
/// Their copies wait and report it, and other tables don't wait. The same holds for a resync, and for a table
/// that was removed and is added again.
#[test]
fn transactions_open_when_tables_are_added() {
    crate::needs_own_server!();
    let postgres = Server::postgres(Pg::V18, &["-c", "max_prepared_transactions=10"]);
    let env = TestEnv::on(postgres.into(), Server::shared_clickhouse());
    for table in ["a", "b", "c"] {
        env.sql(&format!("CREATE TABLE {table} (id int PRIMARY KEY, v text); INSERT INTO {table} SELECT i, 'old' FROM generate_series(1, 10) i"));
    }
    env.catch_up(&env.mirror(&["a"]));
    let mirror = env.mirror(&["a", "b", "c"]);
    let compare = || {
        for table in ["a", "b", "c"] {
            env.assert_table(table, "id, v", "id");
        }
    };
    let mut open = env.connect();
    open.batch_execute("BEGIN; INSERT INTO b VALUES (11, 'before'); UPDATE b SET v = 'before' WHERE id = 1; DELETE FROM b WHERE id = 2").unwrap();
    env.sql("BEGIN; INSERT INTO c VALUES (11, 'prepared'); UPDATE c SET id = 20 WHERE id = 1; PREPARE TRANSACTION 'walferry_join'");
    let mut run = env.run(&mirror);
    run.until_status("b to wait", waits("b"));
    open.batch_execute("INSERT INTO b VALUES (12, 'after'); UPDATE b SET v = 'after' WHERE id = 3; UPDATE b SET id = 13 WHERE id = 4").unwrap();
    env.sql("INSERT INTO a VALUES (11, 'meanwhile'); INSERT INTO b VALUES (14, 'meanwhile'); UPDATE c SET v = 'meanwhile' WHERE id = 5");
    eventually("the streaming table to continue", || env.target_value("SELECT count() FROM a FINAL") == "11");
    open.batch_execute("COMMIT").unwrap();
    let message = run.until_status("c to wait for the prepared transaction", waits("c"));
    assert!(message.contains("walferry_join"), "{message}");
    env.sql("COMMIT PREPARED 'walferry_join'");
    run.until_streaming();
    env.settle(&mut run);
    compare();
    run.stop();
    // A resync waits for them when it creates its slot.
    open.batch_execute("BEGIN; INSERT INTO a VALUES (30, 'before'); DELETE FROM b WHERE id = 5; UPDATE c SET v = 'open' WHERE id = 6").unwrap();
    let mut again = mirror.clone();
    again.mirror["metadata"]["annotations"] = json!({"walferry.dev/resync": "1"});
    let mut run = env.run(&again);
    eventually("the new slot to wait", || {
        env.source_value("SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted")
            != "0"
    });
    open.batch_execute("INSERT INTO a VALUES (31, 'after'); UPDATE b SET v = 'late' WHERE id = 6; DELETE FROM c WHERE id = 7; COMMIT").unwrap();
    run.until_streaming();
    env.settle(&mut run);
    compare();
    run.stop();
    // Changes are not streamed while a table is removed, so its old rows must not stay when it is added
    // again.
    env.catch_up(&{
        let mut fewer = env.mirror(&["a", "c"]);
        fewer.mirror["metadata"]["annotations"] = again.mirror["metadata"]["annotations"].clone();
        fewer
    });
    env.sql("DELETE FROM b WHERE id = 3; UPDATE b SET v = 'while out'");
    env.command("run", &again, &UNTIL_CAUGHT_UP)
        .exits(1)
        .refuses("public.b", Reason::DestinationTableConflict)
        .says(&["TRUNCATE TABLE"]);
    env.target("TRUNCATE TABLE b");
    env.catch_up(&again);
    compare();
}

/// A transaction commits in the log before the start of a new slot, and stays invisible while it waits for a
/// synchronous standby. It is not in the stream, so the copy waits until it can see it.
#[test]
fn an_invisible_commit_while_the_slot_is_created() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE other (id int); INSERT INTO t VALUES (1)");
    let mirror = env.mirror(&["t"]);
    let (mut first, mut second) = (env.connect(), env.connect());
    first.batch_execute("BEGIN; SET LOCAL synchronous_commit = local; INSERT INTO other VALUES (1)").unwrap();
    let mut run = env.run(&mirror);
    let awaited = |client: &mut postgres::Client| {
        let xid: String = client.query_one("SELECT pg_current_xact_id()::text", &[]).unwrap().get(0);
        eventually("the slot to wait", || {
            env.source_value(&format!("SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND transactionid::text = '{xid}' AND NOT granted")) != "0"
        });
    };
    awaited(&mut first);
    second
        .batch_execute("BEGIN; SET LOCAL synchronous_commit = local; INSERT INTO other VALUES (2)")
        .unwrap();
    first.batch_execute("COMMIT").unwrap();
    awaited(&mut second);
    env.hold_commits();
    // This is a new session, because an existing one notices the changed setting only with its next
    // statement.
    let mut waiting = env.connect();
    let committing = thread::spawn(move || waiting.batch_execute("INSERT INTO t VALUES (2)"));
    eventually("the commit to wait", || {
        env.source_value("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1"
    });
    second.batch_execute("COMMIT").unwrap();
    eventually("the slot to be created", || {
        env.source_value("SELECT count(*) FROM pg_replication_slots WHERE confirmed_flush_lsn IS NOT NULL")
            == "1"
    });
    // Only the log line about this wait lists transactions.
    eventually("the copy to wait", || run.log().contains("transactions=["));
    env.release_commits();
    committing.join().unwrap().unwrap();
    run.until_streaming();
    env.settle(&mut run);
    env.assert_table("t", "id", "id");
}
