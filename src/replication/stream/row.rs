//! From a message's tuples to the rows that a key's old and new state need.

use std::sync::Arc;

use super::stream_table::TableIndex;
use crate::{
    model::{Cell, CellKind, IdentityKind, SourceType, TableSchema, Tuple},
    postgres::pgoutput::OldTuple,
    replication::table::projection::Projection,
};

/// Reused memory for tuples in schema order.
#[derive(Default)]
pub(super) struct Scratch {
    /// Cells as decoded: the old tuple, the new one.
    pub(super) old: Vec<Cell>,
    pub(super) new: Vec<Cell>,
    projected: Vec<Cell>,
    data: Vec<u8>,
}

/// A relation of the stream, resolved to one of our tables.
pub(super) struct RelationMapping {
    /// The table.
    pub(super) table: TableIndex,
    /// Its schema when the relation was announced.
    pub(super) schema: Arc<TableSchema>,
    pub(super) projection: Projection,
    /// Whether a column the relation lacks has to be filled with a constant.
    filled: bool,
    /// For a partitioned table, where a whole old row has a value in any case; a partition logs it by its own
    /// replica identity.
    never_null: Option<Vec<usize>>,
    /// Whether each change should come with the whole old row.
    full: bool,
}

impl RelationMapping {
    pub(super) fn new(
        table: TableIndex,
        schema: Arc<TableSchema>,
        projection: Projection,
        identity: IdentityKind,
    ) -> Self {
        let filled = projection.positions.iter().zip(&schema.columns).any(|(position, column)| {
            position.is_none() && !column.dropped && column.missing_value.is_some()
        });
        let is_sent = |index: &usize| match schema.kind.is_keyed() {
            true => schema.key.contains(index) || schema.order_by.contains(index),
            false => identity == IdentityKind::Full,
        };
        let columns = || schema.columns.iter().enumerate().filter(|(index, c)| !c.nullable && is_sent(index));
        let positions =
            || columns().filter_map(|(index, _)| projection.positions.get(index).copied().flatten());
        let never_null = schema.partitioned.then(|| positions().collect());
        let full = identity == IdentityKind::Full;
        RelationMapping { table, schema, projection, filled, never_null, full }
    }

    /// Whether the old row shows that a partition has another replica identity than its table.
    pub(super) fn identity_differs(&self, old: OldTuple, scratch: &Scratch) -> bool {
        let Some(never_null) = &self.never_null else { return false };
        let is_null =
            |position: &usize| scratch.old.get(*position).is_some_and(|cell| cell.kind == CellKind::Null);
        match old {
            OldTuple::None => self.full,
            _ if never_null.iter().any(is_null) => true,
            // Without a key, the other values are unknown.
            OldTuple::Full => !self.schema.kind.is_keyed() && has_unchanged_null(scratch),
            OldTuple::Key => false,
        }
    }

    /// Hands `cells` over in schema order. Borrows them where the relation is the schema.
    #[inline]
    pub(super) fn project<'a>(
        &self,
        data: &'a [u8],
        cells: &'a [Cell],
        projected: &'a mut Vec<Cell>,
        filled_data: &'a mut Vec<u8>,
    ) -> Tuple<'a> {
        if self.projection.identical {
            return Tuple { data, cells };
        }
        projected.clear();
        let absent = Cell { kind: CellKind::Null, start: 0, len: 0 };
        projected.extend(
            self.projection
                .positions
                .iter()
                .map(|position| position.and_then(|position| cells.get(position)).copied().unwrap_or(absent)),
        );
        if !self.filled {
            return Tuple { data, cells: projected };
        }
        filled_data.clear();
        filled_data.extend_from_slice(data);
        for ((cell, position), column) in
            projected.iter_mut().zip(&self.projection.positions).zip(&self.schema.columns)
        {
            if let (None, false, Some(constant)) = (position, column.dropped, &column.missing_value) {
                let start = u32::try_from(filled_data.len()).unwrap_or(u32::MAX);
                filled_data.extend_from_slice(constant.as_bytes());
                *cell = Cell {
                    kind: CellKind::Text,
                    start,
                    len: u32::try_from(constant.len()).unwrap_or(u32::MAX),
                };
            }
        }
        Tuple { data: filled_data, cells: projected }
    }

    /// The same, with the scratch's own memory, for the old and the new tuple of `scratch`.
    #[inline]
    pub(super) fn tuple<'a>(&self, data: &'a [u8], side: TupleSide, scratch: &'a mut Scratch) -> Tuple<'a> {
        let Scratch { old, new, projected, data: filled } = scratch;
        let cells = if side == TupleSide::Old { old } else { new };
        self.project(data, cells, projected, filled)
    }

    /// Fills unchanged values of the new tuple from the old one where it has them: all of them when it is
    /// full, the key's when it is a key, whatever it is called.
    pub(super) fn fill_from_old(&self, kind: OldTuple, scratch: &mut Scratch) {
        if kind == OldTuple::None {
            return;
        }
        let whole = kind == OldTuple::Full && !has_unchanged_null(scratch);
        for (schema_index, position) in self.projection.positions.iter().enumerate() {
            let Some(position) = *position else { continue };
            let known = whole || self.schema.key.contains(&schema_index);
            if let (true, Some(new), Some(old)) =
                (known, scratch.new.get_mut(position), scratch.old.get(position))
                && new.kind == CellKind::Unchanged
            {
                *new = *old;
            }
        }
    }

    /// The key of a row whose first values these are, to be shown to people: where its columns are integers
    /// or UUIDs, which identify the row and nothing more, and come before what is missing.
    pub(super) fn key_shown(&self, data: &[u8], cells: &[Cell]) -> Option<String> {
        let tuple = Tuple { data, cells };
        let shown = self.schema.key.iter().map(|index| {
            let column = self.schema.columns.get(*index)?;
            let position = self.projection.positions.get(*index).copied().flatten()?;
            let value = shown(&column.source_type, cells.get(position)?.kind, tuple.bytes(position))?;
            Some(format!("{} = {value}", column.name))
        });
        Some(shown.collect::<Option<Vec<_>>>()?.join(", "))
    }

    /// Whether the destination's sorting key differs between the old tuple and the new one, so that the old
    /// row needs a tombstone.
    pub(super) fn key_changed(&self, data: &[u8], scratch: &Scratch) -> bool {
        let (old, new) = (Tuple { data, cells: &scratch.old }, Tuple { data, cells: &scratch.new });
        self.schema.order_by.iter().any(|index| {
            let Some(position) = self.projection.positions.get(*index).copied().flatten() else {
                return false;
            };
            let kind = |tuple: &Tuple<'_>| tuple.cells.get(position).map(|cell| cell.kind);
            kind(&old) != kind(&new) || old.bytes(position) != new.bytes(position)
        })
    }
}

/// Whether a value that did not change is NULL in the old row: a whole old row would have it, so this one has
/// its key only.
fn has_unchanged_null(scratch: &Scratch) -> bool {
    let pairs = scratch.new.iter().zip(&scratch.old);
    pairs.into_iter().any(|(new, old)| new.kind == CellKind::Unchanged && old.kind == CellKind::Null)
}

/// An integer or a UUID as text.
fn shown(source_type: &SourceType, kind: CellKind, bytes: &[u8]) -> Option<String> {
    use SourceType::{Int2, Int4, Int8, Uuid};
    match (source_type, kind) {
        (Int2 | Int4 | Int8 | Uuid, CellKind::Text) => std::str::from_utf8(bytes).ok().map(str::to_owned),
        (Int2, CellKind::Binary) => Some(i16::from_be_bytes(bytes.try_into().ok()?).to_string()),
        (Int4, CellKind::Binary) => Some(i32::from_be_bytes(bytes.try_into().ok()?).to_string()),
        (Int8, CellKind::Binary) => Some(i64::from_be_bytes(bytes.try_into().ok()?).to_string()),
        (Uuid, CellKind::Binary) => {
            let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
            Some(format!("'{hex}'"))
        }
        _ => None,
    }
}

/// One of a message's tuples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TupleSide {
    Old,
    New,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, TableId};

    fn column(name: &str, missing_value: Option<&str>) -> Column {
        Column {
            type_oid: 25,
            type_name: "text".into(),
            missing_value: missing_value.map(Into::into),
            ..Column::new(name, SourceType::Text)
        }
    }

    /// Columns id, a, b; the key is id.
    fn relation(positions: Vec<Option<usize>>, missing_value: Option<&str>) -> RelationMapping {
        let schema = TableSchema::new(
            TableId::new("public", "t"),
            vec![column("id", None), column("a", None), column("b", missing_value)],
        );
        let identical = positions.iter().enumerate().all(|(index, position)| *position == Some(index));
        RelationMapping::new(
            TableIndex::FIRST,
            Arc::new(schema),
            Projection { positions, identical },
            IdentityKind::Full,
        )
    }

    fn cell(kind: CellKind, start: u32, len: u32) -> Cell {
        Cell { kind, start, len }
    }

    #[test]
    fn projects_by_schema_order_and_fills_what_is_missing() {
        let mapping = relation(vec![Some(1), Some(0), None], Some("7"));
        let mut scratch = Scratch {
            new: vec![cell(CellKind::Text, 0, 1), cell(CellKind::Text, 1, 2)],
            ..Scratch::default()
        };
        let tuple = mapping.tuple(b"xyz", TupleSide::New, &mut scratch);
        assert_eq!((tuple.bytes(0), tuple.bytes(1), tuple.bytes(2)), (&b"yz"[..], &b"x"[..], &b"7"[..]));
        let mapping = relation(vec![Some(0), Some(1), None], None);
        let tuple = mapping.tuple(b"xyz", TupleSide::New, &mut scratch);
        assert_eq!(tuple.cells[2].kind, CellKind::Null, "a dropped column has no value");
    }

    #[test]
    fn a_key_tuple_moves_the_row_only_when_the_key_differs() {
        let mapping = relation(vec![Some(0), Some(1), Some(2)], None);
        let row = |start| {
            vec![cell(CellKind::Text, start, 1), cell(CellKind::Null, 0, 0), cell(CellKind::Null, 0, 0)]
        };
        let scratch = Scratch { old: row(0), new: row(1), ..Scratch::default() };
        assert!(mapping.key_changed(b"ab", &scratch));
        assert!(!mapping.key_changed(b"aa", &scratch));
    }

    #[test]
    fn a_key_tuple_fills_the_key_alone_and_a_full_one_everything() {
        let mapping = relation(vec![Some(0), Some(1), Some(2)], None);
        let old = vec![cell(CellKind::Text, 0, 1), cell(CellKind::Null, 0, 0), cell(CellKind::Text, 1, 1)];
        let new = vec![cell(CellKind::Unchanged, 0, 0); 3];
        let mut scratch = Scratch { old, new, ..Scratch::default() };
        mapping.fill_from_old(OldTuple::Key, &mut scratch);
        let kinds: Vec<_> = scratch.new.iter().map(|cell| cell.kind).collect();
        assert_eq!(kinds, [CellKind::Text, CellKind::Unchanged, CellKind::Unchanged]);
        mapping.fill_from_old(OldTuple::Full, &mut scratch);
        let kinds: Vec<_> = scratch.new.iter().map(|cell| cell.kind).collect();
        assert_eq!(
            kinds,
            [CellKind::Text, CellKind::Unchanged, CellKind::Unchanged],
            "a whole row has no NULL there"
        );
        scratch.old[1] = cell(CellKind::Text, 0, 0);
        mapping.fill_from_old(OldTuple::Full, &mut scratch);
        let kinds: Vec<_> = scratch.new.iter().map(|cell| cell.kind).collect();
        assert_eq!(kinds, [CellKind::Text, CellKind::Text, CellKind::Text]);
    }
}
