//! `xbus schema`: what can be written, for editors and for people.

use std::process::ExitCode;

use crate::wiring;

/// What `schema` takes.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  xbus schema route > route.schema.json\n  xbus schema bus > xbus.schema.json"
)]
pub struct Args {
    /// Of what
    #[arg(value_enum, default_value = "route")]
    what: What,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum What {
    /// JSON Schema of a file in routes/
    Route,
    /// JSON Schema of xbus.yaml
    Bus,
    /// The reference page of both, in Markdown
    Reference,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let kinds = wiring::kinds_for_reference();
    match args.what {
        What::Route => println!("{:#}", xbus_config::schema_of_route(&kinds)),
        What::Bus => println!("{:#}", xbus_config::schema_of_bus(&kinds, wiring::EXTRA)),
        What::Reference => print!("{}", xbus_config::reference(&kinds, wiring::EXTRA)),
    }
    ExitCode::SUCCESS
}
