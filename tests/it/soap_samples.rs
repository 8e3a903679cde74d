//! Envelopes of the kinds that are met in the wild: through a proxy they stay the same bytes, rebuilt
//! by a script they say the same; and whatever is no document is a fault of the caller's version.
//!
//! `XBUS_SOAP_SAMPLES` and `XBUS_BAD_XML_SAMPLES` name folders whose files are tried too: of the one
//! every request.xml and response.xml beneath, of the other every .xml.

use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::http::read_response;
use crate::support::python::program;
use crate::support::{Answer, Bus, Destination, Installation, Response, request};

const SOAP_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
const SOAP_12: &str = "http://www.w3.org/2003/05/soap-envelope";

/// What is sent, and what the destination answers.
struct Exchange {
    name: String,
    content_type: &'static str,
    request: Vec<u8>,
    response: Vec<u8>,
    status: u16,
}

fn envelope(namespace: &str, header: &str, body: &str) -> String {
    format!(
        "<soap:Envelope xmlns:soap=\"{namespace}\" xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" xmlns:unused=\"urn:unused\">{header}<soap:Body>{body}</soap:Body></soap:Envelope>"
    )
}

fn utf16(text: &str) -> Vec<u8> {
    let units = std::iter::once(0xfeff).chain(text.encode_utf16());
    units.flat_map(u16::to_le_bytes).collect()
}

fn latin1(text: &str) -> Vec<u8> {
    text.chars().map(|c| c as u8).collect()
}

/// One of each kind.
fn exchanges() -> Vec<Exchange> {
    let wsse = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
    let wsu = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-utility-1.0.xsd";
    let security = format!(
        "<soap:Header>\n  <w:Security xmlns:w=\"{wsse}\" xmlns:u=\"{wsu}\"><u:Timestamp u:Id=\"T-1\"><u:Created>2026-11-22T01:02:03Z</u:Created></u:Timestamp><w:UsernameToken xmlns:u=\"{wsu}\" u:Id=\"S-1\"><w:Username>clerk</w:Username></w:UsernameToken></w:Security></soap:Header>"
    );
    let declared = |encoding: &str, text: &str| {
        format!("<?xml version='1.0' encoding='{encoding}' standalone=\"yes\"?>\r\n{text}\r\n")
    };
    let one = |name: &str, content_type, request: Vec<u8>, response: Vec<u8>| Exchange {
        name: name.to_owned(),
        content_type,
        request,
        response,
        status: 200,
    };
    let text = "text/xml; charset=utf-8";
    let nested = "<n:Ask xmlns:n=\"urn:n\" xmlns=\"urn:n\"><n:Filter><c:Word xmlns:c=\"urn:c\">Größe &amp; &lt;Wert&gt; &#x20AC; &#13;</c:Word></n:Filter><Empty></Empty><Empty/><plain xmlns=\"\"><in\n  a = 'x &quot; y'\tb=\"tab&#9;line&#10;end\"/></plain></n:Ask>";
    let values = "<q:Put xmlns:q=\"urn:q\" xmlns:x=\"urn:x\"><q:a xsi:type=\"x:Big\" xsi:nil=\"true\"></q:a><n1:b xmlns:n1=\"urn:1\"><n1:c xmlns:n1=\"urn:2\" n1:d=\"1\" d=\"2\">n1:e</n1:c></n1:b><u xml:lang=\"de\" xml:space=\"preserve\">  </u></q:Put>";
    let cdata = "<r:Answer xmlns:r=\"urn:r\">\n  <r:doc language=\"en-US\"><![CDATA[<?xml version=\"1.0\"?><form id=\"1\">]] > &amp;</form>]]>tail<![CDATA[]]></r:doc><!-- note --><?target some data?></r:Answer>";
    vec![
        one(
            "nested",
            text,
            declared("utf-8", &envelope(SOAP_11, "", nested)).into(),
            envelope(SOAP_11, "<soap:Header></soap:Header>", cdata).into(),
        ),
        one(
            "values",
            "application/soap+xml; charset=utf-8",
            envelope(SOAP_12, "<soap:Header/>", values).into(),
            declared("UTF-8", &envelope(SOAP_12, "", nested)).into(),
        ),
        one(
            "security",
            text,
            envelope(SOAP_11, &security, "<Request xmlns=\"urn:v1\"></Request>").into(),
            envelope(SOAP_11, "<soap:Header />", "").into(),
        ),
        one(
            "bom",
            "text/xml",
            [
                b"\xef\xbb\xbf".as_slice(),
                envelope(SOAP_11, "", nested).as_bytes(),
            ]
            .concat(),
            envelope(SOAP_11, "", values).into(),
        ),
        one(
            "latin1",
            "text/xml",
            latin1(&declared(
                "ISO-8859-1",
                &envelope(SOAP_11, "", "<a xmlns=\"urn:a\" b='é'>Ärger</a>"),
            )),
            envelope(SOAP_11, "", "<b/>").into(),
        ),
        one(
            "utf16",
            "text/xml; charset=utf-16",
            utf16(&declared("utf-16", &envelope(SOAP_11, "", nested))),
            utf16(&envelope(SOAP_11, "", values)),
        ),
        Exchange {
            status: 500,
            ..one(
                "fault",
                text,
                envelope(SOAP_11, "", "<login xmlns=\"urn:l\"><password>p</password></login>").into(),
                envelope(
                    SOAP_11,
                    "",
                    "<soap:Fault><faultcode>soap:Server.userException</faultcode><faultstring>No such user.</faultstring><detail><f:code xmlns:f=\"urn:f\">INVALID</f:code></detail></soap:Fault>",
                )
                .into(),
            )
        },
    ]
}

/// Those of a folder that somebody names, each in a folder of its own.
fn given() -> Vec<Exchange> {
    let Some(root) = std::env::var_os("XBUS_SOAP_SAMPLES") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&root).expect("XBUS_SOAP_SAMPLES is a folder") {
        let folder = entry.expect("an entry").path();
        let (Ok(request), Ok(response)) = (
            std::fs::read(folder.join("request.xml")),
            std::fs::read(folder.join("response.xml")),
        ) else {
            continue;
        };
        let holds = |data: &[u8], what: &str| String::from_utf8_lossy(data).contains(what);
        found.push(Exchange {
            name: folder.display().to_string(),
            content_type: match holds(&request, SOAP_12) {
                true => "application/soap+xml",
                false => "text/xml",
            },
            status: if holds(&response, ":Fault>") {
                500
            } else {
                200
            },
            request,
            response,
        });
    }
    assert!(!found.is_empty(), "no samples in XBUS_SOAP_SAMPLES");
    found
}

/// Status, content type and body of an answer.
type Given = (u16, &'static str, Vec<u8>);

/// A destination that answers with what is set, as a SOAP service would.
fn service() -> (Destination, Arc<Mutex<Given>>) {
    let answer = Arc::new(Mutex::new((200, "text/xml", Vec::new())));
    let next = answer.clone();
    let destination = Destination::with(move |_| {
        let (status, content_type, body) = next.lock().expect("unpoisoned").clone();
        Answer::Status(status, content_type, body)
    });
    (destination, answer)
}

#[test]
fn a_proxy_route_leaves_every_byte_as_it_is() {
    let (destination, answer) = service();
    let installation = Installation::new();
    installation.route(
        "proxy",
        &format!(
            "receive:\n  http: {{ path: /proxy, soap: any }}\ninvoke:\n  - http: {{ url: \"{}\" }}\n",
            destination.url("/")
        ),
    );
    let bus = installation.start();
    for (at, exchange) in exchanges().into_iter().chain(given()).enumerate() {
        *answer.lock().expect("unpoisoned") = (
            exchange.status,
            exchange.content_type,
            exchange.response.clone(),
        );
        let got = send(&bus, "/proxy", exchange.content_type, &exchange.request);
        let name = &exchange.name;
        let sent = destination.wait_for_count(at + 1);
        assert_eq!(sent[at].body, exchange.request, "{name}");
        assert_eq!(
            sent[at].header("content-type"),
            Some(exchange.content_type),
            "{name}"
        );
        if exchange.status == 200 {
            assert_eq!(got.status, 200, "{name}: {}", got.text());
            assert_eq!(got.body, exchange.response, "{name}: {}", got.text());
            assert_eq!(got.header("content-type"), Some(exchange.content_type));
        } else {
            assert!(got.text().contains("Fault"), "{name}: {}", got.text());
        }
    }
}

/// Every element, attribute and text of the document, put together anew.
const REBUILD: &str = r#"
fn declare(attributes, node) {
    let prefix = if node.name.contains(":") { node.name.split(":")[0] } else { "" };
    if prefix == "" {
        attributes["xmlns"] = node.namespace;
    } else if prefix != "xml" {
        attributes["xmlns:" + prefix] = node.namespace;
    }
    attributes
}
fn rebuild(node) {
    let attributes = declare(#{}, node);
    for a in node.xpath_all("@*") {
        attributes[a.name] = a.text();
        if a.name.contains(":") { attributes = declare(attributes, a); }
    }
    let content = list();
    for piece in node.xpath_all("node()") {
        if piece.xpath("boolean(self::*)") {
            content.push(rebuild(piece));
        } else if piece.xpath("boolean(self::text())") {
            content.push(piece.text());
        }
    }
    element(node.name, attributes, content)
}
rebuild(xpath_all("/*")[0])
"#;

#[test]
fn what_a_script_takes_apart_and_builds_again_says_the_same() {
    let destination = Destination::with(|_| {
        let body = envelope(SOAP_11, "", "<done/>");
        Answer::Status(200, "text/xml", body.into_bytes())
    });
    let installation = Installation::new();
    for (name, script) in [("rebuild", REBUILD), ("written", "xml(body)")] {
        installation
            .script(&format!("{name}.rhai"), script)
            .route(
                name,
                &format!(
                    "receive:\n  http: {{ path: /{name}, soap: any }}\ninvoke:\n  - http: {{ url: \"{}\" }}\n    transform: {name}.rhai\n",
                    destination.url("/")
                ),
            );
    }
    let bus = installation.start();
    let mut count = 0;
    let mut pairs: Vec<(&str, String, PathBuf, PathBuf)> = Vec::new();
    let mut documents: Vec<(String, &str, Vec<u8>)> = Vec::new();
    for exchange in exchanges().into_iter().chain(given()) {
        let name = exchange.name;
        documents.push((
            format!("{name} request"),
            exchange.content_type,
            exchange.request,
        ));
        documents.push((
            format!("{name} response"),
            exchange.content_type,
            exchange.response,
        ));
    }
    for (number, (name, content_type, document)) in documents.iter().enumerate() {
        let content_type = match name.ends_with("response") {
            // The answers of all are UTF-8.
            true => content_type.split(';').next().unwrap_or_default(),
            false => content_type,
        };
        for (route, form) in [("rebuild", "exclusive"), ("written", "inclusive")] {
            let got = send(&bus, &format!("/{route}"), content_type, document);
            assert_eq!(got.status, 200, "{name}: {}", got.text());
            count += 1;
            let made = &destination.wait_for_count(count)[count - 1].body;
            let (before, after) = (format!("{number}-in.xml"), format!("{number}-{route}.xml"));
            installation.file(&before, document).file(&after, made);
            let path = |name: &str| installation.path().join(name);
            pairs.push((form, name.clone(), path(&before), path(&after)));
        }
    }
    for form in ["exclusive", "inclusive"] {
        let of_form: Vec<_> = pairs.iter().filter(|pair| pair.0 == form).collect();
        let paths = of_form.iter().flat_map(|pair| [&*pair.2, &*pair.3]);
        let canonical = canonical(form, paths);
        for (pair, both) in of_form.iter().zip(canonical.chunks(2)) {
            // Instructions are no part of what scripts build.
            let instruction = "<?target some data?>";
            assert_eq!(
                both[0].replace(instruction, ""),
                both[1].replace(instruction, ""),
                "{} ({form})",
                pair.1
            );
        }
    }
}

/// Documents in a form in which those that say the same are the same.
#[track_caller]
fn canonical<'a>(form: &str, files: impl Iterator<Item = &'a Path>) -> Vec<String> {
    let output = program("canonical.py")
        .arg(form)
        .args(files)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[track_caller]
fn send(bus: &Bus<'_>, path: &str, content_type: &str, body: &[u8]) -> Response {
    let headers = [("Content-Type", content_type), ("SOAPAction", "\"\"")];
    request(bus.http, "POST", path, &headers, body).expect("an answer")
}

/// What is no document, or none that is taken.
fn malformed() -> Vec<(String, Vec<u8>)> {
    let whole = envelope(SOAP_11, "", "<a xmlns='urn:a'>text</a>");
    let inside = |what: &str| envelope(SOAP_11, "", what).into_bytes();
    let mut all: Vec<(String, Vec<u8>)> = [
        ("nothing", Vec::new()),
        ("text", b"hello".to_vec()),
        ("html", b"<html><body>x<br></body></html>".to_vec()),
        (
            "doctype",
            [b"<!DOCTYPE a>".as_slice(), whole.as_bytes()].concat(),
        ),
        ("entity", inside("<a>&nope;</a>")),
        ("attribute twice", inside("<a b='1' b='2'/>")),
        ("attribute unquoted", inside("<a b=1/>")),
        ("undeclared prefix", inside("<p:a/>")),
        ("undeclared prefix of an attribute", inside("<a p:b=''/>")),
        ("end tag", inside("<a></b>")),
        ("character", inside("<a>\u{1}</a>")),
        ("reference to no character", inside("<a>&#xFFFF;</a>")),
        ("comment", inside("<a><!-- -- --></a>")),
        ("section end", inside("<a>]]></a>")),
        (
            "bytes",
            [b"<a>".as_slice(), b"\xff\xfe\xfd", b"</a>"].concat(),
        ),
        (
            "declaration",
            format!(" <?xml version='1.0'?>{whole}").into(),
        ),
        ("version", format!("<?xml version='2.0'?>{whole}").into()),
        (
            "encoding",
            format!("<?xml version='1.0' encoding='@x'?>{whole}").into(),
        ),
        ("tail", format!("{whole}tail").into()),
        ("two", format!("{whole}{whole}").into()),
    ]
    .into_iter()
    .map(|(name, body)| (name.to_owned(), body))
    .collect();
    for end in (1..whole.len()).step_by(23) {
        all.push((
            format!("the first {end} bytes"),
            whole.as_bytes()[..end].into(),
        ));
    }
    all
}

/// The files of the folder that somebody names.
fn given_bad() -> Vec<(String, Vec<u8>)> {
    let Some(root) = std::env::var_os("XBUS_BAD_XML_SAMPLES") else {
        return Vec::new();
    };
    let entries = std::fs::read_dir(&root).expect("XBUS_BAD_XML_SAMPLES is a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let found: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|extension| extension == "xml"))
        .map(|path| {
            let data = std::fs::read(&path).expect("a file");
            (path.display().to_string(), data)
        })
        .collect();
    assert!(!found.is_empty(), "no samples in XBUS_BAD_XML_SAMPLES");
    found
}

/// A fault of that version, with its content type and status.
#[track_caller]
fn expect_fault(got: &Response, version: &str, name: &str) {
    let text = got.text();
    let (namespace, content_type, code, status) = match version {
        "1.1" => (
            SOAP_11,
            "text/xml",
            "<faultcode>soap:Client</faultcode>",
            500,
        ),
        _ => (
            SOAP_12,
            "application/soap+xml",
            "<soap:Value>soap:Sender</soap:Value>",
            400,
        ),
    };
    assert_eq!(got.status, status, "{name}: {text}");
    assert!(
        text.contains(namespace) && text.contains(code),
        "{name}: {text}"
    );
    let given = got.header("content-type").unwrap_or_default();
    assert!(given.starts_with(content_type), "{name}: {given}");
    assert!(text.len() < 4096, "{name}: {} bytes", text.len());
}

#[test]
fn whatever_is_no_document_is_a_fault_of_the_right_version() {
    let destination = Destination::start();
    let installation = Installation::new();
    for (name, version) in [("one", "1.1"), ("two", "1.2")] {
        installation.route(
            name,
            &format!(
                "receive:\n  http: {{ path: /{name}, soap: \"{version}\", wellformed: true }}\ninvoke:\n  - http: {{ url: \"{}\" }}\n",
                destination.url("/")
            ),
        );
    }
    let bus = installation.start();
    for (name, body) in malformed().into_iter().chain(given_bad()) {
        for (path, version, content_type) in [
            ("/one", "1.1", "text/xml"),
            ("/two", "1.2", "application/soap+xml"),
        ] {
            let body = match version {
                // The same, in the other version.
                "1.2" => replace(&body, SOAP_11, SOAP_12),
                _ => body.clone(),
            };
            let began = Instant::now();
            let got = send(&bus, path, content_type, &body);
            expect_fault(&got, version, &name);
            assert!(began.elapsed() < Duration::from_secs(10), "{name}");
        }
    }
    assert_eq!(destination.count(), 0, "none of them went on");
}

fn replace(data: &[u8], from: &str, to: &str) -> Vec<u8> {
    match std::str::from_utf8(data) {
        Ok(text) => text.replace(from, to).into_bytes(),
        Err(_) => data.to_vec(),
    }
}

#[test]
fn malformed_in_chunks_slowly_or_cut_off_is_a_fault_too() {
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        "name: test\nhttp: { listen: \"127.0.0.1:0\" }\nadmin: { listen: \"127.0.0.1:0\" }\nlimits: { body_pause: 1s }\n",
    );
    for (name, version) in [("one", "1.1"), ("two", "1.2")] {
        installation.route(
            name,
            &format!("receive:\n  http: {{ path: /{name}, soap: \"{version}\", wellformed: true }}\nreply: {{}}\n"),
        );
    }
    let bus = installation.start();
    for (path, version, content_type, namespace) in [
        ("/one", "1.1", "text/xml", SOAP_11),
        ("/two", "1.2", "application/soap+xml", SOAP_12),
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {content_type}\r\n"
        );
        let bad = envelope(namespace, "", "<a>\u{fffe}</a>");
        let mut stream = TcpStream::connect(bus.http).expect("a connection");
        stream.set_nodelay(true).expect("an option");
        let mut say = |text: &str| stream.write_all(text.as_bytes()).expect("written");
        say(&head);
        say("Transfer-Encoding: chunked\r\n\r\n");
        // Characters of three bytes are cut in two.
        for piece in bad.as_bytes().chunks(7) {
            stream
                .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
                .and_then(|()| stream.write_all(piece))
                .and_then(|()| stream.write_all(b"\r\n"))
                .expect("written");
            std::thread::yield_now();
        }
        stream.write_all(b"0\r\n\r\n").expect("written");
        let got = read_response(&mut stream).expect("an answer");
        expect_fault(&got, version, "in chunks");

        // A body that stops coming: an answer in the caller's shape, and then the end.
        let mut stream = TcpStream::connect(bus.http).expect("a connection");
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("an option");
        let length = bad.len() + 10;
        stream
            .write_all(format!("{head}Content-Length: {length}\r\n\r\n{bad}").as_bytes())
            .expect("written");
        let got = read_response(&mut stream).expect("an answer");
        assert!(got.text().contains(namespace), "{}", got.text());
        assert!((400..=500).contains(&got.status), "{}", got.status);
        assert!(!got.text().to_lowercase().contains("<html"));

        // A caller that goes away in the middle leaves the bus as it was.
        let mut stream = TcpStream::connect(bus.http).expect("a connection");
        stream
            .write_all(format!("{head}Content-Length: {length}\r\n\r\n<soap").as_bytes())
            .expect("written");
        drop(stream);
        let fine = envelope(namespace, "", "<a/>");
        let got = send(&bus, path, content_type, fine.as_bytes());
        assert_eq!(got.status, 200, "{}", got.text());
    }
}
