//! Looks for an NVIDIA driver and its devices without linking anything of CUDA.

use cudarc::driver::{CudaContext, result, sys};

/// One line for people: the devices that the driver offers, or why there are none.
pub fn describe() -> String {
    // SAFETY: only tries to open the driver's library; a missing one is answered by `false`.
    if !unsafe { sys::is_culib_present() } {
        return "no NVIDIA driver on this machine".to_owned();
    }
    // A driver that lacks a symbol panics inside the binding.
    std::panic::catch_unwind(devices)
        .unwrap_or_else(|_| "the NVIDIA driver is too old for this build".to_owned())
}

fn devices() -> String {
    let count = match result::init().and_then(|()| CudaContext::device_count()) {
        Ok(count) => count,
        Err(error) => return format!("NVIDIA driver without a device: {error}"),
    };
    let names: Vec<String> = (0..count)
        .map(|i| {
            CudaContext::new(i as usize)
                .and_then(|c| c.name())
                .unwrap_or_else(|e| e.to_string())
        })
        .collect();
    format!("{count} device(s): {}", names.join(", "))
}
