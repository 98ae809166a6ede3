//! Settings: flags, then the environment, then `.env`, validated once at start.
//!
//! [`Flags`] is what was typed (strings, a `clap` argument group made from [`VARIABLES`]); [`Settings`] is what the program
//! works with. [`Settings::load`] is the only way from one to the other, and every error names its variable.

mod parse;
mod variables;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use crate::engine::Device;
use parse::Reader;
pub use variables::{VARIABLES, Variable, documentation};

/// The settings typed as flags.
#[derive(Clone, Debug, Default)]
pub struct Flags(HashMap<String, String>);

const LOG_LEVEL: &str = "LOG_LEVEL";

impl Flags {
    /// The flag that all commands share.
    pub fn set_log_level(&mut self, level: String) {
        self.0.insert(LOG_LEVEL.to_owned(), level);
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for v in VARIABLES {
            if let Ok(Some(value)) = matches.try_get_one::<String>(v.name) {
                self.0.insert(v.name.to_owned(), value.clone());
            }
        }
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        // The level of logs is a flag of every command.
        let own = VARIABLES.iter().filter(|v| v.name != LOG_LEVEL);
        own.fold(command, |command, v| {
            let default = match v.default {
                "" => String::new(),
                text => format!(", default {text}"),
            };
            command.arg(
                Arg::new(v.name)
                    .long(v.flag)
                    .value_name("VALUE")
                    .help(format!(
                        "{} [{}{default}; env {}]",
                        v.help, v.values, v.name
                    )),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// A setting that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{name}: `{value}` is not {expected}")]
    Malformed {
        name: &'static str,
        value: String,
        expected: String,
    },
    #[error(".env: {0}")]
    DotEnv(String),
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Validated settings; see [`VARIABLES`] for what each means.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub host: IpAddr,
    pub port: u16,
    pub model_dir: Option<PathBuf>,
    /// Absolute.
    pub data_dir: PathBuf,
    pub device: Device,
    pub max_synthesis_workers: Option<usize>,
    pub max_queued_tasks: usize,
    pub max_tasks_per_user: usize,
    pub task_cleanup_interval: Duration,
    pub max_task_age: Duration,
    pub lexicon: Option<PathBuf>,
    pub max_text_chars: usize,
    pub max_file_bytes: usize,
    pub max_audio_duration: Duration,
    pub allowed_origins: Vec<String>,
    pub api_keys: Vec<String>,
    pub webhook_secret: Option<String>,
    pub webhook_allow_private: bool,
    pub max_connections: usize,
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    pub shutdown_timeout: Duration,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Settings {
    /// Settings of this process: `flags`, the environment, then `.env` in the working folder when there is one.
    ///
    /// # Errors
    /// The first value that is not what its variable takes, or an unreadable `.env`.
    pub fn load(flags: &Flags) -> Result<Self, SettingsError> {
        let dotenv = read_dotenv(Path::new(".env"))?;
        Self::resolve(&|name| {
            let given = |v: &String| !v.trim().is_empty();
            flags.0.get(name).cloned().filter(given).or_else(|| {
                let env = std::env::var_os(name).map(|v| v.to_string_lossy().into_owned());
                env.filter(given)
                    .or_else(|| dotenv.get(name).cloned().filter(given))
            })
        })
    }

    /// Settings from any source of values by name.
    ///
    /// # Errors
    /// The first value that is not what its variable takes.
    pub fn resolve(lookup: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let r = Reader { lookup };
        Ok(Self {
            host: r.parsed("HOST")?,
            port: r.parsed("PORT")?,
            model_dir: r.optional("MODEL_DIR").map(PathBuf::from),
            data_dir: r.absolute("DATA_DIR")?,
            device: r.device("DEVICE")?,
            max_synthesis_workers: r.optional_count("MAX_SYNTHESIS_WORKERS")?,
            max_queued_tasks: r.count("MAX_QUEUED_TASKS")?,
            max_tasks_per_user: r.parsed("MAX_TASKS_PER_USER")?,
            task_cleanup_interval: r.whole_seconds("TASK_CLEANUP_INTERVAL")?,
            max_task_age: r.whole_seconds("MAX_TASK_AGE")?,
            lexicon: r.optional("LEXICON").map(PathBuf::from),
            max_text_chars: r.count("MAX_TEXT_LENGTH")?,
            max_file_bytes: r.count("MAX_FILE_SIZE")?,
            max_audio_duration: r.seconds("MAX_AUDIO_DURATION", false)?,
            allowed_origins: r.origins("ALLOWED_ORIGINS")?,
            api_keys: r.keys("API_KEYS")?,
            webhook_secret: r.optional("WEBHOOK_SECRET"),
            webhook_allow_private: r.boolean("WEBHOOK_ALLOW_PRIVATE")?,
            max_connections: r.count("MAX_CONNECTIONS")?,
            header_timeout: r.seconds("HEADER_TIMEOUT", false)?,
            body_timeout: r.seconds("BODY_TIMEOUT", false)?,
            shutdown_timeout: r.seconds("SHUTDOWN_TIMEOUT", true)?,
            log_level: r.log_level("LOG_LEVEL")?,
            log_format: r.log_format("LOG_FORMAT")?,
        })
    }
}

fn read_dotenv(path: &Path) -> Result<HashMap<String, String>, SettingsError> {
    if !path.is_file() {
        return Ok(HashMap::new());
    }
    let error = |e: dotenvy::Error| SettingsError::DotEnv(e.to_string());
    dotenvy::from_path_iter(path)
        .map_err(error)?
        .collect::<Result<_, _>>()
        .map_err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        Settings::resolve(&|name| {
            let found = pairs.iter().find(|(n, _)| *n == name);
            found.map(|(_, v)| (*v).to_owned())
        })
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let s = resolve(&[]).unwrap();
        assert_eq!(s.port, 8000);
        assert_eq!(s.max_task_age, Duration::from_secs(7200));
        assert_eq!(s.task_cleanup_interval, Duration::from_secs(3600));
        assert_eq!(s.max_file_bytes, 50 << 20);
        assert_eq!(s.max_audio_duration, Duration::from_secs(30));
        assert_eq!(s.max_synthesis_workers, None);
        assert!(s.api_keys.is_empty() && s.data_dir.is_absolute());
    }

    #[test]
    fn a_malformed_value_is_refused_with_its_name() {
        for (name, value) in [
            ("HOST", "localhost:1"),
            ("PORT", "65536"),
            ("PORT", "http"),
            ("DEVICE", "tpu"),
            ("DEVICE", "cuda:x"),
            ("DEVICE", "cuda:0,cuda:0"),
            ("MAX_SYNTHESIS_WORKERS", "0"),
            ("MAX_SYNTHESIS_WORKERS", "-1"),
            ("MAX_QUEUED_TASKS", "1.5"),
            ("MAX_TASKS_PER_USER", "many"),
            ("TASK_CLEANUP_INTERVAL", "0"),
            ("MAX_TASK_AGE", "soon"),
            ("MAX_TEXT_LENGTH", "0"),
            ("MAX_FILE_SIZE", "50MB"),
            ("MAX_AUDIO_DURATION", "nan"),
            ("MAX_AUDIO_DURATION", "-3"),
            ("ALLOWED_ORIGINS", "example.org"),
            ("API_KEYS", "good,b\u{7}d"),
            ("WEBHOOK_ALLOW_PRIVATE", "maybe"),
            ("HEADER_TIMEOUT", "0"),
            ("BODY_TIMEOUT", "1e300"),
            ("LOG_LEVEL", "loud"),
            ("LOG_FORMAT", "xml"),
        ] {
            let error = resolve(&[(name, value)]).expect_err(name).to_string();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
    }

    #[test]
    fn lists_devices_and_filters_are_read() {
        let s = resolve(&[
            ("DEVICE", "cuda:0,cuda:1"),
            ("API_KEYS", "a, b,,"),
            (
                "ALLOWED_ORIGINS",
                "https://a.example, http://localhost:3000",
            ),
            ("LOG_LEVEL", "cosyvoice=debug,hyper=warn"),
        ])
        .unwrap();
        assert_eq!(s.device, Device::Cuda(vec![0, 1]));
        assert_eq!(s.api_keys, ["a", "b"]);
        assert_eq!(
            s.allowed_origins,
            ["https://a.example", "http://localhost:3000"]
        );
        assert_eq!(
            resolve(&[("DEVICE", "cuda")]).unwrap().device,
            Device::Cuda(vec![0])
        );
    }

    #[test]
    fn flags_come_from_the_table() {
        let command = Flags::augment_args(Command::new("serve"));
        let matches = command
            .try_get_matches_from(["serve", "--max-task-age", "5", "--port=9"])
            .unwrap();
        let flags = Flags::from_arg_matches(&matches).unwrap();
        assert_eq!(flags.0["MAX_TASK_AGE"], "5");
        assert_eq!(flags.0["PORT"], "9");
        assert_eq!(flags.0.len(), 2);
        for v in VARIABLES {
            assert_eq!(v.flag, v.name.to_ascii_lowercase().replace('_', "-"));
        }
    }

    #[test]
    fn documentation_is_current() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/env.md");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, documentation()).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(written, documentation(), "UPDATE_DOCS=1 writes docs/env.md");
    }
}
