//! The receiver at work on real folders, with a stand-in for the route.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use xbus_core::plan::Retry;
use xbus_core::problem::Place;
use xbus_core::spec::{Args, Build, Key, Node, Raw, Scalar};
use xbus_core::transform::{CompileError, Scope, Source};
use xbus_core::{
    Arrival, Code, Compiler, Expression, Fault, Message, MessageId, Problems, Reply, Status, Stop,
    Transform,
};

use crate::receiver::{FIELDS, FileReceiver, build_receiver};
use crate::take::Door;

type Answer = Box<dyn Fn(&Message) -> Result<(), Fault> + Send + Sync>;

/// A route that answers as told and keeps what it took.
struct Route {
    answer: Answer,
    places: usize,
    took: Mutex<Vec<Message>>,
    keys: Mutex<HashSet<Arc<str>>>,
    told: Mutex<Vec<String>>,
    /// While held, messages wait inside the route.
    gate: tokio::sync::RwLock<()>,
}

impl Route {
    fn new(answer: impl Fn(&Message) -> Result<(), Fault> + Send + Sync + 'static) -> Arc<Self> {
        Self::with_places(8, answer)
    }

    fn one_by_one(
        answer: impl Fn(&Message) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Self::with_places(1, answer)
    }

    fn with_places(
        places: usize,
        answer: impl Fn(&Message) -> Result<(), Fault> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            answer: Box::new(answer),
            places,
            took: Mutex::default(),
            keys: Mutex::default(),
            told: Mutex::default(),
            gate: Default::default(),
        })
    }

    fn names(&self) -> Vec<String> {
        let took = self.took.lock().unwrap();
        let name = |message: &Message| message.headers.get("file.name").unwrap().to_owned();
        took.iter().map(name).collect()
    }
}

impl Door for Route {
    fn deliver(&self, arrival: Arrival) -> BoxFuture<'_, Result<Reply, Fault>> {
        Box::pin(async move {
            let _open = self.gate.read().await;
            let id = arrival.message.id;
            let answer = (self.answer)(&arrival.message);
            self.took.lock().unwrap().push(arrival.message);
            answer?;
            self.keys.lock().unwrap().extend(arrival.seen_as);
            Ok(Reply {
                id,
                status: Status::Delivered,
                message: None,
                http_status: None,
                headers: Default::default(),
            })
        })
    }

    fn seen(&self, key: &str) -> bool {
        self.keys.lock().unwrap().contains(key)
    }

    fn forget<'a>(&'a self, keys: &'a [Arc<str>]) -> BoxFuture<'a, ()> {
        let mut known = self.keys.lock().unwrap();
        known.retain(|key| !keys.contains(key));
        Box::pin(async {})
    }

    fn fails(&self, error: &str) {
        self.told.lock().unwrap().push(error.to_owned());
    }

    fn works(&self) {
        self.told.lock().unwrap().push(String::from("works"));
    }

    fn retry(&self) -> Retry {
        Retry {
            attempts: u32::MAX,
            first: Duration::from_millis(20),
            factor: 1.0,
            max: Duration::from_millis(20),
        }
    }

    fn concurrency(&self) -> usize {
        self.places
    }

    fn route(&self) -> Arc<str> {
        Arc::from("invoices")
    }
}

struct NoCompiler;

impl Compiler for NoCompiler {
    fn transform(&self, _: Source<'_>, _: &Scope) -> Result<Arc<dyn Transform>, CompileError> {
        unreachable!("a file receiver compiles nothing")
    }

    fn expression(&self, _: &str, _: &Scope) -> Result<Arc<dyn Expression>, CompileError> {
        unreachable!("a file receiver compiles nothing")
    }
}

fn place() -> Place {
    Place::file(Path::new("routes/invoices.yaml"))
}

fn scalar(text: &str) -> Node {
    Node {
        place: place(),
        raw: Raw::Scalar(Scalar {
            text: text.to_owned(),
            literal: Vec::new(),
            secret: false,
        }),
    }
}

/// A map from `key=value` pairs; `ready.stable=1s` is a map in the map.
fn map(pairs: &[&str]) -> Node {
    let mut entries: Vec<(Key, Node)> = Vec::new();
    let mut inner: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let key = |name: &str| Key {
        name: name.to_owned(),
        place: place(),
    };
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap();
        match name.split_once('.') {
            Some((outer, name)) => inner
                .entry(outer)
                .or_default()
                .push(format!("{name}={value}")),
            None if value == "{}" => entries.push((key(name), map(&[]))),
            None => entries.push((key(name), scalar(value))),
        }
    }
    for (outer, pairs) in inner {
        let pairs: Vec<&str> = pairs.iter().map(String::as_str).collect();
        entries.push((key(outer), map(&pairs)));
    }
    Node {
        place: place(),
        raw: Raw::Map(entries),
    }
}

fn build(root: &Path, node: &str, pairs: &[&str]) -> Result<Arc<FileReceiver>, Vec<String>> {
    let problems = Problems::new();
    let written = map(pairs);
    let built = {
        let build = Build {
            route: Arc::from("invoices"),
            step: Arc::from("receive"),
            role: xbus_core::spec::Role::Other,
            bus: Arc::from("bus"),
            node: Arc::from(node),
            root,
            compiler: &NoCompiler,
            scope: &Scope::default(),
            connections: &BTreeMap::new(),
            timeout: Duration::from_secs(30),
            max_body: 1000,
            problems: &problems,
        };
        build_receiver(&Args::new(Some(&written), FIELDS, &build))
    };
    built.map(Arc::new).ok_or_else(|| {
        let all = problems.into_sorted();
        all.iter().map(|problem| problem.code.to_owned()).collect()
    })
}

/// A receiver that runs until it is stopped.
struct Works {
    stop: Stop,
    task: tokio::task::JoinHandle<()>,
}

impl Works {
    async fn start(root: &Path, route: &Arc<Route>, pairs: &[&str]) -> Self {
        let stop = Stop::new();
        let receiver = build(root, "n1", pairs).unwrap();
        let run = receiver
            .open_door(route.clone(), stop.clone())
            .await
            .unwrap();
        let task = tokio::spawn(run);
        Self { stop, task }
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// Names in a folder, without what begins with `.xbus-`; none where there is no folder.
fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with(".xbus-"))
        .collect();
    names.sort();
    names
}

fn error_of(path: PathBuf) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

const QUICK: &[&str] = &["dir=in", "pattern=*.xml", "ready.rename=true", "poll=50ms"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    QUICK.iter().copied().chain(more.iter().copied()).collect()
}

/// Puts a complete file into the watched folder in one step.
fn drop_in(dir: &Path, name: &str, body: &str) {
    fs::create_dir_all(dir).unwrap();
    let temporary = dir.join(format!(".xbus-test-{}", MessageId::new()));
    fs::write(&temporary, body).unwrap();
    fs::rename(temporary, dir.join(name)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_become_messages_and_go_to_done() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::new(|_| Ok(()));
    let works = Works::start(root.path(), &route, &with(&["charset=iso-8859-1"])).await;
    assert!(dir.is_dir(), "made at start");
    drop_in(&dir, "a.xml", "<a/>");
    drop_in(&dir, "empty.xml", "");
    until("both done", || names(&dir.join(".done")).len() == 2).await;
    works.end().await;
    assert_eq!(names(&dir), [".done"]);
    assert!(route.keys.lock().unwrap().is_empty(), "forgotten");
    let took = route.took.lock().unwrap();
    let a = took.iter().find(|m| !m.body.bytes().is_empty()).unwrap();
    assert_eq!(a.headers.get("file.name"), Some("a.xml"));
    assert_eq!(
        a.headers.get("file.path"),
        Some(dir.join("a.xml").to_str().unwrap())
    );
    assert_eq!(a.headers.get("file.size"), Some("4"));
    assert!(a.headers.get("file.modified").unwrap().ends_with('Z'));
    assert_eq!(
        a.content_type(),
        Some("application/xml; charset=iso-8859-1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_name_twice_is_two_messages() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::new(|_| Ok(()));
    let works = Works::start(root.path(), &route, QUICK).await;
    for count in 1..=3 {
        drop_in(&dir, "a.xml", "<a/>");
        until("done", || names(&dir.join(".done")).len() == count).await;
    }
    works.end().await;
    assert_eq!(names(&dir.join(".done")), ["a-1.xml", "a-2.xml", "a.xml"]);
    assert_eq!(route.names().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_file_fails_with_its_reason() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::new(|message| match message.body.bytes().as_ref() {
        b"client" => Err(Fault::new(Code::Client, "not an order")),
        b"script" => Err(Fault::new(Code::Transform, "script failed").detail("x.rhai:3:5")),
        b"doubt" => Err(Fault::new(Code::InDoubt, "lost").at(&Arc::from("erp"))),
        _ => Ok(()),
    });
    let works = Works::start(root.path(), &route, QUICK).await;
    for name in ["client", "script", "doubt"] {
        drop_in(&dir, &format!("{name}.xml"), name);
    }
    drop_in(&dir, "large.xml", &"x".repeat(1001));
    drop_in(&dir, "good.xml", "good");
    let failed = dir.join(".failed");
    until("all there", || names(&failed).len() == 8).await;
    until("the good one too", || {
        names(&dir.join(".done")) == ["good.xml"]
    })
    .await;
    works.end().await;
    for (name, code, step, reason) in [
        ("client", "client", "receive", "not an order"),
        ("script", "transform", "receive", "x.rhai:3:5"),
        ("doubt", "in-doubt", "erp", "lost"),
        (
            "large",
            "too-large",
            "receive",
            "the file has 1001 bytes, the limit is 1000",
        ),
    ] {
        let error = error_of(failed.join(format!("{name}.xml.error.json")));
        assert_eq!(error["code"], code);
        assert_eq!(error["step"], step);
        assert_eq!(error["reason"], reason);
        assert_eq!(error["route"], "invoices");
        assert_eq!(error["attempts"], 1);
        assert!(error["id"].as_str().unwrap().parse::<MessageId>().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_holds_back_what_is_behind_and_keeps_the_order() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let tries = std::sync::atomic::AtomicU32::new(0);
    let route = Route::one_by_one(move |message| {
        let first = message.headers.get("file.name") == Some("1.xml");
        if first && tries.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 3 {
            return Err(Fault::new(Code::Destination, "down"));
        }
        Ok(())
    });
    for name in ["3.xml", "1.xml", "2.xml"] {
        drop_in(&dir, name, "x");
    }
    let works = Works::start(root.path(), &route, &with(&["order=name"])).await;
    until("all done", || names(&dir.join(".done")).len() == 3).await;
    works.end().await;
    assert_eq!(
        route.names(),
        ["1.xml", "1.xml", "1.xml", "1.xml", "2.xml", "3.xml"]
    );
    let took = route.took.lock().unwrap();
    assert!(took[..4].iter().all(|message| message.id == took[0].id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_a_waiting_file_claimed_and_the_next_start_takes_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let down = Route::one_by_one(|_| Err(Fault::new(Code::Destination, "down")));
    let works = Works::start(root.path(), &down, &with(&["order=name"])).await;
    drop_in(&dir, "a.xml", "x");
    drop_in(&dir, "b.xml", "x");
    until("tried twice", || down.names().len() > 1).await;
    works.end().await;
    assert_eq!(names(&dir), ["b.xml"]);
    assert_eq!(names(&dir.join(".xbus-claim/n1")), ["a.xml"]);
    let up = Route::one_by_one(|_| Ok(()));
    let works = Works::start(root.path(), &up, &with(&["order=name"])).await;
    until("both done", || names(&dir.join(".done")).len() == 2).await;
    works.end().await;
    assert_eq!(up.names(), ["a.xml", "b.xml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_before_a_crash_is_only_moved() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let claimed = dir.join(".xbus-claim/n1");
    drop_in(&claimed, "a.xml", "x");
    drop_in(&claimed, "b.xml", "x");
    let route = Route::new(|_| Ok(()));
    let key = crate::disk::Stamp::of(&fs::metadata(claimed.join("a.xml")).unwrap()).key();
    route.keys.lock().unwrap().insert(Arc::from(key));
    let works = Works::start(root.path(), &route, QUICK).await;
    until("both done", || names(&dir.join(".done")).len() == 2).await;
    works.end().await;
    assert_eq!(route.names(), ["b.xml"]);
    assert!(route.keys.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_what_runs_end() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::one_by_one(|_| Ok(()));
    let shut = route.gate.write().await;
    let works = Works::start(root.path(), &route, &with(&["order=name"])).await;
    drop_in(&dir, "a.xml", "x");
    drop_in(&dir, "b.xml", "x");
    until("claimed", || {
        names(&dir.join(".xbus-claim/n1")) == ["a.xml"]
    })
    .await;
    works.stop.cancel();
    drop(shut);
    works.end().await;
    assert_eq!(names(&dir.join(".done")), ["a.xml"]);
    assert_eq!(names(&dir), [".done", "b.xml"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_grows_is_not_read() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::new(|_| Ok(()));
    let pairs = ["dir=in", "ready.stable=2s", "poll=50ms"];
    let works = Works::start(root.path(), &route, &pairs).await;
    use std::io::Write;
    let mut file = fs::File::create(dir.join("slow.txt")).unwrap();
    for _ in 0..20 {
        file.write_all(b"0123456789").unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    drop(file);
    until("done", || names(&dir.join(".done")) == ["slow.txt"]).await;
    works.end().await;
    let took = route.took.lock().unwrap();
    let sizes: Vec<_> = took.iter().map(|m| m.body.bytes().len()).collect();
    assert_eq!(sizes, [200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_marker_goes_with_its_file() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::new(|_| Ok(()));
    let pairs = ["dir=in", "ready.marker=.ok", "poll=50ms", "recursive=true"];
    let works = Works::start(root.path(), &route, &pairs).await;
    drop_in(&dir.join("sub"), "b.txt", "x");
    drop_in(&dir, "a.txt", "x");
    drop_in(&dir, "a.txt.ok", "");
    until("a done", || names(&dir.join(".done")) == ["a.txt"]).await;
    assert_eq!(names(&dir), [".done", "sub"]);
    drop_in(&dir.join("sub"), "b.txt.ok", "");
    until("b done", || names(&dir.join(".done/sub")) == ["b.txt"]).await;
    works.end().await;
    assert!(names(&dir.join("sub")).is_empty());
    assert_eq!(route.names(), ["a.txt", "b.txt"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_cut_short_between_marker_and_file_is_finished() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    drop_in(&dir, "a.txt", "x");
    drop_in(&dir.join(".xbus-claim/n1/.xbus-markers"), "a.txt", "");
    let route = Route::new(|_| Ok(()));
    let pairs = ["dir=in", "ready.marker=.ok", "poll=50ms"];
    let works = Works::start(root.path(), &route, &pairs).await;
    until("done", || names(&dir.join(".done")) == ["a.txt"]).await;
    works.end().await;
    assert!(names(&dir.join(".xbus-claim/n1/.xbus-markers")).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_files_at_once_are_each_taken_once() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    for number in 0..1000 {
        drop_in(&dir, &format!("{number:04}.xml"), "x");
    }
    let route = Route::new(|_| Ok(()));
    let works = Works::start(root.path(), &route, &with(&["done=delete"])).await;
    until("all gone", || names(&dir).is_empty()).await;
    works.end().await;
    let mut took = route.names();
    took.sort();
    took.dedup();
    assert_eq!((took.len(), route.names().len()), (1000, 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_vanishes_is_told_and_used_again_when_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::new(|_| Ok(()));
    let works = Works::start(root.path(), &route, QUICK).await;
    until("it works", || !route.told.lock().unwrap().is_empty()).await;
    fs::remove_dir_all(&dir).unwrap();
    until("told", || {
        let told = route.told.lock().unwrap();
        told.last()
            .is_some_and(|last| last.contains("No such file"))
    })
    .await;
    assert!(!dir.exists(), "not made behind the administrator's back");
    drop_in(&dir, "a.xml", "x");
    until("done", || names(&dir.join(".done")) == ["a.xml"]).await;
    until("told", || {
        route
            .told
            .lock()
            .unwrap()
            .last()
            .is_some_and(|last| last == "works")
    })
    .await;
    works.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_names_arrive() {
    use std::os::unix::ffi::OsStrExt;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    fs::create_dir_all(&dir).unwrap();
    let long = format!("{}.xml", "n".repeat(251));
    let odd: [&[u8]; 5] = [
        b"\xff.xml",
        b"a\nb.xml",
        b".dot.xml",
        b"-rf.xml",
        long.as_bytes(),
    ];
    for name in odd {
        fs::write(dir.join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    drop_in(&dir, ".xbus-mine.xml", "x");
    let route = Route::new(|message| match message.headers.get("file.name") {
        Some(name) if name.len() > 200 => Err(Fault::new(Code::Client, "no")),
        _ => Ok(()),
    });
    let works = Works::start(root.path(), &route, QUICK).await;
    until("done", || names(&dir.join(".done")).len() == 4).await;
    until("failed", || names(&dir.join(".failed")).len() == 2).await;
    works.end().await;
    assert!(dir.join(".xbus-mine.xml").exists());
    let all = route.names().join("");
    assert!(!all.chars().any(char::is_control), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_receivers_of_one_bus_share_a_folder() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let (xml, csv) = (Route::new(|_| Ok(())), Route::new(|_| Ok(())));
    let first = Works::start(root.path(), &xml, QUICK).await;
    let pairs = ["dir=in", "pattern=*.csv", "ready.rename=true", "poll=50ms"];
    let second = Works::start(root.path(), &csv, &pairs).await;
    for name in ["a.xml", "b.csv", "c.xml"] {
        drop_in(&dir, name, "x");
    }
    until("all done", || names(&dir.join(".done")).len() == 3).await;
    first.end().await;
    second.end().await;
    assert_eq!((xml.names().len(), csv.names().len()), (2, 1));
}

#[test]
fn what_is_written_wrongly_is_said() {
    let root = tempfile::tempdir().unwrap();
    for (pairs, code) in [
        (vec!["dir=in", "pattern=[a"], "bad-pattern"),
        (vec!["dir=in", "charset=klingon"], "unknown-charset"),
        (vec!["dir=in", "done=."], "bad-folder"),
        (vec!["dir=in", "failed=.xbus-claim/x"], "bad-folder"),
        (vec!["dir=in", "ready.marker="], "bad-ready"),
        (
            vec!["dir=in", "ready.marker=.ok", "ready.rename=true"],
            "bad-ready",
        ),
    ] {
        let problems = build(root.path(), "n1", &pairs).err().unwrap();
        assert_eq!(problems, [code], "{pairs:?}");
    }
}

#[test]
fn all_that_is_written_wrongly_is_said_at_once() {
    let root = tempfile::tempdir().unwrap();
    let pairs = [
        "dir=in",
        "pattern=[a",
        "ready={}",
        "charset=klingon",
        "poll=0s",
        "failed=delete",
        "done=.",
    ];
    let mut problems = build(root.path(), "n1", &pairs).err().unwrap();
    problems.sort();
    assert_eq!(
        problems,
        [
            "bad-folder",
            "bad-pattern",
            "bad-ready",
            "bad-value",
            "bad-value",
            "unknown-charset"
        ]
    );
    assert!(build(root.path(), "n1", &["dir=in", "failed=delete/"]).is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_used_does_not_keep_the_bus_from_starting() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    drop_in(&dir, "a.xml", "x");
    let in_the_way = dir.join(".xbus-claim");
    fs::write(&in_the_way, "no folder").unwrap();
    let route = Route::new(|_| Ok(()));
    let works = Works::start(root.path(), &route, QUICK).await;
    until("told again", || {
        let told = route.told.lock().unwrap();
        told.len() > 1 && told.iter().all(|one| one.contains("cannot use the folder"))
    })
    .await;
    assert_eq!(names(&dir), ["a.xml"]);
    fs::remove_file(&in_the_way).unwrap();
    until("done", || names(&dir.join(".done")) == ["a.xml"]).await;
    let last = route.told.lock().unwrap().last().cloned();
    assert_eq!(last.as_deref(), Some("works"));
    works.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_bus_of_the_same_node_does_not_start() {
    let root = tempfile::tempdir().unwrap();
    let claims = root.path().join("in/.xbus-claim");
    fs::create_dir_all(&claims).unwrap();
    // As another process holds it.
    let lease = fs::File::create(claims.join(".n1.lease")).unwrap();
    lease.lock().unwrap();
    let receiver = build(root.path(), "n1", QUICK).unwrap();
    let opened = receiver.open_door(Route::new(|_| Ok(())), Stop::new());
    let error = opened.await.err().unwrap();
    assert!(error.message.contains("node 'n1'"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_stays_unusable_does_not_keep_the_bus_from_stopping() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("in"), "no folder").unwrap();
    let route = Route::new(|_| Ok(()));
    let pairs = ["dir=in", "poll=1h"];
    let works = Works::start(root.path(), &route, &pairs).await;
    until("told", || route.told.lock().unwrap().len() == 1).await;
    works.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_wakes_up_without_its_files_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let route = Route::one_by_one(|_| Ok(()));
    let gate = route.gate.write().await;
    let works = Works::start(root.path(), &route, QUICK).await;
    let claims = dir.join(".xbus-claim/n1");
    drop_in(&dir, "a.xml", "x");
    until("claimed", || names(&claims) == ["a.xml"]).await;
    // As another node does that takes over.
    fs::rename(claims.join("a.xml"), root.path().join("taken.xml")).unwrap();
    drop(gate);
    until("delivered", || route.names() == ["a.xml"]).await;
    drop_in(&dir, "b.xml", "x");
    until("done", || names(&dir.join(".done")) == ["b.xml"]).await;
    works.end().await;
    let told = route.told.lock().unwrap();
    assert!(told.iter().all(|one| one == "works"), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_moved_holds_up_no_other_and_is_told() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    let done = dir.join(".done");
    fs::create_dir_all(&done).unwrap();
    fs::write(done.join("sub"), "in the way of the folder").unwrap();
    let route = Route::with_places(2, |_| Ok(()));
    let works = Works::start(root.path(), &route, &with(&["recursive=true"])).await;
    drop_in(&dir.join("sub"), "stuck.xml", "x");
    let told = || route.told.lock().unwrap().join("\n");
    until("told", || told().contains("sub/stuck.xml")).await;
    for name in ["a.xml", "b.xml", "c.xml"] {
        drop_in(&dir, name, "x");
    }
    until("moved", || names(&done).len() == 4).await;
    assert!(dir.join(".xbus-claim/n1/sub/stuck.xml").exists());
    fs::remove_file(done.join("sub")).unwrap();
    until("moved too", || done.join("sub/stuck.xml").exists()).await;
    until("all well", || told().ends_with("works")).await;
    works.end().await;
    assert_eq!(route.names().len(), 4, "each was taken once");
    assert!(route.keys.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_what_cannot_be_moved_and_the_next_start_moves_it() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("in");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(".done"), "in the way of the folder").unwrap();
    let route = Route::with_places(2, |_| Ok(()));
    let works = Works::start(root.path(), &route, QUICK).await;
    for number in 0..9 {
        drop_in(&dir, &format!("{number}.xml"), "x");
    }
    // As many as are taken at once wait to be moved, as many to be handed on, and no more is taken.
    let claimed = || names(&dir.join(".xbus-claim/n1")).len();
    until("no more is taken", || {
        claimed() >= 4 && route.names().len() == claimed()
    })
    .await;
    works.end().await;
    let accepted = route.names().len();
    assert!(accepted < 9, "{accepted} were accepted");
    assert_eq!(route.keys.lock().unwrap().len(), accepted);
    fs::remove_file(dir.join(".done")).unwrap();
    let works = Works::start(root.path(), &route, QUICK).await;
    until("all are moved", || names(&dir.join(".done")).len() == 9).await;
    works.end().await;
    assert_eq!(route.names().len(), 9, "each was taken once");
    assert!(route.keys.lock().unwrap().is_empty());
}

#[test]
fn a_folder_is_the_same_however_it_is_written() {
    let root = tempfile::tempdir().unwrap();
    let claim = |dir: &str| {
        let receiver = build(root.path(), "n1", &[&format!("dir={dir}")]).unwrap();
        xbus_core::Receiver::claim(&*receiver).unwrap()
    };
    let absolute = root.path().join("in").display().to_string();
    for dir in ["./in", "in/", "in/.", "a/../in", &absolute] {
        assert_eq!(claim(dir), claim("in"), "{dir}");
    }
    assert_ne!(claim("in"), claim("in2"));
}
