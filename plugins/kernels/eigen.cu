// Leading eigenvectors of symmetric positive semi-definite matrices: a block method in one cooperative launch.
//
// As in vtexport/pruning/eigen.py: the best eigenvectors in the span of a block of vectors (Rayleigh-Ritz), each
// corrected by a Chebyshev iteration on its own residual, which float32 bears where plain powers of the matrix do not;
// until the residuals of all wanted vectors are small. Of one image, `members` blocks of threads hold some rows each;
// the first of them solves the small projected problems (small_problem.cuh). Every sum has a fixed order, so the result
// is the same in every run.
#include "eigen_task.cuh"
#include "small_problem.cuh"

namespace vtx {
namespace eigen_kernels {

__device__ float noise(unsigned a, unsigned b) {  // without structure, between -1 and 1
  unsigned h = a * 0x9e3779b1u + b * 0x85ebca77u + 0x165667b1u;
  h = (h ^ (h >> 15)) * 0x2c1b3c6du;
  h = (h ^ (h >> 12)) * 0x297a2d39u;
  return static_cast<float>(static_cast<int>(h ^ (h >> 15))) * 4.656612873e-10f;
}

// Coefficients of the corrections: the spectrum outside the block is mapped to [-1, 1], a column's own eigenvalue to
// its `point`, where the Chebyshev polynomial is large.
__device__ void set_corrections(Task& t, const float* values) {
  float least = values[0];
  for (int i = 1; i < t.block; ++i)
    if (values[i] >= 0.0f) least = smaller(least, values[i]);
  t.correction_scale = 2.0f / fmaxf(fmaxf(least, 1e-6f * values[0]), kTiny);
  for (int i = thread_id(); i < t.block; i += kThreads) {
    const float point = fmaxf(1.0f, fmaxf(values[i], 0.0f) * t.correction_scale - 1.0f);
    const float first = 1.0f / (1.0f - 1.0f / (2.0f * point * point));
    t.point[i] = point;
    t.eigenvalue[i] = fmaxf(values[i], 0.0f);
    t.first_factor[i] = first;
    t.second_factor[i] = 1.0f / (1.0f - first / (4.0f * point * point));
  }
}

// x and its image turned by the rotation that the small problem gave. Where `has_image`, also the residuals' squares,
// the first term of the corrections in c1, and the own rows' parts of imageᵀ c1 and xᵀ c1.
__device__ VTX_NOINLINE void rotate(Task& t, bool has_image, unsigned attempt, unsigned char* shared) {
  const int step = staged_rows(t.block), block = t.block;
  float* z = reinterpret_cast<float*>(shared);
  float* w = z + step * block;
  float* turned = w + step * block;
  float* turned_image = turned + step * block;
  float* values = turned_image + step * block;
  float* squares = values + block;
  float* rotation = squares + block;  // [block, block], where the small matrices lie in shared memory
  const bool is_near = block <= kSharedBlock;
  for (int i = thread_id(); i < block; i += kThreads) {
    values[i] = __ldcg(t.values + i);
    squares[i] = 0.0f;
  }
  if (is_near)
    for (int e = 4 * thread_id(); e < block * block; e += 4 * kThreads)
      *reinterpret_cast<float4*>(rotation + e) = __ldcg(reinterpret_cast<const float4*>(t.small + e));
  __syncthreads();
  set_corrections(t, values);
  for (int row0 = t.first; row0 < t.last; row0 += step) {
    const int rows = smaller(step, t.last - row0);
    const size_t from = static_cast<size_t>(row0) * block;
    for (int e = thread_id(); e < rows * block; e += kThreads) {
      z[e] = t.x[from + e];
      if (has_image) w[e] = t.image[from + e];
    }
    __syncthreads();
    for (int e = thread_id(); e < rows * block; e += kThreads) {
      const int r = e / block, c = e % block;
      float value = 0.0f, image = 0.0f;
      for (int j = 0; j < block; ++j) {
        const size_t at = static_cast<size_t>(j) * block + c;
        const float turn = is_near ? rotation[at] : __ldcg(t.small + at);
        value = fmaf(z[r * block + j], turn, value);
        if (has_image) image = fmaf(w[r * block + j], turn, image);
      }
      const bool lost = values[c] < 0.0f;  // a vector that depended on the others starts anew
      turned[e] = lost ? noise(static_cast<unsigned>(row0 + r), static_cast<unsigned>(c) + 0x10000u * attempt) : value;
      turned_image[e] = lost ? 0.0f : image;
    }
    __syncthreads();
    for (int e = thread_id(); e < rows * block; e += kThreads) {
      t.x[from + e] = turned[e];
      if (!has_image) continue;
      const int c = e % block;
      const float rest = values[c] < 0.0f ? 0.0f : turned_image[e] - values[c] * turned[e];
      z[e] = rest;
      w[e] = rest * (t.correction_scale / t.point[c]);
      t.c1[from + e] = w[e];
      t.image[from + e] = turned_image[e];
    }
    __syncthreads();
    if (has_image) {
      add_products(t, turned_image, w, 0, rows, row0 == t.first, true);
      add_products(t, turned, w, 1, rows, row0 == t.first, true);
      for (int c = thread_id(); c < block; c += kThreads)
        for (int r = 0; r < rows; ++r) squares[c] = fmaf(z[r * block + c], z[r * block + c], squares[c]);
    }
    __syncthreads();
  }
  if (has_image)
    for (int i = thread_id(); i < block; i += kThreads)
      t.squares[static_cast<size_t>(t.member) * block + i] = squares[i];
}

// Worst residual of the wanted vectors over the largest eigenvalue; the same number in every thread of every member.
// Vectors whose residual is as small as rounding makes it get no correction.
__device__ VTX_NOINLINE float worst_residual(const Task& t, unsigned char* shared) {
  float* found = reinterpret_cast<float*>(shared);
  const float unit = 1.0f / fmaxf(__ldcg(t.values), kTiny);
  for (int c = thread_id(); c < t.block; c += kThreads) {
    float square = 0.0f;
#pragma unroll 8
    for (int member = 0; member < t.members; ++member)
      square += __ldcg(t.squares + static_cast<size_t>(member) * t.block + c);
    found[c] = sqrtf(square) * unit;
    if (!(found[c] > kSettled)) t.first_factor[c] = t.second_factor[c] = 0.0f;
  }
  __syncthreads();
  float worst = 0.0f;
  for (int c = 0; c < t.count; ++c) worst = found[c] > worst || !(found[c] == found[c]) ? found[c] : worst;
  __syncthreads();
  return worst;
}

// The members' parts of the matrices `first` and so on added up, in shared memory behind a product, or for large blocks
// in `small` behind the rotation.
__device__ VTX_NOINLINE const float* summed_parts(Task& t, int first, int count, unsigned char* shared) {
  const int size = t.block * t.block;
  const bool fits = t.block <= kSharedInside;
  float* out = fits ? reinterpret_cast<float*>(shared + kProductShared) : t.small + size;
  const int start = thread_id() + (fits ? 0 : t.member * kThreads), step = fits ? kThreads : kThreads * t.members;
  for (int e = 4 * start; e < count * size; e += 4 * step) {
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
    for (int member = 0; member < t.members; ++member) {
      const float* part = t.partial + (static_cast<size_t>(member) * kParts + first) * size + e;
      add_to(sum, __ldcg(reinterpret_cast<const float4*>(part)));
    }
    *reinterpret_cast<float4*>(out + e) = sum;
  }
  if (!fits) t.sync();
  __syncthreads();
  return out;
}

// The own rows' part of imageᵀ c2.
__device__ VTX_NOINLINE void project_second(const Task& t, unsigned char* shared) {
  const int step = staged_rows(t.block);
  float* w = reinterpret_cast<float*>(shared);
  float* c = w + step * t.block;
  for (int row0 = t.first; row0 < t.last; row0 += step) {
    const int rows = smaller(step, t.last - row0);
    for (int e = thread_id(); e < rows * t.block; e += kThreads) {
      w[e] = t.image[static_cast<size_t>(row0) * t.block + e];
      c[e] = t.c2[static_cast<size_t>(row0) * t.block + e];
    }
    __syncthreads();
    add_products(t, w, c, 2, rows, row0 == t.first, true);
    __syncthreads();
  }
}

__device__ void iterate(Task& t, unsigned char* shared) {
  const int block = t.block;
  for (int e = t.first * block + thread_id(); e < t.last * block; e += kThreads)
    t.c2[e] = noise(static_cast<unsigned>(e / block), static_cast<unsigned>(e % block));
  t.sync();
  times_gram(t, t.c2, shared, [&](int r, int c, float value) { t.x[static_cast<size_t>(r) * block + c] = value; });
  __syncthreads();
  project(t, false, shared);
  t.sync();
  if (t.member == 0)
    solve_small(t.partial, t.members, kParts, block, false, 0.0f, t.small, t.values, shared, kSharedBlock);
  t.sync();
  rotate(t, false, 1, shared);
  t.sync();

  float worst = 0.0f;
  for (int attempt = 0;; ++attempt) {
    times_gram(t, t.x, shared, [&](int r, int c, float value) { t.image[static_cast<size_t>(r) * block + c] = value; });
    __syncthreads();
    project(t, true, shared);
    t.sync();
    // Before the first correction the block is far from the answer anyway.
    if (t.member == 0)
      solve_small(t.partial, t.members, kParts, block, true, attempt ? 1e-3f : 0.3f, t.small, t.values, shared,
                  kSharedBlock);
    t.sync();
    rotate(t, true, static_cast<unsigned>(attempt) + 2, shared);
    t.sync();
    worst = worst_residual(t, shared);
    if (!(worst > kResidual) || attempt == kMostCorrections) break;

    // What the first term has inside the block goes: it would grow with every product and swamp the rest. What the
    // second one has there is of the size of the residuals and hastens convergence, unless rounding alone makes it
    // large.
    const bool wide = t.eigenvalue[0] * t.correction_scale > kWideRange;
    const float* parts = summed_parts(t, 0, 2, shared);
    const bool is_shared = block <= kSharedInside;
    // In global memory they come from other multiprocessors, past this one's cache.
    const auto part = [&](int at) { return is_shared ? parts[at] : __ldcg(parts + at); };
    const int size = block * block;
    times_gram(t, t.c1, shared, [&](int r, int c, float value) {
      const size_t at = static_cast<size_t>(r) * block;
      float before = t.c1[at + c];
      for (int j = 0; j < block; ++j) {
        const float x = t.x[at + j], along = part(size + j * block + c);
        before = fmaf(-x, along, before);
        value = fmaf(-t.image[at + j], along, value);
        value = fmaf(-x, fmaf(-t.eigenvalue[j], along, part(j * block + c)), value);
      }
      t.own[at + c] = before;
      t.c2[at + c] = t.first_factor[c] * (before + (t.correction_scale * value - before) / t.point[c]);
    });
    __syncthreads();
    if (wide) project_second(t, shared);
    t.sync();
    if (wide) parts = summed_parts(t, 2, 1, shared);
    times_gram(t, t.c2, shared, [&](int r, int c, float value) {
      const size_t at = static_cast<size_t>(r) * block;
      if (wide)
        for (int j = 0; j < block; ++j) value = fmaf(-t.x[at + j], part(j * block + c), value);
      const float first = t.own[at + c], before = t.c2[at + c], point = t.point[c];
      const float rest = point * first + t.correction_scale * value - before - point * before;
      t.own[at + c] = t.second_factor[c] == 0.0f ? 0.0f : t.second_factor[c] * (before + rest / point - first) + first;
    });
    __syncthreads();
    for (int e = t.first * block + thread_id(); e < t.last * block; e += kThreads) t.x[e] += t.own[e];
    t.sync();
  }
  if (t.member == 0 && thread_id() == 0) *t.residual = worst;
}

__global__ void __launch_bounds__(kThreads, 1) leading_vectors(Eigen plan, int used, const float* __restrict__ gram) {
  VTX_SHARED(shared);
  const int teams = static_cast<int>(gridDim.x) / plan.members;
  Task t;
  t.tokens = plan.tokens;
  t.block = plan.block;
  t.count = plan.count;
  t.members = plan.members;
  t.member = static_cast<int>(blockIdx.x) % plan.members;
  t.first = static_cast<int>(static_cast<int64_t>(plan.tokens) * t.member / plan.members);
  t.last = static_cast<int>(static_cast<int64_t>(plan.tokens) * (t.member + 1) / plan.members);
  const size_t square = static_cast<size_t>(plan.block) * plan.block,
               array = static_cast<size_t>(plan.tokens) * plan.block;
  for (int image = static_cast<int>(blockIdx.x) / plan.members; image < plan.batch; image += teams) {
    t.gram = gram + static_cast<size_t>(image) * plan.tokens * plan.tokens;
    float trace = 0.0f;
    for (int i = thread_id(); i < plan.tokens; i += kThreads) trace += t.gram[static_cast<size_t>(i) * plan.tokens + i];
    trace = block_sum(trace, reinterpret_cast<float*>(shared));
    t.scale = 1.0f / fmaxf(trace, kTiny);
    if (t.member == 0 && thread_id() == 0) plan.trace[image] = trace;
    t.x = plan.vectors + image * array;
    t.image = plan.image_ + image * array;
    t.c1 = plan.first_ + image * array;
    t.c2 = plan.second_ + image * array;
    t.own = plan.third_ + image * array;
    t.partial = plan.partial_ + static_cast<size_t>(image) * plan.members * kParts * square;
    t.small = plan.small_ + image * 4 * square;
    t.squares = plan.squares_ + static_cast<size_t>(image) * plan.members * plan.block;
    t.values = plan.values + static_cast<size_t>(image) * plan.block;
    t.residual = plan.residual + image;
    t.arrived = plan.arrived_ + image;
    t.round = 0;
    t.point = plan.coefficients_ ? plan.coefficients_ + static_cast<size_t>(blockIdx.x) * 4 * plan.block
                                 : reinterpret_cast<float*>(shared + used);
    t.first_factor = t.point + plan.block;
    t.second_factor = t.first_factor + plan.block;
    t.eigenvalue = t.second_factor + plan.block;
    iterate(t, shared);
    __syncthreads();
  }
}

__global__ void reset(unsigned* arrived, int count) {
  for (int i = thread_id(); i < count; i += thread_count()) arrived[i] = 0;
}

// What the parts use by turns: rows in rotate(), a product with two matrices behind it, the small problem.
constexpr size_t shared_bytes(int block) {
  const size_t square = static_cast<size_t>(block) * block * sizeof(float);
  const size_t staged = (4 * staged_rows(block) + 2) * block * sizeof(float) + (block <= kSharedBlock ? square : 0);
  const size_t with_inside = kProductShared + (block <= kSharedInside ? 2 * square : 0);
  const size_t small = small_problem_shared(block, kSharedBlock);
  return round_up<size_t>(larger(larger(staged, with_inside), small), 16);
}

// The coefficients of the corrections lie behind that, or in the workspace where there is no room.
constexpr size_t coefficient_bytes(int block) { return 4 * sizeof(float) * block; }
constexpr bool coefficients_fit(int block) { return shared_bytes(block) + coefficient_bytes(block) <= kMostShared; }
constexpr bool every_block_fits() {
  for (int block = 16; block < VTX_MOST_TOKENS + 16; block += 16)
    if (shared_bytes(block) > kMostShared || (block <= kSharedBlock && !coefficients_fit(block))) return false;
  return true;
}
static_assert(every_block_fits(), "the eigenvectors of any size fit into every GPU's shared memory");

}  // namespace eigen_kernels

using namespace eigen_kernels;

Eigen plan_eigen(Workspace& workspace, int batch, int tokens, int count) {
  Eigen plan = {};
  plan.batch = batch;
  plan.tokens = tokens;
  plan.count = count;
  plan.block = smaller(round_up(tokens, 16), round_up(count + kOversampling, 16));
  const size_t square = static_cast<size_t>(plan.block) * plan.block, array = static_cast<size_t>(tokens) * plan.block;
  plan.members = smaller(divide_up(tokens, kRows), static_cast<int>(larger<size_t>(1, kMostPartial / square)));
  plan.vectors = workspace.take<float>(batch * array);
  plan.values = workspace.take<float>(static_cast<size_t>(batch) * plan.block);
  plan.trace = workspace.take<float>(batch);
  plan.residual = workspace.take<float>(batch);
  plan.image_ = workspace.take<float>(batch * array);
  plan.first_ = workspace.take<float>(batch * array);
  plan.second_ = workspace.take<float>(batch * array);
  plan.third_ = workspace.take<float>(batch * array);
  plan.partial_ = workspace.take<float>(static_cast<size_t>(batch) * plan.members * kParts * square);
  plan.small_ = workspace.take<float>(batch * 4 * square);
  plan.squares_ = workspace.take<float>(static_cast<size_t>(batch) * plan.members * plan.block);
  plan.arrived_ = workspace.take<unsigned>(batch);
  if (!coefficients_fit(plan.block))
    plan.coefficients_ = workspace.take<float>(static_cast<size_t>(batch) * plan.members * 4 * plan.block);
  return plan;
}

vtx_status leading_eigenvectors(const Eigen& plan, const float* gram, vtx_stream stream) {
  const size_t used = shared_bytes(plan.block);
  const size_t shared = used + (coefficients_fit(plan.block) ? coefficient_bytes(plan.block) : 0);
  int most = 0;
  VTX_TRY(blocks_at_once(leading_vectors, kThreads, shared, &most));
  Eigen placed = plan;
  placed.members = smaller(plan.members, most);
  const int teams = smaller(plan.batch, most / placed.members);
  VTX_TRY(launch(reset, Grid{1, 1}, 256, 0, stream, false, plan.arrived_, plan.batch));
  return launch(leading_vectors, Grid{placed.members * teams, 1}, kThreads, shared, stream, true, placed,
                static_cast<int>(used), gram);
}

}  // namespace vtx
