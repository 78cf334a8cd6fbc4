//! How Continuum's processes know and reach one another.
//!
//! - [`ca`], [`identity`], [`token`], [`enroll`]: who is who, and how a newcomer becomes someone
//! - [`tls`], [`handshake`], [`peers`]: mutual TLS 1.3 with one crypto provider; why a handshake failed; who
//!   is denied although its certificate is good
//! - [`grpc`]: listeners that know their peer, channels that notice a dead link, faults that arrive whole
//! - [`channel`]: the replication channel, in framing of its own
//! - [`session`]: a server's session with its vault; [`policy`]: a policy in messages

pub mod audit;
pub mod ca;
pub mod channel;
mod door;
pub mod enroll;
pub mod grpc;
pub mod handshake;
pub mod identity;
pub mod peers;
pub mod policy;
pub mod session;
pub mod tls;
pub mod token;
