//! What administrators see of lanes and do with them, over all partitions and nodes.

use std::sync::Arc;

use xbus_core::broker::{LaneCommand, LaneDone, LaneName, LaneWorker, Report};
use xbus_core::store::{Outcome, QueueStatus, Queued, StoreError};
use xbus_core::{MessageId, Stop, Timestamp};

use super::entry::Entry;
use super::failure::Failure;
use super::nodes::{Nodes, Out};
use super::state::{States, count};
use super::wire::{Answer, Ask, Said};
use super::{empty, names, parked, report};

/// The lane in numbers.
pub(super) async fn status(nodes: &Arc<Nodes>, lane: &LaneName) -> Result<QueueStatus, StoreError> {
    let mut heads = heads(nodes, lane).await;
    let mut status = QueueStatus {
        name: lane.queue.clone(),
        depth: heads.len() as u64,
        parked: 0,
        blocked_keys: 0,
        head: None,
    };
    let link = &nodes.link;
    for queue in names::partitions(lane) {
        if let Some((ready, users)) = count(link, &queue).await? {
            status.depth += u64::from(ready);
            if ready > 0 && users == 0 {
                heads.extend(waiting(nodes, lane, &queue, 1).await?);
            }
        }
        status.depth += nodes.count_beside(names::front(&queue)).await?;
        status.parked += nodes.count_beside(names::parked(&queue)).await?;
    }
    status.blocked_keys = heads.iter().filter(|head| head.attempts > 0).count() as u64;
    status.head = heads.into_iter().min_by_key(|head| head.since);
    Ok(status)
}

/// What waits (as far as the broker lets it be seen), or what is parked.
pub(super) async fn entries(
    nodes: &Arc<Nodes>,
    lane: &LaneName,
    parked: bool,
    limit: usize,
) -> Result<Vec<Queued>, StoreError> {
    let mut found: Vec<Queued> = Vec::new();
    if parked {
        for queue in names::partitions(lane) {
            let entries = parked::list(&nodes.link, &queue, limit).await?;
            found.extend(entries.iter().map(|entry| entry.queued(lane)));
        }
    } else {
        found = heads(nodes, lane).await;
        for queue in names::partitions(lane) {
            if count(&nodes.link, &queue)
                .await?
                .is_some_and(|(ready, users)| ready > 0 && users == 0)
            {
                found.extend(waiting(nodes, lane, &queue, limit).await?);
            }
        }
    }
    found.sort_by_key(|entry| entry.since);
    found.truncate(limit);
    Ok(found)
}

/// The heads that nodes hold.
async fn heads(nodes: &Arc<Nodes>, lane: &LaneName) -> Vec<Queued> {
    let ask = Ask::Heads {
        lane: lane.queue.to_string(),
    };
    let answers = nodes.ask(ask).await;
    answers
        .into_iter()
        .flat_map(|answer| answer.heads)
        .filter_map(|head| head.queued(&lane.queue))
        .collect()
}

/// What a partition holds that nobody works on.
async fn waiting(
    nodes: &Arc<Nodes>,
    lane: &LaneName,
    queue: &str,
    limit: usize,
) -> Result<Vec<Queued>, Failure> {
    let mut states = States::default();
    states.read(&nodes.link, queue).await?;
    let entries = empty::peek(&nodes.link, queue, limit).await?;
    let shown = entries.iter().map(|entry| {
        let mut queued = entry.queued(lane);
        if let Some(state) = states.of(queued.message.id) {
            queued.attempts = state.attempts;
            queued.last_error = Some(state.error.clone());
            queued.next_try = Some(state.next_try());
        }
        queued
    });
    Ok(shown.collect())
}

/// Does what an administrator wants.
pub(super) async fn command(
    nodes: &Arc<Nodes>,
    lane: &LaneName,
    command: LaneCommand,
    worker: Option<Arc<dyn LaneWorker>>,
) -> Result<LaneDone, StoreError> {
    match command {
        LaneCommand::Retry(id) => retry(nodes, lane, id).await,
        LaneCommand::Park(id, reason) => {
            let id = match id {
                Some(id) => id,
                None => oldest(nodes, lane).await?,
            };
            let ask = Ask::Park {
                lane: lane.queue.to_string(),
                id: id.to_string(),
                reason,
            };
            match acted(nodes.ask(ask).await)? {
                true => Ok(done(id, 1)),
                false => Err(not_head(id)),
            }
        }
        LaneCommand::Release(id) => {
            for queue in names::partitions(lane) {
                if parked::release(&nodes.link, &queue, id).await? {
                    if let Some(seat) = nodes.seat(&queue) {
                        seat.look_at_front();
                    }
                    let queue = queue.to_string();
                    nodes.say(Out::All(Said::Ask {
                        number: u64::MAX,
                        ask: Ask::Front { queue },
                    }));
                    return Ok(done(id, 0));
                }
            }
            Err(StoreError::NotFound(format!(
                "message {id} is not parked in queue '{}'",
                lane.queue
            )))
        }
        LaneCommand::Drop(id) => remove(nodes, lane, id, worker).await,
    }
}

async fn retry(
    nodes: &Arc<Nodes>,
    lane: &LaneName,
    id: Option<MessageId>,
) -> Result<LaneDone, StoreError> {
    let ask = Ask::Retry {
        lane: lane.queue.to_string(),
        id: id.map(|id| id.to_string()),
    };
    let heads = nodes.ask(ask).await.iter().map(|answer| answer.done).sum();
    match (heads, id) {
        (0, Some(id)) => Err(not_head(id)),
        (0, None) => Err(StoreError::NotFound(format!(
            "no node holds a message of queue '{}' that could be retried",
            lane.queue
        ))),
        _ => Ok(LaneDone { id, heads }),
    }
}

/// Removes a head or a parked message.
async fn remove(
    nodes: &Arc<Nodes>,
    lane: &LaneName,
    id: MessageId,
    worker: Option<Arc<dyn LaneWorker>>,
) -> Result<LaneDone, StoreError> {
    let ask = Ask::Drop {
        lane: lane.queue.to_string(),
        id: id.to_string(),
    };
    if acted(nodes.ask(ask).await)? {
        return Ok(done(id, 1));
    }
    let tell = async |entry: Entry| {
        let told = Report {
            id,
            target: entry.target.clone(),
            outcome: Outcome::Failed,
            attempts: entry.attempts,
            error: Some(parked::DROPPED.to_owned()),
            at: Timestamp::now(),
        };
        match &worker {
            _ if entry.node.is_empty() => Ok(()),
            Some(worker) if entry.node == *nodes.link.node() => {
                report::write(worker, &told, &Stop::new()).await;
                Ok(())
            }
            // Without anybody here who writes the journal the report waits for the node's next work.
            _ => report::send(&nodes.link, &entry.node, &lane.queue, &told).await,
        }
    };
    for queue in names::partitions(lane) {
        if parked::remove(&nodes.link, &queue, id, &tell).await? {
            return Ok(done(id, 0));
        }
    }
    Err(StoreError::NotFound(format!(
        "message {id} is neither a head of queue '{}' nor parked in it",
        lane.queue
    )))
}

async fn oldest(nodes: &Arc<Nodes>, lane: &LaneName) -> Result<MessageId, StoreError> {
    heads(nodes, lane)
        .await
        .into_iter()
        .min_by_key(|head| head.since)
        .map(|head| head.message.id)
        .ok_or_else(|| {
            StoreError::NotFound(format!(
                "no node holds a message of queue '{}' that could be parked",
                lane.queue
            ))
        })
}

/// Whether one of the nodes did it; why not, where one tried.
fn acted(answers: Vec<Answer>) -> Result<bool, StoreError> {
    if answers.iter().any(|answer| answer.done > 0) {
        return Ok(true);
    }
    match answers.into_iter().find_map(|answer| answer.error) {
        Some(error) => Err(StoreError::NotFound(error)),
        None => Ok(false),
    }
}

fn done(id: MessageId, heads: usize) -> LaneDone {
    LaneDone {
        id: Some(id),
        heads,
    }
}

fn not_head(id: MessageId) -> StoreError {
    StoreError::NotFound(format!(
        "message {id} is not a head that a node holds; only heads can be tried or parked"
    ))
}
