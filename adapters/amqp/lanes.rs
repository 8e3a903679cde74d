//! Lanes that live in the broker.
//!
//! A partition of a lane is a durable quorum queue with a single active consumer. Its owner holds
//! the head unacknowledged and tries it in this process: a negative acknowledgement would send it to
//! the tail. What the owner knows of a failed head, what is parked and what was released stand in
//! queues beside it; see [`names`].
//!
//! Absent: AMQP transactions, and messages beyond the head in lists of what waits. A queue with a
//! single active consumer cannot be read by anybody else.

mod admin;
mod control;
mod empty;
mod entry;
mod failure;
mod head;
mod keep;
mod names;
mod nodes;
mod parked;
mod partition;
mod put;
mod report;
mod seat;
mod state;
mod takeover;
mod wire;

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::{BoxFuture, join_all};
use xbus_core::Stop;
use xbus_core::broker::{LaneBroker, LaneCommand, LaneDone, LaneName, LaneWorker, LaneWriter};
use xbus_core::store::{QueueStatus, Queued, StoreError};

pub(crate) use self::entry::fuzz;
use self::nodes::Nodes;
use self::partition::Partition;
use self::put::Putter;
use self::seat::{Health, Seat};
use crate::link::Link;

/// The lanes of one connection.
pub(crate) struct Broker {
    link: Arc<Link>,
    nodes: Arc<Nodes>,
    reports: Arc<Reports>,
}

/// Reads reports for this node as long as a lane is worked on.
#[derive(Default)]
struct Reports(Mutex<(usize, Stop)>);

impl Broker {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self {
            nodes: Arc::new(Nodes::new(link.clone())),
            reports: Arc::default(),
            link,
        }
    }
}

impl Reports {
    fn enter(&self, nodes: &Arc<Nodes>) {
        let mut lock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lock.0 += 1;
        if lock.0 == 1 {
            lock.1 = Stop::new();
            tokio::spawn(report::receive(nodes.clone(), lock.1.clone()));
        }
    }

    fn leave(&self) {
        let mut lock = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lock.0 = lock.0.saturating_sub(1);
        if lock.0 == 0 {
            lock.1.cancel();
        }
    }
}

impl LaneBroker for Broker {
    fn name(&self) -> &str {
        self.link.name()
    }

    fn can_keep(&self, lane: &LaneName) -> Result<(), String> {
        names::usable(lane)
    }

    fn queues_of(&self, lane: &LaneName) -> Vec<Arc<str>> {
        names::all(lane)
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }

    fn writer(&self) -> Box<dyn LaneWriter> {
        Box::new(Putter::new(self.link.clone()))
    }

    fn work(
        &self,
        lane: LaneName,
        worker: Arc<dyn LaneWorker>,
        stop: Stop,
    ) -> BoxFuture<'static, ()> {
        let nodes = self.nodes.clone();
        let reports = self.reports.clone();
        Box::pin(async move {
            let health = Arc::new(Health::new(worker.clone()));
            let mut seats = Vec::new();
            let mut tasks = Vec::new();
            for (index, queue) in (0..).zip(names::partitions(&lane)) {
                let (seat, commands) = Seat::new(lane.clone(), index, queue, worker.clone());
                seats.push(seat.clone());
                let partition =
                    Partition::new(nodes.clone(), seat, commands, health.clone(), stop.clone());
                tasks.push(partition);
            }
            nodes.enlist(&seats);
            reports.enter(&nodes);
            let tasks = tasks.into_iter().map(|task| tokio::spawn(task.run()));
            for ended in join_all(tasks).await {
                if let Err(error) = ended {
                    tracing::error!(queue = %lane.queue, %error, "a lane's task ended by a defect of the bus");
                }
            }
            nodes.dismiss(&seats);
            reports.leave();
        })
    }

    fn status<'a>(&'a self, lane: &'a LaneName) -> BoxFuture<'a, Result<QueueStatus, StoreError>> {
        Box::pin(admin::status(&self.nodes, lane))
    }

    fn entries<'a>(
        &'a self,
        lane: &'a LaneName,
        parked: bool,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Queued>, StoreError>> {
        Box::pin(admin::entries(&self.nodes, lane, parked, limit))
    }

    fn command<'a>(
        &'a self,
        lane: &'a LaneName,
        command: LaneCommand,
        worker: Option<Arc<dyn LaneWorker>>,
    ) -> BoxFuture<'a, Result<LaneDone, StoreError>> {
        Box::pin(admin::command(&self.nodes, lane, command, worker))
    }

    fn empty<'a>(
        &'a self,
        lane: &'a LaneName,
        keep: &'a (dyn Fn(Vec<Queued>) -> BoxFuture<'a, Result<(), StoreError>> + Send + Sync),
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        Box::pin(empty::run(&self.link, lane, keep))
    }
}
