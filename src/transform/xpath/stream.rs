//! The quick way for plain paths: reads the document as a stream and stops at the first match.
//!
//! Plain is an absolute path of child and descendant steps with name tests and attribute
//! tests (`[@a]`, `[@a='v']`), that ends in an element, an attribute or `text()`. The value is
//! exactly that of the full evaluation.
//!
//! What follows the match is not read, so a fault in it is not found: a body is checked as far as
//! it is read.

use std::ops::ControlFlow;

use super::XPath;
use super::parse::{Axis, Expr, Op, Start as PathStart, Step, Test};
use crate::xml::reader::{Attribute, End, Pause, Reader, Sink, Start, XmlError};
use crate::xml::{XmlLimits, same};

/// Steps that one path may have; states are kept in the bits of a word.
const MAX_STEPS: usize = 30;

/// A compiled plain path.
#[derive(Debug)]
pub(crate) struct Plain {
    steps: Vec<PlainStep>,
    end: Ending,
}

#[derive(Debug)]
struct PlainStep {
    /// The step may be any number of elements below the one before.
    descendant: bool,
    name: NameTest,
    tests: Vec<AttributeTest>,
}

#[derive(Debug)]
enum NameTest {
    Any,
    Namespace(String),
    Name { uri: String, local: String },
}

#[derive(Debug)]
struct AttributeTest {
    uri: String,
    local: String,
    value: Option<String>,
}

#[derive(Debug)]
enum Ending {
    /// The string value of the element.
    Element,
    /// An attribute of the element.
    Attribute { uri: String, local: String },
    /// The first text node directly within the element.
    Text,
}

impl Plain {
    /// The plain form of an expression that is a plain path.
    pub(crate) fn of(xpath: &XPath) -> Option<Self> {
        let Expr::Path(PathStart::Root, steps) = &xpath.root else {
            return None;
        };
        let (last, before) = steps.split_last()?;
        let (path, end) = match (last.axis, &last.test) {
            (Axis::Attribute, Test::Name { uri, local, .. }) if last.predicates.is_empty() => (
                before,
                Ending::Attribute {
                    uri: uri.clone(),
                    local: local.clone(),
                },
            ),
            (Axis::Child, Test::Text) if last.predicates.is_empty() => (before, Ending::Text),
            _ => (&steps[..], Ending::Element),
        };
        if path.is_empty() || path.len() > MAX_STEPS {
            return None;
        }
        let steps = path.iter().map(PlainStep::of).collect::<Option<Vec<_>>>()?;
        Some(Self { steps, end })
    }

    /// The string value of the first match in document order; nothing when nothing matches.
    /// `Err` when the document is not well-formed as far as it was read.
    pub(crate) fn first(
        &self,
        text: Source<'_>,
        limits: &XmlLimits,
    ) -> Result<Option<String>, XmlError> {
        let mut search = Search::new(self);
        let paused = text.resume(limits).filter(|paused| search.leads_to(paused));
        if let Some(paused) = &paused {
            search.skip_to(paused);
        }
        let reader = paused.unwrap_or_else(|| text.reader(limits));
        match reader.into_sink(&mut search)? {
            End::Document | End::Early => Ok(search.found),
        }
    }

    /// As [`Plain::first`] for `plains[asked]`, and what the same reading tells of the others: nothing
    /// of those that it did not come to.
    pub(crate) fn first_among(
        plains: &[&Plain],
        asked: usize,
        text: Source<'_>,
        limits: &XmlLimits,
    ) -> Result<Vec<Option<Option<String>>>, XmlError> {
        let mut searches = Searches {
            all: plains.iter().map(|plain| Search::new(plain)).collect(),
            asked,
            dead: 0,
        };
        let leads = |paused: &Reader<'_>| searches.all.iter().all(|search| search.leads_to(paused));
        let paused = text.resume(limits).filter(leads);
        if let Some(paused) = &paused {
            for search in &mut searches.all {
                search.skip_to(paused);
            }
        }
        let reader = paused.unwrap_or_else(|| text.reader(limits));
        let end = reader.into_sink(&mut searches)?;
        let answer = |search: Search<'_>| match (search.found, end) {
            (None, End::Early) => None,
            (found, _) => Some(found),
        };
        Ok(searches.all.into_iter().map(answer).collect())
    }
}

/// A document to be searched.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Text(&'a str),
    /// Bytes that are to be UTF-8, as far as they are read; and where another reading of them has paused:
    /// the tag is the first in the element around it, and each around it the first of its name in its own.
    Bytes(&'a [u8], Option<&'a Pause>),
}

impl<'a> Source<'a> {
    fn reader(self, limits: &XmlLimits) -> Reader<'a> {
        match self {
            Self::Text(text) => Reader::of_text(text, limits),
            Self::Bytes(bytes, _) => Reader::of_bytes(bytes, limits),
        }
    }

    fn resume(self, limits: &XmlLimits) -> Option<Reader<'a>> {
        match self {
            Self::Bytes(bytes, Some(pause)) => Reader::resume(bytes, pause, limits),
            _ => None,
        }
    }
}

impl PlainStep {
    fn of(step: &Step) -> Option<Self> {
        let descendant = match step.axis {
            Axis::Child => false,
            Axis::Descendant => true,
            _ => return None,
        };
        let name = match &step.test {
            Test::Any => NameTest::Any,
            Test::Namespace(uri) => NameTest::Namespace(uri.clone()),
            Test::Name { uri, local, .. } => NameTest::Name {
                uri: uri.clone(),
                local: local.clone(),
            },
            _ => return None,
        };
        let tests = step
            .predicates
            .iter()
            .map(AttributeTest::of)
            .collect::<Option<Vec<_>>>()?;
        Some(Self {
            descendant,
            name,
            tests,
        })
    }

    fn matches(&self, tag: &Start<'_, '_>) -> bool {
        let uri = || &*tag.uris[tag.uri as usize];
        let named = match &self.name {
            NameTest::Any => true,
            NameTest::Namespace(wanted) => same(uri(), wanted),
            NameTest::Name { uri: wanted, local } => tag.local == local && same(uri(), wanted),
        };
        named
            && self.tests.iter().all(|test| {
                find(tag, &test.uri, &test.local)
                    .is_some_and(|found| test.value.as_ref().is_none_or(|v| *v == *found.value))
            })
    }
}

impl AttributeTest {
    fn of(predicate: &Expr) -> Option<Self> {
        let (path, value) = match predicate {
            Expr::Binary(Op::Equal, path, value) => match (&**path, &**value) {
                (path, Expr::Literal(text)) | (Expr::Literal(text), path) => {
                    (path, Some(text.clone()))
                }
                _ => return None,
            },
            path => (path, None),
        };
        let Expr::Path(PathStart::Context, steps) = path else {
            return None;
        };
        match &steps[..] {
            [
                Step {
                    axis: Axis::Attribute,
                    test: Test::Name { uri, local, .. },
                    predicates,
                },
            ] if predicates.is_empty() => Some(Self {
                uri: uri.clone(),
                local: local.clone(),
                value,
            }),
            _ => None,
        }
    }
}

fn find<'r, 'a>(tag: &'r Start<'_, 'a>, uri: &str, local: &str) -> Option<&'r Attribute<'a>> {
    tag.attributes
        .iter()
        .find(|a| a.local == local && same(&tag.uris[a.uri as usize], uri))
}

struct Search<'p> {
    plain: &'p Plain,
    /// For each open element: bit n set when the first n steps lead to it or (for a descendant
    /// step that follows) to one of its ancestors.
    states: Vec<u32>,
    /// Depth of the element whose text is being gathered.
    capture: Option<usize>,
    value: String,
    found: Option<String>,
}

impl<'a> Sink<'a> for Search<'_> {
    fn start(&mut self, tag: &Start<'_, 'a>) -> ControlFlow<()> {
        if self.capture.is_some() {
            self.states.push(0);
            return ControlFlow::Continue(());
        }
        self.boundary()?;
        let above = self.states.last().copied().unwrap_or(0);
        if above == 0 {
            self.states.push(0);
            return ControlFlow::Continue(());
        }
        let steps = &self.plain.steps;
        let mut here = 0;
        let mut left = above;
        while let Some(step) = steps.get(left.trailing_zeros() as usize) {
            let at = left.trailing_zeros();
            left &= left - 1;
            if step.descendant {
                here |= 1 << at;
            }
            if step.matches(tag) {
                here |= 1 << (at + 1);
            }
        }
        self.states.push(here);
        if here & (1 << steps.len()) != 0 {
            match &self.plain.end {
                Ending::Attribute { uri, local } => {
                    if let Some(attribute) = find(tag, uri, local) {
                        self.found = Some(attribute.value.clone().into_owned());
                        return ControlFlow::Break(());
                    }
                }
                Ending::Element => self.capture = Some(self.states.len()),
                Ending::Text => {}
            }
        }
        ControlFlow::Continue(())
    }

    fn end(&mut self) -> ControlFlow<()> {
        self.boundary()?;
        let depth = self.states.len();
        self.states.pop();
        if self.capture == Some(depth) {
            return self.take();
        }
        ControlFlow::Continue(())
    }

    fn text(&mut self, text: &str) -> ControlFlow<()> {
        let wanted = match self.plain.end {
            Ending::Element => self.capture.is_some(),
            Ending::Attribute { .. } => false,
            Ending::Text => self
                .states
                .last()
                .is_some_and(|state| state & (1 << self.plain.steps.len()) != 0),
        };
        if wanted {
            self.value.push_str(text);
        }
        ControlFlow::Continue(())
    }

    fn comment(&mut self, _: &str) -> ControlFlow<()> {
        self.boundary()
    }

    fn instruction(&mut self, _: &'a str, _: &str) -> ControlFlow<()> {
        self.boundary()
    }
}

impl<'p> Search<'p> {
    fn new(plain: &'p Plain) -> Self {
        let mut states = Vec::with_capacity(16);
        states.push(1);
        Self {
            plain,
            states,
            capture: None,
            value: String::new(),
            found: None,
        }
    }

    /// Whether nothing can matter that lies before the tag that a reader has paused behind: the path leads
    /// through the elements around it, by their names alone, and on.
    fn leads_to(&self, reader: &Reader<'_>) -> bool {
        let mut steps = self.plain.steps.iter();
        let leads = |step: &PlainStep, local: &str, uri: &str| {
            let named = match &step.name {
                NameTest::Name {
                    uri: wanted,
                    local: name,
                } => name == local && same(wanted, uri),
                _ => false,
            };
            named && !step.descendant && step.tests.is_empty()
        };
        let mut around = reader.open().take(reader.depth().saturating_sub(1));
        around.all(|(local, uri)| steps.next().is_some_and(|step| leads(step, local, uri)))
            && steps.next().is_some()
    }

    /// Takes up the search at the tag of a reader that it [`leads_to`](Self::leads_to).
    fn skip_to(&mut self, reader: &Reader<'_>) {
        for depth in 1..reader.depth() {
            self.states.push(1 << depth);
        }
    }

    /// Whether nothing in the innermost open element matters.
    fn is_idle(&self) -> bool {
        self.found.is_some() || self.capture.is_none() && self.states.last() == Some(&0)
    }

    /// All other markup ends a text node.
    fn boundary(&mut self) -> ControlFlow<()> {
        if matches!(self.plain.end, Ending::Text) && !self.value.is_empty() {
            return self.take();
        }
        ControlFlow::Continue(())
    }

    fn take(&mut self) -> ControlFlow<()> {
        self.found = Some(std::mem::take(&mut self.value));
        ControlFlow::Break(())
    }
}

/// Several paths in one reading, which ends when the one that was asked for is found.
struct Searches<'p> {
    all: Vec<Search<'p>>,
    asked: usize,
    /// Open elements of which none is told, from the first in which nothing matters to any path.
    dead: usize,
}

impl Searches<'_> {
    fn tell(&mut self, tell: impl Fn(&mut Search<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        if self.dead > 0 {
            return ControlFlow::Continue(());
        }
        for search in &mut self.all {
            if search.found.is_none() {
                let _ = tell(search);
            }
        }
        match self.all.get(self.asked) {
            Some(asked) if asked.found.is_none() => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    }
}

impl<'a> Sink<'a> for Searches<'_> {
    fn start(&mut self, tag: &Start<'_, 'a>) -> ControlFlow<()> {
        if self.dead > 0 {
            self.dead += 1;
            return ControlFlow::Continue(());
        }
        self.tell(|search| search.start(tag))?;
        if self.all.iter().all(Search::is_idle) {
            self.dead = 1;
        }
        ControlFlow::Continue(())
    }

    fn end(&mut self) -> ControlFlow<()> {
        self.dead = self.dead.saturating_sub(1);
        self.tell(|search| search.end())
    }

    fn text(&mut self, text: &str) -> ControlFlow<()> {
        self.tell(|search| search.text(text))
    }

    fn comment(&mut self, text: &str) -> ControlFlow<()> {
        self.tell(|search| search.comment(text))
    }

    fn instruction(&mut self, target: &'a str, data: &str) -> ControlFlow<()> {
        self.tell(|search| search.instruction(target, data))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::xml::Document;
    use crate::xml::reader::Step;
    use crate::xml::tree::Id;
    use crate::xpath::{Budget, Value};

    fn limits() -> XmlLimits {
        (&crate::Limits::default()).into()
    }

    fn compile(path: &str) -> XPath {
        let namespaces = BTreeMap::from([("p".to_owned(), "urn:p".to_owned())]);
        XPath::compile(path, &namespaces).unwrap()
    }

    fn full(xpath: &XPath, xml: &str) -> Option<String> {
        let document = Document::parse(xml, &limits()).unwrap();
        let budget = Budget::new(u64::MAX, None);
        match xpath.evaluate(&document, Id::ROOT, &budget).unwrap() {
            Value::Nodes(nodes) => nodes.first().map(|id| document.string_value(*id)),
            other => panic!("{other:?}"),
        }
    }

    /// Small names from a small alphabet, so that paths match often.
    fn xml() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("t".to_owned()),
            Just("&amp;".to_owned()),
            Just("<![CDATA[<c>]]>".to_owned()),
            Just("<![CDATA[]]>".to_owned()),
            Just("<!--x-->".to_owned()),
            Just("<?q x?>".to_owned()),
            Just(" ".to_owned()),
        ];
        let name = || prop_oneof![Just("a"), Just("b"), Just("p:a"), Just("q:b")];
        let attribute = prop_oneof![
            Just(""),
            Just(" x='1'"),
            Just(" x='2'"),
            Just(" p:x='1'"),
            Just(" xmlns='urn:p'"),
            Just(" xmlns:p='urn:o'")
        ];
        let element = leaf.prop_recursive(5, 40, 5, move |inner| {
            (
                name(),
                attribute.clone(),
                prop::collection::vec(inner, 0..5),
            )
                .prop_map(|(name, attribute, content)| {
                    format!("<{name}{attribute}>{}</{name}>", content.concat())
                })
        });
        prop::collection::vec(element, 0..4).prop_map(|content| {
            format!(
                "<a xmlns:p='urn:p' xmlns:q='urn:p' x='0'>{}</a>",
                content.concat()
            )
        })
    }

    fn path() -> impl Strategy<Value = String> {
        let step = (
            prop_oneof![Just("/"), Just("//")],
            prop_oneof![
                Just("a"),
                Just("b"),
                Just("*"),
                Just("p:a"),
                Just("p:b"),
                Just("p:*")
            ],
            prop_oneof![
                Just(""),
                Just("[@x]"),
                Just("[@x='1']"),
                Just("['2'=@x][@p:x]")
            ],
        )
            .prop_map(|(slash, name, test)| format!("{slash}{name}{test}"));
        let end = prop_oneof![
            Just(""),
            Just("/text()"),
            Just("/@x"),
            Just("/@p:x"),
            Just("//text()"),
            Just("//@x")
        ];
        (prop::collection::vec(step, 1..4), end).prop_map(|(steps, end)| steps.concat() + end)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn a_plain_path_gives_what_the_full_evaluation_gives(xml in xml(), path in path()) {
            let compiled = compile(&path);
            let expected = full(&compiled, &xml);
            if let Some(plain) = Plain::of(&compiled) {
                prop_assert_eq!(plain.first(Source::Text(&xml), &limits()).unwrap(), expected.clone());
                let bytes = Source::Bytes(xml.as_bytes(), None);
                prop_assert_eq!(plain.first(bytes, &limits()).unwrap(), expected);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn several_paths_give_what_each_gives_alone(
            xml in xml(),
            paths in prop::collection::vec(path(), 1..5),
            asked in any::<prop::sample::Index>(),
        ) {
            let compiled: Vec<XPath> = paths.iter().map(|path| compile(path)).collect();
            let plains: Vec<Plain> = compiled.iter().filter_map(Plain::of).collect();
            prop_assume!(!plains.is_empty());
            let asked = asked.index(plains.len());
            let all: Vec<&Plain> = plains.iter().collect();
            let answers = Plain::first_among(&all, asked, Source::Text(&xml), &limits()).unwrap();
            prop_assert!(answers[asked].is_some());
            for (plain, answer) in plains.iter().zip(answers) {
                if let Some(answer) = answer {
                    prop_assert_eq!(plain.first(Source::Text(&xml), &limits()).unwrap(), answer);
                }
            }
        }
    }

    /// Every place, as far as the document can be read, that [`Source::Bytes`] allows.
    fn pauses(text: &str, limits: &XmlLimits) -> Vec<Pause> {
        let mut reader = Reader::of_bytes(text.as_bytes(), limits);
        let mut seen: Vec<Vec<(String, String)>> = vec![Vec::new()];
        let mut repeated = 0;
        let mut pauses = Vec::new();
        loop {
            match reader.step() {
                Ok(Step::Start) => {
                    let tag = reader.tag();
                    let name = (tag.local.to_owned(), tag.namespace().to_owned());
                    let siblings = seen.last_mut().unwrap();
                    if repeated == 0 && siblings.is_empty() {
                        pauses.extend(reader.pause());
                    }
                    if repeated > 0 || siblings.contains(&name) {
                        repeated += 1;
                    }
                    siblings.push(name);
                    seen.push(Vec::new());
                }
                Ok(Step::End) => {
                    seen.pop();
                    repeated = usize::saturating_sub(repeated, 1);
                }
                Ok(Step::Document) | Err(_) => return pauses,
                Ok(_) => {}
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        #[test]
        fn going_on_where_another_has_paused_changes_nothing(
            xml in xml(),
            paths in prop::collection::vec(path(), 1..4),
            cut in any::<prop::sample::Index>(),
            is_cut in any::<bool>(),
            nodes in prop_oneof![Just(1_000), 1..30_usize],
            asked in any::<prop::sample::Index>(),
        ) {
            let cut = if is_cut { cut.index(xml.len()) } else { xml.len() };
            let text = &xml[..cut];
            let limits = XmlLimits { nodes, ..limits() };
            let compiled: Vec<XPath> = paths.iter().map(|path| compile(path)).collect();
            let plains: Vec<Plain> = compiled.iter().filter_map(Plain::of).collect();
            prop_assume!(!plains.is_empty());
            let all: Vec<&Plain> = plains.iter().collect();
            let asked = asked.index(all.len());
            let whole = Source::Bytes(text.as_bytes(), None);
            for pause in &pauses(text, &limits) {
                let from = Source::Bytes(text.as_bytes(), Some(pause));
                for plain in &all {
                    prop_assert_eq!(plain.first(from, &limits), plain.first(whole, &limits));
                }
                prop_assert_eq!(
                    Plain::first_among(&all, asked, from, &limits),
                    Plain::first_among(&all, asked, whole, &limits)
                );
            }
        }
    }

    #[test]
    fn what_lies_before_a_pause_is_read_once() {
        let text = "<a xmlns='u'><x>0</x><b y='1'><c z='2'>1</c></b></a>";
        let pause = pauses(text, &limits()).swap_remove(2);
        // What would be a mistake to whoever reads it.
        let marred = text.replace("y='1'", "y=<1'");
        let first = |path: &str, limits: &XmlLimits| {
            let namespaces = BTreeMap::from([("u".to_owned(), "u".to_owned())]);
            let plain = Plain::of(&XPath::compile(path, &namespaces).unwrap()).unwrap();
            plain.first(Source::Bytes(marred.as_bytes(), Some(&pause)), limits)
        };
        let allowed = limits();
        let one = Ok(Some("1".to_owned()));
        assert_eq!(first("/u:a/u:b/u:c", &allowed), one);
        assert_eq!(first("/u:a/u:b//u:c", &allowed), one);
        assert_eq!(first("/u:a/u:b/u:c/text()", &allowed), one);
        assert_eq!(first("/u:a/u:b/u:c[@z='2']", &allowed), one);
        let two = Ok(Some("2".to_owned()));
        assert_eq!(first("/u:a/u:b/u:c/@z", &allowed), two);
        for path in [
            "//u:c",
            "/u:a/*/u:c",
            "/u:a/u:b[@y]/u:c",
            "/u:a/u:b",
            "/u:a/u:b/@y",
            "/u:a/u:d/u:c",
            "/a/b/c",
        ] {
            assert!(first(path, &allowed).is_err(), "{path}");
        }
        let fewer = XmlLimits {
            depth: 3,
            ..allowed
        };
        assert!(first("/u:a/u:b/u:c", &fewer).is_err());
    }

    #[test]
    fn which_paths_are_plain() {
        for (path, plain) in [
            ("/a/b", true),
            ("//p:a", true),
            ("//a[@x='1']/b/@y", true),
            ("//a/text()", true),
            ("/a//b/text()", true),
            ("a/b", false),
            ("//a[1]", false),
            ("//a[b]", false),
            ("/a/../b", false),
            ("count(//a)", false),
            ("//a | //b", false),
        ] {
            assert_eq!(Plain::of(&compile(path)).is_some(), plain, "{path}");
        }
    }

    #[test]
    fn what_follows_the_match_is_not_read() {
        let plain = Plain::of(&compile("/a/b")).unwrap();
        let first = |text: &str| plain.first(Source::Text(text), &limits());
        assert_eq!(first("<a><b>1</b><oops"), Ok(Some("1".into())));
        assert!(first("<a><oops><b>1</b></a>").is_err());
        assert_eq!(first("<a><c>1</c></a>"), Ok(None));
        // Nor is it looked at whether it is text.
        let mut bytes = b"<a><b>1</b>".to_vec();
        bytes.resize(5_000, b' ');
        bytes.push(0xff);
        let first = |path: &str| {
            let plain = Plain::of(&compile(path)).unwrap();
            plain.first(Source::Bytes(&bytes, None), &limits())
        };
        assert_eq!(first("/a/b"), Ok(Some("1".into())));
        assert!(first("/a/c").is_err());
    }
}
