//! `receive`: exactly one receiver, and how it works off what nobody waits for.

use std::sync::Arc;

use xbus_core::adapter::ReceiverKind;
use xbus_core::plan::{LanePolicy, QueueReader};
use xbus_core::problem::Place;
use xbus_core::spec::{Args, Field, Key, Node, Raw, Role};
use xbus_core::{Checks, Expression, Receiver};

use crate::adapter::Side;
use crate::lane::policy;
use crate::step::{InRoute, constant_name};
use crate::tables::{LANE, RECEIVE};

/// How many messages a receiver works on at once that keeps no order.
const SIDE_BY_SIDE: usize = 8;

/// What may stand beside the adapter.
pub(crate) static BESIDE: &[Field] = &{
    let mut fields = [RECEIVE[0]; LANE.len() + RECEIVE.len()];
    let mut at = 0;
    while at < LANE.len() {
        fields[at] = LANE[at];
        at += 1;
    }
    fields
};

/// A receiver as far as it could be made.
#[derive(Default)]
pub(crate) struct Received {
    /// Where the adapter's word stands.
    pub(crate) place: Option<Place>,
    /// What it takes for itself, and where that is said.
    pub(crate) claim: Option<(String, Place)>,
    /// The embedded queue that it reads.
    pub(crate) queue: Option<(Arc<str>, Place, QueueReader)>,
    pub(crate) made: Option<Arc<dyn Receiver>>,
    pub(crate) answers: bool,
    pub(crate) lane: LanePolicy,
    /// Key of messages that keep their order, where they do not come from an embedded queue.
    pub(crate) order_by: Option<Arc<dyn Expression>>,
    pub(crate) checks: Checks,
}

impl InRoute<'_> {
    /// Makes the receiver.
    pub(crate) fn receive(&self, node: &Node) -> Received {
        let mut received = Received::default();
        if self.checker.files.is_unknown(node) {
            return received;
        }
        let (found, mut good) = self.adapter(node, BESIDE, Side::Receiver, "'receive'");
        let Some((kind, key, value)) = found else {
            return received;
        };
        let Some(receiver) = &kind.receiver else {
            return received;
        };
        received.answers = receiver.answers;
        received.place = Some(key.place.clone());
        let what = format!("'{}'", kind.name);
        // These may stand in the adapter's own map too.
        let tables: &[&'static [Field]] = &[receiver.fields, RECEIVE, lane(receiver)];
        good &= self.checker.fields(value, tables, &what);
        good &= self.useful(node, kind.name, receiver);
        if !good || self.checker.files.has_unknown(node) {
            return received;
        }
        received.made = self.built(value, |problems| {
            let step = Arc::from("receive");
            let build = self.build(step, Role::Other, self.shop.bus.timeout, problems);
            (receiver.build)(Args::new(Some(value), receiver.fields, &build))
        });
        let own = received.made.as_ref().map(|made| made.checks());
        received.checks = own.unwrap_or_default();
        for node in [node.get("schema"), value.get("schema")] {
            let Checks { request, response } = self.checks(node);
            received.checks.request = request.or(received.checks.request);
            received.checks.response = response.or(received.checks.response);
        }
        if receiver.answers {
            received.claim = claim(received.made.as_ref(), key);
            return received;
        }
        let merged = merged(node, value);
        let build = self.build(
            Arc::from("receive"),
            Role::Other,
            self.shop.bus.timeout,
            self.problems,
        );
        let args = Args::new(Some(&merged), LANE, &build);
        let order_by = self.optional(&args, "order_by").flatten();
        let in_order = receiver.fields.iter().all(|field| field.name != "order")
            || value.get("order").is_some();
        received.lane = policy(
            &args,
            match order_by.is_none() && in_order {
                true => 1,
                false => SIDE_BY_SIDE,
            },
        );
        match constant_name(value).filter(|_| kind.name == "queue") {
            Some((name, place)) => {
                let spread = match order_by {
                    Some(_) => 1,
                    None => received.lane.concurrency,
                };
                let reader = QueueReader { order_by, spread };
                received.queue = Some((Arc::from(name), place, reader));
            }
            None => {
                received.claim = claim(received.made.as_ref(), key);
                received.order_by = order_by;
            }
        }
        received
    }

    /// Keys of a queue make no sense where somebody waits for the answer, nor most of them where there
    /// is no other order than one.
    fn useful(&self, node: &Node, kind: &str, receiver: &ReceiverKind) -> bool {
        let (why, help) = match receiver.answers {
            true => (
                "whose sender waits for the answer",
                "take it away; `concurrency` and `rate` of the route bound what runs at once",
            ),
            false => (
                "which takes one after the other, and puts aside what fails for good",
                "take it away",
            ),
        };
        let named = |fields: &[Field], key: &Key| fields.iter().any(|field| field.name == key.name);
        let mut good = true;
        for (key, _) in node.entries() {
            if named(LANE, key) && !named(lane(receiver), key) {
                good = false;
                self.problems.error(
                    &key.place,
                    "useless-key",
                    format!("'{}' has no meaning beside '{kind}', {why}", key.name),
                    help,
                );
            }
        }
        good
    }
}

/// The keys of a queue that have a meaning for a receiver.
pub(crate) fn lane(receiver: &ReceiverKind) -> &'static [Field] {
    match (receiver.answers, receiver.in_turn) {
        (true, _) => &[],
        (false, true) => &LANE[..1],
        (false, false) => LANE,
    }
}

/// The keys of a queue, wherever of the two places they stand; the adapter's own map wins.
fn merged(outer: &Node, inner: &Node) -> Node {
    let lane = |(key, _): &&(Key, Node)| LANE.iter().any(|field| field.name == key.name);
    Node {
        place: inner.place.clone(),
        raw: Raw::Map(
            inner
                .entries()
                .iter()
                .chain(outer.entries())
                .filter(lane)
                .cloned()
                .collect(),
        ),
    }
}

fn claim(receiver: Option<&Arc<dyn Receiver>>, key: &Key) -> Option<(String, Place)> {
    Some((receiver?.claim()?, key.place.clone()))
}
