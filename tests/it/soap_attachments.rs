//! SOAP with attachments and MTOM, both ways, and forms with files.

use crate::support::http::find;
use crate::support::python::{Service, program};
use crate::support::rabbit::Rabbit;
use crate::support::{Answer, Bus, Destination, Installation, Response, request};

const SOAP_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
const SOAP_12: &str = "http://www.w3.org/2003/05/soap-envelope";
const XOP: &str = "http://www.w3.org/2004/08/xop/include";
/// What no text is, with what could be taken for a boundary.
const OCTETS: &[u8] = b"\x00\xff\r\n--\r\n--b--x\r\n\r\n\x80";

/// The same as base64.
const BASE64: &str = "AP8NCi0tDQotLWItLXgNCg0KgA==";

fn envelope(namespace: &str, content: &str) -> String {
    format!(
        "<?xml version='1.0'?>\n<e:Envelope xmlns:e=\"{namespace}\" xmlns:x=\"{XOP}\"><e:Body>{content}</e:Body></e:Envelope>\n"
    )
}

fn scan(namespace: &str) -> String {
    envelope(
        namespace,
        "<s:Scan xmlns:s=\"urn:s\"><s:page><x:Include href=\"cid:page%40x\"/></s:page></s:Scan>",
    )
}

/// A part: its headers (lines without the last line end) and its octets.
type Part<'a> = (&'a str, &'a [u8]);

fn multipart(parts: &[Part<'_>]) -> Vec<u8> {
    let mut out = b"a preamble\r\n".to_vec();
    for (head, body) in parts {
        out.extend(format!("--b\r\n{head}\r\n\r\n").as_bytes());
        out.extend_from_slice(body);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"--b--\r\n");
    out
}

const PAGE: &str = "Content-Type: image/tiff\r\nContent-ID: <page@x>\r\n\
                    Content-Disposition: attachment; filename*=UTF-8''Seite%20%C3%A4.tif";

/// A scan as MTOM, with a part that nothing refers to; content type and body.
fn mtom(namespace: &str) -> (String, Vec<u8>) {
    let info = match namespace {
        SOAP_11 => "text/xml",
        _ => "application/soap+xml",
    };
    let root = format!(
        "Content-Type: application/xop+xml; charset=UTF-8; type=\"{info}\"\r\nContent-ID: <root@x>"
    );
    let body = multipart(&[
        (&root, scan(namespace).as_bytes()),
        (PAGE, OCTETS),
        (
            "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable",
            b"=C3=A4",
        ),
    ]);
    let content_type = format!(
        "multipart/related; boundary=b; type=\"application/xop+xml\"; start=\"<root@x>\"; \
         start-info=\"{info}\"; action=\"urn:scan\""
    );
    (content_type, body)
}

fn swa() -> (String, Vec<u8>) {
    let root = envelope(SOAP_11, "<s:Scan xmlns:s=\"urn:s\" href=\"cid:page@x\"/>");
    let body = multipart(&[
        ("Content-Type: text/xml; charset=utf-8", root.as_bytes()),
        (PAGE, OCTETS),
    ]);
    let content_type = "multipart/related; type=\"text/xml\"; boundary=b".to_owned();
    (content_type, body)
}

/// The parts of what the bus sent, by its boundary: the lines of each head, in small letters up to
/// the colon, and its octets.
#[track_caller]
fn parts(content_type: &str, body: &[u8]) -> Vec<(Vec<String>, Vec<u8>)> {
    let boundary = content_type
        .split("boundary=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap_or_else(|| panic!("no boundary in {content_type}"));
    let first = format!("--{boundary}\r\n");
    let next = format!("\r\n--{boundary}");
    let mut rest = body
        .strip_prefix(first.as_bytes())
        .expect("it begins with the boundary");
    let mut parts = Vec::new();
    loop {
        let end = find(rest, next.as_bytes()).expect("the next boundary");
        let part = &rest[..end];
        let head = find(part, b"\r\n\r\n").expect("the end of the head");
        let lines = String::from_utf8(part[..head].to_vec()).expect("a head");
        parts.push((
            lines.split("\r\n").map(str::to_owned).collect(),
            part[head + 4..].to_vec(),
        ));
        rest = &rest[end + next.len()..];
        if rest == b"--\r\n" {
            return parts;
        }
        rest = rest.strip_prefix(b"\r\n").expect("a boundary's line");
    }
}

fn post(bus: &Bus<'_>, path: &str, (content_type, body): &(String, Vec<u8>)) -> Response {
    let headers = [
        ("Content-Type", content_type.as_str()),
        ("SOAPAction", "\"urn:scan\""),
    ];
    request(bus.http, "POST", path, &headers, body).expect("an answer")
}

fn step(system: &Destination, version: &str, attach: &str) -> String {
    format!(
        "http: {{ url: \"{}\", soap: \"{version}\"{attach} }}",
        system.url("/t")
    )
}

/// A route that passes envelopes on and answers what comes back.
fn proxy(system: &Destination, version: &str, attach: &str) -> String {
    format!(
        "receive: {{ http: {{ path: /r, soap: any }} }}\ninvoke:\n  - name: t\n    {}\n",
        step(system, version, attach)
    )
}

fn soap_ok() -> Answer {
    Answer::Status(
        200,
        "text/xml; charset=utf-8",
        envelope(SOAP_11, "<ok/>").into_bytes(),
    )
}

#[test]
fn a_package_passes_through_as_what_it_is() {
    let system = Destination::with(|_| soap_ok());
    let installation = Installation::new();
    installation.route("r", &proxy(&system, "1.1", ""));
    let bus = installation.start();
    let answer = post(&bus, "/r", &mtom(SOAP_11));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        answer.text(),
        envelope(SOAP_11, "<ok/>"),
        "the response has no attachments, so the answer has none"
    );
    assert_eq!(
        answer.header("content-type"),
        Some("text/xml; charset=utf-8")
    );
    let got = &system.got()[0];
    let content_type = got.header("content-type").expect("a content type");
    assert!(
        content_type.starts_with(
            "multipart/related; type=\"application/xop+xml\"; start-info=\"text/xml\"; start=\"<"
        ),
        "{content_type}"
    );
    assert_eq!(got.header("mime-version"), Some("1.0"));
    let sent = parts(content_type, &got.body);
    assert_eq!(sent.len(), 3);
    assert_eq!(
        sent[0].0[0],
        "Content-Type: application/xop+xml; charset=utf-8; type=\"text/xml\""
    );
    assert_eq!(sent[0].1, scan(SOAP_11).as_bytes(), "byte for byte");
    assert_eq!(sent[1].1, OCTETS);
    for line in [
        "Content-Type: image/tiff",
        "Content-ID: <page@x>",
        "Content-Disposition: attachment; filename*=UTF-8''Seite%20%C3%A4.tif",
    ] {
        assert!(sent[1].0.iter().any(|own| own == line), "{:?}", sent[1].0);
    }
    assert_eq!(sent[2].1, "ä".as_bytes(), "decoded");

    let answer = post(&bus, "/r", &swa());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let got = &system.got()[1];
    let content_type = got.header("content-type").expect("a content type");
    assert!(
        content_type.starts_with("multipart/related; type=\"text/xml\"; start=\"<"),
        "{content_type}"
    );
    let sent = parts(content_type, &got.body);
    assert_eq!(sent[0].0[0], "Content-Type: text/xml; charset=utf-8");
    assert_eq!(sent[1].1, OCTETS);

    // Without attachments nothing is put around an envelope.
    let plain = envelope(SOAP_11, "<a/>").into_bytes();
    post(&bus, "/r", &("text/xml".to_owned(), plain.clone()));
    let got = &system.got()[2];
    assert_eq!(got.header("content-type"), Some("text/xml; charset=utf-8"));
    assert_eq!(got.body, plain);
    assert_eq!(got.header("mime-version"), None);
}

#[test]
fn answers_come_in_the_form_that_fits() {
    let system = Destination::with(|got| match got.path.as_str() {
        "/mtom" => {
            let (_, body) = mtom(SOAP_12);
            Answer::Status(
                200,
                "multipart/related; boundary=b; type=\"application/xop+xml\"; start=\"<root@x>\"",
                body,
            )
        }
        "/one" => {
            let root = "Content-Type: application/xop+xml; type=\"application/soap+xml\"";
            let body = multipart(&[(root, scan(SOAP_12).as_bytes()), (PAGE, OCTETS)]);
            Answer::Status(200, "multipart/related; boundary=b", body)
        }
        _ => {
            let (_, body) = swa();
            Answer::Status(
                200,
                "multipart/related; type=\"text/xml\"; boundary=b",
                body,
            )
        }
    });
    let installation = Installation::new();
    for (name, version) in [("mtom", "1.2"), ("swa", "1.1")] {
        installation.route(
            name,
            &format!(
                "receive: {{ http: {{ path: /{name}, soap: any }} }}\ninvoke:\n  - name: t\n    http: {{ url: \"{}\", soap: \"{version}\" }}\n",
                system.url(&format!("/{name}"))
            ),
        );
    }
    installation.route(
        "inline",
        &format!(
            "receive: {{ http: {{ path: /inline, soap: any, attach: inline }} }}\ninvoke:\n  - name: t\n    http: {{ url: \"{}\", soap: \"1.2\" }}\n",
            system.url("/one")
        ),
    );
    let bus = installation.start();
    let plain =
        |namespace: &str, kind: &str| (kind.to_owned(), envelope(namespace, "<a/>").into_bytes());
    // The caller's version counts; what the response refers to as XOP does stays MTOM.
    let answer = post(&bus, "/mtom", &plain(SOAP_12, "application/soap+xml"));
    let content_type = answer.header("content-type").expect("a content type");
    assert!(
        content_type.contains("start-info=\"application/soap+xml\""),
        "{content_type}"
    );
    let sent = parts(content_type, &answer.body);
    assert_eq!(sent[0].1, scan(SOAP_12).as_bytes());
    assert_eq!(sent[1].1, OCTETS);
    assert_eq!(sent.len(), 3);

    let answer = post(&bus, "/swa", &plain(SOAP_11, "text/xml"));
    let content_type = answer.header("content-type").expect("a content type");
    assert!(
        content_type.starts_with("multipart/related; type=\"text/xml\""),
        "{content_type}"
    );
    assert_eq!(answer.header("mime-version"), Some("1.0"));
    // One that reads no packages gets the octets in the envelope, if the route says so.
    let answer = post(&bus, "/inline", &plain(SOAP_12, "application/soap+xml"));
    assert_eq!(
        answer.header("content-type"),
        Some("application/soap+xml; charset=utf-8")
    );
    let expected = scan(SOAP_12).replace("<x:Include href=\"cid:page%40x\"/>", BASE64);
    assert_eq!(answer.text(), expected);
    // A caller that speaks MTOM gets MTOM.
    let answer = post(&bus, "/swa", &mtom(SOAP_11));
    let content_type = answer.header("content-type").expect("a content type");
    assert!(
        content_type.starts_with("multipart/related; type=\"application/xop+xml\""),
        "{content_type}"
    );
    assert_eq!(parts(content_type, &answer.body)[1].1, OCTETS);
}

#[test]
fn attach_says_how_attachments_are_sent() {
    let system = Destination::with(|_| soap_ok());
    let installation = Installation::new();
    for attach in ["mtom", "swa", "inline", "none"] {
        let route = proxy(&system, "1.1", &format!(", attach: {attach}"));
        installation.route(
            attach,
            &route.replace("path: /r", &format!("path: /{attach}")),
        );
    }
    let bus = installation.start();
    let one = {
        let (content_type, _) = mtom(SOAP_11);
        let root = "Content-Type: application/xop+xml; type=\"text/xml\"\r\nContent-ID: <root@x>";
        let body = multipart(&[(root, scan(SOAP_11).as_bytes()), (PAGE, OCTETS)]);
        (content_type, body)
    };
    let sent = |path: &str, package: &(String, Vec<u8>)| {
        let before = system.count();
        let answer = post(&bus, path, package);
        (answer, system.got().into_iter().nth(before))
    };
    let (_, got) = sent("/inline", &one);
    let got = got.expect("a request");
    assert_eq!(got.header("content-type"), Some("text/xml; charset=utf-8"));
    assert_eq!(
        got.text(),
        scan(SOAP_11).replace("<x:Include href=\"cid:page%40x\"/>", BASE64)
    );
    // What nothing refers to has no place inline.
    let (answer, got) = sent("/inline", &mtom(SOAP_11));
    assert!(got.is_none());
    assert_eq!(answer.status, 500);
    assert!(answer.text().contains("soap:Server"), "{}", answer.text());

    let (_, got) = sent("/swa", &mtom(SOAP_11));
    let got = got.expect("a request");
    let content_type = got.header("content-type").expect("a content type");
    assert!(content_type.contains("type=\"text/xml\""), "{content_type}");
    assert_eq!(parts(content_type, &got.body).len(), 3);

    let (_, got) = sent("/none", &swa());
    let got = got.expect("a request");
    assert_eq!(got.header("content-type"), Some("text/xml; charset=utf-8"));

    let plain = envelope(SOAP_11, "<a/>").into_bytes();
    let (_, got) = sent("/mtom", &("text/xml".to_owned(), plain.clone()));
    let got = got.expect("a request");
    let content_type = got.header("content-type").expect("a content type");
    let all = parts(content_type, &got.body);
    assert_eq!(all.len(), 1, "a service of MTOM alone wants a package");
    assert_eq!(all[0].1, plain);
}

#[test]
fn what_is_no_package_is_a_fault_of_the_right_version_and_no_message() {
    let system = Destination::with(|_| soap_ok());
    let installation = Installation::new();
    installation.route(
        "r",
        &proxy(&system, "1.1", "").replace("soap: any", "soap: any, max_body: 20000"),
    );
    let bus = installation.start();
    let (kind_11, good_11) = mtom(SOAP_11);
    let (kind_12, good_12) = mtom(SOAP_12);
    let replaced = |good: &[u8], from: &str, to: &str| {
        let at = find(good, from.as_bytes()).expect("what to replace");
        [&good[..at], to.as_bytes(), &good[at + from.len()..]].concat()
    };
    let nested = multipart(&[
        (
            "Content-Type: multipart/related; boundary=c",
            b"--c\r\n\r\n<a/>\r\n--c--",
        ),
        (PAGE, OCTETS),
    ]);
    let long_head = format!("Content-Type: text/xml\r\nX: {}", "x".repeat(17_000));
    let many = b"--b\r\n\r\n".repeat(1_100);
    for (kind, body, status_11, status_12, why) in [
        (
            "; boundary=b",
            &b""[..],
            500,
            400,
            "its boundary stands nowhere",
        ),
        (
            "; boundary=b",
            b"--b\r\n\r\n<a",
            500,
            400,
            "closing boundary is missing",
        ),
        ("", b"--b--", 500, 400, "names no boundary"),
        (
            "; boundary=c",
            &good_11,
            500,
            400,
            "its boundary stands nowhere",
        ),
        (
            "; boundary=b; start=\"<gone@x>\"",
            &good_11,
            500,
            400,
            "'start' names",
        ),
        ("; boundary=b", &nested, 500, 400, "its root is a multipart"),
        ("; boundary=b", &many, 413, 413, "more than 1000 parts"),
        (
            "; boundary=b",
            &multipart(&[(&long_head, b"<a/>")]),
            413,
            413,
            "headers of part 1",
        ),
        ("; boundary=b", &[b'x'; 30_000], 413, 413, "too large"),
        (
            "; boundary=b",
            &multipart(&[("Content-Type: text/plain", b"hello")]),
            415,
            415,
            "content type",
        ),
        (
            "; boundary=b",
            &multipart(&[("Content-Type: text/xml", b"hello")]),
            500,
            400,
            "the envelope cannot be read",
        ),
        (
            "; boundary=b",
            &multipart(&[(
                "Content-Type: text/xml\r\nContent-Transfer-Encoding: base64",
                b"***",
            )]),
            500,
            400,
            "not base64",
        ),
        (
            "; boundary=b; start=\"<root@x>\"",
            &replaced(&good_11, "cid:page%40x", "cid:gone"),
            500,
            400,
            "which no attachment has",
        ),
        (
            "; boundary=b",
            &replaced(&good_11, "<page@x>", "<root@x>"),
            500,
            400,
            "two parts have the content id",
        ),
    ] {
        for (info, status, code) in [
            ("text/xml", status_11, "<faultcode>soap:Client<"),
            (
                "application/soap+xml",
                status_12,
                "<soap:Value>soap:Sender<",
            ),
        ] {
            let kind = format!(
                "multipart/related; type=\"application/xop+xml\"; start-info=\"{info}\"{kind}"
            );
            let answer = post(&bus, "/r", &(kind, body.to_vec()));
            assert_eq!(answer.status, status, "{why}: {}", answer.text());
            assert!(answer.text().contains(why), "{why}: {}", answer.text());
            // A root of text/xml makes the answer SOAP 1.1 once it is known.
            let has = |code: &str| answer.text().contains(code);
            assert!(
                has(code) || (why.contains("envelope") && has("soap:Client")),
                "{why}"
            );
        }
    }
    // Cut off anywhere, it never becomes a message.
    for length in (0..good_12.len() - 2).step_by(7) {
        let answer = post(&bus, "/r", &(kind_12.clone(), good_12[..length].to_vec()));
        assert_eq!(answer.status, 400, "{length}: {}", answer.text());
    }
    // Types that cannot be SOAP are refused by the head alone.
    for kind in [
        "multipart/related; boundary=b; type=\"text/html\"",
        "multipart/mixed; boundary=b",
        "multipart/form-data; boundary=b",
    ] {
        let answer = post(&bus, "/r", &(kind.to_owned(), good_11.clone()));
        assert_eq!(answer.status, 415, "{kind}");
    }
    assert_eq!(system.count(), 0);
    // The journal says what became of each; nothing is kept that could be run again.
    let journal = bus.json(&["messages", "--limit", "1000"]);
    let journal = journal.as_array().expect("a list");
    assert!(!journal.is_empty());
    assert!(journal.iter().all(|one| one["outcome"] == "failed"));
    let id = journal[0]["id"].as_str().expect("an id");
    let replayed = installation.xbus(&["messages", "replay", id]);
    assert_eq!(replayed.status.code(), Some(1));
    // Line ends of Unix are fine, where no octets stand.
    let root = envelope(SOAP_11, "<a/>");
    let unix = format!("--b\nContent-Type: text/xml\n\n{root}\n--b\n\nx\n--b--\n");
    let answer = post(
        &bus,
        "/r",
        &(
            "multipart/related; boundary=b".to_owned(),
            unix.into_bytes(),
        ),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let got = &system.got()[0];
    let sent = parts(got.header("content-type").expect("a type"), &got.body);
    assert_eq!(sent[0].1, root.as_bytes());
    assert_eq!(sent[1].1, b"x");
    drop(kind_11);
}

#[test]
fn responses_that_cannot_be_read_are_the_destinations_fault() {
    let system = Destination::with(|_| {
        Answer::Status(
            200,
            "multipart/related; type=\"text/xml\"; boundary=b",
            b"--b\r\n\r\n<a/>".to_vec(),
        )
    });
    let installation = Installation::new();
    installation.route("r", &proxy(&system, "1.1", ""));
    let bus = installation.start();
    let answer = post(&bus, "/r", &swa());
    assert_eq!(answer.status, 500);
    assert!(answer.text().contains("soap:Server"), "{}", answer.text());
    let log = installation.log();
    assert!(log.contains("was cut off"), "{log}");

    // A fault in the root is a fault, whatever stands beside it.
    let fault = envelope(
        SOAP_11,
        "<e:Fault><faultcode>e:Client</faultcode><faultstring>no</faultstring></e:Fault>",
    );
    system.now(move |_| {
        let body = multipart(&[("Content-Type: text/xml", fault.as_bytes()), (PAGE, OCTETS)]);
        Answer::Status(
            500,
            "multipart/related; type=\"text/xml\"; boundary=b",
            body,
        )
    });
    let answer = post(&bus, "/r", &swa());
    assert!(
        answer
            .text()
            .contains("the destination rejected the message"),
        "{}",
        answer.text()
    );
}

#[test]
fn schemas_see_the_document_that_a_package_means() {
    let system = Destination::with(|_| soap_ok());
    let installation = Installation::new();
    installation
        .file(
            "transforms/scan.xsd",
            "<xs:schema xmlns:xs=\"http://www.w3.org/2001/XMLSchema\" targetNamespace=\"urn:s\" elementFormDefault=\"qualified\">\
             <xs:element name=\"Scan\"><xs:complexType><xs:sequence><xs:element name=\"page\" type=\"xs:base64Binary\"/>\
             </xs:sequence></xs:complexType></xs:element></xs:schema>",
        )
        .file(
            "transforms/scan.wsdl",
            "<definitions xmlns=\"http://schemas.xmlsoap.org/wsdl/\" xmlns:soap=\"http://schemas.xmlsoap.org/wsdl/soap/\" \
             xmlns:s=\"urn:s\" targetNamespace=\"urn:s\"><types><xs:schema xmlns:xs=\"http://www.w3.org/2001/XMLSchema\" targetNamespace=\"urn:s\">\
             <xs:include schemaLocation=\"scan.xsd\"/></xs:schema></types>\
             <message name=\"In\"><part name=\"p\" element=\"s:Scan\"/></message>\
             <portType name=\"P\"><operation name=\"Scan\"><input message=\"s:In\"/><output message=\"s:In\"/></operation></portType>\
             <binding name=\"B\" type=\"s:P\"><soap:binding transport=\"http://schemas.xmlsoap.org/soap/http\"/>\
             <operation name=\"Scan\"><soap:operation soapAction=\"urn:scan\"/><input><soap:body use=\"literal\"/></input>\
             <output><soap:body use=\"literal\"/></output></operation></binding>\
             <service name=\"S\"><port name=\"P\" binding=\"s:B\"><soap:address location=\"http://old.example/\"/></port></service></definitions>",
        )
        .route(
            "r",
            &proxy(&system, "1.1", "").replace("soap: any", "soap: any, wsdl: scan.wsdl, validate: request"),
        );
    let bus = installation.start();
    let answer = post(&bus, "/r", &mtom(SOAP_11));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(system.count(), 1);
    let (kind, body) = mtom(SOAP_11);
    let text = String::from_utf8_lossy(&body).into_owned();
    let wrong = text.replace("<s:page>", "<s:page>\n*").into_bytes();
    let answer = post(&bus, "/r", &(kind, wrong));
    assert_eq!(answer.status, 500);
    assert!(
        answer.text().contains("line 2") && answer.text().contains("s:page"),
        "{}",
        answer.text()
    );
    assert_eq!(system.count(), 1);
}

/// A target in a lane, its destination down first.
fn lane(system: &Destination) -> String {
    format!(
        "receive: {{ http: {{ path: /r, soap: any }} }}\ndistribute:\n  - name: t\n    async: {{ retry: {{ first: 20ms, max: 100ms }} }}\n    {}\n",
        step(system, "1.1", "")
    )
}

#[track_caller]
fn check_delivered(got: &[crate::support::destination::Got]) {
    let first = &got[0];
    let last = &got[got.len() - 1];
    assert_eq!(first.body, last.body, "every attempt sends the same");
    assert_eq!(first.header("content-type"), last.header("content-type"));
    let key = last.header("idempotency-key");
    assert!(key.is_some() && key == first.header("idempotency-key"));
    let length = last.header("content-length").expect("a length");
    assert_eq!(length, last.body.len().to_string());
    let sent = parts(last.header("content-type").expect("a type"), &last.body);
    assert_eq!(sent[0].1, scan(SOAP_11).as_bytes());
    assert_eq!(sent[1].1, OCTETS);
}

#[test]
fn attachments_in_a_lane_survive_a_kill() {
    let system = Destination::with(|_| Answer::Status(503, "text/plain", b"later".to_vec()));
    let installation = Installation::new();
    installation.route("r", &lane(&system));
    let bus = installation.start();
    let answer = post(&bus, "/r", &mtom(SOAP_11));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("status=\"accepted\""));
    system.wait_for_count(2);
    bus.kill();
    let before = system.count();
    let bus = installation.start();
    system.wait_for_count(before + 1);
    system.now(|_| soap_ok());
    bus.wait_for_depth("r.t", 0);
    check_delivered(&system.got());
}

#[test]
fn attachments_pass_through_lanes_on_rabbitmq() {
    let rabbit = Rabbit::shared().vhost();
    let system = Destination::with(|_| soap_ok());
    let installation = crate::broker_lanes::node(&rabbit.url(), "n1");
    installation.route("r", &lane(&system));
    let bus = installation.start();
    let answer = post(&bus, "/r", &mtom(SOAP_11));
    assert_eq!(answer.status, 200, "{}", answer.text());
    check_delivered(&system.wait_for_count(1));
    bus.wait_for_depth("r.t", 0);
}

#[test]
fn forms_with_files_come_and_go() {
    let system = Destination::start();
    let installation = Installation::new();
    let to =
        |path: &str, attach: &str| format!("http: {{ url: \"{}\"{attach} }}", system.url(path));
    installation
        .route(
            "form",
            &format!(
                "receive: {{ http: {{ path: /form, attachments: true }} }}\ndistribute:\n  - name: t\n    {}\n",
                to("/{{ body.order }}", ", attach: form")
            ),
        )
        .route(
            "plain",
            &format!(
                "receive: {{ http: {{ path: /plain, attachments: true }} }}\ndistribute:\n  - name: t\n    {}\n",
                to("/plain", "")
            ),
        )
        .route(
            "left",
            &format!(
                "receive: {{ http: {{ path: /left, attachments: true }} }}\ndistribute:\n  - name: t\n    {}\n",
                to("/left", ", attach: none")
            ),
        )
        .route(
            "raw",
            &format!(
                "receive: {{ http: {{ path: /raw }} }}\ndistribute:\n  - name: t\n    {}\n",
                to("/raw", "")
            ),
        );
    let bus = installation.start();
    let form = (
        "multipart/form-data; boundary=b".to_owned(),
        multipart(&[
            ("Content-Disposition: form-data; name=\"order\"", b"A 7"),
            (
                "Content-Disposition: form-data; name=\"scan\"; filename=\"a \u{e4}.tif\"\r\nContent-Type: image/tiff",
                OCTETS,
            ),
        ]),
    );
    let answer = post(&bus, "/form", &form);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let got = &system.got()[0];
    assert_eq!(got.path, "/A%207");
    let sent = parts(got.header("content-type").expect("a type"), &got.body);
    assert_eq!(
        sent[0].0,
        ["Content-Disposition: form-data; name=\"order\""]
    );
    assert_eq!(sent[0].1, b"A 7");
    assert_eq!(
        sent[1].0,
        [
            "Content-Disposition: form-data; name=\"scan\"; filename=\"a \u{e4}.tif\"",
            "Content-Type: image/tiff"
        ]
    );
    assert_eq!(sent[1].1, OCTETS);

    // A step that says nothing sends the body.
    for (at, path) in [(1, "/plain"), (2, "/left")] {
        let answer = post(&bus, path, &form);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let got = &system.got()[at];
        assert_eq!(got.text(), "order=A+7");
        assert_eq!(
            got.header("content-type"),
            Some("application/x-www-form-urlencoded")
        );
    }
    // Without `attachments` a multipart is a body like any other.
    post(&bus, "/raw", &form);
    assert_eq!(system.got()[3].body, form.1);
    assert_eq!(
        system.got()[3].header("content-type"),
        Some(form.0.as_str())
    );

    let broken = (form.0.clone(), b"--b\r\n\r\nx".to_vec());
    let answer = post(&bus, "/form", &broken);
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert_eq!(answer.json()["fault"]["code"], "client");
}

#[test]
fn what_a_route_answers_by_itself_carries_only_what_it_set() {
    let installation = Installation::new();
    installation
        .route(
            "own",
            "receive: { http: { path: /own, soap: any } }\nreply: { transform: own.rhai }\n",
        )
        .script("own.rhai", "element(\"done\", \"yes\")")
        .route(
            "given",
            "receive: { http: { path: /given, soap: any } }\nreply: { transform: given.rhai }\n",
        )
        .script(
            "given.rhai",
            "attachments = received.attachments.filter(|a| a.content_id == \"page@x\"); element(\"done\", \"yes\")",
        )
        .route(
            "echo",
            "receive: { http: { path: /echo, soap: any } }\nreply: {}\n",
        )
        .route(
            "same",
            "receive: { http: { path: /same, soap: any } }\nreply: { transform: same.rhai }\n",
        )
        .script("same.rhai", "headers[\"x\"] = \"1\"; body");
    let bus = installation.start();
    let own = post(&bus, "/own", &mtom(SOAP_11));
    assert_eq!(own.status, 200, "{}", own.text());
    assert!(own.text().contains("<done>yes</done>"), "{}", own.text());
    assert_eq!(own.header("content-type"), Some("text/xml; charset=utf-8"));
    // An answer that says which request it belongs to does so within its package.
    let (kind, body) = mtom(SOAP_11);
    let addressed = "<e:Header><a:MessageID xmlns:a=\"http://www.w3.org/2005/08/addressing\">urn:7</a:MessageID></e:Header><e:Body>";
    let at = find(&body, b"<e:Body>").expect("a Body");
    let body = [&body[..at], addressed.as_bytes(), &body[at + 8..]].concat();
    let given = post(&bus, "/given", &(kind, body));
    let sent = parts(given.header("content-type").expect("a type"), &given.body);
    let root = String::from_utf8(sent[0].1.clone()).expect("text");
    assert!(
        root.contains("RelatesTo") && root.contains(">urn:7<") && root.contains("<done>yes</done>"),
        "{root}"
    );
    assert_eq!(sent.len(), 2);
    assert_eq!(sent[1].1, OCTETS);
    for path in ["/echo", "/same"] {
        let echo = post(&bus, path, &mtom(SOAP_12));
        let sent = parts(echo.header("content-type").expect("a type"), &echo.body);
        assert_eq!(sent[0].1, scan(SOAP_12).as_bytes());
        assert_eq!(sent[1].1, OCTETS);
    }
}

#[test]
fn check_explains_where_attach_does_not_fit() {
    let installation = Installation::new();
    for (name, keys) in [
        ("a", "attach: mtom"),
        ("b", "attach: form, soap: \"1.1\""),
        ("c", "attach: form, method: GET"),
        ("d", "attach: mtmo, soap: \"1.1\""),
        ("e", "attach: inline, soap: \"1.2\""),
    ] {
        installation.route(
            name,
            &format!(
                "receive: {{ http: {{ path: /{name} }} }}\ninvoke:\n  - name: t\n    http: {{ url: \"http://127.0.0.1:9/\", {keys} }}\n"
            ),
        );
    }
    let output = installation.xbus(&["check", "--format", "json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let problems = found["problems"].as_array().expect("a list");
    let of = |file: &str| {
        let of_file = problems
            .iter()
            .filter(|problem| problem["file"] == format!("routes/{file}.yaml"));
        of_file
            .map(|problem| format!("{} {}", problem["message"], problem["help"]))
            .collect::<String>()
    };
    assert!(
        of("a").contains("way of SOAP") && of("a").contains("attach: form"),
        "{found}"
    );
    assert!(of("b").contains("not SOAP"), "{found}");
    assert!(of("c").contains("without a body"), "{found}");
    assert!(of("d").contains("mtom"), "{found}");
    assert_eq!(of("e"), "", "{found}");
}

/// A service of `soap_parts.py`.
fn peer(mode: &str) -> Service {
    let mut command = program("soap_parts.py");
    command.arg(mode);
    Service::start(command)
}

#[track_caller]
fn peer_calls(mode: &str, url: &str) -> serde_json::Value {
    let output = program("soap_parts.py")
        .args([mode, url])
        .output()
        .expect("the client starts");
    assert!(
        output.status.success(),
        "{mode}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// SHA-256 and base64 of what the peers send: `PAGE` of `soap_parts.py`.
const PAGE_SUM: &str = "971c1bf9dab3fec89956cd3f8b04dba47714760af3a8e45e03b317e8a27ab420";
const PAGE_BASE64_START: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";

#[test]
fn packages_of_another_library_are_read_and_ours_by_it() {
    let service = peer("service");
    let installation = Installation::new();
    for (path, version) in [("/r11", "1.1"), ("/r12", "1.2")] {
        installation.route(
            &path[1..],
            &format!(
                "receive: {{ http: {{ path: {path}, soap: any }} }}\ninvoke:\n  - name: t\n    http: {{ url: \"{}\", soap: {{ version: \"{version}\", action: \"urn:store\" }} }}\n",
                service.url()
            ),
        );
    }
    let bus = installation.start();
    for path in ["/r11", "/r12"] {
        let found = peer_calls("client", &format!("http://{}{path}", bus.http));
        for (name, sent_as, info) in [
            ("mtom11", "application/xop+xml", "text/xml"),
            ("mtom12", "application/xop+xml", "application/soap+xml"),
            ("swa", "", "text/xml"),
        ] {
            let of = &found[name];
            assert_eq!(of["status"], 200, "{found}");
            let parts = of["parts"].as_array().expect("parts");
            assert_eq!(parts.len(), 2, "{found}");
            assert!(
                of["type"].as_str().expect("a type").contains(info),
                "{found}"
            );
            assert!(
                parts
                    .iter()
                    .all(|part| part["defects"] == serde_json::json!([])),
                "{found}"
            );
            let decoded = |part: &serde_json::Value| {
                let text = part["octets"].as_str().expect("base64");
                base64::Engine::decode(&base64::prelude::BASE64_STANDARD, text).expect("base64")
            };
            // What the service got, it says in a comment.
            let root = String::from_utf8(decoded(&parts[0])).expect("text");
            assert!(root.contains(PAGE_SUM) && root.contains(sent_as), "{root}");
            assert!(
                parts[1]["octets"]
                    .as_str()
                    .expect("octets")
                    .starts_with(PAGE_BASE64_START)
            );
            assert_eq!(parts[1]["id"], "<page@python>");
            assert_eq!(parts[1]["name"], "p.bin");
        }
    }
}

#[test]
fn zeep_reads_answers_with_attachments() {
    let service = peer("service");
    let installation = Installation::new();
    installation
        .file(
            "transforms/fetch.wsdl",
            "<definitions xmlns=\"http://schemas.xmlsoap.org/wsdl/\" xmlns:soap=\"http://schemas.xmlsoap.org/wsdl/soap/\" \
             xmlns:s=\"urn:s\" xmlns:xs=\"http://www.w3.org/2001/XMLSchema\" targetNamespace=\"urn:s\"><types>\
             <xs:schema targetNamespace=\"urn:s\" elementFormDefault=\"qualified\">\
             <xs:element name=\"Fetch\"><xs:complexType><xs:sequence><xs:element name=\"sku\" type=\"xs:string\"/></xs:sequence></xs:complexType></xs:element>\
             <xs:element name=\"FetchResponse\"><xs:complexType><xs:sequence><xs:element name=\"page\" type=\"xs:base64Binary\"/></xs:sequence></xs:complexType></xs:element>\
             </xs:schema></types>\
             <message name=\"In\"><part name=\"p\" element=\"s:Fetch\"/></message><message name=\"Out\"><part name=\"p\" element=\"s:FetchResponse\"/></message>\
             <portType name=\"P\"><operation name=\"Fetch\"><input message=\"s:In\"/><output message=\"s:Out\"/></operation></portType>\
             <binding name=\"B\" type=\"s:P\"><soap:binding transport=\"http://schemas.xmlsoap.org/soap/http\"/>\
             <operation name=\"Fetch\"><soap:operation soapAction=\"urn:fetch\"/><input><soap:body use=\"literal\"/></input>\
             <output><soap:body use=\"literal\"/></output></operation></binding>\
             <service name=\"S\"><port name=\"P\" binding=\"s:B\"><soap:address location=\"http://old.example/\"/></port></service></definitions>",
        )
        .route(
            "fetch",
            &format!(
                "receive: {{ http: {{ path: /fetch, soap: any, wsdl: fetch.wsdl, validate: both }} }}\ninvoke:\n  - name: t\n    http: {{ url: \"{}\", soap: \"1.1\", attach: mtom }}\n",
                service.url()
            ),
        );
    let bus = installation.start();
    let found = peer_calls("zeep", &format!("http://{}/fetch?wsdl", bus.http));
    let page = found["page"].as_str().expect("a page");
    assert!(
        page.starts_with(PAGE_BASE64_START) && page.ends_with("/f7/DQotLXg="),
        "{page}"
    );
}

#[test]
fn a_spyne_service_takes_mtom_from_the_bus() {
    let service = peer("spyne");
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r, soap: any }} }}\ninvoke:\n  - name: t\n    http: {{ url: \"{}\", soap: \"1.1\", attach: mtom }}\n",
            service.url()
        ),
    );
    let bus = installation.start();
    let found = peer_calls("client", &format!("http://{}/r", bus.http));
    let answer = found["mtom11"]["parts"][0]["octets"]
        .as_str()
        .expect("octets");
    let answer = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, answer);
    let answer = String::from_utf8(answer.expect("base64")).expect("text");
    assert!(answer.contains(PAGE_SUM), "{answer}");
}

#[test]
fn routes_of_one_path_are_told_apart_by_the_root_of_large_packages() {
    let system = Destination::with(|_| soap_ok());
    let installation = Installation::new();
    for (name, keys) in [("scan", ", element: \"{urn:s}Scan\""), ("rest", "")] {
        installation.route(
            name,
            &format!(
                "receive: {{ http: {{ path: /r, soap: any{keys}, max_body: 4MiB }} }}\ninvoke:\n  - name: t\n    http: {{ url: \"{}\", soap: \"1.1\" }}\n",
                system.url(&format!("/{name}"))
            ),
        );
    }
    let bus = installation.start();
    let large: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    for (name, root) in [
        ("scan", scan(SOAP_11)),
        ("rest", scan(SOAP_11).replace("urn:s", "urn:other")),
    ] {
        let body = multipart(&[
            (
                "Content-Type: application/xop+xml; type=\"text/xml\"",
                root.as_bytes(),
            ),
            (PAGE, &large),
        ]);
        let kind = "multipart/related; type=\"application/xop+xml\"; boundary=b".to_owned();
        let answer = post(&bus, "/r", &(kind, body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let got = system.got().pop().expect("a request");
        assert_eq!(got.path, format!("/{name}"));
        let sent = parts(got.header("content-type").expect("a type"), &got.body);
        assert_eq!(sent[0].1, root.as_bytes());
        assert_eq!(sent[1].1, large);
    }
}

#[test]
fn forms_of_another_library_are_read() {
    let system = Destination::start();
    let installation = Installation::new();
    installation.route(
        "r",
        &format!(
            "receive: {{ http: {{ path: /r, attachments: true, accepts: multipart/form-data }} }}\ndistribute:\n  - name: t\n    http: {{ url: \"{}\", attach: form }}\n",
            system.url("/t")
        ),
    );
    let bus = installation.start();
    let found = peer_calls("form", &format!("http://{}/r", bus.http));
    assert_eq!(found["status"], 200, "{found}");
    let got = &system.got()[0];
    let sent = parts(got.header("content-type").expect("a type"), &got.body);
    let heads: Vec<&str> = sent.iter().map(|(head, _)| head[0].as_str()).collect();
    assert_eq!(
        heads,
        [
            "Content-Disposition: form-data; name=\"note\"",
            "Content-Disposition: form-data; name=\"scan\"; filename=\"Seite \u{e4}.tif\"",
            "Content-Disposition: form-data; name=\"scan\"; filename=\"two.bin\"",
        ]
    );
    assert_eq!(sent[0].1, "\u{e4} & b = c".as_bytes());
    assert_eq!(sent[2].1, b"\r\n");
    let refused = post(&bus, "/r", &("text/plain".to_owned(), b"x".to_vec()));
    assert_eq!(refused.status, 415);
}

#[test]
fn security_is_put_into_the_envelope_of_a_package() {
    let system = Destination::with(|_| soap_ok());
    let installation = Installation::new();
    for attach in ["mtom", "inline"] {
        installation.route(
            attach,
            &format!(
                "receive: {{ http: {{ path: /{attach}, soap: any }} }}\ninvoke:\n  - name: t\n    http:\n      url: \"{}\"\n      soap: {{ version: \"1.1\", action: \"urn:a\", addressing: true, timestamp: 1m, username_token: {{ user: u, password: geheim }} }}\n      attach: {attach}\n",
                system.url("/t")
            ),
        );
    }
    let bus = installation.start();
    let kind = "multipart/related; type=\"application/xop+xml\"; boundary=b";
    for (attach, mark) in [
        ("mtom", ""),
        ("mtom", "\u{feff}"),
        ("inline", ""),
        ("inline", "\u{feff}"),
    ] {
        let root = format!("{mark}{}", scan(SOAP_11));
        let head = "Content-Type: application/xop+xml; type=\"text/xml\"";
        let body = multipart(&[(head, root.as_bytes()), (PAGE, OCTETS)]);
        let answer = post(&bus, &format!("/{attach}"), &(kind.to_owned(), body));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let got = system.got().pop().expect("a request");
        let sent = match attach {
            "inline" => got.body.clone(),
            _ => {
                let all = parts(got.header("content-type").expect("a type"), &got.body);
                assert_eq!(all[1].1, OCTETS);
                all[0].1.clone()
            }
        };
        let sent = String::from_utf8(sent).expect("text");
        let sent = sent.trim_start_matches('\u{feff}');
        // All but the Header is as it came.
        let (before, rest) = sent.split_once("<soap:Header").expect("a Header");
        let (header, after) = rest.split_once("</soap:Header>").expect("its end");
        for word in ["geheim", "Timestamp", "MessageID", "urn:a"] {
            assert!(header.contains(word), "{word}: {header}");
        }
        let include = "<x:Include href=\"cid:page%40x\"/>";
        let expected = match attach {
            "inline" => scan(SOAP_11).replace(include, BASE64),
            _ => scan(SOAP_11),
        };
        assert_eq!(format!("{before}{after}"), expected);
    }
}
