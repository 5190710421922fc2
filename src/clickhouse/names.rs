//! Column names that mean something to ClickHouse.

use super::{TableProblem, types::ChType};
use crate::{fault::Remedy, model::TableSchema};

/// Columns that MergeTree tables store internally; the server refuses others of these names.
const PERSISTENT: [&str; 3] = ["_row_exists", "_block_number", "_block_offset"];

/// Virtual columns of MergeTree tables; a stored column of the same name hides them.
const VIRTUAL: [&str; 15] = [
    "_data_version",
    "_database",
    "_disk_name",
    "_distance",
    "_part",
    "_part_data_version",
    "_part_granule_offset",
    "_part_index",
    "_part_offset",
    "_part_starting_offset",
    "_part_uuid",
    "_partition_id",
    "_partition_value",
    "_sample_factor",
    "_table",
];

/// Refuses names that the server refuses, or takes for parts of one `Nested` column: arrays with the same
/// word before their first dot would all have to have the same length, and no column may have that word alone
/// as its name.
///
/// # Errors
/// [`TableProblem::Engine`] that names the columns.
pub(super) fn refuse(table: &TableSchema, types: &[ChType]) -> Result<(), TableProblem> {
    let names: Vec<&str> = table.columns.iter().map(|column| column.target_name.as_str()).collect();
    if let Some(name) = names.iter().find(|name| PERSISTENT.contains(name)) {
        let problem = format!("the name of column {name} is reserved by ClickHouse");
        return Err(TableProblem::engine(problem).remedied(rename(name)));
    }
    let mut nested: Vec<(&str, &str)> = Vec::new();
    for (name, column_type) in names.iter().zip(types) {
        let Some((word, rest)) = name.split_once('.') else { continue };
        if word.is_empty() || rest.is_empty() || !matches!(column_type.inner(), ChType::Array(_)) {
            continue;
        }
        let other = nested.iter().find(|(known, _)| *known == word).map(|(_, other)| *other);
        if let Some(other) = other.or_else(|| names.contains(&word).then_some(word)) {
            return Err(TableProblem::engine(format!(
                "columns {other} and {name}: ClickHouse takes an array whose name has a dot for a part of a Nested column {word}, whose \
                 parts all have the same length"
            ))
            .remedied(rename(name)));
        }
        nested.push((word, name));
    }
    Ok(())
}

fn rename(column: &str) -> Remedy {
    Remedy::edit(
        "spec.tables[].columns.rename",
        format!("give {column} a name without a dot that ClickHouse does not use"),
    )
}

/// The columns that hide one of ClickHouse's own.
pub fn hiding(table: &TableSchema) -> Vec<&str> {
    let names = table.columns.iter().map(|column| column.target_name.as_str());
    names.filter(|name| VIRTUAL.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clickhouse::test_support, model::SourceType};

    fn refused(columns: &[(&str, &str)]) -> Option<Vec<Remedy>> {
        let types: Vec<ChType> =
            columns.iter().map(|(_, column_type)| super::super::types::parse(column_type).unwrap()).collect();
        let columns = columns.iter().map(|(name, _)| test_support::column(name, SourceType::Text)).collect();
        refuse(&test_support::table("t", columns), &types).err().map(|problem| problem.remedies().to_vec())
    }

    #[test]
    fn what_a_real_server_refuses_is_refused() {
        const ARRAY: &str = "Array(String)";
        for columns in [
            &[("l.en", ARRAY), ("l.de", ARRAY)][..],
            &[("l.x.en", ARRAY), ("l.y.de", ARRAY)],
            &[("data", "String"), ("data.y", ARRAY)],
            &[("data.y", ARRAY), ("data", ARRAY)],
            &[("_row_exists", "String")],
            &[("_block_number", "String")],
        ] {
            let remedies = refused(columns).unwrap();
            let [Remedy::EditSpec { field, .. }] = remedies.as_slice() else { panic!("{remedies:?}") };
            assert_eq!(field, "spec.tables[].columns.rename");
        }
        for columns in [
            &[("l.en", ARRAY), ("l.de", "String")][..],
            &[("l.en", "String"), ("l", "String")],
            &[(".x", ARRAY), (".y", ARRAY)],
            &[("x.", ARRAY), ("x..", "String")],
            &[("_part", "String")],
        ] {
            assert_eq!(refused(columns), None);
        }
    }
}
