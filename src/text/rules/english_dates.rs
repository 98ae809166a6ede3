//! English dates: months, days, decades.

use regex::Captures;

use super::{Around, group};
use crate::text::numbers::{MONTHS, en_cardinal, en_ordinal, en_year};

pub(super) fn plural_ten(digit: &str) -> String {
    let ten = en_cardinal(&format!("{digit}0"));
    format!("{}ies", ten.trim_end_matches('y'))
}

pub(super) fn decade(c: &Captures, around: Around) -> Option<String> {
    let (century, ten) = (group(c, 1), group(c, 2));
    around.is_free().then(|| match (century, ten) {
        ("20", "0") => "two thousands".into(),
        (_, "0") => format!("{} hundreds", en_cardinal(century)),
        (_, "1") => format!("{} tens", en_cardinal(century)),
        _ => format!("{} {}", en_cardinal(century), plural_ten(ten)),
    })
}

pub(super) fn month(name: &str) -> &'static str {
    MONTHS
        .into_iter()
        .find(|m| m.starts_with(&name[..3]))
        .unwrap_or("May")
}

/// The month of a number from 1 to 12.
pub(super) fn month_of(number: &str) -> Option<&'static str> {
    let index: usize = number.parse().ok()?;
    MONTHS.get(index.checked_sub(1)?).copied()
}

pub(super) fn valid_day(day: &str) -> bool {
    matches!(day.parse(), Ok(1..=31))
}

pub(super) fn month_day(c: &Captures, around: Around) -> Option<String> {
    let more = around
        .after
        .strip_prefix([':', '-', '–', '.', ',', '/'])
        .is_some_and(starts_number);
    if more || !valid_day(group(c, 2)) {
        return None;
    }
    let date = format!("{} {}", month(group(c, 1)), en_ordinal(group(c, 2)));
    Some(with_year(date, group(c, 3)))
}

pub(super) fn starts_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

pub(super) fn day_month(c: &Captures, around: Around) -> Option<String> {
    if !valid_day(group(c, 1)) || !around.before.is_empty() && !around.is_free() {
        return None;
    }
    let date = format!("{} of {}", en_ordinal(group(c, 1)), month(group(c, 2)));
    let before = around.before.trim_end().as_bytes();
    let article = match before.last_chunk::<3>() {
        Some(word) if word.eq_ignore_ascii_case(b"the") => "",
        _ => "the ",
    };
    Some(with_year(format!("{article}{date}"), group(c, 3)))
}

pub(super) fn with_year(date: String, year: &str) -> String {
    if year.is_empty() {
        date
    } else {
        format!("{date}, {}", en_year(year))
    }
}
