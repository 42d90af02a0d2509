// Vectors of fp32 numbers, by AVX-512 or AVX2, whichever the compiler was told that the processor has; arithmetic on
// them is the compiler's own (`a * b`). Of bf16 numbers two fill the 32 bits of an fp32 number, a Unit.
//
// Where a function takes `lanes`, only so many numbers are read or written, and the rest are zeros; any number from
// kLanes on means all.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

using Size = std::int64_t;
using Unit = std::uint32_t;  // one fp32 number, or two bf16 numbers

// The same bits as another type.
template <class To, class From>
To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// ---- what differs by processor ------------------------------------------------------------------------------------

#ifdef __AVX512F__

using Vector = __m512;
using Half = __m256i;  // as many bf16 numbers
constexpr Size kLanes = 16;

__mmask16 first(Size lanes) { return static_cast<__mmask16>(lanes >= kLanes ? 0xffff : (1u << lanes) - 1); }

Vector broadcast(float x) { return _mm512_set1_ps(x); }
Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
Vector load(const float* from, Size lanes) { return _mm512_maskz_loadu_ps(first(lanes), from); }
void store(float* to, Vector x, Size lanes) { _mm512_mask_storeu_ps(to, first(lanes), x); }
void stream(float* to, Vector x) { _mm512_stream_ps(to, x); }

Half load_half(const std::uint16_t* from, Size lanes) { return _mm256_maskz_loadu_epi16(first(lanes), from); }
void store_half(std::uint16_t* to, Half x, Size lanes) { _mm256_mask_storeu_epi16(to, first(lanes), x); }
void stream_half(std::uint16_t* to, Half x) { _mm256_stream_si256(reinterpret_cast<__m256i*>(to), x); }
Vector widen(Half x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
Half upper_halves(Vector x) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(x), 16)); }

#else

using Vector = __m256;
using Half = __m128i;
constexpr Size kLanes = 8;

__m256i first(Size lanes) {
  alignas(64) static constexpr std::int32_t kMasks[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1};
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + kLanes - lanes));
}

Vector broadcast(float x) { return _mm256_set1_ps(x); }
Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
Vector load(const float* from, Size lanes) {
  return lanes >= kLanes ? _mm256_loadu_ps(from) : _mm256_maskload_ps(from, first(lanes));
}
void store(float* to, Vector x, Size lanes) {
  if (lanes >= kLanes)
    _mm256_storeu_ps(to, x);
  else
    _mm256_maskstore_ps(to, first(lanes), x);
}
void stream(float* to, Vector x) { _mm256_stream_ps(to, x); }

Half load_half(const std::uint16_t* from, Size lanes) {
  Half x{};
  std::memcpy(&x, from, lanes >= kLanes ? sizeof x : lanes * sizeof *from);
  return x;
}
void store_half(std::uint16_t* to, Half x, Size lanes) {
  std::memcpy(to, &x, lanes >= kLanes ? sizeof x : lanes * sizeof *to);
}
void stream_half(std::uint16_t* to, Half x) { _mm_stream_si128(reinterpret_cast<__m128i*>(to), x); }
Vector widen(Half x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
Half upper_halves(Vector x) {
  const __m256i shifted = _mm256_srli_epi32(_mm256_castps_si256(x), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1));
}

#endif

Vector load_units(const Unit* from, Size lanes) { return load(reinterpret_cast<const float*>(from), lanes); }
void store_units(Unit* to, Vector x, Size lanes) { store(reinterpret_cast<float*>(to), x, lanes); }

Vector broadcast_unit(Unit x) { return broadcast(as<float>(x)); }

// ---- bf16 numbers -------------------------------------------------------------------------------------------------

typedef Unit Bits __attribute__((vector_size(sizeof(Vector))));
typedef std::int32_t Integers __attribute__((vector_size(sizeof(Vector))));

Bits bits(Vector x) { return as<Bits>(x); }
Vector numbers(Bits x) { return as<Vector>(x); }

// To the nearest bf16 number, of two as near the even one; NaN stays NaN.
Half narrow(Vector x) {
#ifdef __AVX512BF16__
  return as<Half>(_mm512_cvtneps_pbh(x));
#else
  const Bits rounded = bits(x) + 0x7fff + ((bits(x) >> 16) & 1);
  return upper_halves(numbers(x == x ? rounded : bits(x) | 0x400000));
#endif
}

void stream(std::uint16_t* to, Vector x) { stream_half(to, narrow(x)); }

std::uint16_t narrow(float x) {
#ifdef __AVX512BF16__
  return static_cast<std::uint16_t>(_mm_extract_epi16(as<__m128i>(_mm_cvtneps_pbh(_mm_set_ss(x))), 0));
#else
  const Unit bits = as<Unit>(x);
  return static_cast<std::uint16_t>((x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000) >> 16);
#endif
}

// Two numbers of bf16's precision to a pair, the first in the lower half.
Vector paired(Vector first, Vector second) { return numbers((bits(first) >> 16) | bits(second)); }

// sum + products of both numbers of the pairs
Vector multiply_add_pairs(Vector a, Vector b, Vector sum) {
#ifdef __AVX512BF16__
  return _mm512_dpbf16_ps(sum, as<__m512bh>(a), as<__m512bh>(b));
#else
  const auto first = [](Vector pair) { return numbers(bits(pair) << 16); };
  const auto second = [](Vector pair) { return numbers(bits(pair) & 0xffff0000); };
  return multiply_add(first(a), first(b), multiply_add(second(a), second(b), sum));
#endif
}

// ---- functions ----------------------------------------------------------------------------------------------------

// e^x within 2 units in the last place: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes' expf). Beyond 128 it is
// 0 or infinity anyway, but x - n ln 2 would be as large as the rounding of n, and the polynomial infinite from 10^14 on.
Vector exponential(Vector x) {
  x = x > 128 ? broadcast(128) : x < -128 ? broadcast(-128) : x;  // NaN passes
  constexpr float kRounds = 12582912;  // 1.5 x 2^23: what is added to it is rounded to an integer
  const Vector n = (x * 1.44269504f + kRounds) - kRounds;
  const Vector r = multiply_add(n, broadcast(2.12194440e-4f), multiply_add(n, broadcast(-0.693359375f), x));
  Vector p = broadcast(1.9875691500e-4f);
  for (const float coefficient :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = multiply_add(p, r, broadcast(coefficient));
  // 2^n in two steps, since n is beyond the exponents of fp32 where the result is 0 or infinity
  const Integers exponent = __builtin_convertvector(n, Integers), half = exponent >> 1;
  const auto power = [](Integers i) { return as<Vector>((i + 127) << 23); };
  return multiply_add(r * r, p, r + 1) * power(half) * power(exponent - half);
}

Vector sigmoid(Vector x) { return 1 / (1 + exponential(-x)); }

}  // namespace
