//! An application that writes all the time while the program works.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// The pause between two statements. Without it the application could write faster than walferry replicates,
/// and tests that wait for equality would not end.
const PAUSE: Duration = Duration::from_millis(4);

/// Runs one statement after another on a connection of its own until stopped.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Writer {
    /// Runs `statement(n)` for n = 0, 1, … on `client`.
    pub fn start(mut client: postgres::Client, statement: impl Fn(u64) -> String + Send + 'static) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut done = 0;
            while !stopped.load(SeqCst) {
                client.batch_execute(&statement(done)).expect("the application's own write must succeed");
                done += 1;
                thread::sleep(PAUSE);
            }
            done
        });
        Writer { stop, thread: Some(thread) }
    }

    /// Starts an application that reconnects after its server has stopped or restarted and continues with the
    /// next statement. `connect` returns `None` while nothing answers.
    pub fn reconnecting(
        connect: impl Fn() -> Option<postgres::Client> + Send + 'static,
        statement: impl Fn(u64) -> String + Send + 'static,
    ) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let (mut done, mut client) = (0, None);
            for n in 0.. {
                if stopped.load(SeqCst) {
                    break;
                }
                thread::sleep(PAUSE);
                client = client.or_else(&connect);
                match client.as_mut().map(|client: &mut postgres::Client| client.batch_execute(&statement(n)))
                {
                    None => {}
                    Some(Ok(())) => done += 1,
                    Some(Err(error)) => {
                        let refused = error.as_db_error().is_some_and(|error| error.severity() == "ERROR");
                        assert!(!refused, "the application's own write must succeed: {error:?}");
                        client = None;
                    }
                }
            }
            done
        });
        Writer { stop, thread: Some(thread) }
    }

    /// Stops after the current statement and returns how many were run.
    pub fn finish(mut self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.take().unwrap().join().expect("the writer failed")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}
