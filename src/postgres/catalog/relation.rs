//! What one relation is, who may read it, and which column values its changes name it by.

use tokio_postgres::Row;

use crate::{
    model::{IdentityKind, TableId},
    postgres::{Error, session::Session},
};

/// One relation: a mirrored table itself, or a leaf partition that holds its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationFacts {
    /// Its name.
    pub id: TableId,
    /// `pg_class.oid`
    pub oid: u32,
    /// `pg_class.relkind`: `r` table, `p` partitioned table, `v` view, `m` materialized view, `f` foreign table.
    pub kind: char,
    /// `pg_class.relpersistence`: `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// The owning role.
    pub owner: String,
    /// Whether the session's role has the owner's rights, which publishing a table takes.
    pub owned: bool,
    /// Whether the session's role may look names up in the schema.
    pub schema_usage: bool,
    /// Whether the session's role may read all columns (reading by `ctid` takes the right on the table).
    pub can_select: bool,
    /// Whether row-level security hides rows from the session's role.
    pub row_security_active: bool,
    /// What the old row of an UPDATE or DELETE carries.
    pub identity: IdentityKind,
    /// The columns of the replica identity's index; with [`IdentityKind::Full`] those of the primary key or, without one,
    /// of a unique index without NULLs; empty when there is none. In key order.
    pub key: Vec<String>,
    /// What could name rows, whether or not it is the replica identity.
    pub candidate: Option<KeyCandidate>,
}

/// An index that could name rows, or a key that comes close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCandidate {
    /// The primary key.
    PrimaryKey,
    /// A unique index without NULLs, by name.
    UniqueIndex(String),
    /// A deferrable primary key, which PostgreSQL takes for no replica identity.
    Deferrable {
        /// The constraint's name.
        constraint: String,
        /// Its columns.
        columns: Vec<String>,
    },
}

impl RelationFacts {
    /// Whether the old row of every UPDATE and DELETE names this column's value.
    pub fn identifies(&self, column: &str) -> bool {
        match self.identity {
            IdentityKind::Full => true,
            IdentityKind::Default | IdentityKind::Index => self.key.iter().any(|key| key == column),
            IdentityKind::Nothing => false,
        }
    }
}

/// Whether column `a` can't hold NULL. Since PostgreSQL 18 `attnotnull` is also set by a constraint that is NOT VALID yet.
pub(super) const NOT_NULL: &str = "\
(a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = a.attrelid AND c.contype = 'n' \
AND NOT c.convalidated AND c.conkey = ARRAY[a.attnum]))";

/// The table `$1` (an oid) first, then its leaf partitions.
const RELATIONS: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind, c.relpersistence, c.relreplident,
  pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(n.oid, 'USAGE'),
  has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = $1::oid OR c.oid IN (SELECT relid FROM pg_partition_tree($1::oid) WHERE isleaf)
ORDER BY c.oid <> $1::oid, n.nspname, c.relname";

/// The unique indexes of the relations `$1` (oids) that can name a row: complete, valid, over plain columns.
fn unique_indexes() -> String {
    format!(
        "\
SELECT i.indrelid, i.indisprimary, i.indisreplident, i.indimmediate, k.not_null, k.columns, n.relname::text
FROM pg_index i JOIN pg_class n ON n.oid = i.indexrelid, LATERAL (
  SELECT array_agg(a.attname::text ORDER BY position) AS columns, bool_and({NOT_NULL}) AS not_null
  FROM unnest(i.indkey) WITH ORDINALITY AS parts (attnum, position)
  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = parts.attnum
  WHERE position <= i.indnkeyatts) k
WHERE i.indrelid = ANY($1) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
ORDER BY i.indexrelid"
    )
}

/// A unique index that can name a row.
#[derive(Clone, Debug)]
struct UniqueIndex {
    relation: u32,
    name: String,
    primary: bool,
    replica_identity: bool,
    immediate: bool,
    not_null: bool,
    columns: Vec<String>,
}

/// The relation with this oid, then its leaf partitions; empty when it is gone.
pub(super) async fn relations(session: &Session, oid: u32) -> Result<Vec<RelationFacts>, Error> {
    let rows = session.client.query(RELATIONS, &[&oid]).await?;
    let oids = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<u32>, _>>()?;
    let indexes = session.client.query(&unique_indexes(), &[&oids]).await?;
    let indexes = indexes.iter().map(unique_index).collect::<Result<Vec<_>, _>>()?;
    rows.iter().map(|row| relation(row, &indexes)).collect()
}

fn unique_index(row: &Row) -> Result<UniqueIndex, Error> {
    Ok(UniqueIndex {
        relation: row.try_get(0)?,
        primary: row.try_get(1)?,
        replica_identity: row.try_get(2)?,
        immediate: row.try_get(3)?,
        not_null: row.try_get(4)?,
        columns: row.try_get(5)?,
        name: row.try_get(6)?,
    })
}

fn relation(row: &Row, indexes: &[UniqueIndex]) -> Result<RelationFacts, Error> {
    let oid: u32 = row.try_get(0)?;
    let indexes: Vec<_> = indexes.iter().filter(|index| index.relation == oid).collect();
    let (identity, key) = identity(letter(row, 5)?, &indexes);
    Ok(RelationFacts {
        id: TableId::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?),
        oid,
        kind: letter(row, 3)?,
        persistence: letter(row, 4)?,
        owner: row.try_get(6)?,
        owned: row.try_get(7)?,
        schema_usage: row.try_get(8)?,
        can_select: row.try_get(9)?,
        row_security_active: row.try_get(10)?,
        candidate: candidate(&indexes),
        identity,
        key,
    })
}

/// A value of PostgreSQL's one-byte type `"char"`.
pub(super) fn letter(row: &Row, index: usize) -> Result<char, Error> {
    Ok(char::from(row.try_get::<_, i8>(index)?.cast_unsigned()))
}

/// The replica identity and the columns that name a row, from `pg_class.relreplident` and the table's unique indexes.
///
/// A deferrable index names nothing: two rows may share its key for a while, and the tombstone of one would hide the other.
fn identity(relreplident: char, indexes: &[&UniqueIndex]) -> (IdentityKind, Vec<String>) {
    let find = |wanted: fn(&UniqueIndex) -> bool| {
        indexes.iter().find(|index| index.immediate && wanted(index)).map(|index| index.columns.clone())
    };
    let primary = || find(|index| index.primary);
    match relreplident {
        'd' => primary().map(|key| (IdentityKind::Default, key)),
        'i' => find(|index| index.replica_identity).map(|key| (IdentityKind::Index, key)),
        'f' => {
            let key = primary().or_else(|| find(|index| index.not_null)).unwrap_or_default();
            Some((IdentityKind::Full, key))
        }
        _ => None,
    }
    .unwrap_or((IdentityKind::Nothing, Vec::new()))
}

fn candidate(indexes: &[&UniqueIndex]) -> Option<KeyCandidate> {
    let usable = |primary: bool| indexes.iter().find(|i| i.immediate && i.not_null && i.primary == primary);
    let deferrable = || indexes.iter().find(|index| index.primary);
    match (usable(true), usable(false)) {
        (Some(_), _) => Some(KeyCandidate::PrimaryKey),
        (None, Some(index)) => Some(KeyCandidate::UniqueIndex(index.name.clone())),
        (None, None) => deferrable().map(|index| KeyCandidate::Deferrable {
            constraint: index.name.clone(),
            columns: index.columns.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(column: &str) -> UniqueIndex {
        UniqueIndex {
            relation: 1,
            name: format!("{column}_key"),
            primary: false,
            replica_identity: false,
            immediate: true,
            not_null: true,
            columns: vec![column.to_owned()],
        }
    }

    fn of(letter: char, indexes: &[UniqueIndex]) -> (IdentityKind, String) {
        let (kind, key) = identity(letter, &indexes.iter().collect::<Vec<_>>());
        (kind, key.join(","))
    }

    #[test]
    fn the_identity_follows_relreplident() {
        let indexes = [
            index("other"),
            UniqueIndex { primary: true, ..index("id") },
            UniqueIndex { replica_identity: true, ..index("code") },
        ];
        assert_eq!(of('d', &indexes), (IdentityKind::Default, "id".into()));
        assert_eq!(of('i', &indexes), (IdentityKind::Index, "code".into()));
        assert_eq!(of('f', &indexes), (IdentityKind::Full, "id".into()));
        assert_eq!(of('n', &indexes), (IdentityKind::Nothing, String::new()));
    }

    #[test]
    fn nothing_names_a_row_without_a_usable_index() {
        let deferrable = [UniqueIndex { primary: true, immediate: false, ..index("id") }];
        assert_eq!(of('d', &deferrable), (IdentityKind::Nothing, String::new()));
        assert_eq!(of('f', &deferrable), (IdentityKind::Full, String::new()));
        // The identity's index was dropped.
        assert_eq!(of('i', &[index("id")]), (IdentityKind::Nothing, String::new()));
    }

    #[test]
    fn a_full_identity_takes_the_first_unique_index_without_nulls() {
        let indexes = [UniqueIndex { not_null: false, ..index("nullable") }, index("code"), index("later")];
        assert_eq!(of('f', &indexes), (IdentityKind::Full, "code".into()));
    }

    #[test]
    fn what_could_name_rows_is_found() {
        let of = |indexes: &[UniqueIndex]| candidate(&indexes.iter().collect::<Vec<_>>());
        let primary = UniqueIndex { primary: true, ..index("id") };
        let deferrable = UniqueIndex { immediate: false, ..primary.clone() };
        assert_eq!(of(&[index("code"), primary]), Some(KeyCandidate::PrimaryKey));
        assert_eq!(
            of(&[deferrable.clone(), index("code")]),
            Some(KeyCandidate::UniqueIndex("code_key".to_owned()))
        );
        assert_eq!(
            of(&[deferrable]),
            Some(KeyCandidate::Deferrable {
                constraint: "id_key".to_owned(),
                columns: vec!["id".to_owned()]
            })
        );
        assert_eq!(of(&[UniqueIndex { not_null: false, ..index("code") }]), None);
    }

    #[test]
    fn index_query_looks_at_key_columns_only() {
        assert!(unique_indexes().contains("position <= i.indnkeyatts"));
    }
}
