//! The vault: what is registered, protected, allowed, happening.
//!
//! - [`store`]: the schema and its queries: SQLite now, the same text for PostgreSQL
//! - [`estate`]: everything in memory, written through to the store; news for watchers
//! - [`registry`]: sessions of servers; assignments and commands
//! - [`saga`]: the job engine: steps that are on record before and after they happen
//! - [`orders`]: every operation as a saga
//! - [`health`]: symptoms, RPO, alerts
//! - [`coordination`], [`operator`]: the two gRPC services, and enrolment
//! - [`mod@run`]: assembling all of it
//!
//! The data plane goes on without it. A vault that dies at any moment continues its jobs at the next start.

pub mod coordination;
pub mod estate;
pub mod health;
pub mod operator;
pub mod orders;
pub mod registry;
pub mod run;
pub mod saga;
pub mod store;

pub use run::{Bound, VaultConfig, run};
