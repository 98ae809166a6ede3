//! Exact best-path search of a text through a transducer, with the reference's choice among equals.
//!
//! In: an [`Fst`] and a text. Out: what the cheapest path writes. Weights may be negative, so the search goes position by
//! position with input-epsilon arcs relaxed in topological order. Where several paths cost the same, OpenFst's
//! `ShortestPath` keeps the one it meets first: its queue follows the reverse finishing order of a depth-first walk over the
//! composed machine, or is last-in-first-out where no arc has a weight. Both orders are worked out here, only when a
//! tie asks for them. States from which the byte ahead cannot be read are not entered: no path through them is whole, and
//! OpenFst's composition drops them too. What all surviving paths of a long text share is written out on the way, so memory
//! stays bounded.
//! Reference: `fst/compose.h`, `fst/queue.h` and `fst/shortest-path.h` of OpenFst 1.8 as kaldifst, under wetext, calls them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::fst::{END, Fst};

const NONE: u32 = u32::MAX;

/// Nodes held before what all paths share is written out.
const COMMIT_NODES: usize = 1 << 16;

/// Nodes held before what the best paths share is written out, where no node is on all paths.
const FORCE_NODES: usize = 1 << 20;

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
    /// The first node with an arc into it, be that arc on a cheapest path or not.
    earliest: u32,
}

/// An arc taken from a node, as an element of a list.
#[derive(Clone, Copy, Debug)]
struct Link {
    node: u32,
    arc: u32,
    tail: u32,
}

/// Which of several equal links the reference keeps, for a stretch of the nodes.
#[derive(Default)]
struct Order {
    /// Nodes that all paths go through; empty until they are asked for.
    common: Vec<usize>,
    /// The first node that `preference` is about.
    first: usize,
    preference: Preference,
}

enum Preference {
    /// The link from the node with the greatest finishing time, then of the first arc.
    Finished(Vec<u32>),
    /// The one given for each node: the node before it and the arc.
    FirstReached(Vec<(u32, u32)>),
}

impl Default for Preference {
    fn default() -> Self {
        Preference::Finished(Vec::new())
    }
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
    earliest: Vec<u32>,
    queued: Vec<bool>,
    queue: BinaryHeap<Reverse<u32>>,
    /// The byte after the position being built, or [`END`].
    ahead: u8,
    /// Whether a path in what was written out has a weight.
    weighted: bool,
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
                // What is kept is looked at again only when as much has come.
                commit_at = self.nodes.len() * 2 + COMMIT_NODES;
            }
            if byte == 0 || self.nodes.len() > MAX_NODES {
                return None;
            }
            self.ahead = ahead(input, position + 1);
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
            self.earliest.resize(states, 0);
            self.queued.resize(states, false);
        }
        self.nodes.clear();
        self.links.clear();
        self.offsets.clear();
        self.offsets.push(0);
        self.base = 0;
        self.output.clear();
        self.weighted = false;
        self.ahead = ahead(task.input, 0);
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
        self.earliest[slot] = NONE;
        self.queue.push(Reverse(state));
    }

    /// Takes `arc` from `node`, whose cost is given, into the position being built.
    fn reach(&mut self, fst: &Fst, arc: u32, cost: f32, node: usize) {
        let taken = fst.arc(arc);
        if !fst.leads_to(taken.next, self.ahead) {
            return;
        }
        let (slot, cost) = (taken.next as usize, cost + taken.cost);
        let queued = self.queued[slot];
        let tail = match queued {
            true if cost == self.cost[slot] => self.heads[slot],
            _ => NONE,
        };
        let better = !queued || cost <= self.cost[slot];
        if !queued {
            self.enqueue(taken.next, cost, NONE);
        }
        let earliest = &mut self.earliest[slot];
        *earliest = (node as u32).min(*earliest);
        if better {
            self.links.push(Link {
                node: node as u32,
                arc,
                tail,
            });
            self.cost[slot] = cost;
            self.heads[slot] = self.links.len() as u32 - 1;
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
                earliest: self.earliest[slot],
            });
            for arc in fst.arcs_on(state, 0) {
                self.reach(fst, arc, cost, self.nodes.len() - 1);
            }
        }
        self.offsets.push(self.nodes.len());
    }

    /// Appends what the path to the best of `ends` writes.
    fn write_path(&mut self, task: Task, ends: &[u32]) {
        self.weighted |= self.has_weight(task, ends);
        let mut order = Order::default();
        let mut node = match *ends {
            [end] => end,
            _ => {
                self.extend_order(task, ends, None, &mut order);
                order.first(ends)
            }
        };
        let start = self.output.len();
        while let Some(&Link {
            node: mut from,
            mut arc,
            tail,
        }) = self.links.get(self.nodes[node as usize].links as usize)
        {
            if tail != NONE {
                self.extend_order(task, ends, Some(node), &mut order);
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

    /// Whether a best path to `ends` has a weight.
    fn has_weight(&self, task: Task, ends: &[u32]) -> bool {
        let mut node = ends[0];
        while let Some(link) = self.links.get(self.nodes[node as usize].links as usize) {
            if task.fst.arc(link.arc).cost != 0.0 {
                return true;
            }
            node = link.node;
        }
        false
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

    /// Works out the reference's preferences around `node`, a node on a best path to `ends`, where `order` has none yet; or
    /// around `ends` themselves. The walk is between two nodes that all paths go through, unless the whole text must tell
    /// whether it has a weight.
    fn extend_order(&mut self, task: Task, ends: &[u32], node: Option<u32>, order: &mut Order) {
        if node.is_some_and(|node| order.covers(node)) {
            return;
        }
        if order.common.is_empty() {
            order.common = self.common_nodes(ends);
        }
        let (least, last) = ends.iter().fold((u32::MAX, 0), |(least, last), &e| {
            (least.min(e), last.max(e as usize))
        });
        let around = node.unwrap_or(least) as usize;
        let after = order.common.partition_point(|&c| c < around);
        let first = order.common[after.saturating_sub(1)];
        let (first, last, ends) = match (node, order.common.get(after)) {
            _ if !self.weighted => (0, last, ends),
            (Some(_), Some(&end)) => (first, end, &[end as u32][..]),
            _ => (first, last, ends),
        };
        let walk = self.walk(task, ends, first, last + 1);
        self.weighted |= walk.weighted;
        order.first = first;
        order.preference = if self.weighted {
            Preference::Finished(walk.finished)
        } else {
            Preference::FirstReached(self.first_reached(task, &walk.live))
        };
    }

    /// The nodes up to `ends` that all paths go through, the first node among them.
    fn common_nodes(&self, ends: &[u32]) -> Vec<usize> {
        let last = ends.iter().min().map_or(0, |&e| e as usize);
        let mut common = Vec::new();
        let mut earliest = usize::MAX;
        for (index, node) in self.nodes.iter().enumerate().rev() {
            if index <= last && earliest >= index {
                common.push(index);
            }
            earliest = earliest.min(node.earliest as usize);
        }
        common.reverse();
        common
    }

    /// Depth-first walk over the nodes from `first` up to `end`.
    fn walk(&self, task: Task, ends: &[u32], first: usize, end: usize) -> Walk {
        let count = end - first;
        let mut walk = Walk {
            first,
            finished: vec![0; count],
            live: vec![false; count],
            weighted: false,
        };
        for &end in ends {
            walk.live[end as usize - first] = true;
        }
        let mut seen = vec![false; count];
        let mut time = 0;
        let mut stack = vec![(first, Self::arcs(task, &self.nodes[first]))];
        seen[0] = true;
        while let Some((node, arcs)) = stack.last_mut() {
            let node = *node;
            match arcs.next() {
                Some(arc) => {
                    let next = self.target(task.fst, &self.nodes[node], arc);
                    let next = next.filter(|&n| n < end && !seen[n - first]);
                    if let Some(next) = next {
                        seen[next - first] = true;
                        stack.push((next, Self::arcs(task, &self.nodes[next])));
                    }
                }
                None => {
                    stack.pop();
                    time += 1;
                    walk.finished[node - first] = time;
                    self.finish(task, node, end, &mut walk);
                }
            }
        }
        walk
    }

    /// Settles whether `node` leads to an end, and whether by an arc that has a weight.
    fn finish(&self, task: Task, node: usize, end: usize, walk: &mut Walk) {
        for arc in Self::arcs(task, &self.nodes[node]) {
            let next = self
                .target(task.fst, &self.nodes[node], arc)
                .filter(|&n| n < end);
            if next.is_some_and(|n| walk.live[n - walk.first]) {
                walk.live[node - walk.first] = true;
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

    /// Writes out what all paths share, and keeps only what follows. A walk from a node that all paths go through meets
    /// the nodes after it in the same order as one from the start.
    fn commit(&mut self, task: Task) {
        let cut = match self.last_common_node() {
            None if self.nodes.len() >= FORCE_NODES => self.last_shared_node(),
            cut => cut,
        };
        if let Some(cut) = cut {
            self.write_path(task, &[cut as u32]);
            self.drop_before(cut);
        }
    }

    /// The last node that all paths go through, other than the first.
    fn last_common_node(&self) -> Option<usize> {
        let mut earliest = usize::MAX;
        for (index, node) in self.nodes.iter().enumerate().skip(1).rev() {
            // Paths go on from every node of the position in hand.
            if index <= self.current().start && earliest >= index {
                return Some(index);
            }
            earliest = earliest.min(node.earliest as usize);
        }
        None
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
        for node in &mut self.nodes {
            node.earliest = node.earliest.saturating_sub(cut as u32);
        }
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

fn ahead(input: &[u8], position: usize) -> u8 {
    input.get(position).copied().unwrap_or(END)
}

/// What the depth-first walk finds out about each node, from `first` on.
struct Walk {
    first: usize,
    /// When it finished; 0 where the walk did not come.
    finished: Vec<u32>,
    /// Whether it leads to an end.
    live: Vec<bool>,
    /// Whether any arc between live nodes has a weight.
    weighted: bool,
}

impl Order {
    /// Whether all nodes before `node` with links into it are known.
    fn covers(&self, node: u32) -> bool {
        let count = match &self.preference {
            Preference::Finished(time) => time.len(),
            Preference::FirstReached(by) => by.len(),
        };
        (node as usize)
            .checked_sub(self.first)
            .is_some_and(|n| n < count && (n > 0 || self.first == 0))
    }

    /// The end that the reference takes first.
    fn first(&self, ends: &[u32]) -> u32 {
        let key = |end: &&u32| match &self.preference {
            Preference::Finished(time) => time[**end as usize - self.first],
            Preference::FirstReached(_) => 0,
        };
        // Two ends without any weight do not occur in practice; the first one is as good.
        ends.iter().rev().max_by_key(key).copied().unwrap_or(0)
    }

    fn choose(&self, node: u32, links: impl Iterator<Item = (u32, u32)>) -> (u32, u32) {
        match &self.preference {
            Preference::Finished(time) => links
                .max_by_key(|&(from, arc)| (time[from as usize - self.first], Reverse(arc)))
                .unwrap_or((0, NONE)),
            Preference::FirstReached(by) => by[node as usize - self.first],
        }
    }
}
