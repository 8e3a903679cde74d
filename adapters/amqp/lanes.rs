//! Lanes that live in the broker.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use xbus_core::broker::{LaneBroker, LaneCommand, LaneDone, LaneEntry, LaneName, LaneWorker};
use xbus_core::store::{QueueStatus, Queued, StoreError};
use xbus_core::{SendError, Stop};

use crate::link::Link;

/// The lanes of one connection.
pub(crate) struct Broker {
    link: Arc<Link>,
}

impl Broker {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }
}

impl LaneBroker for Broker {
    fn name(&self) -> &str {
        self.link.name()
    }

    fn is_up(&self) -> bool {
        self.link.is_up()
    }

    fn put(&self, _entries: Vec<LaneEntry>) -> BoxFuture<'_, (usize, Option<SendError>)> {
        unimplemented!()
    }

    fn work(
        &self,
        _lane: LaneName,
        _worker: Arc<dyn LaneWorker>,
        _stop: Stop,
    ) -> BoxFuture<'static, ()> {
        unimplemented!()
    }

    fn status<'a>(&'a self, _lane: &'a LaneName) -> BoxFuture<'a, Result<QueueStatus, StoreError>> {
        unimplemented!()
    }

    fn entries<'a>(
        &'a self,
        _lane: &'a LaneName,
        _parked: bool,
        _limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Queued>, StoreError>> {
        unimplemented!()
    }

    fn command<'a>(
        &'a self,
        _lane: &'a LaneName,
        _command: LaneCommand,
        _worker: Option<Arc<dyn LaneWorker>>,
    ) -> BoxFuture<'a, Result<LaneDone, StoreError>> {
        unimplemented!()
    }

    fn empty<'a>(
        &'a self,
        _lane: &'a LaneName,
        _keep: &'a (dyn Fn(Vec<Queued>) -> BoxFuture<'a, Result<(), StoreError>> + Send + Sync),
    ) -> BoxFuture<'a, Result<usize, StoreError>> {
        unimplemented!()
    }
}
