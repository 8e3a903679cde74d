//! Programs in Python that speak with the bus: clients and services over libraries that are not ours.

use std::io::BufRead;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// A program of tests/it, to be given arguments and started.
pub fn program(name: &str) -> Command {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let python = root.join(".venv/bin/python");
    assert!(
        python.exists(),
        "the tests need {}: run 'make tools' once",
        python.display()
    );
    let mut command = Command::new(python);
    command.arg(root.join("tests/it").join(name));
    command
}

/// A program that serves a port, which it says in its first line; it ends when dropped.
pub struct Service {
    child: Child,
    pub port: u16,
}

impl Service {
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the service starts");
        let mut line = String::new();
        std::io::BufReader::new(child.stdout.take().expect("its output"))
            .read_line(&mut line)
            .expect("a line");
        let port = line.trim().parse().expect("a port");
        Self { child, port }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
