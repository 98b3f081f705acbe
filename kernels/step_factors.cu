// What follows from the inner products of a step's gradients, worked out where they are, so that the host does not wait for them:
//
//   factors = [clip, weight of every task, gate of every task]
//
// products f32 [count] are inner products of gradients over all layers; quantity u32 [count] says of what: with S tasks,
//   i S + j, S^2 + i S + j (where the whole gradient is not the sum of the tasks'), 2 S^2 + i S + j (dense parameters):
//   <g_i, g_j>, i <= j;  3 S^2 + t: a task's gradient with itself as the gates see it;  3 S^2 + S: a whole gradient's;
//   3 S^2 + S + 1: that of what is held beside them, which only has to be finite.
// losses f32 [S] are sums over labels f32 [S]; counts f32 [S] are samples. PCGrad's weights (Yu et al. 2020, algorithm 1,
// tasks in order) follow from the Gram matrix; else all are 1. clip = min(1, most / (norm of the weighted gradient + 1e-6)),
// as torch.nn.utils.clip_grad_norm_ does it; not a number when a loss or a product is not finite. Gates: fixed, shares
// (published), or inverse norms. factors f32 [1 + 2 S]. All arithmetic in f64, sums in fixed order.
//
// One block of 256 threads: a warp sums a quantity at a time, one thread decides. At most 16 tasks.
// Shared memory: 8 (4 S^2 + 7 S + 2) bytes: what was summed, then what the one thread works in, which would otherwise be
// local memory of every thread that the device can hold. Bytes: 8 count, from L2.
#include "common.cuh"

struct StepFactorsArguments {
  const float* products;
  const uint32_t* quantity;
  const float* losses;
  float* factors;
  int count, tasks, rule, pcgrad;  // rule: GATES_*
  float clip_norm, fixed, share[3], unused;
  float labels[FACTOR_TASKS], counts[FACTOR_TASKS];
};

// Every value over their sum; equal shares when the sum does not exceed `floor`.
__device__ __forceinline__ void take_shares(double* values, int n, double floor) {
  double total = 0.0;
  for (int i = 0; i < n; i++) total += values[i];
  for (int i = 0; i < n; i++) values[i] = total > floor ? values[i] / total : 1.0 / n;
}

// <g_i, g_j> among a symmetric matrix of which one triangle was summed.
__device__ __forceinline__ double entry(const double* gram, int tasks, int i, int j) {
  return i <= j ? gram[i * tasks + j] : gram[j * tasks + i];
}

// PCGrad's weights; `gram` is that over everything whose task gradients are apart, `c` room for a number a task.
__device__ __forceinline__ void pcgrad(const double* gram, int tasks, double* weight, double* c) {
  for (int i = 0; i < tasks; i++) weight[i] = 0.0;
  for (int i = 0; i < tasks; i++) {
    for (int k = 0; k < tasks; k++) c[k] = k == i ? 1.0 : 0.0;
    for (int j = 0; j < tasks; j++) {
      double along = 0.0, square = entry(gram, tasks, j, j);
      for (int k = 0; k < tasks; k++) along += c[k] * entry(gram, tasks, k, j);
      if (j != i && along < 0.0 && square > 0.0) c[j] -= along / square;
    }
    for (int k = 0; k < tasks; k++) weight[k] += c[k];
  }
}

// `room` is for three numbers a task.
__device__ __forceinline__ void find_gates(const StepFactorsArguments& a, const double* own, double* gate, double* room) {
  double *loss = room, *norm = room + a.tasks, *count = room + 2 * a.tasks;
  for (int t = 0; t < a.tasks; t++) {
    loss[t] = a.labels[t] > 0.0f ? (double)a.losses[t] / a.labels[t] : 0.0;
    norm[t] = own[t] > 0.0 ? sqrt(own[t]) : 0.0;
    count[t] = a.counts[t];
    gate[t] = a.rule == GATES_FIXED ? (double)a.fixed : norm[t] > 0.0 ? 1.0 / norm[t] : 0.0;
  }
  if (a.rule == GATES_FIXED) return;
  if (a.rule == GATES_SHARES) {
    take_shares(loss, a.tasks, 1e-8);
    take_shares(norm, a.tasks, 1e-8);
    take_shares(count, a.tasks, 0.0);
    for (int t = 0; t < a.tasks; t++) gate[t] = a.share[0] * loss[t] + a.share[1] * norm[t] + a.share[2] * count[t];
  }
  take_shares(gate, a.tasks, 0.0);
}

__device__ __forceinline__ void find_factors(const StepFactorsArguments& a, double* sum) {
  int tasks = a.tasks, square = tasks * tasks;
  const double *own = sum + 3 * square, whole = sum[3 * square + tasks];
  double *gram = sum + 3 * square + tasks + 2, *weight = gram + square, *gate = weight + tasks, *room = gate + tasks;
  // What is not finite stays so in this sum.
  double doubt = 0.0 * whole + 0.0 * sum[3 * square + tasks + 1];
  for (int i = 0; i < square; i++) {
    gram[i] = sum[i] + sum[square + i] + sum[2 * square + i];
    doubt += 0.0 * gram[i];
  }
  for (int t = 0; t < tasks; t++) {
    doubt += 0.0 * own[t] + 0.0 * a.losses[t];
    weight[t] = 1.0;
  }
  if (a.pcgrad) pcgrad(gram, tasks, weight, room);
  double norm = whole;
  for (int i = 0; i < tasks; i++) {
    for (int j = 0; j < tasks; j++) {
      int at = i <= j ? i * tasks + j : j * tasks + i;
      norm += weight[i] * weight[j] * (sum[at] + sum[2 * square + at]);
    }
  }
  double clip = a.clip_norm / (sqrt(norm > 0.0 ? norm : 0.0) + 1e-6);
  a.factors[0] = (float)((a.clip_norm > 0.0f && clip < 1.0 ? clip : 1.0) + doubt);
  find_gates(a, own, gate, room);
  for (int t = 0; t < tasks; t++) {
    a.factors[1 + t] = (float)weight[t];
    a.factors[1 + tasks + t] = (float)gate[t];
  }
}

__device__ __forceinline__ void sum_and_find(const StepFactorsArguments& a) {
  GEMS_SHARED(shared);
  double* sum = reinterpret_cast<double*>(shared);
  int quantities = 3 * a.tasks * a.tasks + a.tasks + 2, lane = threadIdx.x % 32;
  for (int q = threadIdx.x / 32; q < quantities; q += blockDim.x / 32) {
    double total = 0.0;
    for (int i = lane; i < a.count; i += 32) {
      if (a.quantity[i] == (uint32_t)q) total += a.products[i];
    }
    total = warp_sum(total);
    if (lane == 0) sum[q] = total;
  }
  __syncthreads();
  if (threadIdx.x == 0) find_factors(a, sum);
}

GEMS_KERNEL(step_factors, 256, StepFactorsArguments, sum_and_find)
GEMS_FILE(step_factors)
