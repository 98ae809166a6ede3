//! Whole numbers in English words, as the Python package `inflect` 7.3 writes them with its defaults.
//!
//! In: a run of digits (any script). Out: `one thousand, two hundred and thirty-four`.
//! Reference: `inflect.engine().number_to_words`, used by the official `spell_out_number`.

use super::TextError;
use super::unicode::{decimal, is_digit};

const UNITS: [&str; 10] = [
    "", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];
const TEENS: [&str; 10] = [
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 10] = [
    "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
];
const SCALES: [&str; 12] = [
    "",
    " thousand",
    " million",
    " billion",
    " trillion",
    " quadrillion",
    " quintillion",
    " sextillion",
    " septillion",
    " octillion",
    " nonillion",
    " decillion",
];

/// Words of the number that `digits` writes. Characters that are digits but not decimals (`²`) are dropped, as `inflect` does.
///
/// # Errors
/// [`TextError::Official`] from 37 digits on, where `inflect` has no name for the scale.
pub fn number_to_words(digits: &str) -> Result<String, TextError> {
    let values: Vec<u8> = digits.chars().filter_map(decimal).collect();
    match values.iter().position(|&d| d != 0) {
        None => return Ok("zero".into()),
        Some(last) if last + 1 == values.len() && values[last] == 1 => return Ok("one".into()),
        Some(_) => {}
    }
    // Only ASCII zeros are stripped: zeros of another script stay and form groups that name a scale and nothing else.
    let skip = digits
        .chars()
        .filter(|&c| decimal(c).is_some())
        .take_while(|&c| c == '0')
        .count();
    let values = &values[skip..];
    let head = values.len() % 3;
    let mut groups: Vec<String> = Vec::new();
    let mut scale = values.len() / 3;
    if head > 0 {
        let (tens, units) = match values[..head] {
            [units] => (0, units),
            _ => (values[0], values[1]),
        };
        groups.push(format!(
            "{}{}",
            below_hundred(tens, units),
            scale_name(scale)?
        ));
    }
    for group in values[head..].chunks_exact(3) {
        scale -= 1;
        if group.iter().any(|&d| d != 0) {
            groups.push(format!("{}{}", below_thousand(group), scale_name(scale)?));
        }
    }
    let groups: Vec<&str> = groups.iter().map(|g| g.trim_start()).collect();
    let ends_in_units = values.iter().rev().take(3).any(|&d| d != 0);
    Ok(match groups.split_last() {
        Some((last, rest)) if !rest.is_empty() && ends_in_units && !last.contains(' ') => {
            format!("{} and {last}", rest.join(", "))
        }
        _ => groups.join(", "),
    })
}

fn scale_name(scale: usize) -> Result<&'static str, TextError> {
    SCALES
        .get(scale)
        .copied()
        .ok_or_else(|| TextError::official("number_to_words", "NumOutOfRangeError"))
}

fn below_hundred(tens: u8, units: u8) -> String {
    let (tens, units) = (usize::from(tens), usize::from(units));
    if tens == 1 {
        return TEENS[units].into();
    }
    let hyphen = if tens > 0 && units > 0 { "-" } else { "" };
    format!("{}{hyphen}{}", TENS[tens], UNITS[units])
}

fn below_thousand(group: &[u8]) -> String {
    let rest = below_hundred(group[1], group[2]);
    match (UNITS[usize::from(group[0])], rest.is_empty()) {
        ("", _) => rest,
        (hundreds, true) => format!("{hundreds} hundred"),
        (hundreds, false) => format!("{hundreds} hundred and {rest}"),
    }
}

/// The official `spell_out_number`: every run of digits in `text` becomes words.
///
/// # Errors
/// As [`number_to_words`].
pub fn spell_out_number(text: &str) -> Result<String, TextError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_digit) {
        out.push_str(&rest[..start]);
        let run = &rest[start..];
        let end = run.find(|c| !is_digit(c)).unwrap_or(run.len());
        out.push_str(&number_to_words(&run[..end])?);
        rest = &run[end..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_the_word_and() {
        let words = |d| number_to_words(d).unwrap();
        assert_eq!(words("1100"), "one thousand, one hundred");
        assert_eq!(words("1020"), "one thousand and twenty");
        assert_eq!(words("1000001"), "one million and one");
        assert_eq!(words("1001000"), "one million, one thousand");
        assert_eq!(words("12012"), "twelve thousand and twelve");
        assert_eq!(words("000"), "zero");
        assert_eq!(words("²"), "zero");
        assert_eq!(words("4²2"), "forty-two");
    }

    #[test]
    fn names_end_at_decillions() {
        assert!(number_to_words(&"9".repeat(36)).is_ok());
        assert!(number_to_words(&"9".repeat(37)).is_err());
        assert!(number_to_words(&format!("0{}", "9".repeat(36))).is_ok());
    }
}
