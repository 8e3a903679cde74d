//! The limits beside which the bus is measured: small programs over the same libraries that do what
//! the bus does and nothing else; and what measuring needs.
//!
//! | command | does |
//! |---|---|
//! | `proxy streaming\|buffered <port> <to>` | hands a request on and its answer back |
//! | `router <port> <to> <to>` | stops at `/Envelope/Body/order/country` and picks the destination: the first for `DE` |
//! | `script <port> <to>` | XML → quick-xml → rhai → XML, handed on |
//! | `chain <port> <to>` | two invokes, the script on the way to the second, two distributes, an acknowledgement |
//! | `log <port> <file> synced\|unsynced` | answers 202 when the body is in a preallocated log with group commit |
//! | `destination <port>` | an echo that counts, see `destination.rs` |
//! | `load …` | callers of which each sends a lane of numbered messages, see `load.rs` |
//! | `files make\|move …` | the files of benchmark 8, and the loop that is their limit |
//! | `journal <folder> <messages>` | a store's journal with so many messages, quickly |
//!
//! A port of `<to>` is one of this machine's. Each program has one thread for HTTP, which was the
//! fastest shape where load and destination share two cores with it.
//!
//! Absent on purpose: time-outs, limits, ids, metrics, a journal, graceful stop. They are the bus's to pay for.

mod chain;
mod destination;
mod files;
mod journal;
mod load;
mod log;
mod order;
mod proxy;
mod router;
mod script;
mod server;

use std::{env, error::Error};

/// Whatever went wrong, for the runner's eyes.
pub type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Fallible<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["proxy", "streaming", port, to] => proxy::streaming(port.parse()?, to.parse()?),
        ["proxy", "buffered", port, to] => proxy::buffered(port.parse()?, to.parse()?),
        ["router", port, german, other] => {
            router::run(port.parse()?, german.parse()?, other.parse()?)
        }
        ["script", port, to] => script::run(port.parse()?, to.parse()?),
        ["chain", port, to] => chain::run(port.parse()?, to.parse()?),
        ["log", port, file, how @ ("synced" | "unsynced")] => {
            log::run(port.parse()?, file.as_ref(), how == "synced")
        }
        ["destination", port] => destination::run(port.parse()?),
        ["load", ref words @ ..] => load::run(load::Load::read(words)?),
        ["files", "make", folder, count, size] => {
            files::make(folder.as_ref(), count.parse()?, size.parse()?)
        }
        ["files", "move", from, to, done] => {
            files::move_all(from.as_ref(), to.as_ref(), done.as_ref())
        }
        ["journal", folder, messages] => journal::fill(folder.as_ref(), messages.parse()?),
        _ => Err("see the head of main.rs".into()),
    }
}
