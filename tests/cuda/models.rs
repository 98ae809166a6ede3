//! The models on CUDA: against the official tensors in both precisions, whole utterances through the engine, batches bit for bit, and what
//! happens when the device fails.
//!
//! With f32 the bounds are nearly those of the CPU. With bf16 they say what rounding every weight and activation to eight bits (eleven in the
//! vocoder) costs the kit's models, with a factor of about two to spare.

use std::sync::Arc;

use cosyvoice::cuda::{Cuda, Precision};
use cosyvoice::engine::{self, EngineError, EngineHandle, EngineOptions, Request};

use super::{Device, device, turn};
use crate::engine::{request, sft_voice, start};
use crate::parity::{e2e, flow, llm, vocoder};
use crate::support::emulator::{self, Streams};
use crate::support::metrics::snr_db;
use crate::support::model;

const LLM_F32: llm::Tolerances = llm::Tolerances {
    input: 0.0,
    hidden: 2e-3,
    logp: 1e-3,
};
const LLM_BF16: llm::Tolerances = llm::Tolerances {
    input: 0.01,
    hidden: 0.06,
    logp: 0.5,
};
const FLOW_F32: f64 = 1e-7;
const FLOW_BF16: f64 = 1e-3;
const HIFT_STAGES_F32: f64 = 1e-9;
const HIFT_STAGES_BF16: f64 = 3e-4;
const HIFT_F32_DB: f64 = 60.0;
const HIFT_BF16_DB: f64 = 34.0;

/// Runs a check on a device of its own, in one precision.
fn on(precision: Precision, check: impl FnOnce(Cuda)) {
    if let Some((cuda, _turn)) = device(precision).map(Device::into_parts) {
        check(cuda);
    }
}

#[test]
fn llm_log_probabilities() {
    for (precision, tolerances) in [(Precision::F32, LLM_F32), (Precision::Bf16, LLM_BF16)] {
        on(precision, |cuda| {
            llm::check_forced(
                &mut llm::Rig::on(cuda),
                "llm_sft.safetensors",
                tolerances,
                4,
            );
        });
    }
}

#[test]
fn llm_token_trace() {
    on(Precision::F32, |cuda| {
        llm::check_trace(&mut llm::Rig::on(cuda), "llm_trace_eos.safetensors");
    });
}

#[test]
fn llm_batches_change_no_byte() {
    for precision in [Precision::F32, Precision::Bf16] {
        on(precision, |cuda| {
            llm::check_batches(&mut llm::Rig::on(cuda), &[5], 3);
        });
    }
}

#[test]
fn flow_stages_and_mel() {
    for (precision, bound) in [(Precision::F32, FLOW_F32), (Precision::Bf16, FLOW_BF16)] {
        on(precision, |cuda| {
            flow::check_recorded(&flow::Fixture::on(cuda), bound, 1);
        });
    }
}

#[test]
fn flow_batches_change_no_byte() {
    for precision in [Precision::F32, Precision::Bf16] {
        on(precision, |cuda| {
            flow::check_short_batch(&flow::Fixture::on(cuda));
        });
    }
}

#[test]
fn vocoder_stages_and_waveform() {
    let name = "hift_cache.safetensors";
    on(Precision::F32, |cuda| {
        let mut rig = vocoder::Rig::on(cuda);
        vocoder::check_f0(&mut rig, name, HIFT_STAGES_F32);
        vocoder::check_source(&mut rig, name, HIFT_STAGES_F32);
        vocoder::check_generator(&mut rig, name, HIFT_STAGES_F32, HIFT_F32_DB + 20.0);
        vocoder::check_whole(&mut rig, name, HIFT_F32_DB - 5.0);
    });
    on(Precision::Bf16, |cuda| {
        let mut rig = vocoder::Rig::on(cuda);
        // f0 and source are f32 whatever the precision: the phase depends on them.
        vocoder::check_f0(&mut rig, name, HIFT_STAGES_F32);
        vocoder::check_source(&mut rig, name, HIFT_STAGES_F32);
        vocoder::check_generator(&mut rig, name, HIFT_STAGES_BF16, HIFT_BF16_DB);
    });
}

#[test]
fn vocoder_batches_change_no_byte() {
    for precision in [Precision::F32, Precision::Bf16] {
        on(precision, |cuda| {
            vocoder::check_batch(&mut vocoder::Rig::on(cuda));
        });
    }
}

/// An engine on so many emulated devices, each of which is opened again when it fails.
fn engine(precision: Precision, devices: usize, options: EngineOptions) -> EngineHandle {
    let opens = (0..devices).map(|ordinal| move || super::open(ordinal, precision));
    engine::start_on(model::checkpoint(), opens, options, Arc::default())
        .unwrap_or_else(|e| panic!("{e}"))
}

/// A cache that the emulator's memory has room for.
fn small() -> EngineOptions {
    EngineOptions {
        kv_positions: 2048,
        ..EngineOptions::default()
    }
}

fn speak(engine: &EngineHandle, request: Request) -> Result<Vec<f32>, EngineError> {
    Ok(engine.submit(request)?.collect()?.0)
}

#[test]
fn recorded_runs_sound_the_same() {
    let Some(_turn) = turn() else { return };
    e2e::check_runs(&engine(Precision::F32, 1, small()), e2e::MIN_SNR_DB, 1);
}

/// Streamed and not, fast and slow: the bytes of a request are the same alone and among others.
#[test]
fn an_utterance_is_the_same_alone_and_in_a_batch() {
    let Some(_turn) = turn() else { return };
    let (engine, voice) = (engine(Precision::Bf16, 1, small()), sft_voice());
    let jobs: Vec<_> = (0..4)
        .map(|n| engine.submit(request(&voice, n)).expect("room"))
        .collect();
    let together: Vec<_> = (jobs.into_iter())
        .map(|job| job.collect().expect("speech").0)
        .collect();
    for n in 1..3 {
        let alone = speak(&engine, request(&voice, n)).expect("speech");
        assert!(alone == together[n], "request {n} changed in a batch");
    }
}

/// The device draws a step ahead of what the engine knows; on the CPU nothing is ahead.
#[test]
fn tokens_drawn_ahead_are_those_of_the_cpu() {
    let Some(_turn) = turn() else { return };
    let engine = engine(Precision::F32, 1, small());
    let (cpu, voice) = start(EngineOptions::default());
    for n in [0, 2] {
        let [expected, actual] = [&cpu, &engine].map(|engine| {
            let job = engine.submit(request(&voice, n)).expect("room");
            job.collect().expect("speech")
        });
        assert_eq!(actual.1.speech_tokens, expected.1.speech_tokens);
        // A token that differs would leave nothing alike.
        let snr = snr_db(&actual.0, &expected.0);
        assert!(snr > 40.0, "request {n}: {snr} dB");
    }
}

/// Two streams whose work is done late and in any order that their events allow: nothing that is heard depends on it.
#[test]
fn streams_in_any_order_change_nothing() {
    let Some(_turn) = turn().filter(|_| emulator::has_faults()) else {
        return;
    };
    let (engine, voice) = (engine(Precision::F32, 1, small()), sft_voice());
    let together = || {
        let jobs = [0, 2].map(|n| engine.submit(request(&voice, n)).expect("room"));
        jobs.map(|job| job.collect().expect("speech").0)
    };
    let expected = together();
    for seed in 1..3 {
        emulator::streams(Streams::Deferred, seed);
        let deferred = together();
        emulator::streams(Streams::Eager, 1);
        assert!(deferred == expected, "seed {seed}");
    }
}

/// `CUDA_ERROR_LAUNCH_FAILED`: the context is lost with everything in it.
const LAUNCH_FAILED: i32 = 719;

/// What is in work fails with the driver's words, what waits is done on the device opened anew, and so is what comes later.
#[test]
fn a_lost_device_is_opened_again() {
    let Some(_turn) = turn().filter(|_| emulator::has_faults()) else {
        return;
    };
    let mut options = small();
    options.budgets.max_running = 1;
    let (engine, voice) = (engine(Precision::F32, 1, options), sft_voice());
    let expected = speak(&engine, request(&voice, 0)).expect("speech");
    emulator::fault(LAUNCH_FAILED, 50);
    let jobs = [0, 0].map(|n| engine.submit(request(&voice, n)).expect("room"));
    let [in_work, waiting] = jobs.map(cosyvoice::engine::Job::collect);
    let error = in_work.expect_err("its device failed").to_string();
    assert!(
        error.contains("cuda:0") && error.contains("LAUNCH_FAILED"),
        "{error}"
    );
    assert!(waiting.expect("speech").0 == expected);
    assert!(speak(&engine, request(&voice, 0)).expect("speech") == expected);
    let stats = engine.stats();
    assert_eq!((stats.requests_done, stats.requests_failed), (3, 1));
}

/// No memory for a batch fails that batch; the engine, its models and its cache stay.
#[test]
fn out_of_memory_fails_the_request_alone() {
    let Some(_turn) = turn().filter(|_| emulator::has_faults()) else {
        return;
    };
    let (engine, voice) = (engine(Precision::F32, 1, small()), sft_voice());
    emulator::memory(1);
    let error = speak(&engine, request(&voice, 0)).expect_err("there is no memory");
    emulator::memory(4 << 30);
    assert!(error.to_string().contains("out of memory"), "{error}");
    assert!(
        !speak(&engine, request(&voice, 0))
            .expect("speech")
            .is_empty()
    );
}

/// Two devices behind one queue: each works, and which one it was cannot be heard.
#[test]
fn several_devices_share_the_load() {
    const DEVICES: &str = "CUDA_EMULATOR_DEVICES";
    if !emulator::has_faults() {
        return;
    }
    if std::env::var_os(DEVICES).is_none() {
        // The number of devices is fixed when the driver starts.
        let exe = std::env::current_exe().expect("a running test has a path");
        let output = std::process::Command::new(exe)
            .args(["cuda::models::several_devices", "--nocapture"])
            .env(DEVICES, "2")
            .output()
            .expect("the test binary runs");
        // What it printed decides: engines that are still closing their devices when the process ends may take it down.
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(printed.contains("1 passed"), "{output:?}");
        return;
    }
    let Some(_turn) = turn() else { return };
    let (engine, voice) = (engine(Precision::Bf16, 2, small()), sft_voice());
    let jobs = [0, 0, 0].map(|n| engine.submit(request(&voice, n)).expect("room"));
    let [first, second, third] = jobs.map(|job| job.collect().expect("speech").0);
    assert!(first == second && second == third);
    assert_eq!(engine.stats().kv_pages_total, 2 * 2048 / 16);
    assert_eq!(engine.stats().requests_done, 3);
}
