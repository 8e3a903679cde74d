//! The `done` and `failed` folders: where files go when the bus is through with them.
//!
//! Everything here blocks.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

use crate::disk;
use crate::names::{first_free, numbered};

/// What becomes of a file whose message was accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    /// It is moved into this folder.
    Move(PathBuf),
    /// It is deleted.
    Delete,
}

/// Why a file failed: the content of `NAME.error.json`.
#[derive(Serialize, Debug)]
pub(crate) struct Reason<'a> {
    /// The message's id, as in the journal.
    pub(crate) id: String,
    pub(crate) route: &'a str,
    /// The step or target that failed; `receive` when the file could not be read.
    pub(crate) step: &'a str,
    /// The fault's code.
    pub(crate) code: &'a str,
    pub(crate) reason: &'a str,
    /// How often it was tried.
    pub(crate) attempts: u32,
    /// When it was given up, RFC 3339.
    pub(crate) at: String,
}

/// Takes an accepted file away. It is durable when the folder of `claimed` and the one that is
/// given, where the file now lies, are [synced](sync). `path` is its path beneath the watched
/// folder, whose sub-folders are kept. A file that is gone already is fine.
pub(crate) fn finish(claimed: &Path, path: &Path, done: &Done) -> io::Result<Option<PathBuf>> {
    let result = match done {
        Done::Delete => fs::remove_file(claimed).map(|()| None),
        Done::Move(folder) => {
            let (folder, name) = target(folder, path)?;
            let moved = first_free(
                |n| disk::is_there(&folder.join(numbered(&name, n, 0))),
                |n| relocate(claimed, &folder.join(numbered(&name, n, 0))),
            );
            moved.map(|()| Some(folder))
        }
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !disk::is_there(claimed) => {
            Ok(None)
        }
        other => other,
    }
}

/// Syncs a folder that files were moved from or to. One that is gone has nothing to keep.
pub(crate) fn sync(folder: &Path) -> io::Result<()> {
    match disk::sync_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Moves a failed file into `failed`, with its reason beside it, which is there first.
pub(crate) fn fail(claimed: &Path, path: &Path, failed: &Path, why: &Reason<'_>) -> io::Result<()> {
    if !disk::is_there(claimed) {
        return Ok(());
    }
    let (folder, name) = target(failed, path)?;
    let json = serde_json::to_vec_pretty(why)?;
    let place = |n| {
        let file = numbered(&name, n, 0);
        let error = error_name(&file);
        (folder.join(file), folder.join(error))
    };
    let taken = |n| {
        let (file, error) = place(n);
        disk::is_there(&file) || disk::is_there(&error)
    };
    first_free(taken, |n| {
        if taken(n) {
            return Err(Errno::EXIST.into());
        }
        let (file, error) = place(n);
        write_new(&folder, &error, &json)?;
        relocate(claimed, &file).inspect_err(|_| {
            let _ = fs::remove_file(&error);
        })
    })?;
    disk::sync_dir(&folder)?;
    disk::sync_dir(claimed.parent().unwrap_or(Path::new("")))
}

/// `NAME.error.json`, cut where that would be too long.
fn error_name(file: &OsStr) -> OsString {
    const SUFFIX: &str = ".error.json";
    let mut name = numbered(file, 0, SUFFIX.len());
    name.push(SUFFIX);
    name
}

/// The folder for a path beneath `base`, made when missing, and its name there.
fn target(base: &Path, path: &Path) -> io::Result<(PathBuf, OsString)> {
    let folder = match path.parent() {
        Some(below) if !below.as_os_str().is_empty() => base.join(below),
        _ => base.to_owned(),
    };
    disk::create_dirs(&folder)?;
    let name = path.file_name().ok_or(Errno::INVAL)?;
    Ok((folder, name.to_owned()))
}

/// Moves without replacing. To another file system: copies, syncs, and only then deletes.
fn relocate(from: &Path, to: &Path) -> io::Result<()> {
    match disk::move_new(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy_over(from, to),
        other => other,
    }
}

fn copy_over(from: &Path, to: &Path) -> io::Result<()> {
    let folder = to.parent().unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".xbus-{}", xbus_core::MessageId::new()));
    let copied = (|| {
        fs::copy(from, &temporary)?;
        let file = File::options().write(true).open(&temporary)?;
        file.set_modified(fs::metadata(from)?.modified()?)?;
        file.sync_all()?;
        disk::move_new(&temporary, to)?;
        disk::sync_dir(folder)
    })();
    if copied.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    copied?;
    fs::remove_file(from)
}

fn write_new(folder: &Path, to: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = folder.join(format!(".xbus-{}", xbus_core::MessageId::new()));
    let written = (|| {
        let mut file = File::create_new(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        disk::move_new(&temporary, to)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason() -> Reason<'static> {
        Reason {
            id: String::from("id"),
            route: "r",
            step: "s",
            code: "client",
            reason: "bad",
            attempts: 1,
            at: String::from("2026-11-22T08:00:00Z"),
        }
    }

    #[test]
    fn a_taken_name_gets_a_number_and_sub_folders_stay() {
        let dir = tempfile::tempdir().unwrap();
        let done = Done::Move(dir.path().join(".done"));
        for body in ["1", "2", "3"] {
            let claimed = dir.path().join("claimed");
            fs::write(&claimed, body).unwrap();
            finish(&claimed, Path::new("sub/x.xml"), &done).unwrap();
        }
        for (name, body) in [("x.xml", "1"), ("x-1.xml", "2"), ("x-2.xml", "3")] {
            let path = dir.path().join(".done/sub").join(name);
            assert_eq!(fs::read_to_string(path).unwrap(), body);
        }
        finish(&dir.path().join("claimed"), Path::new("x"), &done).unwrap();
    }

    #[test]
    fn a_failed_file_has_its_reason_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let failed = dir.path().join(".failed");
        let claimed = dir.path().join("claimed");
        for _ in 0..2 {
            fs::write(&claimed, "x").unwrap();
            fail(&claimed, Path::new("x.xml"), &failed, &reason()).unwrap();
        }
        for name in ["x.xml", "x-1.xml"] {
            assert!(failed.join(name).exists());
            let json = fs::read(failed.join(format!("{name}.error.json"))).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
            let keys: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            assert_eq!(
                keys,
                ["id", "route", "step", "code", "reason", "attempts", "at"]
            );
        }
        assert_eq!(fs::read_dir(&failed).unwrap().count(), 4);
    }

    #[test]
    fn the_longest_name_fails_too() {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("{}.xml", "n".repeat(251));
        let claimed = dir.path().join(&name);
        fs::write(&claimed, "x").unwrap();
        let failed = dir.path().join(".failed");
        fail(&claimed, Path::new(&name), &failed, &reason()).unwrap();
        assert!(failed.join(&name).exists());
        assert_eq!(fs::read_dir(&failed).unwrap().count(), 2);
    }
}
