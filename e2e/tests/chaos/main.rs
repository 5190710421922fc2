//! The chaos test: an application writes all the time while a random schedule injects faults. At the end both
//! sides must be equal. `./e2e/chaos` runs it for a given time, `./e2e/test` for three minutes.
//!
//! `CHAOS_MINUTES` and `CHAOS_SEED` set the duration and the schedule. The schedule and each writer's
//! statements depend only on the seed; how writers, faults and servers interleave differs between runs.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test fails by panicking, and blocks"
)]

mod chaos_env;
mod faults;
#[path = "../../support/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros, reason = "shared with the other tests")]
mod support;
mod tables;
mod workload;

use std::{
    str::FromStr,
    sync::{Arc, atomic::Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use chaos_env::ChaosEnv;
use fastrand::Rng;
use faults::Event;
use workload::Workload;

/// Both sides are compared after each round, so that a difference has only few faults before it.
const ROUND: Duration = Duration::from_secs(300);

#[test]
fn both_sides_are_equal_after_everything() {
    needs_own_server!();
    let minutes: f64 = setting("CHAOS_MINUTES", 3.0);
    let seed: u64 = setting("CHAOS_SEED", 1);
    println!("chaos for {minutes} minutes with seed {seed}");
    let mut repeatable = Repeatable { env: ChaosEnv::start(), seed, minutes };
    let env = &mut repeatable.env;
    let length = Duration::from_secs_f64(minutes * 60.0);
    let rounds = length.div_duration_f64(ROUND).ceil().max(1.0);
    let mut rng = Rng::with_seed(seed);
    let done = Arc::clone(&env.done);
    for round in 0..rounds as u64 {
        let workload = Workload::start(&env.connection(), seed.wrapping_mul(1000).wrapping_add(round), &done);
        play(env, &workload, &faults::schedule(&mut rng, length.div_f64(rounds)), length.div_f64(rounds));
        workload.finish();
        env.say("all faults have ended; waiting until everything has arrived");
        env.settle();
        env.assert_equal();
        env.say("both sides are equal, and the slot retains less than 1 MiB");
    }
    summary(env);
}

/// Runs a schedule until its planned end. A slow machine gets fewer faults, in the same order.
fn play(env: &mut ChaosEnv, workload: &Workload, schedule: &[Event], length: Duration) {
    let end = Instant::now() + length;
    let mut next = Instant::now();
    let mut planned = Duration::ZERO;
    let mut active = Vec::new();
    for event in schedule {
        let begun = active.iter().position(|fault| *fault == event.fault);
        if event.begins && Instant::now() > end || !event.begins && begun.is_none() {
            continue;
        }
        next += event.at - planned;
        planned = event.at;
        env.wait_until(next);
        match begun {
            Some(index) if !event.begins => env.end(active.remove(index)),
            _ => {
                env.begin(event.fault, event.lasts);
                active.push(event.fault);
            }
        }
        assert!(!workload.failed(), "a writer has failed");
        // A fault that took longer than planned does not shorten the pauses after it.
        next = next.max(Instant::now());
    }
}

/// The value of an environment variable, or the default.
fn setting<T: FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
}

fn summary(env: &ChaosEnv) {
    let done = &env.done;
    println!("faults:");
    for (fault, count) in &env.counts {
        println!("{count:6}  {fault}");
    }
    for (what, count) in &env.repairs {
        println!("{count:6}  repaired: {what}");
    }
    println!(
        "{:6}  faults in total; {} transactions with {} rows, {} of them lost by restores; the replicator was started {} times, {} of them without success because a server was down, and its peak memory was {} MiB",
        env.counts.values().sum::<u32>(),
        done.transactions.load(SeqCst),
        done.rows.load(SeqCst),
        done.lost.load(SeqCst),
        env.starts(),
        env.refused_starts,
        env.peak_memory_mib,
    );
}

/// Prints how to repeat the run when it fails.
struct Repeatable {
    env: ChaosEnv,
    seed: u64,
    minutes: f64,
}

impl Drop for Repeatable {
    fn drop(&mut self) {
        if thread::panicking() {
            let Repeatable { seed, minutes, env } = self;
            println!(
                "failed with seed {seed}; repeat with: ./e2e/chaos --minutes {minutes} --seed {seed}\nlogs of all replicators: {}",
                env.keep_logs(*seed).display()
            );
        }
    }
}
