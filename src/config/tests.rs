//! Folders with one mistake or many, read with kinds and a compiler of the tests' own.

mod bus;
mod circles;
mod environment;
mod grammar;
mod hidden;
mod robust;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use xbus_core::adapter::{
    ConnectionKind, OpenError, Reach, ReceiverKind, Request, SenderKind, Stop,
};
use xbus_core::problem::Problem;
use xbus_core::spec::{Field, Type};
use xbus_core::transform::{CompileError, Scope, Source, Value};
use xbus_core::{
    Compiler, Context, Expression, Fault, Inbox, Kind, Message, Receiver, Sender, Transform,
};

use crate::{Installation, Loaded, Mode};

/// An installation folder that goes with the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            folder.write(path, text);
        }
        folder
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn load(&self, mode: Mode) -> (Option<Loaded>, Vec<Problem>) {
        let lookup = |name: &str| match name {
            "COUNT" => Some(String::from("7")),
            "EMPTY" => Some(String::new()),
            "PASSWORD" => Some(String::from("hunter2")),
            "ODD" => Some(String::from("a: {{ b }} \"'\n#")),
            _ => None,
        };
        Installation::read_with(self.root(), mode, &lookup).plan(&kinds(), EXTRA, &Fake)
    }

    /// The problems as `severity code file:line:column message | help`.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.load(Mode::Run).1.iter().map(line).collect()
    }
}

pub(crate) fn line(problem: &Problem) -> String {
    format!(
        "{} {} {} {} | {}",
        problem.severity.name(),
        problem.code,
        problem.place,
        problem.message,
        problem.help.as_deref().unwrap_or("-"),
    )
}

/// A folder with one route that is well apart from what `text` makes of it.
pub(crate) fn problems_of_route(text: &str) -> Vec<String> {
    Folder::new(&[
        ("routes/r.yaml", text),
        ("transforms/good.rhai", "body"),
        ("transforms/bad.rhai", "let x =\n  BAD;"),
    ])
    .problems()
}

pub(crate) static EXTRA: &[Field] = &[Field::new(
    "http",
    Type::Object(&[
        Field::new("listen", Type::Text, "Address.").default("127.0.0.1:8080"),
        Field::new(
            "tls",
            Type::Object(&[Field::new("cert", Type::File, "")]),
            "",
        ),
    ]),
    "Listener.",
)];

struct Door {
    claim: Option<String>,
    watched: Option<PathBuf>,
}

impl Receiver for Door {
    fn claim(&self) -> Option<String> {
        self.claim.clone()
    }

    fn takes(&self, file: &Path) -> bool {
        self.watched.is_some() && file.parent() == self.watched.as_deref()
    }

    fn open(
        self: Arc<Self>,
        _: Inbox,
        _: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        unreachable!("nothing runs here")
    }
}

struct Out {
    reach: Reach,
    file: Option<PathBuf>,
}

impl Sender for Out {
    fn reach(&self) -> Reach {
        self.reach
    }

    fn writes(&self) -> Vec<PathBuf> {
        self.file.iter().cloned().collect()
    }

    fn make(&self, _: Arc<Message>, _: &Context) -> Result<Request, Fault> {
        unreachable!("nothing runs here")
    }
}

struct Same;

impl Transform for Same {
    fn apply(&self, message: &Arc<Message>, _: &Context) -> Result<Message, Fault> {
        Ok((**message).clone())
    }
}

impl Expression for Same {
    fn evaluate(&self, _: &Arc<Message>, _: &Context) -> Result<Value, Fault> {
        Ok(Value::Unit)
    }
}

/// Finds the word `BAD` wherever it stands.
pub(crate) struct Fake;

impl Fake {
    fn look(text: &str) -> Result<(), CompileError> {
        let Some(at) = text.find("BAD") else {
            return Ok(());
        };
        let before = &text[..at];
        Err(CompileError {
            message: String::from("BAD is bad"),
            line: before.matches('\n').count() + 1,
            column: before.rsplit('\n').next().unwrap().chars().count() + 1,
            help: Some(String::from("write GOOD")),
        })
    }
}

impl Compiler for Fake {
    fn transform(&self, source: Source<'_>, _: &Scope) -> Result<Arc<dyn Transform>, CompileError> {
        match source {
            // The tests that have scripts have these two.
            Source::File(path) if path.ends_with("bad.rhai") => {
                Self::look("let x =\n  BAD;")?;
            }
            _ => {}
        }
        Ok(Arc::new(Same))
    }

    fn expression(&self, text: &str, _: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        Self::look(text)?;
        Ok(Arc::new(Same))
    }
}

static HTTP_IN: &[Field] = &[
    Field::new("path", Type::Text, "Where.").required(),
    Field::new(
        "methods",
        Type::OneOrMany(&Type::Choice(&["GET", "POST"])),
        "Which.",
    )
    .default("POST"),
    Field::new("max_body", Type::Size, "Largest body."),
    Field::new("wsdl", Type::Asset, "Served."),
];
static HTTP_OUT: &[Field] = &[
    Field::new("url", Type::Template, "Where.").required(),
    Field::new("password", Type::Secret, "Hidden."),
    Field::new("follow", Type::Bool, "Redirects.").default("false"),
    Field::new("port", Type::Count(1, 65535), "Port."),
    Field::new("ca", Type::File, "Authorities."),
    Field::new(
        "headers",
        Type::Either(&[Type::List(&Type::Text), Type::Map(&Type::Template)]),
        "Sent.",
    ),
];
static FILE_IN: &[Field] = &[
    Field::new("dir", Type::Path, "Watched.").required(),
    Field::new("order", Type::Choice(&["name", "mtime"]), "Order."),
];
static FILE_OUT: &[Field] = &[
    Field::new("dir", Type::Path, "Where.").required(),
    Field::new("name", Type::Template, "Name.").default("{{ id }}"),
];
static QUEUE: &[Field] = &[Field::new("name", Type::Text, "Which.").required()];
static MAIL: &[Field] = &[
    Field::new("connection", Type::Connection(&["smtp"]), "Server.").required(),
    Field::new("to", Type::OneOrMany(&Type::Template), "Whom.").required(),
];
static SMTP: &[Field] = &[
    Field::new("host", Type::Text, "Server.").required(),
    Field::new("password", Type::Secret, "Hidden."),
];
static SCHEDULE: &[Field] = &[Field::new("every", Type::Duration, "How often.").required()];

fn sender(fields: &'static [Field], reach: Reach, answers: bool) -> Option<SenderKind> {
    Some(SenderKind {
        fields,
        example: "",
        answers,
        build: Box::new(move |args| {
            for field in fields {
                if matches!(field.kind, Type::Template) {
                    args.template(field.name);
                }
            }
            let dir = fields.iter().find(|field| field.name == "dir");
            let file = dir.and_then(|dir| Some(args.path(dir.name)?.join("name")));
            Some(Arc::new(Out { reach, file }))
        }),
    })
}

fn receiver(
    fields: &'static [Field],
    answers: bool,
    claim: fn(String) -> String,
) -> Option<ReceiverKind> {
    let first = fields[0].name;
    Some(ReceiverKind {
        fields,
        example: "",
        answers,
        in_turn: false,
        build: Box::new(move |args| {
            Some(Arc::new(Door {
                claim: args.text(first).map(claim),
                watched: (first == "dir").then(|| args.path(first)).flatten(),
            }))
        }),
    })
}

/// Kinds like those of the real adapters.
pub(crate) fn kinds() -> Vec<Kind> {
    let kind = |name, receiver, sender| Kind {
        name,
        doc: "A kind.",
        receiver,
        sender,
        connection: None,
    };
    vec![
        kind(
            "http",
            receiver(HTTP_IN, true, |path| format!("POST {path}")),
            sender(HTTP_OUT, Reach::OneShot, true),
        ),
        kind(
            "file",
            receiver(FILE_IN, false, |dir| format!("files in {dir}")),
            sender(FILE_OUT, Reach::Staged, false),
        ),
        kind(
            "queue",
            receiver(QUEUE, false, |name| format!("queue {name}")),
            sender(QUEUE, Reach::Queue, false),
        ),
        kind("mail", None, sender(MAIL, Reach::OneShot, false)),
        kind(
            "schedule",
            receiver(SCHEDULE, false, |every| format!("every {every}")),
            None,
        ),
        Kind {
            name: "smtp",
            doc: "A mail server.",
            receiver: None,
            sender: None,
            connection: Some(ConnectionKind {
                fields: SMTP,
                example: "",
                build: Box::new(|args| Some(Arc::new(args.text("host")))),
                lanes: None,
                health: None,
            }),
        },
    ]
}
