//! Incidents as they stand in the store, so that they outlive the process.

use std::sync::Arc;

use bytes::Bytes;

use super::{Incident, Key};
use crate::codec::{Decoder, Encoder};
use crate::notice::{some_id, some_time};
use crate::store::Change;
use crate::{MessageId, Timestamp};

/// The beginning of their names.
pub(super) const PREFIX: &str = "incident/";

/// The change that keeps an incident as it is now.
pub(super) fn keep(incident: &Incident) -> Change {
    value(&incident.key, Some(encode(incident)))
}

/// The change that forgets one.
pub(super) fn forget(key: &Key) -> Change {
    value(key, None)
}

fn value(key: &Key, value: Option<Bytes>) -> Change {
    let name = format!("{PREFIX}{}/{}/{}", key.route, key.step, key.kind);
    Change::Value {
        name: Arc::from(name),
        value,
    }
}

fn encode(incident: &Incident) -> Bytes {
    let nothing = MessageId::from_u128(0);
    let mut out = Encoder::new();
    out.u8(2)
        .id(incident.id)
        .text(&incident.key.route)
        .text(&incident.key.step)
        .text(&incident.key.kind)
        .time(incident.opened_at)
        .u64(incident.count)
        .u8(u8::from(incident.open))
        .text(&incident.last_error)
        .id(incident.message.unwrap_or(nothing))
        .maybe_text(incident.queue.as_deref())
        .u64(incident.untold)
        .u8(u8::from(incident.told_open))
        .time(incident.window_ends)
        .time(incident.changed_at)
        .time(incident.told_at)
        .time(incident.owes_opening.unwrap_or_default())
        .id(incident.opening.unwrap_or(nothing))
        .u32(incident.level);
    out.finish()
}

/// Reads an incident; version 1 knew neither threads nor levels.
pub(super) fn decode(value: Bytes) -> Option<Incident> {
    let mut data = Decoder::new(value);
    let version = data.u8()?;
    matches!(version, 1 | 2).then_some(())?;
    let id = data.id()?;
    let key = Key {
        route: data.name()?,
        step: data.name()?,
        kind: data.name()?,
    };
    let mut incident = Incident {
        id,
        opened_at: data.time()?,
        count: data.u64()?,
        open: data.u8()? == 1,
        last_error: data.text()?,
        message: some_id(data.id()?),
        queue: data.maybe_text()?.map(Arc::from),
        untold: data.u64()?,
        told_open: data.u8()? == 1,
        window_ends: data.time()?,
        ..Incident::new(key, Timestamp::default())
    };
    incident.changed_at = incident.opened_at;
    if version == 2 {
        incident.changed_at = data.time()?;
        incident.told_at = data.time()?;
        incident.owes_opening = some_time(data.time()?);
        incident.opening = some_id(data.id()?);
        incident.level = data.u32()?;
    }
    Some(incident)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incident_comes_back_as_it_was_and_a_torn_one_does_not() {
        let key = Key {
            route: "orders".into(),
            step: "erp".into(),
            kind: "outage".into(),
        };
        let incident = Incident {
            count: 5,
            open: true,
            last_error: String::from("refused"),
            message: Some(MessageId::new()),
            queue: Some("orders.erp".into()),
            untold: 2,
            told_open: true,
            told_at: Timestamp::from_micros(3),
            opening: Some(MessageId::new()),
            level: 2,
            owes_opening: Some(Timestamp::from_micros(4)),
            ..Incident::new(key, Timestamp::now())
        };
        let data = encode(&incident);
        assert_eq!(decode(data.clone()), Some(incident));
        for cut in 0..data.len() {
            assert_eq!(decode(data.slice(..cut)), None);
        }
    }
}
