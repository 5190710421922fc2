//! The kustomize manifests, held against the chart.

use serde_json::Value;

use crate::tools::{Objects, conforms, kustomized, objects, read, rendered, repository};

/// Takes away what only one of the two ways to install writes.
fn strip(object: &mut Value) {
    let without_marks = |metadata: &mut Value| {
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            for label in ["helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"] {
                labels.remove(label);
            }
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("helm.sh/resource-policy");
        }
        metadata
            .as_object_mut()
            .unwrap()
            .retain(|_, value| value.as_object().is_none_or(|map| !map.is_empty()));
    };
    without_marks(&mut object["metadata"]);
    if object["kind"] == "Deployment" {
        without_marks(&mut object["spec"]["template"]["metadata"]);
    }
}

/// Rights, Deployment, definitions and all else: whoever moves from one to the other finds nothing changed.
#[test]
fn default_is_what_the_chart_makes_by_default() {
    let mut chart = objects(&rendered(&[]));
    let mut plain = objects(&kustomized("config/default"));
    let namespace = plain.remove("Namespace walferry-system").unwrap();
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");
    let names = |objects: &Objects| objects.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&plain), names(&chart));
    for (name, object) in &mut plain {
        let other = chart.get_mut(name).unwrap();
        strip(object);
        strip(other);
        assert_eq!(object, other, "{name}");
    }
}

#[test]
fn default_conforms_to_kubernetes() {
    conforms(&kustomized("config/default"));
}

/// The overlay in the docs, on this tree instead of a release.
#[test]
fn an_overlay_changes_both_images() {
    let text = read("docs/gitops.md");
    let overlay = text.split("```yaml\n").find(|block| block.contains("config/default?ref=")).unwrap();
    let overlay = overlay.split("```").next().unwrap();
    let release =
        overlay.lines().find_map(|line| line.strip_prefix("  - ").filter(|it| it.contains("?ref="))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    let up = "../".repeat(path.components().count() - 1);
    let here =
        up + repository("config/default").canonicalize().unwrap().to_str().unwrap().trim_start_matches('/');
    std::fs::write(path.join("kustomization.yaml"), overlay.replace(release, &here)).unwrap();
    let objects = objects(&kustomized(path.to_str().unwrap()));
    let container =
        &objects["Deployment walferry-system/walferry"]["spec"]["template"]["spec"]["containers"][0];
    let image = container["image"].as_str().unwrap();
    assert!(image.starts_with("registry.example/walferry:"), "{image}");
    assert_eq!(container["args"][1], format!("--image={image}"));
}
