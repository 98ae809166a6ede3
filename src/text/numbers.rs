//! Numbers in words, per language, for what the rules read themselves.
//!
//! In: ASCII digits. Out: words without hyphens or commas, in the style of the grammars, so that both mix.

use super::inflect::number_to_words;

const ZH_DIGITS: [&str; 10] = ["零", "一", "二", "三", "四", "五", "六", "七", "八", "九"];
const JA_DIGITS: [&str; 10] = ["ゼロ", "一", "二", "三", "四", "五", "六", "七", "八", "九"];
const EN_DIGITS: [&str; 10] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
];
const ZH_PLACES: [&str; 4] = ["", "十", "百", "千"];
const ZH_SCALES: [&str; 5] = ["", "万", "亿", "兆", "京"];

fn digit_values(digits: &str) -> impl Iterator<Item = usize> + '_ {
    digits
        .bytes()
        .filter(u8::is_ascii_digit)
        .map(|b| usize::from(b - b'0'))
}

/// `twenty three`; digit by digit beyond the names of scales.
pub(super) const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

pub(super) fn en_cardinal(digits: &str) -> String {
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    match number_to_words(&digits) {
        Ok(words) => words.replace('-', " ").replace(',', ""),
        Err(_) => en_digits(&digits),
    }
}

/// `one two three`.
pub(super) fn en_digits(digits: &str) -> String {
    let words: Vec<&str> = digit_values(digits).map(|d| EN_DIGITS[d]).collect();
    words.join(" ")
}

/// `three point one four`; commas in the whole part are ignored.
pub(super) fn en_decimal(number: &str) -> String {
    match number.split_once('.') {
        Some((whole, fraction)) => {
            let whole = if whole.is_empty() {
                "zero".into()
            } else {
                en_cardinal(whole)
            };
            format!("{whole} point {}", en_digits(fraction))
        }
        None => en_cardinal(number),
    }
}

/// `twenty third`.
pub(super) fn en_ordinal(digits: &str) -> String {
    let words = en_cardinal(digits);
    let (head, last) = match words.rsplit_once(' ') {
        Some((head, last)) => (format!("{head} "), last),
        None => (String::new(), words.as_str()),
    };
    let last = match last {
        "one" => "first".into(),
        "two" => "second".into(),
        "three" => "third".into(),
        "five" => "fifth".into(),
        "eight" => "eighth".into(),
        "nine" => "ninth".into(),
        "twelve" => "twelfth".into(),
        other => match other.strip_suffix('y') {
            Some(stem) => format!("{stem}ieth"),
            None => format!("{other}th"),
        },
    };
    head + &last
}

/// A four-digit year: `nineteen oh five`, `two thousand and one`, `twenty twelve`.
pub(super) fn en_year(year: &str) -> String {
    let (century, rest) = year.split_at(2);
    match (century, rest) {
        (_, "00") if century.ends_with('0') => en_cardinal(year),
        (_, "00") => format!("{} hundred", en_cardinal(century)),
        ("10" | "20", r) if r.starts_with('0') => en_cardinal(year),
        (_, r) if r.starts_with('0') => {
            format!("{} oh {}", en_cardinal(century), en_cardinal(rest))
        }
        _ => format!("{} {}", en_cardinal(century), en_cardinal(rest)),
    }
}

/// `一二三`; `yao` reads one as 幺, as in telephone and room numbers.
pub(super) fn zh_digits(digits: &str, yao: bool) -> String {
    digit_values(digits)
        .map(|d| if yao && d == 1 { "幺" } else { ZH_DIGITS[d] })
        .collect()
}

/// `一千二百三十四`, with 两 before 百, 千, 万 and 亿 where it leads.
pub(super) fn zh_cardinal(digits: &str) -> String {
    let values: Vec<usize> = digit_values(digits).skip_while(|&d| d == 0).collect();
    let groups = values.len().div_ceil(4);
    if values.is_empty() {
        return "零".into();
    }
    if groups > ZH_SCALES.len() {
        return zh_digits(digits, false);
    }
    let mut out = String::new();
    let mut zero = false;
    let mut written = false;
    for (i, &value) in values.iter().enumerate() {
        let place = (values.len() - 1 - i) % 4;
        let scale = (values.len() - 1 - i) / 4;
        if value == 0 {
            zero = true;
        } else {
            if zero && !out.is_empty() {
                out.push('零');
            }
            zero = false;
            let leads = out.is_empty();
            match (value, place) {
                (1, 1) if leads => {}
                (2, 2..) if leads => out.push('两'),
                (2, 0) if leads && scale > 0 => out.push('两'),
                _ => out.push_str(ZH_DIGITS[value]),
            }
            out.push_str(ZH_PLACES[place]);
            written = true;
        }
        if place == 0 {
            if written {
                out.push_str(ZH_SCALES[scale]);
                zero = false;
            }
            written = false;
        }
    }
    out
}

/// `三点一四`.
pub(super) fn zh_decimal(number: &str) -> String {
    match number.split_once('.') {
        Some((whole, fraction)) => {
            format!("{}点{}", zh_cardinal(whole), zh_digits(fraction, false))
        }
        None => zh_cardinal(number),
    }
}

/// `ゼロ三`.
pub(super) fn ja_digits(digits: &str) -> String {
    digit_values(digits).map(|d| JA_DIGITS[d]).collect()
}

/// `千二百三十四`: one is silent before 十, 百 and 千.
pub(super) fn ja_cardinal(digits: &str) -> String {
    let values: Vec<usize> = digit_values(digits).skip_while(|&d| d == 0).collect();
    if values.is_empty() {
        return "ゼロ".into();
    }
    if values.len() > 20 {
        return ja_digits(digits);
    }
    let mut out = String::new();
    for (i, &value) in values.iter().enumerate() {
        let (scale, place) = ((values.len() - 1 - i) / 4, (values.len() - 1 - i) % 4);
        if value > 0 {
            if value > 1 || place == 0 {
                out.push_str(JA_DIGITS[value]);
            }
            out.push_str(ZH_PLACES[place]);
        }
        let group_start = values.len().saturating_sub(4 * scale + 4);
        if place == 0 && values[group_start..=i].iter().any(|&v| v > 0) {
            out.push_str(["", "万", "億", "兆", "京"][scale]);
        }
    }
    out
}

/// `三点一四`.
pub(super) fn ja_decimal(number: &str) -> String {
    match number.split_once('.') {
        Some((whole, fraction)) => format!("{}点{}", ja_cardinal(whole), ja_digits(fraction)),
        None => ja_cardinal(number),
    }
}

/// The value of a Roman numeral in capitals, in its one canonical spelling, below 4000.
pub(super) fn roman(numeral: &str) -> Option<u32> {
    let value = |b: u8| match b {
        b'I' => 1,
        b'V' => 5,
        b'X' => 10,
        b'L' => 50,
        b'C' => 100,
        b'D' => 500,
        b'M' => 1000,
        _ => 0,
    };
    let values: Vec<u32> = numeral.bytes().map(value).collect();
    let mut total = 0;
    for (i, &v) in values.iter().enumerate() {
        if values.get(i + 1).is_some_and(|&next| next > v) {
            total -= v as i32;
        } else {
            total += v as i32;
        }
    }
    let total = u32::try_from(total)
        .ok()
        .filter(|t| (1..4000).contains(t))?;
    (to_roman(total) == numeral).then_some(total)
}

fn to_roman(mut value: u32) -> String {
    const STEPS: [(u32, &str); 13] = [
        (1000, "M"),
        (900, "CM"),
        (500, "D"),
        (400, "CD"),
        (100, "C"),
        (90, "XC"),
        (50, "L"),
        (40, "XL"),
        (10, "X"),
        (9, "IX"),
        (5, "V"),
        (4, "IV"),
        (1, "I"),
    ];
    let mut out = String::new();
    for (step, letters) in STEPS {
        while value >= step {
            out.push_str(letters);
            value -= step;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn english() {
        assert_eq!(
            en_cardinal("1,234"),
            "one thousand two hundred and thirty four"
        );
        assert_eq!(en_ordinal("21"), "twenty first");
        assert_eq!(en_ordinal("30"), "thirtieth");
        assert_eq!(en_ordinal("100"), "one hundredth");
        assert_eq!(en_year("1905"), "nineteen oh five");
        assert_eq!(en_year("2000"), "two thousand");
        assert_eq!(en_year("1900"), "nineteen hundred");
        assert_eq!(en_year("2012"), "twenty twelve");
        assert_eq!(en_decimal("98.60"), "ninety eight point six zero");
    }

    #[test]
    fn chinese() {
        for (digits, words) in [
            ("0", "零"),
            ("10", "十"),
            ("110", "一百一十"),
            ("1010", "一千零一十"),
            ("2002", "两千零二"),
            ("20000", "两万"),
            ("100000000", "一亿"),
            ("120000", "十二万"),
            ("100010001", "一亿零一万零一"),
            ("1020003", "一百零二万零三"),
        ] {
            assert_eq!(zh_cardinal(digits), words, "{digits}");
        }
        assert_eq!(zh_decimal("20.05"), "二十点零五");
        assert_eq!(zh_digits("110", true), "幺幺零");
    }

    #[test]
    fn japanese() {
        assert_eq!(ja_cardinal("1111"), "千百十一");
        assert_eq!(ja_cardinal("10000"), "一万");
        assert_eq!(ja_cardinal("100020000"), "一億二万");
    }

    #[test]
    fn romans() {
        assert_eq!(roman("XIV"), Some(14));
        assert_eq!(roman("MCMXCIX"), Some(1999));
        assert_eq!(roman("IIII"), None);
        assert_eq!(roman("IC"), None);
        assert_eq!(roman("MIX"), Some(1009));
        assert_eq!(roman(""), None);
    }
}
