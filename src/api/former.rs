//! Words that the API has renamed. An object or file that still has one is never read as if the setting were left out.

/// Values of settings that have another name now: the setting, the former value, its name.
///
/// A file with a former value is refused. The API server refuses it too when the setting is written, but keeps it in the
/// objects of before, where its defaults have put it: there it is read as the value of today.
const VALUES: &[(&str, &str, &str)] =
    &[("spec.outOfRange", "Nearest", "Clamp"), ("spec.snapshot.mode", "Only", "InitialOnly")];

/// Fields that the schema has only so that an API server does not drop them unseen; rules refuse them and name the successor.
const FIELDS: &[&str] = &["insertOnly"];

/// Whether the field is only there to be refused.
pub fn is_renamed_field(name: &str) -> bool {
    FIELDS.contains(&name)
}

/// What to write instead of `value` in the setting at `path`, if the value has another name now.
pub fn renamed_value(path: &str, value: &str) -> Option<String> {
    let (_, former, name) =
        VALUES.iter().find(|(setting, former, _)| *setting == path && *former == value)?;
    Some(format!("{former} was renamed; write {name}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::Mirror;

    fn mirror() -> Value {
        json!({"apiVersion": crate::api::API_VERSION, "kind": "Mirror", "metadata": {"name": "m"}, "spec": {
            "sourceRef": {"name": "a"}, "destinationRef": {"name": "b"}, "tables": [{"schema": "public", "name": "t"}]}})
    }

    #[test]
    fn objects_of_before_are_read_and_written_with_the_names_of_today() {
        for (setting, former, name) in VALUES {
            let mut object = mirror();
            let place = setting.split('.').fold(&mut object, |object, field| &mut object[field]);
            *place = json!(former);
            let read: Mirror = serde_json::from_value(object).unwrap();
            let written = serde_json::to_value(&read).unwrap();
            assert_eq!(written.pointer(&format!("/{}", setting.replace('.', "/"))), Some(&json!(name)));
        }
    }
}
