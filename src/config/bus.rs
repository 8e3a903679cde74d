//! What xbus.yaml says, with a default for everything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use xbus_core::plan::Payloads;
use xbus_core::problem::{Place, suggest};
use xbus_core::spec::{Args, Build, Connection, Field, Node, Role, Secret};
use xbus_core::transform::{CompileError, Scope, Source};
use xbus_core::{Compiler, Expression, Kind, Problems, Transform};

use crate::check::Checker;
use crate::tables::{ADMIN, BUS, DEFAULTS, JOURNAL, LOG};

/// Settings of the bus. What does not fit its type is reported when the plan is made and counts as
/// not written here.
#[derive(Clone, Debug)]
pub struct BusConfig {
    /// `name`; else the folder's.
    pub name: Arc<str>,
    /// `node`; else the host's name.
    pub node: Arc<str>,
    /// `store`: where the bus keeps its data; the installation folder is already put before it.
    pub store: PathBuf,
    /// `workers`; else as many as cores that the process may use.
    pub workers: usize,
    /// `admin`.
    pub admin: Admin,
    /// `queues.connection`: the broker that keeps the queues of async targets; nothing for the
    /// embedded store.
    pub queues: Option<String>,
    /// `journal`.
    pub journal: Journal,
    /// `defaults.timeout`.
    pub timeout: Duration,
    /// `defaults.max_body`, in bytes.
    pub max_body: u64,
    /// `namespaces`.
    pub namespaces: BTreeMap<String, String>,
    /// `log.format` is `json`.
    pub log_json: bool,
    /// `log.level`: error, warn, info, debug or trace.
    pub log_level: String,
}

/// `admin` of xbus.yaml.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Address and port.
    pub listen: String,
    /// Nothing when it was left out or empty.
    pub token: Option<Secret>,
}

/// `journal` of xbus.yaml.
#[derive(Clone, Copy, Debug)]
pub struct Journal {
    /// Whose payloads are kept.
    pub payloads: Payloads,
    /// For how long.
    pub keep: Duration,
    /// In bytes.
    pub max_size: u64,
}

/// Connections by name, each with its kind's name, as [`Build`] has them.
pub type Connections = BTreeMap<String, (&'static str, Connection)>;

/// Nothing in xbus.yaml is compiled while it is read.
struct NoCompiler;

impl Compiler for NoCompiler {
    fn transform(&self, _: Source<'_>, _: &Scope) -> Result<Arc<dyn Transform>, CompileError> {
        Err(not_here())
    }

    fn expression(&self, _: &str, _: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        Err(not_here())
    }
}

fn not_here() -> CompileError {
    CompileError {
        message: String::from("expressions cannot stand in xbus.yaml"),
        line: 1,
        column: 1,
        help: None,
    }
}

/// Calls `read` with what the root of xbus.yaml holds for `fields`.
pub(crate) fn with_args<T>(
    root: &Path,
    tree: Option<&Node>,
    problems: &Problems,
    fields: &'static [Field],
    read: impl FnOnce(Args<'_>) -> T,
) -> T {
    let nothing: Arc<str> = Arc::from("");
    let (scope, connections) = (Scope::default(), BTreeMap::new());
    read(Args::new(
        tree,
        fields,
        &Build {
            route: nothing.clone(),
            step: nothing.clone(),
            role: Role::Other,
            bus: nothing.clone(),
            node: nothing,
            root,
            compiler: &NoCompiler,
            scope: &scope,
            connections: &connections,
            timeout: Duration::from_secs(30),
            max_body: 10 * 1024 * 1024,
            problems,
        },
    ))
}

impl BusConfig {
    pub(crate) fn read(root: &Path, tree: Option<&Node>, problems: &Problems) -> Self {
        with_args(root, tree, problems, BUS, |args| {
            Self::from_args(root, &args)
        })
    }

    fn from_args(root: &Path, args: &Args<'_>) -> Self {
        let admin = args.object("admin", ADMIN);
        let journal = args.object("journal", JOURNAL);
        let defaults = args.object("defaults", DEFAULTS);
        let log = args.object("log", LOG);
        let seconds = Duration::from_secs;
        Self {
            name: args
                .text("name")
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| folder_name(root))
                .into(),
            node: args
                .text("node")
                .filter(|name| !name.is_empty())
                .unwrap_or_else(host_name)
                .into(),
            store: args.path("store").unwrap_or_else(|| root.join("data")),
            workers: args
                .count("workers")
                .map_or_else(usual_workers, |workers| workers as usize),
            admin: Admin {
                listen: admin.text("listen").unwrap_or_default(),
                token: admin.secret("token").filter(|token| !token.0.is_empty()),
            },
            queues: args
                .node("queues")
                .and_then(|queues| Some(queues.get("connection")?.text()?.to_owned())),
            journal: Journal {
                payloads: match journal.text("payloads").as_deref() {
                    Some("none") => Payloads::None,
                    Some("all") => Payloads::All,
                    _ => Payloads::Failed,
                },
                keep: journal.duration("keep").unwrap_or(seconds(30 * 86_400)),
                max_size: journal.size("max_size").unwrap_or(10 << 30),
            },
            timeout: defaults.duration("timeout").unwrap_or(seconds(30)),
            max_body: defaults.size("max_body").unwrap_or(10 << 20),
            namespaces: texts(args.entries("namespaces")),
            log_json: log.text("format").as_deref() == Some("json"),
            log_level: log.text("level").unwrap_or_else(|| String::from("info")),
        }
    }
}

/// The entries of a map of texts.
pub(crate) fn texts(entries: &[(xbus_core::spec::Key, Node)]) -> BTreeMap<String, String> {
    entries
        .iter()
        .filter_map(|(key, value)| Some((key.name.clone(), value.text()?.to_owned())))
        .collect()
}

fn folder_name(root: &Path) -> String {
    root.canonicalize()
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| String::from("xbus"))
}

/// What was measured with fewer stands in docs/decisions/0002-runtime-shape.md. The number of cores counts affinity
/// and a container's quota.
fn usual_workers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn host_name() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// The kinds of the connections that xbus.yaml defines, by name; unknown kinds are left out.
pub(crate) fn connection_kinds(
    tree: Option<&Node>,
    kinds: &[Kind],
) -> BTreeMap<String, &'static str> {
    let Some(connections) = tree.and_then(|tree| tree.get("connections")) else {
        return BTreeMap::new();
    };
    connections
        .entries()
        .iter()
        .filter_map(|(name, node)| {
            let (kind, _) = node.entries().first()?;
            let kind = kinds
                .iter()
                .find(|known| known.name == kind.name && known.connection.is_some())?;
            Some((name.name.clone(), kind.name))
        })
        .collect()
}

/// Checks xbus.yaml against its tables.
pub(crate) fn check(tree: &Node, extra: &'static [Field], bus: &BusConfig, checker: &Checker<'_>) {
    checker.fields(tree, &[BUS, extra], "xbus.yaml");
    let problems = checker.problems;
    let admin = |key: &str| tree.get("admin").and_then(|admin| admin.get(key));
    // A token whose variable or file is not there was written nevertheless; that it is not there
    // was said.
    let token_unknown = admin("token").is_some_and(|token| checker.files.is_unknown(token));
    if let Some(listen) = admin("listen")
        && !checker.files.is_unknown(listen)
        && listen.text().is_some()
    {
        match bus.admin.listen.parse::<std::net::SocketAddr>() {
            Err(_) => problems.error(
                &listen.place,
                "bad-address",
                "'listen' needs an address and a port",
                "write 127.0.0.1:9090, or 0.0.0.0:9090 for every interface",
            ),
            Ok(address)
                if !address.ip().is_loopback() && bus.admin.token.is_none() && !token_unknown =>
            {
                problems.error(
                    &listen.place,
                    "admin-without-token",
                    "the admin listener can be reached from outside and has no token",
                    "set admin.token, or listen on 127.0.0.1",
                );
            }
            Ok(_) => {}
        }
    }
}

/// Builds the connections; what is wrong is reported.
pub(crate) fn connections(
    tree: &Node,
    kinds: &[Kind],
    bus: &BusConfig,
    checker: &Checker<'_>,
) -> Connections {
    let mut built = Connections::new();
    let Some(node) = tree.get("connections") else {
        return built;
    };
    let nothing: Arc<str> = Arc::from("");
    let none = Connections::new();
    let build = |name: &str| Build {
        route: nothing.clone(),
        step: Arc::from(name),
        role: Role::Other,
        bus: bus.name.clone(),
        node: bus.node.clone(),
        root: checker.root,
        compiler: checker.compiler,
        scope: checker.scope,
        connections: &none,
        timeout: bus.timeout,
        max_body: bus.max_body,
        problems: checker.problems,
    };
    for (name, node) in node.entries() {
        if checker.files.is_unknown(node) {
            continue;
        }
        let Some((kind, value)) = kind_of(&name.name, &name.place, node, kinds, checker) else {
            continue;
        };
        let Some(connection) = &kind.connection else {
            continue;
        };
        let well = checker.fields(value, &[connection.fields], &format!("'{}'", kind.name));
        let build = build(&name.name);
        if well
            && !checker.files.has_unknown(value)
            && let Some(made) =
                (connection.build)(Args::new(Some(value), connection.fields, &build))
        {
            built.insert(name.name.clone(), (kind.name, made));
        }
    }
    built
}

/// The one kind of a connection.
fn kind_of<'k, 'n>(
    name: &str,
    place: &Place,
    node: &'n Node,
    kinds: &'k [Kind],
    checker: &Checker<'_>,
) -> Option<(&'k Kind, &'n Node)> {
    let known: Vec<&str> = kinds
        .iter()
        .filter(|kind| kind.connection.is_some())
        .map(|kind| kind.name)
        .collect();
    match node.entries() {
        [(key, value)] => {
            let found = kinds
                .iter()
                .find(|kind| kind.name == key.name && kind.connection.is_some());
            if found.is_none() {
                checker.problems.error(
                    &key.place,
                    "unknown-connection-kind",
                    format!("there is no kind of connection '{}'", key.name),
                    suggest(&key.name, known),
                );
            }
            found.map(|kind| (kind, value))
        }
        _ => {
            checker.problems.error(
                place,
                "wrong-type",
                format!("the connection '{name}' needs exactly one kind"),
                format!(
                    "write {name}: {{ KIND: {{ … }} }} with one of: {}",
                    known.join(", ")
                ),
            );
            None
        }
    }
}
