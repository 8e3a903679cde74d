//! A mailbox as the receiver sees it, whichever protocol it is read by.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use xbus_core::Stop;

use crate::account::{Account, Protocol};
use crate::failed::Failure;
use crate::imap::{HEAD_MOST, Imap, Want};
use crate::mime::Fields;
use crate::pop3::{Listed, Pop3};
use crate::take::sleep;
use crate::trouble::Trouble;
use crate::wire::Bounded;

/// How many positions of a folder one search covers.
const WINDOW: u32 = 5000;
/// How many mails are looked at in one go.
const BATCH: usize = 50;
/// How long IDLE lasts before it is renewed: routers forget connections that are still (RFC 2177
/// asks for less than 29 minutes).
const IDLE_LONGEST: Duration = Duration::from_secs(300);

/// What marks a mail as accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    /// It gets the mark that it was read.
    Seen,
    /// It is deleted.
    Delete,
    /// It is moved to this folder.
    Move(String),
}

/// A mail that stands in the mailbox.
pub(crate) struct Entry {
    /// Its number in this session.
    pub(crate) at: u32,
    /// The server's lasting name for it.
    pub(crate) name: Option<Arc<str>>,
    /// In bytes, as the server says.
    pub(crate) size: u64,
    /// The headers that filters look at, where they came along.
    pub(crate) head: Option<Bounded>,
    /// When it came, as the server writes it.
    pub(crate) date: Option<String>,
}

/// An open mailbox or folder.
pub(crate) enum Mailbox {
    /// A folder.
    Imap(Folder),
    /// The one folder that there is, for one session.
    Pop3(Session),
}

/// A folder of an IMAP mailbox.
pub(crate) struct Folder {
    imap: Imap,
    place: String,
    unseen: bool,
}

/// A session with a POP3 mailbox.
pub(crate) struct Session {
    pop: Pop3,
    place: String,
    listed: bool,
}

impl Mailbox {
    /// Connects. `unseen`: only mails without the mark that they were read.
    pub(crate) async fn open(
        account: &Account,
        folder: &str,
        place: &str,
        unseen: bool,
    ) -> Result<Self, Trouble> {
        let place = place.to_owned();
        if account.protocol == Protocol::Pop3 {
            let pop = Pop3::open(account).await?;
            return Ok(Mailbox::Pop3(Session {
                pop,
                place,
                listed: false,
            }));
        }
        let mut imap = Imap::open(account).await?;
        imap.select(folder).await.map_err(|trouble| match trouble {
            Trouble::No(text) => Trouble::Lost(format!(
                "the folder '{folder}' cannot be opened: {text}; make it, or mend 'folder'"
            )),
            other => other,
        })?;
        Ok(Mailbox::Imap(Folder {
            imap,
            place,
            unseen,
        }))
    }

    /// The next mails, but for those whose session numbers are in `passed`. None: that was all.
    pub(crate) async fn look(&mut self, passed: &BTreeSet<u32>) -> Result<Vec<Entry>, Trouble> {
        match self {
            Mailbox::Imap(folder) => folder.look(passed).await,
            Mailbox::Pop3(session) => session.look().await,
        }
    }

    /// Mails whose deletion was begun and broken off (marked, not expunged), of those that `ours` knows
    /// by the server's names for them. Others that are marked so are somebody else's.
    pub(crate) async fn begun(
        &mut self,
        ours: impl Fn(&str) -> bool,
    ) -> Result<Vec<Entry>, Trouble> {
        match self {
            Mailbox::Imap(folder) => folder.begun(ours).await,
            // What a session deletes it deletes at its end, or not at all (RFC 1939 section 6).
            Mailbox::Pop3(_) => Ok(Vec::new()),
        }
    }

    /// The headers of a mail, where the server can give them alone.
    pub(crate) async fn head(&mut self, entry: &Entry) -> Result<Option<Bounded>, Trouble> {
        match self {
            Mailbox::Imap(_) => Ok(None),
            Mailbox::Pop3(session) => session.pop.head(entry.at, HEAD_MOST).await,
        }
    }

    /// A whole mail; nothing when it is gone.
    pub(crate) async fn fetch(
        &mut self,
        entry: &mut Entry,
        most: u64,
    ) -> Result<Option<Bounded>, Trouble> {
        match self {
            Mailbox::Imap(folder) => {
                let all = folder.imap.fetch(&[entry.at], Want::Whole(most)).await?;
                let Some(fetched) = all.into_iter().next() else {
                    return Ok(None);
                };
                entry.date = fetched.date;
                Ok(fetched.body)
            }
            Mailbox::Pop3(session) => session.pop.mail(entry.at, most).await.map(Some),
        }
    }

    /// Marks a mail as accepted. `false`: that only takes effect with [`Mailbox::close`]. `copied` is
    /// called when a copy lies where it is moved to, and only its own is still to be deleted.
    pub(crate) async fn finish(
        &mut self,
        entry: &Entry,
        done: &Done,
        copied: impl AsyncFnOnce(),
    ) -> Result<bool, Trouble> {
        match (self, done) {
            (Mailbox::Pop3(session), _) => session.pop.delete(entry.at).await.map(|()| false),
            (Mailbox::Imap(folder), done) => {
                match done {
                    Done::Seen => folder.imap.mark_seen(entry.at).await?,
                    Done::Delete => folder.imap.delete(entry.at).await?,
                    Done::Move(to) => folder.imap.move_to(entry.at, to, copied).await?,
                }
                Ok(true)
            }
        }
    }

    /// Waits for news, for `poll` at the most, or until `stop`.
    pub(crate) async fn wait(&mut self, poll: Duration, stop: &Stop) -> Result<(), Trouble> {
        let Mailbox::Imap(folder) = self else {
            sleep(poll, stop).await;
            return Ok(());
        };
        if folder.imap.can("IDLE") {
            return tokio::select! {
                waited = folder.imap.idle(poll.min(IDLE_LONGEST)) => waited,
                () = stop.cancelled() => Ok(()),
            };
        }
        match sleep(poll, stop).await {
            true => Ok(()),
            false => folder.imap.noop().await,
        }
    }

    /// Takes leave; `Ok` means that all that was to be deleted is.
    pub(crate) async fn close(self) -> Result<(), Trouble> {
        match self {
            Mailbox::Imap(folder) => folder.imap.leave().await,
            Mailbox::Pop3(session) => session.pop.leave().await?,
        }
        Ok(())
    }
}

impl Folder {
    async fn look(&mut self, passed: &BTreeSet<u32>) -> Result<Vec<Entry>, Trouble> {
        let marks = if self.unseen {
            "UNDELETED UNSEEN"
        } else {
            "UNDELETED"
        };
        let mut from = 1;
        self.imap.known = self.imap.exists;
        while from <= self.imap.exists {
            let to = self.imap.exists.min(from + WINDOW - 1);
            let mut found = self.imap.search(from, to, marks).await?;
            found.retain(|uid| !passed.contains(uid));
            if !found.is_empty() {
                found.truncate(BATCH);
                return self.heads(&found).await;
            }
            from += WINDOW;
        }
        Ok(Vec::new())
    }

    /// Mails that are marked as deleted and still there, of those that `ours` knows by their names.
    async fn begun(&mut self, ours: impl Fn(&str) -> bool) -> Result<Vec<Entry>, Trouble> {
        let mut found = Vec::new();
        let mut from = 1;
        while from <= self.imap.exists && self.imap.validity > 0 {
            let to = self.imap.exists.min(from + WINDOW - 1);
            found.extend(self.imap.search(from, to, "DELETED").await?);
            from += WINDOW;
        }
        found.retain(|uid| ours(&self.name(*uid)));
        found.truncate(BATCH);
        match found.is_empty() {
            true => Ok(Vec::new()),
            false => self.heads(&found).await,
        }
    }

    /// The lasting name of a mail, where the server has lasting numbers.
    fn name(&self, uid: u32) -> String {
        format!("{}/{}/{uid}", self.place, self.imap.validity)
    }

    async fn heads(&mut self, uids: &[u32]) -> Result<Vec<Entry>, Trouble> {
        let lasting = self.imap.validity > 0;
        let fetched = self.imap.fetch(uids, Want::Head).await?;
        let mut all: Vec<Entry> = fetched
            .into_iter()
            .map(|fetched| Entry {
                at: fetched.uid,
                name: lasting.then(|| Arc::from(self.name(fetched.uid))),
                size: fetched.size.unwrap_or(0),
                head: fetched.body,
                date: None,
            })
            .collect();
        all.sort_by_key(|entry| entry.at);
        all.dedup_by_key(|entry| entry.at);
        Ok(all)
    }

    /// Puts a mail that failed into the folder `to`, with the reason, and takes it out of its own.
    /// `copied` is called when it lies there.
    pub(crate) async fn fail(
        &mut self,
        entry: &Entry,
        to: &str,
        route: &str,
        failure: &Failure,
        mail: Option<&[u8]>,
        copied: impl AsyncFnOnce(),
    ) -> Result<(), Trouble> {
        if failure.copied {
            return self.imap.delete(entry.at).await;
        }
        if let Some(mail) = mail {
            let copy = failure.copy(route, mail);
            match self.imap.append(to, entry.date.as_deref(), &copy).await {
                Ok(()) => {
                    copied().await;
                    return self.imap.delete(entry.at).await;
                }
                // Perhaps too large for it, or too odd: as it is then.
                Err(Trouble::No(text)) => {
                    tracing::warn!(%route, error = text, "a failed mail cannot be copied with its reason, it is moved as it is");
                }
                Err(other) => return Err(other),
            }
        }
        let field = |name: &str| match &entry.head {
            Some(Bounded::Whole(head)) => Fields::read(head)
                .ok()
                .and_then(|(fields, _)| fields.get(name).map(crate::mime::Field::text))
                .unwrap_or_default(),
            _ => String::new(),
        };
        let report = failure.report(route, &field("subject"), &field("message-id"));
        self.imap.move_to(entry.at, to, copied).await?;
        match self.imap.append(to, None, &report).await {
            Err(lost @ Trouble::Lost(_)) => Err(lost),
            _ => Ok(()),
        }
    }
}

impl Session {
    async fn look(&mut self) -> Result<Vec<Entry>, Trouble> {
        if std::mem::replace(&mut self.listed, true) {
            return Ok(Vec::new());
        }
        let listed = self.pop.list().await?;
        let name = |one: &Listed| {
            let uid = one.uid.as_ref()?;
            Some(Arc::from(format!("{}/{uid}", self.place)))
        };
        Ok(listed
            .iter()
            .map(|one| Entry {
                at: one.number,
                name: name(one),
                size: one.size,
                head: None,
                date: None,
            })
            .collect())
    }
}
