//! Names of the queues that a lane has at the broker, how keys are spread over them, and with what
//! arguments they are declared.
//!
//! | queue | holds |
//! |---|---|
//! | `P` | what waits; `NAME` for a lane of one partition, else `NAME.0`, `NAME.1`, … |
//! | `P.front` | released messages, read before `P` |
//! | `P.parked` | messages set aside for an administrator |
//! | `P.state` | attempts, last error and next try of the head; the newest only |
//! | `xbus.reports.NODE` | what became of messages that `NODE` accepted |
//!
//! The exchange `xbus.control` (fanout) carries what nodes say to each other.

use std::sync::Arc;

use lapin::types::{AMQPValue, FieldTable, ShortString};
use sha2::{Digest, Sha256};
use xbus_core::broker::LaneName;

use super::failure::Failure;

/// The exchange over which nodes talk.
pub(super) const CONTROL: &str = "xbus.control";

/// The delivery limit of every queue here. A quorum queue drops a message that was given back more
/// often than its limit says, and from RabbitMQ 4.0 on the default is 20. No number means "none" in
/// every version, so that it is one that is never reached.
const DELIVERY_LIMIT: i32 = i32::MAX;

/// The queue of one partition.
pub(super) fn partition(lane: &LaneName, index: u32) -> Arc<str> {
    if lane.partitions <= 1 {
        lane.queue.clone()
    } else {
        Arc::from(format!("{}.{index}", lane.queue))
    }
}

/// Whether a lane can have this name at a broker.
pub(super) fn usable(lane: &LaneName) -> Result<(), String> {
    let longest = all(lane).iter().map(|name| name.len()).max().unwrap_or(0);
    if lane.queue.starts_with("amq.") || lane.queue.starts_with("xbus.") {
        return Err(format!(
            "'{}' cannot be the name of a queue at a broker: 'amq.' and 'xbus.' are reserved",
            lane.queue
        ));
    }
    if longest > 255 {
        return Err(format!(
            "the name '{}' is too long for a queue at a broker and those beside it",
            lane.queue
        ));
    }
    Ok(())
}

/// Every queue that a lane has or may come to have.
pub(super) fn all(lane: &LaneName) -> Vec<Arc<str>> {
    partitions(lane)
        .into_iter()
        .flat_map(|queue| {
            let beside = [front(&queue), parked(&queue), state(&queue)];
            std::iter::once(queue).chain(beside)
        })
        .collect()
}

/// All partitions' queues, in order.
pub(super) fn partitions(lane: &LaneName) -> Vec<Arc<str>> {
    (0..lane.partitions.max(1))
        .map(|index| partition(lane, index))
        .collect()
}

/// The partition of a key: the first four bytes of its SHA-256, as a big-endian number, modulo the
/// number of partitions. The same on every node and in every version; a key's order depends on it.
pub(super) fn partition_of(key: &str, partitions: u32) -> u32 {
    if partitions <= 1 {
        return 0;
    }
    let digest = Sha256::digest(key.as_bytes());
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % partitions
}

/// Which of `nodes` a queue belongs to as long as it lives: the one with the highest SHA-256 of node
/// and queue (rendezvous hashing), so that a node that comes or goes moves only its own share.
pub(super) fn preferred<'a>(queue: &str, nodes: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    nodes.max_by_key(|node| {
        let mut hash = Sha256::new();
        hash.update(node.as_bytes());
        hash.update([0]);
        hash.update(queue.as_bytes());
        (<[u8; 32]>::from(hash.finalize()), *node)
    })
}

/// Where released messages wait.
pub(super) fn front(queue: &str) -> Arc<str> {
    Arc::from(format!("{queue}.front"))
}

/// Where parked messages wait.
pub(super) fn parked(queue: &str) -> Arc<str> {
    Arc::from(format!("{queue}.parked"))
}

/// Where the head's state is kept.
pub(super) fn state(queue: &str) -> Arc<str> {
    Arc::from(format!("{queue}.state"))
}

/// Where a node reads what became of its messages.
pub(super) fn reports(node: &str) -> Arc<str> {
    Arc::from(format!("xbus.reports.{node}"))
}

/// A name as AMQP takes it: at most 255 bytes.
pub(super) fn short(name: &str) -> Result<ShortString, Failure> {
    ShortString::try_new(name).map_err(|_| {
        Failure::new(format!(
            "'{name}' is longer than the 255 bytes that RabbitMQ allows for a name"
        ))
    })
}

/// Arguments of `P`. `reject-publish`: should a policy set a length limit, what does not fit is
/// refused and waits in the store, where the default would drop the head.
pub(super) fn lane_arguments() -> FieldTable {
    let mut table = kept_arguments();
    table.insert("x-single-active-consumer".into(), true.into());
    table.insert("x-overflow".into(), text("reject-publish"));
    table
}

/// Arguments of the other queues that keep messages.
pub(super) fn kept_arguments() -> FieldTable {
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text("quorum"));
    table.insert(
        "x-delivery-limit".into(),
        AMQPValue::LongInt(DELIVERY_LIMIT),
    );
    table
}

/// Arguments of `P.state`: what comes in pushes out what was there.
pub(super) fn state_arguments() -> FieldTable {
    let mut table = kept_arguments();
    table.insert("x-max-length".into(), AMQPValue::LongInt(1));
    table.insert("x-overflow".into(), text("drop-head"));
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_in_their_partition_for_ever() {
        // printf %s KEY | sha256sum | cut -c1-8
        for (key, partitions, expected) in [
            ("", 16, 0xe3b0_c442_u32 % 16),
            ("abc", 16, 0xba78_16bf % 16),
            ("abc", 7, 0xba78_16bf % 7),
            ("abc", 1, 0),
            ("abc", 0, 0),
        ] {
            assert_eq!(partition_of(key, partitions), expected, "{key}");
        }
    }

    #[test]
    fn keys_spread_evenly() {
        let mut counts = [0u32; 16];
        for number in 0..16_000 {
            counts[partition_of(&format!("C-{number}"), 16) as usize] += 1;
        }
        assert!(
            counts.iter().all(|count| (800..1200).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_node_that_leaves_moves_only_what_it_had() {
        let queues: Vec<String> = (0..300).map(|number| format!("lane.{number}")).collect();
        let mut shares = [0; 3];
        for queue in &queues {
            let all = ["a", "b", "c"];
            let owner = preferred(queue, all.into_iter());
            let without_c = preferred(queue, ["b", "a"].into_iter());
            if let Some(owner) = owner {
                shares[all.iter().position(|name| *name == owner).unwrap()] += 1;
                if owner != "c" {
                    assert_eq!(without_c, Some(owner));
                }
            }
        }
        assert!(shares.iter().all(|share| *share > 60), "{shares:?}");
        assert_eq!(preferred("x", std::iter::empty()), None);
    }

    #[test]
    fn one_partition_has_the_lanes_own_name() {
        let lane = |partitions| LaneName {
            queue: Arc::from("orders.erp"),
            partitions,
        };
        assert_eq!(&*partition(&lane(1), 0), "orders.erp");
        assert_eq!(&*partition(&lane(16), 15), "orders.erp.15");
        assert_eq!(partitions(&lane(3)).len(), 3);
        assert!(short(&"x".repeat(256)).is_err());
    }
}
