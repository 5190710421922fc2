//! Blocks in ClickHouse's Native format, built column by column straight from borrowed rows.
//!
//! A block is the number of columns, the number of rows and, for each column, its name, its type and its
//! values; a nullable column has a byte a row before its values, an array column the ends of its rows'
//! arrays. <https://clickhouse.com/docs/interfaces/formats/Native>
//!
//! Encoding is where most of a replicated row's processor time goes, so a column picks its encoder once, by
//! source and target type, and a value is then one indirect call that appends to the column's bytes.

mod array;
mod codec;
mod column;
mod encoding;
mod float_text;
mod json;
mod number;
mod numeric;
mod rows;
mod string;
#[cfg(test)]
mod tests;
mod time;

use std::sync::Arc;

use bytes::Bytes;

pub use self::rows::Rows;
use self::{
    column::{Buffers, Column, Reject},
    encoding::Fit,
    string::put_varint,
};
use super::{
    layout::Layout,
    types::{ChType, TypeError},
};
use crate::{
    model::{OutOfRange, Position, TableSchema, Tuple},
    replication::{Op, TableBatch, ValueError},
};

/// Parts of a block smaller than this are copied together, larger ones are sent from where they are.
const COPIED_PART: usize = 16 * 1024;

/// Rows of one table as a Native block: the schema's columns in its order by target name, then walferry's own
/// by [`Layout`].
///
/// The block's types are the target's, but for `LowCardinality(String)` and `JSON`, which are sent as
/// `String`: the insert needs ClickHouse's `input_format_native_allow_types_conversion`, which is on by
/// default.
pub struct BlockBuilder {
    table: String,
    columns: Vec<Column>,
    layout: &'static Layout,
    rows: usize,
    /// The schema's columns, then walferry's own. Shared with the blocks that are being sent.
    data: Arc<Vec<Buffers>>,
    /// Columns whose value in the row in hand was adjusted.
    adjusted: Vec<usize>,
    /// Adjusted values by column.
    out_of_range: Vec<u64>,
}

impl BlockBuilder {
    /// An empty block for a table whose columns have these types at the destination.
    ///
    /// Values that a type can't hold are treated as `out_of_range` says, except in the columns of the table's
    /// key, where they always fail: two rows whose keys became equal would be one.
    ///
    /// # Errors
    /// [`TypeError::Impossible`] for a column and a type that don't go together.
    pub fn new(
        schema: &TableSchema,
        types: &[ChType],
        out_of_range: OutOfRange,
    ) -> Result<BlockBuilder, TypeError> {
        let columns = schema.columns.iter().zip(types).enumerate();
        let columns = columns
            .map(|(index, (column, target))| {
                Column::new(column, target, out_of_range, schema.key.contains(&index))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(BlockBuilder {
            table: schema.target.clone(),
            layout: Layout::of(schema.kind),
            rows: 0,
            data: Arc::new(vec![Buffers::default(); columns.len() + Layout::of(schema.kind).own.len()]),
            adjusted: Vec::new(),
            out_of_range: vec![0; columns.len()],
            columns,
        })
    }

    /// The block as the pieces of an HTTP body, one after the other. Large columns are not copied: the pieces
    /// share them with the builder, which allocates new ones when it is changed while a piece is still alive.
    pub fn to_block(&self) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut small = Vec::new();
        put_varint(self.data.len(), &mut small);
        put_varint(self.rows, &mut small);
        let own: Vec<_> =
            self.layout.own.iter().map(|own| column::header(own.name(), &own.column_type())).collect();
        let headers = self.columns.iter().map(|column| &column.header).chain(&own);
        for (index, (header, buffers)) in headers.zip(self.data.iter()).enumerate() {
            small.extend_from_slice(header);
            for (part, bytes) in buffers.parts().into_iter().enumerate() {
                if bytes.len() < COPIED_PART {
                    small.extend_from_slice(bytes);
                } else {
                    pieces.push(Bytes::from(std::mem::take(&mut small)));
                    pieces.push(Bytes::from_owner(Part { data: Arc::clone(&self.data), index, part }));
                }
            }
        }
        if !small.is_empty() {
            pieces.push(Bytes::from(small));
        }
        pieces
    }

    /// The rows in `RowBinary` form, to compare them with what ClickHouse answers; without walferry's own
    /// columns.
    pub fn to_rows(&self) -> Rows {
        Rows::transposed(&self.columns, &self.data, self.rows)
    }

    /// The types of the schema's columns at the destination.
    pub fn types(&self) -> impl Iterator<Item = &ChType> {
        self.columns.iter().map(|column| &column.target)
    }

    #[cold]
    fn refuse(&mut self, index: usize, reject: &Reject) -> ValueError {
        self.adjusted.clear();
        for buffers in Arc::make_mut(&mut self.data).iter_mut().take(index + 1) {
            Column::roll_back(buffers, self.rows);
        }
        match self.columns.get(index) {
            Some(column) => column.error(reject, &self.table),
            None => self.wrong_width(),
        }
    }

    #[cold]
    fn wrong_width(&self) -> ValueError {
        ValueError::Malformed {
            column: self.table.clone(),
            type_name: "row".to_owned(),
            detail: "the row has another number of columns than the table",
        }
    }
}

impl TableBatch for BlockBuilder {
    fn push(&mut self, tuple: Tuple<'_>, at: Position, op: Op) -> Result<(), ValueError> {
        if tuple.cells.len() != self.columns.len() {
            return Err(self.wrong_width());
        }
        let data = Arc::make_mut(&mut self.data);
        let mut refused = None;
        for (index, (column, (cell, buffers))) in
            self.columns.iter().zip(tuple.cells.iter().zip(data.iter_mut())).enumerate()
        {
            match column.push(cell.kind, tuple.bytes(index), op, buffers) {
                Ok(Fit::Exact) => {}
                Ok(Fit::Adjusted) => self.adjusted.push(index),
                Err(reject) => {
                    refused = Some((index, reject));
                    break;
                }
            }
        }
        if let Some((index, reject)) = refused {
            return Err(self.refuse(index, &reject));
        }
        for (own, buffers) in self.layout.own.iter().zip(data.iter_mut().skip(self.columns.len())) {
            own.push(at, op, &mut buffers.values);
        }
        self.rows += 1;
        for index in self.adjusted.drain(..) {
            if let Some(count) = self.out_of_range.get_mut(index) {
                *count += 1;
            }
        }
        Ok(())
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn bytes(&self) -> usize {
        self.data.iter().map(Buffers::len).sum()
    }

    fn clear(&mut self) {
        self.rows = 0;
        match Arc::get_mut(&mut self.data) {
            Some(data) => data.iter_mut().for_each(Buffers::clear),
            // A block is still being sent from these buffers.
            None => {
                self.data = Arc::new(vec![Buffers::default(); self.columns.len() + self.layout.own.len()])
            }
        }
    }

    fn take_out_of_range(&mut self) -> Vec<(usize, u64)> {
        let counts = self.out_of_range.iter_mut().map(std::mem::take).enumerate();
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

/// A part of a column, kept alive for a body that is being sent.
struct Part {
    data: Arc<Vec<Buffers>>,
    index: usize,
    part: usize,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        let part = self.data.get(self.index).and_then(|buffers| buffers.parts().into_iter().nth(self.part));
        part.map_or(&[], Vec::as_slice)
    }
}
