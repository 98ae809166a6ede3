//! A voice in a file: safetensors with the field names of the official `spk2info.pt` entries.
//!
//! | tensor | shape | type |
//! |---|---|---|
//! | `flow_embedding` | `[1, E]` | f32 |
//! | `prompt_text` | `[1, N]` | i32 |
//! | `flow_prompt_speech_token` | `[1, L]` | i32 |
//! | `prompt_speech_feat` | `[1, ratio · L, mels]` | f32 |

use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

use super::Voice;

/// Mark of our files in the metadata, with the version of their layout.
const FORMAT: (&str, &str) = ("cosyvoice_voice", "1");

/// What a checkpoint expects of a voice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoiceDims {
    /// Size of the embedding.
    pub embedding: usize,
    pub mels: usize,
    /// Mel frames of a speech token.
    pub ratio: usize,
    /// Speech tokens are below this.
    pub speech_vocabulary: usize,
    /// Text tokens are below this.
    pub text_vocabulary: usize,
}

/// Why bytes are not a voice for this checkpoint.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum VoiceFileError {
    #[error("not a voice file: {0}")]
    Format(String),
    #[error("{tensor} is missing or of another type than {dtype}")]
    Tensor {
        tensor: &'static str,
        dtype: &'static str,
    },
    #[error("{what} has {found} values, expected {expected}")]
    Size {
        what: &'static str,
        expected: usize,
        found: usize,
    },
    #[error("{what} holds the token {found}, which is not below {limit}")]
    Token {
        what: &'static str,
        found: i32,
        limit: usize,
    },
    #[error("{what} holds values that are not finite")]
    NotFinite { what: &'static str },
}

impl VoiceFileError {
    fn format(e: impl ToString) -> Self {
        Self::Format(e.to_string())
    }
}

impl Voice {
    /// Checks a voice, wherever it came from, against a checkpoint: sizes, token ranges, finite values.
    ///
    /// # Errors
    /// The first part that does not fit.
    pub fn check(&self, dims: &VoiceDims) -> Result<(), VoiceFileError> {
        let size = |what, expected: usize, found: usize| {
            let error = VoiceFileError::Size {
                what,
                expected,
                found,
            };
            (expected == found).then_some(()).ok_or(error)
        };
        size("the embedding", dims.embedding, self.embedding.len())?;
        let mel = self.speech_tokens.len() * dims.ratio * dims.mels;
        size("the prompt mel", mel, self.mel.len())?;
        for (what, tokens, limit) in [
            ("the prompt text", &self.prompt_text, dims.text_vocabulary),
            (
                "the prompt speech",
                &self.speech_tokens,
                dims.speech_vocabulary,
            ),
        ] {
            let outside = |&&t: &&i32| usize::try_from(t).map_or(true, |t| t >= limit);
            if let Some(&found) = tokens.iter().find(outside) {
                return Err(VoiceFileError::Token { what, found, limit });
            }
        }
        for (what, values) in [("the embedding", &self.embedding), ("the mel", &self.mel)] {
            if values.iter().any(|v| !v.is_finite()) {
                return Err(VoiceFileError::NotFinite { what });
            }
        }
        Ok(())
    }

    /// The voice as a file.
    ///
    /// # Errors
    /// When the parts cannot be laid out (`mels` does not divide the mel).
    pub fn to_bytes(&self, mels: usize) -> Result<Vec<u8>, VoiceFileError> {
        // Values as the format stores them: every platform that we build for is little-endian.
        use bytemuck::cast_slice as bytes;
        let rows = self.mel.len() / mels.max(1);
        let tokens = |v: &[i32]| vec![1, v.len()];
        let speech = &self.speech_tokens;
        let parts: [(&str, Dtype, Vec<usize>, &[u8]); 4] = [
            (
                "flow_embedding",
                Dtype::F32,
                vec![1, self.embedding.len()],
                bytes(&self.embedding),
            ),
            (
                "prompt_text",
                Dtype::I32,
                tokens(&self.prompt_text),
                bytes(&self.prompt_text),
            ),
            (
                "flow_prompt_speech_token",
                Dtype::I32,
                tokens(speech),
                bytes(speech),
            ),
            (
                "prompt_speech_feat",
                Dtype::F32,
                vec![1, rows, mels],
                bytes(&self.mel),
            ),
        ];
        let views = parts
            .into_iter()
            .map(|(name, dtype, shape, bytes)| {
                let view = TensorView::new(dtype, shape, bytes);
                view.map(|v| (name, v)).map_err(VoiceFileError::format)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let metadata = HashMap::from([(FORMAT.0.to_owned(), FORMAT.1.to_owned())]);
        serialize(views, Some(metadata)).map_err(VoiceFileError::format)
    }

    /// A voice from the bytes of a file. Use [`Voice::check`] before giving it to the models.
    ///
    /// # Errors
    /// When the bytes are no voice file, or a tensor is missing or of another type.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, VoiceFileError> {
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(VoiceFileError::format)?;
        let version = header.metadata().as_ref().and_then(|m| m.get(FORMAT.0));
        match version.map(String::as_str) {
            Some(version) if version == FORMAT.1 => {}
            Some(version) => {
                let message = format!("version {version} is unknown");
                return Err(VoiceFileError::Format(message));
            }
            None => return Err(VoiceFileError::Format("its mark is missing".into())),
        }
        let file = SafeTensors::deserialize(bytes).map_err(VoiceFileError::format)?;
        Ok(Self {
            embedding: floats(&file, "flow_embedding")?,
            prompt_text: ints(&file, "prompt_text")?,
            speech_tokens: ints(&file, "flow_prompt_speech_token")?,
            mel: floats(&file, "prompt_speech_feat")?,
        })
    }
}

fn floats(file: &SafeTensors<'_>, tensor: &'static str) -> Result<Vec<f32>, VoiceFileError> {
    let bytes = values(file, tensor, Dtype::F32, "f32")?;
    Ok(bytes
        .chunks_exact(4)
        .map(bytemuck::pod_read_unaligned)
        .collect())
}

fn ints(file: &SafeTensors<'_>, tensor: &'static str) -> Result<Vec<i32>, VoiceFileError> {
    let bytes = values(file, tensor, Dtype::I32, "i32")?;
    Ok(bytes
        .chunks_exact(4)
        .map(bytemuck::pod_read_unaligned)
        .collect())
}

fn values<'a>(
    file: &SafeTensors<'a>,
    tensor: &'static str,
    dtype: Dtype,
    name: &'static str,
) -> Result<&'a [u8], VoiceFileError> {
    let view = file.tensor(tensor).ok().filter(|v| v.dtype() == dtype);
    let view = view.ok_or(VoiceFileError::Tensor {
        tensor,
        dtype: name,
    })?;
    Ok(view.data())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: VoiceDims = VoiceDims {
        embedding: 3,
        mels: 2,
        ratio: 2,
        speech_vocabulary: 10,
        text_vocabulary: 100,
    };

    fn voice() -> Voice {
        Voice {
            embedding: vec![0.5, -1.0, 2.0],
            prompt_text: vec![99, 0],
            speech_tokens: vec![9, 0, 3],
            mel: (0..12).map(|i| i as f32).collect(),
        }
    }

    #[test]
    fn a_voice_survives_its_file() {
        for voice in [
            voice(),
            Voice {
                embedding: vec![1.0; 3],
                ..Voice::default()
            },
        ] {
            let bytes = voice.to_bytes(DIMS.mels).unwrap();
            let read = Voice::from_bytes(&bytes).unwrap();
            assert_eq!(read, voice);
            assert_eq!(read.check(&DIMS), Ok(()));
        }
    }

    #[test]
    fn damage_is_an_error() {
        let bytes = voice().to_bytes(DIMS.mels).unwrap();
        for len in 0..bytes.len() {
            assert!(Voice::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        let other = serialize(Vec::<(&str, TensorView<'_>)>::new(), None).unwrap();
        assert!(Voice::from_bytes(&other).is_err());
    }

    #[test]
    fn misfits_are_named() {
        let misfit = |change: fn(&mut Voice)| {
            let mut v = voice();
            change(&mut v);
            v.check(&DIMS).unwrap_err().to_string()
        };
        assert!(misfit(|v| v.embedding.truncate(2)).contains("2 values"));
        assert!(misfit(|v| v.mel.truncate(11)).contains("expected 12"));
        assert!(misfit(|v| v.speech_tokens[1] = 10).contains("token 10"));
        assert!(misfit(|v| v.prompt_text[1] = -1).contains("token -1"));
        assert!(misfit(|v| v.mel[1] = f32::NAN).contains("not finite"));
    }
}
