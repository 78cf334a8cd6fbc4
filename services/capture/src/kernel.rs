//! The calls to the kernel that have no safe wrapper anywhere: ioctls of file systems and loop devices, signals.
//!
//! All `unsafe` of this crate is here, each block with its reason. What these calls mean, and when they are made, is
//! elsewhere: `freeze`, `attach`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// `_IOWR('X', 119, int)`
const FIFREEZE: libc::c_ulong = 0xC004_5877;
/// `_IOWR('X', 120, int)`
const FITHAW: libc::c_ulong = 0xC004_5878;

/// An ioctl whose argument is a number, or none.
fn ioctl_number(fd: impl AsFd, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: the descriptor is open as long as it is borrowed; none of the requests of this file that come here takes
    // its argument for an address, so nothing of this process's memory is read or written.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), request as _, argument) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// Writes nothing to this file system from now on; whoever writes waits. The descriptor is of anything on it.
pub(crate) fn freeze(fd: impl AsFd) -> io::Result<()> {
    ioctl_number(fd, FIFREEZE, 0).map(drop)
}

/// Ends that.
pub(crate) fn thaw(fd: impl AsFd) -> io::Result<()> {
    ioctl_number(fd, FITHAW, 0).map(drop)
}

/// The signals by which a service and its group are ended do not end this process any more.
pub(crate) fn ignore_ends() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: `SIG_IGN` is no function of ours: nothing runs in a signal's context.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}
