//! The files that users write: which are accepted, and which error a wrong one gets.

use serde_json::json;

use crate::support::{Pg, TestEnv, walferry, walferry_with_input};

/// A valid file, whose servers don't exist.
fn good() -> String {
    "apiVersion: walferry.dev/v1alpha1
kind: ReplicationPeer
metadata: {name: source}
spec:
  postgres: {host: 127.0.0.1, port: 1, database: app, credentialsSecretRef: {name: login}, tls: {mode: Disable}}
---
apiVersion: walferry.dev/v1alpha1
kind: ReplicationPeer
metadata: {name: target}
spec:
  clickhouse: {url: 'http://127.0.0.1:1', database: app, credentialsSecretRef: {name: login}}
---
apiVersion: walferry.dev/v1alpha1
kind: Mirror
metadata: {name: app}
spec:
  sourceRef: {name: source}
  destinationRef: {name: target}
  tables:
  - {schema: public, name: users}
---
apiVersion: v1
kind: Secret
metadata: {name: login}
stringData: {username: someone, password: secret-word}
"
    .to_owned()
}

/// `walferry check` of this text on standard input must fail and name these fields, values and places.
#[track_caller]
fn refused(text: &str, words: &[&str]) {
    let outcome = walferry_with_input(&["check", "-f", "-"], text);
    assert_ne!(outcome.code, Some(0), "{}", outcome.text());
    assert!(
        !outcome.text().contains("secret-word") && !outcome.text().contains("panicked"),
        "{}",
        outcome.text()
    );
    outcome.says(words);
}

/// Replaces text that must be there.
#[track_caller]
fn change(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "{from}");
    text.replace(from, to)
}

/// The valid file with one change must be refused with these words.
#[track_caller]
fn refused_change(from: &str, to: &str, words: &[&str]) {
    refused(&change(&good(), from, to), words);
}

#[test]
fn wrong_fields_are_named_with_what_is_allowed() {
    refused_change(
        "{schema: public, name: users}",
        "{schema: public, name: users, colums: {}}",
        &["colums", "columns"],
    );
    refused_change("port: 1,", "port: 1, sslmode: off,", &["sslmode", "tls"]);
    refused_change("port: 1,", "port: 99999,", &["port"]);
    refused_change("port: 1,", "port: many,", &["port"]);
    refused_change(
        "mode: Disable",
        "mode: disable",
        &["disable", "Disable", "Require", "VerifyCa", "VerifyFull"],
    );
    refused_change("  tables:\n  - {schema: public, name: users}\n", "  tables: []\n", &["tables"]);
    refused_change("  tables:\n  - {schema: public, name: users}\n", "", &["tables"]);
    refused_change("name: users}", "name: users, where: 5}", &["where"]);
    refused_change("name: users}", "name: \"us\\0ers\"}", &["name"]);
    refused_change("name: users}", "name: ''}", &["name"]);
    refused_change("name: users}", &format!("name: {}}}", "x".repeat(64)), &["name", "63"]);
    refused_change("name: users}", "name: users, target: {table: \"a\\0b\"}}", &["table"]);
    refused_change("  tables:", "  snapshot: {parallelism: 0}\n  tables:", &["parallelism"]);
    refused_change(
        "  tables:",
        "  snapshot: {mode: Sometimes}\n  tables:",
        &["Sometimes", "Initial", "InitialOnly", "Never"],
    );
    refused_change("  tables:", "  schemas: [{name: public}]\n  tables:", &["schemas"]);
}

#[test]
fn wrong_settings_are_named_with_what_is_allowed() {
    refused_change("  tables:", "  batch: {maxBytes: lots}\n  tables:", &["maxBytes"]);
    refused_change("  tables:", "  batch: {maxDelayMilliseconds: -1}\n  tables:", &["maxDelayMilliseconds"]);
    refused_change("  tables:", "  outOfRange: Round\n  tables:", &["Round", "Clamp", "Null", "Fail"]);
    let fields = |extra: &str| format!("name: users, {extra}}}");
    let operations = &["spec.tables[0].operations", "Delete only together with Update"];
    refused_change("name: users}", &fields("operations: [Insert, Delete]"), operations);
    refused_change("name: users}", &fields("operations: []"), &["spec.tables[0].operations", "1 to 4"]);
    let contradictory = "insertOnly: true, operations: [Insert, Update, Delete, Truncate]";
    refused_change("name: users}", &fields(contradictory), &["spec.tables[0]", "insertOnly", "operations"]);
}

#[test]
fn wrong_documents_and_references_are_named() {
    refused_change("sourceRef: {name: source}", "sourceRef: {name: sauce}", &["sauce", "sourceRef"]);
    refused_change("sourceRef: {name: source}", "sourceRef: {name: target}", &["target", "postgres"]);
    refused_change(
        "credentialsSecretRef: {name: login}, tls",
        "credentialsSecretRef: {name: logout}, tls",
        &["logout"],
    );
    refused_change("username: someone, ", "", &["username", "login"]);
    refused_change("v1alpha1\nkind: Mirror", "v1\nkind: Mirror", &["walferry.dev/v1alpha1"]);
    refused_change("kind: Mirror", "kind: Miror", &["Miror"]);
    refused_change("url: 'http://127.0.0.1:1'", "url: 'ftp://127.0.0.1:1'", &["url", "http"]);
    refused_change(
        "  clickhouse:",
        "  postgres: {host: h, database: d, credentialsSecretRef: {name: login}}\n  clickhouse:",
        &["postgres", "clickhouse"],
    );
    refused_change(
        "  - {schema: public, name: users}\n",
        "  - {schema: public, name: users}\n  - {schema: public, name: users}\n",
        &["users"],
    );
    refused_change(
        "  - {schema: public, name: users}\n",
        // Without its own target.table, shop.users would go to shop_users.
        "  - {schema: public, name: users}\n  - {schema: shop, name: users, target: {table: users}}\n",
        &["users", "target"],
    );
    refused_change("kind: Secret", "kind: Secret\n  broken: [", &["line"]);
    refused("", &["no"]);
    refused("just text", &["document"]);
    refused(good().split("---").next().unwrap(), &["Mirror"]);
}

#[test]
fn messages_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("the-mirror.yaml");
    std::fs::write(&path, change(&good(), "  tables:", "  colour: red\n  tables:")).unwrap();
    let outcome = walferry(&["run", "-f", path.to_str().unwrap(), "--http", "127.0.0.1:0"]);
    assert_ne!(outcome.code, Some(0));
    outcome.says(&["the-mirror.yaml", "colour", "document 3"]);
    let outcome = walferry(&["run", "-f", "/does/not/exist.yaml"]);
    assert_ne!(outcome.code, Some(0));
    outcome.says(&["/does/not/exist.yaml"]);
}

/// Former names are deprecated: `check` and `run` accept them, and name each one with its document, field and
/// successor.
#[test]
fn former_names_work_and_are_reported() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE log (id int, at date); INSERT INTO log VALUES (1, 'infinity')");
    let mut config = env.mirror(&["log"]);
    config.mirror["spec"]["outOfRange"] = json!("Nearest");
    config.mirror["spec"]["snapshot"] = json!({"mode": "Only"});
    config.mirror["spec"]["tables"][0]["insertOnly"] = json!(true);
    let file = env.write(&config);
    let file = file.to_str().unwrap();
    let warnings = [
        "(Mirror ",
        "spec.outOfRange",
        "Nearest is deprecated: use Clamp instead",
        "spec.snapshot.mode",
        "Only is deprecated: use InitialOnly instead",
        "spec.tables[0].insertOnly",
        "insertOnly: true is deprecated: use operations: [Insert, Truncate] instead",
    ];
    // A table without a replica identity passes the check only as an append-only table.
    walferry(&["check", "-f", file]).exits(0).says(&warnings);
    // With mode Only, the run ends after the copy.
    walferry(&["run", "-f", file, "--http", "127.0.0.1:0"]).exits(0).says(&warnings);
    assert_eq!(env.target("SELECT id, at FROM log FINAL"), "1\t2299-12-31\n");
}

/// Two Mirrors that write one target are refused.
#[test]
fn two_mirrors_for_one_target() {
    let second = "---
apiVersion: walferry.dev/v1alpha1
kind: Mirror
metadata: {name: second}
spec:
  sourceRef: {name: source}
  destinationRef: {name: target}
  tables:
  - {schema: shop, name: people, target: {table: users}}
";
    refused(&(good() + second), &["users", "second", "app"]);
}

/// Documents over several files, a Secret with `data`, standard input, two Mirrors in one process.
#[test]
fn several_files_and_mirrors() {
    let env = TestEnv::new(Pg::V18);
    env.sql("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); INSERT INTO a VALUES (1); INSERT INTO b VALUES (2)");
    let mut first = env.mirror(&["a"]);
    let mut second = env.mirror(&["b"]).mirror;
    second["metadata"]["name"] = json!("second");
    second["metadata"]["namespace"] = json!("default");
    first.mirror["metadata"]["namespace"] = json!("default");
    let peers = serde_yaml::to_string(&first.postgres).unwrap()
        + "---\n"
        + &serde_yaml::to_string(&first.clickhouse).unwrap();
    let mirrors =
        serde_yaml::to_string(&first.mirror).unwrap() + "---\n" + &serde_yaml::to_string(&second).unwrap();
    let encoded = {
        use base64::Engine;
        |text: &str| base64::engine::general_purpose::STANDARD.encode(text)
    };
    let secrets: Vec<String> = first
        .secrets
        .iter()
        .map(|(name, data)| {
            let data = json!({"username": encoded(data["username"].as_str().unwrap()), "password": encoded(data["password"].as_str().unwrap())});
            serde_yaml::to_string(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data})).unwrap()
        })
        .collect();
    let (peers, mirrors) = (env.write_text(&peers), env.write_text(&mirrors));
    let files = ["-f", peers.to_str().unwrap(), "-f", mirrors.to_str().unwrap(), "-f", "-"];
    let input = secrets.join("---\n");
    let options = ["--until-caught-up", "--http", "127.0.0.1:0"];
    walferry_with_input(&[&["run"][..], &files, &options].concat(), &input).exits(0);
    assert_eq!(env.target("SELECT id FROM a FINAL"), "1\n");
    assert_eq!(env.target("SELECT id FROM b FINAL"), "2\n");
    walferry_with_input(&[&["verify"][..], &files].concat(), &input).exits(0);
    walferry_with_input(&[&["teardown"][..], &files].concat(), &input).exits(0);
    assert_eq!(
        env.source_value("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()"),
        "0"
    );
}

/// `walferry crds` prints the CRDs of both kinds with their rules.
#[test]
fn crds_are_printed() {
    let outcome = walferry(&["crds"]).exits(0);
    outcome.says(&[
        "kind: CustomResourceDefinition",
        "mirrors.walferry.dev",
        "replicationpeers.walferry.dev",
        "x-kubernetes-validations",
    ]);
}
