//! The receiving side: what a route says under `receive: http`, and a door made of it.

use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::{HeaderName, Method};
use xbus_charset::Charset;
use xbus_core::adapter::{OpenError, ReceiverKind};
use xbus_core::problem::{Place, suggest};
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Checks, Format, Inbox, Receiver, Rules, Stop};

use crate::auth::{AUTH_FIELDS, Auth};
use crate::contract::{Contract, Way};
use crate::door::{Config, Door, Entry, SoapConfig};
use crate::heads::passes;
use crate::hub::Hub;
use crate::pack::Attach;
use crate::security::{self, Security};
use crate::soap::{Name, Version};
use crate::table::Pattern;
use crate::wellformed::WholeAnswers;
use crate::wsdl::Wsdl;

pub(crate) static FIELDS: &[Field] = &[
    Field::new(
        "path",
        Type::Text,
        "The path that it answers, such as `/orders/{no}`: a segment in braces becomes the header `path.no`, query parameters become `query.NAME`.",
    )
    .required(),
    Field::new(
        "methods",
        Type::OneOrMany(&Type::Text),
        "The request methods that it answers (HEAD wherever GET is); any other gets 405.",
    )
    .default("POST"),
    Field::new(
        "soap",
        Type::Either(&[
            Type::Choice(&["1.1", "1.2", "any"]),
            Type::Object(SOAP_FIELDS),
        ]),
        "Takes SOAP envelopes of this version. The body is the whole envelope, byte for byte; acknowledgements, replies and faults are envelopes of the caller's version.",
    ),
    Field::new(
        "wsdl",
        Type::Asset,
        "A WSDL 1.1 in `transforms/`, served at `?wsdl` with what it imports; addresses are those that the caller used. Messages are told apart by its operations: a SOAP action that contradicts the Body is a fault, a one-way operation is answered with 202 and no body.",
    ),
    Field::new(
        "validate",
        Type::Choice(&["request", "response", "both"]),
        "What is held against the types of the WSDL: what comes in, what goes back, or both. A request that breaks a rule is a fault of its sender that names line, element and rule.",
    ),
    Field::new(
        "element",
        Type::Text,
        "`{namespace}Name` of the first element in the SOAP Body (without `soap`: of the document). Routes that share a path are told apart by it.",
    ),
    Field::new(
        "auth",
        Type::Object(AUTH_FIELDS),
        "Who is let in: any one of the ways that are given. Left out: everybody.",
    ),
    Field::new(
        "security",
        Type::Object(security::FIELDS),
        "What WS-Security must say of who sends a message (with `soap`; beside `auth` both must be met). Its header is understood where this stands.",
    ),
    Field::new(
        "max_body",
        Type::Size,
        "The largest body that is taken, decompressed (default: `defaults.max_body` of xbus.yaml, 10MiB). A larger one gets 413.",
    ),
    Field::new(
        "listener",
        Type::Text,
        "The listener of xbus.yaml that it is reached through; `default` is the one of `http:`.",
    )
    .default("default"),
    Field::new(
        "accepts",
        Type::OneOrMany(&Type::Text),
        "Media types that it takes, such as `application/json` or `text/*`; any other gets 415.",
    ),
    Field::new(
        "format",
        Type::Choice(&["xml", "json", "csv", "form", "text", "bytes"]),
        "How the body is read, whatever its content type says.",
    ),
    Field::new(
        "charset",
        Type::Text,
        "The body's charset (an IANA label) where neither a byte order mark nor its content type nor an XML declaration says one.",
    ),
    Field::new(
        "wellformed",
        Type::Bool,
        "Checks that the whole body is well-formed XML before anything runs; what is not gets a 400 fault. An answer that is XML is checked likewise: one that is not well-formed is a fault.",
    )
    .default("false"),
    Field::new(
        "attachments",
        Type::Bool,
        "Opens multipart bodies. Of a form with files (`multipart/form-data`) the fields become the body and the files attachments; of any other the root, or the first part, becomes the body. With `soap` this is always so; without either the body is the multipart as it came.",
    )
    .default("false"),
    Field::new(
        "attach",
        Type::Choice(&["mtom", "swa", "inline", "none"]),
        "How attachments of answers are sent (with `soap`): beside the envelope as `mtom` or `swa`, `inline` as base64 where the envelope refers to them by `xop:Include`, or `none` of them. Left out: MTOM where the envelope has an `xop:Include` or the request was MTOM, else SwA.",
    ),
];

static SOAP_FIELDS: &[Field] = &[
    Field::new(
        "version",
        Type::Choice(&["1.1", "1.2", "any"]),
        "The version of SOAP.",
    )
    .default("any"),
    Field::new(
        "understands",
        Type::OneOrMany(&Type::Text),
        "Header blocks (`{namespace}Name`) that the route deals with itself, beside WS-Addressing. One that must be understood and is not is answered with a fault.",
    ),
    Field::new(
        "relay",
        Type::Bool,
        "The route is an intermediary and passes envelopes on: header blocks for the last receiver are left to that one, and only those for the next receiver must be understood here.",
    )
    .default("false"),
];

/// The receiving side of the kind.
pub(crate) fn kind(hub: Arc<Hub>) -> ReceiverKind {
    ReceiverKind {
        fields: FIELDS,
        example: "receive:\n  http: { path: \"/orders/{no}\", methods: [POST, PUT] }\n",
        answers: true,
        in_turn: false,
        build: Box::new(move |args| {
            let config = Arc::new(build(&hub, args)?);
            let receiver = HttpReceiver {
                hub: hub.clone(),
                config,
            };
            Some(Arc::new(receiver) as Arc<dyn Receiver>)
        }),
    }
}

/// Reports that what stands under a key cannot be used.
fn bad(args: Args<'_>, key: &str, message: String, help: &str) {
    args.build
        .problems
        .error(&args.place(key), "bad-value", message, help);
}

pub(crate) fn build(hub: &Hub, args: Args<'_>) -> Option<Config> {
    let path = args.text("path")?;
    let pattern = Pattern::parse(&path)
        .map_err(|why| {
            let message = format!("'{path}' is not a path: {why}");
            bad(args, "path", message, "write a path such as /orders/{no}");
        })
        .ok();
    let listener = args.text("listener").unwrap_or_default();
    let listener_known = hub.names().any(|name| name == listener);
    if !listener_known {
        args.build.problems.error(
            &args.place("listener"),
            "unknown-listener",
            format!("there is no listener '{listener}' in xbus.yaml"),
            suggest(&listener, hub.names()),
        );
    }
    if listener_known
        && args
            .node("auth")
            .is_some_and(|auth| auth.get("client_certificate").is_some())
        && !hub.has_client_ca(&listener)
    {
        let message = format!("the listener '{listener}' asks for no client certificates");
        let help = "set tls: { cert, key, client_ca } on the listener in xbus.yaml";
        bad(args, "auth", message, help);
    }
    let charset = args.text("charset");
    if let Some(label) = &charset
        && let Err(unknown) = Charset::by_label(label)
    {
        let message = unknown.to_string();
        bad(
            args,
            "charset",
            message,
            "write a label such as utf-8 or iso-8859-1",
        );
    }
    let methods = methods(args);
    if args.has("attach") && !args.has("soap") {
        let message = "'attach' is about SOAP, which this receiver does not take".to_owned();
        bad(args, "attach", message, "add soap: any, or leave it out");
    }
    let soap = args.has("soap").then(|| soap(args));
    let security = security(hub, args, &listener);
    let element = name(args, "element", args.text("element"));
    let (wsdl, mut checks) = description(hub, args)?;
    let wellformed = args.boolean("wellformed");
    if wellformed && checks.response.is_none() {
        let rules = WholeAnswers {
            soap: soap.is_some(),
        };
        checks.response = Some(Arc::new(rules));
    }
    let config = Config {
        pattern: pattern?,
        methods: methods?,
        soap,
        element: element?,
        auth: Auth::build(args.object("auth", AUTH_FIELDS)),
        security: security?,
        max_body: args.size("max_body").unwrap_or(args.build.max_body),
        listener,
        accepts: args.texts("accepts"),
        format: args
            .text("format")
            .and_then(|name| Format::from_name(&name)),
        charset,
        wellformed,
        attachments: args.boolean("attachments"),
        attach: args.text("attach").and_then(|way| Attach::from_name(&way)),
        wsdl,
        checks,
    };
    listener_known.then_some(config)
}

/// The outer `Option` is empty when something is wrong, the inner when nothing is asked for.
fn security(hub: &Hub, args: Args<'_>, listener: &str) -> Option<Option<Security>> {
    if !args.has("security") {
        return Some(None);
    }
    if !args.has("soap") {
        let message = "'security' is about SOAP, which this receiver does not take".to_owned();
        bad(args, "security", message, "add soap: any, or use auth");
        return None;
    }
    let security = Security::build(args.object("security", security::FIELDS), &hub.nonces)?;
    if security.takes_text() && hub.is_open(listener) {
        args.build.problems.warning(
            &args.place("security"),
            "clear-password",
            format!("passwords may come to the listener '{listener}' unencrypted"),
            "set tls on the listener, or take digests only (type: digest)",
        );
    }
    Some(Some(security))
}

/// The WSDL, and what messages are held against.
fn description(hub: &Hub, args: Args<'_>) -> Option<(Option<Arc<Wsdl>>, Checks)> {
    let validate = args.text("validate");
    let Some(file) = args.text("wsdl") else {
        if validate.is_some() {
            let message = "'validate' holds messages against a WSDL, and none is named".to_owned();
            let help = "add wsdl: FILE, or use schema: FILE";
            bad(args, "validate", message, help);
            return None;
        }
        return Some((None, Checks::default()));
    };
    if !args.has("soap") {
        let message = "a WSDL describes SOAP, which this receiver does not take".to_owned();
        bad(args, "wsdl", message, "add soap: any");
        return None;
    }
    let folder = args.build.root.join("transforms");
    let found = hub
        .descriptions
        .find(&folder, Path::new(&file), validate.is_some());
    for finding in found.findings {
        let place = Place {
            file: Path::new("transforms").join(&finding.file).into(),
            line: finding.line,
            column: finding.column,
        };
        let problems = args.build.problems;
        match finding.error {
            true => problems.error(&place, "bad-schema", finding.message, finding.help),
            false => problems.warning(&place, "schema-gap", finding.message, finding.help),
        }
    }
    let wsdl = found.wsdl?;
    let Some(validate) = validate else {
        return Some((Some(wsdl), Checks::default()));
    };
    let schema = found.schema?;
    let rules = |way| {
        let contract = Contract {
            wsdl: wsdl.clone(),
            schema: schema.clone(),
            way,
        };
        Some(Arc::new(contract) as Arc<dyn Rules>)
    };
    let checks = Checks {
        request: (validate != "response")
            .then(|| rules(Way::Request))
            .flatten(),
        response: (validate != "request")
            .then(|| rules(Way::Response))
            .flatten(),
    };
    Some((Some(wsdl), checks))
}

fn methods(args: Args<'_>) -> Option<Vec<Method>> {
    let mut methods = Vec::new();
    for text in args.texts("methods") {
        let known = text.chars().all(|c| c.is_ascii_alphabetic() || c == '-');
        match Method::from_bytes(text.to_ascii_uppercase().as_bytes()) {
            Ok(method) if known && method != Method::CONNECT => {
                if !methods.contains(&method) {
                    methods.push(method);
                }
            }
            _ => {
                let message = format!("'{text}' is not a request method");
                bad(
                    args,
                    "methods",
                    message,
                    "write GET, POST, PUT, PATCH or DELETE",
                );
                return None;
            }
        }
    }
    Some(methods)
}

/// The outer `Option` is empty when the name is wrong, the inner when there is none.
fn name(args: Args<'_>, key: &str, text: Option<String>) -> Option<Option<Name>> {
    let Some(text) = text else { return Some(None) };
    let name = Name::parse(&text);
    if name.is_none() {
        let message = format!("'{text}' is not the name of an element");
        bad(
            args,
            key,
            message,
            "write {namespace}Name, or Name for an element in no namespace",
        );
        return None;
    }
    Some(name)
}

fn soap(args: Args<'_>) -> SoapConfig {
    let short = args.node("soap").and_then(|node| node.text());
    let inner = args.object("soap", SOAP_FIELDS);
    let version = Version::written(short, inner);
    let understands = match short {
        Some(_) => Vec::new(),
        None => inner
            .texts("understands")
            .into_iter()
            .filter_map(|text| name(inner, "understands", Some(text)).flatten())
            .collect(),
    };
    SoapConfig {
        version,
        understands,
        relay: short.is_none() && inner.boolean("relay"),
    }
}

/// Answers requests of one route on a listener that it shares with others.
struct HttpReceiver {
    hub: Arc<Hub>,
    config: Arc<Config>,
}

impl Receiver for HttpReceiver {
    fn claim(&self) -> Option<String> {
        Some(self.config.claim())
    }

    fn checks(&self) -> Checks {
        self.config.checks.clone()
    }

    fn sets_header(&self, name: &str) -> bool {
        HeaderName::from_bytes(name.as_bytes())
            .is_ok_and(|name| !passes(&name) || name.as_str() == "x-message-id")
    }

    fn open(
        self: Arc<Self>,
        inbox: Inbox,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        Box::pin(async move {
            let route = inbox.route().clone();
            let door = Door::new(self.config.clone(), route, Entry::Inbox(inbox));
            open(&self.hub, door, stop)
        })
    }
}

/// Attaches a door until `stop`.
pub(crate) fn open(
    hub: &Arc<Hub>,
    door: Door,
    stop: Stop,
) -> Result<BoxFuture<'static, ()>, OpenError> {
    let door = Arc::new(door);
    hub.attach(&door)?;
    let hub = hub.clone();
    Ok(Box::pin(async move {
        stop.cancelled().await;
        hub.detach(&door);
        door.requests.close();
        door.requests.wait().await;
    }))
}
