//! The receiver: what can be said of it, and one watch for each folder.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use globset::{GlobBuilder, GlobMatcher};
use lettre::Address;
use xbus_core::adapter::OpenError;
use xbus_core::spec::{Args, Field, Type};
use xbus_core::{Format, Inbox, Receiver, Stop};

use crate::account::{Account, Protocol};
use crate::address::fixed;
use crate::answer::Answers;
use crate::connection::{Smtp, host_name, only};
use crate::mailbox::Done;
use crate::open::{Attachments, Reading};
use crate::watch::{Health, Rules, Watch};

/// What can stand under `receive: { mail: … }`.
pub(crate) const FIELDS: &[Field] = &[
    Field::new(
        "connection",
        Type::Connection(&["imap", "pop3"]),
        "The mailbox: a connection of kind `imap` or `pop3`.",
    )
    .required(),
    Field::new(
        "folder",
        Type::OneOrMany(&Type::Text),
        "The folder that is watched, or a list of them; INBOX when it is left out. With POP3 there is \
         only that one.",
    ),
    Field::new(
        "poll",
        Type::Duration,
        "How often the folder is looked through. Where the server has IDLE, a mail is taken at once.",
    )
    .default("60s"),
    Field::new(
        "done",
        Type::Either(&[Type::Choice(&["seen", "delete"]), Type::Object(MOVE)]),
        "What becomes of a mail that was accepted: it is marked as read (`seen`, the default with \
         IMAP; only mails without that mark are taken), deleted (`delete`, the default with POP3, \
         which knows nothing else), or moved: `{ move: FOLDER }`.",
    ),
    Field::new(
        "failed",
        Type::Text,
        "Folder for mails that are rejected, cannot be read, whose transformation fails, or whose \
         outcome is in doubt, with the reason in the header `X-Xbus-Reason`; made when it is missing, \
         `xbus-failed` when it is left out. With POP3 they stay where they are and are not taken again.",
    ),
    Field::new(
        "from",
        Type::Text,
        "Which senders' mails are taken, by address or whole `From`: `*`, `?`, `[a-z]`, `{a,b}`, \
         without regard to case. Other mails stay as they are.",
    ),
    Field::new(
        "subject",
        Type::Text,
        "Which mails are taken by their decoded subject, with the same patterns.",
    ),
    Field::new(
        "max_size",
        Type::Size,
        "Larger mails are not downloaded and fail with `too-large`. Left out: `max_body` of the bus's \
         defaults.",
    ),
    Field::new(
        "attachments",
        Type::Choice(&["each", "all", "ignore"]),
        "`each`: every attachment is a message, with its name in the header `mail.attachment`; a mail \
         without any is one message, its text. `all`: one message, the text, that carries all of them as \
         `attachments`. `ignore`: the text alone.",
    )
    .default("each"),
    Field::new(
        "reply_by",
        Type::Connection(&["smtp"]),
        "With `reply` in the route: the mail server that answers go out by, from its `from`. Left out: \
         the only one that there is.",
    ),
    Field::new(
        "prefer",
        Type::Choice(&["text", "html"]),
        "Which form of the text is taken where a mail has both.",
    )
    .default("text"),
    Field::new(
        "format",
        Type::Choice(&["xml", "json", "csv", "form", "text", "bytes"]),
        "How the messages are read. Left out: by content type, where that says little by the \
         attachment's extension.",
    ),
    Field::new(
        "charset",
        Type::Text,
        "The charset of attachments (an IANA label) where neither a byte order mark nor the mail nor an \
         XML declaration says one.",
    ),
];

const MOVE: &[Field] =
    &[Field::new("move", Type::Text, "The folder; made when it is missing.").required()];

struct MailReceiver {
    rules: Arc<Rules>,
    folders: Vec<String>,
    /// What of the folders is taken, as it was written.
    filter: String,
    /// Why it cannot answer.
    mute: Option<OpenError>,
}

/// Builds a receiver from what the route says. `own`: the address of the bus's failure mail.
pub(crate) fn build(args: Args<'_>, own: Option<Address>) -> Option<Arc<dyn Receiver>> {
    let problems = args.build.problems;
    let account = args
        .build
        .connection::<Account>(&args.text("connection")?)?;
    let pop3 = account.protocol == Protocol::Pop3;
    let mut good = true;
    let mut wrong = |name: &str, code: &'static str, message: String, help: &str| {
        good = false;
        problems.error(&args.place(name), code, message, help);
    };
    let mut folders = args.texts("folder");
    if folders.is_empty() && args.has("folder") {
        wrong(
            "folder",
            "bad-folder",
            String::from("'folder' names no folder"),
            "name one, or take 'folder' away: then it is INBOX",
        );
    }
    if folders.is_empty() {
        folders.push(String::from("INBOX"));
    }
    if pop3 && (folders.len() > 1 || !is_inbox(&folders[0])) {
        wrong(
            "folder",
            "no-folders",
            String::from("POP3 knows one folder only"),
            "take 'folder' away, or read the mailbox by IMAP",
        );
    }
    if let Some(twice) = twice(&folders) {
        wrong(
            "folder",
            "bad-folder",
            format!("the folder '{twice}' stands there twice"),
            "name each folder once",
        );
    }
    let move_to = args.object("done", MOVE).text("move");
    let done = match (&move_to, args.text("done").as_deref()) {
        (Some(folder), _) => Done::Move(folder.clone()),
        (None, Some("delete")) => Done::Delete,
        (None, Some(_)) => Done::Seen,
        (None, None) if pop3 => Done::Delete,
        (None, None) => Done::Seen,
    };
    if pop3 && done != Done::Delete {
        wrong(
            "done",
            "no-marks",
            String::from(
                "POP3 knows neither marks nor folders: an accepted mail can only be deleted",
            ),
            "write done: delete, or read the mailbox by IMAP",
        );
    }
    if pop3 && args.has("failed") {
        wrong(
            "failed",
            "no-folders",
            String::from("POP3 knows one folder only: a mail that failed stays where it is"),
            "take 'failed' away, or read the mailbox by IMAP",
        );
    }
    let failed = args
        .text("failed")
        .unwrap_or_else(|| String::from("xbus-failed"));
    for (name, folder) in [("failed", Some(&failed)), ("done", move_to.as_ref())] {
        let Some(folder) = folder else { continue };
        if folders.iter().any(|watched| same(watched, folder)) {
            wrong(
                name,
                "bad-folder",
                format!("mails would come back from '{folder}', which is watched itself"),
                "name another folder",
            );
        }
    }
    for (name, folder) in folders
        .iter()
        .map(|folder| ("folder", folder))
        .chain([("failed", &failed)])
        .chain(move_to.as_ref().map(|folder| ("done", folder)))
    {
        if folder.trim().is_empty() || folder.contains(char::is_control) {
            wrong(
                name,
                "bad-folder",
                String::from("a folder has no name, or a control character in it"),
                "write a name such as INBOX or Archive",
            );
        }
    }
    let poll = args.duration("poll").unwrap_or(Duration::from_secs(60));
    if poll.is_zero() {
        wrong(
            "poll",
            "bad-value",
            String::from("the mailbox cannot be looked through without a pause"),
            "write a time such as 60s; with IDLE mails are taken at once anyway",
        );
    }
    let max_size = args.size("max_size").unwrap_or(args.build.max_body);
    if max_size == 0 {
        wrong(
            "max_size",
            "bad-value",
            String::from("every mail is larger than that"),
            "write a size such as 10MiB",
        );
    }
    let charset = args.text("charset");
    if let Some(label) = &charset
        && xbus_charset::Charset::by_label(label).is_err()
    {
        wrong(
            "charset",
            "unknown-charset",
            format!("no charset has the label '{label}'"),
            "write an IANA label such as utf-8, iso-8859-1, windows-1252 or utf-16le",
        );
    }
    let mut pattern = |name: &str| -> Option<GlobMatcher> {
        let text = args.text(name)?;
        match GlobBuilder::new(&text).case_insensitive(true).build() {
            Ok(glob) => Some(glob.compile_matcher()),
            Err(error) => {
                wrong(
                    name,
                    "bad-pattern",
                    format!("the pattern '{text}' is wrong: {}", error.kind()),
                    "write a pattern such as '*@shop.example' or 'Order *'",
                );
                None
            }
        }
    };
    let (from, subject) = (pattern("from"), pattern("subject"));
    let filter: String = ["from", "subject"]
        .iter()
        .filter_map(|name| Some(format!(" {name} {}", args.text(name)?)))
        .collect();
    let reading = Reading {
        attachments: match args.text("attachments").as_deref() {
            Some("ignore") => Attachments::Ignore,
            Some("all") => Attachments::All,
            _ => Attachments::Each,
        },
        prefer_html: args.text("prefer").as_deref() == Some("html"),
        format: args.text("format").as_deref().and_then(Format::from_name),
        charset,
    };
    let (answers, mute) = match answers(&args, &account, own) {
        Ok(answers) => (Some(answers), None),
        Err(why) => (None, Some(why)),
    };
    good.then(|| {
        let receiver: Arc<dyn Receiver> = Arc::new(MailReceiver {
            rules: Arc::new(Rules {
                account,
                poll: poll.max(Duration::from_millis(50)),
                done,
                failed,
                from,
                subject,
                max_size,
                reading,
                answers,
            }),
            folders,
            filter,
            mute,
        });
        receiver
    })
}

/// Who answers, or why nobody can: there is no mail server, or more than one and none is named.
fn answers(args: &Args<'_>, account: &Account, own: Option<Address>) -> Result<Answers, OpenError> {
    let build = args.build;
    let smtp = match args.text("reply_by") {
        Some(name) => build.connection::<Smtp>(&name),
        None => {
            let error = |message: &str, help: &str| OpenError {
                message: format!("the route answers mails, and there is {message}"),
                help: help.to_owned(),
            };
            only(build).map_err(|none| match none {
                true => error(
                    "no mail server to send by",
                    "add one to xbus.yaml: connections: { relay: { smtp: { host: mail.acme.example } } }",
                ),
                false => error(
                    "more than one mail server to send by",
                    "say which under 'mail': reply_by: NAME",
                ),
            })?
        }
    };
    let one = |text: &str| fixed(text).and_then(|all| all.into_iter().next());
    let made = smtp.and_then(|smtp| {
        let from = match &smtp.from {
            Some(from) => one(from),
            None => one(&account.user).or_else(|| one(&format!("xbus@{}", host_name()))),
        };
        Some(Answers::new(smtp, from?, build.bus.clone(), own))
    });
    made.ok_or_else(|| OpenError {
        message: String::from("the route answers mails, and nobody is named to answer from"),
        help: String::from("add 'from' to the smtp connection"),
    })
}

/// INBOX is the one name that is written in any case (RFC 3501 section 5.1).
fn is_inbox(folder: &str) -> bool {
    folder.eq_ignore_ascii_case("INBOX")
}

fn same(one: &str, other: &str) -> bool {
    one == other || (is_inbox(one) && is_inbox(other))
}

fn twice(folders: &[String]) -> Option<&String> {
    folders
        .iter()
        .enumerate()
        .find(|(at, one)| folders[..*at].iter().any(|other| same(one, other)))
        .map(|(_, one)| one)
}

impl Receiver for MailReceiver {
    fn claim(&self) -> Option<String> {
        Some(format!(
            "the mails{} in {} of {}",
            self.filter,
            self.folders.join(", "),
            self.rules.account.name()
        ))
    }

    fn cannot_reply(&self) -> Option<OpenError> {
        self.mute.clone()
    }

    fn open(
        self: Arc<Self>,
        inbox: Inbox,
        stop: Stop,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, OpenError>> {
        Box::pin(async move {
            let health = Arc::new(Health::new(inbox.clone()));
            let watches = self.folders.iter().map(|folder| Watch {
                rules: self.rules.clone(),
                folder: folder.clone(),
                inbox: inbox.clone(),
                health: health.clone(),
                stop: stop.clone(),
            });
            let all: Vec<_> = watches.map(Watch::run).collect();
            let run: BoxFuture<'static, ()> = Box::pin(async move {
                join_all(all).await;
            });
            Ok(run)
        })
    }
}
