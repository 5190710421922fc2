//! What conditions and annotations mean, for the reference in the docs; [`crate::fault::Reason`] has the reasons.

use super::{ABANDON, RESYNC, conditions as types};

/// Condition types and what they mean.
pub const CONDITIONS: &[(&str, &str)] = &[
    (
        types::READY,
        "Rows flow, or nothing more is asked for. Unknown while a Mirror is on its way there. Always present.",
    ),
    (
        types::RECONCILING,
        "Work is going on or is tried again. Present only while it is True, and never beside Stalled.",
    ),
    (
        types::STALLED,
        "Nothing will happen until somebody acts; the message says what to do. Present only while it is True.",
    ),
    (types::SOURCE_READY, "The source can be used; Unknown while it is not in use. Mirrors only."),
    (types::DESTINATION_READY, "The destination can be used; Unknown while it is not in use. Mirrors only."),
    (types::SNAPSHOTTED, "The rows that were there at the start are copied. Mirrors only."),
    (types::STREAMING, "Changes flow. Mirrors only."),
    (
        types::CAUGHT_UP,
        "The destination has everything that the source has committed; its message has the lag. Mirrors only.",
    ),
];

/// Annotations that people set, and what they do.
pub const ANNOTATIONS: &[(&str, &str)] = &[
    (
        RESYNC,
        "On a Mirror: copies all tables anew when its value changes, with a new slot. What to do after the slot was lost. \
         `kubectl annotate mirror NAME walferry.dev/resync=\"$(date +%s)\" --overwrite`. Tables that are named behind the value's first \
         word are copied alone, and the slot stays: `walferry.dev/resync=\"$(date +%s) public.orders public.users\"`.",
    ),
    (
        ABANDON,
        "On a Mirror that is being deleted and can't clean up: `true` lets it go. An event says what is left behind at the source and \
         the destination. `kubectl annotate mirror NAME walferry.dev/abandon=true`",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_is_documented() {
        assert_eq!(CONDITIONS.iter().map(|(type_, _)| *type_).collect::<Vec<_>>(), types::ALL);
    }
}
