//! The value that old rows show for a column added with a constant default, as a ClickHouse expression.
//!
//! It takes the way of every other value, through the column's encoder, so that it is the same as if the row
//! had been copied.

use super::{
    Error,
    native::BlockBuilder,
    quote::literal,
    types::{ChType, display},
};
use crate::{
    model::{Cell, CellKind, Column, OutOfRange, Position, TableSchema, Tuple},
    replication::{Op, TableBatch},
};

/// The `DEFAULT` expression for `column`'s missing value; `None` where it has none.
///
/// # Errors
/// [`Error::Type`] where the column can't be stored as `target`, [`Error::Protocol`] where the value is not
/// one of the source's type.
pub(super) fn expression(
    table: &TableSchema,
    column: &Column,
    target: &ChType,
    out_of_range: OutOfRange,
) -> Result<Option<String>, Error> {
    let Some(text) = &column.missing_value else { return Ok(None) };
    let alone =
        TableSchema { columns: vec![column.clone()], key: Vec::new(), order_by: Vec::new(), ..table.clone() };
    let mut block = BlockBuilder::new(&alone, std::slice::from_ref(target), out_of_range)
        .map_err(|source| Error::Type { table: table.target.clone(), source })?;
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let cells = [Cell { kind: CellKind::Text, start: 0, len }];
    block.push(Tuple { data: text.as_bytes(), cells: &cells }, Position::default(), Op::Upsert).map_err(
        |error| Error::Protocol(format!("default of column {} of table {}: {error}", column.name, table.id)),
    )?;
    Ok(Some(constant(target, block.to_rows().cell(0, 0))))
}

/// A value in `RowBinary` form as a constant expression of its type.
pub fn constant(target: &ChType, bytes: &[u8]) -> String {
    match target {
        ChType::String | ChType::LowCardinality | ChType::Json => string(bytes),
        ChType::Nullable(inner) => match bytes.split_first() {
            Some((0, rest)) => constant(inner, rest),
            _ => "NULL".to_owned(),
        },
        ChType::Array(element) => {
            let (_, mut rest) = varint(bytes);
            let mut elements = Vec::new();
            while let Some(len @ 1..) =
                element.row_binary_len(rest).ok().flatten().filter(|_| !rest.is_empty())
            {
                let (first, after) = rest.split_at(len);
                elements.push(constant(element, first));
                rest = after;
            }
            format!("CAST([{}], {})", elements.join(", "), literal(&target.to_string()))
        }
        scalar => format!("CAST({}, {})", literal(&display(scalar, bytes)), literal(&scalar.to_string())),
    }
}

fn string(bytes: &[u8]) -> String {
    let (_, content) = varint(bytes);
    match std::str::from_utf8(content) {
        Ok(text) => literal(text),
        Err(_) => {
            let digits: String = content.iter().map(|byte| format!("{byte:02X}")).collect();
            format!("unhex('{digits}')")
        }
    }
}

/// A length (LEB128) and what follows it.
fn varint(bytes: &[u8]) -> (u64, &[u8]) {
    let mut number = 0;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        number |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return (number, &bytes[index + 1..]);
        }
    }
    (number, &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clickhouse::{
            test_support,
            types::{Features, target_type},
        },
        model::SourceType,
    };

    fn of(source: SourceType, text: &str) -> String {
        let mut column = test_support::column("c", source);
        column.missing_value = Some(text.to_owned());
        let target = target_type(&column, Features::of(26, 7), false).unwrap();
        let table = test_support::table("t", vec![column.clone()]);
        expression(&table, &column, &target, OutOfRange::Clamp).unwrap().unwrap()
    }

    #[test]
    fn writes_constants() {
        assert_eq!(of(SourceType::Int4, "-5"), "CAST('-5', 'Int32')");
        assert_eq!(of(SourceType::Bool, "t"), "CAST('true', 'Bool')");
        assert_eq!(of(SourceType::Numeric(Some((12, 2))), "1.5"), "CAST('1.50', 'Decimal(12, 2)')");
        assert_eq!(of(SourceType::Text, "it's"), "'it\\'s'");
        assert_eq!(of(SourceType::Bytea, "\\xff00"), "unhex('FF00')");
        assert_eq!(of(SourceType::Jsonb, "{\"a\": 1}"), "'{\"a\": 1}'");
        assert_eq!(
            of(SourceType::TimestampTz, "2020-01-01 00:00:00+00"),
            "CAST('2020-01-01 00:00:00.000000', 'DateTime64(6, \\'UTC\\')')"
        );
        assert_eq!(
            of(SourceType::Array(Box::new(SourceType::Text)), "{a,NULL,\"b'\"}"),
            "CAST(['a', NULL, 'b\\''], 'Array(Nullable(String))')"
        );
        assert_eq!(
            of(SourceType::Array(Box::new(SourceType::Int4)), "{}"),
            "CAST([], 'Array(Nullable(Int32))')"
        );
    }

    #[test]
    fn refuses_what_is_not_a_value() {
        let mut column = test_support::column("c", SourceType::Int4);
        column.missing_value = Some("x".to_owned());
        let table = test_support::table("t", vec![column.clone()]);
        assert!(expression(&table, &column, &ChType::Int(32), OutOfRange::Clamp).is_err());
    }
}
