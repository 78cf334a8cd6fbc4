//! Servers and their vault: who may join, who is there, what each should do, and single acts.
//!
//! - [`enrolment`]: a token becomes a certificate
//! - [`sessions`]: who is there; commands and their answers
//! - [`assignment`]: what each server should be doing, derived from what is known
//! - [`reports`]: what servers tell
//! - [`sums`]: what an agent asks of its machine's replica
//! - [`service`]: the gRPC services

pub(crate) mod assignment;
pub(crate) mod enrolment;
pub(crate) mod reports;
pub(crate) mod service;
pub(crate) mod sessions;
pub(crate) mod sums;
