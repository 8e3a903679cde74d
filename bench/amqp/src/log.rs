//! A preallocated log with group commit: what keeping each message before the broker has it costs at least. While one
//! sync runs the next batch gathers.
//!
//! Absent on purpose: reading it, and noting in it what the broker has confirmed.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::Fallible;

/// Bytes of the file, which is used as a ring.
const SIZE: u64 = 256 << 20;

type Entry = (Bytes, oneshot::Sender<()>);

#[derive(Clone)]
pub struct Log(Sender<Entry>);

impl Log {
    /// Written with zeros once, so that no write changes what the file system has to know of it.
    pub fn open(path: &Path) -> Fallible<Self> {
        let mut file = File::create(path)?;
        for _ in 0..SIZE >> 20 {
            file.write_all(&vec![0; 1 << 20])?;
        }
        file.sync_all()?;
        let (sender, entries) = channel();
        thread::spawn(move || {
            if let Err(error) = write(&file, &entries) {
                eprintln!("{error}");
            }
        });
        Ok(Self(sender))
    }

    /// `Ok` when it is synced.
    pub async fn keep(&self, body: Bytes) -> Fallible<()> {
        let (done, kept) = oneshot::channel();
        self.0.send((body, done))?;
        Ok(kept.await?)
    }
}

/// Each entry: length, bytes.
fn write(file: &File, entries: &Receiver<Entry>) -> Fallible<()> {
    let (mut at, mut batch, mut waiting) = (0, Vec::new(), Vec::new());
    while let Ok(first) = entries.recv() {
        for (body, done) in std::iter::once(first).chain(entries.try_iter()) {
            batch.extend_from_slice(&u32::try_from(body.len())?.to_le_bytes());
            batch.extend_from_slice(&body);
            waiting.push(done);
        }
        if at + batch.len() as u64 > SIZE {
            at = 0;
        }
        file.write_all_at(&batch, at)?;
        file.sync_data()?;
        at += batch.len() as u64;
        batch.clear();
        for done in waiting.drain(..) {
            // Nobody waits who has hung up.
            let _ = done.send(());
        }
    }
    Ok(())
}
