//! What Argo CD makes of each state, by running its health script on objects with the conditions that
//! walferry writes.

use serde_json::{Value, json};
use walferry::{
    fault::Reason,
    model::{MirrorFailure, MirrorIdentity, MirrorPhase, Progress, TableId, TableState},
    status,
};

use crate::tools::{kustomized, objects, output, read};

/// A Mirror with this status.
fn mirror(status: &Value) -> Value {
    json!({
        "apiVersion": "walferry.dev/v1alpha1",
        "kind": "Mirror",
        "metadata": {"namespace": "default", "name": "shop", "generation": 2},
        "status": status,
    })
}

/// The Mirror in this phase, as its conditions tell.
fn in_phase(phase: MirrorPhase, reason: &str, tables: &[TableState]) -> Value {
    let identity = MirrorIdentity { namespace: "default".into(), name: "shop".into(), uid: "0".into() };
    let progress = Progress::new(&identity);
    let failure = Reason::parse(reason).map(|reason| MirrorFailure::new(reason, "run \"this\"\nand that"));
    progress.set_phase(phase, failure);
    for (number, state) in tables.iter().enumerate() {
        progress.table(&TableId::new("public", format!("t{number}"))).set_state(
            *state,
            Reason::DecodeFailed,
            "because",
        );
    }
    mirror(&json!({"observedGeneration": 2, "conditions": status::conditions(&progress.report())}))
}

/// Health and message of each object.
fn health(objects: &[Value]) -> Vec<(String, String)> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let text = output("config/argocd/test", &[], &list.to_string());
    let lines = text.lines().map(|line| {
        let parts: Vec<&str> = line.splitn(4, '\t').collect();
        assert_eq!(parts[1], "default/shop");
        (parts[2].to_owned(), parts[3].to_owned())
    });
    lines.collect()
}

#[test]
fn every_state_has_its_health() {
    use MirrorPhase::{Finished, Provisioning, Retrying, Snapshotting, Stalled, Streaming, Suspended};
    use TableState::{Failed, Pending, Streaming as Flows};
    let states = [
        (in_phase(Provisioning, "", &[]), "Progressing", "Provisioning: "),
        (in_phase(Snapshotting, "", &[Pending, Flows]), "Progressing", "Snapshotting: 1 of 2 tables copied"),
        (in_phase(Streaming, "", &[Flows]), "Healthy", "Streaming: streaming changes for public.t0"),
        (in_phase(Retrying, "SourceUnreachable", &[Flows]), "Progressing", "SourceUnreachable: run"),
        (in_phase(Stalled, "SourceSlotLost", &[Flows]), "Degraded", "SourceSlotLost: run \"this\" and that"),
        (
            in_phase(Streaming, "", &[Flows, Failed]),
            "Degraded",
            "StreamingWithFailedTables: 1 of 2 tables have failed",
        ),
        (in_phase(Streaming, "", &[Failed]), "Degraded", "AllTablesFailed: "),
        (in_phase(Suspended, "", &[Flows]), "Suspended", "Suspended: "),
        (in_phase(Finished, "", &[Flows]), "Healthy", "Finished: "),
    ];
    let objects: Vec<Value> = states.iter().map(|(object, ..)| object.clone()).collect();
    let found = health(&objects);
    assert_eq!(found.len(), states.len());
    for ((_, status, message), (found, text)) in states.iter().zip(&found) {
        assert!(found == status && text.starts_with(message), "{found} {text}, expected {status} {message}");
    }
}

#[test]
fn what_the_operator_has_not_seen_is_on_the_way() {
    let mut changed = in_phase(MirrorPhase::Stalled, "SourceSlotLost", &[]);
    changed["status"]["observedGeneration"] = json!(1);
    let mut new = mirror(&Value::Null);
    let without_status = new.clone();
    new.as_object_mut().unwrap().remove("status");
    let objects = [changed, new, without_status, mirror(&json!({"conditions": []})), mirror(&json!({}))];
    for (status, message) in health(&objects) {
        assert_eq!(status, "Progressing");
        assert!(message.starts_with("waiting for the operator"), "{message}");
    }
}

#[test]
fn peers_are_read_alike() {
    let peer = |conditions: Value| {
        let mut peer = mirror(&json!({"observedGeneration": 2, "conditions": conditions}));
        peer["kind"] = json!("ReplicationPeer");
        peer
    };
    let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "words"});
    let objects = [
        peer(json!([condition("Ready", "True", "Connected")])),
        peer(json!([
            condition("Ready", "False", "SecretMissing"),
            condition("Stalled", "True", "SecretMissing")
        ])),
        peer(json!([condition("Ready", "False", "SecretMissing")])),
        peer(json!([
            condition("Ready", "Unknown", "Progressing"),
            condition("Reconciling", "True", "Progressing")
        ])),
        peer(json!([condition("Ready", "Unknown", "Progressing")])),
    ];
    let found: Vec<String> = health(&objects).into_iter().map(|(status, _)| status).collect();
    assert_eq!(found, ["Healthy", "Degraded", "Degraded", "Progressing", "Progressing"]);
}

#[test]
fn the_config_map_holds_the_script_for_both_kinds() {
    let objects = objects(&kustomized("config/argocd"));
    let data = objects["ConfigMap argocd/argocd-cm"]["data"].as_object().unwrap();
    let keys: Vec<&String> = data.keys().collect();
    assert_eq!(
        keys,
        [
            "resource.customizations.health.walferry.dev_Mirror",
            "resource.customizations.health.walferry.dev_ReplicationPeer"
        ]
    );
    assert!(data.values().all(|script| script == &read("config/argocd/health.lua")));
}
