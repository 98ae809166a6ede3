//! Mutated texts through the whole front end, for as long as asked:
//! `FUZZ_SECONDS=1800 cargo test --release --test main text_fuzz -- --ignored --nocapture`.
//!
//! Starts from the tables in `tests/fixtures/text`. A panic fails with the text and the seed that made it; the slowest texts are
//! listed. `fuzz/` holds the coverage-guided counterpart.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cosyvoice::text::{
    Frontend, FrontendOptions, Language, Normalization, Part, TextOptions, Tokenizer,
};

use super::text_readings::fixture;
use crate::support::golden;

const LONGEST_CHARS: usize = 4000;

/// Pieces that have a meaning somewhere in the front end.
const WORDS: &[&str] = &[
    "<speak>",
    "</speak>",
    "<p>",
    "</p>",
    "<s>",
    "</s>",
    "<break time=\"1s\"/>",
    "<break strength='weak'/>",
    "<sub alias=\"x 3\">",
    "</sub>",
    "<say-as interpret-as=\"date\" format=\"ymd\">",
    "<say-as interpret-as=\"cardinal\">",
    "<say-as interpret-as='telephone'>",
    "<say-as interpret-as=\"characters\">",
    "</say-as>",
    "<lang xml:lang=\"ja\">",
    "</lang>",
    "<?xml version=\"1.0\"?>",
    "<!--",
    "-->",
    "&amp;",
    "&#x41;",
    "&#0;",
    "&lt",
    "[pause:500ms]",
    "[pause:",
    "[laughter]",
    "<strong>",
    "<|endofprompt|>",
    "<|",
    "|>",
    "May 5–7",
    "$1.5M",
    "24/7",
    "5'11\"",
    "№",
    "Ⅻ",
    "²",
    "½",
    "1/2",
    "2024-05-01",
    "10:30",
    "+86 138 0013 8000",
    "192.168.0.1",
    "v1.2.3",
    "www.a.com",
    "a@b.c",
    "IV",
    "Louis XIV",
    "20%~30%",
    "-5℃",
    "km/h",
    "第3",
    "2个",
    "百分之5",
    "1e5",
    "2^10",
    "００７",
    "٣",
    "😀",
    "👨‍👩‍👧",
    "e\u{301}",
    "\u{200b}",
    "\u{feff}",
    "\u{0}",
    "—",
    "…",
    "\n\n",
    "{",
    "}",
    "\\",
    "\"",
    "…”",
    "한국어 3",
];

/// A small reproducible generator (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    fn character(&mut self) -> char {
        let (first, count) = *self.pick(&[
            (0x20, 0x5f),
            (0x30, 10),
            (0xa0, 0x160),
            (0x300, 0x70),
            (0x2000, 0x400),
            (0x3000, 0x100),
            (0x4e00, 0x200),
            (0xff00, 0xf0),
            (0, 0x11_0000),
        ]);
        char::from_u32(first + self.below(count) as u32).unwrap_or('\u{fffd}')
    }

    /// A range of positions in `text`.
    fn range(&mut self, text: &[char]) -> std::ops::Range<usize> {
        let start = self.below(text.len() + 1);
        let longest = (text.len() - start).min(1 << self.below(8));
        start..start + self.below(longest + 1)
    }

    fn mutate(&mut self, text: &mut Vec<char>, corpus: &[Vec<char>]) {
        let range = self.range(text);
        let at = range.start;
        match self.below(8) {
            0 => drop(text.drain(range)),
            1 => {
                let other = self.pick(corpus);
                let piece = other[self.range(other)].to_vec();
                text.splice(range, piece);
            }
            2 => {
                let piece = text[range].repeat(1 << self.below(10));
                text.splice(at..at, piece);
            }
            3 => text.insert(at, self.character()),
            4 if !range.is_empty() => text[at] = self.character(),
            5 => text.insert(
                at,
                *self.pick(&['0', '1', '9', '.', '-', ',', ':', '/', ' ', '<', '[']),
            ),
            _ => drop(text.splice(range, self.pick(WORDS).chars())),
        }
        text.truncate(LONGEST_CHARS);
    }
}

fn corpus() -> Vec<Vec<char>> {
    let tables = ["readings.tsv", "wetextprocessing.tsv"];
    let text = tables.map(|name| std::fs::read_to_string(fixture(name)).expect("fixture"));
    text.iter()
        .flat_map(|t| t.lines())
        .flat_map(|line| line.split('\t').skip(1))
        .map(|field| field.chars().collect())
        .collect()
}

/// What is given to the front end must come back as parts that hold, or as an error.
fn try_all(frontends: &[Frontend], text: &str, language: Option<Language>) -> u64 {
    let mut calls = 0;
    for (frontend, max) in frontends.iter().zip([80, 9]) {
        for normalization in [
            Normalization::Auto,
            Normalization::On,
            Normalization::Off,
            Normalization::Official,
        ] {
            let options = TextOptions {
                language,
                normalization,
                ..TextOptions::default()
            };
            for text in [text, &format!("<speak>{text}</speak>")] {
                calls += 1;
                let Ok(prepared) = frontend.prepare(text, &options) else {
                    continue;
                };
                assert!(prepared.token_count() > 0);
                for part in &prepared.parts {
                    if let Part::Speech { text, tokens, .. } = part {
                        let bounded = tokens.len() <= max
                            || normalization == Normalization::Official
                            || text.contains("<|");
                        assert!(bounded, "{} tokens in {text:?}", tokens.len());
                    }
                }
            }
            calls += 1;
            let _ = frontend.prepare_prompt(text, &options);
        }
    }
    calls
}

#[test]
#[ignore = "runs as long as FUZZ_SECONDS says"]
fn text_fuzz() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let length = Duration::from_secs(number("FUZZ_SECONDS").unwrap_or(60));
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let tokenizer = Arc::new(Tokenizer::load(&golden::model_dir()).expect("tokenizer"));
    let frontends = [80, 9].map(|max_segment_tokens| {
        let options = FrontendOptions {
            max_segment_tokens,
            ..FrontendOptions::default()
        };
        Frontend::new(Arc::clone(&tokenizer), options)
    });
    let corpus = corpus();
    let mut random = Random(seed);
    let mut slowest: Vec<(f64, String)> = Vec::new();
    let (start, mut texts, mut calls) = (Instant::now(), 0u64, 0u64);
    while start.elapsed() < length {
        let mut text = random.pick(&corpus).clone();
        for _ in 0..=random.below(12) {
            random.mutate(&mut text, &corpus);
        }
        let text: String = text.into_iter().collect();
        let language = *random.pick(&[
            None,
            None,
            Some(Language::Chinese),
            Some(Language::English),
            Some(Language::Japanese),
            Some(Language::Korean),
        ]);
        let since = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| try_all(&frontends, &text, language))) {
            Ok(count) => calls += count,
            Err(_) => panic!("seed {seed}, text {texts}, {language:?}: {text:?}"),
        }
        texts += 1;
        // Microseconds per character of one call, of which a text gets 24.
        let each = since.elapsed().as_secs_f64() * 1e6 / 24.0 / (text.chars().count() + 30) as f64;
        if slowest.len() < 5 || each > slowest[4].0 {
            slowest.push((each, text.chars().take(200).collect()));
            slowest.sort_by(|a, b| b.0.total_cmp(&a.0));
            slowest.truncate(5);
        }
    }
    println!(
        "{texts} texts, {calls} calls in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    for (each, text) in slowest {
        println!("{each:.1} us per character: {text:?}");
    }
}
