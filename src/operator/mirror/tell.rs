//! What of a report is worth an event and is no condition: the slot holds back much or was taken over, a table is copied anew.

use std::collections::BTreeMap;

use crate::{
    fault::Reason,
    model::{MirrorFailure, MirrorReport, SlotReport, TableReport, TableState},
    operator::events::Notice,
    status,
};

#[derive(Clone, Copy, Debug)]
struct Counts {
    takeovers: u64,
    failovers: u64,
}

/// What was told so far.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The slot, as it was last seen.
    slot: SlotReport,
    /// How often the replicator had taken it over, and followed the source to a promoted standby, when it was last asked. What
    /// an operator that has just started is told first, an earlier one may have told.
    counts: Option<Counts>,
    /// How often each table had been copied anew by then.
    copies_anew: BTreeMap<String, u64>,
    /// What somebody should correct, as it was last seen.
    warning: Option<MirrorFailure>,
}

impl Told {
    /// What is new in this report.
    pub(super) fn take_up(&mut self, report: &MirrorReport) -> Vec<Notice> {
        let mut notices = Vec::new();
        // Else nobody has seen the slot.
        if report.slot.wal_status.is_some() {
            let before = std::mem::replace(&mut self.slot, report.slot.clone());
            let warning = report.slot.is_worse_than(&before).then(|| status::slot_warning(report)).flatten();
            notices.extend(warning.map(|(reason, note)| Notice::warning(reason, note)));
        }
        // A report without tables was made without asking the replicator, whose counts go on.
        if report.tables.is_empty() {
            return notices;
        }
        let counts = Counts { takeovers: report.slot.takeovers, failovers: report.slot.failovers };
        let told = self.counts.replace(counts).unwrap_or(counts);
        if self.warning != report.warning {
            self.warning.clone_from(&report.warning);
            let warning = report.warning.iter();
            notices.extend(warning.map(|warning| Notice::warning(warning.reason, warning.message.clone())));
        }
        if counts.takeovers > told.takeovers {
            let note = format!(
                "slot {} was still held by an earlier connection of this Mirror, which was ended",
                report.slot_name
            );
            notices.push(Notice::normal(Reason::TakenOver, note));
        }
        if counts.failovers > told.failovers {
            let note = format!(
                "a standby of the source was promoted; slot {} is gone on with there",
                report.slot_name
            );
            notices.push(Notice::normal(Reason::FailedOver, note));
        }
        notices.extend(report.tables.iter().filter_map(|table| self.copied_anew(table)));
        notices
    }

    /// Of a table that is seen for the first time, an operator that has just started knows what is so now, not what was told.
    fn copied_anew(&mut self, table: &TableReport) -> Option<Notice> {
        let name = format!("{}.{}", table.schema, table.name);
        let (times, why) = (table.copies_anew.times, &table.copies_anew.why);
        let is_new = match self.copies_anew.insert(name.clone(), times) {
            Some(told) => times > told,
            None => times > 0 && matches!(table.state, TableState::Pending | TableState::Snapshotting),
        };
        is_new.then(|| Notice::normal(Reason::CopiedAnew, format!("{name}: {why}")).about(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{MirrorIdentity, Progress, TableId};

    fn progress() -> Progress {
        Progress::new(&MirrorIdentity { namespace: "team".into(), name: "demo".into(), uid: "0a".into() })
    }

    fn told(told: &mut Told, progress: &Progress) -> Vec<String> {
        let notices = told.take_up(&progress.report());
        notices.into_iter().map(|notice| format!("{} {}", notice.reason, notice.note)).collect()
    }

    #[test]
    fn a_warning_is_told_once_and_again_when_it_is_another() {
        let (mut memory, progress) = (Told::default(), progress());
        progress.table(&TableId::new("public", "users")).set_state(TableState::Streaming, None, "");
        for (message, expected) in
            [("a", vec!["ResyncUnknownTable a"]), ("a", vec![]), ("b", vec!["ResyncUnknownTable b"])]
        {
            let reason = Reason::ResyncUnknownTable;
            progress.set_warning(Some(MirrorFailure::new(reason, message)));
            assert_eq!(told(&mut memory, &progress), expected);
        }
        progress.set_warning(None);
        assert_eq!(told(&mut memory, &progress), Vec::<String>::new());
    }

    #[test]
    fn a_copy_that_nobody_asked_for_is_told_once_however_short() {
        let (mut memory, progress) = (Told::default(), progress());
        let users = progress.table(&TableId::new("public", "users"));
        users.set_state(TableState::Streaming, None, "");
        assert_eq!(told(&mut memory, &progress), Vec::<String>::new());

        users.set_state(TableState::Pending, Reason::CopiedAnew, "it is copied anew: a label was renamed");
        users.set_copied_anew("it is copied anew: a label was renamed");
        users.set_copied_anew("it is copied anew: a label was renamed");
        users.set_state(TableState::Streaming, None, "");
        let note = "CopiedAnew public.users: it is copied anew: a label was renamed";
        assert_eq!(told(&mut memory, &progress), [note]);
        assert_eq!(told(&mut memory, &progress), Vec::<String>::new());

        users.set_state(TableState::Pending, Reason::CopiedAnew, "");
        users.set_copied_anew("a part of it is copied: a partition was attached");
        assert_eq!(
            told(&mut memory, &progress),
            ["CopiedAnew public.users: a part of it is copied: a partition was attached"]
        );
    }

    #[test]
    fn an_operator_that_has_just_started_tells_of_what_is_under_way() {
        let progress = progress();
        let users = progress.table(&TableId::new("public", "users"));
        users.set_state(TableState::Pending, Reason::CopiedAnew, "");
        users.set_copied_anew("why");
        assert_eq!(told(&mut Told::default(), &progress), ["CopiedAnew public.users: why"]);
        users.set_state(TableState::Streaming, None, "");
        assert_eq!(told(&mut Told::default(), &progress), Vec::<String>::new());
    }

    #[test]
    fn a_slot_is_told_of_once_also_when_the_replicator_does_not_answer_meanwhile() {
        let (mut memory, progress) = (Told::default(), progress());
        progress.table(&TableId::new("public", "users"));
        progress.set_slot(SlotReport { wal_status: Some("unreserved".to_owned()), ..SlotReport::default() });
        progress.add_takeover();
        let first: Vec<_> = memory.take_up(&progress.report()).into_iter().map(|it| it.reason).collect();
        assert_eq!(first, [Reason::SlotAtRisk], "the takeover was perhaps told by an operator before");
        progress.add_takeover();
        assert_eq!(told(&mut memory, &progress).len(), 1);
        let mut silent = progress.report();
        (silent.tables, silent.slot.takeovers) = (Vec::new(), 0);
        assert_eq!(memory.take_up(&silent), []);
        assert_eq!(told(&mut memory, &progress), Vec::<String>::new());
        progress.add_takeover();
        assert_eq!(told(&mut memory, &progress).len(), 1);
    }
}
