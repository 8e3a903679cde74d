//! What has been made of a message's body: its document, shared by everything that reads it.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use xbus_core::Message;
use xbus_core::message::Parsed;

use crate::reader::Pause;
use crate::{Document, XmlLimits};

/// What lies with a body: its document, and a place for what others make of it.
#[derive(Default)]
pub struct Cache {
    xml: OnceLock<Result<Arc<Document>, String>>,
    pause: Option<Pause>,
    other: OnceLock<Parsed>,
}

/// The cache that lies with the body; a fresh one should something else lie there.
pub fn of(message: &Message) -> Arc<Cache> {
    message
        .body
        .parsed()
        .get_or_init(|| Arc::new(Cache::default()) as Arc<dyn Any + Send + Sync>)
        .clone()
        .downcast()
        .unwrap_or_default()
}

/// Leaves with a body where a look at it has paused, for whoever looks for something there or behind: the
/// tag is the first in the element around it, and each around it the first of its name in its own.
pub fn paused(message: &Message, pause: Pause) {
    let cache = Cache {
        pause: Some(pause),
        ..Cache::default()
    };
    // What lies there already has read more.
    let _ = message.body.parsed().set(Arc::new(cache));
}

impl Cache {
    /// Where a look at the body has paused, as [`paused`] says.
    pub fn pause(&self) -> Option<&Pause> {
        self.pause.as_ref()
    }

    /// The document of `message`, whose cache this is; parsed once, whoever asks first. The error
    /// says what is wrong and where.
    pub fn document(&self, message: &Message, limits: &XmlLimits) -> Result<Arc<Document>, String> {
        self.xml
            .get_or_init(|| {
                let text = xbus_charset::text(message, true)?;
                Document::parse(&text, limits)
                    .map(Arc::new)
                    .map_err(|error| error.to_string())
            })
            .clone()
    }

    /// The document, if something has parsed it already.
    pub fn parsed(&self) -> Option<&Arc<Document>> {
        self.xml.get()?.as_ref().ok()
    }

    /// Whether something has tried to parse it.
    pub fn is_tried(&self) -> bool {
        self.xml.get().is_some()
    }

    /// What another crate keeps with the body.
    pub fn other<T: Any + Send + Sync + Default>(&self) -> Arc<T> {
        self.other
            .get_or_init(|| Arc::new(T::default()) as Parsed)
            .clone()
            .downcast()
            .unwrap_or_default()
    }
}
