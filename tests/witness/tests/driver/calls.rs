//! The driver's functions, as cuda.h declares them.

use std::ffi::c_void;

pub const SUCCESS: u32 = 0;
pub const INVALID_VALUE: u32 = 1;
pub const OUT_OF_MEMORY: u32 = 2;
pub const INVALID_CONTEXT: u32 = 201;
pub const NO_BINARY_FOR_GPU: u32 = 209;
pub const INVALID_HANDLE: u32 = 400;
pub const NOT_READY: u32 = 600;
pub const ILLEGAL_ADDRESS: u32 = 700;
pub const LAUNCH_FAILED: u32 = 719;
pub const NOT_SUPPORTED: u32 = 801;
pub const CAPTURE_UNSUPPORTED: u32 = 900;
pub const CAPTURE_INVALIDATED: u32 = 901;

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
pub struct NodeParameters {
    pub function: usize,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub parameters: *const *const c_void,
    pub extra: usize,
    pub kernel: usize,
    pub context: usize,
}

#[allow(clippy::too_many_arguments)]
mod raw {
    use super::{NodeParameters, c_void};
    unsafe extern "C" {
        pub safe fn cuInit(flags: u32) -> u32;
        pub fn cuDevicePrimaryCtxRetain(context: *mut usize, device: i32) -> u32;
        pub safe fn cuDevicePrimaryCtxRelease_v2(device: i32) -> u32;
        pub fn cuCtxCreate_v4(context: *mut usize, parameters: *mut c_void, flags: u32, device: i32) -> u32;
        pub safe fn cuCtxSetCurrent(context: usize) -> u32;
        pub safe fn cuCtxSynchronize() -> u32;
        pub fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32) -> u32;
        pub fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32;
        pub fn cuModuleLoadData(module: *mut usize, image: *const u8) -> u32;
        pub fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const u8) -> u32;
        pub safe fn cuFuncSetAttribute(function: usize, attribute: i32, value: i32) -> u32;
        pub fn cuStreamCreate(stream: *mut usize, flags: u32) -> u32;
        pub safe fn cuStreamSynchronize(stream: usize) -> u32;
        pub safe fn cuStreamDestroy_v2(stream: usize) -> u32;
        pub safe fn cuStreamWaitEvent(stream: usize, event: usize, flags: u32) -> u32;
        pub safe fn cuStreamBeginCapture_v2(stream: usize, mode: u32) -> u32;
        pub fn cuStreamEndCapture(stream: usize, graph: *mut usize) -> u32;
        pub fn cuEventCreate(event: *mut usize, flags: u32) -> u32;
        pub safe fn cuEventRecord(event: usize, stream: usize) -> u32;
        pub safe fn cuEventSynchronize(event: usize) -> u32;
        pub safe fn cuEventQuery(event: usize) -> u32;
        pub safe fn cuEventDestroy_v2(event: usize) -> u32;
        pub fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) -> u32;
        pub fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32;
        pub fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: usize) -> u32;
        pub safe fn cuMemFree_v2(address: u64) -> u32;
        pub safe fn cuMemFreeAsync(address: u64, stream: usize) -> u32;
        pub fn cuMemHostAlloc(address: *mut usize, bytes: usize, flags: u32) -> u32;
        pub safe fn cuMemFreeHost(address: usize) -> u32;
        pub fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: usize) -> u32;
        pub fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: usize) -> u32;
        pub fn cuLaunchKernel(
            function: usize,
            gx: u32,
            gy: u32,
            gz: u32,
            bx: u32,
            by: u32,
            bz: u32,
            shared: u32,
            stream: usize,
            parameters: *const *const c_void,
            extra: *const *const c_void,
        ) -> u32;
        pub fn cuGraphCreate(graph: *mut usize, flags: u32) -> u32;
        pub fn cuGraphAddKernelNode_v2(
            node: *mut usize,
            graph: usize,
            after: *const usize,
            count: usize,
            p: *const NodeParameters,
        ) -> u32;
        pub fn cuGraphKernelNodeSetParams_v2(node: usize, p: *const NodeParameters) -> u32;
        pub fn cuGraphInstantiateWithFlags(executable: *mut usize, graph: usize, flags: u64) -> u32;
        pub fn cuGraphExecKernelNodeSetParams_v2(
            executable: usize,
            node: usize,
            p: *const NodeParameters,
        ) -> u32;
        pub safe fn cuGraphLaunch(executable: usize, stream: usize) -> u32;
        pub safe fn cuGraphExecDestroy(executable: usize) -> u32;
        pub fn cuTensorMapEncodeTiled(
            map: *mut c_void,
            kind: u32,
            rank: u32,
            base: u64,
            size: *const u64,
            strides: *const u64,
            tile: *const u32,
            steps: *const u32,
            interleave: u32,
            swizzle: u32,
            promotion: u32,
            fill: u32,
        ) -> u32;
        pub safe fn cuLaunchHostFunc() -> u32;
    }
}
pub use raw::{
    cuCtxSynchronize as context_synchronize, cuEventDestroy_v2 as event_destroy, cuEventQuery as event_query,
    cuEventRecord as record, cuEventSynchronize as event_synchronize,
    cuFuncSetAttribute as function_attribute, cuGraphExecDestroy as executable_destroy,
    cuGraphLaunch as graph_launch, cuInit as init_with, cuLaunchHostFunc as host_function,
    cuMemFree_v2 as free, cuMemFreeAsync as free_async, cuMemFreeHost as free_pinned,
    cuStreamBeginCapture_v2 as begin_capture, cuStreamDestroy_v2 as stream_destroy,
    cuStreamSynchronize as synchronize, cuStreamWaitEvent as wait_event,
};

pub fn init() -> u32 {
    init_with(0)
}

/// What a function writes through its first argument.
fn made<T: Default>(call: impl FnOnce(*mut T) -> u32) -> Result<T, u32> {
    let mut value = T::default();
    match call(&mut value) {
        SUCCESS => Ok(value),
        status => Err(status),
    }
}

// SAFETY, here and below: every pointer is to a value of this frame, or to as many values as are passed beside it.
pub fn retain() -> usize {
    // SAFETY: as above.
    made(|c| unsafe { raw::cuDevicePrimaryCtxRetain(c, 0) }).unwrap()
}
pub fn release() -> u32 {
    raw::cuDevicePrimaryCtxRelease_v2(0)
}
pub fn set_current(context: usize) {
    assert_eq!(raw::cuCtxSetCurrent(context), SUCCESS);
}
pub fn other_context() -> usize {
    // SAFETY: as above.
    made(|c| unsafe { raw::cuCtxCreate_v4(c, std::ptr::null_mut(), 0, 0) }).unwrap()
}
pub fn attribute(number: i32) -> Result<i32, u32> {
    // SAFETY: as above.
    made(|v| unsafe { raw::cuDeviceGetAttribute(v, number, 0) })
}
pub fn free_memory() -> usize {
    let mut total = 0;
    // SAFETY: as above.
    made(|f| unsafe { raw::cuMemGetInfo_v2(f, &mut total) }).unwrap()
}
pub fn load(image: &str) -> Result<usize, u32> {
    assert!(image.ends_with('\0'));
    // SAFETY: as above.
    made(|m| unsafe { raw::cuModuleLoadData(m, image.as_ptr()) })
}
pub fn function(module: usize, name: &str) -> Result<usize, u32> {
    assert!(name.ends_with('\0'));
    // SAFETY: as above.
    made(|f| unsafe { raw::cuModuleGetFunction(f, module, name.as_ptr()) })
}
pub fn stream() -> usize {
    // SAFETY: as above.
    made(|s| unsafe { raw::cuStreamCreate(s, 1) }).unwrap()
}
pub fn event(flags: u32) -> usize {
    // SAFETY: as above.
    made(|e| unsafe { raw::cuEventCreate(e, flags) }).unwrap()
}
pub fn elapsed(start: usize, end: usize) -> Result<f32, u32> {
    // SAFETY: as above.
    made(|ms| unsafe { raw::cuEventElapsedTime(ms, start, end) })
}
pub fn take(bytes: usize) -> Result<u64, u32> {
    // SAFETY: as above.
    made(|p| unsafe { raw::cuMemAlloc_v2(p, bytes) })
}
pub fn take_async(bytes: usize, stream: usize) -> Result<u64, u32> {
    // SAFETY: as above.
    made(|p| unsafe { raw::cuMemAllocAsync(p, bytes, stream) })
}

/// Pinned memory of `count` numbers.
pub fn pinned(count: usize) -> &'static mut [u32] {
    // SAFETY: as above.
    let at = made(|p| unsafe { raw::cuMemHostAlloc(p, count * 4, 0) }).unwrap();
    // SAFETY: as many bytes as were just taken, which live until they are freed by their address.
    unsafe { std::slice::from_raw_parts_mut(at as *mut u32, count) }
}
pub fn to_device(to: u64, from: &[u32], stream: usize) -> u32 {
    // SAFETY: as above; tests keep the source, or mean not to.
    unsafe { raw::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len() * 4, stream) }
}
pub fn to_host(to: &mut [u32], from: u64, stream: usize) -> u32 {
    // SAFETY: as above.
    unsafe { raw::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len() * 4, stream) }
}

/// The first `count` numbers of device memory, once the stream is done.
pub fn read(from: u64, count: usize, stream: usize) -> Vec<u32> {
    let mut numbers = vec![0; count];
    assert_eq!(to_host(&mut numbers, from, stream), SUCCESS);
    assert_eq!(synchronize(stream), SUCCESS);
    numbers
}

pub fn launch(
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    arguments: &[u64],
) -> u32 {
    let list = [arguments.as_ptr().cast::<c_void>()];
    let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
    // SAFETY: as above.
    unsafe {
        raw::cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, list.as_ptr(), std::ptr::null())
    }
}

/// The same with one block of arguments and its size.
pub fn launch_packed(function: usize, stream: usize, arguments: &[u64], bytes: usize) -> u32 {
    let size = bytes;
    let extra: [*const c_void; 5] = [
        std::ptr::without_provenance(1),
        arguments.as_ptr().cast(),
        std::ptr::without_provenance(2),
        (&raw const size).cast(),
        std::ptr::null(),
    ];
    // SAFETY: as above.
    unsafe { raw::cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, std::ptr::null(), extra.as_ptr()) }
}

pub fn graph() -> usize {
    // SAFETY: as above.
    made(|g| unsafe { raw::cuGraphCreate(g, 0) }).unwrap()
}
fn with_node<T>(function: usize, arguments: &[u64], use_it: impl FnOnce(*const NodeParameters) -> T) -> T {
    let list = [arguments.as_ptr().cast::<c_void>()];
    use_it(&NodeParameters {
        function,
        grid: [1; 3],
        block: [64, 1, 1],
        shared: 0,
        parameters: list.as_ptr(),
        extra: 0,
        kernel: 0,
        context: 0,
    })
}
pub fn add_kernel(graph: usize, after: &[usize], function: usize, arguments: &[u64]) -> Result<usize, u32> {
    with_node(function, arguments, |p| {
        // SAFETY: as above.
        made(|n| unsafe { raw::cuGraphAddKernelNode_v2(n, graph, after.as_ptr(), after.len(), p) })
    })
}
pub fn set_node(node: usize, function: usize, arguments: &[u64]) -> u32 {
    // SAFETY: as above.
    with_node(function, arguments, |p| unsafe { raw::cuGraphKernelNodeSetParams_v2(node, p) })
}
pub fn instantiate(graph: usize) -> usize {
    // SAFETY: as above.
    made(|e| unsafe { raw::cuGraphInstantiateWithFlags(e, graph, 0) }).unwrap()
}
pub fn set_executable_node(executable: usize, node: usize, function: usize, arguments: &[u64]) -> u32 {
    // SAFETY: as above.
    with_node(function, arguments, |p| unsafe { raw::cuGraphExecKernelNodeSetParams_v2(executable, node, p) })
}
pub fn end_capture(stream: usize) -> Result<usize, u32> {
    // SAFETY: as above.
    made(|g| unsafe { raw::cuStreamEndCapture(stream, g) })
}

/// A bf16 matrix of `rows` x `cols`, boxes of 64 x 64 with a swizzle of 128 bytes, at a place for the map.
pub fn tensor_map(
    place: &mut [u64],
    base: u64,
    (rows, cols): (u64, u64),
    stride: u64,
    tile: [u32; 2],
) -> u32 {
    let (size, steps) = ([cols, rows], [1u32; 2]);
    // SAFETY: as above; a map is 16 words.
    unsafe {
        raw::cuTensorMapEncodeTiled(
            place[..16].as_mut_ptr().cast(),
            9,
            2,
            base,
            size.as_ptr(),
            &stride,
            tile.as_ptr(),
            steps.as_ptr(),
            0,
            3,
            3,
            0,
        )
    }
}
