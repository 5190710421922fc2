//! Checks of one target table: privileges, column types, and whether what is there fits.

use super::{destination::failed, report::Check};
use crate::{
    clickhouse::{
        Error, TableProblem, ddl,
        difference::Difference,
        names,
        quote::{ident, table},
        state,
        target::{MissingParts, TargetTable, compare},
        types::{ChType, Features, Fidelity, fidelity, target_type},
    },
    fault::{Reason, Remedy},
    model::{ClickHouseEndpoint, Column, TableSchema, TableSpec},
    replication::{self, Claim},
};

/// Privileges that the user lacks on one target table.
pub(super) fn target_privileges(
    endpoint: &ClickHouseEndpoint,
    schema: &TableSchema,
    missing: &[&str],
) -> Option<Check> {
    if missing.is_empty() {
        return None;
    }
    let (target, missing) = (table(&endpoint.database, &schema.target), missing.join(", "));
    let detail = format!("{} lacks {missing} on {target}", endpoint.username);
    let grant = format!("GRANT {missing} ON {target} TO {};", ident(&endpoint.username));
    Some(
        Check::failure(schema.id.to_string(), "grants", Reason::DestinationAccessDenied, detail)
            .run_at_destination(grant),
    )
}

/// The target's column types, or why a column can't be stored as asked; and what each becomes, with a warning
/// for what isn't lossless.
pub(super) fn column_types(schema: &TableSchema, features: Features) -> (Option<Vec<ChType>>, Check) {
    const NAME: &str = "column types";
    let subject = schema.id.to_string();
    let mut types = Vec::with_capacity(schema.columns.len());
    let mut impossible = Vec::new();
    // Columns of one type are reported together: a table often has many timestamps.
    let mut lossless: Vec<(String, Vec<&str>)> = Vec::new();
    let mut lossy: Vec<(String, Vec<&str>)> = Vec::new();
    let mut overrides = Vec::new();
    for (index, column) in schema.columns.iter().enumerate() {
        let key = schema.key.contains(&index) || schema.order_by.contains(&index);
        let chosen =
            target_type(column, features, key).and_then(|chosen| Ok((fidelity(column, &chosen)?, chosen)));
        match chosen {
            Ok((fidelity, chosen)) => {
                let mapping = format!("{} as {}", column.type_name, chosen.inner());
                if let Fidelity::Lossy(why) = fidelity {
                    push_grouped(&mut lossy, format!("{mapping} ({why})"), &column.name);
                    overrides.push(format!("{}: String", serde_json::Value::from(column.name.as_str())));
                } else {
                    push_grouped(&mut lossless, mapping, &column.name);
                }
                types.push(chosen);
            }
            Err(error) => impossible.push(error.to_string()),
        }
    }
    if !impossible.is_empty() {
        let check = Check::failure(subject, NAME, Reason::DestinationTypeUnsupported, impossible.join("; "))
            .edit("spec.tables[].columns.types", "correct it");
        return (None, check);
    }
    let mappings: Vec<_> = lossy
        .iter()
        .chain(&lossless)
        .map(|(mapping, columns)| format!("{}: {mapping}", columns.join(", ")))
        .collect();
    let check = if lossy.is_empty() {
        Check::ok(subject, NAME, mappings.join("; "))
    } else {
        // The text form holds every value.
        Check::warning(subject, NAME, Reason::DestinationTypeLossy, mappings.join("; ")).edit(
            "spec.tables[]",
            format!(
                "outOfRange says what is stored instead; where that won't do: columns: {{types: {{{}}}}}",
                overrides.join(", ")
            ),
        )
    };
    (Some(types), check)
}

fn push_grouped<'a>(groups: &mut Vec<(String, Vec<&'a str>)>, mapping: String, column: &'a str) {
    match groups.iter_mut().find(|(known, _)| *known == mapping) {
        Some((_, columns)) => columns.push(column),
        None => groups.push((mapping, vec![column])),
    }
}

/// A target table as it is now.
#[derive(Clone, Debug)]
pub(super) struct TargetFacts {
    /// What is there; `None` when nothing is.
    pub(super) found: Option<TargetTable>,
    /// Whether it has rows.
    pub(super) has_rows: bool,
    /// Whether the Mirror's state has the table, with this target.
    pub(super) tracked: bool,
    /// Whether the rows that it has are going to be replaced.
    pub(super) copied_over: bool,
}

/// A target that another Mirror writes.
pub(super) fn taken(endpoint: &ClickHouseEndpoint, schema: &TableSchema, claim: &Claim) -> Check {
    let release = state::release(&endpoint.database, &claim.uid, &claim.item());
    let detail = replication::describe_claim(claim);
    Check::failure(schema.id.to_string(), "target table", Reason::TargetTableTaken, detail)
        .remedied(replication::give_way(&schema.id, claim, &release))
}

/// Whether the target table can be made, or the one that is there is ours or will do.
pub(super) fn target(
    endpoint: &ClickHouseEndpoint,
    schema: &TableSchema,
    types: &[ChType],
    facts: &TargetFacts,
) -> Check {
    const NAME: &str = "target table";
    let subject = schema.id.to_string();
    let name = format!("{}.{}", endpoint.database, schema.target);
    let failure = |reason, detail: String| Check::failure(subject.as_str(), NAME, reason, detail);
    let conflict =
        |problem: &TableProblem| {
            failure(Reason::DestinationTableConflict, format!("{name}: {problem}"))
                .remedied(conflict_remedies(endpoint, schema, problem, facts.tracked))
        };
    if let Err(problem) = ddl::validate(schema, types) {
        return failure(Reason::DestinationEngineInvalid, problem.to_string())
            .remedied(problem.remedies().to_vec());
    }
    let fits = |found| compare(found, &endpoint.database, schema, types);
    match (&facts.found, facts.tracked) {
        (None, _) if facts.copied_over => Check::ok(subject, NAME, format!("{name} will be created")),
        (Some(found), _) if facts.copied_over => match fits(found) {
            Err(problem) => conflict(&problem),
            Ok(missing) => {
                let detail =
                    format!("{name} exists, and the copy replaces its rows{}", widened(schema, &missing));
                Check::ok(subject, NAME, detail)
            }
        },
        (None, true) => Check::warning(
            subject.as_str(),
            NAME,
            Reason::DestinationTableMissing,
            format!("{name} was dropped: this table will fail alone, the others continue"),
        )
        .remedied([Remedy::resync([&schema.id])]),
        (None, false) => Check::ok(subject, NAME, format!("{name} will be created")),
        // What differs since is a matter of schema changes, which the stream applies.
        (Some(_), true) => Check::ok(subject, NAME, format!("{name} is this Mirror's")),
        (Some(found), false) => match fits(found) {
            Err(problem) => conflict(&problem),
            Ok(_) if facts.has_rows => {
                let detail = format!("{name} exists and has rows that this Mirror does not know of");
                failure(Reason::DestinationTableConflict, detail).remedied([unknown_rows(endpoint, schema)])
            }
            Ok(missing) => {
                let detail = format!("{name} exists, is empty and fits{}", widened(schema, &missing));
                Check::ok(subject, NAME, detail)
            }
        },
    }
}

/// What helps against a target that doesn't fit.
fn conflict_remedies(
    endpoint: &ClickHouseEndpoint,
    schema: &TableSchema,
    problem: &TableProblem,
    tracked: bool,
) -> Vec<Remedy> {
    // A table that is not ours may be in use: its columns are not to be dropped.
    if !matches!(problem, TableProblem::Conflict(_)) || tracked {
        return problem.remedies().to_vec();
    }
    let target = table(&endpoint.database, &schema.target);
    let drop = format!("-- if the existing table is not needed:\nDROP TABLE {target};");
    let edits = edits(problem).map(|edit| vec![edit]);
    let first = std::iter::once(vec![elsewhere(schema)]);
    let choices = first.chain(edits).chain([vec![Remedy::run_at_destination(drop)]]);
    vec![Remedy::any_of(choices.collect::<Vec<_>>())]
}

/// What helps against rows that the Mirror did not write.
fn unknown_rows(endpoint: &ClickHouseEndpoint, schema: &TableSchema) -> Remedy {
    let target = table(&endpoint.database, &schema.target);
    let truncate = format!("-- if these rows are not needed:\nTRUNCATE TABLE {target};");
    Remedy::any_of([
        vec![elsewhere(schema)],
        vec![Remedy::run_at_destination(truncate)],
        vec![Remedy::resync([&schema.id])],
    ])
}

/// Those changes of the Mirror that alone solve a problem of a target, but for another target.
fn edits(problem: &TableProblem) -> impl Iterator<Item = Remedy> {
    let choices = problem.remedies().iter().flat_map(|remedy| match remedy {
        Remedy::AnyOf { choices } => choices.clone(),
        other => vec![vec![other.clone()]],
    });
    choices.filter_map(|mut choice| {
        let edit = choice.pop().filter(|_| choice.is_empty())?;
        matches!(&edit, Remedy::EditSpec { field, .. } if field != "spec.tables").then_some(edit)
    })
}

fn elsewhere(schema: &TableSchema) -> Remedy {
    Remedy::edit("spec.tables", format!("give {} another target.table", schema.id))
}

/// A target that the server refuses to make.
pub(super) fn refused_target(schema: &TableSchema, error: Error) -> Check {
    Check { subject: schema.id.to_string(), ..failed("target table", error) }
}

/// What the Mirror's entry asks for and the target has not.
pub(super) fn layout(schema: &TableSchema, differences: &[Difference]) -> Option<Check> {
    if differences.is_empty() {
        return None;
    }
    let details: Vec<&str> = differences.iter().map(|difference| difference.detail.as_str()).collect();
    let mut remedies: Vec<Remedy> = differences.iter().map(|difference| difference.remedy.clone()).collect();
    remedies.dedup();
    // A new target has to be filled.
    if remedies.iter().any(|remedy| matches!(remedy, Remedy::AnyOf { .. })) {
        remedies.push(Remedy::resync([&schema.id]));
    }
    let detail = format!("the target keeps the layout it was created with: {}", details.join("; "));
    let reason = Reason::DestinationLayoutDiffers;
    Some(Check::warning(schema.id.to_string(), "layout", reason, detail).remedied(remedies))
}

/// Columns that hide virtual columns of ClickHouse.
pub(super) fn hidden_columns(schema: &TableSchema) -> Option<Check> {
    let names = names::hiding(schema);
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} at the target hides ClickHouse's virtual column of that name", names.join(", "));
    let reason = Reason::DestinationLayoutDiffers;
    Some(Check::warning(schema.id.to_string(), "column names", reason, detail).edit(
        "spec.tables[].columns.rename",
        "give the column another name, to be able to read that one too",
    ))
}

/// Columns that keep at the target the names under which they were copied, and how to give them those that
/// they have now.
pub(super) fn former_names(
    endpoint: &ClickHouseEndpoint,
    spec: &TableSpec,
    schema: &TableSchema,
) -> Option<Check> {
    let asked = |column: &Column| {
        let asked = spec.rename.iter().find(|(from, _)| *from == column.name);
        asked.map_or_else(|| column.name.clone(), |(_, to)| to.clone())
    };
    let columns = schema.columns.iter().enumerate().filter(|(_, column)| !column.dropped);
    let apart: Vec<(usize, &str, String)> = columns
        .map(|(index, column)| (index, column.target_name.as_str(), asked(column)))
        .filter(|(_, there, now)| there != now)
        .collect();
    if apart.is_empty() {
        return None;
    }
    let renamed: Vec<String> =
        apart.iter().map(|(_, there, now)| format!("{now} is {there} at the target")).collect();
    let is_free = |index: &usize, now: &str| {
        let in_key = schema.order_by.contains(index) || schema.key.contains(index);
        !in_key && schema.columns.iter().all(|column| column.target_name != now)
    };
    let remedies = if apart.iter().all(|(index, _, now)| is_free(index, now)) {
        let target = table(&endpoint.database, &schema.target);
        let renames: Vec<String> = apart
            .iter()
            .map(|(_, there, now)| format!("RENAME COLUMN {} TO {}", ident(there), ident(now)))
            .collect();
        let names: Vec<String> =
            apart.iter().map(|(_, _, now)| format!("{0}: {0}", serde_json::json!(now))).collect();
        vec![
            Remedy::run_at_destination(format!("ALTER TABLE {target} {}", renames.join(", "))),
            Remedy::edit(
                "spec.tables",
                format!("add columns: {{rename: {{{}}}}} to the table's entry", names.join(", ")),
            ),
        ]
    } else {
        vec![elsewhere(schema)]
    };
    let steps = remedies.into_iter().chain([Remedy::resync([&schema.id])]);
    let detail = format!("{}: a column keeps the name under which it was copied", renamed.join(", "));
    Some(Check::ok(schema.id.to_string(), "column names", detail).remedied(steps))
}

/// Which columns a run will make wider.
fn widened(schema: &TableSchema, missing: &MissingParts) -> String {
    let columns = missing.width.iter().filter_map(|index| schema.columns.get(*index));
    let names: Vec<_> = columns.map(|column| column.target_name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!("; {} will be widened", names.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::super::{
        destination::ENGINE,
        report::Outcome,
        tests::{destination as endpoint, table_facts},
    };
    use super::*;
    use crate::clickhouse::target::TargetColumn;

    fn fitting() -> TargetTable {
        let column = |(name, of): (&str, &str)| TargetColumn {
            name: name.to_owned(),
            column_type: of.to_owned(),
            ..TargetColumn::default()
        };
        let columns = [
            ("id", "Int64"),
            ("email", "Nullable(String)"),
            ("_walferry_version", "UInt64"),
            ("_walferry_deleted", "UInt8"),
        ];
        TargetTable {
            engine: ENGINE.to_owned(),
            engine_full: format!("{ENGINE}(_walferry_version, _walferry_deleted) ORDER BY id"),
            sorting_key: "id".to_owned(),
            columns: columns.into_iter().map(column).collect(),
            ..TargetTable::default()
        }
    }

    fn target_check(found: Option<TargetTable>, has_rows: bool, tracked: bool) -> Check {
        check_target(TargetFacts { found, has_rows, tracked, copied_over: false })
    }

    fn check_target(facts: TargetFacts) -> Check {
        let schema = table_facts().schema;
        let (types, _) = column_types(&schema, Features::of(26, 7));
        target(&endpoint(), &schema, &types.unwrap(), &facts)
    }

    #[test]
    fn a_resync_needs_a_target_that_fits_or_none() {
        for tracked in [true, false] {
            let check =
                |found| check_target(TargetFacts { found, has_rows: true, tracked, copied_over: true });
            assert_eq!(check(None).detail, "analytics.users will be created");
            assert_eq!(
                check(Some(fitting())).detail,
                "analytics.users exists, and the copy replaces its rows"
            );
            let other = TargetTable { sorting_key: "email".to_owned(), ..fitting() };
            assert_eq!(check(Some(other)).reason, Some(Reason::DestinationTableConflict));
        }
    }

    #[test]
    fn a_target_that_is_not_ours_must_fit_and_be_empty() {
        assert_eq!(target_check(None, false, false).detail, "analytics.users will be created");
        assert_eq!(target_check(Some(fitting()), false, false).outcome, Outcome::Ok);
        let other = TargetTable { engine: "MergeTree".to_owned(), ..fitting() };
        for (found, has_rows, fix) in [
            (
                fitting(),
                true,
                "spec.tables: give public.users another target.table\n-- or\n-- if these rows are not needed:\n\
                 TRUNCATE TABLE `analytics`.`users`;\n-- or\ncopy public.users again: resync"
                    .to_owned(),
            ),
            (
                other,
                false,
                "spec.tables: give public.users another target.table\n-- or\n-- if the existing table is not needed:\n\
                 DROP TABLE `analytics`.`users`;"
                    .to_owned(),
            ),
        ] {
            let check = target_check(Some(found), has_rows, false);
            assert_eq!(check.reason, Some(Reason::DestinationTableConflict));
            assert_eq!(check.fix(), Some(fix));
        }
    }

    #[test]
    fn a_target_of_ours_is_left_alone() {
        assert_eq!(target_check(Some(fitting()), true, true).outcome, Outcome::Ok);
        assert_eq!(target_check(None, false, true).reason, Some(Reason::DestinationTableMissing));
    }

    #[test]
    fn an_engine_that_can_not_work_is_refused() {
        let mut schema = table_facts().schema;
        schema.partition_by = Some("email".to_owned());
        let facts = TargetFacts { found: None, has_rows: false, tracked: false, copied_over: false };
        let check = target(&endpoint(), &schema, &[], &facts);
        assert_eq!(check.reason, Some(Reason::DestinationEngineInvalid));
    }

    #[test]
    fn a_name_that_stays_at_the_target_has_the_statement_that_changes_it() {
        let mut schema = table_facts().schema;
        let mut spec = TableSpec::new(schema.id.clone());
        let result = |spec: &TableSpec, schema: &TableSchema| {
            former_names(&endpoint(), spec, schema).map(|check| (check.detail, check.remedies))
        };
        assert_eq!(result(&spec, &schema), None);
        schema.columns[1].target_name = "mail".to_owned();
        let (detail, remedies) = result(&spec, &schema).unwrap();
        assert!(detail.starts_with("email is mail at the target: "), "{detail}");
        let statement = "ALTER TABLE `analytics`.`users` RENAME COLUMN `mail` TO `email`";
        let edit = "add columns: {rename: {\"email\": \"email\"}} to the table's entry";
        assert_eq!(
            remedies,
            [
                Remedy::run_at_destination(statement),
                Remedy::edit("spec.tables", edit),
                Remedy::resync([&schema.id])
            ]
        );
        schema.order_by = vec![1];
        assert_eq!(result(&spec, &schema).unwrap().1, [elsewhere(&schema), Remedy::resync([&schema.id])]);
        spec.rename = vec![("email".to_owned(), "mail".to_owned())];
        assert_eq!(result(&spec, &schema), None, "it was asked for");
    }

    #[test]
    fn types_are_grouped_by_what_they_lose() {
        let mut schema = table_facts().schema;
        assert_eq!(column_types(&schema, Features::of(26, 7)).1.outcome, Outcome::Ok);
        schema.columns[1].source_type = crate::model::SourceType::Date;
        let (types, check) = column_types(&schema, Features::of(26, 7));
        assert!(types.is_some());
        assert!(check.detail.starts_with("email: a type as Date32 ("), "{}", check.detail);
        assert!(check.fix().unwrap().ends_with("columns: {types: {\"email\": String}}"));
        schema.columns[1].type_override = Some("UUID".to_owned());
        let (types, check) = column_types(&schema, Features::of(26, 7));
        assert!(types.is_none());
        assert_eq!(check.reason, Some(Reason::DestinationTypeUnsupported));
    }

    #[test]
    fn missing_privileges_on_one_target_are_granted_there() {
        let schema = table_facts().schema;
        assert_eq!(target_privileges(&endpoint(), &schema, &[]), None);
        let check = target_privileges(&endpoint(), &schema, &["INSERT", "TRUNCATE"]).unwrap();
        assert_eq!((check.subject.as_str(), check.outcome), ("public.users", Outcome::Failure));
        assert_eq!(
            check.fix().as_deref(),
            Some("GRANT INSERT, TRUNCATE ON `analytics`.`users` TO `writer`;")
        );
    }
}
