//! Every metric, declared once. The text of `/metrics` is made by [`Metrics::encode`].

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::engine::{BATCH_BOUNDS, BatchSizes, EngineStats};

type Labels = [(&'static str, String); 1];
type HttpLabels = [(&'static str, String); 3];
type FloatGauge = Gauge<f64, AtomicU64>;
type FloatCounter = Counter<f64, AtomicU64>;

/// Figures that are read when somebody asks, not counted as they happen.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub queued: usize,
    pub running: usize,
    pub workers: usize,
    pub voices: usize,
    pub connections: usize,
    pub engine: EngineStats,
}

/// The engine's own count of its batches, as a histogram of each stage.
#[derive(Debug, Default)]
struct Batches(Mutex<[BatchSizes; 3]>);

impl Batches {
    fn set(&self, sizes: &[BatchSizes; 3]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(sizes);
    }
}

impl Collector for Batches {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "Sequences of a batch, by stage";
        let mut metric =
            encoder.encode_descriptor("batch_size", help, None, MetricType::Histogram)?;
        let bounds = BATCH_BOUNDS
            .iter()
            .map(|&b| b as f64)
            .chain([f64::INFINITY]);
        for (stage, sizes) in ["llm", "flow", "vocoder"].into_iter().zip(stages.iter()) {
            let buckets: Vec<(f64, u64)> = bounds.clone().zip(sizes.classes).collect();
            let batches = sizes.classes.iter().sum();
            metric
                .encode_family(&[("stage", stage)])?
                .encode_histogram::<NoLabelSet>(sizes.sequences as f64, batches, &buckets, None)?;
        }
        Ok(())
    }
}

/// All metrics of a server.
pub struct Metrics {
    registry: Registry,
    started: Instant,
    http_requests: Family<HttpLabels, Counter>,
    http_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    /// Tasks that were accepted.
    pub submitted: Counter,
    /// Streams that were started.
    pub streams: Counter,
    tasks: Family<Labels, Counter>,
    errors: Family<Labels, Counter>,
    webhooks: Family<Labels, Counter>,
    /// Seconds from acceptance to the first step.
    pub queue_wait: Histogram,
    synthesis_seconds: Histogram,
    rtf: Histogram,
    /// Seconds from admission to the first sample.
    pub first_audio: Histogram,
    audio_seconds: FloatCounter,
    uptime: FloatGauge,
    sampled: Family<Labels, FloatGauge>,
    batches: Arc<Batches>,
    speech_tokens: Gauge,
    engine_samples: Gauge,
    engine_failed: Gauge,
}

const SECONDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];
const RTF: [f64; 12] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
];

fn seconds() -> Histogram {
    Histogram::new(SECONDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("cosyvoice"),
            started: Instant::now(),
            http_requests: Family::default(),
            http_seconds: Family::new_with_constructor(seconds),
            submitted: Counter::default(),
            streams: Counter::default(),
            tasks: Family::default(),
            errors: Family::default(),
            webhooks: Family::default(),
            queue_wait: seconds(),
            synthesis_seconds: seconds(),
            rtf: Histogram::new(RTF),
            first_audio: seconds(),
            audio_seconds: FloatCounter::default(),
            uptime: FloatGauge::default(),
            sampled: Family::default(),
            batches: Arc::default(),
            speech_tokens: Gauge::default(),
            engine_samples: Gauge::default(),
            engine_failed: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register(
            "http_requests",
            "Requests by method, route and status",
            self.http_requests.clone(),
        );
        r.register(
            "http_request_seconds",
            "Time to answer, by route",
            self.http_seconds.clone(),
        );
        r.register("tasks_submitted", "Tasks accepted", self.submitted.clone());
        r.register("streams", "Streams started", self.streams.clone());
        r.register("tasks", "Tasks ended, by status", self.tasks.clone());
        r.register("task_errors", "Tasks failed, by error", self.errors.clone());
        r.register(
            "webhook_deliveries",
            "Callbacks, by result",
            self.webhooks.clone(),
        );
        r.register(
            "queue_wait_seconds",
            "From acceptance to the first step",
            self.queue_wait.clone(),
        );
        r.register(
            "synthesis_seconds",
            "From the first step to the file",
            self.synthesis_seconds.clone(),
        );
        r.register(
            "rtf",
            "Seconds of work per second of audio",
            self.rtf.clone(),
        );
        r.register(
            "first_audio_seconds",
            "From admission to the first sample",
            self.first_audio.clone(),
        );
        r.register(
            "audio_seconds",
            "Audio made by tasks",
            self.audio_seconds.clone(),
        );
        r.register("uptime_seconds", "Since the start", self.uptime.clone());
        r.register(
            "state",
            "Figures at this moment, by what",
            self.sampled.clone(),
        );
        r.register_collector(Box::new(Arc::clone(&self.batches)));
        r.register(
            "speech_tokens",
            "Speech tokens made since the start",
            self.speech_tokens.clone(),
        );
        r.register(
            "audio_samples",
            "Samples made since the start",
            self.engine_samples.clone(),
        );
        r.register(
            "engine_failures",
            "Requests that failed in the engine",
            self.engine_failed.clone(),
        );
    }

    /// Counts an answered request.
    pub fn http(&self, method: &str, route: &str, status: u16, seconds: f64) {
        let labels = [
            ("method", method.to_owned()),
            ("route", route.to_owned()),
            ("status", status.to_string()),
        ];
        self.http_requests.get_or_create(&labels).inc();
        let route = [("route", route.to_owned())];
        self.http_seconds.get_or_create(&route).observe(seconds);
    }

    /// Counts a completed task that took `seconds` for `audio` seconds.
    pub fn completed(&self, seconds: f64, audio: f64) {
        self.tasks
            .get_or_create(&[("status", String::from("completed"))])
            .inc();
        self.synthesis_seconds.observe(seconds);
        self.audio_seconds.inc_by(audio);
        if audio > 0.0 {
            self.rtf.observe(seconds / audio);
        }
    }

    /// Counts a failed task by its error.
    pub fn failed(&self, word: &str) {
        self.tasks
            .get_or_create(&[("status", String::from("failed"))])
            .inc();
        self.errors
            .get_or_create(&[("error", word.to_owned())])
            .inc();
    }

    /// Counts an attempt of a callback.
    pub fn webhook(&self, result: &str) {
        self.webhooks
            .get_or_create(&[("result", result.to_owned())])
            .inc();
    }

    /// The OpenMetrics text.
    pub fn encode(&self, now: &Snapshot) -> String {
        let engine = &now.engine;
        self.uptime.set(self.started.elapsed().as_secs_f64());
        for (what, value) in [
            ("tasks_queued", now.queued),
            ("tasks_running", now.running),
            ("workers", now.workers),
            ("voices", now.voices),
            ("connections", now.connections),
            ("engine_queued", engine.queued),
            ("engine_running", engine.running),
            ("kv_pages_used", engine.kv_pages_used),
            ("kv_pages_total", engine.kv_pages_total),
        ] {
            let labels = [("what", what.to_owned())];
            self.sampled.get_or_create(&labels).set(value as f64);
        }
        self.batches.set(&engine.batches);
        self.speech_tokens.set(engine.speech_tokens as i64);
        self.engine_samples.set(engine.audio_samples as i64);
        self.engine_failed.set(engine.requests_failed as i64);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_what_was_counted() {
        let metrics = Metrics::default();
        metrics.http("GET", "/health", 200, 0.001);
        metrics.completed(1.0, 4.0);
        metrics.failed("cancelled");
        let mut now = Snapshot {
            queued: 3,
            ..Snapshot::default()
        };
        now.engine.batches[1].note(3);
        now.engine.batches[1].note(200);
        let text = metrics.encode(&now);
        for line in [
            "cosyvoice_http_requests_total{method=\"GET\",route=\"/health\",status=\"200\"} 1",
            "cosyvoice_tasks_total{status=\"completed\"} 1",
            "cosyvoice_task_errors_total{error=\"cancelled\"} 1",
            "cosyvoice_rtf_sum 0.25",
            "cosyvoice_state{what=\"tasks_queued\"} 3",
            "cosyvoice_batch_size_sum{stage=\"flow\"} 203.0",
            "cosyvoice_batch_size_count{stage=\"flow\"} 2",
            "cosyvoice_batch_size_bucket{le=\"4.0\",stage=\"flow\"} 1",
            "cosyvoice_batch_size_bucket{le=\"+Inf\",stage=\"flow\"} 2",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
