//! What strangers send, given to whatever reads it: one function a parser. None may panic, hang or
//! take memory out of proportion; where there are two ways to an answer, both must agree.
//!
//! `make fuzz` runs each at length with libFuzzer, and the test here over the inputs in
//! ../corpus/NAME, which hold a sound start and whatever once went wrong. Inputs with two parts have
//! a NUL between them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use xbus_charset::Charset;
use xbus_config::{Installation, Mode};
use xbus_core::codec::{Decoder, Encoder};
use xbus_core::spec::{Field, Type};
use xbus_core::transform::{Scope, Source};
use xbus_core::{Compiler, Context, Format, Kind, Message};
use xbus_http::Hub;
use xbus_transform::{Engine, Limits};
use xbus_xml::tree::{Id, Kind as NodeKind};
use xbus_xml::{Document, XmlLimits};

/// A target: its name, which is that of its corpus, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("amqp", amqp),
    ("charset", charset),
    ("core_records", core_records),
    ("csv", csv),
    ("documents", documents),
    ("envelope", envelope),
    ("form", form),
    ("framing", framing),
    ("imap", imap),
    ("json", json),
    ("mail", mail),
    ("pop3", pop3),
    ("routes", routes),
    ("soap", soap),
    ("store", store),
    ("xpath", xpath),
];

/// The target of that name. Panics when there is none: a slip in the list above.
pub fn run(name: &str, data: &[u8]) {
    let (_, target) = TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .unwrap_or_else(|| panic!("there is no target {name}"));
    target(data);
}

/// The two parts of an input.
fn two(data: &[u8]) -> (&[u8], &[u8]) {
    let end = data.iter().position(|byte| *byte == 0);
    match end {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &[]),
    }
}

/// The two parts of an input that is text.
fn texts(data: &[u8]) -> Option<(&str, &str)> {
    let (first, second) = two(data);
    Some((
        std::str::from_utf8(first).ok()?,
        std::str::from_utf8(second).ok()?,
    ))
}

/// Made once: that takes longer than most of what is done with it.
static ENGINE: LazyLock<Engine> = LazyLock::new(|| Engine::new(PathBuf::new(), Limits::default()));

/// Properties and headers of a delivery, and the entries of lanes.
fn amqp(data: &[u8]) {
    let (first, body) = two(data);
    xbus_amqp::fuzz::entry(first, body);
    let parts: Vec<&[u8]> = first.split(|byte| *byte == b'\n').collect();
    xbus_amqp::fuzz::delivery(&parts, body);
}

/// A label, and bytes that may be in its charset.
fn charset(data: &[u8]) {
    let (label, bytes) = two(data);
    let label = String::from_utf8_lossy(label);
    for xml in [false, true] {
        for label in [None, Some(&*label)] {
            let read = xbus_charset::decode(bytes, label, xml);
            if let Ok(found) = xbus_charset::find(bytes, label, xml) {
                assert!(found.1 <= bytes.len());
                assert!(read.is_ok() || !bytes.is_empty());
            }
            if xbus_charset::is_utf8(bytes, label) && xml {
                assert_eq!(read.is_ok(), std::str::from_utf8(bytes).is_ok());
            }
        }
    }
    let Ok(charset) = Charset::by_label(&label) else {
        return;
    };
    let Ok(text) = charset.decode(bytes) else {
        return;
    };
    // What was written reads as the text that it was. Not every text can be written in the charset
    // that it was read in: ISO 8859-1 is read as windows-1252.
    if let Ok(written) = xbus_charset::encode(&text, &label) {
        let again = charset.decode(&written);
        assert_eq!(again.as_deref(), Ok(&*text), "{label}");
    }
    let declared = xbus_charset::declare(&text, &label);
    assert!(declared.len() >= text.len() || text.starts_with("<?xml"));
}

/// Records of the core, as the store gives them back.
fn core_records(data: &[u8]) {
    let data = bytes::Bytes::copy_from_slice(data);
    if let Some(message) = Decoder::new(data).message() {
        let mut encoder = Encoder::new();
        encoder.message(&message);
        let again = Decoder::new(encoder.finish()).message();
        let again = again.expect("what was written is read");
        assert_eq!(again.headers, message.headers);
        assert_eq!(again.body.bytes(), message.body.bytes());
    }
}

/// CSV with every kind of separator, and its way to JSON and XML.
fn csv(data: &[u8]) {
    let Some((separator, text)) = texts(data) else {
        return;
    };
    let separator = separator.bytes().next().unwrap_or(b',');
    xbus_transform::fuzz::csv(text, true, separator);
    xbus_transform::fuzz::csv(text, false, separator);
    convert(text, "text/csv", Format::Csv);
}

/// `convert` from one format to every other.
fn convert(text: &str, content_type: &str, from: Format) {
    let mut message = Message::new(text.to_owned());
    message.headers.set("content-type", content_type);
    let message = Arc::new(message);
    let context = Context::new("fuzz".into(), message.clone());
    for to in [Format::Json, Format::Xml, Format::Csv, Format::Form] {
        let source = Source::Convert {
            from: Some(from),
            to,
        };
        let Ok(transform) = ENGINE.transform(source, &Scope::default()) else {
            continue;
        };
        let Ok(made) = transform.apply(&message, &context) else {
            continue;
        };
        if to == Format::Xml {
            let text = std::str::from_utf8(made.body.bytes()).expect("what is written is UTF-8");
            let limits = XmlLimits {
                depth: usize::MAX,
                ..XmlLimits::default()
            };
            if let Err(error) = Document::parse(text, &limits) {
                panic!("{error}: {text}");
            }
        }
    }
}

/// An XML document: the tree holds together, and the receiver's check says the same of it.
fn documents(data: &[u8]) {
    let limits = XmlLimits::default();
    let checked = xbus_http::fuzz::wellformed(data, None);
    let read = xbus_charset::decode(data, None, true)
        .map_err(String::from)
        .and_then(|text| {
            let parsed = Document::parse(&text, &limits).map_err(|error| error.to_string());
            parsed.map(|document| (text, document))
        });
    match (&checked, &read) {
        (Ok(()), Err(error)) => panic!("well-formed for the receiver, but: {error}"),
        (Err(error), Ok(_)) => panic!("a document, but not for the receiver: {error}"),
        _ => {}
    }
    let Ok((text, document)) = read else {
        return;
    };
    check_tree(&document);
    let mut elements = 0;
    for node in 1..document.end(0) {
        if document.node_kind(node) == NodeKind::Element {
            elements += 1;
        }
    }
    let place = |number| xbus_xml::reader::place_of_element(&text, &limits, number);
    assert!(place(elements - 1).is_some() && place(elements).is_none());
    convert(&text, "application/xml", Format::Xml);
}

/// Children lie within their parents, in order, and every name has its namespace.
fn check_tree(document: &Document) {
    let end = document.end(0);
    for node in 0..end {
        let mut next = node + 1;
        for child in document.children(node) {
            assert_eq!(child, next);
            assert_eq!(document.parent(Id::node(child)), Some(Id::node(node)));
            next = document.end(child);
        }
        assert_eq!(next, document.end(node));
        if document.node_kind(node) == NodeKind::Element {
            let name = document.name(Id::node(node));
            let prefix = name.split_once(':').map_or("", |(prefix, _)| prefix);
            let uri = document.resolve(node, prefix).unwrap_or_default();
            assert_eq!(uri, document.namespace(Id::node(node)), "{name}");
        }
    }
}

/// The envelope of the bus: what is read and written again is the same.
fn envelope(data: &[u8]) {
    let Ok(message) = xbus_envelope::read(data) else {
        return;
    };
    let again = xbus_envelope::read(&xbus_envelope::write(&message)).expect("what was written");
    assert_eq!(again.id, message.id);
    assert_eq!(again.correlation_id, message.correlation_id);
    assert_eq!(again.received_at, message.received_at);
    assert_eq!(again.headers, message.headers);
    assert_eq!(again.body.bytes(), message.body.bytes());
    assert_eq!(again.format, message.format);
}

/// A form, and its way to the other formats.
fn form(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        convert(text, "application/x-www-form-urlencoded", Format::Form);
    }
}

/// What comes over an HTTP connection, as the guard in front of the server follows it.
fn framing(data: &[u8]) {
    xbus_http::fuzz::framing(data);
}

/// What an IMAP server says.
fn imap(data: &[u8]) {
    xbus_mail::fuzz::imap(data);
}

/// JSON, and its way to the other formats.
fn json(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        xbus_transform::fuzz::json(text);
        convert(text, "application/json", Format::Json);
    }
}

/// A mail with its parts.
fn mail(data: &[u8]) {
    xbus_mail::fuzz::mail(data);
}

/// What a POP3 server says.
fn pop3(data: &[u8]) {
    xbus_mail::fuzz::pop3(data);
}

/// A route and an xbus.yaml, read and checked against every adapter.
fn routes(data: &[u8]) {
    let (route, bus) = two(data);
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).expect("a folder");
        }
        std::fs::write(path, content).expect("a file");
    };
    write("routes/r.yaml", route);
    write("transforms/t.rhai", b"body");
    if !bus.is_empty() {
        write("xbus.yaml", bus);
    }
    let lookup = |name: &str| (name == "SET").then(|| String::from("a: {{ b }} \"'\n#"));
    for mode in [Mode::Check, Mode::Run] {
        let installation = Installation::read_with(folder.path(), mode, &lookup);
        let settings = installation.settings(EXTRA, |args| {
            let limits = xbus_http::limits(args.object("limits", xbus_http::LIMIT_FIELDS));
            (xbus_http::Settings::default(), limits)
        });
        let engine = Engine::new(folder.path().join("transforms"), Limits::default());
        let (loaded, problems) = installation.plan(&kinds(settings.0), EXTRA, &engine);
        assert!(loaded.is_none() || !xbus_config::has_errors(&problems));
        assert!(loaded.is_some() || !problems.is_empty(), "no word of why");
    }
}

static EXTRA: &[Field] = &[
    Field::new(
        "http",
        Type::Object(xbus_http::LISTENER_FIELDS),
        "Listener.",
    ),
    Field::new("limits", Type::Object(xbus_http::LIMIT_FIELDS), "Limits."),
];

fn kinds(settings: xbus_http::Settings) -> Vec<Kind> {
    vec![
        xbus_http::kind(Hub::new(settings)),
        xbus_file::kind(),
        xbus_mail::kind(None),
        xbus_mail::connection_kind(),
        xbus_mail::imap_kind(),
        xbus_mail::pop3_kind(),
        xbus_amqp::kind(Arc::default()),
        xbus_queue::kind(),
        xbus_schedule::kind(),
    ]
}

/// A body that may be a SOAP envelope, after what the content type says of its charset.
fn soap(data: &[u8]) {
    let (charset, body) = two(data);
    let charset = std::str::from_utf8(charset).ok();
    xbus_http::fuzz::envelope(body, charset.filter(|label| !label.is_empty()));
    xbus_http::fuzz::envelope(data, None);
    xbus_http::fuzz::wrapped(body);
}

/// A log of the store, as it is or with checksums that are right, and a checkpoint.
fn store(data: &[u8]) {
    xbus_store::fuzz::changes(data);
    let folder = |run: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().expect("a folder");
        run(folder.path());
    };
    folder(&|dir| xbus_store::fuzz::log(dir, data, true));
    folder(&|dir| xbus_store::fuzz::log(dir, data, false));
    folder(&|dir| xbus_store::fuzz::checkpoint(dir, data));
}

/// An XPath, and a document.
fn xpath(data: &[u8]) {
    if let Some((path, xml)) = texts(data) {
        xbus_transform::fuzz::xpath(path, xml);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_takes_its_corpus() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
        for (name, target) in TARGETS {
            let inputs = std::fs::read_dir(corpus.join(name))
                .unwrap_or_else(|error| panic!("corpus/{name}: {error}"));
            let mut count = 0;
            for input in inputs {
                let path = input.unwrap().path();
                let data = std::fs::read(&path).unwrap();
                let began = std::time::Instant::now();
                target(&data);
                // Cut short and changed in one place, as transport errors would.
                for cut in (0..data.len()).step_by(data.len() / 8 + 1) {
                    target(&data[..cut]);
                    let mut changed = data.clone();
                    changed[cut] ^= 0x15;
                    target(&changed);
                }
                println!("{name} {:?}: {:?}", path.file_name(), began.elapsed());
                count += 1;
            }
            assert!(count > 0, "corpus/{name} is empty");
        }
    }
}
