//! The database that `pgbench` creates, mirrored while `pgbench` writes to it.

use std::process::{Command, Stdio};

use crate::{
    on_both,
    support::{Pg, TestEnv},
};

fn pgbench(env: &TestEnv, arguments: &[&str]) -> Command {
    let mut command = Command::new("pgbench");
    command
        .args(["-h", "127.0.0.1", "-p", &env.postgres_port.to_string(), "-U", &env.database])
        .args(arguments)
        .arg(&env.database)
        .env("PGPASSWORD", "role-test")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn caught_up_while_pgbench_runs(pg: Pg) {
    let env = TestEnv::new(pg);
    assert!(pgbench(&env, &["-i", "-q", "-s", "1"]).status().expect("start pgbench").success());
    // pgbench_history is the only table of pgbench without a key.
    env.sql("ALTER TABLE pgbench_history ADD id bigserial PRIMARY KEY");
    let mirror = env.mirror(&["pgbench_accounts", "pgbench_branches", "pgbench_tellers", "pgbench_history"]);
    let mut clients = pgbench(&env, &["-n", "-c", "2", "-T", "5", "-R", "500"]).spawn().unwrap();
    // The first run copies and catches up while the clients write, the second one after they have ended.
    env.catch_up(&mirror);
    assert!(clients.wait().unwrap().success());
    env.catch_up(&mirror);
    for (table, columns, key) in [
        ("pgbench_accounts", "aid, bid, abalance", "aid"),
        ("pgbench_branches", "bid, bbalance", "bid"),
        ("pgbench_tellers", "tid, bid, tbalance", "tid"),
        ("pgbench_history", "id, tid, bid, aid, delta", "id"),
    ] {
        env.assert_table(table, columns, key);
    }
    env.verify(&mirror);
}

on_both!(caught_up_while_pgbench_runs);
