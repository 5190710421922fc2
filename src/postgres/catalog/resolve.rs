//! The schema of a mirrored table, resolved from its catalog rows and its spec: pure functions.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{
    closest::closest,
    relation::RelationFacts,
    types::{TypeRow, source_type},
};
use crate::{
    fault::Remedy,
    model::{Column, IdentityKind, TableKind, TableSchema, TableSpec},
    postgres::{Error, quote},
};

/// A column as the catalog describes it.
#[derive(Clone, Debug)]
pub(super) struct ColumnRow {
    pub(super) name: String,
    pub(super) attnum: i16,
    pub(super) type_oid: u32,
    pub(super) type_modifier: i32,
    pub(super) type_name: String,
    pub(super) not_null: bool,
    pub(super) generated: bool,
    pub(super) missing_value: Option<String>,
    pub(super) written_by: u32,
}

/// The catalog's description of a table, before the spec is applied.
pub(super) struct CatalogTable {
    pub(super) relation: RelationFacts,
    pub(super) columns: Vec<ColumnRow>,
    /// Shared by the tables that were described together.
    pub(super) types: Arc<HashMap<u32, TypeRow>>,
}

/// Makes the schema of a table from its catalog rows and the Mirror's lists.
pub(super) fn resolve(spec: &TableSpec, table: &CatalogTable) -> Result<TableSchema, Error> {
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
    let kind = kind(spec, &table.relation);
    require_key_to_keep_rows(spec, kind)?;
    let columns: Vec<_> = mirrored.iter().map(|column| make_column(spec, table, column)).collect();
    check_target_names(spec, &columns)?;
    let key = key(spec, table, &columns)?;
    Ok(TableSchema {
        id: spec.id.clone(),
        oid: table.relation.oid,
        target: spec.target.clone().unwrap_or_else(|| spec.id.name.clone()),
        order_by: order_by(spec, &table.relation, &columns, &key)?,
        columns,
        kind,
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
        _ if spec.operations.is_append_only() => TableKind::AppendOnly,
        IdentityKind::Full if relation.key.is_empty() => TableKind::ChangeLog,
        _ => TableKind::Keyed,
    }
}

/// A change log has a row for each change, so a re-copy has to begin with an empty target: rows that the
/// source removed can't be kept.
fn require_key_to_keep_rows(spec: &TableSpec, kind: TableKind) -> Result<(), Error> {
    if kind != TableKind::ChangeLog || !spec.operations.keep_removed_rows() {
        return Ok(());
    }
    let left_out: Vec<_> = spec.operations.left_out().map(|operation| format!("{operation:?}")).collect();
    let message = format!(
        "operations leaves out {}, and the table has no key by which rows could be kept",
        left_out.join(" and ")
    );
    let all = Remedy::edit("spec.tables[].operations", "leave it out, to mirror all operations");
    let inserts = Remedy::edit("spec.tables[].operations", "[Insert, Truncate], to mirror inserts only");
    Err(refuse_with(spec, message, [Remedy::any_of([vec![all], vec![inserts]])]))
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
    let key = if spec.operations.is_append_only() { &[] } else { table.relation.key.as_slice() };
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
            && !spec.operations.is_append_only()
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
    use crate::model::{SourceType, TableId};

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
                generated: true,
                key: vec!["id".to_owned(), "region".to_owned()],
                ..RelationFacts::sample("orders")
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
