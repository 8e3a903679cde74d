//! Steps: of `invoke`, targets of `distribute` and `on_fault`, and what undoes them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use xbus_core::adapter::Reach;
use xbus_core::flow::Breaker;
use xbus_core::plan::{BrokerHome, Retry, Step, Target};
use xbus_core::problem::Place;
use xbus_core::spec::{self, Args, Build, Field, Key, Node, Raw};
use xbus_core::stats::StepStats;
use xbus_core::transform::{Scope, Source};
use xbus_core::{Checks, Expression, Kind, Problems, Sender, Transform};

use crate::adapter::Side;
use crate::check::Checker;
use crate::circles::Outflow;
use crate::compiled::conversion;
use crate::lane::{flow, waits};
use crate::route::Shop;
use crate::tables::{INVOKE, RETRY, TARGET, UNDO};

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

    fn of_build(self) -> spec::Role {
        match self {
            Role::Invoke => spec::Role::Invoke,
            Role::Target => spec::Role::Target,
            Role::Undo => spec::Role::Compensate,
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
    /// The broker that keeps it.
    pub(crate) home: Option<BrokerHome>,
    /// The embedded queue that it writes to, where that is no matter of the message.
    pub(crate) puts: Option<(String, Place)>,
    /// Nothing when something is wrong or not known.
    pub(crate) target: Option<Target>,
}

impl Made {
    /// What it leaves for receivers to find; nothing where that depends on the message.
    pub(crate) fn outflow(&self) -> Option<Outflow> {
        let target = self.target.as_ref()?;
        (self.when.is_none() && !self.otherwise).then(|| Outflow {
            target: self.name.clone(),
            place: self.place.clone(),
            queue: self.puts.as_ref().map(|(queue, _)| queue.clone()),
            files: target.step.sender.writes(),
        })
    }
}

/// One route's circumstances.
pub(crate) struct InRoute<'a> {
    pub(crate) shop: &'a Shop<'a>,
    pub(crate) route: Arc<str>,
    pub(crate) scope: &'a Scope,
    pub(crate) checker: Checker<'a>,
    pub(crate) problems: &'a Problems,
}

impl<'a> InRoute<'a> {
    /// What adapters and expressions are built with.
    pub(crate) fn build<'b>(
        &'b self,
        step: Arc<str>,
        role: spec::Role,
        timeout: Duration,
        problems: &'b Problems,
    ) -> Build<'b> {
        Build {
            route: self.route.clone(),
            step,
            role,
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
            sender = self.sender(kind, value, name, role, timeout);
        }
        let undo = node
            .get("compensate")
            .filter(|node| !matches!(node.raw, Raw::Null));
        let compensate = undo.map(|node| self.undo(node, name));
        let known = !self.checker.files.has_unknown(node);
        let build = self.build(name.clone(), role.of_build(), timeout, self.problems);
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
        let home = lane.as_ref().and_then(|lane| lane.home.clone());
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
                .flatten(),
            queue,
            home,
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
        role: Role,
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
            let build = self.build(name.clone(), role.of_build(), timeout, problems);
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
        let checks = self.checks(args.node("schema"));
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
            checks,
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

    /// The schemas under `schema`; what is wrong with them is reported.
    pub(crate) fn checks(&self, node: Option<&Node>) -> Checks {
        let one = |node: &Node| {
            let file = node.text()?;
            let (rules, problems) = self.checker.compiler.schema(Path::new(file));
            for problem in problems {
                let place = Place {
                    file: Path::new("transforms").join(&problem.file).into(),
                    line: problem.line,
                    column: problem.column,
                };
                match problem.error {
                    true => {
                        self.problems
                            .error(&place, "bad-schema", problem.message, problem.help);
                    }
                    false => {
                        self.problems
                            .warning(&place, "schema-gap", problem.message, problem.help);
                    }
                }
            }
            rules
        };
        let Some(node) = node.filter(|node| !self.checker.files.is_unknown(node)) else {
            return Checks::default();
        };
        match &node.raw {
            Raw::Scalar(_) => Checks {
                request: one(node),
                response: None,
            },
            _ => Checks {
                request: node.get("request").and_then(one),
                response: node.get("response").and_then(one),
            },
        }
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
}

/// The `name` of an adapter's map when no message decides it.
pub(crate) fn constant_name(value: &Node) -> Option<(String, Place)> {
    let name = value.get("name")?;
    let text = name.text().filter(|text| !text.contains("{{"))?;
    Some((text.to_owned(), name.place.clone()))
}
