//! Mail addresses: what a message gives is one address or a fault.

use std::sync::Arc;

use lettre::Address;
use lettre::message::{Mailbox, Mailboxes};
use xbus_core::spec::{Args, Node};
use xbus_core::template::{Part, Template};
use xbus_core::{Code, Context, Fault, Message};

/// One entry of `to`, `cc`, `bcc` or `from`.
pub(crate) enum Recipient {
    /// As written, for every message.
    Fixed(Vec<Mailbox>),
    /// With `{{ }}`: one address for each message.
    Given(Template),
}

/// The entries under `name`; nothing when one of them is wrong, which is reported.
pub(crate) fn entries(args: &Args<'_>, name: &str) -> Option<Vec<Recipient>> {
    let all: Vec<Option<Recipient>> = args
        .items(name)
        .iter()
        .map(|node| entry(args, node))
        .collect();
    all.into_iter().collect()
}

fn entry(args: &Args<'_>, node: &Node) -> Option<Recipient> {
    let template = args.build.template(node)?;
    let Some(text) = template.as_constant() else {
        return Some(Recipient::Given(template));
    };
    match fixed(text) {
        Some(addresses) => Some(Recipient::Fixed(addresses)),
        None => {
            args.build.problems.error(
                &node.place,
                "bad-address",
                format!("'{text}' is no mail address"),
                "write desk@acme.example or 'Order desk <desk@acme.example>'",
            );
            None
        }
    }
}

/// Addresses as somebody who writes a route may write them, with commas between them.
pub(crate) fn fixed(text: &str) -> Option<Vec<Mailbox>> {
    if text.chars().any(char::is_control) {
        return None;
    }
    if let Some(one) = parse(text) {
        return Some(vec![one]);
    }
    let all: Mailboxes = text.parse().ok()?;
    let all: Option<Vec<Mailbox>> = all
        .into_iter()
        .map(|one| Some(Mailbox::new(one.name, address(one.email.as_ref())?)))
        .collect();
    let all = all?;
    // The parser stops at what it does not understand: nothing may be left out.
    let complete = all.len() == text.matches('@').count() && !all.is_empty();
    complete.then_some(all)
}

impl Recipient {
    /// The addresses for one message.
    pub(crate) fn addresses(
        &self,
        message: &Arc<Message>,
        context: &Context,
    ) -> Result<Vec<Mailbox>, Fault> {
        let template = match self {
            Recipient::Fixed(addresses) => return Ok(addresses.clone()),
            Recipient::Given(template) => template,
        };
        let whole = matches!(template.parts(), [Part::Expression(_)]);
        let text = template.render_with(message, context, |value| {
            // Within a written text no value may end the address or begin another one.
            let special = |c: char| c.is_control() || (!whole && "<>,;:\"\\()[]".contains(c));
            match value.chars().any(special) {
                true => Err(no_address()),
                false => Ok(value),
            }
        })?;
        parse(&text).map(|one| vec![one]).ok_or_else(no_address)
    }
}

fn no_address() -> Fault {
    Fault::new(
        Code::Transform,
        "what the message gives as a mail address is not exactly one address",
    )
}

/// Exactly one `local@domain` or `Name <local@domain>` (RFC 5322 section 3.4, without comments,
/// groups and quoted local parts).
fn parse(text: &str) -> Option<Mailbox> {
    let text = text.trim();
    if text.chars().any(char::is_control) || text.matches('@').count() != 1 {
        return None;
    }
    let Some((name, rest)) = text.split_once('<') else {
        return Some(Mailbox::new(None, address(text)?));
    };
    let address = address(rest.strip_suffix('>')?)?;
    let name = name.trim();
    let name = match name.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => name,
    };
    if name.contains(['"', '<', '>', '\\', '@']) {
        return None;
    }
    Some(Mailbox::new(
        (!name.is_empty()).then(|| name.to_owned()),
        address,
    ))
}

fn address(text: &str) -> Option<Address> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || "<>,;:\"\\()[]".contains(c);
    if text.chars().any(odd) {
        return None;
    }
    let written: Address = text.parse().ok()?;
    if written.domain().is_ascii() {
        return Some(written);
    }
    // As DNS knows it (RFC 5891), so that every server takes it.
    let domain = idna::domain_to_ascii_strict(written.domain()).ok()?;
    Address::new(written.user(), domain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_is_one_address() {
        for (text, name) in [
            ("a@b.example", None),
            (" a@b.example ", None),
            ("<a@b.example>", None),
            ("Order desk <a@b.example>", Some("Order desk")),
            ("\"Desk, Order\" <a@b.example>", Some("Desk, Order")),
        ] {
            let one = parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(one.email.to_string(), "a@b.example");
            assert_eq!(one.name.as_deref(), name);
        }
    }

    #[test]
    fn what_is_not_one_address_is_none() {
        for text in [
            "",
            "a",
            "a@",
            "@b",
            "a@b.example, c@d.example",
            "a@b.example c@d.example",
            "a@b.example;c",
            "a@b.example\r\nBcc: c@d.example",
            "a@b.example\nX: y",
            "<a@b.example> trailing",
            "x <a@b.example>, y",
            "a b@c.example",
            "a@b.example>",
            "evil@x <a@b.example>",
            "group: a@b.example;",
            "undisclosed-recipients:;",
            "\"a b\"@c.example",
            "\"a@b\"@c.example",
            "a(comment)@b.example",
            "a@b.example (comment)",
            "@relay.example:a@b.example",
            "a%b.example",
            "a@b..example",
            "a@-b.example",
            "a@b.example\0",
            "a@b.example\u{2028}c",
            "a@b\u{ff0e}example, c",
            "=?utf-8?Q?a=40b.example?=",
            "x <<a@b.example>>",
            "a@b.example SIZE=1",
        ] {
            assert!(parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn domains_go_out_as_dns_knows_them() {
        for (text, address) in [
            ("desk@bücher.example", "desk@xn--bcher-kva.example"),
            ("Desk <desk@BÜCHER.example>", "desk@xn--bcher-kva.example"),
            ("Grüße <grüße@acme.example>", "grüße@acme.example"),
            ("a@[127.0.0.1]", ""),
        ] {
            let parsed = parse(text).map(|one| one.email.to_string());
            assert_eq!(parsed.unwrap_or_default(), address, "{text}");
        }
        let both = fixed("a@bücher.example, b@acme.example").unwrap();
        assert_eq!(both[0].email.domain(), "xn--bcher-kva.example");
    }

    #[test]
    fn routes_may_write_several() {
        assert_eq!(fixed("a@b.example, C D <c@d.example>").unwrap().len(), 2);
        assert!(fixed("a@b.example, nonsense").is_none());
        assert!(fixed("a@b.example c@d.example").is_none());
    }
}
