//! Checkpoints: the official layout as it is downloaded, and our own one-folder safetensors layout.
//!
//! ```text
//! .pt   ──► zip ──► pickle ──┐
//! .onnx ──► onnx ──► names ──┼──► TensorFile (names → places in mapped bytes) ──► Scope ──► model/
//! .safetensors ──────────────┘
//! .yaml ──► options ──► ModelConfig
//! ```
//!
//! Nothing is executed, inflated or copied on the way; files that are hostile, foreign or cut off give a typed error that
//! lists every problem.

mod agree;
mod bytes;
mod convert;
mod converted;
mod error;
mod graphs;
#[cfg(test)]
mod homes;
pub mod names;
mod official;
pub mod onnx;
mod options;
pub mod pickle;
mod random;
pub mod safetensors;
mod scope;
mod tensors;
pub mod torch;
mod validate;
mod voices;
pub mod yaml;
pub mod zip;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use bytes::Bytes;
pub use convert::{Target, convert};
pub use error::{CheckpointError, Fault, Problem, Result};
pub use scope::Scope;
pub use tensors::{Dtype, Entry, TensorFile};

use crate::model::config::ModelConfig;
use crate::model::voice::Voice;

/// The layout that a folder seems to have.
fn layout(dir: &Path) -> Option<Layout> {
    if dir.join(official::YAML).is_file() {
        Some(Layout::Official)
    } else if dir.join(converted::CONFIG).is_file() {
        Some(Layout::Converted)
    } else {
        None
    }
}

/// How a checkpoint is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `cosyvoice2.yaml` beside `.pt` and `.onnx` files.
    Official,
    /// `config.json` beside `.safetensors` files.
    Converted,
}

/// The tensor files of a checkpoint.
#[derive(Debug)]
struct Files {
    llm: TensorFile,
    flow: TensorFile,
    hift: TensorFile,
    speaker: Option<TensorFile>,
    speech_tokens: Option<TensorFile>,
    voices: Option<TensorFile>,
}

/// An opened checkpoint: configuration read, weights mapped.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    layout: Layout,
    config: ModelConfig,
    files: Files,
}

impl Checkpoint {
    /// Whether a folder looks like a checkpoint of either layout.
    pub fn is_at(dir: &Path) -> bool {
        layout(dir).is_some()
    }

    /// Opens a folder of either layout. Weights are mapped, not read.
    ///
    /// # Errors
    /// When the folder is neither, or with everything that is wrong with its files.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let layout = layout(dir).ok_or_else(|| CheckpointError::NotACheckpoint {
            dir: dir.to_path_buf(),
        })?;
        let opened = match layout {
            Layout::Official => official::open(dir),
            Layout::Converted => converted::open(dir),
        };
        let opened = opened.and_then(|(config, files)| {
            let problems = agree::check(&config, &files);
            match problems.is_empty() {
                true => Ok((config, files)),
                false => Err(problems),
            }
        });
        let (config, files) = opened.map_err(|problems| CheckpointError::Unusable {
            dir: dir.to_path_buf(),
            problems,
        })?;
        Ok(Self {
            dir: dir.to_path_buf(),
            layout,
            config,
            files,
        })
    }

    /// A checkpoint of these dims with seeded random weights, in no folder: for benchmarks. It has no tokenizer, no
    /// prompt encoders and no voices.
    pub fn random(config: ModelConfig, seed: u64) -> Self {
        let file = |name: &str| TensorFile::random(name, seed);
        Self {
            dir: PathBuf::new(),
            layout: Layout::Converted,
            files: Files {
                llm: file("llm"),
                flow: file("flow"),
                hift: file("hift"),
                speaker: None,
                speech_tokens: None,
                voices: None,
            },
            config: ModelConfig {
                speaker: None,
                speech_tokens: None,
                ..config
            },
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How it is laid out.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Dims and options of all models.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Weights of the language model: `llm.model.model.layers.0.…`, `speech_embedding.…`, `llm_decoder.…`
    pub fn llm(&self) -> Scope<'_> {
        self.files.llm.root()
    }

    /// Weights of the flow: `encoder.…`, `decoder.estimator.…`, `input_embedding.…`
    pub fn flow(&self) -> Scope<'_> {
        self.files.flow.root()
    }

    /// Weights of the vocoder: `conv_pre.…`, `ups.0.…`, `f0_predictor.…`
    pub fn hift(&self) -> Scope<'_> {
        self.files.hift.root()
    }

    /// Weights of CAM++ by module: `head.conv1.…`, `xvector.block1.tdnnd1.…`
    pub fn speaker(&self) -> Option<Scope<'_>> {
        self.files.speaker.as_ref().map(TensorFile::root)
    }

    /// Weights of the speech tokenizer by module: `conv1.…`, `blocks.0.attn.query.…`, `quantizer.project_in.…`
    pub fn speech_tokens(&self) -> Option<Scope<'_>> {
        self.files.speech_tokens.as_ref().map(TensorFile::root)
    }

    /// Stored speakers by name; none when the checkpoint has none.
    ///
    /// # Errors
    /// When a speaker's tensors are not what they should be.
    pub fn voices(&self) -> Result<BTreeMap<String, Voice>> {
        let Some(file) = &self.files.voices else {
            return Ok(BTreeMap::new());
        };
        let flow = &self.config.flow;
        voices::read(file, flow.spk_embed_dim, flow.output_size)
            .map_err(|problems| self.unusable(problems))
    }

    /// The folder with `vocab.json`, `merges.txt` and `tokenizer_config.json`.
    pub fn tokenizer_dir(&self) -> PathBuf {
        self.dir.join(match self.layout {
            Layout::Official => official::TOKENIZER,
            Layout::Converted => converted::TOKENIZER,
        })
    }

    /// The files of weights and stored speakers.
    pub fn files(&self) -> impl Iterator<Item = &TensorFile> {
        let f = &self.files;
        let optional = [&f.speaker, &f.speech_tokens, &f.voices];
        [&f.llm, &f.flow, &f.hift]
            .into_iter()
            .chain(optional.into_iter().flatten())
    }

    /// Says whether everything that was loaded was there and fitted, and gives the mapped pages back.
    ///
    /// # Errors
    /// With every missing, mis-shaped and unexpected tensor of the files that were touched.
    pub fn finish(&self) -> Result<()> {
        let touched = self.files().filter(|file| file.touched());
        let problems: Vec<Problem> = touched.flat_map(TensorFile::problems).collect();
        self.files().for_each(TensorFile::release);
        match problems.is_empty() {
            true => Ok(()),
            false => Err(self.unusable(problems)),
        }
    }

    fn unusable(&self, problems: Vec<Problem>) -> CheckpointError {
        CheckpointError::Unusable {
            dir: self.dir.clone(),
            problems,
        }
    }
}
