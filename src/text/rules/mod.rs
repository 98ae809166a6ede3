//! Rules of ours for what the grammars read wrongly or leave unread: each is a pattern and a reader.
//!
//! In: a sentence of one language. Out: the sentence with what the rules know in words. `before` runs ahead of the
//! grammar, `after` on what it left.

mod chinese;
mod english;
mod english_dates;
mod english_everyday;
mod english_money;
mod japanese;
mod symbols;
mod units;
mod web;

use regex::{Captures, Regex};

pub(super) use symbols::tidy;

use super::language::Language;

/// Text on both sides of a match.
#[derive(Clone, Copy)]
struct Around<'a> {
    before: &'a str,
    after: &'a str,
}

impl Around<'_> {
    /// Whether the match stands alone: no letter, digit or point of a number touches it.
    fn is_free(&self) -> bool {
        let numeric = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let mut after = self.after.chars();
        let joined = match after.next() {
            Some('.' | ',') => after.next().is_some_and(|c| c.is_ascii_digit()),
            Some(c) => numeric(c),
            None => false,
        };
        let mut before = self.before.chars().rev();
        let preceded = match before.next() {
            Some('.' | ',') => before.next().is_some_and(|c| c.is_ascii_digit()),
            Some(c) => numeric(c),
            None => false,
        };
        !joined && !preceded
    }
}

/// Reads a match aloud; `None` leaves it as it is.
type Reader = fn(&Captures, Around) -> Option<String>;

struct Rule {
    pattern: Regex,
    read: Reader,
}

impl Rule {
    fn new(pattern: &str, read: Reader) -> Self {
        // Readers slice digits as bytes: only ASCII ones may match.
        let pattern = pattern.replace(r"\d", "[0-9]");
        let pattern = Regex::new(&pattern)
            .expect("the patterns are constants that a test compiles. This is a bug.");
        Self { pattern, read }
    }

    /// `text` with every match read; `None` when nothing changed.
    fn apply(&self, text: &str) -> Option<String> {
        let mut out = String::new();
        let (mut copied, mut position) = (0, 0);
        // Finding a match is much cheaper than finding its groups, and most rules match nowhere.
        while let Some(found) = self.pattern.find_at(text, position) {
            let Some(captures) = self.pattern.captures_at(text, found.start()) else {
                break;
            };
            let around = Around {
                before: &text[..found.start()],
                after: &text[found.end()..],
            };
            if let Some(words) = (self.read)(&captures, around) {
                out.push_str(&text[copied..found.start()]);
                out.push_str(&words);
                copied = found.end();
            }
            position = found.end();
            if found.is_empty() {
                position += text[position..].chars().next().map_or(1, char::len_utf8);
            }
            if position > text.len() {
                break;
            }
        }
        if copied == 0 {
            return None;
        }
        out.push_str(&text[copied..]);
        Some(out)
    }
}

fn run(rules: &[Rule], text: &str) -> String {
    let mut text = text.to_owned();
    for rule in rules {
        if let Some(changed) = rule.apply(&text) {
            text = changed;
        }
    }
    text
}

/// A capture that the pattern guarantees, or nothing.
fn group<'a>(captures: &'a Captures, index: usize) -> &'a str {
    captures.get(index).map_or("", |m| m.as_str())
}

/// What is read before the grammar.
pub(super) fn before(text: &str, language: Language) -> String {
    let text = symbols::without_emoji(text);
    let text = run(web::rules(language), &text);
    match language {
        Language::Chinese => run(&chinese::BEFORE, &text),
        Language::Japanese => run(&japanese::BEFORE, &text),
        Language::English => {
            let text = run(&english_everyday::RULES, &text);
            run(&english::BEFORE, &run(&english_money::RULES, &text))
        }
        Language::Korean | Language::Other => text,
    }
}

/// What is read after it.
pub(super) fn after(text: &str, language: Language) -> String {
    let text = match language {
        Language::Chinese => run(&chinese::AFTER, text),
        Language::Japanese => run(&japanese::AFTER, text),
        Language::English => run(&english::AFTER, text),
        Language::Korean | Language::Other => text.to_owned(),
    };
    symbols::tidy(&symbols::named(&text, language))
}
