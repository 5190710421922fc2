//! Secret documents, parsed without serde so that no library's error message can show a value.

use std::{collections::BTreeMap, fmt};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::{api::Problem, model::Password};

/// The entries of a Secret, decoded.
pub(super) struct SecretDocument(BTreeMap<String, Password>);

impl fmt::Debug for SecretDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl SecretDocument {
    /// Takes the entries of `data` (base64) and `stringData` (clear text, which wins) from a document of
    /// valid schema.
    pub(super) fn new(document: &Value, problems: &mut Vec<Problem>) -> Self {
        let mut entries = BTreeMap::new();
        for (field, encoded) in [("data", true), ("stringData", false)] {
            for (key, value) in document.get(field).and_then(Value::as_object).into_iter().flatten() {
                let Some(text) = value.as_str() else { continue };
                match if encoded { decode(text) } else { Ok(text.to_owned()) } {
                    Ok(text) => _ = entries.insert(key.clone(), Password::new(text)),
                    Err(message) => problems.push(Problem::new(format!("{field}.{key}"), message)),
                }
            }
        }
        SecretDocument(entries)
    }

    /// The entry of this key.
    pub(super) fn get(&self, key: &str) -> Option<&Password> {
        self.0.get(key)
    }
}

fn decode(text: &str) -> Result<String, &'static str> {
    // A folded YAML block breaks long values into lines.
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(text).map_err(|_| "must be base64; clear text belongs into stringData")?;
    String::from_utf8(bytes).map_err(|_| "must be UTF-8 text")
}
