//! Which tables may be taken up now. The checks know, which the engine does not: it asks whoever runs it.
//!
//! A table that may not join keeps no other from it. It is asked for again while the others stream, and joins as a table that is
//! added to a running Mirror does.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::future::BoxFuture;

use crate::{
    fault::{Reason, Remedy},
    model::{MirrorFailure, TableId},
    replication::Error,
};

/// Tables that can't join now, and why.
pub type Refused = BTreeMap<TableId, MirrorFailure>;

/// What the checks say of a Mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why the Mirror as a whole can't start.
    pub mirror: Option<MirrorRefused>,
    /// Tables that can't join now. Those that the Mirror has already are not among them: the engine sees to these itself.
    pub tables: Refused,
}

/// Why a Mirror as a whole can't start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorRefused {
    /// A documented reason.
    pub reason: Reason,
    /// What is wrong.
    pub message: String,
    /// What helps, in order.
    pub remedies: Vec<Remedy>,
    /// Whether it may pass without anybody doing anything.
    pub transient: bool,
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
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tables that can't join, as last asked for, or asked for now.
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

    /// Remembers which tables can't join.
    pub(in crate::replication) fn set(&self, refused: Refused) {
        *self.last() = Some(Verdict { mirror: None, tables: refused });
    }

    /// Has the next session ask.
    pub(in crate::replication) fn forget(&self) {
        *self.last() = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

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
