//! A fixed set of threads that run one job together, with little delay between jobs.
//!
//! A decode step is some two hundred short ops, so a worker that has finished spins for a while before it sleeps. Work is handed out in
//! numbered chunks. Each thread begins with a stretch of its own, so that what it reads lies together and is what it read or wrote the
//! time before, and helps the others when that is done. Which thread runs a chunk is left to chance, so what a chunk computes must not depend on it.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};

/// Spins before a worker sleeps: some tens of microseconds.
const SPINS: u32 = 5_000;
/// Spins between two looks at whether another process wants the core.
const SPINS_PER_YIELD: u32 = 1_000;

type Job<'a> = &'a (dyn Fn(usize) + Sync);

/// A counter on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Counter(AtomicUsize);

/// What the caller and the workers share.
struct Shared {
    /// Counts jobs; a worker runs when it differs from the last one it saw.
    epoch: AtomicU32,
    /// The current job; valid from the store of `epoch` until `running` is 0.
    job: UnsafeCell<Option<Job<'static>>>,
    chunks: AtomicUsize,
    /// The next chunk of each thread's stretch, the caller's first.
    next: Vec<Counter>,
    running: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
}

// SAFETY: `job` is written only while no worker runs (`running` is 0, callers take turns), and read only between the
// release store of `epoch` and the release decrement of `running`.
unsafe impl Sync for Shared {}

impl Shared {
    /// Where the stretch of thread `index` begins.
    fn first(&self, index: usize, chunks: usize) -> usize {
        chunks * index / self.next.len()
    }

    /// Runs chunks of the current job until none is left, as thread `index`.
    fn work(&self, job: Job<'_>, index: usize) {
        let (chunks, threads) = (self.chunks.load(Ordering::Relaxed), self.next.len());
        for stretch in (index..index + threads).map(|i| i % threads) {
            let end = self.first(stretch + 1, chunks);
            loop {
                let chunk = self.next[stretch].0.fetch_add(1, Ordering::Relaxed);
                if chunk >= end {
                    break;
                }
                job(chunk);
            }
        }
    }

    /// The life of worker `index`.
    fn worker(&self, index: usize) {
        let mut seen = 0;
        loop {
            let mut spins = 0;
            while self.epoch.load(Ordering::Acquire) == seen {
                spins += 1;
                if spins < SPINS {
                    std::hint::spin_loop();
                    continue;
                }
                self.asleep[index].store(true, Ordering::SeqCst);
                if self.epoch.load(Ordering::SeqCst) == seen {
                    thread::park();
                }
                self.asleep[index].store(false, Ordering::SeqCst);
            }
            seen = self.epoch.load(Ordering::Acquire);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: the job was written before `epoch` and stays until this worker has left `running`.
            let job = unsafe { *self.job.get() };
            if let Some(job) = job
                && catch_unwind(AssertUnwindSafe(|| self.work(job, index + 1))).is_err()
            {
                self.panicked.store(true, Ordering::Relaxed);
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }
}

/// The threads of a backend.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    turn: Mutex<()>,
    handles: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
}

impl Pool {
    /// `threads` threads, the calling one included; fewer when the system gives no more.
    pub(crate) fn new(threads: usize) -> Self {
        let workers = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            chunks: AtomicUsize::new(0),
            next: (0..=workers).map(|_| Counter::default()).collect(),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..workers).map(|_| AtomicBool::new(false)).collect(),
        });
        let handles: Vec<_> = (0..workers)
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                let name = format!("cpu-{}", i + 1);
                thread::Builder::new()
                    .name(name)
                    .spawn(move || shared.worker(i))
                    .ok()
            })
            .collect();
        let threads = handles.iter().map(|h| h.thread().clone()).collect();
        Self {
            shared,
            turn: Mutex::new(()),
            handles,
            threads,
        }
    }

    /// Threads, the calling one included.
    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Runs `job(0)`, …, `job(chunks − 1)`, spread over the threads, and returns when all are done.
    pub(crate) fn run(&self, chunks: usize, job: impl Fn(usize) + Sync) {
        if self.handles.is_empty() || chunks <= 1 {
            (0..chunks).for_each(job);
            return;
        }
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let job: Job<'_> = &job;
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. Nobody is running: the last caller waited for that before it gave up its turn. This function
        // does not return, nor unwind, before `running` is 0 again.
        unsafe {
            *shared.job.get() = Some(std::mem::transmute::<Job<'_>, Job<'static>>(job));
        }
        shared.chunks.store(chunks, Ordering::Relaxed);
        for (i, next) in shared.next.iter().enumerate() {
            next.0.store(shared.first(i, chunks), Ordering::Relaxed);
        }
        shared.running.store(self.handles.len(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.wake();
        let mine = catch_unwind(AssertUnwindSafe(|| shared.work(job, 0)));
        self.wait();
        let theirs = shared.panicked.swap(false, Ordering::Relaxed);
        drop(turn);
        if let Err(panic) = mine {
            resume_unwind(panic);
        }
        assert!(!theirs, "a worker thread panicked");
    }

    /// Wakes the workers that sleep.
    fn wake(&self) {
        for (asleep, thread) in self.shared.asleep.iter().zip(&self.threads) {
            if asleep.load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
    }

    /// Waits until every worker has left the job.
    fn wait(&self) {
        let mut spins = 0u32;
        while self.shared.running.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins.is_multiple_of(SPINS_PER_YIELD) {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    /// Splits `0..n` into ranges of about `grain` and runs them all.
    pub(crate) fn ranges(&self, n: usize, grain: usize, job: impl Fn(Range<usize>) + Sync) {
        let grain = grain.max(1);
        self.run(n.div_ceil(grain), |i| {
            job(i * grain..((i + 1) * grain).min(n));
        });
    }

    /// Runs `job(first_row, rows)` over blocks of rows of `out [N, cols]`; a block holds some thousand values.
    pub(crate) fn rows(
        &self,
        out: &mut [f32],
        cols: usize,
        job: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        const VALUES_PER_BLOCK: usize = 8192;
        if cols == 0 || out.is_empty() {
            return;
        }
        let rows = out.len() / cols;
        let out = SharedMut::new(out);
        self.ranges(rows, VALUES_PER_BLOCK.div_ceil(cols), |r| {
            // SAFETY: the ranges of different chunks do not overlap.
            let block = unsafe { out.slice(r.start * cols, r.len() * cols) };
            job(r.start, block);
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.threads.iter().for_each(Thread::unpark);
        for handle in self.handles.drain(..) {
            // A worker catches every panic of a job; there is nothing to report here.
            let _ = handle.join();
        }
    }
}

/// A slice that several threads write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a> {
    pointer: *mut f32,
    length: usize,
    life: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: all access is through `slice`, whose callers promise that parts do not overlap.
unsafe impl Send for SharedMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for SharedMut<'_> {}

impl<'a> SharedMut<'a> {
    pub(crate) fn new(slice: &'a mut [f32]) -> Self {
        Self {
            pointer: slice.as_mut_ptr(),
            length: slice.len(),
            life: std::marker::PhantomData,
        }
    }

    /// Fetches the line of value `place`, to be written soon.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn expect(&self, place: usize) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let line = self.pointer.wrapping_add(place);
        // SAFETY: a prefetch changes nothing and never faults, wherever it points.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.cast_const().cast()) }
    }

    /// Values `start..start + length`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, length: usize) -> &'a mut [f32] {
        assert!(
            start + length <= self.length,
            "a part lies outside its slice"
        );
        // SAFETY: inside the slice by the assertion, alone by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(start), length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_runs_once() {
        for threads in 1..4 {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for n in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                for round in 1..=20 {
                    pool.run(n, |i| {
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == round));
                }
            }
        }
    }

    #[test]
    fn rows_come_in_blocks_that_cover_all() {
        let pool = Pool::new(2);
        let mut out = vec![0.0; 5000 * 7];
        pool.rows(&mut out, 7, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(7).enumerate() {
                row.fill((first + i) as f32);
            }
        });
        let expected: Vec<f32> = (0..out.len()).map(|i| (i / 7) as f32).collect();
        assert_eq!(out, expected);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        for bad in [0, 1, 99] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |i| assert!(i != bad, "expected"));
            }));
            assert!(result.is_err());
            let count = AtomicUsize::new(0);
            pool.run(100, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 100);
        }
    }

    #[test]
    fn sleeping_workers_wake() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            thread::sleep(std::time::Duration::from_millis(5));
            let count = AtomicUsize::new(0);
            pool.run(10, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 10);
        }
    }
}
