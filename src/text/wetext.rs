//! Written to spoken form by the `wetext` grammars: tag the text, put the fields of each token in speaking order, verbalise.
//!
//! In: text of one language. Out: the same with numbers, dates, times, money and units in words.
//! Reference: `wetext/wetext.py` and `wetext/token_parser.py` of wetext 0.0.4 (official) and 0.1.8.

use std::cell::RefCell;
use std::sync::LazyLock;

use super::TextError;
use super::fst::Fst;
use super::language::Language;
use super::official::contains_chinese;
use super::unicode::decimal;
use super::viterbi::Search;

thread_local! {
    static SEARCH: RefCell<Search> = RefCell::default();
}

/// Fields of a kind of token, in the order in which they are spoken.
type Orders = &'static [(&'static str, &'static [&'static str])];

const HAN_ORDERS: Orders = &[
    ("date", &["year", "month", "day"]),
    ("fraction", &["denominator", "numerator"]),
    ("measure", &["denominator", "numerator", "value"]),
    ("money", &["value", "currency"]),
    ("time", &["noon", "hour", "minute", "second"]),
];
const ENGLISH_ORDERS: Orders = &[
    ("date", &["preserve_order", "text", "day", "month", "year"]),
    (
        "money",
        &[
            "integer_part",
            "fractional_part",
            "quantity",
            "currency_maj",
        ],
    ),
];

/// Tagger and verbaliser of one language.
pub(super) struct Grammar {
    tagger: Fst,
    verbalizer: Fst,
    orders: Orders,
    /// Fields that the order does not name follow it; they are dropped otherwise.
    keep_unnamed: bool,
}

macro_rules! grammar {
    ($name:literal, $orders:expr, $keep_unnamed:expr) => {
        LazyLock::new(|| {
            let load = |bytes: &[u8]| {
                Fst::from_gzip(bytes).expect("the embedded grammar is valid. This is a bug.")
            };
            Grammar {
                tagger: load(include_bytes!(concat!(
                    "grammars/",
                    $name,
                    "_tagger.fst.gz"
                ))),
                verbalizer: load(include_bytes!(concat!(
                    "grammars/",
                    $name,
                    "_verbalizer.fst.gz"
                ))),
                orders: $orders,
                keep_unnamed: $keep_unnamed,
            }
        })
    };
}

static OFFICIAL_ENGLISH: LazyLock<Grammar> = grammar!("official_en", ENGLISH_ORDERS, false);
static OFFICIAL_CHINESE: LazyLock<Grammar> = grammar!("official_zh", HAN_ORDERS, false);
pub(super) static ENGLISH: LazyLock<Grammar> = grammar!("en", ENGLISH_ORDERS, true);
pub(super) static CHINESE: LazyLock<Grammar> = grammar!("zh", HAN_ORDERS, true);
pub(super) static JAPANESE: LazyLock<Grammar> = grammar!("ja", HAN_ORDERS, true);

/// `wetext.Normalizer(remove_erhua=False).normalize` of the version that the official code uses.
///
/// # Errors
/// [`TextError::Official`] where the grammar has no reading and wetext's token parser raises.
pub fn official_normalize(text: &str) -> Result<String, TextError> {
    if !text.chars().any(|c| decimal(c).is_some()) {
        return Ok(text.into());
    }
    let grammar = if contains_chinese(text) {
        &OFFICIAL_CHINESE
    } else {
        &OFFICIAL_ENGLISH
    };
    // As a label, the byte 0 is none.
    let text = text.replace('\0', "");
    grammar
        .normalize(&text)
        .ok_or_else(|| TextError::official("wetext.Normalizer.normalize", "AssertionError"))
}

/// The grammar of wetext 0.1.8 alone, without any rule of ours: Chinese, English or Japanese.
///
/// `None` for another language, and where the grammar has no reading.
pub fn grammar_normalize(text: &str, language: Language) -> Option<String> {
    grammar(language)?.normalize(text)
}

/// What the same grammar's verbaliser is given: the tagged text, its fields in speaking order.
pub fn grammar_tokens(text: &str, language: Language) -> Option<String> {
    let grammar = grammar(language)?;
    SEARCH.with_borrow_mut(|search| grammar.tokens(search, text))
}

/// A text that any grammar of the language has tagged, its fields in speaking order; `None` where it is malformed.
pub fn reorder_tokens(tagged: &str, language: Language) -> Option<String> {
    grammar(language)?.reorder(tagged)
}

fn grammar(language: Language) -> Option<&'static Grammar> {
    Some(match language {
        Language::Chinese => &*CHINESE,
        Language::English => &*ENGLISH,
        Language::Japanese => &*JAPANESE,
        Language::Korean | Language::Other => return None,
    })
}

impl Grammar {
    /// The spoken form of `text`; `None` when the grammar has no reading of it.
    pub(super) fn normalize(&self, text: &str) -> Option<String> {
        SEARCH.with_borrow_mut(|search| {
            let ordered = self.tokens(search, text)?;
            String::from_utf8(search.transduce(&self.verbalizer, ordered.as_bytes())?).ok()
        })
    }

    fn tokens(&self, search: &mut Search, text: &str) -> Option<String> {
        let tagged = String::from_utf8(search.transduce(&self.tagger, text.as_bytes())?).ok()?;
        self.reorder(&tagged)
    }

    /// Puts the fields of every token in speaking order.
    fn reorder(&self, tagged: &str) -> Option<String> {
        let mut parser = TokenParser {
            chars: tagged,
            position: 0,
        };
        let mut out = String::with_capacity(tagged.len());
        while parser.skip_blanks() {
            let token = parser.token()?;
            if !out.is_empty() {
                out.push(' ');
            }
            token.write(&mut out, self.orders, self.keep_unnamed);
        }
        (!tagged.is_empty()).then_some(out)
    }
}

/// `name { key: "value" … }`
struct Token<'a> {
    name: &'a str,
    fields: Vec<(&'a str, &'a str)>,
}

impl Token<'_> {
    /// The value of a key; the last one where it is repeated.
    fn value(&self, key: &str) -> Option<&str> {
        self.fields
            .iter()
            .rev()
            .find(|(k, _)| *k == key)
            .map(|&(_, v)| v)
    }

    fn write(&self, out: &mut String, orders: Orders, keep_unnamed: bool) {
        out.push_str(self.name);
        out.push_str(" {");
        let order = orders
            .iter()
            .find(|(name, _)| *name == self.name && self.value("preserve_order") != Some("true"))
            .map(|&(_, keys)| keys);
        let (named, unnamed): (&[&str], bool) = match order {
            Some(keys) => (keys, keep_unnamed),
            None => (&[], true),
        };
        let rest = self
            .fields
            .iter()
            .map(|&(k, _)| k)
            .filter(|k| unnamed && !named.contains(k));
        for key in named.iter().copied().chain(rest) {
            if let Some(value) = self.value(key) {
                out.push_str(&format!(" {key}: \"{value}\""));
            }
        }
        out.push_str(" }");
    }
}

struct TokenParser<'a> {
    chars: &'a str,
    position: usize,
}

impl<'a> TokenParser<'a> {
    fn rest(&self) -> &'a str {
        &self.chars[self.position..]
    }

    /// Whether anything follows the blanks.
    fn skip_blanks(&mut self) -> bool {
        self.position += self.rest().len() - self.rest().trim_start_matches(' ').len();
        !self.rest().is_empty()
    }

    fn skip(&mut self, expected: &str) {
        for c in expected.chars() {
            if self.rest().starts_with(c) {
                self.position += c.len_utf8();
            }
        }
    }

    fn key(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let end = rest
            .find(|c: char| !(c.is_ascii_alphabetic() || c == '_'))
            .unwrap_or(rest.len());
        self.position += end;
        (end > 0).then(|| &rest[..end])
    }

    /// Up to the next quote that no backslash escapes; escapes are kept.
    fn value(&mut self) -> Option<&'a str> {
        let rest = self.rest();
        let mut escaped = false;
        let end = rest.find(|c| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        })?;
        self.position += end;
        Some(&rest[..end])
    }

    fn token(&mut self) -> Option<Token<'a>> {
        let name = self.key()?;
        self.skip(" { ");
        let mut fields = Vec::new();
        while self.skip_blanks() {
            if self.rest().starts_with('}') {
                self.position += 1;
                break;
            }
            let key = self.key()?;
            self.skip(": \"");
            let value = self.value()?;
            self.skip("\"");
            fields.push((key, value));
        }
        Some(Token { name, fields })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_in_speaking_order() {
        let tagged = r#"date { month: "五月" year: "二零二四年" } char { value: "\"" }"#;
        let grammar = &*CHINESE;
        assert_eq!(
            grammar.reorder(tagged).unwrap(),
            r#"date { year: "二零二四年" month: "五月" } char { value: "\"" }"#
        );
        let kept = r#"date { month: "may" day: "one" preserve_order: "true" }"#;
        assert_eq!(ENGLISH.reorder(kept).unwrap(), kept);
    }

    #[test]
    fn malformed_tokens_are_refused() {
        for tagged in ["", "date { year: \"open", "123", "a { b: \"c\" } 9"] {
            assert_eq!(CHINESE.reorder(tagged), None, "{tagged}");
        }
    }

    #[test]
    fn every_grammar_reads_a_number() {
        for (grammar, text, spoken) in [
            (&*CHINESE, "3个", "三个"),
            (&*ENGLISH, "3 apples", "three apples"),
            (&*JAPANESE, "3個", "三個"),
            (&*OFFICIAL_CHINESE, "3个", "三个"),
            (&*OFFICIAL_ENGLISH, "3 apples", "three apples "),
        ] {
            assert_eq!(grammar.normalize(text).as_deref(), Some(spoken));
        }
    }
}
