//! Callers: each posts the next numbered message when the one before was answered. What was begun is
//! waited for, so that the counts are exact.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::{Fallible, body};

struct Load {
    to: Uri,
    host: String,
    until: Instant,
    count: u64,
    size: usize,
    next: Cell<u64>,
    errors: Cell<u64>,
    /// Microseconds.
    took: RefCell<Vec<u64>>,
}

impl Load {
    async fn call(self: Rc<Self>) -> Fallible<()> {
        let stream = TcpStream::connect(&self.host).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        while Instant::now() < self.until && self.next.get() < self.count {
            let number = self.next.replace(self.next.get() + 1);
            let request = Request::post(self.to.path())
                .header("host", &self.host)
                .header("content-type", "text/plain")
                .body(Full::new(Bytes::from(body(number, self.size))))?;
            let begun = Instant::now();
            let response = sender.send_request(request).await?;
            let status = response.status();
            response.into_body().collect().await?;
            let took = u64::try_from(begun.elapsed().as_micros())?;
            if status.is_success() {
                self.took.borrow_mut().push(took);
            } else {
                self.errors.set(self.errors.get() + 1);
            }
        }
        Ok(())
    }
}

/// Prints what came out, in milliseconds and requests a second.
pub async fn run(
    to: Uri,
    connections: usize,
    seconds: f64,
    count: u64,
    size: usize,
) -> Fallible<()> {
    let host = to.authority().ok_or("no host")?.to_string();
    let begun = Instant::now();
    let load = Rc::new(Load {
        until: begun + Duration::from_secs_f64(seconds),
        to,
        host,
        count,
        size,
        next: Cell::new(0),
        errors: Cell::new(0),
        took: RefCell::default(),
    });
    let callers = LocalSet::new();
    let tasks: Vec<_> = (0..connections)
        .map(|_| callers.spawn_local(load.clone().call()))
        .collect();
    callers
        .run_until(async {
            for task in tasks {
                task.await??;
            }
            Fallible::Ok(())
        })
        .await?;
    let rate = load.took.borrow().len() as f64 / begun.elapsed().as_secs_f64();
    let mut took = load.took.take();
    took.sort_unstable();
    let at = |share: f64| {
        let place = (took.len() as f64 * share) as usize;
        took.get(place).map_or(0.0, |micros| *micros as f64 / 1e3)
    };
    println!(
        "{{\"requests\": {}, \"errors\": {}, \"rate\": {rate}, \"p50\": {}, \"p99\": {}}}",
        took.len(),
        load.errors.get(),
        at(0.5),
        at(0.99)
    );
    Ok(())
}
