//! The files of an installation folder: which there are, their texts and their trees.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use xbus_core::Problems;
use xbus_core::problem::{Place, nearest};
use xbus_core::spec::{Node, Raw, Scalar};

use crate::environment::{Lookup, Mode, Replace};
use crate::hidden::Judged;
use crate::yaml;

/// Largest file that is read as YAML, in bytes.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Deepest folder beneath `routes/`.
const MAX_FOLDERS: usize = 32;

/// What was read.
#[derive(Default)]
pub(crate) struct Files {
    /// Texts by path relative to the folder.
    texts: BTreeMap<Arc<Path>, String>,
    /// Values that nobody knows, and about which everything was said.
    unknown: BTreeSet<Place>,
    /// Files that were found to be there: many routes name the same ones.
    found: Mutex<HashSet<PathBuf>>,
    /// What of them may be quoted.
    pub(crate) judged: Judged,
}

/// What reading a file takes.
pub(crate) struct Reader<'a> {
    pub(crate) root: &'a Path,
    pub(crate) mode: Mode,
    pub(crate) lookup: Lookup<'a>,
    pub(crate) problems: &'a Problems,
}

impl Files {
    /// Reads one file of the folder into a tree; nothing when it cannot be read or is empty.
    pub(crate) fn read(&mut self, path: &Path, reader: &Reader<'_>) -> Option<Node> {
        let file: Arc<Path> = Arc::from(path);
        let text = text_of(&reader.root.join(path), &file, reader.problems)?;
        let document = yaml::parse(&file, &text, reader.problems);
        self.texts.insert(file, text);
        self.unknown.extend(document.unknown);
        if document.empty {
            reader.problems.warning(
                &Place::file(path),
                "empty-file",
                "the file holds nothing",
                "take it away, or write into it",
            );
        }
        let mut root = document.root?;
        Replace {
            root: reader.root,
            mode: reader.mode,
            lookup: reader.lookup,
            problems: reader.problems,
            unknown: &mut self.unknown,
        }
        .within(&mut root);
        Some(root)
    }

    /// Lets go of what is only known to tell of mistakes in a file.
    pub(crate) fn forget(&mut self, path: &Path) {
        self.texts.remove(path);
        self.judged.forget(path);
    }

    /// The text of a file of the folder `root`.
    pub(crate) fn text(&self, root: &Path, path: &Path) -> Option<String> {
        let read = || std::fs::read_to_string(root.join(path)).ok();
        self.texts.get(path).cloned().or_else(read)
    }

    /// Whether there is a file of that path.
    pub(crate) fn exists(&self, path: &Path) -> bool {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.contains(path) || (path.is_file() && found.insert(path.to_owned()))
    }

    /// Whether the value is unknown and was complained about already.
    pub(crate) fn is_unknown(&self, node: &Node) -> bool {
        !self.unknown.is_empty() && self.unknown.contains(&node.place)
    }

    /// Whether there is such a value in the tree.
    pub(crate) fn has_unknown(&self, node: &Node) -> bool {
        if self.unknown.is_empty() {
            return false;
        }
        self.unknown.contains(&node.place)
            || match &node.raw {
                Raw::List(items) => items.iter().any(|item| self.has_unknown(item)),
                Raw::Map(entries) => entries.iter().any(|(_, value)| self.has_unknown(value)),
                Raw::Null | Raw::Scalar(_) => false,
            }
    }

    /// The place of a byte of a scalar, where the file has the text letter by letter: plain and
    /// quoted scalars of one line, and blocks after `|`. Else the scalar's own place.
    pub(crate) fn place_within(&self, node: &Node, scalar: &Scalar, at: usize) -> Place {
        self.exact(&node.place, scalar, at)
            .unwrap_or_else(|| node.place.clone())
    }

    fn exact(&self, place: &Place, scalar: &Scalar, at: usize) -> Option<Place> {
        let before = scalar.text.get(..at)?;
        let text = self.texts.get(&place.file)?;
        let mut lines = text.lines().skip(place.line.checked_sub(1)?);
        let line = lines.next()?;
        let start = line.char_indices().nth(place.column.checked_sub(1)?)?.0;
        let mut rest = &line[start..];
        let mut column = place.column;
        if rest.starts_with(['|', '>']) {
            let number = before.matches('\n').count();
            let first = lines.clone().find(|line| !line.trim().is_empty())?;
            let indent = first.len() - first.trim_start_matches(' ').len();
            let wanted = scalar.text.lines().nth(number)?;
            let found = lines.nth(number)?.get(indent..)?;
            let into = before.rsplit('\n').next().unwrap_or_default();
            return (found == wanted).then(|| Place {
                file: place.file.clone(),
                line: place.line + 1 + number,
                column: indent + into.chars().count() + 1,
            });
        }
        if rest.starts_with(['"', '\'']) {
            rest = &rest[1..];
            column += 1;
        }
        rest.starts_with(&scalar.text).then(|| Place {
            file: place.file.clone(),
            line: place.line,
            column: column + before.chars().count(),
        })
    }
}

fn text_of(path: &Path, file: &Arc<Path>, problems: &Problems) -> Option<String> {
    let place = Place::file(file);
    let read = std::fs::File::open(path).and_then(|file| {
        let size = file.metadata()?.len();
        let mut bytes = Vec::with_capacity(size.min(MAX_FILE) as usize + 1);
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(std::io::Error::other(format!(
                "it is larger than {} MiB",
                MAX_FILE / 1024 / 1024
            )));
        }
        Ok(bytes)
    });
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => {
            problems.error(
                &place,
                "unreadable-file",
                format!("the file cannot be read: {error}"),
                "let the bus's user read it",
            );
            return None;
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let last = good.rsplit(|byte| *byte == b'\n').next().unwrap_or(good);
            problems.error(
                &Place {
                    line,
                    column: String::from_utf8_lossy(last).chars().count() + 1,
                    ..place
                },
                "not-utf-8",
                "the file is not in UTF-8",
                "save it in UTF-8",
            );
            None
        }
    }
}

/// The route files beneath `routes/`, in order, relative to the folder. Hidden files are left out;
/// a file that ends in `.yml` gets a warning, as nobody would notice that it is not read.
pub(crate) fn routes(root: &Path, problems: &Problems) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    walk(
        root,
        Path::new("routes"),
        MAX_FOLDERS,
        &mut seen,
        &mut found,
        problems,
    );
    found.sort();
    found
}

fn walk(
    root: &Path,
    folder: &Path,
    depth: usize,
    seen: &mut HashSet<PathBuf>,
    found: &mut Vec<PathBuf>,
    problems: &Problems,
) {
    let absolute = root.join(folder);
    // A link may lead back up: each folder is visited once.
    let fresh = absolute
        .canonicalize()
        .is_ok_and(|real| depth > 0 && seen.insert(real));
    if !fresh {
        return;
    }
    let entries = match std::fs::read_dir(&absolute) {
        Ok(entries) => entries,
        Err(error) => {
            problems.error(
                &Place::file(folder),
                "unreadable-file",
                format!("the folder cannot be read: {error}"),
                "let the bus's user read it",
            );
            return;
        }
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let path = folder.join(&name);
        let is_folder = match entry.file_type() {
            Ok(kind) if !kind.is_symlink() => kind.is_dir(),
            _ => root.join(&path).is_dir(),
        };
        if is_folder {
            walk(root, &path, depth - 1, seen, found, problems);
        } else {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("yaml") => found.push(path),
                Some("yml") => problems.warning(
                    &Place::file(&path),
                    "ignored-file",
                    "the file is not read: route files end in .yaml",
                    format!("rename it to {}", path.with_extension("yaml").display()),
                ),
                _ => {}
            }
        }
    }
}

/// A sentence that names the file in the same folder that was probably meant.
pub(crate) fn nearest_file(base: &Path, wanted: &Path) -> Option<String> {
    let folder = base.join(wanted.parent().unwrap_or(Path::new("")));
    let names: Vec<String> = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    let name = wanted.file_name()?.to_str()?;
    let near = nearest(name, names.iter().map(String::as_str))?;
    Some(wanted.with_file_name(near).display().to_string())
}
