//! Columns as they are called, and whether names that were resolved before still mean the same columns.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A column as it is called and typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveColumn {
    /// `pg_attribute.attnum`
    pub attnum: i16,
    /// Its name.
    pub name: String,
    /// `pg_attribute.atttypid`
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`
    pub type_modifier: i32,
    /// Whether it is generated, so that the stream does not send it.
    pub generated: bool,
    /// The transaction that last wrote its catalog row (`pg_attribute.xmin`).
    pub written_by: u32,
}

/// Where the Mirror's entry of a table names a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnList {
    /// `columns.exclude`
    Exclude,
    /// `columns.rename`
    Rename,
    /// `columns.types`
    Types,
    /// `where`
    Where,
}

impl fmt::Display for ColumnList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColumnList::Exclude => "columns.exclude",
            ColumnList::Rename => "columns.rename",
            ColumnList::Types => "columns.types",
            ColumnList::Where => "where",
        })
    }
}

/// A column that a table's entry names, as it was when the name was resolved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedColumn {
    /// The list that names it.
    pub list: ColumnList,
    /// Its `pg_attribute.attnum`, which a rename keeps.
    pub attnum: i16,
    /// The name.
    pub name: String,
    /// The transaction that had last written its catalog row (`pg_attribute.xmin`).
    pub written_by: u32,
}

impl NamedColumn {
    /// The column `name` of `live`, which `list` names.
    pub fn find(list: ColumnList, name: &str, live: &[LiveColumn]) -> Option<Self> {
        let column = live.iter().find(|column| column.name == name)?;
        Some(NamedColumn {
            list,
            attnum: column.attnum,
            name: column.name.clone(),
            written_by: column.written_by,
        })
    }
}

/// A name that no longer means the column that it was resolved to: the column has another name, or is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parted {
    /// What the name was resolved to.
    pub named: NamedColumn,
    /// The column's name now; `None` when it was dropped.
    pub called: Option<String>,
    /// Whether another column has the name now.
    pub reused: bool,
}

impl Parted {
    /// The first of `named` that is not the same in `live`.
    pub fn find(named: &[NamedColumn], live: &[LiveColumn]) -> Option<Self> {
        named.iter().find_map(|named| {
            let column = live.iter().find(|column| column.attnum == named.attnum);
            if column.is_some_and(|column| column.name == named.name) {
                return None;
            }
            Some(Parted {
                called: column.map(|column| column.name.clone()),
                reused: live.iter().any(|column| column.name == named.name),
                named: named.clone(),
            })
        })
    }
}

impl fmt::Display for Parted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NamedColumn { list, name, attnum, .. } = &self.named;
        write!(f, "{list} names column {name}, but ")?;
        match &self.called {
            Some(called) => write!(f, "the column that it named (number {attnum}) is called {called} now")?,
            None => write!(f, "the column that it named (number {attnum}) was dropped")?,
        }
        if self.reused { write!(f, ", and {name} is another column") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(columns: &[(i16, &str)]) -> Vec<LiveColumn> {
        let column = |(attnum, name): &(i16, &str)| LiveColumn {
            attnum: *attnum,
            name: (*name).to_owned(),
            type_oid: 25,
            type_modifier: -1,
            generated: false,
            written_by: 7,
        };
        columns.iter().map(column).collect()
    }

    #[test]
    fn a_name_parts_from_its_column() {
        let before = live(&[(1, "id"), (2, "secret"), (3, "token")]);
        let named: Vec<_> = NamedColumn::find(ColumnList::Exclude, "secret", &before).into_iter().collect();
        let error = |now: &[(i16, &str)]| {
            Parted::find(&named, &live(now)).map(|parted| parted.to_string()).unwrap_or_default()
        };
        assert_eq!(error(&[(1, "key"), (2, "secret"), (4, "more")]), "", "other columns may change");
        assert_eq!(
            error(&[(1, "id"), (2, "old"), (3, "secret")]),
            "columns.exclude names column secret, but the column that it named (number 2) is called old now, and \
             secret is another column"
        );
        assert!(error(&[(1, "id"), (2, "old")]).ends_with("is called old now"));
        assert!(error(&[(1, "id"), (4, "secret")]).ends_with("was dropped, and secret is another column"));
    }
}
