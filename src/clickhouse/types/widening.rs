//! Which types hold every value of another one, so that a column can become it where it is.

use super::ChType;

impl ChType {
    /// Whether each value of this type is the same value of `wider`, and ClickHouse's cast gives that:
    /// numbers that get more digits, arrays of them, and `Nullable`. A type is as wide as itself.
    pub fn widens_to(&self, wider: &ChType) -> bool {
        if self.is_nullable() && !wider.is_nullable() {
            return false;
        }
        match (self.inner(), wider.inner()) {
            (ChType::Int(from), ChType::Int(to)) | (ChType::UInt(from), ChType::UInt(to)) => from <= to,
            (ChType::UInt(from), ChType::Int(to)) => from < to,
            // The bits of the fraction.
            (ChType::Int(from), ChType::Float32) => *from <= 24,
            (ChType::Int(from), ChType::Float64) => *from <= 53,
            (ChType::Float32, ChType::Float64) => true,
            (ChType::Int(bits), ChType::Decimal { precision, scale }) => {
                digits(*bits).is_some_and(|digits| digits + scale <= *precision)
            }
            (
                ChType::Decimal { precision, scale },
                ChType::Decimal { precision: to_precision, scale: to_scale },
            ) => scale <= to_scale && precision - scale <= to_precision - to_scale,
            (ChType::Array(from), ChType::Array(to)) => from.widens_to(to),
            (from, to) => from == to,
        }
    }
}

/// The decimal digits of the longest integer of so many bits.
fn digits(bits: u16) -> Option<u8> {
    match bits {
        8 => Some(3),
        16 => Some(5),
        32 => Some(10),
        64 => Some(19),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;

    fn widens(from: &str, to: &str) -> bool {
        parse(from).unwrap().widens_to(&parse(to).unwrap())
    }

    #[test]
    fn more_digits_and_null_are_wider() {
        for (from, to) in [
            ("Int16", "Int16"),
            ("Int16", "Int32"),
            ("Int32", "Nullable(Int64)"),
            ("Nullable(Int32)", "Nullable(Int64)"),
            ("UInt32", "Int64"),
            ("Float32", "Float64"),
            ("Int16", "Float32"),
            ("Int32", "Float64"),
            ("Int32", "Decimal(12, 2)"),
            ("Int64", "Decimal(19, 0)"),
            ("Decimal(10, 2)", "Decimal(12, 2)"),
            ("Decimal(10, 2)", "Decimal(12, 4)"),
            ("Array(Nullable(Int32))", "Array(Nullable(Int64))"),
            ("String", "Nullable(String)"),
        ] {
            assert!(widens(from, to), "{from} to {to}");
        }
    }

    #[test]
    fn what_may_lose_a_value_is_not_wider() {
        for (from, to) in [
            ("Int64", "Int32"),
            ("Nullable(Int32)", "Int64"),
            ("UInt64", "Int64"),
            ("Int32", "UInt64"),
            ("Float64", "Float32"),
            ("Int32", "Float32"),
            ("Int64", "Float64"),
            ("Int32", "Decimal(11, 2)"),
            ("UInt32", "Decimal(20, 0)"),
            ("Decimal(10, 2)", "Decimal(12, 5)"),
            ("Decimal(10, 2)", "Decimal(10, 1)"),
            ("Decimal(12, 2)", "Decimal(10, 2)"),
            ("Array(Nullable(Int32))", "Array(Int64)"),
            ("Int32", "String"),
            ("DateTime64(6, 'UTC')", "DateTime64(9, 'UTC')"),
        ] {
            assert!(!widens(from, to), "{from} to {to}");
        }
    }
}
