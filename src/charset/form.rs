//! `application/x-www-form-urlencoded` (WHATWG URL section 5.1) in any charset: its octets are in the one
//! that the form itself names in a field `_charset_` (HTML section 4.10.21.3), else in that of its
//! content type, else in UTF-8.

use std::borrow::Cow;

use crate::{Charset, Error, encode};

/// The field in which a form names its charset.
pub const CHARSET_FIELD: &str = "_charset_";

/// Names and values of a form, decoded. `label` is the charset of its content type. What is read is
/// text, so the field `_charset_` reads `UTF-8`. [`Error::Unknown`] when the label that decides is not
/// known; an item is an error when its octets are not in the charset.
pub fn form_pairs<'a>(
    text: &'a str,
    label: Option<&str>,
) -> Result<impl Iterator<Item = Result<(String, String), Error>> + use<'a>, Error> {
    let pairs = text
        .trim()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let own = pairs
        .clone()
        .find(|(name, value)| *name == CHARSET_FIELD && !value.is_empty())
        .map(|(_, value)| unescaped(value, Charset::UTF_8))
        .transpose()?;
    let charset = match own.as_deref().or(label) {
        Some(label) => Charset::by_label(label)?.readable_by_byte(),
        None => Charset::UTF_8,
    };
    Ok(pairs.map(move |(name, value)| {
        let name = unescaped(name, charset)?;
        let value = match &*name {
            CHARSET_FIELD if !value.is_empty() => "UTF-8".to_owned(),
            _ => unescaped(value, charset)?,
        };
        Ok((name, value))
    }))
}

/// A name or a value. A percent sign without two digits stands for itself.
fn unescaped(text: &str, charset: Charset) -> Result<String, Error> {
    if !text.contains('%') {
        return Ok(text.replace('+', " "));
    }
    // A character may be partly octets and partly letters: `%83A` in Shift_JIS.
    let raw: Cow<'_, [u8]> = match charset.is_utf8() || text.is_ascii() {
        true => text.as_bytes().into(),
        false => encode(text, charset.name())?.into(),
    };
    let digit = |at: usize| raw.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let mut octets = Vec::with_capacity(raw.len());
    let mut at = 0;
    while let Some(&byte) = raw.get(at) {
        at += 1;
        match (byte, digit(at), digit(at + 1)) {
            (b'+', ..) => octets.push(b' '),
            (b'%', Some(high), Some(low)) => {
                octets.push((high * 16 + low) as u8);
                at += 2;
            }
            (byte, ..) => octets.push(byte),
        }
    }
    charset.decode(&octets).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, label: Option<&str>) -> Result<Vec<(String, String)>, Error> {
        form_pairs(text, label)?.collect()
    }

    #[test]
    fn octets_are_in_the_charset_that_is_named() {
        for (text, label, value) in [
            ("a=%C3%A9+%25%zz+%", None, "é %%zz %"),
            ("a=%E9%80", Some("iso-8859-1"), "é€"),
            ("a=%83A%83%65", Some("shift_jis"), "アテ"),
            ("a=%1B%24B%22%1B%28B", Some("utf-16"), "\u{1b}$B\"\u{1b}(B"),
            ("a=é%E8", Some("windows-1252"), "éè"),
            ("_charset_=windows-1251&a=%CF%F0", Some("utf-8"), "Пр"),
            ("a=%CF%F0&_charset_=windows%2D1251", None, "Пр"),
            ("_charset_=&a=%C3%A9", None, "é"),
            ("a=é+ü", None, "é ü"),
        ] {
            let pairs = read(text, label).expect(text);
            let found = pairs.iter().find(|(name, _)| name == "a");
            assert_eq!(
                found.map(|(_, value)| value.as_str()),
                Some(value),
                "{text}"
            );
            let named = pairs.iter().find(|(name, _)| name == CHARSET_FIELD);
            assert!(named.is_none_or(|(_, value)| value.is_empty() || value == "UTF-8"));
        }
        assert_eq!(
            read(" a%20b=1&&c&=2 ", None).expect("a form"),
            [("a b", "1"), ("c", ""), ("", "2")].map(|(a, b)| (a.to_owned(), b.to_owned()))
        );
    }

    #[test]
    fn what_is_not_in_its_charset_is_an_error() {
        assert!(matches!(
            read("a=%E9t%E9", None),
            Err(Error::Malformed {
                charset: "UTF-8",
                at: 0,
                ..
            })
        ));
        assert!(matches!(
            read("a=%C3%A9&_charset_=klingon", None),
            Err(Error::Unknown(_))
        ));
        assert!(matches!(
            read("a=1", Some("klingon")),
            Err(Error::Unknown(_))
        ));
    }
}
