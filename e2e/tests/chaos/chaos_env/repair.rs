//! Manual actions during a run: resyncs that only a user may request.

use std::{fs, path::Path};

use super::ChaosEnv;
use crate::{support::advice, tables::TABLES};

impl ChaosEnv {
    /// Resyncs failed tables where manual action is required, and returns whether there were any. Other
    /// faults must have ended.
    ///
    /// - A merge on a full disk can leave ClickHouse with a part that it can't read: that target is dropped.
    /// - After a failover, rows of an append-only table that the new primary may lack are copied again only
    ///   on request.
    ///
    /// Any other failed table fails the test.
    pub(super) fn repair_tables(&mut self) -> bool {
        let failed = std::mem::take(&mut self.failed);
        let mut corrupt = self.corrupt_targets();
        let needs_request = |name: &str, reason: &str| {
            reason == "SourceTimelineChanged"
                && TABLES.iter().any(|table| table.name == name && table.append_only())
        };
        let mut names = corrupt.clone();
        for (name, reason) in failed {
            if needs_request(&name, &reason) {
                self.count_repair("append-only table failed after a failover, then resync", &name);
                names.push(name);
            } else if !corrupt.contains(&name) {
                let status = self.run.status();
                // ClickHouse may have detached the unreadable part since, at a restart.
                if advice(&status, Some(&name)).iter().any(|step| step.contains("DROP TABLE")) {
                    names.push(name.clone());
                    corrupt.push(name);
                    continue;
                }
                panic!("a transient fault made table {name} fail with {reason}; status: {status:#}");
            }
        }
        if names.is_empty() {
            return false;
        }
        self.kill_replicator();
        for name in &corrupt {
            self.count_repair("target corrupted by ClickHouse on a full disk, then resync", name);
            self.env.target(&format!("DROP TABLE IF EXISTS {name} SYNC"));
        }
        let names: Vec<String> = names.iter().map(|name| format!("public.{name}")).collect();
        self.resync_tables(&names.join(" "));
        true
    }

    /// Removes definitions that ClickHouse emptied when an ALTER met a full disk, because it does not start
    /// with them. Such a target is dropped and copied again after the faults.
    pub(super) fn remove_emptied_definitions(&self) {
        let store = self.env.clickhouse_server.folder.join("data/store");
        let entries =
            |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let databases = entries(&store).flat_map(|prefix| entries(&prefix));
        for file in databases.flat_map(|database| entries(&database)) {
            let is_definition = file.extension().is_some_and(|extension| extension == "sql");
            if is_definition && fs::metadata(&file).is_ok_and(|found| found.len() == 0) {
                fs::remove_file(&file).unwrap();
                self.removed.borrow_mut().insert(file.file_stem().unwrap().to_string_lossy().into_owned());
            }
        }
    }

    fn count_repair(&mut self, what: &str, table: &str) {
        self.say(&format!("  {what}: {table}"));
        *self.repairs.entry(what.to_owned()).or_default() += 1;
    }

    /// The targets with a part that ClickHouse can't read, or whose definition an ALTER on a full disk has
    /// emptied.
    fn corrupt_targets(&self) -> Vec<String> {
        let (env, removed) = (&self.env, self.removed.take());
        let corrupt = |name: &&str| {
            let check = format!("CHECK TABLE {name} SETTINGS check_query_single_value_result = 1");
            let unreadable = match env.clickhouse.try_query(&env.database, &check) {
                Ok(answer) => answer.trim() != "1",
                Err(message) => !message.contains("UNKNOWN_TABLE"),
            };
            let lost = format!(
                "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = '{name}' AND engine_full = ''"
            );
            removed.contains(*name) || unreadable || env.target_value(&lost) != "0"
        };
        TABLES.iter().map(|table| table.name).filter(corrupt).map(str::to_owned).collect()
    }
}
