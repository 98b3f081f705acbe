//! A GPU as a driver, through the CUDA driver library, which is loaded when the first device is opened.

use super::driver::{Driver, Shape};
use super::images;
use crate::error::{Error, Result};
use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUfunction_attribute_enum, CUresult};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// Shared memory of a block that needs no asking.
const DEFAULT_SHARED: u32 = 48 * 1024;

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);
// Sound: a function handle may be used from any thread once the context is current there.
unsafe impl Send for Function {}

/// One GPU and the modules loaded on it.
pub struct Gpu {
    context: Arc<CudaContext>,
    name: String,
    multiprocessors: usize,
    max_shared: usize,
    functions: Mutex<HashMap<String, Function>>,
}

/// Whether there is a driver library at all.
pub fn driver_present() -> bool {
    // Sound: tries to open a library by its fixed names.
    unsafe { sys::is_culib_present() }
}

fn explain(error: DriverError) -> Error {
    let base = Error::device(format!("the CUDA driver says {error}"));
    match error.0 {
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | CUresult::CUDA_ERROR_INVALID_IMAGE => base.remedy(
            "update the driver, or build with an older CUDA compiler or for this GPU (GEMS_CUDA_ARCHS)",
        ),
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS | CUresult::CUDA_ERROR_LAUNCH_FAILED => base.remedy(
            "this is a bug of a kernel: run the same command with --device simt, which names it, and report it",
        ),
        CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE => base.remedy("another process may own the GPU: see nvidia-smi"),
        _ => base,
    }
}

impl Gpu {
    /// Opens device `ordinal` and loads the images that fit it.
    ///
    /// # Errors
    /// No driver, no such device, a driver older than the images, an architecture that is not embedded.
    pub fn open(ordinal: usize) -> Result<Self> {
        if !driver_present() {
            return Err(Error::device("there is no CUDA driver on this machine")
                .remedy("install the NVIDIA driver, or use --device cpu"));
        }
        // The binding panics at the first symbol that an old driver lacks.
        let opened = std::panic::catch_unwind(|| Self::open_present(ordinal));
        opened.unwrap_or_else(|_| {
            Err(Error::device("the CUDA driver is too old")
                .remedy("update the NVIDIA driver to 570 or later"))
        })
    }

    fn open_present(ordinal: usize) -> Result<Self> {
        let place = format!("cuda:{ordinal}");
        let context = CudaContext::new(ordinal).map_err(|e| {
            explain(e).at(&place).remedy("see nvidia-smi for the devices there are, or use --device cpu")
        })?;
        let attribute = |a| context.attribute(a).map_err(explain);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        );
        let gpu = Self {
            name: context.name().map_err(explain)?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            max_shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            functions: Mutex::new(HashMap::new()),
            context,
        };
        gpu.load(capability).map_err(|e| e.at(place))?;
        Ok(gpu)
    }

    /// Loads every kernel file's image for this GPU and remembers its functions by name.
    fn load(&self, (major, minor): (u32, u32)) -> Result<()> {
        let Some(architecture) = images::choose(major, minor) else {
            let embedded = images::architectures().join(", ");
            let what = if embedded.is_empty() {
                "this program was built without GPU kernels".to_string()
            } else {
                format!(
                    "no kernels for compute capability {major}.{minor} are built in (there are {embedded})"
                )
            };
            return Err(Error::device(what)
                .remedy("`just cuda-toolchain`, then build again (GEMS_CUDA_ARCHS chooses architectures)"));
        };
        for (_, _, image) in images::IMAGES.iter().filter(|(_, arch, _)| *arch == architecture) {
            // Aligned as an ELF file must be, and ended by a NUL as PTX must be.
            let mut aligned = vec![0u64; image.len() / 8 + 1];
            bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..image.len()].copy_from_slice(image);
            // Sound: a whole image in memory that lives during the call; the module stays loaded.
            let module = unsafe { result::module::load_data(aligned.as_ptr().cast()) }.map_err(explain)?;
            self.add_functions(module)?;
        }
        Ok(())
    }

    fn add_functions(&self, module: sys::CUmodule) -> Result<()> {
        let mut count = 0;
        // Sound: the arrays have the sizes that are passed; names belong to the loaded module.
        unsafe {
            sys::cuModuleGetFunctionCount(&mut count, module).result().map_err(explain)?;
            let mut handles = vec![std::ptr::null_mut(); count as usize];
            sys::cuModuleEnumerateFunctions(handles.as_mut_ptr(), count, module).result().map_err(explain)?;
            for handle in handles {
                let mut name = std::ptr::null();
                sys::cuFuncGetName(&mut name, handle).result().map_err(explain)?;
                let name = std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned();
                let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                result::function::set_function_attribute(handle, most, self.max_shared as i32)
                    .map_err(explain)?;
                self.functions.lock().unwrap_or_else(|p| p.into_inner()).insert(name, Function(handle));
            }
        }
        Ok(())
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(explain)
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        format!("cuda:{} ({})", self.context.ordinal(), self.name)
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        // Sound: the address is owned by the caller, who gives it to `free` once.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Ok(Some(address)),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(explain(e)),
        }
    }
    fn free(&self, address: u64, _bytes: usize) {
        if self.bind().is_ok() {
            // Sound: see `alloc`. A failure here means the device is lost, which the next call reports.
            let _ = unsafe { result::free_sync(address) };
        }
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        // Sound: the caller's tensor has at least this size. From pageable memory the call returns once
        // `bytes` has been staged, without waiting for the kernels before it.
        unsafe { result::memcpy_htod_async(to, bytes, result::stream::null()) }.map_err(explain)
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // Sound: as in `upload`; the copy follows all work of the default stream.
        unsafe { result::memcpy_dtoh_sync(bytes, from) }.map_err(explain)
    }
    fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<()> {
        self.bind()?;
        let found = self.functions.lock().unwrap_or_else(|p| p.into_inner()).get(kernel).copied();
        let function = found.ok_or_else(|| Error::device(format!("there is no kernel `{kernel}`")))?;
        debug_assert!(shape.shared <= DEFAULT_SHARED.max(self.max_shared as u32));
        let [gx, gy, gz] = shape.grid;
        let [bx, by, bz] = shape.block;
        // Sound: every kernel takes one structure by value, whose bytes these are (the SIMT machine
        // compares the sizes in every test).
        unsafe {
            let mut parameters = [arguments.as_ptr().cast_mut().cast::<c_void>()];
            let stream = result::stream::null();
            result::launch_kernel(
                function.0,
                (gx, gy, gz),
                (bx, by, bz),
                shape.shared,
                stream,
                &mut parameters,
            )
        }
        .map_err(|e| explain(e).at(format!("launch of {kernel}")))
    }
    fn synchronize(&self) -> Result<()> {
        self.bind()?;
        result::ctx::synchronize().map_err(explain)
    }
    fn wide(&self) -> usize {
        2 * self.multiprocessors
    }
    fn max_shared(&self) -> usize {
        self.max_shared
    }
    fn recycles(&self) -> bool {
        true
    }
}
