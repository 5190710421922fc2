//! TODO

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    fault::{Reason, Remedy},
    model::{ReplicatorConfig, TableId, TableSpec},
    replication::{
        Destination, Error, StateRow,
        table::{
            record::{TablePhase, TableRecord},
            store::StateStore,
        },
    },
};

/// What the items of claims begin with; the target's name follows.
pub(in crate::replication) const CLAIM_PREFIX: &str = "target/";

/// How often the claims are read again while another Mirror asks for the same target, and how many times.
const POLL: Duration = Duration::from_millis(100);

const POLLS: usize = 50;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ClaimRecord {
    /// The Mirror's namespace and name, for messages.
    mirror: String,
    /// Whether the target is its own, and not only asked for.
    held: bool,
}

/// A Mirror's claim of a target table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The Mirror's namespace and name.
    pub mirror: String,
    /// The Mirror's UID.
    pub uid: String,
    /// The target.
    pub target: String,
    held: bool,
}

impl Claim {
    /// The item of its record.
    pub fn item(&self) -> String {
        format!("{CLAIM_PREFIX}{}", self.target)
    }
}

/// All claims in a destination's state table.
///
/// # Errors
/// What the destination answers, or a record that can't be read.
pub async fn claims<D: Destination>(destination: &D) -> Result<Vec<Claim>, Error> {
    let rows = destination.load_items(CLAIM_PREFIX).await?;
    let claim = |(uid, StateRow { item, value }): (String, StateRow)| {
        let target = item.strip_prefix(CLAIM_PREFIX).unwrap_or_default().to_owned();
        let ClaimRecord { mirror, held } =
            serde_json::from_str(&value).map_err(|source| Error::State { item, source })?;
        Ok(Claim { mirror, uid, target, held })
    };
    rows.into_iter().map(claim).collect()
}

/// The claim that keeps the Mirror with this UID from a target, if there is one.
pub fn foreign<'a>(claims: &'a [Claim], uid: &str, target: &str) -> Option<&'a Claim> {
    match claim_state(claims, uid, target) {
        ClaimState::Taken(claim) | ClaimState::Wait(claim) => Some(claim),
        ClaimState::Ask | ClaimState::Hold | ClaimState::Ours => None,
    }
}

/// What to do about a target.
#[derive(Debug, PartialEq, Eq)]
enum ClaimState<'a> {
    /// Nobody claims it.
    Ask,
    /// It is asked for, by us alone.
    Hold,
    /// It is ours.
    Ours,
    /// Another Mirror asks for it too, and will give way.
    Wait(&'a Claim),
    /// It is another Mirror's.
    Taken(&'a Claim),
}

fn claim_state<'a>(claims: &'a [Claim], uid: &str, target: &str) -> ClaimState<'a> {
    let of_target = || claims.iter().filter(|claim| claim.target == target);
    let ours = of_target().find(|claim| claim.uid == uid);
    // Two that hold it were brought together by hand, or by a backup: one of them gives way.
    let outranks = |other: &&Claim| match ours {
        Some(ours) if ours.held == other.held => other.uid.as_str() < uid,
        Some(ours) => other.held && !ours.held,
        None => true,
    };
    let others = || of_target().filter(|claim| claim.uid != uid);
    match (others().find(outranks), ours) {
        (Some(other), _) => ClaimState::Taken(other),
        (None, None) => ClaimState::Ask,
        (None, Some(ours)) if ours.held => ClaimState::Ours,
        (None, Some(_)) => others().next().map_or(ClaimState::Hold, ClaimState::Wait),
    }
}

/// The name of a table's target.
pub(in crate::replication) fn target_of(spec: &TableSpec) -> &str {
    spec.target.as_deref().unwrap_or(&spec.id.name)
}

/// The targets that other Mirrors have claimed, by name.
pub(in crate::replication) type Taken = BTreeMap<String, Claim>;

/// What became of a Mirror's claims.
pub(in crate::replication) struct Claimed {
    /// Targets that are other Mirrors'.
    pub(in crate::replication) taken: Taken,
    /// The items of targets that the Mirror has and no longer asks for.
    pub(in crate::replication) unwanted: Vec<String>,
}

/// Claims the Mirror's targets, where `found` are the claims that there were. They may be of a while ago:
/// what counts is who else is found after this Mirror's own claims.
///
/// # Errors
/// What the destination answers, and [`Error::Replaced`].
pub(in crate::replication) async fn claim_all<D: Destination>(
    config: &ReplicatorConfig,
    destination: &D,
    store: &StateStore<D>,
    mut found: Vec<Claim>,
) -> Result<Claimed, Error> {
    let (uid, name) = (&config.mirror.uid, format!("{}/{}", config.mirror.namespace, config.mirror.name));
    let wanted: BTreeSet<&str> = config.tables.iter().map(target_of).collect();
    let mut polls = 0;
    loop {
        let (mut changes, mut taken, mut waits) = (Vec::new(), Taken::new(), false);
        for target in &wanted {
            let record = |held| Some(ClaimRecord { mirror: name.clone(), held });
            let change = match claim_state(&found, uid, target) {
                ClaimState::Ours => continue,
                ClaimState::Ask => record(false),
                ClaimState::Hold => record(true),
                ClaimState::Wait(_) if polls < POLLS => {
                    waits = true;
                    continue;
                }
                ClaimState::Wait(other) | ClaimState::Taken(other) => {
                    taken.insert((*target).to_owned(), other.clone());
                    let asked = found.iter().any(|claim| claim.uid == *uid && claim.target == *target);
                    if !asked {
                        continue;
                    }
                    None
                }
            };
            waits |= change.as_ref().is_some_and(|claim| !claim.held);
            changes.push((format!("{CLAIM_PREFIX}{target}"), change));
        }
        store.save_claims(changes).await?;
        if !waits {
            let left = |claim: &&Claim| claim.uid == *uid && !wanted.contains(claim.target.as_str());
            let unwanted = found.iter().filter(left).map(Claim::item).collect();
            return Ok(Claimed { taken, unwanted });
        }
        if polls > 0 {
            tokio::time::sleep(POLL).await;
        }
        found = claims(destination).await?;
        polls += 1;
    }
}

/// Releases the targets with these items.
///
/// # Errors
/// What the destination answers.
pub(in crate::replication) async fn release<D: Destination>(
    items: Vec<String>,
    store: &StateStore<D>,
) -> Result<(), Error> {
    store.save_claims(items.into_iter().map(|item| (item, None::<ClaimRecord>)).collect()).await
}

/// The error of a table whose target is another Mirror's.
pub(in crate::replication) fn taken<D: Destination>(destination: &D, spec: &TableSpec, by: &Claim) -> Error {
    Error::TargetTaken {
        table: spec.id.clone(),
        message: describe(by),
        remedies: give_way(&spec.id, by, &destination.release_statement(&by.uid, &by.item())),
    }
}

/// Whose a target is.
pub fn describe(claim: &Claim) -> String {
    format!("mirror {} (UID {}) writes target table {}", claim.mirror, claim.uid, claim.target)
}

/// What helps where a target is another Mirror's. `release` is the statement that takes the claim away.
pub fn give_way(table: &TableId, claim: &Claim, release: &str) -> Vec<Remedy> {
    let gone =
        format!("-- if mirror {} is gone, and walferry teardown of its file can't be run", claim.mirror);
    vec![Remedy::any_of([
        vec![Remedy::edit("spec.tables", format!("give {table} another target.table, or take it out"))],
        vec![Remedy::run_at_destination(format!("{gone}\n{release}"))],
    ])]
}

/// Whether a table has stopped because its target was another Mirror's.
pub fn waits_for_target(record: &TableRecord) -> bool {
    record.phase == TablePhase::Failed && record.reason == Some(Reason::TargetTableTaken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(uid: &str, held: bool) -> Claim {
        Claim { mirror: format!("default/{uid}"), uid: uid.into(), target: "t".into(), held }
    }

    #[test]
    fn a_target_is_held_by_who_finds_no_other_claim() {
        let (a, b) = (|held| claim("a", held), |held| claim("b", held));
        assert_eq!(claim_state(&[], "a", "t"), ClaimState::Ask);
        assert_eq!(claim_state(&[a(false)], "a", "t"), ClaimState::Hold);
        assert_eq!(claim_state(&[a(true)], "a", "t"), ClaimState::Ours);
        assert_eq!(claim_state(&[b(false)], "a", "t"), ClaimState::Taken(&b(false)), "not even asked for");
        assert_eq!(claim_state(&[a(true), b(false)], "a", "t"), ClaimState::Ours);
        assert_eq!(claim_state(&[a(true), b(false)], "b", "t"), ClaimState::Taken(&a(true)));
        assert_eq!(claim_state(&[a(false), b(true)], "a", "t"), ClaimState::Taken(&b(true)));
        // Both ask: one waits until the other has given up.
        assert_eq!(claim_state(&[a(false), b(false)], "a", "t"), ClaimState::Wait(&b(false)));
        assert_eq!(claim_state(&[a(false), b(false)], "b", "t"), ClaimState::Taken(&a(false)));
        assert_eq!(claim_state(&[a(true), b(true)], "b", "t"), ClaimState::Taken(&a(true)));
        assert_eq!(claim_state(&[a(true), b(true)], "a", "t"), ClaimState::Ours);
        let other = Claim { target: "u".into(), ..b(true) };
        assert_eq!(claim_state(&[other], "a", "t"), ClaimState::Ask, "another target");
    }

    #[test]
    fn two_that_claim_in_any_order_never_both_hold() {
        // Each step of a Mirror: read, then write what the verdict says, with the other's steps in between.
        for order in 0..1_u32 << 12 {
            let mut table: Vec<Claim> = Vec::new();
            let mut read = [None, None];
            let uids = ["a", "b"];
            for step in 0..12 {
                let who = usize::from(order >> step & 1 == 1);
                let uid = uids[who];
                match read[who].take() {
                    None => read[who] = Some(table.clone()),
                    Some(found) => match claim_state(&found, uid, "t") {
                        ClaimState::Ours | ClaimState::Wait(_) => {}
                        change => {
                            table.retain(|claim| claim.uid != uid);
                            match change {
                                ClaimState::Ask => table.push(claim(uid, false)),
                                ClaimState::Hold => table.push(claim(uid, true)),
                                _ => {}
                            }
                        }
                    },
                }
                let held = table.iter().filter(|claim| claim.held).count();
                assert!(held < 2, "order {order:b}: {table:?}");
            }
        }
    }
}
