//! Rows of a binary COPY, borrowed from the receive buffer.

use std::time::Duration;

use super::{
    Connection,
    buffer::Frame,
    connection::{ANSWER_TIMEOUT, unexpected, within},
    fields::{ErrorFields, log_notice},
};
use crate::postgres::{DecodeError, Error};

/// <https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-FILE-FORMATS>
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// Longest time without a byte: a filter may let the first row through after reading a large table, or it is
/// sorted.
const SILENCE: Duration = Duration::from_secs(6 * 3600);

/// A field count of -1 ends the data.
const TRAILER: [u8; 2] = [0xff, 0xff];

impl Connection {
    /// Runs a `COPY … TO STDOUT (FORMAT binary)`, whose rows are then read from the answer.
    ///
    /// # Errors
    /// [`Error::Server`] keeps the SQLSTATE and leaves the connection usable.
    pub async fn copy_out(&mut self, sql: &str) -> Result<CopyOut<'_>, Error> {
        self.start(sql).await?;
        let frame = within(ANSWER_TIMEOUT, self.next_frame()).await?;
        let body = self.buffer.slice(frame.body.clone());
        match frame.tag {
            b'H' if body.first() == Some(&1) => Ok(CopyOut::new(self)),
            b'H' => Err(Error::Protocol("COPY answers in text, not in binary".into())),
            b'E' => {
                let error = ErrorFields::parse(body).into_error();
                Err(self.drain_after(error).await)
            }
            tag => Err(unexpected(tag, "the answer to COPY")),
        }
    }
}

/// The answer to a COPY, row by row. Dropping it before the end makes the connection unusable.
#[derive(Debug)]
pub struct CopyOut<'a> {
    connection: &'a mut Connection,
    header_seen: bool,
    done: bool,
}

impl<'a> CopyOut<'a> {
    fn new(connection: &'a mut Connection) -> Self {
        CopyOut { connection, header_seen: false, done: false }
    }

    /// The next row's payload (field count, then length and bytes of each field), for
    /// [`crate::postgres::pgoutput::decode_copy_row`]; `None` at the end, when the connection is free again.
    /// Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Server`] where the server gives up; the connection is then free again too, unless it was cut.
    pub async fn next(&mut self) -> Result<Option<&[u8]>, Error> {
        while !self.done {
            let Some(Frame { tag, mut body, left_out }) = self.connection.buffer.next_frame()? else {
                within(SILENCE, self.connection.buffer.fill(&mut self.connection.transport)).await?;
                continue;
            };
            if left_out > 0 {
                return Err(Error::RowTooLong { bytes: body.len() + left_out });
            }
            let bytes = self.connection.buffer.slice(body.clone());
            match tag {
                b'd' => {
                    if !self.header_seen {
                        body.start += header_length(bytes)?;
                        self.header_seen = true;
                    }
                    // The protocol promises one row a message; the header comes with the first or alone.
                    let row = self.connection.buffer.slice(body.clone());
                    if !row.is_empty() && row != TRAILER {
                        return Ok(Some(self.connection.buffer.slice(body)));
                    }
                }
                b'Z' => {
                    self.done = true;
                    self.connection.idle = true;
                }
                b'N' => log_notice(bytes),
                b'c' | b'C' | b'S' | b'A' => {}
                b'E' => {
                    self.done = true;
                    let error = ErrorFields::parse(bytes).into_error();
                    return Err(self.connection.drain_after(error).await);
                }
                tag => return Err(unexpected(tag, "a COPY")),
            }
        }
        Ok(None)
    }

    /// Leaves out the rows that are still to come. Cancel-safe.
    ///
    /// # Errors
    /// As [`CopyOut::next`].
    pub async fn skip(&mut self) -> Result<(), Error> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

/// The length of the header that `data` begins with.
pub(super) fn header_length(data: &[u8]) -> Result<usize, Error> {
    let truncated = DecodeError::Truncated { field: "COPY header", at: data.len() };
    let (signature, rest) = data.split_first_chunk::<11>().ok_or(truncated)?;
    if signature != SIGNATURE {
        return Err(Error::Protocol("COPY data does not begin with the binary signature".into()));
    }
    let (flags, rest) = rest.split_first_chunk().ok_or(truncated)?;
    // The upper half are features that a reader must know; there is none that we asked for.
    if u32::from_be_bytes(*flags) >> 16 != 0 {
        return Err(Error::Protocol("COPY data has an unknown critical flag".into()));
    }
    let (extension, rest) = rest.split_first_chunk().ok_or(truncated)?;
    let extension = usize::try_from(u32::from_be_bytes(*extension)).map_err(|_| truncated)?;
    rest.get(extension..).map(|row| data.len() - row.len()).ok_or(truncated.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_end_of_the_header() {
        let header = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\x02ab";
        assert_eq!(header_length(header).unwrap(), 21);
        assert_eq!(header_length(&[header.as_slice(), b"\0\x01"].concat()).unwrap(), 21);
        assert!(matches!(header_length(&header[..20]), Err(Error::Decode(DecodeError::Truncated { .. }))));
        assert!(matches!(header_length(b"1\t2\n3\t4\n5\t6\n"), Err(Error::Protocol(_))));
        assert!(matches!(header_length(b"PGCOPY\n\xff\r\n\0\0\x01\0\0\0\0\0\0"), Err(Error::Protocol(_))));
    }

    proptest! {
        #[test]
        fn never_panics(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = header_length(&[SIGNATURE.as_slice(), &data].concat());
            let _ = header_length(&data);
        }
    }
}
