//! Idempotent receiver (Hohpe and Woolf, "Enterprise Integration Patterns"): a key that was seen is
//! answered as it was answered before.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use crate::codec::{Decoder, Encoder};
use crate::long;
use crate::protocol::Record;
use crate::store::{Change, Commit, Durability, Outcome, Query, Store};
use crate::{Code, Fault, Headers, Message, MessageId, Reply, Status, Timestamp};

/// Tells payloads apart.
pub(crate) type Fingerprint = uuid::Uuid;

/// A name space and a key in it.
type ScopedKey = (Arc<str>, Arc<str>);

/// The keys whose first message is on its way now.
#[derive(Default)]
pub struct Once {
    running: Mutex<HashMap<ScopedKey, watch::Receiver<()>>>,
}

/// What a message with a key is.
pub(crate) enum Turn<'a> {
    /// The first, or the first since one that failed.
    First(First<'a>),
    /// A repeat, with its answer.
    Repeat(Result<Reply, Fault>),
}

/// The right to be the first; given up when dropped.
pub(crate) struct First<'a> {
    once: &'a Once,
    scope: Arc<str>,
    key: Arc<str>,
    print: Fingerprint,
    _ended: watch::Sender<()>,
}

/// The name space of a route's and caller's keys.
pub(crate) fn scope(route: &str, caller: Option<&str>) -> Arc<str> {
    Arc::from(format!("once/{route}/{}", caller.unwrap_or_default()))
}

impl Once {
    /// Waits while another message with the key is on its way, then says what this one is.
    pub(crate) async fn turn(
        &self,
        store: &Arc<dyn Store>,
        scope: Arc<str>,
        key: &str,
        print: Fingerprint,
    ) -> Turn<'_> {
        let key: Arc<str> = Arc::from(key);
        loop {
            let mut other = {
                let mut running = self
                    .running
                    .lock()
                    .unwrap_or_else(|poisoned| poisoned.into_inner());
                match running.get(&(scope.clone(), key.clone())) {
                    Some(other) => other.clone(),
                    None => {
                        if let Some(value) = store.recall(&scope, &key)
                            && let Some(answer) = answer(store, value, print)
                        {
                            return Turn::Repeat(answer);
                        }
                        let (ended, watching) = watch::channel(());
                        running.insert((scope.clone(), key.clone()), watching);
                        return Turn::First(First {
                            once: self,
                            scope,
                            key,
                            print,
                            _ended: ended,
                        });
                    }
                }
            };
            // Ends with an error when the first one drops its sender; that is the signal.
            while other.changed().await.is_ok() {}
        }
    }
}

impl First<'_> {
    /// What is remembered with the decision: that the message was taken.
    pub(crate) fn remember(&self, keep: Duration, message: &Message) -> Change {
        let reply = Reply {
            id: message.id,
            status: Status::Accepted,
            message: None,
            http_status: None,
            headers: Headers::new(),
        };
        self.change(keep, encode(self.print, message, Ok(&reply)))
    }

    /// What is remembered before anything happens that cannot be seen as not having happened: the outcome is
    /// unknown, and the journal tells it once a crash has been looked into.
    ///
    /// At the end it is what is remembered of an outcome that stays unknown, until it is resolved.
    pub(crate) fn unknown(&self, message: &Message) -> Change {
        Change::Remember {
            scope: self.scope.clone(),
            key: self.key.clone(),
            value: encode(self.print, message, Err(())),
            until: None,
        }
    }

    /// What is remembered at the end: the answer; nothing of a failure, so that a repeat may
    /// succeed; of an unknown outcome that it is unknown.
    pub(crate) async fn end(
        self,
        store: &Arc<dyn Store>,
        result: &Result<Reply, Fault>,
        in_doubt: bool,
        keep: Duration,
        message: &Message,
    ) {
        let unknown = in_doubt
            || matches!(result, Err(fault) if matches!(fault.code, Code::InDoubt | Code::Timeout));
        let change = match result {
            Ok(reply) => self.change(keep, encode(self.print, message, Ok(reply))),
            Err(_) if unknown => self.unknown(message),
            Err(_) => Change::Forget {
                scope: self.scope.clone(),
                key: self.key.clone(),
            },
        };
        if let Err(error) = store.commit(Commit::of(change), Durability::Synced).await {
            tracing::warn!(%error, "the answer to a message was not remembered");
        }
    }

    fn change(&self, keep: Duration, value: Bytes) -> Change {
        Change::Remember {
            scope: self.scope.clone(),
            key: self.key.clone(),
            value,
            until: Some(Timestamp::now().after(keep)),
        }
    }
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        self.once
            .running
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .remove(&(self.scope.clone(), self.key.clone()));
    }
}

fn encode(print: Fingerprint, message: &Message, outcome: Result<&Reply, ()>) -> Bytes {
    let mut out = Encoder::new();
    out.u8(1).bytes(print.as_bytes()).id(message.id);
    match outcome {
        Err(()) => {
            out.u8(0);
        }
        Ok(reply) => {
            out.u8(match reply.status {
                Status::Delivered => 1,
                Status::Accepted => 2,
                Status::Filtered => 3,
            });
            out.u32(u32::from(reply.http_status.unwrap_or(0)));
            out.u32(reply.headers.len() as u32);
            for (name, value) in reply.headers.iter() {
                out.text(name).text(value);
            }
            match &reply.message {
                Some(message) => out.u8(1).message(message),
                None => out.u8(0),
            };
        }
    }
    out.finish()
}

/// What a repeat is told; nothing when the first one turned out to have failed.
fn answer(
    store: &Arc<dyn Store>,
    value: Bytes,
    print: Fingerprint,
) -> Option<Result<Reply, Fault>> {
    let Some(answer) = decode(value, print) else {
        return Some(Err(Fault::new(
            Code::Internal,
            "the answer to the first message cannot be read",
        )));
    };
    match answer {
        Err(InDoubt(id)) => resolved(store, id),
        Ok(answer) => Some(answer),
    }
}

/// The first message's outcome was unknown. What does its journal entry say by now? Nothing: it failed,
/// so that this one is as good as the first.
pub(crate) fn resolved(store: &Arc<dyn Store>, id: MessageId) -> Option<Result<Reply, Fault>> {
    let query = Query {
        id: Some(id),
        limit: 1,
        ..Query::default()
    };
    let outcome = store
        .find(&query)
        .ok()
        .and_then(|found| found.first().map(|entry| entry.outcome));
    let status = match outcome {
        Some(Outcome::Failed) => return None,
        Some(Outcome::Delivered) => Status::Delivered,
        Some(Outcome::Pending) if !is_undecided(store, id) => Status::Accepted,
        _ => {
            return Some(Err(Fault::new(
                Code::InDoubt,
                format!("the outcome of the first message ({id}) is unknown"),
            )));
        }
    };
    Some(Ok(Reply {
        id,
        status,
        message: None,
        http_status: None,
        headers: Headers::new(),
    }))
}

/// Whether a distribution is under way that nobody has decided yet.
fn is_undecided(store: &Arc<dyn Store>, id: MessageId) -> bool {
    let decided = |data| matches!(Record::decode(data), Some(Record::Decided));
    let open = store.protocols().into_iter().find(|(open, _)| *open == id);
    open.is_some_and(|(_, records)| !records.into_iter().any(decided))
}

/// The message's outcome was unknown.
struct InDoubt(MessageId);

fn decode(value: Bytes, print: Fingerprint) -> Option<Result<Result<Reply, Fault>, InDoubt>> {
    let mut data = Decoder::new(value);
    (data.u8()? == 1).then_some(())?;
    if data.bytes()?.as_ref() != print.as_bytes() {
        let mut fault = Fault::new(
            Code::Client,
            "this key was used before, with another message",
        );
        fault.http_status = Some(422);
        return Some(Ok(Err(fault)));
    }
    let id: MessageId = data.id()?;
    let status = match data.u8()? {
        0 => return Some(Err(InDoubt(id))),
        1 => Status::Delivered,
        2 => Status::Accepted,
        _ => Status::Filtered,
    };
    let http_status = match data.u32()? {
        0 => None,
        status => u16::try_from(status).ok(),
    };
    let mut headers = Headers::new();
    for _ in 0..data.u32()? {
        let name = data.text()?;
        headers.set(&name, &data.text()?);
    }
    let message = match data.u8()? {
        0 => None,
        _ => Some(Arc::new(data.message()?)),
    };
    Some(Ok(Ok(Reply {
        id,
        status,
        message,
        http_status,
        headers,
    })))
}

/// Tells payloads apart: a name-based UUID (RFC 9562, version 5) of the bytes, what is `passing` left
/// out, and of those of each attachment within the one of what stands before it.
pub(crate) fn fingerprint(message: &Message, passing: &[Range<usize>]) -> Fingerprint {
    let size = message.body.bytes().len()
        + message
            .attachments
            .iter()
            .map(|one| one.body.len())
            .sum::<usize>();
    long::over(size, long::PASSED, || digest(message, passing))
}

fn digest(message: &Message, passing: &[Range<usize>]) -> Fingerprint {
    let of = &uuid::Uuid::NAMESPACE_OID;
    let body = message.body.bytes();
    let body = match passing {
        [] => uuid::Uuid::new_v5(of, body),
        _ => uuid::Uuid::new_v5(of, &without(body, passing)),
    };
    message.attachments.iter().fold(body, |before, attachment| {
        uuid::Uuid::new_v5(&before, &attachment.body)
    })
}

fn without(body: &[u8], passing: &[Range<usize>]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(body.len());
    let mut rest = 0;
    for range in passing {
        kept.extend_from_slice(body.get(rest..range.start).unwrap_or_default());
        rest = range.end;
    }
    kept.extend_from_slice(body.get(rest..).unwrap_or_default());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_not_compared() {
        let of = |text: &str, passing: &[(usize, usize)]| {
            let passing: Vec<_> = passing.iter().map(|(from, to)| *from..*to).collect();
            fingerprint(&Message::new(text.to_owned()), &passing)
        };
        assert_eq!(of("a<1>b<2>c", &[(1, 4), (5, 8)]), of("a<xy>bc", &[(1, 5)]));
        assert_eq!(of("abc", &[]), of("a<1>bc", &[(1, 4)]));
        assert_ne!(of("a<1>b", &[(1, 4)]), of("a<1>c", &[(1, 4)]));
        assert_ne!(of("a<1>b", &[]), of("a<2>b", &[]));
    }
}
