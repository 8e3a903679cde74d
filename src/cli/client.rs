//! The client of a running bus: finds its admin side through the installation folder, asks, and
//! turns what comes back into a result or a [`Failure`] with the right exit code.

use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use xbus_config::{Installation, Mode};

use super::output::Failure;
use super::run::LISTENING;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take; a command that waits for a delivery under way needs some of it.
const ANSWER: Duration = Duration::from_secs(120);
/// How long a message may take through its route.
const RUN: Duration = Duration::from_secs(3600);

/// What every command that asks a running bus takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Common {
    /// The installation folder; its xbus.yaml names the admin address and token
    #[arg(long, global = true, default_value = ".", value_name = "DIR")]
    pub dir: PathBuf,
    /// Print JSON for programs
    #[arg(long, global = true)]
    pub json: bool,
}

impl Common {
    /// The client of the bus that runs the folder.
    pub fn client(&self) -> Result<Client, Failure> {
        Client::from_dir(&self.dir)
    }

    /// A command line to suggest, for the same folder.
    pub fn command(&self, rest: &str) -> String {
        let dir = self.dir.display().to_string();
        match dir.as_str() {
            "." => format!("xbus {rest}"),
            plain
                if plain
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) =>
            {
                format!("xbus {rest} --dir {plain}")
            }
            other => format!("xbus {rest} --dir '{}'", other.replace('\'', r"'\''")),
        }
    }
}

/// A running bus.
#[derive(Debug)]
pub struct Client {
    address: SocketAddr,
    token: Option<String>,
}

/// What a bus answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: Value,
}

impl Client {
    /// A client of the admin side at `address`.
    pub fn new(address: SocketAddr, token: Option<String>) -> Self {
        Self {
            address: reachable(address),
            token,
        }
    }

    /// A client of the bus that runs the folder `dir`: by the address that the running bus wrote
    /// down, else by the one in xbus.yaml.
    pub fn from_dir(dir: &Path) -> Result<Self, Failure> {
        if !dir.is_dir() {
            return Err(
                Failure::wrong_use(format!("there is no folder {}", dir.display()))
                    .help("name the installation folder with --dir"),
            );
        }
        let bus = Installation::read(dir, Mode::Check).bus;
        let token = bus.admin.token.map(|secret| secret.0);
        if token.as_ref().is_some_and(|token| token.contains("${")) {
            return Err(Failure::wrong_use(
                "admin.token in xbus.yaml names a variable that is not set here",
            )
            .help("set it as it is set for the bus"));
        }
        let address = match running_address(&bus.store) {
            Some(address) => address,
            None => bus.admin.listen.parse().map_err(|_| {
                Failure::wrong_use(format!(
                    "admin.listen in xbus.yaml is '{}', which is not an address and a port",
                    bus.admin.listen
                ))
                .help("'xbus check' says what else is wrong")
            })?,
        };
        if address.port() == 0 {
            return Err(Failure::no_bus(format!(
                "no bus runs the folder {} (its admin port is taken when it starts)",
                dir.display()
            ))
            .help(format!("start it: xbus run {}", dir.display())));
        }
        Ok(Self::new(address, token))
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        let request = Request::builder().method(Method::GET).uri(path);
        self.ask(request, Bytes::new(), ANSWER).await?.ok()
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.post_within(path, body, ANSWER).await
    }

    /// The same, for what may take long.
    pub async fn post_and_wait(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.post_within(path, body, RUN).await
    }

    async fn post_within(
        &self,
        path: &str,
        body: &Value,
        within: Duration,
    ) -> Result<Value, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(header::CONTENT_TYPE, "application/json");
        self.ask(request, Bytes::from(body.to_string()), within)
            .await?
            .ok()
    }

    /// `POST path` with bytes and headers, for what runs a message through its route.
    pub async fn run(
        &self,
        path: &str,
        headers: &[(&str, HeaderValue)],
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let mut request = Request::builder().method(Method::POST).uri(path);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        self.ask(request, body, RUN).await
    }

    async fn ask(
        &self,
        request: http::request::Builder,
        body: Bytes,
        patience: Duration,
    ) -> Result<Answer, Failure> {
        let mut request = request.header(header::HOST, self.address.to_string());
        if let Some(token) = &self.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| {
                Failure::wrong_use("admin.token holds characters that HTTP cannot carry")
            })?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request
            .body(Full::new(body))
            .map_err(|error| Failure::wrong_use(format!("this cannot be asked: {error}")))?;
        let asking = self.exchange(request);
        match tokio::time::timeout(patience, asking).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::no_bus(format!(
                "the bus at {} did not answer within {} s",
                self.address,
                patience.as_secs()
            ))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let connecting = TcpStream::connect(self.address);
        let stream = match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unreachable(&error.to_string())),
            Err(_) => return Err(self.unreachable("it does not answer")),
        };
        let broken = |error: hyper::Error| {
            Failure::no_bus(format!("the bus at {} broke off: {error}", self.address))
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.map_err(broken)?;
        let connection = tokio::spawn(connection);
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok((head.status, body.collect().await?.to_bytes()))
        };
        let (status, body) = answer.await.map_err(broken)?;
        connection.abort();
        let body = serde_json::from_slice(&body).map_err(|_| {
            Failure::no_bus(format!(
                "what answers at {} is not a bus (status {status}, no JSON)",
                self.address
            ))
            .help("admin.listen in xbus.yaml may be the address of another program")
        })?;
        Ok(Answer { status, body })
    }

    fn unreachable(&self, why: &str) -> Failure {
        Failure::no_bus(format!("no bus is reachable at {}: {why}", self.address))
            .help("start it with 'xbus run DIR', or name its folder with --dir")
    }
}

impl Answer {
    /// The body of a good answer; otherwise the failure that it tells of.
    pub fn ok(self) -> Result<Value, Failure> {
        if self.status.is_success() {
            return Ok(self.body);
        }
        let error = self.body["error"].as_str().unwrap_or("it gave no reason");
        let mut failure = match self.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::no_bus(format!("the bus does not let us in: {error}"))
                    .help("admin.token in the folder's xbus.yaml must be the running bus's")
            }
            StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => Failure::wrong_use(error),
            _ => Failure::failed(error),
        };
        failure.body = Some(Box::new(self.body));
        Err(failure)
    }
}

/// A listener on every interface is asked on loopback.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

/// The admin address that a running bus wrote down, if its process lives.
fn running_address(store: &Path) -> Option<SocketAddr> {
    let text = fs::read_to_string(store.join(LISTENING)).ok()?;
    let listening: Value = serde_json::from_str(&text).ok()?;
    let address = listening["admin"].as_str()?.parse().ok()?;
    let process = i32::try_from(listening["pid"].as_i64()?).ok()?;
    match rustix::process::test_kill_process(rustix::process::Pid::from_raw(process)?) {
        Ok(()) | Err(rustix::io::Errno::PERM) => Some(address),
        Err(_) => None,
    }
}

/// `path` with `pairs` as its query, percent-encoded (RFC 3986).
pub fn with_query(path: &str, pairs: &[(&str, Option<String>)]) -> String {
    let mut out = path.to_owned();
    let mut joint = '?';
    for (name, value) in pairs {
        if let Some(value) = value {
            let _ = write!(out, "{joint}{name}={}", encode(value));
            joint = '&';
        }
    }
    out
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_encoded() {
        let path = with_query(
            "/x",
            &[
                ("a", Some("1 2&ü".into())),
                ("b", None),
                ("c", Some("d".into())),
            ],
        );
        assert_eq!(path, "/x?a=1%202%26%C3%BC&c=d");
    }

    #[test]
    fn the_address_of_a_live_process_goes_before_the_configured_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("xbus.yaml"),
            "admin: { listen: \"127.0.0.1:9\" }\n",
        )
        .unwrap();
        let configured = Client::from_dir(dir.path()).unwrap();
        assert_eq!(configured.address, "127.0.0.1:9".parse().unwrap());
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let write = |pid: u32| {
            let listening = serde_json::json!({ "pid": pid, "admin": "0.0.0.0:4711" });
            fs::write(data.join(LISTENING), listening.to_string()).unwrap();
        };
        write(std::process::id());
        let running = Client::from_dir(dir.path()).unwrap();
        assert_eq!(running.address, "127.0.0.1:4711".parse().unwrap());
        // No process has this id: Linux's largest is 4194304.
        write(999_999_999);
        let dead = Client::from_dir(dir.path()).unwrap();
        assert_eq!(dead.address, configured.address);
    }

    #[test]
    fn no_folder_is_wrong_use() {
        let failure = Client::from_dir(Path::new("/nonexistent/folder")).unwrap_err();
        assert_eq!(failure.code, super::super::output::WRONG_USE);
    }

    #[tokio::test]
    async fn nobody_there_is_exit_code_3() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let failure = Client::new(free, None)
            .get("/api/v1/queues")
            .await
            .unwrap_err();
        assert_eq!(failure.code, super::super::output::NO_BUS);
    }

    #[test]
    fn suggested_commands_name_the_folder() {
        let common = |dir: &str| Common {
            dir: dir.into(),
            json: false,
        };
        assert_eq!(common(".").command("queues"), "xbus queues");
        assert_eq!(
            common("/srv/bus").command("queues"),
            "xbus queues --dir /srv/bus"
        );
        assert_eq!(
            common("a b'c").command("queues"),
            r"xbus queues --dir 'a b'\''c'"
        );
    }
}
