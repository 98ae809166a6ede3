//! The flags that choose model, device and voice, shared by the commands.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::checkpoint::Checkpoint;
use crate::cpu::WeightPrecision;
use crate::engine::{Device, Mode, Synthesizer, SynthesizerOptions, Utterance, VoiceChoice};

/// Which model on which device.
#[derive(clap::Args)]
pub(super) struct ModelArgs {
    /// Checkpoint folder: the official layout as downloaded, or one made by `convert`. Without it the bundled voice.
    #[arg(long, env = "MODEL_DIR", value_name = "DIR")]
    pub(super) model: Option<PathBuf>,
    /// Where voices are kept.
    #[arg(long, env = "DATA_DIR", value_name = "DIR", default_value = "data")]
    pub(super) data: PathBuf,
    /// auto, cpu, cuda, cuda:1 or cuda:0,cuda:1.
    #[arg(long, env = "DEVICE", default_value = "auto")]
    pub(super) device: Device,
    /// CPU threads; 0 = one per core.
    #[arg(long, env = "THREADS", default_value_t = 0)]
    pub(super) threads: usize,
    /// Precision of the weights on the CPU.
    #[arg(long, env = "WEIGHTS", value_enum, default_value_t = Weights::F32)]
    pub(super) weights: Weights,
}

/// Precision of the weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Weights {
    F32,
    Bf16,
    Int8,
}

impl Weights {
    /// Of a stored weight.
    pub(super) fn bytes(self) -> usize {
        match self {
            Weights::F32 => 4,
            Weights::Bf16 => 2,
            Weights::Int8 => 1,
        }
    }
}

impl From<Weights> for WeightPrecision {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::F32 => Self::F32,
            Weights::Bf16 => Self::Bf16,
            Weights::Int8 => Self::Int8,
        }
    }
}

impl ModelArgs {
    /// Loads the model; `running` is the number of segments that may be synthesised at the same time.
    pub(super) fn open(&self, running: usize, trace: bool) -> anyhow::Result<Synthesizer> {
        let dir = resolve_model_dir(self.model.as_deref())?;
        let options = SynthesizerOptions {
            device: self.device.clone(),
            threads: self.threads,
            weights: self.weights.into(),
            voices_dir: self.data.join("voices"),
            max_running: running,
            trace,
            ..SynthesizerOptions::default()
        };
        Ok(Synthesizer::open(&dir, &options)?)
    }
}

/// The folder given, else the bundled model beside the executable, in the working directory or where it was built.
pub(super) fn resolve_model_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = given {
        anyhow::ensure!(
            dir.is_dir(),
            "model folder {} does not exist",
            dir.display()
        );
        return Ok(dir.to_owned());
    }
    let bundled = Path::new("weights/tiny");
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join(bundled)));
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(bundled);
    [beside, Some(bundled.to_owned()), Some(built)]
        .into_iter()
        .flatten()
        .find(|dir| Checkpoint::is_at(dir))
        .context("no model: give one with --model DIR or MODEL_DIR (see README.md)")
}

/// Whose voice, and how the text is spoken.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct VoiceArgs {
    /// A voice of the model or one added with `voices add`; the first one without this and without a prompt.
    #[arg(long, conflicts_with = "prompt_audio")]
    voice: Option<String>,
    /// A recording of the voice to clone (wav, mp3, flac, ogg, m4a; up to 30 s).
    #[arg(long, value_name = "FILE")]
    prompt_audio: Option<PathBuf>,
    /// What is said in the recording.
    #[arg(long, requires = "prompt_audio")]
    prompt_text: Option<String>,
    /// How to speak, in words.
    #[arg(long)]
    instruct: Option<String>,
    /// sft, zero-shot, cross-lingual or instruct; without it, what the other flags imply.
    #[arg(long, value_enum)]
    mode: Option<ModeName>,
    /// 0.5 to 2.0; not with --stream.
    #[arg(long, default_value_t = 1.0)]
    speed: f32,
    /// Same seed, same bytes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ModeName {
    Sft,
    ZeroShot,
    CrossLingual,
    Instruct,
}

impl VoiceArgs {
    /// An utterance of these settings, without its text.
    pub(super) fn utterance(&self, synthesizer: &Synthesizer) -> anyhow::Result<Utterance> {
        let voice = match (&self.prompt_audio, &self.voice) {
            (Some(path), _) => {
                let audio = std::fs::read(path)
                    .with_context(|| format!("--prompt-audio {}", path.display()))?;
                let text = self.prompt_text.as_deref().unwrap_or_default();
                let voice = synthesizer
                    .encode_voice(&audio, text)
                    .with_context(|| format!("--prompt-audio {}", path.display()))?;
                VoiceChoice::Given(voice.into())
            }
            (None, Some(name)) => VoiceChoice::Named(name.clone()),
            (None, None) => VoiceChoice::Named(synthesizer.default_voice()?),
        };
        Ok(Utterance {
            text: String::new(),
            mode: self.mode(synthesizer)?,
            voice,
            speed: self.speed,
            seed: self.seed,
            ..Utterance::default()
        })
    }

    /// The mode asked for, else the one that the flags imply.
    fn mode(&self, synthesizer: &Synthesizer) -> anyhow::Result<Option<Mode>> {
        let instruct = || -> anyhow::Result<Mode> {
            let text = self
                .instruct
                .as_deref()
                .context("--mode instruct needs --instruct TEXT")?;
            Ok(Mode::Instruct {
                instruction: synthesizer.frontend().prepare_instruction(text).tokens,
            })
        };
        Ok(match self.mode {
            Some(ModeName::Sft) => Some(Mode::Sft),
            Some(ModeName::ZeroShot) => Some(Mode::ZeroShot),
            Some(ModeName::CrossLingual) => Some(Mode::CrossLingual),
            Some(ModeName::Instruct) => Some(instruct()?),
            None if self.instruct.is_some() => Some(instruct()?),
            None => None,
        })
    }

    /// These settings with what a line of a batch says instead.
    pub(super) fn overridden(
        &self,
        voice: Option<String>,
        prompt_audio: Option<PathBuf>,
        prompt_text: Option<String>,
        instruct: Option<String>,
        mode: Option<&str>,
        speed: Option<f32>,
        seed: Option<u64>,
    ) -> anyhow::Result<Self> {
        let mut new = self.clone();
        if voice.is_some() || prompt_audio.is_some() {
            (new.voice, new.prompt_audio, new.prompt_text) = (voice, prompt_audio, prompt_text);
        }
        if let Some(mode) = mode {
            let parsed = <ModeName as clap::ValueEnum>::from_str(mode, false);
            new.mode = Some(parsed.map_err(|_| anyhow::anyhow!("unknown mode '{mode}'"))?);
        }
        new.instruct = instruct.or(new.instruct);
        new.speed = speed.unwrap_or(new.speed);
        new.seed = seed.unwrap_or(new.seed);
        Ok(new)
    }
}
