//! The engine as callers see it: a clonable handle, and one job per accepted request.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc;

use super::{EngineError, Event, Request, Summary};

/// Upper bounds of the classes of [`BatchSizes`].
pub const BATCH_BOUNDS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// How large the batches of one stage were, since start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchSizes {
    /// Batches of each class: at most its bound of [`BATCH_BOUNDS`] and more than the one before; the last has no bound.
    pub classes: [u64; BATCH_BOUNDS.len() + 1],
    /// Sequences of all batches together.
    pub sequences: u64,
}

impl BatchSizes {
    /// Counts one batch; an empty one is none.
    pub fn note(&mut self, size: usize) {
        if size > 0 {
            self.classes[BATCH_BOUNDS.partition_point(|&bound| bound < size)] += 1;
            self.sequences += size as u64;
        }
    }
}

/// Figures of the engine at this moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineStats {
    pub queued: usize,
    pub running: usize,
    pub kv_pages_used: usize,
    pub kv_pages_total: usize,
    /// Sequences in the last batch of each stage: LLM, flow, vocoder.
    pub batch: [usize; 3],
    /// All batches of each stage, in the same order.
    pub batches: [BatchSizes; 3],
    /// Since start.
    pub speech_tokens: u64,
    pub audio_samples: u64,
    pub requests_done: u64,
    pub requests_failed: u64,
}

/// A request on its way to the engine's thread.
pub(crate) struct Submission {
    pub(crate) request: Request,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    pub(crate) cancelled: Arc<AtomicBool>,
}

impl EngineStats {
    /// Adds the figures of another device.
    fn add(&mut self, other: &Self) {
        self.queued += other.queued;
        self.running += other.running;
        self.kv_pages_used += other.kv_pages_used;
        self.kv_pages_total += other.kv_pages_total;
        self.speech_tokens += other.speech_tokens;
        self.audio_samples += other.audio_samples;
        self.requests_done += other.requests_done;
        self.requests_failed += other.requests_failed;
        for (stage, size) in other.batch.iter().enumerate() {
            self.batch[stage] += size;
            let (sizes, others) = (&mut self.batches[stage], &other.batches[stage]);
            sizes.sequences += others.sequences;
            for (class, count) in sizes.classes.iter_mut().zip(others.classes) {
                *class += count;
            }
        }
    }
}

/// The way to the thread of one device.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) submissions: Sender<Submission>,
    pub(crate) stats: Arc<Mutex<EngineStats>>,
    /// Requests that were sent there and have not ended.
    pub(crate) open: Arc<AtomicUsize>,
}

/// Sends requests to an engine: one thread per device, behind one queue. Clones share it; the engine stops when the last is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    /// Never empty.
    pub(crate) links: Vec<Link>,
    /// Accepted requests that hold no slot yet; the engine counts down when it admits or drops one.
    pub(crate) queued: Arc<AtomicUsize>,
    pub(crate) queue_limit: usize,
}

impl EngineHandle {
    /// Queues a request, on the device that has the fewest.
    ///
    /// # Errors
    /// [`EngineError::QueueFull`] when as many as the engine was started with are waiting, [`EngineError::Stopped`] after it ended.
    pub fn submit(&self, request: Request) -> Result<Job, EngineError> {
        let limit = self.queue_limit;
        self.queued
            .try_update(Ordering::Relaxed, Ordering::Relaxed, |n| {
                (n < limit).then_some(n + 1)
            })
            .map_err(|_| EngineError::QueueFull { limit })?;
        // Unbounded in type, bounded in fact: a request emits at most a hundred progress steps and its audio.
        let (events, receiver) = mpsc::unbounded_channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let submission = Submission {
            request,
            events,
            cancelled: Arc::clone(&cancelled),
        };
        let least = self
            .links
            .iter()
            .min_by_key(|l| l.open.load(Ordering::Relaxed));
        let link = least.expect("an engine has a device. This is a bug.");
        link.open.fetch_add(1, Ordering::Relaxed);
        if link.submissions.send(submission).is_err() {
            link.open.fetch_sub(1, Ordering::Relaxed);
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(EngineError::Stopped);
        }
        Ok(Job {
            events: receiver,
            cancelled,
        })
    }

    /// Figures at this moment, of all devices together.
    pub fn stats(&self) -> EngineStats {
        let mut sum = EngineStats::default();
        for link in &self.links {
            sum.add(&link.stats.lock().unwrap_or_else(PoisonError::into_inner));
        }
        sum
    }
}

/// One accepted request. Dropping it cancels it.
pub struct Job {
    events: mpsc::UnboundedReceiver<Event>,
    cancelled: Arc<AtomicBool>,
}

impl Job {
    /// A job fed by something other than the engine's thread: its events are what is sent, and the flag says when it was cancelled.
    pub fn channel() -> (mpsc::UnboundedSender<Event>, Arc<AtomicBool>, Self) {
        let (sender, events) = mpsc::unbounded_channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let job = Self {
            events,
            cancelled: Arc::clone(&cancelled),
        };
        (sender, cancelled, job)
    }

    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The same for callers without a runtime.
    pub fn next_blocking(&mut self) -> Option<Event> {
        self.events.blocking_recv()
    }

    /// Waits for the end; all samples and the figures.
    ///
    /// # Errors
    /// Why the request did not finish.
    pub fn collect(mut self) -> Result<(Vec<f32>, Summary), EngineError> {
        let mut samples = Vec::new();
        while let Some(event) = self.next_blocking() {
            match event {
                Event::Audio(audio) => samples.extend(audio),
                Event::Done(summary) => return Ok((samples, summary)),
                Event::Failed(error) => return Err(error),
                Event::Started | Event::Progress { .. } => {}
            }
        }
        Err(EngineError::Stopped)
    }

    /// Stops the request at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::engine::Mode;
    use crate::model::voice::Voice;

    /// A handle on as many devices, and what arrives there.
    fn handle(devices: usize, queue_limit: usize) -> (EngineHandle, Vec<Receiver<Submission>>) {
        let (links, receivers) = (0..devices)
            .map(|_| {
                let (submissions, receiver) = channel();
                let link = Link {
                    submissions,
                    stats: Arc::default(),
                    open: Arc::default(),
                };
                (link, receiver)
            })
            .unzip();
        let handle = EngineHandle {
            links,
            queued: Arc::default(),
            queue_limit,
        };
        (handle, receivers)
    }

    fn request() -> Request {
        Request {
            segments: Vec::new(),
            mode: Mode::Sft,
            voice: Arc::new(Voice {
                embedding: Vec::new(),
                prompt_text: Vec::new(),
                speech_tokens: Vec::new(),
                mel: Vec::new(),
            }),
            speed: 1.0,
            seed: 0,
            stream: false,
            client: String::new(),
            draws: None,
        }
    }

    #[test]
    fn a_stopped_engine_holds_no_place_in_its_queue() {
        let (handle, receivers) = handle(1, 1);
        drop(receivers);
        for _ in 0..2 {
            let answer = handle.submit(request());
            assert!(matches!(answer, Err(EngineError::Stopped)));
        }
        assert_eq!(handle.queued.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn requests_go_where_the_fewest_are_until_the_one_queue_is_full() {
        let (handle, receivers) = handle(3, 5);
        handle.links[1].open.store(1, Ordering::Relaxed);
        let jobs: Vec<_> = (0..5).map(|_| handle.submit(request())).collect();
        assert!(jobs.iter().all(Result::is_ok));
        let arrived: Vec<usize> = receivers.iter().map(|r| r.try_iter().count()).collect();
        assert_eq!(arrived, [2, 1, 2]);
        let refused = handle.submit(request());
        assert!(matches!(refused, Err(EngineError::QueueFull { limit: 5 })));
    }

    #[test]
    fn figures_of_all_devices_are_added() {
        let (handle, _receivers) = handle(2, 1);
        for (link, running) in handle.links.iter().zip([1, 3]) {
            let mut stats = link.stats.lock().expect("not poisoned");
            stats.running = running;
            stats.batches[1].note(running);
        }
        let stats = handle.stats();
        assert_eq!((stats.running, stats.batches[1].sequences), (4, 4));
    }

    #[test]
    fn batches_fall_into_their_classes() {
        let mut sizes = BatchSizes::default();
        for size in [0, 1, 2, 3, 4, 128, 129] {
            sizes.note(size);
        }
        assert_eq!(sizes.classes, [1, 1, 2, 0, 0, 0, 0, 1, 1]);
        assert_eq!(sizes.sequences, 267);
    }
}
