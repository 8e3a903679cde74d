//! What the core asks of transformations. The languages themselves live in xbus-transform.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{Fault, Message};

/// What a transformation or an expression may look back at.
#[derive(Clone)]
pub struct Context {
    /// The route's name.
    pub route: Arc<str>,
    /// The message as it was received.
    pub received: Arc<Message>,
    /// The responses of the `invoke` steps so far, in order.
    pub responses: Vec<(Arc<str>, Arc<Message>)>,
    /// In a `compensate` step: what the step that is undone had answered.
    pub response: Option<Arc<Message>>,
}

impl Context {
    /// The context at the start of a route, or of a queued message that stands alone.
    pub fn new(route: Arc<str>, received: Arc<Message>) -> Self {
        Self {
            route,
            received,
            responses: Vec::new(),
            response: None,
        }
    }
}

/// Makes one message from another. Uses the CPU only: no I/O, no waiting; runs within limits of
/// time, memory and depth, whatever the message holds.
pub trait Transform: Send + Sync {
    /// The new message. Keeps id and correlation. A fault names file, line, column and quotes the
    /// line in its detail; its code is `client` where what was received cannot be parsed or the
    /// script said `fail("client", …)`, `destination` where a response cannot be parsed, else
    /// `transform`.
    fn apply(&self, message: &Arc<Message>, context: &Context) -> Result<Message, Fault>;

    /// The steps whose responses it reads by name.
    fn asks(&self) -> &[Asked] {
        &[]
    }

    /// Whether the next run is likely to take long, as earlier ones did. Asked before each.
    fn is_long(&self) -> bool {
        false
    }
}

/// A step whose response a text reads by its name.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The step's name.
    pub step: String,
    /// 1-based line.
    pub line: usize,
    /// 1-based column in characters.
    pub column: usize,
}

/// A value that an expression gave.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `()`: nothing matched, a missing header.
    Unit,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number with a fraction.
    Float(f64),
    /// Text.
    Text(String),
}

impl Value {
    /// The text form: what `{{ }}` inserts. Nothing is the empty text.
    pub fn into_text(self) -> String {
        match self {
            Value::Unit => String::new(),
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => float_text(value),
            Value::Text(value) => value,
        }
    }
}

/// A number as XPath 1.0 writes it (section 4.2): `NaN`, `Infinity`, no zero below zero, no exponent, no
/// point when it is whole.
pub fn float_text(number: f64) -> String {
    if number.is_infinite() {
        let text = if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        };
        text.to_owned()
    } else if number == 0.0 {
        "0".to_owned()
    } else {
        // The shortest digits that read back.
        number.to_string()
    }
}

/// A compiled expression.
pub trait Expression: Send + Sync {
    /// Its value for `message`. Maps, arrays and nodes are given as their text. A fault says which
    /// expression failed and why.
    fn evaluate(&self, message: &Arc<Message>, context: &Context) -> Result<Value, Fault>;

    /// The steps whose responses it reads by name.
    fn asks(&self) -> &[Asked] {
        &[]
    }
}

/// Says whether messages are as was agreed: by a schema, or by the description of a service. Uses the
/// CPU only, within limits.
pub trait Rules: Send + Sync {
    /// The error says where the message breaks which rule (line, element, rule), without its values.
    fn check(&self, message: &Message) -> Result<(), String>;

    /// What is said of a message that breaks them, ahead of how: such as `the response` and this.
    fn verdict(&self) -> &'static str {
        "is not as its schema says"
    }

    /// Whether what goes back to `received` is held against them: not where nothing does.
    fn answers(&self, received: &Message) -> bool {
        let _ = received;
        true
    }
}

/// What is held against rules before it goes on.
#[derive(Clone, Default)]
pub struct Checks {
    /// What comes in: of a route the received message, of a step the request that was made.
    pub request: Option<Arc<dyn Rules>>,
    /// What goes back: of a route the reply, of a step the response.
    pub response: Option<Arc<dyn Rules>>,
}

/// What is to be said of a schema, in the file that it is about.
#[derive(Clone, Debug)]
pub struct SchemaProblem {
    /// Whether it cannot be used; else it is a warning.
    pub error: bool,
    /// The file, below `transforms/`.
    pub file: PathBuf,
    /// 1-based line.
    pub line: usize,
    /// 1-based column, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: String,
}

/// Why a script or expression does not compile, placed within its own text.
#[derive(Clone, Debug)]
pub struct CompileError {
    /// What is wrong.
    pub message: String,
    /// 1-based line within the text.
    pub line: usize,
    /// 1-based column within the line, in characters.
    pub column: usize,
    /// How to mend it.
    pub help: Option<String>,
}

/// What compiled texts of one route share.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// XML prefixes, from xbus.yaml and the route.
    pub namespaces: BTreeMap<String, String>,
}

/// One step of a transformation, as written.
pub enum Source<'a> {
    /// A file in the installation's `transforms/` folder, by its path below it.
    File(&'a Path),
    /// `convert: { from, to }`.
    Convert {
        /// Format of what comes in; nothing: as the message says.
        from: Option<crate::Format>,
        /// Format to make.
        to: crate::Format,
    },
    /// Text is written in the charset that a content type names.
    Written(&'a str),
}

/// Compiles the texts of routes once, at load.
pub trait Compiler: Send + Sync {
    /// A transformation. A missing file or an unknown extension is an error at line 1.
    fn transform(
        &self,
        source: Source<'_>,
        scope: &Scope,
    ) -> Result<Arc<dyn Transform>, CompileError>;

    /// An expression.
    fn expression(&self, text: &str, scope: &Scope) -> Result<Arc<dyn Expression>, CompileError>;

    /// An XML Schema, or the schemas of a WSDL, by its path below `transforms/`. The rules are there
    /// when no problem is an error.
    fn schema(&self, file: &Path) -> (Option<Arc<dyn Rules>>, Vec<SchemaProblem>) {
        let problem = SchemaProblem {
            error: true,
            file: file.to_owned(),
            line: 1,
            column: 1,
            message: "schemas cannot be read here".into(),
            help: String::new(),
        };
        (None, vec![problem])
    }
}
