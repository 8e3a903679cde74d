//! A bus in a folder of its own: the real command as a child process.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use super::{get, wait_for};

/// The command under test.
pub const XBUS: &str = env!("CARGO_BIN_EXE_xbus");

/// An installation folder.
pub struct Installation {
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
}

impl Installation {
    /// An empty one, with listeners on free ports.
    pub fn new() -> Self {
        let installation = Self::bare();
        installation.file(
            "xbus.yaml",
            "name: test\nhttp: { listen: \"127.0.0.1:0\" }\nadmin: { listen: \"127.0.0.1:0\" }\njournal: { payloads: all }\n",
        );
        installation
    }

    /// One without xbus.yaml.
    pub fn bare() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("xbus-it-")
            .tempdir()
            .expect("a temporary folder");
        Self {
            dir,
            env: Vec::new(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file; folders are made.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        fs::write(path, content).expect("a file");
        self
    }

    /// Writes `routes/NAME.yaml`.
    pub fn route(&self, name: &str, yaml: &str) -> &Self {
        self.file(&format!("routes/{name}.yaml"), yaml)
    }

    /// Writes a script.
    pub fn script(&self, name: &str, rhai: &str) -> &Self {
        self.file(&format!("transforms/{name}"), rhai)
    }

    /// Sets a variable for every command.
    pub fn env(&mut self, name: &str, value: &str) -> &mut Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs a command to its end.
    pub fn xbus(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("xbus runs")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(XBUS);
        command
            .args(arguments)
            .current_dir(self.path())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Starts the bus and waits until it takes messages.
    #[track_caller]
    pub fn start(&self) -> Bus<'_> {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path().join("bus.log"))
            .expect("a log");
        let _ = fs::remove_file(self.path().join("data/listening.json"));
        let child = self
            .command(&["run", "."])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("xbus starts");
        let mut bus = Bus {
            installation: self,
            child: Some(child),
            admin: SocketAddr::from(([127, 0, 0, 1], 0)),
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        bus.wait_until_ready();
        bus
    }

    /// What the bus has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("bus.log")).unwrap_or_default()
    }

    /// The files in a folder, by name, those of the bus itself left out.
    pub fn files(&self, dir: &str) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.path().join(dir))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        files
    }

    pub fn names(&self, dir: &str) -> Vec<String> {
        self.files(dir)
            .iter()
            .filter_map(|path| path.file_name())
            .map(|name| name.to_string_lossy().into_owned())
            .collect()
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path().join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// A running bus; killed when dropped.
pub struct Bus<'a> {
    installation: &'a Installation,
    child: Option<Child>,
    pub admin: SocketAddr,
    pub http: SocketAddr,
}

impl Bus<'_> {
    #[track_caller]
    fn wait_until_ready(&mut self) {
        let file = self.installation.path().join("data/listening.json");
        let listening = wait_for("the bus to listen", || {
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                panic!("xbus ended with {status}:\n{}", self.installation.log());
            }
            let text = fs::read_to_string(&file).ok()?;
            serde_json::from_str::<serde_json::Value>(&text).ok()
        });
        let address = |value: &serde_json::Value| {
            value
                .as_str()
                .and_then(|text| text.parse().ok())
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        self.admin = address(&listening["admin"]);
        self.http = address(&listening["http"]["default"]);
        wait_for("the bus to be ready", || {
            (get(self.admin, "/health/ready").status == 200).then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.kill_child();
    }

    fn kill_child(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        let mut child = self.child.take().expect("running");
        signal(child.id(), "TERM");
        wait_for("the bus to stop", || child.try_wait().expect("waitable"))
    }

    /// Runs a client command against it and reads its JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let mut all = arguments.to_vec();
        all.push("--json");
        let output = self.installation.xbus(&all);
        assert!(
            output.status.success(),
            "xbus {}: {}\n{}{}",
            all.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stdout)))
    }

    /// What the API answers at `path`.
    #[track_caller]
    pub fn json_of(&self, path: &str) -> serde_json::Value {
        get(self.admin, path).json()
    }

    /// What `xbus queues --json` says of one queue.
    #[track_caller]
    pub fn queue(&self, name: &str) -> serde_json::Value {
        self.json(&["queues"])
            .as_array()
            .expect("a list")
            .iter()
            .find(|queue| queue["name"] == name)
            .cloned()
            .unwrap_or(serde_json::Value::Null)
    }

    #[track_caller]
    pub fn wait_for_depth(&self, queue: &str, depth: u64) {
        wait_for(&format!("depth {depth} of {queue}"), || {
            let status = self.queue(queue);
            (status["depth"].as_u64().unwrap_or(0) == depth).then_some(())
        });
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("/proc");
        status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
            .expect("VmRSS")
    }
}

impl Drop for Bus<'_> {
    fn drop(&mut self) {
        self.kill_child();
        if std::thread::panicking() {
            eprintln!("--- the bus's log ---\n{}", tail(&self.installation.log()));
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .expect("kill");
    assert!(status.success());
}
