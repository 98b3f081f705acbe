//! Bugs that host code can have, each planted once, and what the witness says of it. docs/witness.md has the table.

use super::*;

const MANY: u32 = 256;
const BYTES: usize = 4 * MANY as usize;

#[test]
fn a_context_that_is_not_current_on_a_thread() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    let there = std::thread::scope(|s| s.spawn(|| bench.fill(bench.stream, memory, 7, MANY)).join().unwrap());
    refused(there, INVALID_CONTEXT, &["refused", "cuLaunchKernel", "no context is current on this thread"]);
}

#[test]
fn a_pinned_source_that_is_written_again_too_early() {
    let bench = Bench::plain();
    let (memory, staging) = (take(BYTES).unwrap(), pinned(MANY as usize));
    staging.fill(1);
    done(to_device(memory, staging, bench.stream));
    staging[100] = 2;
    assert_eq!(synchronize(bench.stream), LAUNCH_FAILED);
    said(&["fault", "cuMemcpyHtoDAsync_v2", "pinned source", "1024 bytes", "changed (first at byte 400)"]);
}

#[test]
fn a_pageable_source_that_is_written_again_too_early() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    let mut source = vec![1; MANY as usize];
    done(to_device(memory, &source, bench.stream));
    source[0] = 2;
    assert_eq!(synchronize(bench.stream), LAUNCH_FAILED);
    said(&["fault", "pageable source", "changed (first at byte 0)"]);
}

#[test]
fn pinned_memory_that_is_freed_under_a_copy() {
    let bench = Bench::plain();
    let (memory, staging) = (take(BYTES).unwrap(), pinned(MANY as usize));
    done(to_device(memory, staging, bench.stream));
    assert_eq!(free_pinned(staging.as_ptr() as usize), LAUNCH_FAILED);
    said(&["fault", "cuMemFreeHost", "is freed while cuMemcpyHtoDAsync_v2"]);
}

#[test]
fn a_result_that_is_read_before_its_copy_is_done() {
    let bench = Bench::plain();
    let (memory, result) = (take(BYTES).unwrap(), pinned(MANY as usize));
    done(bench.fill(bench.stream, memory, 7, MANY));
    done(to_host(result, memory, bench.stream));
    // No message can say that the host read too early; what it reads is NaN in every type.
    assert!(result.iter().all(|n| *n == u32::MAX));
    done(synchronize(bench.stream));
    assert!(result.iter().all(|n| *n == 7));
}

#[test]
fn memory_that_a_kernel_uses_after_it_was_freed_in_stream_order() {
    let bench = Bench::plain();
    let memory = take_async(BYTES, bench.stream).unwrap();
    done(free_async(memory, bench.stream));
    done(bench.fill(bench.stream, memory, 7, MANY));
    assert_eq!(synchronize(bench.stream), ILLEGAL_ADDRESS);
    said(&[
        "fault",
        "cuLaunchKernel",
        "fill",
        "argument bytes 0..8 point into the 1024 bytes that call",
        "freed",
    ]);
}

#[test]
fn memory_that_a_copy_uses_after_it_was_freed_in_stream_order() {
    let bench = Bench::plain();
    let memory = take_async(BYTES, bench.stream).unwrap();
    done(free_async(memory, bench.stream));
    let status = to_device(memory, &[1; 4], bench.stream);
    refused(
        status,
        INVALID_VALUE,
        &["refused", "cuMemcpyHtoDAsync_v2", "16 bytes", "uses memory that call", "freed"],
    );
}

#[test]
fn memory_that_is_freed_twice() {
    let bench = Bench::plain();
    let memory = take_async(BYTES, bench.stream).unwrap();
    done(free_async(memory, bench.stream));
    refused(
        free_async(memory, bench.stream),
        INVALID_VALUE,
        &["cuMemFreeAsync", "double free", "1024 bytes"],
    );
    done(synchronize(bench.stream));
    refused(free(memory), INVALID_VALUE, &["cuMemFree_v2", "double free"]);
    refused(free(memory + 8), INVALID_VALUE, &["double free"]);
}

#[test]
fn a_block_of_arguments_of_the_wrong_size() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    let arguments = fill_arguments(memory, 7, 64);
    done(launch_packed(bench.fill, bench.stream, &arguments, 16));
    for bytes in [8, 12, 24] {
        let gets = format!("gets a block of {bytes}");
        let status = launch_packed(bench.fill, bench.stream, &arguments, bytes);
        refused(status, INVALID_VALUE, &["cuLaunchKernel", "`fill` wants 16 bytes of arguments", &gets]);
    }
    assert_eq!(read(memory, 64, bench.stream), [7; 64]);
}

#[test]
fn a_copy_out_of_bounds() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    let too_many = vec![1; MANY as usize + 3];
    let status = to_device(memory, &too_many, bench.stream);
    refused(
        status,
        INVALID_VALUE,
        &["cuMemcpyHtoDAsync_v2", "1036 bytes", "goes 12 bytes beyond the 1024 bytes"],
    );
    let mut result = [0; 8];
    let status = to_host(&mut result, memory + BYTES as u64 + 16, bench.stream);
    refused(status, INVALID_VALUE, &["cuMemcpyDtoHAsync_v2", "16 bytes behind the end of the 1024 bytes"]);
}

#[test]
fn a_kernel_out_of_bounds() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    done(bench.fill(bench.stream, memory, 7, MANY + 1));
    assert_eq!(synchronize(bench.stream), ILLEGAL_ADDRESS);
    said(&["fault", "cuLaunchKernel (call", "fill", "PTX line"]);
}

#[test]
fn tensor_maps_that_break_a_rule() {
    let _bench = Bench::new(Settings { capability: 90, ..Settings::default() });
    let memory = take(1 << 16).unwrap();
    let mut place = [0u64; 32];
    let from = usize::from(!(place.as_ptr() as usize).is_multiple_of(16)) + 2;
    let aligned = (from..from + 8).find(|i| (&raw const place[*i] as usize).is_multiple_of(64)).unwrap();
    let place = &mut place[aligned..];
    done(tensor_map(place, memory, (64, 64), 128, [64, 64]));
    type Case = (u64, (u64, u64), u64, [u32; 2], &'static str);
    let cases: [Case; 7] = [
        (memory, (1, 1), 2, [64, 64], "a stride of 2 bytes; a multiple of 16 below 2^40"),
        (memory, (64, 64), 130, [64, 64], "a stride of 130 bytes"),
        (memory, (64, 64), 1 << 40, [64, 64], "a stride of 1099511627776 bytes"),
        (memory + 8, (64, 64), 128, [64, 64], "is not aligned to 16 bytes"),
        (memory, (64, 0), 128, [64, 64], "a dimension of 0; 1 to 2^32"),
        (memory, (64, 64), 128, [64, 257], "a box of 257 elements; 1 to 256"),
        (memory, (64, 128), 256, [128, 64], "a box of 256 bytes inside with a swizzle of 128"),
    ];
    for (base, shape, stride, tile, rule) in cases {
        refused(
            tensor_map(place, base, shape, stride, tile),
            INVALID_VALUE,
            &["cuTensorMapEncodeTiled", rule],
        );
    }
    refused(
        tensor_map(&mut place[1..], memory, (64, 64), 128, [64, 64]),
        INVALID_VALUE,
        &["is not aligned to 64 bytes"],
    );
}

#[test]
fn dynamic_shared_memory_above_the_attribute() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    let with =
        |shared| launch(bench.fill, [1; 3], [64, 1, 1], shared, bench.stream, &fill_arguments(memory, 7, 64));
    done(with(48 << 10));
    refused(
        with(49 << 10),
        INVALID_VALUE,
        &["`fill`: 50176 bytes of dynamic shared memory; its attribute allows 49152"],
    );
    refused(
        function_attribute(bench.fill, 8, 164 << 10),
        INVALID_VALUE,
        &["cuFuncSetAttribute", "166912 in all"],
    );
    done(function_attribute(bench.fill, 8, 163 << 10));
    done(with(49 << 10));
}

#[test]
fn launches_beyond_the_limits() {
    let bench = Bench::plain();
    let arguments = fill_arguments(take(BYTES).unwrap(), 7, 64);
    let with = |grid, block| launch(bench.fill, grid, block, 0, bench.stream, &arguments);
    for (grid, block) in
        [([0, 1, 1], [64, 1, 1]), ([1, 65536, 1], [64, 1, 1]), ([1; 3], [1, 1, 65]), ([1; 3], [129, 1, 1])]
    {
        refused(
            with(grid, block),
            INVALID_VALUE,
            &["cuLaunchKernel", &format!("grid {grid:?} and block {block:?}")],
        );
    }
}

#[test]
fn a_launch_after_an_error_that_stays() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    done(bench.fill(bench.stream, memory + (1 << 30), 7, MANY));
    done(bench.fill(bench.stream, memory, 7, MANY));
    assert_eq!(synchronize(bench.stream), ILLEGAL_ADDRESS);
    let again = bench.fill(bench.stream, memory, 7, MANY);
    refused(again, ILLEGAL_ADDRESS, &["refused: cuLaunchKernel", "the context failed before", "fill"]);
    assert_eq!(take(16), Err(ILLEGAL_ADDRESS));
    // Until the context goes.
    done(release());
    set_current(retain());
    take(16).unwrap();
}

#[test]
fn an_event_that_was_destroyed_or_is_of_another_context() {
    let bench = Bench::plain();
    let gone = event(0);
    done(event_destroy(gone));
    refused(record(gone, bench.stream), INVALID_HANDLE, &["cuEventRecord", "event", "was destroyed in call"]);
    refused(event_destroy(gone), INVALID_HANDLE, &["cuEventDestroy_v2", "was destroyed in call"]);
    let own = event(0);
    other_context();
    let there = stream();
    refused(record(own, there), INVALID_HANDLE, &["cuEventRecord", "is of another context"]);
    refused(synchronize(bench.stream), INVALID_HANDLE, &["cuStreamSynchronize", "is of another context"]);
    refused(synchronize(own), INVALID_HANDLE, &["is no stream"]);
}

#[test]
fn streams_that_do_not_wait_for_each_other() {
    let bench = Bench::plain();
    let (memory, other) = (take(BYTES).unwrap(), stream());
    done(bench.fill(bench.stream, memory, 6, MANY));
    done(synchronize(bench.stream));
    done(bench.fill(bench.stream, memory, 7, MANY));
    let mut result = vec![0; MANY as usize];
    let status = to_host(&mut result, memory, other);
    let status = status.max(context_synchronize());
    assert_eq!(status, LAUNCH_FAILED);
    said(&[
        "fault: missing synchronisation",
        "cuMemcpyDtoHAsync_v2",
        "cuLaunchKernel",
        "neither waits for the other",
    ]);
}

#[test]
fn memory_that_another_stream_still_uses_when_it_is_freed() {
    let bench = Bench::plain();
    let memory = take_async(BYTES, bench.stream).unwrap();
    done(synchronize(bench.stream));
    let other = stream();
    done(bench.fill(other, memory, 7, MANY));
    done(free_async(memory, bench.stream));
    done(synchronize(other));
    assert_eq!(synchronize(bench.stream), LAUNCH_FAILED);
    said(&["missing synchronisation", "cuMemFreeAsync", "`fill`"]);
}

#[test]
fn memory_that_is_never_freed() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    let kept = take_async(3 * BYTES, bench.stream).unwrap();
    done(free(memory));
    done(release());
    said(&["fault: leak at the end of the context", "1 allocations, 3072 bytes", &format!("{kept:#x}")]);
}

#[test]
fn arguments_of_a_graph_that_change_after_it_was_made() {
    let bench = Bench::plain();
    let memory = take(BYTES).unwrap();
    let graph = graph();
    let mut arguments = fill_arguments(memory, 7, 64);
    let node = add_kernel(graph, &[], bench.fill, &arguments).unwrap();
    let executable = instantiate(graph);
    // The caller's memory changes: the node has a copy.
    arguments[1] += 1;
    done(graph_launch(executable, bench.stream));
    assert_eq!(read(memory, 64, bench.stream), [7; 64]);
    silent();
    // The graph's node changes: the executable has another copy.
    done(set_node(node, bench.fill, &arguments));
    done(graph_launch(executable, bench.stream));
    assert_eq!(read(memory, 64, bench.stream), [7; 64]);
    said(&["note: cuGraphLaunch", "was changed in call", "keeps the arguments it was made with"]);
}
