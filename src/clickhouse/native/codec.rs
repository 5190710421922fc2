//! One encoder a column and wire form, chosen once.

use super::{
    array,
    encoding::{Encode, Encoded, Malformed, Params, Render},
    float_text,
    number::{self, BinaryInt2, BinaryInt4, BinaryInt8, BinaryOid},
    numeric::{self, Limits},
    string, time,
};
use crate::{
    clickhouse::types::{ChType, U256},
    model::SourceType,
};

/// The encoders of a pair of types.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codec {
    pub(super) binary: Encode,
    pub(super) text: Encode,
    pub(super) params: Params,
}

/// The encoders from a source type to a target type (neither arrays nor nullable), `None` when there are
/// none.
/// [`crate::clickhouse::types::fidelity`] knows the same pairs. `address` says that the source is `inet` or
/// `cidr`.
pub(super) fn codec(source: &SourceType, target: &ChType, address: bool) -> Option<Codec> {
    let limits = Limits::of(target);
    let render = render(source);
    let precision = match target {
        ChType::DateTime64(precision, _) | ChType::Time64(precision) => *precision,
        _ => 0,
    };
    let (binary, text) = encoders(source, target, address)?;
    Some(Codec { binary, text, params: Params { limits, precision, render } })
}

fn encoders(source: &SourceType, target: &ChType, address: bool) -> Option<(Encode, Encode)> {
    if matches!(target, ChType::String | ChType::LowCardinality) {
        return Some(to_string(source));
    }
    Some(match (source, target) {
        (SourceType::Int2, ChType::Int(16)) => (number::swap::<BinaryInt2, 2>, integer(source, target)?.1),
        (SourceType::Int4, ChType::Int(32)) => (number::swap::<BinaryInt4, 4>, integer(source, target)?.1),
        (SourceType::Oid, ChType::UInt(32)) => (number::swap::<BinaryOid, 4>, integer(source, target)?.1),
        (SourceType::Int8, ChType::Int(64)) => (number::swap::<BinaryInt8, 8>, integer(source, target)?.1),
        (SourceType::Bool, ChType::Bool | ChType::Int(_) | ChType::UInt(_)) => integer(source, target)?,
        (_, ChType::Bool) => return None,
        (SourceType::Int2 | SourceType::Int4 | SourceType::Int8 | SourceType::Oid, _) => {
            integer(source, target)?
        }
        (SourceType::Float4, ChType::Float32) => (number::single, number::parsed_single),
        (SourceType::Float8, ChType::Float64) => (number::double, number::parsed_double),
        (SourceType::Float4, ChType::Float64) => (number::single_to_double, number::text_single_to_double),
        (SourceType::Float8, ChType::Float32) => (number::double_to_single, number::text_double_to_single),
        (SourceType::Numeric(_), ChType::Float32) => (number::numeric_to_single, number::parsed_single),
        (SourceType::Numeric(_), ChType::Float64) => (number::numeric_to_double, number::parsed_double),
        (SourceType::Numeric(_), ChType::Decimal { .. } | ChType::Int(_) | ChType::UInt(_)) => {
            match target.width() {
                Some(..=8) => (numeric::binary::<u64>, numeric::text::<u64>),
                Some(16) => (numeric::binary::<u128>, numeric::text::<u128>),
                _ => (numeric::binary::<U256>, numeric::text::<U256>),
            }
        }
        (SourceType::Uuid, ChType::Uuid) => (string::binary_uuid, string::text_uuid),
        (SourceType::Date, ChType::Date32) => (time::binary_date::<i32>, time::text_date::<i32>),
        (SourceType::Date, ChType::Date) => (time::binary_date::<u16>, time::text_date::<u16>),
        (SourceType::Timestamp, ChType::DateTime(_)) => (time::binary_seconds, time::text_seconds::<false>),
        (SourceType::TimestampTz, ChType::DateTime(_)) => (time::binary_seconds, time::text_seconds::<true>),
        (SourceType::Timestamp, ChType::DateTime64(..)) => (time::binary_ticks, time::text_ticks::<false>),
        (SourceType::TimestampTz, ChType::DateTime64(..)) => (time::binary_ticks, time::text_ticks::<true>),
        (SourceType::Time, ChType::Time64(_)) => (time::binary_time, time::text_time),
        (SourceType::Json, ChType::Json) => (string::json_object, string::json_object),
        (SourceType::Jsonb, ChType::Json) => (string::jsonb_object, string::json_object),
        (SourceType::Other, ChType::IPv4) if address => (no_binary, string::ipv4),
        (SourceType::Other, ChType::IPv6) if address => (no_binary, string::ipv6),
        _ => return None,
    })
}

/// The encoders of an integer or boolean source.
fn integer(source: &SourceType, target: &ChType) -> Option<(Encode, Encode)> {
    use number::{BinaryBool, TextBool, TextInt};
    let binary = match source {
        SourceType::Bool => from_integer::<BinaryBool>(target),
        SourceType::Int2 => from_integer::<BinaryInt2>(target),
        SourceType::Int4 => from_integer::<BinaryInt4>(target),
        SourceType::Int8 => from_integer::<BinaryInt8>(target),
        _ => from_integer::<BinaryOid>(target),
    };
    let text = match source {
        SourceType::Bool => from_integer::<TextBool>(target),
        _ => from_integer::<TextInt>(target),
    };
    Some((binary?, text?))
}

fn from_integer<I: number::Integer>(target: &ChType) -> Option<Encode> {
    Some(match target {
        ChType::Float32 => number::integer_to_single::<I>,
        ChType::Float64 => number::integer_to_double::<I>,
        ChType::Bool | ChType::Int(_) | ChType::UInt(_) | ChType::Decimal { .. } => match target.width() {
            Some(..=8) => number::integer::<I, u64>,
            Some(16) => number::integer::<I, u128>,
            _ => number::integer::<I, U256>,
        },
        _ => return None,
    })
}

fn to_string(source: &SourceType) -> (Encode, Encode) {
    match source {
        SourceType::Text | SourceType::Json | SourceType::Enum => (string::verbatim, string::verbatim),
        SourceType::Bytea => (string::verbatim, string::unhex),
        SourceType::Jsonb => (string::jsonb, string::verbatim),
        SourceType::Array(_) => (array::to_string, string::verbatim),
        SourceType::Other => (no_binary, string::verbatim),
        _ => (string::rendered, string::verbatim),
    }
}

/// The text form of a type; of an array's elements for an array.
fn render(source: &SourceType) -> Render {
    match source {
        SourceType::Bool => number::render_bool,
        SourceType::Int2 => number::render::<number::BinaryInt2>,
        SourceType::Int4 => number::render::<number::BinaryInt4>,
        SourceType::Int8 => number::render::<number::BinaryInt8>,
        SourceType::Oid => number::render::<number::BinaryOid>,
        SourceType::Float4 => float_text::render_single,
        SourceType::Float8 => float_text::render_double,
        SourceType::Numeric(_) => numeric::render,
        SourceType::Text | SourceType::Json | SourceType::Enum => string::render_text,
        SourceType::Bytea => string::render_hex,
        SourceType::Uuid => string::render_uuid,
        SourceType::Date => time::render_date,
        SourceType::Timestamp => time::render_timestamp::<false>,
        SourceType::TimestampTz => time::render_timestamp::<true>,
        SourceType::Time => time::render_time,
        SourceType::Jsonb => string::render_jsonb,
        SourceType::Vector => array::render_vector,
        SourceType::Array(element) => render(element),
        SourceType::Other => |_, _| Err(NO_BINARY),
    }
}

const NO_BINARY: Malformed = Malformed("its binary form is not known");

fn no_binary(_: &Params, _: &[u8], _: &mut Vec<u8>) -> Encoded {
    Err(NO_BINARY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clickhouse::types::{fidelity, parse},
        model::Column,
    };

    #[test]
    fn knows_the_same_pairs_as_fidelity() {
        let sources = [
            SourceType::Bool,
            SourceType::Int2,
            SourceType::Int4,
            SourceType::Int8,
            SourceType::Oid,
            SourceType::Float4,
            SourceType::Float8,
            SourceType::Numeric(None),
            SourceType::Text,
            SourceType::Bytea,
            SourceType::Uuid,
            SourceType::Date,
            SourceType::Timestamp,
            SourceType::TimestampTz,
            SourceType::Time,
            SourceType::Json,
            SourceType::Jsonb,
            SourceType::Enum,
            SourceType::Vector,
            SourceType::Other,
        ];
        let targets = [
            "Bool",
            "Int8",
            "Int16",
            "Int32",
            "Int64",
            "Int128",
            "Int256",
            "UInt8",
            "UInt32",
            "UInt256",
            "Float32",
            "Float64",
            "Decimal(9, 2)",
            "Decimal(18, 2)",
            "Decimal(38, 2)",
            "Decimal(76, 2)",
            "String",
            "LowCardinality(String)",
            "UUID",
            "Date",
            "Date32",
            "DateTime",
            "DateTime64(3)",
            "Time64(6)",
            "IPv4",
            "IPv6",
            "JSON",
        ];
        for source in sources {
            for (target, address) in targets.iter().flat_map(|target| [(target, false), (target, true)]) {
                let target = parse(target).unwrap();
                let column = Column {
                    type_name: if address { "inet" } else { "t" }.to_owned(),
                    nullable: false,
                    ..Column::new("c", source.clone())
                };
                assert_eq!(
                    codec(&source, &target, address).is_some(),
                    fidelity(&column, &target).is_ok(),
                    "{source:?} {target}"
                );
            }
        }
    }
}
