//! What the fuzz targets (tests/fuzz) need of this crate beside its public parts. No part of its API.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{OpenFiles, RealDisk};
use crate::pages::Pages;
use crate::record::{
    Changes, FRAME_HEAD, SEGMENT_HEAD, begin_frame, place_frame, read_journal, read_message,
    seal_frame, view,
};
use crate::segment::{segment_file, segment_head};
use crate::{Options, checkpoint, open};

/// Reads the changes of one frame.
pub fn changes(bytes: &[u8]) {
    for (tag, _, body) in Changes::new(bytes) {
        let _ = view(tag, body);
        let _ = read_journal(body);
        let _ = read_message(tag, &Bytes::copy_from_slice(body));
    }
}

/// Opens a store in `dir` (empty) whose first segment holds `bytes`: as they are, or as the changes
/// of frames whose checksums are right.
pub fn log(dir: &Path, bytes: &[u8], sealed: bool) {
    let mut segment = segment_head(1).to_vec();
    if sealed {
        for (number, changes) in bytes.split(|byte| *byte == 0xff).take(16).enumerate() {
            let mut frame = Vec::new();
            begin_frame(&mut frame);
            frame.extend_from_slice(changes);
            place_frame(&mut frame, number as u64 + 1);
            seal_frame(&mut frame, segment.len() as u32);
            debug_assert!(frame.len() >= FRAME_HEAD && segment.len() >= SEGMENT_HEAD);
            segment.extend_from_slice(&frame);
        }
    } else {
        segment.extend_from_slice(bytes);
    }
    if std::fs::write(dir.join(segment_file(1)), segment).is_err() {
        return;
    }
    let options = Options {
        segment_size: 4096,
        reserve: 0,
        ..Options::default()
    };
    drop(open::open(Arc::new(RealDisk::new(dir)), options));
}

/// Reads a checkpoint whose checksum is right.
pub fn checkpoint(dir: &Path, bytes: &[u8]) {
    let mut whole = checkpoint::MAGIC.to_vec();
    whole.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    whole.extend_from_slice(bytes);
    let disk = Arc::new(RealDisk::new(dir));
    let files = Arc::new(OpenFiles::new(disk.clone()));
    drop(checkpoint::decode(&whole, Pages::new(disk, files, 4, 1)));
}
