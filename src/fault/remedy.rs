//! Remedies for an error, as data: the renderer knows how the reader runs a Mirror, by Kubernetes or from a
//! file.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::Side;

/// One step that helps. A list of them is to be taken in its order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum Remedy {
    /// Copy tables again.
    Resync {
        /// As `schema.table`; empty when all of the Mirror are meant.
        tables: Vec<String>,
    },
    /// Run statements at one of the databases.
    RunAt {
        /// Which one.
        side: Side,
        /// The statements. Comments say who may run them, or when.
        sql: String,
        /// Whether this very server has to run them, also where it is a standby: all else is for the primary
        /// then.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        local: bool,
    },
    /// Change the Mirror.
    EditSpec {
        /// The field, such as `spec.tables`.
        field: String,
        /// What to do with it, as a clause.
        how: String,
    },
    /// Something that neither a statement nor a field of the Mirror does, as a clause.
    Act {
        /// What to do.
        how: String,
    },
    /// One of these is enough.
    AnyOf {
        /// Each a list of steps; the first is the one to prefer.
        choices: Vec<Vec<Remedy>>,
    },
}

/// More tables than this are not named one by one: then all are copied.
const MOST_NAMES: usize = 10;

/// Above statements that a standby does not take.
const AT_PRIMARY: &str = "-- at the primary\n";

impl Remedy {
    /// Copying these tables again; all where none is named, or one has a name that the annotation can't hold.
    pub fn resync<T: fmt::Display>(tables: impl IntoIterator<Item = T>) -> Remedy {
        let tables: Vec<String> = tables.into_iter().map(|table| table.to_string()).collect();
        // The annotation's value is divided at blanks and commas, and an interactive shell takes `!` for its
        // history.
        let divides =
            |character: char| character.is_whitespace() || character.is_control() || ",!".contains(character);
        let named = tables.len() <= MOST_NAMES && !tables.iter().any(|name| name.contains(divides));
        Remedy::Resync { tables: if named { tables } else { Vec::new() } }
    }

    /// Copying every table again.
    pub fn resync_all() -> Remedy {
        Remedy::Resync { tables: Vec::new() }
    }

    /// Statements for the source that change its catalog, which a standby has from its primary.
    pub fn run_at_source(sql: impl Into<String>) -> Remedy {
        Remedy::RunAt { side: Side::Source, sql: sql.into(), local: false }
    }

    /// Statements for the source about what each server, a standby too, has locally: settings, slots and
    /// sessions.
    pub fn run_at_source_server(sql: impl Into<String>) -> Remedy {
        Remedy::RunAt { side: Side::Source, sql: sql.into(), local: true }
    }

    /// Statements for the destination.
    pub fn run_at_destination(sql: impl Into<String>) -> Remedy {
        Remedy::RunAt { side: Side::Destination, sql: sql.into(), local: true }
    }

    /// The same for a source that is a standby.
    pub fn at_primary(self) -> Remedy {
        match self {
            Remedy::RunAt { side: Side::Source, sql, local: false } if !sql.starts_with(AT_PRIMARY) => {
                Remedy::run_at_source(format!("{AT_PRIMARY}{sql}"))
            }
            Remedy::AnyOf { choices } => {
                let choice = |steps: Vec<Remedy>| steps.into_iter().map(Remedy::at_primary).collect();
                Remedy::AnyOf { choices: choices.into_iter().map(choice).collect() }
            }
            other => other,
        }
    }

    /// A change of the Mirror.
    pub fn edit(field: impl Into<String>, how: impl Into<String>) -> Remedy {
        Remedy::EditSpec { field: field.into(), how: how.into() }
    }

    /// Something else.
    pub fn act(how: impl Into<String>) -> Remedy {
        Remedy::Act { how: how.into() }
    }

    /// A choice of steps.
    pub fn any_of(choices: impl Into<Vec<Vec<Remedy>>>) -> Remedy {
        Remedy::AnyOf { choices: choices.into() }
    }

    /// Whether it has tables copied again, alone or as one of several choices.
    pub fn is_resync(&self) -> bool {
        match self {
            Remedy::Resync { .. } => true,
            Remedy::AnyOf { choices } => choices.iter().flatten().any(Remedy::is_resync),
            Remedy::RunAt { .. } | Remedy::EditSpec { .. } | Remedy::Act { .. } => false,
        }
    }

    /// Whether it has statements for this side, alone or as one of several choices.
    pub fn runs_at(&self, place: Side) -> bool {
        match self {
            Remedy::RunAt { side, .. } => *side == place,
            Remedy::AnyOf { choices } => choices.iter().flatten().any(|step| step.runs_at(place)),
            Remedy::Resync { .. } | Remedy::EditSpec { .. } | Remedy::Act { .. } => false,
        }
    }

    fn changes_mirror(&self) -> bool {
        match self {
            Remedy::Resync { .. } | Remedy::EditSpec { .. } => true,
            Remedy::AnyOf { choices } => choices.iter().flatten().any(Remedy::changes_mirror),
            Remedy::RunAt { .. } | Remedy::Act { .. } => false,
        }
    }
}

/// Reads remedies, without those that only a later release knows.
///
/// # Errors
/// What is there is no list.
pub fn known<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Remedy>, D::Error> {
    let values = Vec::<Value>::deserialize(deserializer)?;
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

/// How the changes of a Mirror are made that remedies ask for.
pub trait RemedyRenderer: fmt::Debug + Send + Sync {
    /// The command or the edit that has these tables copied again, or all when none is named.
    fn resync(&self, tables: &[String]) -> String;

    /// The command or the edit that changes a field.
    fn edit(&self, field: &str, how: &str) -> String;

    /// What is to be done once the Mirror was changed, if anything.
    fn after_changes(&self) -> Option<String>;
}

/// The steps, one a line.
pub fn steps(remedies: &[Remedy], renderer: &dyn RemedyRenderer) -> Vec<String> {
    let step = |remedy: &Remedy| match remedy {
        Remedy::Resync { tables } => {
            let what = if tables.is_empty() { "every table".to_owned() } else { tables.join(", ") };
            format!("copy {what} again: {}", renderer.resync(tables))
        }
        Remedy::RunAt { side, sql, .. } => {
            format!("run at the {}: {}", side.word(), one_line(sql).trim_end_matches(';'))
        }
        Remedy::EditSpec { field, how } => renderer.edit(field, how),
        Remedy::Act { how } => how.clone(),
        Remedy::AnyOf { choices } => {
            let choices = choices.iter().map(|choice| joined(&unfinished(choice, renderer)));
            choices.collect::<Vec<_>>().join(", or ")
        }
    };
    let mut steps: Vec<String> = remedies.iter().map(step).collect();
    if remedies.iter().any(Remedy::changes_mirror) {
        steps.extend(renderer.after_changes());
    }
    steps
}

/// The steps of a choice, whose end is that of all.
fn unfinished(choice: &[Remedy], renderer: &dyn RemedyRenderer) -> Vec<String> {
    let mut steps = steps(choice, renderer);
    if choice.iter().any(Remedy::changes_mirror) && renderer.after_changes().is_some() {
        steps.pop();
    }
    steps
}

fn joined(steps: &[String]) -> String {
    steps.join("; then ")
}

/// What failed, and the steps that help, in one sentence.
pub fn sentence(message: &str, remedies: &[Remedy], renderer: &dyn RemedyRenderer) -> String {
    match remedies {
        [] => message.to_owned(),
        remedies => format!("{message}. To recover: {}", joined(&steps(remedies, renderer))),
    }
}

/// The steps as text to copy from a terminal: each statement on its own line, after a comment that says where
/// to run it. Other steps that follow statements are comments, so that all of it can be copied.
pub fn lines(remedies: &[Remedy], renderer: &dyn RemedyRenderer) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for remedy in remedies {
        let follows = lines.iter().any(|line| line.starts_with("-- at the "));
        match remedy {
            Remedy::RunAt { side, sql, .. } => {
                lines.push(format!("-- at the {}", side.word()));
                lines.extend(sql.lines().map(str::to_owned));
            }
            Remedy::AnyOf { choices } => {
                for (index, choice) in choices.iter().enumerate() {
                    if index > 0 {
                        lines.push("-- or".to_owned());
                    }
                    lines.extend(self::lines(choice, renderer));
                }
            }
            other => {
                let steps = unfinished(std::slice::from_ref(other), renderer);
                lines.extend(steps.into_iter().map(|step| match follows {
                    true => format!("-- then {step}"),
                    false => step,
                }));
            }
        }
    }
    lines
}

/// Statements on one line, their comments between marks, so that what is copied from it still runs.
fn one_line(sql: &str) -> String {
    let line = |line: &str| match line.trim().split_once("-- ") {
        None => line.trim().to_owned(),
        Some(("", comment)) => format!("/* {comment} */"),
        Some((statement, comment)) => format!("{} /* {comment} */", statement.trim_end()),
    };
    sql.lines().map(line).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct File;

    impl RemedyRenderer for File {
        fn resync(&self, tables: &[String]) -> String {
            format!("set {}", tables.join(" "))
        }

        fn edit(&self, field: &str, how: &str) -> String {
            format!("{field}: {how}")
        }

        fn after_changes(&self) -> Option<String> {
            Some("start again".to_owned())
        }
    }

    #[test]
    fn tables_are_named_where_they_can_be() {
        let named = |names: &[&str]| Remedy::resync(names.iter()) == Remedy::resync_all();
        assert!(!named(&["public.a", "public.b-c", "public.\u{e4}$"]));
        assert!(named(&["public.a", "public.x y"]) && named(&["public.x,y"]) && named(&["a.b"; 11]));
    }

    #[test]
    fn steps_are_in_order_and_the_mirror_is_started_once() {
        let choice = Remedy::any_of([
            vec![Remedy::run_at_destination("DROP TABLE t; -- if it is not needed")],
            vec![Remedy::edit("spec.tables", "name another target")],
        ]);
        let remedies = [choice, Remedy::resync(["public.t"])];
        assert_eq!(
            sentence("it does not fit", &remedies, &File),
            "it does not fit. To recover: run at the destination: DROP TABLE t; /* if it is not needed */, or spec.tables: name another target; \
             then copy public.t again: set public.t; then start again"
        );
        assert_eq!(
            lines(&remedies, &File),
            [
                "-- at the destination",
                "DROP TABLE t; -- if it is not needed",
                "-- or",
                "spec.tables: name another target",
                "-- then copy public.t again: set public.t"
            ]
        );
        let run = [Remedy::run_at_source("SELECT 1")];
        assert_eq!(sentence("why", &run, &File), "why. To recover: run at the source: SELECT 1");
        assert_eq!(sentence("why", &[], &File), "why");
    }

    #[test]
    fn what_changes_the_catalog_of_a_standby_runs_at_its_primary() {
        let catalog = || Remedy::run_at_source("-- as app\nALTER TABLE t REPLICA IDENTITY FULL");
        let own = || Remedy::run_at_source_server("ALTER SYSTEM SET a = 1");
        let there =
            Remedy::run_at_source("-- at the primary\n-- as app\nALTER TABLE t REPLICA IDENTITY FULL");
        let all = Remedy::any_of([vec![catalog(), own()], vec![Remedy::run_at_destination("SELECT 1")]]);
        let moved = Remedy::any_of([vec![there, own()], vec![Remedy::run_at_destination("SELECT 1")]]);
        assert_eq!(all.at_primary(), moved);
        assert_eq!(moved.clone().at_primary(), moved, "once");
    }

    #[test]
    fn comments_do_not_swallow_what_follows() {
        let sql = "SELECT 1; -- drop what is not needed\nALTER SYSTEM SET a = 2; -- or this, then restart";
        assert_eq!(
            one_line(sql),
            "SELECT 1; /* drop what is not needed */ ALTER SYSTEM SET a = 2; /* or this, then restart */"
        );
    }

    #[test]
    fn what_only_a_later_release_knows_is_passed_over() {
        #[derive(Deserialize)]
        struct Record {
            #[serde(default, deserialize_with = "known")]
            remedies: Vec<Remedy>,
        }
        let read = |text: &str| serde_json::from_str::<Record>(text).unwrap().remedies;
        assert_eq!(read("{}"), []);
        let later = r#"{"remedies": [{"kind": "Pray"}, {"kind": "Resync", "tables": ["public.t"]}]}"#;
        assert_eq!(read(later), [Remedy::resync(["public.t"])]);
        let all = vec![
            Remedy::any_of([vec![Remedy::run_at_source("SELECT 1")], vec![Remedy::act("wait")]]),
            Remedy::edit("spec.tables", "take it out"),
        ];
        let text = serde_json::to_string(&all).unwrap();
        assert_eq!(serde_json::from_str::<Vec<Remedy>>(&text).unwrap(), all);
    }
}
