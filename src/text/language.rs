//! Languages, and telling them apart by script.

use std::fmt;
use std::str::FromStr;

/// A language that texts are read in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    Chinese,
    English,
    Japanese,
    Korean,
    /// Any other: split and tokenised, but numbers are read as in English.
    Other,
}

impl Language {
    /// The two-letter code; `und` for [`Language::Other`].
    pub fn code(self) -> &'static str {
        match self {
            Language::Chinese => "zh",
            Language::English => "en",
            Language::Japanese => "ja",
            Language::Korean => "ko",
            Language::Other => "und",
        }
    }

    /// Whether words are written without spaces between them.
    pub(super) fn is_unspaced(self) -> bool {
        matches!(self, Language::Chinese | Language::Japanese)
    }

    /// The language of a text by its scripts: kana mean Japanese, hangul Korean, other Han characters Chinese, Latin letters
    /// English. `None` when it holds no letter at all.
    pub fn detect(text: &str) -> Option<Language> {
        let (mut latin, mut han, mut kana, mut hangul, mut other) = (0usize, 0, 0, 0, 0);
        for c in text.chars() {
            match Script::of(c) {
                Script::Latin => latin += 1,
                Script::Han => han += 1,
                Script::Kana => kana += 1,
                Script::Hangul => hangul += 1,
                Script::Other => other += 1,
                Script::Common => {}
            }
        }
        if kana > 0 && kana * 8 >= han {
            Some(Language::Japanese)
        } else if han > 0 && han >= hangul {
            Some(Language::Chinese)
        } else if hangul > 0 {
            Some(Language::Korean)
        } else if latin > 0 && latin >= other {
            Some(Language::English)
        } else if other > 0 {
            Some(Language::Other)
        } else {
            None
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// A language code that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown language {0:?}: expected zh, en, ja, ko or another language code")]
pub struct UnknownLanguage(pub String);

impl FromStr for Language {
    type Err = UnknownLanguage;

    /// Reads codes as in `zh`, `zh-CN`, `en_US`, `cmn`, `ja`, and the names in English.
    fn from_str(code: &str) -> Result<Self, UnknownLanguage> {
        let lower = code.to_ascii_lowercase();
        let primary = lower.split(['-', '_']).next().unwrap_or_default();
        Ok(match primary {
            "zh" | "cmn" | "yue" | "wuu" | "chinese" | "mandarin" | "cantonese" => {
                Language::Chinese
            }
            "en" | "eng" | "english" => Language::English,
            "ja" | "jp" | "jpn" | "japanese" => Language::Japanese,
            "ko" | "kr" | "kor" | "korean" => Language::Korean,
            other
                if (2..=3).contains(&other.len())
                    && other.bytes().all(|b| b.is_ascii_lowercase()) =>
            {
                Language::Other
            }
            _ => return Err(UnknownLanguage(code.into())),
        })
    }
}

/// The script of one character, as far as languages here are told apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    Latin,
    Han,
    Kana,
    Hangul,
    /// Letters of any other script.
    Other,
    /// Digits, punctuation, symbols, white space.
    Common,
}

impl Script {
    pub(super) fn of(c: char) -> Script {
        match c {
            'a'..='z' | 'A'..='Z' | '\u{c0}'..='\u{24f}' if c.is_alphabetic() => Script::Latin,
            '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{20000}'..='\u{3ffff}'
            | '\u{f900}'..='\u{faff}'
            | '々' => Script::Han,
            '\u{3041}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{ff66}'..='\u{ff9f}'
                if c != '・' && c != '゠' =>
            {
                Script::Kana
            }
            '\u{ac00}'..='\u{d7af}' | '\u{1100}'..='\u{11ff}' | '\u{3130}'..='\u{318f}' => {
                Script::Hangul
            }
            c if c.is_ascii() || !c.is_alphabetic() => Script::Common,
            // Full-width and mathematical Latin letters.
            '\u{ff21}'..='\u{ff5a}' | '\u{1e00}'..='\u{1eff}' => Script::Latin,
            _ => Script::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_tell_languages_apart() {
        let detect = Language::detect;
        assert_eq!(detect("你好 world"), Some(Language::Chinese));
        assert_eq!(detect("日本語のテスト"), Some(Language::Japanese));
        assert_eq!(detect("Hello, world"), Some(Language::English));
        assert_eq!(detect("안녕하세요 3"), Some(Language::Korean));
        assert_eq!(detect("Привет, мир"), Some(Language::Other));
        assert_eq!(detect("déjà vu"), Some(Language::English));
        assert_eq!(detect("3.14 😀 ②"), None);
    }

    #[test]
    fn codes() {
        assert_eq!("zh-CN".parse(), Ok(Language::Chinese));
        assert_eq!("EN_us".parse(), Ok(Language::English));
        assert_eq!("fr".parse(), Ok(Language::Other));
        assert_eq!("".parse::<Language>(), Err(UnknownLanguage(String::new())));
        assert!("klingon".parse::<Language>().is_err());
    }
}
