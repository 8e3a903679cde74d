//! A Dovecot of its own: IMAP and POP3, each plain, with STARTTLS and with TLS, on free ports, with
//! its mailboxes as Maildirs in a temporary folder. Every user exists; the password is `secret`.
//!
//! Absent: delivery agents. A mail arrives when its file is put into `new`.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::bus::signal;
use super::{free_port, wait_for};

/// The running server; it ends, with its folder, when dropped.
pub struct Dovecot {
    child: Option<Child>,
    folder: tempfile::TempDir,
    pub imap: u16,
    pub imaps: u16,
    pub pop3: u16,
    pub pop3s: u16,
    /// Who owns the mails: never root, whom Dovecot lets no mail have.
    owner: Option<(u32, u32)>,
}

impl Dovecot {
    pub fn start() -> Self {
        Self::with("")
    }

    /// With further lines of configuration.
    pub fn with(more: &str) -> Self {
        assert!(
            Path::new("/usr/sbin/dovecot").exists(),
            "the tests need Dovecot: run 'make tools' once"
        );
        let folder = tempfile::Builder::new()
            .prefix("xbus-dovecot-")
            .tempdir()
            .expect("a folder");
        // Its processes run as other users.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        let mut server = Self {
            child: None,
            owner: account("mail").filter(|_| is_root()),
            folder,
            imap: free_port(),
            imaps: free_port(),
            pop3: free_port(),
            pop3s: free_port(),
        };
        server.make_dir(&server.mail());
        let key = rcgen::generate_simple_self_signed(vec![String::from("localhost")])
            .expect("a certificate");
        server.write("cert.pem", &key.cert.pem());
        server.write("key.pem", &key.signing_key.serialize_pem());
        server.write("dovecot.conf", &(server.configuration() + more));
        server.launch();
        server
    }

    fn configuration(&self) -> String {
        let dir = self.folder.path().display();
        let user = Command::new("id").arg("-un").output().expect("id");
        let user = String::from_utf8_lossy(&user.stdout).trim().to_owned();
        let (owner, internal) = match self.owner {
            Some((uid, gid)) => (format!("uid={uid} gid={gid}"), String::new()),
            None => (
                format!("uid={user} gid={user}"),
                format!(
                    "default_internal_user = {user}\ndefault_login_user = {user}\n\
                     default_internal_group = {user}\nservice anvil {{\n chroot =\n}}\n"
                ),
            ),
        };
        let chroot = if self.owner.is_some() {
            ""
        } else {
            "chroot =\n"
        };
        format!(
            "base_dir = {dir}/run\nstate_dir = {dir}/state\nlog_path = {dir}/log\n\
             protocols = imap pop3\nlisten = 127.0.0.1\nssl = yes\nssl_cert = <{dir}/cert.pem\n\
             ssl_key = <{dir}/key.pem\ndisable_plaintext_auth = no\nfirst_valid_uid = 1\n\
             mail_location = maildir:{dir}/mail/%u\nmail_max_userip_connections = 100\n\
             auth_failure_delay = 0\nmail_fsync = never\n{internal}\
             passdb {{\n driver = static\n args = password=secret\n}}\n\
             userdb {{\n driver = static\n args = {owner} home={dir}/mail/%u\n}}\n\
             service imap-login {{\n {chroot} inet_listener imap {{\n port = {}\n }}\n \
             inet_listener imaps {{\n port = {}\n ssl = yes\n }}\n}}\n\
             service pop3-login {{\n {chroot} inet_listener pop3 {{\n port = {}\n }}\n \
             inet_listener pop3s {{\n port = {}\n ssl = yes\n }}\n}}\n",
            self.imap, self.imaps, self.pop3, self.pop3s
        )
    }

    /// Starts it again, on the same ports with the same mailboxes.
    pub fn launch(&mut self) {
        // What it says before it has opened its log.
        let told = fs::File::create(self.folder.path().join("told")).expect("a file");
        let mut child = Command::new("/usr/sbin/dovecot")
            .arg("-F")
            .arg("-c")
            .arg(self.folder.path().join("dovecot.conf"))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(told)
            .spawn()
            .expect("Dovecot starts");
        for port in [self.imap, self.imaps, self.pop3, self.pop3s] {
            wait_for("Dovecot", || {
                if let Some(ended) = child.try_wait().expect("a child") {
                    let told = fs::read_to_string(self.folder.path().join("told"));
                    panic!("Dovecot: {ended}: {}", told.unwrap_or_default());
                }
                TcpStream::connect(("127.0.0.1", port)).ok()
            });
        }
        self.child = Some(child);
    }

    /// Ends it, and all connections to it.
    pub fn end(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        signal(child.id(), "TERM");
        let _ = child.wait();
        // Those that it started, also in its last moment, are of its group.
        let _ = Command::new("kill")
            .args(["-9", "--", &format!("-{}", child.id())])
            .stderr(Stdio::null())
            .status();
    }

    /// Its first process, for [`freeze`] from other threads.
    pub fn master(&self) -> u32 {
        self.child.as_ref().expect("running").id()
    }

    fn mail(&self) -> PathBuf {
        self.folder.path().join("mail")
    }

    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).expect("a file");
    }

    fn make_dir(&self, dir: &Path) {
        match fs::create_dir(dir) {
            Ok(()) => {
                if let Some((uid, gid)) = self.owner {
                    chown(dir, Some(uid), Some(gid)).expect("root");
                }
            }
            // Dovecot may make it at the same moment.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}"),
        }
    }

    fn maildir(&self, user: &str, folder: &str) -> PathBuf {
        let inbox = self.mail().join(user);
        match folder {
            "INBOX" => inbox,
            other => inbox.join(format!(".{other}")),
        }
    }

    /// Has a mail arrive. Its lines may end in either way.
    pub fn put(&self, user: &str, folder: &str, mail: impl AsRef<[u8]>) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let dir = self.maildir(user, folder);
        self.make_dir(&self.mail().join(user));
        self.make_dir(&dir);
        for part in ["cur", "new", "tmp"] {
            self.make_dir(&dir.join(part));
        }
        let number = NUMBER.fetch_add(1, SeqCst);
        // Dovecot numbers mails in the order of their names' times.
        let name = format!(
            "{}.M{number:06}P{}.it",
            1_700_000_000 + number,
            std::process::id()
        );
        let tmp = dir.join("tmp").join(&name);
        fs::write(&tmp, mail).expect("a mail");
        fs::rename(tmp, dir.join("new").join(name)).expect("a mail");
    }

    /// The mails of a folder with their marks, such as `S` for seen, in the order of arrival.
    pub fn mails(&self, user: &str, folder: &str) -> Vec<(String, String)> {
        let dir = self.maildir(user, folder);
        let mut files: Vec<PathBuf> = ["cur", "new"]
            .iter()
            .filter_map(|part| fs::read_dir(dir.join(part)).ok())
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .collect();
        files.sort_by_key(|path| path.file_name().map(std::ffi::OsStr::to_owned));
        files
            .iter()
            .filter_map(|path| {
                let name = path.file_name()?.to_string_lossy().into_owned();
                let marks = name.split_once(":2,").map_or("", |(_, marks)| marks);
                let text = String::from_utf8_lossy(&fs::read(path).ok()?).into_owned();
                Some((marks.to_owned(), text))
            })
            .collect()
    }

    /// How many mails a folder holds that nobody has seen.
    pub fn unseen(&self, user: &str, folder: &str) -> usize {
        let mails = self.mails(user, folder);
        mails
            .iter()
            .filter(|(marks, _)| !marks.contains('S'))
            .count()
    }

    /// Marks all mails of a folder as deleted, and leaves them there. Only while it is down.
    pub fn mark_deleted(&self, user: &str, folder: &str) {
        assert!(self.child.is_none(), "it runs");
        let dir = self.maildir(user, folder);
        for part in ["cur", "new"] {
            for entry in fs::read_dir(dir.join(part)).expect("a folder").flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let name = name.split(":2,").next().unwrap_or_default().to_owned();
                let marked = dir.join("cur").join(format!("{name}:2,T"));
                fs::rename(entry.path(), marked).expect("marked");
            }
        }
    }

    /// Has Dovecot number the mails of a folder anew, under a new UIDVALIDITY. Only while it is down.
    pub fn renumber(&self, user: &str, folder: &str) {
        assert!(self.child.is_none(), "it runs");
        let dir = self.maildir(user, folder);
        for entry in fs::read_dir(dir).expect("a folder").flatten() {
            if entry.file_name().to_string_lossy().starts_with("dovecot") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- Dovecot's log ---\n{}", self.log());
        }
        self.end();
    }
}

/// Has everything that serves a mailbox by IMAP stand still, until [`Dovecot::end`].
pub fn freeze(master: u32) {
    for pid in children(master) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "imap" {
            signal(pid, "STOP");
        }
    }
}

/// The processes whose parent is `parent` (proc(5)).
fn children(parent: u32) -> Vec<u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The name stands in brackets and may hold anything; state and parent follow it.
            let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
            after.split(' ').nth(1) == Some(parent.to_string().as_str())
        })
        .collect()
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id");
    output.stdout.trim_ascii() == b"0"
}

/// User and group of an account of this machine.
fn account(name: &str) -> Option<(u32, u32)> {
    let all = fs::read_to_string("/etc/passwd").ok()?;
    let line = all
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut words = line.split(':').skip(2);
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}
