//! The HiFT vocoder: mel in, waveform out.
//!
//! A small network reads the fundamental frequency off the mel; its harmonics and some noise make a source signal; a generator
//! shapes that source by the mel and ends in an inverse STFT. [`Hift::run`] takes a ragged batch of chunks. When streaming, each chunk begins with the
//! frames that the previous one ended with, and the source that was made for them is given back so that the joint is seamless.
//!
//! Reference: `HiFTGenerator` of CosyVoice2 (`cosyvoice/hifigan/generator.py`), HiFTNet (arXiv 2309.09493).

mod f0;
mod generator;
mod resblock;

use f0::F0Predictor;
use generator::{Generator, Scratch};

use crate::backend::{Backend, Result, SineSource, SourceNoise};
use crate::checkpoint::Scope;
use crate::model::config::HiftConfig;
use crate::tensor::{Segments, Tensor, Trace};

/// The vocoder's weights.
pub struct Hift<B: Backend> {
    f0: F0Predictor<B>,
    source: SineSource,
    source_w: Tensor<B>,
    source_b: Tensor<B>,
    generator: Generator<B>,
    samples_per_frame: usize,
}

/// Activations of a run; kept and reused, it allocates nothing once it has seen the largest batch.
pub struct HiftWorkspace<B: Backend> {
    f0_layers: [Tensor<B>; 2],
    f0: Tensor<B>,
    source: Tensor<B>,
    samples: Segments<B>,
    scratch: Scratch<B>,
    wave: Tensor<B>,
}

impl<B: Backend> HiftWorkspace<B> {
    /// # Errors
    /// When the backend cannot allocate.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            f0_layers: [backend.alloc_f32(0, 0)?, backend.alloc_f32(0, 0)?],
            f0: backend.alloc_f32(0, 0)?,
            source: backend.alloc_f32(0, 0)?,
            samples: Segments::new(backend, &[])?,
            scratch: Scratch::new(backend)?,
            wave: backend.alloc_f32(0, 0)?,
        })
    }

    /// Fundamental frequency in Hz, `[N, 1]`, of the last run.
    pub fn f0(&self) -> &Tensor<B> {
        &self.f0
    }

    /// The same, to be replaced between the stages.
    pub fn f0_mut(&mut self) -> &mut Tensor<B> {
        &mut self.f0
    }

    /// Source signal `[Σ samples, 1]` of the last run, cached beginnings included.
    pub fn source(&self) -> &Tensor<B> {
        &self.source
    }

    /// Waveform `[Σ samples, 1]` of the last run.
    pub fn wave(&self) -> &Tensor<B> {
        &self.wave
    }

    /// Samples of each sequence of the last run.
    pub fn samples(&self) -> &Segments<B> {
        &self.samples
    }
}

impl<B: Backend> Hift<B> {
    /// Packs the weights of `hift.pt` (or the same names elsewhere).
    ///
    /// # Errors
    /// When the backend cannot allocate. What is wrong with the tensors is noted in the scope's file.
    pub fn load(backend: &B, scope: &Scope<'_>, config: &HiftConfig) -> Result<Self> {
        let harmonics = config.nb_harmonics + 1;
        let linear = scope.at("m_source.l_linear");
        Ok(Self {
            f0: F0Predictor::load(backend, &scope.at("f0_predictor"), &config.f0_predictor)?,
            source: SineSource {
                upsample: config.samples_per_frame(),
                sample_rate_hz: config.sampling_rate as f32,
                harmonics,
                sine_amp: config.nsf_alpha,
                noise_std: config.nsf_sigma,
                voiced_threshold_hz: config.nsf_voiced_threshold,
            },
            source_w: vector(backend, scope, "m_source.l_linear.weight", &[1, harmonics])?,
            source_b: vector(backend, &linear, "bias", &[1])?,
            generator: Generator::load(backend, scope, config)?,
            samples_per_frame: config.samples_per_frame(),
        })
    }

    /// Samples per second of the waveform.
    pub fn sample_rate_hz(&self) -> u32 {
        self.source.sample_rate_hz as u32
    }

    /// Samples per mel frame.
    pub fn samples_per_frame(&self) -> usize {
        self.samples_per_frame
    }

    /// Vocodes a batch: `mel [N, mels]`, at least one frame per sequence; the waveform is in the workspace afterwards.
    ///
    /// `cached[b]` replaces the beginning of the source of sequence `b` (`[K, 1]`, K at most its samples). Noise made by Philox depends on the absolute
    /// position of a sample, so that a chunked run draws what a whole one draws.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run(
        &self,
        backend: &B,
        mel: &Tensor<B>,
        segments: &Segments<B>,
        cached: &[Option<&Tensor<B>>],
        noise: SourceNoise<'_, B>,
        ws: &mut HiftWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        self.predict_f0(backend, mel, segments, ws, trace)?;
        self.make_source(backend, segments, cached, noise, ws, trace)?;
        self.generate(backend, mel, segments, ws, trace)
    }

    /// First stage: f0 from the mel.
    ///
    /// # Errors
    /// When the device fails.
    pub fn predict_f0(
        &self,
        backend: &B,
        mel: &Tensor<B>,
        segments: &Segments<B>,
        ws: &mut HiftWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let [a, b] = &mut ws.f0_layers;
        self.f0.run(backend, mel, segments, a, b, &mut ws.f0)?;
        trace.record(backend, "hift.f0", &ws.f0)
    }

    /// Second stage: the source from the f0 in the workspace; its beginning is replaced where there is a cached one.
    ///
    /// # Errors
    /// When the device fails.
    pub fn make_source(
        &self,
        backend: &B,
        segments: &Segments<B>,
        cached: &[Option<&Tensor<B>>],
        noise: SourceNoise<'_, B>,
        ws: &mut HiftWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let samples: Vec<usize> = segments
            .lengths()
            .map(|frames| frames * self.samples_per_frame)
            .collect();
        ws.samples.update(backend, &samples)?;
        backend.resize(&mut ws.source, ws.samples.total(), 1)?;
        let (w, b) = (&self.source_w, &self.source_b);
        backend.sine_source(&ws.f0, segments, &self.source, noise, w, b, &mut ws.source)?;
        for (b, cached) in cached.iter().enumerate() {
            if let Some(cached) = cached {
                let start = ws.samples.range(b).start;
                backend.copy_rows(cached, 0, &mut ws.source, start, cached.rows())?;
            }
        }
        trace.record(backend, "hift.source", &ws.source)
    }

    /// Third stage: the waveform from the mel and the source in the workspace.
    ///
    /// # Errors
    /// When the device fails.
    pub fn generate(
        &self,
        backend: &B,
        mel: &Tensor<B>,
        segments: &Segments<B>,
        ws: &mut HiftWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        let HiftWorkspace {
            source,
            samples,
            scratch,
            wave,
            ..
        } = ws;
        let input = generator::Input {
            mel,
            frames: segments,
            source,
            samples,
        };
        self.generator.run(backend, input, scratch, wave, trace)?;
        trace.record(backend, "hift.wav", wave)
    }
}

/// A small weight as one row.
fn vector<B: Backend>(
    backend: &B,
    scope: &Scope<'_>,
    name: &str,
    shape: &[usize],
) -> Result<Tensor<B>> {
    let w = scope.weight(name, shape);
    backend.tensor(1, w.len(), &w.to_f32())
}
