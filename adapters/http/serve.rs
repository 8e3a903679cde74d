//! One request: from its head to its answer. Whatever is wrong is refused as early as it can be
//! seen, and a body that will be refused is not read.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use xbus_core::{Arrival, Attachments, Code, Format, Message, MessageId, Reply, Timestamp};

use crate::addressing::{Addressed, Generation};
use crate::auth::Denied;
use crate::body::{self, BodyError};
use crate::door::{Config, Door};
use crate::hub::Connection;
use crate::package::{self, Form};
use crate::shape::{self, Answer, Refusal, Shape, SoapCode};
use crate::soap::{self, Envelope, NotSoap, Version};
use crate::table::{Doors, is_encoded};
use crate::wsdl::{Operation, Wsdl};
use crate::{describe, heads, refused, reply, security, splice, wellformed, xml};

/// Documents above this size are checked away from the threads that serve connections.
const CHECK_ASIDE: usize = 256 * 1024;

/// What the one who asks wants of the answer.
struct Asker {
    shape: Shape,
    /// What WS-Addressing says of the request.
    addressed: Option<Box<Addressed>>,
}

impl Asker {
    /// Has an answer say which request it belongs to, where that one has said what it is. `own`:
    /// its envelope was made by the bus.
    fn related(&self, answer: Answer, own: bool) -> Answer {
        let Some(addressed) = &self.addressed else {
            return answer;
        };
        answer.map(|body| {
            let body = shape::whole(body);
            Full::new(addressed.related(&body, own).unwrap_or(body))
        })
    }
}

/// Answers a request. No async function: that would hold the head twice, as it came and as it is read.
pub(crate) fn answer(
    connection: Arc<Connection>,
    request: Request<Incoming>,
) -> impl Future<Output = Answer> {
    let (mut head, body) = request.into_parts();
    async move { answer_to(&connection, &mut head, body).await }
}

async fn answer_to(connection: &Arc<Connection>, head: &mut Parts, body: Incoming) -> Answer {
    let (_active, ambiguous) = connection.watch.begin();
    let id = MessageId::new();
    let mut asker = Asker {
        shape: Shape::of(&head.headers),
        addressed: None,
    };
    let result = if ambiguous {
        Err(Refusal::new(
            Code::Client,
            "the request says its length in more than one way",
        )
        .status(StatusCode::BAD_REQUEST)
        .close())
    } else if let Some(described) = describe::answer(connection, head, id, &mut asker.shape) {
        return match described {
            Ok(answer) => answer,
            Err(refusal) => {
                Box::pin(refused::tell(connection, head, id, &refusal)).await;
                shape::fault(asker.shape, id, &refusal)
            }
        };
    } else {
        take(connection, head, body, id, &mut asker).await
    };
    let shape = asker.shape;
    let (answer, own, taken) = match result {
        Ok(Taken {
            reply,
            one_way: true,
            ..
        }) => (shape::nothing(reply.id), false, None),
        Ok(Taken {
            door, reply, form, ..
        }) => match reply::answer(shape, &door.config, &reply) {
            Ok((answer, own)) => (answer, own, Some((door, reply, form))),
            Err(refusal) => {
                door.answered(reply.id, Some(&refusal.fault)).await;
                (shape::fault(shape, reply.id, &refusal), true, None)
            }
        },
        Err(refusal) => {
            if !refusal.delivered {
                Box::pin(refused::tell(connection, head, id, &refusal)).await;
            }
            (shape::fault(shape, id, &refusal), true, None)
        }
    };
    let mut answer = asker.related(answer, own);
    if let Some((door, reply, form)) = taken {
        let mut failed = None;
        if reply::carries(&answer, &door.config, &reply, form) {
            answer = reply::with_attachments(answer, shape, &door.config, &reply, form)
                .unwrap_or_else(|refusal| {
                    let answer = shape::fault(shape, reply.id, &refusal);
                    failed = Some(refusal);
                    answer
                });
        }
        let failed = failed.as_ref().map(|refusal| &refusal.fault);
        door.answered(reply.id, failed).await;
    }
    if answer.headers().contains_key(header::CONNECTION) {
        connection.watch.leave_unread();
    }
    answer
}

/// A message that a route has taken.
struct Taken {
    door: Arc<Door>,
    reply: Reply,
    /// Its operation has no output: there is nothing to answer.
    one_way: bool,
    /// How it came with its attachments.
    form: Option<Form>,
}

/// Takes a request in and runs its route.
async fn take(
    connection: &Arc<Connection>,
    head: &mut Parts,
    body: Incoming,
    id: MessageId,
    asker: &mut Asker,
) -> Result<Taken, Refusal> {
    check_head(connection, head)?;
    let doors = doors(connection, head, &mut asker.shape)?;
    let first = &doors[0];
    let alone = doors.len() == 1;
    if alone {
        let caller =
            caller(connection, head, &first.config).map_err(|refusal| refusal.at(first))?;
        return enter(connection, first.clone(), caller, head, body, id, asker).await;
    }
    // Several routes: whoever is let in by one of them may send a body; the element then chooses.
    let mut denied = Vec::new();
    let mut open = Vec::new();
    for door in doors.iter() {
        match caller(connection, head, &door.config) {
            Ok(caller) => open.push((door.clone(), caller)),
            Err(refusal) => denied.push((door.clone(), refusal.at(door))),
        }
    }
    if open.is_empty() && !denied.is_empty() {
        return Err(denied.swap_remove(0).1);
    }
    let (door, caller, mut content) =
        Box::pin(choose(connection, open, denied, head, body, asker)).await?;
    hand_in(connection, door, caller, head, &mut content, id, asker).await
}

/// What is wrong with a head whatever its route: the host (RFC 9112 section 3.2), the transfer
/// coding (section 6.1), and the encoding and number of what stands in the target.
pub(crate) fn check_head(connection: &Connection, head: &Parts) -> Result<(), Refusal> {
    // Before there is an envelope there is no binding of SOAP's: the status is HTTP's own.
    let wrong = |reason: &str| {
        let refusal = Refusal::new(Code::Client, reason).status(StatusCode::BAD_REQUEST);
        Err(unread(refusal, head))
    };
    let mut hosts = head.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return wrong("the request names its host more than once"),
        (None, _) if head.version == http::Version::HTTP_11 => {
            return wrong("the request does not name its host");
        }
        (Some(host), None) if !is_host(host.as_bytes()) => {
            return wrong("the header Host does not hold a host");
        }
        _ => {}
    }
    let mut codings = head.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        let reason = "the transfer coding is not known: chunked is";
        return Err(Refusal::new(Code::Unsupported, reason)
            .status(StatusCode::NOT_IMPLEMENTED)
            .close());
    }
    if !is_encoded(head.uri.path()) {
        return wrong("the path is not percent-encoded UTF-8");
    }
    if let Some(query) = head.uri.query() {
        if !is_encoded(query) {
            return wrong("the query is not percent-encoded UTF-8");
        }
        let most = connection.limits.headers;
        if heads::parameters(query).count() > most {
            return wrong(&format!("the query has more than {most} parameters"));
        }
    }
    Ok(())
}

/// Whether the characters are those of a host and port (RFC 3986 section 3.2.2).
pub(crate) fn is_host(value: &[u8]) -> bool {
    value
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+,;=".contains(byte))
}

/// The doors that path and method lead to.
fn doors(connection: &Connection, head: &Parts, shape: &mut Shape) -> Result<Doors, Refusal> {
    let table = connection.listener.table.load();
    let Some(doors) = table.find(head.uri.path()) else {
        let refusal = if connection.is_stopping() {
            Refusal::new(Code::Overloaded, "the bus is stopping")
        } else {
            Refusal::new(Code::NotFound, "there is nothing at this path")
        };
        return Err(unread(refusal, head));
    };
    let soap = doors.iter().find_map(|door| door.config.soap.as_ref());
    if let Some(soap) = soap
        && !matches!(shape, Shape::Soap(_))
    {
        let said = package::said(&head.headers);
        let own = said.as_deref().and_then(Version::of_type);
        *shape = Shape::Soap(own.or(soap.version).unwrap_or(Version::V11));
    }
    if doors
        .iter()
        .all(|door| door.config.methods.contains(&head.method))
        && (doors.len() == 1 || doors.iter().any(|door| door.config.element.is_some()))
    {
        return Ok(doors.clone());
    }
    let mut fitting: Vec<Arc<Door>> = doors
        .iter()
        .filter(|door| door.config.takes(&head.method))
        .cloned()
        .collect();
    // A route that names HEAD comes before those that would serve it like GET.
    if fitting
        .iter()
        .any(|door| door.config.methods.contains(&head.method))
    {
        fitting.retain(|door| door.config.methods.contains(&head.method));
    }
    if fitting.is_empty() {
        let mut allowed: Vec<&str> = doors
            .iter()
            .flat_map(|door| door.config.methods.iter().map(Method::as_str))
            .collect();
        if allowed.contains(&"GET") {
            allowed.push("HEAD");
        }
        allowed.sort_unstable();
        allowed.dedup();
        let allow = HeaderValue::from_str(&allowed.join(", "))
            .unwrap_or_else(|_| HeaderValue::from_static("POST"));
        let refusal = Refusal::new(Code::NotFound, "the method is not allowed at this path")
            .status(StatusCode::METHOD_NOT_ALLOWED)
            .header(header::ALLOW, allow);
        return Err(unread(refusal, head));
    }
    // Without an element to choose by, the latest of a route's doors is the one.
    if fitting.iter().all(|door| door.config.element.is_none()) {
        return Ok(fitting.into_iter().take(1).collect());
    }
    Ok(fitting.into())
}

/// A refusal before the body was read: unless there is none, the connection ends with it.
pub(crate) fn unread(refusal: Refusal, head: &Parts) -> Refusal {
    let empty = !head.headers.contains_key(header::TRANSFER_ENCODING)
        && head
            .headers
            .get(header::CONTENT_LENGTH)
            .is_none_or(|length| length == "0");
    if empty { refusal } else { refusal.close() }
}

pub(crate) fn caller(
    connection: &Connection,
    head: &Parts,
    config: &Config,
) -> Result<Option<Arc<str>>, Refusal> {
    let denied = match config
        .auth
        .check(&head.headers, connection.subject.as_ref())
    {
        Ok(caller) => return Ok(caller),
        Err(denied) => denied,
    };
    let refusal = match denied {
        Denied::Unauthorized(challenge) => {
            Refusal::new(Code::Denied, "credentials are missing or wrong")
                .status(StatusCode::UNAUTHORIZED)
                .header(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static(challenge),
                )
        }
        Denied::Forbidden => {
            Refusal::new(Code::Denied, "the caller's certificate is not let in here")
        }
    };
    Err(unread(refusal, head))
}

/// Reads the body for the one route of a path, and goes on.
async fn enter(
    connection: &Arc<Connection>,
    door: Arc<Door>,
    caller: Option<Arc<str>>,
    head: &mut Parts,
    body: Incoming,
    id: MessageId,
    asker: &mut Asker,
) -> Result<Taken, Refusal> {
    let mut content = content(connection, &door.config, head, body, asker)
        .await
        .map_err(|refusal| refusal.at(&door))?;
    hand_in(connection, door, caller, head, &mut content, id, asker).await
}

/// Reads the body and looks at it as far as the route asks for.
async fn content(
    connection: &Arc<Connection>,
    config: &Config,
    head: &mut Parts,
    body: Incoming,
    asker: &mut Asker,
) -> Result<Content, Refusal> {
    check_type(config, head)?;
    let body = read(connection, head, body, config.max_body).await?;
    let (body, carried) = open(config, head, body).await?;
    settle_charset(config, head, &body);
    let seen = match &config.soap {
        Some(_) => Some(envelope(
            config,
            head,
            &body,
            asker,
            config.element.is_some() || config.wsdl.is_some(),
        )?),
        None => None,
    };
    if let Some(wanted) = &config.element {
        let found = match &seen {
            Some(seen) => seen.element.clone(),
            None => wellformed::first_element(&body, charset_of(head)),
        };
        if found.as_ref() != Some(wanted) {
            return Err(no_element());
        }
    }
    Ok(Content {
        body,
        carried,
        seen,
    })
}

/// What a message is made of, beside its head.
struct Content {
    body: Bytes,
    carried: Carried,
    seen: Option<Box<Envelope>>,
}

/// What came beside the body.
#[derive(Default)]
struct Carried {
    attachments: Attachments,
    form: Option<Form>,
}

/// Opens a multipart body where the route takes attachments; the head then speaks of the root.
async fn open(config: &Config, head: &mut Parts, body: Bytes) -> Result<(Bytes, Carried), Refusal> {
    let takes = config.soap.is_some() || config.attachments;
    if !takes || !package::said(&head.headers).is_some_and(|said| package::is_multipart(&said)) {
        return Ok((body, Carried::default()));
    }
    let opened = Box::pin(package::open_in(
        &mut head.headers,
        body,
        config.charset.as_deref(),
    ))
    .await?;
    if config.soap.is_some() {
        check_type(config, head)?;
    }
    let carried = Carried {
        attachments: opened.attachments,
        form: opened.form,
    };
    Ok((opened.body, carried))
}

fn no_element() -> Refusal {
    Refusal::new(
        Code::Client,
        "no route at this path takes the body's first element",
    )
    .nowhere()
}

/// Makes the content type say the charset that the route says, where nothing else says one.
fn settle_charset(config: &Config, head: &mut Parts, body: &Bytes) {
    let Some(route) = &config.charset else {
        return;
    };
    let given = head.headers.get(header::CONTENT_TYPE);
    let given = given.and_then(|value| value.to_str().ok());
    let format = config
        .format
        .or_else(|| given.and_then(Format::from_media_type));
    let xml = config.soap.is_some() || format == Some(Format::Xml);
    if let Some(settled) = xbus_charset::by_route(body, given, xml, route)
        && let Ok(value) = HeaderValue::from_str(&settled)
    {
        head.headers.insert(header::CONTENT_TYPE, value);
    }
}

fn charset_of(head: &Parts) -> Option<&str> {
    head.headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(xbus_charset::label)
}

type Chosen = (Arc<Door>, Option<Arc<str>>, Content);

/// Reads the body and lets its first element choose among the doors of a path.
async fn choose(
    connection: &Arc<Connection>,
    let_in: Vec<(Arc<Door>, Option<Arc<str>>)>,
    mut denied: Vec<(Arc<Door>, Refusal)>,
    head: &mut Parts,
    body: Incoming,
    asker: &mut Asker,
) -> Result<Chosen, Refusal> {
    let mut refused = None;
    let mut fitting = Vec::new();
    for (door, caller) in let_in {
        match check_type(&door.config, head) {
            Ok(()) => fitting.push((door, caller)),
            Err(refusal) => refused = refused.or(Some(refusal)),
        }
    }
    let largest = fitting.iter().map(|(door, _)| door.config.max_body).max();
    let Some(largest) = largest else {
        return Err(refused.unwrap_or_else(no_element));
    };
    let body = read(connection, head, body, largest).await?;
    let size = body.len() as u64;
    let opener = fitting
        .iter()
        .find(|(door, _)| door.config.soap.is_some() || door.config.attachments);
    let (body, carried) = match opener {
        Some((door, _)) => open(&door.config, head, body).await?,
        None => (body, Carried::default()),
    };
    // Which route it is for can only be read in a charset: that of the first that says one.
    let says = |(door, _): &&(Arc<Door>, _)| door.config.charset.is_some();
    if let Some((door, _)) = fitting.iter().find(says) {
        settle_charset(&door.config, head, &body);
    }
    let seen = match fitting.iter().find(|(door, _)| door.config.soap.is_some()) {
        Some((door, _)) => Some(envelope(&door.config, head, &body, asker, true)?),
        None => None,
    };
    let element = match &seen {
        Some(seen) => seen.element.clone(),
        None => wellformed::first_element(&body, charset_of(head)),
    };
    let names = |door: &Door| door.config.element.is_some() && door.config.element == element;
    let any = |door: &Door| door.config.element.is_none();
    // The route that names the element; who is not let in by it is not taken by another instead.
    let mut at = fitting.iter().position(|(door, _)| names(door));
    if at.is_none()
        && let Some(at) = denied.iter().position(|(door, _)| names(door))
    {
        return Err(denied.swap_remove(at).1);
    }
    at = at.or_else(|| fitting.iter().position(|(door, _)| any(door)));
    let Some(at) = at else {
        let at = denied.iter().position(|(door, _)| any(door));
        return Err(at.map_or_else(no_element, |at| denied.swap_remove(at).1));
    };
    let (door, caller) = fitting.swap_remove(at);
    if size > door.config.max_body {
        return Err(too_large().at(&door));
    }
    let content = Content {
        body,
        carried,
        seen,
    };
    Ok((door, caller, content))
}

/// 415 for content types that the route does not take.
fn check_type(config: &Config, head: &Parts) -> Result<(), Refusal> {
    let given = head
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .map(xml::essence)
        .unwrap_or_default();
    let taken = match &config.soap {
        Some(soap) => {
            [Version::V11, Version::V12]
                .iter()
                .filter(|version| soap.version.is_none_or(|only| only == **version))
                .any(|version| given.eq_ignore_ascii_case(version.media_type()))
                || (given.eq_ignore_ascii_case("multipart/related")
                    && package::said(&head.headers)
                        .is_some_and(|said| package::may_hold(&said, soap.version)))
        }
        None => {
            config.accepts.is_empty() || config.accepts.iter().any(|range| in_range(given, range))
        }
    };
    if taken {
        return Ok(());
    }
    let refusal = Refusal::new(
        Code::Unsupported,
        "the content type is not one that is taken here",
    );
    Err(unread(refusal, head))
}

/// Whether a media type lies in a range such as `text/*`.
fn in_range(given: &str, range: &str) -> bool {
    match range.strip_suffix('*') {
        Some("*/") | Some("") => true,
        Some(start) => given
            .get(..start.len())
            .is_some_and(|own| own.eq_ignore_ascii_case(start)),
        None => given.eq_ignore_ascii_case(range),
    }
}

fn too_large() -> Refusal {
    Refusal::new(Code::TooLarge, "the body is too large")
}

/// Reads and decodes the body.
async fn read(
    connection: &Connection,
    head: &Parts,
    body: Incoming,
    limit: u64,
) -> Result<Bytes, Refusal> {
    let limits = &connection.limits;
    let coding = head.headers.get(header::CONTENT_ENCODING);
    let received = body::collect(body, limit, Some(limits.body_pause))
        .await
        .map_err(|error| refuse_body(error).close())?;
    match coding {
        None => Ok(received),
        Some(coding) => {
            let coding = coding.to_str().unwrap_or("?");
            Box::pin(body::decode(coding, received, limit, limits.ratio))
                .await
                .map_err(refuse_body)
        }
    }
}

fn refuse_body(error: BodyError) -> Refusal {
    match error {
        BodyError::TooLarge => too_large(),
        BodyError::Ratio => Refusal::new(
            Code::TooLarge,
            "the body is compressed beyond what is accepted",
        ),
        BodyError::Slow => Refusal::new(Code::Client, "the body did not come in time")
            .status(StatusCode::REQUEST_TIMEOUT),
        BodyError::Lost(why) => Refusal::from(
            xbus_core::Fault::new(Code::Client, "the body did not come to its end").detail(why),
        ),
        BodyError::Coding(_) => Refusal::new(
            Code::Unsupported,
            "the content coding is not known: gzip and deflate are",
        )
        .header(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("gzip, deflate"),
        ),
        BodyError::Corrupt => {
            Refusal::new(Code::Client, "the body is not what its content coding says")
        }
    }
}

/// Looks at the envelope and settles the shape of the answer by its version.
fn envelope(
    config: &Config,
    head: &Parts,
    body: &Bytes,
    asker: &mut Asker,
    want_element: bool,
) -> Result<Box<Envelope>, Refusal> {
    let only = config.soap.as_ref().and_then(|soap| soap.version);
    let mismatch = |asker: &mut Asker| {
        if let Some(only) = only {
            asker.shape = Shape::Soap(only);
        }
        Refusal::new(
            Code::Client,
            "the envelope is of a version of SOAP that is not taken here",
        )
        .soap(SoapCode::VersionMismatch)
    };
    let mut seen = Box::new(match soap::look(body, charset_of(head), want_element) {
        Ok(seen) => seen,
        Err(NotSoap::OtherVersion) => return Err(mismatch(asker)),
        Err(NotSoap::OtherElement) => {
            return Err(Refusal::new(
                Code::Client,
                "the body is not a SOAP envelope",
            ));
        }
        Err(NotSoap::Malformed(why)) => {
            return Err(Refusal::new(
                Code::Client,
                format!("the envelope cannot be read: {why}"),
            ));
        }
    });
    if let Some(version) = seen.version {
        if only.is_some_and(|only| only != version) {
            return Err(mismatch(asker));
        }
        asker.shape = Shape::Soap(version);
    }
    asker.addressed = seen.addressed.take();
    Ok(seen)
}

/// Checks what the header says: that everything that must be understood is, and who sends it. Gives
/// the caller, where WS-Security names one.
fn check_header(
    config: &Config,
    seen: &Envelope,
    addressed: Option<&Addressed>,
) -> Result<Option<Arc<str>>, Refusal> {
    let unknown: Vec<soap::Name> = seen
        .must_understand
        .iter()
        .filter(|(name, next)| {
            let relays = config.soap.as_ref().is_some_and(|soap| soap.relay);
            // What is for the last receiver is none of an intermediary's business.
            (*next || !relays)
                && Generation::of(&name.namespace).is_none()
                && !(config.security.is_some()
                    && security::is_security(&name.namespace, &name.local))
                && !config
                    .soap
                    .as_ref()
                    .is_some_and(|soap| soap.understands.contains(name))
        })
        .map(|(name, _)| name.clone())
        .collect();
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.iter().map(ToString::to_string).collect();
        let refusal = Refusal::new(
            Code::Client,
            format!(
                "a header that must be understood is not: {}",
                names.join(", ")
            ),
        );
        return Err(refusal.soap(SoapCode::MustUnderstand(unknown)));
    }
    if let Some(addressed) = addressed {
        addressed.check()?;
    }
    match &config.security {
        Some(security) => Ok(Some(security.check(&seen.security, Timestamp::now())?)),
        None => Ok(None),
    }
}

/// Makes the message and runs the route.
async fn hand_in(
    connection: &Arc<Connection>,
    door: Arc<Door>,
    caller: Option<Arc<str>>,
    head: &mut Parts,
    content: &mut Content,
    id: MessageId,
    asker: &Asker,
) -> Result<Taken, Refusal> {
    let _working = door.requests.token();
    let (arrival, one_way) = arrival(connection, &door, caller, head, content, id, asker)
        .await
        .map_err(|refusal| refusal.at(&door))?;
    // What came in need not be held while the route runs: headers and target are slices of the
    // buffer that hyper has read into.
    (*head, ()) = Request::new(()).into_parts();
    content.seen = None;
    match door.deliver(arrival).await {
        Ok(reply) => Ok(Taken {
            door,
            reply,
            one_way,
            form: content.carried.form.take(),
        }),
        Err(fault) => Err(Refusal::from(fault).delivered()),
    }
}

/// Makes what the route is given; says whether there is nothing to answer.
async fn arrival(
    connection: &Connection,
    door: &Door,
    caller: Option<Arc<str>>,
    head: &mut Parts,
    content: &mut Content,
    id: MessageId,
    asker: &Asker,
) -> Result<(Arrival, bool), Refusal> {
    let Content {
        body,
        carried,
        seen,
    } = content;
    let addressed = asker.addressed.as_deref();
    let mut passing = Vec::new();
    let caller = match seen {
        Some(seen) => match check_header(&door.config, seen, addressed)? {
            Some(user) => {
                // Each repeat comes with a token of its own.
                passing = splice::security(body, charset_of(head), seen);
                Some(user)
            }
            None => caller,
        },
        None => caller,
    };
    let one_way = match (&door.config.wsdl, &*seen) {
        (Some(wsdl), Some(seen)) => operation(wsdl, head, seen)?,
        _ => false,
    };
    if door.config.wellformed {
        let soap = door.config.soap.is_some();
        Box::pin(check_wellformed(connection, head, body, soap)).await?;
    }
    let correlation_id = heads::correlation(head)
        .map(Arc::from)
        .or_else(|| addressed?.message_id.as_deref().map(Arc::from));
    let message = Message {
        id,
        correlation_id,
        received_at: Timestamp::now(),
        headers: heads::headers(connection, &door.config, head),
        body: std::mem::take(body).into(),
        attachments: std::mem::take(&mut carried.attachments),
        format: door.config.format,
    };
    if let Some(pause) = seen.as_mut().and_then(|seen| seen.pause.take()) {
        xbus_xml::cache::paused(&message, pause);
    }
    let mut arrival = Arrival::from(message);
    arrival.caller = caller;
    arrival.passing = passing;
    if let (Some(seen), true) = (&*seen, door.config.soap.is_some()) {
        arrival.fits = seen.version.map(reply::fits);
    }
    Ok((arrival, one_way))
}

/// Finds the operation by the Body's first element, and gives whether it is one-way. A SOAP action
/// that the description gives to another operation, or not to this one, is a fault.
fn operation(wsdl: &Wsdl, head: &Parts, seen: &Envelope) -> Result<bool, Refusal> {
    let fitting = wsdl.by_element(seen.element.as_ref());
    if let Some(action) = soap_action(head, seen.version) {
        let declared = |operation: &Operation| {
            operation
                .action
                .as_deref()
                .filter(|action| !action.is_empty())
                == Some(action)
        };
        let open = |operation: &Operation| operation.action.as_deref().is_none_or(str::is_empty);
        let others = wsdl.operations.iter().any(declared);
        let known = fitting.clone().next().is_some();
        let contradicts = match known {
            true => !fitting.clone().any(declared) && (others || !fitting.clone().any(open)),
            false => others,
        };
        if contradicts {
            let reason = "the SOAP action does not belong to the operation of the Body";
            return Err(Refusal::new(Code::Client, reason));
        }
    }
    Ok(wsdl.is_one_way(seen.element.as_ref()))
}

/// What a request says of its intent: SOAPAction (SOAP 1.1 section 6.1.1), or `action` of the content
/// type (SOAP 1.2 part 2 section 6.5.2). An empty one says nothing.
fn soap_action(head: &Parts, version: Option<Version>) -> Option<&str> {
    let text = |name: &str| head.headers.get(name)?.to_str().ok();
    let action = match version {
        Some(Version::V12) => {
            let given =
                text("content-type").and_then(|given| xbus_charset::parameter(given, "action"));
            given.or_else(|| text("soapaction"))
        }
        _ => text("soapaction"),
    }?;
    let action = action.trim();
    let action = action
        .strip_prefix('"')
        .and_then(|action| action.strip_suffix('"'))
        .unwrap_or(action);
    (!action.is_empty()).then_some(action)
}

async fn check_wellformed(
    connection: &Connection,
    head: &Parts,
    body: &Bytes,
    soap: bool,
) -> Result<(), Refusal> {
    let charset = charset_of(head).map(str::to_owned);
    let (depth, attributes) = (
        connection.limits.xml_depth,
        connection.limits.xml_attributes,
    );
    let checked = if body.len() <= CHECK_ASIDE {
        wellformed::check(body, charset.as_deref(), depth, attributes, soap)
    } else {
        let body = body.clone();
        tokio::task::spawn_blocking(move || {
            wellformed::check(&body, charset.as_deref(), depth, attributes, soap)
        })
        .await
        .unwrap_or_else(|_| Err("not to be checked".into()))
    };
    checked.map_err(|why| Refusal::new(Code::Client, format!("the body is {why}")))
}
