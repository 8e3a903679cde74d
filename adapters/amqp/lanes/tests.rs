use super::*;
use crate::link::Links;
use crate::settings::*;
use crate::topology::Topology;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use xbus_core::broker::{Report, Verdict};
use xbus_core::spec::Secret;
use xbus_core::store::Outcome;
use xbus_core::{Message, MessageId, Timestamp};

pub(crate) fn port() -> u16 {
    std::env::var("LANES_PORT")
        .ok()
        .and_then(|p| p.parse().ok())
        .unwrap_or(25673)
}

pub(crate) fn link(node: &str, renew: Duration) -> Arc<Link> {
    let s = Settings {
        name: "rabbit".into(),
        bus: "bus".into(),
        node: node.into(),
        address: Address {
            secure: false,
            host: "127.0.0.1".into(),
            port: port(),
            vhost: "/".into(),
        },
        user: "guest".into(),
        password: Secret("guest".into()),
        heartbeat: Duration::from_secs(2),
        timeout: Duration::from_secs(3),
        tls: TlsFiles::default(),
        renew_after: renew,
        topology: Topology::default(),
    };
    Links::default().link(s)
}
type Policy = dyn Fn(&Queued, usize) -> Verdict + Send + Sync;
struct Fake {
    node: String,
    log: Arc<Mutex<Vec<(String, u64, u32)>>>,
    reports: Mutex<Vec<Report>>,
    up_to: Mutex<HashMap<(u32, String), u64>>,
    broken: Mutex<Vec<String>>,
    works: Mutex<usize>,
    policy: Box<Policy>,
    delay: Duration,
}
impl Fake {
    fn new(
        node: &str,
        log: &Arc<Mutex<Vec<(String, u64, u32)>>>,
        policy: impl Fn(&Queued, usize) -> Verdict + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            node: node.into(),
            log: log.clone(),
            reports: Default::default(),
            up_to: Default::default(),
            broken: Default::default(),
            works: Default::default(),
            policy: Box::new(policy),
            delay: Duration::ZERO,
        })
    }
}
impl LaneWorker for Fake {
    fn attempt<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Verdict> {
        Box::pin(async move {
            let n = {
                let mut l = self.log.lock().unwrap();
                l.push((self.node.clone(), head.at.seq, head.attempts));
                l.len()
            };
            if !self.delay.is_zero() {
                tokio::time::sleep(self.delay).await;
            }
            (self.policy)(head, n)
        })
    }
    fn report(&self, report: Report) -> BoxFuture<'_, Result<(), StoreError>> {
        self.reports.lock().unwrap().push(report);
        Box::pin(async { Ok(()) })
    }
    fn delivered_up_to(&self, p: u32, o: &str) -> Option<u64> {
        self.up_to.lock().unwrap().get(&(p, o.to_owned())).copied()
    }
    fn set_delivered(&self, p: u32, o: &str, n: u64) {
        self.up_to.lock().unwrap().insert((p, o.to_owned()), n);
    }
    fn broken(&self, e: &str) {
        eprintln!("{} broken: {e}", self.node);
        self.broken.lock().unwrap().push(e.into());
    }
    fn works(&self) {
        *self.works.lock().unwrap() += 1;
    }
}
fn lane(name: &str, partitions: u32) -> LaneName {
    LaneName {
        queue: name.into(),
        partitions,
    }
}
fn entry(lane: &LaneName, key: &str, n: u64, node: &str, size: usize) -> LaneEntry {
    let mut m = Message::new(vec![b'x'; size]);
    m.headers.set("Content-Type", "text/plain");
    m.headers.set("X-N", &n.to_string());
    LaneEntry {
        lane: lane.clone(),
        key: key.into(),
        message: Arc::new(m),
        target: "erp".into(),
        since: Timestamp::now(),
        cause: None,
        node: node.into(),
        origin: Some(("store".into(), n)),
    }
}
async fn clean(link: &Arc<Link>, lane: &LaneName) {
    for q in names::partitions(lane) {
        for q in [
            q.to_string(),
            format!("{q}.front"),
            format!("{q}.parked"),
            format!("{q}.state"),
        ] {
            let ch = link
                .channel(tokio::time::Instant::now() + Duration::from_secs(10))
                .await
                .unwrap();
            let _ = ch.queue_delete(q.as_str().into(), Default::default()).await;
        }
    }
}
async fn until(what: &str, secs: u64, mut f: impl FnMut() -> bool) {
    let at = Instant::now();
    while !f() {
        assert!(
            at.elapsed() < Duration::from_secs(secs),
            "waited for {what}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
const LONG: Duration = Duration::from_secs(1500);
fn init() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(std::env::var("LOG").unwrap_or("xbus_amqp=debug".into()))
        .with_test_writer()
        .try_init();
}

#[tokio::test(flavor = "multi_thread")]
async fn basic() {
    init();
    let l = link("n1", LONG);
    let b = Broker::new(l.clone());
    let la = lane("t.basic", 1);
    clean(&l, &la).await;
    let log = Arc::default();
    let w = Fake::new("n1", &log, |q, _| match q.at.seq {
        3 if q.attempts < 2 => Verdict::Retry {
            error: "no".into(),
            wait: Duration::from_millis(50),
        },
        5 => Verdict::Park {
            reason: "bad".into(),
        },
        _ => Verdict::Done,
    });
    let es: Vec<_> = (1..=10)
        .map(|n| entry(&la, "", n, if n % 2 == 0 { "n1" } else { "n2" }, 100))
        .collect();
    let ids: Vec<MessageId> = es.iter().map(|e| e.message.id).collect();
    assert!(matches!(b.put(es.clone()).await, (10, None)));
    println!("status unworked {:?}", b.status(&la).await.unwrap());
    println!(
        "entries unworked {}",
        b.entries(&la, false, 5).await.unwrap().len()
    );
    let stop = Stop::new();
    let t = tokio::spawn(b.work(la.clone(), w.clone(), stop.clone()));
    until("all", 10, || {
        w.up_to.lock().unwrap().values().any(|n| *n == 10)
    })
    .await;
    assert_eq!(
        log.lock()
            .unwrap()
            .iter()
            .map(|x| (x.1, x.2))
            .collect::<Vec<_>>(),
        [
            (1, 0),
            (2, 0),
            (3, 0),
            (3, 1),
            (3, 2),
            (4, 0),
            (5, 0),
            (6, 0),
            (7, 0),
            (8, 0),
            (9, 0),
            (10, 0)
        ]
    );
    until("reports", 5, || w.reports.lock().unwrap().len() == 5).await;
    // duplicates are skipped
    assert!(matches!(b.put(es.clone()).await, (10, None)));
    assert!(matches!(
        b.put(vec![entry(&la, "", 11, "n1", 10)]).await,
        (1, None)
    ));
    until("11", 10, || {
        w.up_to.lock().unwrap().values().any(|n| *n == 11)
    })
    .await;
    assert_eq!(log.lock().unwrap().len(), 13);
    let parked = b.entries(&la, true, 10).await.unwrap();
    assert_eq!(parked.len(), 1);
    assert_eq!(parked[0].message.id, ids[4]);
    assert_eq!(parked[0].parked.as_deref(), Some("bad"));
    assert_eq!(parked[0].attempts, 1);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let s = b.status(&la).await.unwrap();
    println!("{s:?}");
    assert_eq!((s.depth, s.parked), (0, 1));
    // release: delivered (parked again by the policy), then drop
    b.command(&la, LaneCommand::Release(ids[4]), None)
        .await
        .unwrap();
    until("again", 5, || log.lock().unwrap().len() == 14).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let s = b.status(&la).await.unwrap();
    println!("{s:?}");
    assert_eq!((s.depth, s.parked), (0, 1));
    println!(
        "{:?}",
        b.command(&la, LaneCommand::Drop(ids[4]), Some(w.clone()))
            .await
            .unwrap()
    );
    assert!(
        b.command(&la, LaneCommand::Drop(ids[4]), Some(w.clone()))
            .await
            .is_err()
    );
    stop.cancel();
    t.await.unwrap();
    let s = b.status(&la).await.unwrap();
    assert_eq!((s.depth, s.parked), (0, 0));
    assert!(w.broken.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn blocked_head_and_commands_over_nodes() {
    init();
    let l1 = link("n1", LONG);
    let l2 = link("n2", LONG);
    let (b1, b2) = (Broker::new(l1.clone()), Broker::new(l2.clone()));
    let la = lane("t.block", 1);
    clean(&l1, &la).await;
    let log = Arc::default();
    let up = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let pol = |up: &Arc<std::sync::atomic::AtomicBool>| {
        let up = up.clone();
        move |q: &Queued, _| {
            if up.load(std::sync::atomic::Ordering::SeqCst) || q.at.seq > 100 {
                Verdict::Done
            } else {
                Verdict::Retry {
                    error: format!("down {}", q.attempts),
                    wait: Duration::from_secs(if q.attempts < 2 { 0 } else { 3600 }),
                }
            }
        }
    };
    let (w1, w2) = (
        Fake::new("n1", &log, pol(&up)),
        Fake::new("n2", &log, pol(&up)),
    );
    let es: Vec<_> = (1..=6).map(|n| entry(&la, "", n, "n1", 100)).collect();
    let ids: Vec<MessageId> = es.iter().map(|e| e.message.id).collect();
    assert!(matches!(b1.put(es).await, (6, None)));
    let (s1, s2) = (Stop::new(), Stop::new());
    let t1 = tokio::spawn(b1.work(la.clone(), w1.clone(), s1.clone()));
    until("3 tries", 5, || log.lock().unwrap().len() == 3).await;
    let t2 = tokio::spawn(b2.work(la.clone(), w2.clone(), s2.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let st = b2.status(&la).await.unwrap();
    println!("{st:?}");
    assert_eq!((st.depth, st.blocked_keys), (6, 1));
    let h = st.head.unwrap();
    assert_eq!(h.message.id, ids[0]);
    assert_eq!(h.attempts, 3);
    assert_eq!(h.last_error.as_deref(), Some("down 2"));
    assert!(h.next_try.is_some());
    // node 1 stops: node 2 goes on with what is known
    s1.cancel();
    t1.await.unwrap();
    until("n2 holds", 5, || {
        b2.nodes
            .seat("t.block")
            .is_some_and(|s| s.held().first().is_some_and(|h| h.attempts == 3))
    })
    .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(log.lock().unwrap().len(), 3, "not tried before its time");
    // asked from node 1, which works on nothing
    let d = b1
        .command(&la, LaneCommand::Retry(None), None)
        .await
        .unwrap();
    assert_eq!(d.heads, 1);
    until("4th", 5, || log.lock().unwrap().len() == 4).await;
    assert_eq!(log.lock().unwrap()[3], ("n2".to_owned(), 1, 3));
    let d = b1
        .command(&la, LaneCommand::Park(None, "by hand".into()), None)
        .await
        .unwrap();
    assert_eq!(d.id, Some(ids[0]));
    until("next", 5, || {
        log.lock().unwrap().iter().filter(|x| x.1 == 2).count() == 3
    })
    .await;
    b1.command(&la, LaneCommand::Drop(ids[1]), None)
        .await
        .unwrap();
    until("next", 5, || {
        log.lock().unwrap().iter().filter(|x| x.1 == 3).count() == 3
    })
    .await;
    assert!(
        b1.command(&la, LaneCommand::Park(Some(ids[4]), "x".into()), None)
            .await
            .is_err()
    );
    // released: goes before 3, and is blocked as well; then the destination is back
    b1.command(&la, LaneCommand::Release(ids[0]), None)
        .await
        .unwrap();
    until("1 again", 5, || {
        log.lock().unwrap().iter().any(|x| x.1 == 1 && x.2 >= 4)
    })
    .await;
    let st = b1.status(&la).await.unwrap();
    println!("{st:?}");
    up.store(true, std::sync::atomic::Ordering::SeqCst);
    let at = log.lock().unwrap().len();
    b1.command(&la, LaneCommand::Retry(None), None)
        .await
        .unwrap();
    until("1 delivered", 5, || log.lock().unwrap().len() >= at + 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let _ = b1.command(&la, LaneCommand::Retry(None), None).await;
    until("all", 10, || {
        w2.up_to.lock().unwrap().values().any(|n| *n == 6)
    })
    .await;
    println!("{:?}", log.lock().unwrap());
    assert_eq!(
        log.lock().unwrap()[at..]
            .iter()
            .map(|x| x.1)
            .collect::<Vec<_>>(),
        [1, 3, 4, 5, 6]
    );
    s2.cancel();
    t2.await.unwrap();
    // reports for n1
    let s3 = Stop::new();
    let t3 = tokio::spawn(b1.work(la.clone(), w1.clone(), s3.clone()));
    until("reports", 5, || w1.reports.lock().unwrap().len() == 6).await;
    println!(
        "{:?}",
        w1.reports
            .lock()
            .unwrap()
            .iter()
            .map(|r| (r.outcome, r.attempts))
            .collect::<Vec<_>>()
    );
    assert_eq!(
        w1.reports
            .lock()
            .unwrap()
            .iter()
            .filter(|r| r.outcome == Outcome::Failed)
            .count(),
        1
    );
    s3.cancel();
    t3.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn renewing_keeps_order() {
    init();
    let l = link("n1", Duration::from_secs(1));
    let b = Broker::new(l.clone());
    let la = lane("t.renew", 1);
    clean(&l, &la).await;
    let log = Arc::default();
    let began = Instant::now();
    let w = Fake::new("n1", &log, move |_, _| {
        if began.elapsed() < Duration::from_secs(6) {
            Verdict::Retry {
                error: "down".into(),
                wait: Duration::from_millis(400),
            }
        } else {
            Verdict::Done
        }
    });
    let es: Vec<_> = (1..=5).map(|n| entry(&la, "", n, "n1", 100)).collect();
    assert!(matches!(b.put(es).await, (5, None)));
    let stop = Stop::new();
    let t = tokio::spawn(b.work(la.clone(), w.clone(), stop.clone()));
    until("all", 20, || {
        w.up_to.lock().unwrap().values().any(|n| *n == 5)
    })
    .await;
    let l = log.lock().unwrap().clone();
    println!("{l:?}");
    let tries: Vec<u32> = l.iter().filter(|x| x.1 == 1).map(|x| x.2).collect();
    assert!(tries.len() > 8 && tries.iter().enumerate().all(|(i, a)| i as u32 == *a));
    stop.cancel();
    t.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_share() {
    init();
    let la = lane("t.share", 16);
    let l0 = link("n0", LONG);
    clean(&l0, &la).await;
    let log = Arc::default();
    let mut all = vec![];
    for n in ["n1", "n2", "n3"] {
        let l = link(n, LONG);
        let b = Broker::new(l);
        let w = Fake::new(n, &log, |_, _| Verdict::Done);
        let s = Stop::new();
        let t = tokio::spawn(b.work(la.clone(), w.clone(), s.clone()));
        all.push((b, w, s, t));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let p = Broker::new(l0.clone());
    let mut n = 0u64;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(14) {
        let es: Vec<_> = (0..32)
            .map(|_| {
                n += 1;
                entry(&la, &format!("k{}", n % 64), n, "n0", 50)
            })
            .collect();
        assert!(matches!(p.put(es).await, (32, None)));
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    until("all", 20, || log.lock().unwrap().len() as u64 >= n).await;
    let l: Vec<(String, u64, u32)> = log.lock().unwrap().clone();
    println!("{} delivered of {n}", l.len());
    let mut last: HashMap<u64, u64> = HashMap::new();
    for (_, s, _) in &l {
        let k = s % 64;
        assert!(
            last.get(&k).is_none_or(|x| *x < *s),
            "order of {k}: {s} after {:?}",
            last.get(&k)
        );
        last.insert(k, *s);
    }
    assert_eq!(l.len() as u64, n);
    let tail = &l[l.len() - 400..];
    for n in ["n1", "n2", "n3"] {
        println!("{n}: {}", tail.iter().filter(|x| x.0 == n).count());
        assert!(tail.iter().any(|x| x.0 == n));
    }
    for (_, _, s, t) in all {
        s.cancel();
        t.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throughput() {
    init();
    for parts in [1, 16] {
        let l = link("n1", LONG);
        let b = Broker::new(l.clone());
        let la = lane(&format!("t.speed{parts}"), parts);
        clean(&l, &la).await;
        let log: Arc<Mutex<Vec<(String, u64, u32)>>> = Arc::default();
        let w = Fake::new("n1", &log, |_, _| Verdict::Done);
        let total = 10000;
        let at = Instant::now();
        for c in 0..total / 500 {
            let es: Vec<_> = (0..500)
                .map(|i| entry(&la, &format!("k{i}"), c * 500 + i + 1, "n1", 1024))
                .collect();
            let r = b.put(es).await;
            assert!(matches!(r, (500, None)), "{r:?}");
        }
        println!(
            "{parts}: put {:.0}/s",
            total as f64 / at.elapsed().as_secs_f64()
        );
        let stop = Stop::new();
        let at = Instant::now();
        let t = tokio::spawn(b.work(la.clone(), w.clone(), stop.clone()));
        until("half", 60, || log.lock().unwrap().len() as u64 >= 2000).await;
        println!(
            "{parts}: drain {:.0}/s",
            log.lock().unwrap().len() as f64 / at.elapsed().as_secs_f64()
        );
        stop.cancel();
        t.await.unwrap();
        let taken = Mutex::new(Vec::new());
        let at = Instant::now();
        let keep = |v: Vec<Queued>| -> BoxFuture<'_, Result<(), StoreError>> {
            taken
                .lock()
                .unwrap()
                .extend(v.into_iter().map(|q| q.at.seq));
            Box::pin(async { Ok(()) })
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let n = b.empty(&la, &keep).await.unwrap();
        println!("{parts}: emptied {n} in {:?}", at.elapsed());
        assert_eq!(n + log.lock().unwrap().len(), total as usize);
        if parts == 1 {
            assert!(taken.lock().unwrap().is_sorted());
        }
    }
}

/// Kills the broker while messages are handed over and delivered. LANES_PID: a command that restarts.
#[tokio::test(flavor = "multi_thread")]
async fn broker_killed() {
    init();
    let Ok(script) = std::env::var("LANES_KILL") else {
        return;
    };
    let l = link("n1", LONG);
    let b = Arc::new(Broker::new(l.clone()));
    let la = lane("t.kill", 1);
    clean(&l, &la).await;
    let log: Arc<Mutex<Vec<(String, u64, u32)>>> = Arc::default();
    let w = Fake::new("n1", &log, |_, _| Verdict::Done);
    let stop = Stop::new();
    let t = tokio::spawn(b.work(la.clone(), w.clone(), stop.clone()));
    let total = 5000u64;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (b2, la2) = (b.clone(), la.clone());
    let puts = tokio::spawn(async move {
        let mut next = 1u64;
        let mut failed = 0;
        while next <= total {
            let es: Vec<_> = (next..=(next + 49).min(total))
                .map(|n| entry(&la2, "", n, "n1", 200))
                .collect();
            let (n, e) = b2.put(es).await;
            next += n as u64;
            if let Some(e) = e {
                failed += 1;
                eprintln!("put: {} after {n}", e.detail);
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
        failed
    });
    let kills: u32 = std::env::var("KILLS")
        .ok()
        .and_then(|k| k.parse().ok())
        .unwrap_or(5);
    for k in 0..kills {
        tokio::time::sleep(Duration::from_millis(700 + 130 * u64::from(k % 7))).await;
        let s = script.clone();
        tokio::task::spawn_blocking(move || {
            std::process::Command::new("sh")
                .arg("-c")
                .arg(s)
                .status()
                .unwrap()
        })
        .await
        .unwrap();
        println!("kill {k}: {} delivered", log.lock().unwrap().len());
    }
    println!("failed puts {}", puts.await.unwrap());
    until("all", 60, || {
        w.up_to.lock().unwrap().values().any(|n| *n == total)
    })
    .await;
    let l = log.lock().unwrap().clone();
    let mut last = 0;
    let mut dups = 0;
    for (_, s, _) in &l {
        if *s == last {
            dups += 1
        } else {
            assert_eq!(*s, last + 1, "gap or disorder");
            last = *s;
        }
    }
    println!(
        "{} attempts, {dups} twice; broken {:?}",
        l.len(),
        w.broken.lock().unwrap()
    );
    stop.cancel();
    t.await.unwrap();
}
