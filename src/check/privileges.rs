//! Whether the role may read what is mirrored of a table.

use super::{
    report::Check,
    row_filter::{ROW_FILTERS, mentioned},
};
use crate::{
    fault::Reason,
    postgres::{
        catalog::{RelationFacts, ServerFacts, TableFacts},
        copy,
        publication::PublishedTable,
        quote::{ident, table as qualified},
    },
};

/// All columns that the role must be able to read: what is mirrored, what the row filter names, and system
/// columns.
fn columns_read(facts: &TableFacts) -> Vec<String> {
    let mut columns: Vec<String> = facts.schema.columns.iter().map(|column| column.name.clone()).collect();
    let filter = facts.schema.row_filter.as_deref().unwrap_or_default();
    let filtered = mentioned(facts.columns.iter().map(|column| &column.name), filter);
    columns.extend(filtered.into_iter().filter(|name| !facts.schema.columns.iter().any(|c| c.name == *name)));
    columns.extend(copy::system_columns(&facts.schema).iter().map(|name| (*name).to_owned()));
    columns
}

/// Where columns are left out, privileges on the others are asked for, so that what is left out can't be read
/// either.
pub(super) fn readable(facts: &TableFacts, excluded: &[String], server: &ServerFacts) -> Check {
    const NAME: &str = "SELECT";
    let subject = facts.schema.id.to_string();
    let role = ident(&server.role);
    let root = &facts.relation;
    let columns = columns_read(facts);
    let unreadable = root.unreadable(&columns);
    let mut fixes = Vec::new();
    if !root.schema_usage {
        fixes.push(format!("GRANT USAGE ON SCHEMA {} TO {role};", ident(&root.id.schema)));
    }
    if !unreadable.is_empty() {
        let names: Vec<String> = columns.iter().map(|name| ident(name)).collect();
        let columns = if excluded.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
        fixes.push(format!("GRANT SELECT{columns} ON {} TO {role};", qualified(&root.id)));
    }
    if fixes.is_empty() {
        // Partitions need no privilege of their own: those that lack it are read through the root.
        let parts = match facts.partitions.len() {
            0 => String::new(),
            1 => " and its partition".to_owned(),
            count => format!(" and its {count} partitions"),
        };
        let copied = copy::copied_columns(&facts.schema);
        let by_columns = |partition: &RelationFacts| {
            facts.schema.row_filter.is_none() && partition.unreadable(&copied).is_empty()
        };
        let own = |partition: &&RelationFacts| {
            partition.schema_usage && (partition.readable_columns.is_none() || by_columns(partition))
        };
        let what = match root.readable_columns {
            None => "it",
            Some(_) => "the mirrored columns of it",
        };
        let detail = match facts.partitions.len() - facts.partitions.iter().filter(own).count() {
            0 => format!("{} may read {what}{parts}", server.role),
            through => format!("{} may read {what}{parts}, {through} of them through it alone", server.role),
        };
        return Check::ok(subject, NAME, detail);
    }
    let what = match unreadable.as_slice() {
        [] => "its schema".to_owned(),
        _ if unreadable.len() == columns.len() => "it".to_owned(),
        [column] => format!("column {column} of it"),
        several => format!("columns {} of it", several.join(", ")),
    };
    let detail = format!("{} may not read {what}", server.role);
    Check::failure(subject, NAME, Reason::SourcePrivilegeMissing, detail).run_at_source(fixes.join("\n"))
}

/// Whether the values of excluded columns leave the source. `published` is the table in the publication that
/// is there.
pub(super) fn excluded(
    facts: &TableFacts,
    excluded: &[String],
    server: &ServerFacts,
    published: Option<&PublishedTable>,
) -> Option<Check> {
    let sent: Vec<&str> =
        excluded.iter().filter(|name| !facts.generated_columns.contains(name)).map(String::as_str).collect();
    if sent.is_empty() {
        return None;
    }
    let list = published.and_then(|published| published.columns.as_ref());
    let why = if list.is_some_and(|list| list.misfit(&facts.schema).is_none()) {
        None
    } else if server.version_num < ROW_FILTERS {
        Some(format!("PostgreSQL {} has no column lists", server.version))
    } else {
        facts
            .refuses_list()
            .or_else(|| Some("the publication has no list of the mirrored columns".to_owned()))
    };
    let names = sent.join(", ");
    let detail = match why {
        None => format!("{names}: not sent, the publication lists the other columns"),
        Some(why) => format!("{names}: sent to walferry and left out there, because {why}"),
    };
    Some(Check::ok(facts.schema.id.to_string(), "excluded columns", detail))
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            report::Outcome,
            tests::{server_facts, table_facts},
        },
        *,
    };
    use crate::{
        model::{IdentityKind, TableKind},
        postgres::{catalog::LiveColumn, publication::ColumnList},
    };

    #[test]
    fn reports_whether_excluded_values_are_sent() {
        let mut facts = table_facts();
        let names = ["secret".to_owned()];
        let list = |names: &[&str], attnums: &[i16]| PublishedTable {
            entry: 1,
            id: facts.schema.id.clone(),
            oid: 16_400,
            row_filter: None,
            filter_columns: Vec::new(),
            columns: Some(ColumnList {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                attnums: attnums.to_vec(),
            }),
            may_fail: Vec::new(),
        };
        let fits = list(&["id", "email"], &[1, 2]);
        let wider = list(&["id", "email", "secret"], &[1, 2, 3]);
        let server = |version_num| ServerFacts { version_num, ..server_facts() };
        let detail = |facts: &TableFacts, version, published: Option<&PublishedTable>| {
            excluded(facts, &names, &server(version), published).map(|check| check.detail).unwrap_or_default()
        };
        assert!(detail(&facts, 180_000, Some(&fits)).contains("secret: not sent"));
        assert!(detail(&facts, 180_000, Some(&wider)).contains("has no list of the mirrored columns"));
        assert!(detail(&facts, 180_000, None).contains("has no list of the mirrored columns"));
        assert!(detail(&facts, 140_000, None).contains("has no column lists"));
        facts.relation.identity = IdentityKind::Full;
        assert!(detail(&facts, 180_000, None).contains("FULL"));
        facts.generated_columns = vec!["secret".to_owned()];
        assert_eq!(detail(&facts, 180_000, None), "");
    }

    #[test]
    fn privileges_on_the_mirrored_columns_are_enough() {
        let mut facts = table_facts();
        let excluded = ["secret".to_owned()];
        let select = |facts: &TableFacts, excluded: &[String]| {
            let check = readable(facts, excluded, &server_facts());
            let fix = check.fix().unwrap_or_default();
            (check.outcome, check.detail, fix)
        };
        let may_read = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        facts.relation.readable_columns = may_read(&["id", "email", "ctid"]);
        for excluded in [&[][..], &excluded] {
            let (outcome, detail, _) = select(&facts, excluded);
            assert_eq!(
                (outcome, detail.as_str()),
                (Outcome::Ok, "mirror may read the mirrored columns of it")
            );
        }
        facts.relation.readable_columns = may_read(&["id", "email"]);
        let (outcome, detail, fix) = select(&facts, &excluded);
        assert_eq!((outcome, detail.as_str()), (Outcome::Failure, "mirror may not read column ctid of it"));
        assert_eq!(fix, "GRANT SELECT (\"id\", \"email\", \"ctid\") ON \"public\".\"users\" TO \"mirror\";");
        assert_eq!(select(&facts, &[]).2, "GRANT SELECT ON \"public\".\"users\" TO \"mirror\";");
        // A column that the row filter alone names is read too, and system columns identify a partition's
        // rows.
        let column = |attnum, name: &str| LiveColumn {
            attnum,
            name: name.to_owned(),
            type_oid: 25,
            type_modifier: -1,
            generated: false,
            written_by: 7,
        };
        facts.columns = vec![column(1, "id"), column(2, "email"), column(3, "region"), column(4, "secret")];
        facts.schema.row_filter = Some("region = 'eu' AND id > 5".to_owned());
        (facts.schema.partitioned, facts.schema.kind) = (true, TableKind::AppendOnly);
        let columns = r#"("id", "email", "region", "ctid", "tableoid", "xmin")"#;
        assert!(select(&facts, &excluded).2.starts_with(&format!("GRANT SELECT {columns} ON")));
    }
}
