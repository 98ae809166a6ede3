//! Mel to waveform: HiFT.
