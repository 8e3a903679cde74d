//! Patterns of XML Schema (part 2 appendix F) where the engine beneath would read them otherwise, or
//! not at all.
//!
//! `^` and `$` are ordinary characters there; the engine takes them for anchors, so they are
//! escaped. Subtraction of character classes (`[a-z-[aeiou]]`), blocks (`\p{IsGreek}`) and the escapes
//! `\i`, `\c` and `\s` become the characters that they stand for. Categories are those of the Unicode
//! that the engine knows, names those of XML 1.0, fifth edition.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, HirKind};

use super::blocks::block;

/// Classes within classes that are looked into.
const DEEPEST: usize = 50;

/// The characters of XML 1.0 (section 2.2).
const CHARACTERS: &[(char, char)] = &[
    ('\t', '\n'),
    ('\r', '\r'),
    (' ', '\u{d7ff}'),
    ('\u{e000}', '\u{fffd}'),
    ('\u{10000}', '\u{10ffff}'),
];

/// `NameStartChar` of XML 1.0 (section 2.3).
const NAME_START: &[(char, char)] = &[
    (':', ':'),
    ('A', 'Z'),
    ('_', '_'),
    ('a', 'z'),
    ('\u{c0}', '\u{d6}'),
    ('\u{d8}', '\u{f6}'),
    ('\u{f8}', '\u{2ff}'),
    ('\u{370}', '\u{37d}'),
    ('\u{37f}', '\u{1fff}'),
    ('\u{200c}', '\u{200d}'),
    ('\u{2070}', '\u{218f}'),
    ('\u{2c00}', '\u{2fef}'),
    ('\u{3001}', '\u{d7ff}'),
    ('\u{f900}', '\u{fdcf}'),
    ('\u{fdf0}', '\u{fffd}'),
    ('\u{10000}', '\u{effff}'),
];

/// What `NameChar` has beyond that.
const NAME_MORE: &[(char, char)] = &[
    ('-', '.'),
    ('0', '9'),
    ('\u{b7}', '\u{b7}'),
    ('\u{300}', '\u{36f}'),
    ('\u{203f}', '\u{2040}'),
];

/// The pattern as the engine has to read it; nothing when it may stay. The error says what is wrong
/// with it.
pub(super) fn mend(pattern: &str) -> Result<Option<String>, String> {
    let mut reading = Reading {
        chars: pattern.chars().collect(),
        at: 0,
    };
    let mut out = String::with_capacity(pattern.len());
    while let Some(c) = reading.next() {
        let from = reading.at - 1;
        match c {
            '\\' => match reading.escape()? {
                Escape::Set(set, true) => write(&mut out, set),
                _ => out.extend(&reading.chars[from..reading.at]),
            },
            '[' => match reading.class(0)? {
                (set, true) => write(&mut out, set),
                _ => out.extend(&reading.chars[from..reading.at]),
            },
            '^' => out.push_str("\\^"),
            '$' => out.push_str("[$]"),
            c => out.push(c),
        }
    }
    Ok((out != pattern).then_some(out))
}

/// What an escape stands for.
enum Escape {
    One(char),
    /// A set, and whether the engine would read it otherwise.
    Set(ClassUnicode, bool),
}

struct Reading {
    chars: Vec<char>,
    at: usize,
}

impl Reading {
    fn next(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        Some(c)
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> Result<Escape, String> {
        let Some(c) = self.next() else {
            return Err("it ends in a backslash".into());
        };
        let (mut set, unknown) = match c.to_ascii_lowercase() {
            _ if matches!(c, 'n' | 'r' | 't') => {
                return Ok(Escape::One(match c {
                    'n' => '\n',
                    'r' => '\r',
                    _ => '\t',
                }));
            }
            'p' => self.property()?,
            's' => (set(&[('\t', '\n'), ('\r', '\r'), (' ', ' ')]), true),
            'i' => (set(NAME_START), true),
            'c' => {
                let mut all = set(NAME_START);
                all.union(&set(NAME_MORE));
                (all, true)
            }
            'd' => (known("Nd")?, false),
            'w' => {
                let mut others = known("P")?;
                others.union(&known("Z")?);
                others.union(&known("C")?);
                others.negate();
                (others, false)
            }
            _ if c.is_alphanumeric() => return Err(format!("there is no escape \\{c}")),
            _ => return Ok(Escape::One(c)),
        };
        if c.is_ascii_uppercase() {
            set.negate();
        }
        Ok(Escape::Set(set, unknown))
    }

    /// A category or a block, in braces.
    fn property(&mut self) -> Result<(ClassUnicode, bool), String> {
        let rest = &self.chars[self.at..];
        let name: Option<String> = match (rest.first(), rest.iter().position(|c| *c == '}')) {
            (Some('{'), Some(end)) => {
                self.at += end + 1;
                Some(rest[1..end].iter().collect())
            }
            _ => None,
        };
        let Some(name) = name else {
            return Err("\\p needs a name in braces, such as \\p{Lu}".into());
        };
        let Some(block_name) = name.strip_prefix("Is") else {
            return Ok((known(&name)?, false));
        };
        let (from, to) = block(block_name)
            .and_then(|(from, to)| Some((char::from_u32(from)?, char::from_u32(to)?)))
            .ok_or_else(|| format!("there is no block '{name}' in Unicode"))?;
        Ok((set(&[(from, to)]), true))
    }

    /// A character class from behind its bracket to its end, and whether the engine would read it
    /// otherwise.
    fn class(&mut self, depth: usize) -> Result<(ClassUnicode, bool), String> {
        if depth > DEEPEST {
            return Err(format!(
                "character classes stand more than {DEEPEST} deep in one another"
            ));
        }
        let mut all = ClassUnicode::empty();
        let negated = self.peek(0) == Some('^');
        self.at += usize::from(negated);
        let mut other = false;
        let mut before = None;
        loop {
            let Some(c) = self.next() else {
                return Err("a character class has no end".into());
            };
            // Two of them are an operation on classes to the engine.
            other |= matches!(c, '&' | '~') && before == Some(c);
            before = Some(c);
            let from = match c {
                ']' => break,
                '[' => return Err("'[' within a character class needs a backslash".into()),
                '-' if self.peek(0) == Some('[') => {
                    self.at += 1;
                    let (less, _) = self.class(depth + 1)?;
                    if self.next() != Some(']') {
                        return Err("a subtraction is the last thing in its character class".into());
                    }
                    if negated {
                        all.negate();
                    }
                    all.difference(&less);
                    return Ok((all, true));
                }
                '\\' => match self.escape()? {
                    Escape::One(c) => c,
                    Escape::Set(more, unknown) => {
                        all.union(&more);
                        other |= unknown;
                        continue;
                    }
                },
                c => c,
            };
            let to = match (self.peek(0), self.peek(1), self.peek(2)) {
                (Some('-'), Some(']' | '['), _) | (Some('-'), Some('-'), Some('[')) => from,
                (Some('-'), Some(_), _) if c != '-' => {
                    self.at += 1;
                    match self.next() {
                        Some('\\') => match self.escape()? {
                            Escape::One(to) => to,
                            Escape::Set(..) => {
                                return Err("a range ends in a set of characters".into());
                            }
                        },
                        Some('-') => return Err("'--' within a character class".into()),
                        Some(to) => to,
                        None => return Err("a character class has no end".into()),
                    }
                }
                _ => from,
            };
            if to < from {
                return Err(format!("the range {from}-{to} ends before it begins"));
            }
            all.push(ClassUnicodeRange::new(from, to));
        }
        if negated {
            all.negate();
        }
        Ok((all, other))
    }
}

fn set(ranges: &[(char, char)]) -> ClassUnicode {
    ClassUnicode::new(
        ranges
            .iter()
            .map(|(from, to)| ClassUnicodeRange::new(*from, *to)),
    )
}

/// The characters of a general category.
fn known(name: &str) -> Result<ClassUnicode, String> {
    let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    let parsed = plain.then(|| regex_syntax::parse(&format!("\\p{{{name}}}")).ok());
    match parsed.flatten().map(regex_syntax::hir::Hir::into_kind) {
        Some(HirKind::Class(Class::Unicode(class))) => Ok(class),
        _ => Err(format!("there is no category '{name}'")),
    }
}

/// Writes a class of plain characters and ranges.
fn write(out: &mut String, mut class: ClassUnicode) {
    class.intersect(&set(CHARACTERS));
    if class.ranges().is_empty() {
        // Nothing is both.
        out.push_str("[a&&b]");
        return;
    }
    let one = |out: &mut String, c: char| match c {
        '\t' => out.push_str("\\t"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\\' | '[' | ']' | '-' | '^' => out.extend(['\\', c]),
        c => out.push(c),
    };
    out.push('[');
    for range in class.ranges() {
        one(out, range.start());
        if range.end() > range.start() {
            out.push('-');
            one(out, range.end());
        }
    }
    out.push(']');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(pattern: &str) -> String {
        mend(pattern).unwrap().unwrap_or_else(|| pattern.to_owned())
    }

    #[test]
    fn what_the_engine_reads_alike_stays() {
        for pattern in [
            r"[A-Z]{2}\d+\^",
            "[^$a]",
            r"\p{Lu}",
            r"[a\-z]",
            r"[\p{L}\d-]",
            "a|(b)*",
        ] {
            assert_eq!(mend(pattern), Ok(None), "{pattern}");
        }
        assert_eq!(mended("^a$"), r"\^a[$]");
    }

    #[test]
    fn subtractions_and_blocks_become_characters() {
        assert_eq!(mended("[a-z-[aeiou]]"), "[b-df-hj-np-tv-z]");
        assert_eq!(mended("x[a-e-[b-d-[c]]]?"), "x[ac e]?".replace(' ', ""));
        assert_eq!(mended("[a-c--[b]]"), r"[\-ac]");
        assert_eq!(mended("[!-/-[^-.]]"), r"[\--.]");
        assert_eq!(mended("[a-[a-z]]"), "[a&&b]");
        assert_eq!(
            mended(r"\p{IsBasicLatin}"),
            r"[\t-\n\r -\u{7f}]".replace(r"\u{7f}", "\u{7f}")
        );
        assert_eq!(
            mended(r"[\p{IsGreek}-[Α-Ω]]+"),
            mended(r"[\p{IsGreekandCoptic}-[Α-Ω]]+")
        );
        assert!(mended(r"[^\P{IsLatin-1Supplement}]").starts_with("[\u{80}-"));
        assert_eq!(mended(r"[\i-[:]]").chars().next(), Some('['));
        assert!(!mended(r"[\i-[:]]").contains(':'));
        assert_eq!(mended("[&&~~a]"), "[&a~]");
    }

    #[test]
    fn what_is_no_pattern_is_said() {
        for (pattern, what) in [
            (r"\p{IsKlingon}", "'IsKlingon'"),
            (r"\p{Xy}", "'Xy'"),
            (r"\pL", "braces"),
            ("[a-", "no end"),
            ("[a-[b]c]", "last thing"),
            ("[[a]]", "backslash"),
            ("[z-a]", "before"),
            (r"[a-\d]", "set"),
            ("[!--]", "'--'"),
            (r"\q", "escape"),
            ("a\\", "backslash"),
            (&"[a-".repeat(100), "deep"),
        ] {
            let why = mend(pattern).unwrap_err();
            assert!(why.contains(what), "{pattern}: {why}");
        }
    }
}
