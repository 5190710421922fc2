//! The reference of the API in Markdown, made from the CRDs.

use std::fmt::Write;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use crate::{
    api::{self, reference},
    fault::{Group, Reason},
};

/// Fields whose own fields are Kubernetes' and documented there.
const KUBERNETES: &[(&str, &str)] = &[
    (
        "Mirror.spec.replicator.affinity",
        "https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/#scheduling",
    ),
    (
        "Mirror.spec.replicator.tolerations",
        "https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/",
    ),
];

/// The reference: what the repository keeps in `docs/api.md`.
pub fn markdown() -> String {
    let mut text = String::from(
        "<!-- Made by `walferry crds --format markdown`; change src/api instead. -->\n# API reference\n\n",
    );
    let _ = writeln!(
        text,
        "Resources of `{}`. `kubectl explain mirror.spec` shows the same texts. All references stay in the resource's namespace.\n",
        api::API_VERSION
    );
    for crd in api::custom_resource_definitions() {
        resource(&mut text, &crd);
    }
    conditions(&mut text);
    annotations(&mut text);
    reasons(&mut text);
    format!("{}\n", text.trim_end())
}

fn resource(text: &mut String, crd: &CustomResourceDefinition) {
    let names = &crd.spec.names;
    let _ = writeln!(text, "## {}\n", names.kind);
    let Some(version) = crd.spec.versions.first() else { return };
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    let Some(schema) = schema else { return };
    let _ = writeln!(text, "{}\n", schema.description.as_deref().unwrap_or_default());
    let short: Vec<&str> = names.short_names.iter().flatten().map(String::as_str).collect();
    let columns = version.additional_printer_columns.iter().flatten();
    let columns: Vec<&str> = columns.map(|column| column.name.as_str()).collect();
    let _ = writeln!(
        text,
        "`kubectl get {}` (short: {}) shows {}.\n",
        names.plural,
        short.join(", "),
        columns.join(", ")
    );
    for part in ["spec", "status"] {
        if let Some(schema) = schema.properties.as_ref().and_then(|properties| properties.get(part)) {
            object(text, &format!("{}.{part}", names.kind), schema);
        }
    }
}

/// A section on an object and, after it, one on each object within.
fn object(text: &mut String, path: &str, schema: &JSONSchemaProps) {
    let _ = writeln!(text, "### {path}\n\n{}\n", cell(schema.description.as_deref().unwrap_or_default()));
    for rule in schema.x_kubernetes_validations.iter().flatten() {
        let _ = writeln!(text, "- {}", rule.message.as_deref().unwrap_or(&rule.rule));
    }
    if schema.x_kubernetes_validations.is_some() {
        text.push('\n');
    }
    text.push_str("| field | type | default | meaning |\n|---|---|---|---|\n");
    let properties = schema.properties.iter().flatten();
    // A status is read, not written: no field is required there.
    let written = !path.contains(".status");
    for (name, property) in properties.clone() {
        let required = schema.required.iter().flatten().any(|required| required == name);
        let default = match &property.default {
            Some(default) => format!("`{}`", default.0),
            None if required && written => "required".to_owned(),
            None => String::new(),
        };
        let type_ = type_of(&format!("{path}.{name}"), property);
        let _ = writeln!(text, "| `{name}` | {type_} | {default} | {} |", cell(&meaning(property)));
    }
    text.push('\n');
    for (name, property) in properties {
        let path = format!("{path}.{name}");
        if let Some((path, schema)) = inner(&path, property).filter(|_| !is_kubernetes(&path)) {
            object(text, &path, schema);
        }
    }
}

fn is_kubernetes(path: &str) -> bool {
    KUBERNETES.iter().any(|(known, _)| *known == path)
}

/// The object within a field, and its path: the field itself or the items of a list.
fn inner<'a>(path: &str, schema: &'a JSONSchemaProps) -> Option<(String, &'a JSONSchemaProps)> {
    match &schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => inner(&format!("{path}[]"), items),
        _ if schema.properties.is_some() => Some((path.to_owned(), schema)),
        _ => None,
    }
}

fn type_of(path: &str, schema: &JSONSchemaProps) -> String {
    if let Some((_, link)) = KUBERNETES.iter().find(|(known, _)| *known == path) {
        return format!("[as in a pod]({link})");
    }
    if schema.x_kubernetes_int_or_string == Some(true) {
        return "integer or string".to_owned();
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
        return format!("list of {}", type_of(&format!("{path}[]"), items));
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
        return format!("map to {}", type_of(path, values));
    }
    if schema.properties.is_some() {
        return format!("[object](#{})", anchor(path));
    }
    match &schema.format {
        Some(format) if format == "date-time" => "time".to_owned(),
        _ => schema.type_.clone().unwrap_or_default(),
    }
}

/// What GitHub makes of a heading.
fn anchor(heading: &str) -> String {
    heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

/// The description, what is allowed, and the rules.
fn meaning(schema: &JSONSchemaProps) -> String {
    let mut sentences = vec![schema.description.clone().unwrap_or_default()];
    if let Some(words) = &schema.enum_ {
        let words: Vec<&str> = words.iter().filter_map(|word| word.0.as_str()).collect();
        sentences.push(format!("One of {}.", words.join(", ")));
    }
    sentences.extend(range("", schema.minimum.map(whole), schema.maximum.map(whole)));
    sentences.extend(range(" characters", schema.min_length, schema.max_length));
    sentences.extend(range(" entries", schema.min_items, schema.max_items));
    sentences.extend(range(" entries", schema.min_properties, schema.max_properties));
    if schema.properties.is_none() {
        let rules = schema.x_kubernetes_validations.iter().flatten();
        sentences.extend(rules.filter_map(|rule| Some(format!("Rule: {}.", rule.message.as_deref()?))));
    }
    sentences.join(" ")
}

/// Limits in the schemas are whole numbers.
fn whole(limit: f64) -> i64 {
    limit as i64
}

fn range(unit: &str, least: Option<i64>, most: Option<i64>) -> Option<String> {
    match (least, most) {
        (Some(least), Some(most)) => Some(format!("{least} to {most}{unit}.")),
        (Some(least), None) => Some(format!("At least {least}{unit}.")),
        (None, Some(most)) => Some(format!("At most {most}{unit}.")),
        (None, None) => None,
    }
}

/// Text that stays within a cell of a table.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|").replace('<', "&lt;")
}

fn conditions(text: &mut String) {
    text.push_str("## Conditions\n\n| type | meaning |\n|---|---|\n");
    for (type_, meaning) in reference::CONDITIONS {
        let _ = writeln!(text, "| `{type_}` | {} |", cell(meaning));
    }
    text.push('\n');
}

fn annotations(text: &mut String) {
    text.push_str("## Annotations\n\n| annotation | meaning |\n|---|---|\n");
    for (annotation, meaning) in reference::ANNOTATIONS {
        let _ = writeln!(text, "| `{annotation}` | {} |", cell(meaning));
    }
    text.push('\n');
}

fn reasons(text: &mut String) {
    text.push_str(
        "## Reasons\n\nOf conditions, of `status.failedTables` and of `walferry check`. The message beside a reason has the details.\n\n",
    );
    for group in Group::ALL {
        let _ = writeln!(text, "### {}\n\n| reason | meaning | what to do |\n|---|---|---|", group.title());
        for reason in Reason::ALL.iter().filter(|reason| reason.group() == *group) {
            let _ = writeln!(text, "| `{reason}` | {} | {} |", cell(reason.meaning()), cell(reason.action()));
        }
        text.push('\n');
    }
}
