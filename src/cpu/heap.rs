//! What the C library's allocator may keep of memory that was given back.
//!
//! Tensors and audio come and go in all sizes. By default glibc soon serves even megabytes from heaps, up to eight for each core, of which only the free
//! ends go back to the system: under mixed load a server came to hold twice what it used there.

/// Blocks of at least so many bytes are mappings of their own, which go back whole.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const OWN_MAPPING_BYTES: i32 = 128 << 10;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS: i32 = 4;

/// Bounds what is kept. To be called before threads are started.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn keep_heaps_small() {
    // SAFETY: both parameters take any number; they change where blocks come from, not what they are. Failure only means the defaults.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn keep_heaps_small() {}
