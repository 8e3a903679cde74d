//! Which core a worker's thread runs on.
//!
//! Where there is a worker for each core, each stays on its own: a scheduler that may move them lets two
//! share one core for some milliseconds now and then, while their callers wait. A thread that is about to
//! compute for long may run anywhere again, and so may every thread that is no worker.
//! docs/decisions/0002-runtime-shape.md has the figures.
//!
//! Source: sched_setaffinity(2). Where the system refuses it (a sandbox), threads run anywhere.
//!
//! Absent on purpose: cores for anybody who is no worker, and memory that is near to one.

use std::cell::Cell;
use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores that the process may use, once some of its threads are bound to one.
static ALL: OnceLock<CpuSet> = OnceLock::new();

thread_local! {
    static BOUND: Cell<bool> = const { Cell::new(false) };
}

/// A core for each of `workers` workers. None where they are not as many as the cores that this process may use: what shares
/// cores, or is to leave some of them to others, is left to the system.
pub(crate) fn one_each(workers: usize) -> Vec<usize> {
    let Ok(all) = sched_getaffinity(None) else {
        return Vec::new();
    };
    if workers < 2 || all.count() as usize != workers {
        return Vec::new();
    }
    let all = ALL.get_or_init(|| all);
    (0..CpuSet::MAX_CPU)
        .filter(|core| all.is_set(*core))
        .collect()
}

/// This thread is a worker's, and stays on that core from here on.
pub(crate) fn bind(core: usize) {
    if BOUND.get() {
        return;
    }
    // Asked for once: a system that refuses it would refuse it again.
    BOUND.set(true);
    let mut one = CpuSet::new();
    one.set(core);
    let _ = sched_setaffinity(None, &one);
}

/// This thread may run on every core again.
pub(crate) fn free() {
    if BOUND.replace(false) {
        anywhere();
    }
}

/// This thread is new: whatever thread began it, it may run on every core.
pub(crate) fn begun() {
    anywhere();
}

fn anywhere() {
    if let Some(all) = ALL.get() {
        let _ = sched_setaffinity(None, all);
    }
}
