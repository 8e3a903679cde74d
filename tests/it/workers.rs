//! With one worker: what computes for long holds up nobody else. Each test counts what is answered while
//! the long work has not ended.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Bus, Installation, bus, get, http, post, wait_for};

const LIGHT: &str = "receive: { http: { path: /light } }\nreply: { transform: light.rhai }\n";

fn with_one_worker(more: &str) -> Installation {
    let installation = Installation::new();
    let settings = installation.read("xbus.yaml") + "workers: 1\n" + more;
    installation.file("xbus.yaml", settings);
    installation
        .script("light.rhai", "header(\"content-type\")\n")
        .route("light", LIGHT);
    installation
}

/// How many of them are answered while `long` runs: light messages, one after the other, and questions
/// after the bus's health. What is under way when it ends does not count.
fn answered_during<T: Send>(bus: &Bus<'_>, long: impl FnOnce() -> T + Send) -> (usize, T) {
    let (done, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let (http, admin) = (bus.http, bus.admin);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                light(http);
                assert_eq!(get(admin, "/health/live").status, 200);
                if !done.load(SeqCst) {
                    count.fetch_add(1, SeqCst);
                }
            }
        });
        let result = long();
        done.store(true, SeqCst);
        (count.load(SeqCst), result)
    })
}

fn light(address: SocketAddr) {
    let got = post(address, "/light", "text/plain", b"x");
    assert_eq!((got.status, got.text().as_str()), (200, "text/plain"));
}

#[test]
fn scripts_that_spin_to_their_end_hold_up_nobody() {
    let installation = with_one_worker("scripts: { deadline: 2s, operations: 10000000000 }\n");
    installation
        .script("spin.rhai", "let n = 0; loop { n += 1; }\n")
        .route(
            "spin",
            "receive: { http: { path: /spin } }\nreply: { transform: spin.rhai }\n",
        );
    let bus = installation.start();
    let address = bus.http;
    // The first ones are not known to take long, the second ones are.
    for turn in ["unexpected", "expected"] {
        let spin = || {
            let spinning: Vec<_> = (0..3)
                .map(|_| thread::spawn(move || post(address, "/spin", "text/plain", b"x")))
                .collect();
            spinning
                .into_iter()
                .map(|one| one.join().expect("an answer"))
                .collect()
        };
        let (answered, got): (_, Vec<http::Response>) = answered_during(&bus, spin);
        assert!(got.iter().all(|one| one.status == 500), "{got:?}");
        // Held up, it would be one or two.
        assert!(answered >= 20, "{turn}: {answered} were answered meanwhile");
    }
}

#[test]
fn a_large_document_holds_up_nobody() {
    let installation =
        with_one_worker("defaults: { max_body: 64MiB }\nscripts: { deadline: 60s }\n");
    installation
        .script("count.rhai", "xpath(\"count(//n[@a = 'x'])\")\n")
        .route(
            "large",
            "receive: { http: { path: /large } }\nreply: { transform: count.rhai }\n",
        );
    let bus = installation.start();
    let mut document = String::from("<all>");
    while document.len() < 30 << 20 {
        document.push_str(
            "<n a='x'>a longer text that stands in the element, so that the nodes stay few</n>",
        );
    }
    document.push_str("</all>");
    let longest = AtomicUsize::new(0);
    let (done, address) = (AtomicBool::new(false), bus.http);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                let started = Instant::now();
                light(address);
                if !done.load(SeqCst) {
                    longest.fetch_max(started.elapsed().as_micros() as usize, SeqCst);
                }
            }
        });
        let started = Instant::now();
        let got = post(bus.http, "/large", "application/xml", document.as_bytes());
        let took = started.elapsed();
        done.store(true, SeqCst);
        assert_eq!(got.status, 200, "{}", got.text());
        let longest = Duration::from_micros(longest.load(SeqCst) as u64);
        // Reading and counting is most of the time; held up, a light message would wait for all of it.
        assert!(
            longest < took / 3,
            "{longest:?} for a light message beside one of {took:?}"
        );
    });
}

#[test]
fn a_reload_of_a_thousand_routes_holds_up_nobody() {
    let installation = with_one_worker("");
    let bus = installation.start();
    for n in 0..1000 {
        installation
            .script(
                &format!("s{n}.rhai"),
                &format!("let x = xpath(\"//a[{n}]\");\nif x == () {{ {n} }} else {{ x }}\n"),
            )
            .route(
                &format!("r{n}"),
                &format!(
                    "receive: {{ http: {{ path: /r{n} }} }}\nreply: {{ transform: s{n}.rhai }}\n"
                ),
            );
    }
    let reload = || {
        bus::signal(bus.pid(), "HUP");
        wait_for("the reload", || {
            installation.log().contains(" reloaded").then_some(())
        });
    };
    let (answered, ()) = answered_during(&bus, reload);
    assert!(answered >= 10, "{answered} were answered meanwhile");
    assert_eq!(
        post(bus.http, "/r999", "application/xml", b"<a/>").status,
        200
    );
}
