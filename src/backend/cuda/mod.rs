//! The kernel backend: launches the kernels in `kernels/` on a GPU or on the host SIMT machine.
