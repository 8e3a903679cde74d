//! The receiver: watches a folder and hands each complete file to its route.
//!
//! Flow: scan → ripen → claim (when there is a free place) → take → settle. Nothing is claimed ahead
//! of its turn, so that what a stop or a crash leaves behind is what was running.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Notify, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use xbus_core::adapter::OpenError;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Format, Inbox, Receiver, Stop};

use crate::claim::{BEAT, Busy, CLAIMS, Lease, Refusal};
use crate::disk::{self, Stamp};
use crate::events::Events;
use crate::folders::Done;
use crate::scan::{self, Order, Ready, Ripening, Watch, files_beneath};
use crate::settle::{Accepted, settle};
use crate::take::{self, Claimed, Content, Door, Rules, blocking};

/// What can stand under `receive: { file: … }`.
pub(crate) const FIELDS: &[Field] = &[
    Field::new("dir", Type::Path, "The watched folder; made when it is missing at start.").required(),
    Field::new(
        "pattern",
        Type::Text,
        "Which names are taken: `*`, `?`, `[a-z]`, `{a,b}`. With a `/` it is held against the path \
         beneath `dir`. Names that begin with `.xbus-` are never taken.",
    )
    .default("*"),
    Field::new(
        "ready",
        Type::Object(READY),
        "When a file is complete. One of `stable`, `marker`, `rename`.",
    ),
    Field::new(
        "done",
        Type::Text,
        "Folder for accepted files, relative to `dir`; or `delete`. A name that is taken there gets \
         `-1`, `-2`, …",
    )
    .default(".done/"),
    Field::new(
        "failed",
        Type::Text,
        "Folder for files that are rejected, whose transformation fails, or whose outcome is in \
         doubt, relative to `dir`; each with `NAME.error.json` beside it.",
    )
    .default(".failed/"),
    Field::new(
        "order",
        Type::Choice(&["name", "mtime"]),
        "Takes files strictly one after the other, by name or by the time of their last change. \
         Left out: by name, several at once (8, unless `concurrency` says otherwise).",
    ),
    Field::new("poll", Type::Duration, "How often the folder is looked through.").default("2s"),
    Field::new(
        "charset",
        Type::Text,
        "The charset of the files (an IANA label) where neither a byte order mark nor an XML declaration says one. Left out: UTF-8.",
    ),
    Field::new("recursive", Type::Bool, "Takes files from sub-folders too, except those that begin with a dot.")
        .default("false"),
    Field::new(
        "format",
        Type::Choice(&["xml", "json", "csv", "form", "text", "bytes"]),
        "How the files are read. Left out: by extension.",
    ),
    Field::new(
        "max_body",
        Type::Size,
        "Larger files fail with `too-large`. Left out: `max_body` of the bus's defaults.",
    ),
];

/// What can stand under `ready`.
const READY: &[Field] = &[
    Field::new(
        "stable",
        Type::Duration,
        "Complete when size and time have not changed for so long (2s unless said otherwise).",
    ),
    Field::new(
        "marker",
        Type::Text,
        "Complete when a file of the whole name plus this suffix lies beside it, such as `.done`. The \
         marker goes when the file is claimed.",
    ),
    Field::new(
        "rename",
        Type::Bool,
        "Complete as soon as it has its name: for senders that rename into place.",
    ),
];

/// One watched folder.
pub(crate) struct FileReceiver {
    watch: Watch,
    rules: Arc<Rules>,
    pattern: String,
    node: Arc<str>,
    poll: Duration,
}

/// Builds a receiver from what the route says.
pub(crate) fn build(args: Args<'_>) -> Option<Arc<dyn Receiver>> {
    Some(Arc::new(build_receiver(&args)?))
}

pub(crate) fn build_receiver(args: &Args<'_>) -> Option<FileReceiver> {
    let problems = args.build.problems;
    let dir = args.path("dir");
    let pattern = args.text("pattern").unwrap_or_default();
    let glob = match globset::GlobBuilder::new(&pattern)
        .literal_separator(pattern.contains('/'))
        .build()
    {
        Ok(glob) => Some(glob.compile_matcher()),
        Err(error) => {
            problems.error(
                &args.place("pattern"),
                "bad-pattern",
                format!("the pattern '{pattern}' is wrong: {}", error.kind()),
                "write a glob such as '*.xml' or 'order-[0-9]*.{xml,json}'",
            );
            None
        }
    };
    let ready = ready(args);
    let mut good = true;
    let charset = args.text("charset");
    if let Some(label) = &charset
        && xbus_charset::Charset::by_label(label).is_err()
    {
        good = false;
        problems.error(
            &args.place("charset"),
            "unknown-charset",
            format!("no charset has the label '{label}'"),
            "write an IANA label such as utf-8, iso-8859-1, windows-1252 or utf-16le",
        );
    }
    let poll = args.duration("poll").unwrap_or(Duration::from_secs(2));
    if poll.is_zero() {
        good = false;
        problems.error(
            &args.place("poll"),
            "bad-value",
            "the folder cannot be looked through without a pause",
            "write a time such as 2s; with file-system events files are taken at once anyway",
        );
    }
    let failed = args.text("failed").unwrap_or_default();
    if failed == "delete" {
        good = false;
        problems.error(
            &args.place("failed"),
            "bad-value",
            "files that failed are never deleted",
            "name a folder such as '.failed/'; one of the name 'delete' is written 'delete/'",
        );
    }
    // Where files go can only be judged beneath a folder.
    let dir = dir?;
    let done = match args.text("done")?.as_str() {
        "delete" => Done::Delete,
        folder => Done::Move(dir.join(folder.trim_end_matches('/'))),
    };
    let failed = dir.join(failed.trim_end_matches('/'));
    let mut within = |name: &str, folder: &Path| {
        if folder == dir || folder.starts_with(dir.join(CLAIMS)) {
            good = false;
            problems.error(
                &args.place(name),
                "bad-folder",
                format!("'{name}' is a folder that the receiver itself uses"),
                format!("name another folder, such as '.{name}/'"),
            );
        }
    };
    within("failed", &failed);
    let mut skip = vec![failed.clone()];
    if let Done::Move(folder) = &done {
        within("done", folder);
        skip.push(folder.clone());
    }
    let order = args.text("order");
    let (ready, glob) = (ready?, glob?);
    let quiet = match ready {
        Ready::Stable(time) => time.max(Duration::from_millis(100)),
        _ => Duration::from_secs(2),
    };
    good.then(|| FileReceiver {
        rules: Arc::new(Rules {
            dir: dir.clone(),
            done,
            failed,
            charset,
            format: args.text("format").as_deref().and_then(Format::from_name),
            max_body: args.size("max_body").unwrap_or(args.build.max_body),
            quiet,
        }),
        watch: Watch {
            dir,
            whole_path: pattern.contains('/'),
            pattern: glob,
            recursive: args.boolean("recursive"),
            ready,
            order: match order.as_deref() {
                Some("mtime") => Order::Modified,
                _ => Order::Name,
            },
            skip,
        },
        pattern,
        node: args.build.node.clone(),
        poll: poll.max(Duration::from_millis(50)),
    })
}

fn ready(args: &Args<'_>) -> Option<Ready> {
    let ready = args.object("ready", READY);
    let written = ["stable", "marker", "rename"]
        .into_iter()
        .filter(|name| ready.has(name))
        .count();
    let wrong = |message: &str, help: &str| {
        args.build
            .problems
            .error(&args.place("ready"), "bad-ready", message, help);
        None
    };
    if written == 0 && args.has("ready") {
        return wrong(
            "'ready' says nothing",
            "write one of stable, marker and rename, or leave 'ready' out",
        );
    }
    if written > 1 {
        return wrong(
            "'ready' says more than one thing",
            "keep one of stable, marker and rename",
        );
    }
    if let Some(suffix) = ready.text("marker") {
        if suffix.is_empty() || suffix.contains('/') {
            return wrong(
                "'marker' is no suffix of a file name",
                "write a suffix such as '.done'",
            );
        }
        return Some(Ready::Marker(suffix));
    }
    if ready.boolean("rename") {
        return Some(Ready::Named);
    }
    Some(Ready::Stable(
        ready.duration("stable").unwrap_or(Duration::from_secs(2)),
    ))
}

impl Receiver for FileReceiver {
    fn claim(&self) -> Option<String> {
        // However it is written, it is the same folder.
        let dir = scan::plain(&self.watch.dir).unwrap_or_else(|| self.watch.dir.clone());
        Some(format!("{} in {}", self.pattern, dir.display()))
    }

    fn takes(&self, file: &Path) -> bool {
        self.watch.reaches(file)
    }

    fn open(
        self: Arc<Self>,
        inbox: Inbox,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        self.open_door(Arc::new(inbox), stop)
    }
}

/// What is to be taken next.
enum Next {
    /// In the claim folder since an earlier run, or taken over.
    Leftover(PathBuf),
    /// In the watched folder, complete; with how it was where that is watched.
    Fresh(PathBuf, Option<Stamp>),
}

/// A claimed file that is to be taken.
struct Start {
    file: Claimed,
    busy: Busy,
    /// What was read at once.
    early: Option<Content>,
}

/// What one look at the folders gave.
#[derive(Default)]
struct Look {
    next: VecDeque<Next>,
    /// When another file will be complete.
    ripe_at: Option<Instant>,
    /// There was more than one look keeps.
    more: bool,
}

impl FileReceiver {
    pub(crate) fn open_door(
        self: Arc<Self>,
        door: Arc<dyn Door>,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        Box::pin(async move {
            let first = match self.clone().try_prepare().await {
                Err(Refusal::Live) => {
                    return Err(OpenError {
                        message: format!(
                            "another bus that runs as node '{}' watches {}",
                            self.node,
                            self.watch.dir.display()
                        ),
                        help: String::from("give each bus a 'node' name of its own in xbus.yaml"),
                    });
                }
                Ok(lease) => Ok(lease),
                Err(Refusal::Disk(error)) => Err(error),
            };
            let run: BoxFuture<'static, ()> = Box::pin(async move {
                let lease = match first {
                    Ok(lease) => Some(lease),
                    Err(error) => self.clone().prepare_again(error, &*door, &stop).await,
                };
                if let Some(lease) = lease {
                    Running::new(self, door, lease, stop).run().await;
                }
            });
            Ok(run)
        })
    }

    async fn try_prepare(self: Arc<Self>) -> Result<Arc<Lease>, Refusal> {
        blocking(move || self.prepare())
            .await
            .unwrap_or_else(|error| Err(Refusal::Disk(error)))
    }

    /// A folder that cannot be used does not keep the bus from starting: administrators are told,
    /// and it is tried again with each poll. Nothing when `stop` came first.
    async fn prepare_again(
        self: Arc<Self>,
        error: io::Error,
        door: &dyn Door,
        stop: &Stop,
    ) -> Option<Arc<Lease>> {
        let dir = self.watch.dir.display();
        tracing::warn!(%dir, %error, "the watched folder cannot be used; the bus needs to read, write and make folders in it");
        let mut error = error;
        loop {
            door.fails(&format!("cannot use the folder {dir}: {error}"));
            if take::sleep(self.poll, stop).await {
                return None;
            }
            error = match self.clone().try_prepare().await {
                Ok(lease) => return Some(lease),
                Err(Refusal::Live) => self.taken_name(),
                Err(Refusal::Disk(error)) => error,
            };
        }
    }

    fn taken_name(&self) -> io::Error {
        io::Error::other(format!("another bus runs as node '{}'", self.node))
    }

    /// Makes the folder and takes the lease. Blocks.
    fn prepare(&self) -> Result<Arc<Lease>, Refusal> {
        let dir = &self.watch.dir;
        if disk::create_dirs(dir)? {
            tracing::info!(dir = %dir.display(), "the watched folder was missing and has been made");
        }
        let lease = Lease::acquire(dir, &self.node)?;
        take::resume_marked(dir, &lease.folder())?;
        Ok(lease)
    }

    /// Looks at the claim folder and at the watched folder. Blocks.
    fn look(
        &self,
        lease: &Arc<Lease>,
        ripening: &mut Ripening,
        take_over: bool,
    ) -> io::Result<Look> {
        if take_over {
            let taken = lease.take_over(&|path| self.watch.wants(path))?;
            if taken > 0 {
                tracing::info!(dir = %self.watch.dir.display(), taken, "files of a node that is gone were taken over");
            }
        }
        let mut next = VecDeque::new();
        for path in files_beneath(&lease.folder())? {
            if self.watch.wants(&path) {
                next.push_back(Next::Leftover(path));
            }
        }
        let seen = self.watch.scan()?;
        let (ripe, ripe_at) = ripening.sort(seen.found, &self.watch.ready, Instant::now());
        next.extend(
            ripe.into_iter()
                .map(|(path, stamp)| Next::Fresh(path, stamp)),
        );
        Ok(Look {
            next,
            ripe_at,
            more: seen.more,
        })
    }

    /// Claims files in their order until one cannot be claimed because the folder fails. Blocks.
    fn claim_some(
        &self,
        lease: &Arc<Lease>,
        batch: &[Next],
    ) -> (Vec<Start>, Result<(), io::Error>) {
        let mut starts = Vec::with_capacity(batch.len());
        for next in batch {
            match self.claim_next(lease, next) {
                Ok(None) => {}
                Ok(Some((file, busy))) => {
                    let early = take::read_early(&self.rules, &file);
                    starts.push(Start { file, busy, early });
                }
                Err(error) => return (starts, Err(error)),
            }
        }
        (starts, Ok(()))
    }

    /// Claims a file, unless somebody works on it or it is gone. Blocks.
    fn claim_next(&self, lease: &Arc<Lease>, next: &Next) -> io::Result<Option<(Claimed, Busy)>> {
        let folder = lease.folder();
        let path = match next {
            Next::Leftover(path) | Next::Fresh(path, _) => path,
        };
        let at = folder.join(path);
        let Some(busy) = lease.busy(&at) else {
            return Ok(None);
        };
        let (there, stamp) = match next {
            Next::Leftover(_) => (disk::is_there(&at), None),
            Next::Fresh(_, stamp) => {
                if !lease.is_held() {
                    return Err(io::Error::other("the claim folder is gone"));
                }
                let marker = match &self.watch.ready {
                    Ready::Marker(suffix) => Some(suffix.as_str()),
                    _ => None,
                };
                let claimed = take::claim(&self.watch.dir, &folder, path, marker)?;
                (claimed, *stamp)
            }
        };
        let path = path.clone();
        Ok(there.then_some((Claimed { at, path, stamp }, busy)))
    }
}

/// A look at the folders while it runs.
struct Scan {
    started: Instant,
    looks: JoinHandle<(io::Result<Look>, Ripening)>,
}

impl Scan {
    /// When there is one and it has ended: when it was started, and what it gave.
    async fn ended(scan: &mut Option<Self>) -> (Instant, io::Result<(io::Result<Look>, Ripening)>) {
        match scan {
            Some(Self { started, looks }) => {
                let (started, looked) = (*started, looks.await.map_err(io::Error::other));
                *scan = None;
                (started, looked)
            }
            None => std::future::pending().await,
        }
    }
}

/// A receiver at work.
struct Running {
    receiver: Arc<FileReceiver>,
    door: Arc<dyn Door>,
    lease: Arc<Lease>,
    stop: Stop,
    hint: Arc<Notify>,
    events: Option<Events>,
    ripening: Option<Ripening>,
    /// A look at the folders that is under way.
    scan: Option<Scan>,
    next: VecDeque<Next>,
    /// The last look did not keep all that there is.
    more: bool,
    running: JoinSet<()>,
    /// Where accepted files go; nothing once no more will.
    accepted: Option<mpsc::Sender<Accepted>>,
    settling: JoinHandle<()>,
    /// See [`Running::keep`]; ends with this.
    keeper: JoinSet<()>,
    scan_at: Instant,
    /// No scan comes sooner, whatever events say.
    not_before: Instant,
    taken_over: Instant,
    /// The last look failed; nothing at first, so that an old incident is ended.
    trouble: Option<bool>,
}

impl Running {
    fn new(
        receiver: Arc<FileReceiver>,
        door: Arc<dyn Door>,
        lease: Arc<Lease>,
        stop: Stop,
    ) -> Self {
        let now = Instant::now();
        let (accepted, coming) = mpsc::channel(door.concurrency().max(1));
        let rules = receiver.rules.clone();
        let settling = tokio::spawn(settle(door.clone(), rules, coming, stop.clone()));
        Self {
            receiver,
            door,
            lease,
            stop,
            scan: None,
            accepted: Some(accepted),
            settling,
            hint: Arc::default(),
            events: None,
            ripening: Some(Ripening::default()),
            next: VecDeque::new(),
            more: false,
            running: JoinSet::new(),
            keeper: JoinSet::new(),
            scan_at: now,
            not_before: now,
            taken_over: now,
            trouble: None,
        }
    }

    async fn run(mut self) {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.keep();
        while !self.stop.is_cancelled() {
            self.fill().await;
            let scan_at = tokio::time::Instant::from_std(self.scan_at);
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                _ = beat.tick() => self.beat().await,
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => report(ended),
                (started, looked) = Scan::ended(&mut self.scan) => self.looked(started, looked),
                () = tokio::time::sleep_until(scan_at), if self.scan.is_none() => self.scan(),
                // What is told while a look runs may be of a file that it has passed already.
                () = self.hint.notified(), if self.scan.is_none() => self.scan_at = self.scan_at.min(self.not_before),
            }
        }
        // What runs ends; the lease is kept alive meanwhile.
        loop {
            tokio::select! {
                ended = self.running.join_next() => match ended {
                    Some(ended) => report(ended),
                    None => break,
                },
                _ = beat.tick() => self.beat().await,
            }
        }
        self.accepted = None;
        loop {
            tokio::select! {
                ended = &mut self.settling => break report(ended),
                _ = beat.tick() => self.beat().await,
            }
        }
        if self.scan.is_some() {
            let _ = Scan::ended(&mut self.scan).await;
        }
    }

    /// Claims and starts files while there are places and files.
    async fn fill(&mut self) {
        while !self.stop.is_cancelled() {
            let places = self.door.concurrency().saturating_sub(self.running.len());
            if places == 0 {
                return;
            }
            let batch: Vec<Next> = self.next.drain(..places.min(self.next.len())).collect();
            if batch.is_empty() {
                if self.scan.is_none() && std::mem::take(&mut self.more) {
                    self.scan_at = self.scan_at.min(self.not_before);
                }
                return;
            }
            let (receiver, lease) = (self.receiver.clone(), self.lease.clone());
            let claimed = blocking(move || receiver.claim_some(&lease, &batch)).await;
            let (starts, claimed) = claimed.unwrap_or_else(|error| (Vec::new(), Err(error)));
            for start in starts {
                self.works();
                self.start(start);
            }
            if let Err(error) = claimed {
                self.failed(&error);
                self.next.clear();
            }
        }
    }

    fn start(&mut self, start: Start) {
        let (door, rules) = (self.door.clone(), self.receiver.rules.clone());
        let (stop, accepted) = (self.stop.clone(), self.accepted.clone());
        self.running.spawn(async move {
            let Start {
                mut file,
                busy,
                early,
            } = start;
            let key = take::take(&*door, &rules, &mut file, early, &stop).await;
            if let (Some(key), Some(accepted)) = (key, accepted) {
                // Nobody receives it when the bus stops while files cannot be moved: it stays
                // claimed and remembered.
                let _ = accepted.send(Accepted { file, key, busy }).await;
            }
        });
    }

    /// Begins to look through the folders.
    fn scan(&mut self) {
        let started = Instant::now();
        let take_over = started >= self.taken_over;
        if take_over {
            self.taken_over = started + BEAT;
        }
        let mut ripening = self.ripening.take().unwrap_or_default();
        let (receiver, lease) = (self.receiver.clone(), self.lease.clone());
        let looks = tokio::task::spawn_blocking(move || {
            let look = receiver.look(&lease, &mut ripening, take_over);
            (look, ripening)
        });
        self.scan = Some(Scan { started, looks });
    }

    fn looked(&mut self, started: Instant, looked: io::Result<(io::Result<Look>, Ripening)>) {
        let look = match looked {
            Ok((look, ripening)) => {
                self.ripening = Some(ripening);
                look
            }
            Err(error) => Err(error),
        };
        let now = Instant::now();
        let took = now - started;
        self.not_before = now + (took * 2).max(Duration::from_millis(20));
        self.scan_at = now + self.receiver.poll.max(took * 4);
        match look {
            Ok(look) => {
                if self.events.is_none() {
                    let watch = &self.receiver.watch;
                    self.events = Events::of(watch, self.hint.clone());
                }
                let soonest = look.ripe_at.map(|at| at.max(self.not_before));
                self.scan_at = soonest.map_or(self.scan_at, |at| at.min(self.scan_at));
                self.next = look.next;
                self.more = look.more;
                // With files to claim it is the claim that shows whether the folder can be used.
                if self.next.is_empty() {
                    self.works();
                }
            }
            Err(error) => self.failed(&error),
        }
    }

    fn works(&mut self) {
        if self.trouble.replace(false) != Some(false) {
            self.door.works();
        }
    }

    fn failed(&mut self, error: &io::Error) {
        let dir = self.receiver.watch.dir.display();
        if self.trouble.replace(true) != Some(true) {
            tracing::warn!(%dir, %error, "the watched folder cannot be used");
        }
        self.door
            .fails(&format!("cannot use the folder {dir}: {error}"));
        // A folder that comes back is another one: its events have to be asked for again.
        self.events = None;
    }

    /// Has the lease beat beside all other work, so that however long a look at a large or slow
    /// folder takes, no other node takes the files of this one for abandoned.
    fn keep(&mut self) {
        let lease = self.lease.clone();
        self.keeper = JoinSet::new();
        self.keeper.spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                let kept = lease.clone();
                // What is wrong with the folder is told by those who use it.
                let _ = blocking(move || kept.is_held() && kept.beat().is_ok()).await;
            }
        });
    }

    /// Keeps the lease, or takes it again when the folder has come back.
    async fn beat(&mut self) {
        let (receiver, lease) = (self.receiver.clone(), self.lease.clone());
        let kept = blocking(move || {
            if lease.is_held() {
                return lease.beat().map(|()| None).map_err(Refusal::Disk);
            }
            Lease::acquire(&receiver.watch.dir, &receiver.node).map(Some)
        })
        .await
        .unwrap_or_else(|error| Err(Refusal::Disk(error)));
        match kept {
            Ok(None) => {}
            Ok(Some(lease)) => {
                tracing::info!(dir = %self.receiver.watch.dir.display(), "the watched folder is back");
                self.lease = lease;
                self.keep();
                self.scan_at = Instant::now();
            }
            Err(Refusal::Live) => self.failed(&self.receiver.taken_name()),
            Err(Refusal::Disk(error)) => self.failed(&error),
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "taking a file ended by a defect of the bus");
    }
}
