//! The sender against small servers on real sockets that do what they are told.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use xbus_core::adapter::Class;
use xbus_core::problem::Problem;
use xbus_core::spec::Args;
use xbus_core::workers::Workers;
use xbus_core::{Context, Fault, Message, Request, SendError, Sender};

use crate::sender::{FIELDS, HttpSender, build};
use crate::soap::{NS_11, NS_12};
use crate::testing::{node, with_build};

/// What a server does with a request.
#[derive(Clone)]
enum Act {
    /// Writes this and goes on.
    Say(String),
    /// Writes this and closes the connection.
    Last(String),
    /// Never answers.
    Hang,
}

fn ok(headers: &str, body: &str) -> String {
    status("200 OK", headers, body)
}

fn status(line: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {line}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
}

/// A server that does one act for each request, in order; the last one again and again.
async fn server(acts: Vec<Act>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server {
        address: listener.local_addr().unwrap(),
        requests: Arc::default(),
        connections: Arc::default(),
    };
    let (requests, connections) = (server.requests.clone(), server.connections.clone());
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, SeqCst);
            tokio::spawn(converse(stream, acts.clone(), requests.clone()));
        }
    });
    server
}

async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    acts: Vec<Act>,
    requests: Arc<Mutex<Vec<String>>>,
) {
    while let Some(request) = read_request(&mut stream).await {
        let at = {
            let mut requests = requests.lock().unwrap();
            requests.push(request);
            requests.len() - 1
        };
        match &acts[at.min(acts.len() - 1)] {
            Act::Say(text) => stream.write_all(text.as_bytes()).await.unwrap(),
            Act::Last(text) => {
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
                return;
            }
            Act::Hang => std::future::pending().await,
        }
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut all = Vec::new();
    loop {
        let mut byte = [0u8; 1024];
        let count = stream.read(&mut byte).await.ok()?;
        if count == 0 {
            return None;
        }
        all.extend_from_slice(&byte[..count]);
        let text = String::from_utf8_lossy(&all).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0usize);
            if body.len() >= length {
                return Some(text);
            }
        }
    }
}

fn made(config: serde_json::Value) -> (Option<HttpSender>, Vec<Problem>) {
    let node = node(config);
    with_build(|bus| build(Args::new(Some(&node), FIELDS, bus)))
}

fn sender(config: serde_json::Value) -> HttpSender {
    let (sender, problems) = made(config);
    assert!(problems.is_empty(), "{problems:?}");
    sender.unwrap()
}

/// A sender of a step of `invoke`.
fn invoking(config: serde_json::Value) -> HttpSender {
    let node = node(config);
    let (sender, problems) = with_build(|bus| {
        let bus = xbus_core::spec::Build {
            role: xbus_core::spec::Role::Invoke,
            route: bus.route.clone(),
            step: bus.step.clone(),
            bus: bus.bus.clone(),
            node: bus.node.clone(),
            ..*bus
        };
        build(Args::new(Some(&node), FIELDS, &bus))
    });
    assert!(problems.is_empty(), "{problems:?}");
    sender.unwrap()
}

fn message(body: &'static str) -> Message {
    let mut message = Message::new(body);
    message.headers.set("Content-Type", "application/xml");
    message.headers.set("order-id", "7");
    message
}

async fn send_within(
    sender: &HttpSender,
    message: Message,
    time: Duration,
) -> Result<Message, SendError> {
    let message = Arc::new(message);
    let context = Context::new("route".into(), message.clone());
    let Request::Call(call) = sender.make(message, &context).unwrap() else {
        panic!("http makes calls");
    };
    call.run(Instant::now() + time).await
}

async fn send(sender: &HttpSender, message: Message) -> Result<Message, SendError> {
    send_within(sender, message, Duration::from_secs(5)).await
}

impl Server {
    fn url(&self) -> String {
        format!("http://{}/x", self.address)
    }

    fn last(&self) -> String {
        self.requests.lock().unwrap().last().unwrap().clone()
    }
}

#[tokio::test]
async fn a_message_is_sent_with_its_identity_and_the_answer_becomes_the_response() {
    let answer = ok(
        "Content-Type: application/json\r\nX-B: 1\r\nX-B: 2\r\nSet-Cookie: c\r\nConnection: keep-alive\r\n",
        "{}",
    );
    let server = server(vec![Act::Say(answer)]).await;
    let sender = sender(json!({"url": server.url(), "headers": ["order-id", "absent"]}));
    let mut out = message("<a/>");
    out.headers.set("http.method", "PUT");
    out.headers.set("http.x-old", "1");
    out.headers.set("secret", "s");
    out.correlation_id = Some("c-1".into());
    let id = out.id;
    let response = send(&sender, out).await.unwrap();
    let request = server.last();
    for line in [
        "POST /x HTTP/1.1\r\n".to_owned(),
        format!("host: {}\r\n", server.address),
        "content-type: application/xml\r\n".into(),
        format!("x-message-id: {id}\r\n"),
        "x-correlation-id: c-1\r\n".into(),
        format!("idempotency-key: {id}/target\r\n"),
        "order-id: 7\r\n".into(),
    ] {
        assert!(request.contains(&line), "{line} in {request}");
    }
    assert!(!request.contains("secret") && request.ends_with("\r\n\r\n<a/>"));
    assert_eq!(response.id, id);
    assert_eq!(response.body.bytes(), "{}");
    for (name, value) in [
        ("content-type", Some("application/json")),
        ("http.status", Some("200")),
        ("http.x-b", Some("1, 2")),
        ("http.method", Some("PUT")),
        ("http.x-old", None),
        ("http.set-cookie", None),
        ("order-id", Some("7")),
    ] {
        assert_eq!(response.headers.get(name), value, "{name}");
    }
}

#[tokio::test]
async fn connections_are_used_again_by_all_senders_to_a_destination() {
    let server = server(vec![Act::Say(ok("", "x"))]).await;
    let (one, two) = (
        sender(json!({"url": server.url()})),
        sender(json!({"url": format!("http://{}/y", server.address)})),
    );
    for _ in 0..10 {
        send(&one, message("a")).await.unwrap();
        send(&two, message("b")).await.unwrap();
    }
    assert_eq!(server.connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_is_replaced() {
    let server = server(vec![Act::Last(ok("", "x"))]).await;
    let sender = sender(json!({"url": server.url()}));
    for round in 1..=5 {
        send(&sender, message("a")).await.unwrap();
        assert_eq!(server.connections.load(SeqCst), round);
        // The close has to be seen before the next request; a request into a connection that is
        // closing at this moment has an unknown outcome.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn statuses_are_outages_or_rejections() {
    for (code, class) in [
        (301, Class::Outage),
        (400, Class::Rejected),
        (401, Class::Outage),
        (403, Class::Outage),
        (404, Class::Outage),
        (405, Class::Rejected),
        (408, Class::Outage),
        (409, Class::Rejected),
        (422, Class::Rejected),
        (429, Class::Outage),
        (500, Class::Outage),
        (503, Class::Outage),
    ] {
        let answer = status(&format!("{code} X"), "Retry-After: 3\r\n", "line\nsecond");
        let server = server(vec![Act::Say(answer)]).await;
        let sender =
            sender(json!({"url": server.url().replace("http://", "http://us:pw@") + "?key=1"}));
        let error = send(&sender, message("a")).await.unwrap_err();
        assert_eq!(error.class, class, "{code}");
        assert!(!error.timed_out);
        assert_eq!(error.retry_after, Some(Duration::from_secs(3)));
        assert!(
            error.detail.ends_with(&format!("answered with {code}")),
            "{}",
            error.detail
        );
        assert_eq!(error.answer.as_deref(), Some("line\\nsecond"));
        assert!(
            !error.detail.contains("pw") && !error.detail.contains("key=1"),
            "{}",
            error.detail
        );
        assert!(server.last().contains("authorization: Basic dXM6cHc="));
    }
}

#[tokio::test]
async fn what_counts_as_success_can_be_said() {
    let server = server(vec![
        Act::Say(status("404 X", "", "none")),
        Act::Say(status("207 X", "", "some")),
    ])
    .await;
    let sender = sender(json!({"url": server.url(), "success": [200, 404]}));
    let response = send(&sender, message("a")).await.unwrap();
    assert_eq!(response.headers.get("http.status"), Some("404"));
    assert!(send(&sender, message("a")).await.is_err());
}

#[tokio::test]
async fn a_destination_that_is_not_there_is_an_outage() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let sender = sender(json!({"url": format!("http://{address}/")}));
    let error = send(&sender, message("a")).await.unwrap_err();
    assert_eq!((error.class, error.timed_out), (Class::Outage, false));
}

#[tokio::test]
async fn what_happens_after_the_request_was_sent_is_unknown() {
    let lost = [
        String::new(),
        "HTTP/1.1 200 OK\r\nContent-".into(),
        "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf".into(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha".into(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n".into(),
        "this is not HTTP\r\n\r\n".into(),
        "HTTP/9.9 abc\r\n\r\n".into(),
        ok("Content-Encoding: gzip\r\n", "not gzip"),
        ok("", &"x".repeat(100_001)),
    ];
    for answer in lost {
        let server = server(vec![Act::Last(answer.clone())]).await;
        let sender = sender(json!({"url": server.url()}));
        let error = send(&sender, message("a")).await.unwrap_err();
        assert_eq!(
            (error.class, error.timed_out),
            (Class::Unknown, false),
            "{answer:.60}: {error:?}"
        );
        assert_eq!(
            server.requests.lock().unwrap().len(),
            1,
            "it is not sent twice"
        );
    }
    for act in [
        Act::Hang,
        Act::Say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf".into()),
    ] {
        let server = server(vec![act]).await;
        let sender = sender(json!({"url": server.url()}));
        let time = Duration::from_millis(200);
        let error = send_within(&sender, message("a"), time).await.unwrap_err();
        assert_eq!((error.class, error.timed_out), (Class::Unknown, true));
    }
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_in_time_is_an_outage() {
    // A listener whose TLS handshake never comes: nothing of the request was sent.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let sender = sender(json!({"url": format!("https://{address}/")}));
    let time = Duration::from_millis(300);
    let error = send_within(&sender, message("a"), time).await.unwrap_err();
    assert_eq!((error.class, error.timed_out), (Class::Outage, true));
}

fn fault_11(code: &str) -> String {
    format!(
        "<s:Envelope xmlns:s='{NS_11}'><s:Body><s:Fault><faultcode>s:{code}</faultcode><faultstring>x</faultstring></s:Fault></s:Body></s:Envelope>"
    )
}

fn fault_12(code: &str) -> String {
    format!(
        "<s:Envelope xmlns:s='{NS_12}'><s:Body><s:Fault><s:Code><s:Value>s:{code}</s:Value></s:Code></s:Fault></s:Body></s:Envelope>"
    )
}

#[tokio::test]
async fn soap_faults_decide_whatever_their_status() {
    const T11: &str = "Content-Type: text/xml\r\n";
    const T12: &str = "Content-Type: application/soap+xml; charset=utf-8\r\n";
    for (line, headers, body, class) in [
        ("500 X", T11, fault_11("Server"), Class::Outage),
        ("500 X", T11, fault_11("Client"), Class::Rejected),
        ("500 X", T11, fault_11("Client.Auth"), Class::Rejected),
        ("500 X", T11, fault_11("MustUnderstand"), Class::Rejected),
        ("200 X", T11, fault_11("Server"), Class::Outage),
        ("200 X", T11, fault_11("Client"), Class::Rejected),
        ("500 X", T12, fault_12("Receiver"), Class::Outage),
        ("400 X", T12, fault_12("Sender"), Class::Rejected),
        ("503 X", T11, fault_11("Client"), Class::Outage),
        ("500 X", "", fault_11("Client"), Class::Outage),
    ] {
        let server = server(vec![Act::Say(status(line, headers, &body))]).await;
        let sender = sender(json!({"url": server.url()}));
        let error = send(&sender, message("a")).await.unwrap_err();
        assert_eq!(error.class, class, "{line} {body}");
    }
}

#[tokio::test]
async fn what_is_no_envelope_is_no_answer_of_a_soap_service() {
    let fault = format!(
        "<s:Envelope xmlns:s=\"{NS_11}\"><s:Body><s:Fault><faultcode>s:Server</faultcode></s:Fault></s:Body></s:Envelope>"
    );
    let good = format!("<s:Envelope xmlns:s=\"{NS_11}\"><s:Body><a/></s:Body></s:Envelope>");
    let commented = format!("{good}\r\n<!-- </x> -->\n");
    for (headers, body, good) in [
        ("Content-Type: text/html\r\n", "<html>login</html>", false),
        ("Content-Type: application/json\r\n", "{\"error\":1}", false),
        ("Content-Type: text/xml\r\n", "<<<", false),
        ("Content-Type: text/xml\r\n", &good[..good.len() - 1], false),
        (
            "Content-Type: text/xml\r\n",
            &good[..good.len() - 20],
            false,
        ),
        ("Content-Type: text/xml\r\n", &*commented, true),
        ("Content-Type: text/html\r\n", &*fault, false),
        ("Content-Type: text/plain\r\n", &*good, true),
        ("", "", true),
    ] {
        let server = server(vec![Act::Say(ok(headers, body))]).await;
        let sender = sender(json!({ "url": server.url(), "soap": "1.1" }));
        let result = send(&sender, message("<a/>")).await;
        match result {
            Ok(_) => assert!(good, "{body}"),
            // The request was sent; what became of it is not known.
            Err(error) => {
                assert!(!good, "{body}: {error:?}");
                assert_eq!(error.class, Class::Unknown, "{body}");
            }
        }
    }
}

#[tokio::test]
async fn a_fault_that_is_passed_on_is_the_response() {
    const T11: &str = "Content-Type: text/xml\r\n";
    const T12: &str = "Content-Type: application/soap+xml\r\n";
    // Larger than what is looked at of other failures.
    let large = fault_11("Client").replace(
        "<faultstring>x",
        &format!("<faultstring>{}", "x".repeat(70_000)),
    );
    for (line, headers, body, said) in [
        ("500 X", T11, fault_11("Server"), "500"),
        ("500 X", T11, large, "500"),
        ("200 X", T11, fault_11("Client"), "200"),
        ("400 X", T12, fault_12("Sender"), "400"),
        ("500 X", T12, fault_12("Receiver"), "500"),
    ] {
        let server = server(vec![Act::Say(status(line, headers, &body))]).await;
        let config = json!({"url": server.url(), "soap": {"faults": "pass"}});
        let response = send(&invoking(config), message("<a/>")).await.unwrap();
        assert_eq!(response.body.bytes(), body.as_bytes());
        assert_eq!(response.headers.get("http.status"), Some(said));
    }
    // What is no whole fault, or has a status that says more, stays a failure.
    let cut = fault_11("Client").replace("</s:Envelope>", "");
    let answer = fault_11("Client").replace("s:Fault", "Level");
    for (line, headers, body, class) in [
        ("500 X", T11, cut.clone(), Class::Rejected),
        ("200 X", T11, cut, Class::Rejected),
        ("500 X", T11, answer, Class::Outage),
        (
            "500 X",
            "Content-Type: text/html\r\n",
            fault_11("Client"),
            Class::Outage,
        ),
        ("503 X", T11, fault_11("Client"), Class::Outage),
        ("401 X", T11, fault_11("Client"), Class::Outage),
        ("500 X", T11, String::new(), Class::Outage),
    ] {
        let server = server(vec![Act::Say(status(line, headers, &body))]).await;
        let config = json!({"url": server.url(), "soap": {"faults": "pass"}});
        let error = send(&invoking(config), message("<a/>")).await.unwrap_err();
        assert_eq!(error.class, class, "{line} {body}");
    }
}

#[tokio::test]
async fn an_action_may_come_with_its_quotes() {
    let server = server(vec![Act::Say(ok("", ""))]).await;
    for (version, order, sent) in [
        ("1.1", "\"urn:a\"", "soapaction: \"urn:a\"\r\n"),
        ("1.1", "\"\"", "soapaction: \"\"\r\n"),
        ("1.1", "urn:a", "soapaction: \"urn:a\"\r\n"),
        ("1.2", " \"urn:a\" ", "action=\"urn:a\"\r\n"),
    ] {
        let soap = json!({"version": version, "action": "{{ header(\"order-id\") }}"});
        let one = sender(json!({"url": server.url(), "soap": soap}));
        let mut message = message("<a/>");
        message.headers.set("order-id", order);
        send(&one, message).await.unwrap();
        assert!(server.last().contains(sent), "{}", server.last());
    }
    let soap = json!({"action": "{{ header(\"order-id\") }}"});
    let one = sender(json!({"url": server.url(), "soap": soap}));
    for order in ["\"\"urn:a\"\"", "\"", "a\"b"] {
        let mut message = message("<a/>");
        message.headers.set("order-id", order);
        let message = Arc::new(message);
        let context = Context::new("route".into(), message.clone());
        assert!(one.make(message, &context).is_err(), "{order}");
    }
}

#[tokio::test]
async fn soap_requests_are_wrapped_and_mapped() {
    let server = server(vec![Act::Say(ok("", ""))]).await;
    let one = sender(
        json!({"url": server.url(), "soap": {"version": "1.1", "action": "urn:{{ header(\"order-id\") }}"}}),
    );
    send(&one, message("<?xml version='1.0'?><a/>"))
        .await
        .unwrap();
    let request = server.last();
    assert!(
        request.contains("content-type: text/xml; charset=utf-8\r\n"),
        "{request}"
    );
    assert!(request.contains("soapaction: \"urn:7\"\r\n"), "{request}");
    assert!(request.contains(&format!(
        "<soap:Envelope xmlns:soap=\"{NS_11}\"><soap:Body><a/></soap:Body>"
    )));
    let two = sender(json!({"url": server.url(), "soap": {"version": "1.2", "action": "urn:x"}}));
    send(&two, message("<e:Envelope xmlns:e='http://schemas.xmlsoap.org/soap/envelope/'><e:Body><a x='1'>&amp;</a></e:Body></e:Envelope>")).await.unwrap();
    let request = server.last();
    assert!(
        request.contains("content-type: application/soap+xml; charset=utf-8; action=\"urn:x\"\r\n"),
        "{request}"
    );
    assert!(
        request.contains(NS_12)
            && !request.contains(NS_11)
            && request.contains("<a x='1'>&amp;</a>"),
        "{request}"
    );
    assert!(!request.contains("soapaction"), "{request}");
    let context = |message: &Arc<Message>| Context::new("route".into(), message.clone());
    let text = Arc::new(message("no xml"));
    assert!(one.make(text.clone(), &context(&text)).is_err());
}

#[tokio::test]
async fn redirects_are_failures_unless_they_are_followed_on_the_same_host() {
    let moved = |to: &str| Act::Say(status("307 X", &format!("Location: {to}\r\n"), ""));
    let server = server(vec![moved("/y?z=1"), Act::Say(ok("", "there"))]).await;
    let follow = sender(json!({"url": server.url(), "follow": true}));
    let response = send(&follow, message("body")).await.unwrap();
    assert_eq!(response.body.bytes(), "there");
    let request = server.last();
    assert!(
        request.starts_with("POST /y?z=1 ") && request.ends_with("body"),
        "{request}"
    );
    for answer in [
        moved("http://127.0.0.1:1/other"),
        moved("/loop"),
        Act::Say(status("302 X", "Location: /y\r\n", "")),
        Act::Say(status("307 X", "", "")),
    ] {
        let server = self::server(vec![answer]).await;
        let follow = sender(json!({"url": server.url(), "follow": true}));
        let error = send(&follow, message("body")).await.unwrap_err();
        assert_eq!(error.class, Class::Outage, "{error:?}");
        assert!(server.requests.lock().unwrap().len() <= 6);
    }
}

#[tokio::test]
async fn credentials_and_headers_are_sent_as_configured() {
    let server = server(vec![Act::Say(ok("", ""))]).await;
    for (config, line) in [
        (
            json!({"auth": {"basic": {"user": "us", "password": "pw"}}}),
            "authorization: Basic dXM6cHc=\r\n",
        ),
        (
            json!({"auth": {"bearer": "t"}}),
            "authorization: Bearer t\r\n",
        ),
        (
            json!({"auth": {"api_key": {"value": "k"}}}),
            "x-api-key: k\r\n",
        ),
        (
            json!({"headers": {"X-Order": "no {{ header(\"order-id\") }}"}}),
            "x-order: no 7\r\n",
        ),
        (json!({"method": "get"}), "GET /x HTTP/1.1\r\n"),
    ] {
        let mut config = config;
        config["url"] = json!(server.url());
        send(&sender(config), message("a")).await.unwrap();
        assert!(server.last().contains(line), "{line}: {}", server.last());
    }
    assert!(server.last().ends_with("\r\n\r\n") && !server.last().contains("content-type"));
    let mut evil = message("a");
    evil.headers.set("order-id", "7\r\nX-Evil: 1");
    let evil = Arc::new(evil);
    let sender = sender(json!({"url": server.url(), "headers": ["order-id"]}));
    let context = Context::new("route".into(), evil.clone());
    let fault: Fault = sender.make(evil, &context).err().unwrap();
    assert!(fault.for_admin().contains("order-id"), "{fault}");
}

#[test]
fn mistakes_in_a_sender_are_reported() {
    for (config, part) in [
        (
            json!({"url": "{{ header(\"x\") }}/y"}),
            "begins with an expression",
        ),
        (
            json!({"url": "http://{{ header(\"x\") }}/y"}),
            "host or port",
        ),
        (json!({"url": "ftp://a/"}), "not http or https"),
        (
            json!({"url": "http://a/", "method": "GE T"}),
            "request method",
        ),
        (
            json!({"url": "http://a/", "headers": ["Host"]}),
            "set by HTTP",
        ),
        (
            json!({"url": "http://a/", "success": ["ok"]}),
            "neither a status",
        ),
        (
            json!({"url": "http://a/", "soap": "1.1", "method": "PUT"}),
            "POST",
        ),
        (
            json!({"url": "http://a/", "soap": {"faults": "pass"}}),
            "would count as delivered",
        ),
        (
            json!({"url": "https://a/", "tls": {"cert": "/c"}}),
            "go together",
        ),
        (
            json!({"url": "https://a/", "tls": {"ca": "/does/not/exist"}}),
            "cannot be read",
        ),
        (json!({"url": "http://a/", "tls": {}}), "http:// address"),
        (
            json!({"url": "http://u:p@a/", "auth": {"bearer": "t"}}),
            "credentials stand twice",
        ),
        (
            json!({"url": "http://a/", "auth": {"bearer": "a\nb"}}),
            "no header can hold",
        ),
    ] {
        let (sender, problems) = made(config.clone());
        assert!(
            problems.iter().any(|p| p.message.contains(part)),
            "{config}: {problems:?}"
        );
        drop(sender);
    }
}

mod secure {
    //! TLS both ways, between this crate's own sender and receiver.

    use super::*;
    use crate::door::{Door, Entry, Stub};
    use crate::{Hub, Limits, ListenerSettings, ListenerTls, Settings, receiver};
    use futures_util::FutureExt;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use std::path::{Path, PathBuf};
    use xbus_core::{Arrival, Reply, Status, Stop};

    struct Authority {
        dir: tempfile::TempDir,
        issuer: Issuer<'static, KeyPair>,
    }

    fn authority() -> Authority {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "Test CA");
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate.pem()).unwrap();
        Authority {
            dir,
            issuer: Issuer::new(params, key),
        }
    }

    impl Authority {
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Files `NAME.pem` and `NAME.key` of a certificate for `name`.
        fn issue(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (PathBuf, PathBuf) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params.extended_key_usages = vec![usage];
            let certificate = params.signed_by(&key, &self.issuer).unwrap();
            let (cert_path, key_path) = (
                self.path(&format!("{name}.pem")),
                self.path(&format!("{name}.key")),
            );
            std::fs::write(&cert_path, certificate.pem()).unwrap();
            std::fs::write(&key_path, key.serialize_pem()).unwrap();
            (cert_path, key_path)
        }
    }

    async fn hub(authority: &Authority, client_ca: Option<&Path>) -> (Arc<Hub>, u16) {
        hub_that(authority, client_ca, true).await
    }

    async fn hub_that(
        authority: &Authority,
        client_ca: Option<&Path>,
        client_optional: bool,
    ) -> (Arc<Hub>, u16) {
        let (cert, key) = authority.issue("server", ExtendedKeyUsagePurpose::ServerAuth);
        let mut listener = ListenerSettings::at("127.0.0.1:0");
        listener.tls = Some(ListenerTls {
            cert,
            key,
            client_ca: client_ca.map(Path::to_owned),
            client_optional,
        });
        let hub = Hub::new(Settings {
            listeners: [("default".to_owned(), listener)].into(),
            limits: Limits::default(),
        });
        let port = hub.listen().await.unwrap()[0].1.port();
        (hub, port)
    }

    fn attach(hub: &Arc<Hub>, receiver: serde_json::Value) {
        let stub: Arc<Stub> = Arc::new(|arrival: Arrival| {
            async move {
                let mut message =
                    Message::new(arrival.caller.as_deref().unwrap_or("nobody").to_owned());
                message.headers.set("content-type", "text/plain");
                Ok(Reply {
                    id: arrival.message.id,
                    status: Status::Delivered,
                    message: Some(Arc::new(message)),
                    http_status: None,
                    headers: Default::default(),
                })
            }
            .boxed()
        });
        let node = node(receiver);
        let (config, problems) =
            with_build(|bus| receiver::build(hub, Args::new(Some(&node), receiver::FIELDS, bus)));
        assert!(problems.is_empty(), "{problems:?}");
        let door = Door::new(Arc::new(config.unwrap()), "route".into(), Entry::Stub(stub));
        tokio::spawn(receiver::open(hub, door, Stop::new()).unwrap());
        hub.start(&Workers::default());
    }

    #[tokio::test]
    async fn a_server_is_believed_only_when_the_authority_signed_it() {
        let authority = authority();
        let (hub, port) = hub(&authority, None).await;
        attach(&hub, json!({"path": "/a"}));
        let url = format!("https://localhost:{port}/a");
        let ca = authority.path("ca.pem");
        let good = sender(json!({"url": url, "tls": {"ca": ca}}));
        for _ in 0..2 {
            let response = send(&good, message("x")).await.unwrap();
            assert_eq!(response.body.bytes(), "nobody");
        }
        let other = self::authority();
        for config in [
            json!({"url": url, "tls": {"ca": other.path("ca.pem")}}),
            json!({"url": format!("https://127.0.0.1:{port}/a"), "tls": {"ca": ca}}),
            json!({"url": url}),
        ] {
            let error = send(&sender(config), message("x")).await.unwrap_err();
            assert_eq!(error.class, Class::Outage, "{error:?}");
        }
    }

    #[tokio::test]
    async fn client_certificates_say_who_is_calling() {
        let authority = authority();
        let ca = authority.path("ca.pem");
        let (hub, port) = hub(&authority, Some(&ca)).await;
        attach(
            &hub,
            json!({"path": "/a", "auth": {"client_certificate": ["shop"]}}),
        );
        let url = format!("https://localhost:{port}/a");
        let with = |name: &str| {
            let (cert, key) = authority.issue(name, ExtendedKeyUsagePurpose::ClientAuth);
            sender(json!({"url": url, "tls": {"ca": ca, "cert": cert, "key": key}}))
        };
        let response = send(&with("shop"), message("x")).await.unwrap();
        assert_eq!(response.body.bytes(), "CN=shop");
        for sender in [
            with("other"),
            sender(json!({"url": url, "tls": {"ca": ca}})),
        ] {
            let error = send(&sender, message("x")).await.unwrap_err();
            assert!(error.detail.contains("403"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_session_that_is_refused_is_an_outage() {
        let authority = authority();
        let ca = authority.path("ca.pem");
        let (hub, port) = hub_that(&authority, Some(&ca), false).await;
        attach(&hub, json!({"path": "/a"}));
        let url = format!("https://localhost:{port}/a");
        let other = self::authority();
        let (cert, key) = other.issue("shop", ExtendedKeyUsagePurpose::ClientAuth);
        for config in [
            json!({"url": url, "tls": {"ca": ca}}),
            json!({"url": url, "tls": {"ca": ca, "cert": cert, "key": key}}),
        ] {
            let sender = sender(config);
            for size in [1, 90_000, 3_000_000] {
                let out = Message::new("x".repeat(size));
                let error = send(&sender, out).await.unwrap_err();
                assert_eq!(error.class, Class::Outage, "{size}: {error:?}");
                assert!(error.detail.contains("refused"), "{error:?}");
            }
        }
    }

    #[tokio::test]
    async fn plain_requests_to_a_secure_port_and_the_other_way_round_just_fail() {
        let authority = authority();
        let (hub, port) = hub(&authority, None).await;
        attach(&hub, json!({"path": "/a"}));
        let plain = sender(json!({"url": format!("http://localhost:{port}/a")}));
        let error = send(&plain, message("x")).await.unwrap_err();
        assert_eq!(error.class, Class::Unknown, "{error:?}");
        let mut raw = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        raw.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = raw.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"));
    }
}
