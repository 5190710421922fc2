//! Rows in ClickHouse's `RowBinary` form: what `walferry verify` compares, from a block on one side and from
//! `SELECT … FORMAT RowBinary` on the other.

use super::{
    column::{Buffers, Column},
    string::put_varint,
};
use crate::clickhouse::types::{ChType, RowBinaryError};

/// Rows with every value's place in them. Two values are equal exactly when their bytes are, types being
/// equal and [`ChType::is_comparable`] (a NaN has one form here, and 0 and -0 two).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    data: Vec<u8>,
    /// Where each value ends, row by row.
    ends: Vec<usize>,
    columns: usize,
}

impl Rows {
    /// Whole rows from a `RowBinary` body, and how many of its bytes they take: what is left is the beginning
    /// of a row whose rest is still to come. `types` are those of the query's columns.
    ///
    /// # Errors
    /// [`RowBinaryError`] when the bytes are not values of these types.
    pub fn parse(types: &[ChType], body: &[u8]) -> Result<(Rows, usize), RowBinaryError> {
        let mut rows = Rows { columns: types.len(), ..Rows::default() };
        let mut taken = 0;
        'rows: while taken < body.len() && !types.is_empty() {
            let mut at = taken;
            let complete = rows.ends.len();
            for value_type in types {
                match value_type.row_binary_len(body.get(at..).unwrap_or_default())? {
                    Some(len) => at += len,
                    None => {
                        rows.ends.truncate(complete);
                        break 'rows;
                    }
                }
                rows.ends.push(at);
            }
            taken = at;
        }
        rows.data = body.get(..taken).unwrap_or_default().to_vec();
        Ok((rows, taken))
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.len().checked_div(self.columns).unwrap_or(0)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a value, for [`ChType::compare`] and [`crate::clickhouse::types::display`]; empty when
    /// there is no such row or column.
    pub fn cell(&self, row: usize, column: usize) -> &[u8] {
        let index = row * self.columns + column;
        let start = match index.checked_sub(1) {
            None => 0,
            Some(before) => self.ends.get(before).copied().unwrap_or_default(),
        };
        let end = self.ends.get(index).filter(|_| column < self.columns);
        end.and_then(|end| self.data.get(start..*end)).unwrap_or_default()
    }

    /// The rows of a block.
    pub(super) fn transposed(columns: &[Column], data: &[Buffers], count: usize) -> Rows {
        let mut rows = Rows { columns: columns.len(), ..Rows::default() };
        let mut cursors: Vec<Cursor<'_>> =
            columns.iter().zip(data).map(|(column, buffers)| Cursor::new(&column.target, buffers)).collect();
        for row in 0..count {
            for cursor in &mut cursors {
                cursor.put_value(row, &mut rows.data);
                rows.ends.push(rows.data.len());
            }
        }
        rows
    }
}

/// Walks through one column of a block.
struct Cursor<'a> {
    target: &'a ChType,
    buffers: &'a Buffers,
    /// Where the next value begins.
    value: usize,
    /// Which array element comes next.
    element: usize,
}

impl<'a> Cursor<'a> {
    fn new(target: &'a ChType, buffers: &'a Buffers) -> Cursor<'a> {
        Cursor { target, buffers, value: 0, element: 0 }
    }

    fn put_value(&mut self, row: usize, out: &mut Vec<u8>) {
        let ChType::Array(element) = self.target else {
            let null = self.target.is_nullable().then(|| self.buffers.nulls.get(row).copied().unwrap_or(0));
            return self.put_scalar(self.target.inner(), null, out);
        };
        let ends = self.buffers.offsets.as_chunks::<8>().0;
        let end = ends.get(row).map_or(self.element, |end| u64::from_le_bytes(*end) as usize);
        put_varint(end.saturating_sub(self.element), out);
        while self.element < end {
            let null = element.is_nullable();
            let null = null.then(|| self.buffers.element_nulls.get(self.element).copied().unwrap_or(0));
            self.put_scalar(element.inner(), null, out);
            self.element += 1;
        }
    }

    /// A value with its null flag; a block has a value behind NULL as well, `RowBinary` has none.
    fn put_scalar(&mut self, scalar: &ChType, null: Option<u8>, out: &mut Vec<u8>) {
        let rest = self.buffers.values.get(self.value..).unwrap_or_default();
        let len = scalar.row_binary_len(rest).ok().flatten().unwrap_or(rest.len());
        self.value += len;
        out.extend(null);
        if null != Some(1) {
            out.extend_from_slice(rest.get(..len).unwrap_or_default());
        }
    }
}
