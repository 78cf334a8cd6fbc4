//! The lab: a site on this machine, with guests that prove themselves.
//!
//! - [`ledger`]: what a process guest does with its disks

pub mod ledger;
