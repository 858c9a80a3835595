//! The system calls of a tap.
#![expect(unsafe_code, reason = "ioctl, readv and writev")]

use std::ffi::{CStr, CString};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_char, c_int, c_short, c_uint};
use net_client::IoVec;

/// The longest name of an interface, without its NUL.
pub(crate) const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Makes or takes the interface `name`, and returns its name: a `%d` is filled in by the kernel.
/// `name` fits [`NAME_MAX`].
pub(crate) fn set_interface(fd: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<String> {
    // SAFETY: all-zero bytes are a valid `ifreq`, which is integers, pointers and arrays of those.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays 0.
    for (to, from) in request.ifr_name[..NAME_MAX].iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).map_err(|_| invalid())?;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(name_of(&request))
}

/// TUNGETIFF: the interface's name and IFF_ flags. EBADFD when it is gone, or the queue detached.
pub(crate) fn interface(fd: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    // SAFETY: all-zero bytes are a valid `ifreq`, as in `set_interface`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF has set the flags, and any bits are valid ones.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((
        name_of(&request),
        // IFF_VNET_HDR and IFF_MULTI_QUEUE are among the low 16 bits.
        c_int::from(flags.cast_unsigned()),
    ))
}

/// TUNSETQUEUE: whether the interface spreads its frames over this queue too.
pub(crate) fn set_queue(fd: BorrowedFd<'_>, attached: bool) -> io::Result<()> {
    let flag = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    // SAFETY: all-zero bytes are a valid `ifreq`, as in `set_interface`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    request.ifr_ifru.ifru_flags = c_short::try_from(flag).map_err(|_| invalid())?;
    // SAFETY: TUNSETQUEUE reads one `ifreq`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETQUEUE, &request) })
}

/// TUNSETSNDBUF: bytes of frames that the host has not dealt with yet, at most.
pub(crate) fn set_send_buffer(fd: BorrowedFd<'_>, len: c_int) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads one `int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETSNDBUF, &len) })
}

/// Takes over a descriptor that this process was started with, and makes it close-on-exec. EBUSY
/// for one that this process has opened itself, or taken over before.
pub(crate) fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    is_inherited(number)?;
    // SAFETY: F_SETFD takes an integer, and nothing depends on the descriptor being passed on.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open. It was not close-on-exec, as all are that the standard library
    // opens, so no object of this process owns it; it came from whoever started the process and named
    // it to us. A second call finds it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Whether a descriptor is open and came from whoever started this process.
pub(crate) fn is_inherited(number: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFD takes nothing, and says EBADF of a number that is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    check(flags)?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Ok(())
}

/// TUNGETIFF on a number that [`is_inherited`].
pub(crate) fn inherited_interface(number: RawFd) -> io::Result<(String, c_int)> {
    is_inherited(number)?;
    // SAFETY: the descriptor is open, and nobody of this process closes it, as in `inherit`.
    interface(unsafe { BorrowedFd::borrow_raw(number) })
}

/// Makes calls on the descriptor return instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes nothing.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: F_SETFL takes an integer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn name_of(request: &libc::ifreq) -> String {
    let mut bytes = request.ifr_name.map(|c| c.to_ne_bytes()[0]);
    bytes[NAME_MAX] = 0;
    let name = CStr::from_bytes_until_nul(&bytes).unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// TUNGETFEATURES: the IFF_ flags that the driver knows.
pub(crate) fn features(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    let mut features: c_uint = 0;
    // SAFETY: TUNGETFEATURES writes one `unsigned int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETFEATURES, &mut features) })?;
    Ok(features.cast_signed())
}

/// TUNSETVNETHDRSZ.
pub(crate) fn set_header_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = c_int::try_from(len).map_err(|_| invalid())?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) })
}

/// TUNSETVNETLE.
pub(crate) fn set_little_endian(fd: BorrowedFd<'_>, little_endian: bool) -> io::Result<()> {
    let value = c_int::from(little_endian);
    // SAFETY: TUNSETVNETLE reads one `int`.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETLE, &value) })
}

/// TUNSETOFFLOAD with TUN_F_ bits.
pub(crate) fn set_offload(fd: BorrowedFd<'_>, bits: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(bits),
        )
    })
}

/// The index of an interface in this network namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is a string that ends in NUL and lives across the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// The MTU of an interface in this network namespace.
pub(crate) fn mtu(name: &str) -> io::Result<usize> {
    // SAFETY: takes numbers and gives one.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(fd)?;
    // SAFETY: the descriptor was made just now, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: all-zero bytes are a valid `ifreq`, as in `set_interface`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    // The last byte stays 0.
    for (to, from) in request.ifr_name[..NAME_MAX].iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    // SAFETY: SIOCGIFMTU reads and writes one `ifreq`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) })?;
    // SAFETY: SIOCGIFMTU has set the MTU, and any bits are a valid number.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    usize::try_from(mtu).map_err(|_| invalid())
}

/// Writes one frame. Not by the C library's functions, which make each call a point where the thread could be
/// cancelled: that takes longer than the rest of what is done here.
pub(crate) fn write(fd: BorrowedFd<'_>, iov: &[IoVec]) -> io::Result<usize> {
    again_if_interrupted(|| match iov {
        [one] => {
            // SAFETY: the memory is there for as long as the frame is lent, by `IoVec::new`.
            unsafe { libc::syscall(libc::SYS_write, fd.as_raw_fd(), one.base(), one.len()) }
        }
        many => {
            // SAFETY: `IoVec` is laid out as `struct iovec`, and its memory is there as above.
            unsafe { libc::syscall(libc::SYS_writev, fd.as_raw_fd(), many.as_ptr(), many.len()) }
        }
    })
}

/// Reads one frame, as [`write`] writes.
pub(crate) fn read(fd: BorrowedFd<'_>, iov: &[IoVec]) -> io::Result<usize> {
    again_if_interrupted(|| match iov {
        [one] => {
            // SAFETY: the memory may be written for as long as it is lent, by `IoVec::new`.
            unsafe { libc::syscall(libc::SYS_read, fd.as_raw_fd(), one.base(), one.len()) }
        }
        many => {
            // SAFETY: `IoVec` is laid out as `struct iovec`, and its memory is there as above.
            unsafe { libc::syscall(libc::SYS_readv, fd.as_raw_fd(), many.as_ptr(), many.len()) }
        }
    })
}

fn again_if_interrupted(mut call: impl FnMut() -> libc::c_long) -> io::Result<usize> {
    loop {
        if let Ok(len) = usize::try_from(call()) {
            return Ok(len);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(libc::EINVAL)
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
