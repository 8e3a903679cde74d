//! Steps: of `invoke`, targets of `distribute` and `on_fault`, and what undoes them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xbus_core::adapter::Reach;
use xbus_core::flow::{Breaker, Gate, Pace};
use xbus_core::plan::{Lane, LanePolicy, Retry, Step, Target};
use xbus_core::problem::{Place, suggest};
use xbus_core::spec::{Args, Build, Field, Key, Node, Raw};
use xbus_core::stats::StepStats;
use xbus_core::transform::{Scope, Source};
use xbus_core::{Expression, Kind, Problems, Sender, Transform};

use crate::check::{Checker, conversion, nearest_field};
use crate::route::Shop;
use crate::tables::{ASYNC, INVOKE, LANE_RETRY, RETRY, TARGET, UNDO};

/// Where a step stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Invoke,
    Target,
    Undo,
}

impl Role {
    fn fields(self) -> &'static [Field] {
        match self {
            Role::Invoke => INVOKE,
            Role::Target => TARGET,
            Role::Undo => UNDO,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Role::Invoke => "the step",
            Role::Target => "the target",
            Role::Undo => "the compensation",
        }
    }
}

/// A step as far as it could be made, and what rules across steps want to know of it.
pub(crate) struct Made {
    pub(crate) name: Arc<str>,
    /// The adapter's word, or where the step begins.
    pub(crate) place: Place,
    pub(crate) reach: Option<Reach>,
    pub(crate) when: Option<String>,
    pub(crate) otherwise: bool,
    pub(crate) compensated: bool,
    /// The queue of an async target.
    pub(crate) queue: Option<(Arc<str>, Place)>,
    /// The embedded queue that it writes to, where that is no matter of the message.
    pub(crate) puts: Option<(String, Place)>,
    /// Nothing when something is wrong or not known.
    pub(crate) target: Option<Target>,
}

/// One route's circumstances.
pub(crate) struct InRoute<'a> {
    pub(crate) shop: &'a Shop<'a>,
    pub(crate) route: Arc<str>,
    pub(crate) scope: &'a Scope,
    pub(crate) checker: Checker<'a>,
    pub(crate) problems: &'a Problems,
}

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
    /// What adapters and expressions are built with.
    pub(crate) fn build<'b>(
        &'b self,
        step: Arc<str>,
        timeout: Duration,
        problems: &'b Problems,
    ) -> Build<'b> {
        Build {
            route: self.route.clone(),
            step,
            bus: self.shop.bus.name.clone(),
            node: self.shop.bus.node.clone(),
            root: self.checker.root,
            compiler: self.checker.compiler,
            scope: self.scope,
            connections: self.shop.connections,
            timeout,
            max_body: self.shop.bus.max_body,
            problems,
        }
    }

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

    /// Makes one step; nothing when it is not even a map with an adapter.
    pub(crate) fn step(&self, node: &Node, name: &Arc<str>, role: Role) -> Option<Made> {
        let fields = role.fields();
        let (found, mut good) = self.adapter(node, fields, Side::Sender, role.what());
        let timeout = node
            .get("timeout")
            .and_then(|node| xbus_core::spec::parse_duration(node.text()?).ok())
            .unwrap_or(self.shop.bus.timeout);
        let mut sender = None;
        if let Some((kind, key, value)) = found {
            if role == Role::Invoke && kind.sender.as_ref().is_some_and(|sender| !sender.answers) {
                good = false;
                self.no_answer(kind, key);
            }
            sender = self.sender(kind, value, name, timeout);
        }
        let undo = node
            .get("compensate")
            .filter(|node| !matches!(node.raw, Raw::Null));
        let compensate = undo.map(|node| self.undo(node, name));
        let known = !self.checker.files.has_unknown(node);
        let build = self.build(name.clone(), timeout, self.problems);
        let args = Args::new(Some(node), fields, &build);
        let lane = (role == Role::Target).then(|| self.lane(&args)).flatten();
        let otherwise = role == Role::Target && args.boolean("otherwise");
        if otherwise && args.has("when") {
            self.problems.error(
                &args.place("otherwise"),
                "otherwise-with-when",
                "a target cannot have both 'when' and 'otherwise'",
                "keep one: 'otherwise' is taken when no 'when' was true",
            );
        }
        let when = match role {
            Role::Undo => None,
            _ => args.text("when"),
        };
        let queue = lane.as_ref().map(|lane| {
            let place = node
                .get("async")
                .map(|node| node.get("queue").unwrap_or(node).place.clone());
            (lane.queue.clone(), place.unwrap_or(node.place.clone()))
        });
        if lane.is_some() && undo.is_some() {
            self.problems.warning(
                &args.place("compensate"),
                "useless-key",
                "an async target is never undone: once accepted, it is delivered",
                "take 'compensate' away, or 'async'",
            );
        }
        let reach = sender.as_ref().map(|sender| sender.reach());
        let make = |sender| {
            let step = self.assemble(&args, name, role, timeout, sender, compensate)?;
            Some(Target {
                step,
                otherwise,
                lane,
            })
        };
        let target = (good && known).then_some(sender).flatten().and_then(make);
        let (_, key, value) = found?;
        Some(Made {
            name: name.clone(),
            place: key.place.clone(),
            reach,
            when,
            otherwise,
            compensated: undo.is_some(),
            puts: (reach == Some(Reach::Queue))
                .then(|| constant_name(value))
                .flatten()
                .filter(|_| queue.is_none()),
            queue,
            target,
        })
    }

    fn no_answer(&self, kind: &Kind, key: &Key) {
        let answering: Vec<&str> = self
            .shop
            .kinds
            .iter()
            .filter(|kind| kind.sender.as_ref().is_some_and(|sender| sender.answers))
            .map(|kind| kind.name)
            .collect();
        self.problems.error(
            &key.place,
            "no-answer",
            format!("'{}' gives no answer, which 'invoke' needs", kind.name),
            format!(
                "move the step to 'distribute', or use one that answers: {}",
                answering.join(", ")
            ),
        );
    }

    fn sender(
        &self,
        kind: &Kind,
        value: &Node,
        name: &Arc<str>,
        timeout: Duration,
    ) -> Option<Arc<dyn Sender>> {
        let sender = kind.sender.as_ref()?;
        let what = format!("'{}'", kind.name);
        if !self.checker.fields(value, &[sender.fields], &what)
            || self.checker.files.has_unknown(value)
        {
            return None;
        }
        self.built(value, |problems| {
            let build = self.build(name.clone(), timeout, problems);
            (sender.build)(Args::new(Some(value), sender.fields, &build))
        })
    }

    /// Runs an adapter's own building. Nothing without a reported reason would be a silent hole in
    /// the plan, so that it is reported too.
    pub(crate) fn built<T>(
        &self,
        value: &Node,
        make: impl FnOnce(&Problems) -> Option<T>,
    ) -> Option<T> {
        let problems = Problems::new();
        let made = make(&problems);
        let reported = problems.into_sorted();
        if made.is_none()
            && reported.is_empty()
            && !self.shop.lenient
            && !self.problems.has_errors()
        {
            self.problems.error(
                &value.place,
                "not-built",
                "the adapter did not take these settings and does not say why",
                "",
            );
        }
        self.problems.extend(reported);
        made
    }

    fn undo(&self, node: &Node, of: &Arc<str>) -> Option<Box<Step>> {
        let name = match node.get("name").and_then(Node::text) {
            Some(name) => Arc::from(name),
            None => Arc::from(format!("{of}.compensate")),
        };
        let target = self.step(node, &name, Role::Undo)?.target?;
        Some(Box::new(target.step))
    }

    fn assemble(
        &self,
        args: &Args<'_>,
        name: &Arc<str>,
        role: Role,
        timeout: Duration,
        sender: Arc<dyn Sender>,
        compensate: Option<Option<Box<Step>>>,
    ) -> Option<Step> {
        let transforms = self.transforms(args.node("transform"))?;
        let compensate = match compensate {
            Some(made) => Some(made?),
            None => None,
        };
        let when = match role {
            Role::Undo => None,
            _ => self.optional(args, "when")?,
        };
        let breaker = args.has("breaker").then(|| {
            let breaker = args.node("breaker");
            let count = breaker.and_then(|node| node.get("failures")?.text()?.parse().ok());
            let open_for = breaker.and_then(|node| {
                xbus_core::spec::parse_duration(node.get("open_for")?.text()?).ok()
            });
            Breaker::new(
                count.unwrap_or(5),
                open_for.unwrap_or(Duration::from_secs(30)),
            )
        });
        let (gate, pace) = flow(args);
        Some(Step {
            name: name.clone(),
            transforms,
            when,
            sender,
            timeout,
            retry: args.has("retry").then(|| {
                let retry = args.object("retry", RETRY);
                Retry {
                    attempts: retry.count("attempts").unwrap_or(3) as u32,
                    ..waits(&retry)
                }
            }),
            breaker,
            gate,
            pace,
            compensate,
            stats: Arc::new(StepStats::default()),
        })
    }

    /// An expression that may be left out; the outer nothing means that it does not compile.
    pub(crate) fn optional(
        &self,
        args: &Args<'_>,
        name: &str,
    ) -> Option<Option<Arc<dyn Expression>>> {
        let Some(text) = args.node(name).and_then(Node::text) else {
            return Some(None);
        };
        // What is wrong with it was reported when it was checked.
        let expression = self.checker.compiler.expression(text, self.scope);
        expression.ok().map(Some)
    }

    /// The transformations under `transform`, which checking found well.
    pub(crate) fn transforms(&self, node: Option<&Node>) -> Option<Vec<Arc<dyn Transform>>> {
        let compile = |source: Source<'_>| self.checker.compiler.transform(source, self.scope).ok();
        node.map_or(&[][..], Node::items)
            .iter()
            .map(|item| match item.text() {
                Some(file) => compile(Source::File(Path::new(file))),
                None => {
                    let (from, to) = conversion(item)?;
                    compile(Source::Convert { from, to })
                }
            })
            .collect()
    }

    /// The queue of an async target.
    fn lane(&self, args: &Args<'_>) -> Option<Lane> {
        let node = args.node("async")?;
        let own = matches!(node.raw, Raw::Map(_));
        if !own && node.text() != Some("true") {
            return None;
        }
        let own = Args::new(own.then_some(node), ASYNC, args.build);
        if own.has("connection") {
            self.problems.error(
                &own.place("connection"),
                "not-supported",
                "this build keeps queues in the embedded store only",
                "take 'connection' away",
            );
        }
        let queue = own
            .text("queue")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| format!("{}.{}", self.route, args.build.step));
        let mut policy = policy(&own, 8);
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
        Some(Lane {
            queue: Arc::from(queue),
            order_by: self.optional(&own, "order_by")?,
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

fn waits(args: &Args<'_>) -> Retry {
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

/// The `name` of an adapter's map when no message decides it.
pub(crate) fn constant_name(value: &Node) -> Option<(String, Place)> {
    let name = value.get("name")?;
    let text = name.text().filter(|text| !text.contains("{{"))?;
    Some((text.to_owned(), name.place.clone()))
}
