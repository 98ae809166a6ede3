//! Text tokens to speech tokens: the Qwen2 language model.
