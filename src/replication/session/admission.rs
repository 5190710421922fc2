//! Which tables may be added now. The checks know, which the engine does not: it asks whoever runs it.
//!
//! A table that may not be added keeps no other back. It is asked for again while the others stream, and is
//! then added as to a running Mirror.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::{
    model::{Progress, TableId, TableState, lock},
    replication::{Error, MirrorRefused, Refused, stream::Fatal},
};

/// How often it is asked again whether tables can be added that could not.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// What the checks say of a Mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the Mirror as a whole can't start.
    pub mirror: Option<MirrorRefused>,
    /// Tables that can't be added now. Those that the Mirror has already are not among them: the engine
    /// checks these itself.
    pub tables: Refused,
}

/// Asks for a verdict on these tables, or on all when none is named.
pub type Ask = Arc<dyn Fn(Vec<TableId>) -> BoxFuture<'static, Verdict> + Send + Sync>;

/// The checks, and what they said last.
pub struct Admission {
    ask: Ask,
    last: Mutex<Option<Verdict>>,
}

impl Admission {
    /// Asks by `ask`, unless the first answer is known already.
    pub fn new(ask: Ask, first: Option<Verdict>) -> Self {
        Admission { ask, last: Mutex::new(first) }
    }

    fn last(&self) -> MutexGuard<'_, Option<Verdict>> {
        lock(&self.last)
    }

    /// The tables that can't be added, as last asked for, or asked for now.
    ///
    /// # Errors
    /// [`Error::MirrorRefused`], after which it is asked for again.
    pub(in crate::replication) async fn refused(&self) -> Result<Refused, Error> {
        let known = self.last().clone();
        let Verdict { mirror, tables } = match known {
            Some(known) => known,
            None => self.ask_again(Vec::new()).await,
        };
        match mirror {
            None => Ok(tables),
            Some(refused) => {
                self.forget();
                Err(Error::MirrorRefused(refused))
            }
        }
    }

    /// Asks about these tables now, or about all, and remembers the answer.
    pub(in crate::replication) async fn ask_again(&self, tables: Vec<TableId>) -> Verdict {
        let verdict = (self.ask)(tables).await;
        *self.last() = Some(verdict.clone());
        verdict
    }

    /// Remembers which tables can't be added.
    pub(in crate::replication) fn set(&self, refused: Refused) {
        *self.last() = Some(Verdict { mirror: None, tables: refused });
    }

    /// Has the next session ask.
    pub(in crate::replication) fn forget(&self) {
        *self.last() = None;
    }

    /// Asks now and then whether tables can be added that could not; where one can, the session begins again
    /// with it.
    pub(super) async fn until_admitted(
        self: Arc<Self>,
        mut refused: Refused,
        progress: Arc<Progress>,
        fatal: Fatal,
        end: CancellationToken,
    ) {
        while !refused.is_empty() {
            tokio::select! {
                () = end.cancelled() => return,
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
            let verdict = self.ask_again(refused.keys().cloned().collect()).await;
            if verdict.mirror.is_some() {
                // The stream meets what stops the whole Mirror.
                self.set(refused.clone());
                continue;
            }
            let (still, tables): (Refused, Refused) =
                refused.into_iter().partition(|(id, _)| verdict.tables.contains_key(id));
            if !tables.is_empty() {
                let tables = tables.into_keys().collect();
                fatal.report(Error::TablesAdmitted { tables });
                return;
            }
            refused = still
                .into_keys()
                .filter_map(|id| Some((id.clone(), verdict.tables.get(&id)?.clone())))
                .collect();
            report_refused(&progress, &refused);
        }
    }
}

/// Shows why tables can't be added.
pub(super) fn report_refused(progress: &Progress, refused: &Refused) {
    for (table, failure) in refused {
        let shown = progress.table(table);
        if shown.state() != TableState::Failed {
            let why = shown.sentence(failure);
            tracing::error!(%table, reason = %failure.reason, error = %why, "table can't be added; the others continue");
        }
        shown.set_failed(failure.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;
    use crate::fault::Reason;

    #[tokio::test]
    async fn is_asked_once_and_again_after_the_mirror_was_refused() {
        let asked = Arc::new(AtomicUsize::new(0));
        let refused = MirrorRefused {
            reason: Reason::SourceError,
            message: "no".to_owned(),
            remedies: Vec::new(),
            transient: false,
        };
        let ask: Ask = Arc::new({
            let (asked, refused) = (Arc::clone(&asked), refused.clone());
            move |_| {
                let first = asked.fetch_add(1, SeqCst) == 0;
                let verdict = Verdict { mirror: first.then(|| refused.clone()), ..Verdict::default() };
                Box::pin(async { verdict })
            }
        });
        let admission = Admission::new(ask, None);
        assert!(matches!(admission.refused().await, Err(Error::MirrorRefused(found)) if found == refused));
        assert_eq!(admission.refused().await.unwrap(), Refused::new());
        assert_eq!(admission.refused().await.unwrap(), Refused::new());
        assert_eq!(asked.load(SeqCst), 2);
    }
}
