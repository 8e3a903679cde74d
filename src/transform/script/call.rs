//! What the functions of a script can reach while it runs: its message, the route's context, limits.
//!
//! A script runs from start to end on one thread, so the current call lives in a thread-local.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rhai::ImmutableString;
use xbus_core::long::{self, Experience};
use xbus_core::{Code, Context, Format, Headers, Message};

use super::Shared;
use super::error::ScriptError;
use super::namespaces::Namespaces;
use crate::json::Json;
use crate::table::{CsvOptions, Table};
use crate::xml::reader::XmlError;
use crate::xml::{Document, XmlLimits};
use crate::xpath::stream::{Plain, Source};
use crate::xpath::{Budget, XPath};

/// One run of a script or expression.
pub(crate) struct Call {
    pub(crate) message: Arc<Message>,
    pub(crate) context: Context,
    pub(crate) shared: Arc<Shared>,
    pub(crate) namespaces: Arc<Namespaces>,
    pub(crate) started: Instant,
    pub(crate) deadline: Instant,
    /// After this time the run moves the other tasks of its worker away, unless it has.
    pub(crate) leaves_after: Cell<Duration>,
    /// Of the text that runs.
    pub(crate) experience: Arc<Experience>,
    /// The headers, once the script has set one.
    pub(crate) headers: RefCell<Option<Headers>>,
    /// The script has set the content type itself.
    pub(crate) typed: Cell<bool>,
    /// Texts made by `json(…)`, `csv(…)` and the like, to give the body its type.
    pub(crate) made: RefCell<Vec<(ImmutableString, Format)>>,
    /// Bytes of all headers that the script has set, those set again included.
    pub(crate) header_bytes: Cell<usize>,
    /// Bytes of all blobs that functions of the bus have made.
    pub(crate) made_octets: Cell<usize>,
}

thread_local! {
    static CURRENT: RefCell<Option<Rc<Call>>> = const { RefCell::new(None) };
}

/// Puts the previous call back when a run ends, however it ends.
pub(crate) struct Guard(Option<Rc<Call>>);

impl Drop for Guard {
    fn drop(&mut self) {
        let previous = self.0.take();
        CURRENT.with(|current| *current.borrow_mut() = previous);
    }
}

/// Makes `call` the current one.
pub(crate) fn enter(call: Rc<Call>) -> Guard {
    Guard(CURRENT.with(|current| current.borrow_mut().replace(call)))
}

/// The current call.
pub(crate) fn current() -> Result<Rc<Call>, ScriptError> {
    CURRENT
        .with(|current| current.borrow().clone())
        .ok_or_else(|| ScriptError::fault(Code::Internal, "no message is at hand here"))
}

/// Whether the current call has used up its time. Asked every so often while it runs, so that one that
/// turns out to be long leaves its worker to others.
pub(crate) fn is_late() -> bool {
    CURRENT.with(|current| {
        current.borrow().as_ref().is_some_and(|call| {
            let now = Instant::now();
            call.leave(now.saturating_duration_since(call.started));
            now >= call.deadline
        })
    })
}

impl Call {
    /// Where that did not succeed it is tried again after as long a time, with an eighth of it to wait.
    fn leave(&self, elapsed: Duration) {
        if elapsed < self.leaves_after.get() {
            return;
        }
        let left = long::leave(elapsed / 8);
        // Those that begin before this one ends should know.
        self.experience.note(elapsed);
        self.leaves_after
            .set(if left { Duration::MAX } else { elapsed * 2 });
    }

    pub(crate) fn budget(&self) -> Budget {
        Budget::new(self.shared.limits.xpath_visits, Some(self.deadline))
    }

    /// Whom octets came from, as they are: a destination or the sender. Nothing: a script made them.
    fn origin(&self, bytes: &Bytes) -> Option<Code> {
        let same = |other: &Bytes| other.as_ptr() == bytes.as_ptr() && other.len() == bytes.len();
        let has = |message: &Message| {
            let mut attached = message.attachments.iter();
            same(message.body.bytes()) || attached.any(|one| same(&one.body))
        };
        let response = self.context.responses.iter().any(|(_, m)| has(m))
            || self.context.response.as_deref().is_some_and(has);
        if response {
            Some(Code::Destination)
        } else {
            has(&self.context.received).then_some(Code::Client)
        }
    }

    /// Whose fault it is when `message` cannot be parsed.
    fn blame(&self, message: &Message) -> Code {
        self.origin(message.body.bytes())
            .unwrap_or(if self.context.responses.is_empty() {
                Code::Client
            } else {
                Code::Transform
            })
    }

    /// The error of octets that do not parse: of whoever sent them, as a body or an attachment.
    pub(crate) fn bad_octets(&self, bytes: &Bytes, what: String) -> ScriptError {
        match self.origin(bytes) {
            Some(code) => ScriptError::fault(code, format!("what was sent cannot be read: {what}")),
            None => ScriptError::text(what),
        }
    }

    /// An error of a message that cannot be read.
    pub(crate) fn unreadable(&self, message: &Message, what: &str) -> ScriptError {
        let code = self.blame(message);
        let text = match code {
            Code::Destination => format!("the response cannot be read: {what}"),
            Code::Client => format!("the message cannot be read: {what}"),
            _ => format!("what an earlier step made cannot be read: {what}"),
        };
        match code {
            Code::Transform => ScriptError::text(text),
            code => ScriptError::fault(code, text),
        }
    }

    /// Remembers what a text is, for the case that it becomes the body.
    pub(crate) fn remember(&self, text: &ImmutableString, format: Format) {
        let mut made = self.made.borrow_mut();
        if made.len() >= 8 {
            made.remove(0);
        }
        made.push((text.clone(), format));
    }

    pub(crate) fn text(&self, message: &Message) -> Result<ImmutableString, ScriptError> {
        cache(message)
            .text
            .get_or_init(|| {
                xbus_charset::text(message, message.format() == Some(Format::Xml))
                    .map(|text| ImmutableString::from(&*text))
                    .map_err(String::from)
            })
            .clone()
            .map_err(|what| self.unreadable(message, &what))
    }

    pub(crate) fn xml(&self, message: &Message) -> Result<Arc<Document>, ScriptError> {
        crate::xml::cache::of(message)
            .document(message, &self.shared.xml_limits)
            .map_err(|what| self.unreadable(message, &what))
    }

    pub(crate) fn json(&self, message: &Message) -> Result<Json, ScriptError> {
        cache(message)
            .json
            .get_or_init(|| {
                let text = xbus_charset::text(message, false)?;
                Json::parse(&text)
            })
            .clone()
            .map_err(|what| self.unreadable(message, &what))
    }

    pub(crate) fn csv(&self, message: &Message) -> Result<Arc<Table>, ScriptError> {
        cache(message)
            .csv
            .get_or_init(|| {
                let text = xbus_charset::text(message, false)?;
                Table::parse(&text, &CsvOptions::default()).map(Arc::new)
            })
            .clone()
            .map_err(|what| self.unreadable(message, &what))
    }

    pub(crate) fn json_tree(&self, message: &Message) -> Result<Arc<JsonTree>, ScriptError> {
        let json = self.json(message)?;
        Ok(cache(message)
            .tree
            .get_or_init(|| {
                Arc::new(JsonTree {
                    tree: json.to_serde(),
                    plain: json.is_plain(),
                    json,
                })
            })
            .clone())
    }

    /// The error of a text that does not parse: of whoever sent it, if it is a message's whole text.
    pub(crate) fn bad_text(&self, text: &ImmutableString, what: String) -> ScriptError {
        let context = &self.context;
        let responses = context.responses.iter().map(|(_, message)| message);
        [&self.message, &context.received]
            .into_iter()
            .chain(responses)
            .chain(&context.response)
            .find(|message| {
                self.known_text(message)
                    .is_some_and(|known| known.ptr_eq(text))
            })
            .map_or_else(
                || ScriptError::text(what.clone()),
                |message| self.unreadable(message, &what),
            )
    }

    /// The document, if something has parsed it already.
    pub(crate) fn parsed_xml(&self, message: &Message) -> Option<Arc<Document>> {
        crate::xml::cache::of(message).parsed().cloned()
    }

    /// The format by which `body` is read.
    pub(crate) fn format(&self, message: &Message) -> Format {
        message.format().unwrap_or_else(|| {
            if self.text(message).is_ok() {
                Format::Text
            } else {
                Format::Bytes
            }
        })
    }

    /// The headers as they are at this point of the script.
    pub(crate) fn with_headers<R>(&self, read: impl FnOnce(&Headers) -> R) -> R {
        match &*self.headers.borrow() {
            Some(headers) => read(headers),
            None => read(&self.message.headers),
        }
    }

    pub(crate) fn set_header(&self, name: &str, value: Option<&str>) -> Result<(), ScriptError> {
        let token = |b: u8| {
            b.is_ascii_graphic()
                && !matches!(
                    b,
                    b':' | b'"'
                        | b'('
                        | b')'
                        | b','
                        | b';'
                        | b'<'
                        | b'='
                        | b'>'
                        | b'?'
                        | b'@'
                        | b'['
                        | b'\\'
                        | b']'
                        | b'{'
                        | b'}'
                )
        };
        if name.is_empty() || !name.bytes().all(token) {
            return Err(ScriptError::text(format!("'{name}' is not a header name")));
        }
        if value.is_some_and(|v| v.contains(|c: char| c.is_control() && c != '\t')) {
            return Err(ScriptError::text(format!(
                "the value for the header '{name}' holds a line break or another control character"
            )));
        }
        if name.eq_ignore_ascii_case("content-type") {
            self.typed.set(value.is_some());
        }
        let bytes = self.header_bytes.get() + name.len() + value.map_or(0, str::len);
        self.header_bytes.set(bytes);
        let mut headers = self.headers.borrow_mut();
        let headers = headers.get_or_insert_with(|| self.message.headers.clone());
        match value {
            Some(value) => headers.set(name, value),
            None => {
                headers.remove(name);
            }
        }
        if headers.len() > 1_000 || bytes > 1 << 20 {
            return Err(ScriptError::text(
                "more than 1,000 headers, or more than 1 MiB of them",
            ));
        }
        Ok(())
    }
}

/// Plain XPaths that are answered by a stream before the document is parsed once and for all.
const STREAMED: u8 = 2;
/// Bytes of which to read all takes long, with no tree to make; most often the answer stands further ahead.
const READ: usize = 4 * long::PARSED;

impl Call {
    /// The first match of a plain path, read as a stream. Nothing: the tree is the better way.
    pub(crate) fn stream(
        &self,
        message: &Message,
        xpath: &Arc<XPath>,
    ) -> Option<Result<Option<String>, ScriptError>> {
        let found = stream(message, xpath, &self.namespaces, &self.shared.xml_limits)?;
        Some(found.map_err(|what| self.unreadable(message, &what)))
    }
}

/// The same without a call at hand.
pub(crate) fn stream(
    message: &Message,
    xpath: &Arc<XPath>,
    namespaces: &Namespaces,
    limits: &XmlLimits,
) -> Option<Result<Option<String>, String>> {
    let plain = xpath.plain.as_ref()?;
    let lying = crate::xml::cache::of(message);
    let cache: Arc<Cache> = lying.other();
    if let Some(known) = cache.answer(xpath) {
        return Some(Ok(known));
    }
    if lying.is_tried() || cache.streamed.fetch_add(1, Ordering::Relaxed) >= STREAMED {
        return None;
    }
    let asked = namespaces.asked();
    Some(
        match asked.iter().position(|asked| Arc::ptr_eq(asked, xpath)) {
            Some(at) if asked.len() > 1 => stream_among(message, &lying, asked, at, &cache, limits),
            _ => as_it_is_read(message, &lying, |source| plain.first(source, limits)),
        },
    )
}

/// One of several paths, and what is learnt of the others on the way.
fn stream_among(
    message: &Message,
    lying: &crate::xml::cache::Cache,
    asked: &[Arc<XPath>],
    at: usize,
    cache: &Cache,
    limits: &XmlLimits,
) -> Result<Option<String>, String> {
    let plains: Vec<&Plain> = asked
        .iter()
        .filter_map(|xpath| xpath.plain.as_ref())
        .collect();
    let answers = as_it_is_read(message, lying, |source| {
        Plain::first_among(&plains, at, source, limits)
    })?;
    let found = answers.get(at).cloned().flatten().flatten();
    cache.learn(asked, answers);
    Ok(found)
}

/// What `search` finds in the XML of a message, of which no more is looked at than it reads.
fn as_it_is_read<T>(
    message: &Message,
    lying: &crate::xml::cache::Cache,
    search: impl Fn(Source<'_>) -> Result<T, XmlError>,
) -> Result<T, String> {
    let bytes = message.body.bytes();
    let label = message.content_type().and_then(xbus_charset::label);
    if xbus_charset::is_utf8(bytes, label)
        && let Ok(found) = long::over(bytes.len(), READ, || {
            search(Source::Bytes(bytes, lying.pause()))
        })
    {
        return Ok(found);
    }
    // Whether it is text at all is what is told first.
    let text = xbus_charset::text(message, true)?;
    long::over(text.len(), READ, || search(Source::Text(&text))).map_err(|error| error.to_string())
}

/// A JSON body for JSONPath.
pub(crate) struct JsonTree {
    pub(crate) json: Json,
    pub(crate) tree: serde_json::Value,
    /// The tree holds all that the body does.
    pub(crate) plain: bool,
}

/// What has been made of one body.
#[derive(Default)]
pub(crate) struct Cache {
    streamed: AtomicU8,
    /// What paths gave that were looked for beside others.
    answers: Mutex<Vec<(Arc<XPath>, Option<String>)>>,
    text: OnceLock<Result<ImmutableString, String>>,
    json: OnceLock<Result<Json, String>>,
    csv: OnceLock<Result<Arc<Table>, String>>,
    tree: OnceLock<Arc<JsonTree>>,
}

impl Cache {
    fn answer(&self, xpath: &Arc<XPath>) -> Option<Option<String>> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers
            .iter()
            .find(|(known, _)| Arc::ptr_eq(known, xpath))?;
        Some(known.1.clone())
    }

    fn learn(&self, asked: &[Arc<XPath>], learnt: Vec<Option<Option<String>>>) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        for (xpath, answer) in asked.iter().zip(learnt) {
            if let Some(answer) = answer {
                answers.push((xpath.clone(), answer));
            }
        }
    }
}

/// The part of what lies with the body that is the scripts' own.
fn cache(message: &Message) -> Arc<Cache> {
    crate::xml::cache::of(message).other()
}

impl Call {
    /// The body's text, if something has decoded it already.
    pub(crate) fn known_text(&self, message: &Message) -> Option<ImmutableString> {
        cache(message).text.get()?.as_ref().ok().cloned()
    }
}
