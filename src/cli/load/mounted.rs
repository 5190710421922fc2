//! Secrets as a pod has them: a folder for each Secret, and in it a file for each key.

use std::path::{Path, PathBuf};

use crate::{
    api::{Problem, is_object_name, is_secret_key},
    model::Password,
    resolve::{MissingEntry, Secrets},
};

/// A folder that Secrets are mounted in.
#[derive(Debug)]
pub(super) struct MountedSecrets(PathBuf);

impl MountedSecrets {
    pub(super) fn new(folder: &Path) -> Self {
        MountedSecrets(folder.to_owned())
    }

    /// What is wrong with a Secret document.
    pub(super) fn no_document(&self) -> Problem {
        let message = format!("Secrets are read from {}; take this document out", self.0.display());
        Problem::new("kind", message)
    }
}

impl Secrets for MountedSecrets {
    /// Follows symbolic links, which kubelet puts between the folder and the files. The value is the file's,
    /// to the last byte.
    fn entry(&self, name: &str, key: &str) -> Result<Password, Option<MissingEntry>> {
        let folder = self.0.join(name);
        if !is_object_name(name) || !folder.is_dir() {
            let message = format!("no folder {} for Secret {name}", folder.display());
            return Err(Some(MissingEntry::Secret(message)));
        }
        let file = folder.join(key);
        let unusable = |why: String| {
            let message = format!("key {key} of Secret {name} ({}): {why}", file.display());
            Err(Some(MissingEntry::Key(message)))
        };
        if !is_secret_key(key) {
            return unusable("a key is made of letters, digits, '-', '_' and '.'".to_owned());
        }
        match std::fs::read(&file) {
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Password::new(text)),
                Err(_) => unusable("must be UTF-8 text".to_owned()),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => unusable("no such file".to_owned()),
            Err(error) => unusable(format!("cannot read: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn message(entry: Result<Password, Option<MissingEntry>>) -> String {
        match entry.unwrap_err().unwrap() {
            MissingEntry::Secret(message) => format!("secret: {message}"),
            MissingEntry::Key(message) => format!("key: {message}"),
        }
    }

    /// `..data` is a link that kubelet exchanges for another version's folder.
    #[test]
    fn follows_the_links_of_a_mounted_volume() {
        let folder = tempfile::tempdir().unwrap();
        let version = folder.path().join("..2026_11_21");
        std::fs::create_dir_all(version.join("login")).unwrap();
        std::fs::write(version.join("login/password"), "hush\n").unwrap();
        std::fs::write(version.join("login/binary"), [0xff]).unwrap();
        symlink("..2026_11_21", folder.path().join("..data")).unwrap();
        symlink("..data/login", folder.path().join("login")).unwrap();
        let secrets = MountedSecrets::new(folder.path());
        assert_eq!(secrets.entry("login", "password").unwrap().expose(), "hush\n");

        let at = folder.path().display();
        let missing = message(secrets.entry("other", "password"));
        assert_eq!(missing, format!("secret: no folder {at}/other for Secret other"));
        let missing = message(secrets.entry("login", "username"));
        assert_eq!(missing, format!("key: key username of Secret login ({at}/login/username): no such file"));
        assert!(message(secrets.entry("login", "binary")).ends_with("must be UTF-8 text"));
        assert!(message(secrets.entry("login", "../login/password")).contains("a key is made of"));
        assert!(message(secrets.entry("..data", "login")).starts_with("secret: "));
    }
}
