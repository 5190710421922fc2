//! Queries a table's columns as they are now.

use super::names::LiveColumn;
use crate::postgres::{Error, session::Session};

const LIVE_COLUMNS: &str = "\
SELECT attnum, attname::text, atttypid, atttypmod, attgenerated <> '', xmin::text::int8 FROM pg_attribute \
WHERE attrelid = $1::oid AND attnum > 0 AND NOT attisdropped ORDER BY attnum";

/// The columns that the table with this oid has now, by attribute number.
///
/// # Errors
/// [`Error`] of the query.
pub async fn live_columns(session: &Session, oid: u32) -> Result<Vec<LiveColumn>, Error> {
    let rows = session.client.query(LIVE_COLUMNS, &[&oid]).await?;
    rows.iter()
        .map(|row| {
            Ok(LiveColumn {
                attnum: row.try_get(0)?,
                name: row.try_get(1)?,
                type_oid: row.try_get(2)?,
                type_modifier: row.try_get(3)?,
                generated: row.try_get(4)?,
                written_by: u32::try_from(row.try_get::<_, i64>(5)?).unwrap_or_default(),
            })
        })
        .collect()
}

/// The statement that answers the same on any connection, each value as text.
pub fn live_columns_statement(oid: u32) -> String {
    LIVE_COLUMNS.replace("$1::oid", &oid.to_string())
}

impl LiveColumn {
    /// From a row of [`live_columns_statement`]; `None` when it is none.
    pub fn from_text(row: &[Option<String>]) -> Option<Self> {
        let [
            Some(attnum),
            Some(name),
            Some(type_oid),
            Some(type_modifier),
            Some(generated),
            Some(written_by),
        ] = row
        else {
            return None;
        };
        Some(LiveColumn {
            attnum: attnum.parse().ok()?,
            name: name.clone(),
            type_oid: type_oid.parse().ok()?,
            type_modifier: type_modifier.parse().ok()?,
            generated: generated == "t",
            written_by: written_by.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_from_text() {
        assert!(live_columns_statement(7).contains("attrelid = 7 AND"));
        let row = ["2", "a", "25", "-1", "t", "700"].map(|value| Some(value.to_owned()));
        let column = LiveColumn {
            attnum: 2,
            name: "a".to_owned(),
            type_oid: 25,
            type_modifier: -1,
            generated: true,
            written_by: 700,
        };
        assert_eq!(LiveColumn::from_text(&row), Some(column));
        assert_eq!(LiveColumn::from_text(&[None]), None);
    }
}
