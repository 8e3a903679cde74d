//! From text to bytes. A character that the charset lacks is an error that names it and its place.

use encoding_rs::{EncoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use crate::{Charset, Error, Repertoire};

/// `text` in the charset of `label`. `utf-16` begins with a byte order mark, nothing else does.
/// [`Error::Unknown`], and [`Error::Lacking`] for the first character that the charset lacks.
pub fn encode(text: &str, label: &str) -> Result<Vec<u8>, Error> {
    Charset::by_label(label)?
        .bytes(text)
        .map_err(|at| lacking(text, at, label))
}

impl Charset {
    /// The bytes of `text`, else the offset of the first character that cannot be written.
    pub(crate) fn bytes(self, text: &str) -> Result<Vec<u8>, usize> {
        let encoding = self.encoding;
        match self.repertoire {
            Repertoire::Ascii => match text.bytes().position(|byte| !byte.is_ascii()) {
                None => Ok(text.as_bytes().to_vec()),
                Some(at) => Err(at),
            },
            Repertoire::Iso => iso(text, encoding),
            Repertoire::Marked => Ok(b"\xff\xfe".iter().copied().chain(little(text)).collect()),
            Repertoire::Whole if encoding == UTF_8 => Ok(text.as_bytes().to_vec()),
            // The standard has no encoder for UTF-16.
            Repertoire::Whole if encoding == UTF_16LE => Ok(little(text).collect()),
            Repertoire::Whole if encoding == UTF_16BE => {
                Ok(text.encode_utf16().flat_map(u16::to_be_bytes).collect())
            }
            Repertoire::Whole => whole(text, encoding),
        }
    }
}

fn little(text: &str) -> impl Iterator<Item = u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes)
}

/// What a part of ISO 8859 has of the Windows charset that it is read as.
fn iso(text: &str, windows: &'static Encoding) -> Result<Vec<u8>, usize> {
    let control = |byte: &u8| (0x80..0xa0).contains(byte);
    if let Ok(out) = whole(text, windows)
        && !out.iter().any(control)
    {
        return Ok(out);
    }
    // One by one, to find the culprit or to write control characters.
    let mut out = Vec::with_capacity(text.len());
    let mut buffer = [0; 4];
    for (at, c) in text.char_indices() {
        match c {
            ..='\u{9f}' => out.push(c as u8),
            _ => match *windows.encode(c.encode_utf8(&mut buffer)).0 {
                [byte] if byte >= 0xa0 => out.push(byte),
                // Its additions, and what it lacks, which is replaced by more than one byte.
                _ => return Err(at),
            },
        }
    }
    Ok(out)
}

fn whole(text: &str, encoding: &'static Encoding) -> Result<Vec<u8>, usize> {
    let mut encoder = encoding.new_encoder();
    let mut out = Vec::new();
    let mut done = 0;
    loop {
        let rest = &text[done..];
        let room = encoder.max_buffer_length_from_utf8_without_replacement(rest.len());
        out.reserve(room.unwrap_or(rest.len()).max(16));
        let (result, read) =
            encoder.encode_from_utf8_to_vec_without_replacement(rest, &mut out, true);
        done += read;
        match result {
            EncoderResult::InputEmpty => return Ok(out),
            EncoderResult::OutputFull => {}
            // The character itself is not always the one that is told: ISO-2022-JP tells U+FFFD of
            // controls that would change its state.
            EncoderResult::Unmappable(_) => {
                let culprit = text[..done].chars().next_back();
                return Err(done - culprit.map_or(0, char::len_utf8));
            }
        }
    }
}

pub(crate) fn lacking(text: &str, at: usize, label: &str) -> Error {
    let before = &text[..at];
    let start = before.rfind('\n').map_or(0, |end| end + 1);
    Error::Lacking {
        label: label.to_owned(),
        character: text[at..].chars().next().unwrap_or_default(),
        line: before.matches('\n').count() + 1,
        column: before[start..].chars().count() + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_written_in_the_charset() {
        for (text, label, bytes) in [
            ("é", "iso-8859-1", &b"\xe9"[..]),
            ("5 € für ä", "iso-8859-15", b"5 \xa4 f\xfcr \xe4"),
            ("5 €", "windows-1252", b"5 \x80"),
            ("\u{85}é", "latin1", b"\x85\xe9"),
            ("ğ", "iso-8859-9", b"\xf0"),
            ("é", "utf-16be", b"\0\xe9"),
            ("é", "utf-16le", b"\xe9\0"),
            ("5€", "utf-16", b"\xff\xfe5\0\xac\x20"),
            ("é", "utf-8", b"\xc3\xa9"),
            ("a", "US-ASCII", b"a"),
            ("あ", "iso-2022-jp", b"\x1b$B$\"\x1b(B"),
            ("", "shift_jis", b""),
        ] {
            assert_eq!(encode(text, label).unwrap(), bytes, "{text} in {label}");
        }
    }

    #[test]
    fn what_a_charset_lacks_is_named_with_its_place() {
        for label in [
            "iso-8859-1",
            "latin1",
            "us-ascii",
            "iso-8859-9",
            "latin5",
            "iso-8859-11",
            "iso-8859-2",
        ] {
            let error = encode("a\nbc€", label).unwrap_err().to_string();
            let expected = "has no '€' (U+20AC), which stands at line 2, column 3";
            assert_eq!(error, format!("the charset {label} {expected}"));
        }
        let error = encode("5 Ж", "windows-1252").unwrap_err().to_string();
        assert!(error.contains("'Ж' (U+0416)"), "{error}");
        let error = encode("é", "us-ascii").unwrap_err().to_string();
        assert!(error.contains("line 1, column 1"), "{error}");
        assert!(matches!(encode("a", "klingon"), Err(Error::Unknown(_))));
    }

    #[test]
    fn a_control_that_would_change_the_state_is_named_itself() {
        let error = encode("あ\u{1b}b", "iso-2022-jp").unwrap_err();
        assert!(
            matches!(
                error,
                Error::Lacking {
                    character: '\u{1b}',
                    column: 2,
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn long_text_goes_both_ways() {
        let text = "Größe 漢字 かな\n".repeat(3000);
        for label in ["gb18030", "utf-16", "utf-8"] {
            let charset = Charset::by_label(label).unwrap();
            assert_eq!(
                charset.decode(&encode(&text, label).unwrap()).unwrap(),
                text
            );
        }
        let kana = "かな漢字a".repeat(3000);
        for label in ["iso-2022-jp", "shift_jis", "euc-jp"] {
            let charset = Charset::by_label(label).unwrap();
            assert_eq!(
                charset.decode(&encode(&kana, label).unwrap()).unwrap(),
                kana
            );
        }
    }
}
