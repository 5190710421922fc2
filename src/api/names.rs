//! Names that become part of a path: of a request to the API server, or of a file of a mounted Secret.
//!
//! An invalid name must never reach such a path: `app-db?watch=true` would become another request.

/// The most characters of an object's name, and of a key of a Secret.
const LONGEST: usize = 253;

/// Whether an object of the cluster can have this name: a DNS subdomain of RFC 1123.
pub fn is_object_name(name: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_label = |label: &str| {
        label.bytes().all(|c| alphanumeric(c) || c == b'-')
            && label.bytes().next().is_some_and(alphanumeric)
            && label.bytes().last().is_some_and(alphanumeric)
    };
    name.len() <= LONGEST && name.split('.').all(is_label)
}

/// Whether a namespace can have this name: a DNS label of RFC 1123.
pub fn is_namespace(name: &str) -> bool {
    is_object_name(name) && name.len() <= 63 && !name.contains('.')
}

/// Whether a Secret can have this key. None climbs out of the folder that the Secret is mounted in.
pub fn is_secret_key(key: &str) -> bool {
    (1..=LONGEST).contains(&key.len())
        && key != "."
        && !key.starts_with("..")
        && key.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_kubernetes_takes() {
        let longest = "a".repeat(253);
        for valid in ["a", "app-db", "db.example", "0a", "a--b", &longest] {
            assert!(is_object_name(valid), "{valid}");
        }
        let too_long = "a".repeat(254);
        for wrong in [
            "",
            "?watch=true",
            "?fieldSelector=metadata.name%3Dapp-db",
            "app-db?x=y",
            "app-db/",
            "../configmaps/x",
            "..",
            ".",
            "a..b",
            "a.-b",
            "a-.b",
            "-a",
            "a-",
            "App",
            "a_b",
            "a%2Fb",
            "a#b",
            "a b",
            "a\n",
            "a\0",
            "ä",
            &too_long,
        ] {
            assert!(!is_object_name(wrong), "{wrong:?}");
        }
        assert!(is_namespace("team-a") && !is_namespace("team.a") && !is_namespace(&longest));
    }

    #[test]
    fn keys_are_what_kubernetes_takes() {
        for valid in ["ca.crt", "Root_CA-1", ".hidden", "a..b"] {
            assert!(is_secret_key(valid), "{valid}");
        }
        for wrong in ["", ".", "..", "..data", "../x", "a/b", "a b", "a\n", "ä"] {
            assert!(!is_secret_key(wrong), "{wrong:?}");
        }
    }
}
