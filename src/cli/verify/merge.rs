//! Both sides in key order, side by side: gives the keys whose rows aren't the same.

use std::cmp::Ordering;

use indicatif::ProgressBar;

use super::{
    error::VerifyError,
    plan::TablePlan,
    rows::{Chunks, Key},
};
use crate::clickhouse::native::Rows;

/// One side and the place in it.
struct Cursor<C> {
    chunks: C,
    /// For the message when the order is wrong.
    name: &'static str,
    rows: Rows,
    at: usize,
    /// Rows of the chunks before.
    passed: u64,
    last_key: Option<Key>,
}

impl<C: Chunks> Cursor<C> {
    fn new(chunks: C, name: &'static str) -> Cursor<C> {
        Cursor { chunks, name, rows: Rows::default(), at: 0, passed: 0, last_key: None }
    }

    /// Whether there is a row; reads the next chunk where need be.
    async fn has_row(&mut self, plan: &TablePlan) -> Result<bool, VerifyError> {
        if self.at < self.rows.len() {
            return Ok(true);
        }
        if let Some(last) = self.rows.len().checked_sub(1) {
            self.last_key = Some(plan.key_of(&self.rows, last));
        }
        self.passed += self.at as u64;
        self.at = 0;
        self.rows = self.chunks.next().await?.unwrap_or_default();
        self.check_order(plan)?;
        Ok(!self.rows.is_empty())
    }

    /// A side that isn't in key order would make differences of equal rows.
    fn check_order(&self, plan: &TablePlan) -> Result<(), VerifyError> {
        let first = self.last_key.iter().filter(|_| !self.rows.is_empty());
        let first = first.map(|last| plan.compare_key(last, &self.rows, 0));
        let others =
            (1..self.rows.len()).map(|row| plan.compare_keys((&self.rows, row - 1), (&self.rows, row)));
        match first.chain(others).any(Ordering::is_gt) {
            true => Err(VerifyError::Order(self.name)),
            false => Ok(()),
        }
    }

    fn row(&self) -> (&Rows, usize) {
        (&self.rows, self.at)
    }
}

/// The merge join of both sides.
pub(super) struct Merge<'a, S, T> {
    plan: &'a TablePlan,
    source: Cursor<S>,
    target: Cursor<T>,
}

impl<'a, S: Chunks, T: Chunks> Merge<'a, S, T> {
    pub(super) fn new(plan: &'a TablePlan, source: S, target: T) -> Merge<'a, S, T> {
        Merge {
            plan,
            source: Cursor::new(source, "the source"),
            target: Cursor::new(target, "the destination"),
        }
    }

    /// The next key that only one side has, that one side has twice, or whose rows differ; `None` at the end
    /// of both.
    pub(super) async fn next_difference(&mut self, bar: &ProgressBar) -> Result<Option<Key>, VerifyError> {
        loop {
            let fresh = self.source.at == 0;
            let source = self.source.has_row(self.plan).await?;
            let target = self.target.has_row(self.plan).await?;
            if fresh {
                bar.set_position(self.source.passed);
            }
            let order = match (source, target) {
                (false, false) => return Ok(None),
                (true, false) => Ordering::Less,
                (false, true) => Ordering::Greater,
                (true, true) => self.plan.compare_keys(self.source.row(), self.target.row()),
            };
            let same = match order {
                Ordering::Greater => self.plan.keeps_removed_rows,
                Ordering::Less => false,
                Ordering::Equal => self.plan.same(self.source.row(), self.target.row()),
            };
            let (rows, row) = if order.is_gt() { self.target.row() } else { self.source.row() };
            let key = (!same).then(|| self.plan.key_of(rows, row));
            self.source.at += usize::from(order.is_le());
            self.target.at += usize::from(order.is_ge());
            if key.is_some() {
                return Ok(key);
            }
        }
    }

    /// Rows of each side so far.
    pub(super) fn rows(&self) -> (u64, u64) {
        (self.source.passed + self.source.at as u64, self.target.passed + self.target.at as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::verify::plan::tests::{column, plan},
        clickhouse::types::ChType,
        model::SourceType,
    };

    struct Given(Vec<Vec<(i32, i32)>>);

    impl Chunks for Given {
        async fn next(&mut self) -> Result<Option<Rows>, VerifyError> {
            if self.0.is_empty() {
                return Ok(None);
            }
            let chunk = self.0.remove(0);
            let body: Vec<u8> =
                chunk.iter().flat_map(|(id, v)| [id.to_le_bytes(), v.to_le_bytes()]).flatten().collect();
            Ok(Some(Rows::parse(&[ChType::Int(32), ChType::Int(32)], &body)?.0))
        }
    }

    async fn differences(
        source: &[&[(i32, i32)]],
        target: &[&[(i32, i32)]],
    ) -> Result<(Vec<i32>, (u64, u64)), VerifyError> {
        let columns =
            ["id", "v"].map(|name| (column(name, "integer", SourceType::Int4), ChType::Int(32))).to_vec();
        let plan = plan(columns, &[0]);
        let given = |chunks: &[&[(i32, i32)]]| Given(chunks.iter().map(|chunk| chunk.to_vec()).collect());
        let mut merge = Merge::new(&plan, given(source), given(target));
        let mut found = Vec::new();
        while let Some(key) = merge.next_difference(&ProgressBar::hidden()).await? {
            found.push(i32::from_le_bytes(key[0].as_slice().try_into().unwrap()));
        }
        Ok((found, merge.rows()))
    }

    #[tokio::test]
    async fn finds_what_differs() {
        let found = differences(
            &[&[(-1, 0), (1, 1)], &[(2, 2), (3, 3), (5, 5)], &[(9, 9)]],
            &[&[(-1, 0)], &[(1, 7), (3, 3)], &[(4, 4), (5, 5), (5, 6)]],
        );
        assert_eq!(found.await.unwrap(), (vec![1, 2, 4, 5, 9], (6, 6)));
        assert_eq!(differences(&[], &[]).await.unwrap(), (vec![], (0, 0)));
        assert_eq!(differences(&[], &[&[(1, 1)]]).await.unwrap(), (vec![1], (0, 1)));
        let same: &[&[(i32, i32)]] = &[&[(1, 1), (2, 2)], &[(3, 3)]];
        assert_eq!(differences(same, same).await.unwrap(), (vec![], (3, 3)));
    }

    #[tokio::test]
    async fn refuses_another_order() {
        let error = differences(&[&[(1, 1)], &[(0, 0)]], &[]).await.unwrap_err();
        assert!(matches!(error, VerifyError::Order("the source")), "{error}");
        let error = differences(&[], &[&[(2, 1), (1, 0)]]).await.unwrap_err();
        assert!(matches!(error, VerifyError::Order("the destination")), "{error}");
    }
}
