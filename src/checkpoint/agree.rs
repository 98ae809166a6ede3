//! Whether the configuration speaks of the same model as the weights: the sizes that decide how much memory loading takes
//! are compared with the tensors before anything is loaded.

use super::Files;
use super::error::{Fault, Problem};
use super::tensors::TensorFile;
use crate::model::config::ModelConfig;

/// A size of the configuration that is not that of the tensor which has it. Tensors that are missing are found on loading.
pub(super) fn check(config: &ModelConfig, files: &Files) -> Vec<Problem> {
    let (llm, flow, hift) = (&config.llm, &config.flow, &config.hift);
    let block = "llm.model.model.layers.0";
    let encoder = &flow.encoder;
    let mut problems = Vec::new();
    let mut sizes = |file: &TensorFile, sizes: &[(&str, usize, &str, usize)]| {
        let wrong = sizes.iter().filter_map(|size| disagreement(file, size));
        problems.extend(wrong);
    };
    sizes(
        &files.llm,
        &[
            (
                "llm.hidden_size",
                llm.hidden_size,
                "llm.model.model.norm.weight",
                0,
            ),
            (
                "llm.intermediate_size",
                llm.intermediate_size,
                &format!("{block}.mlp.gate_proj.weight"),
                0,
            ),
            (
                "llm.text_vocab_size",
                llm.text_vocab_size,
                "llm.model.model.embed_tokens.weight",
                0,
            ),
            (
                "llm.speech_vocab_size",
                llm.speech_vocab_size,
                "speech_embedding.weight",
                0,
            ),
        ],
    );
    sizes(
        &files.flow,
        &[
            (
                "flow.vocab_size",
                flow.vocab_size,
                "input_embedding.weight",
                0,
            ),
            (
                "flow.input_size",
                flow.input_size,
                "input_embedding.weight",
                1,
            ),
            (
                "flow.spk_embed_dim",
                flow.spk_embed_dim,
                "spk_embed_affine_layer.weight",
                1,
            ),
            (
                "flow.output_size",
                flow.output_size,
                "encoder_proj.weight",
                0,
            ),
            (
                "flow.encoder.output_size",
                encoder.output_size,
                "encoder.after_norm.weight",
                0,
            ),
        ],
    );
    sizes(
        &files.hift,
        &[
            ("hift.base_channels", hift.base_channels, "conv_pre.bias", 0),
            (
                "hift.f0_predictor.cond_channels",
                hift.f0_predictor.cond_channels,
                "f0_predictor.condnet.0.bias",
                0,
            ),
        ],
    );
    problems
}

fn disagreement(file: &TensorFile, size: &(&str, usize, &str, usize)) -> Option<Problem> {
    let &(key, configured, tensor, axis) = size;
    let stored = *file.entries().get(tensor)?.shape.get(axis)?;
    (configured != stored).then(|| {
        let expected = format!("{stored} as dimension {axis} of {tensor}");
        Fault::config(key, expected, configured).of(file.name())
    })
}
