//! Pages of the KV cache, handed out as leases that return themselves.

use std::sync::{Arc, Mutex, PoisonError};

/// The free pages of one KV cache.
#[derive(Clone)]
pub struct PagePool {
    free: Arc<Mutex<Vec<u32>>>,
    total: usize,
    page_size: usize,
}

impl PagePool {
    /// A pool of pages `0..total`, of `page_size` positions each.
    pub fn new(total: usize, page_size: usize) -> Self {
        // Popped from the end: low pages are used first, which keeps a lightly used cache dense.
        let free = (0..total as u32).rev().collect();
        Self {
            free: Arc::new(Mutex::new(free)),
            total,
            page_size,
        }
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.lock().len()
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Positions of a page.
    pub fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages that hold `positions` positions.
    pub fn pages_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.page_size)
    }

    /// Takes pages for `positions` positions; `None` when too few are free.
    pub fn lease(&self, positions: usize) -> Option<PageLease> {
        let wanted = self.pages_for(positions);
        let mut free = self.lock();
        let rest = free.len().checked_sub(wanted)?;
        let mut pages = free.split_off(rest);
        pages.reverse();
        drop(free);
        Some(PageLease {
            pool: self.clone(),
            pages,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pages of one sequence; dropping it returns them.
pub struct PageLease {
    pool: PagePool,
    pages: Vec<u32>,
}

impl PageLease {
    /// The pages in order of position.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }
}

impl Drop for PageLease {
    fn drop(&mut self) {
        self.pool.lock().extend(self.pages.drain(..).rev());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn low_pages_first_and_returned_on_drop() {
        let pool = PagePool::new(8, 16);
        let a = pool.lease(33).expect("three pages");
        assert_eq!(a.pages(), [0, 1, 2]);
        let b = pool.lease(16).expect("one page");
        assert_eq!(b.pages(), [3]);
        drop(a);
        assert_eq!(pool.free(), 7);
        assert_eq!(pool.lease(48).expect("three pages").pages(), [0, 1, 2]);
        assert!(pool.lease(8 * 16).is_none(), "one page is taken");
        drop(b);
        assert!(pool.lease(8 * 16).is_some());
    }

    proptest! {
        /// Whatever is taken and dropped in whatever order: no page is held twice, none is lost.
        #[test]
        fn no_page_is_shared_or_lost(ops in proptest::collection::vec((0usize..3, 0usize..70), 1..200)) {
            let pool = PagePool::new(16, 8);
            let mut held: Vec<PageLease> = Vec::new();
            for (op, n) in ops {
                if op == 0 && !held.is_empty() {
                    held.swap_remove(n % held.len());
                } else if let Some(lease) = pool.lease(n) {
                    prop_assert_eq!(lease.pages().len(), n.div_ceil(8));
                    held.push(lease);
                }
                let mut pages: Vec<u32> = held.iter().flat_map(|l| l.pages().to_vec()).collect();
                let taken = pages.len();
                pages.sort_unstable();
                pages.dedup();
                prop_assert_eq!(pages.len(), taken);
                prop_assert_eq!(pool.free() + taken, 16);
            }
        }
    }
}
