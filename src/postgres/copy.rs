//! COPY statements: rows of a table, or the rows of given keys, in binary form.
//!
//! <https://www.postgresql.org/docs/current/sql-copy.html>

use super::{
    Error,
    quote::{self, ident, literal},
    session::Session,
};
use crate::model::{CellKind, Column, TableId, TableSchema};

/// Where [`copy_statement`] reads from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// One relation with rows of its own, by name: the table itself or a leaf partition.
    Only(&'a TableId),
    /// The whole table with its partitions; the condition says which rows.
    Whole,
}

/// The statement that copies the mirrored columns of the rows that the Mirror's filter and `condition` (such
/// as a [`block_range`]; no bare OR) let through.
pub fn copy_statement(table: &TableSchema, source: Source<'_>, condition: Option<&str>) -> String {
    copy(table, &[], &from(table, source), condition, "")
}

/// [`copy_statement`] with each row's place behind its columns, for [`row_place`].
pub fn placed_copy_statement(table: &TableSchema, source: Source<'_>, condition: Option<&str>) -> String {
    copy(table, &["ctid"], &from(table, source), condition, "")
}

fn from(table: &TableSchema, source: Source<'_>) -> String {
    match source {
        Source::Only(storage) => only(storage),
        Source::Whole => whole(table),
    }
}

/// Block and number within the block of a row, from its place in binary form; `None` when that is malformed.
pub fn row_place(place: &[u8]) -> Option<(u32, u16)> {
    let (block, number) = place.split_first_chunk()?;
    Some((u32::from_be_bytes(*block), u16::from_be_bytes(number.try_into().ok()?)))
}

fn only(storage: &TableId) -> String {
    format!("ONLY {}", quote::table(storage))
}

/// The statement that reads the rows with these keys again, with the projection of [`copy_statement`].
/// `columns` are the key's indices into `table.columns`; each key has their values in PostgreSQL's text form.
/// No key, no rows.
///
/// Reads the table by its own name, so that a partitioned table is searched in all its partitions.
pub fn keys_statement(table: &TableSchema, columns: &[usize], keys: &[Vec<String>]) -> String {
    let columns: Vec<_> = columns.iter().filter_map(|&index| table.columns.get(index)).collect();
    let names = tuple(columns.iter().map(|column| ident(&column.name)));
    let keys: Vec<_> = keys
        .iter()
        .map(|key| {
            let values = columns.iter().zip(key);
            tuple(values.map(|(column, value)| format!("{}::{}", literal(value), column.type_name)))
        })
        .collect();
    let condition =
        if keys.is_empty() { "false".to_owned() } else { format!("{names} IN ({})", keys.join(", ")) };
    copy(table, &[], &whole(table), Some(&condition), "")
}

/// The statement that copies the whole table by its own name, all its partitions with it, of the rows that
/// the Mirror's filter and `condition` let through, sorted by the expressions `order`.
pub fn whole_statement(table: &TableSchema, condition: Option<&str>, order: &[String]) -> String {
    let order = if order.is_empty() { String::new() } else { format!(" ORDER BY {}", order.join(", ")) };
    copy(table, &[], &whole(table), condition, &order)
}

/// The system columns that are read of a table: where its rows lie, in which partition, and, where partitions
/// come with rows that can't be distinguished from streamed ones, which transaction wrote them.
pub fn system_columns(table: &TableSchema) -> &'static [&'static str] {
    match (table.partitioned, table.kind.is_keyed()) {
        (false, _) => &["ctid"],
        (true, true) => &["ctid", "tableoid"],
        (true, false) => &["ctid", "tableoid", "xmin"],
    }
}

/// The columns that [`copy_statement`] and [`placed_copy_statement`] read of a relation by its own name, but
/// for those that the row filter names.
pub fn copied_columns(table: &TableSchema) -> Vec<String> {
    let mirrored = table.columns.iter().filter(|column| !column.dropped).map(|column| column.name.clone());
    mirrored.chain(["ctid".to_owned()]).collect()
}

/// The statement that locks what it names as a read does, until the transaction ends. LOCK TABLE takes SELECT
/// on all columns.
pub fn lock_statement(table: &TableSchema, source: Source<'_>) -> String {
    format!("SELECT FROM {} LIMIT 0", from(table, source))
}

/// The statement that PostgreSQL refuses for a missing privilege, or for row-level security, exactly when it
/// refuses the copy; it gives no row.
pub fn probe_statement(table: &TableSchema) -> String {
    let system = system_columns(table).iter().map(|name| (*name).to_owned());
    let columns: Vec<_> = table.columns.iter().map(projection).chain(system).collect();
    format!("SELECT {} FROM {}{} LIMIT 0", columns.join(", "), whole(table), filter(table, None))
}

/// Whether the session's role may read what is copied of a table.
///
/// # Errors
/// What the source answers, but for a missing privilege.
pub async fn may_read(session: &Session, table: &TableSchema) -> Result<bool, Error> {
    match session.client.query(&probe_statement(table), &[]).await.map_err(Error::from) {
        Ok(_) => Ok(true),
        Err(error) if error.sqlstate() == Some("42501") => Ok(false),
        // The names may have changed by now; the next read detects that.
        Err(error) if error.refuses_query() => Ok(true),
        Err(error) => Err(error),
    }
}

/// The number of rows that the Mirror's filter lets through.
pub fn count_statement(table: &TableSchema) -> String {
    format!("SELECT count(*) FROM {}{}", whole(table), filter(table, None))
}

/// The condition for the blocks from `from` to before `to` (to the table's end when `None`), which PostgreSQL
/// 14 and later answer with a TID range scan that reads nothing else.
pub fn block_range(from: u64, to: Option<u64>) -> String {
    let from = format!("ctid >= '({from},0)'::tid");
    match to {
        Some(to) => format!("{from} AND ctid < '({to},0)'::tid"),
        None => from,
    }
}

/// In which form [`copy_statement`] and [`keys_statement`] give each column's values.
pub fn cell_kinds(table: &TableSchema) -> Vec<CellKind> {
    let kind = |column: &Column| {
        if column.source_type.has_binary_decoder() { CellKind::Binary } else { CellKind::Text }
    };
    table.columns.iter().map(kind).collect()
}

/// The table with its partitions, but without tables that inherit from it, which are tables of their own.
fn whole(table: &TableSchema) -> String {
    format!("{}{}", if table.partitioned { "" } else { "ONLY " }, quote::table(&table.id))
}

fn copy(table: &TableSchema, more: &[&str], source: &str, condition: Option<&str>, order: &str) -> String {
    let more = more.iter().map(|column| (*column).to_owned());
    let columns: Vec<_> = table.columns.iter().map(projection).chain(more).collect();
    let filter = filter(table, condition);
    format!("COPY (SELECT {} FROM {source}{filter}{order}) TO STDOUT (FORMAT binary)", columns.join(", "))
}

fn filter(table: &TableSchema, condition: Option<&str>) -> String {
    // The filter may be an OR, hence the parentheses; the line break ends a comment that it may end with.
    let row_filter = table.row_filter.iter().map(|filter| format!("({filter}\n)"));
    let conditions: Vec<_> = row_filter.chain(condition.map(str::to_owned)).collect();
    match conditions.as_slice() {
        [] => String::new(),
        conditions => format!(" WHERE {}", conditions.join(" AND ")),
    }
}

/// A column, or its text form where its binary form has no decoder. `format` applies the type's output
/// function, as the stream does; a cast to text differs for some types (`inet`, `char(n)`). It is named with
/// its schema: a function of that name that another role created for its own type would run with our
/// privileges. It makes an empty string of NULL; and `IS NOT NULL` is false for a composite with a NULL
/// field.
pub(super) fn projection(column: &Column) -> String {
    if column.dropped {
        return "NULL".to_owned();
    }
    let name = ident(&column.name);
    if column.source_type.has_binary_decoder() {
        return name;
    }
    format!("CASE WHEN {name} IS DISTINCT FROM NULL THEN pg_catalog.format('%s', {name}) END")
}

fn tuple(items: impl Iterator<Item = String>) -> String {
    let items: Vec<_> = items.collect();
    match items.as_slice() {
        [one] => one.clone(),
        items => format!("({})", items.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SourceType, TableKind};

    fn column(name: &str, type_name: &str, source_type: SourceType) -> Column {
        Column { type_name: type_name.into(), ..Column::new(name, source_type) }
    }

    fn table() -> TableSchema {
        TableSchema {
            target: "task".into(),
            ..TableSchema::new(
                TableId::new("public", "Task"),
                vec![
                    column("id", "bigint", SourceType::Int8),
                    column("Région", "character varying(8)", SourceType::Text),
                    column("addr", "inet", SourceType::Other),
                ],
            )
        }
    }

    const COLUMNS: &str =
        r#""id", "Région", CASE WHEN "addr" IS DISTINCT FROM NULL THEN pg_catalog.format('%s', "addr") END"#;

    #[test]
    fn copies_a_table_or_a_part_of_it() {
        let mut table = table();
        assert_eq!(
            copy_statement(&table, Source::Only(&table.id), None),
            format!(r#"COPY (SELECT {COLUMNS} FROM ONLY "public"."Task") TO STDOUT (FORMAT binary)"#)
        );
        table.row_filter = Some("id > 3 OR id = 1 -- why".into());
        let leaf = TableId::new("parts", "task_1");
        assert_eq!(
            copy_statement(&table, Source::Only(&leaf), Some(&block_range(0, Some(16)))),
            format!(
                "COPY (SELECT {COLUMNS} FROM ONLY \"parts\".\"task_1\" WHERE (id > 3 OR id = 1 -- why\n) \
                 AND ctid >= '(0,0)'::tid AND ctid < '(16,0)'::tid) TO STDOUT (FORMAT binary)"
            )
        );
        assert_eq!(block_range(16, None), "ctid >= '(16,0)'::tid");
        (table.partitioned, table.row_filter) = (true, None);
        assert_eq!(
            copy_statement(&table, Source::Whole, Some("tableoid = 7")),
            format!(
                "COPY (SELECT {COLUMNS} FROM \"public\".\"Task\" WHERE tableoid = 7) TO STDOUT (FORMAT binary)"
            )
        );
    }

    #[test]
    fn reads_and_locks_no_more_than_what_is_mirrored() {
        let mut table = table();
        assert_eq!(copied_columns(&table), ["id", "Région", "addr", "ctid"]);
        assert_eq!(
            lock_statement(&table, Source::Only(&TableId::new("public", "Task"))),
            "SELECT FROM ONLY \"public\".\"Task\" LIMIT 0"
        );
        (table.partitioned, table.kind) = (true, TableKind::ChangeLog);
        table.columns[1].dropped = true;
        assert_eq!(copied_columns(&table), ["id", "addr", "ctid"]);
        assert_eq!(system_columns(&table), ["ctid", "tableoid", "xmin"]);
        assert_eq!(lock_statement(&table, Source::Whole), "SELECT FROM \"public\".\"Task\" LIMIT 0");
    }

    #[test]
    fn selects_each_row_s_place() {
        let table = table();
        assert_eq!(
            placed_copy_statement(&table, Source::Only(&table.id), None),
            format!(r#"COPY (SELECT {COLUMNS}, ctid FROM ONLY "public"."Task") TO STDOUT (FORMAT binary)"#)
        );
        assert_eq!(row_place(&[0, 0, 1, 2, 0, 7]), Some((258, 7)));
        assert_eq!(row_place(&[0, 0, 1, 2, 0]), None);
    }

    #[test]
    fn reads_the_whole_table_in_order() {
        let mut table = table();
        assert_eq!(
            whole_statement(
                &table,
                None,
                &["\"id\"".to_owned(), "\"Région\"::text COLLATE \"C\"".to_owned()]
            ),
            format!(
                "COPY (SELECT {COLUMNS} FROM ONLY \"public\".\"Task\" ORDER BY \"id\", \"Région\"::text COLLATE \"C\") \
                 TO STDOUT (FORMAT binary)"
            )
        );
        assert_eq!(
            probe_statement(&table),
            format!("SELECT {COLUMNS}, ctid FROM ONLY \"public\".\"Task\" LIMIT 0")
        );
        assert_eq!(count_statement(&table), "SELECT count(*) FROM ONLY \"public\".\"Task\"");
        table.partitioned = true;
        assert_eq!(
            probe_statement(&table),
            format!("SELECT {COLUMNS}, ctid, tableoid FROM \"public\".\"Task\" LIMIT 0")
        );
        table.row_filter = Some("a OR b".into());
        assert_eq!(
            whole_statement(&table, Some("random() < 0.5"), &[]),
            format!(
                "COPY (SELECT {COLUMNS} FROM \"public\".\"Task\" WHERE (a OR b\n) AND random() < 0.5) TO STDOUT \
                 (FORMAT binary)"
            )
        );
        assert_eq!(count_statement(&table), "SELECT count(*) FROM \"public\".\"Task\" WHERE (a OR b\n)");
    }

    #[test]
    fn reads_rows_by_key() {
        let mut table = table();
        let keys = [vec!["1".to_owned()], vec!["-2".to_owned()]];
        assert_eq!(
            keys_statement(&table, &[0], &keys),
            format!(
                "COPY (SELECT {COLUMNS} FROM ONLY \"public\".\"Task\" WHERE \"id\" IN ('1'::bigint, '-2'::bigint)) \
                 TO STDOUT (FORMAT binary)"
            )
        );
        table.partitioned = true;
        table.row_filter = Some("true".into());
        let keys = [vec!["1".to_owned(), "O'Hara".to_owned()], vec!["2".to_owned(), "b\\".to_owned()]];
        assert_eq!(
            keys_statement(&table, &[0, 1], &keys),
            format!(
                "COPY (SELECT {COLUMNS} FROM \"public\".\"Task\" WHERE (true\n) AND (\"id\", \"Région\") IN \
                 (('1'::bigint, 'O''Hara'::character varying(8)), ('2'::bigint, E'b\\\\'::character varying(8)))) \
                 TO STDOUT (FORMAT binary)"
            )
        );
        assert!(keys_statement(&table, &[0], &[]).contains(") AND false)"));
    }

    #[test]
    fn knows_the_form_of_each_column() {
        assert_eq!(cell_kinds(&table()), [CellKind::Binary, CellKind::Binary, CellKind::Text]);
    }
}
