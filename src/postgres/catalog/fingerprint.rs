//! A table's catalog fingerprint: it detects schema changes that the replication stream does not report.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tokio_postgres::{
    Row,
    types::{PgLsn, ToSql},
};

use super::storage::{in_partition, partition_constraint};
use crate::{
    model::{Lsn, TableId, TableSchema},
    postgres::{Error, quote, session::Session},
};

/// A table's catalog fingerprint. Two equal fingerprints mean that only rows changed in between.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CatalogFingerprint {
    /// `pg_relation_filenode` of each relation that holds rows (the table, or its leaf partitions), by oid. A
    /// rewrite, VACUUM FULL, CLUSTER and TRUNCATE give another one.
    pub files: BTreeMap<u32, u32>,
    /// The transaction that last wrote each column's catalog row (`pg_attribute.xmin`), by attribute number.
    /// Columns that are dropped or generated are not in it.
    pub columns: BTreeMap<i16, u32>,
    /// How many columns the table has ever had (`pg_class.relnatts`); dropped and generated ones count.
    /// `None` in an older record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<i16>,
    /// What the text of a column's values depends on besides the row, by attribute number; columns of
    /// built-in types are not in it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<i16, TypeFingerprint>,
    /// The transaction that last wrote each link of the partition tree (`pg_inherits.xmin`), by the
    /// partition's oid, whether it holds rows or partitions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links: BTreeMap<u32, u32>,
    /// The transaction that last wrote each unique index of the table (`pg_index.xmin`), by the index's oid.
    /// With REPLICA IDENTITY FULL the stream does not report that the key is gone, or another one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub indexes: BTreeMap<u32, u32>,
}

/// The file node of a partition that is known from the stream alone.
const STREAMED: u32 = 0;

impl CatalogFingerprint {
    /// Records a partition that the catalog did not have, and whose rows the stream brings.
    pub fn note_streamed(&mut self, partition: u32) {
        self.files.entry(partition).or_insert(STREAMED);
    }

    /// The partitions that the catalog had.
    pub fn in_catalog(&self) -> impl Iterator<Item = (u32, u32)> {
        self.files
            .iter()
            .map(|(oid, file_node)| (*oid, *file_node))
            .filter(|(_, file_node)| *file_node != STREAMED)
    }

    /// Whether the stream has brought rows of a partition that the catalog did not have.
    pub fn has_streamed(&self) -> bool {
        self.files.values().any(|file_node| *file_node == STREAMED)
    }

    /// Keeps the partitions that the stream has added since `before` was compared: the catalog may not show
    /// them yet, or not any more.
    pub fn keep_streamed(&mut self, before: &CatalogFingerprint, compared: &CatalogFingerprint) {
        let streamed =
            before.files.iter().filter(|(oid, node)| **node == STREAMED && !compared.files.contains_key(oid));
        streamed.for_each(|(oid, _)| self.note_streamed(*oid));
    }
}

/// What the text of a value of one type depends on: a row holds the oid of an enum's label, and the fields of
/// a composite by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeFingerprint {
    /// The transaction that last wrote each label of the enum types that it is made of (`pg_enum.xmin`), by
    /// the label's oid.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<u32, u32>,
    /// A hash over the fields of the composites that it is made of, and over the functions that print a
    /// value. Its parts never get back to what they were: PostgreSQL gives a field a new number and refuses
    /// another type for one that is in use.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub shape: String,
}

/// A partition that is being detached concurrently is one no more for every query that begins now.
const TREE: &str = "\
WITH RECURSIVE tree (root, oid, link) AS (
  SELECT t.oid, t.oid, NULL::int8 FROM unnest($1::oid[]) AS t (oid)
  UNION ALL
  SELECT tree.root, i.inhrelid, i.xmin::text::int8 FROM tree
  JOIN pg_inherits i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
  JOIN pg_class p ON p.oid = tree.oid AND p.relkind = 'p')
SELECT tree.root, c.oid, tree.link, CASE WHEN c.relkind = 'r' THEN pg_relation_filenode(c.oid) END
FROM tree JOIN pg_class c ON c.oid = tree.oid";

const COLUMNS: &str = "\
SELECT a.attrelid, a.attnum, a.xmin::text::int8, a.atttypid, c.relnatts
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''";

/// Lower oids are those of types that come with the server, which never change.
const FIRST_OF_USERS: u32 = 16_384;

/// What types of users are made of, at any depth: the base of a domain, elements, fields of a composite, what
/// a range is over.
/// `$types` stands for a set of oids.
pub(in crate::postgres) const TYPE_CLOSURE: &str = "\
closure (root, oid) AS ( \
  SELECT t.oid, t.oid FROM $types AS t (oid) WHERE t.oid >= 16384 \
  UNION \
  SELECT c.root, part.oid FROM closure c JOIN pg_type t ON t.oid = c.oid CROSS JOIN LATERAL ( \
    SELECT t.typbasetype UNION ALL SELECT t.typelem \
    UNION ALL SELECT a.atttypid FROM pg_attribute a WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped \
    UNION ALL SELECT r.rngsubtype FROM pg_range r WHERE r.rngtypid = t.oid \
    UNION ALL SELECT r.rngtypid FROM pg_range r WHERE r.rngmultitypid = t.oid) AS part (oid) \
  WHERE part.oid >= 16384)";

fn labels_statement() -> String {
    format!(
        "WITH RECURSIVE {} SELECT c.root, e.oid, e.xmin::text::int8 FROM closure c JOIN pg_enum e ON e.enumtypid = c.oid",
        TYPE_CLOSURE.replace("$types", "unnest($1::oid[])")
    )
}

fn shapes_statement() -> String {
    format!(
        "\
WITH RECURSIVE {} SELECT c.root, sum(hashtextextended(part.text, 0))::text FROM closure c CROSS JOIN LATERAL (
  SELECT concat('a ', t.oid, ' ', a.attnum, ' ', a.atttypid, ' ', a.atttypmod) FROM pg_type t
  JOIN pg_attribute a ON a.attrelid = t.typrelid WHERE t.oid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  UNION ALL SELECT concat('f ', t.oid, ' ', p.oid, ' ', p.prosrc, ' ', p.probin) FROM pg_type t
  JOIN pg_proc p ON p.oid IN (t.typoutput, t.typsend) WHERE t.oid = c.oid AND p.oid >= 16384) AS part (text) GROUP BY 1",
        TYPE_CLOSURE.replace("$types", "unnest($1::oid[])")
    )
}

const INDEXES: &str = "\
SELECT indrelid, indexrelid, xmin::text::int8 FROM pg_index WHERE indrelid = ANY($1::oid[]) AND indisunique";

/// The marks of the tables with these oids, in a few queries for all. One that is gone is not in the answer.
///
/// # Errors
/// [`Error`] of the queries.
pub async fn fingerprints(
    session: &Session,
    oids: &[u32],
) -> Result<BTreeMap<u32, CatalogFingerprint>, Error> {
    let mut fingerprints: BTreeMap<u32, CatalogFingerprint> = BTreeMap::new();
    if oids.is_empty() {
        return Ok(fingerprints);
    }
    let parameters: [&(dyn ToSql + Sync); 1] = [&oids];
    let (columns, indexes, tree) = tokio::try_join!(
        session.client.query(COLUMNS, &parameters),
        session.client.query(INDEXES, &parameters),
        session.client.query(TREE, &parameters),
    )?;
    let mut users: BTreeMap<u32, Vec<(u32, i16)>> = BTreeMap::new();
    for row in columns {
        let (table, attnum, type_oid) = (row.try_get(0)?, row.try_get(1)?, row.try_get(3)?);
        let fingerprint = fingerprints.entry(table).or_default();
        fingerprint.columns.insert(attnum, writer(&row, 2)?.unwrap_or_default());
        fingerprint.attributes = row.try_get(4)?;
        if type_oid >= FIRST_OF_USERS {
            users.entry(type_oid).or_default().push((table, attnum));
        }
    }
    let types = type_fingerprints(session, users.keys().copied().collect()).await?;
    for (type_oid, columns) in &users {
        for (table, attnum) in columns {
            if let Some(fingerprint) = fingerprints.get_mut(table) {
                fingerprint.types.insert(*attnum, types.get(type_oid).cloned().unwrap_or_default());
            }
        }
    }
    for row in indexes {
        if let Some(fingerprint) = fingerprints.get_mut(&row.try_get(0)?) {
            fingerprint.indexes.insert(row.try_get(1)?, writer(&row, 2)?.unwrap_or_default());
        }
    }
    for row in tree {
        let Some(fingerprint) = fingerprints.get_mut(&row.try_get(0)?) else { continue };
        let oid: u32 = row.try_get(1)?;
        fingerprint.links.extend(writer(&row, 2)?.map(|link| (oid, link)));
        // NULL for what holds no rows, and for what was dropped meanwhile.
        fingerprint.files.extend(row.try_get::<_, Option<u32>>(3)?.map(|file_node| (oid, file_node)));
    }
    Ok(fingerprints)
}

/// The transaction in this place of a row; `None` for NULL.
fn writer(row: &Row, place: usize) -> Result<Option<u32>, Error> {
    let xmin: Option<i64> = row.try_get(place)?;
    Ok(xmin.and_then(|xmin| u32::try_from(xmin).ok()))
}

async fn type_fingerprints(
    session: &Session,
    types: Vec<u32>,
) -> Result<BTreeMap<u32, TypeFingerprint>, Error> {
    let mut found: BTreeMap<u32, TypeFingerprint> = BTreeMap::new();
    if types.is_empty() {
        return Ok(found);
    }
    for row in session.client.query(&labels_statement(), &[&types]).await? {
        let labels = &mut found.entry(row.try_get(0)?).or_default().labels;
        labels.insert(row.try_get(1)?, writer(&row, 2)?.unwrap_or_default());
    }
    for row in session.client.query(&shapes_statement(), &[&types]).await? {
        found.entry(row.try_get(0)?).or_default().shape = row.try_get(1)?;
    }
    Ok(found)
}

/// Partitions, the transaction that made each one, and whether it, or what it lies in, was a table before it
/// was attached. One that was made as a partition has its place in the tree from the transaction that made
/// its columns.
fn joined_statement() -> String {
    let constraint = partition_constraint("c.oid", "$2::oid");
    format!(
        "\
SELECT n.nspname::text, c.relname::text, own.xmin::text, c.oid, {constraint},
  has_column_privilege(c.oid, 'xmin', 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AND NOT row_security_active(c.oid), EXISTS (
  SELECT FROM pg_partition_ancestors(c.oid) AS ancestor JOIN pg_inherits i ON i.inhrelid = ancestor.relid
  JOIN pg_attribute a ON a.attrelid = i.inhrelid AND a.attname = 'tableoid' WHERE i.xmin::text <> a.xmin::text)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_inherits own ON own.inhrelid = c.oid
WHERE c.oid = ANY($1::oid[])"
    )
}

/// One that was made or attached, and written to with TRUNCATE or a rewrite after that. A new table's file
/// has its oid as number.
const EMPTIED: &str = "\
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
WHERE c.oid = ANY($1::oid[]) AND pg_relation_filenode(c.oid) <> c.oid AND c.xmin::text <> i.xmin::text)";

/// Whether one of these partitions may have lost rows since it joined its table, that the stream has brought.
///
/// # Errors
/// [`Error`] of the query.
pub async fn emptied_since_joined(session: &Session, oids: &BTreeSet<u32>) -> Result<bool, Error> {
    let oids: Vec<u32> = oids.iter().copied().collect();
    Ok(session.client.query_one(EMPTIED, &[&oids]).await?.try_get(0)?)
}

/// Whether one of the partitions with these oids may have come with rows, which are not sent: it was a table
/// before it was attached, or has rows of the transaction that made it.
///
/// # Errors
/// [`Error`] of the queries.
pub async fn came_with_rows(
    session: &Session,
    root: &TableSchema,
    oids: &BTreeSet<u32>,
) -> Result<bool, Error> {
    let oids: Vec<u32> = oids.iter().copied().collect();
    for row in session.client.query(&joined_statement(), &[&oids, &root.oid]).await? {
        if row.try_get(6)? {
            return Ok(true);
        }
        let partition = TableId::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        let maker: String = row.try_get(2)?;
        let rows = match row.try_get(5)? {
            true => format!("ONLY {} WHERE", quote::table(&partition)),
            false => {
                let constraint: Option<String> = row.try_get(4)?;
                let condition = in_partition(row.try_get(3)?, constraint.as_deref());
                format!("{} WHERE {condition} AND", quote::table(&root.id))
            }
        };
        let sql = format!("SELECT EXISTS (SELECT FROM {rows} xmin::text = $1)");
        if session.patiently(session.client.query_one(&sql, &[&maker])).await?.try_get(0)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether one of the partitions with these oids got its replica identity after it became one: until then it
/// had another.
///
/// # Errors
/// [`Error`] of the query.
pub async fn identity_came_later(session: &Session, oids: &BTreeSet<u32>) -> Result<bool, Error> {
    const LATER: &str = "\
        SELECT EXISTS (SELECT FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhrelid \
        LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisreplident \
        WHERE c.oid = ANY($1::oid[]) AND c.relreplident IN ('f', 'i') \
          AND h.xmin::text <> CASE c.relreplident WHEN 'i' THEN i.xmin ELSE c.xmin END::text)";
    let oids: Vec<u32> = oids.iter().copied().collect();
    Ok(session.client.query_one(LATER, &[&oids]).await?.try_get(0)?)
}

/// A position in the log that lies between two records and is flushed. On a primary a message of no content
/// is written for it: what `pg_current_wal_flush_lsn` gives may lie within a record that a crash of the
/// server would undo.
const FLUSHED_POSITION: &str = "SELECT pg_logical_emit_message(true, 'walferry', '')";

/// What a standby has replayed ends between two records.
const REPLAYED: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END";

/// A position after everything that was flushed before, which no later record begins before.
///
/// # Errors
/// [`Error`] of the statements.
pub async fn flushed_position(session: &Session) -> Result<Lsn, Error> {
    let client = &session.client;
    if let Some(lsn) = client.query_one(REPLAYED, &[]).await?.try_get::<_, Option<PgLsn>>(0)? {
        return Ok(Lsn(lsn.into()));
    }
    client.batch_execute("BEGIN READ WRITE; SET LOCAL synchronous_commit = on").await?;
    let row = client.query_one(FLUSHED_POSITION, &[]).await?;
    client.batch_execute("COMMIT").await?;
    let lsn: PgLsn = row.try_get(0)?;
    Ok(Lsn(lsn.into()))
}

/// The statement of [`read_lsn`]. The commit of a visible transaction is in the log, but perhaps not yet
/// flushed.
pub(in crate::postgres) const READ_LSN: &str = "\
SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";

/// A position after the commits of all transactions that are visible to queries so far. What queries returned
/// is part of every timeline that branches at that position or later.
///
/// # Errors
/// [`Error`] of the query.
pub async fn read_lsn(session: &Session) -> Result<Lsn, Error> {
    let lsn: PgLsn = session.client.query_one(READ_LSN, &[]).await?.try_get(0)?;
    Ok(Lsn(lsn.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_kept_as_json() {
        let (files, columns) = (BTreeMap::from([(16_400, 7)]), BTreeMap::from([(1, 700)]));
        let fingerprint = CatalogFingerprint { files, columns, ..CatalogFingerprint::default() };
        let text = serde_json::to_string(&fingerprint).unwrap();
        assert_eq!(text, r#"{"files":{"16400":7},"columns":{"1":700}}"#);
        assert_eq!(serde_json::from_str::<CatalogFingerprint>(&text).unwrap(), fingerprint);
    }

    #[test]
    fn partitions_of_the_stream_are_kept_until_they_are_compared() {
        let mut before =
            CatalogFingerprint { files: BTreeMap::from([(7, 70)]), ..CatalogFingerprint::default() };
        let compared = before.clone();
        before.note_streamed(7);
        before.note_streamed(8);
        assert!(before.has_streamed() && !compared.has_streamed());
        assert_eq!(before.in_catalog().collect::<Vec<_>>(), [(7, 70)]);
        let mut now =
            CatalogFingerprint { files: BTreeMap::from([(7, 71)]), ..CatalogFingerprint::default() };
        now.keep_streamed(&before, &compared);
        assert_eq!(now.files, BTreeMap::from([(7, 71), (8, 0)]));
        let mut now = compared.clone();
        now.keep_streamed(&before, &before);
        assert_eq!(now, compared);
    }
}
