//! The engine's thread: receives requests, asks the scheduler, runs the stages, delivers.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::blocks::PagePool;
use super::handle::{EngineHandle, EngineStats, Link, Submission};
use super::job::RunningJob;
use super::request::{EngineError, Event, Segment};
use super::scheduler::{self, Budgets, Plan};
use super::sequence::{Arrival, Sequence};
use super::stages::Stages;
use crate::backend::{Backend, BackendError};

/// Before a lost device is tried again; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Attempts after which those who wait are told that there is no device.
const PATIENT_ATTEMPTS: u32 = 3;

/// How an engine works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineOptions {
    pub budgets: Budgets,
    /// Requests that may wait for a slot.
    pub queue_limit: usize,
    /// Positions of the KV cache, all sequences together.
    pub kv_positions: usize,
    /// Positions of a page.
    pub page_size: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            budgets: Budgets {
                max_running: 64,
                max_running_per_client: 0,
                llm_rows: 512,
                flow_frames: 4000,
                vocoder_frames: 4000,
                patience: Duration::from_secs(20),
            },
            queue_limit: 1024,
            kv_positions: 32 * 1024,
            page_size: 16,
        }
    }
}

/// Starts an engine: one thread for each of `makes`, which opens a device and loads the models there, at start and when the device was lost.
/// The threads end when the last handle is dropped.
pub(super) fn spawn<B, M>(
    makes: impl IntoIterator<Item = M>,
    options: EngineOptions,
) -> crate::error::Result<EngineHandle>
where
    B: Backend,
    M: FnMut() -> crate::error::Result<Stages<B>> + Send + 'static,
{
    let queued = Arc::new(AtomicUsize::new(0));
    let mut links = Vec::new();
    for make in makes {
        links.push(spawn_one(make, options, Arc::clone(&queued))?);
    }
    Ok(EngineHandle {
        links,
        queued,
        queue_limit: options.queue_limit,
    })
}

fn spawn_one<B: Backend>(
    mut make: impl FnMut() -> crate::error::Result<Stages<B>> + Send + 'static,
    options: EngineOptions,
    queued: Arc<AtomicUsize>,
) -> crate::error::Result<Link> {
    let (submissions, receiver) = channel();
    let link = Link {
        submissions,
        stats: Arc::default(),
        open: Arc::default(),
    };
    let (stats, open) = (Arc::clone(&link.stats), Arc::clone(&link.open));
    let (ready, started) = channel();
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            let stages = match make() {
                Ok(stages) => stages,
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            let _ = ready.send(Ok(()));
            let mut runner = Runner {
                pool: PagePool::new(options.kv_positions / options.page_size, options.page_size),
                options,
                stages: Loaded(Some(stages)),
                receiver,
                stats,
                queued,
                open,
                started: Instant::now(),
                arrivals: 0,
                tokens_before: 0,
                jobs: HashMap::new(),
                sequences: Vec::new(),
                lost: None,
            };
            while let Some(error) = runner.run()
                && runner.restart(error, &mut make)
            {}
        })
        .map_err(|e| EngineError::Internal(format!("cannot start the engine's thread: {e}")))?;
    started.recv().map_err(|_| EngineError::Stopped)??;
    Ok(link)
}

/// The stages; none while a lost device is opened again.
struct Loaded<B: Backend>(Option<Stages<B>>);

const LOADED: &str = "work is done on an open device. This is a bug.";

impl<B: Backend> Deref for Loaded<B> {
    type Target = Stages<B>;

    fn deref(&self) -> &Stages<B> {
        self.0.as_ref().expect(LOADED)
    }
}

impl<B: Backend> DerefMut for Loaded<B> {
    fn deref_mut(&mut self) -> &mut Stages<B> {
        self.0.as_mut().expect(LOADED)
    }
}

struct Runner<B: Backend> {
    options: EngineOptions,
    stages: Loaded<B>,
    pool: PagePool,
    receiver: Receiver<Submission>,
    stats: Arc<Mutex<EngineStats>>,
    queued: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    started: Instant,
    arrivals: u64,
    /// Tokens drawn on devices that were lost.
    tokens_before: u64,
    jobs: HashMap<u64, RunningJob>,
    /// In order of arrival.
    sequences: Vec<Sequence<B>>,
    /// The driver's error after which nothing on the device can be trusted.
    lost: Option<EngineError>,
}

impl<B: Backend> Runner<B> {
    /// Works until all handles are gone and all work is done, or until the device is lost, which the error says.
    fn run(&mut self) -> Option<EngineError> {
        while self.receive() {
            self.drop_cancelled();
            let now = self.started.elapsed();
            let views: Vec<_> = self.sequences.iter().map(|s| s.view(&self.pool)).collect();
            let mut plan = scheduler::plan(&views, self.pool.free(), &self.options.budgets, now);
            self.pace(&mut plan);
            if !plan.is_empty() {
                self.execute(&plan, now);
            } else if self.stages.is_ahead() {
                self.settle();
            } else {
                self.fail_stuck();
            }
            self.finish_done();
            self.publish(&plan);
            if let Some(error) = self.lost.take() {
                return Some(error);
            }
        }
        None
    }

    /// Takes in what has been submitted; waits when there is nothing else to do. `false` when all handles are gone and all work is done.
    fn receive(&mut self) -> bool {
        loop {
            let submission = if self.sequences.is_empty() {
                match self.receiver.recv() {
                    Ok(submission) => submission,
                    Err(_) => return false,
                }
            } else {
                match self.receiver.try_recv() {
                    Ok(submission) => submission,
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => return true,
                }
            };
            self.accept(submission);
        }
    }

    /// Makes the sequences of a request; a request that cannot be served fails here.
    fn accept(&mut self, submission: Submission) {
        let request = Arc::new(submission.request);
        let job = self.arrivals;
        let now = self.started.elapsed();
        let arrival = Arrival {
            job,
            first: self.arrivals,
            client: client_key(&request.client),
            now,
        };
        self.arrivals += request.segments.len().max(1) as u64;
        let weights: Vec<f32> = request.segments.iter().map(part_weight).collect();
        let mut running = RunningJob::new(
            submission.events,
            submission.cancelled,
            &weights,
            self.stages.sample_rate_hz(),
            Instant::now(),
        );
        match self.sequences_of(&request, &arrival, &mut running) {
            Ok(sequences) => {
                self.sequences.extend(sequences);
                self.jobs.insert(job, running);
            }
            Err(error) => {
                self.queued.fetch_sub(1, Ordering::Relaxed);
                self.open.fetch_sub(1, Ordering::Relaxed);
                running.finish(Err(error));
            }
        }
    }

    fn sequences_of(
        &self,
        request: &Arc<super::Request>,
        arrival: &Arrival,
        job: &mut RunningJob,
    ) -> Result<Vec<Sequence<B>>, EngineError> {
        self.stages.check(request)?;
        let mut sequences = Vec::new();
        for (part, segment) in request.segments.iter().enumerate() {
            let sequence = Sequence::new(request, part, arrival, self.stages.dims())
                .map_err(|e| EngineError::Invalid(e.to_string()))?;
            match (sequence, segment) {
                (Some(sequence), _) if sequence.fits(&self.pool) => sequences.push(sequence),
                (Some(_), _) => {
                    return Err(EngineError::Invalid(format!(
                        "a part of the text is too long for the engine's cache of {} positions",
                        self.options.kv_positions
                    )));
                }
                (None, Segment::Pause { samples }) => job.deliver(part, &vec![0.0; *samples], true),
                (None, _) => {}
            }
        }
        if sequences.is_empty() {
            return Err(EngineError::NoSpeech);
        }
        Ok(sequences)
    }

    fn drop_cancelled(&mut self) {
        let cancelled: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| job.is_cancelled())
            .map(|(&id, _)| id)
            .collect();
        for id in cancelled {
            self.end(id, Err(EngineError::Cancelled));
        }
    }

    /// Ends a request: its sequences go, and with them pages and slots.
    fn end(&mut self, id: u64, result: Result<(), EngineError>) {
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        if !job.has_started() {
            self.queued.fetch_sub(1, Ordering::Relaxed);
        }
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.sequences.retain(|s| s.job != id);
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        if result.is_ok() {
            stats.requests_done += 1;
            stats.audio_samples += job.samples() as u64;
        } else {
            stats.requests_failed += 1;
        }
        drop(stats);
        job.finish(result);
    }

    /// Nothing can be done and nothing is running: what waits will wait for ever.
    fn fail_stuck(&mut self) {
        let ids: Vec<u64> = self.jobs.keys().copied().collect();
        for id in ids {
            self.end(
                id,
                Err(EngineError::Internal("no progress is possible".to_owned())),
            );
        }
        self.sequences.clear();
    }

    fn execute(&mut self, plan: &Plan, now: Duration) {
        for &i in &plan.admit {
            let sequence = &mut self.sequences[i];
            if sequence.admit(&self.pool)
                && let Some(job) = self.jobs.get_mut(&sequence.job)
                && job.start()
            {
                self.queued.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if plan.llm.is_empty() {
            // No step to run ahead of.
            self.settle();
        }
        self.guarded(plan.llm.iter().map(|r| r.0), |r| {
            r.stages.llm_step(&mut r.sequences, &plan.llm)
        });
        self.guarded(plan.flow.iter().copied(), |r| {
            r.stages.flow_step(&mut r.sequences, &plan.flow)
        });
        self.guarded(plan.vocoder.iter().copied(), |r| {
            r.vocode(&plan.vocoder, now)
        });
        self.note_progress(plan, now);
    }

    /// Leaves flow and vocoder out where the device is behind with them and the language model can go on; else waits.
    fn pace(&mut self, plan: &mut Plan) {
        let chosen: Vec<usize> = plan.flow.iter().chain(&plan.vocoder).copied().collect();
        if chosen.is_empty() {
            return;
        }
        let can_go_on = !plan.llm.is_empty() || self.stages.is_ahead();
        let mut later = false;
        self.guarded(chosen.into_iter(), |r| {
            later = r.stages.is_behind()? && can_go_on;
            if !later {
                r.stages.catch_up()?;
            }
            Ok(())
        });
        if later {
            plan.flow.clear();
            plan.vocoder.clear();
        }
    }

    /// Takes all tokens that were asked for.
    fn settle(&mut self) {
        let awaiting: Vec<usize> = (0..self.sequences.len())
            .filter(|&i| self.sequences[i].is_admitted())
            .collect();
        if awaiting.is_empty() {
            self.stages.forget_draws();
        } else if self.stages.is_ahead() {
            self.guarded(awaiting.into_iter(), |r| {
                r.stages.settle(&mut r.sequences, 0)
            });
        }
    }

    /// Runs one stage; when it fails, or a bug panics, the requests at hand fail and the engine goes on.
    fn guarded(
        &mut self,
        indices: impl Iterator<Item = usize>,
        stage: impl FnOnce(&mut Self) -> Result<(), EngineError>,
    ) {
        // A request that an earlier stage of this iteration ended has left its sequences in place, marked as done.
        let jobs: Vec<u64> = indices.map(|i| self.sequences[i].job).collect();
        if jobs.is_empty() || self.lost.is_some() {
            return;
        }
        let result = catch_unwind(AssertUnwindSafe(|| stage(self))).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown");
            Err(EngineError::Internal(text.to_owned()))
        });
        if let Err(error) = result {
            tracing::error!(%error, requests = jobs.len(), "a stage failed");
            if matches!(error, EngineError::Backend(BackendError::Driver { .. })) {
                self.lost = Some(error.clone());
            }
            for sequence in &mut self.sequences {
                if jobs.contains(&sequence.job) {
                    sequence.fail(error.clone());
                }
            }
        }
    }

    fn vocode(&mut self, chosen: &[usize], now: Duration) -> Result<(), EngineError> {
        let rate = self.stages.sample_rate_hz();
        for (i, samples, last) in self.stages.vocode(&mut self.sequences, chosen)? {
            let sequence = &mut self.sequences[i];
            let length = Duration::from_secs_f64(samples.len() as f64 / f64::from(rate));
            sequence.audio_until = Some(sequence.audio_until.unwrap_or(now).max(now) + length);
            sequence.done = last;
            if let Some(job) = self.jobs.get_mut(&sequence.job) {
                if last {
                    job.count_tokens(sequence.text_tokens(), sequence.tokens().len());
                }
                // `finish_done` closes the part.
                job.deliver(sequence.part, &samples, false);
            }
        }
        Ok(())
    }

    fn note_progress(&mut self, plan: &Plan, now: Duration) {
        use super::Stage;
        let served = (plan.llm.iter().map(|r| (r.0, Stage::Llm)))
            .chain(plan.flow.iter().map(|&i| (i, Stage::Flow)))
            .chain(plan.vocoder.iter().map(|&i| (i, Stage::Vocoder)));
        for (i, stage) in served {
            let sequence = &mut self.sequences[i];
            sequence.served = now;
            let share = sequence.share(self.stages.flow_share(sequence));
            if let Some(job) = self.jobs.get_mut(&sequence.job) {
                job.progress(sequence.part, stage, share);
            }
        }
    }

    /// Removes what is finished.
    fn finish_done(&mut self) {
        let mut ended = Vec::new();
        for sequence in &mut self.sequences {
            let Some(job) = self.jobs.get_mut(&sequence.job) else {
                continue;
            };
            if let Some(error) = sequence.take_failure() {
                ended.push((sequence.job, Err(error)));
            } else if sequence.done {
                job.deliver(sequence.part, &[], true);
                if job.is_done() {
                    ended.push((sequence.job, Ok(())));
                }
            }
        }
        self.sequences.retain(|s| !s.done);
        for (id, result) in ended {
            self.end(id, result);
        }
    }

    fn publish(&self, plan: &Plan) {
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.queued = self.queued.load(Ordering::Relaxed);
        stats.running = self.sequences.iter().filter(|s| s.is_admitted()).count();
        stats.kv_pages_total = self.pool.total();
        stats.kv_pages_used = self.pool.total() - self.pool.free();
        stats.batch = [plan.llm.len(), plan.flow.len(), plan.vocoder.len()];
        let batch = stats.batch;
        for (sizes, size) in stats.batches.iter_mut().zip(batch) {
            sizes.note(size);
        }
        stats.speech_tokens = self.tokens_before + self.stages.tokens_drawn();
    }
}

/// A device that failed is opened anew.
impl<B: Backend> Runner<B> {
    /// Fails what was in work, gives everything on the device back, and loads the models again, as often as it takes. What only waits is kept for a
    /// few attempts. `false` when all handles are gone.
    fn restart(
        &mut self,
        error: EngineError,
        make: &mut impl FnMut() -> crate::error::Result<Stages<B>>,
    ) -> bool {
        let in_work: Vec<u64> = (self.sequences.iter().filter(|s| s.is_admitted()))
            .map(|s| s.job)
            .collect();
        for id in in_work {
            self.end(id, Err(error.clone()));
        }
        tracing::warn!(%error, waiting = self.jobs.len(), "the device failed: it is opened again");
        self.tokens_before += self.stages.tokens_drawn();
        self.stages.0 = None;
        let (mut attempts, mut pause) = (0, FIRST_PAUSE);
        loop {
            match make() {
                Ok(stages) => {
                    tracing::info!("the device works again");
                    self.stages.0 = Some(stages);
                    return true;
                }
                Err(error) => {
                    attempts += 1;
                    tracing::error!(%error, attempts, "the device cannot be opened");
                    if attempts >= PATIENT_ATTEMPTS && !self.refuse_all(&engine_error(error)) {
                        return false;
                    }
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Fails everything that waits. `false` when all handles are gone.
    fn refuse_all(&mut self, error: &EngineError) -> bool {
        let waiting: Vec<u64> = self.jobs.keys().copied().collect();
        for id in waiting {
            self.end(id, Err(error.clone()));
        }
        loop {
            match self.receiver.try_recv() {
                Ok(submission) => {
                    self.queued.fetch_sub(1, Ordering::Relaxed);
                    self.open.fetch_sub(1, Ordering::Relaxed);
                    // A caller that is gone needs no answer.
                    let _ = submission.events.send(Event::Failed(error.clone()));
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }
}

fn engine_error(error: crate::error::Error) -> EngineError {
    match error {
        crate::error::Error::Backend(error) => EngineError::Backend(error),
        crate::error::Error::Engine(error) => error,
        other => EngineError::Internal(other.to_string()),
    }
}

fn client_key(client: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    client.hash(&mut hasher);
    hasher.finish()
}

/// Expected work of a part, in text tokens.
fn part_weight(segment: &Segment) -> f32 {
    match segment {
        Segment::Speech(tokens) => tokens.len() as f32,
        Segment::SpeechTokens(tokens) => tokens.len() as f32 / 4.0,
        Segment::Pause { .. } => 0.0,
    }
}
