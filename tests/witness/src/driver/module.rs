//! Modules: PTX, or machine code whose PTX is at hand.

use super::arguments::{In, Out};
use super::cubin::{self, Facts};
use super::function::Function;
use super::status::*;
use super::{Driver, bound};
use crate::parse;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_uint};
use std::sync::{Arc, OnceLock};

/// PTX that was read, and where its variables are.
pub struct Code {
    pub parsed: parse::Module,
    pub globals: HashMap<String, u64>,
}

pub struct Module {
    pub context: usize,
    functions: Vec<usize>,
    globals: Vec<u64>,
    code: Arc<Code>,
}

impl Driver {
    /// The PTX of an image, and what machine code says besides.
    fn ptx(&self, image: &In<u8>) -> Answer<(String, BTreeMap<String, Facts>)> {
        let start = image.list(4);
        if start != b"\x7fELF" {
            return Ok((image.text(), BTreeMap::new()));
        }
        let header: [u8; 64] = image.list(64).try_into().unwrap_or([0; 64]);
        let Some(cubin) = cubin::read(&image.list(cubin::length(&header))) else {
            return refuse(INVALID_IMAGE, "an ELF file that is not of a GPU");
        };
        // Machine code runs on its own major version, from its minor version on.
        let own = self.settings.capability;
        if cubin.architecture / 10 != own / 10 || cubin.architecture > own {
            return refuse(
                NO_BINARY_FOR_GPU,
                format!("machine code of sm_{} on a device of {own}", cubin.architecture),
            );
        }
        let Some(folder) = &self.settings.ptx else {
            return refuse(
                NO_BINARY_FOR_GPU,
                "machine code; WITNESS_PTX names the folder with its PTX (scripts/witness.sh)",
            );
        };
        match cubin::ptx_of(&cubin, folder) {
            Ok(text) => Ok((text, cubin.kernels)),
            Err(why) => refuse(NO_BINARY_FOR_GPU, why),
        }
    }

    fn load(&mut self, context: usize, image: &In<u8>) -> Answer<usize> {
        if image.address() == 0 {
            return refuse(INVALID_VALUE, "the image is null");
        }
        let (text, facts) = self.ptx(image)?;
        let parsed = match parse::Module::parse(&text) {
            Ok(parsed) => parsed,
            Err(why) => return refuse(INVALID_PTX, why),
        };
        self.fits(&parsed.target)?;
        let mut globals = HashMap::new();
        for (name, bytes) in &parsed.globals {
            let Some(at) = self.heap.take(bytes.len(), context, self.calls, false) else {
                return quietly(OUT_OF_MEMORY);
            };
            // SAFETY: just taken, with as many bytes.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
            self.written(at, bytes.len());
            globals.insert(name.clone(), at);
        }
        let places = globals.values().copied().collect();
        let code = Arc::new(Code { parsed, globals });
        let module = self.handle();
        let names: Vec<String> = code.parsed.entries.iter().map(|e| e.name.clone()).collect();
        let functions = names.iter().map(|name| self.add_function(&code, name, facts.get(name))).collect();
        self.modules.insert(module, Module { context, functions, globals: places, code });
        Ok(module)
    }

    /// Whether PTX for `target`, such as `sm_90a`, runs on the device.
    fn fits(&self, target: &str) -> Answer {
        let name = target.split(',').next().unwrap_or_default().trim().trim_start_matches("sm_");
        let number: u32 =
            name.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse().unwrap_or(u32::MAX);
        let exact = name.ends_with(|c: char| c.is_ascii_alphabetic());
        let own = self.settings.capability;
        match number > own || exact && number != own {
            true => refuse(NO_BINARY_FOR_GPU, format!("PTX for {target} on a device of {own}")),
            false => Ok(()),
        }
    }

    fn add_function(&mut self, code: &Arc<Code>, name: &str, facts: Option<&Facts>) -> usize {
        let static_shared = facts.map_or(0, |f| f.static_shared);
        let function = Function {
            name: CString::new(name).unwrap_or_default(),
            code: Arc::clone(code),
            decoded: OnceLock::new(),
            registers: facts.map(|f| f.registers),
            static_shared,
            max_dynamic: (48 * 1024u32).saturating_sub(static_shared),
        };
        let handle = self.handle();
        self.functions.insert(handle, function);
        handle
    }

    /// Forgets a module, its functions and its variables.
    pub fn forget_module(&mut self, module: usize) {
        let Some(gone) = self.modules.remove(&module) else { return };
        let call = self.calls;
        self.gone.insert(module, ("module", call));
        for function in gone.functions {
            self.functions.remove(&function);
            self.gone.insert(function, ("function", call));
        }
        gone.globals.into_iter().for_each(|at| self.heap.give(at, call, true));
    }

    fn module(&self, module: usize, context: usize) -> Answer<&Module> {
        match self.modules.get(&module) {
            Some(found) if found.context == context => Ok(found),
            Some(_) => refuse(INVALID_HANDLE, format!("module {module:#x} is of another context")),
            None => self.unknown("module", module),
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadData(module: Out<usize>, image: In<u8>) -> Status {
    bound("cuModuleLoadData", |driver, context| {
        let loaded = driver.load(context, &image)?;
        module.put(loaded)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleLoadDataEx(
    module: Out<usize>,
    image: In<u8>,
    _count: c_uint,
    _names: In<u8>,
    _values: In<u8>,
) -> Status {
    cuModuleLoadData(module, image)
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> Status {
    bound("cuModuleUnload", |driver, context| {
        driver.module(module, context)?;
        // What was launched before still runs.
        driver.finish_all(context)?;
        driver.forget_module(module);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunction(function: Out<usize>, module: usize, name: In<u8>) -> Status {
    bound("cuModuleGetFunction", |driver, context| {
        let wanted = name.text();
        let functions = &driver.module(module, context)?.functions;
        let found = functions.iter().find(|f| driver.functions[*f].name.to_string_lossy() == wanted);
        found.map_or_else(
            || refuse(NOT_FOUND, format!("no kernel `{wanted}` in the module")),
            |f| function.put(*f),
        )
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetGlobal_v2(
    address: Out<u64>,
    bytes: Out<usize>,
    module: usize,
    name: In<u8>,
) -> Status {
    bound("cuModuleGetGlobal_v2", |driver, context| {
        let wanted = name.text();
        let code = &driver.module(module, context)?.code;
        let Some(at) = code.globals.get(&wanted) else {
            return refuse(NOT_FOUND, format!("no variable `{wanted}` in the module"));
        };
        if !address.is_null() {
            address.put(*at)?;
        }
        if bytes.is_null() { Ok(()) } else { bytes.put(code.parsed.globals[&wanted].len()) }
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleGetFunctionCount(count: Out<c_uint>, module: usize) -> Status {
    bound("cuModuleGetFunctionCount", |driver, context| {
        count.put(driver.module(module, context)?.functions.len() as c_uint)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleEnumerateFunctions(functions: Out<usize>, count: c_uint, module: usize) -> Status {
    bound("cuModuleEnumerateFunctions", |driver, context| {
        let known = &driver.module(module, context)?.functions;
        known.iter().take(count as usize).enumerate().try_for_each(|(i, f)| functions.put_at(i, *f))
    })
}
