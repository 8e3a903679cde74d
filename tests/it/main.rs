//! The one integration binary: black box, the real command and real servers, over loopback only.
//!
//! Each test starts its own bus on free ports in a folder of its own. Tests wait for conditions,
//! with a bound, never for time to pass.

mod support;

mod alerts;
mod amqp;
mod amqp_outages;
mod amqp_queues;
mod amqp_sending;
mod broker_lanes;
mod broker_lanes_moved;
mod broker_lanes_names;
mod broker_lanes_nodes;
mod broker_lanes_outages;
mod charsets;
mod command;
mod crash;
mod docs;
mod example;
mod faults;
mod files;
mod flows;
mod hostile;
mod journal;
mod lanes;
mod log;
mod mail;
mod mail_sending;
mod mailbox;
mod once;
mod rabbit_harness;
mod refused;
mod regressions;
mod rollback;
mod soap;
mod soap_attachments;
mod soap_samples;
mod soap_security;
mod store;
mod workers;
