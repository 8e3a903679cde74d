//! What destinations can do wrong, and what the caller is told: status, code and shape.

use std::time::Duration;

use crate::support::{Answer, Destination, Installation, free_port, post, request};

fn asking(url: &str) -> Installation {
    let installation = Installation::new();
    installation
        .route(
            "ask",
            &format!(
                "receive: {{ http: {{ path: /ask }} }}\ninvoke:\n  - name: service\n    http: {{ url: \"{url}\" }}\n    timeout: 500ms\n"
            ),
        )
        .route(
            "soap11",
            &format!(
                "receive: {{ http: {{ path: /soap11, soap: \"1.1\" }} }}\ninvoke:\n  - name: service\n    http: {{ url: \"{url}\" }}\n    timeout: 500ms\n"
            ),
        )
        .route(
            "soap12",
            &format!(
                "receive: {{ http: {{ path: /soap12, soap: \"1.2\" }} }}\ninvoke:\n  - name: service\n    http: {{ url: \"{url}\" }}\n    timeout: 500ms\n"
            ),
        );
    installation
}

/// Each failure of a destination gives its status and code, in time, and the next request is served.
#[test]
fn each_failure_of_a_destination_has_its_status_and_code() {
    let service = Destination::start();
    let mut installation = asking(&service.url("/"));
    installation.env("RUST_BACKTRACE", "1");
    let bus = installation.start();
    let cases: Vec<(&str, Answer, u16, &str)> = vec![
        (
            "500",
            Answer::Status(500, "text/plain", b"x".to_vec()),
            502,
            "destination",
        ),
        (
            "404",
            Answer::Status(404, "text/plain", b"x".to_vec()),
            502,
            "destination",
        ),
        (
            "400",
            Answer::Status(400, "text/plain", b"x".to_vec()),
            502,
            "destination",
        ),
        (
            "a redirect",
            Answer::Raw(
                b"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                    .to_vec(),
            ),
            502,
            "destination",
        ),
        (
            "hangs",
            Answer::Hang(Duration::from_secs(20)),
            504,
            "timeout",
        ),
        ("closes", Answer::Close, 504, "in-doubt"),
        (
            "garbage",
            Answer::Raw(b"\x00\x01garbage\r\n\r\n".to_vec()),
            504,
            "in-doubt",
        ),
        (
            "half a body",
            Answer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec()),
            504,
            "in-doubt",
        ),
    ];
    for (name, answer, status, code) in cases {
        service.now(move |_| answer.clone());
        let got = post(bus.http, "/ask", "application/json", b"{}");
        assert_eq!(got.status, status, "{name}: {}", got.text());
        let fault = &got.json()["fault"];
        assert_eq!(fault["code"], code, "{name}: {}", got.text());
        assert_eq!(fault["step"], "service", "{name}");
        assert!(!got.text().contains("127.0.0.1"), "{name}: {}", got.text());
        service.now(|_| Answer::ok());
        assert_eq!(
            post(bus.http, "/ask", "application/json", b"{}").status,
            200,
            "after {name}"
        );
    }
}

#[test]
fn an_answer_beyond_the_limit_is_a_failed_destination() {
    let service = Destination::with(|_| {
        Answer::Status(200, "application/octet-stream", vec![b'x'; 11 << 20])
    });
    let installation = asking(&service.url("/"));
    let bus = installation.start();
    let got = post(bus.http, "/ask", "application/json", b"{}");
    assert!(got.status == 502 || got.status == 504, "{}", got.status);
    assert!(got.json()["fault"]["code"].is_string());
}

#[test]
fn a_destination_that_refuses_is_502_and_tells_no_address() {
    let port = free_port();
    let installation = asking(&format!("http://user:geheim@127.0.0.1:{port}/"));
    let bus = installation.start();
    let got = post(bus.http, "/ask", "application/json", b"{}");
    assert_eq!(got.status, 502, "{}", got.text());
    assert!(!got.text().contains(&port.to_string()), "{}", got.text());
    let shown = bus.json(&["messages", "show", &got.id()]).to_string();
    assert!(
        shown.contains(&port.to_string()),
        "administrators see where: {shown}"
    );
    assert!(!shown.contains("geheim") && !installation.log().contains("geheim"));
}

#[test]
fn faults_take_the_callers_shape() {
    let service = Destination::with(|_| Answer::Status(500, "text/plain", Vec::new()));
    let installation = asking(&service.url("/"));
    let bus = installation.start();
    let soap11 = "<s:Envelope xmlns:s='http://schemas.xmlsoap.org/soap/envelope/'><s:Body><a/></s:Body></s:Envelope>";
    let soap12 = "<s:Envelope xmlns:s='http://www.w3.org/2003/05/soap-envelope'><s:Body><a/></s:Body></s:Envelope>";

    let got = post(bus.http, "/soap11", "text/xml", soap11.as_bytes());
    assert_eq!(got.status, 500);
    assert!(
        got.header("content-type")
            .is_some_and(|t| t.starts_with("text/xml"))
    );
    for part in [
        "http://schemas.xmlsoap.org/soap/envelope/",
        "faultcode",
        "Server",
        "code=\"destination\"",
        &got.id(),
    ] {
        assert!(got.text().contains(part), "no {part} in {}", got.text());
    }

    let got = post(
        bus.http,
        "/soap12",
        "application/soap+xml",
        soap12.as_bytes(),
    );
    assert_eq!(got.status, 500);
    assert!(
        got.header("content-type")
            .is_some_and(|t| t.starts_with("application/soap+xml"))
    );
    for part in [
        "http://www.w3.org/2003/05/soap-envelope",
        "Receiver",
        "code=\"destination\"",
    ] {
        assert!(got.text().contains(part), "no {part} in {}", got.text());
    }

    let got = post(bus.http, "/ask", "text/xml", b"<a/>");
    assert_eq!(got.status, 502);
    assert!(
        got.text().contains("<fault xmlns=\"urn:xbus:reply:1\""),
        "{}",
        got.text()
    );

    let got = request(
        bus.http,
        "POST",
        "/ask",
        &[("Content-Type", "text/xml"), ("Accept", "application/json")],
        b"<a/>",
    )
    .expect("an answer");
    assert!(got.json()["fault"].is_object());

    // No such path, wrong method, wrong type, malformed.
    assert_eq!(
        post(bus.http, "/nowhere", "application/json", b"{}").json()["fault"]["code"],
        "not-found"
    );
    let got = request(bus.http, "DELETE", "/ask", &[], b"").expect("an answer");
    assert_eq!(got.status, 405);
    assert!(
        got.header("allow")
            .is_some_and(|allow| allow.contains("POST"))
    );
    assert_eq!(
        post(bus.http, "/soap11", "application/json", b"{}").status,
        415
    );
    let got = post(
        bus.http,
        "/soap12",
        "application/soap+xml",
        b"<s:Envelope xmlns:s='http://www.w3.org/2003/05/soap-envelope'><s:Body>",
    );
    assert_eq!(got.status, 400, "{}", got.text());
    assert!(got.text().contains("Sender"), "{}", got.text());
}

#[test]
fn who_is_not_let_in_is_told_so() {
    let mut installation = Installation::new();
    installation.route(
        "r",
        "receive:\n  http: { path: /r, auth: { basic: { anna: \"${PASSWORD}\" } } }\nreply: { transform: r.rhai }\n",
    );
    installation.script("r.rhai", "#{ headers: header(\"authorization\") == () }");
    installation.env("PASSWORD", "geh:eim");
    let bus = installation.start();
    let call = |header: &[(&str, &str)]| {
        request(bus.http, "POST", "/r", header, b"{}").expect("an answer")
    };
    assert_eq!(call(&[]).status, 401);
    assert_eq!(
        call(&[("Authorization", "Basic YW5uYTp3cm9uZw==")]).status,
        401
    );
    let good = call(&[("Authorization", "Basic YW5uYTpnZWg6ZWlt")]);
    assert_eq!(good.status, 200, "{}", good.text());
    assert_eq!(
        good.json()["headers"],
        true,
        "credentials never become headers"
    );
}

#[test]
fn no_target_wants_it_or_the_otherwise_does() {
    let installation = Installation::new();
    installation.route(
        "strict",
        "receive: { http: { path: /strict } }\ndistribute:\n  - name: a\n    when: 'body.kind == \"a\"'\n    file: { dir: a, name: \"{{ id }}\" }\n",
    );
    installation.route(
        "open",
        "receive: { http: { path: /open } }\ndistribute:\n  - name: a\n    when: 'body.kind == \"a\"'\n    file: { dir: a, name: \"{{ id }}\" }\n  - name: rest\n    otherwise: true\n    file: { dir: rest, name: \"{{ id }}\" }\n",
    );
    installation.route(
        "lax",
        "receive: { http: { path: /lax } }\nunmatched: drop\ndistribute:\n  - name: a\n    when: 'body.kind == \"a\"'\n    file: { dir: a, name: \"{{ id }}\" }\n",
    );
    let bus = installation.start();
    let call = |path: &str, kind: &str| {
        post(
            bus.http,
            path,
            "application/json",
            format!("{{\"kind\":\"{kind}\"}}").as_bytes(),
        )
    };
    let refused = call("/strict", "b");
    assert_eq!(
        (refused.status, refused.json()["fault"]["code"].as_str()),
        (422, Some("unroutable"))
    );
    assert_eq!(call("/lax", "b").json()["status"], "filtered");
    assert_eq!(call("/open", "b").json()["status"], "delivered");
    assert_eq!(installation.names("rest").len(), 1);
    assert_eq!(call("/open", "a").json()["status"], "delivered");
    assert_eq!(
        (
            installation.names("a").len(),
            installation.names("rest").len()
        ),
        (1, 1)
    );
}

#[test]
fn what_is_too_much_is_shed_with_a_time_to_come_again() {
    let slow = Destination::with(|_| {
        std::thread::sleep(Duration::from_millis(800));
        Answer::ok()
    });
    let installation = Installation::new();
    installation
        .route(
            "narrow",
            &format!(
                "receive: {{ http: {{ path: /narrow }} }}\nconcurrency: 1\nqueue_for: 100ms\ninvoke:\n  - name: s\n    http: {{ url: \"{}\" }}\n",
                slow.url("/")
            ),
        )
        .route(
            "paced",
            "receive: { http: { path: /paced } }\nrate: 2/h\nqueue_for: 100ms\nreply: { transform: r.rhai }\n",
        )
        .script("r.rhai", "#{}");
    let bus = installation.start();
    let statuses: Vec<crate::support::Response> = std::thread::scope(|scope| {
        let all: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| post(bus.http, "/narrow", "application/json", b"{}")))
            .collect();
        all.into_iter()
            .map(|one| one.join().expect("a caller"))
            .collect()
    });
    assert!(statuses.iter().any(|got| got.status == 200));
    let shed = statuses
        .iter()
        .find(|got| got.status == 503)
        .expect("one is shed");
    assert!(shed.header("retry-after").is_some());
    assert_eq!(shed.json()["fault"]["code"], "overloaded");
    let paced: Vec<u16> = (0..3)
        .map(|_| post(bus.http, "/paced", "application/json", b"{}").status)
        .collect();
    assert_eq!(paced, [200, 200, 429]);
}

/// `on_fault` targets get the fault as JSON, beside the caller.
#[test]
fn a_fault_is_handed_to_on_fault_targets() {
    let service = Destination::with(|_| Answer::Status(500, "text/plain", b"boom".to_vec()));
    let installation = Installation::new();
    installation
        .route(
            "r",
            &format!(
                "receive: {{ http: {{ path: /r }} }}\ninvoke:\n  - name: s\n    http: {{ url: \"{}\" }}\non_fault:\n  - name: note\n    transform: note.rhai\n    file: {{ dir: faults, name: \"{{{{ id }}}}.json\" }}\n",
                service.url("/")
            ),
        )
        .script("note.rhai", "#{ code: body.code, step: body.step, order: received.body.no }");
    let bus = installation.start();
    let got = post(bus.http, "/r", "application/json", b"{\"no\":5}");
    assert_eq!(got.status, 502);
    let note: serde_json::Value =
        serde_json::from_str(&installation.read(&format!("faults/{}.json", got.id())))
            .expect("JSON");
    assert_eq!(
        note,
        serde_json::json!({"code": "destination", "step": "s", "order": 5})
    );
}
