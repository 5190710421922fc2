//! A mirrored table as the catalog describes it, with the schema that follows from its spec.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio_postgres::Row;

use super::{
    closest::closest,
    names::{LiveColumn, NamedColumn, Parted},
    relation::{self, NOT_NULL, RelationFacts},
    resolve::{CatalogTable, ColumnRow, resolve},
    types::{TYPES, TypeRow},
};
use crate::{
    model::{TableId, TableKind, TableSchema, TableSpec},
    postgres::{Error, session::Session},
};

/// A table as it is at the source, before any check.
#[derive(Clone, Debug)]
pub struct TableFacts {
    /// What is mirrored. A keyed table's `key` is empty when nothing names a row; such a table must not be
    /// published.
    pub schema: TableSchema,
    /// The table itself.
    pub relation: RelationFacts,
    /// Its leaf partitions, by name.
    pub partitions: Vec<RelationFacts>,
    /// All its columns.
    pub columns: Vec<LiveColumn>,
    /// Generated columns, which are not mirrored.
    pub generated_columns: Vec<String>,
    /// Whether other tables inherit from it (partitions don't count).
    pub inherits_children: bool,
}

impl TableFacts {
    /// Why PostgreSQL would refuse the application's UPDATE or DELETE once the table is published with a list
    /// of its mirrored columns.
    pub fn refuses_list(&self) -> Option<String> {
        let mirrored: Vec<String> = self.schema.columns.iter().map(|column| column.name.clone()).collect();
        let sends_changes = self.schema.kind != TableKind::AppendOnly;
        self.relations().filter(|_| sends_changes).find_map(|relation| relation.refuses_list(&mirrored))
    }

    /// The relations whose rows are read and whose own settings PostgreSQL obeys: the table and its leaf
    /// partitions.
    pub fn relations(&self) -> impl Iterator<Item = &RelationFacts> {
        std::iter::once(&self.relation).chain(&self.partitions)
    }

    /// Whether it may be published with a list of its mirrored columns.
    pub fn may_be_listed(&self) -> bool {
        self.refuses_list().is_none()
    }
}

/// Relations of any kind that rows can be read from, so that the checks can say why a view isn't mirrored.
const TABLE_OIDS: &str = "\
SELECT t.position - 1, c.oid FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS t (schema, name, position)
JOIN pg_namespace n ON n.nspname = t.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')";

const TABLE_NAME: &str = "\
SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::oid";

/// Tables that may be the ones that were meant: in the same schema, or of the same name in another.
const SIMILAR_TABLES: &str = "\
SELECT n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname NOT IN ('pg_catalog', 'information_schema')
  AND (n.nspname = $1::text OR lower(c.relname) = lower($2::text))
ORDER BY 1, 2 LIMIT 10000";

const WITH_CHILDREN: &str = "\
SELECT DISTINCT i.inhparent FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = ANY($1::oid[]) AND NOT c.relispartition";

/// The columns of the tables `$1` (oids). A partitioned table has no rows, so the values that its old rows
/// show for later columns are its partitions'. The text of an array would have the separator of its element's
/// type; this one has one element, so nothing separates. Without OFFSET 0 all columns of that name in the
/// whole database would be read.
fn columns_statement() -> String {
    format!(
        "\
SELECT a.attname::text, a.attnum, a.atttypid, a.atttypmod, format_type(a.atttypid, a.atttypmod), {NOT_NULL},
  a.attgenerated <> '',
  coalesce(array_to_string(a.attmissingval, ''), CASE WHEN c.relkind = 'p' THEN
    (SELECT p.value FROM pg_partition_tree(c.oid) t CROSS JOIN LATERAL (
       SELECT array_to_string(m.attmissingval, '') FROM pg_attribute m
       WHERE m.attrelid = t.relid AND m.attname = a.attname AND m.atthasmissing OFFSET 0) AS p (value)
     WHERE t.relid <> c.oid LIMIT 1) END), a.attrelid, a.xmin::text::int8
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attrelid, a.attnum"
    )
}

/// Tables described by the same queries: with 1,600 columns each they still are an answer that is held in
/// memory.
const TABLES_PER_QUERY: usize = 100;

/// The oid of a table or view; `None` when there is none of that name.
///
/// # Errors
/// [`Error`] of the query.
pub(super) async fn table_oid(session: &Session, table: &TableId) -> Result<Option<u32>, Error> {
    Ok(table_oids(session, &[table]).await?.remove(&0))
}

/// The oids of tables and views, by their places in `tables`; one that is not there is not in the answer.
///
/// # Errors
/// [`Error`] of the query.
pub async fn table_oids(session: &Session, tables: &[&TableId]) -> Result<HashMap<usize, u32>, Error> {
    let schemas: Vec<&str> = tables.iter().map(|table| table.schema.as_str()).collect();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let rows = session.client.query(TABLE_OIDS, &[&schemas, &names]).await?;
    let place = |row: &Row| Ok::<_, Error>(usize::try_from(row.try_get::<_, i64>(0)?).unwrap_or(usize::MAX));
    rows.iter().map(|row| Ok((place(row)?, row.try_get(1)?))).collect()
}

/// The name that the table with this oid has now; `None` when it is gone.
///
/// # Errors
/// [`Error`] of the query.
pub async fn table_name(session: &Session, oid: u32) -> Result<Option<TableId>, Error> {
    let row = session.client.query_opt(TABLE_NAME, &[&oid]).await?;
    row.map(|row| Ok(TableId::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?))).transpose()
}

/// Reads a table from the catalog and applies what the Mirror asks of it.
///
/// A table that can't name its rows, or isn't a table at all, is described too: the checks report what to do
/// about it.
///
/// # Errors
/// [`Error::TableMissing`]; [`Error::UnknownColumn`] when a list names a column that is not there;
/// [`Error::Schema`] when the lists leave out a key column, give one target name twice, or make an `orderBy`
/// that would lose rows; else the query's.
pub async fn describe(session: &Session, spec: &TableSpec) -> Result<TableFacts, Error> {
    describe_known(session, spec, &[]).await
}

/// [`describe`] for a table whose entry's names were resolved before: they must still mean the columns of
/// `named`.
///
/// # Errors
/// [`Error::ColumnRenamed`] where they don't; else as [`describe`].
pub async fn describe_known(
    session: &Session,
    spec: &TableSpec,
    named: &[NamedColumn],
) -> Result<TableFacts, Error> {
    let described = describe_all(session, &[(spec, named)]).await?.into_iter().next();
    described.unwrap_or_else(|| Err(Error::Protocol("a table was not described".to_owned())))
}

/// The same for many tables, in their order, with six queries for a hundred of them.
///
/// # Errors
/// Those of the queries; what [`describe_known`] says of a single table is in its place.
pub async fn describe_all(
    session: &Session,
    specs: &[(&TableSpec, &[NamedColumn])],
) -> Result<Vec<Result<TableFacts, Error>>, Error> {
    let mut described = Vec::with_capacity(specs.len());
    for specs in specs.chunks(TABLES_PER_QUERY) {
        let ids: Vec<&TableId> = specs.iter().map(|(spec, _)| &spec.id).collect();
        let by_place = table_oids(session, &ids).await?;
        let oids: Vec<u32> = by_place.values().copied().collect();
        let (mut relations, of_columns, types, parents) = tokio::try_join!(
            relation::relations(session, &oids),
            async { Ok(session.client.query(&columns_statement(), &[&oids]).await?) },
            async { Ok(session.client.query(TYPES, &[&oids]).await?) },
            with_children(session, &oids),
        )?;
        let mut columns: HashMap<u32, Vec<ColumnRow>> = HashMap::new();
        for row in &of_columns {
            columns.entry(row.try_get(8)?).or_default().push(column_row(row)?);
        }
        let types = Arc::new(types.iter().map(type_row).collect::<Result<HashMap<_, _>, _>>()?);
        for (place, (spec, named)) in specs.iter().enumerate() {
            let found = by_place.get(&place).and_then(|oid| Some((*oid, relations.remove(oid)?)));
            let Some((oid, mut members)) = found.filter(|(_, members)| !members.is_empty()) else {
                described.push(Err(missing(session, &spec.id).await?));
                continue;
            };
            let partitions = members.split_off(1);
            let Some(relation) = members.pop() else { continue };
            let columns = columns.remove(&oid).unwrap_or_default();
            let table = CatalogTable { relation, columns, types: Arc::clone(&types) };
            described.push(facts((spec, named), table, partitions, parents.contains(&oid)));
        }
    }
    Ok(described)
}

fn facts(
    (spec, named): (&TableSpec, &[NamedColumn]),
    table: CatalogTable,
    partitions: Vec<RelationFacts>,
    inherits_children: bool,
) -> Result<TableFacts, Error> {
    let columns: Vec<LiveColumn> = table.columns.iter().map(live_column).collect();
    // Before anything else is made of the names: what is not excluded any more would be a column like any
    // other.
    if let Some(parted) = Parted::find(named, &columns) {
        return Err(Error::ColumnRenamed { table: spec.id.clone(), parted: Box::new(parted) });
    }
    Ok(TableFacts {
        schema: resolve(spec, &table)?,
        columns,
        generated_columns: table.columns.into_iter().filter(|c| c.generated).map(|c| c.name).collect(),
        relation: table.relation,
        partitions,
        inherits_children,
    })
}

/// Those of the tables with these oids that others inherit from, apart from partitions.
///
/// # Errors
/// [`Error`] of the query.
pub async fn with_children(session: &Session, oids: &[u32]) -> Result<HashSet<u32>, Error> {
    let parents = session.client.query(WITH_CHILDREN, &[&oids]).await?;
    parents.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn missing(session: &Session, table: &TableId) -> Result<Error, Error> {
    let rows = session.client.query(SIMILAR_TABLES, &[&table.schema, &table.name]).await?;
    let names: Vec<_> = rows
        .iter()
        .map(|row| Ok(TableId::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?)))
        .collect::<Result<_, Error>>()?;
    let elsewhere = names.iter().find(|name| name.name.eq_ignore_ascii_case(&table.name));
    let here = || {
        let in_schema = names.iter().filter(|name| name.schema == table.schema);
        closest(&table.name, in_schema.map(|name| name.name.as_str()))
            .map(|name| TableId::new(&table.schema, name))
    };
    let hint = elsewhere.cloned().or_else(here);
    Ok(Error::TableMissing {
        table: table.clone(),
        hint: hint.map(|name| format!("; did you mean {name}?")).unwrap_or_default(),
    })
}

fn live_column(column: &ColumnRow) -> LiveColumn {
    LiveColumn {
        attnum: column.attnum,
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        generated: column.generated,
        written_by: column.written_by,
    }
}

fn column_row(row: &Row) -> Result<ColumnRow, Error> {
    Ok(ColumnRow {
        name: row.try_get(0)?,
        attnum: row.try_get(1)?,
        type_oid: row.try_get(2)?,
        type_modifier: row.try_get(3)?,
        type_name: row.try_get(4)?,
        not_null: row.try_get(5)?,
        generated: row.try_get(6)?,
        missing_value: row.try_get(7)?,
        written_by: u32::try_from(row.try_get::<_, i64>(9)?).unwrap_or_default(),
    })
}

fn type_row(row: &Row) -> Result<(u32, TypeRow), Error> {
    let facts = TypeRow {
        name: row.try_get(1)?,
        built_in: row.try_get(2)?,
        kind: relation::letter(row, 3)?,
        base: row.try_get(4)?,
        base_modifier: row.try_get(5)?,
        element: row.try_get(6)?,
        delimiter: relation::letter(row, 7)?,
    };
    Ok((row.try_get(0)?, facts))
}
