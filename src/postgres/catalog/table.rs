//! A mirrored table: the catalog's description and the table's spec combined into one [`TableSchema`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tokio_postgres::Row;

use super::{
    closest::closest,
    live::{LiveColumn, NamedColumn, Parted},
    relation::{self, NOT_NULL, RelationFacts},
    types::{TYPES, TypeRow, source_type},
};
use crate::{
    fault::Remedy,
    model::{Column, IdentityKind, TableId, TableKind, TableSchema, TableSpec},
    postgres::{Error, quote, session::Session},
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
        let relations = std::iter::once(&self.relation).chain(&self.partitions);
        relations.filter(|_| sends_changes).find_map(|relation| relation.refuses_list(&mirrored))
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
const AT_ONCE: usize = 100;

/// A row of [`columns_statement`].
#[derive(Clone, Debug)]
struct ColumnRow {
    name: String,
    attnum: i16,
    type_oid: u32,
    type_modifier: i32,
    type_name: String,
    not_null: bool,
    generated: bool,
    missing_value: Option<String>,
    written_by: u32,
}

/// The catalog's description of a table, before the spec is applied.
struct CatalogTable {
    relation: RelationFacts,
    columns: Vec<ColumnRow>,
    /// Shared by the tables that were described together.
    types: Arc<HashMap<u32, TypeRow>>,
}

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
    for specs in specs.chunks(AT_ONCE) {
        let ids: Vec<&TableId> = specs.iter().map(|(spec, _)| &spec.id).collect();
        let by_place = table_oids(session, &ids).await?;
        let oids: Vec<u32> = by_place.values().copied().collect();
        let mut relations = relation::relations(session, &oids).await?;
        let mut columns: HashMap<u32, Vec<ColumnRow>> = HashMap::new();
        for row in session.client.query(&columns_statement(), &[&oids]).await? {
            columns.entry(row.try_get(8)?).or_default().push(column_row(&row)?);
        }
        let types = session.client.query(TYPES, &[&oids]).await?;
        let types = Arc::new(types.iter().map(type_row).collect::<Result<HashMap<_, _>, _>>()?);
        let parents = with_children(session, &oids).await?;
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

/// Makes the schema of a table from its catalog rows and the Mirror's lists.
fn resolve(spec: &TableSpec, table: &CatalogTable) -> Result<TableSchema, Error> {
    let mirrored: Vec<_> = table
        .columns
        .iter()
        .filter(|column| !column.generated && !spec.exclude.contains(&column.name))
        .collect();
    if mirrored.is_empty() {
        return Err(refuse(spec, "it has no column to mirror"));
    }
    require_columns(spec, "columns.exclude", &spec.exclude, table.columns.iter())?;
    require_columns(
        spec,
        "columns.rename",
        spec.rename.iter().map(|(name, _)| name),
        mirrored.iter().copied(),
    )?;
    require_columns(
        spec,
        "columns.types",
        spec.types.iter().map(|(name, _)| name),
        mirrored.iter().copied(),
    )?;
    let columns: Vec<_> = mirrored.iter().map(|column| make_column(spec, table, column)).collect();
    check_target_names(spec, &columns)?;
    let key = key(spec, table, &columns)?;
    Ok(TableSchema {
        id: spec.id.clone(),
        oid: table.relation.oid,
        target: spec.target.clone().unwrap_or_else(|| spec.id.name.clone()),
        order_by: order_by(spec, &table.relation, &columns, &key)?,
        columns,
        kind: kind(spec, &table.relation),
        key,
        identity: table.relation.identity,
        partition_by: spec.partition_by.clone(),
        ttl: spec.ttl.clone(),
        settings: spec.settings.clone(),
        row_filter: spec.row_filter.clone(),
        partitioned: table.relation.kind == 'p',
    })
}

/// What identifies the rows of a relation. One that has neither a key nor whole old rows counts as keyed: the
/// checks refuse it.
fn kind(spec: &TableSpec, relation: &RelationFacts) -> TableKind {
    match relation.identity {
        _ if spec.insert_only => TableKind::AppendOnly,
        IdentityKind::Full if relation.key.is_empty() => TableKind::ChangeLog,
        _ => TableKind::Keyed,
    }
}

fn refuse(spec: &TableSpec, message: impl Into<String>) -> Error {
    refuse_with(spec, message, [])
}

fn refuse_with(
    spec: &TableSpec,
    message: impl Into<String>,
    remedies: impl IntoIterator<Item = Remedy>,
) -> Error {
    let remedies = remedies.into_iter().collect();
    Error::Schema { table: spec.id.clone(), message: message.into(), remedies }
}

fn make_column(spec: &TableSpec, table: &CatalogTable, column: &ColumnRow) -> Column {
    let listed = |list: &[(String, String)]| {
        list.iter().find(|(name, _)| *name == column.name).map(|(_, value)| value.clone())
    };
    Column {
        name: column.name.clone(),
        target_name: listed(&spec.rename).unwrap_or_else(|| column.name.clone()),
        attnum: column.attnum,
        type_oid: column.type_oid,
        type_modifier: column.type_modifier,
        type_name: column.type_name.clone(),
        source_type: source_type(&table.types, column.type_oid, column.type_modifier),
        nullable: !column.not_null,
        type_override: listed(&spec.types),
        missing_value: column.missing_value.clone(),
        dropped: false,
        former_names: Vec::new(),
        former_types: Vec::new(),
    }
}

fn require_columns<'a>(
    spec: &TableSpec,
    list: &'static str,
    wanted: impl IntoIterator<Item = &'a String>,
    known: impl Iterator<Item = &'a ColumnRow> + Clone,
) -> Result<(), Error> {
    for name in wanted {
        if !known.clone().any(|column| column.name == *name) {
            let hint = closest(name, known.map(|column| column.name.as_str()));
            return Err(unknown_column(spec, list, name, hint));
        }
    }
    Ok(())
}

fn unknown_column(spec: &TableSpec, list: &'static str, name: &str, hint: Option<&str>) -> Error {
    let hint = hint.map(|hint| format!(" (did you mean {hint}?)")).unwrap_or_default();
    Error::UnknownColumn { table: spec.id.clone(), list, column: format!("{name}{hint}") }
}

fn check_target_names(spec: &TableSpec, columns: &[Column]) -> Result<(), Error> {
    let mut names = HashSet::new();
    for Column { name, target_name: target, .. } in columns {
        if target.starts_with("_walferry_") {
            return Err(refuse(
                spec,
                format!(
                    "column {name} would be called {target} at the destination, and names that begin with _walferry_ \
                     are walferry's own; give it another in columns.rename"
                ),
            ));
        }
        if !names.insert(target) {
            return Err(refuse(
                spec,
                format!("two columns would be called {target} at the destination; change columns.rename"),
            ));
        }
    }
    Ok(())
}

fn key(spec: &TableSpec, table: &CatalogTable, columns: &[Column]) -> Result<Vec<usize>, Error> {
    let index_of = |name: &String| {
        columns.iter().position(|column| column.name == *name).ok_or_else(|| {
            refuse(
                spec,
                if spec.exclude.contains(name) {
                    format!("columns.exclude leaves out {name}, which is part of the key; keep it")
                } else {
                    format!(
                        "key column {name} is generated, and generated columns are not replicated; choose a unique index \
                         without it with ALTER TABLE … REPLICA IDENTITY USING INDEX …"
                    )
                },
            )
        })
    };
    let key = if spec.insert_only { &[] } else { table.relation.key.as_slice() };
    key.iter().map(index_of).collect()
}

/// The destination's sorting key. It decides which rows replace each other, so it has the whole key, and no
/// column whose old value an UPDATE or DELETE doesn't carry.
fn order_by(
    spec: &TableSpec,
    relation: &RelationFacts,
    columns: &[Column],
    key: &[usize],
) -> Result<Vec<usize>, Error> {
    if spec.order_by.is_empty() {
        return Ok(key.to_vec());
    }
    let mut order_by = Vec::with_capacity(spec.order_by.len());
    for target in &spec.order_by {
        let index = columns.iter().position(|column| column.target_name == *target).ok_or_else(|| {
            let hint = closest(target, columns.iter().map(|column| column.target_name.as_str()));
            unknown_column(spec, "engine.orderBy", target, hint)
        })?;
        if order_by.contains(&index) {
            return Err(refuse(spec, format!("engine.orderBy names {target} twice")));
        }
        // Without any identity the table is refused for that, with better advice.
        if relation.identity != IdentityKind::Nothing
            && !spec.insert_only
            && !columns.get(index).is_some_and(|c| relation.identifies(&c.name))
        {
            let leave_out = Remedy::edit("spec.tables[].engine.orderBy", format!("take {target} out"));
            let full = format!("ALTER TABLE {} REPLICA IDENTITY FULL", quote::table(&spec.id));
            return Err(refuse_with(
                spec,
                format!(
                    "engine.orderBy names {target}, but an UPDATE or DELETE does not carry its old value"
                ),
                [Remedy::any_of([vec![leave_out], vec![Remedy::run_at_source(full)]])],
            ));
        }
        order_by.push(index);
    }
    match key.iter().find(|index| !order_by.contains(index)).and_then(|index| columns.get(*index)) {
        Some(column) => Err(refuse(
            spec,
            format!(
                "engine.orderBy leaves out key column {}; different rows would replace each other",
                column.target_name
            ),
        )),
        None => Ok(order_by),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SourceType;

    fn column(name: &str, attnum: i16) -> ColumnRow {
        ColumnRow {
            name: name.to_owned(),
            attnum,
            type_oid: 20,
            type_modifier: -1,
            type_name: "bigint".to_owned(),
            not_null: true,
            generated: false,
            missing_value: None,
            written_by: 7,
        }
    }

    fn table() -> CatalogTable {
        let int8 = TypeRow {
            name: "int8".to_owned(),
            built_in: true,
            kind: 'b',
            base: 0,
            base_modifier: -1,
            element: 0,
            delimiter: ',',
        };
        CatalogTable {
            relation: RelationFacts {
                id: TableId::new("public", "orders"),
                oid: 16_400,
                kind: 'r',
                persistence: 'p',
                owner: "app".to_owned(),
                owned: true,
                schema_usage: true,
                readable_columns: None,
                row_security_active: false,
                generated: true,
                identity: IdentityKind::Default,
                key: vec!["id".to_owned(), "region".to_owned()],
                candidate: None,
            },
            columns: vec![
                column("region", 1),
                column("id", 3),
                ColumnRow { not_null: false, missing_value: Some("7".to_owned()), ..column("amount", 4) },
                ColumnRow { generated: true, ..column("total", 5) },
            ],
            types: Arc::new(HashMap::from([(20, int8)])),
        }
    }

    fn spec() -> TableSpec {
        TableSpec::new(TableId::new("public", "orders"))
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    fn pairs(values: &[(&str, &str)]) -> Vec<(String, String)> {
        values.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    fn refusal(spec: &TableSpec, table: &CatalogTable) -> String {
        resolve(spec, table).unwrap_err().to_string()
    }

    #[test]
    fn leaves_out_generated_and_excluded_columns() {
        let schema =
            resolve(&TableSpec { exclude: texts(&["amount", "total"]), ..spec() }, &table()).unwrap();
        let names: Vec<_> = schema.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["region", "id"]);
        assert_eq!(schema.key, [1, 0], "in the key's order");
        assert_eq!(schema.order_by, schema.key);
        assert_eq!(schema.target, "orders");
    }

    #[test]
    fn applies_names_and_types() {
        let spec = TableSpec {
            target: Some("orders_v2".to_owned()),
            rename: pairs(&[("amount", "cents")]),
            types: pairs(&[("amount", "Int32")]),
            order_by: texts(&["region", "id"]),
            ..spec()
        };
        let schema = resolve(&spec, &table()).unwrap();
        assert_eq!(schema.target, "orders_v2");
        assert_eq!(schema.order_by, [0, 1]);
        let amount = &schema.columns[2];
        assert_eq!((amount.name.as_str(), amount.target_name.as_str()), ("amount", "cents"));
        assert_eq!(amount.type_override.as_deref(), Some("Int32"));
        assert_eq!(amount.missing_value.as_deref(), Some("7"));
        assert_eq!(amount.source_type, SourceType::Int8);
        assert!(amount.nullable && !schema.columns[1].nullable);
    }

    #[test]
    fn lists_that_name_no_column_are_refused() {
        for (list, spec) in [
            ("columns.exclude", TableSpec { exclude: texts(&["amuont"]), ..spec() }),
            ("columns.rename", TableSpec { rename: pairs(&[("amuont", "x")]), ..spec() }),
            ("columns.types", TableSpec { types: pairs(&[("amuont", "Int8")]), ..spec() }),
            ("engine.orderBy", TableSpec { order_by: texts(&["amuont"]), ..spec() }),
        ] {
            let message = refusal(&spec, &table());
            assert!(message.contains(list) && message.contains("did you mean amount?"), "{message}");
        }
        assert!(
            refusal(&TableSpec { types: pairs(&[("total", "Int8")]), ..spec() }, &table()).contains("total")
        );
    }

    #[test]
    fn a_key_column_can_not_be_left_out() {
        assert!(
            refusal(&TableSpec { exclude: texts(&["id"]), ..spec() }, &table())
                .contains("columns.exclude leaves out id")
        );
        let mut generated = table();
        generated.columns[1].generated = true;
        assert!(refusal(&spec(), &generated).contains("key column id is generated"));
    }

    #[test]
    fn target_names_are_unique_and_not_ours() {
        let twice = TableSpec { rename: pairs(&[("amount", "id")]), ..spec() };
        assert!(refusal(&twice, &table()).contains("two columns would be called id"));
        let ours = TableSpec { rename: pairs(&[("amount", "_walferry_version")]), ..spec() };
        assert!(refusal(&ours, &table()).contains("walferry's own"));
        let nothing = TableSpec { exclude: texts(&["id", "region", "amount"]), ..spec() };
        assert!(refusal(&nothing, &table()).contains("no column to mirror"));
    }

    #[test]
    fn order_by_names_rows_as_the_key_does() {
        let order = |names: &[&str]| TableSpec { order_by: texts(names), ..spec() };
        assert!(refusal(&order(&["region"]), &table()).contains("leaves out key column id"));
        assert!(refusal(&order(&["id", "region", "id"]), &table()).contains("names id twice"));
        let refused = resolve(&order(&["amount", "id", "region"]), &table()).unwrap_err();
        let full = Remedy::run_at_source("ALTER TABLE \"public\".\"orders\" REPLICA IDENTITY FULL");
        let leave_out = Remedy::edit("spec.tables[].engine.orderBy", "take amount out");
        assert_eq!(refused.remedies(), [Remedy::any_of([vec![leave_out], vec![full]])]);
        let mut full = table();
        full.relation.identity = IdentityKind::Full;
        assert_eq!(resolve(&order(&["amount", "id", "region"]), &full).unwrap().order_by, [2, 1, 0]);
    }

    #[test]
    fn a_table_without_identity_is_described_with_an_empty_key() {
        let mut keyless = table();
        keyless.relation.identity = IdentityKind::Nothing;
        keyless.relation.key.clear();
        let schema = resolve(&spec(), &keyless).unwrap();
        assert!(schema.key.is_empty() && schema.order_by.is_empty());
    }
}
