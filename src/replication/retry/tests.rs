//! Of the whole: what is repeated, for how long, and what is shown meanwhile.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    patience::{BY_ONE_TABLE, DENIED, TOO_MANY_PARTS, UNCLEAR},
    *,
};
use crate::{
    fault::Reason,
    model::{MirrorFailure, MirrorIdentity, Progress, TableProgress, lock},
    replication::{DestinationError, ErrorKind, Policy},
};

#[tokio::test(start_paused = true)]
async fn repeats_until_it_works_and_not_for_what_stays() {
    let stop = CancellationToken::new();
    let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
    let mut tries = 0;
    let answer = retry(&stop, &observer, || {
        tries += 1;
        let done = tries == 3;
        async move { if done { Ok(7) } else { Err(Error::Protocol("x")) } }
    });
    assert_eq!(answer.await.unwrap(), 7);
    let refused = retry(&stop, &observer, || async {
        Err::<(), _>(Error::SlotMissing { slot: "s".into(), since: crate::model::Lsn(1) })
    });
    assert!(matches!(refused.await, Err(Error::SlotMissing { .. })));
}

fn refusal(kind: ErrorKind) -> Error {
    let message = "code 123456: odd".to_owned();
    let reason = match kind {
        ErrorKind::Denied => Reason::DestinationAccessDenied,
        ErrorKind::Refused => Reason::DestinationTlsFailed,
        _ => Reason::DestinationError,
    };
    Error::Destination(DestinationError { kind, reason, message, remedies: Vec::new(), source: None })
}

/// What a table's loop works with, without a table.
fn of(table: &TableId) -> Scope<'_> {
    Scope::Table { id: table, progress: None, others: Others::Stream }
}

fn table(name: &str) -> TableId {
    TableId::new("public", name)
}

/// How long it takes until a refusal is the table's own.
async fn given_up_after(scope: Scope<'_>, kind: ErrorKind) -> Duration {
    let stop = CancellationToken::new();
    let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
    let began = Instant::now();
    let error = repeat(&stop, &observer, scope, || async { Err::<(), _>(refusal(kind)) }).await.unwrap_err();
    assert_eq!(super::policy(&error).0, Policy::FailTable);
    assert!(error.to_string().contains("it was refused "), "{error}");
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_a_table_becomes_its_own_in_time() {
    let table = table("t");
    for (kind, time) in [
        (ErrorKind::Unclear, UNCLEAR.time),
        (ErrorKind::Denied, DENIED.time),
        (ErrorKind::TableOverloaded, TOO_MANY_PARTS.time),
    ] {
        let took = given_up_after(of(&table), kind).await;
        assert!(took >= time && took < 2 * time, "{kind:?}: {took:?}");
    }
    let in_stream = Scope::Table { id: &table, progress: None, others: Others::WaitInStream };
    for kind in [ErrorKind::Unclear, ErrorKind::Denied, ErrorKind::TableOverloaded] {
        let took = given_up_after(in_stream, kind).await;
        assert!(took >= DENIED.time && took < 2 * DENIED.time, "{kind:?}: {took:?}");
    }
    let at_the_start = Scope::Table { id: &table, progress: None, others: Others::WaitToBegin };
    for kind in [ErrorKind::Unclear, ErrorKind::Denied] {
        assert!(given_up_after(at_the_start, kind).await < Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn what_concerns_no_table_is_given_back_or_repeated() {
    let stop = CancellationToken::new();
    let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
    let began = Instant::now();
    let error = retry(&stop, &observer, || async { Err::<(), _>(refusal(ErrorKind::Denied)) }).await;
    assert_eq!(super::policy(&error.unwrap_err()).0, Policy::Stall);
    // What concerns no statement is nobody's but the Mirror's.
    let table = table("t");
    let refused = || async { Err::<(), _>(refusal(ErrorKind::Refused)) };
    let error = repeat(&stop, &observer, of(&table), refused).await.unwrap_err();
    assert_eq!(super::policy(&error).0, Policy::Stall);
    // Before anything streams, what passes is given back for the session to begin again.
    let lost = || async { Err::<(), _>(refusal(ErrorKind::Transient)) };
    let error = start_table(&stop, &observer, &table, lost).await.unwrap_err();
    assert_eq!((super::policy(&error).0, began.elapsed()), (Policy::Retry, Duration::ZERO));
    stop.cancel();
    let unclear = || async {
        tokio::task::yield_now().await;
        Err::<(), _>(refusal(ErrorKind::Unclear))
    };
    assert!(matches!(start_table(&stop, &observer, &table, unclear).await, Err(Error::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn what_the_server_refuses_is_a_table_s_own_only_beside_others() {
    let stop = CancellationToken::new();
    let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
    let (table, other) = (table("t"), table("other"));
    for kind in [ErrorKind::Transient, ErrorKind::Overloaded] {
        let refused = || repeat(&stop, &observer, of(&table), || async { Err::<(), _>(refusal(kind)) });
        let hours = Duration::from_secs(7200);
        assert!(tokio::time::timeout(hours, refused()).await.is_err(), "{kind:?} of all tables");
        let accepted = async {
            loop {
                repeat(&stop, &observer, of(&other), || async { Ok(()) }).await.unwrap();
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        };
        let began = Instant::now();
        let error: Error = tokio::select! {
            refused = refused() => refused.unwrap_err(),
            () = accepted => unreachable!(),
        };
        assert_eq!(super::policy(&error).0, Policy::FailTable);
        assert!(began.elapsed() >= BY_ONE_TABLE.time && began.elapsed() < 2 * BY_ONE_TABLE.time);
    }
}

#[tokio::test(start_paused = true)]
async fn what_passes_begins_the_count_again() {
    let stop = CancellationToken::new();
    let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
    let table = table("t");
    let mut tries = 0_u32;
    let outcome = repeat(&stop, &observer, of(&table), || {
        tries += 1;
        let now = tries;
        async move {
            match now {
                // Half an hour of transient faults, with an unclear one now and then.
                1..=120 if now.is_multiple_of(9) => Err(refusal(ErrorKind::Unclear)),
                1..=120 => Err(refusal(ErrorKind::Transient)),
                _ => Ok(now),
            }
        }
    });
    assert_eq!(outcome.await.unwrap(), 121);
}

#[tokio::test(start_paused = true)]
async fn what_is_unclear_of_no_table_stalls_the_mirror() {
    let stop = CancellationToken::new();
    let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
    let began = Instant::now();
    let unclear = retry(&stop, &observer, || async { Err::<(), _>(refusal(ErrorKind::Unclear)) });
    let error = unclear.await.unwrap_err();
    assert_eq!(super::policy(&error), (Policy::Stall, Reason::DestinationError));
    assert!(error.to_string().contains("it was refused "), "{error}");
    assert!(began.elapsed() >= UNCLEAR.time && began.elapsed() < 2 * UNCLEAR.time);
    let transient = tokio::time::timeout(Duration::from_secs(3600), async {
        retry(&stop, &observer, || async { Err::<(), _>(refusal(ErrorKind::Transient)) }).await
    });
    assert!(transient.await.is_err(), "what passes is tried again");
}

#[tokio::test(start_paused = true)]
async fn sessions_that_end_unclearly_stall_the_mirror() {
    let mut ends = SessionErrors::default();
    let mut policy_after = async |seconds: u64, kind: ErrorKind| {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        super::policy(&ends.judge(refusal(kind))).0
    };
    for _ in 0..20 {
        assert_eq!(policy_after(13, ErrorKind::Unclear).await, Policy::Retry);
        assert_eq!(policy_after(1, ErrorKind::Transient).await, Policy::Retry, "it is counted again");
    }
    for _ in 0..10 {
        assert_eq!(policy_after(13, ErrorKind::Unclear).await, Policy::Retry);
    }
    assert_eq!(policy_after(13, ErrorKind::Unclear).await, Policy::Stall);
    assert_eq!(policy_after(30, ErrorKind::Unclear).await, Policy::Stall, "until it has passed");
}

#[tokio::test(start_paused = true)]
async fn what_is_repeated_is_shown_until_all_of_it_has_passed() {
    let stop = CancellationToken::new();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let report = Arc::clone(&shown);
    let observer =
        RetryObserver::new(Arc::default(), Arc::default(), move |failure: Option<&MirrorFailure>| {
            lock(&report).push(failure.map(|failure| failure.reason));
        });
    let (table, other) = (table("t"), table("other"));
    let progress = Arc::new(TableProgress::default());
    let scope = Scope::Table { id: &table, progress: Some(&progress), others: Others::Stream };
    let refused =
        repeat(&stop, &observer, scope, || async { Err::<(), _>(refusal(ErrorKind::TableOverloaded)) });
    let mut tries = 0;
    let passes = async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        let passed = repeat(&stop, &observer, of(&other), || {
            tries += 1;
            let done = tries == 3;
            async move { if done { Ok(()) } else { Err(refusal(ErrorKind::Transient)) } }
        });
        passed.await.unwrap();
        lock(&shown).last().copied()
    };
    let (given_up, while_repeated) = tokio::join!(refused, passes);
    assert!(given_up.is_err());
    assert_eq!(while_repeated, Some(Some(Reason::DestinationError)), "the other's is still repeated");
    assert_eq!(lock(&shown).last(), Some(&None));
}

#[test]
fn of_two_repetitions_of_a_table_the_one_left_is_shown_in_its_words() {
    let observer = RetryObserver::new(Arc::default(), Arc::default(), |_| ());
    let id = table("t");
    let mirror = MirrorIdentity { namespace: "n".into(), name: "m".into(), uid: "u".into() };
    let all = Progress::new(&mirror);
    let progress = all.table(&id);
    let scope = Scope::Table { id: &id, progress: Some(&progress), others: Others::Stream };
    let repeating = || Repeating::new(&observer, scope);
    let (mut first, mut second) = (repeating(), repeating());
    let refused = |why: &str| Error::table(&id, Reason::DestinationError, why);
    first.report(&refused("first"));
    second.report(&refused("second"));
    let shown = || all.report().tables[0].message.clone();
    assert_eq!(shown(), "second");
    second.end();
    assert_eq!(shown(), "first", "without the table's name");
    first.end();
    assert_eq!(shown(), "");
}
