//! A GPU as a driver, through the CUDA driver library, which is loaded when the first device is opened.
//!
//! All work goes to one stream of its own, in order. Memory is taken from the stream's pool; uploads go through
//! pinned memory and are not waited for. Only downloads and [`Driver::synchronize`] wait.

use super::driver::{Chain, Driver, Moment, Node, Shape};
use super::faulty::lost;
use super::graph::GpuChain;
use super::images;
use super::launch::{TensorMap, View};
use super::library::{Library, PlainProduct};
use super::staging::Ring;
use crate::backend::trace::Peaks;
use crate::error::{Error, Result};
use cudarc::driver::sys::{
    CUdevice_attribute_enum as Attribute, CUevent_flags_enum, CUfunction_attribute_enum, CUresult,
};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// Shared memory of a block that needs no asking.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// Half of the pinned ring that uploads go through.
const HALF: usize = 4 << 20;

/// A kernel on a device.
#[derive(Clone, Copy)]
pub struct Function(pub sys::CUfunction);
// Sound: a function handle may be used from any thread once the context is current there.
unsafe impl Send for Function {}

/// Pinned memory for uploads.
struct Staging {
    ring: Ring,
    base: *mut u8,
    read: [Option<CudaEvent>; 2],
}
// Sound: the memory belongs to this structure alone, which a mutex guards.
unsafe impl Send for Staging {}

/// One GPU and the modules loaded on it.
pub struct Gpu {
    name: String,
    multiprocessors: usize,
    max_shared: usize,
    pooled: bool,
    hopper: bool,
    peaks: Option<Peaks>,
    functions: Mutex<HashMap<String, Function>>,
    // Dropped in this order: what lives in the context before the context.
    cublaslt: Option<Library>,
    staging: Mutex<Staging>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// Whether there is a driver library at all.
pub fn driver_present() -> bool {
    // Sound: tries to open a library by its fixed names.
    unsafe { sys::is_culib_present() }
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
        C::CUDA_ERROR_HARDWARE_STACK_ERROR | C::CUDA_ERROR_EXTERNAL_DEVICE | C::CUDA_ERROR_UNKNOWN => {
            lost(&format!("{:?}", error.0))
        }
        C::CUDA_ERROR_LAUNCH_TIMEOUT => lost("a kernel took longer than the display driver allows"),
        _ => base,
    }
}

/// Multiplications and additions a multiprocessor's tensor cores do in bf16 per clock, without sparsity.
fn tensor_rate(major: u32, minor: u32) -> Option<f64> {
    Some(match (major, minor) {
        (8, 0) => 2048.0,
        (8, _) | (12, _) => 1024.0,
        (9, _) => 4096.0,
        (10, _) => 8192.0,
        _ => return None,
    })
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
        let context = CudaContext::new(ordinal).map_err(|e| explain(e).at(&place))?;
        let attribute = |a| context.attribute(a).map_err(explain);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        );
        let gpu = Self {
            name: context.name().map_err(explain)?,
            stream: context.new_stream().map_err(explain)?,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            max_shared: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            pooled: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED).unwrap_or(0) != 0,
            // The image for 9.0 is the one that has these kernels; PTX of an older one does not.
            hopper: images::choose(&images::architectures(), capability.0, capability.1)? == "sm_90a",
            peaks: peaks(&context, capability),
            cublaslt: Library::open()?,
            functions: Mutex::new(HashMap::new()),
            staging: Mutex::new(Staging::new()?),
            context,
        };
        gpu.load(capability).map_err(|e| e.at(place))?;
        Ok(gpu)
    }

    /// Loads every kernel file's image for this GPU and remembers its functions by name.
    fn load(&self, (major, minor): (u32, u32)) -> Result<()> {
        let architecture = images::choose(&images::architectures(), major, minor)?;
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

    fn function(&self, kernel: &str) -> Result<Function> {
        let found = self.functions.lock().unwrap_or_else(|p| p.into_inner()).get(kernel).copied();
        found.ok_or_else(|| Error::device(format!("there is no kernel `{kernel}`")))
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(explain)
    }

    fn event(&self, flags: CUevent_flags_enum) -> Result<CudaEvent> {
        let event = self.context.new_event(Some(flags)).map_err(explain)?;
        event.record(&self.stream).map_err(explain)?;
        Ok(event)
    }
}

/// What the device's clocks and widths allow: the bus on both edges, the tensor cores at the highest clock.
fn peaks(context: &CudaContext, (major, minor): (u32, u32)) -> Option<Peaks> {
    let attribute = |a| context.attribute(a).ok().filter(|v| *v > 0).map(f64::from);
    let bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? / 8.0;
    let memory_clock = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? * 1e3;
    let clock = attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? * 1e3;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Some(Peaks {
        bytes_per_second: 2.0 * memory_clock * bytes,
        flops_per_second: tensor_rate(major, minor)? * multiprocessors * clock,
    })
}

impl Staging {
    fn new() -> Result<Self> {
        // Sound: freed once, in `drop`; the context that pins it is current.
        let base = unsafe { result::malloc_host(2 * HALF, 0) }.map_err(explain)?;
        Ok(Self { ring: Ring::new(HALF), base: base.cast(), read: [None, None] })
    }

    /// Puts bytes into the ring and starts their copy to the device.
    fn send(&mut self, gpu: &Gpu, to: u64, bytes: &[u8]) -> Result<()> {
        for (i, chunk) in bytes.chunks(HALF).enumerate() {
            let place = self.ring.place(chunk.len());
            if let Some(half) = place.filled {
                self.read[half] = Some(gpu.event(CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)?);
            }
            if let Some(event) = place.wait.and_then(|half| self.read[half].take()) {
                event.synchronize().map_err(explain)?;
            }
            // Sound: `place` lies in the ring and the device has read what was there; the caller's tensor has
            // at least this size, and the copy reads the ring before that half is written again.
            unsafe {
                let staged = std::slice::from_raw_parts_mut(self.base.add(place.offset), chunk.len());
                staged.copy_from_slice(chunk);
                result::memcpy_htod_async(to + (i * HALF) as u64, staged, gpu.stream.cu_stream())
            }
            .map_err(explain)?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Sound: see `new`. Copies under way end before the context does; a failure means a lost device.
        let _ = unsafe { result::free_host(self.base.cast()) };
    }
}

impl Driver for Gpu {
    fn name(&self) -> String {
        format!("cuda:{} ({})", self.context.ordinal(), self.name)
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        // Sound: the address is owned by the caller, who gives it to `free` once.
        let taken = match self.pooled {
            true => unsafe { result::malloc_async(self.stream.cu_stream(), bytes.max(1)) },
            false => unsafe { result::malloc_sync(bytes.max(1)) },
        };
        match taken {
            Ok(address) => Ok(Some(address)),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(explain(e)),
        }
    }
    fn free(&self, address: u64, _bytes: usize) {
        if self.bind().is_ok() {
            // Sound: see `alloc`. A failure here means the device is lost, which the next call reports.
            let _ = match self.pooled {
                true => unsafe { result::free_async(address, self.stream.cu_stream()) },
                false => unsafe { result::free_sync(address) },
            };
        }
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        self.staging.lock().unwrap_or_else(|p| p.into_inner()).send(self, to, bytes)
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // Sound: the tensor has at least this size, and `bytes` outlives the wait that follows.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }.map_err(explain)?;
        self.synchronize()
    }
    fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<()> {
        self.bind()?;
        let function = self.function(kernel)?;
        debug_assert!(shape.shared <= DEFAULT_SHARED.max(self.max_shared as u32));
        let [gx, gy, gz] = shape.grid;
        let [bx, by, bz] = shape.block;
        // Sound: every kernel takes one structure by value, whose bytes these are (the SIMT machine
        // compares the sizes in every test).
        unsafe {
            let mut parameters = [arguments.as_ptr().cast_mut().cast::<c_void>()];
            result::launch_kernel(
                function.0,
                (gx, gy, gz),
                (bx, by, bz),
                shape.shared,
                self.stream.cu_stream(),
                &mut parameters,
            )
        }
        .map_err(|e| explain(e).at(format!("launch of {kernel}")))
    }
    fn chain(&self, nodes: &[Node]) -> Result<Option<Box<dyn Chain>>> {
        self.bind()?;
        let functions = nodes.iter().map(|n| self.function(n.kernel)).collect::<Result<Vec<_>>>()?;
        let chain = GpuChain::new(&self.context, &self.stream, functions, nodes)?;
        Ok(Some(Box::new(chain)))
    }
    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| explain(e).at(self.name()))
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
    fn hopper(&self) -> bool {
        self.hopper
    }
    fn tensor_map(&self, matrix: &View) -> Result<TensorMap> {
        use sys::CUtensorMapDataType_enum as Type;
        let mut map = std::mem::MaybeUninit::<sys::CUtensorMap>::zeroed();
        let (size, row) = ([matrix.cols as u64, matrix.rows as u64], [matrix.ld as u64 * 2]);
        // Sound: the arrays hold as many values as two dimensions need; the map is plain bytes, which the
        // driver fills without touching the device.
        let map = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                matrix.data as *mut c_void,
                size.as_ptr(),
                row.as_ptr(),
                [64u32, 64].as_ptr(),
                [1u32, 1].as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .map_err(|e| explain(e).at(format!("tensor map of {} x {}", matrix.rows, matrix.cols)))?;
            map.assume_init()
        };
        Ok(TensorMap(map.opaque))
    }
    fn mark(&self) -> Result<Moment> {
        self.event(CUevent_flags_enum::CU_EVENT_DEFAULT).map(Moment::Device)
    }
    fn plain_product(&self, p: &PlainProduct, factors: (f32, f32), matrices: [u64; 3]) -> Result<bool> {
        self.bind()?;
        let Some(library) = &self.cublaslt else { return Ok(false) };
        // Sound: the launch layer describes its own tensors.
        unsafe { library.product(p, factors, matrices, self.stream.cu_stream()) }
    }
    fn has_library(&self) -> bool {
        self.cublaslt.is_some()
    }
    fn peaks(&self) -> Option<Peaks> {
        self.peaks
    }
    fn profiler(&self, on: bool) -> Result<()> {
        self.bind()?;
        // Sound: no arguments; without a profiler attached it does nothing.
        let said = unsafe { if on { sys::cuProfilerStart() } else { sys::cuProfilerStop() } };
        said.result().map_err(explain)
    }
    fn room(&self) -> Option<String> {
        self.bind().ok()?;
        let (free, total) = result::mem_get_info().ok()?;
        let others = super::probe::other_processes(self.context.ordinal());
        let mib = |bytes: usize| bytes >> 20;
        let others = match others {
            0 => String::new(),
            n => format!("; {n} other processes use it"),
        };
        Some(format!("the GPU has {} of {} MiB free{others}", mib(free), mib(total)))
    }
}
