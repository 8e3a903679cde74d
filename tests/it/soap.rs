//! SOAP as legacy systems speak it: WSDLs that are served, messages held against them and against
//! schemas, with zeep and suds as callers and spyne as a service behind the bus.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;

use crate::support::python::{Service, program};
use crate::support::{Bus, Destination, Installation, Response, get, request};

const SOAP_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
const SOAP_12: &str = "http://www.w3.org/2003/05/soap-envelope";
const TYPES: &str = "urn:test:depot:types";

/// Calls the operations of the WSDL at `url`, and gives what the client made of the answers.
#[track_caller]
fn client(kind: &str, url: &str) -> serde_json::Value {
    let output = program("soap_clients.py")
        .args([kind, url])
        .output()
        .expect("the client starts");
    assert!(
        output.status.success(),
        "{kind}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Routes that share /depot, told apart by the Body's first element.
fn depot() -> Installation {
    let installation = Installation::new();
    installation.file(
        "xbus.yaml",
        "name: test\nhttp: { listen: \"127.0.0.1:0\", trusted_proxies: [\"127.0.0.1\"] }\nadmin: { listen: \"127.0.0.1:0\" }\njournal: { payloads: all }\nnamespaces: { t: \"urn:test:depot:types\" }\n",
    );
    let samples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/samples/soap");
    for name in [
        "depot.wsdl",
        "parts/messages.wsdl",
        "schemas/types.xsd",
        "schemas/items.xsd",
        "schemas/base.xsd",
    ] {
        let content = std::fs::read(samples.join(name)).expect("a sample");
        installation.file(&format!("transforms/depot/{name}"), content);
    }
    let receive = |element: &str| {
        format!(
            "receive:\n  http:\n    path: /depot\n    soap: {{ version: any, understands: [\"{{{TYPES}}}Trace\"] }}\n    wsdl: depot/depot.wsdl\n    validate: both\n    element: \"{{{TYPES}}}{element}\"\n"
        )
    };
    installation
        .route(
            "book",
            &format!("{}reply: {{ transform: book.rhai }}\n", receive("Book")),
        )
        .route(
            "level",
            &format!("{}reply: {{ transform: level.rhai }}\n", receive("Level")),
        )
        .route(
            "note",
            &format!(
                "{}distribute:\n  - name: out\n    file: {{ dir: out, name: \"{{{{ id }}}}.xml\" }}\nreply: {{ transform: note.rhai }}\n",
                receive("Note")
            ),
        )
        // The operation has no answer that this could be held against.
        .script("note.rhai", "element(\"t:Noted\", \"yes\")")
        .script(
            "book.rhai",
            "element(\"t:BookResponse\", [element(\"t:booking\", \"7\"), element(\"t:on\", \"2026-11-22\")])",
        )
        .script(
            "level.rhai",
            "element(\"t:LevelResponse\", [element(\"t:level\", if xpath(\"//t:sku\") == \"XX-000\" { \"many\" } else { \"5\" })])",
        );
    installation
}

fn envelope(namespace: &str, header: &str, body: &str) -> String {
    format!(
        "<e:Envelope xmlns:e=\"{namespace}\" xmlns:t=\"{TYPES}\">\n<e:Header>{header}</e:Header>\n<e:Body>{body}</e:Body>\n</e:Envelope>"
    )
}

#[track_caller]
fn call(bus: &Bus<'_>, action: &str, body: &str) -> Response {
    let headers = [
        ("Content-Type", "text/xml; charset=utf-8"),
        ("SOAPAction", action),
    ];
    request(bus.http, "POST", "/depot", &headers, body.as_bytes()).expect("an answer")
}

#[test]
fn zeep_and_suds_read_the_served_wsdl_and_call_its_operations() {
    let installation = depot();
    let bus = installation.start();
    let url = format!("http://{}/depot?wsdl", bus.http);
    let zeep = client("zeep", &url);
    for (port, code) in [
        ("DepotPort11", "soap:Client"),
        ("DepotPort12", "soap:Sender"),
    ] {
        let of = &zeep[port];
        assert_eq!(
            of["address"],
            format!("http://{}/depot", bus.http),
            "{zeep}"
        );
        assert_eq!(of["booking"], 7);
        assert_eq!(of["on"], "2026-11-22");
        assert_eq!(of["level"], 5);
        assert!(of["note"].is_null());
        assert_eq!(of["refused"]["code"], code, "{zeep}");
        let message = of["refused"]["message"].as_str().expect("a message");
        assert!(
            message.contains("line ") && message.contains("sku") && message.contains("pattern"),
            "{message}"
        );
        assert!(!message.contains("wrong"), "no values: {message}");
    }
    let suds = client("suds", &url);
    assert_eq!(suds["booking"], 7);
    assert_eq!(suds["level"], 5);
    assert_eq!(suds["refused"]["code"], "soap:Client");
    assert_eq!(installation.names("out").len(), 2, "both notes went out");
}

#[test]
fn addresses_are_those_that_the_caller_used() {
    let installation = depot();
    let bus = installation.start();
    let plain = get(bus.http, "/depot?wsdl");
    assert_eq!(plain.status, 200);
    assert_eq!(
        plain.header("content-type"),
        Some("text/xml; charset=utf-8")
    );
    let base = format!("http://{}/depot", bus.http);
    assert!(plain.text().contains(&format!("location=\"{base}\"")));
    assert!(!plain.text().contains("old.example"));
    let parts = format!("{base}?wsdl=depot/parts/messages.wsdl");
    assert!(plain.text().contains(&parts), "{}", plain.text());
    let nested = get(bus.http, "/depot?wsdl=depot/parts/messages.wsdl");
    assert!(
        nested.text().contains(&format!(
            "schemaLocation=\"{base}?xsd=depot/schemas/types.xsd\""
        )),
        "{}",
        nested.text()
    );
    let proxied = request(
        bus.http,
        "GET",
        "/depot?WSDL",
        &[
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "bus.example"),
            ("X-Forwarded-Port", "8443"),
            ("X-Forwarded-Prefix", "/soap/"),
        ],
        b"",
    )
    .expect("an answer");
    assert!(
        proxied
            .text()
            .contains("location=\"https://bus.example:8443/soap/depot\""),
        "{}",
        proxied.text()
    );
    for name in [
        "../../xbus.yaml",
        "..%2f..%2fxbus.yaml",
        "book.rhai",
        "/etc/passwd",
        "nothing",
    ] {
        for key in ["wsdl", "xsd"] {
            let refused = get(bus.http, &format!("/depot?{key}={name}"));
            assert_eq!(refused.status, 404, "{name}");
            assert!(refused.text().contains("Envelope"), "{}", refused.text());
        }
    }
    for head in ["GET /depot?wsdl", "POST /depot", "GET /depot?wsdl=nothing"] {
        let mut stream = TcpStream::connect(bus.http).expect("a connection");
        write!(
            stream,
            "{head} HTTP/1.1\r\nHost: a/b\r\nSOAPAction: x\r\nContent-Type: text/xml\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("soap:Client"), "{answer}");
    }
    let put = request(bus.http, "PUT", "/depot?wsdl", &[], b"").expect("an answer");
    assert_eq!(put.status, 405);
}

#[test]
fn what_breaks_the_wsdl_is_a_fault_of_the_right_version() {
    let installation = depot();
    let bus = installation.start();
    let item = "<t:item><t:sku>AB-123</t:sku><t:quantity>1</t:quantity></t:item>";
    let book = |inner: &str| format!("<t:Book>{inner}</t:Book>");
    for (body, parts) in [
        (
            book(&format!("<t:depot>east</t:depot>{item}")),
            &["line 3", "t:depot", "enumeration"][..],
        ),
        (
            book(&format!("\n{item}")),
            &["line 4", "t:item", "cvc-complex-type"],
        ),
        (
            book("<t:depot>north</t:depot>"),
            &["line 3", "t:Book", "cvc-complex-type"],
        ),
        (
            book(&format!(
                "<t:depot>north</t:depot>{}",
                item.replace(">1<", ">1000<")
            )),
            &["t:quantity", "maxInclusive"],
        ),
        (
            book(&format!(
                "<t:depot>north</t:depot>{}",
                item.replace("<t:item>", "<t:item colour='red'>")
            )),
            &["attribute 'colour'", "t:item"],
        ),
    ] {
        let refused = call(&bus, "", &envelope(SOAP_11, "", &body));
        assert_eq!(refused.status, 500, "{}", refused.text());
        assert!(
            refused
                .text()
                .contains("<faultcode>soap:Client</faultcode>")
        );
        for part in parts {
            assert!(refused.text().contains(part), "{part}: {}", refused.text());
        }
        assert!(!refused.text().contains("east") && !refused.text().contains("'1000'"));
    }
    let header = "<t:Trace><t:x/></t:Trace>";
    let good = book(&format!("<t:depot>north</t:depot>{item}"));
    let refused = call(&bus, "", &envelope(SOAP_11, header, &good));
    assert!(refused.text().contains("line 2") && refused.text().contains("t:x"));
    let must = "<t:Trace e:mustUnderstand=\"1\">a</t:Trace>";
    let understood = call(&bus, "", &envelope(SOAP_11, must, &good));
    assert_eq!(understood.status, 200, "{}", understood.text());
    for (behind, line) in [("<e:Body/>", "line 3"), ("<e:Header/>", "line 3")] {
        let whole = envelope(SOAP_11, "", &good);
        let two = whole.replace("</e:Body>", &format!("</e:Body>{behind}"));
        let refused = call(&bus, "", &two);
        assert_eq!(refused.status, 500);
        let text = refused.text();
        assert!(
            text.contains(line) && text.contains("behind the Body"),
            "{text}"
        );
    }
    // The reply is held against it too, and is the bus's fault.
    let level = envelope(SOAP_11, "", "<t:Level><t:sku>XX-000</t:sku></t:Level>");
    let refused = call(&bus, "", &level);
    assert!(refused.text().contains("soap:Server") && !refused.text().contains("many"));
    let refused = request(
        bus.http,
        "POST",
        "/depot",
        &[("Content-Type", "application/soap+xml")],
        envelope(SOAP_12, "", "<t:Level/>").as_bytes(),
    )
    .expect("an answer");
    assert_eq!(refused.status, 400);
    assert!(
        refused
            .text()
            .contains("<soap:Value>soap:Sender</soap:Value>")
    );
}

#[test]
fn an_action_of_another_operation_is_a_fault_and_one_way_has_no_answer() {
    let installation = depot();
    let bus = installation.start();
    let level = envelope(SOAP_11, "", "<t:Level><t:sku>AB-123</t:sku></t:Level>");
    for action in [
        "",
        "\"\"",
        "urn:test:depot/Level",
        "\"urn:test:depot/Level\"",
    ] {
        assert_eq!(call(&bus, action, &level).status, 200, "{action}");
    }
    for action in ["\"urn:test:depot/Book\"", "\"urn:other\""] {
        let refused = call(&bus, action, &level);
        assert_eq!(refused.status, 500);
        assert!(refused.text().contains("soap:Client") && refused.text().contains("SOAP action"));
    }
    let of_12 = |action: &str| {
        let content_type = format!("application/soap+xml; charset=utf-8; action=\"{action}\"");
        let body = level.replace(SOAP_11, SOAP_12);
        let headers = [("Content-Type", content_type.as_str())];
        request(bus.http, "POST", "/depot", &headers, body.as_bytes()).expect("an answer")
    };
    assert_eq!(of_12("urn:test:depot/Level").status, 200);
    assert_eq!(of_12("urn:test:depot/Book").status, 400);
    let note = envelope(SOAP_11, "", "<t:Note><t:text>x</t:text></t:Note>");
    let taken = call(&bus, "urn:test:depot/Note", &note);
    assert_eq!((taken.status, taken.body.len()), (202, 0));
    assert!(taken.header("content-type").is_none());
}

#[test]
fn headers_for_others_need_not_be_understood() {
    let installation = depot();
    let bus = installation.start();
    let level = "<t:Level><t:sku>AB-123</t:sku></t:Level>";
    let next_11 = "http://schemas.xmlsoap.org/soap/actor/next";
    let next_12 = format!("{SOAP_12}/role/next");
    let none_12 = format!("{SOAP_12}/role/none");
    for (namespace, attributes, status) in [
        (SOAP_11, "e:mustUnderstand=\"1\"".to_owned(), 500),
        (
            SOAP_11,
            format!("e:mustUnderstand=\"1\" e:actor=\"{next_11}\""),
            500,
        ),
        (
            SOAP_11,
            "e:mustUnderstand=\"1\" e:actor=\"urn:other\"".to_owned(),
            200,
        ),
        (SOAP_11, "e:mustUnderstand=\"0\"".to_owned(), 200),
        (
            SOAP_12,
            format!("e:mustUnderstand=\"true\" e:role=\"{next_12}\""),
            500,
        ),
        // `relay` is about blocks that need not be understood.
        (
            SOAP_12,
            format!("e:mustUnderstand=\"true\" e:relay=\"true\" e:role=\"{next_12}\""),
            500,
        ),
        (
            SOAP_12,
            format!("e:mustUnderstand=\"true\" e:role=\"{none_12}\""),
            200,
        ),
        (
            SOAP_12,
            format!("e:relay=\"true\" e:role=\"{next_12}\""),
            200,
        ),
    ] {
        let body = envelope(
            namespace,
            &format!("<x xmlns=\"urn:x\" {attributes}/>"),
            level,
        );
        let content_type = match namespace {
            SOAP_11 => "text/xml",
            _ => "application/soap+xml",
        };
        let headers = [("Content-Type", content_type)];
        let answer =
            request(bus.http, "POST", "/depot", &headers, body.as_bytes()).expect("an answer");
        assert_eq!(answer.status, status, "{attributes}: {}", answer.text());
        assert_eq!(status == 500, answer.text().contains("MustUnderstand"));
    }
    let other = envelope("urn:other", "", level);
    let refused = call(&bus, "", &other);
    assert_eq!(refused.status, 500);
    assert!(
        refused.text().contains("VersionMismatch"),
        "{}",
        refused.text()
    );
}

#[test]
fn a_spyne_service_behind_the_bus_answers_and_faults() {
    let service = Service::start(program("soap_service.py"));
    let installation = Installation::new();
    installation.route(
        "stock",
        &format!(
            "receive:\n  http: {{ path: /stock, soap: any }}\ninvoke:\n  - name: stock\n    http: {{ url: \"http://127.0.0.1:{}/\", soap: {{ version: \"1.1\", action: level }} }}\n",
            service.port
        ),
    );
    let bus = installation.start();
    let ask = |namespace: &str, content_type: &str, sku: &str| {
        let body = format!(
            "<e:Envelope xmlns:e=\"{namespace}\"><e:Body><s:level xmlns:s=\"urn:test:stock\"><s:sku>{sku}</s:sku></s:level></e:Body></e:Envelope>"
        );
        let headers = [("Content-Type", content_type)];
        request(bus.http, "POST", "/stock", &headers, body.as_bytes()).expect("an answer")
    };
    for (namespace, content_type) in [(SOAP_11, "text/xml"), (SOAP_12, "application/soap+xml")] {
        let answer = ask(namespace, content_type, "AB-123");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains(">42<") && answer.text().contains(namespace));
        let refused = ask(namespace, content_type, "none");
        assert_eq!(refused.status, 500);
        assert!(refused.text().contains("destination"), "{}", refused.text());
    }
}

#[test]
fn a_fault_that_is_passed_on_is_answered_in_the_callers_version_or_handled() {
    let fault = format!(
        "<e:Envelope xmlns:e=\"{SOAP_11}\"><e:Body><e:Fault><faultcode>e:Client.NoStock</faultcode>\
         <faultstring>none left</faultstring><detail><n:left xmlns:n=\"urn:n\">0</n:left></detail>\
         </e:Fault></e:Body></e:Envelope>"
    );
    let destination = Destination::with(move |_| {
        crate::support::Answer::Status(500, "text/xml; charset=utf-8", fault.clone().into())
    });
    let installation = Installation::new();
    let step = |more: &str| {
        format!(
            "invoke:\n  - name: stock\n    http: {{ url: \"{}\", soap: {{ faults: pass }} }}\n{more}",
            destination.url("/")
        )
    };
    installation
        .route(
            "passed",
            &format!("receive:\n  http: {{ path: /passed, soap: any }}\n{}", step("")),
        )
        .route(
            "handled",
            &format!(
                "receive:\n  http: {{ path: /handled, soap: any }}\n{}",
                step("reply: { transform: level.rhai }\n")
            ),
        )
        .script(
            "level.rhai",
            "let fault = xpath(\"//faultstring\");\nif fault == () { body } else { element(\"level\", fault) }\n",
        );
    let bus = installation.start();
    let ask = |path: &str, namespace: &str| {
        let content_type = match namespace {
            SOAP_11 => "text/xml",
            _ => "application/soap+xml",
        };
        let body = envelope(namespace, "", "<level/>");
        let headers = [("Content-Type", content_type)];
        request(bus.http, "POST", path, &headers, body.as_bytes()).expect("an answer")
    };
    let answer = ask("/passed", SOAP_11);
    assert_eq!(answer.status, 500);
    assert!(
        answer
            .text()
            .contains("<faultcode>e:Client.NoStock</faultcode>"),
        "{}",
        answer.text()
    );
    let answer = ask("/passed", SOAP_12);
    assert_eq!(answer.status, 400);
    let text = answer.text();
    for part in [
        SOAP_12,
        "<e:Code><e:Value>e:Sender</e:Value><e:Subcode>",
        ":Client.NoStock</e:Value></e:Subcode></e:Code>",
        "<e:Text xml:lang=\"en\">none left</e:Text>",
        "<e:Detail><n:left xmlns:n=\"urn:n\">0</n:left></e:Detail>",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    for namespace in [SOAP_11, SOAP_12] {
        let answer = ask("/handled", namespace);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(
            answer.text().contains("<level>none left</level>"),
            "{}",
            answer.text()
        );
    }
}

#[test]
fn an_answer_that_is_not_well_formed_is_a_fault_before_anything_is_delivered() {
    let destination = Destination::with(|got| {
        let inner = match got.path.as_str() {
            "/whole" => "<a>1</a>",
            "/broken" => "<a>1</b>",
            _ => "<a>1",
        };
        let whole = envelope(SOAP_11, "", inner);
        let end = match got.path.as_str() {
            "/cut" => whole.find("</e:Body>").expect("its end"),
            _ => whole.len(),
        };
        crate::support::Answer::Status(200, "text/xml", whole[..end].into())
    });
    let installation = Installation::new();
    for (name, wellformed) in [("whole", true), ("broken", true), ("cut", false)] {
        let route = format!(
            "receive:\n  http: {{ path: /{name}, soap: \"1.1\", wellformed: {wellformed} }}\ninvoke:\n  - name: ask\n    http: {{ url: \"{}\", soap: \"1.1\" }}\n",
            destination.url(&format!("/{name}"))
        );
        installation.route(name, &route);
    }
    installation
        .route(
            "made",
            "receive:\n  http: { path: /made, soap: \"1.1\" }\nreply: { transform: made.rhai }\n",
        )
        .script("made.rhai", "\"<a><b></a>\"");
    let bus = installation.start();
    let ask = |name: &str| {
        let headers = [("Content-Type", "text/xml")];
        let body = envelope(SOAP_11, "", "<q/>");
        request(
            bus.http,
            "POST",
            &format!("/{name}"),
            &headers,
            body.as_bytes(),
        )
        .expect("an answer")
    };
    let whole = ask("whole");
    assert_eq!(
        (whole.status, whole.text()),
        (200, envelope(SOAP_11, "", "<a>1</a>"))
    );
    for (name, code) in [
        ("broken", "destination"),
        ("cut", "in-doubt"),
        ("made", "transform"),
    ] {
        let refused = ask(name);
        assert_eq!(refused.status, 500, "{name}: {}", refused.text());
        assert!(refused.text().contains("soap:Server"), "{}", refused.text());
        let said = format!("code=\"{code}\"");
        assert!(refused.text().contains(&said), "{name}: {}", refused.text());
    }
    // What a destination answered is a failure of its step, not of the bus.
    let journal = get(bus.admin, "/api/v1/messages?route=broken").text();
    assert!(journal.contains("\"outcome\":\"failed\""), "{journal}");
}

#[test]
fn schemas_stand_at_receivers_and_steps_of_every_kind() {
    let destination = Destination::start();
    let installation = Installation::new();
    let xs = "xmlns:xs=\"http://www.w3.org/2001/XMLSchema\"";
    installation
        .file(
            "transforms/in.xsd",
            format!("<xs:schema {xs}><xs:element name=\"in\" type=\"xs:int\"/></xs:schema>"),
        )
        .file(
            "transforms/out.xsd",
            format!("<xs:schema {xs}><xs:element name=\"out\" type=\"xs:date\"/></xs:schema>"),
        )
        .route(
            "plain",
            &format!(
                "receive:\n  http: {{ path: /plain }}\n  schema: in.xsd\ninvoke:\n  - name: ask\n    schema: {{ response: out.xsd }}\n    http: {{ url: \"{}\" }}\n",
                destination.url("/")
            ),
        );
    let bus = installation.start();
    let send = |body: &str| {
        let headers = [("Content-Type", "application/xml")];
        request(bus.http, "POST", "/plain", &headers, body.as_bytes()).expect("an answer")
    };
    let xml = |text: &str| crate::support::Answer::Status(200, "application/xml", text.into());
    let good = xml("<out>2026-11-22</out>");
    destination.now(move |_| good.clone());
    assert_eq!(send("<in>1</in>").status, 200);
    let refused = send("\n<in>one</in>");
    assert_eq!(refused.status, 400);
    assert!(refused.text().contains("line 2"), "{}", refused.text());
    assert!(!refused.text().contains("one"), "{}", refused.text());
    assert_eq!(send("<other/>").status, 400);
    assert_eq!(send("no xml").status, 400);
    let bad = xml("<out>soon</out>");
    destination.now(move |_| bad.clone());
    let failed = send("<in>1</in>");
    assert_eq!(failed.status, 502);
    assert!(!failed.text().contains("soon"), "{}", failed.text());
    let messages = bus.json(&["messages", "show", &failed.id()]);
    let text = messages.to_string();
    assert!(text.contains("line 1") && text.contains("'out'"), "{text}");
}

#[test]
fn check_says_where_schemas_do_not_load() {
    let installation = Installation::new();
    let xs = "xmlns:xs=\"http://www.w3.org/2001/XMLSchema\"";
    installation
        .file(
            "transforms/a.xsd",
            format!(
                "<xs:schema {xs}>\n  <xs:include schemaLocation=\"../xbus.yaml\"/>\n  <xs:import namespace=\"urn:b\" schemaLocation=\"missing.xsd\"/>\n  <xs:element name=\"a\" type=\"x:T\" xmlns:x=\"urn:b\"/>\n  <xs:element name=\"b\" type=\"nope\"/>\n</xs:schema>"
            ),
        )
        .route(
            "a",
            "receive:\n  http: { path: /a }\n  schema: a.xsd\nreply: {}\n",
        );
    let output = installation.xbus(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let lines: Vec<(u64, String)> = said["problems"]
        .as_array()
        .expect("problems")
        .iter()
        .filter(|problem| problem["code"] == "bad-schema")
        .map(|problem| {
            assert_eq!(problem["file"], "transforms/a.xsd", "{said}");
            (
                problem["line"].as_u64().unwrap_or(0),
                problem["message"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    assert_eq!(
        lines.iter().map(|(line, _)| *line).collect::<Vec<_>>(),
        [2, 4, 5],
        "{said}"
    );
    assert!(lines[1].1.contains("missing.xsd"), "{said}");
}

#[test]
fn a_skeleton_of_a_wsdl_checks_and_answers() {
    let installation = Installation::new();
    let samples = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/samples/soap/depot.wsdl");
    let wsdl = samples.display().to_string();
    let made = installation.xbus(&["wsdl", &wsdl]);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let check = installation.xbus(&["check", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&check.stdout).expect("JSON");
    assert_eq!(said["problems"], serde_json::json!([]), "{said:#}");
    let again = installation.xbus(&["wsdl", &wsdl]);
    assert_eq!(again.status.code(), Some(1), "nothing is written over");
    let bus = installation.start();
    let level = envelope(SOAP_11, "", "<t:Level><t:sku>AB-123</t:sku></t:Level>");
    let headers = [("Content-Type", "text/xml")];
    let answer =
        request(bus.http, "POST", "/depot", &headers, level.as_bytes()).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.text().contains("LevelResponse"), "{}", answer.text());
}

/// What is open, as `route/step: kind count`.
fn open(bus: &Bus<'_>) -> Vec<String> {
    let all = bus.json(&["alerts"]);
    let one = |incident: &serde_json::Value| {
        let word = |name: &str| incident[name].as_str().unwrap_or_default().to_owned();
        format!(
            "{}/{}: {} {}",
            word("route"),
            word("step"),
            word("kind"),
            incident["count"]
        )
    };
    all.as_array().expect("a list").iter().map(one).collect()
}

#[test]
fn an_answer_that_breaks_its_rules_is_an_incident_until_a_good_one() {
    let good = envelope(SOAP_11, "", "<out>2026-11-22</out>");
    let broken = envelope(SOAP_11, "", "<out>soon</out>").replace("</out>", "</oops>");
    let answer = |body: &str| crate::support::Answer::Status(200, "text/xml", body.into());
    let destination = Destination::start();
    let installation = Installation::new();
    let url = destination.url("/");
    let xs = "xmlns:xs=\"http://www.w3.org/2001/XMLSchema\"";
    let soap = format!("http: {{ url: \"{url}\", soap: \"1.1\" }}");
    installation
        .file(
            "transforms/out.xsd",
            format!("<xs:schema {xs}><xs:element name=\"out\" type=\"xs:date\"/></xs:schema>"),
        )
        .script("read.rhai", "element(\"out\", xpath(\"//out\"))")
        .script(
            "made.rhai",
            "if header(\"content-language\") == \"xx\" { \"no XML\" } else { element(\"out\", \"1\") }",
        )
        .route(
            "made",
            "receive: { http: { path: /made, soap: \"1.1\" } }\nreply: { transform: made.rhai }\n",
        )
        .route(
            "step",
            &format!(
                "receive: {{ http: {{ path: /step }} }}\ninvoke:\n  - name: ask\n    schema: {{ response: out.xsd }}\n    http: {{ url: \"{url}\" }}\n"
            ),
        )
        .route(
            "end",
            &format!(
                "receive: {{ http: {{ path: /end, soap: \"1.1\", wellformed: true }} }}\ninvoke:\n  - name: ask\n    {soap}\n"
            ),
        )
        .route(
            "read",
            &format!(
                "receive: {{ http: {{ path: /read, soap: \"1.1\" }} }}\ninvoke:\n  - name: ask\n    {soap}\nreply: {{ transform: read.rhai }}\n"
            ),
        );
    let bus = installation.start();
    let post = |path: &str, body: &str| {
        let headers = [("Content-Type", "text/xml")];
        request(bus.http, "POST", path, &headers, body.as_bytes()).expect("an answer")
    };
    let ask = envelope(SOAP_11, "", "<q/>");
    let bad = answer("<out>soon</out>");
    destination.now(move |_| bad.clone());
    // The second one does not end what the first one began.
    for _ in 0..2 {
        let failed = post("/step", "<q/>");
        assert_eq!(failed.status, 502, "{}", failed.text());
        assert!(failed.text().contains("destination"), "{}", failed.text());
    }
    assert_eq!(open(&bus), ["step/ask: outage 2"]);
    let incident = bus.json(&["alerts"])[0].to_string();
    assert!(incident.contains("line 1"), "{incident}");
    let bad = answer(&broken);
    destination.now(move |_| bad.clone());
    for path in ["/end", "/read"] {
        for _ in 0..2 {
            let failed = post(path, &ask);
            assert_eq!(failed.status, 500, "{}", failed.text());
            assert!(failed.text().contains("soap:Server"), "{}", failed.text());
            assert!(
                failed.text().contains("code=\"destination\""),
                "{}",
                failed.text()
            );
        }
    }
    assert_eq!(
        open(&bus),
        [
            "end/route: outage 2",
            "read/reply: outage 2",
            "step/ask: outage 2"
        ]
    );
    destination.now(move |_| answer(&good));
    for path in ["/end", "/read"] {
        assert_eq!(post(path, &ask).status, 200, "{path}");
    }
    let good = crate::support::Answer::Status(200, "text/xml", "<out>2026-11-22</out>".into());
    destination.now(move |_| good.clone());
    assert_eq!(post("/step", "<q/>").status, 200);
    assert_eq!(open(&bus), Vec::<String>::new());
    // An answer that the caller cannot be given, of a message that was taken.
    let headers = [("Content-Type", "text/xml"), ("Content-Language", "xx")];
    let made = request(bus.http, "POST", "/made", &headers, ask.as_bytes()).expect("an answer");
    assert_eq!(made.status, 500, "{}", made.text());
    assert_eq!(open(&bus), ["made/reply@caller: transform 1"]);
    let told = bus.json(&["messages", "show", &made.id()]).to_string();
    assert!(told.contains("reply@caller"), "{told}");
    assert_eq!(post("/made", &ask).status, 200);
    assert_eq!(open(&bus), Vec::<String>::new());
}

#[test]
fn a_lost_answer_that_is_asked_for_again_is_an_incident() {
    let destination = Destination::with(|_| crate::support::Answer::Close);
    let installation = Installation::new();
    installation.route(
        "files",
        &format!(
            "receive: {{ file: {{ dir: in, ready: {{ rename: true }}, poll: 50ms, retry: {{ first: 20ms, max: 50ms }} }} }}\ndistribute:\n  - name: erp\n    http: {{ url: \"{}\" }}\n",
            destination.url("/")
        ),
    );
    installation.file("in/a.txt", "x");
    let bus = installation.start();
    crate::support::wait_for("an incident", || {
        let open = open(&bus);
        open.iter()
            .any(|one| one.starts_with("files/erp: outage"))
            .then_some(())
    });
    destination.now(|_| crate::support::Answer::ok());
    crate::support::wait_for("its end", || open(&bus).is_empty().then_some(()));
}

#[test]
fn a_reply_that_fits_no_envelope_is_found_before_anything_is_sent() {
    let system = Destination::start();
    let installation = Installation::new();
    installation
        .route(
            "r",
            &format!(
                "receive: {{ http: {{ path: /r, soap: any }} }}
distribute:
  - name: file
    file: {{ dir: out, name: \"{{{{ id }}}}.xml\" }}
  - name: system
    http: {{ url: \"{}\" }}
reply: {{ transform: reply.rhai }}
",
                system.url("/")
            ),
        )
        .script("reply.rhai", "#{ a: 1 }");
    let bus = installation.start();
    let body = envelope(SOAP_11, "", "<a/>");
    let answer = crate::support::post(bus.http, "/r", "text/xml", body.as_bytes());
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert!(
        answer.text().contains("not an XML document"),
        "{}",
        answer.text()
    );
    assert_eq!(system.count(), 0);
    let failed = bus.json(&["messages", "--outcome", "failed"]);
    assert_eq!(failed.as_array().map(Vec::len), Some(1), "{failed}");
    assert!(!installation.path().join("out").exists());
}
