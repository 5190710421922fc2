//! Preflight checks: whether source, destination and tables meet the requirements, and what to run where they
//! don't.
//!
//! A thin layer (`collect`) queries the servers; pure functions decide from what it returns.

mod collect;
mod destination;
mod privileges;
mod publication;
mod replica_identity;
mod report;
mod row_filter;
mod source;
mod state;
mod table;
mod target;
mod verdict;

pub use collect::{SourceServer, destination_server, preflight, recorded_state, source_server};
pub use report::{Check, CheckReport, Outcome};
pub use verdict::asks;

#[cfg(test)]
mod tests {
    //! A server, a table and a Mirror that pass every check; tests change what they are about.

    use std::time::Duration;

    use crate::{
        model::{
            BatchSettings, ClickHouseEndpoint, Column, DeletionPolicy, MirrorIdentity, OutOfRange, Password,
            PostgresEndpoint, ReplicatorConfig, SnapshotMode, SnapshotSettings, SourceType, TableId,
            TableSchema, TableSpec, TlsSettings,
        },
        postgres::catalog::{RelationFacts, ServerFacts, TableFacts},
    };

    pub(super) fn server_facts() -> ServerFacts {
        ServerFacts {
            version_num: 180_004,
            version: "18.4".to_owned(),
            in_recovery: false,
            wal_level: "logical".to_owned(),
            max_slots: 10,
            used_slots: 3,
            max_walsenders: 10,
            used_walsenders: 3,
            max_slot_wal_keep_mib: 1024,
            failover_slots: false,
            standby_feedback: false,
            on_command_line: Vec::new(),
            role: "mirror".to_owned(),
            database: "app".to_owned(),
            may_replicate: true,
            may_create: true,
        }
    }

    fn column(name: &str, attnum: i16, source_type: SourceType) -> Column {
        Column {
            attnum,
            type_name: "a type".to_owned(),
            nullable: attnum > 1,
            ..Column::new(name, source_type)
        }
    }

    /// `public.users (id bigint PRIMARY KEY, email text)`
    pub(super) fn table_facts() -> TableFacts {
        TableFacts {
            schema: TableSchema {
                oid: 16_400,
                ..TableSchema::new(
                    TableId::new("public", "users"),
                    vec![column("id", 1, SourceType::Int8), column("email", 2, SourceType::Text)],
                )
            },
            relation: RelationFacts::sample("users"),
            partitions: Vec::new(),
            columns: Vec::new(),
            generated_columns: Vec::new(),
            inherits_children: false,
        }
    }

    pub(super) fn destination() -> ClickHouseEndpoint {
        ClickHouseEndpoint {
            url: "https://ch.example:8443".to_owned(),
            database: "analytics".to_owned(),
            username: "writer".to_owned(),
            password: Password::new("x"),
            tls: TlsSettings::default(),
        }
    }

    pub(super) fn source() -> PostgresEndpoint {
        PostgresEndpoint {
            host: "db.example".to_owned(),
            port: 5432,
            database: "app".to_owned(),
            username: "mirror".to_owned(),
            password: Password::new("x"),
            tls: TlsSettings::default(),
        }
    }

    pub(super) fn config() -> ReplicatorConfig {
        ReplicatorConfig {
            mirror: MirrorIdentity {
                namespace: "default".to_owned(),
                name: "app".to_owned(),
                uid: "1f".to_owned(),
            },
            source: source(),
            destination: destination(),
            tables: vec![TableSpec::new(TableId::new("public", "users"))],
            snapshot: SnapshotSettings { mode: SnapshotMode::Initial, parallelism: 4 },
            batch: BatchSettings { max_bytes: 1 << 26, max_delay: Duration::from_millis(200) },
            out_of_range: OutOfRange::Clamp,
            suspend: false,
            deletion_policy: DeletionPolicy::Delete,
            resync: None,
            renderer: None,
        }
    }
}
