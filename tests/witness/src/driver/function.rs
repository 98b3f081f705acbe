//! Kernels and their attributes.

use super::arguments::Out;
use super::device::{REGISTERS, THREADS_OF_MULTIPROCESSOR};
use super::module::Code;
use super::status::*;
use super::{Driver, bound};
use crate::decode::{self, Program};
use std::ffi::{CString, c_char, c_int};
use std::sync::{Arc, OnceLock};

pub struct Function {
    pub name: CString,
    pub code: Arc<Code>,
    pub decoded: OnceLock<Result<Arc<Decoded>, String>>,
    /// Of a thread; known of machine code only.
    pub registers: Option<u32>,
    pub static_shared: u32,
    /// The attribute that allows dynamic shared memory.
    pub max_dynamic: u32,
}

/// A kernel that was read.
pub struct Decoded {
    pub program: Program,
    /// Offset and bytes of each parameter.
    pub parameters: Vec<(usize, usize)>,
}

impl Function {
    /// Its instructions; read when they are first needed.
    pub fn decoded(&self) -> Answer<Arc<Decoded>> {
        let name = self.name.to_string_lossy();
        let decoded = self.decoded.get_or_init(|| {
            let program = decode::decode(&self.code.parsed, &name, &self.code.globals)?;
            let parameters = self.code.parsed.entry(&name)?.parameters;
            let parameters = parameters.iter().map(|p| (p.offset, p.bytes)).collect();
            Ok(Arc::new(Decoded { program, parameters }))
        });
        decoded.clone().map_err(|why| Refusal { status: INVALID_PTX, why: Some(format!("{name}: {why}")) })
    }

    /// Threads of a block that its registers allow.
    pub fn threads_by_registers(&self) -> u32 {
        let registers = self.registers.unwrap_or(0).next_multiple_of(8).max(8);
        (REGISTERS / (registers * 32) * 32).min(1024)
    }
}

impl Driver {
    /// A kernel by its handle.
    pub fn function(&self, function: usize) -> Answer<&Function> {
        self.functions.get(&function).map_or_else(|| self.unknown("function", function), Ok)
    }

    /// Bytes of the device that local memory needs once this kernel was launched: for all threads that fit at once.
    pub fn local_memory_of(&self, program: &Program) -> usize {
        program.local_bytes * (THREADS_OF_MULTIPROCESSOR * self.settings.multiprocessors) as usize
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetName(name: Out<*const c_char>, function: usize) -> Status {
    bound("cuFuncGetName", |driver, _| name.put(driver.function(function)?.name.as_ptr()))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncGetAttribute(value: Out<c_int>, attribute: c_int, function: usize) -> Status {
    bound("cuFuncGetAttribute", |driver, _| {
        let known = driver.function(function)?;
        let number = match attribute {
            0 => known.decoded()?.program.max_threads.min(known.threads_by_registers()) as usize,
            1 => known.static_shared as usize,
            2 | 7 => 0, // constant memory of its own; whether its caches are as asked
            3 => known.decoded()?.program.local_bytes,
            4 => known.registers.unwrap_or(0) as usize,
            5 | 6 => driver.settings.capability as usize,
            8 => known.max_dynamic as usize,
            9 => return value.put(-1), // no preference
            _ => return refuse(INVALID_VALUE, format!("attribute {attribute} is not known here")),
        };
        value.put(number as c_int)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> Status {
    bound("cuFuncSetAttribute", |driver, _| {
        let most = driver.settings.limits().shared_per_block;
        let known = driver.function(function)?;
        let name = known.name.to_string_lossy().into_owned();
        let own = known.static_shared;
        match attribute {
            8 if value >= 0 && value as u32 + own <= most => {
                if let Some(known) = driver.functions.get_mut(&function) {
                    known.max_dynamic = value as u32;
                }
                Ok(())
            }
            8 => refuse(
                INVALID_VALUE,
                format!(
                    "{value} bytes of dynamic shared memory for `{name}`, which has {own} of its own; {most} in all"
                ),
            ),
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => refuse(INVALID_VALUE, format!("attribute {attribute} of `{name}` cannot be {value}")),
        }
    })
}
