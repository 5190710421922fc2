//! Runs helm, kubectl, kubeconform and the repository's own scripts.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde::de::Deserialize;
use serde_json::Value;

/// What helm takes the cluster to be.
const KUBERNETES: &str = "1.34.4";

/// A path in the repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A file of the repository.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Runs a program in the repository's folder, whether it succeeds or not.
pub fn run(program: &str, arguments: &[&str], input: &str) -> Output {
    let child = Command::new(program)
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("KUBECONFIG", "/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.unwrap_or_else(|error| match error.kind() {
        ErrorKind::NotFound => panic!(
            "{program} is missing. `./e2e/test` brings it; for a plain `cargo test`, run\n  \
             ./e2e/tools/cluster install && PATH=$PATH:$(./e2e/tools/cluster tools)"
        ),
        _ => panic!("{program}: {error}"),
    });
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // A program that has found a fault early doesn't read the rest.
    let _ = writer.join().unwrap();
    output
}

/// What a program prints; it must succeed.
pub fn output(program: &str, arguments: &[&str], input: &str) -> String {
    let output = run(program, arguments, input);
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(output.status.success(), "{program} {arguments:?}\n{stdout}\n{stderr}");
    stdout
}

/// The documents of a YAML stream.
pub fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml::Deserializer::from_str(text);
    documents
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}

/// Kubernetes objects by `Kind namespace/name`.
pub type Objects = BTreeMap<String, Value>;

/// The objects of a YAML stream; none may be there twice.
pub fn objects(text: &str) -> Objects {
    let mut objects = Objects::new();
    for object in documents(text) {
        let metadata = &object["metadata"];
        let namespace =
            metadata["namespace"].as_str().map_or(String::new(), |namespace| format!("{namespace}/"));
        let name =
            format!("{} {namespace}{}", object["kind"].as_str().unwrap(), metadata["name"].as_str().unwrap());
        assert!(objects.insert(name.clone(), object).is_none(), "{name} is there twice");
    }
    objects
}

/// `helm template` of a chart's folder with `--set` for each value, as the release `walferry` in
/// `walferry-system`.
pub fn template(chart: &Path, values: &[&str]) -> Output {
    let mut arguments =
        vec!["template", "walferry", chart.to_str().unwrap(), "--namespace", "walferry-system"];
    // A helm built from its module takes itself to be of an old Kubernetes.
    arguments.extend(["--kube-version", KUBERNETES]);
    for value in values {
        arguments.extend([if value.contains(['[', '{']) { "--set-json" } else { "--set" }, value]);
    }
    run("helm", &arguments, "")
}

/// What the chart makes with these values.
pub fn rendered(values: &[&str]) -> String {
    let output = template(&repository("charts/walferry"), values);
    assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a folder below config/ makes.
pub fn kustomized(folder: &str) -> String {
    output("kubectl", &["kustomize", folder], "")
}

/// Holds the manifests against the schemas of Kubernetes: no unknown field, no wrong type.
pub fn conforms(manifests: &str) {
    let schemas = output("bash", &["e2e/tools/cluster", "schemas"], "");
    // Those of walferry.dev are judged by `walferry` itself, and monitors aren't Kubernetes' own.
    let skipped = "ServiceMonitor,PodMonitor,ReplicationPeer,Mirror";
    let arguments = ["-strict", "-summary", "-skip", skipped, "-schema-location", schemas.trim()];
    let summary = output("kubeconform", &arguments, manifests);
    assert!(!summary.contains("Valid: 0,"), "{summary}");
}
