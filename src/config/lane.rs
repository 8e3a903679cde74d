//! Queues of async targets and of receivers, and how much runs at once.

use std::sync::Arc;
use std::time::Duration;

use xbus_core::flow::{Gate, Pace};
use xbus_core::plan::{BrokerHome, Lane, LanePolicy, Retry};
use xbus_core::spec::{Args, Raw};

use crate::step::InRoute;
use crate::tables::{ASYNC, LANE_RETRY, RETRY};

impl InRoute<'_> {
    /// The queue of an async target.
    pub(crate) fn lane(&self, args: &Args<'_>) -> Option<Lane> {
        let node = args.node("async")?;
        let own = matches!(node.raw, Raw::Map(_));
        if !own && node.text() != Some("true") {
            return None;
        }
        let own = Args::new(own.then_some(node), ASYNC, args.build);
        let queue = own
            .text("queue")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| format!("{}.{}", self.route, args.build.step));
        // Beside `async` it says how much of the target runs at once: as many keys may.
        let beside = args.count("concurrency").map_or(8, |count| count as usize);
        let mut policy = policy(&own, beside);
        // `retry` beside `async` says how the queue tries, unless `async` says it itself.
        if !own.has("retry") && args.has("retry") {
            policy.retry = forever(&args.object("retry", RETRY));
            if args
                .node("retry")
                .is_some_and(|node| node.get("attempts").is_some())
            {
                self.problems.warning(
                    &args.object("retry", RETRY).place("attempts"),
                    "useless-key",
                    "an async target is tried until it succeeds: 'attempts' has no effect",
                    "take 'attempts' away; on_reject: park sets rejected messages aside",
                );
            }
        }
        let order_by = self.optional(&own, "order_by")?;
        let connection = own
            .text("connection")
            .or_else(|| self.shop.bus.queues.clone());
        let home = connection.map(|connection| BrokerHome {
            connection: Arc::from(connection),
            partitions: match order_by.is_some() {
                true => own.count("partitions").unwrap_or(16) as u32,
                false => 1,
            },
        });
        if own.has("partitions") && (home.is_none() || order_by.is_none()) {
            self.problems.warning(
                &own.place("partitions"),
                "useless-key",
                "'partitions' has an effect only with 'order_by' on a queue that a broker keeps",
                "take 'partitions' away",
            );
        }
        Some(Lane {
            queue: Arc::from(queue),
            order_by,
            home,
            policy,
        })
    }
}

/// How a queue is worked off, by the keys that `async` and receivers share.
pub(crate) fn policy(args: &Args<'_>, concurrency: usize) -> LanePolicy {
    let default = LanePolicy::default();
    LanePolicy {
        retry: match args.has("retry") {
            true => forever(&args.object("retry", LANE_RETRY)),
            false => default.retry,
        },
        park_rejected: args.text("on_reject").as_deref() == Some("park"),
        concurrency: match args.has("concurrency") {
            true => args.count("concurrency").unwrap_or(1) as usize,
            false => concurrency,
        },
    }
}

fn forever(args: &Args<'_>) -> Retry {
    Retry {
        attempts: u32::MAX,
        ..waits(args)
    }
}

/// The waits that `retry` names, with defaults for the rest.
pub(crate) fn waits(args: &Args<'_>) -> Retry {
    let default = LanePolicy::default().retry;
    Retry {
        attempts: default.attempts,
        first: args.duration("first").unwrap_or(default.first),
        factor: args.number("factor").unwrap_or(default.factor),
        max: args.duration("max").unwrap_or(default.max),
    }
}

/// `concurrency` and `rate`, which wait for `queue_for`.
pub(crate) fn flow(args: &Args<'_>) -> (Option<Gate>, Option<Pace>) {
    let queue_for = args.duration("queue_for").unwrap_or(Duration::from_secs(5));
    let gate = args
        .count("concurrency")
        .map(|places| Gate::new(places as usize, queue_for));
    let pace = args.rate("rate").map(|rate| Pace::new(rate, queue_for));
    (gate, pace)
}
