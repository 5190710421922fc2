//! What a controller keeps of each object between two reconciles.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::OwnedMutexGuard;

use crate::model::lock;

/// A value for each object, by UID. It lives as long as this process leads; losing it costs a few requests
/// and nothing else.
#[derive(Debug)]
pub(super) struct PerObject<T>(Mutex<HashMap<String, Arc<tokio::sync::Mutex<T>>>>);

impl<T> Default for PerObject<T> {
    fn default() -> Self {
        PerObject(Mutex::default())
    }
}

impl<T: Default> PerObject<T> {
    /// The value of one object, for the time of a reconcile. Reconciles of one object never overlap, so
    /// nobody waits here. An object that is forgotten meanwhile takes its value with it.
    pub(super) async fn of(&self, uid: &str) -> OwnedMutexGuard<T> {
        let value = Arc::clone(lock(&self.0).entry(uid.to_owned()).or_default());
        value.lock_owned().await
    }

    /// Drops the value of an object that is gone.
    pub(super) fn forget(&self, uid: &str) {
        lock(&self.0).remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_object_that_goes_during_its_reconcile_leaves_nothing() {
        let values: PerObject<u32> = PerObject::default();
        *values.of("a").await = 7;
        assert_eq!((*values.of("a").await, *values.of("b").await), (7, 0));
        let mut reconciling = values.of("a").await;
        values.forget("a");
        *reconciling = 8;
        drop(reconciling);
        assert_eq!(lock(&values.0).keys().collect::<Vec<_>>(), ["b"]);
    }
}
