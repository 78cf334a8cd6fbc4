//! Assembles the services: reads configuration, starts roles, ends them in order. Nothing else.
//!
//! - [`role`]: one role of a lab, in a process of its own: `continuum role …`
//! - [`lab`]: the supervisor of a lab, and how it is asked
//! - [`logs`]: where a process writes what it has to say
//! - [`signals`]: what ends a process

#![allow(clippy::result_large_err, reason = "a fault is the exceptional road, and says everything at once")]

pub mod command;
pub mod lab;
pub mod logs;
pub mod role;
pub mod signals;
