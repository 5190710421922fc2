//! The operator, installed once in the cluster as a user does it: by the Helm chart.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::OnceLock,
};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde_json::json;

use super::{Cluster, cluster, watch};
use crate::support::eventually;

/// The namespace that the operator is in.
pub const NAMESPACE: &str = "walferry-system";
/// The label of that namespace where these tests have made it.
const OURS: &str = "walferry.dev/e2e=true";
/// The name of the release and, with this chart's rules, of its Deployment.
const RELEASE: &str = "walferry";
const SELECTOR: &str = "app.kubernetes.io/instance=walferry,app.kubernetes.io/component=operator";

/// Applies the CustomResourceDefinitions, once, and waits until they are served.
pub fn install_definitions() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        claim();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/walferry.dev.yaml");
        cluster().kubectl(&["apply", "--server-side", "-f", file], "").exits(0);
        cluster().kubectl(&["wait", "--for=condition=Established", "-f", file], "").exits(0);
    });
}

/// Marks the namespace of the operator as these tests' own. Somebody's walferry in a cluster that is not ours is left alone.
fn claim() {
    let described = |arguments: &[&str]| cluster().kubectl(arguments, "").exits(0).stdout;
    let definitions =
        described(&["get", "crd", "mirrors.walferry.dev", "--ignore-not-found", "--output=name"]);
    let ours = described(&["get", "namespace", "--selector", OURS, "--output=name"]);
    assert!(
        definitions.is_empty() || ours.contains(NAMESPACE),
        "walferry is in this cluster already, and these tests would replace it: take another cluster, or uninstall it"
    );
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    cluster().kubectl(&["apply", "--server-side", "-f", "-"], &namespace.to_string()).exits(0);
    cluster().kubectl(&["label", "--overwrite", "namespace", NAMESPACE, OURS], "").exits(0);
}

/// The running operator.
#[derive(Debug)]
pub struct Operator {
    cluster: &'static Cluster,
    /// What it and the replicators run.
    pub image: String,
}

/// The operator for all namespaces, installed with the first use.
pub fn operator() -> &'static Operator {
    static OPERATOR: OnceLock<Operator> = OnceLock::new();
    OPERATOR.get_or_init(|| {
        install_definitions();
        let operator = Operator { cluster: cluster(), image: image() };
        operator.install(&[]);
        operator
    })
}

/// The reference of the image to test, which the cluster has.
pub fn image() -> String {
    static IMAGE: OnceLock<String> = OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        if let Ok(image) = std::env::var("E2E_IMAGE") {
            return image;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tools/image");
        let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "e2e/tools/image failed; why is above");
        let output = String::from_utf8(output.stdout).unwrap();
        let mut lines = output.lines();
        let (archive, reference) = (lines.next().unwrap(), lines.next().unwrap());
        cluster().load(archive);
        reference.to_owned()
    });
    image.clone()
}

impl Operator {
    /// `helm upgrade --install` with these further options, and waits until it is ready.
    #[track_caller]
    pub fn install(&self, options: &[&str]) {
        let (repository, tag) = self.image.rsplit_once(':').expect("an image with a tag");
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/walferry");
        let (repository, tag) = (format!("image.repository={repository}"), format!("image.tag={tag}"));
        let mut arguments = vec!["upgrade", "--install", RELEASE, chart, "--namespace", NAMESPACE];
        arguments.extend([
            "--create-namespace",
            "--wait",
            "--timeout=2m",
            "--set",
            &repository,
            "--set",
            &tag,
        ]);
        // the definitions may have been there before
        arguments.extend(["--set=image.pullPolicy=IfNotPresent", "--take-ownership"]);
        arguments.extend(options);
        let outcome = self.cluster.helm(&arguments);
        assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.text(), self.show());
    }

    /// Its pods.
    pub fn pods(&self) -> Vec<Pod> {
        let pods = Api::<Pod>::namespaced(self.cluster.client.clone(), NAMESPACE);
        self.cluster.block_on(pods.list(&ListParams::default().labels(SELECTOR))).unwrap().items
    }

    /// Ends its pods without warning and waits for new ones. Takes a namespace that is alone.
    #[track_caller]
    pub fn kill(&self) {
        let pods = Api::<Pod>::namespaced(self.cluster.client.clone(), NAMESPACE);
        for pod in self.pods() {
            let now = DeleteParams::default().grace_period(0);
            self.cluster.block_on(pods.delete(&pod.name_any(), &now)).unwrap();
        }
        self.until_ready();
    }

    #[track_caller]
    fn until_ready(&self) {
        let deployments = Api::<Deployment>::namespaced(self.cluster.client.clone(), NAMESPACE);
        self.cluster.block_on(watch::until(deployments, RELEASE, "ready", |deployment| {
            let deployment = deployment?;
            let wanted = deployment.spec.as_ref()?.replicas?;
            let status = deployment.status.as_ref()?;
            let current = status.observed_generation == deployment.metadata.generation;
            (current
                && status.ready_replicas.unwrap_or(0) == wanted
                && status.replicas.unwrap_or(0) == wanted)
                .then_some(())
        }));
    }

    /// The sum of a metric's values that have these labels, over all of its pods.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text: String = self.pods().iter().map(|pod| metrics(self.cluster, pod, 9465)).collect();
        let values = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            let has = |(label, value): &(&str, &str)| rest.contains(&format!("{label}=\"{value}\""));
            (found == name && labels.iter().all(has)).then(|| value.parse::<f64>().unwrap())
        });
        values.sum()
    }

    /// What a person would look at when it does not do what it should.
    pub fn show(&self) -> String {
        let kubectl = |arguments: &[&str]| {
            self.cluster.kubectl(&[&["--namespace", NAMESPACE], arguments].concat(), "").text()
        };
        let selector = format!("--selector={SELECTOR}");
        format!(
            "--- the operator\n{}{}",
            kubectl(&["get", "pods", "-o", "wide"]),
            kubectl(&["logs", &selector, "--tail=60", "--prefix"])
        )
    }
}

/// What a pod answers at /metrics, over the apiserver.
fn metrics(cluster: &Cluster, pod: &Pod, port: u16) -> String {
    let (namespace, name) = (pod.namespace().unwrap(), pod.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    cluster.kubectl(&["get", "--raw", &path], "").exits(0).stdout
}

/// While it lives no operator runs, if one is installed at all.
#[derive(Debug)]
pub struct Pause {
    replicas: Option<i32>,
}

impl Pause {
    pub fn begin() -> Pause {
        let api = Api::<Deployment>::namespaced(cluster().client.clone(), NAMESPACE);
        let deployment = cluster().block_on(api.get_opt(RELEASE)).unwrap();
        let replicas = deployment.and_then(|deployment| deployment.spec?.replicas);
        if replicas.is_some() {
            scale(0);
            let operator = Operator { cluster: cluster(), image: String::new() };
            eventually("the end of the operator's pods", || operator.pods().is_empty());
        }
        Pause { replicas }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        let Some(replicas) = self.replicas else { return };
        scale(replicas);
        if !std::thread::panicking() {
            Operator { cluster: cluster(), image: String::new() }.until_ready();
        }
    }
}

fn scale(replicas: i32) {
    let api = Api::<Deployment>::namespaced(cluster().client.clone(), NAMESPACE);
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    cluster().block_on(api.patch_scale(RELEASE, &PatchParams::default(), &patch)).unwrap();
}
