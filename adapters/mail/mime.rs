//! The structure of a mail (RFC 2045, RFC 2046): headers and the leaves of its tree of parts, each
//! with how it is encoded. Everything is bounded, and what is broken is read as far as it makes sense.
//!
//! Mails within mails are leaves: nobody looks into them. Absent: recursion.

use std::borrow::Cow;

use mail_parser::HeaderValue;
use mail_parser::parsers::MessageStream;
use xbus_core::{Attachment, Code, Fault};

/// Most bytes of a mail's headers.
const HEADERS_SIZE: usize = 256 * 1024;
/// Most header fields of a mail or a part.
const HEADERS_MOST: usize = 1000;
/// Longest header field that is read in full, in bytes.
const FIELD_MOST: usize = 16 * 1024;
/// Deepest nesting of multiparts.
const DEPTH_MOST: usize = 20;
/// Most parts of a mail.
pub(crate) const PARTS_MOST: usize = 1000;
/// Longest boundary in bytes (RFC 2046 section 5.1.1 allows 70).
const BOUNDARY_MOST: usize = 200;

/// A header field as it came, without its line end.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a> {
    pub(crate) name: &'a str,
    pub(crate) value: &'a [u8],
}

/// The header fields of a mail or a part.
pub(crate) struct Fields<'a>(Vec<Field<'a>>);

/// `Content-Type` or `Content-Disposition`: a word in small letters and its parameters.
#[derive(Default, Clone)]
pub(crate) struct Typed {
    pub(crate) word: String,
    parameters: Vec<(String, String)>,
}

/// How a leaf's bytes are written (RFC 2045 section 6).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Encoding {
    Identity,
    Base64,
    Quoted,
    Uuencode,
    Unknown,
}

/// What a leaf is to the mail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Place {
    /// One of several forms of the same.
    pub(crate) alternative: bool,
    /// The same, and not a part of such a form.
    pub(crate) form: bool,
    /// Belongs to another part that shows it (a picture in HTML).
    pub(crate) related: bool,
    /// Beside what it signs.
    signature: bool,
}

/// A part without parts.
pub(crate) struct Leaf<'a> {
    pub(crate) kind: Typed,
    pub(crate) place: Place,
    /// The name of its file, decoded and on one line.
    pub(crate) name: Option<String>,
    /// Without its angle brackets.
    pub(crate) content_id: Option<String>,
    /// `attachment`, `inline` or nothing.
    pub(crate) disposition: String,
    encoding: Encoding,
    raw: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Reads the fields at the beginning of `bytes` and says where the body begins.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<(Self, usize), Fault> {
        let mut fields = Vec::new();
        let mut at = 0;
        let mut whole = false;
        // Where the first line stands that is no field, and how many fields stand ahead of it.
        let mut stray = None;
        while at < bytes.len() {
            let start = at;
            at = end_of_line(bytes, at);
            if is_blank(&bytes[start..at]) {
                whole = true;
                break;
            }
            while bytes.get(at).is_some_and(|c| matches!(c, b' ' | b'\t'))
                && !is_blank(&bytes[at..end_of_line(bytes, at)])
            {
                at = end_of_line(bytes, at);
            }
            if at > HEADERS_SIZE || fields.len() >= HEADERS_MOST {
                return Err(Fault::new(
                    Code::TooLarge,
                    format!(
                        "the headers are too large: more than {} KiB or {HEADERS_MOST} of them",
                        HEADERS_SIZE / 1024
                    ),
                ));
            }
            // What is no field (a line of an mbox, a line that lost its fold) is passed by.
            let before = fields.len();
            fields.extend(field(&bytes[start..at]));
            let mbox = start == 0 && bytes.starts_with(b"From ");
            if fields.len() == before && stray.is_none() && !mbox {
                stray = Some((start, before));
            }
        }
        // Where no blank line ends the fields, or there is none, the text begins with what is none.
        if let Some((start, before)) = stray.filter(|_| !whole || fields.is_empty()) {
            fields.truncate(before);
            at = start;
        }
        Ok((Self(fields), at))
    }

    /// All fields.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Field<'a>> {
        self.0.iter().copied()
    }

    /// The first field of that name.
    pub(crate) fn get(&self, name: &str) -> Option<Field<'a>> {
        self.iter()
            .find(|field| field.name.eq_ignore_ascii_case(name))
    }

    fn typed(&self, name: &str) -> Option<Typed> {
        self.get(name).map(Field::typed)
    }
}

impl Field<'_> {
    /// The value as one line of text, encoded words decoded (RFC 2047).
    pub(crate) fn text(self) -> String {
        let value = self.parsed(|stream| stream.parse_unstructured());
        one_line(match &value {
            HeaderValue::Text(text) => text,
            _ => "",
        })
    }

    /// The value as a word with parameters (RFC 2045, RFC 2231).
    pub(crate) fn typed(self) -> Typed {
        // Parameters of nothing are still parameters.
        let led = [b"x", self.value].concat();
        let field = match self.value.starts_with(b";") {
            true => Field {
                value: &led,
                ..self
            },
            false => self,
        };
        let value = field.parsed(|stream| stream.parse_content_type());
        let HeaderValue::ContentType(value) = value else {
            return Typed::default();
        };
        let word = match &value.c_subtype {
            Some(subtype) => format!("{}/{subtype}", value.c_type),
            None => value.c_type.to_string(),
        };
        let parameters = value.attributes.unwrap_or_default();
        Typed {
            word: word.trim().to_ascii_lowercase(),
            parameters: parameters
                .iter()
                .map(|one| (one.name.to_ascii_lowercase(), one.value.to_string()))
                .collect(),
        }
    }

    /// The value as `read` takes it, with the line end that it needs.
    pub(crate) fn parsed(
        self,
        read: impl for<'x> Fn(&mut MessageStream<'x>) -> HeaderValue<'x>,
    ) -> HeaderValue<'static> {
        let mut value = self.value[..self.value.len().min(FIELD_MOST)].to_vec();
        value.push(b'\n');
        read(&mut MessageStream::new(&value)).into_owned()
    }
}

impl Typed {
    /// A parameter, by its name in small letters.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Whether it is of that type, such as `text`.
    pub(crate) fn is_a(&self, family: &str) -> bool {
        self.word.split('/').next() == Some(family)
    }
}

fn field(line: &[u8]) -> Option<Field<'_>> {
    let colon = memchr::memchr(b':', line)?;
    let name = std::str::from_utf8(&line[..colon]).ok()?.trim_end();
    let good = !name.is_empty() && name.bytes().all(|c| matches!(c, 33..=126));
    let value = line[colon + 1..].trim_ascii();
    good.then_some(Field { name, value })
}

fn end_of_line(bytes: &[u8], from: usize) -> usize {
    memchr::memchr(b'\n', &bytes[from..]).map_or(bytes.len(), |at| from + at + 1)
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

/// Text without control characters and with single spaces where lines were folded.
pub(crate) fn one_line(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| match c {
            c if c.is_control() => ' ',
            // Would let text be shown in another order than it is in.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' => ' ',
            c => c,
        })
        .collect();
    plain.trim().to_owned()
}

/// A part that is still to be looked at.
struct Open<'a> {
    bytes: &'a [u8],
    place: Place,
    depth: usize,
    /// What a part without a content type is (RFC 2046 section 5.1.5).
    default: &'static str,
    /// Read already: the mail itself.
    fields: Option<(Fields<'a>, usize)>,
}

/// The leaves of a mail's tree, in the order of the mail.
pub(crate) fn leaves<'a>(
    mail: &'a [u8],
    fields: Fields<'a>,
    body: usize,
) -> Result<Vec<Leaf<'a>>, Fault> {
    let mut leaves = Vec::new();
    let mut open = vec![Open {
        bytes: mail,
        place: Place::default(),
        depth: 0,
        default: "text/plain",
        fields: Some((fields, body)),
    }];
    let mut seen = 0;
    while let Some(part) = open.pop() {
        seen += 1;
        if seen > PARTS_MOST {
            return Err(beyond(format!("it has more than {PARTS_MOST} parts")));
        }
        let (fields, body) = match part.fields {
            Some(read) => read,
            None => Fields::read(part.bytes)?,
        };
        let content = &part.bytes[body..];
        let mut kind = fields.typed("content-type").unwrap_or_default();
        if !kind.word.contains('/') {
            kind.word = part.default.to_owned();
        }
        if !kind.is_a("multipart") {
            leaves.push(leaf(&fields, kind, part.place, content));
            continue;
        }
        if kind.word == "multipart/encrypted" {
            return Err(encrypted("OpenPGP"));
        }
        let parts = split(content, &kind);
        if parts.is_empty() {
            // Nothing divides it: what stands there is text.
            kind.word = String::from("text/plain");
            leaves.push(leaf(&fields, kind, part.place, content));
            continue;
        }
        if part.depth >= DEPTH_MOST {
            return Err(beyond(format!(
                "its parts are nested more than {DEPTH_MOST} deep"
            )));
        }
        if open.len() + parts.len() > PARTS_MOST {
            return Err(beyond(format!("it has more than {PARTS_MOST} parts")));
        }
        let children = parts.into_iter().enumerate().map(|(number, bytes)| Open {
            bytes,
            place: Place {
                alternative: part.place.alternative || kind.word == "multipart/alternative",
                form: kind.word == "multipart/alternative",
                related: part.place.related || (kind.word == "multipart/related" && number > 0),
                signature: kind.word == "multipart/signed" && number > 0,
            },
            depth: part.depth + 1,
            default: match kind.word.as_str() {
                "multipart/digest" => "message/rfc822",
                _ => "text/plain",
            },
            fields: None,
        });
        let at = open.len();
        open.extend(children);
        open[at..].reverse();
    }
    leaves.retain(|leaf| !leaf.is_signature());
    Ok(leaves)
}

fn leaf<'a>(fields: &Fields<'a>, kind: Typed, place: Place, raw: &'a [u8]) -> Leaf<'a> {
    let disposition = fields.typed("content-disposition").unwrap_or_default();
    let name = disposition
        .parameter("filename")
        .or_else(|| kind.parameter("name"))
        .map(file_name)
        .filter(|name| !name.is_empty());
    let encoding = fields.get("content-transfer-encoding").map(|field| {
        String::from_utf8_lossy(field.value)
            .trim()
            .to_ascii_lowercase()
    });
    let content_id = fields.get("content-id").map(|id| {
        let id = id.text();
        id.trim_matches(['<', '>', ' ']).to_owned()
    });
    Leaf {
        place,
        name,
        content_id: content_id.filter(|id| !id.is_empty()),
        disposition: disposition.word,
        encoding: match encoding.as_deref() {
            None | Some("" | "7bit" | "8bit" | "binary") => Encoding::Identity,
            Some("base64") => Encoding::Base64,
            Some("quoted-printable") => Encoding::Quoted,
            Some("x-uuencode" | "uuencode" | "x-uue") => Encoding::Uuencode,
            Some(_) => Encoding::Unknown,
        },
        kind,
        raw,
    }
}

/// A name that encoded words may hide (RFC 2047 forbids them in parameters, and everybody uses them).
/// A path ahead of it says nothing here (RFC 2183 section 2.3).
fn file_name(raw: &str) -> String {
    let name = match raw.contains("=?") {
        true => Field {
            name: "",
            value: raw.as_bytes(),
        }
        .text(),
        false => one_line(raw),
    };
    Attachment::file_name(&name).unwrap_or_default()
}

/// The parts between the boundary's lines. Where no boundary is named, the first line that looks
/// like one counts.
fn split<'a>(content: &'a [u8], kind: &Typed) -> Vec<&'a [u8]> {
    let named = kind
        .parameter("boundary")
        .map(|text| text.trim_end().as_bytes());
    let guessed = || {
        lines(content)
            .map(|(start, end)| content[start..end].trim_ascii_end())
            .find(|line| line.len() > 2 && line.starts_with(b"--"))
            .map(|line| &line[2..])
    };
    let Some(boundary) = named.filter(|b| !b.is_empty()).or_else(guessed) else {
        return Vec::new();
    };
    if boundary.len() > BOUNDARY_MOST {
        return Vec::new();
    }
    let mut parts = Vec::new();
    let mut begun = None;
    for (start, end) in lines(content) {
        let line = content[start..end].trim_ascii_end();
        let Some(rest) = line
            .strip_prefix(b"--")
            .and_then(|line| line.strip_prefix(boundary))
        else {
            continue;
        };
        if !matches!(rest, b"" | b"--") {
            continue;
        }
        // The line end ahead of a boundary belongs to the boundary.
        parts.extend(
            begun
                .take()
                .map(|from| &content[from..before(content, from, start)]),
        );
        if rest == b"--" || parts.len() > PARTS_MOST {
            return parts;
        }
        begun = Some(end);
    }
    // The last boundary is missing: the mail was cut off, or its writer forgot.
    parts.extend(begun.map(|from| &content[from..]));
    parts
}

fn before(content: &[u8], from: usize, line: usize) -> usize {
    let mut end = line;
    for c in [b'\n', b'\r'] {
        if end > from && content[end - 1] == c {
            end -= 1;
        }
    }
    end
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, usize)> + '_ {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at;
        at = end_of_line(bytes, start);
        (start < bytes.len()).then_some((start, at))
    })
}

impl Leaf<'_> {
    fn is_signature(&self) -> bool {
        self.place.signature
            && matches!(
                self.kind.word.as_str(),
                "application/pgp-signature"
                    | "application/pkcs7-signature"
                    | "application/x-pkcs7-signature"
            )
    }

    /// Whether nothing stands in it.
    pub(crate) fn is_blank(&self) -> bool {
        is_blank(self.raw)
    }

    /// Its bytes as they were before they were encoded for the way.
    pub(crate) fn decoded(&self) -> Result<Cow<'_, [u8]>, Fault> {
        let what = || match &self.name {
            Some(name) => format!("the part '{name}'"),
            None => format!("the part of type {}", self.kind.word),
        };
        match self.encoding {
            Encoding::Identity => Ok(Cow::Borrowed(self.raw)),
            Encoding::Quoted => Ok(Cow::Owned(quoted_printable(self.raw))),
            Encoding::Base64 => base64(self.raw).map(Cow::Owned).ok_or_else(|| {
                Fault::new(
                    Code::Client,
                    format!("{} is damaged: its base64 ends in the middle", what()),
                )
            }),
            Encoding::Uuencode => uuencoded(self.raw).map(Cow::Owned).ok_or_else(|| {
                Fault::new(
                    Code::Client,
                    format!("{} is damaged: it is no uuencode", what()),
                )
            }),
            Encoding::Unknown => Err(Fault::new(
                Code::Unsupported,
                format!("{} has a transfer encoding that nobody knows", what()),
            )),
        }
    }
}

/// RFC 2045 section 6.8: what is not of the alphabet is passed by; padding ends it. Nothing when it
/// ends within a byte.
fn base64(raw: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(raw.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0);
    let mut ended = false;
    for &c in raw {
        let six = match c {
            // Some writers pad each line and go on.
            b'\n' => {
                ended = false;
                continue;
            }
            _ if ended => continue,
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => {
                if count == 1 {
                    return None;
                }
                (bits, count) = (0, 0);
                ended = true;
                continue;
            }
            _ => continue,
        };
        bits = bits << 6 | u32::from(six);
        count += 1;
        match count {
            2 => out.push((bits >> 4) as u8),
            3 => out.push((bits >> 2) as u8),
            4 => {
                out.push(bits as u8);
                (bits, count) = (0, 0);
            }
            _ => {}
        }
    }
    (count != 1).then_some(out)
}

/// RFC 2045 section 6.7; what is no escape stays as it is.
fn quoted_printable(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    for (start, end) in lines(raw) {
        let line = &raw[start..end];
        let text = line.trim_ascii_end();
        let mut soft = false;
        let mut at = 0;
        while at < text.len() {
            let digit = |at: usize| text.get(at).and_then(|c| (*c as char).to_digit(16));
            match (text[at], digit(at + 1), digit(at + 2)) {
                (b'=', Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 3;
                }
                (b'=', ..) if at + 1 == text.len() => {
                    soft = true;
                    at += 1;
                }
                (c, ..) => {
                    out.push(c);
                    at += 1;
                }
            }
        }
        if !soft {
            let ending: &[u8] = match (line.ends_with(b"\r\n"), line.ends_with(b"\n")) {
                (true, _) => b"\r\n",
                (_, true) => b"\n",
                // The last line: its end belongs to the boundary.
                _ => &line[text.len()..],
            };
            out.extend_from_slice(ending);
        }
    }
    out
}

/// The format of uuencode(5): from `begin MODE NAME` to `end`.
fn uuencoded(raw: &[u8]) -> Option<Vec<u8>> {
    let mut rows = lines(raw).map(|(start, end)| raw[start..end].trim_ascii_end());
    rows.find(|row| row.starts_with(b"begin "))?;
    let mut out = Vec::with_capacity(raw.len() / 4 * 3);
    for row in rows {
        if row == b"end" {
            return Some(out);
        }
        let value = |c: u8| (32..=96).contains(&c).then_some((c - 32) & 63);
        let Some(&first) = row.first() else { continue };
        let mut left = usize::from(value(first)?);
        for group in row[1..].chunks(4) {
            let mut bits = 0u32;
            for at in 0..4 {
                // Spaces at the end may have been cut off on the way.
                bits = bits << 6 | u32::from(value(*group.get(at).unwrap_or(&b' '))?);
            }
            let bytes = &bits.to_be_bytes()[1..];
            let here = left.min(3);
            out.extend_from_slice(&bytes[..here]);
            left -= here;
        }
        if left > 2 {
            return None;
        }
    }
    None
}

fn beyond(what: String) -> Fault {
    Fault::new(
        Code::TooLarge,
        format!("the mail is not taken apart: {what}"),
    )
}

/// The refusal of what only somebody else can read.
pub(crate) fn encrypted(how: &str) -> Fault {
    Fault::new(
        Code::Unsupported,
        format!(
            "the mail is encrypted ({how}), and the bus has no key; ask the sender to send it \
             unencrypted, or have it decrypted at the mail server"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn all(mail: &str) -> Result<Vec<(String, Option<String>, String)>, String> {
        let read = |mail: &str| {
            let (fields, body) = Fields::read(mail.as_bytes())?;
            leaves(mail.as_bytes(), fields, body)?
                .iter()
                .map(|leaf| {
                    let text = String::from_utf8_lossy(&leaf.decoded()?).into_owned();
                    Ok((leaf.kind.word.clone(), leaf.name.clone(), text))
                })
                .collect::<Result<Vec<_>, Fault>>()
        };
        read(mail).map_err(|fault| fault.reason)
    }

    fn texts(mail: &str) -> Vec<String> {
        all(mail)
            .unwrap()
            .into_iter()
            .map(|(.., text)| text)
            .collect()
    }

    #[test]
    fn parts_are_found_between_their_boundaries() {
        let mail = "Content-Type: multipart/mixed; boundary=\"a b\"\r\n\r\npreamble\r\n--a b\r\n\r\none\r\n\r\n--a b  \r\nContent-Type: text/html\r\n\r\ntwo\r\n--a b--\r\nepilogue";
        let found = all(mail).unwrap();
        assert_eq!(
            found[0],
            (String::from("text/plain"), None, String::from("one\r\n"))
        );
        assert_eq!(found[1].2, "two");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn broken_structures_are_read_as_far_as_they_go() {
        // An inner boundary that the outer one begins with, and nothing closed.
        let mail = "Content-Type: multipart/mixed; boundary=ab\n\n--ab\nContent-Type: multipart/mixed; boundary=a\n\n--a\n\nbody\n--ab\n\nbody2\n";
        assert_eq!(texts(mail), ["body", "body2\n"]);
        // The boundary is not named.
        let mail = "Content-Type: multipart/mixed\n\n--x\n\none\n--x\n\ntwo\n--x--\n";
        assert_eq!(texts(mail), ["one", "two"]);
        // No boundary at all.
        let mail = "Content-Type: multipart/mixed; boundary=x\n\njust text";
        assert_eq!(texts(mail), ["just text"]);
        assert_eq!(texts("Subject: only headers"), [""]);
        assert_eq!(texts(""), [""]);
        assert_eq!(texts("\n\n"), ["\n"]);
        assert_eq!(texts("From x Mon\nno field\nA: b\n c\n\nbody"), ["body"]);
    }

    #[test]
    fn encodings_are_undone() {
        assert_eq!(base64(b"aGVs\r\nbG8=").unwrap(), b"hello");
        assert_eq!(base64(b"aGVsbG8= ignored").unwrap(), b"hello");
        assert_eq!(base64(b"aGU=\r\nbGxv").unwrap(), b"hello");
        assert_eq!(base64(b"aGVsb"), None);
        assert_eq!(
            quoted_printable(b"a=3D=\r\nb \t\r\n=zz=4\r\nlast "),
            b"a=b\r\n=zz=4\r\nlast "
        );
        let coded = b"begin 600 a.txt\n%:&5L;&\\\n`\nend\n";
        assert_eq!(uuencoded(coded).unwrap(), b"hello");
        assert_eq!(uuencoded(b"begin 600 a\n%:&5L"), None);
    }

    #[test]
    fn names_of_files_are_decoded() {
        let mail = |disposition: &str| {
            let mail = format!("Content-Disposition: {disposition}\n\nx");
            all(&mail).unwrap().remove(0).1.unwrap_or_default()
        };
        assert_eq!(mail("attachment; filename=\"a b.xml\""), "a b.xml");
        assert_eq!(mail("attachment; filename*=utf-8''%C3%A4.xml"), "ä.xml");
        assert_eq!(
            mail("attachment; filename*0=\"a\"; filename*1=\"b.xml\""),
            "ab.xml"
        );
        assert_eq!(
            mail("attachment; filename=\"=?utf-8?Q?=C3=A4?=.xml\""),
            "ä.xml"
        );
        assert_eq!(
            mail("attachment; filename=\"=?utf-8?B?YQ0KYg==?=.xml\""),
            "a  b.xml"
        );
        assert_eq!(mail("; filename=\"image001.png\""), "image001.png");
    }

    #[test]
    fn nesting_and_numbers_have_limits() {
        let nested = |depth: usize| {
            let mut mail = String::new();
            for level in 0..depth {
                mail +=
                    &format!("Content-Type: multipart/mixed; boundary=b{level}\n\n--b{level}\n");
            }
            mail + "\ntext"
        };
        assert_eq!(texts(&nested(DEPTH_MOST)), ["text"]);
        assert!(all(&nested(DEPTH_MOST + 1)).unwrap_err().contains("deep"));
        assert!(all(&nested(100_000)).unwrap_err().contains("deep"));
        let many = format!(
            "Content-Type: multipart/mixed; boundary=x\n\n{}",
            "--x\n\n\n".repeat(PARTS_MOST + 1)
        );
        assert!(all(&many).unwrap_err().contains("parts"));
        let headers = "X: y\n".repeat(HEADERS_MOST + 1);
        assert!(all(&headers).unwrap_err().contains("headers"));
        let headers = format!("X: {}\n\n", "y\n ".repeat(HEADERS_SIZE / 3 + 2));
        assert!(all(&headers).unwrap_err().contains("headers"));
        let within = "Content-Type: message/rfc822\n\n".repeat(100_000);
        assert_eq!(all(&within).unwrap().len(), 1);
    }
}
