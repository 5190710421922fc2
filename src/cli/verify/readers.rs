//! Reads one table on both sides with the statements of its plan.

use std::collections::HashMap;

use super::{
    error::VerifyError,
    plan::TablePlan,
    rows::{self, Key, Row, SourceRows, TargetRows},
};
use crate::{
    clickhouse::{Database, layout::OwnColumn, types::ChType},
    model::PostgresEndpoint,
    postgres::wire::{Connection, Purpose},
};

/// Where a table's rows are read from.
pub(super) struct TableReaders<'a> {
    pub(super) plan: &'a TablePlan,
    pub(super) source: &'a PostgresEndpoint,
    pub(super) application: &'a str,
    pub(super) database: &'a Database,
}

impl TableReaders<'_> {
    /// A connection to the source for COPY.
    pub(super) async fn connect(&self) -> Result<Connection, VerifyError> {
        Ok(Connection::connect(self.source, self.application, Purpose::Copy).await?)
    }

    /// All rows of the source, by key.
    pub(super) async fn source_in_order<'c>(
        &self,
        connection: &'c mut Connection,
    ) -> Result<SourceRows<'c>, VerifyError> {
        self.source_rows(connection, &self.plan.source_in_order()).await
    }

    /// Rows of the source.
    pub(super) async fn source_rows<'c>(
        &self,
        connection: &'c mut Connection,
        statement: &str,
    ) -> Result<SourceRows<'c>, VerifyError> {
        SourceRows::new(self.plan, connection.copy_out(statement).await?)
    }

    /// All rows of the destination, by key.
    pub(super) async fn target_in_order(&self) -> Result<TargetRows, VerifyError> {
        self.target_rows(&self.plan.target_in_order()).await
    }

    /// Rows of the destination.
    pub(super) async fn target_rows(&self, query: &str) -> Result<TargetRows, VerifyError> {
        self.rows_of(self.plan.types.clone(), query).await
    }

    /// Changes at the destination, each with its sign.
    pub(super) async fn target_changes(&self, query: &str) -> Result<TargetRows, VerifyError> {
        let types = self.plan.types.iter().cloned().chain([OwnColumn::Sign.column_type()]);
        self.rows_of(types.collect(), query).await
    }

    async fn rows_of(&self, types: Vec<ChType>, query: &str) -> Result<TargetRows, VerifyError> {
        let stream = self.database.client().query_stream(query, &self.plan.target_settings()).await?;
        Ok(TargetRows::new(types, stream))
    }

    /// The source's rows with these keys.
    pub(super) async fn source_by_key(
        &self,
        connection: &mut Connection,
        keys: &[Key],
    ) -> Result<HashMap<Key, Vec<Row>>, VerifyError> {
        let rows = self.source_rows(connection, &self.plan.source_by_key(keys)).await?;
        rows::collect(self.plan, rows).await
    }

    /// The destination's rows with these keys.
    pub(super) async fn target_by_key(&self, keys: &[Key]) -> Result<HashMap<Key, Vec<Row>>, VerifyError> {
        rows::collect(self.plan, self.target_rows(&self.plan.target_by_key(keys)).await?).await
    }
}
