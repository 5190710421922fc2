//! The operator, installed once in the cluster by the Helm chart, like a user does it.

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

/// The operator's namespace.
pub const NAMESPACE: &str = "walferry-system";
/// The label of a namespace that these tests have created.
const TEST_LABEL: &str = "walferry.dev/e2e=true";
/// The name of the release, which by the chart's rules is that of its Deployment too.
const RELEASE: &str = "walferry";
const SELECTOR: &str = "app.kubernetes.io/instance=walferry,app.kubernetes.io/component=operator";

/// Applies the CRDs once and waits until they are served.
pub fn install_crds() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        claim();
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/walferry.dev.yaml");
        cluster().kubectl(&["apply", "--server-side", "-f", file], "").exits(0);
        cluster().kubectl(&["wait", "--for=condition=Established", "-f", file], "").exits(0);
    });
}

/// Labels the operator's namespace as created by these tests. In a given cluster, an installed walferry is
/// not touched.
fn claim() {
    let found = |arguments: &[&str]| cluster().kubectl(arguments, "").exits(0).stdout;
    let crds = found(&["get", "crd", "mirrors.walferry.dev", "--ignore-not-found", "--output=name"]);
    let created = found(&["get", "namespace", "--selector", TEST_LABEL, "--output=name"]);
    assert!(
        crds.is_empty() || created.lines().any(|line| line == format!("namespace/{NAMESPACE}")),
        "walferry is already installed in this cluster, and the tests would replace it: use another cluster, or uninstall it"
    );
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    cluster().kubectl(&["apply", "--server-side", "-f", "-"], &namespace.to_string()).exits(0);
    cluster().kubectl(&["label", "--overwrite", "namespace", NAMESPACE, TEST_LABEL], "").exits(0);
}

/// The running operator.
#[derive(Debug)]
pub struct Operator {
    cluster: &'static Cluster,
    /// The image of the operator and the replicators.
    pub image: String,
}

/// The operator for all namespaces, installed with the first use.
pub fn operator() -> &'static Operator {
    static OPERATOR: OnceLock<Operator> = OnceLock::new();
    OPERATOR.get_or_init(|| {
        install_crds();
        let operator = Operator { cluster: cluster(), image: image() };
        operator.install(&[]);
        operator
    })
}

/// The reference of the image to test, which is in the cluster.
pub fn image() -> String {
    static IMAGE: OnceLock<String> = OnceLock::new();
    let image = IMAGE.get_or_init(|| {
        if let Ok(image) = std::env::var("E2E_IMAGE") {
            return image;
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/tools/image");
        let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "e2e/tools/image failed; the reason is printed above");
        let output = String::from_utf8(output.stdout).unwrap();
        let mut lines = output.lines();
        let (archive, reference) = (lines.next().unwrap(), lines.next().unwrap());
        cluster().load(archive);
        reference.to_owned()
    });
    image.clone()
}

impl Operator {
    /// Runs `helm upgrade --install` with these additional options and waits until the operator is ready.
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
        // The CRDs may have been installed before by kubectl, so the release takes their ownership.
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

    /// Kills its pods without grace period and waits for new ones. The test must use `TestNamespace::alone`.
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

    /// The sum over all of its pods of a metric's values with these labels.
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

    /// Its pods and logs, to be printed when a test fails.
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

/// The answer of a pod at /metrics, through the apiserver's proxy.
fn metrics(cluster: &Cluster, pod: &Pod, port: u16) -> String {
    let (namespace, name) = (pod.namespace().unwrap(), pod.name_any());
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
    cluster.kubectl(&["get", "--raw", &path], "").exits(0).stdout
}

/// Stops an installed operator until it is dropped.
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
