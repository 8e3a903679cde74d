//! What reading XML costs, beside one bare quick-xml pass over the same document.
//!
//!     cargo run --release -p xbus-transform --example speed
//!     cargo run --release -p xbus-transform --example speed instructions
//!
//! The first measures time, the second counts instructions under valgrind (callgrind), which is the
//! same on a busy machine. `speed one CASE KIB COUNT` runs one case, for profiles.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use xbus_core::transform::{Scope, Source};
use xbus_core::{Compiler, Context, Message};
use xbus_transform::{Engine, Limits};
use xbus_xml::{Document, XmlLimits};

const SIZES: [usize; 3] = [1, 10, 100];
/// The yardstick.
const BARE: &str = "bare";
const SCHEMA: &str = r#"<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema" targetNamespace="urn:shop" elementFormDefault="qualified">
<xs:element name="order"><xs:complexType><xs:sequence>
<xs:element name="priority" type="xs:token"/>
<xs:element name="line" minOccurs="0" maxOccurs="unbounded"><xs:complexType><xs:sequence>
<xs:element name="sku"><xs:simpleType><xs:restriction base="xs:string"><xs:pattern value="ART-[0-9]+"/></xs:restriction></xs:simpleType></xs:element>
<xs:element name="qty" type="xs:positiveInteger"/>
<xs:element name="price"><xs:complexType><xs:simpleContent><xs:extension base="xs:decimal"><xs:attribute name="currency" use="required"/></xs:extension></xs:simpleContent></xs:complexType></xs:element>
<xs:element name="text" type="xs:string"/>
</xs:sequence><xs:attribute name="pos" type="xs:int"/></xs:complexType></xs:element>
<xs:element name="last" type="xs:string"/>
</xs:sequence><xs:attribute name="no" type="xs:int"/></xs:complexType></xs:element>
</xs:schema>"#;

/// An order of so many KiB, in an envelope or alone.
fn document(kib: usize, soap: bool) -> String {
    let mut xml = String::new();
    if soap {
        xml.push_str("<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>");
    }
    xml.push_str("<o:order xmlns:o=\"urn:shop\" no=\"7\"><o:priority>high</o:priority>");
    let mut n = 0;
    while xml.len() + 100 < kib * 1024 {
        n += 1;
        let _ = write!(
            xml,
            "<o:line pos=\"{n}\"><o:sku>ART-{n}</o:sku><o:qty>{n}</o:qty><o:price currency=\"EUR\">{n}.50</o:price><o:text>Some words &amp; more</o:text></o:line>"
        );
    }
    xml.push_str("<o:last>end</o:last></o:order>");
    if soap {
        xml.push_str("</s:Body></s:Envelope>");
    }
    xml
}

/// What quick-xml alone does: every event, with names, attributes and text.
fn bare(xml: &str) -> usize {
    let mut reader = quick_xml::Reader::from_str(xml);
    let mut sum = 0;
    loop {
        match reader.read_event().expect("well-formed") {
            quick_xml::events::Event::Eof => return sum,
            quick_xml::events::Event::Start(tag) => {
                sum += tag.name().as_ref().len();
                let attributes = tag.attributes().flatten();
                sum += attributes.map(|a| a.value.len()).sum::<usize>();
            }
            quick_xml::events::Event::Text(text) => sum += text.len(),
            _ => {}
        }
    }
}

fn fresh(text: &str) -> Arc<Message> {
    let mut message = Message::new(text.to_owned());
    let headers = &mut message.headers;
    headers.set("content-type", "text/xml; charset=utf-8");
    headers.set("country", "DE");
    Arc::new(message)
}

/// The same over messages of any kind, made anew for each run.
type Case = Box<dyn FnMut()>;

/// Scripts and expressions to be measured: name, text.
const EXPRESSIONS: &[(&str, &str)] = &[
    ("early exit", "xpath(\"//o:priority\")"),
    ("stream to the end", "xpath(\"//o:last\")"),
    ("tree", "xpath(\"count(//o:line)\")"),
    ("tree, sum", "xpath(\"sum(//o:price)\")"),
    (
        "tree, five expressions",
        "xpath(\"count(//o:line)\") + xpath(\"count(//o:sku)\") + xpath(\"count(//o:qty)\") + xpath(\"count(//o:text)\") + xpath(\"count(//o:price)\")",
    ),
    ("nothing of the body", "header(\"country\") == \"DE\""),
];

/// Whole scripts: name, file, text.
const SCRIPTS: &[(&str, &str, &str)] = &[
    (
        "script, every line",
        "lines.rhai",
        r#"element("o:reply", #{ no: xpath("//o:order/@no") }, xpath_all("//o:line").map(|l|
    element("o:item", #{ sku: l.xpath("o:sku") }, l.xpath("o:price"))))"#,
    ),
    (
        "script, three values",
        "values.rhai",
        r#"let last = xpath("//o:last");
element("o:reply", #{ no: xpath("//o:order/@no") }, [
    element("o:urgent", if xpath("//o:priority") == "high" { "yes" } else { "no" }),
    element("o:last", last),
    element("o:gross", last.len() * 119 / 100),
])"#,
    ),
    (
        "script, nothing of the body",
        "header.rhai",
        r#"let country = header("country");
headers["region"] = if country == "DE" { "home" } else { "abroad" };
body"#,
    ),
];

fn cases(kib: usize, folder: &Path) -> Vec<(&'static str, Case)> {
    let engine = Engine::new(PathBuf::from(folder), Limits::default());
    let scope = Scope {
        namespaces: [("o".to_owned(), "urn:shop".to_owned())].into(),
    };
    let xml: Arc<str> = document(kib, true).into();
    let context = Context::new("speed".into(), fresh("<a/>"));
    let mut all: Vec<(&'static str, Case)> = Vec::new();
    let text = xml.clone();
    all.push((BARE, Box::new(move || assert!(black_box(bare(&text)) > 0))));
    let text = xml.clone();
    all.push(("message", Box::new(move || drop(black_box(fresh(&text))))));
    let text = xml.clone();
    all.push((
        "parse",
        Box::new(move || {
            black_box(Document::parse(&text, &XmlLimits::default())).ok();
        }),
    ));
    for (name, expression) in EXPRESSIONS {
        let compiled = engine.expression(expression, &scope).expect("compiles");
        let (text, context) = (xml.clone(), context.clone());
        all.push((
            name,
            Box::new(move || {
                black_box(compiled.evaluate(&fresh(&text), &context)).ok();
            }),
        ));
    }
    let rules = engine.schema(Path::new("order.xsd")).0.expect("a schema");
    let order: Arc<str> = document(kib, false).into();
    all.push((
        "parse and validate",
        Box::new(move || rules.check(&fresh(&order)).expect("valid")),
    ));
    for (name, file, _) in SCRIPTS {
        let script = engine
            .transform(Source::File(Path::new(file)), &scope)
            .expect("compiles");
        let (text, context) = (xml.clone(), context.clone());
        all.push((
            name,
            Box::new(move || {
                black_box(script.apply(&fresh(&text), &context)).expect("runs");
            }),
        ));
    }
    all
}

/// Microseconds of one run.
fn time(case: &mut Case) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let mut runs = 0u32;
        while started.elapsed() < Duration::from_millis(120) {
            for _ in 0..10 {
                case();
            }
            runs += 10;
        }
        best = best.min(started.elapsed().as_secs_f64() * 1e6 / f64::from(runs));
    }
    best
}

/// Instructions of so many runs of a case, counted in a process of its own.
fn counted(case: &str, kib: usize, runs: usize) -> Option<f64> {
    let own = std::env::current_exe().ok()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(own)
        .args(["one", case, &kib.to_string(), &runs.to_string()])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let (_, rest) = said.split_once("Collected :")?;
    rest.split_whitespace().next()?.parse().ok()
}

fn instructions(case: &str, kib: usize) -> Option<f64> {
    Some((counted(case, kib, 30)? - counted(case, kib, 10)?) / 20.0)
}

fn main() {
    let folder = std::env::temp_dir().join(format!("xbus-speed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the scripts");
    std::fs::write(folder.join("order.xsd"), SCHEMA).expect("a schema");
    for (_, file, text) in SCRIPTS {
        std::fs::write(folder.join(file), text).expect("a script");
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["one", case, kib, count] => {
            let kib = kib.parse().expect("a size in KiB");
            let count: usize = count.parse().expect("a number of runs");
            let mut found: BTreeMap<_, _> = cases(kib, &folder).into_iter().collect();
            let run = found.get_mut(case).expect("a case");
            (0..count).for_each(|_| run());
        }
        [] | ["instructions"] => {
            let by_count = !arguments.is_empty();
            for kib in SIZES {
                let size = document(kib, true).len() as f64;
                println!("--- {kib} KiB");
                let mut yardstick = 1.0;
                for (name, mut case) in cases(kib, &folder) {
                    let cost = match by_count {
                        true => instructions(name, kib).expect("valgrind counts"),
                        false => time(&mut case),
                    };
                    if name == BARE {
                        yardstick = cost;
                    }
                    let ratio = cost / yardstick;
                    match by_count {
                        true => println!("{cost:12.0} instructions {ratio:6.2}  {name}"),
                        false => println!(
                            "{cost:10.2} µs {:8.0} MB/s {ratio:6.2}  {name}",
                            size / cost
                        ),
                    }
                }
            }
        }
        _ => eprintln!("speed [instructions | one CASE KIB COUNT]"),
    }
    std::fs::remove_dir_all(&folder).ok();
}
