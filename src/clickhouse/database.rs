//! The destination: a ClickHouse database behind the engine's contract.

mod contract;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::OnceCell;

use super::{
    Client, Error, ServerVersion, TableProblem, ddl, defaults,
    insert::{self, BlockInsert},
    state,
    target::{self, MissingParts, TargetTable},
    types::{ChType, Features, target_type},
};
use crate::{
    fault::Remedy,
    model::{ClickHouseEndpoint, OutOfRange, TableSchema, Version},
    replication::{DestinationError, StateRow, StateRows, StateVersion},
};

/// How long a replica may take to learn of a column's new type, and how often it is polled.
const WIDENED_WITHIN: Duration = Duration::from_secs(30);
const WIDENED_POLL: Duration = Duration::from_millis(100);

/// How long a column stays narrower than it was before that counts as a manual change.
const NARROW_FOR: Duration = Duration::from_secs(2);

/// ClickHouse's numbers of errors that are expected here.
const NO_SUCH_DATA_PART: i32 = 232;
const ACCESS_DENIED: i32 = 497;

/// A ClickHouse database that rows are replicated into. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub struct Database {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    database: String,
    out_of_range: OutOfRange,
    version: OnceCell<ServerVersion>,
}

impl Database {
    /// A database that is connected to when first used.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn new(endpoint: &ClickHouseEndpoint, out_of_range: OutOfRange) -> Result<Database, Error> {
        Ok(Database {
            shared: Arc::new(Shared {
                client: Client::new(endpoint)?,
                database: endpoint.database.clone(),
                out_of_range,
                version: OnceCell::new(),
            }),
        })
    }

    /// The client, for queries of one's own.
    pub fn client(&self) -> &Client {
        &self.shared.client
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.shared.database
    }

    /// The server's release, asked for once.
    ///
    /// # Errors
    /// As [`Client::server_version`]; [`Error::TooOld`] where the release lacks what walferry needs.
    pub async fn version(&self) -> Result<&ServerVersion, Error> {
        let probe = || async {
            let version = self.shared.client.server_version().await?;
            if version.is_supported() { Ok(version) } else { Err(Error::TooOld(version.text)) }
        };
        self.shared.version.get_or_try_init(probe).await
    }

    /// The types that a table's columns have at the destination.
    ///
    /// # Errors
    /// [`Error::Type`] where a column can't be stored as asked.
    pub fn types(&self, table: &TableSchema, features: Features) -> Result<Vec<ChType>, Error> {
        let columns = table.columns.iter().enumerate();
        columns
            .map(|(index, column)| {
                let key = table.key.contains(&index) || table.order_by.contains(&index);
                target_type(column, features, key)
            })
            .collect::<Result<_, _>>()
            .map_err(|source| Error::Type { table: table.target.clone(), source })
    }

    /// The shape of a table at the destination, `None` when it isn't there.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn target_table(&self, table: &str) -> Result<Option<TargetTable>, Error> {
        Ok(self.target_tables(&[table]).await?.remove(table))
    }

    /// The shapes of tables at the destination, by name; one that isn't there is not in the answer.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn target_tables(&self, tables: &[&str]) -> Result<HashMap<String, TargetTable>, Error> {
        target::read(&self.shared.client, &self.shared.database, tables).await
    }

    /// Whether a table is there, as far as the user may see it.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn has_table(&self, table: &str) -> Result<bool, Error> {
        let sql = ddl::is_listed(&self.shared.database, table);
        Ok(!self.shared.client.query_text(&sql, &[]).await?.is_empty())
    }

    /// Name and type of each column of a table at the destination, `None` when it isn't there.
    ///
    /// # Errors
    /// As [`Client::execute`].
    pub async fn target_columns(&self, table: &str) -> Result<Option<Vec<(String, String)>>, Error> {
        let found = self.target_table(table).await?;
        Ok(found
            .map(|found| found.columns.into_iter().map(|column| (column.name, column.column_type)).collect()))
    }

    async fn create_table(&self, table: &TableSchema) -> Result<(), Error> {
        let problem = |problem| Error::Table { table: table.target.clone(), problem };
        let features = self.version().await?.features();
        let types = self.types(table, features)?;
        ddl::validate(table, &types).map_err(problem)?;
        let sql = ddl::create_table(&self.shared.database, table, &types);
        let made = self.shared.client.execute(&sql, &type_settings(&types)).await;
        made.map_err(|error| error.of_creation(&table.target))?;
        self.fit(table, &types, |_| true).await?;
        self.require_readable(table, &[]).await
    }

    /// Refuses a table whose columns, except for those that are not there yet, can't all be read: a type that
    /// was changed there waits for values that don't fit it.
    async fn require_readable(&self, table: &TableSchema, absent: &[usize]) -> Result<(), Error> {
        let present = table.columns.iter().enumerate().filter(|(index, _)| !absent.contains(index));
        let names: Vec<&str> = present.map(|(_, column)| column.target_name.as_str()).collect();
        let Err(refusal) = self.read_columns(table, &names).await else { return Ok(()) };
        // A missing privilege, for one, says nothing of the columns; nor do damaged files.
        if !refusal.is_of_table() || refusal.is_damage() {
            return Err(refusal);
        }
        for name in names {
            if self.read_columns(table, &[name]).await.is_err_and(|error| error.is_of_table()) {
                let unreadable = ddl::discard_column(&self.shared.database, &table.target, name);
                let conflict = format!(
                    "column {name} can't be read at the target ({refusal}): a change of its type fails on old values"
                );
                return Err(Error::Table {
                    table: table.target.clone(),
                    problem: TableProblem::conflict(conflict)
                        .remedied(Remedy::run_at_destination(unreadable)),
                });
            }
        }
        Err(refusal)
    }

    /// Reads columns of as many rows as can be read in a moment.
    async fn read_columns(&self, table: &TableSchema, names: &[&str]) -> Result<(), Error> {
        let sql = ddl::read_columns(&self.shared.database, &table.target, names);
        let within = [("max_execution_time", "20"), ("timeout_overflow_mode", "break")];
        self.shared.client.query_text(&sql, &within).await.map(drop)
    }

    /// Has the server create a temporary table like the target, drops it immediately, and returns the
    /// statement by which the server shows it. `None` where the server, or the user's privileges, don't allow
    /// that.
    ///
    /// # Errors
    /// [`Error::Creation`] where the server refuses the table, and as [`Client::execute`].
    pub async fn try_definition(
        &self,
        table: &TableSchema,
        types: &[ChType],
    ) -> Result<Option<String>, Error> {
        let client = &self.shared.client;
        let session = insert::unique_token();
        let session: [(&str, &str); 2] = [("session_id", &session), ("session_timeout", "10")];
        let settings = [type_settings(types), session.to_vec()].concat();
        if let Err(error) = client.execute(&ddl::create_trial(table, types), &settings).await {
            // A server that makes no temporary table of this engine says nothing about this one.
            client.execute(&ddl::drop_trial(), &session).await.ok();
            let possible = client.execute(&ddl::create_plain_trial(), &[]).await;
            return if possible.is_ok() { Err(error.of_creation(&table.target)) } else { Ok(None) };
        }
        // Behind a balancer the session may be at another server.
        let shown = client.query_text(&ddl::show_trial(), &session).await.ok();
        client.execute(&ddl::drop_trial(), &session).await.ok();
        Ok(shown)
    }

    /// Gives the target what it lacks: width, and those of the columns that are `wanted`. Gives the columns
    /// that were added.
    async fn fit(
        &self,
        table: &TableSchema,
        types: &[ChType],
        wanted: impl Fn(usize) -> bool,
    ) -> Result<Vec<usize>, Error> {
        let mut missing = self.missing_parts(table, types).await?;
        if !missing.width.is_empty() {
            self.widen(table, types, &missing.width).await?;
        }
        missing.columns.retain(|index| wanted(*index));
        self.add_missing(table, types, &missing.columns).await?;
        Ok(missing.columns)
    }

    /// Which of these columns, all of them there, have another default than the one that old rows show at the
    /// source.
    async fn with_other_default(
        &self,
        table: &TableSchema,
        types: &[ChType],
        columns: &[usize],
    ) -> Result<Vec<usize>, Error> {
        let columns = columns.iter().filter_map(|index| {
            let (column, column_type) = table.columns.get(*index).zip(types.get(*index))?;
            Some((*index, column, column_type))
        });
        let columns: Vec<_> = columns.collect();
        if columns.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = columns.iter().map(|(_, column, _)| column.target_name.as_str()).collect();
        let sql = ddl::column_defaults(&self.shared.database, &table.target, &names);
        let answer = self.shared.client.query_text(&sql, &[]).await?;
        let there: Vec<ColumnDefault> = target::json_lines(&answer)?;
        let mut others = Vec::new();
        for (index, column, column_type) in columns {
            let wanted = defaults::expression(table, column, column_type, self.shared.out_of_range)?;
            let found = there.iter().find(|found| found.name == column.target_name);
            if found.map(|found| found.default_expression.as_str()) != Some(wanted.as_deref().unwrap_or("")) {
                others.push(index);
            }
        }
        Ok(others)
    }

    /// Makes columns wider: from then on they show the same values in the new type, while ClickHouse rewrites
    /// what is stored behind it.
    async fn widen(&self, table: &TableSchema, types: &[ChType], width: &[usize]) -> Result<(), Error> {
        let columns = chosen(table, types, width);
        let sql = ddl::modify_columns(&self.shared.database, &table.target, &columns);
        let mut settings = type_settings(types);
        // The rewrite of a large table takes longer than anybody waits here.
        settings.push(("alter_sync", "0"));
        if let Err(error) = self.shared.client.execute(&sql, &settings).await {
            return Err(error.unless_it_passes(|refusal| too_narrow(table, &sql, &refusal)));
        }
        let names: Vec<_> = columns.iter().map(|(name, _)| name).collect();
        tracing::info!(table = %self.qualified(table), columns = ?names, "made columns of the target wider");
        // A replica learns of it from ClickHouse Keeper; until then it would cut wide values short.
        let started = Instant::now();
        while !self.missing_parts(table, types).await?.width.is_empty() {
            if started.elapsed() > WIDENED_WITHIN {
                return Err(Error::Timeout { url: self.qualified(table), seconds: WIDENED_WITHIN.as_secs() });
            }
            tokio::time::sleep(WIDENED_POLL).await;
        }
        Ok(())
    }

    /// Gives columns room for NULL where they lack that alone, and refuses a table of which columns were made
    /// narrower.
    async fn require_width(&self, table: &TableSchema, types: &[ChType]) -> Result<(), Error> {
        let mut missing = self.missing_parts(table, types).await?;
        // A replica may not have heard yet that they were made wider.
        let started = Instant::now();
        while !missing.narrow.is_empty() && started.elapsed() < NARROW_FOR {
            tokio::time::sleep(WIDENED_POLL).await;
            missing = self.missing_parts(table, types).await?;
        }
        if !missing.narrow.is_empty() {
            return Err(self.narrowed(table, types, &missing.narrow));
        }
        if missing.width.is_empty() { Ok(()) } else { self.widen(table, types, &missing.width).await }
    }

    /// The fault of a target whose columns were made narrower.
    fn narrowed(&self, table: &TableSchema, types: &[ChType], narrow: &[usize]) -> Error {
        let columns = chosen(table, types, narrow);
        let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
        let conflict = format!(
            "{} was made narrower at the target than needed, so values may have been truncated",
            names.join(", ")
        );
        let widen = ddl::modify_columns(&self.shared.database, &table.target, &columns);
        let problem = TableProblem::conflict(conflict).remedied(Remedy::run_at_destination(widen));
        Error::Table { table: table.target.clone(), problem }
    }

    /// Refuses a target that does not fit its table as it is now. Nothing is changed there.
    ///
    /// # Errors
    /// [`Error::Table`] with what helps, or as [`Client::execute`].
    pub async fn require_fit(&self, table: &TableSchema, types: &[ChType]) -> Result<(), Error> {
        let missing = self.missing_parts(table, types).await?;
        if !missing.narrow.is_empty() {
            return Err(self.narrowed(table, types, &missing.narrow));
        }
        self.require_readable(table, &missing.columns).await
    }

    /// What the target lacks; an error where it doesn't fit otherwise.
    async fn missing_parts(&self, table: &TableSchema, types: &[ChType]) -> Result<MissingParts, Error> {
        let problem = |problem| Error::Table { table: table.target.clone(), problem };
        let Some(found) = self.target_table(&table.target).await? else {
            // A server with errors can omit a table from system.tables for a moment, and a failed table stays
            // failed.
            let sql = ddl::exists(&self.shared.database, &table.target);
            return Err(match self.shared.client.query_text(&sql, &[]).await?.trim() {
                "0" => problem(TableProblem::Missing),
                _ => {
                    Error::Protocol(format!("{} exists, but is not in system.tables", self.qualified(table)))
                }
            });
        };
        target::compare(&found, &self.shared.database, table, types).map_err(problem)
    }

    async fn add_missing(
        &self,
        table: &TableSchema,
        types: &[ChType],
        missing: &[usize],
    ) -> Result<(), Error> {
        let mut additions = Vec::new();
        for index in missing {
            let (Some(column), Some(column_type)) = (table.columns.get(*index), types.get(*index)) else {
                continue;
            };
            let default = defaults::expression(table, column, column_type, self.shared.out_of_range)?;
            additions.push((column.target_name.as_str(), column_type, default));
        }
        if additions.is_empty() {
            return Ok(());
        }
        let sql = ddl::add_columns(&self.shared.database, &table.target, &additions);
        self.shared.client.execute(&sql, &type_settings(types)).await
    }

    async fn which_stand(&self, tables: &[&TableSchema]) -> Result<Vec<bool>, Error> {
        let features = self.version().await?.features();
        let names: Vec<&str> = tables.iter().map(|table| table.target.as_str()).collect();
        let found = self.target_tables(&names).await?;
        let stands = |table: &&TableSchema| {
            let Some(found) = found.get(&table.target) else { return false };
            let Ok(types) = self.types(table, features) else { return false };
            target::compare(found, &self.shared.database, table, &types)
                .is_ok_and(|missing| missing == MissingParts::default())
        };
        Ok(tables.iter().map(stands).collect())
    }

    async fn begin_insert(&self, table: &TableSchema, fence: &str) -> Result<BlockInsert, DestinationError> {
        let settings = insert::settings(Some(fence));
        let settings = borrowed(&settings);
        let begun = self.shared.client.insert(&ddl::insert(&self.shared.database, table), &settings).await;
        let (database, table) = (self.shared.database.clone(), table.target.clone());
        let stream = begun.map_err(|error| insert::refused(error, &database, &table))?;
        Ok(BlockInsert { stream, database, table })
    }

    async fn ask_version(&self, sql: &str, fence: &str) -> Result<Version, Error> {
        let fence = insert::fence(fence);
        let settings = borrowed(&fence);
        let answer = self.shared.client.query_text(sql, &settings).await?;
        let version = answer.trim().parse();
        version
            .map(Version::from_number)
            .map_err(|_| Error::Protocol("a row's version is not a number".to_owned()))
    }

    /// Drops the parts that are there, by their names: a statement that runs late finds none of them.
    async fn drop_parts(&self, table: &TableSchema, fence: &str) -> Result<(), Error> {
        let (database, target) = (&self.shared.database, &table.target);
        let fence = insert::fence(fence);
        let settings = borrowed(&fence);
        loop {
            let answer = self.shared.client.query_text(&ddl::parts(database, target), &settings).await?;
            let parts: Vec<&str> = answer.lines().collect();
            if parts.is_empty() {
                return Ok(());
            }
            for part in parts {
                let sql = ddl::drop_part(database, target, part);
                match self.shared.client.execute(&sql, &settings).await {
                    // It was merged meanwhile: the next look finds what it has become.
                    Ok(()) | Err(Error::Server { code: NO_SUCH_DATA_PART, .. }) => {}
                    // The privilege to drop parts is optional.
                    Err(Error::Server { code: ACCESS_DENIED, .. }) => {
                        return self.shared.client.execute(&ddl::truncate(database, target), &settings).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    async fn read_state(&self, mirror: &str, items: Option<&[&str]>) -> Result<StateRows, Error> {
        let sql = state::select(&self.shared.database, mirror, items);
        state::parse(&self.shared.client.query_text(&sql, &[]).await?)
    }

    async fn write_state(&self, mirror: &str, rows: &[StateRow], version: StateVersion) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let settings = insert::settings(None);
        let settings = borrowed(&settings);
        let mut stream = self.shared.client.insert(&state::insert(&self.shared.database), &settings).await?;
        stream.send(state::body(mirror, rows, version)?.into()).await?;
        stream.end().await
    }

    fn qualified(&self, table: &TableSchema) -> String {
        format!("{}.{}", self.shared.database, table.target)
    }

    /// The fault of something that was done to a table.
    fn refused(&self, error: Error, doing: &str, table: &TableSchema) -> DestinationError {
        error.while_doing_to(doing, &self.shared.database, &table.target)
    }
}

/// Target names and types of these columns.
fn chosen<'a>(table: &'a TableSchema, types: &'a [ChType], columns: &[usize]) -> Vec<(&'a str, &'a ChType)> {
    let columns = columns.iter().filter_map(|index| table.columns.get(*index).zip(types.get(*index)));
    columns.map(|(column, column_type)| (column.target_name.as_str(), column_type)).collect()
}

/// A row of [`ddl::column_defaults`].
#[derive(serde::Deserialize)]
struct ColumnDefault {
    name: String,
    default_expression: String,
}

/// The fault of a table whose columns can't be made wider by us: also where a privilege is missing, because
/// another user can do it.
fn too_narrow(table: &TableSchema, sql: &str, refusal: &str) -> Error {
    let conflict = format!("columns are too narrow, and walferry may not change them ({refusal})");
    let problem = TableProblem::conflict(conflict).remedied(Remedy::run_at_destination(sql));
    Error::Table { table: table.target.clone(), problem }
}

/// Settings without which a release refuses a type that it has.
fn type_settings(types: &[ChType]) -> Vec<(&'static str, &'static str)> {
    let time64 = types.iter().any(|column_type| {
        let element = match column_type.inner() {
            ChType::Array(element) => element.inner(),
            other => other,
        };
        matches!(element, ChType::Time64(_))
    });
    if time64 { vec![("enable_time_time64_type", "1")] } else { Vec::new() }
}

/// Settings as the client takes them.
fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}
