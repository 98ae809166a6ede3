//! Web addresses and e-mail addresses, read out in any language.

use std::sync::LazyLock;

use regex::Captures;

use super::{Around, Rule, group};
use crate::text::language::Language;
use crate::text::numbers::{en_cardinal, en_digits, ja_digits, zh_digits};

/// The words of a language for the marks of an address.
struct Voice {
    marks: fn(char) -> Option<&'static str>,
    digits: fn(&str) -> String,
    /// Between the words.
    gap: &'static str,
}

static ENGLISH: Voice = Voice {
    marks: |c| {
        Some(match c {
            '.' => "dot",
            '@' => "at",
            '/' => "slash",
            '-' => "dash",
            '_' => "underscore",
            ':' => "colon",
            '?' => "question mark",
            '=' => "equals",
            '&' => "and",
            '#' => "hash",
            '%' => "percent",
            '+' => "plus",
            '~' => "tilde",
            _ => return None,
        })
    },
    digits: |d| {
        if d.len() <= 2 && !d.starts_with('0') {
            en_cardinal(d)
        } else {
            en_digits(d)
        }
    },
    gap: " ",
};

static CHINESE: Voice = Voice {
    marks: |c| {
        Some(match c {
            '.' => "点",
            '@' => "艾特",
            '/' => "斜杠",
            '-' => "杠",
            '_' => "下划线",
            ':' => "冒号",
            '?' => "问号",
            '=' => "等于",
            '&' => "和",
            '#' => "井号",
            '%' => "百分号",
            '+' => "加",
            '~' => "波浪线",
            _ => return None,
        })
    },
    digits: |d| zh_digits(d, false),
    gap: "",
};

static JAPANESE: Voice = Voice {
    marks: |c| {
        Some(match c {
            '.' => "ドット",
            '@' => "アットマーク",
            '/' => "スラッシュ",
            '-' => "ハイフン",
            '_' => "アンダーバー",
            ':' => "コロン",
            '?' => "クエスチョンマーク",
            '=' => "イコール",
            '&' => "アンド",
            '#' => "シャープ",
            '%' => "パーセント",
            '+' => "プラス",
            '~' => "チルダ",
            _ => return None,
        })
    },
    digits: |d| ja_digits(d),
    gap: "",
};

const EMAIL: &str = r"[A-Za-z0-9][A-Za-z0-9._%+-]*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+";
const URL: &str = r"(?i:(?:https?|ftp)://|www\.)[A-Za-z0-9][A-Za-z0-9._~:/?#@!$&'*+,;=%-]*";
const DOMAIN: &str = r"[A-Za-z0-9][A-Za-z0-9-]*(?:\.[A-Za-z0-9-]+)*\.(?:com|org|net|edu|gov|io|ai|cn|jp|uk|dev|app|info|tv|co)(?:/[A-Za-z0-9._~/?#=&%+-]*)?";

static RULES: LazyLock<[Vec<Rule>; 3]> = LazyLock::new(|| {
    let rules = |email, url, domain| {
        vec![
            Rule::new(EMAIL, email),
            Rule::new(URL, url),
            Rule::new(DOMAIN, domain),
        ]
    };
    [
        rules(
            |c, a| address(c, a, &ENGLISH),
            |c, a| address(c, a, &ENGLISH),
            |c, a| domain(c, a, &ENGLISH),
        ),
        rules(
            |c, a| address(c, a, &CHINESE),
            |c, a| address(c, a, &CHINESE),
            |c, a| domain(c, a, &CHINESE),
        ),
        rules(
            |c, a| address(c, a, &JAPANESE),
            |c, a| address(c, a, &JAPANESE),
            |c, a| domain(c, a, &JAPANESE),
        ),
    ]
});

pub(super) fn rules(language: Language) -> &'static [Rule] {
    match language {
        Language::English | Language::Korean | Language::Other => &RULES[0],
        Language::Chinese => &RULES[1],
        Language::Japanese => &RULES[2],
    }
}

fn domain(captures: &Captures, around: Around, voice: &Voice) -> Option<String> {
    let touches = |c: char| c.is_ascii_alphanumeric() || c == '@' || c == '_';
    let inside = around.after.starts_with(touches) || around.before.ends_with(touches);
    let name = group(captures, 0);
    // `3.co` or a sentence that lacks the space after its full stop is no address.
    let real = name.bytes().next().is_some_and(|b| b.is_ascii_alphabetic()) || name.contains("-");
    if inside || !real {
        None
    } else {
        address(captures, around, voice)
    }
}

fn address(captures: &Captures, around: Around, voice: &Voice) -> Option<String> {
    let whole = group(captures, 0);
    let trimmed = whole.trim_end_matches(['.', ',', '?', '!', ';', ':', '\'']);
    let tail = &whole[trimmed.len()..];
    let address = trimmed
        .split_once("://")
        .map_or(trimmed, |(_, rest)| rest)
        .trim_end_matches('/');
    let mut words: Vec<String> = Vec::new();
    let mut rest = address;
    while let Some(c) = rest.chars().next() {
        let same = |x: char| match c {
            '0'..='9' => x.is_ascii_digit(),
            _ => x.is_ascii_alphabetic(),
        };
        let end = if c.is_ascii_alphanumeric() {
            rest.find(|x| !same(x)).unwrap_or(rest.len())
        } else {
            c.len_utf8()
        };
        let (piece, after) = rest.split_at(end);
        rest = after;
        match c {
            '0'..='9' => words.push((voice.digits)(piece)),
            'a'..='z' | 'A'..='Z' => words.push(letters(piece)),
            _ => words.extend((voice.marks)(c).map(String::from)),
        }
    }
    let mut out = words.join(voice.gap);
    if !voice.gap.is_empty() {
        if around.before.ends_with(|c: char| c.is_alphanumeric()) {
            out.insert(0, ' ');
        }
        if tail.is_empty() && around.after.starts_with(|c: char| c.is_alphanumeric()) {
            out.push(' ');
        }
    }
    Some(out + tail)
}

/// `www` is spelled out; anything else is a word.
fn letters(piece: &str) -> String {
    if piece.eq_ignore_ascii_case("www") {
        "WWW".into()
    } else {
        piece.into()
    }
}
