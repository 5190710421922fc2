//! Events: what `kubectl describe` shows of the past.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use super::{error::words, metrics::Metrics};
use crate::api::conditions;
use crate::fault::Reason;

/// Most bytes of a note that the API server takes.
const LONGEST_NOTE: usize = 1000;

/// Something to tell of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    /// Whether a human should look.
    pub(super) warning: bool,
    /// What happened, in one CamelCase word.
    pub(super) reason: Reason,
    /// What it happened to, where one object has several of them: events of the same reason and subject are counted instead of repeated.
    pub(super) subject: String,
    /// What happened, in a sentence.
    pub(super) note: String,
}

impl Notice {
    /// Something that is as it should be.
    pub(super) fn normal(reason: Reason, note: impl Into<String>) -> Notice {
        Notice { warning: false, reason, subject: String::new(), note: note.into() }
    }

    /// Something that a human should look at.
    pub(super) fn warning(reason: Reason, note: impl Into<String>) -> Notice {
        Notice { warning: true, ..Notice::normal(reason, note) }
    }

    /// The same, about one part of the object.
    pub(super) fn about(self, subject: impl Into<String>) -> Notice {
        Notice { subject: subject.into(), ..self }
    }
}

/// Publishes events.
#[derive(Clone)]
pub(super) struct Events(Recorder);

impl Events {
    /// Events in the name of the process `identity`.
    pub(super) fn new(client: Client, identity: &str) -> Events {
        let reporter = Reporter { controller: "walferry".to_owned(), instance: Some(identity.to_owned()) };
        Events(Recorder::new(client, reporter))
    }

    /// Publishes a notice about an object. An event is never worth failing for: what can't be published is logged.
    pub(super) async fn publish(&self, object: &ObjectReference, notice: &Notice) {
        let action =
            if notice.subject.is_empty() { "Reconcile".to_owned() } else { shortened(&notice.subject, 128) };
        let event = Event {
            type_: if notice.warning { EventType::Warning } else { EventType::Normal },
            reason: notice.reason.into(),
            note: Some(shortened(&notice.note, LONGEST_NOTE)),
            action,
            secondary: None,
        };
        match self.0.publish(&event, object).await {
            Ok(()) => {}
            // A namespace that is going takes nothing new.
            Err(kube::Error::Api(status)) if status.code == 403 || status.code == 404 => {
                tracing::debug!(error = status.message, reason = %notice.reason, "event refused");
            }
            Err(error) => {
                tracing::warn!(error = words(&error), reason = %notice.reason, "cannot publish an event")
            }
        }
    }
}

/// The notice that a human is needed, when that is new or for a new reason.
pub(super) fn stalled(before: &[Condition], after: &[Condition]) -> Option<Notice> {
    let now = find(after, conditions::STALLED)?;
    let known = find(before, conditions::STALLED).is_some_and(|before| before.reason == now.reason);
    (!known).then(|| {
        let reason = Reason::parse(&now.reason).unwrap_or(Reason::Stalled);
        Notice::warning(reason, now.message.as_str())
    })
}

/// Whether `Ready` is true.
pub(super) fn is_ready(conditions: &[Condition]) -> bool {
    find(conditions, conditions::READY).is_some_and(|ready| ready.status == "True")
}

/// The condition of this type.
pub(super) fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Counts an object by its condition `Ready`.
pub(super) fn record_ready(metrics: &Metrics, kind: &str, uid: &str, conditions: &[Condition]) {
    if let Some(ready) = find(conditions, conditions::READY) {
        metrics.set_ready(kind, uid, &ready.status, &ready.reason);
    }
}

/// At most `most` bytes, on a character's boundary.
fn shortened(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_cut_between_characters() {
        assert_eq!(shortened("short", 10), "short");
        let cut = shortened(&"ü".repeat(700), LONGEST_NOTE);
        assert!(cut.len() <= LONGEST_NOTE && cut.ends_with("ü…"), "{}", cut.len());
    }
}
