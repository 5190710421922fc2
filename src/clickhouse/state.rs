//! The state table: durable records of each Mirror, kept beside the data they speak of.
//!
//! A record is replaced by inserting it again with a higher version, and deleted by an empty value, so that
//! the peer's user needs no privilege to change or delete rows.

use serde::{Deserialize, Serialize};

use super::{
    Error,
    quote::{literal, table as qualified},
    target::json_lines,
};
use crate::replication::{StateRow, StateRows, StateVersion};

/// The state table's name, in the peer's database.
pub const STATE_TABLE: &str = "_walferry_state";

/// `CREATE TABLE IF NOT EXISTS` for the state table. Inserts are written to disk synchronously, which is not
/// ClickHouse's default: what a record says, such as that a table's rows are set aside, must outlive a power
/// cut.
pub fn create(database: &str) -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {} (`mirror` String, `item` String, `value` String, `version` UInt64) ENGINE = \
         ReplacingMergeTree(`version`) ORDER BY (`mirror`, `item`) SETTINGS fsync_after_insert = 1, fsync_part_directory = 1",
        qualified(database, STATE_TABLE)
    )
}

/// A Mirror's newest records, or those of these items; deleted ones too, for their versions count.
pub fn select(database: &str, mirror: &str, items: Option<&[&str]>) -> String {
    let items = items.map(|items| items.iter().map(|item| literal(item)).collect::<Vec<_>>().join(", "));
    format!(
        "SELECT item, value, toString(version) AS version FROM {} FINAL WHERE mirror = {}{} ORDER BY item FORMAT JSONEachRow",
        qualified(database, STATE_TABLE),
        literal(mirror),
        items.map(|items| format!(" AND item IN ({items})")).unwrap_or_default()
    )
}

/// The records of all Mirrors whose items begin with `prefix`.
pub fn select_of_all(database: &str, prefix: &str) -> String {
    format!(
        "SELECT mirror, item, value FROM {} FINAL WHERE startsWith(item, {}) AND value != '' ORDER BY item, mirror FORMAT JSONEachRow",
        qualified(database, STATE_TABLE),
        literal(prefix)
    )
}

/// The statement that removes one record of a Mirror that is gone, to be run manually.
pub fn release(database: &str, mirror: &str, item: &str) -> String {
    let table = qualified(database, STATE_TABLE);
    format!(
        "INSERT INTO {table} (mirror, item, value, version) SELECT mirror, item, '', version + 1 FROM {table} FINAL WHERE mirror = {} AND item = {}",
        literal(mirror),
        literal(item)
    )
}

/// `INSERT INTO … FORMAT JSONEachRow`
pub fn insert(database: &str) -> String {
    format!(
        "INSERT INTO {} (mirror, item, value, version) FORMAT JSONEachRow",
        qualified(database, STATE_TABLE)
    )
}

#[derive(Serialize)]
struct Written<'a> {
    mirror: &'a str,
    item: &'a str,
    value: &'a str,
    version: u64,
}

#[derive(Deserialize)]
struct ReadOfAll {
    mirror: String,
    item: String,
    value: String,
}

#[derive(Deserialize)]
struct Read {
    item: String,
    value: String,
    version: String,
}

/// The body of [`insert`]: one JSON object a line.
pub(super) fn body(mirror: &str, rows: &[StateRow], version: StateVersion) -> Result<String, Error> {
    let lines: Result<Vec<String>, _> = rows
        .iter()
        .map(|row| {
            serde_json::to_string(&Written { mirror, item: &row.item, value: &row.value, version: version.0 })
        })
        .collect();
    lines.map(|lines| lines.join("\n")).map_err(|error| Error::Protocol(error.to_string()))
}

/// The records of an answer to [`select_of_all`], each with its Mirror's UID.
pub(super) fn parse_of_all(answer: &str) -> Result<Vec<(String, StateRow)>, Error> {
    let rows = json_lines(answer)?.into_iter();
    Ok(rows.map(|ReadOfAll { mirror, item, value }| (mirror, StateRow { item, value })).collect())
}

/// The records of an answer to [`select`].
pub(super) fn parse(answer: &str) -> Result<StateRows, Error> {
    let mut found = StateRows::default();
    for Read { item, value, version } in json_lines(answer)? {
        let version: u64 = version
            .parse()
            .map_err(|_| Error::Protocol(format!("{STATE_TABLE} has a version that is no number")))?;
        found.newest = found.newest.max(StateVersion(version));
        if !value.is_empty() {
            found.rows.push(StateRow { item, value });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_statements() {
        assert_eq!(
            create("app"),
            "CREATE TABLE IF NOT EXISTS `app`.`_walferry_state` (`mirror` String, `item` String, `value` String, `version` \
             UInt64) ENGINE = ReplacingMergeTree(`version`) ORDER BY (`mirror`, `item`) SETTINGS fsync_after_insert = 1, \
             fsync_part_directory = 1"
        );
        assert_eq!(
            select("app", "x'y", None),
            "SELECT item, value, toString(version) AS version FROM `app`.`_walferry_state` FINAL WHERE mirror = 'x\\'y' \
             ORDER BY item FORMAT JSONEachRow"
        );
        assert_eq!(
            select("app", "x", Some(&["epoch", "it's"])),
            "SELECT item, value, toString(version) AS version FROM `app`.`_walferry_state` FINAL WHERE mirror = 'x' \
             AND item IN ('epoch', 'it\\'s') ORDER BY item FORMAT JSONEachRow"
        );
        assert_eq!(
            select_of_all("app", "target/"),
            "SELECT mirror, item, value FROM `app`.`_walferry_state` FINAL WHERE startsWith(item, 'target/') AND value != '' \
             ORDER BY item, mirror FORMAT JSONEachRow"
        );
        assert_eq!(
            release("app", "x'y", "target/t"),
            "INSERT INTO `app`.`_walferry_state` (mirror, item, value, version) SELECT mirror, item, '', version + 1 \
             FROM `app`.`_walferry_state` FINAL WHERE mirror = 'x\\'y' AND item = 'target/t'"
        );
        assert_eq!(
            insert("app"),
            "INSERT INTO `app`.`_walferry_state` (mirror, item, value, version) FORMAT JSONEachRow"
        );
    }

    #[test]
    fn reads_and_writes_records() {
        let rows = [
            StateRow { item: "source".to_owned(), value: "{\"a\":\"\\n'\"}".to_owned() },
            StateRow { item: "gone".to_owned(), value: String::new() },
        ];
        assert_eq!(
            body("m", &rows, StateVersion(7)).unwrap(),
            "{\"mirror\":\"m\",\"item\":\"source\",\"value\":\"{\\\"a\\\":\\\"\\\\n'\\\"}\",\"version\":7}\n\
             {\"mirror\":\"m\",\"item\":\"gone\",\"value\":\"\",\"version\":7}"
        );
        let StateRows { rows, newest } = parse(
            "{\"item\":\"source\",\"value\":\"{}\",\"version\":\"5\"}\n{\"item\":\"gone\",\"value\":\"\",\"version\":\"9\"}\n",
        )
        .unwrap();
        assert_eq!(rows, [StateRow { item: "source".to_owned(), value: "{}".to_owned() }]);
        assert_eq!(newest, StateVersion(9));
        assert!(parse("nonsense").is_err());
        let all = parse_of_all("{\"mirror\":\"m\",\"item\":\"target/t\",\"value\":\"{}\"}\n").unwrap();
        assert_eq!(all, [("m".to_owned(), StateRow { item: "target/t".to_owned(), value: "{}".to_owned() })]);
    }
}
