//! Emoji are dropped, lone symbols get names, spaces are tidied.

use crate::text::language::Language;

/// Whether `c` is drawn as a picture, or is part of one.
fn is_emoji(c: char) -> bool {
    matches!(c,
        '\u{1f000}'..='\u{1faff}' | '\u{2600}'..='\u{27bf}' | '\u{2b00}'..='\u{2bff}' | '\u{2300}'..='\u{23ff}'
        | '\u{fe0f}' | '\u{20e3}' | '\u{200d}' | '\u{e0020}'..='\u{e007f}' | '\u{3030}' | '\u{303d}')
}

/// `text` without emoji; words that only an emoji kept apart stay apart.
pub(super) fn without_emoji(text: &str) -> String {
    // Digits in circles and with commas are numbers.
    let dropped =
        |c: char| is_emoji(c) && !matches!(c, '\u{2776}'..='\u{2793}' | '\u{1f100}'..='\u{1f10c}');
    if !text.contains(dropped) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if !dropped(c) {
            out.push(c);
            continue;
        }
        while chars.next_if(|&c| dropped(c)).is_some() {}
        let between_words = out.ends_with(|c: char| c.is_alphanumeric())
            && chars.peek().is_some_and(|c| c.is_alphanumeric());
        if between_words {
            out.push(' ');
        }
    }
    out
}

/// The spoken name of a symbol that stands in running text.
fn name(symbol: char, language: Language) -> Option<&'static str> {
    let names = match symbol {
        '&' | '＆' => ["and", "和", "アンド"],
        '@' | '＠' => ["at", "艾特", "アットマーク"],
        '%' | '％' => ["percent", "百分之", "パーセント"],
        '‰' => ["per mille", "千分之", "パーミル"],
        '+' | '＋' => ["plus", "加", "プラス"],
        '=' | '＝' => ["equals", "等于", "イコール"],
        '×' | '✕' => ["times", "乘以", "かける"],
        '÷' => ["divided by", "除以", "わる"],
        '±' => ["plus or minus", "正负", "プラスマイナス"],
        '≥' | '≧' => ["greater than or equal to", "大于等于", "以上"],
        '≤' | '≦' => ["less than or equal to", "小于等于", "以下"],
        '≠' => ["not equal to", "不等于", "ノットイコール"],
        '≈' | '≒' => ["approximately", "约等于", "ニアリーイコール"],
        '>' | '＞' => ["greater than", "大于", "大なり"],
        '<' | '＜' => ["less than", "小于", "小なり"],
        '∞' => ["infinity", "无穷大", "無限大"],
        '√' => ["the square root of", "根号", "ルート"],
        '∑' => ["the sum of", "求和", "シグマ"],
        'π' => ["pi", "派", "パイ"],
        '°' => ["degrees", "度", "度"],
        '℃' => ["degrees Celsius", "摄氏度", "度"],
        '℉' => ["degrees Fahrenheit", "华氏度", "華氏"],
        '²' => ["squared", "平方", "の二乗"],
        '³' => ["cubed", "立方", "の三乗"],
        '$' | '＄' => ["dollars", "美元", "ドル"],
        '€' => ["euros", "欧元", "ユーロ"],
        '£' => ["pounds", "英镑", "ポンド"],
        '¥' | '￥' => ["yuan", "元", "円"],
        '→' => ["to", "到", "から"],
        '©' => ["copyright", "版权", "コピーライト"],
        '§' => ["section", "第", "セクション"],
        '№' => ["number", "第", "ナンバー"],
        '㎡' => ["square meters", "平方米", "平方メートル"],
        '㎏' => ["kilograms", "千克", "キログラム"],
        '㎞' => ["kilometers", "千米", "キロメートル"],
        '㎝' => ["centimeters", "厘米", "センチメートル"],
        '㎜' => ["millimeters", "毫米", "ミリメートル"],
        _ => return None,
    };
    Some(
        names[match language {
            Language::Chinese => 1,
            Language::Japanese => 2,
            Language::English | Language::Korean | Language::Other => 0,
        }],
    )
}

/// Symbols without any sound.
fn is_silent(c: char) -> bool {
    matches!(
        c,
        '*' | '_'
            | '|'
            | '\\'
            | '^'
            | '`'
            | '~'
            | '{'
            | '}'
            | '•'
            | '·'
            | '■'
            | '□'
            | '▪'
            | '●'
            | '○'
            | '◆'
            | '◇'
            | '★'
            | '☆'
            | '™'
            | '®'
            | '¶'
            | '†'
            | '‡'
            | '│'
            | '─'
            | '#'
            | '\u{200b}'
            | '\u{feff}'
            | '\u{ad}'
            | '←'
            | '↑'
            | '↓'
    )
}

/// `text` with its symbols named or dropped.
pub(super) fn named(text: &str, language: Language) -> String {
    let known = |c: char| {
        !c.is_alphanumeric() && (is_silent(c) || name(c, language).is_some())
            || matches!(c, '²' | '³' | 'π')
    };
    if !text.contains(known) {
        return text.to_owned();
    }
    let spaced = !language.is_unspaced();
    let mut out = String::with_capacity(text.len() + 16);
    for (i, c) in text.char_indices() {
        if !known(c) || is_quoted_tag(text, i) {
            out.push(c);
        } else if let Some(words) = name(c, language) {
            if spaced && !out.is_empty() && !out.ends_with(char::is_whitespace) {
                out.push(' ');
            }
            out.push_str(words);
            if spaced {
                out.push(' ');
            }
        } else if c != '\u{ad}' && c != '\u{200b}' && c != '\u{feff}' {
            out.push(' ');
        }
    }
    out
}

/// The longest element name that stays as written, in bytes.
const MAX_ELEMENT: usize = 40;

/// Whether the angle bracket at `i` opens or closes something that looks like a markup element, which stays as written.
fn is_quoted_tag(text: &str, i: usize) -> bool {
    let element = |inside: &[u8]| {
        !inside.is_empty()
            && inside
                .iter()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'/' | b'-'))
            && !inside[0].is_ascii_digit()
    };
    let bytes = text.as_bytes();
    match bytes[i] {
        b'<' => {
            let near = &bytes[i + 1..bytes.len().min(i + 1 + MAX_ELEMENT)];
            let end = near.iter().position(|&b| b == b'>');
            end.is_some_and(|end| element(&near[..end]))
        }
        b'>' => {
            let near = &bytes[i.saturating_sub(MAX_ELEMENT)..i];
            let start = near.iter().rposition(|&b| b == b'<');
            start.is_some_and(|start| element(&near[start + 1..]))
        }
        _ => false,
    }
}

/// One space at most, none before a closing mark or between characters of scripts without spaces.
pub(in crate::text) fn tidy(text: &str) -> String {
    let closing = |c: char| {
        matches!(
            c,
            ',' | '.'
                | '!'
                | '?'
                | ';'
                | '，'
                | '。'
                | '！'
                | '？'
                | '；'
                | '：'
                | '、'
                | '）'
                | '%'
        )
    };
    let mut out = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars() {
        if c == ' ' || c == '\u{a0}' || c == '\u{3000}' || c == '\t' {
            gap = true;
            continue;
        }
        let wide = |c: char| c >= '\u{2e80}' && c.is_alphabetic();
        let drop = closing(c)
            || out.is_empty()
            || out.chars().next_back().is_some_and(|last| {
                last.is_whitespace()
                    || (!last.is_ascii() && closing(last))
                    || (wide(last) && wide(c))
            });
        if gap && !drop {
            out.push(' ');
        }
        gap = false;
        out.push(c);
    }
    out
}
