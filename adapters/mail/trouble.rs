//! What goes wrong between the bus and a mailbox, by what to do about it.

use std::fmt;

/// Why a mailbox cannot be worked on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Trouble {
    /// The connection is gone or cannot be made, or the server talks nonsense: connect again.
    Lost(String),
    /// The server does not let the user in: connecting again at once would only lock the account.
    Login(String),
    /// The server understood and says no; the connection is as it was.
    No(String),
}

impl Trouble {
    pub(crate) fn lost(text: impl Into<String>) -> Self {
        Trouble::Lost(text.into())
    }

    /// A login to which the server said no, unless it said that it is about something else
    /// (RFC 2449, RFC 3206, RFC 5530).
    pub(crate) fn login(text: String) -> Self {
        let upper = text.to_uppercase();
        let later = [
            "[IN-USE]",
            "[INUSE]",
            "[LOGIN-DELAY]",
            "[SYS/TEMP]",
            "[UNAVAILABLE]",
            "[SERVERBUG]",
            "[LIMIT]",
        ];
        match later.iter().any(|code| upper.contains(code)) {
            true => Trouble::Lost(format!("no login now: {text}")),
            false => Trouble::Login(text),
        }
    }

    /// The server said what it must not say. What it said is not repeated: it may be a mail.
    pub(crate) fn nonsense(place: &str) -> Self {
        Trouble::Lost(format!("the server's answer to {place} cannot be read"))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Lost(text) | Trouble::No(text) => f.write_str(text),
            Trouble::Login(text) => write!(
                f,
                "the login is refused: {text}; check 'user' and 'password' of the connection, and \
                 whether the account may use this protocol"
            ),
        }
    }
}

/// What a server said, fit for one line of a log.
pub(crate) fn shown(text: &str) -> String {
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(300)
        .collect();
    plain.trim().to_owned()
}

/// What went wrong with encryption, with what to do where the library's words help nobody.
pub(crate) fn explained(error: &str) -> String {
    if !error.contains("CaUsedAsEndEntity") {
        return error.to_owned();
    }
    String::from(
        "the server shows a certificate that is marked as an authority's (self-signed, CA:TRUE), which no \
         server may; make it anew with basicConstraints CA:FALSE and name that as 'ca', or have an \
         authority of your own sign the server's and name the authority's",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_signed_authority_as_a_server_is_told_of_in_words() {
        let told = explained("invalid peer certificate: Other(OtherError(CaUsedAsEndEntity))");
        assert!(told.contains("CA:FALSE") && told.contains("'ca'"), "{told}");
        let other = "invalid peer certificate: UnknownIssuer";
        assert_eq!(explained(other), other);
    }
}
