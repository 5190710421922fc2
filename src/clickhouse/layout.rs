//! What walferry adds to a source table's columns: columns of its own, and what ClickHouse does with rows
//! that are equal in them.

use super::types::ChType;
use crate::{
    model::{Position, TableKind},
    replication::Op,
};

/// A column of walferry's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnColumn {
    /// Which of two rows with one key is the newer ([`crate::model::Version`]).
    Version,
    /// 1 in a row that says that its key is gone.
    Deleted,
    /// Distinguishes the changes of one transaction.
    Ordinal,
    /// 1 where a row came, -1 where it went, 0 where a change was removed.
    Sign,
    /// The version at which a change was removed, 0 in the change itself.
    Removal,
    /// 1 in a row that takes the place of a change that was removed.
    Removed,
}

impl OwnColumn {
    /// Its name in every target.
    pub fn name(self) -> &'static str {
        match self {
            OwnColumn::Version => "_walferry_version",
            OwnColumn::Deleted => "_walferry_deleted",
            OwnColumn::Ordinal => "_walferry_ordinal",
            OwnColumn::Sign => "_walferry_sign",
            OwnColumn::Removal => "_walferry_removal",
            OwnColumn::Removed => "_walferry_removed",
        }
    }

    /// Its type in every target.
    pub fn column_type(self) -> ChType {
        match self {
            OwnColumn::Version | OwnColumn::Ordinal | OwnColumn::Removal => ChType::UInt(64),
            OwnColumn::Deleted | OwnColumn::Removed => ChType::UInt(8),
            OwnColumn::Sign => ChType::Int(8),
        }
    }

    /// Appends its value in a row.
    #[inline]
    pub(super) fn push(self, at: Position, op: Op, values: &mut Vec<u8>) {
        match self {
            OwnColumn::Version => values.extend_from_slice(&at.version.number().to_le_bytes()),
            OwnColumn::Ordinal => values.extend_from_slice(&at.ordinal.to_le_bytes()),
            OwnColumn::Deleted => values.push(u8::from(op == Op::Delete)),
            OwnColumn::Sign => values.push(if op == Op::Delete { u8::MAX } else { 1 }),
            OwnColumn::Removal => values.extend_from_slice(&0_u64.to_le_bytes()),
            OwnColumn::Removed => values.push(0),
        }
    }
}

/// How the target of a kind of table differs from the source's columns. The engine is ReplacingMergeTree for
/// all: of rows with the same sorting key it shows one.
#[derive(Debug)]
pub struct Layout {
    /// walferry's own columns, which follow the source's.
    pub own: &'static [OwnColumn],
    /// Further ones, which rows are inserted without and only deletions write.
    pub removal: &'static [OwnColumn],
    /// The engine's arguments: by which of the rows with one sorting key the one that counts is chosen.
    pub arguments: &'static [OwnColumn],
    /// What the sorting key ends with.
    pub order: &'static [OwnColumn],
}

static KEYED: Layout = Layout {
    own: &[OwnColumn::Version, OwnColumn::Deleted],
    removal: &[],
    arguments: &[OwnColumn::Version, OwnColumn::Deleted],
    order: &[],
};

/// A change is a row; one that was sent twice has the same sorting key both times, and so has the row that
/// removes it.
static CHANGES: Layout = Layout {
    own: &[OwnColumn::Version, OwnColumn::Ordinal, OwnColumn::Sign],
    removal: &[OwnColumn::Removal, OwnColumn::Removed],
    arguments: &[OwnColumn::Removal, OwnColumn::Removed],
    order: &[OwnColumn::Version, OwnColumn::Ordinal],
};

impl Layout {
    /// All of walferry's own columns.
    pub fn all_own(&self) -> impl Iterator<Item = OwnColumn> {
        self.own.iter().chain(self.removal).copied()
    }

    /// The layout for tables of this kind.
    pub fn of(kind: TableKind) -> &'static Layout {
        match kind {
            TableKind::Keyed => &KEYED,
            TableKind::ChangeLog | TableKind::AppendOnly => &CHANGES,
        }
    }
}
