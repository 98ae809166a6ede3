//! Typed readings of one variable each. Every failure names the variable and what it takes.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::{LogFormat, SettingsError, VARIABLES, Variable};
use crate::engine::Device;

/// Looks values up by name and falls back on the table's default.
pub(super) struct Reader<'a> {
    pub(super) lookup: &'a dyn Fn(&str) -> Option<String>,
}

impl Reader<'_> {
    fn variable(&self, name: &str) -> &'static Variable {
        VARIABLES
            .iter()
            .find(|v| v.name == name)
            .expect("every setting is in the table of variables; this one is not. This is a bug.")
    }

    fn text(&self, name: &str) -> String {
        let value = (self.lookup)(name).unwrap_or_else(|| self.variable(name).default.to_owned());
        value.trim().to_owned()
    }

    fn malformed(&self, name: &str) -> SettingsError {
        let variable = self.variable(name);
        SettingsError::Malformed {
            name: variable.name,
            value: self.text(name),
            expected: variable.values.to_owned(),
        }
    }

    pub(super) fn parsed<T: FromStr>(&self, name: &str) -> Result<T, SettingsError> {
        self.text(name).parse().map_err(|_| self.malformed(name))
    }

    pub(super) fn optional(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|v| !v.is_empty())
    }

    pub(super) fn count(&self, name: &str) -> Result<usize, SettingsError> {
        let n = self.parsed(name)?;
        if n > 0 {
            Ok(n)
        } else {
            Err(self.malformed(name))
        }
    }

    pub(super) fn optional_count(&self, name: &str) -> Result<Option<usize>, SettingsError> {
        self.optional(name).map(|_| self.count(name)).transpose()
    }

    pub(super) fn whole_seconds(&self, name: &str) -> Result<Duration, SettingsError> {
        // Ten years: deadlines made from it stay representable.
        match self.parsed(name)? {
            s @ 1..=315_360_000 => Ok(Duration::from_secs(s)),
            _ => Err(self.malformed(name)),
        }
    }

    pub(super) fn seconds(&self, name: &str, zero: bool) -> Result<Duration, SettingsError> {
        let s: f64 = self.parsed(name)?;
        if (s > 0.0 || zero && s == 0.0) && s <= 1e6 {
            Ok(Duration::from_secs_f64(s))
        } else {
            Err(self.malformed(name))
        }
    }

    pub(super) fn boolean(&self, name: &str) -> Result<bool, SettingsError> {
        match self.text(name).to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(true),
            "false" | "0" | "no" | "off" => Ok(false),
            _ => Err(self.malformed(name)),
        }
    }

    pub(super) fn absolute(&self, name: &str) -> Result<PathBuf, SettingsError> {
        std::path::absolute(self.text(name)).map_err(|_| self.malformed(name))
    }

    fn list(&self, name: &str) -> Vec<String> {
        let text = self.text(name);
        let items = text.split(',').map(str::trim).filter(|s| !s.is_empty());
        items.map(str::to_owned).collect()
    }

    pub(super) fn keys(&self, name: &str) -> Result<Vec<String>, SettingsError> {
        let keys = self.list(name);
        if keys.iter().all(|k| k.bytes().all(|b| b.is_ascii_graphic())) {
            Ok(keys)
        } else {
            Err(self.malformed(name))
        }
    }

    pub(super) fn origins(&self, name: &str) -> Result<Vec<String>, SettingsError> {
        let origins = self.list(name);
        let valid = |o: &String| {
            let rest = o
                .strip_prefix("https://")
                .or_else(|| o.strip_prefix("http://"));
            o == "*" || rest.is_some_and(|r| !r.is_empty() && !r.contains(['/', ' ']))
        };
        if origins.iter().all(valid) {
            Ok(origins)
        } else {
            Err(self.malformed(name))
        }
    }

    pub(super) fn device(&self, name: &str) -> Result<Device, SettingsError> {
        self.text(name).parse().map_err(|_| self.malformed(name))
    }

    pub(super) fn log_level(&self, name: &str) -> Result<String, SettingsError> {
        let text = self.text(name);
        let bare = ["error", "warn", "info", "debug", "trace", "off"];
        let known = |word: &str| bare.contains(&word.to_ascii_lowercase().as_str());
        // A lone word is a level; otherwise every part is `target=level`.
        let valid = text.split(',').all(|part| {
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
            known(level.trim())
        });
        if valid {
            Ok(text)
        } else {
            Err(self.malformed(name))
        }
    }

    pub(super) fn log_format(&self, name: &str) -> Result<LogFormat, SettingsError> {
        match self.text(name).as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(self.malformed(name)),
        }
    }
}
