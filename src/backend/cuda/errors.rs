//! What the errors of a device mean, and what to do about them.

use crate::error::Error;
use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

/// The error of a device that is gone.
pub fn lost(why: &str) -> Error {
    Error::device(format!("the GPU is lost: {why}")).remedy(
        "see the system log (dmesg: Xid) and nvidia-smi; then go on with --resume: the last checkpoint is good",
    )
}

/// What a driver's error means, and what to do about it.
pub fn explain(error: DriverError) -> Error {
    use CUresult as C;
    let base = Error::device(format!("the CUDA driver says {:?}", error.0));
    match error.0 {
        C::CUDA_ERROR_NO_BINARY_FOR_GPU
        | C::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | C::CUDA_ERROR_INVALID_IMAGE => base.remedy(
            "update the driver, or build with an older CUDA compiler or for this GPU (GEMS_CUDA_ARCHS)",
        ),
        C::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | C::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            base.remedy("the driver library and the kernel module differ: reboot, or reinstall the driver")
        }
        C::CUDA_ERROR_NO_DEVICE | C::CUDA_ERROR_INVALID_DEVICE => {
            base.remedy("see nvidia-smi and CUDA_VISIBLE_DEVICES for the GPUs there are, or use --device cpu")
        }
        C::CUDA_ERROR_ILLEGAL_ADDRESS
        | C::CUDA_ERROR_LAUNCH_FAILED
        | C::CUDA_ERROR_MISALIGNED_ADDRESS
        | C::CUDA_ERROR_ILLEGAL_INSTRUCTION => base.remedy(
            "this is a bug of a kernel: run the same command with --device simt, which names it, and report it; \
             the last checkpoint is good",
        ),
        C::CUDA_ERROR_DEVICE_UNAVAILABLE => base.remedy(
            "another process has the GPU for itself (compute mode, MPS): see nvidia-smi, wait for it, or use \
             another one with --device cuda:N",
        ),
        C::CUDA_ERROR_OUT_OF_MEMORY => base.remedy(
            "other processes may hold the GPU's memory: see nvidia-smi; or make the batch smaller",
        ),
        C::CUDA_ERROR_ECC_UNCORRECTABLE => lost("its memory has an uncorrectable error"),
        C::CUDA_ERROR_HARDWARE_STACK_ERROR | C::CUDA_ERROR_EXTERNAL_DEVICE => lost(&format!("{:?}", error.0)),
        C::CUDA_ERROR_UNKNOWN => base.remedy(
            "the driver does not say why: see the system log (dmesg: Xid) and nvidia-smi; at the start of a program \
             it may be that the device files are not there (nvidia-modprobe -u). The last checkpoint is good",
        ),
        C::CUDA_ERROR_SYSTEM_NOT_READY => base.remedy(
            "the GPUs of this machine need a service that is not running: start nvidia-fabricmanager, or ask who runs it",
        ),
        C::CUDA_ERROR_LAUNCH_TIMEOUT => lost("a kernel took longer than the display driver allows"),
        _ => base,
    }
}

/// What an error of cuBLASLt says.
pub fn refused(error: CublasError) -> Error {
    Error::device(format!("cuBLASLt says {:?}", error.0)).remedy("unset GEMS_CUBLASLT")
}
