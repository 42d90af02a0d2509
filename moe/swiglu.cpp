// y = w2 (silu(w1 x) * w3 x) for the experts of one process, forward and backward, on CPUs with AVX-512.
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
// In bf16 the processor multiplies pairs that are neighbours along k and adds them to an fp32 sum. A pair fills the 32
// bits of an fp32 number, a Unit, so both types share all code but the multiplication; where neighbours along k are
// rows, two rows are interleaved first (`interleave`), weights in the backward pass included.
//
// Between products numbers are rounded to the tensors' type, as by PyTorch's separate operations. Each sum over k is
// added up in the order of k, whatever the other rows and the number of threads.
//
// Shapes: B rows of one expert, D hidden, F intermediate, G = 2 F gate rows, then up rows.

#include <immintrin.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>

namespace {

using Size = std::int64_t;
using Unit = std::uint32_t;  // one fp32 number, or two bf16 numbers that are neighbours along k

constexpr Size kLanes = 16;  // fp32 numbers in a vector

// ---- the two number types -----------------------------------------------------------------------------------------

struct Fp32 {
  using Number = float;
  static constexpr Size kPerUnit = 1;
  static __m512 multiply_add(__m512i a, __m512i b, __m512 sum) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
  }
  static __m512 load(const float* from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
  static void store(float* to, __m512 x, __mmask16 mask) { _mm512_mask_storeu_ps(to, mask, x); }
  static float number(float x) { return x; }
};

#ifdef __AVX512BF16__
struct Bf16 {
  using Number = std::uint16_t;
  static constexpr Size kPerUnit = 2;
  static std::uint16_t number(float x) {
    const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(x));
    return static_cast<std::uint16_t>(_mm_extract_epi16(reinterpret_cast<const __m128i&>(rounded), 0));
  }
  static __m512 multiply_add(__m512i a, __m512i b, __m512 sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh&>(a), reinterpret_cast<__m512bh&>(b));
  }
  static __m512 load(const std::uint16_t* from, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from)), 16));
  }
  static void store(std::uint16_t* to, __m512 x, __mmask16 mask) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<const __m256i&>(rounded));
  }
  static __m512 round(__m512 x) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(reinterpret_cast<const __m256i&>(rounded)), 16));
  }
};
#endif

// How gradients of weights are stored: past the caches, since nobody reads them soon and there are many.
template <class Type>
struct Streamed;

template <>
struct Streamed<Fp32> : Fp32 {
  static void store(float* to, __m512 x, __mmask16 mask) {
    if (mask == 0xffff && reinterpret_cast<std::uintptr_t>(to) % 64 == 0)
      _mm512_stream_ps(to, x);
    else
      Fp32::store(to, x, mask);
  }
};

#ifdef __AVX512BF16__
template <>
struct Streamed<Bf16> : Bf16 {
  static void store(std::uint16_t* to, __m512 x, __mmask16 mask) {
    const __m256bh rounded = _mm512_cvtneps_pbh(x);
    if (mask == 0xffff && reinterpret_cast<std::uintptr_t>(to) % 32 == 0)
      _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<const __m256i&>(rounded));
    else
      Bf16::store(to, x, mask);
  }
};
#endif

__mmask16 first_lanes(Size count) { return static_cast<__mmask16>(count >= kLanes ? 0xffff : (1u << count) - 1); }

// ---- products -----------------------------------------------------------------------------------------------------

// A matrix whose elements (i, k) are units at data[i * row + k * column].
struct Strided {
  const Unit* data;
  Size row, column;
};

// MR rows x NR vectors of C, held in registers over all k. Where A is read along its rows, as weights are in the
// forward pass, too many rows are under way for the processor to foresee, so the next tile's are fetched ahead (the
// forward pass is a fifth faster at 16 rows an expert).
template <class Type, class Out, int MR, int NR>
void tile(Size num_k, Strided a, const Unit* b, Size b_row, typename Out::Number* c, Size c_row, __mmask16 last) {
  __m512 sums[MR][NR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j) sums[i][j] = _mm512_setzero_ps();
  for (Size k = 0; k < num_k; ++k) {
    if (a.column == 1 && k % 16 == 0) {
#pragma GCC unroll 16
      for (int i = 0; i < MR; ++i) _mm_prefetch(a.data + (i + MR) * a.row + k, _MM_HINT_T0);
    }
    __m512i vectors[NR];
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j)
      vectors[j] = _mm512_maskz_loadu_epi32(j == NR - 1 ? last : 0xffff, b + k * b_row + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const __m512i number = _mm512_set1_epi32(static_cast<int>(a.data[i * a.row + k * a.column]));
#pragma GCC unroll 4
      for (int j = 0; j < NR; ++j) sums[i][j] = Type::multiply_add(number, vectors[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NR; ++j)
      Out::store(c + i * c_row + j * kLanes, sums[i][j], j == NR - 1 ? last : 0xffff);
}

// All rows of a strip of C that is NR vectors wide, the tallest tiles first.
template <class Type, class Out, int NR, int MR, int... Smaller>
void strip(Size rows, Size num_k, Strided a, const Unit* b, Size b_row, typename Out::Number* c, Size c_row,
           __mmask16 last) {
  Size row = 0;
  for (; row + MR <= rows; row += MR)
    tile<Type, Out, MR, NR>(num_k, {a.data + row * a.row, a.row, a.column}, b, b_row, c + row * c_row, c_row, last);
  if constexpr (sizeof...(Smaller) > 0)
    if (row < rows)
      strip<Type, Out, NR, Smaller...>(rows - row, num_k, {a.data + row * a.row, a.row, a.column}, b, b_row,
                                       c + row * c_row, c_row, last);
}

// C[rows, columns] = A B over num_k units. A tile's sums fill at most 24 of the 32 registers.
template <class Type, class Out>
void multiply(Size rows, Size columns, Size num_k, Strided a, const Unit* b, Size b_row, typename Out::Number* c,
              Size c_row) {
  for (Size column = 0; column < columns; column += 4 * kLanes) {
    const Size left = std::min(columns - column, 4 * kLanes);
    const Size vectors = (left + kLanes - 1) / kLanes;
    const __mmask16 last = first_lanes(left - (vectors - 1) * kLanes);
    const Unit* b_strip = b + column;
    typename Out::Number* c_strip = c + column;
    if (vectors == 4)
      strip<Type, Out, 4, 6, 4, 2, 1>(rows, num_k, a, b_strip, b_row, c_strip, c_row, last);
    else if (vectors == 3)
      strip<Type, Out, 3, 8, 4, 2, 1>(rows, num_k, a, b_strip, b_row, c_strip, c_row, last);
    else if (vectors == 2)
      strip<Type, Out, 2, 12, 6, 3, 1>(rows, num_k, a, b_strip, b_row, c_strip, c_row, last);
    else
      strip<Type, Out, 1, 16, 8, 4, 2, 1>(rows, num_k, a, b_strip, b_row, c_strip, c_row, last);
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
#ifdef __AVX512BF16__
const Unit* interleave(Bf16, Size rows, Size columns, const std::uint16_t* from, Unit* to) {
  for (Size row = 0; row < rows; row += 2) {
    const std::uint16_t* even = from + row * columns;
    const std::uint16_t* odd = even + columns;
    for (Size column = 0; column < columns; column += kLanes) {
      const __mmask16 mask = first_lanes(columns - column);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + column));
      const __m512i high = row + 1 < rows
          ? _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd + column)), 16)
          : _mm512_setzero_si512();
      _mm512_mask_storeu_epi32(to + row / 2 * columns + column, mask, _mm512_or_si512(low, high));
    }
  }
  return to;
}
#endif

// ---- activation ---------------------------------------------------------------------------------------------------

// e^x within 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf). Beyond 128 it is
// 0 or infinity anyway, but x - n ln 2 would be as large as the rounding of n, and the polynomial infinite from 10^14 on.
__m512 exponential(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-128), _mm512_min_ps(_mm512_set1_ps(128), x));  // NaN, if second, passes
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (const float coefficient :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(coefficient));
  const __m512 one = _mm512_set1_ps(1);
  return _mm512_scalef_ps(_mm512_fmadd_ps(_mm512_mul_ps(r, r), p, _mm512_add_ps(r, one)), n);
}

__m512 sigmoid(__m512 x) {
  const __m512 one = _mm512_set1_ps(1);
  return _mm512_div_ps(one, _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

// hT[G, B] to aT = silu(gate) * up in units, [F / per unit, B]; rows of both are `stride` wide, a multiple of a vector.
void activate(Fp32, Size intermediate, Size stride, const float* hT, Unit* aT) {
  for (Size i = 0; i < intermediate * stride; i += kLanes) {
    const __m512 gate = _mm512_loadu_ps(hT + i), up = _mm512_loadu_ps(hT + intermediate * stride + i);
    _mm512_storeu_ps(reinterpret_cast<float*>(aT) + i, _mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up));
  }
}
#ifdef __AVX512BF16__
void activate(Bf16, Size intermediate, Size stride, const float* hT, Unit* aT) {
  const auto activated = [&](Size i) {
    const __m512 gate = Bf16::round(_mm512_loadu_ps(hT + i));
    const __m512 up = Bf16::round(_mm512_loadu_ps(hT + intermediate * stride + i));
    return _mm512_castps_si512(Bf16::round(_mm512_mul_ps(_mm512_mul_ps(gate, sigmoid(gate)), up)));
  };
  for (Size f = 0; f < intermediate; f += 2)
    for (Size b = 0; b < stride; b += kLanes) {
      const __m512i low = _mm512_srli_epi32(activated(f * stride + b), 16), high = activated((f + 1) * stride + b);
      _mm512_storeu_si512(aT + f / 2 * stride + b, _mm512_or_si512(low, high));
    }
}
#endif

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
  const __m512 one = _mm512_set1_ps(1);
  for (Size row = 0; row < rows; ++row)
    for (Size f = 0; f < intermediate; f += kLanes) {
      const __mmask16 mask = first_lanes(intermediate - f);
      const Size at = row * 2 * intermediate + f;
      const __m512 gate = Type::load(h + at, mask), up = Type::load(h + at + intermediate, mask);
      const __m512 gradient = _mm512_maskz_loadu_ps(mask, ga + row * intermediate + f);
      const __m512 s = sigmoid(gate), activated = _mm512_mul_ps(gate, s);
      const __m512 slope = _mm512_mul_ps(s, _mm512_fmadd_ps(gate, _mm512_sub_ps(one, s), one));
      Type::store(a + row * intermediate + f, _mm512_mul_ps(activated, up), mask);
      Type::store(gh + at, _mm512_mul_ps(_mm512_mul_ps(gradient, up), slope), mask);
      Type::store(gh + at + intermediate, _mm512_mul_ps(gradient, activated), mask);
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

#ifdef __AVX512BF16__
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
#endif

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
