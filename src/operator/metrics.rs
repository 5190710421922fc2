//! The operator's metrics, in Prometheus' text format.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use prometheus::{
    Encoder, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};

use super::object::condition;
use crate::{api::conditions::READY, model::lock};

/// Seconds of a reconcile: milliseconds when there is nothing to do, seconds when a source doesn't respond.
const BUCKETS: [f64; 8] = [0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 60.0];

/// The operator's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: IntCounterVec,
    seconds: HistogramVec,
    status_writes: IntCounterVec,
    resources: IntGaugeVec,
    leader: IntGauge,
    /// Kind, status and reason of `Ready` of each resource, by UID.
    ready: Mutex<HashMap<String, [String; 3]>>,
}

impl Metrics {
    /// Metrics without any counts.
    ///
    /// # Errors
    /// When two metrics have the same name, which would be a defect.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let reconciles = counter(
            "walferry_operator_reconciles_total",
            "Reconciles of a resource.",
            &["controller", "result"],
        )?;
        let status_writes = counter(
            "walferry_operator_status_writes_total",
            "Status patches sent to the API server.",
            &["kind"],
        )?;
        let help = "Duration of a reconcile in seconds.";
        let options =
            HistogramOpts::new("walferry_operator_reconcile_seconds", help).buckets(BUCKETS.to_vec());
        let seconds = HistogramVec::new(options, &["controller"])?;
        registry.register(Box::new(seconds.clone()))?;
        let help = "Resources by status and reason of their condition Ready.";
        let resources =
            IntGaugeVec::new(Opts::new("walferry_operator_resources", help), &["kind", "ready", "reason"])?;
        registry.register(Box::new(resources.clone()))?;
        let leader = IntGauge::new("walferry_operator_leader", "1 while this process is the leader.")?;
        registry.register(Box::new(leader.clone()))?;
        Ok(Metrics {
            registry,
            reconciles,
            seconds,
            status_writes,
            resources,
            leader,
            ready: Mutex::default(),
        })
    }

    /// Counts one reconcile.
    pub(super) fn reconciled(&self, controller: &str, took: Duration, succeeded: bool) {
        let result = if succeeded { "success" } else { "error" };
        self.reconciles.with_label_values(&[controller, result]).inc();
        self.seconds.with_label_values(&[controller]).observe(took.as_secs_f64());
    }

    /// Counts one status patch.
    pub(super) fn status_written(&self, kind: &str) {
        self.status_writes.with_label_values(&[kind]).inc();
    }

    /// Sets whether this process is the leader. Only the leader reports resources.
    pub(super) fn set_leader(&self, leader: bool) {
        self.leader.set(i64::from(leader));
        if !leader {
            lock(&self.ready).clear();
        }
    }

    /// Records the condition `Ready` of a resource, if it has one.
    pub(super) fn record_ready(&self, kind: &str, uid: &str, conditions: &[Condition]) {
        if let Some(ready) = condition(conditions, READY) {
            let labels = [kind, &ready.status, &ready.reason].map(str::to_owned);
            lock(&self.ready).insert(uid.to_owned(), labels);
        }
    }

    /// Drops a resource that is gone.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.ready).remove(uid);
    }

    /// All metrics, in Prometheus' text format.
    ///
    /// # Errors
    /// When they can't be rendered, which would be a defect.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        self.resources.reset();
        for [kind, status, reason] in lock(&self.ready).values() {
            self.resources.with_label_values(&[kind, status, reason]).inc();
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    #[test]
    fn counts_resources_by_their_current_condition() {
        let metrics = Metrics::new().unwrap();
        metrics.reconciled("mirror", Duration::from_millis(3), true);
        metrics.set_leader(true);
        let record = |uid: &str, status: &str, reason: &str| {
            let ready = Condition {
                type_: READY.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: String::new(),
                last_transition_time: Time(Timestamp::UNIX_EPOCH),
                observed_generation: None,
            };
            metrics.record_ready("Mirror", uid, &[ready]);
        };
        record("a", "Unknown", "Progressing");
        record("a", "True", "Streaming");
        record("b", "True", "Streaming");
        record("c", "False", "PeerMissing");
        metrics.forget("c");
        let text = metrics.render().unwrap();
        for line in [
            r#"walferry_operator_reconciles_total{controller="mirror",result="success"} 1"#,
            r#"walferry_operator_resources{kind="Mirror",ready="True",reason="Streaming"} 2"#,
            "walferry_operator_leader 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("Progressing") && !text.contains("PeerMissing"), "{text}");
        metrics.set_leader(false);
        assert!(!metrics.render().unwrap().contains("Streaming"));
    }
}
