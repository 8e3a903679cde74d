//! The XML declaration as far as it names an encoding (XML 1.0 productions 23 and 80).

use std::ops::Range;

/// How many bytes a declaration may have.
const MOST: usize = 1024;

/// The encoding that the declaration at the beginning of `bytes` names.
pub(crate) fn encoding(bytes: &[u8]) -> Option<&str> {
    let declaration = declaration(bytes)?;
    value(declaration).map(|range| &declaration[range])
}

/// The declaration at the beginning of `bytes`, up to its `?>`.
fn declaration(bytes: &[u8]) -> Option<&str> {
    let head = &bytes[..bytes.len().min(MOST)];
    // Not an instruction such as `xml-stylesheet`.
    let after = head.strip_prefix(b"<?xml")?.first()?;
    if !after.is_ascii_whitespace() {
        return None;
    }
    let end = head.windows(2).position(|pair| pair == b"?>")?;
    std::str::from_utf8(&head[..end]).ok()
}

/// Where in a declaration the value of `encoding` stands.
fn value(declaration: &str) -> Option<Range<usize>> {
    let (_, after) = declaration.split_once("encoding")?;
    let after = after.trim_start().strip_prefix('=')?.trim_start();
    let quote = after.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let start = declaration.len() - after.len() + 1;
    let length = declaration[start..].find(quote)?;
    Some(start..start + length)
}

/// XML text whose declaration names `label`; one is added where there is none.
pub fn declare(text: &str, label: &str) -> String {
    let Some(declaration) = declaration(text.as_bytes()) else {
        return format!("<?xml version=\"1.0\" encoding=\"{label}\"?>\n{text}");
    };
    match value(declaration) {
        Some(range) => format!("{}{label}{}", &text[..range.start], &text[range.end..]),
        None => {
            // After the version, before `standalone`.
            let end = declaration.len();
            let at = declaration.find("standalone").unwrap_or(end);
            let (before, after) = text.split_at(at);
            let gap = if at == end { "" } else { " " };
            format!("{} encoding=\"{label}\"{gap}{after}", before.trim_end())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_is_read() {
        for (text, found) in [
            ("<?xml version='1.0' encoding='a'?><b/>", Some("a")),
            ("<?xml version=\"1.0\" encoding = \"a\"?>", Some("a")),
            ("<?xml\nversion='1.0'\nencoding\n=\n'a'?>", Some("a")),
            ("<?xml version='1.0'?><b encoding='c'/>", None),
            ("<?xml version='1.0' encoding='a", None),
            ("<?xml version='1.0' encoding='a\"?>", None),
            ("<?xml version='1.0' encoding=a?>", None),
            ("<?xml-stylesheet encoding='a'?>", None),
            ("<?xml", None),
            (" <?xml version='1.0' encoding='a'?>", None),
            ("", None),
        ] {
            assert_eq!(encoding(text.as_bytes()), found, "{text}");
        }
    }

    #[test]
    fn declarations_follow_the_charset() {
        for (from, to) in [
            (
                "<a>ä</a>",
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<a>ä</a>",
            ),
            (
                "<?xml version='1.0'?><a/>",
                "<?xml version='1.0' encoding=\"iso-8859-1\"?><a/>",
            ),
            (
                "<?xml version=\"1.0\" standalone=\"yes\"?><a/>",
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\" standalone=\"yes\"?><a/>",
            ),
            (
                "<?xml version=\"1.0\" encoding='UTF-8'?><a/>",
                "<?xml version=\"1.0\" encoding='iso-8859-1'?><a/>",
            ),
            (
                "<?xml-stylesheet href='a'?><a/>",
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n<?xml-stylesheet href='a'?><a/>",
            ),
        ] {
            assert_eq!(declare(from, "iso-8859-1"), to);
        }
    }
}
