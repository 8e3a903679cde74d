//! The routing table of a listener: which doors a path leads to. Exact paths are found by one hash
//! lookup; patterns are tried after them, the more literal ones first.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use xbus_core::adapter::OpenError;

use crate::door::Door;

/// A path as a route says it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pattern {
    /// As written.
    pub(crate) text: Arc<str>,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq)]
enum Segment {
    Literal(String),
    /// `{name}`; the text is `path.name`.
    Named(String),
}

impl Pattern {
    /// Reads `/orders/{no}`. The error says what is wrong.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(rest) = text.strip_prefix('/') else {
            return Err("a path begins with '/'".into());
        };
        let mut segments = Vec::new();
        let mut names = Vec::new();
        for part in rest.split('/') {
            match part
                .strip_prefix('{')
                .and_then(|part| part.strip_suffix('}'))
            {
                Some(name) => {
                    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
                    if name.is_empty() || !name.chars().all(is_word) {
                        return Err(format!("'{part}' is not a name in braces"));
                    }
                    if names.contains(&name) {
                        return Err(format!("'{part}' stands twice in it"));
                    }
                    names.push(name);
                    segments.push(Segment::Named(format!("path.{name}")));
                }
                None if part.contains(['{', '}', '?', '#', ' ']) => {
                    return Err(format!(
                        "'{part}' is neither plain text nor one name in braces"
                    ));
                }
                None => segments.push(Segment::Literal(decode(part).into_owned())),
            }
        }
        Ok(Self {
            text: Arc::from(text),
            segments,
        })
    }

    /// The path when there is no name in it.
    fn exact(&self) -> Option<String> {
        let mut path = String::new();
        for segment in &self.segments {
            match segment {
                Segment::Literal(text) => {
                    path.push('/');
                    path.push_str(text);
                }
                Segment::Named(_) => return None,
            }
        }
        Some(path)
    }

    /// The same for patterns that match the same paths: names do not count.
    pub(crate) fn claim(&self) -> String {
        let mut path = String::new();
        for segment in &self.segments {
            path.push('/');
            match segment {
                Segment::Literal(text) => path.push_str(text),
                Segment::Named(_) => path.push_str("{}"),
            }
        }
        path
    }

    fn matches(&self, path: &str) -> bool {
        let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
        self.segments.iter().all(|segment| match parts.next() {
            None => false,
            Some(part) => match segment {
                Segment::Literal(text) => decode(part) == text.as_str(),
                Segment::Named(_) => !part.is_empty(),
            },
        }) && parts.next().is_none()
    }

    /// Names (`path.NAME`) and decoded values of a path that matches.
    pub(crate) fn values<'a>(
        &'a self,
        path: &'a str,
    ) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> {
        let parts = path.strip_prefix('/').unwrap_or(path).split('/');
        self.segments
            .iter()
            .zip(parts)
            .filter_map(|(segment, part)| match segment {
                Segment::Literal(_) => None,
                Segment::Named(name) => Some((name.as_str(), decode(part))),
            })
    }

    /// Sorts literal segments before names.
    fn rank(&self) -> Vec<bool> {
        self.segments
            .iter()
            .map(|segment| matches!(segment, Segment::Named(_)))
            .collect()
    }
}

/// Decodes percent-encoding (RFC 3986 section 2.1); what is not valid stays as it is, and what is
/// not UTF-8 becomes U+FFFD.
pub(crate) fn decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    Cow::Owned(match String::from_utf8(decode_bytes(text)) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    })
}

fn decode_bytes(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|byte| (*byte as char).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match (bytes[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Whether percent-encoding is valid, and UTF-8 when it is decoded.
pub(crate) fn is_encoded(text: &str) -> bool {
    if !text.contains('%') {
        return true;
    }
    let whole = text.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    whole && std::str::from_utf8(&decode_bytes(text)).is_ok()
}

/// The doors behind one path, the latest first.
pub(crate) type Doors = Arc<[Arc<Door>]>;

/// All doors of a listener.
#[derive(Clone, Default)]
pub(crate) struct Table {
    exact: HashMap<Arc<str>, Doors>,
    patterns: Vec<Doors>,
}

impl Table {
    /// The doors that `path` (as it came) leads to.
    pub(crate) fn find(&self, path: &str) -> Option<&Doors> {
        if let Some(doors) = self.exact.get(path) {
            return Some(doors);
        }
        // An encoded slash is part of a segment, not a slash.
        if path.contains('%')
            && !path.contains("%2F")
            && !path.contains("%2f")
            && let Some(doors) = self.exact.get(decode(path).as_ref())
        {
            return Some(doors);
        }
        self.patterns
            .iter()
            .find(|doors| doors[0].pattern().matches(path))
    }

    /// The table with one more door. A door of the same route replaces its older one until it is
    /// taken away; another route's door with the same claim is an error.
    pub(crate) fn with(&self, door: Arc<Door>) -> Result<Self, OpenError> {
        let mut next = self.clone();
        let pattern = door.pattern();
        let known = next.doors_of(pattern);
        let known = known.unwrap_or_else(|| Arc::from([]));
        if let Some(other) = known.iter().find(|other| other.collides(&door)) {
            return Err(OpenError {
                message: format!(
                    "routes '{}' and '{}' both take {}",
                    other.route(),
                    door.route(),
                    door.claim()
                ),
                help: "give one of them another path, method, 'element' or listener".into(),
            });
        }
        let doors: Doors = std::iter::once(door.clone())
            .chain(known.iter().cloned())
            .collect();
        next.replace(pattern, doors);
        Ok(next)
    }

    /// The table without one of its doors.
    pub(crate) fn without(&self, door: &Arc<Door>) -> Self {
        let mut next = self.clone();
        let pattern = door.pattern();
        let known = next.doors_of(pattern);
        if let Some(known) = known {
            let left: Doors = known
                .iter()
                .filter(|other| !Arc::ptr_eq(other, door))
                .cloned()
                .collect();
            next.replace(pattern, left);
        }
        next
    }

    /// The doors behind paths that this pattern matches, too.
    fn doors_of(&self, pattern: &Pattern) -> Option<Doors> {
        match pattern.exact() {
            Some(path) => self.exact.get(path.as_str()).cloned(),
            None => {
                let claim = pattern.claim();
                self.patterns
                    .iter()
                    .find(|doors| doors[0].pattern().claim() == claim)
                    .cloned()
            }
        }
    }

    fn replace(&mut self, pattern: &Pattern, doors: Doors) {
        match pattern.exact() {
            Some(path) if doors.is_empty() => {
                self.exact.remove(path.as_str());
            }
            Some(path) => {
                self.exact.insert(Arc::from(path), doors);
            }
            None => {
                let claim = pattern.claim();
                self.patterns
                    .retain(|doors| doors[0].pattern().claim() != claim);
                if !doors.is_empty() {
                    self.patterns.push(doors);
                    self.patterns
                        .sort_by_cached_key(|doors| doors[0].pattern().rank());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_segment_by_segment() {
        let pattern = Pattern::parse("/orders/{no}/lines/{line}").unwrap();
        assert!(pattern.matches("/orders/a%20b/lines/1"));
        assert!(!pattern.matches("/orders//lines/1") && !pattern.matches("/orders/1/lines"));
        assert!(!pattern.matches("/orders/1/lines/1/"));
        let values: Vec<_> = pattern.values("/orders/a%2Fb/lines/1").collect();
        assert_eq!(values[0], ("path.no", "a/b".into()));
        assert_eq!(values[1], ("path.line", "1".into()));
        assert_eq!(pattern.claim(), "/orders/{}/lines/{}");
        for bad in ["orders", "/{}", "/a{b}", "/{a}/{a}", "/a?b", "/{a b}"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn percent_encoding_is_decoded_where_it_is_valid() {
        assert_eq!(decode("a%C3%A9%2f%zz%4"), "aé/%zz%4");
        assert_eq!(decode("%ff"), "\u{fffd}");
        for good in ["", "a/b", "a%C3%A9%2f", "%EF%BF%BD", "é%20"] {
            assert!(is_encoded(good), "{good}");
        }
        for bad in ["%", "%4", "a%zz", "%ff", "%C3/%A9", "%é", "%%41"] {
            assert!(!is_encoded(bad), "{bad}");
        }
    }
}
