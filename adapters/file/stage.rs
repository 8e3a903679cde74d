//! A file on its way to its name: written under a temporary name in its own folder, synced, and
//! renamed when the decision has fallen.
//!
//! Folders beneath `dir` are opened one by one and never through a symbolic link, and everything
//! then happens relative to the opened folder, so that no name leads out of `dir`.
//!
//! The written file carries the extended attribute `user.xbus` with message id and target. By it
//! a file that is already there is known as this message's own. On a file system without such
//! attributes a file of the same name and content counts as that.
//!
//! A file that is written for its target alone goes to its name in one go: as no decision lies in
//! between, the temporary name need not outlive a crash, and the folder is synced once, at the end.
//!
//! From staging on the name is [reserved](crate::reserve) in this process: of two messages that
//! may not write over each other and want one name, the second is rejected while it is staged.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use xbus_core::adapter::{Call, SendError, Stage};
use xbus_core::{Message, MessageId};

use crate::disk;
use crate::names::{TEMPORARY, first_free, fnv, numbered};
use crate::reserve::{self, Reserved};

/// The extended attribute that says which message and target a file is of.
const MARK: &str = "user.xbus";

/// What is done when the name is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Exists {
    Fail,
    Replace,
    Append,
    Number,
}

/// All that is needed to go on after a crash.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) dir: PathBuf,
    /// Folders beneath `dir`.
    pub(crate) folders: Vec<String>,
    pub(crate) name: String,
    pub(crate) exists: Exists,
    pub(crate) mode: Option<u32>,
    /// The message.
    pub(crate) id: String,
    /// The target's name.
    pub(crate) target: String,
    /// Tells temporary files of this target of this bus from all others (see [`owner`]).
    pub(crate) owner: String,
}

/// A short name of one target of one bus. Two buses may write into one folder, and each sweeps its
/// own temporary files only.
pub(crate) fn owner(bus: &str, node: &str, route: &str, target: &str) -> String {
    format!(
        "{:016x}",
        fnv(format!("{bus}\0{node}\0{route}\0{target}").as_bytes())
    )
}

/// Removes temporary files of `owner` beneath `dir`, down to `depth` folders, whose message `keep`
/// does not hold.
pub(crate) fn sweep(
    dir: &Path,
    depth: usize,
    owner: &str,
    keep: &(dyn Fn(MessageId) -> bool + Sync),
) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    let own = format!("{TEMPORARY}{owner}-");
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if kind.is_dir() && depth > 0 {
            sweep(&entry.path(), depth - 1, owner, keep);
        }
        let name = entry.file_name();
        let id = name
            .to_str()
            .and_then(|name| name.strip_prefix(&own))
            .and_then(|id| id.parse().ok());
        if kind.is_file() && id.is_some_and(|id| !keep(id)) {
            match std::fs::remove_file(entry.path()) {
                Ok(()) => {
                    tracing::info!(file = %entry.path().display(), "removed what a crash had left");
                }
                Err(error) => {
                    tracing::warn!(file = %entry.path().display(), %error, "what a crash had left cannot be removed");
                }
            }
        }
    }
}

impl Token {
    /// Its temporary file, which no other message and no other target has.
    pub(crate) fn temporary(&self) -> String {
        format!("{TEMPORARY}{}-{}", self.owner, self.id)
    }

    fn mark(&self) -> String {
        format!("{}/{}", self.id, self.target)
    }

    fn shown(&self) -> String {
        shown(&self.dir, &self.folders, &self.name)
    }
}

fn shown(dir: &Path, folders: &[String], name: &str) -> String {
    let mut path = dir.to_owned();
    path.extend(folders);
    path.push(name);
    path.display().to_string()
}

/// One file to be written.
pub(crate) struct StagedFile {
    token: Arc<Token>,
    /// Nothing when it was staged by an earlier process.
    body: Option<Bytes>,
}

impl StagedFile {
    pub(crate) fn new(token: Token, body: Option<Bytes>) -> Self {
        Self {
            token: Arc::new(token),
            body,
        }
    }

    /// What an earlier process staged. Its name is reserved again, unless somebody else has it by
    /// now.
    pub(crate) fn resumed(token: Token) -> Self {
        if let Some(reserved) = Reserved::of(&token) {
            reserved.keep();
        }
        Self::new(token, None)
    }

    fn to_stage(&self) -> Result<(Bytes, Reserved), SendError> {
        let Some(body) = self.body.clone() else {
            return Err(SendError::outage(
                "the file was staged by an earlier process and cannot be staged again",
            ));
        };
        match Reserved::of(&self.token) {
            Some(reserved) => Ok((body, reserved)),
            None => Err(SendError::rejected(format!(
                "{} is being written by another message or target",
                self.token.shown()
            ))),
        }
    }

    fn blocking(
        &self,
        act: impl FnOnce(&Token) -> Result<(), SendError> + Send + 'static,
    ) -> BoxFuture<'_, Result<(), SendError>> {
        let token = self.token.clone();
        Box::pin(async move {
            crate::take::blocking(move || act(&token))
                .await
                .unwrap_or_else(|error| Err(SendError::outage(error.to_string())))
        })
    }
}

impl Stage for StagedFile {
    fn token(&self) -> Bytes {
        serde_json::to_vec(&*self.token).unwrap_or_default().into()
    }

    fn stage(&self) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async move {
            let (body, reserved) = self.to_stage()?;
            self.blocking(move |token| stage(token, &body)).await?;
            reserved.keep();
            Ok(())
        })
    }

    fn commit(&self) -> BoxFuture<'_, Result<(), SendError>> {
        let body = self.body.clone();
        self.blocking(move |token| {
            commit(token, body.as_ref()).map_err(|error| failure(&error, &token.shown()))?;
            reserve::release(token);
            Ok(())
        })
    }

    fn commit_again(&self) -> BoxFuture<'_, Result<(), SendError>> {
        self.blocking(|token| {
            commit_again(token).map_err(|error| failure(&error, &token.shown()))?;
            reserve::release(token);
            Ok(())
        })
    }

    fn undo(&self) -> BoxFuture<'_, Result<(), SendError>> {
        self.blocking(|token| {
            // What cannot be taken back now is never made visible either: the name is free.
            reserve::release(token);
            undo(token).map_err(|error| failure(&error, &token.shown()))
        })
    }

    fn at_once(&self, deadline: Instant) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async move {
            let (body, reserved) = self.to_stage()?;
            let given_up = Arc::new(AtomicBool::new(false));
            let (token, late) = (self.token.clone(), given_up.clone());
            let write = move || {
                let written = write_at_once(&token, &body, &late);
                drop(reserved);
                written
            };
            match tokio::time::timeout_at(deadline, crate::take::blocking(write)).await {
                Ok(Ok(written)) => written,
                Ok(Err(error)) => Err(SendError::outage(error.to_string())),
                Err(_) => {
                    // What is being renamed by now is found by its mark when it is repeated.
                    given_up.store(true, Ordering::SeqCst);
                    let late = format!("writing {} did not end in time", self.token.shown());
                    Err(SendError::outage(late).timed_out())
                }
            }
        })
    }
}

/// What a failure of the disk means for the message.
fn failure(error: &io::Error, what: &str) -> SendError {
    let detail = format!("cannot write {what}: {error}");
    match Errno::from_io_error(error) {
        Some(Errno::NAMETOOLONG | Errno::ISDIR) => SendError::rejected(detail),
        _ => SendError::outage(detail),
    }
}

fn stage(token: &Token, body: &[u8]) -> Result<(), SendError> {
    let failed = |error: io::Error| failure(&error, &token.shown());
    let folder = open_folder(&token.dir, &token.folders, true).map_err(failed)?;
    if is_written(&folder, token, body)? {
        return Ok(());
    }
    write_temporary(&folder, token, body)
        .and_then(|()| disk::sync_folder(&folder))
        .map_err(|error| {
            clear(&folder, token);
            failed(error)
        })
}

/// Stages and gives the file its name, unless `given_up` says before that nobody waits any more:
/// then the temporary file stays until the next attempt.
fn write_at_once(token: &Token, body: &[u8], given_up: &AtomicBool) -> Result<(), SendError> {
    let failed = |error: io::Error| failure(&error, &token.shown());
    let folder = open_folder(&token.dir, &token.folders, true).map_err(failed)?;
    if is_written(&folder, token, body)? {
        clear(&folder, token);
        return disk::sync_folder(&folder).map_err(failed);
    }
    write_temporary(&folder, token, body).map_err(failed)?;
    if given_up.load(Ordering::SeqCst) {
        return Err(failed(io::ErrorKind::TimedOut.into()));
    }
    match give_name(&folder, token) {
        Ok(()) => disk::sync_folder(&folder).map_err(failed),
        Err(error) => {
            clear(&folder, token);
            match disk::is_taken(&error) {
                true => Err(taken(token)),
                false => Err(failed(error)),
            }
        }
    }
}

fn taken(token: &Token) -> SendError {
    SendError::rejected(format!("{} is there already", token.shown()))
}

/// Whether this message's own file has the name already, as after a crash. Rejects the message when
/// somebody else's has it and must not be written over.
fn is_written(folder: &OwnedFd, token: &Token, body: &[u8]) -> Result<bool, SendError> {
    let failed = |error: io::Error| failure(&error, &token.shown());
    if token.exists != Exists::Fail {
        return Ok(false);
    }
    let Some(there) = status(folder, &token.name).map_err(failed)? else {
        return Ok(false);
    };
    if is_own(folder, token, there, body).map_err(failed)? {
        return Ok(true);
    }
    Err(taken(token))
}

/// Removes what a failed attempt left: room on a full disk matters more than it.
fn clear(folder: &OwnedFd, token: &Token) {
    let _ = remove(folder, &token.temporary());
}

/// Writes and syncs the temporary file; the folder is not synced.
fn write_temporary(folder: &OwnedFd, token: &Token, body: &[u8]) -> io::Result<()> {
    let temporary = token.temporary();
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let first = Mode::from_raw_mode(if token.mode.is_some() { 0o600 } else { 0o666 });
    let open = || rustix::fs::openat(folder, &temporary, flags, first);
    let file = match open() {
        // Of an attempt that was cut short.
        Err(Errno::EXIST) => {
            remove(folder, &temporary)?;
            open()?
        }
        other => other?,
    };
    let written = fill(File::from(file), token, body);
    if written.is_err() {
        clear(folder, token);
    }
    written
}

fn fill(mut file: File, token: &Token, body: &[u8]) -> io::Result<()> {
    file.write_all(body)?;
    if let Some(mode) = token.mode {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    }
    // Not every file system can: then content tells (see `is_own`).
    let _ = rustix::fs::fsetxattr(&file, MARK, token.mark().as_bytes(), XattrFlags::empty());
    file.sync_all()
}

/// Gives what was staged its name. Somebody may have taken it away meanwhile: then it is written anew, or, where
/// only an earlier process knew the content, is an error.
fn commit(token: &Token, body: Option<&Bytes>) -> io::Result<()> {
    let folder = open_folder(&token.dir, &token.folders, false)?;
    let temporary = token.temporary();
    if status(&folder, &temporary)?.is_none() && !has_its_name(&folder, token, body)? {
        match body {
            Some(body) => write_temporary(&folder, token, body)?,
            None => {
                return Err(io::Error::other(format!(
                    "{temporary} in its folder, which held it until the message was decided, was taken away by somebody; \
                     once a file of that name is there again it is given its name"
                )));
            }
        }
    }
    finish(&folder, token)
}

/// As [`commit`] after a crash: what was staged and is gone had been given its name, and may have been taken
/// by its reader since.
fn commit_again(token: &Token) -> io::Result<()> {
    finish(&open_folder(&token.dir, &token.folders, false)?, token)
}

/// Whether the file with the name is this message's own.
fn has_its_name(folder: &OwnedFd, token: &Token, body: Option<&Bytes>) -> io::Result<bool> {
    match (status(folder, &token.name)?, body) {
        (None, _) => Ok(false),
        (Some(there), Some(body)) => is_own(folder, token, there, body),
        (Some(_), None) => Ok(marked(folder, &token.name, token)),
    }
}

fn finish(folder: &OwnedFd, token: &Token) -> io::Result<()> {
    let temporary = token.temporary();
    match status(folder, &temporary)? {
        // It has its name.
        None => {}
        // Linked to its name already, by a file system without renames that replace nothing.
        Some(staged) if staged.linked => remove(folder, &temporary)?,
        Some(_) => match give_name(folder, token) {
            // Somebody put a file there after staging. The decision has fallen: nobody's file is
            // replaced and this one gets a number.
            Err(error) if disk::is_taken(&error) => {
                let name = rename_numbered(folder, token, &temporary)?;
                tracing::warn!(file = %token.shown(), written_as = %name, "the name was taken after the message was accepted");
            }
            other => other?,
        },
    }
    disk::sync_folder(folder)
}

/// Gives the temporary file its name; `AlreadyExists` when it is another's and must not be replaced.
fn give_name(folder: &OwnedFd, token: &Token) -> io::Result<()> {
    let temporary = token.temporary();
    match token.exists {
        Exists::Replace | Exists::Append => Ok(rustix::fs::renameat(
            folder,
            &temporary,
            folder,
            &token.name,
        )?),
        Exists::Fail => rename_new(folder, &temporary, &token.name),
        Exists::Number => rename_numbered(folder, token, &temporary).map(drop),
    }
}

fn undo(token: &Token) -> io::Result<()> {
    let folder = match open_folder(&token.dir, &token.folders, false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    remove(&folder, &token.temporary())?;
    disk::sync_folder(&folder)
}

fn rename_numbered(folder: &OwnedFd, token: &Token, temporary: &str) -> io::Result<String> {
    first_free(
        |number| {
            let name = numbered_name(token, number);
            reserve::is_promised(token, &name) || matches!(status(folder, &name), Ok(Some(_)))
        },
        |number| {
            let name = numbered_name(token, number);
            // A repeat after a crash finds the file that it wrote before.
            let last = numbered_name(token, number.saturating_sub(1));
            if number > 0 && marked(folder, &last, token) {
                remove(folder, temporary)?;
                return Ok(last);
            }
            if reserve::is_promised(token, &name) {
                return Err(Errno::EXIST.into());
            }
            rename_new(folder, temporary, &name)?;
            Ok(name)
        },
    )
}

fn numbered_name(token: &Token, number: u64) -> String {
    numbered(token.name.as_ref(), number, 0)
        .to_string_lossy()
        .into_owned()
}

/// Renames within a folder and replaces nothing.
fn rename_new(folder: &OwnedFd, from: &str, to: &str) -> io::Result<()> {
    match rustix::fs::renameat_with(folder, from, folder, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(folder, from, folder, to, AtFlags::empty())?;
            remove(folder, from)
        }
        other => Ok(other?),
    }
}

fn remove(folder: &OwnedFd, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What `stat` says of a name, as far as it matters here.
struct There {
    /// It has another name, too.
    linked: bool,
    regular: bool,
    size: u64,
}

fn status(folder: &OwnedFd, name: &str) -> io::Result<Option<There>> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(There {
            linked: stat.st_nlink > 1,
            regular: rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file(),
            size: stat.st_size as u64,
        })),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a file carries this message's mark.
fn marked(folder: &OwnedFd, name: &str, token: &Token) -> bool {
    matches!(mark(folder, name), Ok(Some(mark)) if mark == token.mark().as_bytes())
}

/// A file's mark; an error where there is none to be had.
fn mark(folder: &OwnedFd, name: &str) -> io::Result<Option<Vec<u8>>> {
    let file = open_existing(folder, name)?;
    let mut buffer = vec![0; 1024];
    match rustix::fs::fgetxattr(&file, MARK, &mut buffer) {
        Ok(length) => {
            buffer.truncate(length);
            Ok(Some(buffer))
        }
        Err(Errno::NODATA) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn open_existing(folder: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(
        folder,
        name,
        flags,
        Mode::empty(),
    )?))
}

/// Whether the file that is there is this message's own.
fn is_own(folder: &OwnedFd, token: &Token, there: There, body: &[u8]) -> io::Result<bool> {
    if !there.regular {
        return Ok(false);
    }
    match mark(folder, &token.name) {
        Ok(mark) => Ok(mark.is_some_and(|mark| mark == token.mark().as_bytes())),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => {
            if there.size != body.len() as u64 {
                return Ok(false);
            }
            let mut content = Vec::with_capacity(body.len());
            open_existing(folder, &token.name)?
                .take(body.len() as u64 + 1)
                .read_to_end(&mut content)?;
            Ok(content == body)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens `dir` and the folders beneath it, none of them through a symbolic link; makes what is
/// missing when `create`.
fn open_folder(dir: &Path, folders: &[String], create: bool) -> io::Result<OwnedFd> {
    if create {
        disk::create_dirs(dir)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut folder = rustix::fs::openat(CWD, dir, flags, Mode::empty())?;
    for name in folders {
        let below = flags | OFlags::NOFOLLOW;
        let next = match rustix::fs::openat(&folder, name, below, Mode::empty()) {
            Err(Errno::NOENT) if create => {
                match rustix::fs::mkdirat(&folder, name, Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                rustix::fs::fsync(&folder)?;
                rustix::fs::openat(&folder, name, below, Mode::empty())
            }
            other => other,
        };
        folder = next.map_err(|error| match error {
            Errno::LOOP | Errno::NOTDIR => io::Error::new(
                io::ErrorKind::NotADirectory,
                format!("'{name}' is a symbolic link or no folder"),
            ),
            error => error.into(),
        })?;
    }
    Ok(folder)
}

/// A file that is appended to: it cannot be taken back.
pub(crate) struct Append {
    pub(crate) dir: PathBuf,
    pub(crate) folders: Vec<String>,
    pub(crate) name: String,
    pub(crate) mode: Option<u32>,
    pub(crate) body: Bytes,
    pub(crate) message: Arc<Message>,
}

impl Call for Append {
    fn run(&self, deadline: Instant) -> BoxFuture<'_, Result<Message, SendError>> {
        let what = shown(&self.dir, &self.folders, &self.name);
        let (dir, folders, name) = (self.dir.clone(), self.folders.clone(), self.name.clone());
        let (mode, body) = (self.mode, self.body.clone());
        Box::pin(async move {
            let act = move || append(&dir, &folders, &name, mode, &body);
            match tokio::time::timeout_at(deadline, crate::take::blocking(act)).await {
                Ok(Ok(Ok(()))) => Ok(self.message.with_body("")),
                Ok(Ok(Err(error))) | Ok(Err(error)) => Err(failure(&error, &what)),
                Err(_) => Err(SendError::unknown(format!(
                    "appending to {what} did not end in time"
                ))
                .timed_out()),
            }
        })
    }
}

/// Appends durably; an error takes back what was written of it.
fn append(
    dir: &Path,
    folders: &[String],
    name: &str,
    mode: Option<u32>,
    body: &[u8],
) -> io::Result<()> {
    let folder = open_folder(dir, folders, true)?;
    let new = status(&folder, name)?.is_none();
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let first = Mode::from_raw_mode(mode.unwrap_or(0o666));
    let mut file = File::from(rustix::fs::openat(&folder, name, flags, first)?);
    file.lock()?;
    if let (Some(mode), true) = (mode, new) {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    }
    let before = file.metadata()?.len();
    let written = file.write_all(body).and_then(|()| file.sync_all());
    if let Err(error) = written {
        file.set_len(before)?;
        return Err(error);
    }
    if new {
        rustix::fs::fsync(&folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use xbus_core::adapter::Class;

    fn token(dir: &Path, name: &str, exists: Exists) -> Token {
        Token {
            dir: dir.to_owned(),
            folders: Vec::new(),
            name: name.to_owned(),
            exists,
            mode: None,
            id: xbus_core::MessageId::new().to_string(),
            target: String::from("archive"),
            owner: owner("bus", "node", "route", "archive"),
        }
    }

    #[test]
    fn only_own_leftovers_of_messages_that_nobody_takes_up_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let own = owner("bus", "node", "route", "archive");
        let other = owner("bus", "node2", "route", "archive");
        let (kept, gone) = (MessageId::new(), MessageId::new());
        let deep = dir.path().join("2026");
        fs::create_dir(&deep).unwrap();
        for name in [
            format!(".xbus-{own}-{kept}"),
            format!(".xbus-{own}-{gone}"),
            format!(".xbus-{other}-{gone}"),
            format!("2026/.xbus-{own}-{gone}"),
            String::from("archive.xml"),
        ] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        sweep(dir.path(), 0, &own, &|id| id == kept);
        assert!(!dir.path().join(format!(".xbus-{own}-{gone}")).exists());
        assert_eq!(
            fs::read_dir(&deep).unwrap().count(),
            1,
            "deeper than it writes"
        );
        sweep(dir.path(), 1, &own, &|id| id == kept);
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 0);
        assert_eq!(names(dir.path()).len(), 4);
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Writes as a target that is alone does.
    async fn write(token: &Token, body: &'static str) -> Result<(), SendError> {
        let staged = StagedFile::new(token.clone(), Some(Bytes::from(body)));
        staged
            .at_once(Instant::now() + std::time::Duration::from_secs(60))
            .await
    }

    /// Writes as one of several targets does.
    async fn write_stepwise(token: &Token, body: &'static str) -> Result<(), SendError> {
        let staged = StagedFile::new(token.clone(), Some(Bytes::from(body)));
        staged.stage().await?;
        staged.commit().await
    }

    #[tokio::test]
    async fn one_that_nobody_waits_for_any_more_gets_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let token = token(dir.path(), "x", Exists::Fail);
        let late = write_at_once(&token, b"late", &AtomicBool::new(true)).unwrap_err();
        assert_eq!(late.class, Class::Outage);
        assert_eq!(names(dir.path()), [token.temporary()]);
        write(&token, "again").await.unwrap();
        assert_eq!(names(dir.path()), ["x"]);
        assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"again");
    }

    #[tokio::test]
    async fn an_attempt_that_failed_leaves_nothing_and_the_name_is_free() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("x")).unwrap();
        let first = token(dir.path(), "x", Exists::Replace);
        let error = write(&first, "no file replaces a folder")
            .await
            .unwrap_err();
        assert_eq!(error.class, Class::Rejected);
        assert_eq!(names(dir.path()), ["x"]);
        fs::remove_dir(dir.path().join("x")).unwrap();
        write(&token(dir.path(), "x", Exists::Fail), "x")
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn nothing_is_visible_before_the_commit_and_nothing_stays_after_undo() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("made/on/the/way");
        let mut token = token(&out, "x.xml", Exists::Fail);
        token.mode = Some(0o640);
        let staged = StagedFile::new(token.clone(), Some(Bytes::from("body")));
        staged.stage().await.unwrap();
        assert_eq!(names(&out), [token.temporary()]);
        staged.undo().await.unwrap();
        staged.undo().await.unwrap();
        assert!(names(&out).is_empty());
        staged.stage().await.unwrap();
        staged.stage().await.unwrap();
        staged.commit().await.unwrap();
        staged.commit().await.unwrap();
        assert_eq!(names(&out), ["x.xml"]);
        assert_eq!(fs::read(out.join("x.xml")).unwrap(), b"body");
        let mode = fs::metadata(out.join("x.xml"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[tokio::test]
    async fn a_token_is_enough_to_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let token = token(dir.path(), "x", Exists::Replace);
        let staged = StagedFile::new(token, Some(Bytes::from("body")));
        staged.stage().await.unwrap();
        let token: Token = serde_json::from_slice(&staged.token()).unwrap();
        let resumed = StagedFile::new(token, None);
        assert!(resumed.stage().await.is_err());
        resumed.commit().await.unwrap();
        assert_eq!(names(dir.path()), ["x"]);
        resumed.commit().await.unwrap();
    }

    #[tokio::test]
    async fn what_somebody_took_away_before_it_had_its_name_does_not_count_as_done() {
        let dir = tempfile::tempdir().unwrap();
        let (out, aside) = (dir.path().join("out"), dir.path().join("aside"));
        let token = token(&out, "x", Exists::Fail);
        let staged = StagedFile::new(token.clone(), Some(Bytes::from("body")));
        staged.stage().await.unwrap();
        fs::rename(&out, &aside).unwrap();
        let error = staged.commit().await.unwrap_err();
        assert_eq!(error.class, Class::Outage);
        fs::create_dir(&out).unwrap();
        // Only an earlier process knew the content.
        let resumed = StagedFile::resumed(token.clone());
        let error = resumed.commit().await.unwrap_err();
        assert!(
            error.detail.contains(&token.temporary()),
            "{}",
            error.detail
        );
        // After a crash it may have had its name, and a reader who took it.
        resumed.commit_again().await.unwrap();
        assert!(names(&out).is_empty());
        staged.commit().await.unwrap();
        assert_eq!(fs::read(out.join("x")).unwrap(), b"body");
        resumed.commit().await.unwrap();
        assert_eq!(names(&out), ["x"]);
    }

    #[tokio::test]
    async fn a_foreign_file_rejects_and_an_own_one_counts_as_done() {
        let dir = tempfile::tempdir().unwrap();
        let first = token(dir.path(), "x", Exists::Fail);
        write(&first, "body").await.unwrap();
        // The same message and target again, as after a crash before the lane heard of it.
        write(&first, "body").await.unwrap();
        write_stepwise(&first, "body").await.unwrap();
        assert_eq!(names(dir.path()), ["x"]);
        let other = token(dir.path(), "x", Exists::Fail);
        let error = write(&other, "other").await.unwrap_err();
        assert_eq!(error.class, Class::Rejected);
        assert_eq!(names(dir.path()), ["x"]);
        assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"body");
        fs::create_dir(dir.path().join("folder")).unwrap();
        let error = write(&token(dir.path(), "folder", Exists::Fail), "x")
            .await
            .unwrap_err();
        assert_eq!(error.class, Class::Rejected);
    }

    #[tokio::test]
    async fn a_name_taken_after_the_decision_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let token = token(dir.path(), "x.xml", Exists::Fail);
        let staged = StagedFile::new(token, Some(Bytes::from("body")));
        staged.stage().await.unwrap();
        fs::write(dir.path().join("x.xml"), "foreign").unwrap();
        staged.commit().await.unwrap();
        assert_eq!(names(dir.path()), ["x-1.xml", "x.xml"]);
        assert_eq!(fs::read(dir.path().join("x.xml")).unwrap(), b"foreign");
    }

    #[tokio::test]
    async fn a_name_that_is_being_written_rejects_the_second() {
        let dir = tempfile::tempdir().unwrap();
        let first = token(dir.path(), "x.xml", Exists::Fail);
        let staged = StagedFile::new(first.clone(), Some(Bytes::from("first")));
        staged.stage().await.unwrap();
        // Another message, and another target of the same message, whose folder is spelled
        // otherwise.
        let mut target = first.clone();
        target.owner = owner("bus", "node", "route", "copy");
        target.target = String::from("copy");
        target.dir = dir.path().join(".");
        for second in [token(dir.path(), "x.xml", Exists::Fail), target] {
            let second = StagedFile::new(second, Some(Bytes::from("second")));
            let error = second.stage().await.unwrap_err();
            assert_eq!(error.class, Class::Rejected);
            assert!(
                error.detail.contains("is being written by another message"),
                "{}",
                error.detail
            );
            second.undo().await.unwrap();
        }
        assert_eq!(names(dir.path()), [first.temporary()]);
        write(&token(dir.path(), "y.xml", Exists::Fail), "other name")
            .await
            .unwrap();
        staged.commit().await.unwrap();
        // From here the file itself says it.
        let late = token(dir.path(), "x.xml", Exists::Fail);
        let error = write(&late, "late").await.unwrap_err();
        assert!(
            error.detail.contains("is there already"),
            "{}",
            error.detail
        );
        assert_eq!(names(dir.path()), ["x.xml", "y.xml"]);
    }

    #[tokio::test]
    async fn a_name_is_free_again_after_undo_and_after_a_stage_that_failed() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedFile::new(
            token(dir.path(), "x", Exists::Fail),
            Some(Bytes::from("undone")),
        );
        staged.stage().await.unwrap();
        staged.undo().await.unwrap();
        write(&token(dir.path(), "x", Exists::Fail), "x")
            .await
            .unwrap();

        let blocked = dir.path().join("blocked");
        fs::write(&blocked, "no folder").unwrap();
        let failed = StagedFile::new(token(&blocked, "x", Exists::Fail), Some(Bytes::new()));
        assert_eq!(failed.stage().await.unwrap_err().class, Class::Outage);
        fs::remove_file(&blocked).unwrap();
        write(&token(&blocked, "x", Exists::Fail), "x")
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn what_waits_to_be_finished_keeps_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = token(dir.path(), "x", Exists::Fail);
        // Staged by an earlier process, which this one knows by the token only.
        fs::write(dir.path().join(first.temporary()), "first").unwrap();
        drop(StagedFile::resumed(first.clone()));
        let second = token(dir.path(), "x", Exists::Fail);
        let error = write(&second, "second").await.unwrap_err();
        assert_eq!(error.class, Class::Rejected);
        // A number gives way to who was promised the name.
        let numbered = token(dir.path(), "x", Exists::Number);
        write(&numbered, "numbered").await.unwrap();
        StagedFile::resumed(first).commit().await.unwrap();
        assert_eq!(names(dir.path()), ["x", "x-1"]);
        assert_eq!(fs::read(dir.path().join("x")).unwrap(), b"first");
    }

    #[tokio::test]
    async fn replace_and_number_do_as_they_say() {
        let dir = tempfile::tempdir().unwrap();
        for body in ["one", "two"] {
            write(&token(dir.path(), "r.txt", Exists::Replace), body)
                .await
                .unwrap();
            let numbered = token(dir.path(), "n.txt", Exists::Number);
            write(&numbered, body).await.unwrap();
            // A repeat of the last one after a crash writes no further file.
            write(&numbered, body).await.unwrap();
            write_stepwise(&numbered, body).await.unwrap();
        }
        assert_eq!(names(dir.path()), ["n-1.txt", "n.txt", "r.txt"]);
        assert_eq!(fs::read(dir.path().join("r.txt")).unwrap(), b"two");
        assert_eq!(fs::read(dir.path().join("n-1.txt")).unwrap(), b"two");
    }

    #[tokio::test]
    async fn no_symbolic_link_leads_out_of_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (out, elsewhere) = (dir.path().join("out"), dir.path().join("elsewhere"));
        fs::create_dir_all(&out).unwrap();
        fs::create_dir_all(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, out.join("sub")).unwrap();
        let mut below = token(&out, "x", Exists::Fail);
        below.folders = vec![String::from("sub")];
        let error = write(&below, "x").await.unwrap_err();
        assert_eq!(error.class, Class::Outage);
        assert!(error.detail.contains("symbolic link"), "{}", error.detail);
        assert!(names(&elsewhere).is_empty());
        // A link in place of the file itself is replaced or refused, never written through.
        let secret = elsewhere.join("secret");
        fs::write(&secret, "secret").unwrap();
        std::os::unix::fs::symlink(&secret, out.join("y")).unwrap();
        assert!(write(&token(&out, "y", Exists::Fail), "x").await.is_err());
        write(&token(&out, "y", Exists::Replace), "x")
            .await
            .unwrap();
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        std::os::unix::fs::symlink(&secret, out.join("z")).unwrap();
        assert!(append(&out, &[], "z", None, b"x").is_err());
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
    }

    #[tokio::test]
    async fn appending_adds_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        for body in ["one\n", "two\n"] {
            let call = Append {
                dir: dir.path().join("log"),
                folders: vec![],
                name: String::from("all.txt"),
                mode: None,
                body: Bytes::from(body),
                message: Arc::new(Message::new(body)),
            };
            let deadline = Instant::now() + std::time::Duration::from_secs(60);
            call.run(deadline).await.unwrap();
        }
        let content = fs::read(dir.path().join("log/all.txt")).unwrap();
        assert_eq!(content, b"one\ntwo\n");
    }
}
