//! Pauses in synthesised audio.

/// Holds when the silences of `samples` (24 kHz) last so many milliseconds each, to one millisecond. A speaking model makes
/// no run of exact zeros as long as 10 ms.
#[track_caller]
pub(crate) fn assert_silences(samples: &[i16], milliseconds: &[usize]) {
    let found: Vec<usize> = samples
        .split(|&s| s != 0)
        .map(<[i16]>::len)
        .filter(|&len| len >= 240)
        .collect();
    assert_eq!(found.len(), milliseconds.len(), "silences {found:?}");
    for (found, expected) in found.iter().zip(milliseconds) {
        assert!(
            found.abs_diff(expected * 24) <= 24,
            "{found} samples for {expected} ms"
        );
    }
}
