//! A door: one route's receiver as a listener sees it.

use std::sync::Arc;

#[cfg(test)]
use futures_util::future::BoxFuture;
use http::Method;
use tokio_util::task::TaskTracker;
use xbus_core::{Arrival, Checks, Fault, Format, Inbox, Message, MessageId, Reply};

use crate::auth::Auth;
use crate::pack::Attach;
use crate::security::Security;
use crate::soap::{Name, Version};
use crate::table::Pattern;
use crate::wsdl::Wsdl;

/// What a route says of its receiver.
pub(crate) struct Config {
    pub(crate) pattern: Pattern,
    pub(crate) methods: Vec<Method>,
    pub(crate) soap: Option<SoapConfig>,
    pub(crate) element: Option<Name>,
    pub(crate) auth: Auth,
    /// What WS-Security must say of the sender.
    pub(crate) security: Option<Security>,
    /// Bytes.
    pub(crate) max_body: u64,
    /// Name of the listener.
    pub(crate) listener: String,
    /// Media types that are taken; none: all.
    pub(crate) accepts: Vec<String>,
    pub(crate) format: Option<Format>,
    pub(crate) charset: Option<String>,
    pub(crate) wellformed: bool,
    /// Whether multipart bodies are opened; those of SOAP always are.
    pub(crate) attachments: bool,
    /// How attachments of SOAP answers are sent; nothing: as the message and the request say.
    pub(crate) attach: Option<Attach>,
    /// The description that is served, and that tells operations apart.
    pub(crate) wsdl: Option<Arc<Wsdl>>,
    /// What the description says of messages, where that is asked for.
    pub(crate) checks: Checks,
}

/// `soap:`.
#[derive(Clone, Debug, Default)]
pub(crate) struct SoapConfig {
    /// Nothing: any.
    pub(crate) version: Option<Version>,
    /// Header blocks that the route understands beside WS-Addressing.
    pub(crate) understands: Vec<Name>,
    /// The route is an intermediary: what must be understood by the last receiver is passed on.
    pub(crate) relay: bool,
}

impl Config {
    /// Whether a method is answered: HEAD is where GET is (RFC 9110 section 9.3.2).
    pub(crate) fn takes(&self, method: &Method) -> bool {
        self.methods.contains(self.served_as(method))
    }

    /// The method that the route sees.
    pub(crate) fn served_as<'a>(&self, method: &'a Method) -> &'a Method {
        if *method == Method::HEAD && !self.methods.contains(method) {
            &Method::GET
        } else {
            method
        }
    }

    /// In words, such as `POST /orders on default`.
    pub(crate) fn claim(&self) -> String {
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        let mut claim = format!(
            "{} {} on {}",
            methods.join(","),
            self.pattern.claim(),
            self.listener
        );
        if let Some(element) = &self.element {
            claim.push_str(&format!(" with {element}"));
        }
        claim
    }
}

/// Where arrivals go.
pub(crate) enum Entry {
    Inbox(Inbox),
    /// Stands in for a route where there is no bus.
    #[cfg(test)]
    Stub(Arc<Stub>),
}

/// What stands in for a route in tests.
#[cfg(test)]
pub(crate) type Stub = dyn Fn(Arrival) -> BoxFuture<'static, Result<Reply, Fault>> + Send + Sync;

/// One route's receiver, attached to a listener.
pub(crate) struct Door {
    pub(crate) config: Arc<Config>,
    entry: Entry,
    route: Arc<str>,
    /// The requests that are being answered.
    pub(crate) requests: TaskTracker,
}

impl Door {
    pub(crate) fn new(config: Arc<Config>, route: Arc<str>, entry: Entry) -> Self {
        Self {
            config,
            entry,
            route,
            requests: TaskTracker::new(),
        }
    }

    pub(crate) fn pattern(&self) -> &Pattern {
        &self.config.pattern
    }

    pub(crate) fn route(&self) -> &Arc<str> {
        &self.route
    }

    pub(crate) fn claim(&self) -> String {
        self.config.claim()
    }

    /// Whether another route's door would take the same requests.
    pub(crate) fn collides(&self, other: &Door) -> bool {
        self.route != other.route
            && self.config.element == other.config.element
            && self
                .config
                .methods
                .iter()
                .any(|method| other.config.methods.contains(method))
    }

    /// Has a message that cannot be handed in journalled as failed. Goes on when the caller is gone.
    pub(crate) async fn turn_away(&self, message: Message, fault: Fault) {
        match &self.entry {
            Entry::Inbox(inbox) => {
                let inbox = inbox.clone();
                let told = tokio::spawn(async move { inbox.turn_away(message, &fault).await });
                let _ = told.await;
            }
            #[cfg(test)]
            Entry::Stub(_) => {}
        }
    }

    /// Notes whether the answer to a message that was taken could be made.
    pub(crate) async fn answered(&self, id: MessageId, failed: Option<&Fault>) {
        match &self.entry {
            Entry::Inbox(inbox) => match failed {
                None => inbox.answered(),
                Some(fault) => Box::pin(inbox.unanswered(id, fault)).await,
            },
            #[cfg(test)]
            Entry::Stub(_) => {}
        }
    }

    /// Hands a message in.
    pub(crate) async fn deliver(&self, arrival: Arrival) -> Result<Reply, Fault> {
        match &self.entry {
            Entry::Inbox(inbox) => inbox.deliver(arrival).await,
            #[cfg(test)]
            Entry::Stub(stub) => stub(arrival).await,
        }
    }
}
