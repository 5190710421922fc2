//! A random sample: rows picked at the source are looked up at the destination, and vice versa.

use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{Instant, sleep};

use super::{
    error::VerifyError,
    readers::TableReaders,
    recheck::Rechecker,
    report::TableReport,
    rows::{Chunks, Key},
};
use crate::{
    clickhouse::{Error, native::Rows},
    postgres::{self, copy, session::Session, wire::Connection},
};

/// Keys per query.
const LOOKUP: usize = 500;
/// How long the numbers of rows get to agree.
const RECHECK_TIMEOUT: Duration = Duration::from_secs(10);

/// Compares about `percent` in a hundred of the rows of each side, and the number of all.
pub(super) async fn compare(
    readers: &TableReaders<'_>,
    session: &Session,
    mut rechecker: Rechecker<'_>,
    percent: f64,
    bar: &ProgressBar,
) -> Result<TableReport, VerifyError> {
    let mut connection = readers.connect().await?;
    let mut picked = 0;
    let mut rows = readers.source_rows(&mut connection, &readers.plan.source_sample(percent)).await?;
    while let Some(chunk) = rows.next().await? {
        picked += chunk.len();
        bar.inc((chunk.len() as f64 * 100.0 / percent) as u64);
        look_up(readers, &mut rechecker, &chunk, None).await?;
        if rechecker.is_full() {
            break;
        }
    }
    drop(connection);
    let mut lookups = readers.connect().await?;
    let mut rows = readers.target_rows(&readers.plan.target_sample(percent)).await?;
    while let Some(chunk) = rows.next().await? {
        picked += chunk.len();
        look_up(readers, &mut rechecker, &chunk, Some(&mut lookups)).await?;
        if rechecker.is_full() {
            break;
        }
    }
    rechecker.finish().await?;
    let part = match count(readers, session).await? {
        (Some(source), Some(target)) if readers.plan.keeps_removed_rows && source < target => {
            format!("{picked} rows looked up, {source} rows at the source and {target} at the destination")
        }
        (Some(source), Some(target)) if source != target => {
            rechecker.differs(format!("{source} rows at the source and {target} at the destination"));
            format!("{picked} rows looked up")
        }
        (Some(source), Some(_)) => format!("{picked} rows looked up, {source} rows on both sides"),
        _ => format!("{picked} rows looked up; their number kept changing"),
    };
    Ok(rechecker.into_report(0, 0, Some(&part)))
}

/// Looks a side's rows up on the other one: the source's where a connection is given.
async fn look_up(
    readers: &TableReaders<'_>,
    rechecker: &mut Rechecker<'_>,
    rows: &Rows,
    mut source: Option<&mut Connection>,
) -> Result<(), VerifyError> {
    let all: Vec<usize> = (0..rows.len()).collect();
    for some in all.chunks(LOOKUP) {
        let keys: Vec<Key> = some.iter().map(|row| readers.plan.key_of(rows, *row)).collect();
        let found = match source.as_deref_mut() {
            Some(connection) => readers.source_by_key(connection, &keys).await?,
            None => readers.target_by_key(&keys).await?,
        };
        for (row, key) in some.iter().zip(keys) {
            let cells: Vec<Vec<u8>> =
                (0..readers.plan.types.len()).map(|column| rows.cell(*row, column).to_vec()).collect();
            let same = match found.get(&key).map(Vec::as_slice) {
                Some([other]) => readers.plan.differing(&cells, other).is_empty(),
                _ => false,
            };
            if !same {
                rechecker.enqueue(key).await?;
            }
        }
    }
    Ok(())
}

/// The number of rows on both sides once they agree, or have been what they are for a while; `None` where
/// they keep changing.
async fn count(
    readers: &TableReaders<'_>,
    session: &Session,
) -> Result<(Option<u64>, Option<u64>), VerifyError> {
    let started = Instant::now();
    let mut before = None;
    loop {
        let statement = copy::count_statement(&readers.plan.schema);
        let row = session.patiently(session.client.query_one(&statement, &[])).await?;
        let source: i64 = row.try_get(0).map_err(postgres::Error::from)?;
        let target = readers.database.client().query_text(&readers.plan.target_count(), &[]).await?;
        let target: u64 = target
            .trim()
            .parse()
            .map_err(|_| Error::Protocol("count() did not answer a number".to_owned()))?;
        let now = (source.unsigned_abs(), target);
        if now.0 == now.1 {
            return Ok((Some(now.0), Some(now.1)));
        }
        if started.elapsed() >= RECHECK_TIMEOUT {
            let calm = before == Some(now);
            return Ok((calm.then_some(now.0), calm.then_some(now.1)));
        }
        before = Some(now);
        sleep(Duration::from_secs(1)).await;
    }
}
