//! Where a table's rows are: the relations with blocks of their own.

use crate::{
    model::TableId,
    postgres::{Error, quote, session::Session},
};

/// A relation that holds rows: a plain table, or a leaf of a partitioned one.
#[derive(Clone, Debug, PartialEq)]
pub struct Storage {
    /// Its name.
    pub id: TableId,
    /// `pg_class.oid`
    pub oid: u32,
    /// `pg_relation_filenode`: changes when the table is rewritten (VACUUM FULL, CLUSTER, TRUNCATE, some ALTER TABLE).
    pub file_node: u32,
    /// Blocks it has now.
    pub blocks: u64,
    /// Rows it probably has: the density that the last VACUUM or ANALYZE saw, times today's blocks.
    pub estimated_rows: f64,
}

/// Rows a block is taken to hold when the table was never analyzed: 128 bytes a row.
const UNKNOWN_ROWS_PER_BLOCK: f64 = 64.0;

/// `relpages` is as old as the last VACUUM, so blocks come from the file's size.
const STORAGE: &str = "\
SELECT n.nspname::text, c.relname::text, c.oid, pg_relation_filenode(c.oid),
  pg_relation_size(c.oid) / current_setting('block_size')::bigint, c.relpages, c.reltuples
FROM (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid) WHERE isleaf) AS member (oid)
JOIN pg_class c ON c.oid = member.oid JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r'
ORDER BY n.nspname, c.relname";

/// The relations that hold a table's rows: itself, or the leaf partitions it has now, by name.
///
/// # Errors
/// [`Error`] of the query. A table that doesn't exist has no storage.
pub async fn storage(session: &Session, table: &TableId) -> Result<Vec<Storage>, Error> {
    let Some(oid) = super::table::table_oid(session, table).await? else { return Ok(Vec::new()) };
    let rows = session.client.query(STORAGE, &[&oid]).await?;
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

/// The statement that answers the storage's file node now, for use on any connection; NULL or an error when it is gone.
pub fn file_node_statement(storage: &TableId) -> String {
    format!("SELECT pg_relation_filenode({}::regclass)", quote::literal(&quote::table(storage)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_node_statement_quotes_twice() {
        assert_eq!(
            file_node_statement(&TableId::new("public", "It's \"odd\"")),
            r#"SELECT pg_relation_filenode('"public"."It''s ""odd"""'::regclass)"#
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
