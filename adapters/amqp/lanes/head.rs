//! One message that is held: tried until it is delivered, set aside or removed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use lapin::types::DeliveryTag;
use tokio::time::Instant;
use xbus_core::broker::{Report, Verdict};
use xbus_core::store::{Outcome, Queued, StoreError};
use xbus_core::{MessageId, Timestamp};

use super::entry::Entry;
use super::failure::Failure;
use super::partition::{End, Partition, SECOND, Session, refuse};
use super::seat::{Act, Command};
use super::state::HeadState;
use super::wire::Ended;
use super::{parked, report};

/// How often a head that waits is looked after: for the channel's age and for other nodes.
const LOOK: Duration = Duration::from_secs(1);
/// The wait after an attempt that ended by a defect.
const AFTER_DEFECT: Duration = Duration::from_secs(5);

/// A message that is held unacknowledged.
pub(super) struct Held {
    entry: Entry,
    queued: Queued,
    /// What the session's channel calls it.
    tag: DeliveryTag,
    /// It was released: it stands before the lane's head.
    front: bool,
    /// When it is to be tried.
    due: Option<Instant>,
}

/// A message that was dealt with.
#[derive(Clone, Debug)]
pub(super) struct Done {
    pub(super) id: MessageId,
    how: How,
    /// Others know: the journal, or the queue of what is parked.
    noted: bool,
}

#[derive(Clone, Debug)]
enum How {
    Delivered {
        attempts: u32,
    },
    Parked {
        attempts: u32,
        reason: String,
    },
    Dropped {
        attempts: u32,
    },
    /// Handed over twice, and dealt with the first time.
    Twice,
}

/// What comes after working on a held message.
pub(super) enum Next {
    /// It left the lane.
    Settled,
    /// First the front.
    Front,
}

/// Why a wait ended early.
enum Woken {
    Due,
    Front,
    Command(Command),
}

impl Partition {
    /// Holds a message, with what is known of it from before.
    pub(super) async fn hold(
        &mut self,
        entry: Entry,
        tag: DeliveryTag,
        redelivered: bool,
        front: bool,
    ) -> Result<Held, End> {
        let mut queued = entry.queued(&self.seat.lane);
        let mut due = None;
        if redelivered {
            self.states.read(&self.nodes.link, &self.seat.queue).await?;
        }
        if let Some(state) = self.states.of(entry.message.id) {
            queued.attempts = state.attempts;
            queued.last_error = Some(state.error.clone());
            queued.next_try = Some(state.next_try());
            due = Some(Instant::now() + state.remaining());
        }
        self.seat.show(&queued);
        Ok(Held {
            entry,
            queued,
            tag,
            front,
            due,
        })
    }

    /// Tries a held message until it leaves, or something else comes first.
    pub(super) async fn work_on(
        &mut self,
        session: &mut Session,
        held: &mut Held,
    ) -> Result<Next, End> {
        loop {
            if let Some(done) = self.known(held) {
                return self.finish(session, held, done).await;
            }
            self.check(session)?;
            if !held.front && self.seat.is_dirty() {
                return Ok(Next::Front);
            }
            let woken = match held.due {
                Some(due) if due > Instant::now() => match self.wait(session, held, due).await? {
                    Some(woken) => woken,
                    None => continue,
                },
                _ => match self.commands.try_recv() {
                    Ok(command) => Woken::Command(command),
                    Err(_) => Woken::Due,
                },
            };
            match woken {
                Woken::Front => return Ok(Next::Front),
                Woken::Command(command) => {
                    if let Some(next) = self.obey(session, held, command).await? {
                        return Ok(next);
                    }
                }
                Woken::Due => {
                    if let Some(done) = self.attempt(session, held).await? {
                        return self.finish(session, held, done).await;
                    }
                }
            }
        }
    }

    /// What is already known of the end of a message that came (again).
    fn known(&self, held: &Held) -> Option<Done> {
        let id = held.entry.message.id;
        let done = if held.front {
            &self.done_front
        } else {
            &self.done
        };
        if let Some(done) = done.as_ref().filter(|done| done.id == id) {
            return Some(done.clone());
        }
        let text = id.to_string();
        if let Some(there) = self.elsewhere.iter().find(|ended| ended.id == text) {
            let attempts = there.attempts;
            tracing::debug!(%id, queue = %self.seat.queue, "was delivered by another node; not sent again");
            return Some(Done {
                id,
                how: How::Delivered { attempts },
                noted: false,
            });
        }
        if let Some(reason) = &held.entry.parked {
            return Some(Done {
                id,
                how: How::Parked {
                    attempts: held.queued.attempts,
                    reason: reason.clone(),
                },
                noted: false,
            });
        }
        if held.front {
            return None;
        }
        let (store, number) = held.entry.origin.as_ref()?;
        let progress = self.seat.worker.progress(self.seat.index, store);
        progress.has(*number).then(|| {
            tracing::debug!(%id, queue = %self.seat.queue, "was handed over twice; not sent again");
            Done {
                id,
                how: How::Twice,
                noted: true,
            }
        })
    }

    /// Sleeps a moment of the wait; `None`: look around and go on.
    async fn wait(
        &mut self,
        session: &mut Session,
        held: &Held,
        due: Instant,
    ) -> Result<Option<Woken>, End> {
        let look = Instant::now() + LOOK;
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(End::Stopped),
            item = session.consumer.next() => Err(match item {
                // One message at a time was asked for.
                Some(Ok(_)) => End::Lost(Failure::new(SECOND)),
                ended => self.lost(ended.and_then(Result::err)),
            }),
            Some(command) = self.commands.recv() => Ok(Some(Woken::Command(command))),
            () = self.seat.woken(), if !held.front => Ok(Some(Woken::Front)),
            () = tokio::time::sleep_until(due.min(look)) => {
                Ok((Instant::now() >= due).then_some(Woken::Due))
            }
        }
    }

    /// Tries once. Something: how it ended.
    async fn attempt(
        &mut self,
        session: &mut Session,
        held: &mut Held,
    ) -> Result<Option<Done>, End> {
        session.prove(&self.seat.queue).await?;
        held.due = None;
        held.queued.next_try = None;
        self.seat.show(&held.queued);
        // In this order: whoever is told that nothing is under way here was given the queue after
        // this channel had been lost.
        self.seat.begin();
        if !session.channel.status().connected() {
            self.seat.end(held.front, None);
            let text = "the channel was closed before the message could be tried";
            return Err(End::Lost(Failure::new(text)));
        }
        let worker = self.seat.worker.clone();
        let verdict = AssertUnwindSafe(worker.attempt(&held.queued))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| {
                tracing::error!(queue = %self.seat.queue, "a delivery ended by a defect of the bus");
                Verdict::Retry {
                    error: "the delivery ended by a defect of the bus".to_owned(),
                    wait: AFTER_DEFECT,
                }
            });
        let id = held.entry.message.id;
        let attempts = held.queued.attempts.saturating_add(1);
        let failed = match &verdict {
            Verdict::Retry { error, wait } => Some(HeadState::new(id, attempts, error, *wait)),
            _ => None,
        };
        let ended = matches!(verdict, Verdict::Done | Verdict::Retry { .. }).then(|| Ended {
            id: id.to_string(),
            attempts,
            failed: failed.clone(),
        });
        self.seat.end(held.front, ended);
        match verdict {
            Verdict::Done => Ok(Some(Done {
                id,
                how: How::Delivered { attempts },
                noted: false,
            })),
            Verdict::Park { reason } => Ok(Some(Done {
                id,
                how: How::Parked { attempts, reason },
                noted: false,
            })),
            Verdict::Wait { wait } => {
                held.due = Some(Instant::now() + wait);
                Ok(None)
            }
            Verdict::Retry { wait, .. } => {
                held.due = Some(Instant::now() + wait);
                if let Some(state) = failed {
                    self.failed(session, held, state).await;
                }
                Ok(None)
            }
        }
    }

    async fn failed(&mut self, session: &Session, held: &mut Held, state: HeadState) {
        held.queued.attempts = state.attempts;
        held.queued.last_error = Some(state.error.clone());
        held.queued.next_try = Some(state.next_try());
        self.seat.show(&held.queued);
        let queue = &self.seat.queue;
        let others: Vec<MessageId> = session.head.into_iter().collect();
        let mut blocked = self.nodes.link.publishing.blocked();
        let kept = tokio::select! {
            kept = self.states.failed(&self.nodes.link, queue, state, &others) => kept,
            // It is written with the next one; a head that could be delivered does not wait for it.
            _ = blocked.wait_for(|blocked| *blocked) => {
                Err(Failure::new("the broker takes no messages now"))
            }
        };
        if let Err(failure) = kept {
            tracing::warn!(%queue, error = %failure, "a failed attempt could not be noted at the broker");
        }
    }

    /// Does what an administrator wants with a head.
    async fn obey(
        &mut self,
        session: &mut Session,
        held: &mut Held,
        command: Command,
    ) -> Result<Option<Next>, End> {
        let id = held.entry.message.id;
        if command.done.is_closed() {
            return Ok(None);
        }
        if command.id.is_some_and(|meant| meant != id) {
            refuse(command);
            return Ok(None);
        }
        let attempts = held.queued.attempts;
        let how = match command.act {
            Act::Retry => {
                held.due = None;
                // Whoever asked may have gone.
                let _ = command.done.send(Ok(id));
                return Ok(None);
            }
            Act::Park(reason) => How::Parked { attempts, reason },
            Act::Drop => How::Dropped { attempts },
        };
        let proven = session.prove(&self.seat.queue).await;
        let finished = match proven {
            Ok(()) => {
                let done = Done {
                    id,
                    how,
                    noted: false,
                };
                self.finish(session, held, done).await
            }
            Err(failure) => Err(End::Lost(failure)),
        };
        let answer = match &finished {
            Ok(_) => Ok(id),
            Err(End::Lost(failure)) => Err(StoreError::from(failure.clone())),
            Err(_) => Err(StoreError::NotFound("the bus is stopping".to_owned())),
        };
        if answer.is_ok() {
            self.seat.worker.works();
        }
        // As above.
        let _ = command.done.send(answer);
        finished.map(Some)
    }

    /// Notes how a message ended, where that has not been done, and takes it off the queue.
    async fn finish(
        &mut self,
        session: &mut Session,
        held: &Held,
        mut done: Done,
    ) -> Result<Next, End> {
        // From here on it is not tried again, whatever becomes of the channel.
        self.remember(held.front, &done);
        if !done.noted {
            self.note(held, &done.how).await?;
            done.noted = true;
            self.remember(held.front, &done);
        }
        if let (false, Some((store, number))) = (held.front, &held.entry.origin) {
            let seat = &self.seat;
            let mut progress = seat.worker.progress(seat.index, store);
            if !progress.has(*number) {
                progress.deliver(*number, held.entry.after);
                self.nodes.delivered(&seat.queue, store, progress.clone());
                // Before the broker lets go of it: what comes next would be taken for one that
                // follows a gap.
                let kept = seat.worker.set_progress(seat.index, store, progress).await;
                if let Err(error) = kept {
                    tracing::warn!(queue = %seat.queue, %error, "a delivery is not remembered beyond a restart");
                }
            }
        }
        session.acknowledge(held.tag).await?;
        self.states.forget(done.id);
        self.seat.hide(done.id);
        Ok(Next::Settled)
    }

    fn remember(&mut self, front: bool, done: &Done) {
        let place = if front {
            &mut self.done_front
        } else {
            &mut self.done
        };
        *place = Some(done.clone());
    }

    async fn note(&self, held: &Held, how: &How) -> Result<(), End> {
        let (outcome, attempts, error) = match how {
            How::Twice => return Ok(()),
            How::Parked { attempts, reason } => {
                let mut entry = held.entry.clone();
                entry.attempts = *attempts;
                entry.last_error = held.queued.last_error.clone().or(Some(reason.clone()));
                entry.parked = Some(reason.clone());
                entry.after = None;
                parked::set_aside(&self.nodes.link, &self.seat.queue, &entry).await?;
                return Ok(());
            }
            How::Delivered { attempts } => (Outcome::Delivered, *attempts, None),
            How::Dropped { attempts } => {
                (Outcome::Failed, *attempts, Some(parked::DROPPED.to_owned()))
            }
        };
        let report = Report {
            id: held.entry.message.id,
            target: held.entry.target.clone(),
            outcome,
            attempts,
            error,
            at: Timestamp::now(),
        };
        self.tell(&held.entry.node, &report).await
    }

    /// Tells the node that accepted a message what became of it.
    async fn tell(&self, node: &Arc<str>, told: &Report) -> Result<(), End> {
        if node.is_empty() {
            return Ok(());
        }
        let link = &self.nodes.link;
        if node == link.node() {
            if !report::write(&self.seat.worker, told, &self.stop).await {
                tracing::error!(id = %told.id, "stopped before the journal had noted a delivery");
            }
            return Ok(());
        }
        match report::send(link, node, &self.seat.lane.queue, told).await {
            Err(failure) if failure.is_refused() => {
                tracing::error!(id = %told.id, node = %node, error = %failure, "a delivery cannot be told to the node that accepted the message");
                Ok(())
            }
            sent => Ok(sent?),
        }
    }
}
