//! The attachments of messages in scripts: `attachments`, `received.attachments` and the like are arrays of handles,
//! so that a script that only looks at names copies no octets. A script's own may be maps until it ends.

use std::sync::{Arc, OnceLock};

use rhai::{Array, Dynamic, INT, ImmutableString, Map};
use xbus_core::{Attachment, Attachments, Message};

use super::call::{Call, current};
use super::error::ScriptError;
use super::functions::R;
use super::octets::Octets;
use super::output::Made;
use super::reading;
use super::values::{JsonObject, List, MessageHandle, Node, copy, described, from_json};

/// Most attachments of a message that a script makes.
const MOST: usize = 1_000;
/// Longest name, content type or content id in bytes.
const LONGEST: usize = 255;

/// An attachment; a message of its own for what reads it.
#[derive(Clone)]
pub(crate) struct Part(Arc<Known>);

struct Known {
    attachment: Attachment,
    message: OnceLock<Arc<Message>>,
}

impl Part {
    fn new(attachment: Attachment) -> Self {
        Self(Arc::new(Known {
            attachment,
            message: OnceLock::new(),
        }))
    }

    pub(crate) fn attachment(&self) -> &Attachment {
        &self.0.attachment
    }

    fn handle(&self) -> Result<MessageHandle, ScriptError> {
        let call = current()?;
        let message = self.0.message.get_or_init(|| {
            let attachment = &self.0.attachment;
            let mut message = Message {
                id: call.message.id,
                correlation_id: None,
                received_at: call.message.received_at,
                headers: xbus_core::Headers::new(),
                body: attachment.body.clone().into(),
                attachments: Attachments::default(),
                format: attachment.format(),
            };
            if let Some(content_type) = &attachment.content_type {
                message.headers.set("content-type", content_type);
            }
            Arc::new(message)
        });
        Ok(MessageHandle(message.clone()))
    }
}

/// The attachments of a message as an array, whose items a script can change in place.
pub(crate) fn list(attachments: &Attachments) -> Array {
    let all = attachments.iter().cloned().map(Part::new);
    all.map(Dynamic::from).collect()
}

/// Whether a script has left `own` as it was.
pub(crate) fn is_same(own: &Array, now: &Dynamic) -> bool {
    let same = |own: &Dynamic, now: &Dynamic| {
        let (own, now) = (own.read_lock::<Part>(), now.read_lock::<Part>());
        own.zip(now)
            .is_some_and(|(own, now)| Arc::ptr_eq(&own.0, &now.0))
    };
    now.read_lock::<Array>().is_some_and(|now| {
        let mut pairs = own.iter().zip(now.iter());
        own.len() == now.len() && pairs.all(|(own, now)| same(own, now))
    })
}

/// The attachments that a script's list stands for.
pub(crate) fn collect(call: &Call, value: &Dynamic) -> Result<Attachments, ScriptError> {
    let items: Array = if let Some(array) = value.read_lock::<Array>() {
        bounded(array.len())?;
        array.clone()
    } else if let Some(list) = value.read_lock::<List>() {
        bounded(list.len())?;
        list.clone().iter().collect()
    } else {
        return Err(ScriptError::text(format!(
            "attachments are a list, not {}: attachments = [ #{{ name: \"a.xml\", body: … }} ], or [] for none",
            described(value)
        )));
    };
    let limit = call
        .shared
        .limits
        .output_size
        .max(call.message.attachments.size());
    let mut size = 0usize;
    let mut all = Vec::with_capacity(items.len());
    for (at, item) in items.iter().enumerate() {
        let one = attachment(call, item)
            .map_err(|error| ScriptError::text(format!("attachments[{at}]: {error}")))?;
        size = size.saturating_add(one.body.len());
        if size > limit {
            return Err(ScriptError::text(format!(
                "the attachments would be larger than {limit} bytes"
            )));
        }
        all.push(one);
    }
    Ok(all.into())
}

fn bounded(count: usize) -> Result<(), ScriptError> {
    match count > MOST {
        true => Err(ScriptError::text(format!(
            "{count} attachments: a message has {MOST} at the most"
        ))),
        false => Ok(()),
    }
}

/// One attachment: a handle, or a map with its members.
fn attachment(call: &Call, value: &Dynamic) -> Result<Attachment, ScriptError> {
    if let Some(part) = value.read_lock::<Part>() {
        return Ok(part.attachment().clone());
    }
    let value = match value.is::<JsonObject>() {
        true => copy(value)?,
        false => value.clone(),
    };
    let Some(map) = value.read_lock::<Map>() else {
        return Err(ScriptError::text(format!(
            "an attachment is a map with name, content_type, content_id and body, not {}",
            described(&value)
        )));
    };
    let (made, body) = members(&map, Attachment::default())?;
    let body = body.ok_or_else(|| ScriptError::text("it has no body"))?;
    completed(call, made, Some(body))
}

/// What a map says in place of what `made` has, and the value of its body.
fn members(map: &Map, mut made: Attachment) -> Result<(Attachment, Option<&Dynamic>), ScriptError> {
    for (key, value) in map {
        match key.as_str() {
            "name" => made.name = named(value)?,
            "content_type" => made.content_type = typed(value)?,
            "content_id" => made.content_id = identified(value)?,
            "body" => {}
            other => {
                return Err(ScriptError::text(format!(
                    "an attachment has no member '{other}': name, content_type, content_id, body"
                )));
            }
        }
    }
    Ok((made, map.get("body")))
}

/// The attachment with a body, and the content type of that where it has none.
fn completed(
    call: &Call,
    mut made: Attachment,
    body: Option<&Dynamic>,
) -> Result<Attachment, ScriptError> {
    let Some(body) = body else {
        return Ok(made);
    };
    let label = made.content_type.as_deref().and_then(xbus_charset::label);
    let content = Made::of(call, body, label.unwrap_or("utf-8"))?;
    // What the script may keep in many places.
    Octets::count(call, content.bytes.len())?;
    made.body = content.bytes;
    let media_type = || Arc::from(content.format.media_type());
    let own = content.content_type.unwrap_or_else(media_type);
    made.content_type.get_or_insert(own);
    Ok(made)
}

/// A text of a member, or nothing for `()`.
fn text(value: &Dynamic, what: &str) -> Result<Option<ImmutableString>, ScriptError> {
    if value.is_unit() {
        return Ok(None);
    }
    let text = reading::plain_text(value)?;
    if text.len() > LONGEST {
        return Err(ScriptError::text(format!(
            "{what} is longer than {LONGEST} bytes"
        )));
    }
    if text.chars().any(char::is_control) {
        return Err(ScriptError::text(format!(
            "{what} holds a line break or another control character"
        )));
    }
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn named(value: &Dynamic) -> Result<Option<Arc<str>>, ScriptError> {
    let Some(name) = text(value, "name")? else {
        return Ok(None);
    };
    if name.contains(['/', '\\']) || matches!(name.as_str(), "." | "..") {
        return Err(ScriptError::text(
            "name is a file's name alone, without a path",
        ));
    }
    Ok(Some(Arc::from(name.as_str())))
}

/// A media type (RFC 2045 section 5.1), roughly: that nothing else can stand in its place.
fn typed(value: &Dynamic) -> Result<Option<Arc<str>>, ScriptError> {
    let Some(text) = text(value, "content_type")? else {
        return Ok(None);
    };
    let token = |word: &str| {
        let special = |c: char| "()<>@,;:\\\"/[]?=".contains(c);
        !word.is_empty() && word.chars().all(|c| c.is_ascii_graphic() && !special(c))
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    let good = essence
        .split_once('/')
        .is_some_and(|(kind, subtype)| token(kind) && token(subtype));
    if !good || !text.is_ascii() {
        return Err(ScriptError::text(format!(
            "'{text}' is no content type, such as application/pdf"
        )));
    }
    Ok(Some(Arc::from(text.as_str())))
}

/// What `cid:` URLs name (RFC 2392), without angle brackets.
fn identified(value: &Dynamic) -> Result<Option<Arc<str>>, ScriptError> {
    let Some(id) = text(value, "content_id")? else {
        return Ok(None);
    };
    if id.contains(['<', '>']) || !id.chars().all(|c| c.is_ascii_graphic()) {
        return Err(ScriptError::text(
            "content_id is ASCII without spaces and angle brackets",
        ));
    }
    Ok(Some(Arc::from(id.as_str())))
}

fn member(value: &Option<Arc<str>>) -> Dynamic {
    value
        .as_deref()
        .map_or(Dynamic::UNIT, |text| ImmutableString::from(text).into())
}

pub(super) fn register(engine: &mut rhai::Engine) {
    engine
        .register_type_with_name::<Part>("attachment")
        .register_get("name", |p: &mut Part| member(&p.attachment().name))
        .register_get("content_type", |p: &mut Part| {
            member(&p.attachment().content_type)
        })
        .register_get("content_id", |p: &mut Part| {
            member(&p.attachment().content_id)
        })
        .register_get("body", |p: &mut Part| Octets::shared(&p.attachment().body))
        .register_get("size", |p: &mut Part| p.attachment().body.len() as INT)
        // No setters: rhai would call them after each look at what they set.
        .register_fn("changed", |p: &mut Part, map: Map| -> R<Part> {
            let call = current()?;
            let (made, body) = members(&map, p.attachment().clone())?;
            Ok(Part::new(completed(&call, made, body)?))
        });
    readers(engine);
}

/// What reads an attachment as a message's body is read.
fn readers(engine: &mut rhai::Engine) {
    engine
        .register_fn("text", |p: &mut Part| -> R<ImmutableString> {
            Ok(current()?.text(&p.handle()?.0)?)
        })
        .register_fn("xml", |p: Part| -> R<Node> {
            Ok(reading::root(&p.handle()?)?)
        })
        .register_fn("json", |p: Part| -> R<Dynamic> {
            Ok(from_json(&current()?.json(&p.handle()?.0)?))
        })
        .register_fn("csv", |p: Part| -> R<List> {
            Ok(List::rows(current()?.csv(&p.handle()?.0)?, false))
        })
        .register_fn("xpath", |p: &mut Part, e: &str| -> R<Dynamic> {
            Ok(reading::xpath(&p.handle()?, e, None)?)
        })
        .register_fn("xpath", |p: &mut Part, e: &str, ns: Map| -> R<Dynamic> {
            Ok(reading::xpath(&p.handle()?, e, Some(&ns))?)
        })
        .register_fn("xpath_all", |p: &mut Part, e: &str| -> R<List> {
            let compiled = reading::compiled(e, None)?;
            Ok(reading::root(&p.handle()?)?.xpath_all(&compiled)?)
        })
        .register_fn("jsonpath", |p: &mut Part, e: &str| -> R<Dynamic> {
            Ok(reading::jsonpath(&p.handle()?, e)?)
        })
        .register_fn("jsonpath_all", |p: &mut Part, e: &str| -> R<List> {
            Ok(reading::jsonpath_all(&p.handle()?, e)?)
        });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use xbus_core::transform::Value;
    use xbus_core::{Attachment, Code, Context, Message};

    use super::super::tests::{Bench, message, text_of};
    use crate::Limits;

    fn part(name: Option<&str>, content_type: Option<&str>, body: &'static [u8]) -> Attachment {
        Attachment {
            name: name.map(Arc::from),
            content_type: content_type.map(Arc::from),
            content_id: None,
            body: bytes::Bytes::from_static(body),
        }
    }

    fn carrying() -> Message {
        let mut carrying = message("text/plain", "see below");
        carrying.attachments = vec![
            part(
                Some("o.xml"),
                Some("application/octet-stream"),
                b"<o><n>7</n></o>",
            ),
            part(
                Some("r.csv"),
                Some("text/csv; charset=iso-8859-1"),
                b"a,b\r\n1,\xe4\r\n",
            ),
            Attachment {
                content_id: Some("logo@x".into()),
                ..part(None, Some("image/png"), &[0x89; 5000])
            },
        ]
        .into();
        carrying
    }

    fn told(script: &str) -> String {
        text_of(
            &Bench::new()
                .script(script, carrying())
                .unwrap_or_else(|f| panic!("{script}: {f}")),
        )
    }

    fn made(script: &str) -> Vec<Attachment> {
        let made = Bench::new().script(script, carrying());
        made.unwrap_or_else(|f| panic!("{script}: {f}"))
            .attachments
            .to_vec()
    }

    fn fault(script: &str) -> (Code, String) {
        match Bench::new().script(script, carrying()) {
            Ok(made) => panic!("{script}: {made:?}"),
            Err(fault) => (fault.code, fault.for_admin().into_owned()),
        }
    }

    #[test]
    fn expressions_and_scripts_read_them() {
        let bench = Bench::new();
        for (text, expected) in [
            ("attachments.len() > 0", Value::Bool(true)),
            ("attachments.len", Value::Int(3)),
            ("attachments[0].name", Value::Text("o.xml".into())),
            ("attachments[0].content_id", Value::Unit),
            ("attachments[2].name", Value::Unit),
            ("attachments[-1].content_id", Value::Text("logo@x".into())),
            ("attachments[2].size", Value::Int(5000)),
            ("attachments[0].xpath(\"number(//n)\")", Value::Float(7.0)),
            ("attachments[0].xpath_all(\"//n\").len", Value::Int(1)),
            (
                "xml(attachments[0]).xpath(\"//n\")",
                Value::Text("7".into()),
            ),
            (
                "xml(attachments[0].body).xpath(\"//n\")",
                Value::Text("7".into()),
            ),
            ("csv(attachments[1])[0].b", Value::Text("ä".into())),
            ("attachments[1].text().len()", Value::Int(10)),
            (
                "decode(attachments[1].body, \"iso-8859-1\").len()",
                Value::Int(10),
            ),
            ("attachments[2].body.len()", Value::Int(5000)),
            ("attachments[2].body[-1]", Value::Int(0x89)),
            (
                "attachments.find(|a| a.name == \"r.csv\").size",
                Value::Int(10),
            ),
            ("received.attachments[0].name", Value::Text("o.xml".into())),
            (
                "base64(attachments[0].body)",
                Value::Text("PG8+PG4+NzwvbT4=".replace("bT4=", "bj48L28+")),
            ),
        ] {
            let value = bench
                .expression(text, carrying())
                .unwrap_or_else(|fault| panic!("{text}: {fault}"));
            assert_eq!(value, expected, "{text}");
        }
        assert_eq!(
            told("let s = \"\"; for a in attachments { s += `${a.name ?? \"-\"} `; } s"),
            "o.xml r.csv - "
        );
        assert_eq!(told("attachments.filter(|a| a.size > 100).len"), "1");
        assert_eq!(told("fn first() { attachments[0].name } first()"), "o.xml");
        // A variable may hold more than an array's limit.
        assert_eq!(
            told("let b = attachments[2].body; let m = #{ body: b }; m.body.len"),
            "5000"
        );
    }

    #[test]
    fn untouched_they_stay_and_shared_octets_are_not_copied() {
        let before = carrying().attachments.to_vec();
        for script in [
            "body",
            "\"new\"",
            "attachments[0].name",
            "let a = attachments; a.clear(); body",
            "fn f(l) { l.clear(); } f(attachments); body",
        ] {
            assert_eq!(made(script), before, "{script}");
        }
        for script in [
            "attachments = attachments; body",
            "attachments = attachments.filter(|a| true); body",
            "attachments[2] = attachments[2].changed(#{ name: \"x\" }); attachments[2] = attachments[2].changed(#{ name: () }); body",
            "let a = attachments[2]; attachments.remove(2); attachments.push(#{ body: a.body, content_type: a.content_type, content_id: a.content_id }); body",
        ] {
            let after = made(script);
            assert_eq!(after, before, "{script}");
            assert_eq!(after[2].body.as_ptr(), before[2].body.as_ptr(), "{script}");
        }
    }

    #[test]
    fn scripts_set_add_rename_and_remove_them() {
        let names = |script: &str| -> Vec<String> {
            let all = made(script);
            all.iter()
                .map(|one| one.name.as_deref().unwrap_or("-").to_owned())
                .collect()
        };
        assert_eq!(names("attachments = []; body"), [""; 0]);
        assert_eq!(names("attachments.clear(); body"), [""; 0]);
        assert_eq!(names("attachments.remove(1); body"), ["o.xml", "-"]);
        assert_eq!(
            names("attachments.remove(9); attachments.remove(-1); body"),
            ["o.xml", "r.csv"]
        );
        assert_eq!(
            names("attachments[0] = attachments[0].changed(#{ name: \"p.xml\" }); body"),
            ["p.xml", "r.csv", "-"]
        );
        assert_eq!(
            names("attachments = attachments.filter(|a| a.name != ()); body"),
            ["o.xml", "r.csv"]
        );
        assert_eq!(
            names("attachments.push(#{ name: \"n.txt\", body: \"n\" }); body"),
            ["o.xml", "r.csv", "-", "n.txt"]
        );
        assert_eq!(
            names(
                "attachments = [ #{ name: \"a\", body: \"x\" } ]; attachments += #{ name: \"b\", body: \"y\" }; body"
            ),
            ["a", "b"]
        );
        let all = made(
            "attachments = [
                #{ name: \"ä.txt\", body: \"grün\" },
                #{ body: \"grün\", content_type: \"text/plain; charset=iso-8859-1\" },
                #{ body: element(\"a\", \"ü\") },
                #{ body: #{ a: 1 } },
                #{ body: csv([[1, 2]]) },
                #{ body: base64_decode(\"AAEC\") },
                #{ body: blob(2, 7), content_id: \"x@y\" },
                #{ body: body },
                #{ body: received },
                received.attachments[1],
                #{ body: attachments[0], name: \"c\" },
            ]; \"\"",
        );
        let shown: Vec<(&str, &[u8])> = all
            .iter()
            .map(|one| (one.content_type.as_deref().unwrap_or("-"), &one.body[..]))
            .collect();
        let xml: &[u8] = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<a>ü</a>".as_bytes();
        for (at, (content_type, body)) in [
            ("text/plain; charset=utf-8", "grün".as_bytes()),
            ("text/plain; charset=iso-8859-1", b"gr\xfcn"),
            ("application/xml; charset=utf-8", xml),
            ("application/json", b"{\"a\":1}"),
            ("text/csv; charset=utf-8", b"1,2\r\n"),
            ("application/octet-stream", &[0, 1, 2]),
            ("application/octet-stream", &[7, 7]),
            ("text/plain", b"see below"),
            ("text/plain", b"see below"),
            ("text/csv; charset=iso-8859-1", b"a,b\r\n1,\xe4\r\n"),
            ("application/octet-stream", b"<o><n>7</n></o>"),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(shown[at].0, content_type, "{at}");
            let same =
                shown[at].1 == body || (at == 2 && shown[at].1.ends_with("<a>ü</a>".as_bytes()));
            assert!(same, "{at}: {:?}", String::from_utf8_lossy(shown[at].1));
        }
        assert_eq!(all[0].name.as_deref(), Some("ä.txt"));
        assert_eq!(all[6].content_id.as_deref(), Some("x@y"));
    }

    #[test]
    fn one_can_become_the_body_and_whole_messages_bring_theirs() {
        let made = Bench::new().script("attachments[0]", carrying()).unwrap();
        assert_eq!(text_of(&made), "<o><n>7</n></o>");
        assert_eq!(made.content_type(), Some("application/octet-stream"));
        assert_eq!(made.format(), Some(xbus_core::Format::Xml));
        assert_eq!(made.attachments.len(), 3);

        let bench = Bench::new();
        let received = Arc::new(carrying());
        let mut context = Context::new("r".into(), received.clone());
        let mut answer = message("text/xml", "<a/>");
        answer.attachments = vec![part(Some("x"), None, b"x")].into();
        context.responses.push(("s".into(), Arc::new(answer)));
        let now = Arc::new(message("text/plain", "now"));
        let of = |script: &str| {
            let made = bench.script_in(script, &now, &context);
            made.unwrap_or_else(|f| panic!("{script}: {f}"))
                .attachments
                .len()
        };
        assert_eq!(of("body"), 0);
        assert_eq!(of("received"), 3);
        assert_eq!(of("responses.s"), 1);
        assert_eq!(
            of(
                "attachments = [attachments, responses.s.attachments[0]].filter(|a| type_of(a) != \"array\"); received"
            ),
            1
        );
        assert_eq!(
            of(
                "attachments = received.attachments; attachments.append(responses.s.attachments); body"
            ),
            4
        );
    }

    #[test]
    fn what_is_no_attachment_is_told_with_its_place() {
        for (script, part) in [
            (
                "attachments = 7; body",
                "attachments are a list, not a number",
            ),
            (
                "attachments = #{ name: \"a\", body: \"x\" }; body",
                "attachments are a list, not a map",
            ),
            (
                "attachments.push(7); body",
                "attachments[3]: an attachment is a map",
            ),
            (
                "attachments = [#{ name: \"a\" }]; body",
                "attachments[0]: it has no body",
            ),
            (
                "attachments = [#{ nam: \"a\", body: \"x\" }]; body",
                "no member 'nam'",
            ),
            (
                "attachments = [#{ name: \"a/b\", body: \"x\" }]; body",
                "without a path",
            ),
            (
                "attachments = [#{ name: \"..\", body: \"x\" }]; body",
                "without a path",
            ),
            (
                "attachments[0].changed(#{ name: \"a\\\\b\" }); body",
                "t.rhai:1:",
            ),
            (
                "attachments[0].changed(#{ name: \"a\\r\\nX: y\" }); body",
                "control character",
            ),
            (
                "attachments[0].changed(#{ content_type: \"text/xml\\nX: y\" }); body",
                "control character",
            ),
            (
                "attachments[0].changed(#{ content_type: \"xml\" }); body",
                "no content type",
            ),
            (
                "attachments[0].changed(#{ content_id: \"a b\" }); body",
                "content_id",
            ),
            ("attachments = [#{ body: () }]; body", "() has no content"),
            ("attachments[7]", "7 out of bounds"),
            (
                "fn f() { attachments.push(attachments[0]); } f(); body",
                "constant",
            ),
            (
                "#{ a: attachments[0] }",
                "an attachment cannot become JSON: name what",
            ),
            ("attachments[0].nam", "nam"),
        ] {
            let (code, detail) = fault(script);
            assert_eq!(code, Code::Transform, "{script}: {detail}");
            assert!(detail.contains(part), "{script}: {detail}");
            assert!(detail.contains("t.rhai:1"), "{script}: {detail}");
        }
        let (code, detail) = fault("xml(attachments[1].body)");
        assert_eq!(code, Code::Client, "{detail}");
        let (code, detail) = fault("attachments[1].xpath(\"//a\")");
        assert_eq!(code, Code::Client, "{detail}");
        for (script, part, help) in [
            ("let attachments = []; body", "would hide", "attachments = "),
            ("atachments.len", "no variable 'atachments'", "attachments"),
        ] {
            let refused = Bench::new().refused(script);
            assert!(
                refused.0.contains(part) && refused.3.contains(help),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn limits_hold() {
        let small = Limits {
            output_size: 20_000,
            ..Limits::default()
        };
        for script in [
            "attachments.append(attachments); attachments.append(attachments); attachments.append(attachments); body",
            "let b = attachments[2].body; for i in 0..10 { attachments[0].changed(#{ body: b }); } body",
            "let s = base64(attachments[2].body); for i in 0..10 { base64_decode(s); } body",
            "let s = base64(attachments[2].body); let l = list(); loop { l.push(encode(s, \"utf-8\")); }",
            "loop { attachments.append(attachments); }",
            "loop { attachments.push(attachments); }",
            "let a = []; loop { a.push(encode(\"0123456789\", \"utf-8\")); }",
        ] {
            let made = Bench::with(small.clone()).script(script, carrying());
            let fault = made.expect_err(script);
            assert!(
                fault.for_admin().contains("larger than"),
                "{script}: {fault}"
            );
        }
        let many = "for i in 0..999 { attachments.push(attachments[0]); } body";
        let (_, detail) = fault(many);
        assert!(detail.contains("Size of array"), "{detail}");
        // What came larger than a script could make it stays.
        let tiny = Limits {
            output_size: 100,
            ..Limits::default()
        };
        let made = Bench::with(tiny)
            .script("attachments.remove(0); body", carrying())
            .unwrap();
        assert_eq!(made.attachments.len(), 2);
    }
}
