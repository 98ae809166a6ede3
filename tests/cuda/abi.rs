//! `src/cuda/abi.rs` is what bindgen makes of `kernels/include/abi.h`, and no padding hides in a parameter struct.

use std::path::Path;
use std::process::Command;

/// The header as bindgen translates it, with the options of `scripts/abi`; none where libclang cannot be found.
fn translated(root: &Path) -> Option<String> {
    let found = std::panic::catch_unwind(|| {
        bindgen::Builder::default()
            .header("kernels/include/abi.h")
            .clang_arg(format!("-I{}", root.join("kernels/include").display()))
            .prepend_enum_name(false)
            .generate_comments(false)
            .derive_default(true)
            .allowlist_file(".*kernels/include/abi.*")
            .generate()
    });
    let bindings = found.ok()?.unwrap_or_else(|e| panic!("{e}"));
    Some(bindings.to_string())
}

/// The text without what formatters may do differently.
fn tokens(text: &str) -> String {
    let comments = text.lines().filter(|l| !l.trim_start().starts_with("/*"));
    comments
        .collect::<String>()
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ',')
        .collect()
}

#[test]
fn abi_rs_is_what_bindgen_makes_of_the_header() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Some(made) = translated(root) else {
        println!("SKIPPED: no libclang (LIBCLANG_PATH) to run bindgen with");
        return;
    };
    let kept = std::fs::read_to_string(root.join("src/cuda/abi.rs")).unwrap();
    assert!(
        tokens(&made) == tokens(&kept),
        "src/cuda/abi.rs is out of date: run scripts/abi"
    );
}

/// Launches are compared byte by byte, so every byte of a struct has to be a field's.
#[test]
fn parameter_structs_have_no_padding() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(&compiler)
        .args(["-std=c11", "-Wpadded", "-fsyntax-only", "-x", "c"])
        .arg(format!("-I{}", root.join("kernels/include").display()))
        .arg(root.join("kernels/include/abi.h"))
        .output();
    let Ok(output) = output else {
        println!("SKIPPED: no C compiler ({compiler})");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !said.contains("padding"),
        "{said}"
    );
}
