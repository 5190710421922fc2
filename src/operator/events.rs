//! Kubernetes events, which `kubectl describe` shows.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Client,
    runtime::events::{self, EventType, Recorder, Reporter},
};

use super::{error::api_error, object::condition};
use crate::{api::conditions::STALLED, fault::Reason};

/// The most bytes of a note that the API server accepts.
const MAX_NOTE: usize = 1000;
/// The most bytes of an action that the API server accepts.
const MAX_ACTION: usize = 128;

/// An event of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    /// Whether its type is `Warning`.
    pub(super) warning: bool,
    /// Its reason.
    pub(super) reason: Reason,
    /// The part of the object that it is about, or empty. Events of the same reason and subject are counted
    /// instead of repeated.
    pub(super) subject: String,
    /// What happened, in a sentence.
    pub(super) note: String,
}

impl Event {
    /// An event of type `Normal`.
    pub(super) fn normal(reason: Reason, note: impl Into<String>) -> Event {
        Event { warning: false, reason, subject: String::new(), note: note.into() }
    }

    /// An event of type `Warning`.
    pub(super) fn warning(reason: Reason, note: impl Into<String>) -> Event {
        Event { warning: true, ..Event::normal(reason, note) }
    }

    /// The same, about one part of the object.
    pub(super) fn about(self, subject: impl Into<String>) -> Event {
        Event { subject: subject.into(), ..self }
    }
}

/// Publishes events.
#[derive(Clone)]
pub(super) struct EventRecorder(Recorder);

impl EventRecorder {
    /// Events reported by the process `identity`.
    pub(super) fn new(client: Client, identity: &str) -> EventRecorder {
        let reporter = Reporter { controller: "walferry".to_owned(), instance: Some(identity.to_owned()) };
        EventRecorder(Recorder::new(client, reporter))
    }

    /// Publishes an event about an object. A failure is logged, because no reconcile should fail for the sake
    /// of an event.
    pub(super) async fn publish(&self, object: &ObjectReference, event: &Event) {
        let action = match event.subject.as_str() {
            "" => "Reconcile".to_owned(),
            subject => shortened(subject, MAX_ACTION),
        };
        let request = events::Event {
            type_: if event.warning { EventType::Warning } else { EventType::Normal },
            reason: event.reason.into(),
            note: Some(shortened(&event.note, MAX_NOTE)),
            action,
            secondary: None,
        };
        match self.0.publish(&request, object).await {
            Ok(()) => {}
            // A namespace that is terminating accepts no new objects.
            Err(kube::Error::Api(status)) if status.code == 403 || status.code == 404 => {
                tracing::debug!(error = status.message, reason = %event.reason, "event refused");
            }
            Err(error) => {
                tracing::warn!(error = api_error(&error), reason = %event.reason, "cannot publish an event")
            }
        }
    }
}

/// The event that manual action is required, when `Stalled` is new or has a new reason.
pub(super) fn stalled(before: &[Condition], after: &[Condition]) -> Option<Event> {
    let now = condition(after, STALLED)?;
    let known = condition(before, STALLED).is_some_and(|before| before.reason == now.reason);
    (!known).then(|| {
        let reason = Reason::parse(&now.reason).unwrap_or(Reason::Stalled);
        Event::warning(reason, now.message.as_str())
    })
}

/// At most `max` bytes, cut between characters.
fn shortened(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max - '…'.len_utf8()).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_notes_are_cut_between_characters() {
        assert_eq!(shortened("short", 10), "short");
        let cut = shortened(&"ü".repeat(700), MAX_NOTE);
        assert!(cut.len() <= MAX_NOTE && cut.ends_with("ü…"), "{}", cut.len());
    }
}
