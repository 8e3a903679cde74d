//! What xbus.yaml may say of the limits of scripts: `scripts:`.

use xbus_core::spec::{Args, Field, Type};

use crate::Limits;

/// The keys of `scripts:` in xbus.yaml.
pub static LIMIT_FIELDS: &[Field] = &[
    Field::new(
        "operations",
        Type::Count(1_000, 10_000_000_000),
        "Operations that one script may spend; a turn of a loop is a handful.",
    )
    .default("10000000"),
    Field::new(
        "deadline",
        Type::Duration,
        "Time that one script or expression may take.",
    )
    .default("5s"),
    Field::new(
        "array_size",
        Type::Count(10, 10_000),
        "Elements of an array that a script builds, those of nested arrays counted. Lists of the bus (`csv(…)`, `xpath_all(…)`, `list()`) do not fall under it.",
    )
    .default("1000"),
    Field::new(
        "map_size",
        Type::Count(10, 10_000),
        "Entries of a map that a script builds, those of nested maps counted.",
    )
    .default("1000"),
    Field::new(
        "string_size",
        Type::Size,
        "Bytes of one text, and of all texts within one array or map.",
    )
    .default("4MiB"),
    Field::new(
        "output_size",
        Type::Size,
        "Bytes of a script's result, and of one list of the bus.",
    )
    .default("64MiB"),
];

/// Reads `scripts:` ([`LIMIT_FIELDS`]); documents keep their usual limits.
pub fn limits(args: Args<'_>) -> Limits {
    let usual = Limits::default();
    let count = |name, otherwise: usize| args.count(name).map_or(otherwise, |n| n as usize);
    let size = |name, otherwise: usize| args.size(name).map_or(otherwise, |n| n as usize);
    Limits {
        operations: args.count("operations").unwrap_or(usual.operations),
        deadline: args.duration("deadline").unwrap_or(usual.deadline),
        array_size: count("array_size", usual.array_size),
        map_size: count("map_size", usual.map_size),
        string_size: size("string_size", usual.string_size),
        output_size: size("output_size", usual.output_size),
        ..usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_of_the_table_are_those_of_the_limits() {
        let usual = Limits::default();
        let default = |name: &str| {
            LIMIT_FIELDS
                .iter()
                .find(|field| field.name == name)
                .map(|field| field.default)
                .unwrap()
        };
        assert_eq!(default("operations"), usual.operations.to_string());
        assert_eq!(default("array_size"), usual.array_size.to_string());
        assert_eq!(default("map_size"), usual.map_size.to_string());
        let size = |name| xbus_core::spec::parse_size(default(name)).unwrap() as usize;
        assert_eq!(size("string_size"), usual.string_size);
        assert_eq!(size("output_size"), usual.output_size);
        let deadline = xbus_core::spec::parse_duration(default("deadline")).unwrap();
        assert_eq!(deadline, usual.deadline);
    }
}
