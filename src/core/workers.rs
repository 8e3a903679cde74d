//! The threads that callers are served on.
//!
//! Each is a runtime of its own with one worker: a message is read, routed, sent on and answered on one
//! core, over connections to destinations that belong to the same core, and wakes nobody else. What has no caller
//! (folders, mailboxes, brokers, schedules) and the API run on the bus's main runtime, in which all
//! threads share the work. docs/decisions/0002-runtime-shape.md has the figures.
//!
//! A worker serves whole connections. That one of them has much to compute does not hold up the others, as
//! long work leaves its worker ([`crate::long`]).
//!
//! Absent on purpose: moving a connection from one worker to another.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::cores;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

/// The worker to which this thread belongs, from 1 on; 0 on the main runtime and outside of any. What
/// is spawned stays with the same number until its end.
pub fn number() -> usize {
    NUMBER.get()
}

/// The main runtime: `threads` threads with stacks of `stack` bytes.
///
/// # Errors
/// The system gives no threads or no epoll.
pub fn main(threads: usize, stack: usize) -> io::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .worker_threads(threads)
        .thread_name("xbus")
        .thread_stack_size(stack)
        .build()
}

/// Workers to which connections can be given. None (`default`): whoever asks serves them itself.
#[derive(Clone, Default)]
pub struct Workers(Vec<Worker>);

#[derive(Clone)]
struct Worker {
    runtime: Handle,
    serving: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts `count` workers with stacks of `stack` bytes. They end with their runtimes.
    ///
    /// # Errors
    /// As [`main`].
    pub fn start(count: usize, stack: usize) -> io::Result<(Self, Vec<Runtime>)> {
        let mut cores = cores::one_each(count).into_iter();
        let runtimes = (1..=count)
            .map(|number| {
                // Not of the kind for one thread: that could not move a worker's tasks away.
                let mut runtime = Builder::new_multi_thread();
                runtime
                    .enable_all()
                    .worker_threads(1)
                    .thread_name(format!("xbus-{number}"))
                    .thread_stack_size(stack)
                    .on_thread_start(move || {
                        NUMBER.set(number);
                        cores::begun();
                    });
                if let Some(core) = cores.next() {
                    // Only the thread that is the worker at that time ever waits for something to do.
                    runtime.on_thread_unpark(move || cores::bind(core));
                }
                runtime.build()
            })
            .collect::<io::Result<Vec<_>>>()?;
        let workers = runtimes.iter().map(|runtime| Worker {
            runtime: runtime.handle().clone(),
            serving: Arc::default(),
        });
        Ok((Self(workers.collect()), runtimes))
    }

    /// A place at the worker that serves the fewest.
    pub fn place(&self) -> Option<Place> {
        let least = self
            .0
            .iter()
            .min_by_key(|worker| worker.serving.load(Relaxed))?;
        least.serving.fetch_add(1, Relaxed);
        Some(Place(least.clone()))
    }
}

/// That a worker serves something, until this is dropped.
pub struct Place(Worker);

impl Place {
    /// Where to spawn it.
    pub fn runtime(&self) -> &Handle {
        &self.0.runtime
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_serves_the_fewest_is_next_and_everything_stays_with_its_worker() {
        let (workers, runtimes) = Workers::start(3, 1024 * 1024).unwrap();
        let places: Vec<_> = (0..3).map(|_| workers.place().unwrap()).collect();
        let number = |place: &Place| {
            let spawned = place.runtime().spawn(async {
                let blocking = tokio::task::spawn_blocking(number).await.unwrap();
                let further = tokio::spawn(async { number() }).await.unwrap();
                let away = crate::long::run(number);
                [number(), blocking, further, away]
            });
            runtimes[0].block_on(spawned).unwrap()
        };
        for (index, place) in places.iter().enumerate() {
            assert_eq!(number(place), [index + 1; 4]);
        }
        assert_eq!(super::number(), 0);
        let mut places = places;
        drop(places.remove(1));
        assert_eq!(number(&workers.place().unwrap()), [2; 4]);
        assert!(Workers::default().place().is_none());
    }
}
