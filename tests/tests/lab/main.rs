//! End to end, on a real lab: the same binary, the same verbs, processes that are killed.

mod bare;
mod console;
mod drill;
mod guests;
mod headless;
mod hostile;
mod kvm;
mod moments;
mod partition;
mod planned;
mod plans;
mod prove;
mod resync;
