//! The limits beside which the bus is measured with RabbitMQ: small programs over lapin and hyper that
//! do what the bus does, with the same guarantees and nothing else; and what measuring needs.
//!
//! | command | does |
//! |---|---|
//! | `out <amqp> <queue> <prefetch> <at once> <http>` | takes from a queue, posts, acknowledges after 2xx |
//! | `in <port> <amqp> <queue> <status> [file]` | answers a request with `status` when the broker has confirmed its body: persistent, mandatory; with a file it is kept in a log there before |
//! | `sink <port>` | the destination, see `sink.rs` |
//! | `load <http> <connections> <seconds> <count> <size>` | a closed loop of callers; ends after the seconds or the requests, whichever is first |
//! | `declare <amqp> <queue> <kind>`, `delete`, `depth` | a queue; kinds: classic, quorum, lane |
//! | `fill <amqp> <queue> <count> <size>` | publishes numbered messages, confirmed |
//! | `trips <amqp> <queue> <count> <size>` | round trips of the broker: publish and confirm, take and acknowledge, one at a time |
//!
//! `run.py` starts all of it beside the bus and prints the table.
//!
//! Absent on purpose: reconnects, time-outs, metrics, a journal. They are the bus's to pay for.

mod bare;
mod broker;
mod load;
mod log;
mod sink;

use std::{env, error::Error, path::PathBuf};

use tokio::runtime;

pub type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// As in the product.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Fallible<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["out", amqp, queue, prefetch, at_once, to] => many(bare::out(
            amqp.to_owned(),
            queue.to_owned(),
            prefetch.parse()?,
            at_once.parse()?,
            to.parse()?,
        )),
        ["in", port, amqp, queue, status, ref log @ ..] => many(bare::r#in(
            port.parse()?,
            amqp.to_owned(),
            queue.to_owned(),
            status.parse()?,
            log.first().map(PathBuf::from),
        )),
        ["sink", port] => one(sink::serve(port.parse()?)),
        ["load", to, connections, seconds, count, size] => one(load::run(
            to.parse()?,
            connections.parse()?,
            seconds.parse()?,
            count.parse()?,
            size.parse()?,
        )),
        ["declare", amqp, queue, kind] => one(broker::declare(amqp, queue, kind)),
        ["delete", amqp, queue] => one(broker::delete(amqp, queue)),
        ["depth", amqp, queue] => one(broker::depth(amqp, queue)),
        ["fill", amqp, queue, count, size] => {
            one(broker::fill(amqp, queue, count.parse()?, size.parse()?))
        }
        ["trips", amqp, queue, count, size] => many(broker::trips(
            amqp.to_owned(),
            queue.to_owned(),
            count.parse()?,
            size.parse()?,
        )),
        _ => Err("see main.rs for the commands".into()),
    }
}

/// On a runtime like the product's. Spawned, so that the work happens on its threads.
fn many(work: impl Future<Output = Fallible<()>> + Send + 'static) -> Fallible<()> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(runtime.spawn(work))?
}

fn one(work: impl Future<Output = Fallible<()>>) -> Fallible<()> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

/// The body of message `number`: eight digits and padding.
pub fn body(number: u64, size: usize) -> Vec<u8> {
    let mut body = format!("{number:08}").into_bytes();
    body.resize(size.max(8), b'x');
    body
}
