//! The history of a timeline: from which others it branched off, and where
//! (<https://www.postgresql.org/docs/current/continuous-archiving.html#BACKUP-TIMELINES>).

use crate::{
    model::Lsn,
    postgres::{DecodeError, Error},
};

/// The timelines that lead to one, each with the position at which the next one left it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimelineHistory(Vec<(u32, Lsn)>);

impl TimelineHistory {
    /// Reads the history file of the timeline `of`: lines of a timeline, a position and a reason, with tabs
    /// between.
    ///
    /// # Errors
    /// [`Error::Protocol`] for a line that is none of a history, and timelines that don't grow towards `of`.
    pub fn parse(of: u32, file: &str) -> Result<TimelineHistory, Error> {
        let mut parents: Vec<(u32, Lsn)> = Vec::new();
        let lines = file.lines().map(str::trim_start).enumerate();
        for (number, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let malformed =
                || Error::Protocol(format!("line {} of timeline {of}'s history is malformed", number + 1));
            let mut fields = line.split_ascii_whitespace();
            let parent = fields.next().and_then(|field| field.parse().ok()).ok_or_else(malformed)?;
            let end = fields.next().and_then(|field| field.parse().ok()).ok_or_else(malformed)?;
            let after_the_last = parents.last().is_none_or(|(last, _)| *last < parent);
            if !after_the_last || parent >= of {
                return Err(malformed());
            }
            parents.push((parent, end));
        }
        Ok(TimelineHistory(parents))
    }

    /// Where this timeline was left on the way: what was written to it from there on is no part of the
    /// history. `None` when the way does not lead through it.
    pub fn left_at(&self, timeline: u32) -> Option<Lsn> {
        self.0.iter().find(|(parent, _)| *parent == timeline).map(|(_, end)| *end)
    }

    /// From which timeline this one branched off, and where; `None` for a cluster's first.
    pub fn branch(&self) -> Option<(u32, Lsn)> {
        self.0.last().copied()
    }
}

/// The answer to TIMELINE_HISTORY: a row of the file's name and content.
pub(super) fn content(rows: &[Vec<Option<String>>]) -> Result<&str, DecodeError> {
    match rows.first().map(Vec::as_slice) {
        Some([Some(_), Some(content)]) => Ok(content),
        _ => Err(DecodeError::Truncated { field: "timeline history", at: 0 }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_where_each_timeline_was_left() {
        let file = "1\t0/3000148\tno recovery target specified\n\n# by hand\n 3\t16/B374D848\tat restore point \"x\"\n";
        let history = TimelineHistory::parse(5, file).unwrap();
        assert_eq!(history.left_at(1), Some(Lsn(0x0300_0148)));
        assert_eq!(history.left_at(3), Some(Lsn(0x16_B374_D848)));
        assert_eq!((history.left_at(2), history.left_at(5)), (None, None));
        assert_eq!(history.branch(), Some((3, Lsn(0x16_B374_D848))));
        assert_eq!(TimelineHistory::parse(1, "").unwrap(), TimelineHistory::default());
        assert_eq!(TimelineHistory::default().branch(), None);
    }

    #[test]
    fn refuses_what_is_no_history() {
        for file in
            ["x\t0/1", "1", "1\t", "1\tx", "-1\t0/1", "2\t0/1\n1\t0/2", "1\t0/1\n1\t0/2", "5\t0/1", "9\t0/1"]
        {
            let error = TimelineHistory::parse(5, file).unwrap_err();
            assert!(error.to_string().contains("of timeline 5's history"), "{file}: {error}");
        }
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(content(&[vec![text("00000002.history"), text("1\t0/1")]]), Ok("1\t0/1"));
        for rows in [vec![], vec![vec![]], vec![vec![text("x")]], vec![vec![text("x"), None]]] {
            assert!(content(&rows).is_err());
        }
    }

    proptest! {
        #[test]
        fn never_panics(of in any::<u32>(), file in "\\PC*|([0-9]{1,11}[\t ][0-9A-F]{0,9}/[0-9A-F]{0,9}[\t\n])*") {
            let _ = TimelineHistory::parse(of, &file);
        }
    }
}
