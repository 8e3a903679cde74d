//! Values and types in words, for messages and the reference.

use xbus_core::spec::{Raw, Scalar, Type};

/// The scalar as a message may show it: never what came from the environment.
pub(crate) fn shown(scalar: &Scalar) -> String {
    if scalar.secret || !scalar.literal.is_empty() {
        String::from("the value that the environment gave")
    } else {
        format!("'{}'", scalar.text)
    }
}

/// The text for finding a near name; empty where it came from the environment.
pub(crate) fn visible(scalar: &Scalar) -> String {
    if scalar.secret || !scalar.literal.is_empty() {
        String::new()
    } else {
        scalar.text.clone()
    }
}

/// Whether a type takes values of that shape.
pub(crate) fn fits(kind: &Type, raw: &Raw) -> bool {
    match kind {
        Type::Any => true,
        Type::List(_) => matches!(raw, Raw::List(_)),
        Type::OneOrMany(inner) => matches!(raw, Raw::List(_)) || fits(inner, raw),
        Type::Map(_) | Type::Object(_) => matches!(raw, Raw::Map(_)),
        Type::Either(kinds) => kinds.iter().any(|kind| fits(kind, raw)),
        Type::Transform => !matches!(raw, Raw::Null),
        _ => matches!(raw, Raw::Scalar(_)),
    }
}

/// How a value of a type is written, for messages and the reference.
pub(crate) fn expected(kind: &Type) -> String {
    match kind {
        Type::Text | Type::Secret => String::from("a text"),
        Type::Template => String::from("a text; it may hold {{ expression }}"),
        Type::Expression => String::from("an expression such as 'header(\"country\") == \"DE\"'"),
        Type::Bool => String::from("true or false"),
        Type::Count(from, u64::MAX) => format!("a whole number from {from}"),
        Type::Count(from, to) => format!("a whole number from {from} to {to}"),
        Type::Number(from, to) => format!("a number from {from} to {to}"),
        Type::Duration => String::from("a duration such as 250ms, 5s, 15m, 2h or 7d"),
        Type::Size => String::from("a size such as 64KiB, 10MiB or 1GiB"),
        Type::Rate => String::from("a rate such as 100/s, 5/m or 1000/h"),
        Type::Choice(words) => format!("one of: {}", words.join(", ")),
        Type::Path => String::from("a path, relative to the installation folder"),
        Type::File => String::from("the path of a file, relative to the installation folder"),
        Type::Asset => String::from("the name of a file in transforms/"),
        Type::Connection(kinds) => {
            format!("the name of a connection of kind {}", kinds.join(" or "))
        }
        Type::List(inner) => format!("a list of this: {}", expected(inner)),
        Type::OneOrMany(inner) => format!("{}, or a list of them", expected(inner)),
        Type::Map(inner) => format!("a map of names to this: {}", expected(inner)),
        Type::Object([]) => String::from("a map of keys and values"),
        Type::Object(fields) => {
            let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
            format!("a map with the keys: {}", names.join(", "))
        }
        Type::Either(kinds) => kinds.iter().map(expected).collect::<Vec<_>>().join(", or "),
        Type::Transform => {
            String::from("a file in transforms/, { convert: { from, to } }, or a list of them")
        }
        Type::Any => String::from("{ … }"),
    }
}
