//! Statements that make and change target tables: pure functions from a table to SQL.
//!
//! <https://clickhouse.com/docs/engines/table-engines/mergetree-family/replacingmergetree>

use std::{collections::HashSet, ops::Range};

use super::{
    TableProblem,
    layout::{Layout, OwnColumn},
    names,
    quote::{ident, literal, table as qualified},
    retention,
    types::ChType,
};
use crate::{
    fault::Remedy,
    model::{TableKind, TableSchema, Version},
    replication::Rows,
};

/// The name of a temporary table that tests whether the server accepts the columns and the engine.
const TRIAL: &str = "_walferry_trial";

/// `CREATE TABLE IF NOT EXISTS` for a table whose columns have these types.
pub fn create_table(database: &str, table: &TableSchema, types: &[ChType]) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} {}",
        qualified(database, &table.target),
        columns_and_engine(table, types)
    )
}

/// `CREATE TEMPORARY TABLE` with the same columns and engine.
pub(super) fn create_trial(table: &TableSchema, types: &[ChType]) -> String {
    format!("CREATE TEMPORARY TABLE {} {}", ident(TRIAL), columns_and_engine(table, types))
}

/// The same with nothing that could be refused.
pub(super) fn create_plain_trial() -> String {
    format!("CREATE TEMPORARY TABLE {} (`x` UInt8) ENGINE = ReplacingMergeTree ORDER BY `x`", ident(TRIAL))
}

/// What the server made of [`create_trial`], in the form of `system.tables`.
pub(super) fn show_trial() -> String {
    format!("SHOW CREATE TEMPORARY TABLE {} FORMAT TSVRaw", ident(TRIAL))
}

/// Removes what [`create_trial`] made.
pub(super) fn drop_trial() -> String {
    format!("DROP TEMPORARY TABLE IF EXISTS {}", ident(TRIAL))
}

/// Columns, engine and clauses.
fn columns_and_engine(table: &TableSchema, types: &[ChType]) -> String {
    let mut sql = "(".to_owned();
    for (column, column_type) in table.columns.iter().zip(types) {
        sql.push_str(&format!("{} {column_type}, ", ident(&column.target_name)));
    }
    let layout = Layout::of(table.kind);
    let own: Vec<_> = layout
        .all_own()
        .map(|own| format!("{} {}{}", ident(own.name()), own.column_type(), codec(own, table.kind)))
        .collect();
    sql.push_str(&format!("{}) ENGINE = ReplacingMergeTree", own.join(", ")));
    let arguments: Vec<_> = layout.arguments.iter().map(|own| ident(own.name())).collect();
    sql.push_str(&format!("({})", arguments.join(", ")));
    if let Some(expression) = &table.partition_by {
        sql.push_str(&format!(" PARTITION BY ({expression})"));
    }
    let order: Vec<String> = sorting_key(table).map(ident).collect();
    sql.push_str(&format!(" ORDER BY ({})", order.join(", ")));
    if let Some(expression) = &table.ttl {
        sql.push_str(&format!(" TTL ({expression})"));
    }
    if !table.settings.is_empty() {
        let settings: Vec<String> =
            table.settings.iter().map(|(name, value)| format!("{name} = {}", setting_value(value))).collect();
        sql.push_str(&format!(" SETTINGS {}", settings.join(", ")));
    }
    sql
}

/// The codec of one of walferry's own columns, with a space before it. Versions of rows that lie side by side
/// differ in few bits; a table without a key is sorted by them, which compresses them as well.
fn codec(own: OwnColumn, kind: TableKind) -> &'static str {
    if own == OwnColumn::Version && kind.is_keyed() { " CODEC(T64, LZ4)" } else { "" }
}

/// `ALTER TABLE … ADD COLUMN IF NOT EXISTS` for columns by target name, type and `DEFAULT` expression.
pub fn add_columns(database: &str, table: &str, columns: &[(&str, &ChType, Option<String>)]) -> String {
    let additions: Vec<String> = columns
        .iter()
        .map(|(name, column_type, default)| {
            let default = default.as_ref().map_or_else(String::new, |value| format!(" DEFAULT {value}"));
            format!("ADD COLUMN IF NOT EXISTS {} {column_type}{default}", ident(name))
        })
        .collect();
    format!("ALTER TABLE {} {}", qualified(database, table), additions.join(", "))
}

/// `ALTER TABLE … MODIFY COLUMN` for columns by target name and type; a column's default stays.
pub fn modify_columns(database: &str, table: &str, columns: &[(&str, &ChType)]) -> String {
    let changes: Vec<String> = columns
        .iter()
        .map(|(name, column_type)| format!("MODIFY COLUMN {} {column_type}", ident(name)))
        .collect();
    format!("ALTER TABLE {} {}", qualified(database, table), changes.join(", "))
}

/// `ALTER TABLE … DROP COLUMN`: it works whatever the column's values are, and a resync adds the column
/// again.
pub fn drop_column(database: &str, table: &str, column: &str) -> String {
    format!("ALTER TABLE {} DROP COLUMN {}", qualified(database, table), ident(column))
}

/// The statement that keeps a target table under another name, so that a new one can be made.
pub(super) fn set_aside(database: &str, table: &str) -> String {
    let kept = format!("{table}_before");
    format!("RENAME TABLE {} TO {}", qualified(database, table), qualified(database, &kept))
}

/// `DROP TABLE … SYNC`, after which a table of that name can be made right away.
pub(super) fn drop_table(database: &str, table: &str) -> String {
    format!("DROP TABLE {} SYNC", qualified(database, table))
}

/// The statements that get rid of a column whose type is being changed in vain.
pub fn discard_column(database: &str, table: &str, column: &str) -> String {
    format!(
        "KILL MUTATION WHERE database = {} AND table = {}; {}",
        literal(database),
        literal(table),
        drop_column(database, table, column)
    )
}

/// Reads these columns of all rows, for nothing.
pub(super) fn read_columns(database: &str, table: &str, columns: &[&str]) -> String {
    let columns: Vec<String> = columns.iter().map(|column| ident(column)).collect();
    format!(
        "SELECT count() FROM {} WHERE NOT ignore({}) FORMAT TabSeparated",
        qualified(database, table),
        columns.join(", ")
    )
}

/// `TRUNCATE TABLE`
pub fn truncate(database: &str, table: &str) -> String {
    format!("TRUNCATE TABLE {}", qualified(database, table))
}

/// The highest version of a table's rows, as text.
pub fn newest_version(database: &str, table: &str) -> String {
    format!("SELECT toString(max({})) FROM {}", ident(OwnColumn::Version.name()), qualified(database, table))
}

/// The highest version of a row that was streamed.
pub fn newest_streamed_version(database: &str, table: &str) -> String {
    format!(
        "SELECT toString(maxIf({0}, bitAnd({0}, {1}) != 0)) FROM {2}",
        ident(OwnColumn::Version.name()),
        Version::STEP_MASK,
        qualified(database, table)
    )
}

/// The parts that a table's rows are in, one a line.
pub fn parts(database: &str, table: &str) -> String {
    format!("SELECT DISTINCT _part FROM {} FORMAT TabSeparated", qualified(database, table))
}

/// `ALTER TABLE … DROP PART`
pub fn drop_part(database: &str, table: &str, part: &str) -> String {
    format!("ALTER TABLE {} DROP PART {}", qualified(database, table), literal(part))
}

/// The statement that makes a read-only table writable again, to be run manually.
pub fn make_writable(database: &str, table: &str) -> String {
    format!("ALTER TABLE {} MODIFY SETTING table_readonly = 0", qualified(database, table))
}

/// `INSERT INTO … SELECT` that deletes the rows whose versions are in a range: of a tombstone for each row
/// that is there; without a key, of a row that takes the place of each change, however often that is inserted
/// again. It has the change's values, so that it is in the same partition and lives as long.
pub fn delete(database: &str, table: &TableSchema, rows: Rows, versions: Range<Version>) -> String {
    let (from, to) = (versions.start.number(), versions.end.number());
    let name = qualified(database, &table.target);
    let own = |own: OwnColumn| ident(own.name());
    let version = own(OwnColumn::Version);
    let copied = match rows {
        Rows::All => String::new(),
        Rows::Copied => format!(" AND bitAnd({version}, {}) = 0", Version::STEP_MASK),
    };
    let within = format!("{version} >= {from} AND {version} < {to}{copied}");
    if table.kind.is_keyed() {
        let key = key_names(table).map(ident).collect::<Vec<_>>().join(", ");
        let deleted = own(OwnColumn::Deleted);
        return format!(
            "INSERT INTO {name} ({key}, {version}, {deleted}) SELECT {key}, toUInt64({to}), toUInt8(1) FROM {name} FINAL \
             WHERE {within} AND {deleted} = 0"
        );
    }
    let columns = table.columns.iter().map(|column| ident(&column.target_name));
    let columns = columns.chain([version, own(OwnColumn::Ordinal)]).collect::<Vec<_>>().join(", ");
    let [sign, removal, removed] = [OwnColumn::Sign, OwnColumn::Removal, OwnColumn::Removed].map(own);
    format!(
        "INSERT INTO {name} ({columns}, {sign}, {removal}, {removed}) SELECT {columns}, toInt8(0), toUInt64({to}), toUInt8(1) \
         FROM {name} FINAL WHERE {within}"
    )
}

/// `INSERT INTO … FORMAT Native` for the blocks of [`super::native::BlockBuilder`].
pub fn insert(database: &str, table: &TableSchema) -> String {
    let own = Layout::of(table.kind).own.iter().map(|own| own.name());
    let names = table.columns.iter().map(|column| column.target_name.as_str()).chain(own);
    let names: Vec<String> = names.map(ident).collect();
    format!("INSERT INTO {} ({}) FORMAT Native", qualified(database, &table.target), names.join(", "))
}

/// Name and `DEFAULT` expression of these columns of a table, a JSON object a line; the expression is empty
/// where there is none.
pub fn column_defaults(database: &str, table: &str, columns: &[&str]) -> String {
    format!(
        "SELECT name, default_expression FROM system.columns WHERE database = {} AND table = {} AND name IN ({}) FORMAT JSONEachRow",
        literal(database),
        literal(table),
        literals(columns)
    )
}

/// Whether there is a table of this name: 1 or 0.
pub fn exists(database: &str, table: &str) -> String {
    format!("EXISTS TABLE {}", qualified(database, table))
}

/// Whether the user sees a table of this name: one line, or none.
pub fn is_listed(database: &str, table: &str) -> String {
    let (database, table) = (literal(database), literal(table));
    format!("SELECT 1 FROM system.tables WHERE database = {database} AND name = {table} FORMAT TabSeparated")
}

/// Name, engine, engine with clauses and sorting key of these tables, a JSON object a line.
pub fn describe_tables(database: &str, tables: &[&str]) -> String {
    format!(
        "SELECT name, engine, engine_full, create_table_query, sorting_key FROM system.tables WHERE database = {} AND name IN ({}) FORMAT JSONEachRow",
        literal(database),
        literals(tables)
    )
}

/// Name and UUID of these tables, a JSON object a line. Replicas of a table may have one each, and so have
/// none here; nor have tables of databases that give none.
pub fn identify_tables(database: &str, tables: &[&str]) -> String {
    format!(
        "SELECT name, toString(uuid) AS id FROM system.tables WHERE database = {} AND name IN ({}) \
         AND uuid != toUUID('00000000-0000-0000-0000-000000000000') AND NOT startsWith(engine, 'Replicated') FORMAT JSONEachRow",
        literal(database),
        literals(tables)
    )
}

/// Whether a table has rows: one line, or none.
pub fn has_rows(database: &str, table: &str) -> String {
    format!("SELECT 1 FROM {} LIMIT 1", qualified(database, table))
}

/// Name, type and kind of default of each column of these tables, in order, a JSON object a line.
pub fn describe_columns(database: &str, tables: &[&str]) -> String {
    format!(
        "SELECT table, name, type, default_kind, is_in_partition_key FROM system.columns WHERE database = {} AND table IN ({}) ORDER BY table, position \
         FORMAT JSONEachRow",
        literal(database),
        literals(tables)
    )
}

/// The server's defaults of settings of MergeTree tables, in this order.
pub fn merge_tree_settings<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let values: Vec<String> =
        names.map(|name| format!("toString(getMergeTreeSetting({}))", literal(name))).collect();
    format!("SELECT {} FORMAT TabSeparated", values.join(", "))
}

fn literals(values: &[&str]) -> String {
    values.iter().map(|value| literal(value)).collect::<Vec<_>>().join(", ")
}

/// Names of all columns of the sorting key.
pub(super) fn sorting_key(table: &TableSchema) -> impl Iterator<Item = &str> {
    key_names(table).chain(Layout::of(table.kind).order.iter().map(|own| own.name()))
}

/// Target names of the source's columns in the sorting key.
fn key_names(table: &TableSchema) -> impl Iterator<Item = &str> {
    table
        .order_by
        .iter()
        .filter_map(|index| table.columns.get(*index))
        .map(|column| column.target_name.as_str())
}

/// Whether the spec makes a usable table: refuses what ClickHouse would accept and then show wrong rows with,
/// and names that it refuses.
///
/// # Errors
/// [`TableProblem::Engine`] saying what to change.
pub fn validate(table: &TableSchema, types: &[ChType]) -> Result<(), TableProblem> {
    let own: Vec<&str> = Layout::of(table.kind).all_own().map(OwnColumn::name).collect();
    let mut columns: HashSet<&str> = own.iter().copied().collect();
    for column in &table.columns {
        if !columns.insert(&column.target_name) {
            let problem = format!(
                "two columns would be named {} at the destination ({} are walferry's own)",
                column.target_name,
                own.join(", ")
            );
            let rename =
                Remedy::edit("spec.tables[].columns.rename", format!("give {} another name", column.name));
            return Err(TableProblem::engine(problem).remedied(rename));
        }
    }
    if sorting_key(table).next().is_none() {
        let order = Remedy::edit("spec.tables[].engine.orderBy", "name the columns to sort by");
        return Err(TableProblem::engine("it has no key to sort by").remedied(Remedy::any_of([
            vec![Remedy::act("give it a primary key at the source")],
            vec![order],
        ])));
    }
    names::refuse(table, types)?;
    retention::refuse_spec(table)?;
    for (name, _) in &table.settings {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(TableProblem::engine(format!(
                "engine.settings: '{name}' is not the name of a setting"
            )));
        }
    }
    Ok(())
}

/// Numbers as they are, everything else as a string.
pub(super) fn setting_value(value: &str) -> String {
    match value.parse::<f64>() {
        Ok(number) if number.is_finite() => value.to_owned(),
        _ => literal(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clickhouse::test_support::{column, table},
        model::{SourceType, TableKind},
    };

    fn events() -> TableSchema {
        let mut created = column("createdAt", SourceType::TimestampTz);
        created.target_name = "created_at".to_owned();
        let mut table =
            table("events", vec![column("id", SourceType::Int8), created, column("it`s", SourceType::Text)]);
        table.order_by = vec![1, 0];
        table
    }

    fn types() -> Vec<ChType> {
        vec![
            ChType::Int(64),
            ChType::DateTime64(6, Some("UTC".to_owned())),
            ChType::Nullable(Box::new(ChType::String)),
        ]
    }

    #[test]
    fn creates_a_table() {
        assert_eq!(
            create_table("app", &events(), &types()),
            "CREATE TABLE IF NOT EXISTS `app`.`events` (`id` Int64, `created_at` DateTime64(6, 'UTC'), `it\\`s` \
             Nullable(String), `_walferry_version` UInt64 CODEC(T64, LZ4), `_walferry_deleted` UInt8) ENGINE = \
             ReplacingMergeTree(`_walferry_version`, `_walferry_deleted`) ORDER BY (`created_at`, `id`)"
        );
        let mut table = events();
        table.partition_by = Some("toYYYYMM(created_at)".to_owned());
        table.ttl = Some("created_at + INTERVAL 90 DAY".to_owned());
        table.settings = vec![
            ("index_granularity".to_owned(), "4096".to_owned()),
            ("storage_policy".to_owned(), "ho't".to_owned()),
        ];
        assert!(create_table("app", &table, &types()).ends_with(
            " PARTITION BY (toYYYYMM(created_at)) ORDER BY (`created_at`, `id`) TTL (created_at + INTERVAL 90 DAY) SETTINGS \
             index_granularity = 4096, storage_policy = 'ho\\'t'"
        ));
        table.order_by = vec![0];
        table.partition_by = None;
        assert!(
            create_table("app", &table, &types())
                .contains(" ORDER BY (`id`) TTL (created_at + INTERVAL 90 DAY) SETTINGS")
        );
    }

    #[test]
    fn creates_a_table_of_changes() {
        let mut table = events();
        table.kind = TableKind::ChangeLog;
        table.key.clear();
        table.order_by.clear();
        table.partition_by = Some("toYYYYMM(created_at)".to_owned());
        table.ttl = Some("created_at + INTERVAL 90 DAY".to_owned());
        validate(&table, &types()).unwrap();
        assert_eq!(
            create_table("app", &table, &types()),
            "CREATE TABLE IF NOT EXISTS `app`.`events` (`id` Int64, `created_at` DateTime64(6, 'UTC'), `it\\`s` \
             Nullable(String), `_walferry_version` UInt64, `_walferry_ordinal` UInt64, `_walferry_sign` Int8, `_walferry_removal` \
             UInt64, `_walferry_removed` UInt8) ENGINE = ReplacingMergeTree(`_walferry_removal`, `_walferry_removed`) \
             PARTITION BY (toYYYYMM(created_at)) ORDER BY (`_walferry_version`, `_walferry_ordinal`) TTL \
             (created_at + INTERVAL 90 DAY)"
        );
        table.order_by = vec![1];
        assert!(
            create_table("app", &table, &types())
                .contains(" ORDER BY (`created_at`, `_walferry_version`, `_walferry_ordinal`)")
        );
    }

    #[test]
    fn changes_a_table() {
        let text = ChType::Nullable(Box::new(ChType::String));
        assert_eq!(
            add_columns(
                "app",
                "users",
                &[("a", &ChType::Int(32), Some("CAST('5', 'Int32')".to_owned())), ("b", &text, None)]
            ),
            "ALTER TABLE `app`.`users` ADD COLUMN IF NOT EXISTS `a` Int32 DEFAULT CAST('5', 'Int32'), ADD COLUMN IF NOT \
             EXISTS `b` Nullable(String)"
        );
        let (long, nullable) = (ChType::Int(64), ChType::String.into_nullable());
        assert_eq!(
            modify_columns("app", "users", &[("a", &long), ("b", &nullable)]),
            "ALTER TABLE `app`.`users` MODIFY COLUMN `a` Int64, MODIFY COLUMN `b` Nullable(String)"
        );
        assert_eq!(
            discard_column("app", "users", "a"),
            "KILL MUTATION WHERE database = 'app' AND table = 'users'; ALTER TABLE `app`.`users` DROP COLUMN `a`"
        );
        assert_eq!(
            read_columns("app", "users", &["a", "b"]),
            "SELECT count() FROM `app`.`users` WHERE NOT ignore(`a`, `b`) FORMAT TabSeparated"
        );
        assert_eq!(truncate("app", "users"), "TRUNCATE TABLE `app`.`users`");
        assert_eq!(
            newest_version("app", "users"),
            "SELECT toString(max(`_walferry_version`)) FROM `app`.`users`"
        );
        assert_eq!(parts("app", "users"), "SELECT DISTINCT _part FROM `app`.`users` FORMAT TabSeparated");
        assert_eq!(drop_part("app", "users", "all_1_1_0"), "ALTER TABLE `app`.`users` DROP PART 'all_1_1_0'");
        assert_eq!(
            make_writable("app", "users"),
            "ALTER TABLE `app`.`users` MODIFY SETTING table_readonly = 0"
        );
        let versions = || Version::from_number(5)..Version::from_number(77);
        assert_eq!(
            delete("app", &events(), Rows::All, versions()),
            "INSERT INTO `app`.`events` (`created_at`, `id`, `_walferry_version`, `_walferry_deleted`) SELECT `created_at`, \
             `id`, toUInt64(77), toUInt8(1) FROM `app`.`events` FINAL WHERE `_walferry_version` >= 5 AND `_walferry_version` < 77 \
             AND `_walferry_deleted` = 0"
        );
        let mut changes = events();
        changes.kind = TableKind::ChangeLog;
        assert_eq!(
            delete("app", &changes, Rows::Copied, versions()),
            "INSERT INTO `app`.`events` (`id`, `created_at`, `it\\`s`, `_walferry_version`, `_walferry_ordinal`, `_walferry_sign`, \
             `_walferry_removal`, `_walferry_removed`) SELECT `id`, `created_at`, `it\\`s`, `_walferry_version`, \
             `_walferry_ordinal`, toInt8(0), toUInt64(77), toUInt8(1) FROM `app`.`events` FINAL WHERE `_walferry_version` >= 5 AND \
             `_walferry_version` < 77 AND bitAnd(`_walferry_version`, 4095) = 0"
        );
        assert_eq!(
            insert("app", &events()),
            "INSERT INTO `app`.`events` (`id`, `created_at`, `it\\`s`, `_walferry_version`, `_walferry_deleted`) FORMAT Native"
        );
    }

    #[test]
    fn describes_a_table() {
        assert_eq!(exists("app", "it`s"), "EXISTS TABLE `app`.`it\\`s`");
        assert_eq!(
            is_listed("app", "it's"),
            "SELECT 1 FROM system.tables WHERE database = 'app' AND name = 'it\\'s' FORMAT TabSeparated"
        );
        assert_eq!(
            identify_tables("app", &["it's", "t"]),
            "SELECT name, toString(uuid) AS id FROM system.tables WHERE database = 'app' AND name IN ('it\\'s', 't') \
             AND uuid != toUUID('00000000-0000-0000-0000-000000000000') AND NOT startsWith(engine, 'Replicated') FORMAT JSONEachRow"
        );
        assert_eq!(has_rows("app", "t"), "SELECT 1 FROM `app`.`t` LIMIT 1");
        assert_eq!(
            describe_tables("app", &["it's", "t"]),
            "SELECT name, engine, engine_full, create_table_query, sorting_key FROM system.tables WHERE database = 'app' AND name IN ('it\\'s', 't') \
             FORMAT JSONEachRow"
        );
        assert_eq!(
            describe_columns("app", &["users"]),
            "SELECT table, name, type, default_kind, is_in_partition_key FROM system.columns WHERE database = 'app' AND table IN ('users') ORDER BY \
             table, position FORMAT JSONEachRow"
        );
    }

    #[test]
    fn asks_for_defaults_of_columns() {
        assert_eq!(
            column_defaults("app", "users", &["it's", "b"]),
            "SELECT name, default_expression FROM system.columns WHERE database = 'app' AND table = 'users' AND name IN ('it\\'s', 'b') \
             FORMAT JSONEachRow"
        );
    }

    #[test]
    fn refuses_what_would_show_wrong_rows() {
        let problem = |change: &dyn Fn(&mut TableSchema)| {
            let mut table = events();
            change(&mut table);
            validate(&table, &types()).map_err(|problem| problem.to_string())
        };
        assert_eq!(problem(&|_| {}), Ok(()));
        assert_eq!(problem(&|table| table.partition_by = Some("toYYYYMM(`created_at`)".to_owned())), Ok(()));
        assert_eq!(
            problem(&|table| table.partition_by = Some("concat('it`s', toString(id))".to_owned())),
            Ok(())
        );
        let refused =
            problem(&|table| table.partition_by = Some("cityHash64(\"it`s\") % 8".to_owned())).unwrap_err();
        assert!(refused.contains("it`s: that is not in the sorting key"), "{refused}");
        assert!(problem(&|table| table.order_by.clear()).unwrap_err().contains("no key"));
        for name in ["created_at", "_walferry_version"] {
            let refused = problem(&|table| table.columns[2].target_name = name.to_owned()).unwrap_err();
            assert!(refused.contains("two columns"), "{refused}");
        }
        let set = |name: &str, value: &str| {
            let pair = (name.to_owned(), value.to_owned());
            problem(&|table| table.settings = vec![pair.clone()])
        };
        assert_eq!(set("index_granularity", "1024"), Ok(()));
        assert_eq!(set("clean_deleted_rows", "Never"), Ok(()));
        assert!(set("clean_deleted_rows", "Always").unwrap_err().contains("switches clean_deleted_rows on"));
        assert!(set("allow_experimental_replacing_merge_with_cleanup", "1").is_err());
        assert!(set("a = 1, b", "1").unwrap_err().contains("not the name of a setting"));
    }
}
