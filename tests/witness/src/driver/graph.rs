//! Graphs: nodes with what comes before them, and executables, which keep the arguments that they were made with.

use super::arguments::{In, Out};
use super::host::Snapshot;
use super::launch::Start;
use super::status::*;
use super::stream::Work;
use super::{Driver, bound, call};
use std::ffi::{c_uint, c_ulonglong};

/// What a node does.
#[derive(Clone)]
pub enum Task {
    Kernel(Start),
    /// From the host: read when the graph is launched.
    ToDevice {
        to: u64,
        from: usize,
        bytes: usize,
    },
    ToHost {
        to: usize,
        from: u64,
        bytes: usize,
    },
    Within {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Set {
        to: u64,
        value: Vec<u8>,
        bytes: usize,
    },
    Nothing,
}

#[derive(Clone)]
pub struct Node {
    pub handle: usize,
    pub task: Task,
    /// The nodes before it.
    pub after: Vec<usize>,
}

#[derive(Default)]
pub struct Graph {
    pub nodes: Vec<Node>,
}

pub struct Executable {
    graph: usize,
    nodes: Vec<Node>,
    /// The call that changed a node of the graph after this was made of it.
    stale: Option<(u64, usize)>,
}

/// One launch of an executable, with the arguments of that moment.
pub struct Instance {
    pub work: Vec<Work>,
    /// Which come before each.
    after: Vec<Vec<usize>>,
}

/// `CUDA_KERNEL_NODE_PARAMS_v2`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Parameters {
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    parameters: usize,
    extra: usize,
    kernel: usize,
    context: usize,
}

impl Driver {
    fn graph(&mut self, graph: usize) -> Answer<&mut Graph> {
        if !self.graphs.contains_key(&graph) {
            return self.unknown("graph", graph);
        }
        self.graphs.get_mut(&graph).map_or_else(|| quietly(INVALID_HANDLE), Ok)
    }

    fn executable(&mut self, executable: usize) -> Answer<&mut Executable> {
        if !self.executables.contains_key(&executable) {
            return self.unknown("executable graph", executable);
        }
        self.executables.get_mut(&executable).map_or_else(|| quietly(INVALID_HANDLE), Ok)
    }

    fn node_start(&mut self, parameters: &In<Parameters>) -> Answer<Start> {
        let p = parameters.get()?;
        if p.function == 0 {
            return refuse(NOT_SUPPORTED, "nodes of a CUkernel are not known here");
        }
        self.prepare((p.function, p.grid, p.block, p.shared), &In::at(p.parameters), &In::at(p.extra))
    }

    /// Adds a node after others of the same graph.
    fn add_node(&mut self, graph: usize, after: Vec<usize>, task: Task) -> Answer<usize> {
        let handle = self.handle();
        let graph = self.graph(graph)?;
        if let Some(stranger) = after.iter().find(|a| graph.nodes.iter().all(|n| n.handle != **a)) {
            return refuse(INVALID_VALUE, format!("{stranger:#x} is no node of the graph"));
        }
        graph.nodes.push(Node { handle, task, after });
        Ok(handle)
    }

    /// Nodes in an order that their dependencies allow: as they were added, or at random.
    pub fn order_of(&mut self, instance: &Instance) -> Vec<usize> {
        let mut order: Vec<usize> = Vec::with_capacity(instance.after.len());
        let mut done = vec![false; instance.after.len()];
        while order.len() < instance.after.len() {
            let ready = |i: &usize| !done[*i] && instance.after[*i].iter().all(|a| done[*a]);
            let ready: Vec<usize> = (0..done.len()).filter(ready).collect();
            let next = ready[self.below(ready.len())];
            done[next] = true;
            order.push(next);
        }
        order
    }

    /// What a launch does now.
    fn instance(&self, nodes: &[Node]) -> Answer<Instance> {
        let place = |handle: &usize| nodes.iter().position(|n| n.handle == *handle);
        let after = nodes.iter().map(|n| n.after.iter().filter_map(place).collect()).collect();
        let work = nodes.iter().map(|n| self.work_of(&n.task)).collect::<Answer<Vec<Work>>>()?;
        Ok(Instance { work, after })
    }

    fn work_of(&self, task: &Task) -> Answer<Work> {
        Ok(match task.clone() {
            Task::Kernel(start) => {
                self.function(start.function)?;
                Work::Kernel(start)
            }
            Task::ToDevice { to, from, bytes } => {
                self.usable(to, bytes, "a copy of a graph")?;
                let from: Snapshot = self.snapshot(from, bytes)?;
                Work::ToDevice { to, from }
            }
            Task::ToHost { to, from, bytes } => {
                self.usable(from, bytes, "a copy of a graph")?;
                Work::ToHost { to, from, bytes }
            }
            Task::Within { to, from, bytes } => Work::Within { to, from, bytes },
            Task::Set { to, value, bytes } => Work::Set { to, value, bytes },
            Task::Nothing => Work::Taken(0, 0),
        })
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphCreate(graph: Out<usize>, flags: c_uint) -> Status {
    call("cuGraphCreate", |driver| {
        if flags != 0 {
            return refuse(INVALID_VALUE, format!("flags {flags}, must be 0"));
        }
        let made = driver.handle();
        driver.graphs.insert(made, Graph::default());
        graph.put(made)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: usize) -> Status {
    call("cuGraphDestroy", |driver| {
        driver.graph(graph)?;
        driver.graphs.remove(&graph);
        driver.gone.insert(graph, ("graph", driver.calls));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphAddKernelNode_v2(
    node: Out<usize>,
    graph: usize,
    after: In<usize>,
    count: usize,
    parameters: In<Parameters>,
) -> Status {
    bound("cuGraphAddKernelNode_v2", |driver, _| {
        driver.graph(graph)?;
        let start = driver.node_start(&parameters)?;
        let added = driver.add_node(graph, after.list(count), Task::Kernel(start))?;
        node.put(added)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphAddEmptyNode(node: Out<usize>, graph: usize, after: In<usize>, count: usize) -> Status {
    call("cuGraphAddEmptyNode", |driver| {
        let added = driver.add_node(graph, after.list(count), Task::Nothing)?;
        node.put(added)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphGetNodes(graph: usize, nodes: Out<usize>, count: Out<usize>) -> Status {
    call("cuGraphGetNodes", |driver| {
        let handles: Vec<usize> = driver.graph(graph)?.nodes.iter().map(|n| n.handle).collect();
        if !nodes.is_null() {
            handles.iter().enumerate().try_for_each(|(i, h)| nodes.put_at(i, *h))?;
        }
        count.put(handles.len())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphKernelNodeSetParams_v2(node: usize, parameters: In<Parameters>) -> Status {
    bound("cuGraphKernelNodeSetParams_v2", |driver, _| {
        let start = driver.node_start(&parameters)?;
        let call = driver.calls;
        let holder = driver.graphs.iter_mut().find(|(_, g)| g.nodes.iter().any(|n| n.handle == node));
        let Some((graph, nodes)) = holder else { return driver.unknown("node of a graph", node) };
        let graph = *graph;
        nodes
            .nodes
            .iter_mut()
            .filter(|n| n.handle == node)
            .for_each(|n| n.task = Task::Kernel(start.clone()));
        driver
            .executables
            .values_mut()
            .filter(|e| e.graph == graph)
            .for_each(|e| e.stale = Some((call, node)));
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(
    executable: Out<usize>,
    graph: usize,
    _flags: c_ulonglong,
) -> Status {
    bound("cuGraphInstantiateWithFlags", |driver, _| {
        let nodes = driver.graph(graph)?.nodes.clone();
        let made = driver.handle();
        driver.executables.insert(made, Executable { graph, nodes, stale: None });
        executable.put(made)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecKernelNodeSetParams_v2(
    executable: usize,
    node: usize,
    parameters: In<Parameters>,
) -> Status {
    bound("cuGraphExecKernelNodeSetParams_v2", |driver, _| {
        let start = driver.node_start(&parameters)?;
        let nodes = &mut driver.executable(executable)?.nodes;
        let found = nodes.iter_mut().find(|n| n.handle == node);
        let Some(found) = found.filter(|n| matches!(n.task, Task::Kernel(_))) else {
            return refuse(
                INVALID_VALUE,
                format!("{node:#x} is no kernel node of the graph that this was made of"),
            );
        };
        found.task = Task::Kernel(start);
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(executable: usize, stream: usize) -> Status {
    bound("cuGraphLaunch", |driver, context| {
        let found = driver.executable(executable)?;
        let (mut nodes, stale) = (found.nodes.clone(), found.stale);
        driver.stream(stream, context)?;
        driver.not_captured(stream, "cuGraphLaunch of another graph")?;
        if let Some((changed, node)) = stale {
            let call = driver.calls;
            driver.report.note(&format!(
                "cuGraphLaunch (call {call}): node {node:#x} of the graph was changed in call {changed}, after this \
                 executable was made of it: it keeps the arguments it was made with"
            ));
        }
        // The launch that shall fail may be in a graph.
        for node in &mut nodes {
            if let Task::Kernel(start) = &mut node.task {
                driver.asked_for(start)?;
            }
        }
        let instance = driver.instance(&nodes)?;
        driver.give_work(stream, context, Work::Graph(instance))
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(executable: usize) -> Status {
    call("cuGraphExecDestroy", |driver| {
        // Launches under way keep what they were launched with.
        driver.executable(executable)?;
        driver.executables.remove(&executable);
        driver.gone.insert(executable, ("executable graph", driver.calls));
        Ok(())
    })
}
