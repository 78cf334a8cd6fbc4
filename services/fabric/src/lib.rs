//! One adapter per kind of site. A fabric's name stands here and in configuration, nowhere else.
//!
//! - [`compute`]: bringing machines up on replicas, as a trait
//! - [`kvm`]: machines that run in QEMU on this host, as their owner started them
//! - [`lab`]: machines that are programs on this host
//! - [`nbd`]: a client for the disks of machines

pub mod compute;
pub mod kvm;
pub mod lab;
pub mod nbd;
