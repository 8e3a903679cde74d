//! What a script's variables hold, measured while it runs.
//!
//! rhai measures results of operations, but not what grows by assignment to an index
//! (`map[key] = text`). Every few accesses to variables all of them are measured here.

use std::cell::Cell;

use rhai::{Array, Blob, Dynamic, EvalAltResult, EvalContext, ImmutableString, Map, Position};

use crate::Limits;

/// Accesses to variables between two measurements, at most and at least.
const SELDOM: usize = 256;
const OFTEN: usize = 16;
/// The texts of all variables together may have this many times the size of one.
const TEXTS: usize = 4;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(SELDOM) };
}

/// Begins a run.
pub(crate) fn begin() {
    LEFT.with(|left| left.set(SELDOM));
}

/// Elements and bytes of a value.
#[derive(Default)]
struct Size {
    elements: usize,
    bytes: usize,
}

fn measure(value: &Dynamic, size: &mut Size, limit: usize) {
    size.elements += 1;
    if size.elements > limit {
        return;
    }
    if let Some(text) = value.read_lock::<ImmutableString>() {
        size.bytes = size.bytes.saturating_add(text.len());
    } else if let Some(array) = value.read_lock::<Array>() {
        for item in array.iter() {
            if size.elements > limit {
                return;
            }
            measure(item, size, limit);
        }
    } else if let Some(map) = value.read_lock::<Map>() {
        for (key, item) in map.iter() {
            if size.elements > limit {
                return;
            }
            size.bytes = size.bytes.saturating_add(key.len());
            measure(item, size, limit);
        }
    } else if let Some(blob) = value.read_lock::<Blob>() {
        size.bytes = size.bytes.saturating_add(blob.len());
    }
}

/// Called at each access to a variable.
pub(crate) fn check(context: &EvalContext, limits: &Limits) -> Result<(), Box<EvalAltResult>> {
    let left = LEFT.with(|left| {
        let now = left.get().saturating_sub(1);
        left.set(now);
        now
    });
    if left > 0 {
        return Ok(());
    }
    let limit = limits.array_size.saturating_add(limits.map_size).max(16);
    let mut all = Size::default();
    let this = context.this_ptr();
    for value in context
        .scope()
        .iter_raw()
        .map(|(_, _, value)| value)
        .chain(this)
    {
        let mut one = Size::default();
        measure(value, &mut one, limit);
        if one.elements > limit {
            return Err(too_large("Size of array/map"));
        }
        all.elements += one.elements;
        all.bytes = all.bytes.saturating_add(one.bytes);
    }
    if all.bytes > limits.string_size.saturating_mul(TEXTS) {
        return Err(too_large("Length of all texts"));
    }
    // Much text: look again soon. Many elements and little text: looking is what costs.
    let next = if all.bytes > 64 << 10 {
        OFTEN.max(all.elements / 4)
    } else {
        SELDOM
    };
    LEFT.with(|left| left.set(next.min(SELDOM)));
    Ok(())
}

fn too_large(what: &str) -> Box<EvalAltResult> {
    Box::new(EvalAltResult::ErrorDataTooLarge(
        what.to_owned(),
        Position::NONE,
    ))
}
