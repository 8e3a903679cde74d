//! The running bus: what routes share.

use std::sync::{Arc, RwLock};

use tokio_util::task::TaskTracker;

use crate::incident::Incidents;
use crate::lanes::Lanes;
use crate::plan::Plan;
use crate::store::Store;

/// What all routes share while the bus runs.
pub struct Bus {
    store: Arc<dyn Store>,
    plan: RwLock<Arc<Plan>>,
    lanes: Lanes,
    incidents: Incidents,
    tasks: TaskTracker,
}

impl Bus {
    /// A bus over `store` that runs `plan`.
    pub fn new(store: Arc<dyn Store>, plan: Plan, incidents: Incidents) -> Arc<Self> {
        Arc::new(Self {
            lanes: Lanes::new(store.clone()),
            store,
            plan: RwLock::new(Arc::new(plan)),
            incidents,
            tasks: TaskTracker::new(),
        })
    }

    /// The durable storage.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The plan that runs now.
    pub fn plan(&self) -> Arc<Plan> {
        self.plan
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone()
    }

    /// The lanes.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// What has failed and is not mended.
    pub fn incidents(&self) -> &Incidents {
        &self.incidents
    }

    /// The tasks of messages that are on their way.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }
}
