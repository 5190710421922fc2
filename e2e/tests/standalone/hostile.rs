//! Servers that break the protocol or send without end: walferry names the violation, within bounded memory
//! and time. Reasons are too coarse here, because a closed connection has the same one as most violations.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Attack, MaliciousServer, Mirror, Pg, TestEnv};

/// The most resident memory under any attack. The tests' build is not optimized and takes more than a
/// release.
const MOST_MEMORY_MIB: u64 = 256;

/// The longest time until the violation is logged.
const SOON: Duration = Duration::from_secs(30);

fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    [&[tag], (body.len() as u32 + 4).to_be_bytes().as_slice(), body].concat()
}

/// The head of a message that announces `length` bytes.
fn head(tag: u8, length: u32) -> Vec<u8> {
    [[tag].as_slice(), &length.to_be_bytes()].concat()
}

fn notice() -> Vec<u8> {
    frame(b'N', &[b"SNOTICE\0C00000\0M".as_slice(), &vec![b'x'; 1 << 16], b"\0\0"].concat())
}

fn env() -> TestEnv {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) i");
    env
}

/// Runs until each of `words` is in the log: memory stays within its bound all the time.
#[track_caller]
fn logs_violation(env: &TestEnv, mirror: &Mirror, words: &[&str]) {
    let run = env.run(mirror);
    let (started, mut peak) = (Instant::now(), 0);
    loop {
        // A Mirror that can't start ends the process.
        if let Some(now) = run.peak_memory_while_alive() {
            peak = now;
            assert!(peak < MOST_MEMORY_MIB, "{words:?}: {peak} MiB");
        }
        let log = run.log();
        if words.iter().all(|word| log.contains(word)) {
            break;
        }
        assert!(started.elapsed() < SOON, "{words:?} are not logged in time");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("{words:?}: {peak} MiB after {:?}", started.elapsed());
    run.kill();
}

/// A Mirror whose source is a malicious server that attacks once a request contains `words`.
fn postgres(env: &TestEnv, words: &'static str, attack: Attack) -> Mirror {
    let malicious_server = MaliciousServer::of(env.postgres_port, words, attack);
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["port"] = json!(malicious_server.port);
    mirror
}

/// A Mirror whose destination is a malicious server that attacks once a request contains `words`.
fn clickhouse(env: &TestEnv, words: &'static str, attack: Attack) -> Mirror {
    let malicious_server = MaliciousServer::of(env.clickhouse.port, words, attack);
    let mut mirror = env.mirror(&["t"]);
    mirror.clickhouse["spec"]["clickhouse"]["url"] =
        json!(format!("http://127.0.0.1:{}", malicious_server.port));
    mirror
}

#[test]
fn postgres_before_authentication() {
    let env = env();
    let attack = |attack: Attack, words: &[&str]| logs_violation(&env, &postgres(&env, "", attack), words);
    attack(Attack::once("HTTP/1.1 400 Bad Request\r\n\r\n"), &["impossible length"]);
    for length in [0, 3, 1 << 30, u32::MAX] {
        attack(Attack::once(head(b'E', length)), &["impossible length"]);
    }
    let megabyte = vec![b'x'; 1 << 20];
    attack(Attack::endless(head(b'R', 1 << 30), megabyte), &["impossible length"]);
    attack(Attack::endless([], notice().repeat(16)), &["unexpected message"]);
    attack(Attack::once([]), &["within 10 s"]);
}

#[test]
fn postgres_after_authentication() {
    let env = env();
    // The catalog, read through the SQL driver.
    let attack = |words: &'static str, attack: Attack, violation: &[&str]| {
        logs_violation(&env, &postgres(&env, words, attack), violation);
    };
    attack("server_version_num", Attack::once(head(b'T', 1 << 30)), &["impossible length"]);
    let notice = notice();
    attack("server_version_num", Attack::endless([], notice.repeat(16)), &["does not end"]);
    // The copy: an announced row takes no memory until it arrives.
    let both = |tag: u8| frame(tag, b"\x01\0\0");
    let header = frame(b'd', b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0");
    let copy = |rest: Vec<u8>| [both(b'H'), header.clone(), rest].concat();
    attack("COPY (SELECT", Attack::once(copy(head(b'd', u32::MAX))), &["impossible length"]);
    attack(
        "COPY (SELECT",
        Attack::once(copy(frame(b'd', b"\0\x02\0\0\0\x04abcd\x7f\xff\xff\xff"))),
        &["value"],
    );
    attack("COPY (SELECT", Attack::once(both(b'G')), &["unexpected message"]);
    // The stream.
    let data = |message: &[u8]| frame(b'd', &[b"w".as_slice(), &[0; 24], message].concat());
    let stream = |rest: Vec<u8>| [both(b'W'), rest].concat();
    for (rest, word) in [
        (head(b'd', u32::MAX), "impossible length"),
        (head(b'E', 1 << 30), "impossible length"),
        (frame(b'd', b"w"), "replication header"),
        (data(b"I\0\0\0\x01N\xff\xff"), "value"),
        (data(b"T\xff\xff\xff\xff\0"), "relation oid"),
    ] {
        attack("START_REPLICATION", Attack::once(stream(rest)), &[word]);
    }
}

/// A copy or a transaction without end is received all the time, in bounded memory.
#[test]
fn postgres_without_end() {
    let env = env();
    let oid: u32 = env.source_value("SELECT 't'::regclass::oid").parse().unwrap();
    let [header, row] = [
        b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec(),
        [b"\0\x02\0\0\0\x04\0\0\0\x01\0\x01\0\0".as_slice(), &vec![b'x'; 1 << 16]].concat(),
    ];
    let copy = Attack::endless([frame(b'H', b"\x01\0\0"), frame(b'd', &header)].concat(), frame(b'd', &row));
    let message = |body: &[&[u8]]| frame(b'd', &[b"w".as_slice(), &[0; 24], &body.concat()].concat());
    let oid = oid.to_be_bytes();
    let relation: [&[u8]; 5] =
        [b"R", &oid, b"public\0t\0d\0\x02\x01id\0\0\0\0\x17\xff\xff\xff\xff", b"\0v\0\0\0\0\x19", &[0xff; 4]];
    let insert: [&[u8]; 4] = [b"I", &oid, b"N\0\x02t\0\0\0\x011t\0\x01\0\0", &vec![b'x'; 1 << 16]];
    let begin: [&[u8]; 2] = [b"B\0\0\0\x7f", &[0; 16]];
    let transaction = Attack::endless(
        [frame(b'W', b"\x01\0\0"), message(&begin), message(&relation)].concat(),
        message(&insert),
    );
    for (words, attack) in [("COPY (SELECT", copy), ("START_REPLICATION", transaction)] {
        let malicious_server = MaliciousServer::of(env.postgres_port, words, attack);
        let mut mirror = env.mirror(&["t"]);
        mirror.postgres["spec"]["postgres"]["port"] = json!(malicious_server.port);
        let mut run = env.run(&mirror);
        run.eventually("600 MB to be received", || malicious_server.sent() > 600_000_000);
        let peak = run.peak_memory_mib();
        println!("{words} without end: {peak} MiB");
        assert!(peak < MOST_MEMORY_MIB, "{words}: {peak} MiB");
        run.kill();
        env.target("TRUNCATE TABLE IF EXISTS t");
    }
}

#[test]
fn clickhouse_breaks_http() {
    let env = env();
    let megabyte = vec![b'x'; 1 << 20];
    let ok = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"100000\r\n".as_slice(), &megabyte, b"\r\n"].concat();
    let error = "HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Exception-Code: 241\r\nTransfer-Encoding: chunked\r\n\r\n";
    let attack = |words: &'static str, attack: Attack, violation: &[&str]| {
        logs_violation(&env, &clickhouse(&env, words, attack), violation);
    };
    for words in ["SELECT version()", "INSERT INTO"] {
        attack(words, Attack::endless(error, chunk.clone()), &["241"]);
        attack(
            words,
            Attack::endless("HTTP/1.1 200 OK\r\n", "X-Header: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n"),
            &["lost"],
        );
        attack(words, Attack::once("\0\0\0\0 not http\r\n\r\n"), &["lost"]);
        attack(
            words,
            Attack::once("HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n"),
            &["lost"],
        );
        attack(
            words,
            Attack::once("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"),
            &["302"],
        );
    }
    attack("SELECT version()", Attack::endless(ok, chunk), &["more than 64 MiB"]);
    attack(
        "SELECT version()",
        Attack::once(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xff\xff\xff"),
        &["UTF-8"],
    );
    attack(
        "SELECT version()",
        Attack::once("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n"),
        &["is this ClickHouse"],
    );
}

/// `verify` reads rows of any length, but not an error without end.
#[test]
fn clickhouse_answers_verify_with_an_endless_error() {
    let env = env();
    env.catch_up(&env.mirror(&["t"]));
    let head = "HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Exception-Code: 241\r\nTransfer-Encoding: chunked\r\n\r\n";
    let chunk = [b"100000\r\n".as_slice(), &vec![b'x'; 1 << 20], b"\r\n"].concat();
    let mirror = clickhouse(&env, "FORMAT RowBinary", Attack::endless(head, chunk));
    let outcome = env.command("verify", &mirror, &[]);
    assert_ne!(outcome.code, Some(0));
    outcome.says(&["241"]);
}
