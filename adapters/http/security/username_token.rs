//! wsse:UsernameToken as it comes in, and the digest of passwords (OASIS Web Services Security:
//! UsernameToken Profile 1.1, sections 3 and 5; 1.0 differs in nothing that is read here).
//!
//! Absent: keys derived from passwords (section 4).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha1::{Digest, Sha1};
use subtle::{Choice, ConstantTimeEq};
use xbus_core::Timestamp;
use xbus_xml::Document;

use super::{Denied, WSSE, WSU, child, only_text, timestamp};

/// What the types of passwords begin with; 1.1 uses the names of 1.0.
pub(super) const PROFILE: &str =
    "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-username-token-profile-1.0";
pub(super) const BASE64: &str = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-soap-message-security-1.0#Base64Binary";
/// Bytes of a nonce, decoded, at most; 16 are usual.
const NONCE: usize = 256;

/// Base64 (RFC 4648) with or without its final `=`.
const LENIENT: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// A token as it came.
pub(super) struct Token {
    pub(super) user: String,
    password: Given,
    pub(super) nonce: Option<Vec<u8>>,
    /// As written, and as a time.
    pub(super) created: Option<(String, Timestamp)>,
}

enum Given {
    Text(String),
    Digest(Vec<u8>),
}

/// `Base64(SHA-1(nonce + created + password))` before the Base64.
pub fn digest(nonce: &[u8], created: &str, password: &str) -> [u8; 20] {
    Sha1::new()
        .chain_update(nonce)
        .chain_update(created)
        .chain_update(password)
        .finalize()
        .into()
}

impl Token {
    /// Reads the token at `node`.
    pub(super) fn read(document: &Document, node: u32) -> Result<Self, Denied> {
        let text = |namespace, name| only_text(document, node, namespace, name);
        let user = text(WSSE, "Username")?
            .ok_or_else(|| Denied::invalid("the UsernameToken has no Username"))?;
        let given = text(WSSE, "Password")?
            .ok_or_else(|| Denied::unsupported("the UsernameToken has no Password"))?;
        let attribute = |name: &str, attribute: &str| {
            let element = child(document, node, WSSE, name).ok().flatten()?;
            document.attribute(element, "", attribute)
        };
        let kind = attribute("Password", "Type").map_or("#PasswordText", |kind| {
            kind.trim().strip_prefix(PROFILE).unwrap_or_default()
        });
        let decode = |name: &str, text: &str| {
            let text: String = text.split_ascii_whitespace().collect();
            LENIENT
                .decode(text)
                .map_err(|_| Denied::invalid(format!("{name} is not Base64")))
        };
        let password = match kind {
            "#PasswordText" => Given::Text(given),
            "#PasswordDigest" => Given::Digest(decode("the digest", &given)?),
            _ => {
                return Err(Denied::unsupported(
                    "the type of the Password is neither PasswordText nor PasswordDigest",
                ));
            }
        };
        let nonce = match text(WSSE, "Nonce")? {
            Some(text) => {
                let coding = attribute("Nonce", "EncodingType");
                if coding.is_some_and(|coding| coding.trim() != BASE64) {
                    return Err(Denied::unsupported("the Nonce is not in Base64Binary"));
                }
                let nonce = decode("the Nonce", &text)?;
                if nonce.is_empty() || nonce.len() > NONCE {
                    return Err(Denied::invalid(format!(
                        "the Nonce does not have 1 to {NONCE} bytes"
                    )));
                }
                Some(nonce)
            }
            None => None,
        };
        // Some callers leave Created in the namespace of the elements around it.
        let created = match text(WSU, "Created")?.or(text(WSSE, "Created")?) {
            Some(text) => {
                let text = text.trim();
                let time = timestamp::parse(text)
                    .ok_or_else(|| Denied::invalid("Created of the UsernameToken is not a time"))?;
                Some((text.to_owned(), time))
            }
            None => None,
        };
        let token = Self {
            user,
            password,
            nonce,
            created,
        };
        if token.is_digest() && (token.nonce.is_none() || token.created.is_none()) {
            return Err(Denied::invalid(
                "a PasswordDigest needs Nonce and Created, so that it cannot be used twice",
            ));
        }
        Ok(token)
    }

    pub(super) fn is_digest(&self) -> bool {
        matches!(self.password, Given::Digest(_))
    }

    /// Whether the token was made with this password, in a time that tells nothing of it but, for
    /// digests, how many blocks of SHA-1 it takes.
    pub(super) fn is_of(&self, password: &str) -> Choice {
        match &self.password {
            // Hashes are of one length whatever the passwords are.
            Given::Text(given) => Sha1::digest(given).ct_eq(&Sha1::digest(password)),
            Given::Digest(given) => {
                let nonce = self.nonce.as_deref().unwrap_or_default();
                let created = self.created.as_ref().map_or("", |(text, _)| text);
                digest(nonce, created, password)[..].ct_eq(given)
            }
        }
    }
}

/// A digest as it stands in a token.
pub(super) fn encoded(nonce: &[u8], created: &str, password: &str) -> String {
    BASE64_STANDARD.encode(digest(nonce, created, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What other implementations made: two requests of SoapUI, and the example of the ONVIF
    /// Application Programmer's Guide. (The profile's own example names no password, and its digest
    /// is not one of SHA-1.)
    #[test]
    fn digests_are_those_of_others() {
        for (nonce, created, password, expected) in [
            (
                "0TBQcVnd9H4uGi1jGxqJWg==",
                "2014-06-21T12:43:21.791Z",
                "iLoveDogs",
                "PfZyE8nQQR2rAsODn7iVGaf8hD8=",
            ),
            (
                "v7FxYg7FZGsHbuFtIVWhCA==",
                "2014-07-24T02:30:11.010Z",
                "iLoveDogs",
                "JPyw/4MeEoEGmR9sOcBqzjGZc6U=",
            ),
            (
                "LKqI6G/AikKCQrN0zqZFlg==",
                "2010-09-16T07:50:45Z",
                "userpassword",
                "tuOSpGlFlIXsozq4HFNeeGeFLEI=",
            ),
        ] {
            let nonce = BASE64_STANDARD.decode(nonce).expect("Base64");
            assert_eq!(encoded(&nonce, created, password), expected);
        }
    }
}
