//! `continuum`: what an operator sees and types.
//!
//! - [`verb`]: one command, one answer, one exit code
//! - [`profile`]: which vault is meant, and the operator's credentials for it
//!
//! The system is known only through the operator API: whatever is shown or done here, a script can show
//! and do, too. No service is called, except that the process hands itself over to one (`continuum role`)
//! or to the lab's supervisor (`continuum lab`).

// A fault ends what was asked for: it is made once, and its size is of no matter.
#![allow(clippy::result_large_err)]

pub mod profile;
pub mod verb;
