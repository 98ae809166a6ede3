//! An accepted request while it runs: its parts, joined in order, its progress, its events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

use super::{EngineError, Event, Stage, Summary};

/// Progress events are sent at steps of this size, so that a listener who does not read cannot make them pile up.
const PROGRESS_STEP: f32 = 0.01;

/// Puts the samples of parts that are made side by side into their order.
#[derive(Default)]
struct Joiner {
    /// Parts from the first unfinished one on: samples held back, and whether the part is complete.
    parts: VecDeque<(Vec<f32>, bool)>,
    /// Index of the front part.
    first: usize,
}

impl Joiner {
    fn new(parts: usize) -> Self {
        Self {
            parts: (0..parts).map(|_| (Vec::new(), false)).collect(),
            first: 0,
        }
    }

    fn push(&mut self, part: usize, samples: &[f32], last: bool) {
        let (held, done) = &mut self.parts[part - self.first];
        held.extend_from_slice(samples);
        *done |= last;
    }

    /// Everything that can be heard now.
    fn take(&mut self) -> Vec<f32> {
        let mut ready = Vec::new();
        while let Some((held, done)) = self.parts.front_mut() {
            ready.append(held);
            if !*done {
                break;
            }
            self.parts.pop_front();
            self.first += 1;
        }
        ready
    }

    fn is_done(&self) -> bool {
        self.parts.is_empty()
    }
}

/// One running request.
pub(crate) struct RunningJob {
    events: UnboundedSender<Event>,
    cancelled: Arc<AtomicBool>,
    joiner: Joiner,
    /// Share of each part's work done, and the part's weight (its text length).
    parts: Vec<(f32, f32)>,
    reported: f32,
    started: bool,
    admitted: Instant,
    summary: Summary,
}

impl RunningJob {
    /// `weights`: expected work of each part, in any unit.
    pub(crate) fn new(
        events: UnboundedSender<Event>,
        cancelled: Arc<AtomicBool>,
        weights: &[f32],
        sample_rate_hz: u32,
        admitted: Instant,
    ) -> Self {
        Self {
            events,
            cancelled,
            joiner: Joiner::new(weights.len()),
            parts: weights
                .iter()
                .map(|&w| (0.0, w.max(f32::MIN_POSITIVE)))
                .collect(),
            reported: 0.0,
            started: false,
            admitted,
            summary: Summary {
                sample_rate_hz,
                ..Summary::default()
            },
        }
    }

    /// Whether nobody wants the result any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.events.is_closed()
    }

    /// Whether every part was delivered.
    pub(crate) fn is_done(&self) -> bool {
        self.joiner.is_done()
    }

    pub(crate) fn samples(&self) -> usize {
        self.summary.samples
    }

    pub(crate) fn count_tokens(&mut self, text: usize, speech: usize) {
        self.summary.text_tokens += text;
        self.summary.speech_tokens += speech;
    }

    /// Announces the first step of work; `false` when that was done before.
    pub(crate) fn start(&mut self) -> bool {
        let first = !self.started;
        if first {
            self.started = true;
            self.send(Event::Started);
        }
        first
    }

    pub(crate) fn has_started(&self) -> bool {
        self.started
    }

    /// Notes that `share` (0 to 1) of a part's work is done.
    pub(crate) fn progress(&mut self, part: usize, stage: Stage, share: f32) {
        let done = &mut self.parts[part].0;
        *done = done.max(share.clamp(0.0, 1.0));
        let (sum, total) = self
            .parts
            .iter()
            .fold((0.0, 0.0), |(s, t), (d, w)| (s + d * w, t + w));
        // 1.0 is for the end alone.
        let fraction = (sum / total).min(0.99);
        if fraction >= self.reported + PROGRESS_STEP {
            self.reported = fraction;
            self.send(Event::Progress { stage, fraction });
        }
    }

    /// Takes samples of a part; sends on what is next in order.
    pub(crate) fn deliver(&mut self, part: usize, samples: &[f32], last: bool) {
        self.joiner.push(part, samples, last);
        let ready = self.joiner.take();
        if !ready.is_empty() {
            if self.summary.samples == 0 {
                self.summary.first_audio = self.admitted.elapsed();
            }
            self.summary.samples += ready.len();
            self.send(Event::Audio(ready));
        }
    }

    /// The last event.
    pub(crate) fn finish(mut self, result: Result<(), EngineError>) {
        self.summary.synthesis_time = self.admitted.elapsed();
        let event = match result {
            Ok(()) if self.summary.samples == 0 => Event::Failed(EngineError::NoSpeech),
            Ok(()) => Event::Done(self.summary.clone()),
            Err(error) => Event::Failed(error),
        };
        self.send(event);
    }

    fn send(&self, event: Event) {
        // A closed channel means that the caller is gone: `is_cancelled` sees it.
        let _ = self.events.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    fn job(weights: &[f32]) -> (RunningJob, UnboundedReceiver<Event>) {
        let (tx, rx) = unbounded_channel();
        (
            RunningJob::new(tx, Arc::default(), weights, 24_000, Instant::now()),
            rx,
        )
    }

    fn drain(rx: &mut UnboundedReceiver<Event>) -> Vec<Event> {
        std::iter::from_fn(|| rx.try_recv().ok()).collect()
    }

    #[test]
    fn parts_are_heard_in_order() {
        let (mut job, mut rx) = job(&[1.0, 1.0, 1.0]);
        job.deliver(1, &[2.0], true);
        job.deliver(2, &[3.0], false);
        assert!(drain(&mut rx).is_empty());
        job.deliver(0, &[1.0], false);
        job.deliver(0, &[1.5], true);
        job.deliver(2, &[], true);
        assert!(job.is_done());
        let heard: Vec<f32> = drain(&mut rx)
            .into_iter()
            .flat_map(|e| match e {
                Event::Audio(a) => a,
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(heard, [1.0, 1.5, 2.0, 3.0]);
    }

    #[test]
    fn progress_never_goes_back_and_is_bounded() {
        let (mut job, mut rx) = job(&[3.0, 1.0]);
        for i in 0..10_000 {
            job.progress(i % 2, Stage::Llm, i as f32 / 10_000.0);
            job.progress(0, Stage::Flow, 0.1);
        }
        job.progress(0, Stage::Vocoder, 1.0);
        job.progress(1, Stage::Vocoder, 1.0);
        let mut last = 0.0;
        let events = drain(&mut rx);
        assert!(events.len() <= 100, "{}", events.len());
        for e in events {
            let Event::Progress { fraction, .. } = e else {
                panic!("{e:?}")
            };
            assert!(fraction > last && fraction < 1.0);
            last = fraction;
        }
        assert!(last > 0.98);
    }

    #[test]
    fn silence_alone_is_no_success() {
        let (job, mut rx) = job(&[1.0]);
        job.finish(Ok(()));
        assert!(matches!(
            drain(&mut rx)[..],
            [Event::Failed(EngineError::NoSpeech)]
        ));
    }
}
