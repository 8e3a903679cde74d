//! Works off the queue of an async target: each head is sent by the route as it is now, so that
//! mending a route mends its queue.

use std::sync::{Arc, Weak};

use futures_util::future::BoxFuture;

use crate::bus::Bus;
use crate::distribute::{StageAndCommit, enqueue};
use crate::homes::front_of;
use crate::lanes::Consumer;
use crate::plan::{LanePolicy, Route};
use crate::request;
use crate::store::{Change, Queued};
use crate::transform::Context;
use crate::{Code, Fault, Request};

/// Delivers what one queue holds.
pub(crate) struct TargetConsumer {
    bus: Weak<Bus>,
    queue: Arc<str>,
    /// The store's queue that is worked off before it.
    front: Arc<str>,
    place: Place,
}

/// Where the messages stand that are delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In the store's queue of the lane.
    Store,
    /// In the store's queue that is worked off before it.
    Front,
    /// At a broker.
    Broker,
}

impl TargetConsumer {
    pub(crate) fn new(bus: &Arc<Bus>, queue: &Arc<str>) -> Self {
        Self::of(bus, queue, Place::Store)
    }

    /// Of what came back from a broker.
    pub(crate) fn before(bus: &Arc<Bus>, queue: &Arc<str>) -> Self {
        Self::of(bus, queue, Place::Front)
    }

    /// Of what a broker keeps.
    pub(crate) fn at_broker(bus: &Arc<Bus>, queue: &Arc<str>) -> Self {
        Self::of(bus, queue, Place::Broker)
    }

    fn of(bus: &Arc<Bus>, queue: &Arc<str>, place: Place) -> Self {
        Self {
            bus: Arc::downgrade(bus),
            queue: queue.clone(),
            front: front_of(queue),
            place,
        }
    }

    /// Whether others have to go first, or elsewhere.
    fn must_wait(&self, bus: &Bus) -> bool {
        match self.place {
            Place::Store => {
                bus.homes().elsewhere(&self.queue) || !bus.store().lanes(&self.front).is_empty()
            }
            Place::Front => bus.homes().elsewhere(&self.queue),
            Place::Broker => false,
        }
    }

    /// The route and target that the queue belongs to now.
    fn find(&self) -> Option<(Arc<Bus>, Arc<Route>, usize)> {
        let bus = self.bus.upgrade()?;
        let (route, at) = bus.plan().lane(&self.queue)?;
        Some((bus, route, at))
    }

    async fn send(&self, head: &Queued) -> Result<Vec<Change>, Fault> {
        let Some((bus, route, at)) = self.find() else {
            return Err(Fault::new(Code::Internal, "no route has this target now"));
        };
        let Some(target) = route.all_targets().nth(at) else {
            return Err(Fault::new(Code::Internal, "no route has this target now"));
        };
        let step = &target.step;
        let context = Context::new(route.name.clone(), head.message.clone());
        let made = step
            .sender
            .make(head.message.clone(), &context)
            .map_err(|fault| fault.at(&step.name))?;
        let sent = match &made {
            Request::Call(call) => request::send_once(step, &**call).await?,
            Request::Stage(stage) => {
                let call = StageAndCommit::new(&**stage, head.message.clone());
                request::send_once(step, &call).await?
            }
            Request::Put(put) => {
                let how = enqueue(&bus, put.queue.clone(), &put.message, &context)?;
                return Ok(how.put().into_iter().collect());
            }
        };
        let response = sent.map_err(|error| error.into_fault().at(&step.name))?;
        request::tell_of_partial(&bus, &route, step, &response);
        Ok(Vec::new())
    }
}

impl Consumer for TargetConsumer {
    fn policy(&self) -> Option<LanePolicy> {
        let (bus, route, at) = self.find()?;
        if self.must_wait(&bus) {
            return None;
        }
        let lane = route.all_targets().nth(at)?.lane.as_ref()?;
        Some(lane.policy.clone())
    }

    fn deliver<'a>(&'a self, head: &'a Queued) -> BoxFuture<'a, Result<Vec<Change>, Fault>> {
        Box::pin(self.send(head))
    }

    fn route(&self) -> Option<Arc<str>> {
        self.find().map(|(_, route, _)| route.name.clone())
    }

    fn failed(&self, head: &Queued, fault: &Fault, _parked: bool) {
        let Some((bus, route, at)) = self.find() else {
            return;
        };
        let Some(target) = route.all_targets().nth(at) else {
            return;
        };
        let kind = if fault.rejected {
            "rejection"
        } else {
            match fault.code {
                Code::Transform | Code::Internal => fault.code.name(),
                _ => "outage",
            }
        };
        bus.incidents().failed(
            &route.name,
            &target.step.name,
            kind,
            &fault.for_admin(),
            Some(head.message.id),
            Some(&self.queue),
        );
    }

    fn cleared(&self) {
        let Some((bus, route, at)) = self.find() else {
            // Its target is gone from the routes; what was told of the queue is over all the same.
            if let Some(bus) = self.bus.upgrade() {
                bus.incidents().queue_cleared(&self.queue);
            }
            return;
        };
        if let Some(target) = route.all_targets().nth(at) {
            bus.incidents().succeeded(&route.name, &target.step.name);
        }
        if self.place == Place::Front && bus.store().lanes(&self.front).is_empty() {
            bus.lanes().resume(&self.queue);
        }
    }
}
