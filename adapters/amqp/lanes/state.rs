//! What is known of heads that failed, kept at the broker beside the lane, so that it outlives a
//! restart and goes with the lane to another node.
//!
//! `P.state` holds one message: JSON of at most two heads, the lane's own and the one of the front.

use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use xbus_core::{MessageId, Timestamp};

use super::failure::{self, CALL, Failure};
use super::{keep, names};
use crate::link::{Link, Publish};

/// One head that failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HeadState {
    /// The message.
    pub(super) id: String,
    /// How often it was tried.
    pub(super) attempts: u32,
    /// What went wrong last.
    pub(super) error: String,
    /// When it is tried again; microseconds since 1970.
    pub(super) next_try: i64,
    /// How long it was to wait in all, in microseconds: a clock that was set back adds nothing.
    #[serde(default)]
    pub(super) wait: u64,
}

/// The message in `P.state`.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    heads: Vec<HeadState>,
    /// Who wrote it, for whoever looks.
    node: String,
}

/// The states that a partition's owner knows: as read when a head came back, and as written since.
#[derive(Default)]
pub(super) struct States {
    heads: Vec<HeadState>,
}

impl States {
    /// What is known of a head.
    pub(super) fn of(&self, id: MessageId) -> Option<&HeadState> {
        let id = id.to_string();
        self.heads.iter().find(|state| state.id == id)
    }

    /// Takes what the broker has, where it says more than what is known here.
    pub(super) async fn read(&mut self, link: &Arc<Link>, queue: &str) -> Result<(), Failure> {
        for state in read(link, queue).await? {
            self.learn(state);
        }
        Ok(())
    }

    /// Takes what somebody else knows, where it says more than what is known here.
    pub(super) fn learn(&mut self, state: HeadState) {
        match self.heads.iter_mut().find(|known| known.id == state.id) {
            Some(known) if known.attempts >= state.attempts => {}
            Some(known) => *known = state,
            None => self.heads.push(state),
        }
    }

    /// Notes a failed attempt, and makes it durable.
    pub(super) async fn failed(
        &mut self,
        link: &Arc<Link>,
        queue: &str,
        state: HeadState,
        others: &[MessageId],
    ) -> Result<(), Failure> {
        let others: Vec<String> = others.iter().map(MessageId::to_string).collect();
        self.heads.retain(|known| others.contains(&known.id));
        self.heads.push(state);
        let kept = Kept {
            heads: self.heads.clone(),
            node: link.node().to_string(),
        };
        let body = serde_json::to_vec(&kept).unwrap_or_default();
        keep::publish(
            link,
            Publish {
                exchange: Arc::from(""),
                routing_key: names::state(queue),
                properties: BasicProperties::default()
                    .with_content_type("application/json".into())
                    .with_type("xbus.state".into()),
                body: body.into(),
            },
            names::state_arguments,
        )
        .await
    }

    /// A head left the lane.
    pub(super) fn forget(&mut self, id: MessageId) {
        let id = id.to_string();
        self.heads.retain(|state| state.id != id);
    }
}

impl HeadState {
    /// Of an attempt that has just failed; the next one is made after `wait`.
    pub(super) fn new(id: MessageId, attempts: u32, error: &str, wait: Duration) -> Self {
        Self {
            id: id.to_string(),
            attempts,
            error: error.to_owned(),
            next_try: Timestamp::now().after(wait).as_micros(),
            wait: wait.as_micros().try_into().unwrap_or(u64::MAX),
        }
    }

    pub(super) fn next_try(&self) -> Timestamp {
        Timestamp::from_micros(self.next_try)
    }

    /// How long there is still to wait.
    pub(super) fn remaining(&self) -> Duration {
        Timestamp::now()
            .until(self.next_try())
            .min(Duration::from_micros(self.wait))
    }
}

async fn read(link: &Arc<Link>, queue: &str) -> Result<Vec<HeadState>, Failure> {
    let channel = link.channel(Instant::now() + CALL).await?;
    let name = names::state(queue);
    let mut kept = Kept::default();
    loop {
        let got = failure::call(
            &format!("reading queue '{name}'"),
            channel.basic_get(names::short(&name)?, BasicGetOptions::default()),
        )
        .await;
        match got {
            // The last one is the newest.
            Ok(Some(message)) => kept = serde_json::from_slice(&message.data).unwrap_or_default(),
            Ok(None) => break,
            Err(failure) if failure.is_missing() => return Ok(Vec::new()),
            Err(failure) => return Err(failure),
        }
    }
    failure::close(&channel).await;
    Ok(kept.heads)
}

/// Messages that a queue holds ready, and consumers that it has; nothing when it does not exist.
pub(super) async fn count(link: &Arc<Link>, queue: &str) -> Result<Option<(u32, u32)>, Failure> {
    let channel = link.channel(Instant::now() + CALL).await?;
    let looked = failure::call(
        &format!("looking at queue '{queue}'"),
        channel.queue_declare(
            names::short(queue)?,
            QueueDeclareOptions::durable().passive(),
            Default::default(),
        ),
    )
    .await;
    match looked {
        Ok(queue) => {
            let counts = (queue.message_count(), queue.consumer_count());
            failure::close(&channel).await;
            Ok(Some(counts))
        }
        Err(failure) if failure.is_missing() => Ok(None),
        Err(failure) => Err(failure),
    }
}
