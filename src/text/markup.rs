//! Markup in a text: pauses, and SSML (read by [`super::ssml`]).
//!
//! In: a request's text. Out: items in order: text with how to read it, pauses, ends of sentences.

use std::time::Duration;

use super::TextError;
use super::language::Language;
use super::say_as::SayAs;
use super::ssml;
use super::tags::Tags;

/// The longest single pause, and the longest sum of pauses.
const MAX_PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSES: Duration = Duration::from_secs(600);

/// The longest `<break …>` of a plain text.
const MAX_BREAK_BYTES: usize = 200;

/// One step of a text with markup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Text {
        text: String,
        language: Option<Language>,
        say_as: Option<SayAs>,
    },
    Pause(Duration),
    /// A sentence or paragraph ends here.
    End,
}

/// Items of `text`, which is SSML when it opens with `<speak`.
///
/// # Errors
/// [`TextError::Pause`] and [`TextError::Ssml`].
pub(super) fn parse(text: &str, tags: &Tags) -> Result<Vec<Item>, TextError> {
    let items = if ssml::is_ssml(text) {
        ssml::parse(text, tags)?
    } else {
        plain(text)?
    };
    let pauses: Duration = items
        .iter()
        .map(|item| match item {
            Item::Pause(duration) => *duration,
            _ => Duration::ZERO,
        })
        .sum();
    if pauses > MAX_PAUSES {
        return Err(pause_error(
            text,
            &format!("all pauses together may last {} s", MAX_PAUSES.as_secs()),
        ));
    }
    Ok(items)
}

fn plain(text: &str) -> Result<Vec<Item>, TextError> {
    let mut items = Vec::new();
    pauses(text, None, None, &mut items)?;
    Ok(items)
}

/// Appends `text`, with its `[pause:…]` and `<break…/>` marks as pauses.
pub(super) fn pauses(
    text: &str,
    language: Option<Language>,
    say_as: Option<SayAs>,
    items: &mut Vec<Item>,
) -> Result<(), TextError> {
    let push = |items: &mut Vec<Item>, text: &str| {
        if !text.is_empty() {
            items.push(Item::Text {
                text: text.into(),
                language,
                say_as: say_as.clone(),
            });
        }
    };
    let (mut start, mut position) = (0, 0);
    while let Some(offset) = text[position..].find(['[', '<']) {
        position += offset;
        match mark(&text[position..])? {
            Some((len, duration)) => {
                push(items, &text[start..position]);
                items.push(Item::Pause(duration));
                position += len;
                start = position;
            }
            None => position += 1,
        }
    }
    push(items, &text[start..]);
    Ok(())
}

/// Length and duration of the pause mark that `text` opens with.
fn mark(text: &str) -> Result<Option<(usize, Duration)>, TextError> {
    let opens = |prefix: &str| {
        text.get(..prefix.len())
            .is_some_and(|p| p.eq_ignore_ascii_case(prefix))
    };
    if opens("[pause:") {
        let end = text
            .find(']')
            .ok_or_else(|| pause_error(text, "the bracket is not closed"))?;
        let duration =
            duration(text["[pause:".len()..end].trim()).map_err(|e| pause_error(text, &e))?;
        return Ok(Some((end + 1, duration)));
    }
    if opens("<break") && text["<break".len()..].starts_with([' ', '/', '>']) {
        let Some(end) = text.bytes().take(MAX_BREAK_BYTES).position(|b| b == b'>') else {
            return Ok(None);
        };
        let duration = ssml::break_duration(&text[..=end])?;
        return Ok(Some((end + 1, duration)));
    }
    Ok(None)
}

/// A duration as in `500ms` or `1.5s`, to the microsecond.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration such as 500ms or 1.5s");
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').ok_or_else(wrong)?, 1.0),
    };
    let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let seconds = number
        .parse::<f64>()
        .ok()
        .filter(|_| plain)
        .ok_or_else(wrong)?
        * unit;
    if seconds > MAX_PAUSE.as_secs_f64() {
        return Err(format!("a pause may last {} s", MAX_PAUSE.as_secs()));
    }
    Ok(Duration::from_micros((seconds * 1e6).round() as u64))
}

fn pause_error(text: &str, reason: &str) -> TextError {
    TextError::Pause {
        found: text.chars().take(40).collect(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Item>, TextError> {
        parse(text, &Tags::default())
    }

    fn said(text: &str) -> Item {
        Item::Text {
            text: text.into(),
            language: None,
            say_as: None,
        }
    }

    #[test]
    fn pauses_cut_the_text() {
        let pause = |ms| Item::Pause(Duration::from_millis(ms));
        assert_eq!(
            parsed("a[pause:500ms]b [PAUSE:1.5s]<break time=\"20ms\"/>[laughter]").unwrap(),
            [
                said("a"),
                pause(500),
                said("b "),
                pause(1500),
                pause(20),
                said("[laughter]")
            ]
        );
        assert_eq!(
            parsed("<breakfast> [paused]").unwrap(),
            [said("<breakfast> [paused]")]
        );
    }

    #[test]
    fn bad_pauses_are_refused() {
        for text in [
            "[pause:1m]",
            "[pause:-1s]",
            "[pause:1e3s]",
            "[pause:11s]",
            "[pause:500ms",
            "[pause:]",
            "[pause:NaNs]",
        ] {
            assert!(
                matches!(parsed(text), Err(TextError::Pause { .. })),
                "{text}"
            );
        }
        assert!(matches!(
            parsed(&"[pause:10s]".repeat(61)),
            Err(TextError::Pause { .. })
        ));
    }
}
