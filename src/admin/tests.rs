//! The admin side over a real socket, with a real bus on a store in memory.

mod access;
mod alerts;
mod memory;
mod messages;
mod metrics;
mod queues;
mod world;
