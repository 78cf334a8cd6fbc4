//! End to end, on a real lab: the same binary, the same verbs, processes that are killed.

mod bare;
mod console;
mod drill;
mod groups;
mod guests;
mod headless;
mod home;
mod hooks;
mod hostile;
mod moments;
mod partition;
mod planned;
mod plans;
mod policies;
mod prove;
mod relays;
mod resync;
