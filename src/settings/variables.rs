//! Every variable that the program reads: the one table that flags, the environment, `.env`, the help text and
//! `docs/env.md` come from.

/// One setting as users see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: &'static str,
    /// The long flag without its dashes.
    pub flag: &'static str,
    /// The default as it would be typed; empty when there is none.
    pub default: &'static str,
    /// What a value looks like, for help and errors.
    pub values: &'static str,
    pub help: &'static str,
}

const fn variable(
    name: &'static str,
    flag: &'static str,
    default: &'static str,
    values: &'static str,
    help: &'static str,
) -> Variable {
    Variable {
        name,
        flag,
        default,
        values,
        help,
    }
}

/// All variables, in the order of the documentation.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    variable("HOST", "host", "0.0.0.0", "an IP address", "Address to listen on"),
    variable("PORT", "port", "8000", "0 to 65535", "Port to listen on; 0 lets the system choose one, which the log names"),
    variable("MODEL_DIR", "model-dir", "", "a folder", "Checkpoint to serve: the official layout or a converted one; without it the bundled voice, where there is one"),
    variable("DATA_DIR", "data-dir", "data", "a folder", "Tasks, results and voices; made when missing; one server at a time"),
    variable("DEVICE", "device", "auto", "`auto`, `cpu`, `cuda`, `cuda:1` or `cuda:0,cuda:1`", "Where the model runs; `auto` is the first GPU that works, else the CPU; several GPUs share the load"),
    variable("MAX_SYNTHESIS_WORKERS", "max-synthesis-workers", "", "a whole number from 1", "Tasks synthesised at the same time; without it as many as half of the free memory has caches for, at most 64"),
    variable("MAX_QUEUED_TASKS", "max-queued-tasks", "1000", "a whole number from 1", "Tasks that may wait; more are answered 429"),
    variable("MAX_TASKS_PER_USER", "max-tasks-per-user", "0", "a whole number", "Open tasks of one API key, else of one client address; 0 is no limit"),
    variable("TASK_CLEANUP_INTERVAL", "task-cleanup-interval", "3600", "seconds from 1", "How often old tasks are removed"),
    variable("MAX_TASK_AGE", "max-task-age", "7200", "seconds from 1", "How long a finished task and its audio are kept"),
    variable("LEXICON", "lexicon", "", "a file", "Words to read in a given way in every request: lines of a word, a tab and what is read instead"),
    variable("MAX_TEXT_LENGTH", "max-text-length", "10000", "characters from 1", "Longest text of a request"),
    variable("MAX_FILE_SIZE", "max-file-size", "52428800", "bytes from 1", "Largest uploaded file"),
    variable("MAX_AUDIO_DURATION", "max-audio-duration", "30", "seconds above 0", "Longest prompt recording"),
    variable("ALLOWED_ORIGINS", "allowed-origins", "", "`*` or origins separated by commas", "Web origins that browsers may call from; without it only this server's own pages"),
    variable("API_KEYS", "api-keys", "", "keys separated by commas", "Keys that clients must send as `Authorization: Bearer KEY` or `X-API-Key: KEY`; without it the server is open"),
    variable("WEBHOOK_SECRET", "webhook-secret", "", "`whsec_` and base64, or any text", "Signs callbacks (Standard Webhooks); without it callbacks are not signed"),
    variable("WEBHOOK_ALLOW_PRIVATE", "webhook-allow-private", "false", "`true` or `false`", "Lets callbacks go to loopback, private and link-local addresses"),
    variable("MAX_CONNECTIONS", "max-connections", "10000", "a whole number from 1", "Open connections; more are answered 503 and closed"),
    variable("HEADER_TIMEOUT", "header-timeout", "30", "seconds above 0", "Time to send a request's headers, and how long an idle connection is kept"),
    variable("BODY_TIMEOUT", "body-timeout", "30", "seconds above 0", "Grace for a request's body, on top of one second for every 16 KiB received"),
    variable("SHUTDOWN_TIMEOUT", "shutdown-timeout", "30", "seconds", "Time for running work to finish on SIGTERM; what is left is resumed at the next start"),
    variable("LOG_LEVEL", "log-level", "info", "`error`, `warn`, `info`, `debug`, `trace` or a filter such as `cosyvoice=debug`", "What is logged"),
    variable("LOG_FORMAT", "log-format", "text", "`text` or `json`", "How it is logged"),
];

/// The text of `docs/env.md`.
pub fn documentation() -> String {
    let mut out = String::from(
        "# Settings\n\n\
         Each setting is a flag of `cosyvoice serve`, an environment variable, or a line of the file `.env` in the working\n\
         folder; the first of these that names it wins. An empty value counts as none. A value that cannot be read stops the\n\
         program at start with the variable's name.\n\n\
         This page is generated from `src/settings/variables.rs`; a test keeps it true.\n\n\
         | variable | flag | default | value | meaning |\n|---|---|---|---|---|\n",
    );
    for v in VARIABLES {
        let default = match v.default {
            "" => String::from("–"),
            text => format!("`{text}`"),
        };
        let row = format!(
            "| `{}` | `--{}` | {default} | {} | {} |\n",
            v.name, v.flag, v.values, v.help
        );
        out.push_str(&row);
    }
    out
}
