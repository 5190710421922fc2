//! What of a target's layout decides which rows meet in a merge and which go: partitions, TTL and the removal
//! of tombstones. With the wrong ones merges lose the newest version of a row, or its deletion, and an older
//! version shows again.

use std::collections::HashSet;

use super::{
    TableProblem,
    ddl::sorting_key,
    expression::{self, Clauses, Token},
    layout::OwnColumn,
    quote::ident,
    target::{TargetTable, new_target},
};
use crate::{fault::Remedy, model::TableSchema};

/// Table settings that let merges remove tombstones, and the value that switches each off.
pub(super) const CLEANUP_SETTINGS: [(&str, &str); 3] = [
    ("allow_experimental_replacing_merge_with_cleanup", "0"),
    ("enable_replacing_merge_with_cleanup_for_min_age_to_force_merge", "0"),
    ("clean_deleted_rows", "'Never'"),
];

const OWN: [OwnColumn; 6] = [
    OwnColumn::Version,
    OwnColumn::Deleted,
    OwnColumn::Ordinal,
    OwnColumn::Sign,
    OwnColumn::Removal,
    OwnColumn::Removed,
];

/// The columns that partitions may depend on. Rows that replace each other have to meet in one partition:
/// versions of one key, or one change that was written twice and the row that removes it.
fn may_partition(table: &TableSchema) -> HashSet<&str> {
    if table.kind.is_keyed() {
        return sorting_key(table).collect();
    }
    source_columns(table).chain(sorting_key(table)).collect()
}

/// The columns that a TTL may depend on. All versions of a key have to expire alike, or a change and the one
/// that takes it back.
fn may_expire(table: &TableSchema) -> HashSet<&str> {
    if table.kind.is_keyed() { sorting_key(table).collect() } else { source_columns(table).collect() }
}

fn source_columns(table: &TableSchema) -> impl Iterator<Item = &str> {
    table.columns.iter().map(|column| column.target_name.as_str())
}

/// The columns that an expression uses and must not.
fn outside<'a>(
    tokens: &[Token],
    columns: impl Iterator<Item = &'a str>,
    allowed: &HashSet<&str>,
) -> Vec<&'a str> {
    columns.filter(|name| !allowed.contains(name) && expression::uses(tokens, name)).collect()
}

/// A name in an expression that is none of the table's columns, but looks like one of ClickHouse's virtual
/// columns: `_part`, `_partition_id`, `_block_number` and others, of which releases have different ones. All
/// of them begin with an underscore.
fn virtual_column<'a>(tokens: &'a [Token], columns: &[&str]) -> Option<&'a str> {
    let of_table = |name: &str| {
        columns.iter().any(|column| {
            *column == name || column.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    let part_of_another = |index: usize| {
        index.checked_sub(1).and_then(|before| tokens.get(before)) == Some(&Token::Symbol('.'))
    };
    tokens.iter().enumerate().find_map(|(index, token)| {
        let name = token.name().filter(|name| name.starts_with('_') && !of_table(name))?;
        let called = tokens.get(index + 1) == Some(&Token::Symbol('('));
        (!called && !part_of_another(index)).then_some(name)
    })
}

const VIRTUAL: &str =
    "it is a virtual column, which ClickHouse computes when rows are read, so rows can't be stored by it";

/// Refuses what the Mirror asks for where it would show wrong rows.
///
/// # Errors
/// [`TableProblem::Engine`] saying what to change.
pub(super) fn refuse_spec(table: &TableSchema) -> Result<(), TableProblem> {
    let columns = || source_columns(table).chain(OWN.iter().map(|own| own.name()));
    let where_to = if table.kind.is_keyed() { "columns of engine.orderBy" } else { "columns of the source" };
    let known: Vec<&str> = columns().collect();
    for (field, verb, expression) in
        [("partitionBy", "partition by", &table.partition_by), ("ttl", "use", &table.ttl)]
    {
        let tokens = expression::tokens(expression.as_deref().unwrap_or_default());
        if let Some(name) = virtual_column(&tokens, &known) {
            let problem = format!("engine.{field} uses {name}, which is no column of the table: {VIRTUAL}");
            let remedy = Remedy::edit(format!("spec.tables[].engine.{field}"), format!("{verb} {where_to}"));
            return Err(TableProblem::engine(problem).remedied(remedy));
        }
    }
    if let Some(partition_by) = &table.partition_by {
        let outside = outside(&expression::tokens(partition_by), columns(), &may_partition(table));
        if !outside.is_empty() {
            return Err(TableProblem::engine(format!(
                "engine.partitionBy uses {}: {}",
                outside.join(", "),
                why_not_partition(table)
            ))
            .remedied(Remedy::edit("spec.tables[].engine.partitionBy", format!("partition by {where_to}"))));
        }
    }
    if let Some(ttl) = &table.ttl {
        let outside = outside(&expression::tokens(ttl), columns(), &may_expire(table));
        if !outside.is_empty() {
            return Err(TableProblem::engine(format!(
                "engine.ttl uses {}: {}",
                outside.join(", "),
                why_not_expire(table)
            ))
            .remedied(Remedy::edit("spec.tables[].engine.ttl", format!("use {where_to}"))));
        }
    }
    table.settings.iter().try_for_each(|(name, value)| match removes_tombstones(name, value) {
        true => Err(TableProblem::engine(format!("engine.settings switches {name} on: {TOMBSTONES_GO}"))
            .remedied(Remedy::edit("spec.tables[].engine.settings", format!("take {name} out")))),
        false => Ok(()),
    })
}

/// Refuses an existing table that would show wrong rows.
///
/// # Errors
/// [`TableProblem::Engine`] with the statement to run.
pub(super) fn refuse_found(
    found: &TargetTable,
    database: &str,
    table: &TableSchema,
) -> Result<(), TableProblem> {
    let clauses = Clauses::of_create_query(&found.create_table_query);
    let alter = format!("ALTER TABLE {}", super::quote::table(database, &table.target));
    let columns = || found.columns.iter().map(|column| column.name.as_str());
    let partition: Vec<&str> = found
        .columns
        .iter()
        .filter(|column| column.in_partition_key == 1)
        .map(|column| column.name.as_str())
        .collect();
    let outside_partition: Vec<&str> =
        partition.into_iter().filter(|name| !may_partition(table).contains(name)).collect();
    if !outside_partition.is_empty() {
        return Err(TableProblem::engine(format!(
            "the target is partitioned by {}: {}; ClickHouse can't change that",
            outside_partition.join(", "),
            why_not_partition(table)
        ))
        .remedied(new_target(database, table)));
    }
    let known: Vec<&str> = columns().collect();
    if let Some(name) = virtual_column(&clauses.partition_by, &known) {
        let problem = format!("the target is partitioned by {name}: {VIRTUAL}; ClickHouse can't change that");
        return Err(TableProblem::engine(problem).remedied(new_target(database, table)));
    }
    let expire = may_expire(table);
    for rule in expression::deleting_rules(&clauses.ttl) {
        let outside = outside(rule, columns(), &expire);
        if !outside.is_empty() {
            return Err(TableProblem::engine(format!(
                "the target has a TTL that uses {}: {}",
                outside.join(", "),
                why_not_expire(table)
            ))
            .remedied(Remedy::run_at_destination(format!("{alter} REMOVE TTL"))));
        }
        if let Some(name) = virtual_column(rule, &known) {
            return Err(TableProblem::engine(format!("the target has a TTL that uses {name}: {VIRTUAL}"))
                .remedied(Remedy::run_at_destination(format!("{alter} REMOVE TTL"))));
        }
    }
    for (column, ttl) in &clauses.column_ttls {
        let own = OWN.iter().any(|own| own.name() == column);
        let outside = outside(ttl, columns(), &expire);
        if own || !outside.is_empty() {
            let used = if outside.is_empty() { column.clone() } else { outside.join(", ") };
            return Err(TableProblem::engine(format!(
                "column {column} of the target has a TTL that depends on {used}: values of the source would be missing"
            ))
            .remedied(Remedy::run_at_destination(format!("{alter} MODIFY COLUMN {} REMOVE TTL", ident(column)))));
        }
    }
    refuse_cleanup(found, &clauses.settings, &alter)
}

/// A table's own setting takes the place of the server's default.
fn refuse_cleanup(
    found: &TargetTable,
    settings: &[(String, String)],
    alter: &str,
) -> Result<(), TableProblem> {
    for (name, off) in CLEANUP_SETTINGS {
        let of = |settings: &[(String, String)]| {
            settings.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone())
        };
        let (value, place) = match of(settings) {
            Some(value) => (value, "the target table"),
            None => (of(&found.server_settings).unwrap_or_default(), "the server's configuration"),
        };
        if !value.is_empty() && removes_tombstones(name, &value) {
            return Err(TableProblem::engine(format!("{place} switches {name} on: {TOMBSTONES_GO}"))
                .remedied(Remedy::run_at_destination(format!("{alter} MODIFY SETTING {name} = {off}"))));
        }
    }
    Ok(())
}

fn removes_tombstones(name: &str, value: &str) -> bool {
    let off = matches!(value.trim_matches('\'').to_ascii_lowercase().as_str(), "0" | "false" | "never");
    !off && CLEANUP_SETTINGS.iter().any(|(known, _)| *known == name)
}

const TOMBSTONES_GO: &str =
    "merges would forget which rows were deleted, and a row that is copied or sent again would come back";

fn why_not_partition(table: &TableSchema) -> &'static str {
    if table.kind.is_keyed() {
        "that is not in the sorting key, so rows of one key could land in different partitions and would never replace each other"
    } else {
        "that is not a column of the source, so a change that is sent again could land in another partition and would count twice"
    }
}

fn why_not_expire(table: &TableSchema) -> &'static str {
    if table.kind.is_keyed() {
        "that is not in the sorting key, so a merge could drop a row's newest version, or its deletion, before an older version, which \
         would show again"
    } else {
        "that is not a column of the source, so a change could go and the one that takes it back stay"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clickhouse::{target::TargetColumn, test_support},
        model::{SourceType, TableKind},
    };

    fn table(kind: TableKind) -> TableSchema {
        let columns = vec![
            test_support::column("id", SourceType::Int8),
            test_support::column("at", SourceType::Timestamp),
        ];
        let mut table = TableSchema { kind, ..test_support::table("t", columns) };
        if !kind.is_keyed() {
            table.key.clear();
            table.order_by.clear();
        }
        table
    }

    fn spec(kind: TableKind, partition_by: Option<&str>, ttl: Option<&str>) -> Result<(), String> {
        let mut table = table(kind);
        table.partition_by = partition_by.map(str::to_owned);
        table.ttl = ttl.map(str::to_owned);
        refuse_spec(&table).map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_mirror_s_expressions_use_the_sorting_key() {
        use TableKind::{ChangeLog, Keyed};
        assert_eq!(spec(Keyed, Some("intDiv(id, 10)"), Some("toDateTime(id) + INTERVAL 1 DAY")), Ok(()));
        for (partition_by, ttl, words) in [
            (Some("toYYYYMM(at)"), None, "engine.partitionBy uses at"),
            (Some("_walferry_version % 2"), None, "engine.partitionBy uses _walferry_version"),
            (None, Some("at + INTERVAL 1 DAY"), "engine.ttl uses at"),
            (
                None,
                Some("toDateTime(id) DELETE WHERE _walferry_deleted = 1"),
                "engine.ttl uses _walferry_deleted",
            ),
        ] {
            let refused = spec(Keyed, partition_by, ttl).unwrap_err();
            assert!(refused.contains(words) && refused.contains("sorting key"), "{refused}");
        }
        assert_eq!(spec(ChangeLog, Some("toYYYYMM(at)"), Some("at + INTERVAL 1 DAY")), Ok(()));
        // What deletes a change has another sign, and must come to lie beside it.
        let refused = spec(ChangeLog, Some("(toYYYYMM(at), _walferry_sign)"), None).unwrap_err();
        assert!(refused.contains("engine.partitionBy uses _walferry_sign"), "{refused}");
        assert!(spec(ChangeLog, None, Some("toDateTime(_walferry_version)")).is_err());
        assert!(spec(ChangeLog, None, Some("at + toIntervalDay(_walferry_sign + 2)")).is_err());
    }

    #[test]
    fn columns_that_the_server_makes_are_refused() {
        for kind in [TableKind::Keyed, TableKind::ChangeLog] {
            for (partition_by, ttl, field) in [
                (Some("_part"), None, "partitionBy"),
                (Some("(id, `_partition_id`)"), None, "partitionBy"),
                (Some("cityHash64(_table, _database)"), None, "partitionBy"),
                (None, Some("toDateTime(_block_number)"), "ttl"),
                (None, Some("toDateTime(id) DELETE WHERE _part_offset > 1"), "ttl"),
            ] {
                let refused = spec(kind, partition_by, ttl).unwrap_err();
                assert!(refused.contains(&format!("engine.{field} uses _")), "{refused}");
                assert!(refused.contains("no column of the table"), "{refused}");
            }
        }
        // A column of the source may have such a name, and a subcolumn any.
        let mut hiding = table(TableKind::ChangeLog);
        hiding.columns.push(test_support::column("_part", SourceType::Int8));
        hiding.partition_by = Some("(_part, _internal(id), id._part, '_table')".to_owned());
        assert_eq!(refuse_spec(&hiding), Ok(()));
    }

    fn there(create: &str, partitioned_by: &str) -> Result<(), Vec<Remedy>> {
        let column = |name: &str| TargetColumn {
            name: name.to_owned(),
            column_type: "Int64".to_owned(),
            default_kind: String::new(),
            in_partition_key: u8::from(name == partitioned_by),
        };
        let found = TargetTable {
            create_table_query: format!(
                "CREATE TABLE app.t (`id` Int64, `at` DateTime) ENGINE = ReplacingMergeTree {create}"
            ),
            columns: ["id", "at", "extra", "_walferry_version", "_walferry_deleted"].map(column).to_vec(),
            server_settings: vec![("clean_deleted_rows".to_owned(), "Never".to_owned())],
            ..TargetTable::default()
        };
        refuse_found(&found, "app", &table(TableKind::Keyed)).map_err(|problem| problem.remedies().to_vec())
    }

    #[test]
    fn a_table_that_is_there_is_held_to_the_same() {
        assert_eq!(
            there("ORDER BY id TTL at + toIntervalDay(1) TO VOLUME 'cold', toDateTime(id)", "id"),
            Ok(())
        );
        for (create, partitioned_by, remedy) in [
            ("PARTITION BY toYYYYMM(at) ORDER BY id", "at", new_target("app", &table(TableKind::Keyed))),
            ("PARTITION BY _part ORDER BY id", "", new_target("app", &table(TableKind::Keyed))),
            (
                "ORDER BY id TTL toDateTime(_block_number)",
                "",
                Remedy::run_at_destination("ALTER TABLE `app`.`t` REMOVE TTL"),
            ),
            (
                "ORDER BY id TTL extra + toIntervalDay(1)",
                "",
                Remedy::run_at_destination("ALTER TABLE `app`.`t` REMOVE TTL"),
            ),
            (
                "ORDER BY id SETTINGS clean_deleted_rows = 'Always'",
                "",
                Remedy::run_at_destination(
                    "ALTER TABLE `app`.`t` MODIFY SETTING clean_deleted_rows = 'Never'",
                ),
            ),
        ] {
            assert_eq!(there(create, partitioned_by), Err(vec![remedy]));
        }
    }
}
