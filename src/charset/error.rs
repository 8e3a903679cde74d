//! What can be wrong with a label, with bytes and with text.

use std::fmt;

/// Why bytes are not text, or text cannot be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// No charset has this label.
    Unknown(String),
    /// The bytes are not in the charset that they are said to be in.
    Malformed {
        /// The name of the charset.
        charset: &'static str,
        /// The offset of the first invalid sequence, in bytes from 0.
        at: usize,
        /// The length of the whole, in bytes.
        of: usize,
    },
    /// The charset to be written lacks a character.
    Lacking {
        /// The label of the charset, as it was given.
        label: String,
        /// The first character that it lacks.
        character: char,
        /// The line in which that stands, from 1.
        line: usize,
        /// Its place in the line, in characters from 1.
        column: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(label) => {
                write!(f, "the charset '{}' is not known", label.escape_debug())
            }
            Self::Malformed { charset, at, of } => {
                let byte = at + 1;
                write!(f, "the bytes are not valid {charset} (byte {byte} of {of})")
            }
            Self::Lacking {
                label,
                character,
                line,
                column,
            } => write!(
                f,
                "the charset {label} has no '{}' (U+{:04X}), which stands at line {line}, column {column}",
                character.escape_debug(),
                u32::from(*character)
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for String {
    fn from(error: Error) -> Self {
        error.to_string()
    }
}
