//! The engine on the checkpoint of the tests: batching changes no byte, everything is given back, failures stay with their
//! request.

use std::sync::Arc;
use std::time::Duration;

use cosyvoice::checkpoint::Checkpoint;
use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::engine::{
    self, EngineError, EngineHandle, EngineOptions, Event, Mode, Request, Segment,
};
use cosyvoice::model::voice::Voice;

use crate::support::golden;

mod simulation;

/// On the CPU.
pub(crate) fn start(options: EngineOptions) -> (EngineHandle, Arc<Voice>) {
    let checkpoint = Checkpoint::open(golden::model_dir()).unwrap_or_else(|e| panic!("{e}"));
    let voice = sft_voice();
    let backend = || {
        Cpu::new(CpuOptions {
            threads: 1,
            ..CpuOptions::default()
        })
    };
    let handle = engine::start(checkpoint, backend, options, Arc::default());
    (handle.unwrap_or_else(|e| panic!("{e}")), voice)
}

/// The checkpoint's first speaker.
pub(crate) fn sft_voice() -> Arc<Voice> {
    let checkpoint = Checkpoint::open(golden::model_dir()).unwrap_or_else(|e| panic!("{e}"));
    let voices = checkpoint.voices().unwrap_or_else(|e| panic!("{e}"));
    Arc::new(voices.into_values().next().expect("a speaker"))
}

fn speech(tokens: i32) -> Segment {
    Segment::Speech((0..tokens).map(|t| 5 + t % 50).collect())
}

/// Requests of different lengths, speeds and kinds.
pub(crate) fn request(voice: &Arc<Voice>, n: usize) -> Request {
    Request {
        segments: vec![speech(3 + n as i32 % 5)],
        mode: Mode::Sft,
        voice: Arc::clone(voice),
        speed: if n % 4 == 1 { 1.25 } else { 1.0 },
        seed: n as u64,
        stream: n % 4 == 2,
        client: format!("client {}", n % 3),
        draws: None,
    }
}

fn speak(handle: &EngineHandle, request: Request) -> Result<Vec<f32>, EngineError> {
    Ok(handle.submit(request)?.collect()?.0)
}

fn all_given_back(handle: &EngineHandle) {
    for _ in 0..500 {
        let stats = handle.stats();
        if stats.running == 0 && stats.kv_pages_used == 0 && stats.queued == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not given back: {:?}", handle.stats());
}

#[test]
fn a_request_is_the_same_alone_and_in_a_batch() {
    let (handle, voice) = start(EngineOptions::default());
    let alone: Vec<_> = (0..8)
        .map(|n| speak(&handle, request(&voice, n)).expect("speech"))
        .collect();
    let jobs: Vec<_> = (0..8)
        .map(|n| handle.submit(request(&voice, n)).expect("room"))
        .collect();
    for (n, (job, alone)) in jobs.into_iter().zip(&alone).enumerate() {
        let (samples, _) = job.collect().expect("speech");
        assert!(samples == *alone, "request {n} changed in a batch");
    }
    all_given_back(&handle);
}

#[test]
fn tight_budgets_change_nothing_but_the_order() {
    let (roomy, voice) = start(EngineOptions::default());
    let mut options = EngineOptions {
        kv_positions: 640,
        page_size: 8,
        ..EngineOptions::default()
    };
    options.budgets.max_running = 3;
    options.budgets.llm_rows = 5;
    options.budgets.flow_frames = 60;
    options.budgets.vocoder_frames = 60;
    let (tight, _) = start(options);
    let jobs: Vec<_> = (0..6)
        .map(|n| tight.submit(request(&voice, n)).expect("room"))
        .collect();
    for (n, job) in jobs.into_iter().enumerate() {
        let expected = speak(&roomy, request(&voice, n)).expect("speech");
        assert!(job.collect().expect("speech").0 == expected, "request {n}");
    }
    all_given_back(&tight);
}

#[test]
fn parts_are_joined_in_order_with_exact_pauses() {
    let (handle, voice) = start(EngineOptions::default());
    let first = speak(&handle, request(&voice, 0)).expect("speech");
    let mut whole = request(&voice, 0);
    let part = whole.segments[0].clone();
    let pause = |samples| Segment::Pause { samples };
    whole.segments = vec![part.clone(), pause(12_000), part, pause(100)];
    let samples = speak(&handle, whole).expect("speech");
    let n = first.len();
    assert!(
        samples[..n] == first,
        "the first part keeps the request's seed"
    );
    assert!(samples[n..n + 12_000].iter().all(|&s| s == 0.0));
    assert!(samples[n + 12_000..n + 12_010].iter().any(|&s| s != 0.0));
    assert!(samples[samples.len() - 100..].iter().all(|&s| s == 0.0));
}

#[test]
fn cancelled_requests_free_everything() {
    let (handle, voice) = start(EngineOptions::default());
    let long = |n| {
        let mut r = request(&voice, n);
        r.segments = vec![speech(60)];
        r
    };
    let mut cancelled = handle.submit(long(0)).expect("room");
    let dropped = handle.submit(long(1)).expect("room");
    while !matches!(cancelled.next_blocking(), Some(Event::Started)) {}
    cancelled.cancel();
    drop(dropped);
    let last = std::iter::from_fn(|| cancelled.next_blocking()).last();
    assert!(
        matches!(last, Some(Event::Failed(EngineError::Cancelled))),
        "{last:?}"
    );
    assert!(
        !speak(&handle, request(&voice, 2))
            .expect("speech")
            .is_empty()
    );
    all_given_back(&handle);
}

#[test]
fn progress_is_real_and_monotone() {
    let (handle, voice) = start(EngineOptions::default());
    let mut r = request(&voice, 0);
    r.segments = vec![speech(20); 2];
    let mut job = handle.submit(r).expect("room");
    let (mut last, mut steps) = (0.0, 0);
    while let Some(event) = job.next_blocking() {
        if let Event::Progress { fraction, .. } = event {
            assert!(fraction > last && fraction < 1.0);
            (last, steps) = (fraction, steps + 1);
        }
    }
    assert!(steps >= 10, "{steps} steps");
}

#[test]
fn what_cannot_be_served_is_refused_and_the_engine_goes_on() {
    let (handle, voice) = start(EngineOptions {
        queue_limit: 4,
        ..EngineOptions::default()
    });
    let good = request(&voice, 0);
    let refuse = |change: &dyn Fn(&mut Request)| {
        let mut bad = good.clone();
        change(&mut bad);
        speak(&handle, bad).map(|_| ()).expect_err("refused")
    };
    let invalid = |e: EngineError| matches!(e, EngineError::Invalid(_));
    assert!(invalid(refuse(&|r| r.speed = f32::NAN)));
    assert!(invalid(refuse(&|r| (r.stream, r.speed) = (true, 1.5))));
    assert!(invalid(refuse(
        &|r| r.segments = vec![Segment::Speech(vec![i32::MAX])]
    )));
    assert!(invalid(refuse(&|r| r.segments = vec![speech(100_000)])));
    assert!(invalid(refuse(&|r| r.voice = Arc::default())));
    assert!(matches!(
        refuse(&|r| r.segments.clear()),
        EngineError::NoSpeech
    ));
    let jobs: Vec<_> = std::iter::repeat_with(|| handle.submit(good.clone()))
        .take(200)
        .collect();
    let full = |j: &Result<_, _>| matches!(j, Err(EngineError::QueueFull { limit: 4 }));
    assert!(jobs.iter().any(full));
    let first = jobs.into_iter().flatten().next().expect("one was taken");
    assert!(first.collect().is_ok());
    all_given_back(&handle);
}
