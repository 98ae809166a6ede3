//! Housekeeping: expired tasks and their files, unused prompts, leftovers of an earlier run.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::record::{Outcome, VoiceSource};
use super::{Inner, Status, StoreError, Timestamp, files};

/// How long the id of a removed task is answered "expired" and not "unknown".
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// How often unused prompts are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Tasks removed in one commit.
const BATCH: usize = 256;

/// Removes files of no task: those that a crash left between the rename and the commit, and half-written ones.
pub(super) fn remove_orphans(results: &Path, is_known: &dyn Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(results) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let ours = name.starts_with("task_") || name.ends_with(files::PARTIAL);
        if ours && !is_known(&name) {
            files::remove(&entry.path());
        }
    }
}

/// Runs until the server drains.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut cleanup = tokio::time::interval(inner.config.cleanup_interval);
    let mut sweep = tokio::time::interval(SWEEP_INTERVAL.min(inner.config.cleanup_interval));
    loop {
        tokio::select! {
            () = inner.drained() => return,
            _ = cleanup.tick() => {
                if let Err(error) = expire(&inner).await {
                    tracing::error!(%error, "cannot remove expired tasks");
                }
            }
            _ = sweep.tick() => sweep_prompts(&inner).await,
        }
    }
}

async fn expire(inner: &Arc<Inner>) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let age = inner.config.max_age.as_millis() as u64;
    let (cutoff, remember) = (Timestamp(now.0.saturating_sub(age)), now.plus(REMEMBERED));
    let mut removed = 0;
    loop {
        let records = inner.store.expire(cutoff, remember, BATCH).await?;
        if records.is_empty() {
            break;
        }
        removed += records.len();
        let mut paths = Vec::new();
        for record in records {
            let status = match &record.outcome {
                Some(Outcome::Completed(c)) => {
                    paths.push(inner.results.join(&c.file));
                    Status::Completed
                }
                _ => Status::Failed,
            };
            inner.state().forget_finished(&record.scope, status);
        }
        let _ =
            tokio::task::spawn_blocking(move || paths.iter().for_each(|p| files::remove(p))).await;
    }
    if removed > 0 {
        tracing::info!(tasks = removed, "removed expired tasks");
    }
    inner.store.forget_gone(now).await
}

impl super::State {
    fn forget_finished(&mut self, scope: &str, status: Status) {
        if let Some(counts) = self.finished.get_mut(scope) {
            let count = &mut counts[usize::from(status == Status::Failed)];
            *count = count.saturating_sub(1);
            if *counts == [0, 0] {
                self.finished.remove(scope);
            }
        }
    }
}

async fn sweep_prompts(inner: &Arc<Inner>) {
    let in_use: HashSet<String> = {
        let state = inner.state();
        let sources = state.open.values().map(|o| &o.record.request.voice);
        sources
            .filter_map(|source| match source {
                VoiceSource::Prompt(digest) => Some(digest.clone()),
                VoiceSource::Builtin(_) => None,
            })
            .collect()
    };
    let voices = Arc::clone(&inner.voices);
    let _ = tokio::task::spawn_blocking(move || voices.sweep(&in_use)).await;
}
