//! Reads rows again by key, for values that an UPDATE did not send because they lie unchanged in TOAST storage.

use tokio::sync::Mutex;

use super::{Error, schema_change};
use crate::{
    model::{Cell, CellKind, PostgresEndpoint, TableSchema, TableSpec, Tuple},
    postgres::{reread, session::Session},
};

/// One connection for re-reads, made at first use and again after a fault.
pub(super) struct Rereader {
    endpoint: PostgresEndpoint,
    application_name: String,
    session: Mutex<Option<Session>>,
}

impl Rereader {
    pub(super) fn new(endpoint: PostgresEndpoint, application_name: String) -> Self {
        Rereader { endpoint, application_name, session: Mutex::default() }
    }

    /// The present rows with the keys of `tuples`, in their order; `None` where there is none any more.
    pub(super) async fn read(
        &self,
        spec: &TableSpec,
        schema: &TableSchema,
        tuples: &[Tuple<'_>],
    ) -> Result<Vec<Option<FreshRow>>, Error> {
        if tuples.is_empty() {
            return Ok(Vec::new());
        }
        let mut slot = self.session.lock().await;
        let session = match slot.take() {
            Some(session) => session,
            None => Session::connect(&self.endpoint, &self.application_name).await?,
        };
        let rows = match reread::read(&session, schema, tuples).await {
            // The rows came before a column went or got another name; the stream has not said so yet.
            Err(error) if schema_change::outdated(&error) => {
                let now = schema_change::catch_up(&session, spec, schema).await?;
                reread::read(&session, &now, tuples).await?
            }
            other => other?,
        };
        *slot = Some(session);
        Ok(rows.into_iter().map(|row| row.map(|(data, cells)| FreshRow { data, cells })).collect())
    }
}

/// Values of one re-read row, in the schema's column order.
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
