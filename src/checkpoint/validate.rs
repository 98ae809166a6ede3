//! Whether the sizes of a configuration fit each other: after this no model can be built that would fail on a shape.

use super::error::Fault;
use crate::model::config::{
    EstimatorConfig, FlowEncoderConfig, HiftConfig, LlmConfig, ModelConfig, SpeakerConfig,
    SpeechTokensConfig,
};

/// Widest layer.
const MAX_WIDTH: usize = 1 << 15;
/// Longest table.
const MAX_ROWS: usize = 1 << 20;
/// Most layers, heads, kernel taps and the like.
const MAX_COUNT: usize = 1 << 12;

/// Everything that does not fit.
pub(super) fn check(config: &ModelConfig) -> Vec<Fault> {
    let mut faults = Faults(Vec::new());
    faults.llm(&config.llm);
    faults.encoder(&config.flow.encoder);
    faults.estimator(&config.flow.estimator);
    faults.hift(&config.hift);
    if let Some(speaker) = &config.speaker {
        faults.speaker(speaker);
    }
    if let Some(tokens) = &config.speech_tokens {
        faults.speech_tokens(tokens);
    }
    faults.seams(config);
    faults.0
}

struct Faults(Vec<Fault>);

impl Faults {
    fn at_most(&mut self, limit: usize, sizes: &[(&str, usize)]) {
        for &(key, size) in sizes {
            if size == 0 || size > limit {
                let fault = Fault::config(key, format!("1 to {limit}"), size);
                self.0.push(fault);
            }
        }
    }

    fn equal(&mut self, key: &str, found: usize, other: &str, expected: usize) {
        if found != expected {
            let fault = Fault::config(key, format!("{expected} as {other}"), found);
            self.0.push(fault);
        }
    }

    fn multiple(&mut self, key: &str, size: usize, of: &str, divisor: usize) {
        if divisor == 0 || !size.is_multiple_of(divisor) {
            let fault = Fault::config(key, format!("a multiple of {of} = {divisor}"), size);
            self.0.push(fault);
        }
    }

    fn llm(&mut self, c: &LlmConfig) {
        self.at_most(
            MAX_WIDTH,
            &[
                ("llm.hidden_size", c.hidden_size),
                ("llm.intermediate_size", c.intermediate_size),
            ],
        );
        self.at_most(
            MAX_COUNT,
            &[
                ("llm.num_layers", c.num_layers),
                ("llm.num_heads", c.num_heads),
                ("llm.num_kv_heads", c.num_kv_heads),
                ("llm.head_dim", c.head_dim),
                ("llm.sampling.window", c.sampling.window),
                ("llm.mix_ratio.0", c.mix_ratio[0]),
                ("llm.mix_ratio.1", c.mix_ratio[1]),
            ],
        );
        self.at_most(
            MAX_ROWS,
            &[
                ("llm.text_vocab_size", c.text_vocab_size),
                ("llm.speech_vocab_size", c.speech_vocab_size),
                ("llm.max_positions", c.max_positions),
                ("llm.sampling.top_k", c.sampling.top_k),
            ],
        );
        self.multiple(
            "llm.num_heads",
            c.num_heads,
            "llm.num_kv_heads",
            c.num_kv_heads,
        );
        self.multiple("llm.head_dim", c.head_dim, "the rotated halves", 2);
        let special = c.speech_token_size.saturating_add(3);
        self.equal(
            "llm.speech_vocab_size",
            c.speech_vocab_size,
            "speech_token_size + 3",
            special,
        );
    }

    fn encoder(&mut self, c: &FlowEncoderConfig) {
        self.at_most(
            MAX_WIDTH,
            &[
                ("flow.encoder.input_size", c.input_size),
                ("flow.encoder.output_size", c.output_size),
                ("flow.encoder.linear_units", c.linear_units),
            ],
        );
        self.at_most(
            MAX_COUNT,
            &[
                ("flow.encoder.attention_heads", c.attention_heads),
                ("flow.encoder.num_blocks", c.num_blocks),
                ("flow.encoder.num_up_blocks", c.num_up_blocks),
                ("flow.encoder.up_stride", c.up_stride),
                ("flow.encoder.static_chunk_size", c.static_chunk_size),
            ],
        );
        let (width, heads) = (c.output_size, c.attention_heads);
        self.multiple("flow.encoder.output_size", width, "attention_heads", heads);
        self.multiple("flow.encoder.output_size", width, "sine and cosine", 2);
    }

    fn estimator(&mut self, c: &EstimatorConfig) {
        self.at_most(
            MAX_WIDTH,
            &[
                ("flow.estimator.in_channels", c.in_channels),
                ("flow.estimator.out_channels", c.out_channels),
            ],
        );
        self.at_most(
            MAX_COUNT,
            &[
                ("flow.estimator.attention_head_dim", c.attention_head_dim),
                ("flow.estimator.n_blocks", c.n_blocks),
                ("flow.estimator.num_mid_blocks", c.num_mid_blocks),
                ("flow.estimator.num_heads", c.num_heads),
                ("flow.estimator.static_chunk_size", c.static_chunk_size),
            ],
        );
        // One level, as every published checkpoint: a second one would halve the time axis.
        self.equal(
            "flow.estimator.channels",
            c.channels.len(),
            "the levels supported",
            1,
        );
        for &channels in &c.channels {
            self.at_most(MAX_WIDTH, &[("flow.estimator.channels", channels)]);
        }
    }

    fn hift(&mut self, c: &HiftConfig) {
        self.at_most(
            MAX_WIDTH,
            &[
                ("hift.in_channels", c.in_channels),
                ("hift.base_channels", c.base_channels),
                (
                    "hift.f0_predictor.cond_channels",
                    c.f0_predictor.cond_channels,
                ),
            ],
        );
        self.at_most(
            MAX_COUNT,
            &[
                ("hift.nb_harmonics", c.nb_harmonics),
                ("hift.istft_n_fft", c.istft_n_fft),
                ("hift.istft_hop_len", c.istft_hop_len),
                ("hift.f0_predictor.num_layers", c.f0_predictor.num_layers),
            ],
        );
        let (rates, kernels) = (&c.upsample_rates, &c.upsample_kernel_sizes);
        let dilations = c.resblock_dilation_sizes.iter().flatten();
        let source_dilations = c.source_resblock_dilation_sizes.iter().flatten();
        let all = rates
            .iter()
            .chain(kernels)
            .chain(dilations)
            .chain(source_dilations);
        let all = all.chain(&c.resblock_kernel_sizes);
        for &size in all.chain(&c.source_resblock_kernel_sizes) {
            self.at_most(MAX_COUNT, &[("hift rates, kernels and dilations", size)]);
        }
        let levels = rates.len();
        self.at_most(8, &[("hift.upsample_rates", levels)]);
        let source = c.source_resblock_kernel_sizes.len();
        let (count, source_count) = (
            c.resblock_dilation_sizes.len(),
            c.source_resblock_dilation_sizes.len(),
        );
        let rates_key = "the number of upsample_rates";
        self.equal(
            "hift.upsample_kernel_sizes",
            kernels.len(),
            rates_key,
            levels,
        );
        self.equal(
            "hift.source_resblock_kernel_sizes",
            source,
            rates_key,
            levels,
        );
        self.equal(
            "hift.source_resblock_dilation_sizes",
            source_count,
            rates_key,
            levels,
        );
        let blocks = c.resblock_kernel_sizes.len();
        self.equal(
            "hift.resblock_dilation_sizes",
            count,
            "the number of kernels",
            blocks,
        );
        let divisor = 1usize.checked_shl(levels as u32).unwrap_or(usize::MAX);
        self.multiple("hift.base_channels", c.base_channels, "2^levels", divisor);
        for (&rate, &kernel) in rates.iter().zip(kernels) {
            let fits = kernel >= rate && (kernel - rate).is_multiple_of(2);
            if !fits {
                let expected = format!("{rate} plus an even number");
                let fault = Fault::config("hift.upsample_kernel_sizes", expected, kernel);
                self.0.push(fault);
            }
        }
        self.equal(
            "hift.f0_predictor.in_channels",
            c.f0_predictor.in_channels,
            "hift.in_channels",
            c.in_channels,
        );
        self.equal(
            "hift.f0_predictor.num_class",
            c.f0_predictor.num_class,
            "one pitch",
            1,
        );
        self.multiple(
            "hift.istft_n_fft",
            c.istft_n_fft,
            "the hop",
            c.istft_hop_len,
        );
        self.multiple("hift.istft_n_fft", c.istft_n_fft, "a half spectrum", 2);
    }

    fn speaker(&mut self, c: &SpeakerConfig) {
        self.at_most(
            MAX_WIDTH,
            &[
                ("speaker.feat_dim", c.feat_dim),
                ("speaker.embedding", c.embedding),
            ],
        );
        self.at_most(
            MAX_COUNT,
            &[
                ("speaker.head_out_stride", c.head_out_stride),
                ("speaker.tdnn_stride", c.tdnn_stride),
                ("speaker.segment", c.segment),
                ("speaker.head_strides", c.head_strides.len()),
                ("speaker.blocks", c.blocks.len()),
            ],
        );
        for &stride in c.head_strides.iter().flatten() {
            self.at_most(MAX_COUNT, &[("speaker.head_strides", stride)]);
        }
        for block in &c.blocks {
            self.at_most(MAX_COUNT, &[("speaker.blocks.layers", block.layers)]);
            self.at_most(MAX_COUNT, &[("speaker.blocks.dilation", block.dilation)]);
        }
    }

    fn speech_tokens(&mut self, c: &SpeechTokensConfig) {
        self.at_most(
            MAX_WIDTH,
            &[
                ("speech_tokens.num_mels", c.num_mels),
                ("speech_tokens.state", c.state),
            ],
        );
        self.at_most(
            MAX_COUNT,
            &[
                ("speech_tokens.num_heads", c.num_heads),
                ("speech_tokens.num_blocks", c.num_blocks),
                ("speech_tokens.fsq_levels", c.fsq_levels),
            ],
        );
        self.at_most(12, &[("speech_tokens.fsq_digits", c.fsq_digits)]);
        self.equal(
            "speech_tokens.strides",
            c.strides.len(),
            "the stem's convolutions",
            2,
        );
        for &stride in &c.strides {
            self.at_most(MAX_COUNT, &[("speech_tokens.strides", stride)]);
        }
        let twice = c.num_heads.saturating_mul(2);
        self.multiple("speech_tokens.state", c.state, "2 · num_heads", twice);
    }

    /// Sizes on which two models must agree.
    fn seams(&mut self, c: &ModelConfig) {
        let (flow, hift, mel) = (&c.flow, &c.hift, &c.feat_extractor);
        let mels = flow.output_size;
        self.at_most(
            MAX_WIDTH,
            &[
                ("flow.input_size", flow.input_size),
                ("flow.output_size", mels),
                ("flow.spk_embed_dim", flow.spk_embed_dim),
                ("feat_extractor.n_fft", mel.n_fft),
                ("feat_extractor.hop_size", mel.hop_size),
            ],
        );
        self.at_most(
            MAX_COUNT,
            &[
                ("flow.pre_lookahead_len", flow.pre_lookahead_len),
                ("flow.cfm.n_timesteps", flow.cfm.n_timesteps),
                ("token_mel_ratio", c.token_mel_ratio),
                ("chunk_size", c.chunk_size),
            ],
        );
        self.at_most(
            MAX_ROWS,
            &[
                ("flow.vocab_size", flow.vocab_size),
                ("flow.cfm.noise_len", flow.cfm.noise_len),
            ],
        );
        let (estimator, encoder) = (&flow.estimator, &flow.encoder);
        self.equal(
            "flow.encoder.input_size",
            encoder.input_size,
            "flow.input_size",
            flow.input_size,
        );
        self.equal(
            "flow.encoder.up_stride",
            encoder.up_stride,
            "token_mel_ratio",
            c.token_mel_ratio,
        );
        self.equal(
            "flow.token_mel_ratio",
            flow.token_mel_ratio,
            "token_mel_ratio",
            c.token_mel_ratio,
        );
        self.equal(
            "flow.estimator.out_channels",
            estimator.out_channels,
            "flow.output_size",
            mels,
        );
        self.equal(
            "flow.estimator.in_channels",
            estimator.in_channels,
            "4 · flow.output_size",
            4 * mels,
        );
        self.equal(
            "hift.in_channels",
            hift.in_channels,
            "flow.output_size",
            mels,
        );
        self.equal(
            "hift.sampling_rate",
            hift.sampling_rate,
            "sample_rate",
            c.sample_rate,
        );
        self.equal(
            "feat_extractor.num_mels",
            mel.num_mels,
            "flow.output_size",
            mels,
        );
        self.equal(
            "feat_extractor.sampling_rate",
            mel.sampling_rate,
            "sample_rate",
            c.sample_rate,
        );
        self.equal(
            "feat_extractor.win_size",
            mel.win_size,
            "feat_extractor.n_fft",
            mel.n_fft,
        );
        if self.0.is_empty() {
            let frame = hift.samples_per_frame();
            self.equal(
                "feat_extractor.hop_size",
                mel.hop_size,
                "a frame of the vocoder",
                frame,
            );
            let rate = c.token_frame_rate * c.token_mel_ratio * frame;
            self.equal(
                "sample_rate",
                c.sample_rate,
                "token rate · mel ratio · frame",
                rate,
            );
        }
        if let Some(tokens) = &c.speech_tokens {
            let codes = u32::try_from(tokens.fsq_digits)
                .ok()
                .and_then(|digits| tokens.fsq_levels.checked_pow(digits));
            let codes = codes.unwrap_or(usize::MAX);
            self.at_most(flow.vocab_size, &[("codes of the speech tokenizer", codes)]);
        }
        if let Some(speaker) = &c.speaker {
            let size = flow.spk_embed_dim;
            self.equal(
                "speaker.embedding",
                speaker.embedding,
                "flow.spk_embed_dim",
                size,
            );
        }
    }
}
