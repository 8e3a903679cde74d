//! A client for IMAP4rev1 (RFC 3501) that knows the few commands that a receiver needs, and holds
//! no more of an answer in memory than it asked for.
//!
//! Absent: a view of the mailbox that is kept, partial fetches, anything that shows mail to people.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::account::{Account, Tls};
use crate::trouble::{Trouble, shown};
use crate::wire::{Bounded, Wire};

/// Most untagged answers to one command.
const ANSWERS_MOST: usize = 100_000;
/// Most of the headers that filters look at, in bytes.
pub(crate) const HEAD_MOST: u64 = 64 * 1024;
/// Most of a literal in an answer that should have none.
const STRAY_MOST: u64 = 4096;

/// A logged-in connection.
pub(crate) struct Imap {
    wire: Wire,
    tag: u32,
    capabilities: BTreeSet<String>,
    /// How many mails the open folder holds.
    pub(crate) exists: u32,
    /// How many of them there were when they were last looked through.
    pub(crate) known: u32,
    /// Of the open folder; 0 where the server keeps no lasting numbers.
    pub(crate) validity: u32,
    /// Mails of the open folder that were marked as deleted here.
    doomed: BTreeSet<u32>,
}

/// One line of the server's, with the literals within.
type Answer = Vec<Piece>;

enum Piece {
    Text(String),
    Literal(Vec<u8>),
    TooLarge(u64),
}

/// What a FETCH told of one mail.
#[derive(Default)]
pub(crate) struct Fetched {
    pub(crate) uid: u32,
    pub(crate) size: Option<u64>,
    /// As the server wrote it, for APPEND.
    pub(crate) date: Option<String>,
    pub(crate) body: Option<Bounded>,
}

/// What a mail is fetched for.
#[derive(Clone, Copy)]
pub(crate) enum Want {
    /// Its size and the headers that filters look at.
    Head,
    /// All of it, if it is not larger than this.
    Whole(u64),
}

impl Imap {
    /// A session on a connection that has been made; nothing is said yet.
    pub(crate) fn over(wire: Wire) -> Self {
        Self {
            wire,
            tag: 0,
            capabilities: BTreeSet::new(),
            exists: 0,
            known: 0,
            validity: 0,
            doomed: BTreeSet::new(),
        }
    }

    /// Connects and logs in.
    pub(crate) async fn open(account: &Account) -> Result<Self, Trouble> {
        let mut imap = Self::over(account.connect().await?);
        let greeting = imap.wire.line().await?;
        let greeting = String::from_utf8_lossy(&greeting).into_owned();
        let word = greeting
            .split(' ')
            .nth(1)
            .unwrap_or_default()
            .to_uppercase();
        match (greeting.starts_with("* "), word.as_str()) {
            (true, "OK") => {}
            (true, "PREAUTH") if account.tls != Tls::Start => {
                imap.ask_capabilities().await?;
                return Ok(imap);
            }
            (true, "PREAUTH" | "BYE") => {
                return Err(Trouble::Lost(format!(
                    "the server refuses the connection: {}",
                    shown(&greeting)
                )));
            }
            _ => {
                return Err(Trouble::lost(
                    "what answers there is no IMAP server; see 'port' and 'tls' of the connection",
                ));
            }
        }
        imap.ask_capabilities().await?;
        if account.tls == Tls::Start {
            if !imap.can("STARTTLS") {
                return Err(Trouble::lost(
                    "the server offers no STARTTLS; write tls: tls, or tls: none",
                ));
            }
            imap.command("STARTTLS").await?;
            imap.wire = account.encrypt(imap.wire).await?;
            imap.ask_capabilities().await?;
        }
        imap.login(account).await?;
        imap.ask_capabilities().await?;
        Ok(imap)
    }

    /// Whether the server has that capability, written in capitals.
    pub(crate) fn can(&self, capability: &str) -> bool {
        self.capabilities.contains(capability)
    }

    pub(crate) async fn ask_capabilities(&mut self) -> Result<(), Trouble> {
        let mut all = BTreeSet::new();
        self.command_with("CAPABILITY", STRAY_MOST, |answer| {
            if let Some(Piece::Text(text)) = answer.first()
                && let Some(list) = after_word(text, "CAPABILITY")
            {
                all.extend(list.split_ascii_whitespace().map(str::to_uppercase));
            }
        })
        .await?;
        self.capabilities = all;
        Ok(())
    }

    async fn login(&mut self, account: &Account) -> Result<(), Trouble> {
        let (user, password) = (&account.user, &account.password.0);
        let result = if self.can("AUTH=PLAIN") {
            // RFC 4616; takes any character.
            let secret = STANDARD.encode(format!("\0{user}\0{password}"));
            self.authenticate(&secret).await
        } else if self.can("LOGINDISABLED") {
            return Err(Trouble::Login(String::from(
                "the server takes no login on an unencrypted connection: write tls: starttls",
            )));
        } else {
            self.log_in_plainly(user, password).await
        };
        result.map_err(|trouble| match trouble {
            Trouble::No(text) => Trouble::login(text),
            other => other,
        })
    }

    pub(crate) async fn authenticate(&mut self, secret: &str) -> Result<(), Trouble> {
        if self.can("SASL-IR") {
            let command = format!("AUTHENTICATE PLAIN {secret}");
            return self.command(&command).await.map(drop);
        }
        let tag = self.begin("AUTHENTICATE PLAIN").await?;
        if self.continues(&tag, "AUTHENTICATE").await? {
            self.wire.send(format!("{secret}\r\n").as_bytes()).await?;
        }
        self.end(&tag, "AUTHENTICATE", STRAY_MOST, |_| {})
            .await
            .map(drop)
    }

    async fn log_in_plainly(&mut self, user: &str, password: &str) -> Result<(), Trouble> {
        if let (Some(user), Some(password)) = (quoted(user), quoted(password)) {
            let command = format!("LOGIN {user} {password}");
            return self.command(&command).await.map(drop);
        }
        let tag = self.begin(&format!("LOGIN {{{}}}", user.len())).await?;
        self.continues(&tag, "LOGIN").await?;
        let next = format!("{user} {{{}}}\r\n", password.len());
        self.wire.send(next.as_bytes()).await?;
        self.continues(&tag, "LOGIN").await?;
        self.wire.send(format!("{password}\r\n").as_bytes()).await?;
        self.end(&tag, "LOGIN", STRAY_MOST, |_| {}).await.map(drop)
    }

    /// Opens a folder for reading and changing.
    pub(crate) async fn select(&mut self, folder: &str) -> Result<(), Trouble> {
        (self.exists, self.known, self.validity) = (0, 0, 0);
        self.doomed.clear();
        let mut validity = 0;
        let command = format!("SELECT {}", mailbox(folder));
        let told = self
            .command_with(&command, STRAY_MOST, |answer| {
                if let Some(Piece::Text(text)) = answer.first()
                    && let Some(code) = text.to_uppercase().split("[UIDVALIDITY ").nth(1)
                {
                    let digits = code.split(']').next().unwrap_or_default();
                    validity = digits.trim().parse().unwrap_or(0);
                }
            })
            .await?;
        if told.to_uppercase().contains("[READ-ONLY]") {
            return Err(Trouble::No(String::from(
                "the folder can only be read, so that no mail can be marked, moved or deleted",
            )));
        }
        self.validity = validity;
        Ok(())
    }

    /// The numbers of the mails between two positions, both included, that have these marks (the
    /// words of SEARCH, RFC 3501 section 6.4.4).
    pub(crate) async fn search(
        &mut self,
        from: u32,
        to: u32,
        marks: &str,
    ) -> Result<Vec<u32>, Trouble> {
        let command = format!("UID SEARCH {from}:{to} {marks}");
        self.numbers(&command).await
    }

    async fn numbers(&mut self, command: &str) -> Result<Vec<u32>, Trouble> {
        let mut found = Vec::new();
        self.command_with(command, STRAY_MOST, |answer| {
            if let Some(Piece::Text(text)) = answer.first()
                && let Some(list) = after_word(text, "SEARCH")
            {
                found.extend(
                    list.split_ascii_whitespace()
                        .filter_map(|n| n.parse::<u32>().ok()),
                );
            }
        })
        .await?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Fetches mails by their numbers. Mails that are gone are left out.
    pub(crate) async fn fetch(
        &mut self,
        uids: &[u32],
        want: Want,
    ) -> Result<Vec<Fetched>, Trouble> {
        let set: Vec<String> = uids.iter().map(u32::to_string).collect();
        let (what, most) = match want {
            Want::Head => (
                "(UID RFC822.SIZE BODY.PEEK[HEADER.FIELDS (FROM SUBJECT MESSAGE-ID)])",
                HEAD_MOST,
            ),
            Want::Whole(most) => ("(UID RFC822.SIZE INTERNALDATE BODY.PEEK[])", most),
        };
        let command = format!("UID FETCH {} {what}", set.join(","));
        let mut all = Vec::new();
        self.command_with(&command, most, |answer| {
            if let Some(fetched) = fetched(answer)
                && uids.contains(&fetched.uid)
            {
                // However often the server tells of a mail, it is held once.
                all.retain(|known: &Fetched| known.uid != fetched.uid);
                all.push(fetched);
            }
        })
        .await?;
        Ok(all)
    }

    /// Marks a mail as seen.
    pub(crate) async fn mark_seen(&mut self, uid: u32) -> Result<(), Trouble> {
        let command = format!("UID STORE {uid} +FLAGS.SILENT (\\Seen)");
        self.command(&command).await.map(drop)
    }

    /// Deletes one mail, and no other that somebody else has marked as deleted: without UIDPLUS
    /// (RFC 4315) it only stays marked as long as there are such.
    pub(crate) async fn delete(&mut self, uid: u32) -> Result<(), Trouble> {
        let command = format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)");
        self.command(&command).await?;
        if self.can("UIDPLUS") {
            return self.command(&format!("UID EXPUNGE {uid}")).await.map(drop);
        }
        self.doomed.insert(uid);
        let marked = self.numbers("UID SEARCH DELETED").await?;
        if marked.iter().all(|uid| self.doomed.contains(uid)) {
            self.command("EXPUNGE").await?;
            self.doomed.clear();
        }
        Ok(())
    }

    /// Moves a mail to another folder (RFC 6851, or by copying), which is made when it is missing.
    /// `copied` is called when its copy lies there and it is still to be deleted.
    pub(crate) async fn move_to(
        &mut self,
        uid: u32,
        folder: &str,
        copied: impl AsyncFnOnce(),
    ) -> Result<(), Trouble> {
        let whole = self.can("MOVE");
        let word = if whole { "MOVE" } else { "COPY" };
        let command = format!("UID {word} {uid} {}", mailbox(folder));
        if let Err(trouble) = self.command(&command).await {
            self.make(folder, trouble).await?;
            self.command(&command).await?;
        }
        match whole {
            true => Ok(()),
            false => {
                copied().await;
                self.delete(uid).await
            }
        }
    }

    /// Puts a mail into a folder, which is made when it is missing.
    pub(crate) async fn append(
        &mut self,
        folder: &str,
        date: Option<&str>,
        mail: &[u8],
    ) -> Result<(), Trouble> {
        match self.append_once(folder, date, mail).await {
            Err(trouble @ Trouble::No(_)) => {
                self.make(folder, trouble).await?;
                self.append_once(folder, date, mail).await
            }
            other => other,
        }
    }

    async fn append_once(
        &mut self,
        folder: &str,
        date: Option<&str>,
        mail: &[u8],
    ) -> Result<(), Trouble> {
        let date = date
            .and_then(quoted)
            .map_or_else(String::new, |date| format!(" {date}"));
        let command = format!("APPEND {}{date} {{{}}}", mailbox(folder), mail.len());
        let tag = self.begin(&command).await?;
        self.continues(&tag, "APPEND").await?;
        self.wire.send(mail).await?;
        self.wire.send(b"\r\n").await?;
        self.end(&tag, "APPEND", STRAY_MOST, |_| {}).await.map(drop)
    }

    /// Makes a folder after the server said no, unless that was no answer at all.
    async fn make(&mut self, folder: &str, trouble: Trouble) -> Result<(), Trouble> {
        let Trouble::No(text) = trouble else {
            return Err(trouble);
        };
        let name = mailbox(folder);
        match self.command(&format!("CREATE {name}")).await {
            Ok(_) => {
                tracing::info!(folder, "the folder was missing and has been made");
                match self.command(&format!("SUBSCRIBE {name}")).await {
                    Err(lost @ Trouble::Lost(_)) => Err(lost),
                    _ => Ok(()),
                }
            }
            // It is there: what the server said before is the reason.
            Err(Trouble::No(_)) => Err(Trouble::No(text)),
            Err(other) => Err(other),
        }
    }

    /// Asks for nothing; the server tells what has changed.
    pub(crate) async fn noop(&mut self) -> Result<(), Trouble> {
        self.command("NOOP").await.map(drop)
    }

    /// Waits for the server to tell of something new (RFC 2177), or for `time`. Nothing is lost when
    /// the future is dropped, but the connection is of no more use then.
    pub(crate) async fn idle(&mut self, time: Duration) -> Result<(), Trouble> {
        let tag = self.begin("IDLE").await?;
        self.continues(&tag, "IDLE").await?;
        let waited = tokio::time::timeout(time, async {
            // What came since the last look may have been told before IDLE began.
            while self.exists <= self.known {
                let line = self.wire.line_some_time().await?;
                let text = String::from_utf8_lossy(&line).into_owned();
                if text.starts_with(&tag) {
                    return Err(Trouble::lost("the server ended IDLE by itself"));
                }
                self.note(&[Piece::Text(text)])?;
            }
            Ok(())
        })
        .await;
        if let Ok(Err(trouble)) = waited {
            return Err(trouble);
        }
        self.wire.send(b"DONE\r\n").await?;
        self.end(&tag, "IDLE", STRAY_MOST, |_| {}).await.map(drop)
    }

    /// Takes leave.
    pub(crate) async fn leave(mut self) {
        let leaving = self.command("LOGOUT");
        let _ = tokio::time::timeout(Duration::from_secs(2), leaving).await;
    }

    async fn command(&mut self, command: &str) -> Result<String, Trouble> {
        self.command_with(command, STRAY_MOST, |_| {}).await
    }

    /// Sends a command and reads to its end; `each` gets the untagged answers. Gives what the server
    /// said with its OK.
    async fn command_with(
        &mut self,
        command: &str,
        most: u64,
        each: impl FnMut(Answer),
    ) -> Result<String, Trouble> {
        let tag = self.begin(command).await?;
        let mut words = command.split(' ');
        let word = match words.next() {
            Some("UID") => words.next().unwrap_or("UID"),
            other => other.unwrap_or_default(),
        };
        self.end(&tag, word, most, each).await
    }

    async fn begin(&mut self, command: &str) -> Result<String, Trouble> {
        self.tag += 1;
        let tag = format!("x{} ", self.tag);
        let line = format!("{tag}{command}\r\n");
        self.wire.send(line.as_bytes()).await?;
        Ok(tag)
    }

    /// Waits for the server to ask for more.
    async fn continues(&mut self, tag: &str, word: &str) -> Result<bool, Trouble> {
        for _ in 0..ANSWERS_MOST {
            let answer = self.answer(STRAY_MOST).await?;
            match answer.first() {
                Some(Piece::Text(text)) if text.starts_with('+') => return Ok(true),
                Some(Piece::Text(text)) if text.starts_with(tag) => {
                    return Err(completion(&text[tag.len()..], word)
                        .err()
                        .unwrap_or_else(|| Trouble::nonsense(word)));
                }
                _ => self.note(&answer)?,
            }
        }
        Err(Trouble::nonsense(word))
    }

    async fn end(
        &mut self,
        tag: &str,
        word: &str,
        most: u64,
        mut each: impl FnMut(Answer),
    ) -> Result<String, Trouble> {
        for _ in 0..ANSWERS_MOST {
            let answer = self.answer(most).await?;
            match answer.first() {
                Some(Piece::Text(text)) if text.starts_with(tag) => {
                    return completion(&text[tag.len()..], word);
                }
                Some(Piece::Text(text)) if text.starts_with("* ") => {
                    if word != "LOGOUT" {
                        self.note(&answer)?;
                    }
                    each(answer);
                }
                Some(Piece::Text(text)) if text.starts_with('+') => {}
                _ => return Err(Trouble::nonsense(word)),
            }
        }
        Err(Trouble::nonsense(word))
    }

    /// Reads one answer with its literals, which are not larger than `most` together.
    async fn answer(&mut self, most: u64) -> Result<Answer, Trouble> {
        let mut answer = Vec::new();
        let mut left = most;
        loop {
            let line = self.wire.line().await?;
            let mut text = String::from_utf8_lossy(&line).into_owned();
            let size = literal_size(&text);
            if size.is_some() {
                let brace = text.rfind('{').unwrap_or(text.len());
                text.truncate(brace);
            }
            answer.push(Piece::Text(text));
            let Some(size) = size else {
                return Ok(answer);
            };
            answer.push(match self.wire.literal(size, left).await? {
                Bounded::Whole(bytes) => {
                    left -= size;
                    Piece::Literal(bytes)
                }
                Bounded::TooLarge(size) => Piece::TooLarge(size),
            });
            if answer.len() > 1000 {
                return Err(Trouble::nonsense("a command"));
            }
        }
    }

    /// Takes up what an untagged answer says of the open folder, whatever was asked.
    fn note(&mut self, answer: &[Piece]) -> Result<(), Trouble> {
        let Some(Piece::Text(text)) = answer.first() else {
            return Ok(());
        };
        let mut words = text.split_ascii_whitespace().skip(1);
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        if first.eq_ignore_ascii_case("BYE") {
            return Err(Trouble::Lost(format!(
                "the server says goodbye: {}",
                shown(text)
            )));
        }
        let number: Option<u32> = first.parse().ok();
        match (number, second.map(str::to_uppercase).as_deref()) {
            (Some(number), Some("EXISTS")) => self.exists = number,
            (Some(_), Some("EXPUNGE")) => {
                self.exists = self.exists.saturating_sub(1);
                self.known = self.known.saturating_sub(1);
            }
            _ => {}
        }
        Ok(())
    }
}

/// What the end of a command says.
fn completion(text: &str, word: &str) -> Result<String, Trouble> {
    let (state, rest) = text.split_once(' ').unwrap_or((text, ""));
    match state.to_uppercase().as_str() {
        "OK" => Ok(rest.to_owned()),
        "NO" | "BAD" => Err(Trouble::No(shown(rest))),
        _ => Err(Trouble::nonsense(word)),
    }
}

/// What follows `* WORD `.
fn after_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let rest = text.strip_prefix("* ")?;
    let (first, list) = rest.split_once(' ').unwrap_or((rest, ""));
    first.eq_ignore_ascii_case(word).then_some(list)
}

/// The size of the literal that a line announces at its end.
fn literal_size(text: &str) -> Option<u64> {
    let (_, size) = text.strip_suffix('}')?.rsplit_once('{')?;
    size.strip_suffix('+').unwrap_or(size).parse().ok()
}

/// A quoted string; nothing where it would need a literal.
fn quoted(text: &str) -> Option<String> {
    let plain = text.bytes().all(|byte| matches!(byte, 32..=126));
    plain.then(|| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// A folder's name as the server wants it: modified UTF-7 (RFC 3501 section 5.1.3), quoted.
fn mailbox(name: &str) -> String {
    let mut text = String::from("\"");
    let mut wide: Vec<u16> = Vec::new();
    let flush = |wide: &mut Vec<u16>, text: &mut String| {
        if !wide.is_empty() {
            let bytes: Vec<u8> = wide.drain(..).flat_map(u16::to_be_bytes).collect();
            let coded = base64::engine::general_purpose::STANDARD_NO_PAD.encode(bytes);
            text.push('&');
            text.push_str(&coded.replace('/', ","));
            text.push('-');
        }
    };
    for c in name.chars() {
        if !matches!(c, ' '..='~') {
            wide.extend(c.encode_utf16(&mut [0; 2]).iter());
            continue;
        }
        flush(&mut wide, &mut text);
        match c {
            '&' => text.push_str("&-"),
            '"' | '\\' => text.extend(['\\', c]),
            c => text.push(c),
        }
    }
    flush(&mut wide, &mut text);
    text.push('"');
    text
}

enum Token {
    Open,
    Close,
    Atom(String),
    Text(Vec<u8>),
    TooLarge(u64),
}

/// Reads `* N FETCH (NAME VALUE …)`.
fn fetched(answer: Answer) -> Option<Fetched> {
    let mut tokens = tokens(answer).into_iter().peekable();
    let atom = |token: Token| match token {
        Token::Atom(atom) => Some(atom.to_uppercase()),
        _ => None,
    };
    let (_star, _number, word) = (tokens.next()?, tokens.next()?, atom(tokens.next()?)?);
    if word != "FETCH" || !matches!(tokens.next()?, Token::Open) {
        return None;
    }
    let mut fetched = Fetched::default();
    while let Some(name) = tokens.next().and_then(atom) {
        let value = tokens.next()?;
        match (name.as_str(), value) {
            ("UID", Token::Atom(uid)) => fetched.uid = uid.parse().ok()?,
            ("RFC822.SIZE", Token::Atom(size)) => fetched.size = size.parse().ok(),
            ("INTERNALDATE", Token::Text(date)) => fetched.date = String::from_utf8(date).ok(),
            (name, Token::Text(body)) if name.starts_with("BODY[") => {
                fetched.body = Some(Bounded::Whole(body));
            }
            (name, Token::TooLarge(size)) if name.starts_with("BODY[") => {
                fetched.body = Some(Bounded::TooLarge(size));
            }
            (_, Token::Open) => {
                let mut depth = 1;
                while depth > 0 {
                    match tokens.next()? {
                        Token::Open => depth += 1,
                        Token::Close => depth -= 1,
                        _ => {}
                    }
                }
            }
            (_, Token::Close) => break,
            _ => {}
        }
    }
    Some(fetched)
}

fn tokens(answer: Answer) -> Vec<Token> {
    let mut tokens = Vec::new();
    for piece in answer {
        match piece {
            Piece::Literal(bytes) => tokens.push(Token::Text(bytes)),
            Piece::TooLarge(size) => tokens.push(Token::TooLarge(size)),
            Piece::Text(text) => text_tokens(&text, &mut tokens),
        }
    }
    tokens
}

fn text_tokens(text: &str, tokens: &mut Vec<Token>) {
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            ' ' => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '"' => {
                let mut value = String::new();
                while let Some(c) = chars.next() {
                    match c {
                        '"' => break,
                        '\\' => value.extend(chars.next()),
                        c => value.push(c),
                    }
                }
                tokens.push(Token::Text(value.into_bytes()));
            }
            c => {
                let mut atom = String::from(c);
                let mut within = c == '[';
                while let Some(&c) = chars.peek() {
                    if !within && matches!(c, ' ' | '(' | ')') {
                        break;
                    }
                    within = (within || c == '[') && c != ']';
                    atom.push(c);
                    chars.next();
                }
                tokens.push(Token::Atom(atom));
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    use super::*;
    use crate::account::{self, Protocol};

    /// A server that greets with the first answer and has one for each line that it gets; `TAG` in
    /// it is the line's first word.
    pub(crate) async fn saying(answers: &[&'static str]) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = answers.to_vec();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await?;
            let (read, mut write) = stream.split();
            let mut lines = BufReader::new(read).lines();
            let mut tag = String::new();
            for answer in answers {
                let answer = answer.replace("TAG", &tag) + "\r\n";
                write.write_all(answer.as_bytes()).await?;
                let line = lines.next_line().await?.unwrap_or_default();
                tag = line.split(' ').next().unwrap_or_default().to_owned();
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            Ok::<_, std::io::Error>(())
        });
        port
    }

    const CAPA: &str = "* CAPABILITY IMAP4rev1 SASL-IR\r\nTAG OK x";

    #[tokio::test]
    async fn a_folder_is_read_as_the_server_has_it() {
        let port = saying(&[
            "* OK hello",
            CAPA,
            "TAG OK in",
            CAPA,
            "* 2 EXISTS\r\n* OK [UIDVALIDITY 77] x\r\nTAG OK [READ-WRITE] x",
            "* SEARCH 9 5 5\r\n* 3 EXISTS\r\nTAG OK x",
            "* 1 FETCH (UID 5 RFC822.SIZE 4 BODY[] {4}\r\nmail)\r\n* 7 FETCH (UID 99 BODY[] \"x\")\r\nTAG OK x",
            "* 1 FETCH (UID 5 BODY[] {5}\r\nlarge)\r\nTAG OK x",
            "TAG OK x",
        ])
        .await;
        let mut imap = Imap::open(&account::at(Protocol::Imap, port))
            .await
            .unwrap();
        imap.select("INBOX").await.unwrap();
        assert_eq!((imap.exists, imap.validity), (2, 77));
        assert_eq!(imap.search(1, 2, "UNDELETED UNSEEN").await.unwrap(), [5, 9]);
        assert_eq!(imap.exists, 3);
        let all = imap.fetch(&[5], Want::Whole(4)).await.unwrap();
        assert_eq!(all.len(), 1, "only what was asked for");
        assert!(matches!(&all[0].body, Some(Bounded::Whole(body)) if body == b"mail"));
        let all = imap.fetch(&[5], Want::Whole(4)).await.unwrap();
        assert!(matches!(all[0].body, Some(Bounded::TooLarge(5))));
        imap.mark_seen(5).await.unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_trouble_and_no_panic() {
        for (answers, what) in [
            (&["+OK pop"][..], "no IMAP server"),
            (&["* BYE full"], "refuses"),
            (&["* OK", "* BYE full"], "goodbye"),
            (&["* OK", "zzz OK x"], "cannot be read"),
            (&["* OK", "TAG WHAT"], "cannot be read"),
            (
                &["* OK", "* CAPABILITY LOGINDISABLED\r\nTAG OK"],
                "starttls",
            ),
            (
                &["* OK", CAPA, "TAG NO [AUTHENTICATIONFAILED] no"],
                "check 'user'",
            ),
            (
                &["* OK", CAPA, "TAG NO [UNAVAILABLE] later"],
                "no login now",
            ),
            (
                &["* OK", CAPA, "TAG OK", CAPA, "TAG OK [READ-ONLY] x"],
                "only be read",
            ),
            (
                &["* OK", CAPA, "TAG OK", CAPA, "TAG NO no such folder"],
                "no such folder",
            ),
        ] {
            let port = saying(answers).await;
            let all = async {
                let mut imap = Imap::open(&account::at(Protocol::Imap, port)).await?;
                imap.select("INBOX").await
            };
            let trouble = all.await.unwrap_err().to_string();
            assert!(trouble.contains(what), "{trouble} for {what}");
        }
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn folders_are_written_in_modified_utf7() {
        // The second is the example of RFC 3501.
        assert_eq!(mailbox("INBOX.A & B"), "\"INBOX.A &- B\"");
        assert_eq!(
            mailbox("~peter/mail/台北/日本語"),
            "\"~peter/mail/&U,BTFw-/&ZeVnLIqe-\""
        );
        assert_eq!(mailbox("a\"\\\r\nx"), "\"a\\\"\\\\&AA0ACg-x\"");
    }

    #[test]
    fn a_fetch_is_read_in_any_order_and_what_was_not_asked_is_passed_by() {
        let answer = vec![
            text("* 12 FETCH (FLAGS (\\Seen (x)) BODY[HEADER.FIELDS (FROM SUBJECT)] "),
            Piece::Literal(b"From: a) UID 9\r\n".to_vec()),
            text(" INTERNALDATE \"17-Jul-1996 02:44:25 -0700\" X NIL RFC822.SIZE 99 UID 7)"),
        ];
        let one = fetched(answer).unwrap();
        assert_eq!((one.uid, one.size), (7, Some(99)));
        assert_eq!(one.date.as_deref(), Some("17-Jul-1996 02:44:25 -0700"));
        assert!(matches!(one.body, Some(Bounded::Whole(body)) if body == b"From: a) UID 9\r\n"));
        for odd in [
            "* 1 FETCH",
            "* 1 FETCH (UID",
            "* 1 FETCH (UID x)",
            "* OK",
            "",
            "* 1 FETCH (((",
        ] {
            let one = fetched(vec![text(odd)]);
            assert!(
                one.is_none_or(|one| one.uid == 0 && one.body.is_none()),
                "{odd}"
            );
        }
        let quoted = fetched(vec![text("* 1 FETCH (UID 3 BODY[] \"a\\\"b\")")]).unwrap();
        assert!(matches!(quoted.body, Some(Bounded::Whole(body)) if body == b"a\"b"));
    }

    #[test]
    fn only_a_size_at_the_end_announces_a_literal() {
        assert_eq!(literal_size("* 1 FETCH (BODY[] {12}"), Some(12));
        assert_eq!(literal_size("a {12+}"), Some(12));
        assert_eq!(literal_size("a {12} "), None);
        assert_eq!(literal_size("a {x}"), None);
    }
}
