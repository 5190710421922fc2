//! Partitioned tables above a mirrored table that take its changes.

use std::collections::HashMap;

use crate::{
    model::TableId,
    postgres::{Error, session::Session},
};

/// With `publish_via_partition_root` changes are sent as those of the topmost published table above a
/// partition, and not as its own.
const PUBLISHED_ANCESTORS: &str = "\
SELECT DISTINCT ON (t.oid) t.oid, n.nspname::text, c.relname::text FROM unnest($1::oid[]) AS t (oid)
CROSS JOIN LATERAL pg_partition_ancestors(t.oid) WITH ORDINALITY AS above (oid, level)
JOIN pg_class c ON c.oid = above.oid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE above.oid <> t.oid AND (above.oid = ANY($1::oid[]) OR EXISTS (
  SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
  WHERE r.prrelid = above.oid AND p.pubname::text = ANY($2::text[])))
ORDER BY t.oid, above.level DESC";

/// For each of the tables `oids` that is a partition below another one of them, or below a table of these
/// publications: the topmost.
///
/// # Errors
/// [`Error`] of the query.
pub async fn published_ancestors(
    session: &Session,
    oids: &[u32],
    publications: &[String],
) -> Result<HashMap<u32, TableId>, Error> {
    let rows = session.client.query(PUBLISHED_ANCESTORS, &[&oids, &publications]).await?;
    let ancestor = |row: &tokio_postgres::Row| {
        Ok((row.try_get(0)?, TableId::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?)))
    };
    rows.iter().map(ancestor).collect()
}
