//! Work that keeps a thread busy for long, done so that the other tasks of that thread go on.
//!
//! Callers are served by workers ([`crate::workers`]), each of which has a thread; whatever computes for long on one
//! would hold up everybody whom it serves. Such work is done in the place where it
//! arises, on the same thread and stack, and the worker's other tasks move to another thread first
//! ([`tokio::task::block_in_place`]). That costs about 10 µs, so it must be known, or be likely, that the
//! work takes longer:
//!
//! - by size: [`over`], around whatever reads or writes each byte of a body;
//! - by experience: [`Experience`], for what is the route's own, such as a script;
//! - when it turns out: [`leave`], from within what counts its own steps.
//!
//! Absent on purpose: a pool of its own. What computes here may borrow, and a result needs no way back.
//! Outside a runtime with workers (tests, commands, threads for blocking work) everything runs as it is.

use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cores;

/// Bytes above which reading a text into something (XML, JSON, CSV), or writing it, takes long: at about
/// 100 to 200 MB/s half a millisecond.
pub const PARSED: usize = 64 * 1024;

/// Bytes above which one quick pass (a charset, a digest, base64) takes long: at about 1 GB/s a millisecond.
pub const PASSED: usize = 1024 * 1024;

/// A run that takes as long, or longer, is a long one: more than ten times what moving the other tasks costs.
const LONG_RUN: Duration = Duration::from_micros(300);

/// What is not known to take long leaves its worker after this time.
pub const UNEXPECTED: Duration = Duration::from_millis(1);

/// Threads that compute beside the workers at the most, those that [`leave`] not counted; further work is done where it is, and the worker's
/// other tasks wait. Well below the threads that tokio has for blocking work (512), which take the
/// workers' tasks over.
const THREADS: usize = 64;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

/// Places for work of which it is known beforehand that it takes long. More of it at once than there are
/// cores ends no earlier; a few more let short work pass the very long.
static PLACES: LazyLock<Semaphore> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Semaphore::new((2 * cores).clamp(4, THREADS / 2))
});

thread_local! {
    /// Whether this thread is within [`run`]: its worker's tasks have gone.
    static AWAY: Cell<bool> = const { Cell::new(false) };
}

/// Waits until there is a place for long work, in the order of asking. Hold it while that runs.
pub async fn place() -> Option<SemaphorePermit<'static>> {
    PLACES.acquire().await.ok()
}

/// Runs work that takes long; the other tasks of this worker go on meanwhile.
pub fn run<T>(work: impl FnOnce() -> T) -> T {
    match Thread::take() {
        Some(_thread) => {
            cores::free();
            tokio::task::block_in_place(work)
        }
        None => work(),
    }
}

/// Runs work on `bytes` bytes, which takes long if they are more than `enough`.
pub fn over<T>(bytes: usize, enough: usize, work: impl FnOnce() -> T) -> T {
    if bytes > enough { run(work) } else { work() }
}

/// One of [`THREADS`] that compute beside the workers.
struct Thread;

impl Thread {
    /// Nothing: there is no worker to free, or there are too many.
    fn take() -> Option<Self> {
        if AWAY.get() || workers().is_none() {
            return None;
        }
        let more = |running| (running < THREADS).then_some(running + 1);
        RUNNING
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        AWAY.set(true);
        Some(Self)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        AWAY.set(false);
        RUNNING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The runtime, if it has workers: elsewhere nothing can be moved away.
fn workers() -> Option<Handle> {
    let runtime = Handle::try_current().ok()?;
    (runtime.runtime_flavor() == RuntimeFlavor::MultiThread).then_some(runtime)
}

/// Moves the other tasks of this worker away, in the middle of work of which it was not known that it takes
/// long, and waits up to `most` until a thread has taken them. Says whether one has: if not, ask again
/// later. Nothing depends on it but the other tasks' time.
///
/// tokio gives the worker back to whoever blocks for so short a time that nobody has taken it yet. So
/// this blocks until a task has run that only a worker runs. Where there is but this one, it is taken then.
pub fn leave(most: Duration) -> bool {
    if AWAY.get() {
        return true;
    }
    let Some(runtime) = workers() else {
        return true;
    };
    if RUNNING.load(Ordering::Relaxed) >= THREADS {
        return false;
    }
    cores::free();
    tokio::task::block_in_place(|| {
        let taken = Arc::new(Taken::default());
        let teller = taken.clone();
        runtime.spawn(async move { teller.tell() });
        taken.wait(most)
    })
}

#[derive(Default)]
struct Taken {
    told: std::sync::Mutex<bool>,
    changed: std::sync::Condvar,
}

impl Taken {
    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    fn wait(&self, most: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let (told, _) = self
            .changed
            .wait_timeout_while(told, most, |told| !*told)
            .unwrap_or_else(PoisonError::into_inner);
        *told
    }
}

/// How long the runs of one thing took lately.
///
/// Two long runs close to one another make it one that takes long, eight quick ones end that. One alone
/// may only have been interrupted by the system.
#[derive(Debug, Default)]
pub struct Experience(AtomicU8);

impl Experience {
    const LONG: u8 = 8;
    const MOST: u8 = 2 * Self::LONG;

    /// Whether the next run is likely to take long.
    pub fn is_long(&self) -> bool {
        self.0.load(Ordering::Relaxed) > Self::LONG
    }

    /// Takes note of a run. What two threads note at once may count once.
    pub fn note(&self, took: Duration) {
        let before = self.0.load(Ordering::Relaxed);
        let now = if took >= LONG_RUN {
            (before + Self::LONG).min(Self::MOST)
        } else {
            before.saturating_sub(1)
        };
        if now != before {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    /// Does `work` as earlier runs suggest.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.is_long() { run(work) } else { work() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Instant;

    fn one_worker() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }

    /// Whether another task runs while the closure does, which is given a way to wait for that.
    fn another_runs_during(work: fn(&mpsc::Receiver<()>) -> bool) -> bool {
        let (ran, runs) = mpsc::channel();
        let runtime = one_worker();
        let busy = runtime.spawn(async move {
            tokio::spawn(async move {
                let _ = ran.send(());
            });
            work(&runs)
        });
        runtime.block_on(busy).unwrap()
    }

    const BOUND: Duration = Duration::from_secs(20);

    /// Who has left must not find itself with the worker again: everybody would wait for its end.
    #[test]
    fn whoever_has_left_is_without_the_worker_for_certain() {
        let runtime = one_worker();
        for _ in 0..500 {
            let (said, heard) = mpsc::channel();
            let long = runtime.spawn(async move {
                while !leave(Duration::from_millis(10)) {}
                tokio::spawn(async move { said.send(()) });
                heard.recv_timeout(Duration::from_secs(20)).is_ok()
            });
            assert!(runtime.block_on(long).unwrap());
        }
    }

    #[test]
    fn other_tasks_of_the_only_worker_go_on_meanwhile() {
        assert!(another_runs_during(|runs| run(|| runs
            .recv_timeout(BOUND)
            .is_ok())));
    }

    #[test]
    fn without_it_they_wait() {
        assert!(!another_runs_during(|runs| runs
            .recv_timeout(Duration::from_millis(100))
            .is_ok()));
    }

    #[test]
    fn they_go_on_when_it_turns_out_to_take_long() {
        assert!(another_runs_during(|runs| {
            let end = Instant::now() + BOUND;
            while !leave(Duration::from_millis(10)) && Instant::now() < end {}
            // No closure: the worker is gone for the rest of this turn.
            runs.recv_timeout(BOUND).is_ok()
        }));
    }

    #[test]
    fn one_within_another_is_one() {
        assert!(another_runs_during(|runs| run(|| run(|| runs
            .recv_timeout(BOUND)
            .is_ok())
            && AWAY.get()
            && leave(Duration::ZERO))));
    }

    #[test]
    fn a_worker_that_was_given_away_is_found_again() {
        let runtime = one_worker();
        runtime.block_on(async {
            for _ in 0..200 {
                let sum = tokio::spawn(async { run(|| (0..1000u64).sum::<u64>()) });
                assert_eq!(sum.await.unwrap(), 499_500);
                tokio::spawn(async { leave(Duration::from_millis(1)) })
                    .await
                    .unwrap();
            }
        });
        assert!(!AWAY.get());
    }

    #[test]
    fn elsewhere_everything_runs_as_it_is() {
        assert_eq!(run(|| 1), 1);
        assert!(leave(Duration::from_secs(60)));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            assert_eq!(over(2, 1, || 1), 1);
            assert!(leave(Duration::from_secs(60)));
            let aside = tokio::task::spawn_blocking(|| run(|| AWAY.get()));
            assert!(!aside.await.unwrap());
        });
    }

    #[test]
    fn a_panic_gives_the_place_back() {
        let runtime = one_worker();
        let task = runtime.spawn(async { run(|| panic!("on purpose")) });
        assert!(runtime.block_on(task).is_err());
        let away = runtime.spawn(async { AWAY.get() });
        assert!(!runtime.block_on(away).unwrap());
    }

    #[test]
    fn experience_comes_with_two_long_runs_and_goes_with_quick_ones() {
        let (long, quick) = (LONG_RUN, Duration::from_micros(50));
        let experience = Experience::default();
        experience.note(long);
        assert!(!experience.is_long());
        experience.note(quick);
        experience.note(long);
        assert!(experience.is_long());
        for _ in 0..300 {
            experience.note(long);
        }
        for left in (0..8).rev() {
            experience.note(quick);
            assert_eq!(experience.is_long(), left > 0);
        }
        for _ in 0..9 {
            experience.note(quick);
        }
        experience.note(long);
        assert!(!experience.is_long());
    }
}
