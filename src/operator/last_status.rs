//! The status of an object as this process last wrote it, until the watch shows it.

use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

/// The last written status of one object.
#[derive(Clone, Debug)]
pub(super) struct LastStatus<S>(Option<Written<S>>);

#[derive(Clone, Debug)]
struct Written<S> {
    /// The version of the object that the status was made for.
    version: Option<String>,
    status: S,
    at: Instant,
}

impl<S> Default for LastStatus<S> {
    fn default() -> Self {
        LastStatus(None)
    }
}

impl<S: Clone> LastStatus<S> {
    /// Records that `status` was just written to `object`.
    pub(super) fn record(&mut self, object: &impl ResourceExt, status: S) {
        let version = object.resource_version();
        self.0 = Some(Written { version, status, at: Instant::now() });
    }

    /// The status that the API server has, and how long ago it was written. The watch shows our own writes
    /// with a delay; until then the recorded one is newer than `watched`.
    pub(super) fn current(&self, object: &impl ResourceExt, watched: Option<&S>) -> (Option<S>, Duration) {
        match &self.0 {
            Some(written) if written.version == object.resource_version() => {
                (Some(written.status.clone()), written.at.elapsed())
            }
            written => {
                let age = written.as_ref().map_or(Duration::MAX, |written| written.at.elapsed());
                (watched.cloned(), age)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn own_writes_count_before_the_watch_shows_them() {
        let object = |version: &str| {
            let mut object = ConfigMap::default();
            object.metadata.resource_version = Some(version.to_owned());
            object
        };
        let mut last = LastStatus::default();
        assert_eq!(last.current(&object("1"), Some(&"theirs")), (Some("theirs"), Duration::MAX));
        last.record(&object("1"), "ours");
        tokio::time::advance(Duration::from_secs(3)).await;
        let three = Duration::from_secs(3);
        assert_eq!(last.current(&object("1"), Some(&"theirs")), (Some("ours"), three));
        assert_eq!(last.current(&object("2"), Some(&"later")), (Some("later"), three));
    }
}
