//! Installation, upgrade and removal of the chart, and the health that Argo CD reads from live objects.

use std::process::Command;

use serde_json::json;
use walferry::api::{Mirror, conditions};

use crate::{
    harness::{TestEnv, TestNamespace, another, cluster, image},
    support::eventually,
};

/// A second release, for one namespace only, is installed, upgraded and uninstalled.
#[test]
fn a_release_for_one_namespace() {
    let namespace = TestNamespace::new();
    let name = namespace.name.as_str();
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/walferry");
    let image = image();
    let (repository, tag) = image.rsplit_once(':').unwrap();
    // Cluster-scoped objects belong to the release of the other tests.
    let values = [
        format!("watchNamespaces={{{name}}}"),
        format!("image.repository={repository},image.tag={tag}"),
        "crds.install=false,userRoles.create=false,replicas=2,networkPolicy.enabled=true".to_owned(),
    ];
    let helm = |arguments: &[&str]| {
        cluster().helm(&[arguments, &["--namespace", name, "--wait", "--timeout=2m"]].concat()).exits(0)
    };
    let mut install = vec!["install", "own", chart];
    install.extend(values.iter().flat_map(|value| ["--set", value.as_str()]));
    helm(&install).says(&["kubectl"]);
    let deployment = |path: &str| {
        let path = format!("jsonpath={path}");
        namespace.kubectl(&["get", "deployment", "own-walferry", "--output", &path]).exits(0).stdout
    };
    assert_eq!(deployment("{.status.readyReplicas}"), "2");
    let leader = || {
        let lease = ["get", "leases", "--output", "jsonpath={.items[*].spec.holderIdentity}"];
        namespace.kubectl(&lease).exits(0).stdout
    };
    eventually("one of both to lead", || leader().starts_with("own-walferry-"));
    let bound =
        namespace.kubectl(&["get", "clusterroles,clusterrolebindings", "--output", "name"]).exits(0).stdout;
    assert!(!bound.contains("own-walferry"), "{bound}");

    helm(&["upgrade", "own", chart, "--reuse-values", "--set", "log.level=debug,replicas=1"]);
    assert_eq!(deployment("{.status.readyReplicas} {.status.replicas}"), "1 1");
    let pod = deployment("{.spec.template.spec.containers[0]}");
    assert!(pod.contains("debug"), "{pod}");
    eventually("the new pod to lead", || {
        let pods = namespace.kubectl(&["get", "pods", "--output", "name"]).exits(0).stdout;
        let leader = leader();
        pods.lines().count() == 1 && !leader.is_empty() && pods.contains(leader.split('_').next().unwrap())
    });

    helm(&["uninstall", "own"]);
    let kinds = "deployments,pods,services,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies,configmaps";
    let labelled = ["get", kinds, "--selector=app.kubernetes.io/instance=own", "--output", "name"];
    eventually("nothing to be left", || namespace.kubectl(&labelled).exits(0).stdout.is_empty());
    // The CRDs, and with them all Mirrors, outlive the release.
    cluster().kubectl(&["get", "crd", "mirrors.walferry.dev", "replicationpeers.walferry.dev"], "").exits(0);
}

/// Permissions in its namespace are enough for a Mirror, also while another watched namespace does not exist.
#[test]
fn a_mirror_in_a_watched_namespace() {
    let env = TestEnv::alone();
    env.sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let (namespace, other) = (&env.namespace.name, format!("{}-other", env.namespace.name));
    cluster().kubectl(&["create", "namespace", &other], "").exits(0);
    env.operator.install(&[&format!("--set=watchNamespaces={{{namespace},{other}}}")]);
    let roles = cluster().kubectl(&["get", "clusterroles", "--output", "name"], "").exits(0).stdout;
    assert!(!roles.contains("clusterrole.rbac.authorization.k8s.io/walferry"), "{roles}");

    let name = env.streaming(&env.mirror(&["t"]));
    env.until_event(&name, "Provisioned");
    cluster().kubectl(&["delete", "namespace", &other], "").exits(0);
    env.operator.kill();
    let pod = env.until_replicator(&name, &[]);
    env.patch_mirror(&name, &json!({"spec": {"suspend": true}}));
    env.until_pod_gone(&pod);
    env.until_reason(&name, conditions::READY, "Suspended");
    env.patch_mirror(&name, &json!({"spec": {"suspend": false}}));
    env.until_ready(&name);
    env.sql("INSERT INTO t VALUES (2)");
    env.settle(&name);
    env.assert_table("t", "id", "id");
    env.delete::<Mirror>(&name);
    assert_eq!(env.left_at_source(), "");
    env.operator.install(&[]);
}

/// Argo CD's health checks of live Mirrors and peers.
#[test]
fn argo_cd_reads_live_objects() {
    let env = TestEnv::new();
    env.sql("CREATE TABLE t (id int PRIMARY KEY)");
    let mirror = another(&env.mirror(&["t"]), "shop", &["t"]);
    let name = env.streaming(&mirror);
    let health = || {
        let objects =
            env.namespace.kubectl(&["get", "mirrors,replicationpeers", "--output", "json"]).exits(0).stdout;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), objects).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/config/argocd/test");
        let output = Command::new(script).arg(file.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut lines: Vec<String> =
            text.lines().map(|line| line.replace(&format!("{}/", env.namespace.name), "")).collect();
        lines.sort();
        lines
    };
    let begins = |lines: &[String], wanted: &[&str]| {
        lines.len() == wanted.len() && lines.iter().zip(wanted).all(|(line, wanted)| line.starts_with(wanted))
    };
    let peers =
        ["ReplicationPeer\tsource\tHealthy\tConnected", "ReplicationPeer\ttarget\tHealthy\tConnected"];
    let ours = |health: &str| format!("Mirror\t{name}\t{health}");
    let healthy = ours("Healthy\tStreaming");
    let seen = health();
    assert!(begins(&seen, &[&[healthy.as_str()], &peers[..]].concat()), "{seen:#?}");

    let mut lost = another(&mirror, "lost", &["t"]);
    lost.mirror["spec"]["sourceRef"]["name"] = "nobody".into();
    env.apply_mirror(&lost);
    env.until_reason("lost", conditions::READY, "Progressing");
    let seen = health();
    assert!(
        begins(&seen, &[&["Mirror\tlost\tProgressing", healthy.as_str()], &peers[..]].concat()),
        "{seen:#?}"
    );
    env.until_stalled("lost", "PeerMissing");
    env.patch_mirror(&name, &json!({"spec": {"suspend": true}}));
    env.until_reason(&name, conditions::READY, "Suspended");
    let suspended = ours("Suspended\tSuspended");
    let seen = health();
    assert!(
        begins(&seen, &[&["Mirror\tlost\tDegraded\tPeerMissing", suspended.as_str()], &peers[..]].concat()),
        "{seen:#?}"
    );
}
