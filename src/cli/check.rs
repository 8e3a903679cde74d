//! `xbus check`: everything that is wrong, at once.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use xbus_config::Mode;

use crate::wiring;

/// What `check` takes.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  xbus check\n  xbus check /srv/bus --format json\n\nExit codes: 0 no error (warnings may be), 1 an error."
)]
pub struct Args {
    /// The installation folder
    #[arg(default_value = ".")]
    dir: PathBuf,
    /// Lines for people, or one JSON document
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum, PartialEq)]
enum Format {
    Human,
    Json,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let (_, problems) = wiring::load(&args.dir, Mode::Check);
    if args.json || args.format == Format::Json {
        println!("{:#}", xbus_config::to_json(&problems));
    } else {
        let colour = std::io::stdout().is_terminal();
        print!("{}", xbus_config::render(&problems, &args.dir, colour));
    }
    if xbus_config::has_errors(&problems) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
