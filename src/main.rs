//! `xbus`: the command.
//!
//! Absent: everything but the way in. What the bus is made of stands in `wiring.rs`, one file a
//! subcommand in `cli/`.

mod cli;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    cli::Cli::parse().run()
}
