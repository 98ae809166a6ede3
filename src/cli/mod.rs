//! The commands, one file each.

pub mod convert;
pub mod inspect;

use std::process::ExitCode;

/// Parses the command line and runs the command.
pub fn run() -> ExitCode {
    ExitCode::SUCCESS
}
