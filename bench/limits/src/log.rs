//! A preallocated append log with group commit behind HTTP: the limit of a durable acceptance. While one sync runs,
//! the next batch gathers.
//!
//! Absent on purpose: reading it. The file is used as a ring, so that a run of any length needs no second one.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Response, StatusCode};
use tokio::sync::oneshot;

use crate::Fallible;
use crate::server::{read, serve};

/// Bytes of the file.
const SIZE: u64 = 256 << 20;
/// The most that one write has.
const BATCH: usize = 4 << 20;
/// About as long as what the bus answers.
const TAKEN: &str = "{\"id\":\"0199a5d2-5b7a-7c43-8f6e-2f6f1c2d3e4f\",\"status\":\"accepted\"}";

/// A message, and whom to tell that it is kept.
type Entry = (Bytes, oneshot::Sender<()>);

struct Log {
    file: File,
    at: u64,
    number: u64,
    synced: bool,
}

impl Log {
    /// Written with zeros once, so that no write changes what the file system has to know of it.
    fn open(path: &Path, synced: bool) -> Fallible<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        if file.metadata()?.len() < SIZE {
            let zeros = vec![0; 1 << 20];
            for _ in 0..SIZE >> 20 {
                file.write_all(&zeros)?;
            }
            file.sync_all()?;
        }
        Ok(Self {
            file,
            at: 0,
            number: 0,
            synced,
        })
    }

    fn append(&mut self, batch: &[u8]) -> Fallible<()> {
        if self.at + batch.len() as u64 > SIZE {
            self.at = 0;
        }
        self.file.write_all_at(batch, self.at)?;
        self.at += batch.len() as u64;
        if self.synced {
            rustix::fs::fdatasync(&self.file)?;
        }
        Ok(())
    }

    /// Each entry: length, number, bytes.
    fn frame(&mut self, batch: &mut Vec<u8>, body: &[u8]) -> Fallible<()> {
        self.number += 1;
        batch.extend_from_slice(&u32::try_from(body.len())?.to_le_bytes());
        batch.extend_from_slice(&self.number.to_le_bytes());
        batch.extend_from_slice(body);
        Ok(())
    }

    fn run(mut self, entries: &Receiver<Entry>) -> Fallible<()> {
        let (mut batch, mut waiting) = (Vec::with_capacity(BATCH), Vec::new());
        while let Ok((body, done)) = entries.recv() {
            self.frame(&mut batch, &body)?;
            waiting.push(done);
            while batch.len() < BATCH
                && let Ok((body, done)) = entries.try_recv()
            {
                self.frame(&mut batch, &body)?;
                waiting.push(done);
            }
            self.append(&batch)?;
            batch.clear();
            for done in waiting.drain(..) {
                // Nobody waits who has hung up.
                let _ = done.send(());
            }
        }
        Ok(())
    }
}

/// Answers 202 to what is kept.
pub fn run(port: u16, path: &Path, synced: bool) -> Fallible<()> {
    let log = Log::open(path, synced)?;
    let (sender, entries): (Sender<Entry>, _) = channel();
    thread::spawn(move || {
        if let Err(error) = log.run(&entries) {
            eprintln!("{error}");
        }
    });
    serve(port, move |request| {
        let sender = sender.clone();
        async move {
            let body = read(request.into_body()).await?;
            let (done, kept) = oneshot::channel();
            sender.send((body, done))?;
            kept.await?;
            Ok(Response::builder()
                .status(StatusCode::ACCEPTED)
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(TAKEN)))?)
        }
    })
}
