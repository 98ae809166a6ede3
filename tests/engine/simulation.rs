//! The scheduler and the page pool over whole lives of sequences: random arrivals, sizes, cancels and failures, without a model.
//!
//! Whatever comes: every sequence that is not cancelled ends, nobody who could go on waits longer than the patience and one turn of everybody
//! else, budgets and bounds hold in every iteration, and what has ended holds no page.

use std::time::Duration;

use cosyvoice::engine::blocks::{PageLease, PagePool};
use cosyvoice::engine::scheduler::{Budgets, LlmState, View, plan};
use proptest::prelude::*;

const PAGES: usize = 24;
const PAGE_SIZE: usize = 8;
/// Time of an iteration.
const TICK: Duration = Duration::from_millis(100);
const BUDGETS: Budgets = Budgets {
    max_running: 6,
    max_running_per_client: 3,
    llm_rows: 16,
    flow_frames: 100,
    vocoder_frames: 100,
    patience: Duration::from_secs(2),
};

/// What a sequence will do.
#[derive(Clone, Debug)]
struct Life {
    arrives: usize,
    client: u64,
    stream: bool,
    prompt: usize,
    tokens: usize,
    frames: usize,
    steps: usize,
    /// Iterations after its arrival at which it is cancelled or fails.
    ends_early: Option<usize>,
}

fn life() -> impl Strategy<Value = Life> {
    let sizes = (1usize..60, 1usize..60, 1usize..300, 1usize..6);
    let early = proptest::option::weighted(0.3, 0usize..120);
    (0usize..200, 0u64..3, any::<bool>(), sizes, early).prop_map(
        |(arrives, client, stream, (prompt, tokens, frames, steps), ends_early)| Life {
            arrives,
            client,
            stream,
            prompt,
            tokens,
            frames,
            steps,
            ends_early,
        },
    )
}

/// One on its way: what is left to do.
struct Running {
    life: Life,
    lease: Option<PageLease>,
    view: View,
}

impl Running {
    fn new(life: &Life, arrival: usize, now: Duration, pool: &PagePool) -> Self {
        let pages = pool.pages_for(life.prompt + life.tokens);
        Self {
            life: life.clone(),
            lease: None,
            view: View {
                arrival: arrival as u64,
                client: life.client,
                stream: life.stream,
                audio_until: None,
                served: now,
                llm: LlmState::Waiting { pages },
                flow: None,
                vocoder: None,
            },
        }
    }

    fn serve(&mut self, now: Duration) {
        self.view.served = now;
    }

    fn llm(&mut self, rows: usize) {
        self.view.llm = match self.view.llm {
            LlmState::Prefill { rows: left } if left > rows => {
                LlmState::Prefill { rows: left - rows }
            }
            LlmState::Prefill { .. } => LlmState::Decode,
            _ => {
                self.life.tokens -= 1;
                match self.life.tokens {
                    0 => LlmState::Idle,
                    _ => LlmState::Decode,
                }
            }
        };
        if self.view.llm == LlmState::Idle {
            self.view.flow = Some(self.life.frames);
        }
    }

    fn flow(&mut self) {
        self.life.steps -= 1;
        if self.life.steps == 0 {
            self.view.flow = None;
            self.view.vocoder = Some(self.life.frames);
        }
    }
}

fn run(lives: &[Life]) {
    let pool = PagePool::new(PAGES, PAGE_SIZE);
    let mut live: Vec<Running> = Vec::new();
    let work = |l: &Life| l.arrives + l.prompt + l.tokens + l.steps + 2;
    let enough: usize = lives.iter().map(work).sum::<usize>() + 1;
    for tick in 0..enough {
        let now = TICK * tick as u32;
        let new = lives.iter().enumerate().filter(|(_, l)| l.arrives == tick);
        live.extend(new.map(|(i, l)| Running::new(l, i, now, &pool)));
        live.retain(|r| r.life.ends_early != Some(tick - r.life.arrives));
        let held: usize = live
            .iter()
            .filter_map(|r| Some(r.lease.as_ref()?.pages().len()))
            .sum();
        assert_eq!(pool.free() + held, PAGES, "a page is lost or shared");
        if live.is_empty() && lives.iter().all(|l| l.arrives < tick) {
            return;
        }
        iterate(&mut live, &pool, now);
    }
    panic!("{} never end", live.len());
}

fn iterate(live: &mut Vec<Running>, pool: &PagePool, now: Duration) {
    let views: Vec<View> = live.iter().map(|r| r.view).collect();
    let plan = plan(&views, pool.free(), &BUDGETS, now);
    assert!(
        !plan.is_empty() || live.is_empty(),
        "no progress is possible"
    );
    for &i in &plan.admit {
        let lease = pool.lease(live[i].life.prompt + live[i].life.tokens);
        live[i].lease = Some(lease.expect("the plan counted the pages"));
        live[i].view.llm = LlmState::Prefill {
            rows: live[i].life.prompt,
        };
        live[i].serve(now);
    }
    let admitted = |r: &&Running| r.lease.is_some();
    assert!(live.iter().filter(admitted).count() <= BUDGETS.max_running);
    for client in 0..3 {
        let of_client = live
            .iter()
            .filter(admitted)
            .filter(|r| r.life.client == client);
        assert!(of_client.count() <= BUDGETS.max_running_per_client);
    }
    assert!(plan.llm.iter().map(|r| r.1).sum::<usize>() <= BUDGETS.llm_rows);
    for &(i, rows) in &plan.llm {
        live[i].llm(rows);
        live[i].serve(now);
    }
    for &i in &plan.flow {
        live[i].flow();
        live[i].serve(now);
    }
    for &i in &plan.vocoder {
        live[i].view.vocoder = None;
        live[i].serve(now);
    }
    let longest = BUDGETS.patience + TICK * (BUDGETS.max_running as u32 + 1);
    for r in live.iter().filter(admitted) {
        assert!(now - r.view.served <= longest, "{:?} starves", r.view);
    }
    live.retain(|r| {
        r.lease.is_none()
            || r.view.llm != LlmState::Idle
            || r.view.flow.is_some()
            || r.view.vocoder.is_some()
    });
}

proptest! {
    #[test]
    fn every_life_ends_and_leaves_nothing(lives in proptest::collection::vec(life(), 1..40)) {
        run(&lives);
    }
}
