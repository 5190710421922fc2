//! Rows of either side, in chunks of the form they are compared in.

use std::collections::HashMap;

use super::{error::VerifyError, plan::TablePlan};
use crate::{
    clickhouse::{
        QueryStream,
        native::{BlockBuilder, Rows},
        types::ChType,
    },
    model::{Cell, CellKind, Position, Tuple},
    postgres::{pgoutput::decode_copy_row, wire::CopyOut},
    replication::{Op, TableBatch},
};

/// A chunk holds at most this many rows …
const CHUNK_ROWS: usize = 4096;
/// … or ends with the row that reaches this many bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// A key's values, as the destination stores them.
pub(super) type Key = Vec<Vec<u8>>;
/// A row's values, as the destination stores them.
pub(super) type Row = Vec<Vec<u8>>;

/// Rows of one side, chunk by chunk.
pub(super) trait Chunks {
    /// The next rows, at least one; `None` at the end.
    async fn next(&mut self) -> Result<Option<Rows>, VerifyError>;
}

/// The source's rows, encoded as they are for the destination.
pub(super) struct SourceRows<'a> {
    copy: CopyOut<'a>,
    kinds: Vec<CellKind>,
    cells: Vec<Cell>,
    builder: BlockBuilder,
}

impl<'a> SourceRows<'a> {
    pub(super) fn new(plan: &TablePlan, copy: CopyOut<'a>) -> Result<SourceRows<'a>, VerifyError> {
        Ok(SourceRows { copy, kinds: plan.cell_kinds(), cells: Vec::new(), builder: plan.builder()? })
    }
}

impl Chunks for SourceRows<'_> {
    async fn next(&mut self) -> Result<Option<Rows>, VerifyError> {
        self.builder.clear();
        while self.builder.rows() < CHUNK_ROWS && self.builder.bytes() < CHUNK_BYTES {
            let Some(data) = self.copy.next().await? else { break };
            decode_copy_row(data, &self.kinds, &mut self.cells).map_err(crate::postgres::Error::from)?;
            self.builder.push(Tuple { data, cells: &self.cells }, Position::default(), Op::Upsert)?;
        }
        Ok((self.builder.rows() > 0).then(|| self.builder.to_rows()))
    }
}

/// The destination's rows.
pub(super) struct TargetRows {
    /// Of the query's columns.
    types: Vec<ChType>,
    stream: QueryStream,
    /// The beginning of a row whose rest is still to come, after a chunk; before it, what has been received.
    body: Vec<u8>,
}

impl TargetRows {
    pub(super) fn new(types: Vec<ChType>, stream: QueryStream) -> TargetRows {
        TargetRows { types, stream, body: Vec::new() }
    }
}

impl Chunks for TargetRows {
    async fn next(&mut self) -> Result<Option<Rows>, VerifyError> {
        let mut wanted = CHUNK_BYTES;
        loop {
            let mut ended = false;
            while self.body.len() < wanted && !ended {
                match self.stream.next().await? {
                    Some(piece) => self.body.extend_from_slice(&piece),
                    None => ended = true,
                }
            }
            let (rows, taken) = Rows::parse(&self.types, &self.body)?;
            self.body.drain(..taken);
            match (rows.is_empty(), ended) {
                (false, _) => return Ok(Some(rows)),
                (true, true) if self.body.is_empty() => return Ok(None),
                (true, true) => {
                    return Err(VerifyError::Unsupported(
                        "the destination's answer ends within a row".to_owned(),
                    ));
                }
                // A row that is larger than a chunk: parsed again only when twice as much of it was received.
                (true, false) => wanted = self.body.len() * 2,
            }
        }
    }
}

/// Rows by key; several of one key where the destination shows the key more than once.
pub(super) async fn collect(
    plan: &TablePlan,
    mut chunks: impl Chunks,
) -> Result<HashMap<Key, Vec<Row>>, VerifyError> {
    let mut found: HashMap<Key, Vec<Row>> = HashMap::new();
    while let Some(rows) = chunks.next().await? {
        for row in 0..rows.len() {
            let cells = (0..plan.types.len()).map(|column| rows.cell(row, column).to_vec()).collect();
            found.entry(plan.key_of(&rows, row)).or_default().push(cells);
        }
    }
    Ok(found)
}
