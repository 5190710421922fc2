//! Where a Mirror's replication slot and publication are.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The server and database in which a Mirror's slot and publication were made. Host, port and database are
/// empty where only the server's identifier is on record.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlotPlace {
    /// `IDENTIFY_SYSTEM`'s system identifier: a server keeps it under another address, and its standbys have
    /// it too.
    pub system_identifier: String,
    /// Host name or address, as the peer named it last.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The database.
    pub database: String,
}

impl SlotPlace {
    /// Whether this is the other's server and database, under whatever address.
    pub fn is_same(&self, other: &SlotPlace) -> bool {
        let unknown = self.database.is_empty() || other.database.is_empty();
        self.system_identifier == other.system_identifier && (unknown || self.database == other.database)
    }
}

impl fmt::Display for SlotPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SlotPlace { system_identifier, host, port, database } = self;
        match host.is_empty() {
            true => write!(f, "the server with system identifier {system_identifier}"),
            false => {
                write!(f, "{host}:{port} in database {database} (system identifier {system_identifier})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_identified_by_its_system_identifier() {
        let place = |system: &str, host: &str, database: &str| SlotPlace {
            system_identifier: system.into(),
            host: host.into(),
            port: 5432,
            database: database.into(),
        };
        let made = place("7", "a", "app");
        assert!(made.is_same(&place("7", "b", "app")));
        assert!(!made.is_same(&place("8", "a", "app")) && !made.is_same(&place("7", "a", "other")));
        let bare = SlotPlace { system_identifier: "7".into(), ..SlotPlace::default() };
        assert!(bare.is_same(&made) && made.is_same(&bare));
        assert_eq!(made.to_string(), "a:5432 in database app (system identifier 7)");
        assert_eq!(bare.to_string(), "the server with system identifier 7");
    }
}
