//! What a user does by hand during a run, because no replicator can do it.

use super::ChaosEnv;
use crate::tables::TABLES;

impl ChaosEnv {
    /// Has tables copied again, as their messages ask for, and says whether there were any. No fault may be under way.
    ///
    /// - A merge on a full disk can leave ClickHouse with a part that it can't read: that target is dropped.
    /// - What the log of a promoted standby may lack of a table of inserts can't be copied again without being asked for.
    ///
    /// Any other table that failed fails the test.
    pub(super) fn repair_tables(&mut self) -> bool {
        let failed = std::mem::take(&mut self.failed);
        let torn = self.torn_tables();
        let doubted = |name: &str, reason: &str| {
            reason == "SourceTimelineChanged"
                && TABLES.iter().any(|table| table.name == name && table.append_only())
        };
        let mut names = torn.clone();
        for (name, reason) in failed {
            if doubted(&name, &reason) {
                self.count_repair("failover in doubt for a table of inserts, then resync", &name);
                names.push(name);
            } else if !torn.contains(&name) {
                let status = self.run.status();
                panic!("a transient fault was taken for {name}'s own, {reason}; status: {status:#}");
            }
        }
        if names.is_empty() {
            return false;
        }
        self.kill_replicator();
        for name in &torn {
            self.count_repair("part lost by ClickHouse, then resync", name);
            self.env.target(&format!("DROP TABLE {name} SYNC"));
        }
        let names: Vec<String> = names.iter().map(|name| format!("public.{name}")).collect();
        self.resync_tables(&names.join(" "));
        true
    }

    fn count_repair(&mut self, what: &str, table: &str) {
        self.say(&format!("  {what}: {table}"));
        *self.repairs.entry(what.to_owned()).or_default() += 1;
    }

    /// The targets with a part that ClickHouse can't read, or whose definition an ALTER on a full disk has emptied.
    fn torn_tables(&self) -> Vec<String> {
        let env = &self.env;
        let torn = |name: &&str| {
            let check = format!("CHECK TABLE {name} SETTINGS check_query_single_value_result = 1");
            let unreadable = match env.clickhouse.try_query(&env.database, &check) {
                Ok(answer) => answer.trim() != "1",
                Err(message) => !message.contains("UNKNOWN_TABLE"),
            };
            let lost = format!(
                "SELECT count() FROM system.tables WHERE database = currentDatabase() AND name = '{name}' AND engine_full = ''"
            );
            unreadable || env.target_value(&lost) != "0"
        };
        TABLES.iter().map(|table| table.name).filter(torn).map(str::to_owned).collect()
    }
}
