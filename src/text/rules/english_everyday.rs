//! English as people meet it daily: addresses, rooms and roads, sizes, weekdays, numeric dates, file names, hashtags.
//! These run before the general rules, which would read the numbers in them one by one.

use std::sync::LazyLock;

use regex::Captures;

use super::english_dates::{month_of, starts_number, valid_day};
use super::{Around, Rule, group};
use crate::text::numbers::{en_cardinal, en_decimal, en_digits, en_ordinal, en_year, roman};

/// How far back a quotation mark is looked for, in characters.
const QUOTATION: usize = 200;

const FRACTIONS: &str = "½⅓⅔¼¾⅛⅜⅝⅞";

pub(super) static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    vec![
        Rule::new(
            r"\b(\d{1,5})([A-Z])? ((?:[NSEW]\.? )?(?:[A-Z][A-Za-z']+|\d{1,3}(?:st|nd|rd|th))(?: [A-Z][A-Za-z']+){0,3}) (Street|Avenue|Road|Boulevard|Drive|Lane|Court|Place|Highway|Parkway|Square|Way|Terrace|St|Ave|Rd|Blvd|Dr|Ln|Ct|Pl|Hwy|Pkwy|Sq)\b(\.?)( (?:NW|NE|SW|SE|[NSEW])\b\.?)?",
            address,
        ),
        Rule::new(r"\b([A-Z]{2}),? (\d{5})(?:-(\d{4}))?\b", state),
        Rule::new(
            r"\b((?i:zip|zip code|postcode|postal code)(?: is|:)? )(\d{5})\b",
            |c, a| {
                a.is_free()
                    .then(|| format!("{}{}", group(c, 1), en_digits(group(c, 2))))
            },
        ),
        Rule::new(
            r"\b(Room|Flight|Suite|Apartment|Apt\.|Highway|Hwy\.?|Route|Interstate|Boeing|Airbus|Bus|Gate|Unit)( )(\d{3,4})\b",
            |c, a| {
                a.is_free()
                    .then(|| format!("{}{}{}", group(c, 1), group(c, 2), in_pairs(group(c, 3))))
            },
        ),
        Rule::new(r"\b(I)-(\d{1,3})\b", |c, a| {
            a.is_free().then(|| format!("I {}", in_pairs(group(c, 2))))
        }),
        Rule::new(r"\b0(\d{2,4})[ -](\d{3,4})[ -](\d{3,4})\b", |c, a| {
            let groups = [1, 2, 3].map(|i| en_digits(group(c, i)));
            a.is_free().then(|| format!("zero {}", groups.join(", ")))
        }),
        Rule::new(r"\b[Ee]xt\.? ?(\d{1,6})\b", |c, _| {
            Some(format!("extension {}", en_digits(group(c, 1))))
        }),
        Rule::new(
            r"\b(pp?|vol|fig|ch|sec|eq|para|no|Nos?|nos)\. ?(\d)",
            reference,
        ),
        Rule::new(
            r"\b(Mon|Tues?|Wed|Thur?s?|Fri|Sat|Sun)\.? ?[-–] ?(Mon|Tues?|Wed|Thur?s?|Fri|Sat|Sun)\b\.?",
            |c, _| {
                Some(format!(
                    "{} to {}",
                    weekday(group(c, 1))?,
                    weekday(group(c, 2))?
                ))
            },
        ),
        Rule::new(
            r"\b(Mon|Tues?|Wed|Thur?s?|Fri|Sat|Sun)(?:\.,?|,) ((?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)|\d)",
            |c, _| Some(format!("{}, {}", weekday(group(c, 1))?, group(c, 2))),
        ),
        Rule::new(r"\b(\d{1,2})\.(\d{1,2})\.([12]\d{3})\b", |c, a| {
            let month = month_of(group(c, 2))?;
            let date = format!("the {} of {month}", en_ordinal(group(c, 1)));
            (a.is_free() && valid_day(group(c, 1)))
                .then(|| format!("{date}, {}", en_year(group(c, 3))))
        }),
        Rule::new(r"\b((?:1[89]|20)\d{2})([-/–])(\d{2})\b", years),
        Rule::new(r"['’](\d)(\d)\b", |c, a| {
            let opens = a.before.is_empty() || a.before.ends_with([' ', '(']);
            let year = format!("{}{}", group(c, 1), group(c, 2));
            let words = match group(c, 1) {
                "0" => format!("oh {}", en_digits(group(c, 2))),
                _ => en_cardinal(&year),
            };
            (opens && !a.after.starts_with(['s', '\'', '’', '.', '"'])).then_some(words)
        }),
        Rule::new(r"\b([FC]Y) ?([12]\d{3})\b", |c, a| {
            a.is_free()
                .then(|| format!("{} {}", group(c, 1), en_year(group(c, 2))))
        }),
        Rule::new(r"\b([IVX]+) (century|Century|Olympic|Congress)", |c, _| {
            let ordinal = en_ordinal(&roman(group(c, 1))?.to_string());
            Some(format!("{ordinal} {}", group(c, 2)))
        }),
        Rule::new(r"\b(UTC|GMT) ?([-+−–])(\d)", |c, _| {
            let sign = if group(c, 2) == "+" { "plus" } else { "minus" };
            Some(format!("{} {sign} {}", group(c, 1), group(c, 3)))
        }),
        Rule::new(r"\b401\(?[kK]\)?", |_, a| {
            a.is_free().then(|| "four oh one k".into())
        }),
        Rule::new(r"\b20/20\b", |_, a| {
            a.is_free().then(|| "twenty twenty".into())
        }),
        Rule::new(r"\b(\d{2,3})/(\d{2,3}) ?mm ?Hg\b", |c, a| {
            let [over, under] = [1, 2].map(|i| en_cardinal(group(c, i)));
            a.is_free()
                .then(|| format!("{over} over {under} millimeters of mercury"))
        }),
        Rule::new(
            r"((?i:blood pressure)(?: (?:is|was|of|at))? |\bBP:? )(\d{2,3})/(\d{2,3})\b",
            |c, a| {
                let [over, under] = [2, 3].map(|i| en_cardinal(group(c, i)));
                a.is_free()
                    .then(|| format!("{}{over} over {under}", group(c, 1)))
            },
        ),
        Rule::new(
            r"\b(\d+(?:\.\d+)?) ?[x×] ?(\d+(?:\.\d+)?)(?: ?[x×] ?(\d+(?:\.\d+)?))?\b",
            size,
        ),
        Rule::new(&format!(r"(\d+)? ?([{FRACTIONS}])"), fraction),
        Rule::new(
            r"\b(\d+) ?(?:ft\.?|feet|foot) (\d+(?:\.\d+)?) ?in\b\.?",
            |c, _| {
                let foot = if group(c, 1) == "1" { "foot" } else { "feet" };
                let inch = if group(c, 2) == "1" { "inch" } else { "inches" };
                Some(format!(
                    "{} {foot} {} {inch}",
                    en_cardinal(group(c, 1)),
                    en_decimal(group(c, 2))
                ))
            },
        ),
        Rule::new(r"\b(\d+(?:\.\d+)?|\d+/\d+)(?:in\b|[″”]|\x22)", inches),
        Rule::new(r"−(\d)", |c, a| {
            let gap = match a.before.chars().next_back() {
                Some(x) if x.is_alphanumeric() => " ",
                _ => "",
            };
            Some(format!("{gap}minus {}", group(c, 1)))
        }),
        Rule::new(r"\b([A-Z]{2,5})-(\d{1,3})([a-z])\b", |c, a| {
            a.is_free().then(|| {
                let number = en_decimal(group(c, 2));
                format!("{} {number} {}", group(c, 1), group(c, 3))
            })
        }),
        Rule::new(r"\b([CFJ])#", |c, a| {
            (!a.after.starts_with(char::is_alphanumeric)).then(|| format!("{} sharp", group(c, 1)))
        }),
        Rule::new(r"#(\w*[A-Za-z]\w*)", |c, a| {
            (!a.before.ends_with(char::is_alphanumeric))
                .then(|| format!("hashtag {}", words_of(group(c, 1))))
        }),
        Rule::new(
            r"\b([A-Za-z][\w-]*)\.(txt|pdf|docx?|xlsx?|pptx?|csv|json|html?|xml|yaml|toml|js|ts|py|rs|cpp|md|jpe?g|png|gif|svg|mp[34]|wav|zip|exe)\b",
            |c, a| {
                let alone = !a.before.ends_with(['/', '.', '@', '\\'])
                    && !a.after.starts_with(['/', '@', '_']);
                alone.then(|| format!("{} dot {}", group(c, 1), group(c, 2)))
            },
        ),
        Rule::new(r"(?:/[A-Za-z0-9_.-]*[A-Za-z0-9_-]){2,}", |c, a| {
            let opens = a.before.is_empty() || a.before.ends_with([' ', '(', '~', '"', ':']);
            let path = group(c, 0)
                .replace('/', " slash ")
                .replace('.', " dot ")
                .replace('-', " dash ");
            opens.then(|| path.trim_start().to_owned())
        }),
        Rule::new(r"\b(Mr|Mrs|Ms|Dr|Prof)\. (and|&|or) ", |c, _| {
            let title = match group(c, 1) {
                "Mr" => "Mister",
                "Mrs" => "Missus",
                "Ms" => "Miss",
                "Dr" => "Doctor",
                _ => "Professor",
            };
            let and = if group(c, 2) == "or" { "or" } else { "and" };
            Some(format!("{title} {and} "))
        }),
    ]
});

/// A number as people say those of houses, rooms and roads: `one twenty three`, `three oh five`, `sixteen hundred`.
fn in_pairs(digits: &str) -> String {
    match digits.len() {
        0..=2 => en_cardinal(digits),
        _ if digits.starts_with('0') => en_digits(digits),
        3 if digits.ends_with("00") => en_cardinal(digits),
        3 => match digits[1..].strip_prefix('0') {
            Some(unit) => format!("{} oh {}", en_digits(&digits[..1]), en_digits(unit)),
            None => format!("{} {}", en_digits(&digits[..1]), en_cardinal(&digits[1..])),
        },
        4 if digits.ends_with("000") => en_cardinal(digits),
        4 if digits.ends_with("00") => format!("{} hundred", en_cardinal(&digits[..2])),
        4 => match digits[2..].strip_prefix('0') {
            Some(unit) => format!("{} oh {}", en_cardinal(&digits[..2]), en_digits(unit)),
            None => format!(
                "{} {}",
                en_cardinal(&digits[..2]),
                en_cardinal(&digits[2..])
            ),
        },
        _ => en_digits(digits),
    }
}

fn direction(letters: &str) -> Option<&'static str> {
    Some(match letters.trim().trim_end_matches('.') {
        "N" => "North",
        "S" => "South",
        "E" => "East",
        "W" => "West",
        "NW" => "Northwest",
        "NE" => "Northeast",
        "SW" => "Southwest",
        "SE" => "Southeast",
        _ => return None,
    })
}

fn address(c: &Captures, around: Around) -> Option<String> {
    if !around.is_free() || around.before.ends_with(['$', '/', '-', ':']) {
        return None;
    }
    let letter = match group(c, 2) {
        "" => String::new(),
        letter => format!(" {letter}"),
    };
    let mut name = group(c, 3).to_owned();
    if let Some((first, rest)) = name.split_once(' ')
        && let Some(direction) = direction(first)
    {
        name = format!("{direction} {rest}");
    }
    let kind = match group(c, 4) {
        "St" => "Street",
        "Ave" => "Avenue",
        "Rd" => "Road",
        "Blvd" => "Boulevard",
        "Dr" => "Drive",
        "Ln" => "Lane",
        "Ct" => "Court",
        "Pl" => "Place",
        "Hwy" => "Highway",
        "Pkwy" => "Parkway",
        "Sq" => "Square",
        kind => kind,
    };
    let quarter = direction(group(c, 6)).map_or(String::new(), |d| format!(" {d}"));
    let ended = group(c, 5) == "." && quarter.is_empty() && around.after.trim().is_empty();
    let stop = if ended { "." } else { "" };
    Some(format!(
        "{}{letter} {name} {kind}{quarter}{stop}",
        in_pairs(group(c, 1))
    ))
}

/// `IL 62704`.
fn state(c: &Captures, around: Around) -> Option<String> {
    const STATES: &str = "AL Alabama,AK Alaska,AZ Arizona,AR Arkansas,CA California,CO Colorado,CT Connecticut,DE Delaware,DC DC,FL Florida,GA Georgia,HI Hawaii,ID Idaho,IL Illinois,IN Indiana,IA Iowa,KS Kansas,KY Kentucky,LA Louisiana,ME Maine,MD Maryland,MA Massachusetts,MI Michigan,MN Minnesota,MS Mississippi,MO Missouri,MT Montana,NE Nebraska,NV Nevada,NH New Hampshire,NJ New Jersey,NM New Mexico,NY New York,NC North Carolina,ND North Dakota,OH Ohio,OK Oklahoma,OR Oregon,PA Pennsylvania,RI Rhode Island,SC South Carolina,SD South Dakota,TN Tennessee,TX Texas,UT Utah,VT Vermont,VA Virginia,WA Washington,WV West Virginia,WI Wisconsin,WY Wyoming";
    let name = STATES
        .split(',')
        .find_map(|s| s.strip_prefix(group(c, 1))?.strip_prefix(' '))?;
    let rest = match group(c, 3) {
        "" => String::new(),
        rest => format!(", {}", en_digits(rest)),
    };
    around
        .is_free()
        .then(|| format!("{name} {}{rest}", en_digits(group(c, 2))))
}

/// `p. 5`, `vol. 3`: the word in full; the number is read later.
fn reference(c: &Captures, _: Around) -> Option<String> {
    let word = match group(c, 1) {
        "p" => "page",
        "pp" => "pages",
        "vol" => "volume",
        "fig" => "figure",
        "ch" => "chapter",
        "sec" => "section",
        "eq" => "equation",
        "para" => "paragraph",
        "no" => "number",
        "Nos" | "nos" => "numbers",
        _ => return None,
    };
    Some(format!("{word} {}", group(c, 2)))
}

fn weekday(name: &str) -> Option<&'static str> {
    const DAYS: [&str; 7] = [
        "Monday",
        "Tuesday",
        "Wednesday",
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
    ];
    DAYS.into_iter().find(|day| day.starts_with(name))
}

/// `2023/24`, `2023-24`: a span of two years; `2023-12`: a month.
fn years(c: &Captures, around: Around) -> Option<String> {
    let (year, end) = (group(c, 1), group(c, 3));
    let number = |s: &str| s.parse::<u32>().ok();
    let more = around
        .after
        .strip_prefix(['-', '/', '–', ':', '.'])
        .is_some_and(starts_number);
    if !around.is_free() || around.before.ends_with(['-', '/', '–', ':']) || more {
        return None;
    }
    if (number(year)? + 1) % 100 == number(end)? {
        let end = match end.strip_prefix('0') {
            Some(unit) => format!("oh {}", en_digits(unit)),
            None => en_cardinal(end),
        };
        Some(format!("{} to {end}", en_year(year)))
    } else if group(c, 2) == "-" {
        Some(format!("{} {}", month_of(end)?, en_year(year)))
    } else {
        None
    }
}

/// `2x4`, `1920x1080`; what an equals sign follows is a product.
fn size(c: &Captures, around: Around) -> Option<String> {
    let product = around.after.trim_start().starts_with('=');
    let touched = around.before.ends_with(['.', ',', '/', '-', '$'])
        || around.after.starts_with(['/', '^'])
        || around.after.strip_prefix('.').is_some_and(starts_number);
    if product || touched {
        return None;
    }
    let sides: Vec<&str> = (1..4)
        .map(|i| group(c, i))
        .filter(|s| !s.is_empty())
        .collect();
    let pixels = sides.iter().all(|s| s.len() >= 3 && !s.contains('.'));
    // With a unit after it, the last side is read later, with that.
    let unit = around.after.trim_start().starts_with(char::is_alphabetic);
    let words: Vec<String> = sides
        .iter()
        .enumerate()
        .map(|(i, side)| match pixels {
            true => in_pairs(side),
            false if unit && i + 1 == sides.len() => (*side).to_owned(),
            false => en_decimal(side),
        })
        .collect();
    Some(words.join(" by "))
}

fn fraction(c: &Captures, around: Around) -> Option<String> {
    let (half, whole) = match group(c, 2) {
        "½" => ("a half", "one half"),
        "⅓" => ("a third", "one third"),
        "⅔" => ("two thirds", "two thirds"),
        "¼" => ("a quarter", "one quarter"),
        "¾" => ("three quarters", "three quarters"),
        "⅛" => ("an eighth", "one eighth"),
        "⅜" => ("three eighths", "three eighths"),
        "⅝" => ("five eighths", "five eighths"),
        _ => ("seven eighths", "seven eighths"),
    };
    let gap = if around.after.starts_with(char::is_alphanumeric) {
        " "
    } else {
        ""
    };
    Some(match group(c, 1) {
        "" => {
            let space = if group(c, 0).starts_with(' ') {
                " "
            } else {
                ""
            };
            format!("{space}{whole}{gap}")
        }
        number => format!("{} and {half}{gap}", en_cardinal(number)),
    })
}

/// `27" monitor`, `7/8"`, `8in`; a quotation mark that closes a quotation is none of them.
fn inches(c: &Captures, around: Around) -> Option<String> {
    let matched = group(c, 0);
    let near = around.before.chars().rev().take(QUOTATION);
    let quotes = near.filter(|c| matches!(c, '"' | '“' | '”')).count();
    let quoted = !matched.ends_with("in") && quotes % 2 == 1;
    let touched = around
        .before
        .ends_with(|x: char| x.is_ascii_alphanumeric() || "./$:'’′-".contains(x));
    if quoted || touched || around.after.starts_with(char::is_alphanumeric) {
        return None;
    }
    let number = group(c, 1);
    let connected = [
        "x ", "and ", "or ", "to ", "in ", "of ", "long", "wide", "tall", "is ", "was ",
    ];
    let noun = around.after.strip_prefix([' ', '-']).is_some_and(|rest| {
        rest.starts_with(|x: char| x.is_ascii_alphabetic())
            && !connected.iter().any(|w| rest.starts_with(w))
    });
    let unit = if noun || number == "1" {
        "inch"
    } else {
        "inches"
    };
    // Fractions are the grammar's.
    let words = if number.contains('/') {
        number.to_owned()
    } else {
        en_decimal(number)
    };
    Some(format!("{words} {unit}"))
}

/// The words of a hashtag in camel case.
fn words_of(tag: &str) -> String {
    let mut out = String::with_capacity(tag.len() + 4);
    let mut previous = '_';
    let mut chars = tag.chars().peekable();
    while let Some(c) = chars.next() {
        let next_lower = chars.peek().is_some_and(|n| n.is_lowercase());
        let word =
            c.is_uppercase() && (previous.is_lowercase() || previous.is_alphabetic() && next_lower);
        let kind = previous.is_alphanumeric() && previous.is_ascii_digit() != c.is_ascii_digit();
        if c == '_' || word || kind {
            out.push(' ');
        }
        if c != '_' {
            out.push(c);
        }
        previous = c;
    }
    out.trim().to_owned()
}
