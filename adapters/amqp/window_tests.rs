//! Order, retries, setting aside and answers, without a broker: deliveries are made by hand, and a
//! stand-in says what the route does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, ShortString};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use xbus_core::plan::{LanePolicy, Retry};
use xbus_core::{
    Arrival, Code, Fault, Headers, Message, MessageId, Reply, SendError, Status, Stop,
};

use crate::held::{Desk, Door, Outlet};
use crate::incoming::Reading;
use crate::ledger::{Ledger, Not, Wanted};
use crate::link::Publish;
use crate::memory::{Carried, Identity, Memory};
use crate::window::{Order, Window};

/// Fails messages by their body: `BODY` so many times with a code; says what it saw.
#[derive(Default)]
struct Route {
    faults: Mutex<HashMap<String, (u32, Code)>>,
    seen: Mutex<Vec<String>>,
    ids: Mutex<Vec<MessageId>>,
    keys: Mutex<Vec<Arc<str>>>,
    cleared: Mutex<Vec<String>>,
    told: Mutex<Vec<&'static str>>,
    rejected: Mutex<Vec<String>>,
    park: bool,
    answers: bool,
    takes: Duration,
}

impl Door for Route {
    fn deliver(&self, arrival: Arrival, _: bool) -> BoxFuture<'_, Result<Reply, Fault>> {
        Box::pin(async move {
            let body = String::from_utf8_lossy(arrival.message.body.bytes()).into_owned();
            self.seen
                .lock()
                .unwrap()
                .push(format!("{body}{}", arrival.attempts));
            self.ids.lock().unwrap().push(arrival.message.id);
            tokio::time::sleep(self.takes).await;
            if let Some((left, code)) = self.faults.lock().unwrap().get_mut(&body)
                && *left > 0
            {
                *left -= 1;
                return Err(Fault::new(*code, "no").at(&Arc::from("step")));
            }
            self.keys.lock().unwrap().extend(arrival.seen_as);
            Ok(Reply {
                id: arrival.message.id,
                status: Status::Delivered,
                message: Some(Arc::new(Message::new("reply"))),
                http_status: None,
                headers: Headers::new(),
            })
        })
    }

    fn seen(&self, key: &str) -> bool {
        self.keys
            .lock()
            .unwrap()
            .iter()
            .any(|known| &**known == key)
    }

    fn forget(&self, key: Arc<str>) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.keys.lock().unwrap().retain(|known| *known != key) })
    }

    fn fails(&self, kind: &'static str, _: &str) {
        self.told.lock().unwrap().push(kind);
    }

    fn rejects(&self, error: &str, queue: &str) {
        let said = format!("{queue}: {error}");
        self.rejected.lock().unwrap().push(said);
    }

    fn works(&self) {}

    fn policy(&self) -> LanePolicy {
        LanePolicy {
            retry: Retry {
                attempts: u32::MAX,
                first: Duration::from_secs(1),
                factor: 2.0,
                max: Duration::from_secs(60),
            },
            park_rejected: self.park,
            concurrency: 4,
        }
    }

    fn orders(&self) -> bool {
        true
    }

    /// The first letter.
    fn key(&self, message: &Arc<Message>) -> Option<Arc<str>> {
        let body = String::from_utf8_lossy(message.body.bytes()).into_owned();
        Some(body.chars().take(1).collect::<String>().into())
    }

    fn answers(&self) -> bool {
        self.answers
    }

    fn commits(&self) -> bool {
        true
    }

    fn route(&self) -> Arc<str> {
        Arc::from("r")
    }

    fn cleared(&self, step: &str) {
        self.cleared.lock().unwrap().push(step.to_owned());
    }
}

/// Keeps what is published; fails the first so many.
#[derive(Default)]
struct Broker {
    published: Mutex<Vec<Publish>>,
    fails: Mutex<u32>,
}

impl Outlet for Broker {
    fn publish(&self, publish: Publish, _: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async move {
            let mut fails = self.fails.lock().unwrap();
            if *fails > 0 {
                *fails -= 1;
                return Err(SendError::outage("down"));
            }
            self.published.lock().unwrap().push(publish);
            Ok(())
        })
    }

    fn answer(&self, publish: Publish, until: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        self.publish(publish, until)
    }

    fn declare<'a>(&'a self, _: &'a ShortString, _: Instant) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }
}

struct World {
    route: Arc<Route>,
    broker: Arc<Broker>,
    memory: Arc<Memory>,
    ledger: Arc<Ledger>,
    tag: u64,
}

impl World {
    fn new(route: Route) -> Self {
        Self {
            route: Arc::new(route),
            broker: Arc::default(),
            memory: Arc::default(),
            ledger: Arc::new(Ledger::new(Arc::from("rabbit/q"))),
            tag: 0,
        }
    }

    fn failing(faults: &[(&str, u32, Code)]) -> Route {
        let faults = faults
            .iter()
            .map(|(body, times, code)| ((*body).to_owned(), (*times, *code)));
        Route {
            faults: Mutex::new(faults.collect()),
            ..Route::default()
        }
    }

    fn window(&self, order: Order) -> (Window, Stop) {
        let give_back = Stop::new();
        let desk = Desk {
            door: self.route.clone(),
            outlet: self.broker.clone(),
            memory: self.memory.clone(),
            ledger: self.ledger.clone(),
            queue: "q".into(),
            parked: "q.parked".into(),
            grip: None,
            places: Semaphore::new(4),
            give_back: give_back.clone(),
        };
        let reading = Reading {
            max_body: 1000,
            ..Reading::default()
        };
        (
            Window::new(Arc::new(desk), reading, order, Arc::from("bus")),
            give_back,
        )
    }

    fn delivery(&mut self, body: &str, redelivered: bool) -> Delivery {
        self.tag += 1;
        let mut delivery =
            Delivery::mock(self.tag, "".into(), "q".into(), redelivered, body.into());
        delivery.properties =
            BasicProperties::default().with_message_id(format!("id-{body}").into());
        delivery
    }

    fn seen(&self) -> Vec<String> {
        self.route.seen.lock().unwrap().clone()
    }
}

async fn finish(window: &mut Window) {
    while let Some(ended) = window.ended().await {
        ended.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_head_is_retried_in_order_and_nothing_overtakes_it() {
    let mut world = World::new(World::failing(&[
        ("a", 3, Code::Destination),
        ("b", 1, Code::Client),
    ]));
    let (mut window, _) = world.window(Order::All);
    let start = Instant::now();
    for body in ["a", "b", "c"] {
        window.take(world.delivery(body, false));
    }
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0", "a1", "a2", "a3", "b0", "b1", "c0"]);
    assert_eq!(start.elapsed().as_secs(), 1 + 2 + 4 + 1);
    assert!(
        world
            .route
            .cleared
            .lock()
            .unwrap()
            .contains(&"step".to_owned())
    );
    assert!(window.oldest().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_failing_key_holds_up_its_own_messages_only() {
    let mut world = World::new(World::failing(&[("a1", 2, Code::Destination)]));
    let (mut window, _) = world.window(Order::Keys);
    for body in ["a1", "a2", "b1", "b2", "c1"] {
        window.take(world.delivery(body, false));
    }
    finish(&mut window).await;
    let seen = world.seen();
    let place = |what: &str| seen.iter().position(|s| s == what).unwrap();
    assert!(place("b20") < place("a11") && place("c10") < place("a11"));
    assert!(place("a12") < place("a20") && place("b10") < place("b20"));
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_keeps_its_id_and_its_attempts() {
    let mut world = World::new(World::failing(&[("a", 3, Code::Destination)]));
    let (mut window, _) = world.window(Order::All);
    window.take(world.delivery("a", false));
    window.take(world.delivery("b", false));
    work_for(&mut window, Duration::from_millis(3500)).await;
    window.give_back().await;
    assert_eq!(world.seen(), ["a0", "a1", "a2"]);
    let (mut window, _) = world.window(Order::All);
    window.take(world.delivery("a", true));
    window.take(world.delivery("b", true));
    let start = Instant::now();
    finish(&mut window).await;
    assert_eq!(world.seen()[3..], ["a3", "b0"]);
    // What was left of the wait of 4 seconds.
    assert_eq!(start.elapsed(), Duration::from_millis(3500));
    let ids = world.route.ids.lock().unwrap();
    assert!(ids[..4].iter().all(|id| *id == ids[0]) && ids[4] != ids[0]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_under_way_ends_before_the_channel_does() {
    let mut world = World::new(Route {
        takes: Duration::from_secs(3),
        ..Route::default()
    });
    let (mut window, _) = world.window(Order::All);
    window.take(world.delivery("a", false));
    window.take(world.delivery("b", false));
    work_for(&mut window, Duration::from_secs(1)).await;
    window.give_back().await;
    assert_eq!(world.seen(), ["a0"]);
    assert!(window.is_empty());
}

#[tokio::test(start_paused = true)]
async fn rejected_messages_are_set_aside_where_the_route_says_so() {
    let mut world = World::new(Route {
        park: true,
        ..World::failing(&[
            ("a", 9, Code::Client),
            ("b", 9, Code::Transform),
            ("c", 9, Code::InDoubt),
            ("d", 1, Code::Destination),
        ])
    });
    *world.broker.fails.lock().unwrap() = 1;
    let (mut window, _) = world.window(Order::All);
    for body in ["a", "b", "c", "d"] {
        window.take(world.delivery(body, false));
    }
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0", "b0", "c0", "d0", "d1"]);
    let published = world.broker.published.lock().unwrap();
    let bodies: Vec<&[u8]> = published.iter().map(|p| p.body.as_ref()).collect();
    assert_eq!(bodies, [b"a", b"b", b"c"]);
    assert!(
        published
            .iter()
            .all(|p| &*p.routing_key == "q.parked" && p.exchange.is_empty())
    );
    let headers = published[2]
        .properties
        .headers()
        .clone()
        .unwrap_or_default();
    assert_eq!(
        headers.inner()["x-xbus-code"],
        lapin::types::AMQPValue::LongString("in-doubt".into())
    );
    // Setting aside failed once.
    assert_eq!(*world.route.told.lock().unwrap(), ["outage"]);
    let id = published[0].properties.message_id().clone();
    assert_eq!(id, Some("id-a".into()));
}

#[tokio::test(start_paused = true)]
async fn in_doubt_is_never_repeated_and_a_rejection_blocks_unless_told_otherwise() {
    let mut world = World::new(World::failing(&[
        ("a", 9, Code::InDoubt),
        ("b", 2, Code::Client),
    ]));
    let (mut window, _) = world.window(Order::All);
    window.take(world.delivery("a", false));
    window.take(world.delivery("b", false));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0", "b0", "b1", "b2"]);
    assert_eq!(world.broker.published.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_answered_and_told_of_faults_at_once() {
    let mut world = World::new(Route {
        answers: true,
        ..World::failing(&[("b", 9, Code::Destination)])
    });
    let (mut window, _) = world.window(Order::All);
    for body in ["a", "b", "c"] {
        let mut delivery = world.delivery(body, false);
        if body != "c" {
            delivery.properties = delivery
                .properties
                .with_reply_to("answers".into())
                .with_correlation_id(format!("c-{body}").into());
        }
        window.take(delivery);
    }
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0", "b0", "c0"]);
    let published = world.broker.published.lock().unwrap();
    assert_eq!(published.len(), 2);
    assert_eq!(published[0].body.as_ref(), b"reply");
    assert_eq!(
        *published[0].properties.correlation_id(),
        Some("c-a".into())
    );
    assert!(String::from_utf8_lossy(&published[1].body).contains("\"code\":\"destination\""));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_not_sent_is_made_up_for_without_another_run() {
    let mut world = World::new(Route {
        answers: true,
        ..Route::default()
    });
    *world.broker.fails.lock().unwrap() = 1;
    let ask = |mut delivery: Delivery| {
        delivery.properties = delivery.properties.with_reply_to("answers".into());
        delivery
    };
    let (mut window, _) = world.window(Order::All);
    window.take(ask(world.delivery("a", false)));
    work_for(&mut window, Duration::from_millis(500)).await;
    window.give_back().await;
    assert!(world.broker.published.lock().unwrap().is_empty());
    let (mut window, _) = world.window(Order::All);
    window.take(ask(world.delivery("a", true)));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0"]);
    assert_eq!(world.broker.published.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_done_and_comes_again_is_not_run_again() {
    let mut world = World::new(Route::default());
    let (mut window, _) = world.window(Order::All);
    window.take(world.delivery("a", false));
    finish(&mut window).await;
    // Acknowledged, but the connection was lost before the broker read it.
    window.take(world.delivery("a", true));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0"]);
    // After a crash only the store knows.
    world.memory = Arc::default();
    let (mut window, _) = world.window(Order::All);
    window.take(world.delivery("a", true));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0"]);
    for key in world.memory.to_forget(true) {
        world.route.forget(key).await;
    }
    assert!(
        world.route.keys.lock().unwrap().is_empty(),
        "the store does not grow"
    );
    // Never seen by this one: run, however often it was delivered elsewhere.
    window.take(world.delivery("b", true));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0", "b0"]);
}

#[tokio::test(start_paused = true)]
async fn without_an_id_two_messages_may_be_alike() {
    let mut world = World::new(Route::default());
    let (mut window, _) = world.window(Order::All);
    for redelivered in [false, true] {
        let mut delivery = world.delivery("a", redelivered);
        delivery.properties = BasicProperties::default();
        assert!(world.memory.was_done(Identity::of(&delivery)).is_none());
        window.take(delivery);
        finish(&mut window).await;
    }
    assert_eq!(world.seen(), ["a0", "a0"]);
}

/// Waits until what is held has come so far.
async fn until<T>(found: impl Fn() -> Option<T>) -> T {
    loop {
        if let Some(found) = found() {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Works on what is held while `ask` waits for its answer.
async fn while_working<T>(window: &mut Window, ask: impl Future<Output = T>) -> T {
    let mut ask = std::pin::pin!(ask);
    loop {
        let idle = window.is_empty();
        tokio::select! {
            biased;
            answer = &mut ask => return answer,
            Some(ended) = window.ended(), if !idle => ended.unwrap(),
        }
    }
}

async fn work_for(window: &mut Window, time: Duration) {
    while_working(window, tokio::time::sleep(time)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_shown_and_a_blocked_head_is_tried_when_asked_for() {
    let mut world = World::new(World::failing(&[("a", 2, Code::Destination)]));
    let (mut window, _) = world.window(Order::All);
    for body in ["a", "b"] {
        window.take(world.delivery(body, false));
    }
    let ledger = world.ledger.clone();
    let head = until(|| ledger.heads().pop().filter(|head| head.attempts == 1));
    let head = while_working(&mut window, head).await;
    assert_eq!(head.last_error.as_deref(), Some("step: destination: no"));
    assert!(head.next_try.is_some());
    let held = ledger.held();
    assert_eq!(held.len(), 2);
    let behind = held[1].message.id;
    assert_eq!(ledger.retry(Some(behind)), 0, "it is no head");
    assert_eq!(ledger.ask(behind, Wanted::Drop).err(), Some(Not::Head));
    assert_eq!(
        ledger.ask(MessageId::new(), Wanted::Drop).err(),
        Some(Not::Here)
    );
    let start = Instant::now();
    assert_eq!(ledger.retry(None), 1);
    let tried = until(|| (ledger.heads()[0].attempts == 2).then_some(()));
    while_working(&mut window, tried).await;
    assert!(start.elapsed() < Duration::from_millis(100));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0", "a1", "a2", "b0"]);
    assert!(ledger.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_head_is_set_aside_or_dropped_when_asked_for_and_the_next_goes_on() {
    let mut world = World::new(World::failing(&[
        ("a", 9, Code::Destination),
        ("b", 9, Code::Destination),
    ]));
    let (mut window, _) = world.window(Order::All);
    for body in ["a", "b", "c"] {
        window.take(world.delivery(body, false));
    }
    let ledger = world.ledger.clone();
    let failed = || ledger.heads().pop().filter(|head| head.attempts > 0);
    let first = while_working(&mut window, until(failed)).await.message.id;
    // As long as it cannot be set aside it stays where it is.
    *world.broker.fails.lock().unwrap() = 1;
    let park = || Wanted::Park(String::from("wrong number"));
    let answer = ledger.ask(first, park()).unwrap();
    let said = while_working(&mut window, answer).await.unwrap();
    assert!(said.unwrap_err().contains("down"));
    assert_eq!(failed().unwrap().message.id, first);
    let answer = ledger.ask(first, park()).unwrap();
    assert_eq!(while_working(&mut window, answer).await.unwrap(), Ok(()));
    let second = until(|| failed().filter(|head| head.message.id != first));
    let second = while_working(&mut window, second).await.message.id;
    // Nobody waits for this one any more.
    drop(ledger.ask(second, park()).unwrap());
    let answer = ledger.ask(second, Wanted::Drop).unwrap();
    assert_eq!(while_working(&mut window, answer).await.unwrap(), Ok(()));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["a0", "b0", "c0"]);
    let published = world.broker.published.lock().unwrap();
    assert_eq!(published.len(), 1);
    let headers = published[0]
        .properties
        .headers()
        .clone()
        .unwrap_or_default();
    let said = |name: &str| match &headers.inner()[name] {
        AMQPValue::LongString(text) => text.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(said("x-xbus-reason"), "wrong number");
    assert_eq!(said("x-xbus-last-error"), "step: destination: no");
    assert_eq!(said("x-xbus-id"), first.to_string());
    assert_eq!(said("x-xbus-attempts"), "1");
    // The step's incident is over.
    assert_eq!(
        *world.route.cleared.lock().unwrap(),
        ["step", "step", "step"]
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_released_goes_before_a_head_that_came_after_it() {
    let mut world = World::new(World::failing(&[
        ("a2", 2, Code::Destination),
        ("d", 9, Code::Destination),
    ]));
    let came: Vec<Carried> = (0..6).map(|_| Carried::new()).collect();
    let (mut window, _) = world.window(Order::All);
    for body in ["d", "e"] {
        window.take(world.delivery(body, false));
    }
    let ledger = world.ledger.clone();
    let failed = || {
        let head = ledger.heads().into_iter().next()?;
        (head.attempts > 0).then(|| head.message.id)
    };
    let last = while_working(&mut window, until(failed)).await;
    let start = Instant::now();
    // The later one first, then one that came before it, and one that goes between them.
    for (body, at) in [("c", 3), ("a2", 1), ("b", 2)] {
        window.put_back(world.delivery(body, true), came[at].clone(), None);
    }
    let first = until(|| failed().filter(|id| *id != last));
    let first = while_working(&mut window, first).await;
    assert_eq!(first, came[1].id);
    assert_eq!(ledger.heads().len(), 1, "the other head waits");
    assert_eq!(ledger.ask(last, Wanted::Drop).err(), Some(Not::Head));
    // Behind what came before it, before what has not been begun.
    window.put_back(world.delivery("z", true), Carried::new(), None);
    world.route.faults.lock().unwrap().remove("d");
    finish(&mut window).await;
    assert_eq!(
        world.seen(),
        ["d0", "a20", "a21", "a22", "b0", "c0", "d1", "z0", "e0"]
    );
    // The head was tried at once after the waits of the one that was released.
    assert_eq!(start.elapsed().as_secs(), 1 + 2);
    assert!(window.oldest().is_none() && ledger.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_under_way_ends_before_the_head_steps_aside() {
    let mut world = World::new(Route {
        takes: Duration::from_secs(3),
        ..World::failing(&[("b", 1, Code::Destination)])
    });
    let came = Carried::new();
    let (mut window, give_back) = world.window(Order::All);
    window.take(world.delivery("b", false));
    let begun = until(|| (world.seen() == ["b0"]).then_some(()));
    while_working(&mut window, begun).await;
    window.put_back(world.delivery("a", true), came, None);
    while_working(
        &mut window,
        until(|| (world.seen().len() == 2).then_some(())),
    )
    .await;
    assert_eq!(world.seen(), ["b0", "a0"]);
    // What has stepped aside is given back with the rest, with its attempts.
    give_back.cancel();
    window.give_back().await;
    assert!(window.is_empty() && world.ledger.held().is_empty());
    let (mut window, _) = world.window(Order::All);
    window.take(world.delivery("b", true));
    finish(&mut window).await;
    assert_eq!(world.seen(), ["b0", "a0", "b1"]);
}

#[tokio::test(start_paused = true)]
async fn who_hears_of_a_message_that_the_route_never_gets_is_told_its_id_and_its_queue() {
    let mut world = World::new(Route {
        park: true,
        ..Route::default()
    });
    let (mut window, _) = world.window(Order::All);
    let mut delivery = world.delivery("no gzip", false);
    delivery.properties = delivery.properties.with_content_encoding("gzip".into());
    window.take(delivery);
    let id = world.ledger.held()[0].message.id;
    finish(&mut window).await;
    let rejected = world.route.rejected.lock().unwrap();
    let begin = format!("rabbit/q: message {id}: ");
    assert!(
        rejected.len() == 1 && rejected[0].starts_with(&begin),
        "{rejected:?}"
    );
    assert!(world.seen().is_empty());
    assert_eq!(world.broker.published.lock().unwrap().len(), 1);
}
