//! A memory-mapped array map as words that this process and the XDP program share.
//!
//! **Invariant.** A word is only ever read and written as one aligned 64-bit access, so that the program sees a word
//! as it was or as it will be, never a mixture. Copying a value through bpf(2) would not promise that.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

/// The words of an array map made with `BPF_F_MMAPABLE`.
#[derive(Debug)]
pub(super) struct SharedWords {
    base: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached only through atomics.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `count` words of an array map. The map must hold that many: the kernel refuses to map more
    /// than there is, but does so by whole pages.
    pub(super) fn map(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that Rust knows.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                count * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::other("the map was mapped at address 0"))?;
        Ok(Self { base, count })
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping holds `count` words, is page-aligned, lives as long as self, and is shared with
        // nobody who does not treat its words as atomic.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.count) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `map`, and no reference into it outlives self. Failure would mean wrong
        // arguments, and leaves nothing to be done.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}
