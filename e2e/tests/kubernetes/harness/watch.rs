//! Waiting for events of the apiserver.

use std::{fmt::Debug, pin::pin};

use futures::StreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{Config, watch_object, watcher},
    },
};
use serde::{Serialize, de::DeserializeOwned};

use crate::support::DEADLINE;

/// Watches an object until `look` returns something. It is called with the current object (`None` if there is
/// none) and then with each change. The watch survives a restart of the apiserver. Panics after [`DEADLINE`]
/// with the last object.
pub async fn until<K, T>(
    api: Api<K>,
    name: &str,
    awaited: &str,
    mut look: impl FnMut(Option<&K>) -> Option<T>,
) -> T
where
    K: Resource + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watch_object(api, name).default_backoff());
    let mut last = String::from("never read");
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            match events.next().await.expect("a watch has no end") {
                Ok(object) => {
                    if let Some(found) = look(object.as_ref()) {
                        return found;
                    }
                    last = object.map_or("there is none".into(), |it| serde_yaml::to_string(&it).unwrap());
                }
                Err(error) => last = format!("the watch broke: {error}; before that: {last}"),
            }
        }
    });
    match found.await {
        Ok(found) => found,
        Err(_) => panic!("{name}: {awaited}: not within {DEADLINE:?}; the last state was\n{last}"),
    }
}

/// Watches the objects of one kind until `look` returns something for one of them, like [`until`].
pub async fn until_any<K, T>(
    api: Api<K>,
    config: &Config,
    awaited: &str,
    mut look: impl FnMut(&K) -> Option<T>,
) -> T
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + 'static,
{
    let mut events = pin!(watcher(api, config.clone()).default_backoff().applied_objects());
    let mut last = String::from("there was none");
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            match events.next().await.expect("a watch has no end") {
                Ok(object) => {
                    if let Some(found) = look(&object) {
                        return found;
                    }
                    last = serde_yaml::to_string(&object).unwrap();
                }
                Err(error) => last = format!("the watch broke: {error}; before that: {last}"),
            }
        }
    });
    match found.await {
        Ok(found) => found,
        Err(_) => panic!("{awaited}: not within {DEADLINE:?}; the last object was\n{last}"),
    }
}
