//! The engine's contract, kept by a ClickHouse database: each failure says what was being done.

use std::ops::Range;

use super::{Database, borrowed};
use crate::{
    clickhouse::{
        Error, ddl,
        insert::{self, BlockInsert},
        native::BlockBuilder,
        state, target,
    },
    model::{TableSchema, Version},
    replication::{Destination, DestinationError, Rows, StateRow, StateRows, StateVersion},
};

impl Destination for Database {
    type Batch = BlockBuilder;
    type Insert = BlockInsert;

    fn batch(&self, table: &TableSchema) -> Result<BlockBuilder, DestinationError> {
        let doing = || format!("prepare rows for {}", self.qualified(table));
        let Some(version) = self.shared.version.get() else {
            let error =
                Error::Protocol("the server's release is not known yet; prepare comes first".to_owned());
            return Err(error.while_doing(&doing()));
        };
        let types = self.types(table, version.features()).map_err(|error| error.while_doing(&doing()))?;
        BlockBuilder::new(table, &types, self.shared.out_of_range)
            .map_err(|source| Error::Type { table: table.target.clone(), source }.while_doing(&doing()))
    }

    async fn prepare(&self) -> Result<(), DestinationError> {
        let work = async {
            self.version().await?;
            self.shared.client.execute(&state::create(&self.shared.database), &[]).await
        };
        let doing = format!("create the state table in {}", self.shared.database);
        work.await.map_err(|error: Error| error.while_doing(&doing))
    }

    async fn ensure_table(&self, table: &TableSchema) -> Result<(), DestinationError> {
        let doing = format!("create table {}", self.qualified(table));
        self.create_table(table).await.map_err(|error| self.refused(error, &doing, table))
    }

    async fn usable_targets(&self, tables: &[&TableSchema]) -> Result<Vec<bool>, DestinationError> {
        let doing = format!("read the target tables in {}", self.shared.database);
        self.which_stand(tables).await.map_err(|error| error.while_doing(&doing))
    }

    async fn add_columns(
        &self,
        table: &TableSchema,
        columns: &[usize],
    ) -> Result<Vec<usize>, DestinationError> {
        let work = async {
            let types = self.types(table, self.version().await?.features())?;
            let added = self.fit(table, &types, |index| columns.contains(&index)).await?;
            let there: Vec<usize> = columns.iter().filter(|index| !added.contains(index)).copied().collect();
            self.with_other_default(table, &types, &there).await
        };
        let doing = format!("change the columns of {}", self.qualified(table));
        work.await.map_err(|error: Error| self.refused(error, &doing, table))
    }

    async fn require_columns(&self, table: &TableSchema) -> Result<(), DestinationError> {
        let work = async {
            let types = self.types(table, self.version().await?.features())?;
            self.require_width(table, &types).await
        };
        let doing = format!("read the columns of {}", self.qualified(table));
        work.await.map_err(|error: Error| self.refused(error, &doing, table))
    }

    async fn insert(
        &self,
        table: &TableSchema,
        batch: &BlockBuilder,
        fence: &str,
    ) -> Result<(), DestinationError> {
        let mut insert = self.begin_insert(table, fence).await?;
        match insert.send_block(batch).await {
            Ok(()) => insert.end().await,
            Err(error) => Err(insert::refused(error, &self.shared.database, &table.target)),
        }
    }

    async fn open_insert(&self, table: &TableSchema, fence: &str) -> Result<BlockInsert, DestinationError> {
        self.begin_insert(table, fence).await
    }

    async fn newest_version(&self, table: &TableSchema, fence: &str) -> Result<Version, DestinationError> {
        let doing = format!("query the newest row of {}", self.qualified(table));
        let sql = ddl::newest_version(&self.shared.database, &table.target);
        self.ask_version(&sql, fence).await.map_err(|error| self.refused(error, &doing, table))
    }

    async fn newest_streamed_version(
        &self,
        table: &TableSchema,
        fence: &str,
    ) -> Result<Version, DestinationError> {
        let doing = format!("query the newest change of {}", self.qualified(table));
        let sql = ddl::newest_streamed_version(&self.shared.database, &table.target);
        self.ask_version(&sql, fence).await.map_err(|error| self.refused(error, &doing, table))
    }

    async fn delete(
        &self,
        table: &TableSchema,
        rows: Rows,
        versions: Range<Version>,
        fence: &str,
    ) -> Result<(), DestinationError> {
        let settings = insert::settings(Some(fence));
        let settings = borrowed(&settings);
        let sql = ddl::delete(&self.shared.database, table, rows, versions);
        let doing = format!("delete rows of older versions from {}", self.qualified(table));
        let done = self.shared.client.execute_long(&sql, &settings).await;
        done.map_err(|error| self.refused(error, &doing, table))
    }

    async fn empty(&self, table: &TableSchema, fence: &str) -> Result<(), DestinationError> {
        let doing = format!("empty {}", self.qualified(table));
        self.drop_parts(table, fence).await.map_err(|error| self.refused(error, &doing, table))
    }

    async fn await_fence(&self, fence: &str) -> Result<(), DestinationError> {
        let fence = insert::fence(fence);
        let settings = borrowed(&fence);
        let answer = self.shared.client.query_text("SELECT 1 FORMAT TabSeparated", &settings).await;
        answer.map(drop).map_err(|error| error.while_doing("end earlier inserts"))
    }

    async fn load_state(&self, mirror: &str, items: Option<&[&str]>) -> Result<StateRows, DestinationError> {
        let doing = format!("read {}.{}", self.shared.database, state::STATE_TABLE);
        self.read_state(mirror, items).await.map_err(|error| error.while_doing(&doing))
    }

    async fn save_state(
        &self,
        mirror: &str,
        rows: &[StateRow],
        version: StateVersion,
    ) -> Result<(), DestinationError> {
        let doing = format!("write {}.{}", self.shared.database, state::STATE_TABLE);
        self.write_state(mirror, rows, version).await.map_err(|error| error.while_doing(&doing))
    }

    async fn load_items(&self, prefix: &str) -> Result<Vec<(String, StateRow)>, DestinationError> {
        let doing = format!("read {}.{}", self.shared.database, state::STATE_TABLE);
        let sql = state::select_of_all(&self.shared.database, prefix);
        let work = async { state::parse_of_all(&self.shared.client.query_text(&sql, &[]).await?) };
        work.await.map_err(|error: Error| error.while_doing(&doing))
    }

    fn release_statement(&self, mirror: &str, item: &str) -> String {
        state::release(&self.shared.database, mirror, item)
    }

    async fn identities(&self, tables: &[&TableSchema]) -> Result<Vec<Option<String>>, DestinationError> {
        let doing = format!("read the target tables in {}", self.shared.database);
        let names: Vec<&str> = tables.iter().map(|table| table.target.as_str()).collect();
        let found = target::identities(&self.shared.client, &self.shared.database, &names).await;
        let mut found = found.map_err(|error| error.while_doing(&doing))?;
        Ok(names.into_iter().map(|name| found.remove(name)).collect())
    }

    async fn has_rows(&self, table: &TableSchema) -> Result<bool, DestinationError> {
        let sql = ddl::has_rows(&self.shared.database, &table.target);
        let doing = format!("query rows of {}", self.qualified(table));
        let answer = self.shared.client.query_text(&sql, &[]).await;
        answer.map(|rows| !rows.is_empty()).map_err(|error| error.while_doing(&doing))
    }

    async fn drop_state(&self, mirror: &str) -> Result<(), DestinationError> {
        let doing =
            format!("remove the records of {mirror} from {}.{}", self.shared.database, state::STATE_TABLE);
        let work = async {
            let found = match self.read_state(mirror, None).await {
                // Nothing was ever prepared here.
                Err(Error::Server { code: 60, .. }) => return Ok(()),
                records => records?,
            };
            let removed = |row: StateRow| StateRow { value: String::new(), ..row };
            let rows: Vec<StateRow> = found.rows.into_iter().map(removed).collect();
            self.write_state(mirror, &rows, found.newest.next_epoch(fastrand::u16(..))).await
        };
        work.await.map_err(|error: Error| error.while_doing(&doing))
    }
}
