//! A client for POP3 (RFC 1939, CAPA by RFC 2449, STLS by RFC 2595).
//!
//! What is marked as deleted goes when the server has taken leave, and not before.
//! Absent: APOP and SASL (the password goes by USER and PASS, over TLS).

use std::collections::BTreeMap;

use crate::account::{Account, Tls};
use crate::trouble::{Trouble, shown};
use crate::wire::{Bounded, Wire};

/// Largest list (UIDL, LIST) in bytes: some 300,000 mails.
const LIST_MOST: u64 = 16 * 1024 * 1024;

/// A session.
pub(crate) struct Pop3 {
    wire: Wire,
    has_top: bool,
}

/// A mail of the list.
pub(crate) struct Listed {
    pub(crate) number: u32,
    /// The server's lasting name for it, where it has any.
    pub(crate) uid: Option<String>,
    pub(crate) size: u64,
}

impl Pop3 {
    /// A session on a connection that has been made; nothing is said yet.
    pub(crate) fn over(wire: Wire) -> Self {
        Self {
            wire,
            has_top: true,
        }
    }

    /// Connects and logs in.
    pub(crate) async fn open(account: &Account) -> Result<Self, Trouble> {
        let mut pop = Self::over(account.connect().await?);
        match pop.status("the greeting").await {
            Ok(_) => {}
            Err(Trouble::No(text)) => return Err(Trouble::Lost(text)),
            Err(Trouble::Lost(text)) if text.contains("cannot be read") => {
                return Err(Trouble::lost(
                    "what answers there is no POP3 server; see 'port' and 'tls' of the connection",
                ));
            }
            Err(other) => return Err(other),
        }
        if account.tls == Tls::Start {
            pop.command("STLS").await.map_err(|trouble| match trouble {
                Trouble::No(text) => Trouble::Lost(format!(
                    "the server offers no STLS ({text}); write tls: tls, or tls: none"
                )),
                other => other,
            })?;
            pop.wire = account.encrypt(pop.wire).await?;
        }
        let login = |trouble| match trouble {
            Trouble::No(text) => Trouble::login(text),
            other => other,
        };
        pop.command(&format!("USER {}", account.user))
            .await
            .map_err(login)?;
        pop.command(&format!("PASS {}", account.password.0))
            .await
            .map_err(login)?;
        Ok(pop)
    }

    /// The mails, in the server's order.
    pub(crate) async fn list(&mut self) -> Result<Vec<Listed>, Trouble> {
        self.command("LIST").await?;
        let sizes = self.pairs("LIST").await?;
        let mut uids = match self.command("UIDL").await {
            Ok(_) => self.pairs("UIDL").await?,
            // Optional in RFC 1939.
            Err(Trouble::No(_)) => BTreeMap::new(),
            Err(other) => return Err(other),
        };
        Ok(sizes
            .into_iter()
            .map(|(number, size)| Listed {
                number,
                uid: uids.remove(&number).filter(|uid| !uid.is_empty()),
                size: size.parse().unwrap_or(0),
            })
            .collect())
    }

    async fn pairs(&mut self, word: &str) -> Result<BTreeMap<u32, String>, Trouble> {
        let Bounded::Whole(list) = self.wire.until_dot(LIST_MOST).await? else {
            return Err(Trouble::lost("the server's list of mails is too long"));
        };
        let mut pairs = BTreeMap::new();
        for line in String::from_utf8_lossy(&list).lines() {
            let mut words = line.split_ascii_whitespace();
            let number = words.next().and_then(|number| number.parse().ok());
            let (Some(number), Some(value)) = (number, words.next()) else {
                return Err(Trouble::nonsense(word));
            };
            pairs.insert(number, value.to_owned());
        }
        Ok(pairs)
    }

    /// The headers of a mail; nothing when the server cannot give them alone.
    pub(crate) async fn head(
        &mut self,
        number: u32,
        most: u64,
    ) -> Result<Option<Bounded>, Trouble> {
        if !self.has_top {
            return Ok(None);
        }
        match self.command(&format!("TOP {number} 0")).await {
            Ok(_) => self.wire.until_dot(most).await.map(Some),
            Err(Trouble::No(_)) => {
                self.has_top = false;
                Ok(None)
            }
            Err(other) => Err(other),
        }
    }

    /// A whole mail, if it is not larger than `most`.
    pub(crate) async fn mail(&mut self, number: u32, most: u64) -> Result<Bounded, Trouble> {
        self.command(&format!("RETR {number}")).await?;
        self.wire.until_dot(most).await
    }

    /// Marks a mail: it goes with [`Pop3::leave`].
    pub(crate) async fn delete(&mut self, number: u32) -> Result<(), Trouble> {
        self.command(&format!("DELE {number}")).await.map(drop)
    }

    /// Takes leave. `Ok` means that all that was marked is gone.
    pub(crate) async fn leave(mut self) -> Result<(), Trouble> {
        self.command("QUIT").await.map(drop)
    }

    async fn command(&mut self, command: &str) -> Result<String, Trouble> {
        self.wire.send(format!("{command}\r\n").as_bytes()).await?;
        let word = command.split(' ').next().unwrap_or_default();
        self.status(word).await
    }

    async fn status(&mut self, word: &str) -> Result<String, Trouble> {
        let line = self.wire.line().await?;
        let line = String::from_utf8_lossy(&line);
        if line.starts_with("+OK") {
            Ok(line.into_owned())
        } else if let Some(said) = line.strip_prefix("-ERR") {
            Err(Trouble::No(shown(said)))
        } else {
            Err(Trouble::nonsense(word))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{self, Protocol};
    use crate::imap::tests::saying;

    #[tokio::test]
    async fn a_session_is_read_as_the_server_has_it() {
        let port = saying(&[
            "+OK hello",
            "+OK",
            "+OK",
            "+OK\r\n1 10\r\n2 20\r\n.",
            "+OK\r\n1 abc\r\n2 def x\r\n.",
            "-ERR no TOP",
            "+OK\r\n..dot\r\nbody\r\n.",
            "+OK",
            "+OK bye",
        ])
        .await;
        let mut pop = Pop3::open(&account::at(Protocol::Pop3, port))
            .await
            .unwrap();
        let list = pop.list().await.unwrap();
        let told: Vec<_> = list
            .iter()
            .map(|one| (one.number, one.uid.as_deref(), one.size))
            .collect();
        assert_eq!(told, [(1, Some("abc"), 10), (2, Some("def"), 20)]);
        assert!(pop.head(1, 99).await.unwrap().is_none());
        assert!(pop.head(1, 99).await.unwrap().is_none(), "not asked again");
        let Bounded::Whole(mail) = pop.mail(1, 99).await.unwrap() else {
            panic!("too large");
        };
        assert_eq!(mail, b".dot\r\nbody\r\n");
        pop.delete(1).await.unwrap();
        pop.leave().await.unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_trouble_and_no_panic() {
        for (answers, what) in [
            (&["* OK hello"][..], "no POP3 server"),
            (&["-ERR too many"], "too many"),
            (&["+OK", "-ERR who"], "who"),
            (&["+OK", "+OK", "-ERR [IN-USE] locked"], "no login now"),
            (&["+OK", "+OK", "+OK", "+OK\r\nx y\r\n."], "LIST"),
            (&["+OK", "+OK", "+OK", "+OK\r\n1 1\r\n.", "what"], "UIDL"),
        ] {
            let port = saying(answers).await;
            let all = async {
                let mut pop = Pop3::open(&account::at(Protocol::Pop3, port)).await?;
                pop.list().await.map(drop)
            };
            let trouble = all.await.unwrap_err().to_string();
            assert!(trouble.contains(what), "{trouble} for {what}");
        }
    }
}
