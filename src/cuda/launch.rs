//! The table of kernels and how one is launched.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, result};
use cudarc::nvrtc::Ptx;

use super::device::driver_error;
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
#[derive(Clone, Copy, Debug)]
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
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    functions: RwLock<HashMap<Kernel, Loaded>>,
}

impl Launcher {
    pub(super) fn new(
        device: &str,
        context: Arc<CudaContext>,
        stream: Arc<CudaStream>,
        images: Images,
    ) -> Self {
        Self {
            device: device.to_owned(),
            context,
            stream,
            images,
            modules: Mutex::default(),
            functions: RwLock::default(),
        }
    }

    /// Puts a kernel on the stream. A launch without blocks is nothing to do.
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
        let fail = |e| driver_error(&self.device, kernel.name, e);
        let start = |function: &CudaFunction| -> std::result::Result<(), DriverError> {
            self.context.bind_to_thread()?;
            let [x, y, z] = shape.grid;
            let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
            // SAFETY: the caller's promise; the driver copies the struct before it returns.
            unsafe {
                result::launch_kernel(
                    function.cu_function(),
                    (x, y, z),
                    (shape.threads, 1, 1),
                    shape.shared,
                    self.stream.cu_stream(),
                    &mut arguments,
                )
            }
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
