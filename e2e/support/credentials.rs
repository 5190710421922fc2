//! Users of the servers.

use postgres::{Client, Config, NoTls};
use serde_json::{Value, json};

/// A user or role and its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl Credentials {
    pub fn new(user: &str, password: &str) -> Credentials {
        Credentials { user: user.to_owned(), password: password.to_owned() }
    }

    /// As the stringData of a Secret.
    pub fn to_secret(&self) -> Value {
        json!({"username": self.user, "password": self.password})
    }

    /// How to connect to a database of a PostgreSQL at a local port.
    pub fn config(&self, port: u16, database: &str) -> Config {
        let mut config = Config::new();
        config.host("127.0.0.1").port(port).user(&self.user).password(&self.password).dbname(database);
        config
    }

    /// A connection to a database of a PostgreSQL at a local port.
    pub fn connect(&self, port: u16, database: &str) -> Result<Client, postgres::Error> {
        self.config(port, database).connect(NoTls)
    }
}
