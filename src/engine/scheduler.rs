//! What to do next: a pure function of counts, budgets and a clock.
//!
//! Every engine iteration asks once for a [`Plan`]: which waiting sequences to admit, which rows the language model computes,
//! which utterances take an Euler step, which chunks are vocoded. The scheduler never sees a tensor and keeps no state, so
//! its promises are property-tested: budgets hold, pages are never over-committed, nobody starves.
//!
//! Order of service: streams that have not been heard yet, by arrival (their listener waits in silence); then streams
//! by how soon their audio runs out; then everything else by arrival. A sequence that has waited longer than
//! [`Budgets::patience`] goes before all of them, which bounds the wait of every class.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

/// Limits of one iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Sequences that may hold a slot at the same time.
    pub max_running: usize,
    /// Sequences of one client that may hold a slot at the same time; 0 = no limit.
    pub max_running_per_client: usize,
    /// Rows (decode and prefill) of one language model step.
    pub llm_rows: usize,
    /// Mel frames of one Euler step, prompts included.
    pub flow_frames: usize,
    /// Mel frames of one vocoder call.
    pub vocoder_frames: usize,
    /// After this long without service a sequence goes first.
    pub patience: Duration,
}

/// The language model's side of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlmState {
    /// Not admitted yet: needs so many pages.
    Waiting { pages: usize },
    /// Admitted, so many input rows still to compute.
    Prefill { rows: usize },
    /// One row per step.
    Decode,
    /// Nothing to compute now (ended, or fed with ready speech tokens).
    Idle,
}

/// A sequence as the scheduler sees it.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Order of arrival; unique.
    pub arrival: u64,
    /// Which client it belongs to.
    pub client: u64,
    /// Whether somebody listens while it is made.
    pub stream: bool,
    /// When the audio that was sent so far runs out (streams that have been heard).
    pub audio_until: Option<Duration>,
    /// When it last got service, or arrived.
    pub served: Duration,
    pub llm: LlmState,
    /// Mel frames (prompt included) of a flow call that is under way or ready to begin.
    pub flow: Option<usize>,
    /// Mel frames that wait for the vocoder.
    pub vocoder: Option<usize>,
}

/// What one iteration does. Numbers are indices into the views.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub admit: Vec<usize>,
    /// Index and number of new rows.
    pub llm: Vec<(usize, usize)>,
    pub flow: Vec<usize>,
    pub vocoder: Vec<usize>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Plans one iteration at time `now` with `free_pages` pages left.
pub fn plan(views: &[View], free_pages: usize, budgets: &Budgets, now: Duration) -> Plan {
    let order = service_order(views, budgets, now);
    let mut plan = Plan {
        admit: admit(views, &order, free_pages, budgets),
        ..Plan::default()
    };
    plan.llm = llm_rows(views, &order, budgets.llm_rows);
    plan.flow = within(views, &order, budgets.flow_frames, |v| v.flow);
    plan.vocoder = within(views, &order, budgets.vocoder_frames, |v| v.vocoder);
    plan
}

/// Indices, most urgent first.
fn service_order(views: &[View], budgets: &Budgets, now: Duration) -> Vec<usize> {
    let mut heap: BinaryHeap<_> = views
        .iter()
        .enumerate()
        .map(|(i, v)| {
            let overdue = now.saturating_sub(v.served) > budgets.patience;
            let class = match (overdue, v.stream, v.audio_until) {
                (true, ..) => (0, v.served),
                (false, true, None) => (1, Duration::ZERO),
                (false, true, Some(until)) => (2, until),
                (false, false, _) => (3, Duration::ZERO),
            };
            Reverse((class, v.arrival, i))
        })
        .collect();
    let mut order = Vec::with_capacity(views.len());
    while let Some(Reverse((_, _, i))) = heap.pop() {
        order.push(i);
    }
    order
}

/// Waiting sequences that fit into slots and pages. The first that does not fit into the free pages ends admission:
/// overtaking it with smaller ones for ever would starve it. A client at its bound is passed over.
fn admit(views: &[View], order: &[usize], free_pages: usize, budgets: &Budgets) -> Vec<usize> {
    let mut running = 0;
    let mut per_client: HashMap<u64, usize> = HashMap::new();
    for v in views {
        if !matches!(v.llm, LlmState::Waiting { .. }) {
            running += 1;
            *per_client.entry(v.client).or_default() += 1;
        }
    }
    let mut free = free_pages;
    let mut admitted = Vec::new();
    for &i in order {
        let LlmState::Waiting { pages } = views[i].llm else {
            continue;
        };
        let of_client = per_client.entry(views[i].client).or_default();
        if budgets.max_running_per_client > 0 && *of_client >= budgets.max_running_per_client {
            continue;
        }
        if running >= budgets.max_running || pages > free {
            break;
        }
        free -= pages;
        running += 1;
        *of_client += 1;
        admitted.push(i);
    }
    admitted
}

/// Decode rows first (one each, nobody's cadence breaks for another's prompt), then prefill chunks with what is left.
fn llm_rows(views: &[View], order: &[usize], budget: usize) -> Vec<(usize, usize)> {
    let mut left = budget;
    let mut rows = Vec::new();
    for &i in order {
        if left > 0 && views[i].llm == LlmState::Decode {
            rows.push((i, 1));
            left -= 1;
        }
    }
    for &i in order {
        if let LlmState::Prefill { rows: wanted } = views[i].llm
            && left > 0
        {
            let n = wanted.min(left);
            rows.push((i, n));
            left -= n;
        }
    }
    rows
}

/// The most urgent that fit together into `budget` frames; the first always goes, however large.
fn within(
    views: &[View],
    order: &[usize],
    budget: usize,
    frames: impl Fn(&View) -> Option<usize>,
) -> Vec<usize> {
    let mut left = budget;
    let mut chosen = Vec::new();
    for &i in order {
        let Some(n) = frames(&views[i]) else { continue };
        if n > left && !chosen.is_empty() {
            break;
        }
        left = left.saturating_sub(n);
        chosen.push(i);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BUDGETS: Budgets = Budgets {
        max_running: 4,
        max_running_per_client: 2,
        llm_rows: 32,
        flow_frames: 500,
        vocoder_frames: 300,
        patience: Duration::from_secs(10),
    };

    fn view(arrival: u64, llm: LlmState) -> View {
        View {
            arrival,
            client: arrival,
            stream: false,
            audio_until: None,
            served: Duration::ZERO,
            llm,
            flow: None,
            vocoder: None,
        }
    }

    #[test]
    fn decode_rows_come_before_prefill_chunks() {
        let views = [
            view(0, LlmState::Prefill { rows: 100 }),
            view(1, LlmState::Decode),
        ];
        let plan = plan(&views, 0, &BUDGETS, Duration::ZERO);
        assert_eq!(plan.llm, [(1, 1), (0, 31)]);
    }

    #[test]
    fn unheard_streams_come_first_then_the_one_that_runs_dry() {
        let mut views = [0, 1, 2, 3].map(|i| view(i, LlmState::Idle));
        for v in &mut views {
            v.flow = Some(400);
        }
        views[1].stream = true;
        views[1].audio_until = Some(Duration::from_secs(9));
        views[2].stream = true;
        views[2].audio_until = Some(Duration::from_secs(5));
        views[3].stream = true;
        let chosen = |views: &[View]| plan(views, 0, &BUDGETS, Duration::from_secs(1)).flow;
        assert_eq!(chosen(&views), [3]);
        views[3].flow = None;
        assert_eq!(chosen(&views), [2]);
        views[2].flow = None;
        assert_eq!(chosen(&views), [1]);
    }

    #[test]
    fn a_client_at_its_bound_is_passed_over() {
        let mut views = [0, 1, 2, 3].map(|i| view(i, LlmState::Waiting { pages: 1 }));
        for v in &mut views[..3] {
            v.client = 7;
        }
        let plan = plan(&views, 10, &BUDGETS, Duration::ZERO);
        assert_eq!(plan.admit, [0, 1, 3]);
    }

    #[test]
    fn a_large_request_is_not_overtaken_for_ever() {
        let views = [
            view(0, LlmState::Waiting { pages: 9 }),
            view(1, LlmState::Waiting { pages: 1 }),
        ];
        assert!(plan(&views, 8, &BUDGETS, Duration::ZERO).admit.is_empty());
        assert_eq!(plan(&views, 10, &BUDGETS, Duration::ZERO).admit, [0, 1]);
    }

    fn any_view() -> impl Strategy<Value = View> {
        let llm = prop_oneof![
            (1usize..9).prop_map(|pages| LlmState::Waiting { pages }),
            (1usize..200).prop_map(|rows| LlmState::Prefill { rows }),
            Just(LlmState::Decode),
            Just(LlmState::Idle),
        ];
        let frames = || proptest::option::of(1usize..900);
        (llm, 0u64..3, any::<bool>(), 0u64..40, frames(), frames()).prop_map(
            |(llm, client, stream, served, flow, vocoder)| View {
                arrival: 0,
                client,
                stream,
                audio_until: None,
                served: Duration::from_secs(served),
                llm,
                flow,
                vocoder,
            },
        )
    }

    proptest! {
        #[test]
        fn budgets_hold_and_work_is_found(mut views in proptest::collection::vec(any_view(), 0..20), free in 0usize..30) {
            for (i, v) in views.iter_mut().enumerate() {
                v.arrival = i as u64;
            }
            let now = Duration::from_secs(20);
            let plan = plan(&views, free, &BUDGETS, now);
            let pages: usize = plan.admit.iter().map(|&i| match views[i].llm {
                LlmState::Waiting { pages } => pages,
                _ => panic!("admitted a running sequence"),
            }).sum();
            prop_assert!(pages <= free);
            let running = views.iter().filter(|v| !matches!(v.llm, LlmState::Waiting { .. })).count();
            prop_assert!(plan.admit.is_empty() || running + plan.admit.len() <= BUDGETS.max_running);
            let rows: usize = plan.llm.iter().map(|r| r.1).sum();
            prop_assert!(rows <= BUDGETS.llm_rows);
            for (chosen, budget, frames) in [
                (&plan.flow, BUDGETS.flow_frames, views.iter().map(|v| v.flow).collect::<Vec<_>>()),
                (&plan.vocoder, BUDGETS.vocoder_frames, views.iter().map(|v| v.vocoder).collect()),
            ] {
                let sum: usize = chosen.iter().map(|&i| frames[i].expect("has work")).sum();
                prop_assert!(sum <= budget || chosen.len() == 1);
                prop_assert_eq!(chosen.is_empty(), frames.iter().all(Option::is_none));
            }
            // Whoever is overdue for longest is served in every stage where it has work.
            if let Some(i) = (0..views.len())
                .filter(|&i| now.saturating_sub(views[i].served) > BUDGETS.patience)
                .min_by_key(|&i| (views[i].served, i))
            {
                prop_assert!(views[i].flow.is_none() || plan.flow.contains(&i));
                prop_assert!(views[i].vocoder.is_none() || plan.vocoder.contains(&i));
            }
        }
    }
}
