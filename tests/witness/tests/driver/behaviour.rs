//! Memory, attributes, images, and faults that are asked for.

use super::*;
use gems_witness::driver::settings::injected;

#[test]
fn frees_in_stream_order_settle_at_a_wait() {
    let bench = Bench::new(Settings { memory: 1 << 20, ..Settings::default() });
    let before = free_memory();
    let half = take_async(600 << 10, bench.stream).unwrap();
    assert_eq!(free_memory(), before - (600 << 10));
    done(free_async(half, bench.stream));
    assert_eq!(take_async(600 << 10, bench.stream), Err(OUT_OF_MEMORY));
    done(synchronize(bench.stream));
    assert_eq!(free_memory(), before);
    take_async(600 << 10, bench.stream).unwrap();
    silent();
}

#[test]
fn new_memory_holds_no_numbers_and_old_addresses_do_not_come_back() {
    let bench = Bench::plain();
    let memory = take(256).unwrap();
    let mut numbers = [0; 64];
    assert_eq!(to_host(&mut numbers, memory, bench.stream), LAUNCH_FAILED);
    said(&["fault: cuMemcpyDtoHAsync_v2", "byte 0 of the 256 bytes", "was never written"]);
    done(release());
    set_current(retain());
    assert!(memory.is_multiple_of(512));
    let next = take(256).unwrap();
    assert_ne!(next, memory);
    done(free(next));
    assert_ne!(take(256).unwrap(), next);
    assert_eq!(take(0), Err(INVALID_VALUE));
}

#[test]
fn attributes_of_the_cards() {
    // Compute capability, opt-in shared memory, shared memory of a multiprocessor, tensor maps, pools; CUDA C++
    // Programming Guide, technical specifications per compute capability.
    let cases = [(80, [8, 0, 166_912, 167_936, 0, 1]), (90, [9, 0, 232_448, 233_472, 1, 1])];
    for (capability, values) in cases {
        let _bench = match capability {
            80 => Bench::plain(),
            _ => Bench::new(Settings { capability, ..Settings::default() }),
        };
        assert_eq!([75, 76, 97, 81, 127, 115].map(|a| attribute(a).unwrap()), values);
        assert_eq!(attribute(100_000), Err(INVALID_VALUE));
    }
    said(&["cuDeviceGetAttribute", "attribute 100000 is not known here"]);
}

#[test]
fn images_that_do_not_fit_the_device() {
    let _bench = Bench::plain();
    let for_hopper = KERNELS.replace(".target sm_80", ".target sm_90");
    assert_eq!(load(&for_hopper), Err(NO_BINARY_FOR_GPU));
    said(&["cuModuleLoadData", "PTX for sm_90 on a device of 80"]);
    assert_eq!(tensor_map(&mut [0; 16], 0, (64, 64), 128, [64, 64]), NOT_SUPPORTED);
    assert_eq!(host_function(), NOT_SUPPORTED);
    said(&["cuLaunchHostFunc", "the witness does not do this"]);
}

#[test]
fn faults_come_where_they_are_asked_for() {
    let settings = |text| Settings { injected: injected(text).unwrap(), ..Settings::default() };
    assert!(
        injected("launch:3").is_none()
            && injected("reboot:1:999").is_none()
            && injected("launch:0:719").is_none()
    );

    let bench = Bench::new(settings("allocation:2:OUT_OF_MEMORY,launch:2:CUDA_ERROR_LAUNCH_FAILED"));
    let memory = take(256).unwrap();
    assert_eq!(take(256), Err(OUT_OF_MEMORY));
    take(256).unwrap();
    done(bench.fill(bench.stream, memory, 7, 64));
    // The error of the work itself comes when somebody waits for it, and stays.
    done(bench.fill(bench.stream, memory, 7, 64));
    assert_eq!(synchronize(bench.stream), LAUNCH_FAILED);
    assert_eq!(synchronize(bench.stream), LAUNCH_FAILED);
    drop(bench);

    let bench = Bench::new(settings("copy:1:1,wait:1:214"));
    let memory = take(256).unwrap();
    assert_eq!(to_device(memory, &[1], bench.stream), INVALID_VALUE);
    assert_eq!(synchronize(bench.stream), 214);
    assert_eq!(take(256), Err(214));
}
