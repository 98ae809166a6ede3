//! An open task in memory: its record, where it is, and who wants to know.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, watch};

use super::Timestamp;
use super::record::{Record, Status, View};
use super::synthesis::Prepared;

/// Where an open task is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Live {
    pub(super) status: Status,
    pub(super) stage: &'static str,
    pub(super) progress: f32,
    pub(super) started_at: Option<Timestamp>,
    /// The record on disk is finished; this was the last change.
    pub(super) finished: bool,
    pub(super) revision: u64,
}

/// An accepted task that has not ended.
pub(super) struct Open {
    pub(super) record: Record,
    /// Made at submit; made again after a restart.
    pub(super) prepared: Mutex<Option<Prepared>>,
    live: watch::Sender<Live>,
    /// Set by whoever ends the task: its run, or a cancel.
    claimed: AtomicBool,
    /// Wakes the run when a cancel has claimed the task.
    pub(super) cancelled: Notify,
}

impl Open {
    pub(super) fn new(record: Record, prepared: Option<Prepared>) -> Self {
        let live = Live {
            status: Status::Pending,
            stage: "queued",
            progress: 0.0,
            started_at: None,
            finished: false,
            revision: 0,
        };
        Self {
            record,
            prepared: Mutex::new(prepared),
            live: watch::Sender::new(live),
            claimed: AtomicBool::new(false),
            cancelled: Notify::new(),
        }
    }

    /// Takes the right to end the task; true for exactly one caller.
    pub(super) fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    pub(super) fn live(&self) -> Live {
        self.live.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Live> {
        self.live.subscribe()
    }

    pub(super) fn start(&self) {
        self.change(|live| {
            live.status = Status::Processing;
            live.stage = "llm";
            live.started_at = Some(Timestamp::now());
        });
    }

    /// Moves on; never back, and never to 1, which is for completed tasks.
    pub(super) fn advance(&self, stage: &'static str, fraction: f32) {
        const STEP: f32 = 0.005;
        let fraction = if fraction.is_nan() {
            0.0
        } else {
            fraction.clamp(0.0, 0.99)
        };
        self.live.send_if_modified(|live| {
            let moved = live.stage != stage || fraction >= live.progress + STEP;
            if moved {
                live.stage = stage;
                live.progress = live.progress.max(fraction);
                live.revision += 1;
            }
            moved
        });
    }

    /// Tells everybody that the finished record is on disk.
    pub(super) fn finish(&self) {
        self.change(|live| live.finished = true);
    }

    fn change(&self, change: impl FnOnce(&mut Live)) {
        self.live.send_modify(|live| {
            change(live);
            live.revision += 1;
        });
    }

    /// The task as users see it now. `boot` tells revisions of different runs of the server apart.
    pub(super) fn view(&self, boot: &str, queue_position: Option<usize>) -> View {
        let live = self.live();
        let mut record = self.record.clone();
        record.started_at = live.started_at;
        View {
            record,
            status: live.status,
            stage: Some(live.stage),
            progress: live.progress,
            queue_position: queue_position.filter(|_| live.status == Status::Pending),
            expires_at: None,
            revision: format!("{boot}.{}", live.revision),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::tests::record;

    #[test]
    fn progress_is_monotone_and_below_one() {
        let open = Open::new(record(1), None);
        open.start();
        let mut seen = Vec::new();
        for (stage, fraction) in [
            ("llm", 0.3),
            ("llm", 0.1),
            ("flow", 0.2),
            ("flow", f32::NAN),
            ("vocoder", 7.0),
            ("vocoder", -1.0),
        ] {
            open.advance(stage, fraction);
            seen.push(open.live().progress);
        }
        assert!(
            seen.is_sorted() && seen[0] == 0.3 && seen[5] == 0.99,
            "{seen:?}"
        );
        assert!(open.claim() && !open.claim());
    }
}
