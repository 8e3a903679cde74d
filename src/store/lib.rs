//! The embedded store of xbus: one append-only log of segments that is the journal and the lanes at
//! once.
//!
//! A commit is one checksummed frame of the log. Lanes are places in the log, held in memory at
//! their heads and tails and in pages between; the journal is the log itself, with an index beside
//! each sealed segment. Segments are deleted whole. The format is described in `record`, recovery
//! in `open`, what is deleted when in `keeper`.
//!
//! Absent: transactions that read (a commit is checked against what is there when it is handed in,
//! and then takes effect as it is), queries beyond [`xbus_core::store::Query`], more than one process.

mod ahead;
mod checkpoint;
mod codec;
mod disk;
mod find;
#[doc(hidden)]
pub mod fuzz;
mod hope;
mod index;
mod keeper;
mod kept;
mod lane;
mod lock;
mod log;
mod open;
mod pages;
mod record;
mod segment;
mod state;
mod store;
#[cfg(test)]
mod tests;

use std::time::Duration;

use xbus_core::store::Retention;

pub use store::{LogStore, Statistics};

/// How the store works. The defaults are meant for use; tests make things small.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the journal keeps what is settled.
    pub retention: Retention,
    /// Bytes of one segment of the log, at most 1 GiB. Room for it is reserved ahead.
    pub segment_size: u64,
    /// A segment ends also when its index has so many rows; bounds memory.
    pub segment_rows: usize,
    /// Bytes waiting to be written above which lazy commits wait.
    pub write_buffer: usize,
    /// How long lazy commits gather before they are written.
    pub gather: Duration,
    /// How long what is written lazily may stay unsynced.
    pub lazy_sync: Duration,
    /// Places of a lane that one page holds; memory keeps up to four times as many a lane.
    pub page_entries: usize,
    /// Bytes of waiting messages that memory keeps, all lanes together; what is beyond is read from
    /// the log when its turn comes.
    pub keep_in_memory: usize,
    /// Bytes kept free so that lanes can drain on a full disk.
    pub reserve: u64,
    /// How often retention is looked after.
    pub prune_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Retention {
                keep: Duration::from_secs(30 * 24 * 3600),
                max_size: 10 << 30,
            },
            segment_size: 64 << 20,
            // Just below a power of two for each half of them, so that a table of rows is not doubled at the end.
            segment_rows: 240 << 10,
            write_buffer: 8 << 20,
            gather: Duration::from_millis(5),
            lazy_sync: Duration::from_secs(1),
            page_entries: 256,
            keep_in_memory: 16 << 20,
            reserve: 4 << 20,
            prune_every: Duration::from_secs(30),
        }
    }
}
