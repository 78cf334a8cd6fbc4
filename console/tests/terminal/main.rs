//! The console in a terminal: the real binary on a pseudo terminal, against a vault of the test's own. What
//! it sends is read by an emulator that is not ours.

#![allow(clippy::result_large_err, reason = "faults are made once")]

#[path = "../fake/mod.rs"]
mod fake;
#[allow(dead_code, reason = "the pictures use the rest")]
#[path = "../screens/scene.rs"]
mod scene;

mod leaving;
mod screen;
mod using;
