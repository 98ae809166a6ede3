//! English money: prices, magnitudes, ranges, and what they are per.

use std::sync::LazyLock;

use regex::Captures;

use super::english_dates::starts_number;
use super::{Around, Rule, group};
use crate::text::numbers::{en_cardinal, en_decimal};

const SIGN: &str = r"(?:(?:\b(?:US|AU?|CA?|HK|NZ|SG?|NT))?\$|[€£¥₹₩₿]|\b(?:USD|EUR|GBP|CNY|RMB|JPY|INR|KRW|CAD|AUD|NZD|HKD|SGD|CHF) ?)";
const CODE: &str = r"(?:[€£₹₩]|(?:USD|EUR|GBP|CNY|RMB|JPY|INR|KRW|CAD|AUD|NZD|HKD|SGD|CHF)\b)";
const NUMBER: &str = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?";
const SCALE: &str = r"(?: ?(bn|mn|tn|[kKmMbBT])\b| (thousand|million|billion|trillion)\b)?";

pub(super) static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![
        Rule::new(
            &format!(r"({SIGN})({NUMBER}) ?[-–—] ?{SIGN}?({NUMBER}){SCALE}"),
            range,
        ),
        Rule::new(&format!(r"({SIGN})({NUMBER}){SCALE}"), |c, a| {
            money(group(c, 1), group(c, 2), scale(c, 3), a)
        }),
        Rule::new(&format!(r"\b({NUMBER}){SCALE} ?({CODE})"), |c, a| {
            let touched = a.before.ends_with(['.', ',', '-', '/', ':']);
            let words = money(group(c, 4), group(c, 1), scale(c, 2), a);
            words.filter(|_| !touched)
        }),
        Rule::new(r"\b(\d{1,2})p\b", |c, a| {
            let one = if group(c, 1) == "1" { "penny" } else { "pence" };
            a.is_free()
                .then(|| format!("{} {one}", en_cardinal(group(c, 1))))
        }),
        Rule::new(&format!(r"\b({NUMBER}) ?(bn|mn|tn)\b"), |c, a| {
            let number = en_decimal(&group(c, 1).replace(',', ""));
            a.is_free().then(|| format!("{number} {}", scale(c, 2)))
        }),
        Rule::new(&format!(r"\b({NUMBER})([KMB])\b"), counted),
        Rule::new(
            r"/ ?(month|mo\b\.?|year|yr\b\.?|week|wk\b\.?|day|hour|hr\b\.?|h\b|minute|min\b|second|sec\b|night|person|user|seat|unit|item|piece|lb\b|kg\b|oz\b|gallon|gal\b|mile|sq ft\b)",
            per,
        ),
    ]
});

/// Singular, plural, and the hundredth part of a currency in both.
fn currency(sign: &str) -> [&'static str; 4] {
    match sign.trim() {
        "US$" => ["US dollar", "US dollars", "cent", "cents"],
        "€" | "EUR" => ["euro", "euros", "cent", "cents"],
        "£" | "GBP" => ["pound", "pounds", "penny", "pence"],
        "¥" | "JPY" => ["yen", "yen", "sen", "sen"],
        "CNY" | "RMB" => ["yuan", "yuan", "fen", "fen"],
        "₹" | "INR" => ["rupee", "rupees", "paisa", "paise"],
        "₩" | "KRW" => ["won", "won", "jeon", "jeon"],
        "₿" => ["bitcoin", "bitcoins", "", ""],
        "C$" | "CA$" | "CAD" => ["Canadian dollar", "Canadian dollars", "cent", "cents"],
        "A$" | "AU$" | "AUD" => ["Australian dollar", "Australian dollars", "cent", "cents"],
        "NZ$" | "NZD" => ["New Zealand dollar", "New Zealand dollars", "cent", "cents"],
        "HK$" | "HKD" => ["Hong Kong dollar", "Hong Kong dollars", "cent", "cents"],
        "S$" | "SG$" | "SGD" => ["Singapore dollar", "Singapore dollars", "cent", "cents"],
        "NT$" => ["Taiwan dollar", "Taiwan dollars", "cent", "cents"],
        "CHF" => ["Swiss franc", "Swiss francs", "centime", "centimes"],
        _ => ["dollar", "dollars", "cent", "cents"],
    }
}

/// The magnitude in the group of that index, as a letter, or in the next one, as a word.
fn scale<'a>(c: &'a Captures, index: usize) -> &'a str {
    match (group(c, index), group(c, index + 1)) {
        ("k" | "K", _) => "thousand",
        ("m" | "M" | "mn", _) => "million",
        ("b" | "B" | "bn", _) => "billion",
        ("T" | "tn", _) => "trillion",
        (_, word) => word,
    }
}

fn money(sign: &str, number: &str, scale: &str, around: Around) -> Option<String> {
    let [one, many, cent, cents] = currency(sign);
    let number = number.replace(',', "");
    if around
        .after
        .starts_with(|x: char| x.is_ascii_alphanumeric())
    {
        return None;
    }
    if !scale.is_empty() {
        return Some(format!("{} {scale} {many}", en_decimal(&number)));
    }
    let major = |n: &str| format!("{} {}", en_cardinal(n), if n == "1" { one } else { many });
    let (whole, fraction) = match number.split_once('.') {
        None => return Some(major(&number)),
        Some(parts) if parts.1.len() == 2 && !cent.is_empty() => parts,
        Some(_) => return Some(format!("{} {many}", en_decimal(&number))),
    };
    let minor = format!(
        "{} {}",
        en_cardinal(fraction),
        if fraction == "01" { cent } else { cents }
    );
    Some(match (whole.trim_start_matches('0'), fraction) {
        (_, "00") => major(whole),
        ("", _) => minor,
        _ => format!("{} and {minor}", major(whole)),
    })
}

fn range(c: &Captures, around: Around) -> Option<String> {
    let [from, to] = [group(c, 2), group(c, 3)].map(|n| en_decimal(&n.replace(',', "")));
    let [_, many, ..] = currency(group(c, 1));
    let scale = scale(c, 4);
    let gap = if scale.is_empty() { "" } else { " " };
    let more = ['-', '–', '—', '/', ':', '.'];
    let ends = !around
        .after
        .starts_with(|x: char| x.is_ascii_alphanumeric())
        && !around.after.strip_prefix(more).is_some_and(starts_number);
    ends.then(|| format!("{from} to {to}{gap}{scale} {many}"))
}

/// `5M users`: the magnitude of what can be counted in thousands.
fn counted(c: &Captures, around: Around) -> Option<String> {
    const THINGS: [&str; 18] = [
        "users",
        "people",
        "views",
        "likes",
        "followers",
        "subscribers",
        "downloads",
        "customers",
        "parameters",
        "tokens",
        "records",
        "rows",
        "requests",
        "messages",
        "copies",
        "units",
        "jobs",
        "streams",
    ];
    let next = around.after.trim_start_matches(['+', ' ']);
    let next = next.split(|x: char| !x.is_ascii_alphabetic()).next()?;
    (around.is_free() && THINGS.contains(&next)).then(|| {
        let number = en_decimal(&group(c, 1).replace(',', ""));
        format!("{number} {}", scale(c, 2))
    })
}

/// `$5/month`, `60 beats/min`: only after something that is counted.
fn per(c: &Captures, around: Around) -> Option<String> {
    const CURRENCIES: [&str; 15] = [
        "dollar", "dollars", "cent", "cents", "euro", "euros", "pound", "pounds", "pence", "yen",
        "yuan", "rupees", "won", "francs", "bitcoins",
    ];
    let near: String = around.before.chars().rev().take(20).collect();
    let currency = |name: &str| {
        let before = around.before.strip_suffix(name);
        before.is_some_and(|b| b.ends_with(' '))
    };
    let counted = CURRENCIES.into_iter().any(currency)
        || around.before.ends_with(|x: char| x.is_ascii_alphabetic())
            && near.contains(|x: char| x.is_ascii_digit())
            && !near.contains('/');
    if !counted
        || around
            .after
            .starts_with(|x: char| x.is_ascii_alphanumeric() || x == '/')
    {
        return None;
    }
    let unit = match group(c, 1).trim_end_matches('.') {
        "mo" => "month",
        "yr" => "year",
        "wk" => "week",
        "hr" | "h" => "hour",
        "min" => "minute",
        "sec" => "second",
        "lb" => "pound",
        "kg" => "kilogram",
        "oz" => "ounce",
        "gal" => "gallon",
        "sq ft" => "square foot",
        unit => unit,
    };
    let ended = group(c, 1).ends_with('.') && around.after.trim().is_empty();
    Some(format!(" per {unit}{}", if ended { "." } else { "" }))
}
