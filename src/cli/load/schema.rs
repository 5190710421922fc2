//! Checks a document against the schema of its resource, as an API server would, so that a file means the
//! same with and without one.
//!
//! The schema is that of the CRD. A field that is `null` counts as left out. Unlike an API server, which
//! drops fields that it doesn't know, this refuses them: a misspelt setting must not be lost silently. No
//! message shows a value of the document, since it may be a secret; only where one of a few words is expected
//! it shows the other one.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::{
    api::core::v1::Secret,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::{
        CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use schemars::{JsonSchema, generate::SchemaSettings};
use serde_json::{Map, Value};

use crate::api::{Problem, custom_resource_definitions, is_former_field, is_former_value};

/// The schemas by kind.
pub(super) type Schemas = HashMap<String, JSONSchemaProps>;

/// The schemas of all kinds that a file may hold, by kind.
///
/// # Errors
/// When a generated schema isn't one that Kubernetes knows, which would be a defect.
pub(super) fn by_kind() -> Result<Schemas, serde_json::Error> {
    let metadata = JSONSchemaProps { required: Some(vec!["name".to_owned()]), ..schema_of::<ObjectMeta>()? };
    let string = JSONSchemaProps { type_: Some("string".to_owned()), ..Default::default() };
    let mut schemas = HashMap::from([("Secret".to_owned(), schema_of::<Secret>()?)]);
    for CustomResourceDefinition { spec, .. } in custom_resource_definitions() {
        let schema = spec.versions.into_iter().next().and_then(|version| version.schema?.open_api_v3_schema);
        schemas.insert(spec.names.kind, schema.unwrap_or_default());
    }
    for schema in schemas.values_mut() {
        // A CRD leaves out what all kinds have in common.
        schema.properties.get_or_insert_default().extend([
            ("apiVersion".to_owned(), string.clone()),
            ("kind".to_owned(), string.clone()),
            ("metadata".to_owned(), metadata.clone()),
        ]);
        schema.required.get_or_insert_default().push("metadata".to_owned());
    }
    Ok(schemas)
}

fn schema_of<T: JsonSchema>() -> Result<JSONSchemaProps, serde_json::Error> {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    serde_json::from_value(settings.into_generator().into_root_schema_for::<T>().to_value())
}

/// What is wrong with `value`, the field at `path` (empty for the document itself).
pub(super) fn problems(schema: &JSONSchemaProps, value: &Value, path: &str) -> Vec<Problem> {
    let mut problems = Vec::new();
    check(schema, value, path, &mut problems);
    problems
}

fn check(schema: &JSONSchemaProps, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let mut wrong = |message: String| problems.push(Problem::new(path, message));
    if schema.x_kubernetes_int_or_string == Some(true) {
        if !(value.is_i64() || value.is_string()) {
            wrong(format!("expected a whole number or a string, found {}", kind_of(value)));
        }
        return;
    }
    match (schema.type_.as_deref(), value) {
        (Some("object"), Value::Object(fields)) => check_object(schema, fields, path, problems),
        (Some("array"), Value::Array(items)) => check_list(schema, items, path, problems),
        (Some("string"), Value::String(text)) => {
            if let Some(message) =
                outside("characters", text.chars().count(), schema.min_length, schema.max_length)
            {
                wrong(message);
            }
            if let Some(allowed) = &schema.enum_ {
                let allowed: Vec<&str> = allowed.iter().filter_map(|value| value.0.as_str()).collect();
                if !allowed.contains(&text.as_str()) {
                    let current = allowed.into_iter().filter(|value| !is_former_value(path, value));
                    let current = current.collect::<Vec<_>>().join(", ");
                    // A field of fixed words holds no secret.
                    wrong(format!("expected one of {current}, found {text:?}"));
                }
            }
        }
        (Some("integer"), Value::Number(number)) if number.is_i64() || number.is_u64() => {
            let number = number.as_f64().unwrap_or(f64::INFINITY);
            let least = schema.minimum.unwrap_or(f64::NEG_INFINITY);
            let most = schema.maximum.unwrap_or(f64::INFINITY);
            if !(least..=most).contains(&number) {
                wrong(format!("must be from {least} to {most}"));
            }
        }
        (Some("number"), Value::Number(_)) | (Some("boolean"), Value::Bool(_)) | (None, _) => {}
        (Some(expected), found) => {
            let expected = match expected {
                "object" => "an object",
                "array" => "a list",
                "integer" => "a whole number",
                "boolean" => "true or false",
                "number" => "a number",
                _ => "a string",
            };
            wrong(format!("expected {expected}, found {}", kind_of(found)));
        }
    }
}

fn check_object(
    schema: &JSONSchemaProps,
    fields: &Map<String, Value>,
    path: &str,
    problems: &mut Vec<Problem>,
) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if let Some(message) = outside("entries", fields.len(), schema.min_properties, schema.max_properties) {
        problems.push(Problem::new(path, message));
    }
    for name in BTreeSet::from_iter(schema.required.iter().flatten()) {
        if fields.get(name).is_none_or(Value::is_null) {
            problems.push(Problem::new(join(name), "is required"));
        }
    }
    let others = match &schema.additional_properties {
        Some(JSONSchemaPropsOrBool::Schema(schema)) => Some(schema.as_ref()),
        _ => None,
    };
    for (name, value) in fields {
        match schema.properties.as_ref().and_then(|properties| properties.get(name)).or(others) {
            Some(_) if value.is_null() => {}
            Some(schema) => check(schema, value, &join(name), problems),
            None => {
                if let Some(properties) = &schema.properties {
                    let known = properties.keys().map(String::as_str);
                    let known: Vec<&str> = known.filter(|name| !is_former_field(name)).collect();
                    let message = format!("unknown field, expected one of {}", known.join(", "));
                    problems.push(Problem::new(join(name), message));
                }
            }
        }
    }
}

fn check_list(schema: &JSONSchemaProps, items: &[Value], path: &str, problems: &mut Vec<Problem>) {
    if let Some(message) = outside("entries", items.len(), schema.min_items, schema.max_items) {
        problems.push(Problem::new(path, message));
    }
    if let Some(JSONSchemaPropsOrArray::Schema(schema)) = &schema.items {
        for (index, item) in items.iter().enumerate() {
            check(schema, item, &format!("{path}[{index}]"), problems);
        }
    }
    let keys = schema.x_kubernetes_list_map_keys.as_deref().unwrap_or_default();
    let identity = |item: &Value| -> Option<Vec<Value>> {
        match schema.x_kubernetes_list_type.as_deref() {
            Some("set") => Some(vec![item.clone()]),
            Some("map") => keys.iter().map(|key| item.get(key).cloned()).collect(),
            _ => None,
        }
    };
    let mut first = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let Some(identity) = identity(item) else { continue };
        if let Some(earlier) = first.insert(identity, index) {
            let what = if keys.is_empty() { "entry".to_owned() } else { keys.join(" and ") };
            // Keys are names, and names are no secrets.
            let names: Vec<&str> = keys.iter().filter_map(|key| item.get(key)?.as_str()).collect();
            let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(".")) };
            problems.push(Problem::new(
                format!("{path}[{index}]"),
                format!("has the same {what} as {path}[{earlier}]{names}"),
            ));
        }
    }
}

fn outside(unit: &str, count: usize, least: Option<i64>, most: Option<i64>) -> Option<String> {
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let (least, most) = (least.unwrap_or(0), most.unwrap_or(i64::MAX));
    if (least..=most).contains(&count) {
        return None;
    }
    Some(if most == i64::MAX {
        format!("must have at least {least} {unit}")
    } else {
        format!("must have {least} to {most} {unit}")
    })
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keywords that `check` understands, and those that ask nothing of a single object: descriptions,
    /// defaults, and how the API server merges maps. The schema must not promise anything else.
    const KEYWORDS: &[&str] = &[
        "additionalProperties",
        "default",
        "description",
        "enum",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "properties",
        "required",
        "title",
        "type",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
        "x-kubernetes-validations",
    ];

    fn keywords(schema: &Value) {
        for (keyword, value) in schema.as_object().unwrap() {
            assert!(KEYWORDS.contains(&keyword.as_str()), "{keyword}");
            match keyword.as_str() {
                "properties" => value.as_object().unwrap().values().for_each(keywords),
                "items" | "additionalProperties" => keywords(value),
                _ => {}
            }
        }
    }

    #[test]
    fn every_keyword_of_the_schemas_is_checked() {
        for crd in custom_resource_definitions() {
            let crd = serde_json::to_value(crd).unwrap();
            keywords(&crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]);
        }
    }
}
