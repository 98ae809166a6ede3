//! An encoded prompt as a safetensors file: `embedding` `[E]`, `prompt_text` `[N]`, `speech_tokens` `[L]`, `mel` `[frames · mels]`.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::VoiceError;
use crate::model::voice::Voice;

/// Metadata key: seconds of the recording.
const DURATION: &str = "duration_s";

/// The bytes of the file.
pub(super) fn encode(voice: &Voice, duration_s: f64) -> Result<Vec<u8>, VoiceError> {
    let f32s = |v: &[f32]| -> Vec<u8> { v.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let i32s = |v: &[i32]| -> Vec<u8> { v.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let parts = [
        ("embedding", Dtype::F32, f32s(&voice.embedding)),
        ("prompt_text", Dtype::I32, i32s(&voice.prompt_text)),
        ("speech_tokens", Dtype::I32, i32s(&voice.speech_tokens)),
        ("mel", Dtype::F32, f32s(&voice.mel)),
    ];
    let views = parts
        .iter()
        .map(|(name, dtype, bytes)| {
            Ok((
                *name,
                TensorView::new(*dtype, vec![bytes.len() / 4], bytes)?,
            ))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>();
    let metadata = HashMap::from([(DURATION.to_owned(), duration_s.to_string())]);
    views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|e| VoiceError::Storage(e.to_string()))
}

/// Reads the file back: the voice and the seconds of its recording.
pub(super) fn read(path: &Path) -> Result<(Voice, f64), VoiceError> {
    let storage = |e: String| VoiceError::Storage(format!("{}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| storage(e.to_string()))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| storage(e.to_string()))?;
    let words = |name: &str, dtype: Dtype| -> Result<Vec<[u8; 4]>, VoiceError> {
        let tensor = file.tensor(name).map_err(|e| storage(e.to_string()))?;
        if tensor.dtype() != dtype {
            return Err(storage(format!("{name} has type {:?}", tensor.dtype())));
        }
        let (words, _) = tensor.data().as_chunks::<4>();
        Ok(words.to_vec())
    };
    let f32s = |name| -> Result<Vec<f32>, VoiceError> {
        let words = words(name, Dtype::F32)?;
        Ok(words.into_iter().map(f32::from_le_bytes).collect())
    };
    let i32s = |name| -> Result<Vec<i32>, VoiceError> {
        let words = words(name, Dtype::I32)?;
        Ok(words.into_iter().map(i32::from_le_bytes).collect())
    };
    let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| storage(e.to_string()))?;
    let metadata = header.metadata().as_ref();
    let duration_s = metadata.and_then(|m| m.get(DURATION)?.parse().ok());
    let voice = Voice {
        embedding: f32s("embedding")?,
        prompt_text: i32s("prompt_text")?,
        speech_tokens: i32s("speech_tokens")?,
        mel: f32s("mel")?,
    };
    Ok((voice, duration_s.unwrap_or(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voice_comes_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("v.safetensors");
        let voice = Voice {
            embedding: vec![0.5, -1.25, f32::MIN_POSITIVE],
            prompt_text: Vec::new(),
            speech_tokens: vec![0, 6560, 17],
            mel: vec![1.0; 160],
        };
        std::fs::write(&path, encode(&voice, 2.5).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), (voice, 2.5));
        std::fs::write(&path, b"not a voice").unwrap();
        assert!(matches!(read(&path), Err(VoiceError::Storage(_))));
    }
}
