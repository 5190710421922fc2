//! Faults of the destination: a stopped server, rejected inserts, a full disk.

use std::{fs::File, io::Write, path::PathBuf};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::ChaosEnv;
use crate::tables::TABLES;

impl ChaosEnv {
    pub(super) fn signal_target(&self, signal: Signal) {
        kill(Pid::from_raw(self.env.clickhouse_server.pid()), signal).unwrap();
    }

    /// Changes settings of every existing target table, except for one whose definition ClickHouse has
    /// emptied: that one is repaired after the faults.
    pub(super) fn set_target(&self, settings: &str) {
        let absent = ["UNKNOWN_TABLE", "Empty query"];
        for table in TABLES {
            let sql = format!("ALTER TABLE {} MODIFY SETTING {settings}", table.name);
            match self.env.clickhouse.try_query(&self.env.database, &sql) {
                Ok(_) => {}
                Err(message) => {
                    assert!(absent.iter().any(|word| message.contains(word)), "{sql}: {message}");
                }
            }
        }
    }

    /// Restarts ClickHouse with these settings in the profile of the Mirror's user. The server reads users
    /// only when it starts.
    pub(super) fn restart_target_with(&self, settings: &str) {
        let path = self.env.clickhouse_server.folder.join("users.xml");
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, tail) = text.split_once("<limited>").unwrap();
        let end = head.find("</profiles>").unwrap();
        let begin = head.find("<limits>").unwrap_or(end);
        let profile = format!("<limits>{settings}</limits>");
        let tail = tail.replacen("<profile>default</profile>", "<profile>limits</profile>", 1);
        std::fs::write(&path, format!("{}{profile}{}<limited>{tail}", &head[..begin], &head[end..])).unwrap();
        self.env.restart_clickhouse(|| self.remove_emptied_definitions());
    }

    pub(super) fn target_filler(&self) -> PathBuf {
        self.env.clickhouse_server.folder.join("data/filler")
    }

    pub(super) fn fill_target_disk(&self) {
        let mut filler = File::create(self.target_filler()).unwrap();
        let zeros = vec![0; 1 << 20];
        while filler.write_all(&zeros).is_ok() {}
    }
}
