//! One adapter per kind of site, behind traits.
//!
//! - [`compute`]: brings machines up on disks that somebody serves
//! - [`lab`]: the lab's adapter: guests that are programs of ours
//! - [`process`]: processes that are known by more than their number
//!
//! No kind of site is named outside this crate and the configuration: kinds are strings.

pub mod compute;
pub mod lab;
pub mod process;
