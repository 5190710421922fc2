//! Writes commute: what a run sent, sent again in any order, gives the source's rows.
//!
//! The engine's own applier writes into a model of a destination that notes each request. A process is lost
//! on its way, with requests that were never run, and another one goes on from where the slot stands, with
//! other batches. Then everything is run again at random, whole or only one partition of it, wherever it
//! could have been late; and ties between two requests are decided either way.

mod engine;

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use engine::{Engine, Request, Row, Tie};
use proptest::{prelude::*, sample::Index};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    apply::{Applier, Step},
    batch::BatchPool,
    checkpoint::{Checkpoint, Mark},
    fatal::Fatal,
    inserter::{Inserter, insert_semaphore},
    refetch::RowFetcher,
    row::RelationMapping,
    stream_table::TableIndex,
    truncate,
};
use crate::{
    model::{
        BatchSettings, Column, Lsn, Password, Position, PostgresEndpoint, SourceType, Steps, TableId,
        TableKind, TableProgress, TableSchema, TableSpec, TlsSettings, Tuple, Version,
    },
    replication::{
        Destination, DestinationError, Insert, Op, Rows, StateRow, StateRows, StateStore, StateVersion,
        TableBatch, ValueError,
        retry::RetryObserver,
        session::position::Witness,
        table::{
            Table,
            projection::Projection,
            record::{TablePhase, TableRecord},
        },
    },
};

/// What was sent, in the order in which it was; and whether it was run then.
#[derive(Debug, Default)]
struct Wire {
    requests: Vec<(Request, bool)>,
    /// The server is away: whatever is sent may still run, at any time.
    away: bool,
}

impl Wire {
    /// Has the copy's insert not run when it was sent, if a later request deletes what is below a higher
    /// version.
    fn abandon(&mut self, copy: usize, version: Version) {
        let deletes = |(request, _): &(Request, bool)| matches!(request, Request::Delete(versions) if versions.end > version);
        if self.requests[copy..].iter().any(deletes) {
            self.requests[copy].1 = false;
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Model(Arc<Mutex<Wire>>);

impl Model {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap()
    }

    async fn send(&self, request: Option<Request>) -> Result<(), DestinationError> {
        let away = {
            let mut wire = self.wire();
            let away = wire.away;
            wire.requests.extend(request.map(|request| (request, !away)));
            away
        };
        if away { std::future::pending().await } else { Ok(()) }
    }
}

#[derive(Default)]
struct Encoded(Vec<Row>);

impl TableBatch for Encoded {
    fn push(&mut self, tuple: Tuple<'_>, at: Position, op: Op) -> Result<(), ValueError> {
        let text = |index| String::from_utf8_lossy(tuple.bytes(index)).into_owned();
        self.0.push(Row { key: text(0), value: text(1), at, op, removed: false });
        Ok(())
    }

    fn rows(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn take_out_of_range(&mut self) -> Vec<(usize, u64)> {
        Vec::new()
    }
}

struct Unused;

impl Insert for Unused {
    type Batch = Encoded;

    async fn send(&mut self, _: &mut Encoded) -> Result<(), DestinationError> {
        unreachable!("the test copies by itself")
    }

    async fn finish(self) -> Result<(), DestinationError> {
        unreachable!("the test copies by itself")
    }
}

impl Destination for Model {
    type Batch = Encoded;
    type Insert = Unused;

    fn batch(&self, _: &TableSchema) -> Result<Encoded, DestinationError> {
        Ok(Encoded::default())
    }

    async fn prepare(&self) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn ensure_table(&self, _: &TableSchema) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn usable_targets(&self, tables: &[&TableSchema]) -> Result<Vec<bool>, DestinationError> {
        Ok(vec![true; tables.len()])
    }

    async fn add_columns(&self, _: &TableSchema, _: &[usize]) -> Result<Vec<usize>, DestinationError> {
        Ok(Vec::new())
    }

    async fn require_columns(&self, _: &TableSchema) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn insert(&self, _: &TableSchema, batch: &Encoded, _: &str) -> Result<(), DestinationError> {
        self.send(Some(Request::Insert(batch.0.clone()))).await
    }

    async fn open_insert(&self, _: &TableSchema, _: &str) -> Result<Unused, DestinationError> {
        Ok(Unused)
    }

    async fn newest_version(&self, _: &TableSchema, _: &str) -> Result<Version, DestinationError> {
        Ok(Version::ZERO)
    }

    async fn newest_streamed_version(&self, _: &TableSchema, _: &str) -> Result<Version, DestinationError> {
        Ok(Version::ZERO)
    }

    async fn delete(
        &self,
        _: &TableSchema,
        _: Rows,
        versions: Range<Version>,
        _: &str,
    ) -> Result<(), DestinationError> {
        self.send(Some(Request::Delete(versions))).await
    }

    async fn empty(&self, _: &TableSchema, _: &str) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn await_fence(&self, _: &str) -> Result<(), DestinationError> {
        Ok(())
    }

    async fn load_state(&self, _: &str, _: Option<&[&str]>) -> Result<StateRows, DestinationError> {
        Ok(StateRows::default())
    }

    async fn save_state(&self, _: &str, _: &[StateRow], _: StateVersion) -> Result<(), DestinationError> {
        self.send(None).await
    }

    async fn load_items(&self, _: &str) -> Result<Vec<(String, StateRow)>, DestinationError> {
        Ok(Vec::new())
    }

    fn release_statement(&self, _: &str, _: &str) -> String {
        String::new()
    }

    async fn identities(&self, tables: &[&TableSchema]) -> Result<Vec<Option<String>>, DestinationError> {
        Ok(vec![None; tables.len()])
    }

    async fn has_rows(&self, _: &TableSchema) -> Result<bool, DestinationError> {
        Ok(false)
    }

    async fn drop_state(&self, _: &str) -> Result<(), DestinationError> {
        Ok(())
    }
}

/// What an application does, to be made sense of with the rows that are there.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Write(u8),
    Move(u8, u8),
    Delete(u8),
    Truncate,
}

fn wish() -> impl Strategy<Value = Wish> {
    prop_oneof![
        6 => (0_u8..6).prop_map(Wish::Write),
        2 => (0_u8..6, 0_u8..6).prop_map(|(from, to)| Wish::Move(from, to)),
        3 => (0_u8..6).prop_map(Wish::Delete),
        1 => Just(Wish::Truncate),
    ]
}

/// Changes of one transaction, each with how far it is behind the one before in the log.
type Wishes = Vec<(Wish, u32)>;

/// A message of the stream and where it is in the log.
type Message = (Lsn, Vec<u8>);

/// A source that writes down its log.
struct Source {
    keyed: bool,
    rows: BTreeMap<String, String>,
    log: Vec<Message>,
    at: u64,
    writes: u32,
    /// Where each transaction ends in the log, and the rows that are there then.
    states: Vec<(Lsn, BTreeMap<String, String>)>,
}

const OID: u32 = 1;

fn values(letter: u8, key: &str, value: Option<&str>) -> Vec<u8> {
    let mut bytes = vec![letter];
    bytes.extend(2_u16.to_be_bytes());
    for text in [Some(key), value] {
        match text {
            Some(text) => {
                bytes.push(b't');
                bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
                bytes.extend(text.as_bytes());
            }
            None => bytes.push(b'n'),
        }
    }
    bytes
}

impl Source {
    fn new(keyed: bool) -> Source {
        Source { keyed, rows: BTreeMap::new(), log: Vec::new(), at: 1 << 30, writes: 0, states: Vec::new() }
    }

    /// What the stream sends of an old row: its key, or without one all of it.
    fn old(&self, key: &str) -> Vec<u8> {
        if self.keyed { values(b'K', key, None) } else { values(b'O', key, Some(&self.rows[key])) }
    }

    fn change(&mut self, wish: Wish) -> Option<Vec<u8>> {
        self.writes += 1;
        let value = format!("v{}", self.writes);
        let name = |key: u8| format!("k{key}");
        let message = |letter: u8, rest: Vec<u8>| [vec![letter], OID.to_be_bytes().to_vec(), rest].concat();
        Some(match wish {
            Wish::Write(key) if self.rows.contains_key(&name(key)) => {
                let old = if self.keyed { Vec::new() } else { self.old(&name(key)) };
                let new = values(b'N', &name(key), Some(&value));
                self.rows.insert(name(key), value);
                message(b'U', [old, new].concat())
            }
            Wish::Write(key) => {
                let new = values(b'N', &name(key), Some(&value));
                self.rows.insert(name(key), value);
                message(b'I', new)
            }
            Wish::Move(from, to) => {
                if !self.rows.contains_key(&name(from)) || self.rows.contains_key(&name(to)) {
                    return None;
                }
                let old = self.old(&name(from));
                self.rows.remove(&name(from));
                let new = values(b'N', &name(to), Some(&value));
                self.rows.insert(name(to), value);
                message(b'U', [old, new].concat())
            }
            Wish::Delete(key) => {
                self.rows.get(&name(key))?;
                let old = self.old(&name(key));
                self.rows.remove(&name(key));
                message(b'D', old)
            }
            Wish::Truncate => {
                self.rows.clear();
                [b"T".to_vec(), 1_u32.to_be_bytes().to_vec(), vec![0], OID.to_be_bytes().to_vec()].concat()
            }
        })
    }

    fn commit(&mut self, wishes: &Wishes) {
        let mut changes = Vec::new();
        for (wish, bytes) in wishes {
            self.at += u64::from(*bytes) * 8 + 64;
            changes.extend(self.change(*wish).map(|change| (Lsn(self.at), change)));
        }
        let commit = self.at + 64;
        self.at = commit + 64;
        let xid = u32::try_from(self.states.len()).unwrap();
        let (lsn, end) = (commit.to_be_bytes(), (commit + 48).to_be_bytes());
        let begin = [b"B".as_slice(), &lsn, &[0; 8], &xid.to_be_bytes()].concat();
        let ends = [b"C\0".as_slice(), &lsn, &end, &[0; 8]].concat();
        self.log.push((changes.first().map_or(Lsn(commit), |(at, _)| *at), begin));
        self.log.extend(changes);
        self.log.push((Lsn(commit), ends));
        self.states.push((Lsn(commit + 48), self.rows.clone()));
    }

    /// What a slot that stands at `confirmed` sends.
    fn sent_after(&self, confirmed: Lsn) -> Vec<Message> {
        let mut transactions = self.log.split_inclusive(|(_, message)| message[0] == b'C');
        let ends = self.states.iter().map(|(end, _)| *end);
        let left = transactions.by_ref().zip(ends).filter(|(_, end)| *end > confirmed);
        left.flat_map(|(messages, _)| messages.to_vec()).collect()
    }
}

/// One process of the Mirror.
struct Process {
    applier: Applier<Model>,
    table: Arc<Table<Model>>,
    checkpoint: Arc<Checkpoint>,
    abort: CancellationToken,
}

fn schema(keyed: bool) -> TableSchema {
    let columns = ["id", "v"].map(|name| Column::new(name, SourceType::Text)).to_vec();
    let mut schema = TableSchema::new(TableId::new("public", "t"), columns);
    if !keyed {
        schema.kind = TableKind::ChangeLog;
        (schema.key, schema.order_by) = (Vec::new(), Vec::new());
    }
    schema
}

impl Process {
    fn begin(model: &Model, record: TableRecord, confirmed: Lsn) -> Process {
        let store = StateStore::new(model.clone(), "mirror").claimed();
        let table = Arc::new(Table::new(record.clone(), Arc::new(TableProgress::default()), store));
        let endpoint = PostgresEndpoint {
            host: String::new(),
            port: 0,
            database: String::new(),
            username: String::new(),
            password: Password::new(String::new()),
            tls: TlsSettings::default(),
        };
        let (abort, checkpoint) =
            (CancellationToken::new(), Checkpoint::new(Mark { lsn: confirmed, commit: None }));
        let inserter = Arc::new(Inserter {
            destination: model.clone(),
            fetcher: Arc::new(RowFetcher::new(endpoint, String::new())),
            abort: abort.clone(),
            total_bytes: Arc::default(),
            ended: Arc::new(Notify::new()),
            fatal: Fatal::default(),
            fence: "fence".to_owned(),
            observer: RetryObserver::new(Arc::default(), Arc::default(), |_| {}),
            insert_semaphore: insert_semaphore(),
            pool: BatchPool::default(),
        });
        let settings = BatchSettings { max_bytes: 1 << 20, max_delay: std::time::Duration::from_secs(3600) };
        let tables = vec![(Arc::clone(&table), record.spec)];
        let mut applier =
            Applier::new(tables, inserter, Arc::clone(&checkpoint), Witness::default(), settings);
        let projection = Projection { positions: vec![Some(0), Some(1)], identical: true };
        let identity = record.schema.identity;
        applier.set_mapping(
            OID,
            Some(RelationMapping::new(TableIndex::FIRST, Arc::new(record.schema), projection, identity)),
        );
        Process { applier, table, checkpoint, abort }
    }

    /// Applies messages, and begins an insert behind each for which `inserts` says so. Stops where the
    /// destination is away and it has to be waited for.
    async fn apply(&mut self, messages: &[Message], inserts: impl Fn(usize) -> bool) {
        for (number, (at, message)) in messages.iter().enumerate() {
            if let Step::Truncate(tables) = self.applier.apply(*at, message).unwrap() {
                for (index, version) in tables {
                    truncate::begin(&mut self.applier, index, version).await.unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
            if inserts(number) {
                self.applier.try_flush(TableIndex::FIRST);
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    }

    /// Ends as a killed process does, and gives its record and where the slot stands.
    fn killed(self) -> (TableRecord, Lsn) {
        self.abort.cancel();
        (self.table.record(), self.checkpoint.confirmed().lsn)
    }
}

#[derive(Clone, Debug)]
struct Case {
    keyed: bool,
    /// Whether the second process copies the table again.
    copies: bool,
    /// Whether a TRUNCATE ends that copy while its insert is on the way, which is not repeated then.
    abandons: bool,
    transactions: Vec<Wishes>,
    /// How far the first process comes with its destination, and how far without.
    lost: (Index, Index),
    inserts: Vec<bool>,
    /// Which requests run again, where, and what part of them.
    again: Vec<(Index, Index, u8)>,
}

fn case() -> impl Strategy<Value = Case> {
    let far = prop_oneof![3 => 0_u32..20, 1 => Just(9_000_u32), 1 => 0_u32..200_000];
    let transactions = prop::collection::vec(prop::collection::vec((wish(), far), 1..12), 1..8);
    let lost = (any::<Index>(), any::<Index>());
    let again = prop::collection::vec((any::<Index>(), any::<Index>(), 0_u8..3), 0..40);
    let kind = any::<(bool, bool, bool)>();
    (kind, transactions, lost, prop::collection::vec(any::<bool>(), 1..40), again).prop_map(
        |((keyed, copies, abandons), transactions, lost, inserts, again)| Case {
            keyed,
            copies: copies && keyed,
            abandons,
            transactions,
            lost,
            inserts,
            again,
        },
    )
}

/// Runs both processes. Gives the requests, the source's rows, and below which version nothing counts any
/// more.
async fn run(case: &Case) -> (Vec<(Request, bool)>, BTreeMap<String, String>, Version) {
    let mut source = Source::new(case.keyed);
    for wishes in &case.transactions {
        source.commit(wishes);
    }
    let model = Model::default();
    let spec = TableSpec::new(TableId::new("public", "t"));
    let record = TableRecord::new(spec, schema(case.keyed), TablePhase::Streaming);
    let mut first = Process::begin(&model, record, Lsn(1));
    let messages = source.sent_after(Lsn::ZERO);
    let inserts = |number: usize| case.inserts[number % case.inserts.len()];
    let with = case.lost.0.index(messages.len());
    let without = with + case.lost.1.index(messages.len() - with);
    first.apply(&messages[..with], inserts).await;
    model.wire().away = true;
    first.apply(&messages[with..without], inserts).await;
    let (mut record, confirmed) = first.killed();
    let mut copy = 0;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    model.wire().away = false;
    if case.copies {
        // At some position that the source had come to by then, with the rows that it has when they are read.
        let (snapshot_lsn, then) = &source.states[case.lost.1.index(source.states.len())];
        record = TableRecord {
            snapshot_lsn: *snapshot_lsn,
            copy_version: *snapshot_lsn,
            phase: TablePhase::Streaming,
            floor: Version::ZERO,
            ..record
        };
        let read = if case.abandons { then } else { &source.rows };
        let copied = read.iter().map(|(key, value)| Row {
            key: key.clone(),
            value: value.clone(),
            at: Version::copied(*snapshot_lsn).into(),
            op: Op::Upsert,
            removed: false,
        });
        copy = model.wire().requests.len();
        model.send(Some(Request::Insert(copied.collect()))).await.unwrap();
    }
    let mut second = Process::begin(&model, record.clone(), confirmed);
    second.apply(&source.sent_after(confirmed), |number| inserts(number * 7 + 3)).await;
    second.applier.drain().await.unwrap();
    let mut floor = second.table.record().floor;
    if case.copies {
        let older = Version::ZERO..Version::copied(record.snapshot_lsn);
        if case.abandons {
            model.wire().abandon(copy, older.end);
        }
        model.send(Some(Request::Delete(older.clone()))).await.unwrap();
        floor = floor.max(older.end);
    }
    let requests = model.wire().requests.clone();
    (requests, source.rows, floor)
}

/// What a destination shows that ran the requests as they were sent, and some again.
fn replayed(
    case: &Case,
    requests: &[(Request, bool)],
    floor: Version,
    tie: Tie,
) -> BTreeMap<(String, String), i64> {
    let mut late: Vec<Vec<(usize, u8)>> = vec![Vec::new(); requests.len() + 1];
    for (which, place, part) in &case.again {
        if requests.is_empty() {
            break;
        }
        let which = which.index(requests.len());
        late[which + 1 + place.index(requests.len() - which)].push((which, *part));
    }
    let mut engine = Engine::new(case.keyed, tie);
    for (number, again) in late.iter().enumerate() {
        for (which, part) in again {
            // A key is in one partition; an insert that was cut off may have written some of them.
            let partition = |row: &Row| row.key.bytes().last().unwrap_or_default() % 2;
            engine.run(&requests[*which].0, |row| *part == 2 || partition(row) == *part);
        }
        if let Some((request, true)) = requests.get(number) {
            engine.run(request, |_| true);
        }
    }
    if case.copies {
        // What only a process sent that was killed is deleted when the table is looked at again.
        engine.run(&Request::Delete(Version::ZERO..floor), |_| true);
    }
    engine.shown()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn requests_commute(case in case()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (requests, rows, floor) = runtime.block_on(run(&case));
        let expected: BTreeMap<_, _> = rows.into_iter().map(|row| (row, 1)).collect();
        for tie in [Tie::First, Tie::Last] {
            let shown = replayed(&case, &requests, floor, tie);
            prop_assert_eq!(&shown, &expected, "{:?}\n{:#?}", tie, requests);
        }
    }
}

/// The steps of the model's transactions are several, or the test would prove little.
#[test]
fn the_models_transactions_have_steps() {
    let mut source = Source::new(true);
    source.commit(&vec![(Wish::Write(1), 0), (Wish::Write(1), 9_000), (Wish::Write(1), 9_000)]);
    let (end, _) = source.states[0];
    let mut steps = Steps::default();
    let changes = source.log.iter().filter(|(_, message)| matches!(message[0], b'I' | b'U'));
    let versions: Vec<_> = changes.map(|(at, _)| steps.change(Lsn(end.0 - 48), *at)).collect();
    assert!(versions.windows(2).all(|pair| pair[0] < pair[1]), "{versions:?}");
}
