//! The sender: one mail a message.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, HeaderName};
use tokio::time::Instant;
use xbus_core::adapter::{Call, Reach, Request};
use xbus_core::spec::{Args, Field, Node, Raw, Type};
use xbus_core::template::{Part, Template};
use xbus_core::{Code, Context, Fault, Format, Message, SendError, Sender};

use crate::address::{self, Recipient};
use crate::compose::{Attached, Composed, Draft, message_id};
use crate::connection::{Smtp, host_name, only};
use crate::text;

/// What can stand under `mail` in a target.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "connection",
        Type::Connection(&["smtp"]),
        "The mail server. Left out: the only smtp connection that there is.",
    ),
    Field::new(
        "from",
        Type::Template,
        "The sender's address. Left out: `from` of the connection, else `xbus@` and the machine's name.",
    ),
    Field::new(
        "to",
        Type::OneOrMany(&Type::Template),
        "Recipients. What an expression gives is one address; anything else fails before a mail is sent.",
    )
    .required(),
    Field::new("cc", Type::OneOrMany(&Type::Template), "Recipients of copies."),
    Field::new(
        "bcc",
        Type::OneOrMany(&Type::Template),
        "Recipients that the others do not see.",
    ),
    Field::new("subject", Type::Template, "The subject; one line, in any script."),
    Field::new(
        "body",
        Type::Template,
        "The text. Left out: the message's body where it is text (HTML as such), otherwise the body \
         is attached; nothing where `attach` takes the body.",
    ),
    Field::new(
        "html",
        Type::Template,
        "The text as HTML. Values within it are escaped; a lone `{{ }}` gives the whole document.",
    ),
    Field::new(
        "attach",
        Type::OneOrMany(&Type::Either(&[
            Type::Choice(&["body", "attachments"]),
            Type::Object(ATTACH),
        ])),
        "What is attached, one or a list: `body`, the message's body; `attachments`, all that it carries; \
         `{ name, content_type, body }`. What the HTML shows by its content id (`cid:…`) lies beside it.",
    ),
    Field::new(
        "headers",
        Type::Either(&[Type::List(&Type::Text), Type::Map(&Type::Template)]),
        "Further headers: a list of message headers that are passed on, or a map of names to values.",
    ),
];

/// What can stand in an entry of `attach`.
const ATTACH: &[Field] = &[
    Field::new("name", Type::Template, "The attachment's file name."),
    Field::new("content_type", Type::Template, "Its content type."),
    Field::new(
        "body",
        Type::Template,
        "Its content. Left out: the message's body.",
    ),
];

/// Headers that a route cannot set, because the mail's own parts make them.
const OWN: [&str; 11] = [
    "from",
    "sender",
    "to",
    "cc",
    "bcc",
    "subject",
    "date",
    "message-id",
    "auto-submitted",
    "return-path",
    "received",
];

struct MailSender {
    smtp: Arc<Smtp>,
    from: Recipient,
    to: Vec<Recipient>,
    cc: Vec<Recipient>,
    bcc: Vec<Recipient>,
    subject: Option<Template>,
    body: Option<Template>,
    html: Option<Template>,
    attach: Vec<Attach>,
    headers: Vec<(String, Extra)>,
    bus: Arc<str>,
    target: Arc<str>,
}

/// What is attached.
enum Attach {
    /// The message's body.
    Body,
    /// What the message carries.
    All,
    /// As the route says; without a body the message's.
    Made {
        name: Option<Template>,
        content_type: Option<Template>,
        body: Option<Template>,
    },
}

impl Attach {
    fn takes_body(&self) -> bool {
        matches!(self, Attach::Body | Attach::Made { body: None, .. })
    }
}

/// Where a further header's value comes from.
enum Extra {
    /// The message's header of the same name, where there is one.
    Passed,
    /// A text.
    Text(Template),
}

/// Builds a sender from what the target says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Sender>> {
    let smtp = connection(&args);
    let optional = |name: &str| match args.has(name) {
        true => args.template(name).map(Some),
        false => Some(None),
    };
    let (subject, body, html) = (optional("subject"), optional("body"), optional("html"));
    let (to, cc) = (address::entries(&args, "to"), address::entries(&args, "cc"));
    let bcc = address::entries(&args, "bcc");
    if args.has("to") && args.items("to").is_empty() {
        let help = "write one address or a list of them";
        problem(&args, "to", "bad-address", "'to' names nobody", help);
        return None;
    }
    let attach = attach(&args);
    let headers = headers(&args);
    let smtp = smtp?;
    let from = match address::entries(&args, "from")?.pop() {
        Some(from) => from,
        None => {
            let fallback = smtp.from.clone();
            let text = fallback.unwrap_or_else(|| format!("xbus@{}", host_name()));
            Recipient::Fixed(address::fixed(&text)?)
        }
    };
    if matches!(&from, Recipient::Fixed(all) if all.len() != 1) {
        problem(
            &args,
            "from",
            "bad-address",
            "a mail has one sender",
            "write one address",
        );
        return None;
    }
    Some(Arc::new(MailSender {
        smtp,
        from,
        to: to?,
        cc: cc?,
        bcc: bcc?,
        subject: subject?,
        body: body?,
        html: html?,
        attach: attach?,
        headers: headers?,
        bus: args.build.bus.clone(),
        target: args.build.step.clone(),
    }))
}

fn problem(args: &Args<'_>, name: &str, code: &'static str, message: &str, help: &str) {
    let place = args.place(name);
    args.build.problems.error(&place, code, message, help);
}

fn connection(args: &Args<'_>) -> Option<Arc<Smtp>> {
    if let Some(name) = args.text("connection") {
        return args.build.connection::<Smtp>(&name);
    }
    let (message, help) = match only(args.build) {
        Ok(smtp) => return smtp,
        Err(true) => (
            "there is no mail server to send by",
            "add one to xbus.yaml: connections: { relay: { smtp: { host: mail.acme.example } } }",
        ),
        Err(false) => (
            "there is more than one mail server to send by",
            "say which: connection: NAME",
        ),
    };
    problem(args, "connection", "no-connection", message, help);
    None
}

/// What is attached; nothing when that is wrong, which is reported.
fn attach(args: &Args<'_>) -> Option<Vec<Attach>> {
    let one = |node: &Node| {
        match node.text() {
            Some("attachments") => return Some(Attach::All),
            Some(_) => return Some(Attach::Body),
            None => {}
        }
        let own = Args::new(Some(node), ATTACH, args.build);
        let part = |name: &str| match own.has(name) {
            true => own.template(name).map(Some),
            false => Some(None),
        };
        let kind = part("content_type");
        if let Some(Some(kind)) = &kind
            && let Some(text) = kind.as_constant()
            && ContentType::parse(text).is_err()
        {
            problem(
                &own,
                "content_type",
                "bad-value",
                &format!("'{text}' is no content type"),
                "write one such as application/xml or 'text/plain; charset=utf-8'",
            );
            return None;
        }
        Some(Attach::Made {
            name: part("name")?,
            content_type: kind?,
            body: part("body")?,
        })
    };
    args.items("attach").iter().map(one).collect()
}

/// Further headers; nothing when one is wrong, which is reported.
fn headers(args: &Args<'_>) -> Option<Vec<(String, Extra)>> {
    let Some(node) = args.node("headers") else {
        return Some(Vec::new());
    };
    let mut good = true;
    let mut all = Vec::new();
    let mut add = |name: &str, node: &Node, value: Option<Extra>| {
        let lower = name.to_ascii_lowercase();
        let own = OWN.contains(&lower.as_str())
            || ["content-", "mime-", "resent-"]
                .iter()
                .any(|start| lower.starts_with(start));
        if own || HeaderName::new_from_ascii(name.to_owned()).is_err() {
            good = false;
            args.build.problems.error(
                &node.place,
                "bad-header",
                format!("'{name}' cannot be set as a further header"),
                "choose another name, such as X-Customer",
            );
        }
        match value {
            Some(value) => all.push((name.to_owned(), value)),
            None => good = false,
        }
    };
    match &node.raw {
        Raw::Map(entries) => {
            for (key, value) in entries {
                add(
                    &key.name,
                    value,
                    args.build.template(value).map(Extra::Text),
                );
            }
        }
        _ => {
            for item in node.items() {
                if let Some(name) = item.text() {
                    add(name, item, Some(Extra::Passed));
                }
            }
        }
    }
    good.then_some(all)
}

impl MailSender {
    fn draft(&self, message: &Arc<Message>, context: &Context) -> Result<Draft, Fault> {
        let addresses = |all: &[Recipient]| -> Result<Vec<Mailbox>, Fault> {
            let mut found = Vec::new();
            for one in all {
                found.extend(one.addresses(message, context)?);
            }
            Ok(found)
        };
        let text = |template: &Option<Template>| {
            let rendered = template.as_ref().map(|text| text.render(message, context));
            rendered.transpose()
        };
        let html = self.html.as_ref().map(|html| match html.parts() {
            [Part::Expression(_)] => html.render(message, context),
            _ => html.render_with(message, context, |value| Ok(escaped(&value))),
        });
        let (mut body, mut html) = (text(&self.body)?, html.transpose()?);
        let whole = || Attached {
            name: file_name(message),
            content_type: content_type(message, false),
            content_id: None,
            content: message.body.bytes().clone(),
        };
        let mut attachments = Vec::new();
        for attach in &self.attach {
            match attach {
                Attach::Body => attachments.push(whole()),
                Attach::All => attachments.extend(carried(message)),
                Attach::Made {
                    name,
                    content_type: kind,
                    body,
                } => {
                    let content_type =
                        text(kind)?.unwrap_or_else(|| content_type(message, body.is_some()));
                    attachments.push(Attached {
                        name: text(name)?.unwrap_or_else(|| file_name(message)),
                        content_id: None,
                        content: match text(body)? {
                            Some(text) => in_its_charset(&text, &content_type)?.into(),
                            None => message.body.bytes().clone(),
                        },
                        content_type,
                    });
                }
            }
        }
        if body.is_none() && html.is_none() && !self.attach.iter().any(Attach::takes_body) {
            match text::of(message) {
                Some(text) if text::is_html(message) => html = Some(text),
                Some(text) => body = Some(text),
                None => attachments.push(whole()),
            }
        }
        Ok(Draft {
            from: addresses(std::slice::from_ref(&self.from))?.remove(0),
            to: addresses(&self.to)?,
            cc: addresses(&self.cc)?,
            bcc: addresses(&self.bcc)?,
            subject: text(&self.subject)?.unwrap_or_default(),
            text: body,
            html,
            attachments,
            headers: self.headers(message, context)?,
            message_id: message_id(message.id, &self.target, &self.bus),
            automatic: "auto-generated",
        })
    }

    fn headers(
        &self,
        message: &Arc<Message>,
        context: &Context,
    ) -> Result<Vec<(String, String)>, Fault> {
        let mut headers = vec![
            (String::from("X-Message-Id"), message.id.to_string()),
            (String::from("X-Correlation-Id"), message.correlation()),
            (
                String::from("Idempotency-Key"),
                format!("{}/{}", message.id, self.target),
            ),
        ];
        if let Some(trace) = message.headers.get("traceparent") {
            headers.push((String::from("traceparent"), trace.to_owned()));
        }
        for (name, extra) in &self.headers {
            let value = match extra {
                Extra::Passed => message.headers.get(name).map(str::to_owned),
                Extra::Text(text) => Some(text.render(message, context)?),
            };
            if let Some(value) = value {
                headers.push((name.clone(), value));
            }
        }
        Ok(headers)
    }
}

/// Text as HTML shows it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

/// What the message carries; what has no name is given one, so that it can be kept as a file.
fn carried(message: &Message) -> impl Iterator<Item = Attached> {
    message.attachments.iter().enumerate().map(|(at, one)| {
        let content_type = one.content_type.as_deref();
        let content_type = content_type.unwrap_or(Format::Bytes.media_type());
        let mail = content_type.starts_with("message/rfc822");
        Attached {
            name: match (&one.name, mail) {
                (Some(name), _) => name.to_string(),
                (None, true) => format!("attachment-{}.eml", at + 1),
                (None, false) => format!("attachment-{}", at + 1),
            },
            content_type: content_type.to_owned(),
            content_id: one.content_id.as_deref().map(str::to_owned),
            content: one.body.clone(),
        }
    })
}

/// A text in the charset that its content type names, UTF-8 where it names none.
fn in_its_charset(text: &str, content_type: &str) -> Result<Vec<u8>, Fault> {
    let label = xbus_charset::label(content_type).unwrap_or("utf-8");
    xbus_charset::encode(text, label).map_err(|error| {
        Fault::new(
            Code::Transform,
            "an attachment cannot be written in its charset",
        )
        .detail(error.to_string())
    })
}

/// The name under which the message's body is attached.
pub(crate) fn file_name(message: &Message) -> String {
    if let Some(name) = message.headers.get("file.name") {
        return name.to_owned();
    }
    let extension = match message.format() {
        Some(Format::Xml) => "xml",
        Some(Format::Json) => "json",
        Some(Format::Csv) => "csv",
        Some(Format::Text | Format::Form) => "txt",
        Some(Format::Bytes) | None => "bin",
    };
    format!("message.{extension}")
}

pub(crate) fn content_type(message: &Message, own_text: bool) -> String {
    if own_text {
        return Format::Text.media_type().to_owned();
    }
    match (message.content_type(), message.format()) {
        (Some(content_type), _) => content_type.to_owned(),
        (None, Some(format)) => format.media_type().to_owned(),
        (None, None) => Format::Bytes.media_type().to_owned(),
    }
}

impl Sender for MailSender {
    fn reach(&self) -> Reach {
        Reach::OneShot
    }

    fn make(&self, message: Arc<Message>, context: &Context) -> Result<Request, Fault> {
        let mail = self
            .draft(&message, context)?
            .compose_at(message.received_at)?;
        Ok(Request::Call(Box::new(MailCall {
            smtp: self.smtp.clone(),
            mail,
            message,
        })))
    }
}

/// The response's header that tells of recipients that were refused although others were not, each
/// as `ADDRESS: ANSWER`.
const PARTLY: &str = "xbus.partly-delivered";

/// One mail to one server.
struct MailCall {
    smtp: Arc<Smtp>,
    mail: Composed,
    message: Arc<Message>,
}

impl Call for MailCall {
    fn run(&self, deadline: Instant) -> BoxFuture<'_, Result<Message, SendError>> {
        Box::pin(async move {
            let (envelope, data) = (&self.mail.envelope, &self.mail.data);
            let refused = self.smtp.send(envelope, data, deadline).await?.refused;
            let mut response = self.message.with_body("");
            response.headers.remove(PARTLY);
            if !refused.is_empty() {
                let all: Vec<String> = refused
                    .iter()
                    .map(|one| format!("{}: {}", one.address, one.answer))
                    .collect();
                let all = all.join("; ").replace(['\r', '\n'], " ");
                tracing::warn!(id = %self.message.id, refused = %all, "the mail was sent, but not to all recipients");
                response.headers.set(PARTLY, &all);
            }
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Say, Server};

    fn sender(port: u16) -> MailSender {
        let fixed = |text: &str| Recipient::Fixed(address::fixed(text).unwrap());
        MailSender {
            smtp: Arc::new(crate::connection::to(port)),
            from: fixed("bus@acme.example"),
            to: vec![fixed("desk@acme.example")],
            cc: vec![],
            bcc: vec![],
            subject: Some(Template::constant("Order")),
            body: None,
            html: None,
            attach: vec![],
            headers: vec![(String::from("X-Customer"), Extra::Passed)],
            bus: Arc::from("acme"),
            target: Arc::from("desk"),
        }
    }

    fn mail(sender: &MailSender, content_type: &str, body: &[u8]) -> String {
        let mut message = Message::new(body.to_vec());
        message.headers.set("content-type", content_type);
        message.headers.set("x-customer", "7");
        let message = Arc::new(message);
        let context = Context::new(Arc::from("r"), message.clone());
        let draft = sender.draft(&message, &context).unwrap();
        String::from_utf8(draft.compose().unwrap().data).unwrap()
    }

    #[test]
    fn the_body_is_text_html_or_attached() {
        let sender = sender(1);
        let plain = mail(&sender, "text/plain", b"hello");
        assert!(plain.ends_with("\r\n\r\nhello\r\n"), "{plain}");
        assert!(plain.contains("X-Customer: 7\r\n") && plain.contains("Idempotency-Key: "));
        let html = mail(&sender, "text/html", b"<b>hello</b>");
        assert!(html.contains("Content-Type: text/html"), "{html}");
        let bytes = mail(&sender, "application/pdf", b"%PDF\0\xff");
        assert!(bytes.contains("filename=\"message.bin\""), "{bytes}");
        assert!(bytes.contains("Content-Type: application/pdf"), "{bytes}");
    }

    #[test]
    fn the_body_is_attached_when_asked() {
        let mut sender = sender(1);
        sender.attach = vec![Attach::Body];
        sender.body = Some(Template::constant("see below"));
        let mail = mail(&sender, "application/xml", b"<a/>");
        assert!(
            mail.contains("see below") && mail.contains("filename=\"message.xml\""),
            "{mail}"
        );
    }

    #[test]
    fn a_text_that_is_attached_is_in_the_charset_that_it_names() {
        let attached = |content_type: &'static str, text: &'static str| {
            let mut sender = sender(1);
            sender.attach = vec![Attach::Made {
                name: Some(Template::constant("a.txt")),
                content_type: Some(Template::constant(content_type)),
                body: Some(Template::constant(text)),
            }];
            let message = Arc::new(Message::new("x"));
            let context = Context::new(Arc::from("r"), message.clone());
            let draft = sender.draft(&message, &context)?;
            Ok::<_, Fault>(draft.attachments[0].content.to_vec())
        };
        assert_eq!(attached("text/plain", "é").unwrap(), "é".as_bytes());
        let latin = "text/plain; charset=iso-8859-1";
        assert_eq!(attached(latin, "é").unwrap(), [0xe9]);
        assert_eq!(attached(latin, "ł").unwrap_err().code, Code::Transform);
    }

    #[test]
    fn what_the_message_carries_goes_with_it_when_asked() {
        let carried = |attach: Vec<Attach>, content_type: &str| {
            let mut sender = sender(1);
            sender.attach = attach;
            let mut message = Message::new("see below");
            message.headers.set("content-type", content_type);
            message.attachments = vec![
                xbus_core::Attachment {
                    name: Some("a.xml".into()),
                    content_type: Some("application/xml".into()),
                    content_id: Some("a@x".into()),
                    body: "<a/>".into(),
                },
                xbus_core::Attachment {
                    content_type: Some("message/rfc822".into()),
                    body: "Subject: x\r\n\r\n".into(),
                    ..xbus_core::Attachment::default()
                },
            ]
            .into();
            let message = Arc::new(message);
            let context = Context::new(Arc::from("r"), message.clone());
            let draft = sender.draft(&message, &context).unwrap();
            let names: Vec<String> = draft.attachments.iter().map(|a| a.name.clone()).collect();
            (draft.text.or(draft.html), names)
        };
        let text = Some(String::from("see below"));
        assert_eq!(carried(vec![], "text/plain"), (text.clone(), vec![]));
        let names = vec![String::from("a.xml"), String::from("attachment-2.eml")];
        assert_eq!(carried(vec![Attach::All], "text/plain"), (text, names));
        let body = String::from("message.txt");
        assert_eq!(
            carried(vec![Attach::Body], "text/plain"),
            (None, vec![body])
        );
    }

    #[test]
    fn every_attempt_makes_the_same_head() {
        let sender = sender(1);
        let mut message = Message::new("x");
        message.received_at = "2021-03-22T08:41:09Z".parse().unwrap();
        let message = Arc::new(message);
        let context = Context::new(Arc::from("r"), message.clone());
        let make = || {
            let draft = sender.draft(&message, &context).unwrap();
            String::from_utf8(draft.compose_at(message.received_at).unwrap().data).unwrap()
        };
        assert_eq!(make(), make());
        assert!(
            make().contains("Date: Mon, 22 Mar 2021 08:41:09 +0000\r\n"),
            "{}",
            make()
        );
    }

    #[tokio::test]
    async fn the_response_tells_of_refused_recipients() {
        let say = Say::Line("550 no such user");
        let server = Server::start(&[("RCPT TO:<boss@", say)]).await;
        let mut sender = sender(server.port);
        for (second, expected) in [
            ("night@acme.example", None),
            ("boss@acme.example", Some("boss@acme.example: ")),
        ] {
            let second = Recipient::Fixed(address::fixed(second).unwrap());
            sender.cc = vec![second];
            let mut message = Message::new("hello");
            // What an earlier step was told of does not count.
            message.headers.set(PARTLY, "other@acme.example: 550 no");
            let message = Arc::new(message);
            let context = Context::new(Arc::from("r"), message.clone());
            let Request::Call(call) = sender.make(message, &context).unwrap() else {
                panic!("a mail is a call");
            };
            let deadline = Instant::now() + std::time::Duration::from_secs(60);
            let response = call.run(deadline).await.unwrap();
            let told = response.headers.get("xbus.partly-delivered");
            assert_eq!(told.is_some(), expected.is_some(), "{told:?}");
            if let (Some(told), Some(expected)) = (told, expected) {
                assert!(told.starts_with(expected) && told.contains("550"), "{told}");
            }
        }
    }

    #[test]
    fn html_values_are_escaped() {
        assert_eq!(escaped("<a href='x'>&"), "&lt;a href=&#39;x&#39;&gt;&amp;");
    }
}
