//! A RabbitMQ of its own: data, cookie, ports and epmd in a temporary folder, nothing shared with
//! a broker that the machine may run as a service.
//!
//! The virtual machine is a child of the test. A guard beside it, a shell that reads a pipe which
//! only the test process holds, ends broker and epmd and removes the folder when the pipe closes:
//! on drop, at the end of the process (which covers [`Rabbit::shared`]) and after a kill -9 of it.
//!
//! Absent: clusters and the management plugin. `XBUS_IT_RABBITMQ` may name the folder of another
//! RabbitMQ (with `sbin` and `plugins`); default is Debian's.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::bus::signal;
use super::{ports_in_a_row, wait_for};

/// The longest that a start may take, on a machine that has other work.
const START: Duration = Duration::from_secs(120);

/// Ends everything when its standard input does. `$1`: the folder, `$2`: the port of epmd.
const GUARD: &str = r#"
trap '' HUP INT TERM
epmd -address 127.0.0.1 -port "$2" </dev/null >/dev/null 2>&1 &
epmd=$!
cat >/dev/null
vm=$(cat "$1/vm.pid" 2>/dev/null)
if [ -n "$vm" ]; then
    kill -9 "$vm" 2>/dev/null
    n=0
    while readlink "/proc/$vm/exe" >/dev/null && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
fi
kill -9 $epmd
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"#;

/// What a broker is started with.
#[derive(Default)]
pub struct Options {
    conf: Vec<String>,
    advanced: Option<String>,
    tls: bool,
}

impl Options {
    pub fn new() -> Self {
        Self::default()
    }

    /// A line of rabbitmq.conf.
    pub fn conf(mut self, line: &str) -> Self {
        self.conf.push(line.to_owned());
        self
    }

    /// The whole of advanced.config, Erlang terms.
    pub fn advanced(mut self, terms: &str) -> Self {
        self.advanced = Some(terms.to_owned());
        self
    }

    /// Closes a channel that holds a message unacknowledged for longer. RabbitMQ looks every minute
    /// unless told otherwise; here each half second. Takes the place of `advanced`.
    pub fn consumer_timeout(self, time: Duration) -> Self {
        self.conf(&format!("consumer_timeout = {}", time.as_millis()))
            .advanced("[{rabbit, [{channel_tick_interval, 500}]}].")
    }

    /// Also listens with TLS, see [`Rabbit::tls_url`] and [`Rabbit::ca`].
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Starts it and waits until it takes connections.
    #[track_caller]
    pub fn start(self) -> Rabbit {
        Rabbit::start_with(&self)
    }
}

/// A running broker; with its epmd and its folder gone when dropped.
pub struct Rabbit {
    dir: PathBuf,
    /// The first of ten ports: AMQP, AMQP over TLS, epmd, distribution, the tools.
    base: u16,
    /// The last of them, held so that other processes look for ports elsewhere from the beginning.
    _taken: TcpListener,
    vm: Mutex<Option<Child>>,
    guard: Child,
}

impl Rabbit {
    /// A private one, to be broken at will.
    #[track_caller]
    pub fn start() -> Self {
        Options::new().start()
    }

    /// The one of this process, for tests that break nothing; each in its own [`Rabbit::vhost`].
    #[track_caller]
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Rabbit> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    #[track_caller]
    fn start_with(options: &Options) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("xbus-rabbit-")
            .tempdir()
            .expect("a temporary folder");
        let (base, taken) = ports_in_a_row();
        lay_out(dir.path(), base, options).expect("the broker's files");
        let guard = Command::new("sh")
            .args(["-c", GUARD, "rabbit-guard"])
            .arg(dir.path())
            .arg((base + 2).to_string())
            .current_dir("/")
            .env("HOME", dir.path())
            .env_remove("ERL_EPMD_PORT")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh starts");
        // From here on the guard removes it.
        let rabbit = Self {
            dir: dir.keep(),
            base,
            _taken: taken,
            vm: Mutex::new(None),
            guard,
        };
        // Before the broker looks for it, else it starts one as a daemon.
        wait_for("epmd to listen", || {
            TcpStream::connect(("127.0.0.1", base + 2)).ok()
        });
        rabbit.run();
        rabbit
    }

    pub fn port(&self) -> u16 {
        self.base
    }

    pub fn tls_port(&self) -> u16 {
        self.base + 1
    }

    /// The default vhost, as guest.
    pub fn url(&self) -> String {
        self.url_of("guest", "guest", "/")
    }

    /// The same through TLS; the certificate is for `localhost`.
    pub fn tls_url(&self) -> String {
        format!("amqps://guest:guest@localhost:{}/%2f", self.tls_port())
    }

    pub fn url_of(&self, user: &str, password: &str, vhost: &str) -> String {
        let vhost = vhost.replace('/', "%2f");
        format!("amqp://{user}:{password}@127.0.0.1:{}/{vhost}", self.base)
    }

    /// PEM file of the authority that signed the TLS listener's certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca.pem")
    }

    /// Its folder, which is also the HOME of all its processes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the broker has logged.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join("broker.log")).unwrap_or_default())
            .into_owned()
    }

    /// A new vhost, in which guest may do everything; deleted when dropped.
    #[track_caller]
    pub fn vhost(&self) -> Vhost<'_> {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        let name = format!("it-{}", COUNT.fetch_add(1, Relaxed));
        self.eval(&format!(
            "ok = rabbit_vhost:add(<<\"{name}\">>, <<\"it\">>)"
        ));
        self.permit("guest", &name, [".*", ".*", ".*"]);
        Vhost { rabbit: self, name }
    }

    /// Adds a user without any permission.
    #[track_caller]
    pub fn add_user(&self, user: &str, password: &str) {
        self.eval(&format!(
            "ok = rabbit_auth_backend_internal:add_user(<<\"{user}\">>, <<\"{password}\">>, <<\"it\">>)"
        ));
    }

    /// What a user may configure, write and read in a vhost: patterns, empty for nothing.
    #[track_caller]
    pub fn permit(&self, user: &str, vhost: &str, [configure, write, read]: [&str; 3]) {
        self.eval(&format!(
            "ok = rabbit_auth_backend_internal:set_permissions(<<\"{user}\">>, <<\"{vhost}\">>, \
             <<\"{configure}\">>, <<\"{write}\">>, <<\"{read}\">>, <<\"it\">>)"
        ));
    }

    /// Sets off the memory alarm, which blocks every connection that publishes, or ends it.
    #[track_caller]
    pub fn memory_alarm(&self, on: bool) {
        let share = if on { "0.0" } else { "0.9" };
        self.eval(&format!(
            "vm_memory_monitor:set_vm_memory_high_watermark({share})"
        ));
        wait_for("the memory alarm to change", || {
            let alarms = self.eval("rabbit_alarm:get_local_alarms()");
            (alarms.contains("memory") == on).then_some(())
        });
    }

    /// Closes every client's connection from the broker's side: 320, CONNECTION_FORCED.
    #[track_caller]
    pub fn close_connections(&self) {
        self.close_where("_", "_");
    }

    /// `vhost` and `name` are patterns, the latter of the beginning of the client's name.
    #[track_caller]
    fn close_where(&self, vhost: &str, name: &str) {
        self.eval(&format!(
            "lists:foreach(fun(P) -> \
               case catch [rabbit_networking:connection_info(P, [vhost]), \
                   rabbit_misc:table_lookup(proplists:get_value(client_properties, \
                     rabbit_networking:connection_info(P, [client_properties])), <<\"connection_name\">>)] of \
                 [[{{vhost, {vhost}}}], {name}] -> catch rabbit_networking:close_connection(P, \"closed by the test\"); \
                 _ -> ok \
               end end, rabbit_networking:connections())"
        ));
    }

    /// How many clients are connected.
    #[track_caller]
    pub fn connections(&self) -> usize {
        let text = self.eval("length(rabbit_networking:connections())");
        text.parse().unwrap_or_else(|_| panic!("{text}"))
    }

    /// Evaluates Erlang in the broker and gives the value as text. About 0.1 s, while `rabbitmqctl`
    /// takes seconds.
    #[track_caller]
    pub fn eval(&self, expression: &str) -> String {
        static COUNT: AtomicU16 = AtomicU16::new(0);
        // The broker turns away a second caller of the same name, which by default is the user's.
        let name = format!("call{}", COUNT.fetch_add(1, Relaxed));
        let mut child = self
            .command("erl_call")
            .args(["-h", &name, "-n", &self.node(), "-e"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("erl_call starts");
        let mut stdin = child.stdin.take().expect("piped");
        stdin
            .write_all(format!("{expression}.\n").as_bytes())
            .expect("written");
        drop(stdin);
        let output = child.wait_with_output().expect("erl_call ends");
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        text.strip_prefix("{ok, ")
            .and_then(|rest| rest.strip_suffix('}'))
            .unwrap_or_else(|| {
                panic!(
                    "{expression}: {text} {}",
                    String::from_utf8_lossy(&output.stderr)
                )
            })
            .to_owned()
    }

    /// Runs `rabbitmqctl` and gives what it prints.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let output = self
            .command(self.dir.join("sbin/rabbitmqctl"))
            .arg("--quiet")
            .args(arguments)
            .output()
            .expect("rabbitmqctl starts");
        assert!(
            output.status.success(),
            "rabbitmqctl {}: {}\n{}{}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Has the broker write what it knows of its queues to disk. Ra, which keeps quorum queues, puts
    /// the name of a new one into a table that is saved a second later or so: RabbitMQ 3.10.8 killed
    /// before that brings the queue back without its confirmed messages and without a leader, so
    /// that consuming and publishing never end. Bindings wait in Mnesia's log in the same way, and a
    /// queue without its binding gets nothing. Call this between declaring and [`Rabbit::kill`]
    /// unless that is what is tested.
    #[track_caller]
    pub fn settle(&self) {
        self.eval(
            "ok = mnesia:sync_log(), dumped = mnesia:dump_log(), \
             lists:foreach(fun dets:sync/1, dets:all())",
        );
    }

    /// kill -9 of the virtual machine. [`Rabbit::restart`] brings it back.
    #[track_caller]
    pub fn kill(&self) {
        let child = self.vm.lock().expect("unpoisoned").take();
        let mut child = child.expect("a running broker");
        child.kill().expect("killed");
        child.wait().expect("waitable");
        self.forget();
    }

    /// SIGTERM, which the broker takes as an orderly stop, and waits for the end.
    #[track_caller]
    pub fn stop(&self) -> ExitStatus {
        let child = self.vm.lock().expect("unpoisoned").take();
        let mut child = child.expect("a running broker");
        signal(child.id(), "TERM");
        let status = wait_for("the broker to stop", || child.try_wait().expect("waitable"));
        self.forget();
        status
    }

    /// Starts it again with the same data on the same port; stops it before when it runs.
    #[track_caller]
    pub fn restart(&self) {
        if self.vm.lock().expect("unpoisoned").is_some() {
            self.stop();
        }
        self.run();
    }

    /// SIGSTOP: connections stay open and nothing is answered.
    #[track_caller]
    pub fn pause(&self) {
        signal(self.pid(), "STOP");
    }

    /// SIGCONT.
    #[track_caller]
    pub fn resume(&self) {
        signal(self.pid(), "CONT");
    }

    /// The process id of the virtual machine.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        let vm = self.vm.lock().expect("unpoisoned");
        vm.as_ref().expect("a running broker").id()
    }

    fn forget(&self) {
        let _ = fs::remove_file(self.dir.join("vm.pid"));
    }

    fn node(&self) -> String {
        format!("it{}@localhost", self.base)
    }

    /// A command with the environment of this broker and nothing else.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.dir)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", (self.base + 2).to_string())
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_DIST_PORT", (self.base + 3).to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MIN", (self.base + 4).to_string())
            .env("RABBITMQ_CTL_DIST_PORT_MAX", (self.base + 8).to_string())
            .env("RABBITMQ_SCRIPTS_DIR", self.dir.join("sbin"))
            .env("RABBITMQ_MNESIA_BASE", self.dir.join("data"))
            .env("RABBITMQ_LOG_BASE", self.dir.join("log"))
            .env("RABBITMQ_LOGS", "-")
            .env(
                "RABBITMQ_ENABLED_PLUGINS_FILE",
                self.dir.join("enabled_plugins"),
            )
            .env("RABBITMQ_CONFIG_FILE", self.dir.join("rabbitmq.conf"))
            .env(
                "RABBITMQ_ADVANCED_CONFIG_FILE",
                self.dir.join("advanced.config"),
            )
            .env("RABBITMQ_CONF_ENV_FILE", self.dir.join("rabbitmq-env.conf"))
            .current_dir(&self.dir)
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    fn run(&self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.join("broker.log"))
            .expect("a log");
        // With RABBITMQ_ALLOW_INPUT each program replaces the one before, so that the child of the
        // test is the virtual machine itself and not a shell around it.
        let child = self
            .command("sh")
            .args(["-c", "echo $$ >vm.pid; exec sbin/rabbitmq-server -noinput"])
            .env("RABBITMQ_ALLOW_INPUT", "1")
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("sh starts");
        *self.vm.lock().expect("unpoisoned") = Some(child);
        let deadline = Instant::now() + START;
        while !self.shakes_hands() {
            let ended = {
                let mut vm = self.vm.lock().expect("unpoisoned");
                let child = vm.as_mut().expect("a running broker");
                child.try_wait().expect("waitable")
            };
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "RabbitMQ does not start ({ended:?}):\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether it answers the protocol header with a method frame, `connection.start`
    /// (AMQP 0-9-1, 2.2.4).
    fn shakes_hands(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.base)) else {
            return false;
        };
        let mut kind = [0];
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .is_ok()
            && stream.write_all(b"AMQP\x00\x00\x09\x01").is_ok()
            && stream.read_exact(&mut kind).is_ok()
            && kind == [1]
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            eprintln!("--- RabbitMQ's log ---\n{tail}");
        }
        let vm = match self.vm.get_mut() {
            Ok(vm) => vm.take(),
            Err(poisoned) => poisoned.into_inner().take(),
        };
        if let Some(mut child) = vm {
            let _ = child.kill();
            let _ = child.wait();
            self.forget();
        }
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// A vhost of its own; deleted with all that is in it when dropped.
pub struct Vhost<'a> {
    rabbit: &'a Rabbit,
    name: String,
}

impl Vhost<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// As guest.
    pub fn url(&self) -> String {
        self.rabbit.url_of("guest", "guest", &self.name)
    }

    /// Closes the connections to this vhost from the broker's side.
    #[track_caller]
    pub fn close_connections(&self) {
        self.close_where("_");
    }

    /// Closes those of one node.
    #[track_caller]
    pub fn close_connections_of(&self, node: &str) {
        self.close_where(&format!("{{_, <<\"test/{node}/\", _/binary>>}}"));
    }

    #[track_caller]
    fn close_where(&self, name: &str) {
        let vhost = format!("<<\"{}\">>", self.name);
        self.rabbit.close_where(&vhost, name);
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let name = &self.name;
            self.rabbit
                .eval(&format!("rabbit_vhost:delete(<<\"{name}\">>, <<\"it\">>)"));
        }
    }
}

/// The processes that have `dir` as their HOME: a broker's, with all that it has started.
pub fn processes(dir: &Path) -> Vec<u32> {
    let home = format!("HOME={}", dir.display());
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .split(|byte| *byte == 0)
                .any(|variable| variable == home.as_bytes())
        })
        .collect()
}

/// Writes what the broker reads.
fn lay_out(dir: &Path, base: u16, options: &Options) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, symlink};

    let root = std::env::var_os("XBUS_IT_RABBITMQ").map_or_else(debian, PathBuf::from);
    // Erlang looks for each of thousands of modules in every folder of `plugins`; with only those
    // of the core a start takes half of the time.
    symlink(root.join("sbin"), dir.join("sbin"))?;
    symlink(root.join("escript"), dir.join("escript"))?;
    fs::create_dir(dir.join("plugins"))?;
    for entry in fs::read_dir(root.join("plugins"))? {
        let entry = entry?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        if !text.starts_with("rabbitmq_") || text.starts_with("rabbitmq_prelaunch") {
            symlink(entry.path(), dir.join("plugins").join(name))?;
        }
    }
    let mut conf = format!(
        "listeners.tcp.1 = 127.0.0.1:{base}\n\
         disk_free_limit.absolute = 1MB\n\
         log.console.level = info\n"
    );
    if options.tls {
        certificates(dir)?;
        conf.push_str(&format!(
            "listeners.ssl.1 = 127.0.0.1:{port}\n\
             ssl_options.cacertfile = {dir}/ca.pem\n\
             ssl_options.certfile = {dir}/server.pem\n\
             ssl_options.keyfile = {dir}/server.key\n\
             ssl_options.verify = verify_none\n\
             ssl_options.fail_if_no_peer_cert = false\n",
            port = base + 1,
            dir = dir.display()
        ));
    }
    for line in &options.conf {
        conf.push_str(line);
        conf.push('\n');
    }
    fs::write(dir.join("rabbitmq.conf"), conf)?;
    fs::write(
        dir.join("advanced.config"),
        options.advanced.as_deref().unwrap_or("[]."),
    )?;
    fs::write(dir.join("enabled_plugins"), "[].")?;
    fs::write(dir.join("rabbitmq-env.conf"), "")?;
    let mut cookie = [0; 16];
    fs::File::open("/dev/urandom")?.read_exact(&mut cookie)?;
    let cookie: String = cookie.iter().map(|byte| format!("{byte:02X}")).collect();
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(dir.join(".erlang.cookie"))?
        .write_all(cookie.as_bytes())
}

fn debian() -> PathBuf {
    let script = Path::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
    fs::canonicalize(script)
        .ok()
        .and_then(|script| Some(script.parent()?.parent()?.to_owned()))
        .unwrap_or_else(|| panic!("no {}: `make tools` installs it", script.display()))
}

/// An authority and a certificate for `localhost`.
fn certificates(dir: &Path) -> std::io::Result<()> {
    let error = std::io::Error::other::<rcgen::Error>;
    let mut authority = rcgen::CertificateParams::new(Vec::new()).map_err(error)?;
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "authority of a test");
    let key = rcgen::KeyPair::generate().map_err(error)?;
    let root = authority.self_signed(&key).map_err(error)?;
    let issuer = rcgen::Issuer::new(authority, key);
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let server_key = rcgen::KeyPair::generate().map_err(error)?;
    let server = rcgen::CertificateParams::new(names)
        .and_then(|params| params.signed_by(&server_key, &issuer))
        .map_err(error)?;
    fs::write(dir.join("ca.pem"), root.pem())?;
    fs::write(dir.join("server.pem"), server.pem())?;
    fs::write(dir.join("server.key"), server_key.serialize_pem())
}
