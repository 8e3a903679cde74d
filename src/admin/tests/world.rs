//! A running bus with its admin side on a real socket, and a small client for it.
//!
//! Routes: `echo` answers with what it got, `pair` distributes to two, `orders` queues for `erp` (queue `orders.erp`), `off`
//! is not enabled. What the destinations say is in [`World::says`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::Instant;
use xbus_core::adapter::{Call, Reach, Request, SendError, Sender};
use xbus_core::bus::Bus;
use xbus_core::incident::{AlertSettings, Incidents};
use xbus_core::notice::Notice;
use xbus_core::outbox::{Accepted, Notifier};
use xbus_core::plan::{Lane, LanePolicy, Payloads, Route, Step, Target};
use xbus_core::{Context, Expression, Fault, Message, Plan, Stop, transform};

use super::memory::Memory;
use crate::Settings;

/// What the destinations answer.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Says {
    Yes,
    Down,
    LostAnswer,
}

/// A way to administrators: mail arrives, and the webhook is down.
struct Way(&'static str);

impl Notifier for Way {
    fn way(&self) -> &'static str {
        self.0
    }

    fn goes_to(&self) -> String {
        String::from("ops@acme.example")
    }

    fn notify<'a>(&'a self, _: &'a Notice) -> BoxFuture<'a, Result<Accepted, SendError>> {
        let result = match self.0 {
            "mail" => Ok(Accepted {
                said: String::from("250 heard"),
                refused: Vec::new(),
            }),
            _ => Err(SendError::outage("nobody there")),
        };
        std::future::ready(result).boxed()
    }
}

#[derive(Clone)]
struct Destination(Arc<Mutex<Says>>);

struct Asked(Arc<Message>, Destination);

impl Sender for Destination {
    fn reach(&self) -> Reach {
        Reach::OneShot
    }

    fn make(&self, message: Arc<Message>, _: &Context) -> Result<Request, Fault> {
        Ok(Request::Call(Box::new(Asked(message, self.clone()))))
    }
}

impl Call for Asked {
    fn run(&self, _: Instant) -> BoxFuture<'_, Result<Message, SendError>> {
        let result = match *self.1.0.lock().unwrap() {
            Says::Yes => Ok(Message::clone(&self.0)),
            Says::Down => Err(SendError::outage("10.1.2.3:80 refused the connection")),
            Says::LostAnswer => Err(SendError::unknown("the connection was lost")),
        };
        std::future::ready(result).boxed()
    }
}

/// The value of the header `no`.
struct No;

impl Expression for No {
    fn evaluate(&self, message: &Arc<Message>, _: &Context) -> Result<transform::Value, Fault> {
        let no = message
            .headers
            .get("no")
            .map(|no| transform::Value::Text(no.into()));
        Ok(no.unwrap_or(transform::Value::Unit))
    }
}

fn step(name: &str, says: &Destination) -> Step {
    Step {
        name: name.into(),
        transforms: Vec::new(),
        when: None,
        sender: Arc::new(says.clone()),
        timeout: Duration::from_secs(5),
        retry: None,
        breaker: None,
        gate: None,
        pace: None,
        compensate: None,
        checks: Default::default(),
        stats: Arc::default(),
    }
}

fn route(name: &str) -> Route {
    Route {
        name: name.into(),
        description: format!("The route {name}"),
        receiver: None,
        answers: true,
        reads: None,
        when: None,
        once: None,
        keys: vec![("order-no".into(), Arc::new(No))],
        steps: Vec::new(),
        targets: Vec::new(),
        drop_unmatched: false,
        no_rollback: false,
        reply: None,
        on_fault: Vec::new(),
        gate: None,
        pace: None,
        payloads: Payloads::Failed,
        lane: LanePolicy::default(),
        order_by: None,
        enabled: true,
        checks: Default::default(),
        stats: Arc::default(),
        told_senders: Arc::default(),
    }
}

fn plan(says: &Destination) -> Plan {
    let mut policy = LanePolicy::default();
    policy.retry.first = Duration::from_secs(3600);
    policy.retry.max = Duration::from_secs(3600);
    let erp = Target {
        step: step("erp", says),
        otherwise: false,
        lane: Some(Lane {
            queue: "orders.erp".into(),
            order_by: None,
            home: None,
            policy,
        }),
    };
    let sync = |name: &str| Target {
        step: step(name, says),
        otherwise: false,
        lane: None,
    };
    let mut first = sync("first");
    first.step.compensate = Some(Box::new(step("undo-first", says)));
    let routes = [
        Route {
            targets: vec![first, sync("second")],
            ..route("pair")
        },
        Route {
            steps: vec![step("mirror", says)],
            ..route("echo")
        },
        Route {
            targets: vec![erp],
            payloads: Payloads::All,
            ..route("orders")
        },
        Route {
            steps: vec![step("mirror", says)],
            enabled: false,
            ..route("off")
        },
    ];
    let mut plan = Plan::default();
    plan.bus = "test-bus".into();
    plan.node = "node-1".into();
    plan.routes = BTreeMap::from(routes.map(|route| (route.name.clone(), Arc::new(route))));
    plan
}

pub(super) struct World {
    pub(super) store: Arc<Memory>,
    pub(super) ready: Arc<AtomicBool>,
    says: Destination,
    pub(super) address: SocketAddr,
    pub(super) stop: Stop,
    pub(super) serving: tokio::task::JoinHandle<()>,
    token: Option<String>,
}

/// An answer: status, content type and body.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: String,
    pub(super) text: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        assert!(
            self.content_type.starts_with("application/json"),
            "{}",
            self.content_type
        );
        serde_json::from_str(&self.text).unwrap()
    }
}

impl World {
    pub(super) async fn start(token: Option<&str>) -> Self {
        let store = Arc::new(Memory::default());
        let says = Destination(Arc::new(Mutex::new(Says::Yes)));
        let alerts = AlertSettings::new("test-bus", Path::new("."));
        let ways: Vec<Arc<dyn Notifier>> = vec![Arc::new(Way("mail")), Arc::new(Way("webhook"))];
        let incidents = Arc::new(Incidents::new(store.clone(), alerts, ways));
        let bus = Bus::new(store.clone(), plan(&says), incidents);
        bus.start().await.unwrap();
        let ready = Arc::new(AtomicBool::new(true));
        let settings = Settings {
            listen: "127.0.0.1:0".parse().unwrap(),
            token: token.map(str::to_owned),
            max_body: 1024,
            version: "1.2.3",
            refused: Arc::default(),
            ready: ready.clone(),
        };
        let stop = Stop::new();
        let (address, serving) = crate::serve(settings, bus, stop.clone()).await.unwrap();
        Self {
            store,
            ready,
            says,
            address,
            stop,
            serving: tokio::spawn(serving),
            token: token.map(str::to_owned),
        }
    }

    pub(super) fn says(&self, says: Says) {
        *self.says.0.lock().unwrap() = says;
    }

    /// A request, with the token where there is one, and further headers.
    pub(super) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path);
        let named = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if !named("host") {
            request = request.header("host", self.address.to_string());
        }
        if let (Some(token), false) = (&self.token, named("authorization")) {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, value.as_bytes());
        }
        let request = request
            .body(Full::new(bytes::Bytes::from(body.to_owned())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: head.status.as_u16(),
            content_type: head
                .headers
                .get("content-type")
                .map_or("", |value| value.to_str().unwrap())
                .to_owned(),
            text: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], "").await
    }

    pub(super) async fn post(&self, path: &str, body: &str) -> Answer {
        self.ask("POST", path, &[], body).await
    }

    /// Sends an order and gives its id.
    pub(super) async fn order(&self, no: &str) -> String {
        let header = format!("no={no}");
        let headers = [
            ("x-xbus-header", header.as_str()),
            ("content-type", "text/plain"),
        ];
        let sent = self
            .ask("POST", "/api/v1/routes/orders/send", &headers, no)
            .await;
        assert_eq!(sent.status, 200, "{}", sent.text);
        sent.json()["id"].as_str().unwrap().to_owned()
    }

    /// Asks `path` again until `done` is content with the answer; fails after ten seconds.
    pub(super) async fn until(&self, path: &str, done: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        for _ in 0..1000 {
            last = self.get(path).await.json();
            if done(&last) {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{path} never came to what was expected; last: {last}");
    }
}
