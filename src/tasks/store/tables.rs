//! The tables of the task store, and moving records in and out of them.

use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::Timestamp;
use super::super::record::{Outcome, Record, Status};
use super::StoreError;

/// seq → record.
pub(super) const TASKS: TableDefinition<u64, &[u8]> = TableDefinition::new("tasks");
/// task id → seq.
pub(super) const IDS: TableDefinition<&str, u64> = TableDefinition::new("ids");
/// (scope, status, seq) of finished tasks, for lists.
pub(super) const FINISHED: TableDefinition<(&str, u8, u64), ()> = TableDefinition::new("finished");
/// (end in ms, seq) of finished tasks, for retention.
pub(super) const EXPIRY: TableDefinition<(u64, u64), ()> = TableDefinition::new("expiry");
/// (scope, key) → (task id, digest of the request).
pub(super) const IDEMPOTENCY: TableDefinition<(&str, &str), (&str, &str)> =
    TableDefinition::new("idempotency");
/// seq → callback to deliver.
pub(super) const HOOKS: TableDefinition<u64, &[u8]> = TableDefinition::new("hooks");
/// id of a removed task → until when it is remembered, in ms.
pub(super) const GONE: TableDefinition<&str, u64> = TableDefinition::new("gone");

pub(super) fn create(txn: &WriteTransaction) -> Result<(), StoreError> {
    txn.open_table(TASKS)?;
    txn.open_table(IDS)?;
    txn.open_table(FINISHED)?;
    txn.open_table(EXPIRY)?;
    txn.open_table(IDEMPOTENCY)?;
    txn.open_table(HOOKS)?;
    txn.open_table(GONE)?;
    Ok(())
}

pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|e| StoreError::Record(e.to_string()))
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| StoreError::Record(e.to_string()))
}

pub(super) fn read(
    tasks: &impl ReadableTable<u64, &'static [u8]>,
    seq: u64,
) -> Result<Option<Record>, StoreError> {
    let found = tasks.get(seq)?;
    found.map(|g| decode(g.value())).transpose()
}

pub(super) fn take(
    tasks: &mut Table<'_, u64, &[u8]>,
    seq: u64,
) -> Result<Option<Record>, StoreError> {
    let found = tasks.remove(seq)?;
    found.map(|g| decode(g.value())).transpose()
}

/// Removes all that points to a finished record.
pub(super) fn forget(
    txn: &WriteTransaction,
    record: &Record,
    remember: Timestamp,
) -> Result<(), StoreError> {
    let (status, _) = ended(record);
    txn.open_table(IDS)?.remove(record.task_id.as_str())?;
    txn.open_table(FINISHED)?
        .remove((record.scope.as_str(), status, record.seq))?;
    txn.open_table(HOOKS)?.remove(record.seq)?;
    if let Some(idempotency) = &record.idempotency {
        let key = (record.scope.as_str(), idempotency.key.as_str());
        txn.open_table(IDEMPOTENCY)?.remove(key)?;
    }
    txn.open_table(GONE)?
        .insert(record.task_id.as_str(), remember.0)?;
    Ok(())
}

/// How and when a finished record ended.
pub(super) fn ended(record: &Record) -> (u8, Timestamp) {
    let status = match record.outcome {
        Some(Outcome::Completed(_)) => Status::Completed,
        _ => Status::Failed,
    };
    let at = record.completed_at.unwrap_or(record.created_at);
    (status_number(status), at)
}

/// Numbers on disk; never renumber.
pub(super) fn status_number(status: Status) -> u8 {
    match status {
        Status::Pending => 0,
        Status::Processing => 1,
        Status::Completed => 2,
        Status::Failed => 3,
    }
}

pub(super) fn status_of(number: u8) -> Status {
    let known = Status::ALL
        .into_iter()
        .find(|s| status_number(*s) == number);
    known.unwrap_or(Status::Failed)
}
