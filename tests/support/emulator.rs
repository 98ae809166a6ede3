//! Loads the emulated CUDA driver (`tests/cuda-emulator`) in front of cudarc, so that the CUDA backend runs on any machine.
//!
//! `load` builds the emulator if its sources changed and opens it once per process; it must come before any cudarc call, which
//! then finds it by its name `libcuda.so`. The flavour comes from `CUDA_EMULATOR` (`fast`, the default, or `check`), and
//! `CUDA_TESTS=device` leaves the machine's real driver in place. `run_checked` repeats tests in a child process under the
//! checking flavour, which stops at the first data race, stray access or unfinished copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::{Library, Symbol};

/// The order in which the threads of a block, and its blocks, take their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Order {
    Forward = 0,
    Reverse = 1,
    Random = 2,
}

/// When `cp.async` lands: at once, at the wait that orders it, or at either by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Copies {
    Eager = 0,
    Lazy = 1,
    Random = 2,
}

/// When enqueued work runs: at the call, or at the next host wait in a random order that respects only streams and events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(crate) enum Streams {
    Eager = 0,
    Deferred = 1,
}

static DRIVER: OnceLock<Result<Option<Library>, String>> = OnceLock::new();

/// True if the tests are to use the machine's own driver.
pub(crate) fn on_device() -> bool {
    std::env::var("CUDA_TESTS").is_ok_and(|v| v == "device")
}

/// True in the checking flavour.
pub(crate) fn checking() -> bool {
    flavour() == "check"
}

fn flavour() -> String {
    std::env::var("CUDA_EMULATOR").unwrap_or_else(|_| "fast".to_owned())
}

/// Makes the emulated driver the process's CUDA driver. `Err` says why there is none; the caller skips, saying so.
pub(crate) fn load() -> Result<(), String> {
    driver().map(drop)
}

/// `load` for a test: false, with the reason printed, if it must be skipped.
pub(crate) fn ready() -> bool {
    load()
        .inspect_err(|reason| eprintln!("SKIPPED: no emulated CUDA driver: {reason}"))
        .is_ok()
}

fn driver() -> Result<Option<&'static Library>, String> {
    DRIVER
        .get_or_init(|| {
            if on_device() {
                return Ok(None);
            }
            let path = build()?;
            // SAFETY: the library was built from this repository; its initialisers only register kernels.
            let library = unsafe { Library::new(&path) };
            library
                .map(Some)
                .map_err(|e| format!("{}: {e}", path.display()))
        })
        .as_ref()
        .map(Option::as_ref)
        .map_err(Clone::clone)
}

fn build() -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    if Command::new(&compiler).arg("--version").output().is_err() {
        return Err(format!("{compiler} is not there to build it"));
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-emulator");
    fs::create_dir_all(&out).map_err(|e| format!("{}: {e}", out.display()))?;
    let lock = fs::File::create(out.join("lock")).map_err(|e| e.to_string())?;
    lock.lock().map_err(|e| e.to_string())?;
    let output = Command::new("bash")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda-emulator/build"))
        .arg(&out)
        .arg(flavour())
        .output()
        .map_err(|e| format!("bash: {e}"))?;
    // A kernel that does not compile is a failure of the tests, never a reason to skip them.
    assert!(
        output.status.success(),
        "the CUDA emulator did not build:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(out.join(flavour()).join("libcuda.so"))
}

/// Repeats the tests whose names start with `filter` in a process of their own under the checking flavour.
///
/// A no-op where it would recurse, or where no emulator runs.
pub(crate) fn run_checked(filter: &str) {
    if checking() || on_device() || !ready() {
        return;
    }
    let exe = std::env::current_exe().expect("a running test has a path. This is a bug.");
    let output = Command::new(exe)
        .args([filter, "--test-threads=1", "--nocapture"])
        .env("CUDA_EMULATOR", "check")
        .output()
        .expect("the test binary runs. This is a bug.");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "{filter} under the checks:\n{text}"
    );
    assert!(
        !text.contains("running 0 tests"),
        "no test is called {filter}"
    );
}

fn call<R: Default>(name: &str, call: impl FnOnce(&Library) -> Result<R, libloading::Error>) -> R {
    match driver() {
        Ok(Some(library)) => call(library).unwrap_or_else(|e| panic!("{name}: {e}")),
        _ => R::default(),
    }
}

/// Sets the scheduling of this process's emulated device; on a real device it does nothing.
pub(crate) fn schedule(order: Order, seed: u64, copies: Copies) {
    call("emu_schedule", |library| {
        // SAFETY: the signature is that of tests/cuda-emulator/runtime.
        let f: Symbol<unsafe extern "C" fn(i32, u64, i32)> =
            unsafe { library.get(b"emu_schedule")? };
        // SAFETY: takes plain numbers.
        unsafe { f(order as i32, seed, copies as i32) };
        Ok(())
    });
}

/// Whether faults can be injected: on an emulated driver that has them. A test that needs them skips, saying so.
pub(crate) fn has_faults() -> bool {
    let has = matches!(driver(), Ok(Some(library)) if {
        // SAFETY: only looked up, not called.
        unsafe { library.get::<unsafe extern "C" fn(i32, i32)>(b"emu_fault") }.is_ok()
    });
    if !has {
        eprintln!("SKIPPED: this driver does not inject faults");
    }
    has
}

/// Has the launch after so many more fail with the driver's `code`, and every call after it until the context is gone.
pub(crate) fn fault(code: i32, after_launches: i32) {
    call("emu_fault", |library| {
        // SAFETY: the signature is that of tests/cuda-emulator/runtime.
        let f: Symbol<unsafe extern "C" fn(i32, i32)> = unsafe { library.get(b"emu_fault")? };
        // SAFETY: takes plain numbers.
        unsafe { f(code, after_launches) };
        Ok(())
    });
}

/// Sets the memory of the devices; what is allocated stays.
pub(crate) fn memory(bytes: usize) {
    call("emu_memory", |library| {
        // SAFETY: the signature is that of tests/cuda-emulator/runtime.
        let f: Symbol<unsafe extern "C" fn(usize)> = unsafe { library.get(b"emu_memory")? };
        // SAFETY: takes a plain number.
        unsafe { f(bytes) };
        Ok(())
    });
}

/// Sets when enqueued work runs.
pub(crate) fn streams(mode: Streams, seed: u64) {
    call("emu_streams", |library| {
        // SAFETY: the signature is that of tests/cuda-emulator/runtime.
        let f: Symbol<unsafe extern "C" fn(i32, u64)> = unsafe { library.get(b"emu_streams")? };
        // SAFETY: takes plain numbers.
        unsafe { f(mode as i32, seed) };
        Ok(())
    });
}

/// Takes the first finding since the last call, if there is one, and makes the emulated device usable again.
pub(crate) fn take_report() -> Option<String> {
    let text = call("emu_take_report", |library| {
        let mut bytes = vec![0u8; 4096];
        // SAFETY: the signature is that of tests/cuda-emulator/runtime.
        let f: Symbol<unsafe extern "C" fn(*mut u8, usize) -> usize> =
            unsafe { library.get(b"emu_take_report")? };
        // SAFETY: writes at most the given number of bytes.
        let n = unsafe { f(bytes.as_mut_ptr(), bytes.len()) };
        bytes.truncate(n);
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    });
    (!text.is_empty()).then_some(text)
}
