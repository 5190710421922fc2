//! What a Relation message means for a table whose columns are known from before.

use std::collections::HashMap;

use super::{matching, named_columns, store::TableRecord};
use crate::{
    fault::{Reason, Remedy},
    model::{Column, IdentityKind, SourceType, TableKind, TableSchema, TableSpec},
    postgres::{
        self,
        catalog::{self, LiveColumn},
        pgoutput::Relation,
        session::Session,
    },
    replication::{Error, Policy, policy},
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

/// Matches a relation's columns with a schema's. `excluded` are the source columns that the Mirror leaves out.
pub(in crate::replication) fn fit(schema: &TableSchema, relation: &Relation, excluded: &[String]) -> Fit {
    let Matched { projection, strangers, doubtful } = projection(schema, relation);
    if let Some(stranger) = strangers.iter().find(|name| !excluded.contains(name)) {
        return Fit::Unknown(format!("column {stranger} is not known at this position"));
    }
    if let Some(problem) = unreadable(schema, relation, &projection) {
        return Fit::Unknown(problem);
    }
    let lacks = |(position, known): &(&Option<usize>, &Column)| position.is_none() && !known.dropped;
    match projection.positions.iter().zip(&schema.columns).find(lacks) {
        Some((_, known)) => Fit::Unknown(format!("column {} is missing", known.name)),
        None if doubtful => Fit::Unknown("its columns' names fit in several ways".to_owned()),
        None => Fit::Known(projection),
    }
}

/// Why a relation's rows can't be read by this schema, whatever columns it lacks: values of another type, or old rows that are named
/// by another key.
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
    /// The relation's columns that are none of the schema's.
    pub(in crate::replication) strangers: Vec<&'a String>,
    /// Whether another match would do as well, or this one can't be: then names don't tell which columns they are.
    pub(in crate::replication) doubtful: bool,
}

/// Finds each column of a relation among those of a schema, by the names that it has and had.
///
/// Both lists are in the order of the attribute numbers, which a rename keeps: so a name is looked for only behind the column
/// before it, and two columns that have swapped their names are told apart. Once one of the two is dropped, they no longer are.
pub(in crate::replication) fn projection<'a>(schema: &TableSchema, relation: &'a Relation) -> Matched<'a> {
    let (chosen, ambiguous) = matching::best(&candidates(schema, relation), schema.columns.len());
    let mut positions = vec![None; schema.columns.len()];
    let mut strangers = Vec::new();
    for (position, (column, index)) in relation.columns.iter().zip(chosen).enumerate() {
        match index.and_then(|index| positions.get_mut(index)) {
            Some(found) => *found = Some(position),
            None => strangers.push(&column.name),
        }
    }
    let identical = positions.len() == relation.columns.len()
        && positions.iter().enumerate().all(|(index, position)| *position == Some(index));
    // A column that is there now was there whenever one with a higher number was.
    let live = || positions.iter().zip(&schema.columns).filter(|(_, known)| !known.dropped);
    let last = live().filter(|(position, _)| position.is_some()).map(|(_, known)| known.attnum).max();
    let skipped =
        live().any(|(position, known)| position.is_none() && last.is_some_and(|last| known.attnum < last));
    Matched { doubtful: ambiguous || skipped, projection: Projection { positions, identical }, strangers }
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

/// Whether columns come to a table on record, and others came and went again before them: names of rows from then may mean those.
pub(in crate::replication) fn came_and_went(record: &TableRecord, now: &Described) -> bool {
    let known = |column: &Column| record.schema.columns.iter().any(|known| known.attnum == column.attnum);
    // Rows of which only the inserts count stay as they were inserted.
    let counts = record.schema.kind != TableKind::AppendOnly && !now.schema.columns.iter().all(known);
    let highest = record.layout.as_ref().and_then(|layout| layout.attributes);
    counts && highest.is_some_and(|highest| leave_gaps(highest, &now.columns))
}

/// Whether numbers above `highest` are missing below those that columns have.
fn leave_gaps(highest: i16, live: &[LiveColumn]) -> bool {
    let new = || live.iter().map(|column| column.attnum).filter(|attnum| *attnum > highest);
    let count = new().count();
    new()
        .max()
        .is_some_and(|last| usize::try_from(last.saturating_sub(highest)).is_ok_and(|room| room > count))
}

/// The schema after a change, and which of its columns are new; or why it can't be applied.
///
/// Columns are matched by attribute number, which a rename keeps. A dropped column stays: the target keeps it, and no
/// value comes for it any more.
pub(in crate::replication) fn evolve(
    old: &TableSchema,
    fresh: &TableSchema,
) -> Result<(TableSchema, Vec<usize>), String> {
    let mut merged = old.clone();
    for known in &mut merged.columns {
        known.dropped = !fresh.columns.iter().any(|column| column.attnum == known.attnum);
    }
    let mut added = Vec::new();
    for column in &fresh.columns {
        if let Some(known) = merged.columns.iter_mut().find(|known| known.attnum == column.attnum) {
            retype(known, column, &old.target)?;
            rename(known, &column.name);
        }
    }
    // Only once all have their present names: a new column may have one's former name.
    for column in &fresh.columns {
        if merged.columns.iter().any(|known| known.attnum == column.attnum) {
            continue;
        }
        let clash = |known: &&Column| known.name == column.name || known.target_name == column.target_name;
        if let Some(known) = merged.columns.iter().find(clash) {
            return Err(taken(column, known));
        }
        added.push(merged.columns.len());
        merged.columns.push(column.clone());
    }
    let names = |schema: &TableSchema| -> Vec<String> {
        schema
            .key
            .iter()
            .filter_map(|index| schema.columns.get(*index))
            .map(|column| column.name.clone())
            .collect()
    };
    if merged.kind == TableKind::ChangeLog && fresh.identity != IdentityKind::Full {
        return Err(NOT_FULL.to_owned());
    }
    if merged.kind.is_keyed() && fresh.key.is_empty() {
        return Err(format!(
            "nothing names its rows any more, which were told apart by ({})",
            names(&merged).join(", ")
        ));
    }
    // A key that such a table gets later changes nothing for rows that were told apart without one.
    if merged.kind.is_keyed() && names(&merged) != names(fresh) {
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

/// Why a new column can't have the target column of its name, which has the values of another one.
fn taken(column: &Column, known: &Column) -> String {
    let (name, target) = (&column.name, &known.target_name);
    match known.dropped {
        true if known.name == *name => format!(
            "column {name} was dropped and added again at the source; its target column {target} holds values of the old one"
        ),
        true => format!(
            "column {name} was added at the source; target column {target} holds values of column {}, which was dropped",
            known.name
        ),
        false => format!(
            "column {name} was added at the source; target column {target} holds values of column {}",
            known.name
        ),
    }
}

/// The same columns, in the same order, as queries must name them now; without those added meanwhile.
pub(in crate::replication) fn rename_to_current(schema: &TableSchema, fresh: &TableSchema) -> TableSchema {
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

/// Takes up another type whose values are read and stored as before, such as `text` for `varchar(20)`.
fn retype(known: &mut Column, column: &Column, target: &str) -> Result<(), String> {
    let former = (known.type_oid, known.type_modifier);
    if former == (column.type_oid, column.type_modifier) {
        return Ok(());
    }
    if !reads(&column.source_type, &known.source_type) {
        return Err(format!(
            "column {} changed its type from {} to {} at the source; target table {target} still has the old type",
            known.name, known.type_name, column.type_name
        ));
    }
    known.former_types.retain(|known| *known != (column.type_oid, column.type_modifier));
    known.former_types.push(former);
    (known.type_oid, known.type_modifier) = (column.type_oid, column.type_modifier);
    known.type_name.clone_from(&column.type_name);
    known.source_type.clone_from(&column.source_type);
    Ok(())
}

/// Whether values that were sent as `former` are read as `fresh` with the same result.
fn reads(fresh: &SourceType, former: &SourceType) -> bool {
    match (former, fresh) {
        (SourceType::Numeric(Some((precision, scale))), SourceType::Numeric(Some((now, now_scale)))) => {
            let whole = |precision: u16, scale: i16| i32::from(precision) - i32::from(scale);
            scale <= now_scale && whole(*precision, *scale) <= whole(*now, *now_scale)
        }
        (SourceType::Array(former), SourceType::Array(fresh)) => reads(fresh, former),
        (SourceType::Int2, SourceType::Int4 | SourceType::Int8)
        | (SourceType::Int4, SourceType::Int8)
        | (SourceType::Float4, SourceType::Float8) => true,
        _ => former == fresh && fresh.has_binary_decoder(),
    }
}

/// The schema of a table that is copied again: as the catalog has it, under the target names that its columns have had, as long as
/// no two have the same.
pub(in crate::replication) fn anew(old: &TableSchema, fresh: &TableSchema) -> TableSchema {
    let mut schema = fresh.clone();
    take_target_names(old, &mut schema, |_, _| true);
    schema
}

/// Gives the columns of a table that joins again the names that they had at the target, so that a rename at the source does not
/// become a second column there. What `columns.rename` says or has said of a column comes first. Another target, and another table
/// under the same name, begin with names of their own.
pub fn keep_target_names(before: &TableRecord, spec: &TableSpec, fresh: &mut TableSchema) {
    if before.schema.oid != fresh.oid || before.schema.target != fresh.target {
        return;
    }
    let asked = |known: &Column| {
        let of = |from: &String| *from == known.name || known.former_names.contains(from);
        before.spec.rename.iter().any(|(from, _)| of(from))
    };
    take_target_names(&before.schema, fresh, |known, name| {
        let asks = spec.rename.iter().any(|(from, _)| from == name);
        !asks && (before.spec.rename == spec.rename || !asked(known))
    });
}

/// `keeps` says of a known column and its present name whether its target name stays.
fn take_target_names(old: &TableSchema, schema: &mut TableSchema, keeps: impl Fn(&Column, &str) -> bool) {
    let known = |column: &Column| old.columns.iter().find(|known| known.attnum == column.attnum);
    let mut kept: Vec<Option<String>> = schema
        .columns
        .iter()
        .map(|column| {
            let known = known(column).filter(|known| keeps(known, &column.name))?;
            (known.target_name != column.target_name).then(|| known.target_name.clone())
        })
        .collect();
    // A column that has another one's former name takes it, and the other one its present name.
    loop {
        let names = || {
            kept.iter()
                .zip(&schema.columns)
                .map(|(kept, column)| kept.as_ref().unwrap_or(&column.target_name))
        };
        let twice = |name: &String| names().filter(|other| *other == name).count() > 1;
        let clash = kept.iter().position(|kept| kept.as_ref().is_some_and(twice));
        match clash.and_then(|index| kept.get_mut(index)) {
            Some(kept) => *kept = None,
            None => break,
        }
    }
    for (column, kept) in schema.columns.iter_mut().zip(kept) {
        column.target_name = kept.unwrap_or_else(|| column.target_name.clone());
    }
}

/// Forgets columns that have never had the name of the one with their number now: after a failover it may be another one, which must not
/// get the target's column of the lost one. Leaves a schema for [`anew`] alone.
pub(in crate::replication) fn forget_strangers(known: &mut TableSchema, fresh: &TableSchema) {
    known.columns.retain(|known| {
        let now = fresh.columns.iter().find(|column| column.attnum == known.attnum);
        now.is_some_and(|now| now.name == known.name || known.former_names.contains(&now.name))
    });
}

/// How the names and types that a schema was made with compare with the columns that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::replication) enum ColumnNames {
    /// A query by this schema reads what it means.
    Same,
    /// A column has another name, or is gone.
    Renamed,
    /// A column has another type.
    Retyped,
}

/// Compares by attribute number: after a swap of names, a query would read the wrong column without an error.
pub(in crate::replication) fn check_columns(schema: &TableSchema, live: &[LiveColumn]) -> ColumnNames {
    let mut found = ColumnNames::Same;
    for known in schema.columns.iter().filter(|known| !known.dropped) {
        match live.iter().find(|column| column.attnum == known.attnum) {
            Some(column) if !readable_as(known, (column.type_oid, column.type_modifier)) => {
                return ColumnNames::Retyped;
            }
            Some(column) if column.name == known.name => {}
            _ => found = ColumnNames::Renamed,
        }
    }
    found
}

fn readable_as(known: &Column, found: (u32, i32)) -> bool {
    (known.type_oid, known.type_modifier) == found || known.former_types.contains(&found)
}

fn rename(column: &mut Column, name: &str) {
    if column.name != name {
        let former = std::mem::replace(&mut column.name, name.to_owned());
        column.former_names.retain(|known| *known != former);
        column.former_names.push(former);
    }
}

/// A table as the catalog has it, by the names of its entry as they were resolved.
pub(in crate::replication) struct Described {
    /// What is mirrored of it.
    pub(in crate::replication) schema: TableSchema,
    /// All its columns.
    pub(in crate::replication) columns: Vec<LiveColumn>,
}

/// What the catalog says of a table that is on record.
///
/// # Errors
/// The table's own fault where it can't be mirrored as asked any more, and transient errors.
pub(in crate::replication) async fn describe(
    session: &Session,
    record: &TableRecord,
) -> Result<Described, Error> {
    let known = &record.schema;
    let named = record.named.as_ref().map(|named| named.columns.as_slice()).unwrap_or_default();
    match catalog::describe_known(session, &record.spec, named).await {
        Ok(mut facts) if facts.schema.oid == known.oid => {
            facts.schema.keep_kind(known);
            Ok(Described { schema: facts.schema, columns: facts.columns })
        }
        // Another table with that name has other columns, whatever they are called.
        Err(postgres::Error::ColumnRenamed { parted, .. })
            if catalog::table_name(session, known.oid).await?.as_ref() == Some(&known.id) =>
        {
            Err(named_columns::renamed(&known.id, &parted.to_string()))
        }
        Err(error) if is_of_columns(&error) && error.is_transient() => Err(error.into()),
        Err(error) if is_of_columns(&error) => Err(changed(known, &error.to_string())),
        // No table has its name any more, or another one has it.
        _ => Err(match catalog::table_name(session, known.oid).await? {
            Some(name) if name != known.id => Error::renamed(&known.id, &name),
            _ => Error::dropped(&known.id),
        }),
    }
}

/// Whether an error says something of the table that is on record, and not that it is gone.
fn is_of_columns(error: &postgres::Error) -> bool {
    !error.is_missing_table() && !matches!(error, postgres::Error::ColumnRenamed { .. })
}

/// Whether a query named a column that is no more: undefined_column.
pub(in crate::replication) fn outdated(error: &postgres::Error) -> bool {
    error.sqlstate() == Some("42703")
}

const NOT_FULL: &str = "the replica identity is no longer FULL, so changes do not tell the old row";

/// Refuses a table without a key whose changes do not tell the old row any more.
///
/// # Errors
/// [`without_old_rows`]
pub(in crate::replication) fn require_old_rows(
    known: &TableSchema,
    fresh: &TableSchema,
) -> Result<(), Error> {
    match (known.kind, fresh.identity) {
        (TableKind::ChangeLog, identity) if identity != IdentityKind::Full => match fresh.key.is_empty() {
            true => Err(without_old_rows(known)),
            false => Err(with_a_key(known)),
        },
        _ => Ok(()),
    }
}

/// The fault of a table without a key that has got one: rows that it names have another layout at the destination.
fn with_a_key(schema: &TableSchema) -> Error {
    let how =
        format!("give {} another target.table, as tables with a key have another layout there", schema.id);
    Error::table(&schema.id, Reason::SourceSchemaChanged, NOT_FULL)
        .remedied([Remedy::edit("spec.tables", how)])
}

/// The fault of a table without a key whose changes do not tell the old row any more.
pub(in crate::replication) fn without_old_rows(schema: &TableSchema) -> Error {
    let statement = format!("ALTER TABLE {} REPLICA IDENTITY FULL", postgres::quote::table(&schema.id));
    Error::table(&schema.id, Reason::SourceSchemaChanged, NOT_FULL)
        .remedied([Remedy::run_at_source(statement)])
}

/// The fault of a table whose change at the source can't be followed.
pub(in crate::replication) fn changed(schema: &TableSchema, detail: &str) -> Error {
    let alike = Remedy::act(format!("change target table {} alike, or drop it", schema.target));
    Error::table(&schema.id, Reason::SourceSchemaChanged, detail).remedied([alike])
}

/// Why a table is copied again of whose columns nobody knows what they held.
pub(in crate::replication) const CAME_AND_WENT: &str = "columns were added and dropped before they were seen";

/// Why rows can't be read by the names that their columns have.
pub(in crate::replication) const OTHER_NAMES: &str = "its columns had other names for a while";

/// Why a target has to change with its table.
pub(in crate::replication) const CHANGED_COLUMNS: &str = "its columns have changed at the source";

/// A target that refuses what a table has become, with the reason of the change before what the destination says.
pub(in crate::replication) fn refused(schema: &TableSchema, why: &str, error: Error) -> Error {
    match policy(&error) {
        (Policy::FailTable, _) => {
            let (said, remedies) = match error {
                Error::Destination(fault) => (fault.message, fault.remedies),
                error => (error.to_string(), Vec::new()),
            };
            let message = format!("{why}; {said}");
            Error::table(&schema.id, Reason::SourceSchemaChanged, message).remedied(remedies)
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::TableId, postgres::pgoutput::RelationColumn};

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
                    key: *name == "id",
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
        let expected = Projection { positions: vec![Some(0), Some(2), None], identical: false };
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
        assert_eq!(fit(&old, &without, &[]), Fit::Unknown("column a is missing".into()));
        let fresh = schema(vec![column("id", 1, 20), column("c", 3, 25), column("d", 4, 25)]);
        let (merged, _) = evolve(&old, &fresh).unwrap();
        let dropped: Vec<_> = merged.columns.iter().map(|column| column.dropped).collect();
        assert_eq!(dropped, [false, true, false, false]);
        assert!(matches!(fit(&merged, &relation(&[("id", 20), ("c", 25), ("d", 25)]), &[]), Fit::Known(_)));
        let now = rename_to_current(&old, &fresh);
        let now: Vec<_> = now.columns.iter().map(|column| (column.name.as_str(), column.dropped)).collect();
        assert_eq!(now, [("id", false), ("a", true), ("c", false)]);
    }

    fn told(schema: &TableSchema, relation: &Relation) -> String {
        match fit(schema, relation, &[]) {
            Fit::Unknown(words) => words,
            Fit::Known(projection) => panic!("{projection:?}"),
        }
    }

    #[test]
    fn new_and_retyped_columns_and_other_keys_are_told() {
        let schema = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        assert!(told(&schema, &relation(&[("id", 20), ("a", 25), ("b", 25)])).contains("column b"));
        assert!(told(&schema, &relation(&[("id", 25), ("a", 25)])).contains("column id has another type"));
        let mut other = relation(&[("id", 20), ("a", 25)]);
        other.columns[1].key = true;
        assert!(told(&schema, &other).contains("replica identity"));
        other.columns[0].key = false;
        assert!(told(&schema, &other).contains("replica identity"));
        other.identity = IdentityKind::Full;
        assert!(matches!(fit(&schema, &other, &[]), Fit::Known(_)));
    }

    #[test]
    fn swapped_names_are_told_apart_by_their_order() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25), column("b", 3, 25)]);
        let swapped = relation(&[("id", 20), ("b", 25), ("a", 25)]);
        assert!(told(&old, &swapped).contains("column a is not known at this position"));
        let fresh = schema(vec![column("id", 1, 20), column("b", 2, 25), column("a", 3, 25)]);
        let (merged, _) = evolve(&old, &fresh).unwrap();
        for relation in [swapped, relation(&[("id", 20), ("a", 25), ("b", 25)])] {
            let Fit::Known(projection) = fit(&merged, &relation, &[]) else { panic!() };
            assert!(projection.identical, "{relation:?}");
        }
        let live = |name: &str, attnum, type_oid| LiveColumn {
            attnum,
            name: name.into(),
            type_oid,
            type_modifier: -1,
            generated: false,
            written_by: 7,
        };
        let now = |last| [live("id", 1, 20), live("b", 2, 25), last];
        assert_eq!(check_columns(&merged, &now(live("a", 3, 25))), ColumnNames::Same);
        assert_eq!(check_columns(&old, &now(live("a", 3, 25))), ColumnNames::Renamed);
        assert_eq!(check_columns(&old, &now(live("a", 4, 25))), ColumnNames::Renamed);
        assert_eq!(check_columns(&merged, &now(live("a", 3, 26))), ColumnNames::Retyped);
    }

    #[test]
    fn a_type_that_is_read_alike_is_taken_up() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let (merged, _) = evolve(&old, &schema(vec![column("id", 1, 20), column("a", 2, 1043)])).unwrap();
        for type_oid in [25, 1043] {
            assert!(matches!(fit(&merged, &relation(&[("id", 20), ("a", type_oid)]), &[]), Fit::Known(_)));
        }
        let mut other = schema(vec![column("id", 1, 20), column("a", 2, 23)]);
        other.columns[1].source_type = SourceType::Int4;
        assert!(evolve(&old, &other).unwrap_err().contains("changed its type from type25 to type23"));
    }

    #[test]
    fn a_longer_numeric_reads_what_was_sent_before() {
        let numeric = |precision, scale| SourceType::Numeric(Some((precision, scale)));
        assert!(reads(&numeric(12, 2), &numeric(10, 2)) && reads(&numeric(12, 4), &numeric(10, 2)));
        assert!(!reads(&numeric(12, 5), &numeric(10, 2)) && !reads(&numeric(10, 2), &numeric(12, 2)));
        assert!(!reads(&SourceType::Numeric(None), &numeric(10, 2)));
        let array = |precision| SourceType::Array(Box::new(numeric(precision, 2)));
        assert!(reads(&array(12), &array(10)) && !reads(&array(10), &array(12)));
        assert!(reads(&SourceType::Int8, &SourceType::Int4) && !reads(&SourceType::Int4, &SourceType::Int8));
        assert!(!reads(&SourceType::Numeric(Some((12, 2))), &SourceType::Int4));
        let mut old = schema(vec![column("id", 1, 20), column("d", 2, 1700)]);
        old.columns[1] = Column { type_modifier: 7, source_type: numeric(10, 2), ..old.columns[1].clone() };
        let mut fresh = old.clone();
        fresh.columns[1] = Column { type_modifier: 9, source_type: numeric(12, 2), ..old.columns[1].clone() };
        let (merged, _) = evolve(&old, &fresh).unwrap();
        assert_eq!(merged.columns[1].source_type, numeric(12, 2));
        assert_eq!(merged.columns[1].former_types, [(1700, 7)]);
    }

    #[test]
    fn a_table_copied_anew_keeps_its_target_names_where_they_are_free() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let names = |fresh: Vec<Column>| -> Vec<String> {
            let schema = anew(&old, &schema(fresh));
            schema.columns.into_iter().map(|column| column.target_name).collect()
        };
        assert_eq!(
            names(vec![column("id", 1, 20), column("c", 2, 25), column("d", 3, 25)]),
            ["id", "a", "d"]
        );
        assert_eq!(
            names(vec![column("id", 1, 20), column("c", 2, 25), column("a", 3, 25)]),
            ["id", "c", "a"]
        );
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
    fn what_a_new_column_s_target_holds_is_told() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let told = |old: &TableSchema, columns: Vec<Column>| evolve(old, &schema(columns)).unwrap_err();
        let (id, new) = (column("id", 1, 20), column("a", 5, 25));
        assert_eq!(
            told(&old, vec![id.clone(), new.clone()]),
            "column a was dropped and added again at the source; its target column a holds values of the old one"
        );
        let renamed = vec![id.clone(), column("b", 2, 25), new.clone()];
        assert_eq!(
            told(&old, renamed),
            "column a was added at the source; target column a holds values of column b"
        );
        let (renamed, _) = evolve(&old, &schema(vec![id.clone(), column("b", 2, 25)])).unwrap();
        assert_eq!(
            told(&renamed, vec![id.clone(), new]),
            "column a was added at the source; target column a holds values of column b, which was dropped"
        );
        // The target gives the name of its own that `columns.rename` asks for.
        let mut named = old.clone();
        named.columns[1].target_name = "c".to_owned();
        assert_eq!(
            told(&named, vec![id, column("a", 2, 25), column("c", 3, 25)]),
            "column c was added at the source; target column c holds values of column a"
        );
    }

    #[test]
    fn a_dropped_column_stays_and_a_key_or_type_change_is_refused() {
        let old = schema(vec![column("id", 1, 20), column("a", 2, 25)]);
        let (merged, added) = evolve(&old, &schema(vec![column("id", 1, 20)])).unwrap();
        assert_eq!((merged.columns.len(), added.len()), (2, 0));
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
