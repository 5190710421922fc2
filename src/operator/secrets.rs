//! Secrets: read one by one where a peer names them, and cached until a watch reports a change.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use crate::{
    api::is_object_name,
    fault::Reason,
    model::{Password, lock},
    resolve::{MissingEntry, Secrets},
};

/// The entries of one Secret; `None` for a value that isn't text.
type Entries = BTreeMap<String, Option<Password>>;
/// Namespace and name.
type Key = (String, String);

/// The Secrets that peers name, as last read.
#[derive(Debug, Default)]
pub(super) struct SecretCache(Mutex<Cached>);

#[derive(Debug, Default)]
struct Cached {
    entries: HashMap<Key, Arc<Entries>>,
    /// Counts invalidations, so that a Secret read before one isn't cached after it.
    epoch: u64,
}

impl SecretCache {
    fn cached(&self) -> MutexGuard<'_, Cached> {
        lock(&self.0)
    }

    /// Drops a Secret that has changed, or all of them when changes may have been missed.
    pub(super) fn invalidate(&self, secret: Option<(&str, &str)>) {
        let mut cached = self.cached();
        cached.epoch += 1;
        match secret {
            Some((namespace, name)) => _ = cached.entries.remove(&(namespace.to_owned(), name.to_owned())),
            None => cached.entries.clear(),
        }
    }

    /// The Secrets of these names, without those that don't exist. A name that no Secret can have isn't
    /// requested.
    ///
    /// # Errors
    /// The API server's error, except that there is no such Secret.
    pub(super) async fn read<'a>(
        &self,
        client: &Client,
        namespace: &str,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<NamespaceSecrets, kube::Error> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let mut secrets = HashMap::new();
        for name in names.into_iter().filter(|name| is_object_name(name)) {
            let key = (namespace.to_owned(), name.to_owned());
            let (known, epoch) = {
                let cached = self.cached();
                (cached.entries.get(&key).cloned(), cached.epoch)
            };
            let entries = match known {
                Some(entries) => entries,
                None => {
                    let Some(secret) = api.get_opt(name).await? else { continue };
                    let entries = Arc::new(entries(secret));
                    let mut cached = self.cached();
                    if cached.epoch == epoch {
                        cached.entries.insert(key, Arc::clone(&entries));
                    }
                    entries
                }
            };
            secrets.insert(name.to_owned(), entries);
        }
        Ok(NamespaceSecrets { namespace: namespace.to_owned(), secrets, missing: Cell::new(None) })
    }
}

fn entries(secret: Secret) -> Entries {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok().map(Password::new);
    secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, text(value.0))).collect()
}

/// Secrets of one namespace, by name.
#[derive(Debug)]
pub(super) struct NamespaceSecrets {
    namespace: String,
    secrets: HashMap<String, Arc<Entries>>,
    missing: Cell<Option<Reason>>,
}

impl NamespaceSecrets {
    /// The reason for the first missing entry.
    pub(super) fn missing(&self) -> Option<Reason> {
        self.missing.get()
    }

    fn miss(&self, reason: Reason) {
        self.missing.set(self.missing.get().or(Some(reason)));
    }
}

impl Secrets for NamespaceSecrets {
    fn entry(&self, name: &str, key: &str) -> Result<Password, Option<MissingEntry>> {
        let NamespaceSecrets { namespace, .. } = self;
        let Some(entries) = self.secrets.get(name) else {
            self.miss(Reason::SecretMissing);
            let message = format!("there is no Secret {name} in namespace {namespace}; create it");
            return Err(Some(MissingEntry::Secret(message)));
        };
        match entries.get(key) {
            Some(Some(value)) => Ok(value.clone()),
            Some(None) => {
                self.miss(Reason::SecretKeyMissing);
                Err(Some(MissingEntry::Key(format!("key {key} of Secret {name} is not UTF-8 text"))))
            }
            None => {
                self.miss(Reason::SecretKeyMissing);
                let keys: Vec<&str> = entries.keys().map(String::as_str).collect();
                let keys = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
                Err(Some(MissingEntry::Key(format!("Secret {name} has no key {key} (it has: {keys})"))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use k8s_openapi::ByteString;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    fn secrets() -> NamespaceSecrets {
        let data = [("username", b"app".to_vec()), ("password", vec![0xff])];
        let data = data.map(|(key, value)| (key.to_owned(), ByteString(value)));
        let secret = Secret { data: Some(data.into()), ..Secret::default() };
        let secrets = [("db".to_owned(), Arc::new(entries(secret)))].into();
        NamespaceSecrets { namespace: "team".to_owned(), secrets, missing: Cell::new(None) }
    }

    #[test]
    fn missing_entries_are_named() {
        let message = |name, key| match secrets().entry(name, key) {
            Err(Some(MissingEntry::Secret(message) | MissingEntry::Key(message))) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(secrets().entry("db", "username").unwrap().expose(), "app");
        assert_eq!(message("other", "username"), "there is no Secret other in namespace team; create it");
        assert_eq!(message("db", "user"), "Secret db has no key user (it has: password, username)");
        assert_eq!(message("db", "password"), "key password of Secret db is not UTF-8 text");
    }

    #[test]
    fn the_first_missing_entry_gives_the_reason() {
        let secrets = secrets();
        assert_eq!(secrets.missing(), None);
        let _ = secrets.entry("db", "user");
        let _ = secrets.entry("other", "user");
        assert_eq!(secrets.missing(), Some(Reason::SecretKeyMissing));
    }

    /// An object that was stored before names were validated may still have one of these.
    #[tokio::test]
    async fn a_name_that_no_secret_can_have_is_not_requested() {
        let paths = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&paths);
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            asked.lock().unwrap().push(request.uri().to_string());
            let secret = json!({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "app-db"}});
            async move { Ok::<_, Infallible>(hyper::Response::new(Body::from(secret.to_string().into_bytes()))) }
        });
        let client = Client::new(service, "team");
        let names =
            ["?watch=true", "?fieldSelector=metadata.name%3Dapp-db", "app-db?x=y", "../pods", "", "app-db"];
        let secrets = SecretCache::default().read(&client, "team", names).await.unwrap();
        assert_eq!(*paths.lock().unwrap(), ["/api/v1/namespaces/team/secrets/app-db"]);
        assert_eq!(secrets.secrets.keys().collect::<Vec<_>>(), ["app-db"]);
    }

    #[test]
    fn a_changed_secret_is_read_again() {
        let cache = SecretCache::default();
        let key = |name: &str| ("team".to_owned(), name.to_owned());
        for name in ["a", "b"] {
            cache.cached().entries.insert(key(name), Arc::default());
        }
        cache.invalidate(Some(("team", "a")));
        assert!(
            !cache.cached().entries.contains_key(&key("a")) && cache.cached().entries.contains_key(&key("b"))
        );
        cache.invalidate(None);
        assert!(cache.cached().entries.is_empty());
        assert_eq!(cache.cached().epoch, 2);
    }
}
