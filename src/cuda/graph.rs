//! Runs of launches that come again and again, as CUDA graphs.
//!
//! [`Recorder::record`] holds back the launches of a piece of work and compares them with those of earlier times: kernels, shapes and every byte
//! of their parameters, addresses among them. Launches that came before are one graph launch; those that come for the
//! second time become a graph; new ones go to the stream one by one. As the comparison is of everything that a launch is, a
//! replay can do nothing but what the launches would have done: nobody has to promise that buffers stay where they are.
//!
//! What cannot be held back (an allocation, a copy to or from the host) first sends off what was held, and the rest of that piece of work runs
//! without a graph.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use cudarc::driver::CudaGraph;

use super::launch::{Kernel, Shape};

/// Graphs that are kept; the one that was not used for longest goes first.
const MAX_GRAPHS: usize = 64;
/// Runs of launches that are remembered to have come once.
const MAX_SEEN: usize = 1024;

/// A cache line of parameters: tensor maps inside them want that alignment.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// One launch with its parameters.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Launch {
    pub(super) kernel: Kernel,
    pub(super) shape: Shape,
    params: Vec<Line>,
}

impl Launch {
    /// Copies the parameters.
    pub(super) fn new<P: Copy>(kernel: Kernel, shape: Shape, params: &P) -> Self {
        let mut lines = vec![Line([0; 64]); size_of::<P>().div_ceil(64)];
        // SAFETY: the lines are at least as long as `P`, whose fields leave no gaps (abi.h spells padding out).
        unsafe {
            std::ptr::copy_nonoverlapping(
                std::ptr::from_ref(params).cast::<u8>(),
                lines.as_mut_ptr().cast::<u8>(),
                size_of::<P>(),
            );
        }
        Self {
            kernel,
            shape,
            params: lines,
        }
    }

    /// Where the parameters are.
    pub(super) fn params(&self) -> *const u8 {
        self.params.as_ptr().cast()
    }
}

/// A graph and what it consists of.
struct Entry {
    launches: Vec<Launch>,
    graph: CudaGraph,
    used: u64,
}

/// What is to be done with a run of launches.
pub(super) enum Next<'a> {
    /// It is this graph.
    Replay(&'a CudaGraph),
    /// It came before: make it a graph and give it to [`Recorder::keep`].
    Capture,
    /// It is new.
    Eager,
}

/// Launches held back, and graphs of earlier ones.
#[derive(Default)]
pub(super) struct Recorder {
    /// The launches of the work in progress; none when they are not held back.
    pub(super) held: Option<Vec<Launch>>,
    graphs: HashMap<u64, Entry>,
    seen: HashSet<u64>,
    clock: u64,
    replays: u64,
}

// SAFETY: graphs are used by one thread at a time: the recorder is behind a mutex, and the driver lets any thread use them.
unsafe impl Send for Recorder {}

impl Recorder {
    /// Looks a run of launches up.
    pub(super) fn next(&mut self, launches: &[Launch]) -> Next<'_> {
        let key = key(launches);
        self.clock += 1;
        if self
            .graphs
            .get(&key)
            .is_some_and(|e| e.launches == launches)
        {
            self.replays += 1;
            let entry = self
                .graphs
                .get_mut(&key)
                .expect("just looked up. This is a bug.");
            entry.used = self.clock;
            return Next::Replay(&entry.graph);
        }
        if self.seen.remove(&key) {
            return Next::Capture;
        }
        if self.seen.len() >= MAX_SEEN {
            self.seen.clear();
        }
        self.seen.insert(key);
        Next::Eager
    }

    /// Keeps a graph; returns it.
    pub(super) fn keep(&mut self, launches: Vec<Launch>, graph: CudaGraph) -> &CudaGraph {
        if self.graphs.len() >= MAX_GRAPHS
            && let Some(&oldest) = self
                .graphs
                .iter()
                .min_by_key(|(_, e)| e.used)
                .map(|(k, _)| k)
        {
            self.graphs.remove(&oldest);
        }
        let key = key(&launches);
        let entry = Entry {
            launches,
            graph,
            used: self.clock,
        };
        self.graphs.insert(key, entry);
        &self.graphs[&key].graph
    }

    /// Graphs kept, and how often one was launched instead of its kernels.
    pub(super) fn counts(&self) -> (usize, u64) {
        (self.graphs.len(), self.replays)
    }
}

fn key(launches: &[Launch]) -> u64 {
    let mut hasher = DefaultHasher::new();
    launches.hash(&mut hasher);
    hasher.finish()
}
