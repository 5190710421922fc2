//! Reflectors: a watch of one kind keeps a store up to date and reports each change.

use std::{collections::HashMap, pin::pin, sync::Arc};

use futures::StreamExt;
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{
            ObjectRef,
            store::{Store, Writer},
        },
        watcher::{self, Event, watcher},
    },
};

use super::{error::api_error, object::Watched};

/// A change of one object: `old` is what the store had, `new` is what it has now. At least one of them is
/// present.
#[derive(Debug)]
pub(super) struct Change<'a, K> {
    pub(super) old: Option<&'a K>,
    pub(super) new: Option<&'a K>,
}

impl<K> Change<'_, K> {
    /// The new object or, when it was deleted, the old one.
    pub(super) fn object(&self) -> Option<&K> {
        self.new.or(self.old)
    }

    /// Whether `projection` differs between old and new, or the object was created or deleted.
    pub(super) fn differs_in<P: PartialEq>(&self, projection: impl Fn(&K) -> P) -> bool {
        match (self.old, self.new) {
            (Some(old), Some(new)) => projection(old) != projection(new),
            _ => true,
        }
    }
}

/// Drops metadata that walferry never reads, so that stores stay small.
fn drop_unused_metadata<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
}

/// Keeps the store of `writer` in sync with the API server and calls `on_change` for each change once the
/// store has it. It never ends: a watch that fails or expires is restarted with exponential backoff, and
/// reports what changed in between.
pub(super) async fn reflect<K: Watched>(
    api: Api<K>,
    config: watcher::Config,
    mut writer: Writer<K>,
    on_change: impl Fn(Change<'_, K>),
) {
    let store = writer.as_reader();
    let mut events = pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event.modify(drop_unused_metadata),
            Err(error) => {
                log_interruption::<K>(&error);
                continue;
            }
        };
        match &event {
            Event::Apply(new) => {
                let old = store.get(&ObjectRef::from_obj(new));
                writer.apply_watcher_event(&event);
                on_change(Change { old: old.as_deref(), new: Some(new) });
            }
            Event::Delete(last) => {
                let old = store.get(&ObjectRef::from_obj(last));
                writer.apply_watcher_event(&event);
                on_change(Change { old: old.as_deref().or(Some(last)), new: None });
            }
            Event::InitDone => {
                let old = store.state();
                writer.apply_watcher_event(&event);
                report_differences(&old, &store, &on_change);
            }
            Event::Init | Event::InitApply(_) => writer.apply_watcher_event(&event),
        }
    }
}

/// Reports what differs between the store and its contents before a list.
fn report_differences<K: Watched>(old: &[Arc<K>], store: &Store<K>, on_change: &impl Fn(Change<'_, K>)) {
    let mut old: HashMap<ObjectRef<K>, &K> =
        old.iter().map(|object| (ObjectRef::from_obj(&**object), &**object)).collect();
    for new in store.state() {
        let before = old.remove(&ObjectRef::from_obj(&*new));
        match before.filter(|before| before.uid() != new.uid()) {
            // The object was replaced by another one of its name while the watch was down: report its
            // deletion as well.
            Some(replaced) => {
                on_change(Change { old: Some(replaced), new: None });
                on_change(Change { old: None, new: Some(&new) });
            }
            None => on_change(Change { old: before, new: Some(&new) }),
        }
    }
    for gone in old.into_values() {
        on_change(Change { old: Some(gone), new: None });
    }
}

fn log_interruption<K: Watched>(error: &watcher::Error) {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    let kind = K::kind(&());
    match error {
        InitialListFailed(kube::Error::Api(status)) if status.code == 404 => {
            tracing::warn!(%kind, "the cluster doesn't serve this kind: install the CRDs");
        }
        InitialListFailed(cause) | WatchStartFailed(cause) | WatchFailed(cause) => {
            tracing::warn!(error = api_error(cause), %kind, "watch interrupted, retrying");
        }
        error => tracing::warn!(%error, %kind, "watch interrupted, retrying"),
    }
}

/// Calls `on_event` with namespace and name of each object that is created, changed or deleted, and with
/// `None` before a list of all of them. Nothing is stored.
pub(super) async fn watch_names<K: Watched>(
    api: Api<K>,
    config: watcher::Config,
    on_event: impl Fn(Option<(&str, &str)>),
) {
    let mut events = pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => on_event(None),
            Ok(Event::InitDone) => {}
            Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) => {
                let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
                on_event(Some((&namespace, &name)));
            }
            Err(error) => log_interruption::<K>(&error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use bytes::Bytes;
    use futures::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use k8s_openapi::{api::core::v1::ConfigMap, apimachinery::pkg::apis::meta::v1::ObjectMeta};
    use kube::{Client, client::Body, runtime::reflector};
    use serde_json::json;

    use super::*;

    fn object(name: &str, value: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("default".to_owned()),
                resource_version: Some("9".to_owned()),
                ..ObjectMeta::default()
            },
            data: Some([("value".to_owned(), value.to_owned())].into()),
            ..ConfigMap::default()
        }
    }

    #[test]
    fn a_list_reports_what_was_created_changed_and_deleted() {
        let (store, mut writer) = reflector::store();
        writer.apply_watcher_event(&Event::Init);
        for name in ["same", "changed", "new"] {
            writer.apply_watcher_event(&Event::InitApply(object(name, "2")));
        }
        let replaced = |uid: &str| {
            let mut object = object("replaced", "2");
            object.metadata.uid = Some(uid.to_owned());
            object
        };
        writer.apply_watcher_event(&Event::InitApply(replaced("b")));
        writer.apply_watcher_event(&Event::InitDone);
        let old =
            [object("same", "2"), object("changed", "1"), object("gone", "1"), replaced("a")].map(Arc::new);
        let reported = RefCell::new(Vec::new());
        report_differences(&old, &store, &|change: Change<'_, ConfigMap>| {
            let name = change.object().unwrap().name_any();
            reported.borrow_mut().push((
                name,
                change.new.is_some(),
                change.differs_in(|object| object.data.clone()),
            ));
        });
        let mut reported = reported.into_inner();
        reported.sort();
        let expected = [
            ("changed", true, true),
            ("gone", false, true),
            ("new", true, true),
            ("replaced", false, true),
            ("replaced", true, true),
            ("same", true, false),
        ];
        assert_eq!(reported, expected.map(|(name, there, differs)| (name.to_owned(), there, differs)));
    }

    /// An API server that gives these answers in turn, one to each request. Watches stay open.
    fn client(answers: [serde_json::Value; 4]) -> Client {
        let (answers, next) = (Arc::new(answers), Arc::new(AtomicUsize::new(0)));
        let service = tower::service_fn(move |request: hyper::Request<Body>| {
            let answer = answers.get(next.fetch_add(1, Relaxed)).map(|answer| format!("{answer}\n"));
            let watches = request.uri().query().is_some_and(|query| query.contains("watch=true"));
            async move {
                let Some(answer) = answer else { return std::future::pending().await };
                let answer = stream::once(async { Ok::<_, Infallible>(Frame::data(Bytes::from(answer))) });
                let body = if watches { answer.chain(stream::pending()).boxed() } else { answer.boxed() };
                Ok::<_, Infallible>(hyper::Response::new(StreamBody::new(body)))
            }
        });
        Client::new(service, "default")
    }

    /// The API server keeps changes for some minutes only: a watch that was down for longer gets `Expired`
    /// and has to list everything again.
    #[tokio::test(start_paused = true)]
    async fn a_watch_that_has_expired_reports_what_changed_meanwhile() {
        let list = |version: &str, objects: &[(&str, &str)]| {
            let items: Vec<ConfigMap> = objects.iter().map(|(name, value)| object(name, value)).collect();
            json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": version}, "items": items})
        };
        let expired = json!({"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "reason": "Expired",
            "code": 410, "message": "too old resource version"}});
        let answers = [
            list("1", &[("stays", "1"), ("changes", "1"), ("goes", "1")]),
            expired,
            list("9", &[("stays", "1"), ("changes", "2"), ("comes", "1")]),
            json!({"type": "DELETED", "object": object("stays", "1")}),
        ];
        let (store, writer) = reflector::store();
        let reported = RefCell::new(Vec::new());
        let reflecting = reflect(
            Api::<ConfigMap>::namespaced(client(answers), "default"),
            watcher::Config::default(),
            writer,
            |change| {
                if change.differs_in(|object: &ConfigMap| object.data.clone()) {
                    let how = if change.new.is_some() { "is there" } else { "is gone" };
                    let name = change.object().unwrap().name_any();
                    reported.borrow_mut().push(format!("{name} {how}"));
                }
            },
        );
        let all = async {
            while reported.borrow().last().is_none_or(|last| last != "stays is gone") {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        };
        tokio::select! { () = reflecting => {}, () = all => {} }
        let mut reported = reported.into_inner();
        let last = reported.pop();
        reported[..3].sort();
        reported[3..].sort();
        assert_eq!(
            reported,
            [
                "changes is there",
                "goes is there",
                "stays is there",
                "changes is there",
                "comes is there",
                "goes is gone"
            ]
        );
        assert_eq!(last.as_deref(), Some("stays is gone"));
        let mut left: Vec<String> = store.state().iter().map(|object| object.name_any()).collect();
        left.sort();
        assert_eq!(left, ["changes", "comes"]);
    }

    #[test]
    fn stores_hold_no_managed_fields() {
        let mut found = object("a", "1");
        found.metadata.managed_fields = Some(Vec::new());
        found.metadata.annotations =
            Some([("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "{}".to_owned())].into());
        drop_unused_metadata(&mut found);
        assert!(found.metadata.managed_fields.is_none() && found.annotations().is_empty());
    }
}
