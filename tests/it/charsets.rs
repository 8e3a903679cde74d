//! Which charset a body is read in, over HTTP and from files, and what one is sent in.

use crate::support::{Destination, Installation, post, wait_for};

fn utf16(text: &str, little: bool, mark: bool) -> Vec<u8> {
    let mark = mark.then_some(0xfeff);
    let units = mark.into_iter().chain(text.encode_utf16());
    units
        .flat_map(|unit| match little {
            true => unit.to_le_bytes(),
            false => unit.to_be_bytes(),
        })
        .collect()
}

/// XML with a declaration where `encoding` names one.
fn xml(encoding: &str, content: &[u8]) -> Vec<u8> {
    let declaration = match encoding {
        "" => String::new(),
        encoding => format!("<?xml version='1.0' encoding='{encoding}'?>"),
    };
    [declaration.as_bytes(), b"<a>", content, b"</a>"].concat()
}

struct Case {
    what: &'static str,
    /// The charset in the content type; empty: none.
    transport: &'static str,
    /// Whether the route says `windows-1252`.
    route: bool,
    body: Vec<u8>,
    /// Nothing: it cannot be read.
    expected: Option<&'static str>,
}

/// Byte order mark before transport before XML declaration before route.
fn cases() -> Vec<Case> {
    let case = |what, transport, route, body, expected| Case {
        what,
        transport,
        route,
        body,
        expected,
    };
    let plain = "<a>é€漢</a>";
    let declared = "<?xml version='1.0' encoding='utf-16'?><a>é€漢</a>";
    let wide = Some("é€漢");
    let shift_jis = b"\x8a\xbf\x8e\x9a";
    let gb18030 = b"\xba\xba\xd7\xd6\x95\x32\x82\x36";
    let marked = |rest: Vec<u8>| [b"\xef\xbb\xbf".to_vec(), rest].concat();
    vec![
        case("UTF-8", "", false, xml("", "é€漢".as_bytes()), wide),
        case("UTF-16LE, mark", "", false, utf16(plain, true, true), wide),
        case("UTF-16BE, mark", "", false, utf16(plain, false, true), wide),
        case("UTF-16LE, bare", "", false, utf16(plain, true, false), wide),
        case(
            "UTF-16BE, bare",
            "",
            false,
            utf16(plain, false, false),
            wide,
        ),
        case(
            "UTF-16LE, declared",
            "",
            false,
            utf16(declared, true, true),
            wide,
        ),
        case(
            "UTF-16BE, bare, declared",
            "",
            false,
            utf16(declared, false, false),
            wide,
        ),
        case(
            "UTF-16LE, transport",
            "utf-16le",
            false,
            utf16(plain, true, false),
            wide,
        ),
        case(
            "UTF-16, transport and mark",
            "utf-16",
            false,
            utf16(plain, false, true),
            wide,
        ),
        case(
            "a mark beats the transport",
            "iso-8859-1",
            false,
            utf16(plain, true, true),
            wide,
        ),
        case(
            "a mark beats transport, declaration and route",
            "iso-8859-15",
            true,
            marked(xml("iso-8859-1", "é€漢".as_bytes())),
            wide,
        ),
        case(
            "ISO 8859-1, declared",
            "",
            false,
            xml("ISO-8859-1", b"\xe9"),
            Some("é"),
        ),
        case(
            "ISO 8859-15, declared",
            "",
            false,
            xml("iso-8859-15", b"\xe9\xa4"),
            Some("é€"),
        ),
        case(
            "windows-1252, declared",
            "",
            false,
            xml("windows-1252", b"\xe9\x80"),
            Some("é€"),
        ),
        case(
            "Shift_JIS, declared",
            "",
            false,
            xml("Shift_JIS", shift_jis),
            Some("漢字"),
        ),
        case(
            "GB18030, declared",
            "",
            false,
            xml("GB18030", gb18030),
            Some("汉字𠀀"),
        ),
        case(
            "ISO 8859-15, transport",
            "iso-8859-15",
            false,
            xml("", b"\xa4"),
            Some("€"),
        ),
        case(
            "Shift_JIS, transport",
            "shift_jis",
            false,
            xml("", shift_jis),
            Some("漢字"),
        ),
        case(
            "GB18030, transport",
            "gb18030",
            false,
            xml("", gb18030),
            Some("汉字𠀀"),
        ),
        case(
            "the transport beats the declaration",
            "iso-8859-15",
            false,
            xml("iso-8859-1", b"\xa4"),
            Some("€"),
        ),
        case(
            "and is believed",
            "utf-8",
            false,
            xml("iso-8859-1", b"\xe9"),
            None,
        ),
        case(
            "the declaration beats the route",
            "",
            true,
            xml("iso-8859-15", b"\xa4"),
            Some("€"),
        ),
        case(
            "the transport beats the route",
            "iso-8859-15",
            true,
            xml("", b"\xa4"),
            Some("€"),
        ),
        case(
            "the route, when nothing else is said",
            "",
            true,
            xml("", b"\x80"),
            Some("€"),
        ),
        case("nothing said is UTF-8", "", false, xml("", b"\xe9"), None),
        case(
            "UTF-16 is not believed of bytes",
            "",
            false,
            xml("utf-16", "é".as_bytes()),
            Some("é"),
        ),
        case("no charset", "", false, xml("klingon", b"x"), None),
        case(
            "no charset of the transport",
            "klingon",
            false,
            xml("", b"x"),
            None,
        ),
    ]
}

#[test]
fn bodies_are_read_by_mark_transport_declaration_and_route_in_this_order() {
    let installation = Installation::new();
    let reply = "reply:\n  transform: text.rhai\n";
    let out = "distribute:\n  - transform: text.rhai\n    file: { dir: out, name: '{{ header(\"file.name\") }}' }\n";
    // What is not ASCII by its number, so that nothing else can change it.
    installation.script(
        "text.rhai",
        "headers[\"content-type\"] = \"text/plain; charset=utf-16be\"; xpath(\"string(/a)\")",
    );
    for (name, charset) in [
        ("said", "charset: windows-1252"),
        ("unsaid", "methods: [POST]"),
    ] {
        let watch = match name {
            "said" => ", charset: windows-1252",
            _ => "",
        };
        installation
            .route(
                &format!("http-{name}"),
                &format!("receive:\n  http: {{ path: /{name}, {charset} }}\n{reply}"),
            )
            .route(
                &format!("soap-{name}"),
                &format!("receive:\n  http: {{ path: /element/{name}, {charset}, element: a, wellformed: true }}\n{reply}"),
            )
            .route(
                &format!("file-{name}"),
                &format!("receive:\n  file: {{ dir: in-{name}, ready: {{ rename: true }}, poll: 50ms{watch} }}\n{out}"),
            );
    }
    let bus = installation.start();
    for (number, case) in cases().iter().enumerate() {
        let name = if case.route { "said" } else { "unsaid" };
        let content_type = match case.transport {
            "" => "application/xml".to_owned(),
            label => format!("application/xml; charset={label}"),
        };
        let expected = case.expected.map(|text| utf16(text, false, false));
        for path in [format!("/{name}"), format!("/element/{name}")] {
            let got = post(bus.http, &path, &content_type, &case.body);
            match &expected {
                Some(expected) => assert_eq!(&got.body, expected, "{path}: {}", case.what),
                None => assert_eq!(got.status, 400, "{path}: {}: {}", case.what, got.text()),
            }
        }
        // Of files nothing but what is in them speaks.
        if !case.transport.is_empty() {
            continue;
        }
        let file = format!("{number}.xml");
        installation.file(&format!("staging/{file}"), &case.body);
        let from = installation.path().join("staging").join(&file);
        let to = installation.path().join(format!("in-{name}")).join(&file);
        wait_for("the watched folder", || std::fs::rename(&from, &to).ok());
        let (out, failed) = (
            installation.path().join("out").join(&file),
            installation
                .path()
                .join(format!("in-{name}/.failed"))
                .join(&file),
        );
        let read = wait_for(case.what, || match std::fs::read(&out) {
            Ok(read) => Some(Some(read)),
            Err(_) => failed.exists().then_some(None),
        });
        assert_eq!(read, expected, "from a file: {}", case.what);
    }
}

#[test]
fn what_is_sent_is_in_the_charset_of_the_route() {
    let destination = Destination::start();
    let installation = Installation::new();
    let url = destination.url("/");
    for (name, sender) in [
        (
            "strict",
            format!("http: {{ url: \"{url}\", charset: iso-8859-1 }}"),
        ),
        (
            "reference",
            format!(
                "http: {{ url: \"{url}\", charset: {{ to: iso-8859-1, replace: reference }} }}"
            ),
        ),
        (
            "soap",
            format!(
                "http: {{ url: \"{url}\", soap: \"1.2\", charset: {{ to: us-ascii, replace: reference }} }}"
            ),
        ),
        (
            "wide",
            format!("http: {{ url: \"{url}\", charset: utf-16 }}"),
        ),
    ] {
        installation.route(
            name,
            &format!("receive:\n  http: {{ path: /{name} }}\ninvoke:\n  - {sender}\n"),
        );
    }
    installation.route(
        "file",
        "receive:\n  http: { path: /file }\ndistribute:\n  - file: { dir: out, name: \"{{ id }}\", charset: { to: us-ascii, replace: '?' } }\n",
    );
    let bus = installation.start();
    let send = |path: &str, content_type: &str, body: &str| {
        post(bus.http, path, content_type, body.as_bytes())
    };
    let latin1 = |bytes: &[u8]| -> String { bytes.iter().map(|byte| char::from(*byte)).collect() };
    let body = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<a b='é'>5 €</a>";
    let mut count = 0;
    let mut next = || {
        count += 1;
        destination.wait_for_count(count)[count - 1].clone()
    };

    let refused = send("/strict", "text/xml; charset=utf-8", body);
    assert_eq!(refused.status, 500, "{}", refused.text());
    let shown = bus.json(&["messages", "show", &refused.id()]).to_string();
    for part in ["iso-8859-1", "'€' (U+20AC)", "line 2, column 12"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert_eq!(destination.count(), 0);

    let fine = body.replace('€', "E");
    assert_eq!(
        send("/strict", "text/xml; charset=utf-8", &fine).status,
        200
    );
    let got = next();
    assert_eq!(
        got.header("content-type"),
        Some("text/xml; charset=iso-8859-1")
    );
    assert_eq!(latin1(&got.body), fine.replace("UTF-8", "iso-8859-1"));

    assert_eq!(send("/reference", "text/xml", body).status, 200);
    let referred = body.replace('€', "&#x20AC;").replace("UTF-8", "iso-8859-1");
    assert_eq!(latin1(&next().body), referred);

    send("/soap", "text/xml", body);
    let got = next();
    assert_eq!(
        got.header("content-type"),
        Some("application/soap+xml; charset=us-ascii")
    );
    let text = got.text();
    assert!(
        text.starts_with("<?xml version=\"1.0\" encoding=\"us-ascii\"?>"),
        "{text}"
    );
    assert!(text.contains("<a b='&#xE9;'>5 &#x20AC;</a>"), "{text}");

    assert_eq!(send("/wide", "text/plain", "5 €").status, 200);
    let got = next();
    assert_eq!(
        got.header("content-type"),
        Some("text/plain; charset=utf-16")
    );
    assert_eq!(got.body, utf16("5 €", true, true));

    assert_eq!(send("/file", "text/plain", "5 € für").status, 200);
    let files = installation.files("out");
    assert_eq!(std::fs::read(&files[0]).expect("a file"), b"5 ? f?r");
}

#[test]
fn check_says_which_charsets_and_replacements_cannot_be() {
    let installation = Installation::new();
    installation.route(
        "bad",
        "receive:\n  http: { path: /bad }\ndistribute:\n  - name: one\n    async: true\n    http: { url: \"http://127.0.0.1:1/\", charset: { to: klingon } }\n  - name: two\n    async: true\n    http: { url: \"http://127.0.0.1:1/\", charset: { to: us-ascii, replace: '€' } }\n  - name: three\n    async: true\n    http: { url: \"http://127.0.0.1:1/\", charset: { too: us-ascii } }\n",
    );
    let output = installation.xbus(&["check", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = said.to_string();
    for (code, line) in [("unknown-charset", 6), ("bad-replacement", 9)] {
        let problems = said["problems"].as_array().expect("problems");
        let found = problems.iter().find(|problem| problem["code"] == code);
        assert_eq!(found.expect(code)["line"], line, "{text}");
    }
    assert!(text.contains("'to'") && text.contains("too"), "{text}");
}

#[test]
fn the_charset_of_a_replys_content_type_is_the_one_that_it_is_written_in() {
    let installation = Installation::new();
    installation
        .script("text.rhai", "body")
        .script("octets.rhai", "encode(body, \"iso-8859-1\")")
        .script("xml.rhai", "element(\"a\", body)");
    for name in ["text", "octets", "xml"] {
        let kind = match name {
            "xml" => "application/xml",
            _ => "text/plain",
        };
        installation.route(
            name,
            &format!(
                "receive: {{ http: {{ path: /{name} }} }}\nreply: {{ transform: {name}.rhai, content_type: \"{kind}; charset=iso-8859-1\" }}\n"
            ),
        );
    }
    let bus = installation.start();
    let ask = |path: &str, text: &str| {
        crate::support::post(bus.http, path, "text/plain; charset=utf-8", text.as_bytes())
    };
    for (path, body) in [
        ("/text", b"Gr\xf6\xdfe".as_slice()),
        ("/octets", b"Gr\xf6\xdfe"),
        (
            "/xml",
            b"<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<a>Gr\xf6\xdfe</a>",
        ),
    ] {
        let answer = ask(path, "Größe");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let shown = answer.text();
        assert_eq!(answer.body, body, "{path}: {shown}");
        let kind = answer.header("Content-Type").unwrap_or_default();
        assert!(kind.ends_with("charset=iso-8859-1"), "{kind}");
    }
    let lacking = ask("/text", "Ж");
    assert_eq!(lacking.status, 500, "{}", lacking.text());
    drop(bus);
    installation.route(
        "text",
        "receive: { http: { path: /text } }\nreply: { transform: text.rhai, content_type: \"text/plain; charset=klingon\" }\n",
    );
    let checked = installation.xbus(&["check", "."]);
    let said = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(
        said.contains("klingon") && said.contains("routes/text.yaml:2"),
        "{said}"
    );
}
