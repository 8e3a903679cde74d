//! A destination: an HTTP server that notes what it gets and answers as the test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::http::find;

/// What a destination got.
#[derive(Debug, Clone)]
pub struct Got {
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Got {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// What a destination does with a request.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Status, content type, body.
    Status(u16, &'static str, Vec<u8>),
    /// These bytes as they are, then the end.
    Raw(Vec<u8>),
    /// Nothing, for this long; then the end.
    Hang(Duration),
    /// The end, at once.
    Close,
}

impl Answer {
    pub fn ok() -> Self {
        Answer::Status(200, "text/plain", b"ok".to_vec())
    }
}

type Decide = Box<dyn Fn(&Got) -> Answer + Send + Sync>;

struct Shared {
    got: Mutex<Vec<Got>>,
    decide: Mutex<Arc<Decide>>,
    stopped: AtomicBool,
}

/// The server; it ends when dropped.
pub struct Destination {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Destination {
    /// Answers everything with 200.
    pub fn start() -> Self {
        Self::with(|_| Answer::ok())
    }

    /// Answers as `decide` says.
    pub fn with(decide: impl Fn(&Got) -> Answer + Send + Sync + 'static) -> Self {
        Self::at(0, decide)
    }

    /// On this port; 0 for a free one.
    pub fn at(port: u16, decide: impl Fn(&Got) -> Answer + Send + Sync + 'static) -> Self {
        let listener = super::wait_for("a port to listen on", || {
            TcpListener::bind(("127.0.0.1", port)).ok()
        });
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            got: Mutex::default(),
            decide: Mutex::new(Arc::new(Box::new(decide))),
            stopped: AtomicBool::new(false),
        });
        let serving = shared.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if serving.stopped.load(SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let shared = serving.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self {
            address,
            shared,
            thread: Some(thread),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on answers as `decide` says.
    pub fn now(&self, decide: impl Fn(&Got) -> Answer + Send + Sync + 'static) {
        *self.shared.decide.lock().expect("unpoisoned") = Arc::new(Box::new(decide));
    }

    /// Everything so far, in order.
    pub fn got(&self) -> Vec<Got> {
        self.shared.got.lock().expect("unpoisoned").clone()
    }

    pub fn count(&self) -> usize {
        self.shared.got.lock().expect("unpoisoned").len()
    }

    /// The bodies so far, as text.
    pub fn texts(&self) -> Vec<String> {
        self.got().iter().map(Got::text).collect()
    }

    #[track_caller]
    pub fn wait_for_count(&self, count: usize) -> Vec<Got> {
        super::wait_for(&format!("{count} requests at a destination"), || {
            (self.count() >= count).then(|| self.got())
        })
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) {
    let _ = stream.set_nodelay(true);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(120)));
    let mut data = Vec::new();
    while let Some(got) = read_request(&mut stream, &mut data) {
        if shared.stopped.load(SeqCst) {
            return;
        }
        let decide = shared.decide.lock().expect("unpoisoned").clone();
        let answer = decide(&got);
        shared.got.lock().expect("unpoisoned").push(got);
        match answer {
            Answer::Status(status, content_type, body) => {
                let mut raw = format!(
                    "HTTP/1.1 {status} Status\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                )
                .into_bytes();
                raw.extend_from_slice(&body);
                if stream.write_all(&raw).is_err() {
                    return;
                }
            }
            Answer::Raw(raw) => {
                let _ = stream.write_all(&raw);
                return;
            }
            Answer::Hang(time) => {
                // The caller hanging up ends it early.
                let _ = stream.set_read_timeout(Some(time));
                let _ = stream.read(&mut [0u8; 1]);
                return;
            }
            Answer::Close => return,
        }
    }
}

fn read_request(stream: &mut TcpStream, data: &mut Vec<u8>) -> Option<Got> {
    let mut buffer = [0u8; 16 * 1024];
    let end = loop {
        if let Some(at) = find(data, b"\r\n\r\n") {
            break at;
        }
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => data.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    };
    let head = String::from_utf8_lossy(&data[..end]).into_owned();
    let mut rest = data.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0usize);
    while rest.len() < length {
        match stream.read(&mut buffer) {
            Ok(count) if count > 0 => rest.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
    *data = rest.split_off(length);
    Some(Got {
        path,
        headers,
        body: rest,
    })
}
