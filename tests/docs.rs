//! Pages of docs/ that follow from the code: each reason has its section, and each state of a Mirror its
//! conditions.

use std::collections::BTreeSet;

use walferry::{
    api::conditions as types,
    fault::Reason,
    model::{
        LagReport, Lsn, MirrorFailure, MirrorIdentity, MirrorPhase, MirrorReport, Progress, TableId,
        TableState,
    },
    status::{Condition, conditions},
};

#[test]
fn each_reason_has_a_section() {
    let page = include_str!("../docs/troubleshooting.md");
    let sections: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let reasons: BTreeSet<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
    assert_eq!(sections, reasons, "docs/troubleshooting.md");
}

/// A report of tables `public.a`, `public.b`, …
fn report(phase: MirrorPhase, failure: Option<Reason>, tables: &[TableState]) -> MirrorReport {
    let identity = MirrorIdentity { namespace: "default".into(), name: "shop".into(), uid: "0".into() };
    let progress = Progress::new(&identity);
    progress.set_phase(phase, failure.map(|reason| MirrorFailure::new(reason, "(the error and the remedy)")));
    for (name, state) in ["public.a", "public.b"].iter().zip(tables) {
        let failed = *state == TableState::Failed;
        let reason = failed.then_some(Reason::SourceTableDropped);
        let message = if failed { "(the error and the remedy)" } else { "" };
        let table = TableId::new("public", name.trim_start_matches("public."));
        progress.table(&table).set_state(*state, reason, message);
    }
    let lag = LagReport { bytes: Some(0), seconds: Some(0.0) };
    MirrorReport { lag, last_lsn: Lsn(0x1A9A_7AE0), ..progress.report() }
}

/// The states of the page, in its order.
fn states() -> Vec<(&'static str, MirrorReport)> {
    use MirrorPhase as Phase;
    use TableState::{Failed, Snapshotting, Streaming};
    let both = &[Streaming, Streaming];
    let behind = LagReport { bytes: Some(4096), seconds: Some(1.5) };
    let mut joining = report(Phase::Snapshotting, None, &[Streaming, Snapshotting]);
    joining.tables[1].copied_while_streaming = true;
    vec![
        ("created", report(Phase::Provisioning, None, &[])),
        ("initial snapshot", report(Phase::Snapshotting, None, &[Streaming, Snapshotting])),
        ("streaming", report(Phase::Streaming, None, both)),
        ("streaming, behind", MirrorReport { lag: behind, ..report(Phase::Streaming, None, both) }),
        ("a table joins or is re-copied", joining),
        ("some tables failed", report(Phase::Streaming, None, &[Streaming, Failed])),
        ("all tables failed", report(Phase::Streaming, None, &[Failed, Failed])),
        ("retrying (SourceUnreachable)", report(Phase::Retrying, Some(Reason::SourceUnreachable), both)),
        ("stalled (SourceSlotLost)", report(Phase::Stalled, Some(Reason::SourceSlotLost), both)),
        ("suspended", report(Phase::Suspended, None, both)),
        ("finished (snapshot.mode: InitialOnly)", report(Phase::Finished, None, both)),
        ("deleting", report(Phase::Deleting, None, both)),
        ("cleanup failed", report(Phase::Deleting, Some(Reason::SourceUnreachable), both)),
    ]
}

/// Two tables: the conditions of each state, and the message of its condition Ready.
fn tables_of_states() -> String {
    let kinds = [
        types::READY,
        types::RECONCILING,
        types::STALLED,
        types::SOURCE_READY,
        types::DESTINATION_READY,
        types::SNAPSHOTTED,
        types::STREAMING,
        types::CAUGHT_UP,
    ];
    let mut matrix = vec![format!("| state | {} |", kinds.join(" | ")), "|---".repeat(kinds.len() + 1) + "|"];
    let mut messages = vec!["| state | message of `Ready` |".to_owned(), "|---|---|".to_owned()];
    for (state, report) in states() {
        let conditions = conditions(&report);
        let cell = |kind: &&str| {
            let of_kind = |condition: &&Condition| condition.type_ == **kind;
            conditions.iter().find(of_kind).map_or(String::new(), |condition| {
                format!(" {} `{}`", condition.status.as_str(), condition.reason)
            })
        };
        let cells: Vec<String> = kinds.iter().map(cell).collect();
        matrix.push(format!("| {state} |{} |", cells.join(" |")));
        messages.push(format!("| {state} | {} |", conditions[0].message));
    }
    format!("{}\n\n{}\n", matrix.join("\n"), messages.join("\n"))
}

#[test]
fn states_look_as_described() {
    let made = tables_of_states();
    let page = include_str!("../docs/states.md");
    assert!(page.contains(&made), "docs/states.md needs these tables, word for word:\n\n{made}");
}
