//! Tables for unit tests.

use crate::model::{Column, IdentityKind, SourceType, TableId, TableSchema};

/// A column that accepts no NULL.
pub(super) fn column(name: &str, source_type: SourceType) -> Column {
    Column {
        name: name.to_owned(),
        target_name: name.to_owned(),
        attnum: 1,
        type_oid: 0,
        type_modifier: -1,
        type_name: format!("{source_type:?}").to_lowercase(),
        source_type,
        nullable: false,
        type_override: None,
        missing_value: None,
        dropped: false,
        former_names: Vec::new(),
    }
}

/// A table whose key is its first column.
pub(super) fn table(name: &str, columns: Vec<Column>) -> TableSchema {
    TableSchema {
        id: TableId::new("public", name),
        oid: 1,
        target: name.to_owned(),
        columns,
        key: vec![0],
        identity: IdentityKind::Default,
        order_by: vec![0],
        partition_by: None,
        ttl: None,
        settings: Vec::new(),
        row_filter: None,
        partitioned: false,
    }
}
