//! kill -9 in the middle: nothing that was acknowledged is lost, order is kept, and a duplicate
//! arises only for the one message in flight, with the same id.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::lanes::Keep;
use crate::support::{Answer, Destination, Installation, wait_for};

const MESSAGES: usize = 5_000;
const KILLS: usize = 100;

/// Sends numbered messages one after the other, again after each kill, while the bus is killed at
/// random moments; then checks what the destinations have got.
fn kill_while_sending(route: &str, installation: &Installation) -> Vec<String> {
    installation.route("r", route);
    let acknowledged = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let address = std::sync::Mutex::new(None);
    let mut ids = Vec::new();
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut ids: Vec<String> = Vec::new();
            let mut connection: Option<Keep> = None;
            while ids.len() < MESSAGES {
                let Some(to) = *address.lock().expect("unpoisoned") else {
                    std::thread::yield_now();
                    continue;
                };
                let keep = match &mut connection {
                    Some(keep) => keep,
                    None => match std::net::TcpStream::connect(to) {
                        Ok(_) => connection.insert(Keep::open(to)),
                        Err(_) => continue,
                    },
                };
                let number = ids.len();
                match keep.try_post("/r", "", &number.to_string()) {
                    Ok(answer) if answer.status == 202 => {
                        ids.push(answer.id());
                        acknowledged.store(ids.len(), SeqCst);
                    }
                    Ok(answer) => panic!("{} {}", answer.status, answer.text()),
                    // Not acknowledged: it may or may not be kept, and is sent again.
                    Err(_) => connection = None,
                }
            }
            done.store(true, SeqCst);
            ids
        });
        let mut random = 0x9E37_79B9_7F4A_7C15u64;
        for kill in 0..KILLS {
            let bus = installation.start();
            *address.lock().expect("unpoisoned") = Some(bus.http);
            // Spread over the whole run: the next kill comes when its share is acknowledged, at a
            // moment that nothing else determines.
            let share = MESSAGES * (kill + 1) / (KILLS + 1);
            wait_for("progress", || {
                (acknowledged.load(SeqCst) >= share || done.load(SeqCst)).then_some(())
            });
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            let spin = Instant::now() + Duration::from_micros(random >> 51);
            while Instant::now() < spin {
                std::hint::spin_loop();
            }
            *address.lock().expect("unpoisoned") = None;
            bus.kill();
        }
        let bus = installation.start();
        *address.lock().expect("unpoisoned") = Some(bus.http);
        ids = sender.join().expect("the sender");
        bus.stop();
    });
    ids
}

/// Every acknowledged message arrived, first arrivals are in order, and a repeat follows its
/// original directly, at most one a kill.
#[track_caller]
fn check(destination: &Destination, ids: &[String]) {
    let got: Vec<(String, String)> = destination
        .got()
        .iter()
        .map(|got| {
            let id = got.header("X-Message-Id").expect("an id").to_owned();
            (id, got.text())
        })
        .collect();
    let mut first_seen: HashMap<&str, usize> = HashMap::new();
    let mut repeats = 0;
    for (at, (id, text)) in got.iter().enumerate() {
        if first_seen.contains_key(id.as_str()) {
            repeats += 1;
            assert_eq!(
                got[at - 1].0,
                *id,
                "a repeat of {text} came after something else: order is lost"
            );
        } else {
            first_seen.insert(id, at);
        }
    }
    assert!(repeats <= KILLS, "{repeats} repeats");
    let mut last = 0;
    for (number, id) in ids.iter().enumerate() {
        let at = first_seen
            .get(id.as_str())
            .unwrap_or_else(|| panic!("message {number} ({id}) was acknowledged and is lost"));
        assert!(*at >= last, "message {number} came before an earlier one");
        last = *at;
    }
}

#[test]
fn a_hundred_kills_lose_nothing_and_keep_the_order() {
    let system = Destination::start();
    let installation = Installation::new();
    let route = format!(
        "receive: {{ http: {{ path: /r }} }}\ndistribute:\n  - name: t\n    async: {{ retry: {{ first: 10ms, max: 50ms }} }}\n    http: {{ url: \"{}\" }}\n",
        system.url("/t")
    );
    let ids = kill_while_sending(&route, &installation);
    let bus = installation.start();
    bus.wait_for_depth("r.t", 0);
    check(&system, &ids);
}

#[test]
fn with_two_targets_the_one_that_is_down_gets_everything_later() {
    let up = Destination::start();
    let down = Arc::new(AtomicBool::new(true));
    let is_down = down.clone();
    let second = Destination::with(move |_| {
        if is_down.load(SeqCst) {
            Answer::Status(503, "text/plain", Vec::new())
        } else {
            Answer::ok()
        }
    });
    let installation = Installation::new();
    let route = format!(
        "receive: {{ http: {{ path: /r }} }}
distribute:
  - name: up
    async: {{ retry: {{ first: 10ms, max: 50ms }} }}
    http: {{ url: \"{}\" }}
  - name: down
    async: {{ retry: {{ first: 10ms, max: 50ms }} }}
    http: {{ url: \"{}\" }}
",
        up.url("/up"),
        second.url("/down")
    );
    let ids = kill_while_sending(&route, &installation);
    let bus = installation.start();
    bus.wait_for_depth("r.up", 0);
    assert!(bus.queue("r.down")["depth"].as_u64() >= Some(MESSAGES as u64));
    check(&up, &ids);
    // Only its head was ever tried while it was down.
    let tried: std::collections::HashSet<String> = second.texts().into_iter().collect();
    assert!(tried.len() <= 1, "{tried:?}");
    let failed = second.count();
    down.store(false, SeqCst);
    bus.json(&["queues", "retry", "r.down"]);
    bus.wait_for_depth("r.down", 0);
    check_from(&second, failed, &ids);
}

#[track_caller]
fn check_from(destination: &Destination, from: usize, ids: &[String]) {
    let got: Vec<String> = destination.got()[from..]
        .iter()
        .map(|got| got.header("X-Message-Id").expect("an id").to_owned())
        .collect();
    let mut rest = got.iter();
    for (number, id) in ids.iter().enumerate() {
        assert!(
            rest.any(|other| other == id),
            "message {number} ({id}) is lost or out of order"
        );
    }
}
