//! Patterns of XML Schema (part 2 appendix F) where the engine beneath would read them otherwise.
//!
//! `^` and `$` are ordinary characters there; the engine takes them for anchors, so they are
//! escaped. Subtraction of character classes and blocks (`\p{IsGreek}`) it cannot do: refused.

/// The pattern as the engine has to read it; nothing when it may stay. The error says what it
/// cannot do.
pub(super) fn mend(pattern: &str) -> Result<Option<String>, String> {
    let mut out = String::with_capacity(pattern.len());
    let mut class = 0usize;
    let mut chars = pattern.chars().peekable();
    let mut begins = false;
    while let Some(c) = chars.next() {
        let first = std::mem::take(&mut begins);
        match c {
            '\\' => {
                out.push(c);
                let Some(next) = chars.next() else { break };
                out.push(next);
                if matches!(next, 'p' | 'P') {
                    let mut rest = chars.clone();
                    if rest.next() == Some('{')
                        && rest.next() == Some('I')
                        && rest.next() == Some('s')
                    {
                        return Err(format!("the block \\{next}{{Is…}} in a pattern"));
                    }
                }
                continue;
            }
            '[' if class > 0 => {
                return Err("the subtraction of a character class in a pattern".into());
            }
            '[' => {
                class += 1;
                begins = true;
            }
            ']' if class > 0 => class -= 1,
            '^' if class == 0 => out.push('\\'),
            '$' if class == 0 => {
                out.push_str("[$]");
                continue;
            }
            '^' if first => begins = false,
            '-' if class > 0 && chars.peek() == Some(&'-') => {
                return Err("'--' within a character class of a pattern".into());
            }
            '&' | '~' if class > 0 && chars.peek() == Some(&c) => {
                // Two of them are an operation on classes to the engine.
                out.push(c);
                chars.next();
                continue;
            }
            _ => {}
        }
        out.push(c);
    }
    Ok((out != pattern).then_some(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_become_characters_and_what_cannot_be_done_is_said() {
        assert_eq!(mend(r"[A-Z]{2}\d+\^"), Ok(None));
        assert_eq!(mend("^a$"), Ok(Some(r"\^a[$]".into())));
        assert_eq!(mend("[^$a]"), Ok(None));
        assert!(mend("[a-z-[aeiou]]").is_err());
        assert!(mend(r"\p{IsGreek}").is_err());
        assert_eq!(mend(r"\p{Lu}"), Ok(None));
    }
}
