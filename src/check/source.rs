//! The source as a whole: reaching it, its settings, the role and the slot.

use super::{
    publication,
    report::{Check, Outcome},
};
use crate::{
    fault::{Reason, Remedy},
    model::{MirrorFailure, PostgresEndpoint, TlsMode},
    postgres::{
        Error,
        catalog::ServerFacts,
        quote::ident,
        slot::{self, SlotInfo},
    },
    replication,
};

pub(super) const SUBJECT: &str = "source";
const SLOT: &str = "replication slot";

/// The oldest PostgreSQL: pgoutput sends values in binary form since 14.
const OLDEST: u32 = 140_000;
/// The oldest release whose standbys support logical decoding.
const OLDEST_STANDBY: u32 = 160_000;

/// Why no session could be had.
pub(super) fn connection_failed(endpoint: &PostgresEndpoint, error: &Error) -> Check {
    // Sessions set this parameter, and it came with 14.
    if matches!(error, Error::Server { message, .. } if message.contains("idle_session_timeout")) {
        return too_old(format!("the server is older than PostgreSQL 14 ({error})"));
    }
    let (reason, fix) = match error {
        Error::TlsSettings(_) | Error::TlsRefused { .. } | Error::Tls { .. } => {
            (Reason::SourceTlsFailed, None)
        }
        Error::Authentication { message, .. } => {
            (Reason::SourceAuthenticationFailed, Some(authentication_fix(endpoint, message)))
        }
        Error::Server { sqlstate, .. } if sqlstate == "3D000" => {
            (Reason::SourceError, Some(Remedy::act("correct postgres.database of the ReplicationPeer")))
        }
        Error::Server { sqlstate, .. } if sqlstate == "42501" => (
            Reason::SourcePrivilegeMissing,
            Some(Remedy::run_at_source(format!(
                "GRANT CONNECT ON DATABASE {} TO {};",
                ident(&endpoint.database),
                ident(&endpoint.username)
            ))),
        ),
        Error::Server { .. } | Error::Protocol(_) | Error::Decode(_) => {
            (error.transient_reason().unwrap_or(Reason::SourceError), None)
        }
        _ => (
            Reason::SourceUnreachable,
            Some(Remedy::act(
                "check postgres.host and postgres.port of the ReplicationPeer, listen_addresses of the server and what is between",
            )),
        ),
    };
    let check =
        Check::failure(SUBJECT, "connection", reason, error.to_string()).transient(error.is_transient());
    check.remedied(fix)
}

fn authentication_fix(endpoint: &PostgresEndpoint, message: &str) -> Remedy {
    if message.contains("pg_hba.conf") {
        let kind = if endpoint.tls.mode == TlsMode::Disable { "host" } else { "hostssl" };
        return Remedy::act(format!(
            "add to pg_hba.conf and reload: {kind} {} {} <address of walferry>/32 scram-sha-256",
            endpoint.database, endpoint.username
        ));
    }
    Remedy::act(format!(
        "correct the Secret that postgres.credentialsSecretRef names, or set the password: ALTER ROLE {} PASSWORD '…';",
        ident(&endpoint.username)
    ))
}

/// A query of the checks failed.
pub(super) fn query_failed(subject: &str, name: &str, error: &Error) -> Check {
    let reason = error.transient_reason().unwrap_or(Reason::SourceError);
    Check::failure(subject, name, reason, error.to_string()).transient(error.is_transient())
}

/// All checks of the server and the role. `slot` is the Mirror's own slot, if it has one already; with
/// `resync` it is going to be replaced.
pub(super) fn server(
    endpoint: &PostgresEndpoint,
    facts: &ServerFacts,
    slot: Option<&SlotInfo>,
    resync: bool,
) -> Vec<Check> {
    let mut checks = peer(endpoint, facts);
    checks.extend([replication_slot(facts, slot, resync), walsender(facts, slot), retained_wal(facts)]);
    checks.extend(standby_feedback(facts));
    checks
}

/// The checks that don't depend on a Mirror: how it is reached, what it is, and what the role may do.
pub(super) fn peer(endpoint: &PostgresEndpoint, facts: &ServerFacts) -> Vec<Check> {
    vec![connection(endpoint, facts), version(facts), wal_level(facts), role(facts)]
}

/// The checks with what a standby does not take said to be for its primary.
pub(super) fn remedies_at_primary(checks: Vec<Check>, facts: &ServerFacts) -> Vec<Check> {
    if !facts.in_recovery {
        return checks;
    }
    checks.into_iter().map(Check::at_primary).collect()
}

fn connection(endpoint: &PostgresEndpoint, facts: &ServerFacts) -> Check {
    let at = format!("{} as {} at {}:{}", facts.database, facts.role, endpoint.host, endpoint.port);
    let plain = |what: &str, fix: &str| {
        Check::warning(SUBJECT, "connection", Reason::SourceTlsFailed, format!("{at}, {what}")).act(fix)
    };
    match endpoint.tls.mode {
        TlsMode::Disable if is_local(&endpoint.host) => {
            Check::ok(SUBJECT, "connection", format!("{at}, plain text"))
        }
        TlsMode::Disable => {
            plain("plain text: rows are readable on the network", "set postgres.tls.mode to VerifyFull")
        }
        TlsMode::Require => plain(
            "TLS without verifying the server's certificate",
            "set postgres.tls.mode to VerifyFull, with caSecretRef for a private CA",
        ),
        TlsMode::VerifyCa => Check::ok(SUBJECT, "connection", format!("{at}, TLS, CA verified")),
        TlsMode::VerifyFull => {
            Check::ok(SUBJECT, "connection", format!("{at}, TLS, CA and host name verified"))
        }
    }
}

/// Whether traffic stays on this machine.
pub(super) fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn version(facts: &ServerFacts) -> Check {
    let shown = format!("PostgreSQL {}", facts.version);
    if facts.version_num < OLDEST {
        return too_old(format!("{shown}, walferry needs 14 or later"));
    }
    if facts.in_recovery && facts.version_num < OLDEST_STANDBY {
        return Check::failure(
            SUBJECT,
            "version",
            Reason::SourceVersionUnsupported,
            format!("{shown} is a standby, which can be a source from PostgreSQL 16 on"),
        )
        .act("name the primary in postgres.host of the ReplicationPeer");
    }
    Check::ok(SUBJECT, "version", if facts.in_recovery { format!("{shown}, a standby") } else { shown })
}

fn too_old(detail: String) -> Check {
    Check::failure(SUBJECT, "version", Reason::SourceVersionUnsupported, detail)
        .act("upgrade the server to PostgreSQL 14 or later")
}

fn wal_level(facts: &ServerFacts) -> Check {
    const NAME: &str = "wal_level";
    if facts.wal_level == "logical" {
        // A standby shows its own setting only, and decodes nothing unless the primary's is logical too.
        let detail = match facts.in_recovery {
            true => "logical at this standby; its primary needs logical too, which a standby does not show",
            false => "logical",
        };
        return Check::ok(SUBJECT, NAME, detail);
    }
    let detail = match facts.in_recovery {
        true => {
            format!("is {} at this standby, must be logical there and at its primary", facts.wal_level)
        }
        false => format!("is {}, must be logical", facts.wal_level),
    };
    let change = change_setting(
        facts,
        NAME,
        "'logical'",
        "\n-- then restart PostgreSQL (Amazon RDS: rds.logical_replication = 1 in the parameter group, then reboot)",
    );
    let check = Check::failure(SUBJECT, NAME, Reason::SourceWalLevelNotLogical, detail).remedied([change]);
    match facts.in_recovery {
        true => check.act("set wal_level to logical at the primary, too, and restart it first"),
        false => check,
    }
}

/// How a setting of this very server is changed. ALTER SYSTEM writes to a file, which counts less than the
/// command line of the server process. `after` are the lines that follow the statement.
fn change_setting(facts: &ServerFacts, name: &str, value: &str, after: &str) -> Remedy {
    if facts.on_command_line.iter().any(|given| given == name) {
        return Remedy::act(format!(
            "set {name} = {value} in the command line that starts PostgreSQL, which gives another value, and restart it; ALTER SYSTEM has no effect on it"
        ));
    }
    Remedy::run_at_source_server(format!("ALTER SYSTEM SET {name} = {value};{after}"))
}

fn role(facts: &ServerFacts) -> Check {
    if facts.may_replicate {
        return Check::ok(SUBJECT, "role", format!("{} may replicate", facts.role));
    }
    let role = ident(&facts.role);
    Check::failure(
        SUBJECT,
        "role",
        Reason::SourcePrivilegeMissing,
        format!("{} may not replicate: it lacks the REPLICATION attribute", facts.role),
    )
    .run_at_source(format!(
        "ALTER ROLE {role} REPLICATION;\n-- on Amazon RDS: GRANT rds_replication TO {role};"
    ))
}

/// Adds what stops a started Mirror. It is more specific than the checks of the same name.
pub(super) fn add_state_faults(checks: &mut Vec<Check>, faults: Vec<replication::Error>) {
    for fault in faults {
        let name = match &fault {
            replication::Error::PublicationChanged { .. } => publication::NAME,
            replication::Error::SlotMissing { .. }
            | replication::Error::SlotInvalidated { .. }
            | replication::Error::SlotForeign { .. }
            | replication::Error::SlotNotReady { .. }
            | replication::Error::SlotAdvanced { .. }
            | replication::Error::PositionUnknown { .. } => SLOT,
            _ => "state",
        };
        let replication::Policy::Stall = replication::policy(&fault).0 else { continue };
        checks.retain(|check| check.name != name);
        checks.push(of_fault(name, &fault));
    }
}

fn of_fault(name: &str, fault: &replication::Error) -> Check {
    let MirrorFailure { reason, message, remedies } = replication::failure(fault);
    Check::failure(SUBJECT, name, reason, message).remedied(remedies).of_state()
}

fn replication_slot(facts: &ServerFacts, slot: Option<&SlotInfo>, resync: bool) -> Check {
    const NAME: &str = SLOT;
    let unusable = |slot: &SlotInfo, why: &str| {
        let detail = format!("{} {why}", slot.name);
        Check::failure(SUBJECT, NAME, Reason::SourceSlotUnusable, detail)
    };
    let drop = |slot: &SlotInfo| format!("{};", slot::drop_statement(&slot.name));
    match slot {
        Some(slot)
            if slot.plugin.as_deref() != Some("pgoutput")
                || slot.database.as_ref() != Some(&facts.database) =>
        {
            unusable(slot, "exists, but not for pgoutput in this database").run_at_source_server(drop(slot))
        }
        Some(slot) if resync => Check::ok(SUBJECT, NAME, format!("{} will be recreated", slot.name)),
        Some(slot) if slot.wal_status.as_deref() == Some("lost") => Check {
            reason: Some(Reason::SourceSlotInvalidated),
            ..unusable(slot, "was invalidated by the server, so changes are missing at the destination")
                .act(slot.cure())
                .remedied([Remedy::resync_all()])
        },
        Some(slot) => Check::ok(SUBJECT, NAME, format!("{} exists", slot.name)),
        None if facts.used_slots < facts.max_slots => {
            let kept = if facts.failover_slots { "; ours will be kept over a failover" } else { "" };
            Check::ok(SUBJECT, NAME, format!("{} of {} in use{kept}", facts.used_slots, facts.max_slots))
        }
        None => Check::failure(
            SUBJECT,
            NAME,
            Reason::SourceNoFreeReplicationSlot,
            format!("all {} of max_replication_slots are in use", facts.max_slots),
        )
        .remedied([more_slots(facts)]),
    }
}

/// Slots that nobody needs are dropped, or the server gets room for more.
fn more_slots(facts: &ServerFacts) -> Remedy {
    let look = "SELECT slot_name, active FROM pg_replication_slots; -- drop what is not needed";
    let slots = (facts.max_slots + 5).to_string();
    match change_setting(facts, "max_replication_slots", &slots, " -- or this, then restart PostgreSQL") {
        Remedy::RunAt { sql, .. } => Remedy::run_at_source_server(format!("{look}\n{sql}")),
        other => Remedy::any_of([vec![Remedy::run_at_source_server(look)], vec![other]]),
    }
}

/// One walsender streams; the copy reads over ordinary connections.
fn walsender(facts: &ServerFacts, slot: Option<&SlotInfo>) -> Check {
    let streaming = slot.is_some_and(|slot| slot.active_pid.is_some());
    if streaming || facts.used_walsenders < facts.max_walsenders {
        let detail = format!("{} of {} in use", facts.used_walsenders, facts.max_walsenders);
        return Check::ok(SUBJECT, "walsender", detail);
    }
    Check::failure(
        SUBJECT,
        "walsender",
        Reason::SourceNoFreeWalSender,
        format!("all {} of max_wal_senders are in use", facts.max_walsenders),
    )
    .remedied([change_setting(
        facts,
        "max_wal_senders",
        &(facts.max_walsenders + 5).to_string(),
        "\n-- then restart PostgreSQL",
    )])
}

/// What a standby's slot needs of the catalog, the primary vacuums away unless the standby reports it.
fn standby_feedback(facts: &ServerFacts) -> Option<Check> {
    if !facts.in_recovery || facts.standby_feedback {
        return None;
    }
    let detail = "the primary does not know what the standby needs: what it vacuums can invalidate the slot, and end the copy's queries";
    const NAME: &str = "hot_standby_feedback";
    let change = change_setting(
        facts,
        NAME,
        "on",
        " -- with primary_slot_name, a physical slot at the primary, set too\nSELECT pg_reload_conf();",
    );
    Some(Check::warning(SUBJECT, NAME, Reason::SourceStandbyFeedbackMissing, detail).remedied([change]))
}

fn retained_wal(facts: &ServerFacts) -> Check {
    const NAME: &str = "max_slot_wal_keep_size";
    if facts.max_slot_wal_keep_mib >= 0 {
        return Check::ok(SUBJECT, NAME, format!("{} MiB", facts.max_slot_wal_keep_mib));
    }
    Check::warning(
        SUBJECT,
        NAME,
        Reason::SourceWalRetentionUnlimited,
        "no limit: while walferry is stopped, the WAL kept for it can fill the disk",
    )
    .remedied([change_setting(
        facts,
        NAME,
        "'100GB'",
        " -- as much as the disk can spare\nSELECT pg_reload_conf();",
    )])
}

/// Whether the later checks make sense on such a server.
pub(super) fn is_usable(checks: &[Check]) -> bool {
    !checks.iter().any(|check| check.outcome == Outcome::Failure && check.name == "version")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{server_facts as facts, source};
    use super::*;
    use crate::model::{Lsn, TlsSettings};

    fn endpoint(mode: TlsMode) -> PostgresEndpoint {
        PostgresEndpoint { tls: TlsSettings { mode, ..TlsSettings::default() }, ..source() }
    }

    fn slot() -> SlotInfo {
        SlotInfo {
            name: "walferry_1f".to_owned(),
            plugin: Some("pgoutput".to_owned()),
            database: Some("app".to_owned()),
            active_pid: None,
            restart_lsn: Some(Lsn(1)),
            confirmed_flush_lsn: Some(Lsn(1)),
            wal_status: Some("reserved".to_owned()),
            safe_wal_size: None,
            retained_bytes: Some(0),
            current_lsn: Lsn(1),
            catalog_xmin_age: None,
            inactive_since: None,
            invalidation_reason: None,
        }
    }

    fn outcome(checks: &[Check], name: &str) -> (Outcome, Option<Reason>) {
        let check = checks.iter().find(|check| check.name == name).unwrap();
        (check.outcome, check.reason)
    }

    fn with(change: impl FnOnce(&mut ServerFacts), slot: Option<&SlotInfo>) -> Vec<Check> {
        let mut facts = facts();
        change(&mut facts);
        server(&endpoint(TlsMode::VerifyFull), &facts, slot, false)
    }

    #[test]
    fn a_prepared_server_is_fine() {
        assert!(with(|_| {}, None).iter().all(|check| check.outcome == Outcome::Ok));
    }

    #[test]
    fn settings_have_the_statement_to_run() {
        let checks = with(
            |facts| {
                facts.wal_level = "replica".to_owned();
                facts.used_slots = 10;
                facts.used_walsenders = 10;
                facts.max_slot_wal_keep_mib = -1;
                facts.may_replicate = false;
            },
            None,
        );
        assert_eq!(outcome(&checks, "wal_level"), (Outcome::Failure, Some(Reason::SourceWalLevelNotLogical)));
        assert_eq!(
            outcome(&checks, "replication slot"),
            (Outcome::Failure, Some(Reason::SourceNoFreeReplicationSlot))
        );
        assert_eq!(outcome(&checks, "walsender"), (Outcome::Failure, Some(Reason::SourceNoFreeWalSender)));
        assert_eq!(outcome(&checks, "role"), (Outcome::Failure, Some(Reason::SourcePrivilegeMissing)));
        assert_eq!(
            outcome(&checks, "max_slot_wal_keep_size"),
            (Outcome::Warning, Some(Reason::SourceWalRetentionUnlimited))
        );
        assert!(
            checks
                .iter()
                .filter(|check| check.outcome != Outcome::Ok)
                .all(|check| !check.remedies.is_empty())
        );
    }

    #[test]
    fn a_setting_of_the_command_line_is_changed_there() {
        let change = |facts: &mut ServerFacts| {
            facts.wal_level = "replica".to_owned();
            facts.max_slot_wal_keep_mib = -1;
            facts.used_walsenders = 10;
            facts.on_command_line = vec!["port".to_owned(), "wal_level".to_owned()];
        };
        let checks = with(change, None);
        let fix = |name: &str| checks.iter().find(|check| check.name == name).unwrap().fix().unwrap();
        assert!(fix("wal_level").starts_with("set wal_level = 'logical' in the command line"));
        assert!(fix("walsender").starts_with("ALTER SYSTEM SET max_wal_senders = 15;\n-- then"));
        assert!(fix("max_slot_wal_keep_size").starts_with("ALTER SYSTEM SET max_slot_wal_keep_size"));
    }

    #[test]
    fn a_standby_s_wal_level_is_half_of_it() {
        let standby = |wal_level: &str| {
            let checks = with(
                |facts| {
                    facts.in_recovery = true;
                    facts.wal_level = wal_level.to_owned();
                },
                None,
            );
            checks.into_iter().find(|check| check.name == "wal_level").unwrap()
        };
        assert!(standby("logical").detail.contains("its primary needs logical too"));
        let replica = standby("replica");
        assert_eq!(replica.outcome, Outcome::Failure);
        assert!(replica.detail.contains("at this standby, must be logical there and at its primary"));
        assert!(replica.fix().unwrap().ends_with("at the primary, too, and restart it first"));
    }

    #[test]
    fn our_own_slot_and_walsender_need_no_free_one() {
        let running = SlotInfo { active_pid: Some(5), ..slot() };
        let full = |facts: &mut ServerFacts| {
            facts.used_slots = 10;
            facts.used_walsenders = 10;
        };
        assert!(with(full, Some(&running)).iter().all(|check| check.outcome == Outcome::Ok));
        let idle = with(full, Some(&slot()));
        assert_eq!(outcome(&idle, "replication slot").0, Outcome::Ok);
        assert_eq!(outcome(&idle, "walsender").0, Outcome::Failure);
    }

    #[test]
    fn a_standby_s_primary_has_to_know_what_is_needed() {
        let standby = |standby_feedback| {
            with(
                |facts| {
                    facts.in_recovery = true;
                    facts.standby_feedback = standby_feedback;
                },
                None,
            )
        };
        assert!(standby(true).iter().all(|check| check.outcome == Outcome::Ok));
        let missing = standby(false);
        let reason = Reason::SourceStandbyFeedbackMissing;
        assert_eq!(outcome(&missing, "hot_standby_feedback"), (Outcome::Warning, Some(reason)));
    }

    #[test]
    fn a_slot_that_can_not_be_used_is_refused() {
        let lost = SlotInfo { wal_status: Some("lost".to_owned()), ..slot() };
        let foreign = SlotInfo { plugin: Some("test_decoding".to_owned()), ..slot() };
        let elsewhere = SlotInfo { database: Some("other".to_owned()), ..slot() };
        let replaced = server(&endpoint(TlsMode::VerifyFull), &facts(), Some(&lost), true);
        assert_eq!(outcome(&replaced, "replication slot").0, Outcome::Ok);
        for (slot, reason) in [
            (lost, Reason::SourceSlotInvalidated),
            (foreign, Reason::SourceSlotUnusable),
            (elsewhere, Reason::SourceSlotUnusable),
        ] {
            let checks = with(|_| {}, Some(&slot));
            assert_eq!(outcome(&checks, "replication slot"), (Outcome::Failure, Some(reason)));
        }
    }

    #[test]
    fn old_servers_and_old_standbys_are_refused() {
        let old = with(|facts| facts.version_num = 130_022, None);
        assert_eq!(outcome(&old, "version"), (Outcome::Failure, Some(Reason::SourceVersionUnsupported)));
        assert!(!is_usable(&old));
        let standby = |version| {
            with(
                move |facts| {
                    facts.in_recovery = true;
                    facts.version_num = version;
                },
                None,
            )
        };
        assert!(!is_usable(&standby(150_013)));
        assert!(is_usable(&standby(160_009)));
    }

    #[test]
    fn plain_text_is_warned_of_unless_it_stays_here() {
        let mut endpoint = endpoint(TlsMode::Disable);
        assert_eq!(connection(&endpoint, &facts()).outcome, Outcome::Warning);
        for host in ["localhost", "127.0.0.1", "::1", "[::1]"] {
            endpoint.host = host.to_owned();
            assert_eq!(connection(&endpoint, &facts()).outcome, Outcome::Ok, "{host}");
        }
        endpoint.tls.mode = TlsMode::Require;
        assert_eq!(connection(&endpoint, &facts()).outcome, Outcome::Warning);
    }

    #[test]
    fn a_refused_authentication_says_what_to_correct() {
        let refused = |message: &str| {
            let error = Error::Authentication { username: "mirror".to_owned(), message: message.to_owned() };
            connection_failed(&endpoint(TlsMode::VerifyFull), &error)
        };
        let check = refused("password authentication failed for user \"mirror\"");
        assert_eq!(check.reason, Some(Reason::SourceAuthenticationFailed));
        assert!(check.fix().unwrap().contains("ALTER ROLE \"mirror\" PASSWORD"));
        let check = refused("no pg_hba.conf entry for host");
        assert!(check.fix().unwrap().contains("hostssl app mirror"));
        let old = Error::Server {
            sqlstate: "42704".to_owned(),
            message: "unrecognized configuration parameter \"idle_session_timeout\"".to_owned(),
            detail: None,
            hint: None,
        };
        let check = connection_failed(&endpoint(TlsMode::VerifyFull), &old);
        assert_eq!(check.reason, Some(Reason::SourceVersionUnsupported));
    }
}
