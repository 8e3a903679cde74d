//! `xbus`: the command.
//!
//! Absent: everything but the way in. What the bus is made of stands in `wiring.rs`, one file a
//! subcommand in `cli/`.

mod cli;
mod slice;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

/// Messages are made on one thread and dropped on another; the C library's allocator locks there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::Cli::parse().run()
}
