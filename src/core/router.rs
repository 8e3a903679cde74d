//! The router: one message through its route, from acceptance to its end.
//!
//! A journey holds what one message has come to so far. Its outcome leaves by the return value and
//! by the journal, and in no other way.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use crate::bus::Bus;
use crate::codec::Decoder;
use crate::distribute::{Distributed, is_unknown};
use crate::fault::Code;
use crate::inbox::{Fits, seen_scope, underway_scope};
use crate::once::{self, Turn};
use crate::plan::{Once, Payloads, ReplyPlan, Route, Step};
use crate::protocol::Record;
use crate::request::{self, Origin, holds, transform};
use crate::store::{
    Change, Commit, Durability, JournalEntry, JournalFault, Outcome, StoreError, TargetEntry,
};
use crate::transform::{Context, Rules, Value};
use crate::{
    Arrival, Attachments, Fault, Format, Headers, Message, MessageId, Reply, Request, Status,
    Timestamp,
};

/// One message on its way.
pub(crate) struct Journey<'a> {
    pub(crate) bus: &'a Arc<Bus>,
    pub(crate) route: &'a Arc<Route>,
    pub(crate) context: Context,
    pub(crate) keys: Vec<(Arc<str>, String)>,
    /// What is known of each target (and of compensable steps).
    pub(crate) entries: Vec<TargetEntry>,
    /// Whether a protocol record was written.
    pub(crate) begun: bool,
    /// What had an effect and can be compensated, in the order in which it happened.
    pub(crate) done: Vec<Compensable<'a>>,
    /// Keys to remember in the commit that accepts the message.
    pub(crate) remember: Vec<Change>,
    /// The key of `once`, remembered with the protocol's first record.
    pub(crate) underway: Option<Change>,
    /// By which its receiver would see it again after a crash.
    seen_as: Vec<Arc<str>>,
    /// Some target's outcome, or that of a compensation, is unknown.
    pub(crate) in_doubt: bool,
    /// The message is what was received: it is worth keeping.
    complete: bool,
    /// The deciding commit has written the journal entry.
    pub(crate) journalled: bool,
    caller: Option<Arc<str>>,
    passing: Vec<Range<usize>>,
    fits: Option<Fits>,
    replayed: bool,
    cause: Option<MessageId>,
    attempts: u32,
    /// Somebody waits for the answer and is told of a failure, which is final with that.
    pub(crate) waits: bool,
    started: Instant,
}

/// A request that was answered and has a way to be undone.
pub(crate) struct Compensable<'a> {
    pub(crate) step: &'a Step,
    pub(crate) request: Arc<Message>,
    pub(crate) response: Arc<Message>,
}

/// Runs `route` for one message, to its end; `waits`: its sender waits for the answer.
///
/// The arrival is boxed: a future has room for what it was given until its end.
pub(crate) async fn run(
    bus: &Arc<Bus>,
    route: &Arc<Route>,
    arrival: Box<Arrival>,
    waits: bool,
) -> Result<Reply, Fault> {
    route.stats.received.add();
    let _running = route.stats.running.enter();
    let mut journey = Journey::new(bus, route, *arrival);
    journey.waits = waits;
    let result = journey.admit().await;
    route.stats.latency.observe(journey.started.elapsed());
    match &result {
        Ok(reply) if reply.status == Status::Filtered => route.stats.filtered.add(),
        Ok(_) => {
            route.stats.acknowledged.add();
            bus.incidents().succeeded(&route.name, "route");
        }
        Err(_) => route.stats.failed.add(),
    }
    result
}

/// Tells what this process has begun from what one before it had.
pub(crate) fn this_run() -> MessageId {
    static RUN: OnceLock<MessageId> = OnceLock::new();
    *RUN.get_or_init(MessageId::new)
}

/// Journals a message that failed before it could set out, and tells whom it concerns.
pub(crate) async fn refuse(bus: &Arc<Bus>, route: &Arc<Route>, message: Message, fault: &Fault) {
    unable(bus, route, message, fault, false).await;
}

/// The same where its sender waits and is told.
pub(crate) async fn turn_away(bus: &Arc<Bus>, route: &Arc<Route>, message: Message, fault: &Fault) {
    unable(bus, route, message, fault, true).await;
}

async fn unable(bus: &Arc<Bus>, route: &Arc<Route>, message: Message, fault: &Fault, waits: bool) {
    route.stats.received.add();
    route.stats.failed.add();
    let mut journey = Journey::new(bus, route, message.into());
    journey.waits = waits;
    // Replayed it would be another message.
    journey.complete = false;
    journey.failed(fault).await;
}

impl<'a> Journey<'a> {
    fn new(bus: &'a Arc<Bus>, route: &'a Arc<Route>, arrival: Arrival) -> Self {
        let seen = arrival.seen_as.into_iter().chain(arrival.seen_also);
        let seen_as: Vec<Arc<str>> = seen.collect();
        Self {
            bus,
            route,
            context: Context::new(route.name.clone(), Arc::new(arrival.message)),
            keys: Vec::new(),
            entries: Vec::new(),
            begun: false,
            done: Vec::new(),
            remember: seen_as
                .iter()
                .map(|key| Change::Remember {
                    scope: seen_scope(&route.name),
                    key: key.clone(),
                    value: bytes::Bytes::new(),
                    until: None,
                })
                .collect(),
            underway: None,
            seen_as,
            in_doubt: false,
            complete: true,
            journalled: false,
            caller: arrival.caller,
            passing: arrival.passing,
            fits: arrival.fits,
            replayed: arrival.replayed,
            cause: arrival.cause,
            attempts: arrival.attempts,
            waits: false,
            started: Instant::now(),
        }
    }

    /// Waits for the message's turn, then sends it on its way.
    ///
    /// What few messages come to is boxed, here and below: a future is as large as the largest thing
    /// that it may wait for, and is moved into the one that waits for it.
    async fn admit(&mut self) -> Result<Reply, Fault> {
        let route = self.route;
        if let Some(pace) = &route.pace {
            pace.start().await?;
        }
        let _place = match &route.gate {
            Some(gate) => Some(gate.enter().await?),
            None => None,
        };
        let known = match self.waits && self.seen_as.is_empty() {
            true => None,
            false => Box::pin(self.known_from_before_a_crash()).await,
        };
        let result = match (known, &route.once) {
            (Some(known), _) => {
                self.journalled = true;
                known
            }
            (None, Some(plan)) if !self.replayed => Box::pin(self.once(plan)).await,
            _ => self.travel().await,
        };
        if let Err(fault) = &result {
            Box::pin(self.failed(fault)).await;
        }
        result
    }

    pub(crate) fn id(&self) -> MessageId {
        self.context.received.id
    }

    /// What its receiver would see again after a crash; a queue's message has its id for that.
    pub(crate) fn seen_again_as(&self) -> Vec<Arc<str>> {
        if self.seen_as.is_empty() && !self.waits {
            return vec![Arc::from(self.id().to_string())];
        }
        self.seen_as.clone()
    }

    /// The answer to a message whose distribution had begun when the bus was killed, and that its receiver
    /// brings again: what is known of it by now. Nothing where it was undone: it is tried again.
    async fn known_from_before_a_crash(&self) -> Option<Result<Reply, Fault>> {
        if self.replayed {
            return None;
        }
        let store = self.bus.store();
        let scope = underway_scope(&self.route.name);
        let keys = self.seen_again_as();
        let first = keys.iter().find_map(|key| store.recall(&scope, key))?;
        let mut first = Decoder::new(first);
        let (id, run) = (first.id()?, first.id()?);
        // What this process has begun, its receiver knows by itself.
        if run == this_run() {
            return None;
        }
        let known = once::resolved(store, id);
        if !matches!(known, Some(Ok(_))) {
            // Told once: what its receiver set aside, and somebody brings again, is tried again.
            let forget = Commit::from(self.not_underway());
            if let Err(error) = store.commit(forget, Durability::Synced).await {
                return Some(Err(cannot_keep(&error)));
            }
        }
        known
    }

    /// Forgets that its distribution has begun: with the records that say how it ended.
    pub(crate) fn not_underway(&self) -> Vec<Change> {
        let scope = underway_scope(&self.route.name);
        let forget = |key| Change::Forget {
            scope: scope.clone(),
            key,
        };
        self.seen_again_as().into_iter().map(forget).collect()
    }

    /// Lets a repeat of an earlier message have the earlier answer.
    async fn once(&mut self, plan: &Once) -> Result<Reply, Fault> {
        let received = self.context.received.clone();
        let key = match plan.key.evaluate(&received, &self.context)? {
            Value::Unit => String::new(),
            value => value.into_text(),
        };
        if key.is_empty() {
            return self.travel().await;
        }
        let scope = once::scope(&self.route.name, self.caller.as_deref());
        let bus = self.bus;
        let print = once::fingerprint(&received, &self.passing);
        match bus.once().turn(bus.store(), scope, &key, print).await {
            Turn::Repeat(answer) => {
                self.journalled = true;
                tracing::info!(first = %answer.as_ref().map_or(received.id, |r| r.id), "a repeat is answered as the first one was");
                answer
            }
            Turn::First(first) => {
                self.remember.push(first.remember(plan.keep, &received));
                self.underway = Some(first.unknown(&received));
                let result = self.travel().await;
                first
                    .end(bus.store(), &result, self.in_doubt, plan.keep, &received)
                    .await;
                result
            }
        }
    }

    async fn travel(&mut self) -> Result<Reply, Fault> {
        let received = self.context.received.clone();
        request::check(
            self.route.checks.request.as_ref(),
            &received,
            Origin::Received,
        )?;
        for (name, key) in &self.route.keys {
            match key.evaluate(&received, &self.context)? {
                Value::Unit => {}
                value => self.keys.push((name.clone(), value.into_text())),
            }
        }
        if let Some(when) = &self.route.when
            && !holds(&**when, &received, &self.context)?
        {
            return self.filtered().await;
        }
        let last = self.invoke(received).await?;
        if self.route.targets.is_empty() {
            let reply = match self.answer(&last).await {
                Ok(reply) => reply,
                Err(fault) => return Err(Box::pin(self.give_up(fault)).await),
            };
            self.finish(Outcome::Delivered, Status::Delivered).await?;
            return Ok(reply);
        }
        match Box::pin(self.distribute(last)).await? {
            Distributed::Unmatched => self.filtered().await,
            Distributed::Done(reply) => Ok(reply),
        }
    }

    async fn filtered(&mut self) -> Result<Reply, Fault> {
        self.finish(Outcome::Filtered, Status::Filtered).await?;
        self.reply(Status::Filtered, None)
    }

    /// The request/response steps, each one's response being the next one's message.
    async fn invoke(&mut self, received: Arc<Message>) -> Result<Arc<Message>, Fault> {
        let mut message = received;
        let route: &'a Route = self.route;
        for step in &route.steps {
            // A fault is boxed, so that what waits for the response has no room for it.
            let applies = match &step.when {
                Some(when) => holds(&**when, &message, &self.context).map_err(Box::new),
                None => Ok(true),
            };
            let response = match applies {
                Ok(true) => self.invoke_one(step, &message).await,
                Ok(false) => continue,
                Err(fault) => Err(fault.at(&step.name)),
            };
            message = match response {
                Ok(response) => response,
                Err(fault) => return Err(Box::pin(self.give_up(fault)).await),
            };
            self.context
                .responses
                .push((step.name.clone(), message.clone()));
        }
        Ok(message)
    }

    async fn invoke_one(
        &mut self,
        step: &'a Step,
        message: &Arc<Message>,
    ) -> Result<Arc<Message>, Fault> {
        let made = request::make(step, message, &self.context)
            .await
            .map_err(|fault| fault.at(&step.name))?;
        let request = step
            .sender
            .make(made.clone(), &self.context)
            .map_err(|fault| fault.at(&step.name))?;
        let Request::Call(call) = request else {
            return Err(Fault::new(Code::Internal, "the step does not answer").at(&step.name));
        };
        if step.compensate.is_some() {
            self.begin(vec![Record::Started {
                step: step.name.clone(),
            }])
            .await?;
        }
        let result = request::send(self.bus, self.route, step, &made, &*call).await;
        if step.compensate.is_some() {
            self.note_compensable(step, made, &result).await;
        }
        let response = result?;
        if let Some(rules) = &step.checks.response {
            request::check(Some(rules), &response, Origin::Response)
                .map_err(|fault| fault.at(&step.name))?;
            let incidents = self.bus.incidents();
            incidents.succeeded(&self.route.name, &step.name);
        }
        Ok(Arc::new(response))
    }

    /// Ends what cannot go on: undoes what was done, and says in what state that leaves it.
    pub(crate) async fn give_up(&mut self, fault: Fault) -> Fault {
        // With an unknown outcome among them nothing is undone: an administrator decides.
        if self.begun && !self.in_doubt {
            self.undo_invokes().await;
            return self.unless_in_doubt(fault);
        }
        fault
    }

    /// What the sender gets when the route ends in a response, or answers by itself.
    async fn answer(&self, last: &Arc<Message>) -> Result<Reply, Fault> {
        let message = match &self.route.reply {
            Some(plan) => Some(self.make_reply(plan, last).await?),
            None if self.route.steps.is_empty() => None,
            None => {
                let rules = self.rules_of_reply();
                let origin = match Arc::ptr_eq(last, &self.context.received) {
                    true => Origin::Received,
                    false => Origin::Response,
                };
                request::check(rules, last, origin)?;
                Some(last.clone())
            }
        };
        self.reply(Status::Delivered, message)
    }

    /// What the sender gets when the route distributes.
    pub(crate) async fn acknowledgement(&self, status: Status) -> Result<Reply, Fault> {
        let message = match &self.route.reply {
            Some(plan) if !plan.transforms.is_empty() => {
                let received = &self.context.received;
                let ack = format!(
                    "{{\"id\":\"{}\",\"status\":\"{}\"}}",
                    received.id,
                    status.name()
                );
                let mut message = received.with_body(ack);
                message.attachments = Attachments::default();
                message.format = Some(Format::Json);
                message
                    .headers
                    .set("content-type", Format::Json.media_type());
                let reply = self.make_reply(plan, &Arc::new(message)).await?;
                if let Some(fits) = self.fits {
                    fits(&reply).map_err(|fault| fault.at(&Arc::from("reply")))?;
                }
                Some(reply)
            }
            _ => None,
        };
        self.reply(status, message)
    }

    /// What a reply to the received message is held against.
    fn rules_of_reply(&self) -> Option<&Arc<dyn Rules>> {
        let rules = self.route.checks.response.as_ref()?;
        rules.answers(&self.context.received).then_some(rules)
    }

    async fn make_reply(
        &self,
        plan: &ReplyPlan,
        from: &Arc<Message>,
    ) -> Result<Arc<Message>, Fault> {
        let step: Arc<str> = Arc::from("reply");
        let mut message = transform(&plan.transforms, from, &self.context)
            .await
            .map_err(|fault| fault.at(&step))?;
        // A route that answers by itself says what it answers with: beside a body that it made, what
        // was received and nobody has set again does not go back.
        if Arc::ptr_eq(from, &self.context.received)
            && !from.attachments.is_empty()
            && message.attachments.same(&from.attachments)
            && !message.body.same(&from.body)
        {
            Arc::make_mut(&mut message).attachments = Attachments::default();
        }
        if let Some(content_type) = &plan.content_type {
            Arc::make_mut(&mut message)
                .headers
                .set("content-type", content_type);
        }
        request::check(self.rules_of_reply(), &message, Origin::Made)
            .map_err(|fault| fault.at(&step))?;
        Ok(message)
    }

    pub(crate) fn reply(
        &self,
        status: Status,
        message: Option<Arc<Message>>,
    ) -> Result<Reply, Fault> {
        let plan = self
            .route
            .reply
            .as_ref()
            .filter(|_| status != Status::Filtered);
        let mut headers = Headers::new();
        for (name, value) in plan.map_or(&[][..], |plan| &plan.headers) {
            let from = message.as_ref().unwrap_or(&self.context.received);
            headers.set(name, &value.render(from, &self.context)?);
        }
        if plan.is_some() {
            let incidents = self.bus.incidents();
            incidents.succeeded(&self.route.name, "reply");
        }
        Ok(Reply {
            id: self.id(),
            status,
            http_status: plan.and_then(|plan| plan.status),
            headers,
            message,
        })
    }

    /// Writes the journal entry of a message that is done, unless its decision did. Waits for the
    /// disk only when a key must be remembered.
    pub(crate) async fn finish(&mut self, outcome: Outcome, status: Status) -> Result<(), Fault> {
        // One line a message would cost more than the message; the journal has it.
        tracing::debug!(
            status = status.name(),
            micros = self.started.elapsed().as_micros() as u64,
            "done"
        );
        if self.journalled {
            return Ok(());
        }
        let mut changes = self.journal(outcome, None);
        changes.append(&mut self.remember);
        if self.begun {
            changes.push(Change::ProtocolEnd { id: self.id() });
        }
        let remembers = changes
            .iter()
            .any(|change| matches!(change, Change::Remember { .. }));
        let durability = if remembers {
            Durability::Synced
        } else {
            Durability::Lazy
        };
        let result = self
            .bus
            .store()
            .commit(Commit::from(changes), durability)
            .await;
        self.journalled = true;
        match result {
            Ok(()) => Ok(()),
            Err(error) if remembers => Err(cannot_keep(&error)),
            Err(error) => {
                tracing::warn!(%error, "a journal entry was not kept");
                Ok(())
            }
        }
    }

    /// The journal entry as it stands, and the payload where it is kept.
    pub(crate) fn journal(&self, outcome: Outcome, fault: Option<&Fault>) -> Vec<Change> {
        let received = &self.context.received;
        let entry = JournalEntry {
            id: received.id,
            correlation_id: received.correlation_id.clone(),
            cause: self.cause,
            route: self.route.name.clone(),
            received_at: received.received_at,
            took_micros: self.started.elapsed().as_micros() as u64,
            outcome,
            keys: self.keys.clone(),
            targets: self.entries_in_order(),
            fault: fault.map(|fault| JournalFault {
                code: Arc::from(fault.code.name()),
                step: fault.step.clone(),
                reason: fault.for_admin().into_owned(),
            }),
        };
        let keep = match self.route.payloads {
            Payloads::None => false,
            Payloads::Failed => matches!(outcome, Outcome::Failed | Outcome::InDoubt),
            Payloads::All => true,
        };
        let mut changes = vec![Change::Journal(entry)];
        if keep && self.complete {
            changes.push(Change::Payload(received.clone()));
        }
        changes
    }

    /// What is known of the targets, as the route lists them; compensable steps come first.
    fn entries_in_order(&self) -> Vec<TargetEntry> {
        let mut entries = self.entries.clone();
        let place = |entry: &TargetEntry| {
            let name = &entry.name;
            let among = |target: &crate::plan::Target| target.step.name == *name;
            self.route
                .targets
                .iter()
                .position(among)
                .map_or(0, |at| at + 1)
        };
        entries.sort_by_key(place);
        entries
    }

    /// Journals a failure and tells whom it concerns.
    async fn failed(&mut self, fault: &Fault) {
        let by_sender = fault.code.is_rejection() || fault.code == Code::Overloaded;
        if !(self.waits && by_sender) || self.may_be_logged() {
            tracing::warn!(
                code = fault.code.name(),
                step = fault.step.as_deref().unwrap_or(""),
                error = fault.for_log(),
                "failed"
            );
        }
        let own = self.in_doubt
            || is_unknown(fault)
            || match fault.code {
                Code::Transform | Code::Internal => true,
                // Definite failures were told where they were sent; an answer that breaks the rules, or
                // that was lost, was not.
                Code::Destination => !fault.told,
                _ => !self.waits && fault.rejected,
            };
        if own && !self.journalled {
            let step = fault.step.as_deref().unwrap_or("route");
            let kind = if self.outcome_of(fault) == Outcome::InDoubt {
                "in-doubt"
            } else if fault.rejected {
                "rejection"
            } else if is_unknown(fault) || fault.code == Code::Destination {
                "outage"
            } else {
                fault.code.name()
            };
            self.bus.incidents().failed(
                &self.route.name,
                step,
                kind,
                &fault.for_admin(),
                Some(self.id()),
                self.route.waits_in().as_deref(),
            );
        }
        if !self.journalled {
            let outcome = self.outcome_of(fault);
            self.note_the_rest(fault, outcome);
            let changes = self.journal(outcome, Some(fault));
            let commit = Commit::from(changes);
            // Who decides an unknown outcome needs its reason, also after a kill.
            let durability = match outcome {
                Outcome::InDoubt => Durability::Written,
                _ => Durability::Lazy,
            };
            if let Err(error) = self.bus.store().commit(commit, durability).await {
                tracing::warn!(%error, "a journal entry was not kept");
            }
        }
        if self.attempts == 0 && !self.route.on_fault.is_empty() {
            self.on_fault(fault).await;
        }
    }

    /// Who floods a route with what it cannot take does not flood the log.
    fn may_be_logged(&self) -> bool {
        let route = self.route.name.clone();
        self.route.told_senders.admits(move |more| {
            tracing::warn!(%route, more, "further messages failed, see the journal");
        })
    }

    /// Targets of a failed message of which nothing is known yet were not reached; those of one
    /// that will be tried again wait.
    fn note_the_rest(&mut self, fault: &Fault, outcome: Outcome) {
        let route: &'a Route = self.route;
        for target in &route.targets {
            let name = &target.step.name;
            if !self.entries.iter().any(|entry| entry.name == *name) {
                let failed = fault.step.as_ref() == Some(name);
                let error = failed.then(|| fault.for_admin().into_owned());
                let outcome = if failed {
                    Outcome::Failed
                } else {
                    Outcome::Skipped
                };
                self.note(name, outcome, error);
            }
        }
        if outcome == Outcome::Pending {
            for entry in &mut self.entries {
                if matches!(
                    entry.outcome,
                    Outcome::Failed | Outcome::Undone | Outcome::Skipped
                ) {
                    entry.outcome = Outcome::Queued;
                }
            }
        }
    }

    fn outcome_of(&self, fault: &Fault) -> Outcome {
        let final_for_receiver = fault.rejected || fault.code == Code::Transform;
        let set_aside = fault.code == Code::InDoubt;
        if self.in_doubt || set_aside || (self.waits && is_unknown(fault)) {
            Outcome::InDoubt
        } else if self.waits || final_for_receiver {
            Outcome::Failed
        } else {
            Outcome::Pending
        }
    }

    /// Notes what became of a target.
    pub(crate) fn note(&mut self, name: &Arc<str>, outcome: Outcome, error: Option<String>) {
        let attempts = u32::from(!matches!(outcome, Outcome::Skipped | Outcome::Queued));
        let entry = TargetEntry {
            name: name.clone(),
            outcome,
            attempts: attempts * (self.attempts + 1),
            error,
            at: Timestamp::now(),
        };
        match self.entries.iter_mut().find(|known| known.name == *name) {
            Some(known) => *known = entry,
            None => self.entries.push(entry),
        }
    }
}

/// The fault of a commit that the store did not take.
pub(crate) fn cannot_keep(error: &StoreError) -> Fault {
    Fault::new(Code::Overloaded, "the bus cannot keep messages now")
        .detail(error.to_string())
        .retry_after(std::time::Duration::from_secs(10))
}
