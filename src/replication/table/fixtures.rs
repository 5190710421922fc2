//! Columns, schemas and relations for the unit tests of this folder.

use super::projection::{Fit, fit};
use crate::{
    model::{Column, IdentityKind, SourceType, TableId, TableSchema},
    postgres::pgoutput::{Relation, RelationColumn},
};

pub(super) fn column(name: &str, attnum: i16, type_oid: u32) -> Column {
    Column { attnum, type_oid, type_name: format!("type{type_oid}"), ..Column::new(name, SourceType::Text) }
}

pub(super) fn schema(columns: Vec<Column>) -> TableSchema {
    TableSchema::new(TableId::new("public", "t"), columns)
}

pub(super) fn relation(columns: &[(&str, u32)]) -> Relation {
    Relation {
        oid: 1,
        table: TableId::new("public", "t"),
        identity: IdentityKind::Default,
        columns: columns
            .iter()
            .map(|(name, type_oid)| RelationColumn {
                name: (*name).into(),
                type_oid: *type_oid,
                type_modifier: -1,
                key: *name == "id",
            })
            .collect(),
    }
}

/// Why a relation does not fit a schema.
pub(super) fn mismatch(schema: &TableSchema, relation: &Relation) -> String {
    match fit(schema, relation, &[]) {
        Fit::Unknown(words) => words,
        Fit::Known(projection) => panic!("{projection:?}"),
    }
}
