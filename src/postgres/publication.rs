//! The publication: which tables' changes the source sends, and which rows of them.
//!
//! <https://www.postgresql.org/docs/current/sql-createpublication.html>

use tokio_postgres::Row;

use super::{Error, quote, session::Session};
use crate::model::{MirrorIdentity, ReplicatorConfig, TableId, TableKind, TableSchema};

/// What the comment of a publication that walferry made begins with; the Mirror's UID follows.
pub const COMMENT_PREFIX: &str = "walferry mirror ";

/// Which changes of its tables a publication sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// All of them, which needs tables with a usable replica identity.
    Everything,
    /// Inserts and truncates: PostgreSQL then lets the application update and delete whatever the table is
    /// like.
    Inserts,
}

impl Publish {
    /// What the publication of a table of this kind sends.
    pub fn of(kind: TableKind) -> Self {
        match kind {
            TableKind::Keyed | TableKind::ChangeLog => Publish::Everything,
            TableKind::AppendOnly => Publish::Inserts,
        }
    }

    /// What a Mirror's publications send: the second one is there where only inserts are mirrored of some
    /// table.
    pub fn all(config: &ReplicatorConfig) -> impl Iterator<Item = Publish> + use<> {
        [Publish::Everything].into_iter().chain(config.has_append_only().then_some(Publish::Inserts))
    }

    /// The name of a Mirror's publication that sends this.
    pub fn name(self, mirror: &MirrorIdentity) -> String {
        match self {
            Publish::Everything => mirror.publication_name(),
            Publish::Inserts => mirror.inserts_publication_name(),
        }
    }

    /// The value of the option `publish`.
    pub fn option(self) -> &'static str {
        match self {
            Publish::Everything => "insert, update, delete, truncate",
            Publish::Inserts => "insert, truncate",
        }
    }

    /// What a publication with these options sends; `None` when it is neither.
    pub(super) fn from_options(insert: bool, update: bool, delete: bool, truncate: bool) -> Option<Self> {
        match (insert && truncate, update, delete) {
            (true, true, true) => Some(Publish::Everything),
            (true, false, false) => Some(Publish::Inserts),
            _ => None,
        }
    }
}

/// What PostgreSQL answers to a role that owns neither the object nor is a member of its owner.
pub(super) const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Name of the publication that [`probe`] makes and rolls back.
const PROBE: &str = "walferry_probe";

/// A publication as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// `pg_publication.oid`
    pub oid: u32,
    /// Whether walferry made it: only then is it ever altered or dropped.
    pub owned_by_us: bool,
    /// The owning role.
    pub owner: String,
    /// Whether the session's role may alter it, which on a standby none may.
    pub may_alter: bool,
    /// `FOR ALL TABLES`
    pub all_tables: bool,
    /// Whether it has `FOR TABLES IN SCHEMA` (PostgreSQL 15).
    pub schemas: bool,
    /// What is sent; `None` when it is nothing that walferry asks for.
    pub sends: Option<Publish>,
    /// `publish_via_partition_root`
    pub via_root: bool,
    /// Tables named one by one, by name.
    pub tables: Vec<PublishedTable>,
}

/// A table of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedTable {
    /// `pg_publication_rel.oid`: a table that leaves and comes back has another one.
    pub entry: u32,
    /// Its name.
    pub id: TableId,
    /// `pg_class.oid`
    pub oid: u32,
    /// The row filter, in PostgreSQL's own words.
    pub row_filter: Option<String>,
    /// Columns that the row filter names.
    pub filter_columns: Vec<String>,
    /// The column list, if it has one.
    pub columns: Option<ColumnList>,
    /// Functions of the row filter that fail for some arguments.
    pub may_fail: Vec<String>,
}

/// The columns of a table that a publication sends, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnList {
    /// Their names now.
    pub names: Vec<String>,
    /// Their numbers (`pg_attribute.attnum`), which a rename keeps.
    pub attnums: Vec<i16>,
}

impl ColumnList {
    /// What it has too much or too little for this table's mirrored columns; `None` when it has just these.
    pub fn misfit(&self, table: &TableSchema) -> Option<String> {
        let mirrored = || table.columns.iter().filter(|column| !column.dropped);
        if let Some(lacking) = mirrored().find(|column| !self.attnums.contains(&column.attnum)) {
            return Some(format!("the column list lacks {}", lacking.name));
        }
        let is_mirrored = |attnum: &i16| mirrored().any(|column| column.attnum == *attnum);
        let mut listed = self.attnums.iter().zip(&self.names);
        let (_, more) = listed.find(|(attnum, _)| !is_mirrored(attnum))?;
        Some(format!("the column list has {more}, which is not mirrored"))
    }
}

/// Row filters, column lists and whole schemas exist since PostgreSQL 15.
fn has_filters(server_version: u32) -> bool {
    server_version >= 150_000
}

fn publication_statement(server_version: u32) -> String {
    let schemas = if has_filters(server_version) {
        "EXISTS (SELECT FROM pg_publication_namespace WHERE pnpubid = p.oid)"
    } else {
        "false"
    };
    format!(
        "SELECT p.oid, obj_description(p.oid, 'pg_publication'), pg_get_userbyid(p.pubowner)::text, \
         pg_has_role(p.pubowner, 'USAGE') AND NOT pg_is_in_recovery(), p.puballtables, {schemas}, \
         p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot \
         FROM pg_publication p WHERE p.pubname::text = $1::text"
    )
}

/// Functions that are not leakproof may raise an error that depends on their arguments. Those left out here
/// raise none, or only for a pattern, which is nearly always a constant.
const MAY_FAIL: &str = "ARRAY(SELECT p.proname::text FROM regexp_matches(r.prqual::text, ':(?:op)?funcid (\\d+)', 'g') AS found (oids) \
JOIN pg_proc p ON p.oid = found.oids[1]::oid WHERE NOT p.proleakproof \
AND p.proname !~ '^(numeric|date|timestamp|timestamptz|enum|array|range|multirange|jsonb|tsvector|tsquery|record|bit|varbit|network)_(eq|ne|lt|le|gt|ge)(_[a-z]+)?$' \
AND p.proname !~ '^(text|bpchar|name|texti|bpchari|namei|textreg|texticreg)n?(like|clike|cnlike|exeq|exne|regexeq|regexne|icregexeq|icregexne)$' \
AND p.proname <> ALL ('{lower,upper,initcap,btrim,ltrim,rtrim,length,char_length,character_length,octet_length,left,right,starts_with,md5,\
jsonb_exists,jsonb_exists_any,jsonb_exists_all,jsonb_contains,jsonb_contained,jsonb_object_field,jsonb_object_field_text,jsonb_array_element,\
jsonb_array_element_text,arraycontains,arraycontained,arrayoverlap,cardinality,range_contains_elem,range_contains,range_overlaps}'::text[]) \
AND NOT EXISTS (SELECT FROM pg_cast WHERE castfunc = p.oid AND castcontext = 'i') \
ORDER BY 1)";

/// `pg_depend` does not distinguish the columns of a row filter from those of a column list.
const FILTER_COLUMNS: &str = "ARRAY(SELECT DISTINCT a.attname::text FROM regexp_matches(r.prqual::text, ':varattno (\\d+)', 'g') AS found (attnums) \
JOIN pg_attribute a ON a.attrelid = r.prrelid AND a.attnum = found.attnums[1]::int2 ORDER BY 1)";

fn tables_statement(server_version: u32) -> String {
    let may_fail = if has_filters(server_version) { MAY_FAIL } else { "ARRAY[]::text[]" };
    let (filter, columns) = if has_filters(server_version) {
        (
            "pg_get_expr(r.prqual, r.prrelid)",
            "(SELECT array_agg(a.attname::text ORDER BY a.attnum) FROM pg_attribute a \
             WHERE a.attrelid = r.prrelid AND a.attnum = ANY (r.prattrs))",
        )
    } else {
        ("NULL::text", "NULL::text[]")
    };
    let (attnums, filter_columns) = if has_filters(server_version) {
        ("(SELECT array_agg(n ORDER BY n) FROM unnest(r.prattrs::int2[]) AS n)", FILTER_COLUMNS)
    } else {
        ("NULL::int2[]", "ARRAY[]::text[]")
    };
    format!(
        "SELECT n.nspname::text, c.relname::text, c.oid, {filter}, {columns}, \
         {filter_columns}, r.oid, {may_fail}, {attnums} \
         FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE r.prpubid = $1 ORDER BY 1, 2"
    )
}

/// Reads a publication; `None` when there is none of that name.
///
/// # Errors
/// [`Error`] of the queries.
pub async fn read(session: &Session, name: &str) -> Result<Option<Publication>, Error> {
    let version = session.server_version_num();
    let Some(row) = session.client.query_opt(&publication_statement(version), &[&name]).await? else {
        return Ok(None);
    };
    let oid: u32 = row.try_get(0)?;
    let tables = session.client.query(&tables_statement(version), &[&oid]).await?;
    let comment: Option<String> = row.try_get(1)?;
    Ok(Some(Publication {
        oid,
        owned_by_us: comment.is_some_and(|comment| comment.starts_with(COMMENT_PREFIX)),
        owner: row.try_get(2)?,
        may_alter: row.try_get(3)?,
        all_tables: row.try_get(4)?,
        schemas: row.try_get(5)?,
        sends: Publish::from_options(row.try_get(6)?, row.try_get(7)?, row.try_get(8)?, row.try_get(9)?),
        via_root: row.try_get(10)?,
        tables: tables.iter().map(published_table).collect::<Result<_, _>>()?,
    }))
}

fn published_table(row: &Row) -> Result<PublishedTable, Error> {
    Ok(PublishedTable {
        id: TableId::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?),
        oid: row.try_get(2)?,
        row_filter: row.try_get(3)?,
        columns: column_list(row)?,
        filter_columns: row.try_get(5)?,
        entry: row.try_get(6)?,
        may_fail: row.try_get(7)?,
    })
}

fn column_list(row: &Row) -> Result<Option<ColumnList>, Error> {
    let (names, attnums): (Option<Vec<String>>, Option<Vec<i16>>) = (row.try_get(4)?, row.try_get(8)?);
    Ok(names.zip(attnums).map(|(names, attnums)| ColumnList { names, attnums }))
}

/// A table alone: without ONLY, tables that inherit from it come and go with it. A partitioned table's
/// partitions are part of it.
fn only(table: &TableId) -> String {
    format!("ONLY {}", quote::table(table))
}

/// How a table is to be published.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// The table with its row filter.
    pub table: &'a TableSchema,
    /// Whether with a list of its mirrored columns.
    pub listed: bool,
}

/// A table with its column list and row filter, as a publication takes it.
fn member(Member { table, listed }: Member<'_>) -> String {
    let columns = table.columns.iter().filter(|column| !column.dropped);
    let columns: Vec<String> = columns.map(|column| quote::ident(&column.name)).collect();
    let list = if listed { format!(" ({})", columns.join(", ")) } else { String::new() };
    let name = only(&table.id);
    match &table.row_filter {
        // A comment at the filter's end must not swallow what follows.
        Some(filter) => format!("{name}{list} WHERE ({filter}\n)"),
        None => format!("{name}{list}"),
    }
}

/// The statements that have a table published with a list of its mirrored columns, in one transaction. Who
/// writes to it is waited for: what a transaction wrote before would be sent by the list of before.
pub fn list_statements(name: &str, table: &TableSchema) -> Vec<String> {
    let lock = format!("LOCK TABLE {} IN SHARE MODE", quote::table(&table.id));
    let altered = alter_statements(name, &[], &[], &[Member { table, listed: true }]);
    std::iter::once(lock).chain(altered).collect()
}

fn members<'a>(tables: impl IntoIterator<Item = Member<'a>>) -> String {
    tables.into_iter().map(member).collect::<Vec<_>>().join(", ")
}

fn unlisted(table: &TableSchema) -> Member<'_> {
    Member { table, listed: false }
}

pub(crate) fn create_statement(name: &str, publish: Publish, tables: &[TableSchema]) -> String {
    let members = if tables.is_empty() {
        String::new()
    } else {
        format!(" FOR TABLE {}", members(tables.iter().map(unlisted)))
    };
    format!(
        "CREATE PUBLICATION {}{members} WITH (publish = '{}', publish_via_partition_root = true)",
        quote::ident(name),
        publish.option()
    )
}

pub(crate) fn comment_statement(name: &str, comment: &str) -> String {
    format!("COMMENT ON PUBLICATION {} IS {}", quote::ident(name), quote::literal(comment))
}

/// A filter can only be changed for all tables together, or by dropping and adding its table in one
/// transaction.
pub fn alter_statements(
    name: &str,
    add: &[&TableSchema],
    drop: &[TableId],
    reset: &[Member<'_>],
) -> Vec<String> {
    let publication = quote::ident(name);
    let leaving: Vec<_> = drop.iter().chain(reset.iter().map(|reset| &reset.table.id)).map(only).collect();
    let joining: Vec<_> = reset.iter().copied().chain(add.iter().map(|table| unlisted(table))).collect();
    let mut statements = Vec::new();
    if !leaving.is_empty() {
        statements.push(format!("ALTER PUBLICATION {publication} DROP TABLE {}", leaving.join(", ")));
    }
    if !joining.is_empty() {
        statements.push(format!("ALTER PUBLICATION {publication} ADD TABLE {}", members(joining)));
    }
    statements
}

/// Makes the publication with its comment, which says that it is ours, in one transaction.
///
/// The session must be in no transaction and used by nothing else meanwhile.
///
/// # Errors
/// [`Error::Standby`]; else [`Error`] of the statements: 42710 it exists, 42501 the role doesn't own a table
/// or may not create in the database.
pub async fn create(
    session: &Session,
    name: &str,
    publish: Publish,
    tables: &[TableSchema],
    comment: &str,
) -> Result<(), Error> {
    in_transaction(session, &[create_statement(name, publish, tables), comment_statement(name, comment)])
        .await
}

/// Adds and removes tables, and gives `reset` their current row filter and column list, in one transaction.
///
/// Transactions that wrote to an added table before are not in the stream: see
/// [`super::catalog::lock_holders`]. The session must be in no transaction and used by nothing else
/// meanwhile.
///
/// # Errors
/// [`Error::Standby`]; [`Error::NotOwner`]; else [`Error`] of the statements.
pub async fn alter(
    session: &Session,
    name: &str,
    add: &[&TableSchema],
    drop: &[TableId],
    reset: &[Member<'_>],
) -> Result<(), Error> {
    let statements = alter_statements(name, add, drop, reset);
    match in_transaction(session, &statements).await {
        Err(error) if error.sqlstate() == Some(INSUFFICIENT_PRIVILEGE) => {
            let tables: Vec<u32> = add
                .iter()
                .copied()
                .chain(reset.iter().map(|reset| reset.table))
                .map(|table| table.oid)
                .collect();
            Err(Error::NotOwner {
                publication: name.to_owned(),
                owners: missing_owners(session, name, &tables).await?,
                statements: transaction(&statements),
            })
        }
        altered => altered,
    }
}

/// The statements in one transaction, for another client to run.
pub fn transaction(statements: &[String]) -> String {
    format!("BEGIN; {}; COMMIT;", statements.join("; "))
}

/// The owners of a publication and of tables whose privileges the session's role doesn't have, as `a and b`.
async fn missing_owners(session: &Session, name: &str, tables: &[u32]) -> Result<String, Error> {
    let sql = "SELECT coalesce(string_agg(DISTINCT pg_get_userbyid(o.owner)::text, ' and '), 'a superuser') FROM ( \
               SELECT pubowner FROM pg_publication WHERE pubname::text = $1::text UNION \
               SELECT relowner FROM pg_class WHERE oid = ANY ($2)) AS o (owner) WHERE NOT pg_has_role(o.owner, 'USAGE')";
    Ok(session.client.query_one(sql, &[&name, &tables]).await?.try_get(0)?)
}

/// Drops a publication; `false` when it was not there.
///
/// # Errors
/// [`Error::Standby`]; else [`Error`] of the statement.
pub async fn drop(session: &Session, name: &str) -> Result<bool, Error> {
    match session.client.execute(&drop_statement(name), &[]).await.map_err(Error::from) {
        Ok(_) => Ok(true),
        Err(error) if error.sqlstate() == Some("42704") => Ok(false),
        Err(error) if error.is_standby_error() => Err(Error::Standby { statements: drop_statement(name) }),
        Err(error) => Err(error),
    }
}

pub(crate) fn drop_statement(name: &str) -> String {
    format!("DROP PUBLICATION {}", quote::ident(name))
}

/// What PostgreSQL makes of a table's row filter: its normal form, which can be compared with a
/// publication's, and the columns it names. A publication is created for that and rolled back; no other
/// session ever sees it.
///
/// The session must be in no transaction and used by nothing else meanwhile.
///
/// # Errors
/// [`Error::Standby`]; else [`Error`] of the statements: the filter isn't valid; 42501 when the role doesn't
/// own the table or may not create.
pub async fn probe(session: &Session, table: &TableSchema) -> Result<PublishedTable, Error> {
    // A writer is never waited for (the lock is SHARE UPDATE EXCLUSIVE), but a VACUUM or ALTER TABLE would
    // be.
    let statement = create_statement(PROBE, Publish::Everything, std::slice::from_ref(table));
    begin(session, std::slice::from_ref(&statement)).await?;
    session.client.batch_execute("SET LOCAL lock_timeout = '10s'").await?;
    let probed = async {
        execute(session, &statement).await?;
        read(session, PROBE).await
    }
    .await;
    session.client.batch_execute("ROLLBACK").await?;
    probed?
        .and_then(|publication| publication.tables.into_iter().next())
        .ok_or_else(|| Error::Protocol("a publication just made is not in the catalog".to_owned()))
}

/// The columns of a table that a row filter may name: only types that come with the server are allowed in
/// one.
const FILTERED_COLUMNS: &str = "\
SELECT attname::text, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped AND atttypid < 16384 ORDER BY attnum";

/// The statement that shows what PostgreSQL makes of a row filter, on rows of no table: they have `columns`,
/// each a name with a type. Two rows are not simplified to constants.
fn explain_statement(table: &TableId, columns: &[(String, String)], filter: &str) -> String {
    let list =
        |each: &dyn Fn(&(String, String)) -> String| columns.iter().map(each).collect::<Vec<_>>().join(", ");
    let row = list(&|(_, type_name)| format!("NULL::{type_name}"));
    let names = list(&|(name, _)| quote::ident(name));
    // A comment at the end of the filter would hide the parenthesis.
    format!(
        "EXPLAIN (COSTS OFF) SELECT FROM (VALUES ({row}), ({row})) AS {} ({names}) WHERE ({filter}\n)",
        quote::ident(&table.name)
    )
}

/// Whether PostgreSQL makes the same of two row filters of a table. It takes no privilege on the table, and
/// no transaction that may write.
///
/// # Errors
/// [`Error`] of the statements: a filter isn't valid.
pub async fn filters_agree(
    session: &Session,
    table: &TableSchema,
    one: &str,
    other: &str,
) -> Result<bool, Error> {
    let rows = session.client.query(FILTERED_COLUMNS, &[&table.oid]).await?;
    let column = |row: &Row| Ok::<_, Error>((row.try_get(0)?, row.try_get(1)?));
    let columns: Vec<(String, String)> = rows.iter().map(column).collect::<Result<_, _>>()?;
    let explained = async |filter: &str| {
        let statement = explain_statement(&table.id, &columns, filter);
        let rows = session.client.query(&statement, &[]).await.map_err(Error::of_statement)?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect::<Result<Vec<String>, Error>>()
    };
    Ok(explained(one).await? == explained(other).await?)
}

/// Begins a transaction for these statements, whatever the role's default is.
async fn begin(session: &Session, statements: &[String]) -> Result<(), Error> {
    let begun = session.client.batch_execute("BEGIN READ WRITE").await.map_err(Error::from);
    begun.map_err(|error| match error.is_standby_error() {
        true => Error::Standby { statements: statements.join("; ") },
        false => error,
    })
}

async fn in_transaction(session: &Session, statements: &[String]) -> Result<(), Error> {
    begin(session, statements).await?;
    for statement in statements {
        if let Err(error) = execute(session, statement).await {
            // The first error is reported; where the rollback fails too, the connection is gone and with it
            // the transaction.
            if let Err(error) = session.client.batch_execute("ROLLBACK").await {
                tracing::debug!(%error, "rollback failed");
            }
            return Err(error);
        }
    }
    Ok(session.client.batch_execute("COMMIT").await?)
}

/// Runs one statement by the extended protocol, which takes no second one that a row filter might smuggle in.
async fn execute(session: &Session, statement: &str) -> Result<(), Error> {
    session.client.execute(statement, &[]).await.map(std::mem::drop).map_err(Error::of_statement)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, SourceType};

    fn table(name: &str, filter: Option<&str>) -> TableSchema {
        TableSchema {
            key: Vec::new(),
            order_by: Vec::new(),
            row_filter: filter.map(str::to_owned),
            ..TableSchema::new(TableId::new("public", name), Vec::new())
        }
    }

    #[test]
    fn creates_with_filters_all_operations_and_roots() {
        let tables =
            [table("users", None), table("Task\"Run", Some("\"projectId\" IS NOT NULL -- all of them"))];
        assert_eq!(
            create_statement("walferry_1f", Publish::Everything, &tables),
            "CREATE PUBLICATION \"walferry_1f\" FOR TABLE ONLY \"public\".\"users\", ONLY \"public\".\"Task\"\"Run\" \
             WHERE (\"projectId\" IS NOT NULL -- all of them\n) \
             WITH (publish = 'insert, update, delete, truncate', publish_via_partition_root = true)"
        );
        assert_eq!(
            create_statement("p", Publish::Inserts, &[]),
            "CREATE PUBLICATION \"p\" WITH (publish = 'insert, truncate', publish_via_partition_root = true)"
        );
        assert_eq!(
            comment_statement("walferry_1f", "walferry mirror 1f"),
            "COMMENT ON PUBLICATION \"walferry_1f\" IS 'walferry mirror 1f'"
        );
        assert_eq!(drop_statement("walferry_1f"), "DROP PUBLICATION \"walferry_1f\"");
    }

    #[test]
    fn alters_by_dropping_before_adding() {
        let (new, changed) = (table("new", None), table("changed", Some("id > 5")));
        assert_eq!(
            alter_statements("p", &[&new], &[TableId::new("public", "old")], &[unlisted(&changed)]),
            [
                "ALTER PUBLICATION \"p\" DROP TABLE ONLY \"public\".\"old\", ONLY \"public\".\"changed\"",
                "ALTER PUBLICATION \"p\" ADD TABLE ONLY \"public\".\"changed\" WHERE (id > 5\n), ONLY \"public\".\"new\"",
            ]
        );
        assert_eq!(alter_statements("p", &[], &[], &[]), Vec::<String>::new());
    }

    #[test]
    fn a_filter_is_explained_on_rows_of_no_table() {
        let columns = [("id", "integer"), ("v\"", "character varying(20)")];
        let columns = columns.map(|(name, type_name)| (name.to_owned(), type_name.to_owned()));
        assert_eq!(
            explain_statement(&TableId::new("public", "T"), &columns, "id > 5 -- ours"),
            "EXPLAIN (COSTS OFF) SELECT FROM (VALUES (NULL::integer, NULL::character varying(20)), \
             (NULL::integer, NULL::character varying(20))) AS \"T\" (\"id\", \"v\"\"\") WHERE (id > 5 -- ours\n)"
        );
    }

    #[test]
    fn a_column_list_has_the_mirrored_columns_and_no_other() {
        let column = |attnum, name: &str| Column { attnum, ..Column::new(name, SourceType::Text) };
        let schema = |columns| TableSchema::new(TableId::new("public", "t"), columns);
        let list = ColumnList { names: vec!["id".to_owned(), "v\"".to_owned()], attnums: vec![1, 3] };
        // A rename at the source changes the list's names only.
        assert_eq!(list.misfit(&schema(vec![column(1, "key"), column(3, "v\"")])), None);
        let dropped = Column { dropped: true, ..column(2, "gone") };
        assert_eq!(list.misfit(&schema(vec![column(1, "id"), dropped, column(3, "v\"")])), None);
        let added = schema(vec![column(1, "id"), column(3, "v\""), column(4, "new")]);
        assert_eq!(list.misfit(&added).as_deref(), Some("the column list lacks new"));
        let misfit = list.misfit(&schema(vec![column(1, "id")]));
        assert_eq!(misfit.as_deref(), Some("the column list has v\", which is not mirrored"));
        let filtered = TableSchema { row_filter: Some("id > 5".to_owned()), ..added };
        assert_eq!(
            list_statements("p", &filtered),
            [
                "LOCK TABLE \"public\".\"t\" IN SHARE MODE",
                "ALTER PUBLICATION \"p\" DROP TABLE ONLY \"public\".\"t\"",
                "ALTER PUBLICATION \"p\" ADD TABLE ONLY \"public\".\"t\" (\"id\", \"v\"\"\", \"new\") WHERE (id > 5\n)",
            ]
        );
    }

    #[test]
    fn asks_version_14_for_nothing_it_lacks() {
        assert_eq!(
            tables_statement(140_000),
            "SELECT n.nspname::text, c.relname::text, c.oid, NULL::text, NULL::text[], \
             ARRAY[]::text[], r.oid, ARRAY[]::text[], NULL::int2[] \
             FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.prpubid = $1 ORDER BY 1, 2"
        );
        assert!(tables_statement(150_000).contains("pg_get_expr(r.prqual, r.prrelid)"));
        assert!(!publication_statement(140_000).contains("pg_publication_namespace"));
        assert!(publication_statement(150_000).contains("pg_publication_namespace"));
    }
}
