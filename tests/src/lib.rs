//! What crosses crates: the prover, and the end-to-end tests that use it.
//!
//! - [`oracle`]: a workload that stamps every block it writes, and the prover that says whether an image is a
//!   state the source was in. Written against nothing of ours but the NBD client.
//! - [`feed`]: a source in memory that feeds a store, for benches
//! - [`lab`]: a lab of one's own for a test or a bench
//!
//! `tests/run` runs everything; `tests/tests/lab/` holds the tests on a real lab.

pub mod feed;
pub mod lab;
pub mod oracle;
