//! `serve`: settings, logs, the HTTP server, and the model behind it.
//!
//! The server listens before the model is loaded and answers 503 "starting" until then, so that probes see it at once.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::model::resolve_model_dir;
use super::text::read_lexicon;
use crate::cpu::heap::keep_heaps_small;
use crate::engine::{Synthesizer, SynthesizerOptions};
use crate::server::{Server, Starter, tasks_config};
use crate::settings::{Flags, Settings};
use crate::tasks::{Speaker, Tasks};
use crate::telemetry::{Metrics, init_logs};

/// Serves until SIGTERM or SIGINT; a second one ends the process at once.
pub(super) fn run(mut flags: Flags, log_level: Option<String>) -> anyhow::Result<()> {
    if let Some(level) = log_level {
        flags.set_log_level(level);
    }
    let settings = Settings::load(&flags)?;
    keep_heaps_small();
    init_logs(&settings.log_level, settings.log_format);
    warn_of_oddities(&settings);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let served = runtime.block_on(serve(settings));
    // What is still running is resumed by the next start; it must not hold up this one's end.
    runtime.shutdown_background();
    served
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::default());
    let server = Server::bind(settings.clone(), Arc::clone(&metrics)).await?;
    tracing::info!(address = %server.address(), version = env!("CARGO_PKG_VERSION"), "listening");
    let starting = start(server.starter(), settings, metrics);
    let serving = server.run(wait_for_signal()?);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        started = starting => started?,
        // A signal before the model is loaded.
        () = &mut serving => return Ok(()),
    }
    serving.await;
    Ok(())
}

/// Loads the model, takes up the tasks of an earlier run, and makes the server ready.
async fn start(starter: Starter, settings: Settings, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let since = std::time::Instant::now();
    let opening = tokio::task::spawn_blocking(move || {
        let speaker = load(&settings)?;
        let tasks = Tasks::open(tasks_config(&settings), Arc::new(speaker), metrics)?;
        Ok::<_, anyhow::Error>(tasks)
    });
    let tasks = opening.await.context("loading the model")??;
    tasks.start();
    let info = tasks.synthesis().info();
    tracing::info!(
        model = info.name,
        device = info.device,
        sample_rate_hz = info.sample_rate_hz,
        workers = tasks.worker_count(),
        voices = tasks.voices().builtin().len() + tasks.voices().registered().len(),
        seconds = since.elapsed().as_secs_f64(),
        "ready"
    );
    starter.ready(tasks);
    Ok(())
}

fn load(settings: &Settings) -> anyhow::Result<Speaker> {
    let dir = resolve_model_dir(settings.model_dir.as_deref())?;
    let options = SynthesizerOptions {
        device: settings.device.clone(),
        voices_dir: settings.data_dir.join("voices"),
        lexicon: settings
            .lexicon
            .as_deref()
            .map(|path| read_lexicon(path, "LEXICON"))
            .transpose()?,
        max_running: settings.max_synthesis_workers.unwrap_or(0),
        ..SynthesizerOptions::default()
    };
    let synthesizer = Synthesizer::open(&dir, &options)?;
    Ok(Speaker::new(synthesizer, &dir))
}

fn wait_for_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop; once more stops at once");
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(130);
        });
    })
}

/// Things that work but that an operator may not have meant.
fn warn_of_oddities(settings: &Settings) {
    if settings.api_keys.is_empty() && !settings.host.is_loopback() {
        tracing::warn!(host = %settings.host, "open to the network without API_KEYS");
    }
    if let Some(dir) = &settings.model_dir
        && std::fs::metadata(dir).is_ok_and(|m| m.permissions().readonly())
    {
        tracing::warn!(dir = %dir.display(), "MODEL_DIR is not writable: voices are kept in DATA_DIR only");
    }
    if let Some(limit) = descriptor_limit()
        && limit < settings.max_connections as u64 + 256
    {
        tracing::warn!(
            limit,
            max_connections = settings.max_connections,
            "the limit on open files is below MAX_CONNECTIONS"
        );
    }
}

/// Open files that this process may have.
fn descriptor_limit() -> Option<u64> {
    let limits = std::fs::read_to_string(Path::new("/proc/self/limits")).ok()?;
    let line = limits.lines().find(|l| l.starts_with("Max open files"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}
