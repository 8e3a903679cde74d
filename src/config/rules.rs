//! Rules that no single key can break: between the targets of a route, and between routes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use xbus_core::Problems;
use xbus_core::adapter::Reach;
use xbus_core::broker::LaneName;
use xbus_core::problem::{Place, suggest};
use xbus_core::spec::Node;

use crate::Brokers;
use crate::route::{Draft, DraftLane};
use crate::step::Made;

/// Longest name of a route or step, in characters.
const MAX_NAME: usize = 100;

/// Names stand in queue names, metrics, addresses of the API and on command lines.
pub(crate) fn name(name: &str, place: &Place, what: &str, problems: &Problems) {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.chars().count() > MAX_NAME || !name.chars().all(fits) {
        problems.error(
            place,
            "bad-name",
            format!("'{name}' cannot be a name"),
            format!("set '{what}' to letters, digits, '-', '_' and '.', {MAX_NAME} at most"),
        );
    } else if what == "name" && matches!(name, "receive" | "reply") {
        problems.error(
            place,
            "bad-name",
            format!("'{name}' names a part of every route"),
            "choose another name",
        );
    }
}

/// Rules between the targets of one route.
pub(crate) fn within(route: &Node, targets: &[Option<Made>], problems: &Problems) {
    let targets: Vec<&Made> = targets.iter().flatten().collect();
    otherwise(&targets, problems);
    if let Some(unmatched) = route.get("unmatched")
        && unmatched.text() == Some("drop")
        && !targets.iter().any(|target| target.when.is_some())
    {
        problems.warning(
            &unmatched.place,
            "useless-key",
            "'unmatched' has no effect: no target of 'distribute' has a 'when'",
            "take it away",
        );
    }
    let one_shots: Vec<&Made> = targets
        .iter()
        .copied()
        .filter(|target| {
            target.reach == Some(Reach::OneShot) && target.queue.is_none() && !target.compensated
        })
        .collect();
    if route.get("rollback").is_none() {
        one_shot(&one_shots, problems);
    }
}

fn otherwise(targets: &[&Made], problems: &Problems) {
    let mut all = targets.iter().filter(|target| target.otherwise);
    let Some(first) = all.next() else {
        return;
    };
    for second in all {
        problems.error(
            &second.place,
            "several-otherwise",
            format!(
                "'{}' and '{}' are both taken when nothing else is",
                first.name, second.name
            ),
            "keep 'otherwise: true' at one of them",
        );
    }
    if !targets.iter().any(|target| target.when.is_some()) {
        problems.error(
            &first.place,
            "otherwise-without-when",
            format!(
                "'{}' is taken when no 'when' was true, and there is none",
                first.name
            ),
            "give the other targets a 'when', or take 'otherwise' away",
        );
    }
}

/// At most one target that can neither be taken back nor compensated may run for one message.
fn one_shot(targets: &[&Made], problems: &Problems) {
    let depends = |made: &&&Made| made.when.is_some() || made.otherwise;
    let always: Vec<&&Made> = targets.iter().filter(|made| !depends(made)).collect();
    let chosen: Vec<&&Made> = targets.iter().filter(depends).collect();
    let clash = match (always.as_slice(), chosen.first()) {
        ([first, second, ..], _) => Some((first, second)),
        ([one], Some(other)) => Some((one, other)),
        _ => None,
    };
    if let Some((first, second)) = clash {
        problems.error(
            &second.place,
            "several-one-shots",
            format!(
                "'{}' and '{}' may both run for one message, and neither can be taken back: when \
                 the second fails, the first has happened",
                first.name, second.name
            ),
            "three ways out: 'async: true' on one of them (it is then delivered from a queue until \
             it succeeds), 'compensate' on one of them (a step that undoes it), or 'rollback: \
             none' on the route (all run in the order written and nothing is undone)",
        );
        return;
    }
    for (at, first) in chosen.iter().enumerate() {
        for second in &chosen[at + 1..] {
            if let (Some(a), Some(b)) = (&first.when, &second.when)
                && !exclude_each_other(a, b)
            {
                problems.warning(
                    &second.place,
                    "may-both-match",
                    format!(
                        "the conditions of '{}' and '{}' might both be true; such a message fails \
                         before anything is sent",
                        first.name, second.name
                    ),
                    "compare one value with different texts in each 'when', or use 'otherwise: \
                     true' for the rest",
                );
                return;
            }
        }
    }
}

/// Whether two conditions cannot both be true, as far as their text shows it: one value compared
/// with different literals, or a condition and its contrary.
fn exclude_each_other(a: &str, b: &str) -> bool {
    let (a, b) = (a.trim(), b.trim());
    if negates(a, b) || negates(b, a) {
        return true;
    }
    match (comparison(a), comparison(b)) {
        (Some((left, "==", x)), Some((other, "==", y))) => left == other && x != y,
        (Some((left, first, x)), Some((other, second, y))) => {
            left == other
                && x == y
                && matches!(
                    (first, second),
                    ("==", "!=" | "<" | ">")
                        | ("!=" | "<" | ">", "==")
                        | ("<", ">" | ">=")
                        | (">" | ">=", "<")
                        | ("<=", ">")
                        | (">", "<=")
                )
        }
        _ => false,
    }
}

fn negates(a: &str, b: &str) -> bool {
    a.strip_prefix('!').is_some_and(|rest| {
        let rest = rest.trim();
        rest == b
            || rest
                .strip_prefix('(')
                .and_then(|rest| rest.strip_suffix(')'))
                == Some(b)
    })
}

/// A condition that is one comparison with a literal: value, operator, literal.
fn comparison(text: &str) -> Option<(&str, &str, &str)> {
    let mut quote = None;
    let mut depth = 0usize;
    let mut found = None;
    let mut skip = 0;
    for (at, c) in text.char_indices() {
        if at < skip {
            continue;
        }
        match quote {
            Some(_) if c == '\\' => skip = at + 2,
            Some(end) if c == end => quote = None,
            Some(_) => {}
            None => match c {
                '"' | '\'' | '`' => quote = Some(c),
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ if depth > 0 => {}
                '&' | '|' => return None,
                '=' | '!' | '<' | '>' => {
                    let length = if text[at + 1..].starts_with('=') {
                        2
                    } else {
                        1
                    };
                    let operator = &text[at..at + length];
                    if found.is_some() || matches!(operator, "=" | "!") {
                        return None;
                    }
                    found = Some((at, operator));
                    skip = at + length;
                }
                _ => {}
            },
        }
    }
    let (at, operator) = found?;
    let literal = text[at + operator.len()..].trim();
    let quoted = literal.len() >= 2 && literal.starts_with('"') && literal.ends_with('"');
    (quoted || literal.parse::<f64>().is_ok()).then(|| (text[..at].trim(), operator, literal))
}

/// Rules between routes.
pub(crate) fn across(drafts: &[Draft], brokers: &Brokers, problems: &Problems) {
    let mut names: HashMap<&str, &Place> = HashMap::new();
    let mut claims: HashMap<&str, (&str, &Place)> = HashMap::new();
    for draft in drafts {
        match names.get(&*draft.name) {
            Some(first) => problems.error(
                &draft.place,
                "duplicate-route",
                format!("there is another route '{}'", draft.name),
                format!("rename one; the other is in {first}"),
            ),
            None => {
                names.insert(&draft.name, &draft.place);
            }
        }
        // A route that is not started takes nothing.
        let Some((claim, place)) = draft.claim.as_ref().filter(|_| draft.enabled) else {
            continue;
        };
        match claims.get(claim.as_str()) {
            Some((route, first)) => problems.error(
                place,
                "duplicate-claim",
                format!("the route '{route}' receives {claim} too"),
                format!(
                    "change one of the two, or set 'enabled: false' on one; the other is at {first}"
                ),
            ),
            None => {
                claims.insert(claim, (&draft.name, place));
            }
        }
    }
    at_brokers(drafts, brokers, &claims, problems);
    queues(drafts, problems);
}

/// What a lane keeps at a broker is its own: no receiver reads there, and no other lane's queues have
/// such a name.
fn at_brokers<'a>(
    drafts: &'a [Draft],
    brokers: &Brokers,
    claims: &HashMap<&str, (&'a str, &'a Place)>,
    problems: &Problems,
) {
    let mut taken: HashMap<String, (String, &Place)> = claims
        .iter()
        .map(|(claim, (route, place))| {
            let reader = format!("the receiver of the route '{route}'");
            ((*claim).to_owned(), (reader, *place))
        })
        .collect();
    for draft in drafts.iter().filter(|draft| draft.enabled) {
        for DraftLane {
            queue,
            place,
            target,
            home,
        } in &draft.lanes
        {
            let Some((home, broker)) = home
                .as_ref()
                .and_then(|home| Some((home, brokers.get(&home.connection)?)))
            else {
                continue;
            };
            let lane = LaneName {
                queue: queue.clone(),
                partitions: home.partitions,
            };
            if let Err(why) = broker.can_keep(&lane) {
                let help = "name another one with 'queue' under 'async'";
                problems.error(place, "bad-name", why, help);
                continue;
            }
            let reader = format!("the async target '{}.{target}'", draft.name);
            for name in broker.queues_of(&lane) {
                let claim = format!("queue {name} of connection {}", home.connection);
                match taken.get(&claim) {
                    Some((other, first)) => {
                        problems.error(
                            place,
                            "two-readers",
                            format!("{reader} needs the {claim}, which {other} has"),
                            format!("name another queue; the other one is at {first}"),
                        );
                        break;
                    }
                    None => {
                        taken.insert(claim, (reader.clone(), place));
                    }
                }
            }
        }
    }
}

/// A queue has one reader: an async target or a receiver.
fn queues(drafts: &[Draft], problems: &Problems) {
    let mut readers: BTreeMap<Arc<str>, (String, &Place)> = BTreeMap::new();
    for draft in drafts.iter().filter(|draft| draft.enabled) {
        let reads = draft.reads.iter().map(|(queue, place, _)| {
            (
                queue,
                place,
                format!("the receiver of the route '{}'", draft.name),
            )
        });
        let lanes = draft.lanes.iter().map(|lane| {
            (
                &lane.queue,
                &lane.place,
                format!("the async target '{}.{}'", draft.name, lane.target),
            )
        });
        for (queue, place, reader) in reads.chain(lanes) {
            match readers.get(queue) {
                Some((other, first)) => problems.error(
                    place,
                    "two-readers",
                    format!("the queue '{queue}' has two readers: {other}, and {reader}"),
                    format!(
                        "a queue has one reader: name another queue; the other reader is at {first}"
                    ),
                ),
                None => {
                    readers.insert(queue.clone(), (reader, place));
                }
            }
        }
    }
    for draft in drafts.iter().filter(|draft| draft.enabled) {
        for (queue, place) in &draft.puts {
            if !readers.contains_key(queue.as_str()) {
                let names: Vec<&str> = readers.keys().map(|name| &**name).collect();
                problems.warning(
                    place,
                    "queue-without-reader",
                    format!("no route receives from the queue '{queue}': it only grows"),
                    match xbus_core::problem::nearest(queue, names.iter().copied()) {
                        Some(_) => suggest(queue, names),
                        None => {
                            format!("write a route with receive: {{ queue: {{ name: {queue} }} }}")
                        }
                    },
                );
            }
        }
    }
}
