//! Reads rows by key, whatever the key's types, in the form the stream uses.

use std::{collections::HashMap, pin::pin};

use bytes::{BufMut, BytesMut};
use futures::TryStreamExt;
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

use super::{Error, copy, quote, session::Session};
use crate::model::{Cell, CellKind, TableSchema, Tuple};

/// A row's values in the schema's column order: the bytes, and a cell for each column.
pub type OwnedRow = (Vec<u8>, Vec<Cell>);

/// The query: the key of the first row as parameters 1, 2, … in key order, then that of the second, and so
/// on; the first result column is the row's ordinal from 0, the others the schema's columns, NULL unless
/// `wanted`.
///
/// `text_keys[i]` says that the i-th key column's values arrive in text form. Not arrays and `unnest`, which
/// would take a key that is an array apart.
/// `equality[i]` is the operator that compares it.
pub(crate) fn statement(
    schema: &TableSchema,
    wanted: &[bool],
    text_keys: &[bool],
    equality: &[String],
    rows: usize,
) -> String {
    let keys: Vec<_> = schema.key.iter().filter_map(|index| schema.columns.get(*index)).collect();
    let columns: Vec<String> = schema
        .columns
        .iter()
        .zip(wanted)
        .map(|(column, wanted)| if *wanted { copy::projection(column) } else { "NULL".to_owned() })
        .collect();
    let (mut names, mut conditions) = (Vec::new(), Vec::new());
    for (place, (key, equality)) in keys.iter().zip(equality).enumerate() {
        names.push(format!("k{place}"));
        conditions.push(format!("r.{} {equality} w.k{place}", quote::ident(&key.name)));
    }
    let values: Vec<String> = (0..rows)
        .map(|row| {
            let key = keys.iter().enumerate().map(|(place, key)| {
                let cast = if text_keys.get(place).copied().unwrap_or(false) { "::text" } else { "" };
                format!("${}{cast}::{}", row * keys.len() + place + 1, key.type_name)
            });
            format!("({row}, {})", key.collect::<Vec<_>>().join(", "))
        })
        .collect();
    format!(
        "SELECT w.ordinal, t.* FROM (VALUES {values}) AS w (ordinal, {names}) CROSS JOIN LATERAL (SELECT {columns} FROM {table} AS r WHERE {conditions}) AS t ORDER BY w.ordinal",
        values = values.join(", "),
        names = names.join(", "),
        columns = columns.join(", "),
        table = quote::table(&schema.id),
        conditions = conditions.join(" AND "),
    )
}

/// The operator for equality in each column of a table's unique indexes. One that an extension brings with
/// its type is found by its plain name in the search path alone; without it another one may compare the
/// values, which takes a scan of the table.
const EQUALITY: &str = "\
SELECT k.attnum, n.nspname::text, o.oprname::text FROM pg_index i
CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k (attnum, opclass)
JOIN pg_opclass c ON c.oid = k.opclass
JOIN pg_amop a ON a.amopfamily = c.opcfamily AND a.amoplefttype = c.opcintype AND a.amoprighttype = c.opcintype AND a.amopstrategy = 3
JOIN pg_operator o ON o.oid = a.amopopr JOIN pg_namespace n ON n.oid = o.oprnamespace
WHERE i.indrelid = $1::oid AND i.indisunique ORDER BY i.indisprimary OR i.indisreplident";

/// The operators for the columns of the key, in its order.
async fn equality(session: &Session, schema: &TableSchema) -> Result<Vec<String>, Error> {
    let mut found = HashMap::new();
    for row in session.client.query(EQUALITY, &[&schema.oid]).await? {
        let (namespace, name): (String, String) = (row.try_get(1)?, row.try_get(2)?);
        found.insert(row.try_get::<_, i16>(0)?, format!("OPERATOR({}.{name})", quote::ident(&namespace)));
    }
    let keys = schema.key.iter().filter_map(|index| schema.columns.get(*index));
    Ok(keys.map(|key| found.remove(&key.attnum).unwrap_or_else(|| "=".to_owned())).collect())
}

/// Reads the present rows with the keys of `tuples`, as far as `budget` bytes go.
///
/// Gives one entry for each tuple, in order, `None` where no row has that key any more: for all of them, and
/// the session; or for at least one, and no session, because the rest of the answer is still on its way.
///
/// # Errors
/// [`Error::Server`] when the table or a column is gone, and what [`Session`] gives for a cut connection.
pub async fn read(
    session: Session,
    schema: &TableSchema,
    tuples: &[Tuple<'_>],
    budget: usize,
) -> Result<(Vec<Option<OwnedRow>>, Option<Session>), Error> {
    let kind = |index: usize| tuples.first().and_then(|tuple| tuple.cells.get(index)).map(|cell| cell.kind);
    let text_keys: Vec<bool> = schema.key.iter().map(|index| kind(*index) == Some(CellKind::Text)).collect();
    let unchanged = |index: usize| {
        let cells = tuples.iter().filter_map(|tuple| tuple.cells.get(index));
        cells.into_iter().any(|cell| cell.kind == CellKind::Unchanged)
    };
    let wanted: Vec<bool> = (0..schema.columns.len()).map(unchanged).collect();
    let mut keys = Vec::with_capacity(tuples.len() * schema.key.len());
    for tuple in tuples {
        keys.extend(schema.key.iter().map(|index| RawKey(tuple.bytes(*index))));
    }
    let equality = equality(&session, schema).await?;
    let statement = statement(schema, &wanted, &text_keys, &equality, tuples.len());
    let statement = session.client.prepare(&statement).await?;
    let rows = session.client.query_raw(&statement, keys).await?;
    let mut rows = pin!(rows);

    let kinds = copy::cell_kinds(schema);
    let mut found: Vec<Option<OwnedRow>> = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await? {
        let ordinal: i32 = row.try_get(0)?;
        let (mut data, mut cells) = (Vec::new(), Vec::new());
        for (index, kind) in kinds.iter().enumerate() {
            let value: Option<RawValue<'_>> = row.try_get(index + 1)?;
            let start = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let bytes = value.map_or(&[][..], |value| value.0);
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            data.extend_from_slice(bytes);
            cells.push(Cell { kind: if value.is_some() { *kind } else { CellKind::Null }, start, len });
        }
        bytes += data.len();
        let place = usize::try_from(ordinal).ok().filter(|place| *place < tuples.len());
        // A key that stands for two rows (it was dropped and made again meanwhile) has the last one's values.
        if let Some(place) = place {
            found.resize_with(found.len().max(place + 1), || None);
            if let Some(slot) = found.get_mut(place) {
                *slot = Some((data, cells));
            }
        }
        if bytes >= budget && found.len() < tuples.len() {
            return Ok((found, None));
        }
    }
    found.resize_with(tuples.len(), || None);
    Ok((found, Some(session)))
}

/// A value already in PostgreSQL's send form, or text.
#[derive(Debug)]
struct RawKey<'a>(&'a [u8]);

impl ToSql for RawKey<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(self.0);
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
    fn asks_for_what_is_wanted_by_keys_in_key_order() {
        let equality = ["OPERATOR(\"ext\".=)".to_owned(), "=".to_owned()];
        assert_eq!(
            statement(&schema(), &[false, true, true], &[false, false], &equality, 2),
            r#"SELECT w.ordinal, t.* FROM (VALUES (0, $1::text, $2::bigint), (1, $3::text, $4::bigint)) AS w (ordinal, k0, k1) CROSS JOIN LATERAL (SELECT NULL, "k""2", CASE WHEN "addr" IS DISTINCT FROM NULL THEN pg_catalog.format('%s', "addr") END FROM "public"."t" AS r WHERE r."k""2" OPERATOR("ext".=) w.k0 AND r."id" = w.k1) AS t ORDER BY w.ordinal"#
        );
    }

    #[test]
    fn keys_in_text_form_are_cast() {
        let statement = statement(&schema(), &[true; 3], &[true, true], &["=".to_owned(), "=".to_owned()], 1);
        assert!(statement.contains("(VALUES (0, $1::text::text, $2::text::bigint))"), "{statement}");
    }
}
