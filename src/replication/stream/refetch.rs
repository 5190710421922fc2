//! Fetches rows by key, for values that an UPDATE did not send because they lie unchanged in TOAST storage.

use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::Semaphore;

use crate::{
    model::{Cell, CellKind, Lsn, PostgresEndpoint, TableId, TableSchema, Tuple, lock},
    postgres::{self, catalog, refetch, session::Session, visibility},
    replication::{
        Error,
        table::{
            describe,
            record::TableRecord,
            schema::{self, ColumnNames},
        },
    },
};

/// Sessions at the same time: a table that is locked at the source must not keep the others waiting.
const SESSIONS: usize = 4;

/// Bytes of rows that are held at the same time, but for one row that is longer.
const BUDGET: usize = 8 << 20;

/// How often the source is asked whether a transaction is visible.
const POLL: Duration = Duration::from_millis(20);

/// Sessions that fetch rows, made at first use and again after a fault.
pub(in crate::replication) struct RowFetcher {
    endpoint: PostgresEndpoint,
    application_name: String,
    permits: Semaphore,
    idle: Mutex<Vec<Session>>,
}

impl RowFetcher {
    pub(in crate::replication) fn new(endpoint: PostgresEndpoint, application_name: String) -> Self {
        RowFetcher { endpoint, application_name, permits: Semaphore::new(SESSIONS), idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Session>> {
        lock(&self.idle)
    }

    async fn session(&self) -> Result<Session, postgres::Error> {
        let idle = self.idle().pop();
        match idle {
            Some(session) => Ok(session),
            None => Session::connect_for_rows(&self.endpoint, &self.application_name).await,
        }
    }

    /// Waits until the source shows what these transactions did.
    pub(super) async fn wait_until_visible(
        &self,
        table: &TableId,
        transactions: &[u32],
    ) -> Result<(), Error> {
        let mut logged = false;
        loop {
            let session = self.session().await?;
            let visible = visibility::sees(&session, transactions).await?;
            self.idle().push(session);
            if visible {
                return Ok(());
            }
            if !std::mem::replace(&mut logged, true) {
                tracing::debug!(%table, "waits for a commit that the source does not show yet");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The present rows with the keys of `tuples`, in their order; `None` where there is none any more. Where
    /// they are large, those of the first tuples alone, at least one.
    pub(super) async fn fetch(
        &self,
        record: &TableRecord,
        schema: &TableSchema,
        tuples: &[Tuple<'_>],
    ) -> Result<Vec<Option<FreshRow>>, Error> {
        if tuples.is_empty() {
            return Ok(Vec::new());
        }
        let _permit = self.permits.acquire().await.map_err(|closed| Error::Task(closed.to_string()))?;
        let session = self.session().await?;
        let (rows, session) = match self.fetch_with(session, schema, tuples).await {
            Ok((rows, session)) => match check_columns(&session, schema).await? {
                ColumnNames::Same => (rows, session),
                ColumnNames::Renamed => self.fetch_renamed(session, record, schema, tuples).await?,
                ColumnNames::Retyped => {
                    return Err(Error::recopy(&schema.id, "a column changed its type"));
                }
            },
            // The rows came before a column went or got another name; the stream has not said so yet.
            Err(error) if describe::outdated(&error) => {
                self.fetch_renamed(self.session().await?, record, schema, tuples).await?
            }
            Err(error) => return Err(error.into()),
        };
        self.idle().push(session);
        Ok(rows.into_iter().map(|row| row.map(|(data, cells)| FreshRow { data, cells })).collect())
    }

    /// The rows, and a session that is free.
    async fn fetch_with(
        &self,
        session: Session,
        schema: &TableSchema,
        tuples: &[Tuple<'_>],
    ) -> Result<(Vec<Option<refetch::OwnedRow>>, Session), postgres::Error> {
        let (rows, session) = refetch::read(session, schema, tuples, BUDGET).await?;
        match session {
            Some(session) => Ok((rows, session)),
            None => Ok((rows, self.session().await?)),
        }
    }

    /// A position of the log that lies behind all that was fetched before.
    pub(super) async fn read_lsn(&self) -> Result<Lsn, Error> {
        let session = self.session().await?;
        let position = catalog::read_lsn(&session).await?;
        self.idle().push(session);
        Ok(position)
    }

    async fn fetch_renamed(
        &self,
        session: Session,
        record: &TableRecord,
        schema: &TableSchema,
        tuples: &[Tuple<'_>],
    ) -> Result<(Vec<Option<refetch::OwnedRow>>, Session), Error> {
        let now = schema::rename_to_current(schema, &describe::describe(&session, record).await?.schema);
        let (rows, session) = self.fetch_with(session, &now, tuples).await?;
        match check_columns(&session, &now).await? {
            ColumnNames::Same => Ok((rows, session)),
            _ => Err(Error::recopy(&schema.id, "its columns changed while values were fetched")),
        }
    }
}

/// Checked after the fetch, so that names which changed before it are noticed.
async fn check_columns(session: &Session, schema: &TableSchema) -> Result<ColumnNames, Error> {
    Ok(schema::check_columns(schema, &catalog::live_columns(session, schema.oid).await?))
}

/// Values of one fetched row, in the schema's column order.
pub(super) struct FreshRow {
    data: Vec<u8>,
    cells: Vec<Cell>,
}

impl FreshRow {
    /// Writes `tuple` with its unchanged values taken from this row.
    pub(super) fn fill(&self, tuple: Tuple<'_>, data: &mut Vec<u8>, cells: &mut Vec<Cell>) {
        data.clear();
        cells.clear();
        let fresh = Tuple { data: &self.data, cells: &self.cells };
        for (index, cell) in tuple.cells.iter().enumerate() {
            let (kind, bytes) = match (cell.kind, self.cells.get(index)) {
                (CellKind::Unchanged, Some(own)) => (own.kind, fresh.bytes(index)),
                (kind, _) => (kind, tuple.bytes(index)),
            };
            let start = u32::try_from(data.len()).unwrap_or(u32::MAX);
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            data.extend_from_slice(bytes);
            cells.push(Cell { kind, start, len });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(kind: CellKind, start: u32, len: u32) -> Cell {
        Cell { kind, start, len }
    }

    #[test]
    fn a_fresh_row_fills_only_what_is_missing() {
        let cells = [cell(CellKind::Text, 0, 3), cell(CellKind::Unchanged, 0, 0)];
        let fresh = FreshRow {
            data: b"oldnew".to_vec(),
            cells: vec![cell(CellKind::Text, 0, 3), cell(CellKind::Text, 3, 3)],
        };
        let (mut data, mut filled) = (Vec::new(), Vec::new());
        fresh.fill(Tuple { data: b"abc", cells: &cells }, &mut data, &mut filled);
        let tuple = Tuple { data: &data, cells: &filled };
        assert_eq!((tuple.bytes(0), tuple.bytes(1)), (&b"abc"[..], &b"new"[..]));
    }
}
