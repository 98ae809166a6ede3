//! Weighted finite-state transducers over bytes: the reader of the packed grammars.
//!
//! In: a grammar packed by `grammars/pack.py`. Out: its states and arcs in memory, checked, ready for [`super::viterbi`].
//! Reference: OpenFst's `vector` files of `standard` arcs, whose columns the packed form holds.

use std::collections::HashMap;
use std::io::Read;

#[derive(Clone, Copy, Debug)]
pub(super) struct Arc {
    pub(super) input: u8,
    pub(super) output: u8,
    pub(super) cost: f32,
    pub(super) next: u32,
}

/// A transducer: bytes in, bytes out; label 0 is epsilon. Arcs that read nothing lead to states of greater number.
#[derive(Debug)]
pub struct Fst {
    pub(super) start: u32,
    /// Arcs of state `s` are `arcs[first[s]..first[s + 1]]`, sorted by input label.
    first: Vec<u32>,
    arcs: Vec<Arc>,
    /// Input labels of `arcs`.
    inputs: Vec<u8>,
    /// Cost of ending in each state, where that is allowed.
    pub(super) finals: Vec<Option<f32>>,
    /// Per state, which of `prospects` it has.
    prospect: Vec<u16>,
    prospects: Vec<Prospect>,
}

/// What can come next from a state, past arcs that read nothing: a bit per byte that can be read; bit 0 where the text may end.
type Prospect = [u64; 4];

/// The place of the end of the text in a [`Prospect`].
pub(super) const END: u8 = 0;

/// Why a packed grammar cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FstError {
    #[error("not gzip data: {0}")]
    Gzip(String),
    #[error("not a packed grammar")]
    Magic,
    #[error("the grammar ends early")]
    Truncated,
    #[error("{0}")]
    Invalid(&'static str),
}

/// Bytes of a packed grammar, taken from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], FstError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(FstError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, FstError> {
        let mut value = 0u64;
        for shift in (0..63).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(FstError::Invalid("an integer is too long"))
    }

    fn index(&mut self) -> Result<u32, FstError> {
        u32::try_from(self.varint()?).map_err(|_| FstError::Invalid("an integer is too large"))
    }

    fn signed(&mut self) -> Result<i64, FstError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }
}

impl Fst {
    /// Reads a gzipped grammar.
    ///
    /// # Errors
    /// [`FstError`] for anything that `grammars/pack.py` would not write.
    pub fn from_gzip(bytes: &[u8]) -> Result<Self, FstError> {
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(bytes)
            .take(1 << 27)
            .read_to_end(&mut unpacked)
            .map_err(|e| FstError::Gzip(e.to_string()))?;
        Self::from_bytes(&unpacked)
    }

    /// Reads a grammar; the format is described in `grammars/pack.py`.
    ///
    /// # Errors
    /// [`FstError`] for anything that `grammars/pack.py` would not write.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, FstError> {
        let mut bytes = Bytes(bytes);
        if bytes.take(5)? != b"FSTP1" {
            return Err(FstError::Magic);
        }
        let (start, states) = (bytes.index()?, bytes.index()?);
        let (arcs, weights) = (bytes.index()? as usize, bytes.index()?);
        // Each state and arc takes several bytes below: counts beyond that are refused before memory is taken for them.
        if start >= states || bytes.0.len() < states as usize + arcs {
            return Err(FstError::Invalid("counts do not fit the file"));
        }
        let weights: Vec<f32> = bytes
            .take(weights as usize * 4)?
            .chunks_exact(4)
            .map(|w| f32::from_le_bytes([w[0], w[1], w[2], w[3]]))
            .collect();
        if !weights.iter().all(|w| w.is_finite()) {
            return Err(FstError::Invalid("a weight is not finite"));
        }
        let mut first = Vec::with_capacity(states as usize + 1);
        first.push(0u32);
        for _ in 0..states {
            let end = first[first.len() - 1].checked_add(bytes.index()?);
            first.push(
                end.filter(|&e| e as usize <= arcs)
                    .ok_or(FstError::Invalid("too many arcs"))?,
            );
        }
        if first[states as usize] as usize != arcs {
            return Err(FstError::Invalid("arc counts disagree"));
        }
        let weight = |index: usize| {
            weights
                .get(index)
                .copied()
                .ok_or(FstError::Invalid("no such weight"))
        };
        let finals = bytes
            .take(states as usize)?
            .iter()
            .map(|&f| usize::from(f).checked_sub(1).map(weight).transpose())
            .collect::<Result<Vec<_>, _>>()?;
        let arcs = read_arcs(&mut bytes, &first, weight)?;
        let fst = Self::new(start, first, arcs, finals);
        if !(0..states).all(|s| fst.arcs_of(s).is_sorted_by_key(|a| a.input)) {
            return Err(FstError::Invalid("arcs are not sorted"));
        }
        let rank = fst.epsilon_order()?;
        let mut fst = fst.renumbered(&rank);
        fst.look_ahead()?;
        Ok(fst)
    }

    fn new(start: u32, first: Vec<u32>, arcs: Vec<Arc>, finals: Vec<Option<f32>>) -> Self {
        Self {
            start,
            first,
            inputs: arcs.iter().map(|a| a.input).collect(),
            arcs,
            finals,
            prospect: Vec::new(),
            prospects: Vec::new(),
        }
    }

    /// Works out the prospects of all states, whose numbers must follow the arcs that read nothing.
    fn look_ahead(&mut self) -> Result<(), FstError> {
        let mut known: HashMap<Prospect, u16> = HashMap::new();
        let mut prospect = vec![0u16; self.states()];
        for state in (0..self.states()).rev() {
            let mut set = [u64::from(self.finals[state].is_some()), 0, 0, 0];
            for arc in self.arcs_of(state as u32) {
                if arc.input == 0 {
                    let next = &self.prospects[usize::from(prospect[arc.next as usize])];
                    set.iter_mut().zip(next).for_each(|(a, b)| *a |= b);
                } else {
                    set[usize::from(arc.input >> 6)] |= 1 << (arc.input & 63);
                }
            }
            prospect[state] = match known.get(&set) {
                Some(&index) => index,
                None => {
                    let index = u16::try_from(self.prospects.len())
                        .map_err(|_| FstError::Invalid("the grammar is too varied"))?;
                    self.prospects.push(set);
                    known.insert(set, index);
                    index
                }
            };
        }
        self.prospect = prospect;
        Ok(())
    }

    /// The same machine with state `s` called `rank[s]`.
    fn renumbered(&self, rank: &[u32]) -> Self {
        let mut old = vec![0u32; rank.len()];
        for (state, &new) in rank.iter().enumerate() {
            old[new as usize] = state as u32;
        }
        let mut first = vec![0u32];
        let mut arcs = Vec::with_capacity(self.arcs.len());
        for &state in &old {
            arcs.extend(self.arcs_of(state).iter().map(|arc| Arc {
                next: rank[arc.next as usize],
                ..*arc
            }));
            first.push(arcs.len() as u32);
        }
        let finals = old
            .iter()
            .map(|&state| self.finals[state as usize])
            .collect();
        Self::new(rank[self.start as usize], first, arcs, finals)
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        self.finals.len()
    }

    /// The arc of that index, which increases in the order of the file within a state.
    pub(super) fn arc(&self, index: u32) -> &Arc {
        &self.arcs[index as usize]
    }

    fn arcs_of(&self, state: u32) -> &[Arc] {
        let state = state as usize;
        &self.arcs[self.first[state] as usize..self.first[state + 1] as usize]
    }

    /// Indices of the arcs of `state` that read `input`; 0 for those that read nothing.
    pub(super) fn arcs_on(&self, state: u32, input: u8) -> std::ops::Range<u32> {
        let state = state as usize;
        let first = self.first[state] as usize;
        let inputs = &self.inputs[first..self.first[state + 1] as usize];
        let Some(&lowest) = inputs.first().filter(|&&lowest| lowest <= input) else {
            return 0..0;
        };
        // Where labels follow one another, as in runs of letters and in UTF-8, the label tells the place.
        let guess = usize::from(input - lowest);
        let start =
            if inputs.get(guess) == Some(&input) && (guess == 0 || inputs[guess - 1] < input) {
                guess
            } else {
                inputs.partition_point(|&i| i < input)
            };
        let len = inputs[start..].iter().take_while(|&&i| i == input).count();
        (first + start) as u32..(first + start + len) as u32
    }

    /// Whether `next`, a byte or [`END`], can come after arcs out of `state` that read nothing.
    pub(super) fn leads_to(&self, state: u32, next: u8) -> bool {
        let set = &self.prospects[usize::from(self.prospect[state as usize])];
        set[usize::from(next >> 6)] >> (next & 63) & 1 == 1
    }

    /// Kahn's algorithm over the input-epsilon arcs.
    fn epsilon_order(&self) -> Result<Vec<u32>, FstError> {
        let states = self.states() as u32;
        let mut incoming = vec![0u32; states as usize];
        for state in 0..states {
            for arc in self.arcs_on(state, 0) {
                incoming[self.arc(arc).next as usize] += 1;
            }
        }
        let mut ready: Vec<u32> = (0..states).filter(|&s| incoming[s as usize] == 0).collect();
        let mut rank = vec![0; states as usize];
        let mut done = 0;
        while let Some(state) = ready.pop() {
            rank[state as usize] = done;
            done += 1;
            for arc in self.arcs_on(state, 0) {
                let next = self.arc(arc).next;
                let left = &mut incoming[next as usize];
                *left -= 1;
                if *left == 0 {
                    ready.push(next);
                }
            }
        }
        if done == states {
            Ok(rank)
        } else {
            Err(FstError::Invalid("epsilon arcs form a cycle"))
        }
    }
}

fn read_arcs(
    bytes: &mut Bytes,
    first: &[u32],
    weight: impl Fn(usize) -> Result<f32, FstError>,
) -> Result<Vec<Arc>, FstError> {
    let states = first.len() as i64 - 1;
    let count = first.last().map_or(0, |&n| n as usize);
    let (inputs, outputs, costs) = (bytes.take(count)?, bytes.take(count)?, bytes.take(count)?);
    let mut arcs = Vec::with_capacity(count);
    for (state, range) in first.windows(2).enumerate() {
        for i in range[0] as usize..range[1] as usize {
            let next = (state as i64)
                .checked_add(bytes.signed()?)
                .filter(|n| (0..states).contains(n))
                .ok_or(FstError::Invalid("an arc leaves the grammar"))?;
            arcs.push(Arc {
                input: inputs[i],
                output: outputs[i],
                cost: weight(usize::from(costs[i]))?,
                next: next as u32,
            });
        }
    }
    Ok(arcs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One state that reads `a` and writes `b`.
    const TINY: &[u8] = b"FSTP1\x00\x01\x01\x01\0\0\0\0\x01\x01ab\0\0";

    #[test]
    fn a_tiny_machine_is_read() {
        let fst = Fst::from_bytes(TINY).unwrap();
        assert_eq!((fst.states(), fst.arcs_on(0, b'a')), (1, 0..1));
        assert_eq!(fst.arc(0).output, b'b');
    }

    #[test]
    fn damage_is_refused() {
        for len in 0..TINY.len() {
            assert!(Fst::from_bytes(&TINY[..len]).is_err(), "{len} bytes");
        }
        for i in 0..TINY.len() {
            let mut damaged = TINY.to_vec();
            damaged[i] ^= 0x80;
            // Labels may be anything; what counts is that nothing panics.
            let _ = Fst::from_bytes(&damaged);
        }
        assert_eq!(
            Fst::from_gzip(b"no gzip")
                .unwrap_err()
                .to_string()
                .split(':')
                .next(),
            Some("not gzip data")
        );
    }
}
