//! What is read of a table on both sides, and how two rows are compared: pure functions.

use std::cmp::Ordering;

use super::{
    error::VerifyError,
    rows::{Key, Row},
};
use crate::{
    clickhouse::{
        Database, Error, TableProblem, constant,
        layout::OwnColumn,
        native::{BlockBuilder, Rows},
        quote as clickhouse_quote, target,
        types::{ChType, display, parse},
    },
    model::{CellKind, Column, Lsn, OutOfRange, SourceType, TableSchema, Version},
    postgres::{copy, quote as postgres_quote},
};

/// A table with everything that reading and comparing it needs.
pub(super) struct TablePlan {
    pub(super) schema: TableSchema,
    /// The columns' types at the destination, as they are there.
    pub(super) types: Vec<ChType>,
    /// Columns that are narrower there than their type here.
    narrow: Vec<usize>,
    /// The destination's database.
    database: String,
    out_of_range: OutOfRange,
    /// Whether rows may be at the destination alone, because their removal is not mirrored.
    pub(super) keeps_removed_rows: bool,
}

impl TablePlan {
    /// Compares the table's shape on both sides first: rows can be compared only when it fits.
    pub(super) async fn new(
        schema: TableSchema,
        database: &Database,
        out_of_range: OutOfRange,
    ) -> Result<TablePlan, VerifyError> {
        if schema.kind.is_keyed() && schema.key.is_empty() {
            return Err(VerifyError::Unsupported("it has no key to compare rows by".to_owned()));
        }
        let problem = |problem| Error::Table { table: schema.target.clone(), problem };
        let mut types = database.types(&schema, database.version().await?.features())?;
        let found =
            database.target_table(&schema.target).await?.ok_or_else(|| problem(TableProblem::Missing))?;
        let missing = target::compare(&found, database.name(), &schema, &types).map_err(problem)?;
        if let Some(column) = missing.columns.first().and_then(|index| schema.columns.get(*index)) {
            let conflict = format!("it has no column {}", column.target_name);
            return Err(problem(TableProblem::conflict(conflict)).into());
        }
        // Rows are compared as the destination's types, which may be wider than needed; a narrower column is
        // read with a cast.
        for (index, (column, column_type)) in schema.columns.iter().zip(&mut types).enumerate() {
            let there = found.columns.iter().find(|there| there.name == column.target_name);
            if let Some(there) = there.and_then(|there| parse(&there.column_type).ok())
                && !missing.width.contains(&index)
            {
                *column_type = there;
            }
        }
        let arrays = schema.key.iter().filter(|index| matches!(types.get(**index), Some(ChType::Array(_))));
        if arrays.count() > 0 {
            return Err(VerifyError::Unsupported("its key has an array, which can't be compared".to_owned()));
        }
        let (narrow, database) = (missing.width, database.name().to_owned());
        Ok(TablePlan { schema, types, narrow, database, out_of_range, keeps_removed_rows: false })
    }

    /// An encoder for the source's rows.
    pub(super) fn builder(&self) -> Result<BlockBuilder, VerifyError> {
        let table = self.schema.target.clone();
        BlockBuilder::new(&self.schema, &self.types, self.out_of_range)
            .map_err(|source| Error::Type { table, source }.into())
    }

    /// In which form the source sends each column's values.
    pub(super) fn cell_kinds(&self) -> Vec<CellKind> {
        copy::cell_kinds(&self.schema)
    }

    /// Columns whose values have no bytes that could be compared.
    pub(super) fn incomparable(&self) -> Vec<&str> {
        let columns = self.schema.columns.iter().zip(&self.types);
        columns.filter(|(_, kind)| !kind.is_comparable()).map(|(column, _)| column.name.as_str()).collect()
    }

    fn key(&self) -> impl Iterator<Item = (usize, &Column, &ChType)> {
        self.schema
            .key
            .iter()
            .filter_map(|index| Some((*index, self.schema.columns.get(*index)?, self.types.get(*index)?)))
    }

    /// The key of a row.
    pub(super) fn key_of(&self, rows: &Rows, row: usize) -> Key {
        self.schema.key.iter().map(|column| rows.cell(row, *column).to_vec()).collect()
    }

    /// Orders two rows by key.
    pub(super) fn compare_keys(&self, a: (&Rows, usize), b: (&Rows, usize)) -> Ordering {
        self.key()
            .map(|(index, _, kind)| kind.compare(a.0.cell(a.1, index), b.0.cell(b.1, index)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    /// Orders a key and a row's key.
    pub(super) fn compare_key(&self, key: &Key, rows: &Rows, row: usize) -> Ordering {
        self.key()
            .zip(key)
            .map(|((index, _, kind), cell)| kind.compare(cell, rows.cell(row, index)))
            .find(|order| order.is_ne())
            .unwrap_or(Ordering::Equal)
    }

    /// Whether all values of two rows are the same.
    pub(super) fn same(&self, a: (&Rows, usize), b: (&Rows, usize)) -> bool {
        let comparable = self.types.iter().enumerate().filter(|(_, kind)| kind.is_comparable());
        comparable.into_iter().all(|(index, _)| a.0.cell(a.1, index) == b.0.cell(b.1, index))
    }

    /// The columns in which two rows differ.
    pub(super) fn differing(&self, a: &Row, b: &Row) -> Vec<usize> {
        let cells = a.iter().zip(b).zip(&self.types).enumerate();
        cells.filter(|(_, ((a, b), kind))| kind.is_comparable() && a != b).map(|(index, _)| index).collect()
    }

    /// A key as readable text: `id = 5, region = eu`.
    pub(super) fn show_key(&self, key: &Key) -> String {
        let parts: Vec<String> = self
            .key()
            .zip(key)
            .map(|((_, column, kind), cell)| format!("{} = {}", column.name, shortened(&display(kind, cell))))
            .collect();
        parts.join(", ")
    }

    /// A value as readable text.
    pub(super) fn show(&self, column: usize, cell: &[u8]) -> String {
        self.types.get(column).map_or_else(String::new, |kind| shortened(&display(kind, cell)))
    }

    /// All rows of the source, by key.
    pub(super) fn source_in_order(&self) -> String {
        let order: Vec<String> = self.key().map(|(_, column, kind)| source_order(column, kind)).collect();
        copy::whole_statement(&self.schema, None, &order)
    }

    /// All rows of the source.
    pub(super) fn source_rows(&self) -> String {
        copy::whole_statement(&self.schema, None, &[])
    }

    /// About `percent` in a hundred of the source's rows.
    pub(super) fn source_sample(&self, percent: f64) -> String {
        copy::whole_statement(&self.schema, Some(&format!("random() < {}", percent / 100.0)), &[])
    }

    /// The source's rows with these keys.
    pub(super) fn source_by_key(&self, keys: &[Key]) -> String {
        let texts: Vec<Vec<String>> = keys
            .iter()
            .map(|key| {
                self.key().zip(key).map(|((_, column, kind), cell)| source_text(column, kind, cell)).collect()
            })
            .collect();
        copy::keys_statement(&self.schema, &self.schema.key, &texts)
    }

    /// All rows of the destination, by key.
    pub(super) fn target_in_order(&self) -> String {
        let order: Vec<String> = self
            .key()
            .map(|(_, column, kind)| {
                let name = clickhouse_quote::ident(&column.target_name);
                // ClickHouse orders a UUID by its second half first.
                if *kind.inner() == ChType::Uuid { format!("toString({name})") } else { name }
            })
            .collect();
        self.target_select(None, &format!(" ORDER BY {}", order.join(", ")))
    }

    /// About `percent` in a hundred of the destination's rows.
    pub(super) fn target_sample(&self, percent: f64) -> String {
        self.target_select(Some(&format!("rand() / 4294967296 < {}", percent / 100.0)), "")
    }

    /// The destination's rows with these keys.
    pub(super) fn target_by_key(&self, keys: &[Key]) -> String {
        let names: Vec<String> =
            self.key().map(|(_, column, _)| clickhouse_quote::ident(&column.target_name)).collect();
        let keys: Vec<String> = keys
            .iter()
            .map(|key| tuple(self.key().zip(key).map(|((_, _, kind), cell)| constant(kind, cell)).collect()))
            .collect();
        self.target_select(Some(&format!("{} IN ({})", tuple(names), keys.join(", "))), "")
    }

    /// All changes that were committed before `end`, of a table without a key; each ends with its sign.
    pub(super) fn target_changes(&self, end: Lsn) -> String {
        let sign = clickhouse_quote::ident(OwnColumn::Sign.name());
        let names: Vec<String> = self.target_values().chain([sign]).collect();
        let table = clickhouse_quote::table(&self.database, &self.schema.target);
        let version = clickhouse_quote::ident(OwnColumn::Version.name());
        let end = Version::copied(end).number();
        format!("SELECT {} FROM {table} FINAL WHERE {version} < {end} FORMAT RowBinary", names.join(", "))
    }

    /// The number of the destination's rows.
    pub(super) fn target_count(&self) -> String {
        format!("SELECT count() FROM {} FORMAT TabSeparated", self.target_rows())
    }

    fn target_select(&self, condition: Option<&str>, order: &str) -> String {
        let columns: Vec<String> = self.target_values().collect();
        let condition = condition.map_or_else(String::new, |condition| format!(" AND {condition}"));
        format!(
            "SELECT {} FROM {}{condition}{order} FORMAT RowBinary",
            columns.join(", "),
            self.target_rows()
        )
    }

    /// The columns as the types that they are compared as.
    fn target_values(&self) -> impl Iterator<Item = String> {
        self.schema.columns.iter().zip(&self.types).enumerate().map(|(index, (column, column_type))| {
            let name = clickhouse_quote::ident(&column.target_name);
            if self.narrow.contains(&index) { format!("CAST({name} AS {column_type})") } else { name }
        })
    }

    fn target_rows(&self) -> String {
        let table = clickhouse_quote::table(&self.database, &self.schema.target);
        format!("{table} FINAL WHERE {} = 0", clickhouse_quote::ident(OwnColumn::Deleted.name()))
    }

    /// Settings for reading the destination's rows.
    pub(super) fn target_settings(&self) -> Vec<(&'static str, &'static str)> {
        // A table takes as long as it takes, and a sort that doesn't fit goes to disk.
        let mut settings =
            vec![("max_execution_time", "0"), ("max_bytes_before_external_sort", "1073741824")];
        let json = |kind: &ChType| matches!(kind.inner(), ChType::Json);
        if self.types.iter().any(|kind| json(kind) || matches!(kind, ChType::Array(element) if json(element)))
        {
            settings.push(("output_format_binary_write_json_as_string", "1"));
        }
        settings
    }
}

/// Orders the source's rows as the destination orders the column's values: a string there is ordered by its
/// bytes.
fn source_order(column: &Column, target: &ChType) -> String {
    let name = postgres_quote::ident(&column.name);
    let string = matches!(target.inner(), ChType::String | ChType::LowCardinality | ChType::Json);
    let plain = ["text", "citext", "name"].contains(&column.type_name.as_str())
        || column.type_name.starts_with("character varying");
    match column.source_type {
        _ if !string => name,
        SourceType::Bytea => name,
        SourceType::Text if plain => format!("{name}::text COLLATE \"C\""),
        // The output function's text, which a cast isn't always: char(n) would lose its blanks.
        _ => format!("pg_catalog.format('%s', {name}) COLLATE \"C\""),
    }
}

/// A key value in PostgreSQL's text form, from what is stored at the destination.
fn source_text(column: &Column, target: &ChType, cell: &[u8]) -> String {
    if column.source_type == SourceType::Bytea {
        let length = cell.iter().take_while(|byte| **byte >= 0x80).count() + 1;
        let digits: String = cell.iter().skip(length).map(|byte| format!("{byte:02x}")).collect();
        return format!("\\x{digits}");
    }
    display(target, cell)
}

fn tuple(items: Vec<String>) -> String {
    match items.as_slice() {
        [one] => one.clone(),
        items => format!("({})", items.join(", ")),
    }
}

/// Truncates a long value for display.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::TableId;

    pub(crate) fn column(name: &str, type_name: &str, source_type: SourceType) -> Column {
        Column {
            target_name: name.to_lowercase(),
            type_name: type_name.to_owned(),
            nullable: false,
            ..Column::new(name, source_type)
        }
    }

    pub(crate) fn plan(columns: Vec<(Column, ChType)>, key: &[usize]) -> TablePlan {
        let (columns, types) = columns.into_iter().unzip();
        TablePlan {
            schema: TableSchema {
                target: "t".to_owned(),
                key: key.to_vec(),
                order_by: key.to_vec(),
                ..TableSchema::new(TableId::new("public", "T"), columns)
            },
            types,
            narrow: Vec::new(),
            database: "app".to_owned(),
            out_of_range: OutOfRange::Clamp,
            keeps_removed_rows: false,
        }
    }

    fn wide() -> TablePlan {
        let columns = vec![
            (column("Id", "bigint", SourceType::Int8), ChType::Int(64)),
            (column("name", "text", SourceType::Text), ChType::String),
            (column("code", "character(3)", SourceType::Text), ChType::String),
            (column("raw", "bytea", SourceType::Bytea), ChType::String),
            (column("u", "uuid", SourceType::Uuid), ChType::Uuid),
        ];
        plan(columns, &[0, 1, 2, 3, 4])
    }

    #[test]
    fn a_column_that_is_narrower_there_is_cast() {
        let mut plan = plan(vec![(column("n", "bigint", SourceType::Int8), ChType::Int(64))], &[]);
        plan.narrow = vec![0];
        let statement = plan.target_in_order();
        assert!(statement.starts_with("SELECT CAST(`n` AS Int64) FROM `app`.`t` FINAL"), "{statement}");
    }

    #[test]
    fn orders_both_sides_alike() {
        let plan = wide();
        assert!(
            plan.source_in_order().ends_with(
                " FROM ONLY \"public\".\"T\" ORDER BY \"Id\", \"name\"::text COLLATE \"C\", pg_catalog.format('%s', \"code\") COLLATE \
                 \"C\", \"raw\", \"u\") TO STDOUT (FORMAT binary)"
            ),
            "{}",
            plan.source_in_order()
        );
        assert_eq!(
            plan.target_in_order(),
            "SELECT `id`, `name`, `code`, `raw`, `u` FROM `app`.`t` FINAL WHERE `_walferry_deleted` = 0 ORDER BY `id`, \
             `name`, `code`, `raw`, toString(`u`) FORMAT RowBinary"
        );
    }

    #[test]
    fn reads_keys_on_both_sides() {
        let plan = wide();
        let key = vec![
            5_i64.to_le_bytes().to_vec(),
            b"\x04it's".to_vec(),
            b"\x03a  ".to_vec(),
            b"\x02\xff\x00".to_vec(),
            vec![7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8],
        ];
        let source = plan.source_by_key(std::slice::from_ref(&key));
        assert!(
            source.contains(
                "(('5'::bigint, 'it''s'::text, 'a  '::character(3), E'\\\\xff00'::bytea, \
                 '00010203-0405-0607-0809-0a0b0c0d0e0f'::uuid))"
            ),
            "{source}"
        );
        assert_eq!(
            plan.target_by_key(std::slice::from_ref(&key)),
            "SELECT `id`, `name`, `code`, `raw`, `u` FROM `app`.`t` FINAL WHERE `_walferry_deleted` = 0 AND (`id`, `name`, \
             `code`, `raw`, `u`) IN ((CAST('5', 'Int64'), 'it\\'s', 'a  ', unhex('FF00'), \
             CAST('00010203-0405-0607-0809-0a0b0c0d0e0f', 'UUID'))) FORMAT RowBinary"
        );
        assert_eq!(
            plan.show_key(&key),
            "Id = 5, name = it's, code = a  , raw = \u{fffd}\0, u = 00010203-0405-0607-0809-0a0b0c0d0e0f"
        );
    }

    #[test]
    fn samples_and_counts() {
        let plan = plan(vec![(column("id", "integer", SourceType::Int4), ChType::Int(32))], &[0]);
        assert_eq!(
            plan.source_sample(5.0),
            "COPY (SELECT \"id\" FROM ONLY \"public\".\"T\" WHERE random() < 0.05) TO STDOUT (FORMAT binary)"
        );
        assert_eq!(
            plan.target_sample(100.0),
            "SELECT `id` FROM `app`.`t` FINAL WHERE `_walferry_deleted` = 0 AND rand() / 4294967296 < 1 FORMAT RowBinary"
        );
        assert_eq!(
            plan.target_count(),
            "SELECT count() FROM `app`.`t` FINAL WHERE `_walferry_deleted` = 0 FORMAT TabSeparated"
        );
    }

    #[test]
    fn cuts_long_values() {
        assert_eq!(shortened("short"), "short");
        assert_eq!(shortened(&"ü".repeat(201)), format!("{}… (402 bytes)", "ü".repeat(200)));
    }
}
