//! The files of benchmark 8, and the loop that is their limit: read, write beside, sync, rename, and the
//! source out of the way.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use crate::Fallible;

/// Makes `count` files of `size` bytes; each begins with its number, so that none is like another.
pub fn make(folder: &Path, count: u32, size: usize) -> Fallible<()> {
    fs::create_dir_all(folder)?;
    for number in 0..count {
        let mut content = format!("{number:06}\n").into_bytes();
        content.resize(size, b'x');
        fs::write(folder.join(format!("{number:06}.txt")), content)?;
    }
    Ok(())
}

/// Moves every file of `from` to `to` and prints the seconds that it took. What was moved lies in `done`.
pub fn move_all(from: &Path, to: &Path, done: &Path) -> Fallible<()> {
    fs::create_dir_all(to)?;
    fs::create_dir_all(done)?;
    let begun = Instant::now();
    let mut names = Vec::new();
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            names.push(entry.file_name());
        }
    }
    names.sort();
    for name in &names {
        let content = fs::read(from.join(name))?;
        let unfinished = to.join(".unfinished");
        let mut file = File::create(&unfinished)?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(unfinished, to.join(name))?;
        fs::rename(from.join(name), done.join(name))?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("{{\"count\": {}, \"seconds\": {seconds}}}", names.len());
    Ok(())
}
