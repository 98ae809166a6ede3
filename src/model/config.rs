//! Dims and options of every model, as plain data: nothing in the models' code knows a size.
//!
//! Filled by [`checkpoint`](crate::checkpoint) from `cosyvoice2.yaml`, `CosyVoice-BlankEN/config.json`, the ONNX graphs and
//! tensor shapes; written as the one `config.json` of a converted checkpoint. Names follow the upstream files.

use serde::{Deserialize, Serialize};

use crate::backend::SampleParams;

/// Everything but the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Output rate in Hz.
    pub sample_rate: usize,
    /// Speech tokens per second.
    pub token_frame_rate: usize,
    /// Mel frames per speech token.
    pub token_mel_ratio: usize,
    /// First streaming hop, in speech tokens.
    pub chunk_size: usize,
    pub llm: LlmConfig,
    pub flow: FlowConfig,
    pub hift: HiftConfig,
    /// The mel that conditions the flow on the prompt.
    pub feat_extractor: MelConfig,
    /// CAM++; absent when the checkpoint has no `campplus.onnx`.
    pub speaker: Option<SpeakerConfig>,
    /// Speech tokenizer; absent when the checkpoint has no `speech_tokenizer_v2.onnx`.
    pub speech_tokens: Option<SpeechTokensConfig>,
}

/// `Qwen2LM` around a Qwen2 decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LlmConfig {
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    /// Rows of the text embedding.
    pub text_vocab_size: usize,
    pub max_positions: usize,
    pub rms_norm_eps: f32,
    pub rope_theta: f32,
    /// Speech tokens without the special ones (`eos = speech_token_size`, `fill = speech_token_size + 2`).
    pub speech_token_size: usize,
    /// Rows of the speech embedding and of the speech head (`speech_token_size + 3`).
    pub speech_vocab_size: usize,
    /// Text and speech tokens of a block in text-in streaming.
    pub mix_ratio: [usize; 2],
    pub sampling: SampleParams,
}

/// `CausalMaskedDiffWithXvec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowConfig {
    /// Channels of the token embedding.
    pub input_size: usize,
    /// Mel channels.
    pub output_size: usize,
    pub spk_embed_dim: usize,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    pub token_mel_ratio: usize,
    /// Look-ahead of the encoder in speech tokens.
    pub pre_lookahead_len: usize,
    pub encoder: FlowEncoderConfig,
    pub cfm: CfmConfig,
    pub estimator: EstimatorConfig,
}

/// `UpsampleConformerEncoder` (no macaron, no convolution module, ESPnet relative positions, norm first).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FlowEncoderConfig {
    pub input_size: usize,
    pub output_size: usize,
    pub attention_heads: usize,
    pub linear_units: usize,
    /// Blocks before upsampling.
    pub num_blocks: usize,
    /// Blocks after upsampling.
    pub num_up_blocks: usize,
    /// Rows out per row in.
    pub up_stride: usize,
    /// Attention chunk in speech tokens when streaming; after upsampling `up_stride` times as long.
    pub static_chunk_size: usize,
    /// Epsilon of the blocks' norms (`norm_ff`, `norm_mha`).
    pub block_norm_eps: f32,
    /// Epsilon of the other norms (`embed`, `up_embed`, `after_norm`).
    pub norm_eps: f32,
}

/// `CausalConditionalCFM`: an Euler solver with classifier-free guidance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CfmConfig {
    pub t_scheduler: TimeSchedule,
    pub inference_cfg_rate: f32,
    /// Euler steps.
    pub n_timesteps: usize,
    /// Columns of the fixed noise buffer: the longest mel, prompt included.
    pub noise_len: usize,
}

/// Spacing of the Euler steps over `t` in `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeSchedule {
    /// `1 − cos(π t / 2)`
    Cosine,
    Linear,
}

/// `CausalConditionalDecoder`, the velocity network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EstimatorConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub channels: Vec<usize>,
    pub attention_head_dim: usize,
    /// Transformer blocks after each residual block.
    pub n_blocks: usize,
    pub num_mid_blocks: usize,
    pub num_heads: usize,
    /// Attention chunk in mel frames when streaming.
    pub static_chunk_size: usize,
}

/// `HiFTGenerator`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HiftConfig {
    /// Mel channels.
    pub in_channels: usize,
    pub base_channels: usize,
    /// Overtones above the fundamental.
    pub nb_harmonics: usize,
    /// Hz.
    pub sampling_rate: usize,
    /// Amplitude of the sines.
    pub nsf_alpha: f32,
    /// Noise beside the sines where voiced.
    pub nsf_sigma: f32,
    /// Hz.
    pub nsf_voiced_threshold: f32,
    pub upsample_rates: Vec<usize>,
    pub upsample_kernel_sizes: Vec<usize>,
    pub istft_n_fft: usize,
    pub istft_hop_len: usize,
    pub resblock_kernel_sizes: Vec<usize>,
    pub resblock_dilation_sizes: Vec<Vec<usize>>,
    pub source_resblock_kernel_sizes: Vec<usize>,
    pub source_resblock_dilation_sizes: Vec<Vec<usize>>,
    pub lrelu_slope: f32,
    pub audio_limit: f32,
    pub f0_predictor: F0PredictorConfig,
}

impl HiftConfig {
    /// Samples per mel frame: all upsampling rates times the hop of the inverse STFT.
    pub fn samples_per_frame(&self) -> usize {
        self.upsample_rates.iter().product::<usize>() * self.istft_hop_len
    }
}

/// `ConvRNNF0Predictor`: convolutions with ELU, then a linear layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct F0PredictorConfig {
    pub num_class: usize,
    pub in_channels: usize,
    pub cond_channels: usize,
    /// Convolutions, at `condnet.0`, `condnet.2`, …
    pub num_layers: usize,
}

/// `matcha.utils.audio.mel_spectrogram`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MelConfig {
    pub n_fft: usize,
    pub num_mels: usize,
    /// Hz.
    pub sampling_rate: usize,
    pub hop_size: usize,
    pub win_size: usize,
    /// Hz.
    pub fmin: f32,
    /// Hz; the Nyquist frequency when absent.
    pub fmax: Option<f32>,
    pub center: bool,
}

/// CAM++ (`campplus.onnx`). Widths come from the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeakerConfig {
    /// Mel bins of the input.
    pub feat_dim: usize,
    /// Size of the embedding.
    pub embedding: usize,
    /// Frequency strides of the residual blocks of each stage of the 2-D head (`head.layer1.0`, …).
    pub head_strides: Vec<Vec<usize>>,
    /// Frequency stride of the head's last convolution.
    pub head_out_stride: usize,
    /// Time stride of the first TDNN layer.
    pub tdnn_stride: usize,
    /// Layers and dilation of each densely connected block.
    pub blocks: Vec<DenseBlockConfig>,
    /// Frames of a segment of the context mask's pooling.
    pub segment: usize,
    /// Whether the last, shorter segment's sum is divided by the full length all the same.
    pub count_include_pad: bool,
    pub norm_eps: f32,
}

/// One densely connected block of CAM++.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DenseBlockConfig {
    pub layers: usize,
    pub dilation: usize,
}

/// Speech tokenizer v2 (`speech_tokenizer_v2.onnx`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SpeechTokensConfig {
    /// Mel bins of the input.
    pub num_mels: usize,
    pub state: usize,
    pub num_heads: usize,
    pub num_blocks: usize,
    /// Time strides of the two stem convolutions.
    pub strides: Vec<usize>,
    /// Zero padding of the FSMN memory: rows before, rows after.
    pub fsmn_padding: [usize; 2],
    pub attn_norm_eps: f32,
    pub mlp_norm_eps: f32,
    pub rope_theta: f32,
    /// Levels of each digit of the quantizer; the code has `fsq_digits` digits.
    pub fsq_levels: usize,
    pub fsq_digits: usize,
}
