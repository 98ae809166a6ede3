//! Looks for an NVIDIA driver and its devices without linking anything of CUDA, and says whether this build can use them.

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::device::driver_error;
use super::images::{BUILD_INFO, FATBINS};
use crate::backend::{BackendError, Result};

/// Oldest architecture that the kernels are compiled for.
const OLDEST: (i32, i32) = (8, 0);

/// A device as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub ordinal: usize,
    pub name: String,
    /// Major and minor.
    pub compute_capability: (i32, i32),
    pub memory_bytes: u64,
}

/// The driver of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverInfo {
    /// Newest CUDA version that it serves, major and minor.
    pub cuda_version: (i32, i32),
    pub devices: Vec<DeviceInfo>,
}

/// The driver and its devices, or why there are none, in words.
pub fn probe() -> std::result::Result<DriverInfo, String> {
    // SAFETY: only tries to open the driver's library; a missing one is answered by `false`.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver on this machine".to_owned());
    }
    // A driver that lacks a symbol panics inside the binding.
    std::panic::catch_unwind(driver)
        .unwrap_or_else(|_| Err("the NVIDIA driver is too old for this build".to_owned()))
}

fn driver() -> std::result::Result<DriverInfo, String> {
    let fail = |e: DriverError| format!("NVIDIA driver without a device: {e}");
    result::init().map_err(fail)?;
    let mut version = 0;
    // SAFETY: writes one number.
    let _ = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    let count = CudaContext::device_count().map_err(fail)?;
    let devices = (0..count).map(|i| device(i as usize).map_err(fail));
    Ok(DriverInfo {
        cuda_version: (version / 1000, version % 1000 / 10),
        devices: devices.collect::<std::result::Result<_, _>>()?,
    })
}

fn device(ordinal: usize) -> std::result::Result<DeviceInfo, DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
    };
    let device = result::device::get(ordinal as i32)?;
    // SAFETY: the driver has just given the device.
    let attribute = |a| unsafe { result::device::get_attribute(device, a) };
    Ok(DeviceInfo {
        ordinal,
        name: result::device::get_name(device)?,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        // SAFETY: as above.
        memory_bytes: unsafe { result::device::total_mem(device) }? as u64,
    })
}

/// The first device that this build can use, or why there is none.
pub fn usable() -> std::result::Result<usize, String> {
    if FATBINS.is_empty() {
        return Err(format!("this binary has {BUILD_INFO}"));
    }
    let driver = probe()?;
    let found = driver
        .devices
        .iter()
        .find(|d| d.compute_capability >= OLDEST);
    found.map(|d| d.ordinal).ok_or_else(|| {
        format!(
            "none of {} device(s) has compute capability {}.{} or newer",
            driver.devices.len(),
            OLDEST.0,
            OLDEST.1
        )
    })
}

/// Free memory of the given devices, of the one that has least.
///
/// # Errors
/// A device that cannot be opened.
pub fn free_bytes(ordinals: &[usize]) -> Result<u64> {
    let driver = probe();
    let mut least = u64::MAX;
    for &ordinal in ordinals {
        let name = format!("cuda:{ordinal}");
        // Without a driver the binding would panic.
        if let Err(why) = &driver {
            return Err(BackendError::Driver {
                device: name,
                op: "opening the device",
                message: why.clone(),
            });
        }
        let asked = CudaContext::new(ordinal).and_then(|c| c.mem_get_info());
        let (free, _) = asked.map_err(|e| driver_error(&name, "opening the device", e))?;
        least = least.min(free as u64);
    }
    Ok(least)
}

/// One line for people: the devices that the driver offers, or why there are none.
pub fn describe() -> String {
    let driver = match probe() {
        Ok(driver) => driver,
        Err(why) => return why,
    };
    let devices: Vec<String> = driver
        .devices
        .iter()
        .map(|d| {
            format!(
                "cuda:{} {} (compute {}.{}, {:.0} GiB)",
                d.ordinal,
                d.name,
                d.compute_capability.0,
                d.compute_capability.1,
                d.memory_bytes as f64 / f64::from(1 << 30)
            )
        })
        .collect();
    format!(
        "{}; the driver serves CUDA {}.{}",
        if devices.is_empty() {
            "no device".to_owned()
        } else {
            devices.join(", ")
        },
        driver.cuda_version.0,
        driver.cuda_version.1
    )
}
