//! A CUDA graph: kernel nodes, each after the one before.

use crate::backend::cuda::driver::{Graph, Node};
use crate::backend::cuda::errors::explain;
use crate::error::Result;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// A kernel on a device.
#[derive(Clone, Copy)]
pub struct Function(pub sys::CUfunction);
// SAFETY: a function handle may be used from any thread once the context is current there.
unsafe impl Send for Function {}

/// The nodes and their executable form.
pub struct GpuGraph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
    functions: Vec<Function>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}
// SAFETY: the handles belong to this structure alone, and the context is made current before they are used.
unsafe impl Send for GpuGraph {}

/// Calls `use_it` with a node's parameters: the driver copies the arguments before it returns.
fn with_parameters<T>(
    function: Function,
    node: &Node,
    use_it: impl FnOnce(&sys::CUDA_KERNEL_NODE_PARAMS) -> T,
) -> T {
    let mut arguments = [node.arguments.as_ptr().cast_mut().cast::<c_void>()];
    let ([gx, gy, gz], [bx, by, bz]) = (node.launch.grid, node.launch.block);
    use_it(&sys::CUDA_KERNEL_NODE_PARAMS {
        func: function.0,
        gridDimX: gx,
        gridDimY: gy,
        gridDimZ: gz,
        blockDimX: bx,
        blockDimY: by,
        blockDimZ: bz,
        sharedMemBytes: node.launch.shared,
        kernelParams: arguments.as_mut_ptr(),
        extra: std::ptr::null_mut(),
        kern: std::ptr::null_mut(),
        ctx: std::ptr::null_mut(),
    })
}

impl GpuGraph {
    /// The graph of `nodes` on a stream, whose context is current; `functions` are their kernels.
    ///
    /// # Errors
    /// The driver makes no graph of it.
    pub fn new(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        functions: Vec<Function>,
        nodes: &[Node],
    ) -> Result<Self> {
        let mut this = Self {
            graph: std::ptr::null_mut(),
            executable: std::ptr::null_mut(),
            nodes: Vec::with_capacity(nodes.len()),
            functions,
            stream: Arc::clone(stream),
            context: Arc::clone(context),
        };
        // SAFETY: handles are written before they are read; every kernel takes the one structure whose bytes are given.
        unsafe {
            sys::cuGraphCreate(&mut this.graph, 0).result().map_err(explain)?;
            for (function, node) in this.functions.iter().zip(nodes) {
                let mut made = std::ptr::null_mut();
                let (after, count) =
                    this.nodes.last().map_or((std::ptr::null(), 0), |last| (&raw const *last, 1));
                with_parameters(*function, node, |parameters| {
                    sys::cuGraphAddKernelNode_v2(&mut made, this.graph, after, count, parameters).result()
                })
                .map_err(|e| explain(e).at(format!("graph node of {}", node.kernel)))?;
                this.nodes.push(made);
            }
            sys::cuGraphInstantiateWithFlags(&mut this.executable, this.graph, 0)
                .result()
                .map_err(explain)?;
        }
        Ok(this)
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(explain)
    }
}

impl Graph for GpuGraph {
    fn replace(&mut self, index: usize, node: &Node) -> Result<()> {
        self.bind()?;
        // SAFETY: the node is of this graph; starts that are under way keep what they were started with.
        with_parameters(self.functions[index], node, |parameters| unsafe {
            sys::cuGraphExecKernelNodeSetParams_v2(self.executable, self.nodes[index], parameters).result()
        })
        .map_err(|e| explain(e).at(format!("graph node of {}", node.kernel)))
    }

    fn start(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: both handles are alive.
        unsafe { sys::cuGraphLaunch(self.executable, self.stream.cu_stream()).result() }
            .map_err(|e| explain(e).at(format!("a graph of {} kernels", self.nodes.len())))
    }
}

impl Drop for GpuGraph {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        // SAFETY: destroyed once, and only if they were made; a failure means a lost device.
        unsafe {
            if !self.executable.is_null() {
                let _ = result::graph::exec_destroy(self.executable);
            }
            if !self.graph.is_null() {
                let _ = result::graph::destroy(self.graph);
            }
        }
    }
}
