//! A message's work, which runs to its end whether or not anybody waits for it.
//!
//! Absent on purpose: a task for each message. While somebody waits, the work runs where it is waited for: handing
//! it to a task and its result back was a tenth of what a message that is passed through costs. It gets
//! a task when the wait is given up.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

use crate::bus::Bus;
use crate::plan::Route;
use crate::{Arrival, Code, Fault, Reply, current, router};

/// The work on a message that was handed in, and the wait for its result.
///
/// Dropped before the end it goes on in a task of its own; dropped before it was ever polled, nothing
/// happens.
#[must_use = "nothing happens until it is awaited"]
pub struct Delivery {
    /// Nothing once it has ended. Boxed, so that it can be handed over without being moved.
    work: Option<BoxFuture<'static, Result<Reply, Fault>>>,
    begun: bool,
}

impl Delivery {
    pub(crate) fn new(bus: &Arc<Bus>, route: &Arc<Route>, arrival: Arrival, waits: bool) -> Self {
        let (bus, route) = (bus.clone(), route.clone());
        let (id, name) = (arrival.message.id, route.name.clone());
        let arrival = Box::new(arrival);
        // The bus waits for it when it stops.
        let counted = bus.tasks().token();
        let run = async move {
            let _counted = counted;
            let run = AssertUnwindSafe(router::run(&bus, &route, arrival, waits));
            run.catch_unwind().await.unwrap_or_else(|_| {
                tracing::error!("a message's work ended by a defect of the bus");
                Err(Fault::new(Code::Internal, "the bus failed"))
            })
        };
        Self {
            work: Some(Box::pin(current::about(id, name, run))),
            begun: false,
        }
    }
}

impl Future for Delivery {
    type Output = Result<Reply, Fault>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.begun = true;
        let Some(work) = &mut self.work else {
            // Its result was taken: there is nothing to wait for.
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(cx);
        if polled.is_ready() {
            self.work = None;
        }
        polled
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        // Without a runtime the process is at its end.
        if self.begun
            && let Some(work) = self.work.take()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// A delivery that waits for the first channel and then uses the second.
    fn delivery() -> (Delivery, oneshot::Sender<()>, oneshot::Receiver<()>) {
        let (go, gone) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let work = async move {
            let _ = gone.await;
            let _ = ending.send(());
            Err(Fault::new(Code::Internal, "done"))
        };
        let delivery = Delivery {
            work: Some(Box::pin(work)),
            begun: false,
        };
        (delivery, go, ended)
    }

    #[tokio::test]
    async fn what_was_begun_goes_on_when_nobody_waits_for_it() {
        let (mut delivery, go, ended) = delivery();
        assert!((&mut delivery).now_or_never().is_none());
        drop(delivery);
        go.send(()).unwrap();
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_not_begun_is_not_done() {
        let (delivery, go, ended) = delivery();
        drop(delivery);
        assert!(go.send(()).is_err() && ended.await.is_err());
    }

    #[tokio::test]
    async fn who_waits_gets_the_result() {
        let (delivery, go, _ended) = delivery();
        go.send(()).unwrap();
        assert_eq!(delivery.await.unwrap_err().reason, "done");
    }
}
