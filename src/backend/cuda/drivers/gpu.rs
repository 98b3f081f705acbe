//! A GPU as a driver, through the CUDA driver library, which is loaded when the first device is opened.
//!
//! All work goes to one stream of its own, in order. Memory is taken from the stream's pool; uploads go through
//! pinned memory and are not waited for. Only downloads and [`Driver::synchronize`] wait.

use super::cublaslt::Library;
use super::gpu_graph::{Function, GpuGraph};
use super::staging::Ring;
use crate::backend::cuda::abi::{Launch, Matrix, TensorMap};
use crate::backend::cuda::driver::{Driver, Event, Graph, Node, PlainProduct};
use crate::backend::cuda::errors::explain;
use crate::backend::cuda::images;
use crate::backend::cuda::probe::{driver_present, other_processes};
use crate::backend::work::Peaks;
use crate::backend::{DType, DeviceInfo};
use crate::error::{Error, Result};
use cudarc::driver::sys::{
    CUdevice_attribute_enum as Attribute, CUevent_flags_enum, CUfunction_attribute_enum, CUresult,
};
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex};

/// Shared memory of a block that needs no asking.
const DEFAULT_SHARED: u32 = 48 * 1024;

/// Half of the pinned ring that uploads go through.
const HALF: usize = 4 << 20;

/// Bytes of a piece that several threads copy one of each.
const SHARED: usize = 1 << 20;

/// Pinned memory for uploads.
struct Staging {
    ring: Ring,
    base: *mut u8,
    read: [Option<CudaEvent>; 2],
}
// SAFETY: the memory belongs to this structure alone, which a mutex guards.
unsafe impl Send for Staging {}

/// One GPU and the modules loaded on it.
pub struct Gpu {
    info: DeviceInfo,
    pooled: bool,
    functions: Mutex<HashMap<String, Function>>,
    // Dropped in this order: what lives in the context before the context.
    cublaslt: Option<Library>,
    staging: Mutex<Staging>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

/// Multiplications and additions a multiprocessor's tensor cores do in bf16 with f32 sums per clock, without sparsity;
/// GeForce cards do half of what their chips can.
fn tensor_rate((major, minor): (u32, u32), name: &str) -> Option<f64> {
    let share = if name.contains("GeForce") { 0.5 } else { 1.0 };
    let chip = match (major, minor) {
        (8, 0) => 2048.0,
        (8, _) | (12, _) => 1024.0,
        (9, _) => 4096.0,
        (10, _) => 8192.0,
        _ => return None,
    };
    Some(share * chip)
}

impl Gpu {
    /// Opens device `ordinal` and loads the images that fit it; with cuBLASLt, if `blas`.
    ///
    /// # Errors
    /// No driver, no such device, a driver older than the images, an architecture that is not embedded, no cuBLASLt.
    pub fn open(ordinal: usize, blas: bool) -> Result<Self> {
        if !driver_present() {
            return Err(Error::device("there is no CUDA driver on this machine")
                .remedy("install the NVIDIA driver, or use --device cpu"));
        }
        // The binding panics at the first symbol that an old driver lacks.
        let opened = std::panic::catch_unwind(|| Self::open_present(ordinal, blas));
        opened.unwrap_or_else(|_| {
            Err(Error::device("the CUDA driver is too old")
                .remedy(format!("update the NVIDIA driver{}", images::driver_needed())))
        })
    }

    fn open_present(ordinal: usize, blas: bool) -> Result<Self> {
        let place = format!("cuda:{ordinal}");
        let context = CudaContext::new(ordinal).map_err(|e| explain(e).at(&place))?;
        let attribute = |a| context.attribute(a).map_err(explain);
        let capability = (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        );
        let name = format!("{place} ({})", context.name().map_err(explain)?);
        let stream = context.new_stream().map_err(explain)?;
        let sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let max_shared =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        let image = images::choose(&images::architectures(), capability.0, capability.1)?;
        let peaks = peaks(&context, capability, &name);
        let gpu = Self {
            info: DeviceInfo { name, max_shared, peaks, blas, ..DeviceInfo::of_image(image, sms) },
            stream,
            pooled: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED).unwrap_or(0) != 0,
            cublaslt: if blas { Some(Library::open()?) } else { None },
            functions: Mutex::new(HashMap::new()),
            staging: Mutex::new(Staging::new()?),
            context,
        };
        gpu.load(image).map_err(|e| e.at(place))?;
        Ok(gpu)
    }

    /// Loads every kernel file's image for this GPU and remembers its functions by name.
    fn load(&self, architecture: &str) -> Result<()> {
        for (_, _, image) in images::IMAGES.iter().filter(|(_, arch, _)| *arch == architecture) {
            // Aligned as an ELF file must be, and ended by a NUL as PTX must be.
            let mut aligned = vec![0u64; image.len() / 8 + 1];
            bytemuck::cast_slice_mut::<u64, u8>(&mut aligned)[..image.len()].copy_from_slice(image);
            // SAFETY: a whole image in memory that lives during the call; the module stays loaded.
            let module = unsafe { result::module::load_data(aligned.as_ptr().cast()) }.map_err(explain)?;
            self.add_functions(module)?;
        }
        Ok(())
    }

    fn add_functions(&self, module: sys::CUmodule) -> Result<()> {
        let mut count = 0;
        // SAFETY: the arrays have the sizes that are passed; names belong to the loaded module.
        unsafe {
            sys::cuModuleGetFunctionCount(&mut count, module).result().map_err(explain)?;
            let mut handles = vec![std::ptr::null_mut(); count as usize];
            sys::cuModuleEnumerateFunctions(handles.as_mut_ptr(), count, module).result().map_err(explain)?;
            for handle in handles {
                let mut name = std::ptr::null();
                sys::cuFuncGetName(&mut name, handle).result().map_err(explain)?;
                let name = std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned();
                let most = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let own = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
                let own = result::function::get_function_attribute(handle, own).map_err(explain)?;
                result::function::set_function_attribute(handle, most, self.info.max_shared as i32 - own)
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

    fn record(&self, flags: CUevent_flags_enum) -> Result<CudaEvent> {
        let event = self.context.new_event(Some(flags)).map_err(explain)?;
        event.record(&self.stream).map_err(explain)?;
        Ok(event)
    }
}

/// What the device's clocks and widths allow: the bus on both edges, the tensor cores at the highest clock.
fn peaks(context: &CudaContext, capability: (u32, u32), name: &str) -> Option<Peaks> {
    let attribute = |a| context.attribute(a).ok().filter(|v| *v > 0).map(f64::from);
    let bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? / 8.0;
    let memory_clock = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)? * 1e3;
    let clock = attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)? * 1e3;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Some(Peaks {
        bytes_per_second: 2.0 * memory_clock * bytes,
        flops_per_second: tensor_rate(capability, name)? * multiprocessors * clock,
    })
}

impl Staging {
    fn new() -> Result<Self> {
        // SAFETY: freed once, in `drop`; the context that pins it is current.
        let base = unsafe { result::malloc_host(2 * HALF, 0) }.map_err(explain)?;
        Ok(Self { ring: Ring::new(HALF), base: base.cast(), read: [None, None] })
    }

    /// Puts bytes into the ring and starts their copy to the device.
    fn send(&mut self, gpu: &Gpu, to: u64, bytes: &[u8]) -> Result<()> {
        for (i, chunk) in bytes.chunks(HALF).enumerate() {
            let place = self.ring.place(chunk.len());
            if let Some(half) = place.filled {
                self.read[half] = Some(gpu.record(CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)?);
            }
            if let Some(event) = place.wait.and_then(|half| self.read[half].take()) {
                event.synchronize().map_err(explain)?;
            }
            // SAFETY: `place` lies in the ring and the device has read what was there; the caller's tensor has
            // at least this size, and the copy reads the ring before that half is written again.
            unsafe {
                let staged = std::slice::from_raw_parts_mut(self.base.add(place.offset), chunk.len());
                copy(chunk, staged);
                result::memcpy_htod_async(to + (i * HALF) as u64, staged, gpu.stream.cu_stream())
            }
            .map_err(explain)?;
        }
        Ok(())
    }
}

/// Copies bytes, by several threads where one would be slower than the bus.
fn copy(from: &[u8], to: &mut [u8]) {
    let pairs = to.par_chunks_mut(SHARED).zip(from.par_chunks(SHARED));
    match from.len() > SHARED {
        true => pairs.for_each(|(to, from)| to.copy_from_slice(from)),
        false => to.copy_from_slice(from),
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // Copies under way read the ring, which is freed next. A failure here means that the device is lost.
        let _ = self.bind().and_then(|()| self.synchronize());
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: see `new`; nothing reads it any more.
        let _ = unsafe { result::free_host(self.base.cast()) };
    }
}

impl Driver for Gpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn inner(&self) -> Option<&dyn Driver> {
        None
    }
    fn alloc(&self, bytes: usize) -> Result<Option<u64>> {
        self.bind()?;
        // SAFETY: the address is owned by the caller, who gives it to `free` once.
        let taken = unsafe {
            match self.pooled {
                true => result::malloc_async(self.stream.cu_stream(), bytes.max(1)),
                false => result::malloc_sync(bytes.max(1)),
            }
        };
        match taken {
            Ok(address) => Ok(Some(address)),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => Ok(None),
            Err(e) => Err(explain(e)),
        }
    }
    fn free(&self, address: u64, _bytes: usize) {
        if self.bind().is_ok() {
            // SAFETY: see `alloc`. A failure here means the device is lost, which the next call reports.
            let _ = unsafe {
                match self.pooled {
                    true => result::free_async(address, self.stream.cu_stream()),
                    false => result::free_sync(address),
                }
            };
        }
    }
    fn upload(&self, to: u64, bytes: &[u8]) -> Result<()> {
        self.bind()?;
        self.staging.lock().unwrap_or_else(|p| p.into_inner()).send(self, to, bytes)
    }
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<()> {
        self.bind()?;
        // SAFETY: the tensor has at least this size, and `bytes` outlives the wait that follows.
        unsafe { result::memcpy_dtoh_async(bytes, from, self.stream.cu_stream()) }.map_err(explain)?;
        self.synchronize()
    }
    fn launch(&self, kernel: &str, launch: Launch, arguments: &[u8]) -> Result<()> {
        self.bind()?;
        let function = self.function(kernel)?;
        debug_assert!(launch.shared <= DEFAULT_SHARED.max(self.info.max_shared as u32));
        let [gx, gy, gz] = launch.grid;
        let [bx, by, bz] = launch.block;
        // SAFETY: every kernel takes one structure by value, whose bytes these are (the SIMT machine
        // compares the sizes in every test).
        unsafe {
            let mut parameters = [arguments.as_ptr().cast_mut().cast::<c_void>()];
            result::launch_kernel(
                function.0,
                (gx, gy, gz),
                (bx, by, bz),
                launch.shared,
                self.stream.cu_stream(),
                &mut parameters,
            )
        }
        .map_err(|e| explain(e).at(format!("launch of {kernel}")))
    }
    fn graph(&self, nodes: &[Node]) -> Result<Option<Box<dyn Graph>>> {
        self.bind()?;
        let functions = nodes.iter().map(|n| self.function(n.kernel)).collect::<Result<Vec<_>>>()?;
        let graph = GpuGraph::new(&self.context, &self.stream, functions, nodes)?;
        Ok(Some(Box::new(graph)))
    }
    fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| explain(e).at(&self.info.name))
    }
    fn tensor_map(&self, matrix: &Matrix, rows: usize) -> Result<TensorMap> {
        use sys::CUtensorMapDataType_enum as Type;
        self.bind()?;
        // Aligned as the driver wants it, which the binding's own type is not.
        let mut map = TensorMap { opaque: [0; 16] };
        let (size, row) = ([matrix.cols as u64, matrix.rows as u64], [matrix.row_bytes(DType::BF16)]);
        // SAFETY: the arrays hold as many values as two dimensions need; the map is 128 plain bytes, which the driver
        // fills without touching the device.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                std::ptr::from_mut(&mut map).cast(),
                Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                matrix.data as *mut c_void,
                size.as_ptr(),
                row.as_ptr(),
                [64u32, rows as u32].as_ptr(),
                [1u32, 1].as_ptr(),
                sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()
            .map_err(|e| explain(e).at(format!("tensor map of {} x {}", matrix.rows, matrix.cols)))?;
        }
        Ok(map)
    }
    fn event(&self) -> Result<Event> {
        self.record(CUevent_flags_enum::CU_EVENT_DEFAULT).map(Event::Device)
    }
    fn come_after(&self, event: &Event) -> Result<()> {
        match event {
            Event::Device(event) => self.stream.wait(event).map_err(explain),
            Event::Host(_) => Ok(()),
        }
    }
    fn plain_product(&self, p: &PlainProduct, factors: (f32, f32), matrices: [u64; 3]) -> Result<bool> {
        self.bind()?;
        let Some(library) = &self.cublaslt else { return Ok(false) };
        // SAFETY: the launch layer describes its own tensors.
        unsafe { library.product(p, factors, matrices, self.stream.cu_stream()) }
    }
    fn profiler(&self, on: bool) -> Result<()> {
        self.bind()?;
        // SAFETY: no arguments; without a profiler attached it does nothing.
        let said = unsafe { if on { sys::cuProfilerStart() } else { sys::cuProfilerStop() } };
        said.result().map_err(explain)
    }
    fn memory_report(&self) -> Option<String> {
        self.bind().ok()?;
        let (free, total) = result::mem_get_info().ok()?;
        let others = other_processes(self.context.ordinal());
        let mib = |bytes: usize| bytes >> 20;
        let others = match others {
            0 => String::new(),
            n => format!("; {n} other processes use it"),
        };
        Some(format!("the GPU has {} of {} MiB free{others}", mib(free), mib(total)))
    }
}
