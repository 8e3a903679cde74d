//! What the fuzz targets (tests/fuzz) need of this crate beside its public parts. No part of its API.

use bytes::Bytes;

use crate::soap::Version;
use crate::{guard, soap, splice, wellformed, wrap};

/// Looks at an envelope, with and without a need for its body's first element.
pub fn envelope(body: &[u8], charset: Option<&str>) {
    let whole = soap::look(body, charset, true);
    let without = soap::look(body, charset, false);
    match (&whole, &without) {
        (Ok(whole), Ok(without)) => {
            assert_eq!(whole.version, without.version);
            assert_eq!(whole.fault, without.fault);
            assert_eq!(whole.addressed, without.addressed);
            assert_eq!(whole.must_understand, without.must_understand);
        }
        (Err(a), Err(b)) => assert_eq!(a, b),
        _ => panic!("{whole:?} is not {without:?}"),
    }
}

/// Makes envelopes of a body: of what is well-formed becomes what is, and of the version asked for.
pub fn wrapped(body: &[u8]) {
    if wellformed(body, None).is_err() {
        return;
    }
    let body = Bytes::copy_from_slice(body);
    for version in [Version::V11, Version::V12] {
        if let Ok((made, _)) = wrap::into_envelope(version, &body, None) {
            let shown = String::from_utf8_lossy(&made);
            let seen = soap::look(&made, None, false).map(|seen| seen.version);
            assert_eq!(seen, Ok(Some(version)), "{shown}");
            if let Err(error) = wellformed(&made, None) {
                panic!("{error}: {shown}");
            }
            if let Ok(seen) = soap::look(&made, None, false)
                && std::str::from_utf8(&made).is_ok()
            {
                let (with, _) = splice::into_header(&made, &seen, "<x xmlns='urn:x'/>", &[]);
                let shown = String::from_utf8_lossy(&with);
                if let Err(error) = wellformed(&with, None) {
                    panic!("a block put into the Header: {error}: {shown}");
                }
            }
        }
    }
}

/// Whether a body is well-formed, as the receiver sees it.
pub fn wellformed(body: &[u8], charset: Option<&str>) -> Result<(), String> {
    wellformed::check(body, charset, 256, 1000, true)
}

/// Follows the framing of a connection in one piece and in small ones. Panics where they disagree.
pub fn framing(stream: &[u8]) {
    guard::follow(stream);
}
