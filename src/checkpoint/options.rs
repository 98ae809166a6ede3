//! `cosyvoice2.yaml` and `CosyVoice-BlankEN/config.json` → [`ModelConfig`].
//!
//! Options that these models do not implement are errors rather than surprises, and every problem is noted. Constants that
//! upstream has in code (steps of the solver, blocks after upsampling, layers of the f0 predictor) are given here, once.

use serde::Deserialize;

use super::error::{Fault, Problem};
use super::yaml::{Document, Scalar};
use crate::backend::SampleParams;
use crate::model::config::{
    CfmConfig, EstimatorConfig, F0PredictorConfig, FlowConfig, FlowEncoderConfig, HiftConfig,
    LlmConfig, MelConfig, TimeSchedule,
};

/// Largest size that a configuration may name.
const MAX_SIZE: i64 = 1 << 24;
/// Longest list that a configuration may hold.
const MAX_LIST: usize = 64;

/// Reads values and notes what is wrong with them; a placeholder stands in for a bad value.
pub(super) struct Options<'a> {
    document: &'a Document,
    file: &'a str,
    problems: &'a mut Vec<Problem>,
}

/// The parts of Qwen2's `config.json` that matter here.
#[derive(Debug, Deserialize)]
pub(super) struct QwenConfig {
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_hidden_layers: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f32,
    #[serde(default = "default_rope_theta")]
    rope_theta: f32,
    max_position_embeddings: usize,
    hidden_act: String,
}

/// That of `Qwen2Config`.
fn default_rope_theta() -> f32 {
    10_000.0
}

impl QwenConfig {
    /// Parses the file's text.
    ///
    /// # Errors
    /// When it is not JSON, or a value is missing, of the wrong kind, or not supported.
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        let config: Self = serde_json::from_str(text).map_err(Fault::format)?;
        if config.hidden_act != "silu" {
            return Err(Fault::config("hidden_act", "silu", config.hidden_act));
        }
        Ok(config)
    }
}

impl<'a> Options<'a> {
    pub(super) fn new(
        document: &'a Document,
        file: &'a str,
        problems: &'a mut Vec<Problem>,
    ) -> Self {
        Self {
            document,
            file,
            problems,
        }
    }

    /// The language model. `text_rows` are the rows of the text embedding, where the weights are there.
    pub(super) fn llm(&mut self, qwen: &QwenConfig, text_rows: Option<usize>) -> LlmConfig {
        self.must_be_class("llm", "Qwen2LM");
        self.must_be_class("llm.llm", "Qwen2Encoder");
        let speech_token_size = self.size("llm.speech_token_size");
        let sampling = SampleParams {
            top_p: self.float_or("llm.sampling.top_p", 0.8),
            top_k: self.size_or("llm.sampling.top_k", 25),
            window: self.size_or("llm.sampling.win_size", 10),
            repetition_rate: self.float_or("llm.sampling.tau_r", 0.1),
        };
        self.must_be_class("llm.sampling", "ras_sampling");
        let heads = qwen.num_attention_heads;
        LlmConfig {
            hidden_size: qwen.hidden_size,
            num_layers: qwen.num_hidden_layers,
            num_heads: heads,
            num_kv_heads: qwen.num_key_value_heads,
            head_dim: qwen
                .head_dim
                .unwrap_or_else(|| qwen.hidden_size.checked_div(heads).unwrap_or(0)),
            intermediate_size: qwen.intermediate_size,
            text_vocab_size: text_rows.unwrap_or(qwen.vocab_size),
            max_positions: qwen.max_position_embeddings,
            rms_norm_eps: qwen.rms_norm_eps,
            rope_theta: qwen.rope_theta,
            speech_token_size,
            speech_vocab_size: speech_token_size + 3,
            mix_ratio: [
                self.size_or("llm.mix_ratio.0", 5),
                self.size_or("llm.mix_ratio.1", 15),
            ],
            sampling,
        }
    }

    pub(super) fn flow(&mut self) -> FlowConfig {
        self.must_be_class("flow", "CausalMaskedDiffWithXvec");
        FlowConfig {
            input_size: self.size("flow.input_size"),
            output_size: self.size("flow.output_size"),
            spk_embed_dim: self.size("flow.spk_embed_dim"),
            vocab_size: self.size("flow.vocab_size"),
            token_mel_ratio: self.size_or("flow.token_mel_ratio", 2),
            pre_lookahead_len: self.size_or("flow.pre_lookahead_len", 3),
            encoder: self.encoder(),
            cfm: self.cfm(),
            estimator: self.estimator(),
        }
    }

    fn encoder(&mut self) -> FlowEncoderConfig {
        self.must_be_class("flow.encoder", "UpsampleConformerEncoder");
        self.must_be("flow.encoder.normalize_before", &[Scalar::Bool(true)], true);
        self.must_be("flow.encoder.macaron_style", &[Scalar::Bool(false)], false);
        self.must_be("flow.encoder.use_cnn_module", &[Scalar::Bool(false)], false);
        self.must_be("flow.encoder.input_layer", &[text("linear")], false);
        let rel_pos = [text("rel_pos_espnet")];
        self.must_be("flow.encoder.pos_enc_layer_type", &rel_pos, false);
        let attention = [text("rel_selfattn")];
        self.must_be("flow.encoder.selfattention_layer_type", &attention, true);
        FlowEncoderConfig {
            input_size: self.size("flow.encoder.input_size"),
            output_size: self.size("flow.encoder.output_size"),
            attention_heads: self.size("flow.encoder.attention_heads"),
            linear_units: self.size("flow.encoder.linear_units"),
            num_blocks: self.size("flow.encoder.num_blocks"),
            num_up_blocks: 4,
            up_stride: 2,
            static_chunk_size: self.size("flow.encoder.static_chunk_size"),
            block_norm_eps: 1e-12,
            norm_eps: 1e-5,
        }
    }

    fn cfm(&mut self) -> CfmConfig {
        self.must_be_class("flow.decoder", "CausalConditionalCFM");
        let key = "flow.decoder.cfm_params.content";
        self.must_be(&format!("{key}.solver"), &[text("euler")], true);
        let schedule = format!("{key}.t_scheduler");
        let t_scheduler = match self.document.get(&schedule) {
            Ok(Some(Scalar::Str(name))) if name == "cosine" => TimeSchedule::Cosine,
            _ => {
                self.must_be(&schedule, &[text("cosine"), text("linear")], false);
                TimeSchedule::Linear
            }
        };
        CfmConfig {
            t_scheduler,
            inference_cfg_rate: self.float(&format!("{key}.inference_cfg_rate")),
            n_timesteps: 10,
            noise_len: 50 * 300,
        }
    }

    fn estimator(&mut self) -> EstimatorConfig {
        let key = "flow.decoder.estimator";
        self.must_be_class(key, "CausalConditionalDecoder");
        self.must_be(&format!("{key}.act_fn"), &[text("gelu")], false);
        let left = format!("{key}.num_decoding_left_chunks");
        if !matches!(self.document.get(&left), Ok(Some(Scalar::Int(n))) if n < 0) {
            self.complain(&left, "a negative number (all left chunks)");
        }
        EstimatorConfig {
            in_channels: self.size(&format!("{key}.in_channels")),
            out_channels: self.size(&format!("{key}.out_channels")),
            channels: self.sizes(&format!("{key}.channels")),
            attention_head_dim: self.size(&format!("{key}.attention_head_dim")),
            n_blocks: self.size(&format!("{key}.n_blocks")),
            num_mid_blocks: self.size(&format!("{key}.num_mid_blocks")),
            num_heads: self.size(&format!("{key}.num_heads")),
            static_chunk_size: self.size(&format!("{key}.static_chunk_size")),
        }
    }

    pub(super) fn hift(&mut self) -> HiftConfig {
        self.must_be_class("hift", "HiFTGenerator");
        self.must_be_class("hift.f0_predictor", "ConvRNNF0Predictor");
        HiftConfig {
            in_channels: self.size("hift.in_channels"),
            base_channels: self.size("hift.base_channels"),
            nb_harmonics: self.size("hift.nb_harmonics"),
            sampling_rate: self.size("hift.sampling_rate"),
            nsf_alpha: self.float_or("hift.nsf_alpha", 0.1),
            nsf_sigma: self.float_or("hift.nsf_sigma", 0.003),
            nsf_voiced_threshold: self.float_or("hift.nsf_voiced_threshold", 10.0),
            upsample_rates: self.sizes("hift.upsample_rates"),
            upsample_kernel_sizes: self.sizes("hift.upsample_kernel_sizes"),
            istft_n_fft: self.size("hift.istft_params.n_fft"),
            istft_hop_len: self.size("hift.istft_params.hop_len"),
            resblock_kernel_sizes: self.sizes("hift.resblock_kernel_sizes"),
            resblock_dilation_sizes: self.nested("hift.resblock_dilation_sizes"),
            source_resblock_kernel_sizes: self.sizes("hift.source_resblock_kernel_sizes"),
            source_resblock_dilation_sizes: self.nested("hift.source_resblock_dilation_sizes"),
            lrelu_slope: self.float_or("hift.lrelu_slope", 0.1),
            audio_limit: self.float_or("hift.audio_limit", 0.99),
            f0_predictor: F0PredictorConfig {
                num_class: self.size_or("hift.f0_predictor.num_class", 1),
                in_channels: self.size_or("hift.f0_predictor.in_channels", 80),
                cond_channels: self.size_or("hift.f0_predictor.cond_channels", 512),
                num_layers: 5,
            },
        }
    }

    pub(super) fn feat_extractor(&mut self) -> MelConfig {
        self.must_be_class("feat_extractor", "mel_spectrogram");
        let fmax = match self.document.get("feat_extractor.fmax") {
            Ok(None | Some(Scalar::Null)) => None,
            _ => Some(self.float("feat_extractor.fmax")),
        };
        self.must_be("feat_extractor.center", &[Scalar::Bool(false)], true);
        MelConfig {
            n_fft: self.size("feat_extractor.n_fft"),
            num_mels: self.size("feat_extractor.num_mels"),
            sampling_rate: self.size("feat_extractor.sampling_rate"),
            hop_size: self.size("feat_extractor.hop_size"),
            win_size: self.size("feat_extractor.win_size"),
            fmin: self.float("feat_extractor.fmin"),
            fmax,
            center: false,
        }
    }

    /// A positive integer.
    pub(super) fn size(&mut self, key: &str) -> usize {
        match self.document.get(key) {
            Ok(Some(Scalar::Int(n))) if (1..=MAX_SIZE).contains(&n) => n as usize,
            _ => {
                self.complain(key, "a positive integer");
                1
            }
        }
    }

    fn size_or(&mut self, key: &str, default: usize) -> usize {
        match self.document.get(key) {
            Ok(None) => default,
            _ => self.size(key),
        }
    }

    fn float(&mut self, key: &str) -> f32 {
        match self.document.get(key) {
            Ok(Some(Scalar::Float(x))) if x.is_finite() => x as f32,
            Ok(Some(Scalar::Int(n))) => n as f32,
            _ => {
                self.complain(key, "a number");
                1.0
            }
        }
    }

    fn float_or(&mut self, key: &str, default: f32) -> f32 {
        match self.document.get(key) {
            Ok(None) => default,
            _ => self.float(key),
        }
    }

    fn sizes(&mut self, key: &str) -> Vec<usize> {
        let len = self.list(key);
        (0..len).map(|i| self.size(&format!("{key}.{i}"))).collect()
    }

    fn nested(&mut self, key: &str) -> Vec<Vec<usize>> {
        let len = self.list(key);
        (0..len)
            .map(|i| self.sizes(&format!("{key}.{i}")))
            .collect()
    }

    fn list(&mut self, key: &str) -> usize {
        match self.document.len(key) {
            Ok(Some(len)) if (1..=MAX_LIST).contains(&len) => len,
            _ => {
                self.complain(key, "a list");
                0
            }
        }
    }

    /// The object's class, wherever its module lies.
    fn must_be_class(&mut self, key: &str, class: &str) {
        let found = match self.document.class(key) {
            Ok(Some(path)) if path.rsplit('.').next() == Some(class) => return,
            Ok(Some(path)) => path.to_string(),
            Ok(None) => "nothing".to_string(),
            Err(error) => error,
        };
        let fault = Fault::config(key, class, found);
        self.problems.push(fault.of(self.file));
    }

    /// One of the supported values; absent is fine where upstream's default is supported.
    fn must_be(&mut self, key: &str, supported: &[Scalar], default_ok: bool) {
        match self.document.get(key) {
            Ok(None) if default_ok => {}
            Ok(Some(value)) if supported.contains(&value) => {}
            _ => {
                let supported: Vec<String> = supported.iter().map(show).collect();
                self.complain(key, &supported.join(" or "));
            }
        }
    }

    fn complain(&mut self, key: &str, expected: &str) {
        let found = match self.document.get(key) {
            Ok(Some(value)) => show(&value),
            Ok(None) => "nothing".to_string(),
            Err(error) => error,
        };
        let fault = Fault::config(key, expected, found);
        self.problems.push(fault.of(self.file));
    }
}

fn text(text: &str) -> Scalar {
    Scalar::Str(text.to_string())
}

fn show(value: &Scalar) -> String {
    match value {
        Scalar::Null => "null".to_string(),
        Scalar::Bool(b) => b.to_string(),
        Scalar::Int(n) => n.to_string(),
        Scalar::Float(x) => x.to_string(),
        Scalar::Str(s) => s.clone(),
    }
}
