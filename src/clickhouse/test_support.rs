//! Tables for unit tests.

use crate::model::{Column, SourceType, TableId, TableSchema};

/// A column that accepts no NULL.
pub(super) fn column(name: &str, source_type: SourceType) -> Column {
    Column { nullable: false, ..Column::new(name, source_type) }
}

/// A table whose key is its first column.
pub(super) fn table(name: &str, columns: Vec<Column>) -> TableSchema {
    TableSchema::new(TableId::new("public", name), columns)
}
