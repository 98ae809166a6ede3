//! The SSML subset: `speak p s break sub say-as lang`; anything else is an error that names it.
//!
//! In: a document of one `<speak>` element. Out: items as of [`super::markup`]. No document type, no entities beyond XML's own five
//! and numeric ones; depth and number of elements are bounded.
//! Reference: W3C Speech Synthesis Markup Language 1.1.

use std::time::Duration;

use super::TextError;
use super::language::Language;
use super::markup::{self, Item};
use super::say_as::SayAs;
use super::tags::Tags;

const MAX_DEPTH: usize = 16;
const MAX_ELEMENTS: usize = 20_000;

/// Whether `text` is meant as SSML.
pub(super) fn is_ssml(text: &str) -> bool {
    let text = text.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']);
    let open = |t: &str| {
        t.strip_prefix("<speak")
            .is_some_and(|r| r.starts_with([' ', '>', '/', '\n', '\t', '\r']))
    };
    open(text) || text.starts_with("<?xml") || text.starts_with("<!DOCTYPE")
}

/// What holds inside an element.
#[derive(Clone, Debug)]
struct Context {
    element: &'static str,
    language: Option<Language>,
    say_as: Option<SayAs>,
    /// Inside `sub`, whose text is not spoken.
    silent: bool,
}

/// The elements that are known.
const ELEMENTS: [&str; 7] = ["speak", "p", "s", "break", "sub", "say-as", "lang"];

struct Parser<'a> {
    text: &'a str,
    position: usize,
    tags: &'a Tags,
    stack: Vec<Context>,
    items: Vec<Item>,
    /// Text since the last element.
    pending: String,
    elements: usize,
}

/// Items of an SSML document.
///
/// # Errors
/// [`TextError::Ssml`] with the byte offset and what is wrong there; [`TextError::Pause`].
pub(super) fn parse(text: &str, tags: &Tags) -> Result<Vec<Item>, TextError> {
    let mut parser = Parser {
        text,
        position: 0,
        tags,
        stack: Vec::new(),
        items: Vec::new(),
        pending: String::new(),
        elements: 0,
    };
    while parser.position < text.len() {
        parser.step()?;
    }
    match parser.stack.last() {
        Some(open) => Err(parser.error(format!("<{}> is not closed", open.element))),
        None if parser.elements == 0 => Err(parser.error("there is no <speak> element")),
        None => Ok(parser.items),
    }
}

/// The duration of a `<break …/>` that stands in plain text.
pub(super) fn break_duration(element: &str) -> Result<Duration, TextError> {
    let error = |reason: String| TextError::Ssml { offset: 0, reason };
    let inside = element
        .strip_prefix('<')
        .and_then(|e| e.strip_suffix('>'))
        .map_or(element, |e| e.trim_end_matches('/'));
    let (name, attributes) = tag(inside).map_err(error)?;
    pause(name, &attributes).map_err(error)
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    fn error(&self, reason: impl Into<String>) -> TextError {
        TextError::Ssml {
            offset: self.position,
            reason: reason.into(),
        }
    }

    fn step(&mut self) -> Result<(), TextError> {
        let rest = self.rest();
        if let Some(known) = self.tags.at(rest) {
            self.pending.push_str(known);
            self.position += known.len();
        } else if let Some(after) = rest.strip_prefix("<!--") {
            let end = after
                .find("-->")
                .ok_or_else(|| self.error("a comment is not closed"))?;
            self.position += end + "<!---->".len();
        } else if rest.starts_with("<?xml") && self.stack.is_empty() && self.elements == 0 {
            let end = rest
                .find("?>")
                .ok_or_else(|| self.error("the XML declaration is not closed"))?;
            self.position += end + 2;
        } else if rest.starts_with("<!") || rest.starts_with("<?") {
            return Err(
                self.error("document types, CDATA and processing instructions are not allowed")
            );
        } else if rest.starts_with('<') {
            let end = closing_bracket(rest).ok_or_else(|| self.error("a tag is not closed"))?;
            self.element(&rest[1..end])?;
            self.position += end + 1;
        } else if rest.starts_with('&') {
            let (c, len) =
                reference(rest).ok_or_else(|| self.error("an unknown or malformed entity"))?;
            self.pending.push(c);
            self.position += len;
        } else {
            let first = rest.chars().next().map_or(1, char::len_utf8);
            let end = rest[first..]
                .find(['<', '&', '['])
                .map_or(rest.len(), |e| e + first);
            self.characters(&rest[..end])?;
            self.position += end;
        }
        Ok(())
    }

    fn characters(&mut self, text: &str) -> Result<(), TextError> {
        if self.stack.is_empty()
            && !text
                .trim_matches(['\u{feff}', ' ', '\n', '\r', '\t'])
                .is_empty()
        {
            return Err(self.error("text outside <speak>"));
        }
        self.pending.push_str(text);
        Ok(())
    }

    /// Moves the text since the last element to the items. Line breaks in a document are mere spaces.
    fn flush(&mut self) -> Result<(), TextError> {
        let text = std::mem::take(&mut self.pending).replace(['\n', '\r', '\t'], " ");
        match self.stack.last() {
            Some(context) if !context.silent && !text.is_empty() => markup::pauses(
                &text,
                context.language,
                context.say_as.clone(),
                &mut self.items,
            ),
            _ => Ok(()),
        }
    }

    fn element(&mut self, inside: &str) -> Result<(), TextError> {
        self.flush()?;
        self.elements += 1;
        if self.elements > MAX_ELEMENTS {
            return Err(self.error(format!("more than {MAX_ELEMENTS} elements")));
        }
        if let Some(name) = inside.strip_prefix('/') {
            return self.close(name.trim());
        }
        let empty = inside.ends_with('/');
        let (name, attributes) = tag(inside.trim_end_matches('/')).map_err(|e| self.error(e))?;
        let name = ELEMENTS
            .into_iter()
            .find(|e| *e == name)
            .ok_or_else(|| self.error(format!("the element <{}> is not supported", shown(name))))?;
        self.open(name, &attributes)?;
        if empty { self.close(name) } else { Ok(()) }
    }

    fn open(&mut self, name: &'static str, attributes: &[(&str, String)]) -> Result<(), TextError> {
        if (name == "speak") != self.stack.is_empty() || (name == "speak" && self.elements > 1) {
            return Err(self.error("there must be one <speak> element around everything"));
        }
        if self.stack.len() >= MAX_DEPTH {
            return Err(self.error(format!("elements are nested more than {MAX_DEPTH} deep")));
        }
        if self
            .stack
            .last()
            .is_some_and(|c| matches!(c.element, "break" | "sub" | "say-as"))
        {
            return Err(self.error(format!(
                "<{name}> may not stand inside <{}>",
                self.stack[self.stack.len() - 1].element
            )));
        }
        let outer = self.stack.last();
        let mut context = Context {
            element: name,
            language: outer.and_then(|c| c.language),
            say_as: None,
            silent: outer.is_some_and(|c| c.silent),
        };
        self.read_attributes(&mut context, attributes)?;
        if matches!(name, "p" | "s") {
            self.items.push(Item::End);
        }
        self.stack.push(context);
        Ok(())
    }

    fn read_attributes(
        &mut self,
        context: &mut Context,
        attributes: &[(&str, String)],
    ) -> Result<(), TextError> {
        let value = |key: &str| {
            attributes
                .iter()
                .find(|(k, _)| *k == key)
                .map(|(_, v)| v.as_str())
        };
        if let Some(code) = value("xml:lang") {
            context.language = Some(code.parse().map_err(|e| self.error(format!("{e}")))?);
        }
        let allowed: &[&str] = match context.element {
            "break" => &["time", "strength"],
            "sub" => &["alias"],
            "say-as" => &["interpret-as", "format", "detail"],
            "lang" => &["onlangfailure"],
            "speak" => &["version", "xmlns", "xmlns:xsi", "xsi:schemaLocation"],
            _ => &[],
        };
        if let Some((key, _)) = attributes
            .iter()
            .find(|(k, _)| *k != "xml:lang" && !allowed.contains(k))
        {
            return Err(self.error(format!(
                "<{}> has no attribute {:?} here",
                context.element,
                shown(key)
            )));
        }
        match context.element {
            "break" => {
                let duration = pause("break", attributes).map_err(|e| self.error(e))?;
                self.items.push(Item::Pause(duration));
                context.silent = true;
            }
            "sub" => {
                let alias =
                    value("alias").ok_or_else(|| self.error("<sub> needs the attribute alias"))?;
                let text = format!(" {} ", alias.trim());
                self.items.push(Item::Text {
                    text,
                    language: context.language,
                    say_as: None,
                });
                context.silent = true;
            }
            "say-as" => {
                let kind = value("interpret-as")
                    .ok_or_else(|| self.error("<say-as> needs the attribute interpret-as"))?;
                let say_as = SayAs::new(kind, value("format").unwrap_or_default());
                context.say_as = Some(say_as.ok_or_else(|| {
                    self.error(format!("say-as cannot interpret as {:?}", shown(kind)))
                })?);
            }
            "lang" if context.language.is_none() => {
                return Err(self.error("<lang> needs the attribute xml:lang"));
            }
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, name: &str) -> Result<(), TextError> {
        let open = self.stack.last().map(|c| c.element);
        if open != Some(name) {
            let expected = open.map_or("nothing".into(), |o| format!("</{o}>"));
            return Err(self.error(format!(
                "</{}> closes where {expected} is expected",
                shown(name)
            )));
        }
        self.stack.pop();
        if matches!(name, "p" | "s") {
            self.items.push(Item::End);
        }
        Ok(())
    }
}

/// A name cut to a length fit for a message.
fn shown(name: &str) -> String {
    name.chars().take(32).collect()
}

/// Where the tag that `text` opens with ends; quotes may hold brackets.
fn closing_bracket(text: &str) -> Option<usize> {
    let mut quote = None;
    text.char_indices().find_map(|(i, c)| {
        match quote {
            Some(q) if q == c => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c == '>' => return Some(i),
            _ => {}
        }
        None
    })
}

type Tag<'a> = (&'a str, Vec<(&'a str, String)>);

/// Name and attributes of the inside of a tag.
fn tag(inside: &str) -> Result<Tag<'_>, String> {
    let inside = inside.trim();
    let end = inside.find(char::is_whitespace).unwrap_or(inside.len());
    let (name, mut rest) = inside.split_at(end);
    let mut attributes: Vec<(&str, String)> = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok((name, attributes));
        }
        let malformed = || format!("the attributes of <{}> are malformed", shown(name));
        let (key, after) = rest.split_once('=').ok_or_else(malformed)?;
        let after = after.trim_start();
        let quote = after
            .chars()
            .next()
            .filter(|c| matches!(c, '"' | '\''))
            .ok_or_else(malformed)?;
        let (value, tail) = after[1..].split_once(quote).ok_or_else(malformed)?;
        let key = key.trim();
        if key.is_empty()
            || key.contains(char::is_whitespace)
            || attributes.iter().any(|(k, _)| *k == key)
        {
            return Err(malformed());
        }
        attributes.push((key, unescaped(value).ok_or_else(malformed)?));
        rest = tail;
    }
}

fn unescaped(value: &str) -> Option<String> {
    let mut out = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        let (c, len) = reference(&rest[at..])?;
        out.push(c);
        rest = &rest[at + len..];
    }
    out.push_str(rest);
    Some(out)
}

/// The character of the entity or character reference that `text` opens with, and its length.
fn reference(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(12).position(|b| b == b';')?;
    let c = match &text[1..end] {
        "amp" => '&',
        "lt" => '<',
        "gt" => '>',
        "quot" => '"',
        "apos" => '\'',
        number => {
            let number = number.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code).filter(|c| !c.is_control() || c.is_whitespace())?
        }
    };
    Some((c, end + 1))
}

fn pause(name: &str, attributes: &[(&str, String)]) -> Result<Duration, String> {
    let value = |key: &str| {
        attributes
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v.trim())
    };
    if let Some((key, _)) = attributes
        .iter()
        .find(|(k, _)| !matches!(*k, "time" | "strength" | "xml:lang"))
    {
        return Err(format!("<{name}> has no attribute {:?}", shown(key)));
    }
    if let Some(time) = value("time") {
        return markup::duration(time);
    }
    let milliseconds = match value("strength").unwrap_or("medium") {
        "none" => 0,
        "x-weak" => 100,
        "weak" => 200,
        "medium" => 400,
        "strong" => 700,
        "x-strong" => 1000,
        other => return Err(format!("a break has no strength {:?}", shown(other))),
    };
    Ok(Duration::from_millis(milliseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<Item>, TextError> {
        parse(text, &Tags::default())
    }

    fn said(text: &str, language: Option<Language>) -> Item {
        Item::Text {
            text: text.into(),
            language,
            say_as: None,
        }
    }

    fn refused(text: &str) -> String {
        match parsed(text) {
            Err(TextError::Ssml { reason, .. }) => reason,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn the_subset_is_read() {
        let items = parsed(
            "<?xml version=\"1.0\"?><speak version='1.1' xml:lang=\"en-US\"><p>A &amp; B<break time=\"300ms\"/>\
             <sub alias=\"World Health Organization\">WHO</sub></p><lang xml:lang=\"zh\">你好</lang><!-- x --></speak>\n",
        )
        .unwrap();
        let en = Some(Language::English);
        assert_eq!(
            items,
            [
                Item::End,
                said("A & B", en),
                Item::Pause(Duration::from_millis(300)),
                said(" World Health Organization ", en),
                Item::End,
                said("你好", Some(Language::Chinese)),
            ]
        );
    }

    #[test]
    fn what_is_not_supported_is_named() {
        assert!(refused("<speak><prosody rate='slow'>x</prosody></speak>").contains("<prosody>"));
        assert!(
            refused("<speak><say-as interpret-as='magic'>x</say-as></speak>").contains("magic")
        );
        assert!(refused("<speak><break foo='1'/></speak>").contains("foo"));
        assert!(
            refused("<!DOCTYPE x [<!ENTITY a 'b'>]><speak>&a;</speak>").contains("document types")
        );
        assert!(refused("<speak>&unknown;</speak>").contains("entity"));
        assert!(refused("<speak><p>x</speak>").contains("</p>"));
        assert!(refused("<speak>x").contains("not closed"));
        assert!(refused("<speak>a</speak><speak>b</speak>").contains("one <speak>"));
        assert!(refused("<speak>a</speak> tail").contains("outside"));
        let deep = format!("<speak>{}x{}</speak>", "<p>".repeat(20), "</p>".repeat(20));
        assert!(refused(&deep).contains("deep"));
    }
}
