use std::{path::Path, time::Duration};

use super::*;
use crate::model::{OutOfRange, SnapshotMode, TableId, TlsMode};

const PEERS: &str = "
apiVersion: walferry.dev/v1alpha1
kind: ReplicationPeer
metadata: {name: app, labels: {team: a}}
spec:
  postgres:
    host: db.example
    database: app
    credentialsSecretRef: {name: app-db}
    tls: {mode: VerifyCa, caSecretRef: {name: ca}}
---
apiVersion: walferry.dev/v1alpha1
kind: ReplicationPeer
metadata: {name: analytics}
spec:
  clickhouse: {url: 'http://ch.example:8123/', database: analytics, credentialsSecretRef: {name: ch}}
---
apiVersion: v1
kind: Secret
metadata: {name: app-db}
stringData: {username: walferry, password: hush-hush}
---
apiVersion: v1
kind: Secret
metadata: {name: ch}
type: Opaque
data: {username: d3JpdGVy, password: c2VjcmV0}
---
apiVersion: v1
kind: Secret
metadata: {name: ca}
stringData:
  ca.crt: |
    PEM
";

const MIRROR: &str = "
apiVersion: walferry.dev/v1alpha1
kind: Mirror
metadata: {name: demo}
spec:
  sourceRef: {name: app}
  destinationRef: {name: analytics}
  tables:
  - {schema: public, name: users}
";

fn parse(files: &[(&str, &str)]) -> Result<Vec<ReplicatorConfig>, LoadError> {
    let mut problems = Vec::new();
    let documents = files
        .iter()
        .flat_map(|(file, text)| documents::parse(Path::new(file), text, &mut problems))
        .collect();
    from_documents(documents, problems, None)
}

fn mirror(text: &str) -> Result<Vec<ReplicatorConfig>, LoadError> {
    parse(&[("peers.yaml", PEERS), ("mirror.yaml", text)])
}

/// The problems of `MIRROR` with `from` replaced by `to`.
fn wrong_mirror(from: &str, to: &str) -> String {
    assert!(MIRROR.contains(from), "{from}");
    mirror(&MIRROR.replacen(from, to, 1)).unwrap_err().to_string()
}

/// The problems of `PEERS` with `from` replaced by `to`.
fn wrong_peers(from: &str, to: &str) -> String {
    assert!(PEERS.contains(from), "{from}");
    parse(&[("peers.yaml", &PEERS.replacen(from, to, 1)), ("mirror.yaml", MIRROR)]).unwrap_err().to_string()
}

#[test]
fn resolves_references_secrets_and_defaults() {
    let configs = mirror(MIRROR).unwrap();
    let [config] = configs.as_slice() else { panic!("{configs:?}") };
    assert_eq!((config.mirror.namespace.as_str(), config.mirror.name.as_str()), ("default", "demo"));
    // printf default/demo | sha256sum | cut -c 1-32
    assert_eq!(config.mirror.uid, "02c8c86b636ca99e50790fccaf6d8050");
    let source = &config.source;
    assert_eq!(
        (source.host.as_str(), source.port, source.username.as_str()),
        ("db.example", 5432, "walferry")
    );
    assert_eq!(source.password.expose(), "hush-hush");
    assert_eq!((source.tls.mode, source.tls.ca_pem.as_deref()), (TlsMode::VerifyCa, Some("PEM\n")));
    let destination = &config.destination;
    assert_eq!(
        (destination.url.as_str(), destination.username.as_str()),
        ("http://ch.example:8123", "writer")
    );
    assert_eq!(destination.password.expose(), "secret");
    assert_eq!((config.snapshot.mode, config.snapshot.parallelism), (SnapshotMode::Initial, 2));
    assert_eq!((config.batch.max_bytes, config.batch.max_delay), (32 << 20, Duration::from_millis(200)));
    assert!(!config.suspend);
}

/// The text that the operator renders for a replicator is one of these files, without the Secrets.
#[test]
fn takes_what_the_operator_renders() {
    let rendered = include_str!("../../operator/mirror/build/config.yaml");
    let secrets = "
apiVersion: v1
kind: Secret
metadata: {name: logins, namespace: shop}
stringData: {username: walferry, password: hush-hush, tls.crt: PEM, tls.key: PEM}
---
apiVersion: v1
kind: Secret
metadata: {name: ca, namespace: shop}
stringData: {ca.crt: PEM}
";
    let configs = parse(&[("mirror.yaml", rendered), ("secrets.yaml", secrets)]).unwrap();
    let [config] = configs.as_slice() else { panic!("{configs:?}") };
    assert_eq!((config.mirror.namespace.as_str(), config.mirror.name.as_str()), ("shop", "demo"));
    assert_eq!((config.source.host.as_str(), config.source.tls.mode), ("db.example", TlsMode::VerifyFull));
    assert_eq!(config.destination.url, "http://ch.example:8123");
    assert_eq!(config.tables[1].row_filter.as_deref(), Some("\"projectId\" IS NOT NULL"));
    assert_eq!(config.batch.max_bytes, 32 << 20);
}

#[test]
fn table_settings_arrive() {
    let text = MIRROR.replace(
        "  - {schema: public, name: users}",
        r#"
  - {schema: public, name: users}
  - {schema: audit, name: users}
  - schema: public
    name: TaskRun
    target: {table: task_runs}
    columns: {exclude: [secret], rename: {createdAt: created_at}, types: {payload: JSON}}
    where: '"projectId" IS NOT NULL'
    engine: {orderBy: [created_at, id], partitionBy: toYYYYMM(created_at), ttl: created_at + INTERVAL 90 DAY, settings: {index_granularity: "1024"}}
  batch: {maxBytes: 1048576}
"#,
    );
    let config = mirror(&text).unwrap().remove(0);
    let targets: Vec<_> = config.tables.iter().map(|table| table.target.as_deref().unwrap()).collect();
    assert_eq!(targets, ["users", "audit_users", "task_runs"]);
    let table = &config.tables[2];
    assert_eq!(table.id, TableId::new("public", "TaskRun"));
    assert_eq!(table.exclude, ["secret"]);
    assert_eq!(table.rename, [("createdAt".to_owned(), "created_at".to_owned())]);
    assert_eq!(table.types, [("payload".to_owned(), "JSON".to_owned())]);
    assert_eq!(table.row_filter.as_deref(), Some("\"projectId\" IS NOT NULL"));
    assert_eq!(table.order_by, ["created_at", "id"]);
    assert_eq!(table.settings, [("index_granularity".to_owned(), "1024".to_owned())]);
    assert_eq!(config.batch.max_bytes, 1 << 20);
}

#[test]
fn former_names_mean_those_of_today() {
    let with = |table: &str, spec: &str| {
        let text = MIRROR.replace("name: users", &format!("name: users{table}"));
        mirror(&text.replace("  tables", &format!("{spec}  tables"))).unwrap().remove(0)
    };
    let former = with(", insertOnly: true", "  outOfRange: Nearest\n  snapshot: {mode: Only}\n");
    assert!(former.tables[0].operations.is_append_only());
    assert_eq!((former.out_of_range, former.snapshot.mode), (OutOfRange::Clamp, SnapshotMode::InitialOnly));
    assert!(!with(", insertOnly: false", "").tables[0].operations.is_append_only());
    assert!(
        with(", insertOnly: true, operations: [Insert, Truncate]", "").tables[0].operations.is_append_only()
    );
}

#[test]
fn unknown_fields_are_named_with_what_is_allowed() {
    assert_eq!(
        wrong_mirror("name: users", "name: users, colums: {}"),
        "mirror.yaml, document 1 (Mirror demo): spec.tables[0].colums: unknown field, expected one of columns, engine, name, operations, schema, target, where"
    );
    assert!(
        wrong_mirror("{name: demo}", "{name: demo, lables: {}}")
            .contains("metadata.lables: unknown field, expected one of annotations, ")
    );
    assert!(wrong_peers("type: Opaque", "typ: Opaque").contains(
        "peers.yaml, document 4 (Secret ch): typ: unknown field, expected one of apiVersion, data, "
    ));
}

#[test]
fn wrong_types_ranges_and_enums() {
    for (from, to, expected) in [
        (
            "tables:\n  - {schema: public, name: users}",
            "tables: []",
            "spec.tables: must have 1 to 2000 entries",
        ),
        ("  tables:\n  - {schema: public, name: users}", "", "spec.tables: is required"),
        (
            "tables:\n  - {schema: public, name: users}",
            "tables: users",
            "spec.tables: expected a list, found a string",
        ),
        ("name: users", "name: ''", "spec.tables[0].name: must have 1 to 63 characters"),
        ("name: users", "name: 5", "spec.tables[0].name: expected a string, found a number"),
        (
            "  tables",
            "  snapshot: {mode: Sometimes}\n  tables",
            "spec.snapshot.mode: expected one of Initial, InitialOnly, Never, found \"Sometimes\"",
        ),
        (
            "  tables",
            "  outOfRange: Round\n  tables",
            "spec.outOfRange: expected one of Clamp, Null, Fail, found \"Round\"",
        ),
        (
            "name: users",
            "name: users, insertOnly: true, operations: [Insert, Update, Delete, Truncate]",
            "spec.tables[0]: insertOnly: true contradicts operations; leave insertOnly out, which is deprecated",
        ),
        (
            "  tables",
            "  snapshot: {parallelism: 0}\n  tables",
            "spec.snapshot.parallelism: must be from 1 to 32",
        ),
        (
            "  tables",
            "  snapshot: {parallelism: 1.5}\n  tables",
            "spec.snapshot.parallelism: expected a whole number, found a number",
        ),
        (
            "  tables",
            "  batch: {maxBytes: 64MB}\n  tables",
            "spec.batch.maxBytes: must be a size from 1Mi to 1Gi, such as 32Mi or 33554432",
        ),
        (
            "  tables",
            "  replicator: {podLabels: {walferry.dev/x: y}}\n  tables",
            "spec.replicator.podLabels: labels that begin with app.kubernetes.io/ or walferry.dev/ are walferry's own",
        ),
        (
            "  tables",
            "  replicator: {resources: {limits: {memory: 1.5}}}\n  tables",
            "spec.replicator.resources.limits.memory: expected a whole number or a string, found a number",
        ),
        (
            "  tables",
            "  replicator: {resources: {limits: {memory: 256MB}}}\n  tables",
            "spec.replicator.resources.limits: must be amounts that are not negative, such as 500m or 256Mi",
        ),
        (
            "  tables",
            "  replicator: {affinity: {podAffinities: {}}}\n  tables",
            "spec.replicator.affinity.podAffinities: unknown field, expected one of nodeAffinity, podAffinity, podAntiAffinity",
        ),
        ("  tables", "  suspend: 'yes'\n  tables", "spec.suspend: expected true or false, found a string"),
        (
            "  - {schema: public, name: users}",
            "  - {schema: public, name: users}\n  - {schema: public, name: users}",
            "spec.tables[1]: has the same schema and name as spec.tables[0] (public.users)",
        ),
        (
            "{name: demo}",
            "{name: Demo}",
            "metadata.name: must be 1 to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part",
        ),
        ("{name: demo}", "{}", "metadata.name: is required"),
        ("v1alpha1", "v1", "apiVersion: expected walferry.dev/v1alpha1 for a Mirror"),
        ("kind: Mirror", "kind: Miror", "kind: expected one of ReplicationPeer, Mirror, Secret"),
        ("name: users", "name: !x users", "spec.tables[0].name: YAML tags (!…) are not supported"),
        (
            "name: users",
            "name: users, 1: 2",
            "spec.tables[0]: the names of fields must be strings; quote them",
        ),
    ] {
        let found = wrong_mirror(from, to);
        assert!(found.contains(&format!(": {expected}")) && found.lines().count() == 1, "{to}: {found}");
    }
}

#[test]
fn broken_references() {
    assert_eq!(
        wrong_mirror("{name: app}", "{name: ap}"),
        "mirror.yaml, document 1 (Mirror demo): spec.sourceRef.name: no ReplicationPeer ap in namespace default (the files have there: analytics, app)"
    );
    assert_eq!(
        wrong_mirror("{name: app}", "{name: analytics}"),
        "mirror.yaml, document 1 (Mirror demo): spec.sourceRef.name: ReplicationPeer analytics is a clickhouse peer, expected a postgres peer"
    );
    assert!(
        wrong_mirror("{name: demo}", "{name: demo, namespace: other}")
            .contains("(the files have there: none)")
    );
    assert_eq!(
        wrong_peers("{name: app-db}\n    tls", "{name: app-pg}\n    tls"),
        "peers.yaml, document 1 (ReplicationPeer app): spec.postgres.credentialsSecretRef.name: no Secret app-pg in namespace default among the files"
    );
    assert_eq!(
        wrong_peers("username: walferry", "user: walferry"),
        "peers.yaml, document 1 (ReplicationPeer app): spec.postgres.credentialsSecretRef: Secret app-db (peers.yaml, document 3 (Secret app-db)) has no key username"
    );
    assert!(wrong_peers("{name: ca}}", "{name: ca, key: other}}").contains(
        "spec.postgres.tls.caSecretRef: Secret ca (peers.yaml, document 5 (Secret ca)) has no key other"
    ));
}

#[test]
fn peers_rules_and_duplicates() {
    assert!(
        wrong_peers("'http://ch.example:8123/'", "'ch.example:8123'")
            .contains("spec.clickhouse.url: must be http://host:port")
    );
    assert_eq!(
        parse(&[("peers.yaml", PEERS), ("a.yaml", MIRROR), ("b.yaml", MIRROR)]).unwrap_err().to_string(),
        "b.yaml, document 1 (Mirror demo): metadata.name: the same Mirror is already in a.yaml, document 1 (Mirror demo)"
    );
    let second = MIRROR.replace("{name: demo}", "{name: second}");
    assert_eq!(
        parse(&[("peers.yaml", PEERS), ("a.yaml", MIRROR), ("b.yaml", &second)]).unwrap_err().to_string(),
        "b.yaml, document 1 (Mirror second): spec.tables[0]: target table users in database analytics is already written by spec.tables[0] of a.yaml, document 1 (Mirror demo); give one of them another target.table"
    );
    assert!(
        wrong_mirror("name: users}", "name: users}\n  - {schema: audit, name: x, target: {table: users}}")
            .contains("spec.tables[1]: target table users in database analytics is already written by spec.tables[0]")
    );
    assert_eq!(parse(&[("peers.yaml", PEERS)]).unwrap_err().to_string(), "no Mirror in these files");
    assert_eq!(
        parse(&[("empty.yaml", "---\n---\n# nothing\n")]).unwrap_err().to_string(),
        "no Mirror in these files"
    );
}

#[test]
fn secrets_never_show() {
    for (from, to) in [
        ("password: hush-hush", "password: [hush-hush]"),
        ("password: hush-hush", "password: {hush-hush: 1}"),
        ("password: hush-hush", "password: \"hush-hush\\0\""),
        (
            "stringData: {username: walferry, password: hush-hush}",
            "data: {username: walferry, password: hush-hush}",
        ),
        ("password: hush-hush", "password: !x hush-hush"),
        ("password: hush-hush", "password: hush-hush: hush-hush"),
        ("stringData: {username: walferry, password: hush-hush}", "stringData: hush-hush"),
        ("'http://ch.example:8123/'", "'http://u:hush-hush@ch.example:8123/'"),
    ] {
        let error =
            parse(&[("peers.yaml", &PEERS.replacen(from, to, 1)), ("mirror.yaml", MIRROR)]).unwrap_err();
        assert!(!error.to_string().contains("hush") && !format!("{error:?}").contains("hush"), "{error}");
    }
    assert!(!format!("{:?}", mirror(MIRROR).unwrap()).contains("hush"));
}

#[test]
fn broken_yaml_says_where() {
    let found = wrong_mirror("sourceRef: {name: app}", "sourceRef: {name: app");
    assert!(
        found.starts_with("mirror.yaml, document 1: not valid YAML: ") && found.contains("line "),
        "{found}"
    );
    assert!(matches!(load(&["/nowhere/x.yaml".into()]), Err(LoadError::Read { .. })));
}

#[test]
fn all_problems_are_reported_together() {
    let found =
        wrong_mirror("tables:\n  - {schema: public, name: users}", "tabels: 1\n  tables: []\n  suspend: 3");
    assert_eq!(found.lines().count(), 3, "{found}");
}

#[test]
fn a_cluster_s_uid_is_the_identity() {
    let with_uid =
        |uid: &str| mirror(&MIRROR.replace("{name: demo}", &format!("{{name: demo, uid: {uid}}}")));
    let configs = with_uid("4B0F7f7e-1c2d-4e5f-8a9b-0c1d2e3f4a5b").unwrap();
    assert_eq!(configs[0].mirror.uid, "4b0f7f7e1c2d4e5f8a9b0c1d2e3f4a5b");
    assert_eq!(configs[0].mirror.slot_name(), "walferry_4b0f7f7e1c2d4e5f8a9b0c1d2e3f4a5b");
    for uid in ["'1'", "4b0f7f7e-1c2d-4e5f-8a9b-0c1d2e3f4a5g", "''"] {
        let error = with_uid(uid).unwrap_err().to_string();
        assert!(error.contains("metadata.uid: must have 32 hexadecimal digits"), "{error}");
    }
}

#[test]
fn mounted_secrets_take_the_place_of_documents() {
    let folder = tempfile::tempdir().unwrap();
    let put = |secret: &str, key: &str, value: &str| {
        std::fs::create_dir_all(folder.path().join(secret)).unwrap();
        std::fs::write(folder.path().join(secret).join(key), value).unwrap();
    };
    let peers = PEERS.split("---\napiVersion: v1\n").next().unwrap();
    let file = folder.path().join("mirror.yaml");
    std::fs::write(&file, format!("{peers}---{MIRROR}")).unwrap();
    put("app-db", "username", "walferry");
    put("app-db", "password", "hush\n");
    put("ch", "username", "writer");
    let error = load_mounted(&file, folder.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("no folder {}/ca for Secret ca", folder.path().display())), "{error}");
    assert!(error.contains("key password of Secret ch"), "{error}");
    put("ca", "ca.crt", "PEM\n");
    put("ch", "password", "secret");
    let configs = load_mounted(&file, folder.path()).unwrap();
    assert_eq!(configs[0].source.password.expose(), "hush\n");
    assert_eq!(configs[0].destination.username, "writer");

    std::fs::write(&file, format!("{PEERS}---{MIRROR}")).unwrap();
    let error = load_mounted(&file, folder.path()).unwrap_err().to_string();
    assert!(error.contains("document 3 (Secret app-db): kind: Secrets are read from"), "{error}");
}
