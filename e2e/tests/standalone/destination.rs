//! The destination's contract against a real server, kept by a user with only the documented privileges.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use super::support::{Server, TargetUsers, TestEnv};
use walferry::{
    clickhouse::{Client, Database, Error},
    fault::Reason,
    model::{
        Cell, CellKind, ClickHouseEndpoint, Column, OutOfRange, Password, SourceType, TableId, TableSchema,
        TlsSettings, Tuple, Version,
    },
    replication::{
        Destination, DestinationError, ErrorKind, Insert, Op, Rows, StateRow, StateVersion, TableBatch,
    },
};

/// The database that tests which run at the same time share. It is dropped with the last of them.
struct Shared {
    server: Arc<Server>,
    name: String,
    users: TargetUsers,
}

fn shared() -> Arc<Shared> {
    static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());
    let mut last = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(shared) = last.upgrade() {
        return shared;
    }
    let (server, name) = (Server::shared_clickhouse(), format!("{}destination", TestEnv::name_prefix()));
    server.as_clickhouse().query("default", &format!("CREATE DATABASE IF NOT EXISTS {name}"));
    let users = TargetUsers::new(&server, &name);
    let shared = Arc::new(Shared { server, name, users });
    *last = Arc::downgrade(&shared);
    shared
}

impl Drop for Shared {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} SYNC", self.name);
        let _ = self.server.as_clickhouse().try_query("default", &drop);
    }
}

/// The database as the program uses it.
struct TestDatabase {
    database: Database,
    _shared: Arc<Shared>,
}

impl Deref for TestDatabase {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

/// Runs what the user under test lacks the privilege for.
fn as_administrator(sql: &str) {
    let shared = shared();
    shared.server.as_clickhouse().query(&shared.name, sql);
}

fn endpoint(shared: &Shared) -> ClickHouseEndpoint {
    let user = shared.users.get("limited");
    ClickHouseEndpoint {
        url: format!("http://127.0.0.1:{}", shared.server.port),
        database: shared.name.clone(),
        username: user.user,
        password: Password::new(user.password),
        tls: TlsSettings::default(),
    }
}

async fn database() -> TestDatabase {
    let shared = shared();
    let database = Database::new(&endpoint(&shared), OutOfRange::Clamp).unwrap();
    database.prepare().await.unwrap();
    TestDatabase { database, _shared: shared }
}

fn column(name: &str, source_type: SourceType, nullable: bool) -> Column {
    Column { nullable, ..Column::new(name, source_type) }
}

/// A table `(id bigint, v text)` with a name of its own, which does not exist yet.
async fn fresh(database: &Database, name: &str) -> TableSchema {
    let table = TableSchema {
        target: format!("it's {name}"),
        ..TableSchema::new(
            TableId::new("public", name),
            vec![column("id", SourceType::Int8, false), column("v", SourceType::Text, true)],
        )
    };
    drop_table(database, &table);
    table
}

fn target(database: &Database, table: &TableSchema) -> String {
    walferry::clickhouse::quote::table(database.name(), &table.target)
}

fn drop_table(database: &Database, table: &TableSchema) {
    as_administrator(&format!("DROP TABLE IF EXISTS {} SYNC", target(database, table)));
}

async fn ask(database: &Database, sql: &str) -> String {
    database.client().query_text(sql, &[]).await.unwrap().trim_end().to_owned()
}

async fn rows(database: &Database, table: &TableSchema) -> String {
    ask(database, &format!("SELECT id, v FROM {} FINAL ORDER BY id FORMAT CSV", target(database, table)))
        .await
}

fn push(batch: &mut impl TableBatch, values: &[Option<&str>], version: u64, op: Op) {
    let mut data = Vec::new();
    let cells: Vec<Cell> = values
        .iter()
        .map(|value| {
            let start = data.len() as u32;
            data.extend_from_slice(value.unwrap_or_default().as_bytes());
            let kind = if value.is_some() { CellKind::Text } else { CellKind::Null };
            Cell { kind, start, len: value.map_or(0, str::len) as u32 }
        })
        .collect();
    batch.push(Tuple { data: &data, cells: &cells }, Version::from_number(version).into(), op).unwrap();
}

fn kind<T>(result: Result<T, DestinationError>) -> (ErrorKind, Reason) {
    let error = result.err().unwrap();
    (error.kind, error.reason)
}

#[tokio::test]
async fn the_last_of_equal_versions_wins_and_tombstones_hide() {
    let database = database().await;
    let table = fresh(&database, "versions").await;
    database.ensure_table(&table).await.unwrap();
    database.ensure_table(&table).await.unwrap();
    let mut batch = database.batch(&table).unwrap();
    push(&mut batch, &[Some("1"), Some("copied")], 0, Op::Upsert);
    push(&mut batch, &[Some("2"), Some("first")], 10, Op::Upsert);
    push(&mut batch, &[Some("2"), Some("second")], 10, Op::Upsert);
    push(&mut batch, &[Some("3"), None], 10, Op::Upsert);
    database.insert(&table, &batch, &table.target).await.unwrap();
    assert_eq!(rows(&database, &table).await, "1,\"copied\"\n2,\"second\"\n3,\\N");

    let mut later = database.batch(&table).unwrap();
    push(&mut later, &[Some("2"), None], 10, Op::Delete);
    push(&mut later, &[Some("1"), Some("streamed")], 11, Op::Upsert);
    database.insert(&table, &later, &table.target).await.unwrap();
    assert_eq!(rows(&database, &table).await, "1,\"streamed\"\n3,\\N");
    // The same batches again: only rows with the highest version are visible. The tie on key 2 is decided by
    // what was inserted last, which is why the engine repeats everything from the position where it restarts.
    database.insert(&table, &batch, &table.target).await.unwrap();
    database.insert(&table, &later, &table.target).await.unwrap();
    assert_eq!(rows(&database, &table).await, "1,\"streamed\"\n3,\\N");
    database.empty(&table, "empty").await.unwrap();
    assert_eq!(rows(&database, &table).await, "");
    drop_table(&database, &table);
}

#[tokio::test]
async fn a_batch_that_is_sent_again_is_written_again() {
    let database = database().await;
    let mut table = fresh(&database, "again").await;
    table.settings = vec![("non_replicated_deduplication_window".to_owned(), "100".to_owned())];
    database.ensure_table(&table).await.unwrap();
    let mut batch = database.batch(&table).unwrap();
    push(&mut batch, &[Some("1"), Some("a")], 5, Op::Upsert);
    let mut between = database.batch(&table).unwrap();
    push(&mut between, &[Some("1"), Some("b")], 5, Op::Upsert);
    for batch in [&batch, &between, &batch] {
        database.insert(&table, batch, &table.target).await.unwrap();
    }
    assert_eq!(rows(&database, &table).await, "1,\"a\"");
    drop_table(&database, &table);
}

#[tokio::test]
async fn a_long_insert_makes_few_parts_and_a_dropped_one_is_not_finished() {
    let database = database().await;
    let table = fresh(&database, "long").await;
    database.ensure_table(&table).await.unwrap();
    let mut insert = database.open_insert(&table, &table.target).await.unwrap();
    let mut batch = database.batch(&table).unwrap();
    for chunk in 0..20 {
        for row in 0..5000 {
            push(&mut batch, &[Some(&(chunk * 5000 + row).to_string()), Some("some text")], 0, Op::Upsert);
        }
        insert.send(&mut batch).await.unwrap();
        assert_eq!(batch.rows(), 0);
    }
    insert.finish().await.unwrap();
    let target = target(&database, &table);
    assert_eq!(ask(&database, &format!("SELECT count() FROM {target}")).await, "100000");
    // All blocks of the insert were squashed into one part.
    assert_eq!(ask(&database, &format!("SELECT uniqExact(_part) FROM {target}")).await, "1");

    database.empty(&table, "empty").await.unwrap();
    let mut dropped = database.open_insert(&table, &table.target).await.unwrap();
    push(&mut batch, &[Some("1"), Some("x")], 0, Op::Upsert);
    dropped.send(&mut batch).await.unwrap();
    drop(dropped);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rows(&database, &table).await, "");
    // Without rows, nothing is inserted.
    database.open_insert(&table, &table.target).await.unwrap().finish().await.unwrap();
    drop_table(&database, &table);
}

#[tokio::test]
async fn a_later_insert_ends_an_earlier_one_with_the_same_fence() {
    let database = database().await;
    let table = fresh(&database, "fence").await;
    database.ensure_table(&table).await.unwrap();
    let mut earlier = database.open_insert(&table, "walferry test fence").await.unwrap();
    let mut batch = database.batch(&table).unwrap();
    for row in 0..40_000 {
        push(&mut batch, &[Some(&row.to_string()), Some("earlier, of the same version")], 9, Op::Upsert);
    }
    earlier.send(&mut batch).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    push(&mut batch, &[Some("1"), Some("later")], 9, Op::Upsert);
    // The earlier insert waits for more of its body, and is ended when that arrives.
    let (sent, ended) = tokio::join!(database.insert(&table, &batch, "walferry test fence"), async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut more = database.batch(&table).unwrap();
        push(&mut more, &[Some("1"), Some("earlier")], 9, Op::Upsert);
        let sent = earlier.send(&mut more).await;
        let finished = earlier.finish().await;
        sent.and(finished)
    });
    sent.unwrap();
    assert_eq!(kind(ended), (ErrorKind::Transient, Reason::DestinationInsertReplaced));
    assert_eq!(rows(&database, &table).await, "1,\"later\"");
    drop_table(&database, &table);
}

#[tokio::test]
async fn columns_are_added_with_the_value_that_old_rows_show() {
    let database = database().await;
    let mut table = fresh(&database, "columns").await;
    database.ensure_table(&table).await.unwrap();
    let mut batch = database.batch(&table).unwrap();
    push(&mut batch, &[Some("1"), Some("old")], 1, Op::Upsert);
    database.insert(&table, &batch, &table.target).await.unwrap();

    let defaults = [
        ("n", SourceType::Int4, "7"),
        ("t", SourceType::TimestampTz, "2020-02-03 04:05:06+00"),
        ("d", SourceType::Date, "1950-01-02"),
        ("s", SourceType::Text, "it's \\ ü"),
        ("a", SourceType::Array(Box::new(SourceType::Text)), "{x,NULL,\"y'\"}"),
        ("m", SourceType::Numeric(Some((10, 3))), "-1.5"),
        ("u", SourceType::Uuid, "00010203-0405-0607-0809-0a0b0c0d0e0f"),
        ("b", SourceType::Bool, "t"),
        ("y", SourceType::Bytea, "\\xff00"),
        ("c", SourceType::Time, "23:59:59.5"),
    ];
    for (name, source_type, value) in &defaults {
        let mut added = column(name, source_type.clone(), *name == "n");
        added.missing_value = Some((*value).to_owned());
        table.columns.push(added);
    }
    let all: Vec<usize> = (2..table.columns.len()).collect();
    database.add_columns(&table, &all).await.unwrap();
    database.add_columns(&table, &all).await.unwrap();
    let sql = format!(
        "SELECT n, t, d, s, a, m, u, b, hex(y), c FROM {} FORMAT JSONCompactEachRow",
        target(&database, &table)
    );
    assert_eq!(
        ask(&database, &sql).await,
        "[7, \"2020-02-03 04:05:06.000000\", \"1950-01-02\", \"it's \\\\ ü\", [\"x\",null,\"y'\"], -1.5, \
         \"00010203-0405-0607-0809-0a0b0c0d0e0f\", true, \"FF00\", \"23:59:59.500000\"]"
    );
    // A dropped column is added again, a wider type is applied, and a type that doesn't fit is refused.
    as_administrator(&format!("ALTER TABLE {} DROP COLUMN v", target(&database, &table)));
    database.ensure_table(&table).await.unwrap();
    table.columns[2].source_type = SourceType::Int8;
    database.ensure_table(&table).await.unwrap();
    let width = format!("SELECT toTypeName(n), n FROM {} FORMAT TabSeparated", target(&database, &table));
    assert_eq!(ask(&database, &width).await, "Nullable(Int64)\t7");
    table.columns[2].source_type = SourceType::Uuid;
    let error = database.ensure_table(&table).await.err().unwrap();
    assert_eq!((error.kind, error.reason), (ErrorKind::Table, Reason::DestinationTableConflict));
    assert!(error.message.contains("Nullable(UUID)"), "{}", error.message);
    drop_table(&database, &table);
}

#[tokio::test]
async fn tables_are_created_as_requested_or_refused() {
    let database = database().await;
    let mut table = fresh(&database, "shape").await;
    table.partition_by = Some("intDiv(id, 10)".to_owned());
    table.ttl = Some("toDateTime(id) + INTERVAL 99 YEAR".to_owned());
    database.ensure_table(&table).await.unwrap();
    // This insert has more partitions than max_partitions_per_insert_block allows by default.
    let mut batch = database.batch(&table).unwrap();
    for row in 0..2000 {
        push(&mut batch, &[Some(&row.to_string()), None], 1, Op::Upsert);
    }
    database.insert(&table, &batch, &table.target).await.unwrap();
    let mut gone = database.batch(&table).unwrap();
    push(&mut gone, &[Some("5"), None], 2, Op::Delete);
    database.insert(&table, &gone, &table.target).await.unwrap();
    let target = target(&database, &table);
    assert_eq!(ask(&database, &format!("SELECT count() FROM {target} FINAL")).await, "1999");

    table.partition_by = Some("v".to_owned());
    assert_eq!(
        kind(database.ensure_table(&table).await),
        (ErrorKind::Table, Reason::DestinationEngineInvalid)
    );
    drop_table(&database, &table);
    table.partition_by = Some("nonsense(".to_owned());
    assert_eq!(
        kind(database.ensure_table(&table).await),
        (ErrorKind::Table, Reason::DestinationStatementRefused)
    );
    table.partition_by = None;
    table.ttl = None;
    table.settings = vec![("no_such_setting".to_owned(), "1".to_owned())];
    assert_eq!(
        kind(database.ensure_table(&table).await),
        (ErrorKind::Table, Reason::DestinationStatementRefused)
    );
    as_administrator(&format!("CREATE TABLE {target} (id Int64) ENGINE = MergeTree ORDER BY id"));
    table.settings.clear();
    assert_eq!(
        kind(database.ensure_table(&table).await),
        (ErrorKind::Table, Reason::DestinationTableConflict)
    );
    drop_table(&database, &table);
    let batch = database.batch(&table).unwrap();
    assert_eq!(
        kind(database.insert(&table, &gone_row(&database, &table), &table.target).await),
        (ErrorKind::Table, Reason::DestinationTableMissing)
    );
    drop(batch);
    assert_eq!(
        kind(database.empty(&table, "empty").await),
        (ErrorKind::Table, Reason::DestinationTableMissing)
    );
}

/// A batch becomes one part, with its rows in their order, however many there are. So half of a batch is
/// never stored alone, and of rows with equal key and version the last one wins.
#[tokio::test]
async fn a_batch_is_one_part() {
    let database = database().await;
    let table = fresh(&database, "one_part").await;
    database.ensure_table(&table).await.unwrap();
    let mut batch = database.batch(&table).unwrap();
    let rows = 1_200_000;
    for row in 0..rows {
        push(
            &mut batch,
            &[Some(&(row % (rows - 1)).to_string()), Some(if row == rows - 1 { "last" } else { "" })],
            7,
            Op::Upsert,
        );
    }
    database.insert(&table, &batch, &table.target).await.unwrap();
    let target = target(&database, &table);
    assert_eq!(
        ask(&database, &format!("SELECT uniqExact(_part), count() FROM {target}")).await,
        format!("1\t{}", rows - 1)
    );
    assert_eq!(ask(&database, &format!("SELECT v FROM {target} FINAL WHERE id = 0")).await, "last");
    drop_table(&database, &table);
}

/// A resync writes newer versions over the existing rows, and then deletes the rows that still have older
/// ones.
#[tokio::test]
async fn older_rows_are_deleted() {
    let database = database().await;
    let table = fresh(&database, "older").await;
    database.ensure_table(&table).await.unwrap();
    assert_eq!(database.newest_version(&table, &table.target).await.unwrap(), Version::ZERO);
    let insert = async |rows: &[(&str, &str, u64, Op)]| {
        let mut batch = database.batch(&table).unwrap();
        for (id, v, version, op) in rows {
            push(&mut batch, &[Some(id), Some(v)], *version, *op);
        }
        database.insert(&table, &batch, &table.target).await.unwrap();
    };
    insert(&[("1", "old", 10, Op::Upsert), ("2", "old", 20, Op::Upsert), ("3", "old", 0, Op::Upsert)]).await;
    insert(&[("4", "gone", 20, Op::Delete), ("5", "gone", 20, Op::Delete)]).await;
    assert_eq!(database.newest_version(&table, &table.target).await.unwrap(), Version::from_number(20));
    // Rows of the copy, and rows that were streamed meanwhile.
    insert(&[("1", "copied", 99, Op::Upsert), ("5", "copied", 99, Op::Upsert)]).await;
    insert(&[("6", "new", 120, Op::Upsert), ("1", "newer", 130, Op::Upsert)]).await;
    for _ in 0..2 {
        database.delete(&table, Rows::All, Version::ZERO..Version::from_number(99), "rest").await.unwrap();
        let rows = format!(
            "SELECT groupArray((id, v)) FROM (SELECT id, v FROM {} FINAL ORDER BY id)",
            target(&database, &table)
        );
        assert_eq!(ask(&database, &rows).await, "[(1,'newer'),(5,'copied'),(6,'new')]");
    }
    // The deletion has a lower version than a later change of the row.
    insert(&[("2", "again", 100, Op::Upsert)]).await;
    let count = format!("SELECT count() FROM {} FINAL", target(&database, &table));
    assert_eq!(ask(&database, &count).await, "4");
    drop_table(&database, &table);
}

fn gone_row(database: &Database, table: &TableSchema) -> <Database as Destination>::Batch {
    let mut batch = database.batch(table).unwrap();
    push(&mut batch, &[Some("5"), None], 2, Op::Delete);
    batch
}

#[tokio::test]
async fn state_is_replaced_and_removed() {
    let database = database().await;
    let mirror = "test-state";
    let rows = async |mirror: &str| database.load_state(mirror, None).await.unwrap().rows;
    let save = async |mirror: &str, rows: &[StateRow], version: u64| {
        database.save_state(mirror, rows, StateVersion(version)).await.unwrap();
    };
    database.drop_state(mirror).await.unwrap();
    assert_eq!(rows(mirror).await, []);
    let newest = database.load_state(mirror, None).await.unwrap().newest;
    let row = |item: &str, value: &str| StateRow { item: item.to_owned(), value: value.to_owned() };
    let first = newest.next_epoch(0).0;
    save(mirror, &[row("a", "{\"n\":1}"), row("b", "[\"it's\\n\"]")], first).await;
    save(mirror, &[row("a", "{\"n\":3}"), row("c", "x")], first + 2).await;
    // A late record with a lower version changes nothing, and neither does one of an earlier epoch.
    save(mirror, &[row("a", "{\"n\":2}"), row("b", "")], first + 1).await;
    save(mirror, &[row("a", ""), row("c", "late")], first - 1).await;
    save("test-other", &[row("a", "{}")], first).await;
    assert_eq!(rows(mirror).await, [row("a", "{\"n\":3}"), row("c", "x")]);
    let found = database.load_state(mirror, Some(&["b", "c"])).await.unwrap();
    assert_eq!((found.rows, found.newest), (vec![row("c", "x")], StateVersion(first + 2)));
    database.drop_state(mirror).await.unwrap();
    assert_eq!(rows(mirror).await, []);
    save(mirror, &[row("a", "late")], first + 3).await;
    assert_eq!(rows(mirror).await, [], "a record that a running process writes after the removal");
    assert_eq!(rows("test-other").await, [row("a", "{}")]);
    database.drop_state("test-other").await.unwrap();
}

#[tokio::test]
async fn faults_have_their_kind() {
    let shared = shared();
    let with = |change: &dyn Fn(&mut ClickHouseEndpoint)| {
        let mut endpoint = endpoint(&shared);
        change(&mut endpoint);
        Database::new(&endpoint, OutOfRange::Clamp).unwrap()
    };
    let wrong = with(&|endpoint| endpoint.password = Password::new("geheim ü"));
    let error = wrong.prepare().await.err().unwrap();
    assert_eq!((error.kind, error.reason), (ErrorKind::Denied, Reason::DestinationAuthenticationFailed));
    assert!(!error.message.contains("geheim"), "{}", error.message);
    let nowhere = with(&|endpoint| endpoint.url = "http://127.0.0.1:1".to_owned());
    assert_eq!(kind(nowhere.prepare().await), (ErrorKind::Transient, Reason::DestinationUnreachable));
    let missing = with(&|endpoint| endpoint.database = "no_such_database".to_owned());
    let (kind, reason) = kind(missing.prepare().await);
    // ClickHouse doesn't reveal whether the database exists to a user without privileges on it.
    assert!(
        matches!(reason, Reason::DestinationDatabaseMissing | Reason::DestinationAccessDenied),
        "{reason}"
    );
    assert_eq!(kind, ErrorKind::Denied);
}

#[tokio::test]
async fn an_error_in_the_middle_of_a_stream_is_reported() {
    let shared = shared();
    let client = Client::new(&endpoint(&shared)).unwrap();
    for rows in ["1000", "3000000"] {
        let sql =
            format!("SELECT throwIf(number = {rows} - 1), number FROM numbers({rows}) FORMAT RowBinary");
        let mut stream = client.query_stream(&sql, &[("max_block_size", "1000")]).await.unwrap();
        let mut bytes = 0;
        let error = loop {
            match stream.next().await {
                Ok(Some(piece)) => bytes += piece.len(),
                Ok(None) => panic!("the end came after {bytes} bytes, without an error"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, Error::Server { code: 395, .. } | Error::Transport { .. }),
            "{rows}: {error}"
        );
    }
}
