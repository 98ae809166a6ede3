//! Huge pages for memory that is read from front to back again and again.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What small regions share. Only what is written to takes memory.
const SLAB_BYTES: usize = 64 << 20;

/// A cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Lines of memory, zeros at first, that lie side by side with those asked for before and after, on huge pages where the system gives them.
/// A decode step reads every weight once. With small pages the page walks cost a fifth of the bandwidth, and of a matrix
/// of less than a few huge pages most would lie on small ones if it had memory of its own.
pub(crate) struct Lines {
    first: NonNull<Line>,
    count: usize,
    /// Keeps the memory.
    _slab: Arc<MmapMut>,
}

// SAFETY: no two regions of a slab overlap, so each belongs to its `Lines` alone, as a vector's memory does.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

/// The slab that small regions are cut from, and the bytes of it that are taken.
static OPEN: Mutex<Option<(Arc<MmapMut>, usize)>> = Mutex::new(None);

impl Lines {
    /// Lines for `bytes` bytes.
    ///
    /// # Errors
    /// When the system has no memory left.
    pub(crate) fn zeroed(bytes: usize) -> std::io::Result<Self> {
        let count = bytes.div_ceil(size_of::<Line>());
        let bytes = count * size_of::<Line>();
        if bytes > SLAB_BYTES / 2 {
            let slab = map(bytes)?;
            let start = aligned(&slab);
            return Ok(Self::cut(slab, start, count));
        }
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let (slab, taken) = match open.take() {
            Some((slab, taken)) if taken + bytes <= slab.len() => (slab, taken),
            _ => {
                let slab = map(SLAB_BYTES)?;
                let start = aligned(&slab);
                (slab, start)
            }
        };
        *open = Some((Arc::clone(&slab), taken + bytes));
        Ok(Self::cut(slab, taken, count))
    }

    fn cut(slab: Arc<MmapMut>, start: usize, count: usize) -> Self {
        assert!(start.is_multiple_of(size_of::<Line>()));
        assert!(start + count * size_of::<Line>() <= slab.len());
        let first = slab.as_ptr().wrapping_add(start).cast_mut().cast();
        Self {
            first: NonNull::new(first).expect("a mapping is nowhere at address 0"),
            count,
            _slab: slab,
        }
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: the region lies in the slab, which lives as long as this, and holds nothing but bytes.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above; the region is this one's alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.count) }
    }
}

/// Zeroed memory for `bytes` bytes from a huge page's beginning on.
fn map(bytes: usize) -> std::io::Result<Arc<MmapMut>> {
    let map = MmapMut::map_anon(bytes.next_multiple_of(HUGE_PAGE_BYTES) + HUGE_PAGE_BYTES)?;
    advise_huge_pages(map.as_ptr().addr(), map.len());
    Ok(Arc::new(map))
}

/// Offset of the first huge page.
fn aligned(map: &MmapMut) -> usize {
    map.as_ptr().align_offset(HUGE_PAGE_BYTES)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(lines: &mut Lines, value: u8) {
        bytemuck::cast_slice_mut::<_, u8>(lines).fill(value);
    }

    #[test]
    fn regions_are_zeroed_aligned_and_apart() {
        let sizes = [
            1,
            64,
            65,
            1 << 20,
            SLAB_BYTES / 2,
            SLAB_BYTES / 2 + 1,
            7 << 20,
        ];
        let mut regions: Vec<_> = (sizes.iter().map(|&bytes| Lines::zeroed(bytes)))
            .map(|lines| lines.expect("memory"))
            .collect();
        for (i, lines) in regions.iter_mut().enumerate() {
            assert!(lines.as_ptr().addr().is_multiple_of(64));
            let bytes: &[u8] = bytemuck::cast_slice(lines);
            assert_eq!(bytes.len(), sizes[i].next_multiple_of(64));
            assert!(bytes.iter().all(|b| *b == 0), "region {i}");
            fill(lines, i as u8 + 1);
        }
        for (i, lines) in regions.iter().enumerate() {
            let bytes: &[u8] = bytemuck::cast_slice(lines);
            assert!(bytes.iter().all(|b| usize::from(*b) == i + 1), "region {i}");
        }
    }

    #[test]
    fn nothing_is_a_region_too() {
        assert!(Lines::zeroed(0).expect("no memory at all").is_empty());
    }

    #[test]
    fn a_slab_outlives_the_one_that_follows_it() {
        let mut first = Lines::zeroed(1000).expect("memory");
        fill(&mut first, 7);
        let others: Vec<_> = (0..5).map(|_| Lines::zeroed(SLAB_BYTES / 2)).collect();
        drop(others);
        assert!(
            bytemuck::cast_slice::<_, u8>(&first)
                .iter()
                .all(|b| *b == 7)
        );
    }
}
