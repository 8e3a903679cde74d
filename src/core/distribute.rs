//! Distribution: every target gets the same message, all or nothing.
//!
//! The order is make, stage, deliver, commit (see docs/guarantees.md). A single target needs no
//! protocol, but where a repeat has to be known: its own answer is the decision. Targets that are all entries of embedded queues need
//! none either: one commit of the store takes them all.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::adapter::{Call, Reach, SendError, Stage};
use crate::bus::Bus;
use crate::codec::Encoder;
use crate::forward::Handover;
use crate::inbox::underway_scope;
use crate::plan::{Route, Step, Target};
use crate::protocol::{How, Planned, Record};
use crate::recovery::Left;
use crate::request::{self, holds};
use crate::router::{Compensable, Journey, cannot_keep, this_run};
use crate::store::{Change, Commit, Durability, Outcome, TargetEntry};
use crate::transform::{Context, Value};
use crate::{
    Attachments, Code, Fault, Format, Message, MessageId, Reply, Request, Status, Timestamp,
};

/// A decided target that takes longer to be visible is pending in the journal.
const MOMENT: Duration = Duration::from_millis(250);

/// How long what a crash has broken off is known when its receiver brings it again.
const SEEN_AGAIN: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How a distribution ended.
pub(crate) enum Distributed {
    /// No target wanted the message, and the route drops what nobody wants.
    Unmatched,
    /// Done, with what the sender gets.
    Done(Reply),
}

/// A target whose request is made.
struct Made<'a> {
    step: &'a Step,
    message: Arc<Message>,
    how: MadeHow,
}

enum MadeHow {
    /// Goes into a queue with the decision. `later` when its delivery is part of this message.
    Put {
        how: How,
        later: bool,
    },
    Stage(Box<dyn Stage>),
    Call(Box<dyn Call>),
}

impl<'a> Journey<'a> {
    /// Distributes `base` to the targets that want it.
    pub(crate) async fn distribute(&mut self, base: Arc<Message>) -> Result<Distributed, Fault> {
        let prepared = self.prepare(&base).await;
        let (made, reply) = match prepared {
            Ok(Some(prepared)) => prepared,
            Ok(None) => return Ok(Distributed::Unmatched),
            Err(fault) => return Err(self.give_up(fault).await),
        };
        let outside = made.iter().filter(|made| !made.is_put()).count();
        let status = if self.route.no_rollback {
            self.each_for_itself(made, reply.status).await?
        } else if outside == 0 {
            self.decide(&made, &[]).await?;
            reply.status
        } else if made.len() == 1 && !self.begun && !self.may_be_repeated() {
            self.single(&made[0]).await?;
            reply.status
        } else {
            self.all_or_nothing(&made, reply.status).await?
        };
        self.finish(self.outcome(status), status).await?;
        Ok(Distributed::Done(Reply { status, ..reply }))
    }

    /// Makes every request and the reply. What fails here has touched nothing.
    async fn prepare(
        &mut self,
        base: &Arc<Message>,
    ) -> Result<Option<(Vec<Made<'a>>, Reply)>, Fault> {
        let selected = self.select(base)?;
        if selected.is_empty() {
            return if self.route.drop_unmatched {
                Ok(None)
            } else {
                Err(Fault::new(
                    Code::Unroutable,
                    "no target of the route wants this message",
                ))
            };
        }
        let mut made = Vec::with_capacity(selected.len());
        for target in selected {
            let step = &target.step;
            made.push(
                make(self.bus, target, base, &self.context)
                    .await
                    .map_err(|fault| fault.at(&step.name))?,
            );
        }
        self.at_most_one_shot(&made)?;
        let later = made
            .iter()
            .any(|made| matches!(made.how, MadeHow::Put { later: true, .. }));
        let status = if later {
            Status::Accepted
        } else {
            Status::Delivered
        };
        let reply = self.acknowledgement(status).await?;
        Ok(Some((made, reply)))
    }

    fn select(&mut self, base: &Arc<Message>) -> Result<Vec<&'a Target>, Fault> {
        let route: &'a Route = self.route;
        let mut selected = Vec::with_capacity(route.targets.len());
        let mut any_matched = false;
        for target in route.targets.iter().filter(|target| !target.otherwise) {
            let Some(when) = &target.step.when else {
                selected.push(target);
                continue;
            };
            if holds(&**when, base, &self.context).map_err(|f| f.at(&target.step.name))? {
                any_matched = true;
                selected.push(target);
            } else {
                self.note(&target.step.name, Outcome::Skipped, None);
            }
        }
        for target in route.targets.iter().filter(|target| target.otherwise) {
            if any_matched {
                self.note(&target.step.name, Outcome::Skipped, None);
            } else {
                selected.push(target);
            }
        }
        Ok(selected)
    }

    fn at_most_one_shot(&self, made: &[Made<'_>]) -> Result<(), Fault> {
        let shots: Vec<&str> = made
            .iter()
            .filter(|made| made.is_one_shot())
            .map(|made| &*made.step.name)
            .collect();
        if shots.len() > 1 && !self.route.no_rollback {
            return Err(Fault::new(
                Code::Internal,
                "the message matches more targets than the route can keep together",
            )
            .detail(format!(
                "the conditions of {} matched together, and neither can be taken back: nothing was sent; make them exclusive, async, or give them 'compensate'",
                shots.join(" and ")
            )));
        }
        Ok(())
    }

    /// Whether a caller that learns nothing, since the bus is killed, comes again with a key by which it
    /// is to be known: then even one target alone needs records that outlive the kill.
    fn may_be_repeated(&self) -> bool {
        self.waits && self.underway.is_some()
    }

    /// One target outside of the store: its answer is the decision.
    async fn single(&mut self, made: &Made<'_>) -> Result<(), Fault> {
        match self.execute(made).await {
            Ok(response) => {
                let missed = response.headers.get(request::PARTLY).map(str::to_owned);
                self.note(&made.step.name, Outcome::Delivered, missed);
                Ok(())
            }
            Err(mut fault) => {
                // Alone, it is simply tried again where nobody waits for the answer.
                if fault.code == Code::InDoubt && !self.waits {
                    fault.code = Code::Destination;
                }
                let unknown = is_unknown(&fault) && self.waits;
                let outcome = if unknown {
                    self.in_doubt = true;
                    Outcome::InDoubt
                } else {
                    Outcome::Failed
                };
                self.note(
                    &made.step.name,
                    outcome,
                    Some(fault.for_admin().into_owned()),
                );
                Err(fault)
            }
        }
    }

    /// `rollback: none`: each target in the order written, whatever became of the others.
    async fn each_for_itself(
        &mut self,
        made: Vec<Made<'a>>,
        status: Status,
    ) -> Result<Status, Fault> {
        let mut first_fault = None;
        for made in &made {
            let result = match &made.how {
                MadeHow::Put { how, .. } => self.put_alone(made.step, how).await,
                _ => self.single(made).await,
            };
            if let Err(fault) = result {
                first_fault.get_or_insert(fault);
            }
        }
        match first_fault {
            Some(fault) => Err(fault),
            None => Ok(status),
        }
    }

    async fn put_alone(&mut self, step: &Step, how: &How) -> Result<(), Fault> {
        let mut changes: Vec<Change> = how.put().into_iter().collect();
        // The journal entry must be there before the lane reports to it.
        self.note(&step.name, Outcome::Queued, None);
        changes.extend(self.journal(Outcome::Pending, None));
        let committed = self.commit(changes, &[how], step.timeout).await;
        committed.map_err(|fault| {
            self.note(
                &step.name,
                Outcome::Failed,
                Some(fault.for_admin().into_owned()),
            );
            fault.at(&step.name)
        })
    }

    /// Sends one request that is not an entry of a queue.
    async fn execute(&self, made: &Made<'_>) -> Result<Arc<Message>, Fault> {
        let step = made.step;
        match &made.how {
            MadeHow::Call(call) => {
                request::send(self.bus, self.route, step, &made.message, &**call)
                    .await
                    .map(Arc::new)
            }
            MadeHow::Stage(stage) => {
                let call = StageAndCommit(&**stage, made.message.clone());
                request::send(self.bus, self.route, step, &made.message, &call)
                    .await
                    .map(Arc::new)
            }
            MadeHow::Put { .. } => Ok(made.message.clone()),
        }
    }

    /// The protocol for several targets.
    async fn all_or_nothing(&mut self, made: &[Made<'a>], status: Status) -> Result<Status, Fault> {
        let route: &'a Route = self.route;
        let stages: Vec<&Made<'a>> = made.iter().filter(|made| made.is_stage()).collect();
        let (mut calls, shots): (Vec<&Made<'a>>, Vec<&Made<'a>>) = made
            .iter()
            .filter(|made| made.is_call())
            .partition(|made| made.step.compensate.is_some());
        calls.extend(shots);
        // The start of the first call is known in the same commit when nothing comes between.
        let mut records = vec![Record::Targets(made.iter().map(Made::planned).collect())];
        let mut announced = None;
        if let (true, Some(first)) = (stages.is_empty(), calls.first()) {
            records.push(Record::Started {
                step: first.step.name.clone(),
            });
            announced = Some(first.step.name.clone());
        }
        if let Err(fault) = self.begin(records).await {
            return Err(self.give_up(fault).await);
        }
        for made in &stages {
            if let Err(error) = self.stage(made).await {
                let fault = request::report(self.bus, route, made.step, &made.message, error);
                return Err(self.abort(&stages, made, fault).await);
            }
        }
        for made in calls {
            if announced.as_ref() != Some(&made.step.name) {
                let started = Record::Started {
                    step: made.step.name.clone(),
                };
                if let Err(fault) = self.begin(vec![started]).await {
                    return Err(self.abort(&stages, made, fault).await);
                }
            }
            let result = self.execute(made).await;
            match result {
                Ok(response) => {
                    let missed = response.headers.get(request::PARTLY).map(str::to_owned);
                    self.note(&made.step.name, Outcome::Delivered, missed);
                    self.ended(made, response).await;
                }
                Err(fault) if is_unknown(&fault) => {
                    return Err(self.leave_in_doubt(&stages, made, fault).await);
                }
                Err(fault) => {
                    self.write(vec![Record::Refused {
                        step: made.step.name.clone(),
                    }])
                    .await;
                    return Err(self.abort(&stages, made, fault).await);
                }
            }
        }
        for made in &stages {
            self.note(&made.step.name, Outcome::Delivered, None);
        }
        if let Err(fault) = self.decide(made, &[Record::Decided]).await {
            // The records say nothing of a decision, so that undoing is right.
            let fault = self.undo(&stages, fault).await;
            return Err(fault);
        }
        Ok(self.make_visible(stages, status).await)
    }

    async fn stage(&self, made: &Made<'_>) -> Result<(), SendError> {
        let MadeHow::Stage(stage) = &made.how else {
            return Ok(());
        };
        within(Instant::now() + made.step.timeout, stage.stage()).await
    }

    /// Writes protocol records and waits until they are durable; Begin comes by itself.
    pub(crate) async fn begin(&mut self, mut records: Vec<Record>) -> Result<(), Fault> {
        if !self.begun {
            records.insert(
                0,
                Record::Begin {
                    route: self.route.name.clone(),
                    received: self.context.received.clone(),
                },
            );
        }
        let mut changes: Vec<Change> = records.iter().map(|r| r.change(self.id())).collect();
        if !self.begun {
            changes.extend(self.in_case_of_a_crash());
        }
        self.bus
            .store()
            .commit(Commit::from(changes), Durability::Synced)
            .await
            .map_err(|error| cannot_keep(&error))?;
        self.begun = true;
        Ok(())
    }

    /// What is to be known of the message after a crash: the key of `once`, what its receiver would see again,
    /// and a journal entry with its keys.
    fn in_case_of_a_crash(&self) -> Vec<Change> {
        let mut id = Encoder::new();
        id.id(self.id()).id(this_run());
        let value = id.finish();
        let scope = underway_scope(&self.route.name);
        let until = Some(Timestamp::now().after(SEEN_AGAIN));
        let seen = self
            .seen_again_as()
            .into_iter()
            .map(|key| Change::Remember {
                scope: scope.clone(),
                key,
                value: value.clone(),
                until,
            });
        let entry = self.journal(Outcome::Pending, None);
        let entry = entry
            .into_iter()
            .filter(|change| matches!(change, Change::Journal(_)));
        self.underway
            .iter()
            .cloned()
            .chain(seen)
            .chain(entry)
            .collect()
    }

    /// Writes records that outlive a kill; a power loss may take them, and recovery then finds an unknown outcome.
    async fn write(&self, records: Vec<Record>) {
        let mut changes: Vec<Change> = records.iter().map(|r| r.change(self.id())).collect();
        if matches!(records[..], [Record::InDoubt]) {
            changes.extend(self.not_underway());
        }
        let commit = Commit::from(changes);
        if let Err(error) = self.bus.store().commit(commit, Durability::Written).await {
            tracing::warn!(%error, "a step of the protocol was not kept");
        }
    }

    async fn ended(&mut self, made: &Made<'a>, response: Arc<Message>) {
        if made.step.compensate.is_some() {
            self.remember_compensable(made.step, made.message.clone(), response)
                .await;
        }
    }

    /// Notes how a compensable `invoke` ended.
    pub(crate) async fn note_compensable(
        &mut self,
        step: &'a Step,
        request: Arc<Message>,
        result: &Result<Message, Fault>,
    ) {
        match result {
            Ok(response) => {
                self.note(&step.name, Outcome::Delivered, None);
                self.remember_compensable(step, request, Arc::new(response.clone()))
                    .await;
            }
            Err(fault) if is_unknown(fault) => {
                self.in_doubt = true;
                self.note(
                    &step.name,
                    Outcome::InDoubt,
                    Some(fault.for_admin().into_owned()),
                );
                self.write(vec![Record::InDoubt]).await;
            }
            Err(_) => {
                self.write(vec![Record::Refused {
                    step: step.name.clone(),
                }])
                .await;
            }
        }
    }

    async fn remember_compensable(
        &mut self,
        step: &'a Step,
        request: Arc<Message>,
        response: Arc<Message>,
    ) {
        self.write(vec![Record::Ended {
            step: step.name.clone(),
            request: request.clone(),
            response: response.clone(),
        }])
        .await;
        self.done.push(Compensable {
            step,
            request,
            response,
        });
    }

    /// The decision: journal, entries of queues and remembered keys in one durable commit.
    async fn decide(&mut self, made: &[Made<'_>], records: &[Record]) -> Result<(), Fault> {
        let mut later = false;
        let mut puts = Vec::new();
        for made in made {
            if let MadeHow::Put { how, later: l } = &made.how {
                later |= *l;
                let outcome = if *l {
                    Outcome::Queued
                } else {
                    Outcome::Delivered
                };
                self.note(&made.step.name, outcome, None);
                puts.push(how);
            }
        }
        let outcome = if later {
            Outcome::Pending
        } else {
            Outcome::Delivered
        };
        let mut changes: Vec<Change> = records.iter().map(|r| r.change(self.id())).collect();
        changes.extend(self.journal(outcome, None));
        changes.extend(puts.iter().filter_map(|how| how.put()));
        changes.append(&mut self.remember);
        let patience = made.iter().map(|made| made.step.timeout).max();
        let committed = self.commit(changes, &puts, patience.unwrap_or_default());
        if let Err(fault) = committed.await {
            for made in made.iter().filter(|made| made.is_put()) {
                self.note(&made.step.name, Outcome::Undone, None);
            }
            return Err(fault);
        }
        self.journalled = true;
        Ok(())
    }

    /// Commits, and waits up to `patience` until brokers have what goes into their lanes.
    async fn commit(
        &self,
        changes: Vec<Change>,
        puts: &[&How],
        patience: Duration,
    ) -> Result<(), Fault> {
        let handovers: Vec<Handover> = puts
            .iter()
            .filter_map(|how| match how {
                How::Put { queue, message, .. } => self.bus.homes().expect(queue, message.id),
                _ => None,
            })
            .collect();
        self.bus
            .store()
            .commit(Commit::from(changes), Durability::Synced)
            .await
            .map_err(|error| {
                self.bus.store_failed(&error);
                cannot_keep(&error)
            })?;
        for how in puts {
            if let How::Put { queue, key, .. } = how {
                self.bus.wake(queue, key);
            }
        }
        let deadline = Instant::now() + patience;
        for handover in handovers {
            handover.wait(deadline).await;
        }
        Ok(())
    }

    /// After the decision: makes staged targets visible. What does not succeed in time goes on in
    /// the background, and the sender is told `accepted`.
    async fn make_visible(&mut self, stages: Vec<&Made<'a>>, status: Status) -> Status {
        let (mut open, mut left) = (Vec::new(), Vec::new());
        let mut told = false;
        for (at, made) in stages.iter().enumerate() {
            let MadeHow::Stage(stage) = &made.how else {
                continue;
            };
            let started = Instant::now();
            let commit = stage.commit_until(started + made.step.timeout);
            tokio::pin!(commit);
            let result = match timeout(MOMENT, &mut commit).await {
                Ok(result) => result,
                Err(_) => {
                    if !told {
                        self.journal_as_open(&stages[at..]).await;
                        told = true;
                    }
                    commit.await
                }
            };
            request::count(made.step, result.is_ok(), started.elapsed());
            let (outcome, error) = match result {
                Ok(()) => (Outcome::Delivered, None),
                Err(error) => (Outcome::Queued, Some(error)),
            };
            let detail = error.as_ref().map(|error| error.detail.clone());
            self.note(&made.step.name, outcome, detail);
            match error {
                Some(error) => {
                    open.push(*made);
                    left.push(Left {
                        target: made.step.name.clone(),
                        may_be_done: error.timed_out,
                    });
                    request::report(self.bus, self.route, made.step, &made.message, error);
                }
                None => self
                    .bus
                    .incidents()
                    .succeeded(&self.route.name, &made.step.name),
            }
        }
        if !open.is_empty() && !told {
            self.journal_as_open(&open).await;
            told = true;
        }
        let mut changes = Vec::new();
        if told {
            changes = self.targets_of(&stages);
        }
        if open.is_empty() {
            changes.push(Change::ProtocolEnd { id: self.id() });
        }
        changes.extend(self.not_underway());
        self.keep(changes).await;
        if open.is_empty() {
            return status;
        }
        self.bus.finish_later(self.id(), left);
        Status::Accepted
    }

    /// The decision's entry says that all is delivered; what is not visible for longer than a moment
    /// is pending.
    async fn journal_as_open(&mut self, stages: &[&Made<'a>]) {
        for made in stages {
            let error = self
                .entries
                .iter()
                .find(|entry| entry.name == made.step.name)
                .and_then(|entry| entry.error.clone());
            self.note(&made.step.name, Outcome::Queued, error);
        }
        let mut changes = self.journal(Outcome::Pending, None);
        changes.retain(|change| matches!(change, Change::Journal(_)));
        self.keep(changes).await;
    }

    /// What the journal is to say of these targets now.
    fn targets_of(&self, stages: &[&Made<'a>]) -> Vec<Change> {
        let names = |entry: &&TargetEntry| stages.iter().any(|made| made.step.name == entry.name);
        self.entries
            .iter()
            .filter(names)
            .map(|target| Change::Target {
                id: self.id(),
                target: target.clone(),
            })
            .collect()
    }

    /// Writes what recovery would find out again.
    async fn keep(&self, changes: Vec<Change>) {
        let commit = Commit::from(changes);
        if let Err(error) = self.bus.store().commit(commit, Durability::Lazy).await {
            tracing::warn!(%error, "what became of a decided distribution was not kept; the next start finds out again");
        }
    }

    /// A definite failure before the decision: everything is taken back.
    async fn abort(&mut self, stages: &[&Made<'a>], at: &Made<'_>, fault: Fault) -> Fault {
        self.note(
            &at.step.name,
            Outcome::Failed,
            Some(fault.for_admin().into_owned()),
        );
        self.undo(stages, fault).await
    }

    async fn undo(&mut self, stages: &[&Made<'a>], fault: Fault) -> Fault {
        self.undo_all(stages).await;
        self.unless_in_doubt(fault)
    }

    /// What could not be undone leaves the message in doubt, whatever had failed first.
    pub(crate) fn unless_in_doubt(&self, mut fault: Fault) -> Fault {
        if self.in_doubt {
            fault.code = Code::InDoubt;
            fault.reason = "a part of the message could neither be finished nor undone".to_owned();
            fault.rejected = false;
        }
        fault
    }

    /// Takes staged targets back; whether all could be.
    async fn undo_all_stages(&mut self, stages: &[(&'a Step, &dyn Stage)]) -> bool {
        let mut clean = true;
        for (step, stage) in stages.iter().rev() {
            if let Err(error) = stage.undo().await {
                clean = false;
                tracing::error!(step = %step.name, error = %error.detail, "a staged target could not be undone; the next start tries again");
            }
            let failed = self
                .entries
                .iter()
                .any(|e| e.name == step.name && e.outcome == Outcome::Failed);
            if !failed {
                self.note(&step.name, Outcome::Undone, None);
            }
        }
        clean
    }

    /// Compensates what was done before any target was staged.
    pub(crate) async fn undo_invokes(&mut self) {
        self.undo_all(&[]).await;
    }

    /// Takes staged targets back and compensates what was done, backwards.
    async fn undo_all(&mut self, stages: &[&Made<'a>]) {
        let staged: Vec<(&'a Step, &dyn Stage)> = stages
            .iter()
            .filter_map(|made| match &made.how {
                MadeHow::Stage(stage) => Some((made.step, &**stage)),
                _ => None,
            })
            .collect();
        let mut clean = self.undo_all_stages(&staged).await;
        while let Some(done) = self.done.pop() {
            match compensate(self.bus, self.route, &self.context, &done).await {
                Ok(()) => {
                    self.note(&done.step.name, Outcome::Compensated, None);
                    let step = done.step.name.clone();
                    self.write(vec![Record::Compensated { step }]).await;
                }
                Err(fault) => {
                    clean = false;
                    self.in_doubt = true;
                    self.note(
                        &done.step.name,
                        Outcome::InDoubt,
                        Some(format!("the compensation failed: {fault}")),
                    );
                    break;
                }
            }
        }
        if clean && !self.in_doubt {
            let mut end = vec![Change::ProtocolEnd { id: self.id() }];
            end.extend(self.not_underway());
            let end = Commit::from(end);
            if let Err(error) = self.bus.store().commit(end, Durability::Lazy).await {
                tracing::warn!(%error, "the end of an undone distribution was not kept");
            }
        } else if self.in_doubt {
            self.write(vec![Record::InDoubt]).await;
        }
    }

    /// The outcome of a call is unknown: what is staged stays, and an administrator decides.
    async fn leave_in_doubt(&mut self, stages: &[&Made<'a>], at: &Made<'_>, fault: Fault) -> Fault {
        self.in_doubt = true;
        for made in stages {
            self.note(&made.step.name, Outcome::Queued, None);
        }
        self.note(
            &at.step.name,
            Outcome::InDoubt,
            Some(fault.for_admin().into_owned()),
        );
        self.write(vec![Record::InDoubt]).await;
        let mut in_doubt = Fault::new(
            Code::InDoubt,
            "the destination's answer was lost; whether it acted is unknown",
        )
        .detail(fault.for_log())
        .at(&at.step.name);
        in_doubt.answer = fault.answer;
        in_doubt
    }

    fn outcome(&self, status: Status) -> Outcome {
        match status {
            Status::Accepted => Outcome::Pending,
            _ => Outcome::Delivered,
        }
    }

    /// Gives the fault to the route's `on_fault` targets, each for itself.
    pub(crate) async fn on_fault(&mut self, fault: &Fault) {
        let body = serde_json::json!({
            "id": self.id().to_string(),
            "route": &*self.route.name,
            "step": fault.step.as_deref(),
            "code": fault.code.name(),
            "reason": &*fault.for_admin(),
            "at": crate::Timestamp::now().to_string(),
        });
        let mut message = self.context.received.with_body(body.to_string());
        message.attachments = Attachments::default();
        message.format = Some(Format::Json);
        message
            .headers
            .set("content-type", Format::Json.media_type());
        let message = Arc::new(message);
        let route: &'a Route = self.route;
        for target in &route.on_fault {
            if let Err(fault) = self.tell_of_fault(target, &message).await {
                tracing::error!(step = %target.step.name, error = %fault, "a fault could not be handed on");
                self.bus.incidents().failed(
                    &route.name,
                    &target.step.name,
                    "on-fault",
                    &fault.for_admin(),
                    Some(self.id()),
                    None,
                );
            }
        }
    }

    async fn tell_of_fault(
        &mut self,
        target: &'a Target,
        message: &Arc<Message>,
    ) -> Result<(), Fault> {
        if let Some(when) = &target.step.when
            && !holds(&**when, message, &self.context)?
        {
            return Ok(());
        }
        let made = make(self.bus, target, message, &self.context).await?;
        match &made.how {
            MadeHow::Put { how, .. } => {
                let changes = how.put().into_iter().collect();
                self.commit(changes, &[how], target.step.timeout).await
            }
            _ => self.execute(&made).await.map(drop),
        }
    }
}

impl Made<'_> {
    fn is_put(&self) -> bool {
        matches!(self.how, MadeHow::Put { .. })
    }

    fn is_stage(&self) -> bool {
        matches!(self.how, MadeHow::Stage(_))
    }

    fn is_call(&self) -> bool {
        matches!(self.how, MadeHow::Call(_))
    }

    fn is_one_shot(&self) -> bool {
        self.is_call() && self.step.compensate.is_none()
    }

    fn planned(&self) -> Planned {
        Planned {
            target: self.step.name.clone(),
            how: match &self.how {
                MadeHow::Put { how, .. } => how.clone(),
                MadeHow::Stage(stage) => How::Staged(stage.token()),
                MadeHow::Call(_) => How::Called,
            },
        }
    }
}

/// Makes the request of one target.
async fn make<'a>(
    bus: &Bus,
    target: &'a Target,
    base: &Arc<Message>,
    context: &Context,
) -> Result<Made<'a>, Fault> {
    let step = &target.step;
    let message = request::make(step, base, context).await?;
    let how = match &target.lane {
        Some(lane) => {
            let key = match &lane.order_by {
                Some(order_by) => key_of(order_by.evaluate(&message, context)?),
                None => Arc::from(""),
            };
            MadeHow::Put {
                how: How::Put {
                    queue: lane.queue.clone(),
                    key,
                    message: message.clone(),
                    entry: step.name.clone(),
                    cause: None,
                },
                later: true,
            }
        }
        None => match step.sender.make(message.clone(), context)? {
            Request::Call(call) => MadeHow::Call(call),
            Request::Stage(stage) => MadeHow::Stage(stage),
            Request::Put(put) => MadeHow::Put {
                how: enqueue(bus, put.queue, &put.message, context)?,
                later: false,
            },
        },
    };
    debug_assert!(target.lane.is_some() || reach_fits(step, &how));
    Ok(Made { step, message, how })
}

fn reach_fits(step: &Step, how: &MadeHow) -> bool {
    match how {
        MadeHow::Put { .. } => step.sender.reach() == Reach::Queue,
        MadeHow::Stage(_) => step.sender.reach() == Reach::Staged,
        MadeHow::Call(_) => step.sender.reach() == Reach::OneShot,
    }
}

/// An entry of a classic queue: a message of its own, caused by this one, in the lane that the
/// queue's reader orders it into.
pub(crate) fn enqueue(
    bus: &Bus,
    queue: Arc<str>,
    message: &Arc<Message>,
    context: &Context,
) -> Result<How, Fault> {
    let mut entry = (**message).clone();
    entry.id = MessageId::new();
    entry.correlation_id = Some(Arc::from(message.correlation()));
    let entry = Arc::new(entry);
    let plan = bus.plan();
    let key = match plan.readers.get(&queue) {
        Some(reader) => match &reader.order_by {
            Some(order_by) => key_of(order_by.evaluate(&entry, context)?),
            None if reader.spread > 1 => {
                let lane = entry.id.as_u128() % reader.spread as u128;
                Arc::from(format!("~{lane}"))
            }
            None => Arc::from(""),
        },
        None => Arc::from(""),
    };
    Ok(How::Put {
        queue,
        key,
        message: entry,
        entry: Arc::from(""),
        cause: Some(message.id),
    })
}

fn key_of(value: Value) -> Arc<str> {
    Arc::from(value.into_text())
}

/// Whether a fault leaves open what the destination did.
pub(crate) fn is_unknown(fault: &Fault) -> bool {
    matches!(fault.code, Code::InDoubt | Code::Timeout) && !fault.untouched
}

/// Waits for `work` until `deadline`. The work itself finishes or ends by its own means: file and
/// store operations cannot be cancelled and are safe to repeat.
pub(crate) async fn within(
    deadline: Instant,
    work: impl Future<Output = Result<(), SendError>>,
) -> Result<(), SendError> {
    match tokio::time::timeout_at(deadline, work).await {
        Ok(result) => result,
        Err(_) => Err(SendError::outage("it took longer than the step's timeout").timed_out()),
    }
}

/// Staging and committing at once, for a target that is alone.
pub(crate) struct StageAndCommit<'a>(&'a dyn Stage, Arc<Message>);

impl<'a> StageAndCommit<'a> {
    pub(crate) fn new(stage: &'a dyn Stage, message: Arc<Message>) -> Self {
        Self(stage, message)
    }
}

impl Call for StageAndCommit<'_> {
    fn run(
        &self,
        deadline: Instant,
    ) -> futures_util::future::BoxFuture<'_, Result<Message, SendError>> {
        Box::pin(async move {
            self.0.at_once(deadline).await?;
            Ok((*self.1).clone())
        })
    }
}

/// Undoes one request by its `compensate` step.
pub(crate) async fn compensate(
    bus: &Bus,
    route: &Route,
    context: &Context,
    done: &Compensable<'_>,
) -> Result<(), Fault> {
    let Some(step) = &done.step.compensate else {
        return Ok(());
    };
    let mut context = context.clone();
    context.response = Some(done.response.clone());
    let made = request::make(step, &done.request, &context).await?;
    match step.sender.make(made.clone(), &context)? {
        Request::Call(call) => request::send(bus, route, step, &made, &*call)
            .await
            .map(drop),
        Request::Stage(stage) => {
            let call = StageAndCommit(&*stage, made.clone());
            request::send(bus, route, step, &made, &call)
                .await
                .map(drop)
        }
        Request::Put(put) => {
            let how = enqueue(bus, put.queue, &put.message, &context)?;
            let changes: Vec<Change> = how.put().into_iter().collect();
            bus.store()
                .commit(Commit::from(changes), Durability::Synced)
                .await
                .map_err(|error| cannot_keep(&error))?;
            if let How::Put { queue, key, .. } = &how {
                bus.wake(queue, key);
            }
            Ok(())
        }
    }
}
