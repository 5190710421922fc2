//! The faults, and a schedule of them that depends only on its seed.

use std::{collections::VecDeque, fmt, time::Duration};

use fastrand::Rng;

use crate::support::Direction;

/// The network to the source or to the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Source,
    Target,
}

/// A fault of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkFault {
    /// Every connection ends on both sides.
    Lost,
    /// Every connection ends on the program's side only; the server does not notice.
    LostUnnoticed,
    /// Connections end and new ones are refused.
    Refused,
    /// Bytes in this direction are delayed until the fault ends, and connections stay open.
    Frozen(Direction),
    /// As `Frozen`, but the connections are cut at the end.
    BlackHole(Direction),
    /// Low bandwidth.
    Slow(Direction),
    /// Single bits flip.
    Corrupted(Direction),
}

/// The replicator's state between the copy of a server's disk and its restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    /// It streams all the time.
    Streams,
    /// It streams, and is killed before the restore.
    Dies,
    /// It is down from before the copy until after the restore, so nothing that is lost was confirmed.
    IsDown,
}

impl Meanwhile {
    fn any(rng: &mut Rng) -> Meanwhile {
        [Meanwhile::Streams, Meanwhile::Dies, Meanwhile::IsDown][rng.usize(0..3)]
    }
}

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    KillReplicator,
    TerminateReplicator,
    FreezeReplicator,
    /// It is stopped until another one runs, then continues.
    ReplaceReplicator,
    JumpClock,
    KillSource,
    RestartSourceFast,
    RestartSourceImmediate,
    EndWalsender,
    EndSessions,
    KillTarget,
    FreezeTarget,
    TargetTablesReadOnly,
    TargetUserReadOnly,
    TargetOutOfMemory,
    TargetTooManyParts,
    TargetWantsFreeDisk,
    TargetDiskFull,
    Network(Side, NetworkFault),
    FailOver,
    LoseSlot,
    ChangePublication,
    /// A partition is detached, changed and attached again in one transaction.
    ExchangePartition,
    /// Rows are rewritten by statements that are not in the stream.
    RewriteTable,
    /// A request reaches ClickHouse after its client has disconnected, and after newer ones.
    DeliverLate,
    /// PostgreSQL gets an earlier copy of its disk back, on the same timeline.
    RestoreSource(Meanwhile),
    /// ClickHouse gets an earlier copy of its disk back.
    RestoreTarget(Meanwhile),
}

/// What a fault affects. Two faults that share a part do not overlap.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Replicator,
    Source,
    SourceNetwork,
    Target,
    TargetNetwork,
}

const PARTS: [Part; 5] =
    [Part::Replicator, Part::Source, Part::SourceNetwork, Part::Target, Part::TargetNetwork];

/// Common faults with their durations in tenths of a second. One that is listed twice is twice as frequent.
const COMMON: &[(Fault, std::ops::Range<u64>)] = {
    use Direction::{ToClient, ToServer};
    use Fault::*;
    use NetworkFault::*;
    use Side::{Source, Target};
    &[
        (KillReplicator, 0..1),
        (KillReplicator, 0..1),
        (KillReplicator, 0..20),
        (KillReplicator, 0..1),
        (TerminateReplicator, 0..1),
        (TerminateReplicator, 0..20),
        (FreezeReplicator, 10..60),
        (ReplaceReplicator, 40..80),
        (ReplaceReplicator, 40..80),
        (JumpClock, 10..60),
        (KillSource, 0..20),
        (RestartSourceFast, 0..10),
        (RestartSourceImmediate, 0..20),
        (EndWalsender, 0..1),
        (EndSessions, 0..1),
        (KillTarget, 0..20),
        (KillTarget, 0..1),
        (FreezeTarget, 10..50),
        (FreezeTarget, 10..50),
        (TargetTablesReadOnly, 10..40),
        (TargetUserReadOnly, 0..20),
        (TargetOutOfMemory, 5..20),
        (TargetTooManyParts, 10..60),
        (TargetWantsFreeDisk, 10..40),
        (TargetDiskFull, 10..50),
        (DeliverLate, 5..60),
        (DeliverLate, 5..60),
        (ExchangePartition, 0..1),
        (ExchangePartition, 0..1),
        (RewriteTable, 0..1),
        (RewriteTable, 0..1),
        (Network(Source, Lost), 0..1),
        (Network(Source, LostUnnoticed), 0..1),
        (Network(Source, Refused), 5..40),
        (Network(Source, Frozen(ToClient)), 10..60),
        (Network(Source, Frozen(ToServer)), 10..60),
        (Network(Source, BlackHole(ToClient)), 10..60),
        (Network(Source, Slow(ToClient)), 10..40),
        (Network(Source, Corrupted(ToClient)), 10..20),
        (Network(Source, Corrupted(ToServer)), 10..20),
        (Network(Target, Lost), 0..1),
        (Network(Target, LostUnnoticed), 0..1),
        (Network(Target, Refused), 5..40),
        (Network(Target, Frozen(ToClient)), 10..60),
        (Network(Target, Frozen(ToServer)), 10..60),
        (Network(Target, BlackHole(ToServer)), 10..60),
        (Network(Target, BlackHole(ToClient)), 10..60),
        (Network(Target, Slow(ToServer)), 10..40),
        (Network(Target, Corrupted(ToServer)), 10..20),
        (Network(Target, Corrupted(ToClient)), 10..20),
    ]
};

impl Fault {
    fn parts(self) -> &'static [Part] {
        use Fault::*;
        match self {
            KillReplicator | TerminateReplicator | FreezeReplicator | ReplaceReplicator | JumpClock => {
                &[Part::Replicator]
            }
            KillSource
            | RestartSourceImmediate
            | EndWalsender
            | EndSessions
            | ExchangePartition
            | RewriteTable => &[Part::Source],
            // A fast shutdown waits until the replicator has received everything, so nothing may block that.
            RestartSourceFast => &[Part::Replicator, Part::Source, Part::SourceNetwork],
            KillTarget | FreezeTarget | TargetTablesReadOnly | TargetUserReadOnly | TargetOutOfMemory
            | TargetTooManyParts | TargetWantsFreeDisk | TargetDiskFull | DeliverLate => &[Part::Target],
            Network(Side::Source, _) => &[Part::SourceNetwork],
            Network(Side::Target, _) => &[Part::TargetNetwork],
            FailOver | LoseSlot | ChangePublication | RestoreSource(_) | RestoreTarget(_) => &PARTS,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Fault::*;
        let text = match self {
            KillReplicator => "kill -9 replicator",
            TerminateReplicator => "SIGTERM replicator",
            FreezeReplicator => "SIGSTOP replicator",
            ReplaceReplicator => "SIGSTOP replicator until another one runs, then SIGCONT",
            JumpClock => "clock of the replicator jumps and returns",
            KillSource => "kill -9 PostgreSQL",
            RestartSourceFast => "fast restart of PostgreSQL",
            RestartSourceImmediate => "immediate restart of PostgreSQL",
            EndWalsender => "walsender terminated",
            EndSessions => "all sessions at PostgreSQL terminated",
            KillTarget => "kill -9 ClickHouse",
            FreezeTarget => "SIGSTOP ClickHouse",
            TargetTablesReadOnly => "ClickHouse tables read-only",
            TargetUserReadOnly => "ClickHouse user read-only (restart)",
            TargetOutOfMemory => "ClickHouse user without memory (restart)",
            TargetTooManyParts => "ClickHouse has too many parts",
            TargetWantsFreeDisk => "ClickHouse rejects inserts for lack of disk",
            TargetDiskFull => "disk full at ClickHouse",
            FailOver => "failover to a standby with the slot",
            LoseSlot => "slot lost by max_slot_wal_keep_size, then resync",
            ChangePublication => "table removed from the publication, then resync",
            ExchangePartition => "partition detached, changed and attached again",
            RewriteTable => "rows rewritten by ALTER TABLE … USING",
            DeliverLate => "requests reach ClickHouse late",
            RestoreSource(meanwhile) => return write!(f, "PostgreSQL restored, {meanwhile}"),
            RestoreTarget(meanwhile) => return write!(f, "ClickHouse restored, {meanwhile}"),
            Network(side, fault) => {
                let side = match side {
                    Side::Source => "PostgreSQL",
                    Side::Target => "ClickHouse",
                };
                return write!(f, "network to {side} {fault}");
            }
        };
        f.write_str(text)
    }
}

impl fmt::Display for Meanwhile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Meanwhile::Streams => "the replicator streams",
            Meanwhile::Dies => "the replicator is killed before",
            Meanwhile::IsDown => "the replicator is down since the copy",
        })
    }
}

impl fmt::Display for NetworkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use NetworkFault::*;
        let (text, direction) = match self {
            Lost => return f.write_str("cut"),
            LostUnnoticed => return f.write_str("cut, the server does not notice"),
            Refused => return f.write_str("refuses connections"),
            Frozen(direction) => ("frozen", direction),
            BlackHole(direction) => ("black-holed, then cut", direction),
            Slow(direction) => ("slow", direction),
            Corrupted(direction) => ("corrupted", direction),
        };
        let direction = match direction {
            Direction::ToServer => "toward the server",
            Direction::ToClient => "toward the replicator",
        };
        write!(f, "{text} {direction}")
    }
}

/// A step of a schedule.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Planned time since the schedule's start. A fault that takes longer delays the next ones.
    pub at: Duration,
    pub fault: Fault,
    /// Whether the fault begins or ends here.
    pub begins: bool,
    /// Its planned duration.
    pub lasts: Duration,
}

/// The faults of a round of this length, in the order in which they begin and end.
pub fn schedule(rng: &mut Rng, length: Duration) -> Vec<Event> {
    let mut free_from = [Duration::ZERO; PARTS.len()];
    let mut rare = rare_faults(rng, length);
    let mut events = Vec::new();
    let mut at = Duration::from_millis(500 + rng.u64(0..2000));
    while at < length {
        let due = rare.pop_front_if(|(due, _)| *due <= at);
        let (fault, lasts) = match due {
            Some((_, fault)) => {
                // It affects all parts, so every earlier fault must have ended.
                at = free_from.iter().copied().fold(at, Duration::max);
                (fault, Duration::ZERO)
            }
            None => {
                let (fault, lasts) = COMMON[rng.usize(0..COMMON.len())].clone();
                let lasts = Duration::from_millis(100 * rng.u64(lasts));
                (fault, sometimes_long(rng, fault, lasts))
            }
        };
        let parts = || PARTS.iter().enumerate().filter(|(_, part)| fault.parts().contains(part));
        if parts().any(|(index, _)| free_from[index] > at) {
            at += Duration::from_millis(200);
            continue;
        }
        parts().for_each(|(index, _)| free_from[index] = at + lasts + Duration::from_millis(100));
        events.push(Event { at, fault, begins: true, lasts });
        events.push(Event { at: at + lasts, fault, begins: false, lasts });
        at += Duration::from_millis(700 + rng.u64(0..4000));
    }
    // The sort is stable, so a fault without duration ends directly after it began.
    events.sort_by_key(|event| event.at);
    events
}

/// Faults that affect all parts, and when they are due. Each kind of restore is in half of the rounds.
fn rare_faults(rng: &mut Rng, length: Duration) -> VecDeque<(Duration, Fault)> {
    let mut rare = vec![
        (0.15, Fault::FailOver),
        (0.3, Fault::LoseSlot),
        (0.45, Fault::FailOver),
        (0.6, Fault::ChangePublication),
        (0.8, Fault::FailOver),
    ];
    for restore in [Fault::RestoreSource, Fault::RestoreTarget] {
        let (when, meanwhile) = (0.9 * rng.f64(), Meanwhile::any(rng));
        if rng.bool() {
            rare.push((when, restore(meanwhile)));
        }
    }
    rare.sort_by(|one, other| one.0.total_cmp(&other.0));
    rare.into_iter().map(|(part, fault)| (length.mul_f64(part), fault)).collect()
}

/// Makes every tenth hang longer than most timeouts.
fn sometimes_long(rng: &mut Rng, fault: Fault, lasts: Duration) -> Duration {
    let hangs = matches!(
        fault,
        Fault::FreezeReplicator
            | Fault::FreezeTarget
            | Fault::Network(_, NetworkFault::Frozen(_) | NetworkFault::BlackHole(_))
    );
    if hangs && rng.u32(0..10) == 0 { Duration::from_secs(30) } else { lasts }
}
