//! Callers that send lanes of numbered messages: the next when the one before was answered well, the same one
//! again when it was not. So the order of each lane is known, and what was begun is waited for, so that counts are exact.
//!
//! `load <port> <path> <callers> <seconds> <count> <size> [<lanes> [<spread>]]` ends after the seconds or the messages, whichever
//! comes first, and prints what came out. Where there are more lanes than callers each caller has some in turn. Callers
//! begin one after the other over `spread` milliseconds, or all at once; the rate leaves that time out.
//! `{lane}` in the path is the lane; the header `x-lane` has it too. Sent to the destination itself it is the bare
//! client that delivers lanes in order.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::task::LocalSet;

use crate::Fallible;

/// What is asked for.
pub struct Load {
    /// Of this machine.
    pub port: u16,
    /// Where messages are posted to.
    pub path: String,
    /// Callers, each with a connection of its own.
    pub callers: u32,
    /// At least as many.
    pub lanes: u32,
    /// The longest that it goes on.
    pub seconds: f64,
    /// The most messages, of all lanes together.
    pub count: u64,
    /// Bytes of a message, at least the 16 that hold its lane and number.
    pub size: usize,
    /// Over which the callers begin.
    pub spread: Duration,
}

impl Load {
    /// From the words of the command.
    pub fn read(words: &[&str]) -> Fallible<Self> {
        let [port, path, callers, seconds, count, size, more @ ..] = words else {
            return Err(
                "load <port> <path> <callers> <seconds> <count> <size> [<lanes> [<spread>]]".into(),
            );
        };
        Ok(Self {
            port: port.parse()?,
            path: (*path).to_owned(),
            callers: callers.parse()?,
            lanes: more.first().unwrap_or(callers).parse()?,
            seconds: seconds.parse()?,
            count: count.parse()?,
            size: size.parse()?,
            spread: Duration::from_millis(more.get(1).unwrap_or(&"0").parse()?),
        })
    }
}

/// A message of a lane.
fn message(lane: u32, number: u64, size: usize) -> Bytes {
    let mut body = format!("{lane:05} {number:010} ").into_bytes();
    body.resize(size.max(body.len()), b'x');
    body.into()
}

/// The lane and the number that a message begins with.
pub fn numbered(body: &[u8]) -> Option<(u32, u64)> {
    let text = std::str::from_utf8(body.get(..16)?).ok()?;
    let (lane, number) = text.split_once(' ')?;
    Some((lane.parse().ok()?, number.parse().ok()?))
}

struct Running {
    load: Load,
    until: Instant,
    begun: Cell<u64>,
    errors: Cell<u64>,
    /// Microseconds of each message that was answered well.
    took: RefCell<Vec<u64>>,
}

impl Running {
    async fn call(self: Rc<Self>, caller: u32) -> Fallible<()> {
        let stream = TcpStream::connect(("127.0.0.1", self.load.port)).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(connection);
        tokio::time::sleep(self.load.spread * caller / self.load.callers).await;
        let mut lanes = Vec::new();
        for lane in (caller..self.load.lanes).step_by(self.load.callers as usize) {
            let path = self.load.path.replace("{lane}", &lane.to_string());
            lanes.push((lane, path.parse::<Uri>()?, 0));
        }
        let mut turn = 0;
        while Instant::now() < self.until && self.begun.get() < self.load.count {
            self.begun.set(self.begun.get() + 1);
            let place = turn % lanes.len();
            let (lane, path, number) = &mut lanes[place];
            let body = message(*lane, *number, self.load.size);
            loop {
                let request = Request::post(path.clone())
                    .header("host", "127.0.0.1")
                    .header("content-type", "text/plain")
                    .header("x-lane", *lane)
                    .body(Full::new(body.clone()))?;
                let begun = Instant::now();
                let response = sender.send_request(request).await?;
                let well = response.status().is_success();
                response.into_body().collect().await?;
                if well {
                    let took = u64::try_from(begun.elapsed().as_micros())?;
                    self.took.borrow_mut().push(took);
                    break;
                }
                self.errors.set(self.errors.get() + 1);
                sender.ready().await?;
            }
            *number += 1;
            turn += 1;
        }
        Ok(())
    }
}

/// Runs it to its end.
pub fn run(load: Load) -> Fallible<()> {
    let begun = Instant::now();
    let (callers, spread) = (load.callers, load.spread);
    let running = Rc::new(Running {
        until: begun + Duration::from_secs_f64(load.seconds),
        load,
        begun: Cell::default(),
        errors: Cell::default(),
        took: RefCell::default(),
    });
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let callers: Vec<_> = (0..callers)
            .map(|caller| tokio::task::spawn_local(running.clone().call(caller)))
            .collect();
        for caller in callers {
            caller.await??;
        }
        Fallible::Ok(())
    })?;
    let seconds = begun.elapsed().saturating_sub(spread).as_secs_f64();
    let mut took = running.took.take();
    took.sort_unstable();
    let at = |share: f64| {
        let place = (took.len() as f64 * share) as usize;
        took.get(place).map_or(0.0, |micros| *micros as f64 / 1e3)
    };
    println!(
        "{{\"requests\": {}, \"errors\": {}, \"rate\": {}, \"p50\": {}, \"p99\": {}}}",
        took.len(),
        running.errors.get(),
        took.len() as f64 / seconds,
        at(0.5),
        at(0.99)
    );
    Ok(())
}
