//! What administrators have lanes do: try heads now, park, drop and release. A lane that is delivered
//! from is waited for, so that a command never meets a delivery half way.

use std::sync::Arc;

use super::Lanes;
use super::dispatch::Turn;
use crate::MessageId;
use crate::store::{Change, Commit, Durability, EntryRef, Queued, Settlement, StoreError};

impl Lanes {
    /// Tries heads that wait for their time now: all of the queue, or the one that holds `id`.
    pub fn retry(&self, queue: &str, id: Option<MessageId>) -> Result<usize, StoreError> {
        let keys: Vec<Arc<str>> = match id {
            Some(id) => {
                let at = self.find(queue, id)?.at;
                let head = self.store.head(queue, &at.key)?;
                if head.is_none_or(|head| head.at.seq != at.seq) {
                    return Err(StoreError::NotFound(format!(
                        "message {id} is not the head of its lane; only heads can be retried"
                    )));
                }
                vec![at.key]
            }
            None => self
                .store
                .lanes(queue)
                .into_iter()
                .map(|lane| lane.key)
                .collect(),
        };
        if keys.is_empty() {
            return Err(StoreError::NotFound(format!(
                "queue '{queue}' holds nothing that could be retried"
            )));
        }
        if let Some(working) = self.working(queue) {
            keys.iter().for_each(|key| working.now(key));
        }
        Ok(keys.len())
    }

    /// Parks the head of the queue, or the head that holds `id`.
    pub async fn park(
        &self,
        queue: &str,
        id: Option<MessageId>,
        reason: &str,
    ) -> Result<MessageId, StoreError> {
        let at = match id {
            Some(id) => self.find(queue, id)?.at,
            None => self.oldest(queue)?,
        };
        self.with_lane(&at, |head| {
            if head.at.seq != at.seq {
                return Err(StoreError::NotFound(format!(
                    "message {} is not the head of its lane; only heads can be parked",
                    id.unwrap_or(head.message.id)
                )));
            }
            Ok(Change::Park {
                at: head.at.clone(),
                reason: reason.to_owned(),
            })
        })
        .await
    }

    /// Drops a head or a parked message for good.
    pub async fn drop_entry(&self, queue: &str, id: MessageId) -> Result<(), StoreError> {
        let entry = self.find(queue, id)?;
        let settle = |entry: &Queued| Change::Settle {
            at: entry.at.clone(),
            how: Settlement::Dropped,
            attempts: entry.attempts,
            error: Some("dropped by an administrator".to_owned()),
        };
        if entry.parked.is_some() {
            let commit = Commit::of(settle(&entry));
            self.store.commit(commit, Durability::Synced).await?;
            self.unless_blocked(queue);
            return Ok(());
        }
        self.with_lane(&entry.at, |head| {
            if head.at.seq == entry.at.seq {
                Ok(settle(head))
            } else {
                Err(StoreError::NotFound(format!(
                    "message {id} is neither a head nor parked; only those can be dropped"
                )))
            }
        })
        .await
        .map(drop)
    }

    /// Puts a parked message back, before everything that entered its lane after it.
    pub async fn release(&self, queue: &str, id: MessageId) -> Result<(), StoreError> {
        let entry = self.find(queue, id)?;
        if entry.parked.is_none() {
            return Err(StoreError::NotFound(format!(
                "message {id} is not parked in queue '{queue}'"
            )));
        }
        let working = self.working(queue);
        if let Some(working) = &working {
            working.seize(&entry.at.key).await?;
        }
        let change = Change::Release {
            at: entry.at.clone(),
        };
        let result = self
            .store
            .commit(Commit::of(change), Durability::Synced)
            .await;
        if let Some(working) = &working {
            working.give_back(&entry.at.key, Turn::More);
        }
        result
    }

    /// Settles what was set aside and has been decided otherwise; nothing when it is not there.
    pub(crate) async fn settle_parked(
        &self,
        queue: &str,
        id: MessageId,
        how: Settlement,
    ) -> Result<(), StoreError> {
        let Some(entry) = self.store.entry(queue, id)? else {
            return Ok(());
        };
        let change = Change::Settle {
            at: entry.at.clone(),
            how,
            attempts: entry.attempts,
            error: entry.last_error.clone(),
        };
        self.store
            .commit(Commit::of(change), Durability::Synced)
            .await?;
        self.unless_blocked(queue);
        Ok(())
    }

    /// Tells the consumer that nothing is blocked, when that is so after an administrator's command.
    fn unless_blocked(&self, queue: &str) {
        let blocked = self.store.lanes(queue).iter().any(|lane| lane.attempts > 0);
        let parked = self
            .store
            .entries(queue, true, 1)
            .is_ok_and(|parked| !parked.is_empty());
        if let (false, false, Some(working)) = (blocked, parked, self.working(queue)) {
            working.cleared();
        }
    }

    fn find(&self, queue: &str, id: MessageId) -> Result<Queued, StoreError> {
        self.store
            .entry(queue, id)?
            .ok_or_else(|| StoreError::NotFound(format!("queue '{queue}' holds no message {id}")))
    }

    fn oldest(&self, queue: &str) -> Result<EntryRef, StoreError> {
        self.store
            .lanes(queue)
            .into_iter()
            .min_by_key(|lane| lane.head_seq)
            .map(|lane| EntryRef {
                queue: Arc::from(queue),
                key: lane.key,
                seq: lane.head_seq,
            })
            .ok_or_else(|| StoreError::NotFound(format!("nothing waits in queue '{queue}'")))
    }

    /// Commits what `change` makes of the lane's head while nobody delivers it.
    async fn with_lane(
        &self,
        at: &EntryRef,
        change: impl FnOnce(&Queued) -> Result<Change, StoreError>,
    ) -> Result<MessageId, StoreError> {
        let working = self.working(&at.queue);
        if let Some(working) = &working {
            working.seize(&at.key).await?;
        }
        let result = self.change_head(at, change).await;
        if let Some(working) = &working {
            working.give_back(&at.key, Turn::More);
            if result.is_ok() {
                working.cleared();
            }
        }
        result
    }

    async fn change_head(
        &self,
        at: &EntryRef,
        change: impl FnOnce(&Queued) -> Result<Change, StoreError>,
    ) -> Result<MessageId, StoreError> {
        let head = self.store.head(&at.queue, &at.key)?.ok_or_else(|| {
            StoreError::NotFound(format!("nothing waits in queue '{}'", at.queue))
        })?;
        let commit = Commit::of(change(&head)?);
        self.store.commit(commit, Durability::Synced).await?;
        Ok(head.message.id)
    }
}
