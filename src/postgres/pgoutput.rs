//! Decoder of the `pgoutput` plugin's messages, protocol version 1, and of binary COPY rows.
//!
//! <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>. Rows are not copied: a
//! cell is a place in the message. Every place is checked against the message's end here, once.

use super::DecodeError;
use crate::model::{Cell, CellKind, IdentityKind, Lsn, TableId};

/// A message of the stream. The rows of an Insert, Update or Delete are in the cells that [`decode`] filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A transaction begins; its changes follow.
    Begin {
        /// The LSN of the transaction's commit record.
        final_lsn: Lsn,
        /// When it was committed, in microseconds since 2000-01-01 UTC.
        commit_time: i64,
        /// Its number.
        xid: u32,
    },
    /// The transaction's changes are all sent.
    Commit {
        /// The LSN of the commit record.
        commit_lsn: Lsn,
        /// The end of the commit record: the position to confirm.
        end_lsn: Lsn,
        /// When it was committed, in microseconds since 2000-01-01 UTC.
        commit_time: i64,
    },
    /// The transaction came from another server.
    Origin,
    /// A type that is not built in.
    Type,
    /// A logical message (`pg_logical_emit_message`).
    Logical,
    /// What the next changes of a table look like.
    Relation(Relation),
    /// A row was inserted; it is in `new`.
    Insert {
        /// The table's oid.
        relation: u32,
    },
    /// A row was updated; it is in `new`, and what is known of the old one in `old`.
    Update {
        /// The table's oid.
        relation: u32,
        /// What `old` holds.
        old: OldTuple,
    },
    /// A row was deleted; what is known of it is in `old`.
    Delete {
        /// The table's oid.
        relation: u32,
        /// What `old` holds; never [`OldTuple::None`].
        old: OldTuple,
    },
    /// Tables were emptied.
    Truncate {
        /// The tables' oids.
        relations: Vec<u32>,
        /// With CASCADE.
        cascade: bool,
        /// With RESTART IDENTITY.
        restart_identity: bool,
    },
}

/// What an Update or Delete says of the row as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldTuple {
    /// Nothing: the key is unchanged.
    None,
    /// The values of the replica identity's columns, the others NULL.
    Key,
    /// The whole row (`REPLICA IDENTITY FULL`).
    Full,
}

/// A table as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// The table's oid.
    pub oid: u32,
    /// Its name.
    pub table: TableId,
    /// Its replica identity.
    pub identity: IdentityKind,
    /// Its published columns, in the order of their values.
    pub columns: Vec<RelationColumn>,
}

/// A column as the stream describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationColumn {
    /// Its name.
    pub name: String,
    /// Its type's oid.
    pub type_oid: u32,
    /// Its type modifier, -1 when there is none.
    pub type_modifier: i32,
    /// Whether it is part of the replica identity.
    pub key: bool,
}

/// Decodes one message. `old` and `new` are cleared and filled with the cells of its rows; offsets are
/// relative to `data`.
///
/// # Errors
/// [`DecodeError`] for anything that protocol version 1 doesn't allow.
pub fn decode(data: &[u8], old: &mut Vec<Cell>, new: &mut Vec<Cell>) -> Result<Message, DecodeError> {
    old.clear();
    new.clear();
    let mut reader = Reader::new(data)?;
    let message = match reader.u8("message type")? {
        b'I' => {
            let relation = reader.u32("relation oid")?;
            reader.expect("tuple type", b'N')?;
            reader.tuple(new)?;
            Message::Insert { relation }
        }
        b'U' => {
            let relation = reader.u32("relation oid")?;
            let old = match reader.u8("tuple type")? {
                b'N' => OldTuple::None,
                letter => {
                    let kind = reader.old_tuple(letter, old)?;
                    reader.expect("tuple type", b'N')?;
                    kind
                }
            };
            reader.tuple(new)?;
            Message::Update { relation, old }
        }
        b'D' => {
            let relation = reader.u32("relation oid")?;
            let letter = reader.u8("tuple type")?;
            Message::Delete { relation, old: reader.old_tuple(letter, old)? }
        }
        other => decode_other(other, &mut reader)?,
    };
    reader.end()?;
    Ok(message)
}

/// The relation of a row message of which only the beginning is there, and in `cells` (cleared first) the
/// values of its first row as far as they go. `None` for another message.
pub fn decode_beginning(data: &[u8], cells: &mut Vec<Cell>) -> Option<u32> {
    cells.clear();
    let mut reader = Reader::new(data).ok()?;
    if !matches!(reader.u8("message type").ok()?, b'I' | b'U' | b'D') {
        return None;
    }
    let relation = reader.u32("relation oid").ok()?;
    // The row ends where the beginning does.
    let _ = reader.u8("tuple type").and_then(|_| reader.tuple(cells));
    Some(relation)
}

/// The messages that are not rows.
fn decode_other(letter: u8, reader: &mut Reader<'_>) -> Result<Message, DecodeError> {
    Ok(match letter {
        b'B' => Message::Begin {
            final_lsn: reader.lsn("final LSN")?,
            commit_time: reader.i64("commit time")?,
            xid: reader.u32("xid")?,
        },
        b'C' => {
            reader.u8("flags")?;
            Message::Commit {
                commit_lsn: reader.lsn("commit LSN")?,
                end_lsn: reader.lsn("end LSN")?,
                commit_time: reader.i64("commit time")?,
            }
        }
        b'R' => Message::Relation(reader.relation()?),
        b'T' => {
            let count = reader.u32("relation count")?;
            let flags = reader.u8("flags")?;
            // Not reserved by the announced count, which a broken message may make any number.
            let relations: Result<_, _> = (0..count).map(|_| reader.u32("relation oid")).collect();
            Message::Truncate {
                relations: relations?,
                cascade: flags & 1 != 0,
                restart_identity: flags & 2 != 0,
            }
        }
        b'O' => reader.rest(Message::Origin),
        b'Y' => reader.rest(Message::Type),
        b'M' => reader.rest(Message::Logical),
        other => return Err(DecodeError::UnknownMessage(other)),
    })
}

/// Decodes one row's payload of a binary COPY (a field count, then each field's length and bytes) whose
/// columns are of these kinds ([`CellKind::Binary`] or [`CellKind::Text`]). `cells` is cleared and filled;
/// offsets are relative to `row`.
///
/// # Errors
/// [`DecodeError`] where the row is cut off or has another number of columns.
pub fn decode_copy_row(row: &[u8], kinds: &[CellKind], cells: &mut Vec<Cell>) -> Result<(), DecodeError> {
    cells.clear();
    let mut reader = Reader::new(row)?;
    let found = usize::from(reader.u16("column count")?);
    if found != kinds.len() {
        return Err(DecodeError::ColumnCount { expected: kinds.len(), found });
    }
    cells.reserve(found);
    for &kind in kinds {
        let cell = match reader.u32("value length")? {
            u32::MAX => Cell { kind: CellKind::Null, start: 0, len: 0 },
            len => reader.cell(kind, len)?,
        };
        cells.push(cell);
    }
    reader.end()
}

/// Reads a message field by field. `at` never passes the end.
struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The protocol's lengths are 32 bits wide, and so are the offsets in cells.
    fn new(data: &'a [u8]) -> Result<Self, DecodeError> {
        match u32::try_from(data.len()) {
            Ok(_) => Ok(Reader { data, at: 0 }),
            Err(_) => Err(DecodeError::Length(data.len().try_into().unwrap_or(i64::MAX))),
        }
    }

    #[inline]
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let bytes = self.data.get(self.at..).and_then(<[u8]>::first_chunk::<N>);
        let bytes = *bytes.ok_or(DecodeError::Truncated { field, at: self.at })?;
        self.at += N;
        Ok(bytes)
    }

    #[inline]
    fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        self.array(field).map(|[byte]| byte)
    }

    #[inline]
    fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        self.array(field).map(u16::from_be_bytes)
    }

    #[inline]
    fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        self.array(field).map(u32::from_be_bytes)
    }

    fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.array(field).map(i64::from_be_bytes)
    }

    fn lsn(&mut self, field: &'static str) -> Result<Lsn, DecodeError> {
        self.array(field).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    /// A string that ends with a zero byte.
    fn string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let rest = self.data.get(self.at..).unwrap_or(&[]);
        let length = rest.iter().position(|&byte| byte == 0);
        let text = length.and_then(|length| rest.get(..length));
        let text = text.ok_or(DecodeError::Truncated { field, at: self.at })?;
        self.at += text.len() + 1;
        std::str::from_utf8(text).map(str::to_owned).map_err(|_| DecodeError::NotUtf8(field))
    }

    #[inline]
    fn expect(&mut self, field: &'static str, letter: u8) -> Result<(), DecodeError> {
        let value = self.u8(field)?;
        if value == letter { Ok(()) } else { Err(DecodeError::Unexpected { field, value }) }
    }

    /// A value of `len` bytes that begins here.
    #[inline]
    fn cell(&mut self, kind: CellKind, len: u32) -> Result<Cell, DecodeError> {
        let left = self.data.len() - self.at;
        if len as usize > left {
            return Err(DecodeError::Truncated { field: "value", at: self.at });
        }
        // `new` has checked that the message's length, and so every offset, has 32 bits.
        let cell = Cell { kind, start: self.at as u32, len };
        self.at += len as usize;
        Ok(cell)
    }

    /// A TupleData.
    #[inline]
    fn tuple(&mut self, cells: &mut Vec<Cell>) -> Result<(), DecodeError> {
        let columns = self.u16("column count")?;
        for _ in 0..columns {
            let cell = match self.u8("value kind")? {
                b'n' => Cell { kind: CellKind::Null, start: 0, len: 0 },
                b'u' => Cell { kind: CellKind::Unchanged, start: 0, len: 0 },
                b'b' => {
                    let len = self.u32("value length")?;
                    self.cell(CellKind::Binary, len)?
                }
                b't' => {
                    let len = self.u32("value length")?;
                    self.cell(CellKind::Text, len)?
                }
                value => return Err(DecodeError::Unexpected { field: "value kind", value }),
            };
            cells.push(cell);
        }
        Ok(())
    }

    /// The old row that `letter` announces.
    fn old_tuple(&mut self, letter: u8, cells: &mut Vec<Cell>) -> Result<OldTuple, DecodeError> {
        let kind = match letter {
            b'K' => OldTuple::Key,
            b'O' => OldTuple::Full,
            value => return Err(DecodeError::Unexpected { field: "tuple type", value }),
        };
        self.tuple(cells)?;
        Ok(kind)
    }

    fn relation(&mut self) -> Result<Relation, DecodeError> {
        let oid = self.u32("relation oid")?;
        let table = TableId { schema: self.string("schema name")?, name: self.string("table name")? };
        let identity = match self.u8("replica identity")? {
            b'd' => IdentityKind::Default,
            b'i' => IdentityKind::Index,
            b'f' => IdentityKind::Full,
            b'n' => IdentityKind::Nothing,
            value => return Err(DecodeError::Unexpected { field: "replica identity", value }),
        };
        let count = self.u16("column count")?;
        let columns = (0..count).map(|_| self.column()).collect::<Result<_, _>>()?;
        Ok(Relation { oid, table, identity, columns })
    }

    fn column(&mut self) -> Result<RelationColumn, DecodeError> {
        Ok(RelationColumn {
            key: self.u8("column flags")? & 1 != 0,
            name: self.string("column name")?,
            type_oid: self.u32("column type")?,
            type_modifier: self.array("column type modifier").map(i32::from_be_bytes)?,
        })
    }

    /// `message`, whose fields are not needed.
    fn rest(&mut self, message: Message) -> Message {
        self.at = self.data.len();
        message
    }

    #[inline]
    fn end(&self) -> Result<(), DecodeError> {
        match self.data.len() - self.at {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes(left)),
        }
    }
}

#[cfg(test)]
mod tests;
