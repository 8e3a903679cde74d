//! From an installation folder to a [`Plan`].
//!
//! Two phases, because adapters need settings of xbus.yaml before their kinds exist:
//! [`Installation::read`] reads xbus.yaml, replaces references to the environment and gives the
//! bus's settings; [`Installation::plan`] reads the routes one after the other, checks everything against the
//! adapters' tables and builds the routes. Every problem is collected before any is reported. No I/O but reading files.
//!
//! Absent: any knowledge of a protocol or a script language; those come in as
//! [`Kind`]s and a [`Compiler`].

mod adapter;
mod bus;
mod check;
mod circles;
mod compile;
mod compiled;
mod environment;
mod files;
mod hidden;
mod lane;
mod receive;
mod render;
mod route;
mod rules;
mod schema;
mod step;
pub mod tables;
#[cfg(test)]
mod tests;
mod words;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use xbus_core::adapter::ConnectionHealth;
use xbus_core::broker::LaneBroker;
use xbus_core::problem::{Place, Problem, Severity};
use xbus_core::spec::{Args, Field, Node};
use xbus_core::transform::Scope;
use xbus_core::{Compiler, Kind, Plan, Problems};

pub use bus::{Admin, BusConfig, Connections, Journal};
pub use environment::{Lookup, Mode};
pub use render::{render, to_json};
pub use schema::{reference, schema_of_bus, schema_of_route};

use check::Checker;
use files::{Files, Reader};

/// The name of the bus's own file.
const BUS_FILE: &str = "xbus.yaml";

/// An installation folder of which xbus.yaml was read.
pub struct Installation<'a> {
    root: PathBuf,
    mode: Mode,
    lookup: Lookup<'a>,
    files: Files,
    tree: Option<Node>,
    /// The files of the routes.
    routes: Vec<PathBuf>,
    problems: Problems,
    /// What xbus.yaml says.
    pub bus: BusConfig,
}

/// An installation that can run.
pub struct Loaded {
    /// The routes.
    pub plan: Plan,
    /// What xbus.yaml says.
    pub bus: BusConfig,
    /// What stands under `connections`, built.
    pub connections: Connections,
}

impl<'a> Installation<'a> {
    /// Reads the folder with the process's environment.
    pub fn read(root: &Path, mode: Mode) -> Self {
        Self::read_with(root, mode, &environment::of_process)
    }

    /// Reads the folder; variables come from `lookup`.
    pub fn read_with(root: &Path, mode: Mode, lookup: Lookup<'a>) -> Self {
        let problems = Problems::new();
        let mut files = Files::default();
        let reader = Reader {
            root,
            mode,
            lookup,
            problems: &problems,
        };
        let mut tree = None;
        let mut routes = Vec::new();
        if root.is_dir() {
            if root.join(BUS_FILE).exists() {
                tree = files.read(Path::new(BUS_FILE), &reader);
            }
            routes = files::routes(root, &problems);
        } else {
            problems.error(
                &Place::file(root),
                "no-folder",
                "there is no such folder",
                "name an installation folder; 'xbus init DIR' makes one",
            );
        }
        let bus = BusConfig::read(root, tree.as_ref(), &problems);
        Self {
            root: root.to_owned(),
            mode,
            lookup,
            files,
            tree,
            routes,
            problems,
            bus,
        }
    }

    /// Where problems of settings go that are read with [`Installation::settings`].
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// Reads settings of xbus.yaml that others define (`http`, `limits`, …) with their own table of
    /// its top-level keys. The same tables go to [`Installation::plan`], which checks them; values
    /// that do not fit count as not written here.
    pub fn settings<T>(&self, fields: &'static [Field], read: impl FnOnce(Args<'_>) -> T) -> T {
        bus::with_args(&self.root, self.tree.as_ref(), &self.problems, fields, read)
    }

    /// Whether everything under a top-level key of xbus.yaml is known: no variable and no file that
    /// it names is missing.
    pub fn is_known(&self, key: &str) -> bool {
        let node = self.tree.as_ref().and_then(|tree| tree.get(key));
        node.is_none_or(|node| !self.files.has_unknown(node))
    }

    /// Reads the routes, checks everything and builds them. `extra` is the table of the top-level keys of
    /// xbus.yaml that are not this crate's own. The plan is there when no problem is an error; in
    /// [`Mode::Check`] it is missing too when a variable that it needs is not set.
    pub fn plan(
        mut self,
        kinds: &[Kind],
        extra: &'static [Field],
        compiler: &dyn Compiler,
    ) -> (Option<Loaded>, Vec<Problem>) {
        let memo = compile::Memo::new(compiler);
        let scope = Scope {
            namespaces: self.bus.namespaces.clone(),
        };
        let connection_kinds = bus::connection_kinds(self.tree.as_ref(), kinds);
        let checker = Checker {
            root: &self.root,
            files: &self.files,
            compiler: &memo,
            scope: &scope,
            connections: &connection_kinds,
            problems: &self.problems,
        };
        let mut connections = Connections::new();
        if let Some(tree) = &self.tree {
            bus::check(tree, extra, &self.bus, &checker);
            connections = bus::connections(tree, kinds, &self.bus, &checker);
        }
        let reader = Reader {
            root: &self.root,
            mode: self.mode,
            lookup: self.lookup,
            problems: &self.problems,
        };
        let mut drafts = Vec::with_capacity(self.routes.len());
        // One after the other, so that no two trees are in memory at once.
        for path in &self.routes {
            let Some(node) = self.files.read(path, &reader) else {
                continue;
            };
            let shop = route::Shop {
                kinds,
                bus: &self.bus,
                connections: &connections,
                checker: Checker {
                    root: &self.root,
                    files: &self.files,
                    compiler: &memo,
                    scope: &scope,
                    connections: &connection_kinds,
                    problems: &self.problems,
                },
                lenient: self.mode == Mode::Check,
            };
            drafts.extend(shop.route(path, &node));
            if !self.problems.are_of(path) {
                self.files.forget(path);
            }
        }
        let (healths, brokers) = seen_as(kinds, &connections);
        rules::across(&drafts, &brokers, &self.problems);
        circles::check(&drafts, &self.problems);
        if self.routes.is_empty() && self.root.is_dir() {
            self.problems.warning(
                &Place::file(Path::new("routes")),
                "no-routes",
                "there is no route",
                "write one into routes/NAME.yaml",
            );
        }
        let complete = drafts.iter().all(|draft| draft.route.is_some())
            && !self
                .tree
                .as_ref()
                .is_some_and(|tree| self.files.has_unknown(tree));
        let plan = (complete && !self.problems.has_errors()).then(|| {
            let mut plan = route::plan(drafts, &self.bus);
            (plan.connections, plan.brokers) = (healths, brokers);
            plan
        });
        let mut problems = self.problems.into_sorted();
        let tables = tables::ALL.iter().copied().chain([extra]);
        let names = hidden::Names::new(tables.chain(kinds.iter().flat_map(|kind| {
            [
                kind.receiver.as_ref().map(|receiver| receiver.fields),
                kind.sender.as_ref().map(|sender| sender.fields),
                kind.connection.as_ref().map(|connection| connection.fields),
            ]
            .into_iter()
            .flatten()
        })));
        let text_of = |file: &Path| self.files.text(&self.root, file);
        self.files.judged.hide(&mut problems, text_of, &names);
        problems.dedup_by(|a, b| a.place == b.place && a.code == b.code && a.message == b.message);
        let loaded = plan.map(|plan| Loaded {
            plan,
            bus: self.bus,
            connections,
        });
        (loaded, problems)
    }
}

/// The connections by name, as something of which the core knows what to do with it.
type By<T> = BTreeMap<Arc<str>, Arc<T>>;

/// The connections that can keep lanes, by name.
pub(crate) type Brokers = By<dyn LaneBroker>;

/// The connections that tell how they are doing, and those that can keep lanes.
fn seen_as(kinds: &[Kind], connections: &Connections) -> (By<dyn ConnectionHealth>, Brokers) {
    let (mut healths, mut brokers) = (BTreeMap::new(), BTreeMap::new());
    for (name, (kind, connection)) in connections {
        let kind = kinds.iter().find(|known| known.name == *kind);
        let Some(kind) = kind.and_then(|kind| kind.connection.as_ref()) else {
            continue;
        };
        if let Some(health) = kind.health.and_then(|health| health(connection)) {
            healths.insert(Arc::from(name.as_str()), health);
        }
        if let Some(broker) = kind.lanes.and_then(|lanes| lanes(connection)) {
            brokers.insert(Arc::from(name.as_str()), broker);
        }
    }
    (healths, brokers)
}

/// Whether there is an error among problems.
pub fn has_errors(problems: &[Problem]) -> bool {
    problems
        .iter()
        .any(|problem| problem.severity == Severity::Error)
}
