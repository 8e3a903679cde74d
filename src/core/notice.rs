//! What administrators are told of incidents: one notice, whichever way it goes.
//!
//! A notice is a value: what it says was so when it was made. The ways (mail, a web address) give it
//! their form; what they all say in the same words stands here. Absent: addresses, markup, protocols.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::codec::{Decoder, Encoder};
use crate::{MessageId, Timestamp};

/// What has happened to incidents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Event {
    /// A step has begun to fail.
    Opened,
    /// It still fails, or has failed again in between.
    Digest,
    /// It has lasted so long that others are told.
    Escalated,
    /// It is over.
    Resolved,
    /// Nothing has happened: somebody tries whether notices arrive.
    Test,
}

impl Event {
    const ALL: [Event; 5] = [
        Event::Opened,
        Event::Digest,
        Event::Escalated,
        Event::Resolved,
        Event::Test,
    ];

    /// For programs: `opened`, `digest`, `escalated`, `resolved`, `test`.
    pub fn name(self) -> &'static str {
        match self {
            Event::Opened => "opened",
            Event::Digest => "digest",
            Event::Escalated => "escalated",
            Event::Resolved => "resolved",
            Event::Test => "test",
        }
    }

    /// The word that a subject begins with.
    pub fn word(self) -> &'static str {
        match self {
            Event::Opened => "OPEN",
            Event::Digest => "DIGEST",
            Event::Escalated => "ESCALATED",
            Event::Resolved => "RESOLVED",
            Event::Test => "TEST",
        }
    }
}

/// Tells administrators about one or several incidents.
#[derive(Clone, PartialEq, Debug)]
pub struct Notice {
    /// The same over all attempts to send it.
    pub id: MessageId,
    /// When it was made.
    pub at: Timestamp,
    /// What has happened.
    pub event: Event,
    /// The bus's name.
    pub bus: Arc<str>,
    /// The installation folder, for commands.
    pub dir: Arc<str>,
    /// 0: for those who are always told. With [`Event::Escalated`] the level, from 1, whose people
    /// are told; with [`Event::Resolved`] the highest level that was told before.
    pub level: u32,
    /// The incidents, the oldest first; none with [`Event::Test`].
    pub incidents: Vec<Report>,
    /// So many further incidents are counted only.
    pub more: u64,
}

/// One incident as it was when a notice was made.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    /// What every notice about it names.
    pub id: MessageId,
    /// The route.
    pub route: Arc<str>,
    /// The step, target or part of a route.
    pub step: Arc<str>,
    /// Kind of failure: `outage`, `rejection`, `in-doubt`, `transform`, …
    pub kind: Arc<str>,
    /// Since when.
    pub opened_at: Timestamp,
    /// Since when it is over.
    pub resolved_at: Option<Timestamp>,
    /// Failures so far.
    pub count: u64,
    /// The last error, for administrators.
    pub last_error: String,
    /// The last message that it hit.
    pub message: Option<MessageId>,
    /// Whether what a destination did for that message is still to be decided.
    pub undecided: bool,
    /// What waits behind it.
    pub waiting: Option<Waiting>,
    /// The notice that told of its opening.
    pub opening: Option<MessageId>,
    /// How far it was escalated; 0: not.
    pub level: u32,
}

/// A queue whose messages an incident holds up.
#[derive(Clone, PartialEq, Debug)]
pub struct Waiting {
    /// The queue.
    pub queue: Arc<str>,
    /// How many messages wait.
    pub depth: u64,
    /// How many are set aside.
    pub parked: u64,
    /// Since when the oldest waits.
    pub oldest: Option<Timestamp>,
    /// The first one that is set aside.
    pub first_parked: Option<MessageId>,
}

impl Notice {
    /// `[xbus] OPEN ROUTE/STEP: KIND`; for several incidents how many, of how many routes.
    pub fn subject(&self) -> String {
        let word = self.event.word();
        match self.incidents.as_slice() {
            [] => format!("[xbus] {word} {}", self.bus),
            [one] if self.more == 0 => format!("[xbus] {word} {}", one.name()),
            all => {
                let mut routes: Vec<&str> = all.iter().map(|one| &*one.route).collect();
                routes.sort_unstable();
                routes.dedup();
                let number = all.len() as u64 + self.more;
                match (routes.as_slice(), self.more) {
                    ([route], 0) => format!("[xbus] {word} {number} incidents of {route}"),
                    (routes, 0) => {
                        format!(
                            "[xbus] {word} {number} incidents of {} routes",
                            routes.len()
                        )
                    }
                    _ => format!("[xbus] {word} {number} incidents"),
                }
            }
        }
    }

    /// What has happened, in a sentence.
    pub fn sentence(&self) -> String {
        let number = self.incidents.len() as u64 + self.more;
        let longest = self
            .incidents
            .iter()
            .map(|one| one.opened_at.until(one.resolved_at.unwrap_or(self.at)))
            .max()
            .unwrap_or_default();
        let lasted = human(longest);
        let over = self.incidents.iter().all(|one| one.resolved_at.is_some());
        match (self.event, number) {
            (Event::Test, _) => format!(
                "This is a test: notices of the bus '{}' arrive here. Nothing has failed.",
                self.bus
            ),
            (Event::Opened, 1) if over => {
                format!("A step of the bus failed for {lasted}; it works again.")
            }
            (Event::Opened, 1) => "A step of the bus has begun to fail.".to_owned(),
            (Event::Opened, n) => format!("{n} steps of the bus have begun to fail."),
            (Event::Digest, 1) if over => {
                "A step of the bus has failed again meanwhile; it works now.".to_owned()
            }
            (Event::Digest, 1) => format!("A step of the bus has been failing for {lasted}."),
            (Event::Digest, n) => {
                format!("{n} steps of the bus have been failing, the first for {lasted}.")
            }
            (Event::Escalated, 1) => {
                format!("A step of the bus fails and nobody has mended it for {lasted}.")
            }
            (Event::Escalated, n) => format!(
                "{n} steps of the bus fail and nobody has mended them, the first for {lasted}."
            ),
            (Event::Resolved, 1) => {
                format!("A step of the bus works again; it failed for {lasted}.")
            }
            (Event::Resolved, n) => {
                format!("{n} steps of the bus work again; the first failed for {lasted}.")
            }
        }
    }

    /// The command line that shows what is open now.
    pub fn overview(&self) -> String {
        command("alerts", &self.dir)
    }

    /// The binary form in which it waits in the store.
    pub(crate) fn encode(&self) -> bytes::Bytes {
        let mut out = Encoder::new();
        let event = Event::ALL.iter().position(|event| *event == self.event);
        out.u8(2)
            .id(self.id)
            .time(self.at)
            .u8(event.unwrap_or_default() as u8)
            .text(&self.bus)
            .text(&self.dir)
            .u32(self.level)
            .u64(self.more)
            .u32(self.incidents.len() as u32);
        for report in &self.incidents {
            report.encode(&mut out);
        }
        out.finish()
    }

    /// Reads what [`Notice::encode`] wrote.
    pub(crate) fn decode(mut data: Decoder) -> Option<Self> {
        (data.u8()? == 2).then_some(())?;
        let mut notice = Self {
            id: data.id()?,
            at: data.time()?,
            event: *Event::ALL.get(usize::from(data.u8()?))?,
            bus: data.name()?,
            dir: data.name()?,
            level: data.u32()?,
            more: data.u64()?,
            incidents: Vec::new(),
        };
        for _ in 0..data.u32()? {
            notice.incidents.push(Report::decode(&mut data)?);
        }
        Some(notice)
    }
}

impl Report {
    /// `ROUTE/STEP: KIND`.
    pub fn name(&self) -> String {
        format!("{}/{}: {}", self.route, self.step, self.kind)
    }

    /// How many messages wait and since when, at the time `at`; nothing where no queue waits.
    pub fn waits(&self, at: Timestamp) -> Option<String> {
        let waiting = self.waiting.as_ref()?;
        let mut text = format!("{} messages", waiting.depth);
        if let Some(since) = waiting.oldest {
            let _ = write!(text, ", the oldest for {}", human(since.until(at)));
        }
        if waiting.parked > 0 {
            let _ = write!(text, "; {} parked", waiting.parked);
        }
        Some(text)
    }

    /// The command lines that show it, and those that try again or decide, for the installation in
    /// `dir`.
    pub fn commands(&self, dir: &str) -> Vec<String> {
        let mut all = Vec::new();
        if let Some(id) = self.message {
            all.push(command(&format!("messages show {id}"), dir));
        }
        if let (true, Some(id)) = (self.undecided, self.message) {
            all.push(command(&format!("messages resolve {id} --commit"), dir));
            all.push(command(&format!("messages resolve {id} --abort"), dir));
        }
        if let (Some(waiting), None, false) = (&self.waiting, self.resolved_at, self.undecided) {
            let queue = quoted(&waiting.queue);
            all.push(command(&format!("queues show {queue}"), dir));
            all.push(match waiting.first_parked {
                Some(id) => command(&format!("queues release {queue} {id}"), dir),
                None => command(&format!("queues retry {queue}"), dir),
            });
        }
        all
    }

    fn encode(&self, out: &mut Encoder) {
        let nothing = MessageId::from_u128(0);
        out.id(self.id)
            .text(&self.route)
            .text(&self.step)
            .text(&self.kind)
            .time(self.opened_at)
            .time(self.resolved_at.unwrap_or_default())
            .u64(self.count)
            .text(&self.last_error)
            .id(self.message.unwrap_or(nothing))
            .u8(u8::from(self.undecided))
            .id(self.opening.unwrap_or(nothing))
            .u32(self.level);
        match &self.waiting {
            None => out.u8(0),
            Some(waiting) => out
                .u8(1)
                .text(&waiting.queue)
                .u64(waiting.depth)
                .u64(waiting.parked)
                .time(waiting.oldest.unwrap_or_default())
                .id(waiting.first_parked.unwrap_or(nothing)),
        };
    }

    fn decode(data: &mut Decoder) -> Option<Self> {
        Some(Self {
            id: data.id()?,
            route: data.name()?,
            step: data.name()?,
            kind: data.name()?,
            opened_at: data.time()?,
            resolved_at: some_time(data.time()?),
            count: data.u64()?,
            last_error: data.text()?,
            message: some_id(data.id()?),
            undecided: data.u8()? == 1,
            opening: some_id(data.id()?),
            level: data.u32()?,
            waiting: match data.u8()? {
                0 => None,
                _ => Some(Waiting {
                    queue: data.name()?,
                    depth: data.u64()?,
                    parked: data.u64()?,
                    oldest: some_time(data.time()?),
                    first_parked: some_id(data.id()?),
                }),
            },
        })
    }
}

/// Records say 0 for no id.
pub(crate) fn some_id(id: MessageId) -> Option<MessageId> {
    (id.as_u128() != 0).then_some(id)
}

/// Records say 0 for no time.
pub(crate) fn some_time(time: Timestamp) -> Option<Timestamp> {
    (time.as_micros() != 0).then_some(time)
}

fn command(rest: &str, dir: &str) -> String {
    format!("xbus {rest} --dir {}", quoted(dir))
}

/// `text` as one word of a POSIX shell.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-@:+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A duration as people say it.
pub fn human(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7200 => format!("{} min", s / 60),
        s @ 7200..172_800 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
pub(crate) fn report(route: &str, step: &str) -> Report {
    Report {
        id: MessageId::from_u128(7),
        route: route.into(),
        step: step.into(),
        kind: "outage".into(),
        opened_at: Timestamp::from_micros(1_000_000),
        resolved_at: None,
        count: 3,
        last_error: String::from("refused"),
        message: Some(MessageId::from_u128(8)),
        undecided: false,
        waiting: Some(Waiting {
            queue: format!("{route}.{step}").into(),
            depth: 12,
            parked: 0,
            oldest: Some(Timestamp::from_micros(2_000_000)),
            first_parked: None,
        }),
        opening: None,
        level: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(incidents: Vec<Report>) -> Notice {
        Notice {
            id: MessageId::from_u128(1),
            at: Timestamp::from_micros(602_000_000),
            event: Event::Opened,
            bus: "acme".into(),
            dir: "/srv/my bus".into(),
            level: 0,
            incidents,
            more: 0,
        }
    }

    #[test]
    fn a_notice_comes_back_from_the_store_as_it_was_and_a_torn_one_does_not() {
        let mut other = report("b", "receive");
        other.waiting = None;
        other.message = None;
        other.resolved_at = Some(Timestamp::from_micros(9));
        other.undecided = true;
        let whole = Notice {
            event: Event::Resolved,
            level: 2,
            more: 5,
            ..notice(vec![report("a", "erp"), other])
        };
        let data = whole.encode();
        assert_eq!(Notice::decode(Decoder::new(data.clone())), Some(whole));
        for cut in 0..data.len() {
            assert_eq!(Notice::decode(Decoder::new(data.slice(..cut))), None);
        }
    }

    #[test]
    fn subjects_name_one_incident_and_count_several() {
        let subject = |incidents, more| {
            let mut notice = notice(incidents);
            notice.more = more;
            notice.subject()
        };
        let (a, b) = (report("orders", "erp"), report("stock", "erp"));
        assert_eq!(
            subject(vec![a.clone()], 0),
            "[xbus] OPEN orders/erp: outage"
        );
        assert_eq!(
            subject(vec![a.clone(), a.clone()], 0),
            "[xbus] OPEN 2 incidents of orders"
        );
        assert_eq!(
            subject(vec![a.clone(), b.clone()], 0),
            "[xbus] OPEN 2 incidents of 2 routes"
        );
        assert_eq!(subject(vec![a, b], 198), "[xbus] OPEN 200 incidents");
    }

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let mut report = report("orders", "erp");
        assert_eq!(
            report.commands("/srv/bus"),
            [
                "xbus messages show 00000000-0000-0000-0000-000000000008 --dir /srv/bus",
                "xbus queues show orders.erp --dir /srv/bus",
                "xbus queues retry orders.erp --dir /srv/bus",
            ]
        );
        let waiting = report.waiting.as_mut().unwrap();
        waiting.queue = "a; rm -rf 'x'".into();
        waiting.first_parked = Some(MessageId::from_u128(9));
        report.message = None;
        let commands = report.commands("/srv/my bus");
        assert_eq!(
            commands[0],
            r"xbus queues show 'a; rm -rf '\''x'\''' --dir '/srv/my bus'"
        );
        assert!(commands[1].starts_with("xbus queues release 'a; rm"));
        report.undecided = true;
        report.message = Some(MessageId::from_u128(8));
        assert!(report.commands("d")[1].ends_with("--commit --dir d"));
        assert_eq!(
            report.waits(Timestamp::from_micros(602_000_000)).unwrap(),
            "12 messages, the oldest for 10 min"
        );
    }
}
