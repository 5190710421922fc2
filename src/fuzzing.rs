//! What `cargo fuzz` (`fuzz/`) feeds arbitrary bytes to: each function here decodes them as one thing that
//! comes from outside, and panics when its decoder breaks a promise. The tests run the committed inputs
//! through the same functions.

use crate::{
    cli::load,
    clickhouse::{
        native::{BlockBuilder, Rows},
        types::{ChType, Features, display, parse, target_type},
    },
    model::{Cell, CellKind, Column, OutOfRange, Position, SourceType, TableId, TableSchema, Tuple},
    postgres::{pgoutput, wire::fuzzing::assert_within},
    replication::{Op, TableBatch},
};

pub use crate::postgres::wire::fuzzing::{answers, stream};

/// A message of the `pgoutput` plugin.
pub fn pgoutput(data: &[u8]) {
    let (mut old, mut new) = (Vec::new(), Vec::new());
    if pgoutput::decode(data, &mut old, &mut new).is_ok() {
        assert_within(data, &old);
        assert_within(data, &new);
    }
}

/// A row of a binary COPY. The first byte is the number of columns.
pub fn copy(data: &[u8]) {
    let Some((&columns, row)) = data.split_first() else { return };
    let kinds = vec![CellKind::Binary; columns.into()];
    let mut cells = Vec::new();
    if pgoutput::decode_copy_row(row, &kinds, &mut cells).is_ok() {
        assert_eq!(cells.len(), kinds.len());
        assert_within(row, &cells);
    }
}

/// Types that columns are overridden with; the first byte of [`values`] picks one, or none.
const OVERRIDES: [&str; 40] = [
    "Bool",
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "Int128",
    "Int256",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "UInt128",
    "UInt256",
    "Float32",
    "Float64",
    "Decimal(9, 2)",
    "Decimal(18, 18)",
    "Decimal(38, 10)",
    "Decimal(76, 0)",
    "Decimal(76, 76)",
    "String",
    "LowCardinality(String)",
    "UUID",
    "Date",
    "Date32",
    "DateTime",
    "DateTime64(0)",
    "DateTime64(9)",
    "Time64(0)",
    "Time64(9)",
    "IPv4",
    "IPv6",
    "JSON",
    "Array(String)",
    "Array(Int8)",
    "Array(Float64)",
    "Array(Nullable(Int64))",
    "Array(Nullable(Decimal(18, 4)))",
    "Array(Nullable(DateTime64(3)))",
    "Nullable(String)",
];

/// Every kind of source type, with the name that PostgreSQL gives it where that decides.
fn source_types() -> Vec<(SourceType, &'static str)> {
    vec![
        (SourceType::Bool, "boolean"),
        (SourceType::Int2, "smallint"),
        (SourceType::Int4, "integer"),
        (SourceType::Int8, "bigint"),
        (SourceType::Oid, "oid"),
        (SourceType::Float4, "real"),
        (SourceType::Float8, "double precision"),
        (SourceType::Numeric(None), "numeric"),
        (SourceType::Numeric(Some((9, 2))), "numeric(9,2)"),
        (SourceType::Numeric(Some((76, 38))), "numeric(76,38)"),
        (SourceType::Numeric(Some((5, -3))), "numeric(5,-3)"),
        (SourceType::Text, "text"),
        (SourceType::Bytea, "bytea"),
        (SourceType::Uuid, "uuid"),
        (SourceType::Date, "date"),
        (SourceType::Timestamp, "timestamp without time zone"),
        (SourceType::TimestampTz, "timestamp with time zone"),
        (SourceType::Time, "time without time zone"),
        (SourceType::Json, "json"),
        (SourceType::Jsonb, "jsonb"),
        (SourceType::Enum, "mood"),
        (SourceType::Vector, "vector"),
        (SourceType::Other, "inet"),
        (SourceType::Other, "interval"),
    ]
}

/// Values of a column in text or binary form, into a block. Four bytes choose source type, target type, form
/// and nullability, and the policy for values that don't fit; then come the values, each with its length in a
/// byte before it.
pub fn values(data: &[u8]) {
    let Some((&[source, target, flags, policy], mut rest)) = data.split_first_chunk() else { return };
    let sources = source_types();
    let Some((source_type, name)) = sources.get(usize::from(source) % sources.len()).cloned() else { return };
    let array = flags & 1 != 0;
    let column = Column {
        source_type: if array { SourceType::Array(Box::new(source_type)) } else { source_type },
        type_name: if array { format!("{name}[]") } else { name.to_owned() },
        nullable: flags & 2 != 0,
        type_override: OVERRIDES.get(usize::from(target)).map(|&text| text.to_owned()),
        ..Column::new("v", SourceType::Other)
    };
    let Ok(target) = target_type(&column, Features { time64: flags & 4 != 0 }, false) else { return };
    assert_eq!(parse(&target.to_string()).as_ref(), Ok(&target));
    let kind = if flags & 8 != 0 && column.source_type.has_binary_decoder() {
        CellKind::Binary
    } else {
        CellKind::Text
    };
    let policy = match policy % 3 {
        0 => OutOfRange::Clamp,
        1 => OutOfRange::Null,
        _ => OutOfRange::Fail,
    };
    let schema = TableSchema { key: vec![], ..TableSchema::new(TableId::new("public", "t"), vec![column]) };
    let Ok(mut block) = BlockBuilder::new(&schema, std::slice::from_ref(&target), policy) else { return };
    while let Some((&length, tail)) = rest.split_first() {
        let (value, tail) = tail.split_at(usize::from(length).min(tail.len()));
        rest = tail;
        push(&mut block, kind, value);
    }
    assert_readable(&block, &target);
    // What a server may answer when it is asked for such values.
    if let Ok((rows, taken)) = Rows::parse(std::slice::from_ref(&target), data) {
        assert!(taken <= data.len());
        (0..rows.len()).for_each(|row| drop(display(&target, rows.cell(row, 0))));
    }
}

/// A row of one value is in the block afterwards, or the block is as it was.
fn push(block: &mut BlockBuilder, kind: CellKind, value: &[u8]) {
    let (rows, bytes) = (block.rows(), block.bytes());
    let cells = [Cell { kind, start: 0, len: u32::try_from(value.len()).unwrap_or(0) }];
    match block.push(Tuple { data: value, cells: &cells }, Position::default(), Op::Upsert) {
        Ok(()) => assert_eq!(block.rows(), rows + 1),
        Err(error) => {
            assert_eq!((block.rows(), block.bytes()), (rows, bytes));
            drop(error.to_string());
        }
    }
}

/// The block's values are whole values of their type, as many as there are rows.
fn assert_readable(block: &BlockBuilder, target: &ChType) {
    drop(block.to_block());
    let rows = block.to_rows();
    assert_eq!(rows.len(), block.rows());
    let body: Vec<u8> = (0..rows.len()).flat_map(|row| rows.cell(row, 0).to_vec()).collect();
    let again = Rows::parse(std::slice::from_ref(target), &body);
    assert_eq!(again, Ok((rows.clone(), body.len())));
    for row in 0..rows.len() {
        let cell = rows.cell(row, 0);
        drop(display(target, cell));
        assert!(target.compare(cell, cell).is_eq(), "{target}");
    }
}

/// A file of Mirrors, peers and Secrets.
pub fn documents(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = load::fuzz(text) {
        assert!(!error.to_string().is_empty());
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    fn folder(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
    }

    /// Runs the committed inputs of a target, among them those that once found a defect.
    fn run(target: &str, decode: fn(&[u8])) {
        let source = fs::read_to_string(folder("fuzz_targets").join(target).with_extension("rs")).unwrap();
        assert!(source.contains(&format!("walferry::fuzzing::{target}(data)")), "{source}");
        let inputs: Vec<_> = fs::read_dir(folder("corpus").join(target)).unwrap().collect();
        assert!(inputs.len() > 10, "{target}: {} inputs", inputs.len());
        for input in inputs {
            let data = fs::read(input.unwrap().path()).unwrap();
            decode(&data);
        }
    }

    #[test]
    fn committed_inputs_keep_every_promise() {
        run("stream", stream);
        run("answers", answers);
        run("pgoutput", pgoutput);
        run("copy", copy);
        run("values", values);
        run("documents", documents);
    }
}
