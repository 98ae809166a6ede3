//! Japanese rules.

use std::sync::LazyLock;

use regex::Captures;

use super::{Around, Rule, group, units};
use crate::text::numbers::{ja_cardinal, ja_decimal, ja_digits};

pub(super) static BEFORE: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let number = r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)";
    vec![
        Rule::new(r"〒 ?(\d{3})-?(\d{4})", |c, a| {
            let number = [1, 2].map(|i| ja_digits(group(c, i))).join("の");
            (!a.after.starts_with(|x: char| x.is_ascii_digit()))
                .then(|| format!("郵便番号{number}"))
        }),
        Rule::new(r"0\d{1,4}-\d{1,4}-\d{3,4}", |c, a| {
            a.is_free().then(|| {
                group(c, 0)
                    .split('-')
                    .map(ja_digits)
                    .collect::<Vec<_>>()
                    .join("の")
            })
        }),
        Rule::new(r"([1-9]\d{0,3})-([1-9]\d{0,2})-([1-9]\d{0,3})", |c, a| {
            let alone = !a
                .before
                .ends_with(|x: char| x.is_ascii_alphanumeric() || x == '-')
                && !a
                    .after
                    .starts_with(|x: char| x.is_ascii_alphanumeric() || x == '-');
            // Four digits first are a date's.
            (alone && group(c, 1).len() < 4)
                .then(|| [1, 2, 3].map(|i| ja_cardinal(group(c, i))).join("の"))
        }),
        Rule::new(r"[vV]?\d+(?:\.\d+){2,3}", dotted),
        Rule::new(r"[vV](\d+(?:\.\d+)?)", |c, a| {
            (!a.before.ends_with(|x: char| x.is_ascii_alphanumeric()) && a.is_free())
                .then(|| format!("バージョン{}", ja_decimal(group(c, 1))))
        }),
        Rule::new(
            r"(\d+(?:\.\d+)?)[%％]?[-~～〜–](\d+(?:\.\d+)?)[%％]",
            |c, _| {
                Some(format!(
                    "{}から{}パーセント",
                    ja_decimal(group(c, 1)),
                    ja_decimal(group(c, 2))
                ))
            },
        ),
        Rule::new(r"[-−](\d+(?:\.\d+)?) ?(?:℃|°C)", |c, a| {
            (!a.before.ends_with(|x: char| x.is_ascii_digit()))
                .then(|| format!("マイナス{}度", ja_decimal(group(c, 1))))
        }),
        Rule::new(
            &format!(r"([-−])?{number} ?({})", units::alternatives()),
            measure,
        ),
        Rule::new(r"(?i:no)[.．] ?(\d+)", |c, _| {
            Some(format!("ナンバー{}", ja_cardinal(group(c, 1))))
        }),
        Rule::new(r"(\d{1,2}:\d{2})[-~～〜–](\d{1,2}:\d{2})", |c, _| {
            Some(format!("{}から{}", group(c, 1), group(c, 2)))
        }),
        Rule::new(r"[①-⑳]|[Ⅰ-Ⅻ]", |c, _| {
            let symbol = group(c, 0).chars().next()?;
            let base = if ('Ⅰ'..='Ⅻ').contains(&symbol) {
                'Ⅰ'
            } else {
                '①'
            };
            Some(ja_cardinal(
                &(u32::from(symbol) - u32::from(base) + 1).to_string(),
            ))
        }),
    ]
});

pub(super) static AFTER: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![
        Rule::new(r"(\d+(?:\.\d+)?)[%％]", |c, _| {
            Some(format!("{}パーセント", ja_decimal(group(c, 1))))
        }),
        Rule::new(r"\d+\.\d+", |c, _| Some(ja_decimal(group(c, 0)))),
        Rule::new(r"\d+", |c, _| {
            let digits = group(c, 0);
            let code = digits.len() > 12 || digits.starts_with('0') && digits.len() > 1;
            Some(if code {
                ja_digits(digits)
            } else {
                ja_cardinal(digits)
            })
        }),
    ]
});

fn dotted(c: &Captures, around: Around) -> Option<String> {
    let whole = group(c, 0);
    let version = whole.trim_start_matches(['v', 'V']);
    let parts: Vec<&str> = version.split('.').collect();
    if !around.is_free() || parts[0].len() == 4 && parts.len() == 3 {
        return None;
    }
    let sign = if version.len() < whole.len() {
        "バージョン"
    } else {
        ""
    };
    let words: Vec<String> = parts.iter().map(|p| ja_cardinal(p)).collect();
    Some(format!("{sign}{}", words.join("点")))
}

fn measure(c: &Captures, around: Around) -> Option<String> {
    let unit = units::find(group(c, 3))?;
    let joined = around
        .after
        .starts_with(|x: char| x.is_ascii_alphanumeric() || matches!(x, '/' | '²' | '³'));
    if joined
        || around
            .before
            .ends_with(|x: char| x.is_ascii_alphanumeric() || matches!(x, '.' | '/' | '$'))
    {
        return None;
    }
    let minus = if group(c, 1).is_empty() {
        ""
    } else {
        "マイナス"
    };
    Some(format!(
        "{minus}{}{}",
        ja_decimal(&group(c, 2).replace(',', "")),
        unit.japanese
    ))
}
