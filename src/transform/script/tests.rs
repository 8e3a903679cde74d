//! Scripts and expressions by example, through the public engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xbus_core::transform::{Scope, Source, Value};
use xbus_core::{Code, Compiler, Context, Fault, Message};

use crate::{Engine, Limits};

pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) engine: Engine,
    pub(crate) scope: Scope,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(Limits::default())
    }

    pub(crate) fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = Engine::new(PathBuf::from(folder.path()), limits);
        Self {
            folder,
            engine,
            scope: Scope {
                namespaces: BTreeMap::from([("o".into(), "urn:shop".into())]),
            },
        }
    }

    pub(crate) fn file(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    /// The message that a script makes of `message`.
    pub(crate) fn script(&self, text: &str, message: Message) -> Result<Message, Fault> {
        let message = Arc::new(message);
        let context = Context::new("orders".into(), message.clone());
        self.script_in(text, &message, &context)
    }

    pub(crate) fn script_in(
        &self,
        text: &str,
        message: &Arc<Message>,
        context: &Context,
    ) -> Result<Message, Fault> {
        self.file("t.rhai", text);
        let transform = self
            .engine
            .transform(Source::File(Path::new("t.rhai")), &self.scope)
            .unwrap_or_else(|error| panic!("{error:?}"));
        transform.apply(message, context)
    }

    pub(crate) fn expression(&self, text: &str, message: Message) -> Result<Value, Fault> {
        let message = Arc::new(message);
        let context = Context::new("orders".into(), message.clone());
        self.engine
            .expression(text, &self.scope)
            .unwrap_or_else(|error| panic!("{text}: {error:?}"))
            .evaluate(&message, &context)
    }

    pub(crate) fn refused(&self, text: &str) -> (String, usize, usize, String) {
        self.file("t.rhai", text);
        match self
            .engine
            .transform(Source::File(Path::new("t.rhai")), &self.scope)
        {
            Ok(_) => panic!("compiles: {text}"),
            Err(error) => (
                error.message,
                error.line,
                error.column,
                error.help.unwrap_or_default(),
            ),
        }
    }
}

pub(crate) fn message(content_type: &str, body: impl Into<xbus_core::Body>) -> Message {
    let mut message = Message::new(body);
    message.headers.set("content-type", content_type);
    message
}

pub(crate) fn text_of(message: &Message) -> String {
    String::from_utf8(message.body.bytes().to_vec()).unwrap()
}

const ORDER: &str = r#"<order xmlns="urn:shop" no="7"><customer>Ann &amp; Bo</customer>
<line qty="2"><sku>A</sku><price>1.50</price></line><line qty="3"><sku>B</sku><price>10</price></line></order>"#;

fn order() -> Message {
    let mut order = message("text/xml", ORDER);
    order.headers.set("Country", "DE");
    order
}

/// What is evaluated without the engine gives what the engine gives: a block is not simple.
#[test]
fn simple_expressions_mean_the_same() {
    let bench = Bench::new();
    for text in [
        r#"header("country")"#,
        r#"header("no-such")"#,
        r#"header("country") == "DE""#,
        r#"header("no-such") == "DE""#,
        r#"header("no-such") != """#,
        r#"xpath("/o:order/@no")"#,
        r#"xpath("/o:order/@none")"#,
        r#"xpath("/o:order/@no") == "7""#,
        r#"xpath("/o:order/@no") != "7""#,
        r#"xpath("/o:order/@none") != "7""#,
    ] {
        for message in [
            order(),
            message("text/xml", "<broken"),
            message("text/plain", "x"),
        ] {
            let simple = bench.expression(text, message.clone());
            // Joined with what needs the engine.
            let whole = bench.expression(&format!("[{text}][0]"), message);
            match (simple, whole) {
                (Ok(simple), Ok(whole)) => assert_eq!(simple, whole, "{text}"),
                (Err(simple), Err(whole)) => assert_eq!(simple.code, whole.code, "{text}"),
                (simple, whole) => panic!("{text}: {simple:?}, {whole:?}"),
            }
        }
    }
}

#[test]
fn numbers_are_written_as_xpath_says() {
    let bench = Bench::new();
    for (number, text) in [
        ("1 div 0", "Infinity"),
        ("-1 div 0", "-Infinity"),
        ("0 div 0", "NaN"),
        ("-1 * 0", "0"),
        ("number(3)", "3"),
        ("number('-1.50')", "-1.5"),
    ] {
        let read = format!(r#"xpath("{number}")"#);
        let value = |text: &str| bench.expression(text, order()).unwrap().into_text();
        assert_eq!(value(&read), text);
        assert_eq!(value(&format!("{read}.to_string()")), text);
        assert_eq!(value(&format!(r#""" + {read}"#)), text);
        assert_eq!(value(&format!("`${{{read}}}`")), text);
        assert_eq!(
            value(&format!(r#"element("a", {read}).to_xml()"#)),
            format!("<a>{text}</a>")
        );
        assert_eq!(value(&format!(r#"xpath("string({number})")"#)), text);
    }
}

#[test]
fn expressions_read_the_message() {
    let bench = Bench::new();
    for (text, value) in [
        (r#"header("country")"#, Value::Text("DE".into())),
        (r#"header("missing")"#, Value::Unit),
        (r#"headers["COUNTRY"] == "DE""#, Value::Bool(true)),
        (r#"header("COUNTRY") == "DE""#, Value::Bool(true)),
        (r#"header("country") == "FR""#, Value::Bool(false)),
        (r#"header("country") != "DE""#, Value::Bool(false)),
        (r#"header("missing") == "DE""#, Value::Bool(false)),
        (r#"header("missing") != "DE""#, Value::Bool(true)),
        (r#"header("missing") == """#, Value::Bool(false)),
        (r#"xpath("/o:order/@no") == "7""#, Value::Bool(true)),
        (r#"xpath("//o:customer") != "Ann & Bo""#, Value::Bool(false)),
        (r#"xpath("//o:nothing") == "x""#, Value::Bool(false)),
        (r#"xpath("//o:nothing") != "x""#, Value::Bool(true)),
        (r#""country" in headers"#, Value::Bool(true)),
        (r#"xpath("/o:order/@no")"#, Value::Text("7".into())),
        (r#"xpath("//o:nothing")"#, Value::Unit),
        (r#"xpath("count(//o:line)")"#, Value::Int(2)),
        (r#"xpath("sum(//o:price)")"#, Value::Float(11.5)),
        (r#"xpath("//o:price > 5")"#, Value::Bool(true)),
        (
            r#"xpath("//x:sku", #{x: "urn:shop"})"#,
            Value::Text("A".into()),
        ),
        (
            r#"xpath_all("//o:sku").map(|n| n.text()).join(",")"#,
            Value::Text("A,B".into()),
        ),
        (
            r#"xpath_all("//o:line")[1].attr("qty")"#,
            Value::Text("3".into()),
        ),
        (
            r#"xpath_all("//o:line")[-1].xpath("o:sku")"#,
            Value::Text("B".into()),
        ),
        (
            r#"xpath_all("//o:line")[0].name"#,
            Value::Text("line".into()),
        ),
        (
            r#"body.xpath("string(//o:customer)")"#,
            Value::Text("Ann & Bo".into()),
        ),
        (r#"received.xpath("//o:sku") == "A""#, Value::Bool(true)),
        (
            r#"`${route}: ${xpath("number(//o:price) * 2")}`"#,
            Value::Text("orders: 3".into()),
        ),
        (
            r#"id == received.id && id == correlation_id"#,
            Value::Bool(true),
        ),
        (r#"1 + 1"#, Value::Int(2)),
        (r#"number("1.5") < 2"#, Value::Bool(true)),
        (
            r#"decimals(2.675, 2) + decimals(-0.001, 2) + decimals(99.999, 1)"#,
            Value::Text("2.680.00100.0".into()),
        ),
    ] {
        assert_eq!(bench.expression(text, order()).unwrap(), value, "{text}");
    }
    for (text, value) in [
        ("body.a.b[0]", Value::Int(1)),
        ("body.a.b.len()", Value::Int(3)),
        ("body.missing", Value::Unit),
        ("body.missing?.deeper", Value::Unit),
        ("jsonpath(\"$.a.b[2]\")", Value::Int(3)),
        (
            "jsonpath_all(\"$..b[*]\").map(|x| x * 2).reduce(|s, x| s + x, 0)",
            Value::Int(12),
        ),
        ("json(body).t", Value::Text("x".into())),
        ("\"t\" in body", Value::Bool(true)),
        ("body.a", Value::Text("{\"b\":[1,2,3]}".into())),
    ] {
        let json = message("application/json", r#"{"a":{"b":[1,2,3]},"t":"x"}"#);
        assert_eq!(bench.expression(text, json).unwrap(), value, "{text}");
    }
}

#[test]
fn ordering_text_against_numbers_is_a_fault() {
    let bench = Bench::new();
    for text in [
        r#"xpath("//o:price") > 1"#,
        r#"1.5 >= header("country")"#,
        r#"header("country") < 1.0"#,
        r#"7 <= header("country")"#,
    ] {
        let fault = bench.expression(text, order()).unwrap_err();
        assert_eq!(fault.code, Code::Transform);
        assert!(
            fault.for_admin().contains("compared with a number"),
            "{fault}"
        );
    }
    assert_eq!(
        bench
            .expression(r#"header("country") == 7"#, order())
            .unwrap(),
        Value::Bool(false)
    );
}

#[test]
fn scripts_make_bodies_by_their_last_value() {
    let bench = Bench::new();
    for (script, content_type, body) in [
        (
            r#"#{b: 1, a: [xpath("//o:sku"), 2.0, 1.5, true, ()]}"#,
            "application/json",
            r#"{"a":["A",2,1.5,true,null],"b":1}"#,
        ),
        (
            r#"xpath_all("//o:sku").map(|n| n.text())"#,
            "application/json",
            r#"["A","B"]"#,
        ),
        (
            r#"element("a", #{x: 1, y: ()}, [element("b", "<&"), "t", xpath_all("//o:sku")[0]])"#,
            "text/xml; charset=utf-8",
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<a x=\"1\"><b>&lt;&amp;</b>t<sku xmlns=\"urn:shop\">A</sku></a>",
        ),
        (
            r#"element("o:a", element("o:b"))"#,
            "text/xml; charset=utf-8",
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<o:a xmlns:o=\"urn:shop\"><o:b/></o:a>",
        ),
        (
            r#"element("a", #{xmlns: "urn:shop"}, xpath_all("//o:sku"))"#,
            "text/xml; charset=utf-8",
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<a xmlns=\"urn:shop\"><sku>A</sku><sku>B</sku></a>",
        ),
        (
            r#"headers["content-type"] = "text/xml; charset=iso-8859-1"; element("ä", "ö")"#,
            "text/xml; charset=iso-8859-1",
            "",
        ),
        (r#""plain""#, "text/plain; charset=utf-8", "plain"),
        (
            r#"csv([#{n: 1, t: "a;b"}, #{n: 2, t: "c"}], #{columns: ["t", "n"], separator: ";"})"#,
            "text/csv; charset=utf-8",
            "t;n\r\n\"a;b\";1\r\nc;2\r\n",
        ),
        (
            r#"base64_decode("AAEC")"#,
            "application/octet-stream",
            "\0\u{1}\u{2}",
        ),
        (r#"headers["x"] = 7; body"#, "text/xml", ORDER),
        (r#"headers["x"] = 7; text()"#, "text/xml", ORDER),
        (r#""""#, "text/plain; charset=utf-8", ""),
    ] {
        let made = bench
            .script(script, order())
            .unwrap_or_else(|e| panic!("{script}: {e}"));
        assert_eq!(made.content_type(), Some(content_type), "{script}");
        if body.is_empty() && content_type.contains("8859") {
            assert_eq!(
                &made.body.bytes()[..],
                b"<?xml version=\"1.0\" encoding=\"windows-1252\"?>\n<\xe4>\xf6</\xe4>"
            );
        } else {
            assert_eq!(text_of(&made), body, "{script}");
        }
        assert_eq!(made.headers.get("country"), Some("DE"));
    }
    let fault = bench.script("let x = 1;", order()).unwrap_err();
    assert!(
        fault.for_admin().contains("ends without a value"),
        "{fault}"
    );
}

#[test]
fn csv_goes_both_ways_and_is_not_bound_by_the_limit_on_arrays() {
    let bench = Bench::new();
    let mut text = String::from("name;qty\r\n");
    for n in 0..10_000 {
        text.push_str(&format!("item {n};{n}\r\n"));
    }
    let input = || message("text/csv", text.clone());
    let script = r#"
        let out = list();
        for row in csv(body, #{separator: ";"}) {
            if parse_int(row.qty) % 2 == 0 { out.push(#{ n: row.name, q: parse_int(row.qty) }); }
        }
        out"#;
    let made = bench.script(script, input()).unwrap();
    assert!(text_of(&made).ends_with(r#"{"n":"item 9998","q":9998}]"#));
    let same = bench
        .script(
            r#"csv(csv(body, #{separator: ";"}), #{separator: ";"})"#,
            input(),
        )
        .unwrap();
    assert_eq!(text_of(&same), text);
    assert_eq!(same.content_type(), Some("text/csv; charset=utf-8"));
    let lists = bench
        .script(r#"csv(body, #{header: false, separator: ";"})[1]"#, input())
        .unwrap();
    assert_eq!(text_of(&lists), r#"["item 0","0"]"#);
}

#[test]
fn tables_are_looked_up() {
    let bench = Bench::new();
    bench.file(
        "countries.csv",
        "code,name,eu\nDE,Germany,yes\nUK,United Kingdom,no\n",
    );
    bench.file("units.csv", "code;unit\nC62;piece\n");
    let value = |text: &str| bench.expression(text, order()).unwrap();
    assert_eq!(
        value(r#"table("countries.csv")[header("country")].name"#),
        Value::Text("Germany".into())
    );
    assert_eq!(
        value(r#"table("units.csv")["C62"]"#),
        Value::Text("piece".into())
    );
    assert_eq!(value(r#"table("units.csv")["none"]"#), Value::Unit);
    let (message, line, column, _) = bench.refused("let a = 1;\ntable(\"missing.csv\")");
    assert!(
        message.contains("missing.csv") && (line, column) == (2, 7),
        "{message} {line}:{column}"
    );
    assert!(
        bench
            .refused("table(\"../secret.csv\")")
            .0
            .contains("within transforms/")
    );
}

#[test]
fn mistakes_are_found_at_load_with_the_nearest_name() {
    let bench = Bench::new();
    for (script, part, line, column, help) in [
        (
            "let a = 1;\nxpaht(\"//a\")",
            "no function 'xpaht'",
            2,
            1,
            "xpath",
        ),
        (
            "let total = 1;\n  totl + 1",
            "no variable 'totl'",
            2,
            3,
            "total",
        ),
        ("heders[\"x\"]", "no variable 'heders'", 1, 1, "headers"),
        ("xpath()", "takes 1, 2 or 3 argument(s), 0 given", 1, 1, ""),
        ("xpath(\"//q:a\")", "prefix 'q' is not declared", 1, 10, ""),
        ("xpath(\"//a[\")", "XPath", 1, 12, ""),
        ("jsonpath(\"$[\")", "JSONPath", 1, 10, ""),
        ("let x = ;", "", 1, 9, ""),
        ("let x = 'ab';", "", 1, 9, "double quotes"),
        ("fn f(x) { y }\nf(1)", "no variable 'y'", 1, 11, ""),
        ("[1].map(|x| x + z)", "no variable 'z'", 1, 17, ""),
        ("body.txet()", "no function 'txet'", 1, 6, "text"),
        ("body.package", "reserved", 1, 6, "[\"package\"]"),
        ("eval(\"1\")", "", 1, 1, ""),
        ("import \"x\" as y;", "", 1, 1, ""),
    ] {
        let found = bench.refused(script);
        assert!(found.0.contains(part), "{script}: {found:?}");
        assert_eq!((found.1, found.2), (line, column), "{script}: {found:?}");
        assert!(found.3.contains(help), "{script}: {found:?}");
    }
    for fine in [
        "fn f(x) { x + 1 }\nf(1)",
        "let m = #{add: |x| x + 1}; m.add(1)",
        "let f = |x| x; f.call(1)",
        "let xs = [1, 2]; let k = 2; xs.map(|x| x * k)",
        "let id = 5; id",
        "try { fail(\"client\", \"no\") } catch (e) { e }; 1",
        "switch 1 { 1 => \"a\", _ => \"b\" }",
        "fn f() { header(\"x\") ?? route } f()",
    ] {
        bench
            .script(fine, order())
            .unwrap_or_else(|error| panic!("{fine}: {error}"));
    }
}

#[test]
fn failures_name_the_place_and_quote_the_line() {
    let bench = Bench::new();
    let fault = bench
        .script(
            "let a = 1;\nlet b = a + [].len() + parse_int(header(\"country\"));\nb",
            order(),
        )
        .unwrap_err();
    assert_eq!(
        (fault.code, &*fault.reason),
        (Code::Transform, "the transformation failed")
    );
    let detail = fault.for_admin();
    assert!(detail.starts_with("transforms/t.rhai:2:24: "), "{detail}");
    assert!(detail.contains("\n 2 | let b = a + [].len() + parse_int(header(\"country\"));\n   |                        ^"), "{detail}");

    let fault = bench
        .script(
            "fn f(x) {\n  fail(\"client\", \"no \" + x)\n}\nf(\"stock\")",
            order(),
        )
        .unwrap_err();
    assert_eq!((fault.code, &*fault.reason), (Code::Client, "no stock"));
    assert!(
        fault
            .for_admin()
            .starts_with("transforms/t.rhai:2:3: no stock"),
        "{fault}"
    );
    let fault = bench.script("fail(\"wrong\", \"x\")", order()).unwrap_err();
    assert_eq!(fault.code, Code::Internal);

    let fault = bench
        .expression("1 + xpath(\"//o:sku\").foo.bar", order())
        .unwrap_err();
    assert!(
        fault
            .for_admin()
            .contains("expression `1 + xpath(\"//o:sku\").foo.bar`"),
        "{fault}"
    );
}

#[test]
fn who_is_to_blame_for_what_cannot_be_parsed() {
    let bench = Bench::new();
    let broken = || message("text/xml", "<a><b></a>");
    assert_eq!(
        bench
            .expression("xpath(\"//a\")", broken())
            .unwrap_err()
            .code,
        Code::Client
    );
    let received = Arc::new(order());
    let mut context = Context::new("r".into(), received);
    let response = Arc::new(broken());
    context.responses.push(("stock".into(), response.clone()));
    let fault = bench
        .script_in("responses.stock.xpath(\"//a\")", &response, &context)
        .unwrap_err();
    assert_eq!(fault.code, Code::Destination);
    let fault = bench
        .script_in("xpath(\"//a\")", &response, &context)
        .unwrap_err();
    assert_eq!(fault.code, Code::Destination);
    let own = Arc::new(message("text/xml", "<own>"));
    let fault = bench
        .script_in("xpath(\"//a\")", &own, &context)
        .unwrap_err();
    assert_eq!(fault.code, Code::Transform);
    // Nothing reads it, nothing is wrong.
    assert_eq!(
        bench.expression("id.len()", broken()).unwrap(),
        Value::Int(36)
    );
}

#[test]
fn context_is_at_hand() {
    let bench = Bench::new();
    let received = Arc::new(order());
    let mut context = Context::new("r".into(), received);
    let mut stock = message("application/json", r#"{"free": {"A": 5}}"#);
    stock.headers.set("http.status", "200");
    let stock = Arc::new(stock);
    context.responses.push(("stock".into(), stock.clone()));
    context.response = Some(stock.clone());
    let script = r#"#{
        free: responses.stock.body.free.A,
        path: responses.stock.jsonpath("$.free.A"),
        status: responses["stock"].headers["http.status"],
        none: responses.pricing,
        has: "stock" in responses,
        sku: received.xpath("//o:sku"),
        back: response.body.free.A,
        own: body.free.A,
    }"#;
    let made = bench.script_in(script, &stock, &context).unwrap();
    assert_eq!(
        text_of(&made),
        r#"{"back":5,"free":5,"has":true,"none":null,"own":5,"path":5,"sku":"A","status":"200"}"#
    );
}

#[test]
fn soap_parts() {
    let bench = Bench::new();
    for uri in [
        "http://schemas.xmlsoap.org/soap/envelope/",
        "http://www.w3.org/2003/05/soap-envelope",
    ] {
        let envelope = format!(
            "<s:Envelope xmlns:s=\"{uri}\" xmlns:x=\"urn:x\" xmlns:u=\"urn:unused\"><s:Header><x:Who>me</x:Who></s:Header>\
             <s:Body>\n<x:Go t=\"x:T\"/></s:Body></s:Envelope>"
        );
        let input = || message("text/xml", envelope.clone());
        assert_eq!(
            bench
                .expression("soap_header(\"{urn:x}Who\").text()", input())
                .unwrap(),
            Value::Text("me".into())
        );
        assert_eq!(
            bench
                .expression("soap_header(\"{urn:y}Who\")", input())
                .unwrap(),
            Value::Unit
        );
        assert_eq!(
            bench
                .expression("soap_header(\"Who\").text()", input())
                .unwrap(),
            Value::Text("me".into())
        );
        assert_eq!(
            bench.expression("soap_body().local_name", input()).unwrap(),
            Value::Text("Go".into())
        );
        assert_eq!(
            bench.expression("soap_body().to_xml()", input()).unwrap(),
            Value::Text("<x:Go xmlns:x=\"urn:x\" t=\"x:T\"/>".into())
        );
    }
    assert!(
        bench
            .expression("soap_body()", order())
            .unwrap_err()
            .for_admin()
            .contains("not a SOAP envelope")
    );
}

#[test]
fn headers_are_set_safely() {
    let bench = Bench::new();
    let made = bench.script("headers[\"order-no\"] = xpath(\"/o:order/@no\"); headers.country = (); headers.n = 2.0; body", order()).unwrap();
    assert_eq!(made.headers.get("Order-No"), Some("7"));
    assert_eq!(made.headers.get("n"), Some("2"));
    assert_eq!(made.headers.get("country"), None);
    for bad in [
        "headers[\"a b\"] = 1; 1",
        "headers[\"a\"] = \"x\\r\\ny: z\"; 1",
        "headers[\"a\"] = []; 1",
        "received.headers[\"a\"] = 1; 1",
    ] {
        assert!(bench.script(bad, order()).is_err(), "{bad}");
    }
}

#[test]
fn long_numbers_pass_unchanged() {
    let bench = Bench::new();
    let body = r#"{"a":12345678901234567890123,"b":1.10,"c":9223372036854775808,"d":0.1234567890123456789}"#;
    let json = || message("application/json", body);
    let made = bench
        .script(
            r#"let m = copy(body); m.list = [body.c, jsonpath("$.d"), jsonpath("$.b")];
               #{ a: body.a, all: body, copied: m }"#,
            json(),
        )
        .unwrap();
    assert_eq!(
        text_of(&made),
        format!(
            r#"{{"a":12345678901234567890123,"all":{body},"copied":{{"a":12345678901234567890123,"b":1.1,"c":9223372036854775808,"d":0.1234567890123456789,"list":[9223372036854775808,0.1234567890123456789,1.1]}}}}"#
        )
    );
    for (text, value) in [
        ("body.a", Value::Text("12345678901234567890123".into())),
        ("`${body.a}`", Value::Text("12345678901234567890123".into())),
        (
            r#""no " + body.c"#,
            Value::Text("no 9223372036854775808".into()),
        ),
        ("body.b + 1", Value::Float(2.1)),
        ("body.a == body.a", Value::Bool(true)),
        ("body.a != body.c", Value::Bool(true)),
        ("body.c == 9223372036854775807", Value::Bool(false)),
        ("body.c > 9223372036854775807", Value::Bool(true)),
        ("body.d < 0.2", Value::Bool(true)),
        ("number(body.c)", Value::Float(9223372036854775808.0)),
        (r#"jsonpath_all("$[?@ > 1]").len"#, Value::Int(3)),
    ] {
        assert_eq!(bench.expression(text, json()).unwrap(), value, "{text}");
    }
    for text in [
        "body.a + 1",
        "1.5 * body.d",
        "-body.a",
        "body.a - body.a",
        "body.c.floor()",
        "decimals(body.d, 2)",
    ] {
        let fault = bench.expression(text, json()).unwrap_err();
        assert_eq!(fault.code, Code::Transform, "{text}");
        let detail = fault.detail.unwrap();
        assert!(
            detail.contains("too long for exact arithmetic"),
            "{text}: {detail}"
        );
    }
}

#[test]
fn a_csv_that_ends_within_quotes_is_the_senders_fault() {
    let bench = Bench::new();
    for (content_type, script) in [
        ("text/csv", "body"),
        ("text/csv", "csv(body)"),
        ("text/csv", r#"csv(body, #{separator: ","})"#),
        ("text/plain", "csv(body)"),
        ("text/plain", "csv(text())"),
    ] {
        let fault = bench
            .script(script, message(content_type, "a,b\n1,\"x"))
            .unwrap_err();
        assert_eq!(fault.code, Code::Client, "{content_type} {script}");
        assert!(
            fault
                .reason
                .contains("the quote that opens in line 2 is never closed"),
            "{}",
            fault.reason
        );
    }
    let fault = bench
        .script(r#"csv("a\n\"x")"#, message("text/plain", "x"))
        .unwrap_err();
    assert_eq!(fault.code, Code::Transform);
}

#[test]
fn handles_become_json_or_say_why_not() {
    let bench = Bench::new();
    bench.file("t.csv", "k,v\n1,one\n");
    let made = bench
        .script(
            r#"headers["X-B"] = "2";
#{ h: headers, l: [#{ h: received.headers }], n: xpath_all("//o:sku"), one: body.xpath_all("//o:customer")[0],
   rows: csv("a\n1\n"), t: table("t.csv")["1"] }"#,
            order(),
        )
        .unwrap();
    assert_eq!(
        text_of(&made),
        r#"{"h":{"content-type":"text/xml","Country":"DE","X-B":"2"},"l":[{"h":{"content-type":"text/xml","Country":"DE"}}],"n":["A","B"],"one":"Ann & Bo","rows":[{"a":"1"}],"t":"one"}"#
    );
    assert_eq!(
        text_of(&bench.script("headers", order()).unwrap()),
        r#"{"content-type":"text/xml","Country":"DE"}"#
    );
    for (value, words) in [
        (
            "received",
            "a whole message cannot become JSON: name what of it is meant",
        ),
        ("responses", "the responses cannot become JSON"),
        ("bytes()", "a blob cannot become JSON: base64("),
        (r#"table("t.csv")"#, "a lookup table cannot become JSON"),
        ("|x| x", "a function cannot become JSON"),
        ("1..3", "a range cannot become JSON"),
        (
            "timestamp()",
            "a clock of timestamp() cannot become JSON: now()",
        ),
    ] {
        let fault = bench
            .script(&format!("let a = 1;\n  #{{ a: [{value}] }}"), order())
            .unwrap_err();
        let detail = fault.detail.unwrap();
        assert!(
            detail.starts_with(&format!("transforms/t.rhai:2:3: {words}")),
            "{value}: {detail}"
        );
    }
    let fault = bench
        .script("headers[\"x\"] = received; body", order())
        .unwrap_err();
    let detail = fault.detail.unwrap();
    assert!(
        detail.contains("a whole message cannot be a plain text here"),
        "{detail}"
    );
}

#[test]
fn members_of_a_text_body_are_explained() {
    let bench = Bench::new();
    for script in [
        "body.name",
        "let b = body; b.name",
        r#"body["name"]"#,
        r#"body[ "name" ].first"#,
        "body[0].name",
        r#"body[0]["name"]"#,
    ] {
        let fault = bench.script(script, Message::new("{}")).unwrap_err();
        let detail = fault.detail.unwrap();
        assert!(
            detail.contains("transforms/t.rhai:1:"),
            "{script}: {detail}"
        );
        assert!(
            detail.contains("a text has no member"),
            "{script}: {detail}"
        );
        assert!(
            detail.contains("the body is read as text (no content type)")
                && detail.contains("`format: json`"),
            "{script}: {detail}"
        );
    }
    let fault = bench
        .expression("body.name == 1", message("text/plain", "{}"))
        .unwrap_err();
    let detail = fault.detail.unwrap();
    assert!(detail.contains("(content type text/plain)"), "{detail}");
    // Elsewhere the body is not to blame.
    let fault = bench
        .script("body.a.b", message("application/json", r#"{"a":"x"}"#))
        .unwrap_err();
    let detail = fault.detail.unwrap();
    assert!(detail.contains("a text has no member 'b'\n"), "{detail}");
}

#[test]
fn stylesheets_and_templates_are_told_not_to_run_yet() {
    let bench = Bench::new();
    for (name, what) in [
        ("a.xsl", "XSLT stylesheets"),
        ("a.xslt", "XSLT stylesheets"),
        ("a.j2", "Jinja templates"),
    ] {
        bench.file(name, "<a/>");
        let Err(error) = bench
            .engine
            .transform(Source::File(Path::new(name)), &bench.scope)
        else {
            panic!("{name} compiles");
        };
        assert_eq!(
            error.message,
            format!("{name}: this build does not run {what} yet")
        );
        assert_eq!((error.line, error.column), (1, 1));
        assert!(error.help.unwrap().contains(".rhai"));
    }
}

#[test]
fn a_document_is_parsed_once_and_only_as_far_as_it_is_read() {
    let bench = Bench::new();
    let made = |text: &str| {
        let mut message = Message::new(text.to_owned());
        message.headers.set("content-type", "text/xml");
        Arc::new(message)
    };
    let evaluate = |message: &Arc<Message>, text: &str| {
        let compiled = bench.engine.expression(text, &bench.scope).unwrap();
        compiled.evaluate(message, &Context::new("r".into(), message.clone()))
    };
    let cache = |message: &Message| xbus_xml::cache::of(message);
    // Nothing of this could be parsed.
    let broken = made("<a><b>1</b><c>\u{1}</a>");
    for text in ["id", "header(\"content-type\")", "received.headers[\"x\"]"] {
        assert!(evaluate(&broken, text).is_ok(), "{text}");
        assert!(!cache(&broken).is_tried(), "{text}");
    }
    // What stands before the mistake can be read.
    let cut = made("<a><b>1</b><c></a>");
    assert_eq!(
        evaluate(&cut, "xpath(\"//b\")").unwrap(),
        Value::Text("1".into())
    );
    assert!(!cache(&cut).is_tried(), "no tree for a plain path");
    assert!(evaluate(&cut, "xpath(\"//c\")").is_err());
    // However many expressions, scripts and copies of the message read it: one tree.
    let whole = made("<a><b>1</b><b>2</b></a>");
    assert!(cache(&whole).parsed().is_none());
    assert!(evaluate(&whole, "xpath(\"count(//b)\")").is_ok());
    let tree = cache(&whole).parsed().expect("parsed").clone();
    for text in [
        "xpath(\"sum(//b)\")",
        "xpath(\"//b\")",
        "body.xpath(\"//b[2]\")",
        "xpath_all(\"//b\").len()",
        "received.xpath(\"string(/a)\")",
    ] {
        let copy = Arc::new((*whole).clone());
        assert!(evaluate(&copy, text).is_ok(), "{text}");
        assert!(Arc::ptr_eq(&tree, cache(&copy).parsed().unwrap()), "{text}");
    }
}

#[test]
fn a_mistyped_property_of_a_message_is_found_at_once() {
    let bench = Bench::new();
    let found = bench.refused("let a = 1;\na + received.bdy");
    let told = ("a message has no property 'bdy'", 2, "did you mean body?");
    assert_eq!((found.0.as_str(), found.1, found.3.as_str()), told);
    for bad in [
        "received.heders[\"a\"]",
        "received.foo.bar",
        "response.staus",
    ] {
        assert!(bench.refused(bad).0.contains("no property"), "{bad}");
    }
    for good in [
        "received.headers.a",
        "received.body.bdy",
        "received.xpath(\"//a\")",
        "let m = received; m.id",
    ] {
        bench.file("g.rhai", good);
        let source = Source::File(Path::new("g.rhai"));
        assert!(
            bench.engine.transform(source, &bench.scope).is_ok(),
            "{good}"
        );
    }
}
