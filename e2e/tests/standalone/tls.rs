//! Encrypted connections to both databases, and PostgreSQL's authentication methods.

use serde_json::json;
use walferry::fault::Reason;

use crate::{
    on_both,
    support::{Attack, Identity, MaliciousServer, Mirror, Outcome, Pg, Server, TestCa, TestEnv, TlsProxy},
};

/// A PostgreSQL that offers TLS, and a table to mirror.
fn encrypted(pg: Pg, server: &Identity, authority: &TestCa) -> TestEnv {
    let folder = tempfile::tempdir().unwrap();
    server.write_files(folder.path(), authority);
    let postgres = Server::postgres(pg, &["--tls", folder.path().to_str().unwrap()]);
    let env = TestEnv::on(postgres.into(), Server::shared_clickhouse());
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    env
}

/// A Mirror that connects with this mode and, unless empty, this certificate authority.
fn with_tls(env: &TestEnv, mode: &str, authority: &str) -> Mirror {
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"]["tls"] = json!({"mode": mode});
    if !authority.is_empty() {
        mirror.postgres["spec"]["postgres"]["tls"]["caSecretRef"] =
            json!({"name": "authority", "key": "ca.crt"});
        mirror.secrets.push(("authority".into(), json!({"ca.crt": authority})));
    }
    mirror
}

/// Asserts that a start is refused for this reason of the source or the destination.
#[track_caller]
fn refused(env: &TestEnv, mirror: &Mirror, subject: &str, reason: Reason) -> Outcome {
    let options = ["--until-caught-up", "--http", "127.0.0.1:0"];
    env.command("run", mirror, &options).exits(1).refuses(subject, reason)
}

/// Every mode, with a certificate for the server's address, for another name, or of another authority.
fn modes(pg: Pg) {
    crate::needs_own_server!();
    let (right, wrong) = (TestCa::new("right"), TestCa::new("wrong"));
    let env = encrypted(pg, &right.server(&["127.0.0.1"]), &right);
    let check = |mode: &str, authority: &str| env.command("check", &with_tls(&env, mode, authority), &[]);
    for mode in ["Disable", "Require"] {
        check(mode, "").exits(0);
    }
    for mode in ["VerifyCa", "VerifyFull"] {
        check(mode, &right.pem()).exits(0);
        let refused = |authority: &str| {
            refused(&env, &with_tls(&env, mode, authority), "source", Reason::SourceTlsFailed)
        };
        refused(&wrong.pem()).says(&["caSecretRef"]);
        refused("");
        refused("not a certificate").says(&["caSecretRef"]);
    }
    // The replication connection and those of the copy are encrypted too.
    let mirror = with_tls(&env, "VerifyFull", &right.pem());
    let mut run = env.streaming(&mirror);
    let pid = env.slot(&mut run, "active_pid");
    assert_eq!(env.source_value(&format!("SELECT ssl FROM pg_stat_ssl WHERE pid = {pid}")), "t");
    let plain = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE NOT ssl AND application_name LIKE 'walferry%'";
    assert_eq!(env.source_value(plain), "0");
    env.sql("INSERT INTO t VALUES (2)");
    env.settle(&mut run);
    env.assert_table("t", "id", "id");
    run.stop();
    env.verify(&mirror);
}

fn other_host_name(pg: Pg) {
    crate::needs_own_server!();
    let authority = TestCa::new("authority");
    let env = encrypted(pg, &authority.server(&["db.example"]), &authority);
    env.command("check", &with_tls(&env, "VerifyCa", &authority.pem()), &[]).exits(0);
    refused(&env, &with_tls(&env, "VerifyFull", &authority.pem()), "source", Reason::SourceTlsFailed);
}

fn expired(pg: Pg) {
    crate::needs_own_server!();
    let authority = TestCa::new("authority");
    let old = authority.expired_server(&["127.0.0.1"]);
    let env = encrypted(pg, &old, &authority);
    for mode in ["VerifyFull", "VerifyCa"] {
        refused(&env, &with_tls(&env, mode, &authority.pem()), "source", Reason::SourceTlsFailed);
    }
    env.command("check", &with_tls(&env, "Require", ""), &[]).exits(0);
}

fn client_certificate(pg: Pg) {
    crate::needs_own_server!();
    let authority = TestCa::new("authority");
    let env = encrypted(pg, &authority.server(&["127.0.0.1"]), &authority);
    env.admin(&format!("CREATE ROLE certified LOGIN REPLICATION IN ROLE {}", env.database));
    let with_identity = |identity: &Identity| {
        let mut mirror = with_tls(&env, "VerifyFull", &authority.pem());
        mirror.postgres["spec"]["postgres"]["tls"]["clientCertificateSecretRef"] =
            json!({"name": "identity"});
        mirror
            .secrets
            .push(("identity".into(), json!({"tls.crt": identity.certificate, "tls.key": identity.key})));
        mirror.secrets[0].1 = json!({"username": "certified", "password": "unused"});
        mirror
    };
    let mirror = with_identity(&authority.client("certified"));
    env.catch_up(&mirror);
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
    let someone = with_identity(&authority.client("someone"));
    refused(&env, &someone, "source", Reason::SourceAuthenticationFailed);
    let mut without = with_tls(&env, "VerifyFull", &authority.pem());
    without.secrets[0].1 = json!({"username": "certified", "password": "unused"});
    refused(&env, &without, "source", Reason::SourceAuthenticationFailed);
}

/// A server without TLS fails with another reason than one that can't be reached.
fn server_without_tls(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    refused(&env, &with_tls(&env, "Require", ""), "source", Reason::SourceTlsFailed);
    // The default mode is VerifyFull.
    let mut mirror = env.mirror(&["t"]);
    mirror.postgres["spec"]["postgres"].as_object_mut().unwrap().remove("tls");
    refused(&env, &mirror, "source", Reason::SourceTlsFailed);
}

fn md5_password(pg: Pg) {
    let env = TestEnv::new(pg);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    env.admin("DROP ROLE IF EXISTS md5_user");
    env.admin(&format!(
        "SET password_encryption = md5; CREATE ROLE md5_user LOGIN REPLICATION PASSWORD 'md5-test' IN ROLE {}",
        env.database
    ));
    let mut mirror = env.mirror(&["t"]);
    mirror.secrets[0].1 = json!({"username": "md5_user", "password": "md5-test"});
    env.catch_up(&mirror);
    assert_eq!(env.target("SELECT id FROM t FINAL"), "1\n");
    mirror.secrets[0].1["password"] = json!("wrong");
    refused(&env, &mirror, "source", Reason::SourceAuthenticationFailed);
}

on_both!(modes, other_host_name, expired, client_certificate, server_without_tls, md5_password);

#[test]
fn clickhouse_over_https() {
    let (right, wrong) = (TestCa::new("right"), TestCa::new("wrong"));
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let identity = right.server(&["localhost"]);
    let proxy = TlsProxy::to(env.clickhouse.port, &identity.certificate, &identity.key);
    let with = |host: &str, mode: &str, authority: &str| {
        let mut mirror = env.mirror(&["t"]);
        let peer = &mut mirror.clickhouse["spec"]["clickhouse"];
        peer["url"] = json!(format!("https://{host}:{}", proxy.port));
        peer["tls"] = json!({"mode": mode});
        if !authority.is_empty() {
            peer["tls"]["caSecretRef"] = json!({"name": "authority", "key": "ca.crt"});
            mirror.secrets.push(("authority".into(), json!({"ca.crt": authority})));
        }
        mirror
    };
    env.command("check", &with("localhost", "Require", ""), &[]).exits(0);
    env.command("check", &with("127.0.0.1", "VerifyCa", &right.pem()), &[]).exits(0);
    for (host, authority) in [("127.0.0.1", right.pem()), ("localhost", wrong.pem())] {
        let mirror = with(host, "VerifyFull", &authority);
        refused(&env, &mirror, "destination", Reason::DestinationTlsFailed);
    }
    let mirror = with("localhost", "VerifyFull", &right.pem());
    let mut run = env.streaming(&mirror);
    env.sql("INSERT INTO t VALUES (2)");
    env.settle(&mut run);
    run.stop();
    env.assert_table("t", "id", "id");
    env.verify(&mirror);
}

/// Every defect of an https endpoint has a reason and a remedy.
#[test]
fn clickhouse_refusals_over_https() {
    let authority = TestCa::new("authority");
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let with = |port: u16, mode: &str, authority: Option<&str>| {
        let mut mirror = env.mirror(&["t"]);
        let peer = &mut mirror.clickhouse["spec"]["clickhouse"];
        peer["url"] = json!(format!("https://127.0.0.1:{port}"));
        peer["tls"] = json!({"mode": mode});
        if let Some(authority) = authority {
            peer["tls"]["caSecretRef"] = json!({"name": "authority", "key": "ca.crt"});
            mirror.secrets.push(("authority".into(), json!({"ca.crt": authority})));
        }
        mirror
    };
    let refused = |mirror: &Mirror| refused(&env, mirror, "destination", Reason::DestinationTlsFailed);
    let old = authority.expired_server(&["127.0.0.1"]);
    let expired = TlsProxy::to(env.clickhouse.port, &old.certificate, &old.key);
    for mode in ["VerifyFull", "VerifyCa"] {
        refused(&with(expired.port, mode, Some(&authority.pem())));
    }
    env.command("check", &with(expired.port, "Require", None), &[]).exits(0);
    // A certificate for clients is not accepted for a server.
    let client = authority.client_of_names(&["127.0.0.1"]);
    let wrong_use = TlsProxy::to(env.clickhouse.port, &client.certificate, &client.key);
    refused(&with(wrong_use.port, "VerifyFull", Some(&authority.pem())));
    // The system's authorities don't include ours.
    let right = authority.server(&["127.0.0.1"]);
    let proxy = TlsProxy::to(env.clickhouse.port, &right.certificate, &right.key);
    refused(&with(proxy.port, "VerifyFull", None));
    // ClickHouse's own port speaks plain HTTP: nothing is sent unencrypted to it.
    refused(&with(env.clickhouse.port, "VerifyFull", Some(&authority.pem())));
    let guarded =
        TlsProxy::for_clients_of(env.clickhouse.port, &right.certificate, &right.key, &authority.pem());
    let mut mirror = with(guarded.port, "VerifyFull", Some(&authority.pem()));
    refused(&mirror).says(&["clientCertificateSecretRef"]);
    let mut show = |identity: &Identity| {
        mirror.clickhouse["spec"]["clickhouse"]["tls"]["clientCertificateSecretRef"] =
            json!({"name": "identity"});
        mirror.secrets.retain(|(name, _)| name != "identity");
        let files = json!({"tls.crt": identity.certificate, "tls.key": identity.key});
        mirror.secrets.push(("identity".into(), files));
        mirror.clone()
    };
    refused(&show(&TestCa::new("other").client("walferry"))).says(&["clientCertificateSecretRef"]);
    let mirror = show(&authority.client("walferry"));
    env.catch_up(&mirror);
    env.assert_table("t", "id", "id");
}

/// An attacker between the two who denies TLS, or answers before the handshake, gets nothing.
#[test]
fn no_downgrade() {
    crate::needs_own_server!();
    let authority = TestCa::new("authority");
    let env = encrypted(Pg::V18, &authority.server(&["127.0.0.1"]), &authority);
    let error = [b"E\0\0\0\x1bSFATAL\0C28000\0Minjected\0\0".as_slice()].concat();
    for answer in [b"N".to_vec(), error.clone(), [b"S".as_slice(), &error].concat()] {
        let malicious_server = MaliciousServer::of(env.postgres_port, "", Attack::once(answer.clone()));
        for mode in ["Require", "VerifyCa", "VerifyFull"] {
            let ca = if mode == "Require" { String::new() } else { authority.pem() };
            let mut mirror = with_tls(&env, mode, &ca);
            mirror.postgres["spec"]["postgres"]["port"] = json!(malicious_server.port);
            let outcome = env.command("check", &mirror, &[]).exits(1);
            let outcome = outcome.finds("FAILURE", "source", "connection");
            assert!(!outcome.text().contains("injected"), "{outcome:?}");
        }
    }
}
