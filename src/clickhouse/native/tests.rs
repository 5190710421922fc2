//! Whole rows through the builder: bytes of blocks, policies, and that both wire forms give the same.

use proptest::prelude::*;

use super::*;
use crate::{
    clickhouse::types::{Features, display, parse, target_type},
    model::{Cell, CellKind, Column as SourceColumn, SourceType, TableId, Version},
};

struct Table {
    columns: Vec<SourceColumn>,
    out_of_range: OutOfRange,
}

impl Table {
    /// A key column `id bigint`, then one of the given type.
    fn with(source_type: SourceType, nullable: bool, type_override: Option<&str>) -> Table {
        let column = |name: &str, source_type, nullable| SourceColumn {
            nullable,
            ..SourceColumn::new(name, source_type)
        };
        let mut value = column("v", source_type, nullable);
        value.type_override = type_override.map(str::to_owned);
        Table { columns: vec![column("id", SourceType::Int8, false), value], out_of_range: OutOfRange::Clamp }
    }

    fn when_out_of_range(self, out_of_range: OutOfRange) -> Table {
        Table { out_of_range, ..self }
    }

    fn builder(&self) -> BlockBuilder {
        let features = Features { time64: true };
        let types: Vec<ChType> = (self.columns.iter().enumerate())
            .map(|(index, column)| target_type(column, features, index == 0).unwrap())
            .collect();
        let schema = TableSchema::new(TableId::new("public", "t"), self.columns.clone());
        BlockBuilder::new(&schema, &types, self.out_of_range).unwrap()
    }
}

fn push(builder: &mut BlockBuilder, kind: CellKind, value: &[u8], op: Op) -> Result<(), ValueError> {
    let mut data = 5_i64.to_be_bytes().to_vec();
    data.extend_from_slice(value);
    let cells =
        [Cell { kind: CellKind::Binary, start: 0, len: 8 }, Cell { kind, start: 8, len: value.len() as u32 }];
    builder.push(Tuple { data: &data, cells: &cells }, Version::from_number(9).into(), op)
}

/// What is stored for one value, as readable text, and how many values were adjusted.
fn stored(table: &Table, kind: CellKind, value: &[u8]) -> Result<(String, u64), ValueError> {
    let mut builder = table.builder();
    push(&mut builder, kind, value, Op::Upsert)?;
    let target = builder.types().nth(1).unwrap().clone();
    let shown = display(&target, builder.to_rows().cell(0, 1));
    Ok((shown, builder.take_out_of_range().first().map_or(0, |(_, count)| *count)))
}

fn text(table: &Table, value: &str) -> (String, u64) {
    stored(table, CellKind::Text, value.as_bytes()).unwrap()
}

#[test]
fn a_block_has_headers_and_columns() {
    let mut builder = Table::with(SourceType::Text, true, None).builder();
    push(&mut builder, CellKind::Text, b"hi", Op::Upsert).unwrap();
    push(&mut builder, CellKind::Null, b"", Op::Delete).unwrap();
    let mut expected = b"\x04\x02\x02id\x05Int64".to_vec();
    expected.extend([5, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend(b"\x01v\x10Nullable(String)\0\x01\x02hi\0");
    expected.extend(b"\x11_walferry_version\x06UInt64");
    expected.extend([9, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend(b"\x11_walferry_deleted\x05UInt8\0\x01");
    assert_eq!(builder.to_block().concat(), expected);
    assert_eq!((builder.rows(), builder.bytes()), (2, 16 + 2 + 4 + 16 + 2));
}

#[test]
fn low_cardinality_and_json_travel_as_strings() {
    for (source, target) in [(SourceType::Enum, None), (SourceType::Jsonb, Some("JSON"))] {
        let mut builder = Table::with(source, false, target).builder();
        push(&mut builder, CellKind::Text, b"{}", Op::Upsert).unwrap();
        let block = builder.to_block().concat();
        assert!(block.windows(11).any(|window| window == b"\x01v\x06String\x02{"));
    }
}

#[test]
fn large_columns_are_shared_and_survive_a_change_of_the_builder() {
    let mut builder = Table::with(SourceType::Text, false, None).builder();
    let long = vec![b'x'; COPIED_PART];
    push(&mut builder, CellKind::Text, &long, Op::Upsert).unwrap();
    let pieces = builder.to_block();
    assert_eq!(pieces.len(), 3);
    let before = pieces.concat();
    push(&mut builder, CellKind::Text, b"more", Op::Upsert).unwrap();
    assert_eq!(pieces.concat(), before);
    builder.clear();
    assert_eq!(pieces.concat(), before);
    assert_eq!((builder.rows(), builder.bytes()), (0, 0));
}

#[test]
fn a_refused_row_leaves_the_batch_as_it_was() {
    let tables = [
        Table::with(SourceType::Array(Box::new(SourceType::Int4)), false, None),
        Table::with(SourceType::Numeric(Some((9, 2))), true, None),
        Table::with(SourceType::Timestamp, true, Some("String")),
    ];
    for (table, good, bad) in tables
        .iter()
        .zip(["{1,NULL,3}", "1.5", "2024-01-01 00:00:00"])
        .zip(["{1,2,x}", "1.x", "x"])
        .map(|((t, g), b)| (t, g, b))
    {
        let mut builder = table.builder();
        push(&mut builder, CellKind::Text, good.as_bytes(), Op::Upsert).unwrap();
        let before = (builder.to_block(), builder.bytes(), builder.rows());
        let kind = if bad == "x" { CellKind::Binary } else { CellKind::Text };
        let error = push(&mut builder, kind, bad.as_bytes(), Op::Upsert).unwrap_err();
        assert!(matches!(error, ValueError::Malformed { column, .. } if column == "v"));
        assert_eq!((builder.to_block(), builder.bytes(), builder.rows()), before);
        push(&mut builder, CellKind::Text, good.as_bytes(), Op::Upsert).unwrap();
        assert_eq!(builder.to_rows().cell(0, 1), builder.to_rows().cell(1, 1));
    }
}

#[test]
fn null_and_unchanged() {
    let mut builder = Table::with(SourceType::Int4, false, None).builder();
    let error = push(&mut builder, CellKind::Null, b"", Op::Upsert).unwrap_err();
    assert!(matches!(error, ValueError::UnexpectedNull { column, target } if column == "v" && target == "t"));
    let error = push(&mut builder, CellKind::Unchanged, b"", Op::Upsert).unwrap_err();
    assert!(matches!(error, ValueError::Unresolved { column } if column == "v"));
    push(&mut builder, CellKind::Null, b"", Op::Delete).unwrap();
    push(&mut builder, CellKind::Unchanged, b"", Op::Delete).unwrap();
    assert_eq!(builder.to_rows().cell(1, 1), [0; 4]);
    assert!(builder.take_out_of_range().is_empty());
}

#[test]
fn policies_for_values_that_do_not_fit() {
    let dates = |nullable| Table::with(SourceType::Date, nullable, None);
    assert_eq!(text(&dates(true), "infinity"), ("2299-12-31".to_owned(), 1));
    assert_eq!(text(&dates(true), "0044-03-15 BC"), ("1900-01-01".to_owned(), 1));
    let null = dates(true).when_out_of_range(OutOfRange::Null);
    assert_eq!(text(&null, "-infinity"), ("NULL".to_owned(), 1));
    let not_null = dates(false).when_out_of_range(OutOfRange::Null);
    assert_eq!(text(&not_null, "-infinity"), ("1900-01-01".to_owned(), 1));
    let fail = dates(true).when_out_of_range(OutOfRange::Fail);
    let error = stored(&fail, CellKind::Text, b"infinity").unwrap_err();
    assert_eq!(error.to_string(), "column v: a value does not fit Nullable(Date32) and outOfRange is Fail");
    assert_eq!(text(&fail, "2024-02-29"), ("2024-02-29".to_owned(), 0));
}

#[test]
fn key_values_are_never_adjusted() {
    let mut table = Table::with(SourceType::Text, true, None);
    table.columns[0].source_type = SourceType::Date;
    let mut builder = table.builder();
    let cells =
        [Cell { kind: CellKind::Text, start: 0, len: 8 }, Cell { kind: CellKind::Null, start: 0, len: 0 }];
    let error = builder
        .push(Tuple { data: b"infinity", cells: &cells }, Version::ZERO.into(), Op::Upsert)
        .unwrap_err();
    assert!(matches!(error, ValueError::OutOfRange { column, .. } if column == "id"));
}

#[test]
fn arrays() {
    let integers = || Table::with(SourceType::Array(Box::new(SourceType::Int2)), true, None);
    assert_eq!(text(&integers(), "{1,NULL,-3}"), ("[1, NULL, -3]".to_owned(), 0));
    assert_eq!(text(&integers(), "[5:6]={1,2}"), ("[1, 2]".to_owned(), 0));
    assert_eq!(text(&integers(), "{{1,2},{3,4}}"), ("[1, 2, 3, 4]".to_owned(), 1));
    assert_eq!(stored(&integers(), CellKind::Null, b"").unwrap(), ("[]".to_owned(), 1));
    let fail = integers().when_out_of_range(OutOfRange::Fail);
    assert!(stored(&fail, CellKind::Null, b"").is_err());
    assert!(stored(&fail, CellKind::Text, b"{{1}}").is_err());
    let dates = Table::with(SourceType::Array(Box::new(SourceType::Date)), false, None);
    assert_eq!(text(&dates, "{infinity,2024-01-01}"), ("[2299-12-31, 2024-01-01]".to_owned(), 1));
    let null = dates.when_out_of_range(OutOfRange::Null);
    assert_eq!(text(&null, "{infinity,2024-01-01}"), ("[NULL, 2024-01-01]".to_owned(), 1));
    let plain = Table::with(SourceType::Array(Box::new(SourceType::Int2)), false, Some("Array(Int64)"));
    assert_eq!(text(&plain, "{1,NULL}"), ("[1, 0]".to_owned(), 1));
    let vector = Table::with(SourceType::Vector, false, None);
    assert_eq!(text(&vector, "[1,-2.5]"), ("[1, -2.5]".to_owned(), 0));
    assert_eq!(
        stored(&vector, CellKind::Binary, b"\0\x02\0\0\x3F\x80\0\0\xC0\x20\0\0").unwrap(),
        ("[1, -2.5]".to_owned(), 0)
    );
    let as_text = Table::with(SourceType::Vector, false, Some("String"));
    assert_eq!(
        stored(&as_text, CellKind::Binary, b"\0\x02\0\0\x3F\x80\0\0\xC0\x20\0\0").unwrap(),
        ("[1,-2.5]".to_owned(), 0)
    );
}

#[test]
fn numerics_round_half_away_from_zero_and_clamp() {
    let decimal = |target| Table::with(SourceType::Numeric(None), true, Some(target));
    for (target, value, shown, adjusted) in [
        ("Decimal(9, 2)", "1.5", "1.50", 0),
        ("Decimal(9, 2)", "-1.005", "-1.01", 1),
        ("Decimal(9, 2)", "1.00499999", "1.00", 1),
        ("Decimal(9, 2)", "99999999.994", "9999999.99", 1),
        ("Decimal(9, 2)", "9999999.995", "9999999.99", 1),
        ("Decimal(9, 2)", "1.5000000", "1.50", 0),
        ("Decimal(9, 0)", "0.5", "1", 1),
        ("Decimal(9, 0)", "-0.4", "0", 1),
        ("Decimal(9, 2)", "NaN", "0.00", 1),
        ("Decimal(9, 2)", "-Infinity", "-9999999.99", 1),
        (
            "Decimal(38, 10)",
            "-9999999999999999999999999999.9999999999",
            "-9999999999999999999999999999.9999999999",
            0,
        ),
        ("Decimal(76, 0)", "1e", "", 0),
        ("UInt8", "256", "255", 1),
        ("UInt8", "-1", "0", 1),
        ("Int8", "-128", "-128", 0),
        (
            "Int256",
            "-99999999999999999999999999999999999999999999999999999999999999999999999999999",
            "-57896044618658097711785492504343953926634992332820282019728792003956564819968",
            1,
        ),
        ("Float32", "1e", "", 0),
        ("Float64", "0.1", "0.1", 0),
        ("Float64", "Infinity", "inf", 0),
    ] {
        match stored(&decimal(target), CellKind::Text, value.as_bytes()) {
            Ok(stored) => assert_eq!(stored, (shown.to_owned(), adjusted), "{target} {value}"),
            Err(_) => assert_eq!(shown, "", "{target} {value}"),
        }
    }
}

#[test]
fn times_round_as_postgres_does() {
    for (source, target, value, shown, adjusted) in [
        (
            SourceType::Timestamp,
            "DateTime64(3, 'UTC')",
            "2024-01-01 00:00:00.0005",
            "2024-01-01 00:00:00.001",
            1,
        ),
        (
            SourceType::Timestamp,
            "DateTime64(3, 'UTC')",
            "1999-12-31 23:59:59.9995",
            "1999-12-31 23:59:59.999",
            1,
        ),
        (SourceType::TimestampTz, "DateTime", "2106-02-07 06:28:15+00", "2106-02-07 06:28:15", 0),
        (SourceType::TimestampTz, "DateTime", "2106-02-07 06:28:16+00", "2106-02-07 06:28:15", 1),
        (
            SourceType::TimestampTz,
            "DateTime64(9, 'UTC')",
            "2262-04-11 23:47:16.854775+00",
            "2262-04-11 23:47:16.854775000",
            0,
        ),
        (
            SourceType::TimestampTz,
            "DateTime64(9, 'UTC')",
            "2262-04-11 23:47:17+00",
            "2262-04-11 23:47:16.854775807",
            1,
        ),
        (
            SourceType::TimestampTz,
            "DateTime64(6, 'UTC')",
            "1900-01-01 00:00:00+00",
            "1900-01-01 00:00:00.000000",
            0,
        ),
        (
            SourceType::TimestampTz,
            "DateTime64(6, 'UTC')",
            "1899-12-31 23:59:59.999999+00",
            "1900-01-01 00:00:00.000000",
            1,
        ),
        (SourceType::Time, "Time64(6)", "24:00:00", "24:00:00.000000", 0),
        (SourceType::Time, "Time64(0)", "23:59:59.5", "24:00:00", 1),
    ] {
        let table = Table::with(source, true, Some(target));
        assert_eq!(text(&table, value), (shown.to_owned(), adjusted), "{target} {value}");
    }
    let zoned = Table::with(SourceType::TimestampTz, true, None);
    assert!(stored(&zoned, CellKind::Text, b"2024-01-01 00:00:00+02").is_err());
    assert!(stored(&zoned, CellKind::Text, b"2024-01-01 00:00:00").is_err());
}

#[test]
fn json_objects_bytes_and_addresses() {
    let json = Table::with(SourceType::Jsonb, true, Some("JSON"));
    assert_eq!(stored(&json, CellKind::Binary, b"\x01{\"a\": 1}").unwrap(), ("{\"a\": 1}".to_owned(), 0));
    assert_eq!(stored(&json, CellKind::Binary, b"\x01[1]").unwrap(), ("{}".to_owned(), 1));
    assert!(stored(&json, CellKind::Binary, b"\x02{}").is_err());
    let bytea = Table::with(SourceType::Bytea, false, None);
    assert_eq!(text(&bytea, "\\x6869").0, "hi");
    assert!(stored(&bytea, CellKind::Text, b"\\x686").is_err());
    assert!(stored(&bytea, CellKind::Text, b"hi").is_err());
    let address = |target| {
        let mut table = Table::with(SourceType::Other, false, Some(target));
        table.columns[1].type_name = "inet".to_owned();
        table
    };
    assert_eq!(text(&address("IPv4"), "10.1.2.3"), ("10.1.2.3".to_owned(), 0));
    assert_eq!(text(&address("IPv4"), "10.1.2.3/8"), ("10.1.2.3".to_owned(), 1));
    assert_eq!(text(&address("IPv4"), "::1"), ("0.0.0.0".to_owned(), 1));
    assert_eq!(text(&address("IPv6"), "10.1.2.3/32"), ("::ffff:10.1.2.3".to_owned(), 0));
    assert_eq!(text(&address("IPv6"), "fe80::1"), ("fe80::1".to_owned(), 0));
}

#[test]
fn long_text_forms_have_long_lengths() {
    let table = Table::with(SourceType::Bytea, false, None);
    let array = Table::with(SourceType::Array(Box::new(SourceType::Bytea)), false, Some("String"));
    for len in [0, 60, 63, 64, 8190, 8191, 20_000] {
        let bytes = vec![0xAB; len];
        assert_eq!(stored(&table, CellKind::Binary, &bytes).unwrap().0.chars().count(), len);
        let mut binary = 1_u32.to_be_bytes().to_vec();
        binary.extend([0; 8]);
        binary.extend(1_u32.to_be_bytes());
        binary.extend(1_u32.to_be_bytes());
        binary.extend((len as u32).to_be_bytes());
        binary.extend(&bytes);
        let expected = format!("{{\"\\\\x{}\"}}", "ab".repeat(len));
        assert_eq!(stored(&array, CellKind::Binary, &binary).unwrap().0, expected);
    }
}

#[test]
fn rows_are_parsed_as_they_are_written() {
    let mut builder = Table::with(SourceType::Array(Box::new(SourceType::Text)), false, None).builder();
    for value in ["{a,NULL}", "{}", "{\"\"}"] {
        push(&mut builder, CellKind::Text, value.as_bytes(), Op::Upsert).unwrap();
    }
    let rows = builder.to_rows();
    let mut body: Vec<u8> = Vec::new();
    for row in 0..rows.len() {
        body.extend_from_slice(rows.cell(row, 0));
        body.extend_from_slice(rows.cell(row, 1));
    }
    let types: Vec<ChType> = builder.types().cloned().collect();
    assert_eq!(Rows::parse(&types, &body), Ok((rows.clone(), body.len())));
    let cut = body.len() - 1;
    let (whole, taken) = Rows::parse(&types, &body[..cut]).unwrap();
    assert_eq!((whole.len(), taken), (2, body.len() - 8 - rows.cell(2, 1).len()));
    assert_eq!(rows.cell(3, 0), b"");
    assert_eq!(rows.cell(0, 2), b"");
}

/// `numeric_send` of a sign, digits before and after the point.
fn numeric_bytes(negative: bool, whole: &str, fraction: &str) -> Vec<u8> {
    let whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let padded = format!("{whole}{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let mut groups: Vec<u16> =
        padded.as_bytes().chunks(4).map(|group| str::from_utf8(group).unwrap().parse().unwrap()).collect();
    let mut weight = (whole.len() / 4) as i16 - 1;
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    while groups.last() == Some(&0) {
        groups.pop();
    }
    let zero = groups.is_empty();
    let mut bytes = (groups.len() as u16).to_be_bytes().to_vec();
    bytes.extend((if zero { 0 } else { weight }).to_be_bytes());
    bytes.extend((if negative && !zero { 0x4000_u16 } else { 0 }).to_be_bytes());
    bytes.extend((fraction.len() as u16).to_be_bytes());
    bytes.extend(groups.iter().flat_map(|group| group.to_be_bytes()));
    bytes
}

fn same(table: &Table, binary: &[u8], text: &str) {
    let from_binary = stored(table, CellKind::Binary, binary).unwrap();
    assert_eq!(from_binary, stored(table, CellKind::Text, text.as_bytes()).unwrap(), "{text}");
}

fn any_source() -> impl Strategy<Value = SourceType> {
    let scalar = prop::sample::select(vec![
        SourceType::Bool,
        SourceType::Int2,
        SourceType::Int8,
        SourceType::Oid,
        SourceType::Float4,
        SourceType::Float8,
        SourceType::Numeric(None),
        SourceType::Numeric(Some((12, 2))),
        SourceType::Text,
        SourceType::Bytea,
        SourceType::Uuid,
        SourceType::Date,
        SourceType::Timestamp,
        SourceType::TimestampTz,
        SourceType::Time,
        SourceType::Jsonb,
        SourceType::Enum,
        SourceType::Vector,
        SourceType::Other,
    ]);
    (scalar, any::<bool>()).prop_map(|(scalar, array)| match array {
        true => SourceType::Array(Box::new(scalar)),
        false => scalar,
    })
}

proptest! {
    #[test]
    fn integers_and_floats_are_the_same_from_both_forms(integer: i64, double: f64, single: f32) {
        for target in [None, Some("String"), Some("Int16"), Some("UInt256"), Some("Decimal(20, 3)"), Some("Float32")] {
            let table = Table::with(SourceType::Int8, true, target);
            same(&table, &integer.to_be_bytes(), &integer.to_string());
        }
        let table = |source, target| Table::with(source, true, target);
        for target in [None, Some("Float32")] {
            same(&table(SourceType::Float8, target), &double.to_be_bytes(), &double.to_string());
        }
        same(&table(SourceType::Float4, Some("Float64")), &single.to_be_bytes(), &single.to_string());
        let rendered = stored(&table(SourceType::Float8, Some("String")), CellKind::Binary, &double.to_be_bytes());
        prop_assert_eq!(rendered.unwrap().0.parse::<f64>().unwrap().to_bits(), double.to_bits());
    }

    #[test]
    fn numerics_are_the_same_from_both_forms(
        negative: bool,
        whole in "0|[1-9][0-9]{0,45}",
        fraction in "[0-9]{0,45}",
    ) {
        let zero = whole == "0" && fraction.bytes().all(|digit| digit == b'0');
        let sign = if negative && !zero { "-" } else { "" };
        let point = if fraction.is_empty() { "" } else { "." };
        let text = format!("{sign}{whole}{point}{fraction}");
        let binary = numeric_bytes(negative, &whole, &fraction);
        let string = Table::with(SourceType::Numeric(None), true, None);
        prop_assert_eq!(stored(&string, CellKind::Binary, &binary).unwrap(), (text.clone(), 0));
        for target in [
            "Decimal(9, 2)", "Decimal(18, 17)", "Decimal(38, 5)", "Decimal(76, 40)", "Int8", "UInt64", "Int128", "UInt256",
            "Float64", "Float32",
        ] {
            same(&Table::with(SourceType::Numeric(None), true, Some(target)), &binary, &text);
        }
    }

    #[test]
    fn a_text_form_reads_back_as_its_binary_form(
        days in -2_451_545..2_145_031_949_i32,
        micros in -211_813_488_000_000_000..9_223_371_331_200_000_000_i64,
        clock in 0..=86_400_000_000_i64,
        uuid: [u8; 16],
        bytes: Vec<u8>,
    ) {
        for (source, binary) in [
            (SourceType::Date, days.to_be_bytes().to_vec()),
            (SourceType::Timestamp, micros.to_be_bytes().to_vec()),
            (SourceType::TimestampTz, micros.to_be_bytes().to_vec()),
            (SourceType::Time, clock.to_be_bytes().to_vec()),
            (SourceType::Uuid, uuid.to_vec()),
        ] {
            let as_text = Table::with(source.clone(), true, Some("String"));
            let (text, _) = stored(&as_text, CellKind::Binary, &binary).unwrap();
            same(&Table::with(source, true, None), &binary, &text);
        }
        let mut shown = Vec::new();
        string::render_hex(&bytes, &mut shown).unwrap();
        let hex = String::from_utf8(shown).unwrap();
        same(&Table::with(SourceType::Bytea, true, None), &bytes, &hex);
    }

    #[test]
    fn arrays_are_the_same_from_both_forms(elements: Vec<Option<String>>) {
        let mut binary = u32::from(!elements.is_empty()).to_be_bytes().to_vec();
        binary.extend([0; 8]);
        if !elements.is_empty() {
            binary.extend((elements.len() as u32).to_be_bytes());
            binary.extend(1_u32.to_be_bytes());
        }
        for element in &elements {
            let len = element.as_ref().map_or(-1, |text| text.len() as i32);
            binary.extend(len.to_be_bytes());
            binary.extend(element.iter().flat_map(|text| text.bytes()));
        }
        let source = SourceType::Array(Box::new(SourceType::Text));
        let as_text = Table::with(source.clone(), true, Some("String"));
        let (text, _) = stored(&as_text, CellKind::Binary, &binary).unwrap();
        same(&Table::with(source, true, None), &binary, &text);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_leave_whole_blocks(
        source in any_source(),
        target in prop::option::of(prop::sample::select(vec![
            "String", "Int8", "UInt256", "Decimal(38, 9)", "Float32", "Date", "DateTime", "DateTime64(9)", "Time64(2)",
            "JSON", "Array(Nullable(String))", "Array(Int16)", "Array(Float32)",
        ])),
        rows: Vec<(bool, Vec<u8>)>,
    ) {
        let table = Table::with(source, true, target);
        let possible = target_type(&table.columns[1], Features { time64: true }, false).is_ok();
        if possible {
            let mut builder = table.builder();
            for (binary, bytes) in &rows {
                let kind = if *binary { CellKind::Binary } else { CellKind::Text };
                let before = (builder.rows(), builder.bytes());
                if push(&mut builder, kind, bytes, Op::Upsert).is_err() {
                    prop_assert_eq!((builder.rows(), builder.bytes()), before);
                }
            }
            let read = builder.to_rows();
            prop_assert_eq!(read.len(), builder.rows());
            for row in 0..read.len() {
                prop_assert_eq!(read.cell(row, 0), 5_i64.to_le_bytes());
                let value_type = builder.types().nth(1).unwrap();
                let cell = read.cell(row, 1);
                prop_assert_eq!(value_type.row_binary_len(cell), Ok(Some(cell.len())));
                display(value_type, cell);
            }
        }
    }

    #[test]
    fn arbitrary_row_binary_never_panics(bytes: Vec<u8>, name in prop::sample::select(vec![
        "String", "Nullable(Int8)", "Array(Nullable(String))", "Array(UUID)", "Decimal(76, 5)", "DateTime64(9)", "Time64(6)", "IPv6",
    ])) {
        let value_type = parse(name).unwrap();
        display(&value_type, &bytes);
        let _ = value_type.compare(&bytes, &bytes);
        if let Ok((rows, taken)) = Rows::parse(std::slice::from_ref(&value_type), &bytes) {
            prop_assert!(taken <= bytes.len());
            prop_assert_eq!(rows.is_empty(), taken == 0);
        }
    }
}
