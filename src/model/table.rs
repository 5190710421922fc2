//! Tables and columns as the source's catalog describes them, with what the Mirror asks of them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A table's name at the source, as PostgreSQL stores it: unquoted, case kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableId {
    /// The schema's name.
    pub schema: String,
    /// The table's name.
    pub name: String,
}

impl TableId {
    /// Both parts, unquoted.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableId { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A source column's type, reduced to what decides how its values are read and stored.
///
/// Domains are replaced by their base type before they get here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceType {
    /// `boolean`
    Bool,
    /// `smallint`
    Int2,
    /// `integer`
    Int4,
    /// `bigint`
    Int8,
    /// `oid`
    Oid,
    /// `real`
    Float4,
    /// `double precision`
    Float8,
    /// `numeric`; precision and scale where the column declares them (scale may be negative).
    Numeric(Option<(u16, i16)>),
    /// `text`, `varchar`, `char(n)`, `name`, `citext`: binary and text forms are the same bytes.
    Text,
    /// `bytea`
    Bytea,
    /// `uuid`
    Uuid,
    /// `date`
    Date,
    /// `timestamp without time zone`
    Timestamp,
    /// `timestamp with time zone`
    TimestampTz,
    /// `time without time zone`
    Time,
    /// `json`: binary and text forms are the same bytes.
    Json,
    /// `jsonb`
    Jsonb,
    /// Any enum type: binary and text forms are the label.
    Enum,
    /// pgvector's `vector`
    Vector,
    /// An array of a type that is not itself an array.
    Array(Box<SourceType>),
    /// Anything else (interval, timetz, inet, range, composite, xml, …): read in PostgreSQL's text form only.
    Other,
}

impl SourceType {
    /// Whether the binary send format of this type is decoded; otherwise its values must arrive as text.
    pub fn has_binary_decoder(&self) -> bool {
        match self {
            SourceType::Other => false,
            SourceType::Array(element) => element.has_binary_decoder(),
            _ => true,
        }
    }
}

/// Which column values an UPDATE or DELETE message carries for the old row (`pg_class.relreplident`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IdentityKind {
    /// `d`: the primary key.
    Default,
    /// `i`: the key of a chosen unique index.
    Index,
    /// `f`: the whole old row.
    Full,
    /// `n`, or `d` without a primary key: nothing, so UPDATE and DELETE fail once published.
    Nothing,
}

/// What identifies a table's rows, and so what its target holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TableKind {
    /// A key names each row: the target holds the state of each key.
    #[default]
    Keyed,
    /// Nothing names a row, but changes carry the whole old row (`REPLICA IDENTITY FULL`): the target holds
    /// every change, with a sign, and the sum of signs says how often a row is there.
    #[serde(rename = "History")]
    ChangeLog,
    /// Only what is inserted is mirrored, whatever its key: the target holds every row that was ever
    /// inserted.
    #[serde(rename = "InsertOnly")]
    AppendOnly,
}

impl TableKind {
    /// Whether a key names each row.
    pub fn is_keyed(self) -> bool {
        self == TableKind::Keyed
    }
}

/// One mirrored column. Excluded and generated columns are not in a [`TableSchema`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The name at the source.
    pub name: String,
    /// The name at the destination (`columns.rename`, else the source's).
    pub target_name: String,
    /// `pg_attribute.attnum`, which survives a rename.
    pub attnum: i16,
    /// `pg_attribute.atttypid`, the declared type (a domain's own oid, not its base).
    pub type_oid: u32,
    /// `pg_attribute.atttypmod`, -1 when there is none.
    pub type_modifier: i32,
    /// The declared type as `format_type` shows it, for messages.
    pub type_name: String,
    /// How values are read.
    pub source_type: SourceType,
    /// Whether the source column accepts NULL.
    pub nullable: bool,
    /// The destination type the user asked for (`columns.types`), verbatim.
    pub type_override: Option<String>,
    /// The value old rows show for a column that was added with a constant default
    /// (`attmissingval`), in PostgreSQL's text form.
    pub missing_value: Option<String>,
    /// Whether the source has dropped it. The target keeps it, and new rows have its default there.
    #[serde(default)]
    pub dropped: bool,
    /// Source names it had before: rows may still come from the log under them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_names: Vec<String>,
    /// Types (`atttypid` and `atttypmod`) it had before, whose values are read the same way: rows may still
    /// come from the log with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_types: Vec<(u32, i32)>,
}

impl Column {
    /// A nullable column of which nothing else is known or asked: same name on both sides, first attribute,
    /// type oid 0. Callers that know more override it by struct update.
    pub fn new(name: impl Into<String>, source_type: SourceType) -> Self {
        let name = name.into();
        Column {
            target_name: name.clone(),
            name,
            attnum: 1,
            type_oid: 0,
            type_modifier: -1,
            type_name: format!("{source_type:?}").to_lowercase(),
            source_type,
            nullable: true,
            type_override: None,
            missing_value: None,
            dropped: false,
            former_names: Vec::new(),
            former_types: Vec::new(),
        }
    }
}

/// A table to mirror: its columns in source order and how it is laid out at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSchema {
    /// The table at the source.
    pub id: TableId,
    /// `pg_class.oid` at the source, which Relation messages carry.
    pub oid: u32,
    /// The table's name at the destination, in the peer's database.
    pub target: String,
    /// Mirrored columns, by attribute number.
    pub columns: Vec<Column>,
    /// What identifies a row.
    #[serde(default)]
    pub kind: TableKind,
    /// Indices into `columns` of the replica identity's key, in key order. Empty exactly when the kind isn't
    /// [`TableKind::Keyed`].
    pub key: Vec<usize>,
    /// What the old row of an UPDATE or DELETE carries.
    pub identity: IdentityKind,
    /// Indices into `columns` of the destination's sorting key (`engine.orderBy`, else `key`); walferry's own
    /// columns follow where there is no key.
    pub order_by: Vec<usize>,
    /// `engine.partitionBy`, a ClickHouse expression over target names.
    pub partition_by: Option<String>,
    /// `engine.ttl`, a ClickHouse expression over target names.
    pub ttl: Option<String>,
    /// `engine.settings`, name and value.
    pub settings: Vec<(String, String)>,
    /// `where`: the publication's row filter, a PostgreSQL expression.
    pub row_filter: Option<String>,
    /// Whether this is a partitioned table's root (its leaves hold the rows).
    pub partitioned: bool,
}

impl TableSchema {
    /// An ordinary table whose key is its first column, laid out by that key in a target of the same name,
    /// oid 1. Callers that know more override it by struct update.
    pub fn new(id: TableId, columns: Vec<Column>) -> Self {
        TableSchema {
            target: id.name.clone(),
            id,
            oid: 1,
            columns,
            kind: TableKind::Keyed,
            key: vec![0],
            identity: IdentityKind::Default,
            order_by: vec![0],
            partition_by: None,
            ttl: None,
            settings: Vec::new(),
            row_filter: None,
            partitioned: false,
        }
    }

    /// Takes the kind of the table as it joined, where it joined without a key: one that it got later changes
    /// nothing for the rows that are there.
    pub fn keep_kind(&mut self, joined: &TableSchema) {
        if joined.kind.is_keyed() || joined.kind == self.kind {
            return;
        }
        self.kind = joined.kind;
        self.key.clear();
        let names: Vec<&str> = joined
            .order_by
            .iter()
            .filter_map(|index| joined.columns.get(*index))
            .map(|c| c.target_name.as_str())
            .collect();
        self.order_by = names
            .iter()
            .filter_map(|name| self.columns.iter().position(|column| column.target_name == *name))
            .collect();
    }

    /// The index into `columns` of the column with this source name.
    pub fn column_index(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| column.name == name)
    }

    /// Whether every column can be read in binary form.
    pub fn has_binary_decoder(&self) -> bool {
        self.columns.iter().all(|column| column.source_type.has_binary_decoder())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_keep_the_names_of_earlier_records() {
        for (kind, name) in [
            (TableKind::Keyed, "\"Keyed\""),
            (TableKind::ChangeLog, "\"History\""),
            (TableKind::AppendOnly, "\"InsertOnly\""),
        ] {
            assert_eq!(serde_json::to_string(&kind).unwrap(), name);
            assert_eq!(serde_json::from_str::<TableKind>(name).unwrap(), kind);
        }
    }
}
