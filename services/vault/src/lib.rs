//! The control plane: what is known, allowed and under way.
//!
//! ```text
//! operators ──mTLS──► operator ─► jobs ─► coordination ◄──mTLS── agents, process servers, master targets
//!                        │          │          │
//!                        └───► core ┴──────────┘            core: store, estate, hub
//! newcomers ──token──► coordination::enrolment
//! ```
//!
//! - [`Vault`], [`VaultConfig`]: starting one, and what an installation does with it
//! - [`Keeper`]: what an administrator does beside it, such as making and revoking operators
//! - `store`: one relational schema; `estate`: what is known now; `hub`: news for watchers
//! - `jobs`: durable sagas; `coordination`: servers; `operator`: people; `health`: symptoms and alerts
//!
//! Replication never depends on this crate: servers go on with what they were last told.

#![allow(clippy::result_large_err, reason = "a fault is the exceptional road, and says everything at once")]

mod access;
mod config;
mod coordination;
mod core;
mod estate;
mod grants;
mod groups;
mod health;
mod hub;
mod jobs;
mod keeper;
mod measure;
mod operator;
mod plans;
mod project;
mod relays;
mod report;
mod store;
mod truth;
mod vault;
mod world;

pub use config::{SiteSpec, Thresholds, VaultConfig};
pub use keeper::{Keeper, KnownOperator, KnownServer};
pub use store::StoreError;
pub use store::access::{AuditLine, broken_at};
pub use vault::{Addresses, Vault, run};
