//! `xbus init`: a small installation that runs at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::output::{self, Failure};

/// Make a small installation folder that runs at once
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  xbus init my-bus                 makes the folder with one route, from HTTP to a file
  xbus run my-bus                  runs it

A folder that holds something already is left as it is.
Exit codes: 0 done, 1 the folder is not empty or cannot be written, 2 wrong use.")]
pub struct Args {
    /// The folder to make; it must be empty if it exists
    dir: PathBuf,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// What a new installation holds, by path.
const FILES: [(&str, &str); 5] = [
    ("xbus.yaml", XBUS),
    ("routes/hello.yaml", ROUTE),
    ("transforms/hello.rhai", SCRIPT),
    ("README.md", README),
    (".gitignore", "data/\nout/\n"),
];

const XBUS: &str = r#"# The bus: its listeners and where it keeps messages. Every key has a default.
name: hello-bus
store: data/
http: { listen: "127.0.0.1:8080" }
admin: { listen: "127.0.0.1:9090", token: "${XBUS_ADMIN_TOKEN:-}" }   # no token: this machine only
"#;

const ROUTE: &str = r#"route: hello
description: Takes a greeting as JSON over HTTP and keeps it as a file

receive:
  http: { path: /hello }

distribute:
  - name: out
    transform: hello.rhai
    file: { dir: out, name: "{{ id }}.json" }
"#;

const SCRIPT: &str = r#"// Makes the file's content from the message. The last value is the new body; a map becomes JSON.
if body.name == () {
    fail("client", "a name is missing: send {\"name\": \"Ada\"}");
}
#{
    greeting: "Hello, " + body.name + "!",
    message: id,
    received: received_at
}
"#;

const README: &str = r#"# A small bus

One route, from HTTP through a script to a file:

    routes/hello.yaml        the route
    transforms/hello.rhai    its script
    xbus.yaml                listeners and store

Start it in this folder:

    xbus check
    xbus run

Send it a message from another terminal, and look at what came of it:

    curl -i -H 'Content-Type: application/json' -d '{"name": "Ada"}' http://127.0.0.1:8080/hello
    cat out/*.json
    xbus messages
    xbus queues

Leave the name out to see a fault. Change the script, send the signal HUP to the bus (its process id
is in `data/listening.json`), and the next message takes the new one.
"#;

/// Runs the command.
pub async fn run(args: Args) -> ExitCode {
    let json = args.json;
    output::finish(execute(&args), json)
}

fn execute(args: &Args) -> Result<(), Failure> {
    let dir = args.dir.display();
    if let Ok(mut entries) = fs::read_dir(&args.dir)
        && entries.next().is_some()
    {
        return Err(Failure::failed(format!("the folder {dir} is not empty"))
            .help("name a new folder, or one that is empty"));
    }
    write(&args.dir).map_err(|error| Failure::failed(format!("{dir} cannot be made: {error}")))?;
    if args.json {
        let files: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        output::print_json(&json!({ "dir": dir.to_string(), "files": files }));
    } else {
        output::print(&format!(
            "Made {dir}: one route, from HTTP through a script to a file.\n\n"
        ));
        output::print(&format!("Next: xbus run {dir}\n"));
        output::print(
            "then: curl -i -H 'Content-Type: application/json' -d '{\"name\": \"Ada\"}' http://127.0.0.1:8080/hello\n",
        );
    }
    Ok(())
}

fn write(dir: &Path) -> io::Result<()> {
    for (path, text) in FILES {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        // Never over something that came meanwhile.
        let mut file = fs::File::create_new(path)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(dir: &Path) -> Result<(), Failure> {
        execute(&Args {
            dir: dir.into(),
            json: true,
        })
    }

    #[test]
    fn a_new_folder_is_made_and_a_full_one_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        init(&new).unwrap();
        for (path, text) in FILES {
            assert_eq!(fs::read_to_string(new.join(path)).unwrap(), text);
        }
        fs::write(new.join("xbus.yaml"), "mine").unwrap();
        assert_eq!(init(&new).unwrap_err().code, output::FAILED);
        assert_eq!(fs::read_to_string(new.join("xbus.yaml")).unwrap(), "mine");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert_eq!(init(&file).unwrap_err().code, output::FAILED);
        fs::create_dir(dir.path().join("empty")).unwrap();
        init(&dir.path().join("empty")).unwrap();
    }
}
