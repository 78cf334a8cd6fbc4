//! The lab: a site on this machine, with guests that prove themselves.
//!
//! - [`compute`]: starting, asking and ending guests
//! - [`guest`]: a guest, as a program
//! - [`ledger`]: what a process guest does with its disks
//! - [`vitals`]: how a guest is, and how it is asked

pub mod compute;
pub mod guest;
pub mod ledger;
pub mod vitals;

pub use compute::LabCompute;
