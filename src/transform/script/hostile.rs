//! Scripts and documents that try to bring the process down. Each must end in a fault, in bounded
//! time, on the stack that the bus gives its workers; the test's own survival is the proof.

use std::time::{Duration, Instant};

use xbus_core::{Code, Fault, Message};

use super::tests::{Bench, message};
use crate::Limits;

/// The stack of the threads on which the bus runs scripts.
const STACK: usize = 16 << 20;

fn on_worker<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new()
        .stack_size(STACK)
        .spawn(work)
        .unwrap()
        .join()
        .unwrap()
}

fn limits() -> Limits {
    Limits {
        deadline: Duration::from_secs(3),
        ..Limits::default()
    }
}

fn run(script: &str, limits: Limits) -> Result<Message, Fault> {
    let script = script.to_owned();
    on_worker(move || {
        Bench::with(limits).script(&script, message("application/json", r#"{"a":[1,2]}"#))
    })
}

#[test]
fn no_script_outlives_its_limits() {
    for script in [
        "loop { }",
        "let x = 0; while true { x += 1; }",
        "fn f(n) { f(n + 1) } f(0)",
        "fn f(n) { g(n) } fn g(n) { f(n) } f(0)",
        "let f = |g, n| g.call(g, n + 1); f.call(f, 0)",
        "let s = \"x\"; loop { s += s; }",
        "let s = \"x\"; loop { s = s + s; }",
        "let s = \"x\"; loop { s = `${s}${s}`; }",
        "let s = \"ab\"; loop { s.pad(s.len() * 2, \"x\"); }",
        "let s = \"aaaaaaaa\"; loop { s.replace(\"a\", \"aaaaaaaa\"); }",
        "let s = \"aaaaaaaa\"; loop { s = replaced(s, \"a\", \"aaaaaaaa\"); }",
        "let a = []; loop { a = [a]; }",
        "let a = []; loop { a = [a, a]; }",
        "let a = []; loop { a.push(a); }",
        "let a = []; loop { let b = []; b.push(a); a = b; }",
        "let a = #{}; loop { a = #{a: a}; }",
        "let a = #{}; loop { a.x = a; }",
        "let a = [1]; loop { a += a; }",
        "let a = []; a.pad(1000000000, 1); a",
        "let a = list(); loop { let b = list(); b.push(a); a = b; }",
        "let a = list(); loop { a.push(a); }",
        "let a = list(); loop { a.push(\"0123456789\"); a.append(a); }",
        "let a = list(); a.push(1); loop { a = a.map(|x| a); }",
        "let a = element(\"a\"); loop { a = element(\"a\", a); }",
        "let a = element(\"a\"); loop { a = element(\"a\", [a, a]); }",
        "let a = [1]; [1].for_each(|x| a.push(x)); loop { a = [a]; }",
        "let a = #{}; [1].for_each(|x| a.x = x); loop { a.y = a; }",
        "let s = \"x\"; [1].for_each(|x| s += s); loop { s += s; }",
        "let a = []; loop { [1].for_each(|x| a.push(a)); }",
        "let a = [1]; loop { a = a.map(|x| a); }",
        "let b = blob(10); loop { b += b; }",
        "blob(100000000000)",
        "let s = \"x\"; for i in 0..21 { s += s; } let a = []; loop { a.push(encode(s, \"utf-8\")); }",
        "let s = \"eHh4\"; for i in 0..18 { s += s; } let m = #{}; let i = 0; loop { m[`k${i}`] = base64_decode(s); i += 1; }",
        "let s = \"x\"; for i in 0..20 { s += s; } loop { attachments.push(#{ body: s + \"y\" }); }",
        "let b = encode(\"x\", \"utf-8\"); loop { attachments.push(#{ body: b }); attachments = attachments.map(|a| attachments); }",
        "attachments = [#{ body: \"x\" }]; loop { attachments += attachments; }",
        "let m = #{}; let i = 0; loop { m[`k${i}`] = i; i += 1; }",
        "let s = \"x\"; for i in 0..21 { s += s; } let m = #{}; let i = 0; loop { m[`k${i}`] = s + `${i}`; i += 1; }",
        "fn grow(s, i) { this[`k${i}`] = s + `${i}`; } let s = \"x\"; for i in 0..21 { s += s; } let m = #{}; let i = 0; loop { m.grow(s, i); i += 1; }",
        "fn grow(s) { for i in 0..100000 { this[`k${i}`] = s + `${i}`; } } let s = \"x\"; for i in 0..21 { s += s; } let m = #{}; m.grow(s)",
        "let s = \"x\"; for i in 0..21 { s += s; } let a = [0, 0, 0, 0]; loop { a[0] = a; a[1] = s + \"y\"; }",
        "let i = 0; loop { headers[`h${i}`] = \"x\"; i += 1; }",
        "let s = \"x\"; loop { s += \"0123456789abcdef0123456789abcdef\"; headers[\"h\"] = s; }",
        "for i in 0..9223372036854775807 { }",
        "for i in range(0, 9223372036854775807) { }",
        "sleep(1000)",
        "let x = 1; loop { try { throw 1 } catch { } }",
        "fn f() { try { f() } catch { f() } } f()",
        "let a = []; loop { try { a = [a]; } catch { a = [a]; } }",
        "xml(\"<a>\" + \"<b>\".to_string() + \"</a>\")",
        "let s = \"<a>\"; for i in 0..15 { s += s; } xml(s)",
        "let s = \"[\"; for i in 0..18 { s += s; } json(s)",
        "let e = \"1\"; for i in 0..12 { e = \"(\" + e + \")\"; e = e + \"+\" + e; } xml(\"<a/>\").xpath(e)",
        "let x = xml(\"<a>\" + csv([[1]]) + \"</a>\"); loop { x = xml(element(\"a\", [x, x]).to_xml()); }",
        "let i = 0; loop { i += 1; xml(\"<a/>\").xpath(`//a[${i}]`); }",
        "let s = \"x\"; let l = list(); for i in 0..20 { s += s; } loop { l.push(s + \"y\"); }",
        "decimals(1.0, 100)",
        "1 << 1000000; 2 ** 100000",
        "9223372036854775807 + 1",
        "1 / 0",
        "let n = \"../../etc/passwd\"; table(n)",
    ] {
        let started = Instant::now();
        let fault = match run(script, limits()) {
            Err(fault) => fault,
            Ok(made) => panic!("{script}: made {} bytes", made.body.bytes().len()),
        };
        let took = started.elapsed();
        assert_eq!(fault.code, Code::Transform, "{script}: {fault}");
        assert!(took < Duration::from_secs(20), "{script}: {took:?}");
        assert!(fault.for_admin().len() < 4096, "{script}");
    }
}

#[test]
fn functions_cannot_be_nested_without_bound() {
    for script in [
        "let f = || 1; loop { f = curry(f, f); }",
        "let f = || 1; loop { let g = f; f = || g.call(); }",
        "let f = 1; loop { let g = f; f = [|| g]; }",
        "let f = 1; loop { let g = f; f = [1].map(|x| || g); }",
        "let f = 1; loop { let g = f; f = [1].reduce(|s, x| s, || g); }",
        "fn keep(f) { f } let f = 1; loop { let g = f; f = keep(|| g); }",
    ] {
        let (message, ..) = Bench::new().refused(script);
        assert!(
            message.contains("closure") || message.contains("curry"),
            "{script}: {message}"
        );
    }
}

#[test]
fn the_largest_configured_limits_fit_the_stack() {
    let large = || Limits {
        array_size: usize::MAX,
        map_size: usize::MAX,
        operations: u64::MAX,
        ..limits()
    };
    for script in [
        "let a = []; loop { a = [a]; }",
        "let a = #{}; loop { a = #{a: a}; }",
        "let a = []; loop { a = [#{a: a}]; }",
        "loop { }",
    ] {
        assert!(run(script, large()).is_err(), "{script}");
    }
    // At the limit, not above: copied, compared, measured, written and dropped.
    let nested = "let a = []; for i in 0..990 { a = [a]; } let b = a; b.push(1); a == b; a";
    let fault = run(nested, limits()).unwrap_err();
    assert!(fault.for_admin().contains("deep"), "{fault}");
}

#[test]
fn texts_that_are_nested_too_deep_do_not_compile() {
    for text in [
        format!("{}1{}", "(".repeat(100_000), ")".repeat(100_000)),
        "[".repeat(100_000),
        "#{a:".repeat(50_000),
        "{".repeat(100_000),
        "-".repeat(100_000),
        "!".repeat(100_000),
        format!("1{}", "+1".repeat(50_000)),
        "if true { ".repeat(20_000),
        "|x| ".repeat(20_000),
        "f(".repeat(50_000),
        format!("a{}", ".b".repeat(50_000)),
        format!("a{}", "[0]".repeat(50_000)),
        format!("`{}`", "${`".repeat(20_000)),
    ] {
        let shown: String = text.chars().take(20).collect();
        let compiles = on_worker(move || {
            let bench = Bench::with(limits());
            bench.file("t.rhai", &text);
            let source = xbus_core::transform::Source::File("t.rhai".as_ref());
            xbus_core::Compiler::transform(&bench.engine, source, &bench.scope).is_ok()
        });
        assert!(!compiles, "{shown}");
    }
}

#[test]
fn hostile_documents_end_in_a_fault_of_the_sender() {
    let deep = 100_000;
    let xml = [
        format!("{}{}", "<a>".repeat(deep), "</a>".repeat(deep)),
        "<a>".repeat(deep),
        format!(
            "<a {}/>",
            (0..1_000_000)
                .map(|n| format!("a{n}='' "))
                .collect::<String>()
        ),
        format!("<a>{}</a>", "<b/>".repeat(2_100_000)),
        "<!DOCTYPE a [<!ENTITY x \"xxxxxxxxxx\"><!ENTITY y \"&x;&x;&x;\">]><a>&y;</a>".to_owned(),
        "<!DOCTYPE a SYSTEM \"file:///etc/passwd\"><a/>".to_owned(),
        format!("<a>&#{};</a>", "9".repeat(1_000_000)),
        format!("<a>&{};</a>", "x".repeat(1_000_000)),
        format!(
            "<a {}/>",
            (0..900)
                .map(|n| format!("xmlns:p{n}='u{n}' "))
                .collect::<String>()
        ),
        "<a>\u{1}</a>".to_owned(),
        String::new(),
        "   ".to_owned(),
        "<a/><b/>".to_owned(),
        "<a".to_owned(),
    ];
    for text in xml {
        let shown: String = text.chars().take(30).collect();
        let started = Instant::now();
        let fault = on_worker(move || {
            Bench::with(limits())
                .expression("xpath(\"count(//node())\")", message("text/xml", text))
                .unwrap_err()
        });
        assert_eq!(fault.code, Code::Client, "{shown}: {fault}");
        assert!(started.elapsed() < Duration::from_secs(10), "{shown}");
        assert!(fault.reason.len() < 400, "{shown}: {fault}");
    }
    for (content_type, body) in [
        ("text/xml; charset=utf-8", &b"<a>\xff\xfe</a>"[..]),
        ("text/xml; charset=klingon", b"<a/>"),
        ("text/xml", b"<?xml version='1.0' encoding='klingon'?><a/>"),
        ("application/json", b"{\"a\":"),
        ("application/json", &[b'['; 1 << 20]),
        ("text/csv", b"a,b\n1\n"),
    ] {
        let fault = on_worker(move || {
            Bench::with(limits())
                .script(
                    "if body == () { 1 } else { 2 }",
                    message(content_type, body.to_vec()),
                )
                .unwrap_err()
        });
        assert_eq!(fault.code, Code::Client, "{content_type}: {fault}");
    }
}

#[test]
fn a_large_honest_document_is_fine() {
    let mut rows = String::from("[");
    for n in 0..20_000 {
        if n > 0 {
            rows.push(',');
        }
        rows.push_str(&format!("{{\"n\":{n},\"s\":\"text {n}\"}}"));
    }
    rows.push(']');
    let made = on_worker(move || {
        Bench::with(limits())
            .script(
                "body.filter(|r| r.n % 2 == 0).map(|r| #{n: r.n, t: r.s})",
                message("application/json", rows),
            )
            .unwrap()
    });
    assert!(
        made.body
            .bytes()
            .ends_with(b"{\"n\":19998,\"t\":\"text 19998\"}]")
    );
    let xml = format!("<a>{}</a>", "<b><c>1.5</c></b>".repeat(20_000));
    let made = on_worker(move || {
        Bench::with(limits())
            .script(
                "let sum = 0.0; for b in xpath_all(\"//b\") { sum += number(b.xpath(\"c\")); } #{sum: sum, n: xpath_all(\"//c\").len}",
                message("text/xml", xml),
            )
            .unwrap()
    });
    assert_eq!(&made.body.bytes()[..], b"{\"n\":20000,\"sum\":30000}");
}
