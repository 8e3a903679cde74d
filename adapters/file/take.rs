//! One file from its claim until it is accepted, or in `failed`.
//!
//! The file stays in the claim folder until its fate is durable. A crash after the route accepted
//! it and before the move (see [`crate::settle`]) is seen by the inbox key, and only the move is
//! made up for.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::fs::OFlags;
use xbus_core::plan::Retry;
use xbus_core::{Arrival, Code, Fault, Format, Inbox, Message, MessageId, Reply, Stop, Timestamp};

use crate::disk::{self, Stamp};
use crate::folders::{self, Done, Reason};

/// What a file is handed to: the inbox, or a test's stand-in.
pub(crate) trait Door: Send + Sync {
    /// See [`Inbox::deliver`].
    fn deliver(&self, arrival: Arrival) -> BoxFuture<'_, Result<Reply, Fault>>;
    /// See [`Inbox::seen`].
    fn seen(&self, key: &str) -> bool;
    /// See [`Inbox::forget`].
    fn forget<'a>(&'a self, keys: &'a [Arc<str>]) -> BoxFuture<'a, ()>;
    /// See [`Inbox::fails`].
    fn fails(&self, error: &str);
    /// See [`Inbox::works`].
    fn works(&self);
    /// Waiting times between attempts.
    fn retry(&self) -> Retry;
    /// How many files are worked on at once.
    fn concurrency(&self) -> usize;
    /// The route's name.
    fn route(&self) -> Arc<str>;
}

impl Door for Inbox {
    fn deliver(&self, arrival: Arrival) -> BoxFuture<'_, Result<Reply, Fault>> {
        Box::pin(Inbox::deliver(self, arrival))
    }

    fn seen(&self, key: &str) -> bool {
        Inbox::seen(self, key)
    }

    fn forget<'a>(&'a self, keys: &'a [Arc<str>]) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Err(error) = Inbox::forget(self, keys).await {
                // The key of a file that is gone does no harm: its inode has another time or size
                // when it is used again.
                tracing::warn!(route = %Inbox::route(self), %error, "the keys of files are not forgotten");
            }
        })
    }

    fn fails(&self, error: &str) {
        Inbox::fails(self, "outage", error);
    }

    fn works(&self) {
        Inbox::works(self);
    }

    fn retry(&self) -> Retry {
        self.policy().retry
    }

    fn concurrency(&self) -> usize {
        self.policy().concurrency.max(1)
    }

    fn route(&self) -> Arc<str> {
        Inbox::route(self).clone()
    }
}

/// How the files of one receiver are read and where they go.
#[derive(Debug)]
pub(crate) struct Rules {
    /// The watched folder.
    pub(crate) dir: PathBuf,
    pub(crate) done: Done,
    pub(crate) failed: PathBuf,
    pub(crate) charset: Option<String>,
    pub(crate) format: Option<Format>,
    /// Largest file in bytes.
    pub(crate) max_body: u64,
    /// How long a file that changes while it is read is left alone.
    pub(crate) quiet: Duration,
}

/// A claimed file.
#[derive(Clone, Debug)]
pub(crate) struct Claimed {
    /// Where it lies now.
    pub(crate) at: PathBuf,
    /// Its path beneath the watched folder.
    pub(crate) path: PathBuf,
    /// How it was when it was found complete.
    pub(crate) stamp: Option<Stamp>,
}

/// A file's content and how it was when it was read.
pub(crate) type Content = Result<(Bytes, Stamp), Unread>;

/// Why a claimed file gives no message.
#[derive(Debug)]
pub(crate) enum Unread {
    /// Somebody took it out of the claim folder.
    Gone,
    /// It is not what it was: somebody still writes.
    Changed(Stamp),
    /// It will never be read: too large, not a file, no permission.
    Never(Fault),
    /// The disk fails.
    Broken(io::Error),
}

/// Hands one claimed file to its route until it is accepted: then gives the key that is remembered
/// with it. Gives nothing when the file has gone to `failed` or away, or is still claimed because
/// `stop` came while it waited for another attempt. `early`: what was read when it was claimed.
pub(crate) async fn take(
    door: &dyn Door,
    rules: &Arc<Rules>,
    file: &mut Claimed,
    mut early: Option<Content>,
    stop: &Stop,
) -> Option<Arc<str>> {
    let id = MessageId::new();
    let mut attempts = 0;
    let mut trouble = false;
    loop {
        let content = match early.take() {
            Some(content) => content,
            None => read(rules, file).await,
        };
        let wait = match content {
            Ok((body, stamp)) => {
                if std::mem::take(&mut trouble) {
                    door.works();
                }
                let key: Arc<str> = Arc::from(stamp.key());
                if door.seen(&key) {
                    tracing::info!(route = %door.route(), file = %shown(&file.path), "already accepted before a crash, only moved");
                    return Some(key);
                }
                attempts += 1;
                let arrival = Arrival {
                    message: message(rules, &file.path, body, stamp, id),
                    caller: None,
                    passing: Vec::new(),
                    seen_as: Some(key.clone()),
                    seen_also: None,
                    cause: None,
                    replayed: false,
                    attempts: attempts - 1,
                    fits: None,
                };
                match door.deliver(arrival).await {
                    Ok(_) => return Some(key),
                    Err(fault) if is_final(&fault) => {
                        fail(door, rules, file, id, attempts, &fault, stop).await;
                        if door.seen(&key) {
                            door.forget(&[key]).await;
                        }
                        return None;
                    }
                    Err(fault) => {
                        let wait = door.retry().wait(attempts);
                        tracing::warn!(route = %door.route(), %id, file = %shown(&file.path), attempts, error = %fault, retry_in = ?wait, "file not delivered, tried again");
                        fault.retry_after.map_or(wait, |asked| asked.max(wait))
                    }
                }
            }
            Err(Unread::Gone) => {
                tracing::warn!(route = %door.route(), file = %shown(&file.path), "a claimed file was taken away");
                return None;
            }
            Err(Unread::Changed(stamp)) => {
                tracing::info!(route = %door.route(), file = %shown(&file.path), "the file still grows, left alone");
                file.stamp = Some(stamp);
                rules.quiet
            }
            Err(Unread::Never(fault)) => {
                attempts += 1;
                tracing::warn!(route = %door.route(), file = %shown(&file.path), error = %fault, "file refused");
                fail(door, rules, file, id, attempts, &fault, stop).await;
                return None;
            }
            Err(Unread::Broken(error)) => {
                attempts += 1;
                trouble = true;
                door.fails(&format!("cannot read {}: {error}", shown(&file.path)));
                door.retry().wait(attempts)
            }
        };
        if sleep(wait, stop).await {
            return None;
        }
    }
}

/// Whether repeating cannot help or must not happen by itself.
fn is_final(fault: &Fault) -> bool {
    fault.rejected
        || fault.code.is_rejection()
        || matches!(fault.code, Code::Transform | Code::InDoubt)
}

/// Largest file in bytes that is read as it is claimed, on the same visit to a thread that may block.
/// A larger one would hold back the claims behind it.
const SMALL: u64 = 64 << 10;

async fn read(rules: &Rules, file: &Claimed) -> Content {
    let (at, expected, most) = (file.at.clone(), file.stamp, rules.max_body);
    blocking(move || read_file(&at, expected, most))
        .await
        .unwrap_or_else(|error| Err(Unread::Broken(error)))
}

/// Reads a small file that has just been claimed; nothing for a larger one. Blocks.
pub(crate) fn read_early(rules: &Rules, file: &Claimed) -> Option<Content> {
    let size = match file.stamp {
        Some(stamp) => stamp.size,
        None => fs::symlink_metadata(&file.at).ok()?.len(),
    };
    (size <= SMALL).then(|| read_file(&file.at, file.stamp, rules.max_body))
}

/// Reads a file that is complete. Blocks.
fn read_file(at: &Path, expected: Option<Stamp>, most: u64) -> Content {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut file = match File::options()
        .read(true)
        .custom_flags(flags as i32)
        .open(at)
    {
        Ok(file) => file,
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => Unread::Gone,
                io::ErrorKind::PermissionDenied => Unread::Never(
                    Fault::new(Code::Denied, "the bus may not read the file")
                        .detail(format!("the bus may not read the file: {error}")),
                ),
                _ => Unread::Broken(error),
            });
        }
    };
    let meta = file.metadata().map_err(Unread::Broken)?;
    if !meta.is_file() {
        let fault = Fault::new(Code::Unsupported, "not a regular file");
        return Err(Unread::Never(fault));
    }
    let stamp = Stamp::of(&meta);
    if expected.is_some_and(|expected| expected != stamp) {
        return Err(Unread::Changed(stamp));
    }
    if stamp.size > most {
        return Err(Unread::Never(Fault::new(
            Code::TooLarge,
            format!("the file has {} bytes, the limit is {most}", stamp.size),
        )));
    }
    let mut body = Vec::with_capacity(stamp.size as usize + 1);
    (&mut file)
        .take(stamp.size + 1)
        .read_to_end(&mut body)
        .map_err(Unread::Broken)?;
    let after = Stamp::of(&file.metadata().map_err(Unread::Broken)?);
    if after != stamp || body.len() as u64 != stamp.size {
        return Err(Unread::Changed(after));
    }
    Ok((Bytes::from(body), stamp))
}

/// The message that a file is.
fn message(rules: &Rules, path: &Path, body: Bytes, stamp: Stamp, id: MessageId) -> Message {
    let mut message = Message::new(body);
    message.id = id;
    let extension = path
        .extension()
        .map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    let format = rules.format.or(match extension.as_deref() {
        Some("xml") => Some(Format::Xml),
        Some("json") => Some(Format::Json),
        Some("csv") => Some(Format::Csv),
        Some("txt") => Some(Format::Text),
        _ => None,
    });
    let bare = format.map(|format| {
        let media_type = format.media_type();
        media_type.split(';').next().unwrap_or(media_type)
    });
    let body = message.body.bytes();
    let xml = format == Some(Format::Xml);
    let media_type = rules
        .charset
        .as_deref()
        .and_then(|charset| xbus_charset::by_route(body, bare, xml, charset))
        .or_else(|| bare.map(str::to_owned));
    message.format = format;
    let headers = &mut message.headers;
    if let Some(media_type) = media_type {
        headers.set("content-type", &media_type);
    }
    let name = path.file_name().map(Path::new).unwrap_or(path);
    headers.set("file.name", &shown(name));
    headers.set("file.path", &shown(&rules.dir.join(path)));
    headers.set("file.size", &stamp.size.to_string());
    let modified = Timestamp::from_micros((stamp.modified / 1000) as i64);
    headers.set("file.modified", &modified.to_string());
    message
}

/// A path as text: what is not UTF-8 and control characters become U+FFFD.
pub(crate) fn shown(path: &Path) -> String {
    path.to_string_lossy()
        .chars()
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Moves a file to the failed folder until that succeeds, or until `stop`; tells administrators
/// while it does not.
async fn fail(
    door: &dyn Door,
    rules: &Arc<Rules>,
    file: &Claimed,
    id: MessageId,
    attempts: u32,
    fault: &Fault,
    stop: &Stop,
) {
    let (rules, moving) = (rules.clone(), file.clone());
    let (route, fault) = (door.route(), fault.clone());
    let at = Timestamp::now().to_string();
    let act = move || {
        let why = Reason {
            id: id.to_string(),
            route: &route,
            step: fault.step.as_deref().unwrap_or("receive"),
            code: fault.code.name(),
            reason: &fault.for_admin(),
            attempts,
            at: at.clone(),
        };
        folders::fail(&moving.at, &moving.path, &rules.failed, &why)
    };
    let act = Arc::new(act);
    let mut failures = 0;
    loop {
        let again = act.clone();
        match blocking(move || again()).await.and_then(|result| result) {
            Ok(()) => {
                if failures > 0 {
                    door.works();
                }
                return;
            }
            Err(error) => {
                failures += 1;
                let path = shown(&file.path);
                door.fails(&format!(
                    "cannot move to the failed folder: {path}: {error}"
                ));
                if sleep(door.retry().wait(failures), stop).await {
                    return;
                }
            }
        }
    }
}

/// Waits; `true` when `stop` came first.
pub(crate) async fn sleep(time: Duration, stop: &Stop) -> bool {
    tokio::select! {
        () = tokio::time::sleep(time) => false,
        () = stop.cancelled() => true,
    }
}

/// Runs what blocks where it may.
pub(crate) async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(act)
        .await
        .map_err(io::Error::other)
}

/// Claims a file by an atomic rename. `Ok(false)`: somebody else has it, or a file of that name is
/// still claimed. Blocks.
pub(crate) fn claim(
    dir: &Path,
    folder: &Path,
    path: &Path,
    marker: Option<&str>,
) -> io::Result<bool> {
    let to = folder.join(path);
    if disk::is_there(&to) {
        return Ok(false);
    }
    if let Some(parent) = to.parent()
        && parent != folder
    {
        disk::create_dirs(parent)?;
    }
    // The marker goes first, into the claim folder: a crash in between leaves the right to claim,
    // and never a marker that makes the next file of this name complete.
    let kept = marker.map(|suffix| {
        let marker = crate::scan::with_suffix(path, suffix);
        (dir.join(&marker), folder.join(MARKERS).join(path))
    });
    if let Some((marker, kept)) = &kept {
        if let Some(parent) = kept.parent() {
            disk::create_dirs(parent)?;
        }
        match fs::rename(marker, kept) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        }
    }
    let claimed = match disk::move_new(&dir.join(path), &to) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if let Some((_, kept)) = &kept {
        fs::remove_file(kept)?;
    }
    Ok(claimed)
}

/// Where markers lie while their file is claimed, in the claim folder.
pub(crate) const MARKERS: &str = ".xbus-markers";

/// Finishes claims that a crash interrupted between marker and file. Blocks.
pub(crate) fn resume_marked(dir: &Path, folder: &Path) -> io::Result<()> {
    let markers = folder.join(MARKERS);
    if !disk::is_there(&markers) {
        return Ok(());
    }
    for path in crate::scan::files_beneath(&markers)? {
        let to = folder.join(&path);
        if !disk::is_there(&to) {
            if let Some(parent) = to.parent() {
                disk::create_dirs(parent)?;
            }
            match disk::move_new(&dir.join(&path), &to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::remove_file(markers.join(&path))?;
    }
    Ok(())
}
