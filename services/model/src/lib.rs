//! The domain of Continuum: ids, units, the feed and its frames, states and their legal moves, policies.
//!
//! Pure: no I/O, no async. The one clock here (`world::SystemClock`) is handed in by services; nothing in the domain reads it. Everything here can be replayed from its inputs, and
//! knows nothing else of ours.
//!
//! - [`id`]: typed identifiers; [`units`]: sizes and offsets; [`time`]: moments in microseconds
//! - [`feed`]: records, frames, their bytes and checksums
//! - [`protection`]: the state machine of a protection; [`point`]: recovery points and how one is asked for
//! - [`policy`]: what an operator may configure, validated as a whole; [`hours`] of the week; [`recovery_plan`]: who is brought up when
//! - [`job`]: states of jobs and steps; [`retry`]: when a failed exchange is tried again
//! - [`report`]: what a drill or failover leaves for whoever asks later
//! - [`digest`]: what two copies of a disk are compared by; [`bits`]: sets of regions
//! - [`fault`]: the shape every error takes before a person sees it; [`untrusted`]: text from outside
//! - [`world`]: clock and randomness as traits, so that one seed can drive a whole world

pub mod bits;
pub mod digest;
pub mod fault;
pub mod feed;
pub mod health;
pub mod hours;
pub mod id;
pub mod job;
pub mod point;
pub mod policy;
pub mod protection;
pub mod recovery_plan;
pub mod report;
pub mod retry;
pub mod time;
pub mod units;
pub mod untrusted;
pub mod world;
