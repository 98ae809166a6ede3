//! Typed readings of a body's fields and of query parameters. Every fault is collected, so that one answer names them all.

use std::collections::BTreeMap;

use bytes::Bytes;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::body::{Field, Fields};
use super::error::ApiError;
use super::urlencoded;

/// Reads fields and keeps what is wrong with them.
pub(super) struct Reader {
    fields: Fields,
    faults: Vec<(String, String)>,
}

impl Reader {
    pub(super) fn new(fields: Fields) -> Self {
        Self {
            fields,
            faults: Vec::new(),
        }
    }

    /// Reads a query string; its values are text as those of forms. A name given twice is a fault, and an empty value is an empty text
    /// and no number or word: unlike a form, a query does not have to name what it leaves out.
    pub(super) fn of_query(query: Option<&str>) -> Self {
        let mut reader = Self::new(Fields::new());
        for (name, value) in urlencoded::pairs(query.unwrap_or_default().as_bytes()) {
            let name = String::from_utf8_lossy(&name).into_owned();
            let field = match value.is_empty() {
                true => Field::Json(Value::String(String::new())),
                false => Field::Form {
                    bytes: value.into(),
                    file_name: None,
                },
            };
            if reader.fields.insert(name.clone(), field).is_some() {
                reader.fault(&name, "is given more than once");
            }
        }
        reader
    }

    pub(super) fn fault(&mut self, name: &str, message: impl Into<String>) {
        self.faults.push((name.to_owned(), message.into()));
    }

    /// Whether the field is there and not null.
    pub(super) fn has(&self, name: &str) -> bool {
        let found = self.fields.get(name);
        found.is_some_and(|f| !matches!(f, Field::Json(Value::Null)))
    }

    /// The text of a field; an absent, null or (in forms) empty one is `None`.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let text = match self.fields.get(name)? {
            Field::Json(Value::Null) => return None,
            Field::Json(Value::String(text)) => Ok(text.clone()),
            Field::Json(_) => Err("must be a string"),
            Field::Form { bytes, .. } => match std::str::from_utf8(bytes) {
                Ok("") => return None,
                Ok(text) => Ok(text.to_owned()),
                Err(_) => Err("must be UTF-8"),
            },
        };
        match text {
            Ok(text) if text.chars().any(is_forbidden) => {
                self.fault(name, "must not hold control characters");
                None
            }
            Ok(text) => Some(text),
            Err(message) => {
                self.fault(name, message);
                None
            }
        }
    }

    /// Text that must be there, of 1 to `max` characters that are not all white space.
    pub(super) fn required_text(&mut self, name: &str, max: usize) -> String {
        let faults = self.faults.len();
        let text = self.text(name).unwrap_or_default();
        if self.faults.len() > faults {
            return text;
        }
        if text.trim().is_empty() {
            let there = self.has(name);
            self.fault(
                name,
                if there {
                    "must not be empty"
                } else {
                    "is required"
                },
            );
        }
        self.bounded(name, text, max)
    }

    /// Text of at most `max` characters.
    pub(super) fn optional_text(&mut self, name: &str, max: usize) -> Option<String> {
        let text = self.text(name)?;
        Some(self.bounded(name, text, max))
    }

    fn bounded(&mut self, name: &str, text: String, max: usize) -> String {
        // Bytes first: counting the characters of megabytes is not free.
        if text.len() > max && text.chars().nth(max).is_some() {
            self.fault(name, format!("must have at most {max} characters"));
        }
        text
    }

    /// A number in a closed range.
    pub(super) fn number(&mut self, name: &str, min: f64, max: f64, default: f64) -> f64 {
        let number = match self.fields.get(name) {
            None | Some(Field::Json(Value::Null)) => return default,
            Some(Field::Json(value)) => value.as_f64(),
            Some(Field::Form { bytes, .. }) if bytes.is_empty() => return default,
            Some(Field::Form { bytes, .. }) => parse(bytes),
        };
        match number {
            Some(x) if (min..=max).contains(&x) => x,
            Some(_) => {
                self.fault(name, format!("must be from {min} to {max}"));
                default
            }
            None => {
                self.fault(name, "must be a number");
                default
            }
        }
    }

    /// A whole number in a closed range.
    pub(super) fn integer(&mut self, name: &str, min: u64, max: u64) -> Option<u64> {
        let number = match self.fields.get(name)? {
            Field::Json(Value::Null) => return None,
            Field::Json(value) => {
                // 1.0 is an integer in JSON Schema.
                let whole = value
                    .as_f64()
                    .filter(|x| x.fract() == 0.0 && (0.0..=max as f64).contains(x));
                value.as_u64().or(whole.map(|x| x as u64))
            }
            Field::Form { bytes, .. } if bytes.is_empty() => return None,
            Field::Form { bytes, .. } => parse(bytes),
        };
        let valid = number.filter(|n| (min..=max).contains(n));
        if valid.is_none() {
            self.fault(name, format!("must be a whole number from {min} to {max}"));
        }
        valid
    }

    pub(super) fn boolean(&mut self, name: &str) -> bool {
        let value = match self.fields.get(name) {
            None | Some(Field::Json(Value::Null)) => return false,
            Some(Field::Json(value)) => value.as_bool(),
            Some(Field::Form { bytes, .. }) => match bytes.to_ascii_lowercase().as_slice() {
                b"true" | b"1" | b"yes" | b"on" => Some(true),
                b"" | b"false" | b"0" | b"no" | b"off" => Some(false),
                _ => None,
            },
        };
        if value.is_none() {
            self.fault(name, "must be true or false");
        }
        value.unwrap_or(false)
    }

    /// One of some words, read by `parse`.
    pub(super) fn choice<T>(
        &mut self,
        name: &str,
        default: T,
        words: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> T {
        let Some(text) = self.text(name) else {
            return default;
        };
        match parse(&text) {
            Some(value) => value,
            None => {
                self.fault(name, format!("must be one of {words}"));
                default
            }
        }
    }

    /// A file: a part of a form, or base64 (also as a data URL) in JSON and URL-encoded forms.
    pub(super) fn file(&mut self, name: &str) -> Option<Bytes> {
        let (text, raw) = match self.fields.get(name)? {
            Field::Json(Value::Null) => return None,
            Field::Json(Value::String(text)) => (text.as_str(), None),
            Field::Json(_) => {
                self.fault(name, "must be a file in base64");
                return None;
            }
            Field::Form {
                bytes,
                file_name: None,
            } if bytes.is_empty() => return None,
            Field::Form { bytes, .. } => ("", Some(bytes.clone())),
        };
        if raw.is_some() {
            return raw;
        }
        let encoded = match text.split_once(";base64,") {
            Some((head, rest)) if head.starts_with("data:") => rest,
            _ => text,
        };
        match crate::tasks::unbase64(encoded.trim()) {
            Some(bytes) => Some(bytes.into()),
            None => {
                self.fault(name, "must be a file in base64");
                None
            }
        }
    }

    /// Word → replacement: an object in JSON, the same as text in forms.
    pub(super) fn dictionary(&mut self, name: &str, max: usize) -> BTreeMap<String, String> {
        let value = match self.fields.get(name) {
            None | Some(Field::Json(Value::Null)) => return BTreeMap::new(),
            Some(Field::Json(value)) => serde_json::from_value(value.clone()).ok(),
            Some(Field::Form { bytes, .. }) if bytes.is_empty() => return BTreeMap::new(),
            Some(Field::Form { bytes, .. }) => serde_json::from_slice(bytes).ok(),
        };
        let clean = |m: &BTreeMap<String, String>| {
            let short = |s: &str| s.chars().count() <= 100 && !s.chars().any(is_forbidden);
            m.len() <= max
                && m.iter()
                    .all(|(k, v)| !k.trim().is_empty() && short(k) && short(v))
        };
        let valid = value.filter(clean);
        if valid.is_none() {
            let message =
                format!("must map at most {max} words to words of at most 100 characters");
            self.fault(name, message);
        }
        valid.unwrap_or_default()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// 422 with every fault.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        if self.faults.is_empty() {
            return Ok(());
        }
        let sentences: Vec<String> = self
            .faults
            .iter()
            .map(|(f, m)| format!("{f} {m}"))
            .collect();
        let errors: Vec<Value> = self
            .faults
            .iter()
            .map(|(field, message)| json!({"field": field, "message": message}))
            .collect();
        Err(ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "validation_error",
            sentences.join("; "),
        )
        .details(json!({"errors": errors})))
    }
}

fn parse<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    std::str::from_utf8(bytes).ok()?.trim().parse().ok()
}

/// Control characters other than tab and line ends, which people type.
fn is_forbidden(c: char) -> bool {
    c.is_control() && !matches!(c, '\t' | '\n' | '\r')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_reader(value: Value) -> Reader {
        let Value::Object(map) = value else {
            unreachable!("tests give objects")
        };
        Reader::new(map.into_iter().map(|(k, v)| (k, Field::Json(v))).collect())
    }

    #[test]
    fn every_fault_is_named() {
        let mut r = json_reader(
            json!({"text": 3, "speed": 9.0, "seed": -1, "stream": "yes", "note": "a\u{0}b"}),
        );
        r.required_text("text", 10);
        r.required_text("voice_id", 10);
        r.number("speed", 0.5, 2.0, 1.0);
        r.integer("seed", 0, 10);
        r.boolean("stream");
        r.optional_text("note", 10);
        let error = r.finish().unwrap_err();
        let fields: Vec<&str> = error.details["errors"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["field"].as_str().unwrap())
            .collect();
        assert_eq!(
            fields,
            ["text", "voice_id", "speed", "seed", "stream", "note"]
        );
    }

    #[test]
    fn forms_carry_numbers_as_text() {
        let mut r = Reader::of_query(Some("speed=1.5&seed=7&stream=on&text=%20hi&bad=nan"));
        assert_eq!(r.number("speed", 0.5, 2.0, 1.0), 1.5);
        assert_eq!(r.integer("seed", 0, 10), Some(7));
        assert!(r.boolean("stream"));
        assert_eq!(r.required_text("text", 3), " hi");
        assert!(r.faults.is_empty());
        r.number("bad", 0.0, 1.0, 0.0);
        assert_eq!(r.faults.len(), 1);
    }

    #[test]
    fn an_empty_value_in_a_query_is_neither_a_number_nor_a_word() {
        let mut r = Reader::of_query(Some("limit=&status=&note="));
        assert_eq!(r.optional_text("note", 3).as_deref(), Some(""));
        assert!(r.faults.is_empty());
        r.integer("limit", 1, 10);
        r.choice("status", 0, "a", |_| None);
        assert_eq!(r.faults.len(), 2);
    }

    #[test]
    fn whole_floats_are_integers_and_nulls_are_absent() {
        let mut r = json_reader(json!({"a": 3.0, "b": 3.5, "c": null, "d": 1e300}));
        assert_eq!(
            (r.integer("a", 0, 9), r.integer("c", 0, 9)),
            (Some(3), None)
        );
        assert!(r.faults.is_empty());
        assert_eq!((r.integer("b", 0, 9), r.integer("d", 0, 9)), (None, None));
        assert_eq!(r.faults.len(), 2);
    }
}
