// y = w2 (silu(w1 x) * w3 x) for the experts of one process, forward and backward, on CPUs with AVX-512 or AVX2.
//
// Libraries repack a weight for every product, which costs more than the product when an expert has 16 to 64 rows. Here
// no fp32 weight is ever copied: every product is C[M, N] = sum_k A[m, k] B[k, n] with A read one number at a time and
// broadcast, at any strides, and B and C in vectors along N, which must be contiguous. Each of the six products has
// such a form:
//
//     forward    hT[G, B]   = w13[G, D] xT[D, B]       activations transposed, N is the rows of the expert
//                yT[D, B]   = w2[D, F]  aT[F, B]
//     backward   ga[B, F]   = gy[B, D]  w2[D, F]
//                gx[B, D]   = gh[B, G]  w13[G, D]
//                gw2[D, F]  = gyT[D, B] a[B, F]
//                gw13[G, D] = ghT[G, B] x[B, D]
//
// In bf16 pairs that are neighbours along k are multiplied and added to an fp32 sum, by one instruction where the
// processor has it. A pair fills the 32 bits of an fp32 number, a Unit, so both types share all code but the
// multiplication; where neighbours along k are rows, two rows are interleaved first (`interleave`), weights in the
// backward pass included.
//
// Between products numbers are rounded to the tensors' type, as by PyTorch's separate operations. Each sum over k is
// added up in the order of k, whatever the other rows and the number of threads.
//
// Shapes: B rows of one expert, D hidden, F intermediate, G = 2 F gate rows, then up rows.

#include "vectors.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <new>

namespace {

// ---- the two number types -----------------------------------------------------------------------------------------

struct Fp32 {
  using Number = float;
  static constexpr Size kPerUnit = 1;
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return ::multiply_add(a, b, sum); }
  static Vector load(const float* from, Size lanes) { return ::load(from, lanes); }
  static void store(float* to, Vector x, Size lanes) { ::store(to, x, lanes); }
  static float number(float x) { return x; }
};

struct Bf16 {
  using Number = std::uint16_t;
  static constexpr Size kPerUnit = 2;
  static Vector multiply_add(Vector a, Vector b, Vector sum) { return multiply_add_pairs(a, b, sum); }
  static Vector load(const std::uint16_t* from, Size lanes) { return widen(load_half(from, lanes)); }
  static void store(std::uint16_t* to, Vector x, Size lanes) { store_half(to, narrow(x), lanes); }
  static std::uint16_t number(float x) { return narrow(x); }
};

// How gradients of weights are stored: past the caches, since nobody reads them soon and there are many.
template <class Type>
struct Streamed : Type {
  static void store(typename Type::Number* to, Vector x, Size lanes) {
    const Size bytes = kLanes * static_cast<Size>(sizeof *to);
    if (lanes >= kLanes && reinterpret_cast<std::uintptr_t>(to) % bytes == 0)
      stream(to, x);
    else
      Type::store(to, x, lanes);
  }
};

// ---- products -----------------------------------------------------------------------------------------------------

// A matrix whose elements (i, k) are units at data[i * row + k * column].
struct Strided {
  const Unit* data;
  Size row, column;
};

// MR rows x NR vectors of C, held in registers over all k; the last vector has `last` lanes. Where A is read along its
// rows, as weights are in the forward pass, too many rows are under way for the processor to foresee, so the next tile's
// are fetched ahead (the forward pass is a fifth faster at 16 rows an expert).
template <class Type, class Out, int MR, int NR>
void tile(Size num_k, Strided a, const Unit* b, Size b_row, typename Out::Number* c, Size c_row, Size last) {
  Vector sums[MR][NR] = {};
  for (Size k = 0; k < num_k; ++k) {
    if (a.column == 1 && k % 16 == 0) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) _mm_prefetch(a.data + (i + MR) * a.row + k, _MM_HINT_T0);
    }
    Vector vectors[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) vectors[j] = load_units(b + k * b_row + j * kLanes, j == NR - 1 ? last : kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const Vector number = broadcast_unit(a.data[i * a.row + k * a.column]);
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) sums[i][j] = Type::multiply_add(number, vectors[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) Out::store(c + i * c_row + j * kLanes, sums[i][j], j == NR - 1 ? last : kLanes);
}

// Width of a strip of C in vectors, and heights of its tiles.
template <int NR, int... MR>
struct Tiles {};

// All rows of a strip of C, the tallest tiles first.
template <class Type, class Out, int NR, int MR, int... Smaller>
void strip(Tiles<NR, MR, Smaller...>, Size rows, Size num_k, Strided a, const Unit* b, Size b_row,
           typename Out::Number* c, Size c_row, Size last) {
  Size row = 0;
  const auto below = [&] { return Strided{a.data + row * a.row, a.row, a.column}; };
  for (; row + MR <= rows; row += MR) tile<Type, Out, MR, NR>(num_k, below(), b, b_row, c + row * c_row, c_row, last);
  if constexpr (sizeof...(Smaller) > 0)
    if (row < rows)
      strip<Type, Out>(Tiles<NR, Smaller...>{}, rows - row, num_k, below(), b, b_row, c + row * c_row, c_row, last);
}

// C[rows, columns] = A B over num_k units. A tile's sums, a row of B's vectors and a number of A fit in the registers:
// 32 with AVX-512, 16 with AVX2, where of pairs of bf16 numbers each half takes one.
template <class Type, class Out>
void multiply(Size rows, Size columns, Size num_k, Strided a, const Unit* b, Size b_row, typename Out::Number* c,
              Size c_row) {
  constexpr Size kWidest = kLanes == 16 ? 4 : 2;
  for (Size column = 0; column < columns; column += kWidest * kLanes) {
    const Size left = std::min(columns - column, kWidest * kLanes);
    const Size vectors = (left + kLanes - 1) / kLanes;
    const auto strip_of = [&](auto tiles) {
      strip<Type, Out>(tiles, rows, num_k, a, b + column, b_row, c + column, c_row, left - (vectors - 1) * kLanes);
    };
    if constexpr (kLanes == 16) {
      if (vectors == 4)
        strip_of(Tiles<4, 6, 4, 2, 1>{});
      else if (vectors == 3)
        strip_of(Tiles<3, 8, 4, 2, 1>{});
      else if (vectors == 2)
        strip_of(Tiles<2, 12, 6, 3, 1>{});
      else
        strip_of(Tiles<1, 16, 8, 4, 2, 1>{});
    } else if constexpr (Type::kPerUnit == 1) {
      if (vectors == 2)
        strip_of(Tiles<2, 6, 4, 2, 1>{});
      else
        strip_of(Tiles<1, 12, 6, 3, 1>{});
    } else {
      if (vectors == 2)
        strip_of(Tiles<2, 4, 2, 1>{});
      else
        strip_of(Tiles<1, 8, 4, 2, 1>{});
    }
  }
}

// ---- layouts ------------------------------------------------------------------------------------------------------

// [rows, columns] to [columns, rows], at row strides of the caller's.
template <class From, class To, class Convert>
void transpose(Size rows, Size columns, const From* from, Size from_row, To* to, Size to_row, Convert convert) {
  for (Size row0 = 0; row0 < rows; row0 += 16)
    for (Size column = 0; column < columns; ++column)
      for (Size row = row0; row < std::min(rows, row0 + 16); ++row)
        to[column * to_row + row] = convert(from[row * from_row + column]);
}

// [rows, columns] of numbers to units of neighbouring rows, [ceil(rows / 2), columns]; fp32 units are numbers already.
const Unit* interleave(Fp32, Size, Size, const float* from, Unit*) { return reinterpret_cast<const Unit*>(from); }

const Unit* interleave(Bf16, Size rows, Size columns, const std::uint16_t* from, Unit* to) {
  for (Size row = 0; row < rows; row += 2) {
    const std::uint16_t* even = from + row * columns;
    for (Size column = 0; column < columns; column += kLanes) {
      const Size lanes = columns - column;
      const Vector first = Bf16::load(even + column, lanes);
      const Vector second = row + 1 < rows ? Bf16::load(even + columns + column, lanes) : Vector{};
      store_units(to + row / 2 * columns + column, paired(first, second), lanes);
    }
  }
  return to;
}

// ---- activation ---------------------------------------------------------------------------------------------------

// hT[G, B] to aT = silu(gate) * up in units, [F / per unit, B]; rows of both are `stride` wide, a multiple of a vector.
void activate(Fp32, Size intermediate, Size stride, const float* hT, Unit* aT) {
  for (Size i = 0; i < intermediate * stride; i += kLanes) {
    const Vector gate = load(hT + i, kLanes), up = load(hT + intermediate * stride + i, kLanes);
    store_units(aT + i, gate * sigmoid(gate) * up, kLanes);
  }
}

void activate(Bf16, Size intermediate, Size stride, const float* hT, Unit* aT) {
  const auto rounded = [](Vector x) { return widen(narrow(x)); };
  const auto activated = [&](Size i) {
    const Vector gate = rounded(load(hT + i, kLanes)), up = rounded(load(hT + intermediate * stride + i, kLanes));
    return rounded(gate * sigmoid(gate) * up);
  };
  for (Size f = 0; f < intermediate; f += 2)
    for (Size b = 0; b < stride; b += kLanes)
      store_units(aT + f / 2 * stride + b, paired(activated(f * stride + b), activated((f + 1) * stride + b)), kLanes);
}

// ---- one expert ---------------------------------------------------------------------------------------------------

// Memory of one call that is given back at its end. There may be none: what throws in a thread ends the process.
class Scratch {
 public:
  explicit Scratch(Size bytes)
      : memory_(::operator new(bytes, std::align_val_t(64), std::nothrow)),
        next_(reinterpret_cast<std::uintptr_t>(memory_)) {}
  ~Scratch() { ::operator delete(memory_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  bool is_there() const { return memory_ != nullptr; }
  template <class T>
  T* take(Size count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += (count * static_cast<Size>(sizeof(T)) + 63) / 64 * 64;
    return taken;
  }

 private:
  void* memory_;
  std::uintptr_t next_;
};

template <class Type>
const Unit* units(const typename Type::Number* numbers) { return reinterpret_cast<const Unit*>(numbers); }

Size padded(Size rows) { return (rows + kLanes - 1) / kLanes * kLanes; }

template <class Type>
void forward_expert(Size rows, Size hidden, Size intermediate, const typename Type::Number* x,
                    const typename Type::Number* w13, const typename Type::Number* w2, typename Type::Number* h,
                    typename Type::Number* y, Unit* xT, float* hT, Unit* aT, float* yT) {
  const Size gates = 2 * intermediate, stride = padded(rows);
  const Size hidden_units = hidden / Type::kPerUnit, intermediate_units = intermediate / Type::kPerUnit;
  const auto unit = [](Unit value) { return value; };
  for (Size d = 0; d < hidden_units; ++d)
    for (Size row = rows; row < stride; ++row) xT[d * stride + row] = 0;
  transpose(rows, hidden_units, units<Type>(x), hidden_units, xT, stride, unit);
  multiply<Type, Fp32>(gates, stride, hidden_units, {units<Type>(w13), hidden_units, 1}, xT, stride, hT, stride);
  transpose(gates, rows, hT, stride, h, gates, Type::number);
  activate(Type{}, intermediate, stride, hT, aT);
  multiply<Type, Fp32>(hidden, stride, intermediate_units, {units<Type>(w2), intermediate_units, 1}, aT, stride, yT,
                       stride);
  transpose(hidden, rows, yT, stride, y, hidden, Type::number);
}

// From ga[B, F] and h[B, G]: a[B, F], and the gradient of h.
template <class Type>
void backward_activation(Size rows, Size intermediate, const float* ga, const typename Type::Number* h,
                         typename Type::Number* a, typename Type::Number* gh) {
  for (Size row = 0; row < rows; ++row)
    for (Size f = 0; f < intermediate; f += kLanes) {
      const Size lanes = intermediate - f, at = row * 2 * intermediate + f;
      const Vector gate = Type::load(h + at, lanes), up = Type::load(h + at + intermediate, lanes);
      const Vector gradient = load(ga + row * intermediate + f, lanes);
      const Vector s = sigmoid(gate), activated = gate * s;
      Type::store(a + row * intermediate + f, activated * up, lanes);
      Type::store(gh + at, gradient * up * (s * (gate * (1 - s) + 1)), lanes);
      Type::store(gh + at + intermediate, gradient * activated, lanes);
    }
}

template <class Type>
struct BackwardScratch {
  float* ga;
  typename Type::Number *a, *gh;
  Unit *weights, *gy_pairs, *a_pairs, *gh_pairs, *x_pairs;
};

template <class Type>
void backward_expert(Size rows, Size hidden, Size intermediate, const typename Type::Number* x,
                     const typename Type::Number* h, const typename Type::Number* gy,
                     const typename Type::Number* w13, const typename Type::Number* w2, typename Type::Number* gx,
                     typename Type::Number* gw13, typename Type::Number* gw2, const BackwardScratch<Type>& s) {
  const Size gates = 2 * intermediate, row_units = (rows + Type::kPerUnit - 1) / Type::kPerUnit;
  const Size hidden_units = hidden / Type::kPerUnit, gate_units = gates / Type::kPerUnit;
  const Unit* w2_pairs = interleave(Type{}, hidden, intermediate, w2, s.weights);
  multiply<Type, Fp32>(rows, intermediate, hidden_units, {units<Type>(gy), hidden_units, 1}, w2_pairs, intermediate,
                       s.ga, intermediate);
  backward_activation<Type>(rows, intermediate, s.ga, h, s.a, s.gh);
  const Unit* w13_pairs = interleave(Type{}, gates, hidden, w13, s.weights);
  multiply<Type, Type>(rows, hidden, gate_units, {units<Type>(s.gh), gate_units, 1}, w13_pairs, hidden, gx, hidden);
  if (gw2 != nullptr) {
    const Unit* gy_pairs = interleave(Type{}, rows, hidden, gy, s.gy_pairs);
    const Unit* a_pairs = interleave(Type{}, rows, intermediate, s.a, s.a_pairs);
    multiply<Type, Streamed<Type>>(hidden, intermediate, row_units, {gy_pairs, 1, hidden}, a_pairs, intermediate, gw2,
                         intermediate);
  }
  if (gw13 != nullptr) {
    const Unit* gh_pairs = interleave(Type{}, rows, gates, s.gh, s.gh_pairs);
    const Unit* x_pairs = interleave(Type{}, rows, hidden, x, s.x_pairs);
    multiply<Type, Streamed<Type>>(gates, hidden, row_units, {gh_pairs, 1, gates}, x_pairs, hidden, gw13, hidden);
  }
}

// ---- all experts --------------------------------------------------------------------------------------------------

// Threads are OpenMP's, the same ones as PyTorch's own: others would have to share the cores with those while they spin
// after PyTorch's last operation (a third of the time of a pass of 30 ms). A thread takes the next expert when it has
// done one, so no result depends on how many there are. Both passes tell whether each thread had memory enough; if not,
// the results are not there.

Size most_rows(Size num_experts, const Size* starts) {
  Size most = 0;
  for (Size expert = 0; expert < num_experts; ++expert) most = std::max(most, starts[expert + 1] - starts[expert]);
  return most;
}

template <class Type>
bool forward(int num_threads, Size num_experts, const Size* starts, Size hidden, Size intermediate, const void* x,
             const void* w13, const void* w2, void* h, void* y) {
  bool enough = true;
  using Number = typename Type::Number;
  const Size gates = 2 * intermediate, stride = padded(most_rows(num_experts, starts));
#pragma omp parallel num_threads(num_threads) reduction(&& : enough)
  {
    Scratch scratch(4 * stride * (2 * hidden + gates + intermediate) + 4 * 64);
    enough = scratch.is_there();
    Unit* xT = scratch.take<Unit>(hidden * stride);
    float* hT = scratch.take<float>(gates * stride);
    Unit* aT = scratch.take<Unit>(intermediate * stride);
    float* yT = scratch.take<float>(hidden * stride);
#pragma omp for schedule(dynamic)
    for (Size expert = 0; expert < num_experts; ++expert) {
      const Size start = starts[expert], rows = starts[expert + 1] - start;
      if (rows == 0 || !enough) continue;
      forward_expert<Type>(rows, hidden, intermediate, static_cast<const Number*>(x) + start * hidden,
                           static_cast<const Number*>(w13) + expert * gates * hidden,
                           static_cast<const Number*>(w2) + expert * hidden * intermediate,
                           static_cast<Number*>(h) + start * gates, static_cast<Number*>(y) + start * hidden, xT, hT,
                           aT, yT);
    }
  }
  return enough;
}

template <class Type>
bool backward(int num_threads, Size num_experts, const Size* starts, Size hidden, Size intermediate, const void* x,
              const void* h, const void* gy, const void* w13, const void* w2, void* gx, void* gw13, void* gw2) {
  bool enough = true;
  using Number = typename Type::Number;
  const Size gates = 2 * intermediate, most = padded(most_rows(num_experts, starts));
#pragma omp parallel num_threads(num_threads) reduction(&& : enough)
  {
    Scratch scratch(4 * most * (2 * hidden + 3 * intermediate + 2 * gates) + 4 * gates * hidden + 8 * 64);
    enough = scratch.is_there();
    BackwardScratch<Type> s;
    s.ga = scratch.take<float>(most * intermediate);
    s.a = scratch.take<Number>(most * intermediate);
    s.gh = scratch.take<Number>(most * gates);
    s.weights = scratch.take<Unit>(gates * hidden / Type::kPerUnit);
    s.gy_pairs = scratch.take<Unit>(most * hidden);
    s.a_pairs = scratch.take<Unit>(most * intermediate);
    s.gh_pairs = scratch.take<Unit>(most * gates);
    s.x_pairs = scratch.take<Unit>(most * hidden);
#pragma omp for schedule(dynamic)
    for (Size expert = 0; expert < num_experts; ++expert) {
      const Size start = starts[expert], rows = starts[expert + 1] - start;
      const Size w13_at = expert * gates * hidden, w2_at = expert * hidden * intermediate;
      Number* gw13_expert = gw13 == nullptr ? nullptr : static_cast<Number*>(gw13) + w13_at;
      Number* gw2_expert = gw2 == nullptr ? nullptr : static_cast<Number*>(gw2) + w2_at;
      if (rows == 0) {
        if (gw13_expert != nullptr) std::memset(gw13_expert, 0, gates * hidden * sizeof(Number));
        if (gw2_expert != nullptr) std::memset(gw2_expert, 0, hidden * intermediate * sizeof(Number));
      }
      if (rows == 0 || !enough) continue;
      backward_expert<Type>(rows, hidden, intermediate, static_cast<const Number*>(x) + start * hidden,
                            static_cast<const Number*>(h) + start * gates,
                            static_cast<const Number*>(gy) + start * hidden, static_cast<const Number*>(w13) + w13_at,
                            static_cast<const Number*>(w2) + w2_at, static_cast<Number*>(gx) + start * hidden,
                            gw13_expert, gw2_expert, s);
    }
    _mm_sfence();  // streamed stores are seen by other threads only after it
  }
  return enough;
}

}  // namespace

// `starts[e]` is the first row of expert e, starts[num_experts] the number of rows. Gradients of weights may be null:
// then they are not computed. False is returned for want of memory.
extern "C" {

bool swiglu_forward_fp32(int num_threads, Size num_experts, const Size* starts, Size hidden, Size intermediate,
                         const void* x, const void* w13, const void* w2, void* h, void* y) {
  return forward<Fp32>(num_threads, num_experts, starts, hidden, intermediate, x, w13, w2, h, y);
}

bool swiglu_backward_fp32(int num_threads, Size num_experts, const Size* starts, Size hidden, Size intermediate,
                          const void* x, const void* h, const void* gy, const void* w13, const void* w2, void* gx,
                          void* gw13, void* gw2) {
  return backward<Fp32>(num_threads, num_experts, starts, hidden, intermediate, x, h, gy, w13, w2, gx, gw13, gw2);
}

// `hidden` and `intermediate` must be even; read in units, tensors are meant to begin at multiples of 4 bytes.
bool swiglu_forward_bf16(int num_threads, Size num_experts, const Size* starts, Size hidden, Size intermediate,
                         const void* x, const void* w13, const void* w2, void* h, void* y) {
  return forward<Bf16>(num_threads, num_experts, starts, hidden, intermediate, x, w13, w2, h, y);
}

bool swiglu_backward_bf16(int num_threads, Size num_experts, const Size* starts, Size hidden, Size intermediate,
                          const void* x, const void* h, const void* gy, const void* w13, const void* w2, void* gx,
                          void* gw13, void* gw2) {
  return backward<Bf16>(num_threads, num_experts, starts, hidden, intermediate, x, h, gy, w13, w2, gx, gw13, gw2);
}

// Ask for large pages in memory not yet touched: a fresh gradient of 50 MB costs 12,000 page faults otherwise, and more
// time than the numbers written to it.
void advise_huge_pages(void* start, Size bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t page = 2u << 20;
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(start);
  const std::uintptr_t from = (address + page - 1) / page * page;
  const std::uintptr_t to = (address + static_cast<std::uintptr_t>(bytes)) / page * page;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)start, (void)bytes;
#endif
}
}
