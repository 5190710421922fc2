//! One column: how its values are encoded, and the buffers they are appended to.

use super::{
    array,
    codec::{Codec, codec},
    encoding::{Fit, Malformed},
    string::put_varint,
};
use crate::{
    clickhouse::types::{ChType, TypeError, address_type, fidelity},
    model::{CellKind, Column as SourceColumn, OutOfRange, SourceType},
    replication::{Op, ValueError},
};

/// A column's bytes, in the parts and the order that a Native block has them.
#[derive(Clone, Default)]
pub(super) struct Buffers {
    /// A byte a row where the column is nullable, 1 for NULL.
    pub(super) nulls: Vec<u8>,
    /// Where each row's array ends, in elements, as `UInt64`.
    pub(super) offsets: Vec<u8>,
    /// A byte an element where elements are nullable.
    pub(super) element_nulls: Vec<u8>,
    /// The values, or the elements of all arrays.
    pub(super) values: Vec<u8>,
    /// Where the values of the row in hand begin.
    mark: usize,
    /// An array element without its escapes.
    scratch: Vec<u8>,
}

impl Buffers {
    /// The parts of the block, those that the column hasn't empty.
    pub(super) fn parts(&self) -> [&Vec<u8>; 4] {
        [&self.nulls, &self.offsets, &self.element_nulls, &self.values]
    }

    /// Bytes in all parts.
    pub(super) fn len(&self) -> usize {
        self.parts().iter().map(|part| part.len()).sum()
    }

    /// Forgets everything, keeps the memory.
    pub(super) fn clear(&mut self) {
        for part in [&mut self.nulls, &mut self.offsets, &mut self.element_nulls, &mut self.values] {
            part.clear();
        }
    }

    /// Forgets the row in hand, before which there are `rows`.
    fn roll_back(&mut self, rows: usize) {
        self.nulls.truncate(rows);
        self.offsets.truncate(rows * 8);
        self.element_nulls.truncate(self.elements());
        self.values.truncate(self.mark);
    }

    /// Elements of all arrays.
    fn elements(&self) -> usize {
        self.offsets.last_chunk::<8>().map_or(0, |end| u64::from_le_bytes(*end) as usize)
    }

    fn end_array(&mut self, elements: usize) {
        let end = self.elements() + elements;
        self.offsets.extend_from_slice(&(end as u64).to_le_bytes());
    }
}

/// Why a value can't be stored.
pub(super) enum Reject {
    Malformed(&'static str),
    UnexpectedNull,
    OutOfRange,
    Unresolved,
}

impl From<Malformed> for Reject {
    fn from(Malformed(detail): Malformed) -> Reject {
        Reject::Malformed(detail)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Scalar,
    Array { nullable: bool },
    Vector { nullable: bool },
}

/// A column's encoder, chosen once.
pub(super) struct Column {
    codec: Codec,
    shape: Shape,
    nullable: bool,
    /// What happens to values that don't fit.
    out_of_range: OutOfRange,
    /// What stands where there is no value.
    default: &'static [u8],
    key: bool,
    /// Whether the source has it no more.
    dropped: bool,
    name: String,
    type_name: String,
    /// The target column's type.
    pub(super) target: ChType,
    /// Name and type as a block shows them.
    pub(super) header: Vec<u8>,
}

impl Column {
    /// An encoder for a source column. A `key` column's values are never adjusted: two keys that became equal
    /// would be one row.
    ///
    /// # Errors
    /// [`TypeError::Impossible`]
    pub(super) fn new(
        column: &SourceColumn,
        target: &ChType,
        out_of_range: OutOfRange,
        key: bool,
    ) -> Result<Column, TypeError> {
        fidelity(column, target)?;
        let (source, scalar, shape) = match (&column.source_type, target) {
            (SourceType::Array(element), ChType::Array(target)) => {
                (&**element, target.inner(), Shape::Array { nullable: target.is_nullable() })
            }
            (SourceType::Vector, ChType::Array(target)) => {
                (&SourceType::Float4, target.inner(), Shape::Vector { nullable: target.is_nullable() })
            }
            (source, target) => (source, target.inner(), Shape::Scalar),
        };
        let Some(codec) = codec(source, scalar, address_type(column)) else {
            return Err(TypeError::Impossible {
                column: column.name.clone(),
                source_type: column.type_name.clone(),
                target: target.to_string(),
                allowed: ChType::String.to_string(),
            });
        };
        Ok(Column {
            codec,
            shape,
            nullable: target.is_nullable(),
            out_of_range: if key { OutOfRange::Fail } else { out_of_range },
            default: default(scalar),
            key,
            dropped: column.dropped,
            name: column.name.clone(),
            type_name: column.type_name.clone(),
            target: target.clone(),
            header: header(&column.target_name, &target.block_type()),
        })
    }

    /// Appends one value. After an error the row has to be rolled back.
    #[inline]
    pub(super) fn push(
        &self,
        kind: CellKind,
        bytes: &[u8],
        op: Op,
        buffers: &mut Buffers,
    ) -> Result<Fit, Reject> {
        buffers.mark = buffers.values.len();
        let encode = match kind {
            CellKind::Binary => self.codec.binary,
            CellKind::Text => self.codec.text,
            CellKind::Null | CellKind::Unchanged => return self.push_absent(kind, op, buffers),
        };
        if self.shape != Shape::Scalar {
            return self.push_array(kind, bytes, buffers);
        }
        if encode(&self.codec.params, bytes, &mut buffers.values)? == Fit::Adjusted {
            return self.adjust(buffers);
        }
        if self.nullable {
            buffers.nulls.push(0);
        }
        Ok(Fit::Exact)
    }

    /// The nearest value has been appended: applies the policy to it.
    #[cold]
    fn adjust(&self, buffers: &mut Buffers) -> Result<Fit, Reject> {
        let null = match self.out_of_range {
            OutOfRange::Fail => return Err(Reject::OutOfRange),
            OutOfRange::Null => self.nullable,
            OutOfRange::Clamp => false,
        };
        if null {
            buffers.values.truncate(buffers.mark);
            buffers.values.extend_from_slice(self.default);
        }
        if self.nullable {
            buffers.nulls.push(u8::from(null));
        }
        Ok(Fit::Adjusted)
    }

    fn push_absent(&self, kind: CellKind, op: Op, buffers: &mut Buffers) -> Result<Fit, Reject> {
        if op == Op::Upsert && kind == CellKind::Unchanged {
            return Err(Reject::Unresolved);
        }
        if self.shape != Shape::Scalar {
            buffers.end_array(0);
            // ClickHouse has no NULL arrays: [] is the nearest, and counted, for it is another value.
            return match (op, self.out_of_range) {
                (Op::Delete, _) => Ok(Fit::Exact),
                (Op::Upsert, _) if self.dropped => Ok(Fit::Exact),
                (Op::Upsert, OutOfRange::Fail) => Err(Reject::OutOfRange),
                (Op::Upsert, _) => Ok(Fit::Adjusted),
            };
        }
        if self.nullable {
            buffers.nulls.push(1);
        } else if op == Op::Upsert && !self.dropped {
            return Err(Reject::UnexpectedNull);
        }
        buffers.values.extend_from_slice(self.default);
        Ok(Fit::Exact)
    }

    fn push_array(&self, kind: CellKind, bytes: &[u8], buffers: &mut Buffers) -> Result<Fit, Reject> {
        let Buffers { element_nulls, values, scratch, .. } = buffers;
        let (nullable, vector) = match self.shape {
            Shape::Array { nullable } => (nullable, false),
            Shape::Vector { nullable } => (nullable, true),
            Shape::Scalar => (false, false),
        };
        let binary = kind == CellKind::Binary;
        let encode = if binary { self.codec.binary } else { self.codec.text };
        let (mut elements, mut adjusted) = (0, false);
        let mut visit = |element: Option<&[u8]>| {
            let start = values.len();
            let fit = match element {
                Some(bytes) => encode(&self.codec.params, bytes, values)?,
                None if nullable => Fit::Exact,
                None => Fit::Adjusted,
            };
            adjusted |= fit == Fit::Adjusted;
            let dropped = fit == Fit::Adjusted && nullable && self.out_of_range == OutOfRange::Null;
            let null = element.is_none() || dropped;
            if null {
                values.truncate(start);
                values.extend_from_slice(self.default);
            }
            if nullable {
                element_nulls.push(u8::from(null));
            }
            elements += 1;
            Ok(())
        };
        let nested = match (binary, vector) {
            (true, false) => array::visit_binary(bytes, &mut visit)?,
            (true, true) => array::visit_binary_vector(bytes, &mut visit)?,
            (false, false) => array::visit_text(bytes, scratch, &mut visit)?,
            (false, true) => array::visit_text_vector(bytes, &mut visit)?,
        };
        adjusted |= nested;
        if adjusted && self.out_of_range == OutOfRange::Fail {
            return Err(Reject::OutOfRange);
        }
        buffers.end_array(elements);
        Ok(if adjusted { Fit::Adjusted } else { Fit::Exact })
    }

    /// Forgets the row in hand, before which there are `rows`.
    pub(super) fn roll_back(buffers: &mut Buffers, rows: usize) {
        buffers.roll_back(rows);
    }

    /// The error for a refused value.
    #[cold]
    pub(super) fn error(&self, reject: &Reject, table: &str) -> ValueError {
        let column = self.name.clone();
        match reject {
            Reject::Malformed(detail) => {
                ValueError::Malformed { column, type_name: self.type_name.clone(), detail }
            }
            Reject::UnexpectedNull => ValueError::UnexpectedNull { column, target: table.to_owned() },
            Reject::OutOfRange if self.key => ValueError::OutOfRange {
                column,
                target_type: format!("{} (and a key's values are never adjusted)", self.target),
            },
            Reject::OutOfRange => ValueError::OutOfRange { column, target_type: self.target.to_string() },
            Reject::Unresolved => ValueError::Unresolved { column },
        }
    }
}

/// A column's name and type as a block begins with them.
pub(super) fn header(name: &str, block_type: &ChType) -> Vec<u8> {
    let block_type = block_type.to_string();
    let mut header = Vec::with_capacity(name.len() + block_type.len() + 4);
    for text in [name, &block_type] {
        put_varint(text.len(), &mut header);
        header.extend_from_slice(text.as_bytes());
    }
    header
}

/// What stands where there is no value: zeros, the empty string, an empty object.
fn default(scalar: &ChType) -> &'static [u8] {
    const ZEROS: &[u8; 32] = &[0; 32];
    match (scalar, scalar.width()) {
        (ChType::Json, _) => b"\x02{}",
        (_, Some(width)) => ZEROS.get(..width).unwrap_or(ZEROS),
        (_, None) => &[0],
    }
}
