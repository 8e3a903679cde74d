//! Multipart bodies (RFC 2046 section 5.1) taken apart: where each part lies, what its headers say,
//! and its octets without their transfer encoding.
//!
//! What is not encoded is not copied. The reading is strict where guessing would lose or invent
//! octets, and lenient about line ends: those of the first boundary's line count. Absent: looking
//! into parts that are multiparts themselves; they stay as they are.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mail_parser::HeaderValue;
use mail_parser::decoders::quoted_printable::quoted_printable_decode;
use mail_parser::parsers::MessageStream;
use memchr::{memchr, memchr_iter, memmem};
use xbus_core::{Attachment, Code, Fault};

/// Most parts of a body.
pub(crate) const PARTS_MOST: usize = 1000;
/// Most bytes of a part's headers.
pub(crate) const HEAD_MOST: usize = 16 * 1024;
/// Longest boundary that is taken, in bytes; RFC 2046 section 5.1.1 allows 70.
const BOUNDARY_MOST: usize = 200;
/// Most parameters of a value. Those who write more want to see how long it takes to read them.
const PARAMETERS_MOST: usize = 64;
/// Longest name of a file that encoded words are looked for in, in bytes.
const ENCODED_MOST: usize = 1024;

/// A header's value that is a word with parameters (RFC 2045 section 5.1, RFC 2183, RFC 2231).
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Typed {
    /// In small letters: `multipart/related`, `form-data`.
    pub(crate) word: String,
    parameters: Vec<(String, String)>,
}

impl Typed {
    /// Reads a value; what is none, or has very many parameters, has an empty word.
    pub(crate) fn read(value: &[u8]) -> Self {
        if memchr_iter(b';', value).count() > PARAMETERS_MOST {
            return Self::default();
        }
        let value = parsed(value, |stream| stream.parse_content_type());
        let HeaderValue::ContentType(value) = value else {
            return Self::default();
        };
        let word = match &value.c_subtype {
            Some(subtype) => format!("{}/{subtype}", value.c_type),
            None => value.c_type.to_string(),
        };
        let attributes = value.attributes.unwrap_or_default();
        Self {
            word: word.to_ascii_lowercase(),
            parameters: attributes
                .iter()
                .map(|one| (one.name.to_ascii_lowercase(), one.value.to_string()))
                .collect(),
        }
    }

    /// The parameter of that name (in small letters). Of several the last counts: `filename*` stands
    /// behind the `filename` for those who do not know it (RFC 6266 section 4.3).
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let found = self
            .parameters
            .iter()
            .rev()
            .find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// One part.
pub(crate) struct Part {
    /// Its content type as it was written, on one line.
    pub(crate) content_type: Option<String>,
    /// `Content-Disposition`.
    pub(crate) disposition: Typed,
    /// Without angle brackets.
    pub(crate) content_id: Option<String>,
    /// Its octets, decoded.
    pub(crate) body: Bytes,
}

impl Part {
    /// The name of its file, decoded, without a path.
    pub(crate) fn file_name(&self) -> Option<String> {
        let own = self.disposition.parameter("filename");
        let raw = match own {
            Some(name) => name.to_owned(),
            None => Typed::read(self.content_type.as_deref()?.as_bytes())
                .parameter("name")?
                .to_owned(),
        };
        // RFC 2047 forbids encoded words in parameters, and everybody writes them.
        let name = match raw.contains("=?") && raw.len() <= ENCODED_MOST {
            true => parsed(raw.as_bytes(), |stream| stream.parse_unstructured())
                .as_text()
                .unwrap_or_default()
                .to_owned(),
            false => raw,
        };
        Attachment::file_name(&name)
    }
}

/// A value as `read` takes it, with the line end that it needs.
fn parsed(
    value: &[u8],
    read: impl for<'x> Fn(&mut MessageStream<'x>) -> HeaderValue<'x>,
) -> HeaderValue<'static> {
    let mut line = value[..value.len().min(HEAD_MOST)].to_vec();
    line.push(b'\n');
    read(&mut MessageStream::new(&line)).into_owned()
}

fn one_line(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    plain.trim().to_owned()
}

fn broken(why: impl std::fmt::Display) -> Fault {
    Fault::new(
        Code::Client,
        format!("the multipart body cannot be read: {why}"),
    )
}

fn beyond(why: impl std::fmt::Display) -> Fault {
    Fault::new(
        Code::TooLarge,
        format!("the multipart body cannot be read: {why}"),
    )
}

/// The boundary that a content type names.
pub(crate) fn boundary(content_type: &Typed) -> Result<&str, Fault> {
    let boundary = content_type
        .parameter("boundary")
        .map(|text| text.trim_end_matches([' ', '\t']))
        .filter(|boundary| !boundary.is_empty())
        .ok_or_else(|| broken("its content type names no boundary"))?;
    if boundary.len() > BOUNDARY_MOST || boundary.chars().any(char::is_control) {
        return Err(broken("its boundary is not one"));
    }
    Ok(boundary)
}

/// The parts of a body, in its order; at least one. What stands before the first boundary and behind
/// the last is passed over. `client` when the body is broken or was cut off, `too-large` and
/// `unsupported` as they say.
pub(crate) fn parts(body: &Bytes, boundary: &str) -> Result<Vec<Part>, Fault> {
    let marker = [b"--", boundary.as_bytes()].concat();
    let mut delimiters = Delimiters {
        body,
        finder: memmem::Finder::new(&marker),
        length: marker.len(),
        from: 0,
    };
    let mut open = delimiters
        .next()
        .ok_or_else(|| broken("its boundary stands nowhere in it"))?;
    let bare = open.bare;
    let mut parts = Vec::new();
    while !open.last {
        let next = delimiters
            .next()
            .ok_or_else(|| broken("it was cut off: the closing boundary is missing"))?;
        if parts.len() == PARTS_MOST {
            return Err(beyond(format!("it has more than {PARTS_MOST} parts")));
        }
        let end = content_end(body, open.end, next.start, bare);
        parts.push(part(body.slice(open.end..end), parts.len() + 1)?);
        open = next;
    }
    match parts.is_empty() {
        true => Err(broken("it has no parts")),
        false => Ok(parts),
    }
}

/// The line of a boundary.
struct Delimiter {
    /// Its first byte.
    start: usize,
    /// Behind its line end.
    end: usize,
    /// Whether its line ends in LF alone.
    bare: bool,
    /// Whether it closes the body.
    last: bool,
}

struct Delimiters<'a> {
    body: &'a [u8],
    finder: memmem::Finder<'a>,
    length: usize,
    from: usize,
}

impl Iterator for Delimiters<'_> {
    type Item = Delimiter;

    fn next(&mut self) -> Option<Delimiter> {
        loop {
            let start = self.from + self.finder.find(&self.body[self.from..])?;
            self.from = start + 1;
            // A boundary is a line of its own: neither the end of another line nor the beginning.
            if start > 0 && self.body[start - 1] != b'\n' {
                continue;
            }
            let rest = &self.body[start + self.length..];
            let (last, rest) = match rest.strip_prefix(b"--") {
                Some(rest) => (true, rest),
                None => (false, rest),
            };
            let padding = rest
                .iter()
                .take_while(|c| matches!(c, b' ' | b'\t'))
                .count();
            let (bare, line_end) = match &rest[padding..] {
                [b'\r', b'\n', ..] => (false, 2),
                [b'\n', ..] => (true, 1),
                [] => (false, 0),
                _ => continue,
            };
            let end = self.body.len() - rest.len() + padding + line_end;
            self.from = end;
            return Some(Delimiter {
                start,
                end,
                bare,
                last,
            });
        }
    }
}

/// Where a part ends whose next boundary's line begins at `line`: the line end ahead of it belongs to
/// the boundary. In a body whose line ends are LF alone, a CR before it is content.
fn content_end(body: &[u8], start: usize, line: usize, bare: bool) -> usize {
    let content = &body[start..line];
    let ending = match content {
        [.., b'\r', b'\n'] if !bare => 2,
        [.., b'\n'] => 1,
        _ => 0,
    };
    line - ending
}

/// What counts of a part's headers.
#[derive(Default)]
struct Head {
    content_type: Option<String>,
    disposition: Option<String>,
    encoding: Option<String>,
    content_id: Option<String>,
}

fn part(raw: Bytes, number: usize) -> Result<Part, Fault> {
    let (head, start) = head(&raw, number)?;
    let content_id = head.content_id.map(|id| {
        let id = id.trim();
        let inner = id.strip_prefix('<').and_then(|id| id.strip_suffix('>'));
        inner.unwrap_or(id).trim().to_owned()
    });
    Ok(Part {
        content_type: head.content_type.filter(|value| !value.is_empty()),
        disposition: head
            .disposition
            .map(|value| Typed::read(value.as_bytes()))
            .unwrap_or_default(),
        content_id: content_id.filter(|id| !id.is_empty()),
        body: decoded(raw.slice(start..), head.encoding.as_deref(), number)?,
    })
}

/// Reads the headers of a part; gives where its content begins.
fn head(raw: &[u8], number: usize) -> Result<(Head, usize), Fault> {
    let mut head = Head::default();
    let mut at = 0;
    let mut field: Vec<u8> = Vec::new();
    while at < raw.len() {
        let start = at;
        at = memchr(b'\n', &raw[start..]).map_or(raw.len(), |end| start + end + 1);
        if at > HEAD_MOST {
            let most = HEAD_MOST / 1024;
            return Err(beyond(format!(
                "the headers of part {number} are larger than {most} KiB"
            )));
        }
        let line = &raw[start..at];
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        let folded = matches!(line[0], b' ' | b'\t');
        if !folded {
            take_field(&mut head, &field, number)?;
            field.clear();
        } else if field.is_empty() {
            return Err(broken(format!("part {number} begins with no header")));
        }
        field.extend_from_slice(line);
    }
    take_field(&mut head, &field, number)?;
    Ok((head, at))
}

fn take_field(head: &mut Head, field: &[u8], number: usize) -> Result<(), Fault> {
    if field.is_empty() {
        return Ok(());
    }
    let colon = memchr(b':', field);
    let name = colon.map(|colon| field[..colon].trim_ascii_end());
    let (Some(colon), Some(name)) = (colon, name.filter(|name| is_name(name))) else {
        return Err(broken(format!("part {number} has a header that is none")));
    };
    let place = match name.to_ascii_lowercase().as_slice() {
        b"content-type" => &mut head.content_type,
        b"content-disposition" => &mut head.disposition,
        b"content-transfer-encoding" => &mut head.encoding,
        b"content-id" => &mut head.content_id,
        _ => return Ok(()),
    };
    let value = one_line(&String::from_utf8_lossy(&field[colon + 1..]));
    // Two readers would take two different ones.
    if place.replace(value).is_some() {
        let name = String::from_utf8_lossy(name);
        return Err(broken(format!("part {number} has the header {name} twice")));
    }
    Ok(())
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|c| matches!(c, 33..=126))
}

/// A part's octets (RFC 2045 section 6).
fn decoded(raw: Bytes, encoding: Option<&str>, number: usize) -> Result<Bytes, Fault> {
    let damaged = |what: &str| broken(format!("part {number} is damaged: it is not {what}"));
    let encoding = encoding.unwrap_or_default().to_ascii_lowercase();
    match encoding.as_str() {
        "" | "binary" | "8bit" | "7bit" => Ok(raw),
        "base64" => {
            let text: Vec<u8> = raw
                .iter()
                .copied()
                .filter(|c| !c.is_ascii_whitespace())
                .collect();
            // Without its padding nobody knows whether it is whole (RFC 2045 section 6.8).
            let octets = STANDARD.decode(text).map_err(|_| damaged("base64"))?;
            Ok(octets.into())
        }
        "quoted-printable" => quoted_printable_decode(&raw)
            .map(Bytes::from)
            .ok_or_else(|| damaged("quoted-printable")),
        _ => Err(Fault::new(
            Code::Unsupported,
            format!(
                "the multipart body cannot be read: part {number} has a transfer encoding that is not known"
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: impl Into<Vec<u8>>) -> Result<Vec<Part>, String> {
        parts(&Bytes::from(body.into()), "b").map_err(|fault| fault.reason)
    }

    fn bodies(body: impl Into<Vec<u8>>) -> Vec<Vec<u8>> {
        let parts = read(body).unwrap();
        parts.into_iter().map(|part| part.body.to_vec()).collect()
    }

    #[test]
    fn content_types_are_read_as_they_are_written() {
        let typed = Typed::read(
            b"Multipart/Related; boundary=\"a b=?\"; type=\"application/xop+xml\";\r\n start=\"<r@x>\"; \
              start-info=\"application/soap+xml; action=\\\"urn:a;b\\\"\"",
        );
        assert_eq!(typed.word, "multipart/related");
        for (name, value) in [
            ("boundary", "a b=?"),
            ("type", "application/xop+xml"),
            ("start", "<r@x>"),
            ("start-info", "application/soap+xml; action=\"urn:a;b\""),
        ] {
            assert_eq!(typed.parameter(name), Some(value));
        }
        // As some write them, without quotes.
        let typed =
            Typed::read(b"multipart/related;type=text/xml;start=<r@x>;boundary=----=_A.b_1");
        for (name, value) in [
            ("type", "text/xml"),
            ("start", "<r@x>"),
            ("boundary", "----=_A.b_1"),
        ] {
            assert_eq!(typed.parameter(name), Some(value));
        }
        assert_eq!(Typed::read(b"").word, "");
    }

    #[test]
    fn parts_lie_between_lines_of_the_boundary() {
        let body = "preamble --b\r\n--b \t\r\nContent-Type: a/b;\r\n x=\"1\"\r\ncontent-id: <one@x>\r\n\r\n\
                    1\r\n --b\r\n--bb\r\n--b--x\r\n\r\n--b\r\n\r\n--b\r\nX: y\r\n\r\nz\r\n--b--\r\nepilogue\r\n--b\r\n";
        let all = read(body).unwrap();
        assert_eq!(all[0].content_type.as_deref(), Some("a/b; x=\"1\""));
        assert_eq!(all[0].content_id.as_deref(), Some("one@x"));
        assert_eq!(
            bodies(body),
            [&b"1\r\n --b\r\n--bb\r\n--b--x\r\n"[..], b"", b"z"]
        );
        assert_eq!(bodies("--b\r\n\r\n--b--"), [b""]);
        assert_eq!(bodies("--b\r\nA: b\r\n--b--"), [b""], "headers alone");
        assert_eq!(bodies("--b\r\n--b--"), [b""], "nothing at all");
    }

    #[test]
    fn line_ends_of_the_boundary_are_not_content() {
        assert_eq!(
            bodies("--b\n\na\r\n--b\n\n\n\n--b--\n"),
            [&b"a\r"[..], b"\n"]
        );
        assert_eq!(bodies("--b\r\n\r\na\r\r\n--b--"), [b"a\r"]);
        assert_eq!(bodies("--b\r\n\r\n\r\n\r\n--b--"), [b"\r\n"]);
        assert_eq!(bodies("--b\r\n\r\na\n--b--"), [b"a"], "of both kinds");
    }

    #[test]
    fn transfer_encodings_are_taken_off() {
        let one = |encoding: &str, text: &str| {
            read(format!(
                "--b\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n{text}\r\n--b--"
            ))
            .map(|parts| String::from_utf8_lossy(&parts[0].body).into_owned())
        };
        assert_eq!(one("Base64", "YWJj\r\nZA==").as_deref(), Ok("abcd"));
        assert_eq!(
            one("quoted-printable", "a=3Db=\r\nc\r\n=C3=A9").as_deref(),
            Ok("a=b".to_owned() + "c\r\né").as_deref()
        );
        assert_eq!(one("8BIT", "a=3D").as_deref(), Ok("a=3D"));
        for (encoding, text) in [
            ("base64", "YW*j"),
            ("base64", "YWJjZ"),
            ("base64", "YWJjZA"),
            ("quoted-printable", "a=3G"),
            ("x-own", "a"),
        ] {
            assert!(one(encoding, text).is_err(), "{encoding} {text}");
        }
    }

    #[test]
    fn what_is_not_encoded_is_not_copied() {
        let body = Bytes::from(b"--b\r\n\r\nabc\r\n--b--".to_vec());
        let all = parts(&body, "b").unwrap();
        assert_eq!(all[0].body.as_ptr(), body[7..].as_ptr());
    }

    #[test]
    fn names_of_files_are_decoded() {
        let name =
            |header: &str| read(format!("--b\r\n{header}\r\n\r\n--b--")).unwrap()[0].file_name();
        for (header, expected) in [
            (
                "Content-Disposition: attachment; filename=\"a b.pdf\"",
                "a b.pdf",
            ),
            (
                "Content-Disposition: attachment; filename=plain.pdf",
                "plain.pdf",
            ),
            (
                "Content-Disposition: attachment; filename=\"_.txt\"; filename*=UTF-8''%E2%82%AC.txt",
                "€.txt",
            ),
            (
                "Content-Disposition: attachment; filename*0=\"long\"; filename*1=\"er.txt\"",
                "longer.txt",
            ),
            (
                "Content-Disposition: attachment; filename=\"=?utf-8?B?w6kudHh0?=\"",
                "é.txt",
            ),
            (
                "Content-Disposition: form-data; name=\"x\"; filename=\"é.txt\"",
                "é.txt",
            ),
            ("Content-Type: image/png; name=\"x.png\"", "x.png"),
            (
                "Content-Disposition: attachment; filename*=UTF-8''a%0D%0AX%3A%20y",
                "a  X: y",
            ),
        ] {
            assert_eq!(name(header).as_deref(), Some(expected), "{header}");
        }
        assert_eq!(name("Content-Disposition: attachment; filename=\"\""), None);
        assert_eq!(name("Content-Type: text/plain"), None);
    }

    #[test]
    fn what_is_broken_is_refused_with_its_reason() {
        let long = format!("--b\r\nX: {}\r\n\r\n--b--", "y".repeat(HEAD_MOST));
        let many = "--b\r\n\r\n\r\n".repeat(PARTS_MOST + 2);
        for (body, why) in [
            ("", "nowhere"),
            ("--c\r\n\r\n--c--", "nowhere"),
            ("--b\r\n\r\nabc", "cut off"),
            ("--b", "cut off"),
            ("--b\r\n\r\nabc\r\n--b-", "cut off"),
            ("--b--", "no parts"),
            ("--b\r\nno header\r\n\r\n--b--", "a header that is none"),
            ("--b\r\n: x\r\n\r\n--b--", "a header that is none"),
            ("--b\r\n folded: x\r\n\r\n--b--", "begins with no header"),
            (
                "--b\r\nContent-ID: <1>\r\ncontent-id: <2>\r\n\r\n--b--",
                "twice",
            ),
            (&long, "larger than 16 KiB"),
            (&many, "more than 1000 parts"),
        ] {
            let Err(reason) = read(body) else {
                panic!("taken: {why}");
            };
            assert!(reason.contains(why), "{reason}");
        }
        for bad in ["multipart/related", "multipart/related; boundary=\"\""] {
            assert!(boundary(&Typed::read(bad.as_bytes())).is_err(), "{bad}");
        }
        let long = format!("multipart/related; boundary=\"{}\"", "x".repeat(201));
        assert!(boundary(&Typed::read(long.as_bytes())).is_err());
    }
}
