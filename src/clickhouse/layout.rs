//! What walferry adds to a source table's columns: columns of its own, and what ClickHouse does with rows that are equal in them.

use super::types::ChType;
use crate::{
    model::{Position, TableKind},
    replication::Op,
};

/// A column of walferry's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnColumn {
    /// The commit LSN of the row's transaction.
    Version,
    /// 1 in a row that says that its key is gone.
    Deleted,
    /// Tells the changes of one transaction apart.
    Ordinal,
    /// 1 where a row came, -1 where it went.
    Sign,
}

impl OwnColumn {
    /// Its name in every target.
    pub fn name(self) -> &'static str {
        match self {
            OwnColumn::Version => "_walferry_version",
            OwnColumn::Deleted => "_walferry_deleted",
            OwnColumn::Ordinal => "_walferry_ordinal",
            OwnColumn::Sign => "_walferry_sign",
        }
    }

    /// Its type in every target.
    pub fn column_type(self) -> ChType {
        match self {
            OwnColumn::Version | OwnColumn::Ordinal => ChType::UInt(64),
            OwnColumn::Deleted => ChType::UInt(8),
            OwnColumn::Sign => ChType::Int(8),
        }
    }

    /// Appends its value in a row.
    #[inline]
    pub(super) fn push(self, at: Position, op: Op, values: &mut Vec<u8>) {
        match self {
            OwnColumn::Version => values.extend_from_slice(&at.commit.0.to_le_bytes()),
            OwnColumn::Ordinal => values.extend_from_slice(&at.ordinal.to_le_bytes()),
            OwnColumn::Deleted => values.push(u8::from(op == Op::Delete)),
            OwnColumn::Sign => values.push(if op == Op::Delete { u8::MAX } else { 1 }),
        }
    }
}

/// How the target of a kind of table differs from the source's columns. The engine is ReplacingMergeTree for all: of rows with the same
/// sorting key it shows one.
#[derive(Debug)]
pub struct Layout {
    /// walferry's own columns, which follow the source's.
    pub own: &'static [OwnColumn],
    /// The engine's arguments: by which of the rows with one sorting key the one that counts is chosen.
    pub arguments: &'static [OwnColumn],
    /// What the sorting key ends with.
    pub order: &'static [OwnColumn],
    /// The condition for rows that are there, where a row can say that it is not.
    pub alive: Option<&'static str>,
}

static KEYED: Layout = Layout {
    own: &[OwnColumn::Version, OwnColumn::Deleted],
    arguments: &[OwnColumn::Version, OwnColumn::Deleted],
    order: &[],
    alive: Some("`_walferry_deleted` = 0"),
};

/// A change is a row; one that was sent twice has the same sorting key both times.
static CHANGES: Layout = Layout {
    own: &[OwnColumn::Version, OwnColumn::Ordinal, OwnColumn::Sign],
    arguments: &[],
    order: &[OwnColumn::Version, OwnColumn::Ordinal],
    alive: None,
};

impl Layout {
    /// The layout for tables of this kind.
    pub fn of(kind: TableKind) -> &'static Layout {
        match kind {
            TableKind::Keyed => &KEYED,
            TableKind::History | TableKind::InsertOnly => &CHANGES,
        }
    }
}
