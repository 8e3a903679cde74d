//! Which shape of tokio runtime serves a bus best on two cores? Measured, not argued: the same small
//! HTTP program in three shapes, loaded in turn. The outcome is docs/decisions/0002-runtime-shape.md.
//!
//! | shape | runtime | a message runs |
//! |---|---|---|
//! | `a`  | one multi-thread runtime, two workers | in a task of its own, awaited by the connection |
//! | `b`  | two current-thread runtimes, a `SO_REUSEPORT` listener and a client pool each | the same |
//! | `c`  | as `a` | inside the connection's task |
//! | `a+` | as `a` | as `a`, a slow transform inside `block_in_place` |
//! | `a*`, `b*` | as `a`, `b` | as `a`, `b`, a slow transform by `spawn_blocking` |
//!
//! `runtime-shape <shape> proxy <port> <destination port>` reads the body whole, posts it to the
//! destination over pooled connections and returns the answer. A body that begins with `S` first
//! costs about 2 ms of CPU, as a heavy script would.
//! `runtime-shape <shape> accept <port> 0` hands the body to a writer thread which gathers a batch,
//! copies it and answers every entry: a group-commit log whose sync costs nothing.
//! `THREADS` in the environment takes the place of the two.
//! `runtime-shape echo <port>` is the destination, on one thread.
//!
//! `cargo build --release && python3 run.py` (wrk and Python 3 needed) loads all of it by turns and prints the
//! table: medians of the clean rounds only, a round being unclean when others took over 15 % of the CPU.
//!
//! Absent on purpose: timeouts, limits, TLS, graceful stop. They cost every shape the same.

use std::{
    convert::Infallible, env, error::Error, hint::black_box, net::SocketAddr, sync::Arc,
    sync::mpsc, thread,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Response, StatusCode, Uri, body::Incoming, server::conn::http1, service::service_fn,
};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{net::TcpSocket, runtime, sync::oneshot, task};

type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;
/// A message on its way to the writer thread, and where its acknowledgement goes.
type Entry = (Bytes, oneshot::Sender<()>);

/// Steps of [`transform`]: about 2 ms on the machine of the decision. Fixed work, not fixed time,
/// so that a shape which is preempted more often does not get away with less.
const STEPS: u64 = 1_775_000;

/// How a slow transform leaves the event loop.
#[derive(Clone, Copy)]
enum Offload {
    Never,
    InPlace,
    Pool,
}

/// What a message needs on its way; one for all threads in shape `a`, one per thread in `b`.
struct Bus {
    client: Client<HttpConnector, Full<Bytes>>,
    destination: Uri,
    own_task: bool,
    offload: Offload,
    log: Option<mpsc::Sender<Entry>>,
}

impl Bus {
    fn new(shape: &str, destination: &Uri, log: Option<mpsc::Sender<Entry>>) -> Arc<Self> {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Arc::new(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            destination: destination.clone(),
            own_task: shape != "c",
            offload: match shape {
                "a+" => Offload::InPlace,
                "a*" | "b*" => Offload::Pool,
                _ => Offload::Never,
            },
            log,
        })
    }

    /// From acceptance to the reply: what the own task protects from a caller that hangs up.
    async fn process(self: Arc<Self>, body: Bytes) -> Fallible<Bytes> {
        if let Some(log) = &self.log {
            let (written, durable) = oneshot::channel();
            log.send((body, written))?;
            durable.await?;
            return Ok(Bytes::new());
        }
        if body.first() == Some(&b'S') {
            match self.offload {
                Offload::Never => transform(),
                Offload::InPlace => task::block_in_place(transform),
                Offload::Pool => task::spawn_blocking(transform).await?,
            }
        }
        let request = Request::post(self.destination.clone()).body(Full::new(body))?;
        let response = self.client.request(request).await?;
        Ok(response.into_body().collect().await?.to_bytes())
    }

    async fn receive(self: Arc<Self>, request: Request<Incoming>) -> Fallible<Bytes> {
        let body = read(request).await?;
        if self.own_task {
            tokio::spawn(self.process(body)).await?
        } else {
            self.process(body).await
        }
    }
}

async fn read(request: Request<Incoming>) -> Fallible<Bytes> {
    Ok(request.into_body().collect().await?.to_bytes())
}

/// A chain of dependent multiplications: CPU and nothing else.
fn transform() {
    let mix = |state: u64, step: u64| (state ^ step).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    black_box((0..STEPS).fold(1, mix));
}

/// The writer: one batch is all that gathered while the last was written.
fn write_batches(entries: &mpsc::Receiver<Entry>) {
    let (mut segment, mut written) = (Vec::with_capacity(1 << 20), Vec::new());
    while let Ok(first) = entries.recv() {
        segment.clear();
        for (body, done) in std::iter::once(first).chain(entries.try_iter().take(511)) {
            segment.extend_from_slice(&body);
            written.push(done);
        }
        black_box(&segment);
        for done in written.drain(..) {
            let _caller_gone = done.send(());
        }
    }
}

/// Accepts for ever; `bus` absent: the echo.
async fn serve(port: u16, bus: Option<Arc<Bus>>) -> Fallible<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], port)))?;
    let listener = socket.listen(1024)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let bus = bus.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let bus = bus.clone();
            async move {
                let outcome = match bus {
                    Some(bus) => bus.receive(request).await,
                    None => read(request).await,
                };
                let (status, body) = match outcome {
                    Ok(body) => (StatusCode::OK, body),
                    Err(error) => (StatusCode::BAD_GATEWAY, error.to_string().into()),
                };
                let mut response = Response::new(Full::new(body));
                *response.status_mut() = status;
                Ok::<_, Infallible>(response)
            }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

/// One single-threaded runtime on this thread; the bus is made inside it.
fn single(port: u16, bus: Option<Arc<Bus>>) -> Fallible<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(port, bus))
}

fn main() -> Fallible<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (shape, mode, port, destination) = match words[..] {
        ["echo", port] => return single(port.parse()?, None),
        [
            shape @ ("a" | "a+" | "a*" | "b" | "b*" | "c"),
            mode @ ("proxy" | "accept"),
            port,
            destination,
        ] => {
            let destination = format!("http://127.0.0.1:{destination}/");
            (shape, mode, port.parse()?, destination.parse()?)
        }
        _ => return Err("usage: echo <port> | <shape> <proxy|accept> <port> <to port>".into()),
    };
    let threads: usize = env::var("THREADS").map_or(Ok(2), |count| count.parse())?;
    let log = (mode == "accept").then(|| {
        let (log, entries) = mpsc::channel();
        thread::spawn(move || write_batches(&entries));
        log
    });
    if shape.starts_with('b') {
        for _ in 1..threads {
            let bus = Bus::new(shape, &destination, log.clone());
            thread::spawn(move || single(port, Some(bus)));
        }
        return single(port, Some(Bus::new(shape, &destination, log)));
    }
    let bus = Bus::new(shape, &destination, log);
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()?;
    // Spawned, so that accepting happens on a worker and the main thread only waits.
    runtime.block_on(runtime.spawn(serve(port, Some(bus))))?
}
