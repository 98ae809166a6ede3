//! Tasks on disk, in one `redb` file: what [`insert`](Store::insert) and [`finish`](Store::finish) acknowledged survives `kill -9`.
//!
//! One thread writes. Whatever has queued up while the last commit was on its way to the disk goes into the next one, so a
//! hundred submits at once cost few syncs. Reads see the last commit and never wait for a writer.

mod tables;

use std::ops::Bound;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::Timestamp;
use super::record::{Record, Status};
use tables::{EXPIRY, FINISHED, GONE, HOOKS, IDEMPOTENCY, IDS, TASKS};

/// Writes that may wait for the writer.
const WAITING_WRITES: usize = 1024;
/// Writes that share one commit.
const WRITES_PER_COMMIT: usize = 256;
/// How long a start waits for another server to let go of the file.
const HANDOVER: std::time::Duration = std::time::Duration::from_secs(5);
/// Pages of the file kept in memory.
const CACHE_BYTES: usize = 32 << 20;

/// The store cannot do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("the task store failed: {0}")]
    Database(String),
    #[error("the task store has a record that cannot be read: {0}")]
    Record(String),
    #[error("the task store is closed")]
    Closed,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        StoreError::Database(error.into().to_string())
    }
}

/// What became of an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Inserted {
    New,
    /// The idempotency key belongs to this task, of the same request.
    Existing(String),
    /// The idempotency key belongs to another request.
    Conflict,
}

/// A callback that is still to be delivered.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub(super) struct Hook {
    pub(super) task_id: String,
    pub(super) attempts: u32,
    pub(super) next_at: Timestamp,
}

type Write = Box<dyn FnOnce(Result<&WriteTransaction, &StoreError>) -> Option<Reply> + Send>;
/// Tells a writer's caller how the commit went.
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The open store. Clones share it.
#[derive(Clone)]
pub(super) struct Store {
    database: std::sync::Arc<Database>,
    writes: mpsc::Sender<Write>,
}

impl Store {
    /// Opens or makes the file and starts the writer.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = std::sync::Arc::new(create(&builder, path)?);
        let txn = database.begin_write()?;
        tables::create(&txn)?;
        txn.commit()?;
        let (writes, receiver) = mpsc::channel(WAITING_WRITES);
        let writer = std::sync::Arc::clone(&database);
        std::thread::Builder::new()
            .name(String::from("task-store"))
            .spawn(move || write_loop(&writer, receiver))
            .map_err(|e| StoreError::Database(e.to_string()))?;
        Ok(Self { database, writes })
    }

    /// Runs `work` in a transaction and returns once it is on disk.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        let write: Write = Box::new(move |txn| {
            let value = match txn {
                Ok(txn) => work(txn),
                Err(error) => Err(error.clone()),
            };
            match value {
                Ok(value) => Some(Box::new(move |committed: Result<(), StoreError>| {
                    let _ = sender.send(committed.map(|()| value));
                })),
                Err(error) => {
                    let _ = sender.send(Err(error));
                    None
                }
            }
        });
        self.writes
            .send(write)
            .await
            .map_err(|_| StoreError::Closed)?;
        receiver.await.map_err(|_| StoreError::Closed)?
    }

    /// Adds an open task.
    pub(super) async fn insert(&self, record: Record) -> Result<Inserted, StoreError> {
        self.write(move |txn| {
            if let Some(idempotency) = &record.idempotency {
                let mut keys = txn.open_table(IDEMPOTENCY)?;
                let key = (record.scope.as_str(), idempotency.key.as_str());
                if let Some(found) = keys.get(key)? {
                    let (task_id, digest) = found.value();
                    return Ok(if digest == idempotency.digest {
                        Inserted::Existing(task_id.to_owned())
                    } else {
                        Inserted::Conflict
                    });
                }
                keys.insert(key, (record.task_id.as_str(), idempotency.digest.as_str()))?;
            }
            txn.open_table(IDS)?
                .insert(record.task_id.as_str(), record.seq)?;
            txn.open_table(TASKS)?
                .insert(record.seq, tables::encode(&record)?.as_slice())?;
            Ok(Inserted::New)
        })
        .await
    }

    /// Replaces an open record by its finished form, and queues its callback.
    pub(super) async fn finish(&self, record: Record) -> Result<(), StoreError> {
        self.write(move |txn| {
            let (status, at) = tables::ended(&record);
            txn.open_table(TASKS)?
                .insert(record.seq, tables::encode(&record)?.as_slice())?;
            txn.open_table(FINISHED)?
                .insert((record.scope.as_str(), status, record.seq), ())?;
            txn.open_table(EXPIRY)?.insert((at.0, record.seq), ())?;
            if record.request.callback_url.is_some() {
                let hook = Hook {
                    task_id: record.task_id.clone(),
                    attempts: 0,
                    next_at: at,
                };
                txn.open_table(HOOKS)?
                    .insert(record.seq, tables::encode(&hook)?.as_slice())?;
            }
            Ok(())
        })
        .await
    }

    /// Sets a callback's next attempt, or forgets it.
    pub(super) async fn set_hook(&self, seq: u64, hook: Option<Hook>) -> Result<(), StoreError> {
        self.write(move |txn| {
            let mut hooks = txn.open_table(HOOKS)?;
            match hook {
                Some(hook) => hooks.insert(seq, tables::encode(&hook)?.as_slice())?,
                None => hooks.remove(seq)?,
            };
            Ok(())
        })
        .await
    }

    /// Removes at most `limit` tasks that ended before `cutoff` and returns them; their ids are remembered until `remember`.
    pub(super) async fn expire(
        &self,
        cutoff: Timestamp,
        remember: Timestamp,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        self.write(move |txn| {
            let mut expiry = txn.open_table(EXPIRY)?;
            let due: Vec<(u64, u64)> = expiry
                .range(..(cutoff.0, 0))?
                .take(limit)
                .map(|entry| entry.map(|(key, _)| key.value()))
                .collect::<Result<_, _>>()?;
            let mut tasks = txn.open_table(TASKS)?;
            let mut removed = Vec::with_capacity(due.len());
            for (at, seq) in due {
                expiry.remove((at, seq))?;
                let Some(record) = tables::take(&mut tasks, seq)? else {
                    continue;
                };
                tables::forget(txn, &record, remember)?;
                removed.push(record);
            }
            Ok(removed)
        })
        .await
    }

    /// Forgets the ids of tasks that were removed long ago.
    pub(super) async fn forget_gone(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |txn| {
            txn.open_table(GONE)?.retain(|_, until| until >= now.0)?;
            Ok(())
        })
        .await
    }

    pub(super) fn get(&self, task_id: &str) -> Result<Option<Record>, StoreError> {
        let txn = self.database.begin_read()?;
        let Some(seq) = txn.open_table(IDS)?.get(task_id)?.map(|g| g.value()) else {
            return Ok(None);
        };
        tables::read(&txn.open_table(TASKS)?, seq)
    }

    /// Whether the task existed and was removed.
    pub(super) fn is_gone(&self, task_id: &str) -> Result<bool, StoreError> {
        let txn = self.database.begin_read()?;
        Ok(txn.open_table(GONE)?.get(task_id)?.is_some())
    }

    /// The task that an idempotency key belongs to, and its digest.
    pub(super) fn find_key(
        &self,
        scope: &str,
        key: &str,
    ) -> Result<Option<(String, String)>, StoreError> {
        let txn = self.database.begin_read()?;
        let found = txn.open_table(IDEMPOTENCY)?.get((scope, key))?;
        Ok(found.map(|g| {
            let (task_id, digest) = g.value();
            (task_id.to_owned(), digest.to_owned())
        }))
    }

    /// Finished tasks of a scope before `before`, newest first.
    pub(super) fn finished(
        &self,
        scope: &str,
        status: Status,
        before: u64,
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let txn = self.database.begin_read()?;
        let (index, tasks) = (txn.open_table(FINISHED)?, txn.open_table(TASKS)?);
        let word = tables::status_number(status);
        let range = (
            Bound::Included((scope, word, 0)),
            Bound::Excluded((scope, word, before)),
        );
        let mut records = Vec::new();
        for entry in index.range::<(&str, u8, u64)>(range)?.rev().take(limit) {
            let (_, _, seq) = entry?.0.value();
            records.extend(tables::read(&tasks, seq)?);
        }
        Ok(records)
    }

    /// How many finished tasks each scope has: (scope, status, count).
    pub(super) fn counts(&self) -> Result<Vec<(String, Status, usize)>, StoreError> {
        let txn = self.database.begin_read()?;
        let mut counts: Vec<(String, Status, usize)> = Vec::new();
        for entry in txn.open_table(FINISHED)?.iter()? {
            let entry = entry?;
            let (scope, number, _) = entry.0.value();
            let status = tables::status_of(number);
            match counts.last_mut() {
                Some((s, t, n)) if s == scope && *t == status => *n += 1,
                _ => counts.push((scope.to_owned(), status, 1)),
            }
        }
        Ok(counts)
    }

    /// Every record, in order of acceptance, handed to `visit`.
    pub(super) fn for_each(&self, mut visit: impl FnMut(Record)) -> Result<(), StoreError> {
        let txn = self.database.begin_read()?;
        for entry in txn.open_table(TASKS)?.iter()? {
            visit(tables::decode(entry?.1.value())?);
        }
        Ok(())
    }

    /// Callbacks that are still to be delivered.
    pub(super) fn hooks(&self) -> Result<Vec<(u64, Hook)>, StoreError> {
        let txn = self.database.begin_read()?;
        let hooks = txn.open_table(HOOKS)?;
        hooks
            .iter()?
            .map(|entry| {
                let (seq, hook) = entry?;
                Ok((seq.value(), tables::decode(hook.value())?))
            })
            .collect()
    }
}

/// Opens the file; one that a server on its way out still holds is waited for.
fn create(builder: &redb::Builder, path: &Path) -> Result<Database, StoreError> {
    let deadline = std::time::Instant::now() + HANDOVER;
    loop {
        match builder.create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen)
                if std::time::Instant::now() < deadline =>
            {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            other => return Ok(other?),
        }
    }
}

/// Commits writes in groups until the last sender is gone.
fn write_loop(database: &Database, mut writes: mpsc::Receiver<Write>) {
    let mut group = Vec::new();
    while writes.blocking_recv_many(&mut group, WRITES_PER_COMMIT) > 0 {
        match database.begin_write() {
            Ok(txn) => {
                let replies: Vec<Reply> = group.drain(..).filter_map(|w| w(Ok(&txn))).collect();
                let committed = txn.commit().map_err(StoreError::from);
                if let Err(error) = &committed {
                    tracing::error!(%error, "a commit failed");
                }
                for reply in replies {
                    reply(committed.clone());
                }
            }
            Err(error) => {
                let error = StoreError::from(error);
                tracing::error!(%error, "cannot write to the task store");
                for write in group.drain(..) {
                    write(Err(&error));
                }
            }
        }
    }
}
