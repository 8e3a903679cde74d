//! Watches one folder: takes its mails one after the other, then waits for more.
//!
//! Whatever breaks a connection ends a session, and the next one finds by the mails' names what was
//! accepted and only has to be marked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use globset::GlobMatcher;
use xbus_core::{Code, Fault, Inbox, Stop};

use crate::account::{Account, Protocol};
use crate::answer::Answers;
use crate::failed::{Aside, Failure};
use crate::mailbox::{Done, Entry, Mailbox};
use crate::mime::{self, Fields};
use crate::open::{self, Reading};
use crate::take::{self, Asides, Fate, Mail, Names, content_name, forget, set_aside, sleep};
use crate::trouble::Trouble;
use crate::wire::Bounded;

/// Shortest wait after a refused login: servers lock accounts that try too often.
const AFTER_LOGIN: Duration = Duration::from_secs(5);
/// How often a mail may break the connection before it is passed by.
const BREAKS_MOST: u32 = 3;
/// How many mails are accepted in one POP3 session, whose deletions take effect at its end.
const SESSION_MOST: usize = 50;

/// What a receiver is told, for all of its folders.
pub(crate) struct Rules {
    pub(crate) account: Arc<Account>,
    pub(crate) poll: Duration,
    pub(crate) done: Done,
    pub(crate) failed: String,
    pub(crate) from: Option<GlobMatcher>,
    pub(crate) subject: Option<GlobMatcher>,
    /// Largest mail in bytes.
    pub(crate) max_size: u64,
    pub(crate) reading: Reading,
    /// Where answers go out.
    pub(crate) answers: Option<Answers>,
}

/// Tells administrators of trouble, and that it is over once no folder has any.
pub(crate) struct Health {
    inbox: Inbox,
    troubled: Mutex<Option<BTreeSet<String>>>,
}

impl Health {
    pub(crate) fn new(inbox: Inbox) -> Self {
        Self {
            inbox,
            troubled: Mutex::new(None),
        }
    }

    fn fails(&self, folder: &str, text: &str) {
        let mut troubled = self.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        let new = troubled.get_or_insert_default().insert(folder.to_owned());
        drop(troubled);
        if new {
            tracing::warn!(route = %self.inbox.route(), folder, error = text, "the mailbox cannot be used");
        }
        self.inbox.fails("outage", text);
    }

    fn works(&self, folder: &str) {
        let mut troubled = self.troubled.lock().unwrap_or_else(PoisonError::into_inner);
        // At first there may be an incident of an earlier run.
        let first = troubled.is_none();
        let all = troubled.get_or_insert_default();
        let was = all.remove(folder);
        if (was || first) && all.is_empty() {
            self.inbox.works();
        }
    }
}

/// One folder under watch.
pub(crate) struct Watch {
    pub(crate) rules: Arc<Rules>,
    pub(crate) folder: String,
    pub(crate) inbox: Inbox,
    pub(crate) health: Arc<Health>,
    pub(crate) stop: Stop,
}

/// What one session knows.
#[derive(Default)]
struct Memory {
    asides: Asides,
    /// Mails that are not for this route, by their numbers in this session.
    passed: BTreeSet<u32>,
    /// Mails that cannot be moved or fetched now: until the next round.
    stuck: BTreeSet<u32>,
    /// How often fetching a mail broke the connection.
    breaks: BTreeMap<Arc<str>, u32>,
    /// Mails whose deletion takes effect when the session ends well.
    closing: Vec<(Names, usize)>,
    /// Names of all mails that a session has come across.
    met: BTreeSet<Arc<str>>,
    /// A round came to its end since the last trouble.
    worked: bool,
}

impl Watch {
    fn answers(&self) -> Option<&Answers> {
        let answers = self.rules.answers.as_ref();
        answers.filter(|_| self.inbox.replies())
    }

    fn place(&self) -> String {
        format!("{}/{}", self.rules.account.name(), self.folder)
    }

    /// Runs until `stop`.
    pub(crate) async fn run(self) {
        let mut memory = Memory::default();
        let mut failures = 0;
        while !self.stop.is_cancelled() {
            let trouble = match self.session(&mut memory).await {
                Ok(()) => {
                    failures = 0;
                    continue;
                }
                Err(trouble) => trouble,
            };
            if std::mem::take(&mut memory.worked) {
                // A connection that was in use may end: the next one shows whether anything is wrong.
                tracing::info!(route = %self.inbox.route(), folder = self.folder, %trouble, "the mailbox's connection ended, a new one is made");
                failures = 0;
                continue;
            }
            failures += 1;
            let account = &self.rules.account;
            let text = format!("mailbox {} ({}): {trouble}", account.name(), self.folder);
            account.vitals.fails(&self.folder, &text);
            self.health.fails(&self.folder, &text);
            let wait = self.inbox.policy().retry.wait(failures);
            let wait = match trouble {
                Trouble::Login(_) => wait.max(AFTER_LOGIN),
                _ => wait,
            };
            if sleep(wait, &self.stop).await {
                return;
            }
        }
    }

    /// One connection: to its end, or until `stop`.
    async fn session(&self, memory: &mut Memory) -> Result<(), Trouble> {
        let rules = &self.rules;
        let unseen = rules.done == Done::Seen;
        memory.passed.clear();
        memory.closing.clear();
        memory.met.clear();
        let place = self.place_key();
        rules.account.vitals.connects(&self.folder);
        let opening = Mailbox::open(&rules.account, &self.folder, &place, unseen);
        let mut mailbox = tokio::select! {
            mailbox = opening => mailbox?,
            () = self.stop.cancelled() => return Ok(()),
        };
        rules.account.vitals.works(&self.folder);
        loop {
            let whole = self.round(&mut mailbox, memory).await?;
            if rules.account.protocol == Protocol::Pop3 {
                mailbox.close().await?;
                for (names, parts) in std::mem::take(&mut memory.closing) {
                    forget(&self.inbox, &names, parts, &mut memory.asides).await;
                }
                self.round_ended(memory);
                if whole {
                    self.release_vanished(memory).await;
                    sleep(rules.poll, &self.stop).await;
                }
                return Ok(());
            }
            self.round_ended(memory);
            if !self.stop.is_cancelled() {
                mailbox.wait(rules.poll, &self.stop).await?;
            }
            if self.stop.is_cancelled() {
                return mailbox.close().await;
            }
        }
    }

    fn round_ended(&self, memory: &mut Memory) {
        memory.worked = true;
        if memory.stuck.is_empty() {
            self.health.works(&self.folder);
        }
    }

    /// The beginning of all names of this folder's mails.
    fn place_key(&self) -> String {
        match self.rules.account.protocol {
            Protocol::Imap => format!("imap:{}", self.place()),
            Protocol::Pop3 => format!("pop3:{}", self.rules.account.name()),
        }
    }

    /// Takes all mails that there are; `false` when there may be more.
    async fn round(&self, mailbox: &mut Mailbox, memory: &mut Memory) -> Result<bool, Trouble> {
        memory.asides = self.inbox.asides().into_iter().collect();
        memory.stuck.clear();
        for entry in self.begun(mailbox, memory).await? {
            if self.stop.is_cancelled() {
                return Ok(false);
            }
            self.one(mailbox, entry, memory).await?;
        }
        loop {
            let skip = memory.passed.union(&memory.stuck).copied().collect();
            let entries = mailbox.look(&skip).await?;
            if entries.is_empty() {
                return Ok(true);
            }
            for entry in entries {
                if self.stop.is_cancelled() || memory.closing.len() >= SESSION_MOST {
                    return Ok(false);
                }
                self.one(mailbox, entry, memory).await?;
            }
        }
    }

    /// Mails that were to be deleted when the connection or the bus broke off. Nobody looks for those
    /// otherwise: whoever marks a mail as deleted does not want it taken.
    async fn begun(&self, mailbox: &mut Mailbox, memory: &Memory) -> Result<Vec<Entry>, Trouble> {
        let removes = self.rules.done != Done::Seen;
        if !removes && memory.asides.is_empty() {
            return Ok(Vec::new());
        }
        // What became several messages is known by theirs.
        let accepted = |name: &str| self.inbox.seen(name) || self.inbox.seen(&format!("{name}#1"));
        let ours = |name: &str| match memory.asides.get(name) {
            Some(why) => Aside::from_text(why).is_copied(),
            None => removes && accepted(name),
        };
        mailbox.begun(ours).await
    }

    /// Takes one mail to its end, as far as that is possible now.
    async fn one(
        &self,
        mailbox: &mut Mailbox,
        mut entry: Entry,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        let rules = &self.rules;
        let mut names = Names {
            server: entry.name.clone(),
            content: None,
        };
        memory.met.extend(entry.name.clone());
        // Known from before: only what is missing.
        if let Some(why) = names.server.as_ref().and_then(|n| memory.asides.get(&**n)) {
            return match Aside::from_text(why) {
                Aside::Moved => self.deleted(mailbox, &entry, names, memory).await,
                Aside::Failed(failure) => {
                    self.dispose(mailbox, entry, None, failure, names, memory)
                        .await
                }
            };
        }
        if names.seen(&self.inbox) {
            return self.finish(mailbox, &entry, names, 1, memory).await;
        }
        let filters = rules.from.is_some() || rules.subject.is_some();
        if filters && entry.head.is_none() {
            entry.head = mailbox.head(&entry).await?;
        }
        if filters && matches!(&entry.head, Some(Bounded::Whole(head)) if !self.wants(head)) {
            memory.passed.insert(entry.at);
            return Ok(());
        }
        let fetched = match entry.size > rules.max_size {
            true => Some(Bounded::TooLarge(entry.size)),
            false => self.fetch(mailbox, &mut entry, memory).await?,
        };
        let raw = match fetched {
            None => {
                // Somebody else took it, or the server cannot give it now.
                memory.stuck.insert(entry.at);
                return Ok(());
            }
            Some(Bounded::TooLarge(size)) => {
                return self.too_large(mailbox, entry, size, names, memory).await;
            }
            Some(Bounded::Whole(raw)) => Arc::new(raw),
        };
        if filters && !matches!(entry.head, Some(Bounded::Whole(_))) && !self.wants(&raw) {
            memory.passed.insert(entry.at);
            return Ok(());
        }
        let content = content_name(&self.place_key(), &raw);
        memory.met.insert(content.clone());
        if let Some(why) = memory.asides.get(&*content) {
            let why = Aside::from_text(why);
            names.content = Some(content);
            return match why {
                Aside::Moved => self.deleted(mailbox, &entry, names, memory).await,
                Aside::Failed(failure) => {
                    self.dispose(mailbox, entry, Some(&raw), failure, names, memory)
                        .await
                }
            };
        }
        names.content = Some(content);
        let mail = Mail {
            inbox: &self.inbox,
            reading: &rules.reading,
            names: &names,
            answers: self.answers(),
            stop: &self.stop,
        };
        match mail.take(raw.clone(), &mut memory.asides).await {
            Fate::Done(parts) => self.finish(mailbox, &entry, names, parts, memory).await,
            Fate::Failed(failure) => {
                let aside = Aside::Failed(failure.clone());
                set_aside(&self.inbox, &names, &aside, &mut memory.asides).await;
                self.dispose(mailbox, entry, Some(&raw), failure, names, memory)
                    .await
            }
            Fate::Stopped => Ok(()),
        }
    }

    /// Downloads a mail. One that breaks the connection again and again is passed by, so that it
    /// does not keep the others from being taken.
    async fn fetch(
        &self,
        mailbox: &mut Mailbox,
        entry: &mut Entry,
        memory: &mut Memory,
    ) -> Result<Option<Bounded>, Trouble> {
        let name = entry.name.clone();
        let breaks = name
            .as_ref()
            .and_then(|name| memory.breaks.get(name))
            .copied();
        if breaks.is_some_and(|breaks| breaks >= BREAKS_MOST) {
            let text = format!(
                "the server does not give mail {} of {}: the connection breaks each time",
                entry.at, self.folder
            );
            self.health.fails(&self.folder, &text);
            return Ok(None);
        }
        match mailbox.fetch(entry, self.rules.max_size).await {
            Ok(fetched) => {
                if let Some(name) = &name {
                    memory.breaks.remove(name);
                }
                Ok(fetched)
            }
            Err(Trouble::No(text)) => {
                let text = format!("the server does not give mail {}: {text}", entry.at);
                self.health.fails(&self.folder, &text);
                Ok(None)
            }
            Err(trouble) => {
                if let Some(name) = name {
                    *memory.breaks.entry(name).or_default() += 1;
                }
                Err(trouble)
            }
        }
    }

    fn wants(&self, head: &[u8]) -> bool {
        let Ok((fields, _)) = Fields::read(head) else {
            // What cannot be read is told of rather than left.
            return true;
        };
        let from = |glob: &GlobMatcher| {
            fields.get("from").is_some_and(|from| {
                let address = open::first_address(from).unwrap_or_default();
                glob.is_match(address) || glob.is_match(from.text())
            })
        };
        let subject = |glob: &GlobMatcher| {
            let subject = fields.get("subject").map(mime::Field::text);
            glob.is_match(subject.unwrap_or_default())
        };
        self.rules.from.as_ref().is_none_or(from) && self.rules.subject.as_ref().is_none_or(subject)
    }

    async fn too_large(
        &self,
        mailbox: &mut Mailbox,
        entry: Entry,
        size: u64,
        names: Names,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        let fault = Fault::new(
            Code::TooLarge,
            format!(
                "the mail has {size} bytes, the limit (max_size) is {}",
                self.rules.max_size
            ),
        );
        let headers = match &entry.head {
            Some(Bounded::Whole(head)) => Fields::read(head)
                .map(|(fields, _)| open::headers(&fields))
                .unwrap_or_default(),
            _ => xbus_core::Headers::new(),
        };
        let refused = open::refused(headers, fault);
        let mail = Mail {
            inbox: &self.inbox,
            reading: &self.rules.reading,
            names: &names,
            answers: self.answers(),
            stop: &self.stop,
        };
        let fate = mail.refuse(*refused.message, &refused.fault).await;
        let Fate::Failed(failure) = fate else {
            return Ok(());
        };
        let aside = Aside::Failed(failure.clone());
        set_aside(&self.inbox, &names, &aside, &mut memory.asides).await;
        self.dispose(mailbox, entry, None, failure, names, memory)
            .await
    }

    /// Marks an accepted mail, and forgets it once that is done.
    async fn finish(
        &self,
        mailbox: &mut Mailbox,
        entry: &Entry,
        names: Names,
        parts: usize,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        let copied = async || {
            set_aside(&self.inbox, &names, &Aside::Moved, &mut memory.asides).await;
        };
        let finished = mailbox.finish(entry, &self.rules.done, copied).await;
        match finished {
            Ok(true) => forget(&self.inbox, &names, parts, &mut memory.asides).await,
            Ok(false) => memory.closing.push((names, parts)),
            Err(trouble) => return self.stuck(entry, "marked as done", trouble, memory),
        }
        Ok(())
    }

    /// Ends the move of a mail whose copy lies where it belongs.
    async fn deleted(
        &self,
        mailbox: &mut Mailbox,
        entry: &Entry,
        names: Names,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        let none = async || {};
        match mailbox.finish(entry, &Done::Delete, none).await {
            Ok(_) => {
                forget(&self.inbox, &names, mime::PARTS_MOST, &mut memory.asides).await;
                Ok(())
            }
            Err(trouble) => self.stuck(entry, "deleted", trouble, memory),
        }
    }

    /// Puts a mail that failed out of the way.
    async fn dispose(
        &self,
        mailbox: &mut Mailbox,
        mut entry: Entry,
        raw: Option<&[u8]>,
        failure: Failure,
        names: Names,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        if matches!(mailbox, Mailbox::Pop3(_)) {
            // There is no other folder: it stays, and is not taken again.
            memory.passed.insert(entry.at);
            return Ok(());
        }
        let fetched = match raw {
            None if !failure.copied && entry.size <= self.rules.max_size => {
                match self.fetch(mailbox, &mut entry, memory).await? {
                    Some(Bounded::Whole(raw)) => Some(raw),
                    _ => None,
                }
            }
            _ => None,
        };
        let mut names = names;
        if let (Some(raw), None) = (&fetched, &names.content) {
            names.content = Some(content_name(&self.place_key(), raw));
        }
        let raw = raw.or(fetched.as_deref());
        let Mailbox::Imap(folder) = mailbox else {
            return Ok(());
        };
        let copied = async || {
            let copied = Aside::Failed(Failure {
                copied: true,
                ..failure.clone()
            });
            set_aside(&self.inbox, &names, &copied, &mut memory.asides).await;
        };
        let route = self.inbox.route().clone();
        let failed = &self.rules.failed;
        match folder
            .fail(&entry, failed, &route, &failure, raw, copied)
            .await
        {
            Ok(()) => {
                tracing::warn!(%route, id = failure.id, code = failure.code, folder = failed, "a mail failed and was put into the failed folder");
                forget(&self.inbox, &names, mime::PARTS_MOST, &mut memory.asides).await;
                Ok(())
            }
            Err(trouble) => self.stuck(&entry, "moved to the failed folder", trouble, memory),
        }
    }

    /// A mail whose place the server does not let change keeps no other from being taken.
    fn stuck(
        &self,
        entry: &Entry,
        what: &str,
        trouble: Trouble,
        memory: &mut Memory,
    ) -> Result<(), Trouble> {
        let Trouble::No(text) = trouble else {
            return Err(trouble);
        };
        let text = format!(
            "mail {} of {} cannot be {what}: {text}",
            entry.at, self.folder
        );
        self.health.fails(&self.folder, &text);
        memory.stuck.insert(entry.at);
        Ok(())
    }

    /// Forgets failed mails that somebody has taken out of a POP3 mailbox.
    async fn release_vanished(&self, memory: &mut Memory) {
        if self.stop.is_cancelled() {
            return;
        }
        let place = format!("{}/", self.place_key());
        let gone: Vec<String> = memory
            .asides
            .keys()
            .filter(|name| name.starts_with(&place))
            .filter(|name| {
                let whole = name.split('#').next().unwrap_or(name);
                !memory.met.contains(whole)
            })
            .cloned()
            .collect();
        for name in gone {
            memory.asides.remove(&name);
            let names = Names {
                server: Some(Arc::from(name)),
                content: None,
            };
            take::forget(&self.inbox, &names, 1, &mut memory.asides).await;
            for name in names.iter() {
                let _ = self.inbox.release(name).await;
            }
        }
    }
}
