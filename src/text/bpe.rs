//! Byte-level byte pair encoding: the ids of a word.
//!
//! In: `vocab.json` and `merges.txt` of a GPT-2 style tokenizer; words as bytes. Out: token ids, as the `tokenizers` library gives.
//! Reference: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; the byte alphabet is GPT-2's.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::path::Path;

use super::TextError;

const NONE: u32 = u32::MAX;

/// Symbols up to which merging by scanning is faster than with a queue.
const SCANNED: usize = 128;

/// Mixes one integer.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(26)
    }
}

#[derive(Clone, Copy)]
struct Merge {
    rank: u32,
    id: u32,
}

/// A token of the word in hand, with the merge that joins it and the next one.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// [`NONE`] where they do not join.
    rank: u32,
    joined: u32,
}

/// The vocabulary and its merges.
pub(super) struct Bpe {
    vocab: HashMap<String, u32>,
    /// What each token stands for.
    bytes: HashMap<u32, Box<[u8]>>,
    /// The token of each byte, where there is one.
    alphabet: [Option<u32>; 256],
    merges: HashMap<u64, Merge, BuildHasherDefault<PairHasher>>,
}

impl Bpe {
    /// Reads the files of a tokenizer.
    ///
    /// # Errors
    /// [`TextError::TokenizerFile`] naming the file that is missing or malformed.
    pub(super) fn load(vocab_path: &Path, merges_path: &Path) -> Result<Self, TextError> {
        let bytes = read(vocab_path)?;
        let entries: HashMap<String, serde_json::Value> =
            serde_json::from_slice(&bytes).map_err(|e| TextError::tokenizer(vocab_path, &e))?;
        let mut vocab = HashMap::with_capacity(entries.len());
        for (token, id) in entries {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.filter(|&id| id < NONE).ok_or_else(|| {
                TextError::tokenizer(vocab_path, &format!("the id of {token:?} is no id"))
            })?;
            vocab.insert(token, id);
        }
        let alphabet = byte_characters().map(|c| vocab.get(c.encode_utf8(&mut [0; 4])).copied());
        let of_character: HashMap<char, u8> = byte_characters().into_iter().zip(0..=255).collect();
        let content = |token: &str| -> Box<[u8]> {
            let bytes = token.chars().map(|c| of_character.get(&c).copied());
            bytes
                .collect::<Option<Box<[u8]>>>()
                .unwrap_or_else(|| token.as_bytes().into())
        };
        let bytes = vocab.iter().map(|(t, &id)| (id, content(t))).collect();
        let text = String::from_utf8(read(merges_path)?)
            .map_err(|e| TextError::tokenizer(merges_path, &e))?;
        let merges = merges(&text, &vocab).map_err(|e| TextError::tokenizer(merges_path, &e))?;
        Ok(Self {
            vocab,
            bytes,
            alphabet,
            merges,
        })
    }

    /// Number of tokens.
    pub(super) fn len(&self) -> usize {
        self.vocab.len()
    }

    /// The id of a token, written in the byte alphabet.
    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.vocab.get(token).copied()
    }

    /// The bytes that a token stands for.
    pub(super) fn content(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(&id).map(|b| &**b)
    }

    fn merge(&self, left: u32, right: u32) -> Option<Merge> {
        let pair = u64::from(left) << 32 | u64::from(right);
        self.merges.get(&pair).copied()
    }

    fn symbol(&self, id: u32, next: Option<u32>) -> Symbol {
        match next.and_then(|next| self.merge(id, next)) {
            Some(Merge { rank, id: joined }) => Symbol { id, rank, joined },
            None => Symbol {
                id,
                rank: NONE,
                joined: NONE,
            },
        }
    }

    /// Gives the ids of `word` to `sink`, in order. Bytes without a token are left out.
    pub(super) fn encode(&self, word: &[u8], scratch: &mut Scratch, sink: &mut impl FnMut(u32)) {
        let ids = &mut scratch.ids;
        ids.clear();
        ids.extend(word.iter().filter_map(|&b| self.alphabet[usize::from(b)]));
        if ids.len() > SCANNED {
            self.merge_queued(ids);
            ids.iter().copied().for_each(sink);
            return;
        }
        let symbols = &mut scratch.symbols;
        symbols.clear();
        symbols.extend((0..ids.len()).map(|i| self.symbol(ids[i], ids.get(i + 1).copied())));
        self.merge_scanned(symbols);
        symbols.iter().for_each(|s| sink(s.id));
    }

    /// Joins the pair of the lowest rank, the leftmost of equals, until none is left.
    fn merge_scanned(&self, symbols: &mut Vec<Symbol>) {
        loop {
            let (mut at, mut rank) = (0, NONE);
            for (i, symbol) in symbols.iter().enumerate() {
                if symbol.rank < rank {
                    (at, rank) = (i, symbol.rank);
                }
            }
            if rank == NONE {
                return;
            }
            symbols[at].id = symbols[at].joined;
            symbols.remove(at + 1);
            for i in at.saturating_sub(1)..=at {
                symbols[i] = self.symbol(symbols[i].id, symbols.get(i + 1).map(|s| s.id));
            }
        }
    }

    /// The same for long words, in time `n log n`.
    fn merge_queued(&self, ids: &mut Vec<u32>) {
        let count = ids.len();
        // Places of the neighbours that are left; a joined right part has the id `NONE`.
        let mut previous: Vec<usize> = (0..count).map(|i| i.wrapping_sub(1)).collect();
        let mut next: Vec<usize> = (1..=count).collect();
        let mut queue = BinaryHeap::new();
        let offer = |queue: &mut BinaryHeap<_>, at: usize, left: u32, right: u32| {
            if let Some(merge) = self.merge(left, right) {
                queue.push(Reverse((merge.rank, at, merge.id)));
            }
        };
        for at in 1..count {
            offer(&mut queue, at - 1, ids[at - 1], ids[at]);
        }
        while let Some(Reverse((rank, at, id))) = queue.pop() {
            let right = next[at];
            if ids[at] == NONE || right >= count {
                continue;
            }
            // An entry whose parts have been joined to others since is out of date.
            if !self
                .merge(ids[at], ids[right])
                .is_some_and(|m| m.rank == rank && m.id == id)
            {
                continue;
            }
            ids[at] = id;
            ids[right] = NONE;
            next[at] = next[right];
            if let Some(&after) = ids.get(next[at]) {
                previous[next[at]] = at;
                offer(&mut queue, at, id, after);
            }
            if let Some(&before) = ids.get(previous[at]) {
                offer(&mut queue, previous[at], before, id);
            }
        }
        ids.retain(|&id| id != NONE);
    }
}

/// Working memory of [`Bpe::encode`], kept between words.
#[derive(Default)]
pub(super) struct Scratch {
    ids: Vec<u32>,
    symbols: Vec<Symbol>,
}

fn read(path: &Path) -> Result<Vec<u8>, TextError> {
    std::fs::read(path).map_err(|e| TextError::tokenizer(path, &e))
}

fn merges(
    text: &str,
    vocab: &HashMap<String, u32>,
) -> Result<HashMap<u64, Merge, BuildHasherDefault<PairHasher>>, String> {
    let id = |token: &str| {
        vocab
            .get(token)
            .copied()
            .ok_or_else(|| format!("{token:?} is not in the vocabulary"))
    };
    let lines = text.lines().filter(|line| !line.starts_with("#version"));
    lines
        .zip(0u32..)
        .map(|(line, rank)| {
            let (left, right) = line
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' '))
                .ok_or_else(|| format!("merge {} is not two tokens: {line:?}", rank + 1))?;
            let pair = u64::from(id(left)?) << 32 | u64::from(id(right)?);
            let id = id(&format!("{left}{right}"))?;
            Ok((pair, Merge { rank, id }))
        })
        .collect()
}

/// The character that each byte is written as in the files: itself where it is visible, else the next one from U+0100 on.
fn byte_characters() -> [char; 256] {
    let mut hidden = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => hidden.next().unwrap_or_default(),
    })
}
