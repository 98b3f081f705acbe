//! A chain of launches as a CUDA graph.

use super::driver::{Chain, Node};
use super::gpu::{Function, explain};
use crate::error::Result;
use cudarc::driver::{CudaContext, CudaStream, result, sys};
use std::ffi::c_void;
use std::sync::Arc;

/// Kernel nodes, each after the one before, and their executable form.
pub struct GpuChain {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    nodes: Vec<sys::CUgraphNode>,
    functions: Vec<Function>,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}
// Sound: the handles belong to this structure alone, and the context is made current before they are used.
unsafe impl Send for GpuChain {}

/// Calls `use_it` with a node's parameters: the driver copies the arguments before it returns.
fn with_parameters<T>(
    function: Function,
    node: &Node,
    use_it: impl FnOnce(&sys::CUDA_KERNEL_NODE_PARAMS) -> T,
) -> T {
    let mut arguments = [node.arguments.as_ptr().cast_mut().cast::<c_void>()];
    let ([gx, gy, gz], [bx, by, bz]) = (node.shape.grid, node.shape.block);
    use_it(&sys::CUDA_KERNEL_NODE_PARAMS {
        func: function.0,
        gridDimX: gx,
        gridDimY: gy,
        gridDimZ: gz,
        blockDimX: bx,
        blockDimY: by,
        blockDimZ: bz,
        sharedMemBytes: node.shape.shared,
        kernelParams: arguments.as_mut_ptr(),
        extra: std::ptr::null_mut(),
        kern: std::ptr::null_mut(),
        ctx: std::ptr::null_mut(),
    })
}

impl GpuChain {
    /// The chain of `nodes` on a stream, whose context is current; `functions` are their kernels.
    ///
    /// # Errors
    /// The driver makes no graph of it.
    pub fn new(
        context: &Arc<CudaContext>,
        stream: &Arc<CudaStream>,
        functions: Vec<Function>,
        nodes: &[Node],
    ) -> Result<Self> {
        let mut chain = Self {
            graph: std::ptr::null_mut(),
            executable: std::ptr::null_mut(),
            nodes: Vec::with_capacity(nodes.len()),
            functions,
            stream: Arc::clone(stream),
            context: Arc::clone(context),
        };
        // Sound: handles are written before they are read; every kernel takes the one structure whose bytes are given.
        unsafe {
            sys::cuGraphCreate(&mut chain.graph, 0).result().map_err(explain)?;
            for (function, node) in chain.functions.iter().zip(nodes) {
                let mut made = std::ptr::null_mut();
                let (after, count) =
                    chain.nodes.last().map_or((std::ptr::null(), 0), |last| (&raw const *last, 1));
                with_parameters(*function, node, |parameters| {
                    sys::cuGraphAddKernelNode_v2(&mut made, chain.graph, after, count, parameters).result()
                })
                .map_err(|e| explain(e).at(format!("graph node of {}", node.kernel)))?;
                chain.nodes.push(made);
            }
            sys::cuGraphInstantiateWithFlags(&mut chain.executable, chain.graph, 0)
                .result()
                .map_err(explain)?;
        }
        Ok(chain)
    }

    fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(explain)
    }
}

impl Chain for GpuChain {
    fn replace(&mut self, index: usize, node: &Node) -> Result<()> {
        self.bind()?;
        // Sound: the node is of this graph; starts that are under way keep what they were started with.
        with_parameters(self.functions[index], node, |parameters| unsafe {
            sys::cuGraphExecKernelNodeSetParams_v2(self.executable, self.nodes[index], parameters).result()
        })
        .map_err(|e| explain(e).at(format!("graph node of {}", node.kernel)))
    }

    fn start(&self) -> Result<()> {
        self.bind()?;
        // Sound: both handles are alive.
        unsafe { sys::cuGraphLaunch(self.executable, self.stream.cu_stream()).result() }
            .map_err(|e| explain(e).at(format!("a graph of {} kernels", self.nodes.len())))
    }
}

impl Drop for GpuChain {
    fn drop(&mut self) {
        if self.bind().is_err() {
            return;
        }
        // Sound: destroyed once, and only if they were made; a failure means a lost device.
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
