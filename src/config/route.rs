//! One route file to one route.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use xbus_core::plan::{BrokerHome, Once, Plan, QueueReader, ReplyPlan, Route};
use xbus_core::problem::Place;
use xbus_core::spec::{self, Args, Node, Raw};
use xbus_core::transform::Source;
use xbus_core::{Expression, Kind, Problems};

use crate::bus::{BusConfig, Connections, texts};
use crate::check::Checker;
use crate::circles::{Inflow, Outflow};
use crate::compile::Steps;
use crate::lane::flow;
use crate::rules;
use crate::step::{InRoute, Made, Role};
use crate::tables::{REPLY, ROUTE};

/// A business key's name and where its value comes from.
type BusinessKey = (Arc<str>, Arc<dyn Expression>);

/// What all routes are made with.
pub(crate) struct Shop<'a> {
    pub(crate) kinds: &'a [Kind],
    pub(crate) bus: &'a BusConfig,
    pub(crate) connections: &'a Connections,
    pub(crate) checker: Checker<'a>,
    /// Values may be unknown without that being an error.
    pub(crate) lenient: bool,
}

/// A route as far as it could be made, and what rules across routes want to know of it.
pub(crate) struct Draft {
    pub(crate) name: Arc<str>,
    /// Where the name stands; the whole file when it is the file's stem.
    pub(crate) place: Place,
    pub(crate) enabled: bool,
    pub(crate) claim: Option<(String, Place)>,
    pub(crate) reads: Option<(Arc<str>, Place, QueueReader)>,
    /// Queues of async targets.
    pub(crate) lanes: Vec<DraftLane>,
    /// Embedded queues that it writes to.
    pub(crate) puts: Vec<(String, Place)>,
    /// Where its messages come from, as far as that is known.
    pub(crate) inflow: Option<Inflow>,
    /// What each of its messages leaves for receivers to find.
    pub(crate) outflows: Vec<Outflow>,
    /// Nothing when something is wrong or not known.
    pub(crate) route: Option<Route>,
}

/// The queue of an async target.
pub(crate) struct DraftLane {
    pub(crate) queue: Arc<str>,
    pub(crate) place: Place,
    pub(crate) target: Arc<str>,
    /// The broker that keeps it.
    pub(crate) home: Option<BrokerHome>,
}

/// Makes the plan of complete drafts.
pub(crate) fn plan(drafts: Vec<Draft>, bus: &BusConfig) -> Plan {
    let mut plan = Plan::default();
    plan.bus = bus.name.clone();
    plan.node = bus.node.clone();
    for draft in drafts {
        if let Some((queue, _, reader)) = draft.reads.filter(|_| draft.enabled) {
            plan.readers.insert(queue, reader);
        }
        if let Some(route) = draft.route {
            plan.routes.insert(draft.name, Arc::new(route));
        }
    }
    plan
}

impl Shop<'_> {
    /// Reads one route; nothing when the file holds no map.
    pub(crate) fn route(&self, path: &Path, node: &Node) -> Option<Draft> {
        let problems = self.checker.problems;
        if !matches!(node.raw, Raw::Map(_)) {
            problems.error(
                &node.place,
                "wrong-type",
                "a route file holds a map of keys",
                "begin with route: NAME",
            );
            return None;
        }
        let written = node
            .get("route")
            .and_then(|name| Some((name.text()?, name.place.clone())));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let (name, place) = match written {
            Some((name, place)) => (name, place),
            None => (&*stem, Place::file(path)),
        };
        rules::name(name, &place, "route", problems);
        let mut scope = self.checker.scope.clone();
        if let Some(own) = node.get("namespaces") {
            scope.namespaces.extend(texts(own.entries()));
        }
        let checker = Checker {
            scope: &scope,
            ..self.checker
        };
        let this = InRoute {
            shop: self,
            route: Arc::from(name),
            scope: &scope,
            checker,
            problems,
        };
        let steps = this.names_of_invoke(node);
        let compiler = Steps {
            inner: checker.compiler,
            known: &steps,
            missing: "the route's 'invoke' has no step",
        };
        let checker = Checker {
            compiler: &compiler,
            ..checker
        };
        let this = InRoute { checker, ..this };
        Some(this.draft(node, place))
    }
}

impl InRoute<'_> {
    /// The names of the steps of `invoke`, in order; what is wrong with them is said elsewhere.
    fn names_of_invoke(&self, node: &Node) -> Vec<Arc<str>> {
        let aside = Problems::new();
        let quiet = InRoute {
            shop: self.shop,
            route: self.route.clone(),
            scope: self.scope,
            checker: self.checker,
            problems: &aside,
        };
        let mut names = Names::of_route(node);
        let items = node.get("invoke").map_or(&[][..], Node::items);
        items.iter().map(|item| names.of(item, &quiet)).collect()
    }

    fn draft(&self, node: &Node, place: Place) -> Draft {
        let reported: &[&str] = match node.entries().iter().find(|(key, _)| key.name == "split") {
            Some((key, _)) => {
                self.problems.error(
                    &key.place,
                    "not-supported",
                    "this build cannot split messages",
                    "take 'split' away, or split in a script",
                );
                &["split"]
            }
            None => &[],
        };
        let good = self
            .checker
            .fields_beside(node, &[ROUTE], &[], reported, "the route");
        let received = node
            .get("receive")
            .filter(|node| written(node))
            .map(|node| self.receive(node));
        let received = received.unwrap_or_default();
        let reply = node.entries().iter().find(|(key, _)| key.name == "reply");
        let mute = received.made.as_ref().and_then(|made| made.cannot_reply());
        if let (Some((key, _)), Some(why)) = (reply, mute) {
            let code = "no-connection";
            self.problems.error(&key.place, code, why.message, why.help);
        }
        if let (Some((_, reply)), Some(receiver)) = (reply, &received.made) {
            let headers = reply.get("headers").map_or(&[][..], Node::entries);
            for (key, _) in headers
                .iter()
                .filter(|(key, _)| receiver.sets_header(&key.name))
            {
                self.problems.error(
                    &key.place,
                    "bad-value",
                    format!(
                        "an answer cannot have a header '{}' of the route's own",
                        key.name
                    ),
                    "leave it out",
                );
            }
        }
        let mut names = Names::of_route(node);
        let steps = self.list(node, "invoke", Role::Invoke, &mut names);
        let targets = self.list(node, "distribute", Role::Target, &mut names);
        let on_fault = self.list(node, "on_fault", Role::Target, &mut names);
        rules::within(node, &targets, self.problems);
        if !self.checker.files.is_unknown(node) {
            self.not_empty(node);
        }

        let build = self.build(
            Arc::from(""),
            spec::Role::Other,
            self.shop.bus.timeout,
            self.problems,
        );
        let args = Args::new(Some(node), ROUTE, &build);
        let enabled = args.boolean("enabled");
        let made = || targets.iter().chain(&on_fault).flatten();
        let mut draft = Draft {
            name: self.route.clone(),
            place,
            enabled,
            claim: received.claim.clone(),
            reads: received.queue.clone(),
            lanes: made()
                .filter_map(|made| {
                    let (queue, place) = made.queue.clone()?;
                    Some(DraftLane {
                        queue,
                        place,
                        target: made.name.clone(),
                        home: made.home.clone(),
                    })
                })
                .collect(),
            puts: made().filter_map(|made| made.puts.clone()).collect(),
            inflow: received.place.clone().map(|place| Inflow {
                place,
                queue: received.queue.as_ref().map(|(queue, ..)| queue.clone()),
                receiver: received.made.clone(),
            }),
            outflows: match args.has("when") || args.has("once") {
                true => Vec::new(),
                false => targets.iter().flatten().filter_map(Made::outflow).collect(),
            },
            route: None,
        };
        if !good || self.checker.files.has_unknown(node) || received.made.is_none() {
            return draft;
        }
        draft.route = self.assemble_route(&args, received, steps, targets, on_fault);
        draft
    }

    fn assemble_route(
        &self,
        args: &Args<'_>,
        received: crate::receive::Received,
        steps: Vec<Option<Made>>,
        targets: Vec<Option<Made>>,
        on_fault: Vec<Option<Made>>,
    ) -> Option<Route> {
        let complete = |made: Vec<Option<Made>>| -> Option<Vec<_>> {
            made.into_iter().map(|made| made?.target).collect()
        };
        let (gate, pace) = flow(args);
        Some(Route {
            name: self.route.clone(),
            description: args.text("description").unwrap_or_default(),
            receiver: received.made,
            answers: received.answers,
            reads: received.queue.as_ref().map(|(queue, ..)| queue.clone()),
            checks: received.checks,
            when: self.optional(args, "when")?,
            once: self.once(args)?,
            keys: self.keys(args)?,
            steps: complete(steps)?
                .into_iter()
                .map(|target| target.step)
                .collect(),
            targets: complete(targets)?,
            drop_unmatched: args.has("unmatched"),
            no_rollback: args.has("rollback"),
            reply: self.reply(args)?,
            on_fault: complete(on_fault)?,
            gate,
            pace,
            payloads: self.shop.bus.journal.payloads,
            lane: received.lane,
            order_by: received.order_by,
            enabled: args.boolean("enabled"),
            stats: Arc::default(),
            told_senders: Arc::default(),
        })
    }

    fn once(&self, args: &Args<'_>) -> Option<Option<Once>> {
        let Some(node) = args.node("once") else {
            return Some(None);
        };
        let key = node.get("key")?;
        let keep = node
            .get("keep")
            .and_then(|node| xbus_core::spec::parse_duration(node.text()?).ok())
            .unwrap_or(std::time::Duration::from_secs(86_400));
        let key = args.build.expression(key.text()?, &key.place)?;
        Some(Some(Once { key, keep }))
    }

    fn keys(&self, args: &Args<'_>) -> Option<Vec<BusinessKey>> {
        args.entries("keys")
            .iter()
            .map(|(key, node)| {
                let expression = args.build.expression(node.text()?, &node.place)?;
                Some((Arc::from(key.name.as_str()), expression))
            })
            .collect()
    }

    fn reply(&self, args: &Args<'_>) -> Option<Option<ReplyPlan>> {
        if !args.has("reply") {
            return Some(None);
        }
        let reply = args.object("reply", REPLY);
        let headers: Option<Vec<_>> = reply
            .entries("headers")
            .iter()
            .map(|(key, node)| Some((key.name.clone(), args.build.template(node)?.one_line())))
            .collect();
        let mut transforms = self.transforms(reply.node("transform"))?;
        if let Some(content_type) = reply.text("content_type")
            && content_type.to_ascii_lowercase().contains("charset")
        {
            let source = Source::Written(&content_type);
            match self.checker.compiler.transform(source, self.scope) {
                // What nothing has made only gets the name.
                Ok(_) if transforms.is_empty() => {}
                Ok(written) => transforms.push(written),
                Err(error) => {
                    let help = error.help.unwrap_or_default();
                    let place = reply.place("content_type");
                    self.problems
                        .error(&place, "unknown-charset", error.message, help);
                    return None;
                }
            }
        }
        Some(Some(ReplyPlan {
            transforms,
            status: reply.count("status").map(|status| status as u16),
            content_type: reply.text("content_type"),
            headers: headers?,
        }))
    }

    /// A route without steps and targets answers by itself, and has to say how.
    fn not_empty(&self, node: &Node) {
        let has = |name: &str| {
            node.get(name)
                .is_some_and(|node| !matches!(&node.raw, Raw::List(items) if items.is_empty()))
        };
        // `reply:` with nothing under it is an answer too.
        if !has("invoke") && !has("distribute") && node.get("reply").is_none() {
            self.problems.error(
                &node.place,
                "empty-route",
                "the route does nothing with its messages",
                "add 'invoke', 'distribute' or 'reply'",
            );
        }
    }

    /// The steps of a list, each with its name.
    fn list(&self, route: &Node, key: &str, role: Role, names: &mut Names) -> Vec<Option<Made>> {
        let Some(node) = route.get(key) else {
            return Vec::new();
        };
        let Raw::List(items) = &node.raw else {
            if written(node) && !self.checker.files.is_unknown(node) {
                self.problems.error(
                    &node.place,
                    "wrong-type",
                    format!("'{key}' must be a list of steps"),
                    "begin each step with '- name: …'",
                );
            }
            return match node.raw {
                Raw::Null => Vec::new(),
                _ => vec![None],
            };
        };
        let mut before: Vec<Arc<str>> = Vec::new();
        items
            .iter()
            .map(|item| {
                let name = names.of(item, self);
                if self.checker.files.is_unknown(item) {
                    return None;
                }
                before.push(name.clone());
                // What is undone may look at whatever has run until then.
                if role != Role::Invoke || item.get("compensate").is_some() {
                    return self.step(item, &name, role);
                }
                let compiler = Steps {
                    inner: self.checker.compiler,
                    known: &before,
                    missing: "it comes before the step",
                };
                let then = InRoute {
                    shop: self.shop,
                    route: self.route.clone(),
                    scope: self.scope,
                    checker: Checker {
                        compiler: &compiler,
                        ..self.checker
                    },
                    problems: self.problems,
                };
                then.step(item, &name, role)
            })
            .collect()
    }
}

fn written(node: &Node) -> bool {
    !matches!(node.raw, Raw::Null)
}

/// The names of a route's steps.
#[derive(Default)]
struct Names {
    /// All that are written in the route: no derived one may be the same.
    written: HashSet<String>,
    taken: HashMap<String, Place>,
    counted: BTreeMap<&'static str, usize>,
}

impl Names {
    /// Before any step has its name.
    fn of_route(node: &Node) -> Self {
        let mut names = Self::default();
        for key in ["invoke", "distribute", "on_fault"] {
            let items = node.get(key).map_or(&[][..], Node::items);
            names.written.extend(
                items
                    .iter()
                    .filter_map(|item| Some(item.get("name")?.text()?.to_owned())),
            );
        }
        names
    }

    /// The name of a step: as written, else the adapter's word, with a number from the second on.
    fn of(&mut self, node: &Node, route: &InRoute<'_>) -> Arc<str> {
        let Some(name) = node.get("name").filter(|node| node.text().is_some()) else {
            return self.derived(node, route.shop.kinds);
        };
        let text = name.text().unwrap_or_default();
        rules::name(text, &name.place, "name", route.problems);
        match self.taken.get(text) {
            Some(first) => route.problems.error(
                &name.place,
                "duplicate-name",
                format!("the route has two steps named '{text}'"),
                format!("rename one; the first is on line {}", first.line),
            ),
            None => {
                self.taken.insert(text.to_owned(), name.place.clone());
            }
        }
        Arc::from(text)
    }

    fn derived(&mut self, node: &Node, kinds: &[Kind]) -> Arc<str> {
        let word = node
            .entries()
            .iter()
            .find_map(|(key, _)| kinds.iter().find(|kind| kind.name == key.name))
            .map_or("step", |kind| kind.name);
        let count = self.counted.entry(word).or_insert(0);
        loop {
            *count += 1;
            let name = match *count {
                1 => word.to_owned(),
                more => format!("{word}-{more}"),
            };
            if !self.written.contains(&name) {
                return Arc::from(name);
            }
        }
    }
}
