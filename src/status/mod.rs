//! A Mirror's conditions and the `/status` document, both made from a [`MirrorReport`] alone.

mod conditions;
mod kubernetes;
mod peer;
mod remedy;
mod slot;

pub use conditions::{Condition, ConditionStatus, conditions};
pub use kubernetes::{mirror_status, slot_place, write_now};
pub use peer::{PeerOutcome, PeerReport, peer_status};
pub use remedy::Kubectl;
pub use slot::slot_warning;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{fault::RemedyRenderer, model::MirrorReport};

/// What `/status` answers: all Mirrors of a process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusDocument {
    /// One entry a Mirror.
    pub mirrors: Vec<MirrorDocument>,
}

/// One Mirror in [`StatusDocument`]: its report with the conditions that follow from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MirrorDocument {
    /// The figures.
    #[serde(flatten)]
    pub report: MirrorReport,
    /// The conditions, `Ready` first.
    pub conditions: Vec<Condition>,
    /// What to do, rendered for this process.
    #[serde(default)]
    pub advice: Vec<Advice>,
}

/// What helps against one failure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    /// The table that has failed, as `schema.table`; `None` for the Mirror as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// What to do, in order.
    pub steps: Vec<String>,
}

/// The renderer of remedies for this process; that of kubectl commands by default.
pub type Renderer = Option<Arc<dyn RemedyRenderer>>;

/// The `/status` document of these Mirrors.
pub fn document(reports: Vec<(MirrorReport, Renderer)>) -> StatusDocument {
    let mirrors = reports.into_iter().map(|(report, renderer)| {
        let renderer = renderer.unwrap_or_else(|| Arc::new(Kubectl::of(&report)));
        MirrorDocument {
            conditions: conditions(&remedy::with_remedies(&report, renderer.as_ref())),
            advice: remedy::advice(&report, renderer.as_ref()),
            report,
        }
    });
    StatusDocument { mirrors: mirrors.collect() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fault::Reason;
    use crate::model::{Lsn, MirrorIdentity, Progress, TableId, TableState};

    #[test]
    fn document_has_the_promised_fields() {
        let mirror = MirrorIdentity { namespace: "default".into(), name: "demo".into(), uid: "0a".into() };
        let progress = Progress::new(&mirror);
        progress.set_source_lsn(Lsn(0x1_0000_0010));
        progress.set_durable_lsn(Lsn(0x1_0000_0000));
        progress.set_lag_seconds(0.5);
        let table = progress.table(&TableId::new("public", "users"));
        table.set_target("users");
        table.set_state(TableState::Failed, Reason::DestinationTableMissing, "run this");
        let document = document(vec![(progress.report(), None)]);
        let value = serde_json::to_value(&document).unwrap();
        let mirror = &value["mirrors"][0];
        for (field, expected) in [
            ("namespace", json!("default")),
            ("name", json!("demo")),
            ("slotName", json!("walferry_0a")),
            ("publicationName", json!("walferry_0a")),
            ("lastLSN", json!("1/0")),
            ("lag", json!({"bytes": 16, "seconds": 0.5})),
            ("retainedWalBytes", json!(null)),
            ("slotWalStatus", json!(null)),
            ("slotTakeovers", json!(0)),
        ] {
            assert_eq!(mirror[field], expected, "{field}");
        }
        assert_eq!(mirror["conditions"][0]["type"], "Ready");
        let table = &mirror["tables"][0];
        for (field, expected) in [
            ("schema", json!("public")),
            ("name", json!("users")),
            ("target", json!("users")),
            ("state", json!("Failed")),
            ("rowsCopied", json!(0)),
            ("rowsEstimated", json!(0)),
            ("inserted", json!(0)),
            ("updated", json!(0)),
            ("deleted", json!(0)),
            ("reason", json!("DestinationTableMissing")),
            ("message", json!("run this")),
        ] {
            assert_eq!(table[field], expected, "{field}");
        }
        assert_eq!(serde_json::from_value::<StatusDocument>(value).unwrap(), document);
    }
}
