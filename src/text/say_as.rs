//! `say-as`: reading a text as a given kind of thing.

use super::language::Language;
use super::normalize;
use super::numbers::{
    MONTHS, en_cardinal, en_decimal, en_digits, en_ordinal, en_year, ja_cardinal, ja_decimal,
    ja_digits, roman, zh_cardinal, zh_decimal, zh_digits,
};

/// How a text is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SayAs {
    Cardinal,
    Ordinal,
    Digits,
    Telephone,
    Characters,
    Time,
    /// With the order of its fields: `ymd`, `mdy`, `dmy` or parts of them.
    Date(String),
}

impl SayAs {
    /// From the attributes `interpret-as` and `format`; `None` for a kind that is not known.
    pub(super) fn new(kind: &str, format: &str) -> Option<Self> {
        Some(match kind {
            "cardinal" | "number" => SayAs::Cardinal,
            "ordinal" => SayAs::Ordinal,
            "digits" => SayAs::Digits,
            "telephone" => SayAs::Telephone,
            "characters" | "spell-out" | "verbatim" => SayAs::Characters,
            "time" => SayAs::Time,
            "date" => SayAs::Date(format.to_ascii_lowercase()),
            _ => return None,
        })
    }

    /// `text` in words; what does not look like the kind is read as usual.
    pub(super) fn read(&self, text: &str, language: Language) -> String {
        let text = text.trim();
        let words = match self {
            SayAs::Cardinal => cardinal(text, language),
            SayAs::Ordinal => ordinal(text, language),
            SayAs::Digits => Some(telephone(text, language, false)),
            SayAs::Telephone => Some(telephone(text, language, true)),
            SayAs::Characters => Some(characters(text, language)),
            SayAs::Date(format) => date(text, format, language),
            SayAs::Time => None,
        };
        words.unwrap_or_else(|| normalize::in_language(text, language))
    }
}

fn digits(text: &str, language: Language, telephone: bool) -> String {
    match language {
        Language::Chinese => zh_digits(text, telephone),
        Language::Japanese => ja_digits(text),
        _ => en_digits(text),
    }
}

fn cardinal(text: &str, language: Language) -> Option<String> {
    let number = match roman(text) {
        Some(value) => value.to_string(),
        None => text.replace([',', ' '], ""),
    };
    let (minus, number) = match number.strip_prefix(['-', '−']) {
        Some(rest) => (true, rest),
        None => (false, number.as_str()),
    };
    let decimal = number.split('.').count() <= 2
        && number.starts_with(|c: char| c.is_ascii_digit())
        && number.ends_with(|c: char| c.is_ascii_digit())
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    decimal.then(|| match language {
        Language::Chinese => format!("{}{}", if minus { "负" } else { "" }, zh_decimal(number)),
        Language::Japanese => format!(
            "{}{}",
            if minus { "マイナス" } else { "" },
            ja_decimal(number)
        ),
        _ => format!(
            "{}{}",
            if minus { "minus " } else { "" },
            en_decimal(number)
        ),
    })
}

fn ordinal(text: &str, language: Language) -> Option<String> {
    let number = match roman(text) {
        Some(value) => value.to_string(),
        None => text.replace(',', ""),
    };
    let number = number.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let whole = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    whole.then(|| match language {
        Language::Chinese => format!("第{}", zh_cardinal(number).replace('两', "二")),
        Language::Japanese => format!("第{}", ja_cardinal(number)),
        _ => en_ordinal(number),
    })
}

/// Digits one by one, with a short halt between groups.
fn telephone(text: &str, language: Language, telephone: bool) -> String {
    let groups: Vec<String> = text
        .split(|c: char| !c.is_ascii_digit())
        .filter(|g| !g.is_empty())
        .map(|g| digits(g, language, telephone))
        .collect();
    let plus = match (text.starts_with('+'), language) {
        (false, _) => "",
        (true, Language::Chinese) => "加",
        (true, Language::Japanese) => "プラス",
        (true, _) => "plus ",
    };
    let halt = if language.is_unspaced() { "，" } else { ", " };
    format!(
        "{plus}{}",
        groups.join(if telephone {
            halt
        } else if language.is_unspaced() {
            ""
        } else {
            " "
        })
    )
}

fn characters(text: &str, language: Language) -> String {
    let names: Vec<String> = text
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| match c {
            '0'..='9' => digits(c.encode_utf8(&mut [0; 4]), language, false),
            c if c.is_alphanumeric() => c.to_uppercase().collect(),
            c => normalize::symbol(c, language),
        })
        .filter(|name| !name.is_empty())
        .collect();
    names.join(" ")
}

/// Year, month and day where given.
fn date(text: &str, format: &str, language: Language) -> Option<String> {
    let fields: Vec<&str> = if text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit()) {
        vec![&text[..4], &text[4..6], &text[6..]]
    } else {
        text.split(['-', '/', '.', ' ', '年', '月', '日'])
            .filter(|f| !f.is_empty())
            .collect()
    };
    if fields.is_empty()
        || !fields
            .iter()
            .all(|f| f.len() <= 4 && f.bytes().all(|b| b.is_ascii_digit()))
    {
        return None;
    }
    let order = match format {
        "" if fields[0].len() == 4 => "ymd",
        "" if fields.len() == 3 => "mdy",
        "" => "md",
        given => given,
    };
    let order: Vec<char> = order
        .chars()
        .filter(|c| matches!(c, 'y' | 'm' | 'd'))
        .collect();
    let mut order_unique = order.clone();
    order_unique.dedup();
    let field = |which: char| {
        order_unique
            .iter()
            .position(|&c| c == which)
            .and_then(|i| fields.get(i))
            .copied()
    };
    let (year, month, day) = (field('y'), field('m'), field('d'));
    let within = |f: Option<&str>, max: u32| {
        f.is_none_or(|f| f.parse::<u32>().is_ok_and(|v| (1..=max).contains(&v)))
    };
    if fields.len() > order_unique.len() || !within(month, 12) || !within(day, 31) {
        return None;
    }
    Some(match language {
        Language::Chinese => [
            (year.map(|y| zh_digits(y, false)), "年"),
            (month.map(zh_number), "月"),
            (day.map(zh_number), "日"),
        ]
        .into_iter()
        .filter_map(|(value, unit)| Some(value? + unit))
        .collect(),
        Language::Japanese => [(year, "年"), (month, "月"), (day, "日")]
            .into_iter()
            .filter_map(|(value, unit)| Some(ja_cardinal(value?) + unit))
            .collect(),
        _ => english_date(year, month, day),
    })
}

fn zh_number(digits: &str) -> String {
    zh_cardinal(digits).replace('两', "二")
}

fn english_date(year: Option<&str>, month: Option<&str>, day: Option<&str>) -> String {
    let month = month.and_then(|m| {
        MONTHS
            .get(m.parse::<usize>().ok()?.checked_sub(1)?)
            .copied()
    });
    let day = day.map(en_ordinal);
    let year = year.map(|y| {
        if y.len() == 4 {
            en_year(y)
        } else {
            en_cardinal(y)
        }
    });
    let day_month = match (month, day) {
        (Some(month), Some(day)) => format!("{month} {day}"),
        (Some(month), None) => month.to_owned(),
        (None, Some(day)) => format!("the {day}"),
        (None, None) => String::new(),
    };
    match year {
        Some(year) if !day_month.is_empty() => format!("{day_month}, {year}"),
        Some(year) => year,
        None => day_month,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: &str, format: &str, text: &str, language: Language) -> String {
        SayAs::new(kind, format)
            .expect("known kind")
            .read(text, language)
    }

    #[test]
    fn kinds_in_three_languages() {
        use Language::{Chinese, English, Japanese};
        for (kind, format, text, language, words) in [
            (
                "cardinal",
                "",
                "1,024",
                English,
                "one thousand and twenty four",
            ),
            ("cardinal", "", "-2.5", Chinese, "负二点五"),
            ("ordinal", "", "3", English, "third"),
            ("ordinal", "", "22", Chinese, "第二十二"),
            ("ordinal", "", "2", Japanese, "第二"),
            ("digits", "", "2024", English, "two zero two four"),
            ("digits", "", "110", Chinese, "一一零"),
            (
                "telephone",
                "",
                "+1 415-555",
                English,
                "plus one, four one five, five five five",
            ),
            ("telephone", "", "110", Chinese, "幺幺零"),
            ("characters", "", "aB1", English, "A B one"),
            (
                "date",
                "",
                "2024-05-01",
                English,
                "May first, twenty twenty four",
            ),
            (
                "date",
                "dmy",
                "01/05/2024",
                English,
                "May first, twenty twenty four",
            ),
            ("date", "", "20240501", Chinese, "二零二四年五月一日"),
            ("date", "md", "12-25", Japanese, "十二月二十五日"),
        ] {
            assert_eq!(read(kind, format, text, language), words, "{kind} {text}");
        }
    }

    #[test]
    fn what_is_not_of_the_kind_is_read_as_usual() {
        assert_eq!(read("cardinal", "", "hello", Language::English), "hello");
        assert_eq!(
            read("date", "", "2024-13-40", Language::Chinese),
            normalize::in_language("2024-13-40", Language::Chinese)
        );
    }
}
