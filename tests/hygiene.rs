//! The house rules that a machine can check.

use std::path::{Path, PathBuf};
use std::process::Command;

const MAX_FILE_LINES: usize = 600;
const MAX_TRACKED_BYTES: u64 = 40 << 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files that git tracks; outside a checkout (a source archive) there is nothing to check.
fn tracked() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output();
    match output {
        Ok(o) if o.status.success() => String::from_utf8_lossy(&o.stdout)
            .split('\0')
            .filter(|p| !p.is_empty())
            .map(|p| root().join(p))
            .filter(|p| p.is_file())
            .collect(),
        _ => {
            eprintln!("SKIPPED: not a git checkout");
            Vec::new()
        }
    }
}

fn sources() -> Vec<(PathBuf, String)> {
    tracked()
        .into_iter()
        .filter(|p| {
            p.extension().is_some_and(|e| {
                ["rs", "cu", "cuh", "cpp", "h", "py"]
                    .iter()
                    .any(|x| e == *x)
            })
        })
        .filter(|p| !p.ends_with("src/cuda/abi.rs"))
        .map(|p| {
            let text =
                std::fs::read_to_string(&p).unwrap_or_else(|e| panic!("{}: {e}", p.display()));
            (p, text)
        })
        .collect()
}

#[test]
fn files_are_short() {
    let long: Vec<_> = sources()
        .iter()
        .map(|(p, text)| (text.lines().count(), p.clone()))
        .filter(|(lines, _)| *lines > MAX_FILE_LINES)
        .collect();
    assert!(long.is_empty(), "over {MAX_FILE_LINES} lines: {long:#?}");
}

#[test]
fn rust_files_say_what_they_are_for() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(p, text)| {
            p.extension().is_some_and(|e| e == "rs")
                && !text.trim_start().starts_with("//!")
                && !text.starts_with("#![")
        })
        .map(|(p, _)| p)
        .collect();
    assert!(silent.is_empty(), "no `//!` header: {silent:#?}");
}

#[test]
fn unsafe_code_stays_where_it_belongs() {
    let allowed = |p: &Path| {
        let p = p.strip_prefix(root()).unwrap_or(p);
        [
            "src/cuda",
            "src/cpu",
            "src/checkpoint/bytes.rs",
            "tests/cuda",
            "tests/support/emulator.rs",
        ]
        .iter()
        .any(|a| p.starts_with(a))
    };
    for (path, text) in sources() {
        if path.extension().is_none_or(|e| e != "rs") || path.ends_with("tests/hygiene.rs") {
            continue;
        }
        let uses = text.lines().any(|l| {
            l.contains("unsafe {") || l.contains("unsafe fn") || l.contains("unsafe impl")
        });
        assert!(
            !uses || allowed(&path),
            "{}: unsafe code outside its rooms",
            path.display()
        );
        assert!(
            !uses || text.contains("SAFETY:"),
            "{}: unsafe code without a `SAFETY:` comment",
            path.display()
        );
    }
}

#[test]
fn the_tree_stays_small_enough_to_travel() {
    let bytes: u64 = tracked()
        .iter()
        .filter_map(|p| p.metadata().ok())
        .map(|m| m.len())
        .sum();
    assert!(bytes <= MAX_TRACKED_BYTES, "tracked files: {bytes} bytes");
}
