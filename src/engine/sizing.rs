//! How many sequences the memory of this machine has room for.

use std::path::Path;

use crate::model::config::LlmConfig;

/// Positions of the KV cache per sequence: a segment of the splitter's longest length at the longest answer, and a long prompt.
pub(super) const POSITIONS_PER_SEQUENCE: usize = 2560;
/// Beyond this many, batches gain little and each task waits long.
const MOST: usize = 64;
/// Where this cannot be known.
const UNKNOWN: usize = 16;

/// Sequences whose caches, of `bytes_of_cached` bytes a number, take at most half of the memory that the checkpoint in `dir` leaves free; 1 to 64.
pub(super) fn sequences(config: &LlmConfig, bytes_of_cached: usize, dir: &Path) -> usize {
    let Some(available) = available_bytes() else {
        return UNKNOWN;
    };
    let bytes = available.saturating_sub(bytes_of_files(dir)) / 2;
    within(bytes, config, bytes_of_cached)
}

/// The same for a device with so many free bytes, whose caches are taken to be f32.
pub(super) fn sequences_on(free_bytes: u64, config: &LlmConfig, dir: &Path) -> usize {
    let bytes = free_bytes.saturating_sub(bytes_of_files(dir)) / 2;
    within(bytes, config, size_of::<f32>())
}

fn within(bytes: u64, config: &LlmConfig, bytes_of_cached: usize) -> usize {
    let values = 2 * config.num_layers * config.num_kv_heads * config.head_dim;
    let each = values * POSITIONS_PER_SEQUENCE * bytes_of_cached;
    (bytes / each.max(1) as u64).clamp(1, MOST as u64) as usize
}

/// Weights take at most as much as their files.
fn bytes_of_files(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|e| e.metadata().ok().filter(std::fs::Metadata::is_file));
    sizes.map(|m| m.len()).sum()
}

/// Free memory of the machine, or of the control group when that is less.
fn available_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10;
    let number = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?;
        text.trim().parse::<u64>().ok()
    };
    let group = number("memory.max")
        .zip(number("memory.current"))
        .map(|(most, used)| most.saturating_sub(used));
    Some(group.map_or(free, |g| g.min(free)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::ModelConfig;

    #[test]
    fn memory_decides_between_one_and_the_most() {
        let config = ModelConfig::preset("cosyvoice2-0.5b").expect("preset").llm;
        // 24 layers of two heads of 64 values, twice, in f32: 60 MiB each.
        let each = 24 * 2 * 64 * 2 * 4 * 2560;
        assert_eq!(within(0, &config, 4), 1);
        assert_eq!(within(10 * each, &config, 4), 10);
        assert_eq!(within(10 * each - 1, &config, 4), 9);
        assert_eq!(within(10 * each, &config, 2), 20, "half as much in bf16");
        assert_eq!(within(1 << 40, &config, 4), MOST);
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(available_bytes().is_some_and(|b| b > 1 << 20));
    }
}
