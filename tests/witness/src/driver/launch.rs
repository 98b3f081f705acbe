//! Launches: what a driver checks before it takes one, and what happens when its turn comes.

use super::arguments::{In, read_memory};
use super::function::Decoded;
use super::heap::Place;
use super::order::Mark;
use super::status::*;
use super::stream::Work;
use super::{Driver, bound};
use crate::fault::Kind;
use crate::machine::{self, Counters, Launch};
use std::ffi::c_uint;
use std::sync::atomic::Ordering;

/// A launch that was taken.
#[derive(Clone)]
pub struct Start {
    pub function: usize,
    pub name: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub parameters: Vec<u8>,
    /// The error that was asked for.
    pub injected: Option<Status>,
}

/// Function, grid, block and dynamic shared memory of a launch.
pub type Geometry = (usize, [u32; 3], [u32; 3], u32);

/// A memory range that a kernel's arguments point into, and what it held.
type Held = (u64, usize, Vec<u8>);

impl Driver {
    /// Checks a launch as a driver does, and takes its arguments: a list of pointers, or one block with its size.
    pub fn prepare(
        &mut self,
        geometry: Geometry,
        parameters: &In<usize>,
        extra: &In<usize>,
    ) -> Answer<Start> {
        let (function, grid, block, shared) = geometry;
        let known = self.function(function)?;
        let name = known.name.to_string_lossy().into_owned();
        let decoded = known.decoded()?;
        let most = decoded.program.max_threads;
        let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
        let limits = [
            (grid[0], i32::MAX as u32),
            (grid[1], 65535),
            (grid[2], 65535),
            (block[0], 1024),
            (block[1], 1024),
            (block[2], 64),
        ];
        if limits.iter().any(|(n, most)| !(1..=*most).contains(n)) || threads > u64::from(most) {
            return refuse(
                INVALID_VALUE,
                format!("`{name}` with grid {grid:?} and block {block:?}; at most {most} threads"),
            );
        }
        if threads > u64::from(known.threads_by_registers()) {
            let registers = known.registers.unwrap_or(0);
            return refuse(
                LAUNCH_OUT_OF_RESOURCES,
                format!("`{name}`: {threads} threads of {registers} registers"),
            );
        }
        if shared > known.max_dynamic {
            let allowed = known.max_dynamic;
            return refuse(
                INVALID_VALUE,
                format!("`{name}`: {shared} bytes of dynamic shared memory; its attribute allows {allowed}"),
            );
        }
        let parameters = match extra.address() {
            0 => listed(&name, &decoded, parameters)?,
            _ => packed(&name, decoded.program.parameter_bytes, extra)?,
        };
        let local = self.local_memory_of(&decoded.program).max(self.local_memory);
        if local > self.heap.free_bytes() {
            return refuse(
                OUT_OF_MEMORY,
                format!("`{name}` needs {local} bytes of the device for local memory"),
            );
        }
        self.local_memory = local;
        Ok(Start { function, name, grid, block, shared, parameters, injected: None })
    }

    /// The error that was asked for at a launch: at once, or when its work is done.
    pub fn asked_for(&mut self, start: &mut Start) -> Answer {
        const LATE: [Status; 6] =
            [ECC_UNCORRECTABLE, ILLEGAL_ADDRESS, LAUNCH_TIMEOUT, MISALIGNED_ADDRESS, LAUNCH_FAILED, UNKNOWN];
        match self.injected("launch") {
            Some(status) if LATE.contains(&status) => start.injected = Some(status),
            Some(status) => return quietly(status),
            None => {}
        }
        Ok(())
    }

    /// Takes a launch into a stream.
    fn launch(&mut self, context: usize, stream: usize, mut start: Start) -> Answer {
        self.stream(stream, context)?;
        self.asked_for(&mut start)?;
        self.give_work(stream, context, Work::Kernel(start))
    }

    /// Runs a kernel whose turn has come.
    pub fn run(&mut self, context: usize, mark: &Mark, start: &Start, what: &str) {
        if let Some(status) = start.injected {
            return self.fault(context, status, format!("{what}: `{}` fails as asked for", start.name));
        }
        let decoded = match self.function(start.function).and_then(|f| f.decoded()) {
            Ok(decoded) => decoded,
            Err(refusal) => {
                let why = refusal.why.unwrap_or_default();
                return self.fault(context, refusal.status, format!("{what}: {why}"));
            }
        };
        if self.settings.trace {
            eprintln!(
                "witness: {what}: {} {:?} x {:?}, {} shared",
                start.name, start.grid, start.block, start.shared
            );
        }
        let held = if self.is_concurrent() { self.arguments_point_to(start) } else { Vec::new() };
        let memory = self.heap.memory();
        let counters = Counters::default();
        let launch = Launch {
            program: &decoded.program,
            grid: start.grid,
            block: start.block,
            shared: start.shared,
            parameters: &start.parameters,
            memory: &memory,
        };
        let result = machine::run(&launch, &self.settings.machine, &counters);
        let statistics = self.report.kernels.entry(start.name.clone()).or_default();
        statistics.launches += 1;
        statistics.seconds += counters.cpu_nanoseconds.load(Ordering::Relaxed) as f64 / 1e9;
        statistics.warp_instructions += counters.warp_instructions.load(Ordering::Relaxed);
        statistics.lane_instructions += counters.lane_instructions.load(Ordering::Relaxed);
        if let Err(why) = result {
            let status = match why.kind {
                Kind::Misaligned => MISALIGNED_ADDRESS,
                Kind::Bounds => ILLEGAL_ADDRESS,
                Kind::Deadlock | Kind::Limit => LAUNCH_TIMEOUT,
                _ => LAUNCH_FAILED,
            };
            let stale = self.stale_arguments(start);
            return self.fault(context, status, format!("{what}: {why}{stale}"));
        }
        for (at, bytes, before) in held {
            self.note_use(context, mark, (at, bytes), &before, &format!("{what} `{}`", start.name));
        }
    }

    /// The memory that words of the arguments point into.
    fn arguments_point_to(&self, start: &Start) -> Vec<Held> {
        let mut found: Vec<Held> = Vec::new();
        for word in words(&start.parameters) {
            let (Place::Inside(at, a) | Place::Freed(at, a)) = self.heap.find(word) else { continue };
            let known = found.iter().any(|f| f.0 == at);
            let held = if known { None } else { read_memory(at as usize, a.bytes) };
            found.extend(held.map(|held| (at, a.bytes, held)));
        }
        found
    }

    /// What a kernel changed it wrote; the rest of what its arguments point to it may have read.
    fn note_use(
        &mut self,
        context: usize,
        mark: &Mark,
        (at, bytes): (u64, usize),
        before: &[u8],
        what: &str,
    ) {
        let Some(now) = read_memory(at as usize, bytes) else { return };
        let changed = |i: &usize| now[*i] != before[*i];
        match ((0..bytes).find(changed), (0..bytes).rfind(changed)) {
            // Numbers have four bytes, of which not all need change.
            (Some(first), Some(last)) => {
                let (first, end) = (first / 4 * 4, (last + 1).next_multiple_of(4).min(bytes));
                self.uses(context, mark, (at + first as u64, end - first), true, what);
            }
            _ => self.uses(context, mark, (at, bytes), false, what),
        }
    }

    /// Which words of the arguments of a launch that failed point into memory that was freed.
    fn stale_arguments(&self, start: &Start) -> String {
        let stale = words(&start.parameters).enumerate().filter_map(|(i, word)| match self.heap.find(word) {
            Place::Freed(_, a) => Some(format!(
                "; argument bytes {}..{} point into the {} bytes that call {} freed",
                8 * i,
                8 * i + 8,
                a.bytes,
                a.freed.unwrap_or_default()
            )),
            _ => None,
        });
        stale.collect()
    }
}

fn words(parameters: &[u8]) -> impl Iterator<Item = u64> {
    parameters.chunks_exact(8).map(|w| u64::from_le_bytes(w.try_into().unwrap_or_default()))
}

/// Arguments as a list of pointers, one for each parameter: a driver knows their sizes from the image only.
fn listed(name: &str, decoded: &Decoded, parameters: &In<usize>) -> Answer<Vec<u8>> {
    let mut block = vec![0; decoded.program.parameter_bytes];
    let pointers = parameters.list(decoded.parameters.len());
    for (i, (offset, bytes)) in decoded.parameters.iter().enumerate() {
        let at = pointers.get(i).copied().unwrap_or(0);
        match read_memory(at, *bytes) {
            Some(argument) if at != 0 => block[*offset..offset + bytes].copy_from_slice(&argument),
            _ => {
                return refuse(
                    INVALID_VALUE,
                    format!("`{name}` wants {bytes} bytes of argument {i}; those at {at:#x} cannot be read"),
                );
            }
        }
    }
    Ok(block)
}

/// Arguments as one block: CU_LAUNCH_PARAM_BUFFER_POINTER (1), CU_LAUNCH_PARAM_BUFFER_SIZE (2), CU_LAUNCH_PARAM_END (0).
fn packed(name: &str, wanted: usize, extra: &In<usize>) -> Answer<Vec<u8>> {
    let (mut at, mut bytes) = (0, None);
    let list = extra.list(5);
    for pair in list.chunks(2) {
        match pair {
            [0, ..] => break,
            [1, pointer] => at = *pointer,
            [2, size] => bytes = In::<usize>::at(*size).list(1).first().copied(),
            _ => {
                return refuse(
                    INVALID_VALUE,
                    format!("`{name}`: {:#x} among the extra launch options", pair[0]),
                );
            }
        }
    }
    if bytes != Some(wanted) {
        return refuse(
            INVALID_VALUE,
            format!("`{name}` wants {wanted} bytes of arguments and gets a block of {}", bytes.unwrap_or(0)),
        );
    }
    read_memory(at, wanted)
        .map_or_else(|| refuse(INVALID_VALUE, format!("`{name}`: the block of arguments cannot be read")), Ok)
}

#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments)] // as cuda.h has it
extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: usize,
    parameters: In<usize>,
    extra: In<usize>,
) -> Status {
    bound("cuLaunchKernel", |driver, context| {
        let geometry = (function, [grid_x, grid_y, grid_z], [block_x, block_y, block_z], shared);
        let start = driver.prepare(geometry, &parameters, &extra)?;
        driver.launch(context, stream, start)
    })
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Configuration {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: usize,
    attributes: usize,
    count: u32,
}

/// `CUlaunchAttribute`: which, and a value of 64 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct Attribute {
    id: u32,
    padding: u32,
    value: [u32; 16],
}

/// Whether a launch attribute changes nothing here; what would change something is not known.
fn harmless(attribute: &Attribute) -> Answer {
    match (attribute.id, &attribute.value) {
        // Cache policy, spreading of clusters, programmatic order (done strictly here), priority, memory domain, carveout.
        (0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 | 14, _) => Ok(()),
        (2, [0, ..]) | (4, [1, 1, 1, ..]) => Ok(()),
        (2, _) => refuse(NOT_SUPPORTED, "cooperative launches are not known here"),
        (4, [x, y, z, ..]) => {
            refuse(NOT_SUPPORTED, format!("clusters of {x} x {y} x {z} blocks are not known here"))
        }
        (id, _) => refuse(INVALID_VALUE, format!("launch attribute {id}")),
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuLaunchKernelEx(
    config: In<Configuration>,
    function: usize,
    parameters: In<usize>,
    extra: In<usize>,
) -> Status {
    bound("cuLaunchKernelEx", |driver, context| {
        let Configuration { grid, block, shared, stream, attributes, count } = config.get()?;
        In::<Attribute>::at(attributes).list(count as usize).iter().try_for_each(harmless)?;
        let start = driver.prepare((function, grid, block, shared), &parameters, &extra)?;
        driver.launch(context, stream, start)
    })
}
