//! How a usable target differs from the spec: `engine` and `columns.types` only take effect where a table is
//! made.

use super::{
    ddl,
    expression::{self, Clauses},
    quote::table as qualified,
    target::{TargetTable, new_target},
    types::ChType,
};
use crate::{fault::Remedy, model::TableSchema};

/// A difference, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub detail: String,
    /// What changes it.
    pub remedy: Remedy,
}

/// Where the target differs from the spec. `trial` is the statement by which the server shows a table made as
/// asked; `ordered` says whether the Mirror asks for an order.
pub fn differences(
    found: &TargetTable,
    database: &str,
    table: &TableSchema,
    types: &[ChType],
    (trial, ordered): (&str, bool),
) -> Vec<Difference> {
    let (wanted, there) =
        (Clauses::of_create_query(trial), Clauses::of_create_query(&found.create_table_query));
    let alter = format!("ALTER TABLE {}", qualified(database, &table.target));
    let mut differences = Vec::new();
    let mut differs = |detail: String, remedy: Remedy| differences.push(Difference { detail, remedy });
    let new_target = || new_target(database, table);
    if ordered && expression::list(&wanted.order_by) != expression::list(&there.order_by) {
        let detail = format!("it is sorted by ({}), in another order than engine.orderBy", found.sorting_key);
        differs(detail, new_target());
    }
    if let Some(partition_by) =
        table.partition_by.as_ref().filter(|_| wanted.partition_by != there.partition_by)
    {
        let detail = format!("it is not partitioned by {partition_by} (engine.partitionBy)");
        differs(detail, new_target());
    }
    if let Some(ttl) = table.ttl.as_ref().filter(|_| wanted.ttl != there.ttl) {
        differs(
            format!("its TTL is not {ttl} (engine.ttl)"),
            Remedy::run_at_destination(format!("{alter} MODIFY TTL {ttl};")),
        );
    }
    for (name, value) in &table.settings {
        let of = |clauses: &Clauses| {
            clauses.settings.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone())
        };
        if of(&wanted) != of(&there) {
            let fix = format!("{alter} MODIFY SETTING {name} = {};", ddl::setting_value(value));
            differs(
                format!("{name} is not {value} there (engine.settings)"),
                Remedy::run_at_destination(fix),
            );
        }
    }
    for (column, wanted) in
        table.columns.iter().zip(types).filter(|(column, _)| column.type_override.is_some())
    {
        let there = found.columns.iter().find(|there| there.name == column.target_name);
        if let Some(there) = there.filter(|there| there.column_type != wanted.to_string()) {
            let detail =
                format!("column {} is {} there, not {wanted} (columns.types)", there.name, there.column_type);
            differs(detail, new_target());
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clickhouse::{target::TargetColumn, test_support},
        model::SourceType,
    };

    #[test]
    fn what_is_asked_for_and_not_there_is_said() {
        let mut column = test_support::column("id", SourceType::Int4);
        column.type_override = Some("Int32".to_owned());
        let mut table = test_support::table("t", vec![column]);
        table.partition_by = Some("intDiv(id, 10)".to_owned());
        table.ttl = Some("toDateTime(id) + INTERVAL 1 DAY".to_owned());
        table.settings = vec![("index_granularity".to_owned(), "1024".to_owned())];
        let trial = "CREATE TEMPORARY TABLE x\n(\n `id` Int32\n)\nENGINE = ReplacingMergeTree\nPARTITION BY (intDiv(id, 10))\nORDER BY (id)\n\
                     TTL (toDateTime(id) + toIntervalDay(1))\nSETTINGS index_granularity = 1024";
        let id = |column_type: &str| TargetColumn {
            name: "id".to_owned(),
            column_type: column_type.to_owned(),
            ..TargetColumn::default()
        };
        let found = |query: &str, column_type: &str| TargetTable {
            create_table_query: query.to_owned(),
            columns: vec![id(column_type)],
            ..TargetTable::default()
        };
        let of = |found: &TargetTable| differences(found, "app", &table, &[ChType::Int(32)], (trial, true));
        let same = "CREATE TABLE app.t (`id` Int32) ENGINE = ReplacingMergeTree PARTITION BY intDiv(id, 10) ORDER BY id \
                    TTL toDateTime(id) + toIntervalDay(1) SETTINGS index_granularity = 1024";
        assert_eq!(of(&found(same, "Int32")), []);
        let other = "CREATE TABLE app.t (`id` Int64) ENGINE = ReplacingMergeTree ORDER BY id SETTINGS index_granularity = 8192";
        let remedies: Vec<Remedy> =
            of(&found(other, "Int64")).into_iter().map(|difference| difference.remedy).collect();
        let run = |sql: &str| Remedy::run_at_destination(sql);
        assert_eq!(
            remedies,
            [
                new_target("app", &table),
                run("ALTER TABLE `app`.`t` MODIFY TTL toDateTime(id) + INTERVAL 1 DAY;"),
                run("ALTER TABLE `app`.`t` MODIFY SETTING index_granularity = 1024;"),
                new_target("app", &table)
            ]
        );
    }
}
