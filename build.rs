//! Compiles `kernels/*.cu` with nvcc and embeds the images; without nvcc the build is for the CPU only and says so.
//!
//! nvcc is looked for in `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, `/usr/local/cuda`, `.cuda-venv` beside this file and
//! `VIRTUAL_ENV` (the wheels of PyPI). Each file becomes one compressed fatbin with code for every architecture of [`ARCHES`] and PTX
//! for newer ones. A file is compiled again only when its text, its headers, the arguments or the compiler have changed; builds of one profile
//! share the images, whatever they are for (checks, tests, the program).
//! `COSYVOICE_CUDA=off` leaves CUDA out; `COSYVOICE_CUDA_ARCHES` (`-gencode` values, `;` between them) replaces the list.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ampere, Ada, Hopper, Blackwell (data centre and desktop); the PTX comes last, so that newer chips can compile it.
const ARCHES: [&str; 6] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_89,code=sm_89",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_100a,code=sm_100a",
    "arch=compute_120a,code=sm_120a",
    "arch=compute_80,code=compute_80",
];

const ENVIRONMENT: [&str; 6] = [
    "NVCC",
    "CUDA_HOME",
    "CUDA_PATH",
    "VIRTUAL_ENV",
    "COSYVOICE_CUDA",
    "COSYVOICE_CUDA_ARCHES",
];

fn main() {
    for name in ENVIRONMENT {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let (images, info) = match Compiler::find() {
        Ok(compiler) => {
            let (images, compiled) = compiler.compile_all(&compiler.folder(&out));
            let info = format!(
                "nvcc {}, {} kernel files ({compiled} compiled now), {}",
                compiler.version,
                images.len(),
                compiler.arches.join(" ")
            );
            (images, info)
        }
        Err(why) => {
            println!("cargo:warning=building without CUDA kernels: {why}");
            (Vec::new(), format!("no CUDA kernels: {why}"))
        }
    };
    let mut table =
        String::from("/// The images of this build.\npub(super) const FATBINS: Images = &[\n");
    for (stem, image) in &images {
        writeln!(
            table,
            "    ({stem:?}, include_bytes!({:?})),",
            image.display().to_string()
        )
        .expect("writing to a string");
    }
    writeln!(
        table,
        "];\n/// How the kernels were compiled, or why not.\npub const BUILD_INFO: &str = {info:?};"
    )
    .expect("writing to a string");
    fs::write(out.join("kernels.rs"), table).expect("OUT_DIR can be written");
}

struct Compiler {
    nvcc: PathBuf,
    version: String,
    arches: Vec<String>,
}

impl Compiler {
    fn find() -> Result<Self, String> {
        if env::var("COSYVOICE_CUDA").is_ok_and(|v| v == "off") {
            return Err("COSYVOICE_CUDA is off".into());
        }
        let candidates = candidates();
        let nvcc = candidates
            .iter()
            .find(|c| c.is_file())
            .ok_or_else(|| format!("nvcc not found in {} places", candidates.len()))?;
        let output = Command::new(nvcc)
            .arg("--version")
            .output()
            .map_err(|e| format!("{}: {e}", nvcc.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text
            .split("release ")
            .nth(1)
            .and_then(|s| s.split(',').next())
            .unwrap_or("of unknown version")
            .to_owned();
        let arches = match env::var("COSYVOICE_CUDA_ARCHES") {
            Ok(list) => list.split(';').map(str::to_owned).collect(),
            Err(_) => ARCHES.map(str::to_owned).to_vec(),
        };
        Ok(Self {
            nvcc: nvcc.clone(),
            version,
            arches,
        })
    }

    /// Where the images of this compiler and these architectures are: beside the folders that cargo gives each variant of this script.
    fn folder(&self, out: &Path) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        (&self.nvcc, &self.version, &self.arches).hash(&mut hasher);
        let profile = out.ancestors().nth(3).unwrap_or(out);
        let folder = profile.join(format!("kernels-{:016x}", hasher.finish()));
        fs::create_dir_all(&folder).expect("the target folder can be written");
        folder
    }

    /// Compiles what has changed; returns all images and how many were compiled.
    fn compile_all(&self, out: &Path) -> (Vec<(String, PathBuf)>, usize) {
        let mut sources: Vec<PathBuf> = fs::read_dir("kernels")
            .expect("the kernels' folder")
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|e| e == "cu"))
            .collect();
        sources.sort();
        let jobs = env::var("NUM_JOBS")
            .ok()
            .and_then(|v| v.parse().ok())
            .unwrap_or(1);
        let (next, compiled) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let errors = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..sources.len().min(jobs) {
                scope.spawn(|| {
                    while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match self.compile(source, out) {
                            Ok(new) => _ = compiled.fetch_add(usize::from(new), Ordering::Relaxed),
                            Err(e) => errors.lock().expect("no thread panics").push(e),
                        }
                    }
                });
            }
        });
        let errors = errors.into_inner().expect("no thread panics");
        assert!(errors.is_empty(), "{}", errors.join("\n"));
        let images = sources
            .iter()
            .map(|s| (stem(s), out.join(stem(s)).with_extension("fatbin")))
            .collect();
        (images, compiled.into_inner())
    }

    /// Compiles one file unless its image is there already; whether it did.
    fn compile(&self, source: &Path, out: &Path) -> Result<bool, String> {
        let base = out.join(stem(source));
        let image = base.with_extension("fatbin");
        let depends = base.with_extension("d");
        let stamp = base.with_extension("key");
        let mut args: Vec<String> = [
            "-std=c++17",
            "-O3",
            "-fatbin",
            "-lineinfo",
            "--compress-mode=size",
            "-Ikernels/include",
            "-Werror",
            "all-warnings",
            "-Xptxas",
            "-v,-warn-spills",
            "-MD",
            "-MF",
        ]
        .map(str::to_owned)
        .to_vec();
        args.push(depends.display().to_string());
        for arch in &self.arches {
            args.extend(["-gencode".to_owned(), arch.clone()]);
        }
        let key = || self.key(&args, &depends);
        if image.is_file()
            && key().is_some_and(|k| fs::read_to_string(&stamp).is_ok_and(|s| s == k))
        {
            return Ok(false);
        }
        let output = Command::new(&self.nvcc)
            .args(&args)
            .arg(source)
            .arg("-o")
            .arg(&image)
            .output()
            .map_err(|e| format!("{}: {e}", self.nvcc.display()))?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            _ = fs::remove_file(&image);
            return Err(format!("nvcc {}:\n{log}", source.display()));
        }
        let written = fs::write(base.with_extension("ptxas.txt"), log)
            .and_then(|()| fs::write(&stamp, key().unwrap_or_default()));
        written.map_err(|e| format!("{}: {e}", stamp.display()))?;
        Ok(true)
    }

    /// A hash of everything that the image is made from; none before the first compilation.
    fn key(&self, args: &[String], depends: &Path) -> Option<String> {
        let rule = fs::read_to_string(depends).ok()?.replace("\\\n", " ");
        let mut hasher = DefaultHasher::new();
        (&self.nvcc, &self.version, args).hash(&mut hasher);
        for file in rule.split_once(':')?.1.split_whitespace() {
            (file, fs::read(file).ok()?).hash(&mut hasher);
        }
        Some(format!("{:016x}", hasher.finish()))
    }
}

/// Where nvcc may be, best first.
fn candidates() -> Vec<PathBuf> {
    let path = |name: &str| env::var_os(name).map(PathBuf::from);
    let mut found: Vec<PathBuf> = path("NVCC").into_iter().collect();
    found.extend(
        ["CUDA_HOME", "CUDA_PATH"]
            .into_iter()
            .filter_map(path)
            .map(|p| p.join("bin/nvcc")),
    );
    if let Some(list) = env::var_os("PATH") {
        found.extend(env::split_paths(&list).map(|d| d.join("nvcc")));
    }
    found.push("/usr/local/cuda/bin/nvcc".into());
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    for venv in [Some(root.join(".cuda-venv")), path("VIRTUAL_ENV")]
        .into_iter()
        .flatten()
    {
        let versions = fs::read_dir(venv.join("lib"))
            .into_iter()
            .flatten()
            .flatten();
        found.extend(versions.map(|v| v.path().join("site-packages/nvidia/cu13/bin/nvcc")));
    }
    found
}

fn stem(path: &Path) -> String {
    path.file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
