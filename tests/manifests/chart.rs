//! The Helm chart in each of its modes.

use std::{collections::BTreeSet, fs, path::Path};

use clap::Parser;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionSpec;
use serde_json::{Value, json};

use crate::tools::{Objects, conforms, documents, objects, output, read, rendered, repository, template};

const DIGEST: &str = "image.digest=sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
const NAMESPACED: &str = r#"watchNamespaces=["shop","crm"]"#;

/// Values of each mode that people install.
const MODES: &[&[&str]] = &[
    &[],
    &[NAMESPACED, "crds.install=false"],
    &[
        "replicas=2",
        r#"topologySpreadConstraints=[{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"DoNotSchedule"}]"#,
    ],
    &[DIGEST, r#"imagePullSecrets=[{"name":"registry"}]"#],
    &[
        "metrics.serviceMonitor.enabled=true",
        "metrics.podMonitor.enabled=true",
        "networkPolicy.enabled=true",
        r#"networkPolicy.replicatorNamespaces=["shop"]"#,
    ],
    &[
        "podLabels.team=data",
        "podAnnotations.note=yes",
        "nodeSelector.disk=ssd",
        "priorityClassName=high",
        r#"tolerations=[{"key":"a","operator":"Exists"}]"#,
        r#"affinity={"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"a","operator":"Exists"}]}]}}}"#,
        "serviceAccount.create=false",
        "serviceAccount.name=mine",
    ],
];

fn made(values: &[&str]) -> Objects {
    objects(&rendered(values))
}

fn names(objects: &Objects) -> Vec<&str> {
    objects.keys().map(String::as_str).collect()
}

/// The pod of the operator's Deployment, and its container's arguments.
fn pod(objects: &Objects) -> (&Value, Vec<&str>) {
    let pod = &objects["Deployment walferry-system/walferry"]["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    (pod, arguments.iter().map(|argument| argument.as_str().unwrap()).collect())
}

#[test]
fn definitions_are_up_to_date() {
    assert!(
        read("charts/walferry/files/crds.yaml") == walferry::cli::crds::yaml().unwrap(),
        "charts/walferry/files/crds.yaml is stale; run: ./e2e/tools/generate"
    );
}

#[test]
fn versions_are_those_of_the_program() {
    let chart = &documents(&read("charts/walferry/Chart.yaml"))[0];
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    let manager = &documents(&read("config/manager/kustomization.yaml"))[0];
    assert_eq!(manager["images"][0]["newTag"], env!("CARGO_PKG_VERSION"));
    let docs = read("docs/gitops.md");
    let pinned = docs.lines().filter(|line| {
        ["targetRevision: ", " tag: ", "?ref=", "newTag: "].iter().any(|pin| line.contains(pin))
    });
    let stale: Vec<&str> = pinned.clone().filter(|line| !line.ends_with(env!("CARGO_PKG_VERSION"))).collect();
    assert!(pinned.count() >= 4 && stale.is_empty(), "docs/gitops.md: {stale:?}");
}

/// The program takes the arguments that the chart gives it, in every mode.
#[test]
fn the_program_understands_its_arguments() {
    for mode in MODES {
        let objects = made(mode);
        let (_, arguments) = pod(&objects);
        let parsed = walferry::cli::Cli::try_parse_from(["walferry"].iter().chain(&arguments));
        assert!(parsed.is_ok(), "{mode:?} {arguments:?}: {parsed:?}");
    }
}

#[test]
fn lints() {
    output("helm", &["lint", "--strict", "charts/walferry", "--kube-version", "1.34.4"], "");
}

#[test]
fn every_mode_conforms_to_kubernetes() {
    for mode in MODES {
        conforms(&rendered(mode));
    }
}

#[test]
fn an_install_for_all_namespaces() {
    let objects = made(&[]);
    assert_eq!(
        names(&objects),
        [
            "ClusterRole walferry",
            "ClusterRole walferry-edit",
            "ClusterRole walferry-view",
            "ClusterRoleBinding walferry",
            "CustomResourceDefinition mirrors.walferry.dev",
            "CustomResourceDefinition replicationpeers.walferry.dev",
            "Deployment walferry-system/walferry",
            "Role walferry-system/walferry-leader-election",
            "RoleBinding walferry-system/walferry-leader-election",
            "Service walferry-system/walferry-metrics",
            "ServiceAccount walferry-system/walferry",
        ]
    );
    let (pod, arguments) = pod(&objects);
    assert_eq!(
        arguments,
        [
            "operator",
            concat!("--image=ghcr.io/walferry/walferry:", env!("CARGO_PKG_VERSION")),
            "--image-pull-policy=IfNotPresent",
            "--leader-election",
            "--lease-name=walferry",
            "--http=[::]:9465",
            "--log-format=json",
            "--log-level=info",
        ]
    );
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(pod["containers"][0]["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
}

#[test]
fn definitions_are_upgraded_and_outlive_the_release() {
    let objects = made(&[]);
    for definition in walferry::api::custom_resource_definitions() {
        let ours = &objects[&format!("CustomResourceDefinition {}", definition.metadata.name.unwrap())];
        let spec: CustomResourceDefinitionSpec = serde_json::from_value(ours["spec"].clone()).unwrap();
        assert!(spec == definition.spec, "helm changes {}", definition.spec.names.kind);
        assert_eq!(ours["metadata"]["annotations"], json!({"helm.sh/resource-policy": "keep"}));
    }
}

/// The same rights, but only where they are needed, and no object that belongs to the whole cluster.
#[test]
fn an_install_for_some_namespaces_takes_nothing_of_the_cluster() {
    let (whole, objects) = (made(&[]), made(&[NAMESPACED, "crds.install=false"]));
    assert_eq!(
        names(&objects),
        [
            "Deployment walferry-system/walferry",
            "Role crm/walferry",
            "Role shop/walferry",
            "Role walferry-system/walferry-leader-election",
            "RoleBinding crm/walferry",
            "RoleBinding shop/walferry",
            "RoleBinding walferry-system/walferry-leader-election",
            "Service walferry-system/walferry-metrics",
            "ServiceAccount walferry-system/walferry",
        ]
    );
    for namespace in ["crm", "shop"] {
        assert_eq!(
            objects[&format!("Role {namespace}/walferry")]["rules"],
            whole["ClusterRole walferry"]["rules"]
        );
        let binding = &objects[&format!("RoleBinding {namespace}/walferry")];
        assert_eq!(binding["roleRef"]["kind"], "Role");
        assert_eq!(
            binding["subjects"],
            json!([{"kind": "ServiceAccount", "name": "walferry", "namespace": "walferry-system"}])
        );
    }
    let (_, arguments) = pod(&objects);
    assert_eq!(arguments[3..5], ["--namespace=shop", "--namespace=crm"]);
}

/// Secrets are read and not written, nothing is done to pods, and no verb or resource is a wildcard.
#[test]
fn rights_are_few() {
    let objects = made(&[]);
    let rules = objects["ClusterRole walferry"]["rules"].as_array().unwrap();
    let verbs = |resource: &str| -> BTreeSet<&str> {
        let rules =
            rules.iter().filter(|rule| rule["resources"].as_array().unwrap().contains(&json!(resource)));
        rules.flat_map(|rule| rule["verbs"].as_array().unwrap()).map(|verb| verb.as_str().unwrap()).collect()
    };
    assert_eq!(verbs("secrets"), BTreeSet::from(["get", "list", "watch"]));
    assert_eq!(verbs("pods"), BTreeSet::from(["list", "watch"]));
    assert!(verbs("namespaces").is_empty() && verbs("leases").is_empty());
    assert!(!serde_json::to_string(rules).unwrap().contains('*'));
}

#[test]
fn rights_are_those_of_the_docs() {
    let objects = made(&[]);
    let words = |list: &Value| {
        list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect::<Vec<_>>().join(", ")
    };
    let texts = ["docs/operations.md", "src/operator/mod.rs"].map(|path| (path, read(path)));
    for rule in objects["ClusterRole walferry"]["rules"].as_array().unwrap() {
        let row = format!("| {} | {} |", words(&rule["resources"]), words(&rule["verbs"]));
        for (path, text) in &texts {
            assert!(text.contains(&row), "{path} has no row {row}");
        }
    }
}

#[test]
fn labels_of_ones_own_are_on_everything_and_never_in_a_selector() {
    let plain = made(&[]);
    let objects = made(&["commonLabels.team=data", "podLabels.team=operators"]);
    assert_eq!(names(&objects), names(&plain));
    for (name, object) in &objects {
        assert_eq!(object["metadata"]["labels"]["team"], "data", "{name}");
        let (ours, other) = (&object["spec"]["selector"], &plain[name]["spec"]["selector"]);
        assert_eq!(ours, other, "{name}");
    }
    let pod = &objects["Deployment walferry-system/walferry"]["spec"]["template"]["metadata"]["labels"];
    assert_eq!((&pod["team"], &pod["app.kubernetes.io/name"]), (&json!("operators"), &json!("walferry")));
}

/// Whoever takes a default away altogether gets what Kubernetes does without it.
#[test]
fn defaults_can_be_taken_away() {
    for value in [
        "resources=null",
        "resources.limits=null",
        "watchNamespaces=null",
        "podLabels=null",
        "commonLabels=null",
        "metrics.podMonitor.labels=null",
    ] {
        conforms(&rendered(&[value, "networkPolicy.enabled=true", "metrics.podMonitor.enabled=true"]));
    }
}

#[test]
fn several_operators_are_spread_and_never_all_evicted() {
    let objects = made(MODES[2]);
    let labels = &objects["Deployment walferry-system/walferry"]["spec"]["selector"];
    assert_eq!(objects["Deployment walferry-system/walferry"]["spec"]["replicas"], 2);
    let budget = &objects["PodDisruptionBudget walferry-system/walferry"]["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(&budget["selector"], labels);
    assert_eq!(&pod(&objects).0["topologySpreadConstraints"][0]["labelSelector"], labels);
    assert!(!made(&[]).contains_key("PodDisruptionBudget walferry-system/walferry"));

    let own = json!({"matchLabels": {"team": "data"}});
    let constraint = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own}]);
    let objects = made(&[&format!("topologySpreadConstraints={constraint}")]);
    assert_eq!(pod(&objects).0["topologySpreadConstraints"], constraint);
}

#[test]
fn images_come_by_tag_or_digest_for_operator_and_replicators_alike() {
    let image = |values: &[&str]| {
        let objects = made(values);
        let (pod, arguments) = pod(&objects);
        (pod["containers"][0]["image"].as_str().unwrap().to_owned(), arguments[1].to_owned())
    };
    let (operator, replicator) =
        image(&["image.repository=registry.example:5000/walferry", "image.tag=edge"]);
    assert_eq!(operator, "registry.example:5000/walferry:edge");
    assert_eq!(replicator, "--image=registry.example:5000/walferry:edge");
    let (operator, replicator) = image(&["image.tag=edge", DIGEST]);
    assert!(operator.starts_with("ghcr.io/walferry/walferry@sha256:0123"), "{operator}");
    assert_eq!(replicator, format!("--image={operator}"));
    let (operator, replicator) = image(&["image.tag=edge", "replicator.image=other:1"]);
    assert!(operator.ends_with(":edge"));
    assert_eq!(replicator, "--image=other:1");

    let objects = made(MODES[3]);
    let (pod, arguments) = pod(&objects);
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "registry"}]));
    assert!(arguments.contains(&"--image-pull-secret=registry"));
}

#[test]
fn metrics_can_be_scraped() {
    let objects = made(&[
        "metrics.serviceMonitor.enabled=true",
        "metrics.podMonitor.enabled=true",
        "metrics.serviceMonitor.labels.release=prometheus",
        "metrics.serviceMonitor.interval=5s",
    ]);
    let (service, monitor) = (
        &objects["Service walferry-system/walferry-metrics"],
        &objects["ServiceMonitor walferry-system/walferry"],
    );
    for (label, value) in monitor["spec"]["selector"]["matchLabels"].as_object().unwrap() {
        assert_eq!(&service["metadata"]["labels"][label], value);
    }
    assert_eq!(
        monitor["spec"]["endpoints"],
        json!([{"port": service["spec"]["ports"][0]["name"], "path": "/metrics", "interval": "5s"}])
    );
    assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
    let (pod, _) = pod(&objects);
    assert_eq!(service["spec"]["ports"][0]["targetPort"], pod["containers"][0]["ports"][0]["name"]);
    let replicators = |values: &[&str]| {
        made(values)["PodMonitor walferry-system/walferry-replicators"]["spec"]["namespaceSelector"].clone()
    };
    assert_eq!(replicators(&["metrics.podMonitor.enabled=true"]), json!({"any": true}));
    assert_eq!(
        replicators(&["metrics.podMonitor.enabled=true", NAMESPACED]),
        json!({"matchNames": ["shop", "crm"]})
    );
}

#[test]
fn network_policies_let_in_only_who_must_come_in() {
    let objects = made(&[
        "networkPolicy.enabled=true",
        NAMESPACED,
        r#"networkPolicy.replicatorNamespaces=["shop","third"]"#,
    ]);
    let policies: Vec<&str> =
        names(&objects).into_iter().filter(|name| name.starts_with("NetworkPolicy")).collect();
    assert_eq!(
        policies,
        [
            "NetworkPolicy crm/walferry-replicators",
            "NetworkPolicy shop/walferry-replicators",
            "NetworkPolicy third/walferry-replicators",
            "NetworkPolicy walferry-system/walferry",
        ]
    );
    let replicators = &objects["NetworkPolicy shop/walferry-replicators"]["spec"];
    assert_eq!(replicators["policyTypes"], json!(["Ingress"]));
    let rule = &replicators["ingress"][0];
    assert_eq!(rule["ports"], json!([{"port": 9464, "protocol": "TCP"}]));
    let operator = &objects["Deployment walferry-system/walferry"]["spec"]["selector"];
    assert_eq!(rule["from"][0]["podSelector"], *operator);
    assert_eq!(
        rule["from"][0]["namespaceSelector"]["matchLabels"],
        json!({"kubernetes.io/metadata.name": "walferry-system"})
    );
    assert_eq!(rule["from"].as_array().unwrap().len(), 2);
    let closed = made(&["networkPolicy.enabled=true", "networkPolicy.metricsNamespaces=[]"]);
    assert_eq!(closed["NetworkPolicy walferry-system/walferry"]["spec"]["ingress"], json!([]));
}

#[test]
fn wrong_values_are_refused_with_their_names() {
    for (value, message) in [
        ("replica=2", "additional properties 'replica' not allowed"),
        ("image.version=1", "at '/image': additional properties 'version' not allowed"),
        ("replicas=two", "at '/replicas': got string, want integer"),
        ("image.digest=latest", "at '/image/digest': 'latest' does not match pattern"),
        ("image.repository=walferry:1.0", "at '/image/repository': 'walferry:1.0' does not match pattern"),
        (
            "image.pullPolicy=Sometimes",
            "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
        ),
        (r#"watchNamespaces=["Shop"]"#, "at '/watchNamespaces/0': 'Shop' does not match pattern"),
        (r#"watchNamespaces=["a","a"]"#, "at '/watchNamespaces': items at 0 and 1 are equal"),
        ("log.format=xml", "at '/log/format': value must be one of 'json', 'text'"),
        (
            "metrics.serviceMonitor.interval=soon",
            "at '/metrics/serviceMonitor/interval': 'soon' does not match pattern",
        ),
        ("log.level=loud", "at '/log/level': 'loud' does not match pattern"),
        ("replicator.image=:", "at '/replicator/image': ':' does not match pattern"),
        ("serviceAccount.name=My_Account", "at '/serviceAccount/name': 'My_Account' does not match pattern"),
        (r#"imagePullSecrets=[{"name":""}]"#, "at '/imagePullSecrets/0/name': minLength: got 0, want 1"),
        ("fullnameOverride=1st", "at '/fullnameOverride': '1st' does not match pattern"),
        (r#"podLabels={"app.kubernetes.io/name":"x"}"#, "at '/podLabels/app.kubernetes.io~1name'"),
        ("commonLabels.team=a b", "at '/commonLabels/team': 'a b' does not match pattern"),
        ("serviceAccount.create=false", "serviceAccount.name is needed when serviceAccount.create is false"),
    ] {
        let output = template(&repository("charts/walferry"), &[value]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(message), "{value}: {error}");
    }
}

/// helm holds the default values against the schema; this is the other direction.
#[test]
fn every_value_of_the_schema_has_a_default() {
    fn check(schema: &Value, definitions: &Value, values: &Value, path: &str) {
        let schema = schema["$ref"]
            .as_str()
            .map_or(schema, |reference| &definitions[reference.rsplit('/').next().unwrap()]);
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let path = format!("{path}.{name}");
            // Helm itself puts it there.
            if path == ".global" {
                continue;
            }
            assert!(values.get(name).is_some(), "{path} is not in values.yaml");
            check(property, definitions, &values[name], &path);
        }
    }
    let schema: Value = serde_json::from_str(&read("charts/walferry/values.schema.json")).unwrap();
    check(&schema, &schema["definitions"], &documents(&read("charts/walferry/values.yaml"))[0], "");
}

/// The chart's folder with one more template, which shows what `helm install` would say at its end.
fn notes(folder: &Path, values: &[&str]) -> String {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap().flatten() {
            let to = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &to)
            } else {
                fs::copy(entry.path(), to).map(drop).unwrap()
            }
        }
    }
    copy(&repository("charts/walferry"), folder);
    let shown = r#"notes: {{ include (print .Template.BasePath "/NOTES.txt") . | quote }}"#;
    fs::write(folder.join("templates/shown.yaml"), shown).unwrap();
    let output = template(folder, values);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let documents = documents(&String::from_utf8(output.stdout).unwrap());
    documents.iter().find_map(|document| document["notes"].as_str()).unwrap().to_owned()
}

/// What they say to apply is a Mirror that walferry takes, with the Secrets that they say to create.
#[test]
fn notes_say_what_works() {
    let folder = tempfile::tempdir().unwrap();
    let notes = notes(folder.path(), &[NAMESPACED, "crds.install=false"]);
    assert!(
        notes.contains("kubectl rollout status deployment/walferry --namespace walferry-system\n"),
        "{notes}"
    );
    assert!(notes.contains("kubectl describe mirror/shop --namespace shop\n"), "{notes}");
    let (_, rest) = notes.split_once("<<'YAML'\n").unwrap();
    let (manifests, _) = rest.split_once("\nYAML\n").unwrap();
    let secrets = notes.lines().filter_map(|line| line.strip_prefix("kubectl create secret generic "));
    let secrets = secrets.map(|line| {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": line.split(' ').next().unwrap()}, "stringData": {"username": "u", "password": "p"}});
        format!("\n---\n{secret}")
    });
    let file = folder.path().join("manifests.yaml");
    fs::write(&file, manifests.to_owned() + &secrets.collect::<String>()).unwrap();
    let mirrors = walferry::cli::load::load(&[file]).unwrap();
    assert_eq!(mirrors.len(), 1);
}
