//! What one relation is, who may read it, and which column values its changes name it by.

use std::collections::{BTreeMap, HashMap};

use tokio_postgres::Row;

use crate::{
    model::{IdentityKind, TableId},
    postgres::{Error, quote, session::Session},
};

/// One relation: a mirrored table itself, or a leaf partition that holds its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationFacts {
    /// Its name.
    pub id: TableId,
    /// `pg_class.oid`
    pub oid: u32,
    /// `pg_class.relkind`: `r` table, `p` partitioned table, `v` view, `m` materialized view, `f` foreign
    /// table.
    pub kind: char,
    /// `pg_class.relpersistence`: `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// The owning role.
    pub owner: String,
    /// Whether the session's role has the owner's privileges, which publishing a table takes.
    pub owned: bool,
    /// Whether the session's role may look names up in the schema.
    pub schema_usage: bool,
    /// The columns that the session's role may read, system columns among them; `None` when it has SELECT on
    /// the table.
    pub readable_columns: Option<Vec<String>>,
    /// Whether row-level security hides rows from the session's role.
    pub row_security_active: bool,
    /// Whether it has generated columns.
    pub generated: bool,
    /// What the old row of an UPDATE or DELETE carries.
    pub identity: IdentityKind,
    /// The columns of the replica identity's index; with [`IdentityKind::Full`] those of the primary key or,
    /// without one, of a unique index without NULLs; empty when there is none. In key order.
    pub key: Vec<String>,
    /// What could name rows, whether or not it is the replica identity.
    pub candidate: Option<KeyCandidate>,
}

/// Since PostgreSQL 18, an UPDATE fails when the replica identity has a generated column that isn't
/// published.
pub const GENERATED_IN_IDENTITY: u32 = 180_000;

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

    /// Those of these columns that the session's role may not read.
    pub fn unreadable<'a>(&self, columns: &'a [String]) -> Vec<&'a str> {
        let may_read = |name: &String| self.readable_columns.as_ref().is_none_or(|may| may.contains(name));
        columns.iter().filter(|name| !may_read(name)).map(String::as_str).collect()
    }

    /// Why old rows of this leaf partition are not what its `root` makes of them; `None` when they are.
    /// PostgreSQL logs the old row by the leaf's own identity and sends it as if it were the root's.
    pub fn unlike_root(&self, root: &RelationFacts) -> Option<String> {
        if self.identity == IdentityKind::Nothing {
            return Some("has no replica identity of its own: UPDATE and DELETE on it would fail".to_owned());
        }
        if root.identity == IdentityKind::Full && self.identity != IdentityKind::Full {
            return Some("is not FULL as its table is, so old rows would come incomplete".to_owned());
        }
        let lacking = root.key.iter().find(|column| !self.identifies(column))?;
        Some(format!("does not have {lacking} in its replica identity"))
    }

    /// The statement that gives this leaf partition an identity with all that any root asks for.
    pub fn identity_statement(&self) -> String {
        format!("ALTER TABLE {} REPLICA IDENTITY FULL", quote::table(&self.id))
    }

    /// Whether its rows never get into the log.
    pub fn is_unlogged(&self) -> bool {
        self.kind == 'f' || self.persistence != 'p'
    }

    /// Why PostgreSQL refuses UPDATE and DELETE on this relation while it is published with this list of
    /// columns; `None` when it doesn't.
    pub fn refuses_list(&self, listed: &[String]) -> Option<String> {
        if self.is_unlogged() {
            return None;
        }
        let id = &self.id;
        if self.identity == IdentityKind::Full {
            return Some(format!("{id} has replica identity FULL, which a column list does not cover"));
        }
        let lacking = self.key.iter().find(|column| !listed.contains(column))?;
        Some(format!("the column list lacks {lacking}, which is in the replica identity of {id}"))
    }

    /// Why PostgreSQL refuses UPDATE and DELETE on this relation while it is published with a row filter that
    /// names these columns; `None` when it doesn't. `server_version` is as in `server_version_num`.
    pub fn refuses_changes(&self, filter_columns: &[String], server_version: u32) -> Option<String> {
        let id = &self.id;
        // What is not in the log is not published.
        if self.is_unlogged() {
            return None;
        }
        if self.identity == IdentityKind::Nothing {
            return Some(format!("{id} has no replica identity"));
        }
        if server_version >= GENERATED_IN_IDENTITY && self.generated && self.identity == IdentityKind::Full {
            return Some(format!("{id} has replica identity FULL and generated columns"));
        }
        let column = filter_columns.iter().find(|column| !self.identifies(column))?;
        Some(format!("where names {column}, which is not in the replica identity of {id}"))
    }
}

/// Whether column `a` can't hold NULL. Since PostgreSQL 18 `attnotnull` is also set by a constraint that is
/// NOT VALID yet.
pub(super) const NOT_NULL: &str = "\
(a.attnotnull AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conrelid = a.attrelid AND c.contype = 'n' \
AND NOT c.convalidated AND c.conkey = ARRAY[a.attnum]))";

/// Each of the tables `$1` (oids) first, then its leaf partitions. Most relations have no privileges of
/// single columns, and then their columns are not read.
const RELATIONS: &str = "\
SELECT c.oid, n.nspname::text, c.relname::text, c.relkind, c.relpersistence, c.relreplident,
  pg_get_userbyid(c.relowner)::text, pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(n.oid, 'USAGE'),
  CASE WHEN has_table_privilege(c.oid, 'SELECT') THEN NULL WHEN NOT has_any_column_privilege(c.oid, 'SELECT') THEN ARRAY[]::text[]
    ELSE ARRAY(SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped
      AND has_column_privilege(c.oid, a.attnum, 'SELECT')) END, row_security_active(c.oid),
  EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped), t.oid
FROM unnest($1::oid[]) AS t (oid)
CROSS JOIN LATERAL (SELECT t.oid UNION SELECT relid FROM pg_partition_tree(t.oid) WHERE isleaf) AS member (oid)
JOIN pg_class c ON c.oid = member.oid JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY t.oid, c.oid <> t.oid, n.nspname, c.relname";

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

/// The relations with these oids, each with its leaf partitions behind it, by oid; one that is gone is not in
/// the answer.
///
/// # Errors
/// [`Error`] of the queries.
pub async fn relations(session: &Session, oids: &[u32]) -> Result<BTreeMap<u32, Vec<RelationFacts>>, Error> {
    let rows = session.client.query(RELATIONS, &[&oids]).await?;
    let members = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<u32>, _>>()?;
    let indexes = session.client.query(&unique_indexes(), &[&members]).await?;
    let mut by_relation: HashMap<u32, Vec<UniqueIndex>> = HashMap::new();
    for index in &indexes {
        let index = unique_index(index)?;
        by_relation.entry(index.relation).or_default().push(index);
    }
    let mut found: BTreeMap<u32, Vec<RelationFacts>> = BTreeMap::new();
    for row in &rows {
        let indexes = by_relation.get(&row.try_get(0)?).map(Vec::as_slice).unwrap_or_default();
        found.entry(row.try_get(12)?).or_default().push(relation(row, indexes)?);
    }
    Ok(found)
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
    let indexes: Vec<_> = indexes.iter().collect();
    let (identity, key) = identity(letter(row, 5)?, &indexes);
    Ok(RelationFacts {
        id: TableId::new(row.try_get::<_, String>(1)?, row.try_get::<_, String>(2)?),
        oid,
        kind: letter(row, 3)?,
        persistence: letter(row, 4)?,
        owner: row.try_get(6)?,
        owned: row.try_get(7)?,
        schema_usage: row.try_get(8)?,
        readable_columns: row.try_get(9)?,
        row_security_active: row.try_get(10)?,
        generated: row.try_get(11)?,
        candidate: candidate(&indexes),
        identity,
        key,
    })
}

/// A value of PostgreSQL's one-byte type `"char"`.
pub(super) fn letter(row: &Row, index: usize) -> Result<char, Error> {
    Ok(char::from(row.try_get::<_, i8>(index)?.cast_unsigned()))
}

/// The replica identity and the columns that name a row, from `pg_class.relreplident` and the table's unique
/// indexes.
///
/// A deferrable index names nothing: two rows may share its key for a while, and the tombstone of one would
/// hide the other.
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
impl RelationFacts {
    /// `public.NAME`, an ordinary table with the primary key `id`; tests change what they are about.
    pub(crate) fn sample(name: &str) -> RelationFacts {
        RelationFacts {
            id: TableId::new("public", name),
            oid: 16_400,
            kind: 'r',
            persistence: 'p',
            owner: "app".to_owned(),
            owned: true,
            schema_usage: true,
            readable_columns: None,
            row_security_active: false,
            generated: false,
            identity: IdentityKind::Default,
            key: vec!["id".to_owned()],
            candidate: Some(KeyCandidate::PrimaryKey),
        }
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
    fn reports_what_refuses_changes() {
        let facts = |identity, generated| RelationFacts { generated, identity, ..RelationFacts::sample("t") };
        let (id, other) = (["id".to_owned()], ["other".to_owned()]);
        let refuses = |identity, generated, filter: &[String], version| {
            facts(identity, generated).refuses_changes(filter, version)
        };
        assert_eq!(refuses(IdentityKind::Default, true, &id, 180_000), None);
        assert!(refuses(IdentityKind::Nothing, false, &[], 180_000).is_some());
        assert!(refuses(IdentityKind::Index, false, &other, 180_000).unwrap().contains("names other"));
        assert_eq!(refuses(IdentityKind::Full, false, &other, 180_000), None);
        assert_eq!(refuses(IdentityKind::Full, true, &other, 170_000), None);
        assert!(refuses(IdentityKind::Full, true, &[], 180_000).unwrap().contains("generated"));
        let listed =
            |identity, list: &[String]| facts(identity, false).refuses_list(list).unwrap_or_default();
        assert_eq!(listed(IdentityKind::Default, &id), "");
        assert!(listed(IdentityKind::Index, &other).contains("lacks id, which is in the replica identity"));
        assert!(listed(IdentityKind::Full, &id).contains("FULL"));
        let foreign = RelationFacts { kind: 'f', ..facts(IdentityKind::Nothing, false) };
        assert_eq!(foreign.refuses_changes(&[], 180_000), None);
    }

    #[test]
    fn index_query_looks_at_key_columns_only() {
        assert!(unique_indexes().contains("position <= i.indnkeyatts"));
    }
}
