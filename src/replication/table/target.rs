//! Whether a target is still the table that was written to, and why it refuses rows.

use super::record::TableRecord;
use crate::{
    fault::{Reason, Remedy},
    model::TableSchema,
    replication::{Destination, Error, Policy, policy},
};

/// Whether a target is still the one on record; its identity is noted where there is none.
///
/// # Errors
/// [`Error::Table`] where it is another one.
pub(in crate::replication) fn identify(
    record: &mut TableRecord,
    found: Option<String>,
) -> Result<bool, Error> {
    match (&record.target_id, found) {
        (Some(before), Some(now)) if *before != now => Err(replaced(&record.schema)),
        (None, Some(now)) => {
            record.target_id = Some(now);
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// A refusal of rows as what is wrong with the target itself, where that is what it comes from: then there is
/// more to do than to copy again.
pub(in crate::replication) async fn explain<D: Destination>(
    destination: &D,
    schema: &TableSchema,
    refusal: Error,
) -> Error {
    let of_table = |error: &Error| policy(error).0 == Policy::FailTable;
    if !matches!(refusal, Error::Destination(_)) || !of_table(&refusal) {
        return refusal;
    }
    match destination.require_columns(schema).await.map_err(Error::from) {
        Err(fault) if of_table(&fault) => fault,
        _ => refusal,
    }
}

/// The error of a new table whose target has rows, of which nothing is on record.
pub(in crate::replication) fn has_rows(schema: &TableSchema) -> Error {
    let message = format!(
        "target table {} has rows that this mirror does not know of; a resync replaces them",
        schema.target
    );
    Error::table(&schema.id, Reason::DestinationTableConflict, message).remedied([Remedy::any_of([
        vec![Remedy::edit("spec.tables", format!("give {} another target.table", schema.id))],
        vec![Remedy::resync([&schema.id])],
    ])])
}

/// The error of a table whose target has rows with higher versions than the source's log gives, and keeps
/// rows that the source removes: emptying it would lose them.
pub(in crate::replication) fn has_rows_of_another_history(schema: &TableSchema) -> Error {
    let message = format!(
        "target table {} has rows of another history of the source, which would win over those of now, and its \
         operations keep rows that the source removes, so it is not emptied",
        schema.target
    );
    Error::table(&schema.id, Reason::DestinationTableConflict, message).remedied([Remedy::any_of([
        vec![Remedy::edit("spec.tables", format!("give {} another target.table", schema.id))],
        vec![Remedy::edit(
            "spec.tables[].operations",
            "take operations out, so that a resync replaces all rows",
        )],
    ])])
}

/// The error of a table whose target is not the one that was written to.
fn replaced(schema: &TableSchema) -> Error {
    let message = format!(
        "target table {} was dropped and made again, or exchanged for another one, so rows are missing there",
        schema.target
    );
    Error::table(&schema.id, Reason::DestinationTableReplaced, message)
}

#[cfg(test)]
mod tests {
    use super::super::record::TablePhase;
    use super::*;
    use crate::model::TableSpec;

    #[test]
    fn another_uuid_is_another_table() {
        let spec = TableSpec::new(crate::model::TableId::new("public", "t"));
        let schema = TableSchema::new(spec.id.clone(), Vec::new());
        let mut record = TableRecord::new(spec, schema, TablePhase::Streaming);
        assert!(!identify(&mut record, None).unwrap());
        assert!(identify(&mut record, Some("1".into())).unwrap());
        assert!(!identify(&mut record, Some("1".into())).unwrap() && !identify(&mut record, None).unwrap());
        assert!(identify(&mut record, Some("2".into())).unwrap_err().to_string().contains("exchanged"));
    }
}
