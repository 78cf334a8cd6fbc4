//! The operator API: everything the console and the verbs know and can do.
//!
//! - [`service`]: the gRPC service; every answer that is an error is a fault with a correlation id
//! - [`watch`]: snapshot, then changes
//! - [`access`]: who is let in, what was done, what somebody may
//! - [`orders`]: an order becomes a job, exactly once
//! - [`readiness`]: what would happen, to what, what would be lost, what is not ready

pub(crate) mod access;
pub(crate) mod orders;
pub(crate) mod readiness;
pub(crate) mod service;
pub(crate) mod watch;
