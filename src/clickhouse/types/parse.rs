//! Reads the types of `columns.types` and of `system.columns`.

use super::{ChType, TypeError};

/// Reads a ClickHouse type, `Decimal32(S)` and spaces included.
///
/// # Errors
/// [`TypeError::Unknown`] for everything that walferry doesn't write.
pub fn parse(text: &str) -> Result<ChType, TypeError> {
    read(text.trim()).ok_or_else(|| TypeError::Unknown(text.to_owned()))
}

fn read(text: &str) -> Option<ChType> {
    let Some((name, arguments)) = text.strip_suffix(')').and_then(|text| text.split_once('(')) else {
        return plain(text);
    };
    let (name, arguments) = (name.trim(), arguments.trim());
    Some(match name {
        "Nullable" => match read(arguments)? {
            ChType::Array(_) | ChType::Nullable(_) | ChType::LowCardinality => return None,
            inner => ChType::Nullable(Box::new(inner)),
        },
        "LowCardinality" => match read(arguments)? {
            ChType::String => ChType::LowCardinality,
            ChType::Nullable(inner) if *inner == ChType::String => {
                ChType::Nullable(Box::new(ChType::LowCardinality))
            }
            _ => return None,
        },
        "Array" => match read(arguments)? {
            ChType::Array(_) => return None,
            element => ChType::Array(Box::new(element)),
        },
        "Decimal" => {
            let (precision, scale) = arguments.split_once(',').unwrap_or((arguments, "0"));
            decimal(number(precision, 76)?, scale)?
        }
        "Decimal32" => decimal(9, arguments)?,
        "Decimal64" => decimal(18, arguments)?,
        "Decimal128" => decimal(38, arguments)?,
        "Decimal256" => decimal(76, arguments)?,
        "DateTime" => ChType::DateTime(Some(zone(arguments)?)),
        "DateTime64" => match arguments.split_once(',') {
            None => ChType::DateTime64(number(arguments, 9)?, None),
            Some((precision, name)) => ChType::DateTime64(number(precision, 9)?, Some(zone(name)?)),
        },
        "Time64" => ChType::Time64(number(arguments, 9)?),
        _ => return None,
    })
}

fn plain(name: &str) -> Option<ChType> {
    Some(match name {
        "Bool" => ChType::Bool,
        "Float32" => ChType::Float32,
        "Float64" => ChType::Float64,
        "Decimal" => ChType::Decimal { precision: 10, scale: 0 },
        "String" => ChType::String,
        "UUID" => ChType::Uuid,
        "Date" => ChType::Date,
        "Date32" => ChType::Date32,
        "DateTime" => ChType::DateTime(None),
        "DateTime64" => ChType::DateTime64(3, None),
        "Time64" => ChType::Time64(3),
        "IPv4" => ChType::IPv4,
        "IPv6" => ChType::IPv6,
        "JSON" => ChType::Json,
        _ => {
            let unsigned = name.strip_prefix("UInt");
            let bits = unsigned.or_else(|| name.strip_prefix("Int"))?;
            let bits = match bits {
                "8" => 8,
                "16" => 16,
                "32" => 32,
                "64" => 64,
                "128" => 128,
                "256" => 256,
                _ => return None,
            };
            if unsigned.is_some() { ChType::UInt(bits) } else { ChType::Int(bits) }
        }
    })
}

fn decimal(precision: u8, scale: &str) -> Option<ChType> {
    let scale = number(scale, precision)?;
    (precision > 0).then_some(ChType::Decimal { precision, scale })
}

fn number(text: &str, most: u8) -> Option<u8> {
    let text = text.trim();
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= most)
}

/// A quoted time zone name; only what zone names are made of, so that it needs no escapes.
fn zone(text: &str) -> Option<String> {
    let name = text.trim().strip_prefix('\'')?.strip_suffix('\'')?;
    let valid =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_+-".contains(&byte));
    valid.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_shows() {
        for text in [
            "Bool",
            "Int8",
            "Int256",
            "UInt64",
            "Float32",
            "Decimal(12, 2)",
            "Decimal(76, 76)",
            "String",
            "LowCardinality(String)",
            "LowCardinality(Nullable(String))",
            "UUID",
            "Date",
            "Date32",
            "DateTime",
            "DateTime('Europe/Berlin')",
            "DateTime64(3)",
            "DateTime64(6, 'UTC')",
            "Time64(6)",
            "IPv4",
            "IPv6",
            "JSON",
            "Nullable(JSON)",
            "Array(Nullable(DateTime64(6, 'UTC')))",
            "Array(LowCardinality(Nullable(String)))",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn reads_other_spellings() {
        for (text, shown) in [
            (" Decimal( 5 ,2 ) ", "Decimal(5, 2)"),
            ("Decimal(5)", "Decimal(5, 0)"),
            ("Decimal32(4)", "Decimal(9, 4)"),
            ("Decimal256(40)", "Decimal(76, 40)"),
            ("DateTime64", "DateTime64(3)"),
            ("Array( Int8 )", "Array(Int8)"),
        ] {
            assert_eq!(parse(text).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "",
            "string",
            "Int7",
            "Int",
            "UInt+8",
            "Decimal(77, 0)",
            "Decimal(0, 0)",
            "Decimal(5, 6)",
            "Decimal(+5, 2)",
            "Decimal(5, 2",
            "DateTime64(10)",
            "DateTime64(6, UTC)",
            "DateTime('x') ENGINE = Log --')",
            "Nullable(Array(Int8))",
            "Nullable(Nullable(Int8))",
            "Nullable(LowCardinality(String))",
            "LowCardinality(Int8)",
            "Array(Array(Int8))",
            "Map(String, String)",
            "FixedString(3)",
        ] {
            assert_eq!(parse(text), Err(TypeError::Unknown(text.to_owned())));
        }
    }
}
