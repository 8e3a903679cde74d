//! What expressions and scripts cost, beside one bare quick-xml pass over the same document.
//!
//! `cargo run --release -p xbus-transform --example speed`

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use xbus_core::transform::{Scope, Source};
use xbus_core::{Compiler, Context, Message};
use xbus_transform::{Engine, Limits};

fn measure(name: &str, mut work: impl FnMut()) {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let started = Instant::now();
        let mut runs = 0u32;
        while started.elapsed() < Duration::from_millis(120) {
            for _ in 0..10 {
                work();
            }
            runs += 10;
        }
        best = best.min(started.elapsed().as_secs_f64() * 1e6 / f64::from(runs));
    }
    println!("{best:10.2} µs  {name}");
}

fn document(kib: usize) -> String {
    let mut xml = String::from(
        "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><o:order xmlns:o=\"urn:shop\" no=\"7\"><o:priority>high</o:priority>",
    );
    let mut n = 0;
    while xml.len() < kib * 1024 {
        n += 1;
        xml.push_str(&format!(
            "<o:line pos=\"{n}\"><o:sku>ART-{n}</o:sku><o:qty>{n}</o:qty><o:price currency=\"EUR\">{n}.50</o:price><o:text>Some words &amp; more</o:text></o:line>"
        ));
    }
    xml.push_str("<o:last>end</o:last></o:order></s:Body></s:Envelope>");
    xml
}

fn main() {
    let folder = std::env::temp_dir().join(format!("xbus-speed-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the scripts");
    let engine = Engine::new(PathBuf::from(&folder), Limits::default());
    let scope = Scope {
        namespaces: [("o".to_owned(), "urn:shop".to_owned())].into(),
    };
    let fresh = |text: &str| {
        let mut message = Message::new(text.to_owned());
        message
            .headers
            .set("content-type", "text/xml; charset=utf-8");
        message.headers.set("country", "DE");
        Arc::new(message)
    };
    let small = fresh("<a/>");
    let context = Context::new("speed".into(), small.clone());
    for text in [
        "()",
        "id",
        "header(\"country\") == \"DE\"",
        "if header(\"country\") == \"DE\" && 3 > 2 { \"a\" } else { \"b\" }",
    ] {
        let compiled = engine.expression(text, &scope).expect("compiles");
        measure(&format!("expression {text}"), || {
            black_box(compiled.evaluate(&small, &context)).ok();
        });
    }
    for kib in [1, 10, 100] {
        let xml = document(kib);
        println!("--- {kib} KiB");
        measure("bare quick-xml pass with names and text", || {
            let mut reader = quick_xml::Reader::from_str(&xml);
            let mut sum = 0;
            loop {
                match reader.read_event().expect("well-formed") {
                    quick_xml::events::Event::Eof => break,
                    quick_xml::events::Event::Start(tag) => {
                        sum += tag.name().as_ref().len();
                        sum += tag
                            .attributes()
                            .flatten()
                            .map(|a| a.value.len())
                            .sum::<usize>();
                    }
                    quick_xml::events::Event::Text(text) => sum += text.len(),
                    _ => {}
                }
            }
            black_box(sum);
        });
        measure("message alone", || {
            black_box(fresh(&xml));
        });
        for text in [
            "xpath(\"//o:priority\")",
            "xpath(\"//o:last\")",
            "xpath(\"//o:none\")",
            "xpath(\"count(//o:line)\")",
            "xpath(\"sum(//o:price)\")",
        ] {
            let compiled = engine.expression(text, &scope).expect("compiles");
            measure(text, || {
                let message = fresh(&xml);
                black_box(compiled.evaluate(&message, &context)).ok();
            });
        }
        std::fs::write(
            folder.join("t.rhai"),
            "element(\"o:reply\", #{ no: xpath(\"//o:order/@no\") }, xpath_all(\"//o:line\").map(|l| element(\"o:item\", #{ sku: l.xpath(\"o:sku\") }, l.xpath(\"o:price\"))))",
        )
        .expect("a script");
        let script = engine
            .transform(Source::File(Path::new("t.rhai")), &scope)
            .expect("compiles");
        measure("script XML to XML, every line", || {
            let message = fresh(&xml);
            black_box(script.apply(&message, &context)).ok();
        });
    }
    std::fs::remove_dir_all(&folder).ok();
}
