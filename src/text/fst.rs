//! Weighted finite-state transducers over bytes: the reader of the packed grammars.
//!
//! In: a grammar packed by `grammars/pack.py`. Out: its states and arcs in memory, checked, ready for [`super::viterbi`].
//! Reference: OpenFst's `vector` files of `standard` arcs, whose columns the packed form holds.

use std::io::Read;

#[derive(Clone, Copy, Debug)]
pub(super) struct Arc {
    pub(super) input: u8,
    pub(super) output: u8,
    pub(super) cost: f32,
    pub(super) next: u32,
}

/// A transducer: bytes in, bytes out; label 0 is epsilon.
#[derive(Debug)]
pub(super) struct Fst {
    pub(super) start: u32,
    /// Arcs of state `s` are `arcs[first[s]..first[s + 1]]`, sorted by input label.
    first: Vec<u32>,
    arcs: Vec<Arc>,
    /// Cost of ending in each state, where that is allowed.
    pub(super) finals: Vec<Option<f32>>,
    /// Position of each state in a topological order of the input-epsilon arcs.
    pub(super) rank: Vec<u32>,
}

/// Why a packed grammar cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FstError {
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
    pub(super) fn from_gzip(bytes: &[u8]) -> Result<Self, FstError> {
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
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, FstError> {
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
        let (inputs, outputs) = (bytes.take(arcs)?, bytes.take(arcs)?);
        let costs = bytes.take(arcs)?;
        let mut table = Vec::with_capacity(arcs);
        for state in 0..states {
            for i in first[state as usize] as usize..first[state as usize + 1] as usize {
                let next = i64::from(state)
                    .checked_add(bytes.signed()?)
                    .filter(|n| (0..i64::from(states)).contains(n))
                    .ok_or(FstError::Invalid("an arc leaves the grammar"))?;
                table.push(Arc {
                    input: inputs[i],
                    output: outputs[i],
                    cost: weight(usize::from(costs[i]))?,
                    next: next as u32,
                });
            }
        }
        let mut fst = Self {
            start,
            first,
            arcs: table,
            finals,
            rank: Vec::new(),
        };
        let sorted = (0..states).all(|s| fst.arcs_of(s).is_sorted_by_key(|a| a.input));
        if !sorted {
            return Err(FstError::Invalid("arcs are not sorted"));
        }
        fst.rank = fst.epsilon_order()?;
        Ok(fst)
    }

    /// Number of states.
    pub(super) fn states(&self) -> usize {
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
        let arcs = self.arcs_of(state);
        let start = if input == 0 {
            0
        } else {
            arcs.partition_point(|a| a.input < input)
        };
        let len = arcs[start..]
            .iter()
            .take_while(|a| a.input == input)
            .count();
        let start = self.first[state as usize] + start as u32;
        start..start + len as u32
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
