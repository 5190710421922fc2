//! Borrowed rows: how a decoder hands a row to a column builder without copying it.

/// How one value of a tuple is present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellKind {
    /// SQL NULL.
    Null,
    /// An unchanged TOAST value: not in the message (protocol letter `u`).
    Unchanged,
    /// PostgreSQL's text form.
    Text,
    /// PostgreSQL's binary send form.
    Binary,
}

/// One value's kind and its place in the tuple's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// How the value is present.
    pub kind: CellKind,
    /// Offset of the first byte in [`Tuple::data`].
    pub start: u32,
    /// Length in bytes; 0 unless the kind is `Text` or `Binary`.
    pub len: u32,
}

/// A row borrowed from a receive buffer: `cells[i]` locates the value of the i-th column in `data`.
///
/// The columns are those of the [`super::TableSchema`] the row is pushed with, in its order. The offsets
/// always lie within `data` (decoders check); [`Tuple::bytes`] answers an empty slice rather than panic where
/// they don't.
#[derive(Clone, Copy, Debug)]
pub struct Tuple<'a> {
    /// The bytes that the cells point into.
    pub data: &'a [u8],
    /// One cell a column.
    pub cells: &'a [Cell],
}

impl<'a> Tuple<'a> {
    /// The bytes of column `index`; empty for NULL and unchanged values.
    #[inline]
    pub fn bytes(&self, index: usize) -> &'a [u8] {
        let Some(cell) = self.cells.get(index) else { return &[] };
        let start = cell.start as usize;
        self.data.get(start..start + cell.len as usize).unwrap_or(&[])
    }

    /// Whether any value is an unchanged TOAST value.
    #[inline]
    pub fn has_unchanged(&self) -> bool {
        self.cells.iter().any(|cell| cell.kind == CellKind::Unchanged)
    }
}
