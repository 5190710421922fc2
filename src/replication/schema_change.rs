//! What a Relation message means for a table whose columns are known from before.

use super::Error;
use crate::{
    model::{Column, RESYNC_ADVICE, TableSchema, TableSpec},
    postgres::{self, catalog, pgoutput::Relation, session::Session},
};

/// Where each schema column's value is in a tuple of a relation; `None` when the relation lacks the column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Projection {
    /// By schema column.
    pub(super) places: Vec<Option<usize>>,
    /// Whether tuples can be used as they are.
    pub(super) identical: bool,
}

/// How a relation fits a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// All that the relation has is known; columns it lacks are filled.
    Known(Projection),
    /// It has a column that the schema does not know, or lacks one: the catalog has to be asked.
    Unknown(String),
    /// A column has another type.
    Retyped(String),
}

/// Compares by name and type. `excluded` are the source columns that the Mirror leaves out.
pub(super) fn fit(schema: &TableSchema, relation: &Relation, excluded: &[String]) -> Fit {
    for column in &relation.columns {
        match named(schema, &column.name).and_then(|index| schema.columns.get(index)) {
            Some(known)
                if (known.type_oid, known.type_modifier) != (column.type_oid, column.type_modifier) =>
            {
                return Fit::Retyped(column.name.clone());
            }
            None if !excluded.contains(&column.name) => return Fit::Unknown(column.name.clone()),
            _ => {}
        }
    }
    let projection = projection(schema, relation);
    let lacks = |(place, known): &(&Option<usize>, &Column)| place.is_none() && !known.dropped;
    match projection.places.iter().zip(&schema.columns).find(lacks) {
        Some((_, known)) => Fit::Unknown(known.name.clone()),
        None => Fit::Known(projection),
    }
}

/// The column that has this name, or else had it.
fn named(schema: &TableSchema, name: &str) -> Option<usize> {
    let had = |known: &Column| known.former_names.iter().any(|former| former == name);
    schema.column_index(name).or_else(|| schema.columns.iter().position(had))
}

/// Matches by name alone.
pub(super) fn projection(schema: &TableSchema, relation: &Relation) -> Projection {
    let mut places = vec![None; schema.columns.len()];
    for (place, column) in relation.columns.iter().enumerate() {
        if let Some(known) = named(schema, &column.name).and_then(|index| places.get_mut(index)) {
            *known = Some(place);
        }
    }
    let identical = places.len() == relation.columns.len()
        && places.iter().enumerate().all(|(index, place)| *place == Some(index));
    Projection { places, identical }
}

/// The schema after a change, and which of its columns are new; or why it can't be applied.
///
/// Columns are matched by attribute number, which a rename keeps. A dropped column stays: the target keeps it, and no
/// value comes for it any more.
pub(super) fn evolve(old: &TableSchema, fresh: &TableSchema) -> Result<(TableSchema, Vec<usize>), String> {
    let mut merged = old.clone();
    for known in &mut merged.columns {
        known.dropped = !fresh.columns.iter().any(|column| column.attnum == known.attnum);
    }
    let mut added = Vec::new();
    for column in &fresh.columns {
        if let Some(known) = merged.columns.iter_mut().find(|known| known.attnum == column.attnum) {
            if (known.type_oid, known.type_modifier) != (column.type_oid, column.type_modifier) {
                return Err(retyped(known, column, &old.target));
            }
            rename(known, &column.name);
        } else {
            let clash = merged
                .columns
                .iter()
                .find(|known| known.name == column.name || known.target_name == column.target_name);
            if let Some(clash) = clash {
                return Err(format!(
                    "column {} was dropped and added again at the source; its target column {} holds values of the old one",
                    column.name, clash.target_name
                ));
            }
            added.push(merged.columns.len());
            merged.columns.push(column.clone());
        }
    }
    let names = |schema: &TableSchema| -> Vec<String> {
        schema
            .key
            .iter()
            .filter_map(|index| schema.columns.get(*index))
            .map(|column| column.name.clone())
            .collect()
    };
    if names(&merged) != names(fresh) {
        return Err(format!(
            "the replica identity changed from ({}) to ({})",
            names(&merged).join(", "),
            names(fresh).join(", ")
        ));
    }
    merged.identity = fresh.identity;
    merged.oid = fresh.oid;
    Ok((merged, added))
}

/// The same columns, in the same order, as queries must name them now; without those added meanwhile.
pub(super) fn as_now(schema: &TableSchema, fresh: &TableSchema) -> TableSchema {
    let mut now = schema.clone();
    for known in &mut now.columns {
        let found = fresh.columns.iter().find(|column| column.attnum == known.attnum);
        known.dropped = found.is_none();
        if let Some(found) = found {
            rename(known, &found.name);
        }
    }
    now
}

fn rename(column: &mut Column, name: &str) {
    if column.name != name {
        let former = std::mem::replace(&mut column.name, name.to_owned());
        column.former_names.retain(|known| *known != former);
        column.former_names.push(former);
    }
}

/// [`as_now`] by the catalog, after a query with the names of `schema` was refused.
///
/// # Errors
/// The table's own fault where it can't be mirrored as asked any more, and what passes.
pub(super) async fn catch_up(
    session: &Session,
    spec: &TableSpec,
    schema: &TableSchema,
) -> Result<TableSchema, Error> {
    Ok(as_now(schema, &describe(session, spec, schema).await?))
}

/// What the catalog says of a table whose columns were `known`.
///
/// # Errors
/// As [`catch_up`].
pub(super) async fn describe(
    session: &Session,
    spec: &TableSpec,
    known: &TableSchema,
) -> Result<TableSchema, Error> {
    match catalog::describe(session, spec).await {
        Ok(facts) if facts.schema.oid != known.oid => Err(Error::dropped(&known.id)),
        Ok(facts) => Ok(facts.schema),
        Err(error) if error.is_transient() => Err(error.into()),
        Err(error) if error.tells_missing_table() => Err(Error::dropped(&known.id)),
        Err(error) => Err(changed(known, &error.to_string())),
    }
}

/// Whether a query named a column that is no more: undefined_column.
pub(super) fn outdated(error: &postgres::Error) -> bool {
    error.sqlstate() == Some("42703")
}

/// The fault of a table whose change at the source can't be followed.
pub(super) fn changed(schema: &TableSchema, detail: &str) -> Error {
    let message =
        format!("{detail}. Change target table {} alike, or drop it; then {RESYNC_ADVICE}", schema.target);
    Error::Table { table: schema.id.clone(), reason: "SourceSchemaChanged", message }
}

fn retyped(known: &Column, column: &Column, target: &str) -> String {
    format!(
        "column {} changed its type from {} to {} at the source; target table {target} still has the old type",
        known.name, known.type_name, column.type_name
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{IdentityKind, SourceType, TableId},
        postgres::pgoutput::RelationColumn,
    };

    fn column(name: &str, attnum: i16, type_oid: u32) -> Column {
        Column {
            attnum,
            type_oid,
            type_name: format!("type{type_oid}"),
            ..Column::new(name, SourceType::Text)
        }
    }

    fn schema(columns: Vec<Column>) -> TableSchema {
        TableSchema::new(TableId::new("public", "t"), columns)
    }

    fn relation(columns: &[(&str, u32)]) -> Relation {
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
                    key: false,
                })
                .collect(),
        }
    }

    #[test]
    fn the_same_columns_need_no_projection() {
        let schema = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let Fit::Known(projection) = fit(&schema, &relation(&[("id", 20), ("a", 25)]), &[]) else { panic!() };
        assert!(projection.identical);
    }

    #[test]
    fn excluded_and_missing_columns_are_projected() {
        let mut gone = column("c", 4, 25);
        gone.dropped = true;
        let schema = schema(vec![column("id", 1, 20), column("b", 3, 25), gone]);
        let found = fit(&schema, &relation(&[("id", 20), ("a", 25), ("b", 25)]), &["a".into()]);
        let expected = Projection { places: vec![Some(0), Some(2), None], identical: false };
        assert_eq!(found, Fit::Known(expected));
    }

    #[test]
    fn rows_from_before_a_rename_keep_their_values() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let (merged, _) = evolve(&old, &schema(vec![column("id", 1, 20), column("b", 2, 25)])).unwrap();
        for name in ["a", "b"] {
            let Fit::Known(projection) = fit(&merged, &relation(&[("id", 20), (name, 25)]), &[]) else {
                panic!()
            };
            assert!(projection.identical, "{name}");
        }
    }

    #[test]
    fn a_dropped_column_is_asked_for_once() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25), column("b", 3, 25)]);
        let without = relation(&[("id", 20), ("b", 25)]);
        assert_eq!(fit(&old, &without, &[]), Fit::Unknown("a".into()));
        let fresh = schema(vec![column("id", 1, 20), column("c", 3, 25), column("d", 4, 25)]);
        let (merged, _) = evolve(&old, &fresh).unwrap();
        let dropped: Vec<_> = merged.columns.iter().map(|column| column.dropped).collect();
        assert_eq!(dropped, [false, true, false, false]);
        assert!(matches!(fit(&merged, &relation(&[("id", 20), ("c", 25), ("d", 25)]), &[]), Fit::Known(_)));
        let now = as_now(&old, &fresh);
        let now: Vec<_> = now.columns.iter().map(|column| (column.name.as_str(), column.dropped)).collect();
        assert_eq!(now, [("id", false), ("a", true), ("c", false)]);
    }

    #[test]
    fn new_and_retyped_columns_are_told() {
        let schema = schema(vec![column("id", 1, 20)]);
        assert_eq!(fit(&schema, &relation(&[("id", 20), ("a", 25)]), &[]), Fit::Unknown("a".into()));
        assert_eq!(fit(&schema, &relation(&[("id", 25)]), &[]), Fit::Retyped("id".into()));
    }

    #[test]
    fn an_added_column_is_appended_and_a_rename_keeps_its_target() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let fresh = schema(vec![column("id", 1, 20), column("renamed", 2, 25), column("n", 3, 25)]);
        let (merged, added) = evolve(&old, &fresh).unwrap();
        assert_eq!(added, vec![2]);
        assert_eq!(
            (merged.columns[1].name.as_str(), merged.columns[1].target_name.as_str()),
            ("renamed", "a")
        );
        assert_eq!(merged.columns[2].name, "n");
    }

    #[test]
    fn a_dropped_column_stays_and_a_key_or_type_change_is_refused() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let (merged, added) = evolve(&old, &schema(vec![column("id", 1, 20)])).unwrap();
        assert_eq!((merged.columns.len(), added.len()), (2, 0));
        assert!(evolve(&old, &schema(vec![column("id", 1, 25)])).unwrap_err().contains("changed its type"));
        assert!(
            evolve(&old, &schema(vec![column("id", 1, 20), column("a", 5, 25)]))
                .unwrap_err()
                .contains("again")
        );
        let mut other_key = old.clone();
        other_key.key = vec![1];
        assert!(evolve(&old, &other_key).unwrap_err().contains("replica identity"));
    }
}
