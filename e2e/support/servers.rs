//! Servers that `e2e/tools/servers serve` runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{ClickHouse, Pg, ScriptProcess};

/// A running server of our own.
#[derive(Debug)]
pub struct Server {
    script_process: Mutex<ScriptProcess>,
    pub port: u16,
    /// Where its files are.
    pub folder: PathBuf,
}

impl Server {
    /// Starts `e2e/tools/servers serve` with these arguments.
    pub fn start(arguments: &[&str]) -> Server {
        let mut script_process = ScriptProcess::start("servers", arguments);
        let (port, folder) = ready(&script_process.answer());
        Server { script_process: Mutex::new(script_process), port, folder }
    }

    /// Starts a PostgreSQL. It runs without fsync, because no test cuts the machine's power.
    pub fn postgres(pg: Pg, options: &[&str]) -> Server {
        let major = match pg {
            Pg::V14 => "14",
            Pg::V18 => "18",
        };
        Server::start(&[&["postgres", major, "-c", "fsync=off"], options].concat())
    }

    /// Starts a ClickHouse.
    pub fn clickhouse(options: &[&str]) -> Server {
        Server::start(&[&["clickhouse"], options].concat())
    }

    /// The PostgreSQL that this process's tests share.
    pub fn shared_postgres(pg: Pg) -> Arc<Server> {
        static V14: OnceLock<Arc<Server>> = OnceLock::new();
        static V18: OnceLock<Arc<Server>> = OnceLock::new();
        let shared = match pg {
            Pg::V14 => &V14,
            Pg::V18 => &V18,
        };
        shared.get_or_init(|| Arc::new(Server::postgres(pg, &[]))).clone()
    }

    /// The ClickHouse that this process's tests share.
    pub fn shared_clickhouse() -> Arc<Server> {
        static SHARED: OnceLock<Arc<Server>> = OnceLock::new();
        SHARED.get_or_init(|| Arc::new(Server::clickhouse(&[]))).clone()
    }

    /// Its HTTP interface.
    pub fn as_clickhouse(&self) -> ClickHouse {
        ClickHouse { port: self.port }
    }

    /// Stops the server in an orderly way.
    pub fn stop(&self) {
        assert_eq!(self.script_process().order("stop"), "stopped");
    }

    /// Kills the server.
    pub fn kill(&self) {
        assert_eq!(self.script_process().order("kill"), "stopped");
    }

    /// Starts it again, on the same port and files.
    pub fn start_again(&self) {
        assert_eq!(ready(&self.script_process().order("start")).0, self.port);
    }

    /// Copies the data files of a stopped server, like a snapshot of its disk.
    pub fn snapshot(&self) -> tempfile::TempDir {
        let snapshot = tempfile::tempdir().unwrap();
        copy_files(&self.folder.join("data"), snapshot.path());
        snapshot
    }

    /// Replaces the data files of a stopped server by those of a snapshot.
    pub fn restore(&self, snapshot: &tempfile::TempDir) {
        for entry in std::fs::read_dir(self.folder.join("data")).unwrap() {
            let path = entry.unwrap().path();
            let removed =
                if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.unwrap();
        }
        copy_files(snapshot.path(), &self.folder.join("data"));
    }

    /// The server's process.
    pub fn pid(&self) -> i32 {
        std::fs::read_to_string(self.folder.join("pid")).unwrap().trim().parse().unwrap()
    }

    fn script_process(&self) -> MutexGuard<'_, ScriptProcess> {
        self.script_process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Copies the contents of a folder with owners and permissions.
fn copy_files(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap();
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}

/// Port and folder of a server that is ready.
fn ready(answer: &str) -> (u16, PathBuf) {
    let words: Vec<&str> = answer.split(' ').collect();
    let ["ready", port, folder] = words[..] else { panic!("the server did not start (answer '{answer}')") };
    (port.parse().unwrap(), folder.into())
}
