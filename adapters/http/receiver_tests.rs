//! The receiver over real sockets, mostly as raw bytes: what a caller sends, and what it gets.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use xbus_core::spec::Args;
use xbus_core::workers::Workers;
use xbus_core::{Arrival, Code, Fault, Message, Reply, Status, Stop};

use crate::door::{Door, Entry, Stub};
use crate::receiver::{FIELDS, build, open};
use crate::soap::{NS_11, NS_12};
use crate::testing::{node, with_build};
use crate::{Hub, Limits, ListenerSettings, Settings};

type Seen = Arc<Mutex<Vec<Arrival>>>;

struct Bus {
    hub: Arc<Hub>,
    address: SocketAddr,
    seen: Seen,
    stop: Stop,
}

fn quick() -> Limits {
    Limits {
        head_timeout: Duration::from_millis(300),
        body_pause: Duration::from_millis(300),
        ..Limits::default()
    }
}

/// A bus whose routes have these receivers; every one answers as `answer` says.
async fn bus_with(
    limits: Limits,
    receivers: &[serde_json::Value],
    answer: impl Fn(&Arrival) -> Result<Reply, Fault> + Send + Sync + 'static,
) -> Bus {
    let mut listener = ListenerSettings::at("127.0.0.1:0");
    listener.idle = Duration::from_secs(5);
    bus_on(listener, limits, receivers, answer).await
}

async fn bus_on(
    listener: ListenerSettings,
    limits: Limits,
    receivers: &[serde_json::Value],
    answer: impl Fn(&Arrival) -> Result<Reply, Fault> + Send + Sync + 'static,
) -> Bus {
    let settings = Settings {
        listeners: [("default".to_owned(), listener)].into(),
        limits,
    };
    let hub = Hub::new(settings);
    let seen = Seen::default();
    let stop = Stop::new();
    let address = hub.listen().await.unwrap()[0].1;
    let answer = Arc::new(answer);
    for (at, receiver) in receivers.iter().enumerate() {
        let (seen, answer) = (seen.clone(), answer.clone());
        let stub: Arc<Stub> = Arc::new(move |arrival: Arrival| {
            let result = answer(&arrival);
            let mut arrival = arrival;
            arrival.message.headers.set("test.route", &at.to_string());
            seen.lock().unwrap().push(arrival);
            async move { result }.boxed()
        });
        let door = door(&hub, receiver, &format!("route-{at}"), stub);
        tokio::spawn(open(&hub, door, stop.clone()).unwrap());
    }
    hub.start(&Workers::default());
    Bus {
        hub,
        address,
        seen,
        stop,
    }
}

fn door(hub: &Hub, receiver: &serde_json::Value, route: &str, stub: Arc<Stub>) -> Door {
    let node = node(receiver.clone());
    let (config, problems) = with_build(|bus| build(hub, Args::new(Some(&node), FIELDS, bus)));
    assert!(problems.is_empty(), "{problems:?}");
    Door::new(Arc::new(config.unwrap()), route.into(), Entry::Stub(stub))
}

async fn bus(receivers: &[serde_json::Value]) -> Bus {
    bus_with(Limits::default(), receivers, |arrival| {
        Ok(acknowledged(arrival, Status::Delivered))
    })
    .await
}

fn acknowledged(arrival: &Arrival, status: Status) -> Reply {
    Reply {
        id: arrival.message.id,
        status,
        message: None,
        http_status: None,
        headers: Default::default(),
    }
}

fn replied(arrival: &Arrival, content_type: &str, body: &str) -> Reply {
    let mut message = Message::new(body.to_owned());
    message.headers.set("content-type", content_type);
    Reply {
        message: Some(Arc::new(message)),
        ..acknowledged(arrival, Status::Delivered)
    }
}

impl Bus {
    /// Sends bytes and gives everything that comes until the connection is closed.
    async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        read_all(&mut stream).await
    }

    /// One request that asks for the connection to be closed.
    async fn ask(&self, line: &str, headers: &str, body: &str) -> Answer {
        let length = match body.len() {
            0 => String::new(),
            length => format!("Content-Length: {length}\r\n"),
        };
        let text = self
            .raw(format!(
                "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}{length}\r\n{body}"
            ))
            .await;
        Answer::parse(&text)
    }

    fn last(&self) -> Arrival {
        self.seen.lock().unwrap().pop().expect("a message")
    }

    fn none(&self) -> bool {
        self.seen.lock().unwrap().is_empty()
    }
}

async fn read_all(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut all)).await;
    let _ = read.expect("the connection to be closed");
    String::from_utf8_lossy(&all).into_owned()
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        Self {
            status: head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    #[track_caller]
    fn is(&self, status: u16, part: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(self.body.contains(part), "{self:?}");
    }
}

#[tokio::test]
async fn a_request_becomes_a_message_with_its_headers() {
    let bus = bus(&[json!({"path": "/orders/{no}", "methods": ["POST", "PUT"]})]).await;
    let answer = bus
        .ask(
            "PUT /orders/a%20b?q=1+2&q=3&empty",
            "X-A: 1\r\nX-A: 2\r\nContent-Type: application/json\r\nAuthorization: Basic x\r\n\
             Cookie: c\r\nX-API-Key: k\r\nProxy-Authorization: Basic x\r\nX-Correlation-Id: c-1\r\nhttp.status: 200\r\nKeep-Alive: 5\r\n\
             X-Forwarded-For: 9.9.9.9\r\nX-Message-Id: theirs\r\ntraceparent: 00-1-2-01\r\n",
            "{\"a\":1}",
        )
        .await;
    answer.is(200, "\"status\":\"delivered\"");
    let arrival = bus.last();
    let message = &arrival.message;
    assert_eq!(message.body.bytes(), "{\"a\":1}");
    let expected = [
        ("http.method", Some("PUT")),
        ("http.client", Some("127.0.0.1")),
        ("path.no", Some("a b")),
        ("query.q", Some("1 2, 3")),
        ("query.empty", Some("")),
        ("x-a", Some("1, 2")),
        ("content-type", Some("application/json")),
        ("traceparent", Some("00-1-2-01")),
        ("authorization", None),
        ("cookie", None),
        ("x-api-key", None),
        ("proxy-authorization", None),
        ("http.status", None),
        ("keep-alive", None),
        ("connection", None),
        ("x-forwarded-for", None),
    ];
    for (name, value) in expected {
        assert_eq!(message.headers.get(name), value, "{name}");
    }
    assert_eq!(message.correlation_id.as_deref(), Some("c-1"));
    let id = message.id.to_string();
    assert!(answer.head.contains(&format!("x-message-id: {id}")));
    assert!(answer.body.contains(&id));
}

#[tokio::test]
async fn forwarding_headers_count_from_trusted_proxies_only() {
    for (network, client) in [("127.0.0.0/8", "9.9.9.9"), ("10.0.0.0/8", "127.0.0.1")] {
        let mut listener = ListenerSettings::at("127.0.0.1:0");
        listener.trusted_proxies = [crate::Network::parse(network).unwrap()].into();
        let bus = bus_on(
            listener,
            Limits::default(),
            &[json!({"path": "/a"})],
            |arrival| Ok(acknowledged(arrival, Status::Delivered)),
        )
        .await;
        let header = "X-Forwarded-For: 6.6.6.6, 9.9.9.9, 127.0.0.2\r\n";
        bus.ask("POST /a", header, "").await.is(200, "");
        let headers = bus.last().message.headers;
        assert_eq!(headers.get("http.client"), Some(client));
        assert_eq!(
            headers.get("x-forwarded-for").is_some(),
            client == "9.9.9.9"
        );
    }
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_refused_in_the_callers_shape() {
    let bus = bus(&[
        json!({"path": "/a"}),
        json!({"path": "/a", "methods": "PUT"}),
        json!({"path": "/b", "soap": "1.2"}),
    ])
    .await;
    bus.ask("POST /x", "", "")
        .await
        .is(404, "\"code\":\"not-found\"");
    bus.ask("POST /x", "Accept: text/xml\r\n", "")
        .await
        .is(404, "code=\"not-found\"");
    let soap = bus
        .ask(
            "POST /x",
            "Content-Type: text/xml\r\nSOAPAction: \"\"\r\n",
            "<a/>",
        )
        .await;
    soap.is(404, "<faultcode>soap:Client</faultcode>");
    for line in ["GET /a", "OPTIONS /a", "DELETE /a"] {
        let answer = bus.ask(line, "", "").await;
        answer.is(405, "not-found");
        assert!(answer.head.contains("allow: post, put"), "{answer:?}");
    }
    let head = bus.ask("HEAD /a", "", "").await;
    assert_eq!((head.status, head.body.as_str()), (405, ""));
    bus.ask("GET /b", "", "").await.is(405, "soap");
    assert!(bus.none());
    bus.ask("POST /a", "", "").await.is(200, "delivered");
    assert_eq!(bus.last().message.headers.get("test.route"), Some("0"));
    bus.ask("PUT /a", "", "").await.is(200, "delivered");
    assert_eq!(bus.last().message.headers.get("test.route"), Some("1"));
}

#[tokio::test]
async fn ambiguous_lengths_are_refused_and_the_connection_ends() {
    let bus = bus(&[json!({"path": "/a"})]).await;
    let smuggled = "0\r\n\r\nPOST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    for head in [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 6\r\nContent-Length: 6",
        "Content-Length: 6\r\nContent-Length: 7",
        "Content-Length: 6, 6",
        "Content-Length: -6",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding : chunked",
    ] {
        let text = bus
            .raw(format!(
                "POST /a HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{smuggled}"
            ))
            .await;
        let answer = Answer::parse(&text);
        answer.is(400, "\"fault\":{\"code\":\"client\"");
        let length = format!("content-length: {}\r\n", answer.body.len());
        assert!(answer.head.contains(&length), "{answer:?}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 1, "{head}: {text}");
    }
    // As the second of two on one connection, too.
    let first = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok";
    let second =
        "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n";
    let text = bus.raw(format!("{first}{second}{smuggled}")).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert_eq!(text.matches("HTTP/1.1 ").count(), 2, "{text}");
    assert_eq!(bus.last().message.body.bytes(), "ok");
    assert!(bus.none());
}

#[tokio::test]
async fn a_reply_that_looks_like_a_refusal_is_left_alone() {
    let feigned = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";
    let body = format!("{feigned}{}", "x".repeat(600_000));
    let sent = body.clone();
    let bus = bus_with(
        Limits::default(),
        &[json!({"path": "/a"})],
        move |arrival| Ok(replied(arrival, "text/plain", &sent)),
    )
    .await;
    let request = "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    let text = bus
        .raw(format!("{}NO HTTP\r\n\r\n", request.repeat(3)))
        .await;
    let parts: Vec<_> = text.split(&body).collect();
    assert_eq!(parts.len(), 4);
    assert!(
        parts[..3]
            .iter()
            .all(|head| head.starts_with("HTTP/1.1 200"))
    );
    assert!(parts[3].starts_with("HTTP/1.1 400"), "{}", parts[3]);
}

#[tokio::test]
async fn heads_that_are_not_valid_are_refused() {
    let bus = bus(&[json!({"path": "/a/{b}", "methods": ["POST", "GET"]})]).await;
    let many: String = (0..101).map(|at| format!("&p{at}=")).collect();
    for target in [
        "/a/%zz".to_owned(),
        "/a/%ff".into(),
        "/a/b?x=%zz".into(),
        "/a/b?%ff=1".into(),
        format!("/a/b?{many}"),
    ] {
        let answer = bus.ask(&format!("GET {target}"), "", "").await;
        answer.is(400, "\"code\":\"client\"");
    }
    for host in [
        "",
        "Host: x\r\nHost: x\r\n",
        "Host: x\r\nHost: y\r\n",
        "Host: a/b\r\n",
    ] {
        let request = format!("GET /a/b HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
        Answer::parse(&bus.raw(request).await).is(400, "\"code\":\"client\"");
    }
    for coding in ["gzip, chunked", "chunked\r\nTransfer-Encoding: chunked"] {
        let text = bus
            .raw(format!(
                "POST /a/b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\n\r\n0\r\n\r\n"
            ))
            .await;
        let answer = Answer::parse(&text);
        answer.is(501, "\"code\":\"unsupported\"");
        assert!(answer.head.contains("connection: close"), "{answer:?}");
    }
    assert!(bus.none());
    let old = bus.raw("GET /a/%C3%A9?p=%20&&P=2 HTTP/1.0\r\n\r\n").await;
    Answer::parse(&old).is(200, "delivered");
    let headers = bus.last().message.headers;
    assert_eq!(headers.get("path.b"), Some("é"));
    assert_eq!(headers.get("query.p"), Some(" , 2"));
}

#[tokio::test]
async fn head_is_served_like_get_without_a_body() {
    let bus = bus_with(
        Limits::default(),
        &[
            json!({"path": "/a", "methods": "GET"}),
            json!({"path": "/b", "methods": ["GET"]}),
            json!({"path": "/b", "methods": ["HEAD"]}),
        ],
        |arrival| Ok(replied(arrival, "text/plain", "hello")),
    )
    .await;
    let answer = bus.ask("HEAD /a", "", "").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert!(answer.head.contains("content-length: 5"), "{answer:?}");
    let headers = bus.last().message.headers;
    assert_eq!(headers.get("http.method"), Some("GET"));
    assert_eq!(bus.ask("HEAD /b", "", "").await.status, 200);
    let headers = bus.last().message.headers;
    assert_eq!(headers.get("test.route"), Some("2"));
    assert_eq!(headers.get("http.method"), Some("HEAD"));
    bus.ask("GET /b", "", "").await.is(200, "hello");
    assert_eq!(bus.last().message.headers.get("test.route"), Some("1"));
    let answer = bus.ask("POST /a", "", "").await;
    assert!(answer.head.contains("allow: get, head"), "{answer:?}");
}

#[tokio::test]
async fn pipelined_and_chunked_requests_are_each_answered() {
    let bus = bus(&[json!({"path": "/a"})]).await;
    let text = bus
        .raw(
            "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n1\
             POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n2\r\n2\r\n34\r\n0\r\n\r\n\
             POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        )
        .await;
    assert_eq!(text.matches("HTTP/1.1 200").count(), 3, "{text}");
    let bodies: Vec<_> = bus
        .seen
        .lock()
        .unwrap()
        .iter()
        .map(|arrival| arrival.message.body.bytes().clone())
        .collect();
    assert_eq!(bodies, ["1", "234", ""]);
}

#[tokio::test]
async fn too_much_is_refused_without_being_read() {
    let bus = bus(&[json!({"path": "/a", "max_body": "1KiB"})]).await;
    // The body never comes: the answer does not wait for it.
    let text = bus
        .raw("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1025\r\n\r\n")
        .await;
    let answer = Answer::parse(&text);
    answer.is(413, "\"code\":\"too-large\"");
    assert!(answer.head.contains("connection: close"), "{answer:?}");
    // A caller that sends it all the same reads its answer.
    let body = "x".repeat(1_000_000);
    bus.ask("POST /a", "", &body).await.is(413, "too-large");
    let chunk = format!("400\r\n{}\r\n", "x".repeat(1024));
    let text = bus
        .raw(format!(
            "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
            chunk.repeat(50)
        ))
        .await;
    Answer::parse(&text).is(413, "too-large");
    let headers: String = (0..101).map(|at| format!("X-{at}: y\r\n")).collect();
    let many = bus.ask("POST /a", &headers, "").await;
    many.is(431, "\"fault\":{\"code\":\"too-large\"");
    assert!(many.head.contains("content-type: application/json"));
    let long = format!("X-Long: {}\r\n", "y".repeat(70_000));
    assert_eq!(bus.ask("POST /a", &long, "").await.status, 431);
    assert!(bus.none());
    bus.ask("POST /a", "", &"x".repeat(1024))
        .await
        .is(200, "delivered");
}

#[tokio::test]
async fn slow_heads_and_slow_bodies_end_in_their_time() {
    let bus = bus_with(quick(), &[json!({"path": "/a"})], |arrival| {
        Ok(acknowledged(arrival, Status::Delivered))
    })
    .await;
    let began = std::time::Instant::now();
    let slow_head = bus.raw("POST /a HTTP/1.1\r\nHost: x\r\nX-A").await;
    Answer::parse(&slow_head).is(408, "\"fault\":{\"code\":\"client\"");
    assert_eq!(bus.raw("").await, "", "a silent connection just ends");
    let slow_body = bus
        .raw("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        .await;
    assert_eq!(Answer::parse(&slow_body).status, 408, "{slow_body}");
    assert!(began.elapsed() < Duration::from_secs(8));
    // The second head of a connection has its time, too.
    let text = bus
        .raw("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\nPOST /a HT")
        .await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert_eq!(text.matches("HTTP/1.1 408").count(), 1, "{text}");
    assert_eq!(bus.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn half_a_body_is_no_message() {
    let bus = bus(&[json!({"path": "/a"})]).await;
    let mut stream = TcpStream::connect(bus.address).await.unwrap();
    stream
        .write_all(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    let text = read_all(&mut stream).await;
    assert!(!text.contains("HTTP/1.1 200"), "{text}");
    assert!(bus.none());
}

#[tokio::test]
async fn who_ends_its_own_side_after_the_request_gets_the_answer() {
    let bus = bus(&[json!({"path": "/a"})]).await;
    let mut stream = TcpStream::connect(bus.address).await.unwrap();
    stream
        .write_all(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok")
        .await
        .unwrap();
    stream.shutdown().await.unwrap();
    // The connection ends with it.
    let text = read_all(&mut stream).await;
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert_eq!(bus.seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_caller_that_expects_100_continue_gets_it_only_when_its_body_is_wanted() {
    let bus = bus(&[json!({"path": "/a", "max_body": "10B"})]).await;
    let mut stream = TcpStream::connect(bus.address).await.unwrap();
    stream
        .write_all(b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        .await
        .unwrap();
    let mut first = [0u8; 25];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"ok").await.unwrap();
    let text = read_all(&mut stream).await;
    Answer::parse(&text).is(200, "delivered");
    let text = bus
        .raw("POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n")
        .await;
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");
}

#[tokio::test]
async fn outcomes_are_answered_with_their_status() {
    let bus = bus_with(
        Limits::default(),
        &[json!({"path": "/{what}"})],
        |arrival| {
            let fault = |code| Err(Fault::new(code, "no").detail("secret.host:81"));
            match arrival.message.headers.get("path.what").unwrap() {
                "accepted" => Ok(acknowledged(arrival, Status::Accepted)),
                "filtered" => Ok(acknowledged(arrival, Status::Filtered)),
                "replied" => {
                    let mut reply = replied(arrival, "text/csv", "a;b");
                    reply.http_status = Some(201);
                    reply.headers.set("X-Extra", "1");
                    Ok(reply)
                }
                "client" => fault(Code::Client),
                "unroutable" => fault(Code::Unroutable),
                "destination" => fault(Code::Destination),
                "timeout" => fault(Code::Timeout),
                "in-doubt" => fault(Code::InDoubt),
                "overloaded" => {
                    Err(Fault::new(Code::Overloaded, "later").retry_after(Duration::from_secs(7)))
                }
                _ => fault(Code::Internal),
            }
        },
    )
    .await;
    for (what, status) in [
        ("accepted", 202),
        ("filtered", 200),
        ("client", 400),
        ("unroutable", 422),
        ("destination", 502),
        ("timeout", 504),
        ("in-doubt", 504),
        ("overloaded", 503),
        ("internal", 500),
    ] {
        let answer = bus.ask(&format!("POST /{what}"), "", "x").await;
        answer.is(status, &format!("\"{what}\""));
        assert!(!answer.body.contains("secret"), "{answer:?}");
        assert_eq!(answer.head.contains("retry-after: 7"), what == "overloaded");
    }
    let answer = bus.ask("POST /replied", "", "x").await;
    answer.is(201, "a;b");
    assert!(answer.head.contains("content-type: text/csv") && answer.head.contains("x-extra: 1"));
}

#[tokio::test]
async fn content_types_and_codings_that_are_not_taken_get_415() {
    let bus = bus(&[
        json!({"path": "/json", "accepts": ["application/json", "text/*"]}),
        json!({"path": "/soap", "soap": {"version": "1.1"}}),
    ])
    .await;
    let ask = |line: &'static str, headers: &'static str| bus.ask(line, headers, "x");
    ask(
        "POST /json",
        "Content-Type: application/json; charset=utf-8\r\n",
    )
    .await
    .is(200, "");
    ask("POST /json", "Content-Type: text/csv\r\n")
        .await
        .is(200, "");
    ask("POST /json", "Content-Type: application/xml\r\n")
        .await
        .is(415, "unsupported");
    ask("POST /json", "").await.is(415, "unsupported");
    ask("POST /soap", "Content-Type: application/soap+xml\r\n")
        .await
        .is(415, "Fault");
    let answer = ask(
        "POST /json",
        "Content-Type: text/csv\r\nContent-Encoding: br\r\n",
    )
    .await;
    answer.is(415, "unsupported");
    assert!(answer.head.contains("accept-encoding: gzip, deflate"));
    ask(
        "POST /json",
        "Content-Type: text/csv\r\nContent-Encoding: gzip\r\n",
    )
    .await
    .is(400, "client");
}

#[tokio::test]
async fn callers_are_let_in_by_their_credentials() {
    let bus = bus(&[json!({"path": "/a", "auth": {
        "basic": {"shop": "pw"}, "api_key": {"header": "X-Key", "keys": ["k1", "k2"]}
    }})])
    .await;
    for headers in ["", "Authorization: Basic c2hvcDpubw==\r\n", "X-Key: k3\r\n"] {
        let answer = bus.ask("POST /a", headers, "x").await;
        answer.is(401, "denied");
        assert!(
            answer.head.contains("www-authenticate: basic"),
            "{answer:?}"
        );
    }
    bus.ask("POST /a", "Authorization: Basic c2hvcDpwdw==\r\n", "x")
        .await
        .is(200, "");
    assert_eq!(bus.last().caller.as_deref(), Some("shop"));
    bus.ask("POST /a", "X-Key: k2\r\n", "x").await.is(200, "");
    let arrival = bus.last();
    assert_eq!(arrival.caller.as_deref(), Some("api-key-2"));
    assert_eq!(arrival.message.headers.get("x-key"), None);
}

fn soap(namespace: &str, header: &str, body: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"{namespace}\">{header}<s:Body>{body}</s:Body></s:Envelope>"
    )
}

const T11: &str = "Content-Type: text/xml; charset=utf-8\r\n";
const T12: &str = "Content-Type: application/soap+xml; charset=utf-8\r\n";

#[tokio::test]
async fn soap_routes_share_a_path_and_answer_in_the_callers_version() {
    let bus = bus_with(
        Limits::default(),
        &[
            json!({"path": "/s", "soap": "any", "element": "{urn:o}Order"}),
            json!({"path": "/s", "soap": "any", "element": "{urn:o}Cancel"}),
        ],
        |arrival| {
            let body = String::from_utf8_lossy(arrival.message.body.bytes()).into_owned();
            if body.contains("fail") {
                return Err(Fault::new(Code::Client, "bad order"));
            }
            if body.contains("plain") {
                return Ok(replied(
                    arrival,
                    "application/xml",
                    "<?xml version='1.0'?><ok/>",
                ));
            }
            Ok(acknowledged(arrival, Status::Accepted))
        },
    )
    .await;
    let order = soap(NS_11, "", "<Order xmlns='urn:o'/>");
    let answer = bus.ask("POST /s", T11, &order).await;
    answer.is(200, "status=\"accepted\"");
    assert!(answer.body.contains(NS_11) && answer.head.contains("text/xml"));
    let arrival = bus.last();
    assert_eq!(arrival.message.body.bytes(), order.as_bytes());
    assert_eq!(arrival.message.headers.get("test.route"), Some("0"));
    let cancel = soap(NS_12, "", "<c:Cancel xmlns:c='urn:o'>plain</c:Cancel>");
    let answer = bus.ask("POST /s", T12, &cancel).await;
    answer.is(200, "<soap:Body><ok/></soap:Body>");
    assert!(answer.body.contains(NS_12) && answer.head.contains("application/soap+xml"));
    assert_eq!(bus.last().message.headers.get("test.route"), Some("1"));
    let failing = |ns| soap(ns, "", "<Order xmlns='urn:o'>fail</Order>");
    bus.ask("POST /s", T11, &failing(NS_11))
        .await
        .is(500, "soap:Client");
    bus.ask("POST /s", T12, &failing(NS_12))
        .await
        .is(400, "soap:Sender");
    let other = soap(NS_11, "", "<Other xmlns='urn:o'/>");
    bus.ask("POST /s", T11, &other).await.is(500, "soap:Client");
}

#[tokio::test]
async fn who_is_not_let_in_by_the_route_that_an_element_names_is_told_so() {
    let guarded = json!({"path": "/s", "soap": "any", "element": "{urn:o}Order", "auth": {"basic": {"shop": "pw"}}});
    let order = soap(NS_11, "", "<Order xmlns='urn:o'/>");
    let credentials = format!("{T11}Authorization: Basic c2hvcDpwdw==\r\n");
    for other in [
        json!({"path": "/s", "soap": "any", "element": "{urn:o}Cancel"}),
        // Nor by one that takes everything.
        json!({"path": "/s", "soap": "any"}),
    ] {
        let bus = bus(&[guarded.clone(), other]).await;
        let answer = bus.ask("POST /s", T11, &order).await;
        answer.is(401, "denied");
        assert!(
            answer.head.contains("www-authenticate: basic"),
            "{}",
            answer.head
        );
        assert!(bus.none());
        bus.ask("POST /s", &credentials, &order).await.is(200, "");
        assert_eq!(bus.last().message.headers.get("test.route"), Some("0"));
        let cancel = soap(NS_11, "", "<Cancel xmlns='urn:o'/>");
        bus.ask("POST /s", T11, &cancel).await.is(200, "");
    }
}

#[tokio::test]
async fn envelopes_that_cannot_be_taken_get_a_fault_of_the_right_kind() {
    let bus = bus(&[
        json!({"path": "/11", "soap": "1.1"}),
        json!({"path": "/any", "soap": {"understands": ["{urn:h}Known"]}}),
        json!({"path": "/relay", "soap": {"relay": true}}),
    ])
    .await;
    for body in ["", "<a", "{}", "<a/>", "<!DOCTYPE a><a/>"] {
        bus.ask("POST /11", T11, body).await.is(500, "soap:Client");
        bus.ask("POST /any", T12, body).await.is(400, "soap:Sender");
    }
    let future = soap("urn:soap:2099", "", "<a/>");
    bus.ask("POST /11", T11, &future)
        .await
        .is(500, "soap:VersionMismatch");
    bus.ask("POST /any", T12, &future)
        .await
        .is(500, "SupportedEnvelope");
    let twelve = soap(NS_12, "", "<a/>");
    bus.ask("POST /11", T11, &twelve)
        .await
        .is(500, "soap:VersionMismatch");
    let header = |ns: &str, name: &str| {
        format!("<s:Header><h:{name} xmlns:h='urn:h' s:mustUnderstand='1'>x</h:{name}></s:Header>")
            .replace("NS", ns)
    };
    let unknown = soap(NS_11, &header(NS_11, "Unknown"), "<a/>");
    bus.ask("POST /any", T11, &unknown)
        .await
        .is(500, "soap:MustUnderstand");
    let unknown = soap(NS_12, &header(NS_12, "Unknown"), "<a/>");
    bus.ask("POST /any", T12, &unknown)
        .await
        .is(500, "NotUnderstood qname=\"n:Unknown\"");
    let next = header(NS_11, "Unknown").replace(
        "s:mustUnderstand",
        "s:actor='http://schemas.xmlsoap.org/soap/actor/next' s:mustUnderstand",
    );
    bus.ask("POST /relay", T11, &soap(NS_11, &next, "<a/>"))
        .await
        .is(500, "soap:MustUnderstand");
    assert!(bus.none());
    let last = soap(NS_11, &header(NS_11, "Unknown"), "<a/>");
    bus.ask("POST /relay", T11, &last)
        .await
        .is(200, "delivered");
    let known = soap(NS_12, &header(NS_12, "Known"), "<a/>");
    bus.ask("POST /any", T12, &known).await.is(200, "delivered");
    let addressed = soap(
        NS_11,
        "<s:Header><MessageID xmlns='http://www.w3.org/2005/08/addressing' s:mustUnderstand='1'> urn:m:1 </MessageID></s:Header>",
        "<a/>",
    );
    bus.ask("POST /any", T11, &addressed)
        .await
        .is(200, "delivered");
    assert_eq!(
        bus.last().message.correlation_id.as_deref(),
        Some("urn:m:1")
    );
}

#[tokio::test]
async fn a_fault_is_answered_in_the_callers_version_and_never_with_200() {
    let bus = bus_with(
        Limits::default(),
        &[json!({"path": "/s", "soap": "any"}), json!({"path": "/plain"})],
        |arrival| {
            let text = String::from_utf8_lossy(arrival.message.body.bytes()).into_owned();
            let (_, code) = text.split_once("code='").unwrap_or_default();
            let code = code.split('\'').next().unwrap_or_default();
            let (of, code) = code.split_once(' ').unwrap_or_default();
            let (content_type, body) = match of {
                "11" => ("text/xml", soap(NS_11, "", &format!(
                    "<s:Fault><faultcode>s:{code}</faultcode><faultstring>no</faultstring></s:Fault>"
                ))),
                _ => ("application/soap+xml", soap(NS_12, "", &format!(
                    "<s:Fault><s:Code><s:Value>s:{code}</s:Value></s:Code><s:Reason><s:Text xml:lang='en'>no</s:Text></s:Reason></s:Fault>"
                ))),
            };
            let mut reply = replied(arrival, content_type, &body);
            // A route cannot call it a success.
            reply.http_status = text.contains("ok").then_some(202);
            Ok(reply)
        },
    )
    .await;
    for (fault, status_11, status_12, code_11, code_12) in [
        ("11 Client", 500, 400, "s:Client", "s:Sender"),
        ("11 Server", 500, 500, "s:Server", "s:Receiver"),
        ("12 Sender", 500, 400, "s:Client", "s:Sender"),
        ("12 Receiver", 500, 500, "s:Server", "s:Receiver"),
        (
            "12 MustUnderstand",
            500,
            500,
            "s:MustUnderstand",
            "s:MustUnderstand",
        ),
        ("12 Sender' ok='1", 500, 400, "s:Client", "s:Sender"),
    ] {
        let request = format!("<a code='{fault}'/>");
        bus.ask("POST /s", T11, &soap(NS_11, "", &request))
            .await
            .is(status_11, &format!("<faultcode>{code_11}</faultcode>"));
        bus.ask("POST /s", T12, &soap(NS_12, "", &request))
            .await
            .is(status_12, &format!("<s:Code><s:Value>{code_12}</s:Value>"));
        // Without SOAP on the receiver the answer is what it is.
        let status = if fault.starts_with("12") {
            status_12
        } else {
            status_11
        };
        bus.ask("POST /plain", T11, &request)
            .await
            .is(status, "Fault");
    }
}

#[tokio::test]
async fn a_type_that_is_not_taken_is_refused_in_its_own_version() {
    let bus = bus(&[
        json!({"path": "/11", "soap": "1.1"}),
        json!({"path": "/12", "soap": "1.2"}),
    ])
    .await;
    for (path, headers, namespace) in [
        (
            "POST /12",
            "Content-Type: text/xml; charset=utf-8\r\n",
            NS_11,
        ),
        (
            "POST /12",
            "Content-Type: text/xml\r\nSOAPAction: \"\"\r\n",
            NS_11,
        ),
        ("POST /11", "Content-Type: application/soap+xml\r\n", NS_12),
        // Of no version: that of the path.
        ("POST /12", "Content-Type: application/json\r\n", NS_12),
        ("POST /11", "", NS_11),
    ] {
        let answer = bus.ask(path, headers, "<a/>").await;
        answer.is(415, namespace);
    }
}

#[tokio::test]
async fn as_many_namespaces_as_documents_may_have_are_in_scope() {
    let bus = bus(&[json!({"path": "/s", "soap": "any"})]).await;
    // One is SOAP's.
    let declared = |count: usize| {
        let declarations: String = (1..count)
            .map(|at| format!(" xmlns:n{at}='urn:{at}'"))
            .collect();
        soap(NS_11, "", "<a/>").replacen(" xmlns:s", &format!("{declarations} xmlns:s"), 1)
    };
    bus.ask("POST /s", T11, &declared(256))
        .await
        .is(200, "delivered");
    let answer = bus.ask("POST /s", T11, &declared(257)).await;
    answer.is(500, "more than 256 namespace declarations in scope");
    assert!(!answer.body.contains("set_max"), "{answer:?}");
}

#[tokio::test]
async fn a_whole_check_sees_the_parts_of_an_envelope() {
    let bus = bus(&[json!({"path": "/s", "soap": "any", "wellformed": true})]).await;
    let whole = soap(NS_11, "", "<a/>");
    bus.ask("POST /s", T11, &whole).await.is(200, "");
    for (behind, why) in [
        ("<s:Body/>", "two Bodies"),
        ("<s:Header/>", "behind the Body"),
    ] {
        let body = whole.replace("</s:Body>", &format!("</s:Body>{behind}"));
        bus.ask("POST /s", T11, &body).await.is(500, why);
    }
}

#[tokio::test]
async fn answers_that_are_cut_off_are_faults() {
    let whole = soap(NS_11, "", "<a>1</a>");
    let bus = bus_with(
        Limits::default(),
        &[json!({"path": "/s", "soap": "any"})],
        {
            let whole = whole.clone();
            move |arrival| {
                let cut: usize = arrival
                    .message
                    .headers
                    .get("x-cut")
                    .unwrap_or("0")
                    .parse()
                    .unwrap();
                Ok(replied(arrival, "text/xml", &whole[..whole.len() - cut]))
            }
        },
    )
    .await;
    bus.ask("POST /s", T11, &whole).await.is(200, "<a>1</a>");
    for cut in [1, 5, 20, 28] {
        let answer = bus
            .ask("POST /s", &format!("{T11}X-Cut: {cut}\r\n"), &whole)
            .await;
        answer.is(500, "soap:Server");
        assert!(!answer.body.contains("<a>1"), "{answer:?}");
    }
}

#[tokio::test]
async fn envelopes_in_other_charsets_are_looked_at_and_kept_as_they_are() {
    let bus = bus(&[json!({"path": "/s", "soap": "any", "element": "Ä"})]).await;
    let text = format!(
        "<?xml version='1.0' encoding='iso-8859-1'?><s:Envelope xmlns:s='{NS_11}'><s:Body><Ä/></s:Body></s:Envelope>"
    );
    let latin = xbus_charset::encode(&text, "iso-8859-1").unwrap();
    let mut request = format!(
        "POST /s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n",
        latin.len()
    )
    .into_bytes();
    request.extend_from_slice(&latin);
    Answer::parse(&bus.raw(request).await).is(200, "delivered");
    assert_eq!(bus.last().message.body.bytes()[..], latin[..]);
}

#[tokio::test]
async fn hostile_documents_are_refused_and_the_next_request_is_served() {
    let bus = bus(&[
        json!({"path": "/xml", "wellformed": true, "max_body": "20MiB"}),
        json!({"path": "/soap", "wellformed": true, "soap": "any", "max_body": "20MiB"}),
    ])
    .await;
    let deep = "<a>".repeat(500_000);
    let wide = format!(
        "<a {}/>",
        (0..300_000)
            .map(|at| format!("a{at}='' "))
            .collect::<String>()
    );
    for body in ["", "<a", "<a>&x;</a>", "<!DOCTYPE a []><a/>", &deep, &wide] {
        bus.ask("POST /xml", "Content-Type: application/xml\r\n", body)
            .await
            .is(400, "code=\"client\"");
        let envelope = soap(NS_11, "", body);
        if !body.is_empty() {
            bus.ask("POST /soap", T11, &envelope)
                .await
                .is(500, "soap:Client");
        }
    }
    assert!(bus.none());
    bus.ask("POST /xml", "", "<a/>").await.is(200, "delivered");
}

#[tokio::test]
async fn a_stopped_hub_finishes_what_it_is_at() {
    let gate = Arc::new(tokio::sync::Notify::new());
    let bus = bus(&[]).await;
    let (entered, inside) = tokio::sync::mpsc::unbounded_channel::<()>();
    let stub: Arc<Stub> = {
        let gate = gate.clone();
        Arc::new(move |arrival: Arrival| {
            let (gate, entered) = (gate.clone(), entered.clone());
            async move {
                let _ = entered.send(());
                gate.notified().await;
                Ok(acknowledged(&arrival, Status::Delivered))
            }
            .boxed()
        })
    };
    let door = door(&bus.hub, &json!({"path": "/slow"}), "slow", stub);
    let mut running = open(&bus.hub, door, bus.stop.clone()).unwrap();
    let mut inside = inside;
    let request = bus.ask("POST /slow", "", "x");
    let mut idle = TcpStream::connect(bus.address).await.unwrap();
    let stopping = async {
        inside.recv().await.unwrap();
        bus.stop.cancel();
        assert!(
            (&mut running).now_or_never().is_none(),
            "a request is at work"
        );
        let mut stop = std::pin::pin!(bus.hub.stop());
        assert!(
            (&mut stop).now_or_never().is_none(),
            "a connection is at work"
        );
        gate.notify_one();
        running.await;
        stop.await;
    };
    let (answer, ()) = tokio::join!(request, stopping);
    answer.is(200, "delivered");
    assert_eq!(
        read_all(&mut idle).await,
        "",
        "idle connections end at once"
    );
    assert!(TcpStream::connect(bus.address).await.is_err());
}

#[tokio::test]
async fn an_address_that_is_taken_is_said_with_a_way_to_mend_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let settings = Settings {
        listeners: [("default".to_owned(), ListenerSettings::at(&address))].into(),
        limits: Limits::default(),
    };
    let error = Hub::new(settings).listen().await.unwrap_err();
    assert!(error.message.contains(&address), "{error}");
    assert!(error.help.contains("http.listen"), "{error}");
}

#[tokio::test]
async fn two_routes_cannot_have_the_same_door_but_a_reloaded_one_may() {
    let bus = bus(&[json!({"path": "/a/{x}"})]).await;
    let stub: Arc<Stub> = Arc::new(|arrival: Arrival| {
        async move { Ok(acknowledged(&arrival, Status::Filtered)) }.boxed()
    });
    let other = door(&bus.hub, &json!({"path": "/a/{y}"}), "other", stub.clone());
    let Err(error) = open(&bus.hub, other, Stop::new()) else {
        panic!("two routes have one door");
    };
    assert!(error.message.contains("'route-0' and 'other'"), "{error}");
    // The newer door of a route answers while both are there, and after the older one has gone.
    let again = door(&bus.hub, &json!({"path": "/a/{y}"}), "route-0", stub);
    let _running = open(&bus.hub, again, Stop::new()).unwrap();
    bus.ask("POST /a/1", "", "").await.is(200, "filtered");
    bus.stop.cancel();
    bus.ask("POST /a/1", "", "").await.is(200, "filtered");
}

#[test]
fn mistakes_in_a_receiver_are_reported() {
    let hub = Hub::new(Settings {
        listeners: [("default".to_owned(), ListenerSettings::at("127.0.0.1:0"))].into(),
        limits: Limits::default(),
    });
    for (receiver, part) in [
        (json!({"path": "orders"}), "begins with '/'"),
        (json!({"path": "/a", "listener": "defualt"}), "no listener"),
        (json!({"path": "/a", "methods": ["GE T"]}), "request method"),
        (
            json!({"path": "/a", "element": "{urn:x"}),
            "name of an element",
        ),
        (json!({"path": "/a", "charset": "klingon"}), "not known"),
        (json!({"path": "/a", "auth": {"bearer": [""]}}), "empty"),
        (
            json!({"path": "/a", "auth": {"client_certificate": ["x"]}}),
            "client certificates",
        ),
    ] {
        let node = node(receiver.clone());
        let (_, problems) =
            with_build(|bus| build(&hub, Args::new(Some(&node), FIELDS, bus)).is_some());
        assert!(
            problems.iter().any(|p| p.message.contains(part)),
            "{receiver}: {problems:?}"
        );
    }
}
