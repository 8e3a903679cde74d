//! The three stores behind one interface, each used as its manual advises.

pub mod fjall;
pub mod log;
pub mod sqlite;

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::oneshot;
use xbus_core::Message;
use xbus_core::store::JournalEntry;

/// What is awaited.
pub type Done<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What the benchmark needs of a store.
pub trait Engine: Send + Sync {
    /// Puts a message at the tail of a lane with its journal record; ready when both are synced.
    fn put(&self, lane: usize, message: Arc<Message>, entry: JournalEntry) -> Done<'_>;
    /// Reads the head of a lane, takes it out and tells the journal; ready when that is synced.
    fn settle_head(&self, lane: usize) -> Done<'_>;
    /// Whether the lane has a head that can be read.
    fn head(&self, lane: usize) -> bool;
    /// Settles all of a lane and says how many.
    fn drain(&self, lane: usize) -> usize;
    /// Lets go of all journal records.
    fn forget_journal(&self);
    /// Syncs so far.
    fn syncs(&self) -> u64;
    fn close(&self);
}

pub fn open(name: &str, dir: &Path) -> Arc<dyn Engine> {
    match name {
        "sqlite" => Arc::new(sqlite::Sqlite::open(dir)),
        "fjall" => Arc::new(fjall::Fjall::open(dir)),
        "log" => Arc::new(log::Log::open(dir)),
        _ => panic!("no such store: {name}"),
    }
}

/// What the one writer of SQLite and of fjall is asked.
pub enum Op {
    Put {
        lane: usize,
        message: Arc<Message>,
        entry: Box<JournalEntry>,
    },
    Settle {
        lane: usize,
        seq: u64,
        id: u128,
    },
}

/// Group commit: one thread takes all that waits, up to 1,000, and does it in one transaction.
pub struct Writer(Sender<(Op, oneshot::Sender<()>)>);

impl Writer {
    pub fn start(mut group: impl FnMut(&[Op]) + Send + 'static) -> Self {
        let (sender, receiver): (_, Receiver<(Op, oneshot::Sender<()>)>) = channel();
        std::thread::spawn(move || {
            while let Ok((op, done)) = receiver.recv() {
                let (mut ops, mut waiting) = (vec![op], vec![done]);
                while ops.len() < 1000
                    && let Ok((op, done)) = receiver.try_recv()
                {
                    ops.push(op);
                    waiting.push(done);
                }
                group(&ops);
                for done in waiting {
                    let _ = done.send(());
                }
            }
        });
        Self(sender)
    }

    pub fn ask(&self, op: Op) -> Done<'static> {
        let (done, wait) = oneshot::channel();
        self.0.send((op, done)).expect("the writer runs");
        Box::pin(async move { wait.await.expect("the writer answers") })
    }
}

/// A message in the form in which SQLite and fjall keep it.
pub fn pack(message: &Message) -> Vec<u8> {
    let mut out = Vec::with_capacity(1200);
    out.extend_from_slice(&message.received_at.as_micros().to_le_bytes());
    for (name, value) in message.headers.iter() {
        for text in [name, value] {
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out.push(0);
    out.extend_from_slice(message.body.bytes());
    out
}

/// What of a journal record is not a column or key of its own.
pub fn pack_targets(entry: &JournalEntry) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    out.extend_from_slice(&entry.took_micros.to_le_bytes());
    for target in &entry.targets {
        out.push(target.name.len() as u8);
        out.extend_from_slice(target.name.as_bytes());
        out.push(target.outcome as u8);
        out.extend_from_slice(&target.at.as_micros().to_le_bytes());
    }
    out
}
