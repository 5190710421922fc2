//! Servers kept by `e2e/servers hold`, which stops them when our end of its standard input closes: also when this process
//! is killed.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{ClickHouse, Pg};

/// A running server of our own.
#[derive(Debug)]
pub struct Server {
    keeper: Mutex<Keeper>,
    pub port: u16,
    /// Where its files are.
    pub folder: PathBuf,
}

/// The shell script that started it.
#[derive(Debug)]
struct Keeper {
    process: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Server {
    /// Starts `e2e/servers hold` with these arguments.
    pub fn start(arguments: &[&str]) -> Server {
        let mut process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/servers"))
            .arg("hold")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for this process; the keeper cleans up when it ends.
            .process_group(0)
            .spawn()
            .expect("start e2e/servers");
        let orders = process.stdin.take();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut keeper = Keeper { process, orders, answers };
        let (port, folder) = keeper.ready();
        Server { keeper: Mutex::new(keeper), port, folder }
    }

    /// A PostgreSQL of our own. Durability against a power cut is not what these tests are about.
    pub fn postgres(pg: Pg, options: &[&str]) -> Server {
        let major = match pg {
            Pg::V14 => "14",
            Pg::V18 => "18",
        };
        Server::start(&[&["postgres", major, "-c", "fsync=off"], options].concat())
    }

    /// A ClickHouse of our own.
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
        let mut keeper = self.keeper();
        keeper.order("stop");
        assert_eq!(keeper.answer(), "stopped");
    }

    /// Kills the server.
    pub fn kill(&self) {
        let mut keeper = self.keeper();
        keeper.order("kill");
        assert_eq!(keeper.answer(), "stopped");
    }

    /// Starts it again, on the same port and files.
    pub fn start_again(&self) {
        let mut keeper = self.keeper();
        keeper.order("start");
        assert_eq!(keeper.ready().0, self.port);
    }

    /// The server's process.
    pub fn pid(&self) -> i32 {
        std::fs::read_to_string(self.folder.join("pid")).unwrap().trim().parse().unwrap()
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    fn order(&mut self, order: &str) {
        writeln!(self.orders.as_ref().unwrap(), "{order}").expect("the keeper of a server has ended");
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Port and folder.
    fn ready(&mut self) -> (u16, PathBuf) {
        let answer = self.answer();
        let words: Vec<&str> = answer.split(' ').collect();
        let ["ready", port, folder] = words[..] else {
            panic!("the server did not start (answer '{answer}')")
        };
        (port.parse().unwrap(), folder.into())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders = None;
        let _ = self.process.wait();
    }
}
