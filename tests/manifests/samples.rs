//! The samples in config/samples: what walferry itself takes, and complete.

use std::{fs, path::PathBuf};

use crate::tools::{conforms, kustomized, objects, read, repository};

fn samples() -> Vec<PathBuf> {
    let folders = fs::read_dir(repository("config/samples")).unwrap();
    let mut folders: Vec<PathBuf> = folders.map(|folder| folder.unwrap().path()).collect();
    folders.sort();
    folders
}

#[test]
fn each_is_a_mirror_with_its_peers_and_secrets() {
    assert!(samples().len() >= 4);
    for folder in samples() {
        let files = ["secrets.yaml", "peers.yaml", "mirror.yaml"].map(|file| folder.join(file));
        let mirrors = walferry::cli::load::load(&files).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(mirrors.len(), 1, "{folder:?}");
    }
}

#[test]
fn each_renders_to_just_its_files() {
    for folder in samples() {
        let name = folder.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap();
        let files = ["secrets.yaml", "peers.yaml", "mirror.yaml"].map(|file| read(&format!("{name}/{file}")));
        let text = kustomized(name);
        assert_eq!(objects(&text), objects(&files.join("\n---\n")), "{name}");
        conforms(&text);
    }
}
