//! Exact best-path search of a text through a transducer, with the reference's choice among equals.
//!
//! In: an [`Fst`] and a text. Out: what the cheapest path writes. Weights may be negative, so the search goes position by
//! position with input-epsilon arcs relaxed in topological order. Where several paths cost the same, OpenFst's
//! `ShortestPath` keeps the one it meets first: its queue follows the reverse finishing order of a depth-first walk over the
//! composed machine, or is last-in-first-out where no arc has a weight. Both orders are worked out here, only when a
//! tie asks for them. What all surviving paths of a long text share is written out on the way, so memory stays bounded.
//! Reference: `fst/compose.h`, `fst/queue.h` and `fst/shortest-path.h` of OpenFst 1.8 as kaldifst, under wetext, calls them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::fst::Fst;

const NONE: u32 = u32::MAX;

/// Nodes held before the shared beginning of all paths is written out.
const COMMIT_NODES: usize = 1 << 20;

/// Nodes beyond which a text counts as hopelessly ambiguous.
const MAX_NODES: usize = 1 << 22;

/// A state reached after so many input bytes, on a cheapest path to it.
#[derive(Clone, Copy, Debug)]
struct Node {
    state: u32,
    cost: f32,
    position: u32,
    /// Head of the list of links into it, all of equal cost.
    links: u32,
}

/// An arc taken from a node, as an element of a list.
#[derive(Clone, Copy, Debug)]
struct Link {
    node: u32,
    arc: u32,
    tail: u32,
}

/// Which of several equal links the reference keeps.
enum Order {
    /// The one from the node with the greatest finishing time, then of the first arc.
    Finished(Vec<u32>),
    /// The one given for each node: the node before it and the arc.
    FirstReached(Vec<(u32, u32)>),
}

/// Working memory of the search, kept between texts.
#[derive(Debug, Default)]
pub struct Search {
    nodes: Vec<Node>,
    links: Vec<Link>,
    /// `nodes[offsets[i]..offsets[i + 1]]` are at position `base + i`, by state.
    offsets: Vec<usize>,
    base: usize,
    /// Per state, while queued for the position being built: cheapest cost, and the links that give it.
    cost: Vec<f32>,
    heads: Vec<u32>,
    queued: Vec<bool>,
    queue: BinaryHeap<Reverse<u32>>,
    output: Vec<u8>,
}

/// The machine and the text that are being composed.
#[derive(Clone, Copy)]
struct Task<'a> {
    fst: &'a Fst,
    input: &'a [u8],
}

impl Search {
    /// The output of the best path of `input` through `fst`; `None` when no path accepts it. Time is linear in the input.
    pub fn transduce(&mut self, fst: &Fst, input: &[u8]) -> Option<Vec<u8>> {
        let task = Task { fst, input };
        self.start(task);
        let mut commit_at = COMMIT_NODES;
        for (position, &byte) in input.iter().enumerate() {
            if self.nodes.len() >= commit_at {
                self.commit(task);
                commit_at = self.nodes.len() + COMMIT_NODES;
            }
            if byte == 0 || self.nodes.len() > MAX_NODES {
                return None;
            }
            for node in self.current() {
                let Node { state, cost, .. } = self.nodes[node];
                for arc in fst.arcs_on(state, byte) {
                    self.reach(fst, arc, cost, node);
                }
            }
            self.settle(fst, position as u32 + 1);
        }
        let total = |n: &Node| fst.finals[n.state as usize].map(|f| n.cost + f);
        let cheapest = self.nodes[self.current()]
            .iter()
            .filter_map(total)
            .min_by(f32::total_cmp)?;
        let ends: Vec<u32> = self
            .current()
            .filter(|&i| total(&self.nodes[i]) == Some(cheapest))
            .map(|i| i as u32)
            .collect();
        self.write_path(task, &ends);
        Some(std::mem::take(&mut self.output))
    }

    fn start(&mut self, task: Task) {
        let states = task.fst.states();
        if self.queued.len() < states {
            self.cost.resize(states, 0.0);
            self.heads.resize(states, NONE);
            self.queued.resize(states, false);
        }
        self.nodes.clear();
        self.links.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.base = 0;
        self.output.clear();
        self.enqueue(task.fst.start, 0.0, NONE);
        self.settle(task.fst, 0);
    }

    /// The nodes of the position in hand.
    fn current(&self) -> std::ops::Range<usize> {
        self.offsets[self.offsets.len() - 2]..self.offsets[self.offsets.len() - 1]
    }

    fn enqueue(&mut self, state: u32, cost: f32, head: u32) {
        let slot = state as usize;
        self.queued[slot] = true;
        self.cost[slot] = cost;
        self.heads[slot] = head;
        self.queue.push(Reverse(state));
    }

    /// Takes `arc` from `node`, whose cost is given, into the position being built.
    fn reach(&mut self, fst: &Fst, arc: u32, cost: f32, node: usize) {
        let taken = fst.arc(arc);
        let (slot, cost) = (taken.next as usize, cost + taken.cost);
        let tail = match self.queued[slot] {
            true if cost > self.cost[slot] => return,
            true if cost == self.cost[slot] => self.heads[slot],
            _ => NONE,
        };
        self.links.push(Link {
            node: node as u32,
            arc,
            tail,
        });
        let head = self.links.len() as u32 - 1;
        if self.queued[slot] {
            self.cost[slot] = cost;
            self.heads[slot] = head;
        } else {
            self.enqueue(taken.next, cost, head);
        }
    }

    /// Turns everything queued into the nodes of `position`, following input-epsilon arcs.
    fn settle(&mut self, fst: &Fst, position: u32) {
        while let Some(Reverse(state)) = self.queue.pop() {
            let slot = state as usize;
            self.queued[slot] = false;
            let (cost, links) = (self.cost[slot], self.heads[slot]);
            self.nodes.push(Node {
                state,
                cost,
                position,
                links,
            });
            for arc in fst.arcs_on(state, 0) {
                self.reach(fst, arc, cost, self.nodes.len() - 1);
            }
        }
        self.offsets.push(self.nodes.len());
    }

    /// Appends what the path to the best of `ends` writes.
    fn write_path(&mut self, task: Task, ends: &[u32]) {
        let mut order = None;
        let mut node = match *ends {
            [end] => end,
            _ => order
                .get_or_insert_with(|| self.order(task, ends))
                .first(ends),
        };
        let start = self.output.len();
        loop {
            let links = self.nodes[node as usize].links;
            let Some(&Link {
                node: mut from,
                mut arc,
                tail,
            }) = self.links.get(links as usize)
            else {
                break;
            };
            if tail != NONE {
                let order = order.get_or_insert_with(|| self.order(task, ends));
                (from, arc) = order.choose(node, self.links_of(node));
            }
            let output = task.fst.arc(arc).output;
            if output != 0 {
                self.output.push(output);
            }
            node = from;
        }
        self.output[start..].reverse();
    }

    fn links_of(&self, node: u32) -> impl Iterator<Item = (u32, u32)> {
        let mut next = self.nodes[node as usize].links;
        std::iter::from_fn(move || {
            let link = self.links.get(next as usize)?;
            next = link.tail;
            Some((link.node, link.arc))
        })
    }

    /// Where `arc` leads from `node`.
    fn target(&self, fst: &Fst, node: &Node, arc: u32) -> Option<usize> {
        let arc = fst.arc(arc);
        let position = node.position as usize + usize::from(arc.input != 0) - self.base;
        let range = *self.offsets.get(position)?..*self.offsets.get(position + 1)?;
        let found = self.nodes[range.clone()].binary_search_by_key(&arc.next, |n| n.state);
        found.ok().map(|i| range.start + i)
    }

    /// Arcs out of `node` in the order of the composed machine.
    fn arcs(task: Task, node: &Node) -> impl Iterator<Item = u32> + use<> {
        let byte = task.input.get(node.position as usize);
        let reading = byte.map_or(0..0, |&b| task.fst.arcs_on(node.state, b));
        task.fst.arcs_on(node.state, 0).chain(reading)
    }

    /// Works out the reference's preferences between the first node and `ends`.
    fn order(&self, task: Task, ends: &[u32]) -> Order {
        let count = ends.iter().max().map_or(0, |&e| e as usize + 1);
        let walk = self.walk(task, ends, count);
        if walk.weighted {
            Order::Finished(walk.finished)
        } else {
            Order::FirstReached(self.first_reached(task, &walk.live))
        }
    }

    /// Depth-first walk over the first `count` nodes.
    fn walk(&self, task: Task, ends: &[u32], count: usize) -> Walk {
        let mut walk = Walk {
            finished: vec![0; count],
            live: vec![false; count],
            weighted: false,
        };
        for &end in ends {
            walk.live[end as usize] = true;
        }
        let mut seen = vec![false; count];
        let mut time = 0;
        let mut stack = vec![(0, Self::arcs(task, &self.nodes[0]))];
        seen[0] = true;
        while let Some((node, arcs)) = stack.last_mut() {
            let node = *node;
            match arcs.next() {
                Some(arc) => {
                    let next = self
                        .target(task.fst, &self.nodes[node], arc)
                        .filter(|&n| n < count);
                    if let Some(next) = next.filter(|&n| !seen[n]) {
                        seen[next] = true;
                        stack.push((next, Self::arcs(task, &self.nodes[next])));
                    }
                }
                None => {
                    stack.pop();
                    time += 1;
                    walk.finished[node] = time;
                    self.finish(task, node, count, &mut walk);
                }
            }
        }
        walk
    }

    /// Settles whether `node` leads to an end, and whether by an arc that has a weight.
    fn finish(&self, task: Task, node: usize, count: usize, walk: &mut Walk) {
        for arc in Self::arcs(task, &self.nodes[node]) {
            let next = self
                .target(task.fst, &self.nodes[node], arc)
                .filter(|&n| n < count);
            if next.is_some_and(|n| walk.live[n]) {
                walk.live[node] = true;
                walk.weighted |= task.fst.arc(arc).cost != 0.0;
            }
        }
    }

    /// The link by which a last-in-first-out queue first reaches each live node.
    fn first_reached(&self, task: Task, live: &[bool]) -> Vec<(u32, u32)> {
        let mut by = vec![(NONE, NONE); live.len()];
        let mut stack = vec![0];
        while let Some(node) = stack.pop() {
            for arc in Self::arcs(task, &self.nodes[node]) {
                let next = self.target(task.fst, &self.nodes[node], arc);
                let new = |n: &usize| live.get(*n) == Some(&true) && by[*n].0 == NONE;
                if let Some(next) = next.filter(new) {
                    by[next] = (node as u32, arc);
                    stack.push(next);
                }
            }
        }
        by
    }

    /// Writes out what the best paths to all nodes of the position in hand share, and keeps only what follows.
    fn commit(&mut self, task: Task) {
        let Some(cut) = self.last_shared_node() else {
            return;
        };
        self.write_path(task, &[cut as u32]);
        self.drop_before(cut);
    }

    /// The last node before the position in hand that the best paths to all its nodes go through.
    fn last_shared_node(&self) -> Option<usize> {
        let current = self.current();
        // `until[n]`: how far links out of node `n` on these paths jump.
        let mut until = vec![0; current.end];
        until[current.clone()].fill(current.end);
        for node in (0..current.end).rev() {
            if until[node] > 0 {
                for (from, _) in self.links_of(node as u32) {
                    let reach = &mut until[from as usize];
                    *reach = node.max(*reach);
                }
            }
        }
        let mut furthest = 0;
        let mut shared = None;
        for (node, &reach) in until[..current.start].iter().enumerate() {
            if reach > 0 {
                if furthest <= node && node > 0 {
                    shared = Some(node);
                }
                furthest = furthest.max(reach);
            }
        }
        shared
    }

    /// Makes `cut` the first node.
    fn drop_before(&mut self, cut: usize) {
        let position = self.nodes[cut].position as usize;
        self.offsets.drain(..position - self.base);
        self.base = position;
        for offset in &mut self.offsets {
            *offset = offset.saturating_sub(cut);
        }
        self.nodes.drain(..cut);
        self.nodes[0].links = NONE;
        let old = std::mem::take(&mut self.links);
        for node in &mut self.nodes {
            let mut next = std::mem::replace(&mut node.links, NONE);
            while let Some(&Link {
                node: from,
                arc,
                tail,
            }) = old.get(next as usize)
            {
                // A link from before the cut leads to a node that no surviving path uses.
                if let Some(from) = from.checked_sub(cut as u32) {
                    self.links.push(Link {
                        node: from,
                        arc,
                        tail: node.links,
                    });
                    node.links = self.links.len() as u32 - 1;
                }
                next = tail;
            }
        }
    }
}

/// What the depth-first walk finds out about each node.
struct Walk {
    /// When it finished; 0 where the walk did not come.
    finished: Vec<u32>,
    /// Whether it leads to an end.
    live: Vec<bool>,
    /// Whether any arc between live nodes has a weight.
    weighted: bool,
}

impl Order {
    /// The end that the reference takes first.
    fn first(&self, ends: &[u32]) -> u32 {
        let key = |end: &&u32| match self {
            Order::Finished(time) => time[**end as usize],
            Order::FirstReached(_) => 0,
        };
        // Two ends without any weight do not occur in practice; the first one is as good.
        ends.iter().rev().max_by_key(key).copied().unwrap_or(0)
    }

    fn choose(&self, node: u32, links: impl Iterator<Item = (u32, u32)>) -> (u32, u32) {
        match self {
            Order::Finished(time) => links
                .max_by_key(|&(from, arc)| (time[from as usize], Reverse(arc)))
                .unwrap_or((0, NONE)),
            Order::FirstReached(by) => by[node as usize],
        }
    }
}
