//! Where the models run: the name that users give, what is there, and an engine on it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::EngineHandle;
use super::runner::EngineOptions;
use super::sizing::{self, POSITIONS_PER_SEQUENCE};
use super::start::start_on;
use crate::checkpoint::Checkpoint;
use crate::cpu::{Cpu, CpuOptions};
use crate::cuda::{self, Cuda, CudaOptions};
use crate::error::{Error, Result};
use crate::tensor::Trace;

/// Where the models run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU that works, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// Ordinals; several share the load.
    Cuda(Vec<usize>),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            _ => {}
        }
        let mut ordinals = Vec::new();
        for part in text.split(',') {
            let ordinal = match part.trim().strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
                None => None,
            };
            match ordinal {
                Some(n) if !ordinals.contains(&n) => ordinals.push(n),
                _ => {
                    return Err(format!(
                        "`{text}` is not `auto`, `cpu`, `cuda`, `cuda:1` or `cuda:0,cuda:1`"
                    ));
                }
            }
        }
        Ok(Self::Cuda(ordinals))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinals) => {
                let names: Vec<String> = ordinals.iter().map(|n| format!("cuda:{n}")).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl Device {
    /// What would be used, and the reason where a choice was made: `auto` takes the first GPU when this build can use it.
    pub fn resolve(&self) -> (Self, Option<String>) {
        match self {
            Self::Auto => match cuda::usable() {
                Ok(ordinal) => (Self::Cuda(vec![ordinal]), None),
                Err(reason) => (Self::Cpu, Some(reason)),
            },
            given => (given.clone(), None),
        }
    }
}

/// Rows and frames of one call on the CPU. A few hundred rows keep its cores busy; more of them would only make streams and cancels wait for the
/// call's end, and the buffers larger.
const CPU_LLM_ROWS: usize = 256;
const CPU_FRAMES: usize = 1000;

/// What a running engine is on.
pub(super) struct Started {
    pub(super) engine: EngineHandle,
    pub(super) device: Device,
    /// Sequences in synthesis at the same time, on all devices together.
    pub(super) max_running: usize,
}

/// How an engine is started, whatever the device.
pub(super) struct Starting<'a> {
    /// The checkpoint's folder.
    pub(super) dir: &'a Path,
    pub(super) cpu: CpuOptions,
    /// Sequences in synthesis at the same time on one device; 0 = as many as its memory allows.
    pub(super) max_running: usize,
    pub(super) queue_limit: usize,
    pub(super) trace: Arc<Trace>,
}

impl Starting<'_> {
    /// Starts the engine on `device`. With `auto`, a GPU that fails leaves the CPU.
    pub(super) fn run(self, device: &Device) -> Result<Started> {
        let (chosen, reason) = device.resolve();
        if let Some(reason) = reason {
            tracing::info!(reason, "no GPU: the models run on the CPU");
        }
        match (self.start(&chosen), device) {
            (Err(Error::Backend(error)), Device::Auto) if chosen != Device::Cpu => {
                tracing::warn!(%error, "the GPU cannot be used: the models run on the CPU");
                self.start(&Device::Cpu)
            }
            (started, _) => started,
        }
    }

    fn start(&self, device: &Device) -> Result<Started> {
        let checkpoint = Checkpoint::open(self.dir)?;
        let llm = &checkpoint.config().llm;
        let trace = Arc::clone(&self.trace);
        let (engine, each, devices) = match device {
            Device::Cuda(ordinals) => {
                let free = cuda::free_bytes(ordinals)?;
                let each = self.sequences(|| sizing::sequences_on(free, llm, self.dir));
                let opens = ordinals.iter().map(|&ordinal| {
                    move || {
                        Cuda::open(CudaOptions {
                            ordinal,
                            ..CudaOptions::default()
                        })
                    }
                });
                let engine = start_on(checkpoint, opens, self.options(each), trace)?;
                (engine, each, ordinals.len())
            }
            Device::Auto | Device::Cpu => {
                let cpu = self.cpu;
                let bytes_of_cached = cpu.weights.bytes_of_cached();
                let each = self.sequences(|| sizing::sequences(llm, bytes_of_cached, self.dir));
                let open = move || Ok(Cpu::new(cpu));
                let mut options = self.options(each);
                options.budgets.llm_rows = CPU_LLM_ROWS;
                options.budgets.flow_frames = CPU_FRAMES;
                options.budgets.vocoder_frames = CPU_FRAMES;
                let engine = start_on(checkpoint, [open], options, trace)?;
                (engine, each, 1)
            }
        };
        Ok(Started {
            engine,
            device: device.clone(),
            max_running: each * devices,
        })
    }

    fn sequences(&self, by_memory: impl FnOnce() -> usize) -> usize {
        match self.max_running {
            0 => by_memory(),
            given => given,
        }
    }

    fn options(&self, max_running: usize) -> EngineOptions {
        let mut options = EngineOptions::default();
        options.budgets.max_running = max_running;
        options.queue_limit = self.queue_limit;
        options.kv_positions = max_running * POSITIONS_PER_SEQUENCE;
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, device, written) in [
            ("auto", Device::Auto, "auto"),
            ("cpu", Device::Cpu, "cpu"),
            ("cuda", Device::Cuda(vec![0]), "cuda:0"),
            ("cuda:3, cuda:1", Device::Cuda(vec![3, 1]), "cuda:3,cuda:1"),
        ] {
            let read: Device = text.parse().expect(text);
            assert_eq!((read.to_string(), read), (written.to_owned(), device));
        }
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:0,cuda:0", "cuda:0,cpu"] {
            assert!(text.parse::<Device>().is_err(), "{text}");
        }
    }
}
