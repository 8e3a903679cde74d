//! The scan of a watched folder, which is the truth about what there is: names are streamed and
//! only the first [`MOST`] in order are kept, so that a folder of any size costs bounded memory.
//!
//! Absent: symbolic links, pipes, sockets and devices. Only regular files are taken.

use std::collections::{BinaryHeap, HashMap};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use globset::GlobMatcher;

use crate::disk::Stamp;
use crate::names::TEMPORARY;

/// How many files one scan looks at closely.
pub(crate) const MOST: usize = 10_000;

/// When a file is complete.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Ready {
    /// It has not changed for so long.
    Stable(Duration),
    /// A file of its name plus this suffix lies beside it.
    Marker(String),
    /// It has its name.
    Named,
}

/// In which order files are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Order {
    /// By the bytes of the name (with its sub-folder).
    Name,
    /// By the time of the last change, then by name.
    Modified,
}

/// What to look for, and where.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    pub(crate) dir: PathBuf,
    pub(crate) pattern: GlobMatcher,
    /// The pattern has a `/`: it is held against the path beneath `dir`, not the name alone.
    pub(crate) whole_path: bool,
    pub(crate) recursive: bool,
    pub(crate) ready: Ready,
    pub(crate) order: Order,
    /// Folders that are not entered: `done` and `failed`.
    pub(crate) skip: Vec<PathBuf>,
}

/// A file that could be taken; in the order in which it should be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Found {
    /// Zero when the order is by name.
    modified: i128,
    /// Path beneath the watched folder.
    pub(crate) path: PathBuf,
}

/// What one scan saw.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    /// In order, at most [`MOST`]; how they are where it is told from that whether they are complete.
    pub(crate) found: Vec<(Found, Option<Stamp>)>,
    /// There was more than that.
    pub(crate) more: bool,
}

impl Watch {
    /// Whether a path (beneath the watched or the claim folder) is one of this watch's files.
    pub(crate) fn wants(&self, path: &Path) -> bool {
        let Some(name) = path.file_name() else {
            return false;
        };
        if name.as_bytes().starts_with(TEMPORARY.as_bytes()) {
            return false;
        }
        if let Ready::Marker(suffix) = &self.ready
            && name.as_bytes().ends_with(suffix.as_bytes())
        {
            return false;
        }
        if self.whole_path {
            self.pattern.is_match(path)
        } else {
            self.pattern.is_match(Path::new(name))
        }
    }

    /// Whether a file of this path would be taken if it were written there as it is, without a marker;
    /// told from the names alone, so that symbolic links are not seen through.
    pub(crate) fn reaches(&self, file: &Path) -> bool {
        let (Some(file), Some(dir)) = (plain(file), plain(&self.dir)) else {
            return false;
        };
        let Ok(path) = file.strip_prefix(dir) else {
            return false;
        };
        let folders = path.ancestors().skip(1);
        let mut folders = folders.filter(|folder| !folder.as_os_str().is_empty());
        !matches!(self.ready, Ready::Marker(_))
            && folders.all(|folder| self.recursive && self.enters(folder))
            && self.wants(path)
    }

    /// Looks through the folder. Blocks.
    pub(crate) fn scan(&self) -> io::Result<Seen> {
        let mut first: BinaryHeap<Found> = BinaryHeap::new();
        let mut more = false;
        let mut folders = vec![PathBuf::new()];
        while let Some(folder) = folders.pop() {
            let entries = match fs::read_dir(self.dir.join(&folder)) {
                Ok(entries) => entries,
                // A sub-folder may go while we look.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && !folder.as_os_str().is_empty() =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                let path = folder.join(entry.file_name());
                let Ok(kind) = entry.file_type() else {
                    continue;
                };
                if kind.is_dir() && self.recursive && self.enters(&path) {
                    folders.push(path);
                } else if kind.is_file() && self.wants(&path) && self.is_marked(&path) {
                    let modified = match self.order {
                        Order::Name => 0,
                        Order::Modified => match entry.metadata() {
                            Ok(meta) => Stamp::of(&meta).modified,
                            Err(_) => continue,
                        },
                    };
                    first.push(Found { modified, path });
                    if first.len() > MOST {
                        first.pop();
                        more = true;
                    }
                }
            }
        }
        let watched = matches!(self.ready, Ready::Stable(_));
        let found = first
            .into_sorted_vec()
            .into_iter()
            .filter_map(|found| {
                if !watched {
                    return Some((found, None));
                }
                let meta = fs::symlink_metadata(self.dir.join(&found.path)).ok()?;
                meta.is_file().then(|| (found, Some(Stamp::of(&meta))))
            })
            .collect();
        Ok(Seen { found, more })
    }

    fn enters(&self, path: &Path) -> bool {
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_bytes().starts_with(b"."));
        !hidden && !self.skip.contains(&self.dir.join(path))
    }

    fn is_marked(&self, path: &Path) -> bool {
        match &self.ready {
            Ready::Marker(suffix) => {
                fs::symlink_metadata(self.dir.join(with_suffix(path, suffix))).is_ok()
            }
            _ => true,
        }
    }
}

/// An absolute path without `.` and `..`; nothing when the working directory is gone.
pub(crate) fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in std::path::absolute(path).ok()?.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    Some(plain)
}

/// The path with `suffix` at the end of its name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    bytes.extend_from_slice(suffix.as_bytes());
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

/// Every regular file beneath `folder`, sorted by its path there, except in folders that begin
/// with `.xbus-`.
pub(crate) fn files_beneath(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(below) = folders.pop() {
        for entry in fs::read_dir(folder.join(&below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_file() {
                files.push(path);
            } else if kind.is_dir()
                && !entry
                    .file_name()
                    .as_bytes()
                    .starts_with(TEMPORARY.as_bytes())
            {
                folders.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Remembers how long files have kept their size and time, to tell which are complete.
#[derive(Default)]
pub(crate) struct Ripening(HashMap<PathBuf, (Stamp, Instant)>);

impl Ripening {
    /// The files of a scan that are complete, in order, and when the next one will be. What the
    /// scan did not see is forgotten.
    pub(crate) fn sort(
        &mut self,
        found: Vec<(Found, Option<Stamp>)>,
        ready: &Ready,
        now: Instant,
    ) -> (Vec<(PathBuf, Option<Stamp>)>, Option<Instant>) {
        let Ready::Stable(quiet) = ready else {
            let all = found.into_iter().map(|(found, stamp)| (found.path, stamp));
            return (all.collect(), None);
        };
        let mut before = std::mem::take(&mut self.0);
        let mut ripe = Vec::new();
        let mut next = None;
        for (Found { path, .. }, stamp) in found {
            let Some(stamp) = stamp else { continue };
            let since = match before.remove(&path) {
                Some((old, since)) if old == stamp => since,
                _ => now,
            };
            self.0.insert(path.clone(), (stamp, since));
            let at = since + *quiet;
            if at <= now {
                ripe.push((path, Some(stamp)));
            } else {
                next = Some(next.map_or(at, |other: Instant| other.min(at)));
            }
        }
        (ripe, next)
    }
}

#[cfg(test)]
pub(crate) fn watch(dir: &Path, pattern: &str, ready: Ready) -> Watch {
    Watch {
        dir: dir.to_owned(),
        pattern: globset::Glob::new(pattern).unwrap().compile_matcher(),
        whole_path: pattern.contains('/'),
        recursive: false,
        ready,
        order: Order::Name,
        skip: vec![dir.join("kept"), dir.join(".done")],
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    fn names(watch: &Watch) -> Vec<PathBuf> {
        let seen = watch.scan().unwrap();
        seen.found
            .into_iter()
            .map(|(found, _)| found.path)
            .collect()
    }

    #[test]
    fn odd_names_are_found_and_ours_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let odd = [
            OsStr::from_bytes(b"\xff\xfe.xml"),
            OsStr::new("new\nline.xml"),
            OsStr::new(".hidden.xml"),
            OsStr::new("-rf *.xml"),
            OsStr::new("ümlaut $(x).xml"),
        ];
        let long = format!("{}.xml", "l".repeat(251));
        for name in odd.iter().copied().chain([OsStr::new(&long)]) {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        fs::write(dir.path().join(".xbus-temp.xml"), "x").unwrap();
        fs::write(dir.path().join("other.txt"), "x").unwrap();
        fs::create_dir(dir.path().join("folder.xml")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link.xml")).unwrap();
        let found = names(&watch(dir.path(), "*.xml", Ready::Named));
        assert_eq!(found.len(), 6, "{found:?}");
        assert!(odd.iter().all(|name| found.contains(&PathBuf::from(name))));
    }

    #[test]
    fn a_marker_makes_ready_and_is_never_taken() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.xml", "a.xml.done", "b.xml", "c.done"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let watch = watch(dir.path(), "*", Ready::Marker(String::from(".done")));
        assert_eq!(names(&watch), [PathBuf::from("a.xml")]);
    }

    #[test]
    fn sub_folders_only_when_asked_and_never_done() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["sub/deep", "kept", ".done", ".xbus-claim/n"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
            fs::write(dir.path().join(folder).join("x.xml"), "x").unwrap();
        }
        let mut watch = watch(dir.path(), "*.xml", Ready::Named);
        assert!(names(&watch).is_empty());
        watch.recursive = true;
        assert_eq!(names(&watch), [PathBuf::from("sub/deep/x.xml")]);
    }

    #[test]
    fn what_would_be_taken_is_told_from_the_path() {
        let root = Path::new("/bus");
        let mut watch = watch(&root.join("./x/../in"), "*.xml", Ready::Named);
        watch.skip = vec![watch.dir.join("kept")];
        let reaches = |watch: &Watch, path: &str| watch.reaches(&root.join(path));
        for (path, flat, deep) in [
            ("in/a.xml", true, true),
            ("in/../in/a.xml", true, true),
            ("/bus/in/a.xml", true, true),
            ("in/a.csv", false, false),
            ("in/.xbus-a.xml", false, false),
            ("inner/a.xml", false, false),
            ("a.xml", false, false),
            ("in/sub/deep/a.xml", false, true),
            ("in/.done/a.xml", false, false),
            ("in/sub/.done/a.xml", false, false),
            ("in/kept/sub/a.xml", false, false),
        ] {
            watch.recursive = false;
            assert_eq!(reaches(&watch, path), flat, "{path}");
            watch.recursive = true;
            assert_eq!(reaches(&watch, path), deep, "{path}, recursive");
        }
        watch.ready = Ready::Marker(String::from(".ok"));
        assert!(!reaches(&watch, "in/a.xml"), "it waits for its marker");
    }

    #[test]
    fn the_order_is_by_name_or_by_time() {
        let dir = tempfile::tempdir().unwrap();
        for (name, age) in [("b", 10), ("a", 5), ("c", 20)] {
            let file = fs::File::create(dir.path().join(name)).unwrap();
            let time = std::time::SystemTime::now() - Duration::from_secs(age);
            file.set_modified(time).unwrap();
        }
        let mut watch = watch(dir.path(), "*", Ready::Named);
        assert_eq!(names(&watch), ["a", "b", "c"].map(PathBuf::from));
        watch.order = Order::Modified;
        assert_eq!(names(&watch), ["c", "b", "a"].map(PathBuf::from));
    }

    #[test]
    fn a_file_ripens_while_it_does_not_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        fs::write(&file, "half").unwrap();
        let ready = Ready::Stable(Duration::from_secs(2));
        let watch = watch(dir.path(), "*", ready.clone());
        let mut ripening = Ripening::default();
        let start = Instant::now();
        let mut look = |seconds: u64| {
            let seen = watch.scan().unwrap();
            let now = start + Duration::from_secs(seconds);
            ripening.sort(seen.found, &ready, now)
        };
        assert_eq!(look(0), (vec![], Some(start + Duration::from_secs(2))));
        fs::write(&file, "half, and the rest").unwrap();
        assert_eq!(look(2), (vec![], Some(start + Duration::from_secs(4))));
        let (ripe, next) = look(4);
        assert_eq!((ripe.len(), next), (1, None));
    }
}
