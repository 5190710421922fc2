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

/// Watches an object until `look` gives something; it is shown the object as it is now, `None` while there is none, and then
/// each change. Outlives an apiserver that is away for a while. Panics after [`DEADLINE`] with what was seen last.
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
    let mut last = String::from("it could not be watched");
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
        Err(_) => panic!("waited {DEADLINE:?} in vain for {name}: {awaited}; it was last\n{last}"),
    }
}

/// Watches the objects of one kind until `look` gives something for one of them, as it is now or as it becomes. The rest is as with
/// [`until`].
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
        Err(_) => panic!("waited {DEADLINE:?} in vain for {awaited}; the last one seen was\n{last}"),
    }
}
