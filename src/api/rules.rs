//! The rules of a single object besides its schema: the CEL rules of the CRDs repeated in Rust, for files
//! that never meet an API server, and a few that CEL can't say. The messages are shared; a test holds the two
//! lists together.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use super::{
    ColumnsSpec, MirrorSpec, MirrorTable, Operation, PeerRef, RESERVED_KEYS, RESERVED_PREFIX,
    ReplicationPeerSpec, ReplicatorResources, ReplicatorSpec, SecretKeyRef, SecretRef, TlsMode, TlsSpec,
    amount, batch_bytes,
    expression::{Dialect, stays_inside},
    is_object_name, is_secret_key,
};

/// The messages of the CEL rules.
pub(super) mod message {
    pub(crate) const OBJECT_NAME: &str = "must be a name that Kubernetes takes: lower-case letters, digits, - and ., with a letter or digit at both ends of each part";
    pub(crate) const SECRET_KEY: &str =
        "must be a key that a Secret can have: letters, digits, -, _ and ., and not . or .. at the beginning";
    pub(crate) const ONE_DATABASE: &str = "exactly one of postgres and clickhouse must be set";
    pub(crate) const KIND_OF_PEER_IS_FIXED: &str =
        "a peer can't change from postgres to clickhouse or back; make another ReplicationPeer";
    pub(crate) const URL: &str = "must be http://host:port or https://host:port, without user, path or query";
    pub(crate) const TLS_FOLLOWS_URL: &str =
        "an https url needs a tls.mode other than Disable, and an http url takes no tls but Disable";
    pub(crate) const CA_IS_USED: &str = "caSecretRef is used only with mode VerifyCa or VerifyFull";
    pub(crate) const CLIENT_CERTIFICATE_IS_USED: &str =
        "clientCertificateSecretRef can't be used with mode Disable";
    pub(crate) const SOURCE_IS_FIXED: &str = "sourceRef can't be changed; make another Mirror";
    pub(crate) const DESTINATION_IS_FIXED: &str = "destinationRef can't be changed; make another Mirror";
    pub(crate) const OPERATIONS: &str =
        "operations must have Insert, each operation once, and Delete only together with Update";
    pub(crate) const INSERT_ONLY: &str =
        "insertOnly: true contradicts operations; leave insertOnly out, which is deprecated";
    pub(crate) const RESERVED_TABLE: &str = "table names that begin with _walferry are walferry's own";
    pub(crate) const EXCLUDED_AND_RENAMED: &str = "a column in exclude can't be in rename too";
    pub(crate) const EXCLUDED_AND_TYPED: &str = "a column in exclude can't be in types too";
    pub(crate) const RENAME_TARGET: &str = "new names must not be empty or begin with _walferry";
    pub(crate) const EMPTY_TYPE: &str = "types must not be empty";
    pub(crate) const SETTING_NAME: &str = "setting names are lower-case letters, digits and _";
    pub(crate) const BATCH_BYTES: &str = "must be a size from 1Mi to 1Gi, such as 32Mi or 33554432";
    pub(crate) const RESERVED_LABEL: &str =
        "labels that begin with app.kubernetes.io/ or walferry.dev/ are walferry's own";
    pub(crate) const RESERVED_ANNOTATION: &str =
        "annotations that begin with app.kubernetes.io/ or walferry.dev/ are walferry's own";
    pub(crate) const QUANTITY: &str = "must be amounts that are not negative, such as 500m or 256Mi";
    pub(crate) const REQUEST_OVER_LIMIT: &str =
        "a request must not be greater than the limit of the same name";
}

/// The most bytes of an identifier at the source (`NAMEDATALEN - 1`).
const IDENTIFIER_BYTES: usize = 63;

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, as in `spec.tables[0].name`.
    pub path: String,
    /// What is wrong and what is allowed; never a value, which may be a secret.
    pub message: String,
}

impl Problem {
    /// A problem with the field at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

/// What is wrong with a ReplicationPeer's spec beyond its schema. Empty when nothing is.
pub fn peer_problems(spec: &ReplicationPeerSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    if spec.postgres.is_some() == spec.clickhouse.is_some() {
        problems.push(Problem::new("spec", message::ONE_DATABASE));
    }
    if let Some(postgres) = &spec.postgres {
        let path = "spec.postgres";
        no_nul(&postgres.host, &format!("{path}.host"), &mut problems);
        identifier(&postgres.database, &format!("{path}.database"), &mut problems);
        secret_name(&postgres.credentials_secret_ref, &format!("{path}.credentialsSecretRef"), &mut problems);
        tls_problems(postgres.tls.as_ref(), path, &mut problems);
    }
    if let Some(clickhouse) = &spec.clickhouse {
        let path = "spec.clickhouse";
        let (https, rest) = match clickhouse.url.split_once("://") {
            Some(("https", rest)) => (true, Some(rest)),
            Some(("http", rest)) => (false, Some(rest)),
            _ => (false, None),
        };
        if !rest.is_some_and(is_authority) || url::Url::parse(&clickhouse.url).is_err() {
            problems.push(Problem::new(format!("{path}.url"), message::URL));
        } else if clickhouse.tls.as_ref().is_some_and(|tls| (tls.mode == TlsMode::Disable) == https) {
            problems.push(Problem::new(path, message::TLS_FOLLOWS_URL));
        }
        no_nul(&clickhouse.database, &format!("{path}.database"), &mut problems);
        secret_name(
            &clickhouse.credentials_secret_ref,
            &format!("{path}.credentialsSecretRef"),
            &mut problems,
        );
        tls_problems(clickhouse.tls.as_ref(), path, &mut problems);
    }
    problems
}

/// `host:port` and perhaps a slash.
fn is_authority(text: &str) -> bool {
    let authority = text.strip_suffix('/').unwrap_or(text);
    !authority.is_empty() && !authority.contains(|c: char| c.is_whitespace() || "/?#@".contains(c))
}

fn tls_problems(tls: Option<&TlsSpec>, path: &str, problems: &mut Vec<Problem>) {
    let Some(tls) = tls else { return };
    if let Some(SecretKeyRef { name, key }) = &tls.ca_secret_ref {
        let path = format!("{path}.tls.caSecretRef");
        object_name(name, &format!("{path}.name"), problems);
        if !is_secret_key(key) {
            problems.push(Problem::new(format!("{path}.key"), message::SECRET_KEY));
        }
    }
    if let Some(client) = &tls.client_certificate_secret_ref {
        secret_name(client, &format!("{path}.tls.clientCertificateSecretRef"), problems);
    }
    if tls.ca_secret_ref.is_some() && !matches!(tls.mode, TlsMode::VerifyCa | TlsMode::VerifyFull) {
        problems.push(Problem::new(format!("{path}.tls"), message::CA_IS_USED));
    }
    if tls.client_certificate_secret_ref.is_some() && tls.mode == TlsMode::Disable {
        problems.push(Problem::new(format!("{path}.tls"), message::CLIENT_CERTIFICATE_IS_USED));
    }
}

/// What is wrong with a Mirror's spec beyond its schema. Empty when nothing is.
pub fn mirror_problems(spec: &MirrorSpec) -> Vec<Problem> {
    let mut problems = Vec::new();
    if batch_bytes(&spec.batch.max_bytes).is_none() {
        problems.push(Problem::new("spec.batch.maxBytes", message::BATCH_BYTES));
    }
    for (field, PeerRef { name }) in
        [("sourceRef", &spec.source_ref), ("destinationRef", &spec.destination_ref)]
    {
        object_name(name, &format!("spec.{field}.name"), &mut problems);
    }
    if let Some(replicator) = &spec.replicator {
        replicator_problems(replicator, "spec.replicator", &mut problems);
    }
    for (index, table) in spec.tables.iter().enumerate() {
        table_problems(table, &format!("spec.tables[{index}]"), &mut problems);
    }
    problems
}

fn table_problems(table: &MirrorTable, path: &str, problems: &mut Vec<Problem>) {
    identifier(&table.schema, &format!("{path}.schema"), problems);
    identifier(&table.name, &format!("{path}.name"), problems);
    if !is_supported(&table.operations) {
        problems.push(Problem::new(format!("{path}.operations"), message::OPERATIONS));
    }
    if is_contradictory(table) {
        problems.push(Problem::new(path, message::INSERT_ONLY));
    }
    if let Some(filter) = &table.row_filter {
        no_nul(filter, &format!("{path}.where"), problems);
        if filter.trim().is_empty() {
            problems.push(Problem::new(
                format!("{path}.where"),
                "must be a condition; leave it out to mirror every row",
            ));
        }
        expression(filter, Dialect::Postgres, &format!("{path}.where"), problems);
    }
    if let Some(target) = &table.target {
        let path = format!("{path}.target.table");
        if target.table.starts_with(RESERVED_PREFIX) {
            problems.push(Problem::new(&path, message::RESERVED_TABLE));
        }
        no_nul(&target.table, &path, problems);
    }
    if let Some(columns) = &table.columns {
        column_problems(columns, &format!("{path}.columns"), problems);
    }
    if let Some(engine) = &table.engine {
        let path = format!("{path}.engine");
        let mut columns = HashSet::new();
        for (index, column) in engine.order_by.iter().enumerate() {
            let path = format!("{path}.orderBy[{index}]");
            if !columns.insert(column) {
                problems.push(Problem::new(&path, "the column is listed twice"));
            }
            no_nul(column, &path, problems);
        }
        for (field, text) in [("partitionBy", &engine.partition_by), ("ttl", &engine.ttl)] {
            let (text, path) = (text.as_deref().unwrap_or(""), format!("{path}.{field}"));
            no_nul(text, &path, problems);
            expression(text, Dialect::ClickHouse, &path, problems);
        }
        if !engine.settings.keys().all(|name| is_setting_name(name)) {
            problems.push(Problem::new(format!("{path}.settings"), message::SETTING_NAME));
        }
        for (name, value) in &engine.settings {
            no_nul(value, &format!("{path}.settings.{name}"), problems);
        }
    }
}

/// Whether rows can be kept by the operations, which are empty where they were left out. Deletes without
/// updates can't: the delete of a row whose key was updated would name a key that the target never had.
fn is_supported(operations: &[Operation]) -> bool {
    let has = |operation| operations.contains(&operation);
    let once = operations.iter().enumerate().all(|(at, operation)| !operations[..at].contains(operation));
    let deletes = has(Operation::Update) || !has(Operation::Delete);
    operations.is_empty() || once && has(Operation::Insert) && deletes
}

/// Whether the former `insertOnly: true` stands beside operations that are not those that it means.
pub(super) fn is_contradictory(table: &MirrorTable) -> bool {
    let listed = |operation| table.operations.contains(&operation);
    let same = table.operations.len() == 2 && listed(Operation::Insert) && listed(Operation::Truncate);
    table.insert_only == Some(true) && !table.operations.is_empty() && !same
}

fn column_problems(columns: &ColumnsSpec, path: &str, problems: &mut Vec<Problem>) {
    for (index, column) in columns.exclude.iter().enumerate() {
        identifier(column, &format!("{path}.exclude[{index}]"), problems);
    }
    for (list, keys) in [("rename", &columns.rename), ("types", &columns.types)] {
        for (column, value) in keys {
            identifier(column, &format!("{path}.{list}"), problems);
            no_nul(value, &format!("{path}.{list}"), problems);
        }
    }
    if columns.exclude.iter().any(|column| columns.rename.contains_key(column)) {
        problems.push(Problem::new(path, message::EXCLUDED_AND_RENAMED));
    }
    if columns.exclude.iter().any(|column| columns.types.contains_key(column)) {
        problems.push(Problem::new(path, message::EXCLUDED_AND_TYPED));
    }
    if columns.rename.values().any(|name| name.is_empty() || name.starts_with(RESERVED_PREFIX)) {
        problems.push(Problem::new(path, message::RENAME_TARGET));
    }
    // CEL would need a quadratic expression, which the API server's cost limit doesn't allow.
    let mut names = HashSet::new();
    if !columns.rename.values().all(|name| names.insert(name)) {
        problems.push(Problem::new(format!("{path}.rename"), "two columns get the same name"));
    }
    if columns.types.values().any(String::is_empty) {
        problems.push(Problem::new(path, message::EMPTY_TYPE));
    }
}

fn replicator_problems(replicator: &ReplicatorSpec, path: &str, problems: &mut Vec<Problem>) {
    for (index, secret) in replicator.image_pull_secrets.iter().enumerate() {
        secret_name(secret, &format!("{path}.imagePullSecrets[{index}]"), problems);
    }
    if let Some(class) = &replicator.priority_class_name {
        object_name(class, &format!("{path}.priorityClassName"), problems);
    }
    let reserved = |keys: &BTreeMap<String, String>| {
        keys.keys().any(|key| RESERVED_KEYS.iter().any(|prefix| key.starts_with(prefix)))
    };
    if reserved(&replicator.pod_labels) {
        problems.push(Problem::new(format!("{path}.podLabels"), message::RESERVED_LABEL));
    }
    if reserved(&replicator.pod_annotations) {
        problems.push(Problem::new(format!("{path}.podAnnotations"), message::RESERVED_ANNOTATION));
    }
    let Some(ReplicatorResources { requests, limits }) = &replicator.resources else { return };
    let path = format!("{path}.resources");
    for (field, quantities) in [("requests", requests), ("limits", limits)] {
        if quantities.values().any(|quantity| amount(quantity).is_none()) {
            problems.push(Problem::new(format!("{path}.{field}"), message::QUANTITY));
        }
    }
    let both = |(name, request)| Some((amount(request)?, amount(limits.get(name)?)?));
    if requests.iter().filter_map(both).any(|(request, limit)| request > limit) {
        problems.push(Problem::new(path, message::REQUEST_OVER_LIMIT));
    }
}

fn is_setting_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// A text that stands in a statement as it is, between parentheses.
fn expression(text: &str, dialect: Dialect, path: &str, problems: &mut Vec<Problem>) {
    if let Err(message) = stays_inside(text, dialect) {
        problems.push(Problem::new(path, message));
    }
}

fn secret_name(SecretRef { name }: &SecretRef, path: &str, problems: &mut Vec<Problem>) {
    object_name(name, &format!("{path}.name"), problems);
}

fn object_name(name: &str, path: &str, problems: &mut Vec<Problem>) {
    if !is_object_name(name) {
        problems.push(Problem::new(path, message::OBJECT_NAME));
    }
}

/// A name at the source: the schema counts characters, PostgreSQL counts bytes and cuts off what is too much.
fn identifier(name: &str, path: &str, problems: &mut Vec<Problem>) {
    if name.is_empty() || name.len() > IDENTIFIER_BYTES {
        problems.push(Problem::new(path, format!("an identifier has 1 to {IDENTIFIER_BYTES} bytes")));
    }
    no_nul(name, path, problems);
}

fn no_nul(text: &str, path: &str, problems: &mut Vec<Problem>) {
    if text.contains('\0') {
        problems.push(Problem::new(path, "must not contain a NUL character"));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::{Mirror, ReplicationPeer, custom_resource_definitions};

    /// Every rule of the CRDs with an object that breaks it; `None` where breaking it takes an update.
    fn violations() -> Vec<(&'static str, Option<Value>)> {
        let postgres = |tls: Value| json!({"postgres": {"host": "h", "database": "d", "credentialsSecretRef": {"name": "s"}, "tls": tls}});
        let clickhouse = |url: &str, tls: Value| json!({"clickhouse": {"url": url, "database": "d", "credentialsSecretRef": {"name": "s"}, "tls": tls}});
        let table = |extra: Value| {
            let mut table = json!({"schema": "public", "name": "t"});
            table.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": [table]})
        };
        let mirror_of = |source: &str| {
            let mut mirror = table(json!({}));
            mirror["sourceRef"]["name"] = source.into();
            mirror
        };
        let columns = |columns: Value| Some(table(json!({"columns": columns})));
        let replicator = |replicator: Value| {
            let mut mirror = table(json!({}));
            mirror["replicator"] = replicator;
            Some(mirror)
        };
        let mut batch = table(json!({}));
        batch["batch"] = json!({"maxBytes": "64MB"});
        vec![
            (message::OBJECT_NAME, Some(mirror_of("?watch=true"))),
            (message::SECRET_KEY, Some(postgres(json!({"caSecretRef": {"name": "s", "key": "../x"}})))),
            (message::ONE_DATABASE, Some(json!({}))),
            (message::KIND_OF_PEER_IS_FIXED, None),
            (message::URL, Some(clickhouse("http://u:p@h:8123", Value::Null))),
            (message::TLS_FOLLOWS_URL, Some(clickhouse("http://h:8123", json!({"mode": "VerifyFull"})))),
            (message::CA_IS_USED, Some(postgres(json!({"mode": "Require", "caSecretRef": {"name": "s"}})))),
            (
                message::CLIENT_CERTIFICATE_IS_USED,
                Some(postgres(json!({"mode": "Disable", "clientCertificateSecretRef": {"name": "s"}}))),
            ),
            (message::SOURCE_IS_FIXED, None),
            (message::DESTINATION_IS_FIXED, None),
            (message::OPERATIONS, Some(table(json!({"operations": ["Insert", "Delete"]})))),
            (
                message::INSERT_ONLY,
                Some(table(
                    json!({"insertOnly": true, "operations": ["Insert", "Update", "Delete", "Truncate"]}),
                )),
            ),
            (message::RESERVED_TABLE, Some(table(json!({"target": {"table": "_walferry_state"}})))),
            (message::EXCLUDED_AND_RENAMED, columns(json!({"exclude": ["a"], "rename": {"a": "b"}}))),
            (message::EXCLUDED_AND_TYPED, columns(json!({"exclude": ["a"], "types": {"a": "JSON"}}))),
            (message::RENAME_TARGET, columns(json!({"rename": {"a": "_walferry_version"}}))),
            (message::EMPTY_TYPE, columns(json!({"types": {"a": ""}}))),
            (message::SETTING_NAME, Some(table(json!({"engine": {"settings": {"A b": "1"}}})))),
            (message::BATCH_BYTES, Some(batch)),
            (message::RESERVED_LABEL, replicator(json!({"podLabels": {"walferry.dev/mirror": "x"}}))),
            (
                message::RESERVED_ANNOTATION,
                replicator(json!({"podAnnotations": {"app.kubernetes.io/name": "x"}})),
            ),
            (message::QUANTITY, replicator(json!({"resources": {"limits": {"memory": "256MB"}}}))),
            (
                message::REQUEST_OVER_LIMIT,
                replicator(json!({"resources": {"requests": {"cpu": 1}, "limits": {"cpu": "500m"}}})),
            ),
        ]
    }

    fn problems(spec: &Value) -> Vec<Problem> {
        let object = |kind: &str| json!({"apiVersion": crate::api::API_VERSION, "kind": kind, "metadata": {"name": "x"}, "spec": spec});
        if spec.get("sourceRef").is_some() {
            mirror_problems(&serde_json::from_value::<Mirror>(object("Mirror")).unwrap().spec)
        } else {
            peer_problems(&serde_json::from_value::<ReplicationPeer>(object("ReplicationPeer")).unwrap().spec)
        }
    }

    fn messages_of_crds(value: &Value, found: &mut Vec<String>) {
        if let Some(Value::Array(rules)) = value.get("x-kubernetes-validations") {
            found.extend(rules.iter().map(|rule| rule["message"].as_str().unwrap().to_owned()));
        }
        match value {
            Value::Object(fields) => fields.values().for_each(|field| messages_of_crds(field, found)),
            Value::Array(items) => items.iter().for_each(|item| messages_of_crds(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_cel_rule_is_kept_in_files_too() {
        let mut in_crds = Vec::new();
        for crd in custom_resource_definitions() {
            messages_of_crds(&serde_json::to_value(crd).unwrap(), &mut in_crds);
        }
        let known: HashSet<&str> = violations().iter().map(|(message, _)| *message).collect();
        let in_crds: HashSet<&str> = in_crds.iter().map(String::as_str).collect();
        assert_eq!(in_crds, known);
        for (message, violation) in violations() {
            let Some(violation) = violation else { continue };
            let found = problems(&violation);
            assert_eq!(found.len(), 1, "{message}: {found:?}");
            assert_eq!(found[0].message, message);
        }
    }

    #[test]
    fn operations_can_keep_rows() {
        let found = |listed: Value| {
            let table = json!({"schema": "public", "name": "t", "operations": listed});
            let mirror =
                json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": [table]});
            problems(&mirror).into_iter().map(|problem| problem.path).collect::<Vec<_>>()
        };
        for accepted in [
            json!([]),
            json!(["Insert", "Truncate"]),
            json!(["Truncate", "Insert"]),
            json!(["Delete", "Truncate", "Insert", "Update"]),
            json!(["Insert"]),
            json!(["Update", "Insert"]),
            json!(["Insert", "Update", "Truncate"]),
            json!(["Insert", "Update", "Delete"]),
        ] {
            assert_eq!(found(accepted), Vec::<String>::new());
        }
        for refused in [
            json!(["Insert", "Delete"]),
            json!(["Insert", "Delete", "Truncate"]),
            json!(["Update"]),
            json!(["Update", "Delete", "Truncate"]),
            json!(["Insert", "Insert"]),
            json!(["Insert", "Truncate", "Insert", "Truncate"]),
        ] {
            assert_eq!(found(refused), ["spec.tables[0].operations"]);
        }
    }

    #[test]
    fn urls() {
        let url = |url: &str| {
            problems(
                &json!({"clickhouse": {"url": url, "database": "d", "credentialsSecretRef": {"name": "s"}}}),
            )
            .is_empty()
        };
        for valid in
            ["http://localhost:8123", "https://ch.example:8443/", "http://[::1]:8123", "https://ch.example"]
        {
            assert!(url(valid), "{valid}");
        }
        for wrong in [
            "",
            "localhost:8123",
            "tcp://h:9000",
            "http://",
            "http://h:99999",
            "http://h/path",
            "http://h?a=b",
            "http://u@h",
        ] {
            assert!(!url(wrong), "{wrong}");
        }
    }

    /// Each field whose text ends up in the path of a request or of a file.
    #[test]
    fn no_name_asks_another_question() {
        let peer = |side: &str| {
            let mut peer = json!({side: {"database": "d", "credentialsSecretRef": {"name": "s"},
                "tls": {"caSecretRef": {"name": "s", "key": "k"}, "clientCertificateSecretRef": {"name": "s"}}}});
            peer[side][if side == "postgres" { "host" } else { "url" }] = "https://h:8443".into();
            peer
        };
        let mirror = json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"},
            "tables": [{"schema": "public", "name": "t"}],
            "replicator": {"imagePullSecrets": [{"name": "s"}], "priorityClassName": "p"}});
        let mut tried = 0;
        for (spec, fields) in [
            (
                peer("postgres"),
                &[
                    "postgres/credentialsSecretRef/name",
                    "postgres/tls/caSecretRef/name",
                    "postgres/tls/caSecretRef/key",
                    "postgres/tls/clientCertificateSecretRef/name",
                ][..],
            ),
            (
                peer("clickhouse"),
                &[
                    "clickhouse/credentialsSecretRef/name",
                    "clickhouse/tls/caSecretRef/name",
                    "clickhouse/tls/caSecretRef/key",
                    "clickhouse/tls/clientCertificateSecretRef/name",
                ][..],
            ),
            (
                mirror,
                &[
                    "sourceRef/name",
                    "destinationRef/name",
                    "replicator/imagePullSecrets/0/name",
                    "replicator/priorityClassName",
                ][..],
            ),
        ] {
            assert_eq!(problems(&spec), []);
            for field in fields {
                let path = format!("spec.{}", field.replace('/', ".")).replace(".0.", "[0].");
                for name in [
                    "?watch=true",
                    "?fieldSelector=metadata.name%3Dapp-db",
                    "app-db?x=y",
                    "../x",
                    "a/b",
                    "..",
                ] {
                    let mut spec = spec.clone();
                    *spec.pointer_mut(&format!("/{field}")).unwrap() = name.into();
                    let found = problems(&spec);
                    assert_eq!(found.len(), 1, "{path} = {name}: {found:?}");
                    assert_eq!(found[0].path, path);
                    tried += 1;
                }
            }
        }
        assert_eq!(tried, 12 * 6);
    }

    #[test]
    fn names_are_measured_in_bytes_and_hold_no_nul() {
        let spec = |name: &str| {
            problems(
                &json!({"sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": [{"schema": "public", "name": name}]}),
            )
        };
        assert!(spec(&"é".repeat(31)).is_empty());
        assert_eq!(
            spec(&"é".repeat(32))[0].to_string(),
            "spec.tables[0].name: an identifier has 1 to 63 bytes"
        );
        assert_eq!(spec("a\0b")[0].to_string(), "spec.tables[0].name: must not contain a NUL character");
    }
}
