//! The sender: one file a message, written durably and all at once.

use std::path::{Component, PathBuf};
use std::sync::Arc;

use xbus_charset::Writing;
use xbus_core::adapter::{Call, Reach, Request, Stage};
use xbus_core::spec::{Args, Field, Type};
use xbus_core::template::{Part, Template};
use xbus_core::{Code, Context, Fault, Message, MessageId, Sender};

use crate::names::{TEMPORARY, fitted, safe_piece};
use crate::stage::{self, Append, Exists, StagedFile, Token};

/// What can stand under `file` in a target.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("dir", Type::Path, "The folder; made when it is missing.").required(),
    Field::new(
        "name",
        Type::Template,
        "The file's name beneath `dir`. Folders can be written (`2026/{{ id }}.xml`); what an \
         expression gives is one piece of a name: separators become `_`, control characters and \
         leading dots go, and a name of more than 255 bytes is cut and gets a checksum.",
    )
    .required(),
    Field::new(
        "exists",
        Type::Choice(&["fail", "replace", "append", "number"]),
        "What to do when the name is taken: reject the message, replace the file, append to it \
         (which cannot be taken back), or write `NAME-1.ext`, `NAME-2.ext`, …",
    )
    .default("fail"),
    Field::new(
        "charset",
        xbus_charset::TYPE,
        "Writes the text in this charset (IANA label), and XML declarations to match. Left out: \
         the bytes as they are.",
    ),
    Field::new(
        "mode",
        Type::Text,
        "Permissions in octal, such as `0640`. Left out: as the process's umask says.",
    ),
];

/// One folder to write to.
pub(crate) struct FileSender {
    dir: PathBuf,
    name: Template,
    exists: Exists,
    charset: Option<Writing>,
    mode: Option<u32>,
    target: Arc<str>,
    owner: String,
    /// How many folders beneath `dir` the name leads.
    depth: usize,
}

/// Builds a sender from what the target says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn xbus_core::Sender>> {
    let problems = args.build.problems;
    let mut good = true;
    let mut wrong = |name: &str, code, message: String, help: &str| {
        good = false;
        problems.error(&args.place(name), code, message, help);
    };
    let name = args.template("name");
    if let Some(name) = &name {
        let outline = outline(name);
        if !xbus_core::spec::stays_beneath(&outline)
            || outline
                .components()
                .any(|part| part == Component::ParentDir)
        {
            wrong(
                "name",
                "bad-name",
                String::from("'name' leads out of 'dir'"),
                "write a name beneath 'dir', without '..'",
            );
        } else if outline.components().any(|part| {
            part.as_os_str()
                .as_encoded_bytes()
                .starts_with(TEMPORARY.as_bytes())
        }) {
            wrong(
                "name",
                "bad-name",
                format!("names that begin with '{TEMPORARY}' are the bus's own"),
                "choose another name",
            );
        }
    }
    let charset = Writing::read(args, "charset");
    let mode = args.text("mode").map(|text| {
        u32::from_str_radix(text.trim_start_matches("0o"), 8)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .ok_or(text)
    });
    let mode = match mode.transpose() {
        Ok(mode) => mode,
        Err(text) => {
            wrong(
                "mode",
                "bad-value",
                format!("'{text}' is no mode"),
                "write permissions in octal, such as '0640'",
            );
            None
        }
    };
    let exists = match args.text("exists").as_deref() {
        Some("replace") => Exists::Replace,
        Some("append") => Exists::Append,
        Some("number") => Exists::Number,
        _ => Exists::Fail,
    };
    let name = name?;
    let build = args.build;
    let sender = FileSender {
        dir: args.path("dir")?,
        owner: stage::owner(&build.bus, &build.node, &build.route, &build.step),
        depth: outline(&name).components().count().saturating_sub(1),
        name,
        exists,
        charset: charset?,
        mode,
        target: args.build.step.clone(),
    };
    good.then(|| Arc::new(sender) as Arc<dyn xbus_core::Sender>)
}

/// The name with `x` for each expression: where its folders lead.
fn outline(name: &Template) -> PathBuf {
    PathBuf::from(with(name, "x"))
}

/// The name with `value` for each expression.
fn with(name: &Template, value: &str) -> String {
    let parts = name.parts().iter().map(|part| match part {
        Part::Text(text) => text.as_str(),
        Part::Expression(_) => value,
    });
    parts.collect()
}

/// What an expression may give, as different as a pattern that takes all of them must be wide.
const GIVEN_SAMPLES: &[&str] = &["x", "7", "Order-2026_11 A", "b.c"];

/// Stands before what an expression gave while the name is put together.
const GIVEN: char = '\u{1}';

impl FileSender {
    /// The folders beneath `dir`, and the name.
    fn path(
        &self,
        message: &Arc<Message>,
        context: &Context,
    ) -> Result<(Vec<String>, String), Fault> {
        let text = self.name.render_with(message, context, |value| {
            Ok(format!("{GIVEN}{}", safe_piece(&value)))
        })?;
        beneath(&text)
            .ok_or_else(|| Fault::new(Code::Transform, "the message gives no usable file name"))
    }
}

/// The folders and the name that a name with all its values means; nothing when it is unusable.
fn beneath(text: &str) -> Option<(Vec<String>, String)> {
    let mut parts: Vec<String> = text
        .split('/')
        .map(piece)
        .filter(|part| !part.is_empty() && part != ".")
        .collect();
    let whole = !text.ends_with('/');
    let name = parts.pop().filter(|name| {
        whole && !name.is_empty() && name != ".." && !parts.iter().any(|part| part == "..")
    })?;
    Some((parts, fitted(&name, 0)))
}

/// One name of a path: leading dots go when they come from the message.
fn piece(part: &str) -> String {
    let given = part.starts_with(GIVEN);
    let plain: String = part.chars().filter(|c| *c != GIVEN).collect();
    if given {
        fitted(plain.trim_start_matches('.'), 0)
    } else {
        fitted(&plain, 0)
    }
}

impl Sender for FileSender {
    fn reach(&self) -> Reach {
        match self.exists {
            Exists::Append => Reach::OneShot,
            _ => Reach::Staged,
        }
    }

    fn make(&self, message: Arc<Message>, context: &Context) -> Result<Request, Fault> {
        let (folders, name) = self.path(&message, context)?;
        let body = match &self.charset {
            Some(charset) => charset.apply(&message)?.body.bytes().clone(),
            None => message.body.bytes().clone(),
        };
        if self.exists == Exists::Append {
            let call: Box<dyn Call> = Box::new(Append {
                dir: self.dir.clone(),
                folders,
                name,
                mode: self.mode,
                body,
                message,
            });
            return Ok(Request::Call(call));
        }
        let token = Token {
            dir: self.dir.clone(),
            folders,
            name,
            exists: self.exists,
            mode: self.mode,
            id: message.id.to_string(),
            target: self.target.to_string(),
            owner: self.owner.clone(),
        };
        Ok(Request::Stage(Box::new(StagedFile::new(token, Some(body)))))
    }

    fn writes(&self) -> Vec<PathBuf> {
        let path = |value: &&str| {
            let (folders, name) = beneath(&with(&self.name, &format!("{GIVEN}{value}")))?;
            let folder = folders
                .iter()
                .fold(self.dir.clone(), |dir, folder| dir.join(folder));
            Some(folder.join(name))
        };
        GIVEN_SAMPLES.iter().filter_map(path).collect()
    }

    fn resume(&self, token: &[u8]) -> Option<Box<dyn Stage>> {
        let token = serde_json::from_slice(token).ok()?;
        Some(Box::new(StagedFile::resumed(token)))
    }

    fn sweep(&self, keep: &(dyn Fn(MessageId) -> bool + Sync)) {
        stage::sweep(&self.dir, self.depth, &self.owner, keep);
    }
}

#[cfg(test)]
mod tests {
    use xbus_core::transform::{Expression, Value};

    use super::*;

    struct Gives(&'static str);

    impl Expression for Gives {
        fn evaluate(&self, _: &Arc<Message>, _: &Context) -> Result<Value, Fault> {
            Ok(Value::Text(self.0.to_owned()))
        }
    }

    /// The path that a name of `text`, with `{}` for what the message gives, leads to.
    fn path(text: &'static str, given: &'static str) -> Result<String, String> {
        let scalar = xbus_core::spec::Scalar {
            text: text.replace("{}", "{{ x }}"),
            literal: Vec::new(),
            secret: false,
        };
        struct Fixed(&'static str);
        impl xbus_core::Compiler for Fixed {
            fn transform(
                &self,
                _: xbus_core::transform::Source<'_>,
                _: &xbus_core::transform::Scope,
            ) -> Result<Arc<dyn xbus_core::Transform>, xbus_core::transform::CompileError>
            {
                unreachable!()
            }
            fn expression(
                &self,
                _: &str,
                _: &xbus_core::transform::Scope,
            ) -> Result<Arc<dyn Expression>, xbus_core::transform::CompileError> {
                Ok(Arc::new(Gives(self.0)))
            }
        }
        let problems = xbus_core::Problems::new();
        let build = xbus_core::spec::Build {
            route: Arc::from("r"),
            step: Arc::from("t"),
            role: xbus_core::spec::Role::Target,
            bus: Arc::from("b"),
            node: Arc::from("n"),
            root: std::path::Path::new("/"),
            compiler: &Fixed(given),
            scope: &Default::default(),
            connections: &Default::default(),
            timeout: std::time::Duration::from_secs(1),
            max_body: 1000,
            problems: &problems,
        };
        let place = xbus_core::problem::Place::file(std::path::Path::new("x.yaml"));
        let sender = FileSender {
            dir: PathBuf::from("/out"),
            name: Template::parse(&scalar, &place, &build).unwrap(),
            exists: Exists::Fail,
            charset: None,
            mode: None,
            owner: String::new(),
            depth: 0,
            target: Arc::from("t"),
        };
        let message = Arc::new(Message::new("x"));
        let context = Context::new(Arc::from("r"), message.clone());
        let (mut folders, name) = sender
            .path(&message, &context)
            .map_err(|fault| fault.reason)?;
        folders.push(name);
        Ok(folders.join("/"))
    }

    #[test]
    fn what_a_message_gives_is_one_name_beneath_the_folder() {
        for (text, given, expected) in [
            ("{}.xml", "order 7", "order 7.xml"),
            ("{}", "../../etc/passwd", "_.._etc_passwd"),
            ("{}/x", "..", "x"),
            ("a/{}", "/etc/shadow", "a/_etc_shadow"),
            ("{}", ".xbus-sly", "xbus-sly"),
            ("{}{}", "..", "..".trim_start_matches('.')),
            (".keep/{}", "\r\n\0x", ".keep/x"),
            ("x{}", "..", "x.."),
        ] {
            let got = path(text, given);
            if expected.is_empty() {
                assert!(got.is_err(), "{text} with {given}: {got:?}");
            } else {
                assert_eq!(got.as_deref(), Ok(expected), "{text} with {given}");
            }
        }
        let long = path("{}.xml", Box::leak("ä".repeat(400).into_boxed_str())).unwrap();
        assert!(long.len() <= 255 && long.ends_with(".xml"));
        assert!(path("{}", "").is_err());
    }
}
