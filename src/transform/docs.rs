//! Runs every example of docs/transformations.md and docs/cookbook.md.
//!
//! A fenced block's first word is its language, the second its part: `input` is the message's body
//! (its type follows from the language), `attachment:NAME` goes with it, `received` and `response:NAME` go into the context,
//! `file:NAME` into transforms/, `rhai` is run, `output` is what it must have made, `fault` the code
//! and reason it must have failed with, and in `rhai expression` each line ends in `// value`.
//! Blocks other than rhai last until the next heading.

use std::path::PathBuf;
use std::sync::Arc;

use xbus_core::{Attachment, Compiler, Context, Fault, Message};

use crate::script::tests::{Bench, message};

fn content_type(language: &str) -> &'static str {
    match language {
        "xml" => "application/xml",
        "json" => "application/json",
        "csv" => "text/csv",
        "form" => "application/x-www-form-urlencoded",
        _ => "text/plain",
    }
}

/// The last newline of a block belongs to the fence.
fn body(language: &str, lines: &[&str]) -> Message {
    let separator = if language == "csv" { "\r\n" } else { "\n" };
    let mut text = lines.join(separator);
    if language == "csv" {
        text.push_str(separator);
    }
    let mut made = message(content_type(language), text);
    made.headers.set("country", "DE");
    made
}

fn run(name: &str) -> usize {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let bench = Bench::new();
    let fresh = || {
        let input = Arc::new(body("text", &["hello"]));
        (input.clone(), Context::new("example".into(), input))
    };
    let (mut input, mut context) = fresh();
    let mut made: Option<Result<Message, Fault>> = None;
    let mut examples = 0;
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let place = format!("{name}:{}", number + 1);
        if line.starts_with('#') {
            (input, context) = fresh();
            continue;
        }
        let Some(info) = line.strip_prefix("```").filter(|info| !info.is_empty()) else {
            assert!(
                !line.starts_with("```"),
                "{place}: a block without a language"
            );
            continue;
        };
        let block: Vec<&str> = lines
            .by_ref()
            .map(|(_, line)| line)
            .take_while(|line| !line.starts_with("```"))
            .collect();
        let (language, part) = info.split_once(' ').unwrap_or((info, ""));
        match (language, part) {
            ("rhai", "") => {
                if let Some(Err(fault)) = &made {
                    panic!("before {place}: {fault}");
                }
                made = Some(bench.script_in(&block.join("\n"), &input, &context));
                examples += 1;
            }
            ("rhai", "expression") => {
                for line in block {
                    let (expression, wanted) = line.rsplit_once("//").expect(line);
                    let value = bench
                        .engine
                        .expression(expression.trim(), &bench.scope)
                        .unwrap_or_else(|error| panic!("{place}: {expression}: {error:?}"))
                        .evaluate(&input, &context)
                        .unwrap_or_else(|fault| panic!("{place}: {fault}"));
                    let shown = match value {
                        xbus_core::transform::Value::Unit => "()".to_owned(),
                        // Lists and maps are given as their JSON.
                        xbus_core::transform::Value::Text(text)
                            if wanted.trim_start().starts_with(['[', '{']) =>
                        {
                            text
                        }
                        xbus_core::transform::Value::Text(text) => format!("\"{text}\""),
                        other => other.into_text(),
                    };
                    assert_eq!(shown, wanted.trim(), "{place}: {expression}");
                    examples += 1;
                }
            }
            (language, "input") => {
                input = Arc::new(body(language, &block));
                if context.responses.is_empty() {
                    context = Context::new("example".into(), input.clone());
                }
            }
            (language, "received") => context.received = Arc::new(body(language, &block)),
            (_, part) if part.starts_with("attachment:") => {
                let mut carrying = Message::clone(&input);
                let mut all = carrying.attachments.to_vec();
                all.push(Attachment {
                    name: Some(part.trim_start_matches("attachment:").into()),
                    body: (block.join("\n") + "\n").into(),
                    ..Attachment::default()
                });
                carrying.attachments = all.into();
                input = Arc::new(carrying);
                context = Context::new("example".into(), input.clone());
            }
            (language, part) if part.starts_with("response:") => {
                let step = part.trim_start_matches("response:");
                let response = Arc::new(body(language, &block));
                context.response = Some(response.clone());
                context.responses.push((step.into(), response.clone()));
                input = response;
            }
            (_, part) if part.starts_with("file:") => {
                bench.file(part.trim_start_matches("file:"), &(block.join("\n") + "\n"));
            }
            ("fault", "") => match made.take() {
                Some(Err(fault)) => assert_eq!(
                    format!("{}: {}", fault.code.name(), fault.reason),
                    block.join("\n"),
                    "{place}"
                ),
                other => panic!("{place}: no fault but {other:?}"),
            },
            (language, "output") => {
                let made = match made.take() {
                    Some(Ok(made)) => made,
                    Some(Err(fault)) => panic!("{place}: {fault}"),
                    None => panic!("{place}: an output without a script"),
                };
                let text = String::from_utf8_lossy(made.body.bytes()).replace("\r\n", "\n");
                assert_eq!(text.trim_end(), block.join("\n").trim_end(), "{place}");
                if language != "text" {
                    assert_eq!(
                        made.content_type()
                            .map(|t| t.split(';').next().unwrap_or_default()),
                        Some(content_type(language)),
                        "{place}"
                    );
                }
            }
            ("yaml" | "sh" | "text", "") => {}
            other => panic!("{place}: {other:?} is no kind of block"),
        }
    }
    if let Some(Err(fault)) = &made {
        panic!("{name}: {fault}");
    }
    examples
}

#[test]
fn the_reference_is_true() {
    assert!(run("transformations.md") > 60);
}

#[test]
fn the_cookbook_works() {
    assert!(run("cookbook.md") >= 10);
}
