//! What the fuzz targets (tests/fuzz) need of this crate beside its public parts. No part of its API.

use std::io::Cursor;
use std::time::Duration;

use crate::imap::{Imap, Want};
use crate::open::{Attachments, Reading, messages};
use crate::pop3::Pop3;
use crate::trouble::Trouble;
use crate::wire::{self, Wire};

/// Opens a mail in each way that a route can ask for.
pub fn mail(mail: &[u8]) {
    for attachments in [Attachments::Each, Attachments::Ignore] {
        for prefer_html in [false, true] {
            let reading = Reading {
                attachments,
                prefer_html,
                format: None,
                charset: None,
            };
            if let Ok(messages) = messages(mail, &reading) {
                assert!(!messages.is_empty(), "a mail is at least one message");
            }
        }
    }
}

/// A server that says all of `said` at once, whatever it is asked, and then hangs up.
fn server(said: &[u8]) -> Wire {
    let said = Cursor::new(said.to_vec());
    wire::of(tokio::io::join(said, tokio::io::sink()))
}

fn wait<T>(future: impl Future<Output = T>) -> Option<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    Some(runtime.ok()?.block_on(future))
}

/// A session with an IMAP server that says these bytes.
pub fn imap(said: &[u8]) {
    wait(async {
        let mut imap = Imap::over(server(said));
        let used: Result<(), Trouble> = async {
            no_matter(imap.ask_capabilities().await)?;
            no_matter(imap.authenticate("c2VjcmV0").await)?;
            no_matter(imap.select("INBOX").await)?;
            let uids =
                no_matter(imap.search(1, 100, "UNDELETED UNSEEN").await)?.unwrap_or_default();
            no_matter(imap.fetch(&uids, Want::Head).await)?;
            no_matter(imap.fetch(&[1, 2], Want::Whole(4096)).await)?;
            no_matter(imap.move_to(1, "Done/Ü&", async || {}).await)?;
            no_matter(
                imap.append("Failed", Some("1-Jan-2026"), b"a: b\r\n\r\n")
                    .await,
            )?;
            imap.idle(Duration::ZERO).await
        }
        .await;
        drop(used);
    });
}

/// A session with a POP3 server that says these bytes.
pub fn pop3(said: &[u8]) {
    wait(async {
        let mut pop = Pop3::over(server(said));
        let used: Result<(), Trouble> = async {
            no_matter(pop.list().await)?;
            no_matter(pop.head(1, 1024).await)?;
            no_matter(pop.mail(1, 4096).await)?;
            pop.delete(1).await
        }
        .await;
        drop(used);
    });
}

/// What the server refuses is passed over; a lost connection ends the session.
fn no_matter<T>(result: Result<T, Trouble>) -> Result<Option<T>, Trouble> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Trouble::No(_) | Trouble::Login(_)) => Ok(None),
        Err(lost) => Err(lost),
    }
}
