//! When what is told, by a clock that the tests move.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::*;
use crate::store::{
    Change, Commit, Durability, EntryRef, JournalEntry, LaneStatus, Queued, StoreError,
};
use crate::{Message, outbox};

/// A store of named values, with queues and health as the test says.
#[derive(Default)]
pub(crate) struct Values {
    values: Mutex<BTreeMap<Arc<str>, Bytes>>,
    queues: Mutex<Vec<QueueStatus>>,
    pub(crate) full: AtomicBool,
}

impl Store for Values {
    fn commit(&self, commit: Commit, _: Durability) -> BoxFuture<'_, Result<(), StoreError>> {
        let full = self.full.load(SeqCst);
        for change in commit.changes.into_iter().filter(|_| !full) {
            if let Change::Value { name, value } = change {
                let mut values = self.values.lock().unwrap();
                match value {
                    Some(value) => values.insert(name, value),
                    None => values.remove(&name),
                };
            }
        }
        let result = match full {
            true => Err(StoreError::Full("test".into())),
            false => Ok(()),
        };
        Box::pin(std::future::ready(result))
    }

    fn head(&self, _: &str, _: &str) -> Result<Option<Queued>, StoreError> {
        Ok(None)
    }

    fn lanes(&self, _: &str) -> Vec<LaneStatus> {
        Vec::new()
    }

    fn queues(&self) -> Vec<QueueStatus> {
        self.queues.lock().unwrap().clone()
    }

    fn entries(&self, _: &str, _: bool, _: usize) -> Result<Vec<Queued>, StoreError> {
        Ok(Vec::new())
    }

    fn entry(&self, _: &str, _: MessageId) -> Result<Option<Queued>, StoreError> {
        Ok(None)
    }

    fn find(&self, _: &Query) -> Result<Vec<JournalEntry>, StoreError> {
        Ok(Vec::new())
    }

    fn payload(&self, _: MessageId) -> Result<Option<Message>, StoreError> {
        Ok(None)
    }

    fn protocols(&self) -> Vec<(MessageId, Vec<Bytes>)> {
        Vec::new()
    }

    fn recall(&self, _: &str, _: &str) -> Option<Bytes> {
        None
    }

    fn values(&self, prefix: &str) -> Vec<(Arc<str>, Bytes)> {
        let values = self.values.lock().unwrap();
        let found = values.iter().filter(|(name, _)| name.starts_with(prefix));
        found.map(|(n, v)| (n.clone(), v.clone())).collect()
    }

    fn health(&self) -> Result<(), StoreError> {
        match self.full.load(SeqCst) {
            true => Err(StoreError::Full("test".into())),
            false => Ok(()),
        }
    }

    fn disk_bytes(&self) -> u64 {
        0
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// A way that takes what it is given, or is down, or rejects.
#[derive(Default)]
struct Ear {
    heard: Mutex<Vec<Notice>>,
    says: Mutex<Option<SendError>>,
}

impl Notifier for Ear {
    fn way(&self) -> &'static str {
        "mail"
    }

    fn goes_to(&self) -> String {
        String::from("test")
    }

    fn notify<'a>(&'a self, notice: &'a Notice) -> BoxFuture<'a, Result<Accepted, SendError>> {
        let result = match self.says.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => {
                self.heard.lock().unwrap().push(notice.clone());
                Ok(Accepted::default())
            }
        };
        Box::pin(std::future::ready(result))
    }
}

struct World {
    store: Arc<Values>,
    incidents: Incidents,
    now: Timestamp,
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

impl World {
    fn new() -> Self {
        Self::with(Arc::default(), Timestamp::from_micros(1 << 50))
    }

    fn with(store: Arc<Values>, now: Timestamp) -> Self {
        let settings = AlertSettings {
            escalate: vec![HOUR, 4 * HOUR],
            ..AlertSettings::new("test", Path::new("/srv/bus"))
        };
        let way: Arc<dyn Notifier> = Arc::new(Ear::default());
        Self {
            incidents: Incidents::new(store.clone(), settings, vec![way]),
            store,
            now,
        }
    }

    fn fail(&self, route: &str, step: &str, queue: Option<&str>) {
        let key = Key {
            route: route.into(),
            step: step.into(),
            kind: "outage".into(),
        };
        let mut state = self.incidents.lock();
        let error = "connection refused";
        self.incidents
            .note(&mut state, self.now, key, error, None, queue);
    }

    fn succeed(&self, route: &str) {
        self.incidents
            .over_at(self.now, |key, _| &*key.route == route);
    }

    /// Lets time pass as the bus's own task does, and gives what was told.
    fn pass(&mut self, time: Duration) -> Vec<String> {
        let before: Vec<MessageId> = self.waiting().iter().map(|notice| notice.id).collect();
        let end = self.now.after(time);
        loop {
            let next = self.incidents.tell(self.now);
            if next > end {
                break;
            }
            assert!(next > self.now, "time stands still");
            self.now = next;
        }
        self.now = end;
        let told = self.waiting();
        told.iter()
            .filter(|notice| !before.contains(&notice.id))
            .map(|notice| notice.subject().replace("[xbus] ", ""))
            .collect()
    }

    /// What is in the outbox, and nobody takes out.
    fn waiting(&self) -> Vec<Notice> {
        let values = self.store.values("outbox/mail/");
        let decode = |value| Notice::decode(crate::codec::Decoder::new(value)).unwrap();
        values.into_iter().map(|(_, value)| decode(value)).collect()
    }

    /// Takes everything out of the outbox, as a way does.
    fn take_all(&self) {
        self.incidents.outboxes().for_each(outbox::Outbox::clear);
    }

    fn queue(&self, name: &str, since: Timestamp) {
        let head = Queued {
            at: EntryRef {
                queue: name.into(),
                key: "".into(),
                seq: 1,
            },
            message: Arc::new(Message::new("")),
            target: "x".into(),
            cause: None,
            since,
            attempts: 1,
            last_error: None,
            next_try: None,
            parked: None,
        };
        *self.store.queues.lock().unwrap() = vec![QueueStatus {
            name: name.into(),
            depth: 7,
            parked: 0,
            blocked_keys: 1,
            head: Some(head),
        }];
    }
}

#[test]
fn ten_thousand_failures_in_a_minute_are_one_notice_and_their_end_another() {
    let mut world = World::new();
    let mut told = Vec::new();
    for _ in 0..600 {
        for _ in 0..17 {
            world.fail("orders", "erp", None);
        }
        told.extend(world.pass(Duration::from_millis(100)));
    }
    assert_eq!(told, ["OPEN orders/erp: outage"]);
    world.succeed("orders");
    assert_eq!(world.pass(MINUTE), ["RESOLVED orders/erp: outage"]);
    assert!(world.pass(HOUR).is_empty());
    assert!(world.store.values("incident/").is_empty(), "forgotten");
}

#[test]
fn a_clock_that_is_set_back_keeps_nothing_untold() {
    let mut world = World::new();
    let told = |mut world: World, what: &str| {
        assert_eq!(world.pass(MINUTE), [format!("OPEN {what}/x: outage")]);
        world.take_all();
        world
    };
    world.fail("a", "x", None);
    world = told(world, "a");
    // One that is still to be told, and one that comes then.
    world.fail("b", "x", None);
    world.now = world.now.before(1000 * HOUR);
    world = told(world, "b");
    world.fail("c", "x", None);
    world = told(world, "c");
    world.fail("a", "x", None);
    let digest = world.pass(HOUR / 2);
    assert_eq!(digest, ["DIGEST a/x: outage"]);
    world.take_all();
    world.succeed("a");
    assert_eq!(world.pass(MINUTE), ["RESOLVED a/x: outage"]);
    // After a restart too.
    let before = world.now.before(1000 * HOUR);
    let mut world = World::with(world.store.clone(), before);
    world.succeed("b");
    assert_eq!(world.pass(MINUTE), ["RESOLVED b/x: outage"]);
    world.take_all();
    let escalated = world.pass(5 * HOUR);
    assert!(
        escalated.contains(&"ESCALATED c/x: outage".to_owned()),
        "{escalated:?}"
    );
}

#[test]
fn what_fails_at_once_is_told_at_once_and_what_spreads_is_told_seldom() {
    let mut world = World::new();
    for n in 0..200 {
        world.fail(&format!("route-{n:03}"), "db", None);
    }
    assert_eq!(world.pass(MINUTE), ["OPEN 200 incidents"]);
    let notice = world.waiting().remove(0);
    assert_eq!((notice.incidents.len(), notice.more), (50, 150));
    // Two are told apart, so that each has a subject and a thread of its own.
    let mut world = World::new();
    world.fail("a", "x", None);
    world.fail("b", "x", None);
    assert_eq!(world.pass(MINUTE), ["OPEN a/x: outage", "OPEN b/x: outage"]);
    // Two hundred steps that begin to fail one after the other in ten minutes.
    let mut world = World::new();
    let mut told = Vec::new();
    for n in 0..200 {
        for _ in 0..50 {
            world.fail(&format!("route-{n:03}"), "db", None);
        }
        told.extend(world.pass(Duration::from_secs(3)));
    }
    let openings = told.iter().filter(|what| what.starts_with("OPEN")).count();
    assert!((3..=7).contains(&openings), "{told:?}");
    assert_eq!(told.len(), openings);
    told.extend(world.pass(5 * MINUTE));
    let counted = |told: &[String], word: &str| -> u64 {
        let of = told.iter().filter_map(|what| what.strip_prefix(word));
        of.map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap_or(1))
            .sum()
    };
    assert_eq!(counted(&told, "OPEN "), 200, "{told:?}");
    world.take_all();
    for n in 0..200 {
        world.succeed(&format!("route-{n:03}"));
    }
    assert_eq!(world.pass(2 * MINUTE), ["RESOLVED 200 incidents"]);
}

#[test]
fn what_lasts_is_told_once_a_digest() {
    let mut world = World::new();
    let mut told = Vec::new();
    for minute in 0..59 {
        world.fail("a", "x", None);
        if minute >= 5 {
            world.fail("b", "x", None);
        }
        told.extend(world.pass(MINUTE));
        world.take_all();
    }
    let times = |what: &str| told.iter().filter(|told| **told == what).count();
    assert_eq!(
        (times("OPEN a/x: outage"), times("OPEN b/x: outage")),
        (1, 1)
    );
    assert_eq!(times("DIGEST a/x: outage"), 3, "{told:?}");
    assert_eq!(times("DIGEST b/x: outage"), 3, "{told:?}");
    assert_eq!(told.len(), 8);
    // Nothing new happens: nothing is said.
    let told = world.pass(20 * MINUTE);
    let rest = [
        "ESCALATED a/x: outage",
        "DIGEST a/x: outage",
        "DIGEST b/x: outage",
        "ESCALATED b/x: outage",
    ];
    assert_eq!(told, rest);
    world.take_all();
    assert!(world.pass(HOUR).is_empty());
}

#[test]
fn a_step_that_flaps_is_told_twice_a_digest() {
    let mut world = World::new();
    let mut told = Vec::new();
    for _ in 0..60 {
        world.fail("a", "x", None);
        told.extend(world.pass(Duration::from_secs(1)));
        world.succeed("a");
        told.extend(world.pass(Duration::from_secs(1)));
    }
    assert_eq!(told, ["OPEN a/x: outage"], "it never works for long");
    for _ in 0..30 {
        told.extend(world.pass(Duration::from_secs(5)));
        world.fail("a", "x", None);
        told.extend(world.pass(Duration::from_secs(5)));
        world.succeed("a");
    }
    assert_eq!(told, ["OPEN a/x: outage", "RESOLVED a/x: outage"]);
    world.take_all();
    // The rest is told when its digest has come, and then it is quiet.
    assert_eq!(world.pass(HOUR), ["DIGEST a/x: outage"]);
    let digest = &world.waiting()[0].incidents[0];
    assert!(digest.count > 20 && digest.resolved_at.is_some());
    assert!(world.store.values("incident/").is_empty());
}

#[test]
fn one_that_opens_again_and_stays_is_not_kept_back() {
    let mut world = World::new();
    world.fail("a", "x", None);
    assert_eq!(world.pass(MINUTE), ["OPEN a/x: outage"]);
    world.succeed("a");
    assert_eq!(world.pass(MINUTE), ["RESOLVED a/x: outage"]);
    // Well within the digest's time.
    world.fail("a", "x", None);
    assert!(world.pass(Duration::from_secs(20)).is_empty());
    assert_eq!(world.pass(Duration::from_secs(40)), ["OPEN a/x: outage"]);
    // Each time it takes longer, so that a slow flapping is no flood.
    let mut told = 0;
    for _ in 0..10 {
        world.succeed("a");
        told += world.pass(Duration::from_secs(60)).len();
        world.fail("a", "x", None);
        told += world.pass(Duration::from_secs(60)).len();
    }
    assert!(told <= 6, "{told}");
}

#[test]
fn one_that_ended_before_it_could_be_told_is_told_all_the_same() {
    let mut world = World::new();
    world.fail("a", "x", None);
    world.succeed("a");
    assert_eq!(
        world.pass(MINUTE),
        ["OPEN a/x: outage", "RESOLVED a/x: outage"]
    );
    let notices = world.waiting();
    assert!(notices[0].sentence().contains("it works again"));
    // The end belongs to the opening's thread.
    assert_eq!(notices[1].incidents[0].opening, Some(notices[0].id));
    assert_eq!(notices[1].incidents[0].id, notices[0].incidents[0].id);
    // A new incident is a new thread.
    world.pass(HOUR);
    world.take_all();
    world.fail("a", "x", None);
    world.pass(MINUTE);
    assert_ne!(
        world.waiting()[0].incidents[0].id,
        notices[0].incidents[0].id
    );
}

#[test]
fn each_level_is_told_once_by_the_age_of_the_oldest_message() {
    let mut world = World::new();
    // The oldest message has waited for half an hour when its queue is found blocked.
    world.queue("a.x", world.now.before(30 * MINUTE));
    world.fail("a", "x", Some("a.x"));
    world.fail("b", "y", None);
    assert_eq!(world.pass(29 * MINUTE).len(), 2, "the openings");
    world.take_all();
    assert_eq!(world.pass(2 * MINUTE), ["ESCALATED a/x: outage"]);
    let notice = world.waiting().remove(0);
    assert_eq!(notice.level, 1);
    let report = &notice.incidents[0];
    assert_eq!(report.waiting.as_ref().unwrap().depth, 7);
    world.take_all();
    // Without a queue it is the incident's age; a restart repeats nothing.
    world = World::with(world.store.clone(), world.now);
    assert_eq!(world.pass(40 * MINUTE), ["ESCALATED b/y: outage"]);
    world.take_all();
    // The head was delivered, and the next has come in just now.
    world.queue("a.x", world.now);
    assert_eq!(world.pass(3 * HOUR), ["ESCALATED b/y: outage"]);
    assert_eq!(world.waiting()[0].level, 2);
    world.take_all();
    // Who was told is told of the end: level 1 for the one, level 2 for the other.
    world.succeed("a");
    world.succeed("b");
    world.pass(MINUTE);
    let mut levels: Vec<(String, u32)> = world
        .waiting()
        .iter()
        .map(|notice| (notice.subject(), notice.level))
        .collect();
    levels.sort();
    assert_eq!(
        levels,
        [
            ("[xbus] RESOLVED a/x: outage".to_owned(), 1),
            ("[xbus] RESOLVED b/y: outage".to_owned(), 2)
        ]
    );
}

#[test]
fn a_bus_that_was_down_tells_every_level_that_has_passed() {
    let mut world = World::new();
    world.fail("a", "x", None);
    world.pass(MINUTE);
    world.take_all();
    world.now = world.now.after(10 * HOUR);
    let told = world.pass(MINUTE);
    assert_eq!(told, ["ESCALATED a/x: outage", "ESCALATED a/x: outage"]);
    let levels: Vec<u32> = world.waiting().iter().map(|notice| notice.level).collect();
    assert_eq!(levels, [1, 2]);
}

#[test]
fn what_opened_just_before_a_crash_is_told_after_it() {
    let mut world = World::new();
    world.fail("a", "x", None);
    world = World::with(world.store.clone(), world.now.after(MINUTE));
    assert_eq!(world.incidents.open_count(), 1);
    assert_eq!(world.pass(MINUTE), ["OPEN a/x: outage"]);
}

#[test]
fn a_full_store_is_told_from_memory_and_over_when_it_has_room() {
    let mut world = World::new();
    world.store.full.store(true, SeqCst);
    world.pass(MINUTE);
    let outbox = world.incidents.outboxes().next().unwrap();
    assert_eq!(outbox.len(), 1, "although nothing can be kept");
    let open = world.incidents.open();
    assert_eq!((&*open[0].route, &*open[0].kind), ("bus", "disk-full"));
    world.store.full.store(false, SeqCst);
    assert_eq!(world.pass(MINUTE), ["RESOLVED bus/store: disk-full"]);
}

#[test]
fn places_that_are_gone_have_no_incidents() {
    let world = World::new();
    world.fail("gone", "x", None);
    world.fail("orders", "gone", None);
    world.fail("orders", "erp", None);
    world.fail("orders.old", "queue", None);
    world
        .incidents
        .failed("gone", "x", "in-doubt", "?", None, None);
    world
        .incidents
        .failed("bus", "store", "damage", "?", None, None);
    world
        .incidents
        .keep_only(|route, step| (route, step) == ("orders", "erp"));
    let open: Vec<String> = world.incidents.open().iter().map(Report::name).collect();
    assert_eq!(
        open,
        [
            "bus/store: damage",
            "gone/x: in-doubt",
            "orders/erp: outage",
            "orders.old/queue: outage"
        ]
    );
    world.incidents.decided("gone");
    world.incidents.ended("bus", "store", "damage");
    assert_eq!(world.incidents.open_count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_way_that_is_down_gets_everything_later_and_digests_do_not_pile_up() {
    let mut world = World::new();
    let ear = Arc::new(Ear::default());
    *ear.says.lock().unwrap() = Some(SendError::outage("refused"));
    for _ in 0..8 {
        world.fail("a", "x", None);
        world.pass(20 * MINUTE);
    }
    let notices = world.waiting();
    let digests = notices.iter().filter(|n| n.event == Event::Digest);
    assert_eq!(digests.count(), 0, "the opening waits still");
    let outbox = world.incidents.outboxes().next().unwrap();
    let stop = Stop::new();
    let started = tokio::time::Instant::now();
    let running = outbox.run(&*ear, stop.clone());
    let waiting = async {
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(outbox.way_state().failing.is_some());
        *ear.says.lock().unwrap() = None;
        while !outbox.is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        stop.cancel();
    };
    tokio::join!(running, waiting);
    assert!(started.elapsed() <= Duration::from_secs(600 + 301));
    assert_eq!(*ear.heard.lock().unwrap(), notices);
    assert!(outbox.way_state().failing.is_none());
    assert!(world.store.values("outbox/").is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_that_is_rejected_holds_up_no_other_and_is_given_up_after_days() {
    let world = World::new();
    let outbox = world.incidents.outboxes().next().unwrap();
    let mut notice = crate::notice::Notice {
        id: MessageId::new(),
        at: Timestamp::now().before(100 * HOUR),
        event: Event::Opened,
        bus: "b".into(),
        dir: "d".into(),
        level: 0,
        incidents: vec![crate::notice::report("a", "x")],
        more: 0,
    };
    outbox.add(&notice);
    notice.at = Timestamp::now();
    outbox.add(&notice);
    let ear = Ear::default();
    *ear.says.lock().unwrap() = Some(SendError::rejected("550 no"));
    let stop = Stop::new();
    let end = async {
        tokio::time::sleep(Duration::from_secs(60)).await;
        stop.cancel();
    };
    tokio::join!(outbox.run(&ear, stop.clone()), end);
    assert_eq!((outbox.len(), outbox.way_state().dropped), (1, 1));
    // Never more than the bound.
    for _ in 0..outbox::MOST + 10 {
        outbox.add(&notice);
    }
    assert_eq!(outbox.len(), outbox::MOST);
    assert_eq!(outbox.way_state().dropped, 12);
}

#[test]
fn what_waits_for_a_way_that_is_gone_is_given_up() {
    let mut world = World::new();
    world.fail("a", "x", None);
    world.pass(MINUTE);
    let settings = AlertSettings::new("test", Path::new("."));
    let none = Incidents::new(world.store.clone(), settings, Vec::new());
    assert_eq!(none.open_count(), 1);
    assert!(world.store.values("outbox/").is_empty());
}
