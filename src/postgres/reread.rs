//! Reads rows by key, whatever the key's types, in the form the stream uses.

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::{Error, copy, quote, session::Session};
use crate::model::{Cell, CellKind, TableSchema, Tuple};

/// A row's values in the schema's column order: the bytes, and a cell for each column.
pub type OwnedRow = (Vec<u8>, Vec<Cell>);

const TEXT_OID: u32 = 25;

/// The query: one array parameter for each key column, in key order; the first result column is the ordinal of the
/// key from 1, the others the schema's columns.
///
/// `text_keys[i]` says that the i-th key's values arrive in text form.
pub(crate) fn statement(schema: &TableSchema, text_keys: &[bool]) -> String {
    let keys: Vec<_> = schema.key.iter().filter_map(|index| schema.columns.get(*index)).collect();
    let columns: Vec<String> = schema.columns.iter().map(copy::projection).collect();
    let (mut arrays, mut names, mut conditions) = (Vec::new(), Vec::new(), Vec::new());
    for (place, key) in keys.iter().enumerate() {
        let number = place + 1;
        let text = text_keys.get(place).copied().unwrap_or(false);
        let element = if text { "text" } else { key.type_name.as_str() };
        arrays.push(format!("${number}::{element}[]"));
        names.push(format!("k{number}"));
        let cast = if text { format!("::{}", key.type_name) } else { String::new() };
        conditions.push(format!("r.{} = w.k{number}{cast}", quote::ident(&key.name)));
    }
    format!(
        "SELECT w.ordinal, t.* FROM unnest({arrays}) WITH ORDINALITY AS w ({names}, ordinal) CROSS JOIN LATERAL (SELECT {columns} FROM {table} AS r WHERE {conditions}) AS t",
        columns = columns.join(", "),
        arrays = arrays.join(", "),
        names = names.join(", "),
        table = quote::table(&schema.id),
        conditions = conditions.join(" AND "),
    )
}

/// Reads the present rows with the keys of `tuples`.
///
/// Gives one entry for each tuple, in order: `None` where no row has that key any more.
///
/// # Errors
/// [`Error::Server`] when the table or a column is gone, and what [`Session`] gives for a cut connection.
pub async fn read(
    session: &Session,
    schema: &TableSchema,
    tuples: &[Tuple<'_>],
) -> Result<Vec<Option<OwnedRow>>, Error> {
    let kind = |index: usize| tuples.first().and_then(|tuple| tuple.cells.get(index)).map(|cell| cell.kind);
    let text_keys: Vec<bool> = schema.key.iter().map(|index| kind(*index) == Some(CellKind::Text)).collect();
    let parameters: Vec<RawArray> = schema
        .key
        .iter()
        .zip(&text_keys)
        .map(|(index, text)| key_array(schema, *index, *text, tuples))
        .collect();
    let parameters: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|p| p as &(dyn ToSql + Sync)).collect();
    let rows = session.client.query(&statement(schema, &text_keys), &parameters).await?;

    let kinds = copy::cell_kinds(schema);
    let mut found: Vec<Option<OwnedRow>> = Vec::new();
    found.resize_with(tuples.len(), || None);
    for row in &rows {
        let ordinal: i64 = row.try_get(0)?;
        let (mut data, mut cells) = (Vec::new(), Vec::new());
        for (index, kind) in kinds.iter().enumerate() {
            let value: Option<RawValue<'_>> = row.try_get(index + 1)?;
            let start = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let bytes = value.map_or(&[][..], |value| value.0);
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            data.extend_from_slice(bytes);
            cells.push(Cell { kind: if value.is_some() { *kind } else { CellKind::Null }, start, len });
        }
        let place = usize::try_from(ordinal - 1).ok().and_then(|place| found.get_mut(place));
        if let Some(place) = place {
            *place = Some((data, cells));
        }
    }
    Ok(found)
}

fn key_array(schema: &TableSchema, index: usize, text: bool, tuples: &[Tuple<'_>]) -> RawArray {
    let declared = schema.columns.get(index).map_or(TEXT_OID, |column| column.type_oid);
    RawArray {
        element: if text { TEXT_OID } else { declared },
        values: tuples.iter().map(|tuple| tuple.bytes(index).to_vec()).collect(),
    }
}

/// Values already in PostgreSQL's send form, as a one-dimensional array parameter.
#[derive(Debug)]
struct RawArray {
    element: u32,
    values: Vec<Vec<u8>>,
}

impl ToSql for RawArray {
    /// The layout of `array_send`: dimensions, has-null flag, element type, then length and lower bound, then the elements.
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_i32(1);
        out.put_i32(0);
        out.put_u32(self.element);
        out.put_i32(i32::try_from(self.values.len())?);
        out.put_i32(1);
        for value in &self.values {
            out.put_i32(i32::try_from(value.len())?);
            out.put_slice(value);
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// A result value's bytes as the server sent them.
#[derive(Clone, Copy)]
struct RawValue<'a>(&'a [u8]);

impl<'a> FromSql<'a> for RawValue<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(RawValue(raw))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, SourceType, TableId};

    fn column(name: &str, type_name: &str, source_type: SourceType) -> Column {
        Column { type_oid: 20, type_name: type_name.into(), ..Column::new(name, source_type) }
    }

    fn schema() -> TableSchema {
        TableSchema {
            key: vec![1, 0],
            ..TableSchema::new(
                TableId::new("public", "t"),
                vec![
                    column("id", "bigint", SourceType::Int8),
                    column("k\"2", "text", SourceType::Text),
                    column("addr", "inet", SourceType::Other),
                ],
            )
        }
    }

    #[test]
    fn asks_by_arrays_of_the_keys_in_key_order() {
        assert_eq!(
            statement(&schema(), &[false, false]),
            r#"SELECT w.ordinal, t.* FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS w (k1, k2, ordinal) CROSS JOIN LATERAL (SELECT "id", "k""2", CASE WHEN "addr" IS DISTINCT FROM NULL THEN format('%s', "addr") END FROM "public"."t" AS r WHERE r."k""2" = w.k1 AND r."id" = w.k2) AS t"#
        );
    }

    #[test]
    fn keys_in_text_form_are_cast() {
        let statement = statement(&schema(), &[true, true]);
        assert!(statement.contains("unnest($1::text[], $2::text[])"), "{statement}");
        assert!(statement.contains(r#"r."id" = w.k2::bigint"#), "{statement}");
    }

    #[test]
    fn a_key_array_is_in_send_form() {
        let array = RawArray { element: 20, values: vec![vec![1, 2], vec![3]] };
        let mut out = BytesMut::new();
        array.to_sql(&Type::ANY, &mut out).unwrap();
        let expected = [
            [0u8, 0, 0, 1].as_slice(),
            &[0; 4],
            &[0, 0, 0, 20],
            &[0, 0, 0, 2],
            &[0, 0, 0, 1],
            &[0, 0, 0, 2, 1, 2],
            &[0, 0, 0, 1, 3],
        ]
        .concat();
        assert_eq!(out, expected);
    }
}
