//! The meaning of conditions and annotations, for the reference in the docs; [`crate::fault::Reason`] has the
//! reasons.

use super::{RESYNC, SKIP_CLEANUP, conditions as types};

/// Condition types and what they mean.
pub const CONDITIONS: &[(&str, &str)] = &[
    (
        types::READY,
        "Changes are streaming, or nothing more is requested. Unknown while a Mirror is on its way there. Always present.",
    ),
    (types::RECONCILING, "In progress or retrying. Present only while it is True, and never beside Stalled."),
    (types::STALLED, "Manual action required; the message has the remedy. Present only while it is True."),
    (types::SOURCE_READY, "The source can be used; Unknown while it is not in use. Mirrors only."),
    (types::DESTINATION_READY, "The destination can be used; Unknown while it is not in use. Mirrors only."),
    (types::SNAPSHOTTED, "The existing rows are copied. Mirrors only."),
    (types::STREAMING, "Changes are streaming. Mirrors only."),
    (
        types::CAUGHT_UP,
        "The destination has everything that the source has committed; its message has the lag. Mirrors only.",
    ),
];

/// Annotations that people set, and what they do.
pub const ANNOTATIONS: &[(&str, &str)] = &[
    (
        RESYNC,
        "On a Mirror: copies all tables again when its value changes, with a new slot. The remedy for a lost slot. \
         `kubectl annotate mirror NAME walferry.dev/resync=\"$(date +%s)\" --overwrite`. Only tables that are named after the value's first \
         word are copied, and the slot stays: `walferry.dev/resync=\"$(date +%s) public.orders public.users\"`.",
    ),
    (
        SKIP_CLEANUP,
        "On a Mirror that is being deleted and can't clean up: `true` releases it. An event names what remains at the source and \
         the destination. `kubectl annotate mirror NAME walferry.dev/skip-cleanup=true`",
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
