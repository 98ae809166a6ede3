//! Opening a device: driver, context, stream, kernels; and the way from driver errors to ours.

use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::buffer::Dtype;
use super::gemm::SharedTiles;
use super::images::{FATBINS, Images};
use super::launch::Launcher;
use super::memory::Staging;
use super::sample::SampleMemory;
use super::vocoder::SourceMemory;
use crate::backend::{Backend, BackendError, Result};

/// In what the values of activations and packed weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// bf16 storage (f16 in the vocoder), tensor cores, f32 accumulation.
    #[default]
    Bf16,
    /// f32 storage on plain kernels: for comparisons, not for speed.
    F32,
}

impl Precision {
    pub(super) fn dtype(self) -> Dtype {
        match self {
            Precision::Bf16 => Dtype::Bf16,
            Precision::F32 => Dtype::F32,
        }
    }

    /// Of the vocoder's activations and weights: as many bytes, three more significant bits.
    pub(super) fn signal_dtype(self) -> Dtype {
        match self {
            Precision::Bf16 => Dtype::F16,
            Precision::F32 => Dtype::F32,
        }
    }
}

/// How the CUDA backend is set up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Which of the driver's devices.
    pub ordinal: usize,
    pub precision: Precision,
}

/// Compute capability from which launches may overlap (programmatic dependent launch).
const OVERLAPPING: (i32, i32) = (9, 0);

/// Of the stream of urgent work; the driver takes the most urgent one that it has.
const URGENT: i32 = -8;

/// One CUDA device as a [`Backend`](crate::backend::Backend). All ops of one handle are ordered on its stream.
pub struct Cuda {
    name: String,
    pub(super) options: CudaOptions,
    images: Images,
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) launcher: Launcher,
    pub(super) staging: Staging,
    pub(super) sampling: SampleMemory,
    pub(super) source: SourceMemory,
    /// Made when the first weight that needs it is packed.
    pub(super) shared_tiles: OnceLock<SharedTiles>,
    multiprocessors: usize,
    compute_capability: (i32, i32),
}

impl Cuda {
    /// Opens a device with the kernels of this build.
    ///
    /// # Errors
    /// When there is no driver, no such device, or no kernel image in this build.
    pub fn open(options: CudaOptions) -> Result<Self> {
        if FATBINS.is_empty() {
            return Err(Self::unavailable(
                options,
                "this binary was built without CUDA kernels",
            ));
        }
        Self::open_with(options, FATBINS)
    }

    /// The same with other images of the same kernels.
    ///
    /// # Errors
    /// As [`Cuda::open`].
    pub fn open_with(options: CudaOptions, images: Images) -> Result<Self> {
        // SAFETY: only tries to open the driver's library; a missing one is answered by `false`.
        if !unsafe { sys::is_culib_present() } {
            return Err(Self::unavailable(
                options,
                "no NVIDIA driver on this machine",
            ));
        }
        // A driver that lacks a symbol panics inside the binding.
        std::panic::catch_unwind(|| Self::connect(options, images)).unwrap_or_else(|_| {
            Err(Self::unavailable(
                options,
                "the NVIDIA driver is too old for this build",
            ))
        })
    }

    fn connect(options: CudaOptions, images: Images) -> Result<Self> {
        let name = format!("cuda:{}", options.ordinal);
        let fail = |op: &'static str| {
            let name = name.clone();
            move |error| driver_error(&name, op, error)
        };
        result::init().map_err(fail("starting the driver"))?;
        let context = CudaContext::new(options.ordinal).map_err(fail("opening the device"))?;
        // SAFETY: no slice exists yet. What belongs together runs on one stream, which orders it; events would only disturb graph capture.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context).map_err(fail("setting up memory"))?;
        let stream = context.new_stream().map_err(fail("making a stream"))?;
        let attribute = |a| context.attribute(a).map_err(fail("reading an attribute"));
        let multiprocessors =
            attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let compute_capability = context
            .compute_capability()
            .map_err(fail("reading the compute capability"))?;
        let multiprocessors = multiprocessors.max(1) as usize;
        let chip = (multiprocessors, compute_capability);
        Self::on_stream(name, options, images, stream, chip)
    }

    /// The same device on a stream of its own.
    fn beside(&self, priority: i32) -> Result<Self> {
        let stream = (self.context.new_stream_with_priority(priority))
            .map_err(|e| self.error("making a stream", e))?;
        let chip = (self.multiprocessors, self.compute_capability);
        Self::on_stream(self.name.clone(), self.options, self.images, stream, chip)
    }

    fn on_stream(
        name: String,
        options: CudaOptions,
        images: Images,
        stream: Arc<CudaStream>,
        (multiprocessors, compute_capability): (usize, (i32, i32)),
    ) -> Result<Self> {
        let context = stream.context().clone();
        Ok(Self {
            launcher: Launcher::new(
                &name,
                context.clone(),
                stream.clone(),
                images,
                compute_capability >= OVERLAPPING,
            ),
            staging: Staging::new(&name, context.clone(), stream.clone())?,
            name,
            options,
            images,
            context,
            stream,
            sampling: SampleMemory::default(),
            source: SourceMemory::default(),
            shared_tiles: OnceLock::new(),
            multiprocessors,
            compute_capability,
        })
    }

    fn unavailable(options: CudaOptions, message: &str) -> BackendError {
        BackendError::Driver {
            device: format!("cuda:{}", options.ordinal),
            op: "opening the device",
            message: message.to_owned(),
        }
    }

    /// `cuda:0` and so on.
    pub fn device_name(&self) -> &str {
        &self.name
    }

    /// Name, memory and architecture for people.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn describe(&self) -> Result<String> {
        let fail = |e| self.error("describing the device", e);
        let name = self.context.name().map_err(fail)?;
        let bytes = self.context.total_mem().map_err(fail)?;
        let (major, minor) = self.compute_capability;
        Ok(format!(
            "{}: {name}, {:.0} GiB, compute capability {major}.{minor}, {} multiprocessors",
            self.name,
            bytes as f64 / f64::from(1 << 30),
            self.multiprocessors
        ))
    }

    /// The options in effect.
    pub fn options(&self) -> CudaOptions {
        self.options
    }

    /// Number of streaming multiprocessors.
    pub fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    /// Major and minor compute capability.
    pub fn compute_capability(&self) -> (i32, i32) {
        self.compute_capability
    }

    /// The same device without the kernels for Hopper's own instructions, as one of compute capability 8.0 would run: for tests of those
    /// kernels that every device has.
    pub fn without_hopper(mut self) -> Self {
        self.compute_capability = self.compute_capability.min((8, 0));
        self
    }

    /// Whether the kernels for Hopper's own instructions (TMA, wgmma) can run.
    pub(super) fn is_hopper(&self) -> bool {
        self.compute_capability == (9, 0)
    }

    pub(super) fn error(&self, op: &'static str, error: DriverError) -> BackendError {
        driver_error(&self.name, op, error)
    }
}

impl Backend for Cuda {
    fn name(&self) -> &str {
        &self.name
    }

    fn urgent(&self) -> Result<Option<Self>> {
        self.beside(URGENT).map(Some)
    }
}

/// Has the driver keep what is freed for the next allocation: by default it gives memory back whenever somebody waits, and mapping it again takes far
/// longer than what it is wanted for.
fn keep_freed_memory(context: &CudaContext) -> std::result::Result<(), DriverError> {
    use sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    use sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    if context.attribute(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 0 {
        return Ok(());
    }
    let mut everything = u64::MAX;
    // SAFETY: the device is open; the attribute is a 64-bit number, which the driver copies.
    unsafe {
        let pool = result::device::get_default_mem_pool(context.cu_device())?;
        result::mem_pool::set_attribute(
            pool,
            CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            std::ptr::from_mut(&mut everything).cast(),
        )
    }
}

/// A driver's error in words.
pub(super) fn driver_error(device: &str, op: &'static str, error: DriverError) -> BackendError {
    let text = |r: std::result::Result<&std::ffi::CStr, DriverError>| {
        r.map_or_else(
            |_| "unknown error".to_owned(),
            |s| s.to_string_lossy().into_owned(),
        )
    };
    BackendError::Driver {
        device: device.to_owned(),
        op,
        message: format!(
            "{}: {}",
            text(error.error_name()),
            text(error.error_string())
        ),
    }
}
