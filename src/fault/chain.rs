//! An error and what caused it, as one walk.

use std::{error::Error, io, iter};

/// The error and what caused it, outermost first. An [`io::Error`] hides what it wraps from `source`, so both
/// are followed.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        }
    })
}

/// The words of the innermost cause: those of the layers above it often say no more than "client error".
pub fn innermost(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map_or_else(String::new, ToString::to_string)
}

/// The words of the error and of each cause, once: some errors repeat what their cause says.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut words = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.contains(&cause) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Layer {
        words: &'static str,
        #[source]
        cause: io::Error,
    }

    #[test]
    fn an_io_error_shows_what_it_wraps() {
        let error = Layer { words: "client error", cause: io::Error::other("certificate expired") };
        assert_eq!(innermost(&error), "certificate expired");
        assert_eq!(error_chain(&error), "client error: certificate expired");
        let repeats = Layer { words: "client error: reset", cause: io::Error::other("reset") };
        assert_eq!(error_chain(&repeats), "client error: reset");
    }
}
