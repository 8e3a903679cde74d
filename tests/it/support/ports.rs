//! Ports for servers that are told on which to listen.
//!
//! They lie below those that the system gives to clients and to listeners without a wish (Linux:
//! net.ipv4.ip_local_port_range, from 32768 by default): one of those could be taken by any
//! connection between its choice and the server's start, or between an end and the start after it.

use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// Where single ports come from.
const SINGLE: Range<u16> = 10_000..20_000;
/// Where rows come from.
const ROWS: Range<u16> = 20_000..30_000;
/// The length of a row.
const ROW: u16 = 10;

/// A port that was free a moment ago, and that nobody else in this process is given.
pub fn free_port() -> u16 {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let len = SINGLE.end - SINGLE.start;
    // Processes side by side begin at different places.
    let offset = offset(len / 100) * 100;
    (0..len)
        .map(|_| SINGLE.start + (offset + COUNT.fetch_add(1, Relaxed) % len) % len)
        .find(|port| listen(*port).is_some())
        .expect("a free port")
}

/// The first of ten ports in a row that were free a moment ago; the last of them is held, so that
/// other processes look elsewhere from the beginning.
pub fn ports_in_a_row() -> (u16, TcpListener) {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let rows = (ROWS.end - ROWS.start) / ROW;
    let offset = offset(rows);
    (0..rows)
        .find_map(|_| {
            let row = (offset + COUNT.fetch_add(1, Relaxed) % rows) % rows;
            let base = ROWS.start + row * ROW;
            let taken = listen(base + ROW - 1)?;
            (base..base + ROW - 1)
                .all(|port| listen(port).is_some())
                .then_some((base, taken))
        })
        .expect("free ports")
}

fn offset(places: u16) -> u16 {
    u16::try_from(std::process::id() % u32::from(places)).unwrap_or(0)
}

fn listen(port: u16) -> Option<TcpListener> {
    TcpListener::bind(("127.0.0.1", port)).ok()
}
