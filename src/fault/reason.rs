//! Reasons of conditions, failed tables, checks and events, and what each of them says of itself.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::catalogue::catalogue;

/// Where the cause of a reason lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// PostgreSQL, or the connection to it.
    Source,
    /// ClickHouse, or the connection to it.
    Destination,
    /// The Mirror, its settings, its pod, or walferry.
    Mirror,
}

impl Side {
    /// The word for it in a sentence.
    pub fn word(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Destination => "destination",
            Side::Mirror => "mirror",
        }
    }
}

/// What is done about a fault with this reason. `replication::policy` has the engine's exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It describes a state or a warning; there is nothing to do.
    Nothing,
    /// Try again after a pause.
    Retry,
    /// Try again after a longer pause: the other side is overloaded.
    Backoff,
    /// Restart from the durable state, without a pause.
    Restart,
    /// Stop this table; the others continue.
    FailTable,
    /// Stop the Mirror: manual action is required. Whether the cause is gone is checked periodically.
    Stall,
}

/// What reasons have in common: a section of the reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// States of a resource.
    States,
    /// Kubernetes resources and their settings.
    Resources,
    /// The replicator's pod.
    Replicator,
    /// PostgreSQL.
    Source,
    /// ClickHouse.
    Destination,
    /// Tables and the engine.
    Engine,
    /// Reasons of events alone.
    Events,
}

impl Group {
    /// All groups, in the order of the reference.
    pub const ALL: &[Group] = &[
        Group::States,
        Group::Resources,
        Group::Replicator,
        Group::Source,
        Group::Destination,
        Group::Engine,
        Group::Events,
    ];

    /// The section's title.
    pub fn title(self) -> &'static str {
        match self {
            Group::States => "States",
            Group::Resources => "Resources",
            Group::Replicator => "The replicator's pod",
            Group::Source => "The source",
            Group::Destination => "The destination",
            Group::Engine => "Tables and the engine",
            Group::Events => "Events",
        }
    }
}

struct Entry {
    name: &'static str,
    group: Group,
    disposition: Disposition,
    meaning: &'static str,
    action: &'static str,
}

macro_rules! define_reasons {
    ($($group:ident { $($name:ident: $disposition:ident, $meaning:literal, $action:literal;)* })*) => {
        /// Why something is as it is, in one CamelCase word that stays stable over releases.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $meaning] $name,)*)*
        }

        impl Reason {
            /// All reasons, in the order of the reference.
            pub const ALL: &[Reason] = &[$($(Reason::$name,)*)*];

            fn entry(self) -> Entry {
                match self {
                    $($(Reason::$name => Entry {
                        name: stringify!($name),
                        group: Group::$group,
                        disposition: Disposition::$disposition,
                        meaning: $meaning,
                        action: $action,
                    },)*)*
                }
            }

            /// The reason with this name, or with the former name that records of earlier releases have.
            pub fn parse(name: &str) -> Option<Reason> {
                match name {
                    $($(stringify!($name) => Some(Reason::$name),)*)*
                    FORMER_TABLE_RESYNC => Some(Reason::TableResync),
                    _ => None,
                }
            }
        }
    };
}

/// The former name of [`Reason::TableResync`], in tables' records and replicators' reports of earlier
/// releases.
const FORMER_TABLE_RESYNC: &str = "CopiedAnew";

catalogue!(define_reasons);

impl Reason {
    /// The CamelCase word.
    pub fn name(self) -> &'static str {
        self.entry().name
    }

    /// Its section of the reference.
    pub fn group(self) -> Group {
        self.entry().group
    }

    /// Its meaning, as a sentence.
    pub fn meaning(self) -> &'static str {
        self.entry().meaning
    }

    /// What to run or to change; empty where there is nothing to do.
    pub fn action(self) -> &'static str {
        self.entry().action
    }

    /// What is done about it, unless the error says otherwise.
    pub fn disposition(self) -> Disposition {
        self.entry().disposition
    }

    /// Where its cause lies. Reasons of the source and of the destination begin with the side's name.
    pub fn side(self) -> Side {
        match self.name() {
            name if name.starts_with("Source") => Side::Source,
            name if name.starts_with("Destination") => Side::Destination,
            _ => Side::Mirror,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl PartialEq<&str> for Reason {
    fn eq(&self, name: &&str) -> bool {
        self.name() == *name
    }
}

impl From<Reason> for String {
    fn from(reason: Reason) -> String {
        reason.name().to_owned()
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Reason {
    /// A reason of a later release is read as [`Reason::Unknown`]; the message beside it still has the cause.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Reason, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok(Reason::parse(&name).unwrap_or(Reason::Unknown))
    }
}

/// A reason that may be absent, as a text that is empty then.
pub mod optional {
    use super::{Deserialize, Deserializer, Reason, Serializer};

    /// Writes the name, or an empty text.
    ///
    /// # Errors
    /// The serializer's.
    pub fn serialize<S: Serializer>(reason: &Option<Reason>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(reason.map_or("", Reason::name))
    }

    /// Reads the name; an empty text is no reason.
    ///
    /// # Errors
    /// The deserializer's.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Reason>, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = || Reason::parse(&name).unwrap_or(Reason::Unknown);
        Ok((!name.is_empty()).then(known))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.name()), Some(*reason));
            assert!(reason.meaning().ends_with('.'), "{reason}");
        }
        assert_eq!(serde_json::from_str::<Reason>("\"CopiedAnew\"").unwrap(), Reason::TableResync);
        assert_eq!(serde_json::from_str::<Reason>("\"OfALaterRelease\"").unwrap(), Reason::Unknown);
    }

    #[test]
    fn reasons_that_need_an_action_name_it() {
        let silent = Reason::ALL.iter().filter(|reason| {
            matches!(reason.disposition(), Disposition::FailTable | Disposition::Stall)
                && reason.action().is_empty()
        });
        assert_eq!(silent.collect::<Vec<_>>(), Vec::<&Reason>::new());
    }
}
