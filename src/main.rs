//! The `cosyvoice` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    cosyvoice::cli::run()
}
