//! Queries that a test sends to ClickHouse directly, without the program under test.

use base64::Engine;

use super::{Credentials, http};

/// A ClickHouse server's HTTP interface, used as its administrator.
#[derive(Clone, Debug)]
pub struct ClickHouse {
    pub port: u16,
    pub admin: Credentials,
}

impl ClickHouse {
    /// Runs `sql`; the answer is tab separated text, or ClickHouse's message.
    pub fn try_query(&self, database: &str, sql: &str) -> Result<String, String> {
        self.try_query_as(&self.admin, &format!("database={database}&session_timezone=UTC"), sql)
    }

    /// Runs `sql` as another user, with these URL parameters.
    pub fn try_query_as(&self, user: &Credentials, parameters: &str, sql: &str) -> Result<String, String> {
        let Credentials { user, password } = user;
        let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        let headers = format!("Authorization: Basic {basic}\r\n");
        match http::post(self.port, &format!("/?{parameters}"), &headers, sql) {
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
