//! Large values that an UPDATE doesn't change are not in the stream: they are re-fetched from the source,
//! never lost, never NULL.

use serde_json::json;

use crate::support::{Pg, Run, Server, TestEnv, eventually, until};

/// Compares every large column by its hash.
fn compare(env: &TestEnv) {
    env.assert_same(
        "SELECT id, md5(a), md5(b), j->>'v' = repeat('j', 9000), cardinality(l), encode(sha256(y), 'hex'), n FROM wide ORDER BY id",
        "SELECT id, lower(hex(MD5(a))), lower(hex(MD5(b))), if(j IS NULL, NULL, if(JSONExtractString(j, 'v') = repeat('j', 9000), 't', 'f')),
            length(l), lower(hex(SHA256(assumeNotNull(y)))), n
         FROM wide FINAL WHERE _walferry_deleted = 0 ORDER BY id",
    );
    for table in ["pair", "gone", "moved"] {
        env.assert_same(
            &format!("SELECT id, part, md5(big), md5(other), n FROM {table} ORDER BY id, part"),
            &format!(
                "SELECT id, part, lower(hex(MD5(big))), lower(hex(MD5(other))), n FROM {table} FINAL WHERE _walferry_deleted = 0 ORDER BY id, part"
            ),
        );
    }
}

/// Columns of several types, in binary and in text form, a composite key, rows from before the slot, and rows
/// that are deleted or get another key before they are re-fetched.
#[test]
fn unchanged_values_of_every_kind() {
    for extra in ["", ", odd inet"] {
        let env = TestEnv::new(Pg::V18);
        env.sql(&format!(
            "CREATE TABLE wide (id int PRIMARY KEY, a text, b text NOT NULL, j jsonb, l text[], y bytea, n int NOT NULL{extra});
             ALTER TABLE wide ALTER a SET STORAGE EXTERNAL, ALTER b SET STORAGE EXTERNAL, ALTER j SET STORAGE EXTERNAL,
                ALTER l SET STORAGE EXTERNAL, ALTER y SET STORAGE EXTERNAL;
             CREATE FUNCTION fill(first int, last int) RETURNS void LANGUAGE sql AS $$
                INSERT INTO wide (id, a, b, j, l, y, n) SELECT i, repeat(md5(i::text), 300), repeat('b', 5000 + i), jsonb_build_object('v', repeat('j', 9000)),
                    array_fill(i::text, ARRAY[3000]), decode(repeat('00ff', 4000), 'hex'), 0 FROM generate_series(first, last) i $$;
             SELECT fill(1, 300)"
        ));
        for table in ["pair", "gone", "moved"] {
            env.sql(&format!(
                "CREATE TABLE {table} (big text, part text, n int, id int, other text, PRIMARY KEY (id, part));
                 ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL;
                 INSERT INTO {table} SELECT repeat(md5(i::text), 200), 'p' || i % 2, 0, i, repeat(md5(i::text), 300) FROM generate_series(1, 40) i"
            ));
        }
        let mut run = env.streaming(&env.mirror(&["wide", "pair", "gone", "moved"]));
        env.sql("UPDATE wide SET n = n + 1");
        env.sql("BEGIN; UPDATE wide SET n = n + 1 WHERE id < 50; UPDATE wide SET a = 'short' WHERE id < 20; UPDATE wide SET n = n + 1 WHERE id < 50; COMMIT");
        env.sql("BEGIN; SELECT fill(301, 310); UPDATE wide SET n = 1 WHERE id > 300; UPDATE wide SET b = repeat('c', 4000) WHERE id > 305; COMMIT");
        env.sql("UPDATE wide SET a = NULL WHERE id = 60; UPDATE wide SET n = 9 WHERE id = 60; UPDATE wide SET j = NULL, l = '{}' WHERE id = 61");
        env.sql("UPDATE pair SET n = 1; UPDATE pair SET part = 'q' WHERE id < 10; UPDATE pair SET big = repeat('w', 3000) WHERE id > 30");
        // The process is stopped while rows are changed, deleted and inserted again, so that the re-fetched
        // rows are newer than the change.
        run.signal(nix::sys::signal::Signal::SIGSTOP);
        env.sql("UPDATE gone SET n = 1; UPDATE moved SET n = 1");
        env.sql("DELETE FROM gone WHERE id <= 10; UPDATE moved SET id = id + 100 WHERE id <= 10; UPDATE moved SET part = part || 'x', n = 2 WHERE id BETWEEN 11 AND 20");
        env.sql("INSERT INTO gone SELECT 'small', part, 5, id, NULL FROM moved WHERE id BETWEEN 101 AND 105; INSERT INTO gone SELECT big, 'p1', 6, 1, other FROM moved WHERE id = 40");
        env.sql("UPDATE gone SET other = repeat('later', 2000), n = 3 WHERE id BETWEEN 20 AND 30");
        run.signal(nix::sys::signal::Signal::SIGCONT);
        env.settle(&mut run);
        compare(&env);
        assert!(run.table("wide")["refetched"].as_u64().unwrap() >= 300, "{}", run.table("wide"));
        let (_, metrics) = run.http("/metrics").unwrap();
        let counted =
            metrics.lines().find(|line| line.contains("refetched") && line.contains("table=\"wide\""));
        assert!(counted.is_some_and(|line| !line.ends_with(" 0")), "{metrics}");
    }
}

/// With an absent synchronous standby a commit is in the stream long before it is visible. A row that is
/// re-fetched then would be an old one, or none.
#[test]
fn a_commit_that_waits_for_a_standby() {
    crate::needs_own_server!();
    let env = TestEnv::on(Server::postgres(Pg::V18, &[]).into(), Server::shared_clickhouse());
    env.sql(
        "CREATE TABLE t (id int PRIMARY KEY, big text, n int); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
         CREATE TABLE other (id int PRIMARY KEY);
         INSERT INTO t SELECT i, repeat(md5(i::text), 200), 0 FROM generate_series(1, 4) i",
    );
    let file = env.write(&env.mirror(&["t", "other"]));
    let mut run = Run::start_in(&file, &[("RUST_LOG", "walferry=debug".to_owned())]);
    run.until_streaming();
    env.settle(&mut run);
    env.hold_commits();
    let mut client = env.connect();
    let committing = std::thread::spawn(move || {
        client.batch_execute(
            "BEGIN; UPDATE t SET id = 10 WHERE id = 1; UPDATE t SET big = repeat('new', 3000) WHERE id = 2; UPDATE t SET n = 2 WHERE id = 2;
             INSERT INTO t VALUES (5, repeat('five', 3000), 0); UPDATE t SET n = 5 WHERE id = 5; INSERT INTO other VALUES (1); COMMIT",
        )
    });
    // The rows of the other table show that the transaction was received.
    eventually("the transaction to arrive", || env.target_value("SELECT count() FROM other FINAL") == "1");
    eventually("the rows to wait", || {
        run.log().contains("waits for a commit that the source does not show yet")
    });
    let received = env.target("SELECT id, n FROM t FINAL WHERE _walferry_deleted = 0 ORDER BY id");
    env.release_commits();
    committing.join().unwrap().unwrap();
    env.settle(&mut run);
    let columns = |md5: &str| format!("SELECT id, {md5}, n FROM t");
    env.assert_same(
        &format!("{} ORDER BY id", columns("md5(big)")),
        &format!("{} FINAL WHERE _walferry_deleted = 0 ORDER BY id", columns("lower(hex(MD5(big)))")),
    );
    assert_eq!(received, "1\t0\n2\t0\n3\t0\n4\t0\n", "nothing is shown before it can be completed");
}

/// Rows of several megabytes are re-fetched a few at a time, and a table that is locked at the source delays
/// no other one.
#[test]
fn large_rows_and_locked_tables() {
    let env = TestEnv::new(Pg::V18);
    env.sql(
        "CREATE TABLE large (id int PRIMARY KEY, big text, n int); CREATE TABLE other (id int PRIMARY KEY, big text, n int);
         INSERT INTO large SELECT i, repeat(md5(i::text), 100000), 0 FROM generate_series(1, 60) i;
         INSERT INTO other SELECT i, repeat(md5(i::text), 10000), 0 FROM generate_series(1, 50) i",
    );
    let mut mirror = env.mirror(&["large", "other"]);
    mirror.mirror["spec"]["batch"] = json!({"maxBytes": "16Mi"});
    let mut run = env.streaming(&mirror);
    env.sql("UPDATE large SET n = 1");
    env.settle(&mut run);
    let peak = run.peak_memory_mib();
    assert!(peak <= 128, "{peak} MiB");
    // The change is in the stream, and the table is locked before the row is re-fetched.
    run.signal(nix::sys::signal::Signal::SIGSTOP);
    env.sql("UPDATE large SET n = 2 WHERE id < 10");
    let mut locking = env.connect();
    locking.batch_execute("BEGIN; LOCK TABLE large").unwrap();
    env.sql("UPDATE other SET n = 1");
    run.signal(nix::sys::signal::Signal::SIGCONT);
    until("the other table's rows", || {
        (env.target_value("SELECT countIf(n = 1) FROM other FINAL") == "50").then_some(())
    });
    locking.batch_execute("COMMIT").unwrap();
    env.settle(&mut run);
    for table in ["large", "other"] {
        env.assert_same(
            &format!("SELECT id, md5(big), n FROM {table} ORDER BY id"),
            &format!("SELECT id, lower(hex(MD5(big))), n FROM {table} FINAL ORDER BY id"),
        );
    }
}

/// Types of extensions have an equality operator of their own, which a search path without their schema
/// doesn't find.
#[test]
fn keys_whose_equality_is_in_another_schema() {
    let env = TestEnv::new(Pg::V18);
    let database = &env.database;
    env.admin(&format!(
        "CREATE SCHEMA ext; GRANT USAGE ON SCHEMA ext TO {database}; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
         CREATE DOMAIN email AS ext.citext; GRANT USAGE ON TYPE email TO {database}"
    ));
    let keys = [
        ("words", "ext.citext", "'Word' || i"),
        ("paths", "ext.ltree", "'a.b' || i"),
        ("emails", "email", "'A@b' || i"),
    ];
    for (table, kind, key) in keys {
        env.sql(&format!(
            "CREATE TABLE {table} (k {kind} PRIMARY KEY, n int, big text); ALTER TABLE {table} ALTER big SET STORAGE EXTERNAL;
             INSERT INTO {table} SELECT ({key})::{kind}, i % 3, repeat(md5(i::text), 100) FROM generate_series(1, 3000) i; ANALYZE {table}"
        ));
        env.sql(&format!("ALTER TABLE {table} ADD touched int"));
    }
    let mut run = env.streaming(&env.mirror(&keys.map(|(table, ..)| table)));
    let scans = |table: &str, column: &str| -> u64 {
        env.source_value(&format!("SELECT {column} FROM pg_stat_user_tables WHERE relname = '{table}'"))
            .parse()
            .unwrap()
    };
    let before = keys.map(|(table, ..)| (scans(table, "idx_scan"), scans(table, "seq_scan")));
    for (table, kind, key) in keys {
        env.sql(&format!(
            "SET search_path = public, ext; SET enable_seqscan = off;
             UPDATE {table} SET touched = 1 WHERE k = ({})::{kind}",
            key.replace("|| i", "|| 7")
        ));
    }
    env.settle(&mut run);
    for ((table, ..), (by_index, whole)) in keys.into_iter().zip(before) {
        // One index scan is the application's, the other one that of the re-fetch.
        eventually("the server's statistics of the read", || scans(table, "idx_scan") >= by_index + 2);
        assert_eq!(scans(table, "seq_scan"), whole, "{table} is read as a whole for one row");
        env.assert_same(
            &format!("SELECT k::text COLLATE \"C\" AS k, n, md5(big), touched FROM {table} ORDER BY 1"),
            &format!("SELECT k, n, lower(hex(MD5(big))), touched FROM {table} FINAL ORDER BY k"),
        );
    }
    run.stop();
}
