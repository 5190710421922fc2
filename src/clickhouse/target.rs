//! What is at the destination: reading a target table's shape and comparing it with what the Mirror needs.

use std::collections::HashMap;

use serde::{Deserialize, de::DeserializeOwned};

use super::{
    Client, Error, TableProblem, ddl, expression,
    layout::{Layout, OwnColumn},
    names,
    retention::{self, CLEANUP_SETTINGS},
    types::{self, ChType},
};
use crate::{
    fault::Remedy,
    model::{Column, TableSchema},
};

/// A table as `system.tables` and `system.columns` show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetTable {
    /// The engine's name, `ReplacingMergeTree`.
    pub engine: String,
    /// The engine with its arguments and clauses.
    pub engine_full: String,
    /// The statement that would make it as it is.
    pub create_table_query: String,
    /// The sorting key's expressions.
    pub sorting_key: String,
    /// Its columns, in order.
    pub columns: Vec<TargetColumn>,
    /// The server's defaults of the settings that decide about tombstones, where it shows them.
    pub server_settings: Vec<(String, String)>,
}

/// A column as `system.columns` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TargetColumn {
    /// The column's name.
    pub name: String,
    /// The column's type.
    #[serde(rename = "type")]
    pub column_type: String,
    /// `DEFAULT`, `MATERIALIZED`, `ALIAS`, `EPHEMERAL` or empty.
    pub default_kind: String,
    /// 1 where the partition key's expression uses it.
    #[serde(rename = "is_in_partition_key")]
    pub in_partition_key: u8,
}

#[derive(Deserialize)]
struct TableRow {
    name: String,
    engine: String,
    engine_full: String,
    create_table_query: String,
    sorting_key: String,
}

#[derive(Deserialize)]
struct ColumnRow {
    table: String,
    #[serde(flatten)]
    column: TargetColumn,
}

/// Tables described by one query: their names, of up to 200 characters, have to fit a statement of 256 KiB.
const TABLES_PER_QUERY: usize = 256;

/// Reads tables' shapes, by name; one that isn't there, or that the user may not see, is not in the answer.
pub(super) async fn read(
    client: &Client,
    database: &str,
    tables: &[&str],
) -> Result<HashMap<String, TargetTable>, Error> {
    if tables.is_empty() {
        return Ok(HashMap::new());
    }
    let (mut found, defaults) =
        tokio::try_join!(describe(client, database, tables), cleanup_defaults(client))?;
    for table in found.values_mut() {
        table.server_settings.clone_from(&defaults);
    }
    Ok(found)
}

/// Reads all of it but the server's defaults.
async fn describe(
    client: &Client,
    database: &str,
    tables: &[&str],
) -> Result<HashMap<String, TargetTable>, Error> {
    let mut found = HashMap::with_capacity(tables.len());
    for tables in tables.chunks(TABLES_PER_QUERY) {
        let rows = client.query_text(&ddl::describe_tables(database, tables), &[]).await?;
        for TableRow { name, engine, engine_full, create_table_query, sorting_key } in json_lines(&rows)? {
            let (columns, server_settings) = (Vec::new(), Vec::new());
            let table = TargetTable {
                engine,
                engine_full,
                create_table_query,
                sorting_key,
                columns,
                server_settings,
            };
            found.insert(name, table);
        }
        let columns = client.query_text(&ddl::describe_columns(database, tables), &[]).await?;
        for ColumnRow { table, column } in json_lines(&columns)? {
            if let Some(table) = found.get_mut(&table) {
                table.columns.push(column);
            }
        }
    }
    Ok(found)
}

/// The server's defaults of the settings that decide about tombstones; none where the release, or the user's
/// privileges, don't show them.
async fn cleanup_defaults(client: &Client) -> Result<Vec<(String, String)>, Error> {
    let names = || CLEANUP_SETTINGS.iter().map(|(name, _)| *name);
    match client.query_text(&ddl::merge_tree_settings(names()), &[]).await {
        Ok(answer) => {
            let values = answer.trim_end_matches('\n').split('\t').map(str::to_owned);
            Ok(names().map(str::to_owned).zip(values).collect())
        }
        Err(error) if error.code().is_some() && !error.passes() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct IdentityRow {
    name: String,
    id: String,
}

/// Reads tables' UUIDs, by name.
pub(super) async fn identities(
    client: &Client,
    database: &str,
    tables: &[&str],
) -> Result<HashMap<String, String>, Error> {
    let mut found = HashMap::with_capacity(tables.len());
    for tables in tables.chunks(TABLES_PER_QUERY) {
        let rows = client.query_text(&ddl::identify_tables(database, tables), &[]).await?;
        found.extend(json_lines(&rows)?.into_iter().map(|IdentityRow { name, id }| (name, id)));
    }
    Ok(found)
}

/// The objects of a `JSONEachRow` answer.
pub(super) fn json_lines<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, Error> {
    text.lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()
        .map_err(|_| Error::Protocol("an answer is not the JSON that was asked for".to_owned()))
}

/// The columns that a usable target table lacks, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MissingParts {
    /// Columns that are not there.
    pub columns: Vec<usize>,
    /// Columns whose type there holds some of the values alone, and can be made the wider one that is needed.
    pub width: Vec<usize>,
    /// Those of them whose type there lacks more than NULL.
    pub narrow: Vec<usize>,
}

/// Whether the table can take what the Mirror sends, once it has what it lacks.
///
/// # Errors
/// [`TableProblem`] saying what differs and what to run.
pub fn compare(
    found: &TargetTable,
    database: &str,
    table: &TableSchema,
    types: &[ChType],
) -> Result<MissingParts, TableProblem> {
    let layout = Layout::of(table.kind);
    compare_key(found, database, table)?;
    compare_engine(found, database, table)?;
    for own in layout.all_own() {
        let (name, own_type) = (own.name(), own.column_type().to_string());
        match found.columns.iter().find(|column| column.name == name) {
            Some(column) if column.column_type == own_type => {}
            _ => return Err(other_table(&format!("it has no column {name} {own_type}"))),
        }
    }
    names::refuse(table, types)?;
    retention::refuse_found(found, database, table)?;
    let mut missing = MissingParts::default();
    for (index, (column, wanted)) in table.columns.iter().zip(types).enumerate() {
        let Some(there) = found.columns.iter().find(|there| there.name == column.target_name) else {
            missing.columns.push(index);
            continue;
        };
        require_writable(there, column, database, table)?;
        let type_there = types::parse(&there.column_type).ok();
        // What is wider there takes every value.
        if there.column_type == wanted.to_string()
            || type_there.as_ref().is_some_and(|there| wanted.widens_to(there))
        {
            continue;
        }
        let differs =
            format!("column {} is {} there but {wanted} is needed", column.target_name, there.column_type);
        if table.order_by.contains(&index) {
            let problem =
                format!("{differs}, and ClickHouse can't change a column that a table is sorted by");
            return Err(TableProblem::conflict(problem).remedied(Remedy::any_of([
                vec![new_target(database, table)],
                vec![keep_type(column, there)],
            ])));
        }
        if type_there.as_ref().is_some_and(|there| there.inner() != wanted.inner()) {
            missing.narrow.push(index);
        }
        if !type_there.is_some_and(|there| there.widens_to(wanted)) {
            let problem =
                format!("{differs}; once it is dropped, the column is made again, and a resync fills it");
            let drop = ddl::drop_column(database, &table.target, &column.target_name);
            return Err(TableProblem::conflict(problem).remedied(Remedy::any_of([
                vec![Remedy::run_at_destination(drop)],
                vec![keep_type(column, there)],
            ])));
        }
        missing.width.push(index);
    }
    Ok(missing)
}

/// Refuses a column whose values ClickHouse computes.
fn require_writable(
    there: &TargetColumn,
    column: &Column,
    database: &str,
    table: &TableSchema,
) -> Result<(), TableProblem> {
    if !matches!(there.default_kind.as_str(), "MATERIALIZED" | "ALIAS" | "EPHEMERAL") {
        return Ok(());
    }
    let name = &column.target_name;
    let problem = format!("column {name} is {} there and can't be written", there.default_kind);
    Err(TableProblem::conflict(problem).remedied(Remedy::any_of([
        vec![Remedy::run_at_destination(ddl::drop_column(database, &table.target, name))],
        vec![Remedy::edit("spec.tables[].columns.rename", format!("give {} another name", column.name))],
    ])))
}

/// How a table gets a layout that ClickHouse can't change: in a new target, which a resync fills.
pub(super) fn new_target(database: &str, table: &TableSchema) -> Remedy {
    let set_aside = ddl::set_aside(database, &table.target);
    Remedy::any_of([
        vec![Remedy::edit("spec.tables", format!("give {} another target.table", table.id))],
        vec![Remedy::run_at_destination(format!(
            "-- if nothing else writes the table that is there\n{set_aside}"
        ))],
    ])
}

/// The type that the target has, in place of the one that walferry would choose.
fn keep_type(column: &Column, there: &TargetColumn) -> Remedy {
    Remedy::edit("spec.tables[].columns.types", format!("set {}: {}", column.name, there.column_type))
}

fn other_table(difference: &str) -> TableProblem {
    TableProblem::conflict(format!("{difference}; this is not a table of walferry's"))
        .remedied(Remedy::edit("spec.tables", "choose another target.table, or rename what is there"))
}

/// An ALTER on a full disk leaves ClickHouse with an empty metadata file: the table can be read and written,
/// not altered, and it is gone after a restart.
fn definition_lost(database: &str, table: &TableSchema) -> TableProblem {
    let problem = "ClickHouse has lost its definition, perhaps by an ALTER while the disk was full, and will lose the table at its next restart";
    let drop = ddl::drop_table(database, &table.target);
    TableProblem::conflict(problem).remedied(Remedy::run_at_destination(drop))
}

fn compare_engine(found: &TargetTable, database: &str, table: &TableSchema) -> Result<(), TableProblem> {
    let layout = Layout::of(table.kind);
    if !found.engine.ends_with("ReplacingMergeTree") {
        return Err(other_table(&format!("its engine is {}, not ReplacingMergeTree", found.engine)));
    }
    if found.engine_full.is_empty() {
        return Err(definition_lost(database, table));
    }
    // ReplicatedReplacingMergeTree has arguments of its own before these.
    let arguments = found.engine_full.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let arguments = arguments.map_or("", |(arguments, _)| arguments);
    let wanted = layout.arguments.iter().map(|own| own.name()).collect::<Vec<_>>().join(", ");
    if !layout.removal.is_empty() && found.columns.iter().any(|column| column.name == OwnColumn::Sign.name())
    {
        let lacks =
            layout.removal.iter().any(|own| found.columns.iter().all(|column| column.name != own.name()));
        if lacks {
            let problem = "a release of walferry made it whose changes could not be removed one by one";
            return Err(TableProblem::conflict(problem).remedied(new_target(database, table)));
        }
    }
    if !arguments.ends_with(&wanted) {
        return Err(other_table(&format!(
            "its engine is {}({arguments}), not ReplacingMergeTree({wanted})",
            found.engine
        )));
    }
    Ok(())
}

/// The order within the key doesn't matter for which rows replace each other, the set of columns does.
fn compare_key(found: &TargetTable, database: &str, table: &TableSchema) -> Result<(), TableProblem> {
    let mut wanted: Vec<String> = ddl::sorting_key(table).map(str::to_owned).collect();
    let shown = wanted.join(", ");
    wanted.sort_unstable();
    // Newer releases keep the parentheses of ORDER BY (id).
    let key = expression::tokens(&found.sorting_key);
    for key in [expression::without_parentheses(&key), &key] {
        let names = expression::list(key).into_iter().map(|part| match part {
            [name] => name.name(),
            _ => None,
        });
        let there: Option<Vec<&str>> = names.collect();
        if there.is_some_and(|mut there| {
            there.sort_unstable();
            there == wanted
        }) {
            return Ok(());
        }
    }
    let sorted = found.sorting_key.trim_start_matches('(').trim_end_matches(')');
    let problem =
        format!("it is sorted by ({sorted}) but ({shown}) is needed, and ClickHouse can't change that");
    Err(TableProblem::conflict(problem).remedied(Remedy::any_of([
        vec![new_target(database, table)],
        vec![Remedy::edit(
            "spec.tables[].engine.orderBy",
            format!("name the columns of ({sorted}), if they are the key's"),
        )],
    ])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clickhouse::{layout::OwnColumn, test_support},
        model::{SourceType, TableKind},
    };

    fn found() -> TargetTable {
        let column = |name: &str, column_type: &str| TargetColumn {
            name: name.to_owned(),
            column_type: column_type.to_owned(),
            ..TargetColumn::default()
        };
        TargetTable {
            engine: "ReplacingMergeTree".to_owned(),
            engine_full: "ReplacingMergeTree(_walferry_version, _walferry_deleted) ORDER BY id SETTINGS \
                          index_granularity = 8192"
                .to_owned(),
            sorting_key: "id".to_owned(),
            create_table_query: String::new(),
            server_settings: Vec::new(),
            columns: vec![
                column("id", "Int64"),
                column("name", "Nullable(String)"),
                column(OwnColumn::Version.name(), "UInt64"),
                column(OwnColumn::Deleted.name(), "UInt8"),
                column("extra", "String"),
            ],
        }
    }

    fn check(change: impl Fn(&mut TargetTable)) -> Result<MissingParts, String> {
        let columns = vec![
            test_support::column("id", SourceType::Int8),
            test_support::column("name", SourceType::Text),
        ];
        let table = test_support::table("users", columns);
        let mut found = found();
        change(&mut found);
        compare(&found, "app", &table, &[ChType::Int(64), ChType::String])
            .map_err(|problem| problem.to_string())
    }

    #[test]
    fn accepts_what_fits() {
        let fits = Ok(MissingParts::default());
        assert_eq!(check(|_| {}), fits);
        // Wider than what is needed.
        assert_eq!(check(|found| found.columns[0].column_type = "Int128".to_owned()), fits);
        assert_eq!(check(|found| found.columns[1].column_type = "String".to_owned()), fits);
        let columns = Ok(MissingParts { columns: vec![1], ..MissingParts::default() });
        assert_eq!(check(|found| drop(found.columns.remove(1))), columns);
        assert_eq!(check(|found| found.sorting_key = "(id)".to_owned()), fits);
        let replicated = "ReplicatedReplacingMergeTree('/clickhouse/tables/{uuid}/{shard}', '{replica}', \
                          _walferry_version, _walferry_deleted) ORDER BY id";
        assert_eq!(
            check(|found| {
                found.engine = "ReplicatedReplacingMergeTree".to_owned();
                found.engine_full = replicated.to_owned();
            }),
            fits
        );
    }

    #[test]
    fn a_column_that_is_narrower_can_be_widened() {
        let columns =
            vec![test_support::column("id", SourceType::Int8), test_support::column("n", SourceType::Int8)];
        let table = test_support::table("users", columns);
        let missing_parts = |there: &str| {
            let mut found = found();
            found.columns[1] =
                TargetColumn { name: "n".into(), column_type: there.into(), ..TargetColumn::default() };
            compare(&found, "app", &table, &[ChType::Int(64), ChType::Int(64).into_nullable()])
                .map(|missing| (missing.width, missing.narrow))
                .map_err(|problem| problem.to_string())
        };
        assert_eq!(missing_parts("Nullable(Int64)"), Ok((vec![], vec![])));
        assert_eq!(missing_parts("Nullable(Int32)"), Ok((vec![1], vec![1])));
        assert_eq!(missing_parts("Int32"), Ok((vec![1], vec![1])));
        assert_eq!(missing_parts("Int64"), Ok((vec![1], vec![])));
        assert!(missing_parts("Nullable(String)").unwrap_err().contains("once it is dropped"));
    }

    #[test]
    fn change_logs_and_keyed_tables_are_distinguished() {
        let columns = vec![
            test_support::column("id", SourceType::Int8),
            test_support::column("name", SourceType::Text),
        ];
        let mut table = test_support::table("users", columns);
        table.kind = TableKind::ChangeLog;
        table.key.clear();
        table.order_by.clear();
        let types = [ChType::Int(64), ChType::String];
        let keyed = found();
        assert!(compare(&keyed, "app", &table, &types).unwrap_err().to_string().contains("sorted by (id)"));
        let mut changes = found();
        changes.sorting_key = "_walferry_version, _walferry_ordinal".to_owned();
        changes.engine_full = "ReplacingMergeTree(_walferry_removal, _walferry_removed) ORDER BY (_walferry_version, _walferry_ordinal)".to_owned();
        let refusal =
            |changes: &TargetTable| compare(changes, "app", &table, &types).unwrap_err().to_string();
        assert!(refusal(&changes).contains("_walferry_ordinal UInt64"));
        for (name, column_type) in [("_walferry_ordinal", "UInt64"), ("_walferry_sign", "Int8")] {
            changes.columns.push(TargetColumn {
                name: name.into(),
                column_type: column_type.into(),
                ..TargetColumn::default()
            });
        }
        let refused = compare(&changes, "app", &table, &types).unwrap_err();
        assert_eq!(refused.remedies(), [new_target("app", &table)]);
        for (name, column_type) in [("_walferry_removal", "UInt64"), ("_walferry_removed", "UInt8")] {
            changes.columns.push(TargetColumn {
                name: name.into(),
                column_type: column_type.into(),
                ..TargetColumn::default()
            });
        }
        assert_eq!(compare(&changes, "app", &table, &types), Ok(MissingParts::default()));
    }

    #[test]
    fn says_what_differs() {
        let refused = |change: &dyn Fn(&mut TargetTable), words: &str| {
            let message = check(change).unwrap_err();
            assert!(message.contains(words), "{message}");
        };
        refused(
            &|found| found.columns[0].column_type = "Int32".to_owned(),
            "column id is Int32 there but Int64 is needed, and ClickHouse can't change a column that a table is sorted by",
        );
        refused(
            &|found| found.columns[1].column_type = "UUID".to_owned(),
            "column name is UUID there but String is needed; once it is dropped",
        );
        let columns = vec![
            test_support::column("id", SourceType::Int8),
            test_support::column("name", SourceType::Text),
        ];
        let mut other = found();
        other.columns[1].column_type = "UUID".to_owned();
        let table = test_support::table("users", columns);
        let problem = compare(&other, "app", &table, &[ChType::Int(64), ChType::String]).unwrap_err();
        let discard = Remedy::run_at_destination("ALTER TABLE `app`.`users` DROP COLUMN `name`");
        let keep = Remedy::edit("spec.tables[].columns.types", "set name: UUID");
        assert_eq!(problem.remedies(), [Remedy::any_of([vec![discard], vec![keep]])]);
        refused(&|found| found.columns[1].default_kind = "ALIAS".to_owned(), "column name is ALIAS there");
        refused(&|found| found.engine = "MergeTree".to_owned(), "its engine is MergeTree");
        refused(
            &|found| found.engine_full = "ReplacingMergeTree(v) ORDER BY id".to_owned(),
            "ReplacingMergeTree(v), not",
        );
        refused(&|found| found.engine_full.clear(), "ClickHouse has lost its definition");
        let lost = TargetTable { engine_full: String::new(), ..found() };
        let problem = compare(&lost, "app", &table, &[ChType::Int(64), ChType::String]).unwrap_err();
        assert_eq!(problem.remedies(), [Remedy::run_at_destination("DROP TABLE `app`.`users` SYNC")]);
        refused(
            &|found| found.sorting_key = "id, name".to_owned(),
            "sorted by (id, name) but (id) is needed",
        );
        refused(&|found| drop(found.columns.remove(2)), "no column _walferry_version UInt64");
        refused(
            &|found| {
                found.create_table_query =
                    "CREATE TABLE app.users (`id` Int64) ENGINE = ReplacingMergeTree ORDER BY id SETTINGS clean_deleted_rows = 'Always'".into();
            },
            "the target table switches clean_deleted_rows on",
        );
    }
}
