//! Whether a type was altered since a column has it, derived from catalog rows alone.

use super::fingerprint::TYPE_CLOSURE;
use crate::postgres::{Error, session::Session};

/// A subtransaction has a higher number than the transaction that it is part of, so what a transaction wrote
/// later may have the lower number. Within so many transactions, the order of commands counts too.
const NEAR: u32 = 1 << 24;

/// Whether something that the text of values depends on was written after one of the columns `$2` of the
/// table `$1` came to have its type.
///
/// That moment is the writing of the column's dependency on its type (`pg_depend`), which nothing but another
/// type replaces. Labels, fields and functions that were written by the very command that made the type (its
/// array type depends on it from then on, and it on its functions) were not altered since. A transaction's
/// number is compared by how many transactions ago it was given, modulo its range. Where a column had another
/// type of a user's (`$3`) when its first rows came, its present type doesn't show since when.
fn statement() -> String {
    let closure = TYPE_CLOSURE.replace("$types", "(SELECT DISTINCT type FROM used)");
    format!(
        "\
WITH RECURSIVE clock (now) AS (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::int8),
used (type, other, age, command) AS (
  SELECT a.atttypid, new.type >= 16384 AND new.type <> a.atttypid,
    (clock.now - d.xmin::text::int8) & 4294967295, d.cmin::text::int8
  FROM clock CROSS JOIN unnest($2::int2[], $3::oid[]) AS new (attnum, type)
  JOIN pg_attribute a ON a.attrelid = $1::oid AND a.attnum = new.attnum LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = a.attrelid
    AND d.objsubid = a.attnum AND d.refclassid = 'pg_type'::regclass AND d.refobjid = a.atttypid),
{closure},
types (root, oid, array_oid, relation, functions) AS (
  SELECT c.root, t.oid, t.typarray, t.typrelid, ARRAY[t.typoutput::oid, t.typsend::oid] FROM closure c JOIN pg_type t ON t.oid = c.oid),
parts (root, writer, command, maker, made) AS (
  SELECT t.root, p.xmin, p.cmin, m.xmin, m.cmin
  FROM types t JOIN pg_enum p ON p.enumtypid = t.oid LEFT JOIN pg_depend m ON m.classid = 'pg_type'::regclass
    AND m.objid = t.array_oid AND m.refclassid = 'pg_type'::regclass AND m.refobjid = t.oid
  UNION ALL SELECT t.root, p.xmin, p.cmin, m.xmin, m.cmin
  FROM types t JOIN pg_attribute p ON p.attrelid = t.relation AND p.attnum > 0 LEFT JOIN pg_depend m ON m.classid = 'pg_type'::regclass
    AND m.objid = t.array_oid AND m.refclassid = 'pg_type'::regclass AND m.refobjid = t.oid
  UNION ALL SELECT t.root, p.xmin, p.cmin, m.xmin, m.cmin
  FROM types t JOIN pg_proc p ON p.oid = ANY(t.functions) AND p.oid >= 16384 LEFT JOIN pg_depend m ON m.classid = 'pg_type'::regclass
    AND m.objid = t.oid AND m.refclassid = 'pg_proc'::regclass AND m.refobjid = p.oid),
written (root, age, command) AS (
  SELECT p.root, (clock.now - p.writer::text::int8) & 4294967295, p.command::text::int8 FROM clock CROSS JOIN parts p
  WHERE (p.writer = p.maker AND p.command::text::int8 <= p.made::text::int8) IS NOT TRUE)
SELECT EXISTS (SELECT FROM used u JOIN written w ON w.root = u.type
  WHERE u.other OR u.age IS NULL OR w.age < u.age OR w.age - u.age < {NEAR} AND w.command > u.command)"
    )
}

/// Whether the type of one of these columns, or a type that it is made of, may have been altered since the
/// column has it, so that rows of before show something else now. A label that was added counts too: nothing
/// distinguishes it from one that was renamed.
///
/// # Errors
/// [`Error`] of the query.
pub async fn altered_since_used(
    session: &Session,
    table: u32,
    columns: &[(i16, Option<u32>)],
) -> Result<bool, Error> {
    let attnums: Vec<i16> = columns.iter().map(|(attnum, _)| *attnum).collect();
    let types: Vec<u32> = columns.iter().map(|(_, type_oid)| type_oid.unwrap_or_default()).collect();
    Ok(session.client.query_one(&statement(), &[&table, &attnums, &types]).await?.try_get(0)?)
}
