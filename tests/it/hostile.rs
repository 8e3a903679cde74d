//! Hostile input: requests, documents and scripts. A fault in the caller's own shape, quickly, in
//! bounded memory, and the next request is served.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{Bus, Installation, http, post, wait_for};

const SOAP11: &str = "http://schemas.xmlsoap.org/soap/envelope/";

/// Reads everything of what it gets: XML, JSON, text.
fn reading() -> Installation {
    let installation = Installation::new();
    installation
        .route(
            "soap",
            "receive: { http: { path: /soap, soap: \"1.1\", wellformed: true } }\nreply: { transform: count.rhai }\n",
        )
        .route(
            "xml",
            "receive: { http: { path: /xml, format: xml } }\nreply: { transform: count.rhai }\n",
        )
        .route(
            "json",
            "receive: { http: { path: /json, format: json } }\nreply: { transform: json.rhai }\n",
        )
        .script("count.rhai", "element(\"n\", xpath(\"count(//*)\").to_string())")
        .script("json.rhai", "#{ kind: type_of(body) }");
    installation
}

/// Posts, and sees to it that the answer comes within a second or so and the bus goes on.
#[track_caller]
fn refused(
    bus: &Bus<'_>,
    path: &str,
    content_type: &str,
    body: &[u8],
    what: &str,
) -> http::Response {
    let started = Instant::now();
    let got = post(bus.http, path, content_type, body);
    let took = started.elapsed();
    assert!(
        (400..=599).contains(&got.status),
        "{what}: {} {}",
        got.status,
        head(&got)
    );
    assert!(
        !head(&got).to_lowercase().contains("<html"),
        "{what}: {}",
        head(&got)
    );
    // Generous to a busy machine; the point is that nothing hangs.
    assert!(took < Duration::from_secs(10), "{what} took {took:?}");
    if path == "/soap" {
        assert!(got.text().contains("faultcode"), "{what}: {}", head(&got));
        assert!(
            got.status == 500 || got.status == 413 || got.status == 415,
            "{what}: {}",
            got.status
        );
    }
    got
}

fn head(got: &http::Response) -> String {
    got.text().chars().take(500).collect()
}

fn envelope(inner: &str) -> String {
    format!("<e:Envelope xmlns:e='{SOAP11}'><e:Body>{inner}</e:Body></e:Envelope>")
}

#[test]
fn malformed_and_hostile_documents_are_refused_in_the_callers_shape() {
    let installation = reading();
    let bus = installation.start();
    let before = bus.resident_kib();
    let deep = "<a>".repeat(100_000) + &"</a>".repeat(100_000);
    let deep_open = "<a>".repeat(1_000_000);
    let attributes: String = (0..1_000_000).map(|n| format!(" a{n}='1'")).collect();
    let laughs = "<!DOCTYPE l [<!ENTITY a 'lol'><!ENTITY b '&a;&a;&a;&a;&a;&a;&a;&a;'><!ENTITY c '&b;&b;&b;&b;&b;&b;&b;&b;'>]>";
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("only space", b"   \n".to_vec()),
        ("not XML", b"hello".to_vec()),
        ("unclosed", b"<a><b></a>".to_vec()),
        ("truncated", envelope("<a/>").as_bytes()[..60].to_vec()),
        ("two roots", b"<a/><b/>".to_vec()),
        ("doctype", format!("{laughs}<a>&c;</a>").into_bytes()),
        (
            "external entity",
            b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a>&x;</a>".to_vec(),
        ),
        ("undefined entity", envelope("<a>&nope;</a>").into_bytes()),
        ("deep", envelope(&deep).into_bytes()),
        ("deep and open", deep_open.into_bytes()),
        (
            "attributes",
            envelope(&format!("<a{attributes}/>")).into_bytes(),
        ),
        (
            "same attribute twice",
            envelope("<a x='1' x='2'/>").into_bytes(),
        ),
        ("undeclared prefix", envelope("<p:a/>").into_bytes()),
        ("control character", envelope("<a>\u{1}</a>").into_bytes()),
        (
            "invalid UTF-8",
            [b"<a>".as_slice(), &[0xff, 0xfe, 0x00, 0xc3], b"</a>"].concat(),
        ),
        (
            "unknown charset",
            b"<?xml version='1.0' encoding='klingon'?><a/>".to_vec(),
        ),
        ("nul", vec![0; 1000]),
    ];
    for (what, body) in &cases {
        refused(&bus, "/soap", "text/xml", body, what);
        if *what != "attributes" && *what != "deep" {
            refused(&bus, "/xml", "application/xml", body, what);
        }
        let fine = post(bus.http, "/soap", "text/xml", envelope("<a/>").as_bytes());
        assert_eq!(fine.status, 200, "after {what}: {}", head(&fine));
    }
    let json_deep = "[".repeat(1_000_000);
    for (what, body) in [
        ("deep JSON", json_deep.as_str()),
        ("truncated JSON", "{\"a\":"),
        ("empty JSON", ""),
        ("not JSON", "<a/>"),
    ] {
        refused(&bus, "/json", "application/json", body.as_bytes(), what);
    }
    let after = bus.resident_kib();
    assert!(
        after < before + 300 * 1024,
        "resident {before} KiB before, {after} KiB after"
    );
}

#[test]
fn a_body_beyond_the_limit_is_413_and_not_read_on() {
    let installation = reading();
    let bus = installation.start();
    let mut stream = TcpStream::connect(bus.http).expect("a connection");
    stream
        .write_all(b"POST /soap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 10000000000\r\n\r\n")
        .expect("written");
    let got = http::read_response(&mut stream).expect("an answer without the body");
    assert_eq!(got.status, 413, "{}", head(&got));
    // Without a length.
    let mut stream = TcpStream::connect(bus.http).expect("a connection");
    stream
        .write_all(b"POST /json HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        .expect("written");
    let chunk = format!("100000\r\n{}\r\n", " ".repeat(0x10_0000));
    for _ in 0..30 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let got = http::read_response(&mut stream);
    assert!(got.is_err() || got.is_ok_and(|got| got.status == 413));
}

#[test]
fn ambiguous_and_broken_requests_are_refused() {
    let installation = reading();
    let bus = installation.start();
    for (what, raw) in [
        (
            "two lengths",
            "POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        ),
        (
            "length and chunks",
            "POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        ),
        (
            "a broken chunk",
            "POST /json HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        ),
        (
            "an odd coding",
            "POST /json HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n{}",
        ),
        (
            "a negative length",
            "POST /json HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n{}",
        ),
        ("not HTTP", "\u{16}\u{3}\u{1}hello\r\n\r\n"),
    ] {
        match http::raw_request(bus.http, raw.as_bytes()) {
            Ok(got) => assert!(
                (400..=599).contains(&got.status),
                "{what}: {} {}",
                got.status,
                head(&got)
            ),
            Err(error) => assert_ne!(error.kind(), std::io::ErrorKind::TimedOut, "{what}"),
        }
    }
    let many: String = (0..200).map(|n| format!("X-H{n}: 1\r\n")).collect();
    let got = http::raw_request(
        bus.http,
        format!("POST /json HTTP/1.1\r\nHost: x\r\n{many}Content-Length: 2\r\n\r\n{{}}").as_bytes(),
    )
    .expect("an answer");
    assert!((400..500).contains(&got.status), "{}", got.status);
    assert_eq!(
        post(bus.http, "/json", "application/json", b"{}").status,
        200
    );
}

#[test]
fn slow_heads_and_bodies_end_in_their_time_and_block_nobody() {
    let installation = reading();
    let config =
        installation.read("xbus.yaml") + "limits: { head_timeout: 500ms, body_pause: 500ms }\n";
    installation.file("xbus.yaml", config);
    let bus = installation.start();
    let slow = |start: &str| {
        let mut stream = TcpStream::connect(bus.http).expect("a connection");
        stream.write_all(start.as_bytes()).expect("written");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("a socket");
        stream
    };
    let mut open: Vec<TcpStream> = (0..50)
        .map(|_| slow("POST /json HTTP/1.1\r\nHos"))
        .chain((0..50).map(|_| {
            slow("POST /json HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
        }))
        .collect();
    assert_eq!(
        post(bus.http, "/json", "application/json", b"{}").status,
        200
    );
    for stream in &mut open {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the bus ends it");
    }
}

#[test]
fn a_compressed_bomb_is_refused() {
    let installation = reading();
    let bus = installation.start();
    // 64 MiB of zeros as gzip: a stored prefix cannot be this small, so it is made by the tool.
    let bomb = std::process::Command::new("sh")
        .args(["-c", "head -c 67108864 /dev/zero | gzip -9"])
        .output()
        .expect("gzip")
        .stdout;
    assert!(bomb.len() < 1 << 20);
    let got = crate::support::request(
        bus.http,
        "POST",
        "/json",
        &[
            ("Content-Type", "application/json"),
            ("Content-Encoding", "gzip"),
        ],
        &bomb,
    )
    .expect("an answer");
    assert_eq!(got.status, 413, "{}", head(&got));
    assert!(bus.resident_kib() < 300 * 1024);
}

#[test]
fn hostile_scripts_end_within_their_limits_and_the_process_lives() {
    let installation = Installation::new();
    let scripts = [
        ("loop", "loop { }"),
        ("recursion", "fn f(n) { f(n + 1) } f(0)"),
        ("mutual", "fn a(n) { b(n) } fn b(n) { a(n) } a(0)"),
        ("doubling", "let s = \"x\"; loop { s += s; }"),
        (
            "nested",
            "let a = []; loop { let b = []; b.push(a); a = b; }",
        ),
        ("nested-map", "let a = #{}; loop { a = #{ a: a }; }"),
        ("array", "let a = []; loop { a.push(1); }"),
        ("pad", "let a = []; a.pad(1000000000, 0); a"),
        ("pad-text", "let s = \"\"; s.pad(1000000000, 'x'); s"),
        (
            "closures",
            "let f = || 1; loop { let g = f; f = || g.call(); }",
        ),
        ("blob", "let b = blob(1000000000); b"),
        (
            "range",
            "let n = 0; for i in 0..1000000000000 { n += i; } n",
        ),
        ("sleep", "sleep(1000); 1"),
        ("eval", "eval(\"1\")"),
        (
            "xml",
            "let e = element(\"a\", \"\"); loop { e = element(\"a\", [e, e]); } e",
        ),
    ];
    let mut refused_at_load = Vec::new();
    for (name, script) in scripts {
        installation.script("s.rhai", script);
        installation.route(
            "s",
            "receive: { http: { path: /s } }\nreply: { transform: s.rhai }\n",
        );
        if installation.xbus(&["check", "."]).status.success() {
            installation.script(&format!("{name}.rhai"), script);
            installation.route(
                name,
                &format!("receive: {{ http: {{ path: /{name} }} }}\nreply: {{ transform: {name}.rhai }}\n"),
            );
        } else {
            refused_at_load.push(name);
        }
    }
    std::fs::remove_file(installation.path().join("routes/s.yaml")).expect("removed");
    installation.route(
        "fine",
        "receive: { http: { path: /fine } }\nreply: { transform: fine.rhai }\n",
    );
    installation.script("fine.rhai", "#{ fine: true }");
    assert!(refused_at_load.len() <= 4, "{refused_at_load:?}");
    let bus = installation.start();
    let before = bus.resident_kib();
    for (name, _) in scripts {
        if refused_at_load.contains(&name) {
            continue;
        }
        let got = post(bus.http, &format!("/{name}"), "application/json", b"{}");
        assert_eq!(got.status, 500, "{name}: {}", head(&got));
        assert_eq!(got.json()["fault"]["code"], "transform", "{name}");
        assert_eq!(
            post(bus.http, "/fine", "application/json", b"{}").status,
            200,
            "after {name}"
        );
    }
    let after = bus.resident_kib();
    assert!(
        after < before + 300 * 1024,
        "resident {before} KiB before, {after} KiB after"
    );
}

#[test]
fn a_script_error_names_file_line_column_and_quotes_the_line() {
    let installation = Installation::new();
    installation.route(
        "r",
        "receive: { http: { path: /r } }\nreply: { transform: bad.rhai }\n",
    );
    installation.script("bad.rhai", "let a = 1;\nlet b = body.list[7] + 1;\nb\n");
    let bus = installation.start();
    let got = post(bus.http, "/r", "application/json", b"{\"list\":[1]}");
    assert_eq!(got.status, 500);
    assert!(
        !got.text().contains("body.list"),
        "callers see no source: {}",
        got.text()
    );
    let shown = wait_for("the journal", || {
        let output = installation.xbus(&["messages", "show", &got.id(), "--json"]);
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    });
    assert!(shown.contains("bad.rhai:2:"), "{shown}");
    assert!(shown.contains("let b = body.list[7] + 1;"), "{shown}");
    assert!(installation.log().contains("bad.rhai:2:"));
}

#[test]
fn a_caller_that_hangs_up_cancels_nothing() {
    let (arrived, arrival) = std::sync::mpsc::channel();
    let (go, going) = std::sync::mpsc::channel::<()>();
    let (arrived, going) = (std::sync::Mutex::new(arrived), std::sync::Mutex::new(going));
    let slow = crate::support::Destination::with(move |_| {
        let _ = arrived.lock().expect("unpoisoned").send(());
        let _ = going.lock().expect("unpoisoned").recv();
        crate::support::Answer::ok()
    });
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r }} }}\ninvoke:\n  - name: slow\n    http: {{ url: \"{}\" }}\ndistribute:\n  - name: file\n    file: {{ dir: out, name: \"{{{{ id }}}}\" }}\n",
            slow.url("/")
        ),
    );
    let bus = installation.start();
    let mut stream = TcpStream::connect(bus.http).expect("a connection");
    stream
        .write_all(b"POST /r HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
        .expect("written");
    arrival.recv().expect("the destination is called");
    drop(stream);
    go.send(()).expect("the destination waits");
    wait_for("the file", || {
        (installation.names("out").len() == 1).then_some(())
    });
    wait_for("the journal", || {
        (bus.json(&["messages"])[0]["outcome"] == "delivered").then_some(())
    });
}
