//! The users of `e2e/tools/clickhouse-users.xml`, and copies of them at given servers.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use super::{ClickHouse, Credentials, Server, TestEnv};

/// The file that defines the users of servers of `e2e/tools/servers`.
const USERS_XML: &str = include_str!("../tools/clickhouse-users.xml");

/// The ClickHouse users of one test. At a given server these are copies, which are dropped with this.
#[derive(Debug)]
pub struct TargetUsers {
    clickhouse: ClickHouse,
    given: bool,
    /// The test's database, with which the names of copies begin.
    database: String,
    copies: Mutex<BTreeMap<String, Credentials>>,
}

impl TargetUsers {
    /// Users with access to all databases of the tests of this process.
    pub fn new(server: &Server, database: &str) -> TargetUsers {
        TargetUsers {
            clickhouse: server.as_clickhouse(),
            given: server.is_given(),
            database: database.to_owned(),
            copies: Mutex::default(),
        }
    }

    /// The user that has this name in `e2e/tools/clickhouse-users.xml`.
    #[track_caller]
    pub fn get(&self, name: &str) -> Credentials {
        if !self.given {
            return predefined(name);
        }
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        copies.entry(name.to_owned()).or_insert_with(|| self.create(name)).clone()
    }

    /// Creates a copy. A server without writable access storage, such as those of `e2e/tools/servers`, must
    /// have the user already.
    #[track_caller]
    fn create(&self, name: &str) -> Credentials {
        let copy = Credentials::new(&format!("{}_{name}", self.database), &predefined(name).password);
        for statement in statements(name, &copy, TestEnv::name_prefix()) {
            match self.clickhouse.try_query("default", &statement) {
                Ok(_) => {}
                Err(message) if message.contains("ACCESS_STORAGE") => return predefined(name),
                Err(message) => panic!("ClickHouse refused {statement}: {message}"),
            }
        }
        copy
    }
}

impl Drop for TargetUsers {
    fn drop(&mut self) {
        for user in self.copies.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
            if user.user.starts_with(&self.database) {
                let drop = format!("DROP USER IF EXISTS {}", user.user);
                let _ = self.clickhouse.try_query("default", &drop);
            }
        }
    }
}

/// The credentials of a user of a server of `e2e/tools/servers`.
fn predefined(name: &str) -> Credentials {
    Credentials::new(name, &format!("{name}-test"))
}

/// The statements that create a copy of a user.
fn statements(name: &str, copy: &Credentials, prefix: &str) -> Vec<String> {
    let Credentials { user, password } = copy;
    let (profiles, users) = USERS_XML.split_once("<users>").unwrap();
    let definition = element(users, name).unwrap();
    let profile = element(profiles, element(definition, "profile").unwrap());
    let settings: Vec<String> = elements(profile.unwrap_or_default())
        .into_iter()
        .map(|(setting, value)| format!("{setting} = '{value}'"))
        .collect();
    let settings =
        if settings.is_empty() { String::new() } else { format!(" SETTINGS {}", settings.join(", ")) };
    let create = format!("CREATE USER IF NOT EXISTS {user} IDENTIFIED BY '{password}'{settings}");
    let grants = match element(definition, "grants") {
        Some(grants) => elements(grants).into_iter().map(|(_, grant)| grant.to_owned()).collect(),
        // In the file, a user without grants has all privileges.
        None => vec!["GRANT ALL ON app*.*".to_owned()],
    };
    let grant = |grant: String| format!("{} TO {user}", grant.replace("app*", &format!("{prefix}*")));
    [create].into_iter().chain(grants.into_iter().map(grant)).collect()
}

/// The content of the first element of this name.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    Some(rest.split_once(&format!("</{name}>"))?.0)
}

/// Names and contents of all elements that follow one another.
fn elements(mut xml: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    while let Some((_, rest)) = xml.split_once('<') {
        let (name, content) = rest.split_once('>').unwrap();
        let (value, after) = content.split_once(&format!("</{name}>")).unwrap();
        found.push((name, value));
        xml = after;
    }
    found
}
