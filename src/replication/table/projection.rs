//! Where the columns of a relation in the stream are among those of a schema.

use std::collections::HashMap;

use super::matching;
use crate::{
    model::{Column, IdentityKind, TableKind, TableSchema},
    postgres::pgoutput::Relation,
};

/// Where each schema column's value is in a tuple of a relation; `None` when the relation lacks the column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::replication) struct Projection {
    /// By schema column.
    pub(in crate::replication) positions: Vec<Option<usize>>,
    /// Whether tuples can be used as they are.
    pub(in crate::replication) identical: bool,
}

/// How a relation fits a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::replication) enum Fit {
    /// All that the relation has is known; columns it lacks are filled.
    Known(Projection),
    /// It differs, in these words: the catalog has to be asked.
    Unknown(String),
}

/// Matches a relation's columns with a schema's. `excluded` are the source columns that the Mirror leaves
/// out.
pub(in crate::replication) fn fit(schema: &TableSchema, relation: &Relation, excluded: &[String]) -> Fit {
    let Matched { projection, unknown_columns, ambiguous } = projection(schema, relation);
    if let Some(name) = unknown_columns.iter().find(|name| !excluded.contains(name)) {
        return Fit::Unknown(format!("column {name} is not known at this position"));
    }
    if let Some(problem) = unreadable(schema, relation, &projection) {
        return Fit::Unknown(problem);
    }
    let lacks = |(position, known): &(&Option<usize>, &Column)| position.is_none() && !known.dropped;
    match projection.positions.iter().zip(&schema.columns).find(lacks) {
        Some((_, known)) => Fit::Unknown(format!("column {} is missing", known.name)),
        None if ambiguous => Fit::Unknown("its columns' names fit in several ways".to_owned()),
        None => Fit::Known(projection),
    }
}

/// Why a relation's rows can't be read by this schema, whatever columns it lacks: values of another type, or
/// old rows that are named by another key.
pub(in crate::replication) fn unreadable(
    schema: &TableSchema,
    relation: &Relation,
    projection: &Projection,
) -> Option<String> {
    for (known, position) in schema.columns.iter().zip(&projection.positions) {
        let Some(column) = position.and_then(|position| relation.columns.get(position)) else { continue };
        let found = (column.type_oid, column.type_modifier);
        if !readable_as(known, found) {
            return Some(format!("column {} has another type", known.name));
        }
    }
    match (schema.kind, relation.identity) {
        (TableKind::AppendOnly, _) | (_, IdentityKind::Full) => return None,
        (TableKind::ChangeLog, _) => return Some(NOT_FULL.to_owned()),
        (TableKind::Keyed, _) => {}
    }
    let keys = |position: usize| relation.columns.get(position).is_some_and(|column| column.key);
    let named = |index: &usize| projection.positions.get(*index).copied().flatten().is_some_and(keys);
    let count = relation.columns.iter().filter(|column| column.key).count();
    let same = count == schema.key.len() && schema.key.iter().chain(&schema.order_by).all(named);
    (!same).then(|| "the replica identity is another one".to_owned())
}

/// How a relation's columns were matched with a schema's.
pub(in crate::replication) struct Matched<'a> {
    /// Where each schema column is in the relation.
    pub(in crate::replication) projection: Projection,
    /// The relation's columns that the schema doesn't have.
    pub(in crate::replication) unknown_columns: Vec<&'a String>,
    /// Whether another match would do as well, or this one can't be: then names don't say which columns they
    /// are.
    pub(in crate::replication) ambiguous: bool,
}

/// Finds each column of a relation among those of a schema, by the names that it has and had.
///
/// Both lists are in the order of the attribute numbers, which a rename keeps: so a name is searched only
/// behind the column before it, and two columns that have swapped their names are distinguished. Once one of
/// the two is dropped, they no longer are.
pub(in crate::replication) fn projection<'a>(schema: &TableSchema, relation: &'a Relation) -> Matched<'a> {
    let (chosen, ambiguous) = matching::best(&candidates(schema, relation), schema.columns.len());
    let mut positions = vec![None; schema.columns.len()];
    let mut unknown_columns = Vec::new();
    for (position, (column, index)) in relation.columns.iter().zip(chosen).enumerate() {
        match index.and_then(|index| positions.get_mut(index)) {
            Some(found) => *found = Some(position),
            None => unknown_columns.push(&column.name),
        }
    }
    let identical = positions.len() == relation.columns.len()
        && positions.iter().enumerate().all(|(index, position)| *position == Some(index));
    // A column that is there now was there whenever one with a higher number was.
    let live = || positions.iter().zip(&schema.columns).filter(|(_, known)| !known.dropped);
    let last = live().filter(|(position, _)| position.is_some()).map(|(_, known)| known.attnum).max();
    let skipped =
        live().any(|(position, known)| position.is_none() && last.is_some_and(|last| known.attnum < last));
    Matched {
        ambiguous: ambiguous || skipped,
        projection: Projection { positions, identical },
        unknown_columns,
    }
}

/// For each column of a relation those of a schema that it may be, in their order.
fn candidates(schema: &TableSchema, relation: &Relation) -> Vec<Vec<usize>> {
    let mut known: HashMap<&str, Vec<usize>> = HashMap::new();
    for (index, column) in schema.columns.iter().enumerate() {
        for name in [&column.name].into_iter().chain(&column.former_names) {
            known.entry(name).or_default().push(index);
        }
    }
    let of = |name: &String| known.get(name.as_str()).cloned().unwrap_or_default();
    relation.columns.iter().map(|column| of(&column.name)).collect()
}

pub(super) fn readable_as(known: &Column, found: (u32, i32)) -> bool {
    (known.type_oid, known.type_modifier) == found || known.former_types.contains(&found)
}

pub(super) const NOT_FULL: &str =
    "the replica identity is no longer FULL, so changes do not carry the old row";

#[cfg(test)]
mod tests {
    use super::super::fixtures::{column, mismatch, relation, schema};
    use super::*;

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
        let expected = Projection { positions: vec![Some(0), Some(2), None], identical: false };
        assert_eq!(found, Fit::Known(expected));
    }

    #[test]
    fn new_and_retyped_columns_and_other_keys_are_reported() {
        let schema = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        assert!(mismatch(&schema, &relation(&[("id", 20), ("a", 25), ("b", 25)])).contains("column b"));
        assert!(
            mismatch(&schema, &relation(&[("id", 25), ("a", 25)])).contains("column id has another type")
        );
        let mut other = relation(&[("id", 20), ("a", 25)]);
        other.columns[1].key = true;
        assert!(mismatch(&schema, &other).contains("replica identity"));
        other.columns[0].key = false;
        assert!(mismatch(&schema, &other).contains("replica identity"));
        other.identity = IdentityKind::Full;
        assert!(matches!(fit(&schema, &other, &[]), Fit::Known(_)));
    }
}
