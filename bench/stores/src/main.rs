//! Compares three embedded stores on what the bus writes, and prints the tables of
//! docs/decisions/0001-embedded-store.md.
//!
//! For each message: one commit that puts it into a lane together with its journal record, synced,
//! and one that settles it, which takes it out of the lane and tells the journal, synced. Every run
//! is a process of its own in a fresh folder; rounds are interleaved; medians are printed.
//!
//! `stores` runs everything; `stores quick` fewer rounds; `stores depth N` only the deep lane;
//! `stores find N` measures searching over N
//! journaled messages; `stores run|deep|reopen|drain|lazy …` is what the rounds call.

mod engines;
mod measure;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use engines::{Engine, open};
use measure::{Cpu, dir_bytes, median, resident};
use xbus_core::store::{JournalEntry, Outcome, TargetEntry};
use xbus_core::{Message, MessageId, Timestamp};

/// Tasks that queue a million messages.
const DEEP_PRODUCERS: usize = 1_000;

const ENGINES: [&str; 3] = ["sqlite", "fjall", "log"];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().expect("a number");
    match args[..] {
        [] => all(5, 1_000_000),
        ["quick"] => all(3, 200_000),
        ["depth", messages] => depth(number(messages)),
        ["run", engine, dir, producers, messages] => {
            run(engine, dir, number(producers), number(messages));
        }
        ["deep", engine, dir, messages] => deep(engine, dir, number(messages)),
        ["reopen", engine, dir] => reopen(engine, dir),
        ["drain", engine, dir] => drain(engine, dir),
        ["lazy", dir, messages] => lazy(dir, number(messages)),
        ["find", messages] => engines::log::find(number(messages)),
        _ => panic!("stores [quick | find N]"),
    }
}

/// A message of 1 KiB with its journal record, as an async accept makes them.
pub fn sample(lane: usize) -> (Arc<Message>, JournalEntry) {
    let mut message = Message::new(vec![b'x'; 1024]);
    message.headers.set("content-type", "application/xml");
    message.headers.set("user-agent", "stores/0.1");
    let entry = JournalEntry {
        id: message.id,
        correlation_id: None,
        cause: None,
        route: "orders".into(),
        received_at: message.received_at,
        took_micros: 150,
        outcome: Outcome::Pending,
        keys: vec![(
            "order-no".into(),
            format!("{lane}-{}", message.id.as_u128() as u32),
        )],
        targets: vec![TargetEntry {
            name: "erp".into(),
            outcome: Outcome::Queued,
            attempts: 0,
            error: None,
            at: Timestamp::now(),
        }],
        fault: None,
    };
    (Arc::new(message), entry)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .build()
        .expect("a runtime")
}

/// Puts and settles `messages` in all from `producers` tasks, each with a lane of its own.
fn run(engine: &str, dir: &str, producers: usize, messages: usize) {
    let store: Arc<dyn Engine> = open(engine, Path::new(dir));
    let each = messages.div_ceil(producers);
    let (cpu, syncs, start) = (Cpu::now(), store.syncs(), Instant::now());
    runtime().block_on(async {
        let tasks: Vec<_> = (0..producers)
            .map(|lane| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        let (message, entry) = sample(lane);
                        store.put(lane, message, entry).await;
                        store.settle_head(lane).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    let done = (each * producers) as f64;
    println!(
        "{} {} {}",
        done / seconds,
        (store.syncs() - syncs) as f64 / seconds,
        cpu.until_now() * 1e6 / done
    );
    store.close();
}

/// Queues `messages` in one lane; memory and disk with all of them waiting.
fn deep(engine: &str, dir: &str, messages: usize) {
    let store: Arc<dyn Engine> = open(engine, Path::new(dir));
    let before = resident();
    let start = Instant::now();
    runtime().block_on(async {
        let tasks: Vec<_> = (0..DEEP_PRODUCERS)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..messages / DEEP_PRODUCERS {
                        let (message, entry) = sample(0);
                        store.put(0, message, entry).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("a task");
        }
    });
    let rate = messages as f64 / start.elapsed().as_secs_f64();
    println!(
        "{rate} {} {}",
        (resident() - before) as f64 / 1048576.0,
        dir_bytes(Path::new(dir)) as f64 / 1048576.0
    );
    // Ends without closing, as a kill would.
    std::process::exit(0);
}

/// Opens the store, reads the head of the lane, and closes it.
fn reopen(engine: &str, dir: &str) {
    let start = Instant::now();
    let store = open(engine, Path::new(dir));
    assert!(store.head(0), "the lane is there");
    let seconds = start.elapsed().as_secs_f64();
    println!("{seconds} {}", resident() as f64 / 1048576.0);
    store.close();
}

/// Settles everything, lets retention take the journal, and looks at the disk.
fn drain(engine: &str, dir: &str) {
    let store = open(engine, Path::new(dir));
    let start = Instant::now();
    let count = store.drain(0);
    let rate = count as f64 / start.elapsed().as_secs_f64();
    store.forget_journal();
    store.close();
    drop(store);
    println!("{rate} {} 0", dir_bytes(Path::new(dir)) as f64 / 1048576.0);
}

/// Lazy journal records only, as a passthrough writes them: cost on the producer and in all.
fn lazy(dir: &str, messages: usize) {
    engines::log::lazy(Path::new(dir), messages);
}

fn child(args: &[&str]) -> Vec<f64> {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).args(args).output().expect("a run");
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text.split_whitespace().flat_map(str::parse).collect();
    assert!(
        !figures.is_empty(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    figures
}

fn all(rounds: usize, deep_count: usize) {
    let base = std::env::var("STORES_DIR").unwrap_or_else(|_| ".".into());
    println!("put + journal, then settle, both synced, 1 KiB; median of {rounds} rounds\n");
    println!("| store | producers | messages/s | syncs/s | CPU us a message |");
    println!("|---|---|---|---|---|");
    for (producers, messages) in [(1, 400), (32, 8_000), (128, 30_000)] {
        let mut figures = vec![Vec::new(); ENGINES.len()];
        for _ in 0..rounds {
            for (at, engine) in ENGINES.iter().enumerate() {
                let dir = tempfile::tempdir_in(&base).expect("a folder");
                let path = dir.path().to_string_lossy().into_owned();
                figures[at].push(child(&[
                    "run",
                    engine,
                    &path,
                    &producers.to_string(),
                    &messages.to_string(),
                ]));
            }
        }
        for (engine, figures) in ENGINES.iter().zip(&figures) {
            println!(
                "| {engine} | {producers} | {:.0} | {:.0} | {:.0} |",
                median(figures, 0),
                median(figures, 1),
                median(figures, 2)
            );
        }
    }
    depth(deep_count);
    let dir = tempfile::tempdir_in(&base).expect("a folder");
    let lazy = child(&["lazy", &dir.path().to_string_lossy(), "1000000"]);
    println!(
        "\nlazy journal records: {:.0}/s from one producer, {:.2} us of CPU each on it, {:.2} us in all",
        lazy[0], lazy[1], lazy[2]
    );
}

/// A lane with very many messages: memory, disk, opening, draining.
fn depth(deep_count: usize) {
    let base = std::env::var("STORES_DIR").unwrap_or_else(|_| ".".into());
    println!("\n{deep_count} messages queued in one lane\n");
    println!(
        "| store | put/s | resident MiB added | disk MiB | open after a kill, s | open after close, s | resident MiB after opening | drained/s | disk MiB after draining |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for engine in ENGINES {
        let dir = tempfile::tempdir_in(&base).expect("a folder");
        let path = dir.path().to_string_lossy().into_owned();
        let deep = child(&["deep", engine, &path, &deep_count.to_string()]);
        let killed = child(&["reopen", engine, &path]);
        let closed = child(&["reopen", engine, &path]);
        let drain = child(&["drain", engine, &path]);
        println!(
            "| {engine} | {:.0} | {:.0} | {:.0} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} |",
            deep[0], deep[1], deep[2], killed[0], closed[0], killed[1], drain[0], drain[1]
        );
    }
}

/// An id that a search can be made for.
pub fn id_at(millis: u64, n: u64) -> MessageId {
    let high = u128::from(millis) << 80 | 0x7 << 76 | u128::from(n & 0xfff) << 64;
    let low = u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 2 | 1 << 63;
    MessageId::from_u128(high | low)
}
