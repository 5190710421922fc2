//! Secrets that can't be printed by accident.

use secrecy::{ExposeSecret, SecretString};

/// A password: its `Debug` shows nothing, and reading it takes an explicit [`Password::expose`].
#[derive(Clone)]
pub struct Password(SecretString);

impl Password {
    /// Wraps the clear text.
    pub fn new(text: impl Into<String>) -> Self {
        Password(SecretString::from(text.into()))
    }

    /// The clear text, for the one place that hands it to a server.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password([redacted])")
    }
}
