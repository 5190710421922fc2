//! Which operations of a table are mirrored.

use serde::{Deserialize, Serialize};

/// An operation on rows of a table, as a publication's `publish` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// `insert`
    Insert,
    /// `update`
    Update,
    /// `delete`
    Delete,
    /// `truncate`
    Truncate,
}

impl Operation {
    const ALL: [Operation; 4] =
        [Operation::Insert, Operation::Update, Operation::Delete, Operation::Truncate];

    const fn flag(self) -> u8 {
        1 << self as u8
    }
}

/// A set of operations (`spec.tables[].operations`).
///
/// Records have it in the form of releases that knew two sets only: whether the table is append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Recorded", into = "Recorded")]
pub struct Operations(u8);

impl Operations {
    /// Every operation.
    pub const ALL: Operations = Operations(
        Operation::Insert.flag()
            | Operation::Update.flag()
            | Operation::Delete.flag()
            | Operation::Truncate.flag(),
    );

    /// Those of a table whose rows stay as they were inserted.
    pub const APPEND_ONLY: Operations = Operations(Operation::Insert.flag() | Operation::Truncate.flag());

    /// Whether the operation is one of them.
    pub fn contains(self, operation: Operation) -> bool {
        self.0 & operation.flag() != 0
    }

    /// Whether neither updates nor deletes are mirrored, which makes the target an append-only table.
    pub fn is_append_only(self) -> bool {
        !self.contains(Operation::Update) && !self.contains(Operation::Delete)
    }

    /// Whether the target keeps rows that the source removes, so that a re-copy must not delete them either.
    pub fn keep_removed_rows(self) -> bool {
        !self.contains(Operation::Delete) || !self.contains(Operation::Truncate)
    }

    /// Those that are not mirrored, in PostgreSQL's order.
    pub fn left_out(self) -> impl Iterator<Item = Operation> {
        Operation::ALL.into_iter().filter(move |operation| !self.contains(*operation))
    }
}

impl Default for Operations {
    fn default() -> Self {
        Operations::ALL
    }
}

impl FromIterator<Operation> for Operations {
    fn from_iter<I: IntoIterator<Item = Operation>>(operations: I) -> Self {
        Operations(operations.into_iter().fold(0, |flags, operation| flags | operation.flag()))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Recorded {
    AppendOnly(bool),
    Listed(Vec<Operation>),
}

impl From<Recorded> for Operations {
    fn from(recorded: Recorded) -> Self {
        match recorded {
            Recorded::AppendOnly(false) => Operations::ALL,
            Recorded::AppendOnly(true) => Operations::APPEND_ONLY,
            Recorded::Listed(operations) => operations.into_iter().collect(),
        }
    }
}

impl From<Operations> for Recorded {
    fn from(operations: Operations) -> Self {
        match operations {
            Operations::ALL => Recorded::AppendOnly(false),
            Operations::APPEND_ONLY => Recorded::AppendOnly(true),
            _ => {
                let all = Operation::ALL.into_iter();
                Recorded::Listed(all.filter(|operation| operations.contains(*operation)).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn sets_are_recorded_as_before_and_read_back() {
        let archive: Operations = [Operation::Update, Operation::Insert].into_iter().collect();
        for (operations, recorded, append_only) in [
            (Operations::ALL, json!(false), false),
            (Operations::APPEND_ONLY, json!(true), true),
            (archive, json!(["Insert", "Update"]), false),
        ] {
            assert_eq!(serde_json::to_value(operations).unwrap(), recorded);
            assert_eq!(serde_json::from_value::<Operations>(recorded).unwrap(), operations);
            assert_eq!(operations.is_append_only(), append_only);
            assert_eq!(operations.keep_removed_rows(), operations != Operations::ALL);
        }
        assert!(archive.left_out().eq([Operation::Delete, Operation::Truncate]));
        let listed: Value = json!(["Truncate", "Insert"]);
        assert_eq!(serde_json::from_value::<Operations>(listed).unwrap(), Operations::APPEND_ONLY);
    }
}
