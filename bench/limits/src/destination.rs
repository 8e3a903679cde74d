//! The destination of every benchmark: sends bodies back, counts them, and on demand answers late,
//! fails some, or sees to the order of numbered messages.
//!
//! | request | does |
//! |---|---|
//! | `GET /_reset/DELAY/FAILING` | forgets the counts; answers come `DELAY` milliseconds late, of 10,000 requests `FAILING` get 503, spread evenly |
//! | `GET /_count` | what was seen, see below |
//! | `GET /_wait/N/MS` | the same, when `N` requests were answered well, or after `MS` milliseconds |
//! | `/numbered…` | a message that begins with its lane and its number, `LLLLL NNNNNNNNNN`; answered empty |
//! | else | a message; answered with its own body and content type |
//!
//! Counts: `count` requests answered well, `failed` ones answered 503, and of numbered ones `lanes`, `repeated` (a number that
//! its lane has had), `skipped` (a number that is not the next), `seconds` from the first to the last and `lane_counts`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, Response, StatusCode};

use crate::Fallible;
use crate::load::numbered;
use crate::server::{read, serve};

#[derive(Default)]
struct Seen {
    delay: Duration,
    failing: u64,
    requests: u64,
    count: u64,
    failed: u64,
    repeated: u64,
    skipped: u64,
    /// The next number of each lane.
    lanes: HashMap<u32, u64>,
    first: Option<Instant>,
    last: Option<Instant>,
}

impl Seen {
    /// Whether this request is one of those that fail: evenly spread, so that every run has the same.
    fn fails(&mut self) -> bool {
        let before = self.requests * self.failing / 10_000;
        self.requests += 1;
        let fails = self.requests * self.failing / 10_000 > before;
        self.failed += u64::from(fails);
        fails
    }

    fn answered(&mut self) {
        self.count += 1;
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
    }

    fn numbered(&mut self, body: &[u8]) -> Fallible<()> {
        let (lane, number) = numbered(body).ok_or("not a numbered message")?;
        let next = self.lanes.entry(lane).or_default();
        if number < *next {
            self.repeated += 1;
        } else if number > *next {
            self.skipped += 1;
        }
        *next = number + 1;
        Ok(())
    }

    fn report(&self) -> String {
        let took = self.first.zip(self.last);
        let took = took.map_or(0.0, |(first, last)| (last - first).as_secs_f64());
        let counts: Vec<String> = self.lanes.values().map(u64::to_string).collect();
        format!(
            "{{\"count\": {}, \"failed\": {}, \"lanes\": {}, \"repeated\": {}, \"skipped\": {}, \"seconds\": {took}, \"lane_counts\": [{}]}}",
            self.count,
            self.failed,
            self.lanes.len(),
            self.repeated,
            self.skipped,
            counts.join(",")
        )
    }
}

type Shared = Rc<RefCell<Seen>>;

/// Serves until the process is ended.
pub fn run(port: u16) -> Fallible<()> {
    let seen = Shared::default();
    serve(port, move |request| answer(seen.clone(), request))
}

async fn answer(seen: Shared, request: Request<Incoming>) -> Fallible<Response<Full<Bytes>>> {
    let (head, body) = request.into_parts();
    let body = read(body).await?;
    if head.uri.path().starts_with("/_") {
        let report = control(&seen, head.uri.path()).await?;
        return Ok(Response::new(Full::new(report.into())));
    }
    let (delay, fails) = {
        let mut seen = seen.borrow_mut();
        (seen.delay, seen.fails())
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let mut response = Response::new(Full::default());
    if fails {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        return Ok(response);
    }
    let mut seen = seen.borrow_mut();
    if head.uri.path().starts_with("/numbered") {
        seen.numbered(&body)?;
    } else {
        *response.body_mut() = Full::new(body);
        if let Some(kind) = head.headers.get(CONTENT_TYPE) {
            response.headers_mut().insert(CONTENT_TYPE, kind.clone());
        }
    }
    seen.answered();
    Ok(response)
}

async fn control(seen: &Shared, path: &str) -> Fallible<String> {
    match path.split('/').collect::<Vec<_>>()[..] {
        ["", "_reset", delay, failing] => {
            *seen.borrow_mut() = Seen {
                delay: Duration::from_millis(delay.parse()?),
                failing: failing.parse()?,
                ..Seen::default()
            };
        }
        ["", "_wait", count, most] => {
            let (count, most) = (count.parse()?, Duration::from_millis(most.parse()?));
            let begun = Instant::now();
            while seen.borrow().count < count && begun.elapsed() < most {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        ["", "_count"] => {}
        _ => return Err("no such word of control".into()),
    }
    Ok(seen.borrow().report())
}
