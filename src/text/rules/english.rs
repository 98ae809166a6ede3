//! English rules.

use std::sync::LazyLock;

use regex::Captures;

use super::english_dates::{day_month, decade, month_day, plural_ten, starts_number};
use super::{Around, Rule, group, units};
use crate::text::numbers::{en_cardinal, en_decimal, en_digits, en_ordinal, en_year, roman};

const MONTH: &str = r"(Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?|July?|Aug(?:ust|\.)?|Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)";

pub(super) static BEFORE: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let number = r"(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)";
    vec![
        Rule::new(
            r"(?:\+(\d{1,3})[ .-]?|\b(1)-)?(?:\((\d{3})\) ?|(\d{3})[ .-])(\d{3})[ .-](\d{4})\b",
            telephone,
        ),
        Rule::new(r"\+(\d{1,3})[ -]?(\d[\d -]{6,14}\d)\b", international),
        Rule::new(r"\b(\d{3})-(\d{4})\b", local_telephone),
        Rule::new(r"\b(?:911|999|112|411|311|211|511|811|988)\b", emergency),
        Rule::new(r"\b([vV])?(\d+(?:\.\d+){2,3})\b", dotted),
        Rule::new(r"\b[vV](\d+(?:\.\d+)?)\b", |c, _| {
            Some(format!("version {}", en_decimal(group(c, 1))))
        }),
        Rule::new(r"\b(24/7|50/50|9/11)\b", |c, a| {
            a.is_free().then(|| {
                match group(c, 1) {
                    "24/7" => "twenty four seven",
                    "50/50" => "fifty fifty",
                    _ => "nine eleven",
                }
                .into()
            })
        }),
        Rule::new(r"\b(480|720|1080|1440|2160)([pi])\b", |c, _| {
            let (head, tail) = group(c, 1).split_at(group(c, 1).len() - 2);
            Some(format!(
                "{} {} {}",
                en_cardinal(head),
                en_cardinal(tail),
                group(c, 2)
            ))
        }),
        Rule::new(r"\b(\d+(?:\.\d+)?)[eE]([-+]?)(\d+)\b", |c, a| {
            let sign = if group(c, 2) == "-" { "minus " } else { "" };
            let words = format!(
                "{} times ten to the power of {sign}{}",
                en_decimal(group(c, 1)),
                en_cardinal(group(c, 3))
            );
            a.is_free().then_some(words)
        }),
        Rule::new(r"\b(\d+\.\d+)/(\d+)\b", |c, a| {
            a.is_free().then(|| {
                format!(
                    "{} out of {}",
                    en_decimal(group(c, 1)),
                    en_cardinal(group(c, 2))
                )
            })
        }),
        Rule::new(r"[~≈] ?(\d)", |c, _| {
            Some(format!("about {}", group(c, 1)))
        }),
        Rule::new(r"\b(\d+)\^(\d+)\b", |c, _| {
            Some(format!(
                "{} to the power of {}",
                en_cardinal(group(c, 1)),
                en_cardinal(group(c, 2))
            ))
        }),
        Rule::new(r"\b(\d+) ?¢", |c, _| {
            Some(format!(
                "{} {}",
                en_cardinal(group(c, 1)),
                if group(c, 1) == "1" { "cent" } else { "cents" }
            ))
        }),
        Rule::new(r"\b(1[0-9]|20)(\d)0['’]?s\b", decade),
        Rule::new(r"['’]?\b([2-9])0s\b", |c, a| {
            a.is_free().then(|| plural_ten(group(c, 1)))
        }),
        Rule::new(r"(\d+)['′](\d{1,2})(?:[″”]|\x22)", |c, _| {
            Some(format!(
                "{} foot {}",
                en_cardinal(group(c, 1)),
                en_cardinal(group(c, 2))
            ))
        }),
        Rule::new(
            &format!(r"\b{MONTH} (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?\b"),
            month_day,
        ),
        Rule::new(
            &format!(r"\b(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{MONTH}(?:,? (\d{{4}}))?\b"),
            day_month,
        ),
        Rule::new(
            r"\b(\d{1,2}(?::\d{2})?) ?([ap])\.?m\.? ?[-–] ?(\d{1,2}(?::\d{2})?)",
            |c, _| {
                Some(format!(
                    "{} {}m to {}",
                    group(c, 1),
                    group(c, 2),
                    group(c, 3)
                ))
            },
        ),
        Rule::new(r"\b(\d{1,2}:\d{2}) ?[-–] ?(\d{1,2}:\d{2})\b", |c, _| {
            Some(format!("{} to {}", group(c, 1), group(c, 2)))
        }),
        Rule::new(r"\b([12]\d{3}) ?[-–—] ?([12]\d{3})\b", |c, a| {
            a.is_free()
                .then(|| format!("{} to {}", en_year(group(c, 1)), en_year(group(c, 2))))
        }),
        Rule::new(
            r"\b(\d+(?:\.\d+)?)%? ?[-–] ?(\d+(?:\.\d+)?) ?%",
            |c, _| {
                Some(format!(
                    "{} to {} percent",
                    en_decimal(group(c, 1)),
                    en_decimal(group(c, 2))
                ))
            },
        ),
        Rule::new(
            &format!(r"([-–−])?\b{number}[ -]?({})", units::alternatives()),
            measure,
        ),
        Rule::new(r"\b(\d[\d,]*)(st|nd|rd|th)\b", |c, _| {
            Some(en_ordinal(group(c, 1)))
        }),
        Rule::new(r"\b(\d+)[-–](\d+)\b", range),
        Rule::new(r"\b(\d{1,3}(?:,\d{3})+)(\.\d+)?\b", |c, a| {
            a.is_free()
                .then(|| en_decimal(&format!("{}{}", group(c, 1).replace(',', ""), group(c, 2))))
        }),
        Rule::new(r"\b(\d+\.\d+)([A-Za-z]*)\b", decimal),
        Rule::new(r"\b([A-Z]{1,5})-?(\d{1,4})\b", code),
        Rule::new(r"\b\d+\b", integer),
        Rule::new(r"\b(?:[Nn]o\.|№) ?(\d+)\b", |c, _| {
            Some(format!("number {}", en_cardinal(group(c, 1))))
        }),
        Rule::new(r"#(\d+)\b", |c, _| {
            Some(format!("number {}", en_cardinal(group(c, 1))))
        }),
        Rule::new(r"\b([A-Z][a-z]+(?: (?:the|War))?) ([IVXL]+)\b", numeral),
        Rule::new(r"\bw/o\b", |_, _| Some("without".into())),
        Rule::new(r"\bw/ ", |_, _| Some("with ".into())),
        Rule::new(r"\b([a-z]+)/([a-z]+)\b", |c, _| {
            Some(match (group(c, 1), group(c, 2)) {
                ("and", "or") => "and or".into(),
                (a, b) => format!("{a} or {b}"),
            })
        }),
        Rule::new(
            r"\b(e\.g\.|i\.e\.|etc\.|vs\.?|approx\.|a\.k\.a\.|et al\.)",
            phrase,
        ),
        Rule::new(
            r"\b(Mr|Mrs|Ms|Dr|Prof|Gen|Col|Lt|Capt|Sgt|Gov|Sen|Rep|Rev|Hon|Pres|St|Mt|Ft)\. ([A-Z])",
            title,
        ),
        Rule::new(
            r"\b(St|Ave|Blvd|Rd|Jr|Sr|Inc|Ltd|Corp|Co|Dept|Ext|Dr)\.",
            suffix,
        ),
    ]
});

pub(super) static AFTER: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![
        Rule::new(r"(\d+)\.(\d+)", |c, _| Some(en_decimal(group(c, 0)))),
        Rule::new(r"([A-Za-z])?(\d+)([A-Za-z])?", |c, _| {
            let gap = |g: &str| if g.is_empty() { "" } else { " " };
            let (before, after) = (group(c, 1), group(c, 3));
            Some(format!(
                "{before}{}{}{}{after}",
                gap(before),
                en_cardinal(group(c, 2)),
                gap(after)
            ))
        }),
        Rule::new(r"\b(?:minus|negative) ", |_, _| Some("minus ".into())),
    ]
});

fn grouped(digits: &[&str]) -> String {
    digits
        .iter()
        .filter(|d| !d.is_empty())
        .map(|d| en_digits(d))
        .collect::<Vec<_>>()
        .join(", ")
}

fn telephone(c: &Captures, around: Around) -> Option<String> {
    if around
        .before
        .ends_with(|x: char| x.is_ascii_digit() || x == '.' || x == '-')
    {
        return None;
    }
    let country = format!("{}{}", group(c, 1), group(c, 2));
    let area = format!("{}{}", group(c, 3), group(c, 4));
    let number = grouped(&[&country, &area, group(c, 5), group(c, 6)]);
    Some(if group(c, 1).is_empty() {
        number
    } else {
        format!("plus {number}")
    })
}

fn international(c: &Captures, _: Around) -> Option<String> {
    let groups: Vec<&str> = group(c, 2).split([' ', '-']).collect();
    Some(format!(
        "plus {}, {}",
        en_digits(group(c, 1)),
        grouped(&groups)
    ))
}

/// Whether one of `words` comes shortly before.
fn follows(around: Around, words: &[&str]) -> bool {
    let near: String = around.before.chars().rev().take(30).collect();
    let near: String = near.chars().rev().collect::<String>().to_ascii_lowercase();
    words.iter().any(|w| near.contains(w))
}

fn local_telephone(c: &Captures, around: Around) -> Option<String> {
    let known = follows(
        around,
        &[
            "number", "phone", "call", "tel", "dial", "fax", "cell", "text", "reach",
        ],
    );
    (known && around.is_free()).then(|| grouped(&[group(c, 1), group(c, 2)]))
}

fn emergency(c: &Captures, around: Around) -> Option<String> {
    let known = follows(
        around,
        &[
            "call ", "dial ", "dialed ", "called ", "calling ", "ring ", "phone ", "text ",
        ],
    );
    (known && around.is_free()).then(|| en_digits(group(c, 0)))
}

fn dotted(c: &Captures, around: Around) -> Option<String> {
    let parts: Vec<&str> = group(c, 2).split('.').collect();
    let date = parts.len() == 3 && parts[0].len() == 4;
    if date || !around.is_free() {
        return None;
    }
    if parts.len() == 4 && group(c, 1).is_empty() {
        return Some(
            parts
                .iter()
                .map(|p| en_digits(p))
                .collect::<Vec<_>>()
                .join(" dot "),
        );
    }
    let number = parts
        .iter()
        .map(|p| en_cardinal(p))
        .collect::<Vec<_>>()
        .join(" point ");
    Some(if group(c, 1).is_empty() {
        number
    } else {
        format!("version {number}")
    })
}

fn measure(c: &Captures, around: Around) -> Option<String> {
    let unit = units::find(group(c, 3))?;
    let joined = around
        .after
        .starts_with(|x: char| x.is_alphanumeric() || x == '/' || x == '²' || x == '³');
    let number = group(c, 2).replace(',', "");
    let words = en_decimal(&number);
    if !joined && !group(c, 1).is_empty() && around.before.ends_with(|x: char| x.is_ascii_digit()) {
        return Some(format!(" to {words} {}", unit.many));
    }
    if joined
        || around
            .before
            .ends_with(|x: char| x.is_ascii_alphanumeric() || x == '.' || x == '/' || x == '$')
    {
        return None;
    }
    if group(c, 3) == "°" && around.after.trim_start().starts_with(['C', 'F']) {
        return None;
    }
    let minus = if group(c, 1).is_empty() { "" } else { "minus " };
    let attributive = [" a ", " an ", "A ", "An "]
        .iter()
        .any(|a| around.before.ends_with(a))
        || matches!(around.before, "a " | "an ");
    let name = if number == "1" || attributive {
        unit.one
    } else {
        unit.many
    };
    Some(format!("{minus}{words} {name}"))
}

fn range(c: &Captures, around: Around) -> Option<String> {
    let (from, to) = (group(c, 1), group(c, 2));
    let alone = around.is_free()
        && !around.before.ends_with(['-', '/', ':', '–'])
        && !around.after.starts_with(['-', '/', ':', '–']);
    (alone && from.len() <= 3 && to.len() <= 4)
        .then(|| format!("{} to {}", en_cardinal(from), en_cardinal(to)))
}

/// A decimal that stands alone, or with letters that are no unit.
fn decimal(c: &Captures, around: Around) -> Option<String> {
    let marks = ['/', ':', '-', '–', '^', '$'];
    let alone =
        around.is_free() && !around.before.ends_with(marks) && !around.after.starts_with(marks);
    alone.then(|| {
        let gap = if group(c, 2).is_empty() { "" } else { " " };
        format!("{}{gap}{}", en_decimal(group(c, 1)), group(c, 2))
    })
}

/// Letters with a number: `COVID-19`, `F-16`, `A380`.
fn code(c: &Captures, around: Around) -> Option<String> {
    let (letters, digits) = (group(c, 1), group(c, 2));
    let mut after = around.after.chars();
    if matches!(after.next(), Some('-' | '.' | ':' | '/')) && starts_number(after.as_str())
        || around.before.ends_with(['-', '$', '.'])
    {
        return None;
    }
    let number = match digits.len() {
        3 if !digits.ends_with("00") => {
            let tail = &digits[1..];
            let rest = match tail.strip_prefix('0') {
                Some(unit) => format!("oh {}", en_digits(unit)),
                None => en_cardinal(tail),
            };
            format!("{} {rest}", en_cardinal(&digits[..1]))
        }
        4 => en_digits(digits),
        _ => en_cardinal(digits),
    };
    Some(format!("{letters} {number}"))
}

fn integer(c: &Captures, around: Around) -> Option<String> {
    let digits = group(c, 0);
    let marks = ['/', ':', '-', '.', '+', '*', '=', '^', '%', '$', '°', '–'];
    let alone = around.is_free()
        && !around.after.starts_with(marks.as_slice())
        && !around
            .before
            .ends_with(['/', ':', '.', '+', '*', '=', '^', '$', '#', '-', '–']);
    let sentence_end = around.is_free()
        && around.after.starts_with('.')
        && !around.before.ends_with(['/', ':', '.', '$', '#', '-']);
    if !(alone || sentence_end) || follows_month(around) {
        return None;
    }
    match digits.len() {
        4 => Some(four_digits(digits, around)),
        10.. => Some(en_digits(digits)),
        5..=9 if !digits.starts_with('0') => Some(en_cardinal(digits)),
        _ if digits.starts_with('0') && digits.len() > 1 => Some(en_digits(digits)),
        _ => None,
    }
}

fn follows_month(around: Around) -> bool {
    let before = around
        .before
        .trim_end()
        .trim_end_matches(['.', ','])
        .as_bytes();
    // The longest name has nine letters.
    let near = &before[before.len().saturating_sub(10)..];
    let word = near.rsplit(|&b| b == b' ').next().unwrap_or_default();
    word.first_chunk().is_some_and(|start: &[u8; 3]| {
        let start = start.to_ascii_lowercase();
        b"janfebmaraprmayjunjulaugsepoctnovdec"
            .chunks_exact(3)
            .any(|m| m == start)
    })
}

/// Four digits count things when a plural follows, and are a year otherwise.
fn four_digits(digits: &str, around: Around) -> String {
    if digits.starts_with('0') {
        return en_digits(digits);
    }
    let next = around
        .after
        .trim_start()
        .split(|c: char| !c.is_ascii_alphabetic())
        .next()
        .unwrap_or_default();
    let plural = around.after.starts_with(' ')
        && ((next.len() > 3
            && next.ends_with('s')
            && next.bytes().all(|b| b.is_ascii_lowercase())
            && !["was", "his", "this"].contains(&next))
            || ["people", "men", "women", "children", "feet"].contains(&next));
    if plural || !("11".."21").contains(&&digits[..2]) || digits.ends_with("000") {
        en_cardinal(digits)
    } else {
        en_year(digits)
    }
}

/// `World War II`, `Henry VIII`, `Chapter IV`, `Rocky IV`.
fn numeral(c: &Captures, _: Around) -> Option<String> {
    let (word, numeral) = (group(c, 1), group(c, 2));
    let value = roman(numeral)?.to_string();
    let common = numeral.contains('L') && numeral.len() < 3;
    let monarchs = [
        "King",
        "Queen",
        "Pope",
        "Louis",
        "Henry",
        "Elizabeth",
        "George",
        "Charles",
        "Edward",
        "William",
        "James",
        "Richard",
        "Napoleon",
        "Paul",
        "Benedict",
        "Pius",
        "Ramses",
        "Nicholas",
        "Catherine",
        "Frederick",
        "Philip",
        "Francis",
        "Leo",
        "Tsar",
        "Emperor",
        "Mary",
        "John",
        "Alexander",
        "Peter",
        "Ivan",
    ];
    let parts = [
        "Chapter", "Part", "Section", "Act", "Volume", "Book", "Scene", "Appendix", "Phase",
        "Type", "Article", "War", "Title", "Grade", "Level", "Stage", "Class", "Figure", "Table",
        "Step", "Bowl",
    ];
    let last = word.rsplit(' ').next().unwrap_or(word);
    if monarchs.contains(&last) && (numeral.len() > 1 || numeral == "V") {
        Some(format!("{word} the {}", en_ordinal(&value)))
    } else if parts.contains(&last) || (numeral.len() > 1 && !common) {
        Some(format!("{word} {}", en_cardinal(&value)))
    } else {
        None
    }
}

fn phrase(c: &Captures, around: Around) -> Option<String> {
    let words = match group(c, 1) {
        "e.g." => "for example",
        "i.e." => "that is",
        "etc." if around.after.trim().is_empty() => "et cetera.",
        "etc." => "et cetera",
        "approx." => "approximately",
        "a.k.a." => "also known as",
        "et al." => "and others",
        _ if around.before.ends_with(' ') && around.after.starts_with(' ') => "versus",
        _ => return None,
    };
    Some(words.into())
}

fn title(c: &Captures, _: Around) -> Option<String> {
    let full = match group(c, 1) {
        "Mr" => "Mister",
        "Mrs" => "Missus",
        "Ms" => "Miss",
        "Dr" => "Doctor",
        "Prof" => "Professor",
        "Gen" => "General",
        "Col" => "Colonel",
        "Lt" => "Lieutenant",
        "Capt" => "Captain",
        "Sgt" => "Sergeant",
        "Gov" => "Governor",
        "Sen" => "Senator",
        "Rep" => "Representative",
        "Rev" => "Reverend",
        "Hon" => "Honorable",
        "Pres" => "President",
        "St" => "Saint",
        "Mt" => "Mount",
        _ => "Fort",
    };
    Some(format!("{full} {}", group(c, 2)))
}

fn suffix(c: &Captures, around: Around) -> Option<String> {
    let full = match group(c, 1) {
        "St" => "Street",
        "Ave" => "Avenue",
        "Blvd" => "Boulevard",
        "Rd" => "Road",
        "Dr" => "Drive",
        "Jr" => "Junior",
        "Sr" => "Senior",
        "Inc" => "Incorporated",
        "Ltd" => "Limited",
        "Corp" => "Corporation",
        "Co" => "Company",
        "Dept" => "Department",
        _ => "extension",
    };
    // The point also ends the sentence when nothing or a capital letter follows.
    let after = around.after.trim_start();
    let ends = after.is_empty() || after.starts_with(char::is_uppercase);
    Some(if ends {
        format!("{full}.")
    } else {
        full.into()
    })
}
