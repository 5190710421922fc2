//! Inserts: the settings that make `Ok` mean durable and in order, and the fence.
//!
//! **Fence.** All inserts with one fence have the same `query_id` and `replace_running_query`: ClickHouse
//! cancels what is left of an older one, waits until it is gone, and only then begins the newer one. An older
//! insert whose connection was cut within the first 256 KiB of its body (`max_query_size`, read before the
//! query begins) never begins at all, for its body is incomplete. Both hold within one server.

use std::{
    hash::{BuildHasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{Error, client::InsertStream, native::BlockBuilder};
use crate::replication::{DestinationError, Insert, TableBatch};

/// Settings of every insert, whatever the user's profile says.
const SETTINGS: [(&str, &str); 9] = [
    // The answer comes when the rows are written, not when they are queued.
    ("async_insert", "0"),
    // A batch that is sent again must be written again: in between, others may have changed its rows.
    ("insert_deduplicate", "0"),
    // Blocks have LowCardinality and JSON columns as plain strings.
    ("input_format_native_allow_types_conversion", "1"),
    // NULL for a column that isn't nullable is an error, not a 0.
    ("input_format_null_as_default", "0"),
    // Among equal versions the row inserted last wins, so blocks must be written in the order they are sent.
    ("max_insert_threads", "1"),
    // A batch of changes may touch any number of partitions.
    ("max_partitions_per_insert_block", "0"),
    // A copy takes as long as it takes; a server that makes no progress meets our own time-outs.
    ("max_execution_time", "0"),
    // Small blocks of one insert become large parts.
    ("min_insert_block_size_rows", "1048576"),
    ("min_insert_block_size_bytes", "268435456"),
];

/// The settings of one insert, `fence` apart.
pub(super) fn settings(fence: Option<&str>) -> Vec<(&'static str, String)> {
    let mut settings: Vec<_> = SETTINGS.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    // From 26.2 on insert_deduplicate no longer switches deduplication off (deduplicate_insert does, which
    // older releases don't know); with a token of its own no insert is a duplicate, in every release.
    settings.push(("insert_deduplication_token", unique_token()));
    settings.extend(fence.into_iter().flat_map(self::fence));
    settings
}

/// The settings of a statement that ends what is left of an earlier one with the same fence.
pub(super) fn fence(fence: &str) -> [(&'static str, String); 3] {
    [
        ("query_id", query_id(fence)),
        ("replace_running_query", "1".to_owned()),
        // Less than our own timeout, so that ClickHouse reports what it waits for.
        ("replace_running_query_max_wait_ms", "120000".to_owned()),
    ]
}

/// A text that is used once.
pub(super) fn unique_token() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("walferry-{now:x}-{:x}", RandomState::new().hash_one(now))
}

/// The fence as a `query_id` of plain characters; different fences stay different.
fn query_id(fence: &str) -> String {
    let mut id = String::with_capacity(fence.len());
    for byte in fence.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => id.push(byte.into()),
            other => id.push_str(&format!("%{other:02x}")),
        }
    }
    id
}

/// One insert of many blocks. The server writes what it has received in parts of about a million rows;
/// dropping the insert makes it give up what it has not written yet.
pub struct BlockInsert {
    pub(super) stream: InsertStream,
    pub(super) database: String,
    pub(super) table: String,
}

impl BlockInsert {
    /// Sends a block, leaving the batch as it is.
    pub(super) async fn send_block(&mut self, batch: &BlockBuilder) -> Result<(), Error> {
        if batch.rows() > 0 {
            for piece in batch.to_block() {
                self.stream.send(piece).await?;
            }
        }
        Ok(())
    }

    /// Ends the insert.
    pub(super) async fn end(self) -> Result<(), DestinationError> {
        let BlockInsert { stream, database, table } = self;
        stream.end().await.map_err(|error| refused(error, &database, &table))
    }
}

/// The fault of an insert.
pub(super) fn refused(error: Error, database: &str, table: &str) -> DestinationError {
    error.while_doing_to(&format!("insert into {database}.{table}"), database, table)
}

impl Insert for BlockInsert {
    type Batch = BlockBuilder;

    async fn send(&mut self, batch: &mut BlockBuilder) -> Result<(), DestinationError> {
        let sent = self.send_block(batch).await;
        sent.map_err(|error| refused(error, &self.database, &self.table))?;
        batch.clear();
        Ok(())
    }

    async fn finish(self) -> Result<(), DestinationError> {
        self.end().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_insert_is_synchronous_and_its_own() {
        let (one, two) = (settings(None), settings(None));
        assert!(one.contains(&("async_insert", "0".to_owned())));
        assert_ne!(one.last(), two.last());
        assert!(!one.iter().any(|(name, _)| *name == "query_id"));
    }

    #[test]
    fn a_fence_is_a_query_id() {
        let fenced = settings(Some("walferry-ab12-public.Task Run"));
        assert!(fenced.contains(&("query_id", "walferry-ab12-public.Task%20Run".to_owned())));
        assert!(fenced.contains(&("replace_running_query", "1".to_owned())));
        assert_ne!(query_id("a b"), query_id("a_b"));
        assert_ne!(query_id("a%20b"), query_id("a b"));
        assert_eq!(query_id("ü'"), "%c3%bc%27");
    }
}
