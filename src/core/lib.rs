//! The core of xbus: messages, routes, lanes and guarantees.
//!
//! It knows no protocol, no script language, no file format and no database; those come in through
//! the traits [`Transform`] and [`Store`].

pub mod fault;
pub mod message;
pub mod store;
pub mod time;
pub mod transform;

pub use fault::{Code, Fault};
pub use message::{Body, Format, Headers, Message, MessageId};
pub use store::Store;
pub use time::Timestamp;
pub use transform::{Compiler, Context, Expression, Transform};
