// Numbers on which the kernels and their launches agree. build.rs makes a Rust constant of every `constexpr` line, with
// what follows as its documentation (src/backend/cuda/abi.rs): write each on a line of its own.
#pragma once

// ---- how many of something one launch takes: its arguments fit in 4 KB -------------------------------

constexpr int SEGMENTS = 64;  // Segments of rows.
constexpr int ADAM_MATRICES = 14;  // Matrices of Adam.
constexpr int ADAM_BLOCKS = 24;  // Blocks of columns of Adam's matrices.
constexpr int FACTOR_TASKS = 16;  // Tasks of a step.
constexpr int GRAD_PARTS = 32;  // Blocks of a weight gradient, and groups of them.
constexpr int GRAD_PAIRS = 32;  // Pairs of a weight gradient's blocks whose products are taken.
constexpr int DOTS_PAIRS = 32;  // Pairs of matrices whose inner products are taken.
constexpr int MATMUL_MANY = 48;  // Small products.
constexpr int LEVELS = 16;  // Levels of codes of 4 bits.
constexpr int ORTHONORMALIZE_MATRICES = 128;  // Matrices to orthonormalize: about one a multiprocessor of a large GPU.

// ---- which part is a thread's or a block's ------------------------------------------------------------

constexpr int CHUNK = 8;  // Neighbouring elements of a thread: 16 bytes of bf16.
constexpr int QUAD = 4;  // Neighbouring elements of a thread of Adam.
constexpr int PANEL = 8;  // Rows that are orthonormalized together, at most.
constexpr int ATTENTION_THREADS = 128;  // Threads of a block of attention, at most; on tensor cores one a query.
constexpr int ATTENTION_KEYS_64 = 64;  // Keys that a block of queries takes at a time, with heads up to 64.
constexpr int ATTENTION_KEYS_128 = 32;  // Keys that a block of queries takes at a time, with heads up to 128.
constexpr int ATTENTION_DQ_KEYS_64 = 32;  // The same of the gradient of queries, with heads up to 64.
constexpr int ATTENTION_DQ_KEYS_128 = 16;  // The same of the gradient of queries, with heads up to 128.
constexpr int ATTENTION_TILE = 64;  // Keys of a block of keys.
constexpr int ATTENTION_QUERIES = 32;  // Queries that a team of a block of keys takes at a time.
constexpr int ATTENTION_TEAM_64 = 64;  // Threads of a team, with heads up to 64.
constexpr int ATTENTION_TEAM_128 = 128;  // Threads of a team, with heads up to 128.
constexpr int ATTENTION_TEAMS_THREADS = 256;  // Threads of all teams, at most.
constexpr int ATTENTION_WARPS = 4;  // Rows of a block on CUDA cores: one a warp.
constexpr int ATTENTION_SCRATCH = 96;  // Values that a row keeps in shared memory beside two heads.
constexpr int BIAS_DISTANCE = 1024;  // The largest distance whose biases a block on tensor cores keeps of one head.
constexpr int BIAS_THREADS = 64;  // Threads, and histograms, of a block of the bias gradient.

// ---- tiles of matrix products -------------------------------------------------------------------------

constexpr int TILE_M = 128;  // Rows of a tile on tensor cores.
constexpr int TILE_BAND = 16;  // Rows of tiles that are taken together, so that their operands stay in L2.
constexpr int TILE_N = 128;  // Columns of a product's tile.
constexpr int GRAD_TILE_M = 64;  // Rows of a weight gradient's tile.
constexpr int GRAD_TILE_N = 64;  // Its columns.
constexpr int GRAD_TILE_K = 64;  // Summed elements of its stage.
constexpr int GRAD_STAGES = 4;  // Its stages in flight.
constexpr int GRAD_THREADS = 128;  // Threads of its block on tensor cores.
constexpr int GRAD_TILE_SHARED = GRAD_STAGES * GRAD_TILE_K * 2 * (GRAD_TILE_M + GRAD_TILE_N) + 128;  // Its shared memory.
constexpr int BRANCH_TILE_N = 64;  // Columns of a low-rank branch's tile.
constexpr int TILE_K = 32;  // Summed elements of a stage.
constexpr int TILE_STAGES = 3;  // Stages in flight.
constexpr int TILE_THREADS = 256;  // Threads of a block on tensor cores.
constexpr int TILE_SHARED = TILE_STAGES * TILE_K * 2 * (TILE_M + TILE_N);  // Its shared memory, bytes.

constexpr int PLAIN_TILE = 64;  // Rows and columns of a tile on CUDA cores.
constexpr int PLAIN_K = 16;  // Summed elements that a block holds.
constexpr int PLAIN_LD = PLAIN_TILE + 4;  // Values from one of them to the next.
constexpr int PLAIN_THREADS = 256;  // Threads of a block on CUDA cores.
constexpr int PLAIN_SHARED = 2 * PLAIN_K * PLAIN_LD * 4;  // Its shared memory, bytes.

constexpr int CHUNK_BYTES = 64 * 128;  // What one bulk copy brings: 64 x 64 values of bf16.
constexpr int HOPPER_THREADS = 384;  // Threads of a block of the sm_90a kernels.
constexpr int HOPPER_WARPS = 8;  // Warps of it that multiply and write.
constexpr int HOPPER_M = 128;  // Rows of their tiles, which have 128 or 256 columns.
constexpr int HOPPER_STAGES_128 = 6;  // Stages of the ring with 128 columns.
constexpr int HOPPER_STAGES_256 = 4;  // Stages of the ring with 256 columns.
constexpr int HOPPER_WRITERS = 3;  // Warps that copy tiles from shared memory to C.
constexpr int HOPPER_STAGE_128 = (HOPPER_M + 128) / 64 * CHUNK_BYTES;  // Bytes of such a stage with 128 columns.
constexpr int HOPPER_STAGE_256 = (HOPPER_M + 256) / 64 * CHUNK_BYTES;  // Bytes of such a stage with 256 columns.
constexpr int HOPPER_STAGED = 128;  // Columns of a tile of C that are on their way out at a time.
constexpr int HOPPER_STAGED_BYTES = HOPPER_M * HOPPER_STAGED * 2;  // Bytes of them.
constexpr int HOPPER_SHARED_128 = 1104 + HOPPER_STAGES_128 * (HOPPER_STAGE_128 + 16) + HOPPER_STAGED_BYTES;  // Shared memory with 128 columns.
constexpr int HOPPER_SHARED_256 = 1104 + HOPPER_STAGES_256 * (HOPPER_STAGE_256 + 16) + HOPPER_STAGED_BYTES;  // Shared memory with 256 columns.

// ---- codes --------------------------------------------------------------------------------------------

constexpr int ACTIVATION_SILU = 0;  // x sigmoid(x).
constexpr int ACTIVATION_RELU = 1;  // max(x, 0).
constexpr int ACTIVATION_GELU_TANH = 2;  // gelu in its tanh approximation.
constexpr int GATES_FIXED = 0;  // One value for all tasks.
constexpr int GATES_SHARES = 1;  // Weighted shares of losses, norms and counts.
constexpr int GATES_INVERSE_NORM = 2;  // Shares of the norms' inverses.
constexpr int ROUNDED_F32 = 0;  // A weight's value stays as it is.
constexpr int ROUNDED_F16 = 1;  // It is rounded to half precision.
constexpr int ROUNDED_BF16 = 2;  // It is rounded to bfloat16.
