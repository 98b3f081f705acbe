//! The compiled kernels inside this program: images for GPUs, and the host objects of the SIMT machine.

use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The architectures that are built in, such as `sm_80`; `ptx_80` is compiled by the driver for any later GPU.
pub fn architectures() -> Vec<&'static str> {
    let mut names: Vec<&str> = IMAGES.iter().map(|(_, arch, _)| *arch).collect();
    names.sort();
    names.dedup();
    names
}

/// The image among `built` for a device of compute capability `major.minor`: the newest of the same major
/// version that is not newer than the device, else PTX. Names with a letter (`sm_90a`) fit that device only.
///
/// # Errors
/// None fits.
pub fn choose<'a>(built: &[&'a str], major: u32, minor: u32) -> Result<&'a str> {
    let device = major * 10 + minor;
    let fits = |arch: &&&str| {
        let Some(name) = arch.strip_prefix("sm_") else { return false };
        let number: u32 = name.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(0);
        let exact = name.ends_with(|c: char| c.is_ascii_alphabetic());
        if exact { number == device } else { number / 10 == major && number <= device }
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
