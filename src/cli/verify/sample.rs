//! A random part of the rows: those picked at the source are looked up at the destination, and the other way round.

use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};

use super::{
    VerifyError,
    report::TableReport,
    rows::{Chunks, Key},
    settle::Settler,
    sides::Sides,
};
use crate::{
    clickhouse::{Error, native::Rows},
    postgres::{self, copy, session::Session, wire::Connection},
};

/// Keys that are looked up at once.
const LOOKUP: usize = 500;
/// How long the numbers of rows get to agree.
const PATIENCE: Duration = Duration::from_secs(10);

/// Compares about `percent` in a hundred of the rows of each side, and the number of all.
pub(super) async fn compare(
    sides: &Sides<'_>,
    session: &Session,
    mut settler: Settler<'_>,
    percent: f64,
    bar: &ProgressBar,
) -> Result<TableReport, VerifyError> {
    let mut connection = sides.connect().await?;
    let mut picked = 0;
    let mut rows = sides.source_rows(&mut connection, &sides.plan.source_sample(percent)).await?;
    while let Some(chunk) = rows.next().await? {
        picked += chunk.len();
        bar.inc((chunk.len() as f64 * 100.0 / percent) as u64);
        look_up(sides, &mut settler, &chunk, None).await?;
        if settler.is_full() {
            break;
        }
    }
    drop(connection);
    let mut lookups = sides.connect().await?;
    let mut rows = sides.target_rows(&sides.plan.target_sample(percent)).await?;
    while let Some(chunk) = rows.next().await? {
        picked += chunk.len();
        look_up(sides, &mut settler, &chunk, Some(&mut lookups)).await?;
        if settler.is_full() {
            break;
        }
    }
    settler.finish().await?;
    let part = match count(sides, session).await? {
        (Some(source), Some(target)) if source != target => {
            settler.differs(format!("{source} rows at the source and {target} at the destination"));
            format!("{picked} rows looked up")
        }
        (Some(source), Some(_)) => format!("{picked} rows looked up, {source} rows on both sides"),
        _ => format!("{picked} rows looked up; their number kept changing"),
    };
    Ok(settler.into_report(0, 0, Some(&part)))
}

/// Looks a side's rows up on the other one: the source's where a connection is given.
async fn look_up(
    sides: &Sides<'_>,
    settler: &mut Settler<'_>,
    rows: &Rows,
    mut source: Option<&mut Connection>,
) -> Result<(), VerifyError> {
    let all: Vec<usize> = (0..rows.len()).collect();
    for some in all.chunks(LOOKUP) {
        let keys: Vec<Key> = some.iter().map(|row| sides.plan.key_of(rows, *row)).collect();
        let found = match source.as_deref_mut() {
            Some(connection) => sides.source_by_key(connection, &keys).await?,
            None => sides.target_by_key(&keys).await?,
        };
        for (row, key) in some.iter().zip(keys) {
            let cells: Vec<Vec<u8>> =
                (0..sides.plan.types.len()).map(|column| rows.cell(*row, column).to_vec()).collect();
            let same = match found.get(&key).map(Vec::as_slice) {
                Some([other]) => sides.plan.differing(&cells, other).is_empty(),
                _ => false,
            };
            if !same {
                settler.suspect(key).await?;
            }
        }
    }
    Ok(())
}

/// The number of rows on both sides once they agree, or have been what they are for a while; `None` where they keep
/// changing.
async fn count(sides: &Sides<'_>, session: &Session) -> Result<(Option<u64>, Option<u64>), VerifyError> {
    let started = Instant::now();
    let mut before = None;
    loop {
        let statement = copy::count_statement(&sides.plan.schema);
        let row = session.patiently(session.client.query_one(&statement, &[])).await?;
        let source: i64 = row.try_get(0).map_err(postgres::Error::from)?;
        let target = sides.database.client().query_text(&sides.plan.target_count(), &[]).await?;
        let target: u64 = target
            .trim()
            .parse()
            .map_err(|_| Error::Protocol("count() did not answer a number".to_owned()))?;
        let now = (source.unsigned_abs(), target);
        if now.0 == now.1 {
            return Ok((Some(now.0), Some(now.1)));
        }
        if started.elapsed() >= PATIENCE {
            let calm = before == Some(now);
            return Ok((calm.then_some(now.0), calm.then_some(now.1)));
        }
        before = Some(now);
        sleep(Duration::from_secs(1)).await;
    }
}
