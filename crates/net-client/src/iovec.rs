//! A piece of memory that may belong to a guest.
#![expect(
    unsafe_code,
    reason = "frames are read and written in place in guest memory"
)]

use std::fmt;
use std::ptr;

/// Start and length of a piece of memory that others (a guest, the kernel) may change at any time;
/// laid out as `struct iovec`, so that a slice of them can be given to `readv` and `writev`.
///
/// Never turned into a `&[u8]`: guest memory does not keep the promises of a reference.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct IoVec(libc::iovec);

// SAFETY: the type is an address and a length; what may be done with the memory is said at `new`.
unsafe impl Send for IoVec {}
// SAFETY: as above.
unsafe impl Sync for IoVec {}

impl IoVec {
    /// Describes `len` bytes at `base`.
    ///
    /// # Safety
    /// The memory must stay mapped, readable and (where it is read into) writable, for as long as
    /// the lend that the vector is part of lasts. It may be changed by others meanwhile.
    pub const unsafe fn new(base: *mut u8, len: usize) -> Self {
        Self(libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        })
    }

    /// Describes bytes of our own that are only read from, for the length of one call.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        // SAFETY: used by `Port` alone, for frames without a token and for the length of the call
        // that the borrow outlives; a frame that is sent is only read from.
        unsafe { Self::new(bytes.as_ptr().cast_mut(), bytes.len()) }
    }

    /// Describes a buffer of our own to read into.
    pub(crate) fn of_buffer(buffer: &mut [u8]) -> Self {
        // SAFETY: used by `Bounce` alone, which neither touches nor frees the buffer before the read
        // into it has ended.
        unsafe { Self::new(buffer.as_mut_ptr(), buffer.len()) }
    }

    /// Where it begins.
    pub fn base(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }
}

impl fmt::Debug for IoVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:p}+{}", self.0.iov_base, self.0.iov_len)
    }
}

/// Bytes in all of `iov`, saturating.
pub fn total_len(iov: &[IoVec]) -> usize {
    iov.iter().fold(0, |sum, v| sum.saturating_add(v.len()))
}

/// Copies from `iov`, beginning `offset` bytes in, to `to`; returns how many bytes there were.
#[doc(alias = "iov_to_buf")]
pub fn copy_from_iov(iov: &[IoVec], offset: usize, to: &mut [u8]) -> usize {
    let mut copied = 0;
    for_each_run(iov, offset, to.len(), |base, len| {
        // SAFETY: `base` has `len` bytes by the promise of `IoVec::new`; `to` has them by the bound
        // given to `for_each_run`. The two cannot overlap, `to` being an exclusive borrow.
        unsafe { ptr::copy_nonoverlapping(base, to.as_mut_ptr().wrapping_add(copied), len) };
        copied += len;
    });
    copied
}

/// Copies `from` into `iov`, beginning `offset` bytes in; returns how many bytes fitted.
#[doc(alias = "iov_from_buf")]
pub fn copy_to_iov(iov: &[IoVec], offset: usize, from: &[u8]) -> usize {
    let mut copied = 0;
    for_each_run(iov, offset, from.len(), |base, len| {
        // SAFETY: as in `copy_from_iov`, the other way round; that `from` is not inside `iov` holds
        // because a borrow of memory that is lent for writing cannot exist.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr().wrapping_add(copied), base, len) };
        copied += len;
    });
    copied
}

/// Calls `run` for each stretch of memory in bytes `offset .. offset + len` of `iov`.
fn for_each_run(
    iov: &[IoVec],
    mut offset: usize,
    mut len: usize,
    mut run: impl FnMut(*mut u8, usize),
) {
    for v in iov {
        if len == 0 {
            return;
        }
        let Some(there) = v.len().checked_sub(offset).filter(|there| *there > 0) else {
            offset -= v.len();
            continue;
        };
        let part = there.min(len);
        run(v.base().wrapping_add(offset), part);
        offset = 0;
        len -= part;
    }
}
