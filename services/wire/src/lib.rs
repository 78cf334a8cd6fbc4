//! How Continuum's processes know and reach one another.
//!
//! - [`ca`], [`identity`], [`token`], [`enroll`]: who is who, and how a newcomer becomes someone
//! - [`tls`]: mutual TLS 1.3, one crypto provider
//! - [`grpc`]: listeners that know their peer, channels that notice a dead link, faults that arrive whole
//! - [`channel`]: the replication channel, in framing of its own
//! - [`session`]: a server's session with its vault

pub mod ca;
pub mod channel;
pub mod enroll;
pub mod grpc;
pub mod identity;
pub mod session;
pub mod tls;
pub mod token;
