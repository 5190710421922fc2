//! Large workloads: a transaction of millions of rows, thousands of tables, thousands of transactions a
//! second. `./e2e/tools/large` runs these tests in full size and prints what they measure; `./e2e/test` runs
//! them small.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Mirror, Pg, Run, Server, TestEnv, eventually, parse_lsn, walferry};

/// A quantity, in `./e2e/test` and in `./e2e/tools/large`.
fn size(small: u64, large: u64) -> u64 {
    if full_size() { large } else { small }
}

fn full_size() -> bool {
    std::env::var_os("E2E_LARGE").is_some()
}

/// Databases in servers of their own, which no other test uses.
fn env() -> TestEnv {
    let postgres = Server::postgres(Pg::V18, &["-c", "max_wal_size=16GB", "-c", "shared_buffers=512MB"]);
    TestEnv::on(postgres.into(), Server::clickhouse(&[]).into())
}

/// Waits while walferry runs, for longer than other tests may wait; gives the seconds.
#[track_caller]
fn wait_until(run: &mut Run, awaited: &str, mut holds: impl FnMut(&mut Run) -> bool) -> f64 {
    let started = Instant::now();
    let limit = Duration::from_secs(size(90, 1800));
    while !holds(run) {
        assert!(run.alive(), "walferry ended while waiting for {awaited}");
        assert!(started.elapsed() < limit, "waited in vain for {awaited}; status: {:#}", run.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    started.elapsed().as_secs_f64()
}

fn durable(run: &mut Run) -> u64 {
    run.status()["lastLSN"].as_str().and_then(parse_lsn).unwrap_or_default()
}

/// Waits until everything committed now is durable; gives the seconds.
#[track_caller]
fn arrival(env: &TestEnv, run: &mut Run) -> f64 {
    let lsn = env.lsn();
    wait_until(run, "all to arrive", |run| durable(run) >= lsn)
}

/// Compares a sum over a hash of each row, which differs when rows are missing, changed or duplicated.
fn assert_same_rows(env: &TestEnv, table: &str, columns: &str) {
    env.assert_same(
        &format!("SELECT count(*), coalesce(sum(('x' || left(md5(concat_ws(',', {columns})), 8))::bit(32)::bigint), 0) FROM {table}"),
        &format!(
            "SELECT count(), sum(reinterpretAsUInt32(reverse(substring(MD5(concatWithSeparator(',', {columns})), 1, 4)))) FROM
             (SELECT {columns} FROM {table} FINAL WHERE _walferry_deleted = 0)"
        ),
    );
}

/// Delays each insert into `rows` by 0.3 s, so that walferry can be killed in the middle of a small
/// transaction.
fn slow_down(env: &TestEnv) {
    env.target("CREATE TABLE slow (id Int64, nap UInt8) ENGINE = Null");
    env.target(
        "CREATE MATERIALIZED VIEW slowly TO slow AS SELECT min(id) AS id, sleep(0.3) AS nap FROM rows",
    );
}

/// A transaction with millions of rows, each kind of change once, and kill -9 in the middle of each.
#[test]
fn transaction() {
    crate::needs_own_server!();
    let (env, rows) = (env(), size(100_000, 5_000_000));
    env.sql("CREATE TABLE rows (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)");
    let mut mirror = env.mirror(&["rows"]);
    if !full_size() {
        mirror.mirror["spec"]["batch"] = json!({"maxBytes": "1Mi"});
    }
    let mut run = env.streaming(&mirror);
    if !full_size() {
        slow_down(&env);
    }
    for (change, statement) in [
        (
            "INSERT",
            format!(
                "INSERT INTO rows SELECT i, i % 1000, 'a note of some length ' || i FROM generate_series(1, {rows}) i"
            ),
        ),
        ("UPDATE", "UPDATE rows SET n = n + 1000000".to_owned()),
        ("DELETE", "DELETE FROM rows WHERE id % 2 = 0".to_owned()),
    ] {
        let before = env.lsn();
        env.sql(&statement);
        let end = env.lsn();
        let changed = "SELECT bitShiftRight(max(_walferry_version), 12) * 8 FROM rows";
        let seen = wait_until(&mut run, "the first rows", |_| {
            env.target_value(changed).parse::<u64>().unwrap() > before
        });
        let confirmed = durable(&mut run);
        assert!(confirmed < end, "the transaction arrived before walferry could be killed");
        let killed_at = run.peak_memory_mib();
        run.kill();
        run = env.run(&mirror);
        let seconds = arrival(&env, &mut run);
        let peak = run.peak_memory_mib();
        println!(
            "{change}: {rows} rows, {} MB of log; first rows after {seen:.1} s, then killed; all {seconds:.1} s after the new start; at most {} MiB held",
            (end - before) >> 20,
            peak.max(killed_at),
        );
        assert!(peak.max(killed_at) <= 128, "{killed_at} and {peak} MiB");
        assert_same_rows(&env, "rows", "id, n, note");
    }
    eventually("the slot to keep next to nothing", || {
        let kept = env.slot(&mut run, "pg_wal_lsn_diff(pg_current_wal_lsn(), confirmed_flush_lsn)");
        kept.parse::<f64>().unwrap() < f64::from(1 << 20)
    });
    run.stop();
}

/// The load on both servers so far: transactions at the source, queries at the destination.
struct Load {
    transactions: i64,
    queries: i64,
}

impl Load {
    fn now(env: &TestEnv) -> Load {
        let sql = "SELECT pg_stat_clear_snapshot(), xact_commit FROM pg_stat_database WHERE datname = current_database()";
        let transactions = env.source_value(sql).split('\t').next_back().unwrap().parse().unwrap();
        let queries =
            env.target_value("SELECT value FROM system.events WHERE event = 'Query'").parse().unwrap();
        Load { transactions, queries }
    }

    fn since(&self, env: &TestEnv) -> String {
        let now = Load::now(env);
        let (transactions, queries) = (now.transactions - self.transactions, now.queries - self.queries);
        format!("{transactions} transactions at the source, {queries} queries at the destination")
    }
}

/// CPU seconds that the process has used.
fn cpu_seconds(run: &Run) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", run.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

fn all_stream(run: &mut Run, count: u64) -> bool {
    let status = run.status();
    let tables = status["tables"].as_array().map_or(&[][..], Vec::as_slice);
    tables.iter().filter(|table| table["state"] == "Streaming").count() as u64 == count
}

fn check_thousands(env: &TestEnv, mirror: &Mirror) {
    let (before, started) = (Load::now(env), Instant::now());
    let file = env.write(mirror);
    walferry(&["check", "-f", file.to_str().unwrap()]).exits(0);
    println!("check: {:.1} s; {}", started.elapsed().as_secs_f64(), before.since(env));
}

/// Thousands of tables in one Mirror: copied, streamed, and streamed again after a restart.
#[test]
fn tables() {
    crate::needs_own_server!();
    let (env, count) = (env(), size(100, 2000));
    env.sql(&format!(
        "DO $$ BEGIN FOR i IN 1 .. {count} LOOP
           EXECUTE format('CREATE TABLE t_%s (id int PRIMARY KEY, n int NOT NULL, note text, at timestamptz NOT NULL DEFAULT now())', i);
           EXECUTE format('INSERT INTO t_%s SELECT g, %s, ''copied'' FROM generate_series(1, 3) g', i, i);
         END LOOP; END $$"
    ));
    let names: Vec<String> = (1..=count).map(|number| format!("t_{number}")).collect();
    let mirror = env.mirror(&names.iter().map(String::as_str).collect::<Vec<_>>());
    check_thousands(&env, &mirror);
    let same = || {
        let parts: Vec<String> =
            names.iter().map(|t| format!("SELECT '{t}' AS t, id, n, note FROM {t}")).collect();
        env.assert_same(
            &format!("SELECT * FROM ({}) all_tables ORDER BY t COLLATE \"C\", id", parts.join(" UNION ALL ")),
            "SELECT _table AS t, id, n, note FROM merge(currentDatabase(), '^t_') FINAL WHERE _walferry_deleted = 0 ORDER BY t, id",
        );
    };

    let before = Load::now(&env);
    let mut run = env.run(&mirror);
    let seconds = wait_until(&mut run, "all tables to stream", |run| all_stream(run, count));
    println!("made and copied: {seconds:.1} s; {}; {} MiB", before.since(&env), run.peak_memory_mib());
    arrival(&env, &mut run);
    same();

    let write = |set: &str, commit: &str| {
        env.sql(&format!(
            "DO $$ BEGIN FOR i IN 1 .. {count} LOOP
               EXECUTE format('INSERT INTO t_%s VALUES ({set}, %s, ''streamed''); UPDATE t_%s SET n = n + 1 WHERE id = 2', i, i, i); {commit}
             END LOOP; END $$"
        ));
    };
    for (what, set, commit) in [("one transaction", "4", ""), ("a transaction a table", "5", "COMMIT;")] {
        let before = Load::now(&env);
        write(set, commit);
        let seconds = arrival(&env, &mut run);
        // A used connection stays open for two seconds, so the connections of all concurrent inserts are
        // counted.
        let files = std::fs::read_dir(format!("/proc/{}/fd", run.pid())).unwrap().count();
        println!(
            "rows for all tables in {what}: {seconds:.1} s to arrive; {}; {files} open files",
            before.since(&env)
        );
        assert!(files < 64, "{files} open files: inserts are not bounded");
    }
    same();
    println!("memory: {} MiB; log: {} lines", run.peak_memory_mib(), run.log().lines().count());
    println!(
        "/status: {} KiB; /metrics: {} KiB",
        body(&mut run, "/status") >> 10,
        body(&mut run, "/metrics") >> 10
    );
    run.kill();

    let before = Load::now(&env);
    let mut run = env.run(&mirror);
    write("6", "");
    let seconds = arrival(&env, &mut run);
    assert!(all_stream(&mut run, count), "a table does not stream after a restart");
    println!(
        "started again: {seconds:.1} s until new rows arrived; {}; {} MiB",
        before.since(&env),
        run.peak_memory_mib()
    );
    same();
    if full_size() {
        let (before, used) = (Load::now(&env), cpu_seconds(&run));
        std::thread::sleep(Duration::from_secs(60));
        println!("an idle minute: {}; {:.2} CPU seconds", before.since(&env), cpu_seconds(&run) - used);
    }
    assert!(run.peak_memory_mib() <= 256, "{} MiB", run.peak_memory_mib());
    run.stop();
}

fn body(run: &mut Run, path: &str) -> usize {
    run.http(path).unwrap().1.len()
}

/// Transactions of one row each, many more a second than ClickHouse takes inserts.
#[test]
fn tiny() {
    crate::needs_own_server!();
    let (env, per_second, seconds) = (env(), 10_000, size(3, 60));
    env.sql("CREATE TABLE ticks (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)");
    env.sql(
        "CREATE PROCEDURE tick(seconds int, per_second int) LANGUAGE plpgsql AS $$ DECLARE began timestamptz := clock_timestamp(); BEGIN
           FOR i IN 0 .. seconds * per_second - 1 LOOP
             INSERT INTO ticks VALUES (i, i % 100, 'a row of some length'); COMMIT;
             IF i % 100 = 0 THEN
               PERFORM pg_sleep(greatest(0, i::float8 / per_second - extract(epoch FROM clock_timestamp() - began)));
             END IF;
           END LOOP; END $$",
    );
    let mirror = env.mirror(&["ticks"]);
    let mut run = env.streaming(&mirror);
    let (before, used, started) = (Load::now(&env), cpu_seconds(&run), Instant::now());
    let mut client = env.connect();
    client.batch_execute("SET synchronous_commit = off").unwrap();
    client.batch_execute(&format!("CALL tick({seconds}, {per_second})")).unwrap();
    // A synchronous record behind the last transactions flushes them to the log.
    client
        .batch_execute("SET synchronous_commit = on; SELECT pg_logical_emit_message(true, '', '')")
        .unwrap();
    let wrote = started.elapsed().as_secs_f64();
    let lag = run.status()["lag"].clone();
    let behind = arrival(&env, &mut run);
    let total = seconds * per_second;
    println!(
        "{total} transactions in {wrote:.1} s; lag {lag} at the end, {behind:.1} s until all had arrived; {}; {:.1} CPU seconds; {} MiB",
        before.since(&env),
        cpu_seconds(&run) - used,
        run.peak_memory_mib(),
    );
    println!(
        "parts: {}",
        env.target_value("SELECT concat(toString(countIf(active)), ' active, ', toString(count()), ' with those merged already') FROM system.parts WHERE database = currentDatabase() AND table = 'ticks'")
    );
    assert!(run.peak_memory_mib() <= 128, "{} MiB", run.peak_memory_mib());
    assert_same_rows(&env, "ticks", "id, n, note");
    let status: Value = run.status();
    assert_eq!(status["tables"][0]["inserted"], total, "{status:#}");
    run.stop();
}
