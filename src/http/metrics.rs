//! Prometheus metrics, rendered from the reports at each scrape, so that no stale series stay in a registry.

use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::model::{MirrorPhase, MirrorReport, TableReport, TableState};

const MIRROR: &[&str] = &["namespace", "mirror"];
const TABLE: &[&str] = &["namespace", "mirror", "schema", "table"];

/// The metrics of these Mirrors in Prometheus' text format.
///
/// # Errors
/// When two series clash, which would be a defect.
pub(super) fn render(reports: &[MirrorReport]) -> Result<String, prometheus::Error> {
    let registry = Registry::new();
    let mirrors = MirrorMetrics::new(&registry)?;
    let tables = TableMetrics::new(&registry)?;
    for report in reports {
        mirrors.add(report);
        for table in &report.tables {
            tables.add(report, table);
        }
    }
    let mut text = Vec::new();
    TextEncoder::new().encode(&registry.gather(), &mut text)?;
    String::from_utf8(text).map_err(|error| prometheus::Error::Msg(error.to_string()))
}

struct MirrorMetrics {
    phase: IntGaugeVec,
    lag_bytes: IntGaugeVec,
    lag_seconds: GaugeVec,
    retained_wal_bytes: IntGaugeVec,
    safe_wal_bytes: IntGaugeVec,
    catalog_xmin_age: IntGaugeVec,
    wal_status: IntGaugeVec,
    durable_lsn: IntGaugeVec,
}

impl MirrorMetrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        Ok(MirrorMetrics {
            phase: gauge(
                registry,
                "walferry_phase",
                "1 for the Mirror's phase, 0 for the others.",
                &["namespace", "mirror", "phase"],
            )?,
            lag_bytes: gauge(
                registry,
                "walferry_lag_bytes",
                "Bytes of WAL between the end of the source's log and the last transaction that is durable at the destination; missing while that is not known.",
                MIRROR,
            )?,
            lag_seconds: {
                let help = "Seconds since the oldest transaction that is not yet durable at the destination was committed; grows while no changes stream, missing before it was ever measured.";
                let lag = GaugeVec::new(Opts::new("walferry_lag_seconds", help), MIRROR)?;
                registry.register(Box::new(lag.clone()))?;
                lag
            },
            retained_wal_bytes: gauge(
                registry,
                "walferry_retained_wal_bytes",
                "Bytes of WAL that the slot holds back at the source.",
                MIRROR,
            )?,
            safe_wal_bytes: gauge(
                registry,
                "walferry_slot_safe_wal_bytes",
                "Bytes of WAL that can be written before the source may give the slot up; missing without max_slot_wal_keep_size.",
                MIRROR,
            )?,
            catalog_xmin_age: gauge(
                registry,
                "walferry_slot_catalog_xmin_age",
                "Age in transactions of the slot's catalog_xmin, which keeps catalog rows from vacuum.",
                MIRROR,
            )?,
            wal_status: gauge(
                registry,
                "walferry_slot_wal_status",
                "1 for the slot's wal_status at the source, 0 for the others.",
                &["namespace", "mirror", "status"],
            )?,
            durable_lsn: gauge(
                registry,
                "walferry_durable_lsn",
                "LSN, in bytes, up to which everything is durable at the destination.",
                MIRROR,
            )?,
        })
    }

    fn add(&self, report: &MirrorReport) {
        let labels = [report.namespace.as_str(), report.name.as_str()];
        for phase in MirrorPhase::ALL {
            let labels = [labels[0], labels[1], &format!("{phase:?}")];
            self.phase.with_label_values(&labels).set(i64::from(phase == report.phase));
        }
        // A lag of 0 that was not measured would silence alerts.
        if let Some(bytes) = report.lag.bytes {
            self.lag_bytes.with_label_values(&labels).set(signed(bytes));
        }
        if let Some(seconds) = report.lag.seconds {
            self.lag_seconds.with_label_values(&labels).set(seconds);
        }
        let slot = &report.slot;
        if let Some(bytes) = slot.retained_wal_bytes {
            self.retained_wal_bytes.with_label_values(&labels).set(signed(bytes));
        }
        if let Some(bytes) = slot.safe_wal_bytes {
            self.safe_wal_bytes.with_label_values(&labels).set(bytes);
        }
        if let Some(age) = slot.catalog_xmin_age {
            self.catalog_xmin_age.with_label_values(&labels).set(age.into());
        }
        if let Some(status) = &slot.wal_status {
            for known in ["reserved", "extended", "unreserved", "lost"] {
                let labels = [labels[0], labels[1], known];
                self.wal_status.with_label_values(&labels).set(i64::from(known == status));
            }
        }
        self.durable_lsn.with_label_values(&labels).set(signed(report.last_lsn.0));
    }
}

struct TableMetrics {
    state: IntGaugeVec,
    rows: IntCounterVec,
    rows_copied: IntCounterVec,
    rows_estimated: IntGaugeVec,
    truncates: IntCounterVec,
    refetched: IntCounterVec,
    out_of_range: IntCounterVec,
}

impl TableMetrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let with = |label| [TABLE, &[label]].concat();
        Ok(TableMetrics {
            state: gauge(
                registry,
                "walferry_table_state",
                "1 for the table's state, 0 for the others.",
                &with("state"),
            )?,
            rows: counter(
                registry,
                "walferry_rows_total",
                "Streamed rows that are durable at the destination.",
                &with("op"),
            )?,
            rows_copied: counter(
                registry,
                "walferry_rows_copied_total",
                "Rows of the snapshot that are durable at the destination.",
                TABLE,
            )?,
            rows_estimated: gauge(
                registry,
                "walferry_rows_estimated",
                "Rows that the source's statistics expected at the start of the snapshot, 0 when unknown.",
                TABLE,
            )?,
            truncates: counter(
                registry,
                "walferry_truncates_total",
                "TRUNCATEs of the source table that were applied at the destination.",
                TABLE,
            )?,
            refetched: counter(
                registry,
                "walferry_rows_refetched_total",
                "Rows re-fetched from the source for an unchanged TOAST value.",
                TABLE,
            )?,
            out_of_range: counter(
                registry,
                "walferry_out_of_range_total",
                "Values that the destination type could not hold, by target column.",
                &with("column"),
            )?,
        })
    }

    fn add(&self, report: &MirrorReport, table: &TableReport) {
        let labels = [report.namespace.as_str(), &report.name, &table.schema, &table.name];
        let and = |label| [labels[0], labels[1], labels[2], labels[3], label];
        for (name, state) in [
            ("Pending", TableState::Pending),
            ("Snapshotting", TableState::Snapshotting),
            ("Streaming", TableState::Streaming),
            ("Failed", TableState::Failed),
        ] {
            self.state.with_label_values(&and(name)).set(i64::from(state == table.state));
        }
        for (op, rows) in [("insert", table.inserted), ("update", table.updated), ("delete", table.deleted)] {
            self.rows.with_label_values(&and(op)).inc_by(rows);
        }
        self.rows_copied.with_label_values(&labels).inc_by(table.rows_copied);
        self.rows_estimated.with_label_values(&labels).set(signed(table.rows_estimated));
        self.truncates.with_label_values(&labels).inc_by(table.truncated);
        self.refetched.with_label_values(&labels).inc_by(table.refetched);
        for (column, values) in &table.out_of_range {
            self.out_of_range.with_label_values(&and(column)).inc_by(*values);
        }
    }
}

fn gauge(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn counter(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

/// Prometheus' integer gauges are signed.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::model::{Lsn, MirrorIdentity, Progress, SlotReport, TableId};

    #[test]
    fn figures_become_series() {
        let progress = Progress::new(&MirrorIdentity {
            namespace: "default".into(),
            name: "demo".into(),
            uid: "0".into(),
        });
        progress.set_durable_lsn(Lsn(100));
        progress.set_source_lsn(Lsn(160));
        progress.set_slot(SlotReport {
            wal_status: Some("extended".into()),
            retained_wal_bytes: Some(4096),
            safe_wal_bytes: Some(-1),
            catalog_xmin_age: Some(7),
            ..SlotReport::default()
        });
        let table = progress.table(&TableId::new("public", "a\"b"));
        table.set_state(TableState::Snapshotting, None, "");
        table.inserted.store(7, Relaxed);
        table.rows_copied.store(9, Relaxed);
        table.count_out_of_range("born", 2);
        let text = render(&[progress.report()]).unwrap();
        assert!(!text.contains("walferry_lag_seconds{"), "not measured yet");
        progress.set_lag_seconds(0.25);
        let text = render(&[progress.report()]).unwrap();
        for line in [
            r#"walferry_lag_bytes{mirror="demo",namespace="default"} 60"#,
            r#"walferry_lag_seconds{mirror="demo",namespace="default"} 0.25"#,
            r#"walferry_retained_wal_bytes{mirror="demo",namespace="default"} 4096"#,
            r#"walferry_slot_safe_wal_bytes{mirror="demo",namespace="default"} -1"#,
            r#"walferry_slot_catalog_xmin_age{mirror="demo",namespace="default"} 7"#,
            r#"walferry_slot_wal_status{mirror="demo",namespace="default",status="extended"} 1"#,
            r#"walferry_slot_wal_status{mirror="demo",namespace="default",status="lost"} 0"#,
            r#"walferry_durable_lsn{mirror="demo",namespace="default"} 100"#,
            r#"walferry_phase{mirror="demo",namespace="default",phase="Provisioning"} 1"#,
            r#"walferry_table_state{mirror="demo",namespace="default",schema="public",state="Snapshotting",table="a\"b"} 1"#,
            r#"walferry_rows_total{mirror="demo",namespace="default",op="insert",schema="public",table="a\"b"} 7"#,
            r#"walferry_rows_copied_total{mirror="demo",namespace="default",schema="public",table="a\"b"} 9"#,
            r#"walferry_out_of_range_total{column="born",mirror="demo",namespace="default",schema="public",table="a\"b"} 2"#,
            "# TYPE walferry_rows_total counter",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
