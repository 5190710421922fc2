//! Queries that a test sends to ClickHouse directly, without the program under test.

use super::http;

/// A ClickHouse server's HTTP interface, used as its administrator.
#[derive(Clone, Debug)]
pub struct ClickHouse {
    pub port: u16,
}

impl ClickHouse {
    /// Runs `sql`; the answer is tab separated text, or ClickHouse's message.
    pub fn try_query(&self, database: &str, sql: &str) -> Result<String, String> {
        let headers = "X-ClickHouse-User: admin\r\nX-ClickHouse-Key: clickhouse-test\r\n";
        let path = format!("/?database={database}&session_timezone=UTC");
        match http::post(self.port, &path, headers, sql) {
            Ok((200, body)) => Ok(body),
            Ok((_, body)) => Err(body),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs `sql` as the user that the program has, with these additional URL parameters.
    pub fn try_query_as_limited(&self, parameters: &str, sql: &str) -> Result<String, String> {
        let headers = "X-ClickHouse-User: limited\r\nX-ClickHouse-Key: limited-test\r\n";
        match http::post(self.port, &format!("/?{parameters}"), headers, sql) {
            Ok((200, body)) => Ok(body),
            Ok((_, body)) => Err(body),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Runs `sql`, which must succeed.
    #[track_caller]
    pub fn query(&self, database: &str, sql: &str) -> String {
        match self.try_query(database, sql) {
            Ok(answer) => answer,
            Err(message) => panic!("ClickHouse refused {sql}: {message}"),
        }
    }
}
