//! Which ClickHouse type a source column becomes, and what that costs. The user's table of it is
//! `docs/types.md`.

use super::{ChType, Features, TypeError, parse};
use crate::model::{Column, SourceType};

/// Whether a column's values arrive unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fidelity {
    /// Every value but a numeric `NaN` is stored exactly.
    Lossless,
    /// Some values are not, for this reason. At run time `outOfRange` decides and each is counted.
    Lossy(String),
}

/// The type of the target column: the column's override, else the default for its type.
///
/// It is nullable exactly when the source column is, unless the override says `Nullable` itself; a `key`
/// column never is, for ClickHouse sorts by it.
///
/// # Errors
/// [`TypeError`] when the override is not a type or not one for this column.
pub fn target_type(column: &Column, features: Features, key: bool) -> Result<ChType, TypeError> {
    let chosen = match &column.type_override {
        None => match default_type(&column.source_type, features) {
            // ClickHouse sorts by no array whose elements may be NULL.
            chosen if key && has_nullable_elements(&chosen) => ChType::String,
            chosen => chosen,
        },
        Some(text) => parse(text).map_err(|reason| TypeError::Override {
            column: column.name.clone(),
            reason: Box::new(reason),
        })?,
    };
    fidelity(column, &chosen)?;
    if !key {
        return Ok(if column.nullable { chosen.into_nullable() } else { chosen });
    }
    if chosen.is_nullable() || has_nullable_elements(&chosen) {
        return Err(TypeError::NullableKey { column: column.name.clone(), target: chosen.to_string() });
    }
    Ok(chosen)
}

fn has_nullable_elements(column_type: &ChType) -> bool {
    matches!(column_type, ChType::Array(element) if element.is_nullable())
}

/// What a column loses when it is stored as `target`.
///
/// # Errors
/// [`TypeError::Impossible`] when the source type can't become the target type at all.
pub fn fidelity(column: &Column, target: &ChType) -> Result<Fidelity, TypeError> {
    match loss(&column.source_type, target.inner(), address_type(column)) {
        Some(mut reasons) => {
            if column.nullable && matches!(target, ChType::Array(_)) {
                reasons.push("a NULL array becomes []");
            }
            Ok(match reasons.is_empty() {
                true => Fidelity::Lossless,
                false => Fidelity::Lossy(reasons.join("; ")),
            })
        }
        None => Err(TypeError::Impossible {
            column: column.name.clone(),
            source_type: column.type_name.clone(),
            target: target.to_string(),
            allowed: allowed(&column.source_type, address_type(column)),
        }),
    }
}

/// Whether the column holds network addresses, which `IPv4` and `IPv6` take.
pub(in crate::clickhouse) fn address_type(column: &Column) -> bool {
    matches!(column.type_name.as_str(), "inet" | "cidr" | "inet[]" | "cidr[]")
}

fn default_type(source: &SourceType, features: Features) -> ChType {
    match source {
        SourceType::Bool => ChType::Bool,
        SourceType::Int2 => ChType::Int(16),
        SourceType::Int4 => ChType::Int(32),
        SourceType::Int8 => ChType::Int(64),
        SourceType::Oid => ChType::UInt(32),
        SourceType::Float4 => ChType::Float32,
        SourceType::Float8 => ChType::Float64,
        SourceType::Numeric(declared) => declared.and_then(decimal_of).unwrap_or(ChType::String),
        SourceType::Uuid => ChType::Uuid,
        SourceType::Date => ChType::Date32,
        SourceType::Timestamp | SourceType::TimestampTz => ChType::DateTime64(6, Some("UTC".to_owned())),
        SourceType::Time if features.time64 => ChType::Time64(6),
        SourceType::Enum => ChType::LowCardinality,
        SourceType::Vector => ChType::Array(Box::new(ChType::Float32)),
        SourceType::Array(element) => match default_type(element, features) {
            // A vector has no NULLs, but an array of vectors would be an array of arrays.
            ChType::Array(_) => ChType::Array(Box::new(ChType::String.into_nullable())),
            element => ChType::Array(Box::new(element.into_nullable())),
        },
        SourceType::Time
        | SourceType::Text
        | SourceType::Bytea
        | SourceType::Json
        | SourceType::Jsonb
        | SourceType::Other => ChType::String,
    }
}

/// The decimal that holds every `numeric(precision, scale)`: PostgreSQL allows scales below 0 and above the
/// precision, ClickHouse neither.
fn decimal_of((precision, scale): (u16, i16)) -> Option<ChType> {
    let precision = i32::from(precision);
    let scale = i32::from(scale);
    let (precision, scale) = if scale < 0 { (precision - scale, 0) } else { (precision.max(scale), scale) };
    let precision = u8::try_from(precision).ok().filter(|precision| (1..=76).contains(precision))?;
    Some(ChType::Decimal { precision, scale: u8::try_from(scale).ok()? })
}

/// Why values change when `source` is stored as `target` (never `Nullable` itself); nothing when they don't,
/// `None` when the pair is impossible.
fn loss(source: &SourceType, target: &ChType, address: bool) -> Option<Vec<&'static str>> {
    let lossless = Some(Vec::new());
    let lossy = |reason: &'static str| Some(vec![reason]);
    match (source, target) {
        (_, ChType::String | ChType::LowCardinality) => lossless,
        (SourceType::Bool, ChType::Bool | ChType::Int(_) | ChType::UInt(_)) => lossless,
        (SourceType::Int2 | SourceType::Int4 | SourceType::Int8 | SourceType::Oid, _) => {
            integer_loss(source, target)
        }
        (SourceType::Float4, ChType::Float32 | ChType::Float64) => lossless,
        (SourceType::Float8, ChType::Float64) => lossless,
        (SourceType::Float8, ChType::Float32) => lossy("values are rounded to single precision"),
        (SourceType::Numeric(_), ChType::Float32 | ChType::Float64) => {
            lossy("values are rounded to binary fractions")
        }
        (SourceType::Numeric(declared), ChType::Int(_) | ChType::UInt(_) | ChType::Decimal { .. }) => {
            numeric_loss(*declared, target)
        }
        (SourceType::Uuid, ChType::Uuid) => lossless,
        (SourceType::Date, ChType::Date32) => lossy("dates outside 1900 to 2299 and infinity don't fit"),
        (SourceType::Date, ChType::Date) => lossy("dates outside 1970 to 2149-06-06 and infinity don't fit"),
        (
            SourceType::Timestamp | SourceType::TimestampTz,
            ChType::DateTime(zone) | ChType::DateTime64(_, zone),
        ) => {
            let mut reasons = timestamp_loss(target);
            if *source == SourceType::Timestamp && zone.as_deref() != Some("UTC") {
                reasons.push("the wall clock is stored as if it were UTC, so another zone shows it shifted");
            }
            Some(reasons)
        }
        (SourceType::Time, ChType::Time64(6..)) => lossless,
        (SourceType::Time, ChType::Time64(_)) => lossy("fractions of a second are rounded"),
        (SourceType::Json | SourceType::Jsonb, ChType::Json) => lossy(
            "only objects fit; the order of keys, nulls in objects and the spelling of numbers are not kept",
        ),
        (SourceType::Vector, ChType::Array(element)) => match element.inner() {
            ChType::Float32 | ChType::Float64 => lossless,
            _ => None,
        },
        (SourceType::Array(element), ChType::Array(target)) => {
            let mut reasons = loss(element, target.inner(), address)?;
            reasons.push("arrays of several dimensions are flattened");
            if !target.is_nullable() {
                reasons.push("NULL elements don't fit");
            }
            Some(reasons)
        }
        (SourceType::Other, ChType::IPv4) if address => lossy("netmasks and IPv6 addresses don't fit"),
        (SourceType::Other, ChType::IPv6) if address => lossy("netmasks don't fit"),
        _ => None,
    }
}

fn integer_loss(source: &SourceType, target: &ChType) -> Option<Vec<&'static str>> {
    let (signed, bits, digits) = match source {
        SourceType::Int2 => (true, 16, 5),
        SourceType::Int4 => (true, 32, 10),
        SourceType::Int8 => (true, 64, 19),
        _ => (false, 32, 10),
    };
    let fits = match target {
        ChType::Int(width) => *width > bits || signed && *width == bits,
        ChType::UInt(width) => !signed && *width >= bits,
        ChType::Decimal { precision, scale } => precision - scale >= digits,
        ChType::Float64 => bits <= 32,
        ChType::Float32 => bits <= 16,
        _ => return None,
    };
    Some(match target {
        _ if fits => Vec::new(),
        ChType::Float32 | ChType::Float64 => vec!["large values are rounded"],
        _ => vec!["values outside the target's range don't fit"],
    })
}

fn numeric_loss(declared: Option<(u16, i16)>, target: &ChType) -> Option<Vec<&'static str>> {
    let (whole, fraction) = match target {
        ChType::Decimal { precision, scale } => (i32::from(precision - scale), i32::from(*scale)),
        // 2^n holds every number of n * log10(2) digits.
        ChType::Int(bits) => (i32::from(*bits - 1) * 301 / 1000, 0),
        ChType::UInt(_) => (-1, 0),
        _ => return None,
    };
    let (needed_whole, needed_fraction) = match declared {
        Some((precision, scale)) => (i32::from(precision) - i32::from(scale), i32::from(scale)),
        None => {
            return Some(vec![
                "values outside the target's range don't fit, digits beyond its scale are rounded",
            ]);
        }
    };
    let mut reasons = Vec::new();
    if needed_whole.max(0) > whole {
        reasons.push("values outside the target's range don't fit");
    }
    if needed_fraction > fraction {
        reasons.push("digits beyond the target's scale are rounded");
    }
    Some(reasons)
}

fn timestamp_loss(target: &ChType) -> Vec<&'static str> {
    match target {
        ChType::DateTime(_) => {
            vec!["times outside 1970 to 2106 and infinity don't fit", "fractions of a second are rounded"]
        }
        ChType::DateTime64(9, _) => vec!["times outside 1900 to 2262 and infinity don't fit"],
        ChType::DateTime64(6.., _) => vec!["times outside 1900 to 2299 and infinity don't fit"],
        _ => vec!["times outside 1900 to 2299 and infinity don't fit", "fractions of a second are rounded"],
    }
}

/// The types that a source type can become, for a message.
fn allowed(source: &SourceType, address: bool) -> String {
    let own = match source {
        SourceType::Bool => "Bool, Int8 to Int256, UInt8 to UInt256, ",
        SourceType::Int2 | SourceType::Int4 | SourceType::Int8 | SourceType::Oid => {
            "Int8 to Int256, UInt8 to UInt256, Decimal(P, S), Float32, Float64, "
        }
        SourceType::Float4 | SourceType::Float8 => "Float32, Float64, ",
        SourceType::Numeric(_) => "Decimal(P, S), Int8 to Int256, UInt8 to UInt256, Float32, Float64, ",
        SourceType::Uuid => "UUID, ",
        SourceType::Date => "Date32, Date, ",
        SourceType::Timestamp | SourceType::TimestampTz => "DateTime64(P), DateTime64(P, 'zone'), DateTime, ",
        SourceType::Time => "Time64(P), ",
        SourceType::Json | SourceType::Jsonb => "JSON, ",
        SourceType::Vector => "Array(Float32), Array(Float64), ",
        SourceType::Array(element) => {
            return format!(
                "String, LowCardinality(String), and Array or Array(Nullable) of {}",
                allowed(element, address)
            );
        }
        SourceType::Other if address => "IPv4, IPv6, ",
        SourceType::Text | SourceType::Bytea | SourceType::Enum | SourceType::Other => "",
    };
    format!("{own}String, LowCardinality(String)")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Features = Features { time64: true };

    fn column(source_type: SourceType, type_name: &str, type_override: Option<&str>) -> Column {
        Column {
            type_name: type_name.to_owned(),
            nullable: false,
            type_override: type_override.map(str::to_owned),
            ..Column::new("c", source_type)
        }
    }

    fn default_of(source: SourceType) -> String {
        target_type(&column(source, "t", None), NEW, false).unwrap().to_string()
    }

    fn overridden(source: SourceType, name: &str, target: &str) -> Result<ChType, TypeError> {
        target_type(&column(source, name, Some(target)), NEW, false)
    }

    fn lossless(source: SourceType, target: &str) -> bool {
        fidelity(&column(source, "t", None), &parse(target).unwrap()).unwrap() == Fidelity::Lossless
    }

    #[test]
    fn defaults() {
        for (source, target) in [
            (SourceType::Bool, "Bool"),
            (SourceType::Int2, "Int16"),
            (SourceType::Oid, "UInt32"),
            (SourceType::Numeric(None), "String"),
            (SourceType::Numeric(Some((12, 2))), "Decimal(12, 2)"),
            (SourceType::Numeric(Some((2, -3))), "Decimal(5, 0)"),
            (SourceType::Numeric(Some((3, 5))), "Decimal(5, 5)"),
            (SourceType::Numeric(Some((76, 76))), "Decimal(76, 76)"),
            (SourceType::Numeric(Some((77, 0))), "String"),
            (SourceType::Numeric(Some((1, -1000))), "String"),
            (SourceType::Bytea, "String"),
            (SourceType::Uuid, "UUID"),
            (SourceType::Date, "Date32"),
            (SourceType::Timestamp, "DateTime64(6, 'UTC')"),
            (SourceType::TimestampTz, "DateTime64(6, 'UTC')"),
            (SourceType::Time, "Time64(6)"),
            (SourceType::Jsonb, "String"),
            (SourceType::Enum, "LowCardinality(String)"),
            (SourceType::Vector, "Array(Float32)"),
            (SourceType::Other, "String"),
            (SourceType::Array(Box::new(SourceType::Int4)), "Array(Nullable(Int32))"),
            (SourceType::Array(Box::new(SourceType::Enum)), "Array(LowCardinality(Nullable(String)))"),
            (SourceType::Array(Box::new(SourceType::Vector)), "Array(Nullable(String))"),
        ] {
            assert_eq!(default_of(source), target);
        }
        let time = column(SourceType::Time, "time", None);
        assert_eq!(target_type(&time, Features::of(25, 5), false), Ok(ChType::String));
        assert_eq!(target_type(&time, Features::of(25, 6), false), Ok(ChType::Time64(6)));
    }

    #[test]
    fn nullable_follows_the_source_except_in_keys_and_arrays() {
        let nullable = |source, text| Column { nullable: true, ..column(source, "t", text) };
        let text = nullable(SourceType::Text, None);
        assert_eq!(target_type(&text, NEW, false).unwrap().to_string(), "Nullable(String)");
        assert_eq!(target_type(&text, NEW, true).unwrap().to_string(), "String");
        let label = nullable(SourceType::Enum, None);
        assert_eq!(target_type(&label, NEW, false).unwrap().to_string(), "LowCardinality(Nullable(String))");
        let array = nullable(SourceType::Array(Box::new(SourceType::Text)), None);
        assert_eq!(target_type(&array, NEW, false).unwrap().to_string(), "Array(Nullable(String))");
        assert_eq!(target_type(&array, NEW, true), Ok(ChType::String));
        let elements = |text| column(SourceType::Array(Box::new(SourceType::Int4)), "integer[]", Some(text));
        assert!(target_type(&elements("Array(Int32)"), NEW, true).is_ok());
        let refused = target_type(&elements("Array(Nullable(Int32))"), NEW, true);
        assert!(matches!(refused, Err(TypeError::NullableKey { .. })));
        let wrapped = nullable(SourceType::Int4, Some("Nullable(Int64)"));
        assert_eq!(target_type(&wrapped, NEW, false).unwrap().to_string(), "Nullable(Int64)");
        assert!(matches!(target_type(&wrapped, NEW, true), Err(TypeError::NullableKey { .. })));
        let explicit = column(SourceType::Int4, "integer", Some("Nullable(Int64)"));
        assert_eq!(target_type(&explicit, NEW, false).unwrap().to_string(), "Nullable(Int64)");
    }

    #[test]
    fn impossible_overrides_name_what_is_allowed() {
        let error = overridden(SourceType::Bool, "boolean", "Date").unwrap_err();
        assert_eq!(
            error.to_string(),
            "column c: boolean can't be stored as Date; allowed are Bool, Int8 to Int256, UInt8 to UInt256, String, \
             LowCardinality(String)"
        );
        let error = overridden(SourceType::Text, "text", "Strin").unwrap_err();
        assert!(error.to_string().starts_with("column c: columns.types: 'Strin' is not a ClickHouse type"));
        assert!(overridden(SourceType::Text, "text", "UUID").is_err());
        assert!(overridden(SourceType::Int4, "integer", "Array(Int32)").is_err());
        assert!(overridden(SourceType::Other, "interval", "IPv4").is_err());
        assert!(overridden(SourceType::Other, "inet", "IPv4").is_ok());
    }

    #[test]
    fn warns_of_what_is_lost() {
        assert!(lossless(SourceType::Numeric(Some((12, 2))), "Decimal(12, 2)"));
        assert!(lossless(SourceType::Numeric(Some((12, 2))), "Decimal(13, 3)"));
        assert!(!lossless(SourceType::Numeric(Some((12, 2))), "Decimal(12, 3)"));
        assert!(!lossless(SourceType::Numeric(Some((12, 2))), "Decimal(12, 1)"));
        assert!(!lossless(SourceType::Numeric(None), "Decimal(76, 20)"));
        assert!(lossless(SourceType::Numeric(Some((18, 0))), "Int64"));
        assert!(!lossless(SourceType::Numeric(Some((19, 0))), "Int64"));
        assert!(!lossless(SourceType::Numeric(Some((3, 0))), "UInt64"));
        assert!(lossless(SourceType::Int4, "Int64"));
        assert!(!lossless(SourceType::Int4, "UInt32"));
        assert!(!lossless(SourceType::Oid, "Int32"));
        assert!(lossless(SourceType::Oid, "Int64"));
        assert!(lossless(SourceType::Int8, "Decimal(19, 0)"));
        assert!(!lossless(SourceType::Int8, "Float64"));
        assert!(!lossless(SourceType::Timestamp, "DateTime64(6)"));
        assert!(lossless(SourceType::Date, "String"));
        let array = SourceType::Array(Box::new(SourceType::Int4));
        let nullable = Column { nullable: true, ..column(array, "integer[]", None) };
        assert_eq!(
            fidelity(&nullable, &parse("Array(Int64)").unwrap()),
            Ok(Fidelity::Lossy(
                "arrays of several dimensions are flattened; NULL elements don't fit; a NULL array becomes []".to_owned()
            ))
        );
    }
}
