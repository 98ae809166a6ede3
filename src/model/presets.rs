//! Dims of published models, for benchmarks on random weights and for the check against the published lists of tensors.

use super::config::{
    CfmConfig, EstimatorConfig, F0PredictorConfig, FlowConfig, FlowEncoderConfig, HiftConfig,
    LlmConfig, MelConfig, ModelConfig, TimeSchedule,
};
use crate::backend::SampleParams;

impl ModelConfig {
    /// The preset of this name, `cosyvoice2-0.5b`; without the prompt encoders.
    pub fn preset(name: &str) -> Option<Self> {
        (name == "cosyvoice2-0.5b").then(|| Self {
            sample_rate: 24_000,
            token_frame_rate: 25,
            token_mel_ratio: 2,
            chunk_size: 25,
            llm: llm(),
            flow: flow(),
            hift: hift(),
            feat_extractor: MelConfig {
                n_fft: 1920,
                num_mels: 80,
                sampling_rate: 24_000,
                hop_size: 480,
                win_size: 1920,
                fmin: 0.0,
                fmax: Some(8000.0),
                center: false,
            },
            speaker: None,
            speech_tokens: None,
        })
    }
}

fn llm() -> LlmConfig {
    LlmConfig {
        hidden_size: 896,
        num_layers: 24,
        num_heads: 14,
        num_kv_heads: 2,
        head_dim: 64,
        intermediate_size: 4864,
        text_vocab_size: 151_936,
        max_positions: 32_768,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        speech_token_size: 6561,
        speech_vocab_size: 6564,
        mix_ratio: [5, 15],
        sampling: SampleParams {
            top_p: 0.8,
            top_k: 25,
            window: 10,
            repetition_rate: 0.1,
        },
    }
}

fn flow() -> FlowConfig {
    FlowConfig {
        input_size: 512,
        output_size: 80,
        spk_embed_dim: 192,
        vocab_size: 6561,
        token_mel_ratio: 2,
        pre_lookahead_len: 3,
        encoder: FlowEncoderConfig {
            input_size: 512,
            output_size: 512,
            attention_heads: 8,
            linear_units: 2048,
            num_blocks: 6,
            num_up_blocks: 4,
            up_stride: 2,
            static_chunk_size: 25,
            block_norm_eps: 1e-12,
            norm_eps: 1e-5,
        },
        cfm: CfmConfig {
            t_scheduler: TimeSchedule::Cosine,
            inference_cfg_rate: 0.7,
            n_timesteps: 10,
            noise_len: 15_000,
        },
        estimator: EstimatorConfig {
            in_channels: 320,
            out_channels: 80,
            channels: vec![256],
            attention_head_dim: 64,
            n_blocks: 4,
            num_mid_blocks: 12,
            num_heads: 8,
            static_chunk_size: 50,
        },
    }
}

fn hift() -> HiftConfig {
    let dilations = vec![vec![1, 3, 5]; 3];
    HiftConfig {
        in_channels: 80,
        base_channels: 512,
        nb_harmonics: 8,
        sampling_rate: 24_000,
        nsf_alpha: 0.1,
        nsf_sigma: 0.003,
        nsf_voiced_threshold: 10.0,
        upsample_rates: vec![8, 5, 3],
        upsample_kernel_sizes: vec![16, 11, 7],
        istft_n_fft: 16,
        istft_hop_len: 4,
        resblock_kernel_sizes: vec![3, 7, 11],
        resblock_dilation_sizes: dilations.clone(),
        source_resblock_kernel_sizes: vec![7, 7, 11],
        source_resblock_dilation_sizes: dilations,
        lrelu_slope: 0.1,
        audio_limit: 0.99,
        f0_predictor: F0PredictorConfig {
            num_class: 1,
            in_channels: 80,
            cond_channels: 512,
            num_layers: 5,
        },
    }
}
