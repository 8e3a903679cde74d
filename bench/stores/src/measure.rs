//! Figures of this process, from /proc.

use std::fs;
use std::path::Path;

/// CPU seconds of the whole process.
pub struct Cpu(f64);

impl Cpu {
    pub fn now() -> Self {
        Self(seconds("/proc/self/stat"))
    }

    pub fn until_now(&self) -> f64 {
        seconds("/proc/self/stat") - self.0
    }
}

/// CPU seconds of this thread alone.
pub fn thread_seconds() -> f64 {
    // Nanoseconds on the CPU come first.
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanos = text
        .split_whitespace()
        .next()
        .and_then(|n| n.parse::<f64>().ok());
    nanos.unwrap_or_default() / 1e9
}

fn seconds(path: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    // After the name in brackets; user and system time are the 12th and 13th, in hundredths.
    let rest = text.rsplit(')').next().unwrap_or_default();
    let fields: Vec<f64> = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .flat_map(str::parse)
        .collect();
    fields.iter().sum::<f64>() / 100.0
}

/// Bytes of memory that this process has for itself (anonymous, not files).
pub fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// Bytes that a folder takes on disk.
pub fn dir_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(data) if data.is_dir() => sum += dir_bytes(&entry.path()),
            Ok(data) => sum += data.blocks() * 512,
            Err(_) => {}
        }
    }
    sum
}

/// The median of one column.
pub fn median(rows: &[Vec<f64>], column: usize) -> f64 {
    let mut values: Vec<f64> = rows.iter().map(|row| row[column]).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
