//! WS-Security and WS-Addressing: zeep as a caller, a service with checks of its own behind the bus,
//! tokens that come twice, and what a reload and a crash change about that.

use std::path::PathBuf;
use std::process::Command;

use crate::support::python::{Service, program};
use crate::support::{
    Answer, Bus, Destination, Installation, Response, bus::signal, get, request, wait_for,
};

const SOAP_11: &str = "http://schemas.xmlsoap.org/soap/envelope/";
const SOAP_12: &str = "http://www.w3.org/2003/05/soap-envelope";
const WSA: &str = "http://www.w3.org/2005/08/addressing";
const WSA_2004: &str = "http://schemas.xmlsoap.org/ws/2004/08/addressing";
const PASSWORD: &str = "op3n & <sesame>";

fn peers() -> Command {
    program("soap_security_peers.py")
}

#[track_caller]
fn peer(arguments: &[&str]) -> String {
    let output = peers().args(arguments).output().expect("the peer starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A digest of somebody else's making, `age` seconds old.
#[track_caller]
fn token(age: &str) -> String {
    token_of(PASSWORD, age)
}

#[track_caller]
fn token_of(password: &str, age: &str) -> String {
    peer(&["token", "shop", password, age])
        .replace("&", "&amp;")
        .trim()
        .to_owned()
}

fn text_token(user: &str, password: &str) -> String {
    let wsse = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd";
    format!(
        "<w:Security xmlns:w=\"{wsse}\"><w:UsernameToken><w:Username>{user}</w:Username><w:Password>{password}</w:Password></w:UsernameToken></w:Security>"
    )
}

fn envelope(namespace: &str, header: &str) -> String {
    format!(
        "<e:Envelope xmlns:e=\"{namespace}\"><e:Header>{header}</e:Header><e:Body><order xmlns=\"urn:o\"/></e:Body></e:Envelope>"
    )
}

#[track_caller]
fn call(bus: &Bus<'_>, path: &str, body: &str) -> Response {
    let content_type = match body.contains(SOAP_12) {
        true => "application/soap+xml; charset=utf-8",
        false => "text/xml; charset=utf-8",
    };
    let headers = [("Content-Type", content_type)];
    request(bus.http, "POST", path, &headers, body.as_bytes()).expect("an answer")
}

/// Routes under /a and /b whose callers must be `shop` or `erp`.
fn guarded() -> Installation {
    let mut installation = Installation::new();
    installation.env("SHOP_PASSWORD", PASSWORD);
    for name in ["a", "b"] {
        installation.route(name, &guarded_route(name, ""));
    }
    installation
}

fn guarded_route(name: &str, more: &str) -> String {
    format!(
        "receive:\n  http:\n    path: /{name}\n    soap: any\n    security:\n      username_token: {{ users: {{ shop: \"${{SHOP_PASSWORD}}\", erp: pw }} }}\n{more}reply: {{}}\n"
    )
}

#[track_caller]
fn refused_with(answer: &Response, code: &str) {
    let text = answer.text();
    assert_eq!(answer.status, 500, "{text}");
    assert!(
        text.contains(&format!("<faultcode>wsse:{code}</faultcode>")),
        "{code}: {text}"
    );
    assert!(text.contains("code=\"denied\""), "{text}");
}

#[test]
fn zeep_and_suds_are_let_in_with_text_and_digest() {
    let mut installation = Installation::new();
    installation.env("SHOP_PASSWORD", PASSWORD);
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
    installation
        .route(
            "level",
            "namespaces: { t: \"urn:test:depot:types\" }\nreceive:\n  http:\n    path: /depot\n    soap: any\n    wsdl: depot/depot.wsdl\n    security:\n      username_token: { users: { shop: \"${SHOP_PASSWORD}\" } }\nreply: { transform: level.rhai }\n",
        )
        .script(
            "level.rhai",
            "element(\"t:LevelResponse\", [element(\"t:level\", \"5\")])",
        );
    let bus = installation.start();
    let url = format!("http://{}/depot?wsdl", bus.http);
    let said: serde_json::Value =
        serde_json::from_str(&peer(&["zeep", &url, "shop", PASSWORD])).expect("JSON");
    for port in ["DepotPort11", "DepotPort12"] {
        let of = &said[port];
        for way in ["text", "digest", "zulu", "addressed", "timestamp"] {
            assert_eq!(of[way], 5, "{port} {way}: {said:#}");
        }
        for (way, code) in [
            ("expired", "MessageExpired"),
            ("wrong", "FailedAuthentication"),
            ("nobody", "FailedAuthentication"),
            ("none", "InvalidSecurity"),
        ] {
            let codes = of[way]["codes"].to_string();
            assert!(codes.contains(code), "{port} {way}: {said:#}");
        }
        assert_eq!(of["wrong"]["message"], of["nobody"]["message"]);
    }
    let said: serde_json::Value =
        serde_json::from_str(&peer(&["suds", &url, "shop", PASSWORD])).expect("JSON");
    let expected =
        serde_json::json!({ "text": 5, "nonce": 5, "wrong": "wsse:FailedAuthentication" });
    assert_eq!(said, expected);
    assert!(!installation.log().contains("sesame"));
}

#[test]
fn a_token_that_comes_again_is_refused_on_every_route_and_after_a_reload() {
    let installation = guarded();
    let bus = installation.start();
    let body = envelope(SOAP_11, &token("0"));
    let first = call(&bus, "/a", &body);
    assert_eq!(first.status, 200, "{}", first.text());
    for path in ["/a", "/b"] {
        refused_with(&call(&bus, path, &body), "InvalidSecurityToken");
    }
    installation.route("a", &guarded_route("a", "description: changed\n"));
    installation.route("c", &guarded_route("c", ""));
    signal(bus.pid(), "HUP");
    let fresh = envelope(SOAP_11, &text_token("erp", "pw"));
    wait_for("the reload", || {
        (call(&bus, "/c", &fresh).status == 200).then_some(())
    });
    for path in ["/a", "/b", "/c"] {
        refused_with(&call(&bus, path, &body), "InvalidSecurityToken");
    }
    let old = envelope(SOAP_11, &token("301"));
    refused_with(&call(&bus, "/a", &old), "MessageExpired");
    let ahead = envelope(SOAP_11, &token("-120"));
    refused_with(&call(&bus, "/a", &ahead), "MessageExpired");
    let nothing = envelope(SOAP_11, "");
    refused_with(&call(&bus, "/a", &nothing), "InvalidSecurity");
}

#[test]
fn of_many_that_come_at_once_with_one_token_one_is_let_in() {
    let installation = guarded();
    let bus = installation.start();
    let body = envelope(SOAP_11, &token("0"));
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..16)
            .map(|number| {
                let (bus, body) = (&bus, &body);
                let path = if number % 2 == 0 { "/a" } else { "/b" };
                scope.spawn(move || call(bus, path, body).status)
            })
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().expect("an answer"))
            .collect()
    });
    let taken = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(taken, 1, "{statuses:?}");
}

#[test]
fn after_a_crash_no_token_of_before_is_let_in() {
    let installation = guarded();
    let bus = installation.start();
    let used = envelope(SOAP_11, &token("0"));
    let unused = envelope(SOAP_11, &token("0"));
    assert_eq!(call(&bus, "/a", &used).status, 200);
    bus.kill();
    let bus = installation.start();
    for old in [&used, &unused] {
        refused_with(&call(&bus, "/a", old), "MessageExpired");
    }
    // What is made from now on is let in at once, though it tells whole seconds.
    let fresh = envelope(SOAP_11, &token("0"));
    let taken = call(&bus, "/a", &fresh);
    assert_eq!(taken.status, 200, "{}", taken.text());
}

#[test]
fn refusals_are_faults_of_the_version_and_tell_nothing() {
    let installation = guarded();
    let bus = installation.start();
    let wrong = text_token("shop", "guess");
    refused_with(
        &call(&bus, "/a", &envelope(SOAP_11, &wrong)),
        "FailedAuthentication",
    );
    let refused = call(&bus, "/a", &envelope(SOAP_12, &wrong));
    assert_eq!(refused.status, 400);
    let text = refused.text();
    for part in [
        "<soap:Value>soap:Sender</soap:Value><soap:Subcode><soap:Value>wsse:FailedAuthentication</soap:Value></soap:Subcode>",
        "code=\"denied\"",
        "xmlns:wsse=\"http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-wssecurity-secext-1.0.xsd\"",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // A header that must be understood is understood where security is configured, and there only.
    installation.route(
        "open",
        "receive:\n  http: { path: /open, soap: any }\nreply: {}\n",
    );
    signal(bus.pid(), "HUP");
    wait_for("the reload", || {
        (call(&bus, "/open", &envelope(SOAP_11, "")).status == 200).then_some(())
    });
    let must =
        text_token("erp", "pw").replace("<w:Security ", "<w:Security e:mustUnderstand=\"1\" ");
    let must = envelope(SOAP_11, &must);
    assert_eq!(call(&bus, "/a", &must).status, 200);
    let refused = call(&bus, "/open", &must);
    assert!(refused.text().contains("soap:MustUnderstand"));
    let signed = must.replace(
        "</w:Security>",
        "<d:Signature xmlns:d=\"http://www.w3.org/2000/09/xmldsig#\"/></w:Security>",
    );
    refused_with(&call(&bus, "/a", &signed), "UnsupportedAlgorithm");
}

#[test]
fn the_user_is_the_caller_whose_keys_are_his_own() {
    let mut installation = Installation::new();
    installation.env("SHOP_PASSWORD", "pw").route(
        "once",
        &guarded_route("once", "once: { key: 'header(\"x-key\")' }\n"),
    );
    let bus = installation.start();
    let send = |user: &str| {
        let body = envelope(SOAP_11, &text_token(user, "pw"));
        let headers = [("Content-Type", "text/xml"), ("X-Key", "k")];
        request(bus.http, "POST", "/once", &headers, body.as_bytes()).expect("an answer")
    };
    let (shop, erp) = (send("shop"), send("erp"));
    assert_eq!((shop.status, erp.status), (200, 200), "{}", erp.text());
    assert_ne!(shop.id(), erp.id());
    assert_eq!(send("shop").id(), shop.id(), "a repeat of his own");
    // A digest is another one each time; the message is not.
    let repeat = |body: &str| {
        let headers = [("Content-Type", "text/xml"), ("X-Key", "digest")];
        request(bus.http, "POST", "/once", &headers, body.as_bytes()).expect("an answer")
    };
    let digest = || envelope(SOAP_11, &token_of("pw", "0"));
    let first = repeat(&digest());
    let again = repeat(&digest());
    assert_eq!((first.status, again.status), (200, 200), "{}", again.text());
    assert_eq!(first.id(), again.id());
    let other = repeat(&digest().replace("order", "other"));
    assert_ne!(other.status, 200, "the same key with another body");
}

#[test]
fn routes_of_one_path_ask_for_what_they_ask() {
    let mut installation = Installation::new();
    installation
        .env("SHOP_PASSWORD", "pw")
        .route(
            "guarded",
            &guarded_route("x", "")
                .replace("soap: any", "soap: any\n    element: \"{urn:o}order\""),
        )
        .route(
            "open",
            "receive:\n  http: { path: /x, soap: any }\nreply: {}\n",
        );
    let bus = installation.start();
    let open = envelope(SOAP_11, "").replace("order", "other");
    assert_eq!(call(&bus, "/x", &open).status, 200);
    refused_with(&call(&bus, "/x", &envelope(SOAP_11, "")), "InvalidSecurity");
    let must =
        text_token("erp", "pw").replace("<w:Security ", "<w:Security e:mustUnderstand=\"1\" ");
    let must = envelope(SOAP_11, &must);
    assert_eq!(call(&bus, "/x", &must).status, 200);
    let refused = call(&bus, "/x", &must.replace("order", "other"));
    assert!(
        refused.text().contains("soap:MustUnderstand"),
        "{}",
        refused.text()
    );
}

#[test]
fn a_service_that_checks_digests_is_called_again_and_again() {
    let service = {
        let mut command = peers();
        command.args(["service", "xbus", PASSWORD]);
        Service::start(command)
    };
    let mut installation = Installation::new();
    installation.env("XBUS_PASSWORD", PASSWORD).route(
        "ask",
        &format!(
            "receive:\n  http: {{ path: /ask, soap: any }}\ninvoke:\n  - name: ask\n    http:\n      url: \"http://127.0.0.1:{}/\"\n      soap: {{ username_token: {{ user: xbus, password: \"${{XBUS_PASSWORD}}\", type: digest }}, timestamp: 2m }}\n",
            service.port
        ),
    );
    let bus = installation.start();
    // The caller's own header for the same place is replaced; of both versions, and of any charset.
    let plain = envelope(SOAP_11, "");
    for body in [
        plain.clone(),
        plain.clone(),
        envelope(SOAP_11, &text_token("somebody", "else")),
        envelope(SOAP_12, "<x xmlns=\"urn:x\"/>"),
        "<order xmlns=\"urn:o\"/>".to_owned(),
    ] {
        let body = match body.starts_with("<order") {
            true => plain.replace("<e:Header></e:Header>", ""),
            false => body,
        };
        let answer = call(&bus, "/ask", &body);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.text().contains("ok"), "{}", answer.text());
    }
    let latin: Vec<u8> = format!("<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>{plain}")
        .replace(
            "<order xmlns=\"urn:o\"/>",
            "<order xmlns=\"urn:o\">\u{fc}</order>",
        )
        .chars()
        .map(|c| c as u8)
        .collect();
    let headers = [("Content-Type", "text/xml; charset=iso-8859-1")];
    let answer = request(bus.http, "POST", "/ask", &headers, &latin).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The Security header cut out of an envelope, and the rest.
#[track_caller]
fn without_security(text: &str) -> (String, String) {
    let (before, rest) = text.split_once("<wsse:Security").expect("a header");
    let (header, after) = rest.split_once("</wsse:Security>").expect("its end");
    (header.to_owned(), format!("{before}{after}"))
}

#[test]
fn each_attempt_has_a_token_of_its_own_and_queues_hold_none() {
    let destination = Destination::start();
    let down = Answer::Status(503, "text/plain", Vec::new());
    destination.now(move |_| down.clone());
    let mut installation = Installation::new();
    installation.env("XBUS_PASSWORD", "unguessable-word").route(
        "later",
        &format!(
            "receive:\n  http: {{ path: /later, soap: any }}\ndistribute:\n  - name: desk\n    async: {{ retry: {{ first: 100ms, max: 100ms }} }}\n    http:\n      url: \"{}\"\n      soap: {{ action: \"urn:o/order\", addressing: true, username_token: {{ user: xbus, password: \"${{XBUS_PASSWORD}}\" }} }}\n",
            destination.url("/desk")
        ),
    );
    let bus = installation.start();
    let body = envelope(SOAP_11, "<x xmlns=\"urn:x\"> &#65; </x>");
    assert_eq!(call(&bus, "/later", &body).json_or_xml_status(), "accepted");
    destination.wait_for_count(2);
    bus.kill();
    for entry in walk(&installation.path().join("data")) {
        let bytes = std::fs::read(&entry).unwrap_or_default();
        let found = bytes
            .windows(16)
            .any(|window| window == b"unguessable-word");
        assert!(!found, "{}", entry.display());
    }
    let before = destination.count();
    let _bus = installation.start();
    let got = destination.wait_for_count(before + 1);
    let (mut headers, mut rests): (Vec<String>, Vec<String>) =
        got.iter().map(|got| without_security(&got.text())).unzip();
    assert!(
        headers
            .iter()
            .all(|header| header.contains("unguessable-word"))
    );
    let attempts = headers.len();
    headers.sort_unstable();
    headers.dedup();
    assert_eq!(headers.len(), attempts, "each its own");
    rests.dedup();
    assert_eq!(rests.len(), 1, "and nothing else differs: {rests:?}");
    let rest = &rests[0];
    assert!(
        rest.contains("<x xmlns=\"urn:x\"> &#65; </x></e:Header>"),
        "{rest}"
    );
    assert!(rest.contains(">urn:o/order</wsa:Action>"), "{rest}");
    assert!(rest.contains(&format!(">{}</wsa:To>", destination.url("/desk"))));
    assert!(rest.contains(">urn:uuid:"), "{rest}");
}

fn walk(folder: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(walk(&path)),
            path => found.push(path),
        }
    }
    found
}

#[test]
fn answers_belong_to_the_requests_of_addressed_callers() {
    let destination = Destination::start();
    let installation = Installation::new();
    installation
        .route(
            "ack",
            "receive:\n  http: { path: /ack, soap: any }\ndistribute:\n  - name: out\n    file: { dir: out, name: \"{{ id }}.xml\" }\n",
        )
        .route(
            "made",
            "receive:\n  http: { path: /made, soap: any }\nreply: { transform: made.rhai }\n",
        )
        .script("made.rhai", "element(\"made\", \"yes\")")
        .route(
            "proxy",
            &format!(
                "receive:\n  http: {{ path: /proxy, soap: any }}\ninvoke:\n  - name: behind\n    http: {{ url: \"{}\", soap: \"1.1\" }}\n",
                destination.url("/behind")
            ),
        )
        .route(
            "asking",
            &format!(
                "receive:\n  http: {{ path: /asking, soap: any }}\ninvoke:\n  - name: behind\n    transform: made.rhai\n    http: {{ url: \"{}\", soap: {{ action: \"urn:made\", addressing: true }} }}\n",
                destination.url("/behind")
            ),
        );
    let bus = installation.start();
    for (soap, wsa) in [(SOAP_11, WSA), (SOAP_12, WSA), (SOAP_11, WSA_2004)] {
        let header = format!(
            "<a:MessageID xmlns:a=\"{wsa}\">urn:uuid:m-1</a:MessageID><Action xmlns=\"{wsa}\" e:mustUnderstand=\"1\">urn:o/Order</Action><a:ReplyTo xmlns:a=\"{wsa}\"><a:Address>http://127.0.0.1:1/never</a:Address></a:ReplyTo>"
        );
        let body = envelope(soap, &header);
        for path in ["/ack", "/made"] {
            let answer = call(&bus, path, &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let text = answer.text();
            for part in [
                format!("<wsa:RelatesTo xmlns:wsa=\"{wsa}\">urn:uuid:m-1</wsa:RelatesTo>"),
                format!("<wsa:Action xmlns:wsa=\"{wsa}\">urn:o/OrderResponse</wsa:Action>"),
            ] {
                assert!(text.contains(&part), "{part}: {text}");
            }
            let shown = bus.json(&["messages", "show", &answer.id()]);
            assert_eq!(shown["correlation_id"], "urn:uuid:m-1", "{shown}");
        }
        // A fault says it too.
        let fault = call(
            &bus,
            "/ack",
            &body.replace(
                "<a:Reply",
                "<q e:mustUnderstand=\"1\" xmlns=\"urn:q\"/><a:Reply",
            ),
        );
        let text = fault.text();
        assert!(
            text.contains("MustUnderstand") && text.contains(">urn:uuid:m-1</wsa:RelatesTo>"),
            "{text}"
        );
        assert!(text.contains("/fault</wsa:Action>"), "{text}");
        // An answer elsewhere that has to be is refused.
        let elsewhere = body.replace("<a:ReplyTo ", "<a:ReplyTo e:mustUnderstand=\"1\" ");
        let refused = call(&bus, "/ack", &elsewhere);
        assert_ne!(refused.status, 200);
        let code = match wsa {
            WSA => "wsa:OnlyAnonymousAddressSupported",
            _ => "wsa:InvalidMessageInformationHeader",
        };
        assert!(refused.text().contains(code), "{}", refused.text());
    }
    // Through a proxy both stay as they are, byte for byte.
    let request = envelope(
        SOAP_11,
        &format!("<a:MessageID xmlns:a=\"{WSA}\" >urn:uuid:m-2</a:MessageID>"),
    );
    let answer = envelope(
        SOAP_11,
        &format!("<a:RelatesTo xmlns:a=\"{WSA}\" >urn:uuid:m-2</a:RelatesTo>"),
    );
    let said = Answer::Status(200, "text/xml; charset=utf-8", answer.clone().into());
    destination.now(move |_| said.clone());
    assert_eq!(call(&bus, "/proxy", &request).text(), answer);
    assert_eq!(destination.texts(), std::slice::from_ref(&request));
    // A step that asks in its own name is answered so, and the caller learns what is his.
    destination.now(move |got| {
        let text = got.text();
        let id = text
            .split_once("MessageID xmlns:wsa=\"http://www.w3.org/2005/08/addressing\">")
            .and_then(|(_, rest)| rest.split_once('<'))
            .map_or_else(String::new, |(id, _)| id.to_owned());
        assert!(id.starts_with("urn:uuid:"), "{text}");
        let answer = envelope(
            SOAP_11,
            &format!("<RelatesTo xmlns=\"{WSA}\">{id}</RelatesTo>"),
        );
        Answer::Status(200, "text/xml; charset=utf-8", answer.into())
    });
    let text = call(&bus, "/asking", &request).text();
    assert!(text.contains(">urn:uuid:m-2</wsa:RelatesTo>"), "{text}");
    assert_eq!(text.matches("RelatesTo").count(), 2, "{text}");
    assert_eq!(get(bus.admin, "/health/live").status, 200);
}

#[test]
fn check_warns_where_passwords_go_in_the_clear() {
    let installation = Installation::bare();
    installation
        .file("xbus.yaml", "http: { listen: \"0.0.0.0:8080\" }\n")
        .route(
            "a",
            "receive:\n  http: { path: /a, soap: any, security: { username_token: { users: { a: b } } } }\ninvoke:\n  - name: ask\n    http: { url: \"http://erp.example/\", soap: { username_token: { user: a, password: b } } }\n",
        )
        .route(
            "b",
            "receive:\n  http: { path: /b, soap: any, security: { username_token: { type: digest, users: { a: b } } } }\ninvoke:\n  - name: ask\n    http: { url: \"http://erp.example/\", soap: { username_token: { user: a, password: b, type: digest } } }\n",
        );
    let output = installation.xbus(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(0), "warnings only");
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let found: Vec<String> = said["problems"]
        .as_array()
        .expect("problems")
        .iter()
        .map(|problem| format!("{}:{}", problem["file"], problem["code"]))
        .collect();
    assert_eq!(
        found, ["\"routes/a.yaml\":\"clear-password\""; 2],
        "{said:#}"
    );
    installation.route(
        "a",
        "receive:\n  http: { path: /a, security: { username_token: { users: { a: b } } } }\ninvoke:\n  - name: ask\n    http: { url: \"http://erp.example/\", soap: { addressing: true } }\n",
    );
    let output = installation.xbus(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for part in ["'security' is about SOAP", "WS-Addressing needs an action"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
