//! The ClickHouse types that walferry writes, and which PostgreSQL type becomes which.
//!
//! <https://clickhouse.com/docs/reference/data-types>

mod calendar;
mod mapping;
mod parse;
mod u256;
mod value;
mod widening;

use std::fmt;

pub(super) use calendar::{civil_from_days, days_from_civil};
pub(super) use mapping::address_type;
pub use mapping::{Fidelity, fidelity, target_type};
pub use parse::parse;
pub(super) use u256::U256;
pub use value::{RowBinaryError, display};

/// A type of a target column. [`fmt::Display`] gives its SQL exactly as ClickHouse shows it in
/// `system.columns`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChType {
    /// `Bool`
    Bool,
    /// `Int8` to `Int256`, by bits.
    Int(u16),
    /// `UInt8` to `UInt256`, by bits.
    UInt(u16),
    /// `Float32`
    Float32,
    /// `Float64`
    Float64,
    /// `Decimal(precision, scale)`, precision 1 to 76, scale at most the precision.
    Decimal {
        /// Decimal digits in all.
        precision: u8,
        /// Digits after the point.
        scale: u8,
    },
    /// `String`: any bytes.
    String,
    /// `LowCardinality(String)`
    LowCardinality,
    /// `UUID`
    Uuid,
    /// `Date`: 1970-01-01 to 2149-06-06.
    Date,
    /// `Date32`: 1900-01-01 to 2299-12-31.
    Date32,
    /// `DateTime`, seconds in 1970 to 2106, with the time zone it is shown in.
    DateTime(Option<String>),
    /// `DateTime64`, 1900 to 2299, by digits of the second's fraction, with the time zone it is shown in.
    DateTime64(u8, Option<String>),
    /// `Time64`, by digits of the second's fraction.
    Time64(u8),
    /// `IPv4`
    IPv4,
    /// `IPv6`
    IPv6,
    /// `JSON`
    Json,
    /// `Array` of a type that is not itself an array.
    Array(Box<ChType>),
    /// `Nullable` of a type that is neither an array nor nullable; of [`ChType::LowCardinality`] it is
    /// `LowCardinality(Nullable(String))`.
    Nullable(Box<ChType>),
}

impl ChType {
    /// The type without `Nullable`.
    pub fn inner(&self) -> &ChType {
        match self {
            ChType::Nullable(inner) => inner,
            other => other,
        }
    }

    /// Whether the type holds NULL.
    pub fn is_nullable(&self) -> bool {
        matches!(self, ChType::Nullable(_))
    }

    /// The type that holds NULL as well; arrays stay as they are, for ClickHouse has no nullable arrays.
    #[must_use]
    pub fn into_nullable(self) -> ChType {
        match self {
            ChType::Array(_) | ChType::Nullable(_) => self,
            other => ChType::Nullable(Box::new(other)),
        }
    }

    /// Whether equal source values give equal stored bytes, so that [`ChType::compare`] and byte equality
    /// mean something. ClickHouse parses `JSON` and renders it again, so its text can't be compared.
    pub fn is_comparable(&self) -> bool {
        match self {
            ChType::Json => false,
            ChType::Array(inner) | ChType::Nullable(inner) => inner.is_comparable(),
            _ => true,
        }
    }

    /// The type that the column has in a Native block: ClickHouse makes `LowCardinality` and `JSON` from
    /// plain strings while it inserts (`input_format_native_allow_types_conversion`).
    pub(super) fn block_type(&self) -> ChType {
        match self {
            ChType::LowCardinality | ChType::Json => ChType::String,
            ChType::Array(inner) => ChType::Array(Box::new(inner.block_type())),
            ChType::Nullable(inner) => ChType::Nullable(Box::new(inner.block_type())),
            other => other.clone(),
        }
    }

    /// Bytes of a value where they are fixed; `None` for strings and arrays.
    pub(super) fn width(&self) -> Option<usize> {
        match self {
            ChType::Bool => Some(1),
            ChType::Int(bits) | ChType::UInt(bits) => Some(usize::from(*bits / 8)),
            ChType::Float32 | ChType::Date32 | ChType::DateTime(_) | ChType::IPv4 => Some(4),
            ChType::Float64 | ChType::DateTime64(..) | ChType::Time64(_) => Some(8),
            ChType::Decimal { precision, .. } => Some(match precision {
                0..=9 => 4,
                10..=18 => 8,
                19..=38 => 16,
                _ => 32,
            }),
            ChType::Date => Some(2),
            ChType::Uuid | ChType::IPv6 => Some(16),
            ChType::String
            | ChType::LowCardinality
            | ChType::Json
            | ChType::Array(_)
            | ChType::Nullable(_) => None,
        }
    }
}

impl fmt::Display for ChType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChType::Bool => f.write_str("Bool"),
            ChType::Int(bits) => write!(f, "Int{bits}"),
            ChType::UInt(bits) => write!(f, "UInt{bits}"),
            ChType::Float32 => f.write_str("Float32"),
            ChType::Float64 => f.write_str("Float64"),
            ChType::Decimal { precision, scale } => write!(f, "Decimal({precision}, {scale})"),
            ChType::String => f.write_str("String"),
            ChType::LowCardinality => f.write_str("LowCardinality(String)"),
            ChType::Uuid => f.write_str("UUID"),
            ChType::Date => f.write_str("Date"),
            ChType::Date32 => f.write_str("Date32"),
            ChType::DateTime(None) => f.write_str("DateTime"),
            ChType::DateTime(Some(zone)) => write!(f, "DateTime('{zone}')"),
            ChType::DateTime64(precision, None) => write!(f, "DateTime64({precision})"),
            ChType::DateTime64(precision, Some(zone)) => write!(f, "DateTime64({precision}, '{zone}')"),
            ChType::Time64(precision) => write!(f, "Time64({precision})"),
            ChType::IPv4 => f.write_str("IPv4"),
            ChType::IPv6 => f.write_str("IPv6"),
            ChType::Json => f.write_str("JSON"),
            ChType::Array(element) => write!(f, "Array({element})"),
            ChType::Nullable(inner) if **inner == ChType::LowCardinality => {
                f.write_str("LowCardinality(Nullable(String))")
            }
            ChType::Nullable(inner) => write!(f, "Nullable({inner})"),
        }
    }
}

/// What a ClickHouse release has that decides about types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `Time64`: from 25.6, behind `enable_time_time64_type`, which is on by default from 25.12.
    pub time64: bool,
}

impl Features {
    /// The features of a release, 26.7 being `of(26, 7)`.
    pub fn of(major: u32, minor: u32) -> Features {
        Features { time64: (major, minor) >= (25, 6) }
    }
}

/// A column can't be stored as asked.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TypeError {
    /// The text is not a type that walferry writes.
    #[error(
        "'{0}' is not a ClickHouse type that walferry writes: Bool, Int8 to Int256, UInt8 to UInt256, Float32, Float64, \
         Decimal(P, S), String, LowCardinality(String), UUID, Date, Date32, DateTime, DateTime64(P), Time64(P), IPv4, IPv6, \
         JSON, and Array or Nullable of these"
    )]
    Unknown(String),
    /// The override of a column is not a type.
    #[error("column {column}: columns.types: {reason}")]
    Override {
        /// Source column name.
        column: String,
        /// What is wrong with the text.
        #[source]
        reason: Box<TypeError>,
    },
    /// No value of the source type is a value of the target type.
    #[error("column {column}: {source_type} can't be stored as {target}; allowed are {allowed}")]
    Impossible {
        /// Source column name.
        column: String,
        /// The source type as PostgreSQL shows it.
        source_type: String,
        /// The type asked for.
        target: String,
        /// The types that go.
        allowed: String,
    },
    /// ClickHouse has no nullable sorting keys.
    #[error("column {column}: a key column can't be {target}; leave Nullable out")]
    NullableKey {
        /// Source column name.
        column: String,
        /// The type asked for.
        target: String,
    },
}
