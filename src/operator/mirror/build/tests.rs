use serde_json::{Value, json};

use super::*;

const CONFIG: &str = include_str!("config.yaml");
const DEPLOYMENT: &str = include_str!("deployment.yaml");

fn peer(name: &str, spec: Value) -> ReplicationPeer {
    serde_json::from_value(json!({
        "apiVersion": "walferry.dev/v1alpha1",
        "kind": "ReplicationPeer",
        "metadata": {
            "name": name, "namespace": "shop", "uid": "1", "resourceVersion": "7", "generation": 2,
            "labels": {"team": "a"}, "managedFields": [],
        },
        "spec": spec,
        "status": {"serverVersion": "18.4"},
    }))
    .unwrap()
}

fn mirror(name: &str, extra: Value) -> Mirror {
    let mut mirror = json!({
        "apiVersion": "walferry.dev/v1alpha1",
        "kind": "Mirror",
        "metadata": {
            "name": name, "namespace": "shop", "uid": "2c9b2b3c-2f5e-4b6d-9f0c-0123456789ab",
            "resourceVersion": "7", "generation": 2, "finalizers": ["walferry.dev/cleanup"],
            "annotations": {"walferry.dev/resync": "1", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": {
            "sourceRef": {"name": "app"},
            "destinationRef": {"name": "analytics"},
            "tables": [
                {"schema": "public", "name": "users"},
                {"schema": "public", "name": "TaskRun", "where": "\"projectId\" IS NOT NULL", "columns": {"types": {"payload": "JSON"}}},
            ],
        },
        "status": {"slotName": "walferry_x"},
    });
    mirror["spec"].as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    serde_json::from_value(mirror).unwrap()
}

struct Fixture {
    source: ReplicationPeer,
    destination: ReplicationPeer,
    settings: ReplicatorSettings,
}

impl Fixture {
    /// The source uses a certificate authority and a client certificate; both peers have their
    /// credentials in one Secret, as some do.
    fn new() -> Self {
        let source = json!({"postgres": {
            "host": "db.example", "database": "app", "credentialsSecretRef": {"name": "logins"},
            "tls": {"mode": "VerifyFull", "caSecretRef": {"name": "ca"}, "clientCertificateSecretRef": {"name": "logins"}},
        }});
        let destination = json!({"clickhouse": {
            "url": "http://ch.example:8123", "database": "analytics", "credentialsSecretRef": {"name": "logins"},
        }});
        Fixture {
            source: peer("app", source),
            destination: peer("analytics", destination),
            settings: ReplicatorSettings { image: "walferry:0.1.0".into(), ..Default::default() },
        }
    }

    fn of<'a>(&'a self, mirror: &'a Mirror) -> Replicator<'a> {
        Replicator { mirror, source: &self.source, destination: &self.destination, settings: &self.settings }
    }

    fn pod(&self, mirror: &Mirror) -> PodTemplateSpec {
        self.of(mirror).deployment("0", 1).spec.unwrap().template
    }

    fn container(&self, extra: Value) -> Container {
        self.pod(&mirror("demo", json!({"replicator": extra}))).spec.unwrap().containers.remove(0)
    }
}

#[test]
fn the_documents() {
    let fixture = Fixture::new();
    assert_eq!(fixture.of(&mirror("demo", json!({}))).config_yaml().unwrap(), CONFIG);
}

#[test]
fn what_concerns_the_operator_alone_is_not_in_the_documents() {
    let fixture = Fixture::new();
    let extra = json!({"suspend": true, "deletionPolicy": "Retain", "replicator": {"logLevel": "Debug"}});
    assert_eq!(fixture.of(&mirror("demo", extra)).config_yaml().unwrap(), CONFIG);
    let batch = json!({"batch": {"maxBytes": "64Mi"}});
    assert_ne!(fixture.of(&mirror("demo", batch)).config_yaml().unwrap(), CONFIG);
}

#[test]
fn the_config_map() {
    let fixture = Fixture::new();
    let mirror = mirror("demo", json!({}));
    let expected = "\
apiVersion: v1
kind: ConfigMap
data:
  mirror.yaml: text
metadata:
  labels:
    app.kubernetes.io/component: replicator
    app.kubernetes.io/managed-by: walferry
    app.kubernetes.io/name: walferry
    walferry.dev/mirror: demo
    walferry.dev/mirror-uid: 2c9b2b3c-2f5e-4b6d-9f0c-0123456789ab
  name: walferry-demo
  namespace: shop
  ownerReferences:
  - apiVersion: walferry.dev/v1alpha1
    controller: true
    kind: Mirror
    name: demo
    uid: 2c9b2b3c-2f5e-4b6d-9f0c-0123456789ab
";
    assert_eq!(serde_yaml::to_string(&fixture.of(&mirror).config_map("text")).unwrap(), expected);
}

#[test]
fn the_deployment() {
    let fixture = Fixture::new();
    let mirror = mirror("demo", json!({}));
    let deployment = fixture.of(&mirror).deployment("0123456789abcdef", 1);
    assert_eq!(serde_yaml::to_string(&deployment).unwrap(), DEPLOYMENT);
    assert_eq!(applied_hash(&deployment), Some("0123456789abcdef"));
    assert_eq!(fixture.of(&mirror).deployment("", 0).spec.unwrap().replicas, Some(0));
}

#[test]
fn every_override_arrives() {
    let mut fixture = Fixture::new();
    fixture.settings.image_pull_policy = Some("Never".into());
    fixture.settings.image_pull_secrets = vec!["registry".into(), "mirror".into()];
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}],
    }}});
    let tolerations = json!([{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}]);
    let mirror = mirror(
        "demo",
        json!({"replicator": {
            "resources": {"requests": {"cpu": 1, "ephemeral-storage": "1Gi"}, "limits": {"memory": "512Mi"}},
            "nodeSelector": {"kubernetes.io/arch": "amd64"},
            "tolerations": tolerations,
            "affinity": affinity,
            "priorityClassName": "high",
            "imagePullSecrets": [{"name": "mirror"}, {"name": "own"}],
            "podLabels": {"team": "a", "walferry.dev/mirror": "stolen"},
            "podAnnotations": {"prometheus.io/scrape": "true", "walferry.dev/config-hash": "stolen"},
            "logLevel": "Debug",
        }}),
    );
    let PodTemplateSpec { metadata, spec } = fixture.pod(&mirror);
    let (metadata, spec) = (metadata.unwrap(), serde_json::to_value(spec).unwrap());
    assert_eq!(metadata.labels.as_ref().unwrap()["team"], "a");
    assert_eq!(metadata.labels.as_ref().unwrap()["walferry.dev/mirror"], "demo");
    assert_eq!(metadata.annotations.as_ref().unwrap()["prometheus.io/scrape"], "true");
    assert_eq!(metadata.annotations.as_ref().unwrap()["walferry.dev/config-hash"], "0");
    assert_eq!(spec["affinity"], affinity);
    assert_eq!(spec["tolerations"], tolerations);
    assert_eq!(spec["nodeSelector"], json!({"kubernetes.io/arch": "amd64"}));
    assert_eq!(spec["priorityClassName"], "high");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}, {"name": "mirror"}, {"name": "own"}]));
    let container = &spec["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Never");
    assert_eq!(container["args"].as_array().unwrap()[9..], ["--log-level", "debug"]);
    assert_eq!(
        container["resources"],
        json!({
            "requests": {"cpu": "1", "memory": "64Mi", "ephemeral-storage": "1Gi"},
            "limits": {"memory": "512Mi"},
        })
    );
}

#[test]
fn a_default_gives_way_to_what_the_mirror_says() {
    let fixture = Fixture::new();
    let resources = |extra: Value| {
        serde_json::to_value(fixture.container(json!({"resources": extra})).resources).unwrap()
    };
    assert_eq!(
        resources(json!({"limits": {"memory": "32Mi", "cpu": "20m"}})),
        json!({"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"cpu": "20m", "memory": "32Mi"}})
    );
    assert_eq!(
        resources(json!({"requests": {"memory": 1_073_741_824}})),
        json!({"requests": {"cpu": "50m", "memory": "1073741824"}, "limits": {"memory": "1073741824"}})
    );
}

#[test]
fn names_fit_into_labels() {
    let fixture = Fixture::new();
    let long = "m".repeat(55);
    let name = |name: &str| fixture.of(&mirror(name, json!({}))).name();
    assert_eq!(name("demo"), "walferry-demo");
    assert_eq!(name(&"m".repeat(54)).len(), 63);
    assert_eq!(
        name(&long),
        format!("walferry-{}-{}", "m".repeat(45), &hex(&[&format!("walferry-{long}")])[..8])
    );
    assert_ne!(name(&long), name(&"m".repeat(56)));
    // A dot is allowed in the name of a Mirror and not in a host name; no two Mirrors share a name for it.
    assert!(name("a.b").starts_with("walferry-a-b-") && name("a.b") != name("a-b"));
    for long in [
        "a".repeat(253),
        format!("{}.{}", "a".repeat(44), "b".repeat(100)),
        format!("{}-{}", "a".repeat(53), "b".repeat(9)),
    ] {
        let mirror = mirror(&long, json!({}));
        let replicator = fixture.of(&mirror);
        let label = &replicator.labels()["walferry.dev/mirror"];
        for name in [&replicator.name(), label] {
            let ends = |c: char| c.is_ascii_alphanumeric();
            assert!(name.len() <= 63 && name.starts_with(ends) && name.ends_with(ends), "{name}");
        }
        assert!(!replicator.name().contains('.') && !replicator.name().contains("--"));
        assert_eq!(replicator.labels(), fixture.pod(&mirror).metadata.unwrap().labels.unwrap());
    }
}

#[test]
fn the_hash_distinguishes_configurations_and_nothing_else() {
    let secrets = |name: &str, key: &str, value: &str| {
        BTreeMap::from([((name.to_owned(), key.to_owned()), Password::new(value))])
    };
    let hash = |yaml: &str, uid: &str, name: &str, key: &str, value: &str| {
        config_hash(yaml, uid, &secrets(name, key, value))
    };
    let first = hash("a", "u", "s", "k", "v");
    assert_eq!(first, hash("a", "u", "s", "k", "v"));
    assert!(first.len() == 16 && first.bytes().all(|c| c.is_ascii_hexdigit()));
    for other in [
        hash("b", "u", "s", "k", "v"),
        hash("a", "v", "s", "k", "v"),
        hash("a", "u", "t", "k", "v"),
        hash("a", "u", "s", "l", "v"),
        hash("a", "u", "s", "k", "w"),
        hash("au", "", "s", "k", "v"),
        hash("a", "u", "sk", "", "v"),
        config_hash("a", "u", &BTreeMap::new()),
    ] {
        assert_ne!(first, other);
    }
}
