//! Handing entries over to the broker: published one after the other on one channel, confirmed side
//! by side.
//!
//! Each lane has a channel of its own for this. It lives on one connection, and another one is opened
//! when nothing is on its way only, so that nothing can overtake what was lost before it. What a broker refuses
//! while it takes a later one is the one case in which numbers do not ascend: each entry says which
//! was handed over before it, so that one that is missing is known.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::ShortString;
use lapin::{Channel, Confirmation};
use tokio::time::{Instant, timeout_at};
use xbus_core::SendError;
use xbus_core::broker::{LaneEntry, LaneWriter};

use super::entry::Entry;
use super::failure::{self, Failure};
use super::names;
use crate::error::{describe, reply};
use crate::link::Link;

/// How long handing over a batch may take before it is given up and done again.
const BATCH: Duration = Duration::from_secs(30);
/// RabbitMQ 3.10 loses track of consumers of a quorum queue that is declared again within some
/// milliseconds after it was deleted: they are neither cancelled nor given anything.
pub(super) const AFTER_DELETION: Duration = Duration::from_secs(1);
/// So many entries are confirmed one by one after a refusal, so that what follows cannot overtake.
const CAREFUL: usize = 64;

/// Hands over to one lane.
pub(super) struct Putter {
    link: Arc<Link>,
    channel: Option<Channel>,
    /// The one before, which is to be closed first.
    spoilt: Option<Channel>,
    /// Queues that exist, as far as this channel has seen.
    declared: HashSet<Arc<str>>,
    /// How many more to confirm one by one.
    careful: usize,
    /// The last number of each origin that each queue has for certain.
    last: HashMap<Place, u64>,
    /// The same, with what is on its way.
    sent_last: HashMap<Place, u64>,
    /// What is published and not yet settled, oldest first.
    sent: VecDeque<Sent>,
    /// What of that the broker gave back.
    returned: Vec<BasicReturnMessage>,
    /// A queue that was deleted is not declared again before.
    declare_at: Option<Instant>,
}

/// A queue, and the store that a message comes from.
type Place = (Arc<str>, Arc<str>);
type Answer = lapin::Result<Confirmation>;
type Confirming = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// An entry that was published.
struct Sent {
    queue: Arc<str>,
    id: String,
    origin: Option<(Arc<str>, u64)>,
    confirming: Option<Confirming>,
    answer: Option<Answer>,
    /// It is given up then.
    until: Instant,
    /// Nothing else was waited for: what the broker says is about this one.
    alone: bool,
}

impl LaneWriter for Putter {
    fn put(&mut self, entries: Vec<LaneEntry>) -> BoxFuture<'_, (usize, Option<SendError>)> {
        Box::pin(self.publish(entries))
    }

    fn confirmed(&mut self) -> BoxFuture<'_, (usize, Option<SendError>)> {
        Box::pin(async move {
            let Some(oldest) = self.sent.front_mut() else {
                return (0, None);
            };
            oldest.wait().await;
            let answered = self.look().await;
            // From here on nothing waits, so that what is known cannot be dropped.
            let (confirmed, error) = self.settle(answered);
            if error.is_some() {
                self.give_up();
            }
            (confirmed, error)
        })
    }
}

impl Putter {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            channel: None,
            spoilt: None,
            declared: HashSet::new(),
            careful: 0,
            last: HashMap::new(),
            sent_last: HashMap::new(),
            sent: VecDeque::new(),
            returned: Vec::new(),
            declare_at: None,
        }
    }

    async fn publish(&mut self, entries: Vec<LaneEntry>) -> (usize, Option<SendError>) {
        let until = Instant::now() + BATCH;
        let mut count = 0;
        for entry in entries {
            let partition = names::partition_of(&entry.key, entry.lane.partitions);
            let queue = names::partition(&entry.lane, partition);
            let channel = match self.ready(&queue, until).await {
                Ok(channel) => channel,
                Err(error) => return (count, Some(error)),
            };
            if self.careful > 0 && !self.wait_for_all().await {
                // What went wrong is told by who is confirmed.
                return (count, None);
            }
            let mut entry = Entry::from(entry);
            if let Some((store, number)) = &entry.origin {
                let place = (queue.clone(), store.clone());
                let before = self.sent_last.insert(place, *number);
                entry.after = before.filter(|before| before < number);
            }
            let mut published = Sent::new(channel, queue, &entry, until);
            if self.careful > 0 {
                self.careful -= 1;
                published.alone = true;
                published.wait().await;
            }
            let over = published.failed();
            self.sent.push_back(published);
            count += 1;
            if over {
                break;
            }
        }
        (count, None)
    }

    /// Waits for what is on its way; whether all of it went well.
    async fn wait_for_all(&mut self) -> bool {
        for sent in &mut self.sent {
            sent.wait().await;
        }
        self.returned.is_empty() && !self.sent.iter().any(Sent::failed)
    }

    /// Takes up the answers that have come. Gives how many of the oldest have one and can be judged:
    /// what the broker gives back comes before its confirm, and the client library hands it to any
    /// one of the confirms that come together.
    async fn look(&mut self) -> usize {
        self.take_answers();
        let answered = self.sent.iter().take_while(|sent| sent.is_answered());
        let answered = answered.count();
        if let Some(channel) = &self.channel {
            // It takes the lock that the library holds while it hands out confirms that came
            // together: those of which one has been seen have all been handed out behind it.
            let mut behind = Box::pin(channel.wait_for_confirms());
            if let Poll::Ready(Ok(returned)) = futures_util::poll!(behind.as_mut()) {
                self.returned.extend(returned);
            }
        }
        self.take_answers();
        answered
    }

    /// Nobody is woken by those that have not come: the oldest one's is waited for.
    fn take_answers(&mut self) {
        for sent in &mut self.sent {
            sent.poll();
            if let Some(Ok(Confirmation::Ack(back) | Confirmation::Nack(back))) = &mut sent.answer
                && let Some(back) = back.take()
            {
                self.returned.push(back);
            }
        }
    }

    /// Forgets what is on its way: it is handed over again.
    fn give_up(&mut self) {
        self.sent.clear();
        self.returned.clear();
        self.sent_last = self.last.clone();
        if !*self.link.publishing.blocked().borrow() {
            // The broker may have lost count of what it confirms on this channel, as it does when a
            // queue is deleted and declared again.
            self.spoilt = self.channel.take();
        }
    }

    /// The channel, with the queue there. It is opened when nothing is on its way only: on a new one
    /// what follows would overtake what was lost with the old one.
    async fn ready(&mut self, queue: &Arc<str>, until: Instant) -> Result<Channel, SendError> {
        if let Some(channel) = self.spoilt.take() {
            failure::close(&channel).await;
        }
        let link = &self.link;
        let mut blocked = link.publishing.blocked();
        if timeout_at(until, blocked.wait_for(|blocked| !blocked))
            .await
            .is_err()
        {
            return Err(SendError::outage(link.publishing.why_not()).timed_out());
        }
        let channel = match &self.channel {
            Some(channel) if channel.status().connected() => channel.clone(),
            _ if !self.sent.is_empty() => {
                return Err(SendError::outage(
                    "the channel was lost while messages were handed over",
                ));
            }
            _ => {
                self.declared.clear();
                let up = link.publishing.up_until(until).await?;
                let channel = call("opening a channel", up.connection.create_channel()).await?;
                call(
                    "asking for confirms",
                    channel.confirm_select(ConfirmSelectOptions::default()),
                )
                .await?;
                self.channel = Some(channel.clone());
                channel
            }
        };
        if !self.declared.contains(queue) {
            if let Some(at) = self.declare_at.take() {
                tokio::time::sleep_until(at).await;
            }
            declare(&channel, queue).await.map_err(outage)?;
            self.declared.insert(queue.clone());
            // A quorum queue that has just been declared may refuse the first messages and take the
            // next ones.
            self.careful = self.careful.max(1);
        }
        Ok(channel)
    }

    /// Counts what is there for certain of those that are `answered`, and takes it out of what is on
    /// its way. What came back says itself which it is.
    fn settle(&mut self, answered: usize) -> (usize, Option<SendError>) {
        let mut confirmed = 0;
        while confirmed < answered
            && let Some(published) = self.sent.front()
        {
            match published.refusal(&self.returned) {
                None => {
                    if let Some((store, number)) = &published.origin {
                        let place = (published.queue.clone(), store.clone());
                        self.last.insert(place, *number);
                    }
                    confirmed += 1;
                    self.sent.pop_front();
                }
                Some((error, by_broker)) => {
                    if by_broker {
                        tracing::warn!(error = %error.detail, "the broker refused a message of a lane");
                        // The queue may be gone: look again.
                        self.declared.clear();
                        self.declare_at = Some(Instant::now() + AFTER_DELETION);
                        self.careful = CAREFUL;
                    }
                    return (confirmed, Some(error));
                }
            }
        }
        if self.sent.is_empty() {
            self.returned.clear();
        }
        (confirmed, None)
    }
}

impl Sent {
    /// Hands an entry over to the connection; what is handed over later comes after it.
    fn new(channel: Channel, queue: Arc<str>, entry: &Entry, until: Instant) -> Self {
        let (properties, body) = entry.write();
        let properties = properties.with_delivery_mode(2);
        let options = BasicPublishOptions {
            mandatory: true,
            immediate: false,
        };
        // The queue was declared, so that its name is short enough.
        let name = ShortString::try_new(&*queue).unwrap_or_default();
        let confirming: Confirming = Box::pin(async move {
            channel
                .basic_publish("".into(), name, options, &body, properties)
                .await?
                .await
        });
        let mut sent = Self {
            queue,
            id: entry.message.id.to_string(),
            origin: entry.origin.clone(),
            confirming: Some(confirming),
            answer: None,
            until,
            alone: false,
        };
        sent.poll();
        sent
    }

    /// Takes the answer, if it is there. Nobody is woken when it comes: each message would wake whoever hands over
    /// twice, once written and once confirmed.
    fn poll(&mut self) {
        if let Some(confirming) = &mut self.confirming
            && let Poll::Ready(answer) = confirming
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
        {
            self.answer = Some(answer);
            self.confirming = None;
        }
    }

    /// Waits for the answer, or until it is given up. May be dropped.
    async fn wait(&mut self) {
        if let Some(confirming) = &mut self.confirming {
            self.answer = timeout_at(self.until, confirming).await.ok();
            self.confirming = None;
        }
    }

    /// There is an answer, or it was given up.
    fn is_answered(&self) -> bool {
        self.confirming.is_none()
    }

    /// Whether it is over and did not go well.
    fn failed(&self) -> bool {
        self.is_answered() && !matches!(self.answer, Some(Ok(Confirmation::Ack(None))))
    }

    /// Why it is not known to be there, and whether the broker itself said so.
    fn refusal(&self, returned: &[BasicReturnMessage]) -> Option<(SendError, bool)> {
        let mine = returned.iter().find(|back| {
            back.routing_key.as_str() == &*self.queue
                && back
                    .properties
                    .message_id()
                    .as_ref()
                    .map(ShortString::as_str)
                    == Some(&self.id)
        });
        let queue = &self.queue;
        match &self.answer {
            Some(Ok(Confirmation::Ack(_))) => mine.map(|back| {
                let text = format!("queue '{queue}' took no message: {}", back.reply_text);
                (SendError::outage(text), true)
            }),
            Some(Ok(Confirmation::Nack(_))) => Some((
                SendError::outage(format!(
                    "queue '{queue}' did not take the message (basic.nack); see whether it is full \
                     or its leader is missing"
                )),
                true,
            )),
            Some(Ok(Confirmation::NotRequested)) => {
                Some((SendError::unknown("the channel confirms nothing"), false))
            }
            Some(Err(error)) if self.alone && matches!(reply(error), Some((406, _))) => Some((
                SendError::rejected(format!("queue '{queue}': {}", describe(error))),
                true,
            )),
            Some(Err(error)) => Some((
                SendError::unknown(format!(
                    "queue '{queue}': the broker has not confirmed: {}",
                    describe(error)
                )),
                // The channel was closed for one of those in flight; the next time it is seen which.
                error.is_amqp_soft_error(),
            )),
            None => Some((
                SendError::unknown(format!("queue '{queue}': not confirmed in time")).timed_out(),
                false,
            )),
        }
    }
}

/// Declares the queue of a partition.
pub(super) async fn declare(channel: &Channel, queue: &str) -> Result<(), Failure> {
    failure::call(
        &format!("declaring queue '{queue}'"),
        channel.queue_declare(
            names::short(queue)?,
            QueueDeclareOptions::durable(),
            names::lane_arguments(),
        ),
    )
    .await?;
    Ok(())
}

async fn call<T>(what: &str, made: impl Future<Output = lapin::Result<T>>) -> Result<T, SendError> {
    failure::call(what, made).await.map_err(outage)
}

fn outage(failure: Failure) -> SendError {
    SendError::outage(failure.to_string())
}

#[cfg(test)]
mod tests {
    use lapin::BasicProperties;
    use lapin::message::Delivery;

    use super::*;
    use crate::sender_tests::link;

    fn putter(answers: impl IntoIterator<Item = Option<Confirmation>>) -> Putter {
        let mut putter = Putter::new(link());
        for (number, answer) in (1..).zip(answers) {
            let origin: Option<(Arc<str>, u64)> = Some((Arc::from("store"), number));
            putter.sent.push_back(Sent {
                queue: Arc::from("q"),
                id: format!("id{number}"),
                origin,
                confirming: match &answer {
                    None => Some(Box::pin(std::future::pending())),
                    Some(_) => None,
                },
                answer: answer.map(Ok),
                until: Instant::now() + BATCH,
                alone: false,
            });
        }
        putter
    }

    fn last(putter: &Putter) -> Option<u64> {
        putter.last.values().copied().next()
    }

    #[tokio::test]
    async fn what_is_confirmed_counts_up_to_the_first_that_is_not() {
        let ack = || Some(Confirmation::Ack(None));
        let mut putter = putter([ack(), ack(), None, ack()]);
        let (confirmed, error) = putter.confirmed().await;
        assert_eq!((confirmed, error.is_none()), (2, true));
        assert_eq!((last(&putter), putter.sent.len()), (Some(2), 2));
    }

    #[tokio::test]
    async fn after_a_refusal_nothing_is_on_its_way_and_the_next_names_the_last_that_is_there() {
        let ack = || Some(Confirmation::Ack(None));
        let mut putter = putter([ack(), Some(Confirmation::Nack(None)), ack(), None]);
        putter
            .sent_last
            .insert((Arc::from("q"), Arc::from("store")), 4);
        let (confirmed, error) = putter.confirmed().await;
        assert_eq!((confirmed, error.is_some()), (1, true));
        assert_eq!((putter.sent.len(), last(&putter)), (0, Some(1)));
        assert_eq!(putter.sent_last, putter.last);
        assert_eq!(putter.careful, CAREFUL);
        assert_eq!(putter.confirmed().await.0, 0);
    }

    #[tokio::test]
    async fn what_came_back_is_known_whichever_confirm_brings_it() {
        let back = || {
            let mut back = BasicReturnMessage {
                delivery: Delivery::mock(1, "".into(), "q".into(), false, Vec::new()),
                reply_code: 312,
                reply_text: "NO_ROUTE".into(),
            };
            back.delivery.properties = BasicProperties::default().with_message_id("id2".into());
            back
        };
        let ack = || Some(Confirmation::Ack(None));
        // The library gave it to a later one, or to an earlier one.
        for bearer in [0, 2] {
            let mut answers = [ack(), ack(), ack()];
            answers[bearer] = Some(Confirmation::Ack(Some(back())));
            let (confirmed, error) = putter(answers).confirmed().await;
            assert_eq!(confirmed, 1);
            assert!(error.unwrap().detail.contains("NO_ROUTE"));
        }
    }
}
