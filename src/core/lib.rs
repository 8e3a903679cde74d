//! The core of xbus: messages, routes, lanes and guarantees.
//!
//! It knows no protocol, no script language, no file format and no database; those come in through
//! the traits [`Receiver`], [`Sender`], [`Transform`] and [`Store`].

pub mod adapter;
pub mod attachment;
pub mod broker;
pub(crate) mod brokered;
pub mod bus;
pub mod codec;
mod cores;
pub mod current;
pub mod delivery;
pub(crate) mod distribute;
pub mod fault;
pub mod flow;
pub(crate) mod forward;
pub(crate) mod homes;
pub mod inbox;
pub mod incident;
pub mod lanes;
pub mod log_limit;
pub mod long;
pub mod message;
pub mod notice;
pub mod once;
pub mod outbox;
pub mod plan;
pub mod problem;
pub mod progress;
pub(crate) mod protocol;
pub mod queues;
pub mod recovery;
pub(crate) mod request;
pub mod router;
pub mod secrets;
pub mod spec;
pub mod stats;
pub mod store;
pub(crate) mod target;
pub mod template;
pub mod time;
pub mod transform;
pub mod workers;

pub use adapter::{Call, Kind, Reach, Receiver, Request, SendError, Sender, Stage, Stop};
pub use attachment::{Attachment, Attachments};
pub use delivery::Delivery;
pub use fault::{Code, Fault};
pub use inbox::{Arrival, Fits, Inbox, Reply, Status};
pub use message::{Body, Format, Headers, Message, MessageId, essence};
pub use plan::Plan;
pub use problem::{Problem, Problems};
pub use store::Store;
pub use time::Timestamp;
pub use transform::{Checks, Compiler, Context, Expression, Rules, Transform};
