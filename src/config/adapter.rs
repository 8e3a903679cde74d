//! Finds the one adapter of a step or receiver among its keys.

use xbus_core::Kind;
use xbus_core::problem::suggest;
use xbus_core::spec::{Field, Key, Node, Raw};

use crate::check::nearest_field;
use crate::step::InRoute;

/// Which side of an adapter is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Receiver,
    Sender,
}

impl Side {
    fn has(self, kind: &Kind) -> bool {
        match self {
            Side::Receiver => kind.receiver.is_some(),
            Side::Sender => kind.sender.is_some(),
        }
    }
}

impl<'a> InRoute<'a> {
    /// Finds the one adapter of a map and checks the keys beside it. Gives the adapter, and whether
    /// the map is well so far.
    pub(crate) fn adapter<'n>(
        &self,
        node: &'n Node,
        fields: &'static [Field],
        side: Side,
        what: &str,
    ) -> (Option<(&'a Kind, &'n Key, &'n Node)>, bool) {
        if !matches!(node.raw, Raw::Map(_)) {
            self.problems.error(
                &node.place,
                "wrong-type",
                format!("{what} must be a map"),
                format!(
                    "write one adapter and its keys, such as {}",
                    self.example(side)
                ),
            );
            return (None, false);
        }
        let kinds = self.shop.kinds;
        let fitting = || {
            kinds
                .iter()
                .filter(move |kind| side.has(kind))
                .map(|kind| kind.name)
        };
        let mut found = None;
        let mut good = true;
        let mut strangers: Vec<&Key> = Vec::new();
        for (key, value) in node.entries() {
            if fields.iter().any(|field| field.name == key.name) {
                continue;
            }
            match kinds.iter().find(|kind| kind.name == key.name) {
                None => strangers.push(key),
                Some(kind) if !side.has(kind) => {
                    good = false;
                    self.wrong_side(kind, key, side, fitting());
                    // It is the adapter that was meant: none is missing beside it.
                    strangers.clear();
                    found = found.or(Some((None, key, value)));
                }
                Some(kind) => match found {
                    None => found = Some((Some(kind), key, value)),
                    Some((_, first, _)) => {
                        good = false;
                        self.problems.error(
                            &key.place,
                            "several-adapters",
                            format!("{what} has '{}' and '{}'", first.name, key.name),
                            "keep one of them: exactly one adapter",
                        );
                    }
                },
            }
        }
        let mut reported: Vec<&str> = Vec::new();
        if found.is_none() {
            good = false;
            let stranger = strangers
                .iter()
                .find(|key| nearest_field(&key.name, &[fields]).is_none());
            match stranger {
                Some(key) => {
                    reported.push(&key.name);
                    self.problems.error(
                        &key.place,
                        "unknown-adapter",
                        format!("there is no adapter '{}'", key.name),
                        suggest(&key.name, fitting().collect::<Vec<_>>()),
                    );
                }
                None => self.problems.error(
                    &node.place,
                    "missing-adapter",
                    format!("{what} has no adapter"),
                    format!("add one of: {}", fitting().collect::<Vec<_>>().join(", ")),
                ),
            }
        }
        reported.extend(
            kinds
                .iter()
                .filter(|kind| !side.has(kind))
                .map(|kind| kind.name),
        );
        if let Some((Some(kind), name, value)) = found
            && matches!(value.raw, Raw::Null)
        {
            let table = match side {
                Side::Receiver => kind.receiver.as_ref().map(|side| side.fields),
                Side::Sender => kind.sender.as_ref().map(|side| side.fields),
            };
            for key in node.entries().iter().map(|(key, _)| key) {
                let is = |field: &Field| field.name == key.name;
                if !fields.iter().any(is) && table.is_some_and(|table| table.iter().any(is)) {
                    good = false;
                    reported.push(&key.name);
                    self.problems.error(
                        &key.place,
                        "unknown-key",
                        format!("{what} has no key '{}'", key.name),
                        format!("it is one of '{}': indent it deeper than that", name.name),
                    );
                }
            }
        }
        let words: Vec<&'static str> = fitting().collect();
        good &= self
            .checker
            .fields_beside(node, &[fields], &words, &reported, what);
        let found = found.and_then(|(kind, key, value)| Some((kind?, key, value)));
        (found, good)
    }

    fn example(&self, side: Side) -> String {
        self.shop
            .kinds
            .iter()
            .find(|kind| side.has(kind))
            .map_or_else(String::new, |kind| format!("{}: {{ … }}", kind.name))
    }

    fn wrong_side<'n>(
        &self,
        kind: &Kind,
        key: &Key,
        side: Side,
        fitting: impl Iterator<Item = &'n str>,
    ) {
        let can = match side {
            Side::Receiver => "receive",
            Side::Sender => "send",
        };
        self.problems.error(
            &key.place,
            "wrong-side",
            format!("'{}' cannot {can}", kind.name),
            format!("these can: {}", fitting.collect::<Vec<_>>().join(", ")),
        );
    }
}
