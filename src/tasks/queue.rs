//! The order in which waiting tasks run: first come, first served, but a client with fewer running tasks goes first, and
//! nobody waits longer than [`PATIENCE`] for that reason. Pure: time is passed in.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::Timestamp;

/// How long fairness between clients may hold back the task that came first.
const PATIENCE: Duration = Duration::from_secs(30);

struct Waiting {
    task_id: String,
    client: String,
    chars: usize,
    since: Timestamp,
}

/// Tasks that wait, and how many of each client run.
#[derive(Default)]
pub(super) struct Queue {
    waiting: BTreeMap<u64, Waiting>,
    chars: usize,
    running: HashMap<String, usize>,
}

impl Queue {
    pub(super) fn push(
        &mut self,
        seq: u64,
        task_id: &str,
        client: &str,
        chars: usize,
        now: Timestamp,
    ) {
        self.chars += chars;
        let waiting = Waiting {
            task_id: task_id.to_owned(),
            client: client.to_owned(),
            chars,
            since: now,
        };
        self.waiting.insert(seq, waiting);
    }

    /// Takes a task out before it ran; false when it is not waiting.
    pub(super) fn remove(&mut self, seq: u64) -> bool {
        let removed = self.waiting.remove(&seq);
        self.chars -= removed.as_ref().map_or(0, |w| w.chars);
        removed.is_some()
    }

    /// The next to run, counted as running until [`ended`](Self::ended).
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<String> {
        let (&first, head) = self.waiting.first_key_value()?;
        let impatient = head.since.plus(PATIENCE) <= now;
        let fairest = self
            .waiting
            .iter()
            .min_by_key(|(seq, w)| (self.running.get(&w.client).copied().unwrap_or(0), **seq));
        let seq = match fairest {
            Some((&seq, _)) if !impatient => seq,
            _ => first,
        };
        let next = self.waiting.remove(&seq)?;
        self.chars -= next.chars;
        *self.running.entry(next.client).or_default() += 1;
        Some(next.task_id)
    }

    /// One running task of this client is over.
    pub(super) fn ended(&mut self, client: &str) {
        if let Some(n) = self.running.get_mut(client) {
            *n -= 1;
            if *n == 0 {
                self.running.remove(client);
            }
        }
    }

    /// 1 for the task that came first of those waiting.
    pub(super) fn position(&self, seq: u64) -> Option<usize> {
        let waits = self.waiting.contains_key(&seq);
        waits.then(|| self.waiting.range(..=seq).count())
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Characters of text that wait.
    pub(super) fn chars(&self) -> usize {
        self.chars
    }
}

/// How fast work goes, measured on what was finished.
pub(super) struct Pace {
    /// Moving average of seconds per character, at whatever concurrency there was.
    seconds_per_char: f64,
    /// Moving average of how many ran at the same time.
    concurrency: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            seconds_per_char: 0.02,
            concurrency: 1.0,
        }
    }
}

impl Pace {
    /// Accounts a finished task of `chars` that ran `seconds` beside `running - 1` others.
    pub(super) fn record(&mut self, chars: usize, seconds: f64, running: usize) {
        const WEIGHT: f64 = 0.1;
        let sample = seconds / chars.max(1) as f64;
        self.seconds_per_char += WEIGHT * (sample - self.seconds_per_char);
        self.concurrency += WEIGHT * (running as f64 - self.concurrency);
    }

    /// Seconds until a task of `chars` is done with `ahead` characters before it.
    pub(super) fn estimate(&self, ahead: usize, chars: usize) -> f64 {
        let wait = ahead as f64 * self.seconds_per_char / self.concurrency.max(1.0);
        wait + chars as f64 * self.seconds_per_char
    }

    /// Whole seconds until one of `waiting` tasks with `chars` in all has left the queue.
    pub(super) fn retry_after(&self, waiting: usize, chars: usize) -> u64 {
        let one = chars as f64 / waiting.max(1) as f64;
        let seconds = one * self.seconds_per_char / self.concurrency.max(1.0);
        seconds.ceil().clamp(1.0, 600.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(tasks: &[(u64, &str)]) -> Queue {
        let mut queue = Queue::default();
        for (seq, client) in tasks {
            queue.push(*seq, &seq.to_string(), client, 10, Timestamp(0));
        }
        queue
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let mut q = queue(&[(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c")]);
        assert_eq!(q.position(4), Some(4));
        let order: Vec<String> = std::iter::from_fn(|| q.pop(Timestamp(1))).collect();
        assert_eq!(order, ["1", "4", "5", "2", "3"]);
        assert_eq!((q.len(), q.chars()), (0, 0));
    }

    #[test]
    fn patience_ends() {
        let mut q = queue(&[(1, "a"), (2, "a"), (3, "b")]);
        assert_eq!(q.pop(Timestamp(0)).as_deref(), Some("1"));
        assert_eq!(q.pop(Timestamp(30_000)).as_deref(), Some("2"));
    }

    #[test]
    fn an_ended_task_no_longer_counts() {
        let mut q = queue(&[(1, "a"), (2, "a"), (3, "b")]);
        assert_eq!(q.pop(Timestamp(0)).as_deref(), Some("1"));
        q.ended("a");
        assert_eq!(q.pop(Timestamp(0)).as_deref(), Some("2"));
        assert!(q.remove(3) && !q.remove(3) && q.pop(Timestamp(0)).is_none());
    }

    #[test]
    fn estimates_follow_what_was_measured() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.record(100, 2.0, 4);
        }
        assert!((pace.estimate(0, 50) - 1.0).abs() < 0.01);
        assert!((pace.estimate(400, 50) - 3.0).abs() < 0.05);
        assert_eq!(pace.retry_after(10, 9_500), 5);
        assert_eq!(pace.retry_after(0, 0), 1);
    }
}
