//! Remedies for Mirrors in files: as edits of the file.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    api::RESYNC,
    fault::RemedyRenderer,
    model::{MirrorIdentity, ReplicatorConfig},
    status::Kubectl,
};

/// Renders remedies for this Mirror: as edits of its file, or as kubectl commands.
pub(in crate::cli) fn renderer(mirror: &MirrorIdentity, file: Option<String>) -> Arc<dyn RemedyRenderer> {
    match file {
        None => Arc::new(Kubectl::from(mirror)),
        Some(file) => Arc::new(FileEdit {
            file,
            mirror: mirror.name.clone(),
            seconds: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        }),
    }
}

/// Changes the document of a Mirror in its file.
#[derive(Debug)]
struct FileEdit {
    file: String,
    mirror: String,
    /// The first word of a resync's value: the time at which the process began, which no resync before had.
    seconds: u64,
}

impl FileEdit {
    fn place(&self) -> String {
        format!("in {}, Mirror {}", self.file, self.mirror)
    }
}

impl RemedyRenderer for FileEdit {
    fn resync(&self, tables: &[String]) -> String {
        let names: String = tables.iter().map(|table| format!(" {table}")).collect();
        // A JSON text is a YAML one.
        let value = serde_json::Value::from(format!("{}{names}", self.seconds));
        format!("{}, metadata.annotations: set {RESYNC}: {value}", self.place())
    }

    fn edit(&self, field: &str, how: &str) -> String {
        format!("{}, {field}: {how}", self.place())
    }

    fn after_changes(&self) -> Option<String> {
        Some("restart walferry".to_owned())
    }
}

/// The Mirror's renderer, by default that of kubectl commands.
pub(super) fn of(config: &ReplicatorConfig) -> Arc<dyn RemedyRenderer> {
    config.renderer.clone().unwrap_or_else(|| Arc::new(Kubectl::from(&config.mirror)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Remedy, remedy::sentence};

    #[test]
    fn edits_name_the_file_and_the_mirror() {
        let file =
            FileEdit { file: "shop/mirror.yaml".into(), mirror: "shop".into(), seconds: 1_764_500_000 };
        let rendered = |remedies: &[Remedy]| sentence("why", remedies, &file);
        assert_eq!(
            rendered(&[Remedy::resync(["public.t"])]),
            r#"why. To recover: copy public.t again: in shop/mirror.yaml, Mirror shop, metadata.annotations: set walferry.dev/resync: "1764500000 public.t"; then restart walferry"#
        );
        assert_eq!(
            rendered(&[Remedy::run_at_source("ALTER TABLE t REPLICA IDENTITY FULL"), Remedy::resync_all()]),
            r#"why. To recover: run at the source: ALTER TABLE t REPLICA IDENTITY FULL; then copy every table again: in shop/mirror.yaml, Mirror shop, metadata.annotations: set walferry.dev/resync: "1764500000"; then restart walferry"#
        );
        assert_eq!(
            rendered(&[Remedy::edit("spec.tables", "take public.t out")]),
            "why. To recover: in shop/mirror.yaml, Mirror shop, spec.tables: take public.t out; then restart walferry"
        );
    }
}
