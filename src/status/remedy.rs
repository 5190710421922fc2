//! Remedies for Mirrors in Kubernetes: as kubectl commands.

use super::Advice;
use crate::{
    api::RESYNC,
    fault::{
        RemedyRenderer,
        remedy::{sentence, steps},
    },
    model::{MirrorIdentity, MirrorReport, TableReport},
};

/// Changes a resource by kubectl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubectl {
    /// Kind, name and namespace, as kubectl's arguments.
    resource: String,
}

impl Kubectl {
    /// For a Mirror.
    pub fn mirror(namespace: &str, name: &str) -> Kubectl {
        Kubectl { resource: format!("mirror {name} --namespace {namespace}") }
    }

    /// For a ReplicationPeer.
    pub fn peer(namespace: &str, name: &str) -> Kubectl {
        Kubectl { resource: format!("replicationpeer {name} --namespace {namespace}") }
    }

    /// For the Mirror of a report.
    pub fn of(report: &MirrorReport) -> Kubectl {
        Kubectl::mirror(&report.namespace, &report.name)
    }
}

impl From<&MirrorIdentity> for Kubectl {
    fn from(mirror: &MirrorIdentity) -> Kubectl {
        Kubectl::mirror(&mirror.namespace, &mirror.name)
    }
}

impl RemedyRenderer for Kubectl {
    fn resync(&self, tables: &[String]) -> String {
        let names: String = tables.iter().map(|table| format!(" {}", in_double_quotes(table))).collect();
        format!(r#"kubectl annotate {} {RESYNC}="$(date +%s){names}" --overwrite"#, self.resource)
    }

    fn edit(&self, field: &str, how: &str) -> String {
        format!("{field}: {how} (kubectl edit {})", self.resource)
    }

    fn after_changes(&self) -> Option<String> {
        None
    }
}

/// A text as the shell reads it between double quotes.
fn in_double_quotes(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        if r#""\$`"#.contains(character) {
            quoted.push('\\');
        }
        quoted.push(character);
    }
    quoted
}

/// The report with the remedies in its messages.
pub(super) fn with_remedies(report: &MirrorReport, renderer: &dyn RemedyRenderer) -> MirrorReport {
    let mut rendered = report.clone();
    if let Some(failure) = &mut rendered.failure {
        failure.message = sentence(&failure.message, &failure.remedies, renderer);
    }
    for table in &mut rendered.tables {
        table.message = sentence(&table.message, &table.remedies, renderer);
    }
    rendered
}

/// What helps, in steps: of the Mirror as a whole, and of each table that has failed.
pub(super) fn advice(report: &MirrorReport, renderer: &dyn RemedyRenderer) -> Vec<Advice> {
    let failure = report.failure.iter().map(|failure| (None, &failure.remedies));
    let name = |table: &TableReport| Some(format!("{}.{}", table.schema, table.name));
    let tables = report.tables.iter().map(|table| (name(table), &table.remedies));
    let some = failure.chain(tables).filter(|(_, remedies)| !remedies.is_empty());
    some.map(|(table, remedies)| Advice { table, steps: steps(remedies, renderer) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_name_their_mirror_and_survive_the_shell() {
        let shop = Kubectl::mirror("team", "shop");
        assert_eq!(
            shop.resync(&[]),
            r#"kubectl annotate mirror shop --namespace team walferry.dev/resync="$(date +%s)" --overwrite"#
        );
        assert_eq!(
            shop.resync(&["public.t".to_owned(), r#"public.a"$(b)"#.to_owned()]),
            r#"kubectl annotate mirror shop --namespace team walferry.dev/resync="$(date +%s) public.t public.a\"\$(b)" --overwrite"#
        );
        assert_eq!(
            shop.edit("spec.tables", "take public.t out"),
            "spec.tables: take public.t out (kubectl edit mirror shop --namespace team)"
        );
    }
}
