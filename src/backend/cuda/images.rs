//! The compiled kernels inside this program: images for GPUs, and the host objects of the SIMT machine.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The architectures that are built in, such as `sm_80`; `ptx_80` is compiled by the driver for any later GPU.
pub fn architectures() -> Vec<&'static str> {
    let mut names: Vec<&str> = IMAGES.iter().map(|(_, arch, _)| *arch).collect();
    names.sort();
    names.dedup();
    names
}

/// The built-in architecture for a device of compute capability `major.minor`: the newest of the same major
/// version that is not newer than the device, else PTX. Names with a letter (`sm_90a`) fit that device only.
pub fn choose(major: u32, minor: u32) -> Option<&'static str> {
    let device = major * 10 + minor;
    let fits = |arch: &&&str| {
        let Some(name) = arch.strip_prefix("sm_") else { return false };
        let number: u32 = name.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(0);
        let exact = name.ends_with(|c: char| c.is_ascii_alphabetic());
        if exact { number == device } else { number / 10 == major && number <= device }
    };
    let number = |arch: &&&str| arch.trim_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
    let all = architectures();
    let cubin = all.iter().filter(fits).max_by_key(number).copied();
    cubin.or_else(|| all.iter().find(|a| a.starts_with("ptx_") && number(a) <= device).copied())
}
