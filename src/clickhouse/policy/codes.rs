//! What each of ClickHouse's error codes says about a refused statement.
//!
//! `codes.tsv` is the server's whole list (`errorCodeToName`), a line for each code: number, name and
//! [`Class`] in snake case.

use std::{collections::HashMap, sync::LazyLock};

use serde::{
    Deserialize,
    de::{IntoDeserializer, value},
};

/// What kind of refusal a code stands for. The classes down to [`Class::Os`] are conditions of the server,
/// its environment or its user, which end without a change of the statement; the next ones are about the
/// statement or its rows and stay as they are; the last four show neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Class {
    /// User name, password or network address are refused.
    Authentication,
    /// A privilege is missing.
    Access,
    /// The settings profile forbids a setting that a statement pins.
    Constraint,
    /// The database is not there.
    Database,
    /// The user, or the server as a whole, may only read at the moment.
    Readonly,
    /// The table takes no writes while its replica has no Keeper, or its disk is read-only.
    TableReadonly,
    /// The table was made read-only.
    WriteOnce,
    /// The disk is full.
    Disk,
    /// Merges do not keep up.
    Parts,
    /// Memory is short.
    Memory,
    /// A limit on queries, connections or mutations is reached.
    Overload,
    /// Something took too long.
    Timeout,
    /// A connection broke or a body ended early.
    Network,
    /// A later statement with the same id took this one's place.
    Replaced,
    /// The server or the table is starting or stopping.
    Restart,
    /// Replication and Keeper.
    Keeper,
    /// Files or object storage can't be read or written: a device or a service fails.
    Storage,
    /// A system call failed.
    Os,
    /// The table may not be emptied.
    Truncate,
    /// The table is not there.
    MissingTable,
    /// The table, or a view on it, has other columns.
    Columns,
    /// Arrays that ClickHouse takes for parts of one `Nested` have different lengths.
    Nested,
    /// The statement: its syntax, names, types, expressions or settings.
    Statement,
    /// A value that the table, its constraints or a view on it doesn't take.
    Rows,
    /// Stored data that can't be read, such as a part that a merge on a full disk left incomplete. Some
    /// codes also stand for a file that is missing for a moment.
    Damaged,
    /// Internal errors and limits of which the code doesn't say whether they end.
    Unclear,
    /// Features that walferry's statements don't use; they can only come from what users put on the table,
    /// such as a view that writes into another system.
    Elsewhere,
    /// A code that is not in the list: of a newer release.
    Unlisted,
}

/// A code's name and class.
pub(super) type Entry = (&'static str, Class);

static CODES: LazyLock<HashMap<i32, Entry>> = LazyLock::new(|| lines().filter_map(entry).collect());

fn lines() -> impl Iterator<Item = &'static str> {
    include_str!("codes.tsv").lines()
}

fn entry(line: &'static str) -> Option<(i32, Entry)> {
    let mut fields = line.split('\t');
    let code = fields.next()?.parse().ok()?;
    let (name, class) = (fields.next()?, fields.next()?);
    let class: value::StrDeserializer<'_, value::Error> = class.into_deserializer();
    Some((code, (name, Class::deserialize(class).ok()?)))
}

/// What a code stands for. Total: a code that is not listed is [`Class::Unlisted`].
pub(super) fn class_of(code: i32) -> Class {
    CODES.get(&code).map_or(Class::Unlisted, |(_, class)| *class)
}

/// A code's name, as the server writes it behind its messages.
pub(in crate::clickhouse) fn name_of(code: i32) -> Option<&'static str> {
    CODES.get(&code).map(|(name, _)| *name)
}

/// Every code of the server's list.
#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = i32> {
    CODES.keys().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_server_has_a_class() {
        let codes: Vec<i32> = lines().map(|line| entry(line).expect(line).0).collect();
        assert!(codes.is_sorted_by(|one, next| one < next), "each code once, in order");
        assert!(codes.len() > 650, "{}", codes.len());
        let considered = |code: &i32| class_of(*code) != Class::Unlisted;
        assert!(codes.iter().all(considered), "no code may be left for later");
        assert_eq!((class_of(184), name_of(184)), (Class::Statement, Some("ILLEGAL_AGGREGATION")));
        assert_eq!((class_of(123_456), name_of(123_456)), (Class::Unlisted, None));
    }
}
