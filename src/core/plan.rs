//! The plan: routes as they run. Validated, immutable and shared; made by xbus-config from what
//! the user wrote. A reload makes a new plan beside the running one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::adapter::{ConnectionHealth, Receiver, Sender};
use crate::broker::LaneBroker;
use crate::flow::{Breaker, Gate, Pace};
use crate::log_limit::LogLimit;
use crate::stats::{RouteStats, StepStats};
use crate::transform::{Checks, Expression, Transform};

/// Everything that runs.
#[derive(Default)]
pub struct Plan {
    /// The bus's name.
    pub bus: Arc<str>,
    /// This bus's name among several on the same folders or broker.
    pub node: Arc<str>,
    /// The routes by name.
    pub routes: BTreeMap<Arc<str>, Arc<Route>>,
    /// Embedded queues that a route receives from: how they are ordered is its receiver's matter,
    /// and is decided when a message enters.
    pub readers: BTreeMap<Arc<str>, QueueReader>,
    /// The connections that tell how they are doing, by name.
    pub connections: BTreeMap<Arc<str>, Arc<dyn ConnectionHealth>>,
    /// The connections that can keep lanes, by name.
    pub brokers: BTreeMap<Arc<str>, Arc<dyn LaneBroker>>,
    /// Which route and target each queue of an async target belongs to; filled on first use.
    lanes: OnceLock<HashMap<Arc<str>, LaneTarget>>,
}

/// A route, and the place of one of its targets in [`Route::all_targets`].
pub type LaneTarget = (Arc<Route>, usize);

impl Plan {
    /// The async target that has `queue`.
    pub fn lane(&self, queue: &str) -> Option<LaneTarget> {
        let lanes = self.lanes.get_or_init(|| {
            let mut lanes = HashMap::new();
            for route in self.routes.values().filter(|route| route.enabled) {
                for (at, target) in route.all_targets().enumerate() {
                    if let Some(lane) = &target.lane {
                        lanes.insert(lane.queue.clone(), (route.clone(), at));
                    }
                }
            }
            lanes
        });
        lanes.get(queue).cloned()
    }
}

/// How a queue that a route receives from is ordered.
#[derive(Clone)]
pub struct QueueReader {
    /// The key of messages that keep their order among themselves; all do when absent.
    pub order_by: Option<Arc<dyn Expression>>,
    /// Without `order_by`: into how many lanes messages are dealt out in turn.
    pub spread: usize,
}

/// One route.
pub struct Route {
    /// Its name.
    pub name: Arc<str>,
    /// What it is for.
    pub description: String,
    /// Brings its messages in; nothing in tests.
    pub receiver: Option<Arc<dyn Receiver>>,
    /// Whether a failed message is told to a waiting sender (http) rather than tried again.
    pub answers: bool,
    /// The embedded queue that it receives from.
    pub reads: Option<Arc<str>>,
    /// What the received message and the reply are held against.
    pub checks: Checks,
    /// A message for which this is false is filtered.
    pub when: Option<Arc<dyn Expression>>,
    /// Idempotent receiver.
    pub once: Option<Once>,
    /// Business keys.
    pub keys: Vec<(Arc<str>, Arc<dyn Expression>)>,
    /// Request/response steps, one after the other.
    pub steps: Vec<Step>,
    /// Request/acknowledgement targets.
    pub targets: Vec<Target>,
    /// A message that no `when` matched is filtered instead of failed.
    pub drop_unmatched: bool,
    /// `rollback: none`: all targets run in the order written and nothing is undone.
    pub no_rollback: bool,
    /// What the sender gets back.
    pub reply: Option<ReplyPlan>,
    /// Targets that get the fault message.
    pub on_fault: Vec<Target>,
    /// How much of it runs at once.
    pub gate: Option<Gate>,
    /// How much of it starts in a time.
    pub pace: Option<Pace>,
    /// Which payloads the journal keeps.
    pub payloads: Payloads,
    /// How a queue that this route reads is worked off (queue and other receivers without a
    /// waiting sender).
    pub lane: LanePolicy,
    /// Key of received messages that keep their order among themselves, for receivers that order
    /// what they take by themselves (amqp).
    pub order_by: Option<Arc<dyn Expression>>,
    /// `false`: checked, not started.
    pub enabled: bool,
    /// What is counted.
    pub stats: Arc<RouteStats>,
    /// Lines in the log about messages that their senders are told of, and have themselves to blame for.
    pub told_senders: Arc<LogLimit>,
}

impl Route {
    /// The targets of `distribute`, then those of `on_fault`.
    pub fn all_targets(&self) -> impl Iterator<Item = &Target> {
        self.targets.iter().chain(&self.on_fault)
    }

    /// Whether `name` is a step, target or other part of it, as incidents name them.
    pub(crate) fn has_part(&self, name: &str) -> bool {
        // The lane of a target at a broker is told of as TARGET@CONNECTION.
        let name = name.split('@').next().unwrap_or(name);
        let is = |step: &Step| {
            let undoing = step.compensate.as_ref();
            *step.name == *name || undoing.is_some_and(|undoing| *undoing.name == *name)
        };
        matches!(name, "receive" | "reply" | "distribute" | "route")
            || self.steps.iter().any(is)
            || self.all_targets().any(|target| is(&target.step))
    }

    /// The queue in which messages wait that its receiver could not pass on, as administrators know
    /// it; nothing where a sender is told of the failure, or keeps the message elsewhere.
    pub fn waits_in(&self) -> Option<Arc<str>> {
        let received = || Some(self.receiver.as_ref()?.queue()?.name().clone());
        self.reads.clone().or_else(received)
    }
}

/// Which payloads the journal keeps for `show` and `replay`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Payloads {
    /// None.
    None,
    /// Of messages that failed or are in doubt.
    #[default]
    Failed,
    /// Of all.
    All,
}

/// `once: { key, keep }`.
pub struct Once {
    /// What tells messages apart.
    pub key: Arc<dyn Expression>,
    /// How long a key is remembered.
    pub keep: Duration,
}

/// One request: of an `invoke` step, a target or a compensation.
pub struct Step {
    /// Unique in the route.
    pub name: Arc<str>,
    /// Run in order, they make the request.
    pub transforms: Vec<Arc<dyn Transform>>,
    /// What the request and the response are held against.
    pub checks: Checks,
    /// The step is skipped when this is false.
    pub when: Option<Arc<dyn Expression>>,
    /// Sends the request.
    pub sender: Arc<dyn Sender>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How often it is tried; nothing: once.
    pub retry: Option<Retry>,
    /// Spares a destination that keeps failing.
    pub breaker: Option<Breaker>,
    /// How many requests run at once.
    pub gate: Option<Gate>,
    /// How many requests start in a time.
    pub pace: Option<Pace>,
    /// What undoes it.
    pub compensate: Option<Box<Step>>,
    /// What is counted.
    pub stats: Arc<StepStats>,
}

/// A target of `distribute`.
pub struct Target {
    /// The request.
    pub step: Step,
    /// Taken when no `when` of the list matched.
    pub otherwise: bool,
    /// Delivered later, from a queue.
    pub lane: Option<Lane>,
}

/// The queue of an async target.
pub struct Lane {
    /// Its name: `ROUTE.TARGET` unless the route names another.
    pub queue: Arc<str>,
    /// The key that orders messages among themselves.
    pub order_by: Option<Arc<dyn Expression>>,
    /// The broker that keeps it; nothing for the embedded store.
    pub home: Option<BrokerHome>,
    /// How it is worked off.
    pub policy: LanePolicy,
}

/// Where at a broker a lane lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerHome {
    /// The connection's name.
    pub connection: Arc<str>,
    /// Over how many partitions its keys are spread; 1 without `order_by`.
    pub partitions: u32,
}

/// How a lane is worked off.
#[derive(Clone, Debug)]
pub struct LanePolicy {
    /// Waiting times between attempts, for ever.
    pub retry: Retry,
    /// Whether a rejected message is set aside; else it blocks like an outage.
    pub park_rejected: bool,
    /// How many keys are worked off side by side.
    pub concurrency: usize,
}

impl Default for LanePolicy {
    fn default() -> Self {
        Self {
            retry: Retry {
                attempts: u32::MAX,
                first: Duration::from_secs(1),
                factor: 2.0,
                max: Duration::from_secs(300),
            },
            park_rejected: false,
            concurrency: 8,
        }
    }
}

/// Waiting times between attempts: `first`, then `factor` times as long each time, up to `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Attempts in all, the first one included.
    pub attempts: u32,
    /// Wait after the first failure.
    pub first: Duration,
    /// Growth of the wait.
    pub factor: f64,
    /// Longest wait.
    pub max: Duration,
}

impl Retry {
    /// How long to wait after `failed` failed attempts (1 or more).
    pub fn wait(&self, failed: u32) -> Duration {
        let factor = self
            .factor
            .max(1.0)
            .powi(failed.saturating_sub(1).min(64) as i32);
        let seconds = (self.first.as_secs_f64() * factor).min(self.max.as_secs_f64());
        Duration::try_from_secs_f64(seconds).unwrap_or(self.max)
    }
}

/// `reply:`.
pub struct ReplyPlan {
    /// Make the answer's body.
    pub transforms: Vec<Arc<dyn Transform>>,
    /// HTTP status in place of the usual one.
    pub status: Option<u16>,
    /// Content type in place of what the transformation says.
    pub content_type: Option<String>,
    /// Further headers of the answer.
    pub headers: Vec<(String, crate::template::Template)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_up_to_the_longest() {
        let retry = LanePolicy::default().retry;
        assert_eq!(retry.wait(1), Duration::from_secs(1));
        assert_eq!(retry.wait(4), Duration::from_secs(8));
        assert_eq!(retry.wait(5000), Duration::from_secs(300));
    }
}
