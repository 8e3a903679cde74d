//! The command's subcommands, one file each, and how they end.
//!
//! Exit codes: 0 done, 1 the thing asked about failed, 2 wrong use, 3 no bus reachable.

mod alerts;
mod check;
mod client;
mod init;
mod log;
mod messages;
mod output;
mod queues;
mod run;
mod schema;
mod send;
mod wsdl;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An integration bus: receives, routes, transforms and delivers messages between systems that
/// cannot talk to each other.
#[derive(Parser)]
#[command(
    name = "xbus",
    version,
    propagate_version = true,
    after_help = "Examples:\n  xbus init shop          make a small installation\n  xbus check shop         say everything that is wrong with it\n  xbus run shop           run it\n  xbus queues --dir shop  what waits, and why\n\nExit codes: 0 done, 1 the thing asked about failed, 2 wrong use, 3 no bus reachable."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a small installation that runs at once
    Init(init::Args),
    /// Say everything that is wrong with an installation, and how to mend it
    Check(check::Args),
    /// Run an installation until SIGTERM
    Run(run::Args),
    /// Hand a message to a route of the running bus, and show what happened
    Send(send::Args),
    /// Show what waits for delivery; retry, park, release or drop it
    Queues(queues::Args),
    /// Find messages, show one, replay one, decide one that is in doubt
    Messages(messages::Args),
    /// Show what has failed and is not mended; try whether administrators are told
    Alerts(alerts::Args),
    /// Write a route and a mapping for each operation of a WSDL
    Wsdl(wsdl::Args),
    /// Print the JSON Schema of route files or xbus.yaml, or the reference page
    Schema(schema::Args),
}

impl Cli {
    /// Runs the command to its end.
    pub fn run(self) -> ExitCode {
        match self.command {
            Command::Init(args) => asking(init::run(args)),
            Command::Check(args) => check::run(&args),
            Command::Run(args) => run::run(&args),
            Command::Send(args) => asking(send::run(args)),
            Command::Queues(args) => asking(queues::run(args)),
            Command::Messages(args) => asking(messages::run(args)),
            Command::Alerts(args) => asking(alerts::run(args)),
            Command::Wsdl(args) => wsdl::run(&args),
            Command::Schema(args) => schema::run(&args),
        }
    }
}

/// Runs a client command; it waits for one answer and needs no more than one thread.
fn asking(work: impl Future<Output = ExitCode>) -> ExitCode {
    match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => output::finish(
            Err(output::Failure::failed(format!("no runtime: {error}"))),
            false,
        ),
    }
}

/// Reads a line that begins with the name of its subcommand.
#[cfg(test)]
fn parse<A: clap::Args>(line: &str) -> Result<A, clap::Error> {
    let command = A::augment_args(clap::Command::new("xbus"));
    let mut found = command.try_get_matches_from(line.split(' '))?;
    A::from_arg_matches_mut(&mut found)
}
