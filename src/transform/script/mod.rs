//! Scripts and expressions: compiled at load, run with one shared rhai engine and a fresh scope.
//!
//! Absent: `eval`, `sleep`, modules and `import`; nothing a script does reaches a file or the net.

mod attachments;
pub(crate) mod call;
mod check;
mod error;
mod functions;
#[cfg(test)]
mod hostile;
mod lists;
mod memory;
pub(crate) mod names;
mod namespaces;
mod numbers;
mod octets;
mod output;
pub(crate) mod reading;
mod run;
mod simple;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod values;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ahash::AHashMap;
use rhai::Dynamic;
use xbus_core::long::{self, Experience};
use xbus_core::transform::{Asked, Value};
use xbus_core::{Context, Expression, Fault, Message, Transform};

use crate::Limits;
use crate::table::{CsvOptions, Lookup, Table};
use crate::xml::XmlLimits;
use call::Call;
use error::{Origin, ScriptError};
use namespaces::Namespaces;
use run::Runs;
use simple::Simple;

/// What all scripts of an engine share.
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) xml_limits: XmlLimits,
    pub(crate) folder: PathBuf,
    tables: Mutex<AHashMap<String, Arc<Lookup>>>,
}

impl Shared {
    /// The lookup table of that name below `transforms/`, read once.
    pub(crate) fn table(&self, name: &str) -> Result<Arc<Lookup>, ScriptError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(name) {
            return Ok(table.clone());
        }
        let wrong = |what: String| ScriptError::text(format!("table \"{name}\": {what}"));
        let path = std::path::Path::new(name);
        if path
            .components()
            .any(|part| !matches!(part, std::path::Component::Normal(_)))
        {
            return Err(wrong("a table lies within transforms/".into()));
        }
        let bytes = std::fs::read(self.folder.join(path)).map_err(|error| {
            wrong(match error.kind() {
                std::io::ErrorKind::NotFound => format!("there is no file transforms/{name}"),
                _ => error.to_string(),
            })
        })?;
        let text = xbus_charset::decode(&bytes, None, false).map_err(|e| wrong(e.into()))?;
        let first = text.lines().next().unwrap_or_default();
        let options = CsvOptions {
            separator: if first.contains(';') && !first.contains(',') {
                b';'
            } else {
                b','
            },
            ..CsvOptions::default()
        };
        let table = Arc::new(Lookup::new(Table::parse(&text, &options).map_err(wrong)?));
        tables.insert(name.to_owned(), table.clone());
        Ok(table)
    }
}

/// Compiles and runs what routes say in rhai.
pub(crate) struct Scripts {
    engine: Arc<rhai::Engine>,
    functions: check::Functions,
    shared: Arc<Shared>,
}

impl Scripts {
    pub(crate) fn new(folder: PathBuf, limits: Limits) -> Self {
        let engine = functions::engine(&limits);
        let known = check::Functions::of(&engine);
        Self {
            engine: Arc::new(engine),
            functions: known,
            shared: Arc::new(Shared {
                xml_limits: (&limits).into(),
                limits,
                folder,
                tables: Mutex::default(),
            }),
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn compile(
        &self,
        file: Option<String>,
        text: &str,
        prefixes: &BTreeMap<String, String>,
    ) -> Result<Program, xbus_core::transform::CompileError> {
        let ast = if file.is_some() {
            self.engine.compile(text)
        } else {
            self.engine.compile_expression(text)
        };
        let ast = ast.map_err(|error| check::explain(&error, text))?;
        let mut namespaces = Namespaces::new(prefixes.clone());
        let asks = check::check(&ast, text, &self.functions, &self.shared, &mut namespaces)?;
        let result = ast
            .statements()
            .last()
            .map_or(rhai::Position::NONE, |last| last.position());
        Ok(Program {
            engine: self.engine.clone(),
            runs: Runs::of(&ast),
            shared: self.shared.clone(),
            namespaces: Arc::new(namespaces),
            sets_headers: file.is_some() && text.contains("headers"),
            sets_attachments: file.is_some() && text.contains("attachments"),
            experience: Arc::default(),
            asks,
            origin: Origin {
                file,
                text: text.to_owned(),
                result,
            },
        })
    }

    pub(crate) fn script(
        &self,
        file: String,
        text: &str,
        prefixes: &BTreeMap<String, String>,
    ) -> Result<Arc<dyn Transform>, xbus_core::transform::CompileError> {
        Ok(Arc::new(Script(self.compile(
            Some(file),
            text,
            prefixes,
        )?)))
    }

    pub(crate) fn expression(
        &self,
        text: &str,
        prefixes: &BTreeMap<String, String>,
    ) -> Result<Arc<dyn Expression>, xbus_core::transform::CompileError> {
        let program = self.compile(None, text, prefixes)?;
        let simple = Simple::of(program.runs.statements(), &program.namespaces);
        Ok(Arc::new(Formula { program, simple }))
    }
}

/// A compiled text.
struct Program {
    engine: Arc<rhai::Engine>,
    runs: Runs,
    shared: Arc<Shared>,
    namespaces: Arc<Namespaces>,
    origin: Origin,
    sets_headers: bool,
    sets_attachments: bool,
    /// What its runs took lately.
    experience: Arc<Experience>,
    asks: Vec<Asked>,
}

impl Program {
    fn call(&self, message: &Arc<Message>, context: &Context) -> Rc<Call> {
        let started = Instant::now();
        Rc::new(Call {
            started,
            leaves_after: Cell::new(long::UNEXPECTED),
            experience: self.experience.clone(),
            message: message.clone(),
            context: context.clone(),
            shared: self.shared.clone(),
            namespaces: self.namespaces.clone(),
            deadline: started + self.shared.limits.deadline,
            headers: RefCell::new(None),
            typed: Cell::new(false),
            made: RefCell::new(Vec::new()),
            header_bytes: Cell::new(0),
            made_octets: Cell::new(0),
        })
    }

    /// The value of the last statement, and `attachments` where the program has changed it.
    fn run(&self, message: &Message) -> Result<(Dynamic, Option<Dynamic>), Fault> {
        memory::begin();
        let mut scope = rhai::Scope::new();
        if self.sets_headers {
            // The other names are found on demand, but those cannot be assigned to.
            scope.push("headers", values::HeadersHandle(None));
        }
        let own = self
            .sets_attachments
            .then(|| attachments::list(&message.attachments));
        if let Some(own) = &own {
            scope.push("attachments", own.clone());
        }
        let value = self
            .runs
            .run(&self.engine, &mut scope)
            .map(Dynamic::flatten)
            .map_err(|error| self.origin.fault(&error))?;
        let changed = own.and_then(|own| {
            let now = scope.get("attachments")?;
            (!attachments::is_same(&own, now)).then(|| now.flatten_clone())
        });
        Ok((value, changed))
    }
}

struct Script(Program);

impl Transform for Script {
    fn apply(&self, message: &Arc<Message>, context: &Context) -> Result<Message, Fault> {
        let call = self.0.call(message, context);
        let _guard = call::enter(call.clone());
        let made = self.0.run(message).and_then(|(value, changed)| {
            output::message(&call, value, changed).map_err(|error| self.0.origin.unusable(&error))
        });
        self.0.experience.note(call.started.elapsed());
        made
    }

    fn is_long(&self) -> bool {
        self.0.experience.is_long()
    }

    fn asks(&self) -> &[Asked] {
        &self.0.asks
    }
}

struct Formula {
    program: Program,
    simple: Option<Simple>,
}

impl Expression for Formula {
    fn asks(&self) -> &[Asked] {
        &self.program.asks
    }

    fn evaluate(&self, message: &Arc<Message>, context: &Context) -> Result<Value, Fault> {
        let program = &self.program;
        let limits = &program.shared.xml_limits;
        if let Some(simple) = &self.simple
            && let Some(value) = simple.evaluate(message, &program.namespaces, limits)
        {
            return Ok(value);
        }
        let call = program.call(message, context);
        let _guard = call::enter(call.clone());
        program.experience.run(|| {
            let value = program.run(message).and_then(|(value, _)| {
                output::value(value).map_err(|error| program.origin.unusable(&error))
            });
            program.experience.note(call.started.elapsed());
            value
        })
    }
}
