//! The state of a Mirror's slot, publication and tables by one statement, sent without preparing it: one
//! round trip.

use tokio_postgres::{Row, types::Type};

use super::{
    Error,
    catalog::{CURRENT_LSN, TYPE_CLOSURE},
    publication::{COMMENT_PREFIX, Publication, Publish},
    session::Session,
    slot::{self, SlotInfo},
};
use crate::model::TableId;

/// The state of a Mirror at its source.
#[derive(Clone, Debug)]
pub struct SourceStatus {
    /// The slot; `None` when there is none of that name.
    pub slot: Option<SlotInfo>,
    /// The publication; `None` when there is none of that name.
    pub publication: Option<PublicationStatus>,
    /// The tables that were asked for, in that order.
    pub tables: Vec<Membership>,
    /// Unchanged unless the publication, a table, its partitions, columns, indexes or types changed:
    /// a sum over the transactions that last wrote their catalog rows.
    pub fingerprint: String,
    /// The server's timeline; `None` on a standby.
    pub timeline: Option<u32>,
}

/// What decides whether a publication can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationStatus {
    /// Whether walferry made it.
    pub owned_by_us: bool,
    /// What it sends; `None` when it is nothing that walferry asks for, or not as changes of partitions'
    /// root.
    pub sends: Option<Publish>,
}

impl From<&Publication> for PublicationStatus {
    fn from(found: &Publication) -> Self {
        PublicationStatus { owned_by_us: found.owned_by_us, sends: found.sends.filter(|_| found.via_root) }
    }
}

/// A table and whether its changes are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its present name; `None` when it was dropped.
    pub id: Option<TableId>,
    /// Whether the publication names it.
    pub published: bool,
}

/// `$closure` stands for [`TYPE_CLOSURE`].
const FINGERPRINT: &str = "(WITH RECURSIVE tree (oid) AS (SELECT unnest($3) \
    UNION SELECT i.inhrelid FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid), \
  columns AS (SELECT a.attrelid, a.attnum, a.atttypid, a.xmin FROM tree JOIN pg_attribute a ON a.attrelid = tree.oid WHERE a.attnum > 0), \
  $closure, types (oid) AS (SELECT DISTINCT oid FROM closure) \
  SELECT coalesce(sum(hashtextextended(m, 0)), 0)::text FROM ( \
    SELECT concat('c', c.oid, ' ', c.xmin, ' ', pg_relation_filenode(c.oid)) FROM tree JOIN pg_class c ON c.oid = tree.oid \
    UNION ALL SELECT concat('h', i.inhrelid, ' ', i.inhparent, ' ', i.xmin) FROM tree JOIN pg_inherits i ON i.inhparent = tree.oid \
    UNION ALL SELECT concat('a', a.attrelid, ' ', a.attnum, ' ', a.xmin) FROM columns a \
    UNION ALL SELECT concat('i', i.indexrelid, ' ', i.xmin) FROM tree JOIN pg_index i ON i.indrelid = tree.oid \
    UNION ALL SELECT concat('e', e.oid, ' ', e.xmin) FROM types t JOIN pg_enum e ON e.enumtypid = t.oid \
    UNION ALL SELECT concat('f', a.attrelid, ' ', a.attnum, ' ', a.xmin) FROM types t JOIN pg_type c ON c.oid = t.oid \
      JOIN pg_attribute a ON a.attrelid = c.typrelid WHERE a.attnum > 0 \
    UNION ALL SELECT concat('o', p.oid, ' ', p.xmin) FROM types t JOIN pg_type c ON c.oid = t.oid \
      JOIN pg_proc p ON p.oid IN (c.typoutput, c.typsend) WHERE p.oid >= 16384 \
    UNION ALL SELECT concat('p', p.oid, ' ', p.xmin) FROM pg_publication p WHERE p.pubname::text = $2 \
    UNION ALL SELECT concat('r', r.oid, ' ', r.xmin) FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
      WHERE p.pubname::text = $2) marks (m))";

/// The name of the file that is written to now begins with the timeline.
const TIMELINE: &str =
    "CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END";

fn statement() -> String {
    let closure = TYPE_CLOSURE.replace("$types", "(SELECT DISTINCT atttypid FROM columns)");
    let fingerprint = FINGERPRINT.replace("$closure", &closure);
    format!(
        "SELECT {}, p.oid IS NOT NULL, obj_description(p.oid, 'pg_publication'), \
         p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot, \
         t.position IS NOT NULL, n.nspname::text, c.relname::text, r.oid IS NOT NULL, {fingerprint}, {TIMELINE} \
         FROM (SELECT {CURRENT_LSN} AS lsn) current \
         LEFT JOIN pg_replication_slots s ON s.slot_name::text = $1 \
         LEFT JOIN pg_publication p ON p.pubname::text = $2 \
         LEFT JOIN unnest($3) WITH ORDINALITY AS t (oid, position) ON true \
         LEFT JOIN pg_class c ON c.oid = t.oid LEFT JOIN pg_namespace n ON n.oid = c.relnamespace \
         LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = c.oid \
         ORDER BY t.position",
        slot::COLUMNS
    )
}

/// Reads slot, publication and the tables with these oids.
///
/// # Errors
/// [`Error`] of the query.
pub async fn read(
    session: &Session,
    slot_name: &str,
    publication_name: &str,
    table_oids: &[u32],
) -> Result<SourceStatus, Error> {
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
        [(&slot_name, Type::TEXT), (&publication_name, Type::TEXT), (&table_oids, Type::OID_ARRAY)];
    let rows = session.client.query_typed(&statement(), &parameters).await?;
    let Some(first) = rows.first() else {
        return Err(Error::Protocol("a query for one row at least gave none".to_owned()));
    };
    let has_slot = first.try_get::<_, Option<String>>(0)?.is_some();
    Ok(SourceStatus {
        slot: has_slot.then(|| slot::slot_info(first)).transpose()?,
        publication: publication_status(first)?,
        tables: rows.iter().filter_map(|row| membership(row).transpose()).collect::<Result<_, _>>()?,
        fingerprint: first.try_get(slot::COLUMN_COUNT + 11)?,
        timeline: first
            .try_get::<_, Option<String>>(slot::COLUMN_COUNT + 12)?
            .and_then(|digits| u32::from_str_radix(&digits, 16).ok()),
    })
}

fn publication_status(row: &Row) -> Result<Option<PublicationStatus>, Error> {
    let at = slot::COLUMN_COUNT;
    if !row.try_get::<_, bool>(at)? {
        return Ok(None);
    }
    let comment: Option<String> = row.try_get(at + 1)?;
    let owned_by_us = comment.is_some_and(|comment| comment.starts_with(COMMENT_PREFIX));
    let option = |index| row.try_get(at + index);
    let sends = Publish::from_options(option(2)?, option(3)?, option(4)?, option(5)?);
    let sends = if option(6)? { sends } else { None };
    Ok(Some(PublicationStatus { owned_by_us, sends }))
}

/// `None` for the only row there is when no table was asked for.
fn membership(row: &Row) -> Result<Option<Membership>, Error> {
    let at = slot::COLUMN_COUNT + 7;
    if !row.try_get::<_, bool>(at)? {
        return Ok(None);
    }
    let schema: Option<String> = row.try_get(at + 1)?;
    let name: Option<String> = row.try_get(at + 2)?;
    let id = schema.zip(name).map(|(schema, name)| TableId::new(schema, name));
    Ok(Some(Membership { id, published: row.try_get(at + 3)? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_s_columns_come_first() {
        assert_eq!(slot::COLUMNS.split(", ").count(), slot::COLUMN_COUNT);
        let statement = statement();
        assert!(statement.starts_with("SELECT s.slot_name::text, "), "{statement}");
    }
}
