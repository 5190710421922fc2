//! Why a Mirror or a table does not move.

use serde::{Deserialize, Serialize};

use crate::fault::{Reason, Remedy, RemedyRenderer, remedy};

/// Why a Mirror or a table does not move: a documented CamelCase reason, a sentence, and what helps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorFailure {
    /// The reason.
    pub reason: Reason,
    /// What failed, and why.
    pub message: String,
    /// What helps, in order; none in the report of an older replicator.
    #[serde(default, deserialize_with = "remedy::known", skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Remedy>,
}

impl MirrorFailure {
    /// One that nothing more is known to help against than what its sentence says.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        MirrorFailure { reason, message: message.into(), remedies: Vec::new() }
    }

    /// The same, where the source may be a standby.
    pub(super) fn for_source(self, is_standby: bool) -> Self {
        match is_standby {
            true => MirrorFailure {
                remedies: self.remedies.into_iter().map(Remedy::at_primary).collect(),
                ..self
            },
            false => self,
        }
    }

    /// What failed, and the remedies where a renderer is set.
    pub fn sentence(&self, renderer: Option<&dyn RemedyRenderer>) -> String {
        match renderer {
            Some(renderer) => remedy::sentence(&self.message, &self.remedies, renderer),
            None => self.message.clone(),
        }
    }
}
