//! The threads that callers are served on. With one of them: what computes for long holds up nobody else; those tests
//! count what is answered while the long work has not ended. With one for each core: each stays where it is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
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

/// A thread of the workers.
struct Thread {
    /// Of its worker, from 1 on.
    number: usize,
    /// The list of cores that it may run on.
    cores: String,
    /// CPU time so far.
    busy: Duration,
}

fn threads(pid: u32) -> Vec<Thread> {
    let read = |thread: &Path| {
        let file = |name: &str| std::fs::read_to_string(thread.join(name)).ok();
        let number = file("comm")?.trim().strip_prefix("xbus-")?.parse().ok()?;
        let status = file("status")?;
        let cores = |line: &str| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_owned());
        let busy = file("schedstat")?.split(' ').next()?.parse().ok()?;
        Some(Thread {
            number,
            cores: status.lines().find_map(cores)?,
            busy: Duration::from_nanos(busy),
        })
    };
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
    let threads = threads.flatten();
    threads.filter_map(|thread| read(&thread.path())).collect()
}

/// How many cores a list such as `0-3,7` names.
fn count(list: &str) -> usize {
    let range = |range: &str| match range.split_once('-') {
        Some((first, last)) => Some(last.parse::<usize>().ok()? + 1 - first.parse::<usize>().ok()?),
        None => Some(1),
    };
    list.split(',').filter_map(range).sum()
}

#[test]
fn a_worker_for_each_core_stays_on_it_and_what_computes_for_long_does_not() {
    let installation = Installation::new();
    let settings =
        installation.read("xbus.yaml") + "scripts: { deadline: 5s, operations: 10000000000 }\n";
    installation
        .file("xbus.yaml", settings)
        .script("spin.rhai", "let n = 0; loop { n += 1; }\n")
        .route(
            "spin",
            "receive: { http: { path: /spin } }\nreply: { transform: spin.rhai }\n",
        );
    let bus = installation.start();
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let called = || -> Vec<_> {
        let connect = |_| TcpStream::connect(bus.http).expect("a connection");
        (0..workers).map(connect).collect()
    };
    let _callers = called();
    let all = std::fs::read_to_string("/proc/self/status").expect("a status");
    let all = all
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let all = all.expect("a list").trim();
    if workers < 2 || count(all) != workers {
        // One core, or a share of several: nobody stays on any.
        assert!(threads(bus.pid()).iter().all(|thread| thread.cores == all));
        return;
    }
    let bound = || {
        let threads = threads(bus.pid()).into_iter();
        let alone = threads.filter(|thread| count(&thread.cores) == 1);
        let alone: BTreeMap<_, _> = alone.map(|thread| (thread.number, thread.cores)).collect();
        let cores: BTreeSet<_> = alone.values().collect();
        (cores.len() == workers).then_some(alone)
    };
    let before = wait_for("a core of its own for each worker", bound);
    let address = bus.http;
    let spinning = thread::spawn(move || post(address, "/spin", "text/plain", b"x").status);
    let busiest = wait_for("a script that computes for long", || {
        let mut threads = threads(bus.pid()).into_iter();
        threads.find(|thread| thread.busy > Duration::from_millis(500))
    });
    assert_eq!(busiest.cores, all);
    // Its worker goes on in another thread, on the same core.
    let _more = called();
    assert_eq!(wait_for("a core for each worker again", bound), before);
    assert_eq!(spinning.join().expect("an answer"), 500);
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
