//! Servers that `e2e/tools/servers serve` runs.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{
    ClickHouse, Credentials, Pg, ScriptProcess,
    given::{self, GivenServer},
};

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// `None` for a given server.
    script_process: Option<Mutex<ScriptProcess>>,
    pub port: u16,
    /// Its superuser or administrator.
    pub admin: Credentials,
    /// The folder of its files; empty for a given server.
    pub folder: PathBuf,
}

impl Server {
    /// Starts `e2e/tools/servers serve` with these arguments.
    #[track_caller]
    fn start(arguments: &[&str], admin: Credentials) -> Server {
        let own_allowed = !in_end_to_end_tests() || !given::are_given();
        assert!(own_allowed, "the test starts a server, so it must begin with needs_own_server!()");
        let mut script_process = ScriptProcess::start("servers", arguments);
        let (port, folder) = ready(&script_process.answer());
        Server { script_process: Some(Mutex::new(script_process)), port, admin, folder }
    }

    /// A server that was given to the tests.
    fn given(server: GivenServer) -> Server {
        let GivenServer { port, admin } = server;
        Server { script_process: None, port, admin, folder: PathBuf::new() }
    }

    /// Starts a PostgreSQL. It runs without fsync, because no test cuts the machine's power.
    #[track_caller]
    pub fn postgres(pg: Pg, options: &[&str]) -> Server {
        let major = match pg {
            Pg::V14 => "14",
            Pg::V18 => "18",
        };
        let admin = Credentials::new("postgres", "postgres-test");
        Server::start(&[&["postgres", major, "-c", "fsync=off"], options].concat(), admin)
    }

    /// Starts a ClickHouse.
    #[track_caller]
    pub fn clickhouse(options: &[&str]) -> Server {
        let admin = Credentials::new("admin", "clickhouse-test");
        Server::start(&[&["clickhouse"], options].concat(), admin)
    }

    /// The PostgreSQL that this process's tests share. A given one is used as a PostgreSQL 18.
    #[track_caller]
    pub fn shared_postgres(pg: Pg) -> Arc<Server> {
        static GIVEN: OnceLock<Option<Arc<Server>>> = OnceLock::new();
        if in_end_to_end_tests()
            && pg == Pg::V18
            && let Some(server) = GIVEN.get_or_init(|| GivenServer::postgres().map(checked_postgres))
        {
            return Arc::clone(server);
        }
        static V14: OnceLock<Arc<Server>> = OnceLock::new();
        static V18: OnceLock<Arc<Server>> = OnceLock::new();
        let shared = match pg {
            Pg::V14 => &V14,
            Pg::V18 => &V18,
        };
        shared.get_or_init(|| Arc::new(Server::postgres(pg, &[]))).clone()
    }

    /// The ClickHouse that this process's tests share.
    #[track_caller]
    pub fn shared_clickhouse() -> Arc<Server> {
        static SHARED: OnceLock<Arc<Server>> = OnceLock::new();
        let given = || GivenServer::clickhouse().filter(|_| in_end_to_end_tests()).map(Server::given);
        SHARED.get_or_init(|| Arc::new(given().unwrap_or_else(|| Server::clickhouse(&[])))).clone()
    }

    /// Whether it was given to the tests, which then share it with others and can't restart it.
    pub fn is_given(&self) -> bool {
        self.script_process.is_none()
    }

    /// Its HTTP interface.
    pub fn as_clickhouse(&self) -> ClickHouse {
        ClickHouse { port: self.port, admin: self.admin.clone() }
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

    #[track_caller]
    fn script_process(&self) -> MutexGuard<'_, ScriptProcess> {
        let process = self.script_process.as_ref().expect("a given server can't be stopped");
        process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether this is part of the end-to-end tests, which can use given servers: chaos injects faults into
/// servers, and pods have to reach those of the tests in Kubernetes.
fn in_end_to_end_tests() -> bool {
    module_path!().starts_with("e2e::")
}

/// A given PostgreSQL, which must be able to do what the tests ask for.
fn checked_postgres(server: GivenServer) -> Arc<Server> {
    let server = Server::given(server);
    let mut client = server.admin.connect(server.port, "postgres").expect("E2E_POSTGRES");
    let sql = "SELECT current_setting('server_version_num')::int / 10000, current_setting('wal_level')";
    let row = client.query_one(sql, &[]).unwrap();
    let (major, wal_level): (i32, String) = (row.get(0), row.get(1));
    assert!(
        major == 18 && wal_level == "logical",
        "E2E_POSTGRES is PostgreSQL {major}, wal_level {wal_level}"
    );
    Arc::new(server)
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
