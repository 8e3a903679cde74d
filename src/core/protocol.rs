//! Records of the all-or-nothing protocol: what a crash must not make the bus forget.
//!
//! The order of records is Begin, per compensable request Started and Ended, Targets, and Decided.
//! What recovery does with each prefix stands in `recovery`.

use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{Decoder, Encoder};
use crate::store::Change;
use crate::{Message, MessageId};

/// One record.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// The message, before anything that may have to be undone.
    Begin {
        route: Arc<str>,
        received: Arc<Message>,
    },
    /// The targets as they will be treated, before any of them is touched.
    Targets(Vec<Planned>),
    /// A request that cannot simply be taken back goes out now.
    Started { step: Arc<str> },
    /// It was answered.
    Ended {
        step: Arc<str>,
        request: Arc<Message>,
        response: Arc<Message>,
    },
    /// It definitely did not happen.
    Refused { step: Arc<str> },
    /// Its outcome is unknown: an administrator decides.
    InDoubt,
    /// The decision: all of it is to happen.
    Decided,
    /// What it did was made good, which is not to be done twice.
    Compensated { step: Arc<str> },
}

/// A target in a Targets record.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub target: Arc<str>,
    pub how: How,
}

/// How a target is treated.
#[derive(Clone, Debug)]
pub(crate) enum How {
    /// Staged; the token finds it again.
    Staged(Bytes),
    /// Called.
    Called,
    /// Put into a queue together with the decision.
    Put {
        queue: Arc<str>,
        key: Arc<str>,
        message: Arc<Message>,
        /// Empty for a classic queue.
        entry: Arc<str>,
        cause: Option<MessageId>,
    },
}

impl Record {
    /// As a change of the store.
    pub(crate) fn change(&self, id: MessageId) -> Change {
        Change::Protocol {
            id,
            data: self.encode(),
        }
    }

    fn encode(&self) -> Bytes {
        let mut out = Encoder::new();
        match self {
            Record::Begin { route, received } => {
                out.u8(1).text(route).message(received);
            }
            Record::Targets(targets) => {
                out.u8(2).u32(targets.len() as u32);
                for planned in targets {
                    planned.encode(&mut out);
                }
            }
            Record::Started { step } => {
                out.u8(3).text(step);
            }
            Record::Ended {
                step,
                request,
                response,
            } => {
                out.u8(4).text(step).message(request).message(response);
            }
            Record::Refused { step } => {
                out.u8(5).text(step);
            }
            Record::InDoubt => {
                out.u8(6);
            }
            Record::Decided => {
                out.u8(7);
            }
            Record::Compensated { step } => {
                out.u8(8).text(step);
            }
        }
        out.finish()
    }

    /// Reads a record; nothing for one that this version does not know.
    pub(crate) fn decode(data: Bytes) -> Option<Self> {
        let mut data = Decoder::new(data);
        Some(match data.u8()? {
            1 => Record::Begin {
                route: data.name()?,
                received: Arc::new(data.message()?),
            },
            2 => {
                let count = data.u32()?;
                let mut targets = Vec::new();
                for _ in 0..count {
                    targets.push(Planned::decode(&mut data)?);
                }
                Record::Targets(targets)
            }
            3 => Record::Started { step: data.name()? },
            4 => Record::Ended {
                step: data.name()?,
                request: Arc::new(data.message()?),
                response: Arc::new(data.message()?),
            },
            5 => Record::Refused { step: data.name()? },
            6 => Record::InDoubt,
            7 => Record::Decided,
            8 => Record::Compensated { step: data.name()? },
            _ => return None,
        })
    }
}

impl Planned {
    fn encode(&self, out: &mut Encoder) {
        out.text(&self.target);
        match &self.how {
            How::Staged(token) => {
                out.u8(1).bytes(token);
            }
            How::Called => {
                out.u8(2);
            }
            How::Put {
                queue,
                key,
                message,
                entry,
                cause,
            } => {
                out.u8(3)
                    .text(queue)
                    .text(key)
                    .message(message)
                    .text(entry)
                    .id(cause.unwrap_or(MessageId::from_u128(0)));
            }
        }
    }

    fn decode(data: &mut Decoder) -> Option<Self> {
        let target = data.name()?;
        let how = match data.u8()? {
            1 => How::Staged(data.bytes()?),
            2 => How::Called,
            3 => How::Put {
                queue: data.name()?,
                key: data.name()?,
                message: Arc::new(data.message()?),
                entry: data.name()?,
                cause: data.id().map(|id| (id.as_u128() != 0).then_some(id))?,
            },
            _ => return None,
        };
        Some(Self { target, how })
    }
}

impl How {
    /// The store's change that puts it into its queue, if that is how it is treated.
    pub(crate) fn put(&self) -> Option<Change> {
        match self {
            How::Put {
                queue,
                key,
                message,
                entry,
                cause,
            } => Some(Change::Put {
                queue: queue.clone(),
                key: key.clone(),
                message: message.clone(),
                target: entry.clone(),
                cause: *cause,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_were() {
        let message = Arc::new(Message::new("payload"));
        let records = [
            Record::Begin {
                route: "r".into(),
                received: message.clone(),
            },
            Record::Targets(vec![
                Planned {
                    target: "file".into(),
                    how: How::Staged(Bytes::from_static(b"token")),
                },
                Planned {
                    target: "erp".into(),
                    how: How::Put {
                        queue: "r.erp".into(),
                        key: "k".into(),
                        message: message.clone(),
                        entry: "erp".into(),
                        cause: Some(message.id),
                    },
                },
            ]),
            Record::Ended {
                step: "pay".into(),
                request: message.clone(),
                response: message.clone(),
            },
            Record::Decided,
            Record::Compensated {
                step: "book".into(),
            },
        ];
        for record in &records {
            let back = Record::decode(record.encode()).expect("readable");
            assert_eq!(format!("{back:?}"), format!("{record:?}"));
        }
        assert!(Record::decode(Bytes::from_static(&[99])).is_none());
    }
}
