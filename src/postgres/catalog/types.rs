//! PostgreSQL's types reduced to what decides how their values are read ([`SourceType`]).

use std::collections::HashMap;

use crate::model::SourceType;

/// A row of `pg_type`.
#[derive(Clone, Debug)]
pub(super) struct TypeRow {
    /// `typname`
    pub(super) name: String,
    /// Whether the type is in `pg_catalog`, where names mean what PostgreSQL says.
    pub(super) built_in: bool,
    /// `typtype`: `b` base, `c` composite, `d` domain, `e` enum, `r` range, …
    pub(super) kind: char,
    /// What a domain is made of (`typbasetype`), 0 for other types.
    pub(super) base: u32,
    /// The modifier a domain gives to its base (`typtypmod`), else -1.
    pub(super) base_modifier: i32,
    /// The element's type when this is a true array, else 0 (`int2vector` is none: its text form has no
    /// braces).
    pub(super) element: u32,
    /// What separates values of this type in an array's text form (`typdelim`).
    pub(super) delimiter: char,
}

/// The types of all columns of the tables `$1` (oids), with the base types and elements that they lead to.
pub(super) const TYPES: &str = "\
WITH RECURSIVE used (oid) AS (
  SELECT atttypid FROM pg_attribute WHERE attrelid = ANY($1::oid[]) AND attnum > 0 AND NOT attisdropped
  UNION
  SELECT CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.typelem END
  FROM used JOIN pg_type t USING (oid) WHERE t.typtype = 'd' OR t.typelem <> 0)
SELECT t.oid, t.typname::text, t.typnamespace = 'pg_catalog'::regnamespace, t.typtype, t.typbasetype, t.typtypmod,
  CASE WHEN e.typarray = t.oid THEN e.oid ELSE 0::oid END, t.typdelim
FROM used JOIN pg_type t USING (oid) LEFT JOIN pg_type e ON e.oid = t.typelem";

/// How values of a column of type `oid` are read. Whatever isn't named here is read in its text form.
pub(super) fn source_type(types: &HashMap<u32, TypeRow>, oid: u32, modifier: i32) -> SourceType {
    let Some(row) = types.get(&oid) else { return SourceType::Other };
    if row.kind == 'd' {
        // A column of a domain has no modifier of its own.
        return source_type(types, row.base, row.base_modifier);
    }
    if row.element != 0 {
        // `box` and types of extensions have another separator than the comma: such arrays are kept as text.
        if types.get(&row.element).is_some_and(|element| element.delimiter != ',') {
            return SourceType::Other;
        }
        // PostgreSQL has no arrays of arrays, but a domain over an array can be an array's element.
        return match source_type(types, row.element, modifier) {
            SourceType::Array(_) => SourceType::Other,
            element => SourceType::Array(Box::new(element)),
        };
    }
    match (row.built_in, row.kind, row.name.as_str()) {
        (_, 'e', _) => SourceType::Enum,
        (true, 'b', name) => built_in(name, modifier),
        // Extensions may live in any schema, so their types are known by name; a composite of that name is
        // something else.
        (false, 'b', "citext") => SourceType::Text,
        (false, 'b', "vector") => SourceType::Vector,
        _ => SourceType::Other,
    }
}

fn built_in(name: &str, modifier: i32) -> SourceType {
    match name {
        "bool" => SourceType::Bool,
        "int2" => SourceType::Int2,
        "int4" => SourceType::Int4,
        "int8" => SourceType::Int8,
        "oid" => SourceType::Oid,
        "float4" => SourceType::Float4,
        "float8" => SourceType::Float8,
        "numeric" => SourceType::Numeric(numeric_modifier(modifier)),
        "text" | "varchar" | "bpchar" | "name" => SourceType::Text,
        "bytea" => SourceType::Bytea,
        "uuid" => SourceType::Uuid,
        "date" => SourceType::Date,
        "timestamp" => SourceType::Timestamp,
        "timestamptz" => SourceType::TimestampTz,
        "time" => SourceType::Time,
        "json" => SourceType::Json,
        "jsonb" => SourceType::Jsonb,
        _ => SourceType::Other,
    }
}

/// Precision and scale of a `numeric` type modifier: precision in the high half, scale in the low eleven bits
/// as a signed number (negative since PostgreSQL 15), all plus 4 (`VARHDRSZ`); -1 when none is declared.
fn numeric_modifier(modifier: i32) -> Option<(u16, i16)> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)?;
    let precision = u16::try_from(packed >> 16).ok()?;
    let scale = i16::try_from(((packed & 0x7FF) ^ 1024) - 1024).ok()?;
    Some((precision, scale))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, kind: char) -> TypeRow {
        TypeRow {
            name: name.to_owned(),
            built_in: true,
            kind,
            base: 0,
            base_modifier: -1,
            element: 0,
            delimiter: ',',
        }
    }

    fn domain(base: u32, base_modifier: i32) -> TypeRow {
        TypeRow { base, base_modifier, built_in: false, ..row("d", 'd') }
    }

    fn array(element: u32) -> TypeRow {
        TypeRow { element, ..row("_a", 'b') }
    }

    fn one(row: TypeRow, modifier: i32) -> SourceType {
        source_type(&HashMap::from([(1, row)]), 1, modifier)
    }

    #[test]
    fn known_types_are_known() {
        for (name, expected) in [
            ("bool", SourceType::Bool),
            ("int8", SourceType::Int8),
            ("oid", SourceType::Oid),
            ("bpchar", SourceType::Text),
            ("timestamptz", SourceType::TimestampTz),
            ("json", SourceType::Json),
            ("timetz", SourceType::Other),
            ("interval", SourceType::Other),
            ("xml", SourceType::Other),
            ("int2vector", SourceType::Other),
        ] {
            assert_eq!(one(row(name, 'b'), -1), expected, "{name}");
        }
    }

    #[test]
    fn numeric_keeps_precision_and_scale_also_negative() {
        // atttypmod of numeric, numeric(12,2), numeric(5,0) and numeric(3,-2) on PostgreSQL 18.
        for (modifier, expected) in
            [(-1, None), (786_438, Some((12, 2))), (327_684, Some((5, 0))), (198_658, Some((3, -2)))]
        {
            assert_eq!(one(row("numeric", 'b'), modifier), SourceType::Numeric(expected), "{modifier}");
        }
    }

    #[test]
    fn domains_give_their_base_and_its_modifier_at_any_depth() {
        let types = HashMap::from([
            (1, row("numeric", 'b')),
            (2, domain(1, 655_366)),
            (3, domain(2, -1)),
            (4, array(3)),
            (5, domain(4, -1)),
            (6, array(5)),
        ]);
        let number = SourceType::Numeric(Some((10, 2)));
        assert_eq!(source_type(&types, 3, -1), number);
        assert_eq!(source_type(&types, 4, -1), SourceType::Array(Box::new(number.clone())));
        assert_eq!(source_type(&types, 5, -1), SourceType::Array(Box::new(number)));
        assert_eq!(source_type(&types, 6, -1), SourceType::Other);
    }

    #[test]
    fn an_arrays_modifier_is_its_elements() {
        let types = HashMap::from([(1, row("numeric", 'b')), (2, array(1))]);
        let expected = SourceType::Array(Box::new(SourceType::Numeric(Some((12, 2)))));
        assert_eq!(source_type(&types, 2, 786_438), expected);
    }

    #[test]
    fn an_array_with_another_separator_is_text() {
        let types = HashMap::from([
            (1, TypeRow { delimiter: ';', ..row("box", 'b') }),
            (2, array(1)),
            (3, domain(2, -1)),
            (4, TypeRow { delimiter: ';', ..domain(1, -1) }),
            (5, array(4)),
        ]);
        for oid in [1, 2, 3, 5] {
            assert_eq!(source_type(&types, oid, -1), SourceType::Other, "{oid}");
        }
    }

    #[test]
    fn a_users_type_is_never_taken_for_a_built_in_one() {
        let user = |name, kind| one(TypeRow { built_in: false, ..row(name, kind) }, -1);
        assert_eq!(user("int4", 'c'), SourceType::Other);
        assert_eq!(user("vector", 'c'), SourceType::Other);
        assert_eq!(user("vector", 'b'), SourceType::Vector);
        assert_eq!(user("citext", 'b'), SourceType::Text);
        assert_eq!(user("mood", 'e'), SourceType::Enum);
    }
}
