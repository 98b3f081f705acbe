//! What the binding can call and the witness does not do: refused by name. What is not even here, the binding names when
//! it looks for it.

use super::plainly;
use super::status::*;

macro_rules! unsupported {
    ($($name:ident)*) => {
        // Whatever the arguments are: the caller puts them where it finds them again.
        $(#[unsafe(no_mangle)]
        extern "C" fn $name() -> Status {
            plainly(stringify!($name), |_| refuse(NOT_SUPPORTED, "the witness does not do this"))
        })*
    };
}

unsupported! {
    cuCtxCreate_v3
    cuCtxGetCacheConfig
    cuCtxGetLimit
    cuCtxGetStreamPriorityRange
    cuCtxSetCacheConfig
    cuCtxSetFlags
    cuCtxSetLimit
    cuDestroyExternalMemory
    cuDeviceGetDefaultMemPool
    cuDeviceGetMemPool
    cuDeviceSetMemPool
    cuExternalMemoryGetMappedBuffer
    cuFuncSetCacheConfig
    cuGraphUpload
    cuImportExternalMemory
    cuLaunchCooperativeKernel
    cuLaunchHostFunc
    cuMemAdvise_v2
    cuMemAllocFromPoolAsync
    cuMemAllocManaged
    cuMemPoolCreate
    cuMemPoolDestroy
    cuMemPoolGetAttribute
    cuMemPoolSetAttribute
    cuMemPoolTrimTo
    cuMemPrefetchAsync_v2
    cuMemcpyPeerAsync
    cuModuleLoad
    cuOccupancyAvailableDynamicSMemPerBlock
    cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags
    cuOccupancyMaxActiveClusters
    cuOccupancyMaxPotentialBlockSize
    cuOccupancyMaxPotentialBlockSizeWithFlags
    cuOccupancyMaxPotentialClusterSize
    cuStreamAttachMemAsync
}
