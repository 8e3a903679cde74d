//! What a route says of its answer's charset holds for what its transformations have made.

use std::sync::Arc;

use xbus_charset::Writing;
use xbus_core::transform::CompileError;
use xbus_core::{Context, Fault, Format, Message, Transform};

use crate::at_start;

/// Writes text in a charset.
struct Written(Writing);

/// What writes text in the charset that `content_type` names; as it is where that names none.
pub(crate) fn written(content_type: &str) -> Result<Arc<dyn Transform>, CompileError> {
    let label = xbus_charset::label(content_type).unwrap_or("utf-8");
    let writing = Writing::to(label).map_err(|_| {
        at_start(
            format!("no charset has the label '{label}'"),
            Some("write an IANA label such as utf-8, iso-8859-1 or windows-1252".into()),
        )
    })?;
    Ok(Arc::new(Written(writing)))
}

impl Transform for Written {
    fn apply(&self, message: &Arc<Message>, _: &Context) -> Result<Message, Fault> {
        let given = message.content_type().and_then(xbus_charset::label);
        let same = given.is_some_and(|given| given.eq_ignore_ascii_case(self.0.label()));
        // Octets are in what their maker says.
        if same || matches!(message.format(), None | Some(Format::Bytes)) {
            return Ok(Message::clone(message));
        }
        self.0.apply(message)
    }
}
