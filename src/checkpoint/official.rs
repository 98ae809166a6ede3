//! The official layout, as it is downloaded: `cosyvoice2.yaml`, three `.pt` files, two `.onnx` files, `CosyVoice-BlankEN/`.

use std::collections::BTreeMap;
use std::path::Path;

use super::bytes::Bytes;
use super::error::{Fault, Problem};
use super::onnx::Graph;
use super::options::{Options, QwenConfig};
use super::tensors::{Entry, TensorFile};
use super::yaml::Document;
use super::{Files, graphs, names, torch, validate};
use crate::model::config::ModelConfig;

pub(super) const YAML: &str = "cosyvoice2.yaml";
pub(super) const TOKENIZER: &str = "CosyVoice-BlankEN";
const QWEN: &str = "CosyVoice-BlankEN/config.json";

/// Opens the folder; the problems of all files together when it cannot be used.
pub(super) fn open(dir: &Path) -> Result<(ModelConfig, Files), Vec<Problem>> {
    let mut problems = Vec::new();
    let document = note(&mut problems, document(dir));
    let qwen = note(&mut problems, qwen(dir));
    let llm = note(&mut problems, pt(dir, "llm.pt"));
    let flow = note(&mut problems, pt(dir, "flow.pt"));
    let hift = note(&mut problems, pt(dir, "hift.pt").map(strip_generator));
    let speaker = note(&mut problems, onnx(dir, "campplus.onnx", graphs::speaker));
    let tokens = onnx(dir, "speech_tokenizer_v2.onnx", graphs::speech_tokens);
    let speech_tokens = note(&mut problems, tokens);
    let voices = match dir.join("spk2info.pt").exists() {
        true => note(&mut problems, pt(dir, "spk2info.pt")),
        false => None,
    };
    let (speaker, speaker_config) = speaker.unzip();
    let (speech_tokens, speech_tokens_config) = speech_tokens.unzip();
    let config = document.zip(qwen).map(|(document, qwen)| {
        let embed = llm.as_ref().and_then(text_rows);
        let mut options = Options::new(&document, YAML, &mut problems);
        ModelConfig {
            sample_rate: options.size("sample_rate"),
            token_frame_rate: options.size("token_frame_rate"),
            token_mel_ratio: options.size("token_mel_ratio"),
            chunk_size: options.size("chunk_size"),
            llm: options.llm(&qwen, embed),
            flow: options.flow(),
            hift: options.hift(),
            feat_extractor: options.feat_extractor(),
            speaker: speaker_config,
            speech_tokens: speech_tokens_config,
        }
    });
    // Placeholders of values that are already reported would only add noise.
    if let Some(config) = config.as_ref().filter(|_| problems.is_empty()) {
        problems.extend(validate::check(config).into_iter().map(|f| f.of(YAML)));
    }
    match (config, llm, flow, hift) {
        (Some(config), Some(llm), Some(flow), Some(hift)) if problems.is_empty() => {
            let files = Files {
                llm,
                flow,
                hift,
                speaker,
                speech_tokens,
                voices,
            };
            Ok((config, files))
        }
        _ => Err(problems),
    }
}

/// The value, or a note of the problem.
fn note<T>(problems: &mut Vec<Problem>, result: Result<T, Problem>) -> Option<T> {
    result.map_err(|problem| problems.push(problem)).ok()
}

/// Maps a file.
pub(super) fn map(dir: &Path, name: &str) -> Result<Bytes, Problem> {
    Bytes::map(&dir.join(name)).map_err(|error| fault_of(&error).of(name))
}

/// Reads a text file.
pub(super) fn text(dir: &Path, name: &str) -> Result<String, Problem> {
    std::fs::read_to_string(dir.join(name)).map_err(|error| fault_of(&error).of(name))
}

fn fault_of(error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::NotFound => Fault::FileMissing,
        _ => Fault::format(error),
    }
}

fn document(dir: &Path) -> Result<Document, Problem> {
    Document::parse(&text(dir, YAML)?).map_err(|fault| fault.of(YAML))
}

fn qwen(dir: &Path) -> Result<QwenConfig, Problem> {
    QwenConfig::parse(&text(dir, QWEN)?).map_err(|fault| fault.of(QWEN))
}

fn pt(dir: &Path, name: &str) -> Result<TensorFile, Problem> {
    torch::read(name, map(dir, name)?)
}

fn onnx<C>(
    dir: &Path,
    name: &str,
    describe: impl FnOnce(&Graph<'_>, &BTreeMap<String, Entry>) -> Result<C, Fault>,
) -> Result<(TensorFile, C), Problem> {
    names::read(name, map(dir, name)?, describe)
}

/// Rows of the text embedding.
fn text_rows(llm: &TensorFile) -> Option<usize> {
    let embedding = llm.entries().get("llm.model.model.embed_tokens.weight")?;
    embedding.shape.first().copied()
}

/// Checkpoints saved from GAN training have the vocoder under `generator.`.
fn strip_generator(file: TensorFile) -> TensorFile {
    file.rename(|name| name.strip_prefix("generator.").unwrap_or(name).to_string())
}
