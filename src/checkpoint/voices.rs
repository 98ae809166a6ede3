//! Speakers stored with a checkpoint: `spk2info.pt`, a dictionary of speakers to dictionaries of tensors.
//!
//! Two kinds occur: speakers of the sft model with an `embedding` alone, and zero-shot speakers with everything that
//! `CosyVoice.add_zero_shot_spk` stores.

use std::collections::BTreeMap;

use super::error::{Fault, Problem};
use super::tensors::TensorFile;
use crate::model::voice::Voice;

/// All speakers by name. Names may hold dots; fields do not.
///
/// # Errors
/// One problem per tensor of a wrong type or shape, or of a speaker without an embedding.
pub(super) fn read(
    file: &TensorFile,
    embedding: usize,
    mels: usize,
) -> Result<BTreeMap<String, Voice>, Vec<Problem>> {
    let mut voices = BTreeMap::<String, Voice>::new();
    let mut problems = Vec::new();
    for tensor in file.entries().keys() {
        let Some((speaker, field)) = tensor.rsplit_once('.') else {
            let shape = file.entries()[tensor].shape.clone();
            let fault = Fault::TensorUnexpected {
                tensor: tensor.clone(),
                found: shape,
            };
            problems.push(fault.of(file.name()));
            continue;
        };
        let voice = voices.entry(speaker.to_string()).or_default();
        if let Err(fault) = set(voice, file, tensor, field, [embedding, mels]) {
            problems.push(fault.of(file.name()));
        }
    }
    for (speaker, voice) in &voices {
        if voice.embedding.is_empty() && problems.is_empty() {
            let fault = Fault::TensorMissing {
                tensor: format!("{speaker}.embedding"),
                expected: vec![1, embedding],
            };
            problems.push(fault.of(file.name()));
        }
    }
    if problems.is_empty() {
        Ok(voices)
    } else {
        Err(problems)
    }
}

fn set(
    voice: &mut Voice,
    file: &TensorFile,
    tensor: &str,
    field: &str,
    [embedding, mels]: [usize; 2],
) -> Result<(), Fault> {
    match field {
        // `llm_embedding` is the same vector, and CosyVoice2's language model does not read it.
        "embedding" | "flow_embedding" => {
            voice.embedding = floats(file, tensor, embedding, Some(1))?;
        }
        "prompt_text" => voice.prompt_text = integers(file, tensor)?,
        // `llm_prompt_speech_token` is the same.
        "flow_prompt_speech_token" => voice.speech_tokens = integers(file, tensor)?,
        "prompt_speech_feat" => voice.mel = floats(file, tensor, mels, None)?,
        _ => {}
    }
    Ok(())
}

/// Values of `[1, …, width]`.
fn floats(
    file: &TensorFile,
    tensor: &str,
    width: usize,
    rows: Option<usize>,
) -> Result<Vec<f32>, Fault> {
    let weight = file.peek(tensor).ok_or_else(|| wrong(file, tensor))?;
    let last = weight.shape.last() == Some(&width);
    let fits = last && rows.is_none_or(|rows| weight.len() == rows * width);
    if !fits {
        return Err(Fault::TensorShape {
            tensor: tensor.to_string(),
            expected: vec![rows.unwrap_or(1), width],
            found: weight.shape,
        });
    }
    Ok(weight.to_f32().into_owned())
}

fn integers(file: &TensorFile, tensor: &str) -> Result<Vec<i32>, Fault> {
    let values = file.integers(tensor).ok_or_else(|| wrong(file, tensor))?;
    let narrow = values.into_iter().map(|v| i32::try_from(v).ok()).collect();
    Option::ok_or(narrow, wrong(file, tensor))
}

fn wrong(file: &TensorFile, tensor: &str) -> Fault {
    let found = file
        .entries()
        .get(tensor)
        .map_or("nothing", |e| e.dtype.name());
    Fault::TensorDtype {
        tensor: tensor.to_string(),
        found: found.to_string(),
    }
}
