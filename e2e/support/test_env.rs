//! A pair of new databases with a least-privilege role on each side, and a Mirror between them.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use postgres::{Client, NoTls, SimpleQueryMessage};
use serde_json::{Value, json};

use super::{
    ClickHouse, Credentials, Outcome, Pg, Run, Server, TargetUsers, eventually, walferry, walferry::parse_lsn,
};

/// A Mirror and the resources it refers to, as JSON that a test may change before it is written as YAML.
#[derive(Clone, Debug)]
pub struct Mirror {
    pub postgres: Value,
    pub clickhouse: Value,
    pub mirror: Value,
    /// Names of Secrets and their stringData.
    pub secrets: Vec<(String, Value)>,
}

impl Mirror {
    /// `spec.tables[index]`, for changes.
    pub fn table(&mut self, index: usize) -> &mut Value {
        &mut self.mirror["spec"]["tables"][index]
    }

    /// All documents.
    pub fn documents(&self) -> Vec<Value> {
        let secrets = self.secrets.iter().map(|(name, data)| {
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data})
        });
        [self.postgres.clone(), self.clickhouse.clone(), self.mirror.clone()]
            .into_iter()
            .chain(secrets)
            .collect()
    }

    /// All documents in one file.
    pub fn to_yaml(&self) -> String {
        let documents = self.documents();
        let texts = documents.iter().map(|document| serde_yaml::to_string(document).unwrap());
        texts.collect::<Vec<_>>().join("---\n")
    }
}

/// The two databases of one test.
#[derive(Debug)]
pub struct TestEnv {
    pub database: String,
    pub postgres_port: u16,
    pub clickhouse: ClickHouse,
    target_users: TargetUsers,
    folder: tempfile::TempDir,
    /// A superuser's connection for queries with its port. It is kept because connecting costs more than a
    /// query.
    query_connection: Mutex<Option<(u16, QueryConnection)>>,
    // A server stops when the last environment that uses it is dropped.
    pub postgres_server: Arc<Server>,
    pub clickhouse_server: Arc<Server>,
}

/// A connection with a `Debug` implementation, which `Client` lacks.
struct QueryConnection(Client);

impl std::fmt::Debug for QueryConnection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("QueryConnection")
    }
}

impl TestEnv {
    /// Databases in the shared servers.
    pub fn new(pg: Pg) -> TestEnv {
        TestEnv::on(Server::shared_postgres(pg), Server::shared_clickhouse())
    }

    /// Databases in the shared servers, the source's with this encoding.
    pub fn encoded(encoding: &str) -> TestEnv {
        let options = format!("TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'");
        TestEnv::made(Server::shared_postgres(Pg::V18), Server::shared_clickhouse(), &options)
    }

    /// Databases in these servers. The source's role has LOGIN and REPLICATION and owns its database, nothing
    /// more.
    pub fn on(postgres_server: Arc<Server>, clickhouse_server: Arc<Server>) -> TestEnv {
        TestEnv::made(postgres_server, clickhouse_server, "")
    }

    fn made(postgres_server: Arc<Server>, clickhouse_server: Arc<Server>, options: &str) -> TestEnv {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let database = format!("{}{}", TestEnv::name_prefix(), COUNT.fetch_add(1, SeqCst));
        let env = TestEnv {
            postgres_port: postgres_server.port,
            clickhouse: clickhouse_server.as_clickhouse(),
            target_users: TargetUsers::new(&clickhouse_server, &database),
            folder: tempfile::tempdir().unwrap(),
            query_connection: Mutex::new(None),
            database,
            postgres_server,
            clickhouse_server,
        };
        let name = &env.database;
        let mut admin = env.connect_admin_to("postgres");
        admin.batch_execute(&format!("CREATE ROLE {name} LOGIN REPLICATION PASSWORD 'role-test'")).unwrap();
        admin.batch_execute(&format!("CREATE DATABASE {name} OWNER {name} {options}")).unwrap();
        env.admin(&format!("GRANT ALL ON SCHEMA public TO {name}"));
        env.clickhouse.query("default", &format!("CREATE DATABASE {name}"));
        env
    }

    /// What the names of this process's databases, roles and users begin with, so that others at the same
    /// servers have different ones.
    pub fn name_prefix() -> &'static str {
        static PREFIX: OnceLock<String> = OnceLock::new();
        PREFIX.get_or_init(|| format!("app_{:06x}_", fastrand::u32(..1 << 24)))
    }

    /// The role that owns the source's database and tables.
    fn role(&self) -> Credentials {
        Credentials::new(&self.database, "role-test")
    }

    /// A connection of the application, whose role owns the tables.
    pub fn connect(&self) -> Client {
        self.role().connect(self.postgres_port, &self.database).unwrap()
    }

    /// A function that connects as the application; it returns `None` while the server doesn't answer.
    pub fn connector(&self) -> impl Fn() -> Option<Client> + Send + 'static {
        let (role, port, name) = (self.role(), self.postgres_port, self.database.clone());
        move || role.connect(port, &name).ok()
    }

    /// The ClickHouse user that has this name in `e2e/tools/clickhouse-users.xml`.
    #[track_caller]
    pub fn target_user(&self, name: &str) -> Credentials {
        self.target_users.get(name)
    }

    /// Makes commits at the source wait for a synchronous standby that does not exist: they are in the WAL,
    /// but not visible. The server must be the test's own.
    #[track_caller]
    pub fn hold_commits(&self) {
        self.admin("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
        self.admin("SELECT pg_reload_conf()");
        eventually("commits to wait", || self.source_value("SHOW synchronous_standby_names") == "nobody");
    }

    /// Reverts [`TestEnv::hold_commits`].
    #[track_caller]
    pub fn release_commits(&self) {
        self.admin("ALTER SYSTEM RESET synchronous_standby_names");
        self.admin("SELECT pg_reload_conf()");
    }

    /// Closes the connection that is kept for queries.
    pub fn forget_connections(&self) {
        *self.query_connection.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A connection as a superuser.
    pub fn connect_admin(&self) -> Client {
        self.connect_admin_to(&self.database)
    }

    /// A connection as a superuser to the test's database at another server, such as a standby.
    pub fn connect_admin_of(&self, server: &Server) -> Client {
        server.admin.connect(server.port, &self.database).unwrap()
    }

    /// A connection as a superuser to another database of the server.
    pub fn connect_admin_to(&self, database: &str) -> Client {
        self.postgres_server.admin.connect(self.postgres_port, database).unwrap()
    }

    /// Stops or kills this test's own PostgreSQL, and starts it again after `meanwhile`.
    pub fn restart_postgres(&self, orderly: bool, meanwhile: impl FnOnce()) {
        if orderly {
            self.postgres_server.stop()
        } else {
            self.postgres_server.kill()
        }
        meanwhile();
        self.postgres_server.start_again();
    }

    /// Kills this test's own ClickHouse, and starts it again after `meanwhile`.
    pub fn restart_clickhouse(&self, meanwhile: impl FnOnce()) {
        self.clickhouse_server.kill();
        meanwhile();
        self.clickhouse_server.start_again();
    }

    /// Grants what `GRANT … TO` statements, one a line, give a user of this test's own ClickHouse. Users are
    /// defined in a file of that server, so it is edited and the server restarts.
    pub fn grant_at_target(&self, user: &str, statements: &str) {
        let to = format!(" TO `{user}`;");
        let queries =
            statements.lines().map(|line| line.strip_suffix(&to).unwrap_or_else(|| panic!("{line}")));
        let queries: String = queries.map(|grant| format!("<query>{grant}</query>")).collect();
        let file = self.clickhouse_server.folder.join("users.xml");
        let users = std::fs::read_to_string(&file).unwrap();
        let (before, after) = users.split_once(&format!("<{user}>")).unwrap();
        let after = after.replacen("</grants>", &format!("{queries}</grants>"), 1);
        self.restart_clickhouse(|| std::fs::write(&file, format!("{before}<{user}>{after}")).unwrap());
    }

    /// Replaces the REVOKE statements of the program's user at this test's own ClickHouse, which restarts. A
    /// statement may name the test's database as `DB`.
    pub fn revoke_at_target(&self, statements: &[&str]) {
        let file = self.clickhouse_server.folder.join("users.xml");
        let users = std::fs::read_to_string(&file).unwrap();
        let kept: Vec<&str> = users.lines().filter(|line| !line.contains("<query>REVOKE")).collect();
        let kept = kept.join("\n");
        let (before, after) = kept.split_once("<limited>").unwrap();
        let (grants, after) = after.split_once("      </grants>").unwrap();
        let revoked: String = statements
            .iter()
            .map(|statement| format!("        <query>{}</query>\n", statement.replace("DB", &self.database)))
            .collect();
        let users = format!("{before}<limited>{grants}{revoked}      </grants>{after}");
        self.restart_clickhouse(|| std::fs::write(&file, users).unwrap());
    }

    /// Runs statements at the source as the application.
    #[track_caller]
    pub fn sql(&self, statements: &str) {
        if let Err(error) = self.connect().batch_execute(statements) {
            panic!("{statements}: {error:?}");
        }
    }

    /// Runs statements at the source as a superuser, in the test's database.
    #[track_caller]
    pub fn admin(&self, statements: &str) {
        if let Err(error) = self.connect_admin().batch_execute(statements) {
            panic!("{statements}: {error:?}");
        }
    }

    /// Runs a superuser's query at the source and returns its rows in ClickHouse's TabSeparated format.
    #[track_caller]
    pub fn source(&self, query: &str) -> String {
        let messages = self.ask(query).unwrap_or_else(|error| panic!("{query}: {error:?}"));
        let mut text = String::new();
        for message in messages {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let cells: Vec<String> =
                (0..row.len()).map(|i| row.get(i).map_or_else(|| "\\N".into(), escape)).collect();
            text.push_str(&cells.join("\t"));
            text.push('\n');
        }
        text
    }

    /// Queries on the kept connection, or on a new one if the kept one has been closed since the last query.
    fn ask(&self, query: &str) -> Result<Vec<SimpleQueryMessage>, postgres::Error> {
        let port = self.postgres_port;
        let connection = || self.query_connection.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = connection().take().filter(|(of, _)| *of == port);
        let answered = kept.map(|(_, QueryConnection(mut client))| (client.simple_query(query), client));
        let (client, answer) = match answered {
            Some((answer, client)) if answer.as_ref().err().is_none_or(is_refusal) => (client, answer),
            _ => {
                let mut client = self.connect_admin();
                let answer = client.simple_query(query);
                (client, answer)
            }
        };
        *connection() = Some((port, QueryConnection(client)));
        answer
    }

    /// One value at the source.
    #[track_caller]
    pub fn source_value(&self, query: &str) -> String {
        self.source(query).trim_end_matches('\n').to_owned()
    }

    /// Runs a query in the target database and returns its rows as tab separated text.
    #[track_caller]
    pub fn target(&self, query: &str) -> String {
        self.clickhouse.query(&self.database, query)
    }

    /// One value in the target database.
    #[track_caller]
    pub fn target_value(&self, query: &str) -> String {
        self.target(query).trim_end_matches('\n').to_owned()
    }

    /// Asserts that a query on each side returns the same text.
    #[track_caller]
    pub fn assert_same(&self, source: &str, target: &str) {
        let (left, right) = (self.source(source), self.target(target));
        assert!(left == right, "the sides differ\n{}", first_difference(&left, &right));
    }

    /// Asserts that a table and its target have the same rows. `columns` are those whose text is the same on
    /// both sides.
    #[track_caller]
    pub fn assert_table(&self, table: &str, columns: &str, key: &str) {
        let target_name = table.rsplit('.').next().unwrap().trim_matches('"');
        self.assert_same(
            &format!("SELECT {columns} FROM {table} ORDER BY {key}"),
            &format!(
                "SELECT {columns} FROM `{target_name}` FINAL WHERE _walferry_deleted = 0 ORDER BY {key}"
            ),
        );
    }

    /// The end of the source's WAL, after everything that is committed now.
    pub fn lsn(&self) -> u64 {
        parse_lsn(&self.source_value("SELECT pg_current_wal_flush_lsn()")).unwrap()
    }

    /// A Mirror of these tables of schema public, without TLS.
    pub fn mirror(&self, tables: &[&str]) -> Mirror {
        let name = &self.database;
        let api = "walferry.dev/v1alpha1";
        let tables: Vec<Value> =
            tables.iter().map(|table| json!({"schema": "public", "name": table})).collect();
        Mirror {
            postgres: json!({"apiVersion": api, "kind": "ReplicationPeer", "metadata": {"name": "source"}, "spec": {
                "postgres": {"host": "127.0.0.1", "port": self.postgres_port, "database": name,
                    "credentialsSecretRef": {"name": "source-login"}, "tls": {"mode": "Disable"}}}}),
            clickhouse: json!({"apiVersion": api, "kind": "ReplicationPeer", "metadata": {"name": "target"}, "spec": {
                "clickhouse": {"url": format!("http://127.0.0.1:{}", self.clickhouse.port), "database": name,
                    "credentialsSecretRef": {"name": "target-login"}}}}),
            mirror: json!({"apiVersion": api, "kind": "Mirror", "metadata": {"name": name.replace('_', "-")}, "spec": {
                "sourceRef": {"name": "source"}, "destinationRef": {"name": "target"}, "tables": tables}}),
            secrets: vec![
                ("source-login".into(), self.role().to_secret()),
                ("target-login".into(), self.target_user("limited").to_secret()),
            ],
        }
    }

    /// Writes the file of a Mirror.
    pub fn write(&self, mirror: &Mirror) -> PathBuf {
        self.write_text(&mirror.to_yaml())
    }

    /// Writes a file.
    pub fn write_text(&self, text: &str) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let path = self.folder.path().join(format!("{}.yaml", COUNT.fetch_add(1, SeqCst)));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Starts `walferry run`.
    pub fn run(&self, mirror: &Mirror) -> Run {
        Run::start(&self.write(mirror), &[])
    }

    /// Starts `walferry run` and waits until every table streams and what is committed now has arrived.
    #[track_caller]
    pub fn streaming(&self, mirror: &Mirror) -> Run {
        let mut run = self.run(mirror);
        run.until_streaming();
        self.settle(&mut run);
        run
    }

    /// Waits until what is committed now has arrived.
    #[track_caller]
    pub fn settle(&self, run: &mut Run) {
        run.until_lsn(self.lsn());
    }

    /// Runs a command that takes the Mirror's file.
    #[track_caller]
    pub fn command(&self, command: &str, mirror: &Mirror, options: &[&str]) -> Outcome {
        let file = self.write(mirror);
        walferry(&[&[command, "-f", file.to_str().unwrap()], options].concat())
    }

    /// Runs `walferry run --until-caught-up`, which must succeed.
    #[track_caller]
    pub fn catch_up(&self, mirror: &Mirror) -> Outcome {
        self.command("run", mirror, &["--until-caught-up", "--http", "127.0.0.1:0"]).exits(0)
    }

    /// Runs `walferry verify`, which must find no difference.
    #[track_caller]
    pub fn verify(&self, mirror: &Mirror) {
        self.command("verify", mirror, &[]).exits(0);
    }

    /// Seconds since this walsender's last standby status update, or since its start if there was none.
    pub fn silence(&self, walsender: &str) -> f64 {
        let query = format!(
            "SELECT extract(epoch FROM clock_timestamp() - coalesce(reply_time, backend_start)) FROM pg_stat_replication WHERE pid = {walsender}"
        );
        self.source_value(&query).parse().expect("the walsender is gone")
    }

    /// A column of the Mirror's row in pg_replication_slots, as text.
    #[track_caller]
    pub fn slot(&self, run: &mut Run, column: &str) -> String {
        let slot =
            run.until_status("the slot's name", |status| Some(status["slotName"].as_str()?.to_owned()));
        self.source_value(&format!("SELECT {column} FROM pg_replication_slots WHERE slot_name = '{slot}'"))
    }
}

/// Removes databases, slots and roles: the servers are shared, and a slot would retain their WAL.
impl Drop for TestEnv {
    fn drop(&mut self) {
        let name = &self.database;
        let mut config = self.postgres_server.admin.config(self.postgres_port, "postgres");
        // A fault test may have left its server stopped, or waiting for a standby that does not exist.
        config.connect_timeout(Duration::from_secs(2)).options("-c synchronous_commit=local");
        let Ok(mut admin) = config.connect(NoTls) else { return };
        for _ in 0..200 {
            let _ = admin.batch_execute(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{name}';
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}' AND NOT active"
            ));
            if admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let _ = admin.batch_execute(&format!("DROP ROLE IF EXISTS {name}"));
        let _ = self.clickhouse.try_query("default", &format!("DROP DATABASE IF EXISTS {name}"));
    }
}

/// Whether the server rejected the query, as opposed to a closed connection.
fn is_refusal(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| error.severity() == "ERROR")
}

/// Escapes text as ClickHouse's TabSeparated format does.
fn escape(value: &str) -> String {
    // Most values have nothing to escape, and this check is cheap.
    if b"\\\t\n\r'\x08\x0c".iter().all(|special| !value.as_bytes().contains(special)) {
        return value.to_owned();
    }
    value
        .replace('\\', "\\\\")
        .replace('\t', "\\t")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
        .replace('\'', "\\'")
        .replace('\u{8}', "\\b")
        .replace('\u{c}', "\\f")
}

fn first_difference(left: &str, right: &str) -> String {
    let (count_left, count_right) = (left.lines().count(), right.lines().count());
    let pairs = left.lines().map(Some).chain(std::iter::repeat(None));
    let mut pairs = pairs.zip(right.lines().map(Some).chain(std::iter::repeat(None)));
    let difference = pairs.find(|(left, right)| left != right);
    let (left, right) = difference.unwrap_or_default();
    format!(
        "source ({count_left} rows): {}\ntarget ({count_right} rows): {}",
        left.unwrap_or("nothing more"),
        right.unwrap_or("nothing more")
    )
}
