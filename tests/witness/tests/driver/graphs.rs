//! Graphs and captures.

use super::*;

#[test]
fn nodes_go_in_orders_that_their_dependencies_allow() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..30 {
        let bench = Bench::new(seeded(seed));
        let [a, b, c] = [(); 3].map(|()| take(256).unwrap());
        let graph = graph();
        // fill a; then b = a and a free-standing c = 9; then c = b: with no order between the two writers of c.
        let first = add_kernel(graph, &[], bench.fill, &fill_arguments(a, 7, 64)).unwrap();
        let second = add_kernel(graph, &[first], bench.copy, &[b, a, 64]).unwrap();
        add_kernel(graph, &[], bench.fill, &fill_arguments(c, 9, 64)).unwrap();
        add_kernel(graph, &[second], bench.copy, &[c, b, 64]).unwrap();
        let executable = instantiate(graph);
        done(graph_launch(executable, bench.stream));
        assert_eq!(read(b, 64, bench.stream), [7; 64]);
        seen.insert(read(c, 1, bench.stream)[0]);
    }
    assert_eq!(Vec::from_iter(seen), [7, 9]);
}

#[test]
fn a_launch_under_way_keeps_the_arguments_it_was_launched_with() {
    let bench = Bench::plain();
    let memory = take(256).unwrap();
    let graph = graph();
    let node = add_kernel(graph, &[], bench.fill, &fill_arguments(memory, 7, 64)).unwrap();
    let executable = instantiate(graph);
    done(graph_launch(executable, bench.stream));
    done(set_executable_node(executable, node, bench.fill, &fill_arguments(memory, 8, 32)));
    done(graph_launch(executable, bench.stream));
    done(executable_destroy(executable));
    let numbers = read(memory, 64, bench.stream);
    assert_eq!((numbers[0], numbers[32]), (8, 7));
    refused(
        graph_launch(executable, bench.stream),
        INVALID_HANDLE,
        &["executable graph", "was destroyed in call"],
    );
    let stranger =
        set_executable_node(instantiate(graph), node + 1, bench.fill, &fill_arguments(memory, 8, 32));
    refused(
        stranger,
        INVALID_VALUE,
        &["cuGraphExecKernelNodeSetParams_v2", "is no kernel node of the graph"],
    );
}

#[test]
fn a_node_after_one_of_another_graph() {
    let bench = Bench::plain();
    let arguments = fill_arguments(take(256).unwrap(), 7, 64);
    let (one, other) = (graph(), graph());
    let node = add_kernel(one, &[], bench.fill, &arguments).unwrap();
    assert_eq!(add_kernel(other, &[node], bench.fill, &arguments), Err(INVALID_VALUE));
    said(&["cuGraphAddKernelNode_v2", "is no node of the graph"]);
}

#[test]
fn a_captured_stream_becomes_a_graph() {
    let bench = Bench::plain();
    let (memory, copy, result) = (take(256).unwrap(), take(256).unwrap(), pinned(64));
    done(begin_capture(bench.stream, 0));
    done(bench.fill(bench.stream, memory, 7, 64));
    done(bench.copy(bench.stream, copy, memory, 64));
    done(to_host(result, copy, bench.stream));
    let executable = instantiate(end_capture(bench.stream).unwrap());
    done(synchronize(bench.stream));
    assert_eq!(result[0], 0, "nothing was done yet");
    for _ in 0..2 {
        result.fill(0);
        done(graph_launch(executable, bench.stream));
        done(synchronize(bench.stream));
        assert_eq!(result, [7; 64]);
    }
    silent();
}

#[test]
fn what_a_capture_does_not_allow() {
    let bench = Bench::plain();
    done(begin_capture(bench.stream, 0));
    refused(
        synchronize(bench.stream),
        CAPTURE_UNSUPPORTED,
        &["cuStreamSynchronize while the stream is captured"],
    );
    assert_eq!(end_capture(bench.stream), Err(CAPTURE_INVALIDATED));
    done(begin_capture(bench.stream, 0));
    assert_eq!(take(16), Err(CAPTURE_UNSUPPORTED));
    assert_eq!(end_capture(bench.stream), Err(CAPTURE_INVALIDATED));
    assert_eq!(end_capture(bench.stream), Err(401));
    assert_eq!(begin_capture(0, 0), CAPTURE_UNSUPPORTED);
}
