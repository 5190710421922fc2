//! Where a table's rows are: the relations with blocks of their own.

use crate::{
    model::{TableId, TableSchema},
    postgres::{Error, copy, quote, session::Session},
};

/// A relation that holds rows: a plain table, or a leaf of a partitioned one.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Its name.
    pub id: TableId,
    /// `pg_class.oid`
    pub oid: u32,
    /// `pg_relation_filenode`: changes when the table is rewritten (VACUUM FULL, CLUSTER, TRUNCATE, some
    /// ALTER TABLE).
    pub file_node: u32,
    /// Blocks it has now.
    pub blocks: u64,
    /// Rows it probably has: the density that the last VACUUM or ANALYZE saw, times today's blocks.
    pub estimated_rows: f64,
    /// Whether the session's role may read what is mirrored of it by its own name. A partition needs no
    /// privilege to be read through its root.
    pub readable: bool,
}

/// Rows a block is taken to hold when the table was never analyzed: 128 bytes a row.
const UNKNOWN_ROWS_PER_BLOCK: f64 = 64.0;

/// `relpages` is as old as the last VACUUM, so blocks come from the file's size. `$2` are the columns that
/// are read, where privileges on them are known to be enough.
const STORAGE: &str = "\
SELECT n.nspname::text, c.relname::text, c.oid, pg_relation_filenode(c.oid),
  pg_relation_size(c.oid) / current_setting('block_size')::bigint, c.relpages, c.reltuples,
  (has_table_privilege(c.oid, 'SELECT') OR $2::text[] IS NOT NULL AND has_any_column_privilege(c.oid, 'SELECT')
    AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname::text = ANY($2::text[])
      AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')))
  AND has_schema_privilege(n.oid, 'USAGE') AND NOT row_security_active(c.oid)
FROM (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid) WHERE isleaf) AS member (oid)
JOIN pg_class c ON c.oid = member.oid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'
ORDER BY n.nspname, c.relname";

/// The relations that hold a table's rows: itself, or the leaf partitions it has now, by name.
///
/// # Errors
/// [`Error`] of the query. A table that doesn't exist has no storage.
pub async fn storage(session: &Session, table: &TableSchema) -> Result<Vec<Storage>, Error> {
    let Some(oid) = super::table::table_oid(session, &table.id).await? else { return Ok(Vec::new()) };
    // Which columns a row filter reads only PostgreSQL knows.
    let columns = table.row_filter.is_none().then(|| copy::copied_columns(table));
    let rows = session.client.query(STORAGE, &[&oid, &columns]).await?;
    let mut storage = Vec::with_capacity(rows.len());
    for row in rows {
        // Both functions answer NULL for a relation that was dropped meanwhile.
        let (Some(file_node), Some(blocks)) = (row.try_get(3)?, row.try_get::<_, Option<i64>>(4)?) else {
            continue;
        };
        let blocks = blocks.unsigned_abs();
        storage.push(Storage {
            id: TableId::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?),
            oid: row.try_get(2)?,
            file_node,
            blocks,
            estimated_rows: estimated_rows(blocks, row.try_get(5)?, row.try_get(6)?),
            // NULL for one that was dropped meanwhile.
            readable: row.try_get::<_, Option<bool>>(7)?.unwrap_or(true),
        });
    }
    Ok(storage)
}

/// `pages` and `tuples` are `pg_class.relpages` and `reltuples` (-1 when the table was never analyzed).
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn estimated_rows(blocks: u64, pages: i32, tuples: f32) -> f64 {
    let density = if pages > 0 && tuples >= 0.0 {
        f64::from(tuples) / f64::from(pages)
    } else {
        UNKNOWN_ROWS_PER_BLOCK
    };
    blocks as f64 * density
}

/// The statement that answers the storage's file node and its length in blocks now, for use on any
/// connection; NULL or an error when it is gone.
pub fn file_statement(storage: &TableId) -> String {
    file(&format!("{}::regclass", quote::literal(&quote::table(storage))))
}

/// The same for a relation with this oid, whose schema the role may have no access to.
pub fn file_statement_of(oid: u32) -> String {
    file(&oid.to_string())
}

fn file(relation: &str) -> String {
    format!(
        "SELECT pg_relation_filenode({relation}), pg_relation_size({relation}) / current_setting('block_size')::bigint"
    )
}

/// The statement that answers what is true of every row of the partition with this oid, by its root's column
/// names: with it PostgreSQL reads no other partition. NULL where there is nothing that it can say, or that
/// the role may not read in the table with the oid `root`.
pub fn partition_constraint_statement(oid: u32, root: u32) -> String {
    format!("SELECT {}", partition_constraint(&oid.to_string(), &root.to_string()))
}

/// The expression for it. A column of a partition key has an internal dependency on its own table.
pub(super) fn partition_constraint(oid: &str, root: &str) -> String {
    format!(
        "CASE WHEN has_table_privilege({root}, 'SELECT') OR NOT EXISTS (SELECT FROM pg_partition_ancestors({oid}) AS above \
         JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = above.relid AND d.objsubid > 0 AND d.deptype = 'i' \
         AND d.refclassid = 'pg_class'::regclass AND d.refobjid = above.relid AND d.refobjsubid = 0 \
         JOIN pg_attribute k ON k.attrelid = d.objid AND k.attnum = d.objsubid \
         JOIN pg_attribute r ON r.attrelid = {root} AND r.attname = k.attname \
         WHERE NOT has_column_privilege(r.attrelid, r.attnum, 'SELECT')) THEN pg_get_partition_constraintdef({oid}) END"
    )
}

/// The condition for the rows of the partition with this oid among those of its root. `constraint` is what
/// [`partition_constraint_statement`] answers.
pub fn in_partition(oid: u32, constraint: Option<&str>) -> String {
    match constraint.filter(|constraint| !constraint.is_empty()) {
        Some(constraint) => format!("tableoid = {oid} AND ({constraint})"),
        None => format!("tableoid = {oid}"),
    }
}

/// The statement that has the partition's rows locked as a read of them does, until the end of the
/// transaction. `condition` is that of [`in_partition`].
pub fn lock_partition_statement(root: &TableId, condition: &str) -> String {
    format!("SELECT FROM {} WHERE {condition} LIMIT 0", quote::table(root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_statement_quotes_twice() {
        assert_eq!(
            file_statement(&TableId::new("public", "It's \"odd\"")),
            r#"SELECT pg_relation_filenode('"public"."It''s ""odd"""'::regclass), pg_relation_size('"public"."It''s ""odd"""'::regclass) / current_setting('block_size')::bigint"#
        );
    }

    #[test]
    fn partitions_are_read_through_their_root() {
        let constraint = partition_constraint_statement(7, 5);
        assert!(
            constraint.starts_with("SELECT CASE WHEN has_table_privilege(5, 'SELECT') OR"),
            "{constraint}"
        );
        assert!(constraint.ends_with("THEN pg_get_partition_constraintdef(7) END"), "{constraint}");
        assert_eq!(
            file_statement_of(7),
            "SELECT pg_relation_filenode(7), pg_relation_size(7) / current_setting('block_size')::bigint"
        );
        assert_eq!(in_partition(7, None), "tableoid = 7");
        assert_eq!(in_partition(7, Some("")), "tableoid = 7");
        let condition = in_partition(7, Some("(a IS NOT NULL) AND (a = 1)"));
        assert_eq!(condition, "tableoid = 7 AND ((a IS NOT NULL) AND (a = 1))");
        assert_eq!(
            lock_partition_statement(&TableId::new("public", "T"), &condition),
            "SELECT FROM \"public\".\"T\" WHERE tableoid = 7 AND ((a IS NOT NULL) AND (a = 1)) LIMIT 0"
        );
    }

    #[test]
    fn rows_are_estimated_from_density_and_todays_blocks() {
        assert_eq!(estimated_rows(200, 100, 5_000.0), 10_000.0);
        assert_eq!(estimated_rows(10, 0, -1.0), 640.0);
        assert_eq!(estimated_rows(0, 0, -1.0), 0.0);
        assert_eq!(estimated_rows(10, 100, 0.0), 0.0);
    }
}
