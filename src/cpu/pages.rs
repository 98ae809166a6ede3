//! Huge pages for memory that is read from front to back again and again.

#[cfg(target_os = "linux")]
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Asks for huge pages for the part of `start..start + bytes` that they can cover. To be called before the memory is touched.
#[cfg(target_os = "linux")]
pub(crate) fn advise_huge_pages(start: usize, bytes: usize) {
    let first = start.next_multiple_of(HUGE_PAGE_BYTES);
    let end = (start + bytes) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    if first < end {
        // SAFETY: the range lies inside an allocation of ours, and the advice changes no contents.
        // Failure only means small pages.
        unsafe { libc::madvise(first as *mut _, end - first, libc::MADV_HUGEPAGE) };
    }
}

/// No such advice on this system.
#[cfg(not(target_os = "linux"))]
pub(crate) fn advise_huge_pages(_start: usize, _bytes: usize) {}
