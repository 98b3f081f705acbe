//! The compiled kernels inside this program: images for GPUs.

use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The architectures that are built in, such as `sm_80`; `ptx_80` is compiled by the driver for any later GPU.
pub fn architectures() -> Vec<&'static str> {
    let mut names: Vec<&str> = IMAGES.iter().map(|(_, arch, _)| *arch).collect();
    names.sort();
    names.dedup();
    names
}

/// The CUDA release whose compiler made the images, such as (13, 0).
pub fn compiler() -> Option<(u32, u32)> {
    let (major, minor) = NVCC.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// NVIDIA's first driver of a CUDA release (CUDA release notes, table 3), which takes everything its compiler made. An
/// older driver of the same major release takes the images for its GPU, and no PTX.
const DRIVERS: [((u32, u32), u32); 9] = [
    ((12, 3), 545),
    ((12, 4), 550),
    ((12, 5), 555),
    ((12, 6), 560),
    ((12, 8), 570),
    ((12, 9), 575),
    ((13, 0), 580),
    ((13, 1), 590),
    ((13, 2), 595),
];

/// Which driver the images need, as the end of a sentence: ` to 580 or later (CUDA 13.0)`; the binding itself needs one for
/// CUDA 12.4.
pub fn driver_needed() -> String {
    let (major, minor) = compiler().unwrap_or((12, 4)).max((12, 4));
    let driver = DRIVERS.iter().find(|(cuda, _)| *cuda >= (major, minor));
    match driver {
        Some((_, driver)) => format!(" to {driver} or later (CUDA {major}.{minor})"),
        None => format!(" to one for CUDA {major}.{minor}"),
    }
}

/// The image among `built` for a device of compute capability `major.minor`: the newest of the same major
/// version that is not newer than the device, else PTX. Names with a letter (`sm_90a`) fit that device only.
///
/// # Errors
/// None fits.
pub fn choose<'a>(built: &[&'a str], major: u32, minor: u32) -> Result<&'a str> {
    let device = major * 10 + minor;
    // Of the integrated GPU of 8.7, which follows no other, NVIDIA promises nothing.
    let alone = device == 87;
    let fits = |arch: &&&str| {
        let Some(name) = arch.strip_prefix("sm_") else { return false };
        let number: u32 = name.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(0);
        let exact = name.ends_with(|c: char| c.is_ascii_alphabetic());
        if exact || alone { number == device } else { number / 10 == major && number <= device }
    };
    let number = |arch: &&&str| arch.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    let cubin = built.iter().filter(fits).max_by_key(number);
    let ptx = || built.iter().find(|a| a.starts_with("ptx_") && number(a) <= device);
    cubin.or_else(ptx).copied().ok_or_else(|| {
        let what = match built {
            [] => "this program was built without GPU kernels".to_string(),
            _ => format!(
                "no kernels for compute capability {major}.{minor} are built in (there are {})",
                built.join(", ")
            ),
        };
        Error::device(what)
            .remedy("`just cuda-toolchain`, then build again (GEMS_CUDA_ARCHS chooses architectures)")
    })
}
