//! The kustomize manifests, held against the chart.

use serde_json::Value;

use crate::tools::{Objects, conforms, kustomized, objects, rendered};

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
