//! What every encoder takes and gives.

use super::numeric::Limits;

/// How an encoded value relates to the source's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// The same value.
    Exact,
    /// The nearest value that the target type holds was written instead.
    Adjusted,
}

/// The bytes are not what the source type promises, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

pub(super) type Encoded = Result<Fit, Malformed>;

/// Appends one value in the target's form. On an error it may leave a part of it behind.
pub(super) type Encode = fn(&Params, &[u8], &mut Vec<u8>) -> Encoded;

/// Appends the text that PostgreSQL's output function gives for a value in binary send form.
pub(super) type Render = fn(&[u8], &mut Vec<u8>) -> Result<(), Malformed>;

/// What encoders need to know about their target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Params {
    /// Bounds and scale of numbers.
    pub(super) limits: Limits,
    /// Digits of a second's fraction.
    pub(super) precision: u8,
    /// The text form of the source type, or of its elements.
    pub(super) render: Render,
}
