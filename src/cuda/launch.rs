//! The table of kernels and how one is launched.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::sys::CUgraphInstantiate_flags;
use cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError, sys,
};
use cudarc::nvrtc::Ptx;

use super::device::driver_error;
use super::graph::{Launch, Next, Recorder};
use super::images::Images;
use crate::backend::{BackendError, Result};

/// Dynamic shared memory that a kernel may use without being asked for.
const SHARED_WITHOUT_OPT_IN: u32 = 48 << 10;

/// A kernel's name and the file of `kernels/` that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kernel {
    pub(super) file: &'static str,
    pub(super) name: &'static str,
}

impl Kernel {
    pub(super) const fn new(file: &'static str, name: &'static str) -> Self {
        Self { file, name }
    }
}

/// Blocks, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) grid: [u32; 3],
    pub(super) threads: u32,
    pub(super) shared: u32,
}

impl Shape {
    /// A row of blocks.
    pub(super) fn blocks(blocks: usize, threads: u32) -> Self {
        Self::grid([blocks, 1, 1], threads)
    }

    pub(super) fn grid(grid: [usize; 3], threads: u32) -> Self {
        Self {
            grid: grid.map(|n| n as u32),
            threads,
            shared: 0,
        }
    }

    pub(super) fn shared(self, bytes: usize) -> Self {
        Self {
            shared: bytes as u32,
            ..self
        }
    }
}

struct Loaded {
    function: CudaFunction,
    /// What the function's limit on dynamic shared memory is.
    shared: u32,
}

/// Loads kernels when they are first used and launches them on one stream.
pub(super) struct Launcher {
    device: String,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    images: Images,
    /// Whether a kernel may start while the one before it ends: every kernel waits for what it needs (`follow_predecessor`).
    overlapping: bool,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: RwLock<HashMap<Kernel, Loaded>>,
    recorder: Mutex<Recorder>,
}

impl Launcher {
    pub(super) fn new(
        device: &str,
        context: Arc<CudaContext>,
        stream: Arc<CudaStream>,
        images: Images,
        overlapping: bool,
    ) -> Self {
        Self {
            device: device.to_owned(),
            context,
            stream,
            images,
            overlapping,
            modules: Mutex::default(),
            functions: RwLock::default(),
            recorder: Mutex::default(),
        }
    }

    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a kernel on the stream, or holds it back where a run of launches is recorded. A launch without blocks is nothing to do.
    ///
    /// # Safety
    /// `P` is the parameter struct of `kernel`, the addresses in it are of memory that lives until the stream has passed the launch
    /// and is as large as the kernel's shapes say.
    ///
    /// # Errors
    /// What the driver reports, an earlier kernel's failure included.
    pub(super) unsafe fn launch<P: Copy>(
        &self,
        kernel: Kernel,
        shape: Shape,
        params: &P,
    ) -> Result<()> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        if let Some(held) = &mut self.recorder().held {
            held.push(Launch::new(kernel, shape, params));
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.start(kernel, shape, std::ptr::from_ref(params).cast()) }
    }

    /// # Safety
    /// As [`Launcher::launch`], with the address of the parameters.
    unsafe fn start(&self, kernel: Kernel, shape: Shape, params: *const u8) -> Result<()> {
        let fail = |e| driver_error(&self.device, kernel.name, e);
        let start = |function: &CudaFunction| -> std::result::Result<(), DriverError> {
            self.context.bind_to_thread()?;
            // SAFETY: the caller's promise.
            unsafe { self.enqueue(function, shape, params) }
        };
        {
            let functions = self
                .functions
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(loaded) = functions.get(&kernel)
                && loaded.shared >= shape.shared
            {
                return start(&loaded.function).map_err(fail);
            }
        }
        start(&self.load(kernel, shape.shared)?).map_err(fail)
    }

    /// # Safety
    /// As [`Launcher::launch`], with the address of the parameters.
    unsafe fn enqueue(
        &self,
        function: &CudaFunction,
        shape: Shape,
        params: *const u8,
    ) -> std::result::Result<(), DriverError> {
        let mut arguments = [params.cast_mut().cast::<c_void>()];
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: Default::default(),
            value: sys::CUlaunchAttributeValue_union {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: u32::from(self.overlapping),
        };
        // SAFETY: the caller's promise; the driver copies attribute and parameters before it returns.
        unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function.cu_function(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
    }

    fn start_all(&self, launches: &[Launch]) -> Result<()> {
        for launch in launches {
            // SAFETY: promised when it was held back; nothing was freed since (`flush` comes first).
            unsafe { self.start(launch.kernel, launch.shape, launch.params()) }?;
        }
        Ok(())
    }

    /// Sends off what is held back; from here on launches go to the stream at once. Has to come before anything that depends on them or
    /// that they depend on: allocations, copies, waits.
    ///
    /// # Errors
    /// What the driver reports.
    pub(super) fn flush(&self) -> Result<()> {
        let held = self.recorder().held.take();
        held.map_or(Ok(()), |launches| self.start_all(&launches))
    }

    /// Runs `work` with its launches held back, then launches them as a graph if they came before.
    ///
    /// # Errors
    /// Those of `work`, or what the driver reports.
    pub(super) fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        self.recorder().held = Some(Vec::new());
        // Also when `work` panics, later launches are not to be held back for ever.
        let release = Release(self);
        let result = work();
        let held = release.0.recorder().held.take();
        drop(release);
        result?;
        let Some(launches) = held.filter(|l| !l.is_empty()) else {
            return Ok(());
        };
        let fail = |e| driver_error(&self.device, "launching a graph", e);
        let mut recorder = self.recorder();
        match recorder.next(&launches) {
            Next::Replay(graph) => graph.launch().map_err(fail),
            Next::Eager => self.start_all(&launches),
            Next::Capture => match self.capture(&launches)? {
                Some(graph) => recorder.keep(launches, graph).launch().map_err(fail),
                None => self.start_all(&launches),
            },
        }
    }

    fn capture(&self, launches: &[Launch]) -> Result<Option<CudaGraph>> {
        let fail = |e| driver_error(&self.device, "capturing a graph", e);
        self.stream
            .begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
            .map_err(fail)?;
        let started = self.start_all(launches);
        // The capture ends in any case: nothing else could use the stream otherwise.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        started?;
        graph.map_err(fail)
    }

    /// Graphs kept, and how often one was launched.
    pub(super) fn graph_counts(&self) -> (usize, u64) {
        self.recorder().counts()
    }

    /// Loads a kernel, or raises its limit on dynamic shared memory.
    fn load(&self, kernel: Kernel, shared: u32) -> Result<CudaFunction> {
        let fail = |e| driver_error(&self.device, kernel.name, e);
        let module = self.module(kernel)?;
        let function = module.load_function(kernel.name).map_err(fail)?;
        let shared = shared.max(SHARED_WITHOUT_OPT_IN);
        if shared > SHARED_WITHOUT_OPT_IN {
            function
                .set_attribute(
                    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    shared as i32,
                )
                .map_err(fail)?;
        }
        let mut functions = self
            .functions
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        functions.insert(
            kernel,
            Loaded {
                function: function.clone(),
                shared,
            },
        );
        Ok(function)
    }

    fn module(&self, kernel: Kernel) -> Result<Arc<CudaModule>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(kernel.file) {
            return Ok(module.clone());
        }
        let image = self
            .images
            .iter()
            .find(|(file, _)| *file == kernel.file)
            .ok_or_else(|| BackendError::Driver {
                device: self.device.clone(),
                op: kernel.name,
                message: format!("this build has no kernels of {}.cu", kernel.file),
            })?;
        let module = self
            .context
            .load_module(Ptx::from_binary(image.1.to_vec()))
            .map_err(|e| driver_error(&self.device, kernel.name, e))?;
        modules.insert(kernel.file, module.clone());
        Ok(module)
    }
}

/// Ends the holding back of launches.
struct Release<'a>(&'a Launcher);

impl Drop for Release<'_> {
    fn drop(&mut self) {
        self.0.recorder().held = None;
    }
}
