//! What crosses crates: the prover, and the end-to-end tests that use it.
//!
//! - [`oracle`]: a workload that stamps every block it writes, and the prover that says whether an image is a
//!   state the source was in. Written against nothing of ours but the NBD client.
//!
//! `tests/run` runs everything; `tests/lab/` holds the tests on a real lab.

pub mod oracle;
