//! End to end, on a real lab: the same binary, the same verbs, processes that are killed.

mod bare;
mod drill;
mod guests;
mod moments;
mod partition;
mod prove;
