//! The destination: takes numbered messages, says how many came, whether all of them once and in
//! order, and how long it took. A gate holds the answers back until it is opened, so that a queue
//! can be filled first.
//!
//! | request | does |
//! |---|---|
//! | `GET /_reset` | forgets all, and closes the gate |
//! | `GET /_open` | opens it; the clock starts |
//! | `GET /_held/N` | answers when N messages stand at the gate |
//! | `GET /_wait/N` | answers when N messages were answered: count, distinct, disorder, seconds |
//! | else | a message |

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::Fallible;

#[derive(Default)]
struct Sink {
    seen: Mutex<Seen>,
    opened: Notify,
}

#[derive(Default)]
struct Seen {
    open: bool,
    held: usize,
    numbers: HashSet<u64>,
    highest: u64,
    count: usize,
    /// Messages that came after one with a higher number.
    disorder: usize,
    begun: Option<Instant>,
    last: Option<Instant>,
}

impl Sink {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn message(&self, body: &[u8]) {
        let number = body
            .get(..8)
            .and_then(|text| std::str::from_utf8(text).ok());
        let number: u64 = number.and_then(|text| text.parse().ok()).unwrap_or(0);
        // Before it is looked at, so that an opening between is not missed.
        let opened = self.opened.notified();
        let open = {
            let mut seen = self.seen();
            seen.held += usize::from(!seen.open);
            seen.disorder += usize::from(number < seen.highest);
            seen.highest = seen.highest.max(number);
            seen.numbers.insert(number);
            seen.open
        };
        if !open {
            opened.await;
        }
        let mut seen = self.seen();
        seen.count += 1;
        seen.last = Some(Instant::now());
    }

    async fn until(&self, enough: impl Fn(&Seen) -> bool) {
        while !enough(&self.seen()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn control(&self, path: &str) -> String {
        match path.split('/').collect::<Vec<_>>()[..] {
            ["", "_reset"] => *self.seen() = Seen::default(),
            ["", "_open"] => {
                let mut seen = self.seen();
                seen.open = true;
                seen.begun = Some(Instant::now());
                self.opened.notify_waiters();
            }
            ["", "_held", count] => {
                let count = count.parse().unwrap_or(0);
                self.until(|seen| seen.held >= count).await;
            }
            ["", "_wait", count] => {
                let count = count.parse().unwrap_or(0);
                self.until(|seen| seen.count >= count).await;
            }
            _ => return "?".to_owned(),
        }
        let seen = self.seen();
        let took = seen.last.zip(seen.begun);
        let took = took.map_or(0.0, |(last, begun)| (last - begun).as_secs_f64());
        format!(
            "{{\"count\": {}, \"distinct\": {}, \"disorder\": {}, \"seconds\": {took}}}",
            seen.count,
            seen.numbers.len(),
            seen.disorder
        )
    }
}

pub async fn serve(port: u16) -> Fallible<()> {
    let sink = Arc::new(Sink::default());
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let sink = sink.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let sink = sink.clone();
            async move {
                let path = request.uri().path().to_owned();
                let answer = if path.starts_with("/_") {
                    sink.control(&path).await
                } else {
                    if let Ok(body) = request.into_body().collect().await {
                        sink.message(&body.to_bytes()).await;
                    }
                    String::new()
                };
                Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from(answer))))
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}
