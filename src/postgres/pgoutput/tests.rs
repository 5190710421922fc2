//! The bytes are what PostgreSQL 18.4 sends for a table `item (id int PRIMARY KEY, name varchar(20), price
//! numeric(12,2), doc text)` and a table `full_item (id int PRIMARY KEY, name text)` with REPLICA IDENTITY
//! FULL.

use proptest::prelude::*;

use super::*;

const BEGIN: &str = "4200000000017dc938000303c422b8a18c00000301";
const COMMIT: &str = "430000000000017dc93800000000017dc968000303c422b8a18c";
const ORIGIN: &str = "4f000000000000aabb6f726700";
const TYPE: &str = "59000040217075626c6963006d6f6f6400";
const RELATION: &str = "52000040047075626c6963006974656d006400040169640000000017ffffffff006e616d65000000041300\
                        00001800707269636500000006a4000c000600646f630000000019ffffffff";
const FULL_RELATION: &str =
    "520000400c7075626c69630066756c6c5f6974656d006600020169640000000017ffffffff016e616d650000000019ffffffff";
/// VALUES (2, NULL, NULL, '')
const INSERT_BINARY: &str = "49000040044e00046200000004000000026e6e6200000000";
const INSERT_TEXT: &str = "49000040044e00047400000001326e6e7400000000";
/// SET name = 'uno', with price 12.50 and a doc in TOAST
const UPDATE_BINARY: &str =
    "55000040044e00046200000004000000016200000003756e6f620000000c0002000000000002000c138875";
const UPDATE_TEXT: &str = "55000040044e00047400000001317400000003756e6f740000000531322e353075";
/// SET id = 3 WHERE id = 2
const UPDATE_KEY: &str = "55000040044b00046200000004000000026e6e6e4e00046200000004000000036e6e6200000000";
/// SET name = NULL, of (7, 'a')
const UPDATE_FULL: &str = "550000400c4f00026200000004000000076200000001614e00026200000004000000076e";
const DELETE_KEY: &str = "44000040044b00046200000004000000036e6e6e";
const DELETE_FULL: &str = "440000400c4f00027400000001376e";
const TRUNCATE: &str = "540000000203000040040000400c";
/// The rows of COPY (SELECT 5::int8, 'añ'::text, NULL::int, true)
const COPY_ROW: &str = "00040000000800000000000000050000000361c3b1ffffffff0000000101";

const ALL: [&str; 16] = [
    BEGIN,
    COMMIT,
    ORIGIN,
    TYPE,
    RELATION,
    FULL_RELATION,
    INSERT_BINARY,
    INSERT_TEXT,
    UPDATE_BINARY,
    UPDATE_TEXT,
    UPDATE_KEY,
    UPDATE_FULL,
    DELETE_KEY,
    DELETE_FULL,
    TRUNCATE,
    "4d00000000000000000061000000000162",
];

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<_> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// A cell with its bytes.
type Value = (CellKind, Vec<u8>);

fn values(data: &[u8], cells: &[Cell]) -> Vec<Value> {
    let tuple = crate::model::Tuple { data, cells };
    (0..cells.len()).map(|index| (cells[index].kind, tuple.bytes(index).to_vec())).collect()
}

fn decoded(hex: &str) -> (Message, Vec<Value>, Vec<Value>) {
    let data = bytes(hex);
    // What is left of an earlier message must not show.
    let stale = Cell { kind: CellKind::Text, start: 0, len: 1 };
    let (mut old, mut new) = (vec![stale], vec![stale]);
    let message = decode(&data, &mut old, &mut new).unwrap();
    (message, values(&data, &old), values(&data, &new))
}

fn binary(bytes: impl AsRef<[u8]>) -> Value {
    (CellKind::Binary, bytes.as_ref().to_vec())
}

fn text(text: &str) -> Value {
    (CellKind::Text, text.as_bytes().to_vec())
}

fn null() -> Value {
    (CellKind::Null, vec![])
}

const ITEM: u32 = 0x4004;
const FULL_ITEM: u32 = 0x400c;

#[test]
fn reads_transactions() {
    let commit_time = 0x0003_03c4_22b8_a18c;
    let begin = Message::Begin { final_lsn: Lsn(0x017d_c938), commit_time, xid: 0x301 };
    assert_eq!(decoded(BEGIN), (begin, vec![], vec![]));
    let commit = Message::Commit { commit_lsn: Lsn(0x017d_c938), end_lsn: Lsn(0x017d_c968), commit_time };
    assert_eq!(decoded(COMMIT), (commit, vec![], vec![]));
    assert_eq!(decoded(ORIGIN).0, Message::Origin);
    assert_eq!(decoded(TYPE).0, Message::Type);
    assert_eq!(decoded(ALL[15]).0, Message::Logical);
}

#[test]
fn reads_relations() {
    let column = |name: &str, type_oid, type_modifier, key| RelationColumn {
        name: name.into(),
        type_oid,
        type_modifier,
        key,
    };
    let item = Relation {
        oid: ITEM,
        table: TableId::new("public", "item"),
        identity: IdentityKind::Default,
        columns: vec![
            column("id", 23, -1, true),
            column("name", 1043, 24, false),
            column("price", 1700, 0x000c_0006, false),
            column("doc", 25, -1, false),
        ],
    };
    assert_eq!(decoded(RELATION).0, Message::Relation(item));
    let full_item = Relation {
        oid: FULL_ITEM,
        table: TableId::new("public", "full_item"),
        identity: IdentityKind::Full,
        columns: vec![column("id", 23, -1, true), column("name", 25, -1, true)],
    };
    assert_eq!(decoded(FULL_RELATION).0, Message::Relation(full_item));
}

#[test]
fn reads_inserts() {
    let insert = Message::Insert { relation: ITEM };
    let row = vec![binary([0, 0, 0, 2]), null(), null(), binary([])];
    assert_eq!(decoded(INSERT_BINARY), (insert.clone(), vec![], row));
    assert_eq!(decoded(INSERT_TEXT), (insert, vec![], vec![text("2"), null(), null(), text("")]));
}

#[test]
fn reads_updates() {
    let update = |relation, old| Message::Update { relation, old };
    let unchanged = (CellKind::Unchanged, vec![]);
    let price = [0, 2, 0, 0, 0, 0, 0, 2, 0, 12, 0x13, 0x88];
    let row = vec![binary([0, 0, 0, 1]), binary("uno"), binary(price), unchanged.clone()];
    assert_eq!(decoded(UPDATE_BINARY), (update(ITEM, OldTuple::None), vec![], row));
    let row = vec![text("1"), text("uno"), text("12.50"), unchanged];
    assert_eq!(decoded(UPDATE_TEXT), (update(ITEM, OldTuple::None), vec![], row));
    let old = vec![binary([0, 0, 0, 2]), null(), null(), null()];
    let new = vec![binary([0, 0, 0, 3]), null(), null(), binary([])];
    assert_eq!(decoded(UPDATE_KEY), (update(ITEM, OldTuple::Key), old, new));
    let (old, new) = (vec![binary([0, 0, 0, 7]), binary("a")], vec![binary([0, 0, 0, 7]), null()]);
    assert_eq!(decoded(UPDATE_FULL), (update(FULL_ITEM, OldTuple::Full), old, new));
}

#[test]
fn reads_deletes_and_truncates() {
    let delete = Message::Delete { relation: ITEM, old: OldTuple::Key };
    assert_eq!(decoded(DELETE_KEY), (delete, vec![binary([0, 0, 0, 3]), null(), null(), null()], vec![]));
    let delete = Message::Delete { relation: FULL_ITEM, old: OldTuple::Full };
    assert_eq!(decoded(DELETE_FULL), (delete, vec![text("7"), null()], vec![]));
    let relations = vec![ITEM, FULL_ITEM];
    let truncate = Message::Truncate { relations, cascade: true, restart_identity: true };
    assert_eq!(decoded(TRUNCATE), (truncate, vec![], vec![]));
}

#[test]
fn refuses_what_is_cut_off_or_too_long() {
    for hex in ALL {
        let data = bytes(hex);
        let (mut old, mut new) = (vec![], vec![]);
        // The last three are known by their first letter alone.
        if !matches!(data[0], b'O' | b'Y' | b'M') {
            for cut in 0..data.len() {
                assert!(decode(&data[..cut], &mut old, &mut new).is_err(), "{hex} cut at {cut}");
            }
            let long = [data.as_slice(), &[0]].concat();
            assert_eq!(decode(&long, &mut old, &mut new), Err(DecodeError::TrailingBytes(1)), "{hex}");
        }
    }
    let (mut old, mut new) = (vec![], vec![]);
    assert_eq!(decode(b"S", &mut old, &mut new), Err(DecodeError::UnknownMessage(b'S')));
}

#[test]
fn reads_copy_rows() {
    let row = bytes(COPY_ROW);
    let kinds = [CellKind::Binary, CellKind::Text, CellKind::Binary, CellKind::Binary];
    let mut cells = vec![];
    decode_copy_row(&row, &kinds, &mut cells).unwrap();
    let expected = [binary([0, 0, 0, 0, 0, 0, 0, 5]), text("añ"), null(), binary([1])];
    assert_eq!(values(&row, &cells), expected);
    assert_eq!(
        decode_copy_row(&row, &kinds[1..], &mut cells),
        Err(DecodeError::ColumnCount { expected: 3, found: 4 })
    );
    for cut in 0..row.len() {
        assert!(decode_copy_row(&row[..cut], &kinds, &mut cells).is_err(), "cut at {cut}");
    }
}

fn within(data: &[u8], cells: &[Cell]) -> bool {
    cells.iter().all(|cell| cell.start as usize + cell.len as usize <= data.len())
}

proptest! {
    #[test]
    fn arbitrary_messages_never_panic(data in proptest::collection::vec(any::<u8>(), 0..128)) {
        let (mut old, mut new) = (vec![], vec![]);
        let _ = decode(&data, &mut old, &mut new);
        prop_assert!(within(&data, &old) && within(&data, &new));
    }

    #[test]
    fn damaged_messages_never_panic(
        which in 0..ALL.len(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut data = bytes(ALL[which]);
        for (place, byte) in damage {
            let place = place.index(data.len());
            data[place] = byte;
        }
        let (mut old, mut new) = (vec![], vec![]);
        let _ = decode(&data, &mut old, &mut new);
        prop_assert!(within(&data, &old) && within(&data, &new));
    }

    #[test]
    fn arbitrary_copy_rows_never_panic(
        count in 0_u8..6,
        data in proptest::collection::vec(prop_oneof![Just(0_u8), any::<u8>()], 0..64),
    ) {
        let row = [&[0, count], data.as_slice()].concat();
        let mut cells = vec![];
        let _ = decode_copy_row(&row, &vec![CellKind::Binary; usize::from(count)], &mut cells);
        prop_assert!(within(&row, &cells));
        let _ = decode_copy_row(&data, &[CellKind::Text], &mut cells);
    }

    #[test]
    fn copy_rows_come_back(row in proptest::collection::vec(
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)), 0..10,
    )) {
        let mut data = (row.len() as u16).to_be_bytes().to_vec();
        for value in &row {
            data.extend(value.as_ref().map_or(-1, |value| value.len() as i32).to_be_bytes());
            data.extend(value.iter().flatten());
        }
        let mut cells = vec![];
        decode_copy_row(&data, &vec![CellKind::Text; row.len()], &mut cells).unwrap();
        let expected: Vec<_> =
            row.into_iter().map(|value| value.map_or(null(), |value| (CellKind::Text, value))).collect();
        prop_assert_eq!(values(&data, &cells), expected);
    }
}
