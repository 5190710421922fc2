//! Deprecated names: the API server accepts them, and stores them as they were written.

use serde_json::json;

use crate::harness::{TestNamespace, install_crds};

#[test]
fn former_names_are_taken_and_kept() {
    install_crds();
    let namespace = TestNamespace::new();
    let mirror = json!({"apiVersion": "walferry.dev/v1alpha1", "kind": "Mirror", "metadata": {"name": "example"}, "spec": {
        "sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "outOfRange": "Nearest", "snapshot": {"mode": "Only"},
        "tables": [{"schema": "public", "name": "log", "insertOnly": true}, {"schema": "public", "name": "users", "insertOnly": false}]}});
    let made = namespace.try_create(&mirror).unwrap_or_else(|status| panic!("{}", status.message));
    for field in ["outOfRange", "tables"] {
        assert_eq!(made["spec"][field], mirror["spec"][field]);
    }
    assert_eq!(made["spec"]["snapshot"]["mode"], "Only");
}
