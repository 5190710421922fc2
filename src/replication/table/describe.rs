//! What the catalog says of a table that is on record, and the faults of one that can't be followed.

use super::{named_columns, projection::NOT_FULL, record::TableRecord};
use crate::{
    fault::{Reason, Remedy},
    model::{IdentityKind, TableKind, TableSchema},
    postgres::{
        self,
        catalog::{self, LiveColumn},
        session::Session,
    },
    replication::{Error, Policy, policy},
};

/// A table as the catalog has it, by the names of its entry as they were resolved.
pub(in crate::replication) struct Described {
    /// What is mirrored of it.
    pub(in crate::replication) schema: TableSchema,
    /// All its columns.
    pub(in crate::replication) columns: Vec<LiveColumn>,
}

/// What the catalog says of a table that is on record.
///
/// # Errors
/// The table's own fault where it can't be mirrored as asked any more, and transient errors.
pub(in crate::replication) async fn describe(
    session: &Session,
    record: &TableRecord,
) -> Result<Described, Error> {
    let known = &record.schema;
    let named = record.named.as_ref().map(|named| named.columns.as_slice()).unwrap_or_default();
    match catalog::describe_known(session, &record.spec, named).await {
        Ok(mut facts) if facts.schema.oid == known.oid => {
            facts.schema.keep_kind(known);
            Ok(Described { schema: facts.schema, columns: facts.columns })
        }
        // Another table with that name has other columns, whatever they are called.
        Err(postgres::Error::ColumnRenamed { parted, .. })
            if catalog::table_name(session, known.oid).await?.as_ref() == Some(&known.id) =>
        {
            Err(named_columns::renamed(&known.id, &parted.to_string()))
        }
        Err(error) if is_of_columns(&error) && error.is_transient() => Err(error.into()),
        Err(error) if is_of_columns(&error) => Err(changed(known, &error.to_string())),
        // No table has its name any more, or another one has it.
        _ => Err(match catalog::table_name(session, known.oid).await? {
            Some(name) if name != known.id => Error::renamed(&known.id, &name),
            _ => Error::dropped(&known.id),
        }),
    }
}

/// Whether an error says something of the table that is on record, and not that it is gone.
fn is_of_columns(error: &postgres::Error) -> bool {
    !error.is_missing_table() && !matches!(error, postgres::Error::ColumnRenamed { .. })
}

/// Whether a query named a column that is no more: undefined_column.
pub(in crate::replication) fn outdated(error: &postgres::Error) -> bool {
    error.sqlstate() == Some("42703")
}

/// Refuses a table without a key whose changes do not carry the old row any more.
///
/// # Errors
/// [`without_old_rows`]
pub(in crate::replication) fn require_old_rows(
    known: &TableSchema,
    fresh: &TableSchema,
) -> Result<(), Error> {
    match (known.kind, fresh.identity) {
        (TableKind::ChangeLog, identity) if identity != IdentityKind::Full => match fresh.key.is_empty() {
            true => Err(without_old_rows(known)),
            false => Err(with_a_key(known)),
        },
        _ => Ok(()),
    }
}

/// The fault of a table without a key that has got one: rows that it names have another layout at the
/// destination.
fn with_a_key(schema: &TableSchema) -> Error {
    let how =
        format!("give {} another target.table, as tables with a key have another layout there", schema.id);
    Error::table(&schema.id, Reason::SourceSchemaChanged, NOT_FULL)
        .remedied([Remedy::edit("spec.tables", how)])
}

/// The fault of a table without a key whose changes do not carry the old row any more.
pub(in crate::replication) fn without_old_rows(schema: &TableSchema) -> Error {
    let statement = format!("ALTER TABLE {} REPLICA IDENTITY FULL", postgres::quote::table(&schema.id));
    Error::table(&schema.id, Reason::SourceSchemaChanged, NOT_FULL)
        .remedied([Remedy::run_at_source(statement)])
}

/// The fault of a table whose change at the source can't be followed.
pub(in crate::replication) fn changed(schema: &TableSchema, detail: &str) -> Error {
    let alike = Remedy::act(format!("change target table {} alike, or drop it", schema.target));
    Error::table(&schema.id, Reason::SourceSchemaChanged, detail).remedied([alike])
}

/// Why a table is copied again of whose columns nobody knows what they held.
pub(in crate::replication) const CAME_AND_WENT: &str = "columns were added and dropped before they were read";

/// Why rows can't be read by the names that their columns have.
pub(in crate::replication) const OTHER_NAMES: &str = "its columns had other names for a while";

/// Why a target has to change with its table.
pub(in crate::replication) const CHANGED_COLUMNS: &str = "its columns have changed at the source";

/// A target that refuses what a table has become, with the reason of the change before what the destination
/// says.
pub(in crate::replication) fn refused(schema: &TableSchema, why: &str, error: Error) -> Error {
    match policy(&error) {
        (Policy::FailTable, _) => {
            let (said, remedies) = match error {
                Error::Destination(fault) => (fault.message, fault.remedies),
                error => (error.to_string(), Vec::new()),
            };
            let message = format!("{why}; {said}");
            Error::table(&schema.id, Reason::SourceSchemaChanged, message).remedied(remedies)
        }
        _ => error,
    }
}
