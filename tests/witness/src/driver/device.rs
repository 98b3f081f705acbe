//! The one device: an A100 for programs that ask for compute capability 8.0, an H100 for 9.0.

use super::arguments::Out;
use super::settings::Settings;
use super::status::*;
use super::{Driver, bound, call};
use std::ffi::{CString, c_char, c_int};

/// What a multiprocessor of 8.0 and one of 9.0 have; `cuDeviceGetAttribute` of an A100 SXM 80 GB and an H100 SXM.
pub struct Limits {
    pub shared_per_block: u32,
    pub shared_per_multiprocessor: u32,
    clock: i32,
    memory_clock: i32,
    l2: i32,
    hopper: bool,
}

const A100: Limits = Limits {
    shared_per_block: 163 * 1024,
    shared_per_multiprocessor: 164 * 1024,
    clock: 1_410_000,
    memory_clock: 1_593_000,
    l2: 40 << 20,
    hopper: false,
};
const H100: Limits = Limits {
    shared_per_block: 227 * 1024,
    shared_per_multiprocessor: 228 * 1024,
    clock: 1_980_000,
    memory_clock: 2_619_000,
    l2: 50 << 20,
    hopper: true,
};

/// Threads, registers and blocks of a multiprocessor, and registers of a block.
pub const THREADS_OF_MULTIPROCESSOR: u32 = 2048;
pub const REGISTERS: u32 = 65536;
const BLOCKS_OF_MULTIPROCESSOR: i32 = 32;

impl Settings {
    /// What its multiprocessors have.
    pub fn limits(&self) -> &'static Limits {
        if self.capability >= 90 { &H100 } else { &A100 }
    }

    /// An attribute by its number in cuda.h.
    fn attribute(&self, attribute: i32) -> Option<i32> {
        let limits = self.limits();
        Some(match attribute {
            1..=3 => 1024,               // threads of a block; its x, y
            4 => 64,                     // its z
            5 => i32::MAX,               // blocks in x
            6 | 7 => 65535,              // in y, z
            8 => 48 * 1024,              // shared memory of a block without asking
            9 => 65536,                  // constant memory
            10 => 32,                    // threads of a warp
            11 => i32::MAX,              // pitch
            12 | 82 => REGISTERS as i32, // of a block, of a multiprocessor
            13 => limits.clock,          // kHz
            14 => 512,                   // alignment of textures
            15 | 19 | 31 | 32 | 41 => 1, // overlap, mapped memory, several kernels, ECC, one address space
            16 => self.multiprocessors as i32,
            17 | 18 | 20 | 33 | 34 | 35 | 50 | 84 => 0, // time limit, integrated, compute mode, bus, TCC, two on a board
            36 => limits.memory_clock,
            37 => 5120, // bits of the memory's bus
            38 => limits.l2,
            39 => THREADS_OF_MULTIPROCESSOR as i32,
            40 => 3, // copy engines
            75 => self.capability as i32 / 10,
            76 => self.capability as i32 % 10,
            78..=80 | 83 | 89 | 95 | 115 => 1, // priorities, caches, managed memory, cooperative launches, pools
            81 => limits.shared_per_multiprocessor as i32,
            97 => limits.shared_per_block as i32, // with asking
            106 => BLOCKS_OF_MULTIPROCESSOR,
            111 => 1024, // shared memory that the system takes of each block
            120 | 127 => i32::from(limits.hopper), // clusters, tensor maps
            _ => return None,
        })
    }
}

impl Driver {
    /// Whether it is the device's number.
    pub fn the_device(&self, device: c_int) -> Answer {
        if device == 0 { Ok(()) } else { refuse(INVALID_DEVICE, format!("device {device}; there is one, 0")) }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetCount(count: Out<c_int>) -> Status {
    call("cuDeviceGetCount", |_| count.put(1))
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGet(device: Out<c_int>, ordinal: c_int) -> Status {
    call("cuDeviceGet", |driver| match driver.the_device(ordinal) {
        Ok(()) => device.put(0),
        // Programs look for devices that are not there.
        Err(_) => quietly(INVALID_DEVICE),
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetName(name: Out<c_char>, length: c_int, device: c_int) -> Status {
    call("cuDeviceGetName", |driver| {
        driver.the_device(device)?;
        let capability = driver.settings.capability;
        let text =
            CString::new(format!("PTX witness {}.{}", capability / 10, capability % 10)).unwrap_or_default();
        let bytes = text.as_bytes_with_nul();
        if length < bytes.len() as c_int {
            return refuse(INVALID_VALUE, format!("{length} characters for a name of {}", bytes.len()));
        }
        bytes.iter().enumerate().try_for_each(|(i, byte)| name.put_at(i, *byte as c_char))
    })
}

/// The same as `cuDeviceGetUuid` of CUDA 11.4 and later.
#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid_v2(uuid: Out<[u8; 16]>, device: c_int) -> Status {
    call("cuDeviceGetUuid_v2", |driver| {
        driver.the_device(device)?;
        uuid.put(*b"the PTX witness!")
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetUuid(uuid: Out<[u8; 16]>, device: c_int) -> Status {
    cuDeviceGetUuid_v2(uuid, device)
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceGetAttribute(value: Out<c_int>, attribute: c_int, device: c_int) -> Status {
    call("cuDeviceGetAttribute", |driver| {
        driver.the_device(device)?;
        match driver.settings.attribute(attribute) {
            Some(known) => value.put(known),
            None => refuse(INVALID_VALUE, format!("attribute {attribute} is not known here")),
        }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: c_int) -> Status {
    call("cuDeviceTotalMem_v2", |driver| {
        driver.the_device(device)?;
        bytes.put(driver.settings.memory)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) -> Status {
    bound("cuMemGetInfo_v2", |driver, _| {
        free.put(driver.heap.free_bytes().saturating_sub(driver.local_memory))?;
        total.put(driver.settings.memory)
    })
}
