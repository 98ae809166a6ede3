//! Opening the data folder, and what can be done to a task after it was accepted: look, list, wait, cancel; and draining.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};

use super::live::{Live, Open};
use super::record::{Failure, Outcome, Record, Status, View};
use super::store::Store;
use super::synthesis::Synthesis;
use super::voices::Voices;
use super::{Config, Inner, OpenError, TaskError, Tasks, Timestamp, maintenance, run, webhook};
use crate::telemetry::Metrics;

/// One page of a list of tasks.
pub struct Page {
    /// Newest first.
    pub tasks: Vec<View>,
    pub total: usize,
    pub next_cursor: Option<String>,
}

/// Follows one task.
pub struct Follow(Option<watch::Receiver<Live>>);

impl Follow {
    /// Waits for the next change; false when there will be none.
    pub async fn changed(&mut self) -> bool {
        let Some(receiver) = &mut self.0 else {
            return false;
        };
        if receiver.borrow_and_update().finished {
            return false;
        }
        receiver.changed().await.is_ok()
    }
}

impl Tasks {
    /// Opens the data folder and takes up what an earlier run left open. Blocks on the disk. Nothing runs before [`start`](Self::start).
    ///
    /// # Errors
    /// A folder that cannot be written, or that another server uses.
    pub fn open(
        config: Config,
        synthesis: Arc<dyn Synthesis>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, OpenError> {
        let results = config.data_dir.join("results");
        std::fs::create_dir_all(&results).map_err(|source| OpenError::Folder {
            path: results.clone(),
            source,
        })?;
        let store = Store::open(&config.data_dir.join("tasks.redb"))?;
        let voices = Voices::open(&config.data_dir, Arc::clone(&synthesis), config.max_prompt)?;
        let worker_count = config.workers.unwrap_or(synthesis.info().workers).max(1);
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let tasks = Self(Arc::new(Inner {
            results,
            synthesis,
            voices: Arc::new(voices),
            store,
            metrics,
            state: Mutex::default(),
            next_seq: AtomicU64::new(1),
            boot: uuid::Uuid::new_v4().simple().to_string()[..8].to_owned(),
            workers: Arc::new(Semaphore::new(worker_count)),
            worker_count,
            running: AtomicUsize::new(0),
            preparing: Semaphore::new(cores),
            queued: Notify::new(),
            hooked: Notify::new(),
            draining: watch::Sender::new(false),
            config,
        }));
        tasks.resume()?;
        Ok(tasks)
    }

    /// Queues the open records, counts the finished ones, removes files that belong to none.
    fn resume(&self) -> Result<(), OpenError> {
        let inner = &self.0;
        let mut files = HashMap::new();
        let mut last_seq = 0;
        let mut open = Vec::new();
        inner.store.for_each(|record| {
            last_seq = last_seq.max(record.seq);
            match &record.outcome {
                Some(Outcome::Completed(c)) => {
                    files.insert(c.file.clone(), ());
                }
                Some(Outcome::Failed(_)) => {}
                None => open.push(record),
            }
        })?;
        inner.next_seq.store(last_seq + 1, Ordering::Relaxed);
        let mut state = inner.state();
        for (scope, status, count) in inner.store.counts()? {
            state.finished.entry(scope).or_default()[usize::from(status == Status::Failed)] +=
                count;
        }
        for record in &open {
            *state.per_client.entry(record.client.clone()).or_default() += 1;
        }
        drop(state);
        if !open.is_empty() {
            tracing::info!(tasks = open.len(), "resuming tasks of an earlier run");
        }
        for record in open {
            self.enqueue(Open::new(record, None));
        }
        maintenance::remove_orphans(&inner.results, &|name| files.contains_key(name));
        Ok(())
    }

    /// Starts the work in the background of the present runtime.
    pub fn start(&self) {
        tokio::spawn(run::dispatch(Arc::clone(&self.0)));
        tokio::spawn(maintenance::run(Arc::clone(&self.0)));
        tokio::spawn(webhook::run(Arc::clone(&self.0)));
    }

    /// The task as it is now.
    ///
    /// # Errors
    /// [`TaskError::NotFound`] and [`TaskError::Gone`]; a task of another scope is not found.
    pub fn get(&self, scope: &str, task_id: &str) -> Result<View, TaskError> {
        if let Some(open) = self.open_task(scope, task_id) {
            return Ok(self.open_view(&open));
        }
        let not_found = || TaskError::NotFound(task_id.to_owned());
        let Some(record) = self.0.store.get(task_id)? else {
            let gone = self.0.store.is_gone(task_id)?;
            return Err(if gone {
                TaskError::Gone(task_id.to_owned())
            } else {
                not_found()
            });
        };
        if record.scope != scope {
            return Err(not_found());
        }
        if record.outcome.is_none() {
            // Read between its insert and its place in memory, or just before its end left it.
            return Ok(Open::new(record, None).view(&self.0.boot, None));
        }
        let view = View::finished(record, self.0.config.max_age);
        if view.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(TaskError::Gone(task_id.to_owned()));
        }
        Ok(view)
    }

    fn open_task(&self, scope: &str, task_id: &str) -> Option<Arc<Open>> {
        let open = self.0.state().open.get(task_id).cloned();
        open.filter(|o| o.record.scope == scope)
    }

    fn open_view(&self, open: &Open) -> View {
        let position = self.0.state().queue.position(open.record.seq);
        open.view(&self.0.boot, position)
    }

    /// Tasks of a scope, newest first; `cursor` is what the page before gave.
    ///
    /// # Errors
    /// [`TaskError::Store`].
    pub fn list(
        &self,
        scope: &str,
        status: Option<Status>,
        limit: usize,
        cursor: Option<u64>,
    ) -> Result<Page, TaskError> {
        let before = cursor.unwrap_or(u64::MAX);
        let wants = |s: Status| status.is_none_or(|wanted| wanted == s);
        let open: Vec<Arc<Open>> = {
            let state = self.0.state();
            let mine = state.open.values().filter(|o| o.record.scope == scope);
            mine.cloned().collect()
        };
        let open: Vec<Arc<Open>> = open
            .into_iter()
            .filter(|o| wants(o.live().status))
            .collect();
        let mut total = open.len();
        let finished = self
            .0
            .state()
            .finished
            .get(scope)
            .copied()
            .unwrap_or_default();
        let mut records: Vec<Record> = Vec::new();
        for (status, count) in [
            (Status::Completed, finished[0]),
            (Status::Failed, finished[1]),
        ] {
            if wants(status) {
                total += count;
                records.extend(self.0.store.finished(scope, status, before, limit + 1)?);
            }
        }
        let mut views: Vec<View> = records
            .into_iter()
            .map(|r| View::finished(r, self.0.config.max_age))
            .chain(
                open.iter()
                    .filter(|o| o.record.seq < before)
                    .map(|o| self.open_view(o)),
            )
            .collect();
        views.sort_by_key(|v| std::cmp::Reverse(v.record.seq));
        // A task that ended in between is in both lists.
        views.dedup_by_key(|v| v.record.seq);
        let more = views.len() > limit;
        views.truncate(limit);
        let next_cursor = views
            .last()
            .filter(|_| more)
            .map(|v| v.record.seq.to_string());
        Ok(Page {
            tasks: views,
            total,
            next_cursor,
        })
    }

    /// Follows a task from now on.
    pub fn follow(&self, scope: &str, task_id: &str) -> Follow {
        Follow(self.open_task(scope, task_id).map(|o| o.subscribe()))
    }

    /// Waits until a task has ended.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn wait(&self, scope: &str, task_id: &str) -> Result<View, TaskError> {
        let mut follow = self.follow(scope, task_id);
        while follow.changed().await {}
        self.get(scope, task_id)
    }

    /// Ends a pending or running task; its end is on disk when this returns.
    ///
    /// # Errors
    /// [`TaskError::Finished`] when it had ended already.
    pub async fn cancel(&self, scope: &str, task_id: &str) -> Result<(), TaskError> {
        if let Some(open) = self.open_task(scope, task_id)
            && open.claim()
        {
            self.0.state().queue.remove(open.record.seq);
            open.cancelled.notify_one();
            self.0.metrics.failed("cancelled");
            let inner = Arc::clone(&self.0);
            let outcome = Outcome::Failed(Failure::cancelled());
            // On its own, so that it ends even when the caller goes away.
            let ending = tokio::spawn(async move { run::conclude(&inner, &open, outcome).await });
            let _ = ending.await;
            return Ok(());
        }
        let view = self.wait(scope, task_id).await?;
        Err(TaskError::Finished {
            task_id: task_id.to_owned(),
            status: view.status,
        })
    }

    /// Takes nothing on any more and waits for what runs, at most `limit`. What is open then is resumed by the next start.
    pub async fn drain(&self, limit: Duration) {
        self.0.draining.send_replace(true);
        let deadline = tokio::time::Instant::now() + limit;
        while self.0.running.load(Ordering::Relaxed) > 0 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
