//! Long operations: durable, resumable, observable.
//!
//! - [`plan`]: what a kind of job consists of, and when it is possible
//! - [`writes`]: the changes of rows that belong to a step, made in the step's own transaction
//! - [`engine`]: one step after another, through crashes, cancels and undo
//! - [`starts`]: first copies that were put off begin when it is time
//! - [`steps`]: what each step does to the world

pub(crate) mod engine;
pub(crate) mod plan;
pub(crate) mod starts;
pub(crate) mod steps;
#[cfg(test)]
mod tests;
pub(crate) mod writes;
