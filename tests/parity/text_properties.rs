//! What holds for the segments of any text, on the tokenizer of the kit.

use std::sync::Arc;

use cosyvoice::text::{
    Frontend, FrontendOptions, Language, Normalization, Part, Prepared, TextOptions, Tokenizer,
};
use proptest::prelude::*;

use crate::support::golden;

const TAGS: [&str; 3] = ["[laughter]", "[breath]", "[quick_breath]"];

fn frontend(max_segment_tokens: usize) -> Frontend {
    let tokenizer = Tokenizer::load(&golden::model_dir()).expect("tokenizer");
    let options = FrontendOptions {
        max_segment_tokens,
        ..FrontendOptions::default()
    };
    Frontend::new(Arc::new(tokenizer), options)
}

/// Pieces of what people write, long words and odd characters among them.
fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            "hello",
            "world",
            "I have 3 apples",
            "5.5kg",
            "$20.50",
            "2024-05-01",
            "10:30",
            "Dr. Who",
            "etc.",
            "你好",
            "我有2只猫",
            "百分之5",
            "日本語です",
            "りんごが3個",
            "한국어",
            "Привет",
            "e\u{301}",
            "👍🏽",
            "🇨🇳",
            "https://a.b/c?d=1",
            "a@b.com",
            "antidisestablishmentarianism",
            "[laughter]",
            "[breath]",
            "[quick_breath]",
            "<strong>",
            "</strong>",
            "[unknown",
            "<|zh|>",
            "IV",
            "COVID-19",
            "x²",
            "½",
            "①",
        ])
        .prop_map(String::from),
        prop::sample::select(vec![
            " ", " ", " ", ". ", ", ", "! ", "? ", "; ", "。", "，", "！", "、", "…", "\n", "\n\n",
            "\"", "”", "(", ")", "-", "—", "/", "\u{3000}", "'",
        ])
        .prop_map(String::from),
        "[a-z]{1,40}",
        "[\\u{4e00}-\\u{4e40}]{1,40}",
        "\\PC{1,6}",
        // Symbols that are letters or numbers.
        "[\\u{2150}-\\u{218b}\\u{2460}-\\u{24ff}\\u{3200}-\\u{33ff}\\u{1f100}-\\u{1f1ff}]{1,4}",
    ];
    prop::collection::vec(piece, 1..80).prop_map(|pieces| pieces.concat())
}

/// Letters and digits, but for those of tags that make no sound: a segment of nothing else is not spoken.
fn letters<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    texts
        .into_iter()
        .flat_map(|text| {
            let silent = ["<|zh|>", "<|en|>", "<strong>", "</strong>"];
            let text = silent
                .iter()
                .fold(text.to_owned(), |text, tag| text.replace(tag, ""));
            text.chars().collect::<Vec<_>>()
        })
        .filter(|c| c.is_alphanumeric())
        .collect()
}

fn segments(prepared: &Prepared) -> impl Iterator<Item = (&str, &[i32])> {
    prepared.parts.iter().filter_map(|part| match part {
        Part::Speech { text, tokens, .. } => Some((text.as_str(), tokens.as_slice())),
        Part::Pause { .. } => None,
    })
}

/// Letters and numbers of all of Unicode, of the large blocks some: none is lost, alone and beside marks that are not spoken.
#[test]
fn no_letter_is_lost() {
    let frontend = frontend(12);
    let large = |c: char| matches!(c, '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' | '\u{17000}'..='\u{18d08}' | '\u{20000}'..);
    let some = |c: &char| c.is_alphanumeric() && (!large(*c) || (*c as u32).is_multiple_of(61));
    for c in (0..=0x10_ffff).filter_map(char::from_u32).filter(some) {
        for text in [c.to_string(), format!("{c} ¡®hello")] {
            for normalization in [Normalization::Auto, Normalization::On, Normalization::Off] {
                let options = TextOptions {
                    normalization,
                    ..TextOptions::default()
                };
                let prepared = frontend
                    .prepare(&text, &options)
                    .unwrap_or_else(|e| panic!("{text:?}: {e}"));
                let joined = segments(&prepared).map(|(text, _)| text);
                assert_eq!(
                    letters(joined),
                    letters([prepared.normalized_text.as_str()]),
                    "{text:?} {normalization:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn segments_hold_all_words_and_whole_tags_within_the_limit(text in texts(), max in 12usize..90) {
        let frontend = frontend(max);
        for normalization in [Normalization::Auto, Normalization::On, Normalization::Off] {
            let options = TextOptions { normalization, ..TextOptions::default() };
            let Ok(prepared) = frontend.prepare(&text, &options) else {
                prop_assert!(!text.contains("hello"), "{text:?} can be spoken");
                continue;
            };
            for (segment, tokens) in segments(&prepared) {
                // A tag that the tokenizer does not know is many tokens and yet not cut.
                let one_tag = segment.starts_with("<|") && segment.find("|>").is_some_and(|end| end + 6 > segment.len());
                prop_assert!(tokens.len() <= max || one_tag, "{} tokens, not {max}, in {segment:?}", tokens.len());
                prop_assert_eq!(tokens, frontend.tokenizer().encode(segment));
                let says = !letters([segment]).is_empty() || TAGS.iter().any(|tag| segment.contains(tag)) || one_tag;
                prop_assert!(says, "nothing to say in {segment:?}");
            }
            let joined: Vec<&str> = segments(&prepared).map(|(text, _)| text).collect();
            prop_assert_eq!(letters(joined.iter().copied()), letters([prepared.normalized_text.as_str()]));
            for tag in TAGS {
                let kept: usize = joined.iter().map(|s| s.matches(tag).count()).sum();
                prop_assert_eq!(kept, text.matches(tag).count(), "{} in {:?}", tag, text);
            }
        }
    }

    /// Plain words stay as they are, once and twice.
    #[test]
    fn plain_words_stay(words in prop::collection::vec("[a-z]{3,9}", 1..30), language in prop::sample::select(vec![None, Some(Language::English)])) {
        let frontend = frontend(80);
        let options = TextOptions { language, ..TextOptions::default() };
        let text = words.join(" ");
        let once = frontend.prepare(&text, &options).expect("words").normalized_text;
        prop_assert_eq!(&once, &text);
        let twice = frontend.prepare(&once, &options).expect("words").normalized_text;
        prop_assert_eq!(once, twice);
    }
}
