//! What nodes say to each other over `xbus.control`, as JSON.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xbus_core::broker::Report;
use xbus_core::codec::{Decoder, Encoder};
use xbus_core::progress::Progress;
use xbus_core::store::{EntryRef, Outcome, Queued, StoreError};
use xbus_core::{Attachments, MessageId, Timestamp};

use super::state::HeadState;

/// A head's message goes along when it is not larger; else its body is left out.
const BODY_MAX: usize = 256 * 1024;

/// A message of the control exchange, or an answer in a node's own queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Said {
    /// A node is there.
    Hello(Hello),
    /// A node goes.
    Bye {
        /// Which.
        instance: String,
    },
    /// A queue beside a lane was declared for the first time.
    Made {
        /// Its name.
        queue: String,
    },
    /// Something is to be answered by every node that can.
    Ask {
        /// Tells the answer apart.
        number: u64,
        /// What.
        ask: Ask,
    },
    /// The answer to one asker.
    Answer {
        /// Of the question.
        number: u64,
        /// Who answers.
        instance: String,
        /// What.
        answer: Answer,
    },
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Hello {
    /// This run of the node.
    pub(super) instance: String,
    /// The node's name.
    pub(super) node: String,
    /// Lanes whose partitions it consumes, all of them.
    pub(super) lanes: Vec<String>,
    /// What it has delivered since the last time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) delivered: Vec<Delivered>,
    /// It wants to hear who else is there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) asks: bool,
}

/// What has been delivered from a partition's queue: see [`Progress`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Delivered {
    pub(super) queue: String,
    pub(super) origin: String,
    up_to: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    missing: Vec<(u64, u64)>,
}

impl Delivered {
    pub(super) fn new(queue: &str, origin: &str, progress: &Progress) -> Self {
        let (up_to, missing) = progress.parts();
        Self {
            queue: queue.to_owned(),
            origin: origin.to_owned(),
            up_to,
            missing: missing.to_vec(),
        }
    }

    pub(super) fn progress(self) -> Option<Progress> {
        Progress::from_parts(self.up_to, self.missing)
    }
}

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ask {
    /// Which heads are held of a lane.
    Heads {
        /// The lane.
        lane: String,
    },
    /// A released message waits in the front of this queue.
    Front {
        /// The partition's queue.
        queue: String,
    },
    /// Try now: all heads, or one.
    Retry {
        /// The lane.
        lane: String,
        /// The head.
        id: Option<String>,
    },
    /// Set a head aside.
    Park {
        /// The lane.
        lane: String,
        /// The head.
        id: String,
        /// Why.
        reason: String,
    },
    /// Remove a head.
    Drop {
        /// The lane.
        lane: String,
        /// The head.
        id: String,
    },
    /// The asker was given this queue: whether an attempt of a message of it is under way elsewhere, and
    /// what has been delivered. The answer is immediate; `later` means to ask again. Nodes that do not
    /// know this do not answer.
    LetGo {
        /// The partition's queue.
        queue: String,
    },
}

/// An answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Answer {
    /// It takes longer: an attempt is under way. Another answer follows.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) later: bool,
    /// The heads held, where that was asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) heads: Vec<Head>,
    /// How many heads were acted upon.
    #[serde(default)]
    pub(super) done: usize,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// What was delivered from a queue that was let go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) delivered: Vec<Delivered>,
    /// How the last attempts of messages of that queue ended, which may come again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) ended: Vec<Ended>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    /// The message.
    pub(super) id: String,
    /// How often it was tried, this time included.
    pub(super) attempts: u32,
    /// What is known of it when it failed; nothing when it was delivered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<HeadState>,
}

/// A held head.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Head {
    /// The partition's queue.
    queue: String,
    key: String,
    seq: u64,
    /// The message in the core's form, base64.
    message: String,
    #[serde(default)]
    target: String,
    since: i64,
    cause: Option<String>,
    attempts: u32,
    last_error: Option<String>,
    next_try: Option<i64>,
}

impl Head {
    pub(super) fn of(queue: &str, head: &Queued) -> Self {
        let mut encoder = Encoder::new();
        if head.message.body.bytes().len() + head.message.attachments.size() > BODY_MAX {
            let mut short = head.message.with_body(Bytes::new());
            short.attachments = Attachments::default();
            encoder.message(&short);
        } else {
            encoder.message(&head.message);
        }
        Self {
            queue: queue.to_owned(),
            key: head.at.key.to_string(),
            seq: head.at.seq,
            message: STANDARD.encode(encoder.finish()),
            target: head.target.to_string(),
            since: head.since.as_micros(),
            cause: head.cause.map(|id| id.to_string()),
            attempts: head.attempts,
            last_error: head.last_error.clone(),
            next_try: head.next_try.map(Timestamp::as_micros),
        }
    }

    pub(super) fn queued(self, lane: &Arc<str>) -> Option<Queued> {
        let message = STANDARD.decode(self.message).ok()?;
        Some(Queued {
            at: EntryRef {
                queue: lane.clone(),
                key: Arc::from(self.key),
                seq: self.seq,
            },
            message: Arc::new(Decoder::new(message.into()).message()?),
            target: Arc::from(self.target),
            since: Timestamp::from_micros(self.since),
            cause: self.cause.and_then(|id| id.parse().ok()),
            attempts: self.attempts,
            last_error: self.last_error,
            next_try: self.next_try.map(Timestamp::from_micros),
            parked: None,
        })
    }
}

impl Answer {
    pub(super) fn failed(error: &StoreError) -> Self {
        Self {
            error: Some(error.to_string()),
            ..Self::default()
        }
    }
}

/// A report on its way to the node that accepted the message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reported {
    v: u32,
    lane: String,
    id: String,
    target: String,
    outcome: String,
    attempts: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    at: i64,
}

impl Reported {
    pub(super) fn of(lane: &str, report: &Report) -> Self {
        Self {
            v: 1,
            lane: lane.to_owned(),
            id: report.id.to_string(),
            target: report.target.to_string(),
            outcome: report.outcome.name().to_owned(),
            attempts: report.attempts,
            error: report.error.clone(),
            at: report.at.as_micros(),
        }
    }

    pub(super) fn lane(&self) -> &str {
        &self.lane
    }

    pub(super) fn report(&self) -> Option<Report> {
        Some(Report {
            id: self.id.parse::<MessageId>().ok()?,
            target: Arc::from(self.target.as_str()),
            outcome: Outcome::from_name(&self.outcome)?,
            attempts: self.attempts,
            error: self.error.clone(),
            at: Timestamp::from_micros(self.at),
        })
    }
}

#[cfg(test)]
mod tests {
    use xbus_core::Message;

    use super::*;

    #[test]
    fn heads_and_reports_come_back_as_they_were() {
        let mut message = Message::new("body");
        message.headers.set("X-A", "ä");
        let head = Queued {
            at: EntryRef {
                queue: Arc::from("orders.erp"),
                key: Arc::from("C-1"),
                seq: 12,
            },
            message: Arc::new(message),
            target: Arc::from("erp"),
            since: Timestamp::now(),
            cause: Some(MessageId::new()),
            attempts: 3,
            last_error: Some("refused".to_owned()),
            next_try: Some(Timestamp::now()),
            parked: None,
        };
        let said = Said::Answer {
            number: 1,
            instance: "i".to_owned(),
            answer: Answer {
                heads: vec![Head::of("orders.erp.3", &head)],
                ..Answer::default()
            },
        };
        let json = serde_json::to_vec(&said).unwrap();
        let Said::Answer { answer, .. } = serde_json::from_slice(&json).unwrap() else {
            panic!("another kind");
        };
        let back = answer.heads[0].clone().queued(&head.at.queue).unwrap();
        assert_eq!(format!("{back:?}"), format!("{head:?}"));

        let report = Report {
            id: MessageId::new(),
            target: Arc::from("erp"),
            outcome: Outcome::Failed,
            attempts: 2,
            error: Some("dropped".to_owned()),
            at: Timestamp::now(),
        };
        let json = serde_json::to_string(&Reported::of("orders.erp", &report)).unwrap();
        let back: Reported = serde_json::from_str(&json).unwrap();
        assert_eq!(back.lane(), "orders.erp");
        assert_eq!(back.report().unwrap(), report);
    }
}
