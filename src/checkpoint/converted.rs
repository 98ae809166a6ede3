//! Our own layout: one folder of safetensors files and one `config.json`.
//!
//! ```text
//! config.json                  format, version, dtype of the large weights, and the whole ModelConfig
//! llm.safetensors              names as in llm.pt, without the tied text head
//! flow.safetensors             names as in flow.pt
//! hift.safetensors             names as in hift.pt, weight norms folded
//! speaker.safetensors          names of modules (CAM++)
//! speech_tokens.safetensors    names of modules (speech tokenizer)
//! voices.safetensors           <speaker>.<field>, as in spk2info.pt
//! tokenizer/                   vocab.json, merges.txt, tokenizer_config.json
//! ```

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::{Fault, Problem};
use super::official::{map, text};
use super::tensors::TensorFile;
use super::{Files, safetensors, validate};
use crate::model::config::ModelConfig;

pub(super) const CONFIG: &str = "config.json";
pub(super) const TOKENIZER: &str = "tokenizer";
const FORMAT: &str = "cosyvoice2";
const VERSION: u32 = 1;

/// `config.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    format: String,
    version: u32,
    /// How the large weights are stored: `f32`, `bf16` or `int8`.
    pub(super) dtype: String,
    pub(super) model: ModelConfig,
}

impl Header {
    pub(super) fn new(dtype: &str, model: ModelConfig) -> Self {
        Self {
            format: FORMAT.to_string(),
            version: VERSION,
            dtype: dtype.to_string(),
            model,
        }
    }
}

/// Opens the folder; the problems of all files together when it cannot be used.
pub(super) fn open(dir: &Path) -> Result<(ModelConfig, Files), Vec<Problem>> {
    let config = header(dir).map_err(|problem| vec![problem])?.model;
    let faults = validate::check(&config);
    if !faults.is_empty() {
        return Err(faults.into_iter().map(|f| f.of(CONFIG)).collect());
    }
    let mut problems = Vec::new();
    let mut read = |name: &str, needed: bool| {
        let absent = !needed && !dir.join(name).exists();
        if absent {
            return None;
        }
        let file = map(dir, name).and_then(|bytes| safetensors::read(name, bytes));
        file.map_err(|problem| problems.push(problem)).ok()
    };
    let llm = read("llm.safetensors", true);
    let flow = read("flow.safetensors", true);
    let hift = read("hift.safetensors", true);
    let speaker = read("speaker.safetensors", config.speaker.is_some());
    let speech_tokens = read("speech_tokens.safetensors", config.speech_tokens.is_some());
    let voices = read("voices.safetensors", false);
    match (llm, flow, hift) {
        (Some(llm), Some(flow), Some(hift)) if problems.is_empty() => {
            let files = Files {
                llm,
                flow,
                hift,
                speaker: speaker.filter(|_| config.speaker.is_some()),
                speech_tokens: speech_tokens.filter(|_| config.speech_tokens.is_some()),
                voices,
            };
            Ok((config, files))
        }
        _ => Err(problems),
    }
}

/// Reads `config.json`.
fn header(dir: &Path) -> Result<Header, Problem> {
    let text = text(dir, CONFIG)?;
    let header: Header =
        serde_json::from_str(&text).map_err(|error| Fault::format(error).of(CONFIG))?;
    if header.format != FORMAT || header.version != VERSION {
        let expected = format!("{FORMAT} {VERSION}");
        let found = format!("{} {}", header.format, header.version);
        return Err(Fault::config("format", expected, found).of(CONFIG));
    }
    Ok(header)
}

/// The files of the layout beside their tensors.
pub(super) fn names(files: &Files) -> Vec<(&'static str, &TensorFile)> {
    let mut names = vec![
        ("llm.safetensors", &files.llm),
        ("flow.safetensors", &files.flow),
        ("hift.safetensors", &files.hift),
    ];
    names.extend(files.speaker.iter().map(|f| ("speaker.safetensors", f)));
    let tokens = files.speech_tokens.iter();
    names.extend(tokens.map(|f| ("speech_tokens.safetensors", f)));
    names.extend(files.voices.iter().map(|f| ("voices.safetensors", f)));
    names
}
