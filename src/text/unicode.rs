//! Character classes as Python defines them, for the official helpers.

use super::unicode_tables::{ALPHABETIC_MARKS, DECIMAL_ZEROS, OTHER_DIGITS, PUNCTUATION_SYMBOLS};

fn within(ranges: &[(u32, u32)], c: char) -> bool {
    let c = u32::from(c);
    let after = ranges.partition_point(|&(start, _)| start <= c);
    after > 0 && c <= ranges[after - 1].1
}

/// The value of a decimal digit of any script (`\d` in Python's `re`).
pub(super) fn decimal(c: char) -> Option<u8> {
    if c.is_ascii() {
        return c.to_digit(10).map(|d| d as u8);
    }
    let c = u32::from(c);
    let after = DECIMAL_ZEROS.partition_point(|&zero| zero <= c);
    let value = c.checked_sub(*DECIMAL_ZEROS.get(after.checked_sub(1)?)?)?;
    (value < 10).then_some(value as u8)
}

/// `str.isdigit` of one character: decimals, and digits such as superscripts.
pub(super) fn is_digit(c: char) -> bool {
    decimal(c).is_some() || within(OTHER_DIGITS, c)
}

/// `[\p{P}\p{S}]`.
pub(super) fn is_punctuation_or_symbol(c: char) -> bool {
    within(PUNCTUATION_SYMBOLS, c)
}

/// `\p{L}`.
pub(super) fn is_letter(c: char) -> bool {
    c.is_alphabetic() && !c.is_numeric() && !within(ALPHABETIC_MARKS, c)
}

/// `str.isspace` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_of_every_kind() {
        assert_eq!(decimal('7'), Some(7));
        assert_eq!(decimal('٣'), Some(3));
        assert_eq!(decimal('９'), Some(9));
        assert_eq!(decimal('²'), None);
        assert_eq!(decimal('a'), None);
        assert!(is_digit('²') && is_digit('①') && !is_digit('½') && !is_digit('Ⅳ'));
    }

    #[test]
    fn letters_are_not_all_that_is_alphabetic() {
        assert!("aÄ中あ한ʰªǅ".chars().all(is_letter));
        assert!(!"Ⅳⓐ\u{345}\u{93e}٣_".chars().any(is_letter));
    }

    #[test]
    fn spaces_as_python_sees_them() {
        assert_eq!(strip("\u{1f}\u{3000} a b\n\u{a0}"), "a b");
        assert!(!is_space('\u{200b}'));
    }

    #[test]
    fn tables_are_sorted_and_disjoint() {
        for table in [OTHER_DIGITS, PUNCTUATION_SYMBOLS, ALPHABETIC_MARKS] {
            assert!(table.iter().all(|r| r.0 <= r.1));
            assert!(table.windows(2).all(|w| w[0].1 < w[1].0));
        }
        assert!(DECIMAL_ZEROS.windows(2).all(|w| w[0] + 9 < w[1]));
    }
}
