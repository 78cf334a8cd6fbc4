//! The wire vocabulary of Continuum: what is generated from the `.proto` files, and nothing else.
//!
//! - `operator.proto`: the operator API, which the console and the verbs speak
//! - `coordination.proto`: what servers and their vault say to each other; enrolment
//!
//! Bulk data does not travel here: the replication channel (`continuum-wire`) carries frames in framing
//! of its own.

/// Version 1 of the protocol.
pub mod v1 {
    #![allow(missing_docs, reason = "documented in the .proto files that this is generated from")]
    #![allow(clippy::all, clippy::pedantic, reason = "generated code")]
    tonic::include_proto!("continuum.v1");
}
