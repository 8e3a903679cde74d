//! File names: what a message gives is reduced to one safe name, and a taken name gets a number.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Longest file name in bytes (NAME_MAX of every common file system).
pub(crate) const LONGEST: usize = 255;

/// What temporary names begin with; no receiver picks them up.
pub(crate) const TEMPORARY: &str = ".xbus-";

/// Characters that a message may give besides letters and digits of any script.
const SAFE: &str = " ._-+=@,~()[]{}#%&'!$;^";

/// One piece of a file name from a message: separators and what is special to shells or other
/// systems become `_`, control characters go.
pub(crate) fn safe_piece(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .map(|c| {
            if c.is_alphanumeric() || SAFE.contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// A name that fits with `room` bytes to spare: a longer one loses the end of its stem and gets
/// a checksum of the whole name instead, so that two long names stay two.
pub(crate) fn fitted(name: &str, room: usize) -> String {
    let most = LONGEST - room;
    if name.len() <= most {
        return name.to_owned();
    }
    let (stem, extension) = split_extension(name.as_bytes());
    let extension = String::from_utf8_lossy(extension);
    let tail = format!("~{:016x}{extension}", fnv(name.as_bytes()));
    let mut end = stem.len().min(most.saturating_sub(tail.len()));
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &name[..end])
}

/// `NAME-3.ext`; the stem is cut where the whole would be longer than a name may be.
pub(crate) fn numbered(name: &OsStr, number: u64, room: usize) -> OsString {
    let bytes = name.as_bytes();
    let (stem, extension) = split_extension(bytes);
    let suffix = if number == 0 {
        String::new()
    } else {
        format!("-{number}")
    };
    let most = (LONGEST - room).saturating_sub(suffix.len() + extension.len());
    let mut out = stem[..cut(stem, most)].to_vec();
    out.extend_from_slice(suffix.as_bytes());
    out.extend_from_slice(extension);
    OsString::from_vec(out)
}

/// Where to cut so that at most `most` bytes stay and no UTF-8 sequence is torn.
fn cut(bytes: &[u8], most: usize) -> usize {
    let mut end = bytes.len().min(most);
    while end > 0 && end < bytes.len() && (bytes[end] & 0b1100_0000) == 0b1000_0000 {
        end -= 1;
    }
    end
}

/// Stem and extension with its dot; an extension has at most 16 bytes.
fn split_extension(name: &[u8]) -> (&[u8], &[u8]) {
    match name.iter().rposition(|byte| *byte == b'.') {
        Some(at) if at > 0 && name.len() - at <= 17 => name.split_at(at),
        _ => (name, &[]),
    }
}

/// FNV-1a, 64 bits: tells names apart, protects nothing.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Takes the first free number: `attempt` is tried with numbers that are not `taken` until it does
/// not say `AlreadyExists`. A long row of taken numbers costs few looks: they are galloped over.
pub(crate) fn first_free<T>(
    taken: impl Fn(u64) -> bool,
    mut attempt: impl FnMut(u64) -> io::Result<T>,
) -> io::Result<T> {
    let mut number = 0;
    loop {
        match attempt(number) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => return other,
        }
        let (mut low, mut step) = (number, 1);
        while taken(low + step) {
            low += step;
            step *= 2;
        }
        let mut high = low + step;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if taken(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        number = high;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_no_separator_and_no_control() {
        assert_eq!(safe_piece("../../etc/passwd"), ".._.._etc_passwd");
        assert_eq!(safe_piece("a\0b\r\nc\\d:e"), "abc_d_e");
        assert_eq!(safe_piece("Rechnung Ä-1 (2).xml"), "Rechnung Ä-1 (2).xml");
        assert_eq!(safe_piece("a\u{202e}b"), "a_b");
    }

    #[test]
    fn long_names_fit_and_stay_apart() {
        let a = format!("{}1.xml", "ä".repeat(200));
        let b = format!("{}2.xml", "ä".repeat(200));
        let (a, b) = (fitted(&a, 0), fitted(&b, 0));
        assert!(a.len() <= LONGEST && a.ends_with(".xml") && a.starts_with("ää"));
        assert_ne!(a, b);
        assert_eq!(fitted("short.xml", 10), "short.xml");
    }

    #[test]
    fn numbers_stand_before_the_extension() {
        let name = |n| {
            numbered(OsStr::new("order.xml"), n, 0)
                .into_string()
                .unwrap()
        };
        assert_eq!(
            (name(0).as_str(), name(7).as_str()),
            ("order.xml", "order-7.xml")
        );
        let long = OsString::from_vec([&[b'a'; 251][..], b".xml"].concat());
        let cut = numbered(&long, 12, 0);
        assert_eq!(cut.as_bytes().len(), LONGEST);
        assert!(cut.as_bytes().ends_with(b"-12.xml"));
        assert_eq!(numbered(OsStr::new(".hidden"), 1, 0), ".hidden-1");
    }

    #[test]
    fn the_first_free_number_is_found_quickly() {
        let looks = std::cell::Cell::new(0);
        let found = first_free(
            |n| {
                looks.set(looks.get() + 1);
                n < 9_000
            },
            |n| {
                if n < 9_000 {
                    Err(io::ErrorKind::AlreadyExists.into())
                } else {
                    Ok(n)
                }
            },
        );
        assert_eq!(found.unwrap(), 9_000);
        assert!(looks.get() < 40, "{} looks", looks.get());
    }
}
