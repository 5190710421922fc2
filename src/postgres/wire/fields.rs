//! Fields inside message bodies: errors, notices and rows of text.

use crate::postgres::{DecodeError, Error};

/// The fields of an ErrorResponse or NoticeResponse that we show
/// (<https://www.postgresql.org/docs/current/protocol-error-fields.html>).
#[derive(Debug, Default)]
pub(super) struct ErrorFields {
    sqlstate: String,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl ErrorFields {
    /// Reads a body; what is cut off or not UTF-8 is read as far as it goes.
    pub(super) fn parse(body: &[u8]) -> Self {
        let mut fields = ErrorFields::default();
        for field in body.split(|&byte| byte == 0) {
            let Some((&letter, text)) = field.split_first() else { break };
            let text = String::from_utf8_lossy(text).into_owned();
            match letter {
                b'C' => fields.sqlstate = text,
                b'M' => fields.message = text,
                b'D' => fields.detail = Some(text),
                b'H' => fields.hint = Some(text),
                _ => {}
            }
        }
        fields
    }

    /// As an error met after authentication.
    pub(super) fn into_error(self) -> Error {
        let ErrorFields { sqlstate, message, detail, hint } = self;
        Error::of_rows(sqlstate, message, detail, hint)
    }

    /// As an error met while `username` logs in.
    pub(super) fn into_log_in_error(self, username: &str) -> Error {
        Error::from_server(username, &self.sqlstate, self.message, self.detail, self.hint)
    }
}

/// Logs a NoticeResponse, message text only.
pub(super) fn log_notice(body: &[u8]) {
    tracing::debug!(notice = ErrorFields::parse(body).message, "notice from the server");
}

/// A DataRow in text format, as the simple query protocol sends it.
pub(super) fn text_row(body: &[u8]) -> Result<Vec<Option<String>>, DecodeError> {
    let truncated = |field, rest: &[u8]| DecodeError::Truncated { field, at: body.len() - rest.len() };
    let (count, mut rest) = body.split_first_chunk().ok_or(truncated("column count", body))?;
    let mut row = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk().ok_or(truncated("value length", rest))?;
        rest = tail;
        match i32::from_be_bytes(*length) {
            -1 => row.push(None),
            length => {
                let length = usize::try_from(length).map_err(|_| DecodeError::Length(length.into()))?;
                let (value, tail) = rest.split_at_checked(length).ok_or(truncated("value", rest))?;
                rest = tail;
                let text = std::str::from_utf8(value).map_err(|_| DecodeError::NotUtf8("a value"))?;
                row.push(Some(text.to_owned()));
            }
        }
    }
    if rest.is_empty() { Ok(row) } else { Err(DecodeError::TrailingBytes(rest.len())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_fields_of_an_error() {
        let body = b"SERROR\0VERROR\0C55006\0Mslot is active\0Dby PID 7\0Hwait\0Fslot.c\0\0";
        let error = ErrorFields::parse(body).into_error();
        assert_eq!(error.to_string(), "slot is active (SQLSTATE 55006); by PID 7; wait");
        assert_eq!(error.sqlstate(), Some("55006"));
    }

    #[test]
    fn reads_a_text_row() {
        let body = b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(text_row(body).unwrap(), [Some("ab".into()), None, Some(String::new())]);
        assert_eq!(text_row(b"\0\x01\0\0\0\x02a"), Err(DecodeError::Truncated { field: "value", at: 6 }));
    }

    proptest! {
        #[test]
        fn never_panics(body in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = text_row(&body);
            ErrorFields::parse(&body);
        }
    }
}
